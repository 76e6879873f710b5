"""`twofour bench masks domains`: masks learned for a domain, from three starts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from benchmarks.common.result_file import ResultRow
from benchmarks.common.table import Table
from benchmarks.masks.settings import ENTROPIC, Overrides
from benchmarks.masks.texts import Domain
from benchmarks.masks.workbench import Made, Workbench
from maskgen.compare import compare
from maskgen.format.mask import Mask
from maskgen.graft import graft

KEY = ("domain", "seed")
"""What names a row."""

METHOD = "roi"
STARTS = ("scratch", "transfer", "graft")
DOMAIN_STEPS = 100


@dataclass(frozen=True, slots=True)
class General:
    """The general mask of the domain table, and the mask that it was learned from, if given."""

    mask: Mask
    prior: Mask | None = None


def run_domains(
    bench: Workbench,
    domains: Sequence[Domain],
    table: Table,
    general: General,
    changed: Overrides,
    starts: Collection[str] = STARTS,
) -> None:
    """Dense and general mask, and up to three masks learned alike from different priors, by domain.

    Scratch starts from the same one-shot prior computed on the domain's own text, transfer from the
    general mask, graft from scratch's prior with the general mask's learned changes carried over.
    RoI learns them, with the entropic top n.
    """
    for domain in domains:
        unlearned: dict[str, float] = {}
        for seed in range(domain.seeds):
            measure = partial(_domain_row, bench, domain, seed, general, changed, unlearned, starts)
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
    starts: Collection[str],
) -> ResultRow:
    settings = {**ENTROPIC, "steps": DOMAIN_STEPS, **changed.get(METHOD, {}), "seed": seed}
    label = f"{domain.name}-{seed}"
    priors = _priors(bench, domain, general, starts)
    learned = {
        arm: bench.learned(
            METHOD,
            domain.train,
            start,
            settings,
            f"{label}-{arm}",
            parent=general.mask,
            domain=domain.name,
        )
        for arm, start in priors.items()
    }
    arms = {"dense": bench.dense(), "general": Made(bench.directory, general.mask, {}), **learned}
    row: ResultRow = {
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
    taken = {name: made.row[name] for made in learned.values() for name in _TAKEN}
    how = {"pattern": str(general.mask.pattern), "method": METHOD}
    return {**row, **taken, **how, "steps": int(settings["steps"])}


_TAKEN = ("tokens_seen", "seconds")  # the same for every start


def _priors(
    bench: Workbench, domain: Domain, general: General, starts: Collection[str]
) -> dict[str, Mask]:
    found = {"transfer": general.mask} if "transfer" in starts else {}
    if found.keys() >= set(starts):
        return found
    prior = bench.prior("sparsegpt", domain.train, domain.name, general.mask.pattern)
    found["scratch"] = prior
    if general.prior is not None:
        found["graft"] = graft(prior, general.mask, general.prior)
    return {start: found[start] for start in STARTS if start in found and start in starts}
