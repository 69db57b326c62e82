"""Step 3. PPO against the reward model (Ouyang et al. 2022, arXiv:2203.02155, section 3.5).

    out/sft_mix.pt + out/reward.pt -> out/ppo.pt, out/ppo_ptx.pt (round 1: reward_1 -> ppo_1)

The terms. The *policy* is the language model being trained. An *episode* is one prompt and one
response sampled from the policy. A *rollout* is a batch of episodes. From outside, this is a bandit
(3.5): one prompt, one response, one score. From inside, every token is a step, because the KL
penalty below arrives token by token: the state is the text so far, the action is the next token.
The *value* of a state is the reward still to come, as the *value network* predicts it. The
*advantage* of a token is how much better things went than predicted. PPO (proximal policy
optimisation, Schulman et al. 2017) makes tokens with a positive advantage more likely and the
others less likely, a little at a time.

The objective. The policy pi maximises (equation 2)

    E_(x,y)~pi [ r(x, y) - beta log( pi(y|x) / pi_ref(y|x) ) ]  +  gamma_ptx E_x [ log pi(x) ]

- r(x, y) is the reward model's score of response y to prompt x.
- beta times the log-ratio is the KL penalty. The mean log-ratio over pi's own responses is the KL
  divergence from the reference pi_ref: 0 if both agree, otherwise positive. The reward model is
  only right near its training data, so a small beta lets the policy find responses that only it
  likes (over-optimisation): score and KL rise, gold utility falls. A large beta stops learning.
- The reference is out/sft_mix.pt, because PPO starts from it (C.3): the penalty starts at 0 and
  measures what RL has changed. PPO cannot start from the base model, because it only makes likelier
  what the policy already samples, and the base model samples hardly any answers.
- The last term is the pretraining mix, with x from the corpus. Without it (gamma_ptx = 0, called
  PPO), the policy forgets what the base model knew, because no reward depends on corpus text: its
  corpus loss rises, the alignment tax. A larger beta is no substitute: the KL is measured on
  responses only. With the mix, the result is called PPO-ptx, which is InstructGPT.

`python ppo.py` runs all missing steps, then compares six models (metrics: notebooks/README.md):

    model.py -> sft.py -> reward.py -> PPO -> reward.py with PPO's samples -> PPO and PPO-ptx
"""
import copy
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import data  # noqa: F401, before torch, because it sets how torch's threads wait
import torch
from tqdm import tqdm

import model as pretraining
import reward as reward_stage
import sft as sft_stage
from data import figures, files, judge, labeler, own, prepare, quick, tasks, tokenizer
from data.flags import BaseConfig, run_script, set_up
from data.training import by_length, corpus_batches, trimmed
from model import corpus_loss, generate, load_model, pad_batch, read_corpus
from reward import MAX_NEW_TOKENS, load_reward_model


@dataclass
class Config(BaseConfig):
    """Settings, the paper's value in brackets (C.4). [not stated]: the paper gives no value."""
    iterations_1: int = 8       # rollouts of the first policy, whose samples train the reward model
    iterations: int = 40        # rollouts of PPO and PPO-ptx, 40,960 episodes (500, 256,000)
    rollout_size: int = 1024    # episodes per rollout (512); larger, for less noisy gradients
    minibatch_size: int = 256   # episodes per optimiser step (64)
    ppo_epochs: int = 1         # passes over each rollout (1)
    beta: float = 0.15          # weight of the KL penalty (0.02; our scores have another scale)
    gamma_ptx: float = 0.4      # weight of the corpus loss per token (27.8, per what: not stated)
    clip_range: float = 0.2     # clipping range of the ratio (0.2) and of the values [not stated]
    lam: float = 0.95           # lambda of GAE [not stated]; its discount, gamma, is 1 (1)
    lr: float = 1e-3            # of the policy, constant after warm-up (2.55e-6 to 2.55e-5, 1.3B)
    lr_norm: float = 0.03       # of the policy's last layer norm, see make_optimizers (none)
    value_lr: float = 1e-3      # of the value network (9e-6)
    missing_eos_penalty: float = 1.0    # off the score of a response that never ends [not stated]
    split: str = "eval"         # prompts of the evaluation: eval, or valid during development
    quick: bool = False         # less of everything, from a ready base model (data/quick.py)
    rankings: str = ""          # files of people's rankings, a.jsonl,b.jsonl (data/label.py)


# -------------------------------------------------------------------------------- the arithmetic
# (B, R): B episodes, R response positions, padded on the right. mask is 1.0 on response tokens,
# <|endoftext|> included, and 0.0 on padding.

def token_rewards(scores, logprobs, ref_logprobs, mask, beta):
    """The first term of equation 2, per token: scores (B,), the rest (B, R) -> rewards (B, R).

    The log-ratio of a response is the sum over its tokens, so each token pays its share of the KL
    penalty. As a reward and not a loss term, it also reaches the tokens that led to it. The score
    is paid on the last token, because it judges the whole response."""
    rewards = -beta * (logprobs - ref_logprobs) * mask                  # (B, R)
    last = mask.sum(1).long() - 1                                       # (B,)
    return rewards.scatter_add(1, last[:, None], scores[:, None])       # (B, R)


def gae(rewards, values, mask, gamma=1.0, lam=0.95):
    """Generalised advantage estimation (Schulman et al. 2016): all (B, R) -> advantages, returns.

        delta_t  = r_t + gamma V_(t+1) - V_t        the temporal-difference (TD) error
        A_t      = delta_t + gamma lam A_(t+1)
        return_t = A_t + V_t                        the reward from t on, the target of V_t

    V_t is predicted before token t is sampled, so A_t says how much more reward followed than was
    expected. lam sets how far to trust V. With lam = 1, the values in between cancel: A_t is all
    reward sampled from t on, minus V_t, right on average but noisy. With lam = 0, it is one reward
    plus V_(t+1), minus V_t: little noise, but wrong wherever V is wrong. gamma < 1 would discount
    late rewards, but the score must count in full for every token. After the last token no reward
    is left to come, so V is 0."""
    advantages = torch.zeros_like(rewards)                              # (B, R)
    next_advantage, next_value = 0.0, 0.0
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]       # (B,)
        advantages[:, t] = (delta + gamma * lam * next_advantage) * mask[:, t]      # 0 past the end
        next_advantage = advantages[:, t]                               # (B,)
        next_value = values[:, t] * mask[:, t]                          # (B,)
    return advantages, (advantages + values) * mask


def masked_mean(x, mask):
    """Mean over response tokens: (B, R), (B, R) -> scalar."""
    return (x * mask).sum() / mask.sum()


def whiten(x, mask):
    """Mean 0 and variance 1 over response tokens: (B, R), (B, R) -> (B, R). [not stated]

    Only for advantages, which say how far and which way to push each token. A common scale makes
    the step size independent of the scores. Subtracting a constant changes no gradient on average:
    probabilities sum to 1, so the mean of grad log pi is 0. Subtracting it from rewards would be
    different: it would count once per token, so longer responses would earn more or less."""
    centred = (x - masked_mean(x, mask)) * mask                         # (B, R)
    return centred / (masked_mean(centred ** 2, mask) + 1e-8).sqrt()


def policy_loss(logprobs, old_logprobs, advantages, mask, clip):
    """PPO's clipped objective (Schulman et al. 2017, eq. 7), all (B, R) -> loss, share clipped.

        ratio = pi / pi_old
        loss  = mean_t max( -A_t ratio_t, -A_t clip(ratio_t, 1 - clip, 1 + clip) )

    Why the ratio: a drawn token is discrete, so r has no gradient. But grad pi = pi grad log pi, so
    grad E[r] = sum_y r(y) grad pi(y) = E[ r grad log pi ], a mean over samples. At pi = pi_old, the
    policy of the rollout, grad log pi is the gradient of the ratio. A may replace r, because V_t
    and earlier rewards do not depend on token t. Subtracting them only takes off noise.

    Why clip: the samples say little about a policy far from pi_old. A token that has gone far in
    the good direction (ratio > 1 + clip with A > 0, ratio < 1 - clip with A < 0) has no gradient:
    there the larger loss is the clipped one, a constant. In the bad direction it keeps its own."""
    ratio = (logprobs - old_logprobs).exp()                             # (B, R)
    unclipped = -advantages * ratio                                     # (B, R)
    clipped = -advantages * ratio.clamp(1 - clip, 1 + clip)             # (B, R)
    loss = masked_mean(torch.maximum(unclipped, clipped), mask)         # scalar
    return loss, masked_mean((clipped > unclipped).float(), mask)


def value_loss(values, old_values, returns, mask, clip):
    """Half the squared error of the values, clipped too, all (B, R) -> scalar. [not stated]

        1/2 mean_t max( (V - return)^2, (V_old + clip(V - V_old, -clip, clip) - return)^2 )

    The clip keeps one noisy rollout from moving a value far: the gradient stops once a value has
    moved by more than clip towards its return. The unit of this clip is that of rewards."""
    values_clipped = old_values + (values - old_values).clamp(-clip, clip)      # (B, R)
    error = (values - returns) ** 2                                     # (B, R)
    error_clipped = (values_clipped - returns) ** 2                     # (B, R)
    return 0.5 * masked_mean(torch.maximum(error, error_clipped), mask)


def kl_estimates(logprobs, ref_logprobs):
    """Two estimates of KL(pi || pi_ref) from samples of pi (Schulman 2020): (B, R) -> k1, k3.

    Both are right on average, and large where pi writes what pi_ref hardly would. k1, the
    log-ratio, is what the penalty uses (equation 2). It may be negative for a single token. k3 adds
    a term with mean 0. The sum is never negative and less noisy. It is only logged."""
    k1 = logprobs - ref_logprobs                                        # (B, R)
    return k1, (-k1).exp() - 1 + k1


# ------------------------------------------------------------- rollout, update, training loop

def at_responses(x, prompt_lengths, mask):
    """Cut the responses out of x (B, T or T - 1) -> (B, R), 0 on padding.

    Both log-probs and values are one column to the left of their token. Three prompt tokens p and
    two response tokens y make:

        column      0    1    2    3    4
        idx         p1   p2   p3   y1   y2
        logprobs    p2   p3   y1   y2           column c belongs to idx[:, c + 1]
        values      p2   p3   y1   y2           predicted before it; column 4 is not used"""
    steps = torch.arange(mask.shape[1], device=x.device)                # (R,)
    columns = prompt_lengths[:, None] - 1 + steps                       # (B, R)
    columns = columns.clamp(max=x.shape[1] - 1)                         # (B, R)
    return torch.where(mask > 0, x.gather(1, columns), 0.0)             # (B, R)


def read_episodes(batch, policy, reference, value_net, reward_model):
    """Outputs of the four networks: logprobs, ref_logprobs, values (B, R), scores (B,)."""
    dtype = policy.lm_head.weight.dtype
    logprobs = torch.zeros_like(batch["mask"], dtype=dtype)             # (B, R)
    ref_logprobs = torch.zeros_like(logprobs)                           # (B, R)
    values = torch.zeros_like(logprobs)                                 # (B, R)
    scores = logprobs.new_zeros(len(logprobs))                          # (B,)
    for episodes in by_length(batch["lengths"], MICRO_BATCH):
        part = trimmed(batch, episodes)
        r = part["mask"].shape[1]                                       # the longest response here
        logprobs[episodes, :r] = response_logprobs(policy, part)
        ref_logprobs[episodes, :r] = response_logprobs(reference, part)
        values[episodes, :r] = response_values(value_net, part)
        scores[episodes] = reward_model(part["idx"], part["lengths"])
    return logprobs, ref_logprobs, values, scores


@torch.no_grad()
def rollout(prompts, policy, reference, value_net, reward_model, config, generator):
    """Answer a batch of prompts and compute all that the update needs, without gradients.

    prompts: rows of data/prompts_rl.jsonl. Returns a dict: idx (B, T), lengths, prompt_lengths
    (B,), mask, logprobs, ref_logprobs, values, rewards, raw_advantages, returns, advantages (B, R),
    scores (B,), answers (a list of {"text", "ended"}) and stats (means for the log)."""
    encoding = tokenizer.load_cached()
    device = policy.lm_head.weight.device

    # 1. Sample at temperature 1 (1), the distribution that learns. Greedy answers would not vary.
    prompt_ids = tokenizer.encode_prompts(encoding, prompts)
    responses = generate(policy, prompt_ids, MAX_NEW_TOKENS, 1.0, generator)
    answers = tokenizer.decode_responses(encoding, responses)
    batch = batch_of(prompt_ids, responses, policy.config.pad_id, device)

    # 2. Read their ids again (text may encode to other ids). Sampling knew the log-probs, but with
    #    left padding and a cache. Computed as in the update, they agree with it, so the first ratio
    #    is 1. Another value means that the two disagree, e.g. by dropout or a temperature.
    logprobs, ref_logprobs, values, scores = read_episodes(
        batch, policy, reference, value_net, reward_model)

    # 3. Rewards. A response that was cut off pays missing_eos_penalty, so that it pays to stop.
    ended = torch.tensor([float(a["ended"]) for a in answers], device=device)       # (B,)
    scores = scores - config.missing_eos_penalty * (1 - ended)          # (B,)
    rewards = token_rewards(scores, logprobs, ref_logprobs, batch["mask"], config.beta)     # (B, R)

    # 4. Advantages. Returns are targets of the values, in units of reward: form them, then whiten.
    raw_advantages, returns = gae(rewards, values, batch["mask"], 1.0, config.lam)  # (B, R) twice
    advantages = whiten(raw_advantages, batch["mask"])                  # (B, R)

    batch |= dict(logprobs=logprobs, ref_logprobs=ref_logprobs, values=values, rewards=rewards,
                  raw_advantages=raw_advantages, returns=returns, advantages=advantages,
                  scores=scores, answers=answers)
    return batch | {"stats": rollout_stats(batch, ended)}


def update(batch, episodes, policy, value_net, optimizers, config, documents=None):
    """One optimiser step of policy and value network. Returns the step's metrics, a dict of floats.

    episodes: numbers of the rollout's episodes in this minibatch, a LongTensor. documents: texts of
    the corpus for PPO-ptx. Gradients are accumulated over micro-batches of similar length, weighted
    by their share of the tokens: the gradient of the whole minibatch, with less padding."""
    n_tokens = batch["mask"][episodes].sum()                            # scalar
    metrics = dict.fromkeys(UPDATE_METRICS, 0.0)
    for numbers in by_length(batch["lengths"][episodes], MICRO_BATCH):
        part = trimmed(batch, episodes[numbers])
        share = part["mask"].sum() / n_tokens                           # scalar

        # 1. The policy: equation 7 of the PPO paper.
        logprobs = response_logprobs(policy, part)                      # (b, r)
        p_loss, clipped = policy_loss(                                  # scalars
            logprobs, part["logprobs"], part["advantages"], part["mask"], config.clip_range)
        (share * p_loss).backward()

        # 2. The value network: predict the returns.
        values = response_values(value_net, part)                       # (b, r)
        v_loss = value_loss(                                            # scalar
            values, part["values"], part["returns"], part["mask"], config.clip_range)
        (share * v_loss).backward()
        add_metrics(metrics, part, logprobs.detach(), share, p_loss, v_loss, clipped)

    # 3. The pretraining mix of PPO-ptx joins the same step (equation 2).
    if documents:
        ptx_loss = corpus_loss(policy, documents)                       # scalar
        (config.gamma_ptx * ptx_loss).backward()
        metrics["ptx_loss"] = ptx_loss.item()

    # 4. One step of Adam for both networks.
    grad_norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)  # scalar [not stated]
    torch.nn.utils.clip_grad_norm_(value_net.parameters(), 1.0)         # [not stated]
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return metrics | {"grad_norm": grad_norm.item()}


def train_policy(config, name, reward_name, iterations, gamma_ptx):
    """PPO against out/<reward_name>.pt: writes out/<name>*, returns the averaged policy."""
    start = time.time()
    device, rng, generator = set_up(config)

    # Policy and value network learn, two are frozen. Dropout is off, or the first ratio would not
    # be 1. The value network is separate, so that its loss does not pull at the policy. It starts
    # from the reward model, which can already predict a response's score.
    sft_mix = files.require(config, "sft_mix", "sft.py")
    policy = load_model(sft_mix, device)
    reference = load_model(sft_mix, device)
    reward_model = load_reward_model(files.require(config, reward_name, "reward.py"), device)
    value_net = copy.deepcopy(reward_model)
    optimizers = make_optimizers(policy, value_net, config)
    # Rollouts add noise to the policy. An exponential moving average of its weights (EMA) is
    # smoother, so it is kept. The initial weights end as 1.8 % of it, as in C.4 (0.992^500).
    ema_policy = copy.deepcopy(policy)
    decay = 0.018 ** (1 / iterations)

    files.check_rl(config, policy.config.block_size, MAX_NEW_TOKENS)
    config = replace(config, gamma_ptx=gamma_ptx)
    all_prompts = files.rl_prompts(config)
    if gamma_ptx:       # about 50 documents per 256 episodes (the paper: 8 examples per episode)
        documents, _ = read_corpus(tokenizer.load_cached(), policy.config.block_size)
        pretraining_batches = corpus_batches(documents, 2_048, rng)
    queue = []
    log = files.MetricLog(config, name)
    bar = tqdm(range(iterations), desc=name)
    for iteration in bar:
        # 1. Rollout. New in each iteration: the gradient is a mean over the policy's own responses.
        if len(queue) < config.rollout_size:
            queue = rng.sample(all_prompts, len(all_prompts))
        prompts = queue[:config.rollout_size]
        queue = queue[config.rollout_size:]
        batch = rollout(prompts, policy, reference, value_net, reward_model, config, generator)

        # 2. Learning rates: warm-up (2 %, C.4), because Adam's first steps rest on few gradients.
        warm = min(1.0, 0.1 + 0.9 * iteration / max(1, round(0.02 * iterations)))
        for group in [*optimizers[0].param_groups, *optimizers[1].param_groups]:
            group["lr"] = warm * group["peak"]

        # 3. PPO: one optimiser step per minibatch. From the second on, the clip can act.
        steps = []
        for _ in range(config.ppo_epochs):
            order = torch.randperm(len(prompts), generator=generator, device=device)    # (B,)
            for episodes in order.split(config.minibatch_size):
                texts = next(pretraining_batches) if gamma_ptx else None
                steps.append(update(batch, episodes, policy, value_net, optimizers, config, texts))

        # 4. Average the weights.
        with torch.no_grad():
            for ema, now in zip(ema_policy.parameters(), policy.parameters()):
                ema.lerp_(now, 1 - decay)

        # 5. Log. Gold utility, the truth of the toy world, is logged, but training never uses it.
        stats = batch["stats"] | judge.gold(prompts, batch["answers"])
        log.write(step=iteration, **stats, **mean_metrics(steps))
        figures.show_progress(bar, iteration in (0, iterations - 1), stats, prompts, batch)

    save_policy(config, name, reward_name, iterations, ema_policy, value_net)
    figures.print_policy(f"{config.out}/{name}.pt", time.time() - start, stats)
    return ema_policy


# ================================================================================ PPO ends here
# Below: batching, bookkeeping, the comparison of six models, the whole run.
MICRO_BATCH = 64    # episodes that pass through a network together: more need more memory


def batch_of(prompts, responses, pad, device):
    """Two lists of lists of ids -> dict: idx (B, T), lengths, prompt_lengths (B,), mask (B, R).

    The mask comes from lengths: a mask from ids would drop a real token if pad and end were one."""
    sequences = [p + r for p, r in zip(prompts, responses)]
    idx, lengths = pad_batch(sequences, pad, device)                    # (B, T), (B,)
    prompt_lengths = torch.tensor([len(p) for p in prompts], device=device)         # (B,)
    response_lengths = lengths - prompt_lengths                         # (B,)
    positions = torch.arange(int(response_lengths.max()), device=device)            # (R,)
    mask = (positions < response_lengths[:, None]).float()              # (B, R)
    return dict(idx=idx, lengths=lengths, prompt_lengths=prompt_lengths, mask=mask)


def response_logprobs(model, batch):
    """Log-probs of the response tokens, 0 on padding: batch of `batch_of` -> (B, R)."""
    columns = torch.arange(1, batch["idx"].shape[1], device=batch["idx"].device)    # (T - 1,)
    in_response = columns >= batch["prompt_lengths"][:, None]           # (B, T - 1)
    not_padding = columns < batch["lengths"][:, None]                   # (B, T - 1)
    logprobs = pretraining.logprobs(model, batch["idx"], select=in_response & not_padding)
    return at_responses(logprobs, batch["prompt_lengths"], batch["mask"])           # (B, R)


def response_values(value_net, batch):
    """The value before each response token, 0 on padding: batch of `batch_of` -> (B, R)."""
    return at_responses(value_net.values(batch["idx"]), batch["prompt_lengths"], batch["mask"])


# -------------------------------------------------------------------- bookkeeping of the loop

UPDATE_METRICS = ("policy_loss", "value_loss", "clip_fraction", "approx_kl", "ptx_loss", "ratio")


def make_optimizers(policy, value_net, config):
    """Adam (0.9, 0.95; appendix C) for policy and value network, like the paper's.

    Each group of weights remembers its peak learning rate. The policy's last layer norm scales all
    logits, so it sets how sure the policy is. It has a higher rate because Adam changes a weight
    by at most about lr per step. At 1e-3, its scale of 1.7 could hardly change in a run."""
    norm = list(policy.transformer.ln_f.parameters())
    others = [p for name, p in policy.named_parameters() if "ln_f" not in name]
    policy_groups = [{"params": others, "peak": config.lr},
                     {"params": norm, "peak": config.lr_norm}]
    value_groups = [{"params": value_net.parameters(), "peak": config.value_lr}]
    return [torch.optim.Adam(policy_groups, betas=(0.9, 0.95), fused=True),
            torch.optim.Adam(value_groups, betas=(0.9, 0.95), fused=True)]


def rollout_stats(batch, ended):
    """Means over a rollout, for the log: a dict of floats. ended (B,). explained_variance is 1 if
    the values predict the returns exactly, 0 if no better than the mean return."""
    mask = batch["mask"]                                                # (B, R)
    k1, k3 = kl_estimates(batch["logprobs"], batch["ref_logprobs"])     # (B, R), (B, R)
    spread = batch["returns"] - masked_mean(batch["returns"], mask)     # (B, R)
    variance = masked_mean(spread ** 2, mask).clamp(min=1e-8)           # scalar
    unexplained = masked_mean((batch["returns"] - batch["values"]) ** 2, mask)      # scalar
    stats = dict(score=batch["scores"].mean(),
                 kl=(k1 * mask).sum(1).mean(),
                 kl_k3=(k3 * mask).sum(1).mean(),
                 reward=batch["rewards"].sum(1).mean(),
                 length=mask.sum(1).mean(),
                 ended=ended.mean(),
                 entropy=-masked_mean(batch["logprobs"], mask),
                 explained_variance=1 - unexplained / variance)
    return {name: float(value) for name, value in stats.items()}


def add_metrics(metrics, part, logprobs, share, p_loss, v_loss, clip_fraction):
    """Add a micro-batch's metrics, weighted by its share of the tokens, to a minibatch's.

    approx_kl is KL(pi_old || pi): how far the update has moved. Like clip_fraction, it is large if
    steps are too large. ratio is 1 plus the largest deviation of pi / pi_old from 1."""
    _, k3 = kl_estimates(part["logprobs"], logprobs)                    # (b, r)
    departure = ((logprobs - part["logprobs"]).exp() - 1) * part["mask"]        # (b, r)
    metrics["policy_loss"] += (share * p_loss).item()
    metrics["value_loss"] += (share * v_loss).item()
    metrics["clip_fraction"] += (share * clip_fraction).item()
    metrics["approx_kl"] += (share * masked_mean(k3, part["mask"])).item()
    metrics["ratio"] = max(metrics["ratio"], 1 + departure.abs().max().item())


def mean_metrics(steps):
    """Means over an iteration's steps. The ratio is the first step's, where it must be 1."""
    means = {key: sum(step[key] for step in steps) / len(steps) for key in steps[0]}
    return means | {"ratio": steps[0]["ratio"]}


def policy_settings(config, name, iterations, gamma_ptx):
    """The settings that out/<name>.pt depends on: saved with it, and compared by a later run."""
    settings = files.settings_of(config)
    for key in ("split", "iterations", "iterations_1"):
        del settings[key]
    length = "iterations_1" if name == "ppo_1" else "iterations"
    return settings | {length: iterations, "gamma_ptx": gamma_ptx}


def save_policy(config, name, reward_name, iterations, policy, value_net):
    """Save both networks; the policy last, because its file marks the stage as complete."""
    extra = files.stage_extra(config, "ppo", made_from=["sft_mix", reward_name])
    extra["settings"] = policy_settings(config, name, iterations, config.gamma_ptx)
    files.save_checkpoint(Path(config.out) / f"{name}_value.pt", value_net, **extra)
    files.save_checkpoint(Path(config.out) / f"{name}.pt", policy, **extra)


# --------------------------------------------------------------- the comparison of six models

def answer(name, model, prompts, generator, reward_model=None):
    """One response of a model of figures.MODELS to each prompt: a list of {"text", "ended"}.

    Best of 16 draws 16 responses and keeps the one that the reward model scores highest."""
    encoding = tokenizer.load_cached()
    to_ids = tokenizer.few_shot_ids if name == "gpt_prompted" else tokenizer.prompt_ids
    prompt_ids = [to_ids(encoding, row["prompt"]) for row in prompts]
    draws = []                                          # one list of responses per draw
    for _ in range(16 if name == "sft_best_of_16" else 1):
        sampled = generate(model, prompt_ids, MAX_NEW_TOKENS, 1.0, generator)
        responses = tokenizer.decode_responses(encoding, sampled)
        draws.append(responses if files.OWN else list(map(tokenizer.first_line, responses)))
    if len(draws) == 1:
        return draws[0]
    lines = []
    for row, responses in zip(prompts, zip(*draws)):
        lines.append({"prompt": row["prompt"], "responses": responses})
    best = []
    for line, scores in zip(lines, reward_stage.scores_of(reward_model, encoding, lines)):
        best.append(line["responses"][scores.index(max(scores))])
    return best


def describe_model(model, prompts, responses, closed, closed_responses, documents, kl):
    """The entry of one model in results.json, preferences aside."""
    return {"params": sum(p.numel() for p in model.parameters()),
            **judge.report(prompts, responses, closed, closed_responses),
            "corpus_loss": pretraining.validation_loss(model, documents), "kl": kl}


@torch.no_grad()
def kl_to_reference(model, reference, prompts, generator):
    """KL(pi || pi_ref) in nats per response, the mean of k1 over fresh samples: a float."""
    prompt_ids = tokenizer.encode_prompts(tokenizer.load_cached(), prompts)
    responses = generate(model, prompt_ids, MAX_NEW_TOKENS, 1.0, generator)
    device = model.lm_head.weight.device
    batch = batch_of(prompt_ids, responses, model.config.pad_id, device)
    logprobs = response_logprobs(model, batch)                          # (B, R)
    ref_logprobs = response_logprobs(reference, batch)                  # (B, R)
    k1, _ = kl_estimates(logprobs, ref_logprobs)                        # (B, R)
    return (k1 * batch["mask"]).sum(1).mean().item()


def evaluate(config):
    """Compare six models on prompts of no other set, because answers could be memorised.

    Returns (results.json, prompts, responses by model)."""
    device, rng, generator = set_up(config)
    out = Path(config.out)
    prompts, closed = files.evaluation_prompts(config.split, quick.N_PROMPTS[config.quick])
    names = quick.models(config)
    reward_model = load_reward_model(out / f"{quick.last_reward(config)}.pt", device)
    reference = load_model(out / "sft_mix.pt", device)
    _, documents = read_corpus(tokenizer.load_cached(), reference.config.block_size)

    # 1. Every model answers. The gold judge and the corpus loss describe it.
    responses, entries = {}, {}
    for name in tqdm(names, desc="evaluation"):
        model = load_model(out / f"{figures.CHECKPOINTS[name]}.pt", device)
        responses[name] = answer(name, model, prompts, generator, reward_model)
        kl = None
        if name in ("sft", "sft_mix", "ppo", "ppo_ptx"):
            kl = kl_to_reference(model, reference, prompts[:300], generator)
        on_closed = answer(name, model, closed, generator, reward_model) if closed else []
        entries[name] = describe_model(
            model, prompts, responses[name], closed, on_closed, documents, kl)

    common = {"seed": config.seed, "split": config.split, "cores": torch.get_num_threads(),
              "device": str(device), "models": entries}
    if files.OWN:
        own.add_scores(entries, prompts, responses, reward_stage.score, reward_model)
        return common, prompts, responses

    # 2. Held-out labelers compare every model, and a perfect answerer, with the SFT baseline.
    people = labeler.get_labelers("held_out")

    def win_rate(ours, theirs):
        return labeler.preference(prompts, ours, theirs, rng, people)

    for name in names:
        entries[name]["win_rate_vs_sft"] = [0.5, 0.5, 0.5]              # mean, low, high
        if name != "sft":
            entries[name]["win_rate_vs_sft"] = win_rate(responses[name], responses["sft"])
    perfect = [{"text": tasks.honest_answer(row["task"], rng), "ended": True} for row in prompts]
    ceiling = win_rate(perfect, responses["sft"])

    # 3. The reward model, on prompts that it was not trained on.
    settings = reward_stage.Config(seed=config.seed, out=config.out,
                                   round=1 if files.one_round(config) else 2)
    report, _ = reward_stage.evaluate_reward_model(reward_model, settings, prompts[:500])

    # 4. Held-out labelers compare PPO-ptx with the others.
    preferred = {"sft": entries["ppo_ptx"]["win_rate_vs_sft"]}
    for name in ("gpt", "gpt_prompted", "sft_best_of_16"):
        preferred[name] = win_rate(responses["ppo_ptx"], responses[name])

    sft, best = entries["sft"]["utility"], entries["ppo_ptx"]["utility"]
    results = common | {"ppo_ptx_preferred_to": preferred, "ceiling_vs_sft": ceiling,
                        "gap_closed": (best - sft) / (1 - sft), "reward_model": report}
    if "sft_mix" in names:
        results["gain"] = judge.gain(prompts, responses["ppo_ptx"], responses["sft_mix"])
    return results, prompts, responses


# ----------------------------------------------------------------------------- the whole run

def run(config, pretrain=None, sft=None, reward_1=None, reward_2=None):
    """Run every stage that has no output yet, then evaluate. Returns the results."""
    set_up(config)
    common = dict(seed=config.seed, out=config.out, device=config.device, data=config.data)
    pretrain = pretrain or pretraining.Config(**common)
    sft = sft or sft_stage.Config(**common, **quick.settings(config, "sft"))
    reward_1 = reward_1 or reward_stage.Config(
        **common, round=1, rankings=config.rankings, **quick.settings(config, "reward"))
    reward_2 = reward_2 or reward_stage.Config(**common, round=2)
    quick.base_model(config)
    block_size = files.context_of(config, pretrain)
    last_reward = quick.last_reward(config)

    def reward(names, settings):
        return files.Stage("reward", names, reward_stage.dependencies(settings),
                           lambda: own.check_reward(settings, block_size, MAX_NEW_TOKENS),
                           lambda: reward_stage.train(settings))

    def policy(name, reward_name, iterations, gamma_ptx):
        return files.Stage("ppo", [name], policy_settings(config, name, iterations, gamma_ptx),
                           lambda: files.check_rl(config, block_size, MAX_NEW_TOKENS),
                           lambda: train_policy(config, name, reward_name, iterations, gamma_ptx))

    encoding = tokenizer.load_cached()
    stages = [
        files.Stage("data", [], {},
                    lambda: files.check_evaluation(config.split, block_size, MAX_NEW_TOKENS),
                    prepare.corpus_texts),
        files.Stage("pretrain", ["gpt"], files.settings_of(pretrain),
                    lambda: None, lambda: pretraining.train(pretrain)),
        files.Stage("sft", ["sft_mix"], files.settings_of(sft),
                    lambda: files.check_sft(sft, sft_stage.read_demonstrations(encoding),
                                            block_size),
                    lambda: sft_stage.train(sft)),
        reward(["reward_1", "sft"], reward_1)]
    if not files.one_round(config):
        stages += [policy("ppo_1", "reward_1", config.iterations_1, 0.0),
                   reward(["reward"], reward_2),
                   policy("ppo", last_reward, config.iterations, 0.0)]
    stages.append(policy("ppo_ptx", last_reward, config.iterations, config.gamma_ptx))
    seconds = files.make_missing(config, stages)

    start = time.time()
    results, prompts, responses = evaluate(config)
    out = Path(config.out)
    figures.plot_run(out, results)
    seconds["evaluate"] = time.time() - start
    seconds["total"] = sum(seconds.values())
    results |= {"seconds": seconds, "peak_mb": figures.peak_memory()}
    files.write(out / "results.json", json.dumps(results, indent=1))
    figures.print_run(out, results, prompts, responses)
    return results


def main(config):
    """The command line."""
    files.alone(config, [], {}, run)


if __name__ == "__main__":
    run_script(main, Config, __doc__, quick.SETTINGS["ppo"])
