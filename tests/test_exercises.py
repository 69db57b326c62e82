"""The classroom: every exercise takes its solution, and answers each typical mistake with the hint that fits it."""
import ast
import json
import re

import pytest
import torch

from data import files, label
from notebooks import exercises, lesson

RANKING = {"prompt": "Hi", "responses": [{"text": text, "ended": True} for text in "abcd"], "ranks": [2, 1, 1, 3]}
NOTEBOOKS = sorted(lesson.HERE.glob("*.ipynb"))
TABLE = [{"epoch": 1, "valid_loss": 0.5, "score": 0.1, "gold": 0.6}, {"epoch": 2, "valid_loss": 0.4, "score": 0.2, "gold": 0.6},
         {"epoch": 3, "valid_loss": 0.5, "score": 0.4, "gold": 0.6}, {"epoch": 4, "valid_loss": 0.5, "score": 0.2, "gold": 0.7},
         {"epoch": 5, "valid_loss": 0.6, "score": 0.3, "gold": 0.5}]
TRUTH = {"A": "KL with the sign turned"}
MORE = {"epoch": (TABLE,), "diagnosis": (TRUTH,)}                        # what these checks take besides the answer
WRONG_EPOCHS = {"loss": 2, "last": 5, "gold": 4}


def checked(name, answer):
    """What a check says of an answer."""
    return getattr(exercises, f"check_{name}")(answer, *MORE.get(name, ()))


def solutions():
    """{exercise: its answer in solutions.md}; a block sees only what its own lesson has imported."""
    found, text = {}, (lesson.HERE / "solutions.md").read_text(encoding="utf-8")
    for number, part in enumerate(re.split(r"^## \d\. .*$", text, flags=re.M)[1:]):
        names = {"table": TABLE, "truth": TRUTH}
        cells = json.loads(NOTEBOOKS[number].read_text(encoding="utf-8"))["cells"]
        source = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        exec("\n".join(re.findall(r"^import .*\b(?:math|torch)\b.*$", source, re.M)), names)
        for block in re.findall(r"```python\n(.*?)```", part, re.S):
            exec(block, names)
        found |= {name.removeprefix("my_"): value for name, value in names.items() if name.startswith("my_") or name == "diagnosis"}
    return {"parameters": found.pop("number"), **found}


def test_every_exercise_has_a_solution_and_three_mistakes():
    checks = {name.removeprefix("check_") for name in dir(exercises) if name.startswith("check_")}
    assert checks == set(solutions()) == set(exercises.MISTAKES)
    assert all(len(mistakes) >= 3 for mistakes in exercises.MISTAKES.values())


@pytest.mark.parametrize("name", exercises.MISTAKES)
def test_the_solution_is_accepted(name, capsys):
    assert checked(name, solutions()[name])
    assert capsys.readouterr().out.startswith("Right. ")


@pytest.mark.parametrize("name, hint, mistake", [(name, hint, mistake) for name, pairs in exercises.MISTAKES.items() for hint, mistake in pairs])
def test_a_typical_mistake_is_refused_with_its_own_hint(name, hint, mistake, capsys):
    assert not checked(name, WRONG_EPOCHS[mistake] if name == "epoch" else mistake)
    said = capsys.readouterr().out
    assert said.startswith("Not yet. ") and hint in said


@pytest.mark.parametrize("name", [name for name, value in solutions().items() if callable(value)])
@pytest.mark.parametrize("wrong", [lambda *x: None, lambda: 0, lambda *x: 1 / 0, lambda *x: "text", lambda *x: torch.zeros(3, 17), lambda *x: float("nan")])
def test_whatever_a_student_writes_there_is_a_line_and_no_traceback(name, wrong, capsys):
    assert not checked(name, wrong)
    assert capsys.readouterr().out.count("\n") == 1


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_defines_nothing_but_the_students_own(path):
    """No function of the scripts is written again in a lesson; cells are short, and outputs are there without errors."""
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
             if cell["cell_type"] == "code"]
    for cell in cells:
        tree = ast.parse("".join(cell["source"]))
        assert all(node.name.startswith("my_") for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef)))
        assert len([line for line in "".join(cell["source"]).splitlines() if line.strip()]) <= 10
        assert all(out["output_type"] != "error" and out.get("name") != "stderr" for out in cell["outputs"])
    assert any(cell["outputs"] for cell in cells), "the outputs are committed, so that a lesson can be read without running it"


def test_a_mask_that_is_ignored_is_noticed(capsys):
    """Padding holds anything: an advantage or a loss that reads it is refused."""
    from_gae, from_loss = solutions()["gae"], solutions()["policy_loss"]
    assert not exercises.check_gae(lambda r, v, mask, lam: from_gae(r, v, torch.ones_like(mask), lam))
    assert not exercises.check_policy_loss(lambda new, old, a, mask, clip: from_loss(new, old, a, torch.ones_like(mask), clip) * mask.numel() / mask.sum())


@pytest.mark.parametrize("diagnosis", [{}, ..., ["A"], {"A": ["x"]}, {"a": "KL to the rollout policy"}])
def test_a_malformed_diagnosis_gets_a_line(diagnosis, capsys):
    assert not exercises.check_diagnosis(diagnosis, TRUTH)
    assert capsys.readouterr().out.count("\n") == 1


def test_the_checkpoints_are_small():
    assert sum(path.stat().st_size for path in lesson.CHECKPOINTS.glob("*.pt")) < 3_000_000
    assert sorted(path.stem for path in lesson.CHECKPOINTS.glob("*.pt")) == sorted(lesson.MODELS)


def test_no_ranks_that_a_student_types_break_a_later_cell(monkeypatch, capsys, tmp_path):
    """All tied twelve times was a division by zero two cells on; what is asked again gets a hint."""
    monkeypatch.delenv("LESSON_UNATTENDED", raising=False)
    for typed in ("1=2=3=4", "1 1 1 2", "\u00b2 1 3 4", "0 1 2 3", "1 2 3 " + "9" * 5_000,
                  "1 2 3 4 5", "-1 2 3", "1.0 2 3 4"):
        waiting = iter([typed, "1=2=3 4"])
        monkeypatch.setattr("builtins.input", lambda question: next(waiting))
        assert lesson.ask_ranks(RANKING, tmp_path / "mine.jsonl") == [1, 1, 1, 2]
        assert capsys.readouterr().out.count("\n") == 1, typed
    cells = json.loads(NOTEBOOKS[2].read_text(encoding="utf-8"))["cells"]
    source = next("".join(cell["source"]) for cell in cells
                  if "def my_agreement" in "".join(cell["source"]))
    names = {}
    exec(source[:source.index("mine =")], names)
    for ranks in ([1, 1, 1, 2], [1, 1, 1, 1]):
        assert names["my_agreement"]([ranks] * 12, [[2, 1, 1, 1]] * 12) in (0.0, 1.0)


@pytest.mark.parametrize("silent", [EOFError, NotImplementedError])
def test_where_nobody_can_type_the_prepared_answer_is_taken(silent, monkeypatch, tmp_path):
    def unheard(question):
        raise silent
    monkeypatch.delenv("LESSON_UNATTENDED", raising=False)
    monkeypatch.setattr("builtins.input", unheard)
    assert lesson.ask_ranks(RANKING, tmp_path / "mine.jsonl") == [2, 1, 1, 3]
    assert lesson.ask_vote(0.9) == "a" and not list(tmp_path.iterdir())


def test_what_a_student_ranks_is_kept_and_a_prepared_ranking_is_not(tmp_path, monkeypatch):
    """Lesson 2 adds lines to the student's file; an unattended run writes none."""
    cells = json.loads(NOTEBOOKS[2].read_text(encoding="utf-8"))["cells"]
    source = next("".join(cell["source"]) for cell in cells
                  if "lesson.ask_ranks" in "".join(cell["source"]))
    twelve = lesson.recorded("classroom")["parts"]["twelve"]
    names = {"root": tmp_path, "lesson": lesson, "twelve": twelve}
    monkeypatch.setenv("LESSON_UNATTENDED", "1")
    exec(source, names)
    assert not list(tmp_path.iterdir()) and names["my_rankings"] == twelve
    monkeypatch.delenv("LESSON_UNATTENDED")
    for _ in range(2):
        waiting = iter(["3 1=2 4", "4 3 2 1", *[""] * 10])
        monkeypatch.setattr("builtins.input", lambda question: next(waiting))
        exec(source, names)
    lines = label.read_rankings(tmp_path / "my_rankings.jsonl")
    assert [line["ranks"] for line in lines] == [[2, 2, 1, 3], [4, 3, 2, 1]] * 2
    for line, ranking in zip(lines, twelve[:2] * 2):
        for key in ("prompt", "task", "responses"):
            assert line[key] == ranking[key]
    asked = {row["prompt"] for row in files.read_prompts("rm")}
    assert all(ranking["prompt"] in asked for ranking in twelve)


def test_no_lesson_counts_the_lines_of_a_script():
    """Such a number is wrong as soon as the script changes."""
    for path in NOTEBOOKS:
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            text = "".join(cell["source"])
            counted = re.search(r"\.py`?,? (\(|of |has )?[\d,]+ lines|[\d,]+ lines of (code|`)", text)
            assert cell["cell_type"] == "code" or not counted, text


def test_a_question_is_asked_again_until_the_answer_fits(monkeypatch, tmp_path):
    """Typed nonsense is asked again, nothing typed means the prepared answer, and unattended nobody is asked."""
    def typed(*lines):
        waiting = iter(lines)
        monkeypatch.setattr("builtins.input", lambda question: next(waiting))
    monkeypatch.delenv("LESSON_UNATTENDED", raising=False)
    typed("1 2 2 3", "a b c d", "3 1=2 4")
    assert lesson.ask_ranks(RANKING, tmp_path / "mine.jsonl") == [2, 2, 1, 3]
    typed("x", "B", "", "=")
    assert [lesson.ask_vote(0.8) for _ in range(3)] == ["b", "a", "="]
    monkeypatch.setenv("LESSON_UNATTENDED", "1")
    typed()
    assert lesson.ask_vote(0.2) == "b" and lesson.ask_ranks(RANKING, None) == [2, 1, 1, 3]
