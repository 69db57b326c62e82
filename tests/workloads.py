"""What tests/benchmark.py measures: the same work, done by us, by transformers and by trl.

Each function here prepares everything and returns functions without arguments to be timed. Both
sides start from the same weights, in float32. A library gets its faster way where it has one: no
gradient checkpointing, no bfloat16 (slow on CPUs), no attention mask and no cache in a training
step.
"""
import contextlib
import copy
import importlib
import io
import os
import random
import warnings
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch

import ppo
import reward
from data import files, prepare, tokenizer
from data.training import corpus_batches, muon_and_adam
from model import GPT, GPTConfig, corpus_loss, generate, left_pad, load_model, pad_batch

CHECKPOINTS = Path(__file__).parent.parent / "notebooks" / "checkpoints"
HINT = "pip install transformers==5.24.0 trl==1.12.0"


def optional(name):
    """Import a library that the scripts do not need, without its warnings."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        library = importlib.import_module(name)
    except ImportError as error:
        raise files.UserError(f"{name} cannot be imported ({error}): {HINT}") from None
    if name == "transformers":
        library.logging.set_verbosity_error()
    return library


def twin(model):
    """The model of transformers with our weights. test_parity.py proves the two equal."""
    optional("transformers")
    from tests import test_parity
    return test_parity.twin(model).float()


# ---------------------------------------------------------------- PPO


def networks():
    """Policy, reference, value network and reward model, as at the start of PPO."""
    policy = load_model(CHECKPOINTS / "sft_mix.pt")
    reward_model = reward.load_reward_model(CHECKPOINTS / "reward.pt")
    return policy, copy.deepcopy(policy), copy.deepcopy(reward_model), reward_model


def our_ppo(rows):
    """Return (rollout, update), the two halves of an iteration of `ppo.train_policy`.

    The learning rate is so small that the policy keeps writing responses of the same length."""
    policy, reference, value_net, reward_model = networks()
    config = ppo.Config(rollout_size=len(rows), minibatch_size=len(rows) // 4)
    optimizers = ppo.make_optimizers(policy, value_net, config)
    for group in [*optimizers[0].param_groups, *optimizers[1].param_groups]:
        group["lr"] = 1e-9
    generator = torch.Generator().manual_seed(0)

    def rollout():
        return ppo.rollout(rows, policy, reference, value_net, reward_model, config, generator)

    def update(batch):
        order = torch.randperm(len(rows), generator=generator)          # (B,)
        for episodes in order.split(config.minibatch_size):
            ppo.update(batch, episodes, policy, value_net, optimizers, config)

    return rollout, update


def our_iteration(rows):
    """Return a function that runs one iteration of PPO on these prompts."""
    rollout, update = our_ppo(rows)
    return lambda: update(rollout())


def trl_iteration(rows, folder):
    """Return a function that runs one iteration of trl's PPOTrainer on the same prompts.

    A minibatch is one micro-batch. trl steps once per gradient_accumulation_steps, so smaller
    micro-batches would mean one optimiser step per rollout instead of four."""
    library = optional("trl.experimental.ppo")
    policy, reference, value_net, reward_model = map(twin, networks())
    ids = SimpleNamespace(eos_token_id=policy.config.eos_token_id,
                          pad_token_id=policy.config.pad_token_id)
    prompts = tokenizer.encode_prompts(tokenizer.load_cached(), rows)
    queries, _ = left_pad(prompts, ids.pad_token_id, "cpu")             # (B, T)
    ours = ppo.Config()
    args = library.PPOConfig(
        output_dir=folder, use_cpu=True, bf16=False, gradient_checkpointing=False,
        report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True,
        total_episodes=len(rows), per_device_train_batch_size=len(rows), num_mini_batches=4,
        gradient_accumulation_steps=1, local_rollout_forward_batch_size=ppo.MICRO_BATCH,
        num_ppo_epochs=ours.ppo_epochs, num_sample_generations=0, temperature=1.0,
        response_length=ppo.MAX_NEW_TOKENS, stop_token="eos", kl_coef=ours.beta,
        missing_eos_penalty=ours.missing_eos_penalty, cliprange=ours.clip_range,
        cliprange_value=ours.clip_range, vf_coef=1.0, gamma=1.0, lam=ours.lam,
        learning_rate=1e-9, lr_scheduler_type="constant")
    trainer = library.PPOTrainer(
        args=args, processing_class=ids, model=policy, ref_model=reference,
        reward_model=reward_model, value_model=value_net, train_dataset=prompts,
        eval_dataset=prompts, data_collator=lambda _: {"input_ids": queries})

    def iteration():
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.train()

    return iteration


def rollout_of(rows, policy, limit):
    """Return a function that makes a rollout of at most `limit` tokens per response."""
    _, reference, value_net, reward_model = networks()

    def work():
        with mock.patch.object(ppo, "MAX_NEW_TOKENS", limit):
            ppo.rollout(rows, policy, reference, value_net, reward_model, ppo.Config(), None)

    return work


# ---------------------------------------------------------------- training steps


def read_batches(n):
    """The first n batches of pretraining, from a part of the corpus: lists of documents."""
    encoding = tokenizer.load_cached()
    texts = [tokenizer.spaced(text) for text in prepare.corpus_texts()[:4_000]]
    end = [encoding.eot_token]
    documents = []
    for ids in map(encoding.encode_ordinary, texts):
        documents.append((end + ids + end)[:GPTConfig.block_size])
    batches = corpus_batches(documents, 2_048, random.Random(0))
    return [next(batches) for _ in range(n)]


def transformers_loss(model, documents):
    """The loss that transformers computes where ours is `corpus_loss`."""
    idx, lengths = pad_batch(documents, model.config.pad_token_id)      # (B, T), (B,)
    is_pad = torch.arange(idx.shape[1]) >= lengths[:, None]             # (B, T)
    labels = idx.masked_fill(is_pad, -100)                              # (B, T)
    return model(input_ids=idx, labels=labels, use_cache=False).loss


def training(loss_of, model, optimizers, batches):
    """Return a function that takes one step per batch and returns the losses."""
    def steps():
        losses = []
        for documents in batches:
            loss = loss_of(model, documents)                            # scalar
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.item())
        return losses

    return steps


def adamw_steps(width, batches):
    """Two functions that train equal models with AdamW, ours and that of transformers."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_embd=width))
    works = []
    for loss_of, network in ((corpus_loss, model), (transformers_loss, twin(model).train())):
        adam = torch.optim.AdamW(network.parameters(), lr=1e-3, betas=(0.9, 0.95),
                                 weight_decay=0.1, fused=True)
        works.append(training(loss_of, network, [adam], batches))
    return works


def pretraining_steps(width, batches):
    """Return a function that takes the steps of model.py, with Muon and Adam."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_embd=width))
    pairs = muon_and_adam(model, 0.007, 4e-3, decay=0.1)
    optimizers = [optimizer for optimizer, _ in pairs]
    return training(corpus_loss, model, optimizers, batches)


def reward_step(k):
    """Return a function that takes one step of `reward.fit` on 8 prompts with k responses each."""
    encoding = tokenizer.load_cached()
    model = reward.from_language_model(CHECKPOINTS / "gpt.pt", "cpu")
    optimizers = muon_and_adam(model, 0.0045, 2e-3)
    lines = files.read_jsonl(files.FOLDER / "demonstrations.jsonl", prompt=str, completion=str)
    rankings = []
    for n in range(8):
        responses = []
        for line in lines[n * k:n * k + k]:     # answers to other prompts, but of usual length
            responses.append({"text": line["completion"], "ended": True})
        rankings.append({"prompt": lines[n]["prompt"], "responses": responses, "ranks": range(k)})

    def step():
        idx, positions, attn_mask, last, preferred = reward.ranking_batch(
            rankings, encoding, model.config.pad_id, "cpu")
        values = model.values(idx, positions=positions, attn_mask=attn_mask)        # (N, T)
        scores = values.gather(1, last)                                 # (N, K)
        reward.ranking_loss(scores, preferred).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, _ in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    return step


# ---------------------------------------------------------------- generation


def never_ending(policy):
    """A copy of the policy that hardly ever samples <|endoftext|>: its logit is lower by 30."""
    policy = copy.deepcopy(policy)
    with torch.no_grad():
        end = policy.lm_head.weight[policy.config.eos_id]               # (C,)
        policy.transformer.ln_f.bias -= 30 * end / end.square().sum()   # (C,)
    return policy


def generations(policy, prompts):
    """Two functions that sample a response to each prompt, ours and that of transformers."""
    other = twin(policy)
    settings = optional("transformers").GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=ppo.MAX_NEW_TOKENS,
        eos_token_id=policy.config.eos_id, pad_token_id=policy.config.pad_id)

    def ours():
        return generate(policy, prompts, ppo.MAX_NEW_TOKENS)

    def theirs():
        idx, not_pad = left_pad(prompts, policy.config.pad_id, "cpu")   # (B, T), (B, T)
        whole = other.generate(input_ids=idx, attention_mask=not_pad.long(),
                               generation_config=settings)              # (B, T + new)
        return whole[:, idx.shape[1]:].tolist()

    return ours, theirs
