"""The masks that come with twofour: inside its wheel, and in `masks/` of a checkout."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

_PACKAGE = Path(__file__).parent
FOLDERS = (_PACKAGE / "masks", _PACKAGE.parent / "masks")
TRANSFORM = "transform.safetensors"
"""File of the transform beside the masks of what it makes."""


@dataclass(frozen=True)
class MaskFolder:
    """Masks of one base.

    Attributes:
        files: name -> mask file, the general one first. All others are stored as differences to it,
            which must lie beside them.
        transform: makes the base of a model; None if the masks are the model's own.
    """

    files: dict[str, Path] = field(default_factory=dict)
    transform: Path | None = None


def shipped_masks(model: str) -> MaskFolder:
    """The 2:4 masks for `model`; without files for models that have none.

    They are those of `masks/MODEL-free`, the model in another order of its channels.

    Raises:
        FileNotFoundError: this installation has lost its masks.
    """
    folder = next((folder for folder in FOLDERS if folder.is_dir()), None)
    if folder is None:
        raise FileNotFoundError(
            f"the masks that come with twofour are not in {FOLDERS[0]}: install twofour again"
        )
    return masks_in(folder / f"{model}-free")


def masks_in(folder: Path) -> MaskFolder:
    """What a folder of masks holds."""
    files = {f.stem: f for f in sorted(folder.glob("*.safetensors")) if f.name != TRANSFORM}
    transform = folder / TRANSFORM
    return MaskFolder(
        dict(sorted(files.items(), key=lambda item: item[0] != "general")),
        transform if transform.is_file() else None,
    )
