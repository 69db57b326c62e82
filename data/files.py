"""Files: what is read and written, so that an error is one clear line and nothing is ever lost.

Nothing in this file is needed to understand RLHF. From top to bottom: errors the user can fix;
reading and writing text; one run per folder; checkpoints and their provenance; the metric log.
"""
import contextlib
import ctypes
import dataclasses
import hashlib
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Callable, NamedTuple

from data import tasks, tokenizer
from data.labeler import get_labelers

FOLDER = Path(__file__).parent                              # of the world's files
# The world's committed files, by which a checkpoint remembers its world
SETS = ("demonstrations", "prompts_rm", "prompts_rl", "prompts_valid", "prompts_eval", "prompts_closed")


# ---------------------------------------------------------------- errors, text files


class UserError(Exception):
    """Something the user can mend: shown as one line, exit code 2."""


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


def write_jsonl(path, rows):
    """Write dicts as the lines of a JSONL file, atomically."""
    write(path, "".join(json.dumps(row) + "\n" for row in rows))


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


def read_prompts(name):
    """The rows of a prompts file, e.g. "rm" for prompts_rm.jsonl: dicts with prompt, use_case and task. Raises UserError."""
    return read_jsonl(FOLDER / f"prompts_{name}.jsonl", prompt=str, use_case=str, task=dict)


def read_rankings(path):
    """The lines of out/rankings.jsonl; a line whose ranks do not rank its responses raises UserError."""
    lines = read_jsonl(path, "python reward.py", prompt=str, task=dict, responses=list, ranks=list, round=int)
    for number, line in enumerate(lines, 1):
        if not all(isinstance(r, dict) and isinstance(r.get("text"), str) and isinstance(r.get("ended"), bool) for r in line["responses"]):
            raise UserError(f'{path}, line {number}: a response is {{"text": ..., "ended": true or false}}')
        for ranks in [line["ranks"], *line.get("second_opinions", [])] if isinstance(line.get("second_opinions", []), list) else [None]:
            whole = isinstance(ranks, list) and all(type(rank) is int for rank in ranks) and len(ranks) == len(line["responses"])
            if not whole or sorted(set(ranks)) != list(range(1, len(set(ranks)) + 1)):
                raise UserError(f"{path}, line {number}: {ranks} does not rank {len(line['responses'])} responses (1 is best, equal numbers tie)")
    return lines


def check_room(block_size, sequences, what, more=0):
    """Raises UserError if the longest of some sequences (lists of ids), with `more` tokens behind
    it, does not fit into the context."""
    longest = max(map(len, sequences)) + more
    if longest > block_size:
        raise UserError(f"--block_size {block_size} of the base model is too small: {what} takes "
                        f"{longest} tokens; make the model with "
                        f"`python model.py --block_size {longest}` or more")


# ---------------------------------------------------------------- one run per folder


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


# ---------------------------------------------------------------- checkpoints and their provenance


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
    for path in [*(FOLDER / f"{name}.jsonl" for name in sorted(SETS)), tokenizer.PATH]:
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


def require(config, name, script):
    """The path of an earlier stage's checkpoint; raises UserError if it is missing or of another run."""
    if not made(config, name):
        raise UserError(f"{config.out}/{name}.pt is missing: run `python {script}` first")
    return Path(config.out) / f"{name}.pt"


def sft_epochs(config):
    """The names of the SFT epochs, e.g. ["01", ..., "16"]; one that is missing raises UserError."""
    # Saved last, it knows how many there were
    mixed = require(config, "sft_mix", "sft.py")
    epochs = load_checkpoint(mixed)["extra"]["settings"]["epochs"]
    names = [f"{epoch:02d}" for epoch in range(1, epochs + 1)]
    for path in (Path(config.out) / "sft_epochs" / f"{name}.pt" for name in names):
        if not path.exists():
            raise UserError(f"{path} is missing: delete {mixed}, "
                            "and `python sft.py` makes both again")
    return names


def check_complete(config):
    """Raises UserError if a stage is finished, but something that it left beside its checkpoint is
    missing: says what to delete."""
    out = Path(config.out)
    beside = {"gpt": ["gpt.jsonl"], "sft_mix": ["sft.jsonl", "sft_mix.jsonl"],
              "reward_1": ["reward_1.jsonl", "rankings.jsonl"],
              "reward": ["reward_2.jsonl", "rankings.jsonl", "reward.png"]}
    for name in ("ppo_1", "ppo", "ppo_ptx"):
        beside[name] = [f"{name}.jsonl", f"{name}_value.pt"]
    standing = {name: needed for name, needed in beside.items() if (out / f"{name}.pt").exists()}
    if "sft_mix" in standing:
        sft_epochs(config)
    for file in [file for needed in standing.values() for file in needed]:
        makers = ", ".join(f"{out}/{name}.pt" for name, needed in standing.items() if file in needed)
        if not (out / file).exists():
            raise UserError(f"{out}/{file} is missing: delete {makers}, "
                            "and `python ppo.py` makes all of it again")
        # The pictures are drawn from these
        if file.endswith(".jsonl") and file != "rankings.jsonl":
            read_jsonl(out / file, step=int)


def stage_seconds(path):
    """out/seconds.json: the seconds that each stage has taken so far."""
    stages = ("data", "pretrain", "sft", "reward", "ppo")
    found = read_json(path) if path.exists() else dict.fromkeys(stages, 0.0)
    if not isinstance(found, dict) or any(type(found.get(x)) not in (int, float) for x in stages):
        raise UserError(f"{path}: damaged, delete it")
    return found


def check_sft(config, pairs, block_size):
    """Check what SFT needs before anything is trained. pairs: (prompt ids, response ids).
    block_size: of the base model. Raises UserError."""
    n_train = len(pairs) - len(pairs) // 10                             # a tenth validates
    if n_train == len(pairs) or config.batch_size > n_train:
        raise UserError(f"--batch_size {config.batch_size}: there are only {n_train} "
                        "demonstrations to train on")
    if config.mix >= 1:
        raise UserError(f"--mix {config.mix}: must be less than 1, because it is a share of tokens")
    sequences = [prompt + response for prompt, response in pairs]
    # One less, because the last token is never an input
    check_room(block_size, sequences, "the longest demonstration", -1)


def check_reward(config, block_size, max_new_tokens):
    """Check what a round of rankings needs before anything is trained. block_size: of the base
    model. Raises UserError."""
    prompts = read_prompts("rm")
    earlier, ranked = 0, config.prompts_1
    if config.round == 2:
        earlier, ranked = config.prompts_1, config.prompts_2
    limits = {"round": (config.round, 1, 2),
              "k": (config.k, 3, 9),
              "labelers_per_prompt": (config.labelers_per_prompt, 1, len(get_labelers("train"))),
              f"prompts_{config.round}": (ranked, 1, len(prompts) - earlier),
              "batch_size": (config.batch_size, 1, earlier + ranked)}
    for flag, (value, least, most) in limits.items():
        if not least <= value <= most:
            raise UserError(f"--{flag} {value}: can be {least} to {most} here")
    prompt_ids = tokenizer.encode_prompts(tokenizer.load_cached(), prompts + read_prompts("valid"))
    what = "ranking, the longest prompt with its response,"
    check_room(block_size, prompt_ids, what, max_new_tokens)


def check_rl(config, block_size, max_new_tokens):
    """Check what PPO needs before anything is trained. block_size: of the base model. Raises
    UserError."""
    prompts = read_prompts("rl")
    if len(prompts) < config.rollout_size:
        raise UserError(f"--rollout_size {config.rollout_size}: there are only "
                        f"{len(prompts)} prompts in prompts_rl.jsonl")
    prompt_ids = tokenizer.encode_prompts(tokenizer.load_cached(), prompts)
    what = "RL, the longest prompt with its response,"
    check_room(block_size, prompt_ids, what, max_new_tokens)


def evaluation_prompts(split):
    """Rows of the prompts files: (those that all models answer, closed-domain ones)."""
    prompts = read_prompts(split)
    if split == "eval":
        return prompts, read_prompts("closed")
    return prompts, [row for row in prompts if row["use_case"] in tasks.CLOSED_DOMAIN]


def check_evaluation(split, block_size, max_new_tokens):
    """Check what the evaluation needs before anything is trained. Raises UserError."""
    if split not in ("eval", "valid"):
        raise UserError(f"--split {split}: eval or valid")
    prompts, closed = evaluation_prompts(split)
    if len(prompts) < 2 or not closed:
        raise UserError(f"{FOLDER}/prompts_{split}.jsonl: too few prompts to evaluate on")
    encoding = tokenizer.load_cached()
    prompt_ids = [tokenizer.few_shot_ids(encoding, row["prompt"]) for row in prompts + closed]
    what = "evaluation, GPT's longest prompt, examples and response with it,"
    check_room(block_size, prompt_ids, what, max_new_tokens)


def other_rankings(config):
    """The rankings of the other round: (those to train on too, those only to keep)."""
    path = Path(config.out) / "rankings.jsonl"
    if config.round == 2:
        require(config, "sft", "reward.py")                 # needed at the end: fail early
        return [line for line in read_rankings(path) if line["round"] == 1], []
    if (Path(config.out) / "reward.pt").exists() and path.exists():
        # Round 1 is made again, and round 2's model has learned from its own lines
        return [], [line for line in read_rankings(path) if line["round"] == 2]
    return [], []


class Stage(NamedTuple):
    """One step of the whole run."""
    kind: str               # the entry of seconds.json that its time is added to
    names: list             # of the checkpoints that it makes; none: made every time
    settings: dict          # that these depend on
    check: Callable         # raises UserError if something is missing that training needs
    train: Callable         # makes the checkpoints


def make_missing(config, stages):
    """Train every stage that has no output yet. Returns seconds by kind of stage.

    Everything is checked first, so that no error comes after hours of training."""
    standing = {}
    for stage in stages:
        for name in stage.names:
            standing[name] = stage.settings if stage.kind == "ppo" else None
    check_standing(config, standing)
    for stage in stages:
        if missing(config, stage.names, stage.settings):
            stage.check()
    check_complete(config)
    path = Path(config.out) / "seconds.json"
    seconds = stage_seconds(path)
    for stage in stages:
        if stage.names and not missing(config, stage.names, stage.settings):
            # Its parents may be new
            check_standing(config, {name: standing[name] for name in stage.names})
            continue
        start = time.time()
        stage.train()
        seconds[stage.kind] += time.time() - start
        write(path, json.dumps(seconds))
    return seconds


# ---------------------------------------------------------------- the metric log


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
