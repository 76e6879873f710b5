"""Runs what the scheduler decided: one native step, then sampling and text for every sequence."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engines.base import GenerationChunk
from engines.cpu.model import PAGE_POSITIONS, CpuModel
from engines.cpu.scheduler import Scheduled, Scheduler
from engines.cpu.sequence import Sequence
from engines.decoding.request_checks import scored
from engines.decoding.sampler import Sampled, logprobs_of, sample
from engines.native._native import Step

Delivery = tuple[Sequence, GenerationChunk]


@dataclass
class Counters:
    """What the engine has done so far."""

    steps: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    mask_switches: int = 0


class Runner:
    """Executes steps on one model; called from the engine's thread only."""

    def __init__(self, model: CpuModel, scheduler: Scheduler) -> None:
        self._model = model
        self._scheduler = scheduler
        self._last_weights = -1
        self.counters = Counters()

    def run(self, scheduled: Many[Scheduled]) -> list[Delivery]:
        """Compute one step and finish what ends with it; the chunks to deliver.

        A sequence that fails is ended with reason `error`; the others are not affected.
        """
        # Tokens of the same weights side by side: each set is then read once.
        batch = sorted(scheduled, key=_weights_and_mask)
        try:
            logits = self._model.step(self._arrays(batch))
        except Exception as error:
            if len(batch) == 1:
                return [self._fail(batch[0].sequence, str(error) or type(error).__name__)]
            return [delivery for share in batch for delivery in self.run([share])]
        self._count(batch)
        return self._finish(batch, logits)

    def _arrays(self, batch: Many[Scheduled]) -> Step:
        counts = [s.count for s in batch]
        begin = np.zeros(len(batch) + 1, np.int32)
        np.cumsum(counts, out=begin[1:])
        tokens = [t for s in batch for t in s.sequence.tokens[s.start : s.start + s.count]]
        width = max(-(-(s.start + s.count) // PAGE_POSITIONS) for s in batch)
        pages = np.zeros((len(batch), width), np.int32)
        rows: list[int] = []
        for i, share in enumerate(batch):
            held = share.sequence.pages[:width]
            pages[i, : len(held)] = held
            rows += self._logit_rows(share, int(begin[i]))
        return Step(
            tokens=np.array(tokens, np.int32),
            token_begin=begin,
            start=np.array([s.start for s in batch], np.int32),
            pages=pages,
            masks=np.array([s.sequence.variant.native for s in batch], np.int32),
            logit_rows=np.array(rows, np.int32),
        )

    @staticmethod
    def _logit_rows(share: Scheduled, first: int) -> list[int]:
        if share.sequence.wants_prompt_rows:
            return list(range(first, first + share.count))
        return [first + share.count - 1] if share.samples else []

    def _count(self, batch: Many[Scheduled]) -> None:
        counters = self.counters
        counters.steps += 1
        for share in batch:
            prompt = min(share.sequence.prompt_length, share.start + share.count) - share.start
            counters.prompt_tokens += max(prompt, 0)
            if share.sequence.variant.weights != self._last_weights:
                counters.mask_switches += self._last_weights >= 0
                self._last_weights = share.sequence.variant.weights

    def _finish(self, batch: Many[Scheduled], logits: npt.NDArray[np.float32]) -> list[Delivery]:
        """Sample for the sequences whose known tokens are all computed; end those only scored."""
        done: list[Delivery] = []
        rows: list[int] = []
        sampling: list[Sequence] = []
        row = 0
        for share in batch:
            self._scheduler.advance(share)
            sequence = share.sequence
            if sequence.wants_prompt_rows:
                self._read_prompt_rows(share, logits[row : row + share.count])
                row += share.count
            elif share.samples:
                row += 1
            if share.samples:
                rows.append(row - 1)
                sampling.append(sequence)
            elif share.is_last:
                done.append(self._scored(sequence))
        if not sampling:
            return done
        chosen = logits if len(rows) == len(logits) else logits[rows]
        results = sample(chosen, [s.sampler for s in sampling])
        return done + [self._push(s, result) for s, result in zip(sampling, results, strict=True)]

    @staticmethod
    def _read_prompt_rows(share: Scheduled, logits: npt.NDArray[np.float32]) -> None:
        sequence = share.sequence
        alternatives = sequence.prompt_logprobs or 0
        for i in range(share.count):
            following = share.start + i + 1
            if following < sequence.prompt_length:
                token = sequence.tokens[following]
                sequence.prompt_rows.append(logprobs_of(logits[i], token, alternatives))

    def _push(self, sequence: Sequence, sampled: Sampled) -> Delivery:
        if sampled.error is not None:
            return self._fail(sequence, sampled.error, invalid=sampled.invalid)
        sequence.tokens.append(sampled.token_id)
        self.counters.generation_tokens += 1
        constraint = sequence.sampler.constraint
        try:
            piece = sequence.text.push(
                sampled.token_id,
                constraint_finished=constraint is not None and constraint.finished,
            )
        except Exception as error:
            return self._fail(sequence, str(error) or type(error).__name__)
        first = not sequence.started
        prompt = tuple(sequence.prompt_rows) if sequence.wants_prompt_rows else None
        sequence.started = True
        if piece.finish_reason is not None:
            self._scheduler.remove(sequence)
        return sequence, GenerationChunk(
            index=sequence.index,
            text=piece.text,
            token_ids=(sampled.token_id,),
            logprobs=None if sampled.logprobs is None else (sampled.logprobs,),
            prompt_logprobs=prompt,
            finish_reason=piece.finish_reason,
            stop_reason=piece.stop_reason,
            cached_tokens=sequence.cached_tokens if first else 0,
        )

    def _scored(self, sequence: Sequence) -> Delivery:
        self._scheduler.remove(sequence)
        return sequence, scored(sequence.index, sequence.prompt_rows, sequence.cached_tokens)

    def _fail(self, sequence: Sequence, message: str, *, invalid: bool = False) -> Delivery:
        self._scheduler.remove(sequence)
        return sequence, GenerationChunk(
            sequence.index, "", (), finish_reason="error", error=message, invalid=invalid
        )


def _weights_and_mask(scheduled: Scheduled) -> tuple[int, int]:
    variant = scheduled.sequence.variant
    return variant.weights, variant.native
