"""Methods that choose units: what they find, within which budget, killed and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maskgen.learning.checkpoint import CheckpointError
from maskgen.structure.bottom_sum import bottom, bottom_slope, bottom_sum
from maskgen.structure.config import structure_config
from maskgen.structure.file import FEED_FORWARD
from maskgen.structure.learn import StructureRequest, learn_structure
from maskgen.structure.removal import apply_structure, unit_groups
from maskgen.structure.unit_scores import Fluctuation, magnitude, ranks
from maskgen.structure.width import StructureError, Width
from maskgen.texts.text_sets import TextSet
from maskgen.torch_model import load_model
from maskgen.transform.architectures import model_groups
from tests.maskgen.fact_model import held_out_loss, sentences, train_on_facts
from tests.maskgen.structure import structure_runs
from tests.maskgen.structure.structure_runs import choose, model_with_idle_units
from tests.tiny_model import make_tiny_llama

ROOT = Path(__file__).parents[3]
LEARNED = ("grasp", "maskprune")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_with_idle_units(tmp_path_factory.mktemp("idle"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_on_facts(tmp_path_factory.mktemp("trained") / "model")


def log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_bottom_sums() -> None:
    scores = torch.tensor([5.0, 1.0, 3.0, 1.0])
    assert bottom(scores, 2).tolist() == [1, 3]
    assert [float(bottom_sum(scores, count)) for count in range(5)] == [0, 1, 2, 5, 10]
    assert [float(bottom_slope(scores, count)) for count in range(5)] == [1, 1, 3, 5, 5]


def test_magnitude_is_the_norm_of_a_units_weights(llama: Path) -> None:
    model = load_model(llama, "fp32")
    scores = magnitude(model, unit_groups(model_groups(llama).groups))
    mlp = model.model.layers[1].mlp
    rows = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight.T], dim=1)
    torch.testing.assert_close(scores["layers.1.mlp"], rows.norm(dim=1))
    attention = model.model.layers[0].self_attn
    parts = [
        attention.q_proj.weight[32:],
        attention.k_proj.weight[16:],
        attention.v_proj.weight[16:],
        attention.o_proj.weight.T[32:],
    ]
    torch.testing.assert_close(
        scores["layers.0.kv_heads"][1], torch.cat([p.reshape(-1) for p in parts]).norm()
    )


def test_fluctuation_is_the_variance() -> None:
    inputs = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) + 3
    statistic = Fluctuation(6, torch.device("cpu"))
    for part in inputs.split(20):
        statistic.add(part)
    expected = inputs.double().var(dim=0, correction=0)
    torch.testing.assert_close(statistic.variance, expected, rtol=1e-4, atol=1e-6)


def test_ranks() -> None:
    assert ranks(torch.tensor([3.0, 1.0, 2.0])).tolist() == [1, 0, 0.5]


@pytest.mark.parametrize(
    ("method", "settings"),
    [("flap", {}), ("grasp", {}), ("maskprune", {"rank": 0, "gate_rate": 0.02})],
)
def test_idle_units_are_found_where_magnitude_is_misled(
    idle: Path, tmp_path: Path, method: str, settings: dict[str, Any]
) -> None:
    ratio = 0.667  # of a layer's 36,864 weights, so that half of the channels stay
    found = choose(idle, tmp_path / "run", method, ratio, **settings)
    misled = choose(idle, tmp_path / "magnitude", "magnitude", ratio)
    assert found.structure.width == misled.structure.width == Width(64, 2)
    for name, kept in found.structure.kept.items():
        if name.endswith(FEED_FORWARD):
            assert (kept % 2 == 1).mean() > 0.95
            assert (misled.structure.kept[name] % 2 == 0).all()


@pytest.mark.parametrize("method", LEARNED)
def test_what_is_learned_beats_where_it_starts(trained: Path, tmp_path: Path, method: str) -> None:
    settings = {"steps": 60, "batch_size": 8, "gate_rate": 0.03, "checkpoint_every": 100}

    def loss(method: str, **settings: object) -> float:
        folder = tmp_path / f"{method}.run"
        result = choose(trained, folder, method, 0.3, 1, texts=sentences(0, 500), **settings)
        apply_structure(trained, result.structure, tmp_path / method)
        return held_out_loss(trained, load_model(tmp_path / method, "fp32"))

    whole = held_out_loss(trained, load_model(trained, "fp32"))
    start, learned = loss("flap"), loss(method, **settings)
    assert whole < start - 0.03, "the start must have something to lose"
    assert learned < start - 0.3 * (start - whole)


def test_maskprune_meets_its_budget_and_lets_gates_vanish(llama: Path, tmp_path: Path) -> None:
    result = choose(llama, tmp_path / "run", "maskprune", 0.6, calibration=0.2, steps=80)
    assert result.share <= 0.6
    rows = log(tmp_path / "run")
    deciding = [row for row in rows if "gap" in row]
    assert len(deciding) == 64
    assert min(row["gap"] for row in deciding) > -1e-6  # the budget is never overshot
    assert abs(deciding[-1]["gap"]) < 0.005
    assert deciding[-1]["left_channels"] < 0.2 * max(row["left_channels"] for row in deciding)
    assert all(row["vanish"] < 1000 for row in deciding)
    # Units are removed where their gates have vanished, so that the choice costs next to nothing.
    before = [row["hidden"] for row in rows[60:64]]
    after = [row["hidden"] for row in rows[64:68]]
    assert np.mean(after) < 1.5 * np.mean(before)


def test_heads_are_learned_where_that_is_asked_for(llama: Path, tmp_path: Path) -> None:
    settings = {"steps": 40, "learn_heads": True}
    result = choose(llama, tmp_path / "run", "maskprune", 0.6, None, **settings)
    assert result.structure.width == Width(80, 1)
    assert 0.55 < result.share <= 0.6
    with pytest.raises(ValueError, match="2 heads are asked for, and learn_heads is on"):
        choose(llama, tmp_path / "other", "maskprune", 0.6, 2, **settings)


def test_fixed_heads_stay(llama: Path, tmp_path: Path) -> None:
    result = choose(llama, tmp_path / "run", "maskprune", 0.6, 1, steps=10)
    assert result.structure.width.key_value_heads == 1
    assert result.share <= 0.6


def environment(name: str) -> dict[str, str]:
    return {**os.environ, "RUN_NAME": name, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def test_sigkill_and_resume_give_the_structure_of_an_uninterrupted_run(
    llama: Path, tmp_path: Path
) -> None:
    method = "maskprune"
    (tmp_path / "model").symlink_to(llama)
    settings = {"checkpoint_every": 2, "steps": 60}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    whole = choose(llama, tmp_path / "whole", method, **settings)
    script = [sys.executable, str(Path(structure_runs.__file__)), str(tmp_path), method]
    process = subprocess.Popen([*script, json.dumps(settings)], env=environment("killed"))
    lines = tmp_path / "killed" / "log.jsonl"
    while process.poll() is None and (not lines.exists() or lines.read_text().count("\n") < 50):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    resumed = choose(llama, tmp_path / "killed", method, resume=True, **settings)
    torch.set_num_threads(threads)
    assert resumed.structure.digest == whole.structure.digest
    with pytest.raises(CheckpointError, match="gate_rate"):
        choose(llama, tmp_path / "killed", method, resume=True, **settings, gate_rate=0.1)


@pytest.mark.parametrize(
    ("method", "ratio", "text", "error", "message"),
    [
        ("magnitude", 0.1, True, StructureError, "the smallest is"),
        ("flap", 0.7, False, ValueError, "flap needs calibration text"),
        ("maskprune", 0.7, False, ValueError, "maskprune needs calibration text"),
    ],
)
def test_bad_requests_are_refused(
    llama: Path, method: str, ratio: float, text: bool, error: type[Exception], message: str
) -> None:
    request = StructureRequest(method, structure_config(method, {}), ratio, multiple=8)
    texts = TextSet.of("none", ["some"]) if text else None
    with pytest.raises(error, match=message):
        learn_structure(llama, texts, request)


def test_unknown_methods_and_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="methods: magnitude, flap, grasp, maskprune"):
        structure_config("taylor", {})
    with pytest.raises(ValueError, match="step"):
        structure_config("grasp", {"step": 3})


def test_gates_are_learned_in_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_tiny_llama(tmp_path / "model")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="maskprune runs in one process; start it without"):
        choose(model, tmp_path / "run", "maskprune")
