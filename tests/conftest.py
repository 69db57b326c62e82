"""Puts the scripts on the path, and one thread under the tiny models of these tests, which are faster that way."""
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
torch.set_num_threads(1)

from data import files, prepare, tokenizer# noqa: E402  (the path comes first)
from model import GPT, GPTConfig


@pytest.fixture(scope="session")
def encoding():
    return tokenizer.load()


@pytest.fixture
def tiny():
    """A random GPT with 64 tokens: <|endoftext|> is 62, <|pad|> is 63."""
    torch.manual_seed(0)
    return GPT(GPTConfig(vocab_size=64, block_size=48, n_layer=2, n_head=2, n_embd=16)).eval()


def write_world(folder, text, sets):
    """A little world for files.FOLDER: this corpus, these tasks ({set name: list}); the other sets are the committed files."""
    for name in prepare.SIZES:
        if name in sets:
            files.write(folder / f"{name}.jsonl", "".join(prepare.record(task) for task in sets[name]))
        else:
            (folder / f"{name}.jsonl").symlink_to(files.FOLDER / f"{name}.jsonl")
    prepare.write_corpus(folder, text, known=False)


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also 50 kills at random moments, a quarter of an hour")
