"""TensorRT-LLM, dense against 2:4, in the grid of MaskLLM's paper (arXiv 2409.17481).

Three arms over the same model: dense with the GEMM plugin, which is how dense engines run fastest;
dense without it, because turning it off changes the baseline by itself; and sparse without it,
because 2:4 needs that. Each cell is one `trtllm-bench` run; `twofour bench serve` then loads the
same engines over HTTP. Everything is one script, so that it can be read before it costs GPU hours
and run where the GPU is.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.common.maskllm_grid import GRID
from benchmarks.trtllm.report import GRID_ARMS, dataset_name, report_name
from engines.directory.decoder_config import read_decoder_config
from engines.tensorrt_llm.record import BASE
from engines.tensorrt_llm.version import TARGET_VERSION

SCRIPT = "run.sh"


@dataclass(frozen=True, slots=True)
class GridPlan:
    """What to measure.

    Attributes:
        model: Hugging Face model directory.
        name: what the model is called.
        mask: mask file of the sparse arm.
        folder: where engines, data sets, reports and the script go.
        grid: (prompt tokens, generated tokens) of every cell.
        requests: requests of every cell.
        concurrency: requests at a time; 1 in the paper.
        tp_size: GPUs of every engine.
        seed: of the random prompts.
    """

    model: Path
    name: str
    mask: Path
    folder: Path
    grid: tuple[tuple[int, int], ...] = field(default=GRID)
    requests: int = 10
    concurrency: int = 1
    tp_size: int = 1
    seed: int = 0

    def check(self) -> None:
        """Raise ValueError unless the plan can be run."""
        longest = max(prompt + generated for prompt, generated in self.grid)
        positions = read_decoder_config(self.model).context
        if longest > positions:
            raise ValueError(
                f"the grid needs {longest} tokens, {self.name} has {positions} positions; give a"
                " smaller --grid"
            )
        for name in ("requests", "concurrency", "tp_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be 1 or more")


def write_plan(plan: GridPlan) -> Path:
    """Write the data sets and the script that measures; give the script's path."""
    plan.check()
    plan.folder.mkdir(parents=True, exist_ok=True)
    vocab = read_decoder_config(plan.model).vocab
    draw = np.random.default_rng(plan.seed)
    for prompt, generated in plan.grid:
        rows = [
            {"task_id": i, "input_ids": draw.integers(vocab, size=prompt).tolist()}
            | {"output_tokens": generated}
            for i in range(plan.requests)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (plan.folder / dataset_name(prompt, generated)).write_text(text)
    script = plan.folder / SCRIPT
    script.write_text(_script(plan))
    script.chmod(0o755)
    return script


def _script(plan: GridPlan) -> str:
    longest = max(prompt + generated for prompt, generated in plan.grid)
    common = {
        "max_seq_len": longest,
        "tp_size": plan.tp_size,
        "timing_cache": "$PWD/timing.cache",
    }
    arms = {
        "dense-plugin": {"sparse": "false", "gemm_plugin": "auto"},
        "dense": {"sparse": "false"},
        "sparse": {"allow_dense": "true"},
    }
    lines = [_HEAD]
    for arm, settings in arms.items():
        words = ["build", "--target", "tensorrt-llm", "--model", str(plan.model.absolute())]
        words += ["--name", plan.name, "--out", arm]
        if arm == "sparse":
            words += ["--mask", f"general={plan.mask.absolute()}"]
        options = " ".join(f'--option "{n}={v}"' for n, v in {**common, **settings}.items())
        lines.append(f"[ -d {arm} ] || twofour {shlex.join(words)} {options}")
    lines.append("\n# The paper's grid.\nmkdir -p reports")
    for prompt, generated in plan.grid:
        lines += [_bench_line(plan, arm, prompt, generated) for arm in GRID_ARMS]
    lines.append("\n# The same engines behind our server.")
    for arm in ("dense-plugin", "dense"):
        lines.append(
            f'(mkdir -p http/{arm} && cd http/{arm} && twofour bench serve --dense "$OLDPWD/{arm}"'
            f' --sparse "$OLDPWD/sparse" --concurrency {plan.concurrency} --out samples)'
        )
    lines.append("\ntwofour bench trtllm --report .")
    return "\n".join(lines) + "\n"


def _bench_line(plan: GridPlan, arm: str, prompt: int, generated: int) -> str:
    engine = f"{arm}/engines/{'general' if arm == 'sparse' else BASE}"
    report = report_name(arm, prompt, generated)
    words = ["trtllm-bench", "--model", plan.name, "--model_path", str(plan.model.absolute())]
    words += ["throughput", "--backend", "tensorrt", "--engine_dir", engine]
    words += ["--dataset", dataset_name(prompt, generated), "--num_requests", str(plan.requests)]
    words += ["--concurrency", str(plan.concurrency), "--warmup", "2", "--report_json", report]
    return f"[ -f {report} ] || {shlex.join(words)}"


_HEAD = f"""\
#!/usr/bin/env bash
# Measures TensorRT-LLM dense against 2:4. Needs twofour, TensorRT-LLM {TARGET_VERSION} and a GPU
# with sparse tensor cores. What is there already is not measured again.
set -euo pipefail
cd "$(dirname "${{BASH_SOURCE[0]}}")"

# Three engines of one model; the sparse one is measured even if TensorRT chose no sparse tactic,
# and the table says how many it chose."""
