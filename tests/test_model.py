"""The language model: sampling, log-probabilities, checkpoints, flags."""
import json
import math
import os
import pickle
import random
from dataclasses import dataclass

import pytest
import torch

import model
import ppo
import reward
import sft
from data import files, flags
from data.files import MetricLog, UserError, load_checkpoint, made, save_checkpoint
from data.flags import BaseConfig, parse_flags
from data.training import Muon, cosine
from model import GPT, GPTConfig, generate, load_model, logprobs


def prompts_of_unequal_length():
    rng = random.Random(1)
    return [[rng.randrange(62) for _ in range(n)] for n in (9, 1, 5, 17, 5, 2)]


# ---------------------------------------------------------------- sampling


def greedy_without_cache(gpt, prompt, max_new_tokens):
    """The definition: read everything again for every token, take the likeliest that is not <|pad|>."""
    response = []
    while len(response) < max_new_tokens and (not response or response[-1] != gpt.config.eos_id):
        logits = gpt(torch.tensor([prompt + response]))[0, -1]
        logits[gpt.config.pad_id] = -math.inf
        response.append(int(logits.argmax()))
    return response


@torch.no_grad()
def test_the_cache_changes_nothing(tiny):
    """Left-padded prompts of unequal length, sampled with a cache, give what a full forward pass gives."""
    expected = [greedy_without_cache(tiny, prompt, 20) for prompt in prompts_of_unequal_length()]
    assert generate(tiny, prompts_of_unequal_length(), 20, temperature=0) == expected
    assert len({tuple(response) for response in expected}) > 3


def test_a_prompt_is_answered_alike_whatever_its_neighbours(tiny):
    prompts = prompts_of_unequal_length()
    together = generate(tiny, prompts, 20, temperature=0)
    assert together == [generate(tiny, [prompt], 20, temperature=0)[0] for prompt in prompts]
    assert together[::-1] == generate(tiny, prompts[::-1], 20, temperature=0)
    assert together == generate(tiny, prompts, 20, temperature=0, batch_size=2)


@torch.no_grad()
def test_samples_are_drawn_from_the_distribution_that_is_scored(tiny):
    """4,000 first tokens at temperature 0.7 after a left-padded prompt: their frequencies are exp(logprobs)."""
    prompt = [5, 9, 11]
    drawn = generate(tiny, [prompt] * 4_000 + [[1] * 10], 1, 0.7, torch.Generator().manual_seed(0))[:4_000]
    scored = torch.tensor([logprobs(tiny, torch.tensor([prompt + [token]]), 0.7)[0, -1].exp() for token in range(63)])
    share = torch.bincount(torch.tensor(drawn).squeeze(1), minlength=63) / 4_000
    assert (share - scored).abs().max() < 0.04


def test_a_response_keeps_its_end_of_text_and_nothing_after_it(tiny):
    responses = generate(tiny, [[1, 2, 3]] * 300, 30, 1.5, torch.Generator().manual_seed(0))
    assert any(response[-1] == tiny.config.eos_id for response in responses)
    for response in responses:
        assert tiny.config.eos_id not in response[:-1]
        assert response[-1] == tiny.config.eos_id or len(response) == 30


def test_pad_is_never_sampled_even_if_the_model_wants_nothing_else(tiny):
    with torch.no_grad():
        tiny.transformer.ln_f.bias.fill_(1.0)
        tiny.transformer.wte.weight[tiny.config.pad_id] = 5.0
        assert tiny(torch.tensor([[1, 2]]))[0, -1].argmax() == tiny.config.pad_id
    for temperature in (0, 1.0):
        responses = generate(tiny, prompts_of_unequal_length(), 20, temperature, torch.Generator().manual_seed(0))
        assert all(tiny.config.pad_id not in response for response in responses)


def test_a_seed_repeats_a_sample(tiny):
    one, two, other = (generate(tiny, prompts_of_unequal_length(), 20, 1.0, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert one == two != other


def test_dropout_is_off_while_sampling_and_back_on_afterwards():
    torch.manual_seed(0)
    noisy = GPT(GPTConfig(64, 48, 1, 2, 16, dropout=0.5)).train()
    assert generate(noisy, [[1, 2, 3]], 20, 0) == generate(noisy, [[1, 2, 3]], 20, 0)
    assert noisy.training


def test_too_long_an_input_is_refused_with_both_lengths(tiny):
    with pytest.raises(ValueError, match="51 tokens.*context of 48"):
        generate(tiny, [[1] * 31], 20)
    with pytest.raises(ValueError, match="49 tokens.*context of 48"):
        tiny(torch.zeros(1, 49, dtype=torch.long))
    assert len(generate(tiny, [[1] * 28], 20, 0)[0]) <= 20


# ---------------------------------------------------------------- log-probabilities


@torch.no_grad()
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_log_softmax_with_pad_left_out(tiny, temperature):
    idx = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 62, 63]])
    logits = tiny(idx)[:, :-1, :63] / temperature                       # <|pad|> is the last of 64 tokens
    by_hand = logits - logits.exp().sum(-1, keepdim=True).log()
    scored = logprobs(tiny, idx, temperature)
    assert scored.shape == (2, 4)
    for row, column in [(0, 0), (0, 3), (1, 0), (1, 2)]:
        assert scored[row, column].item() == pytest.approx(by_hand[row, column, idx[row, column + 1]].item(), abs=1e-5)


@torch.no_grad()
def test_the_probabilities_of_all_tokens_but_pad_sum_to_one(tiny):
    distribution = model.distribution(tiny(torch.tensor([[3, 1, 4]])), 1.0, tiny.config.pad_id).exp()
    assert torch.allclose(distribution[..., :63].sum(-1), torch.ones(1, 3))
    assert (distribution[..., 63] == 0).all()


@torch.no_grad()
def test_only_wanted_logprobs_are_worked_out(tiny):
    idx, wanted = torch.randint(0, 62, (2, 6)), torch.tensor([[False, True, True, False, False], [False, False, False, False, True]])
    assert torch.allclose(logprobs(tiny, idx, select=wanted), logprobs(tiny, idx) * wanted, atol=1e-5)


@torch.no_grad()
def test_right_padding_does_not_move_logprobs(tiny):
    alone, padded = torch.tensor([[3, 1, 4]]), torch.tensor([[3, 1, 4, 63, 63], [1, 2, 3, 4, 5]])
    assert torch.allclose(logprobs(tiny, alone)[0], logprobs(tiny, padded)[0, :2], atol=1e-6)


@torch.no_grad()
def test_the_future_is_invisible(tiny):
    one, other = torch.tensor([[3, 1, 4, 1]]), torch.tensor([[3, 1, 9, 2]])
    assert torch.equal(tiny(one)[:, :2], tiny(other)[:, :2])
    assert not torch.equal(tiny(one)[:, 2], tiny(other)[:, 2])


def test_reading_and_writing_share_a_table_and_names_are_gpt_2s(tiny):
    assert tiny.lm_head.weight is tiny.transformer.wte.weight
    assert "transformer.h.1.attn.c_attn.weight" in tiny.state_dict()


# ---------------------------------------------------------------- checkpoints


def test_a_checkpoint_comes_back_as_it_was(tiny, tmp_path):
    sha = save_checkpoint(tmp_path / "a.pt", tiny, stage="test", seed=3)
    saved, again = load_checkpoint(tmp_path / "a.pt"), load_model(tmp_path / "a.pt")
    assert saved["kind"] == "GPT" and saved["extra"] == {"stage": "test", "seed": 3} and saved["sha256"] == sha
    assert again.config == tiny.config and not again.training
    assert all(torch.equal(a, b) for a, b in zip(tiny.state_dict().values(), again.state_dict().values()))
    assert os.listdir(tmp_path) == ["a.pt"]


def test_one_flipped_bit_in_a_weight_is_noticed(tiny, tmp_path):
    path = tmp_path / "a.pt"
    save_checkpoint(path, tiny)
    raw, weight = bytearray(path.read_bytes()), tiny.transformer.h[0].mlp.c_fc.weight.detach().numpy().tobytes()
    raw[raw.find(weight) + 100] ^= 1
    path.write_bytes(raw)
    with pytest.raises(UserError, match="a.pt"):
        load_checkpoint(path)


def test_a_flipped_byte_anywhere_is_noticed_or_harmless(tiny, tmp_path):
    path = tmp_path / "a.pt"
    sha = save_checkpoint(path, tiny)
    whole, noticed = path.read_bytes(), 0
    for place in range(0, len(whole), len(whole) // 60):
        raw = bytearray(whole)
        raw[place] ^= 0xFF
        path.write_bytes(raw)
        try:
            saved = load_checkpoint(path)
            assert saved["sha256"] == sha == files.fingerprint(saved["state"], saved["kind"], saved["config"], saved["extra"])
        except UserError as error:
            assert "a.pt" in str(error)
            noticed += 1
    assert noticed > 30


@pytest.mark.filterwarnings("ignore")                               # torch's own, about files that are not ours
@pytest.mark.parametrize("damage", ["empty", "cut", "text", "other tensor", "other dict"])
def test_a_damaged_or_foreign_file_is_refused_by_name(tiny, tmp_path, damage):
    path = tmp_path / "a.pt"
    save_checkpoint(path, tiny)
    if damage in ("other tensor", "other dict"):
        torch.save(torch.zeros(3) if damage == "other tensor" else {"state": {}}, path)
    else:
        path.write_bytes({"empty": b"", "cut": path.read_bytes()[:5_000], "text": b"Once upon a time"}[damage])
    with pytest.raises(UserError, match="a.pt"):
        load_checkpoint(path)


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere.pt"):
        load_checkpoint(tmp_path / "nowhere.pt")


def test_a_reward_model_is_no_language_model_and_the_reverse(tiny, tmp_path):
    save_checkpoint(tmp_path / "gpt.pt", tiny)
    save_checkpoint(tmp_path / "reward.pt", reward.RewardModel(tiny.config))
    with pytest.raises(UserError, match="reward.pt"):
        load_model(tmp_path / "reward.pt")
    with pytest.raises(UserError, match="gpt.pt"):
        reward.load_reward_model(tmp_path / "gpt.pt")


class Malice:
    """Unpickled, it would leave a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("write", [lambda thing, path: torch.save({"kind": "GPT", "config": {}, "state": {}, "extra": thing, "sha256": ""}, path),
                                   lambda thing, path: path.write_bytes(pickle.dumps(thing))])
def test_nothing_in_a_checkpoint_is_executed(tmp_path, write):
    write(Malice(tmp_path / "executed"), tmp_path / "evil.pt")
    with pytest.raises(UserError, match="evil.pt"):
        load_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "executed").exists()


# ---------------------------------------------------------------- which run does a checkpoint belong to?


@dataclass
class Stage(BaseConfig):
    """The settings of some stage."""
    lr: float = 0.1             # learning rate


def test_a_checkpoint_of_another_run_is_refused(tiny, tmp_path):
    config = Stage(seed=1, out=str(tmp_path))
    assert not made(config, "parent")
    save_checkpoint(tmp_path / "parent.pt", tiny, **files.stage_extra(config, "parent"))
    save_checkpoint(tmp_path / "child.pt", tiny, **files.stage_extra(config, "child", made_from=["parent"]))
    assert made(config, "parent") and made(config, "child", {"lr": 0.1})
    with pytest.raises(UserError, match="parent.pt.*seed 1, not 2"):
        made(Stage(seed=2, out=str(tmp_path)), "parent")
    with pytest.raises(UserError, match="child.pt.*--lr 0.1, not 0.2"):
        made(config, "child", {"lr": 0.2})
    save_checkpoint(tmp_path / "parent.pt", tiny, **files.stage_extra(Stage(seed=1, out=str(tmp_path), lr=0.2), "parent"))
    with pytest.raises(UserError, match="child.pt.*parent.pt"):
        made(config, "child")


def test_a_checkpoint_of_another_world_is_refused(tiny, tmp_path, monkeypatch):
    config = Stage(out=str(tmp_path))
    save_checkpoint(tmp_path / "a.pt", tiny, **files.stage_extra(config, "a"))
    monkeypatch.setattr(files, "world_hash", lambda: "another")
    with pytest.raises(UserError, match="a.pt.*another world"):
        made(config, "a")


def test_a_missing_earlier_stage_is_named_with_the_command_that_makes_it(tmp_path):
    for stage, script in ((sft, "model.py"), (reward, "sft.py")):
        with pytest.raises(UserError, match=f"python {script}"):
            stage.train(stage.Config(out=str(tmp_path)))
    with pytest.raises(UserError, match="python sft.py"):
        ppo.train_policy(ppo.Config(out=str(tmp_path)), "ppo", "reward", 1, 0.0)


# ---------------------------------------------------------------- flags, schedule, log

SCRIPTS = [model, sft, reward, ppo]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_flag_of_the_wrong_type_is_refused(script, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse_flags(script.Config, script.__doc__, ["--seed", "many"])
    assert stopped.value.code == 2 and "--seed" in capsys.readouterr().err


@pytest.mark.parametrize("script, typo, meant", [(model, "--stepps", "--steps"), (model, "--step", "--steps"), (sft, "--epoch_s", "--epochs"), (reward, "--prompts1", "--prompts_1"),
                                                 (ppo, "--bta", "--beta"), (ppo, "--gama_ptx", "--gamma_ptx")])
def test_a_typo_gets_the_nearest_flag(script, typo, meant, capsys):
    for argv in ([typo, "1"], [f"{typo}=1"]):
        with pytest.raises(SystemExit) as stopped:
            parse_flags(script.Config, script.__doc__, argv)
        assert stopped.value.code == 2 and f"did you mean {meant}?" in capsys.readouterr().err


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_explains_every_flag(script, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse_flags(script.Config, script.__doc__, ["--help"])
    shown = capsys.readouterr().out.split("options:")[1]
    assert stopped.value.code == 0
    for flag in shown.split("\n  --")[1:]:
        assert len(flag.split()) > 3, flag                              # name, default, and words


def test_flags_become_the_config():
    assert parse_flags(ppo.Config, "", ["--seed", "3", "--beta=0.1", "--out", "x"]) == ppo.Config(seed=3, beta=0.1, out="x")
    assert parse_flags(ppo.Config, "", []) == ppo.Config()


def test_the_users_errors_are_one_line_and_exit_code_2(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["sft.py", "--out", "/proc/nowhere"])
    with pytest.raises(SystemExit) as stopped:
        flags.run_script(sft.train, sft.Config, sft.__doc__)
    assert stopped.value.code == 2 and capsys.readouterr().err.strip().startswith("error: ")


def test_the_learning_rate_ends_at_ten_percent_of_its_peak():
    assert cosine(0, 100, 2.0) == pytest.approx(2.0)
    assert cosine(50, 100, 2.0) == pytest.approx(1.1)
    assert cosine(100, 100, 2.0) == pytest.approx(0.2)
    assert cosine(0, 100, 2.0, warmup=10) == pytest.approx(0.2) and cosine(10, 100, 2.0, warmup=10) == pytest.approx(2.0)


def test_muon_takes_the_steps_of_torchs_own():
    """torch.optim.Muon computes in bfloat16, three decimal digits: hence the two percent."""
    torch.manual_seed(0)
    start = [torch.randn(shape) for shape in [(24, 8), (8, 8), (32, 8), (8, 32)] * 2]
    ours, theirs = ([torch.nn.Parameter(p.clone()) for p in start] for _ in range(2))
    optimizers = Muon(ours, lr=0.01, weight_decay=0.1), torch.optim.Muon(theirs, lr=0.01, weight_decay=0.1)
    for _ in range(5):
        for a, b in zip(ours, theirs):
            a.grad = torch.randn(a.shape)
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for a, b, p in zip(ours, theirs, start):
        assert torch.linalg.norm(a - b) < 0.02 * torch.linalg.norm(b - p)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_training_that_diverges_stops(tmp_path, value):
    log = MetricLog(BaseConfig(out=str(tmp_path)), "run")
    log.write(step=6, loss=1.5)
    with pytest.raises(UserError, match="loss became .* at step 7"):
        log.write(step=7, loss=value)
    assert [json.loads(line) for line in open(tmp_path / "run.jsonl", encoding="utf-8")] == [{"step": 6, "loss": 1.5}]


def test_a_bad_line_of_a_data_file_is_named(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n{"a": \n', encoding="utf-8", newline="\n")
    with pytest.raises(UserError, match="rows.jsonl, line 2"):
        files.read_jsonl(tmp_path / "rows.jsonl")
    with pytest.raises(UserError, match="missing.jsonl"):
        files.read_jsonl(tmp_path / "missing.jsonl")
