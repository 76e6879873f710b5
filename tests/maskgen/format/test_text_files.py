"""Every file that texts depend on, and it goes where the model goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.directory.build import copy_text_files
from maskgen.apply import apply_mask
from maskgen.format.text_files import template_files, text_files
from maskgen.prune import PruneSettings, prune
from tests.tiny_model import make_tiny_llama

TEMPLATES = (
    "chat_template.jinja",
    "additional_chat_templates/rag.jinja",
    "additional_chat_templates/tool_use.jinja",
)
NAMES = {
    *TEMPLATES,
    "added_tokens.json",
    "config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = make_tiny_llama(tmp_path / "model")
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates/README").write_text("no template")
    for name in NAMES:
        path = directory / name
        if not path.exists():
            path.write_text("{}")
    return directory


def relative(paths: list[Path], directory: Path) -> list[str]:
    return [path.relative_to(directory).as_posix() for path in paths]


def test_the_files(model: Path) -> None:
    assert sorted(relative(text_files(model), model)) == sorted(NAMES)
    assert relative(template_files(model), model) == list(TEMPLATES)


def test_they_go_into_engine_directories_and_masked_checkpoints(
    model: Path, tmp_path: Path
) -> None:
    engine, masked = tmp_path / "engine", tmp_path / "masked"
    engine.mkdir()
    copy_text_files(model, engine)
    apply_mask(model, prune(model, None, PruneSettings("magnitude")).mask, masked)
    for copy in (engine, masked):
        assert sorted(relative(text_files(copy), copy)) == sorted(NAMES)
        for name in NAMES:
            assert (copy / name).read_bytes() == (model / name).read_bytes()
