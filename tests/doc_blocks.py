"""The fenced code of the documentation's pages."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def fenced(page: str, language: str) -> list[str]:
    """The code blocks of one language in `docs/<page>`, in order."""
    text = (ROOT / "docs" / page).read_text()
    blocks: list[str] = re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)
    return blocks
