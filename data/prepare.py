"""Writes every file of the toy world, seeded: corpus, tokenizer, demonstrations, prompts. Usage: python -m data.prepare

Change a list in data/toytown.py, run this, and everything follows. `--corpus` writes only data/corpus.txt, the one file
that is not committed; the training scripts do that by themselves when it is missing.

Above it, what the four scripts share and a reader of RLHF need not see: the main guard and the
flags, files, checkpoints and where they came from.
"""
import argparse
import contextlib
import ctypes
import dataclasses
import difflib
import errno
import hashlib
import inspect
import json
import math
import os
import random
import re
import sys
import time
from pathlib import Path

from tqdm import tqdm

from data import corpus, tasks, tokenizer
from data.labeler import labelers

FOLDER = Path(__file__).parent
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


# ---------------------------------------------------------------- the main guard and the flags


class UserError(Exception):
    """Something the user can mend: shown as one line, exit code 2."""


def any_terminal():
    """Makes standard input and output bear everything: a character that the terminal cannot show is
    replaced, and a stream that is closed is an empty one."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:                                              # `python model.py <&-`
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))
        elif hasattr(stream, "reconfigure"):
            # a notebook's own streams have no such method, and need none
            stream.reconfigure(errors="replace")


def guarded(work):
    """Runs work(), a command's whole work: what the user can mend, Ctrl-C and a full disk end in
    one clear line and exit code 2. If nobody reads the output any more (`| head -1`), the
    command ends without a word, as others do."""
    any_terminal()
    try:
        try:
            work()
        finally:
            sys.stdout.flush()
        return
    except (UserError, ValueError) as error:
        message = error
    except KeyboardInterrupt:
        message = "stopped; what was finished is kept, run the same command to go on"
    except OSError as error:
        closed = errno.EINVAL if sys.platform == "win32" else errno.EPIPE
        if error.filename is None and error.errno == closed:
            # or Python would complain when it closes the stream
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            # What a shell shows for a command that SIGPIPE ended
            sys.exit(141)
        message = f"{error.filename or 'a file'} cannot be written or read ({error.strerror}); what was saved before is untouched"
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not re.search("alloc|out of memory", str(error)):
            raise
        message = "not enough memory for a model or a batch of this size: choose smaller ones"
    print(f"\nerror: {message}", file=sys.stderr)
    sys.exit(2)


def parse_flags(config_class, doc, argv=None):
    """The dataclass as command-line flags: --help shows each field's comment and default, a typo gets the nearest name."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    source = "".join(inspect.getsource(c) for c in reversed(config_class.__mro__) if dataclasses.is_dataclass(c))
    comments = dict(re.findall(r"^    (\w+):[^#\n]*#\s*(.*)$", source, re.M))
    names = [field.name for field in dataclasses.fields(config_class)]
    for field in dataclasses.fields(config_class):
        parser.add_argument(f"--{field.name}", type=type(field.default), default=argparse.SUPPRESS,
                            metavar=str(field.default) or "TEXT",
                            help=comments.get(field.name, "").replace("%", "%%"))
    flags, unknown = parser.parse_known_args(argv)
    if unknown:
        near = difflib.get_close_matches(unknown[0].lstrip("-").split("=")[0], names, 1, 0.4)
        parser.error(f"unknown flag {unknown[0]}" + (f"; did you mean --{near[0]}?" if near else ""))
    for name, value in vars(flags).items():
        # argparse makes an empty list of "--lr=--"
        if not isinstance(value, (int, float, str)) or value == "":
            parser.error(f"--{name}: needs a value")
        if isinstance(value, int) and value < (name != "seed") or isinstance(value, float) and not 0 <= value < math.inf:
            parser.error(f"--{name} {value}: must be {'0' if name == 'seed' or isinstance(value, float) else '1'} or more")
        if isinstance(value, int) and value >= 2 ** 63:         # torch counts no further
            parser.error(f"--{name} {value}: too large")
    return config_class(**vars(flags))


def run_script(train, config_class, doc):
    """The main guard of every script: flags in, one clear line and exit code 2 if something goes wrong."""
    guarded(lambda: train(parse_flags(config_class, doc)))


# ---------------------------------------------------------------- files


def writable(folder):
    """Makes the folder that --out names; raises UserError if nothing can be written into it."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / ".writable").touch()
        (Path(folder) / ".writable").unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be written to ({error.strerror})") from None


def runs(pid):
    """Whether there is a process of this number."""
    if sys.platform == "win32":              # os.kill(pid, 0) would not ask there, but interrupt
        kernel, code = ctypes.windll.kernel32, ctypes.c_ulong(0)
        process = kernel.OpenProcess(0x1000, False, pid)    # PROCESS_QUERY_LIMITED_INFORMATION
        kernel.GetExitCodeProcess(process, ctypes.byref(code))
        kernel.CloseHandle(process)
        return code.value == 259                                        # STILL_ACTIVE
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:                                             # somebody else's
        pass
    return True


@contextlib.contextmanager
def alone_in(folder, name=".lock"):
    """One run at a time in a folder: the file .lock holds the number of the process that works
    there; UserError if it still does. A killed run's lock is taken over."""
    writable(folder)
    lock = Path(folder) / name
    while True:
        try:
            with open(lock, "x", encoding="utf-8", newline="\n") as file:
                file.write(str(os.getpid()))
            break
        except FileExistsError:
            # it may be about to write its number, or to end
            for wait in (0.2, 0):
                owner = lock.read_text(encoding="utf-8", errors="replace") if lock.exists() else ""
                time.sleep(0 if owner else wait)
        if owner.isdecimal() and int(owner) != os.getpid() and runs(int(owner)):
            raise UserError(f"another run (process {owner}) works in {folder}: let it end, or "
                            f"choose another folder with --out; if there is none, delete {lock}")
        lock.unlink(missing_ok=True)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


def write(path, text):
    """Writes a file whole or not at all: to a neighbour first, then renamed."""
    # a name of its own, because two runs may make the same corpus at once
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8", newline="\n")
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written ({error.strerror}); what was saved before is untouched") from None


def read_bytes(path, maker="python -m data.prepare"):
    """A text file's bytes, its lines ended by LF: the same on every system. maker: the command that
    writes it. A missing file raises UserError."""
    try:
        return Path(path).read_bytes().replace(b"\r\n", b"\n")
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run `{maker}`") from None


def read_json(path):
    """A JSON file's content; a missing or damaged one raises UserError."""
    try:
        return json.loads(read_bytes(path).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged, delete it ({error})") from None


def read_jsonl(path, maker="python -m data.prepare", **types):
    """The lines of a JSONL file as dicts. maker: the command that writes it; types: the keys that each must have, e.g. prompt=str. A
    missing file and a bad line raise UserError."""
    rows = []
    for number, line in enumerate(read_bytes(path, maker).splitlines(), 1):
        try:
            row = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: {error}") from None
        for key, kind in types.items():
            if not isinstance(row, dict) or not isinstance(row.get(key), kind):
                raise UserError(f'{path}, line {number}: "{key}" is missing or not a {kind.__name__}')
        if "task" in types:
            try:
                tasks.prompt(row["task"])
            except Exception as error:                                  # whatever a task that is none may do to its reader
                raise UserError(f'{path}, line {number}: "task" is not one of this world ({type(error).__name__}: {error})') from None
        rows.append(row)
    if not rows:
        raise UserError(f"{path}: empty")
    return rows


def check_room(block_size, sequences, what, more=0):
    """Raises UserError if the longest of some sequences (lists of ids), with `more` tokens behind
    it, does not fit into the context."""
    longest = max(map(len, sequences)) + more
    if longest > block_size:
        raise UserError(f"--block_size {block_size} of the base model is too small: {what} takes "
                        f"{longest} tokens; make the model with "
                        f"`python model.py --block_size {longest}` or more")


EVALUATION = ("prompts_valid", "prompts_eval", "prompts_closed")    # what is measured: no prompt of these stands anywhere else

PROMPT = {"prompt": str, "use_case": str, "task": dict}             # what a line of a prompts file must have


# ------------------------------------------------------------- checkpoints and where they came from


def fingerprint(state, *more):
    """SHA-256 of tensors (names, shapes, bytes) and of anything else that goes through JSON."""
    digest = hashlib.sha256(json.dumps(more, sort_keys=True, default=str).encode())
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_checkpoint(path, model, **extra):
    """Writes weights, shape and `extra` (stage, its config, seed, parents' hashes), whole or not at all; returns the hash."""
    path = Path(path)
    import torch                            # here, because to write the world takes none

    saved = {"kind": type(model).__name__, "config": dataclasses.asdict(model.config),
             "state": {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}, "extra": extra}
    saved["sha256"] = fingerprint(saved["state"], saved["kind"], saved["config"], extra)
    partial = path.with_name(path.name + ".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.save(saved, partial)
        os.replace(partial, path)
    except (OSError, RuntimeError):             # torch reports a full disk as a RuntimeError
        partial.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written (is the disk full?); what was saved before is untouched") from None
    return saved["sha256"]


def load_checkpoint(path, device="cpu"):
    """A dict with kind, config, state, extra and sha256. No pickle is executed; a missing, damaged or foreign file raises
    UserError (torch alone would load a flipped bit without a word)."""
    import torch

    if not Path(path).exists():
        raise UserError(f"{path}: no such checkpoint")
    try:
        saved = torch.load(path, map_location=device, weights_only=True)
        intact = saved["sha256"] == fingerprint(saved["state"], saved["kind"], saved["config"], saved["extra"])
    except Exception as error:
        raise UserError(f"{path}: not a checkpoint of this project, or damaged ({type(error).__name__})") from None
    if not intact:
        raise UserError(f"{path}: damaged, its contents do not match their hash; make it again")
    if not all(tensor.isfinite().all() for tensor in saved["state"].values()):
        raise UserError(f"{path}: holds weights that are not numbers (NaN or infinity); make it again")
    return saved


def settings_of(config):
    """The settings that a checkpoint remembers and that another run must have in common with it."""
    others = ("out", "device", "seed", "chat")
    return {k: v for k, v in dataclasses.asdict(config).items() if k not in others}


def stage_extra(config, stage, made_from=()):
    """What a checkpoint says of its making: stage, settings, seed, and the hashes of the checkpoints it was made from."""
    hashes = {name: load_checkpoint(Path(config.out) / f"{name}.pt")["sha256"] for name in made_from}
    return {"stage": stage, "settings": settings_of(config), "seed": config.seed,
            "world": world_hash(), "parents": hashes}


def world_hash():
    """A hash of the world's committed files: runs of different worlds do not mix. Line ends do not
    count (git may turn them), and no stray file does. A missing file raises UserError."""
    digest = hashlib.sha256()
    for path in [*(FOLDER / f"{name}.jsonl" for name in sorted(SIZES)), tokenizer.PATH]:
        digest.update(path.name.encode() + read_bytes(path))
    return digest.hexdigest()


def made(config, name, settings=None):
    """Whether out/name.pt exists; raises UserError if it belongs to another run (seed, world, settings or parents differ)."""
    check_standing(config, {name: settings})
    return (Path(config.out) / f"{name}.pt").exists()


def check_standing(config, products):
    """products: {name: the settings that would make it, None if any will do}. Raises one UserError
    if some that exist belong to another run; it names the first, why, and all that has to go:
    what was made from them, too."""
    reasons = {name: complaint(config, name, settings or {}) for name, settings in products.items()
               if (Path(config.out) / f"{name}.pt").exists()}
    wrong = [name for name, reason in reasons.items() if reason]
    if wrong:
        files = ", ".join(f"{config.out}/{name}.pt" for name in with_descendants(config.out, wrong))
        raise UserError(f"{reasons[wrong[0]]} or delete {files}")


def complaint(config, name, settings):
    """Why out/name.pt cannot stand in this run, and what to do other than delete it; "" if it can.
    A parent that is missing is no reason: the same run makes it again, to the bit."""
    path = Path(config.out) / f"{name}.pt"
    extra = load_checkpoint(path)["extra"]
    elsewhere = "choose another folder with --out,"
    if extra.get("seed") != config.seed:
        return (f"{path} was made with seed {extra.get('seed')}, not {config.seed}: "
                f"choose another folder, --out {config.out}_{config.seed},")
    if extra.get("world") != world_hash():
        return (f"{path} was made in another world, the files in data/ have changed since: "
                f"run `python -m data.prepare --corpus`; {elsewhere}")
    for key, value in settings.items():
        if extra["settings"].get(key) != value:
            before = extra["settings"].get(key)
            return f"{path} was made with --{key} {before}, not {value}: {elsewhere}"
    for parent, sha in extra["parents"].items():
        file = Path(config.out) / f"{parent}.pt"
        if file.exists() and load_checkpoint(file)["sha256"] != sha:
            return (f"{path} was made from another {parent}.pt than the one in {config.out}: "
                    f"{elsewhere}")
    return ""


def with_descendants(out, names):
    """The names, and those of all checkpoints in `out` made from them, directly or not."""
    parents, found = {}, list(names)
    for path in sorted(Path(out).glob("*.pt")):
        try:
            parents[path.stem] = load_checkpoint(path)["extra"]["parents"]
        except (UserError, KeyError):                                   # not one of a run's
            continue
    for one in found:
        found += [name for name in parents if one in parents[name] and name not in found
                  and not name.endswith("_value")]
    return found


def missing(config, names, settings):
    """Which of the checkpoints that a stage makes together are missing. If only some are, the stage
    makes all again, to the bit; so those that stand must have been made with the settings it
    would use now, else UserError."""
    there = {name: (Path(config.out) / f"{name}.pt").exists() for name in names}
    gone = [name for name in names if not there[name]]
    try:
        check_standing(config, {name: settings for name in names if there[name] and gone})
    except UserError as error:
        raise UserError(f"{config.out}/{gone[0]}.pt is missing, and {error}") from None
    return gone


def alone(config, names, settings, work):
    """The command line's way into a stage that makes these checkpoints: one run at a time in a
    folder, and what is finished is not replaced (UserError); work(config) as a function replaces
    it."""
    with alone_in(config.out):
        if names and not missing(config, names, settings):
            check_standing(config, dict.fromkeys(names, settings))
            raise UserError(f"{config.out}/{names[0]}.pt stands already, "
                            "trained with these settings: delete it to train again")
        work(config)


def context_of(config, base=None):
    """The context, in tokens, of out/gpt.pt, or of the model that is still to be made with the
    settings `base`; infinity if unknown."""
    path = Path(config.out) / "gpt.pt"
    if path.exists():
        return load_checkpoint(path)["config"]["block_size"]
    return base.block_size if base else math.inf


def need(config, name, script):
    """The path of an earlier stage's checkpoint; raises UserError if it is missing or of another run."""
    if not made(config, name):
        raise UserError(f"{config.out}/{name}.pt is missing: run `python {script}` first")
    return Path(config.out) / f"{name}.pt"


class MetricLog:
    """out/name.jsonl, a line at a time. NaN or infinity in training stops it with one line."""

    def __init__(self, config, name):
        self.path = Path(config.out) / f"{name}.jsonl"
        self.file = open(self.path, "w", encoding="utf-8", newline="\n")

    def write(self, **metrics):
        for name, value in metrics.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"{name} became {value} at step {metrics.get('step')} (see {self.path}): lower the learning rate")
        self.file.write(json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in metrics.items()}) + "\n")
        self.file.flush()


# ---------------------------------------------------------------- the world


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
    path = FOLDER / "corpus.txt"
    if not path.exists():
        prepare(FOLDER, corpus_only=True)
    text = read_bytes(path)
    if hashlib.sha256(text).hexdigest() != known_hash(FOLDER):
        raise UserError(f"{path} is not the corpus of this world (cut off, or of an older "
                        "version): run `python -m data.prepare --corpus`")
    return text.decode("utf-8").strip().split("\n\n")


def record(task, **more):
    """A line of a JSONL file."""
    return json.dumps({"prompt": tasks.prompt(task), **more, "use_case": task["use_case"], "task": task}, separators=(",", ":")) + "\n"


def prepare(folder=FOLDER, sizes=SIZES, corpus_words=CORPUS_WORDS, seed=SEED, corpus_only=False):
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
        people, rng = labelers("train"), random.Random(f"{seed} demonstrations")
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
    flags = parser.parse_args()
    prepare(corpus_only=flags.corpus)


if __name__ == "__main__":
    guarded(main)
