"""What the mask benchmarks share: the model, its texts, and making and scoring masks on them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console

from evaluation.perplexity import joined_tokens, measure_perplexity
from maskgen.format.digests import base_digest
from maskgen.format.json_file import read_json, write_json
from maskgen.format.mask import Mask, check_base
from maskgen.format.mask_file import read_mask, write_mask
from maskgen.format.pattern import TWO_FOUR, Pattern
from maskgen.format.tokenizer import ModelTokenizer
from maskgen.learn import LearnRequest, learn, parse_config
from maskgen.prune import PruneSettings, prune
from maskgen.registry import load_method
from maskgen.texts.text_sets import TextSet
from maskgen.torch_model import (
    TorchScorer,
    apply_to_module,
    load_model,
)


@dataclass(frozen=True, slots=True)
class Made:
    """A mask (none for the dense model), and what making it took.

    Attributes:
        model: the directory that it belongs to.
        row: fields for the result file.
    """

    model: Path
    mask: Mask | None
    row: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Workbench:
    """One model and a work folder in which unfinished runs, priors and masks are kept.

    Attributes:
        windows: calibration windows of one-shot methods.
        length: tokens in one of them.
        limit: windows that are evaluated; None for all.
        dtype: of weights and activations (`maskgen.torch_model.resolve_dtype`).
    """

    name: str
    directory: Path
    folder: Path
    console: Console
    windows: int = 64
    length: int = 1024
    limit: int | None = None
    dtype: str = "auto"

    def digest(self) -> str:
        """Base digest of the model."""
        return base_digest(self.directory)

    def dense(self) -> Made:
        """The model as it is."""
        return Made(self.directory, None, {"tokens_seen": 0, "seconds": 0.0})

    def given(self, path: Path) -> Made:
        """A mask that was made elsewhere; what it took is not known.

        Raises:
            MaskFileError: it belongs to another model.
        """
        mask = read_mask(path)
        check_base(mask, self.digest(), str(self.directory))
        row = {
            "bits_per_weight": round(8 * path.stat().st_size / mask.weights, 4),
            "tokens_seen": None,
            "seconds": None,
            "state_bytes_per_weight": None,
            "mask_digest": mask.digest,
            "file": str(path),
        }
        return Made(self.directory, mask, row)

    def pruned(self, method: str, texts: TextSet, label: str, pattern: Pattern = TWO_FOUR) -> Made:
        """A one-shot mask of the text; kept in the work folder under `label` and its pattern."""
        chosen = load_method(method, "prune")
        calibrated = chosen.uses_calibration
        if pattern != TWO_FOUR:
            label = f"{label}-{pattern.n}-{pattern.m}"
        checkpoint = self.folder / f"{label}-model" if chosen.updates_weights else None
        path = self.folder / f"{label}.safetensors"
        facts = path.with_suffix(".json")
        if not facts.is_file():
            self.console.print(f"{label}: pruning with {method}")
            result = prune(
                self.directory,
                texts if calibrated else None,
                PruneSettings(
                    method=method,
                    windows=self.windows,
                    length=self.length,
                    dtype=self.dtype,
                    checkpoint=checkpoint,
                    pattern=pattern,
                ),
            )
            self.folder.mkdir(parents=True, exist_ok=True)
            write_mask(path, result.mask)
            bits = 8 * path.stat().st_size / result.mask.weights
            row = {
                "bits_per_weight": None if checkpoint else round(bits, 4),
                "tokens_seen": result.tokens,
                "seconds": round(result.seconds, 1),
                "state_bytes_per_weight": None,
                "mask_digest": result.mask.digest,
            }
            write_json(facts, row)
        return Made(checkpoint or self.directory, read_mask(path), read_json(facts, ValueError))

    def prior(self, method: str, texts: TextSet, domain: str, pattern: Pattern = TWO_FOUR) -> Mask:
        """A one-shot mask of the domain's text to start from; kept like any other.

        Raises:
            ValueError: the method makes none.
        """
        mask = self.pruned(method, texts, f"{domain}-{method}", pattern).mask
        if mask is None:
            raise ValueError(f"{method} gave no mask to start from")
        return mask

    def learned(
        self,
        method: str,
        texts: TextSet,
        prior: Mask,
        settings: dict[str, Any],
        label: str,
        held_out: TextSet | None = None,
        parent: Mask | None = None,
        domain: str = "general",
    ) -> Made:
        """A learned mask; an interrupted run of the same label goes on where it was."""
        config = parse_config(method, settings)
        request = LearnRequest(
            method,
            config,
            self.folder / f"{label}.run",
            domain=domain,
            resume=True,
            dtype=self.dtype,
            held_out=held_out,
            held_out_every=max(config.steps // 10, 1) if held_out else 0,
        )
        self.console.print(f"{label}: learning with {method}, {config.steps} steps")
        result = learn(self.directory, texts, prior, request, self.console)
        path = self.folder / f"{label}.safetensors"
        write_mask(path, result.mask, parent=parent)
        log = [json.loads(line) for line in (request.folder / "log.jsonl").read_text().splitlines()]
        curve = [[r["tokens"], round(r["held_out"], 4)] for r in log if "held_out" in r]
        row = {
            "bits_per_weight": round(8 * path.stat().st_size / result.mask.weights, 5),
            "tokens_seen": result.tokens,
            "seconds": round(result.seconds, 1),
            "state_bytes_per_weight": result.state_bytes["total"],
            "changed_groups": round(result.changed, 5),
            "settings": config.model_dump(mode="json"),
            "mask_digest": result.mask.digest,
            "prior_digest": prior.digest,
            "held_out_curve": curve,
        }
        return Made(self.directory, result.mask, row)

    def perplexity(self, made: Made, texts: TextSet) -> float:
        """Standard protocol, windows of 2048."""
        return round(math.exp(fmean(self.losses(made, texts))), 3)

    def losses(self, made: Made, texts: TextSet) -> list[float]:
        """Mean loss of every window that `perplexity` is taken of, nats a token."""
        model = load_model(made.model, self.dtype)
        if made.mask is not None:
            apply_to_module(model, made.mask)
        tokenizer, scorer = ModelTokenizer(made.model), TorchScorer(model)
        losses: list[float] = []

        def score(tokens: Sequence[int]) -> float:
            total = scorer(tokens)
            losses.append(-total / (len(tokens) - 1))
            return total

        measure_perplexity(score, joined_tokens(tokenizer.encode, texts), windows=self.limit)
        return losses
