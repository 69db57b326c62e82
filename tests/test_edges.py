"""Faults at the edges: other line ends, other terminals, files that are missing, cut off or left from before, commands given twice."""
import shutil

import pytest

import model
from data import prepare, tokenizer
from model import UserError

ROOT = prepare.FOLDER.parent


# ---------------------------------------------------------------- the world's files


@pytest.fixture
def world_with_crlf(tmp_path, monkeypatch):
    """A copy of the world as `git clone -c core.autocrlf=true` used to leave it."""
    for path in [*(prepare.FOLDER / f"{name}.jsonl" for name in prepare.SIZES), tokenizer.PATH]:
        (tmp_path / path.name).write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    monkeypatch.setattr(prepare, "FOLDER", tmp_path)
    monkeypatch.setattr(tokenizer, "PATH", tmp_path / tokenizer.PATH.name)
    return tmp_path


def test_other_line_ends_are_the_same_world(request):
    here, rows, ids = model.world_hash(), prepare.read_jsonl(prepare.FOLDER / "prompts_valid.jsonl"), tokenizer.load().encode("a fox")
    folder = request.getfixturevalue("world_with_crlf")
    assert b"\r\n" in (folder / "prompts_valid.jsonl").read_bytes() and model.world_hash() == here
    assert prepare.read_jsonl(folder / "prompts_valid.jsonl") == rows
    assert tokenizer.load(folder / tokenizer.PATH.name).encode("a fox") == ids


def test_a_stray_file_makes_no_other_world_and_a_missing_one_is_named(tmp_path, monkeypatch):
    for name in prepare.SIZES:
        shutil.copy(prepare.FOLDER / f"{name}.jsonl", tmp_path)
    here = model.world_hash()
    monkeypatch.setattr(prepare, "FOLDER", tmp_path)
    (tmp_path / "._prompts_rl.jsonl").write_bytes(b"\x00\x05")          # macOS leaves these on a memory stick
    assert model.world_hash() == here
    (tmp_path / "prompts_rl.jsonl").unlink()
    with pytest.raises(UserError, match="prompts_rl.jsonl is missing: run `python -m data.prepare`"):
        model.world_hash()


def test_git_leaves_the_line_ends_alone():
    rules = (ROOT / ".gitattributes").read_text(encoding="utf-8").splitlines()
    assert rules == ["* text=auto eol=lf", "*.png binary", "*.pt binary"]
