"""A thousand bad inputs, made by a seeded generator: each ends in one clear line that names the file, line or flag."""
import io
import json
import random
import subprocess
import sys

import pytest
import torch

import model
import ppo
import reward
import sft
from data import files, flags, tokenizer
from data.files import UserError, read_rankings, save_checkpoint
from model import GPT, GPTConfig, generate, load_model
from reward import RewardModel, load_reward_model

LINE = {"prompt": "Name two colours.", "use_case": "brainstorming", "task": {"kind": "name", "what": "colour", "n": 2, "phrasing": 0},
        "completion": "I think of red and blue.", "round": 1,
        "responses": [{"text": "a", "ended": True}, {"text": "b", "ended": False}, {"text": "", "ended": True}], "ranks": [1, 2, 2]}


def checkpoint_case(rng, path, good):
    """A truncated, bit-flipped or foreign checkpoint."""
    kind = rng.randrange(4)
    data = bytearray(good)
    if kind == 0:
        path.write_bytes(data[:rng.randrange(len(data))])
    elif kind == 1:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
    elif kind == 2:
        path.write_bytes(rng.randbytes(rng.randrange(2_000)))
    else:
        foreign = io.BytesIO()
        torch.save(rng.choice([[1, 2], {"state": {}}, {"model": torch.zeros(3)}, torch.zeros(2), "weights", {"sha256": "0", "state": 3, "kind": [], "config": 0, "extra": 1}]), foreign)
        path.write_bytes(foreign.getvalue())
    return rng.choice([load_model, load_reward_model])


def jsonl_case(rng, path):
    """A data file with one bad line; returns (reader, number of the line)."""
    lines, bad = [json.dumps(LINE).encode() for _ in range(5)], rng.randrange(5)
    reader, keys = rng.choice([(lambda p: sft.read_demonstrations(tokenizer.load_cached(), p), ["prompt", "completion"]),
                               (lambda p: files.read_jsonl(p, prompt=str, use_case=str, task=dict), ["prompt", "use_case", "task"]),
                               (read_rankings, ["prompt", "task", "responses", "ranks", "round"])])
    kind, key = rng.randrange(5), rng.choice(keys)
    if kind == 0:
        lines[bad] = lines[bad][:rng.randrange(len(lines[bad]))]
    elif kind == 1:
        at = rng.randrange(len(lines[bad]))
        lines[bad] = lines[bad][:at] + rng.choice([b"\xff", b"\xc3", b"\xed\xa0\x80", b"\x00"]) + lines[bad][at:]
    elif kind == 2:
        lines[bad] = json.dumps({k: v for k, v in LINE.items() if k != key}).encode()
    elif kind == 3:
        lines[bad] = json.dumps({**LINE, key: rng.choice([None, 1.5])}).encode()
    else:
        lines[bad] = rng.choice([b"[]", b"3", b"null", b'"x"', b"[" * 100_000])
    path.write_bytes(b"\n".join(lines) + b"\n")
    return reader, bad + 1


def ranks_case(rng, path):
    """Rankings in which ranks and responses contradict each other."""
    ranks = rng.choice([[1, 2], [1, 2, 3, 4], [0, 1, 2], [1, 3, 3], [2, 2, 2], [1, "2", 3], [1, 2.0, 2], [True, 2, 2], [-1, 1, 2], [1, None, 2], [[1], 2, 3], []])
    line = {**LINE, **rng.choice([{"ranks": ranks}, {"second_opinions": [[1, 2, 3], ranks]}, {"second_opinions": [3]}, {"second_opinions": 3}, {"second_opinions": None},
                                  {"task": {}}, {"responses": ["a", "b", "c"]}, {"responses": [{"text": 1, "ended": True}] * 3}, {"responses": [{"text": "a"}] * 3}])}
    at = rng.randrange(3)
    path.write_text("".join(json.dumps(line if i == at else LINE) + "\n" for i in range(3)), encoding="utf-8", newline="\n")
    return at + 1


def flag_case(rng):
    """(config class, flag, value): a value of the wrong type or out of range, or a flag that does not exist."""
    config = rng.choice([model.Config, sft.Config, reward.Config, ppo.Config])
    names = [n for n, v in vars(config()).items() if isinstance(v, (int, float))]
    name = rng.choice(names)
    return config, *rng.choice([(name, rng.choice(["x", "", "1e", "--", "nan", "-inf", "-1", "-0.5", "inf"])), (name + "s", "1"), (name, "-3"),
                                ("".join(rng.choices("abcdefgh", k=6)), "1")])


def test_a_thousand_bad_inputs(tmp_path, capsys):
    """250 each of checkpoints, data files, rankings and flags. Only a flipped bit that changes nothing may pass."""
    rng, path = random.Random(0), tmp_path / "file"
    torch.manual_seed(0)
    save_checkpoint(path, GPT(GPTConfig(64, 16, 1, 1, 8)))
    good, state, harmless = path.read_bytes(), {k: v.clone() for k, v in load_model(path).state_dict().items()}, 0
    for _ in range(250):
        load = checkpoint_case(rng, path, good)
        try:
            loaded = load(path).state_dict()
            assert all(torch.equal(loaded[k], v) for k, v in state.items()), "a silently wrong result"
            harmless += 1
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error)
    assert harmless < 60
    for _ in range(250):
        reader, number = jsonl_case(rng, path)
        with pytest.raises(UserError, match=f"line {number}: "):
            reader(path)
    for _ in range(250):
        number = ranks_case(rng, path)
        with pytest.raises(UserError, match=f"line {number}: "):
            read_rankings(path)
    for _ in range(250):
        config, name, value = flag_case(rng)
        with pytest.raises(SystemExit) as stopped:
            flags.parse_flags(config, "", [f"--{name}={value}"])
        assert stopped.value.code == 2 and f"--{name}" in capsys.readouterr().err.splitlines()[-1]


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    torch.manual_seed(0)
    for kind, load in ((GPT, load_model), (RewardModel, load_reward_model)):
        broken = kind(GPTConfig(64, 16, 1, 1, 8))
        next(broken.parameters()).data[0, 0] = float("nan")
        save_checkpoint(tmp_path / "nan.pt", broken)
        with pytest.raises(UserError, match="nan.pt.*NaN"):
            load(tmp_path / "nan.pt")


def test_empty_and_endless_responses_are_scored_and_special_tokens_are_plain_text(encoding, tiny):
    config = GPTConfig(encoding.n_vocab, 64, 1, 2, 16)
    pairs = [("Hi", {"text": "", "ended": False}), ("", {"text": "", "ended": True}), ("<|endoftext|><|pad|>", {"text": "<|pad|>", "ended": True})]
    assert len(reward.score(RewardModel(config), encoding, pairs)) == 3
    ids = tokenizer.prompt_ids(encoding, "<|endoftext|><|pad|>")
    assert ids.count(encoding.eot_token) == 1 and config.pad_id not in ids
    with pytest.raises(ValueError, match="do not fit into the context of 48"):
        generate(tiny, [[1] * 47], 2)


@pytest.mark.parametrize("flags", [["sft.py", "--batch_size", "100000"], ["ppo.py", "--split", "nothing"], ["model.py", "--n_embd", "63"],
                                   ["model.py", "--chat", "no.pt"], ["model.py", "--device", "abacus", "--chat", "no.pt"],
                                   ["ppo.py", "--device", "abacus"], ["sft.py", "--mix", "1"], ["reward.py", "--round", "3"],
                                   ["reward.py", "--k", "10"], ["reward.py", "--labelers_per_prompt", "99"], ["reward.py", "--prompts_1", "20001"]])
def test_a_script_that_cannot_run_says_why_in_its_last_line(flags, tmp_path):
    out = tmp_path / "out"
    if flags[0] == "sft.py":
        save_checkpoint(out / "gpt.pt", GPT(GPTConfig(n_layer=1)), **files.stage_extra(model.Config(out=str(out)), "pretrain"))
    done = subprocess.run([sys.executable, flags[0], *flags[1:], "--out", str(out)], cwd=files.FOLDER.parent, capture_output=True, encoding="utf-8", errors="replace")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert (flags[1] in done.stderr or flags[2] in done.stderr) and done.stderr.strip().splitlines()[-1].startswith(("error: ", "usage", flags[0]))


@pytest.mark.parametrize("trouble, words", [(UserError("file.jsonl, line 3: empty"), "file.jsonl, line 3"), (ValueError("--n_embd 63 is odd"), "--n_embd"),
                                            (KeyboardInterrupt(), "stopped"), (OSError(28, "No space left on device", "gpt.jsonl"), "gpt.jsonl")])
def test_trouble_ends_in_one_line_and_exit_code_2(trouble, words, capsys):
    def work():
        raise trouble
    with pytest.raises(SystemExit) as stopped:
        flags.guarded(work)
    lines = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == 2 and len(lines) == 1 and lines[0].startswith("error: ") and words in lines[0]


def test_a_full_disk_loses_nothing_that_was_saved(tmp_path):
    """A file size limit of 100 kB stands for the full disk."""
    resource = pytest.importorskip("resource", reason="Windows has no such limit")
    path, small = tmp_path / "model.pt", GPT(GPTConfig(64, 16, 1, 1, 8))
    save_checkpoint(path, small)
    before = path.read_bytes()
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, old[1]))
    try:
        with pytest.raises(UserError, match="model.pt cannot be written.*untouched"):
            save_checkpoint(path, GPT(GPTConfig()))
        with pytest.raises(UserError, match="text cannot be written.*untouched"):
            files.write(tmp_path / "text", "x" * 1_000_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert path.read_bytes() == before and sorted(p.name for p in tmp_path.iterdir()) == ["model.pt"]
