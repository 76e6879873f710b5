"""The committed pages and tables are what the committed results say."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from benchmarks.families import family_rows
from benchmarks.guides import fill
from benchmarks.pages import page_of, write_pages
from tests.test_docs import check_command

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
FILES = sorted(RESULTS.glob("*.json"))
EVALUATION = "docs/evaluation.md"
AGAIN = "run twofour bench pages"
OTHER_TARGETS = ("python -m benchmarks.gpu", "make test-clients")
"""What make gpu runs, and what make bench leaves to a target of its own."""


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_page_is_what_the_result_says(file: Path) -> None:
    page = page_of(file.stem)(json.loads(file.read_text()))
    assert file.with_suffix(".md").read_text() == page, AGAIN


@pytest.mark.parametrize(
    "guide", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda path: path.name
)
def test_the_tables_of_guides_are_what_the_results_say(guide: Path) -> None:
    assert fill(guide.read_text(), RESULTS) == guide.read_text(), AGAIN


def test_every_page_is_listed_and_has_a_result(tmp_path: Path) -> None:
    pages = {path.stem for path in RESULTS.glob("*.md")} - {"README"}
    assert pages == {path.stem for path in FILES}
    listed = re.findall(r"\]\((\S+)\.md\)", (RESULTS / "README.md").read_text())
    assert sorted(set(listed) - {"../evaluation"}) == sorted(pages)
    copy = tmp_path / "docs" / "results"
    copy.mkdir(parents=True)
    (copy / "serve.json").write_bytes((RESULTS / "serve.json").read_bytes())
    assert [path.name for path in write_pages(tmp_path)] == ["serve.md", "README.md"]


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").iterdir()), ids=lambda p: p.name)
def test_recipes_use_options_that_exist(recipe: Path) -> None:
    subprocess.run(["bash", "-n", recipe], check=True)
    text = recipe.read_text().replace("\\\n", " ").replace('"$@" ', "twofour ")
    for command in re.findall(r"^ *(twofour .*)", text, re.M):
        check_command(re.sub(r'"\$\{\w+\[@\]\}"|"\$\w+[^"]*"', "FILE", command), recipe.name)


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.sh")), ids=lambda p: p.name)
def test_recipes_say_what_they_take_and_which_text_is_missing(recipe: Path) -> None:
    unused = [recipe.with_name("none")] * 4
    missing = subprocess.run([recipe, *unused], capture_output=True, text=True, check=False)
    assert missing.returncode == 1
    assert re.match(rf"error: {unused[0]}\S* is missing", missing.stderr)
    alone = subprocess.run([recipe], capture_output=True, text=True, check=False)
    assert alone.returncode == 1
    assert "usage: " in alone.stderr


def test_the_families_are_those_that_are_declared() -> None:
    result = json.loads((RESULTS / "models.json").read_text())
    assert result["rows"] == family_rows(), "run twofour bench models"


def test_a_result_that_nothing_renders_is_refused() -> None:
    assert page_of("bench-engine-1b") is page_of("bench-engine")
    assert page_of("mask-cost") is not page_of("masks")
    with pytest.raises(ValueError, match="no page is known for speed; results are kernels"):
        page_of("speed")
    with pytest.raises(ValueError, match="no table is known for speed"):
        fill("<!-- begin results/speed.json -->\n\n<!-- end results/speed.json -->")


def test_a_table_takes_the_place_of_what_was_there() -> None:
    begin, end = "<!-- begin results/serve.json -->", "<!-- end results/serve.json -->"
    once = fill(f"before\n\n{begin}\n\nold\n\n{end}\n\nafter", RESULTS)
    assert "old" not in once
    assert once.startswith(f"before\n\n{begin}\n\n| arm |")
    assert once.endswith(f"|\n\n{end}\n\nafter")
    assert fill(once, RESULTS) == once


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_commands_name_no_folder_of_one_machine(file: Path) -> None:
    result = json.loads(file.read_text())
    commands = [result["command"], *(part["command"] for part in result.get("parts", []))]
    assert not [text for text in commands if re.search(r"(^|[\s=,])/", text)]


def test_make_bench_runs_the_command_of_every_result(tmp_path: Path) -> None:
    prepared = ("setup", ".venv-vllm/.ready", ".venv-guidellm/.ready")
    recipe = subprocess.run(
        ["make", "-n", *(f"-o{target}" for target in prepared), "bench"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "benchmarks/run_all.sh .venv/bin data" in recipe
    run = [line.partition("bin/twofour ")[2] for line in recipe.splitlines()]
    # The script, with commands that write down what they are asked for.
    for name in ("twofour", "python", "llama-perplexity"):
        tool = tmp_path / "bin" / name
        tool.parent.mkdir(exist_ok=True)
        tool.write_text('#!/bin/sh\necho "$(basename "$0") $*" >> calls\n')
        tool.chmod(0o755)
    texts = re.findall(r"`((?:eval|general|domains)/\S+)` \|", (ROOT / EVALUATION).read_text())
    script = [ROOT / "benchmarks" / "run_all.sh", tmp_path / "bin", tmp_path / "data"]
    missing = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert missing.returncode == 1
    assert f"eval/wiki.test.raw is missing; {EVALUATION} says where to get it" in missing.stderr
    for text in texts:
        file = tmp_path / "data" / text
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    subprocess.run(script, cwd=tmp_path, check=True, env=os.environ | {"PATH": path})
    calls = (tmp_path / "calls").read_text().splitlines()
    run += [call.removeprefix("twofour ") for call in calls]
    for file in FILES:
        command = json.loads(file.read_text())["command"].split("; ")[-1]
        if command in OTHER_TARGETS or file.stem == "learning-step":  # needs an earlier build
            continue
        words = re.match(r"(?:twofour )?(bench \w+(?: [a-z]+(?!\S))?|python -m [\w.]+)", command)
        assert words, command
        name = file.stem.removesuffix("-avx512")
        named = f"--result {name}" if name.startswith("bench-engine-") else ""
        fitting = [line for line in run if line.startswith(words[1]) and named in line]
        assert fitting, f"{file.name}: make bench does not run {words[1]} {named}"
    for call in calls:
        if call.startswith("twofour "):
            check_command(call, "run_all.sh")
