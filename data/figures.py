"""Pictures and tables of a run, drawn from what it has recorded. The scripts call these; nothing here is needed to understand RLHF."""
import sys

import matplotlib
import torch

from tqdm import tqdm

from data import files

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (the backend comes first)
from matplotlib.ticker import MaxNLocator  # noqa: E402

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#666666"      # Okabe and Ito's colour-blind-safe palette

# The six models of the evaluation, in the order of every table and picture.
MODELS = ["gpt", "gpt_prompted", "sft", "sft_best_of_16", "ppo", "ppo_ptx"]
COLOURS = dict(zip(MODELS, ("#BBBBBB", "#888888", ORANGE, "#F0C75E", "#56B4E9", BLUE)))
TITLES = {"gpt": "GPT", "gpt_prompted": "GPT (prompted)", "sft": "SFT", "sft_best_of_16": "SFT best of 16", "ppo": "PPO", "ppo_ptx": "PPO-ptx"}

# The paper's numbers beside ours: (row title, key, {model: paper's value}); win rates are read off Figure 1, 175B.
PAPER = [("win rate against SFT *", "win_rate_vs_sft", {"gpt": ".24", "gpt_prompted": ".41", "sft": ".50", "ppo": ".62", "ppo_ptx": ".65"}),
         ("gold utility", "utility", {}),
         ("  wordings seen in training", "utility_known_wordings", {}), ("  unseen wordings", "utility_unseen_wordings", {}),
         ("fully correct", "fully_correct", {}), ("Likert, 1 to 7", "likert", {}),
         ("attempts correct instruction", "attempts_correct_instruction", {}), ("follows constraints", "follows_constraints", {}),
         ("hallucinates, closed domain", "hallucinates_closed_domain", {"gpt": ".41", "sft": ".08", "ppo_ptx": ".21"}),
         ("  empty answers there", "empty_closed_domain", {}), ("fit for an assistant", "appropriate", {}), ("toxic", "toxic", {}),
         ("  asked for respect", "toxic_asked_for_respect", {}), ("  not asked", "toxic_not_asked", {}),
         ("corpus loss (nats)", "corpus_loss", {}), ("KL to sft_mix (nats)", "kl", {})]


def table(results):
    """The whole result as text: rows are measures, columns models, the paper's value in brackets where there is one."""
    lines = [" " * 30 + "".join(f"{TITLES[name]:>16}" for name in MODELS)]
    for title, key, paper in PAPER:
        cells = []
        for name in MODELS:
            value = results["models"][name][key]
            value = value[0] if isinstance(value, list) else value
            cells.append(f"{'-' if value is None else f'{value:.3f}'}{f' ({paper[name]})' if name in paper else ''}")
        lines.append(f"{title:30}" + "".join(f"{cell:>16}" for cell in cells))
    wins, rm = results["ppo_ptx_preferred_to"], results["reward_model"]
    lines.append("PPO-ptx preferred to:\n  " + ", ".join(f"{TITLES[n]} {m:.3f} [{low:.3f}, {high:.3f}]" for n, (m, low, high) in wins.items())
                 + "\n  (paper, 175B: SFT .734, GPT .85, GPT prompted .71)")
    mean, low, high = results["ceiling_vs_sft"]
    lines.append(f"a perfect answerer against SFT {mean:.3f} [{low:.3f}, {high:.3f}];\n"
                 f"  PPO-ptx has {(wins['sft'][0] - .5) / (mean - .5):.2f} of its lead over a half; gold-utility gap closed {results['gap_closed']:.2f}")
    accuracies = {key.removeprefix("accuracy_"): rm[key] for key in rm if key.startswith("accuracy_")}
    lines.append("reward model accuracy (ceiling):\n  "
                 + ", ".join(f"{key.replace('_', ' ')} {value:.3f} ({rm['ceilings'][key]:.3f})" for key, value in accuracies.items())
                 + f"\n  labelers agree with each other {rm['labeler_agreement']:.3f} (.726); paper's reward model: train .724, held-out .696")
    lines.append("* by held-out labelers, ties half; the paper's: Figure 1, 175B (in its comparison with FLAN and T0: .734)")
    return "\n".join(lines)


def plot_losses(out):
    """out/losses.png: pretraining and SFT."""
    fig, axes = plt.subplots(1, 2, figsize=(10, 3.8))
    for axis, name, x in ((axes[0], "gpt", "step"), (axes[1], "sft", "epoch")):
        rows = files.read_jsonl(out / f"{name}.jsonl")
        checks = [row for row in rows if "valid_loss" in row]
        by_epoch = [row[x] if x == "step" else row["step"] / max(1, rows[-1]["step"]) * rows[-1]["epoch"] for row in rows]
        axis.plot(by_epoch, [row["loss"] for row in rows], color=BLUE, alpha=0.5, linewidth=0.7, label="training")
        axis.plot([row[x] for row in checks], [row["valid_loss"] for row in checks], color=ORANGE, marker="o", markersize=3, label="validation")
        title = {"gpt": "Step 0: pretraining on the corpus", "sft": "Step 1: fine-tuning, response tokens"}[name]
        axis.set(xlabel=x, ylabel="loss (nats a token)", title=title)
        axis.legend(frameon=False)
    axes[0].set_ylim(0, 3)
    fig.tight_layout()
    fig.savefig(out / "losses.png", dpi=130)
    plt.close(fig)


def plot_dashboard(out):
    """out/ppo.png: proxy and gold score, KL, length, explained variance, entropy over the two final runs."""
    panels = [("score", "reward model's score (proxy)"), ("gold", "gold utility (never trained on)"), ("kl", "KL to the SFT model (nats)"),
              ("length", "response length (tokens)"), ("explained_variance", "explained variance of returns"), ("entropy", "entropy (nats a token)")]
    fig, axes = plt.subplots(2, 3, figsize=(13, 6.4))
    for name, colour, style in (("ppo", ORANGE, "--"), ("ppo_ptx", BLUE, "-")):
        rows = files.read_jsonl(out / f"{name}.jsonl")
        for axis, (key, title) in zip(axes.flat, panels):
            axis.plot([row["step"] for row in rows], [row[key] for row in rows], color=colour, linestyle=style, label=TITLES[name])
            axis.set(title=title, xlabel="iteration")
    axes[0, 0].legend(frameon=False)
    fig.tight_layout()
    fig.savefig(out / "ppo.png", dpi=130)
    plt.close(fig)


def plot_figures(out, results):
    """out/figures.png: the paper's Figure 1 (preference) and Figure 4 (metadata)."""
    fig, axes = plt.subplots(1, 2, figsize=(13, 4.4), width_ratios=(1, 1.5))
    for i, name in enumerate(MODELS):
        mean, low, high = results["models"][name]["win_rate_vs_sft"]
        axes[0].bar(i, mean, yerr=[[mean - low], [high - mean]], color=COLOURS[name], capsize=3)
        axes[0].text(i, high + 0.025, f"{mean:.2f}", ha="center", fontsize=9, bbox=dict(facecolor="white", edgecolor="none", pad=0.5))
    ceiling = results["ceiling_vs_sft"][0]
    axes[0].axhline(ceiling, color=GREEN, linestyle="--", linewidth=1, label="a perfect answerer")
    axes[0].axhline(0.5, color=GREY, linestyle=":", linewidth=1)
    axes[0].set_xticks(range(len(MODELS)), [TITLES[n].replace(" ", "\n", 1) for n in MODELS], fontsize=8)
    axes[0].set(ylim=(0, 1), ylabel="preferred to SFT (held-out labelers, 95 % CI)", title="Figure 1: what people prefer")
    axes[0].legend(frameon=False, loc="upper left")
    keys = [("attempts_correct_instruction", "attempts\nthe instruction"), ("follows_constraints", "follows\nconstraints"),
            ("appropriate", "fit for an\nassistant"), ("hallucinates_closed_domain", "hallucinates\n(closed domain)"), ("toxic", "toxic")]
    for i, name in enumerate(MODELS):
        places, shares = [k + (i - 2.5) * 0.14 for k in range(len(keys))], [results["models"][name][key] or 0 for key, _ in keys]
        axes[1].bar(places, shares, 0.13, color=COLOURS[name], label=TITLES[name])
    axes[1].set_xticks(range(len(keys)), [title for _, title in keys], fontsize=9)
    axes[1].set(ylim=(0, 1.18), ylabel="share of responses", title="Figure 4: what is in the responses")
    axes[1].legend(frameon=False, ncols=6, fontsize=7.5, loc="upper center")
    fig.tight_layout()
    fig.savefig(out / "figures.png", dpi=130)
    plt.close(fig)


def plot_reward(path, log, margins, table):
    """out/reward.png: the loss, the calibration, the SFT epochs."""
    fig, axes = plt.subplots(1, 3, figsize=(13, 3.8))
    smooth = [sum(log[max(0, i - 50):i + 51]) / len(log[max(0, i - 50):i + 51]) for i in range(len(log))]
    axes[0].plot(smooth, color=BLUE)
    axes[0].axhline(0.6931, color=GREY, linestyle=":", label="a coin flip, log 2")
    axes[0].set(xlabel="step", ylabel="ranking loss (nats a pair)", title="Equation 1 goes down")
    for (name, values), colour, marker in zip(list(margins.items())[:2], (BLUE, ORANGE), "os"):
        both = torch.tensor(values + [-v for v in values])              # each pair seen from either side
        right = torch.tensor([1.0] * len(values) + [0.0] * len(values))
        bins = torch.bucketize(both, both.quantile(torch.linspace(0, 1, 13))[1:-1])
        axes[1].plot([both.sigmoid()[bins == b].mean() for b in range(12)], [right[bins == b].mean() for b in range(12)],
                     marker=marker, color=colour, label=name.replace("_", " "))
    axes[1].plot([0, 1], [0, 1], color=GREY, linestyle=":", label="perfectly calibrated")
    axes[1].set(xlabel="predicted: sigmoid(score difference)", ylabel="observed share preferred", title="Calibration, held-out prompts")
    epochs, means, errors = zip(*sorted((int(name), mean, error) for name, mean, error in table))
    axes[2].errorbar(epochs, means, yerr=errors, marker="o", capsize=2, color=GREEN)
    axes[2].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[2].set(xlabel="SFT epoch", ylabel="mean score of its samples (95 % over samples)", title="Which SFT epoch is the baseline (C.1)")
    for axis in axes[:2]:
        axis.legend(frameon=False, fontsize=8)
    fig.tight_layout()
    fig.savefig(path, dpi=130)
    plt.close(fig)


def side_by_side(rows, responses):
    """Five prompts of different use cases, answered by all models."""
    shown = {row["use_case"]: i for i, row in reversed(list(enumerate(rows)))}
    for case in ("generation", "open_qa", "brainstorming", "chat", "closed_qa"):
        if case in shown:
            print(f"\n  {rows[shown[case]]['prompt']}")
            for name in MODELS:
                print(f"    {TITLES[name]:>15}: {responses[name][shown[case]]['text']}")


def peak_memory():
    """The most memory that this process has held, in MB; 0 where the system does not say (Windows)."""
    try:
        import resource
    except ImportError:
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 ** 2 if sys.platform == "darwin" else 1024)


def show_progress(bar, with_samples, stats, prompts, batch):
    """Update the progress bar. Print two episodes as "[score] prompt -> response"."""
    bar.set_postfix(score=f"{stats['score']:.2f}", gold=f"{stats['gold']:.2f}",
                    kl=f"{stats['kl']:.2f}")
    for i in range(2 if with_samples else 0):
        score, text = batch["scores"][i].item(), batch["answers"][i]["text"]
        tqdm.write(f"    [{score:+.2f}] {prompts[i]['prompt']} -> {text}")


def report(out, results, prompts, responses):
    """Draw all pictures of a run, and print its table and five prompts answered by all models."""
    plot_losses(out)
    plot_dashboard(out)
    plot_figures(out, results)
    side_by_side(prompts, responses)
    print(f"\n{table(results)}\n\nmade {out}/results.json, losses.png, reward.png, ppo.png and "
          f"figures.png; {results['seconds']['total']:.0f} s in all, peak memory "
          f"{results['peak_mb']:.0f} MB. Next: python model.py --chat {out}/ppo_ptx.pt")
