"""Makes what the lessons do not make themselves: small checkpoints and recorded curves and samples, all of the run with seed 1.

    python -m notebooks.record          # eight minutes on one core, after `python -m notebooks.experiments figure_1` and `kl_sweep`

Writes notebooks/checkpoints/*.pt (half precision) and notebooks/results/classroom.json, a part at a time: stopped, it goes on.
"""
import dataclasses
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
from data.labeler import get_labelers
from data.files import UserError, load_checkpoint
from model import load_model
from notebooks.experiments import Lab, rounded
from notebooks.exercises import SYMPTOMS
from notebooks.lesson import CHECKPOINTS, MODELS, RESULTS, answers, load
from tests.mutations import BUGS, copy_project, put

COLUMNS = ("step", "score", "gold", "kl", "length", "ended", "entropy", "explained_variance", "ptx_loss")


def checkpoints(run):
    """The models of a finished run in half precision, their parents' hashes made to fit."""
    hashes = {}
    for name in MODELS:
        extra = load_checkpoint(run / f"{name}.pt")["extra"]
        extra["parents"] = {parent: hashes[parent] for parent in extra["parents"] if parent in hashes}
        hashes[name] = model.save_checkpoint(CHECKPOINTS / f"{name}.pt", load(run, name).half(), **extra)


def curve(path):
    """A metrics file, the columns that lessons draw."""
    return [{key: row[key] for key in COLUMNS} for row in files.read_jsonl(path, step=int)]


def sft_epochs(config):
    """For every SFT epoch: validation loss, the reward model's mean score of its samples, and their gold utility."""
    log = files.read_jsonl(Path(config.out) / "sft.jsonl", step=int)
    losses = {row["epoch"]: row["valid_loss"] for row in log if "valid_loss" in row}
    scores = {name: mean for name, mean, _ in load_checkpoint(Path(config.out) / "sft.pt")["extra"]["scores"]}
    rows, table = files.read_prompts("valid")[:500], []
    for name in files.sft_epochs(config):
        said = answers(load_model(Path(config.out) / "sft_epochs" / f"{name}.pt"), [row["prompt"] for row in rows])
        table.append({"epoch": int(name), "valid_loss": losses[int(name)], "score": scores[name], "gold": judge.mean_ignoring_none(v.utility for v in judge.judge_all(rows, said))})
    return table


def hacked(config):
    """Answers that the policy trained without a KL penalty gives, beside SFT's: the reward model's favourites among the false ones."""
    rows = files.read_prompts("valid")
    proxy = reward.load_reward_model(Path(config.out) / "reward.pt")
    table = [{"prompt": row["prompt"]} for row in rows]
    for name in ("sft_mix", "beta_0.0"):
        said = answers(load_model(Path(config.out) / f"{name}.pt"), [row["prompt"] for row in rows])
        scores = reward.score(proxy, tokenizer.load(), [(row["prompt"], r) for row, r in zip(rows, said)])
        for line, r, score, verdict in zip(table, said, scores, judge.judge_all(rows, said)):
            line[name.split("_")[0]] = {"text": r["text"], "score": score, "gold": verdict.utility}
    worse = [line for line in table if line["beta"]["score"] > line["sft"]["score"] and line["beta"]["gold"] < line["sft"]["gold"]]
    return sorted(worse, key=lambda line: line["sft"]["score"] - line["beta"]["score"])[:40]


def pairs(lab):
    """200 answers of the smallest PPO-ptx and the largest GPT to evaluation prompts, in random order, with held-out labelers' votes."""
    rng, generator, people = random.Random(1), torch.Generator().manual_seed(1), get_labelers("held_out")
    rows, lines = rng.sample(lab.rows, 200), []
    said = {name: ppo.answer(name.split()[1], load_model(lab.runs / f"{name.split()[0]}1" / f"{name.split()[1]}.pt"), rows, generator)
            for name in ("small ppo_ptx", "large gpt")}
    for i, row in enumerate(rows):
        writers = rng.sample(list(said), 2)
        one, other = (said[writer][i] for writer in writers)
        votes = [person.prefer(row["task"], one, other) for person in rng.sample(people, 5)]
        lines.append({"prompt": row["prompt"], "a": one["text"], "b": other["text"], "writers": writers, "votes_for_a": sum(votes) / 5})
    return lines


def twelve(config):
    """Twelve validation prompts with four responses each, for the student to rank, and a prepared ranking by one labeler."""
    rng, generator = random.Random(1), torch.Generator().manual_seed(1)
    rows = rng.sample(files.read_prompts("valid"), 60)
    usual = [(name, load_model(Path(config.out) / f"{name}.pt"), temperature) for name, temperature in (("sft_mix", 1.0), ("sft_mix", 1.3), ("ppo_ptx", 1.0), ("gpt", 1.0))]
    ranked = reward.rank(rows, reward.collect(rows, (usual, []), 4, rng, generator), get_labelers("train")[:1], rng, 0)
    return [line for line in ranked if len(line["responses"]) == 4 and len(set(line["ranks"])) > 2][:12]


def with_bug(config, bug):
    """The curve of a short PPO run with one line of the scripts wrong; bug None: none is."""
    with tempfile.TemporaryDirectory() as folder:
        project, out = copy_project(folder), Path(folder) / "run"
        out.mkdir()
        for name in ("gpt", "sft_mix", "reward_1", "ppo_1", "reward"):
            shutil.copy(Path(config.out) / f"{name}.pt", out)
        if bug:
            put(bug, project)
        code = f"import ppo; ppo.train_policy(ppo.Config(out={str(out)!r}, rollout_size=512, minibatch_size=128), 'run', 'reward', 16, 0.0)"
        done = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, encoding="utf-8", errors="replace")
        if done.returncode:
            raise UserError(f"the run with the bug {bug and bug.name!r} failed: {done.stderr[-300:]}")
        return curve(out / "run.jsonl")


def one_round(config):
    """PPO against the first round's reward model, which never saw samples of PPO, without a KL penalty."""
    config = dataclasses.replace(config, beta=0.0)
    if not files.made(config, "one_round"):
        ppo.train_policy(config, "one_round", "reward_1", config.iterations, 0.0)
    return curve(Path(config.out) / "one_round.jsonl")


def main():
    """Makes what is missing."""
    lab, path = Lab(False), RESULTS / "classroom.json"
    config = lab.base(1)
    run = Path(config.out)
    checkpoints(run)
    parts = {"twelve": lambda: twelve(config), "sft_epochs": lambda: sft_epochs(config), "hacked": lambda: hacked(config),
             "ppo": lambda: curve(run / "ppo.jsonl"), "ppo_ptx": lambda: curve(run / "ppo_ptx.jsonl"), "beta_0": lambda: curve(run / "beta_0.0.jsonl"),
             "one_round": lambda: one_round(config), "no bug": lambda: with_bug(config, None),
             **{name: (lambda name=name: with_bug(config, next(bug for bug in BUGS if bug.name == name))) for name in SYMPTOMS}, "pairs": lambda: pairs(lab)}
    found = files.read_json(path) if path.exists() else {"seed": 1, "cores": torch.get_num_threads(), "seconds": 0.0, "parts": {}}
    for name, make in tqdm(parts.items(), desc="recording"):
        if name not in found["parts"]:
            start = time.time()
            found["parts"][name] = make()
            found["seconds"] += time.time() - start
            files.write(path, json.dumps(rounded(found)))
    print(f"made {CHECKPOINTS} and {path}")


if __name__ == "__main__":
    flags.guarded(main)
