"""Rank responses yourself: your rankings train a reward model as those of simulated labelers do.

    python -m data.label                            # start, or continue where you stopped
    python -m data.label --name ann --rankings ann.jsonl --material out/unranked.jsonl

Each ranking is one line of the file, written at once:
    {"prompt", "task", "responses": [{"text", "ended", ...}, ...], "ranks": [1, 2, 2, 3], "labeler"}
The responses are in the order in which you saw them. Rank 1 is best, equal numbers tie. "task"
says what was asked and may be missing. The simulated labelers need it to rank the same responses.

Every tenth time, responses that you have ranked before come again in another order. This shows at
the end how far you agree with yourself. A prompt that you skip comes again in the next session.
"""
import argparse
import collections
import contextlib
import getpass
import json
import os
import random
import re
import shlex
import shutil
import signal
import sys
import textwrap
from pathlib import Path

from data import files, flags, own
from data.files import UserError
from data.labeler import get_labelers

MATERIAL = files.FOLDER / "unranked.jsonl"
RANKINGS = "my_rankings.jsonl"
AGAIN = 10              # every tenth ranking is one that was made before
APART = 5               # at least so many others lie between the two
COMMANDS = ("s", "u", "?", "q")
PROMPT = "best: "
HELP = [
    "Does a response help? Is it true? Is it harmless? What helps comes first. The facts of the "
    "town are at the top of data/toytown.py.",
    "Type the numbers of the responses from best to worst, for example 3 1 2 4.",
    "=  between two numbers is a tie: 3 1=2 4",
    "Enter  puts all the others last: after 3, response 3 is best and the others tie",
    "Backspace  takes back one key",
    "s  skip,  u  undo the last ranking,  ?  this help,  q  quit",
]

# ---------------------------------------------------------------- a ranking, key by key


def press(typed, key, n):
    """Return what is typed after one more key, e.g. "31" and "=" give "31=".

    n: the number of responses. Return None if the key does not fit.
    """
    left = not_typed(typed, n)
    if key in ("\x7f", "\b"):                       # backspace
        return typed[:-1]
    if key == "\n" and typed:                       # Enter: the others share a place
        return typed + "=".join(left)
    is_tie = key == "=" and left and typed[-1:] not in ("", "=")
    return typed + key if is_tie or key in left else None


def not_typed(typed, n):
    """Return the numbers of the responses that have no place yet."""
    return [number for number in "123456789"[:n] if number not in typed]


def ranks_of(text, n):
    """Return the ranks of n responses, e.g. [2, 2, 1, 3] for "3 1=2 4", or None for other text."""
    typed = ""
    for key in re.sub(r"[\s>,]", "", text) + "\n":
        typed = press(typed, key, n)
        if typed is None:
            return None
    ranks = [0] * n
    rank = 0
    for place in re.findall(r"\d(?:=\d)*", typed):
        rank += 1
        for number in place.split("="):
            ranks[int(number) - 1] = rank
    return ranks


# ---------------------------------------------------------------- the terminal


def ask_keys(read_key, n):
    """Return ranks, or one of COMMANDS, from single keys. read_key() returns one key."""
    typed = ""
    redraw(typed)
    while not_typed(typed, n):
        key = read_key().lower()
        if key in COMMANDS:
            print(key)
            return key
        after = press(typed, key, n)
        if after is None:
            redraw(typed, "  ? helps")
        else:
            typed = after
            redraw(typed)
    print()
    return ranks_of(typed, n)


def redraw(typed, note=""):
    """Print what is typed over what was typed before, e.g. "best: 3 1=2"."""
    width = min(screen_width(), 40)
    line = PROMPT + re.sub(r"(?<=\d)(?=\d)", " ", typed) + note
    line = line[:width]
    print(f"\r{line.ljust(width)}\r{line}", end="", flush=True)


def ask_line(n):
    """Return ranks, or one of COMMANDS, from a line of the input: for pipes and odd terminals.

    A line that ends without a line break was cut off, so it must rank all responses.
    """
    while True:
        print(PROMPT, end="", flush=True)
        line = sys.stdin.readline()
        text = line.strip().lower()
        if not sys.stdin.isatty():                  # nobody has typed it here
            say(text)
        if not line:                                # the end of the input
            return "q"
        if text in COMMANDS:
            return text
        ranks = ranks_of(text, n)
        is_whole = line.endswith("\n") or len(re.findall(r"\d", text)) == n
        if ranks and is_whole:
            return ranks
        if text:
            say(f"This does not rank {n} responses. ? helps.")


@contextlib.contextmanager
def asking():
    """Yield the function that asks for a ranking, and leave the terminal as it was.

    In a terminal each key acts at once, elsewhere a line does. A terminal that is not restored
    would no longer show what its user types.
    """
    if not sys.stdin.isatty():
        yield ask_line
    elif sys.platform == "win32":
        yield lambda n: ask_keys(read_windows_key, n)
    else:
        import termios                              # not on Windows
        import tty

        terminal = sys.stdin.fileno()
        before = termios.tcgetattr(terminal)

        def set_keys(*_):
            with contextlib.suppress(termios.error):            # the window is gone
                tty.setcbreak(terminal)

        signal.signal(signal.SIGTERM, end_by)
        signal.signal(signal.SIGHUP, end_by)
        signal.signal(signal.SIGCONT, set_keys)                 # after Ctrl-Z and fg
        try:
            set_keys()
            yield lambda n: ask_keys(lambda: read_unix_key(terminal), n)
        finally:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(terminal, termios.TCSANOW, before)


def end_by(number, _):
    """End after a signal as after an error, which restores the terminal."""
    signal.signal(number, signal.SIG_IGN)           # once is enough
    sys.exit(128 + number)


def read_unix_key(terminal):
    """Return the next key, "q" at the end of the input. An arrow or another long key is "other"."""
    import select

    try:
        key = os.read(terminal, 1)
    except OSError:                                 # the window is gone
        key = b""
    if key == b"\x1b":                              # the rest of a long key, e.g. "[3~", follows
        while select.select([terminal], [], [], 0.05)[0]:
            if not os.read(terminal, 100):
                break
        return "other"
    if key in (b"", b"\x04"):                       # Ctrl-D
        return "q"
    return key.decode("ascii", "replace").replace("\r", "\n")


def read_windows_key():
    """Return the next key, as read_unix_key does."""
    import msvcrt

    key = msvcrt.getwch()
    if key == "\x03":                               # Ctrl-C
        raise KeyboardInterrupt
    if key in "\x00\xe0":                           # the rest of a long key follows
        msvcrt.getwch()
        return "other"
    return key.replace("\x1a", "q").replace("\r", "\n")         # Ctrl-Z is the end of the input


def say(text, indent="", style=None):
    """Print text, wrapped to the width of the terminal. style: a number of ANSI's, e.g. 1, bold."""
    # No control character of the text may reach the terminal, where it could do anything.
    shown = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
    lines = textwrap.wrap(shown, screen_width(), subsequent_indent=indent)
    plain = "NO_COLOR" in os.environ or os.environ.get("TERM", "dumb") == "dumb"
    if style and sys.stdout.isatty() and not plain:
        lines = [f"\x1b[{style}m{line}\x1b[0m" for line in lines]
    print("\n".join(lines))


def screen_width():
    """Return how many characters a line may have."""
    return max(19, shutil.get_terminal_size().columns - 1)


def show(number, prompt, responses):
    """Print a prompt and its responses."""
    print()
    say(f"{number}. {prompt}", style=1)
    print()
    for k, response in enumerate(responses, 1):
        text = response["text"] if response["text"].strip() else "(empty)"
        ending = "" if response["ended"] else " ... never ends"
        say(f" ({k}) {text}{ending}", indent="     ")
    print()


# ---------------------------------------------------------------- files


def read_material(path):
    """Return {identity: row} of a file of responses to rank. May raise UserError."""
    rows = files.numbered_rows(path, "python reward.py --unranked 400", prompt=str, responses=list)
    for number, row in rows:
        check(row, f"{path}, line {number}")
    return {identity(row): row for _, row in rows}


def check(row, place):
    """Raise UserError if a row cannot be shown, or not be ranked by single keys."""
    files.check_responses(row, place)
    if not 2 <= len(row["responses"]) <= own.MOST_RESPONSES:
        raise UserError(f"{place}: {len(row['responses'])} responses, must be 2 to "
                        f"{own.MOST_RESPONSES}")
    if "task" in row:
        files.check_row(row, place, {"task": dict})


def identity(row):
    """Return what makes two rows the same question: the prompt and the texts, in any order."""
    texts = sorted(response["text"] for response in row["responses"])
    return (row["prompt"], *texts)


def read_rankings(path):
    """Return the lines of a rankings file, [] if there is none. May raise UserError."""
    cut_half_line(path)
    if not path.exists() or path.stat().st_size == 0:
        return []
    rows = files.numbered_rows(path, prompt=str, responses=list, ranks=list, labeler=str)
    for number, ranking in rows:
        place = f"{path}, line {number}"
        check(ranking, place)
        files.check_ranking(ranking, place)
    return [ranking for _, ranking in rows]


def cut_half_line(path):
    """Cut off what a killed process left of its last line, so that the next line starts anew."""
    content = path.read_bytes() if path.exists() else b""
    start = content.rfind(b"\n") + 1
    last = content[start:]
    begin = b'{"prompt":'                           # anything else is no line of ours: keep it
    if last.startswith(begin) or last and begin.startswith(last):
        try:
            json.loads(last)
        except ValueError:
            os.truncate(path, start)
            say(f"{path}: the last line was only half written and is removed.")
        else:                                       # an editor may leave out the last line break
            with open(path, "ab") as file:
                file.write(b"\n")


def append(path, row, responses, ranks, name):
    """Add a ranking to a file. It is on the disk when this returns. Return the line as a dict.

    row: gives prompt and task. responses: in the order shown. Also used by lesson 2.
    """
    ranking = {"prompt": row["prompt"], "responses": responses, "ranks": ranks, "labeler": name}
    if "task" in row:
        ranking["task"] = row["task"]
    cut_half_line(path)
    try:
        with open(path, "ab") as file:
            file.write(line_of(ranking))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); "
                        "what was saved before is untouched") from None
    return ranking


def line_of(ranking):
    """Return a ranking as a line of a file."""
    return json.dumps(ranking).encode() + b"\n"


def remove(path, ranking):
    """Remove the last line that is this ranking from a file, atomically."""
    before, _, after = path.read_bytes().rpartition(line_of(ranking))
    files.write(path, (before + after).decode("utf-8"))


# ---------------------------------------------------------------- one session


def next_row(material, ranked, skipped, name):
    """Return the row to rank next, or None if nothing is left.

    ranked: this labeler's rankings so far. skipped: identities. The order of new rows depends on
    the name, so that the members of a class begin with different prompts.
    """
    times = collections.Counter(map(identity, ranked))
    rng = random.Random(f"{name!r} {len(ranked)}")
    if len(ranked) % AGAIN == AGAIN - 1:
        for row in rng.sample(ranked[:-APART], len(ranked) - APART):
            if times[identity(row)] == 1 and identity(row) not in skipped:
                return row
    for key, row in material.items():
        if key not in times and key not in skipped:
            return row
    return None


def shuffled(row, times, name):
    """Return the responses in a random order, another one than the row's.

    times: how often this labeler has ranked them. The same arguments give the same order, so undo
    shows what was there before.
    """
    rng = random.Random(f"{name!r} {times} {row['prompt']!r}")
    responses = rng.sample(row["responses"], len(row["responses"]))
    if responses == row["responses"]:
        responses = responses[1:] + responses[:1]
    return responses


def rank_all(material, ranked, path, name, ask):
    """Show one row after the other and write the rankings, until the labeler quits.

    ranked: what this labeler has ranked before. Grows.
    """
    skipped = set()
    history = []                                    # of this session, for undo
    while True:
        row = next_row(material, ranked, skipped, name)
        if row is None:
            say("Nothing is left to rank.")
            return
        times = [identity(ranking) for ranking in ranked].count(identity(row))
        responses = shuffled(row, times, name)
        show(len(ranked) + 1, row["prompt"], responses)
        answer = ask(len(responses))
        if answer == "q":
            return
        if answer == "?":
            show_help()
        elif answer == "s":
            skipped.add(identity(row))
            history.append(row)
        elif answer == "u":
            undo(path, ranked, skipped, history)
        else:
            ranked.append(append(path, row, responses, answer, name))
            history.append(ranked[-1])


def undo(path, ranked, skipped, history):
    """Take back the last ranking or skip of this session."""
    if not history:
        say("Nothing to undo: it was not ranked in this session.")
        return
    last = history.pop()
    if ranked and last is ranked[-1]:
        remove(path, ranked.pop())
    else:
        skipped.discard(identity(last))


def show_help():
    """Print HELP."""
    print()
    for text in HELP:
        say(text, indent="   ")


# ---------------------------------------------------------------- agreement


def agreement(one, other):
    """Return 1 for each pair of responses that two lists of ranks order alike, and 0 for the rest.

    As in data/labeler.py, a pair that one of the two ties counts one half. So does a pair that both
    tie, because otherwise who ties everything would agree on everything.
    """
    agree = []
    for i in range(len(one)):
        for j in range(i):
            difference = one[i] - one[j]
            other_difference = other[i] - other[j]
            if difference * other_difference == 0:
                agree.append(0.5)
            else:
                agree.append(float(difference * other_difference > 0))
    return agree


def agreement_with_self(rankings):
    """Return `agreement` of the first and the second ranking of each row that came again."""
    agree = []
    first = {}
    for ranking in rankings:
        texts = [response["text"] for response in ranking["responses"]]
        ranks = dict(zip(texts, ranking["ranks"]))
        earlier = first.setdefault(identity(ranking), ranks)
        if earlier is not ranks:
            agree += agreement(list(map(earlier.get, texts)), ranking["ranks"])
    return agree


def agreement_with_others(rankings, labelers):
    """Return `agreement` with each labeler, and of each labeler with the next, as two lists."""
    agree = []
    others = []
    for ranking in rankings:
        if "task" in ranking:
            theirs = [labeler.rank(ranking["task"], ranking["responses"]) for labeler in labelers]
            for ranks, next_ranks in zip(theirs, theirs[1:] + theirs[:1]):
                agree += agreement(ranking["ranks"], ranks)
                others += agreement(ranks, next_ranks)
    return agree, others


def report(path, name):
    """Print what the file holds, how far this labeler agrees with whom, and the next command."""
    rankings = read_rankings(path)
    mine = [ranking for ranking in rankings if ranking["labeler"] == name]
    print()
    say(f"Rankings in {path}: {len(rankings)}, of which {len(mine)} by {name}.")
    again = agreement_with_self(mine)
    if again:
        say(f"You agree with yourself on {mean(again)} of {len(again)} pairs that came again.")
    labelers = get_labelers("train")[:10]
    agree, others = agreement_with_others(mine, labelers)
    if agree:
        say(f"You agree with {len(labelers)} simulated labelers on {mean(agree)} of "
            f"{len(agree) // len(labelers)} pairs. They agree with each other on {mean(others)}.")
    if again or agree:
        say("A tie counts half.")
    if rankings:
        say("Next:")
        flag = f"--rankings {shlex.quote(str(path))}"
        if (path.parent / "corpus.txt").exists():           # a folder of the user's own texts
            flag = f"--data {shlex.quote(str(path.parent))}"
        print(f"python ppo.py --quick {flag} --out out_mine")


def mean(shares):
    """Return the mean of shares in percent."""
    return f"{100 * sum(shares) / len(shares):.0f} %"


# ---------------------------------------------------------------- the command line


def user_name():
    """Return the login name, or "me" where there is none."""
    try:
        return getpass.getuser()
    except (ImportError, KeyError, OSError):
        return "me"


def label(material, path, name):
    """Rank the rows of one file and write the rankings to another."""
    rows = read_material(material)
    order = random.Random(repr(name)).sample(list(rows), len(rows))
    rows = {key: rows[key] for key in order}
    with files.alone_in(path.parent, f".{path.name}.lock", "--rankings"):
        rankings = read_rankings(path)
        ranked = [ranking for ranking in rankings if ranking["labeler"] == name]
        if path.exists():
            open(path, "ab").close()                # fail now if it cannot be written
        show_help()
        with asking() as ask:
            rank_all(rows, ranked, path, name, ask)
        report(path, name)


def main():
    """Parse the command line and start."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--material", type=Path, default=MATERIAL, metavar="FILE",
                        help="prompts with responses; a rankings file is material, too")
    parser.add_argument("--rankings", type=Path, default=Path(RANKINGS), metavar="FILE",
                        help=f"where your rankings are added (default: {RANKINGS})")
    parser.add_argument("--name", default=user_name(),
                        help="who ranks (default: your login name)")
    args = parser.parse_args()
    label(args.material, args.rankings, args.name)


if __name__ == "__main__":
    flags.guarded(main)
