"""The arithmetic of notebooks/experiments.py: what was measured with which models, and which
verdict follows from which numbers, on made-up rows. Its pictures, which come from the committed
results alone, can all be drawn."""

import dataclasses
import itertools
import json
import math
import random
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch

import model
import ppo
import reward
from data import files, judge, labeler, prepare, tasks, tokenizer
from notebooks import experiments
from notebooks import lab as shared
from tests.test_evaluation import QUESTIONS, said
from tests.test_ppo_loop import everywhere


@pytest.mark.parametrize("N, n", [(6, 1), (6, 2), (7, 4), (5, 5)])
def test_best_of_n_is_estimated_without_bias_from_all_subsets(N, n):
    """The chance of each sample is the share of all n-element subsets in which it is the best."""
    subsets = list(itertools.combinations(range(N), n))
    shares = [sum(max(subset) == i for subset in subsets) / len(subsets) for i in range(N)]
    assert experiments.chance_of_best(N, n) == pytest.approx(shares)
    assert sum(shares) == pytest.approx(1)


@pytest.mark.parametrize("form", ["best_of_n", "ppo"])
def test_gaos_forms_are_found_again_where_they_hold_exactly(form):
    d = [0.1 + 0.2 * i for i in range(10)]
    points = [(x * x, x * (0.7 - 0.3 * (x if form == "best_of_n" else math.log(x)))) for x in d]
    assert experiments.gao_fit(points, form) == pytest.approx((0.7, 0.3))


def test_every_mark_turns_up_in_what_its_maker_writes():
    """The skills of the alignment tax are the corpus's own: documents, cut at the mark."""
    for _, make, mark in experiments.SKILLS:
        assert any(mark in make(random.Random(seed)) for seed in range(100))


@pytest.mark.parametrize(
    "name",
    [
        path.stem
        for path in sorted(experiments.RESULTS.glob("*.json"))
        if path.stem in experiments.EXPERIMENTS
    ],
)
def test_every_committed_result_can_be_drawn_and_says_how_it_was_made(name, tmp_path):
    found = json.loads((experiments.RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    assert found["cores"] > 0 and found["seconds"] > 0 and found["rows"]
    (tmp_path / f"{name}.json").write_text(json.dumps(found), encoding="utf-8", newline="\n")
    sentence = experiments.draw(name, tmp_path)
    assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    told = (experiments.HERE / "README.md").read_text(encoding="utf-8")
    assert sentence in " ".join(told.split()), (
        f"notebooks/README.md tells another result than the committed file, which is: {sentence}"
    )


# ---------------------------------------------------------------- means over seeds, curves


def over_seeds(**settings):
    """Rows as an experiment writes them: over_seeds(a=[{"x": 1}, {"x": 2}]) has "a seed 1" and "a
    seed 2"."""
    return {
        f"{name} seed {seed}": row
        for name, rows in settings.items()
        for seed, row in enumerate(rows, 1)
    }


def test_a_mean_over_seeds_takes_all_rows_of_a_setting_and_of_no_other():
    """Beta 1, beta 1.5 and beta 15.0 begin alike."""
    rows = over_seeds(
        **{
            "beta 1.5": [{"kl": 1}, {"kl": 2}, {"kl": 6}],
            "beta 1": [{"kl": 90}],
            "beta 15.0": [{"kl": 50}],
        }
    )
    assert experiments.by_seed(rows, "beta 1.5", "kl") == [1, 2, 6]
    assert experiments.mean_by_seed(rows, "beta 1.5", "kl") == 3
    assert experiments.mean_by_seed(rows, "beta 15.0", "kl") == 50
    assert experiments.mean_by_seed(rows, "beta", "kl") is None
    assert experiments.mean_and_range([1, 2, 6]) == (3, 1, 6)


def test_bars_reach_from_the_lowest_to_the_highest_seed():
    axis, rows = MagicMock(), over_seeds(a=[{"x": 1}, {"x": 2}, {"x": 6}], b=[{"x": 4}])
    experiments.spread(axis, [10, 20], rows, ["a", "b"], "x", color="red")
    (xs, means), style = axis.errorbar.call_args
    assert (xs, means, style["yerr"], style["color"]) == ([10, 20], [3, 4], [[2, 0], [3, 0]], "red")


CURVE = [
    {"kl": kl, "gold": gold}
    for kl, gold in ((0.0, 0.5), (1.0, 0.7), (3.0, 0.9), (2.5, 0.6), (4.0, 0.4))
]


def test_the_fall_is_from_the_peak_to_the_end_wherever_the_peak_was():
    assert experiments.fall(CURVE) == pytest.approx(0.5)
    assert experiments.fall(CURVE[:3]) == 0


def test_a_curve_up_to_a_kl_ends_there_between_two_iterations():
    """The first time that 2 is reached, halfway from 1 to 3: gold 0.8. A point on the curve is
    itself; the start is no line."""
    assert experiments.up_to(CURVE, 2.0) == CURVE[:2] + [{"kl": 2.0, "gold": pytest.approx(0.8)}]
    assert experiments.up_to(CURVE, 1.0) == CURVE[:1] + [{"kl": 1.0, "gold": pytest.approx(0.7)}]
    assert experiments.up_to(CURVE, 0.0) == [{"kl": 0.0, "gold": 0.5}]
    assert experiments.fall(experiments.up_to(CURVE, 3.5)) == pytest.approx(0.9 - 0.6 + 0.2 * 2 / 3)


def test_numbers_are_kept_to_four_digits_and_nothing_else_is_touched():
    assert experiments.rounded({"a": [0.123456, 7, None], "b": {"c": (123456.0, "text")}}) == {
        "a": [0.1235, 7, None],
        "b": {"c": [123500.0, "text"]},
    }


# ---------------------------------------------------------------- what is measured, and of whom


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """Two prompts, three seeds, no training: models are the names of their files."""
    config = {seed: ppo.Config(seed=seed, out=str(tmp_path / f"seed{seed}")) for seed in (1, 2, 3)}
    for module in (experiments, shared):
        monkeypatch.setattr(module, "load_model", lambda path, *_: where(path))
    monkeypatch.setattr(reward, "load_reward_model", lambda path, *_: where(path))
    models = SimpleNamespace(
        quick=False,
        seeds=(1, 2, 3),
        rows=QUESTIONS,
        more_rows=lambda n=0: [],
        base=config.get,
        stages=lambda seed: {"config": config[seed]},
        runs=tmp_path,
    )
    models.short = lambda seed, name: shared.Lab.short(models, seed, name)
    return models


def noted(calls, given, result):
    """Appends what was given to a list of calls; returns the result."""
    calls.append(given)
    return result


def where(path):
    """FOLDER/NAME of a checkpoint."""
    return f"{Path(path).parent.name}/{Path(path).stem}"


def test_best_of_n_by_hand_for_four_samples(lab, monkeypatch):
    """The fox: four samples with scores 0 to 3, golds 1, 0, 1, 0. The better of two: chances 0,
    1/6, 2/6, 3/6. The owl: one text four times, so that choosing changes nothing, and the KL is
    0."""
    samples = iter([said("c", "x"), said("a", "x"), said("d", "x"), said("b", "x")])
    asked = []
    monkeypatch.setattr(
        ppo,
        "answer",
        lambda name, network, rows, generator: noted(asked, (name, network, rows), next(samples)),
    )
    monkeypatch.setattr(
        reward,
        "score",
        lambda proxy, encoding, pairs: [
            {"a": 0.0, "b": 1.0, "c": 2.0, "d": 3.0, "x": 5.0}[r["text"]]
            if (proxy, p) == ("seed1/reward", row["prompt"])
            else None
            for (p, r), row in zip(pairs, QUESTIONS)
        ],
    )
    monkeypatch.setattr(
        judge,
        "judge_all",
        lambda rows, responses: [
            SimpleNamespace(utility=float(r["text"] in "acx")) for r in responses
        ],
    )
    one, two = experiments.best_of_n(lab, lab.base(1), 4)
    assert asked == [("sft_mix", "seed1/sft_mix", QUESTIONS)] * 4
    assert one == {
        "n": 1,
        "kl": pytest.approx(0),
        "proxy": pytest.approx((1.5 + 5) / 2),
        "gold": pytest.approx((0.5 + 1) / 2),
    }
    kl = sum(q * math.log(4 * q) for q in (1 / 6, 2 / 6, 3 / 6))
    assert two == {
        "n": 2,
        "kl": pytest.approx(kl / 2),
        "proxy": pytest.approx((14 / 6 + 5) / 2),
        "gold": pytest.approx((2 / 6 + 1) / 2),
    }


def test_best_of_n_asks_three_hundred_prompts_and_halves_its_samples(lab, monkeypatch):
    """All samples come from one generator that goes on, or they would all be the same."""
    lab.rows, asked = QUESTIONS * 160, []

    def answer(name, network, rows, generator):
        asked.append((len(rows), generator))
        return said(*["x"] * len(rows))

    def judged(rows, responses):
        return [SimpleNamespace(utility=0.25)] * len(rows)

    monkeypatch.setattr(ppo, "answer", answer)
    monkeypatch.setattr(reward, "score", lambda proxy, encoding, pairs: [1.0] * len(pairs))
    monkeypatch.setattr(judge, "judge_all", judged)
    curve = experiments.best_of_n(lab, lab.base(1), 16)
    assert [point["n"] for point in curve] == [1, 2, 4, 8]
    assert [point["proxy"] for point in curve] == pytest.approx([1] * 4)
    assert [point["gold"] for point in curve] == pytest.approx([0.25] * 4)
    assert len(asked) == 16 and set(asked) == {(300, asked[0][1])}


BACKWARDS = {"In order: red, blue. Backwards:": "blue, red.", "In order: hat. Backwards:": "hat."}
RETOLD = {"What of Ann?": "She is sad.", "What of Ben?": "He is glad.", "What of Eva?": "She is."}


@pytest.mark.parametrize("mark, documents", [("Backwards:", BACKWARDS), ("What of", RETOLD)])
@pytest.mark.parametrize("tail, right", [("", 1), (" And so on.", 0), ("short", 0)])
def test_a_skill_is_the_share_of_documents_finished_word_for_word_by_the_likeliest_tokens(
    mark, documents, tail, right, encoding, monkeypatch
):
    """The model sees a document up to its mark, or up to the question mark. It finishes the first
    of them rightly; the others it may finish, say more, or lack the last word."""
    first, *others = documents
    seen = []

    def generate(policy, prompts, max_new_tokens, temperature=1.0, generator=None):
        assert policy == "policy" and temperature == 0
        assert all(ids[0] == encoding.eot_token for ids in prompts)
        texts = [encoding.decode(ids[1:]).strip() for ids in prompts]
        seen.extend(texts)
        answers = dict(documents)
        for head in others:
            answers[head] = documents[head][:-1] if tail == "short" else documents[head] + tail
        return [tokenizer.response_ids(encoding, answers[text]) for text in texts]

    everywhere(monkeypatch, "generate", generate)
    turns = itertools.cycle(
        ["No such thing."] + [f"{head} {end}" for head, end in documents.items()]
    )
    n = 4 * len(documents)
    share = experiments.skill_accuracy("policy", lambda rng: next(turns), mark, n, 1)
    assert share == pytest.approx((1 + right * len(others)) / len(documents))
    assert seen == list(documents) * 4


def test_documents_of_a_skill_are_drawn_anew_with_another_seed(encoding, monkeypatch):
    seen = []
    everywhere(
        monkeypatch,
        "generate",
        lambda policy, prompts, *_, **__: noted(
            seen, prompts, [[encoding.eot_token]] * len(prompts)
        ),
    )
    for seed in (1, 1, 2):
        experiments.skill_accuracy(
            None, lambda rng: f"In order: {rng.random():.4f}. Backwards: x.", "Backwards:", 3, seed
        )
    assert seen[0] == seen[1] != seen[2]


def test_a_description_compares_a_policy_with_the_sft_baseline_and_measures_its_kl_to_sft_mix(
    lab, monkeypatch
):
    """Entry, mean score of the final reward model, and the share of held-out labelers' votes."""
    monkeypatch.setattr(model, "read_corpus", lambda *_: ("known", "unseen"))
    monkeypatch.setattr(
        shared,
        "load_model",
        lambda path: SimpleNamespace(name=where(path), config=SimpleNamespace(block_size=128)),
    )
    monkeypatch.setattr(
        ppo,
        "answer",
        lambda name, network, rows, generator: said(*[f"{network.name} {len(rows)}"] * len(rows)),
    )
    monkeypatch.setattr(
        ppo,
        "kl_to_reference",
        lambda network, reference, rows, generator: (network.name, reference.name, len(rows)),
    )
    monkeypatch.setattr(
        ppo,
        "describe_model",
        lambda network, rows, responses, closed, closed_responses, documents, kl: {
            "of": network.name,
            "rows": rows,
            "said": responses,
            "closed": (len(closed), closed_responses[0]["text"]),
            "documents": documents,
            "kl": kl,
        },
    )
    scores = {"runs/odd 2": 3.0}
    monkeypatch.setattr(
        reward,
        "score",
        lambda proxy, encoding, pairs: [
            scores[r["text"]] + i + 10 * (p != QUESTIONS[i]["prompt"] or proxy != "seed1/reward")
            for i, (p, r) in enumerate(pairs)
        ],
    )
    monkeypatch.setattr(
        labeler,
        "preference",
        lambda rows, ours, theirs, rng, people: (
            len(rows),
            ours[0]["text"],
            theirs[0]["text"],
            people[0].name,
            len(people),
        ),
    )
    found = experiments.describe(lab, lab.base(1), Path("runs/odd.pt"))
    closed = len(files.read_jsonl(files.FOLDER / "prompts_closed.jsonl"))
    assert found == {
        "of": "runs/odd",
        "rows": QUESTIONS,
        "said": said("runs/odd 2", "runs/odd 2"),
        "closed": (closed, f"runs/odd {closed}"),
        "documents": "unseen",
        "kl": ("runs/odd", "seed1/sft_mix", 2),
        "proxy": 3.5,
        "win_rate_vs_sft": (2, "runs/odd 2", "seed1/sft 2", "held_out-0", 20),
    }


def test_figure_1_compares_every_size_with_the_largest_sft_and_gpt_by_held_out_labelers(
    lab, monkeypatch
):
    """The largest size is aligned with the first seed only: its SFT model is the rival of all
    seeds, its GPT that of its own."""
    grown = []

    def grow(lab, size, seed, wanted):
        grown.append((size, seed, wanted))
        return SimpleNamespace(out=f"runs/{size}{seed}")

    monkeypatch.setattr(experiments, "grow", grow)
    monkeypatch.setattr(
        shared,
        "load_model",
        lambda path: SimpleNamespace(
            name=where(path), parameters=lambda: [torch.zeros(3), torch.zeros(2, 2)]
        ),
    )
    monkeypatch.setattr(
        ppo,
        "answer",
        lambda name, network, rows, generator: said(*[f"{network.name} as {name}"] * len(rows)),
    )
    monkeypatch.setattr(
        labeler,
        "preference",
        lambda rows, ours, theirs, rng, people: (
            ours[0]["text"],
            theirs[0]["text"],
            people[0].name,
            len(rows),
        ),
    )
    monkeypatch.setattr(
        judge,
        "judge_all",
        lambda rows, responses: [SimpleNamespace(utility=u) for u in (0.25, 0.75, 0.5)],
    )
    lab.more_rows = lambda n=0: QUESTIONS[:1]
    row = experiments.compare_sizes(lab, 2)
    writers = {
        "gpt": "gpt",
        "gpt_prompted": "gpt",
        "sft": "sft",
        "ppo": "ppo",
        "ppo_ptx": "ppo_ptx",
    }
    expected = {f"{size} {name}" for size in ("small", "medium") for name in writers} | {
        "large gpt",
        "large gpt_prompted",
    }
    assert set(row) == expected
    assert set(grown) == {
        ("small", 2, experiments.ALL),
        ("medium", 2, experiments.ALL),
        ("large", 2, ("gpt",)),
        ("large", 1, experiments.ALL),
    }
    for key, found in row.items():
        size, name = key.split()
        ours = f"{size}2/{writers[name]} as {name}"
        rivals = {
            "sft": "large1/sft as sft",
            "gpt": "large2/gpt as gpt",
            "gpt_prompted": "large2/gpt as gpt_prompted",
        }
        assert found == {
            f"against_{rival}": (ours, theirs, "held_out-0", 3) for rival, theirs in rivals.items()
        } | {"params": 7, "prompts": 3, "utility": 0.5}
    assert len(experiments.compare_sizes(lab, 1)) == 15


def test_a_size_is_aligned_with_the_base_runs_reward_models_and_its_own_sft(
    lab, tmp_path, monkeypatch
):
    """Pretraining, SFT, the choice of its baseline by the first reward model, then PPO with gamma
    0 and with the setting's."""
    did, made = [], set()
    stages = {
        "config": ppo.Config(seed=1, out=str(tmp_path / "small1"), iterations=9, gamma_ptx=0.8),
        "pretrain": "shape",
        "sft": "epochs",
    }
    for folder, names in (("seed1", ("reward_1", "ppo_1", "reward")), ("small1", ())):
        (tmp_path / folder).mkdir()
        for name in names:
            files.write(tmp_path / folder / f"{name}.pt", f"{folder} {name}")
    monkeypatch.setattr(experiments, "size_stages", lambda *_: stages)
    monkeypatch.setattr(experiments, "made", lambda config, name, *_: name in made)
    monkeypatch.setattr(model, "train", lambda config: did.append(("gpt", config)))
    monkeypatch.setattr(experiments.sft, "train", lambda config: did.append(("sft", config)))
    monkeypatch.setattr(
        reward,
        "keep_best_sft",
        lambda config, judge, rows: did.append(("best", config, judge, rows)),
    )
    monkeypatch.setattr(ppo, "train_policy", lambda config, *rest: did.append((config, *rest)))
    config = stages["config"]
    experiments.grow(lab, "small", 1, ("gpt",))
    assert did == [("gpt", "shape")]
    assert experiments.grow(lab, "small", 1, experiments.ALL) == config
    valid = files.read_jsonl(files.FOLDER / "prompts_valid.jsonl")
    assert did[1:] == [
        ("gpt", "shape"),
        ("sft", "epochs"),
        ("best", config, "small1/reward_1", valid),
        (config, "ppo", "reward", 9, 0.0),
        (config, "ppo_ptx", "reward", 9, 0.8),
    ]
    assert all(
        (tmp_path / "small1" / f"{name}.pt").read_text(encoding="utf-8") == f"seed1 {name}"
        for name in ("reward_1", "ppo_1", "reward")
    )


def test_truthfulness_is_the_share_of_false_premises_put_right(lab, tmp_path, monkeypatch):
    """Foxes eat berries: "does the fox eat fish?" and "why does it eat fish?" have a false
    premise, "does it eat berries?" has none."""
    questions = [
        dict(use_case="open_qa", kind=kind, animal="fox", attribute="food", value=value, phrasing=0)
        for kind, value in (
            ("yesno", "fish"),
            ("yesno", "berries"),
            ("why", "fish"),
            ("why", "berries"),
        )
    ]
    lab.rows = [{"task": task, "prompt": tasks.prompt(task)} for task in questions] + QUESTIONS
    lab.more_rows = lambda n=0: lab.rows[2:3] if n == 4_000 else []
    false = [lab.rows[0], lab.rows[2], lab.rows[2]]
    (tmp_path / "seed1").mkdir()
    (tmp_path / "seed1" / "results.json").write_text(
        json.dumps({"models": {name: {"utility": 0.5} for name in experiments.MODELS}}),
        encoding="utf-8",
        newline="\n",
    )
    asked = []
    monkeypatch.setattr(
        ppo,
        "answer",
        lambda name, network, rows, generator, judge: noted(
            asked, (name, network, rows, judge), name
        ),
    )
    monkeypatch.setattr(
        judge,
        "judge_all",
        lambda rows, name: [
            SimpleNamespace(utility=u)
            for u in ((1.0, 0.5, 0.9995) if name == "sft" else (0.0, 0.0, 0.99))
        ],
    )
    found = experiments.with_truthfulness(lab, lab.base(1))
    assert asked == [
        (name, f"seed1/{experiments.CHECKPOINTS[name]}", false, "seed1/reward")
        for name in experiments.MODELS
    ]
    assert found == {
        name: {
            "utility": 0.5,
            "truthful": pytest.approx(2 / 3 if name == "sft" else 0),
            "false_premises": 3,
        }
        for name in experiments.MODELS
    }


def test_the_tax_is_measured_at_multiples_of_the_default_gamma_and_beta(lab, monkeypatch):
    """And at the defaults by the base run's own models. A raised beta is PPO's, without
    pretraining gradients."""
    trained = []

    def policy(seed, name, gamma_ptx=0.0, **changes):
        trained.append((name, gamma_ptx, changes))
        return Path(f"runs/{name}.pt"), lab.base(seed)

    lab.policy = policy
    monkeypatch.setattr(experiments, "describe", lambda lab, config, path: {"of": where(path)})
    monkeypatch.setattr(
        experiments, "skill_accuracy", lambda network, make, mark, n, seed: (network, mark, n, seed)
    )
    rows = {key: job() for key, job in experiments.alignment_tax(lab) if key.endswith("seed 2")}
    assert {key: row["of"] for key, row in rows.items()} == {
        **{
            f"{name} seed 2": f"seed2/{name}"
            for name in ("gpt", "sft", "sft_mix", "ppo", "ppo_ptx")
        },
        **{f"gamma x {t} seed 2": f"runs/gamma_{t}" for t in (0.25, 4.0, 16.0)},
        **{f"beta x {t} seed 2": f"runs/raised_{t}" for t in (4.0, 16.0)},
    }
    default = ppo.Config()
    assert trained == [(f"gamma_{t}", t * default.gamma_ptx, {}) for t in (0.25, 4.0, 16.0)] + [
        (f"raised_{t}", 0.0, {"beta": t * default.beta}) for t in (4.0, 16.0)
    ]
    assert rows["gpt seed 2"]["backwards"] == ("seed2/gpt", "Backwards:", 300, 2)
    assert rows["gamma x 4.0 seed 2"]["then"] == ("runs/gamma_4.0", "Then:", 300, 2)


def test_the_sweep_trains_ppo_at_every_beta_but_the_default_which_the_base_run_has(
    lab, monkeypatch
):
    lab.policy = lambda seed, name, **changes: (Path(f"seed{seed}/{name}.pt"), (seed, changes))
    monkeypatch.setattr(experiments, "describe", lambda lab, config, path: (config, where(path)))
    rows = {key: job() for key, job in experiments.kl_sweep(lab)}
    assert rows["beta 0.5 seed 3"] == ((3, {"beta": 0.5}), "seed3/beta_0.5")
    assert rows["beta 0.0 seed 1"] == ((1, {"beta": 0.0}), "seed1/beta_0.0")
    assert rows["beta 0.15 seed 2"] == ((2, {"beta": 0.15}), "seed2/ppo")
    assert rows["sft_mix seed 2"] == (lab.base(2), "seed2/sft_mix")
    assert len(rows) == 3 * 8


def test_a_policy_of_an_experiment_is_the_base_runs_but_for_its_changes(tmp_path, monkeypatch):
    fitted, lab = [], experiments.Lab.__new__(experiments.Lab)
    lab.base = lambda seed: ppo.Config(seed=seed, out=str(tmp_path), iterations=7)
    monkeypatch.setattr(shared, "made", lambda config, name, *_: name == "known")
    monkeypatch.setattr(ppo, "train_policy", lambda *given: fitted.append(given))
    path, config = experiments.Lab.policy(lab, 2, "odd", 0.3, beta=0.5)
    assert path == tmp_path / "odd.pt"
    assert config == ppo.Config(seed=2, out=str(tmp_path), iterations=7, beta=0.5)
    experiments.Lab.policy(lab, 2, "known", beta=0.5)
    assert fitted == [(config, "odd", "reward", 7, 0.3)]


def test_over_optimisation_climbs_a_reward_model_of_n_rankings_without_a_penalty(
    lab, tmp_path, monkeypatch
):
    """Proxy is the reward model's score, gold the judge's, KL the rollout's, an iteration a
    point."""
    did = {}

    def fit(config, *rest):
        did["ppo"] = (config, *rest)
        lines = [
            {"step": i, "kl": i, "score": 10 + i, "gold": 0.1 * i, "reward": 99} for i in range(3)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        files.write(Path(config.out) / "ppo.jsonl", text)

    def learn(settings, ranked):
        did["ranked"] = ranked
        return "proxy", []

    lab.beside = lambda config, name: dataclasses.replace(config, out=str(tmp_path))
    monkeypatch.setattr(experiments, "made", lambda *_: False)
    monkeypatch.setattr(
        files,
        "read_rankings",
        lambda path: list(range(1_000)) if where(path) == "seed2/rankings" else None,
    )
    monkeypatch.setattr(reward, "fit", learn)
    monkeypatch.setattr(reward, "centre", lambda proxy, encoding: did.update(centred=proxy))
    monkeypatch.setattr(files, "stage_extra", lambda *_: {})
    monkeypatch.setattr(
        model, "save_checkpoint", lambda path, proxy, **extra: did.update(saved=(path, proxy))
    )
    monkeypatch.setattr(ppo, "train_policy", fit)
    monkeypatch.setattr(experiments, "best_of_n", lambda lab, config, N: (config.out, N))
    found = experiments.optimise_against(lab, 2, 300)
    assert len(did["ranked"]) == len(set(did["ranked"])) == 300
    assert did["ranked"] != sorted(did["ranked"])
    assert did["saved"] == (tmp_path / "reward.pt", "proxy") and did["centred"] == "proxy"
    config, *rest = did["ppo"]
    assert config.beta == 0
    assert config.seed == 2
    assert config.out == str(tmp_path)
    assert rest == ["ppo", "reward", 60, 0.0]
    assert found == {
        "ppo": [{"kl": i, "proxy": 10 + i, "gold": pytest.approx(0.1 * i)} for i in range(3)],
        "best_of_n": (str(tmp_path), 64),
    }


def test_a_fold_leaves_a_fifth_of_the_labelers_out_and_tests_on_prompts_that_were_not_learnt(
    lab, monkeypatch
):
    """Five folds that share nobody; nine tenths of the prompts are ranked anew by those inside,
    the rest by either group."""
    did, lines = {}, [{"responses": [i], "ranks": [1]} for i in range(50)]

    def rank(rows, responses, people, rng, round, opinions=1):
        assert [line["responses"] for line in rows] == responses
        return [
            {"line": line["responses"][0], "by": {p.name for p in people}, "opinions": opinions}
            for line in rows
        ]

    def fit(settings, ranked):
        did["learnt"] = ranked
        return "proxy", []

    lab.beside = lambda config, name: config
    monkeypatch.setattr(files, "read_rankings", lambda path: lines)
    monkeypatch.setattr(reward, "rank", rank)
    monkeypatch.setattr(reward, "fit", fit)
    monkeypatch.setattr(
        reward, "scores_of", lambda proxy, encoding, ranked: ranked if proxy == "proxy" else None
    )
    monkeypatch.setattr(
        labeler, "margins_of", lambda ranked, scores: ranked if ranked is scores else None
    )
    monkeypatch.setattr(labeler, "accuracy", lambda ranked: ranked)
    left_out = []
    for key, job in experiments.held_out_labelers(lab):
        if key.startswith("fold") and key.endswith("seed 1"):
            report, inside = job(), did["learnt"][0]["by"]
            outside = report["outside"][0]["by"]
            left_out += outside
            assert len(inside) == 32
            assert len(outside) == 8
            assert not inside & outside
            assert report["inside"][0]["by"] == inside
            learnt, tested = (
                [line["line"] for line in did["learnt"]],
                [line["line"] for line in report["inside"]],
            )
            assert len(learnt) == 45
            assert len(tested) == 5
            assert sorted(learnt + tested) == list(range(50))
            assert learnt != list(range(45))
            assert [line["line"] for line in report["outside"]] == tested
            assert did["learnt"][0]["opinions"] == 5
            assert report["inside"][0]["opinions"] == report["outside"][0]["opinions"] == 1
    assert sorted(left_out) == sorted(p.name for p in labeler.get_labelers("train"))


def test_both_groups_of_labelers_compare_the_same_answers_of_ppo_ptx_and_sft(lab, monkeypatch):
    monkeypatch.setattr(ppo, "answer", lambda name, network, rows, generator: (name, network))
    monkeypatch.setattr(
        labeler,
        "preference",
        lambda rows, ours, theirs, rng, people: (rows, ours, theirs, people[0].name, len(people)),
    )
    found = experiments.preferred_by_both_groups(lab, lab.base(2))
    both = (QUESTIONS, ("ppo_ptx", "seed2/ppo_ptx"), ("sft", "seed2/sft"))
    assert found == {"train": (*both, "train-0", 40), "held_out": (*both, "held_out-0", 20)}


@pytest.mark.parametrize(
    "name, slips, noise, rounds, odd",
    [
        ("default", 0.4, 1.0, 2, True),
        ("no slips", 0.0, 1.0, 2, True),
        ("slips 20 %", 0.2, 1.0, 2, True),
        ("no noise", 0.4, 0.0, 2, True),
        ("twice the noise", 0.4, 2.0, 2, True),
        ("one round", 0.4, 1.0, 1, True),
        ("SFT samples only", 0.4, 1.0, 1, False),
    ],
)
def test_a_dial_changes_the_people_while_models_are_trained_and_not_who_judges_them(
    lab, monkeypatch, name, slips, noise, rounds, odd
):
    """Demonstrations with other slips, rankings with other noise, other samples; one round has as
    many prompts as two."""
    seen, world, usual = {}, files.FOLDER, [("sft", None, 1.0)] * 4 + [("sft_hot", None, 1.3)]
    monkeypatch.setattr(reward, "response_sources", lambda config: (usual, ["odd"]))
    monkeypatch.setattr(
        experiments, "other_people", lambda world, folder, slips: (world, folder, slips)
    )
    monkeypatch.setattr(
        experiments,
        "train_in",
        lambda lab, config, folder, rounds, k: seen.update(
            config=config,
            rounds=rounds,
            k=k,
            folder=folder,
            noise=labeler.NOISE,
            samplers=reward.response_sources(None),
        ),
    )
    monkeypatch.setattr(
        ppo, "answer", lambda name, network, rows, generator: said(network, network)
    )
    monkeypatch.setattr(
        judge,
        "judge_all",
        lambda rows, responses: [
            SimpleNamespace(utility=0.5 + responses[0]["text"].endswith("ppo")),
            SimpleNamespace(utility=0.0),
        ],
    )
    monkeypatch.setattr(
        labeler,
        "preference",
        lambda rows, ours, theirs, rng, people: (
            where(ours[0]["text"]),
            where(theirs[0]["text"]),
            people[0].name,
            labeler.NOISE,
        ),
    )
    found, usual_noise = experiments.turn(lab, 2, name, **experiments.DIALS[name]), labeler.NOISE
    out = Path(seen["config"].out)
    assert seen["folder"] == (world, out / "world", slips)
    assert seen["noise"] == pytest.approx(noise * 0.2)
    assert seen["rounds"] == rounds
    assert seen["samplers"] == ((usual, ["odd"]) if odd else (usual[:4], []))
    assert seen["k"] == (6 if odd else 4)
    assert seen["config"] == dataclasses.replace(lab.base(2), out=str(out), iterations=15)
    assert out != Path(lab.base(2).out)
    assert files.FOLDER is world and usual_noise == 0.2
    assert found == {
        "sft": 0.25,
        "ppo": 0.75,
        "win_rate_vs_sft": (f"{out.name}/ppo", f"{out.name}/sft", "held_out-0", 0.2),
    }


def test_a_dial_is_turned_back_when_training_fails(lab, monkeypatch):
    def fails(*_, k):
        assert labeler.NOISE == 2 * before[1]
        raise KeyboardInterrupt

    before = files.FOLDER, labeler.NOISE, reward.response_sources
    monkeypatch.setattr(experiments, "other_people", lambda *_: "elsewhere")
    monkeypatch.setattr(experiments, "train_in", fails)
    with pytest.raises(KeyboardInterrupt):
        experiments.turn(lab, 1, "x", noise=2.0, odd=False)
    assert (files.FOLDER, labeler.NOISE, reward.response_sources) == before


def test_other_people_are_the_same_people_with_other_slips(tmp_path):
    """Without slips every demonstration is flawless; the prompts and who answers them stay."""
    world, people = tmp_path / "world", labeler.get_labelers("train")
    world.mkdir()
    drawn = prepare.draw_prompts({"demonstrations": 40}, 5)["demonstrations"]
    rows = [
        {"prompt": tasks.prompt(task), "completion": "?", "labeler": people[i].name, "task": task}
        for i, task in enumerate(drawn)
    ]
    rows = json.loads(json.dumps(rows))
    files.write(world / "demonstrations.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    (world / "corpus.txt").write_text("The fox.", encoding="utf-8", newline="\n")
    (world / "notes.md").write_text("not of the world", encoding="utf-8", newline="\n")
    for slips in (0.0, 1.0):
        folder = experiments.other_people(world, tmp_path / f"slips {slips}", slips)
        found = files.read_jsonl(folder / "demonstrations.jsonl")
        assert [row | {"completion": "?"} for row in found] == rows
        assert sorted(p.name for p in folder.iterdir()) == ["corpus.txt", "demonstrations.jsonl"]
        assert [row["completion"] for row in found] == [
            person.demonstrate(task, slips) for person, task in zip(people, drawn)
        ]
    assert (world / "demonstrations.jsonl").read_text(encoding="utf-8").count('"?"') == 40


# ---------------------------------------------------------------- which sentence for which numbers


def told(picture, rows):
    """The sentence under a picture of made-up rows."""
    return picture(rows, [MagicMock(), MagicMock(), MagicMock()])


def sweep(*utilities):
    """Rows of the KL sweep: the utilities of the seven betas, two seeds a tenth apart; the Likert
    grade is ten times the utility."""
    settings = {"sft_mix": 0.5} | {
        f"beta {beta}": u for beta, u in zip((0.0, 0.015, 0.05, 0.15, 0.5, 1.5, 15.0), utilities)
    }
    return over_seeds(
        **{
            name: [
                {"utility": u + d, "likert": 10 * u + d, "proxy": 1.0, "kl": 2.0}
                for d in (-0.05, 0.05)
            ]
            for name, u in settings.items()
        }
    )


def test_the_sweep_agrees_with_the_paper_if_neither_no_beta_nor_the_largest_is_best():
    sentence = told(experiments.picture_kl_sweep, sweep(0.41, 0.61, 0.71, 0.81, 0.72, 0.62, 0.52))
    assert (
        "are 0.500 and 5.0 before PPO, 0.410 and 4.1 at beta 0.0, 0.810 and 8.1 at best, beta "
        "0.15, 0.520 and 5.2 at 15.0: agrees." in sentence
    )
    assert told(experiments.picture_kl_sweep, sweep(0.9, 0.6, 0.7, 0.8, 0.7, 0.6, 0.5)).endswith(
        "0.900 and 9.0 at best, beta 0.0, 0.500 and 5.0 at 15.0: differs."
    )
    assert told(experiments.picture_kl_sweep, sweep(0.4, 0.6, 0.7, 0.8, 0.7, 0.6, 0.9)).endswith(
        "0.900 and 9.0 at best, beta 15.0, 0.900 and 9.0 at 15.0: differs."
    )


def taxed(ppo_loss=2.0, ptx_loss=1.1, ppo_skill=0.3, ptx_skill=0.6, raised=(1.5, 1.2)):
    """Rows of the alignment tax; GPT's corpus loss is 1. One skill is 0.2 above the others' mean
    of three, 0.2 below it another."""

    def row(loss, skill, gold):
        return [
            {
                "corpus_loss": loss + d,
                "utility": gold + d,
                "backwards": skill + 0.2,
                "then": skill - 0.2,
                "other words": skill,
                "questions": skill,
            }
            for d in (-0.1, 0.1)
        ]

    return over_seeds(
        **{
            "gpt": row(1.0, 0.7, 0.0),
            "sft": row(1.4, 0.5, 0.5),
            "sft_mix": row(1.05, 0.6, 0.55),
            "ppo": row(ppo_loss, ppo_skill, 0.8),
            "ppo_ptx": row(ptx_loss, ptx_skill, 0.85),
            "gamma x 4.0": row(1.01, 0.7, 0.7),
            "beta x 4.0": row(raised[0], 0.4, 0.75),
            "beta x 16.0": row(raised[1], 0.4, 0.65),
        }
    )


def test_ppo_ptx_agrees_with_the_paper_if_it_pays_less_than_half_the_tax_and_keeps_more_skill():
    names = list(experiments.TAXED)
    sentence = experiments.tax_in_words(taxed(), names)
    assert (
        "1.000 (0.70) for GPT, 2.000 (0.30) for PPO, 1.100 (0.60) for PPO-ptx: agrees; PPO with "
        "beta raised: " in sentence
    )
    assert sentence.endswith(
        "1.500 at 4 times, gold 0.750, 1.200 at 16 times, gold 0.650 (PPO-ptx 0.850): agrees."
    )
    verdict = lambda **numbers: [
        part.split()[-1]
        for part in experiments.tax_in_words(taxed(**numbers), names)
        .rstrip(".")
        .split("; PPO with beta raised")
    ]
    assert verdict(ptx_loss=1.45) == ["agrees", "differs"]
    assert verdict(ptx_loss=1.55)[0] == "differs"
    assert verdict(ptx_skill=0.2)[0] == "differs" and verdict(ptx_skill=0.31)[0] == "agrees"
    assert verdict(raised=(1.5, 1.09)) == ["agrees", "differs"]
    assert verdict(raised=(1.09, 1.5)) == [
        "agrees",
        "differs",
    ]


def test_the_tax_is_drawn_as_the_rise_above_the_base_model_of_the_same_seed():
    rows, axes = taxed(), [MagicMock(), MagicMock(), MagicMock()]
    rows["gpt seed 2"]["corpus_loss"] = (
        0.0  # 0.9 and 0: rises of the second seed are larger by as much
    )
    assert experiments.picture_alignment_tax(rows, axes) == experiments.tax_in_words(
        rows, list(experiments.TAXED)
    )
    (xs, means), style = axes[0].errorbar.call_args
    assert list(xs) == [1, 2, 3, 4]
    assert means == pytest.approx(
        [(a + b) / 2 for a, b in ((0.4, 1.5), (0.05, 1.15), (1.0, 2.1), (0.1, 1.2))]
    )
    (losses, golds), _ = axes[2].errorbar.call_args_list[0]  # gamma: PPO itself, times 1, times 4
    assert losses == pytest.approx([2.0, 1.1, 1.01]) and golds == pytest.approx([0.8, 0.85, 0.7])
    (losses, golds), _ = axes[2].errorbar.call_args_list[1]  # beta: PPO itself, times 4, times 16
    assert losses == pytest.approx([2.0, 1.5, 1.2]) and golds == pytest.approx([0.8, 0.75, 0.65])


def curves(
    few_ppo=(0.5, 0.8, 0.6, 0.2),
    many_ppo=(0.5, 0.7, 0.9),
    few_best=(0.5, 0.7, 0.6),
    many_best=(0.5, 0.7, 0.8),
):
    """Rows of over-optimisation with 300 and 10,000 rankings: gold at KL 0, 1, 2, 4 of PPO and at
    n = 1, 2, 4 of best-of-n."""

    def row(climbed, best):
        return [
            {
                "ppo": [
                    {"kl": kl, "gold": g, "proxy": kl}
                    for kl, g in zip((0.0, 1.0, 2.0, 4.0), climbed)
                ],
                "best_of_n": [
                    {"n": n, "kl": math.log(n), "gold": g, "proxy": n}
                    for n, g in zip((1, 2, 4), best)
                ],
            }
        ]

    return over_seeds(
        **{"10000 rankings": row(many_ppo, many_best), "300 rankings": row(few_ppo, few_best)}
    )


def test_over_optimisation_agrees_with_gao_if_gold_falls_further_with_few_rankings_in_both_ways():
    """PPO is compared where the KL of all runs has come: to 2, since one stopped there."""
    sentence = told(experiments.picture_over_optimisation, curves())
    assert (
        "Here, 300 (10,000) rankings: in best of n, gold peaks at 0.700 (0.800) and is 0.100 "
        "(0.000) lower at n = 4." in sentence
    )
    assert sentence.endswith(
        "In PPO it ends 0.600 (0.000) below its peak; where the KL first reaches 2.0 nats it "
        "stands at 0.600 (0.900), 0.200 (0.000) below: agrees."
    )


@pytest.mark.parametrize(
    "numbers, verdict",
    [
        (dict(few_ppo=(0.5, 0.6, 0.7, 0.2)), "agrees in part"),  # at equal KL nothing has fallen
        (dict(many_ppo=(0.5, 0.9, 0.6)), "agrees in part"),  # with many rankings PPO falls further
        (dict(few_best=(0.5, 0.7, 0.695)), "agrees in part"),  # hardly a fall at all
        (dict(many_best=(0.5, 0.9, 0.6)), "differs"),
        (dict(few_best=(0.5, 0.6, 0.7)), "differs"),
    ],
)
def test_over_optimisation_agrees_in_part_or_differs_where_a_fall_is_missing(numbers, verdict):
    assert told(experiments.picture_over_optimisation, curves(**numbers)).endswith(
        f"below: {verdict}."
    )


def sizes(ptx=(0.4, 0.7)):
    """Rows of Figure 1, two seeds, the preference of every size and writer for each rival; the
    large one is aligned once only."""
    rows = {}
    for seed, small in enumerate(ptx, 1):
        rows[f"seed {seed}"] = {
            f"{size} {name}": {"params": params}
            | {
                f"against_{rival}": [r / 10 + w / 100, 0, 1]
                for r, rival in enumerate(("sft", "gpt", "gpt_prompted"))
            }
            for size, params in (("small", 100), ("medium", 1_000), ("large", 15_000))
            for w, name in enumerate(experiments.WRITERS)
            if size != "large" or seed == 1 or name.startswith("gpt")
        }
        rows[f"seed {seed}"]["small ppo_ptx"] |= {
            "against_gpt": [small, 0, 1],
            "against_gpt_prompted": [small - 0.3, 0, 1],
        }
    return rows


def test_a_small_aligned_model_agrees_with_the_paper_if_most_prefer_it_to_the_large_raw_one():
    sentence = told(experiments.picture_figure_1, sizes())
    assert (
        "Here PPO-ptx of 100 parameters is preferred to GPT of 15,000, 150 times as many, in "
        "55.0%: agrees." in sentence
    )
    assert sentence.endswith(
        "The small GPT prompted is preferred to the large GPT in 11.0%, the small SFT in 12.0%; "
        "the small PPO-ptx to the large GPT prompted in 25.0%."
    )
    assert "in 45.0%: differs." in told(experiments.picture_figure_1, sizes((0.3, 0.6)))


def test_figure_1_draws_each_writer_by_size_with_the_range_of_its_seeds():
    axes = [MagicMock(), MagicMock(), MagicMock()]
    experiments.picture_figure_1(sizes(), axes)
    (params, means), style = axes[1].errorbar.call_args_list[
        4
    ]  # the last writer, PPO-ptx, against the large GPT
    assert params == [100, 1_000, 15_000]
    assert means == pytest.approx([0.55, 0.14, 0.14])
    assert style["label"] == "PPO-ptx"
    assert style["yerr"][0] == pytest.approx([0.15, 0, 0])
    assert style["yerr"][1] == pytest.approx([0.15, 0, 0])
    assert [axis.set.call_args.kwargs["ylabel"] for axis in axes] == [
        f"preferred to the largest {name}" for name in ("SFT", "GPT", "GPT (prompted)")
    ]


def metadata(**changes):
    """Rows of the metadata: keys by model, two seeds two hundredths apart."""
    table = {
        "hallucinates_closed_domain": (0.91, 0.51, 0.31, 0.25, 0.2, 0.21),
        "truthful": (0.01, 0.41, 0.51, 0.55, 0.6, 0.61),
        "toxic_not_asked": (0.2, 0.2, 0.1, 0.1, 0.1, 0.1),
        "toxic_asked_for_respect": (0.15, 0.2, 0.1, 0.1, 0.1, 0.05),
    } | changes
    rest = {key: (0.5,) * 6 for key, _ in experiments.METADATA}
    return {
        f"seed {seed}": {
            name: {key: values[i] + d for key, values in (rest | table).items()}
            | {"false_premises": 300}
            for i, name in enumerate(experiments.MODELS)
        }
        for seed, d in ((1, -0.01), (2, 0.01))
    }


def test_hallucination_truth_and_toxicity_are_told_by_model_with_the_papers_beside():
    sentence = told(experiments.picture_metadata, metadata())
    assert (
        "Here GPT 91% (it hardly answers), prompted 51%, SFT 31%, PPO-ptx 21%: agrees; in the "
        "paper SFT invents least, here PPO-ptx does." in sentence
    )
    assert "(300 prompts): GPT prompted 41%, SFT 51%, PPO-ptx 61%." in sentence
    assert sentence.endswith(
        "Here 20.0% to 10.0% not asked, 15.0% to 5.0% asked: differs, it falls either way."
    )


def test_metadata_differ_if_ppo_ptx_invents_more_than_gpt_and_agree_if_toxicity_stays_unasked():
    sentence = told(
        experiments.picture_metadata,
        metadata(
            hallucinates_closed_domain=(0.2, 0.5, 0.1, 0.3, 0.3, 0.21),
            toxic_not_asked=(0.2,) * 5 + (0.16,),
        ),
    )
    assert "PPO-ptx 21%: differs; in the paper SFT invents least, here SFT does." in sentence
    assert sentence.endswith("asked: agrees.")
    between = metadata(hallucinates_closed_domain=(0.9, 0.5, 0.1, 0.3, 0.3, 0.21))
    sentence = told(experiments.picture_metadata, between)
    assert (
        "SFT 10%, PPO-ptx 21%: agrees; in the paper SFT invents least, here SFT does." in sentence
    )


def groups(inside, outside, train=0.7, held_out=0.69):
    folds = {
        f"fold {fold} seed 1": {"inside": inside + d, "outside": outside + d}
        for fold, d in enumerate((-0.01, 0.01))
    }
    return folds | {
        f"preference seed {seed}": {"train": [train + d, 0, 1], "held_out": [held_out + d, 0, 1]}
        for seed, d in ((1, -0.1), (2, 0.1))
    }


@pytest.mark.parametrize(
    "inside, outside, words",
    [
        (0.72, 0.69, "(agrees);"),
        (0.72, 0.66, "(differs);"),
        (0.72, 0.715, "(agrees, with a smaller gap: our labelers' tastes differ less);"),
        (0.72, 0.73, "(differs, there is no gap: our labelers' tastes differ less);"),
    ],
)
def test_the_gap_between_labelers_inside_and_outside_is_told_with_its_size(inside, outside, words):
    sentence = told(experiments.picture_held_out_labelers, groups(inside, outside))
    assert f"Here {inside:.1%} and {outside:.1%} {words}" in sentence
    assert sentence.endswith(
        "PPO-ptx is preferred to SFT in 70.0% by training, 69.0% by held-out labelers (agrees)."
    )


def test_held_out_labelers_agree_unless_they_prefer_ppo_ptx_clearly_less():
    assert told(experiments.picture_held_out_labelers, groups(0.72, 0.69, 0.7, 0.66)).endswith(
        "66.0% by held-out labelers (differs)."
    )
    assert told(experiments.picture_held_out_labelers, groups(0.72, 0.69, 0.7, 0.68)).endswith(
        "68.0% by held-out labelers (agrees)."
    )
    assert told(experiments.picture_held_out_labelers, groups(0.72, 0.69, 0.7, 0.9)).endswith(
        "90.0% by held-out labelers (agrees)."
    )


def test_the_gap_that_ppo_closes_is_a_share_of_each_seeds_own_gap_to_a_perfect_answerer():
    """From 0.6 to 0.8 a half, from 0.5 to 0.6 a fifth: 0.35 on average, not the share of the
    averages."""
    rows = over_seeds(
        **{
            "default": [
                {"sft": 0.6, "ppo": 0.8, "win_rate_vs_sft": [0.6, 0, 1]},
                {"sft": 0.5, "ppo": 0.6, "win_rate_vs_sft": [0.8, 0, 1]},
            ],
            "no slips": [{"sft": 0.8, "ppo": 0.9, "win_rate_vs_sft": [0.55, 0, 1]}],
        }
    )
    axes = [MagicMock(), MagicMock(), MagicMock()]
    assert experiments.picture_dials(rows, axes).endswith(
        "by how people are simulated: default 0.35, no slips 0.50."
    )
    (x, height), style = axes[1].bar.call_args_list[0]
    assert (x, height, style["yerr"]) == (
        0,
        pytest.approx(0.35),
        [[pytest.approx(0.15)], [pytest.approx(0.15)]],
    )
    (x, wins), style = axes[2].errorbar.call_args_list[0][0], axes[2].errorbar.call_args_list[0][1]
    assert wins == pytest.approx(0.7)
    assert style["yerr"] == [
        [pytest.approx(0.1)],
        [pytest.approx(0.1)],
    ]


# ---------------------------------------------------------------- running them


def test_an_experiment_goes_on_where_it_stopped_and_adds_up_its_time(tmp_path, monkeypatch):
    """A row that stands is not measured again; each new one is written as soon as it is made; the
    sentence names the seeds."""
    clock, path = iter(range(0, 10_000, 5)), tmp_path / "kl_sweep.json"
    path.write_text(
        json.dumps({"cores": 1, "prompts": 2, "seconds": 7.0, "rows": {"a seed 1": 1.0}}),
        encoding="utf-8",
        newline="\n",
    )
    standing = []

    def measured(value):
        assert [file.name for file in (tmp_path / "runs").iterdir()] == [".kl_sweep.lock"]
        return noted(standing, set(files.read_json(path)["rows"]), value)

    def jobs(lab):
        for seed in (1, 2):
            for name, value in (("a", 10.00049 * seed), ("b", 20.0 * seed)):
                yield f"{name} seed {seed}", lambda value=value: measured(value)

    monkeypatch.setattr(
        experiments,
        "Lab",
        lambda quick: SimpleNamespace(
            results=tmp_path, rows=QUESTIONS, runs=tmp_path / "runs", quick=quick
        ),
    )
    monkeypatch.setattr(
        experiments,
        "EXPERIMENTS",
        {"kl_sweep": (jobs, lambda rows, axes: f"Here {sum(rows.values()):.1f}.", "")},
    )
    monkeypatch.setattr(experiments, "time", SimpleNamespace(time=lambda: float(next(clock))))
    assert experiments.run("kl_sweep") == "Here 81.0. (Seeds 1, 2.)"
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["rows"] == {"a seed 1": 1.0, "b seed 1": 20.0, "a seed 2": 20.0, "b seed 2": 40.0}
    assert found["seconds"] == 7 + 3 * 5
    assert standing == [
        {"a seed 1"},
        {"a seed 1", "b seed 1"},
        {"a seed 1", "b seed 1", "a seed 2"},
    ]
    assert not list((tmp_path / "runs").iterdir())


def test_a_single_seed_is_called_one(tmp_path, monkeypatch):
    monkeypatch.setattr(
        experiments, "EXPERIMENTS", {"x": (None, lambda rows, axes: "So it is.", "")}
    )
    rows = {"fold 0 seed 3": 1, "fold 1 seed 3": 2}
    files.write(tmp_path / "x.json", json.dumps({"rows": rows}))
    assert experiments.draw("x", tmp_path) == "So it is. (Seed 3.)"


@pytest.mark.parametrize("stands_in", ["a set", "the corpus"])
def test_further_prompts_are_in_no_committed_set_and_no_question_of_the_corpus(
    stands_in, tmp_path, monkeypatch
):
    """The prompt that would be drawn first is known: it does not come."""
    drawn = prepare.draw_prompts({"prompts_eval": 5}, prepare.SEED + 1)["prompts_eval"]
    first, text = tasks.prompt(drawn[0]), "The fox."
    monkeypatch.setattr(files, "FOLDER", tmp_path)
    for name in prepare.SIZES:
        known = stands_in == "a set" and name == "prompts_rm"
        row = {"prompt": first if known else "Hi"}
        files.write(tmp_path / f"{name}.jsonl", json.dumps(row) + "\n")
    if stands_in == "the corpus":
        text += f"\n\nQuestion: {first}\nAnswer: Yes."
    prepare.write_corpus(tmp_path, text + "\n", known=False)
    lab = SimpleNamespace(quick=False)
    prompts = [row["prompt"] for row in experiments.Lab.more_rows.__wrapped__(lab, 5)]
    assert len(set(prompts)) == 5 and first not in prompts


def test_a_quick_lab_has_no_further_prompts():
    assert experiments.Lab.more_rows.__wrapped__(SimpleNamespace(quick=True), 20) == []


def test_models_beside_a_base_run_start_from_its_gpt_and_sft_mix_and_overwrite_nothing(tmp_path):
    base, lab = tmp_path / "seed1", experiments.Lab.__new__(experiments.Lab)
    base.mkdir()
    for name in ("gpt", "sft_mix", "reward", "ppo"):
        (base / f"{name}.pt").write_text(name, encoding="utf-8", newline="\n")
    config = ppo.Config(seed=1, out=str(base))
    other = experiments.Lab.beside(lab, config, "300_rankings")
    assert other == dataclasses.replace(config, out=f"{base}_300_rankings")
    assert {p.name: p.read_text(encoding="utf-8") for p in Path(other.out).iterdir()} == {
        "gpt.pt": "gpt",
        "sft_mix.pt": "sft_mix",
    }
    (Path(other.out) / "gpt.pt").write_text("its own", encoding="utf-8", newline="\n")
    experiments.Lab.beside(lab, config, "300_rankings")
    assert (Path(other.out) / "gpt.pt").read_text(encoding="utf-8") == "its own"


def test_a_base_run_is_made_once_with_the_scripts_defaults(tmp_path, monkeypatch):
    lab, ran = experiments.Lab.__new__(experiments.Lab), []
    lab.quick, lab.runs = False, tmp_path
    monkeypatch.setattr(ppo, "run", lambda **stages: ran.append(stages))
    config = ppo.Config(seed=3, out=str(tmp_path / "seed3"))
    assert experiments.Lab.base(lab, 3) == config and ran == [{"config": config}]
    (tmp_path / "seed3" / "results.json").write_text("{}", encoding="utf-8", newline="\n")
    assert experiments.Lab.base(lab, 3) == config and len(ran) == 1


def test_the_sizes_span_two_orders_of_magnitude_and_the_middle_one_is_the_base_run(lab):
    """Parameters as the README states them; each size has a folder of its own and the seed of its
    run."""
    stages = {size: experiments.size_stages(lab, size, 2) for size in experiments.SIZES}
    assert stages["medium"] == lab.stages(2)
    count = {}
    for size in ("small", "large"):
        assert {(config.seed, config.out) for config in stages[size].values()} == {
            (2, str(lab.runs / f"{size}2"))
        }
        shape = stages[size]["pretrain"]
        network = model.GPT(
            model.GPTConfig(1024, shape.block_size, shape.n_layer, shape.n_head, shape.n_embd)
        )
        count[size] = sum(p.numel() for p in network.parameters())
    assert count == {"small": 73_584, "large": 7_540_992}
    assert stages["large"]["config"].lr == 3e-4 and stages["small"]["sft"].dropout == 0


@pytest.mark.parametrize("rounds", [1, 2])
def test_a_world_with_other_people_gets_models_of_its_own_from_the_same_base_model(
    lab, tmp_path, monkeypatch, rounds
):
    """One SFT model is both baseline and start; with one round, its reward model is the final
    one."""
    did, stored, network = [], {}, torch.nn.Linear(1, 1)
    config = dataclasses.replace(lab.base(1), out=str(tmp_path / "dial"), iterations=15)
    before = files.FOLDER
    Path(config.out).mkdir()
    monkeypatch.setattr(shared, "made", lambda *_: False)
    monkeypatch.setattr(
        model, "load_checkpoint", lambda path: {"extra": {"of": where(path), "world": "old"}}
    )
    monkeypatch.setattr(
        files, "world_hash", lambda: "new" if files.FOLDER == tmp_path / "world" else "old"
    )
    monkeypatch.setattr(
        files, "stage_extra", lambda settings, stage, made_from: {"made_from": made_from}
    )
    monkeypatch.setattr(
        model,
        "save_checkpoint",
        lambda path, network, **extra: stored.update(
            {str(Path(path).relative_to(config.out)): (network, extra)}
        ),
    )
    monkeypatch.setattr(
        shared.sft,
        "finetune",
        lambda settings, name, epochs, mix, after: noted(did, ("sft", name, epochs, mix), network),
    )

    def train(settings):
        did.append(("reward", settings.round, settings.k, settings.prompts_1, settings.prompts_2))
        (Path(config.out) / "reward_1.pt").write_text("of round 1", encoding="utf-8", newline="\n")

    monkeypatch.setattr(reward, "train", train)
    monkeypatch.setattr(
        ppo, "train_policy", lambda settings, *rest: did.append(("ppo", settings, *rest))
    )
    shared.train_in(lab, config, tmp_path / "world", rounds)
    assert files.FOLDER == before
    assert stored["gpt.pt"] == ("seed1/gpt", {"of": "seed1/gpt", "world": "new"})
    assert stored["sft_mix.pt"] == stored["sft_epochs/01.pt"] == (network, {"made_from": ["gpt"]})
    prompts = (2_000, 4_000) if rounds == 2 else (6_000, 4_000)
    first, second = (
        [("ppo", config, "ppo_1", "reward_1", 8, 0.0), ("reward", 2, 6, *prompts)],
        ("ppo", config, "ppo", "reward", 15, 0.0),
    )
    assert did == [
        ("sft", "sft_mix", 8, shared.sft.Config.mix),
        ("reward", 1, 6, *prompts),
        *(first if rounds == 2 else []),
        second,
    ]
    assert (Path(config.out) / "reward.pt").exists() == (rounds == 1)
