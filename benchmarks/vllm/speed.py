"""Sparse and dense decoding through vLLM on the CPU (`twofour bench vllm`).

Arms: `sparse` and `own-dense` run twofour's kernels through the plugin, `dense` is vLLM's own
(oneDNN) in bf16, `dense-fp32` the same in float32, which is faster where the CPU has no bf16
instructions. `zentorch` is vLLM's own with AMD's extension, which vLLM uses wherever it is
installed and the CPU has AVX-512; it needs an environment of its own.

The arms of one mode and one thread binding are open together and take turns batch by batch.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.common.arm_process import ArmError, Worker
from benchmarks.common.machine import OtherCpu
from benchmarks.common.result_file import ResultRow
from benchmarks.common.waves import Wave
from engines.directory.build import BuildRequest
from engines.directory.checkpoint import Checkpoint
from engines.vllm_plugin.build import build
from maskgen.format.digests import base_digest
from maskgen.format.mask import Mask
from maskgen.format.mask_file import write_mask
from maskgen.format.pattern import TWO_FOUR
from maskgen.format.placements import project

KEY = ("arm", "mode", "binding", "batch")
"""What names a row."""

VLLM_ARMS = ("sparse", "own-dense", "dense", "dense-fp32", "zentorch")
MODES = ("eager", "compiled")
BINDINGS = ("all", "nobind", "auto")
"""Values of VLLM_CPU_OMP_THREADS_BIND; `all` stands for every core, `auto` leaves one to vLLM."""


@dataclass(frozen=True)
class VllmPlan:
    """What to measure.

    Attributes:
        arms, modes, bindings: which of `VLLM_ARMS`, `MODES` and `BINDINGS`.
        batches: how many requests start together.
        limits: arm -> its largest batch, where it is hopelessly slow.
        prompt_tokens, output_tokens: of every request.
        repeats: batches of every arm; figures are their medians.
    """

    arms: tuple[str, ...]
    modes: tuple[str, ...]
    bindings: tuple[str, ...]
    batches: tuple[int, ...]
    limits: Mapping[str, int]
    prompt_tokens: int
    output_tokens: int
    repeats: int

    def __post_init__(self) -> None:
        for name, known in (("arms", VLLM_ARMS), ("modes", MODES), ("bindings", BINDINGS)):
            if unknown := [word for word in getattr(self, name) if word not in known]:
                raise ValueError(f"--{name}: {unknown[0]!r} is none of {', '.join(known)}")
        numbers = (*self.batches, self.prompt_tokens, self.output_tokens, self.repeats)
        if not self.batches or min(numbers) < 1:
            raise ValueError("batches, tokens and repeats must be at least 1")

    def wave(self, batch: int) -> dict[str, object]:
        """A batch; every turn has the same prompts."""
        return asdict(Wave(self.prompt_tokens, self.output_tokens, batch))


def build_arms(model: Path, name: str, mask: Path | None, folder: Path) -> dict[str, Path]:
    """The directory that each arm serves, and `mask`, the mask file: magnitude's if none is given.

    Args:
        model: directory of the dense model.
        name: what it is called.
        mask: of the sparse arm.
        folder: where the sparse and our dense directory are built.
    """
    mask = mask or _magnitude_mask(model, folder / "magnitude.safetensors")
    for arm, masks in (("sparse", {"general": mask}), ("own-dense", {})):
        build(BuildRequest(model=model, model_name=name, masks=masks, out=folder / arm))
    plain = {"dense": model, "dense-fp32": model, "zentorch": model}
    return {**plain, "sparse": folder / "sparse", "own-dense": folder / "own-dense", "mask": mask}


def measure(
    plan: VllmPlan, directories: Mapping[str, Path], say: Callable[[str], None]
) -> Iterator[list[ResultRow]]:
    """Rows of one mode and binding after another.

    Args:
        plan: what to measure.
        directories: of each arm (`build_arms`).
        say: told what is measured now.

    Raises:
        ValueError: the arms need another environment.
        ArmError: vLLM does not start, ends, or does not use zentorch.
    """
    if _has_zentorch() != (plan.arms == ("zentorch",)):
        raise ValueError(
            "the arm zentorch needs an environment with zentorch, all others one without"
        )
    for mode in plan.modes:
        for binding in plan.bindings:
            with ExitStack() as stack:
                workers = []
                for arm in plan.arms:
                    say(f"{arm} {mode} ({binding}): starting")
                    worker = _worker(arm, directories[arm], mode, binding, plan)
                    workers.append(stack.enter_context(worker))
                    _check_platform(worker)
                yield _take_turns(plan, workers, mode, binding, say)


def _take_turns(
    plan: VllmPlan, workers: list[Worker], mode: str, binding: str, say: Callable[[str], None]
) -> list[ResultRow]:
    cells = [
        (worker, batch)
        for batch in plan.batches
        for worker in workers
        if batch <= plan.limits.get(worker.arm, batch)
    ]
    seconds: dict[tuple[str, int], list[float]] = {}
    memory: dict[tuple[str, int], float] = {}
    with OtherCpu() as other:
        for turn in range(plan.repeats + 1):  # the first warms up
            for worker, batch in cells:
                spent = worker.ask("wave", plan.wave(batch))["wall_s"]
                memory[worker.arm, batch] = worker.ask("memory")["rss_mib"]
                if turn:
                    seconds.setdefault((worker.arm, batch), []).append(spent)
    rows = []
    for worker, batch in cells:
        spent_all, tokens = seconds[worker.arm, batch], batch * plan.output_tokens
        row = {
            "arm": worker.arm,
            "batch": batch,
            "tokens_per_s": round(tokens / statistics.median(spent_all), 2),
            "tokens_per_s_best": round(tokens / min(spent_all), 2),
            "mode": mode,
            "threads": _threads(binding),
            "binding": binding,
            "prompt_tokens": plan.prompt_tokens,
            "output_tokens": plan.output_tokens,
            "repeats": plan.repeats,
            "start_up_s": worker.ready["start_up_s"],
            "worker_rss_mib": round(memory[worker.arm, batch], 1),
            "other_cpu_share": round(other.share, 4),
        }
        say(f"  {worker.arm}, batch {batch}: {row['tokens_per_s']} tokens/s")
        rows.append(row)
    return rows


def _worker(arm: str, directory: Path, mode: str, binding: str, plan: VllmPlan) -> Worker:
    options = {
        "model": str(directory),
        "dtype": "float32" if arm == "dense-fp32" else "bfloat16",
        "eager": mode == "eager",
        "max_sequences": max(plan.batches),
    }
    command = [sys.executable, "-m", "benchmarks.vllm.worker", json.dumps(options)]
    return Worker(arm, command, _environment(binding))


def _check_platform(worker: Worker) -> None:
    if worker.arm == "zentorch" and worker.ready["platform"] != "ZenCpuPlatform":
        raise ArmError(
            "vLLM does not use zentorch on this machine (its platform is"
            f" {worker.ready['platform']}); it asks for an AMD CPU with AVX-512"
        )


def _magnitude_mask(model: Path, out: Path) -> Path:
    checkpoint = Checkpoint(model)
    codes = {
        name.removesuffix(".weight"): project(
            np.abs(checkpoint.tensor(name).astype(np.float32)), TWO_FOUR
        )
        for name in checkpoint
        if name.endswith("_proj.weight")
    }
    write_mask(out, Mask(codes, base_digest(model), "magnitude", "general", None, 0))
    return out


def _threads(binding: str) -> int:
    cores = len(os.sched_getaffinity(0))
    return cores - (binding == "auto" and cores > 1)


def _environment(binding: str) -> dict[str, str]:
    cores = sorted(os.sched_getaffinity(0))
    environment = {
        **os.environ,
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)) if binding == "all" else binding,
        "HF_HUB_OFFLINE": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
    }
    if binding == "nobind":
        environment["OMP_NUM_THREADS"] = str(len(cores))
    return environment


def _has_zentorch() -> bool:
    return importlib.util.find_spec("zentorch") is not None
