"""lm-eval: a task of two questions and one of a generation, on questions that the test wrote."""

import sys
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI
from scenario import main

DATA = {
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": sys.argv[4]}},
    "test_split": "test",
    "doc_to_text": "{{question}}",
}


def choices() -> ConfigurableTask:
    """The task whose answer is the likeliest of the choices."""
    return ConfigurableTask(
        config={
            "task": "choices",
            "output_type": "multiple_choice",
            "doc_to_choice": "choices",
            "doc_to_target": "{{answer}}",
            "metric_list": [{"metric": "acc"}],
            **DATA,
        }
    )


def sayings() -> ConfigurableTask:
    """The task whose answer is written."""
    return ConfigurableTask(
        config={
            "task": "sayings",
            "output_type": "generate_until",
            "doc_to_target": "{{choices[answer]}}",
            "generation_kwargs": {"until": ["\n\n\n"], "max_gen_toks": 16, "temperature": 0},
            "metric_list": [{"metric": "exact_match"}],
            **DATA,
        }
    )


def evaluate(model: Any, task: ConfigurableTask, **options: Any) -> Any:
    found = simple_evaluate(model=model, tasks=[task], log_samples=True, **options)
    (samples,) = found["samples"].values()
    (scores,) = found["results"].values()
    return {
        "scores": {name: value for name, value in scores.items() if name != "alias"},
        "samples": [sample["resps"] for sample in samples],
        "prompts": [list(sample["arguments"].values()) for sample in samples]
        if isinstance(samples[0]["arguments"], dict)
        else [sample["arguments"] for sample in samples],
    }


def completions(url: str, model: str) -> Any:
    """Log-likelihoods and generation, with the server's own tokenizer."""
    remote = LocalCompletionsAPI(
        base_url=f"{url}/v1/completions",
        model=model,
        tokenizer_backend="remote",
        max_retries=1,
        num_concurrent=2,
    )
    return {
        "encoded": remote.tok_encode("The river Rhine"),
        "choices": evaluate(remote, choices()),
        "sayings": evaluate(remote, sayings()),
    }


def chat(url: str, model: str) -> Any:
    spoken = LocalChatCompletion(
        base_url=f"{url}/v1/chat/completions",
        model=model,
        tokenizer_backend=None,
        tokenized_requests=False,
        max_retries=1,
    )
    return evaluate(spoken, sayings(), apply_chat_template=True)


Path(sys.argv[4]).resolve(strict=True)
main({"completions": completions, "chat": chat})
