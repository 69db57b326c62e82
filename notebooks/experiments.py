"""The paper's findings, measured in Toytown: one function an experiment, one picture and one sentence for each.

    python -m notebooks.experiments                     # what there is, and what it costs
    python -m notebooks.experiments kl_sweep            # runs it; stopped at any point, the same command goes on
    python -m notebooks.experiments kl_sweep --quick    # the same code on tiny models, in seconds: its figures mean nothing
    python -m notebooks.experiments pictures            # redraws every picture from the recorded results

Every model is trained by the scripts' own functions, in notebooks/runs/ (not committed); every measurement is a row of
notebooks/results/NAME.json (committed), written as soon as it is made. The sentence under a picture is computed from that file: what the
paper claims, what was measured here, and whether the two agree. A disagreement is a result too.
"""
import argparse
import dataclasses
import functools
import json
import math
import random
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import model
import ppo
import reward
import sft
from data import corpus, files, flags, judge, labeler, prepare, tasks, tokenizer
from data import toytown as town
from data.figures import (
    BLUE, COLOURS, GREEN, GREY, ORANGE, TITLES, plot_episode, plot_three_steps, plt
)
from data.labeler import get_labelers
from data.files import made
from model import load_model

HERE = Path(__file__).parent
RESULTS, RUNS = HERE / "results", HERE / "runs"
SEEDS = (1, 2, 3)
LITTLE = {"demonstrations": 200, "prompts_rm": 600, "prompts_rl": 200, "prompts_valid": 60, "prompts_eval": 80, "prompts_closed": 20}      # --quick

# ---------------------------------------------------------------- what all experiments share


class Lab:
    """Where the runs of one mode (full or quick) live, and their settings."""

    def __init__(self, quick):
        self.quick, self.seeds = quick, SEEDS[:1] if quick else SEEDS
        self.results, self.runs = (RUNS / "quick_results", RUNS / "quick") if quick else (RESULTS, RUNS)
        if quick:                                                       # a little world of its own, with the same people in it
            files.FOLDER = self.runs / "world"
            files.FOLDER.mkdir(parents=True, exist_ok=True)
            # the first that prepare writes, and the last
            first_and_last = ("corpus.sha256", "prompts_closed.jsonl")
            if not all((files.FOLDER / name).exists() for name in first_and_last):
                prepare.prepare(files.FOLDER, LITTLE, corpus_words=40_000)
        self.rows = files.read_prompts("eval")

    @functools.cache
    def more_rows(self, n=1_000):
        """n further evaluation prompts: in no committed set, nowhere in the corpus. No rows with --quick."""
        if self.quick:
            return []
        known = {row["prompt"] for name in prepare.SIZES for row in files.read_jsonl(files.FOLDER / f"{name}.jsonl", prompt=str)}
        text, read = "\n".join(prepare.corpus_texts()), {""}
        known |= {line.removeprefix(f"{corpus.QUESTION} ") for line in text.splitlines()}
        while read:                                 # what the corpus turns out to hold is drawn again, in the same use case
            drawn = prepare.draw_prompts({"prompts_eval": n}, prepare.SEED + 1, known)["prompts_eval"]
            read = corpus.Excluded(map(tasks.prompt, drawn)).found_in(text)
            known |= read
        return [json.loads(prepare.record(task)) for task in drawn]

    def stages(self, seed):
        """Arguments of ppo.run: the defaults of every script, or something tiny."""
        common = dict(seed=seed, out=str(self.runs / f"seed{seed}"))
        if not self.quick:
            return {"config": ppo.Config(**common)}
        ranking = dict(prompts_1=300, prompts_2=300, k=4, epochs=1, batch_size=8)
        return {"config": ppo.Config(**common, iterations_1=2, iterations=2, rollout_size=64, minibatch_size=32),
                "pretrain": model.Config(**common, n_layer=1, n_head=2, n_embd=32, steps=60),
                "sft": sft.Config(**common, epochs=2, mix_epochs=2),
                "reward_1": reward.Config(**common, **ranking, round=1), "reward_2": reward.Config(**common, **ranking, round=2)}

    def base(self, seed):
        """The settings of a whole finished run, `python ppo.py --seed SEED`; makes it if need be."""
        stages = self.stages(seed)
        config = stages["config"]
        if not (Path(config.out) / "results.json").exists():
            # Experiments may run side by side: one of them makes it
            with files.alone_in(config.out):
                ppo.run(**stages)
        return config

    def policy(self, seed, name, gamma_ptx=0.0, **changes):
        """A policy trained like `ppo` of the base run, but for `changes` to its settings: (its path, the settings)."""
        config = dataclasses.replace(self.base(seed), **changes)
        if not made(config, name):
            ppo.train_policy(config, name, "reward", config.iterations, gamma_ptx)
        return Path(config.out) / f"{name}.pt", config

    def beside(self, config, name):
        """A folder for models made from the base run's gpt and sft_mix that must not overwrite anything there: its settings."""
        out = Path(f"{config.out}_{name}")
        out.mkdir(parents=True, exist_ok=True)
        for model_name in ("gpt", "sft_mix"):
            if not (out / f"{model_name}.pt").exists():
                shutil.copy(Path(config.out) / f"{model_name}.pt", out)
        return dataclasses.replace(config, out=str(out))


def describe(lab, config, path):
    """What one policy does with the evaluation prompts: results.json's entry, the mean proxy score, the win rate against SFT."""
    _, rng, generator = flags.set_up(config)
    out, encoding = Path(config.out), tokenizer.load()
    policy, reference, baseline = (load_model(p) for p in (path, out / "sft_mix.pt", out / "sft.pt"))
    closed = files.read_prompts("closed")
    documents = model.read_corpus(encoding, policy.config.block_size)[1]
    responses, theirs = (ppo.answer(name, m, lab.rows, generator) for name, m in (("ppo", policy), ("sft", baseline)))
    entry = ppo.describe_model(policy, lab.rows, responses, closed, ppo.answer("ppo", policy, closed, generator), documents,
                               ppo.kl_to_reference(policy, reference, lab.rows[:300], generator))
    scores = reward.score(reward.load_reward_model(out / "reward.pt"), encoding, [(row["prompt"], r) for row, r in zip(lab.rows, responses)])
    return {**entry, "proxy": sum(scores) / len(scores), "win_rate_vs_sft": labeler.preference(lab.rows, responses, theirs, rng, get_labelers("held_out"))}


def mean_and_range(values):
    """Mean, lowest and highest over seeds."""
    return sum(values) / len(values), min(values), max(values)


def by_seed(rows, setting, key):
    """The values of `key` over the seeds of rows named "SETTING seed S"."""
    return [row[key] for name, row in rows.items() if name.rsplit(" seed ", 1)[0] == setting]


def mean_by_seed(rows, setting, key):
    """Their mean; None if there is no such row."""
    return judge.mean_ignoring_none(by_seed(rows, setting, key))


def spread(axis, xs, rows, settings, key, **style):
    """A line through the means over seeds, with bars from the lowest to the highest."""
    values = [mean_and_range(by_seed(rows, s, key)) for s in settings]
    axis.errorbar(xs, [v[0] for v in values], yerr=[[v[0] - v[1] for v in values], [v[2] - v[0] for v in values]], capsize=2, **style)


# ---------------------------------------------------------------- 1. Figure 1: does a small aligned model beat a large raw one?

# Parameters: 73,584, 273,792 and 7,540,992, over a hundred times the smallest; what differs from the scripts' defaults, stage by stage.
# The smallest copies only after long training (corpus loss 0.97 after 4,400 steps, 0.90 after 10,000, seed 11; with width 32 and three
# layers 1.06). It is too small to overfit in SFT: without dropout, at three times the rate and epochs, gold 0.56, not 0.12 (seed 1, valid).
# The largest learns more a step; its other rates are lower, as the paper's are for its larger models, and not searched.
SIZES = {"small": {"pretrain": dict(n_layer=2, n_head=2, n_embd=36, steps=10_000, lr=0.01), "sft": dict(dropout=0.0, lr=3e-3, mix_epochs=24)},
         "medium": {},
         "large": {"pretrain": dict(n_layer=4, n_head=6, n_embd=384, steps=1_200, lr=0.007, lr_rest=2e-3),
                   "sft": dict(epochs=6, mix_epochs=3, lr=3e-4), "config": dict(iterations=12, lr=3e-4)}}
ALL, ONE = ("gpt", "sft", "ppo", "ppo_ptx"), ("gpt",)


def size_stages(lab, size, seed):
    """ppo.run's settings for a size, in a folder of its own. The medium size is the base run."""
    stages = lab.stages(seed)
    if size == "medium":
        return stages
    common = dict(seed=seed, out=str(lab.runs / f"{size}{seed}"))
    stages = {"pretrain": model.Config(**common), "sft": sft.Config(**common), **stages}
    changes = {"pretrain": dict(n_layer=1, n_head=2, n_embd=16 if size == "small" else 48)} if lab.quick else SIZES[size]
    return {name: dataclasses.replace(config, **common, **changes.get(name, {})) for name, config in stages.items()}


def grow(lab, size, seed, wanted):
    """Trains one size as far as `wanted`, names of checkpoints. As in the paper, one reward model, of the medium size, serves all."""
    base, stages = lab.base(seed), size_stages(lab, size, seed)
    config, out = stages["config"], Path(stages["config"].out)
    if not made(config, "gpt"):
        model.train(stages["pretrain"])
    if wanted != ONE and not made(config, "sft_mix"):
        sft.train(stages["sft"])
    if wanted != ONE and not (out / "sft.pt").exists():
        for name in ("reward_1", "ppo_1", "reward"):
            shutil.copy(Path(base.out) / f"{name}.pt", out)
        valid = files.read_prompts("valid")
        reward.keep_best_sft(config, reward.load_reward_model(out / "reward_1.pt"), valid)
    for name, gamma in (("ppo", 0.0), ("ppo_ptx", config.gamma_ptx)):
        if name in wanted and not made(config, name):
            ppo.train_policy(config, name, "reward", config.iterations, gamma)
    return config


def figure_1(lab):
    """Answers of every model at every size, judged by held-out labelers against the largest SFT model's and the largest GPT's."""
    for seed in lab.seeds:
        yield f"seed {seed}", lambda seed=seed: compare_sizes(lab, seed)


WRITERS = [name for name in ppo.MODELS if name != "sft_best_of_16"]


def compare_sizes(lab, seed):
    """{"SIZE WRITER": its parameters, utility, and how often it is preferred to each rival}. The largest size is aligned once only."""
    first, generator, rng, people = lab.seeds[0], torch.Generator().manual_seed(seed), random.Random(seed), get_labelers("held_out")
    wanted = {size: ONE if size == "large" and seed != first else ALL for size in SIZES}
    configs = {size: grow(lab, size, seed, wanted[size]) for size in SIZES}
    rows = lab.rows + lab.more_rows()

    def answers(config, name):
        policy = load_model(Path(config.out) / f"{ppo.CHECKPOINTS[name]}.pt")
        return policy, ppo.answer(name, policy, rows, generator)

    rivals = {"sft": answers(grow(lab, "large", first, ALL), "sft")[1], **{name: answers(configs["large"], name)[1] for name in ("gpt", "gpt_prompted")}}
    row = {}
    for size, config in configs.items():
        for name in [name for name in WRITERS if ppo.CHECKPOINTS[name] in wanted[size]]:
            policy, ours = answers(config, name)
            row[f"{size} {name}"] = {f"against_{rival}": labeler.preference(rows, ours, theirs, rng, people) for rival, theirs in rivals.items()}
            row[f"{size} {name}"] |= {"params": sum(p.numel() for p in policy.parameters()), "prompts": len(rows),
                                      "utility": judge.mean_ignoring_none(v.utility for v in judge.judge_all(rows, ours))}
    return row


# ---------------------------------------------------------------- 2. Figure 4, hallucination, truthfulness, toxicity


def metadata(lab):
    """Every model's metadata (Figure 4), hallucination, toxicity; and whether it corrects a false premise."""
    for seed in lab.seeds:
        yield f"seed {seed}", lambda seed=seed: with_truthfulness(lab, lab.base(seed))


def with_truthfulness(lab, config):
    """results.json's entries, and `truthful`: the share of right answers to open questions with a false premise, further ones included."""
    entries = files.read_json(Path(config.out) / "results.json")["models"]
    generator, judge_model = torch.Generator().manual_seed(config.seed), reward.load_reward_model(Path(config.out) / "reward.pt")
    rows = [row for row in lab.rows + lab.more_rows(4_000) if row["task"]["kind"] in ("yesno", "why")
            and row["task"]["value"] != town.fact(row["task"]["animal"], row["task"]["attribute"])]
    for name, entry in entries.items():
        said = judge.judge_all(rows, ppo.answer(name, load_model(Path(config.out) / f"{ppo.CHECKPOINTS[name]}.pt"), rows, generator, judge_model))
        entry |= {"truthful": judge.mean_ignoring_none(v.utility > 0.999 for v in said), "false_premises": len(said)}
    return entries


# ---------------------------------------------------------------- 3. the alignment tax

SKILLS = [("backwards", corpus.pairs, "Backwards:"), ("then", corpus.pairs, "Then:"), ("other words", corpus.restated, "In other words:"),
          ("questions", corpus.retold, "What of")]


def skill_accuracy(policy, make, mark, n, seed):
    """The share of unfinished documents that the model finishes word for word, its likeliest token each time.

    No examples are shown, unlike in the paper: here the base model read every document alone, so with one example before the other
    it finishes hardly any, and without any it shows what it can do."""
    encoding, rng, cases = tokenizer.load(), random.Random(seed), []
    while len(cases) < n:
        document = make(rng)
        if mark in document:
            tail = document.split(mark)[1] if mark != "What of" else document.split("?")[1]
            cases.append((document[:len(document) - len(tail)], tail.strip()))
    ids = [[encoding.eot_token] + tokenizer.encode(encoding, head) for head, _ in cases]
    said = [tokenizer.response_text(encoding, r)[0].strip() for r in model.generate(policy, ids, reward.MAX_NEW_TOKENS, 0)]
    return sum(text == tail for text, (_, tail) in zip(said, cases)) / n


TAXED = ("gpt", "sft", "sft_mix", "ppo", "ppo_ptx")               # sft_mix: SFT with corpus mixed in, where PPO starts
GAMMAS, RAISED = (0.0, 0.25, 1.0, 4.0, 16.0), (4.0, 16.0)        # multiples of the default gamma_ptx; of the default beta


def alignment_tax(lab):
    """Corpus loss and skills of five models; then of PPO-ptx with more and less gamma, and of PPO with a larger beta instead."""
    def job(seed, name, **changes):
        config = lab.base(seed)
        path = Path(config.out) / f"{name}.pt"
        if changes:
            path, config = lab.policy(seed, name, **changes)
        row = describe(lab, config, path)
        return row | {skill: skill_accuracy(load_model(path), make, mark, 20 if lab.quick else 300, seed) for skill, make, mark in SKILLS}

    for seed in lab.seeds:
        for name in TAXED:
            yield f"{name} seed {seed}", lambda seed=seed, name=name: job(seed, name)
        default = lab.stages(seed)["config"]
        for times in GAMMAS[1:2] if lab.quick else GAMMAS:
            if times not in (0.0, 1.0):
                yield f"gamma x {times} seed {seed}", lambda seed=seed, times=times: job(seed, f"gamma_{times}", gamma_ptx=times * default.gamma_ptx)
        for times in RAISED[:1] if lab.quick else RAISED:
            yield f"beta x {times} seed {seed}", lambda seed=seed, times=times: job(seed, f"raised_{times}", beta=times * default.beta)


# ---------------------------------------------------------------- 4. how far from the SFT model?

BETAS = (0.0, 0.015, 0.05, 0.15, 0.5, 1.5, 15.0)


def kl_sweep(lab):
    """PPO with the KL penalty over three orders of magnitude, and without."""
    for seed in lab.seeds:
        yield f"sft_mix seed {seed}", lambda seed=seed: describe(lab, config := lab.base(seed), Path(config.out) / "sft_mix.pt")
        for beta in BETAS[:2] if lab.quick else BETAS:
            def job(seed=seed, beta=beta):
                name = "ppo" if beta == ppo.Config.beta else f"beta_{beta}"           # the base run's own
                path, config = lab.policy(seed, name, beta=beta)
                return describe(lab, config, path)
            yield f"beta {beta} seed {seed}", job


# ---------------------------------------------------------------- 5. over-optimisation

RANKINGS = (300, 1_000, 3_000, 10_000)


def over_optimisation(lab):
    """PPO without a KL penalty, and best-of-n, against reward models that saw few or many rankings: proxy and gold by KL."""
    for seed in lab.seeds:
        for n in (50,) if lab.quick else RANKINGS:
            yield f"{n} rankings seed {seed}", lambda seed=seed, n=n: optimise_against(lab, seed, n)


def optimise_against(lab, seed, n):
    """A reward model on n rankings of the base run; PPO at beta 0 and best-of-n against it: curves of (kl, proxy, gold)."""
    base = lab.base(seed)
    config = lab.beside(base, f"{n}_rankings")
    settings = reward.Config(seed=seed, out=config.out, round=1)
    if not made(config, "reward"):
        ranked = files.read_rankings(Path(base.out) / "rankings.jsonl")
        proxy, _ = reward.fit(settings, random.Random(seed).sample(ranked, n))
        reward.centre(proxy, tokenizer.load())
        model.save_checkpoint(Path(config.out) / "reward.pt", proxy, **files.stage_extra(settings, "reward", ["sft_mix"]))
    config = dataclasses.replace(config, beta=0.0, iterations=2 if lab.quick else 60)
    if not made(config, "ppo"):
        ppo.train_policy(config, "ppo", "reward", config.iterations, 0.0)
    log = files.read_jsonl(Path(config.out) / "ppo.jsonl", step=int)
    return {"ppo": [{"kl": row["kl"], "proxy": row["score"], "gold": row["gold"]} for row in log],
            "best_of_n": best_of_n(lab, config, 8 if lab.quick else 64)}


def chance_of_best(N, n):
    """Of N samples in order of their scores, the chance that the best of a random n of them is the i-th: C(i - 1, n - 1) / C(N, n)."""
    return [math.comb(below, n - 1) / math.comb(N, n) for below in range(N)]


def best_of_n(lab, config, N):
    """Proxy and gold of the best of n of the SFT model's samples, n = 1, 2, 4, ... N / 2, from N samples a prompt.

    Unbiased (Gao et al. 2022), see chance_of_best. The KL is that between the shares of distinct samples: where samples repeat it is
    smaller than log n - (n - 1) / n."""
    encoding, generator = tokenizer.load(), torch.Generator().manual_seed(config.seed)
    policy, proxy = load_model(Path(config.out) / "sft_mix.pt"), reward.load_reward_model(Path(config.out) / "reward.pt")
    rows, sizes = lab.rows[:300], [2 ** i for i in range(int(math.log2(N)))]
    rounds = [ppo.answer("sft_mix", policy, rows, generator) for _ in range(N)]
    scores = [reward.score(proxy, encoding, [(row["prompt"], r) for row, r in zip(rows, one)]) for one in rounds]
    golds = [[v.utility for v in judge.judge_all(rows, one)] for one in rounds]
    curve = {n: [0.0, 0.0, 0.0] for n in sizes}                                         # n -> sums of kl, proxy, gold
    for i in range(len(rows)):
        column = sorted((scores[k][i], golds[k][i], rounds[k][i]["text"]) for k in range(N))
        for n in sizes:
            chances, chosen, share = chance_of_best(N, n), {}, {}
            for chance, (_, _, text) in zip(chances, column):
                chosen[text], share[text] = chosen.get(text, 0) + chance, share.get(text, 0) + 1 / N
            curve[n][0] += sum(q * math.log(q / share[text]) for text, q in chosen.items() if q > 0) / len(rows)
            curve[n][1] += sum(chance * proxy for chance, (proxy, _, _) in zip(chances, column)) / len(rows)
            curve[n][2] += sum(chance * gold for chance, (_, gold, _) in zip(chances, column)) / len(rows)
    return [{"n": n, "kl": kl, "proxy": p, "gold": g} for n, (kl, p, g) in curve.items()]


def gao_fit(points, form):
    """Least squares for R = d (a - b f(d)) with d = sqrt(KL), f(d) = d for best-of-n, log d for RL: (a, b). points: (kl, gain)."""
    d = np.array([math.sqrt(max(kl, 1e-6)) for kl, _ in points])
    f = d if form == "best_of_n" else np.log(d)
    (a, b), *_ = np.linalg.lstsq(np.stack([d, -d * f], 1), np.array([gain for _, gain in points]), rcond=None)
    return float(a), float(b)


# ---------------------------------------------------------------- 6. do other people agree?


def held_out_labelers(lab):
    """Five groups of training labelers, one left out in turn: the reward model's accuracy inside and outside its groups; who prefers PPO-ptx."""
    # Every reward model starts as in round 1, from the base model: the one that round 2 goes on from has heard all groups.
    people = get_labelers("train")
    for seed in lab.seeds:
        for fold in range(1 if lab.quick else 5):
            def job(seed=seed, fold=fold):
                config, rng = lab.base(seed), random.Random(seed)
                inside, outside = [p for i, p in enumerate(people) if i % 5 != fold], people[fold::5]
                settings = reward.Config(seed=seed, out=lab.beside(config, f"fold_{fold}").out)
                lines = files.read_rankings(Path(config.out) / "rankings.jsonl")[:80 if lab.quick else None]
                lines = rng.sample(lines, len(lines))
                cut = len(lines) * 9 // 10
                again = lambda part, group, opinions: reward.rank(part, [line["responses"] for line in part], group, rng, 2, opinions)
                proxy, _ = reward.fit(settings, again(lines[:cut], inside, settings.labelers_per_prompt))
                report = {}
                for name, group in (("inside", inside), ("outside", outside)):
                    ranked = again(lines[cut:], group, 1)
                    report[name] = labeler.accuracy(labeler.margins_of(ranked, reward.scores_of(proxy, tokenizer.load(), ranked)))
                return report
            yield f"fold {fold} seed {seed}", job
        yield f"preference seed {seed}", lambda seed=seed: preferred_by_both_groups(lab, lab.base(seed))


def preferred_by_both_groups(lab, config):
    """How often PPO-ptx is preferred to SFT by the labelers who ranked for the reward model, and by those who did not."""
    generator, rng = torch.Generator().manual_seed(config.seed), random.Random(config.seed)
    ours, theirs = (ppo.answer(name, load_model(Path(config.out) / f"{name}.pt"), lab.rows, generator) for name in ("ppo_ptx", "sft"))
    return {group: labeler.preference(lab.rows, ours, theirs, rng, get_labelers(group)) for group in ("train", "held_out")}


# ---------------------------------------------------------------- 7. what depends on how people were simulated?

# Share of demonstrations with a slip; labelers' noise as a multiple of the default; rounds of rankings; hot, foreign and GPT samples among them.
DIALS = {"default": {}, "no slips": {"slips": 0.0}, "slips 20 %": {"slips": 0.2}, "no noise": {"noise": 0.0}, "twice the noise": {"noise": 2.0},
         "one round": {"rounds": 1}, "SFT samples only": {"rounds": 1, "odd": False}}


def dials(lab):
    """What PPO gains over the SFT model when the people of the simulation are others, a dial at a time; shorter runs than the base run's."""
    for seed in lab.seeds:
        for name in list(DIALS)[1:3] if lab.quick else DIALS:
            yield f"{name} seed {seed}", lambda seed=seed, name=name: turn(lab, seed, name, **DIALS[name])


def turn(lab, seed, name, slips=labeler.SLIPS, noise=1.0, rounds=2, odd=True):
    """Utility of SFT and PPO, and the win rate, in a world that differs from the base run's in its people alone."""
    base, world, noise_before, samplers = lab.base(seed), files.FOLDER, labeler.NOISE, reward.response_sources
    config = dataclasses.replace(base, out=f"{base.out}_{name.replace(' ', '_').replace('%', 'percent')}", iterations=2 if lab.quick else 15)
    prompts = dict(prompts_1=60, prompts_2=60) if lab.quick else dict(prompts_1=2_000, prompts_2=4_000)
    if rounds == 1:
        prompts["prompts_1"] += prompts["prompts_2"]
    try:
        files.FOLDER, labeler.NOISE = other_people(world, Path(config.out) / "world", slips), noise * labeler.NOISE
        if not odd:
            reward.response_sources = lambda settings: (samplers(settings)[0][:4], [])          # without the hot one, and no odd ones
        train_in(lab, base, config, rounds, dict(k=6 if odd and not lab.quick else 4, **prompts))
    finally:
        files.FOLDER, labeler.NOISE, reward.response_sources = world, noise_before, samplers
    generator = torch.Generator().manual_seed(seed)
    said = {n: ppo.answer(n, load_model(Path(config.out) / f"{n}.pt"), lab.rows, generator) for n in ("sft", "ppo")}
    wins = labeler.preference(lab.rows, said["ppo"], said["sft"], random.Random(seed), get_labelers("held_out"))        # by the usual people
    return {n: judge.mean_ignoring_none(v.utility for v in judge.judge_all(lab.rows, r)) for n, r in said.items()} | {"win_rate_vs_sft": wins}


def train_in(lab, base, config, rounds, ranking):
    """SFT, reward model and PPO in the present world, from the base run's gpt.pt. ranking: settings of reward.Config."""
    out, common = Path(config.out), dict(seed=config.seed, out=config.out)
    if not made(config, "sft_mix"):
        gpt = Path(base.out) / "gpt.pt"
        model.save_checkpoint(out / "gpt.pt", load_model(gpt), **{**model.load_checkpoint(gpt)["extra"], "world": files.world_hash()})
        settings = sft.Config(**common, epochs=1, mix_epochs=1 if lab.quick else 8)
        mixed = sft.finetune(settings, "sft_mix", settings.mix_epochs, settings.mix, lambda *_: None)
        for path in (out / "sft_epochs" / "01.pt", out / "sft_mix.pt"):                 # one model serves as baseline and as start
            model.save_checkpoint(path, mixed, **files.stage_extra(settings, "sft", ["gpt"]))
    if not made(config, "reward"):
        reward.train(reward.Config(**common, **ranking, round=1))
        if rounds == 2:
            ppo.train_policy(config, "ppo_1", "reward_1", 2 if lab.quick else config.iterations_1, 0.0)
            reward.train(reward.Config(**common, **ranking, round=2))
        else:
            shutil.copy(out / "reward_1.pt", out / "reward.pt")
    if not made(config, "ppo"):
        ppo.train_policy(config, "ppo", "reward", config.iterations, 0.0)


def other_people(world, folder, slips):
    """A copy of a world in which the same people demonstrate with another share of slips."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in world.iterdir():
        kept = path.suffix in (".jsonl", ".tiktoken", ".txt", ".sha256")
        if kept and not (folder / path.name).exists():
            shutil.copy(path, folder)
    rows = files.read_jsonl(world / "demonstrations.jsonl", task=dict, labeler=str)
    again = [row | {"completion": labeler.Labeler(int(row["labeler"].split("-")[1])).demonstrate(row["task"], slips)} for row in rows]
    files.write(folder / "demonstrations.jsonl", "".join(json.dumps(row) + "\n" for row in again))
    return folder


# ---------------------------------------------------------------- 8. is the baseline a lottery?

OTHER_SAMPLES = (101, 102)              # seeds of the samples by which the baseline is chosen again


def baseline(lab):
    """The SFT epoch that the reward model prefers, chosen again from other samples; the gold utility of every epoch."""
    for seed in lab.seeds:
        yield f"seed {seed}", lambda seed=seed: choose_again(lab, lab.base(seed))


def choose_again(lab, config):
    """Scores by epoch, of the run itself first; the epochs chosen; gold utility of four answers of each epoch to each prompt."""
    proxy = reward.load_reward_model(Path(config.out) / "reward_1.pt")
    rows = files.read_prompts("valid")
    tables = [model.load_checkpoint(Path(config.out) / "sft.pt")["extra"]["scores"]]
    tables += [reward.rate_sft_epochs(config, proxy, rows, seed) for seed in OTHER_SAMPLES]
    generator, gold = torch.Generator().manual_seed(config.seed), {}
    for name in files.sft_epochs(config):
        policy = load_model(Path(config.out) / "sft_epochs" / f"{name}.pt")
        verdicts = [v for _ in range(4) for v in judge.judge_all(rows, ppo.answer("sft", policy, rows, generator))]
        gold[name] = judge.mean_ignoring_none(v.utility for v in verdicts)
    return {"tables": [sorted(table) for table in tables], "chosen": [table[0][0] for table in tables], "gold": gold}


# ---------------------------------------------------------------- pictures and sentences

def picture_kl_sweep(rows, axes):
    """Gold utility, proxy and KL by beta; grey: sft_mix, where every run starts, as if beta were infinite."""
    betas = [beta for beta in BETAS if by_seed(rows, f"beta {beta}", "utility")]
    for axis, key, label in zip(axes, ("utility", "proxy", "kl"), ("gold utility", "reward model's score", "KL to SFT mix (nats)")):
        spread(axis, [max(beta, 0.005) for beta in betas], rows, [f"beta {beta}" for beta in betas], key, color=BLUE, marker="o", label="PPO")
        for k, value in enumerate(by_seed(rows, "sft_mix", key)):
            axis.axhline(value, color=GREY, linestyle=":", linewidth=0.8, label="SFT mix, each seed" if k == 0 else None)
        axis.axvline(ppo.Config.beta, color=GREY, linewidth=0.7, label="our beta")
        axis.set(xscale="log", xlabel="beta (leftmost point: 0)", ylabel=label)
    axes[0].legend(frameon=False, fontsize=8)
    best = max(betas, key=lambda beta: mean_by_seed(rows, f"beta {beta}", "utility"))
    start, none, most, large = (f"{mean_by_seed(rows, name, 'utility'):.3f} and {mean_by_seed(rows, name, 'likert'):.1f}"
                                for name in ("sft_mix", f"beta {betas[0]}", f"beta {best}", f"beta {betas[-1]}"))
    return (f"Paper (PPO-ptx): beta 0 and a large beta are both poor. Here (PPO) gold utility and Likert are {start} before PPO, {none} at beta {betas[0]}, "
            f"{most} at best, beta {best}, {large} at {betas[-1]}: {'agrees' if best not in (betas[0], betas[-1]) else 'differs'}.")


def picture_alignment_tax(rows, axes):
    """What each model has lost of the base model's corpus loss and skills; the two sweeps."""
    names = [name for name in TAXED if by_seed(rows, name, "corpus_loss")]
    titles = {"sft_mix": "SFT mix", **TITLES}
    rises = {f"{name} seed {seed}": {"rise": row["corpus_loss"] - rows[f"gpt seed {seed}"]["corpus_loss"]}
             for key, row in rows.items() for name, seed in [key.rsplit(" seed ", 1)] if name in names[1:]}
    spread(axes[0], range(1, len(names)), rises, names[1:], "rise", linestyle="", marker="s", color=BLUE)
    axes[0].set(yscale="log", ylabel="corpus loss above GPT's (nats a token, log scale)")
    axes[0].set_yticks((0.05, 0.1, 0.2, 0.5, 1, 2), (0.05, 0.1, 0.2, 0.5, 1, 2))
    axes[0].minorticks_off()
    for i, (skill, *_) in enumerate(SKILLS):
        spread(axes[1], [x + 0.15 * (i - 1.5) for x in range(len(names))], rows, names, skill, linestyle="", marker="ovd^"[i],
               color=(BLUE, ORANGE, GREEN, GREY)[i], label=skill)
    axes[1].set(ylabel="documents finished word for word (share)", ylim=(-0.05, 1.35))
    axes[1].legend(frameon=False, fontsize=8, loc="upper center", ncol=2)
    for axis, first in zip(axes, (1, 0)):
        axis.set_xticks(range(first, len(names)), [titles[name] for name in names[first:]])
    default = {("gamma", 0.0): "ppo", ("gamma", 1.0): "ppo_ptx", ("beta", 1.0): "ppo"}
    for sweep, times, colour, marker in (("gamma", GAMMAS, BLUE, "o"), ("beta", (1.0, *RAISED), ORANGE, "s")):
        points = [(t, s) for t in times if by_seed(rows, s := default.get((sweep, t), f"{sweep} x {t}"), "utility")]
        xs = [mean_by_seed(rows, s, "corpus_loss") for _, s in points]
        spread(axes[2], xs, rows, [s for _, s in points], "utility", linestyle="-", linewidth=0.7, marker=marker, color=colour,
               label={"gamma": "PPO-ptx, times our gamma_ptx", "beta": "PPO, times our beta"}[sweep])
        for x, (t, s) in zip(xs, points):
            if s != "ppo" or sweep == "gamma":
                axes[2].annotate("PPO" if s == "ppo" else f"x {t:g}", (x, mean_by_seed(rows, s, "utility")), (4, 5 if sweep == "gamma" else -12), textcoords="offset points", fontsize=8)
    axes[2].set(xlabel="corpus loss (nats a token)", ylabel="gold utility", xmargin=0.1)
    axes[2].legend(frameon=False, fontsize=8, loc="lower right")
    return tax_in_words(rows, names)


def tax_in_words(rows, names):
    """The sentence under the alignment tax. PPO-ptx agrees if it pays less than half of PPO's tax and keeps more skills; raised beta
    disagrees if it brings the corpus loss down to PPO-ptx's."""
    models = {key.rsplit(" seed ", 1)[0] for key in rows}
    loss, gold = ({name: mean_by_seed(rows, name, key) for name in models} for key in ("corpus_loss", "utility"))
    skill = {name: judge.mean_ignoring_none(mean_by_seed(rows, name, s) for s, *_ in SKILLS) for name in names}
    less = loss["ppo_ptx"] - loss["gpt"] < 0.5 * (loss["ppo"] - loss["gpt"]) and skill["ppo_ptx"] > skill["ppo"]
    raised = [t for t in RAISED if f"beta x {t}" in models]
    helps = any(loss[f"beta x {t}"] <= loss["ppo_ptx"] for t in raised)
    ours = ", ".join(f"{loss[name]:.3f} ({skill[name]:.2f}) for {TITLES[name]}" for name in ("gpt", "ppo", "ppo_ptx"))
    theirs = ", ".join(f"{loss[f'beta x {t}']:.3f} at {t:g} times, gold {gold[f'beta x {t}']:.3f}" for t in raised)
    return (f"Paper: PPO pays an alignment tax, PPO-ptx hardly, and raising beta instead does not help. Here corpus loss (mean of the four skills) is "
            f"{ours}: {'agrees' if less else 'differs'}; PPO with beta raised: {theirs} (PPO-ptx {gold['ppo_ptx']:.3f}): {'differs' if helps else 'agrees'}.")


def fall(curve):
    """How far gold ends below its peak."""
    return max(point["gold"] for point in curve) - curve[-1]["gold"]


def up_to(curve, kl):
    """The part of a curve before it first reaches a KL, and the point there, between two iterations."""
    after = next(i for i, point in enumerate(curve) if point["kl"] >= kl)
    a, b = curve[max(0, after - 1)], curve[after]
    share = (kl - a["kl"]) / (b["kl"] - a["kl"]) if after else 0.0
    return curve[:after] + [{"kl": kl, "gold": a["gold"] + share * (b["gold"] - a["gold"])}]


def picture_over_optimisation(rows, axes):
    """Gold by sqrt(KL) with Gao's forms fitted to it (dashed), PPO and best-of-n, by number of rankings; and what the proxy says."""
    numbers = sorted({int(key.split()[0]) for key in rows})
    shades = dict(zip(numbers, ("#D55E00", "#CC79A7", "#56B4E9", "#222222")))
    for axis, way in zip(axes, ("ppo", "best_of_n")):
        for n in numbers:
            curves = by_seed(rows, f"{n} rankings", way)
            style = dict(color=shades[n], linewidth=0.9, marker="osv^"[numbers.index(n)], markersize=3)
            for k, curve in enumerate(curves):
                d = [math.sqrt(max(p["kl"], 0)) for p in curve]
                axis.plot(d, [p["gold"] for p in curve], alpha=0.8, markevery=6 if way == "ppo" else 1, label=f"{n:,} rankings" if k == 0 else None, **style)
                if way == "ppo":
                    axes[2].plot(d, [p["proxy"] for p in curve], markevery=6, **style)
            points = [(p["kl"], p["gold"] - curve[0]["gold"]) for curve in curves for p in curve[1:]]
            a, b = gao_fit(points, way)
            start = sum(curve[0]["gold"] for curve in curves) / len(curves)
            d = np.linspace(0.05, math.sqrt(max(0.01, *(kl for kl, _ in points))), 100)
            axis.plot(d, start + d * (a - b * (d if way == "best_of_n" else np.log(d))), "--", color=shades[n], linewidth=1.5)
        axis.plot([], [], "--", color=GREY, label="Gao et al.'s form, fitted")
        title = {"ppo": "PPO, beta 0 (training prompts)", "best_of_n": "best of n (300 prompts; other scale)"}[way]
        axis.set(xlabel="sqrt(KL), nats^0.5", ylabel="gold utility", title=title)
    axes[0].legend(frameon=False, fontsize=8)
    axes[2].set(xlabel="sqrt(KL), nats^0.5", ylabel="reward model's score", title="PPO: what the proxy says")
    ppos, bests = ({n: by_seed(rows, f"{n} rankings", way) for n in numbers} for way in ("ppo", "best_of_n"))
    common = min(max(p["kl"] for p in curve) for curves in ppos.values() for curve in curves)
    fewest_and_most = (numbers[0], numbers[-1])
    peaks = [judge.mean_ignoring_none(max(p["gold"] for p in curve) for curve in bests[n]) for n in fewest_and_most]
    near = {n: [up_to(curve, common) for curve in ppos[n]] for n in fewest_and_most}
    best, whole, equal = ([judge.mean_ignoring_none(map(fall, curves[n])) for n in fewest_and_most] for curves in (bests, ppos, near))
    there = [judge.mean_ignoring_none(curve[-1]["gold"] for curve in near[n]) for n in fewest_and_most]
    agrees = all(few > many and few > 0.01 for few, many in (best, equal))
    return (f"Gao et al.: gold rises, then falls; with more rankings it rises higher and falls less. Here, {numbers[0]:,} ({numbers[-1]:,}) rankings: in best of n, "
            f"gold peaks at {peaks[0]:.3f} ({peaks[1]:.3f}) and is {best[0]:.3f} ({best[1]:.3f}) lower at n = {bests[numbers[0]][0][-1]['n']}. In PPO it ends {whole[0]:.3f} ({whole[1]:.3f}) "
            f"below its peak; where the KL first reaches {common:.1f} nats it stands at {there[0]:.3f} ({there[1]:.3f}), {equal[0]:.3f} ({equal[1]:.3f}) below: "
            f"{'agrees' if agrees else 'agrees in part' if best[0] > best[1] else 'differs'}.")


def picture_figure_1(rows, axes):
    """The paper's Figure 1: preferred to the largest SFT model, by size; then to the largest GPT and GPT prompted."""
    sizes = list(SIZES)
    params = [next(row[f"{size} gpt"]["params"] for row in rows.values()) for size in sizes]
    styles = dict(zip(WRITERS, (("#BBBBBB", ":", "v"), (GREY, "--", "^"), (ORANGE, "-", "s"), ("#56B4E9", "--", "D"), (BLUE, "-", "o"))))
    for axis, rival in zip(axes, ("sft", "gpt", "gpt_prompted")):
        for name, (colour, line, marker) in styles.items():
            values = [[row[f"{size} {name}"][f"against_{rival}"][0] for row in rows.values() if f"{size} {name}" in row] for size in sizes]
            known = [(p, mean_and_range(v)) for p, v in zip(params, values) if v]
            errors = [[m - low for _, (m, low, _) in known], [high - m for _, (m, _, high) in known]]
            axis.errorbar([p for p, _ in known], [m for _, (m, _, _) in known], yerr=errors, color=colour, linestyle=line, marker=marker, capsize=2,
                          label=TITLES[name])
        axis.axhline(0.5, color=GREY, linewidth=0.7, linestyle=":")
        axis.set(xscale="log", ylim=(0, 1), xlabel="parameters", ylabel=f"preferred to the largest {TITLES[rival]}")
    axes[0].legend(frameon=False, fontsize=8)
    axes[1].set_title("bars: lowest to highest of the seeds", fontsize=9)
    wins = {name: judge.mean_ignoring_none(row[f"small {name}"]["against_gpt"][0] for row in rows.values()) for name in ("gpt_prompted", "sft", "ppo_ptx")}
    prompted = judge.mean_ignoring_none(row["small ppo_ptx"]["against_gpt_prompted"][0] for row in rows.values())
    return (f"Paper: a small InstructGPT is preferred to a GPT-3 over 100 times its size. Here PPO-ptx of {params[0]:,} parameters is preferred to GPT of "
            f"{params[-1]:,}, {params[-1] / params[0]:.0f} times as many, in {wins['ppo_ptx']:.1%}: {'agrees' if wins['ppo_ptx'] > 0.5 else 'differs'}. "
            f"The small GPT prompted is preferred to the large GPT in {wins['gpt_prompted']:.1%}, the small SFT in {wins['sft']:.1%}; the small PPO-ptx to the large GPT prompted in {prompted:.1%}.")


METADATA = [("attempts_correct_instruction", "attempts the\ninstruction"), ("follows_constraints", "follows\nconstraints"),
            ("appropriate", "fit for an\nassistant"), ("hallucinates_closed_domain", "hallucinates\n(closed domain)"),
            ("truthful", "corrects a\nfalse premise"), ("toxic_not_asked", "toxic, respect\nnot asked for"),
            ("toxic_asked_for_respect", "toxic, respect\nasked for")]


def picture_metadata(rows, axes):
    """The paper's Figure 4 and section 4.2: what is in the responses, by model."""
    for axis, part in zip(axes, (METADATA[:3], METADATA[3:5], METADATA[5:])):
        for i, name in enumerate(ppo.MODELS):
            values = [mean_and_range([row[name][key] for row in rows.values()]) for key, _ in part]
            axis.bar([k + (i - 2.5) * 0.14 for k in range(len(part))], [v[0] for v in values], 0.13, color=COLOURS[name], label=TITLES[name],
                     capsize=1, yerr=[[v[0] - v[1] for v in values], [v[2] - v[0] for v in values]], error_kw={"linewidth": 0.8})
            for k, (mean, *_) in enumerate(values):
                if mean < 0.001:
                    axis.text(k + (i - 2.5) * 0.14, 0, "0", ha="center", va="bottom", fontsize=8)
        axis.set_xticks(range(len(part)), [title for _, title in part], fontsize=9)
        axis.set_ylabel("share of responses")
    axes[1].legend(frameon=False, fontsize=8)
    axes[0].set_title("lines: lowest to highest of the seeds", fontsize=9)
    invents, truthful, rude, rude_asked = ({name: judge.mean_ignoring_none(row[name][key] for row in rows.values()) for name in ppo.MODELS}
                                           for key in ("hallucinates_closed_domain", "truthful", "toxic_not_asked", "toxic_asked_for_respect"))
    asked = next(iter(rows.values()))["sft"]["false_premises"]
    lowest = min(("gpt", "sft", "ppo_ptx"), key=invents.get)
    return (f"Paper, closed domain: GPT invents in 41 %, PPO-ptx in 21 %, SFT in 8 %. Here GPT {invents['gpt']:.0%} (it hardly answers), prompted "
            f"{invents['gpt_prompted']:.0%}, SFT {invents['sft']:.0%}, PPO-ptx {invents['ppo_ptx']:.0%}: {'agrees' if invents['ppo_ptx'] < invents['gpt'] else 'differs'}; in the "
            f"paper SFT invents least, here {TITLES[lowest]} does. False premises corrected ({asked} prompts): GPT prompted "
            f"{truthful['gpt_prompted']:.0%}, SFT {truthful['sft']:.0%}, PPO-ptx {truthful['ppo_ptx']:.0%}. "
            f"Paper: less toxic than GPT only where respect is asked for. Here {rude['gpt']:.1%} to {rude['ppo_ptx']:.1%} not asked, {rude_asked['gpt']:.1%} to "
            f"{rude_asked['ppo_ptx']:.1%} asked: {'differs, it falls either way' if rude['ppo_ptx'] < 0.75 * rude['gpt'] else 'agrees'}.")


def picture_held_out_labelers(rows, axes):
    """Accuracy inside and outside the groups whose rankings were learnt; the preference for PPO-ptx of either group."""
    folds, wins = ([row for name, row in rows.items() if name.startswith(kind)] for kind in ("fold", "preference"))
    for x, (name, group) in enumerate((("inside", "train"), ("outside", "held_out"))):
        values = [row[name] for row in folds]
        axes[0].plot([x + 0.02 * (i % 5 - 2) for i in range(len(values))], values, "o", color=(BLUE, ORANGE)[x])
        axes[0].plot([x - 0.15, x + 0.15], [judge.mean_ignoring_none(values)] * 2, color=GREY, label="mean" if x == 0 else None)
        for i, row in enumerate(wins):
            mean, low, high = row[group]
            axes[1].errorbar(x + 0.1 * (i - 1), mean, yerr=[[mean - low], [high - mean]], fmt="o", capsize=2, color=(BLUE, ORANGE)[x])
    axes[0].set_xticks((0, 1), ["labelers it learnt from", "labelers left out"])
    axes[0].set_ylabel("accuracy of the reward model")
    axes[0].legend(frameon=False)
    axes[1].set_xticks((0, 1), ["training labelers", "held-out labelers"])
    axes[1].set_ylabel("PPO-ptx preferred to SFT (a seed each, 95 %)")
    axes[1].axhline(0.5, color=GREY, linestyle=":")
    for axis in axes[:2]:
        axis.set_xlim(-0.5, 1.5)
    axes[2].plot([row["inside"] for row in folds], [row["outside"] for row in folds], "o", color=BLUE, label="a fold of a seed")
    axes[2].axline((0.8, 0.8), slope=1, color=GREY, linestyle=":", label="no difference")
    axes[2].set(xlabel="accuracy, labelers it learnt from", ylabel="accuracy, labelers left out")
    axes[2].legend(frameon=False)
    inside, outside = (judge.mean_ignoring_none(row[name] for row in folds) for name in ("inside", "outside"))
    train, held_out = (judge.mean_ignoring_none(row[group][0] for row in wins) for group in ("train", "held_out"))
    gap = "agrees" if 0 <= inside - outside < 0.05 else "differs"
    gap += ", there is no gap" if inside < outside else ", with a smaller gap" if inside - outside < 0.014 else ""
    gap += ": our labelers' tastes differ less" if inside - outside < 0.014 else ""
    return (f"Paper: 72.4 % inside the groups whose rankings were learnt, 69.6 % outside; held-out labelers prefer InstructGPT as much as the others do. Here "
            f"{inside:.1%} and {outside:.1%} ({gap}); PPO-ptx is preferred to SFT in {train:.1%} by "
            f"training, {held_out:.1%} by held-out labelers ({'agrees' if held_out > train - 0.03 else 'differs'}).")


def picture_dials(rows, axes):
    """Gold utility of SFT and PPO under each setting of the simulation, and how much of SFT's gap PPO closes."""
    names = [name for name in DIALS if by_seed(rows, name, "ppo")]
    for key, colour, marker in (("sft", ORANGE, "s"), ("ppo", BLUE, "o")):
        spread(axes[0], range(len(names)), rows, names, key, linestyle="", marker=marker, color=colour, label={"sft": "SFT", "ppo": "PPO"}[key])
    closed = {name: mean_and_range([(p - s) / (1 - s) for s, p in zip(by_seed(rows, name, "sft"), by_seed(rows, name, "ppo"))]) for name in names}
    for i, name in enumerate(names):
        mean, low, high = closed[name]
        axes[1].bar(i, mean, color=BLUE, yerr=[[mean - low], [high - mean]], capsize=2)
        wins = mean_and_range([w[0] for w in by_seed(rows, name, "win_rate_vs_sft")])
        axes[2].errorbar(i, wins[0], yerr=[[wins[0] - wins[1]], [wins[2] - wins[0]]], color=BLUE, marker="o", capsize=2)
    axes[0].legend(frameon=False)
    axes[2].axhline(0.5, color=GREY, linestyle=":")
    for axis, label in zip(axes, ("gold utility", "share of SFT's gap that PPO closes", "PPO preferred to SFT, held-out labelers")):
        axis.set_xticks(range(len(names)), names, rotation=35, ha="right", fontsize=9)
        axis.set_ylabel(label)
    said = ", ".join(f"{name} {closed[name][0]:.2f}" for name in names)
    return f"The paper makes no claim here: it cannot turn these dials. Share of SFT's gap that PPO closes, by how people are simulated: {said}."


def picture_baseline(rows, axes):
    """Scores of the three choices and gold utility by SFT epoch, a panel per seed; a ring: the epoch chosen."""
    apart = []
    for axis, (name, row) in zip(axes, rows.items()):
        for table, epoch, marker in zip(row["tables"], row["chosen"], "osv"):
            axis.errorbar([int(e) for e, _, _ in table], [m for _, m, _ in table], yerr=[error for _, _, error in table], color=BLUE,
                          marker=marker, markersize=4, linewidth=0.7, capsize=2)
            axis.plot(int(epoch), dict((e, m) for e, m, _ in table)[epoch], "o", markersize=13, markerfacecolor="none", color=BLUE)
        gold = axis.twinx()
        gold.plot([int(e) for e in row["gold"]], list(row["gold"].values()), color=ORANGE, linestyle="--", marker="x")
        gold.set_ylabel("gold utility (dashed, crosses)", color=ORANGE)
        axis.xaxis.set_major_locator(plt.MaxNLocator(integer=True))
        axis.set(xlabel=f"SFT epoch, {name}", ylabel="reward model's score")
        found = [row["gold"][epoch] for epoch in row["chosen"]]
        apart.append(max(found) - min(found))
    chosen = "; ".join(" ".join(str(int(epoch)) for epoch in row["chosen"]) for row in rows.values())
    return (f"The paper chooses the SFT epoch by the reward model's score on validation prompts (C.1). Here three choices, from samples drawn anew, take "
            f"epochs {chosen} (a group per seed); the gold utility of a seed's baselines differs by at most {max(apart):.3f}.")


# ---------------------------------------------------------------- running them

# What each costs on one core, two side by side on two, besides the three base runs of `python ppo.py` (17 minutes each, two cores).
EXPERIMENTS = {"figure_1": (figure_1, picture_figure_1, "3.1 h"), "metadata": (metadata, picture_metadata, "1 min"),
               "alignment_tax": (alignment_tax, picture_alignment_tax, "58 min"), "kl_sweep": (kl_sweep, picture_kl_sweep, "62 min"),
               "over_optimisation": (over_optimisation, picture_over_optimisation, "80 min"),
               "held_out_labelers": (held_out_labelers, picture_held_out_labelers, "65 min"), "dials": (dials, picture_dials, "1.9 h"),
               "baseline": (baseline, picture_baseline, "15 min")}


def run(name, quick=False):
    """Makes what results/NAME.json lacks, a row at a time, then the picture; returns the sentence."""
    lab = Lab(quick)
    # Others may run beside it, the same one may not
    with files.alone_in(lab.runs, f".{name}.lock"):
        measure(lab, name)
    return draw(name, lab.results)


def measure(lab, name):
    """Makes what results/NAME.json lacks, a row at a time."""
    path = lab.results / f"{name}.json"
    found = {"cores": torch.get_num_threads(), "prompts": len(lab.rows), "seconds": 0.0, "rows": {}}
    if path.exists() and not lab.quick:
        found = files.read_json(path)
    for key, job in tqdm(list(EXPERIMENTS[name][0](lab)), desc=name):
        if key not in found["rows"]:
            start = time.time()
            found["rows"][key] = job()
            found["seconds"] += time.time() - start
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write(path, json.dumps(rounded(found), indent=1))


def rounded(x):
    """The same, floats to four digits: small files, readable differences."""
    if isinstance(x, dict):
        return {key: rounded(value) for key, value in x.items()}
    return [rounded(value) for value in x] if isinstance(x, (list, tuple)) else float(f"{x:.4g}") if isinstance(x, float) else x


def draw(name, folder=RESULTS):
    """The picture of one experiment, from its file alone, and its sentence."""
    rows = files.read_json(folder / f"{name}.json")["rows"]
    fig, axes = plt.subplots(1, 3, figsize=(14, 4))
    seeds = sorted({key.rsplit("seed ", 1)[1] for key in rows})
    sentence = f"{EXPERIMENTS[name][1](rows, axes)} (Seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}.)"
    fig.tight_layout()
    fig.savefig(folder / f"{name}.png", dpi=110)
    plt.close(fig)
    return sentence


def draw_readme():
    """Draw the README's pictures: the three steps, and an episode of the committed PPO-ptx model."""
    from notebooks import lesson                # only here, because it needs IPython
    folder = HERE.parent / ".readme"
    prompt = "Give me three foods. The word berries must not be in it."
    config = ppo.Config(out=str(lesson.CHECKPOINTS))
    rows = lesson.trace(prompt, config)
    score = sum(row["reward"] + config.beta * row["kl"] for row in rows)
    plot_three_steps(folder / "three_steps.png")
    plot_episode(rows, prompt, config.beta, score, folder / "episode.png")


def main():
    """The command line."""
    costs = "\n".join(f"    {name:20} about {cost:>6} on one core: {experiment.__doc__}" for name, (experiment, _, cost) in EXPERIMENTS.items())
    parser = argparse.ArgumentParser(description=f"{__doc__}\n{costs}", formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", choices=[*EXPERIMENTS, "all", "pictures"])
    parser.add_argument("--quick", action="store_true", help="tiny models: shows that the code runs")
    flags = parser.parse_args()
    if flags.name is None:
        return parser.print_help()
    if flags.name == "pictures":
        draw_readme()
    for name, (experiment, _, _) in EXPERIMENTS.items() if flags.name in ("all", "pictures") else [(flags.name, EXPERIMENTS[flags.name])]:
        if flags.name != "pictures":
            print(f"\n{name}: {run(name, flags.quick)}")
        elif (RESULTS / f"{name}.json").exists():
            known = files.read_json(RESULTS / f"{name}.json")["rows"]
            finished = all(key in known for key, _ in experiment(Lab(False)))
            print(f"\n{name}: {draw(name) if finished else f'not finished, no picture: run `python -m notebooks.experiments {name}`'}")


if __name__ == "__main__":
    flags.guarded(main)
