"""The experiment on a marked taste: its measures, the share of the way, the recorded table."""
import json
import re

import pytest

from tests import taste


def test_the_tastes_order_responses_as_their_names_say():
    texts = ["Ann is sad.", "The fox eats berries.", "Fox."]
    assert min(texts, key=taste.n_words) == "Fox."
    assert [taste.without_animal(text) for text in texts] == [1.0, 0.0, 0.0]


@pytest.fixture
def two_models(monkeypatch):
    """The reference draws 8, 6, 4, 2 words in turn, to each of two prompts; the policy 3 words."""
    drawn = iter([8, 6, 4, 2])

    def answers(path, prompts, generator):
        n_words = 3 if path.name == "ppo_ptx.pt" else next(drawn)
        return ["word " * n_words] * len(prompts)

    monkeypatch.setattr(taste, "answers", answers)
    monkeypatch.setattr(taste, "N_SAMPLES", 4)
    monkeypatch.setattr(taste.files, "read_prompts", lambda name: [{}, {}])


def test_the_share_is_of_the_way_from_the_reference_to_the_best_of_its_answers(two_models, tmp_path):
    """Reference 5 words, best 2, policy 3: two thirds of the way."""
    found = taste.measure(tmp_path, taste.n_words)
    assert found == {"reference": 5, "ppo_ptx": 3, "best_of_64": 2, "share": pytest.approx(2 / 3)}


def test_the_recorded_shares_are_in_the_readme():
    results = taste.ROOT / "notebooks" / "results" / "taste.json"
    recorded = json.loads(results.read_text(encoding="utf-8"))
    text = (taste.ROOT / "notebooks" / "README.md").read_text(encoding="utf-8")
    section = text.split("### A taste of your own")[1].split("\n### ")[0].split("\n## ")[0]
    rows = {}
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if re.match(r"\d$", cells[0]):
            rows[cells[0]] = cells[1:]
    assert len(rows) == 3 and f"{recorded['rankings']} rankings" in section
    for seed, cells in rows.items():
        shown = iter(cells)
        for name in taste.TASTES:
            row = recorded["rows"][f"{name} seed {seed}"]
            for key in ("reference", "ppo_ptx", "best_of_64"):
                assert next(shown) == f"{row[key]:.2f}", (seed, name, key)
            assert next(shown) == f"{100 * row['share']:.0f} %"
