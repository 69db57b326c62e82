"""Step 3. Reinforcement learning from human feedback: PPO against the reward model. Also the main command: `python ppo.py`.

    out/sft_mix.pt + out/reward.pt -> out/ppo.pt, out/ppo_ptx.pt, out/results.json, out/*.png

The environment is a bandit (section 3.5): one prompt, one response, one score from the reward model, episode over. The policy
maximises (equation 2)

    E_(x,y)~pi [ r(x, y) - beta log( pi(y|x) / pi_SFT(y|x) ) ]  +  gamma_ptx E_x~pretraining [ log pi(x) ]

pi_SFT is out/sft_mix.pt (C.3), not the baseline out/sft.pt. The first term is maximised by PPO (Schulman et al. 2017) with the KL
penalty paid token by token; the second mixes in gradients of the pretraining loss. gamma_ptx = 0 is "PPO"; with it, "PPO-ptx",
which the paper calls InstructGPT. The reward model's offset for a prompt is arbitrary: the value network takes it out.

In this file, top to bottom: the arithmetic, on one screen; a rollout; an update; the training loop; and below a rule the
evaluation, the pictures, and the order of the whole run: whatever has no output yet is made, in two rounds,

    model.py -> sft.py -> reward.py -> PPO -> reward.py again, with PPO's samples -> PPO and PPO-ptx -> evaluation.

Metrics in out/ppo*.jsonl, a line an iteration (means over its episodes, tokens or minibatches):
    score       reward model's, less missing_eos_penalty   gold           the judge's utility, which training never sees
    kl          k1, sum over tokens of log pi - log pi_SFT   kl_k3      the same by Schulman's k3, never negative
    reward      score - beta * kl             length, ended  tokens of a response, share that ended by itself
    entropy     mean of -log pi, nats a token ratio          1 + the largest |pi / pi_old - 1| in the first minibatch: 1
    clip_fraction, approx_kl                  share of clipped tokens; KL of the update itself
    policy_loss, value_loss, ptx_loss         the three losses      explained_variance   1 - error² of the values / variance of the returns
    grad_norm   of the policy, before clipping
"""
import copy
import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
from tqdm import tqdm

import model as pretraining
import reward as reward_stage
import sft as sft_stage
from data import corpus, files, labeler, prepare, tasks, tokenizer
from data import judge as gold_judge
from data.figures import (
    MODELS, peak_memory, plot_dashboard, plot_figures, plot_losses, side_by_side, table
)
from data.labeler import get_labelers
from data.files import (
    MetricLog, UserError, alone, check_standing, context_of, missing, require,
    save_checkpoint, settings_of, stage_extra
)
from data.flags import BaseConfig, run_script, set_up
from model import (
    corpus_batches, corpus_loss, generate, load_model, pad_batch, read_corpus, validation_loss
)
from reward import MAX_NEW_TOKENS, load_reward_model

# Settings that no policy's weights depend on by themselves
NOT_TRAINING = ("split", "iterations", "iterations_1")
MICRO_BATCH = 64                    # episodes that go through a network together: the more, the more padding and memory


@dataclass
class Config(BaseConfig):
    """Settings, the paper's value in brackets (C.4)."""
    iterations_1: int = 8       # rollouts and updates of the first round, whose policy only feeds round 2 of the reward model
    iterations: int = 40        # of the second round, 40,960 episodes (500: 256,000); with 30, gap closed 0.43, not 0.46 (seed 12)
    rollout_size: int = 1024    # episodes a rollout (512). Noise is what limits PPO here: with 256, gold utility 0.81, not 0.84 (seed 11)
    minibatch_size: int = 256   # episodes of an optimiser step (64); 128 and 512 reached the same gold utility (seed 12)
    ppo_epochs: int = 1         # passes over a rollout (1)
    beta: float = 0.15          # KL penalty (0.02; scores have another scale here). With 0.05 and an earlier RM gold fell as the score rose
    gamma_ptx: float = 0.4      # weight of the pretraining loss per token (27.8, normalised in a way the paper does not state)
    clip_range: float = 0.2     # PPO's clipping range (0.2); of the values, too [not stated]
    lam: float = 0.95           # GAE's lambda [not stated]; the discount is 1, as in the paper
    lr: float = 1e-3            # policy, constant after warm-up (swept, 2.55e-6 to 2.55e-5 for 1.3B)
    lr_norm: float = 0.03       # the same for the last layer norm, which scales all logits: how sure the policy is (see make_optimizers)
    value_lr: float = 1e-3      # value network (9e-6)
    missing_eos_penalty: float = 1.0    # taken off the score of a response that never ends [not stated]
    split: str = "eval"         # prompts of the evaluation: eval, or valid while developing


# ---------------------------------------------------------------- the arithmetic
# (B, R): B episodes, R response positions, padded on the right; mask is 1.0 on response tokens, <|endoftext|> included.


def token_rewards(scores, logprobs, ref_logprobs, mask, beta):
    """Equation 2's first term, spread over tokens: scores (B,), the rest (B, R) -> rewards (B, R).

    The KL penalty is paid where it arises; the score is paid on the last token of the response."""
    rewards = -beta * (logprobs - ref_logprobs) * mask                  # (B, R)
    last = mask.sum(1).long() - 1                                       # (B,)
    return rewards.scatter_add(1, last[:, None], scores[:, None])       # (B, R)


def gae(rewards, values, mask, gamma=1.0, lam=0.95):
    """Generalised advantage estimation (Schulman et al. 2016): rewards, values, mask (B, R) -> advantages, returns (B, R).

        delta_t = r_t + gamma V_(t+1) - V_t         A_t = delta_t + gamma lam A_(t+1)         return_t = A_t + V_t

    V_t is the value before token t is emitted; after the last token it is 0."""
    advantages, following, next_value = torch.zeros_like(rewards), 0.0, 0.0
    for t in reversed(range(rewards.shape[1])):
        m = mask[:, t]                                                  # (B,): past the end everything stays 0
        delta = rewards[:, t] + gamma * next_value - values[:, t]       # (B,)
        following = (delta + gamma * lam * following) * m               # (B,)
        next_value = values[:, t] * m                                   # (B,)
        advantages[:, t] = following
    return advantages, (advantages + values) * mask


def masked_mean(x, mask):
    """Mean over response tokens: (B, R), (B, R) -> scalar."""
    return (x * mask).sum() / mask.sum()


def whiten(x, mask):
    """Mean 0, variance 1 over response tokens; (B, R) -> (B, R). For advantages only: it would change a
    reward's sign. [not stated in the paper]"""
    centred = (x - masked_mean(x, mask)) * mask                         # (B, R)
    return centred / (masked_mean(centred ** 2, mask) + 1e-8).sqrt()


def policy_loss(logprobs, old_logprobs, advantages, mask, clip):
    """PPO's clipped objective (equation 7 of Schulman et al. 2017), all (B, R) -> (loss, share of tokens clipped).

        loss = mean_t max( -A_t ratio_t, -A_t clip(ratio_t, 1 - clip, 1 + clip) )         ratio = pi / pi_old

    The larger of the two losses counts: a step that has gone far enough in the good direction
    (ratio > 1 + clip with A > 0, ratio < 1 - clip with A < 0) gets no more gradient; one in the bad direction always does."""
    ratio = (logprobs - old_logprobs).exp()                             # (B, R)
    free = -advantages * ratio                                          # (B, R)
    clipped = -advantages * ratio.clamp(1 - clip, 1 + clip)             # (B, R)
    return masked_mean(torch.maximum(free, clipped), mask), masked_mean((clipped > free).float(), mask)


def value_loss(values, old_values, returns, mask, clip):
    """1/2 mean_t max( (V - return)^2, (V_old + clip(V - V_old, -clip, clip) - return)^2 ), all (B, R) -> scalar. [not stated in the paper]"""
    near = old_values + (values - old_values).clamp(-clip, clip)        # (B, R)
    return 0.5 * masked_mean(torch.maximum((values - returns) ** 2, (near - returns) ** 2), mask)


def kl_estimates(logprobs, ref_logprobs):
    """Two unbiased estimates of KL(pi || pi_ref) from pi's samples (Schulman 2020): (B, R) -> k1, k3 (B, R). k3 is never negative."""
    k1 = logprobs - ref_logprobs                                        # (B, R)
    return k1, (-k1).exp() - 1 + k1


# ---------------------------------------------------------------- rollout


def at_responses(x, prompt_lengths, mask):
    """Cuts the response out of x (B, T or T - 1): column prompt_length - 1 + t -> column t of (B, R); 0 past the end.

    One to the left of the token, because both things that are cut stand there: model.logprobs puts the log-probability of
    idx[:, c + 1] into column c, and the value before a token is what the network says having read all tokens before it."""
    columns = prompt_lengths[:, None] - 1 + torch.arange(mask.shape[1], device=x.device)        # (B, R)
    return torch.where(mask > 0, x.gather(1, columns.clamp(max=x.shape[1] - 1)), 0.0)           # (B, R)


def response_logprobs(model, batch):
    """Log-probabilities (B, R) of the response tokens, 0 past the end. batch: idx (B, T), lengths, prompt_lengths (B,), mask (B, R)."""
    columns = torch.arange(1, batch["idx"].shape[1], device=batch["idx"].device)                # (T - 1,)
    select = (columns >= batch["prompt_lengths"][:, None]) & (columns < batch["lengths"][:, None])      # (B, T - 1)
    return at_responses(pretraining.logprobs(model, batch["idx"], select=select), batch["prompt_lengths"], batch["mask"])


def batch_of(prompts, responses, pad, device):
    """Lists of ids -> a dict of idx (B, T), lengths (B,), prompt_lengths (B,), mask (B, R). The mask comes from lengths, not from pads."""
    idx, lengths = pad_batch([p + r for p, r in zip(prompts, responses)], pad, device)  # (B, T), (B,)
    prompt_lengths = torch.tensor([len(p) for p in prompts], device=device)             # (B,)
    R = int((lengths - prompt_lengths).max())
    mask = (torch.arange(R, device=device) < (lengths - prompt_lengths)[:, None]).float()   # (B, R)
    return dict(idx=idx, lengths=lengths, prompt_lengths=prompt_lengths, mask=mask)


def by_length(lengths, size):
    """Rows in parts of `size`, neighbours in length together, so that little padding is read: a tuple of LongTensors."""
    return lengths.argsort(stable=True).split(size)


def trimmed(batch, rows):
    """The episodes `rows` (a LongTensor) of a rollout, its tensors cut to the longest of them."""
    T, R = int(batch["lengths"][rows].max()), int(batch["mask"][rows].sum(1).max())
    return {name: x[rows, :T if name == "idx" else R] if x.dim() == 2 else x[rows] for name, x in batch.items() if torch.is_tensor(x)}


@torch.no_grad()
def rollout(rows, policy, reference, value_net, reward_model, config, generator):
    """Answers a batch of prompts with the policy and works out everything that the update needs, all without gradient.

    Returns a dict of what the update needs: idx (B, T), lengths, prompt_lengths (B,), mask, logprobs, values, returns, advantages
    (B, R), whitened over the whole rollout after the returns were formed; and for trace and the log raw_advantages, ref_logprobs,
    rewards (B, R), scores (B,) less missing_eos_penalty, answers, stats."""
    encoding, device = tokenizer.load_cached(), policy.lm_head.weight.device
    prompts = [tokenizer.prompt_ids(encoding, row["prompt"]) for row in rows]
    responses = generate(policy, prompts, MAX_NEW_TOKENS, 1.0, generator)               # temperature 1 (1); ids, never decoded and encoded again
    batch = batch_of(prompts, responses, policy.config.pad_id, device)
    lengths, mask = batch["lengths"], batch["mask"]                                     # (B,), (B, R)
    logprobs, ref_logprobs, values = torch.zeros(3, *mask.shape, dtype=policy.lm_head.weight.dtype, device=device)      # each (B, R)
    scores = torch.zeros(len(rows), dtype=logprobs.dtype, device=device)                # (B,)
    for few in by_length(lengths, MICRO_BATCH):
        part = trimmed(batch, few)
        r = part["mask"].shape[1]                                                       # the longest response among these
        logprobs[few, :r] = response_logprobs(policy, part)
        ref_logprobs[few, :r] = response_logprobs(reference, part)
        values[few, :r] = at_responses(value_net.values(part["idx"]), part["prompt_lengths"], part["mask"])
        scores[few] = reward_model(part["idx"], part["lengths"])
    answers = [tokenizer.response_text(encoding, ids) for ids in responses]
    ended = torch.tensor([e for _, e in answers], device=device).float()                # (B,)
    scores = scores - config.missing_eos_penalty * (1 - ended)                          # (B,)
    rewards = token_rewards(scores, logprobs, ref_logprobs, mask, config.beta)          # (B, R)
    advantages, returns = gae(rewards, values, mask, 1.0, config.lam)                   # (B, R), (B, R)
    k1, k3 = kl_estimates(logprobs, ref_logprobs)                                       # (B, R), (B, R)
    gold = [gold_judge.judge(row["task"], text, e).utility for row, (text, e) in zip(rows, answers)]
    unexplained = masked_mean((returns - values) ** 2, mask) / masked_mean((returns - masked_mean(returns, mask)) ** 2, mask).clamp(min=1e-8)  # scalar
    stats = dict(score=scores.mean(), gold=sum(gold) / len(gold), kl=(k1 * mask).sum(1).mean(), kl_k3=(k3 * mask).sum(1).mean(),
                 reward=rewards.sum(1).mean(), length=mask.sum(1).mean(), ended=ended.mean(), entropy=-masked_mean(logprobs, mask),
                 explained_variance=1 - unexplained)
    return dict(**batch, logprobs=logprobs, values=values, returns=returns, advantages=whiten(advantages, mask),
                ref_logprobs=ref_logprobs, rewards=rewards, raw_advantages=advantages,
                stats={k: float(v) for k, v in stats.items()}, answers=answers, scores=scores)


# ---------------------------------------------------------------- update


def update(batch, rows, policy, value_net, optimizers, config, documents=None):
    """One optimiser step of policy and value network on the episodes `rows` (a LongTensor) of a rollout.

    The gradient is added up over parts of like length, each weighed by its share of the tokens: the same sum, with less padding.
    documents: corpus texts whose pretraining loss, times gamma_ptx, joins the same step (equation 2). Returns the update's metrics,
    floats."""
    tokens, ratio = batch["mask"][rows].sum(), 0.0                                      # scalars
    metrics = dict.fromkeys(("policy_loss", "value_loss", "clip_fraction", "approx_kl"), 0.0)       # means over all tokens
    for few in by_length(batch["lengths"][rows], MICRO_BATCH):
        part = trimmed(batch, rows[few])
        mask, share = part["mask"], part["mask"].sum() / tokens                         # (b, r), scalar
        logprobs = response_logprobs(policy, part)                                      # (b, r)
        loss, clip_fraction = policy_loss(logprobs, part["logprobs"], part["advantages"], mask, config.clip_range)        # scalars
        (share * loss).backward()
        values = at_responses(value_net.values(part["idx"]), part["prompt_lengths"], mask)          # (b, r)
        v_loss = value_loss(values, part["values"], part["returns"], mask, config.clip_range)             # scalar
        (share * v_loss).backward()
        logprobs = logprobs.detach()                                                    # (b, r)
        approx_kl = masked_mean(kl_estimates(part["logprobs"], logprobs)[1], mask)      # scalar
        for name, value in zip(metrics, (loss, v_loss, clip_fraction, approx_kl)):
            metrics[name] += (share * value).item()
        ratio = max(ratio, 1 + (((logprobs - part["logprobs"]).exp() - 1) * mask).abs().max().item())
    ptx_loss = torch.zeros(())                                                          # scalar
    if documents:
        ptx_loss = corpus_loss(policy, documents)                                       # scalar
        (config.gamma_ptx * ptx_loss).backward()
    grad_norm = nn.utils.clip_grad_norm_(policy.parameters(), 1.0)                      # scalar [not stated]
    nn.utils.clip_grad_norm_(value_net.parameters(), 1.0)                               # [not stated]
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return dict(**metrics, ptx_loss=ptx_loss.item(), ratio=ratio, grad_norm=grad_norm.item())


# ---------------------------------------------------------------- training


def make_optimizers(policy, value_net, config):
    """Adam (0.9, 0.95; appendix C) for the policy and for the value network; each group of weights has its own peak rate.

    Why the last layer norm has one: Adam moves a weight by about its rate a step, however large the gradient, so in a hundred steps
    of 1e-3 that norm, near 1.7, cannot scale the logits much; but scaling them by 1.2 afterwards raised gold from 0.81 to
    0.85. With a rate of its own the policy finds its own scale: gold 0.847, not 0.836, KL and corpus loss no higher (seed 11)."""
    others = [p for name, p in policy.named_parameters() if "ln_f" not in name]
    groups = [{"params": others, "peak": config.lr}, {"params": policy.transformer.ln_f.parameters(), "peak": config.lr_norm}]
    return [torch.optim.Adam(parameters, betas=(0.9, 0.95), fused=True)
            for parameters in (groups, [{"params": value_net.parameters(), "peak": config.value_lr}])]


def check(config, block_size):
    """What RL needs, so that it is known before anything is trained; block_size: of the base model.
    Raises UserError."""
    rows = files.read_prompts("rl")
    if len(rows) < config.rollout_size:
        raise UserError(f"--rollout_size {config.rollout_size}: there are only {len(rows)} prompts in prompts_rl.jsonl")
    prompts = [tokenizer.prompt_ids(tokenizer.load_cached(), row["prompt"]) for row in rows]
    what = "RL, the longest prompt with its response,"
    files.check_room(block_size, prompts, what, MAX_NEW_TOKENS)


def policy_settings(config, name, iterations, gamma_ptx):
    """The settings that make out/<name>.pt and no others: saved with it, and what a later run must
    ask for to keep it."""
    settings = {key: value for key, value in settings_of(config).items() if key not in NOT_TRAINING}
    length = "iterations_1" if name == "ppo_1" else "iterations"
    return settings | {length: iterations, "gamma_ptx": gamma_ptx}


def train_policy(config, name, reward_name, iterations, gamma_ptx):
    """PPO from out/sft_mix.pt against a reward model; writes out/<name>.pt, out/<name>_value.pt, out/<name>.jsonl; returns the policy.

    Warm-up: 2 % of iterations, at least one, from a tenth of the learning rate, then constant, as in the paper. The weights are
    averaged with a decay that has forgotten all but 1.8 % of the start at the end, as the paper's 0.992 has after 500
    iterations; the averaged policy is the one that is kept and evaluated [the paper does not say]. Pretraining mix: 2,048 tokens,
    about 50 documents, a step of 256 episodes (8 examples an episode)."""
    start = time.time()
    device, rng, generator = set_up(config)
    encoding = tokenizer.load_cached()
    path = require(config, "sft_mix", "sft.py")
    policy, reference = load_model(path, device), load_model(path, device)          # in eval mode to the end: no dropout, so the ratio starts at 1
    reward_model = load_reward_model(require(config, reward_name, "reward.py"), device)
    check(config, policy.config.block_size)
    value_net = copy.deepcopy(reward_model)                             # a network of its own, initialised from the RM
    average, decay = copy.deepcopy(policy), 0.018 ** (1 / iterations)
    optimizers = make_optimizers(policy, value_net, config)
    rows = files.read_prompts("rl")
    config = dataclasses.replace(config, gamma_ptx=gamma_ptx)
    queue, log, bar = [], MetricLog(config, name), tqdm(range(iterations), desc=name)
    pretraining_documents = corpus_batches(read_corpus(encoding, policy.config.block_size)[0], 2_048, rng) if gamma_ptx else None
    for iteration in bar:
        if len(queue) < config.rollout_size:
            queue = rng.sample(rows, len(rows))
        prompts, queue = queue[:config.rollout_size], queue[config.rollout_size:]
        batch = rollout(prompts, policy, reference, value_net, reward_model, config, generator)
        warm = min(1.0, 0.1 + 0.9 * iteration / max(1, round(0.02 * iterations)))
        for group in [group for optimizer in optimizers for group in optimizer.param_groups]:
            group["lr"] = warm * group["peak"]
        steps = []
        for _ in range(config.ppo_epochs):
            for few in torch.randperm(len(prompts), generator=generator, device=device).split(config.minibatch_size):        # (minibatch,)
                documents = next(pretraining_documents) if gamma_ptx else None
                steps.append(update(batch, few, policy, value_net, optimizers, config, documents))
        with torch.no_grad():
            for mean, now in zip(average.parameters(), policy.parameters()):
                mean.lerp_(now, 1 - decay)
        metrics = {key: sum(step[key] for step in steps) / len(steps) for key in steps[0]} | {"ratio": steps[0]["ratio"]}
        log.write(step=iteration, **batch["stats"], **metrics)
        bar.set_postfix(score=f"{batch['stats']['score']:.2f}", gold=f"{batch['stats']['gold']:.2f}", kl=f"{batch['stats']['kl']:.2f}")
        if iteration in (0, iterations - 1):
            for row, (text, _), value in list(zip(prompts, batch["answers"], batch["scores"].tolist()))[:2]:
                tqdm.write(f"    [{value:+.2f}] {row['prompt']} -> {text}")
    settings = policy_settings(config, name, iterations, gamma_ptx)
    extra = stage_extra(config, "ppo", made_from=["sft_mix", reward_name]) | {"settings": settings}
    save_checkpoint(Path(config.out) / f"{name}_value.pt", value_net, **extra)         # as it is: only the policy is averaged
    save_checkpoint(Path(config.out) / f"{name}.pt", average, **extra)         # last: where it stands, the stage is finished
    print(f"made {config.out}/{name}.pt in {time.time() - start:.0f} s; its last rollout: score {batch['stats']['score']:.2f}, "
          f"gold {batch['stats']['gold']:.3f}, KL {batch['stats']['kl']:.2f}\n")
    return average


# ================================================================ evaluation

# Two examples: with three, the longest evaluation prompt does not fit into the context.
FEW_SHOT = [("Name two colours.", "I think of red and blue."), ("I am Ann. I lost my hat.", "I am sorry that you lost your hat, Ann.")]
CHECKPOINTS = {name: {"gpt_prompted": "gpt", "sft_best_of_16": "sft"}.get(name, name) for name in MODELS}        # whose weights write the answers


def few_shot_ids(encoding, prompt):
    """The prompt as the next question of a forum thread with good answers: what "GPT (prompted)" gets."""
    thread = [f"{corpus.QUESTION} {q}\n{corpus.ANSWER} {a}" for q, a in FEW_SHOT]
    return [encoding.eot_token] + tokenizer.encode(encoding, "\n".join(thread + [f"{corpus.QUESTION} {prompt}\n{corpus.ANSWER}"]))


def first_line(text, ended):
    """The response up to the first line break: a new line is a new question. The same cut for every model."""
    first, line_break, _ = text.partition("\n")
    return {"text": first.strip(), "ended": ended or bool(line_break)}


def answer(name, model, rows, generator, reward_model=None):
    """A response of one of MODELS to each row, at temperature 1: a list of {"text", "ended"}."""
    encoding = tokenizer.load_cached()
    ids = few_shot_ids if name == "gpt_prompted" else tokenizer.prompt_ids
    prompts = [ids(encoding, row["prompt"]) for row in rows]
    tries = 16 if name == "sft_best_of_16" else 1
    rounds = [[first_line(*tokenizer.response_text(encoding, r)) for r in generate(model, prompts, MAX_NEW_TOKENS, 1.0, generator)] for _ in range(tries)]
    if tries == 1:
        return rounds[0]
    lines = [{"prompt": row["prompt"], "responses": [one[i] for one in rounds]} for i, row in enumerate(rows)]
    scores = reward_stage.scores_of(reward_model, encoding, lines)      # the reward model sees by itself where the end is missing
    return [rounds[values.index(max(values))][i] for i, values in enumerate(scores)]


def describe_model(model, rows, responses, closed, closed_responses, valid_documents, kl):
    """results.json's entry for one model, preferences aside."""
    return {"params": sum(p.numel() for p in model.parameters()),
            **gold_judge.report(rows, responses, closed, closed_responses),
            "corpus_loss": validation_loss(model, valid_documents), "kl": kl}


@torch.no_grad()
def kl_to_reference(model, reference, rows, generator):
    """KL(pi || pi_SFT) in nats a response, k1 on fresh samples: a float."""
    encoding = tokenizer.load_cached()
    prompts = [tokenizer.prompt_ids(encoding, row["prompt"]) for row in rows]
    responses = generate(model, prompts, MAX_NEW_TOKENS, 1.0, generator)
    batch = batch_of(prompts, responses, model.config.pad_id, model.lm_head.weight.device)
    k1, _ = kl_estimates(*(response_logprobs(m, batch) for m in (model, reference)))    # (B, R)
    return (k1 * batch["mask"]).sum(1).mean().item()


def evaluation_prompts(split):
    """Lines of the prompts files: (those that all models answer, closed-domain ones)."""
    rows = files.read_prompts(split)
    if split == "eval":
        return rows, files.read_prompts("closed")
    return rows, [row for row in rows if row["use_case"] in tasks.CLOSED_DOMAIN]


def check_evaluation(config, block_size):
    """What the evaluation needs, so that it is known before anything is trained; block_size: of the
    base model. Raises UserError."""
    if config.split not in ("eval", "valid"):
        raise UserError(f"--split {config.split}: eval or valid")
    rows, closed = evaluation_prompts(config.split)
    if len(rows) < 2 or not closed:
        raise UserError(f"{files.FOLDER}/prompts_{config.split}.jsonl: "
                        "too few prompts to evaluate on")
    prompts = [few_shot_ids(tokenizer.load_cached(), row["prompt"]) for row in rows + closed]
    what = "evaluation, GPT's longest prompt, examples and response with it,"
    files.check_room(block_size, prompts, what, MAX_NEW_TOKENS)


def evaluate(config):
    """All six models on held-out prompts: returns what goes into out/results.json, and the responses by model."""
    device, rng, generator = set_up(config)
    out, people = Path(config.out), get_labelers("held_out")
    rows, closed = evaluation_prompts(config.split)
    reward_model, reference = load_reward_model(out / "reward.pt", device), load_model(out / "sft_mix.pt", device)
    documents = read_corpus(tokenizer.load_cached(), reference.config.block_size)[1]
    responses, entries = {}, {}
    for name in tqdm(MODELS, desc="evaluation"):
        model = load_model(out / f"{CHECKPOINTS[name]}.pt", device)
        responses[name] = answer(name, model, rows, generator, reward_model)
        kl = kl_to_reference(model, reference, rows[:300], generator) if name in ("sft", "ppo", "ppo_ptx") else None
        entries[name] = describe_model(model, rows, responses[name], closed, answer(name, model, closed, generator, reward_model), documents, kl)
    for name in MODELS:
        entries[name]["win_rate_vs_sft"] = labeler.preference(rows, responses[name], responses["sft"], rng, people) if name != "sft" else [0.5, 0.5, 0.5]
    perfect = [{"text": tasks.honest_answer(row["task"], rng), "ended": True} for row in rows]
    ceiling = labeler.preference(rows, perfect, responses["sft"], rng, people)
    report, _ = reward_stage.evaluate_reward_model(reward_model, reward_stage.Config(seed=config.seed, out=config.out, round=2), rows[:500])
    sft, best = entries["sft"]["utility"], entries["ppo_ptx"]["utility"]
    wins = {name: labeler.preference(rows, responses["ppo_ptx"], responses[name], rng, people) for name in ("gpt", "gpt_prompted", "sft_best_of_16")}
    return {"seed": config.seed, "split": config.split, "cores": torch.get_num_threads(), "device": str(device), "models": entries,
            "ppo_ptx_preferred_to": {"sft": entries["ppo_ptx"]["win_rate_vs_sft"], **wins},
            "ceiling_vs_sft": ceiling, "gap_closed": (best - sft) / (1 - sft), "reward_model": report}, rows, responses


# ---------------------------------------------------------------- the whole run


def run(config, pretrain=None, sft=None, reward_1=None, reward_2=None):
    """Runs every stage that has no output yet, then evaluates. Settings of earlier stages may be given (tests do)."""
    set_up(config)
    out, common = Path(config.out), dict(seed=config.seed, out=config.out, device=config.device)
    pretrain, sft = pretrain or pretraining.Config(**common), sft or sft_stage.Config(**common)
    reward_1, reward_2 = reward_1 or reward_stage.Config(**common, round=1), reward_2 or reward_stage.Config(**common, round=2)
    block_size = context_of(config, pretrain)

    def policy(name, reward_name, iterations, gamma_ptx):
        return ("ppo", [name], policy_settings(config, name, iterations, gamma_ptx),
                lambda: check(config, block_size),
                lambda: train_policy(config, name, reward_name, iterations, gamma_ptx))

    # stage, what it makes, with which settings, what it needs, how it is made
    plan = [("pretrain", ["gpt"], settings_of(pretrain),
             lambda: None, lambda: pretraining.train(pretrain)),
            ("sft", ["sft_mix"], settings_of(sft),
             lambda: sft_stage.check(sft, block_size), lambda: sft_stage.train(sft)),
            ("reward", ["reward_1", "sft"], reward_stage.dependencies(reward_1),
             lambda: reward_stage.check(reward_1, block_size),
             lambda: reward_stage.train(reward_1)),
            policy("ppo_1", "reward_1", config.iterations_1, 0.0),
            ("reward", ["reward"], reward_stage.dependencies(reward_2),
             lambda: reward_stage.check(reward_2, block_size),
             lambda: reward_stage.train(reward_2)),
            policy("ppo", "reward", config.iterations, 0.0),
            policy("ppo_ptx", "reward", config.iterations, config.gamma_ptx)]

    # First everything that the run needs, so that nothing is found missing after hours of work.
    check_standing(config, {name: settings if stage == "ppo" else None
                            for stage, names, settings, _, _ in plan for name in names})
    check_evaluation(config, block_size)
    for _, names, settings, needs, _ in plan:
        if missing(config, names, settings):
            needs()
    files.check_complete(config)
    seconds = files.stage_seconds(out / "seconds.json")
    start = time.time()
    prepare.corpus_texts()
    seconds["data"] += time.time() - start
    files.write(out / "seconds.json", json.dumps(seconds))
    for stage, names, settings, _, make in plan:
        if not missing(config, names, settings):
            # Its parents may be new
            check_standing(config, dict.fromkeys(names, settings if stage == "ppo" else None))
            continue
        start = time.time()
        make()
        seconds[stage] += time.time() - start
        files.write(out / "seconds.json", json.dumps(seconds))
    start = time.time()
    results, rows, responses = evaluate(config)
    plot_losses(out)
    plot_dashboard(out)
    plot_figures(out, results)
    seconds |= {"evaluate": time.time() - start}
    results |= {"seconds": seconds | {"total": sum(seconds.values())}, "peak_mb": peak_memory()}
    files.write(out / "results.json", json.dumps(results, indent=1))
    side_by_side(rows, responses)
    print(f"\n{table(results)}\n\nmade {out}/results.json, losses.png, reward.png, ppo.png and figures.png; {results['seconds']['total']:.0f} s in all, "
          f"peak memory {results['peak_mb']:.0f} MB. Next: python model.py --chat {out}/ppo_ptx.pt")
    return results


def main(config):
    """The command line."""
    alone(config, [], {}, run)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
