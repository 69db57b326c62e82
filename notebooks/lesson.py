"""What the eight notebooks share: a folder to work in, small trained models, tables and figures.

Import it before the scripts. The models in notebooks/checkpoints/ are those of
`python ppo.py --seed 1` in half precision (`python -m notebooks.record` makes them). The recorded
results are in notebooks/results/. A lesson works on copies in a temporary folder, so nothing it
trains overwrites anything.
"""
import atexit
import dataclasses
import inspect
import math
import os
import shutil
import tempfile
import warnings
from pathlib import Path

# A notebook keeps one line for every step of a progress bar. Set before tqdm is imported.
os.environ["TQDM_DISABLE"] = "1"

import matplotlib.pyplot as plt  # noqa: E402
import torch  # noqa: E402
from IPython import get_ipython  # noqa: E402
from IPython.display import Markdown, display  # noqa: E402
from matplotlib.ticker import MaxNLocator  # noqa: E402

import ppo  # noqa: E402
from data import figures, files, label, tokenizer  # noqa: E402
from data.figures import BLUE, GREEN, GREY, ORANGE  # noqa: E402
from data.files import UserError, load_checkpoint, require  # noqa: E402
from data.flags import set_up  # noqa: E402
from model import load_model  # noqa: E402
from reward import load_reward_model  # noqa: E402

HERE = Path(__file__).parent
CHECKPOINTS = HERE / "checkpoints"
RESULTS = HERE / "results"
COLOURS = figures.COLOURS                   # of the models, for the notebooks
MODELS = ("gpt", "sft_mix", "reward", "ppo_ptx", "ppo_ptx_value")      # the last: a value network

TRACED = {                                  # column of trace -> tensor (B, R) of ppo.rollout
    "logprob": "logprobs",
    "ref_logprob": "ref_logprobs",
    "reward": "rewards",
    "value": "values",
    "advantage": "raw_advantages",
    "return": "returns",
}
STYLE = {                                   # of all figures
    "figure.dpi": 80,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 10.5,
    "legend.frameon": False,
}


# ---------------------------------------------------------------- models


def start():
    """Change to a temporary folder with the trained models in out/. Return the name "out"."""
    if get_ipython():
        # Figures appear below their cell. data.figures has switched to a backend for files.
        get_ipython().run_line_magic("matplotlib", "inline")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    plt.rcParams.update(STYLE)
    folder = tempfile.mkdtemp(prefix="lesson_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.chdir(folder)
    shutil.copytree(CHECKPOINTS, "out")
    torch.manual_seed(1)
    return "out"


def load(folder, name):
    """Load one of MODELS, or a model that the lesson has trained."""
    path = Path(folder) / f"{name}.pt"
    if name in ("reward", "reward_1") or name.endswith("_value"):
        return load_reward_model(path)
    return load_model(path)


def answers(policy, prompts, seed=0):
    """Sample a response to each prompt (a text). Return a list of {"text", "ended"}."""
    rows = [{"prompt": prompt} for prompt in prompts]
    return ppo.answer("sft", policy, rows, torch.Generator().manual_seed(seed))


def trace(prompt, config=ppo.Config(), name="ppo_ptx"):
    """Answer one prompt with a trained policy. Return the episode: one dict per response token.

        token         its text
        logprob       its log-probability under the policy
        ref_logprob   its log-probability under the reference, out/sft_mix.pt
        kl            logprob - ref_logprob, in nats; summed over tokens, an estimate of the KL
        reward        -beta * kl, on the last token plus the score
        value         the return that the value network expects before the token is chosen
        advantage     the advantage (GAE) before whitening
        return        advantage + value, the value network's target

    The score is the reward model's, minus missing_eos_penalty if the response never ends. The
    reward model, beta and all other settings are those that out/<name>.pt was trained with. The
    value network is out/<name>_value.pt."""
    device, _, generator = set_up(config)
    path = require(config, name, "ppo.py")
    extra = load_checkpoint(path)["extra"]
    config = dataclasses.replace(config, **extra["settings"])
    reward_name = next(parent for parent in extra["parents"] if parent.startswith("reward"))

    policy = load_model(path, device)
    reference = load_model(require(config, "sft_mix", "sft.py"), device)
    value_net = load_reward_model(Path(config.out) / f"{name}_value.pt", device)
    reward_model = load_reward_model(Path(config.out) / f"{reward_name}.pt", device)
    batch = ppo.rollout(
        [{"prompt": prompt}], policy, reference, value_net, reward_model, config, generator)

    encoding = tokenizer.load_cached()
    n_tokens = int(batch["mask"].sum())
    first = int(batch["prompt_lengths"][0])
    ids = batch["idx"][0, first:first + n_tokens].tolist()

    rows = []
    for t, token in enumerate(ids):
        row = {"token": encoding.decode([token])}
        for column, name in TRACED.items():
            row[column] = batch[name][0, t].item()
        row["kl"] = row["logprob"] - row["ref_logprob"]
        rows.append(row)
    return rows


# ---------------------------------------------------------------- tables and figures


def recorded(name):
    """Return a file of notebooks/results/ as a dict."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        maker = "record" if name == "classroom" else f"experiments {name}"
        raise UserError(f"{path} is missing: `python -m notebooks.{maker}` makes it")
    return files.read_json(path)


def table(rows, columns):
    """Show rows (lists) under column titles."""
    lines = [columns, ["---"] * len(columns), *rows]
    display(Markdown("\n".join(map(table_line, lines))))


def table_line(cells):
    """Return one line of a Markdown table."""
    texts = []
    for cell in cells:
        text = f"{cell:.3f}" if isinstance(cell, float) else str(cell)
        text = text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " / ")
        texts.append(text)
    return f"| {' | '.join(texts)} |"


def equation(latex, function, fragment):
    """Show an equation beside the first line of `function` that contains `fragment`."""
    lines, first = inspect.getsourcelines(function)
    file = Path(inspect.getsourcefile(function)).name
    for number, line in enumerate(lines, first):
        if fragment in line:
            break
    else:
        raise ValueError(f"{file}: no line of {function.__name__} contains {fragment!r}")
    code, _, _ = line.partition("  #")
    code = code.strip().replace("|", "\\|")
    title = f"| the equation | {file}, line {number} |"
    display(Markdown(f"{title}\n|:--:|:--|\n| ${latex}$ | `{code}` |"))


def show_tokens(tokens, values, label, limit=None):
    """Show each token above its value, on a blue that is darker for larger values.

    Values of `limit` or more get the darkest blue. A value of None is grey, without a number."""
    known = [value for value in values if value is not None]
    limit = limit or max(known) or 1.0
    per_line = 12
    n_lines = math.ceil(len(tokens) / per_line)
    _, axis = plt.subplots(figsize=(10.5, 0.85 * n_lines + 0.3))
    for i, (token, value) in enumerate(zip(tokens, values)):
        x = i % per_line
        y = -(i // per_line)
        axis.add_patch(plt.Rectangle((x, y), 0.97, 0.9, color=blue(value, limit)))
        text = token.replace("\n", "\\n").replace("<|endoftext|>", "<end>")
        size = min(10, 70 / max(len(text.strip()), 1))      # a long token fits into its cell
        axis.text(x + 0.48, y + 0.58, text, ha="center", va="center", fontsize=size)
        if value is not None:
            axis.text(x + 0.48, y + 0.2, f"{value:.2f}", ha="center", va="center", fontsize=8)
    axis.set(xlim=(0, per_line), ylim=(1 - n_lines, 1), title=label)
    axis.axis("off")
    plt.show()


def blue(value, limit):
    """Return white for 0, blue for `limit` and above, grey for None."""
    if value is None:
        return "#EEEEEE"
    shade = min(1.0, max(0.0, value / limit))
    return 1 - shade, 1 - 0.55 * shade, 1 - 0.3 * shade


def curves(runs, panels):
    """Show one panel per (key, title), with one line per run. runs: {name: rows of its log}."""
    fig, axes = plt.subplots(1, len(panels), figsize=(3.9 * len(panels), 3.3), squeeze=False)
    colours = (BLUE, ORANGE, GREEN, "#D55E00", "#CC79A7", GREY)
    lines = ("-", "--", "-.", ":", "-", "--")
    for axis, (key, title) in zip(axes[0], panels):
        for (name, rows), colour, line in zip(runs.items(), colours, lines):
            steps = [row["step"] for row in rows]
            axis.plot(steps, [row[key] for row in rows], line, color=colour, label=name)
        axis.set(title=title, xlabel="iteration")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0, 0].legend(fontsize=9)
    fig.tight_layout()
    plt.show()


def gallery(runs, healthy, panels):
    """Show one row of panels per run, with the run without a bug in grey.

    runs: {letter: rows of its log}. healthy: rows of the run without a bug. panels: (key, title,
    lowest, highest). A column has the same y-axis in all rows, and `ratio` is drawn on a
    logarithmic one."""
    size = (1.95 * len(panels) + 0.4, 1.6 * len(runs) + 0.9)
    fig, axes = plt.subplots(
        len(runs), len(panels), figsize=size, sharex=True, sharey="col", squeeze=False)
    for row, (letter, rows) in zip(axes, runs.items()):
        row[0].set_ylabel(letter, rotation=0, fontsize=15, labelpad=14, va="center")
        for axis, (key, _, low, high) in zip(row, panels):
            axis.plot([point[key] for point in healthy], color=GREY, lw=3.5, label="no bug")
            axis.plot([point[key] for point in rows], color=BLUE, label="with the bug")
            if key == "ratio":
                axis.set_yscale("log")
            axis.set_ylim(low, high)
            axis.xaxis.set_major_locator(MaxNLocator(3, integer=True))
    for axis, (_, title, _, _) in zip(axes[0], panels):
        axis.set_title(title, fontsize=10.5)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="upper right", ncols=2)
    fig.supxlabel("iteration", fontsize=10.5)
    fig.tight_layout(rect=(0, 0, 1, 1 - 0.35 / size[1]))
    plt.show()


# ---------------------------------------------------------------- questions


def ask(question, prepared, fits=lambda answer: True, hint=""):
    """Return the student's answer. Repeat the question, with a hint, until the answer fits.

    Return the prepared answer if the student types nothing, or if nobody can type: in
    `python -m notebooks.run`, or in a kernel without a keyboard, such as nbconvert's."""
    if os.environ.get("LESSON_UNATTENDED"):
        return prepared
    while True:
        try:
            answer = input(f"{question} ")
        except (EOFError, NotImplementedError):
            return prepared
        answer = answer.strip().lower() or prepared
        if fits(answer):
            return answer
        print(hint)


def ask_ranks(ranking, path):
    """Return the student's ranks of the responses of `ranking`, and add them to the file `path`.

    They are typed as in `python -m data.label`. They must not all be equal, because a ranking with
    ties only makes no pairs. If nothing is typed, return the prepared ranks and write nothing."""
    n = len(ranking["ranks"])
    hint = (f"Please type the numbers 1 to {n} from best to worst, for example 3 1=2 4. "
            "Not all may tie.")

    def fits(text):
        ranks = label.ranks_of(text, n)
        return text == "" or ranks is not None and len(set(ranks)) > 1

    given = ask("From best to worst:", "", fits, hint)
    if given == "":
        return ranking["ranks"]
    ranks = label.ranks_of(given, n)
    label.append(path, ranking, ranking["responses"], ranks, label.user_name())
    return ranks


def ask_vote(votes_for_a):
    """Return the student's vote: "a", "b" or "=" for a tie.

    The prepared answer is that of the majority. votes_for_a: the share of votes for a."""
    prepared = "="
    if votes_for_a > 0.5:
        prepared = "a"
    elif votes_for_a < 0.5:
        prepared = "b"

    def fits(vote):
        return vote in ("a", "b", "=")

    return ask("a, b or = ?", prepared, fits, "Please type a, b or =.")
