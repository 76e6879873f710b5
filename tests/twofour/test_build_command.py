"""`twofour build`: what its options mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engines.conftest import random_mask
from tests.tiny_model import make_tiny_llama
from twofour.commands.option_values import named_masks


def test_masks_are_named_by_hand_or_by_their_domain(tmp_path: Path) -> None:
    model = make_tiny_llama(tmp_path / "model")
    general, law = (
        random_mask(model, tmp_path / f"{name}.safetensors", domain=name)
        for name in ("general", "law")
    )
    assert named_masks([str(general), f"mine={law}"]) == {"general": general, "mine": law}
    # The second would silently have taken the first one's place.
    with pytest.raises(ValueError, match=r"two masks are called 'general'.*--mask NAME=FILE"):
        named_masks([f"general={law}", str(general)])
