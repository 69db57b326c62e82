"""Grade students' notebooks: run their answers in a new process and print a table of points.

    python -m notebooks.grade ann.ipynb ben.ipynb --csv points.csv

Exercises and points come from the committed lessons: the heading `### Exercise 3. GAE (20 minutes,
hard)` gives 3 points, medium 2 and easy 1. Below it is the cell that calls the check. The lesson is
recognised by the exercises in a notebook, not by its name.

Only what an answer needs is run: the statements that give the answer its value, and those that give
the names it reads, wherever they are. So training cells are not run. Names that the student has
deleted come from the lesson. Then the lesson's own call of the check decides. Printed text does not
count, and functions of our modules cannot be replaced. An answer that runs too long or ends the
process costs its own points only.

This is no sandbox. Students' code runs with your rights: it can delete your files and use the
network. It is not noticed if an answer was copied, calls the script's own function, or changes a
check by other means than a new value of a name.
"""
import argparse
import ast
import csv
import io
import json
import multiprocessing
import os
import re
import sys
import tempfile
import time
import types
from collections import namedtuple
from pathlib import Path

from data import files
from data.flags import guarded

POINTS = {"easy": 1, "medium": 2, "hard": 3}
HEADING = r"(?m)^### Exercise \d+\..*\(\d+ minutes, (easy|medium|hard)\)$"
EXERCISE_LIMIT = 60         # seconds for one exercise. The first includes the import of torch.
NOTEBOOK_LIMIT = 180        # seconds for a notebook. Exercises that are left get no points.
Statement = namedtuple("Statement", "source names")         # names: those that it gives a value
Exercise = namedtuple("Exercise", "points call answers")    # answers: names in the call
Lesson = namedtuple("Lesson", "exercises cells unwritten")  # unwritten: the lesson's `my_x = ...`


def cells_of(path):
    """Return pairs (type, source) of a notebook's cells. Raise ValueError if it is none."""
    try:
        cells = json.loads(path.read_bytes().decode("utf-8-sig"))["cells"]
        return [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        kind = "not a text in UTF-8" if isinstance(error, UnicodeDecodeError) else "not a notebook"
        raise ValueError(getattr(error, "strerror", kind)) from None


def statements_of(cells, unwritten=()):
    """Return the statements of all code cells, and the number of cells that are not Python."""
    found = []
    n_bad = 0
    for kind, source in cells:
        source = re.sub(r"^[%!].*$", "", source, flags=re.M)            # magics
        try:
            for node in ast.parse(source if kind == "code" else "").body:
                source = ast.unparse(node)
                if source not in unwritten:
                    found.append(Statement(source, names_given(node)))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            n_bad += 1
    return found, n_bad


def names_given(node):
    """Return the names to which a statement gives a value. x[0] = 1 and x.append(1) count."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return {node.name}
    names = set().union(*map(names_given, ast.iter_child_nodes(node)))
    if isinstance(node, ast.alias):                                     # of an import
        names.add((node.asname or node.name).split(".")[0])
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        names.add(node.id)
    elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
        names.add(getattr(node.value, "id", None))
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        names.add(getattr(getattr(node.value.func, "value", None), "id", None))
    return names


def lessons():
    """Return {name: Lesson} of the committed lessons."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.ipynb")):
        cells = cells_of(path)
        exercises = []
        names = set()
        for kind, source in cells:
            if kind == "markdown":
                levels = re.findall(HEADING, source)
            for call in re.findall(r"^exercises\.check_\w+\(.*\)", source, re.M):
                if not levels:
                    raise files.UserError(f"{path.name}: {call} has no heading with a difficulty")
                answers = tuple(re.findall(r"(?<=\()\w+|\bmy_\w+", call))
                exercises.append(Exercise(POINTS[levels[-1]], call, answers))
                names.update(answers)
        statements, _ = statements_of(cells)
        unwritten = {one.source for one in statements if one.names & names}
        found[path.stem] = Lesson(exercises, cells, unwritten)
    return found


def recognised(cells, known):
    """Return the lesson most of whose checks and answers occur in a notebook's code."""
    words = set()
    for kind, source in cells:
        if kind == "code":
            words.update(re.findall(r"\w+", source))
    shared = dict.fromkeys(known, 0)
    for name, lesson in known.items():
        for exercise in lesson.exercises:
            marks = re.findall(r"(?:check|my)_\w+", exercise.call)
            shared[name] += len(words.intersection(marks))
    best = max(shared, key=shared.get)
    if shared[best] == 0:
        raise ValueError("no exercise of any lesson is in it")
    return best


class Names(dict):
    """Global names. The statements that give a name its value are run when it is first read.

    They come from the first of the given lists that has any."""

    def __init__(self, *sources):
        super().__init__(__name__="answers")
        self.sources = sources
        self.ends = list(map(len, sources))         # each list is read up to here
        self.errors = []

    def __missing__(self, name):
        for k, statements in enumerate(self.sources):
            end = self.ends[k]
            for i in places_of(name, statements, end):
                self.ends[k] = i
                self.attempt(exec, statements[i].source)
                self.ends[k] = end
            if name in self:
                return self[name]
        raise KeyError(name)                        # Python then looks among the built-in names

    def attempt(self, run, source):
        """Return run(source, self) for eval or exec. If it raises, keep the error as a line."""
        try:
            return run(source, self)
        except BaseException as error:              # SystemExit, too
            self.errors.append(" ".join(f"{type(error).__name__}: {error}".split())[:80])


def places_of(name, statements, end):
    """Return where a name gets its value before `end`, or else the first place after it."""
    places = [i for i, one in enumerate(statements) if name in one.names]
    if not places:                                          # perhaps from math import *
        places = [i for i, one in enumerate(statements) if "*" in one.names]
    imports = [i for i in places if statements[i].source.startswith(("import ", "from "))]
    places = imports or places
    return [i for i in places if i < end] or [i for i in places if i > end][:1]


class Frozen(types.ModuleType):
    """A module in which no name gets a new value from outside."""

    def __setattr__(self, name, value):
        raise AttributeError(f"{self.__name__}.{name} may not be changed")


def work(connection, exercises, theirs, ours, folder):
    """Send (right, first error, False) of each exercise. This runs in a process of its own."""
    for stream in (0, 1, 2):                        # no input, and output of any size is dropped
        os.dup2(os.open(os.devnull, os.O_RDWR), stream)
    os.chdir(folder)
    tempfile.tempdir = folder
    from notebooks import exercises as checks       # here, because it imports torch
    for name in list(sys.modules):
        if name.split(".")[0] in ("data", "model", "notebooks", "ppo", "reward", "sft"):
            sys.modules[name].__class__ = Frozen
    for exercise in exercises:
        names = Names(theirs, ours)
        known = Names(ours)                         # the check's other arguments are the lesson's
        known["exercises"] = checks
        for name in exercise.answers:
            known[name] = names.attempt(eval, name)
        checks.torch.manual_seed(0)                 # the same inputs for all students
        right = known.attempt(eval, exercise.call) is True
        errors = [] if right else names.errors + known.errors
        connection.send((right, "".join(errors[:1]), False))


def run(exercises, theirs, ours, end):
    """Yield (right, error, failed) of exercises, up to the first that ends the process."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process = context.Process(target=work, args=(sender, exercises, theirs, ours, folder))
        process.start()
        sender.close()
        try:
            for _ in exercises:
                if not receiver.poll(max(0, min(EXERCISE_LIMIT, end - time.time()))):
                    yield False, "stopped, it runs too long", True
                    break
                yield receiver.recv()
        except EOFError:
            yield False, "ends the process", True
        finally:
            process.kill()
            process.join()


def grade(path, known):
    """Return the lesson's name, points ("-": not begun), total, possible, remark, and failed."""
    try:
        cells = cells_of(path)
        name = recognised(cells, known)
    except ValueError as error:
        return "", [], 0, 0, str(error), True
    exercises = known[name].exercises
    ours, _ = statements_of(known[name].cells, known[name].unwritten)
    theirs, n_bad = statements_of(cells, known[name].unwritten)
    written = set()
    for statement in theirs:
        written |= statement.names
    begun = [exercise for exercise in exercises if written.issuperset(exercise.answers)]
    end = time.time() + NOTEBOOK_LIMIT
    verdicts = []
    while len(verdicts) < len(begun):
        verdicts += run(begun[len(verdicts):], theirs, ours, end)

    points = dict.fromkeys(exercises, "-")
    total = 0
    any_failed = False
    remarks = [f"{n_bad} cell{'s are' if n_bad > 1 else ' is'} not Python"] if n_bad else []
    if len(begun) < len(exercises):
        remarks.append(f"{len(exercises) - len(begun)} of {len(exercises)} not begun")
    for exercise, (right, error, failed) in zip(begun, verdicts):
        points[exercise] = exercise.points if right else 0
        total += points[exercise]
        any_failed = any_failed or failed
        remarks += [f"{exercise.answers[0]}: {error}"] if error else []
    possible = sum(exercise.points for exercise in exercises)
    return name, list(points.values()), total, possible, "; ".join(remarks), any_failed


def main():
    """Run the command line. Return whether something failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="+", type=Path, help="notebooks that students handed in")
    parser.add_argument("--csv", type=Path, help="write the table to this file, too")
    args = parser.parse_args()
    known = lessons()
    n = max(len(lesson.exercises) for lesson in known.values())
    rows = [["file", "lesson", *range(1, n + 1), "total", "of", "remark"]]
    any_failed = False
    for path in args.files:
        lesson, points, total, possible, remark, failed = grade(path, known)
        blanks = [""] * (n - len(points))
        rows.append([path.name, lesson, *points, *blanks, total, possible, remark])
        any_failed = any_failed or failed
    widths = [max(len(str(cell)) for cell in column) for column in zip(*rows)]
    for row in rows:
        print("  ".join(map("{:<{}}".format, map(str, row), widths)).rstrip())
    if args.csv:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        files.write(args.csv, text.getvalue())
    return any_failed


if __name__ == "__main__":
    guarded(lambda: sys.exit(main()))
