"""Masks that are mixed, come and go under traffic, or are damaged."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from benchmarks.common.arm_process import ArmError
from benchmarks.common.result_file import ResultRow
from benchmarks.reliability.client import Completion, Reply, ask
from benchmarks.reliability.row import Tally
from benchmarks.reliability.site import Running, Site, prompts

LATE = "late"
"""Name of masks that come and go."""
_SWAPS = 12
_TOKENS = 16


async def mixed_masks(site: Site) -> ResultRow:
    """All masks at once: every answer is the one that its mask gives alone."""
    tally = Tally("mixed masks")
    kinds = [
        Completion(prompt, _TOKENS, model, stream)
        for prompt in prompts(4)
        for model in (*site.names(), None)
        for stream in (True, False)
    ]
    async with site.server("mixed") as running:
        await running.learn(kinds)
        if len({running.alone[kind] for kind in kinds if kind.prompt == kinds[0].prompt}) < 2:
            tally.problem("the masks give the same answers, so that this shows nothing")
        for seed in range(3):
            order = random.Random(seed).sample(kinds, len(kinds))
            replies = await asyncio.gather(*(ask(running.url, kind) for kind in order))
            for kind, reply in zip(order, replies, strict=True):
                tally.take(running, kind, reply)
            await tally.settle(running)
    return tally.row()


async def load_and_unload(site: Site) -> ResultRow:
    """Masks come and go under one name while requests ask for it, and for others."""
    tally = Tally("load and unload under traffic")
    files = site.loadable[:2]
    late = [Completion(prompt, _TOKENS, f"{site.model}:{LATE}") for prompt in prompts(2)]
    kinds = [Completion(prompt, _TOKENS, name) for prompt in prompts(2) for name in site.names()]
    async with site.server("load") as running:
        await running.learn(kinds)
        # What each file answers, by the fingerprint that its answers carry.
        texts: dict[tuple[str, Completion], str] = {}
        for file in files:
            async with loaded_mask(site, running, file):
                for kind in late:
                    reply = await ask(running.url, kind)
                    texts[kind.fingerprint(reply), kind] = kind.text(reply)
        if len(set(texts.values())) < 2:
            tally.problem("the files give the same answers, so that this shows nothing")
        swapped = asyncio.Event()

        def said(kind: Completion, reply: Reply) -> str | None:
            return texts.get((kind.fingerprint(reply), kind))

        async def client(number: int) -> None:
            while not swapped.is_set():
                kind = [*kinds, *late][number % (len(kinds) + len(late))]
                reply = await ask(running.url, kind)
                refusals = ("model_not_found", "mask_replaced") if kind in late else ()
                answered = tally.take(running, kind, reply, *refusals) == "answered"
                if answered and kind in late and kind.text(reply) != said(kind, reply):
                    tally.problem("an answer of another mask than it says")
                number += 1

        async def swap() -> None:
            for number in range(_SWAPS):
                async with loaded_mask(site, running, files[number % 2]):
                    await asyncio.sleep(0.2)
                if number == _SWAPS // 4:
                    tally.rss_mib.append(round(running.rss_mib(), 1))
            swapped.set()

        await asyncio.gather(swap(), *map(client, range(site.clients)))
        await tally.settle(running)
    tally.details["swaps"] = _SWAPS
    return tally.row()


async def damaged_masks(site: Site) -> ResultRow:
    """Damaged masks are refused, loaded under traffic or found at the start."""
    tally = Tally("damaged masks")
    kinds = [Completion(prompt, _TOKENS, name) for prompt in prompts(2) for name in site.names()]
    whole = site.loadable[0].read_bytes()
    async with site.server("damaged") as running:
        await running.learn(kinds)

        async def traffic() -> None:
            for kind in kinds:
                tally.take(running, kind, await ask(running.url, kind))

        for number, content in enumerate(_damages(whole)):
            (site.folder / "masks" / "damaged.safetensors").write_bytes(content)
            fields = {"mask_name": f"damaged-{number}", "mask_path": "damaged.safetensors"}
            reply, _ = await asyncio.gather(running.admin("/v1/load_mask", fields), traffic())
            error = reply.error()
            refused = reply.status == 400 and error is not None and error["code"] == "invalid_mask"
            tally.expect(refused, f"damage {number}: {reply.status} {reply.body[:200]!r}")
            await tally.settle(running)
    await _damaged_directory(site, tally)
    return tally.row()


async def _damaged_directory(site: Site, tally: Tally) -> None:
    """A directory with a damaged mask is one line and no server."""
    copy = site.folder / "damaged-directory"
    shutil.copytree(site.directory, copy, copy_function=_link)
    mask = sorted((copy / "masks").iterdir())[0]
    content = bytearray(mask.read_bytes())
    content[len(content) // 2] ^= 1
    mask.unlink()
    mask.write_bytes(content)
    try:
        async with replace(site, directory=copy).server("damaged-directory") as running:
            tally.expect(False, f"a server on a damaged directory: {running.url}")
    except ArmError as error:
        lines = str(error).strip().splitlines()
        told = "code 1" in lines[0] and mask.name in lines[-1] and "Traceback" not in str(error)
        tally.expect(told, f"a damaged directory says {error}")


def _damages(content: bytes) -> Iterator[bytes]:
    """Nothing, a half, noise, a header of an impossible length, and flipped bytes all over."""
    yield b""
    yield content[: len(content) // 2]
    yield random.Random(0).randbytes(len(content))
    yield (1 << 62).to_bytes(8, "little") + content[8:]
    for part in range(1, 9):
        changed = bytearray(content)
        changed[len(content) * part // 9] ^= 0xFF
        yield bytes(changed)


@asynccontextmanager
async def loaded_mask(site: Site, running: Running, file: Path) -> AsyncIterator[None]:
    """A mask that is there, under the name `late`, while the block runs.

    Raises:
        ArmError: it is not loaded, or not unloaded.
    """
    name = f"{file.parent.name}-{file.name}"
    target = site.folder / "masks" / name
    if not target.exists():
        shutil.copyfile(file, target)
    await _admin(running, "/v1/load_mask", {"mask_name": LATE, "mask_path": name})
    yield
    await _admin(running, "/v1/unload_mask", {"mask_name": LATE})


async def _admin(running: Running, path: str, fields: dict[str, str]) -> None:
    reply = await running.admin(path, fields)
    if reply.status != 200:
        raise ArmError(f"{path} {fields} gives {reply}")


def _link(source: str, target: str) -> str:
    """Hard links where the folders share a disk: directories may have gigabytes."""
    try:
        Path(target).hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)
    return target
