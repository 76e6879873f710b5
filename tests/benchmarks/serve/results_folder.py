"""Makes the folder of a comparison out of samples whose times are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.serve.arms import Arm
from benchmarks.serve.compare import ServeComparison
from benchmarks.serve.folder import write_folder
from benchmarks.serve.plan import LoadPlan
from loadtests.blocks import Block, LoadPoint, problems
from loadtests.client_calibration import Bias
from loadtests.comparison import rows
from loadtests.samples import RequestSample, SampleWriter
from loadtests.summary import summarise

Speed = Callable[[str, int, int], float]
"""Arm, users, repeat -> how many times as fast as 10 ms per token."""


def samples_of(speed: float, users: int, error: str | None = None) -> list[RequestSample]:
    """Three requests of five tokens, one after another."""
    times = [(0.05 * users + i * 0.01) / speed for i in range(5)]
    return [
        RequestSample(
            request_id=f"r-{i}", index=i, warmup=False, endpoint="/v1/completions", model="m",
            mask=None, prompt_id="p", scheduled_at=i * times[-1], started_at=i * times[-1],
            started_unix=1.8e9,
            ttft_s=times[0], e2e_s=times[-1], requested_tokens=5, token_times_s=times,
            prompt_tokens=7, completion_tokens=5, cached_tokens=0, status=200,
            finish_reason="length", error=error,
        )
        for i in range(3)
    ]  # fmt: skip


def make_folder(
    folder: Path,
    arms: tuple[str, ...],
    speed: Speed,
    *,
    repeats: int = 2,
    errors: Mapping[tuple[str, int, int], str] | None = None,
    doubts: tuple[str, ...] = (),
) -> Path:
    """A folder of one and of eight users.

    Args:
        folder: new.
        arms: their names, the reference first.
        speed: of every block.
        repeats: blocks of every arm at every load.
        errors: (arm, users, repeat) -> how every request of that block failed.
        doubts: what it says of itself.
    """
    folder.mkdir()
    samples, blocks = {}, []
    for users in (1, 8):
        for repeat in range(repeats):
            for arm in arms:
                key = (arm, users, repeat)
                name = f"{arm}-{users}-{repeat}.jsonl"
                samples[name] = samples_of(speed(*key), users, (errors or {}).get(key))
                point = LoadPoint("7/5", concurrency=users)
                blocks.append(Block(arm, point, repeat, summarise(samples[name]), name, 0.0, 0.0))
                writer = SampleWriter(folder / name)
                for sample in samples[name]:
                    writer.write(sample)
                writer.close()
    comparison = ServeComparison(
        rows=rows(blocks, arms[0], samples, repeats),
        reference=arms[0],
        servers={},
        others={},
        calibration=Bias(1.0, 0.5, 0.5),
        blocks=blocks,
        folder=folder,
        other_cpu_share=0.0,
        problems=problems(blocks),
        doubts=list(doubts),
    )
    made = [Arm(name, url=f"http://host/{i}") for i, name in enumerate(arms)]
    plan = LoadPlan(concurrencies=(1, 8), prompts=Path("p.txt"), repeats=repeats)
    write_folder(comparison, made, plan)
    return folder
