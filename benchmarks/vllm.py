"""Sparse and dense decoding through vLLM on the CPU (`make bench-vllm`).

Arms: `sparse` and `own-dense` run twofour's kernels through the plugin, `dense` is vLLM's own
(oneDNN), `zentorch` is vLLM's own with AMD's extension. vLLM uses that one wherever it is
installed, so it is measured in an environment of its own: `--arms zentorch --keep`.

Every arm and mode is a process of its own; within one, batches are measured in turns. The thread
binding is the best that vLLM's own dense arm finds among the candidates, and all arms then use it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.machine import OtherCpu
from benchmarks.result_file import RESULTS, write_result

NAME = "bench-vllm"
ARMS = ("sparse", "own-dense", "dense", "zentorch")
MODES = ("eager", "compiled")
BINDINGS = ("nobind", "all", "auto")
"""Values of VLLM_CPU_OMP_THREADS_BIND; `all` stands for every core, `auto` leaves one to vLLM."""

_START = "twofour-bench-row "


def main() -> None:
    """Measure what the arguments ask for and write docs/results/bench-vllm.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m", help="alias or directory")
    parser.add_argument("--mask", type=Path, help="mask file [default: magnitude, made now]")
    parser.add_argument("--arms", default="sparse,own-dense,dense", help=",".join(ARMS))
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--bindings", default=",".join(BINDINGS), help="candidates")
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--keep", action="store_true", help="keep rows of arms not measured now")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker is not None:
        _work(json.loads(given.worker))
        return
    for name, known in (("arms", ARMS), ("modes", MODES), ("bindings", BINDINGS)):
        if unknown := set(getattr(given, name).split(",")) - set(known):
            parser.error(f"--{name}: {', '.join(sorted(unknown))} is none of {', '.join(known)}")
    command = "python -m benchmarks.vllm " + " ".join(sys.argv[1:])
    rows, extra = _measure(given)
    if given.keep:
        rows = _kept(rows) + rows
    path = write_result(NAME, command.strip(), rows, extra.pop("digests"), **extra)
    print(f"wrote {path}", file=sys.stderr)
    if given.json:
        print(json.dumps(json.loads(path.read_text())))


def _measure(given: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    from engines.vllm_plugin.version import vllm_version
    from maskgen.maskfile import read_mask

    arms = given.arms.split(",")
    if _has_zentorch() != (arms == ["zentorch"]):
        raise SystemExit(
            "error: the arm zentorch needs an environment with zentorch, all others one without"
        )
    with tempfile.TemporaryDirectory(prefix="twofour-bench-vllm-") as folder, OtherCpu() as other:
        directories, mask = _directories(given, Path(folder))
        binding, tried = _best_binding(given, directories["dense"])
        rows = []
        for mode in given.modes.split(","):
            for arm in arms:
                rows += _run(given, arm, mode, binding, directories[arm], given.batches)
        digest = read_mask(mask).digest
    extra = {
        "vllm": vllm_version(),
        "digests": {"mask": digest},
        "other_cpu_share": round(other.share, 3),
        "binding": binding,
        "bindings_tried": tried,
        "operator_call_us": _operator_call(),
    }
    return rows, extra


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
    plain = {"dense": model, "zentorch": model}
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


def _best_binding(given: argparse.Namespace, dense: Path) -> tuple[str, list[dict[str, Any]]]:
    candidates = given.bindings.split(",")
    if len(candidates) == 1:
        return candidates[0], []
    tried = []
    for binding in candidates:
        tried += _run(given, "dense", "eager", binding, dense, "1")
    best: str = max(tried, key=lambda row: row["tokens_per_s"])["binding"]
    return best, tried


def _run(
    given: argparse.Namespace, arm: str, mode: str, binding: str, model: Path, batches: str
) -> list[dict[str, Any]]:
    cores = sorted(os.sched_getaffinity(0))
    job = {
        "arm": arm,
        "mode": mode,
        "binding": binding,
        "threads": len(cores) - (binding == "auto" and len(cores) > 1),
        "model": str(model),
        "batches": [int(b) for b in batches.split(",")],
        "prompt_tokens": given.prompt_tokens,
        "output_tokens": given.output_tokens,
        "repeats": given.repeats,
    }
    environment = {
        **os.environ,
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)) if binding == "all" else binding,
        "HF_HUB_OFFLINE": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
    }
    if binding == "nobind":
        environment["OMP_NUM_THREADS"] = str(len(cores))
    print(f"{arm} {mode} ({binding}) ...", file=sys.stderr, flush=True)
    arguments = [sys.executable, "-m", "benchmarks.vllm", "--worker", json.dumps(job)]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    rows = [
        json.loads(line.removeprefix(_START))
        for line in done.stdout.splitlines()
        if line.startswith(_START)
    ]
    if done.returncode or len(rows) != len(job["batches"]):
        raise RuntimeError(f"{arm} {mode} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    for row in rows:
        print(f"  batch {row['batch']}: {row['tokens_per_s']:.1f} tokens/s", file=sys.stderr)
    return rows


def _work(job: dict[str, Any]) -> None:
    """One arm in one mode: start vLLM, measure, print a row per batch."""
    from vllm import LLM, SamplingParams

    begin = time.perf_counter()
    llm = LLM(
        job["model"],
        enforce_eager=job["mode"] == "eager",
        dtype="bfloat16",
        max_model_len=1024,
        max_num_seqs=max(job["batches"]),
        kv_cache_memory_bytes=512 << 20,
        enable_prefix_caching=False,
        disable_log_stats=True,
        seed=0,
    )
    start_up = time.perf_counter() - begin
    sampling = SamplingParams(
        temperature=0, max_tokens=job["output_tokens"], ignore_eos=True, detokenize=False
    )
    seconds: dict[int, list[float]] = {batch: [] for batch in job["batches"]}
    for turn in range(job["repeats"] + 1):  # the first warms up
        for batch in job["batches"]:
            prompts: list[Any] = [
                {
                    "prompt_token_ids": [
                        (7 * i + 31 * j) % 1000 + 100 for j in range(job["prompt_tokens"])
                    ]
                }
                for i in range(batch)
            ]
            begin = time.perf_counter()
            outputs = llm.generate(prompts, sampling, use_tqdm=False)
            spent = time.perf_counter() - begin
            made = sum(len(output.outputs[0].token_ids) for output in outputs)
            if made != batch * job["output_tokens"]:
                raise RuntimeError(f"{made} tokens instead of {batch * job['output_tokens']}")
            if turn:
                seconds[batch].append(spent)
    for batch, spent_all in seconds.items():
        tokens = batch * job["output_tokens"]
        row = {
            "arm": job["arm"],
            "batch": batch,
            "tokens_per_s": round(tokens / statistics.median(spent_all), 2),
            "tokens_per_s_best": round(tokens / min(spent_all), 2),
            "mode": job["mode"],
            "threads": job["threads"],
            "binding": job["binding"],
            "prompt_tokens": job["prompt_tokens"],
            "output_tokens": job["output_tokens"],
            "repeats": job["repeats"],
            "start_up_s": round(start_up, 1),
            "worker_rss_mib": _worker_rss_mib(),
        }
        print(_START + json.dumps(row), flush=True)


def _prompt(seed: int, tokens: int) -> dict[str, list[int]]:
    return {"prompt_token_ids": [(7 * seed + 31 * j) % 1000 + 100 for j in range(tokens)]}


def _worker_rss_mib() -> float:
    """VmRSS of vLLM's worker, the process that holds the weights."""
    import psutil

    sizes = [p.memory_info().rss for p in psutil.Process().children(recursive=True)]
    return round(max(sizes) / 2**20, 1)


def _has_zentorch() -> bool:
    return importlib.util.find_spec("zentorch") is not None


def _operator_call() -> dict[str, float]:
    """Microseconds of one call with next to no work, for the operator and for F.linear."""
    import torch

    from engines.torch_ops import linear, pack_tensor

    weight = torch.randn(16, 32).bfloat16()
    packed = pack_tensor(weight, torch.zeros(16, 8, dtype=torch.uint8))
    x = torch.randn(1, 32).bfloat16()
    calls: dict[str, Callable[[], object]] = {
        "twofour::linear": lambda: linear(x, packed, 1, 16, None),
        "F.linear": lambda: torch.nn.functional.linear(x, weight),
    }
    found = {}
    for name, call in calls.items():
        for _ in range(500):
            call()
        begin = time.perf_counter()
        for _ in range(5000):
            call()
        found[name] = round((time.perf_counter() - begin) / 5000 * 1e6, 2)
    return found


def _kept(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the present result file whose arm and mode were not measured this time."""
    path = RESULTS / f"{NAME}.json"
    if not path.is_file():
        return []
    fresh = {(row["arm"], row["mode"]) for row in rows}
    old = json.loads(path.read_text())["rows"]
    return [row for row in old if (row["arm"], row["mode"]) not in fresh]


if __name__ == "__main__":
    main()
