"""The benchmark: both sides do the same work, and what it counts is right."""
import json
import re

import pytest
import torch

import ppo
from model import GPT, GPTConfig, corpus_loss
from tests import benchmark, workloads


def test_a_training_step_of_either_side_is_the_same_step():
    """The losses of three steps: a wrong loss, gradient or step of AdamW would show in the next."""
    pytest.importorskip("transformers")
    documents = [[1022, *range(5, 20), 1022], [1022, 7, 1022], list(range(100, 130))]
    ours, theirs = workloads.adamw_steps(32, [documents] * 3)
    mine = ours()
    assert mine == pytest.approx(theirs(), rel=1e-4)
    assert mine[2] < mine[1] < mine[0]


def test_both_sides_of_generation_end_at_the_end_of_text_and_write_as_much():
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    prompts = benchmark.prompt_ids(256)
    policy = workloads.networks()[0]
    ours, theirs = workloads.generations(policy, prompts)
    lengths = []
    for row in theirs():
        response = row[:row.index(1022) + 1] if 1022 in row else row
        assert set(row[len(response):]) <= {1023}, "only <|pad|> follows the end"
        lengths.append(len(response))
    mine = torch.tensor(list(map(len, ours()))).double()
    other = torch.tensor(lengths).double()
    error = ((mine.var() + other.var()) / 256).sqrt()
    assert abs(mine.mean() - other.mean()) < 4 * error
    endless, _ = workloads.generations(workloads.never_ending(policy), prompts)
    assert all(len(response) == ppo.MAX_NEW_TOKENS for response in endless())


@pytest.mark.parametrize("with_gradient", [False, True])
def test_the_multiply_adds_of_a_tiny_model_are_those_worked_out_by_hand(with_gradient):
    model = GPT(GPTConfig(vocab_size=64, block_size=16, n_layer=2, n_head=2, n_embd=8))
    documents = [list(range(9)), list(range(9))]
    with benchmark.Products() as products:
        loss = corpus_loss(model, documents)
        if with_gradient:
            loss.backward()
    n_tokens = 2 * 8                            # 2 documents, the last token predicts nothing
    matrices = 8 * 24 + 8 * 8 + 8 * 32 + 32 * 8     # of a block: c_attn, c_proj, c_fc, c_proj
    attention = 2 * 8 * 8                       # q k^T and the sum of values: 8 positions, 8 wide
    forward = n_tokens * (2 * (matrices + attention) + 8 * 64)
    # Each product A B has two in its gradient: one for A, one for B.
    assert products.multiply_adds() == (3 if with_gradient else 1) * forward


def test_every_row_is_measured_written_and_drawn(tmp_path, monkeypatch, capsys):
    pytest.importorskip("trl.experimental.ppo.ppo_trainer")
    monkeypatch.setattr(benchmark, "RESULTS", tmp_path)
    peak = benchmark.measured_apart("trl", 8)
    assert peak["all"] > peak["above"] > 0
    monkeypatch.setattr(benchmark, "measured_apart", lambda *_: peak)       # one process is enough
    benchmark.main(["--quick", "--write"])
    results = json.loads((tmp_path / "benchmark.json").read_text(encoding="utf-8"))
    rows = results["rows"]
    assert results["threads"] == 1 and list(rows) == [
        "PPO", "PPO, peak memory", "PPO, above the imports", "training step, width 64",
        "training step, width 128", "generation", "generation, none ends", "share in pretraining",
        "share in PPO", "pretraining step", "pretraining, peak memory", "reward model step",
        "rollout", "rollout, 16 prompts"]
    printed = capsys.readouterr().out
    for name, row in rows.items():
        assert name in printed
        if "share" in row:
            assert 0 < row["bare_ms"] and min(row["multiply_adds"].values()) > 0
        for y in row.get("lines", {}).values():
            assert len(y) == len(row["x"])
    assert (tmp_path / "benchmark.png").stat().st_size > 10_000


def test_the_table_beside_other_libraries_is_that_of_the_recorded_file():
    recorded = json.loads((benchmark.RESULTS / "benchmark.json").read_text(encoding="utf-8"))
    text = (benchmark.RESULTS.parent / "README.md").read_text(encoding="utf-8")
    section = text.split("### Beside other libraries")[1].split("\n## ")[0]
    table = [re.split(r" *\| *", line)[2:5] for line in section.split("\n") if line[:2] == "| "]
    rows = [row for name, row in recorded["rows"].items() if "theirs" in row and "above" not in name]
    assert len(table) == 1 + len(rows)
    for cells, row in zip(table[1:], rows):
        shown = [float(cell.replace(",", "")) for cell in cells]
        expected = [row["ours"], row["theirs"], row["ratio"]]
        for cell, value, precise in zip(cells, shown, expected):
            decimals = len(cell.partition(".")[2])
            assert value == round(precise, decimals), cells
    for name in ("share in pretraining", "share in PPO"):
        assert f"{recorded['rows'][name]['share']:.0%}".replace("%", " %") in section
    for library, version in recorded["versions"].items():
        assert library == "torch" or f"{library} {version}" in section
