"""Sparse and dense decoding through vLLM on the CPU (`make bench-vllm`).

Arms: `sparse` and `own-dense` run twofour's kernels through the plugin, `dense` is vLLM's own
(oneDNN) in bf16, `dense-fp32` the same in float32, which is faster where the CPU has no bf16
instructions. `zentorch` is vLLM's own with AMD's extension, which vLLM uses wherever it is
installed and the CPU has AVX-512; it needs an environment of its own: `--arms zentorch --keep`.

Each arm is a process of its own. The arms of one mode and one thread binding are open together and
take turns batch by batch; whoever's turn it is not is stopped. With `--keep` the rows of other
modes, bindings and arms stay in the result file, so a long measurement may be done in parts.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.common.machine import OtherCpu
from benchmarks.common.result_file import RESULTS, write_result
from benchmarks.vllm.process import ArmProcess
from benchmarks.vllm.report import operator_call_us, summary

NAME = "bench-vllm"
ARMS = ("sparse", "own-dense", "dense", "dense-fp32", "zentorch")
MODES = ("eager", "compiled")
BINDINGS = ("all", "nobind", "auto")
"""Values of VLLM_CPU_OMP_THREADS_BIND; `all` stands for every core, `auto` leaves one to vLLM."""


def main() -> None:
    """Measure what the arguments ask for and write docs/results/bench-vllm.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m", help="alias or directory")
    parser.add_argument("--mask", type=Path, help="mask file [default: magnitude, made now]")
    parser.add_argument("--arms", default="sparse,own-dense,dense,dense-fp32", help=",".join(ARMS))
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument(
        "--limit", help="ARM=BATCH: measure this arm up to this batch, where it is hopelessly slow"
    )
    parser.add_argument("--bindings", default="all,nobind", help=",".join(BINDINGS))
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--keep", action="store_true", help="keep rows that are not measured now")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    for name, known in (("arms", ARMS), ("modes", MODES), ("bindings", BINDINGS)):
        if unknown := set(getattr(given, name).split(",")) - set(known):
            parser.error(f"--{name}: {', '.join(sorted(unknown))} is none of {', '.join(known)}")
    if _has_zentorch() != (given.arms == "zentorch"):
        parser.error("the arm zentorch needs an environment with zentorch, all others one without")
    path = _write(given, *_measure(given))
    print(f"wrote {path}", file=sys.stderr)
    if given.json:
        print(json.dumps(json.loads(path.read_text())))


def _measure(given: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows, and what is said about this part of the measurement."""
    from maskgen.maskfile import read_mask

    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="twofour-bench-vllm-") as folder:
        directories, mask = _directories(given, Path(folder))
        for mode in given.modes.split(","):
            for binding in given.bindings.split(","):
                rows += _take_turns(given, mode, binding, directories)
        digest = read_mask(mask).digest
    part = {
        "command": " ".join(["python -m benchmarks.vllm.speed", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "mask_digest": digest,
        "other_cpu_share": max(row["other_cpu_share"] for row in rows),
        "operator_call_us": operator_call_us(),
    }
    return rows, part


def _directories(given: argparse.Namespace, folder: Path) -> tuple[dict[str, Path], Path]:
    """The engine directory or model that each arm serves, and the mask file."""
    from engines.build import BuildRequest
    from engines.vllm_plugin.build import build
    from maskgen.models import model_name, resolve_model

    model = resolve_model(given.model)
    mask = given.mask or _magnitude_mask(model, folder / "magnitude.safetensors")
    name = model_name(given.model)
    for arm, masks in (("sparse", {"general": mask}), ("own-dense", {})):
        build(BuildRequest(model=model, model_name=name, masks=masks, out=folder / arm))
    plain = {"dense": model, "dense-fp32": model, "zentorch": model}
    return {**plain, "sparse": folder / "sparse", "own-dense": folder / "own-dense"}, mask


def _magnitude_mask(model: Path, out: Path) -> Path:
    import numpy as np

    from engines.checkpoint import Checkpoint
    from maskgen.maskfile import Mask, base_digest, write_mask
    from maskgen.patterns import project

    checkpoint = Checkpoint(model)
    codes = {
        name.removesuffix(".weight"): project(np.abs(checkpoint.tensor(name).astype(np.float32)))
        for name in checkpoint
        if name.endswith("_proj.weight")
    }
    mask = Mask(codes, base_digest(model), "magnitude", "general", None, 0)
    write_mask(out, mask)
    return out


def _take_turns(
    given: argparse.Namespace, mode: str, binding: str, directories: dict[str, Path]
) -> list[dict[str, Any]]:
    """Rows of all arms in one mode under one binding, measured in turns."""
    batches = [int(b) for b in given.batches.split(",")]
    limits = {arm: int(most) for arm, _, most in [(given.limit or "").partition("=")] if most}
    job = {
        "mode": mode,
        "batches": batches,
        "prompt_tokens": given.prompt_tokens,
        "output_tokens": given.output_tokens,
    }
    with ExitStack() as stack:
        arms: dict[str, ArmProcess] = {}
        for arm in given.arms.split(","):
            print(f"{arm} {mode} ({binding}): starting", file=sys.stderr, flush=True)
            environment = _environment(binding)
            dtype = "float32" if arm == "dense-fp32" else "bfloat16"
            own = {"model": str(directories[arm]), "dtype": dtype}
            process = ArmProcess({**job, **own}, environment)
            arms[arm] = stack.enter_context(process)
            if arm == "zentorch" and arms[arm].ready["platform"] != "ZenCpuPlatform":
                raise SystemExit(
                    "error: vLLM does not use zentorch on this machine (its platform is"
                    f" {arms[arm].ready['platform']}); it asks for an AMD CPU with AVX-512"
                )
        seconds: dict[tuple[str, int], list[float]] = {}
        memory: dict[tuple[str, int], float] = {}
        with OtherCpu() as other:
            for turn in range(given.repeats + 1):  # the first warms up
                for batch in batches:
                    for arm, running in arms.items():
                        if batch > limits.get(arm, batch):
                            continue
                        answer = running.turn(batch)
                        memory[arm, batch] = answer["worker_rss_mib"]
                        if turn:
                            seconds.setdefault((arm, batch), []).append(answer["seconds"])
        rows = []
        for (arm, batch), spent in seconds.items():
            tokens = batch * given.output_tokens
            row = {
                "arm": arm,
                "batch": batch,
                "tokens_per_s": round(tokens / statistics.median(spent), 2),
                "tokens_per_s_best": round(tokens / min(spent), 2),
                "mode": mode,
                "threads": _threads(binding),
                "binding": binding,
                "prompt_tokens": given.prompt_tokens,
                "output_tokens": given.output_tokens,
                "repeats": given.repeats,
                "start_up_s": arms[arm].ready["start_up_s"],
                "worker_rss_mib": memory[arm, batch],
                "other_cpu_share": round(other.share, 4),
            }
            print(f"  {arm}, batch {batch}: {row['tokens_per_s']} tokens/s", file=sys.stderr)
            rows.append(row)
    return rows


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


def _write(given: argparse.Namespace, rows: list[dict[str, Any]], part: dict[str, Any]) -> Path:
    from engines import kernels
    from engines.vllm_plugin.version import vllm_version

    parts = [part]
    if given.keep:
        old_rows, old_parts = _kept(rows)
        rows, parts = old_rows + rows, [*old_parts, part]
    return write_result(
        NAME,
        part["command"],
        rows,
        {"mask": part["mask_digest"]},
        vllm=vllm_version(),
        isa=kernels.isa(),
        other_cpu_share=max(p["other_cpu_share"] for p in parts),
        operator_call_us=part["operator_call_us"],
        summary=summary(rows),
        parts=parts,
    )


def _kept(rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of the present result file that were not measured this time, and its parts."""
    path = RESULTS / f"{NAME}.json"
    if not path.is_file():
        return [], []
    key = ("arm", "mode", "binding", "batch")
    fresh = {tuple(row[name] for name in key) for row in rows}
    old = json.loads(path.read_text())
    kept = [row for row in old["rows"] if tuple(row[name] for name in key) not in fresh]
    return kept, old["parts"]


def _has_zentorch() -> bool:
    return importlib.util.find_spec("zentorch") is not None


if __name__ == "__main__":
    main()
