"""Grading: right answers get their points, and a hostile or broken notebook ends in a row."""
import csv
import json
import re
import sys

import pytest

from notebooks import grade, lesson

KNOWN = grade.lessons()


def lesson_of(number):
    return next(name for name in KNOWN if name.startswith(f"{number}_"))


def committed(number):
    """The notebook of a lesson, as a dict."""
    path = lesson.HERE / f"{lesson_of(number)}.ipynb"
    return json.loads(path.read_text(encoding="utf-8"))


def solution(answer):
    """The last block of solutions.md that defines an answer."""
    text = (lesson.HERE / "solutions.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    return [one for one in blocks if re.search(rf"^(def )?{answer}\b", one, re.M)][-1]


def handed_in(folder, number, answers, **also):
    """Write a lesson in which answers replace what its check cells hold. Return the file.

    answers: {name of an answer: code}. also: first, more (code cells before and after the rest)
    and without (a word: cells that contain it are left out)."""
    notebook = committed(number)
    cells = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if also.get("without") and also["without"] in source:
            continue
        call = re.search(r"^exercises\.check_\w+\((\w+)", source, re.M)
        if cell["cell_type"] == "code" and call and call[1] in answers:
            check = source[source.index("exercises.check_"):]
            source = f"{answers[call[1]]}\n{check}"
        cells.append({**cell, "source": source})
    for place, key in ((0, "first"), (len(cells), "more")):
        if key in also:
            cells.insert(place, {"cell_type": "code", "source": also[key], "outputs": []})
    path = folder / "handed in.ipynb"
    path.write_text(json.dumps({**notebook, "cells": cells}), encoding="utf-8",
                    newline="\n")
    return path


def graded(path):
    """Lesson, points, remark and whether something failed."""
    name, points, total, _, remark, failed = grade.grade(path, KNOWN)
    assert total == sum(one for one in points if one != "-")
    return name, points, remark, failed


def possible(name):
    return [exercise.points for exercise in KNOWN[name].exercises]


RIGHT = "def my_perplexity(loss):\n    return math.exp(loss)"
SAMPLE = solution("my_sample")
WRONG_NUMBER = "my_number = 3"


@pytest.mark.parametrize("name", KNOWN)
def test_the_solutions_get_full_points(name, tmp_path):
    names = [exercise.answers[0] for exercise in KNOWN[name].exercises]
    answers = {answer: solution(answer) for answer in names}
    found, points, remark, failed = graded(handed_in(tmp_path, name.split("_")[0], answers))
    assert (found, points, failed) == (name, possible(name), False), remark


def test_every_lesson_has_exercises_and_a_committed_one_is_not_begun():
    for name in KNOWN:
        path = lesson.HERE / f"{name}.ipynb"
        n = len(possible(name))
        assert n >= 3, name
        assert graded(path) == (name, ["-"] * n, f"{n} of {n} not begun", False)


def test_minutes_and_points_of_the_table_are_those_of_the_lessons():
    text = (lesson.HERE / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| (.*?) \|", text, re.M)
    for name, minutes, exercises in rows:
        first_cell = "".join(committed(name.split("_")[0])["cells"][0]["source"])
        assert f"takes about {minutes} minutes" in " ".join(first_cell.split()), name
        assert "**Only 30 minutes?**" in first_cell, name
        assert list(map(int, re.findall(r"\((\d)\)", exercises))) == possible(name), name
    assert [name for name, *_ in rows] == list(KNOWN)


def test_two_right_one_wrong_and_one_not_begun(tmp_path):
    answers = {"my_perplexity": RIGHT, "my_sample": SAMPLE, "my_number": WRONG_NUMBER}
    _, points, remark, failed = graded(handed_in(tmp_path, 0, answers))
    assert points == ["-", possible(lesson_of(0))[1], 0, possible(lesson_of(0))[3]]
    assert remark == "1 of 4 not begun" and not failed


def test_answers_are_found_wherever_and_however_they_are_written(tmp_path):
    """A lambda, a name made in steps, an import of the student's own, a helper further down, a
    magic, and cells of the lesson that were deleted or are there twice."""
    first = "from math import *\nmy_perplexity = lambda loss: e ** loss"
    more = "\n".join([
        "%matplotlib inline", "sizes = [1024 * 64, 128 * 64]", "sizes.append(2 * 64)",
        "for block in range(4):",
        "    sizes.append(4 * 64 + 64 * 192 + 192 + 64 * 64 + 64 + 2 * 64 * 256 + 256 + 64)",
        "my_number = 0", "my_number += sum(sizes)", solution("my_sample"),
        "def my_next_token_loss(logits, ids):", "    return helper(logits[:-1], ids[1:])",
        "import torch.nn.functional as nnf", "helper = nnf.cross_entropy"])
    path = handed_in(tmp_path, 0, {}, first=first, more=more, without="import")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    path.write_text(json.dumps({"cells": [*cells, *committed(0)["cells"]]}), encoding="utf-8",
                    newline="\n")
    assert graded(path)[1:3] == (possible(lesson_of(0)), "")


def test_an_answer_that_reads_the_lessons_names_needs_no_cells_of_the_lesson(tmp_path):
    """`gpt` and all that it needs are taken from the lesson. No more is run than that."""
    counted = "my_number = 0\nfor weights in gpt.parameters():\n    my_number += weights.numel()"
    path = handed_in(tmp_path, 0, {"my_number": counted}, without="import")
    _, points, remark, _ = graded(path)
    assert points == ["-", "-", possible(lesson_of(0))[2], "-"], remark


def test_an_answer_cannot_replace_a_function_of_ours(tmp_path):
    """Neither while it is defined nor while it is called; the remark tells it."""
    answers = {
        "my_next_token_loss": "def my_next_token_loss(logits, ids):\n"
                              "    exercises.all_same = lambda *x: True\n    return 0.0",
        "my_perplexity": "my_perplexity, exercises.compare = math.exp, lambda *x, **k: True",
        "my_number": "def my_change():\n    setattr(exercises, 'same', lambda *x: True)\n"
                     "    return 3\nmy_number = my_change()"}
    _, points, remark, _ = graded(handed_in(tmp_path, 0, answers))
    assert points[:1] + points[2:] == [0, 0, "-"]
    assert "my_number: AttributeError: notebooks.exercises.same may not be changed" in remark


@pytest.mark.parametrize("first", [
    "exercises.check_perplexity = lambda answer: True",
    "from notebooks import exercises\nexercises.compare = lambda *a, **k: True",
    "class exercises:\n    check_perplexity = print",
    "print('Right. Your function gives the same as ours on 3 inputs.')",
    "exercises = None\nTrue",
])
def test_a_replaced_check_or_a_printed_verdict_gives_no_points(first, tmp_path):
    wrong = f"{first}\ndef my_perplexity(loss):\n    print('Right.')\n    return True"
    _, points, _, failed = graded(handed_in(tmp_path, 0, {"my_perplexity": wrong}, first=first))
    assert points == ["-", 0, "-", "-"] and not failed


def test_an_answer_that_ends_or_stops_the_process_costs_its_own_points_only(tmp_path, monkeypatch):
    monkeypatch.setattr(grade, "EXERCISE_LIMIT", 20)
    answers = {
        "my_next_token_loss": "import os\ndef my_next_token_loss(logits, ids):\n    os._exit(0)",
        "my_perplexity": "while True:\n    try:\n        my_perplexity = input()\n"
                         "    except BaseException:\n        pass",
        "my_number": "import sys\nmy_number = sys.exit()",
        "my_sample": SAMPLE}
    _, points, remark, failed = graded(handed_in(tmp_path, 0, answers))
    assert points == [0, 0, 0, possible(lesson_of(0))[3]] and failed
    assert remark == ("my_next_token_loss: ends the process; my_perplexity: stopped, it runs too "
                      "long; my_number: SystemExit:")


def test_input_huge_output_and_errors_give_a_remark(tmp_path):
    answers = {
        "my_next_token_loss": "def my_next_token_loss(logits, ids):\n    return nosuch",
        "my_perplexity": f"{RIGHT}\nfor _ in range(200_000):\n    print('x' * 1_000)",
        "my_number": "my_number = int(input('number? '))",
        "my_sample": "def my_sample(:"}
    _, points, remark, failed = graded(handed_in(tmp_path, 0, answers))
    assert points == [0, possible(lesson_of(0))[1], 0, "-"] and not failed
    assert remark == ("1 cell is not Python; 1 of 4 not begun; my_number: EOFError: EOF when "
                      "reading a line")


def test_the_whole_notebook_has_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(grade, "NOTEBOOK_LIMIT", 0)
    answers = {"my_perplexity": RIGHT, "my_sample": SAMPLE}
    _, points, remark, failed = graded(handed_in(tmp_path, 0, answers))
    assert points == ["-", 0, "-", 0] and failed and remark.count("too long") == 2


BROKEN = {
    "empty": b"", "no JSON": b"{", "no notebook": b"[1, 2]", "not UTF-8": b'{"cells": "\xff"}',
    "old": b'{"worksheets": []}', "a number": b"3", "cells": b'{"cells": [3]}',
    "source": b'{"cells": [{"cell_type": "code", "source": 3}]}',
    "no exercise": b'{"cells": [{"cell_type": "code", "source": ["print(1)"]}]}',
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("content, reason", [
    (b'{"cells": [{"cell_type": "co', "^not a notebook$"), (b'{"cells": "\xff"}', "^not a text in UTF-8$")])
def test_a_file_that_is_cut_off_is_not_called_a_wrong_encoding(content, reason, tmp_path):
    (tmp_path / "x.ipynb").write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        grade.cells_of(tmp_path / "x.ipynb")


def test_broken_files_end_in_a_row_and_exit_code_1(tmp_path, monkeypatch, capsys):
    paths = [tmp_path / "missing.ipynb", tmp_path]
    for name, content in BROKEN.items():
        paths.append(tmp_path / f"{name}.ipynb")
        paths[-1].write_bytes(content)
    table = tmp_path / "points.csv"
    monkeypatch.setattr(sys, "argv", ["grade", *map(str, paths), "--csv", str(table)])
    assert grade.main()
    lines = capsys.readouterr().out.splitlines()
    rows = list(csv.DictReader(table.open(encoding="utf-8", newline="")))
    assert len(lines) == len(rows) + 1 == len(paths) + 1
    for row, path in zip(rows, paths):
        assert row["file"] == path.name and row["lesson"] == "" and row["remark"]


def test_a_table_for_a_spreadsheet(tmp_path, monkeypatch, capsys):
    path = handed_in(tmp_path, 0, {"my_perplexity": RIGHT})
    table = tmp_path / "points.csv"
    monkeypatch.setattr(sys, "argv", ["grade", str(path), "--csv", str(table)])
    assert not grade.main()
    row, = csv.DictReader(table.open(encoding="utf-8", newline=""))
    points = possible(lesson_of(0))
    assert [row["1"], row["2"], row["total"]] == ["-", str(points[1]), str(points[1])]
    assert row["of"] == str(sum(points)) and row["remark"] == "3 of 4 not begun"
    assert "3 of 4 not begun" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [[], ["--nosuch"], ["a.ipynb", "--csv"]])
def test_wrong_flags_are_refused(flags, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["grade", *flags])
    with pytest.raises(SystemExit) as stopped:
        grade.main()
    assert stopped.value.code == 2
