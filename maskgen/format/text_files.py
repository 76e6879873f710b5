"""The files of a model directory that its texts depend on: tokenizer, chat templates, settings."""

from __future__ import annotations

from pathlib import Path

from maskgen.format.model_directory import CONFIG_FILE
from maskgen.format.special_tokens import (
    ADDED_TOKENS_FILE,
    SPECIAL_TOKENS_FILE,
    TOKENIZER_CONFIG_FILE,
)
from maskgen.format.tokenizer import TOKENIZER_FILE

TEMPLATE_FILE = "chat_template.jinja"
TEMPLATE_FOLDER = "additional_chat_templates"

_FILES = (
    TOKENIZER_FILE,
    TOKENIZER_CONFIG_FILE,
    SPECIAL_TOKENS_FILE,
    ADDED_TOKENS_FILE,
    CONFIG_FILE,
    "generation_config.json",
)


def text_files(directory: Path) -> list[Path]:
    """All of them that are there."""
    files = [path for name in _FILES if (path := directory / name).is_file()]
    return files + template_files(directory)


def template_files(directory: Path) -> list[Path]:
    """Those that hold chat templates, each a file of its own."""
    paths = (directory / TEMPLATE_FILE, *sorted((directory / TEMPLATE_FOLDER).glob("*.jinja")))
    return [path for path in paths if path.is_file()]
