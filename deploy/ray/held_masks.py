"""The masks that a replica holds: loaded from a folder when first named, unloaded when unused."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from engines.base import Engine

MASK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class HeldMask:
    """A mask in an engine, released once nobody uses it.

    Ray Serve calls `__del__` of what it evicts, and awaits it. On the class, Python would call it
    too, and await nothing; so it is an attribute.
    """

    def __init__(self, engine: Engine, name: str, loaded: bool) -> None:
        self._engine = engine
        self._name = name
        self._loaded = loaded
        self._users = 0
        self._idle = asyncio.Event()
        self._idle.set()
        setattr(self, "__del__", self.release)  # noqa: B010

    @asynccontextmanager
    async def used(self) -> AsyncIterator[None]:
        """The mask stays loaded inside the block."""
        self._users += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._idle.set()

    async def release(self) -> None:
        """Unload it when the last request that runs with it has ended."""
        await self._idle.wait()
        if self._loaded:
            await self._engine.unload_mask(self._name)


def is_there(engine: Engine, folder: Path | None, name: str) -> bool:
    """Whether the engine has a mask of this name, or the folder a file of one.

    What is in neither takes no place among the masks held; the server refuses it in its own words.
    """
    if any(mask.name == name for mask in engine.describe().masks):
        return True
    return folder is not None and bool(MASK_NAME.fullmatch(name)) and _file(folder, name).is_file()


async def hold(engine: Engine, folder: Path | None, name: str) -> HeldMask:
    """Load a mask that is there, unless the engine directory has brought it.

    Raises:
        MaskError: the file is no mask of this model.
    """
    brought = any(mask.name == name for mask in engine.describe().masks)
    if not brought and folder is not None:
        await engine.load_mask(name, _file(folder, name))
    return HeldMask(engine, name, loaded=not brought)


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors"
