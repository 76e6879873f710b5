"""Every result file and the page that is made of it (`twofour bench pages`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.clients.page import clients_page
from benchmarks.common.page import bullets, paragraph
from benchmarks.common.result_file import RESULTS, Page, write_page
from benchmarks.engine.export import export_page
from benchmarks.engine.mix_page import mix_page
from benchmarks.engine.pages import lowbit_speed_page, quality_page, speed_page, split_page
from benchmarks.engine.second_model import second_model_page
from benchmarks.families import models_page
from benchmarks.gpu.page import compiled_page, gpu_page
from benchmarks.kernels.lowbit_page import lowbit_page
from benchmarks.kernels.page import kernels_page
from benchmarks.masks.learning_step import step_page
from benchmarks.masks.pages import (
    ablations_page,
    cost_page,
    domains_page,
    league_page,
    patterns_page,
)
from benchmarks.masks.permutation_page import permutation_page
from benchmarks.masks.products_page import products_page
from benchmarks.masks.structures_page import structures_page
from benchmarks.overhead.page import overhead_page
from benchmarks.reliability.page import reliability_page
from benchmarks.serve.agreement import client_agreement_page
from benchmarks.serve.page import serve_page
from benchmarks.sizing.page import sizing_page
from benchmarks.trtllm.page import trtllm_page
from benchmarks.values.page import values_page
from benchmarks.vllm.pages import agreement_page, vllm_speed_page
from maskgen.format.atomic_file import write_text

_ABOUT = """
Everything that was measured. Each page is written by the command at its end, from the JSON file of
the same name, which has every row. `make bench` runs all of the commands but those that need a
GPU (`make gpu`), other people's clients (`make test-clients`) or an earlier build. The texts that
they read are listed in [evaluation](../evaluation.md#texts).
"""

PAGES: Mapping[str, Page] = {
    "kernels": kernels_page,
    "kernels-lowbit": lowbit_page,
    "bench-engine": speed_page,
    "engine-split": split_page,
    "mask-mix": mix_page,
    "quality": quality_page,
    "export": export_page,
    "masks": league_page,
    "patterns": patterns_page,
    "domains": domains_page,
    "domains-16-32": domains_page,
    "mask-ablations": ablations_page,
    "mask-cost": cost_page,
    "learning-step": step_page,
    "permutation": permutation_page,
    "structure": structures_page,
    "products": products_page,
    "lowbit-quality": values_page,
    "bench-lowbit": lowbit_speed_page,
    "serve": serve_page,
    "overhead": overhead_page,
    "reliability": reliability_page,
    "agreement": client_agreement_page,
    "clients": clients_page,
    "sizing": sizing_page,
    "bench-vllm": vllm_speed_page,
    "vllm-agreement": agreement_page,
    "trtllm": trtllm_page,
    "gpu": gpu_page,
    "gpu-compile": compiled_page,
    "models": models_page,
    "second-model": second_model_page,
}
"""Name of a result -> what renders it."""


def page_of(name: str) -> Page:
    """What renders a result; `NAME-SUFFIX`, such as `bench-engine-1b`, is rendered as `NAME`.

    Raises:
        ValueError: nothing renders it.
    """
    fitting = [known for known in PAGES if name == known or name.startswith(f"{known}-")]
    if not fitting:
        raise ValueError(f"no page is known for {name}; results are {', '.join(PAGES)}")
    return PAGES[max(fitting, key=len)]


def write_pages(root: Path = Path()) -> list[Path]:
    """Write the page of every result anew, and the list of them; gives their paths.

    Args:
        root: of the repository.

    Raises:
        ValueError: nothing renders one of the results.
    """
    files = sorted((root / RESULTS).glob("*.json"))
    pages = [write_page(path, page_of(path.stem)) for path in files]
    index = root / RESULTS / "README.md"
    write_text(index, _index(pages))
    return [*pages, index]


def _index(pages: Sequence[Path]) -> str:
    titles = [
        page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ") for page in pages
    ]
    links = [f"[{title}]({page.name})" for title, page in zip(titles, pages, strict=True)]
    return "\n\n".join(["# Results", paragraph(_ABOUT), bullets(links)]) + "\n"
