"""lm-eval tasks on everything that `twofour eval` can score: a model, an engine, a server.

The library poses the questions and counts the answers; log-probabilities come from the same
`Subject` that perplexity is measured with.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

    from evaluation.subject import Subject

DEFINITIONS = Path(__file__).with_name("tasks")
"""Tasks that read a local file: `NAME=FILE`."""

SCORED = ("multiple_choice", "loglikelihood", "loglikelihood_rolling")

TaskProgress = Callable[[int, int], None]
"""Called with (requests scored, requests in all)."""


class TaskError(ValueError):
    """A task is unknown, its file is not what it needs, or lm-eval is not installed."""


def run_tasks(
    subject: Subject,
    specs: Sequence[str],
    *,
    limit: int | None = None,
    fewshot: int | None = None,
    folder: Path | None = None,
    progress: TaskProgress = lambda done, count: None,
    answers: dict[str, list[bool]] | None = None,
) -> dict[str, dict[str, Any]]:
    """Measure tasks.

    Args:
        subject: what to measure.
        specs: `NAME=FILE` for a task of `DEFINITIONS`, or the name of one of lm-eval's own tasks,
            whose data comes from the hub.
        limit: only the first questions of every task.
        fewshot: examples before every question; None for the task's own number.
        folder: more definitions (YAML) of tasks, as lm-eval takes them.
        progress: told about every scored request.
        answers: is given, for every task, which questions were answered rightly, in
            the order of the questions.

    Returns:
        Task or group name -> its metrics and, of a task, `samples`: the number of questions.

    Raises:
        TaskError: see there.
    """
    try:
        import datasets
        from lm_eval import simple_evaluate
    except ImportError as error:
        raise TaskError(f"tasks need lm-eval ({error}): pip install 'twofour[eval]'") from error
    from evaluation.lm_adapter import SubjectLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    wanted = [_local_task(spec) if "=" in spec else spec for spec in specs]
    manager = _task_manager({task for task in wanted if isinstance(task, str)}, folder)
    try:
        loaded = manager.load(copy.deepcopy(wanted))["tasks"].values()
    except (KeyError, OSError, ValueError) as error:
        raise TaskError(f"tasks {', '.join(specs)} cannot be loaded: {error}") from error
    for task in loaded:
        if task.OUTPUT_TYPE not in SCORED:
            raise TaskError(
                f"task {task.task_name} is of type {task.OUTPUT_TYPE}, which generates text;"
                f" only these types are scored: {', '.join(SCORED)}"
            )
    result = simple_evaluate(
        SubjectLM(subject, progress),
        tasks=wanted,
        task_manager=manager,
        num_fewshot=fewshot,
        limit=limit,
        log_samples=answers is not None,
    )
    if answers is not None:
        for name, asked in result["samples"].items():
            ordered = sorted(asked, key=lambda question: int(question["doc_id"]))
            found = [question.get("acc") for question in ordered]
            if any(accuracy not in (0, 1) for accuracy in found):
                raise TaskError(f"task {name} has no answers that are right or wrong (its acc)")
            answers[name] = [accuracy == 1 for accuracy in found]
    samples = result["n-samples"]
    return {
        name: {
            **{_metric(key): value for key, value in found.items() if "," in key},
            **({"samples": samples[name]["effective"]} if name in samples else {}),
        }
        for name, found in result["results"].items()
    }


def _task_manager(names: set[str], folder: Path | None) -> TaskManager:
    """A manager that knows the tasks of `folder` and, where one of `names` needs them, lm-eval's.

    lm-eval reads 13,000 files to learn its own names, which takes minutes on a busy machine.
    """
    from lm_eval.tasks import TaskManager

    own = None if folder is None else str(folder)
    manager = TaskManager(include_path=own, include_defaults=False)
    # Groups and tags may take in tasks from anywhere.
    if names <= set(manager.all_subtasks):
        return manager
    return TaskManager(include_path=own)


def _local_task(spec: str) -> dict[str, Any]:
    import yaml

    name, _, file = spec.partition("=")
    definition = DEFINITIONS / f"{name}.yaml"
    if not definition.is_file():
        known = ", ".join(sorted(path.stem for path in DEFINITIONS.glob("*.yaml")))
        raise TaskError(f"--tasks {spec!r}: a file can be given to {known}")
    if not Path(file).is_file():
        raise TaskError(f"--tasks {spec!r}: there is no file {file!r}")
    config: dict[str, Any] = yaml.safe_load(definition.read_text(encoding="utf-8"))
    _check_fields(Path(file), config)
    return config | {"dataset_kwargs": {"data_files": {"test": str(Path(file).resolve())}}}


def _check_fields(file: Path, config: Mapping[str, Any]) -> None:
    """Raise TaskError unless the file's first line has the fields that the task reads."""
    from jinja2 import Environment, TemplateSyntaxError, meta

    with file.open("rb") as lines:
        first = next(lines, b"")
    try:
        found = json.loads(first)
    except ValueError as error:
        raise TaskError(f"{file}, line 1: not JSON: {error}") from error
    for key in ("doc_to_text", "doc_to_target", "doc_to_choice"):
        said = config.get(key)
        if not isinstance(said, str):
            continue
        try:
            names = meta.find_undeclared_variables(Environment().parse(said))
        except TemplateSyntaxError:
            continue
        names = names if "{" in said else {said}
        for name in sorted(names):
            if not isinstance(found, dict) or name not in found:
                raise TaskError(f"{file}, line 1: lacks the field {name!r} that the task reads")


def _metric(key: str) -> str:
    """`acc,none` -> `acc`: metrics here have no filters but the default one."""
    name, _, chosen = key.partition(",")
    return name if chosen == "none" else key
