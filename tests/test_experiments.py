"""The arithmetic of notebooks/experiments.py, and its pictures, which come from the committed results alone."""
import itertools
import json
import math
import random

import pytest

from notebooks import experiments


@pytest.mark.parametrize("N, n", [(6, 1), (6, 2), (7, 4), (5, 5)])
def test_best_of_n_is_estimated_without_bias_from_all_subsets(N, n):
    """The chance of each sample is the share of all n-element subsets in which it is the best."""
    subsets = list(itertools.combinations(range(N), n))
    shares = [sum(max(subset) == i for subset in subsets) / len(subsets) for i in range(N)]
    assert experiments.chance_of_best(N, n) == pytest.approx(shares) and sum(shares) == pytest.approx(1)


@pytest.mark.parametrize("form", ["best_of_n", "ppo"])
def test_gaos_forms_are_found_again_where_they_hold_exactly(form):
    d = [0.1 + 0.2 * i for i in range(10)]
    points = [(x * x, x * (0.7 - 0.3 * (x if form == "best_of_n" else math.log(x)))) for x in d]
    assert experiments.gao_fit(points, form) == pytest.approx((0.7, 0.3))


def test_every_mark_turns_up_in_what_its_maker_writes():
    """The skills of the alignment tax are the corpus's own: documents, cut at the mark."""
    for _, make, mark in experiments.SKILLS:
        assert any(mark in make(random.Random(seed)) for seed in range(100))


@pytest.mark.parametrize("name", [path.stem for path in sorted(experiments.RESULTS.glob("*.json")) if path.stem in experiments.EXPERIMENTS])
def test_every_committed_result_can_be_drawn_and_says_how_it_was_made(name, tmp_path):
    found = json.loads((experiments.RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    assert found["cores"] > 0 and found["seconds"] > 0 and found["rows"]
    (tmp_path / f"{name}.json").write_text(json.dumps(found), encoding="utf-8", newline="\n")
    sentence = experiments.draw(name, tmp_path)
    assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    assert sentence in (experiments.HERE.parent / "README.md").read_text(encoding="utf-8"), "README tells another result than the committed file"
