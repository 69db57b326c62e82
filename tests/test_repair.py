"""The closing task: each wrong line is noticed and named, and every right repair is accepted."""
import contextlib
import io

import pytest

from data.files import UserError
from data.flags import guarded
from notebooks import repair
from notebooks.repair import PHASES, REST, ROOT

RIGHT = (ROOT / "ppo.py").read_text(encoding="utf-8")
ALL_RIGHT = dict.fromkeys([*(phase.title for phase in PHASES), REST], "")


def verdicts(tmp_path, text):
    """What the check finds in a file that holds this text."""
    path = tmp_path / "my_ppo.py"
    path.write_text(text, encoding="utf-8", newline="\n")
    with contextlib.redirect_stdout(io.StringIO()):
        return repair.verdicts(path)


def replaced(*pairs):
    """ppo.py with some fragments replaced. Each must be there once."""
    text = RIGHT
    for old, new in pairs:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def test_the_written_file_has_five_wrong_lines_and_nothing_else_is_changed(tmp_path, monkeypatch):
    """Nothing but the code of five lines differs: comments stay, and stay where they were."""
    monkeypatch.chdir(tmp_path)
    repair.write_task()
    text = (tmp_path / "my_ppo.py").read_text(encoding="utf-8")
    pairs = list(zip(RIGHT.splitlines(), text.splitlines(), strict=True))
    changed = [(right, wrong) for right, wrong in pairs if right != wrong]
    assert len(changed) == 5
    for right, wrong in changed:
        code, sign, comment = right.partition("  #")
        assert wrong.endswith(sign + comment) and len(wrong) <= 100
        assert not sign or wrong.index("  #") >= right.rindex("  #") - 1
    compile(text, "my_ppo.py", "exec")


def test_what_a_student_has_repaired_is_never_overwritten(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_ppo.py").write_text("mine", encoding="utf-8", newline="\n")
    with pytest.raises(UserError, match="exists already"):
        repair.write_task()
    assert (tmp_path / "my_ppo.py").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("phase, bug", list(zip(PHASES, repair.the_bugs())),
                         ids=[phase.function for phase in PHASES])
def test_each_wrong_line_alone_is_named_and_nothing_else(phase, bug, tmp_path, capsys):
    found = verdicts(tmp_path, repair.with_bug(RIGHT, bug))
    assert [title for title in found if found[title]] == [phase.title]
    assert not repair.report("my_ppo.py", found, hint=False)
    said = capsys.readouterr().out
    assert phase.symptom in said and "4 of 5 repaired." in said
    assert f"Read {phase.function}." not in said and bug.right.strip() not in said
    assert not repair.report("my_ppo.py", found, hint=True)
    assert f"Read {phase.function}." in capsys.readouterr().out


WRONG_REPAIRS = {       # function -> what a student changed in it, and the result that shows it
    "batch_of": [("positions < response_lengths[:, None]).float()",
                  "positions < response_lengths[:, None] + 1).float()", "mask"),
                 ("positions < response_lengths[:, None]).float()",
                  "positions < response_lengths[:, None])", "mask (torch.bool, not torch.float32)")],
    "token_rewards": [("rewards = -beta * (logprobs - ref_logprobs) * mask",
                       "rewards = -beta * (logprobs - ref_logprobs) * mask * 2", "rewards"),
                      ("rewards.scatter_add(1, last[:, None], scores[:, None])",
                       "rewards.scatter_add(1, 0 * last[:, None] - 1 + mask.shape[1], scores[:, None])",
                       "rewards")],
    "gae": [("(delta + gamma * lam * next_advantage)", "(delta + gamma * next_advantage)",
             "raw_advantages")],
}


@pytest.mark.parametrize("function, old, new, key", [
    (function, *change) for function, changes in WRONG_REPAIRS.items() for change in changes])
def test_a_wrong_repair_does_not_get_the_symptom_of_the_wrong_line(function, old, new, key, tmp_path, capsys):
    """It is no longer wrong in the way of the symptom. The phase is named, and the result."""
    found = verdicts(tmp_path, replaced((old, new)))
    phase, = [phase for phase in PHASES if found[phase.title]]
    assert phase.function == function and found[phase.title] == f"Look at this: {key}."
    assert not found[REST]
    repair.report("my_ppo.py", found, hint=False)
    said = capsys.readouterr().out
    assert "No longer as before, but not right yet." in said and phase.symptom not in said


def test_all_five_are_found_at_once_and_the_repaired_file_is_right(tmp_path, capsys):
    found = verdicts(tmp_path, repair.broken_text())
    assert [title for title in found if not found[title]] == [REST]
    assert verdicts(tmp_path, RIGHT) == ALL_RIGHT
    assert repair.report("my_ppo.py", ALL_RIGHT, hint=False)
    said = capsys.readouterr().out
    for bug in repair.the_bugs():
        assert f"- {bug.wrong.strip()}\n" in said and f"+ {bug.right.strip()}\n" in said


# Other right ways to write each line, and repairs elsewhere than in the wrong line.
OTHER_WAYS = {
    "batch_of": [("positions < response_lengths[:, None]).float()",
                  "positions <= response_lengths[:, None] - 1).to(torch.float32)")],
    "read_episodes": [("ref_logprobs[episodes, :r] = response_logprobs(reference, part)",
                       "ref_logprobs[episodes, :r] = at_responses(pretraining.logprobs("
                       "reference, part[\"idx\"]), part[\"prompt_lengths\"], part[\"mask\"])")],
    "token_rewards": [("rewards = -beta * (logprobs - ref_logprobs) * mask",
                       "rewards = (beta * ref_logprobs - beta * logprobs).masked_fill("
                       "mask == 0, 0.0)")],
    "the call of token_rewards": [
        ("rewards = -beta * (logprobs - ref_logprobs) * mask",
         "rewards = -beta * (ref_logprobs - logprobs) * mask"),
        ("token_rewards(scores, logprobs, ref_logprobs, batch",
         "token_rewards(scores, ref_logprobs, logprobs, batch")],
    "gae": [("delta = rewards[:, t] + gamma * next_value - values[:, t]",
             "nxt = values[:, t + 1] * mask[:, t + 1] if t + 1 < rewards.shape[1] else 0.0\n"
             "        delta = rewards[:, t] - (values[:, t] - gamma * nxt)")],
    "policy_loss": [("loss = masked_mean(torch.maximum(unclipped, clipped), mask)",
                     "loss = -masked_mean(torch.min(-unclipped, -clipped), mask)")],
}


@pytest.mark.parametrize("pairs", OTHER_WAYS.values(), ids=OTHER_WAYS)
def test_every_right_repair_is_accepted(pairs, tmp_path):
    assert verdicts(tmp_path, replaced(*pairs)) == ALL_RIGHT


NEW_MISTAKES = {        # in what was right before, and what the check points at
    "whiten": ("(masked_mean(centred ** 2, mask) + 1e-8).sqrt()", "1.0"),
    "the log": ("ended=ended.mean(),", "ended=ended.sum(),"),
    "update": ("for optimizer in optimizers:\n        optimizer.step()",
               "for optimizer in optimizers[:1]:\n        optimizer.step()"),
    "the weight of a micro-batch": ('share = part["mask"].sum() / n_tokens',
                                    "share = torch.tensor(1.0)"),
    "the average": ("ema.lerp_(now, 1 - decay)", "ema.lerp_(now, decay)"),
    "what is saved": ("iterations, ema_policy, value_net)\n", "iterations, policy, value_net)\n"),
    "the reference": ("reference = load_model(sft_mix, device)", "reference = policy"),
    "the rates": ('"peak": config.lr_norm', '"peak": config.lr'),
    "the ratio": ('steps[0]["ratio"]', 'steps[-1]["ratio"]'),
    "the warm-up": ("round(0.02 * iterations)", "round(20 * iterations)"),
    "the prompts": ("queue = queue[config.rollout_size:]", "pass"),
    "a default": ("lr_norm: float = 0.03", "lr_norm: float = 0.3"),
    "kl_to_reference": ("(k1 * batch[\"mask\"]).sum(1).mean().item()", "k1.mean().item()"),
}


@pytest.mark.parametrize("old, new", NEW_MISTAKES.values(), ids=NEW_MISTAKES)
def test_a_new_mistake_elsewhere_is_noticed(old, new, tmp_path, capsys):
    """It is not blamed on one of the five parts that are right."""
    found = verdicts(tmp_path, replaced((old, new)))
    assert found[REST].startswith("Look at this: ")
    assert not any(found[phase.title] for phase in PHASES)
    assert not repair.report("my_ppo.py", found, hint=False)
    assert "5 of 5 repaired." in capsys.readouterr().out


@pytest.mark.parametrize("body", ["raise ValueError('one\\ntwo')", "return None", "exit()",
                                  "return 'text'"])
def test_a_function_that_fails_makes_its_line_wrong(body, tmp_path, capsys):
    text = replaced(("    ratio = (logprobs - old_logprobs).exp() ", f"    {body}\n    ratio = 1 "))
    found = verdicts(tmp_path, text)
    assert [title for title in found if found[title]] == [PHASES[-1].title]
    repair.report("my_ppo.py", found, hint=False)
    assert len(capsys.readouterr().out.splitlines()) == 8


def test_a_missing_function_is_named(tmp_path):
    found = verdicts(tmp_path, replaced(("def gae(", "def my_gae(")))
    assert "gae" in found["advantages and returns"] and "raises" in found["advantages and returns"]


@pytest.mark.parametrize("text, said", [
    ("x = (", "line 1: SyntaxError"),
    ("import torch\nx = 1 +\n", "line 2: SyntaxError"),
    ("import torch\n\ntorch.nothing\n", "line 3: AttributeError"),
    ("import no_such_package\n", "line 1: ModuleNotFoundError"),
    ("exit(3)\n", "SystemExit"),
    ("import os\nos._exit(0)\n", "ended early, with exit code 0"),
    ("x = '\0'", "null bytes"),
])
def test_a_file_that_cannot_be_imported_ends_in_one_line(text, said, tmp_path):
    path = tmp_path / "my_ppo.py"
    path.write_text(text, encoding="utf-8", newline="\n")
    with pytest.raises(UserError) as caught:
        repair.check(str(path))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_loop_without_an_end_is_stopped(tmp_path):
    path = tmp_path / "my_ppo.py"
    path.write_text("while True:\n    pass\n", encoding="utf-8", newline="\n")
    with pytest.raises(UserError, match="stopped after 10 s"):
        repair.check(str(path), limit=10)


def test_a_function_without_an_end_is_stopped_with_exit_code_2(tmp_path, monkeypatch, capsys):
    """The limit is that of the command, cut short here."""
    assert repair.LIMIT <= 60
    path = tmp_path / "my_ppo.py"
    text = replaced(("    advantages = torch.zeros_like(rewards)", "    while True:\n        pass\n    advantages = rewards"))
    path.write_text(text, encoding="utf-8", newline="\n")
    monkeypatch.setattr("sys.argv", ["repair", str(path)])
    monkeypatch.setattr(repair.check, "__defaults__", (False, 15))
    with pytest.raises(SystemExit) as caught:
        guarded(repair.main)
    assert caught.value.code == 2
    assert capsys.readouterr().err.strip().endswith("stopped after 15 s. Is there a loop without an end?")


@pytest.mark.parametrize("name", ["none.py", "."])
def test_a_missing_file_is_named(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="there is no file"):
        repair.check(name)


def test_the_command_says_what_is_wrong_and_its_exit_code_is_1(tmp_path, monkeypatch, capsys):
    """The check runs in a process of its own, so it also works outside of the project's folder."""
    monkeypatch.chdir(tmp_path)
    repair.write_task()
    monkeypatch.setattr("sys.argv", ["repair", "my_ppo.py"])
    with pytest.raises(SystemExit) as caught:
        repair.main()
    assert caught.value.code == 1
    assert "0 of 5 repaired." in capsys.readouterr().out
