"""Beside PPO: each method's arithmetic by hand, by finite differences, and beside trl's trainers."""
import collections
import copy
import math
import random
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch

from data.tokenizer import load_cached
from model import GPT, GPTConfig
from notebooks import methods


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


# ---------------------------------------------------------------- by hand


def test_the_reward_of_a_response_is_its_score_less_beta_times_its_whole_log_ratio():
    mask = tensor([1, 1, 0], [1, 1, 1])
    logprobs = tensor([-1, -2, 9], [-1, -1, -1])
    ref_logprobs = tensor([-2, -2, 5], [-1, -1, -3])
    rewards = methods.penalised(tensor(1, 2), logprobs, ref_logprobs, mask, 0.5)
    assert rewards.tolist() == [1 - 0.5 * 1, 2 - 0.5 * 2]


def test_leave_one_out_compares_each_response_with_the_mean_of_the_others():
    """Rewards 1, 2, 6 of one prompt: others' means 4, 3.5, 1.5; a second prompt stands alone."""
    advantages = methods.rloo_advantages(tensor(1, 2, 6, 5, 5, 8), 3)
    assert advantages.tolist() == [-3, -1.5, 4.5, -1.5, -1.5, 3]


def test_grpo_without_its_division_is_leave_one_out_times_k_minus_1_over_k():
    rewards = torch.randn(12, dtype=torch.float64)
    ours = methods.grpo_advantages(rewards, 4, normalise=False)
    assert torch.allclose(ours, 0.75 * methods.rloo_advantages(rewards, 4))


def test_grpo_divides_by_the_standard_deviation_of_the_group():
    """Rewards 1, 3: mean 2, deviation sqrt(2); equal rewards teach nothing."""
    advantages = methods.grpo_advantages(tensor(1, 3, 7, 7), 2)
    assert advantages[:2].tolist() == pytest.approx([-1 / math.sqrt(2), 1 / math.sqrt(2)], abs=1e-3)
    assert advantages[2:].tolist() == [0, 0]


def test_a_constant_added_to_all_rewards_of_a_prompt_changes_no_advantage():
    rewards = torch.randn(8, dtype=torch.float64)
    shift = tensor(5, 5, 5, 5, -3, -3, -3, -3)
    for form in (methods.rloo_advantages, methods.grpo_advantages):
        assert torch.allclose(form(rewards, 4), form(rewards + shift, 4))


def test_the_gradient_of_reinforce_pushes_every_token_of_a_response_by_its_advantage():
    logprobs = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    mask = tensor([1, 1, 1], [1, 0, 0])
    methods.reinforce_loss(logprobs, tensor(2, -4), mask).backward()
    assert logprobs.grad.tolist() == [[-1, -1, -1], [2, 0, 0]]


def test_grpo_gives_every_response_the_same_weight_and_unnormalised_every_token():
    mask = tensor([1, 1, 1, 1], [1, 0, 0, 0])
    gradients = {}
    for normalise in (True, False):
        logprobs = torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)
        old = logprobs.detach().clone()
        methods.grpo_loss(logprobs, old, tensor(1, 1), mask, 0.2, normalise).backward()
        gradients[normalise] = logprobs.grad.tolist()
    assert gradients[True] == [[-1 / 8] * 4, [-1 / 2, 0, 0, 0]]
    assert gradients[False] == [[-1 / 2] * 4, [-1 / 2, 0, 0, 0]]


def test_a_ratio_beyond_the_clip_has_no_gradient_only_in_the_good_direction():
    logprobs = torch.tensor([[0.5], [0.5]], dtype=torch.float64, requires_grad=True)
    old = torch.zeros(2, 1, dtype=torch.float64)
    methods.grpo_loss(logprobs, old, tensor(1, -1), torch.ones_like(old), 0.2).backward()
    assert logprobs.grad[0].item() == 0
    assert logprobs.grad[1].item() == pytest.approx(math.exp(0.5) / 2)


def test_dpo_starts_at_log_2_and_rewards_a_margin_over_the_reference():
    same = tensor(-3, -5)
    assert methods.dpo_loss(same, same, same, same, 0.1).item() == pytest.approx(math.log(2))
    loss = methods.dpo_loss(tensor(-1), tensor(-4), tensor(-2), tensor(-3), 0.5)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-0.5 * 2)))


def test_the_best_policy_of_the_objective_has_no_gradient_in_dpo():
    """pi = pi_ref exp(r / beta) / Z. With labels drawn as Bradley-Terry of r, DPO's mean gradient
    over both outcomes of a comparison is 0 there."""
    reward, beta = tensor(1.0, -0.5, 0.3), 0.7
    reference = torch.log_softmax(tensor(0.2, 0.1, -0.4), 0)
    logits = (reference + reward / beta).requires_grad_()
    policy = torch.log_softmax(logits, 0)
    expected = 0
    for i in range(3):
        for j in range(3):
            if i != j:
                chance = torch.sigmoid(reward[i] - reward[j])
                expected = expected + chance * methods.dpo_loss(
                    policy[i:i + 1], policy[j:j + 1], reference[i:i + 1], reference[j:j + 1], beta)
    expected.backward()
    assert logits.grad.abs().max() < 1e-12


# ---------------------------------------------------------------- finite differences


def losses():
    generator = torch.Generator().manual_seed(3)

    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    mask = tensor([1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1])
    advantages, old, ref = draw(3), draw(3, 4), draw(3, 4)
    ref_sums = draw(2, 5)
    return {
        "reinforce": (lambda x: methods.reinforce_loss(x, advantages, mask), draw(3, 4)),
        "grpo": (lambda x: methods.grpo_loss(x, old, advantages, mask, 0.2), draw(3, 4)),
        "grpo, not normalised": (
            lambda x: methods.grpo_loss(x, old, advantages, mask, 0.2, False), draw(3, 4)),
        "kl": (lambda x: methods.kl_loss(x, ref, mask), draw(3, 4)),
        "kl, per token": (lambda x: methods.kl_loss(x, ref, mask, True), draw(3, 4)),
        "dpo": (lambda x: methods.dpo_loss(x[0], x[1], *ref_sums, 0.3), draw(2, 5)),
    }


@pytest.mark.parametrize("name", losses())
def test_the_gradient_is_that_of_finite_differences(name):
    loss, point = losses()[name]
    assert torch.autograd.gradcheck(loss, (point.requires_grad_(),))


# ---------------------------------------------------------------- trl's trainers


def stub(**settings):
    """A trainer of trl without its machinery: only what its loss reads."""
    trainer = MagicMock()
    trainer.aux_loss_enabled = False
    trainer.epsilon_low = trainer.epsilon_high = 0.2
    trainer.model.training = False
    trainer._metrics = collections.defaultdict(lambda: collections.defaultdict(list))
    trainer.accelerator.gather = trainer.accelerator.gather_for_metrics = lambda x: x
    trainer.accelerator.reduce = lambda x, reduction: x
    for name, value in settings.items():
        setattr(trainer, name, value)
    return trainer


def sampled():
    """Log-probs of three responses, and trl's inputs for the same."""
    torch.manual_seed(5)
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]])
    logprobs = torch.randn(3, 4).requires_grad_()
    old, ref, advantages = torch.randn(3, 4), torch.randn(3, 4), torch.randn(3)
    ids = torch.zeros(3, 4, dtype=torch.long)
    inputs = {"prompt_ids": ids, "prompt_mask": ids + 1, "completion_ids": ids,
              "completion_mask": mask, "advantages": advantages, "old_per_token_logps": old,
              "ref_per_token_logps": ref, "old_logps": (logprobs * mask).sum(1).detach()}
    return logprobs, old, ref, advantages, mask.float(), inputs


@pytest.mark.parametrize("normalise", [True, False])
def test_grpos_loss_with_its_kl_is_trls(normalise):
    trl = pytest.importorskip("trl")
    logprobs, old, ref, advantages, mask, inputs = sampled()
    trainer = stub(
        beta=0.3, loss_type="grpo" if normalise else "dr_grpo", max_completion_length=1,
        top_entropy_quantile=1.0, off_policy_mask_threshold=None, use_vllm=False,
        importance_sampling_level="token", _entropy_bonus_enabled=False,
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None),
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, torch.zeros(3, 4), None))
    theirs = trl.GRPOTrainer._compute_loss(trainer, None, inputs)
    kl = methods.kl_loss(logprobs, ref, mask, per_token=normalise)
    ours = methods.grpo_loss(logprobs, old, advantages, mask, 0.2, normalise) + 0.3 * kl
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert_same_gradient(ours, theirs, logprobs)


def test_reinforces_gradient_is_that_of_trls_rloo_trainer():
    trl = pytest.importorskip("trl")
    logprobs, _, _, advantages, mask, inputs = sampled()
    trainer = stub(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, torch.zeros(3, 4), None))
    theirs = trl.RLOOTrainer._compute_loss(trainer, None, inputs)
    assert_same_gradient(methods.reinforce_loss(logprobs, advantages, mask), theirs, logprobs)


def assert_same_gradient(ours, theirs, logprobs):
    (a,) = torch.autograd.grad(ours, logprobs, retain_graph=True)
    (b,) = torch.autograd.grad(theirs, logprobs)
    assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)


def test_dpos_loss_on_real_networks_is_trls():
    """Our log-probabilities of two texts and our loss; trl's from the logits of the same networks."""
    trl = pytest.importorskip("trl")
    encoding = load_cached()
    torch.manual_seed(0)
    policy = GPT(GPTConfig(encoding.n_vocab, 64, 1, 2, 16)).eval()
    reference = copy.deepcopy(policy)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    prompts = ["Name two animals.", "Is the fox red?"]
    chosen = [{"text": "I think of fox and owl.", "ended": True}, {"text": "Yes.", "ended": True}]
    rejected = [{"text": "No.", "ended": True}, {"text": "The fox is", "ended": False}]
    both = [*chosen, *rejected]
    sums = methods.response_sums(policy, [*prompts, *prompts], both)
    ref_sums = methods.response_sums(reference, [*prompts, *prompts], both).detach()
    ours = methods.dpo_loss(sums[:2], sums[2:], ref_sums[:2], ref_sums[2:], 0.2)

    prompt_ids = [methods.tokenizer.prompt_ids(encoding, prompt) for prompt in prompts] * 2
    rows = [ids + methods.tokenizer.response_ids(encoding, response["text"], response["ended"])
            for ids, response in zip(prompt_ids, both)]
    idx, lengths = methods.ppo.pad_batch(rows, encoding.n_vocab - 1, "cpu")
    places = torch.arange(idx.shape[1])
    starts = torch.tensor(list(map(len, prompt_ids)))
    completion = (places >= starts[:, None]) & (places < lengths[:, None])

    def as_theirs(network):
        def run(input_ids, **_):
            logits = network(input_ids)
            logits[..., -1] = -torch.inf            # <|pad|> is no token, see model.distribution
            return SimpleNamespace(logits=logits)
        return run

    trainer = stub(ld_alpha=None, precompute_ref_logps=False, use_weighting=False,
                   f_divergence_type="reverse_kl",
                   loss_types=["sigmoid"], loss_weights=[1.0], beta=0.2,
                   ref_model=as_theirs(reference))
    trainer.args.gradient_checkpointing_kwargs = None
    theirs = trl.DPOTrainer._compute_loss(
        trainer, as_theirs(policy), {"input_ids": idx, "completion_mask": completion.long()}, False)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)


# ---------------------------------------------------------------- what is trained on


def test_a_pair_of_dpo_is_never_a_tie_and_the_better_one_comes_first():
    texts = [{"text": name, "ended": True} for name in "abcd"]
    ranking = {"prompt": "p", "responses": texts, "ranks": [2, 1, 2, 3]}
    tied = {"prompt": "q", "responses": texts, "ranks": [1, 1, 1, 1]}
    order = dict(zip("abcd", ranking["ranks"]))
    for seed in range(20):
        pairs = methods.preference_pairs([ranking, tied], random.Random(seed))
        assert len(pairs) == 1
        prompt, chosen, rejected = pairs[0]
        assert prompt == "p" and order[chosen["text"]] < order[rejected["text"]]


def test_the_best_of_n_is_each_prompts_own_response_with_the_highest_score(monkeypatch):
    """Two prompts, three responses each, with these scores."""
    scores = torch.tensor([1.0, 3.0, 2.0, 9.0, 7.0, 8.0])

    def respond(start, rows):
        assert rows == ["p"] * 3 + ["q"] * 3
        return {"scores": scores, "answers": list("abcdef")}

    monkeypatch.setattr(methods, "respond", respond)
    assert methods.best_responses(None, ["p", "q"], 3) == ["b", "d"]

