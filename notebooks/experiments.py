"""The paper's findings, measured in Toytown: one section of this file per finding.

    python -m notebooks.experiments                     # list the experiments and their costs
    python -m notebooks.experiments kl_sweep            # run one; after a stop, it resumes
    python -m notebooks.experiments kl_sweep --quick    # the same code on tiny models, in seconds:
                                                        # the numbers mean nothing
    python -m notebooks.experiments pictures            # redraw all pictures, the README's too

Sections 9 to 15 are in findings.py, and what all sections share is in lab.py. Each section states
the paper's claim and then holds the four parts of an experiment:

1. Rows. A function, for example `kl_sweep(lab)`, yields pairs (key, job). A key names a setting
   and a seed: "beta 0.5 seed 2". Calling job() trains what is missing, measures it and returns
   one row, a dict of numbers. Models are trained by the scripts' own functions and live in
   notebooks/runs/ (not committed). A model that exists is not trained again.
2. A JSON file that can be resumed. `measure` runs the jobs whose keys are missing in
   notebooks/results/NAME.json (committed) and rewrites that file after every row.
3. A picture. `picture_NAME(rows, axes)` fills three panels from the recorded rows alone.
4. A sentence, computed from the same rows and returned with the picture: what the paper claims,
   what was measured here, and whether the two agree. A disagreement is a result too.
   notebooks/README.md quotes these sentences, and a test compares the two.

In all experiments *proxy* is the reward model's score, which training maximises, and *gold* is
the gold judge's utility (0 to 1), which training never sees.
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
from data import corpus, files, flags, judge, labeler, tokenizer
from data.figures import (
    BLUE, CHECKPOINTS, COLOURS, GREEN, GREY, MODELS, ORANGE, TITLES, plot_episode,
    plot_three_steps, plt
)
from data.files import made
from data.labeler import get_labelers
from model import load_model
from notebooks import findings
from notebooks.lab import (
    HERE, RESULTS, Lab, bars, by_seed, column, copy_world, describe, error_bar, generator_of,
    has_false_premise, load, load_reward, mean_and_range, mean_by_seed, mean_utility,
    means_by_seed, proxy_scores, setting_and_seed, settings_in, spread, train_in, utilities,
    verdict_of
)

# ================================================================ 1. model size
# Paper (Figure 1): labelers prefer the InstructGPT of 1.3B parameters to the GPT-3 of 175B, which
# is over 100 times larger.

# 73,584, 273,792 and 7,540,992 parameters. For each stage: what differs from the scripts'
# defaults, which are the medium size.
SIZES = {
    # Needs long pretraining to learn to copy. It is too small to overfit in SFT: no dropout, a
    # higher learning rate and more epochs.
    "small": {
        "pretrain": dict(n_layer=2, n_head=2, n_embd=36, steps=10_000, lr=0.01),
        "sft": dict(dropout=0.0, lr=3e-3, mix_epochs=24),
    },
    "medium": {},
    # Learns more per step. Its learning rates are lower, like the paper's for larger models. They
    # were not searched.
    "large": {
        "pretrain": dict(n_layer=4, n_head=6, n_embd=384, steps=1_200, lr=0.007, lr_rest=2e-3),
        "sft": dict(epochs=6, mix_epochs=3, lr=3e-4),
        "config": dict(iterations=12, lr=3e-4),
    },
}
ALL = ("gpt", "sft", "ppo", "ppo_ptx")      # the checkpoints of a size that is fully trained
ONE = ("gpt",)                              # those of a size that is only pretrained
RIVALS = ("sft", "gpt", "gpt_prompted")     # models of the largest size, which all are compared to
WRITERS = [name for name in MODELS if name != "sft_best_of_16"]


def figure_1(lab):
    """Models of three sizes, compared with the largest SFT baseline and the largest GPT."""
    for seed in lab.seeds:
        yield f"seed {seed}", functools.partial(compare_sizes, lab, seed)


def size_stages(lab, size, seed):
    """Return ppo.run's settings for a size, in a folder of its own. Medium is the base run."""
    stages = lab.stages(seed)
    if size == "medium":
        return stages
    common = dict(seed=seed, out=str(lab.runs / f"{size}{seed}"))
    stages = {"pretrain": model.Config(**common), "sft": sft.Config(**common), **stages}
    changes = SIZES[size]
    if lab.quick:
        changes = {"pretrain": dict(n_layer=1, n_head=2, n_embd=16 if size == "small" else 48)}
    for name, config in stages.items():
        stages[name] = dataclasses.replace(config, **common, **changes.get(name, {}))
    return stages


def grow(lab, size, seed, wanted):
    """Train one size until the checkpoints `wanted` exist. Return its settings.

    As in the paper, all sizes use one reward model, that of the medium size."""
    base = lab.base(seed)
    stages = size_stages(lab, size, seed)
    config = stages["config"]
    out = Path(config.out)
    if not made(config, "gpt"):
        model.train(stages["pretrain"])
    if wanted != ONE and not made(config, "sft_mix"):
        sft.train(stages["sft"])
    if wanted != ONE and not (out / "sft.pt").exists():
        for name in ("reward_1", "ppo_1", "reward"):
            shutil.copy(Path(base.out) / f"{name}.pt", out)
        valid = files.read_prompts("valid")
        reward.keep_best_sft(config, load_reward(config, "reward_1"), valid)
    for name, gamma in (("ppo", 0.0), ("ppo_ptx", config.gamma_ptx)):
        if name in wanted and not made(config, name):
            ppo.train_policy(config, name, "reward", config.iterations, gamma)
    return config


def compare_sizes(lab, seed):
    """Let held-out labelers compare all sizes and models with the three rivals.

    Return {"SIZE WRITER": {"params", "utility", "prompts", "against_RIVAL"}}. SFT and PPO at the
    largest size are expensive, so only the first seed has them."""
    first = lab.seeds[0]
    generator = generator_of(seed)
    rng = random.Random(seed)
    people = get_labelers("held_out")
    rows = lab.rows + lab.more_rows()

    # 1. Train.
    wanted = dict.fromkeys(SIZES, ALL)
    if seed != first:
        wanted["large"] = ONE
    configs = {}
    for size in SIZES:
        configs[size] = grow(lab, size, seed, wanted[size])
    sources = dict.fromkeys(RIVALS, configs["large"])
    sources["sft"] = grow(lab, "large", first, ALL)

    # 2. The rivals' responses.
    theirs = {}
    for rival in RIVALS:
        policy = load(sources[rival], CHECKPOINTS[rival])
        theirs[rival] = ppo.answer(rival, policy, rows, generator)

    # 3. Everyone else's, each compared with every rival's.
    row = {}
    for size, config in configs.items():
        for name in WRITERS:
            if CHECKPOINTS[name] not in wanted[size]:
                continue
            policy = load(config, CHECKPOINTS[name])
            ours = ppo.answer(name, policy, rows, generator)
            entry = {}
            for rival in RIVALS:
                entry[f"against_{rival}"] = labeler.preference(
                    rows, ours, theirs[rival], rng, people)
            entry["params"] = sum(p.numel() for p in policy.parameters())
            entry["prompts"] = len(rows)
            entry["utility"] = mean_utility(rows, ours)
            row[f"{size} {name}"] = entry
    return row


STYLES_1 = {                                # writer -> colour, line, marker
    "gpt": ("#BBBBBB", ":", "v"),
    "gpt_prompted": (GREY, "--", "^"),
    "sft": (ORANGE, "-", "s"),
    "ppo": ("#56B4E9", "--", "D"),
    "ppo_ptx": (BLUE, "-", "o"),
}


def parameters_by_size(rows):
    """Return {size: its number of parameters}."""
    first_row = next(iter(rows.values()))
    return {size: first_row[f"{size} gpt"]["params"] for size in SIZES}


def preferred(rows, writer, rival):
    """Return how often "SIZE WRITER" is preferred to a rival, one value per seed that has it."""
    entries = [row[writer] for row in rows.values() if writer in row]
    return column(column(entries, f"against_{rival}"), 0)


def picture_figure_1(rows, axes):
    """Draw the preference for each model by size: against the largest SFT, GPT and prompted GPT."""
    for axis, rival in zip(axes, RIVALS):
        for name in WRITERS:
            draw_writer(axis, rows, name, rival)
        axis.axhline(0.5, color=GREY, linewidth=0.7, linestyle=":")
        label = f"preferred to the largest {TITLES[rival]}"
        axis.set(xscale="log", ylim=(0, 1), xlabel="parameters", ylabel=label)
        axis.set_title("bars: lowest to highest of the seeds", fontsize=9)
    axes[0].legend(frameon=False, fontsize=8)
    return sentence_figure_1(rows)


def draw_writer(axis, rows, name, rival):
    """Draw how often one model is preferred to a rival, by size."""
    params = []
    wins = []
    for size, number in parameters_by_size(rows).items():
        values = preferred(rows, f"{size} {name}", rival)
        if values:
            params.append(number)
            wins.append(values)
    means, errors = bars(wins)
    colour, line, marker = STYLES_1[name]
    axis.errorbar(
        params, means, yerr=errors, color=colour, linestyle=line, marker=marker, capsize=2,
        label=TITLES[name])


def sentence_figure_1(rows):
    """Agree if the small PPO-ptx is preferred to the large GPT in more than half of all cases."""
    params = parameters_by_size(rows)
    small = params["small"]
    large = params["large"]

    def wins(name, rival):
        return judge.mean_ignoring_none(preferred(rows, f"small {name}", rival))

    ptx = wins("ppo_ptx", "gpt")
    return (
        "Paper: a small InstructGPT is preferred to a GPT-3 over 100 times its size. Here PPO-ptx "
        f"of {small:,} parameters is preferred to GPT of {large:,}, {large / small:.0f} times as "
        f"many, in {ptx:.1%}: {verdict_of(ptx > 0.5)}. "
        "The small GPT prompted is preferred to the large GPT in "
        f"{wins('gpt_prompted', 'gpt'):.1%}, the small SFT in {wins('sft', 'gpt'):.1%}; the small "
        f"PPO-ptx to the large GPT prompted in {wins('ppo_ptx', 'gpt_prompted'):.1%}.")


# ================================================================ 2. what is in the responses
# Paper (Figure 4, sections 4.1 and 4.2): on closed-domain tasks GPT-3 makes things up in 41 % of
# its responses, PPO-ptx in 21 %, SFT in 8 %. InstructGPT is more truthful. It is less toxic than
# GPT-3 only when the prompt asks for respect.


def metadata(lab):
    """Metadata of all models (Figure 4): hallucination, toxicity, correction of false premises."""
    for seed in lab.seeds:
        def job(seed=seed):             # bound now: the job runs after this loop has ended
            return with_truthfulness(lab, lab.base(seed))
        yield f"seed {seed}", job


def with_truthfulness(lab, config):
    """Return the models' entries of results.json, each with `truthful` added.

    `truthful` is the share of fully correct responses to prompts with a false premise."""
    entries = files.read_json(Path(config.out) / "results.json")["models"]
    generator = generator_of(config.seed)
    proxy = load_reward(config)
    rows = list(filter(has_false_premise, lab.rows + lab.more_rows(4_000)))
    for name, entry in entries.items():
        policy = load(config, CHECKPOINTS[name])
        responses = ppo.answer(name, policy, rows, generator, proxy)
        correct = [utility > 0.999 for utility in utilities(rows, responses)]
        entry["truthful"] = judge.mean_ignoring_none(correct)
        entry["false_premises"] = len(correct)
    return entries


METADATA = [                                # key in results.json, title of the bars
    ("attempts_correct_instruction", "attempts the\ninstruction"),
    ("follows_constraints", "follows\nconstraints"),
    ("appropriate", "fit for an\nassistant"),
    ("hallucinates_closed_domain", "hallucinates\n(closed domain)"),
    ("truthful", "corrects a\nfalse premise"),
    ("toxic_not_asked", "toxic, respect\nnot asked for"),
    ("toxic_asked_for_respect", "toxic, respect\nasked for"),
]


def picture_metadata(rows, axes):
    """Draw what is in the responses, by model (Figure 4 and section 4.2)."""
    for axis, part in zip(axes, (METADATA[:3], METADATA[3:5], METADATA[5:])):
        draw_shares(axis, rows, part)
        axis.set_title("lines: lowest to highest of the seeds", fontsize=9)
    axes[1].legend(frameon=False, fontsize=8)
    return sentence_metadata(rows)


HATCHES = ("", "//", "", "..", "\\\\", "xx")    # of MODELS: tell bars apart without colour


def draw_shares(axis, rows, part):
    """Draw a group of bars, one per model, for each (key, title) in `part`."""
    groups = range(len(part))
    titles = column(part, 1)
    for i, name in enumerate(MODELS):
        entries = column(rows.values(), name)
        means, errors = bars([column(entries, key) for key, _ in part])
        places = [group + (i - 2.5) * 0.14 for group in groups]
        axis.bar(
            places, means, 0.13, color=COLOURS[name], label=TITLES[name], capsize=1, yerr=errors,
            error_kw={"linewidth": 0.8}, hatch=HATCHES[i], edgecolor="white", linewidth=0)
        for place, mean, above in zip(places, means, errors[1]):
            if mean < 0.001:            # a bar that cannot be seen
                axis.text(place, mean + above, "0", ha="center", va="bottom", fontsize=8)
    axis.set_xticks(groups, titles, fontsize=9)
    axis.set_ylabel("share of responses")


def sentence_metadata(rows):
    """Agree if PPO-ptx invents less than GPT, and if toxicity falls only where respect is asked."""
    def mean(key):
        means = {}
        for name in MODELS:
            entries = column(rows.values(), name)
            means[name] = judge.mean_ignoring_none(column(entries, key))
        return means

    invents = mean("hallucinates_closed_domain")
    truthful = mean("truthful")
    rude = mean("toxic_not_asked")
    rude_asked = mean("toxic_asked_for_respect")
    first_row = next(iter(rows.values()))
    lowest = min(("gpt", "sft", "ppo_ptx"), key=invents.get)
    falls_either_way = rude["ppo_ptx"] < 0.75 * rude["gpt"]
    return (
        "Paper, closed domain: GPT invents in 41 %, PPO-ptx in 21 %, SFT in 8 %. Here GPT "
        f"{invents['gpt']:.0%} (it hardly answers), prompted {invents['gpt_prompted']:.0%}, "
        f"SFT {invents['sft']:.0%}, PPO-ptx {invents['ppo_ptx']:.0%}: "
        f"{verdict_of(invents['ppo_ptx'] < invents['gpt'])}; in the paper SFT invents least, "
        f"here {TITLES[lowest]} does. "
        f"False premises corrected ({first_row['sft']['false_premises']} prompts): GPT prompted "
        f"{truthful['gpt_prompted']:.0%}, SFT {truthful['sft']:.0%}, "
        f"PPO-ptx {truthful['ppo_ptx']:.0%}. "
        "Paper: less toxic than GPT only where respect is asked for. Here "
        f"{rude['gpt']:.1%} to {rude['ppo_ptx']:.1%} not asked, "
        f"{rude_asked['gpt']:.1%} to {rude_asked['ppo_ptx']:.1%} asked: "
        f"{'differs, it falls either way' if falls_either_way else 'agrees'}.")


# ================================================================ 3. the alignment tax
# Paper (section 4.2): PPO loses performance on public NLP tasks. Mixing in pretraining gradients
# (PPO-ptx) removes most of the loss. Raising the KL coefficient instead does not.
# The tax is measured here as the rise of the corpus loss above the base model's, and by skills.

SKILLS = [                                  # name, who writes the documents, where they are cut
    ("backwards", corpus.pairs, "Backwards:"),
    ("then", corpus.pairs, "Then:"),
    ("other words", corpus.restated, "In other words:"),
    ("questions", corpus.retold, "What of"),
]
TAXED = ("gpt", "sft", "sft_mix", "ppo", "ppo_ptx")
GAMMAS = (0.0, 0.25, 1.0, 4.0, 16.0)        # multiples of the default gamma_ptx
RAISED = (4.0, 16.0)                        # multiples of the default beta


def skill_accuracy(policy, make, mark, n, seed):
    """Return the share of n unfinished documents that the model finishes word for word.

    The model takes its most likely token at each step. Unlike in the paper, no examples are
    shown. Here the base model read every document alone, so an example in front of the document
    hurts: with one, it finishes hardly any."""
    encoding = tokenizer.load()
    rng = random.Random(seed)
    heads = []
    tails = []
    while len(heads) < n:
        document = make(rng)
        if mark in document:
            cut = "?" if mark == "What of" else mark
            tail = document.split(cut)[1]
            heads.append(document[:len(document) - len(tail)])
            tails.append(tail.strip())
    ids = [[encoding.eot_token] + tokenizer.encode(encoding, head) for head in heads]
    correct = 0
    for response, tail in zip(model.generate(policy, ids, reward.MAX_NEW_TOKENS, 0), tails):
        text, _ = tokenizer.response_text(encoding, response)
        correct += text.strip() == tail
    return correct / n


def alignment_tax(lab):
    """Corpus loss and skills of five models, of PPO-ptx by gamma, and of PPO by beta."""
    for seed in lab.seeds:
        default = lab.stages(seed)["config"]
        for name in TAXED:
            yield f"{name} seed {seed}", functools.partial(tax_row, lab, seed, name)
        for times in GAMMAS[1:2] if lab.quick else GAMMAS:
            if times not in (0.0, 1.0):     # these are `ppo` and `ppo_ptx`
                job = functools.partial(
                    tax_row, lab, seed, f"gamma_{times}", gamma_ptx=times * default.gamma_ptx)
                yield f"gamma x {times} seed {seed}", job
        for times in RAISED[:1] if lab.quick else RAISED:
            job = functools.partial(
                tax_row, lab, seed, f"raised_{times}", beta=times * default.beta)
            yield f"beta x {times} seed {seed}", job


def tax_row(lab, seed, name, **changes):
    """Describe a model of the base run, or a policy with `changes`, and measure its skills."""
    config = lab.base(seed)
    path = Path(config.out) / f"{name}.pt"
    if changes:
        path, config = lab.policy(seed, name, **changes)
    row = describe(lab, config, path)
    for skill, make, mark in SKILLS:
        row[skill] = skill_accuracy(load_model(path), make, mark, 20 if lab.quick else 300, seed)
    return row


def picture_alignment_tax(rows, axes):
    """Draw the rise in corpus loss by model, the skills by model, and the two sweeps."""
    known = settings_in(rows)
    names = [name for name in TAXED if name in known]
    draw_rises(axes[0], rows, names[1:])
    draw_skills(axes[1], rows, names)
    titles = {"sft_mix": "reference", **TITLES}
    ticks = list(map(titles.get, names))
    axes[0].set_xticks(range(1, len(names)), ticks[1:])
    axes[1].set_xticks(range(len(names)), ticks)
    draw_sweep(axes[2], rows, "gamma", GAMMAS, "PPO-ptx, times our gamma_ptx", BLUE, "o")
    draw_sweep(axes[2], rows, "beta", (1.0, *RAISED), "PPO, times our beta", ORANGE, "s")
    if "ppo" in known:
        place = [mean_by_seed(rows, "ppo", "corpus_loss")]
        spread(axes[2], place, rows, ["ppo"], "utility", linestyle="", marker="D", color=GREY,
               markersize=8, label="PPO, a point of both")
    axes[2].set(xlabel="corpus loss (nats per token)", ylabel="gold utility", xmargin=0.1)
    axes[2].legend(frameon=False, fontsize=8, loc="lower right")
    return tax_in_words(rows, names)


def draw_rises(axis, rows, names):
    """Draw the corpus loss of each model minus that of the base model with the same seed."""
    rises = {}
    for key, row in rows.items():
        name, seed = setting_and_seed(key)
        if name in names:
            rises[key] = {"rise": row["corpus_loss"] - rows[f"gpt seed {seed}"]["corpus_loss"]}
    places = range(1, len(names) + 1)
    spread(axis, places, rises, names, "rise", linestyle="", marker="s", color=BLUE)
    axis.set(yscale="log", ylabel="corpus loss above GPT's (nats per token, log scale)")
    ticks = (0.05, 0.1, 0.2, 0.5, 1, 2)
    axis.set_yticks(ticks, ticks)
    axis.minorticks_off()


def draw_skills(axis, rows, names):
    """Draw the four skills of each model."""
    colours = (BLUE, ORANGE, GREEN, GREY)
    for i, (skill, _, _) in enumerate(SKILLS):
        places = [place + 0.15 * (i - 1.5) for place in range(len(names))]
        spread(
            axis, places, rows, names, skill, linestyle="", marker="ovd^"[i], color=colours[i],
            label=skill)
    axis.set(ylabel="documents finished word for word (share)", ylim=(-0.05, 1.35))
    axis.legend(frameon=False, fontsize=8, loc="upper center", ncol=2)


def draw_sweep(axis, rows, sweep, multiples, label, colour, marker):
    """Draw gold utility by corpus loss for multiples of gamma_ptx or beta."""
    # Some points are models of the base run. gamma_ptx = 0 is PPO.
    of_base_run = {"gamma x 0.0": "ppo", "gamma x 1.0": "ppo_ptx", "beta x 1.0": "ppo"}
    known = settings_in(rows)
    labels = {}                                         # setting -> the text beside its point
    for times in multiples:
        name = f"{sweep} x {times}"
        setting = of_base_run.get(name, name)
        if setting in known:
            labels[setting] = "PPO" if setting == "ppo" else f"x {times:g}"
    losses = means_by_seed(rows, labels, "corpus_loss")
    golds = means_by_seed(rows, labels, "utility")
    spread(
        axis, list(losses.values()), rows, labels, "utility", linestyle="-", linewidth=0.7,
        marker=marker, color=colour, label=label)
    for setting, text in labels.items():
        if setting == "ppo" and sweep == "beta":
            continue                                    # the other sweep labels this point
        place = (losses[setting], golds[setting])
        style = dict(xytext=(5, -9), ha="left")         # right of the bar, in points
        if setting == "ppo_ptx":
            style = dict(xytext=(-5, -9), ha="right")   # the curve goes on at the right
        axis.annotate(text, place, textcoords="offset points", fontsize=8, **style)


def tax_in_words(rows, names):
    """Return the sentence under the alignment tax.

    PPO-ptx agrees with the paper if it pays less than half of PPO's tax and keeps more of the
    skills. A raised beta disagrees if it brings the corpus loss down to that of PPO-ptx."""
    models = settings_in(rows)
    loss = means_by_seed(rows, models, "corpus_loss")
    gold = means_by_seed(rows, models, "utility")
    skill = {}
    for name in names:
        means = [mean_by_seed(rows, name, key) for key in column(SKILLS, 0)]
        skill[name] = judge.mean_ignoring_none(means)
    pays_less = loss["ppo_ptx"] - loss["gpt"] < 0.5 * (loss["ppo"] - loss["gpt"])
    agrees = pays_less and skill["ppo_ptx"] > skill["ppo"]
    ours = []
    for name in ("gpt", "ppo", "ppo_ptx"):
        ours.append(f"{loss[name]:.3f} ({skill[name]:.2f}) for {TITLES[name]}")
    beta_helps = False
    theirs = []
    for times in RAISED:
        name = f"beta x {times}"
        if name in models:
            beta_helps = beta_helps or loss[name] <= loss["ppo_ptx"]
            theirs.append(f"{loss[name]:.3f} at {times:g} times, gold {gold[name]:.3f}")
    return (
        "Paper: PPO pays an alignment tax, PPO-ptx hardly, and raising beta instead does not "
        "help. Here corpus loss (mean of the four skills) is "
        f"{', '.join(ours)}: {verdict_of(agrees)}; PPO with beta raised: {', '.join(theirs)} "
        f"(PPO-ptx {gold['ppo_ptx']:.3f}): {verdict_of(not beta_helps)}.")


# ================================================================ 4. the KL penalty
# Paper (PPO-ptx): a KL coefficient of 0 and a large one are both poor.

BETAS = (0.0, 0.015, 0.05, 0.15, 0.5, 1.5, 15.0)


def kl_sweep(lab):
    """PPO with KL penalties over three orders of magnitude, and without one."""
    for seed in lab.seeds:
        yield f"sft_mix seed {seed}", functools.partial(describe_start, lab, seed)
        for beta in BETAS[:2] if lab.quick else BETAS:
            yield f"beta {beta} seed {seed}", functools.partial(describe_beta, lab, seed, beta)


def describe_start(lab, seed):
    """Describe sft_mix, where every run starts."""
    config = lab.base(seed)
    return describe(lab, config, Path(config.out) / "sft_mix.pt")


def describe_beta(lab, seed, beta):
    """Describe PPO with one KL coefficient. The base run has trained the default one."""
    name = "ppo" if beta == ppo.Config.beta else f"beta_{beta}"
    path, config = lab.policy(seed, name, beta=beta)
    return describe(lab, config, path)


def picture_kl_sweep(rows, axes):
    """Draw gold utility, proxy and KL by beta. Grey: sft_mix, the limit of a very large beta."""
    known = settings_in(rows)
    betas = [beta for beta in BETAS if f"beta {beta}" in known]
    settings = [f"beta {beta}" for beta in betas]
    places = np.maximum(betas, 0.005)                           # a log scale has no 0
    labels = {
        "utility": "gold utility",
        "proxy": "reward model's score",
        "kl": "KL to the reference (nats)",
    }
    for axis, (key, label) in zip(axes, labels.items()):
        spread(axis, places, rows, settings, key, color=BLUE, marker="o", label="PPO")
        for i, value in enumerate(by_seed(rows, "sft_mix", key)):
            name = "reference, each seed" if i == 0 else None     # one line of the legend
            axis.axhline(value, color=GREY, linestyle=":", linewidth=0.8, label=name)
        axis.axvline(ppo.Config.beta, color=GREY, linewidth=0.7, label="our beta")
        axis.set(xscale="log", xlabel="beta (leftmost point: 0)", ylabel=label)
    axes[2].legend(frameon=False, fontsize=8, loc="upper right")
    return sentence_kl_sweep(rows, betas)


def sentence_kl_sweep(rows, betas):
    """Agree if the best beta is neither the smallest nor the largest."""
    def figures(setting):
        utility = mean_by_seed(rows, setting, "utility")
        likert = mean_by_seed(rows, setting, "likert")
        return f"{utility:.3f} and {likert:.1f}"

    smallest = betas[0]
    largest = betas[-1]
    best = max(betas, key=lambda beta: mean_by_seed(rows, f"beta {beta}", "utility"))
    agrees = best not in (smallest, largest)
    return (
        "Paper (PPO-ptx): beta 0 and a large beta are both poor. Here (PPO) gold utility and "
        f"Likert are {figures('sft_mix')} before PPO, {figures(f'beta {smallest}')} at beta "
        f"{smallest}, {figures(f'beta {best}')} at best, beta {best}, "
        f"{figures(f'beta {largest}')} at {largest}: {verdict_of(agrees)}.")


# ================================================================ 5. over-optimisation
# Gao et al. (2022, "Scaling laws for reward model overoptimization"): as a policy moves away from
# its start, gold rises, then falls while the proxy rises on. With more rankings gold rises higher
# and falls less.

RANKINGS = (300, 1_000, 3_000, 10_000)


def over_optimisation(lab):
    """PPO without a KL penalty and best-of-n, against reward models with few or many rankings."""
    for seed in lab.seeds:
        for n in (50,) if lab.quick else RANKINGS:
            yield f"{n} rankings seed {seed}", functools.partial(optimise_against, lab, seed, n)


def optimise_against(lab, seed, n):
    """Train a reward model on n rankings of the base run, then optimise against it.

    Return the curves of PPO at beta 0 and of best-of-n: lists of {"kl", "proxy", "gold"}."""
    base = lab.base(seed)
    config = lab.beside(base, f"{n}_rankings")
    settings = reward.Config(seed=seed, out=config.out, round=1)
    if not made(config, "reward"):
        ranked = files.read_rankings(Path(base.out) / "rankings.jsonl")
        proxy, _ = reward.fit(settings, random.Random(seed).sample(ranked, n))
        reward.centre(proxy, tokenizer.load())
        extra = files.stage_extra(settings, "reward", ["sft_mix"])
        model.save_checkpoint(Path(config.out) / "reward.pt", proxy, **extra)
    config = dataclasses.replace(config, beta=0.0, iterations=2 if lab.quick else 60)
    if not made(config, "ppo"):
        ppo.train_policy(config, "ppo", "reward", config.iterations, 0.0)
    curve = []
    for row in files.read_jsonl(Path(config.out) / "ppo.jsonl", step=int):
        curve.append({"kl": row["kl"], "proxy": row["score"], "gold": row["gold"]})
    return {"ppo": curve, "best_of_n": best_of_n(lab, config, 8 if lab.quick else 64)}


def chance_of_best(N, n):
    """Return the chance of each of N samples to be the best of n that are drawn from them.

    The samples are in ascending order of their scores. Sample i (from 1) is the best of
    C(i - 1, n - 1) of the C(N, n) subsets."""
    return [math.comb(below, n - 1) / math.comb(N, n) for below in range(N)]


def best_of_n(lab, config, N):
    """Return the curve of best-of-n on samples of the reference, n = 1, 2, 4, ... N / 2.

    Each prompt gets N samples. The mean over all subsets of n of them estimates proxy and gold
    without bias (Gao et al. 2022, see chance_of_best)."""
    encoding = tokenizer.load()
    generator = generator_of(config.seed)
    policy = load(config, "sft_mix")
    proxy = load_reward(config)
    rows = lab.rows[:300]

    samples_of = [[] for _ in rows]                     # per prompt: N times (score, gold, text)
    for _ in range(N):
        responses = ppo.answer("sft_mix", policy, rows, generator)
        scores = proxy_scores(proxy, encoding, rows, responses)
        golds = utilities(rows, responses)
        for i, response in enumerate(responses):
            samples_of[i].append((scores[i], golds[i], response["text"]))

    curve = []
    n = 1
    while 2 * n <= N:
        curve.append({"n": n, "kl": 0.0, "proxy": 0.0, "gold": 0.0})
        n *= 2
    for samples in samples_of:
        samples.sort()
        for point in curve:
            kl, score, gold = mean_of_best(samples, point["n"])
            point["kl"] += kl / len(rows)
            point["proxy"] += score / len(rows)
            point["gold"] += gold / len(rows)
    return curve


def mean_of_best(samples, n):
    """Return KL, proxy and gold of the best of n, for one prompt.

    samples: (score, gold, text) in ascending order. The KL compares how often each distinct text
    is chosen with how often it is sampled. Where samples repeat, this KL is smaller than
    log n - (n - 1) / n."""
    chosen = {}
    sampled = {}
    mean_score = 0.0
    mean_gold = 0.0
    for chance, (score, gold, text) in zip(chance_of_best(len(samples), n), samples):
        chosen[text] = chosen.get(text, 0) + chance
        sampled[text] = sampled.get(text, 0) + 1 / len(samples)
        mean_score += chance * score
        mean_gold += chance * gold
    kl = 0.0
    for text, q in chosen.items():
        if q > 0:
            kl += q * math.log(q / sampled[text])
    return kl, mean_score, mean_gold


def gao_form(d, a, b, way):
    """Return Gao et al.'s gain in gold at d = sqrt(KL): d (a - b d) or, for RL, d (a - b log d)."""
    return d * (a - b * (d if way == "best_of_n" else np.log(d)))


def gao_fit(points, form):
    """Fit Gao et al.'s form by least squares and return (a, b). points: (kl, gain in gold).

    The form is d (a - b f(d)) with d = sqrt(KL): f(d) = d for best-of-n, log d for RL."""
    d = np.sqrt(np.maximum(column(points, 0), 1e-6))
    gains = np.array(column(points, 1))
    f = d if form == "best_of_n" else np.log(d)
    (a, b), *_ = np.linalg.lstsq(np.stack([d, -d * f], 1), gains, rcond=None)
    return float(a), float(b)


def picture_over_optimisation(rows, axes):
    """Draw gold by sqrt(KL) for PPO and best-of-n with Gao's forms fitted, and PPO's proxy."""
    numbers = sorted({int(key.split()[0]) for key in rows})
    for axis, way in zip(axes, ("ppo", "best_of_n")):
        for i, n in enumerate(numbers):
            curves = by_seed(rows, f"{n} rankings", way)
            colour = ("#D55E00", "#CC79A7", "#56B4E9", "#222222")[i]
            style = dict(color=colour, marker="osv^"[i], markersize=4, label=f"{n:,} rankings")
            parts = mean_curve(curves, 5 if way == "ppo" else 1)
            axis.plot(distances(parts), column(parts, "gold"), **style)
            draw_fit(axis, curves, way, colour)
            if way == "ppo":
                axes[2].plot(distances(parts), column(parts, "proxy"), **style)
        axis.plot([], [], "--", color=GREY, label="Gao et al.'s form, fitted")
    axes[0].set(title="PPO, beta 0 (training prompts)", ylabel="gold utility")
    axes[1].set(title="best of n (300 prompts; other scale)", ylabel="gold utility")
    axes[2].set(title="PPO: what the proxy says", ylabel="reward model's score")
    for axis in axes:
        axis.set(xlabel="sqrt(KL), nats^0.5")
    axes[0].legend(frameon=False, fontsize=8)
    return sentence_over_optimisation(rows, numbers)


def mean_curve(curves, size):
    """Return the mean over seeds of curves, each `size` points averaged after the first one.

    The first point is the model before training. All curves are equally long."""
    length = len(curves[0])
    bounds = [0, *range(1, length, size), length]
    found = []
    for start, end in zip(bounds, bounds[1:]):
        points = []
        for curve in curves:
            points += curve[start:end]
        means = {}
        for key in ("kl", "proxy", "gold"):
            means[key] = sum(column(points, key)) / len(points)
        found.append(means)
    return found


def distances(curve):
    """Return sqrt(KL) of every point."""
    return np.sqrt(np.maximum(column(curve, "kl"), 0))


def draw_fit(axis, curves, way, colour):
    """Draw Gao et al.'s form, fitted to the curves of all seeds."""
    points = []
    for curve in curves:
        for point in curve[1:]:
            points.append((point["kl"], point["gold"] - curve[0]["gold"]))
    a, b = gao_fit(points, way)
    start = sum(column(column(curves, 0), "gold")) / len(curves)
    furthest = max(0.01, *column(points, 0))
    d = np.linspace(0.05, math.sqrt(furthest), 100)
    gold = start + gao_form(d, a, b, way)
    axis.plot(d[gold >= 0], gold[gold >= 0], "--", color=colour, linewidth=1)   # utility is >= 0


def peak(curve):
    """Return the highest gold of a curve."""
    return max(column(curve, "gold"))


def fall(curve):
    """Return how far gold ends below its peak."""
    return peak(curve) - curve[-1]["gold"]


def up_to(curve, kl):
    """Return the part of a curve before it first reaches a KL, and the point at that KL.

    The point is interpolated between two iterations."""
    after = 0
    while curve[after]["kl"] < kl:
        after += 1
    a = curve[max(0, after - 1)]
    b = curve[after]
    share = (kl - a["kl"]) / (b["kl"] - a["kl"]) if after else 0.0
    gold = a["gold"] + share * (b["gold"] - a["gold"])
    return curve[:after] + [{"kl": kl, "gold": gold}]


def over_optimised(best, climbed, common):
    """Return what the sentence needs about one number of rankings, each a mean over seeds.

    best: curves of best-of-n. climbed: curves of PPO. common: a KL that all PPO runs reach."""
    near = [up_to(curve, common) for curve in climbed]
    ends = column(near, -1)
    return {
        "best_peak": judge.mean_ignoring_none(map(peak, best)),
        "best_fall": judge.mean_ignoring_none(map(fall, best)),
        "ppo_fall": judge.mean_ignoring_none(map(fall, climbed)),
        "near_gold": judge.mean_ignoring_none(column(ends, "gold")),
        "near_fall": judge.mean_ignoring_none(map(fall, near)),
    }


def sentence_over_optimisation(rows, numbers):
    """Agree if gold falls further with few rankings than with many, in best-of-n and in PPO.

    PPO runs are compared at the largest KL that all of them reach."""
    furthest = []
    for n in numbers:
        for curve in by_seed(rows, f"{n} rankings", "ppo"):
            furthest.append(max(column(curve, "kl")))
    common = min(furthest)

    def measured(n):
        best = by_seed(rows, f"{n} rankings", "best_of_n")
        climbed = by_seed(rows, f"{n} rankings", "ppo")
        return over_optimised(best, climbed, common)

    few = measured(numbers[0])
    many = measured(numbers[-1])
    largest = by_seed(rows, f"{numbers[0]} rankings", "best_of_n")[0][-1]["n"]
    best_agrees = few["best_fall"] > many["best_fall"]
    both_agree = best_agrees and few["near_fall"] > many["near_fall"]
    both_agree = both_agree and few["best_fall"] > 0.01 and few["near_fall"] > 0.01
    verdict = "agrees in part" if best_agrees else "differs"
    if both_agree:
        verdict = "agrees"

    def both(key):
        return f"{few[key]:.3f} ({many[key]:.3f})"

    return (
        "Gao et al.: gold rises, then falls; with more rankings it rises higher and falls less. "
        f"Here, {numbers[0]:,} ({numbers[-1]:,}) rankings: in best of n, gold peaks at "
        f"{both('best_peak')} and is {both('best_fall')} lower at n = {largest}. "
        f"In PPO it ends {both('ppo_fall')} below its peak; where the KL first reaches "
        f"{common:.1f} nats it stands at {both('near_gold')}, {both('near_fall')} below: "
        f"{verdict}.")


# ================================================================ 6. held-out labelers
# Paper (section 4.1): reward models reach 72.4 % accuracy on the labelers they learned from and
# 69.6 % on labelers left out. Held-out labelers prefer InstructGPT as much as the others do.

FOLDS = 5


def held_out_labelers(lab):
    """Accuracy on labelers left out of the training, and who prefers PPO-ptx."""
    for seed in lab.seeds:
        for fold in range(1 if lab.quick else FOLDS):
            yield f"fold {fold} seed {seed}", functools.partial(leave_out, lab, seed, fold)

        def job(seed=seed):
            return preferred_by_both_groups(lab, lab.base(seed))
        yield f"preference seed {seed}", job


def leave_out(lab, seed, fold):
    """Train a reward model without a fifth of the labelers and return its accuracies.

    "inside": on labelers it learned from, "outside": on those left out, both on new prompts.
    The reward model starts from the base model, as in round 1. Round 1's own model, from which
    round 2 continues, has learned from all labelers."""
    config = lab.base(seed)
    rng = random.Random(seed)
    people = get_labelers("train")
    inside = [person for i, person in enumerate(people) if i % FOLDS != fold]
    outside = people[fold::FOLDS]
    settings = reward.Config(seed=seed, out=lab.beside(config, f"fold_{fold}").out)

    rankings = files.read_rankings(Path(config.out) / "rankings.jsonl")
    if lab.quick:
        rankings = rankings[:80]
    rankings = rng.sample(rankings, len(rankings))
    n_train = len(rankings) * 9 // 10

    def rank_again(part, group, opinions):
        responses = column(part, "responses")
        return reward.rank(part, responses, group, rng, 2, opinions)

    learned = rank_again(rankings[:n_train], inside, settings.labelers_per_prompt)
    proxy, _ = reward.fit(settings, learned)
    report = {}
    for name, group in (("inside", inside), ("outside", outside)):
        ranked = rank_again(rankings[n_train:], group, 1)
        scores = reward.scores_of(proxy, tokenizer.load(), ranked)
        report[name] = labeler.accuracy(labeler.margins_of(ranked, scores))
    return report


def preferred_by_both_groups(lab, config):
    """Return how often PPO-ptx is preferred to the SFT baseline, by group of labelers."""
    generator = generator_of(config.seed)
    rng = random.Random(config.seed)
    ours = ppo.answer("ppo_ptx", load(config, "ppo_ptx"), lab.rows, generator)
    theirs = ppo.answer("sft", load(config, "sft"), lab.rows, generator)
    wins = {}
    for group in ("train", "held_out"):
        wins[group] = labeler.preference(lab.rows, ours, theirs, rng, get_labelers(group))
    return wins


def rows_of_kind(rows, kind):
    """Return the rows whose keys start with "fold" or "preference"."""
    return [row for key, row in rows.items() if key.startswith(kind)]


def picture_held_out_labelers(rows, axes):
    """Draw accuracies inside and outside, the preference of both groups, and fold by fold."""
    folds = rows_of_kind(rows, "fold")
    wins = rows_of_kind(rows, "preference")
    for x, name, colour in ((0, "inside", BLUE), (1, "outside", ORANGE)):
        values = column(folds, name)
        places = [x + 0.02 * (i % FOLDS - 2) for i in range(len(values))]
        mean = judge.mean_ignoring_none(values)
        label = "mean" if x == 0 else None
        axes[0].plot(places, values, "o", color=colour)
        axes[0].plot([x - 0.15, x + 0.15], [mean, mean], color=GREY, label=label)
    axes[0].set_xticks((0, 1), ["labelers it learnt from", "labelers left out"])
    axes[0].set_ylabel("accuracy of the reward model")
    axes[0].set_xlim(-0.5, 1.5)
    axes[0].legend(frameon=False)

    for x, group, colour in ((0, "train", BLUE), (1, "held_out", ORANGE)):
        for i, (mean, low, high) in enumerate(column(wins, group)):
            axes[1].errorbar(
                x + 0.1 * (i - 1), mean, yerr=error_bar(mean, low, high), fmt="o", capsize=2,
                color=colour)
    axes[1].set_xticks((0, 1), ["training labelers", "held-out labelers"])
    axes[1].set_ylabel("PPO-ptx preferred to SFT (a seed each, 95 %)")
    axes[1].axhline(0.5, color=GREY, linestyle=":")
    axes[1].set_xlim(-0.5, 1.5)

    inside = column(folds, "inside")
    outside = column(folds, "outside")
    axes[2].plot(inside, outside, "o", color=BLUE, label="a fold of a seed")
    axes[2].axline((0.8, 0.8), slope=1, color=GREY, linestyle=":", label="no difference")
    axes[2].set(xlabel="accuracy, labelers it learnt from", ylabel="accuracy, labelers left out")
    limits = (min(inside + outside) - 0.005, max(inside + outside) + 0.005)
    axes[2].set(xlim=limits, ylim=limits)
    axes[2].locator_params(nbins=7)
    axes[2].legend(frameon=False, loc="lower right")
    return sentence_held_out_labelers(folds, wins)


def sentence_held_out_labelers(folds, wins):
    """Agree if the accuracy falls by less than 0.05 outside, and if held-out labelers prefer
    PPO-ptx at most 0.03 less often than training labelers do."""
    inside = judge.mean_ignoring_none(column(folds, "inside"))
    outside = judge.mean_ignoring_none(column(folds, "outside"))
    train = judge.mean_ignoring_none(column(column(wins, "train"), 0))
    held_out = judge.mean_ignoring_none(column(column(wins, "held_out"), 0))

    gap = inside - outside
    words = verdict_of(0 <= gap < 0.05)
    if inside < outside:
        words += ", there is no gap"
    elif gap < 0.014:                       # half of the paper's
        words += ", with a smaller gap"
    if gap < 0.014:
        words += ": our labelers' tastes differ less"
    return (
        "Paper: 72.4 % inside the groups whose rankings were learnt, 69.6 % outside; held-out "
        "labelers prefer InstructGPT as much as the others do. Here "
        f"{inside:.1%} and {outside:.1%} ({words}); PPO-ptx is preferred to SFT in {train:.1%} by "
        f"training, {held_out:.1%} by held-out labelers ({verdict_of(held_out > train - 0.03)}).")


# ================================================================ 7. other labelers
# The paper makes no claim: it cannot change its labelers. Which of our results depend on how they
# are simulated?

# slips: share of demonstrations with a slip. noise: a multiple of the labelers' default noise.
# rounds: rounds of rankings. odd: whether hot, foreign and GPT samples are among the responses.
DIALS = {
    "default": {},
    "no slips": {"slips": 0.0},
    "slips 20 %": {"slips": 0.2},
    "no noise": {"noise": 0.0},
    "twice the noise": {"noise": 2.0},
    "one round": {"rounds": 1},
    "SFT samples only": {"rounds": 1, "odd": False},
}


def dials(lab):
    """PPO's gain over SFT when one setting of the simulated labelers changes, in shorter runs."""
    for seed in lab.seeds:
        for name in list(DIALS)[1:3] if lab.quick else DIALS:
            job = functools.partial(turn, lab, seed, name, **DIALS[name])
            yield f"{name} seed {seed}", job


def turn(lab, seed, name, slips=labeler.SLIPS, noise=1.0, rounds=2, odd=True):
    """Train SFT and PPO in a world that differs from the base run's in its labelers alone.

    Return the gold utility of both, and PPO's win rate according to the usual labelers."""
    config = lab.short(seed, name)

    # The scripts read these two module globals. They are set back even if training stops.
    usual_noise = labeler.NOISE
    usual_sources = reward.response_sources

    def sft_samples_only(settings):
        fixed, _ = usual_sources(settings)
        return fixed[:4], []                # neither the hot samples nor the rotating sources

    try:
        world = other_people(files.FOLDER, Path(config.out) / "world", slips)
        labeler.NOISE = noise * usual_noise
        if not odd:
            reward.response_sources = sft_samples_only
        train_in(lab, config, world, rounds, k=6 if odd else 4)
    finally:
        labeler.NOISE = usual_noise
        reward.response_sources = usual_sources

    generator = generator_of(seed)
    theirs = ppo.answer("sft", load(config, "sft"), lab.rows, generator)
    ours = ppo.answer("ppo", load(config, "ppo"), lab.rows, generator)
    people = get_labelers("held_out")
    wins = labeler.preference(lab.rows, ours, theirs, random.Random(seed), people)
    return {
        "sft": mean_utility(lab.rows, theirs),
        "ppo": mean_utility(lab.rows, ours),
        "win_rate_vs_sft": wins,
    }


def other_people(world, folder, slips):
    """Copy a world to a folder, with demonstrations by the same people but another share of
    slips. Return the folder."""
    copy_world(world, folder)
    rewritten = []
    for row in files.read_jsonl(world / "demonstrations.jsonl", task=dict, labeler=str):
        number = int(row["labeler"].split("-")[1])
        completion = labeler.Labeler(number).demonstrate(row["task"], slips)
        rewritten.append(row | {"completion": completion})
    files.write_jsonl(folder / "demonstrations.jsonl", rewritten)
    return folder


def picture_dials(rows, axes):
    """Draw SFT's and PPO's gold utility by setting, the share of the gap closed, and win rates."""
    known = settings_in(rows)
    names = [name for name in DIALS if name in known]
    places = range(len(names))
    spread(axes[0], places, rows, names, "sft", linestyle="", marker="s", color=ORANGE, label="SFT")
    spread(axes[0], places, rows, names, "ppo", linestyle="", marker="o", color=BLUE, label="PPO")
    for i, name in enumerate(names):
        mean, low, high = mean_and_range(gap_closed(rows, name))
        axes[1].bar(i, mean, color=BLUE, yerr=error_bar(mean, low, high), capsize=2)
        wins = by_seed(rows, name, "win_rate_vs_sft")
        mean, low, high = mean_and_range(column(wins, 0))
        axes[2].errorbar(
            i, mean, yerr=error_bar(mean, low, high), color=BLUE, marker="o", capsize=2)
    axes[0].legend(frameon=False, ncol=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    axes[0].set_ylabel("gold utility")
    axes[1].set_ylabel("share of SFT's gap that PPO closes")
    axes[2].set_ylabel("PPO preferred to SFT, held-out labelers")
    axes[2].axhline(0.5, color=GREY, linestyle=":")
    for axis in axes:
        axis.set_xticks(places, names, rotation=35, ha="right", fontsize=9)
    return sentence_dials(rows, names)


def gap_closed(rows, name):
    """Return the share of SFT's gap to a perfect answerer that PPO closes, one value per seed."""
    pairs = zip(by_seed(rows, name, "sft"), by_seed(rows, name, "ppo"))
    return [(ours - theirs) / (1 - theirs) for theirs, ours in pairs]


def sentence_dials(rows, names):
    """List the share of the gap closed for each setting."""
    shares = []
    for name in names:
        mean, _, _ = mean_and_range(gap_closed(rows, name))
        shares.append(f"{name} {mean:.2f}")
    return (
        "The paper makes no claim here: it cannot turn these dials. Share of SFT's gap that PPO "
        f"closes, by how people are simulated: {', '.join(shares)}.")


# ================================================================ 8. the choice of the baseline
# Paper (C.1): the SFT epoch is chosen by the reward model's score on validation prompts. How much
# does that choice depend on chance?

OTHER_SAMPLES = (101, 102)                  # seeds of the samples for two further choices


def baseline(lab):
    """The SFT epoch that the reward model prefers, chosen three times from different samples."""
    for seed in lab.seeds:
        def job(seed=seed):
            return choose_again(lab, lab.base(seed))
        yield f"seed {seed}", job


def choose_again(lab, config):
    """Choose the SFT epoch twice more and return {"tables", "chosen", "gold"}.

    tables: scores by epoch, first those of the run itself. chosen: one epoch per table. gold: the
    gold utility of each epoch, from four responses to each prompt."""
    proxy = load_reward(config, "reward_1")
    rows = files.read_prompts("valid")
    tables = [model.load_checkpoint(Path(config.out) / "sft.pt")["extra"]["scores"]]
    for seed in OTHER_SAMPLES:
        tables.append(reward.rate_sft_epochs(config, proxy, rows, seed))
    generator = generator_of(config.seed)
    gold = {}
    for name in files.sft_epochs(config):
        policy = load(config, f"sft_epochs/{name}")
        found = []
        for _ in range(4):
            found += utilities(rows, ppo.answer("sft", policy, rows, generator))
        gold[name] = judge.mean_ignoring_none(found)
    chosen = column(column(tables, 0), 0)           # rate_sft_epochs puts the chosen one first
    return {"tables": list(map(sorted, tables)), "chosen": chosen, "gold": gold}


def picture_baseline(rows, axes):
    """Draw scores and gold utility by SFT epoch, one panel per seed. A ring: the epoch chosen."""
    for axis, (name, row) in zip(axes, rows.items()):
        for table, chosen, marker in zip(row["tables"], row["chosen"], "osv"):
            draw_choice(axis, table, chosen, marker)
        gold = axis.twinx()
        epochs = list(map(int, row["gold"]))
        gold.plot(epochs, list(row["gold"].values()), color=ORANGE, linestyle="--", marker="x")
        gold.set_ylabel("gold utility (dashed, crosses)", color=ORANGE)
        axis.xaxis.set_major_locator(plt.MaxNLocator(integer=True))
        axis.set(xlabel=f"SFT epoch, {name}", ylabel="reward model's score")
    return sentence_baseline(rows)


def draw_choice(axis, table, chosen, marker):
    """Draw the scores of one table of (epoch, mean, error), with a ring around the chosen epoch."""
    names, means, errors = zip(*table)
    axis.errorbar(
        list(map(int, names)), means, yerr=errors, color=BLUE, marker=marker, markersize=4,
        linewidth=0.7, capsize=2)
    score = dict(zip(names, means))[chosen]
    axis.plot(int(chosen), score, "o", markersize=13, markerfacecolor="none", color=BLUE)


def sentence_baseline(rows):
    """Report the chosen epochs, and how far the gold utilities of one seed's choices differ."""
    groups = []
    apart = []
    for row in rows.values():
        golds = [row["gold"][epoch] for epoch in row["chosen"]]
        apart.append(max(golds) - min(golds))
        epochs = map(int, row["chosen"])
        groups.append(" ".join(map(str, epochs)))
    return (
        "The paper chooses the SFT epoch by the reward model's score on validation prompts (C.1). "
        f"Here three choices, from samples drawn anew, take epochs {'; '.join(groups)} (a group "
        "per seed); the gold utility of a seed's baselines differs by at most "
        f"{max(apart):.3f}.")


# ================================================================ running them

# Name -> rows, picture, cost. The cost is for one core, with a second experiment on the other of
# two cores, without the three base runs of `python ppo.py` (17 minutes each on two cores).
EXPERIMENTS = {
    "figure_1": (figure_1, picture_figure_1, "3.1 h"),
    "metadata": (metadata, picture_metadata, "1 min"),
    "alignment_tax": (alignment_tax, picture_alignment_tax, "58 min"),
    "kl_sweep": (kl_sweep, picture_kl_sweep, "62 min"),
    "over_optimisation": (over_optimisation, picture_over_optimisation, "80 min"),
    "held_out_labelers": (held_out_labelers, picture_held_out_labelers, "65 min"),
    "dials": (dials, picture_dials, "1.9 h"),
    "baseline": (baseline, picture_baseline, "15 min"),
    # notebooks/findings.py
    "use_cases": (findings.use_cases, findings.picture_use_cases, "5 min"),
    "failures": (findings.failures, findings.picture_failures, "5 min"),
    "shuffled_pairs": (findings.shuffled_pairs, findings.picture_shuffled_pairs, "20 min"),
    "asked_to_be_rude": (findings.asked_to_be_rude, findings.picture_asked_to_be_rude, "40 min"),
    "unseen_kinds": (findings.unseen_kinds, findings.picture_unseen_kinds, "50 min"),
    "nlp_tasks": (findings.nlp_tasks, findings.picture_nlp_tasks, "10 min"),
    "ledger": (findings.ledger, findings.picture_ledger, "5 min"),
}


def run(name, quick=False):
    """Make the rows that results/NAME.json lacks, then the picture. Return the sentence."""
    lab = Lab(quick)
    # Other experiments may run at the same time, but not the same one twice.
    with files.alone_in(lab.runs, f".{name}.lock"):
        measure(lab, name)
    return draw(name, lab.results)


def measure(lab, name):
    """Make the rows that results/NAME.json lacks. Write the file after each of them."""
    path = lab.results / f"{name}.json"
    found = {
        "cores": torch.get_num_threads(),
        "prompts": len(lab.rows),
        "seconds": 0.0,
        "rows": {},
    }
    if path.exists() and not lab.quick:
        found = files.read_json(path)
    rows_of, _, _ = EXPERIMENTS[name]
    for key, job in tqdm(list(rows_of(lab)), desc=name):
        if key in found["rows"]:
            continue
        start = time.time()
        found["rows"][key] = job()
        found["seconds"] += time.time() - start
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, json.dumps(rounded(found), indent=1))


def rounded(x):
    """Return x with all floats rounded to four digits, for small files and readable diffs."""
    if isinstance(x, dict):
        return {key: rounded(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return list(map(rounded, x))
    if isinstance(x, float):
        return float(f"{x:.4g}")
    return x


def draw(name, folder=RESULTS):
    """Draw the picture of one experiment from its JSON file alone. Return its sentence."""
    rows = files.read_json(folder / f"{name}.json")["rows"]
    _, picture, _ = EXPERIMENTS[name]
    fig, axes = plt.subplots(1, 3, figsize=(14, 4))
    sentence = picture(rows, axes)
    fig.tight_layout()
    fig.savefig(folder / f"{name}.png", dpi=110)
    plt.close(fig)
    seeds = sorted({key.rsplit("seed ", 1)[1] for key in rows})
    word = "Seed" if len(seeds) == 1 else "Seeds"
    return f"{sentence} ({word} {', '.join(seeds)}.)"


def redraw(name):
    """Draw the picture of a recorded experiment. Return its sentence, or what is missing."""
    rows_of, _, _ = EXPERIMENTS[name]
    known = files.read_json(RESULTS / f"{name}.json")["rows"]
    for key, _ in rows_of(Lab(quick=False)):
        if key not in known:
            return f"not finished, no picture: run `python -m notebooks.experiments {name}`"
    return draw(name)


def draw_readme():
    """Draw the README's pictures: the three steps, and one episode of the committed PPO-ptx."""
    from notebooks import lesson                # only here, because it needs IPython

    folder = HERE.parent / ".readme"
    prompt = "Give me three foods. The word berries must not be in it."
    config = ppo.Config(out=str(lesson.CHECKPOINTS))
    rows = lesson.trace(prompt, config)
    score = sum(row["reward"] + config.beta * row["kl"] for row in rows)
    plot_three_steps(folder / "three_steps.png")
    plot_episode(rows, prompt, config.beta, score, folder / "episode.png")


def main():
    """Run the command line."""
    costs = []
    for name, (rows_of, _, cost) in EXPERIMENTS.items():
        costs.append(f"    {name:20} about {cost:>6} on one core: {rows_of.__doc__}")
    parser = argparse.ArgumentParser(
        description="\n".join([__doc__, *costs]),
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", choices=[*EXPERIMENTS, "all", "pictures"])
    parser.add_argument(
        "--quick", action="store_true", help="tiny models: shows that the code runs")
    args = parser.parse_args()
    if args.name is None:
        parser.print_help()
    elif args.name == "pictures":
        draw_readme()
        for name in EXPERIMENTS:
            if (RESULTS / f"{name}.json").exists():
                print(f"\n{name}: {redraw(name)}")
    else:
        for name in EXPERIMENTS if args.name == "all" else [args.name]:
            print(f"\n{name}: {run(name, args.quick)}")


if __name__ == "__main__":
    flags.guarded(main)
