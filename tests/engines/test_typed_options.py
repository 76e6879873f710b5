"""Every engine's options: one declaration, one kind of error, whoever gives them."""

from __future__ import annotations

import re
from pathlib import Path
from pkgutil import resolve_name

import pytest
from pydantic import ValidationError

from engines.registry import TARGETS
from engines.typed_options import explain, read_options
from serving.config import SECRET, ServerSettings

CASES = [
    ({"kv_bytes": "abc"}, "kv_bytes is 'abc': must be a valid integer"),
    ({"kv_bytes": 0}, "kv_bytes is 0: must be greater than or equal to 1"),
    ({"threads": 1.5}, "threads is 1.5: must be a valid integer"),
    ({"invariant": "maybe"}, "invariant is 'maybe': must be a valid boolean"),
    ({"mask_storage": "disk"}, "mask_storage is 'disk': must be 'patch' or 'copy'"),
    ({"patch_limit": 1.5}, "patch_limit is 1.5: must be less than or equal to 1 or 'measure'"),
    ({"step_tokens": 8}, "step_tokens (8) must be at least max_sequences (64)"),
    ({"kv_byte": 1}, "the cpu engine has no option 'kv_byte'; it has: verify, kv_bytes,"),
]


@pytest.mark.parametrize(("options", "message"), CASES, ids=[str(case[0]) for case in CASES])
def test_what_is_wrong_is_said_on_one_line(options: dict[str, object], message: str) -> None:
    kind = resolve_name(TARGETS["cpu"].options)
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        read_options(kind, options, "the cpu engine")
    assert "\n" not in str(raised.value)


def test_text_from_a_command_line_is_read() -> None:
    kind = resolve_name(TARGETS["cpu"].options)
    read = read_options(kind, {"threads": "2", "patch_limit": "measure", "verify": "false"}, "")
    assert (read.threads, read.patch_limit, read.verify) == (2, "measure", False)


@pytest.mark.parametrize("target", TARGETS)
def test_every_option_is_described_and_has_a_default(target: str) -> None:
    fields = resolve_name(TARGETS[target].options).model_fields
    assert "verify" in fields
    for name, field in fields.items():
        assert field.description, name
        assert not field.is_required(), name


def test_keys_are_not_shown() -> None:
    with pytest.raises(ValidationError) as raised:
        ServerSettings(directory=Path(), api_key=["secret-1", ""], port=70000)
    assert explain(raised.value, SECRET, "--") == (
        "--port is 70000: must be less than or equal to 65535;"
        " --api-key: an API key is empty; unset the variable to serve without keys"
    )
