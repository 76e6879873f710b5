"""The parts of the GPU check that a CPU can run, on decoders of toy size."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from benchmarks.gpu.accuracy import Case, NoSuchShapeError, compare, make_case
from benchmarks.gpu.arms import ARMS, DENSE
from benchmarks.gpu.decoder import (
    LLAMA_1B,
    Decoder,
    DecoderShape,
    linears,
    random_decoder,
    rotated,
)
from benchmarks.gpu.learning import MaskLLMSettings, measure_learning
from benchmarks.gpu.masks import kept_and_codes, masked, random_codes
from benchmarks.gpu.speed import measure_speed, read_bandwidth
from benchmarks.gpu.swap import Replay, measure_swap
from benchmarks.gpu.timing import WallTimer
from engines.native.layout import Layout
from engines.vllm_plugin.backend import DeviceKernels, PackedRows
from engines.vllm_plugin.few_token_layout import unpack_kept

CPU = torch.device("cpu")
TOY = DecoderShape(vocabulary=96, width=64, layers=2, heads=4, kv_heads=2, inner=128)


def test_the_decoder_has_the_sizes_of_llama_3_2_1b() -> None:
    with torch.device("meta"):
        model = Decoder(LLAMA_1B)
    # What the model card says, 1.23 billion.
    assert sum(p.numel() for p in model.parameters()) == 1_235_814_400
    masked_weights = sum(linear.weight.numel() for linear in linears(model).values())
    assert masked_weights == 973_078_528
    assert len(linears(model)) == 7 * 16


def test_the_decoder_is_causal_and_sees_positions() -> None:
    model = random_decoder(TOY, CPU).float()
    ids = torch.tensor([[3, 5, 7, 9]])
    logits = model(ids).logits
    assert logits.shape == (1, 4, 96)
    other = model(torch.tensor([[3, 5, 7, 11]])).logits
    torch.testing.assert_close(other[:, :3], logits[:, :3])
    swapped = model(torch.tensor([[5, 3, 7, 9]])).logits
    assert not torch.allclose(swapped[:, 3], logits[:, 3])
    # Rotations keep lengths, and leave position 0 alone.
    x = torch.randn(1, 1, 5, 16)
    turned = rotated(x, 1e4)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(turned[:, :, 0], x[:, :, 0])


def test_masks_are_stored_as_checkpoints_store_them() -> None:
    codes = random_codes(24, 64, CPU, seed=3)
    weight = torch.randn(24, 64).to(torch.bfloat16)
    kept, packed = kept_and_codes(weight, codes)
    assert torch.equal(unpack_kept(kept, packed), masked(weight, codes))
    assert int((masked(weight, codes) != 0).sum()) == 24 * 32


def test_a_wrong_kernel_is_found_and_a_missing_shape_is_none() -> None:
    def right(case: Case) -> Tensor:
        return torch.nn.functional.linear(case.x, case.weight)

    def one_group_wrong(case: Case) -> Tensor:
        weight = case.weight.clone()
        weight[0, :4] = weight[0, :4].flip(0)
        return torch.nn.functional.linear(case.x, weight)

    def refuses(case: Case) -> Tensor:
        raise NoSuchShapeError("no such shape")

    def fails(case: Case) -> Tensor:
        raise RuntimeError("CUDA error: misaligned address\nmore")

    def nothing(case: Case) -> Tensor:
        return torch.full((len(case.x), len(case.weight)), math.nan)

    kernels = {
        "right": right,
        "wrong": one_group_wrong,
        "refuses": refuses,
        "fails": fails,
        "nan": nothing,
    }
    found = {row.kernel: row for row in compare(kernels, [make_case(32, 64, 3, CPU)])}
    assert {name: row.agrees for name, row in found.items()} == {
        "right": True, "wrong": False, "refuses": True, "fails": False, "nan": False,
    }  # fmt: skip
    assert found["fails"].error == "CUDA error: misaligned address"
    assert found["nan"].worst == math.inf


def test_what_a_device_lacks_is_a_line_of_the_report() -> None:
    said: list[str] = []
    table = measure_speed(
        [(64, 128), (32, 64)],
        [1, 8],
        CPU,
        WallTimer(),
        read_at_once=1 << 16,
        deadline=time.monotonic() + 600,
        say=said.append,
    )
    dense = [row for row in table.rows if row["arm"] == DENSE["bf16"]]
    assert [(row["n"], row["k"], row["tokens"]) for row in dense] == [
        (64, 128, 1), (64, 128, 8), (32, 64, 1), (32, 64, 8),
    ]  # fmt: skip
    assert all(row["ms"] > 0 and row["gbps"] > 0 for row in table.rows)
    measured = {row["arm"] for row in table.rows}
    assert measured | set(table.missing) == {arm.name for arm in ARMS}
    assert {"torch 2:4", "CUTLASS 2:4"} <= set(table.missing)
    assert all(table.missing.values())
    assert len(said) == 2
    late = measure_speed(
        [(64, 128)], [1], CPU, WallTimer(), read_at_once=1, deadline=0.0, say=said.append
    )
    assert (late.rows, late.left_out) == ([], ["64x128"])


def test_bandwidth_is_of_reads_and_writes() -> None:
    assert read_bandwidth(CPU, WallTimer(), size=1 << 20) > 1e6


class DenseBackend:
    """Multiplies unpacked weights, so that swapping can be looked at without a GPU."""

    def pack_sparse(self, kept: Tensor, codes: Tensor) -> PackedRows:
        dense = unpack_kept(kept, codes)
        return PackedRows(len(dense), dense.shape[1], True, {"weight": dense})

    def pack_dense(self, weight: Tensor) -> PackedRows:
        raise NotImplementedError

    def adopt(self, run: PackedRows) -> PackedRows:
        return run

    def multiply(self, x: Tensor, run: PackedRows, bias: Tensor | None) -> Tensor:
        return torch.nn.functional.linear(x, run.tensors["weight"], bias)

    def describe(self, name: str, run: PackedRows) -> str:
        raise NotImplementedError

    def kernels(self, kind: Layout) -> DeviceKernels:
        raise NotImplementedError


class Eager:
    """Replays by working again."""

    def capture(self, work: Replay) -> Replay:
        return work

    def synchronise(self) -> None:
        """Nothing is under way."""


def test_a_swap_is_followed_in_place() -> None:
    found = measure_swap(TOY, CPU, DenseBackend(), Eager())
    assert found["layers"] == 14
    assert found["same_memory"]
    assert found["follows"]
    assert found["worst_logit"] < 0.05
    assert found["bytes"] == 2 * 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 128)


def test_a_swap_that_nothing_follows_is_found() -> None:
    class Stuck(DenseBackend):
        def multiply(self, x: Tensor, run: PackedRows, bias: Tensor | None) -> Tensor:
            return torch.nn.functional.linear(x, self.first.setdefault(id(run), self._own(run)))

        def _own(self, run: PackedRows) -> Tensor:
            return run.tensors["weight"].clone()

        first: dict[int, Tensor]

    stuck = Stuck()
    stuck.first = {}

    class Once(Eager):
        def capture(self, work: Replay) -> Replay:
            work()
            return work

    assert not measure_swap(TOY, CPU, stuck, Once())["follows"]


def test_steps_of_maskllm() -> None:
    settings = MaskLLMSettings(steps=4, length=16)
    found = measure_learning(TOY, CPU, settings, lambda: None)
    assert found["weights"] == 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 128)
    assert found["state_bytes_a_weight"] == 6 / 4 * 4 * 4
    assert found["tokens_per_s"] > 0
    assert math.log(96) - 1 < found["first_loss"] < math.log(96) + 1
    assert found["last_loss"] != found["first_loss"]
    assert 0 < found["changed"] < 1
    assert found["peak_bytes"] is None
