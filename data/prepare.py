"""Write every file of the toy world from a seed: corpus, tokenizer, demonstrations and prompts.

    python -m data.prepare              # everything, after a list in data/toytown.py was changed
    python -m data.prepare --corpus     # only data/corpus.txt, the one file that is not committed

The training scripts write data/corpus.txt by themselves when it is missing.
"""
import argparse
import hashlib
import json
import random
import time
from pathlib import Path

from tqdm import tqdm

from data import corpus, files, flags, own, tasks, tokenizer
from data.files import UserError, read_bytes, write
from data.labeler import get_labelers

SEED = 2022                     # of the world, not of a training run: all runs share one world
CORPUS_WORDS = 2_600_000        # about 3.8 million tokens (GPT-3: 300 billion)
# Prompts per file. In brackets: the paper's number (Table 6).
SIZES = {"demonstrations": 3_000,       # (12,725) prompts with answers by labelers, for SFT
         "prompts_rm": 20_000,          # (33,207) their responses are ranked
         "prompts_rl": 8_000,           # (31,144) no labels at all
         "prompts_valid": 1_000,        # (17,887 for the RM, 1,653 for SFT) model selection
         "prompts_eval": 1_000,         # (3,196, Table 9) final evaluation
         "prompts_closed": 500}         # closed domain only, for the hallucination rate
# What is measured with. None of these prompts occurs in another file or in the corpus.
EVALUATION = ("prompts_valid", "prompts_eval", "prompts_closed")

# The share of prompts in an evaluation-only phrasing, in a further wording (data/wordings.py), and
# typed in haste.
HELD_OUT_PHRASINGS = {"prompts_eval": 0.15, "prompts_closed": 0.15}
FURTHER_WORDINGS = {"demonstrations": 0.4, "prompts_rm": 0.4, "prompts_rl": 0.4}
HASTE = {"demonstrations": 0.3, "prompts_rm": 0.3, "prompts_rl": 0.3}


def prepare(folder=files.FOLDER, sizes=SIZES, corpus_words=CORPUS_WORDS, seed=SEED,
            corpus_only=False):
    """Write the files into `folder`. corpus_only: only corpus.txt, from the same draws."""
    start = time.time()
    folder = Path(folder)
    sets = draw_prompts(sizes, seed)
    exclude = []
    for name in EVALUATION:
        exclude += map(tasks.prompt, sets.get(name, []))
    texts = draw_corpus(corpus_words, seed, exclude)
    write_corpus(folder, "\n\n".join(texts) + "\n", corpus_only)
    if not corpus_only:
        ranks = tokenizer.train(tokenizer.spaced("\n".join(texts[:30_000])))
        write(folder / "toytown.tiktoken", tokenizer.dump(ranks))
        write_demonstrations(folder, sets["demonstrations"], seed)
        for name in sizes:
            if name.startswith("prompts_"):
                write(folder / f"{name}.jsonl", "".join(map(record, sets[name])))
    n_prompts = sum(map(len, sets.values()))
    print(f"data: {len(texts):,} documents and {n_prompts:,} prompts in {folder}, "
          f"{time.time() - start:.0f} s. Next: python model.py")


# ---------------------------------------------------------------- prompts


def draw_prompts(sizes=SIZES, seed=SEED, seen=()):
    """Return {set name: list of tasks}, of the given sizes.

    No prompt is in two sets, twice in one set, or in `seen`, compared by tasks.bare. Evaluation
    sets come last in `sizes` and are drawn first, because they must not depend on the others.
    """
    seen = set(map(tasks.bare, seen))
    ordinary = []
    if set(sizes) & set(EVALUATION):
        ordinary = list(corpus.documents(random.Random(f"{seed} ordinary"), 200_000))
    sets = {}
    for name in reversed(list(sizes)):
        sets[name] = draw_set(name, sizes[name], seed, seen, ordinary)
    return sets


def draw_set(name, size, seed, seen, ordinary):
    """Return the tasks of one set. Adds their bare prompts to `seen`.

    An evaluation set takes no prompt so short that ordinary texts of the town contain it, e.g.
    "Name two animals" in "Name two animals that live in the sea". The corpus cannot avoid those.
    """
    rng = random.Random(f"{seed} {name}")
    chances = dict(held_out=HELD_OUT_PHRASINGS.get(name, 0.0),
                   further=FURTHER_WORDINGS.get(name, 0.0),
                   haste=HASTE.get(name, 0.0))
    drawn = []
    too_short = set()
    use_cases = draw_use_cases(name, size, rng)
    while use_cases:
        # A prompt that is drawn again keeps its use case, so that the proportions stay right.
        for use_case in use_cases:
            task = tasks.new_task(rng, use_case, **chances)
            while bare_prompt(task) in seen or bare_prompt(task) in too_short:
                task = tasks.new_task(rng, use_case, **chances)
            seen.add(bare_prompt(task))
            drawn.append(task)
        if name in EVALUATION:
            too_short |= parts_of_others(drawn, ordinary)
        use_cases = [task["use_case"] for task in drawn if bare_prompt(task) in too_short]
        drawn = [task for task in drawn if bare_prompt(task) not in too_short]
    seen -= too_short           # training sets may use them
    return drawn


def draw_use_cases(name, size, rng):
    """Draw the use cases of a set: as in Table 1, or uniformly from the closed domain."""
    if name != "prompts_closed":
        return rng.choices(list(tasks.USE_CASES), weights=list(tasks.USE_CASES.values()), k=size)
    closed = [use_case for use_case in tasks.USE_CASES if use_case in tasks.CLOSED_DOMAIN]
    return rng.choices(closed, weights=[1] * len(closed), k=size)


def bare_prompt(task):
    """Return the form in which two prompts are compared."""
    return tasks.bare(tasks.prompt(task))


def parts_of_others(drawn, texts):
    """Return the bare prompts of `drawn` tasks that are only a part of some line of `texts`."""
    excluded = corpus.Excluded(map(tasks.prompt, drawn))
    found = set()
    for line in "\n".join(texts).split("\n"):
        whole_line = tasks.bare(line.removeprefix(f"{corpus.QUESTION} "))
        found |= excluded.found_in(line) - {whole_line}
    return found


def record(task, **more):
    """Return a line of a JSONL file. more: further keys, e.g. completion="..."."""
    row = {"prompt": tasks.prompt(task), **more, "use_case": task["use_case"], "task": task}
    return json.dumps(row, separators=(",", ":")) + "\n"


def write_demonstrations(folder, drawn, seed):
    """Write demonstrations.jsonl: every task is answered by a training labeler."""
    labelers = get_labelers("train")
    rng = random.Random(f"{seed} demonstrations")
    lines = []
    for task in drawn:
        labeler = rng.choice(labelers)
        completion = labeler.demonstrate(task)
        lines.append(record(task, completion=completion, labeler=labeler.name))
    write(folder / "demonstrations.jsonl", "".join(lines))


# ---------------------------------------------------------------- the corpus


def draw_corpus(corpus_words, seed, exclude):
    """Return the documents of the corpus, about `corpus_words` words, under a progress bar."""
    rng = random.Random(f"{seed} corpus")
    texts = []
    with tqdm(total=corpus_words, desc="corpus", unit="word", unit_scale=True) as bar:
        for text in corpus.documents(rng, corpus_words, exclude):
            texts.append(text)
            bar.update(text.count(" ") + 1)
    return texts


def write_corpus(folder, text, known):
    """Write corpus.txt, and corpus.sha256, the committed hash that identifies the corpus.

    known: keep the committed hash; a text that does not match it raises UserError.
    """
    found = hashlib.sha256(text.encode("utf-8")).hexdigest()
    if known and found != known_hash(folder):
        raise UserError("the corpus that data/ makes now is not that of "
                        f"{folder / 'corpus.sha256'}: the world was changed; "
                        "run `python -m data.prepare`, which writes all of its files")
    write(folder / "corpus.txt", text)
    if not known:
        write(folder / "corpus.sha256", found + "\n")


def known_hash(folder):
    """Return the SHA-256 that the corpus of this world must have."""
    return read_bytes(folder / "corpus.sha256").decode("ascii", "replace").strip()


def corpus_texts():
    """Return the documents of corpus.txt, which is written first if it is missing.

    Raises UserError if it is not the corpus of this world.
    """
    path = files.FOLDER / "corpus.txt"
    if not path.exists() and not files.OWN:
        prepare(files.FOLDER, corpus_only=True)
    text = read_bytes(path)
    if files.OWN:
        return own.documents(text.decode("utf-8"))
    if hashlib.sha256(text).hexdigest() != known_hash(files.FOLDER):
        raise UserError(f"{path} is not the corpus of this world (cut off, or of an older "
                        "version): run `python -m data.prepare --corpus`")
    return text.decode("utf-8").strip().split("\n\n")


# ---------------------------------------------------------------- the command line


def main():
    """Parse the command line and write the files."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", action="store_true",
                        help="write only corpus.txt, which is not committed")
    prepare(corpus_only=parser.parse_args().corpus)


if __name__ == "__main__":
    flags.guarded(main)
