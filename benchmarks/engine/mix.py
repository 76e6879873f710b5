"""Many masks in one engine: what they cost as patches, as copies, and switched in place.

Waves of short requests whose masks are mixed. The arms of a cell take turns, each in a process of
its own, so that memory figures stay apart; beside them the base mask alone is the yardstick.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.common.arm_process import Worker
from benchmarks.common.machine import OtherCpu
from benchmarks.common.result_file import ResultRow
from benchmarks.common.table import Earlier, Table, TableSpec
from benchmarks.common.waves import Wave
from benchmarks.engine.mix_page import mix_page
from benchmarks.engine.mix_plan import MixPlan, requests_per_mask, synthetic_mask
from engines.cpu.model import CpuModel
from engines.cpu.opening import open_cpu_directory
from engines.cpu.storage_measurement import measured_rule
from engines.cpu.storage_rule import StorageRule
from engines.cpu.value_form import forms_of
from engines.directory.manifest import read_manifest
from engines.native._native import Limits
from maskgen.format.mask import Mask
from maskgen.format.mask_file import read_mask, write_mask

KEY = ("masks", "active", "changed_share", "mix", "mode")
"""What names a row."""


def measured_rules(directory: Path, plan: MixPlan) -> list[StorageRule]:
    """The storage rule as the engine would measure it, several times over, by rising limit."""
    opened = open_cpu_directory(directory)
    forms = forms_of(opened.manifest.quantisation)
    model = CpuModel(opened.weights, opened.config, Limits(1, 1, 1, 1, plan.threads), forms)
    return sorted((measured_rule(model) for _ in range(plan.rules)), key=lambda rule: rule.limit)


@dataclass
class MixArm:
    """One engine and how it keeps masks; `switch` keeps them as patches and switches the base."""

    mode: str
    worker: Worker
    changed: dict[str, float] = field(default_factory=dict)
    masks_mib: float = 0.0
    load_ms: float = 0.0

    def load(self, files: Mapping[str, Path]) -> None:
        """Load masks; their figures are this arm's from then on."""
        answer = self.worker.ask("load", {name: str(file) for name, file in files.items()})
        self.changed |= answer["changed_share"]
        self.masks_mib, self.load_ms = answer["masks_mib"], answer["load_ms"]

    def switch(self, name: str) -> float:
        """Milliseconds until the base is another mask."""
        return float(self.worker.ask("switch", name)["switch_ms"])


@dataclass(frozen=True)
class Bench:
    """Measures one engine directory, which must hold one mask and not be sealed.

    Args:
        directory: of target `cpu`.
        plan: what to measure.
        rule: says in the rows which mode a measuring engine would pick.
        folder: where mask files are written; nothing is deleted in it.
        say: told what has been measured.
    """

    directory: Path
    plan: MixPlan
    rule: StorageRule
    folder: Path
    say: Callable[[str], None]

    def rows(self, real: Mapping[str, Path]) -> Iterator[ResultRow]:
        """The base alone, every cell with synthetic masks, and the real masks beside the base."""
        name, mask = self._base()
        plan = self.plan
        with ExitStack() as stack:
            yield from self._cell([self._start(stack, "base")], "uniform", [name])
        for number, share in enumerate(plan.shares):
            files = {}
            for i in range(1, max(plan.counts)):
                files[f"m{i}"] = self.folder / f"{number}-{i}.safetensors"
                write_mask(files[f"m{i}"], synthetic_mask(mask, share, 100 * number + i))
            yield from self._share(name, files)
            for file in files.values():
                file.unlink()
        if real:
            with ExitStack() as stack:
                arms = [self._start(stack, mode) for mode in ("patch", "copy")]
                _load(arms, real)
                for row in self._cell(arms, "uniform", [name, *real]):
                    yield row | {"names": [name, *real]}

    def _base(self) -> tuple[str, Mask]:
        manifest = read_manifest(self.directory)
        if manifest.default_mask is None or manifest.sealed or len(manifest.masks) != 1:
            raise ValueError(f"{self.directory} must be built with one mask, and not --sealed")
        return manifest.default_mask, read_mask(self.directory / manifest.masks[0].file)

    def _share(self, base: str, files: Mapping[str, Path]) -> Iterator[ResultRow]:
        names = [base, *files]
        with ExitStack() as stack:
            arms = [self._start(stack, mode) for mode in ("patch", "copy")]
            loaded = 1
            for count in sorted(set(self.plan.counts) - {1}):
                _load(arms, {name: files[name] for name in names[loaded:count]})
                loaded = count
                if count == 2:
                    yield from self._one_active(arms, base, names[1], files[names[1]])
                yield from self._cell(arms, "uniform", names[:count])
                if count in self.plan.zipf_counts:
                    yield from self._cell(arms, "zipf", names[:count])

    def _one_active(
        self, arms: Sequence[MixArm], base: str, name: str, file: Path
    ) -> Iterator[ResultRow]:
        """All requests use one mask beside the base: a patch, a copy, or the base itself now."""
        with ExitStack() as stack:
            arm = self._start(stack, "switch")
            arm.load({name: file})
            arm.worker.ask("wave", self._wave([base] * self.plan.concurrency, 0))
            times = []
            for _ in range(self.plan.switches):
                times += [arm.switch(name), arm.switch(base)]
            times.append(arm.switch(name))
            for row in self._cell([*arms, arm], "single", [base, name]):
                if row["mode"] == "switch":
                    # The first one copies the pages of the mapped file that it writes to.
                    row["first_switch_ms"] = round(times[0], 2)
                    row["switch_ms"] = round(statistics.median(times[1:]), 2)
                yield row

    def _cell(self, arms: Sequence[MixArm], mix: str, names: Sequence[str]) -> Iterator[ResultRow]:
        """Rows of one cell: the arms in turns, every other round in reverse."""
        requests = self.plan.concurrency
        counts = [0, requests] if mix == "single" else requests_per_mask(mix, len(names), requests)
        used = [name for name, count in zip(names, counts, strict=True) for _ in range(count)]
        turns = [(arm, used) for arm in arms]
        if len(names) > 1:
            turns.append((arms[0], [names[0]] * requests))
        waves: list[list[dict[str, float]]] = [[] for _ in turns]
        begin = time.perf_counter()
        with OtherCpu() as other:
            for repeat in range(self.plan.repeats):
                if repeat and time.perf_counter() - begin > self.plan.cell_seconds:
                    break
                order = range(len(turns)) if repeat % 2 == 0 else reversed(range(len(turns)))
                for turn in order:
                    arm, masks = turns[turn]
                    waves[turn].append(arm.worker.ask("wave", self._wave(masks, 1 + repeat)))
        alone = _median(waves[-1], "tokens_per_s")
        changed = statistics.fmean([arms[0].changed[name] for name in names[1:]] or [0.0])
        picked = self.rule.storage(changed)
        for arm, found in zip(arms, waves, strict=False):
            row = {
                "masks": len(names),
                "active": sum(count > 0 for count in counts),
                "changed_share": round(changed, 5),
                "mix": mix,
                "mode": arm.mode,
                "tokens_per_s": _median(found, "tokens_per_s"),
                "resident_mib": round(arm.worker.ask("memory")["rss_mib"], 1),
                "switch_ms": None,
                "picked": picked == arm.mode if arm.mode in ("patch", "copy") else None,
                "base_alone_tokens_per_s": alone,
                "decode_tokens_per_s": _median(found, "decode_tokens_per_s"),
                "masks_mib": round(arm.masks_mib, 3),
                "load_ms": round(arm.load_ms, 1),
                "requests": counts,
                "tokens_per_s_all": [round(wave["tokens_per_s"], 2) for wave in found],
                "other_cpu_share": round(other.share, 3),
            }
            self.say(
                f"{row['masks']:3} masks, {row['active']:2} active, {changed:6.2%} changed,"
                f" {mix:7} {arm.mode:6} {row['tokens_per_s']:8.1f} tokens/s (base alone {alone})"
                f" {row['resident_mib']:8.1f} MiB"
            )
            yield row

    def _wave(self, masks: Sequence[str], seed: int) -> dict[str, Any]:
        plan = self.plan
        lengths = (plan.prompt_tokens, plan.output_tokens)
        return asdict(Wave(*lengths, plan.concurrency, seed, list(masks)))

    def _start(self, stack: ExitStack, mode: str) -> MixArm:
        options = {
            "kv_bytes": self.plan.kv_mib << 20,
            "threads": self.plan.threads,
            "max_sequences": self.plan.concurrency,
            "prefix_cache": False,
            "mask_storage": "copy" if mode == "copy" else "patch",
        }
        module = "benchmarks.engine.worker"
        path = str(self.directory.resolve())
        command = [sys.executable, "-m", module, path, json.dumps(options)]
        return MixArm(mode, stack.enter_context(Worker(mode, command)))


def measure_mix(
    directory: Path,
    plan: MixPlan,
    real: Mapping[str, Path],
    folder: Path,
    say: Callable[[str], None],
) -> Path:
    """Measure the storage rule and every cell, and give the result file, written after every row.

    Args:
        directory: of target `cpu`, with one mask and not sealed.
        plan: what to measure.
        real: name -> file of masks to measure beside the synthetic ones.
        folder: where mask files are written.
        say: told what has been measured.
    """
    with OtherCpu() as other:
        rules = measured_rules(directory, plan)
    rule = rules[len(rules) // 2]
    say(rule.why)
    measured = {
        "limit": round(rule.limit, 5),
        "why": rule.why,
        "limits": [round(found.limit, 5) for found in rules],
        "other_cpu_share": round(other.share, 3),
    }

    def facts(rows: Sequence[ResultRow]) -> dict[str, Any]:
        return {"crossovers": crossovers(rows), "plan": asdict(plan), "rule": measured}

    table = Table(TableSpec("mask-mix", KEY, mix_page, facts), Earlier.DROP)
    files = {name: file.resolve() for name, file in real.items()}
    for row in Bench(directory, plan, rule, folder, say).rows(files):
        table.put([row])
    return table.path


def crossovers(rows: Sequence[ResultRow]) -> list[ResultRow]:
    """Per masks, active masks and mix: the changed share at which patch and copy are as fast.

    Interpolated between the two measured shares where the faster mode changes; null, and `faster`
    says which, where one mode is faster at every measured share.
    """
    cells: dict[tuple[Any, ...], dict[float, dict[str, float]]] = {}
    for row in rows:
        if row["mode"] in ("patch", "copy") and "names" not in row:
            rates_of = cells.setdefault((row["masks"], row["active"], row["mix"]), {})
            rates_of.setdefault(row["changed_share"], {})[row["mode"]] = row["tokens_per_s"]
    found = []
    for (masks, active, mix), rates_of in cells.items():
        # Seconds a token that a patch takes more than a copy.
        points = [
            (share, 1 / rates["patch"] - 1 / rates["copy"])
            for share, rates in sorted(rates_of.items())
            if len(rates) == 2
        ]
        crossing = None
        for (left, below), (right, above) in pairwise(points):
            if below <= 0 < above:
                crossing = round(left - below * (right - left) / (above - below), 4)
        faster = None
        if crossing is None and points:
            faster = "patch" if points[-1][1] <= 0 else "copy"
        cell = {"masks": masks, "active": active, "mix": mix}
        found.append(cell | {"crossover": crossing, "faster": faster})
    return found


def _load(arms: Sequence[MixArm], files: Mapping[str, Path]) -> None:
    with ThreadPoolExecutor(len(arms)) as pool:
        list(pool.map(lambda arm: arm.load(files), arms))


def _median(waves: Sequence[Mapping[str, float]], name: str) -> float:
    return round(statistics.median(wave[name] for wave in waves), 2)
