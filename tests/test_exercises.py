"""The classroom: every exercise takes its solution, and answers each typical mistake with the hint that fits it."""
import ast
import json
import math
import re

import pytest
import torch
import torch.nn.functional as F

from data import files, label
from notebooks import exercises, lesson
from tests.mutations import BUGS

RANKING = {"prompt": "Hi", "responses": [{"text": text, "ended": True} for text in "abcd"], "ranks": [2, 1, 1, 3]}
NOTEBOOKS = sorted(lesson.HERE.glob("*.ipynb"))
TABLE = [{"epoch": 1, "valid_loss": 0.5, "score": 0.1, "gold": 0.6}, {"epoch": 2, "valid_loss": 0.4, "score": 0.2, "gold": 0.6},
         {"epoch": 3, "valid_loss": 0.5, "score": 0.4, "gold": 0.6}, {"epoch": 4, "valid_loss": 0.5, "score": 0.2, "gold": 0.7},
         {"epoch": 5, "valid_loss": 0.6, "score": 0.3, "gold": 0.5}]
MORE = {"epoch": (TABLE,)}                        # what these checks take besides the answer
WRONG_EPOCHS = {"loss": 2, "last": 5, "gold": 4}


def checked(name, answer):
    """What a check says of an answer."""
    return getattr(exercises, f"check_{name}")(answer, *MORE.get(name, ()))


def solutions():
    """{exercise: its answer in solutions.md}; a block sees only what its own lesson has imported."""
    found, text = {}, (lesson.HERE / "solutions.md").read_text(encoding="utf-8")
    for number, part in enumerate(re.split(r"^## \d\. .*$", text, flags=re.M)[1:]):
        names = {"table": TABLE}
        cells = json.loads(NOTEBOOKS[number].read_text(encoding="utf-8"))["cells"]
        source = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        exec("\n".join(re.findall(r"^import .*\b(?:math|torch)\b.*$", source, re.M)), names)
        for block in re.findall(r"```python\n(.*?)```", part, re.S):
            exec(block, names)
        found |= {name.removeprefix("my_"): value for name, value in names.items() if name.startswith("my_") or name.endswith("diagnosis")}
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


# Lesson 6: other right ways to write each answer. r: rewards (B,). k: responses per prompt.
# c, d: log-probabilities of tokens (N, R), chosen and rejected. rc, rd: the reference's.


def groups_of(r, k):
    return r.view(-1, k)


def centred(r, k):
    return groups_of(r, k) - groups_of(r, k).mean(1, keepdim=True)


def spread(r, k, **how):
    return groups_of(r, k).std(1, keepdim=True, **how)


def margins(c, d, rc, rd, beta):
    return beta * ((c - rc) - (d - rd)).sum(1)


def rloo_in_a_loop(r, k):
    found = []
    for i in range(len(r)):
        first = i // k * k
        others = [float(r[j]) for j in range(first, first + k) if j != i]
        found.append(float(r[i]) - sum(others) / len(others))
    return found


def grpo_in_numpy(r, k):
    groups = r.numpy().reshape(-1, k)
    return ((groups - groups.mean(1, keepdims=True)) / (groups.std(1, keepdims=True) + 1e-8)).ravel()


def dpo_in_place(c, d, rc, rd, beta):
    c -= rc
    d -= rd
    return F.softplus(-beta * (c.sum(1) - d.sum(1))).mean()


def dpo_in_a_loop(c, d, rc, rd, beta):
    losses = []
    for i in range(len(c)):
        margin = (c[i].sum() - rc[i].sum()) - (d[i].sum() - rd[i].sum())
        losses.append(-F.logsigmoid(beta * margin))
    return sum(losses) / len(losses)


def dpo_as_two_classes(c, d, rc, rd, beta):
    implied = beta * torch.stack([(c - rc).sum(1), (d - rd).sum(1)], 1)
    return F.cross_entropy(implied, torch.zeros(len(c), dtype=torch.long))


def dpo_without_gradient_on_padding(c, d, rc, rd, beta):
    sums = [torch.where(part == 0, 0.0, part).sum(1) for part in (c, d, rc, rd)]
    return -F.logsigmoid(beta * (sums[0] - sums[1] - sums[2].detach() + sums[3].detach())).mean()


RIGHT_WAYS = {
    "rloo_advantages": [
        rloo_in_a_loop,
        lambda r, k: k / (k - 1) * centred(r, k).flatten(),
        lambda r, k: k / (k - 1) * centred(r, k),                           # (B / k, k)
        lambda r, k: (r - (groups_of(r, k).sum(1).repeat_interleave(k) - r) / (k - 1)).tolist(),
    ],
    "grpo_advantages": [
        grpo_in_numpy,
        lambda r, k: centred(r, k) / (spread(r, k) + 1e-8),
        lambda r, k: centred(r, k) / (spread(r, k) + 1e-4),
        lambda r, k: centred(r, k) / (spread(r, k) ** 2 + 1e-6).sqrt(),
        lambda r, k: centred(r, k) / spread(r, k).clamp(min=1e-6),
        lambda r, k: torch.nan_to_num(centred(r, k) / spread(r, k)),
        lambda r, k: centred(r, k) / (spread(r, k, correction=0) + 1e-6),
        lambda r, k: centred(r, k) / (spread(r, k, correction=0) ** 2 + 1e-6).sqrt(),
    ],
    "dpo_loss": [
        dpo_in_place, dpo_in_a_loop, dpo_as_two_classes, dpo_without_gradient_on_padding,
        lambda *x: F.softplus(-margins(*x)).mean(),
        lambda *x: torch.logaddexp(torch.zeros(len(x[0])), -margins(*x)).mean(),
        lambda *x: F.binary_cross_entropy_with_logits(margins(*x), torch.ones(len(x[0]))),
        lambda *x: -F.logsigmoid(margins(*x)).sum() / len(x[0]),
        lambda *x: -F.logsigmoid(margins(*x)).mean()[None],
    ],
}


@pytest.mark.parametrize("name, way", [(name, way) for name, ways in RIGHT_WAYS.items()
                                       for way in ways])
def test_every_right_way_is_accepted(name, way, capsys):
    assert checked(name, way), capsys.readouterr().out


def test_either_standard_deviation_is_accepted_and_the_other_is_named(capsys):
    assert checked("grpo_advantages", lambda r, k: centred(r, k) / (spread(r, k) + 1e-6))
    assert "same as ours" in capsys.readouterr().out
    assert checked("grpo_advantages", grpo_in_numpy)
    assert "divides by k and ours by k - 1" in capsys.readouterr().out


@pytest.mark.parametrize("wrong, hint", [
    (lambda *x: torch.log1p(torch.exp(-margins(*x))).mean(), "At large margins this is infinite"),
    (lambda *x: -torch.log(1 / (1 + torch.exp(-margins(*x)))).mean(), "At large margins"),
    (lambda *x: -torch.log(torch.sigmoid(margins(*x).double())).mean(), "At large margins"),
    (lambda *x: -F.logsigmoid(margins(*x)).mean().item(), "it has no gradient"),
    (lambda c, *x: -F.logsigmoid(margins(c.detach(), *x)).mean(), "Its gradient is not"),
    (lambda c, d, *x: -F.logsigmoid(margins(c, d.detach(), *x)).mean(), "Its gradient is not"),
])
def test_a_loss_that_cannot_train_is_refused(wrong, hint, capsys):
    """Its value is right where margins are small."""
    assert not checked("dpo_loss", wrong)
    assert hint in capsys.readouterr().out


@pytest.mark.parametrize("name", RIGHT_WAYS)
def test_every_argument_is_varied(name, capsys):
    """An answer with a fixed k or beta, or one that ignores any other argument, is refused."""
    right = solutions()[name]
    if name == "dpo_loss":
        for beta in (0.15, 0.5, 1.0, 1.5):
            assert not checked(name, lambda c, d, rc, rd, _: right(c, d, rc, rd, beta))
        for place in range(4):
            def without(*case):
                parts = list(case)
                parts[place] = torch.zeros_like(parts[place])
                return right(*parts)
            assert not checked(name, without)
    else:
        for k in (2, 3, 4, 5):
            assert not checked(name, lambda r, _: right(r, k))


@pytest.mark.parametrize("diagnosis", [
    {}, ..., None, ["A"], {"A": ["x"]}, {"G": {}}, {"a": "KL to the rollout policy"},
    dict.fromkeys("ABCDEFGHIJ"), dict.fromkeys("ABCDEFGHIJ", 10 ** 400)])
@pytest.mark.parametrize("check", [exercises.check_diagnosis, exercises.check_second_diagnosis])
def test_a_malformed_diagnosis_gets_a_line(check, diagnosis, capsys):
    assert not check(diagnosis)
    assert capsys.readouterr().out.count("\n") == 1


def test_a_wrong_name_gets_the_symptoms_of_that_name_and_the_number_found(capsys):
    right = solutions()["diagnosis"]
    assert not exercises.check_diagnosis(right | {"E": right["F"]})
    said = capsys.readouterr().out
    assert "5 of 6 are found. Curve E is a different bug." in said
    assert exercises.SYMPTOMS[right["F"]] in said and right["E"] not in said


def test_nothing_that_a_notebook_holds_says_which_curve_is_which_bug():
    """The recorded curves have letters, and the module has only hashes of the answers."""
    names = [*exercises.SYMPTOMS, *exercises.SECOND_SYMPTOMS]
    parts = lesson.recorded("classroom")["parts"]
    assert not set(names) & set(parts) and set(exercises.KEYS) < set(parts)
    held = repr([value for name, value in vars(exercises).items() if name == "KEYS"])
    assert not any(name in held for name in names)
    known = {bug.name for bug in BUGS}
    assert set(names) <= known
    for letter in exercises.KEYS:
        assert [name for name in names if exercises.is_bug(letter, name)] == [
            bug.name for bug in BUGS if exercises.is_bug(letter, bug.name)]
    lesson_5 = lesson.HERE / "5_what_goes_wrong.ipynb"
    source = "".join("".join(cell["source"]) for cell in
                     json.loads(lesson_5.read_text(encoding="utf-8"))["cells"])
    given = [name for name in names if f'": "{name}"' in source]
    assert given == ["whitened before the returns"], "one letter is given as an example"


def test_every_recorded_curve_shows_its_symptom():
    """What a hint promises is true of the curve that has the bug, and not of the healthy one."""
    parts = lesson.recorded("classroom")["parts"]
    runs = {name: parts[letter] for letter, name in (solutions()["diagnosis"]
                                                     | solutions()["second_diagnosis"]).items()}

    def column(name, key):
        return [row[key] for row in (runs | {"no bug": parts["no bug"]})[name]]

    healthy = {key: column("no bug", key) for key in parts["no bug"][0]}
    assert set(column("KL to the rollout policy", "kl")) == {0.0}
    assert column("KL with the sign turned", "kl")[-1] > 10 * healthy["kl"][-1]
    assert 1.2 < column("the score is paid on every token", "kl")[-1] / healthy["kl"][-1] < 2.5
    assert max(column("the score is paid at the end of the padding", "score")) < 0.6
    assert column("whitened before the returns", "explained_variance")[0] > 0.3
    assert healthy["explained_variance"][0] < 0
    assert max(map(abs, (a - b for a, b in zip(
        column("an endless response costs nothing", "gold"), healthy["gold"])))) < 0.06
    assert set(healthy["ratio"]) == {1.0} and max(healthy["clip_fraction"]) < 0.03
    assert min(column("dropout on in the rollout", "ratio")) > 10
    assert min(column("dropout on in the rollout", "clip_fraction")) > 0.05
    assert max(column("rollouts sample from the reference", "kl")[1:]) < 0
    assert max(column("rollouts sample from the reference", "ratio")) < 1.001
    assert set(column("pad is end-of-text", "ended")) == {0.0}
    assert set(column("pad is end-of-text", "length")) == {32.0}
    collapse = "a learning rate 30 times too large"
    assert max(column(collapse, "clip_fraction")[:4]) > 0.2
    assert max(map(abs, column(collapse, "entropy")[-6:])) < 0.01
    task = parts["closing task"]
    assert {row["kl"] for row in task} == {0.0} and task[-1]["ended"] < 0.05
    assert task[0]["length"] == healthy["length"][0] - 1


def test_a_sum_over_steps_is_near_enough_to_the_integral(capsys):
    """Sums over the middles or the right ends of steps are accepted; the unweighted mean is not."""
    def summed(n, steps, shift, weighted=True):
        total = 0.0
        for i in range(steps):
            u = (i + shift) / steps
            density = n * u ** (n - 1)
            total += (density if weighted else 1.0) * math.log(density) / steps
        return total

    for steps, shift in ((1_000, 0.5), (1_000, 1.0), (200, 1.0), (100_000, 0.5)):
        assert exercises.check_best_of_n_kl(lambda n: summed(n, steps, shift))
    assert not exercises.check_best_of_n_kl(lambda n: summed(n, 1_000, 0.5, weighted=False))
    assert "Weight each u" in capsys.readouterr().out


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
