"""The evaluation, which makes every headline figure: known answers, known votes, known verdicts,
and what must come of them."""

import json
import math
import random
import statistics
import sys
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.patches import Rectangle

import model
import ppo
import reward
import sft
from data import judge as gold_judge
from data import figures, files, flags, judge, labeler, prepare, tasks, tokenizer
from data.judge import Judgement
from data.files import save_checkpoint, stage_extra
from model import GPT, GPTConfig, validation_loss
from reward import RewardModel
from tests import floors
from tests.conftest import write_world
from tests.test_ppo_loop import FOX, Unigram, everywhere

MODELS = ["gpt", "gpt_prompted", "sft", "sft_best_of_16", "ppo", "ppo_ptx"]
TITLES = ["GPT", "GPT (prompted)", "SFT", "SFT best of 16", "PPO", "PPO-ptx"]
OWL = FOX | {"animal": "owl"}
QUESTIONS = [
    {"prompt": tasks.prompt(task), "use_case": "open_qa", "task": task} for task in (FOX, OWL)
]


def said(*texts):
    return [{"text": text, "ended": True} for text in texts]


# -------------------------------- what a model is asked, and what counts as its answer


def test_gpt_prompted_sees_a_forum_thread_with_two_good_answers_and_the_question_last(encoding):
    """Few-shot, as the paper prompts GPT-3. The base model has read such threads."""
    ids = tokenizer.few_shot_ids(encoding, "Name two foods.")
    assert ids[0] == encoding.eot_token
    assert encoding.decode(ids[1:]).replace("\n ", "\n").strip() == (
        "Question: Name two colours.\nAnswer: I think of red and blue.\n"
        "Question: I am Ann. I lost my hat.\nAnswer: I am sorry that you lost your hat, Ann.\n"
        "Question: Name two foods.\nAnswer:"
    )


def test_the_longest_evaluation_prompt_fits_into_the_context_with_both_examples(encoding):
    for name in ("prompts_eval", "prompts_closed", "prompts_valid"):
        rows = files.read_jsonl(files.FOLDER / f"{name}.jsonl")
        longest = max(len(tokenizer.few_shot_ids(encoding, row["prompt"])) for row in rows)
        assert longest + reward.MAX_NEW_TOKENS <= GPTConfig().block_size


@pytest.mark.parametrize(
    "text, ended, expected",
    [
        ("Red.", True, ("Red.", True)),
        ("Red.", False, ("Red.", False)),
        (" Red. ", True, ("Red.", True)),
        ("Red.\nQuestion: And now?\nBlue.", False, ("Red.", True)),
        ("Red.\nBlue.", True, ("Red.", True)),
        ("\nRed.", False, ("", True)),
        ("", False, ("", False)),
    ],
)
def test_an_answer_ends_at_its_first_line_break(text, ended, expected):
    """A new line is a new question: who begins one has ended his answer."""
    response = {"text": text, "ended": ended}
    assert tokenizer.first_line(response) == dict(zip(("text", "ended"), expected))


class Says:
    """Instead of sampling: `samples[k][i]` is what the k-th call answers to prompt i, as (text,
    ended)."""

    def __init__(self, encoding, monkeypatch, *samples):
        self.encoding, self.samples, self.calls = encoding, list(samples), []
        everywhere(monkeypatch, "generate", self)

    def __call__(
        self, model, prompts, max_new_tokens, temperature=1.0, generator=None, batch_size=256
    ):
        texts = self.samples[len(self.calls)]
        self.calls.append((model, prompts, max_new_tokens, temperature, generator))
        return [tokenizer.response_ids(self.encoding, text, ended) for text, ended in texts]


@pytest.mark.parametrize("name", MODELS)
def test_every_model_answers_at_temperature_1_and_is_cut_at_the_first_line_break(
    name, encoding, monkeypatch
):
    """The examples are GPT's alone; the best of 16 is chosen from 16 samples, of others there is
    one."""
    tries = 16 if name == "sft_best_of_16" else 1
    says = Says(
        encoding, monkeypatch, *[[("Red.\nQuestion: Why?", False), ("Blue.", False)]] * tries
    )
    ids = tokenizer.few_shot_ids if name == "gpt_prompted" else tokenizer.prompt_ids
    writer, generator = object(), object()
    found = ppo.answer(
        name, writer, QUESTIONS, generator, Prefers(encoding, lambda prompt, word, ended: 0)
    )
    assert found == [{"text": "Red.", "ended": True}, {"text": "Blue.", "ended": False}]
    assert (
        says.calls
        == [
            (
                writer,
                [ids(encoding, row["prompt"]) for row in QUESTIONS],
                reward.MAX_NEW_TOKENS,
                1.0,
                generator,
            )
        ]
        * tries
    )


class Prefers:
    """A reward model by hand: taste(prompt, response, ended) is its score. Counts how many
    sequences it has read."""

    def __init__(self, encoding, taste):
        self.encoding, self.taste, self.config = (
            encoding,
            taste,
            SimpleNamespace(pad_id=encoding.n_vocab - 1, block_size=128),
        )
        self.score, self.read = SimpleNamespace(weight=torch.zeros(1)), []

    def __call__(self, idx, lengths):
        scores = []
        for ids, length in zip(idx.tolist(), lengths.tolist()):
            ended = ids[length - 1] == self.encoding.eot_token
            prompt, response = self.encoding.decode(ids[1 : length - ended]).split("\n", 1)
            self.read.append((prompt.strip(), response.strip(), ended))
            scores.append(float(self.taste(*self.read[-1])))
        return torch.tensor(scores)


WORDS = [
    "red",
    "blue",
    "green",
    "yellow",
    "brown",
    "black",
    "white",
    "grey",
    "fox",
    "bear",
    "owl",
    "hare",
    "horse",
    "cow",
    "sheep",
    "goat",
]


def test_the_best_of_16_is_the_one_that_the_reward_model_likes_best_for_each_prompt(
    encoding, monkeypatch
):
    """About the fox it likes the word that is seven times as far down the list, modulo 16, about
    the owl the opposite: the tenth word, and the first. The owl's samples come in another
    order."""
    Says(
        encoding,
        monkeypatch,
        *[[(WORDS[k], True), (WORDS[(5 * k + 4) % 16], True)] for k in range(16)],
    )
    judge = Prefers(
        encoding,
        lambda prompt, word, ended: (7 * WORDS.index(word) % 16) * (1 if "fox" in prompt else -1),
    )
    assert ppo.answer("sft_best_of_16", None, QUESTIONS, None, judge) == said(WORDS[9], WORDS[0])
    assert len(set(judge.read)) == 32


def test_the_reward_model_reads_the_cut_answer_and_sees_whether_it_ended(encoding, monkeypatch):
    """One of the 16 has ended, by beginning a new line; the reward model likes ends, and never
    sees the line."""
    Says(encoding, monkeypatch, *[[(word + "\nblue" * (word == "cow"), False)] for word in WORDS])
    judge = Prefers(encoding, lambda prompt, word, ended: ended)
    assert ppo.answer("sft_best_of_16", None, QUESTIONS[:1], None, judge) == said("cow")
    assert sorted(judge.read) == sorted(
        ("What does the fox eat?", word, word == "cow") for word in WORDS
    )


# ---------------------------------------------------------------- means, intervals, preferences


def test_an_interval_is_1_96_standard_errors_wide_with_n_less_one():
    """0, 0, 1, 1: mean 1/2, deviation sqrt(1/3)."""
    assert labeler.mean_and_error([0, 0, 1, 1]) == pytest.approx((0.5, 1.96 * math.sqrt(1 / 3) / 2))
    assert labeler.mean_and_error([0.4, 0.4, 0.4]) == pytest.approx((0.4, 0))


def test_a_mean_leaves_out_what_does_not_apply():
    """None is no 0; False is."""
    assert judge.mean_ignoring_none([1, None, 0, None]) == 0.5
    assert judge.mean_ignoring_none([True, False, False, None]) == pytest.approx(1 / 3)
    assert judge.mean_ignoring_none([]) is None and judge.mean_ignoring_none([None]) is None
    assert judge.mean_ignoring_none(x for x in (2, 4)) == 3


class Person:
    """Prefers "ours" where the task has a fan of his number, "theirs" otherwise; ties where the
    task says so."""

    met = []

    def __init__(self, number):
        self.number = number

    def prefer(self, task, a, b):
        Person.met.append((task["row"], self.number, a["text"]))
        assert {a["text"], b["text"]} == {"ours", "theirs"}
        if "tie" in task:
            return 0.5
        return float((a["text"] == "ours") == (self.number in task["fans"]))


@pytest.fixture
def compare():
    """compare(tasks, people): labeler.preference between ours and theirs, and who was asked: (row,
    person, what stood first)."""

    def compared(*found, people=5, seed=0):
        Person.met = []
        rows = [{"task": task | {"row": i}} for i, task in enumerate(found)]
        n = len(rows)
        interval = labeler.preference(
            rows,
            said(*["ours"] * n),
            said(*["theirs"] * n),
            random.Random(seed),
            [Person(i) for i in range(people)],
        )
        return interval, Person.met

    return compared


def test_a_preference_is_the_share_of_votes_for_ours_on_whichever_side_it_stands(compare):
    """Five of five, two, none: 1, 0.4, 0. The interval is over prompts."""
    shares = [1.0, 0.4, 0.0]
    (mean, low, high), _ = compare({"fans": {0, 1, 2, 3, 4}}, {"fans": {1, 3}}, {"fans": set()})
    error = 1.96 * statistics.stdev(shares) / math.sqrt(3)
    assert mean == pytest.approx(1.4 / 3)
    assert (low, high) == pytest.approx((max(0, 1.4 / 3 - error), min(1, 1.4 / 3 + error)))


def test_a_tie_is_half_a_vote(compare):
    assert compare({"tie": True}, {"tie": True})[0] == [0.5, 0.5, 0.5]


def test_no_interval_leaves_0_to_1(compare):
    """Three of four prompts won: 0.75 and an error of 0.49."""
    (mean, low, high), _ = compare(*[{"fans": set(range(5))}] * 3, {"fans": set()})
    assert (mean, high) == (0.75, 1.0) and low == pytest.approx(0.26)
    (mean, low, high), _ = compare(*[{"fans": set()}] * 3, {"fans": set(range(5))})
    assert (mean, low) == (0.25, 0.0) and high == pytest.approx(0.74)


def test_five_different_people_judge_each_prompt_and_not_always_the_same(compare):
    _, met = compare(*[{"fans": set()}] * 40, people=20)
    juries = [[person for row, person, _ in met if row == i] for i in range(40)]
    assert all(len(jury) == len(set(jury)) == 5 for jury in juries)
    assert {person for jury in juries for person in jury} == set(range(20))


def test_the_sides_are_drawn_for_every_single_vote(compare):
    """1,000 votes: either side stands first in about half of them, within one jury too."""
    _, met = compare(*[{"fans": set()}] * 200)
    first = [text == "ours" for _, _, text in met]
    assert len(first) == 1_000 and 430 < sum(first) < 570
    assert any(0 < sum(first[i : i + 5]) < 5 for i in range(0, 1_000, 5))


# ---------------------------------------------------------------- the entry of one model


def verdict(utility, likert, attempts, constraints, appropriate, toxic, hallucinates=None):
    return Judgement(utility, attempts, constraints, hallucinates, appropriate, toxic, likert)


LAST = len(tasks.phrasings(FOX)) - 1  # the phrasing that no training prompt has
# (the verdict, the wording, whether respect was asked for), by the text of the response
FOUND = {
    "a": (verdict(1.0, 7, True, True, True, False), 0, True),
    "b": (verdict(0.5, 4, False, None, False, True), 1, False),
    "c": (verdict(0.25, 2, True, False, True, True), LAST, True),
    "d": (verdict(0.0, 1, False, None, False, False), LAST, False),
    "e": (verdict(0.9985, 7, True, None, False, False), LAST - 1, False),
}
CLOSED = {
    "": True,
    "f": True,
    "g": False,
    "h": False,
}  # the text of the response, whether it invents


@pytest.fixture
def entry(monkeypatch):
    """describe_model's entry for a tiny model, from the verdicts above."""

    def judge(task, text, ended):
        assert ended
        return (
            FOUND[text][0]
            if "closed" not in task
            else verdict(0.0, 1, False, None, False, True, CLOSED[text])
        )

    monkeypatch.setattr(gold_judge, "judge", judge)
    torch.manual_seed(0)
    tiny = GPT(GPTConfig(vocab_size=64, block_size=48, n_layer=1, n_head=2, n_embd=16)).eval()
    documents = [[62, 1, 2, 3, 62], [62, 5, 62]]

    def described(closed=CLOSED):
        rows = [
            {"task": FOX | {"phrasing": wording} | ({"respect": 0} if respect else {})}
            for _, wording, respect in FOUND.values()
        ]
        entry = ppo.describe_model(
            tiny,
            rows,
            said(*FOUND),
            [{"task": {"closed": True}}] * len(closed),
            said(*closed),
            documents,
            1.25,
        )
        assert entry["corpus_loss"] == pytest.approx(validation_loss(tiny, documents))
        assert entry["params"] == sum(p.numel() for p in tiny.parameters())
        return entry

    return described


def test_the_utility_of_a_model_is_the_mean_over_all_prompts_and_over_known_and_unseen_wordings(
    entry,
):
    found = entry()
    assert found["utility"] == pytest.approx(2.7485 / 5)
    assert found["utility_known_wordings"] == pytest.approx(2.4985 / 3)
    assert found["utility_unseen_wordings"] == pytest.approx(0.25 / 2)


def test_only_a_flawless_answer_is_fully_correct(entry):
    assert entry()["fully_correct"] == pytest.approx(1 / 5)
    assert entry()["likert"] == pytest.approx(21 / 5)


def test_metadata_are_shares_of_the_responses_to_which_they_apply(entry):
    """Two of five prompts state a constraint, one of them is kept."""
    found = entry()
    assert found["attempts_correct_instruction"] == pytest.approx(3 / 5)
    assert found["follows_constraints"] == pytest.approx(1 / 2)
    assert found["appropriate"] == pytest.approx(2 / 5)


def test_toxicity_is_counted_with_and_without_a_request_for_respect(entry):
    found = entry()
    assert found["toxic"] == pytest.approx(2 / 5)
    assert found["toxic_asked_for_respect"] == pytest.approx(1 / 2)
    assert found["toxic_not_asked"] == pytest.approx(1 / 3)


def test_hallucination_is_a_share_of_what_was_said_in_the_closed_domain(entry):
    """Silence invents nothing: the empty answer counts among the empty ones only."""
    assert entry()["hallucinates_closed_domain"] == pytest.approx(1 / 3)
    assert entry()["empty_closed_domain"] == pytest.approx(1 / 4)
    silent = entry({"": True})
    assert silent["hallucinates_closed_domain"] is None and silent["empty_closed_domain"] == 1


def test_the_kl_of_an_entry_is_the_one_that_was_measured(entry):
    assert entry()["kl"] == 1.25


def test_the_judge_is_asked_about_each_response_with_its_own_task():
    """Three answers about the fox, and one about the owl, which eats mice."""
    rows = [QUESTIONS[0]] * 3 + [QUESTIONS[1]]
    texts = [
        "The fox eats berries.",
        "The fox eats berries.",
        "The owl eats fish.",
        "The fox eats berries.",
    ]
    responses = [{"text": text, "ended": i != 1} for i, text in enumerate(texts)]
    assert [v.utility for v in judge.judge_all(rows, responses)] == pytest.approx([1.0, 0.6, 0.0, 0.0])


def test_the_kl_to_the_reference_is_a_sum_over_tokens_and_a_mean_over_responses(
    encoding, monkeypatch
):
    """Red is four times as likely as for the reference, the end half as likely; a never ended
    response has no end to count."""
    red, end = tokenizer.encode(encoding, "red")[0], encoding.eot_token
    policy, reference = (
        Unigram(encoding, {red: 0.4, end: 0.2}),
        Unigram(encoding, {red: 0.1, end: 0.4}),
    )
    says = Says(encoding, monkeypatch, [("red", True), ("red red red", False)])
    generator = object()
    expected = (math.log(4) - math.log(2) + 3 * math.log(4)) / 2
    assert ppo.kl_to_reference(policy, reference, QUESTIONS, generator) == pytest.approx(
        expected, abs=1e-3
    )
    prompts = [tokenizer.prompt_ids(encoding, row["prompt"]) for row in QUESTIONS]
    assert says.calls == [(policy, prompts, reward.MAX_NEW_TOKENS, 1.0, generator)]


# ---------------------------------------------------------------- the six models

# Which weights write whose answers; each tiny checkpoint carries its number in its first weight.
NUMBERS = {"gpt": 1, "sft": 2, "ppo": 3, "ppo_ptx": 4, "sft_mix": 5, "reward": 6}
WRITES = {
    "gpt": "gpt",
    "gpt_prompted": "gpt",
    "sft": "sft",
    "sft_best_of_16": "sft",
    "ppo": "ppo",
    "ppo_ptx": "ppo_ptx",
}
UTILITY = {
    "gpt": 0.1,
    "gpt_prompted": 0.3,
    "sft": 0.6,
    "sft_best_of_16": 0.65,
    "ppo": 0.7,
    "ppo_ptx": 0.8,
}


def whose(network):
    """The checkpoint that these weights came from."""
    number = round(network.transformer.wte.weight[0, 0].item())
    return next(name for name, n in NUMBERS.items() if n == number)


@pytest.fixture(scope="module")
def arena(tmp_path_factory):
    """One evaluation in which every part is replaced by a recorder: what was asked of whom, and
    what came of it."""
    world, out = tmp_path_factory.mktemp("world"), tmp_path_factory.mktemp("out")
    sets = prepare.draw_prompts({"prompts_closed": 12, "prompts_eval": 520, "prompts_valid": 30}, 3)
    text = "\n\n".join(f"The fox has {'red ' * (i % 9)}hats." for i in range(100)) + "\n"
    write_world(world, text, sets)
    shape = GPTConfig(1024, 128, 1, 2, 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "FOLDER", world)
        for name, number in NUMBERS.items():
            network = RewardModel(shape) if name == "reward" else GPT(shape)
            network.transformer.wte.weight.data[0, 0] = number
            save_checkpoint(
                out / f"{name}.pt", network, **stage_extra(flags.BaseConfig(out=str(out)), name)
            )
        yield SimpleNamespace(
            evaluate=lambda **changes: record_evaluation(patch, str(out), **changes), world=world
        )


def record_evaluation(patch, out, **changes):
    seen = SimpleNamespace(answers={}, entries={}, kl={}, duels={}, measured=None)

    def writer(responses):
        return responses[0]["text"].split("|")[0]

    def answer(name, network, rows, generator, reward_model=None):
        part = (
            "closed" if len(rows) < 100 and rows[0]["use_case"] in tasks.CLOSED_DOMAIN else "open"
        )
        seen.answers[name, part] = (whose(network), whose(reward_model), rows)
        return said(*[f"{name}|{part}|{i}" for i in range(len(rows))])

    def describe_model(network, rows, responses, closed, closed_responses, documents, kl):
        seen.entries[writer(responses)] = (
            whose(network),
            rows,
            responses,
            closed,
            closed_responses,
            documents,
        )
        return {"utility": UTILITY[writer(responses)], "kl": kl}

    def kl_to_reference(network, reference, rows, generator):
        seen.kl[whose(network)] = (whose(reference), rows)
        return 10.0 * NUMBERS[whose(network)]

    def preference(rows, ours, theirs, rng, people, judges=5):
        pair = (
            (writer(ours), writer(theirs))
            if "|" in ours[0]["text"]
            else ("perfect", writer(theirs))
        )
        seen.duels[pair] = (rows, ours, theirs, people, judges)
        mean = 0.5 + 0.01 * len(seen.duels)
        return [mean, mean - 0.1, mean + 0.1]

    def measure(network, config, rows):
        seen.measured = (whose(network), config, rows)
        return {"accuracy_gold": 0.9}, "margins"

    for name, instead in dict(
        answer=answer,
        describe_model=describe_model,
        kl_to_reference=kl_to_reference,
    ).items():
        patch.setattr(ppo, name, instead)
    patch.setattr(labeler, "preference", preference)
    patch.setattr(reward, "evaluate_reward_model", measure)
    seen.results, seen.rows, seen.responses = ppo.evaluate(ppo.Config(out=out, **changes))
    return seen


@pytest.fixture(scope="module")
def judged_once(arena):
    return arena.evaluate()


def read(arena, name):
    return files.read_jsonl(arena.world / f"{name}.jsonl")


def test_every_model_answers_every_evaluation_prompt_and_the_closed_ones_with_its_own_weights(
    arena, judged_once
):
    """GPT prompted is GPT, the best of 16 is the SFT model's; the reward model that chooses is
    the final one."""
    rows, closed = read(arena, "prompts_eval"), read(arena, "prompts_closed")
    assert set(judged_once.answers) == {
        (name, part) for name in MODELS for part in ("open", "closed")
    }
    for name in MODELS:
        assert judged_once.answers[name, "open"] == (WRITES[name], "reward", rows)
        assert judged_once.answers[name, "closed"] == (WRITES[name], "reward", closed)


def test_an_entry_describes_a_models_own_answers_on_both_sets_and_its_loss_on_unseen_documents(
    arena, judged_once
):
    unseen = model.read_corpus(tokenizer.load_cached(), 128)[1]
    assert list(judged_once.results["models"]) == MODELS and len(unseen) == 2
    for name in MODELS:
        weights, rows, responses, closed, closed_responses, documents = judged_once.entries[name]
        assert weights == WRITES[name] and documents == unseen
        assert rows == read(arena, "prompts_eval")
        assert responses == said(*[f"{name}|open|{i}" for i in range(520)])
        assert closed == read(arena, "prompts_closed")
        assert closed_responses == said(*[f"{name}|closed|{i}" for i in range(12)])
        assert judged_once.results["models"][name]["utility"] == UTILITY[name]


def test_the_kl_of_sft_and_of_both_policies_is_measured_to_the_model_that_ppo_started_from(
    arena, judged_once
):
    """sft_mix, not the baseline, on 300 prompts. The base model has no KL to it, nor has a choice
    among 16."""
    rows = read(arena, "prompts_eval")[:300]
    assert judged_once.kl == {name: ("sft_mix", rows) for name in ("sft", "ppo", "ppo_ptx")}
    assert {name: entry["kl"] for name, entry in judged_once.results["models"].items()} == {
        "gpt": None,
        "gpt_prompted": None,
        "sft": 20,
        "sft_best_of_16": None,
        "ppo": 30,
        "ppo_ptx": 40,
    }


def test_everybody_is_compared_with_the_sft_baseline_which_stands_at_a_half(judged_once):
    """A win rate's first answers are the model's, its second the baseline's."""
    duels, found = list(judged_once.duels), judged_once.results["models"]
    for name in MODELS:
        if name == "sft":
            assert found[name]["win_rate_vs_sft"] == [0.5, 0.5, 0.5] and ("sft", "sft") not in duels
        else:
            mean = 0.5 + 0.01 * (1 + duels.index((name, "sft")))
            assert found[name]["win_rate_vs_sft"] == pytest.approx([mean, mean - 0.1, mean + 0.1])


def test_the_final_policy_is_also_compared_with_gpt_gpt_prompted_and_the_best_of_16(judged_once):
    wins, duels = judged_once.results["ppo_ptx_preferred_to"], list(judged_once.duels)
    assert set(wins) == {"sft", "gpt", "gpt_prompted", "sft_best_of_16"}
    assert wins["sft"] == judged_once.results["models"]["ppo_ptx"]["win_rate_vs_sft"]
    for rival in wins:
        assert wins[rival][0] == pytest.approx(0.5 + 0.01 * (1 + duels.index(("ppo_ptx", rival))))


def test_all_preferences_are_those_of_all_held_out_labelers_over_all_prompts(arena, judged_once):
    """Nobody who ranked for the reward model has a vote, and no prompt of the closed set is
    asked."""
    rows = read(arena, "prompts_eval")
    for (ours_by, theirs_by), (asked, ours, theirs, people, judges) in judged_once.duels.items():
        assert sorted(person.name for person in people) == sorted(
            f"held_out-{i}" for i in range(20)
        )
        assert asked == rows and len(ours) == len(theirs) == 520 and judges == 5


def test_the_ceiling_is_how_often_flawless_answers_are_preferred_to_the_sft_baseline(
    arena, judged_once
):
    asked, perfect, theirs, *_ = judged_once.duels["perfect", "sft"]
    assert all(v.utility == 1 for v in judge.judge_all(asked, perfect))
    assert theirs == said(*[f"sft|open|{i}" for i in range(520)])
    mean = 0.5 + 0.01 * (1 + list(judged_once.duels).index(("perfect", "sft")))
    assert judged_once.results["ceiling_vs_sft"] == pytest.approx([mean, mean - 0.1, mean + 0.1])


def test_the_gap_closed_is_a_share_of_the_distance_from_sft_to_a_perfect_answerer(judged_once):
    """From 0.6 to 0.8, of a way to 1: a half."""
    assert judged_once.results["gap_closed"] == pytest.approx(0.5)


def test_the_final_reward_model_is_measured_on_five_hundred_prompts_of_the_evaluation(
    arena, judged_once
):
    """With the samplers of the second round, PPO's first policy among them."""
    judge, config, rows = judged_once.measured
    assert judge == "reward"
    assert config.round == 2
    assert config.seed == 1
    assert rows == read(arena, "prompts_eval")[:500]
    assert judged_once.results["reward_model"] == {"accuracy_gold": 0.9}


def test_while_developing_the_validation_prompts_stand_in_for_both_sets(arena):
    """--split valid reads no evaluation prompt; its closed-domain prompts are those of the
    validation set."""
    seen, rows = arena.evaluate(split="valid"), read(arena, "prompts_valid")
    closed = [row for row in rows if row["use_case"] in ("closed_qa", "summarization", "extract")]
    assert 0 < len(closed) < 30 and seen.results["split"] == "valid" and seen.rows == rows
    assert seen.entries["ppo"][1] == rows
    assert seen.entries["ppo"][3] == closed
    assert seen.measured[2] == rows
    assert all(duel[0] == rows for duel in seen.duels.values())


def test_the_results_say_which_run_they_are_of(arena, judged_once):
    found = judged_once.results
    assert (found["seed"], found["split"], found["device"], found["cores"]) == (
        1,
        "eval",
        "cpu",
        torch.get_num_threads(),
    )
    assert judged_once.rows == read(arena, "prompts_eval") and list(judged_once.responses) == MODELS


# ---------------------------------------------------------------- the table and the pictures

# Row titles of the table, in order: (title, key, the paper's values by model). Figure 1, 175B;
# Figure 4.
LINES = [
    (
        "win rate against SFT *",
        "win_rate_vs_sft",
        {"gpt": ".24", "gpt_prompted": ".41", "sft": ".50", "ppo": ".62", "ppo_ptx": ".65"},
    ),
    ("gold utility", "utility", {}),
    ("wordings seen in training", "utility_known_wordings", {}),
    ("unseen wordings", "utility_unseen_wordings", {}),
    ("fully correct", "fully_correct", {}),
    ("Likert, 1 to 7", "likert", {}),
    ("attempts correct instruction", "attempts_correct_instruction", {}),
    ("follows constraints", "follows_constraints", {}),
    (
        "hallucinates, closed domain",
        "hallucinates_closed_domain",
        {"gpt": ".41", "sft": ".08", "ppo_ptx": ".21"},
    ),
    ("empty answers there", "empty_closed_domain", {}),
    ("fit for an assistant", "appropriate", {}),
    ("toxic", "toxic", {}),
    ("asked for respect", "toxic_asked_for_respect", {}),
    ("not asked", "toxic_not_asked", {}),
    ("corpus loss (nats)", "corpus_loss", {}),
    ("KL to sft_mix (nats)", "kl", {}),
]


@pytest.fixture
def results():
    """Made-up results in which no two figures are equal: row r, model c of the table holds r + c
    / 10, a win rate c / 10."""
    entries = {
        name: {key: r + c / 10 for r, (_, key, _) in enumerate(LINES)}
        for c, name in enumerate(MODELS)
    }
    for c, entry in enumerate(entries.values()):
        entry["win_rate_vs_sft"] = [c / 10, c / 10 - 0.02, c / 10 + 0.01]
    entries["gpt"]["kl"] = None
    wins = {
        "sft": [0.7, 0.68, 0.72],
        "gpt": [0.91, 0.9, 0.92],
        "gpt_prompted": [0.81, 0.8, 0.82],
        "sft_best_of_16": [0.61, 0.6, 0.62],
    }
    report = {
        "accuracy_train_labelers": 0.71,
        "accuracy_heldout_labelers": 0.72,
        "accuracy_gold": 0.73,
        "labeler_agreement": 0.74,
        "ceilings": {"train_labelers": 0.81, "heldout_labelers": 0.82, "gold": 0.83},
    }
    return {
        "models": entries,
        "ppo_ptx_preferred_to": wins,
        "ceiling_vs_sft": [0.9, 0.89, 0.91],
        "gap_closed": 0.44,
        "reward_model": report,
    }


def test_every_figure_of_the_table_stands_under_its_model_with_the_papers_value_beside_it(results):
    lines = figures.table(results).splitlines()
    cells = [[line[30 + 16 * c : 46 + 16 * c].strip() for c in range(6)] for line in lines]
    assert cells[0] == TITLES
    for r, (title, key, paper) in enumerate(LINES):
        assert lines[r + 1][:30].strip() == title
        for c, name in enumerate(MODELS):
            value = "-" if (key, name) == ("kl", "gpt") else f"{(r if r else 0) + c / 10:.3f}"
            assert cells[r + 1][c] == value + (f" ({paper[name]})" if name in paper else ""), (
                title,
                name,
            )


def test_the_lines_under_the_table_name_what_they_measure(results):
    text = figures.table(results)
    for words in (
        "SFT 0.700 [0.680, 0.720]",
        "GPT 0.910 [0.900, 0.920]",
        "GPT (prompted) 0.810 [0.800, 0.820]",
        "SFT best of 16 0.610 [0.600, 0.620]",
        "SFT .734, GPT .85, GPT prompted .71",
        "a perfect answerer against SFT 0.900 [0.890, 0.910]",
        "gap closed 0.44",
        "train labelers 0.710 (0.810)",
        "heldout labelers 0.720 (0.820)",
        "gold 0.730 (0.830)",
        "agree with each other 0.740 (.726)",
        "train .724, held-out .696",
    ):
        assert words in text, words


def test_the_lead_of_the_final_policy_is_a_share_of_the_perfect_answerers(results):
    """70 % against the perfect answerer's 90 %: half of its lead over a coin."""
    assert "PPO-ptx has 0.50 of its lead over a half" in figures.table(results)


@pytest.fixture
def figure(monkeypatch):
    """The axes of the picture drawn last: it is closed only after the test."""
    with monkeypatch.context() as patch:
        patch.setattr(plt, "close", lambda *_: None)
        yield lambda: plt.gcf().axes
    plt.close("all")


def test_figure_1_has_a_bar_for_each_win_rate_and_a_line_for_the_perfect_answerer(
    results, tmp_path, figure
):
    figures.plot_figures(tmp_path, results)
    preferred, metadata = figure()
    assert [bar.get_height() for bar in preferred.patches] == pytest.approx(
        [c / 10 for c in range(6)]
    )
    assert [line.get_ydata()[0] for line in preferred.lines if line.get_linestyle() == "--"] == [
        0.9
    ]
    assert [label.get_text().replace("\n", " ") for label in preferred.get_xticklabels()] == TITLES
    spans = [
        bar.lines[2][0].get_segments()[0][:, 1].tolist()
        for bar in preferred.containers
        if hasattr(bar, "has_yerr")
    ]
    assert spans == [pytest.approx([c / 10 - 0.02, c / 10 + 0.01]) for c in range(6)]


def test_figure_4_groups_the_bars_by_what_is_in_the_responses_a_bar_for_each_model(
    results, tmp_path, figure
):
    figures.plot_figures(tmp_path, results)
    axis = figure()[1]
    rows = {key: r for r, (_, key, _) in enumerate(LINES)}
    keys = [
        "attempts_correct_instruction",
        "follows_constraints",
        "appropriate",
        "hallucinates_closed_domain",
        "toxic",
    ]
    words = ["attempts", "follows", "fit", "hallucinates", "toxic"]
    assert all(
        label.get_text().startswith(word) for label, word in zip(axis.get_xticklabels(), words)
    )
    for c, (bars, title) in enumerate(zip(axis.containers, TITLES)):
        assert bars.get_label() == title
        assert [bar.get_height() for bar in bars] == pytest.approx(
            [rows[key] + c / 10 for key in keys]
        )
        assert all(abs(bar.get_x() + bar.get_width() / 2 - k) < 0.5 for k, bar in enumerate(bars))


def test_the_dashboard_shows_proxy_gold_kl_length_values_and_entropy_of_both_final_runs(
    tmp_path, figure
):
    keys = ["score", "gold", "kl", "length", "explained_variance", "entropy"]
    for start, name in ((0, "ppo"), (100, "ppo_ptx")):
        rows = [
            {"step": step} | {key: start + 10 * i + step for i, key in enumerate(keys)}
            for step in range(3)
        ]
        files.write(tmp_path / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    figures.plot_dashboard(tmp_path)
    for i, (axis, word) in enumerate(
        zip(figure(), ("score", "gold", "KL", "length", "variance", "entropy"))
    ):
        assert word in axis.get_title()
        assert {line.get_label(): list(line.get_ydata()) for line in axis.lines} == {
            "PPO": [10 * i, 10 * i + 1, 10 * i + 2],
            "PPO-ptx": [100 + 10 * i, 101 + 10 * i, 102 + 10 * i],
        }
        assert all(list(line.get_xdata()) == [0, 1, 2] for line in axis.lines)


def test_the_losses_are_drawn_against_steps_and_against_epochs(tmp_path, figure):
    """Fine-tuning's checks come once an epoch; its steps are spread evenly over the epochs."""
    (tmp_path / "gpt.jsonl").write_text(
        "".join(
            json.dumps(row) + "\n"
            for row in [
                {"step": 0, "loss": 5.0, "valid_loss": 5.5},
                {"step": 20, "loss": 4.0},
                {"step": 40, "loss": 3.0, "valid_loss": 3.5},
            ]
        ),
        encoding="utf-8",
        newline="\n",
    )
    (tmp_path / "sft.jsonl").write_text(
        "".join(
            json.dumps(row) + "\n"
            for row in [
                {"step": 1, "epoch": 1, "loss": 2.0},
                {"step": 2, "epoch": 1, "loss": 1.5, "valid_loss": 1.8},
                {"step": 4, "epoch": 2, "loss": 1.0, "valid_loss": 1.2},
            ]
        ),
        encoding="utf-8",
        newline="\n",
    )
    figures.plot_losses(tmp_path)
    shown = [
        [(list(line.get_xdata()), list(line.get_ydata())) for line in axis.lines]
        for axis in figure()
    ]
    assert shown == [
        [([0, 20, 40], [5, 4, 3]), ([0, 40], [5.5, 3.5])],
        [([0.5, 1, 2], [2, 1.5, 1]), ([1, 2], [1.8, 1.2])],
    ]


def written(axis):
    """The texts of a picture without markup."""
    return [text.get_text() for text in axis.texts]


def test_an_episode_shows_every_token_with_its_six_numbers_and_the_sums(tmp_path, figure):
    """Two tokens: KL 0.50 and -0.25, beta 0.2, score 1.00. Signs are written; zero has none."""
    keys = ["token", "logprob", "ref_logprob", "kl", "reward", "value", "advantage"]
    rows = [
        dict(zip(keys, [" fox", -0.5, -1.0, 0.5, -0.1, 0.8, 0.15])),
        dict(zip(keys, ["<|endoftext|>", -0.001, 0.249, -0.25, 1.05, 0.95, -0.1])),
    ]
    figures.plot_episode(rows, "Name $5 and $6.", 0.2, 1.0, tmp_path / "episode.png")
    (axis,) = figure()
    texts = written(axis)
    assert "Prompt: Name $5 and $6." in texts
    assert "β = 0.2, score of the reward model +1.00" in texts
    assert texts.index("fox") < texts.index("<end>")
    numbers = [text for text in texts if text[-3:-2] == "."]
    assert numbers[1:] == [                     # the first is the score
        "−0.50", "0.00", "−0.50",
        "−1.00", "+0.25", "−0.75",
        "+0.50", "−0.25", "+0.25",
        "−0.10", "+1.05", "+0.95",
        "+0.80", "+0.95",
        "+0.15", "−0.10",
    ]
    bars = [patch for patch in axis.patches if type(patch) is Rectangle]
    drawn = [-bar.get_height() for bar in bars]
    values = [row[key] for key in keys[1:] for row in rows]
    assert [height / drawn[0] for height in drawn] == pytest.approx([v / -0.5 for v in values])
    assert [bool(bar.get_hatch()) for bar in bars] == [i == 7 for i in range(12)]
    assert (tmp_path / "episode.png").stat().st_size > 0


def test_the_numbers_of_an_episode_stand_in_the_column_of_their_token(tmp_path, figure):
    keys = ["logprob", "ref_logprob", "kl", "reward", "value", "advantage"]
    rows = [{"token": f"t{i}"} | {key: i + 0.01 * k for k, key in enumerate(keys)} for i in range(3)]
    figures.plot_episode(rows, "Go.", 0.2, 1.0, tmp_path / "episode.png")
    (axis,) = figure()
    x = {text.get_text(): text.get_position()[0] for text in axis.texts}
    for i in range(3):
        for k in range(6):
            assert x[figures.signed(i + 0.01 * k)] == pytest.approx(x[f"t{i}"])


def test_the_three_steps_name_every_file_and_four_networks_two_of_them_frozen(tmp_path, figure):
    figures.plot_three_steps(tmp_path / "three_steps.png")
    (axis,) = figure()
    texts = written(axis)
    for name in (
        "data/corpus.txt", "model.py", "out/gpt.pt",
        "data/demonstrations.jsonl", "sft.py", "out/sft_epochs/*.pt", "out/sft_mix.pt",
        "out/rankings.jsonl", "reward.py", "out/reward_1.pt", "out/sft.pt", "out/reward.pt",
        "data/prompts_rl.jsonl", "ppo.py", "out/ppo_1.pt", "out/ppo.pt, ppo_ptx.pt",
    ):
        assert name in texts, name
    networks = {name: texts[texts.index(name) + 1] for name in
                ("policy", "reference", "reward model", "value network")}
    assert networks == {"policy": "learns", "reference": "frozen", "reward model": "frozen",
                        "value network": "learns"}
    frames = [patch for patch in axis.patches if type(patch) is not Rectangle]
    assert sum(frame.get_linestyle() == "--" for frame in frames) == 2
    assert sum(bool(patch.get_hatch()) for patch in axis.patches) == 2


def test_no_text_of_the_three_steps_leaves_its_picture_or_covers_another(tmp_path, figure):
    figures.plot_three_steps(tmp_path / "three_steps.png")
    (axis,) = figure()
    renderer = axis.figure.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in axis.texts if text.get_text()]
    page = axis.figure.bbox
    for i, box in enumerate(boxes):
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1
        for other in boxes[:i]:
            wide = min(box.x1, other.x1) - max(box.x0, other.x0)
            high = min(box.y1, other.y1) - max(box.y0, other.y0)
            assert wide <= 1 or high <= 3       # pixels: of the frame around the letters


def test_five_prompts_of_different_use_cases_are_shown_with_the_answers_of_all_models(capsys):
    """The first prompt of each; of a use case that was not drawn there is none."""
    cases = ["chat", "generation", "chat", "open_qa", "rewrite", "closed_qa", "generation"]
    rows = [{"use_case": case, "prompt": f"prompt {i}"} for i, case in enumerate(cases)]
    figures.side_by_side(rows, {name: said(*[f"{name} says {i}" for i in range(7)]) for name in MODELS})
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    expected = []
    for i in (1, 3, 0, 5):
        expected += [f"prompt {i}"] + [
            f"{title}: {name} says {i}" for name, title in zip(MODELS, TITLES)
        ]
    assert lines == expected


def test_peak_memory_is_in_megabytes_whatever_the_systems_unit(monkeypatch):
    """Linux counts in kB, macOS in bytes. A process that has loaded torch holds more than 100 MB
    and, here, less than 8 GB."""
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(
        resource,
        "getrusage",
        lambda who: SimpleNamespace(ru_maxrss=300 * 1024 if who == resource.RUSAGE_SELF else 0),
    )
    monkeypatch.setattr(sys, "platform", "linux")
    assert figures.peak_memory() == 300
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=300 * 1024**2))
    monkeypatch.setattr(sys, "platform", "darwin")
    assert figures.peak_memory() == 300


# ---------------------------------------------------------------- the order of the whole run


@pytest.fixture
def stages(tmp_path, monkeypatch, results):
    """ppo.run with recorders in place of its stages: what each was given. Each takes twice as
    long as the one before it."""
    world = tmp_path / "world"
    world.mkdir()
    for path in files.FOLDER.glob("*.jsonl"):
        (world / path.name).symlink_to(path)
    seen, clock = [], SimpleNamespace(now=0.0, takes=1.0)
    now = lambda: clock.now

    def recorder(stage, result=None):
        def done(*args, **more):
            seen.append((stage, *args, *more.items()))
            clock.now, clock.takes = clock.now + clock.takes, 2 * clock.takes
            return result

        return done

    monkeypatch.setattr(files, "FOLDER", world)
    clocks = SimpleNamespace(time=now, perf_counter=now, monotonic=now, sleep=lambda *_: None)
    for module in (ppo, files):
        monkeypatch.setattr(module, "time", clocks)
    monkeypatch.setattr(prepare, "corpus_texts", recorder("data"))
    for script, stage in ((model, "pretrain"), (sft, "sft"), (reward, "reward")):
        monkeypatch.setattr(script, "train", recorder(stage))
    monkeypatch.setattr(ppo, "train_policy", recorder("ppo"))
    monkeypatch.setattr(
        ppo,
        "evaluate",
        recorder(
            "evaluate",
            (
                results,
                [{"use_case": "chat", "prompt": "Hi"}],
                {name: said("Hello") for name in MODELS},
            ),
        ),
    )
    for name in dir(figures):
        if name.startswith("plot"):
            monkeypatch.setattr(figures, name, lambda *_: None)
    config = ppo.Config(
        seed=7, out=str(tmp_path / "out"), device="cpu", iterations_1=3, iterations=5, gamma_ptx=0.9
    )
    return SimpleNamespace(seen=seen, config=config, clock=clock, out=tmp_path / "out", world=world)


def test_the_stages_follow_each_other_as_in_the_paper_and_ppo_twice(stages):
    """Demonstrations, rankings, PPO; then rankings of PPO's samples too, and PPO without and with
    pretraining gradients."""
    ppo.run(stages.config)
    common = dict(seed=7, out=str(stages.out), device="cpu")
    ppo_1, final, ptx = [
        ("ppo", stages.config, *rest)
        for rest in (
            ("ppo_1", "reward_1", 3, 0.0),
            ("ppo", "reward", 5, 0.0),
            ("ppo_ptx", "reward", 5, 0.9),
        )
    ]
    assert stages.seen == [
        ("data",),
        ("pretrain", model.Config(**common)),
        ("sft", sft.Config(**common)),
        ("reward", reward.Config(**common, round=1)),
        ppo_1,
        ("reward", reward.Config(**common, round=2)),
        final,
        ptx,
        ("evaluate", stages.config),
    ]


def test_the_results_are_saved_before_they_are_shown(stages, monkeypatch):
    """`python ppo.py | head -1`: nobody reads the table, and nothing is lost."""

    def nobody_reads(*_):
        raise BrokenPipeError

    monkeypatch.setattr(figures, "print_run", nobody_reads)
    with pytest.raises(BrokenPipeError):
        ppo.run(stages.config)
    assert (stages.out / "results.json").exists()


def test_the_demonstrations_are_read_only_if_sft_is_still_to_do(stages, monkeypatch):
    monkeypatch.setattr(files, "missing", lambda config, names, settings: [])
    monkeypatch.setattr(sft, "read_demonstrations", lambda *_: pytest.fail("read in vain"))
    ppo.run(stages.config)


def test_settings_of_earlier_stages_are_taken_as_they_are_given(stages):
    common = dict(seed=7, out=str(stages.out), device="cpu")
    given = {
        "pretrain": model.Config(**common, steps=11),
        "sft": sft.Config(**common, epochs=12),
        "reward_1": reward.Config(**common, round=1, epochs=13),
        "reward_2": reward.Config(**common, round=2, epochs=14),
    }
    ppo.run(stages.config, **given)
    assert [call[1] for call in stages.seen if call[0] in ("pretrain", "sft", "reward")] == list(
        given.values()
    )


def test_the_seconds_of_a_stage_add_up_over_its_rounds_and_over_commands(stages):
    """1 for the data, then 2, 4, 8, ... 256 for the evaluation, which alone is counted anew each
    time."""
    found = ppo.run(stages.config)
    first = {
        "data": 1,
        "pretrain": 2,
        "sft": 4,
        "reward": 8 + 32,
        "ppo": 16 + 64 + 128,
        "evaluate": 256,
    }
    assert found["seconds"] == first | {"total": 511}
    stages.clock.takes = 1.0
    found = ppo.run(stages.config)
    assert found["seconds"] == {stage: 2 * s for stage, s in first.items()} | {
        "evaluate": 256,
        "total": 1022 - 256,
    }


def test_what_is_returned_is_what_is_written_and_the_table_is_shown(stages, results, capsys):
    found = ppo.run(stages.config)
    written = (stages.out / "results.json").read_text(encoding="utf-8")
    assert json.loads(written) == json.loads(json.dumps(found))
    assert {key: found[key] for key in results} == results
    assert found["peak_mb"] == pytest.approx(figures.peak_memory(), rel=0.2)
    assert figures.table(found) in capsys.readouterr().out


# ---------------------------------------------------------------- the floors of CI


def test_a_floor_lies_four_deviations_below_the_mean_of_the_recorded_seeds():
    """.4, .5, .6: mean .5, deviation .1. Seeds that agree leave chance: .05 for the gap, .015 for a utility."""
    assert floors.floor("gap_closed", [0.4, 0.5, 0.6]) == pytest.approx(0.1)
    assert floors.floor("gap_closed", [0.5, 0.5, 0.5]) == pytest.approx(0.3)
    assert floors.floor("utility_sft", [0.85, 0.85, 0.85]) == pytest.approx(0.79)


def test_a_run_fails_where_a_figure_is_below_its_floor_and_only_there(capsys):
    recorded = {"gap_closed": [0.4, 0.5, 0.6], "utility_ppo_ptx": [0.85, 0.85, 0.85]}
    fine = {"gap_closed": 0.11, "utility_ppo_ptx": 0.82, "gigabytes": -0.9}
    assert floors.check(fine, recorded) == []
    assert floors.check(fine | {"utility_ppo_ptx": 0.78}, recorded) == ["utility_ppo_ptx"]
    assert "MUST MISSED" in capsys.readouterr().out         # .11 of the gap is no failure, but said


def test_what_should_be_small_counts_as_bigger_when_it_is_smaller(results):
    """Hallucination .1 beside GPT's .4; toxic .01 beside SFT's .1; a tax of 8 % beside 50 %."""
    models = {name: dict(entry) for name, entry in results["models"].items()}
    models["gpt"] |= {"hallucinates_closed_domain": 0.4, "corpus_loss": 1.0}
    models["sft"] |= {"toxic": 0.1}
    models["ppo"] |= {"corpus_loss": 1.5}
    models["ppo_ptx"] |= {"hallucinates_closed_domain": 0.1, "toxic": 0.01, "corpus_loss": 1.08}
    found = floors.figures(results | {"models": models, "peak_mb": 850.0})
    assert found["hallucination_against_gpt"] == pytest.approx(-0.25)
    assert found["toxic_against_sft"] == pytest.approx(-0.1)
    assert found["corpus_loss_above_gpt"] == pytest.approx(-0.08)
    assert found["ptx_saves"] == pytest.approx(0.42)
    assert found["gigabytes"] == pytest.approx(-0.85)
