"""`twofour bench masks`: quality of masks by method, by domain, and by setting, row by row.

Learning and calibration see the learning text alone; perplexity is measured on other texts. Every
finished row is in the result file before the next begins, and an interrupted learning run goes on
from its last checkpoint, so the command can be stopped and started at any time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common.table import Row, Table
from benchmarks.masks.workbench import Made, Workbench
from maskgen.compare import compare
from maskgen.data import TextSet
from maskgen.graft import graft
from maskgen.maskfile import Mask

PRUNED = ("magnitude", "wanda", "ria", "sparsegpt", "sparsegpt-update")
SHORT = {"sequence_length": 512, "batch_size": 4}
FOCUSED = {"epsilon": 1e-4}
"""AdamW's epsilon near the gradient's size: groups that matter little stay (experiments.md)."""
MASKLLM = {
    **SHORT,
    **FOCUSED,
    "alpha": 10.0,
    "learning_rate": 6e-3,
    "final_learning_rate": 6e-4,
}
LEARNED: dict[str, dict[str, Any]] = {
    "maskllm": {
        **MASKLLM,
        "steps": 500,
        "learning_rate": 2.5e-3,
        "final_learning_rate": 2.5e-4,
        "kappa": (100.0, 250.0),
        "tau": (4.0, 0.3),
    },
    "roi": {
        **SHORT,
        **FOCUSED,
        "steps": 500,
        "learning_rate": 2e-3,
        "final_learning_rate": 2e-4,
        "scale": (0.01, 0.003),
        "tau": (0.6, 0.05),
        "margin": 0.08,
    },
    "maskpro": {
        **SHORT,
        "steps": 1500,
        "windows": 16,
        "strength": 8.0,
        "learning_rate": 45.0,
        "tracker_decay": 0.9,
        "debias_tracker": True,
        "clip": 0.15,
        "refresh_every": 24,
    },
}
"""The league's budgets: 2,048 tokens a step; short runs want a larger alpha and learning rate.

A longer run can wait for more evidence before a group changes: a lower rate, and masks that stay
soft for longer (kappa and tau), than the short runs of MASKLLM.
RoI cannot start as soft as MaskLLM: at a high temperature both of its choices fall on the same
weight, and noise scales kept weights by 1.3 and 0.7 (docs/experiments.md).
MaskPro gets ten times the paper's changes a sample, and is compared with what it has reached.
"""

PRIORS = {"maskpro": "magnitude"}
"""Where a learned method starts if not at SparseGPT's mask.

Nearly every change to that one should harm, so that a scalar reward a pass would find nothing
(docs/experiments.md).
"""

DOMAIN_STEPS = 100
ABLATION_STEPS = 50
ABLATIONS: dict[str, dict[str, dict[str, Any]]] = {
    "none": {"": {}},
    "prior": {"none": {"alpha": 0.0}, "magnitude": {}, "wanda": {}},
    "alpha": {f"{a:g}": {"alpha": a} for a in (3.0, 6.0, 20.0)},
    "kappa": {f"{k:g}": {"kappa": (k, 5 * k)} for k in (10.0, 1000.0)},
    "annealing": {"none": {"kappa": (100.0, 100.0), "tau": (4.0, 4.0)}},
    "regularisation": {f"{r:g}": {"regularisation": r} for r in (0.0, 1e-4)},
    "epsilon": {
        f"{e:g}": {"epsilon": e, "learning_rate": rate, "final_learning_rate": rate / 10}
        for e, rate in ((1e-8, 2e-3), (1e-5, 4e-3), (1e-3, 2e-2))
    },
}
"""What is changed -> value -> settings; the row `none` is MASKLLM as it is, to compare with.

A setting that makes the loss diverge is a row like any other, so nothing stops it.
Epsilon goes with a learning rate: what it takes from every step, the rate has to give back.
"""


@dataclass(frozen=True, slots=True)
class Domain:
    """Text of one domain, and how many seeds its row is repeated with."""

    name: str
    train: TextSet
    test: TextSet
    seeds: int = 1


@dataclass(frozen=True, slots=True)
class Texts:
    """What is learned on and what is measured on."""

    learn: TextSet
    wikitext2: TextSet
    c4: TextSet
    domains: tuple[Domain, ...] = field(default=())

    def digests(self) -> dict[str, str]:
        """Of every text, by the name that rows use."""
        found = {t.name: t.digest for t in (self.learn, self.wikitext2, self.c4)}
        for domain in self.domains:
            found |= {f"{domain.name}:train": domain.train.digest}
            found |= {f"{domain.name}:test": domain.test.digest}
        return found


Overrides = Mapping[str, Mapping[str, Any]]
"""Method -> settings that replace this file's."""


def league(
    bench: Workbench,
    texts: Texts,
    table: Table,
    changed: Overrides,
    only: set[str],
    given: Mapping[str, Path],
) -> None:
    """One row a method: dense, one-shot, learned; `given` names mask files to take as they are."""
    for method in ("dense", *PRUNED, *LEARNED):
        if only and method not in only:
            continue

        def measure(method: str = method) -> Row:
            if method in given:
                made = bench.given(given[method])
            else:
                made = _make(bench, texts, method, changed)
            wikitext2 = bench.perplexity(made, texts.wikitext2)
            return {**made.row, "wikitext2": wikitext2, "c4": bench.perplexity(made, texts.c4)}

        if table.measure((method,), measure):
            row = table[(method,)]
            bench.console.print(f"{method}: wikitext2 {row['wikitext2']}, c4 {row['c4']}")


def _make(bench: Workbench, texts: Texts, method: str, changed: Overrides) -> Made:
    if method == "dense":
        return bench.dense()
    if method in PRUNED:
        return bench.pruned(method, texts.learn, f"general-{method}")
    settings = {**LEARNED[method], **changed.get(method, {})}
    prior = _prior(bench, texts.learn, PRIORS.get(method, "sparsegpt"), "general")
    return bench.learned(method, texts.learn, prior, settings, f"general-{method}", texts.wikitext2)


def _prior(bench: Workbench, text: TextSet, method: str, domain: str) -> Mask:
    mask = bench.pruned(method, text, f"{domain}-{method}").mask
    if mask is None:
        raise ValueError(f"{method} gave no mask to start from")
    return mask


@dataclass(frozen=True, slots=True)
class General:
    """The general mask of the domain table, and the mask that it was learned from, if given."""

    mask: Mask
    prior: Mask | None = None


def domains(
    bench: Workbench, texts: Texts, table: Table, general: General, changed: Overrides
) -> None:
    """Dense and general mask, and three masks learned alike from different priors, by domain.

    Scratch starts from the same one-shot prior computed on the domain's own text, transfer from the
    general mask, graft from scratch's prior with the general mask's learned changes carried over.
    """
    for domain in texts.domains:
        unlearned: dict[str, float] = {}
        for seed in range(domain.seeds):
            measure = partial(_domain_row, bench, domain, seed, general, changed, unlearned)
            table.measure((domain.name, seed), measure)
            row = table[(domain.name, seed)]
            unlearned = {arm: row[arm] for arm in ("dense", "general")}  # no seed changes them
            bench.console.print(str(row))


def _domain_row(
    bench: Workbench,
    domain: Domain,
    seed: int,
    general: General,
    changed: Overrides,
    unlearned: Mapping[str, float],
) -> Row:
    settings = {**MASKLLM, "steps": DOMAIN_STEPS, **changed.get("maskllm", {}), "seed": seed}
    label = f"{domain.name}-{seed}"
    prior = _prior(bench, domain.train, "sparsegpt", domain.name)
    starts = {"scratch": prior, "transfer": general.mask}
    if general.prior is not None:
        starts["graft"] = graft(prior, general.mask, general.prior)
    learned = {
        arm: bench.learned(
            "maskllm",
            domain.train,
            start,
            settings,
            f"{label}-{arm}",
            parent=general.mask,
            domain=domain.name,
        )
        for arm, start in starts.items()
    }
    arms = {"dense": bench.dense(), "general": Made(bench.directory, general.mask, {}), **learned}
    row: Row = {
        arm: unlearned[arm] if arm in unlearned else bench.perplexity(made, domain.test)
        for arm, made in arms.items()
    }
    for arm, made in learned.items():
        if made.mask is not None:
            _, difference = compare(made.mask, general.mask)
            row[f"{arm}_changed_groups"] = round(difference.changed_share, 5)
            row[f"{arm}_bits_per_weight"] = made.row["bits_per_weight"]
            row[f"{arm}_entropy_per_weight"] = round(difference.bits_per_weight, 5)
            row[f"{arm}_digest"] = made.mask.digest
    taken = {name: learned["transfer"].row[name] for name in ("tokens_seen", "seconds")}
    return {**row, **taken, "steps": int(settings["steps"])}


def ablations(bench: Workbench, texts: Texts, table: Table, changed: Overrides) -> None:
    """MaskLLM with one setting changed at a time."""
    for what, values in ABLATIONS.items():
        for value, ablated in values.items():

            def measure(
                what: str = what, value: str = value, ablated: dict[str, Any] = ablated
            ) -> Row:
                method = value if value in PRUNED else "sparsegpt"
                prior = _prior(bench, texts.learn, method, "general")
                settings = {
                    **MASKLLM,
                    "steps": ABLATION_STEPS,
                    "divergence": 1e3,
                    **changed.get("maskllm", {}),
                    **ablated,
                }
                made = bench.learned(
                    "maskllm", texts.learn, prior, settings, f"ablation-{what}-{value}"
                )
                scores = {t: bench.perplexity(made, getattr(texts, t)) for t in ("wikitext2", "c4")}
                return {**made.row, **scores}

            if table.measure((what, value), measure):
                bench.console.print(f"{what} {value}: {table[(what, value)]}")


def gap_closed(rows: list[Row], method: str, text: str) -> float:
    """Share of the log-perplexity gap from sparsegpt-update to dense that a method closes."""
    by_method = {row["method"]: math.log(row[text]) for row in rows}
    gap = by_method["sparsegpt-update"] - by_method["dense"]
    return (by_method["sparsegpt-update"] - by_method[method]) / gap
