"""Record what the lessons do not make themselves: small checkpoints, curves and samples.

    python -m notebooks.record      # 22 minutes on one core, after two experiments:
                                    # `python -m notebooks.experiments figure_1` and `kl_sweep`

All of it is of the run with seed 1. Writes notebooks/checkpoints/*.pt (half precision) and
notebooks/results/classroom.json. That file is written after each part, so a stopped recording
resumes where it stopped.
"""
import dataclasses
import functools
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from tqdm import tqdm

import model
import ppo
import reward
from data import files, flags, judge, tokenizer
from data.files import UserError, load_checkpoint
from data.labeler import get_labelers
from notebooks import experiments, repair
from notebooks.exercises import KEYS, is_bug
from notebooks.experiments import Lab, rounded
from notebooks.lesson import CHECKPOINTS, MODELS, RESULTS, answers, load
from tests.mutations import BUGS, copy_project, put

# The columns of a metrics file that lessons draw.
COLUMNS = ("step", "score", "gold", "kl", "length", "ended", "entropy", "explained_variance",
           "ptx_loss", "clip_fraction", "ratio")


def checkpoints(run):
    """Save the models of a finished run in half precision.

    That changes their hashes, so each model's record of its parents is updated."""
    hashes = {}
    for name in MODELS:
        extra = load_checkpoint(run / f"{name}.pt")["extra"]
        known = [parent for parent in extra["parents"] if parent in hashes]
        extra["parents"] = {parent: hashes[parent] for parent in known}
        path = CHECKPOINTS / f"{name}.pt"
        hashes[name] = model.save_checkpoint(path, load(run, name).half(), **extra)


def curve(path):
    """Return the rows of a metrics file with the columns that lessons draw."""
    rows = []
    for row in files.read_jsonl(path, step=int):
        rows.append({key: row[key] for key in COLUMNS})
    return rows


def sft_epochs(config):
    """Return validation loss, mean score and mean gold utility of every SFT epoch."""
    losses = {}
    for row in files.read_jsonl(Path(config.out) / "sft.jsonl", step=int):
        if "valid_loss" in row:
            losses[row["epoch"]] = row["valid_loss"]
    scores = {}
    for name, mean, _ in load_checkpoint(Path(config.out) / "sft.pt")["extra"]["scores"]:
        scores[name] = mean
    rows = files.read_prompts("valid")[:500]
    prompts = experiments.column(rows, "prompt")
    table = []
    for name in files.sft_epochs(config):
        policy = experiments.load(config, f"sft_epochs/{name}")
        responses = answers(policy, prompts)
        table.append({
            "epoch": int(name),
            "valid_loss": losses[int(name)],
            "score": scores[name],
            "gold": experiments.mean_utility(rows, responses),
        })
    return table


def hacked(config):
    """Return 40 prompts where the policy trained without a KL penalty fools the reward model.

    Compared with SFT's answer, its answer has a higher score and a lower gold utility. The largest
    differences in score come first."""
    rows = files.read_prompts("valid")
    encoding = tokenizer.load()
    proxy = experiments.load_reward(config)
    prompts = experiments.column(rows, "prompt")
    table = [{"prompt": prompt} for prompt in prompts]
    for key, name in (("sft", "sft_mix"), ("beta", "beta_0.0")):
        responses = answers(experiments.load(config, name), prompts)
        scores = experiments.proxy_scores(proxy, encoding, rows, responses)
        golds = experiments.utilities(rows, responses)
        for i, line in enumerate(table):
            line[key] = {"text": responses[i]["text"], "score": scores[i], "gold": golds[i]}

    def gain(line, measure):
        return line["beta"][measure] - line["sft"][measure]

    fooled = [line for line in table if gain(line, "score") > 0 and gain(line, "gold") < 0]
    return sorted(fooled, key=lambda line: -gain(line, "score"))[:40]


def pairs(lab):
    """Return 200 pairs of responses, of the smallest PPO-ptx and of the largest GPT.

    The two are in random order, with the share of held-out labelers who prefer the first."""
    rng = random.Random(1)
    generator = torch.Generator().manual_seed(1)
    people = get_labelers("held_out")
    rows = rng.sample(lab.rows, 200)
    responses = {}
    for writer in ("small ppo_ptx", "large gpt"):
        size, name = writer.split()
        policy = load(lab.runs / f"{size}1", name)
        responses[writer] = ppo.answer(name, policy, rows, generator)
    lines = []
    for i, row in enumerate(rows):
        writers = rng.sample(list(responses), 2)
        a = responses[writers[0]][i]
        b = responses[writers[1]][i]
        votes = [person.prefer(row["task"], a, b) for person in rng.sample(people, 5)]
        lines.append({
            "prompt": row["prompt"],
            "a": a["text"],
            "b": b["text"],
            "writers": writers,
            "votes_for_a": sum(votes) / 5,
        })
    return lines


def twelve(config):
    """Return twelve training prompts with four responses each, which the student ranks.

    Not prompts that something is measured with, because models are trained on these rankings. Each
    comes with a prepared ranking by one labeler, with at least three different ranks."""
    rng = random.Random(1)
    generator = torch.Generator().manual_seed(1)
    rows = rng.sample(files.read_prompts("rm"), 60)
    sources = []
    for name, temperature in (("sft_mix", 1.0), ("sft_mix", 1.3), ("ppo_ptx", 1.0), ("gpt", 1.0)):
        sources.append((name, experiments.load(config, name), temperature))
    responses = reward.collect(rows, (sources, []), 4, rng, generator)
    found = []
    for line in reward.rank(rows, responses, get_labelers("train")[:1], rng, 0):
        if len(line["responses"]) == 4 and len(set(line["ranks"])) > 2:
            found.append(line)
    return found[:12]


def bug_of(letter):
    """Return the bug of tests/mutations.py whose curve has this letter in lesson 5."""
    return next(bug for bug in BUGS if is_bug(letter, bug.name))


def with_bugs(config, *bugs):
    """Return the curve of a short PPO run with some lines of the scripts wrong.

    bugs: of tests/mutations.py."""
    with tempfile.TemporaryDirectory() as folder:
        project = copy_project(folder)
        out = Path(folder) / "run"
        out.mkdir()
        for name in ("gpt", "sft_mix", "reward_1", "ppo_1", "reward"):
            shutil.copy(Path(config.out) / f"{name}.pt", out)
        for bug in bugs:
            put(bug, project)
        settings = f"ppo.Config(out={str(out)!r}, rollout_size=512, minibatch_size=128)"
        code = f"import ppo; ppo.train_policy({settings}, 'run', 'reward', 16, 0.0)"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=project, capture_output=True, encoding="utf-8",
            errors="replace")
        if done.returncode:
            raise UserError(f"the run with {bugs} failed: {done.stderr[-300:]}")
        return curve(out / "run.jsonl")


def one_round(config):
    """Return the curve of PPO without a KL penalty against the first reward model.

    That model never saw samples of PPO."""
    config = dataclasses.replace(config, beta=0.0)
    if not files.made(config, "one_round"):
        ppo.train_policy(config, "one_round", "reward_1", config.iterations, 0.0)
    return curve(Path(config.out) / "one_round.jsonl")


def samples(config):
    """Return what PPO-ptx writes at iterations 0, 5, ... 40 of its training, as {iteration: ...}.

    PPO-ptx is trained once more. A function that looks at the policy stands in for ppo.rollout,
    which training calls at the start of each iteration. It has random numbers of its own, so the
    training stays the same. The policy itself answers, not the average that is saved at the end."""
    rows = files.read_prompts("valid")
    firsts = {}
    for row in rows:
        firsts.setdefault(row["use_case"], row)             # the first prompt of each use case
    ten = list(firsts.values())
    proxy = experiments.load_reward(config)
    rollout = ppo.rollout
    policies = []                                           # the same one in each iteration
    seen = {}

    def look():
        if len(policies) % 5 == 1:
            iteration = len(policies) - 1
            seen[iteration] = answers_and_means(proxy, ten, rows, policies[0])

    def look_and_roll_out(prompts, policy, *others):
        policies.append(policy)
        look()
        return rollout(prompts, policy, *others)

    ppo.rollout = look_and_roll_out
    try:
        train_again(config, "ppo_ptx", config.gamma_ptx)
    finally:
        ppo.rollout = rollout
    policies.append(policies[0])                            # after the last iteration
    look()
    return seen


def train_again(config, name, gamma_ptx):
    """Train a policy of the run once more, in a temporary folder. Its curve must be the same."""
    with tempfile.TemporaryDirectory() as out:
        for parent in ("sft_mix", "reward"):
            shutil.copy(Path(config.out) / f"{parent}.pt", out)
        again = dataclasses.replace(config, out=out)
        ppo.train_policy(again, name, "reward", config.iterations, gamma_ptx)
        if curve(Path(out) / f"{name}.jsonl") != curve(Path(config.out) / f"{name}.jsonl"):
            raise UserError(f"the curve of {name} is not that of {config.out}/{name}.jsonl")


def answers_and_means(proxy, ten, rows, policy):
    """Return the answers to ten prompts, and means over the answers to all `rows`.

    An answer comes with its score and its gold utility. It is drawn with the same random numbers
    for every policy, so it changes only if the policy does."""
    encoding = tokenizer.load_cached()
    responses = []
    for row in ten:
        responses += answers(policy, [row["prompt"]], seed=1)
    scores = experiments.proxy_scores(proxy, encoding, ten, responses)
    golds = experiments.utilities(ten, responses)
    lines = []
    for row, response, score, gold in zip(ten, responses, scores, golds):
        lines.append({**response, "prompt": row["prompt"], "score": score, "gold": gold})

    responses = answers(policy, experiments.column(rows, "prompt"), seed=1)
    return {"answers": lines, "means": means_of_faults(rows, responses)}


def means_of_faults(rows, responses):
    """Return shares of responses with a fault that anyone can see, and two means."""
    seen = []
    words = 0
    for row, response in zip(rows, responses):
        seen.append(judge.observe(row["task"], response["text"], response["ended"]))
        words += len(response["text"].split())
    constrained = [features for features in seen if features.constrained]
    return {
        "words": words / len(seen),
        "rude": share_above_0(seen, "toxic"),
        "too long": share_above_0(seen, "surplus"),
        "unfinished": share_above_0(seen, "unfinished"),
        "another task": 1 - share_above_0(seen, "attempted"),
        "false": share_above_0(seen, "false"),
        "constraint broken": 1 - share_above_0(constrained, "constraints"),
        "gold": experiments.mean_utility(rows, responses),
    }


def share_above_0(seen, feature):
    """Return the share of responses in which a feature is above 0. seen: judge.Features."""
    n = 0
    for features in seen:
        n += getattr(features, feature) > 0
    return n / len(seen)


def parts_of(lab, config):
    """Return {part of classroom.json: the function that makes it}."""
    run = Path(config.out)
    parts = {
        "twelve": functools.partial(twelve, config),
        "sft_epochs": functools.partial(sft_epochs, config),
        "hacked": functools.partial(hacked, config),
        "ppo": functools.partial(curve, run / "ppo.jsonl"),
        "ppo_ptx": functools.partial(curve, run / "ppo_ptx.jsonl"),
        "beta_0": functools.partial(curve, run / "beta_0.0.jsonl"),
        "one_round": functools.partial(one_round, config),
        "no bug": functools.partial(with_bugs, config),
        "closing task": functools.partial(with_bugs, config, *repair.the_bugs()),
    }
    # The curves of the galleries have letters, so that a student cannot read which bug it is.
    for letter in KEYS:
        parts[letter] = functools.partial(with_bugs, config, bug_of(letter))
    parts["pairs"] = functools.partial(pairs, lab)
    parts["samples"] = functools.partial(samples, config)
    return parts


def main():
    """Make what is missing."""
    lab = Lab(quick=False)
    config = lab.base(1)
    checkpoints(Path(config.out))
    path = RESULTS / "classroom.json"
    found = {"seed": 1, "cores": torch.get_num_threads(), "seconds": 0.0, "parts": {}}
    if path.exists():
        found = files.read_json(path)
    for name, make in tqdm(parts_of(lab, config).items(), desc="recording"):
        if name in found["parts"]:
            continue
        start = time.time()
        found["parts"][name] = make()
        found["seconds"] += time.time() - start
        files.write(path, json.dumps(rounded(found)))
    print(f"made {CHECKPOINTS} and {path}")


if __name__ == "__main__":
    flags.guarded(main)
