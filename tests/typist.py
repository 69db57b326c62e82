"""Type rankings into the terminal of `python -m data.label`, as a person with a fixed taste would.

    from tests.typist import rank_by
    typed, seconds = rank_by(lambda prompt, response: len(response["text"]), 150, "short.jsonl")

The program runs in a pseudo-terminal. All that the typist knows is what the screen shows. Windows
has no pseudo-terminals.
"""
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
ENDLESS = " ... never ends"
PROMPT = "best: "               # stands before what is typed


class Terminal:
    """`python -m data.label` with these flags in a pseudo-terminal of its own."""

    def __init__(self, *flags, columns=2_000, cwd=ROOT, **environment):
        self.ours, self.theirs = pty.openpty()
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        self.before = termios.tcgetattr(self.theirs)
        env = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", **environment}
        env.pop("COLUMNS", None)
        if "NO_COLOR" not in environment:
            env.pop("NO_COLOR", None)
        command = [sys.executable, "-m", "data.label", *map(str, flags)]
        self.process = subprocess.Popen(command, cwd=cwd, env=env, stdin=self.theirs, stdout=self.theirs,
                                        stderr=self.theirs, preexec_fn=self.own_session)
        self.screen = ""        # since the last key

    def own_session(self):
        """Ctrl-C goes to the program whose terminal this is, even if our own caller ignores it."""
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def type(self, keys):
        self.screen = ""
        os.write(self.ours, keys.encode())

    def read(self, seconds):
        """Add what comes next to the screen. False if nothing comes."""
        if not select.select([self.ours], [], [], seconds)[0]:
            return False
        self.screen += os.read(self.ours, 65_536).decode().replace("\r\n", "\n")
        return True

    def wait_for(self, text):
        """Read until the screen ends with a text. Return the screen."""
        while not self.screen.endswith(text):
            assert self.read(0.5) or self.process.poll() is None, self.screen
        return self.screen

    def question(self):
        """Return the prompt on the screen and its responses, once all is there. None at the end."""
        while True:
            text = re.sub(r"\x1b\[\d+m", "", self.screen)
            prompts = re.findall(r"^\d+\. (.*)$", text, re.M)
            if prompts and text.endswith(f"\r{PROMPT}"):
                text = text[text.rindex(prompts[-1]):]
                shown = re.findall(r"^ \(\d\) (.*)$", text, re.M)
                return prompts[-1], [seen(response) for response in shown]
            if not self.read(0.5) and self.process.poll() is not None:
                return None

    def end(self):
        """Wait until the program ends. Return its exit code."""
        while self.process.poll() is None or self.read(0):
            self.read(0.1)
        return self.process.returncode

    def attributes(self):
        """The terminal's settings, e.g. whether it shows what is typed."""
        return termios.tcgetattr(self.theirs)

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.ours)
        os.close(self.theirs)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def seen(text):
    """Return a response as it was in the material."""
    ended = not text.endswith(ENDLESS)
    text = text.removesuffix(ENDLESS)
    escapes = r"\\(?:[trn]|x[0-9a-f]{2}|u[0-9a-f]{4})"          # as label.say shows them
    text = re.sub(escapes, lambda escape: escape[0].encode().decode("unicode_escape"), text)
    return {"text": "" if text == "(empty)" else text, "ended": ended}


def ranks_by(keys):
    """Return the ranks of responses with these sort keys: the smallest is best, equal ones tie."""
    distinct = sorted(set(keys))
    return [1 + distinct.index(key) for key in keys]


def strokes(ranks):
    """Return the fewest keys that give these ranks, e.g. "31=2\\n"."""
    places = []
    for rank in range(1, max(ranks) + 1):
        numbers = [str(k) for k, other in enumerate(ranks, 1) if other == rank]
        places.append("=".join(numbers))
    if len(places) > 1:
        return "".join(places[:-1]) + "\n"          # Enter puts all the others last
    return places[0]


def rank_by(taste, n, rankings, material=None, name="typist"):
    """Rank n prompts by taste(prompt, response), a sort key: the smallest is best, equal ones tie.

    response: {"text", "ended"}, as it was read from the screen. Return what was ranked, as dicts
    with prompt, responses and ranks in the order of the screen, and the seconds that it took.
    """
    flags = ["--rankings", Path(rankings).resolve(), "--name", name]
    if material:
        flags += ["--material", Path(material).resolve()]
    typed = []
    start = time.time()
    with Terminal(*flags) as terminal:
        while len(typed) < n:
            question = terminal.question()
            if question is None:
                break
            prompt, responses = question
            ranks = ranks_by([taste(prompt, response) for response in responses])
            typed.append({"prompt": prompt, "responses": responses, "ranks": ranks})
            terminal.type(strokes(ranks))
        if terminal.question():
            terminal.type("q")
        assert terminal.end() == 0, terminal.screen
    return typed, time.time() - start
