"""Stand-ins for `trtllm-build`, `trtllm-refit` and `nvidia-smi`: programs that behave like them.

They accept the real flags (argparse, abbreviations included), refuse others, look at the weights
themselves, and print what TensorRT prints. They keep what the real tools would do wrong without a
word: with a plugin or a fast build no layer is eligible, and missing weights are not noticed.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

_COMMON = '''
import argparse, json, os, struct, sys, time
from pathlib import Path

LINEAR = ("attention.qkv.weight", "attention.dense.weight", "mlp.fc.weight", "mlp.gate.weight",
          "mlp.proj.weight")

def log_call():
    with open(os.environ["STANDIN_CALLS"], "a") as file:
        print(json.dumps(sys.argv), file=file)

def is_sparse(data):
    values = memoryview(data).cast("H")  # bf16
    nonzero = bytes(1 if value & 0x7FFF else 0 for value in values)
    return all(sum(nonzero[i : i + 4]) <= 2 for i in range(0, len(nonzero), 4))

def verdicts(checkpoint, rank):
    """layer -> whether it is 2:4, with gate and fc joined as TensorRT-LLM joins them."""
    data = (Path(checkpoint) / f"rank{rank}.safetensors").read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    found = {}
    for name, entry in json.loads(data[8:start]).items():
        if name.endswith(LINEAR):
            begin, end = (start + offset for offset in entry["data_offsets"])
            key = name.replace("mlp.fc", "mlp.fused_fc").replace("mlp.gate", "mlp.fused_fc")
            found[key] = found.get(key, True) and is_sparse(data[begin:end])
    return found

def report(eligible, chosen):
    stamp = "[11/22/2026-03:00:00] [TRT] [V] "
    if os.environ.get("STANDIN_GENERATION", "10") == "8":
        print(stamp + "(Sparsity) Layers eligible for sparse math: " + ", ".join(eligible))
        print(stamp + "(Sparsity) TRT inference plan picked sparse implementation for layers: "
              + ", ".join(chosen))
    else:
        print(stamp + f"(Sparsity) Found {len(eligible)} layer(s) eligible to use sparse tactics: "
              + ", ".join(eligible))
        print(stamp + f"(Sparsity) Chose {len(chosen)} layer(s) using sparse tactics: "
              + ", ".join(chosen))
'''

_BUILD = """
parser = argparse.ArgumentParser()
for flag in ("checkpoint_dir", "output_dir", "gemm_plugin", "profiling_verbosity", "log_level",
             "input_timing_cache", "output_timing_cache", "max_beam_width", "model_config",
             "build_config", "logits_dtype", "kv_cache_type", "low_latency_gemm_plugin"):
    parser.add_argument("--" + flag)
for flag in ("max_batch_size", "max_num_tokens", "max_seq_len", "workers", "opt_num_tokens"):
    parser.add_argument("--" + flag, type=int)
for flag in ("weight_sparsity", "strip_plan", "fast_build", "gather_context_logits", "dry_run"):
    parser.add_argument("--" + flag, action="store_true")
args = parser.parse_args()
log_call()
config = json.loads((Path(args.checkpoint_dir) / "config.json").read_text())
out = Path(args.output_dir)
out.mkdir(parents=True, exist_ok=True)
fail = os.environ.get("STANDIN_FAIL", "")
if fail and fail in args.checkpoint_dir:
    (out / "rank0.engine").write_bytes(b"half")
    print("[TRT] [E] 2: [virtualMemoryBuffer.cpp::resizePhysical::145] OutOfMemory", flush=True)
    sys.exit(1)
if os.environ.get("STANDIN_HANG", ""):
    (out / "rank0.engine").write_bytes(b"half")
    print("hanging", flush=True)
    time.sleep(60)
plugin = None if args.gemm_plugin == "disable" else args.gemm_plugin
visible = args.weight_sparsity and plugin is None and not args.fast_build
for rank in range(config["mapping"]["world_size"]):
    layers = verdicts(args.checkpoint_dir, rank)
    eligible = [name for name, sparse in layers.items() if sparse] if visible else []
    chosen = eligible[: int(os.environ.get("STANDIN_CHOSEN", "1000"))]
    if args.weight_sparsity and args.log_level == "verbose":
        report([], [])  # an earlier pass: only the last pair counts
        report(eligible, chosen)
    engine = {"chosen": chosen, "stripped": args.strip_plan,
              "weights": None if args.strip_plan else args.checkpoint_dir}
    (out / f"rank{rank}.engine").write_text(json.dumps(engine))
    print("Total time of building Unnamed Network 0: 00:00:01")
built = {"weight_sparsity": args.weight_sparsity, "max_seq_len": args.max_seq_len,
         "plugin_config": {"gemm_plugin": plugin, "manage_weights": args.fast_build}}
(out / "config.json").write_text(json.dumps({"pretrained_config": config, "build_config": built}))
if args.output_timing_cache:
    known = ""
    if args.input_timing_cache and Path(args.input_timing_cache).exists():
        known = Path(args.input_timing_cache).read_text()
    Path(args.output_timing_cache).write_text(known + Path(args.checkpoint_dir).name + "\\n")
print("Total time of building all engines: 00:00:01")
"""

_REFIT = """
parser = argparse.ArgumentParser()
for flag in ("engine_dir", "checkpoint_dir", "output_dir", "log_level"):
    parser.add_argument("--" + flag)
args = parser.parse_args()
log_call()
out = Path(args.output_dir)
out.mkdir(parents=True, exist_ok=True)
(out / "config.json").write_text((Path(args.engine_dir) / "config.json").read_text())
for path in sorted(Path(args.engine_dir).glob("*.engine")):
    plan = json.loads(path.read_text())
    assert plan["stripped"], "not refittable"
    layers = verdicts(args.checkpoint_dir, int(path.stem.removeprefix("rank")))
    dense = [name for name in plan["chosen"] if not layers[name]]
    if dense:
        print("[TRT] [E] (Refit + Sparsity): Refitting failed as the dense weights provided for the"
              " sparse layer.", flush=True)
        sys.exit(1)
    (out / path.name).write_text(json.dumps(plan | {"weights": args.checkpoint_dir}))
"""

_SMI = """
print("NVIDIA A100-SXM4-80GB, 8.0, 81920 MiB")
"""


@dataclass(frozen=True)
class StandIns:
    """The stand-ins on PATH: what they were called with, and knobs for what they do."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch

    def calls(self, tool: str) -> list[list[str]]:
        """Arguments of every call of `tool`, in order."""
        path = self.folder / "calls.jsonl"
        lines = path.read_text().splitlines() if path.is_file() else []
        calls = [json.loads(line) for line in lines]
        return [call[1:] for call in calls if Path(call[0]).name == tool]

    def set(self, knob: str, value: str) -> None:
        """Set STANDIN_<knob> for the tools."""
        self.monkeypatch.setenv(f"STANDIN_{knob}", value)


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, version: str = "1.2.1") -> StandIns:
    """Put the stand-ins on PATH, and a TensorRT-LLM of `version` among the installed packages."""
    tools, site = folder / "bin", folder / "site"
    tools.mkdir(parents=True)
    sources = {"trtllm-build": _COMMON + _BUILD, "trtllm-refit": _COMMON + _REFIT}
    for name, source in {**sources, "nvidia-smi": _SMI}.items():
        (tools / name).write_text(f"#!{sys.executable}\n{source}")
        (tools / name).chmod(0o755)
    metadata = site / f"tensorrt_llm-{version}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: tensorrt_llm\nVersion: {version}\n"
    )
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", f"{site}:{ROOT}")
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    monkeypatch.setenv("STANDIN_CALLS", str(folder / "calls.jsonl"))
    return StandIns(folder, monkeypatch)
