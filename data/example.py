"""A small folder of texts for --data: an example to copy, and what CI runs.

    python -m data.example my_texts

The corpus is Python's own documentation and lists of colours, e.g. "Shades of green: sea green,
moss green, lime green." The names of the colours come with matplotlib. Prompts ask what a colour
is, e.g. "What is sea green?" A third of the demonstrations ramble, and a third are wrong. The
rankings, which people would write, follow a rule: what is right and short is best, then what is
right, then what is wrong, and last what is beside the point.
"""
import collections
import random
import sys
from pathlib import Path
from pydoc_data import topics

from matplotlib.colors import XKCD_COLORS

from data import files, flags

SHADES = ("green", "blue", "pink", "purple", "brown", "yellow", "red", "grey", "orange")
QUESTIONS = ("What is {}?", "Which colour is {}?", "Tell me about {}.")
SHORT = ("It is a shade of {}.", "A shade of {}.")
LONG = ("It is a shade of {}, or so I was told.", "Well, I think that it is a shade of {}.")
KINDS = ("short", "long", "wrong", "beside the point")       # of answers, from best to worst
RUDE = ("shit", "poo", "piss", "puke", "snot", "booger", "vomit", "barf")
DOCUMENTATION = "\n\n".join(topics.topics.values()).split("\n\n")


def colours():
    """Return names such as "dark sea green", whose last word is one of SHADES."""
    names = []
    for name in XKCD_COLORS:
        words = name.removeprefix("xkcd:").split()
        if len(words) > 1 and words[-1] in SHADES and not any(rude in name for rude in RUDE):
            names.append(" ".join(words))
    return names


def prompt(colour, rng):
    """Return a row with a question about a colour."""
    return {"prompt": rng.choice(QUESTIONS).format(colour)}


def answer(colour, kind, rng):
    """Return an answer about a colour, of one of KINDS."""
    if kind == "beside the point":
        return " ".join(rng.choice(DOCUMENTATION).split())[:40]
    shade = right = colour.split()[-1]
    while kind == "wrong" and shade == right:
        shade = rng.choice(SHADES)
    return rng.choice(LONG if kind == "long" else SHORT).format(shade)


def ranked(colour, rng):
    """Return a line of rankings.jsonl. Two answers of one kind are tied."""
    kinds = {}                                              # response -> its kind
    while len(kinds) < 4:
        kind = rng.choice(KINDS)
        kinds[answer(colour, kind, rng)] = kind
    order = sorted(set(kinds.values()), key=KINDS.index)
    ranks = [order.index(kind) + 1 for kind in kinds.values()]
    return prompt(colour, rng) | {"responses": list(kinds), "ranks": ranks}


def write_folder(folder):
    """Write the files of --data. A held-out colour is in one file only."""
    rng = random.Random(1)
    names = colours()
    rng.shuffle(names)
    lines = collections.defaultdict(list)
    for valid, held_out in zip(names[:50], names[50:100]):
        lines["prompts_valid"].append(prompt(valid, rng))
        lines["prompts_eval"].append(prompt(held_out, rng))
    corpus = list(DOCUMENTATION)
    for colour in names[100:]:
        completion = answer(colour, rng.choice(KINDS[:3]), rng)
        lines["demonstrations"].append(prompt(colour, rng) | {"completion": completion})
        lines["prompts_rl"].append(prompt(colour, rng))
        for _ in range(3):
            lines["rankings"].append(ranked(colour, rng))
        shade = colour.split()[-1]
        same = [other for other in names[100:] if other.endswith(f" {shade}")]
        for _ in range(5):
            corpus.append(f"Shades of {shade}: {', '.join(rng.sample(same, 3))}.")
    rng.shuffle(corpus)
    folder.mkdir(parents=True, exist_ok=True)
    files.write(folder / "corpus.txt", "\n\n".join(corpus) + "\n")
    for name, rows in lines.items():
        files.write_jsonl(folder / f"{name}.jsonl", rows)
    print(f"made {folder}")


if __name__ == "__main__":
    flags.guarded(lambda: write_folder(Path(sys.argv[1] if sys.argv[1:] else "my_texts")))
