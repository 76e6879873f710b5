"""`twofour bench masks` on a tiny model: every row, resumption, and refusal of other data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from benchmarks.common.table import StaleRowsError
from benchmarks.masks import domains, league, patterns, settings
from benchmarks.masks.league import gap_closed
from benchmarks.masks.products import shared_runs
from benchmarks.masks.zero_shot import accuracy_difference
from maskgen.format.mask_file import read_mask
from maskgen.texts.text_sets import TextSet
from tests.tiny_model import SAMPLE_TEXT, make_tiny_llama
from twofour.cli import app
from twofour.commands.bench_masks_inputs import parse_base_and_mask


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_tiny_llama(tmp_path / "model", max_position_embeddings=2048)
    for name, text in (("learn", SAMPLE_TEXT * 5), ("test", SAMPLE_TEXT[::-1] * 30)):
        (tmp_path / f"{name}.txt").write_text(text)
    small = {"steps": 2, "sequence_length": 16, "batch_size": 1}
    learned = {method: {**s, **small} for method, s in settings.LEARNED.items()}
    learned["maskpro"]["windows"] = 2
    monkeypatch.setattr(league, "LEARNED", learned)
    monkeypatch.setattr(patterns, "LEARNED", learned)
    monkeypatch.setattr(domains, "ENTROPIC", {**settings.ENTROPIC, **small})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def bench(folder: Path, *arguments: object, learn: str = "learn.txt") -> Result:
    """The league, without saying so; `domains` and `ablations` first where they are meant."""
    modes = ("domains", "ablations", "products", "patterns")
    mode = [arguments[0]] if arguments and arguments[0] in modes else []
    words = ["bench", "masks", *mode, "--model", folder / "model"]
    if mode != ["domains"]:
        words += ["--learn", folder / learn]
        words += ["--wikitext2", folder / "test.txt", "--c4", folder / "test.txt"]
    words += ["--windows", 1]
    if mode != ["products"]:
        words += ["--calibration-windows", 2, "--calibration-length", 64]
    words += ["--work", folder / "work", *arguments[len(mode) :]]
    return CliRunner().invoke(app, [str(word) for word in words])


def rows(name: str) -> list[dict[str, object]]:
    return json.loads(Path(f"docs/results/{name}.json").read_text())["rows"]


def test_the_league_is_measured_once(folder):
    only = [word for m in ("dense", "magnitude", "maskllm", "maskpro") for word in ("--only", m)]
    result = bench(folder, *only)
    assert result.exit_code == 0, (result.output, result.exception)
    table = {row["method"]: row for row in rows("masks")}
    assert list(table) == ["dense", "magnitude", "maskllm", "maskpro"]
    for row in table.values():
        assert row["wikitext2"] > 1
        assert row["c4"] > 1
    assert table["maskllm"]["state_bytes_per_weight"] == 24
    assert table["maskpro"]["state_bytes_per_weight"] == 4
    assert table["maskllm"]["tokens_seen"] == 32
    before = Path("docs/results/masks.json").read_text()
    assert bench(folder, *only).exit_code == 0
    assert Path("docs/results/masks.json").read_text() == before
    assert isinstance(bench(folder, *only, learn="test.txt").exception, StaleRowsError)
    assert isinstance(bench(folder, *only, "--windows", 2).exception, StaleRowsError)
    assert bench(folder, *only, "--plot").exit_code == 0
    assert Path("docs/results/masks-curve.png").read_bytes().startswith(b"\x89PNG")
    assert "![masks-curve](masks-curve.png)" in Path("docs/results/masks.md").read_text()


def test_patterns_are_measured_row_by_row(folder):
    arguments = ["patterns", "--pattern", "2:4", "--pattern", "16:32", "--only", "wanda"]
    result = bench(folder, *arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    first = rows("patterns")
    assert [(row["pattern"], row["method"]) for row in first] == [
        (None, "dense"),
        ("2:4", "wanda"),
        ("16:32", "wanda"),
    ]
    assert [row.get("stored_bits_per_weight") for row in first] == [None, 0.6667, 0.9219]
    assert read_mask(folder / "work" / "general-wanda-16-32.safetensors").pattern.m == 32
    more = bench(folder, *arguments, "--only", "maskpro")
    assert more.exit_code == 0, (more.output, more.exception)
    assert rows("patterns")[:3] == first
    assert [row["pattern"] for row in rows("patterns")[3:]] == ["2:4", "16:32"]
    page = Path("docs/results/patterns.md").read_text()
    assert "| method | 2:4 (0.6667 bits) | 16:32 (0.9219 bits) |" in page
    assert "is none of wanda" in str(bench(folder, "patterns", "--only", "ria").exception)
    other = bench(folder, *arguments[:3], "--only", "wanda", "--result", "patterns-other")
    assert other.exit_code == 0, (other.output, other.exception)
    assert [row["wikitext2"] for row in rows("patterns-other")] == [
        row["wikitext2"] for row in first[:2]
    ]
    page = Path("docs/results/patterns-other.md").read_text()
    assert page.startswith("# Masks by pattern: model\n")
    unknown = bench(folder, *arguments, "--result", "other")
    assert "no page is known for other" in str(unknown.exception)


def test_a_work_folder_is_of_one_model(folder):
    assert bench(folder, "--only", "magnitude").exit_code == 0
    make_tiny_llama(folder / "other", max_position_embeddings=2048, seed=1)
    result = bench(folder, "patterns", "--model", folder / "other", "--only", "wanda")
    assert "holds masks of another model" in str(result.exception)


def test_a_mask_made_elsewhere_takes_its_place_in_the_league(folder):
    assert bench(folder, "--only", "magnitude").exit_code == 0
    file = folder / "work" / "general-magnitude.safetensors"
    assert bench(folder, "--only", "maskllm", "--mask", f"maskllm={file}").exit_code == 0
    pruned, given = rows("masks")
    assert given["method"] == "maskllm"
    assert given["wikitext2"] == pruned["wikitext2"]
    assert given["tokens_seen"] is None
    missing = bench(folder, "--mask", "maskllm=nowhere.safetensors")
    assert isinstance(missing.exception, ValueError)
    assert "METHOD=FILE" in str(missing.exception)


def test_the_domain_table_starts_from_the_general_mask(folder):
    assert bench(folder, "--only", "magnitude").exit_code == 0
    general = folder / "work" / "general-magnitude.safetensors"
    spec = f"tiny={folder / 'learn.txt'},{folder / 'test.txt'},2"
    result = bench(
        folder, "domains", "--general", general, "--general-prior", general, "--domain", spec,
        "--set", "roi.steps=3",
    )  # fmt: skip
    assert result.exit_code == 0, (result.output, result.exception)
    first, second = rows("domains")
    assert (first["domain"], first["seed"], second["seed"]) == ("tiny", 0, 1)
    assert first["dense"] == second["dense"]
    assert first["general"] == second["general"]
    assert first["transfer_bits_per_weight"] > 0
    assert 0 <= first["transfer_entropy_per_weight"] < 0.67
    assert first["graft_digest"] == first["scratch_digest"]  # nothing was learned to carry over
    mask = read_mask(folder / "work" / "tiny-0-transfer.safetensors")
    assert mask.parent_digest == read_mask(general).digest


def test_domains_of_a_wide_general_mask_are_learned_with_roi_in_a_table_of_their_own(folder):
    assert bench(folder, "patterns", "--pattern", "8:16", "--only", "wanda").exit_code == 0
    general = folder / "work" / "general-wanda-8-16.safetensors"
    texts = ("--domain", f"tiny={folder / 'learn.txt'},{folder / 'test.txt'}")
    short = ("--set", "roi.steps=2", "--start", "transfer")
    result = bench(folder, "domains", "--general", general, *texts, *short)
    assert result.exit_code == 0, (result.output, result.exception)
    (row,) = rows("domains-8-16")
    assert (row["pattern"], row["method"], row["steps"]) == ("8:16", "roi", 2)
    assert "scratch" not in row
    assert "# Masks by domain, 8:16" in Path("docs/results/domains-8-16.md").read_text()
    learned = read_mask(folder / "work" / "tiny-0-transfer.safetensors")
    assert str(learned.pattern) == "8:16"
    refused = bench(folder, "domains", "--general", general, *texts, "--start", "graft")
    assert "--general-prior" in str(refused.exception)


def test_every_ablation_has_a_row(folder, monkeypatch):
    few = {"none": {"": {}}, "prior": {"magnitude": {}}, "alpha": {"3": {"alpha": 3.0}}}
    monkeypatch.setattr("benchmarks.masks.ablations.ABLATIONS", few)
    small = [f"maskllm.{name}" for name in ("steps=2", "sequence_length=16", "batch_size=1")]
    result = bench(folder, "ablations", *(word for value in small for word in ("--set", value)))
    assert result.exit_code == 0, (result.output, result.exception)
    found = {(row["what"], row["value"]): row for row in rows("mask-ablations")}
    assert list(found) == [("none", ""), ("prior", "magnitude"), ("alpha", "3")]
    assert found["alpha", "3"]["settings"]["alpha"] == 3.0
    assert found["none", ""]["prior_digest"] != found["prior", "magnitude"]["prior_digest"]
    assert "| prior | magnitude |" in Path("docs/results/mask-ablations.md").read_text()


def test_the_cost_of_sampling_is_measured_by_part(folder):
    result = CliRunner().invoke(app, ["bench", "masks", "cost", "--model", str(folder / "model")])
    assert result.exit_code == 0, (result.output, result.exception)
    entropic = {"roi entropic 2:4", "roi entropic 16:32"}
    assert {row["part"] for row in rows("mask-cost")} == {"products", "maskllm", "roi"} | entropic


def test_products_are_the_dense_model_its_masks_and_recovered_models(folder):
    assert bench(folder, "--only", "magnitude").exit_code == 0
    mask = folder / "work" / "general-magnitude.safetensors"
    texts = ["--data", folder / "learn.txt", "--held-out", folder / "learn.txt"]
    made = CliRunner().invoke(
        app,
        [
            str(word)
            for word in (
                "recover", "--model", folder / "model", "--mask", mask, *texts,
                "--steps", 4, "--sequence-length", 16, "--batch-size", 1, "--held-out-every", 2,
                "--set", "windows=2", "--set", "window_length=16",
                "--checkpoint", folder / "single", "--out", folder / "single.safetensors",
            )
        ],
    )  # fmt: skip
    assert made.exit_code == 0, (made.output, made.exception)
    arguments = ["products", "--swappable", mask]
    arguments += ["--single", f"{folder / 'single'}={folder / 'single.safetensors'}"]
    result = bench(folder, *arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    dense, swappable, single = rows("products")
    assert [row["product"] for row in (dense, swappable, single)] == [
        "dense",
        "swappable",
        "single",
    ]
    assert (dense["pattern"], swappable["pattern"], single["pattern"]) == ("dense", "2:4", "2:4")
    assert single["values"] == "bf16"
    assert single["tokens_seen"] == 2 * 16 + 4 * 16
    assert [tokens for tokens, _ in single["held_out_curve"]] == [0, 32, 64]
    assert swappable["mask_digest"] != single["mask_digest"]
    assert swappable["model_digest"] == dense["model_digest"] != single["model_digest"]
    assert len({row["wikitext2"] for row in (dense, swappable, single)}) == 3
    data = json.loads(Path("docs/results/products.json").read_text())
    assert data["shared_runs"] == {"wikitext2": 0.0, "c4": 0.0}
    assert "| single | 2:4 | bf16 |" in Path("docs/results/products.md").read_text()
    before = Path("docs/results/products.json").read_text()
    assert bench(folder, *arguments).exit_code == 0
    assert Path("docs/results/products.json").read_text() == before
    questions = [
        {"query": f"Question: is {n} even?", "choices": ["yes", "no"], "gold": n % 2}
        for n in range(7)
    ]
    asked = folder / "arc.jsonl"
    asked.write_text("".join(f"{json.dumps(question)}\n" for question in questions))
    result = bench(folder, *arguments, "--tasks", f"arc_easy={asked}")
    assert result.exit_code == 0, (result.output, result.exception)
    answered = rows("products")
    assert [row["wikitext2"] for row in answered] == [
        row["wikitext2"] for row in (dense, swappable, single)
    ]
    for row in answered:
        told = row["zero_shot"]
        assert told["questions"] == {"arc_easy": 7}
        right = bin(int(told["answers"]["arc_easy"], 16)).count("1")
        assert told["mean"] == told["arc_easy"] == round(right / 7, 4)
        assert told["values"] == "bf16"
    difference, error = accuracy_difference(answered[2], answered[0])
    assert difference == pytest.approx(
        answered[2]["zero_shot"]["mean"] - answered[0]["zero_shot"]["mean"], abs=1e-3
    )
    assert error >= 0
    fewer = bench(folder, *arguments, "--tasks", f"arc_easy={asked}", "--limit", 3)
    assert isinstance(fewer.exception, StaleRowsError)
    wrong = bench(folder, "products", "--single", f"{folder / 'model'}={mask}")
    assert "no recovery.json" in str(wrong.exception)
    wrong = bench(folder, "products", "--single", f"{folder / 'single'}={mask}", "--redo")
    assert "belongs to the base model" in str(wrong.exception)


def test_text_that_is_in_both_sets_is_counted():
    words = [str(n) for n in range(40)]
    learn = TextSet.of("learn", [" ".join(words[:20])])
    test = TextSet.of("test", [" ".join(words[10:40]), " ".join(words[:13])])
    assert shared_runs(learn, test, words=5) == (6 + 9) / (26 + 9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "maskllm.steps=0"], "greater than or equal to 1"),
        (["--set", "wanda.steps=3"], "METHOD.NAME=VALUE"),
        (["products", "--single", "nowhere"], "DIR=FILE"),
        (["domains", "--general", "g.safetensors", "--domain", "french"], "NAME=TRAIN,TEST"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(folder, arguments, message):
    result = bench(folder, *arguments)
    assert isinstance(result.exception, ValueError)
    assert message in str(result.exception)


def test_domains_need_a_general_mask_and_texts(folder):
    assert "Missing option '--general'" in bench(folder, "domains", "--domain", "a=b,c").output
    assert "Missing option '--domain'" in bench(folder, "domains", "--general", "g").output


def test_gap_closed():
    table = [
        {"method": "dense", "c4": 10.0},
        {"method": "sparsegpt-update", "c4": 1000.0},
        {"method": "maskllm", "c4": 100.0},
    ]
    assert gap_closed(table, "maskllm", "c4") == pytest.approx(0.5)


def test_masks_of_another_base_come_with_its_directory(folder):
    assert parse_base_and_mask("a.safetensors", "smollm2-135m") == (
        "smollm2-135m",
        Path("a.safetensors"),
    )
    mask = folder / "general.safetensors"
    mask.touch()
    assert parse_base_and_mask(f"{folder / 'model'}={mask}", "x") == (str(folder / "model"), mask)
    with pytest.raises(ValueError, match="is not DIR=FILE"):
        parse_base_and_mask("nowhere=a.safetensors", "x")


def test_a_league_of_another_name_keeps_to_its_pages(folder):
    refused = bench(folder, "--result", "quality")
    assert "'quality' is none of the league" in str(refused.exception)
    assert bench(folder, "--only", "dense", "--result", "masks-tiny").exit_code == 0
    assert [row["method"] for row in rows("masks-tiny")] == ["dense"]
