"""Parity: the same numbers from libraries that nobody here wrote, in float64.

Needs transformers, torchrl and trl 1.12.0 (the last with PPO), none of which the scripts use; CI installs them, and where one is
missing its tests are skipped:   pip install transformers==5.24.0 torchrl==0.14.1 trl==1.12.0
"""
import copy
import inspect
import random
import textwrap

import pytest
import torch

import ppo
from data import tasks, tokenizer
from model import GPT, GPTConfig, corpus_loss, generate, logprobs, pad_batch
from ppo import gae, policy_loss, value_loss
from reward import RewardModel


def random_weights(model):
    """Every weight moved at random, biases and norms too, in float64: no term can hide behind a zero."""
    torch.manual_seed(0)
    for p in model.parameters():
        p.data += 0.2 * torch.randn_like(p)
    return model.double().eval()


@pytest.fixture
def small():
    """A language model and a reward model of 64 tokens; <|endoftext|> is 62, <|pad|> is 63."""
    config = GPTConfig(vocab_size=64, block_size=48, n_layer=2, n_head=2, n_embd=16)
    return random_weights(GPT(config)), random_weights(RewardModel(config))


@pytest.fixture
def ragged():
    """Tokens of 6 responses of 1 to 7 tokens: mask (6, 7) and a maker of random (6, 7) tensors."""
    torch.manual_seed(1)
    lengths = torch.tensor([7, 1, 4, 2, 7, 5])
    return (torch.arange(7) < lengths[:, None]).double(), lambda: torch.randn(6, 7, dtype=torch.double)


# ---------------------------------------------------------------- transformers

TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")      # GPT-2 stores these the other way round


def renamed(state):
    """Our weights (or gradients) under the same names in the shapes of transformers."""
    return {name: t.T if name.endswith(TRANSPOSED) else t for name, t in state.items() if name != "bias"}


def twin(model):
    """GPT2LMHeadModel or GPT2ForSequenceClassification with the weights of our model."""
    transformers = pytest.importorskip("transformers")
    c = model.config
    config = transformers.GPT2Config(vocab_size=c.vocab_size, n_positions=c.block_size, n_embd=c.n_embd, n_layer=c.n_layer, n_head=c.n_head,
                                     resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=c.eos_id, eos_token_id=c.eos_id, pad_token_id=c.pad_id, num_labels=1)
    other = (transformers.GPT2LMHeadModel if isinstance(model, GPT) else transformers.GPT2ForSequenceClassification)(config).double().eval()
    missing, unexpected = other.load_state_dict(renamed(model.state_dict()), strict=False)
    assert not missing and not unexpected, "the parameter names are GPT-2's"
    return other


@torch.no_grad()
def test_logits_are_those_of_gpt_2(small):
    idx = torch.randint(62, (3, 48))
    assert torch.allclose(small[0](idx), twin(small[0])(idx).logits, rtol=0, atol=1e-12)


def test_the_pretraining_loss_and_its_gradient_are_those_of_gpt_2(small):
    ours, other, documents = small[0], twin(small[0]), [[62, 5, 9, 11, 62], [62, 7, 62], list(range(40))]
    idx, lengths = pad_batch(documents, 63)
    labels = idx.masked_fill(torch.arange(idx.shape[1]) >= lengths[:, None], -100)
    theirs = torch.nn.functional.cross_entropy(other(idx).logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())   # its own goes through float32
    mine = corpus_loss(ours, documents)
    theirs.backward(), mine.backward()
    assert mine.item() == pytest.approx(theirs.item(), abs=1e-12)
    gradients = renamed({name: p.grad for name, p in ours.named_parameters()})
    for name, p in other.named_parameters():
        assert torch.allclose(gradients[name], p.grad, rtol=0, atol=1e-12), name


@torch.no_grad()
def test_greedy_answers_to_unequal_prompts_are_those_of_gpt_2(small):
    """Left padding, positions, key-value cache, all at once: 20 prompts of 1 to 20 tokens, 25 tokens each."""
    torch.manual_seed(2)
    prompts = [torch.randint(62, (n,)).tolist() for n in range(1, 21)]
    width = max(map(len, prompts))
    idx = torch.tensor([[63] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    theirs = twin(small[0]).generate(input_ids=idx, attention_mask=mask, do_sample=False, max_new_tokens=25, suppress_tokens=[63])[:, width:].tolist()
    ours = generate(small[0], prompts, 25, temperature=0)
    assert ours == [row[:len(mine)] for row, mine in zip(theirs, ours)] and len({tuple(r) for r in ours}) > 10
    assert all(token == 63 for row, mine in zip(theirs, ours) for token in row[len(mine):])


@torch.no_grad()
def test_scores_are_those_of_gpt_2_for_sequence_classification(small):
    torch.manual_seed(3)
    idx, lengths = pad_batch([torch.randint(62, (n,)).tolist() for n in (1, 5, 48, 20)], 63)
    theirs = twin(small[1])(idx, attention_mask=(torch.arange(48) < lengths[:, None]).long()).logits[:, 0]
    assert torch.allclose(small[1](idx, lengths), theirs, rtol=0, atol=1e-12)


# ---------------------------------------------------------------- torch.distributions


@torch.no_grad()
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_logprobs_are_those_of_a_categorical_distribution(small, temperature):
    idx = torch.randint(63, (4, 30))
    categorical = torch.distributions.Categorical(logits=small[0](idx[:, :-1])[..., :63] / temperature)    # pad is no outcome
    assert torch.allclose(logprobs(small[0], idx, temperature), categorical.log_prob(idx[:, 1:]), rtol=0, atol=1e-12)


# ---------------------------------------------------------------- torchrl


@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 0.5), (1.0, 0.0), (1.0, 1.0)])
def test_advantages_are_those_of_torchrl(ragged, gamma, lam):
    functional = pytest.importorskip("torchrl.objectives.value.functional")
    mask, noise = ragged
    rewards, values = noise() * mask, noise() * mask
    following = torch.cat([values[:, 1:], torch.zeros(6, 1)], dim=1)
    done = (mask.cumsum(1) == mask.sum(1, keepdim=True)) & (mask > 0)               # the last response token
    theirs, targets = functional.generalized_advantage_estimate(
        *torch.tensor([gamma, lam], dtype=torch.double), *(x[..., None] for x in (values, following, rewards, done)), terminated=done[..., None])
    ours, returns = gae(rewards, values, mask, gamma, lam)
    assert torch.allclose(ours, theirs[..., 0] * mask, rtol=0, atol=1e-12) and torch.allclose(returns, targets[..., 0] * mask, rtol=0, atol=1e-12)


def test_clipped_losses_and_their_gradients_are_those_of_torchrl(ragged):
    """ClipPPOLoss on the response tokens of a ragged batch, one after the other; a table of logits is the policy."""
    objectives, modules = pytest.importorskip("torchrl.objectives"), pytest.importorskip("torchrl.modules")
    tensordict, nn = pytest.importorskip("tensordict"), pytest.importorskip("tensordict.nn")
    mask, noise = ragged
    n = int(mask.sum())
    logits, values = torch.randn(n, 11, dtype=torch.double, requires_grad=True), torch.randn(n, dtype=torch.double, requires_grad=True)
    actions, old_values, advantages, returns = torch.randint(11, (n,)), noise()[mask > 0], noise()[mask > 0], noise()[mask > 0]
    old = (logits.log_softmax(-1).gather(1, actions[:, None])[:, 0] + 0.4 * torch.randn(n, dtype=torch.double)).detach()

    class Table(torch.nn.Module):
        def __init__(self, rows):
            super().__init__()
            self.rows = torch.nn.Parameter(rows.detach().clone())

        def forward(self, _):
            return self.rows

    actor = modules.ProbabilisticActor(nn.TensorDictModule(Table(logits), ["observation"], ["logits"]), in_keys=["logits"],
                                       distribution_class=torch.distributions.Categorical, return_log_prob=True)
    critic = modules.ValueOperator(Table(values[:, None]), in_keys=["observation"])
    loss = objectives.ClipPPOLoss(actor, critic, clip_epsilon=0.2, entropy_bonus=False, critic_coeff=0.5, loss_critic_type="l2", clip_value=0.2)
    batch = tensordict.TensorDict({"observation": torch.zeros(n, 1), "action": actions, "action_log_prob": old, "advantage": advantages[:, None],
                                   "value_target": returns[:, None], "state_value": old_values[:, None]}, [n])
    theirs = loss(batch)
    (theirs["loss_objective"] + theirs["loss_critic"]).backward()

    def spread(x):
        return torch.zeros_like(mask).masked_scatter(mask > 0, x)                   # (tokens,) -> (6, 7)

    logp = logits.log_softmax(-1).gather(1, actions[:, None])[:, 0]
    mine, clipped = policy_loss(spread(logp), spread(old), spread(advantages), mask, 0.2)
    v_loss = value_loss(spread(values), spread(old_values), spread(returns), mask, 0.2)
    (mine + v_loss).backward()
    assert mine.item() == pytest.approx(theirs["loss_objective"].item(), abs=1e-6) and 0.1 < clipped < 0.9
    assert v_loss.item() == pytest.approx(theirs["loss_critic"].item(), abs=1e-6)       # torchrl keeps its clipping range in float32
    gradients = {name.rsplit(".", 1)[0]: p.grad for name, p in loss.named_parameters() if p.grad is not None}
    policy_gradient, value_gradient = (next(g for g in gradients.values() if g.shape == shape) for shape in (logits.shape, (n, 1)))
    assert torch.allclose(logits.grad, policy_gradient, rtol=1e-6, atol=1e-9)
    assert torch.allclose(values.grad, value_gradient[:, 0], rtol=1e-6, atol=1e-9)


# ---------------------------------------------------------------- trl: a whole update

# Where trl's conventions differ from ours, trl is switched: (ours, its line, the line instead).
SWITCHES = [("the score is paid on the last token, not behind it", "sequence_lengths_p1 = sequence_lengths + 1", "sequence_lengths_p1 = sequence_lengths"),
            ("whitening divides by n, not n - 1", "masked_whiten(advantages, ~padding_mask)", "whiten_by_n(advantages, (~padding_mask))"),
            ("<|pad|> cannot be sampled", "selective_log_softmax(", "log_softmax_without_pad(")]


class Recorder(torch.optim.SGD):
    """Plain gradient descent that keeps every gradient it was given."""

    def step(self, closure=None):
        self.gradients = getattr(self, "gradients", []) + [[p.grad.clone() for group in self.param_groups for p in group["params"]]]
        return super().step(closure)


def switched_train(trainer_module):
    """PPOTrainer.train with the SWITCHES thrown; everything else in it is trl's own."""
    source = textwrap.dedent(inspect.getsource(trainer_module.PPOTrainer.train))
    for ours, line, instead in SWITCHES:
        assert line in source, f"trl has changed; no place for: {ours}"
        source = source.replace(line, instead)

    def whiten_by_n(x, mask):
        kept = x[mask]
        return torch.where(mask, (x - kept.mean()) / (kept.var(unbiased=False) + 1e-8).sqrt(), 0.0)

    def log_softmax_without_pad(logits, index):
        pad = torch.zeros(logits.shape[-1], dtype=torch.bool).index_fill(0, torch.tensor(logits.shape[-1] - 1), True)
        return logits.masked_fill(pad, -torch.inf).log_softmax(-1).gather(-1, index[..., None])[..., 0]

    space = dict(vars(trainer_module), whiten_by_n=whiten_by_n, log_softmax_without_pad=log_softmax_without_pad)
    exec(compile(source, "trl, switched", "exec"), space)
    return space["train"]


def trl_update(policy, reference, value_net, reward_model, prompts, responses, config, lr, epochs, folder, monkeypatch):
    """The same episodes through trl's PPOTrainer: (policy, value model, recorder)."""
    module = pytest.importorskip("trl.experimental.ppo.ppo_trainer")
    transformers, tokenizers, datasets = (pytest.importorskip(name) for name in ("transformers", "tokenizers", "datasets"))
    end, pad, n = policy.config.eos_id, policy.config.pad_id, len(prompts)
    words = {f"t{i}": i for i in range(end)} | {"<|endoftext|>": end, "<|pad|>": pad}
    words = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "t0")),
                                                 eos_token="<|endoftext|>", pad_token="<|pad|>", unk_token="t0", padding_side="left")
    width, longest = max(map(len, prompts)), max(map(len, responses))
    queries = torch.tensor([[pad] * (width - len(p)) + p for p in prompts])
    whole = torch.cat([queries, torch.tensor([r + [pad] * (longest - len(r)) for r in responses])], dim=1)
    monkeypatch.setattr(module, "batch_generation", lambda model, *_: (whole, module.forward(model, whole, pad).logits[:, width - 1:-1]))
    monkeypatch.setattr(module.PPOTrainer, "train", switched_train(module))
    models = twin(policy), twin(reference), twin(reward_model), twin(value_net)
    recorder = Recorder([p for m in (models[0], models[3]) for p in m.parameters()], lr=lr)
    from trl.experimental.ppo import PPOConfig
    args = PPOConfig(output_dir=str(folder), use_cpu=True, bf16=False, report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True,
                     per_device_train_batch_size=n, gradient_accumulation_steps=1, num_mini_batches=1, num_ppo_epochs=epochs, total_episodes=n,
                     local_rollout_forward_batch_size=n, num_sample_generations=0, response_length=longest, temperature=1 - 1e-7, stop_token="eos",
                     missing_eos_penalty=config.missing_eos_penalty, kl_coef=config.beta, kl_estimator="k1", cliprange=config.clip_range, cliprange_value=config.clip_range,
                     vf_coef=1.0, gamma=1.0, lam=config.lam, whiten_rewards=False, gradient_checkpointing=False)
    trainer = module.PPOTrainer(args=args, processing_class=words, model=models[0], ref_model=models[1], reward_model=models[2], value_model=models[3],
                                train_dataset=datasets.Dataset.from_dict({"input_ids": prompts}), data_collator=lambda _: {"input_ids": queries},
                                eval_dataset=datasets.Dataset.from_dict({"input_ids": prompts}),
                                optimizers=(recorder, torch.optim.lr_scheduler.LambdaLR(recorder, lambda _: 1.0)))
    trainer.train()
    return models[0], models[3], recorder


def relative(a, b):
    """The largest difference between two lists of tensors, against the largest entry of the second."""
    return max((x - y).abs().max().item() for x, y in zip(a, b)) / max(y.abs().max().item() for y in b)


def test_a_whole_ppo_update_is_that_of_trl(encoding, tmp_path, monkeypatch):
    """Rollout, rewards, GAE, whitening, two inner epochs of clipped losses, on the same tokens: every gradient and every weight.

    Ours is told to leave gradients unclipped, as trl's loop does. Some responses end, some do not, lengths differ."""
    config = ppo.Config(rollout_size=8, minibatch_size=8)
    shape = GPTConfig(encoding.n_vocab, 80, 2, 2, 16)
    policy, value_net, reward_model = random_weights(GPT(shape)), random_weights(RewardModel(shape)), random_weights(RewardModel(shape))
    reference = copy.deepcopy(policy)
    for p in (*value_net.parameters(), *reference.parameters()):
        p.data += 0.05 * torch.randn_like(p)                # as in the middle of a run: not the reward model, not the policy
    rows = [{"prompt": tasks.prompt(task), "task": task} for task in (tasks.new_task(random.Random(i)) for i in range(8))]
    prompts = [tokenizer.prompt_ids(encoding, row["prompt"]) for row in rows]
    responses = generate(policy, prompts, 14, generator=torch.Generator().manual_seed(0))
    words = [[token for token in r if token != encoding.eot_token] for r in responses]
    responses = [r[:4 + i] + [encoding.eot_token] if i % 3 else r for i, r in enumerate(words)]
    theirs, their_values, recorder = trl_update(policy, reference, value_net, reward_model, prompts, responses, config, 0.3, 2, tmp_path, monkeypatch)

    start = {net: [p.detach().clone() for p in net.parameters()] for net in (policy, value_net)}
    monkeypatch.setattr(ppo, "generate", lambda *_: responses)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda parameters, _: torch.zeros(()))
    batch = ppo.rollout(rows, policy, reference, value_net, reward_model, config, None)
    optimizers = [Recorder(net.parameters(), lr=0.3) for net in (policy, value_net)]
    metrics = [ppo.update(batch, torch.arange(8), policy, value_net, optimizers, config) for _ in range(2)]
    assert metrics[1]["clip_fraction"] > 0, "the second inner epoch clips something"
    for epoch, theirs_now in enumerate(recorder.gradients):
        names = [name for net in (policy, value_net) for name, _ in net.named_parameters()]
        mine = [g.T if name.endswith(TRANSPOSED) else g for name, g in zip(names, [g for o in optimizers for g in o.gradients[epoch]])]
        assert relative(mine, theirs_now) < 1e-6, f"inner epoch {epoch}"
    for net, other in ((policy, theirs), (value_net, their_values)):
        moved = renamed({name: p.detach() - old for (name, p), old in zip(net.named_parameters(), start[net])})
        origin = renamed({name: old for (name, _), old in zip(net.named_parameters(), start[net])})
        assert relative([moved[n] for n, _ in other.named_parameters()], [p.detach() - origin[n] for n, p in other.named_parameters()]) < 1e-4
