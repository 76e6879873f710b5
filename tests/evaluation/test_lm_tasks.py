"""lm-eval's tasks on a model and on an engine directory, from local files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lm_eval.tasks.manager
import pytest
from lm_eval.tasks._index import TaskIndex
from typer.testing import CliRunner

from engines.cpu.build import build
from engines.directory.build import BuildRequest
from engines.registry import run_builder
from maskgen.format.tokenizer import ModelTokenizer
from maskgen.torch_model import TorchScorer, load_model
from tests.engines.conftest import random_mask
from tests.tiny_model import make_tiny_llama
from twofour.cli import app

QUESTIONS = [
    {"query": "Question: What carried the timber?", "choices": ["the river", "a lantern"]},
    {"query": "Question: What froze?", "choices": ["the wheel stood", "the water", "March"]},
    {"query": "Question: Who held a lantern?", "choices": ["le plus", "men", "the mill", "def"]},
]
GOALS = [
    {"goal": "sort timber", "sol1": "by length and weight", "sol2": "by the light of a lantern"},
    {"goal": "add", "sol1": "return left", "sol2": "return left + right"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model/`, a mask, a CPU engine and a reference engine of them, and two task files."""
    folder = tmp_path_factory.mktemp("tasks")
    model = make_tiny_llama(folder / "model", bos=True)
    mask = random_mask(model, folder / "mask.safetensors")
    build(BuildRequest(model, "tiny", {"general": mask}, folder / "cpu"))
    run_builder("reference", BuildRequest(model, "tiny", {"general": mask}, folder / "reference"))
    arc = [{**question, "gold": number % 2} for number, question in enumerate(QUESTIONS)]
    piqa = [{**goal, "label": 1} for goal in GOALS]
    for name, rows in (("arc", arc), ("piqa", piqa)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def evaluate(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["eval", "--json", *arguments])
    assert result.exit_code == 0, result.output + repr(result.exception)
    values: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return values


def accuracy(model: Path) -> float:
    """What lm-eval's `acc` of the ARC file must be, counted by hand."""
    score = TorchScorer(load_model(model, "fp32"))
    encode = ModelTokenizer(model).encode
    right = 0
    for number, question in enumerate(QUESTIONS):
        context = f"{question['query']}\nAnswer:"
        sums = []
        for choice in question["choices"]:
            whole = encode(f"{context} {choice}")
            start = len(encode(context))
            sums.append(sum(logprob for logprob, _ in score.tokens(whole)[start - 1 :]))
        right += sums.index(max(sums)) == number % 2
    return right / len(QUESTIONS)


def test_accuracy_is_what_counting_by_hand_gives(folder: Path) -> None:
    tasks = f"arc_easy={folder / 'arc.jsonl'},piqa={folder / 'piqa.jsonl'}"
    found = evaluate("--model", str(folder / "model"), "--dtype", "fp32", "--tasks", tasks)
    assert found["tasks"]["arc_easy"]["acc"] == pytest.approx(accuracy(folder / "model"))
    assert found["tasks"]["arc_easy"]["samples"] == 3
    assert found["tasks"]["piqa"]["samples"] == 2
    assert found["tasks"]["piqa"].keys() >= {"acc", "acc_norm", "acc_stderr"}


def test_engines_give_what_the_masked_model_gives(folder: Path) -> None:
    tasks = ["--tasks", f"arc_easy={folder / 'arc.jsonl'}", "--limit", "2"]
    model = ["--model", str(folder / "model"), "--mask", str(folder / "mask.safetensors")]
    expected = evaluate(*model, "--dtype", "fp32", *tasks)
    for engine in ("cpu", "reference"):
        found = evaluate(str(folder / engine), *tasks)
        assert found["tasks"] == expected["tasks"], engine
        assert (found["model"], found["mask"], found["limit"]) == ("tiny", "general", 2)
    assert expected["tasks"]["arc_easy"]["samples"] == 2


def test_perplexity_of_the_cpu_engine_agrees_with_torch(folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The river carried the timber down to the mill, in March. " * 40)
    data = ["--data", str(text), "--window", "128"]
    model = ["--model", str(folder / "model"), "--mask", str(folder / "mask.safetensors")]
    in_torch = evaluate(*data, *model, "--dtype", "fp32")
    engine = evaluate(*data, str(folder / "cpu"))
    assert engine["perplexity"] == pytest.approx(in_torch["perplexity"], rel=5e-3)
    dense = evaluate(*data, *model[:2], "--dtype", "fp32")
    assert abs(dense["perplexity"] / in_torch["perplexity"] - 1) > 0.05


ROLLING = """\
task: tiny_text
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{{{goal}}}} {{{{sol1}}}}"
process_results: !function score.words
metric_list:
  - metric: word_perplexity
"""


@dataclass
class Library:
    """A small folder in place of lm-eval's own definitions, which take long to read."""

    folder: Path
    indexed: list[Path]


@pytest.fixture
def library(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Library:
    library = Library(tmp_path_factory.mktemp("library"), [])
    build_index = TaskIndex.build

    def recording(self: TaskIndex, paths: list[Path], **options: bool) -> dict[str, Any]:
        library.indexed.extend(paths)
        return build_index(paths, **options)

    monkeypatch.setattr(lm_eval.tasks.manager, "__file__", str(library.folder / "manager.py"))
    monkeypatch.setattr(TaskIndex, "build", recording)
    return library


def test_own_definitions_and_texts_without_context(
    folder: Path, tmp_path: Path, library: Library
) -> None:
    (tmp_path / "tiny.yaml").write_text(ROLLING.format(file=folder / "piqa.jsonl"))
    (tmp_path / "score.py").write_text(
        "def words(doc, results):\n    return {'word_perplexity': (results[0], 4)}\n"
    )
    options = ["--tasks", "tiny_text", "--task-folder", str(tmp_path)]
    model = ["--model", str(folder / "model"), "--dtype", "fp32"]
    masked = evaluate(*model, "--mask", str(folder / "mask.safetensors"), *options)
    values = [
        found["tasks"]["tiny_text"]["word_perplexity"]
        for found in (masked, evaluate(str(folder / "cpu"), *options), evaluate(*model, *options))
    ]
    assert values[1] == pytest.approx(values[0], rel=0.02)
    assert values[2] != pytest.approx(values[0], rel=0.05)  # without the mask
    assert set(library.indexed) == {tmp_path}, "the library's names are not needed"


def test_names_of_the_library(folder: Path, library: Library) -> None:
    definition = ROLLING.replace("!function score.words", "!function score.count")
    (library.folder / "tiny.yaml").write_text(definition.format(file=folder / "piqa.jsonl"))
    (library.folder / "score.py").write_text(
        "def count(doc, results):\n    return {'word_perplexity': (results[0], 4)}\n"
    )
    model = ["--model", str(folder / "model"), "--dtype", "fp32"]
    found = evaluate(*model, "--tasks", f"tiny_text,arc_easy={folder / 'arc.jsonl'}")
    assert found["tasks"].keys() == {"tiny_text", "arc_easy"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --data for perplexity, --tasks for tasks"),
        (["--data", "x", "--limit", "3"], "need --tasks"),
        (["--tasks", "hellaswag=FILE"], "a file can be given to arc_easy, piqa"),
        (["--tasks", "arc_easy=/no/such.jsonl"], "there is no file '/no/such.jsonl'"),
        (["--tasks", "no_such_task"], "no_such_task"),
    ],
)
def test_tasks_that_cannot_be_run(
    folder: Path, library: Library, arguments: list[str], message: str
) -> None:
    command = ["eval", "--model", str(folder / "model"), *arguments]
    result = CliRunner().invoke(app, command)
    assert result.exit_code != 0
    assert message in str(result.exception)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"txt": "x"}', "line 1: lacks the field 'query'"),
        ('{"query": "x", "choices": ["a"]}', "line 1: lacks the field 'gold'"),
        ("nothing", "line 1: not JSON"),
        ("", "line 1: not JSON"),
    ],
)
def test_a_file_of_another_form_is_refused_before_questions_are_asked(
    folder: Path, tmp_path: Path, line: str, message: str
) -> None:
    (tmp_path / "odd.jsonl").write_text(line)
    words = ["eval", "--model", str(folder / "model"), "--tasks", f"arc_easy={tmp_path}/odd.jsonl"]
    assert message in str(CliRunner().invoke(app, words).exception)
