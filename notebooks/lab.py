"""What all experiments share: models and where they live, measurements, error bars.

experiments.py and findings.py hold the experiments themselves. experiments.py says how one is
made.
"""
import contextlib
import dataclasses
import functools
import json
import shutil
from pathlib import Path

import torch

import model
import ppo
import reward
import sft
from data import corpus, files, flags, judge, labeler, prepare, tasks, tokenizer
from data import toytown as town
from data.files import made
from data.labeler import get_labelers
from model import load_model

HERE = Path(__file__).parent
RESULTS = HERE / "results"
RUNS = HERE / "runs"
SEEDS = (1, 2, 3)

# --quick: sizes of the prompt sets, and settings of every stage.
QUICK_WORLD = {
    "demonstrations": 200,
    "prompts_rm": 600,
    "prompts_rl": 200,
    "prompts_valid": 60,
    "prompts_eval": 80,
    "prompts_closed": 20,
}
QUICK_PRETRAIN = dict(n_layer=1, n_head=2, n_embd=32, steps=60)
QUICK_SFT = dict(epochs=2, mix_epochs=2)
QUICK_RANKING = dict(prompts_1=300, prompts_2=300, k=4, epochs=1, batch_size=8)
QUICK_PPO = dict(iterations_1=2, iterations=2, rollout_size=64, minibatch_size=32)


# ---------------------------------------------------------------- models


class Lab:
    """Where the models and results of one mode (full or quick) live, and the settings they use."""

    def __init__(self, quick):
        self.quick = quick
        self.seeds = SEEDS[:1] if quick else SEEDS
        self.results = RUNS / "quick_results" if quick else RESULTS
        self.runs = RUNS / "quick" if quick else RUNS
        if quick:
            use_quick_world(self.runs / "world")
        self.rows = files.read_prompts("eval")

    @functools.cache
    def more_rows(self, n=1_000):
        """Return n further evaluation prompts, none with --quick.

        They are in no committed set and nowhere in the corpus."""
        if self.quick:
            return []
        text = "\n".join(prepare.corpus_texts())
        known = committed_prompts()
        for line in text.splitlines():
            known.add(line.removeprefix(f"{corpus.QUESTION} "))
        while True:
            sets = prepare.draw_prompts({"prompts_eval": n}, prepare.SEED + 1, known)
            drawn = sets["prompts_eval"]
            found = corpus.Excluded(map(tasks.prompt, drawn)).found_in(text)
            if not found:
                return [json.loads(prepare.record(task)) for task in drawn]
            known |= found          # the next round draws others, with the same use cases

    def stages(self, seed):
        """Return the arguments of ppo.run: the defaults of every script, or tiny settings."""
        common = dict(seed=seed, out=str(self.runs / f"seed{seed}"))
        if not self.quick:
            return {"config": ppo.Config(**common)}
        return {
            "config": ppo.Config(**common, **QUICK_PPO),
            "pretrain": model.Config(**common, **QUICK_PRETRAIN),
            "sft": sft.Config(**common, **QUICK_SFT),
            "reward_1": reward.Config(**common, **QUICK_RANKING, round=1),
            "reward_2": reward.Config(**common, **QUICK_RANKING, round=2),
        }

    def base(self, seed):
        """Return the settings of the base run, `python ppo.py --seed SEED`. Run it if needed."""
        stages = self.stages(seed)
        config = stages["config"]
        if not (Path(config.out) / "results.json").exists():
            # The lock lets several experiments run at once: one makes the base run.
            with files.alone_in(config.out):
                ppo.run(**stages)
        return config

    def policy(self, seed, name, gamma_ptx=0.0, **changes):
        """Return the path and the settings of a policy trained like `ppo` of the base run,
        except for gamma_ptx and the `changes` to its settings. Train it if needed."""
        config = dataclasses.replace(self.base(seed), **changes)
        if not made(config, name):
            ppo.train_policy(config, name, "reward", config.iterations, gamma_ptx)
        return Path(config.out) / f"{name}.pt", config

    def beside(self, config, name):
        """Return settings whose folder holds copies of the base run's gpt and sft_mix.

        Models trained there do not overwrite those of the base run."""
        out = Path(f"{config.out}_{name}")
        out.mkdir(parents=True, exist_ok=True)
        for model_name in ("gpt", "sft_mix"):
            if not (out / f"{model_name}.pt").exists():
                shutil.copy(Path(config.out) / f"{model_name}.pt", out)
        return dataclasses.replace(config, out=str(out))

    def short(self, seed, name):
        """Return the settings of PPO in a shorter run, with a folder of its own: `train_in`."""
        base = self.base(seed)
        folder = f"{base.out}_{name.replace(' ', '_').replace('%', 'percent')}"
        Path(folder).mkdir(parents=True, exist_ok=True)
        return dataclasses.replace(base, out=folder, iterations=2 if self.quick else 15)


def use_quick_world(folder):
    """Switch to a small world of its own, with the same labelers in it. Make it if needed."""
    files.FOLDER = folder
    folder.mkdir(parents=True, exist_ok=True)
    first_file = folder / "corpus.sha256"               # prepare writes this one first
    last_file = folder / "prompts_closed.jsonl"         # and this one last
    if not (first_file.exists() and last_file.exists()):
        prepare.prepare(folder, QUICK_WORLD, corpus_words=40_000)


def committed_prompts():
    """Return the prompts of all committed sets."""
    prompts = set()
    for name in prepare.SIZES:
        for row in files.read_jsonl(files.FOLDER / f"{name}.jsonl", prompt=str):
            prompts.add(row["prompt"])
    return prompts


def load(config, name):
    """Return the language model `name` of a run."""
    return load_model(Path(config.out) / f"{name}.pt")


def load_reward(config, name="reward"):
    """Return a reward model of a run."""
    return reward.load_reward_model(Path(config.out) / f"{name}.pt")


def generator_of(seed):
    """Return a new generator for sampling."""
    return torch.Generator().manual_seed(seed)


def copy_world(world, folder):
    """Copy what is missing of a world's files to a folder, where some may then be changed."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in world.iterdir():
        kept = path.suffix in (".jsonl", ".tiktoken", ".txt", ".sha256")
        if kept and not (folder / path.name).exists():
            shutil.copy(path, folder)


@contextlib.contextmanager
def in_world(folder):
    """Let the scripts read the world of another folder. It is set back even if training stops."""
    usual = files.FOLDER
    files.FOLDER = folder
    try:
        yield
    finally:
        files.FOLDER = usual


def train_in(lab, config, world, rounds=2, k=6):
    """Train SFT, reward model and PPO in a world (a folder), from the base run's gpt.pt.

    config: settings of `Lab.short`. k: responses per ranked prompt. With one round, it has the
    prompts of two."""
    ranking = dict(k=k, prompts_1=2_000, prompts_2=4_000)
    if lab.quick:
        ranking = dict(k=4, prompts_1=60, prompts_2=60)
    if rounds == 1:
        ranking["prompts_1"] += ranking["prompts_2"]
    with in_world(world):
        train_sft_in(lab, config)
        if not made(config, "reward"):
            train_rewards_in(lab, config, rounds, ranking)
        if not made(config, "ppo"):
            ppo.train_policy(config, "ppo", "reward", config.iterations, 0.0)


def train_sft_in(lab, config):
    """Train one SFT model in the current world. It serves as SFT baseline and as reference."""
    if made(config, "sft_mix"):
        return
    out = Path(config.out)
    gpt = Path(lab.base(config.seed).out) / "gpt.pt"
    extra = model.load_checkpoint(gpt)["extra"]
    extra = {**extra, "world": files.world_hash()}
    model.save_checkpoint(out / "gpt.pt", load_model(gpt), **extra)
    settings = sft.Config(
        seed=config.seed, out=config.out, epochs=1, mix_epochs=1 if lab.quick else 8)
    mixed = sft.finetune(settings, "sft_mix", settings.mix_epochs, settings.mix, lambda *_: None)
    for path in (out / "sft_epochs" / "01.pt", out / "sft_mix.pt"):
        extra = files.stage_extra(settings, "sft", ["gpt"])
        model.save_checkpoint(path, mixed, **extra)


def train_rewards_in(lab, config, rounds, ranking):
    """Train the reward model in the current world. ranking: settings of reward.Config."""
    out = Path(config.out)
    common = dict(seed=config.seed, out=config.out, **ranking)
    reward.train(reward.Config(**common, round=1))
    if rounds == 1:
        shutil.copy(out / "reward_1.pt", out / "reward.pt")
        return
    iterations = 2 if lab.quick else config.iterations_1
    ppo.train_policy(config, "ppo_1", "reward_1", iterations, 0.0)
    reward.train(reward.Config(**common, round=2))


# ---------------------------------------------------------------- measurements


def describe(lab, config, path):
    """Evaluate one policy on the evaluation prompts.

    Return its entry as in results.json, the mean proxy score ("proxy") and the win rate against
    the SFT baseline."""
    _, rng, generator = flags.set_up(config)
    encoding = tokenizer.load()
    policy = load_model(path)
    reference = load(config, "sft_mix")
    baseline = load(config, "sft")
    closed = files.read_prompts("closed")
    _, documents = model.read_corpus(encoding, policy.config.block_size)

    responses = ppo.answer("ppo", policy, lab.rows, generator)
    theirs = ppo.answer("sft", baseline, lab.rows, generator)
    closed_responses = ppo.answer("ppo", policy, closed, generator)
    kl = ppo.kl_to_reference(policy, reference, lab.rows[:300], generator)

    entry = ppo.describe_model(
        policy, lab.rows, responses, closed, closed_responses, documents, kl)
    scores = proxy_scores(load_reward(config), encoding, lab.rows, responses)
    people = get_labelers("held_out")
    wins = labeler.preference(lab.rows, responses, theirs, rng, people)
    return {**entry, "proxy": sum(scores) / len(scores), "win_rate_vs_sft": wins}


def proxy_scores(proxy, encoding, rows, responses):
    """Return the reward model's score of each response."""
    pairs = [(row["prompt"], response) for row, response in zip(rows, responses)]
    return reward.score(proxy, encoding, pairs)


def utilities(rows, responses):
    """Return the gold utility of each response."""
    return [verdict.utility for verdict in judge.judge_all(rows, responses)]


def mean_utility(rows, responses):
    """Return the mean gold utility."""
    return judge.mean_ignoring_none(utilities(rows, responses))


def has_false_premise(row):
    """Return whether a prompt asks about an animal something that is not true."""
    task = row["task"]
    if task["kind"] not in ("yesno", "why"):
        return False
    return task["value"] != town.fact(task["animal"], task["attribute"])


# ---------------------------------------------------------------- rows and error bars


def setting_and_seed(key):
    """Split the key of a row: "beta 0.5 seed 2" -> ["beta 0.5", "2"]."""
    return key.rsplit(" seed ", 1)


def by_seed(rows, setting, key):
    """Return the values of `key` in all rows named "SETTING seed S"."""
    return [row[key] for name, row in rows.items() if setting_and_seed(name)[0] == setting]


def mean_by_seed(rows, setting, key):
    """Return their mean, or None if there is no such row."""
    return judge.mean_ignoring_none(by_seed(rows, setting, key))


def settings_in(rows):
    """Return the names of all settings."""
    return {setting_and_seed(key)[0] for key in rows}


def means_by_seed(rows, settings, key):
    """Return {setting: mean over seeds}."""
    return {setting: mean_by_seed(rows, setting, key) for setting in settings}


def column(rows, key):
    """Return row[key] of each row in a list: of dicts, or of lists if key is an index."""
    return [row[key] for row in rows]


def mean_and_range(values):
    """Return mean, lowest and highest of the values of several seeds."""
    return sum(values) / len(values), min(values), max(values)


def error_bar(mean, low, high):
    """Return matplotlib's yerr of one point."""
    return [[max(0.0, mean - low)], [max(0.0, high - mean)]]      # rounding may make them negative


def bars(points):
    """Return means and yerr, from the lowest to the highest. points: a list of values each."""
    means = []
    below = []
    above = []
    for values in points:
        mean, low, high = mean_and_range(values)
        means.append(mean)
        below.append(mean - low)
        above.append(high - mean)
    return means, [below, above]


def spread(axis, xs, rows, settings, key, **style):
    """Draw a line through the means over seeds, with bars from the lowest to the highest."""
    means, errors = bars([by_seed(rows, setting, key) for setting in settings])
    axis.errorbar(xs, means, yerr=errors, capsize=2, **style)


def verdict_of(agrees):
    """Return the word that ends a sentence."""
    return "agrees" if agrees else "differs"
