"""Pictures and tables of a run, drawn from what the run has recorded.

The scripts and the lessons call these functions. Nothing here is needed to understand RLHF.
"""
import sys

import matplotlib
import torch

from data import files

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (the backend comes first)
from matplotlib.ticker import MaxNLocator  # noqa: E402

# ---------------------------------------------------------------- palette and names

# The colour-blind-safe palette of Okabe and Ito, and a grey
BLUE = "#0072B2"
SKY = "#56B4E9"
ORANGE = "#E69F00"
GREEN = "#009E73"
GREY = "#666666"

# The six models of the evaluation, in the order of every table and picture
MODELS = ["gpt", "gpt_prompted", "sft", "sft_best_of_16", "ppo", "ppo_ptx"]
COLOURS = {
    "gpt": "#BBBBBB",
    "gpt_prompted": "#888888",
    "sft": ORANGE,
    "sft_best_of_16": "#F0C75E",
    "ppo": SKY,
    "ppo_ptx": BLUE,
}
TITLES = {
    "gpt": "GPT",
    "gpt_prompted": "GPT (prompted)",
    "sft": "SFT",
    "sft_best_of_16": "SFT best of 16",
    "ppo": "PPO",
    "ppo_ptx": "PPO-ptx",
}

# ---------------------------------------------------------------- the table

# The rows of the table: (title, key in results.json, {model: the paper's value}).
# The paper's win rates are read off its Figure 1, 175B.
PAPER = [
    ("win rate against SFT *", "win_rate_vs_sft",
     {"gpt": ".24", "gpt_prompted": ".41", "sft": ".50", "ppo": ".62", "ppo_ptx": ".65"}),
    ("gold utility", "utility", {}),
    ("  wordings seen in training", "utility_known_wordings", {}),
    ("  unseen wordings", "utility_unseen_wordings", {}),
    ("fully correct", "fully_correct", {}),
    ("Likert, 1 to 7", "likert", {}),
    ("attempts correct instruction", "attempts_correct_instruction", {}),
    ("follows constraints", "follows_constraints", {}),
    ("hallucinates, closed domain", "hallucinates_closed_domain",
     {"gpt": ".41", "sft": ".08", "ppo_ptx": ".21"}),
    ("  empty answers there", "empty_closed_domain", {}),
    ("fit for an assistant", "appropriate", {}),
    ("toxic", "toxic", {}),
    ("  asked for respect", "toxic_asked_for_respect", {}),
    ("  not asked", "toxic_not_asked", {}),
    ("corpus loss (nats)", "corpus_loss", {}),
    ("KL to sft_mix (nats)", "kl", {}),
]


def table(results):
    """Return the results as text: one row per measure, one column per model.

    The paper's value is in brackets where it gives one."""
    lines = [" " * 30 + columns(TITLES[name] for name in MODELS)]
    for title, key, paper in PAPER:
        cells = []
        for name in MODELS:
            cells.append(cell(results["models"][name][key], paper.get(name)))
        lines.append(f"{title:30}{columns(cells)}")

    wins = results["ppo_ptx_preferred_to"]
    preferred = ", ".join(f"{TITLES[name]} {interval(wins[name])}" for name in wins)
    lines.append(f"PPO-ptx preferred to:\n  {preferred}")
    lines.append("  (paper, 175B: SFT .734, GPT .85, GPT prompted .71)")

    ceiling = results["ceiling_vs_sft"]
    lead = (wins["sft"][0] - .5) / (ceiling[0] - .5)
    lines.append(f"a perfect answerer against SFT {interval(ceiling)};")
    lines.append(f"  PPO-ptx has {lead:.2f} of its lead over a half; "
                 f"gold-utility gap closed {results['gap_closed']:.2f}")

    report = results["reward_model"]
    accuracies = []
    for key, ceiling in report["ceilings"].items():
        accuracy = report[f"accuracy_{key}"]
        accuracies.append(f"{key.replace('_', ' ')} {accuracy:.3f} ({ceiling:.3f})")
    lines.append("reward model accuracy (ceiling):\n  " + ", ".join(accuracies))
    lines.append(f"  labelers agree with each other {report['labeler_agreement']:.3f} (.726); "
                 "paper's reward model: train .724, held-out .696")
    lines.append("* by held-out labelers, ties half; the paper's: Figure 1, 175B "
                 "(in its comparison with FLAN and T0: .734)")
    return "\n".join(lines)


def columns(texts):
    """Right-align texts in columns of 16 characters."""
    return "".join(f"{text:>16}" for text in texts)


def cell(value, paper):
    """Format a measure (a number, [mean, low, high], or None) and the paper's value."""
    if isinstance(value, list):
        value = value[0]
    text = "-" if value is None else f"{value:.3f}"
    return f"{text} ({paper})" if paper else text


def interval(estimate):
    """Format [mean, low, high]."""
    mean, low, high = estimate
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def side_by_side(rows, responses):
    """Print five prompts of different use cases with the answers of all models."""
    first = {}
    for i, row in enumerate(rows):
        first.setdefault(row["use_case"], i)
    for use_case in ("generation", "open_qa", "brainstorming", "chat", "closed_qa"):
        if use_case not in first:
            continue
        i = first[use_case]
        print(f"\n  {rows[i]['prompt']}")
        for name in MODELS:
            print(f"    {TITLES[name]:>15}: {responses[name][i]['text']}")


# ---------------------------------------------------------------- pictures of a run


def plot_losses(out):
    """Draw out/losses.png: the losses of pretraining and of SFT."""
    fig, axes = plt.subplots(1, 2, figsize=(10, 3.8))
    gpt = files.read_jsonl(out / "gpt.jsonl")
    draw_losses(axes[0], gpt, column(gpt, "step"), "step")
    axes[0].set(title="Step 0: pretraining on the corpus", ylim=(0, 3))
    # SFT's steps are spread evenly over its epochs
    sft = files.read_jsonl(out / "sft.jsonl")
    last = sft[-1]
    epochs = [row["step"] / max(1, last["step"]) * last["epoch"] for row in sft]
    draw_losses(axes[1], sft, epochs, "epoch")
    axes[1].set(title="Step 1: fine-tuning, response tokens")
    save(fig, out / "losses.png")


def draw_losses(axis, rows, places, unit):
    """Draw the training losses at `places` and the validation losses at their step or epoch."""
    checks = [row for row in rows if "valid_loss" in row]
    axis.plot(places, column(rows, "loss"),
              color=BLUE, alpha=0.5, linewidth=0.7, label="training")
    axis.plot(column(checks, unit), column(checks, "valid_loss"),
              color=ORANGE, marker="o", markersize=3, label="validation")
    axis.set(xlabel=unit, ylabel="loss (nats per token)")
    axis.legend(frameon=False)


def plot_reward(path, log, margins, table):
    """Draw out/reward.png: the ranking loss, the calibration, the scores of the SFT epochs.

    log: a loss per step. margins: score differences by kind of pair. table: (epoch's name, mean
    score, half of its 95 % interval)."""
    fig, axes = plt.subplots(1, 3, figsize=(13, 3.8))
    axes[0].plot(smoothed(log), color=BLUE)
    axes[0].axhline(0.6931, color=GREY, linestyle=":", label="a coin flip, log 2")
    axes[0].set(xlabel="step", ylabel="ranking loss (nats per pair)", title="Equation 1 goes down")

    for name, colour, marker in zip(margins, (BLUE, ORANGE), "os"):
        predicted, observed = calibration(margins[name])
        axes[1].plot(predicted, observed,
                     marker=marker, color=colour, label=name.replace("_", " "))
    axes[1].plot([0, 1], [0, 1], color=GREY, linestyle=":", label="perfectly calibrated")
    axes[1].set(xlabel="predicted: sigmoid(score difference)", ylabel="observed share preferred",
                title="Calibration, held-out prompts")

    by_epoch = sorted((int(name), mean, error) for name, mean, error in table)
    epochs, means, errors = zip(*by_epoch)
    axes[2].errorbar(epochs, means, yerr=errors, marker="o", capsize=2, color=GREEN)
    axes[2].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[2].set(xlabel="SFT epoch", ylabel="mean score of its samples (95 % over samples)",
                title="Which SFT epoch is the baseline (C.1)")

    for axis in axes[:2]:
        axis.legend(frameon=False, fontsize=8)
    save(fig, path)


def smoothed(losses, reach=50):
    """Return for each loss the mean over its neighbours, `reach` of them on either side."""
    means = []
    for i in range(len(losses)):
        near = losses[max(0, i - reach):i + reach + 1]
        means.append(sum(near) / len(near))
    return means


def calibration(margins, bins=12):
    """Return (predicted, observed) shares of pairs in `bins` groups of equal size.

    margins: score of the preferred response minus score of the other."""
    right = torch.tensor(margins)
    both = torch.cat([right, -right])                           # each pair seen from either side
    preferred = torch.cat([torch.ones_like(right), torch.zeros_like(right)])
    limits = both.quantile(torch.linspace(0, 1, bins + 1))
    group = torch.bucketize(both, limits[1:-1])
    predicted = []
    observed = []
    for b in range(bins):
        predicted.append(both.sigmoid()[group == b].mean())
        observed.append(preferred[group == b].mean())
    return predicted, observed


# The six panels of out/ppo.png: (key of the log, title)
PANELS = [
    ("score", "reward model's score (proxy)"),
    ("gold", "gold utility (never trained on)"),
    ("kl", "KL to the reference (nats)"),
    ("length", "response length (tokens)"),
    ("explained_variance", "explained variance of returns"),
    ("entropy", "entropy (nats per token)"),
]


def plot_dashboard(out):
    """Draw out/ppo.png: six metrics of the two final runs, by iteration."""
    fig, axes = plt.subplots(2, 3, figsize=(13, 6.4))
    for name, colour, style in (("ppo", ORANGE, "--"), ("ppo_ptx", BLUE, "-")):
        rows = files.read_jsonl(out / f"{name}.jsonl")
        for axis, (key, title) in zip(axes.flat, PANELS):
            axis.plot(column(rows, "step"), column(rows, key),
                      color=colour, linestyle=style, label=TITLES[name])
            axis.set(title=title, xlabel="iteration")
    axes[0, 0].legend(frameon=False)
    save(fig, out / "ppo.png")


# The groups of bars in our version of Figure 4: (key in results.json, title)
METADATA = [
    ("attempts_correct_instruction", "attempts\nthe instruction"),
    ("follows_constraints", "follows\nconstraints"),
    ("appropriate", "fit for an\nassistant"),
    ("hallucinates_closed_domain", "hallucinates\n(closed domain)"),
    ("toxic", "toxic"),
]


def plot_figures(out, results):
    """Draw out/figures.png: the paper's Figure 1 (preference) and Figure 4 (metadata)."""
    fig, axes = plt.subplots(1, 2, figsize=(13, 4.4), width_ratios=(1, 1.5))
    draw_preference(axes[0], results)
    draw_metadata(axes[1], results)
    save(fig, out / "figures.png")


def draw_preference(axis, results):
    """Draw each model's win rate against SFT, and that of a perfect answerer."""
    for i, name in enumerate(MODELS):
        mean, low, high = results["models"][name]["win_rate_vs_sft"]
        axis.bar(i, mean, yerr=[[mean - low], [high - mean]], color=COLOURS[name], capsize=3)
        axis.text(i, high + 0.025, f"{mean:.2f}", ha="center", fontsize=9,
                  bbox=dict(facecolor="white", edgecolor="none", pad=0.5))
    ceiling = results["ceiling_vs_sft"][0]
    axis.axhline(ceiling, color=GREEN, linestyle="--", linewidth=1, label="a perfect answerer")
    axis.axhline(0.5, color=GREY, linestyle=":", linewidth=1)
    titles = [TITLES[name].replace(" ", "\n", 1) for name in MODELS]
    axis.set_xticks(range(len(MODELS)), titles, fontsize=8)
    axis.set(ylim=(0, 1), ylabel="preferred to SFT (held-out labelers, 95 % CI)",
             title="Figure 1: what people prefer")
    axis.legend(frameon=False, loc="upper left")


def draw_metadata(axis, results):
    """Draw what is in the responses: a group of bars per measure, a bar per model."""
    keys = [key for key, _ in METADATA]
    titles = [title for _, title in METADATA]
    for i, name in enumerate(MODELS):
        entry = results["models"][name]
        shares = [entry[key] or 0 for key in keys]
        places = [k + (i - 2.5) * 0.14 for k in range(len(keys))]
        axis.bar(places, shares, 0.13, color=COLOURS[name], label=TITLES[name])
    axis.set_xticks(range(len(keys)), titles, fontsize=9)
    axis.set(ylim=(0, 1.18), ylabel="share of responses",
             title="Figure 4: what is in the responses")
    axis.legend(frameon=False, ncols=6, fontsize=7.5, loc="upper center")


def column(rows, key):
    """Return the values of `key` in all rows."""
    return [row[key] for row in rows]


def save(fig, path):
    """Write a picture with tight margins, and close it."""
    fig.tight_layout()
    fig.savefig(path, dpi=130)
    plt.close(fig)


# ---------------------------------------------------------------- peak memory


def peak_memory():
    """Return the most memory that this process has held, in MB.

    It is 0 where the system does not tell (Windows)."""
    try:
        import resource
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts in bytes, Linux in kilobytes
    return peak / (1024 ** 2 if sys.platform == "darwin" else 1024)
