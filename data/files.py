"""Files and checkpoints. Nothing in this file is needed to understand RLHF.

From top to bottom: errors and text files; prompts and rankings; one run per folder; checkpoints;
where a checkpoint came from; stages and what they need; the metric log. Two rules hold everywhere:
an error that the user can fix is one clear line, and a killed run never damages a file.
"""
import codecs
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

FOLDER = Path(__file__).parent      # of the world's files; --data changes it, see data/own.py
LONGEST = 100_000                   # characters of one text in a JSONL file
OWN = False                         # whether the world is the user's texts (--data), not Toytown
# The world's files. Their hash tells a checkpoint which world it belongs to.
SETS = ("demonstrations", "prompts_rm", "prompts_rl",
        "prompts_valid", "prompts_eval", "prompts_closed")


# ---------------------------------------------------------------- errors and text files


class UserError(Exception):
    """An error the user can fix, shown as one line (exit code 2)."""


def write(path, text):
    """Write a text file atomically: first to a temporary file beside it, which is then renamed.

    Renaming is atomic, so a killed run leaves either the old file or the new one.
    """
    # The name has the process number, because two runs may write the same corpus at once.
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8", newline="\n")
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written ({error.strerror}); "
                        "what was saved before is untouched") from None


def write_jsonl(path, rows):
    """Write dicts as the lines of a JSONL file, atomically."""
    write(path, "".join(json.dumps(row) + "\n" for row in rows))


def read_bytes(path, maker="python -m data.prepare"):
    """Return a text file's bytes with LF line ends, because git on Windows may check out CRLF.

    A byte-order mark is left out. maker: the command that writes the file. A missing file raises
    UserError.
    """
    try:
        return Path(path).read_bytes().removeprefix(codecs.BOM_UTF8).replace(b"\r\n", b"\n")
    except FileNotFoundError:
        advice = f"run `{maker}`"
        if OWN and Path(path).parent == FOLDER:
            advice = "see data/README.md"
        raise UserError(f"{path} is missing: {advice}") from None


def read_json(path):
    """Return a JSON file's content. A missing or damaged file raises UserError."""
    try:
        return json.loads(read_bytes(path).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged, delete it ({error})") from None


def read_jsonl(path, maker="python -m data.prepare", **types):
    """Return the lines of a JSONL file as dicts.

    maker: the command that writes the file.
    types: the keys that every line must have, with their types, e.g. prompt=str.
    A missing file, an empty file and a bad line raise UserError.
    """
    return [row for _, row in numbered_rows(path, maker, **types)]


def numbered_rows(path, maker="python -m data.prepare", **types):
    """`read_jsonl` with the number of each line: a list of (number, dict). Blank lines count."""
    rows = []
    for number, line in enumerate(read_bytes(path, maker).split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: {error}") from None
        if isinstance(row, dict) and "messages" in row:
            row = row | from_messages(row["messages"], f"{path}, line {number}")
        check_row(row, f"{path}, line {number}", types)
        if OWN:                             # a user's task is not one of Toytown's
            row.pop("task", None)
            row.pop("use_case", None)
        rows.append((number, row))
    if not rows:
        raise UserError(f"{path}: empty")
    return rows


def from_messages(messages, place):
    """Return the prompt, and the completion if there is one, of a list of chat messages.

    [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}], the form in which
    other libraries store conversations. Anything else raises UserError.
    """
    names = {"user": "prompt", "assistant": "completion"}
    row = {}
    for message in messages if isinstance(messages, list) else [None]:
        role = message.get("role") if isinstance(message, dict) else None
        name = names.get(role) if isinstance(role, str) else None
        if name is None or name in row or name == "prompt" and row:
            raise UserError(f'{place}: "messages" must be one message of the user and at most one '
                            "of the assistant after it")
        row[name] = message.get("content")
    return row


def check_row(row, place, types):
    """Raise UserError if a row lacks a key of `types`, or if its task cannot be put into words.

    Nor may a text be blank, because there is nothing to learn from it, or very long.
    """
    for key, kind in types.items():
        if not isinstance(row, dict) or not isinstance(row.get(key), kind):
            raise UserError(f'{place}: "{key}" is missing or not a {kind.__name__}')
        if kind is str and not row[key].strip():
            raise UserError(f'{place}: "{key}" is blank')
        if kind is str and len(row[key]) > LONGEST:
            raise UserError(f'{place}: "{key}" is longer than {LONGEST:,} characters')
    if "task" in types:
        try:
            tasks.prompt(row["task"])
        except Exception as error:          # an arbitrary dict can fail in any way
            raise UserError(f'{place}: "task" is not one of this world '
                            f"({type(error).__name__}: {error})") from None


# ---------------------------------------------------------------- prompts and rankings


def read_prompts(name):
    """Return the rows of a prompts file, e.g. "rm" for prompts_rm.jsonl. May raise UserError.

    A row is a dict with prompt, use_case and task.
    """
    path = FOLDER / f"prompts_{name}.jsonl"
    if OWN:                                 # texts of the user's own have no tasks
        return read_jsonl(path, prompt=str)
    return read_jsonl(path, prompt=str, use_case=str, task=dict)


def read_rankings(path):
    """Return the lines of out/rankings.jsonl. Raises UserError if ranks and responses disagree."""
    types = dict(prompt=str, responses=list, ranks=list, round=int)
    if not OWN:                             # texts of the user's own have no tasks
        types["task"] = dict
    rows = numbered_rows(path, "python reward.py", **types)
    for number, ranking in rows:
        check_ranking(ranking, f"{path}, line {number}")
    return [ranking for _, ranking in rows]


def check_ranking(ranking, place):
    """Raise UserError if ranks and responses of a ranking disagree."""
    check_responses(ranking, place)
    responses = ranking["responses"]
    others = ranking.get("second_opinions", [])
    if not isinstance(others, list):
        others = [others]                                   # refused below
    for ranks in [ranking["ranks"], *others]:
        if not ranks_all(ranks, len(responses)):
            raise UserError(f'{place}: "ranks": {ranks} does not rank {len(responses)} '
                            "responses (1 is best, equal numbers tie, no gaps)")


def check_responses(row, place):
    """Raise UserError if some response of a row is none."""
    if not all(map(is_response, row["responses"])):
        raise UserError(f'{place}: "responses": each is {{"text": ..., "ended": true or false}}')


def is_response(value):
    """Return whether a value from a JSON file is a response."""
    if not isinstance(value, dict):
        return False
    text = value.get("text")
    return isinstance(text, str) and len(text) <= LONGEST and isinstance(value.get("ended"), bool)


def ranks_all(ranks, n):
    """Return whether `ranks` are n whole numbers from 1 without gaps."""
    if not isinstance(ranks, list) or len(ranks) != n:
        return False
    if any(type(rank) is not int for rank in ranks):        # isinstance would accept True
        return False
    distinct = sorted(set(ranks))
    return distinct == list(range(1, len(distinct) + 1))


def check_room(block_size, sequences, what, more=0):
    """Raise UserError if some sequence does not fit into the context.

    sequences: lists of ids. more: the number of tokens that follow them.
    """
    ids = max(sequences, key=len)
    longest = len(ids) + more
    if longest > block_size:
        if OWN:                             # so that the user finds it
            text = tokenizer.load_cached().decode(ids[1:12])
            what += f' ("{" ".join(text.split())} ...")'
        raise UserError(f"--block_size {block_size} of the base model is too small: {what} takes "
                        f"{longest} tokens; make the model with "
                        f"`python model.py --block_size {longest}` or more")


# ---------------------------------------------------------------- one run per folder


@contextlib.contextmanager
def alone_in(folder, name=".lock", flag="--out"):
    """Let one run at a time work in a folder, because two runs would overwrite each other's files.

    The lock is a file that holds the number of the process that works there. If that process is
    alive, UserError is raised. The lock of a killed process is replaced. flag: names the folder.
    """
    writable(folder, flag)
    lock = Path(folder) / name
    while True:
        try:
            # Mode "x" fails if the file exists, so only one of two processes can create it.
            with open(lock, "x", encoding="utf-8", newline="\n") as file:
                file.write(str(os.getpid()))
            break
        except FileExistsError:
            owner = owner_of(lock)
            if not owner:               # it may be about to write its number, or about to end
                time.sleep(0.2)
                owner = owner_of(lock)
        if owner.isdecimal() and int(owner) != os.getpid() and runs(int(owner)):
            raise UserError(f"another run (process {owner}) works in {folder}: let it end, or "
                            f"choose another folder with {flag}; if there is none, delete {lock}")
        lock.unlink(missing_ok=True)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


def writable(folder, flag="--out"):
    """Create the folder that a flag names. Raises UserError if nothing can be written into it."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / ".writable").touch()
        (Path(folder) / ".writable").unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{flag} {folder}: cannot be written to ({error.strerror})") from None


def owner_of(lock):
    """Return what is written in a lock file: a process number, or "" if there is nothing."""
    return lock.read_text(encoding="utf-8", errors="replace") if lock.exists() else ""


def runs(pid):
    """Return whether a process with this number is alive."""
    if sys.platform == "win32":             # os.kill(pid, 0) would interrupt the process there
        kernel = ctypes.windll.kernel32
        code = ctypes.c_ulong(0)
        process = kernel.OpenProcess(0x1000, False, pid)    # PROCESS_QUERY_LIMITED_INFORMATION
        kernel.GetExitCodeProcess(process, ctypes.byref(code))
        kernel.CloseHandle(process)
        return code.value == 259                            # STILL_ACTIVE
    try:
        os.kill(pid, 0)                                     # signal 0 only checks
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:                                 # alive, but of another user
        pass
    return True


# ---------------------------------------------------------------- checkpoints


def save_checkpoint(path, model, **extra):
    """Save weights, config and `extra` atomically. Returns the hash.

    extra: where the checkpoint came from, as `stage_extra` returns it.
    """
    weights = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    return save(path, type(model).__name__, dataclasses.asdict(model.config), weights, extra)


def save(path, kind, config, state, extra):
    """`save_checkpoint`, from the five parts of a checkpoint. Returns the hash."""
    import torch                            # here, because writing the world needs no torch

    path = Path(path)
    saved = {"kind": kind, "config": config, "state": state, "extra": extra}
    saved["sha256"] = fingerprint(state, kind, config, extra)
    partial = path.with_name(path.name + ".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.save(saved, partial)
        os.replace(partial, path)
    except (OSError, RuntimeError):         # torch reports a full disk as a RuntimeError
        partial.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written (is the disk full?); "
                        "what was saved before is untouched") from None
    return saved["sha256"]


def load_checkpoint(path, device="cpu"):
    """Return a dict with kind, config, state, extra and sha256.

    A missing, damaged or foreign file raises UserError. The hash is checked, because torch alone
    loads a file with a flipped bit without an error.
    """
    import torch

    if not Path(path).exists():
        raise UserError(f"{path}: no such checkpoint")
    try:
        # weights_only, because unpickling a file from elsewhere could execute code in it.
        saved = torch.load(path, map_location=device, weights_only=True)
        sha256 = fingerprint(saved["state"], saved["kind"], saved["config"], saved["extra"])
        intact = saved["sha256"] == sha256
    except Exception as error:              # a damaged file can fail in any way
        raise UserError(f"{path}: not a checkpoint of this project, or damaged "
                        f"({type(error).__name__})") from None
    if not intact:
        raise UserError(f"{path}: damaged, its contents do not match their hash; make it again")
    if not all(tensor.isfinite().all() for tensor in saved["state"].values()):
        raise UserError(f"{path}: holds weights that are not numbers (NaN or infinity); "
                        "make it again")
    return saved


def fingerprint(state, *more):
    """Return the SHA-256 of tensors (names, shapes, bytes) and of anything that JSON can write."""
    digest = hashlib.sha256(json.dumps(more, sort_keys=True, default=str).encode())
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        array = tensor.detach().cpu().contiguous().numpy()
        digest.update(array.tobytes())
    return digest.hexdigest()


# ---------------------------------------------------------------- where a checkpoint came from

# A run that is started again keeps the stages that are finished. If it has another seed, other
# settings, another world or other parents, it would mix two experiments in one folder. Each
# checkpoint therefore stores these four, and a run refuses a checkpoint that differs in one.


def stage_extra(config, stage, made_from=()):
    """Return the provenance of a checkpoint: stage, settings, seed, world and parents' hashes.

    made_from: the names of the parent checkpoints, e.g. ["sft_mix", "reward"].
    """
    parents = {name: load_checkpoint(checkpoint(config, name))["sha256"] for name in made_from}
    extra = {"stage": stage, "settings": settings_of(config), "seed": config.seed,
             "world": world_hash(), "parents": parents}
    if OWN:
        extra["own"] = True
    return extra


def checkpoint(config, name):
    """Return the path of out/name.pt."""
    return Path(config.out) / f"{name}.pt"


def settings_of(config):
    """Return the settings that a checkpoint stores and that a later run must share."""
    settings = dataclasses.asdict(config)
    for flag in ("out", "device", "seed", "chat", "quick", "data", "rankings", "unranked"):
        settings.pop(flag, None)
    return settings


def world_hash():
    """Return a hash of the world's committed files. A missing file raises UserError.

    It depends neither on line ends, which git may change, nor on other files in the folder.
    """
    paths = [FOLDER / f"{name}.jsonl" for name in sorted(SETS)]
    if OWN:         # rankings may come later, and a reward model stores their hash
        paths = [path for path in [*paths, FOLDER / "corpus.txt"] if path.exists()]
    paths.append(tokenizer.PATH)
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode() + read_bytes(path))
    return digest.hexdigest()


def made(config, name, settings=None):
    """Return whether out/name.pt exists. Raises UserError if it belongs to another run."""
    check_standing(config, {name: settings})
    return checkpoint(config, name).exists()


def check_standing(config, products):
    """Raise UserError if some existing checkpoint belongs to another run.

    products: {name: the settings that this run would use, or None if any will do}. The error names
    the first such checkpoint, the reason, and all files to delete. These include what was made
    from it.
    """
    reasons = {}
    for name, settings in products.items():
        if checkpoint(config, name).exists():
            reason = complaint(config, name, settings or {})
            if reason:
                reasons[name] = reason
    if reasons:
        first = next(iter(reasons))
        names = with_descendants(config.out, list(reasons))
        to_delete = ", ".join(f"{config.out}/{name}.pt" for name in names)
        raise UserError(f"{reasons[first]} or delete {to_delete}")


def complaint(config, name, settings):
    """Return why out/name.pt belongs to another run, or "" if it does not.

    The text ends with what the user can do instead of deleting it. A missing parent is no reason,
    because the same run makes it again bit by bit.
    """
    path = checkpoint(config, name)
    extra = load_checkpoint(path)["extra"]
    elsewhere = "choose another folder with --out,"
    if extra.get("seed") != config.seed:
        return (f"{path} was made with seed {extra.get('seed')}, not {config.seed}: "
                f"choose another folder, --out {config.out}_{config.seed},")
    if extra.get("world") != world_hash():
        return (f"{path} was made in another world, or the files in {FOLDER} have changed since: "
                f"{elsewhere}")
    for key, value in settings.items():
        before = extra["settings"].get(key)
        if before != value:
            if key == "rankings":
                if extra["stage"] == "sft":         # its parent, reward_1, is compared instead
                    continue
                return f"{path} was made with other rankings than those given now: {elsewhere}"
            return f"{path} was made with --{key} {before}, not {value}: {elsewhere}"
    for parent, sha256 in extra["parents"].items():
        parent_path = checkpoint(config, parent)
        if parent_path.exists() and load_checkpoint(parent_path)["sha256"] != sha256:
            return (f"{path} was made from another {parent}.pt than the one in {config.out}: "
                    f"{elsewhere}")
    return ""


def with_descendants(out, names):
    """Return the names and those of all checkpoints in `out` made from them, directly or not."""
    parents = {}
    for path in sorted(Path(out).glob("*.pt")):
        try:
            parents[path.stem] = load_checkpoint(path)["extra"]["parents"]
        except (UserError, KeyError):                       # not a checkpoint of a stage
            continue
    found = list(names)
    for ancestor in found:                                  # grows while we walk through it
        for name in parents:
            is_child = ancestor in parents[name] and not name.endswith("_value")
            if is_child and name not in found:
                found.append(name)
    return found


# ---------------------------------------------------------------- stages and what they need


def alone(config, names, settings, work):
    """Run work(config), a stage started from the command line, alone in its folder.

    names: the checkpoints that the stage makes. If all of them exist, UserError is raised, because
    a finished result must not be lost by accident. work(config), called as a function, overwrites
    them.
    """
    with alone_in(config.out):
        if names and not missing(config, names, settings):
            check_standing(config, dict.fromkeys(names, settings))
            raise UserError(f"{config.out}/{names[0]}.pt exists already, "
                            "trained with these settings: delete it to train again")
        work(config)


def missing(config, names, settings):
    """Return which of the checkpoints that a stage makes together are missing.

    If only some are, the stage makes all of them again. The others must then have been made with
    the settings that it would use now, so that it makes the same bits again, else UserError.
    """
    gone = [name for name in names if not checkpoint(config, name).exists()]
    kept = [name for name in names if name not in gone]
    if gone:
        try:
            check_standing(config, dict.fromkeys(kept, settings))
        except UserError as error:
            raise UserError(f"{config.out}/{gone[0]}.pt is missing, and {error}") from None
    return gone


def require(config, name, script):
    """Return the path of an earlier stage's checkpoint.

    Raises UserError if it is missing or belongs to another run.
    """
    if not made(config, name):
        raise UserError(f"{config.out}/{name}.pt is missing: run `python {script}` first")
    return checkpoint(config, name)


def context_of(config, base=None):
    """Return the context, in tokens, of out/gpt.pt, or of the model that `base` would make.

    base: the settings of pretraining. Without out/gpt.pt and base, return infinity.
    """
    path = checkpoint(config, "gpt")
    if path.exists():
        return load_checkpoint(path)["config"]["block_size"]
    return base.block_size if base else math.inf


def sft_epochs(config):
    """Return the names of the SFT epochs, e.g. ["01", ..., "16"]. If one is missing: UserError."""
    mixed = require(config, "sft_mix", "sft.py")            # saved last, after all epochs
    n_epochs = load_checkpoint(mixed)["extra"]["settings"]["epochs"]
    names = [f"{epoch:02d}" for epoch in range(1, n_epochs + 1)]
    for name in names:
        path = Path(config.out) / "sft_epochs" / f"{name}.pt"
        if not path.exists():
            raise UserError(f"{path} is missing: delete {mixed}, "
                            "and `python sft.py` makes both again")
    return names


def epoch_scores(config):
    """Return the table of `reward.rate_sft_epochs`, which round 1 stores in out/sft.pt."""
    return load_checkpoint(checkpoint(config, "sft"))["extra"]["scores"]


def delete_sft(config):
    """Delete the reference and all SFT epochs."""
    checkpoint(config, "sft_mix").unlink(missing_ok=True)
    for path in sorted((Path(config.out) / "sft_epochs").glob("*.pt")):
        if path.stem.isdecimal():
            path.unlink()


def check_complete(config):
    """Raise UserError if a stage is finished, but a file beside its checkpoint is missing.

    The pictures and tables at the end are drawn from these files, so fail early.
    """
    out = Path(config.out)
    files_of_stage = {"gpt": ["gpt.jsonl"], "sft_mix": ["sft.jsonl", "sft_mix.jsonl"],
                      "reward_1": ["reward_1.jsonl", "rankings.jsonl"],
                      "reward": ["reward_2.jsonl", "rankings.jsonl", "reward.png"]}
    for name in ("ppo_1", "ppo", "ppo_ptx"):
        files_of_stage[name] = [f"{name}.jsonl", f"{name}_value.pt"]
    if checkpoint(config, "gpt").exists():
        extra = load_checkpoint(checkpoint(config, "gpt"))["extra"]
        if extra.get("borrowed") or extra.get("stage") == "import":
            del files_of_stage["gpt"]       # it was trained elsewhere
    makers = {}                             # file -> the checkpoints of the stages that wrote it
    for name, beside in files_of_stage.items():
        if checkpoint(config, name).exists():
            for file in beside:
                makers.setdefault(file, []).append(f"{out}/{name}.pt")
    if checkpoint(config, "sft_mix").exists():
        sft_epochs(config)
    for file in makers:
        if not (out / file).exists():
            raise UserError(f"{out}/{file} is missing: delete {', '.join(makers[file])}, "
                            "and `python ppo.py` makes all of it again")
        if file.endswith(".jsonl") and file != "rankings.jsonl":
            read_jsonl(out / file, step=int)


def stage_seconds(path):
    """Return the content of out/seconds.json: the seconds that each stage has taken so far."""
    stages = ("data", "pretrain", "sft", "reward", "ppo")
    if not path.exists():
        return dict.fromkeys(stages, 0.0)
    seconds = read_json(path)
    if not isinstance(seconds, dict):
        raise UserError(f"{path}: damaged, delete it")
    for stage in stages:
        if type(seconds.get(stage)) not in (int, float):
            raise UserError(f"{path}: damaged, delete it")
    return seconds


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
    earlier, ranked = prompts_of_round(config)
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


def prompts_of_round(config):
    """Which prompts a round of rankings takes: (number of the first, how many)."""
    return (0, config.prompts_1) if config.round == 1 else (config.prompts_1, config.prompts_2)


def check_rl(config, block_size, max_new_tokens):
    """Check what PPO needs before anything is trained. block_size: of the base model. Raises
    UserError."""
    prompts = rl_prompts(config)
    prompt_ids = tokenizer.encode_prompts(tokenizer.load_cached(), prompts)
    what = "RL, the longest prompt with its response,"
    check_room(block_size, prompt_ids, what, max_new_tokens)


def rl_prompts(config):
    """Return the rows of prompts_rl.jsonl. There must be enough for a rollout, else UserError.

    Prompts of the user's own are repeated until they fill one: a prompt then has several responses.
    """
    prompts = read_prompts("rl")
    if OWN:
        return prompts * math.ceil(config.rollout_size / len(prompts))
    if len(prompts) < config.rollout_size:
        raise UserError(f"--rollout_size {config.rollout_size}: there are only "
                        f"{len(prompts)} prompts in prompts_rl.jsonl")
    return prompts


def evaluation_prompts(split, n=None):
    """Rows of the prompts files, at most n of each: (those that all models answer, closed-domain
    ones). Prompts of the user's own have no domain: all are in the first list."""
    prompts = read_prompts(split)[:n]
    if OWN:
        return prompts, []
    if split == "eval":
        return prompts, read_prompts("closed")[:n]
    return prompts, [row for row in prompts if row["use_case"] in tasks.CLOSED_DOMAIN]


def check_evaluation(split, block_size, max_new_tokens):
    """Check what the evaluation needs before anything is trained. Raises UserError."""
    if split not in ("eval", "valid"):
        raise UserError(f"--split {split}: eval or valid")
    prompts, closed = evaluation_prompts(split)
    if len(prompts) < 2 or not closed and not OWN:
        raise UserError(f"{FOLDER}/prompts_{split}.jsonl: too few prompts to evaluate on")
    encoding = tokenizer.load_cached()
    if OWN:
        prompt_ids = tokenizer.encode_prompts(encoding, prompts)
        what = "evaluation, the longest prompt with its response,"
    else:
        prompt_ids = [tokenizer.few_shot_ids(encoding, row["prompt"]) for row in prompts + closed]
        what = "evaluation, GPT's longest prompt, examples and response with it,"
    check_room(block_size, prompt_ids, what, max_new_tokens)


def other_rankings(config):
    """The rankings of the other round: (those to train on too, those only to keep)."""
    path = Path(config.out) / "rankings.jsonl"
    if config.round == 2:
        require(config, "sft", "reward.py")                 # needed at the end: fail early
        return [line for line in read_rankings(path) if line["round"] == 1], []
    if checkpoint(config, "reward").exists() and path.exists():
        # Round 1 is made again, and round 2's model has learned from its own lines
        return [], [line for line in read_rankings(path) if line["round"] == 2]
    return [], []


def one_round(config):
    """Return whether a run has one round of rankings: --quick, --rankings and --data have one."""
    return bool(config.quick or config.rankings or OWN)


class Stage(NamedTuple):
    """One step of the whole run."""
    kind: str               # the entry of seconds.json that its time is added to
    names: list             # of the checkpoints that it makes; none: due in every run
    settings: dict          # that these depend on
    check: Callable         # raises UserError if something is missing that training needs
    train: Callable         # makes the checkpoints


def is_due(config, stage):
    """Return whether a stage has to run. May raise UserError, see `missing`."""
    if one_round(config) and "reward_1" in stage.names:
        if not (Path(config.out) / "reward.png").exists():      # no second round would draw it
            return True
    return not stage.names or bool(missing(config, stage.names, stage.settings))


def make_missing(config, stages):
    """Train every stage that has no output yet. Returns seconds by kind of stage.

    Everything is checked first, so that no error comes after hours of training."""
    standing = {}
    for stage in stages:
        for name in stage.names:
            # A stage that the user ran alone may have had other settings. In --quick, SFT may not:
            # its other settings mean that the folder is not one of --quick.
            # Nor may people's rankings have changed.
            strict = (stage.kind == "ppo" or config.quick and stage.kind == "sft"
                      or "rankings" in stage.settings)
            standing[name] = stage.settings if strict else None
    check_standing(config, standing)
    for stage in stages:
        if is_due(config, stage):
            stage.check()
    check_complete(config)
    path = Path(config.out) / "seconds.json"
    seconds = stage_seconds(path)
    for stage in stages:
        if not is_due(config, stage):
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
    """Write out/name.jsonl, one line per step. A metric that is not finite raises UserError."""

    def __init__(self, config, name):
        self.path = Path(config.out) / f"{name}.jsonl"
        self.file = open(self.path, "w", encoding="utf-8", newline="\n")

    def write(self, **metrics):
        """Write one line, with floats rounded to 6 digits."""
        for name, value in metrics.items():
            if isinstance(value, float):
                if not math.isfinite(value):
                    raise UserError(f"{name} became {value} at step {metrics.get('step')} "
                                    f"(see {self.path}): lower the learning rate")
                metrics[name] = round(value, 6)
        self.file.write(json.dumps(metrics) + "\n")
        self.file.flush()
