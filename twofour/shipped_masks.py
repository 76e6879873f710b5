"""The masks that come with twofour: inside its wheel, and in `masks/` of a checkout."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent
FOLDERS = (_PACKAGE / "masks", _PACKAGE.parent / "masks")


def shipped_masks(model: str) -> dict[str, Path]:
    """Files of the masks for `model`, by name, the general one first; empty for other models.

    All but the general mask are stored as differences to it, which must lie beside them.

    Raises:
        FileNotFoundError: this installation has lost its masks.
    """
    folder = next((folder for folder in FOLDERS if folder.is_dir()), None)
    if folder is None:
        raise FileNotFoundError(
            f"the masks that come with twofour are not in {FOLDERS[0]}: install twofour again"
        )
    return masks_in(folder / model)


def masks_in(folder: Path) -> dict[str, Path]:
    """The mask files of a folder by name, the general one first."""
    files = {file.stem: file for file in sorted(folder.glob("*.safetensors"))}
    return dict(sorted(files.items(), key=lambda item: item[0] != "general"))
