"""A small folder of texts for --data: an example to copy, and what CI runs.

    python -m data.example my_texts

The corpus is Python's own documentation and lists of colours, e.g. "Shades of green: sea green,
moss green, lime green." The names of the colours come with matplotlib. Prompts ask what a colour
is, e.g. "What is sea green?" A third of the demonstrations ramble, and a third are wrong. The
rankings, which people would write, follow a rule: what is right and short is best, then what is
right, then what is wrong, and last what is beside the point.
"""
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
N_HELD_OUT = 50         # colours for validation, and as many for the evaluation


def colours():
    """Return names such as "dark sea green", whose last word is one of SHADES."""
    names = []
    for name in XKCD_COLORS:
        words = name.removeprefix("xkcd:").split()
        if len(words) > 1 and words[-1] in SHADES and not any(rude in name for rude in RUDE):
            names.append(" ".join(words))
    return names


def ask(colour, rng):
    """Return a prompt about a colour."""
    return {"prompt": rng.choice(QUESTIONS).format(colour)}


def answer(colour, kind, rng):
    """Return an answer about a colour, of one of KINDS."""
    if kind == "beside the point":
        return " ".join(rng.choice(DOCUMENTATION).split()[:8])
    shade = colour.split()[-1]
    if kind == "wrong":
        shade = rng.choice([other for other in SHADES if other != shade])
    return rng.choice(LONG if kind == "long" else SHORT).format(shade)


def ranked(colour, rng):
    """Return the responses and ranks of a line of rankings.jsonl. Two of one kind are tied."""
    kinds = {}                                              # response -> its kind
    while len(kinds) < 4:
        kind = rng.choice(KINDS)
        kinds[answer(colour, kind, rng)] = kind
    order = [kind for kind in KINDS if kind in kinds.values()]
    ranks = [order.index(kind) + 1 for kind in kinds.values()]
    return {"responses": list(kinds), "ranks": ranks}


def shades(names, rng):
    """Return a document of the corpus that lists three colours."""
    shade = rng.choice(SHADES)
    three = rng.sample([name for name in names if name.endswith(f" {shade}")], 3)
    return f"Shades of {shade}: {', '.join(three)}."


def write_folder(folder):
    """Write the files of --data. Held-out colours are in no other file and not in the corpus."""
    rng = random.Random(1)
    names = colours()
    rng.shuffle(names)
    held_out, known = names[:2 * N_HELD_OUT], names[2 * N_HELD_OUT:]
    corpus = DOCUMENTATION + [shades(known, rng) for _ in range(2_000)]
    rng.shuffle(corpus)
    demonstrations = []
    for colour in known:
        completion = answer(colour, rng.choice(KINDS[:3]), rng)
        demonstrations.append(ask(colour, rng) | {"completion": completion})
    rows = {"demonstrations": demonstrations,
            "rankings": [ask(colour, rng) | ranked(colour, rng) for colour in 3 * known],
            "prompts_rl": [ask(colour, rng) for colour in known],
            "prompts_valid": [ask(colour, rng) for colour in held_out[:N_HELD_OUT]],
            "prompts_eval": [ask(colour, rng) for colour in held_out[N_HELD_OUT:]]}
    folder.mkdir(parents=True, exist_ok=True)
    files.write(folder / "corpus.txt", "\n\n".join(corpus) + "\n")
    for name, lines in rows.items():
        files.write_jsonl(folder / f"{name}.jsonl", lines)
    print(f"made {folder} with {len(corpus):,} documents, {len(known)} demonstrations and as many "
          f"rankings. Next: python model.py --data {folder}")


if __name__ == "__main__":
    flags.guarded(lambda: write_folder(Path(sys.argv[1] if sys.argv[1:] else "my_texts")))
