"""Faults at the edges: other line ends, other terminals, files that are missing, cut off or left from
before, commands given twice."""
import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch

import model
import ppo
import reward
import sft
from data import files, flags, prepare, tokenizer
from data.files import UserError, save_checkpoint
from model import GPT, GPTConfig

ROOT = files.FOLDER.parent


# ---------------------------------------------------------------- the world's files


@pytest.fixture
def world_with_crlf(tmp_path, monkeypatch):
    """A copy of the world as `git clone -c core.autocrlf=true` used to leave it."""
    for path in [*(files.FOLDER / f"{name}.jsonl" for name in prepare.SIZES), tokenizer.PATH]:
        (tmp_path / path.name).write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    monkeypatch.setattr(files, "FOLDER", tmp_path)
    monkeypatch.setattr(tokenizer, "PATH", tmp_path / tokenizer.PATH.name)
    return tmp_path


def test_other_line_ends_are_the_same_world(request):
    here, ids = files.world_hash(), tokenizer.load().encode("a fox")
    rows = files.read_jsonl(files.FOLDER / "prompts_valid.jsonl")
    folder = request.getfixturevalue("world_with_crlf")
    assert b"\r\n" in (folder / "prompts_valid.jsonl").read_bytes() and files.world_hash() == here
    assert files.read_jsonl(folder / "prompts_valid.jsonl") == rows
    assert tokenizer.load(folder / tokenizer.PATH.name).encode("a fox") == ids


def test_a_stray_file_makes_no_other_world_and_a_missing_one_is_named(tmp_path, monkeypatch):
    for name in prepare.SIZES:
        shutil.copy(files.FOLDER / f"{name}.jsonl", tmp_path)
    here = files.world_hash()
    monkeypatch.setattr(files, "FOLDER", tmp_path)
    # macOS leaves these on a memory stick
    (tmp_path / "._prompts_rl.jsonl").write_bytes(b"\x00\x05")
    assert files.world_hash() == here
    (tmp_path / "prompts_rl.jsonl").unlink()
    with pytest.raises(UserError,
                       match="prompts_rl.jsonl is missing: run `python -m data.prepare`"):
        files.world_hash()


def test_git_leaves_the_line_ends_alone():
    rules = (ROOT / ".gitattributes").read_text(encoding="utf-8").splitlines()
    assert rules == ["* text=auto eol=lf", "*.png binary", "*.pt binary"]


@pytest.fixture(scope="module")
def made_world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    prepare.prepare(folder, {name: 20 for name in prepare.SIZES}, corpus_words=3_000)
    return folder


@pytest.fixture
def little_world(made_world, tmp_path, monkeypatch):
    """A little world of one's own, to be damaged."""
    folder = shutil.copytree(made_world, tmp_path / "world")
    monkeypatch.setattr(files, "FOLDER", folder)
    return folder


def test_a_corpus_that_is_not_this_worlds_is_refused(little_world, encoding):
    """Empty, cut off, or with one word changed: one line, and nothing is trained; other line ends
    are no change."""
    corpus = little_world / "corpus.txt"
    whole = corpus.read_bytes()
    assert len(model.read_corpus(encoding, 64)[0]) > 50
    corpus.write_bytes(whole.replace(b"\n", b"\r\n"))
    assert len(model.read_corpus(encoding, 64)[0]) > 50
    for damaged in (b"", whole[:1_000], whole.split(b"\n\n")[0], whole.replace(b"the", b"teh", 1),
                    b"\xff" + whole):
        corpus.write_bytes(damaged)
        said = "corpus.txt is not the corpus of this world .*python -m data.prepare --corpus"
        with pytest.raises(UserError, match=said):
            model.read_corpus(encoding, 64)


def test_a_corpus_of_one_document_ends_in_one_line(little_world, encoding):
    """One document has nothing to train on when the last 2 % validate: training used to wait for
    ever."""
    prepare.write_corpus(little_world, "The fox eats berries.\n", known=False)
    with pytest.raises(UserError, match="corpus.txt: 1 document, too few"):
        model.read_corpus(encoding, 64)


def test_the_committed_hash_decides_what_the_corpus_is(little_world, made_world):
    """prepare writes it with a world; to make the corpus alone is to be held against it, not to
    replace it."""
    before = (little_world / "corpus.sha256").read_bytes()
    (little_world / "corpus.txt").unlink()
    with pytest.raises(UserError,
                       match="corpus.sha256: the world was changed; run `python -m data.prepare`"):
        prepare.prepare(little_world, {name: 20 for name in prepare.SIZES}, corpus_words=2_000,
                        corpus_only=True)
    assert (little_world / "corpus.sha256").read_bytes() == before
    assert not (little_world / "corpus.txt").exists()
    prepare.prepare(little_world, {name: 20 for name in prepare.SIZES}, corpus_words=3_000,
                    corpus_only=True)
    assert (little_world / "corpus.txt").read_bytes() == (made_world / "corpus.txt").read_bytes()
    (little_world / "corpus.sha256").unlink()
    with pytest.raises(UserError, match="corpus.sha256 is missing: run `python -m data.prepare`"):
        prepare.corpus_texts()


def test_the_corpus_of_the_world_is_that_of_its_hash():
    """Makes it if it is missing, as every script does."""
    assert len(prepare.corpus_texts()) > 90_000
    found = hashlib.sha256((files.FOLDER / "corpus.txt").read_bytes()).hexdigest()
    assert found == prepare.known_hash(files.FOLDER)


# -------------------------------------------------------- what a run needs is known before it works


def small_base_model(out, block_size):
    """A base model, untrained, with so small a context."""
    save_checkpoint(out / "gpt.pt", GPT(GPTConfig(block_size=block_size, n_layer=1)),
                    **files.stage_extra(model.Config(out=str(out)), "pretrain"))


@pytest.mark.parametrize("script, needed", [("model", "a sample takes 3"),
                                            ("sft", "the longest demonstration takes 5"),
                                            ("reward", "ranking, .* takes 7"),
                                            ("ppo", "evaluation, .* takes 11")])
def test_a_context_that_is_too_small_is_refused_before_anything_is_trained(script, needed,
        tmp_path):
    """Each script by itself, and the main command for all: with 100 tokens everything was trained
    before the evaluation stopped."""
    if script in ("sft", "reward"):
        small_base_model(tmp_path, 20)
    before, config = sorted(tmp_path.iterdir()), dict(out=str(tmp_path))
    runs = {"model": lambda: model.train(model.Config(block_size=20, **config)),
            "sft": lambda: sft.train(sft.Config(**config)),
            "reward": lambda: reward.train(reward.Config(**config)),
            "ppo": lambda: ppo.run(ppo.Config(**config),
                                   pretrain=model.Config(block_size=100, **config))}
    with pytest.raises(UserError, match=f"--block_size .*{needed}.*python model.py --block_size"):
        runs[script]()
    assert sorted(tmp_path.iterdir()) == before


def test_the_number_that_is_named_is_enough_and_one_less_is_not(encoding):
    """Computed from the files, not written down."""
    pairs = sft.read_demonstrations(encoding)
    longest = max(len(prompt + response) for prompt, response in pairs)
    files.check_sft(sft.Config(), pairs, longest - 1)
    with pytest.raises(UserError, match=f"takes {longest - 1} tokens"):
        files.check_sft(sft.Config(), pairs, longest - 2)


@pytest.mark.parametrize("changes, named", [(dict(config=dict(rollout_size=9_000)),
                                             "--rollout_size 9000"),
                                             (dict(sft=dict(batch_size=3_000)), "--batch_size"),
                                            (dict(sft=dict(mix=1.0)), "--mix"),
                                            (dict(reward_1=dict(k=10)), "--k 10"),
                                            (dict(reward_2=dict(prompts_2=19_000, round=2)),
                                             "--prompts_2"),
                                             (dict(config=dict(split="test")), "--split")])
def test_the_whole_plan_is_checked_before_its_first_stage(changes, named, tmp_path):
    stages = {"config": ppo.Config, "sft": sft.Config, "reward_1": reward.Config,
              "reward_2": reward.Config}
    given = {name: stages[name](**{"out": str(tmp_path), **changes.get(name, {})})
             for name in {"config", *changes}}
    with pytest.raises(UserError, match=named):
        ppo.run(**given)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- any terminal, any stream

TERMINALS = [{"PYTHONIOENCODING": "cp1252"}, {"PYTHONIOENCODING": "gbk"},
             {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]


def command(*words, **more):
    """Runs a command of the project: what came of it."""
    return subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True,
                          encoding="utf-8", errors="replace", **more)


@pytest.fixture(scope="module")
def parrot(tmp_path_factory):
    """A checkpoint to talk to: untrained, it says all kinds of bytes."""
    path = tmp_path_factory.mktemp("parrot") / "gpt.pt"
    save_checkpoint(path, GPT(GPTConfig(n_layer=1)))
    return path


@pytest.mark.parametrize("terminal", TERMINALS, ids=["cp1252", "gbk", "ascii"])
def test_what_a_terminal_cannot_show_is_replaced_and_never_an_error(terminal, parrot):
    env = os.environ | terminal
    shown = command("ppo.py", "--help", env=env)
    assert shown.returncode == 0 and "--gamma_ptx" in shown.stdout and shown.stderr == ""
    said = command("model.py", "--chat", parrot, env=env,
                   input="What does the f\u00f6x eat?\n\u732b\n")
    assert said.returncode == 0 and said.stderr == "" and said.stdout.strip()
    error = command("model.py", "--chat", "no_\u732b.pt",
                    env=os.environ | {"PYTHONIOENCODING": terminal.get("PYTHONIOENCODING",
                            "ascii")})
    assert error.returncode == 2 and error.stderr.startswith("\nerror: no_")


def test_every_file_is_opened_with_its_encoding_named():
    """Whatever the system's own may be; and written with LF alone. In the lessons, too."""
    sources = {path: path.read_text(encoding="utf-8")
               for folder in (".", "data", "tests", "notebooks")
               for path in (ROOT / folder).glob("*.py")}
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
                 if cell["cell_type"] == "code"]
        sources[path] = "\n".join("".join(cell["source"]) for cell in cells)
    found = 0
    for path, source in sources.items():
        for call in [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]:
            name = ast.unparse(call.func).rsplit(".", 1)[-1]
            given = {word.arg for word in call.keywords}
            mode = ast.unparse(call.args[1]) if len(call.args) > 1 else "'r'"
            opens = name == "open" and ast.unparse(call.func) != "os.open" and "b" not in mode
            if opens or name in ("read_text", "write_text") or given & {"text", "universal_newlines"}:
                found += 1
                where = f"{path}, {ast.unparse(call)}"
                assert "encoding" in given, where
                writes = name == "write_text" or opens and mode in ("'w'", "'x'", "'a'")
                assert not writes or "newline" in given, where
    assert found > 40


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell that closes streams")
def test_a_closed_stream_is_an_empty_one(parrot):
    for closed in ("<&-", ">&-", "2>&-"):
        done = subprocess.run(["sh", "-c",
                               f'echo Hi | "{sys.executable}" model.py --chat "{parrot}" {closed}'],
                               cwd=ROOT, capture_output=True)
        assert done.returncode == 0 and done.stderr == b"", closed


@pytest.mark.skipif(sys.platform == "win32",
                    reason="needs a shell that says how each command of a pipe ended")
def test_a_pipe_that_nobody_reads_ends_a_command_without_a_word(parrot, tmp_path):
    """`| head -1`: no traceback, no advice about the disk."""
    for words in (f'model.py --chat "{parrot}"', "ppo.py --help", "-m data.prepare --help"):
        script = (f'(yes Hi | head -1000; echo) | ("{sys.executable}" {words}; echo $? >"{tmp_path}/code") '
                  f'| head -c 1 >"{tmp_path}/said"')
        done = subprocess.run(["sh", "-c", script], cwd=ROOT, capture_output=True, encoding="utf-8",
                              errors="replace")
        code = (tmp_path / "code").read_text(encoding="utf-8").strip()
        assert done.stderr == "" and code in ("141", "0"), words
        assert (tmp_path / "said").stat().st_size == 1


# ---------------------------------------------------------------- nothing is replaced unasked


def finish(out, stage, name, settings, parents=()):
    """A checkpoint as a finished stage leaves it; untrained."""
    save_checkpoint(out / f"{name}.pt", GPT(GPTConfig(n_layer=1)),
                    **files.stage_extra(settings, stage, parents))


@pytest.fixture
def stages_done(tmp_path):
    """A folder in which model.py, sft.py and both rounds of reward.py seem finished, with the
    default settings."""
    torch.manual_seed(0)
    common = dict(out=str(tmp_path))
    finish(tmp_path, "pretrain", "gpt", model.Config(**common))
    finish(tmp_path, "sft", "sft_mix", sft.Config(**common), ["gpt"])
    finish(tmp_path, "reward", "reward_1", reward.Config(**common), ["sft_mix"])
    finish(tmp_path, "sft", "sft", reward.Config(**common), ["gpt", "reward_1"])
    finish(tmp_path, "reward", "reward", reward.Config(**common, round=2), ["reward_1"])
    return tmp_path


def refused(module, out, *words):
    """The line with which a script's main guard refuses a command line."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError) as error:
        config = flags.parse_flags(module.Config, "", [*words, "--out", str(out)])
        patch.setattr(module, "train", lambda config: pytest.fail("trained"))
        module.main(config)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("module, words, name",
                         [(model, [], "gpt"), (sft, [], "sft_mix"), (reward, [], "reward_1"),
                          (reward, ["--round", "2"], "reward"),
                          (reward, ["--prompts_2", "9"], "reward_1")])
def test_a_finished_stage_is_not_trained_over(module, words, name, stages_done):
    before = {path: path.read_bytes() for path in stages_done.iterdir()}
    said = f"{stages_done}/{name}.pt exists already, trained with these settings: delete it"
    assert refused(module, stages_done, *words).startswith(said)
    assert {path: path.read_bytes() for path in stages_done.iterdir()} == before


@pytest.mark.parametrize("module, words, said",
                         [(model, ["--steps", "5"], "gpt.pt was made with --steps 4400, not 5"),
                          (sft, ["--epochs", "3"], "sft_mix.pt was made with --epochs 16, not 3"),
                          (reward, ["--k", "4"], "reward_1.pt was made with --k 6, not 4"),
                          (reward, ["--round", "2", "--epochs", "1"],
                           "reward.pt was made with --epochs 3, not 1"),
                          (sft, ["--seed", "2"],
                           "made with seed 1, not 2: choose another folder, --out .*_2")])
def test_other_settings_are_named_before_anything_is_replaced(module, words, said, stages_done):
    assert re.search(said, refused(module, stages_done, *words))


def test_what_a_deleted_base_model_takes_with_it_is_named(stages_done):
    """Another gpt.pt: all that was made from the first has to go, and the line lists it."""
    finish(stages_done, "pretrain", "gpt", model.Config(out=str(stages_done), steps=5))
    said = refused(sft, stages_done)
    assert "sft_mix.pt was made from another gpt.pt" in said
    made_from_it = {f"{stages_done}/{name}.pt" for name in ("sft_mix", "sft", "reward_1", "reward")}
    assert set(said.split("delete ")[1].split(", ")) == made_from_it


def test_a_stage_that_is_half_finished_goes_on(stages_done, monkeypatch):
    """Killed between reward_1.pt and sft.pt: the same command makes both."""
    (stages_done / "sft.pt").unlink()
    trained = []
    monkeypatch.setattr(reward, "train", trained.append)
    reward.main(reward.Config(out=str(stages_done)))
    assert len(trained) == 1
    assert "sft.pt is missing, and" in refused(reward, stages_done, "--k", "4")


@pytest.mark.parametrize("module, flag", [(model, "chat"), (model, "out"), (sft, "device"),
                                          (ppo, "split")])
def test_an_empty_value_is_refused(module, flag, capsys):
    """`--chat ""` used to train."""
    for words in ([f"--{flag}", ""], [f"--{flag}="]):
        with pytest.raises(SystemExit) as stopped:
            flags.parse_flags(module.Config, "", words)
        assert stopped.value.code == 2 and f"--{flag}: needs a value" in capsys.readouterr().err


def test_help_shows_that_a_flag_without_a_default_takes_a_value(capsys):
    with pytest.raises(SystemExit):
        flags.parse_flags(model.Config, "", ["--help"])
    assert "--chat TEXT" in capsys.readouterr().out


@dataclass
class Settings(flags.BaseConfig):
    """Fields with comments of one line and of more."""
    first: int = 1              # one line (10 %)
    second: int = 2             # begins here
                                # and ends
                                # here
    # a heading, of no field
    third: int = 3              # again one line
    fourth: int = 4


def test_a_comment_on_several_lines_is_joined_in_help(capsys):
    comments = flags.field_comments(Settings)
    assert comments["first"] == "one line (10 %)" and comments["third"] == "again one line"
    assert comments["second"] == "begins here and ends here"
    assert "seed" in comments and "fourth" not in comments
    with pytest.raises(SystemExit):
        flags.parse_flags(Settings, "", ["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "--second 2 begins here and ends here --third 3" in shown and "(10 %)" in shown


def test_a_number_too_large_for_torch_is_refused(capsys):
    with pytest.raises(SystemExit):
        flags.parse_flags(model.Config, "", ["--seed", "99999999999999999999"])
    assert "--seed 99999999999999999999: too large" in capsys.readouterr().err


def test_one_run_at_a_time_works_in_a_folder(tmp_path):
    """The second is told so; a killed one's lock is taken over; a lock that says nothing, too."""
    code = ("import sys, time; from data import files\n"
            "with files.alone_in(sys.argv[1]): print('in', flush=True); time.sleep(60)")
    first = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT,
                             stdout=subprocess.PIPE)
    try:
        assert first.stdout.readline().strip() == b"in"
        assert files.runs(first.pid) and files.runs(os.getpid())
        said = f"process {first.pid}.*works in {re.escape(str(tmp_path))}.*--out"
        with pytest.raises(UserError, match=said), files.alone_in(tmp_path):
            pytest.fail("two at once")
    finally:
        first.kill()
        first.communicate()
    assert (tmp_path / ".lock").read_text(encoding="utf-8") == str(first.pid)
    assert not files.runs(first.pid)
    with files.alone_in(tmp_path), files.alone_in(tmp_path):
        assert (tmp_path / ".lock").read_text(encoding="utf-8") == str(os.getpid())
    for left in ("", "\x00", "9" * 40):
        (tmp_path / ".lock").write_text(left, encoding="utf-8", newline="\n")
        with files.alone_in(tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("script", ["model.py", "sft.py", "reward.py", "ppo.py"])
def test_every_script_minds_the_lock(script, tmp_path):
    (tmp_path / ".lock").write_text(str(os.getpid()), encoding="utf-8", newline="\n")
    done = command(script, "--out", tmp_path)
    assert done.returncode == 2
    assert f"error: another run (process {os.getpid()}) works in {tmp_path}" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


# --------------------------------------------------------------- messages name the file or the flag


def test_a_checkpoint_of_another_vocabulary_is_no_partner_to_talk_to(tmp_path):
    save_checkpoint(tmp_path / "small.pt", GPT(GPTConfig(64, 16, 1, 1, 8)))
    with pytest.raises(UserError, match="small.pt: has a vocabulary of 64 tokens, .*tiktoken has 1024"):
        model.chat(tmp_path / "small.pt", "cpu")


def test_an_epoch_that_is_missing_is_named(stages_done):
    """The paper's choice among 16 epochs is not made among 15."""
    said = "sft_epochs/01.pt is missing: delete .*sft_mix.pt, and `python sft.py` makes both again"
    with pytest.raises(UserError, match=said):
        files.sft_epochs(reward.Config(out=str(stages_done)))


def test_too_little_memory_is_one_line(capsys):
    def work():
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] can't allocate memory")
    with pytest.raises(SystemExit):
        flags.guarded(work)
    said = capsys.readouterr().err.strip()
    assert said == "error: not enough memory for a model or a batch of this size: choose smaller ones"


# ---------------------------------------------------------------- beside other programs


@pytest.mark.parametrize("given, spins", [
    ({}, "1000"), ({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "passive"}, None),
])
def test_a_waiting_thread_gives_way_soon_unless_the_user_says_otherwise(given, spins):
    """Every script's environment, at the moment when it imports torch."""
    at_torch = ("import os, sys\n"
                "class Finder:\n"
                "    def find_spec(self, name, *more):\n"
                "        if name == 'torch':\n"
                "            print(os.environ.get('GOMP_SPINCOUNT'), flush=True)\n"
                "            os._exit(0)\n"
                "sys.meta_path.insert(0, Finder())\n"
                "import {script}\n")
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    bare = {name: value for name, value in os.environ.items() if name not in names}
    for script in ("model", "sft", "reward", "ppo", "notebooks.lesson"):
        done = subprocess.run([sys.executable, "-c", at_torch.format(script=script)],
                              env=bare | given, cwd=ROOT, capture_output=True,
                              encoding="utf-8")
        assert done.stdout.strip() == str(spins), f"{script}: {done.stderr}"

