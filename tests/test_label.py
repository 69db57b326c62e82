"""People rank responses: what is typed into the real command is what stands in the file, whatever happens to it."""
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data import files, label, labeler, tasks
from data.files import UserError
from data.labeler import get_labelers

if sys.platform != "win32":
    import termios

    from tests.typist import Terminal, rank_by, ranks_by, strokes

ROOT = files.FOLDER.parent
in_a_terminal = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")


@pytest.fixture(scope="module")
def rows():
    """Sixty training prompts with four different responses each; the last is empty and never ends."""
    found = []
    for row in files.read_prompts("rm")[-60:]:
        texts = list(dict.fromkeys(person.demonstrate(row["task"]) for person in get_labelers("train")))
        texts = [*texts, "I do not know.", "The fox"][:3]
        responses = [{"text": text, "ended": True, "sampler": "person"} for text in texts]
        responses.append({"text": "", "ended": False, "sampler": "nobody"})
        found.append({"prompt": row["prompt"], "task": row["task"], "responses": responses})
    return found


@pytest.fixture
def material(rows, tmp_path):
    files.write_jsonl(tmp_path / "material.jsonl", rows)
    return tmp_path / "material.jsonl"


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def flags_of(material, *more):
    return ["--material", str(material), "--rankings", str(material.parent / "mine.jsonl"), "--name", "ann", *more]


def piped(material, typed, *more, **environment):
    """The command with its input from a pipe: (exit code, output, errors, lines of the file)."""
    done = subprocess.run([sys.executable, "-m", "data.label", *flags_of(material, *more)], input=typed, cwd=ROOT, encoding="utf-8",
                          capture_output=True, env={**os.environ, **environment}, timeout=60)
    path = material.parent / "mine.jsonl"
    return done.returncode, done.stdout, done.stderr, read(path) if path.exists() else []


def all_rankings(n):
    """Every way to rank n responses without gaps, ties included."""
    return [list(ranks) for ranks in itertools.product(range(1, n + 1), repeat=n) if files.ranks_all(list(ranks), n)]


# ---------------------------------------------------------------- what is typed


@pytest.mark.parametrize("typed, ranks", [
    ("3124", [2, 3, 1, 4]), ("3 1 2 4", [2, 3, 1, 4]), ("3>1=2>4", [2, 2, 1, 3]), ("3 1=2 4", [2, 2, 1, 3]), ("3, 1, 2, 4", [2, 3, 1, 4]),
    ("312", [2, 3, 1, 4]), ("3", [2, 2, 1, 2]), ("312=", [2, 3, 1, 3]), ("1=2=3=4", [1, 1, 1, 1]), ("3 1", [2, 3, 1, 3]),
    ("", None), ("=", None), ("=1", None), ("1==2", None), ("1 1", None), ("5", None), ("0", None), ("1 2 2 3", None), ("3124=", None),
    ("x", None), ("3 1 2 4 x", None), ("\u00b2", None), ("\u0661", None)])
def test_numbers_from_best_to_worst_give_ranks(typed, ranks):
    """What is left out shares the last place; what can be read in two ways is refused."""
    assert label.ranks_of(typed, 4) == ranks


@in_a_terminal
@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_every_ranking_can_be_typed(n):
    for ranks in all_rankings(n):
        assert label.ranks_of(strokes(ranks), n) == ranks


def test_agreement_by_hand():
    """Six pairs of four responses: alike counts 1, a tie of one or of both a half, turned round 0."""
    assert label.agreement([1, 2, 3, 4], [1, 2, 3, 4]) == [1.0] * 6
    assert label.agreement([1, 2, 3, 4], [4, 3, 2, 1]) == [0.0] * 6
    assert label.agreement([1, 2], [1, 1]) == label.agreement([1, 1], [2, 1]) == label.agreement([1, 1], [1, 1]) == [0.5]
    assert sorted(label.agreement([1, 2, 3], [2, 1, 3])) == [0.0, 1.0, 1.0]


def test_agreement_is_that_of_the_simulated_labelers(rows):
    """The same convention as labeler.agreement, which pairs drawn at random approach."""
    labelers = get_labelers("train")[:5]
    everyone = []
    for row in rows:
        for one, other in itertools.permutations(labelers, 2):
            everyone += label.agreement(one.rank(row["task"], row["responses"]), other.rank(row["task"], row["responses"]))
    drawn = labeler.agreement(rows, labelers, random.Random(0), pairs=20_000)
    assert abs(sum(everyone) / len(everyone) - drawn) < 0.01


def test_agreement_with_oneself_compares_responses_and_not_places(rows):
    """The same ranking of the same texts in another order agrees; responses to other prompts are not compared."""
    first = {**rows[0], "ranks": [1, 2, 3, 4]}
    again = {**rows[0], "responses": rows[0]["responses"][::-1], "ranks": [4, 3, 2, 1]}
    turned = {**again, "ranks": [1, 2, 3, 4]}
    other = {**rows[1], "ranks": [1, 2, 3, 4]}
    assert label.agreement_with_self([first, other, again]) == [1.0] * 6
    assert label.agreement_with_self([first, other, turned]) == [0.0] * 6
    assert label.agreement_with_self([first, other]) == []


# ---------------------------------------------------------------- a person at a terminal


@in_a_terminal
def test_a_hundred_and_fifty_rankings_by_one_taste_stand_in_the_file_as_they_were_typed(tmp_path):
    """The shipped material, the shortest response first: the ranks of every line are those of the lengths that it holds."""
    path = tmp_path / "short.jsonl"
    typed, seconds = rank_by(lambda prompt, response: len(response["text"]), 150, path)
    lines = read(path)
    assert len(typed) == len(lines) == 150 and seconds < 60
    for said, line in zip(typed, lines):
        shown = [{"text": response["text"], "ended": response["ended"]} for response in line["responses"]]
        assert said == {"prompt": line["prompt"], "responses": shown, "ranks": line["ranks"]}
        assert line["ranks"] == ranks_by([len(response["text"]) for response in line["responses"]])
        assert list(line) == ["prompt", "responses", "ranks", "labeler", "task"] and line["labeler"] == "typist"
    again = [number for number, line in enumerate(lines, 1) if line["prompt"] in {other["prompt"] for other in lines[:number - 1]}]
    assert again == list(range(10, 151, 10))
    for number in again:
        earlier = next(line for line in lines if line["prompt"] == lines[number - 1]["prompt"])
        assert lines.index(earlier) < number - 1 - label.APART and earlier["responses"] != lines[number - 1]["responses"]


@in_a_terminal
def test_keys_act_at_once_and_each_ranking_is_on_the_disk_before_the_next_question(material):
    """Ties, backspace, an arrow, Delete ("\\x1b[3~" holds a 3), a wrong key, skip, undo, help, quit; no Enter but one."""
    path = material.parent / "mine.jsonl"
    with Terminal(*flags_of(material)) as terminal:
        first, responses = terminal.question()
        for key in ("\x1b[3~", "\x1b[A"):
            terminal.type(key)
            terminal.wait_for("? helps")                    # what follows such a key at once is a part of it
        terminal.type("4\x7f\x7f9x3==3142")
        second, _ = terminal.question()
        assert [line["ranks"] for line in read(path)] == [[1, 3, 1, 2]] and read(path)[0]["prompt"] == first != second
        terminal.type("s")
        third, order = terminal.question()
        terminal.type("?")
        assert terminal.question() == (third, order) and third not in (first, second)
        terminal.type("12u")                                # undo takes back the skip, and what was half typed
        assert terminal.question()[0] == second
        terminal.type("u")
        assert terminal.question() == (first, responses) and path.read_bytes() == b""
        terminal.type("u")
        assert terminal.question() == (first, responses) and "Nothing to undo" in terminal.screen
        terminal.type("2\n")
        assert terminal.question()[0] == second and [line["ranks"] for line in read(path)] == [[2, 1, 2, 2]]
        terminal.type("q")
        assert terminal.end() == 0 and ": 1, of which 1 by ann." in terminal.screen


@in_a_terminal
@pytest.mark.parametrize("how, code", [("q", 0), ("\x04", 0), ("\x03", 2), (signal.SIGTERM, 128 + 15), ("error", 2)])
def test_the_terminal_is_as_before_however_the_program_ends(how, code, material):
    """Quit, end of the input, Ctrl-C, kill, an error: what is typed is shown again, and lines are lines."""
    with Terminal(*flags_of(material)) as terminal:
        terminal.question()
        terminal.type("1\n")
        terminal.question()
        assert terminal.attributes() != terminal.before
        if how == "error":
            (material.parent / "mine.jsonl").unlink()
            how = "u"
        if isinstance(how, str):
            terminal.type(how)
        else:
            terminal.process.send_signal(how)
        assert terminal.end() == code, terminal.screen
        assert terminal.attributes() == terminal.before and "Traceback" not in terminal.screen
        assert code != 2 or terminal.screen.strip().splitlines()[-1].startswith("error: ")
        assert not list(material.parent.glob(".*lock"))


@in_a_terminal
def test_after_a_pause_keys_act_at_once_again(material):
    """Ctrl-Z, after which the shell sets its own terminal, and fg."""
    with Terminal(*flags_of(material)) as terminal:
        first, _ = terminal.question()
        keys = terminal.attributes()
        terminal.process.send_signal(signal.SIGSTOP)
        termios.tcsetattr(terminal.theirs, termios.TCSANOW, terminal.before)
        terminal.process.send_signal(signal.SIGCONT)
        for _ in range(500):
            if terminal.attributes() == keys:
                break
            time.sleep(0.01)
        terminal.type("3124")
        assert terminal.question()[0] != first


@in_a_terminal
def test_a_closed_window_ends_the_program(material):
    with Terminal(*flags_of(material)) as terminal:
        terminal.question()
        os.close(terminal.theirs)
        os.close(terminal.ours)
        terminal.process.wait(timeout=10)
        terminal.ours, terminal.theirs = os.pipe()          # for close()
    assert not list(material.parent.glob(".*lock"))


@in_a_terminal
def test_killed_and_started_again_it_continues_and_no_line_is_lost_or_half(material):
    """kill -9 at ten random moments while somebody types; at the end every prompt was ranked once or came again."""
    path, rng, typed = material.parent / "mine.jsonl", random.Random(0), 0
    for _ in range(10):
        with Terminal(*flags_of(material)) as terminal:
            for _ in range(rng.randrange(1, 5)):
                terminal.question()
                terminal.type("3124")
                typed += 1
            time.sleep(rng.uniform(0, 0.01))
            terminal.process.kill()
            terminal.process.wait()
    lines = label.read_rankings(path)
    assert typed - 10 <= len(lines) <= typed and all(line["ranks"] == [2, 3, 1, 4] for line in lines)
    prompts = [line["prompt"] for line in lines]
    assert len(prompts) - len(set(prompts)) == len(prompts) // label.AGAIN


@in_a_terminal
@pytest.mark.parametrize("columns", [20, 33, 80])
def test_no_line_is_wider_than_the_terminal(columns, material):
    """But for the last one, a command, which must stay one line."""
    with Terminal(*flags_of(material), columns=columns) as terminal:
        terminal.wait_for(f"\r{label.PROMPT}")
        screen = terminal.screen
        terminal.type("x3=1")
        terminal.wait_for("3=1")
        screen += terminal.screen
        terminal.type("42")
        terminal.wait_for(f"\r{label.PROMPT}")
        screen += terminal.screen
        terminal.type("q")
        terminal.end()
        screen += terminal.screen
    lines = re.split("[\r\n]+", re.sub(r"\x1b\[\d+m", "", screen))
    assert max(len(line) for line in lines if not line.startswith("python ppo.py")) < columns


@in_a_terminal
@pytest.mark.parametrize("environment, bold", [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_bold_only_where_it_is_wanted(environment, bold, material):
    with Terminal(*flags_of(material), **environment) as terminal:
        terminal.wait_for(f"\r{label.PROMPT}")
        assert ("\x1b[1m" in terminal.screen) == bold == ("\x1b" in terminal.screen)


@in_a_terminal
def test_what_a_response_holds_cannot_act_on_the_terminal(tmp_path):
    """Escape sequences, line breaks, a bell, text from right to left, half a character: all are shown as what they are."""
    evil = "a\x1b[2J\x1b]0;x\x07\r\n (9) b\u202ec\x9b1m\ud800\t\u2028d\x00"
    responses = [{"text": evil, "ended": True}, {"text": " ", "ended": False}]
    files.write_jsonl(tmp_path / "material.jsonl", [{"prompt": f"Say {evil}", "responses": responses}])
    with Terminal(*flags_of(tmp_path / "material.jsonl"), NO_COLOR="1") as terminal:
        terminal.wait_for(f"\r{label.PROMPT}")
        shown = terminal.screen.replace("\r", "").replace("\n", "")
        assert shown.isprintable() and "a\\x1b[2J\\x1b]0;x\\x07\\r\\n (9) b\\u202ec\\x9b1m\\ud800\\t\\u2028d\\x00" in shown
        assert "(empty) ... never ends" in shown
        terminal.type("1\n")
        terminal.wait_for("out_mine\n")
    ranked = read(tmp_path / "mine.jsonl")
    assert {response["text"] for response in ranked[0]["responses"]} == {evil, " "} and "task" not in ranked[0]


# ---------------------------------------------------------------- without a terminal


def test_piped_lines_rank_too_and_the_session_ends_with_the_input(material):
    code, said, errors, lines = piped(material, "3 1 2 4\n?\n1 2 2 3\nnonsense\n\nsu\n3 1=2\nS\n1\n")
    assert code == 0 and errors == "" and "\x1b" not in said
    assert [line["ranks"] for line in lines] == [[2, 3, 1, 4], [2, 2, 1, 3], [1, 2, 2, 2]]
    assert said.count("This does not rank 4 responses") == 3 and said.count("Backspace") == 2
    assert ": 3, of which 3 by ann." in " ".join(said.split()) and "simulated labelers" in said
    assert said.endswith(f"python ppo.py --quick --rankings {material.parent}/mine.jsonl --out out_mine\n")


@pytest.mark.parametrize("typed, ranked", [("", 0), ("q\n", 0), ("3124\n31", 1), ("3124\n3124", 2), ("3124\n312=", 1), ("3124\nq\n3124\n", 1)])
def test_a_last_line_that_was_cut_off_ranks_nothing_unless_it_ranks_all(typed, ranked, material):
    code, said, errors, lines = piped(material, typed)
    assert code == 0 and errors == "" and len(lines) == ranked
    assert ("ppo.py" in said) == (ranked > 0)


def test_what_was_ranked_is_not_shown_again_and_what_was_skipped_is(material, rows):
    _, first, _, _ = piped(material, "s\n1\n1\n")
    _, second, _, lines = piped(material, "1\n" * 100)
    shown = [re.findall(r"^\d+\. (.*)", said, re.M) for said in (first, second)]
    assert shown[0][0] == shown[1][0] and not set(shown[0][1:3]) & set(shown[1][:7])
    assert "Nothing is left to rank." in second
    times = {row["prompt"]: [line["prompt"] for line in lines].count(row["prompt"]) for row in rows}
    assert set(times.values()) <= {1, 2} and len(lines) == 60 + list(times.values()).count(2)
    assert "agree with yourself on" in second


def test_two_people_share_a_file_and_begin_with_different_prompts(material):
    piped(material, "1\n" * 3)
    code, said, _, lines = piped(material, "2\n" * 3, "--name", "ben")
    assert code == 0 and [line["labeler"] for line in lines] == ["ann"] * 3 + ["ben"] * 3
    assert ": 6, of which 3 by ben." in " ".join(said.split())
    assert [line["prompt"] for line in lines[:3]] != [line["prompt"] for line in lines[3:]]


def test_undo_takes_back_ones_own_line_and_leaves_the_others(material):
    piped(material, "1\n")
    before = (material.parent / "mine.jsonl").read_bytes()
    code, said, _, lines = piped(material, "u\n2\n3\nu\nu\nu\nq\n", "--name", "ben")
    assert code == 0 and said.count("Nothing to undo") == 2 and (material.parent / "mine.jsonl").read_bytes() == before


def test_a_rankings_file_is_material_too(material):
    piped(material, "3124\n" * 4)
    mine = material.parent / "mine.jsonl"
    mine.rename(material.parent / "ann.jsonl")
    code, _, _, lines = piped(material.parent / "ann.jsonl", "1\n" * 9, "--name", "ben")
    assert code == 0 and len(lines) == 4 and {line["labeler"] for line in lines} == {"ben"}


def test_without_a_task_nobody_else_is_asked(tmp_path, rows):
    bare = [{key: row[key] for key in ("prompt", "responses")} for row in rows]
    files.write_jsonl(tmp_path / "material.jsonl", bare)
    code, said, _, lines = piped(tmp_path / "material.jsonl", "1\n" * 10)
    assert code == 0 and "simulated" not in said and "yourself" in said and "task" not in lines[0]


def test_the_simulated_labelers_see_the_ranks_of_the_line(material, rows):
    """Who types the first labeler's own ranks agrees with this labeler on all pairs that it does not tie."""
    person = get_labelers("train")[0]
    ranked = [{**row, "ranks": person.rank(row["task"], row["responses"])} for row in rows]
    agree, _ = label.agreement_with_others(ranked, [person])
    assert set(agree) == {0.5, 1.0}
    turned = [{**line, "ranks": [5 - rank for rank in line["ranks"]]} for line in ranked]
    assert set(label.agreement_with_others(turned, [person])[0]) == {0.0, 0.5}


def test_torch_is_not_needed(material, tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('torch was imported')", encoding="utf-8", newline="\n")
    code, said, errors, lines = piped(material, "1\n", PYTHONPATH=str(tmp_path))
    assert (code, errors, len(lines)) == (0, "", 1)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("left", [1, 5, 40, -2, -1, None])
def test_half_a_last_line_is_cut_off_and_a_whole_one_without_a_line_break_kept(left, material):
    """What a killed process could leave: the first bytes of a line. Once with nothing before it."""
    piped(material, "3124\n3124\n")
    mine = material.parent / "mine.jsonl"
    first, second, _ = mine.read_bytes().split(b"\n")
    mine.write_bytes(first + b"\n" + second[:left])
    code, said, errors, lines = piped(material, "1\n")
    assert ("half written" in " ".join(said.split())) == (left is not None)
    assert code == 0 and errors == "" and len(lines) == (3 if left is None else 2) and lines[-1]["ranks"] == [1, 2, 2, 2]
    mine.write_bytes(second[:left])
    code, _, errors, lines = piped(material, "1\n")
    assert code == 0 and errors == "" and len(lines) == (2 if left is None else 1)


def test_no_other_file_is_cut(material):
    """A text that somebody names by mistake stays as it is."""
    mine = material.parent / "mine.jsonl"
    for text in ("my notes", "my notes\n", '{"a": 1', '{"prompt": "x"}\n', '{"prompt": "x", "resp\n{"prompt"'):
        mine.write_text(text, encoding="utf-8", newline="\n")
        done = subprocess.run([sys.executable, "-m", "data.label", *flags_of(material)], cwd=ROOT, input="1\n", encoding="utf-8", capture_output=True)
        assert done.returncode == 2 and f"{mine}, line 1" in done.stderr
        assert mine.read_text(encoding="utf-8") == text.removesuffix('{"prompt"')


def test_a_full_disk_loses_nothing_and_the_next_start_continues(material):
    """A file size limit stands for the full disk."""
    resource = pytest.importorskip("resource", reason="Windows has no such limit")
    piped(material, "1\n")
    mine = material.parent / "mine.jsonl"
    before, old = mine.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 50, old[1]))
    try:
        row = read(material)[0]
        with pytest.raises(UserError, match="mine.jsonl cannot be written.*untouched"):
            label.append(mine, row, row["responses"], [1, 2, 3, 4], "ann")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert mine.read_bytes().startswith(before)
    code, _, _, lines = piped(material, "1\n")
    assert code == 0 and len(lines) == 2


def test_two_at_the_same_file_are_refused(material):
    with files.alone_in(material.parent, ".mine.jsonl.lock"):
        code, _, errors, lines = piped(material, "1\n")
    assert code == 2 and f"another run (process {os.getpid()})" in errors and "--rankings" in errors and lines == []


@pytest.mark.parametrize("line, words", [
    (b"{", "line 3"), (b"[]", '"prompt"'), (b'{"prompt": 1}', '"prompt"'), (b'{"prompt": "a"}', '"responses"'), (b"\xff", "line 3"),
    (b'{"prompt": "a", "responses": ["a", "b"]}', '{"text"'), (b'{"prompt": "a", "responses": [{"text": "a"}, {"text": "b"}]}', '"ended"'),
    (b'{"prompt": "a", "responses": []}', "0 responses"), (b'{"prompt": "a", "responses": [{"text": "a", "ended": true}]}', "1 responses"),
    (b'{"prompt": "a", "task": {}, "responses": [{"text": "a", "ended": true}, {"text": "b", "ended": true}]}', '"task"')])
def test_damaged_material_is_refused_by_file_and_line(line, words, material):
    good = material.read_bytes().splitlines()[:2]
    material.write_bytes(b"\n".join([*good, line, b""]))
    code, _, errors, lines = piped(material, "1\n")
    assert code == 2 and errors.count("\n") <= 2 and f"error: {material}, line 3" in errors and words in errors and lines == []


def test_ten_responses_have_no_keys(material, rows):
    files.write_jsonl(material, [{**rows[0], "responses": [{"text": str(k), "ended": True} for k in range(10)]}])
    assert "line 1: 10 responses, must be 2 to 9" in piped(material, "")[2]


def test_a_contradiction_in_the_rankings_is_refused_by_file_and_line(material, rows):
    mine = material.parent / "mine.jsonl"
    for ranks in ([1, 2, 3], [0, 1, 2, 3], [1, 3, 3, 3], [1, "2", 3, 4]):
        files.write_jsonl(mine, [{**rows[0], "ranks": [1, 2, 2, 3], "labeler": "ann"}, {**rows[0], "ranks": ranks, "labeler": "ann"}])
        code, _, errors, lines = piped(material, "1\n")
        assert code == 2 and f"{mine}, line 2" in errors and len(lines) == 2


@pytest.mark.parametrize("flags, words", [
    (["--material", "no.jsonl"], "no.jsonl is missing: run `python reward.py"), (["--rankings", "README.md/mine.jsonl"], "--rankings README.md"),
    (["--rankings", "data"], "data cannot be written"), (["--material", "data"], "data cannot be written or read"), (["--naem", "x"], "--naem")])
def test_what_cannot_be_read_or_written_is_one_line(flags, words, material):
    code, said, errors, _ = piped(material, "1\n", *flags)
    assert code == 2 and words in errors.strip().splitlines()[-1] and "Traceback" not in errors


def test_a_reader_that_has_seen_enough_gets_no_traceback(material):
    """As in `... | head -1`."""
    process = subprocess.Popen([sys.executable, "-m", "data.label", *flags_of(material)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    _, errors = process.communicate(b"1\n" * 500)
    assert process.returncode == 141 and errors == b""


def test_closed_standard_input_and_output(material):
    """`<&-` and `>&-`."""
    if sys.platform == "win32":
        pytest.skip("no such shell")
    command = f"{sys.executable} -m data.label {' '.join(flags_of(material))}"
    for closed in ("<&-", ">&-", "<&- >&-"):
        done = subprocess.run(f"{command} {closed}", shell=True, cwd=ROOT, capture_output=True, stdin=subprocess.DEVNULL)
        assert done.returncode == 0 and b"Traceback" not in done.stderr


# ---------------------------------------------------------------- the shipped material


def test_the_shipped_material_is_small_and_of_training_prompts_only():
    """Four different responses to each of 400 of the last 480 prompts that rewards are learned from; the world's hash leaves them out."""
    rows = label.read_material(label.MATERIAL).values()
    training = {row["prompt"]: row["task"] for row in files.read_prompts("rm")[-480:]}
    assert label.MATERIAL.stat().st_size < 260_000 and len(rows) == 400 and "unranked" not in files.SETS
    for row in rows:
        texts = {response["text"] for response in row["responses"]}
        assert len(texts) == 4 and training[row["prompt"]] == row["task"] and tasks.prompt(row["task"]) == row["prompt"]
    for name in ("valid", "eval", "closed"):
        assert not {tasks.bare(row["prompt"]) for row in rows} & {tasks.bare(row["prompt"]) for row in files.read_prompts(name)}
    assert len({response["sampler"] for row in rows for response in row["responses"]}) >= 5


def test_the_name_is_the_login_name_or_me(monkeypatch):
    monkeypatch.setattr(label.getpass, "getuser", lambda: "ann")
    assert label.user_name() == "ann"

    def unknown():
        raise KeyError("uid 1234")
    monkeypatch.setattr(label.getpass, "getuser", unknown)
    assert label.user_name() == "me" and Path(label.RANKINGS).name == "my_rankings.jsonl"
