"""Flags: a dataclass as a command line, the guard around every script, and what three flags of all stages set up.

Nothing in this file is needed to understand RLHF.
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

from data import files
from data.files import UserError


# ---------------------------------------------------------------- the flags of every stage


@dataclass
class BaseConfig:
    """Flags of every stage."""
    seed: int = 1               # of weights, batches and samples; the world and its files do not depend on it
    out: str = "out"            # folder of everything that is made
    device: str = "auto"        # cpu, cuda, mps; auto takes cpu: these models are too small for a GPU to help much (not measured)


def set_up(config):
    """Seeds everything, makes the output folder and returns (device, random.Random, torch.Generator)."""
    import torch                                            # here, because writing the world needs no torch

    files.writable(config.out)
    keep_freed_memory()
    torch.manual_seed(config.seed)
    generator = generator_on(config.device, config.seed)
    return generator.device, random.Random(config.seed), generator


def generator_on(device, seed):
    """A seeded torch.Generator on the device that --device names; raises UserError if torch does not have it here."""
    import torch

    try:
        return torch.Generator("cpu" if device == "auto" else device).manual_seed(seed)
    except RuntimeError:
        raise UserError(f"--device {device}: torch does not have this device here") from None


def keep_freed_memory():
    """On Linux: freed tensors stay with the process. Handing megabytes back to the kernel and fetching them again, page by page,
    costs a tenth of the time of a training step."""
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda *_: None)        # glibc only
        for setting in (-1, -3):                                                # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, in bytes
            mallopt(setting, 1 << 30)


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


def parse_flags(config_class, doc, argv=None):
    """The dataclass as command-line flags. --help shows each field's comment and default, and a
    typo gets the nearest name."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    comments = field_comments(config_class)
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


def run_script(train, config_class, doc):
    """The main guard of every script: flags in, one clear line and exit code 2 if something goes wrong."""
    guarded(lambda: train(parse_flags(config_class, doc)))
