"""What the six notebooks share: a place to work in, small trained models, tables and a figure of tokens. Import it before the scripts.

The models in notebooks/checkpoints/ are those of `python ppo.py --seed 1` in half precision (`python -m notebooks.record` makes them);
the recorded results are in notebooks/results/. A lesson works on copies in a temporary folder: nothing it trains overwrites anything.
"""
import atexit
import dataclasses
import inspect
import os
import shutil
import tempfile
import warnings
from pathlib import Path

os.environ["TQDM_DISABLE"] = "1"                        # in a notebook a progress bar leaves a line for every step

import matplotlib.pyplot as plt  # noqa: E402  (the environment comes first)
import torch  # noqa: E402
from IPython import get_ipython  # noqa: E402
from IPython.display import Markdown, display  # noqa: E402

import ppo  # noqa: E402
from data import files, tokenizer  # noqa: E402
from data.figures import BLUE, COLOURS, GREEN, GREY, ORANGE  # noqa: E402,F401
from data.files import UserError, load_checkpoint, require  # noqa: E402
from data.flags import set_up  # noqa: E402
from model import load_model  # noqa: E402
from reward import load_reward_model  # noqa: E402

HERE = Path(__file__).parent
CHECKPOINTS, RESULTS = HERE / "checkpoints", HERE / "results"
MODELS = ("gpt", "sft_mix", "reward", "ppo_ptx", "ppo_ptx_value")       # ppo_ptx_value: PPO's value network


def start():
    """Goes to a temporary folder and copies the trained models into out/, whose name it returns. Figures appear below their cell."""
    if get_ipython():
        get_ipython().run_line_magic("matplotlib", "inline")            # reward.py draws into files
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    plt.rcParams.update({"figure.dpi": 80, "axes.spines.top": False, "axes.spines.right": False, "font.size": 10.5, "legend.frameon": False})
    place = tempfile.mkdtemp(prefix="lesson_")
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    os.chdir(place)
    shutil.copytree(CHECKPOINTS, "out")
    torch.manual_seed(1)
    return "out"


def load(folder, name):
    """A trained model of MODELS, or one that the lesson itself has trained."""
    path = Path(folder) / f"{name}.pt"
    return load_reward_model(path) if name in ("reward", "reward_1") or name.endswith("_value") else load_model(path)


def trace(prompt, config=ppo.Config(), name="ppo_ptx"):
    """One episode, a dict a token: token, logprob, ref_logprob, kl, reward, value, advantage, return.

    In nats, advantages before whitening. Uses out/<name>.pt, out/<name>_value.pt, and the reward model and settings of its training."""
    device, _, generator = set_up(config)
    path = require(config, name, "ppo.py")
    extra = load_checkpoint(path)["extra"]
    config, reward_name = dataclasses.replace(config, **extra["settings"]), next(n for n in extra["parents"] if n.startswith("reward"))
    policy, reference = load_model(path, device), load_model(require(config, "sft_mix", "sft.py"), device)
    value_net, reward_model = (load_reward_model(Path(config.out) / f"{n}.pt", device) for n in (f"{name}_value", reward_name))
    task = {"use_case": "other", "kind": "echo", "word": "", "n": 1}    # no task is known for a free prompt: gold means nothing here
    batch = ppo.rollout([{"prompt": prompt, "task": task}], policy, reference, value_net, reward_model, config, generator)
    encoding, start, n = tokenizer.load_cached(), int(batch["prompt_lengths"][0]), int(batch["mask"].sum())
    columns = ("logprobs", "ref_logprobs", "rewards", "values", "raw_advantages", "returns")
    table = zip(batch["idx"][0, start:start + n].tolist(), *(batch[c][0, :n].tolist() for c in columns))
    return [{"token": encoding.decode([t]), "logprob": lp, "ref_logprob": ref, "kl": lp - ref, "reward": r, "value": v,
             "advantage": a, "return": g} for t, lp, ref, r, v, a, g in table]


def answers(policy, prompts, seed=0):
    """A sampled response to each prompt (texts): a list of {"text", "ended"}."""
    return ppo.answer("sft", policy, [{"prompt": prompt} for prompt in prompts], torch.Generator().manual_seed(seed))


def recorded(name):
    """A file of notebooks/results/ as a dict."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        raise UserError(f"{path} is missing: `python -m notebooks.{'record' if name == 'classroom' else f'experiments {name}'}` makes it")
    return files.read_json(path)


def table(rows, columns):
    """Shows rows (lists) under column titles."""
    def cell(x):
        text = f"{x:.3f}" if isinstance(x, float) else str(x)
        return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " / ")
    lines = [columns, ["---"] * len(columns), *rows]
    display(Markdown("\n".join("| " + " | ".join(cell(x) for x in line) + " |" for line in lines)))


def equation(latex, function, fragment):
    """An equation beside the line of the script that computes it: the first line of `function` with `fragment` in it."""
    lines, first = inspect.getsourcelines(function)
    number, line = next((first + i, line.strip()) for i, line in enumerate(lines) if fragment in line)
    file = Path(inspect.getsourcefile(function)).name
    code = line.split("  #")[0].strip().replace("|", "\\|")
    display(Markdown(f"| the equation | {file}, line {number} |\n|:--:|:--|\n| ${latex}$ | `{code}` |"))


def show_tokens(tokens, values, label, limit=None):
    """A figure: each token on a ground whose blue is the deeper, the larger its value; the number below it. None: grey, no number."""
    limit = limit or max(v for v in values if v is not None) or 1.0
    per_line = 12
    lines = -(-len(tokens) // per_line)
    fig, axis = plt.subplots(figsize=(10.5, 0.85 * lines + 0.3))
    for i, (token, value) in enumerate(zip(tokens, values)):
        x, y = i % per_line, -(i // per_line)
        shade = 0.0 if value is None else min(1.0, max(0.0, value / limit))
        colour = "#EEEEEE" if value is None else (1 - shade, 1 - 0.55 * shade, 1 - 0.3 * shade)
        axis.add_patch(plt.Rectangle((x, y), 0.97, 0.9, color=colour))
        axis.text(x + 0.48, y + 0.58, token.replace("\n", "\\n").replace("<|endoftext|>", "<end>"), ha="center", va="center", fontsize=10)
        if value is not None:
            axis.text(x + 0.48, y + 0.2, f"{value:.2f}", ha="center", va="center", fontsize=8)
    axis.set(xlim=(0, per_line), ylim=(1 - lines, 1), title=label)
    axis.axis("off")
    plt.show()


def curves(runs, panels):
    """A row of panels, one for each (key, title), with a line for each run: {label: rows}."""
    fig, axes = plt.subplots(1, len(panels), figsize=(3.9 * len(panels), 3.3), squeeze=False)
    styles = list(zip((BLUE, ORANGE, GREEN, "#D55E00", "#CC79A7", GREY), ("-", "--", "-.", ":", "-", "--")))
    for axis, (key, title) in zip(axes[0], panels):
        for (label, rows), (colour, line) in zip(runs.items(), styles):
            axis.plot([row["step"] for row in rows], [row[key] for row in rows], line, color=colour, label=label)
        axis.set(title=title, xlabel="iteration")
    axes[0, 0].legend(fontsize=9)
    fig.tight_layout()
    plt.show()


def ask(question, prepared, fits=lambda answer: True, hint=""):
    """The student's answer, asked again until it fits; the prepared one where nobody sits before the screen (`python -m notebooks.run`)."""
    if os.environ.get("LESSON_UNATTENDED"):
        return prepared
    try:
        while not fits(answer := input(f"{question} ").strip().lower() or prepared):
            print(hint)
        return answer
    except (EOFError, NotImplementedError):
        # A kernel without a keyboard, as nbconvert's
        return prepared


def ask_ranks(prepared):
    """The student's ranks of as many responses as `prepared` ranks, at least one better than
    another: there must be something to compare."""
    example = " ".join(map(str, range(1, len(prepared) + 1)))
    hint = (f"{len(prepared)} numbers from 1 to 9, please, e.g. {example}; "
            "equal numbers tie, but not all may")

    def fits(text):
        ranks = text.split()
        return (len(ranks) == len(prepared) and set(ranks) <= set("123456789")
                and len(set(ranks)) > 1)

    given = ask("Your ranks:", " ".join(map(str, prepared)), fits, hint)
    return [int(number) for number in given.split()]


def ask_vote(votes_for_a):
    """The student's choice: "a", "b" or "=" for a tie; prepared: that of the majority, from the share of votes for a."""
    prepared = "a" if votes_for_a > 0.5 else "b" if votes_for_a < 0.5 else "="
    return ask("a, b or = ?", prepared, lambda vote: vote in ("a", "b", "="), "a, b or =, please")
