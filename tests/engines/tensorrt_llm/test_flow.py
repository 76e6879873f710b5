"""The whole build, driven against stand-ins for TensorRT-LLM's tools."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from engines.directory.build import BuildRequest
from engines.directory.manifest import read_manifest
from engines.errors import EngineDirectoryError, MaskError
from engines.tensorrt_llm.build import build, extend, resume
from engines.tensorrt_llm.preflight import PreflightError
from engines.tensorrt_llm.record import NoSparseTacticsError, describe_engines, read_record
from engines.tensorrt_llm.version import ToolsMissingError
from tests.engines.tensorrt_llm.helpers import mask_file, sparse_model
from tests.engines.tensorrt_llm.standins import ROOT, StandIns, install
from tests.tiny_model import make_tiny_llama

LAYERS = 8  # of a tiny model: qkv, dense, fused_fc and proj in two layers


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("hf") / "tiny")


@pytest.fixture(scope="module")
def masks(model: Path) -> dict[str, Path]:
    return {
        name: mask_file(model, model.parent / f"{name}.safetensors", seed)
        for seed, name in enumerate(("general", "french"))
    }


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIns:
    return install(tmp_path / "tools", monkeypatch)


@pytest.fixture
def request_(model: Path, masks: dict[str, Path], tmp_path: Path) -> BuildRequest:
    return BuildRequest(model, "tiny", masks, tmp_path / "engine")


@pytest.fixture
def single(request_: BuildRequest) -> BuildRequest:
    """The same with one mask."""
    return replace(request_, masks={"general": request_.masks["general"]})


def _leftovers(directory: Path) -> list[str]:
    return [
        path.name
        for path in directory.rglob(".*")
        if path.name.endswith(".partial") or path.name.startswith(".adding")
    ]


def test_an_engine_per_mask(tools: StandIns, request_: BuildRequest) -> None:
    manifest = build(request_)
    calls = tools.calls("trtllm-build")
    assert len(calls) == 2
    for call in calls:
        assert call[call.index("--gemm_plugin") + 1] == "disable"
        assert "--weight_sparsity" in call
        assert not [word for word in call if word.startswith("--fast")]
        assert call[call.index("--log_level") + 1] == "verbose"
        assert call[call.index("--max_seq_len") + 1] == "512"
    assert not tools.calls("trtllm-refit")

    _, record = read_record(request_.out)
    assert record.tensorrt_llm == "1.2.1"
    assert record.gpus == ("NVIDIA A100-SXM4-80GB, 8.0, 81920 MiB",)
    for name in ("general", "french"):
        engine = record.engines[name]
        assert engine.built
        assert (engine.eligible, engine.chosen) == (LAYERS, LAYERS)
        assert (engine.sparse_weights, engine.dense_weights) == (10, 0)
        weights = json.loads((request_.out / engine.directory / "rank0.engine").read_text())
        assert weights["weights"] == f"checkpoints/{name}"
    assert {mask.name for mask in manifest.masks} == {"general", "french"}
    assert manifest.default_mask == "general"
    assert manifest.target == "tensorrt-llm"
    assert "engines/french/rank0.engine" in manifest.files
    assert not [name for name in manifest.files if name.startswith(("checkpoints", "logs"))]
    assert not _leftovers(request_.out)
    # Serving needs neither checkpoints nor logs.
    shutil.rmtree(request_.out / "checkpoints")
    assert read_manifest(request_.out) == manifest


def test_builds_share_the_timing_cache(
    tools: StandIns, request_: BuildRequest, tmp_path: Path
) -> None:
    build(request_)
    assert (request_.out / "timing.cache").read_text() == "general\nfrench\n"
    shared = tmp_path / "shared.cache"
    shared.write_text("known\n")
    other = BuildRequest(request_.model, "tiny", request_.masks, tmp_path / "other")
    build(other, timing_cache=shared)
    assert shared.read_text() == "known\ngeneral\nfrench\n"
    assert not (other.out / "timing.cache").exists()
    assert not list(tmp_path.glob("shared.cache.*"))


def test_one_plan_refitted_per_mask(tools: StandIns, request_: BuildRequest) -> None:
    build(request_, per_mask="refit")
    (call,) = tools.calls("trtllm-build")
    assert "--strip_plan" in call
    # From a real 2:4 checkpoint, never from a pruned one.
    assert call[call.index("--checkpoint_dir") + 1] == "checkpoints/general"
    refits = tools.calls("trtllm-refit")
    assert [call[call.index("--checkpoint_dir") + 1] for call in refits] == [
        "checkpoints/general",
        "checkpoints/french",
    ]
    _, record = read_record(request_.out)
    assert {e.chosen for e in record.engines.values()} == {LAYERS}
    weights = json.loads((request_.out / "engines/french/rank0.engine").read_text())
    assert weights["weights"] == "checkpoints/french"


@pytest.mark.parametrize("per_mask", ["engine", "refit"])
def test_a_mask_can_be_added(
    tools: StandIns, request_: BuildRequest, tmp_path: Path, per_mask: str
) -> None:
    build(request_, per_mask=per_mask)
    spanish = mask_file(request_.model, tmp_path / "spanish.safetensors", 7)
    before = len(tools.calls("trtllm-build"))
    record = extend(request_.out, request_.model, {"spanish": spanish})
    assert record.engines["spanish"].built
    assert [mask.name for mask in read_manifest(request_.out).masks][-1] == "spanish"
    # What was there is not built again.
    assert len(tools.calls("trtllm-build")) - before == (per_mask == "engine")
    with pytest.raises(MaskError, match="'spanish' already"):
        extend(request_.out, request_.model, {"spanish": spanish})
    other = make_tiny_llama(tmp_path / "other", seed=5)
    with pytest.raises(EngineDirectoryError, match="base digest"):
        extend(request_.out, other, {"x": mask_file(other, tmp_path / "x.safetensors")})


def test_a_failed_extension_leaves_the_rest_servable(
    tools: StandIns, request_: BuildRequest, tmp_path: Path
) -> None:
    build(request_)
    spanish = mask_file(request_.model, tmp_path / "spanish.safetensors", 7)
    tools.set("FAIL", "spanish")
    with pytest.raises(EngineDirectoryError, match="'spanish' failed"):
        extend(request_.out, request_.model, {"spanish": spanish})
    _, record = read_record(request_.out)
    assert [name for name, engine in record.engines.items() if engine.built] == [
        "general",
        "french",
    ]
    tools.set("FAIL", "")
    assert resume(request_.out).engines["spanish"].built


@pytest.mark.parametrize("generation", ["8", "10"])
def test_no_sparse_tactic_is_an_error(
    tools: StandIns, single: BuildRequest, generation: str
) -> None:
    tools.set("GENERATION", generation)
    tools.set("CHOSEN", "0")
    with pytest.raises(NoSparseTacticsError, match=r"of 8 eligible layers .* none.*--allow-dense"):
        build(single)
    assert not any(e.built for e in read_record(single.out)[1].engines.values())


@pytest.mark.parametrize("generation", ["8", "10"])
def test_dense_engines_are_accepted_on_singleand_counted(
    tools: StandIns, single: BuildRequest, generation: str
) -> None:
    tools.set("GENERATION", generation)
    tools.set("CHOSEN", "0")
    build(single, allow_dense=True)
    _, record = read_record(single.out)
    assert (record.engines["general"].eligible, record.engines["general"].chosen) == (LAYERS, 0)


def test_some_sparse_tactics_are_counted_over_all_ranks(
    tools: StandIns, single: BuildRequest
) -> None:
    tools.set("GENERATION", "8")
    tools.set("CHOSEN", "3")
    build(single, tp_size="2", pp_size="2")
    _, record = read_record(single.out)
    # Four ranks of one layer each: four matrices, three of them chosen.
    assert (record.engines["general"].eligible, record.engines["general"].chosen) == (16, 12)
    assert len(list((single.out / "engines/general").glob("rank*.engine"))) == 4


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--fast_build", "network inputs"),
        ("--fast", "--fast_build"),
        ("--build_config=b.json", "--build_config replaces every flag"),
        ("--low_latency_gemm_plugin fp8", "hides the weights"),
        ("--gemm_plugin auto", "--gemm_plugin is set by twofour"),
        ("--weight_sparsity", "is set by twofour"),
        ("--max_seq_len 99", "is set by twofour"),
    ],
)
def test_flags_that_defeat_sparsity_never_reach_the_builder(
    tools: StandIns, single: BuildRequest, argument: str, message: str
) -> None:
    with pytest.raises(EngineDirectoryError, match=message):
        build(single, trtllm_args=argument)
    assert not tools.calls("trtllm-build")
    assert not single.out.exists()


def test_harmless_extra_arguments_reach_the_builder(tools: StandIns, single: BuildRequest) -> None:
    build(single, trtllm_args=("--opt_num_tokens", "128"))
    assert tools.calls("trtllm-build")[0][-6:-4] == ["--opt_num_tokens", "128"]


def test_dense_weights_are_noticed_before_refit(tools: StandIns, request_: BuildRequest) -> None:
    tools.set("FAIL", "general")
    with pytest.raises(EngineDirectoryError):
        build(request_, per_mask="refit")
    tools.set("FAIL", "")
    path = request_.out / "checkpoints/french/rank0.safetensors"
    tensors = load_file(path)
    tensors["transformer.layers.1.mlp.proj.weight"][5, 8:11] = 1
    save_file(tensors, path)
    with pytest.raises(
        PreflightError, match=r"layers\.1\.mlp\.proj\.weight: 1 of 2048 groups .*row 5, inputs 8"
    ):
        resume(request_.out)
    assert not tools.calls("trtllm-refit")


def test_a_refit_that_tensorrt_refuses_says_so(tools: StandIns, request_: BuildRequest) -> None:
    """build.sh by itself, without our check before it."""
    tools.set("FAIL", "general")
    with pytest.raises(EngineDirectoryError):
        build(request_, per_mask="refit")
    tools.set("FAIL", "")
    path = request_.out / "checkpoints/french/rank0.safetensors"
    tensors = load_file(path)
    tensors["transformer.layers.1.mlp.proj.weight"][:] = 1
    save_file(tensors, path)
    done = _run_script(request_.out)
    assert done.returncode == 1
    assert "logs/french.log" in done.stderr
    assert "Refitting failed" in (request_.out / "logs/french.log").read_text()
    assert not (request_.out / "engines/french").exists()
    assert (request_.out / "engines/general").is_dir()


def _run_script(directory: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHON": sys.executable}
    command = ["bash", str(directory / "build.sh")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_failing_build_shows_the_log_and_can_be_resumed(
    tools: StandIns, request_: BuildRequest
) -> None:
    tools.set("FAIL", "french")
    with pytest.raises(EngineDirectoryError, match=r"'french' failed(.|\n)*OutOfMemory"):
        build(request_)
    assert (request_.out / "engines/general").is_dir()
    assert not (request_.out / "engines/french").exists()
    assert not _leftovers(request_.out)
    tools.set("FAIL", "")
    resume(request_.out)
    assert [c[1] for c in tools.calls("trtllm-build")].count("checkpoints/general") == 1
    assert read_record(request_.out)[1].engines["french"].built


def test_a_build_that_is_killed_leaves_nothing_half_written(
    tools: StandIns, single: BuildRequest
) -> None:
    tools.set("FAIL", "general")
    with pytest.raises(EngineDirectoryError):
        build(single)
    tools.set("FAIL", "")
    tools.set("HANG", "1")
    process = subprocess.Popen(
        ["bash", str(single.out / "build.sh")],
        env=os.environ | {"PYTHON": sys.executable},
        start_new_session=True,
    )
    log = single.out / "logs/general.log"
    half = single.out / "engines/.general.partial/rank0.engine"
    deadline = time.monotonic() + 60
    while not (half.is_file() and "hanging" in log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()

    assert half.is_file()  # SIGKILL leaves no time to clean up ...
    assert not (single.out / "engines/general").exists()  # ... but nothing bears its real name
    assert not read_record(single.out)[1].engines["general"].built
    tools.set("HANG", "")
    resume(single.out)
    assert not _leftovers(single.out)
    assert (single.out / "engines/general/rank0.engine").read_text() != "half"


def test_without_tensorrt_llm_everything_is_ready_for_another_machine(
    request_: BuildRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    with pytest.raises(ToolsMissingError, match=r"not installed.*not on PATH.*no NVIDIA GPU") as e:
        build(request_)
    assert e.value.exit_code == 3
    assert str(request_.out / "build.sh") in str(e.value)
    assert _run_script(request_.out).returncode == 3

    assert describe_engines(request_.out)["french"] == "not built yet; run build.sh"

    # The other machine: the directory was copied there, and has the tools.
    moved = tmp_path / "elsewhere"
    shutil.move(request_.out, moved)
    install(tmp_path / "tools", monkeypatch)
    done = _run_script(moved)
    assert done.returncode == 0, done.stderr
    assert f"general: {LAYERS} of {LAYERS} eligible layers use a sparse tactic" in done.stdout
    assert read_record(moved)[1].engines["french"].built
    assert describe_engines(moved)["french"].startswith(f"{LAYERS} of {LAYERS} eligible layers")
    # A second run has nothing to do.
    assert "building" not in _run_script(moved).stdout


def test_another_version_of_tensorrt_llm_is_refused(
    single: BuildRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = install(tmp_path / "tools", monkeypatch, version="1.3.0")
    with pytest.raises(ToolsMissingError, match=r"TensorRT-LLM 1\.3\.0 is installed.*1\.2 line"):
        build(single)
    assert _run_script(single.out).returncode == 3
    assert not tools.calls("trtllm-build")


def test_a_gpu_without_sparse_tensor_cores_is_refused(
    tools: StandIns, single: BuildRequest
) -> None:
    smi = tools.folder / "bin/nvidia-smi"
    smi.write_text(smi.read_text().replace("A100-SXM4-80GB, 8.0", "T4, 7.5"))
    with pytest.raises(ToolsMissingError, match=r"8\.0 or higher.*T4, 7\.5"):
        build(single)


def test_a_model_that_is_2_4_already_needs_no_mask(tools: StandIns, tmp_path: Path) -> None:
    model = sparse_model(tmp_path / "sparse")
    build(BuildRequest(model, "tiny", {}, tmp_path / "engine"))
    manifest, record = read_record(tmp_path / "engine")
    assert manifest.default_mask is None
    assert record.engines["base"].chosen == LAYERS


def test_a_dense_model_without_a_mask_is_refused(
    tools: StandIns, model: Path, tmp_path: Path
) -> None:
    with pytest.raises(PreflightError, match=r"hold more than two non-zero.*apply a 2:4 mask"):
        build(BuildRequest(model, "tiny", {}, tmp_path / "engine"))
    assert not (tmp_path / "engine").exists()
    assert not list(tmp_path.glob(".engine*"))


def test_an_engine_built_with_other_flags_is_refused(
    tools: StandIns, request_: BuildRequest
) -> None:
    tools.set("FAIL", "french")
    with pytest.raises(EngineDirectoryError, match="'french' failed"):
        build(request_)
    tools.set("FAIL", "")
    path = request_.out / "engines/general/config.json"
    config = json.loads(path.read_text())
    config["build_config"]["plugin_config"]["gemm_plugin"] = "bfloat16"
    path.write_text(json.dumps(config))
    with pytest.raises(EngineDirectoryError, match="general was built with gemm_plugin bfloat16"):
        resume(request_.out)


@pytest.mark.parametrize("name", ["../../outside", "a/b", "", ".hidden", "_plan"])
def test_names_of_masks_stay_inside_the_directory(
    tools: StandIns, single: BuildRequest, masks: dict[str, Path], name: str
) -> None:
    with pytest.raises(MaskError, match="cannot name a mask"):
        build(BuildRequest(single.model, "tiny", {name: masks["general"]}, single.out))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"max_seq_len": "4096"}, "max_seq_len 4096 exceeds the model's 512 positions"),
        ({"tp_size": "0"}, "tp_size is '0'"),
        ({"tp_size": "many"}, "tp_size is 'many'"),
        ({"speed": "fast"}, "no option 'speed'.*tp_size"),
        ({"dtype": "float8"}, "dtype is 'float8'"),
        ({"tp_size": "4", "pp_size": "2"}, None),
    ],
)
def test_settings_are_checked_before_anything_is_written(
    tools: StandIns, single: BuildRequest, setting: dict[str, str], message: str | None
) -> None:
    if message is None:
        build(single, **setting)
        return
    with pytest.raises(EngineDirectoryError, match=message):
        build(single, **setting)
    assert not single.out.exists()


def _program(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "engines.tensorrt_llm.build", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_program_by_itself(
    tools: StandIns, model: Path, masks: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "engine"
    pairs = [word for name, path in masks.items() for word in ("--mask", f"{name}={path}")]
    done = _program("--model", str(model), *pairs, "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "french: 8 of 8 eligible layers use a sparse tactic" in done.stdout
    again = _program("--model", str(model), *pairs, "--out", str(out))
    assert again.returncode == 1
    assert again.stderr.startswith("error:")
    assert "exists" in again.stderr


def test_the_program_ends_with_3_where_it_cannot_build(
    model: Path, masks: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    out = tmp_path / "engine"
    done = _program("--model", str(model), "--mask", f"x={masks['french']}", "--out", str(out))
    assert done.returncode == 3
    assert "no engine was built: TensorRT-LLM is not installed" in done.stderr
    assert os.access(out / "build.sh", os.X_OK)


@pytest.mark.parametrize("plugin", ["disable", "bfloat16"])
def test_dense_engines_to_compare_with(
    tools: StandIns, model: Path, tmp_path: Path, plugin: str
) -> None:
    build(BuildRequest(model, "tiny", {}, tmp_path / "d"), sparse="false", gemm_plugin=plugin)
    (call,) = tools.calls("trtllm-build")
    assert "--weight_sparsity" not in call
    assert call[call.index("--gemm_plugin") + 1] == plugin
    _, record = read_record(tmp_path / "d")
    assert record.engines["base"].built
    assert record.engines["base"].chosen is None


def test_a_plugin_in_a_sparse_build_is_refused(tools: StandIns, single: BuildRequest) -> None:
    with pytest.raises(PreflightError, match="--gemm_plugin is auto"):
        build(single, gemm_plugin="auto")
    assert not single.out.exists()
