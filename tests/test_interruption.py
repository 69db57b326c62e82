"""Killed at any moment, the same command goes on and ends with the same bits: finished stages are kept, the one that was cut
off starts again, and every stage seeds itself. The uninterrupted run is that of another process, so this is the test of
determinism too."""
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

if sys.platform == "win32":
    pytest.skip("Windows has no SIGKILL", allow_module_level=True)
from signal import SIG_DFL, SIGINT, SIGKILL, signal  # noqa: E402

from data import files, prepare
from tests.test_pipeline import SIZES

RUN = """
import sys, torch
sys.path.insert(0, sys.argv[1])
torch.set_num_threads(1)
import ppo
from data import files, flags
from tests.test_pipeline import settings
from pathlib import Path
files.FOLDER, stages, sys.argv = Path(sys.argv[2]), settings(sys.argv[3]), sys.argv[:1]
flags.run_script(lambda _: ppo.run(**stages), ppo.Config, "")
"""
# Where to stop it and how: as soon as this file of the output folder has so many lines. SIGINT is Ctrl-C.
POINTS = [("gpt.jsonl", 8, SIGKILL), ("sft.jsonl", 3, SIGINT), ("sft_mix.jsonl", 1, SIGKILL), ("reward_1.jsonl", 20, SIGKILL), ("reward_2.jsonl", 40, SIGKILL),
          ("ppo_ptx.jsonl", 3, SIGKILL)]


def start(world, out):
    """The tiny pipeline in a process of its own, which heeds Ctrl-C even where the tests run in the background and ignore it."""
    with open(f"{out}.stderr", "w", encoding="utf-8", newline="\n") as errors:
        return subprocess.Popen([sys.executable, "-c", RUN, str(files.FOLDER.parent), str(world), str(out)], stdout=subprocess.DEVNULL, stderr=errors,
                                preexec_fn=lambda: signal(SIGINT, SIG_DFL))


def made_files(out):
    """Everything that a run leaves, times aside: {name: bytes}."""
    files = {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.suffix in (".pt", ".jsonl")}
    files |= {p.name: b"" for p in out.glob("*.png")}                   # every picture must stand; its bytes may differ
    results = {k: v for k, v in json.loads((out / "results.json").read_text(encoding="utf-8")).items() if k not in ("seconds", "peak_mb")}
    return files | {"results.json": json.dumps(results)}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    prepare.prepare(folder, SIZES, corpus_words=60_000)
    return folder


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    """What the uninterrupted run leaves."""
    out = tmp_path_factory.mktemp("whole")
    assert start(world, out).wait() == 0
    return made_files(out)


def same(one, other):
    assert one.keys() == other.keys() and [name for name in one if one[name] != other[name]] == []


def test_killed_five_times_and_continued_ends_with_the_same_bits(world, whole, tmp_path):
    """And once by Ctrl-C, which ends in one line and exit code 2."""
    for name, lines, how in POINTS:
        process, watched = start(world, tmp_path), tmp_path / name
        while not watched.exists() or watched.read_bytes().count(b"\n") < lines:
            assert process.poll() is None, f"the run ended before {name} had {lines} lines"
            time.sleep(0.02)
        process.send_signal(how)
        assert process.wait() == (2 if how == SIGINT else -SIGKILL)
        if how == SIGINT:
            said = Path(f"{tmp_path}.stderr").read_text(encoding="utf-8")
            assert "Traceback" not in said and said.splitlines()[-1].startswith("error: stopped")
    assert start(world, tmp_path).wait() == 0
    same(made_files(tmp_path), whole)


def test_fifty_kills_at_random_moments(world, whole, tmp_path, request):
    """`python -m pytest --slow`: about a quarter of an hour."""
    if not request.config.getoption("--slow"):
        pytest.skip("only with --slow")
    rng, kills, finished = random.Random(0), 0, 0
    while kills < 50:
        process = start(world, tmp_path / str(finished))
        try:
            process.wait(timeout=rng.uniform(1, 20))
            assert process.returncode == 0
            same(made_files(tmp_path / str(finished)), whole)
            finished += 1
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
    assert start(world, tmp_path / str(finished)).wait() == 0
    same(made_files(tmp_path / str(finished)), whole)
    print(f"{kills} kills, {finished + 1} runs finished, all with the same bits")
