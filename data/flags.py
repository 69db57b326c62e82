"""Flags and the guard around every script. Nothing in this file is needed to understand RLHF.

From top to bottom: the flags of every stage and what they set up; a dataclass as a command line;
the main guard, which turns an error into one clear line.
"""
import argparse
import ctypes
import dataclasses
import difflib
import errno
import inspect
import math
import os
import random
import re
import sys
from dataclasses import dataclass

from data import files, own
from data.files import UserError


# ---------------------------------------------------------------- the flags of every stage


@dataclass
class BaseConfig:
    """The flags of every stage. A field's comment is its text in --help."""
    seed: int = 1               # of weights, batches and samples; the world has a seed of its own
    out: str = "out"            # folder for everything that is written
    data: str = ""              # a folder of your own texts (data/README.md); empty: Toytown
    device: str = "auto"        # cpu, cuda or mps; auto is cpu, fast enough for models this small


def set_up(config):
    """Seed everything and create the output folder.

    Returns (device, random.Random, torch.Generator).
    """
    import torch                            # here, because writing the world needs no torch

    files.writable(config.out)
    keep_freed_memory()
    torch.manual_seed(config.seed)
    generator = generator_on(config.device, config.seed)
    return generator.device, random.Random(config.seed), generator


def generator_on(device, seed):
    """Return a seeded torch.Generator on the device of --device.

    Raises UserError if torch does not have this device.
    """
    import torch

    try:
        generator = torch.Generator("cpu" if device == "auto" else device)
        return generator.manual_seed(seed)
    except RuntimeError:
        raise UserError(f"--device {device}: torch does not have this device here") from None


def keep_freed_memory():
    """Linux: tell malloc to keep freed memory.

    Returning it to the kernel and faulting it back in costs 10 % of a training step.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)               # glibc only
        if mallopt:
            gibibyte = 1 << 30
            mallopt(-1, gibibyte)           # M_TRIM_THRESHOLD: when to shrink the heap
            mallopt(-3, gibibyte)           # M_MMAP_THRESHOLD: when to map a block of its own


# ---------------------------------------------------------------- the command line


def field_comments(config_class):
    """The comment of each field of a dataclass: {name: text}. A comment may continue on further
    lines that hold only a comment and are indented more deeply than the field."""
    comments = {}
    for base in reversed(config_class.__mro__):
        if dataclasses.is_dataclass(base):
            source = inspect.getsource(base)
            for name, text in re.findall(r"^    (\w+):[^#\n]*#(.*(?:\n {5,}#.*)*)", source, re.M):
                lines = [line.strip(" #") for line in text.split("\n")]
                comments[name] = " ".join(lines)
    return comments


def parse_flags(config_class, doc, argv=None, quick=None):
    """The dataclass as command-line flags. --help shows each field's comment and default, and a
    typo gets the nearest name. quick: the defaults of --quick, where they differ."""
    parser = argparse.ArgumentParser(description=doc, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    comments = field_comments(config_class)
    names = [field.name for field in dataclasses.fields(config_class)]
    for field in dataclasses.fields(config_class):
        options = dict(type=type(field.default), metavar=str(field.default) or "TEXT")
        if type(field.default) is bool:
            options = dict(action="store_true")
        parser.add_argument(f"--{field.name}", default=argparse.SUPPRESS, **options,
                            help=comments.get(field.name, "").replace("%", "%%"))
    flags, unknown = parser.parse_known_args(argv)
    if unknown:
        near = difflib.get_close_matches(unknown[0].lstrip("-").split("=")[0], names, 1, 0.4)
        hint = f"; did you mean --{near[0]}?" if near else ""
        parser.error(f"unknown flag {unknown[0]}{hint}")
    for name, value in vars(flags).items():
        # argparse makes an empty list of "--lr=--"
        if not isinstance(value, (int, float, str)) or value == "":
            parser.error(f"--{name}: needs a value")
        least = 1 if isinstance(value, int) and name != "seed" else 0
        if not isinstance(value, str) and not least <= value < math.inf:
            parser.error(f"--{name} {value}: must be {least} or more")
        if isinstance(value, int) and value >= 2 ** 63:         # torch counts no further
            parser.error(f"--{name} {value}: too large")
    settings = vars(flags)
    if settings.get("quick"):
        settings = (quick or {}) | settings
    return config_class(**settings)


# ---------------------------------------------------------------- the main guard


def run_script(train, config_class, doc, quick=None):
    """Be the main guard of a script: parse the flags, then train(config). quick: see `parse_flags`.

    An error that the user can fix ends in one clear line and exit code 2.
    """
    def work():
        config = parse_flags(config_class, doc, quick=quick)
        own.use(config.data)
        train(config)

    guarded(work)


def guarded(work):
    """Run work(), the whole work of a command.

    What the user can fix, Ctrl-C and a full disk end in one clear line and exit code 2. If the
    reader of the output is gone (`| head -1`), the command ends silently, as other commands do.
    """
    any_terminal()
    try:
        try:
            work()
        finally:
            sys.stdout.flush()              # here, because a failure to flush is handled below
        return
    except (UserError, ValueError) as error:
        message = error
    except KeyboardInterrupt:
        message = "stopped; what was finished is kept, run the same command to go on"
    except OSError as error:
        if is_closed_pipe(error):
            # Python flushes once more when it exits: send that to nowhere, or it would complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.exit(141)                   # what a shell reports for a command ended by SIGPIPE
        message = (f"{error.filename or 'a file'} cannot be written or read ({error.strerror}); "
                   "what was saved before is untouched")
    except (MemoryError, RuntimeError) as error:
        # torch reports a lack of memory as a RuntimeError; any other one is a bug, so show it all.
        if isinstance(error, RuntimeError) and not re.search("alloc|out of memory", str(error)):
            raise
        message = "not enough memory for a model or a batch of this size: choose smaller ones"
    print(f"\nerror: {message}", file=sys.stderr)
    sys.exit(2)


def is_closed_pipe(error):
    """Return whether an OSError says that the reader of the output is gone."""
    closed = errno.EINVAL if sys.platform == "win32" else errno.EPIPE
    return error.filename is None and error.errno == closed


def any_terminal():
    """Make standard input and output work on every terminal.

    A character that the terminal cannot show is replaced. A closed stream becomes an empty one.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:                              # `python model.py <&-`
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))
        elif hasattr(stream, "reconfigure"):            # the streams of a notebook lack it
            stream.reconfigure(errors="replace")
