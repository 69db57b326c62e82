"""The reward model's stage as it runs: who writes what is ranked, who ranks it, what is learnt
from it, chosen by it, measured.

Stubs speak, judge and score here, so that every figure is known by hand: a sampler is a name, a
labeler has a table of tastes, an optimiser is a recorder that moves nothing.
"""

import json
import math
import random
from collections import Counter

import pytest
import torch

import reward
from data import files, prepare, tasks, tokenizer
from data.labeler import accuracy, get_labelers, margins_of
from data.files import (
    UserError, load_checkpoint, read_rankings, save_checkpoint, stage_extra
)
from data.flags import BaseConfig
from model import GPT, GPTConfig
from reward import RewardModel, collect, rank

FOX = {"use_case": "open_qa", "kind": "fact", "animal": "fox", "attribute": "food", "phrasing": 0}


def rows_of(n):
    """n different prompts."""
    made, rng = {}, random.Random(0)
    while len(made) < n:
        task = tasks.new_task(rng, "chat")
        made[tasks.prompt(task)] = {"prompt": tasks.prompt(task), "use_case": "chat", "task": task}
    return list(made.values())


def said(*texts):
    return [{"text": text, "ended": True, "sampler": "sft"} for text in texts]


def marked(mark, dropout=0.0):
    """A small GPT that can be told from others."""
    made = GPT(GPTConfig(64, 128, 1, 1, 2, dropout))
    with torch.no_grad():
        made.transformer.ln_f.bias.fill_(mark)
    return made


def sft_run(folder, epochs):
    """The SFT stage's products: sft_mix is 2 and says that there were so many epochs, which are
    11, 12, ..."""
    extra = stage_extra(BaseConfig(out=str(folder)), "sft")
    extra["settings"] |= {"epochs": epochs}
    for epoch in range(1, epochs + 1):
        path = folder / "sft_epochs" / f"{epoch:02d}.pt"
        save_checkpoint(path, marked(10 + epoch, dropout=0.2), **extra)
    save_checkpoint(folder / "sft_mix.pt", marked(2, dropout=0.2), **extra)


def mark_of(gpt):
    return None if gpt is None else round(gpt.transformer.ln_f.bias[0].item())


@pytest.fixture
def out(tmp_path):
    """A run's folder in which every model can be told: gpt is 1, sft_mix 2, ppo_1 3, the SFT
    epochs 11, 12 and 13."""
    extra = stage_extra(BaseConfig(out=str(tmp_path)), "test")
    sft_run(tmp_path, epochs=3)
    for name, mark in (("gpt", 1), ("ppo_1", 3)):
        save_checkpoint(tmp_path / f"{name}.pt", marked(mark, dropout=0.2), **extra)
    for name in ("reward_1", "reward"):
        save_checkpoint(tmp_path / f"{name}.pt", RewardModel(GPTConfig(64, 128, 1, 1, 2)), **extra)
    return tmp_path


# ---------------------------------------------------------------- who writes the responses


@pytest.mark.parametrize(
    "round, usual",
    [
        (
            1,
            [
                ("sft", 13, 1.0),
                ("sft", 13, 1.0),
                ("sft_mix", 2, 1.0),
                ("sft_mix", 2, 1.0),
                ("sft_hot", 13, 1.3),
            ],
        ),
        (
            2,
            [
                ("ppo_1", 3, 1.0),
                ("ppo_1", 3, 1.0),
                ("ppo_hot", 3, 1.3),
                ("sft", 13, 1.0),
                ("sft_mix", 2, 1.0),
            ],
        ),
    ],
)
def test_most_responses_come_from_sft_in_round_1_and_from_the_first_policy_in_round_2(
    out, round, usual
):
    """SFT's last epoch, 3, is meant: the best one is chosen only later. None of them drops out."""
    got, odd = reward.response_sources(reward.Config(out=str(out), round=round))
    assert [(name, mark_of(gpt), temperature) for name, gpt, temperature in got] == usual
    assert [(name, mark_of(gpt)) for name, gpt, _ in odd] == [
        ("sft_hot", 13),
        ("gpt", 1),
        ("other_prompt", None),
    ]
    assert odd[0][2] == 1.5 and odd[1][2] == 1.0 and not any(gpt.training for _, gpt, _ in got)


def test_epochs_are_counted_and_not_spelt(tmp_path):
    """By sft_mix, which knows how many there were: no stray file counts, and none may lack."""
    config, folder = BaseConfig(out=str(tmp_path)), tmp_path / "sft_epochs"
    sft_run(tmp_path, epochs=101)
    (folder / "101.pt").rename(folder / "102.pt")
    with pytest.raises(UserError, match="101.pt is missing: delete .*sft_mix.pt, .*python sft.py"):
        files.sft_epochs(config)
    (folder / "102.pt").rename(folder / "101.pt")
    for stray in ("00", "102", "best"):
        (folder / f"{stray}.pt").touch()
    names = files.sft_epochs(config)
    assert names[:2] == ["01", "02"] and names[8:10] == ["09", "10"]
    assert names[-3:] == ["99", "100", "101"] and len(names) == 101
    with pytest.raises(UserError, match="python sft.py"):
        files.sft_epochs(BaseConfig(out=str(tmp_path / "nowhere")))


class Voices:
    """In place of `generate`: `says(who, prompt, temperature, draw)` -> text; a text in capitals
    never ends. Notes every call."""

    def __init__(self, monkeypatch, encoding, says):
        self.encoding, self.says, self.calls = encoding, says, []
        monkeypatch.setattr(reward, "generate", self.generate)

    def generate(
        self, who, prompts, max_new_tokens, temperature=1.0, generator=None, batch_size=256
    ):
        asked = [self.encoding.decode(ids[1:]).strip() for ids in prompts]
        self.calls.append((who, temperature, max_new_tokens, asked))
        texts = [self.says(who, prompt, temperature, len(self.calls)) for prompt in asked]
        return [tokenizer.response_ids(self.encoding, text, not text.isupper()) for text in texts]


USUAL = [("a", "A", 1.0), ("a", "A", 1.0), ("b", "B", 0.7), ("c", "C", 1.3)]
ODD = [("hot", "H", 1.5), ("gpt", "G", 1.0), ("other_prompt", None, 1.0)]


def test_the_last_place_goes_to_the_odd_writers_in_turn(monkeypatch, encoding):
    """K = 4: three usual samplers and an odd one; every third prompt gets an answer to another
    prompt."""
    voices, rows = Voices(
        monkeypatch, encoding, lambda who, prompt, t, draw: f"{who} {draw} to {prompt}"
    ), rows_of(60)
    answers = collect(rows, (USUAL, ODD), 4, random.Random(0), torch.Generator())
    texts, strangers = [{r["text"] for r in responses} for responses in answers], 0
    for i, responses in enumerate(answers):
        names = Counter(r["sampler"] for r in responses)
        assert len(texts[i]) == len(responses) == 4 and all(
            set(r) == {"text", "ended", "sampler"} for r in responses
        )
        if i % 3 < 2 or "other_prompt" in names:
            assert names == Counter(["a", "a", "b", ODD[i % 3][0]])
        for r in responses:
            own = r["text"].endswith(rows[i]["prompt"])
            assert own != (r["sampler"] == "other_prompt")
            strangers += not own
            assert own or any(r["text"] in other for j, other in enumerate(texts) if j != i)
    assert strangers >= 17  # of 20; it may happen to be the same prompt
    assert [call[:3] for call in voices.calls[:5]] == [
        ("A", 1.0, 32),
        ("A", 1.0, 32),
        ("B", 0.7, 32),
        ("H", 1.5, 32),
        ("G", 1.0, 32),
    ]
    assert voices.calls[3][3] == [row["prompt"] for row in rows[::3]] and voices.calls[4][3] == [
        row["prompt"] for row in rows[1::3]
    ]


def test_without_odd_writers_all_places_are_usual_ones(monkeypatch, encoding):
    voices = Voices(monkeypatch, encoding, lambda who, prompt, t, draw: f"{who} {draw}")
    answers = collect(rows_of(5), (USUAL, []), 4, random.Random(0), None)
    assert [Counter(r["sampler"] for r in responses) for responses in answers] == [
        Counter(["a", "a", "b", "c"])
    ] * 5
    assert [who for who, *_ in voices.calls] == ["A", "A", "B", "C"]


def test_a_repeated_response_is_drawn_again_hotter_and_only_where_one_is_missing(
    monkeypatch, encoding
):
    """Below a temperature of 1.3 the sampler knows one answer, except to the first prompt."""
    rows = rows_of(4)
    voices = Voices(
        monkeypatch,
        encoding,
        lambda who, prompt, t, draw: (
            f"{draw}" if t > 1.3 or prompt == rows[0]["prompt"] else "same"
        ),
    )
    answers = collect(rows, ([("a", "A", 1.0)] * 3, []), 3, random.Random(0), None)
    assert [len({r["text"] for r in responses}) for responses in answers] == [3] * 4
    assert [temperature for _, temperature, *_ in voices.calls] == pytest.approx(
        [1, 1, 1, 1.2, 1.4, 1.6]
    )
    assert [asked for *_, asked in voices.calls[3:]] == [[row["prompt"] for row in rows[1:]]] * 3


def test_a_response_that_stays_the_same_is_left_out(monkeypatch, encoding):
    """Whoever gives it; it belongs to who gave it first."""
    voices = Voices(
        monkeypatch, encoding, lambda who, prompt, t, draw: "same" if draw % 2 else "NO END"
    )
    answers = collect(rows_of(2), (USUAL[1:] + USUAL[:1], []), 4, random.Random(0), None)
    assert [{r["text"]: r["sampler"] for r in responses} for responses in answers] == [
        {"same": "a", "NO END": "b"}
    ] * 2
    assert [sorted((r["text"], r["ended"]) for r in responses) for responses in answers] == [
        [("NO END", False), ("same", True)]
    ] * 2
    assert [who for who, *_ in voices.calls] == ["A", "B", "C", "A"] + ["A", "B", "C"]


def test_the_place_of_a_response_does_not_say_who_wrote_it(monkeypatch, encoding):
    Voices(monkeypatch, encoding, lambda who, prompt, t, draw: f"{who} {draw}")
    answers = collect(rows_of(60), (USUAL, []), 4, random.Random(0), None)
    first = Counter(responses[0]["sampler"] for responses in answers)
    assert set(first) == {"a", "b", "c"} and first["a"] < 45


# ---------------------------------------------------------------- who ranks them


class Number:
    """A labeler who gives his own number for a rank, and notes what he was asked."""

    def __init__(self, number):
        self.number, self.name, self.asked = number, f"labeler {number}", []

    def rank(self, task, responses):
        self.asked.append((task, responses))
        return [self.number] * len(responses)


def test_one_labeler_signs_a_ranking_and_others_give_second_opinions_each_once():
    people, rows = [Number(n) for n in range(5)], rows_of(200)
    responses = [said(*(f"{i} {j}" for j in range(2 + i % 3))) for i in range(200)]
    lines = rank(rows, responses, people, random.Random(0), 2, opinions=3)
    for line, row, answers in zip(lines, rows, responses):
        assert (line["prompt"], line["task"], line["responses"], line["round"]) == (
            row["prompt"],
            row["task"],
            answers,
            2,
        )
        votes = [line["ranks"], *line["second_opinions"]]
        assert [len(vote) for vote in votes] == [len(answers)] * 3 and len(
            {vote[0] for vote in votes}
        ) == 3
        assert line["labeler"] == f"labeler {line['ranks'][0]}"
    assert all(25 <= count <= 55 for count in Counter(line["labeler"] for line in lines).values())
    own = {json.dumps(row["task"]): answers for row, answers in zip(rows, responses)}
    assert all(
        answers == own[json.dumps(task)] for person in people for task, answers in person.asked
    )


def test_one_opinion_is_the_default():
    (line,) = rank(rows_of(1), [said("a", "b")], [Number(n) for n in range(5)], random.Random(0), 1)
    assert line["second_opinions"] == [] and len(line["ranks"]) == 2


@pytest.mark.parametrize(
    "ranks, second, fine",
    [
        ([1, 2, 2], [[2, 1, 1]], True),
        ([1, 1, 1], [], True),
        ([3, 1, 2], [[1, 2, 3], [3, 2, 1]], True),
        ([0, 1, 2], [], False),
        ([1, 3, 3], [], False),
        ([2, 2, 2], [], False),
        ([1, 2], [], False),
        ([1, 2, 2], [[1, 2]], False),
        ([1, 2, 2], [[1, 2, 3], [1, 3, 3]], False),
        ([1, 2.0, 2], [], False),
        ([1, True, 2], [], False),
    ],
)
def test_ranks_count_from_one_without_a_gap_and_rank_every_response(tmp_path, ranks, second, fine):
    line = {
        "prompt": tasks.prompt(FOX),
        "task": FOX,
        "responses": said("a", "b", "c"),
        "ranks": ranks,
        "second_opinions": second,
        "labeler": "x",
        "round": 1,
    }
    good = {**line, "ranks": [1, 2, 3], "second_opinions": []}
    files.write(tmp_path / "rankings.jsonl", json.dumps(good) + "\n" + json.dumps(line) + "\n")
    if fine:
        assert read_rankings(tmp_path / "rankings.jsonl") == [good, line]
    else:
        with pytest.raises(UserError, match="rankings.jsonl, line 2"):
            read_rankings(tmp_path / "rankings.jsonl")


# ---------------------------------------------------------------- scores


def speaking(seed=0, head=1.0):
    """A small reward model with a head, of the town's vocabulary."""
    torch.manual_seed(seed)
    made = RewardModel(GPTConfig(1024, 48, 1, 1, 8)).eval()
    torch.nn.init.normal_(made.score.weight, std=head)
    return made


@torch.no_grad()
def score_alone(made, encoding, prompt, response):
    ids = tokenizer.prompt_ids(encoding, prompt) + tokenizer.response_ids(
        encoding, response["text"], response["ended"]
    )
    return made.values(torch.tensor([ids]))[0, -1].item()


def test_scores_come_in_the_order_of_the_questions_however_many_there_are(encoding):
    """300 responses of 1 to 7 words, more than are scored at once; whether one ended is read,
    too."""
    made = speaking()
    pairs = [
        (f"Say {i}", {"text": " ".join(["fox"] * (1 + i % 7)), "ended": i % 3 > 0})
        for i in range(300)
    ]
    scores = reward.score(made, encoding, pairs)
    for i in (0, 1, 2, 3, 128, 255, 256, 299):
        assert scores[i] == pytest.approx(score_alone(made, encoding, *pairs[i]), abs=1e-5)
    assert len(scores) == 300 and len({round(s, 4) for s in scores}) > 200


def test_scores_of_rankings_keep_their_shape(monkeypatch):
    monkeypatch.setattr(
        reward,
        "score",
        lambda made, encoding, pairs: [f"{prompt} {r['text']}" for prompt, r in pairs],
    )
    lines = [
        {"prompt": "p", "responses": said("a", "b")},
        {"prompt": "q", "responses": []},
        {"prompt": "r", "responses": said("c")},
    ]
    assert reward.scores_of(None, None, lines) == [["p a", "p b"], [], ["r c"]]


def test_a_margin_is_the_preferred_ones_score_less_the_others_and_ties_have_none():
    lines = [{"ranks": [2, 1, 2]}, {"ranks": [1, 1]}, {"ranks": [3, 2, 1]}]
    margins = margins_of(lines, [[0.5, 2.0, -1.0], [9.0, 0.0], [0.0, 1.0, 5.0]])
    assert sorted(margins) == [1.0, 1.5, 3.0, 4.0, 5.0]
    assert margins_of([{"ranks": [1, 2]}], [[0.0, 1.0]]) == [-1.0]


def test_an_equal_score_is_half_right():
    assert (
        accuracy([1.0, -1.0, 0.0, 0.5]) == 2.5 / 4 and accuracy([0.0]) == 0.5 and accuracy([]) == 0
    )


def test_centring_puts_demonstrations_at_0_and_moves_nothing_between_responses(
    encoding, tmp_path, monkeypatch
):
    rows = [
        {"prompt": f"Say {word}.", "completion": f"{word} {word}."}
        for word in ("fox", "owl", "hare", "crab", "seal")
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    files.write(tmp_path / "demonstrations.jsonl", lines)
    monkeypatch.setattr(files, "FOLDER", tmp_path)
    made, pairs = speaking(), [("Hi", {"text": text, "ended": True}) for text in ("fox", "red owl")]
    before = reward.score(made, encoding, pairs)
    for _ in range(2):  # once more changes nothing
        reward.centre(made, encoding)
        scores = [
            score_alone(made, encoding, row["prompt"], {"text": row["completion"], "ended": True})
            for row in rows
        ]
        assert sum(scores) / 5 == pytest.approx(0, abs=1e-6) and max(map(abs, scores)) > 0.01
    after = reward.score(made, encoding, pairs)
    assert (
        after[0] - after[1] == pytest.approx(before[0] - before[1], abs=1e-5)
        and abs(after[0] - before[0]) > 0.01
    )


# ---------------------------------------------------------------- how good is it?

RIGHT, WRONG, RUDE = (
    "The fox eats berries.",
    "The fox eats fish.",
    "You fool. The fox eats berries.",
)
SHORT, SHORT_WRONG = "Berries.", "Fish."
TASTES = {
    "train": {RUDE: 3, RIGHT: 2, WRONG: 1, SHORT_WRONG: 2, SHORT: 1},
    "held_out": {RIGHT: 3, WRONG: 2, RUDE: 1, SHORT: 2, SHORT_WRONG: 1},
}
MIND = {
    RUDE: 3,
    WRONG: 2,
    RIGHT: 1,
    SHORT_WRONG: 2,
    SHORT: 1,
}  # the first ten training labelers, without noise


class Person:
    """A labeler who ranks by a table; whose opinion without noise is another one."""

    def __init__(self, number, group):
        self.number, self.group, self.name = number, group, f"{group}-{number}"

    def rank(self, task, responses):
        values = [TASTES[self.group][r["text"]] for r in responses]
        return [1 + sum(other > value for other in set(values)) for value in values]

    def prefer(self, task, a, b):
        return float(TASTES[self.group][a["text"]] > TASTES[self.group][b["text"]])

    def opinion(self, task, response, noise=True):
        known = not noise and self.group == "train" and self.number < 10
        return MIND[response["text"]] if known else -1_000 * MIND[response["text"]]


@pytest.fixture
def measured(monkeypatch, encoding):
    """reward.evaluate_reward_model on four prompts: the report, the margins, and the mixes that were asked for
    responses."""
    asked, scores = [], {RIGHT: 1.0, RUDE: 2.0, WRONG: 0.0, SHORT: 0.5, SHORT_WRONG: 0.0}

    def collected(rows, mix, k, rng, generator):
        asked.append((rows, mix, k))
        return [
            said(SHORT, SHORT_WRONG) if mix[1] == [] else said(RIGHT, WRONG, RUDE) for _ in rows
        ]

    for name, stub in (
        ("response_sources", lambda config: ("usual", "odd")),
        ("collect", collected),
        ("get_labelers", lambda group: [Person(n, group) for n in range(20)]),
        ("score", lambda made, encoding, pairs: [scores[r["text"]] for _, r in pairs]),
        ("require", lambda config, name, script: name),
        ("load_model", lambda path, *_: f"the model of {path}"),
    ):
        monkeypatch.setattr(reward, name, stub)
    rows = [{"prompt": tasks.prompt(FOX), "task": FOX}] * 4
    return *reward.evaluate_reward_model("the reward model", reward.Config(k=5), rows), asked, rows


def test_accuracy_is_measured_with_labelers_of_training_held_out_ones_and_the_judge(measured):
    """Scores: rude 2, right 1, wrong 0. Training labelers rank them so; held-out ones right,
    wrong, rude; the judge right, rude, wrong."""
    report, *_ = measured
    assert report["accuracy_train_labelers"] == 1 and report[
        "accuracy_heldout_labelers"
    ] == pytest.approx(1 / 3)
    assert report["accuracy_gold"] == pytest.approx(2 / 3)
    assert report["accuracy_sft_pairs"] == 0 and report["labeler_agreement"] == 1


def test_the_ceiling_is_the_mean_opinion_of_ten_training_labelers_without_noise(measured):
    """Which is rude, wrong, right here: of three pairs the training labelers share two, the
    held-out ones none, the judge one."""
    ceilings = measured[0]["ceilings"]
    assert ceilings["train_labelers"] == pytest.approx(2 / 3) and ceilings["heldout_labelers"] == 0
    assert ceilings["gold"] == pytest.approx(1 / 3) and ceilings["sft_pairs"] == 1


def test_the_margins_of_the_calibration_plot_are_those_of_the_pairs(measured):
    margins = measured[1]
    assert sorted(margins["train_labelers"]) == [1.0] * 8 + [2.0] * 4
    assert sorted(margins["heldout_labelers"]) == [-2.0] * 4 + [-1.0] * 4 + [1.0] * 4
    assert margins["sft_pairs"] == [-0.5] * 4


def test_pairs_are_ranked_from_the_mix_and_from_the_baseline_alone(measured):
    *_, asked, rows = measured
    (first, mix, k), (second, (usual, odd), k_alone) = asked
    assert mix == ("usual", "odd") and first == second == rows and k == k_alone == 5
    assert [(gpt, temperature) for _, gpt, temperature in usual] == [
        ("the model of sft", 1.0)
    ] * 5 and odd == []


# ---------------------------------------------------------------- which SFT epoch is the baseline?


def test_the_epoch_whose_samples_score_best_on_average_becomes_the_baseline(
    out, monkeypatch, encoding
):
    """Epoch 1 has the single best sample, epoch 2 the best mean, epoch 3 is the last and the
    worst."""
    rows, asked = rows_of(4), []
    best_once = rows[2]["prompt"]

    def says(gpt, prompt, temperature, draw):
        asked.append((mark_of(gpt), prompt, temperature))
        return {11: "one", 12: "TWO", 13: "three"}[mark_of(gpt)]

    def scored(made, encoding, pairs):
        assert made == "the reward model" and all(
            r["ended"] == (r["text"] != "TWO") for _, r in pairs
        )
        return [
            {"one": 10.0 if prompt == best_once else 0.0, "TWO": 3.0, "three": 1.0}[r["text"]]
            for prompt, r in pairs
        ]

    Voices(monkeypatch, encoding, says)
    monkeypatch.setattr(reward, "score", scored)
    reward.keep_best_sft(reward.Config(out=str(out)), "the reward model", rows)
    saved = load_checkpoint(out / "sft.pt")
    assert (
        saved["state"]["transformer.ln_f.bias"][0] == 12
        and saved["extra"]["epoch"] == 2
        and saved["extra"]["stage"] == "sft"
    )
    table = {row[0]: row[1] for row in saved["extra"]["scores"]}
    assert table == {"01": 2.5, "02": 3.0, "03": 1.0} and saved["extra"]["scores"][0][0] == "02"
    assert saved["extra"]["parents"] == {
        name: load_checkpoint(out / f"{name}.pt")["sha256"] for name in ("gpt", "reward_1")
    }
    for mark in (11, 12, 13):
        assert {prompt for m, prompt, _ in asked if m == mark} == {row["prompt"] for row in rows}
    assert {temperature for *_, temperature in asked} == {1.0}


def rated(monkeypatch, encoding, out, rows, scores):
    """reward.rate_sft_epochs where the n-th sample of an epoch scores scores[epoch][n]: the table,
    and how many samples of each epoch there were to a prompt."""
    made = Counter()

    def generate(gpt, prompts, *settings):
        epoch = mark_of(gpt) - 10
        made[epoch] += 1
        value = scores[epoch][min(made[epoch], len(scores[epoch])) - 1]
        return [tokenizer.response_ids(encoding, str(value)) for _ in prompts]

    def score(made, encoding, pairs):
        return [float(r["text"]) for _, r in pairs]

    monkeypatch.setattr(reward, "generate", generate)
    monkeypatch.setattr(reward, "score", score)
    return reward.rate_sft_epochs(reward.Config(out=str(out)), None, rows, seed=1), dict(made)


def test_the_baseline_is_not_the_epoch_that_was_lucky_once(out, monkeypatch, encoding):
    """Epoch 1 scores 5 once and then 0; epoch 2 scores 4 and then 2, eight samples in all: it stays
    first, although epoch 4, which went after one sample, had scored 3."""
    sft_run(out, epochs=4)
    known = {1: [5, 0], 2: [4, 2], 4: [3], 3: [1]}
    table, samples = rated(monkeypatch, encoding, out, rows_of(4), known)
    assert samples == {1: 2, 2: 8, 4: 1, 3: 1}
    means = [(name, mean) for name, mean, _ in table]
    assert means == [("02", 2.25), ("04", 3.0), ("01", 2.5), ("03", 1.0)]


@pytest.mark.parametrize("later, chosen", [(0.74, "08"), (0.71, "08"), (0.69, "04")])
def test_of_two_epochs_that_samples_cannot_tell_apart_the_later_is_the_baseline(later, chosen):
    """.73 beside .71 with errors of .02 each: the difference errs by .028. Beside .69 it is no luck."""
    table = [("04", 0.73, 0.02), ("08", later, 0.02), ("16", 0.72, 0.08)]
    assert reward.choose(table, ["04", "08"]) == reward.choose(table, ["08", "04"]) == chosen


def test_the_mean_of_more_samples_is_surer(out, monkeypatch, encoding):
    """The variance of a prompt's samples is 12.5 for 5, 0 and 0.5 for 4 and seven 2: 6.5. Four
    prompts, eight, two or one sample each."""
    sft_run(out, epochs=4)
    known = {1: [5, 0], 2: [4, 2], 4: [3], 3: [1]}
    table, samples = rated(monkeypatch, encoding, out, rows_of(4), known)
    for name, _, half in table:
        assert half == pytest.approx(1.96 * (6.5 / 4 / samples[int(name)]) ** 0.5)


# ---------------------------------------------------------------- training


class Recorder(torch.optim.Optimizer):
    """In place of an optimiser: notes the rate and the gradients of each step, and moves
    nothing."""

    def __init__(self, parameters):
        super().__init__(parameters, dict(lr=0.0))
        self.rates, self.gradients = [], []

    def step(self):
        self.rates.append(self.param_groups[0]["lr"])
        self.gradients.append(
            [
                torch.zeros_like(p) if p.grad is None else p.grad.clone()
                for p in self.param_groups[0]["params"]
            ]
        )


@pytest.fixture
def fitting(tmp_path, monkeypatch, encoding):
    """(fit, notes): runs reward.fit on 100 rankings for two passes of 50 steps each."""
    extra, notes = stage_extra(BaseConfig(out=str(tmp_path)), "test"), {"lines": [], "asked": []}
    save_checkpoint(tmp_path / "gpt.pt", GPT(GPTConfig(1024, 48, 1, 1, 8, dropout=0.2)), **extra)
    save_checkpoint(tmp_path / "reward_1.pt", speaking(head=8.0), **extra)
    rng, ranked, real_batch = random.Random(0), [], reward.ranking_batch
    for i in range(100):
        answers = [
            {
                "text": " ".join(rng.choices(["fox", "owl", "red"], k=rng.randint(1, 4))),
                "ended": rng.random() < 0.8,
            }
            for _ in range(3)
        ]
        ranked.append(
            {
                "prompt": f"Say {i}",
                "responses": answers,
                "ranks": rng.choice([[1, 2, 3], [2, 1, 1], [1, 3, 2]]),
                "second_opinions": [rng.choice([[1, 2, 2], [3, 2, 1]])],
                "round": 1,
            }
        )

    def noted_batch(lines, *rest):
        notes["lines"].append(lines)
        return real_batch(lines, *rest)

    def recorders(made, lr, lr_rest, decay=0.0):
        parameters = list(made.parameters())
        notes.update(
            parameters=parameters,
            recorders=(Recorder(parameters[:3]), Recorder(parameters[3:])),
            decay=decay,
        )
        return list(zip(notes["recorders"], (lr, lr_rest)))

    def fit(**changes):
        config = reward.Config(
            **{
                "out": str(tmp_path),
                "round": 2,
                "batch_size": 2,
                "epochs": 2,
                "lr": 2.0,
                "lr_rest": 6.0,
                **changes,
            }
        )
        return reward.fit(config, ranked)

    monkeypatch.setattr(reward, "ranking_batch", noted_batch)
    monkeypatch.setattr(reward, "muon_and_adam", recorders)
    return fit, notes, ranked, tmp_path


def loss_of(made, encoding, lines, score=None):
    """Equation 1 again: the mean over a prompt's pairs and its labelers' opinions, then over
    prompts, each response read alone."""
    losses, right, pairs = [], 0, 0
    for line in lines:
        scores = torch.stack(
            [
                made.values(
                    torch.tensor(
                        [
                            tokenizer.prompt_ids(encoding, line["prompt"])
                            + tokenizer.response_ids(encoding, r["text"], r["ended"])
                        ]
                    )
                )[0, -1]
                for r in line["responses"]
            ]
        )
        margins = [
            scores[i] - scores[j]
            for ranks in [line["ranks"], *line["second_opinions"]]
            for i, a in enumerate(ranks)
            for j, b in enumerate(ranks)
            if a < b
        ]
        losses.append(-torch.nn.functional.logsigmoid(torch.stack(margins)).mean())
        right, pairs = right + sum(m.item() > 0 for m in margins), pairs + len(margins)
    return torch.stack(losses).mean(), right / pairs


def test_each_optimiser_of_the_reward_model_warms_up_and_follows_a_cosine_to_its_own_peak(fitting):
    """100 steps, a fiftieth of them warming up: a tenth, 0.55, the peak; half-way down at 51."""
    fit, notes, *_ = fitting
    fit()
    for recorder, peak in zip(notes["recorders"], (2.0, 6.0)):
        assert len(recorder.rates) == 100
        assert [recorder.rates[step] / peak for step in (0, 1, 2, 51)] == pytest.approx(
            [0.1, 0.55, 1, 0.55]
        )
        assert recorder.rates[99] / peak == pytest.approx(
            0.1 + 0.45 * (1 + math.cos(math.pi * 97 / 98))
        )
    assert notes["decay"] == 0


def test_a_step_of_the_reward_model_is_the_clipped_gradient_of_equation_1(fitting, encoding):
    """Worked out again from its prompts, response by response, for four steps."""
    fit, notes, _, out = fitting
    made, losses = fit()
    logged = [json.loads(line) for line in open(out / "reward_2.jsonl", encoding="utf-8")]
    lengths = []
    for step in (0, 1, 49, 50):
        loss, right = loss_of(made, encoding, notes["lines"][step])
        gradients = torch.autograd.grad(loss, notes["parameters"])
        lengths.append(torch.cat([g.flatten() for g in gradients]).norm().item())
        got = sum((recorder.gradients[step] for recorder in notes["recorders"]), [])
        assert all(
            torch.allclose(a, b * min(1, 1 / lengths[-1]), atol=1e-4)
            for a, b in zip(got, gradients)
        )
        assert losses[step] == pytest.approx(loss.item(), abs=1e-4) and logged[step][
            "loss"
        ] == pytest.approx(losses[step], abs=1e-5)
        assert (
            logged[step]["accuracy"] == pytest.approx(right, abs=1e-5)
            and logged[step]["step"] == step
        )
    assert max(lengths) > 1.2 and len(losses) == len(logged) == 100
    assert not made.training


def test_each_pass_over_the_rankings_takes_every_prompt_once_and_in_its_own_order(fitting):
    fit, notes, ranked, _ = fitting
    fit()
    one, two = (
        [line["prompt"] for lines in notes["lines"][start : start + 50] for line in lines]
        for start in (0, 50)
    )
    assert sorted(one) == sorted(two) == sorted(line["prompt"] for line in ranked) and one != two
    assert all(len(lines) == 2 for lines in notes["lines"])


def test_each_seed_meets_the_rankings_in_an_order_of_its_own(fitting):
    fit, notes, _, out = fitting
    orders = []
    for seed in (1, 1, 2):
        extra = stage_extra(BaseConfig(out=str(out), seed=seed), "test")
        save_checkpoint(out / "reward_1.pt", speaking(), **extra)
        notes["lines"].clear()
        fit(epochs=1, seed=seed)
        orders.append([line["prompt"] for lines in notes["lines"] for line in lines])
    assert orders[0] == orders[1] != orders[2]


def test_round_1_starts_from_the_base_models_trunk_with_no_opinion_and_without_dropout(fitting):
    fit, notes, _, out = fitting
    made, losses = fit(round=1)  # the recorder moved nothing
    base = load_checkpoint(out / "gpt.pt")["state"]
    assert all(
        torch.equal(p, base[f"transformer.{name}"])
        for name, p in made.transformer.state_dict().items()
    )
    assert not made.score.weight.any() and made.bias == 0 and made.config.dropout == 0
    assert not made.training
    assert losses == pytest.approx([math.log(2)] * 100)


def test_round_2_goes_on_from_round_1s_reward_model(fitting):
    fit, _, _, out = fitting
    made, first = fit()[0].state_dict(), load_checkpoint(out / "reward_1.pt")["state"]
    assert all(torch.equal(made[name], first[name]) for name in first) and set(made) == set(first)


def test_a_batch_larger_than_all_rankings_is_refused(fitting):
    with pytest.raises(UserError, match="batch_size 101.*100 rankings"):
        fitting[0](batch_size=101)


# ---------------------------------------------------------------- a round


@pytest.fixture
def stage(out, tmp_path_factory, monkeypatch):
    """(train, notes): reward.train on 1,250 prompts, with stubs for sampling, fitting, choosing,
    measuring and drawing. Every fifth prompt gets three responses, the others five."""
    world, notes = tmp_path_factory.mktemp("world"), {"order": []}
    sets = {"prompts_rm": rows_of(1_250), "prompts_valid": rows_of(1_258)[1_250:]}
    for name in prepare.SIZES:
        text = "".join(json.dumps(row) + "\n" for row in sets.get(name, []))
        (world / f"{name}.jsonl").write_text(text, encoding="utf-8", newline="\n")
    monkeypatch.setattr(files, "FOLDER", world)
    for name in ("gpt", "sft_mix", "ppo_1", "reward_1", "reward"):  # of this world, now
        kind = RewardModel if name.startswith("reward") else GPT
        small = kind(GPTConfig(64, 128, 1, 1, 2))
        save_checkpoint(out / f"{name}.pt", small, **stage_extra(BaseConfig(), "test"))
    made = RewardModel(GPTConfig(64, 128, 1, 1, 2))

    number = {row["prompt"]: i for i, row in enumerate(sets["prompts_rm"])}

    def collected(rows, mix, k, rng, generator):
        notes.setdefault("rows", []).extend(rows)
        notes["mix"], found = mix, []
        for row in rows:
            distinct = 3 if number[row["prompt"]] % 5 == 0 else k
            found.append(said(*(f"{row['prompt']} {j}." for j in range(distinct))))
        return found

    def fitted(config, ranked):
        notes["ranked"] = ranked
        return made, [0.7]

    def chosen(config, model, rows):
        notes["order"].append("choose")
        assert (
            model is made
            and load_checkpoint(out / "reward_1.pt")["extra"]["settings"]["round"] == 1
        )
        notes["valid"] = rows
        save_checkpoint(
            out / "sft.pt",
            marked(7),
            **stage_extra(config, "sft"),
            scores=[("01", 1.0, 0.1)],
            epoch=1,
        )

    def noted_measure(model, config, rows):
        notes["order"].append("measure")
        notes["measured_on"] = rows
        return {"accuracy_gold": 0.5, "ceilings": {}}, {
            "train_labelers": [1.0],
            "heldout_labelers": [1.0],
            "sft_pairs": [1.0],
        }

    for name, stub in (
        ("response_sources", lambda config: (f"mix of round {config.round}", [])),
        ("collect", collected),
        ("fit", fitted),
        ("keep_best_sft", chosen),
        ("evaluate_reward_model", noted_measure),
        ("plot_reward", lambda *_: notes["order"].append("plot")),
        ("centre", lambda model, encoding: notes["order"].append("centre")),
    ):
        monkeypatch.setattr(reward, name, stub)

    def train(**changes):
        config = reward.Config(
            **{
                "out": str(out),
                "round": 1,
                "prompts_1": 20,
                "prompts_2": 15,
                "k": 5,
                "labelers_per_prompt": 3,
                "batch_size": 2,
                **changes,
            }
        )
        reward.train(config)
        return [json.loads(line) for line in open(out / "rankings.jsonl", encoding="utf-8")]

    return train, notes, sets, out


def test_round_1_ranks_the_first_prompts_and_then_chooses_the_baseline(stage):
    """Four of 20 prompts have fewer than four distinct responses and are left out."""
    train, notes, sets, out = stage
    lines, expected = train(), [
        row["prompt"] for i, row in enumerate(sets["prompts_rm"][:20]) if i % 5
    ]
    assert notes["rows"] == sets["prompts_rm"][:20] and notes["mix"][0] == "mix of round 1"
    assert (
        [line["prompt"] for line in lines] == expected
        and lines == notes["ranked"]
        and {line["round"] for line in lines} == {1}
    )
    people = {person.name: person for person in get_labelers("train")}
    for line in lines:
        assert line["ranks"] == people[line["labeler"]].rank(line["task"], line["responses"])
        assert len(line["second_opinions"]) == 2 and len(line["responses"]) == 5
    assert notes["order"][:2] == ["centre", "choose"] and "measure" in notes["order"]
    assert load_checkpoint(out / "reward_1.pt")["extra"]["parents"] == {
        "sft_mix": load_checkpoint(out / "sft_mix.pt")["sha256"]
    }


def test_the_baseline_is_chosen_and_the_reward_model_measured_on_validation_prompts(stage):
    train, notes, sets, _ = stage
    train()
    assert notes["valid"] and notes["measured_on"]
    assert all(row in sets["prompts_valid"] for row in notes["valid"] + notes["measured_on"])


def test_of_many_prompts_each_gets_its_own_responses(stage):
    """More than are answered at once."""
    train, notes, sets, _ = stage
    lines = train(prompts_1=1_100, k=3, labelers_per_prompt=1)
    assert notes["rows"] == sets["prompts_rm"][:1_100] and len(lines) == 1_100
    assert all(r["text"].startswith(line["prompt"]) for line in lines for r in line["responses"])


def test_with_k_of_3_three_responses_are_enough(stage):
    train, *_ = stage
    assert len(train(k=3)) == 20


def test_round_2_ranks_further_prompts_and_learns_from_both_rounds(stage):
    """An earlier round 2 does not count; nor is the baseline chosen again."""
    train, notes, sets, out = stage
    first = train()
    for name in ("rows", "valid"):
        notes.pop(name)
    with open(out / "rankings.jsonl", "a", encoding="utf-8", newline="\n") as file:
        file.write(json.dumps({**first[0], "round": 2, "prompt": "of an earlier run"}) + "\n")
    sha = load_checkpoint(out / "reward_1.pt")["sha256"]
    lines = train(round=2)
    expected = [row["prompt"] for i, row in enumerate(sets["prompts_rm"]) if 20 <= i < 35 and i % 5]
    assert [line["prompt"] for line in lines if line["round"] == 2] == expected and notes[
        "rows"
    ] == sets["prompts_rm"][20:35]
    assert (
        [line for line in lines if line["round"] == 1] == first
        and lines == notes["ranked"]
        and len(lines) == len(first) + len(expected)
    )
    assert not {line["prompt"] for line in first} & {
        line["prompt"] for line in lines if line["round"] == 2
    }
    assert (
        "valid" not in notes
        and load_checkpoint(out / "reward_1.pt")["sha256"] == sha
        and notes["mix"][0] == "mix of round 2"
    )
    assert load_checkpoint(out / "reward.pt")["extra"]["parents"] == {
        name: load_checkpoint(out / f"{name}.pt")["sha256"] for name in ("reward_1", "ppo_1")
    }


@pytest.mark.parametrize(
    "changes, flag",
    [
        ({"k": 2}, "k 2"),
        ({"k": 10}, "k 10"),
        ({"labelers_per_prompt": 41}, "labelers_per_prompt 41"),
        ({"prompts_1": 1_251}, "prompts_1 1251"),
        ({"round": 2, "prompts_2": 1_231}, "prompts_2 1231"),
        ({"round": 3}, "round 3"),
    ],
)
def test_what_the_world_has_too_few_of_is_refused_by_its_flag(stage, changes, flag):
    with pytest.raises(UserError, match=f"--{flag}"):
        stage[0](**changes)
