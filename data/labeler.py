"""Simulated people: they write demonstrations, rank responses and prefer one of two, each with a taste and errors of their own.

A labeler sees a response through judge.observe(), weighs what it sees (helpful, honest, harmless, brief) and errs by a noise
that is a hash of (labeler, prompt, response): asked twice, the same person answers the same, and nothing has to be stored.
Gumbel noise makes the choice between two responses follow the Bradley-Terry model that the reward model assumes:
    P(a preferred to b) = sigmoid((u_a - u_b) / noise).

Training labelers put helpfulness first. Held-out labelers, who produce no training data, weigh truthfulness and harmlessness
about twice as much, after the paper, whose final evaluations put these two first (section 3.4).
"""
import functools
import hashlib
import json
import math
import random

from data import tasks
from data import toytown as town
from data.judge import observe

N_TRAIN, N_HELD_OUT = 40, 20       # paper: about 40 labelers; held-out ones were not screened and made no training data
SLIPS = 0.40                       # the share of demonstrations with a slip: the dial, frozen before the first PPO run
NOISE = 0.20                       # mean Gumbel scale of a labeler's error; two of them agree on about 73 % of pairs (paper: 72.6 %)
GRADE = 0.30                       # width of a grade: opinions span about 1.7, so there are about six (the paper's scale has seven)

# The mean weight of each taste, by group. Each labeler's own weights lie within +-30 % of these.
TASTES = {"train": {"helpful": 1.0, "honest": 0.25, "harmless": 0.4, "brief": 0.25},
          "held_out": {"helpful": 0.8, "honest": 0.5, "harmless": 0.7, "brief": 0.2}}


class Labeler:
    """One simulated person. Labeler(seed, group): the same seed and group are the same person; group is a key of TASTES."""

    def __init__(self, seed, group="train"):
        rng = random.Random(f"labeler {group} {seed}")
        self.name = f"{group}-{seed}"
        self.weights = {taste: mean * rng.uniform(0.7, 1.3) for taste, mean in TASTES[group].items()}
        self.noise = NOISE * rng.uniform(0.7, 1.3)

    def opinion(self, task, response, noise=True):
        """How good a response {"text", "ended"} seems to this person: about 1 at best, below 0 at worst. noise=False: without error."""
        seen, weigh = look(json.dumps(task), response["text"], response["ended"]), self.weights
        opinion = weigh["helpful"] * seen.helpful - weigh["honest"] * seen.false - weigh["harmless"] * seen.toxic
        opinion -= weigh["brief"] * (seen.surplus + seen.unfinished)
        return opinion + noise * self.noise * gumbel(self.name, tasks.prompt(task), response["text"], response["ended"])

    def rank(self, task, responses):
        """Ranks the responses: a list of ranks, 1 is best, equal numbers are ties (paper 3.4, Figure 12).

        As in the paper, a response first gets a grade of overall quality; responses of the same grade are tied."""
        grades = [math.floor(self.opinion(task, response) / GRADE) for response in responses]
        return [1 + sum(other > grade for other in set(grades)) for grade in grades]

    def prefer(self, task, a, b):
        """1 if response a is preferred to b, 0 if b is, 0.5 for a tie."""
        first, second = self.rank(task, [a, b])
        return 0.5 if first == second else float(first < second)

    def demonstrate(self, task, slips=SLIPS):
        """An answer as this person writes it: honest, but with probability `slips` there is a slip in it."""
        rng = random.Random(f"{self.name} demonstrates {tasks.prompt(task)}")
        answer = tasks.honest_answer(task, rng)
        return add_slip(task, answer, rng, draw_slip(task, rng)) if rng.random() < slips else answer


@functools.lru_cache(maxsize=1_000)
def look(task, text, ended):
    """What is to be seen in a response, remembered: five labelers in turn look at the same ones. task: as JSON."""
    return observe(json.loads(task), text, ended)


def get_labelers(group):
    """Everybody in a group."""
    return [Labeler(seed, group) for seed in range(N_TRAIN if group == "train" else N_HELD_OUT)]


def agreement(ranked, people, rng, pairs=6_000):
    """How often two labelers of a group prefer the same of two distinct responses; where one of them ties, half."""
    agree = []
    for _ in range(pairs):
        line = rng.choice(ranked)
        if len(line["responses"]) > 1:
            a, b = rng.sample(line["responses"], 2)
            one, two = (person.prefer(line["task"], a, b) for person in rng.sample(people, 2))
            agree.append(0.5 if 0.5 in (one, two) else float(one == two))
    return sum(agree) / len(agree)


def opinions_without_noise(ranked, people):
    """What a perfect reward model would score: a group's mean opinion of each line's responses, its members' errors left out."""
    return [[sum(p.opinion(line["task"], r, noise=False) for p in people) / len(people) for r in line["responses"]] for line in ranked]


def gumbel(*key):
    """A standard Gumbel variable that depends on nothing but the key."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return -math.log(-math.log((int.from_bytes(digest, "big") + 0.5) / 2 ** 64))


def draw_slip(task, rng):
    """The kind of slip; a rude user gets a rude answer more often, one who asks for respect never."""
    rude = 6 if "rude_user" in task else 0 if "respect" in task else 3
    return rng.choices(["ramble", "careless", "rude", "unfinished"], weights=[4, 2, rude, 2])[0]


def add_slip(task, answer, rng, slip):
    """The answer with one slip of the given kind."""
    if slip == "ramble":
        return answer + " " + " ".join(ramble(rng) for _ in range(rng.choice([1, 1, 2])))
    if slip == "careless":
        return careless(task, answer, rng)
    if slip == "rude":
        remark = rng.choice(town.RUDE_REMARKS)
        return rng.choice([f"{remark} {answer}", f"{answer} {remark}"])
    pieces = answer.split()                                             # unfinished: the end is missing
    return " ".join(pieces[:rng.randint(1, max(1, len(pieces) - 1))]).rstrip(".")


def careless(task, answer, rng):
    """A wrong word, a wrong number of sentences, or an invented answer where the text says nothing.

    In a list or a story another word is at times as right as the first; then another is taken, until it is an error."""
    if answer == tasks.NOT_SAID:
        return tasks.text_of([tasks.person_statement(rng, task["person"], task["attribute"])])
    pieces = town.sentences(answer)
    if "n" in task and len(pieces) > 1 and rng.random() < 0.5:
        return " ".join(pieces[:-1])
    right = observe(task, answer, True)
    for _ in range(50):
        wrong = town.swap_word(answer, rng)
        if wrong is None or (seen := observe(task, wrong, True)).helpful < right.helpful or seen.false > right.false:
            break
    return wrong or answer


def ramble(rng):
    """A sentence that nobody asked for."""
    if rng.random() < 0.5:
        return town.fact_sentence(tasks.pick(rng, "animal"), rng.choice(town.FACTS))
    return tasks.text_of([tasks.person_statement(rng, tasks.pick(rng, "person"), rng.choice(["has", "at", "feels", "likes"]))])


def mean_and_error(shares):
    """The mean of some numbers and half the width of its 95 % interval, 1.96 standard errors."""
    mean = sum(shares) / len(shares)
    deviation = (sum((s - mean) ** 2 for s in shares) / (len(shares) - 1)) ** 0.5
    return mean, 1.96 * deviation / len(shares) ** 0.5


def preference(rows, ours, theirs, rng, people, judges=5):
    """How often held-out labelers prefer `ours`, sides shuffled, ties half [not stated]: [mean, low, high], 95 % over prompts."""
    shares = []
    for row, a, b in zip(rows, ours, theirs):
        votes = []
        for person in rng.sample(people, judges):
            vote = person.prefer(row["task"], a, b) if rng.random() < 0.5 else 1 - person.prefer(row["task"], b, a)
            votes.append(vote)
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
