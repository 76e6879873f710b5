"""A `Subject` as lm-eval's `LM`. Imported only when tasks are run: it needs lm-eval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from evaluation.subject import Subject

_DEFAULT_CONTEXT = 2048  # where the subject does not say how many tokens it takes


class SubjectLM(TemplateLM):  # type: ignore[misc]  # lm-eval is not typed
    """Scores continuations with `subject.token_scores`.

    Args:
        subject: what to measure.
        progress: called with (requests scored, requests in all).
    """

    def __init__(self, subject: Subject, progress: Callable[[int, int], None]) -> None:
        super().__init__()
        self._subject = subject
        self._progress = progress
        self._window = subject.context_length or _DEFAULT_CONTEXT

    @property
    def eot_token_id(self) -> int:
        """What stands before a text that has no context: BOS.

        Raises:
            ValueError: the tokenizer has none.
        """
        if self._subject.bos_token_id is None:
            raise ValueError("the task scores text without context, the tokenizer has no BOS token")
        return self._subject.bos_token_id

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: object
    ) -> list[int]:
        """Token ids; special tokens as the tokenizer is set to, or none at all."""
        ids = list(self._subject.encode(string))
        first = list(self._subject.encode(""))
        if add_special_tokens is False and ids[: len(first)] == first:
            return ids[len(first) :]
        return ids

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        """See lm-eval's `LM`; without its bar, since the caller shows its own."""
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm)
        return found

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: object
    ) -> list[tuple[float, bool]]:
        found = []
        for number, (_text, context, continuation) in enumerate(requests, 1):
            found.append(self._score(context, continuation))
            self._progress(number, len(requests))
        return found

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = True
    ) -> list[float]:
        """Log-probability of whole texts, each token predicted once; see lm-eval's `LM`."""
        found = []
        for number, request in enumerate(requests, 1):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0], add_special_tokens=False),
                prefix_token=self.prefix_token_id,
                max_seq_len=self._window - 1,
                context_len=1,
            )
            found.append(sum(self._score(*make_disjoint_window(w))[0] for w in windows))
            self._progress(number, len(requests))
        return found

    def _score(self, context: list[int], continuation: list[int]) -> tuple[float, bool]:
        """Log-probability of `continuation`, and whether it is what greedy decoding gives."""
        if len(continuation) >= self._window:
            raise ValueError(
                f"a continuation of {len(continuation)} tokens does not fit the model's context"
                f" of {self._window}"
            )
        tokens = [*context, *continuation][-self._window :]  # the oldest context goes
        scores = self._subject.token_scores(tokens)[-len(continuation) :]
        return sum(score.logprob for score in scores), all(score.greedy for score in scores)

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """Never called: `run_tasks` refuses tasks that generate."""
        raise NotImplementedError("tasks that generate text are not supported")
