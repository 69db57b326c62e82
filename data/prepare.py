"""Writes every file of the toy world, seeded: corpus, tokenizer, demonstrations, prompts. Usage: python -m data.prepare

Change a list in data/toytown.py, run this, and everything follows. `--corpus` writes only data/corpus.txt, the one file
that is not committed; the training scripts do that by themselves when it is missing.
"""
import argparse
import hashlib
import json
import random
import time
from pathlib import Path

from tqdm import tqdm

from data import corpus, files, flags, tasks, tokenizer
from data.files import UserError, read_bytes, write
from data.labeler import get_labelers

SEED = 2022                             # of the world, not of a training run: all runs share one world
CORPUS_WORDS = 2_600_000                # about 3.8 million tokens (GPT-3: 300 billion)
# Prompts: [ours] (the paper's, Table 6). The labelers' demonstrations are SFT data; RL prompts have no labels at all.
SIZES = {"demonstrations": 3_000,       # (12,725)
         "prompts_rm": 20_000,          # (33,207)
         "prompts_rl": 8_000,           # (31,144)
         "prompts_valid": 1_000,        # (17,887 for the RM, 1,653 for SFT): model selection and development
         "prompts_eval": 1_000,         # (3,196, Table 9)
         "prompts_closed": 500}         # closed-domain tasks only, for the hallucination figure
HELD_OUT_PHRASINGS = {"prompts_eval": 0.15, "prompts_closed": 0.15}     # the share of phrasings never seen in training

FURTHER_WORDINGS = {"demonstrations": 0.4, "prompts_rm": 0.4, "prompts_rl": 0.4}   # the share in one of the further wordings
HASTE = {"demonstrations": 0.3, "prompts_rm": 0.3, "prompts_rl": 0.3}              # the share typed in haste
EVALUATION = ("prompts_valid", "prompts_eval", "prompts_closed")    # what is measured: no prompt of these stands anywhere else


def draw_prompts(sizes=SIZES, seed=SEED, seen=()):
    """{set name: list of tasks}, no prompt in two sets or twice in one or in `seen`, compared by tasks.bare. Evaluation sets are drawn
    first, and without prompts so short that other texts of the town hold them ("Name two animals" that live in the sea)."""
    seen, sets = set(map(tasks.bare, seen)), {}
    ordinary = list(corpus.documents(random.Random(f"{seed} ordinary"), 200_000)) if set(sizes) & set(EVALUATION) else []
    for name in reversed(list(sizes)):
        rng, sets[name] = random.Random(f"{seed} {name}"), []
        cases = [c for c in tasks.USE_CASES if name != "prompts_closed" or c in tasks.CLOSED_DOMAIN]
        shares = [1 if name == "prompts_closed" else tasks.USE_CASES[c] for c in cases]
        chances = dict(held_out=HELD_OUT_PHRASINGS.get(name, 0.0), further=FURTHER_WORDINGS.get(name, 0.0), haste=HASTE.get(name, 0.0))
        wanted, short = rng.choices(cases, weights=shares, k=sizes[name]), set()
        while wanted:
            for case in wanted:             # the use case stays when a prompt is drawn again, so that proportions do not bend
                task = tasks.new_task(rng, case, **chances)
                while (bare := tasks.bare(tasks.prompt(task))) in seen or bare in short:
                    task = tasks.new_task(rng, case, **chances)
                seen.add(bare)
                sets[name].append(task)
            short |= parts_of_others(sets[name], ordinary) if name in EVALUATION else set()
            wanted = [task["use_case"] for task in sets[name] if tasks.bare(tasks.prompt(task)) in short]
            sets[name] = [task for task in sets[name] if tasks.bare(tasks.prompt(task)) not in short]
        seen -= short                       # good enough to train on
    return sets


def parts_of_others(drawn, texts):
    """Bare prompts of `drawn` tasks that stand in a line of `texts` with something else behind or before them."""
    excluded, found = corpus.Excluded(map(tasks.prompt, drawn)), set()
    for line in "\n".join(texts).split("\n"):
        found |= excluded.found_in(line) - {tasks.bare(line.removeprefix(f"{corpus.QUESTION} "))}
    return found


def write_corpus(folder, text, known):
    """corpus.txt, and corpus.sha256, which is committed and by which the corpus is recognised.
    known: the committed hash stays; a text that does not fit it raises UserError."""
    found = hashlib.sha256(text.encode("utf-8")).hexdigest()
    if known and found != known_hash(folder):
        raise UserError("the corpus that data/ makes now is not that of "
                        f"{folder / 'corpus.sha256'}: the world was changed; "
                        "run `python -m data.prepare`, which writes all of its files")
    write(folder / "corpus.txt", text)
    if not known:
        write(folder / "corpus.sha256", found + "\n")


def known_hash(folder):
    """The SHA-256 that the corpus of a world must have."""
    return read_bytes(folder / "corpus.sha256").decode("ascii", "replace").strip()


def corpus_texts():
    """The documents of corpus.txt, which is made if it is missing; raises UserError if it is not
    the corpus of this world."""
    path = files.FOLDER / "corpus.txt"
    if not path.exists():
        prepare(files.FOLDER, corpus_only=True)
    text = read_bytes(path)
    if hashlib.sha256(text).hexdigest() != known_hash(files.FOLDER):
        raise UserError(f"{path} is not the corpus of this world (cut off, or of an older "
                        "version): run `python -m data.prepare --corpus`")
    return text.decode("utf-8").strip().split("\n\n")


def record(task, **more):
    """A line of a JSONL file."""
    return json.dumps({"prompt": tasks.prompt(task), **more, "use_case": task["use_case"], "task": task}, separators=(",", ":")) + "\n"


def prepare(folder=files.FOLDER, sizes=SIZES, corpus_words=CORPUS_WORDS, seed=SEED, corpus_only=False):
    """Writes the files into `folder`. With corpus_only: corpus.txt alone, from the same draws."""
    start, folder = time.time(), Path(folder)
    sets = draw_prompts(sizes, seed)
    exclude = [tasks.prompt(task) for name in EVALUATION if name in sets for task in sets[name]]
    texts, bar = [], tqdm(total=corpus_words, desc="corpus", unit="word", unit_scale=True)
    for text in corpus.documents(random.Random(f"{seed} corpus"), corpus_words, exclude):
        texts.append(text)
        bar.update(text.count(" ") + 1)
    bar.close()
    write_corpus(folder, "\n\n".join(texts) + "\n", corpus_only)
    if not corpus_only:
        write(folder / "toytown.tiktoken", tokenizer.dump(tokenizer.train(tokenizer.spaced("\n".join(texts[:30_000])))))
        people, rng = get_labelers("train"), random.Random(f"{seed} demonstrations")
        lines = []
        for task in sets["demonstrations"]:
            person = rng.choice(people)
            lines.append(record(task, completion=person.demonstrate(task), labeler=person.name))
        write(folder / "demonstrations.jsonl", "".join(lines))
        for name in [name for name in sizes if name.startswith("prompts_")]:
            write(folder / f"{name}.jsonl", "".join(record(task) for task in sets[name]))
    print(f"data: {len(texts):,} documents and {sum(map(len, sets.values())):,} prompts in {folder}, {time.time() - start:.0f} s. Next: python model.py")


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", action="store_true", help="write only corpus.txt, which is not committed")
    prepare(corpus_only=parser.parse_args().corpus)


if __name__ == "__main__":
    flags.guarded(main)
