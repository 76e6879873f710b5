"""Two load tests compared: noise is no difference, and what cannot be compared is refused."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

from benchmarks.serve.change import FIGURES, IncomparableError, ServeChange, changes_between
from benchmarks.serve.folder import read_folder
from tests.benchmarks.serve.results_folder import Speed, make_folder
from twofour.cli import app

ARMS = ("dense", "sparse")


def _noisy(seed: int, noise: float, gains: dict[str, float]) -> Speed:
    rng = Random(seed)
    return lambda arm, users, repeat: gains.get(arm, 1.0) * rng.lognormvariate(0.0, noise)


def _folder(path: Path, seed: int, noise: float = 0.02, **gains: float) -> Path:
    return make_folder(path, ARMS, _noisy(seed, noise, gains), repeats=5)


def _changes(first: Path, second: Path, tolerance: float = 0.03) -> list[ServeChange]:
    return changes_between(read_folder(first), read_folder(second), tolerance)


def test_the_same_thing_twice_differs_by_noise_alone(tmp_path: Path) -> None:
    folders = [_folder(tmp_path / str(seed), seed) for seed in range(5)]
    found = [c for folder in folders[1:] for c in _changes(folders[0], folder, tolerance=0.0)]
    # Two loads of the dense arm have three figures each, the sparse arm's have the ratio, too.
    assert len(found) == 4 * (2 * 3 + 2 * 4)
    assert not any(c.beyond_noise for c in found)
    assert any(c.low > 1 or c.high < 1 for c in found), "single intervals do miss now and then"


def test_a_slower_arm_is_found_and_no_other(tmp_path: Path) -> None:
    before, after = _folder(tmp_path / "a", 1), _folder(tmp_path / "b", 2, sparse=0.8)
    found = _changes(before, after)
    assert {c.arm for c in found if c.beyond_noise} == {"sparse"}
    assert {c.figure for c in found if c.worse} == set(FIGURES)
    ratio = next(c for c in found if c.figure == "ratio")
    assert ratio.change == pytest.approx(0.8, rel=0.05)
    assert ratio.low < 0.8 < ratio.high
    better = [c for c in _changes(after, before) if c.beyond_noise]
    assert better
    assert not any(c.worse for c in better)


def test_what_moves_the_whole_machine_does_not_move_the_ratio(tmp_path: Path) -> None:
    before = _folder(tmp_path / "a", 1)
    after = _folder(tmp_path / "b", 2, dense=0.8, sparse=0.8)
    found = {c.figure for c in _changes(before, after) if c.worse}
    assert found == set(FIGURES) - {"ratio"}


def test_small_changes_are_tolerated_however_sure(tmp_path: Path) -> None:
    before = _folder(tmp_path / "a", 1, noise=1e-4)
    after = _folder(tmp_path / "b", 2, noise=1e-4, sparse=0.98)
    assert any(c.worse for c in _changes(before, after, tolerance=0.0))
    assert not any(c.beyond_noise for c in _changes(before, after, tolerance=0.03))


def test_p_is_students_and_holms(tmp_path: Path) -> None:
    before, after = _folder(tmp_path / "a", 1), _folder(tmp_path / "b", 2, sparse=0.9)
    found = _changes(before, after)
    speeds = [
        [
            b.summary.tokens_per_s
            for b in read_folder(folder).blocks
            if (b.arm, b.point.concurrency) == ("sparse", 8)
        ]
        for folder in (before, after)
    ]
    plain = stats.ttest_ind(np.log(speeds[0]), np.log(speeds[1])).pvalue
    (own,) = [
        c for c in found if (c.arm, c.point.concurrency, c.figure) == ("sparse", 8, "tokens_per_s")
    ]
    assert plain <= own.p <= min(1.0, plain * len(found)) * (1 + 1e-9)
    assert min(c.p for c in found) > 0


def _edited(path: Path, **fields: Any) -> Path:
    """The folder with other fields in its result; those of dictionaries are merged."""
    file = path / "serve.json"
    result = json.loads(file.read_text())
    for name, value in fields.items():
        result[name] = result[name] | value if isinstance(value, dict) else value
    file.write_text(json.dumps(result))
    return path


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"problems": ["dense: 1 x HTTP 500"]}, "is void: dense: 1 x HTTP 500"),
        ({"machine_class": "riscv"}, "unlike machine_class"),
        ({"machine": {"cpu": "another"}}, "unlike machines: cpu"),
        ({"plan": {"repeats": 1}}, "has one repeat"),
        ({"plan": {"endpoint": "chat"}}, "unlike endpoint"),
        ({"blocks": []}, "share no arm and load"),
    ],
)
def test_what_cannot_be_compared_is_exit_code_2(
    tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    before = _folder(tmp_path / "a", 1)
    after = _edited(_folder(tmp_path / "b", 2), **fields)
    with pytest.raises(IncomparableError, match=message) as caught:
        _changes(before, after)
    assert caught.value.exit_code == 2


def test_exit_codes_of_the_command(tmp_path: Path) -> None:
    before, same = _folder(tmp_path / "a", 1), _folder(tmp_path / "b", 2)
    slow = _folder(tmp_path / "c", 3, sparse=0.8)

    def run(*words: object) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["bench", "compare", *map(str, words)])
        return done.exit_code, done.output

    code, text = run(before, same)
    assert code == 0, text
    assert "14 figures compared: 0 worse and 0 better" in text
    code, text = run(before, slow, "--json")
    assert code == 1
    assert any(row["worse"] for row in json.loads(text.splitlines()[-1]))
    assert run(slow, before)[0] == 0
    assert run(slow, before, "--either-way")[0] == 1
    done = CliRunner().invoke(app, ["bench", "compare", str(before), str(tmp_path)])
    assert isinstance(done.exception, IncomparableError)
