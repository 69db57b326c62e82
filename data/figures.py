"""Pictures and tables of a run, drawn from what the run has recorded.

The scripts and the lessons call these functions. Nothing here is needed to understand RLHF.
"""
import sys
import textwrap

import matplotlib
import torch
from tqdm import tqdm

from data import files

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (the backend comes first)
from matplotlib.patches import FancyBboxPatch, Rectangle  # noqa: E402
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
# Whose weights write the answers of each model
CHECKPOINTS = {
    "gpt": "gpt",
    "gpt_prompted": "gpt",
    "sft": "sft",
    "sft_best_of_16": "sft",
    "sft_mix": "sft_mix",
    "ppo": "ppo",
    "ppo_ptx": "ppo_ptx",
}
COLOURS = {
    "gpt": "#BBBBBB",
    "gpt_prompted": "#888888",
    "sft": ORANGE,
    "sft_best_of_16": "#F0C75E",
    "sft_mix": GREEN,
    "ppo": SKY,
    "ppo_ptx": BLUE,
}
TITLES = {
    "gpt": "GPT",
    "gpt_prompted": "GPT (prompted)",
    "sft": "SFT",
    "sft_best_of_16": "SFT best of 16",
    "sft_mix": "reference",
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
    ("reward model's score", "score", {}),
]
# Below the table of a run with --data
UNKNOWN = """
Nobody knows the truth about these texts. The score is the reward model's own opinion of the answers
to the evaluation prompts. A higher score means that a model has found what the reward model likes.
It does not mean that the answers are better: read them above, and let people compare them."""


def table(results):
    """Return the results as text: one row per measure, one column per model.

    The paper's value is in brackets where it gives one."""
    names = list(results["models"])
    lines = [" " * 30 + columns(TITLES[name] for name in names)]
    for title, key, paper in PAPER:
        if key not in results["models"][names[0]]:
            continue
        cells = []
        for name in names:
            cells.append(cell(results["models"][name][key], paper.get(name)))
        lines.append(f"{title:30}{columns(cells)}")
    if "ceiling_vs_sft" not in results:
        return "\n".join(lines) + UNKNOWN

    wins = results["ppo_ptx_preferred_to"]
    preferred = ", ".join(f"{TITLES[name]} {interval(wins[name])}" for name in wins)
    lines.append(f"PPO-ptx preferred to:\n  {preferred}")
    lines.append("  (paper, 175B: SFT .734, GPT .85, GPT prompted .71)")

    ceiling = results["ceiling_vs_sft"]
    lead = (wins["sft"][0] - .5) / (ceiling[0] - .5)
    lines.append(f"a perfect answerer against SFT {interval(ceiling)};")
    lines.append(f"  PPO-ptx has {lead:.2f} of its lead over a half; "
                 f"gold-utility gap closed {results['gap_closed']:.2f}")
    if "gain" in results:
        lines.append(f"gold utility of PPO-ptx above the reference {interval(results['gain'])}")

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
        first.setdefault(row.get("use_case", i), i)         # of the user's own rows, each
    use_cases = ("generation", "open_qa", "brainstorming", "chat", "closed_qa", *range(5))
    for i in [first[use_case] for use_case in use_cases if use_case in first]:
        print(f"\n  {rows[i]['prompt']}")
        for name, theirs in responses.items():
            text = theirs[i]["text"].replace("\n", "\n" + 21 * " ")
            print(f"    {TITLES[name]:>15}: {text}")


def show_progress(bar, with_samples, stats, prompts, batch):
    """Update the progress bar. Print two episodes as "[score] prompt -> response"."""
    shown = {key: f"{stats[key]:.2f}" for key in ("score", "gold", "kl") if key in stats}
    bar.set_postfix(shown)
    for i in range(2 if with_samples else 0):
        score, text = batch["scores"][i].item(), batch["answers"][i]["text"]
        tqdm.write(f"    [{score:+.2f}] {prompts[i]['prompt']} -> {text}")


def print_policy(path, seconds, stats):
    """Print what step 3 has made. stats: of its last rollout."""
    gold = f"gold {stats['gold']:.3f}, " if "gold" in stats else ""
    print(f"made {path} in {seconds:.0f} s; its last rollout: "
          f"score {stats['score']:.2f}, {gold}KL {stats['kl']:.2f}\n")


def print_accuracies(report):
    """Print the accuracies of a reward model in one line. report: see `evaluate_reward_model`."""
    accuracies = {key.replace("_", " "): x for key, x in report.items() if key != "ceilings"}
    print("    " + ", ".join(f"{name} {x:.3f}" for name, x in accuracies.items()))


def print_run(out, results, prompts, responses):
    """Print five prompts answered by all models, the table of a run, and what it has made."""
    side_by_side(prompts, responses)
    world = f" --data {files.FOLDER}" if files.OWN else ""
    print(f"\n{table(results)}\n\nmade {out}/results.json, losses.png, reward.png, ppo.png and "
          f"figures.png; {results['seconds']['total']:.0f} s in all, peak memory "
          f"{results['peak_mb']:.0f} MB. Next: python model.py{world} --chat {out}/ppo_ptx.pt")


# ---------------------------------------------------------------- pictures of a run


def plot_run(out, results):
    """Draw losses.png, ppo.png and figures.png of a finished run."""
    plot_losses(out)
    plot_dashboard(out)
    plot_figures(out, results)


def plot_losses(out):
    """Draw out/losses.png: the losses of pretraining and of SFT."""
    fig, axes = plt.subplots(1, 2, figsize=(10, 3.8))
    if (out / "gpt.jsonl").exists():
        gpt = files.read_jsonl(out / "gpt.jsonl")
        draw_losses(axes[0], gpt, column(gpt, "step"), "step")
        top = max(3, 1.3 * gpt[-1]["valid_loss"])               # the first steps lie above
        axes[0].set(title="Step 0: pretraining on the corpus", ylim=(0, top))
    else:                                                       # --quick borrows the base model
        axes[0].axis("off")
        axes[0].text(0.5, 0.5, "Step 0: the base model\nof notebooks/checkpoints", ha="center")
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
    axes[2].set(xlabel="SFT epoch", ylabel="mean score of its samples (95 % CI)",
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
# With --data
WITHOUT_GOLD = [PANELS[0], *PANELS[2:], ("ended", "responses that end (share)")]


def plot_dashboard(out):
    """Draw out/ppo.png: six metrics of the two final runs, by iteration."""
    fig, axes = plt.subplots(2, 3, figsize=(13, 6.4))
    for name, colour, style in (("ppo", ORANGE, "--"), ("ppo_ptx", BLUE, "-")):
        if not (out / f"{name}.jsonl").exists():                # --quick
            continue
        rows = files.read_jsonl(out / f"{name}.jsonl")
        panels = PANELS
        if "gold" not in rows[0]:                               # --data
            panels = WITHOUT_GOLD
        for axis, (key, title) in zip(axes.flat, panels):
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
    """Draw out/figures.png: the paper's Figure 1 (preference) and Figure 4 (metadata).

    With --data, nobody compares answers, and it shows the reward model's scores."""
    if "ceiling_vs_sft" not in results:
        return draw_scores(out, results)
    fig, axes = plt.subplots(1, 2, figsize=(13, 4.4), width_ratios=(1, 1.5))
    draw_preference(axes[0], results)
    draw_metadata(axes[1], results)
    save(fig, out / "figures.png")


def draw_scores(out, results):
    """Draw the mean score that the reward model gives to each model's answers, with --data."""
    fig, axis = plt.subplots(figsize=(6.5, 4.4))
    names = list(results["models"])
    for i, name in enumerate(names):
        mean, low, high = results["models"][name]["score"]
        axis.bar(i, mean, yerr=[[mean - low], [high - mean]], color=COLOURS[name], capsize=3)
    axis.axhline(0, color=GREY, linestyle=":", linewidth=1)
    axis.set_xticks(range(len(names)), [TITLES[name].replace(" ", "\n", 1) for name in names])
    axis.set(ylabel="score (95 % CI, 0: demonstrations)",
             title="What the reward model thinks of the answers")
    save(fig, out / "figures.png")


def draw_preference(axis, results):
    """Draw each model's win rate against SFT, and that of a perfect answerer."""
    names = list(results["models"])
    for i, name in enumerate(names):
        mean, low, high = results["models"][name]["win_rate_vs_sft"]
        axis.bar(i, mean, yerr=[[mean - low], [high - mean]], color=COLOURS[name], capsize=3)
        axis.text(i, high + 0.025, f"{mean:.2f}", ha="center", fontsize=9,
                  bbox=dict(facecolor="white", edgecolor="none", pad=0.5))
    ceiling = results["ceiling_vs_sft"][0]
    axis.axhline(ceiling, color=GREEN, linestyle="--", linewidth=1, label="a perfect answerer")
    axis.axhline(0.5, color=GREY, linestyle=":", linewidth=1)
    titles = [TITLES[name].replace(" ", "\n", 1) for name in names]
    axis.set_xticks(range(len(names)), titles, fontsize=8)
    axis.set(ylim=(0, 1), ylabel="preferred to SFT (held-out labelers, 95 % CI)",
             title="Figure 1: what people prefer")
    axis.legend(frameon=False, loc="upper left")


def draw_metadata(axis, results):
    """Draw what is in the responses: a group of bars per measure, a bar per model."""
    keys = [key for key, _ in METADATA]
    titles = [title for _, title in METADATA]
    for i, name in enumerate(results["models"]):
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


# ---------------------------------------------------------------- pictures of the README


def canvas(width, height):
    """Return a figure and an axis that measures inches from its upper left corner."""
    fig = plt.figure(figsize=(width, height), facecolor="white")
    axis = fig.add_axes([0, 0, 1, 1])
    axis.set(xlim=(0, width), ylim=(height, 0))
    axis.axis("off")
    return fig, axis


# The rows of the strip: (key of a row of lesson.trace, name, what it is)
QUANTITIES = [
    ("logprob", "log-prob, policy", "log π of the sampled token"),
    ("ref_logprob", "log-prob, reference", "log π$_{ref}$ of the same token"),
    ("kl", "KL", "log π − log π$_{ref}$"),
    ("reward", "reward", "−β × KL (last: + score)"),
    ("value", "value", "future reward, before it"),
    ("advantage", "advantage", "better or worse than expected"),
]
MARGIN = 2.0            # inches to the left of the strip, for the names
TOKEN = 0.6             # inches per token
BAR = 0.5               # inches of the longest bars of a row


def plot_episode(rows, prompt, beta, score, path=None):
    """Draw one episode as a strip of tokens, with six numbers and bars below each token.

    rows: what lesson.trace returns, a dict per token. path: the file to write; None shows the
    picture in a notebook. All bars have one scale."""
    width = MARGIN + TOKEN * len(rows) + TOKEN + 0.2
    headline = textwrap.fill(f"Prompt: {prompt}", int(width * 10))
    top = 0.72 + 0.22 * headline.count("\n")
    places, scale, bottom = lay_out(rows, top + 0.5)
    fig, axis = canvas(width, bottom + 0.3)
    axis.text(0.12, 0.12, headline, va="top", fontsize=11, weight="bold", linespacing=1.3,
              parse_math=False)
    axis.text(0.12, top - 0.13, f"β = {beta:g}, score of the reward model {signed(score)}",
              fontsize=10)
    axis.text(0.12, top + 0.24, "response, token by token", va="center", fontsize=8, color=GREY)
    axis.text(0.12, bottom + 0.1, "All bars have one scale: up is positive, down is negative. "
              "Hatched: the reward that holds the score.", va="center", fontsize=8, color=GREY)
    axis.text(MARGIN + TOKEN * (len(rows) + 0.5), top + 0.24, "sum",
              ha="center", va="center", fontsize=9, color=GREY)
    for i, row in enumerate(rows):
        draw_token(axis, MARGIN + TOKEN * i, top, row["token"])
    for (key, name, meaning), (y, zero) in zip(QUANTITIES, places):
        axis.plot([0.12, width - 0.12], [y, y], color="#CCCCCC", linewidth=0.8)
        axis.text(0.12, y + 0.14, name, va="center", fontsize=10)
        axis.text(0.12, y + 0.32, meaning, va="center", fontsize=8, color=GREY)
        draw_bars(axis, column(rows, key), y, zero, scale, key == "reward")
        if key in ("logprob", "ref_logprob", "kl", "reward"):
            draw_number(axis, len(rows), y, sum(column(rows, key)))
    if path is None:
        plt.show()
    else:
        fig.savefig(path, dpi=200)
        plt.close(fig)


def lay_out(rows, y):
    """Return (where each row of the strip begins and has its zero line, scale, end), in inches."""
    ranges = []
    for key, _, _ in QUANTITIES:
        values = column(rows, key)
        ranges.append((min(0, *values), max(0, *values)))
    scale = BAR / max(high - low for low, high in ranges)           # inches per nat or point
    places = []
    for low, high in ranges:
        zero = y + 0.28 + scale * high
        places.append((y, zero))
        y = max(zero - scale * low, y + 0.4) + 0.12
    return places, scale, y


def draw_token(axis, x, y, token):
    """Draw a token as a box of the strip."""
    text = token.strip(" ").replace("\n", "\\n").replace("<|endoftext|>", "<end>")
    frame = FancyBboxPatch((x + 0.05, y + 0.1), TOKEN - 0.1, 0.28, facecolor="#F0F0F0",
                           edgecolor=GREY, linewidth=0.8, boxstyle="round,pad=0,rounding_size=0.05")
    axis.add_patch(frame)
    axis.text(x + TOKEN / 2, y + 0.24, text, ha="center", va="center", parse_math=False,
              fontsize=min(9, 60 / max(1, len(text))))


def draw_bars(axis, values, y, zero, scale, with_score):
    """Draw a number and a bar per token; the last bar is hatched if it holds the score."""
    axis.plot([MARGIN, MARGIN + TOKEN * len(values)], [zero, zero], color=GREY, linewidth=0.8)
    for i, value in enumerate(values):
        draw_number(axis, i, y, value)
        hatch = "////" if with_score and i == len(values) - 1 else None
        axis.add_patch(Rectangle(
            (MARGIN + TOKEN * (i + 0.22), zero), TOKEN * 0.56, -scale * value, hatch=hatch,
            facecolor=BLUE if value > 0 else ORANGE, edgecolor="black", linewidth=0.6))


def draw_number(axis, i, y, value):
    """Write a number into column i of the strip, in grey where it rounds to zero."""
    text = signed(value)
    axis.text(MARGIN + TOKEN * (i + 0.5), y + 0.14, text, ha="center", va="center", fontsize=9.5,
              color=GREY if text == "0.00" else "black")


def signed(value):
    """Format a number with its sign and two decimals; zero has no sign."""
    text = f"{value:+.2f}".replace("-", "−")
    return "0.00" if text[1:] == "0.00" else text


WIDTH = 9.6
COLUMN = [0.42, 2.69, 4.96, 7.23]       # left edges of the four columns
WIDE = 1.95                             # width of a box in one column
FAR = COLUMN[3] + WIDE                  # right edge of the last column

# How a box of each kind looks
KINDS = {
    "data": dict(facecolor="white", edgecolor=GREY),
    "script": dict(facecolor="#333333", edgecolor="#333333"),
    "weights": dict(facecolor="#DCEBF7", edgecolor=BLUE, boxstyle="round,pad=0,rounding_size=0.12"),
    "step": dict(facecolor="#F0F0F0", edgecolor=GREY),
    "learns": dict(facecolor="#FBE6B8", edgecolor="black", linewidth=2.2),
    "frozen": dict(facecolor="#F4F4F4", edgecolor=GREY, linewidth=1.4, linestyle="--"),
}
# Outline and strip tell networks that learn from frozen ones without colour
STRIPS = {
    "learns": dict(facecolor=ORANGE),
    "frozen": dict(facecolor="white", hatch="////"),
}

# Boxes of the upper half, the steps: (kind, x, y, width, height, name, text)
STEPS = [
    ("data", COLUMN[0], 0.85, WIDE, 0.52, "data/corpus.txt", "the web of the toy town"),
    ("data", COLUMN[1], 0.85, WIDE, 0.52, "data/demonstrations.jsonl",
     "answers written by labelers"),
    ("data", COLUMN[2], 0.85, WIDE, 0.52, "out/rankings.jsonl", "samples ranked by labelers"),
    ("data", COLUMN[3], 0.85, WIDE, 0.52, "data/prompts_rl.jsonl", "prompts without answers"),
    ("script", COLUMN[0], 1.62, WIDE, 0.32, "model.py", ""),
    ("script", COLUMN[1], 1.62, WIDE, 0.32, "sft.py", ""),
    ("script", COLUMN[2], 1.62, WIDE, 0.32, "reward.py", ""),
    ("script", COLUMN[3], 1.62, WIDE, 0.32, "ppo.py", ""),
    ("weights", COLUMN[0], 2.3, WIDE, 0.52, "out/gpt.pt", "base model"),
    ("weights", COLUMN[1], 2.3, WIDE, 0.52, "out/sft_epochs/*.pt", "one model per epoch"),
    ("weights", COLUMN[1], 2.94, WIDE, 0.84, "out/sft_mix.pt",
     "reference: SFT with\n10 % pretraining data;\nPPO starts from it"),
    ("weights", COLUMN[2], 2.3, WIDE, 0.52, "out/reward_1.pt", "reward model, from gpt.pt"),
    ("weights", COLUMN[2], 2.94, WIDE, 0.84, "out/sft.pt",
     "SFT baseline: the epoch\nwhose samples the reward\nmodel scores best"),
    ("weights", COLUMN[3], 2.3, WIDE, 0.52, "out/ppo_1.pt", "policy, from sft_mix.pt"),
    ("weights", COLUMN[2], 4.3, WIDE, 0.7, "out/reward.pt",
     "reward_1.pt trained further,\non rankings of both rounds"),
    ("weights", COLUMN[3], 4.3, WIDE, 0.7, "out/ppo.pt, ppo_ptx.pt",
     "from sft_mix.pt, without\nand with the pretraining mix"),
]
HEADINGS = [
    "Step 0: base model",
    "Step 1: fine-tuning (SFT)",
    "Step 2: reward model",
    "Step 3: PPO",
]

# Boxes of the lower half, one iteration of PPO
ITERATION = [
    ("data", COLUMN[0], 5.85, WIDE, 0.52, "prompts", "data/prompts_rl.jsonl"),
    ("data", COLUMN[1], 5.85, FAR - COLUMN[1], 0.52, "responses",
     "sampled from the policy; all four networks read prompt and response"),
    ("learns", COLUMN[0], 6.75, WIDE, 0.72, "policy", "learns\nstarts from sft_mix.pt"),
    ("frozen", COLUMN[1], 6.75, WIDE, 0.72, "reference", "frozen\nsft_mix.pt"),
    ("frozen", COLUMN[2], 6.75, WIDE, 0.72, "reward model", "frozen\nreward.pt"),
    ("learns", COLUMN[3], 6.75, WIDE, 0.72, "value network", "learns\nstarts from reward.pt"),
    ("step", COLUMN[0], 7.95, COLUMN[1] + WIDE - COLUMN[0], 0.7, "KL penalty, per token",
     "β × (log π − log π$_{ref}$)"),
    ("step", COLUMN[2], 7.95, WIDE, 0.7, "rewards, per token",
     "minus the KL penalty; plus\nthe score on the last token"),
    ("step", COLUMN[3], 7.95, WIDE, 0.7, "advantages, per token",
     "rewards compared with\nthe values (GAE)"),
    ("step", COLUMN[0], 9.1, WIDE, 0.7, "pretraining mix",
     "γ$_{ptx}$ × loss on the corpus\n(PPO-ptx only)"),
    ("step", COLUMN[1], 9.1, COLUMN[2] + WIDE - COLUMN[1], 0.7, "policy loss",
     "tokens with a positive advantage become likelier,\nothers less likely; clipped"),
    ("step", COLUMN[3], 9.1, WIDE, 0.7, "value loss",
     "values move towards\nreturns (value + advantage)"),
]

# What the four networks put out
OUTPUTS = [
    "log π,\none per token",
    "log π$_{ref}$,\none per token",
    "score,\none per response",
    "value,\none per token",
]


def plot_three_steps(path):
    """Draw the three steps with their files, and below them one iteration of PPO."""
    fig, axis = canvas(WIDTH, 9.95)
    draw_steps(axis)
    axis.plot([0.2, WIDTH - 0.2], [5.25, 5.25], color="#CCCCCC", linewidth=0.8)
    draw_iteration(axis)
    fig.savefig(path, dpi=200)
    plt.close(fig)


def draw_steps(axis):
    """Draw which script makes which file from which."""
    axis.text(0.2, 0.27, "The three steps and their files",
              va="center", fontsize=12, weight="bold")
    for y, height, name in ((2.2, 1.7, "round 1"), (4.2, 0.9, "round 2")):
        band = Rectangle((COLUMN[2] - 0.1, y), FAR - COLUMN[2] + 0.2, height, facecolor="#F7F7F7",
                         edgecolor=GREY, linestyle=":")
        axis.add_patch(band)
        axis.text(FAR + 0.2, y + height / 2, name, rotation=90,
                  ha="center", va="center", fontsize=9)
    for title, x in zip(HEADINGS, COLUMN):
        middle = x + WIDE / 2
        axis.text(middle, 0.65, title, ha="center", va="center", fontsize=10, weight="bold")
        arrow(axis, (middle, 1.37), (middle, 1.62))
        arrow(axis, (middle, 1.94), (middle, 2.3))
    for box in STEPS:
        draw_box(axis, *box)
    for i in (0, 2):
        arrow(axis, (COLUMN[i] + WIDE, 2.56), (COLUMN[i + 1], 2.56))

    # Samples of the SFT models are ranked in round 1, those of the first policy in round 2
    gutter = COLUMN[2] - 0.2
    for y in (2.56, 3.36):
        arrow(axis, (COLUMN[1] + WIDE, y), (gutter, y), (gutter, 1.11), (COLUMN[2], 1.11))
    left = COLUMN[3] + 0.4
    middle = COLUMN[2] + WIDE / 2
    arrow(axis, (left, 2.82), (left, 4.05), (middle, 4.05), (middle, 4.3))
    axis.text(left + 0.12, 3.3, "its samples are\nranked, too", va="center", fontsize=8.5)
    arrow(axis, (COLUMN[2] + WIDE, 4.65), (COLUMN[3], 4.65))

    # What the boxes mean
    draw_box(axis, "data", COLUMN[0], 4.3, 0.6, 0.25, "text", "")
    draw_box(axis, "script", COLUMN[0] + 0.7, 4.3, 0.6, 0.25, "script", "")
    draw_box(axis, "weights", COLUMN[0] + 1.4, 4.3, 0.75, 0.25, "weights", "")
    arrow(axis, (COLUMN[0] + 2.3, 4.42), (COLUMN[0] + 2.65, 4.42))
    axis.text(COLUMN[0] + 2.72, 4.42, "is used for", va="center", fontsize=8.5)
    axis.text(COLUMN[0], 4.78, "python ppo.py makes whatever is missing, in this order.",
              va="center", fontsize=8.5)


def draw_iteration(axis):
    """Draw the four networks of step 3 and what flows between them."""
    axis.text(0.2, 5.52, "Step 3, round 2: one iteration of PPO and its four networks",
              va="center", fontsize=12, weight="bold")
    for box in ITERATION:
        draw_box(axis, *box)

    # 1. The policy answers the prompts; the other networks read its responses
    middle = [x + WIDE / 2 for x in COLUMN]
    gutter = COLUMN[1] - 0.16
    for x in middle:
        arrow(axis, (x, 6.37), (x, 6.75))
    arrow(axis, (COLUMN[0] + WIDE, 7.11), (gutter, 7.11), (gutter, 6.11), (COLUMN[1], 6.11))

    # 2. What the networks put out becomes rewards, and these become advantages
    for x, label in zip(middle, OUTPUTS):
        arrow(axis, (x, 7.47), (x, 7.95))
        axis.text(x + 0.08, 7.71, label, va="center", fontsize=8.5)
    arrow(axis, (COLUMN[1] + WIDE, 8.3), (COLUMN[2], 8.3))
    arrow(axis, (COLUMN[2] + WIDE, 8.3), (COLUMN[3], 8.3))

    # 3. The losses update the two networks that learn
    left = COLUMN[3] + 0.4
    under = COLUMN[2] - 0.16
    arrow(axis, (left, 8.65), (left, 8.87), (under, 8.87), (under, 9.1))
    arrow(axis, (middle[3], 8.65), (middle[3], 9.1))
    arrow(axis, (COLUMN[1], 9.45), (0.2, 9.45), (0.2, 7.11), (COLUMN[0], 7.11))
    arrow(axis, (FAR, 9.45), (FAR + 0.2, 9.45), (FAR + 0.2, 7.11), (FAR, 7.11))
    axis.text(gutter, 9.45, "+", ha="center", va="center", fontsize=10,
              bbox=dict(boxstyle="circle,pad=0.1", facecolor="white", edgecolor="black"))
    for x in (0.1, WIDTH - 0.1):
        axis.text(x, 8.3, "update", rotation=90, ha="center", va="center", fontsize=8.5)


def draw_box(axis, kind, x, y, width, height, name, text):
    """Draw a box of one of KINDS with its name, and the lines of its text below."""
    style = {"boxstyle": "square,pad=0", "linewidth": 1} | KINDS[kind]
    axis.add_patch(FancyBboxPatch((x, y), width, height, zorder=2, **style))
    middle = x + width / 2
    if kind in STRIPS:
        middle += 0.09
        axis.add_patch(Rectangle((x + 0.04, y + 0.04), 0.14, height - 0.08, edgecolor=GREY,
                                 linewidth=0.5, zorder=3, **STRIPS[kind]))
    lines = text.splitlines()
    first = y + (height - 0.17 * len(lines)) / 2
    weight = "normal" if kind in ("data", "weights") else "bold"
    colour = "white" if kind == "script" else "black"
    axis.text(middle, first, name, ha="center", va="center", fontsize=9,
              weight=weight, color=colour, zorder=4)
    for i, line in enumerate(lines, 1):
        axis.text(middle, first + 0.17 * i, line, ha="center", va="center", fontsize=8.5, zorder=4)


def arrow(axis, *points):
    """Draw a line through the points, with an arrowhead at the last."""
    axis.plot(*zip(*points[:-1]), color="black", linewidth=1.1, zorder=1, solid_capstyle="butt")
    head = dict(arrowstyle="-|>", color="black", linewidth=1.1, shrinkA=0, shrinkB=0,
                mutation_scale=9)
    axis.annotate("", points[-1], points[-2], zorder=5, arrowprops=head)


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
