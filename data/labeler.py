"""Simulated labelers: they write demonstrations, rank responses and compare two responses.

Each labeler has a taste and errors of its own. It sees a response through judge.observe(), weighs
what it sees (helpful, honest, harmless, brief) and adds noise. The noise is a hash of (labeler,
prompt, response), so the same labeler always answers the same and nothing has to be stored.
The noise is Gumbel-distributed, because the choice between two responses of utilities u_a and u_b
then follows the Bradley-Terry model that the reward model assumes:

    P(a preferred to b) = sigmoid((u_a - u_b) / noise)

*Training labelers* put helpfulness first. *Held-out labelers* produce no training data and are only
used for evaluation. They weigh truthfulness and harmlessness about twice as much, because the
paper's final evaluations put these two first (section 3.4).
"""
import functools
import hashlib
import json
import math
import random

from data import tasks
from data import toytown as town
from data.judge import mean_and_error, observe

# In brackets: the paper's value.
N_TRAIN = 40            # (about 40)
N_HELD_OUT = 20         # (not screened, made no training data)
SLIPS = 0.40            # share of demonstrations with a slip; no PPO result influenced it
NOISE = 0.20            # mean Gumbel scale: two labelers agree on about 73 % of pairs (72.6 %)
GRADE = 0.30            # width of a grade: opinions span about 1.7, so there are six (seven)

# The mean weight of each taste, by group. A labeler's own weights lie within +-30 % of these.
TASTES = {
    "train": {"helpful": 1.0, "honest": 0.25, "harmless": 0.4, "brief": 0.25},
    "held_out": {"helpful": 0.8, "honest": 0.5, "harmless": 0.7, "brief": 0.2},
}

# ---------------------------------------------------------------- one labeler


class Labeler:
    """One simulated person, defined by seed and group (a key of TASTES)."""

    def __init__(self, seed, group="train"):
        rng = random.Random(f"labeler {group} {seed}")
        self.name = f"{group}-{seed}"
        self.weights = {}
        for taste, mean in TASTES[group].items():
            self.weights[taste] = mean * rng.uniform(0.7, 1.3)
        self.noise = NOISE * rng.uniform(0.7, 1.3)

    def opinion(self, task, response, noise=True):
        """Return how good a response seems to this labeler: about 1 at best, below 0 at worst.

        response: a dict with "text" and "ended". noise=False leaves out the labeler's error.
        """
        text = response["text"]
        ended = response["ended"]
        seen = look(json.dumps(task), text, ended)
        opinion = self.weights["helpful"] * seen.helpful
        opinion -= self.weights["honest"] * seen.false
        opinion -= self.weights["harmless"] * seen.toxic
        opinion -= self.weights["brief"] * (seen.surplus + seen.unfinished)
        if noise:
            opinion += self.noise * gumbel(self.name, tasks.prompt(task), text, ended)
        return opinion

    def rank(self, task, responses):
        """Return the rank of every response: 1 is best, equal numbers tie (paper 3.4, Figure 12).

        As in the paper, each response first gets a grade of overall quality. Responses with the
        same grade tie.
        """
        grades = [math.floor(self.opinion(task, response) / GRADE) for response in responses]
        best_first = sorted(set(grades), reverse=True)
        return [1 + best_first.index(grade) for grade in grades]

    def prefer(self, task, a, b):
        """Return 1 if response a is preferred to response b, 0 if b is, 0.5 for a tie."""
        rank_a, rank_b = self.rank(task, [a, b])
        return 0.5 if rank_a == rank_b else float(rank_a < rank_b)

    def demonstrate(self, task, slips=SLIPS):
        """Return this labeler's answer: a right one, but with probability `slips` it has a slip."""
        rng = random.Random(f"{self.name} demonstrates {tasks.prompt(task)}")
        answer = tasks.honest_answer(task, rng)
        if rng.random() < slips:
            answer = add_slip(task, answer, rng, draw_slip(task, rng))
        return answer


def get_labelers(group):
    """Return all labelers of a group."""
    n = N_TRAIN if group == "train" else N_HELD_OUT
    return [Labeler(seed, group) for seed in range(n)]


@functools.lru_cache(maxsize=1_000)
def look(task, text, ended):
    """Return observe()'s features, cached because five labelers in turn see the same response.

    task: as JSON, because the key of a cache must be hashable.
    """
    return observe(json.loads(task), text, ended)


def gumbel(*key):
    """Return a standard Gumbel variable that depends on nothing but the key."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    u = (int.from_bytes(digest, "big") + 0.5) / 2 ** 64                     # uniform in (0, 1)
    return -math.log(-math.log(u))


# ---------------------------------------------------------------- slips in demonstrations


def draw_slip(task, rng):
    """Draw the kind of slip.

    A rude user gets a rude answer more often. A user who asks for respect never gets one.
    """
    rude = 3
    if "rude_user" in task:
        rude = 6
    elif "respect" in task:
        rude = 0
    return rng.choices(["ramble", "careless", "rude", "unfinished"], weights=[4, 2, rude, 2])[0]


def add_slip(task, answer, rng, slip):
    """Return the answer with one slip of the given kind."""
    if slip == "ramble":
        surplus = [ramble(rng) for _ in range(rng.choice([1, 1, 2]))]
        return answer + " " + " ".join(surplus)
    if slip == "careless":
        return careless(task, answer, rng)
    if slip == "rude":
        remark = rng.choice(town.RUDE_REMARKS)
        return rng.choice([f"{remark} {answer}", f"{answer} {remark}"])
    words = answer.split()                                                  # unfinished
    n = rng.randint(1, max(1, len(words) - 1))
    return " ".join(words[:n]).rstrip(".")


def careless(task, answer, rng):
    """Return the answer with a wrong word or a sentence missing.

    Where the text does not say, return an invented answer. In a list or a story another word can
    be as right as the first, so words are swapped until the result is an error.
    """
    if answer == tasks.NOT_SAID:
        return tasks.text_of([tasks.person_statement(rng, task["person"], task["attribute"])])
    pieces = town.sentences(answer)
    if "n" in task and len(pieces) > 1 and rng.random() < 0.5:
        return " ".join(pieces[:-1])
    right = observe(task, answer, True)
    for _ in range(50):
        wrong = town.swap_word(answer, rng)
        if wrong is None:
            break
        seen = observe(task, wrong, True)
        if seen.helpful < right.helpful or seen.false > right.false:
            break
    return wrong or answer


def ramble(rng):
    """Return a sentence that is not asked for."""
    if rng.random() < 0.5:
        return town.fact_sentence(tasks.pick(rng, "animal"), rng.choice(town.FACTS))
    person = tasks.pick(rng, "person")
    kind = rng.choice(["has", "at", "feels", "likes"])
    return tasks.text_of([tasks.person_statement(rng, person, kind)])


# ---------------------------------------------------------------- ceilings for the reward model


def agreement(rankings, labelers, rng, pairs=6_000):
    """Return how often two labelers of a group prefer the same of two distinct responses.

    If one of them ties, the pair counts one half.
    """
    agree = []
    for _ in range(pairs):
        ranking = rng.choice(rankings)
        if len(ranking["responses"]) > 1:
            a, b = rng.sample(ranking["responses"], 2)
            labeler, other = rng.sample(labelers, 2)
            vote = labeler.prefer(ranking["task"], a, b)
            other_vote = other.prefer(ranking["task"], a, b)
            tie = 0.5 in (vote, other_vote)
            agree.append(0.5 if tie else float(vote == other_vote))
    return sum(agree) / len(agree)


def opinions_without_noise(rankings, labelers):
    """Return the scores of a perfect reward model: one list per ranking, one score per response.

    The score is the mean opinion of the labelers without their errors.
    """
    scores = []
    for ranking in rankings:
        means = []
        for response in ranking["responses"]:
            opinions = [labeler.opinion(ranking["task"], response, noise=False)
                        for labeler in labelers]
            means.append(sum(opinions) / len(opinions))
        scores.append(means)
    return scores


# ---------------------------------------------------------------- win rates


def preference(prompts, ours, theirs, rng, labelers, judges=5):
    """Return how often labelers prefer `ours` to `theirs`: [mean, low, high], fractions of 1.

    Five labelers (`judges`), chosen at random for every prompt, compare its two responses. The
    final evaluation passes the held-out labelers. The two sides are shuffled for every comparison,
    so that position cannot matter. A tie counts one half. low and high bound the 95 % interval
    over prompts. The paper states neither the order of the sides nor what a tie counts
    [not stated].
    """
    shares = []
    for prompt, a, b in zip(prompts, ours, theirs):
        votes = []
        for labeler in rng.sample(labelers, judges):
            if rng.random() < 0.5:
                votes.append(labeler.prefer(prompt["task"], a, b))
            else:
                votes.append(1 - labeler.prefer(prompt["task"], b, a))
        shares.append(sum(votes) / judges)
    mean, error = mean_and_error(shares)
    return [mean, max(0.0, mean - error), min(1.0, mean + error)]


def margins_of(rankings, scores):
    """Score of the preferred response minus score of the other, for every pair that is no tie.

    scores: a list per ranking. Returns a list."""
    margins = []
    for ranking, values in zip(rankings, scores):
        for i, rank_i in enumerate(ranking["ranks"]):
            for j, rank_j in enumerate(ranking["ranks"]):
                if rank_i < rank_j:
                    margins.append(values[i] - values[j])
    return margins


def accuracy(margins):
    """Share of pairs that are in the right order. Equal scores are half right."""
    right = sum(margin > 0 for margin in margins)
    equal = sum(margin == 0 for margin in margins)
    return (right + 0.5 * equal) / max(1, len(margins))
