"""Which vLLM versions are taken."""

from __future__ import annotations

import pytest

from engines.vllm_plugin.version import VllmVersionError, check_version


@pytest.mark.parametrize("version", ["0.32.0", "0.32.7", "0.32.0+cpu", "0.32.1rc1", "0.32.0.dev3"])
def test_tested_versions(version: str) -> None:
    check_version(version)


@pytest.mark.parametrize("version", ["0.31.9", "0.33.0", "1.0.0", "0.33.0rc1"])
def test_other_versions_are_refused(version: str) -> None:
    with pytest.raises(VllmVersionError, match=version.replace("+", r"\+")):
        check_version(version)
