"""Beside PPO: other ways to learn from the same preferences, judged by the truth.

    python -m notebooks.methods                 # three seeds, hours; after a stop, it resumes
    python -m notebooks.methods --quick         # the same code on tiny models: numbers mean nothing
    python -m notebooks.methods --search 11     # the search for settings, on a development seed
    python -m notebooks.methods --memory        # each method's memory, added to the results

All methods maximise the first term of the paper's equation 2,

    E_(x,y)~pi [ r(x, y) - beta log( pi(y|x) / pi_ref(y|x) ) ]

from the same start and reference (sft_mix), with the same reward model (the base run's) or the
rankings that it has learned from, and the same prompts. Methods that sample see as many responses
as PPO (40,960) and make as many optimiser steps (160). They differ in the baseline that they
subtract from the reward, in where the KL penalty enters, and in what they need:

    PPO             reward model, value network, samples
    REINFORCE       reward model, samples: the baseline is a running mean of rewards
    RLOO            reward model, k samples per prompt: the baseline is the mean of the other k - 1
    GRPO            the same: the mean of all k, divided by their standard deviation
    DPO             rankings only: no reward model, no samples
    distillation    reward model, n samples per prompt: SFT on the best of them
    best of n       the same when answering: no training

The same experiment as those of notebooks/experiments.py: rows, a JSON file that is resumed, a
picture, a sentence.
"""
import argparse
import copy
import dataclasses
import functools
import itertools
import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

import ppo
import sft
from data import files, flags, judge, tokenizer
from data.figures import BLUE, GREEN, GREY, ORANGE, SKY, peak_memory
from data.training import by_length, trimmed
from model import load_model, save_checkpoint
from notebooks import experiments
from notebooks.lab import (
    RESULTS, RUNS, Lab, by_seed, column, describe, error_bar, generator_of, load, load_reward,
    mean_and_range, mean_by_seed, means_by_seed, setting_and_seed, settings_in
)

N_STEPS = 160           # optimiser steps, like PPO's 40 rollouts of 4 minibatches
EPISODES = 256          # responses per step, like PPO's minibatch


# ================================================================ the arithmetic
# (B,): one number per response. (B, R): one per response token, 0 on padding.


def penalised(scores, logprobs, ref_logprobs, mask, beta):
    """The term in the expectation: scores (B,), the rest (B, R) -> rewards (B,).

    A response is one action here, so its KL penalty is one number, too."""
    log_ratio = ((logprobs - ref_logprobs) * mask).sum(1)               # (B,)
    return scores - beta * log_ratio


def rloo_advantages(rewards, k):
    """REINFORCE leave one out (Kool et al. 2019, Ahmadian et al. 2024): rewards (B,) -> (B,).

        A_i = R_i - 1 / (k - 1)  sum_(j != i) R_j

    The k responses to a prompt stand next to each other. A baseline may depend on everything but
    the response itself, so the others' mean leaves the gradient right on average."""
    groups = rewards.view(-1, k)                                        # (B / k, k)
    others = (groups.sum(1, keepdim=True) - groups) / (k - 1)           # (B / k, k)
    return (groups - others).flatten()


def grpo_advantages(rewards, k, normalise=True):
    """Group-relative advantages (Shao et al. 2024): rewards (B,) -> (B,).

        A_i = ( R_i - mean(R) ) / std(R)        over the k responses to a prompt

    R_i is in its own baseline: without the division, A is RLOO's times (k - 1) / k. The division
    gives every prompt the same weight, also one whose responses are nearly equally good. Without
    it (normalise=False) this is Dr. GRPO's (Liu et al. 2025)."""
    groups = rewards.view(-1, k)                                        # (B / k, k)
    advantages = groups - groups.mean(1, keepdim=True)                  # (B / k, k)
    if normalise:
        advantages = advantages / (groups.std(1, keepdim=True) + 1e-4)
    return advantages.flatten()


def reinforce_loss(logprobs, advantages, mask):
    """The policy gradient (Williams 1992): logprobs, mask (B, R), advantages (B,) -> scalar.

        loss = - mean_y A(y) log pi(y|x)

    A response is one action, and its log-probability is the sum over its tokens."""
    return -(advantages * (logprobs * mask).sum(1)).mean()


def grpo_loss(logprobs, old_logprobs, advantages, mask, clip, normalise=True):
    """GRPO's loss (Shao et al. 2024, equation 3), KL aside: (B, R), advantages (B,) -> scalar.

        loss = - mean_y 1/|y| sum_t min( ratio_t A, clip(ratio_t, 1 - clip, 1 + clip) A )

    1/|y| gives every response the same weight, so a token of a long response counts less than one
    of a short response. Without it (normalise=False), all tokens of a batch count the same."""
    ratio = (logprobs - old_logprobs).exp()                             # (B, R)
    unclipped = ratio * advantages[:, None]                             # (B, R)
    clipped = ratio.clamp(1 - clip, 1 + clip) * advantages[:, None]     # (B, R)
    gain = torch.minimum(unclipped, clipped) * mask                     # (B, R)
    if normalise:
        return -(gain.sum(1) / mask.sum(1)).mean()
    return -gain.sum() / len(gain)


def kl_loss(logprobs, ref_logprobs, mask, per_token=False):
    """The KL as a loss: the estimate k3 (Schulman 2020), (B, R) three times -> scalar.

    It is summed over a response, as in the objective. per_token: the mean over its tokens, as in
    GRPO's equation 3, where it is weighted like the rest of the loss. Its gradient only pulls on
    the sampled tokens. As a reward, the KL of a token also reaches the tokens before it."""
    _, k3 = ppo.kl_estimates(logprobs, ref_logprobs)                    # (B, R)
    kl = (k3 * mask).sum(1)                                             # (B,)
    return (kl / mask.sum(1) if per_token else kl).mean()


def dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta):
    """Direct preference optimisation (Rafailov et al. 2023, equation 7): four times (N,) -> scalar.

        loss = - mean log sigmoid( beta log(pi/pi_ref)(y_w) - beta log(pi/pi_ref)(y_l) )

    The objective has a closed solution, pi(y|x) = pi_ref(y|x) exp( r(x, y) / beta ) / Z(x). Solved
    for r, it says that every policy is the best one for the reward beta log(pi/pi_ref) plus a term
    of x alone. That reward goes into equation 1, where the term of x cancels. Arguments are log-
    probabilities of whole responses."""
    margins = beta * ((chosen - ref_chosen) - (rejected - ref_rejected))        # (N,)
    return -F.logsigmoid(margins).mean()


# ================================================================ training
# The method's own step is in the functions above. These loops are what all of them share.


@dataclasses.dataclass(frozen=True)
class Method:
    """One way of training. Learning rates are the only settings that were searched."""
    name: str
    colour: str
    lr: float = 1e-3            # of Adam
    beta: float = ppo.Config.beta
    k: int = 4                  # responses per prompt
    advantages: str = ""        # running, rloo or grpo: a method that samples
    normalise: bool = True      # GRPO's two divisions
    kl_in_loss: bool = False
    rounds: int = 0             # of best-of-n distillation
    only_round_1: bool = False  # of rankings, for DPO


METHODS = [
    Method("REINFORCE", ORANGE, lr=3.3e-4, k=1, advantages="running"),
    Method("RLOO", GREEN, advantages="rloo"),
    Method("RLOO, KL in the loss", GREEN, advantages="rloo", kl_in_loss=True),
    Method("GRPO", SKY, advantages="grpo"),
    Method("GRPO, not normalised", SKY, advantages="grpo", normalise=False),
    Method("GRPO, KL in the loss", SKY, advantages="grpo", kl_in_loss=True),
    Method("DPO", "#CC79A7", lr=3e-4),
    Method("DPO, round 1", "#CC79A7", lr=3e-4, only_round_1=True),
    Method("distillation", "#F0C75E", lr=3e-4, rounds=1),
    Method("distillation, 3 rounds", "#F0C75E", lr=3e-4, rounds=3),
]
POLICIES = {"PPO": "ppo", "PPO-ptx": "ppo_ptx"}         # of the base run: their checkpoints
# Whose learning rate was searched. The others take the rate of the first half of their name.
SEARCHED = ("REINFORCE", "RLOO", "GRPO", "DPO", "distillation")
N_BEST = 16             # responses per prompt of distillation and of best of n


def named(name):
    """Return the method of a name."""
    return next(method for method in METHODS if method.name == name)


class Start:
    """What every method starts with: one run's networks, prompts and rankings."""

    def __init__(self, lab, seed):
        self.config = lab.base(seed)
        self.rng = random.Random(seed)
        self.generator = generator_of(seed)
        self.reference = load(self.config, "sft_mix")
        self.policy = load(self.config, "sft_mix")
        self.average = copy.deepcopy(self.policy)       # of the weights, as in ppo.train_policy
        self.reward_model = load_reward(self.config)
        self.prompts = files.read_prompts("rl")
        self.queue = []
        self.curve = []                                 # rows with kl, score, gold
        self.quick = lab.quick
        self.few = False        # train only for long enough to measure the memory

    def next_prompts(self, n):
        """Return the next n prompts. All are used before one is used again."""
        if len(self.queue) < n:
            self.queue = self.rng.sample(self.prompts, len(self.prompts))
        chosen = self.queue[:n]
        self.queue = self.queue[n:]
        return chosen

    def average_weights(self, n_steps):
        """Move the average towards the policy. Its first weights end as 1.8 % of it."""
        decay = 0.018 ** (1 / n_steps)
        with torch.no_grad():
            for mean, now in zip(self.average.parameters(), self.policy.parameters()):
                mean.lerp_(now, 1 - decay)


@torch.no_grad()
def respond(start, prompts):
    """Let the policy answer. Returns the dict of ppo.batch_of with logprobs, ref_logprobs (B, R),
    scores (B,) and answers. Like steps 1 to 3 of ppo.rollout, without a value network."""
    encoding = tokenizer.load_cached()
    prompt_ids = tokenizer.encode_prompts(encoding, prompts)
    responses = ppo.generate(start.policy, prompt_ids, ppo.MAX_NEW_TOKENS, 1.0, start.generator)
    answers = tokenizer.decode_responses(encoding, responses)
    batch = ppo.batch_of(prompt_ids, responses, start.policy.config.pad_id, "cpu")
    logprobs = torch.zeros_like(batch["mask"])                          # (B, R)
    ref_logprobs = torch.zeros_like(logprobs)                           # (B, R)
    scores = torch.zeros(len(prompts))                                  # (B,)
    for numbers in by_length(batch["lengths"], ppo.MICRO_BATCH):
        part = trimmed(batch, numbers)
        r = part["mask"].shape[1]
        logprobs[numbers, :r] = ppo.response_logprobs(start.policy, part)
        ref_logprobs[numbers, :r] = ppo.response_logprobs(start.reference, part)
        scores[numbers] = start.reward_model(part["idx"], part["lengths"])
    ended = torch.tensor(column(answers, "ended")).float()              # (B,)
    scores = scores - start.config.missing_eos_penalty * (1 - ended)    # (B,)
    return batch | dict(logprobs=logprobs, ref_logprobs=ref_logprobs, scores=scores,
                        answers=answers)


def train_online(start, method):
    """REINFORCE, RLOO or GRPO: sample, form advantages, take one step. Each batch is used once."""
    optimizer, _ = ppo.make_optimizers(start.policy, start.reward_model, start.config)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * method.lr / start.config.lr
    n_steps, size = (4, 64) if start.quick else (N_STEPS, EPISODES)
    n_steps = 4 if start.few else n_steps
    baseline = None
    for step in tqdm(range(n_steps), desc=method.name):
        # 1. k responses to each prompt, next to each other.
        prompts = [row for row in start.next_prompts(size // method.k) for _ in range(method.k)]
        batch = respond(start, prompts)

        # 2. Rewards, with or without the KL penalty, and advantages.
        beta = 0.0 if method.kl_in_loss else method.beta
        rewards = penalised(batch["scores"], batch["logprobs"], batch["ref_logprobs"],
                            batch["mask"], beta)                        # (B,)
        if method.advantages == "running":
            baseline = rewards.mean() if baseline is None else baseline
            batch["advantages"] = rewards - baseline                    # (B,)
            baseline = 0.9 * baseline + 0.1 * rewards.mean()            # scalar
        elif method.advantages == "rloo":
            batch["advantages"] = rloo_advantages(rewards, method.k)    # (B,)
        else:
            batch["advantages"] = grpo_advantages(rewards, method.k, method.normalise)

        # 3. One step.
        online_step(start, method, optimizer, batch)
        start.average_weights(n_steps)
        start.curve.append(point(prompts, batch))


def online_step(start, method, optimizer, batch):
    """One optimiser step, accumulated over micro-batches of similar length as in ppo.update."""
    for numbers in by_length(batch["lengths"], ppo.MICRO_BATCH):
        part = trimmed(batch, numbers)
        share = len(numbers) / len(batch["lengths"])
        logprobs = ppo.response_logprobs(start.policy, part)            # (b, r)
        if method.advantages == "grpo":
            loss = grpo_loss(logprobs, part["logprobs"], part["advantages"], part["mask"],
                             start.config.clip_range, method.normalise)
        else:
            loss = reinforce_loss(logprobs, part["advantages"], part["mask"])
        if method.kl_in_loss:
            per_token = method.advantages == "grpo" and method.normalise
            kl = kl_loss(logprobs, part["ref_logprobs"], part["mask"], per_token)       # scalar
            loss = loss + method.beta * kl
        (share * loss).backward()
    take_step(start.policy, optimizer)


def take_step(policy, optimizer):
    """Clip the gradient as in ppo.update, step, and forget the gradient."""
    torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


# ---------------------------------------------------------------- DPO


def preference_pairs(rankings, rng):
    """One pair per ranking: (prompt, chosen, rejected), of a random labeler's untied ranks."""
    pairs = []
    for ranking in rankings:
        ranks = rng.choice([ranking["ranks"], *ranking.get("second_opinions", [])])
        places = itertools.permutations(range(len(ranks)), 2)
        untied = [(i, j) for i, j in places if ranks[i] < ranks[j]]
        if untied:
            i, j = rng.choice(untied)
            responses = ranking["responses"]
            pairs.append((ranking["prompt"], responses[i], responses[j]))
    return pairs


def response_sums(model, prompts, responses):
    """Log-probabilities of whole responses: (N,)."""
    encoding = tokenizer.load_cached()
    prompt_ids = [tokenizer.prompt_ids(encoding, prompt) for prompt in prompts]
    response_ids = [tokenizer.response_ids(encoding, response["text"], response["ended"])
                    for response in responses]
    batch = ppo.batch_of(prompt_ids, response_ids, model.config.pad_id, "cpu")
    return (ppo.response_logprobs(model, batch) * batch["mask"]).sum(1)         # (N,)


def train_dpo(start, method):
    """Two passes over the rankings, one pair of each: 64 pairs per step."""
    rankings = files.read_rankings(Path(start.config.out) / "rankings.jsonl")
    if method.only_round_1:
        rankings = [ranking for ranking in rankings if ranking["round"] == 1]
    size = 16 if start.quick else 64
    pairs = []
    for _ in range(2):
        some = preference_pairs(rankings, start.rng)
        pairs += start.rng.sample(some, len(some))
    optimizer = torch.optim.Adam(start.policy.parameters(), lr=method.lr, betas=(0.9, 0.95))
    n_steps = 4 if start.quick or start.few else len(pairs) // size
    for step in tqdm(range(n_steps), desc=method.name):
        if step % max(1, n_steps // 20) == 0:
            measure_policy(start)
        prompts, chosen, rejected = zip(*pairs[step * size:(step + 1) * size])
        with torch.no_grad():
            ref_chosen = response_sums(start.reference, prompts, chosen)            # (N,)
            ref_rejected = response_sums(start.reference, prompts, rejected)        # (N,)
        loss = dpo_loss(response_sums(start.policy, prompts, chosen),
                        response_sums(start.policy, prompts, rejected),
                        ref_chosen, ref_rejected, method.beta)          # scalar
        for group in optimizer.param_groups:
            group["lr"] = method.lr * min(1.0, (step + 1) / 10)
        loss.backward()
        take_step(start.policy, optimizer)
        start.average_weights(n_steps)
    measure_policy(start)


def measure_policy(start, n=512):
    """Add a point to the curve of a method that does not sample in training."""
    prompts = start.rng.sample(start.prompts, min(n, len(start.prompts)))
    start.curve.append(point(prompts, respond(start, prompts)))


def point(prompts, batch):
    """Return the KL, score and gold utility of the responses of a batch: a point of a curve."""
    log_ratio = (batch["logprobs"] - batch["ref_logprobs"]) * batch["mask"]         # (B, R)
    return {"kl": log_ratio.sum(1).mean().item(),
            "score": batch["scores"].mean().item(),
            "gold": judge.mean_utility(prompts, batch["answers"])}


# ---------------------------------------------------------------- best of n, distilled


def train_distillation(start, method):
    """Sample n responses per prompt, keep the best by the reward model, fine-tune on these.

    The same number of responses as PPO, in one round or in several. A round starts from the last
    round's policy, which then samples better responses to choose from."""
    encoding = tokenizer.load_cached()
    n_prompts = N_STEPS * EPISODES // N_BEST // method.rounds
    if start.quick or start.few:
        n_prompts = 16 if start.quick else 64
    for _ in range(method.rounds):
        measure_policy(start)
        prompts = start.next_prompts(n_prompts)
        best = best_responses(start, prompts, N_BEST)
        pairs = []
        for row, response in zip(prompts, best):
            pairs.append((tokenizer.prompt_ids(encoding, row["prompt"]),
                          tokenizer.response_ids(encoding, response["text"], response["ended"])))
        optimizer = torch.optim.Adam(start.policy.parameters(), lr=method.lr, betas=(0.9, 0.95))
        for _ in range(2):                                              # passes
            pairs = start.rng.sample(pairs, len(pairs))
            for i in range(0, len(pairs), 32):
                idx, mask = sft.sft_batch(pairs[i:i + 32], start.policy.config.pad_id)
                loss = sft.sft_loss(start.policy, idx, mask)            # scalar
                loss.backward()
                take_step(start.policy, optimizer)
    measure_policy(start)
    start.average.load_state_dict(start.policy.state_dict())


@torch.no_grad()
def best_responses(start, prompts, n):
    """The best of n responses of the policy to each prompt, by the reward model."""
    kept = []
    for i in range(0, len(prompts), 64):
        rows = [row for row in prompts[i:i + 64] for _ in range(n)]
        batch = respond(start, rows)
        best = batch["scores"].view(-1, n).argmax(1).tolist()           # (rows / n,)
        kept += [batch["answers"][j * n + b] for j, b in enumerate(best)]
    return kept


# ================================================================ rows


def methods(lab):
    """PPO, REINFORCE, RLOO, GRPO, DPO, distillation and best of n, from the same start."""
    for seed in lab.seeds:
        yield f"start seed {seed}", functools.partial(row_of_start, lab, seed)
        for name in ("PPO", "PPO-ptx"):
            yield f"{name} seed {seed}", functools.partial(row_of_ppo, lab, seed, name)
        yield f"best of n seed {seed}", functools.partial(row_of_best_of_n, lab, seed)
        for method in METHODS:
            yield f"{method.name} seed {seed}", functools.partial(row_of_method, lab, seed, method)


def row_of_start(lab, seed):
    """Return the row of the policy that all methods start from, the reference."""
    config = lab.base(seed)
    return described(lab, config, Path(config.out) / "sft_mix.pt")


def described(lab, config, path):
    """Return the entry of a policy, with the mean number of words of its answers."""
    entry = describe(lab, config, path)
    answers = ppo.answer("ppo", load_model(path), lab.rows, generator_of(config.seed))
    words = sum(len(answer["text"].split()) for answer in answers)
    return entry | {"words": words / len(answers)}


def row_of_ppo(lab, seed, name):
    """Return the row of a policy of the base run. Its log is the curve."""
    config = lab.base(seed)
    file = POLICIES[name]
    curve = []
    for row in files.read_jsonl(Path(config.out) / f"{file}.jsonl", step=int):
        curve.append({key: row[key] for key in ("kl", "score", "gold")})
    entry = described(lab, config, Path(config.out) / f"{file}.pt")
    seconds = seconds_of_ppo(lab, config, file)
    return entry | {"curve": curve, "seconds": seconds, "labels": labels_of(config)}


def seconds_of_ppo(lab, config, file, n=3):
    """Return the seconds of a policy of the base run: those of n iterations, times all by n."""
    beside = lab.beside(config, "timing")
    shutil.copy(Path(config.out) / "reward.pt", beside.out)
    start = time.process_time()
    gamma_ptx = config.gamma_ptx if file == "ppo_ptx" else 0.0
    ppo.train_policy(beside, "timing", "reward", n, gamma_ptx)
    return (time.process_time() - start) * config.iterations / n


def peak_of(name):
    """Return the MB that a process holds at most which trains with one method of seed 1.

    All train for a short while, because their steps are alike."""
    lab = Lab(False)
    seed = lab.seeds[0]
    if name in POLICIES:
        seconds_of_ppo(lab, lab.base(seed), POLICIES[name])
        return peak_memory()
    start = Start(lab, seed)
    start.few = True
    train(start, named(name))
    return peak_memory()


def measure_memory():
    """Measure each method's memory in a process of its own, and add it to methods.json."""
    path = RESULTS / "methods.json"
    found = files.read_json(path)
    found["peak_mb"] = {}
    for name in [*POLICIES, *(method.name for method in METHODS)]:
        command = [sys.executable, "-m", "notebooks.methods", "--memory", name]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
        found["peak_mb"][name] = float(done.stdout.split()[-1])
        print(f"{name:24} {found['peak_mb'][name]:.0f} MB")
    files.write(path, json.dumps(experiments.rounded(found), indent=1))


def row_of_best_of_n(lab, seed):
    """Return the row of answering with the best of n of the reference: no training."""
    config = lab.base(seed)
    curve = experiments.best_of_n(lab, config, 8 if lab.quick else 64)
    return {"curve": [{"kl": point["kl"], "score": point["proxy"], "gold": point["gold"]}
                      for point in curve], "labels": labels_of(config)}


def row_of_method(lab, seed, method):
    """Return the row of a method: its policy on new prompts, its curve, its seconds."""
    config = lab.base(seed)
    path = trained(lab, seed, method)
    recorded = files.read_jsonl(path.with_suffix(".jsonl"))[0]
    labels = labels_of(config, method.only_round_1)
    return described(lab, config, path) | recorded | {"labels": labels}


def trained(lab, seed, method):
    """Train with a method, unless that is done. Return the path of the averaged policy."""
    config = lab.base(seed)
    name = "methods_" + method.name.lower().replace(",", "").replace(" ", "_")
    path = Path(config.out) / f"{name}.pt"
    if not path.exists():
        flags.set_up(config)
        start = Start(lab, seed)
        began = time.process_time()         # of one thread, so that other processes do not count
        train(start, method)
        seconds = time.process_time() - began
        files.write_jsonl(path.with_suffix(".jsonl"), [{"seconds": seconds, "curve": start.curve}])
        extra = files.stage_extra(config, name, ["sft_mix"])
        save_checkpoint(path, start.average, **extra)
    return path


def train(start, method):
    """Train start.policy with a method."""
    if method.advantages:
        train_online(start, method)
    elif method.rounds:
        train_distillation(start, method)
    else:
        train_dpo(start, method)


def labels_of(config, only_round_1=False):
    """Return how many rankings a method needs."""
    rankings = files.read_rankings(Path(config.out) / "rankings.jsonl")
    return len([ranking for ranking in rankings if not only_round_1 or ranking["round"] == 1])


def search(seed):
    """Print the gold utility of each method on validation prompts, for a few learning rates."""
    lab = Lab(False)
    lab.rows = files.read_prompts("valid")
    for name in SEARCHED:
        method = named(name)
        for times in (1 / 3, 1, 3):
            start = Start(lab, seed)
            changed = dataclasses.replace(method, lr=method.lr * times)
            began = time.time()
            train(start, changed)
            generator = generator_of(seed)
            responses = ppo.answer("ppo", start.average, lab.rows, generator)
            gold = judge.mean_utility(lab.rows, responses)
            kl = ppo.kl_to_reference(start.average, start.reference, lab.rows[:300], generator)
            print(f"{method.name:24} lr {changed.lr:.1e}  gold {gold:.3f}  KL {kl:.2f}  "
                  f"{time.time() - began:.0f} s", flush=True)


# ================================================================ picture and sentence

STYLES = {              # colour, line style and marker of each curve
    "PPO": (BLUE, "-", "o"),
    "PPO-ptx": (BLUE, "--", "o"),
    "best of n": (GREY, "-", "x"),
}
for method in METHODS:
    alike = [other for other in METHODS if other.colour == method.colour]
    kinds = list(dict.fromkeys(other.colour for other in METHODS))
    line = ("-", "--", ":")[alike.index(method)]
    STYLES[method.name] = (method.colour, line, "s^vDP"[kinds.index(method.colour)])
# The variants are left out of the curves, which would hide each other
CURVES = ("PPO", "PPO-ptx", "REINFORCE", "RLOO", "GRPO", "DPO", "distillation, 3 rounds",
          "best of n")


def smooth_curve(curve, parts=8):
    """Return (sqrt(KL), gold) at a few points: means over parts of the course of training."""
    parts = min(parts, len(curve))
    kl = np.maximum(0.0, column(curve, "kl"))
    gold = np.array(column(curve, "gold"))
    means = [list(map(np.mean, np.array_split(values, parts))) for values in (kl, gold)]
    return np.sqrt(means[0]), np.array(means[1])


def gold_at(curve, kl=0.5):
    """Return the gold utility at a KL, between the points of a curve, or None if it ends before."""
    distance, gold = smooth_curve(curve)
    order = np.argsort(distance)
    if distance.max() < kl ** 0.5:
        return None
    return float(np.interp(kl ** 0.5, distance[order], gold[order]))


def names_in(rows):
    """Return the methods that were measured, in the order of the picture."""
    known = settings_in(rows)
    return [name for name in STYLES if name in known]


def picture_methods(rows, axes):
    """Draw gold by sqrt(KL) in the course of training (means over seeds, in eight parts), gold on
    new prompts, and the seconds."""
    names = names_in(rows)
    for name in CURVES:
        if name not in names:
            continue
        colour, line, marker = STYLES[name]
        points = list(map(smooth_curve, by_seed(rows, name, "curve")))
        distance, gold = np.mean(points, axis=0)
        axes[0].plot(distance, gold, color=colour, linestyle=line, marker=marker, markersize=4,
                     label=name)
    axes[0].set(xlabel="sqrt(KL to the reference)", ylabel="gold utility (best of n: new prompts)",
                title="The course of training; best of n by n")
    low, high = axes[0].get_ylim()
    axes[0].set_ylim(bottom=low - 0.25 * (high - low))          # room for the legend
    axes[0].legend(frameon=False, fontsize=7, loc="lower right", ncol=2, handlelength=3)
    trained = [name for name in names if name != "best of n"]
    for axis, key, title in ((axes[1], "utility", "gold utility, new prompts"),
                             (axes[2], "seconds", "seconds of training, seed 1, one thread")):
        shown = [name for name in trained if by_seed_if(rows, name, key)]
        for i, name in enumerate(reversed(shown)):
            mean, low, high = mean_and_range(by_seed_if(rows, name, key))
            axis.barh(i, mean, xerr=error_bar(mean, low, high), color=STYLES[name][0],
                      capsize=2)
        axis.set_yticks(range(len(shown)), list(reversed(shown)), fontsize=7)
        axis.set_title(title)
    axes[1].set_xlim(left=0.5)
    return sentence_methods(rows, trained)


def by_seed_if(rows, name, key):
    """Return the values of a key over seeds. Rows without it are left out."""
    own = [row for full, row in rows.items() if setting_and_seed(full)[0] == name]
    return [row[key] for row in own if row.get(key) is not None]


def sentence_methods(rows, names):
    """Return gold utility and KL of every method, from the highest gold utility to the lowest."""
    gold = means_by_seed(rows, names, "utility")
    kl = means_by_seed(rows, names, "kl")
    start = mean_by_seed(rows, "start", "utility")
    found = []
    for name in sorted(names, key=gold.get, reverse=True):
        found.append(f"{name} {gold[name]:.3f} ({kl[name]:.2f})")
    return (f"From the same start (gold utility {start:.3f}), with the same reward model or "
            f"rankings and prompts, gold utility on new prompts (KL in nats): {', '.join(found)}.")


# (title, key of a row, format) of the table in notebooks/README.md
COLUMNS = [("gold utility", "utility", "{:.3f}"),
           ("KL", "kl", "{:.2f}"),
           ("preferred to SFT", "win_rate_vs_sft", "{:.3f}"),
           ("hallucinates, closed domain", "hallucinates_closed_domain", "{:.3f}"),
           ("toxic", "toxic", "{:.3f}"),
           ("words", "words", "{:.1f}"),
           ("corpus loss", "corpus_loss", "{:.3f}"),
           ("seconds", "seconds", "{:.0f}")]


def table(found):
    """Return the means over seeds as a table in Markdown, a line per method.

    found: the content of methods.json."""
    rows = found["rows"]
    memory = found.get("peak_mb", {})
    titles = ["method", *(title for title, _, _ in COLUMNS), "MB", "gold at KL 0.5",
              "its best gold"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name in names_in(rows):
        cells = [name]
        for _, key, form in COLUMNS:
            values = by_seed_if(rows, name, key)
            if values and isinstance(values[0], list):          # [mean, low, high]
                values = column(values, 0)
            cells.append(form.format(sum(values) / len(values)) if values else "")
        cells.append(f"{memory[name]:.0f}" if name in memory else "")
        curves = by_seed(rows, name, "curve")
        at = list(map(gold_at, curves))
        best = [float(smooth_curve(curve)[1].max()) for curve in curves]
        cells.append("" if None in at else f"{sum(at) / len(at):.3f}")
        cells.append(f"{sum(best) / len(best):.3f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


experiments.EXPERIMENTS["methods"] = (methods, picture_methods, "2 h")


def main():
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--search", type=int, default=0, metavar="SEED")
    parser.add_argument("--memory", nargs="?", const="all", choices=["all", *STYLES])
    given = parser.parse_args()
    if given.search:
        search(given.search)
    elif given.memory == "all":
        measure_memory()
    elif given.memory:
        print(peak_of(given.memory))
    else:
        print(f"\nmethods: {experiments.run('methods', given.quick)}\n")
        folder = RUNS / "quick_results" if given.quick else RESULTS
        print(table(files.read_json(folder / "methods.json")))


if __name__ == "__main__":
    flags.guarded(main)
