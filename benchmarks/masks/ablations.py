"""`twofour bench masks ablations`: MaskLLM with one setting changed at a time."""

from __future__ import annotations

from typing import Any

from benchmarks.common.result_file import ResultRow
from benchmarks.common.table import Table
from benchmarks.masks.settings import MASKLLM, PRUNED, Overrides
from benchmarks.masks.texts import GeneralTexts
from benchmarks.masks.workbench import Workbench

KEY = ("what", "value")
"""What names a row."""

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


def run_ablations(bench: Workbench, texts: GeneralTexts, table: Table, changed: Overrides) -> None:
    """MaskLLM with one setting changed at a time."""
    for what, values in ABLATIONS.items():
        for value, ablated in values.items():

            def measure(
                what: str = what, value: str = value, ablated: dict[str, Any] = ablated
            ) -> ResultRow:
                method = value if value in PRUNED else "sparsegpt"
                prior = bench.prior(method, texts.learn, "general")
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
