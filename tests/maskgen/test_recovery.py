"""Recovery on a tiny model: better than its start, resumable, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from maskgen.format.digests import base_digest
from maskgen.format.mask import Mask, MaskFileError
from maskgen.format.mask_file import read_mask, write_mask
from maskgen.format.model_directory import read_model_config
from maskgen.format.pattern import Pattern
from maskgen.learning import loop
from maskgen.learning.distributed import World
from maskgen.least_squares import damped, kept_weights_update
from maskgen.prune import PruneSettings, prune
from maskgen.recovery.quantiser import WeightGrid, quantise
from maskgen.structure.removal import apply_structure
from maskgen.torch_model import load_model
from tests.maskgen.learning_runs import TEXTS, losses, magnitude_prior
from tests.maskgen.recovery_runs import small_recovery
from tests.maskgen.structure.random_structures import random_structure
from tests.tiny_model import make_tiny_llama

ROOT = Path(__file__).parents[2]
RUNS = Path(__file__).with_name("recovery_runs.py")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return make_tiny_llama(tmp_path_factory.mktemp("recovery") / "dense", architecture="qwen2")


@pytest.fixture(scope="module")
def mask(model_dir: Path) -> Mask:
    return magnitude_prior(model_dir)


def changed(before: Path, after: Path) -> set[str]:
    old, new = (load_model(path, "fp32", "cpu").state_dict() for path in (before, after))
    return {name for name in old if not torch.equal(old[name], new[name])}


def held_out(folder: Path) -> list[float]:
    lines = (folder / "run" / "tuning" / "log.jsonl").read_text().splitlines()
    return [row["held_out"] for row in map(json.loads, lines) if "held_out" in row]


def test_the_update_is_the_least_squares_solution_on_the_kept_weights():
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 24, generator=random) @ torch.randn(24, 24, generator=random)
    weight = torch.randn(5, 24, generator=random)
    keep = torch.rand(5, 24, generator=random) < 0.5
    keep[4] = False
    hessian = damped(inputs.T @ inputs, 1e-6)
    solved = kept_weights_update(weight, keep, hessian, iterations=200) + weight * keep
    for row in range(5):
        kept = keep[row]
        exact = torch.linalg.solve(
            hessian[kept][:, kept].double(), (hessian[kept] @ weight[row]).double()
        )
        torch.testing.assert_close(solved[row, kept].double(), exact, rtol=1e-2, atol=1e-3)
        assert not solved[row, ~kept].any()


def test_recovery_beats_its_start_on_held_out_text_and_keeps_the_mask(model_dir, mask, tmp_path):
    result = small_recovery(
        model_dir, tmp_path, mask, held_out=TEXTS, steps=30, batch_size=8, block_steps=10
    )
    curve = held_out(tmp_path)
    assert result.best_step is not None
    assert result.best_step > 0
    assert min(curve) < curve[0] - 0.3
    blocks = [
        json.loads(line) for line in (tmp_path / "run/blocks/log.jsonl").read_text().splitlines()
    ]
    assert [row["step"] for row in blocks] == [1, 2, 3, 4]
    assert all(row["loss"] < row["least_squares"] < row["masked"] for row in blocks)
    recovered = load_model(tmp_path / "model", "fp32", "cpu").state_dict()
    for name in mask.codes:
        weight = recovered[f"{name}.weight"]
        assert not weight[~torch.from_numpy(mask.keep(name))].any()
    assert result.mask.base_digest == base_digest(tmp_path / "model")
    assert result.mask.codes.keys() == mask.codes.keys()
    names = changed(model_dir, tmp_path / "model")
    assert {n.rsplit(".", 1)[1] for n in names} == {"weight", "bias"}
    assert "model.norm.weight" in names
    assert "model.embed_tokens.weight" not in names


@pytest.mark.parametrize("pattern", [Pattern(1, 4), Pattern(16, 32)])
def test_any_pattern_can_be_recovered(model_dir, tmp_path, pattern):
    mask = prune(model_dir, None, PruneSettings("magnitude", pattern=pattern)).mask
    small_recovery(model_dir, tmp_path, mask, held_out=TEXTS, steps=20, batch_size=8)
    curve = held_out(tmp_path)
    assert min(curve) < curve[0] - 0.2
    recovered = load_model(tmp_path / "model", "fp32", "cpu").state_dict()
    for name in mask.codes:
        kept = recovered[f"{name}.weight"] != 0
        assert not (kept & ~torch.from_numpy(mask.keep(name))).any()
        assert (kept.unflatten(1, (-1, pattern.m)).sum(-1) == pattern.n).float().mean() > 0.99


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"weights": False, "biases": False}, {"norm"}),
        ({"weights": False, "norms": False}, {"bias"}),
        ({"norms": False, "biases": False, "steps": 0}, set()),
        (
            {"weights": False, "norms": False, "biases": False, "embeddings": True},
            {"embed_tokens"},
        ),
    ],
)
def test_a_group_that_is_off_does_not_change(model_dir, mask, tmp_path, settings, expected):
    # Stored in bf16, a gain near 1 does not show a change below 0.4 %.
    small_recovery(model_dir, tmp_path, mask, **{"learning_rate": 0.02, "warm_up": 0} | settings)
    masked = {f"{name}.weight" for name in mask.codes}
    others = changed(model_dir, tmp_path / "model") - masked
    # A tied head is the embedding by another name.
    kinds = {next((k for k in ("bias", "norm", "embed_tokens") if k in n), n) for n in others}
    assert kinds - {"lm_head.weight"} == expected


@pytest.mark.parametrize("inputs", ["dense", "sparse"])
def test_products_may_run_in_bf16_while_what_is_tuned_is_fp32(model_dir, mask, tmp_path, inputs):
    settings = {"dtype": "bf16", "inputs": inputs, "block_steps": 2}
    small_recovery(model_dir, tmp_path, mask, held_out=TEXTS, steps=20, **settings)
    curve = held_out(tmp_path)
    assert min(curve) < curve[0] - 0.1
    tensors = load_file(
        next((tmp_path / "run/tuning").glob("checkpoint-*")) / "learned.safetensors"
    )
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


@pytest.mark.parametrize("inputs", ["dense", "sparse"])
def test_a_run_interrupted_in_either_stage_ends_with_the_same_model(
    model_dir, mask, tmp_path, inputs
):
    settings = {"inputs": inputs, "block_steps": 2}
    whole = small_recovery(model_dir, tmp_path / "whole", mask, held_out=TEXTS, **settings)
    half = tmp_path / "half"

    class InterruptError(Exception):
        pass

    original = loop._Watch.check
    for stage, step in (("blocks", 3), ("tuning", 4)):

        def stop(self, report, at, folder, stage=stage, step=step):
            if folder.root.name == stage and at == step:
                raise InterruptError
            return original(self, report, at, folder)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop._Watch, "check", stop)
            with pytest.raises(InterruptError):
                small_recovery(
                    model_dir, half, mask, held_out=TEXTS, resume=stage == "tuning", **settings
                )
    resumed = small_recovery(model_dir, half, mask, held_out=TEXTS, resume=True, **settings)
    assert resumed.mask.base_digest == whole.mask.base_digest
    for stage in ("blocks", "tuning"):
        folders = [tmp_path / run / "run" / stage / "log.jsonl" for run in ("whole", "half")]
        one, other = ([json.loads(line) for line in f.read_text().splitlines()] for f in folders)
        assert [r.get("loss") for r in one] == [r.get("loss") for r in other]
    again = small_recovery(model_dir, half, mask, held_out=TEXTS, resume=True, **settings)
    assert again.mask.base_digest == whole.mask.base_digest, "a finished run can be asked again"


def test_sigkill_and_resume_give_the_model_of_an_uninterrupted_run(model_dir, mask, tmp_path):
    (tmp_path / "dense").symlink_to(model_dir)
    write_mask(tmp_path / "mask.safetensors", mask)
    settings = {"steps": 40}
    whole = small_recovery(model_dir, tmp_path / "whole", mask, held_out=TEXTS, **settings)
    process = subprocess.Popen(
        [sys.executable, str(RUNS), str(tmp_path), json.dumps(settings)],
        env={**os.environ, "RUN_NAME": "killed", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    log = tmp_path / "killed" / "run" / "tuning" / "log.jsonl"
    while process.poll() is None and (not log.exists() or log.read_text().count("\n") < 7):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    resumed = small_recovery(
        model_dir, tmp_path / "killed", mask, held_out=TEXTS, resume=True, **settings
    )
    assert resumed.mask.base_digest == whole.mask.base_digest
    assert resumed.best_step == whole.best_step
    assert held_out(tmp_path / "killed") == held_out(tmp_path / "whole")


def test_two_gloo_ranks_recover_what_one_does_with_two_micro_batches(model_dir, mask, tmp_path):
    (tmp_path / "dense").symlink_to(model_dir)
    write_mask(tmp_path / "mask.safetensors", mask)
    settings = {"steps": 6, "micro_batches": 2}
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        str(RUNS), str(tmp_path), json.dumps(settings),
    ]  # fmt: skip
    done = subprocess.run(
        command,
        env={**os.environ, "RUN_NAME": "two", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    one = small_recovery(model_dir, tmp_path / "one", mask, held_out=TEXTS, **settings)
    np.testing.assert_allclose(held_out(tmp_path / "two"), held_out(tmp_path / "one"), rtol=1e-5)
    stored = [load_file(tmp_path / run / "model/model.safetensors") for run in ("one", "two")]
    for name, whole in stored[0].items():
        # bf16 as stored: sums in another order may round a weight to the one beside it.
        torch.testing.assert_close(stored[1][name], whole, rtol=2**-6, atol=1e-5)
    two = read_mask(tmp_path / "two" / "mask.safetensors")
    assert two.base_digest == base_digest(tmp_path / "two" / "model")
    assert (two.codes.keys(), two.pattern) == (one.mask.codes.keys(), one.mask.pattern)
    shards = list((tmp_path / "two/run/tuning").glob("checkpoint-000006/optimiser-*"))
    assert len(shards) == 2


def test_micro_batches_that_cannot_be_dealt_are_refused(model_dir, mask, tmp_path, monkeypatch):
    @contextmanager
    def two_ranks(device):
        yield World(1, 2)

    monkeypatch.setattr("maskgen.recover.world_from_environment", two_ranks)
    with pytest.raises(ValueError, match=r"1 micro-batches .* evenly to 2 ranks"):
        small_recovery(model_dir, tmp_path, mask, micro_batches=1)


def test_held_out_text_stops_a_run_and_the_best_step_is_kept(model_dir, mask, tmp_path):
    result = small_recovery(
        model_dir, tmp_path, mask, held_out=TEXTS, steps=400, learning_rate=0.3, warm_up=0,
        patience=2, divergence=1e3, least_squares=0,
    )  # fmt: skip
    curve = held_out(tmp_path)
    assert len(curve) < 201, "it went on to the end"
    best = min(range(len(curve)), key=curve.__getitem__)
    assert result.best_step == 2 * best
    assert best == len(curve) - 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": False, "norms": False, "biases": False}, "every group .* is switched off"),
        ({"steps": 0, "least_squares": 0}, "nothing would change"),
        ({"steps": 0, "weights": False}, "nothing would change"),
        ({"patience": 2}, "needs held-out text"),
        ({"stepz": 3}, "stepz"),
        ({"rank": 2, "values": "int4"}, "do not go together"),
        ({"values": "int4", "block": "48"}, "32, 64 or 128"),
    ],
)
def test_settings_that_make_no_sense_are_refused(model_dir, mask, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        small_recovery(model_dir, tmp_path, mask, **settings)
    assert not (tmp_path / "model").exists()


def test_a_mask_of_another_base_is_refused(model_dir, mask, tmp_path):
    with pytest.raises(MaskFileError, match=r"00000000\.\.\., but .* is"):
        small_recovery(model_dir, tmp_path, replace(mask, base_digest="0" * 64))


def test_a_mask_that_lists_a_tied_head_is_refused(model_dir, mask, tmp_path):
    head = load_model(model_dir, "fp32", "cpu").lm_head.weight
    codes = torch.zeros(head.shape[0], head.shape[1] // 4, dtype=torch.uint8).numpy()
    with_head = replace(mask, codes={**mask.codes, "lm_head": codes}, decoder_weights=None)
    with pytest.raises(MaskFileError, match=r"lm_head, whose weight is tied to model\.embed"):
        small_recovery(model_dir, tmp_path, with_head)


def test_what_is_there_already_is_not_written_over(model_dir, mask, tmp_path):
    small_recovery(model_dir, tmp_path, mask)
    with pytest.raises(FileExistsError, match="exists already"):
        small_recovery(model_dir, tmp_path, mask)
    with pytest.raises(ValueError, match=r"belongs to another run: .*learning_rate"):
        small_recovery(model_dir, tmp_path, mask, resume=True, learning_rate=2e-3)
    with pytest.raises(ValueError, match=r"belongs to another run: least_squares"):
        small_recovery(model_dir, tmp_path, mask, resume=True, least_squares=0.5)
    assert len(losses(tmp_path / "run" / "blocks")) == 4


def test_blocks_that_are_done_can_be_tuned_with_other_settings(model_dir, mask, tmp_path):
    first = small_recovery(model_dir, tmp_path, mask)
    for folder in ("model", "run/tuning"):
        shutil.rmtree(tmp_path / folder)
    again = small_recovery(model_dir, tmp_path, mask, resume=True, learning_rate=2e-3)
    fresh = small_recovery(model_dir, tmp_path / "fresh", mask, learning_rate=2e-3)
    assert again.mask.base_digest == fresh.mask.base_digest != first.mask.base_digest


def test_quantised_recovery_writes_weights_that_lie_on_their_grid(model_dir, mask, tmp_path):
    settings = {"values": "int4", "steps": 30, "batch_size": 8, "learning_rate": 2e-3}
    result = small_recovery(model_dir, tmp_path, mask, held_out=TEXTS, **settings)
    curve = held_out(tmp_path)
    assert result.best_step
    assert min(curve) < curve[0] - 0.2
    recovered = load_model(tmp_path / "model", "fp32", "cpu").state_dict()
    for name in mask.codes:
        weight, keep = (
            recovered[f"{name}.weight"],
            torch.from_numpy(mask.keep(name)),
        )
        assert not weight[~keep].any()
        levels = {len(block.unique()) for block in weight.reshape(-1, 32)}
        assert max(levels) <= 16
        rounded = quantise(weight, keep, WeightGrid("int4")).weight(weight.shape[1])
        torch.testing.assert_close(rounded[keep], weight[keep], rtol=0.01, atol=0)


def test_a_low_rank_difference_is_merged_and_keeps_the_mask(model_dir, mask, tmp_path):
    settings = {"rank": 2, "steps": 20, "batch_size": 8, "learning_rate": 1e-2}
    result = small_recovery(
        model_dir, tmp_path, mask, held_out=TEXTS, norms=False, biases=False, least_squares=0,
        **settings,
    )  # fmt: skip
    assert result.best_step
    curve = held_out(tmp_path)
    assert min(curve) < curve[0] - 0.1
    before, after = (
        load_model(path, "fp32", "cpu").state_dict() for path in (model_dir, tmp_path / "model")
    )
    assert before.keys() == after.keys()
    for name in mask.codes:
        keep = torch.from_numpy(mask.keep(name))
        assert not after[f"{name}.weight"][~keep].any()
        assert not torch.equal(after[f"{name}.weight"], before[f"{name}.weight"] * keep)


def test_a_smaller_model_is_recovered_by_the_one_it_was_made_of(model_dir, tmp_path):
    structure = random_structure(model_dir, 64, 1)
    apply_structure(model_dir, structure, tmp_path / "small")
    settings = {"steps": 30, "batch_size": 4, "learning_rate": 2e-3}
    result = small_recovery(
        tmp_path / "small", tmp_path, None, held_out=TEXTS, teacher=model_dir, **settings
    )
    assert result.mask is None
    assert result.digest == base_digest(tmp_path / "model") != base_digest(tmp_path / "small")
    facts = json.loads((tmp_path / "model" / "recovery.json").read_text())
    assert facts["dense_digest"] == base_digest(model_dir)
    first, best = facts["held_out_curve"][0][1], min(y for _, y in facts["held_out_curve"])
    assert best < first - 0.1
    assert read_model_config(tmp_path / "model")["intermediate_size"] == 64


@pytest.mark.parametrize(
    ("teach", "settings", "message"),
    [
        (False, {}, "give a teacher, or a mask"),
        (True, {"rank": 2}, "rank 2 needs a mask"),
        (True, {"block_steps": 2}, "block_steps 2 needs a mask"),
        (True, {"least_squares": 0.5}, "least_squares 0.5 needs a mask"),
        (True, {"values": "int8"}, "values int8 needs a mask"),
        (True, {"steps": 0}, "nothing would change"),
    ],
)
def test_without_a_mask_only_tuning_by_a_teacher_makes_sense(
    model_dir, tmp_path, teach, settings, message
):
    with pytest.raises(ValueError, match=message):
        small_recovery(model_dir, tmp_path, None, teacher=model_dir if teach else None, **settings)


def test_a_teacher_is_for_models_without_a_mask_and_of_the_same_tokens(model_dir, mask, tmp_path):
    with pytest.raises(ValueError, match="give a mask or a teacher, not both"):
        small_recovery(model_dir, tmp_path, mask, teacher=model_dir)
    other = make_tiny_llama(tmp_path / "other", vocab_size=400)
    with pytest.raises(ValueError, match="the teacher has 400 tokens, the model"):
        small_recovery(model_dir, tmp_path, None, teacher=other)
