"""The arithmetic of RLHF, against numbers worked out by hand."""
import copy
import math
import random
from dataclasses import dataclass

import pytest
import torch

import ppo
import reward
from data import labeler, tasks, tokenizer
from data.files import save_checkpoint
from model import GPT, GPTConfig, corpus_loss, load_model, logprobs, pad_batch
from ppo import at_responses, gae, kl_estimates, policy_loss, token_rewards, value_loss, whiten
from reward import RewardModel, ranking_loss
from sft import sft_batch, sft_loss


def table(*rows):
    return torch.tensor(rows, dtype=torch.float)


# ---------------------------------------------------------------- step 1: supervised fine-tuning


class Bigram(torch.nn.Module):
    """Five tokens; the next token depends on the last one only. Token 3 ends a text, 4 is pad."""

    def __init__(self):
        super().__init__()
        self.config = GPTConfig(vocab_size=5)
        self.logits = torch.nn.Parameter(table([.7, .1, .1, .05, .05],      # after 0
                                               [.1, .25, .5, .1, .05],      # after 1
                                               [.1, .1, .1, .6, .1],        # after 2
                                               [.2, .2, .2, .2, .2], [.2, .2, .2, .2, .2]).log())

    def forward(self, idx, select=None):
        return self.logits[idx if select is None else idx[select]]


def test_only_the_response_is_learnt_and_its_end_too():
    """Prompt 0 1 | response 1 2 end: p(1|1) = .25, p(2|1) = .5, p(end|2) = .6. Neither p(1|0) nor padding counts."""
    idx, mask = sft_batch([([0, 1], [1, 2, 3]), ([0, 0, 1], [2, 3])], pad=4)
    assert mask.tolist() == [[0, 1, 1, 1], [0, 0, 1, 1]]
    first = -math.log(.25) - math.log(.5) - math.log(.6)
    assert sft_loss(Bigram(), idx[:1], mask[:1]).item() == pytest.approx(first / 3)
    assert sft_loss(Bigram(), idx, mask).item() == pytest.approx((first - math.log(.5) - math.log(.6)) / 5)


def test_no_gradient_reaches_what_was_not_in_a_response():
    model = Bigram()
    sft_loss(model, *sft_batch([([0, 1], [2, 3]), ([0, 1, 1, 1], [2, 3])], pad=4)).backward()
    touched = model.logits.grad.abs().sum(1) > 0
    assert touched.tolist() == [False, True, True, False, False]            # nothing is predicted after the prompt's 0, the end, or pad


# ---------------------------------------------------------------- step 2: the reward model


def valid_pairs(*ranks):
    ranks = torch.tensor(ranks)
    return ranks[:, :, None] < ranks[:, None, :]


def test_equation_1_by_hand_for_three_responses_with_a_tie():
    """Ranks 1, 2, 2: the pairs are (first, second) and (first, third); margins 1 and -0.5."""
    loss = ranking_loss(table([1.0, 0.0, 1.5]), valid_pairs([1, 2, 2]))
    assert loss.item() == pytest.approx((math.log(1 + math.exp(-1)) + math.log(1 + math.exp(0.5))) / 2)


def test_equation_1_by_hand_for_three_responses_without_a_tie():
    margins = [2.0 - 0.5, 2.0 - (-1.0), 0.5 - (-1.0)]
    loss = ranking_loss(table([0.5, 2.0, -1.0]), valid_pairs([2, 1, 3]))
    assert loss.item() == pytest.approx(sum(math.log(1 + math.exp(-m)) for m in margins) / 3)


def test_equal_scores_cost_log_2():
    assert ranking_loss(torch.full((4, 3), 7.0), valid_pairs(*[[1, 2, 3]] * 4)).item() == pytest.approx(math.log(2))


def test_the_ranking_loss_cannot_see_a_shift_of_all_scores_of_a_prompt():
    torch.manual_seed(0)
    scores, valid = torch.randn(3, 4), valid_pairs([1, 2, 3, 4], [2, 1, 1, 3], [4, 3, 2, 1])
    assert ranking_loss(scores + table([5.0], [-3.0], [100.0]), valid).item() == pytest.approx(ranking_loss(scores, valid).item(), abs=1e-5)


def test_each_prompt_weighs_the_same_however_many_pairs_it_has():
    """One pair beside three pairs; and a prompt of ties alone does not count at all."""
    scores, valid = table([1.0, 0.0, 0.0], [0.3, -0.2, 0.9], [4.0, 5.0, 6.0]), valid_pairs([1, 2, 2], [1, 2, 3], [1, 1, 1])
    valid[0, 0, 2] = False                                              # the first prompt keeps a single pair
    one, two = (ranking_loss(scores[i:i + 1], valid[i:i + 1]).item() for i in (0, 1))
    assert ranking_loss(scores, valid).item() == pytest.approx((one + two) / 2)


def test_ties_alone_cost_nothing_and_move_nothing():
    scores = table([1.0, 2.0]).requires_grad_()
    loss = ranking_loss(scores, valid_pairs([1, 1]))
    loss.backward()
    assert loss.item() == 0 and scores.grad.tolist() == [[0, 0]]


def test_a_prompt_with_fewer_responses_makes_no_pairs_out_of_nothing(encoding):
    lines = [{"prompt": "Name two colours.", "responses": [{"text": t, "ended": e} for t, e in responses], "ranks": ranks}
             for responses, ranks in [([("a", True), ("b b", False), ("c", True)], [2, 1, 2]), ([("a", True), ("b", True)], [1, 2])]]
    idx, _, _, last, valid = reward.ranking_batch(lines, encoding, encoding.n_vocab - 1, "cpu")
    assert valid.nonzero().tolist() == [[0, 1, 0], [0, 1, 2], [1, 0, 1]]
    assert (idx.gather(1, last) == encoding.eot_token)[:, :2].tolist() == [[True, False], [True, True]] and idx[0, last[0, 2]] == encoding.eot_token


def test_responses_that_share_a_row_score_as_if_alone(encoding):
    """Reading a prompt once for all its responses changes no score and no gradient."""
    lines = [{"prompt": p, "responses": [{"text": t, "ended": e} for t, e in responses], "ranks": list(range(len(responses)))}
             for p, responses in [("Name two colours.", [("I think of red.", True), ("Blue", False), ("", True)]), ("Hi", [("Go away, you fool.", True), ("No.", True)])]]
    model = reward_model(GPTConfig(encoding.n_vocab, 64, 2, 2, 16)).double()
    idx, positions, attn_mask, last, _ = reward.ranking_batch(lines, encoding, model.config.pad_id, "cpu")
    together = torch.cat([row[:len(line["responses"])] for row, line in zip(model.values(idx, positions=positions, attn_mask=attn_mask).gather(1, last), lines)])
    (together ** 2).sum().backward()
    shared = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    alone = torch.cat([model(*pad_batch([tokenizer.prompt_ids(encoding, line["prompt"]) + tokenizer.response_ids(encoding, r["text"], r["ended"])], 0))
                       for line in lines for r in line["responses"]])
    (alone ** 2).sum().backward()
    assert torch.allclose(together, alone, rtol=0, atol=1e-12)
    assert all(torch.allclose(a, p.grad, rtol=0, atol=1e-10) for a, p in zip(shared, model.parameters()))


def test_second_opinions_count_each(encoding):
    line = {"prompt": "Name two colours.", "responses": [{"text": t, "ended": True} for t in "abc"], "ranks": [1, 2, 2], "second_opinions": [[2, 1, 3], [1, 1, 1]]}
    *_, valid = reward.ranking_batch([line], encoding, encoding.n_vocab - 1, "cpu")
    assert valid.tolist() == [[[0, 1, 2], [1, 0, 1], [0, 0, 0]]]
    loss = ranking_loss(table([1.0, 0.0, 1.5]), valid).item()
    assert loss == pytest.approx(sum(math.log(1 + math.exp(-m)) for m in (1.0, -0.5, -0.5, -1.0, -1.5)) / 5)


def reward_model(config):
    """A random reward model: its head is not zero, as that of a fresh one is."""
    torch.manual_seed(1)
    made = RewardModel(config).eval()
    torch.nn.init.normal_(made.score.weight)
    return made


@torch.no_grad()
def test_the_score_is_read_on_the_last_token_and_padding_cannot_move_it(tiny):
    rm, text = reward_model(tiny.config), [3, 1, 4, 1, 62]
    alone = rm(torch.tensor([text]), torch.tensor([5]))
    for behind in ([63] * 3, [7, 7, 7]):
        padded = rm(torch.tensor([text + behind, [9] * 8]), torch.tensor([5, 8]))
        assert padded[0].item() == pytest.approx(alone.item(), abs=1e-5)
    assert alone.item() == rm.values(torch.tensor([text]))[0, 4].item()


@torch.no_grad()
def test_a_fresh_reward_model_has_no_opinion(tiny):
    assert RewardModel(tiny.config).values(torch.tensor([[1, 2, 3]])).tolist() == [[0, 0, 0]]


# ---------------------------------------------------------------- step 3: rewards

MASK = table([1, 1, 1], [1, 0, 0], [1, 1, 0])


def test_the_score_is_paid_on_the_last_response_token():
    rewards = token_rewards(torch.tensor([5.0, 7.0, -1.0]), torch.zeros(3, 3), torch.zeros(3, 3), MASK, beta=0.5)
    assert rewards.tolist() == [[0, 0, 5], [7, 0, 0], [0, -1, 0]]


def test_the_kl_penalty_is_paid_where_it_arises():
    """beta = 0.1; log ratios 0.5, -1, 2: rewards -0.05, +0.1, -0.2 + score."""
    rewards = token_rewards(torch.tensor([3.0]), table([-1.0, -2.0, -0.5]), table([-1.5, -1.0, -2.5]), MASK[:1], beta=0.1)
    assert rewards[0].tolist() == pytest.approx([-0.05, 0.1, 2.8])


def test_rewards_sum_to_the_score_less_the_kl_penalty():
    torch.manual_seed(0)
    scores, logp, ref = torch.randn(3), -torch.rand(3, 3), -torch.rand(3, 3)      # what stands past the end must not count
    expected = scores - 0.3 * ((logp - ref) * MASK).sum(1)
    assert torch.allclose(token_rewards(scores, logp, ref, MASK, 0.3).sum(1), expected)


def test_both_kl_estimates_are_unbiased_and_k3_is_never_negative():
    """Expectations under pi, every outcome enumerated; then 100,000 samples."""
    pi, ref = torch.tensor([.5, .3, .15, .05]), torch.tensor([.2, .2, .3, .3])
    true = (pi * (pi / ref).log()).sum().item()
    k1, k3 = kl_estimates(pi.log(), ref.log())
    assert (pi * k1).sum().item() == pytest.approx(true, abs=1e-6) and (pi * k3).sum().item() == pytest.approx(true, abs=1e-6)
    assert (k3 >= 0).all() and (k1 < 0).any()
    assert abs((pi * k1 ** 2 / 2).sum().item() - true) > 0.01           # k2 is biased
    drawn = torch.multinomial(pi, 100_000, replacement=True, generator=torch.Generator().manual_seed(0))
    assert k1[drawn].mean().item() == pytest.approx(true, abs=0.01) and k3[drawn].mean().item() == pytest.approx(true, abs=0.01)


# ---------------------------------------------------------------- step 3: advantages


def test_gae_by_hand_on_three_tokens():
    """V = .5 .4 .3, r = .1 -.2 1: deltas 0, -.3, .7; A_2 = .7, A_1 = -.3 + .95 * .7, A_0 = .95 A_1."""
    advantages, returns = gae(table([.1, -.2, 1.]), table([.5, .4, .3]), torch.ones(1, 3), 1.0, 0.95)
    assert advantages[0].tolist() == pytest.approx([.34675, .365, .7])
    assert returns[0].tolist() == pytest.approx([.84675, .765, 1.])


def test_gae_with_a_discount_by_hand():
    """gamma = .5, lambda = .5: deltas .1 + .2 - .5, -.2 + .15 - .4, .7; each A adds a quarter of the next."""
    advantages, _ = gae(table([.1, -.2, 1.]), table([.5, .4, .3]), torch.ones(1, 3), 0.5, 0.5)
    assert advantages[0].tolist() == pytest.approx([-.2 + .25 * (-.45 + .25 * .7), -.45 + .25 * .7, .7])


def test_padding_contributes_nothing_to_advantages():
    torch.manual_seed(0)
    rewards, values = torch.randn(3, 3), torch.randn(3, 3)              # what stands past the end is rubbish on purpose
    advantages, returns = gae(rewards, values, MASK)
    for row, length in enumerate((3, 1, 2)):
        alone, alone_returns = gae(rewards[row:row + 1, :length], values[row:row + 1, :length], torch.ones(1, length))
        assert torch.allclose(advantages[row, :length], alone[0]) and torch.allclose(returns[row, :length], alone_returns[0])
    assert (advantages * (1 - MASK) == 0).all() and (returns * (1 - MASK) == 0).all()


def test_with_lambda_1_the_advantage_is_all_later_rewards_less_the_value():
    torch.manual_seed(0)
    rewards, values = torch.randn(1, 5), torch.randn(1, 5)
    later = rewards.flip(1).cumsum(1).flip(1)
    advantages, returns = gae(rewards, values, torch.ones(1, 5), 1.0, 1.0)
    assert torch.allclose(advantages, later - values, atol=1e-6) and torch.allclose(returns, later, atol=1e-6)


@pytest.mark.parametrize("lam", [0.0, 0.95, 1.0])
def test_a_perfect_critic_is_never_surprised(lam):
    rewards = table([.1, -.2, 1., .4])
    later = rewards.flip(1).cumsum(1).flip(1)
    advantages, returns = gae(rewards, later, torch.ones(1, 4), 1.0, lam)
    assert advantages[0].tolist() == pytest.approx([0, 0, 0, 0], abs=1e-6) and torch.allclose(returns, later)


def test_whitening_sees_response_tokens_only():
    """1, 3 and 5, 7 have mean 4 and variance 5; the 100 past the end is no data."""
    white = whiten(table([1, 3, 100], [5, 7, 100]), table([1, 1, 0], [1, 1, 0]))
    assert white.flatten().tolist() == pytest.approx([-3 / 5 ** .5, -1 / 5 ** .5, 0, 1 / 5 ** .5, 3 / 5 ** .5, 0])


# ---------------------------------------------------------------- step 3: the clipped losses


@pytest.mark.parametrize("advantage, ratio, loss, moves, clipped", [
    (+1.0, 1.5, -1.2, False, 1),        # good, and far enough already: no more gradient
    (+1.0, 0.5, -0.5, True, 0),         # good, but less likely than before: bring it back
    (-1.0, 0.5, +0.8, False, 1),        # bad, and far enough already
    (-1.0, 1.5, +1.5, True, 0),         # bad, but likelier than before: bring it back, however far
    (+1.0, 1.1, -1.1, True, 0), (-1.0, 0.9, +0.9, True, 0)])
def test_clipping_stops_steps_that_went_far_enough_and_no_others(advantage, ratio, loss, moves, clipped):
    logp = table([math.log(ratio)]).requires_grad_()
    got, share = policy_loss(logp, torch.zeros(1, 1), table([advantage]), torch.ones(1, 1), 0.2)
    got.backward()
    assert got.item() == pytest.approx(loss) and share.item() == clipped
    assert (logp.grad.item() != 0) == moves
    assert not moves or logp.grad.item() == pytest.approx(-advantage * ratio)


def test_the_policy_loss_is_a_mean_over_response_tokens():
    """Ratios 1: the loss is minus the mean advantage of the six tokens of MASK."""
    advantages = table([1, 2, 3], [4, 99, 99], [5, 6, 99])
    loss, share = policy_loss(torch.zeros(3, 3), torch.zeros(3, 3), advantages, MASK, 0.2)
    assert loss.item() == pytest.approx(-21 / 6) and share.item() == 0


def test_the_value_loss_by_hand():
    """Old .5, new 1, clip .2 -> clipped .7. Return 2: max(1, 1.69) / 2. Return 0: max(1, .49) / 2."""
    for target, expected in ((2.0, 0.845), (0.0, 0.5)):
        assert value_loss(table([1.0]), table([0.5]), table([target]), torch.ones(1, 1), 0.2).item() == pytest.approx(expected)
    assert value_loss(table([1.0, 9.0]), table([1.0, 0.0]), table([3.0, 5.0]), table([1, 0]), 0.2).item() == pytest.approx(2.0)


# ---------------------------------------------------------------- step 3: which column is which


def test_the_response_is_cut_out_one_to_the_left_of_its_tokens():
    """Row 0: prompt of 2, three tokens; row 1: prompt of 4, one token."""
    x = torch.arange(10.).view(2, 5)
    assert at_responses(x, torch.tensor([2, 4]), table([1, 1, 1], [1, 0, 0])).tolist() == [[1, 2, 3], [8, 0, 0]]


@torch.no_grad()
def test_every_response_token_gets_its_own_logprob(tiny):
    prompts, responses = [[1, 2], [3, 4, 5, 6]], [[7, 8, 62], [9, 62]]
    batch = ppo.batch_of(prompts, responses, 63, "cpu")
    assert batch["lengths"].tolist() == [5, 6] and batch["mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    cut = ppo.response_logprobs(tiny, batch)
    for row, (prompt, response) in enumerate(zip(prompts, responses)):
        for t, token in enumerate(response):
            logits = tiny(torch.tensor([prompt + response[:t]]))[0, -1, :63]
            assert cut[row, t].item() == pytest.approx(logits.log_softmax(0)[token].item(), abs=1e-5)
    assert cut[1, 2] == 0


@torch.no_grad()
def test_a_value_does_not_know_the_token_it_is_the_baseline_of(tiny):
    """Another token at position 1: V_0 and V_1 stay, V_2 has seen it."""
    value_net = reward_model(tiny.config)
    one, other = (at_responses(value_net.values(batch["idx"]), batch["prompt_lengths"], batch["mask"]) for batch in
                  (ppo.batch_of([[1, 2]], [response], 63, "cpu") for response in ([7, 8, 62], [7, 9, 62])))
    assert torch.equal(one[:, :2], other[:, :2]) and one[0, 2] != other[0, 2]


def test_the_mask_comes_from_lengths_and_not_from_ids():
    """Even if <|pad|> stood in a response, it would be a response token."""
    assert ppo.batch_of([[1]], [[63, 62]], 63, "cpu")["mask"].tolist() == [[1, 1]]


# ---------------------------------------------------------------- step 3: a rollout and an update

ROWS = [{"prompt": tasks.prompt(task), "task": task} for task in [
    {"use_case": "open_qa", "kind": "fact", "animal": "fox", "attribute": "food", "phrasing": 0},
    {"use_case": "other", "kind": "echo", "word": "hat", "n": 3, "phrasing": 1},
    {"use_case": "chat", "kind": "mood", "person": "Ann", "feeling": "sad", "phrasing": 2}] * 8]


@dataclass
class Players:
    """All that takes part in PPO, tiny."""
    policy: GPT
    reference: GPT
    value_net: RewardModel
    reward_model: object
    config: ppo.Config

    def rollout(self, seed=0, rows=ROWS):
        return ppo.rollout(rows, self.policy, self.reference, self.value_net, self.reward_model, self.config, torch.Generator().manual_seed(seed))

    def sgd(self):
        return [torch.optim.SGD(net.parameters(), lr=1.0) for net in (self.policy, self.value_net)]


@pytest.fixture
def players(encoding, tmp_path):
    """The policy was saved with dropout, as the SFT models are: loaded again it must not drop anything."""
    torch.manual_seed(0)
    config = GPTConfig(encoding.n_vocab, 80, 1, 2, 16, dropout=0.2)
    save_checkpoint(tmp_path / "sft_mix.pt", GPT(config))
    policy = load_model(tmp_path / "sft_mix.pt")
    config = GPTConfig(encoding.n_vocab, 80, 1, 2, 16)
    return Players(policy, copy.deepcopy(policy), reward_model(config), reward_model(config), ppo.Config())


def test_on_the_first_minibatch_the_ratio_is_1_and_the_kl_is_0(players):
    batch = players.rollout()
    assert batch["stats"]["kl"] == pytest.approx(0, abs=1e-5) and batch["stats"]["kl_k3"] == pytest.approx(0, abs=1e-5)
    metrics = ppo.update(batch, torch.arange(8), players.policy, players.value_net, players.sgd(), players.config)
    assert metrics["ratio"] == pytest.approx(1, abs=1e-5) and metrics["clip_fraction"] == 0 and metrics["approx_kl"] == pytest.approx(0, abs=1e-6)
    metrics = ppo.update(batch, torch.arange(8), players.policy, players.value_net, players.sgd(), players.config)
    assert metrics["ratio"] > 1 + 1e-5                                  # the first step has moved the policy
    assert players.rollout()["stats"]["kl_k3"] > 1e-6


def test_what_a_rollout_returns_fits_together(players):
    """Rewards sum to the reward model's score; a response that never ended pays for it; returns precede whitening."""
    batch, config = players.rollout(), players.config
    starts = batch["prompt_lengths"]
    lengths = starts + batch["mask"].sum(1).long()
    ended = torch.tensor([float(answer["ended"]) for answer in batch["answers"]])
    with torch.no_grad():
        scores = players.reward_model(batch["idx"], lengths) - config.missing_eos_penalty * (1 - ended)
        values = at_responses(players.value_net.values(batch["idx"]), starts, batch["mask"])
    assert torch.allclose(batch["scores"], scores) and torch.allclose(batch["rewards"].sum(1), scores, atol=1e-4)
    assert torch.allclose(batch["values"], values) and torch.allclose(batch["returns"], batch["raw_advantages"] + values, atol=1e-5)
    assert torch.allclose(batch["advantages"], whiten(batch["raw_advantages"], batch["mask"]))
    assert not any(t.requires_grad for t in batch.values() if torch.is_tensor(t))


def test_the_gradient_of_ppo_ptx_is_the_sum_of_its_parts(players):
    """Equation 2: grad(PPO) + gamma * grad(pretraining loss), in one step of one optimiser."""
    players.config.gamma_ptx, documents = 0.5, [[1022, 5, 6, 7, 1022], [1022, 8, 9, 1022]]
    batch, before = players.rollout(), copy.deepcopy(players.policy.state_dict())

    def gradient(documents):
        """The step of an SGD with learning rate 1, clipping of its norm undone."""
        players.policy.load_state_dict(before)
        norm = ppo.update(batch, torch.arange(8), players.policy, players.value_net, players.sgd(), players.config, documents)["grad_norm"]
        return [(before[name] - p.detach()) * max(1.0, norm) for name, p in players.policy.named_parameters()]

    both, alone = gradient(documents), gradient(None)
    players.policy.load_state_dict(before)
    ptx = torch.autograd.grad(corpus_loss(players.policy, documents), list(players.policy.parameters()))
    for name, b, a, p in zip(before, both, alone, ptx):
        assert torch.allclose(b, a + 0.5 * p, atol=1e-4), name
    assert max(a.abs().max() for a in alone) > 0.01 and max(p.abs().max() for p in ptx) > 0.01


def lower_half(idx, lengths):
    """idx (B, T), lengths (B,) -> (B,): the share of a sequence's tokens that are below 512."""
    return ((idx < 512) & (torch.arange(idx.shape[1]) < lengths[:, None])).sum(1) / lengths


def test_ppo_climbs_a_reward_that_it_can_earn(players):
    """The reward: the share of tokens from the lower half of the vocabulary. The reference stays, so the KL grows."""
    players.reward_model = lower_half
    players.value_net, players.config = RewardModel(players.value_net.config), ppo.Config(beta=0.0, missing_eos_penalty=0.0)
    optimizers = [torch.optim.Adam(net.parameters(), lr=0.02) for net in (players.policy, players.value_net)]
    history = []
    for iteration in range(12):
        batch = players.rollout(iteration, ROWS * 4)
        history.append(batch["stats"])
        ppo.update(batch, torch.arange(len(ROWS) * 4), players.policy, players.value_net, optimizers, players.config)
    assert sum(h["score"] for h in history[-3:]) / 3 > sum(h["score"] for h in history[:3]) / 3 + 0.03
    assert history[0]["kl"] == pytest.approx(0, abs=1e-5) and history[-1]["kl"] > 0.1


def test_a_large_beta_pins_the_policy(players):
    """The same reward; the policy has left its reference before, and comes back to it."""
    players.reward_model = lower_half
    players.value_net, players.config = RewardModel(players.value_net.config), ppo.Config(beta=10.0, missing_eos_penalty=0.0)
    with torch.no_grad():
        for p in players.policy.parameters():
            p += 0.05 * torch.randn_like(p)
    optimizers = [torch.optim.Adam(net.parameters(), lr=0.005) for net in (players.policy, players.value_net)]
    kl = []
    for iteration in range(12):
        batch = players.rollout(iteration, ROWS * 4)
        kl.append(batch["stats"]["kl_k3"])
        ppo.update(batch, torch.arange(len(ROWS) * 4), players.policy, players.value_net, optimizers, players.config)
    assert kl[0] > 0.1 and sum(kl[-3:]) / 3 < 0.5 * kl[0]


def test_the_penalty_is_measured_against_the_reference(players):
    """Neither the policy nor its older self: the SFT model, whose every parameter differs here."""
    with torch.no_grad():
        for p in players.reference.parameters():
            p += 0.05 * torch.randn_like(p)
        batch = players.rollout()
        reference = at_responses(logprobs(players.reference, batch["idx"]), batch["prompt_lengths"], batch["mask"])
    penalty = players.config.beta * ((batch["logprobs"] - reference) * batch["mask"]).sum(1)
    assert torch.allclose(batch["rewards"].sum(1), batch["scores"] - penalty, atol=1e-4) and penalty.abs().max() > 0.01


def test_what_stands_behind_a_response_moves_nothing(players):
    """Other tokens in the padding, and the same episodes without their neighbours: the same losses."""
    batch = players.rollout()
    lengths = batch["prompt_lengths"] + batch["mask"].sum(1).long()
    behind = torch.arange(batch["idx"].shape[1]) >= lengths[:, None]
    assert behind.any()
    rubbish = {**batch, "idx": torch.where(behind, 7, batch["idx"])}
    short = torch.tensor(sorted(range(len(lengths)), key=lengths.__getitem__)[:4])
    width, R = int(lengths[short].max()), int(batch["mask"][short].sum(1).max())
    alone = {k: v[short][:, :width] if k == "idx" else v[short][:, :R] if v.dim() == 2 else v[short] for k, v in batch.items() if torch.is_tensor(v)}
    start = [copy.deepcopy(net.state_dict()) for net in (players.policy, players.value_net)]

    def losses(batch, rows):
        for net, state in zip((players.policy, players.value_net), start):
            net.load_state_dict(state)
        metrics = [ppo.update(batch, rows, players.policy, players.value_net, players.sgd(), players.config) for _ in range(2)]
        return [m[k] for m in metrics for k in ("policy_loss", "value_loss", "approx_kl", "grad_norm")]

    expected = losses(batch, short)
    assert losses(rubbish, short) == pytest.approx(expected, abs=1e-4) and losses(alone, torch.arange(4)) == pytest.approx(expected, abs=1e-4)


def test_a_step_is_the_same_in_however_many_parts_it_is_worked_out(players, monkeypatch):
    batch, start = players.rollout(), [copy.deepcopy(net.state_dict()) for net in (players.policy, players.value_net)]
    assert len(set(batch["mask"].sum(1).tolist())) > 1                  # or every part would have the same share of the tokens

    def step(at_once):
        monkeypatch.setattr(ppo, "MICRO_BATCH", at_once)
        for net, state in zip((players.policy, players.value_net), start):
            net.load_state_dict(state)
        metrics = [ppo.update(batch, torch.arange(8), players.policy, players.value_net, players.sgd(), players.config) for _ in range(2)]
        return metrics[1], [p.detach().clone() for net in (players.policy, players.value_net) for p in net.parameters()]

    (metrics, whole), (metrics_of_parts, parts) = step(8), step(3)
    assert metrics_of_parts == pytest.approx(metrics, abs=1e-4)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(whole, parts))


def test_a_step_is_clipped_and_leaves_no_gradient_behind(players):
    players.config.gamma_ptx, before = 1e4, [p.detach().clone() for p in players.policy.parameters()]
    metrics = ppo.update(players.rollout(), torch.arange(8), players.policy, players.value_net, players.sgd(), players.config, [[1022, 5, 6, 7, 1022]])
    step = sum(((p.detach() - old) ** 2).sum() for p, old in zip(players.policy.parameters(), before)).sqrt().item()
    assert metrics["grad_norm"] > 10 and step == pytest.approx(1, abs=1e-3)
    assert all(p.grad is None for net in (players.policy, players.value_net) for p in net.parameters())


def test_the_gradient_of_the_whole_objective_is_its_slope(players):
    """float64, central differences along a random direction: policy loss + gamma * pretraining loss, away from ratio 1."""
    batch, config, documents = players.rollout(), players.config, [[1022, 5, 6, 7, 1022], [1022, 8, 9, 1022]]
    policy = players.policy.double()
    batch = {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in batch.items()}

    def objective():
        logp = at_responses(logprobs(policy, batch["idx"]), batch["prompt_lengths"], batch["mask"])
        return policy_loss(logp, batch["logprobs"], batch["advantages"], batch["mask"], config.clip_range)[0] + config.gamma_ptx * corpus_loss(policy, documents)

    torch.manual_seed(0)
    direction = [torch.randn_like(p) for p in policy.parameters()]
    with torch.no_grad():
        for p, d in zip(policy.parameters(), direction):
            p += 1e-3 * d
    slope = sum((g * d).sum() for g, d in zip(torch.autograd.grad(objective(), list(policy.parameters())), direction)).item()

    def moved(by):
        with torch.no_grad():
            for p, d in zip(policy.parameters(), direction):
                p += by * d
            value = objective().item()
            for p, d in zip(policy.parameters(), direction):
                p -= by * d
        return value

    assert (moved(1e-6) - moved(-1e-6)) / 2e-6 == pytest.approx(slope, rel=1e-5) and abs(slope) > 0.1


def test_no_side_of_a_comparison_has_an_advantage():
    """A labeler who always prefers what stands first makes everybody equal."""
    class First:
        def prefer(self, task, a, b):
            return 1
    responses = [{"text": "", "ended": True}] * 2_000
    mean, low, high = labeler.preference([{"task": {}}] * 2_000, responses, responses, random.Random(0), [First()] * 5)
    assert mean == pytest.approx(0.5, abs=0.03) and low < 0.5 < high
