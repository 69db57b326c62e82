"""Step 2. The reward model: what people prefer, as a number (Ouyang et al. 2022, section 3.5, C.2).

    round 1:  samples of the last sft_epoch, sft_mix, gpt -> rankings.jsonl, reward_1.pt, sft.pt
    round 2:  the same and samples of ppo_1               -> more rankings, reward.pt

Labelers, who are simulated people (data/labeler.py) or you (data/label.py), rank K responses to a
prompt. The reward model r is a language model whose last layer gives one number instead of logits.
It learns to give the higher score to the preferred response (equation 1):

    loss = - E_x [ 1 / C(K, 2)  sum_(w, l) log sigmoid( r(x, y_w) - r(x, y_l) ) ]

x is the prompt, y_w the response that won a comparison, y_l the one that lost. This is the
Bradley-Terry model: people choose y_w with probability sigmoid(difference of the scores). The loss
is the negative log-likelihood of their choices. Ranks need no common scale of marks, and ranking
is quicker than writing demonstrations.

- The sum is over the C(K, 2) = K (K - 1) / 2 pairs of a prompt: K = 6 responses give 15, two give
  1. They form one batch element. Each response is in K - 1 of them, so spreading them over several
  updates would read a response K - 1 times per pass, train on it as often, and overfit (3.5).
- Ties are dropped (C.2), because equation 1 needs a winner and a loser.
- The loss leaves the level of the scores free. A bias puts the demonstrations at 0 on average
  (3.5), so that 0 means "as good as a labeler's answer". PPO does not need it: a constant added to
  all scores, once per response, is learned by the value network and cancels in the advantages.

Why two rounds: the policy of step 3 looks for responses with high scores. A reward model that has
only seen samples of SFT models is wrong about many of these, so a first PPO policy's responses are
ranked too. The paper iterates steps 2 and 3 in the same way.
"""
import random
import time
from dataclasses import dataclass
from pathlib import Path

import data  # noqa: F401, before torch, because it sets how torch's threads wait
import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

from data import files, own, tokenizer
from data.figures import plot_reward, print_accuracies
from data.files import UserError, load_checkpoint, require, sft_epochs
from data.flags import BaseConfig, run_script, set_up
from data.judge import ranked_by_judge
from data.labeler import (
    accuracy, agreement, get_labelers, margins_of, opinions_without_noise
)
from data.training import batches_of_like_length, cosine, muon_and_adam
from model import GPTConfig, Transformer, generate, init_weights, load_model, pad_batch

MAX_NEW_TOKENS = 32             # of a response in ranking, RL and evaluation (1,000)


@dataclass
class Config(BaseConfig):
    """Settings, the paper's value in brackets (3.5, C.2). [not stated]: it gives none."""
    round: int = 1              # 1: rank samples of SFT models; 2: also of the first PPO policy
    rankings: str = ""          # files of people's rankings, a.jsonl,b.jsonl (data/label.py)
    prompts_1: int = 5_000      # prompts ranked in round 1 (33,207 in all)
    prompts_2: int = 15_000     # prompts ranked in round 2
    k: int = 6                  # responses per prompt (4 to 9)
    labelers_per_prompt: int = 5    # rank the same responses (mostly 1): their errors cancel
    epochs: int = 3             # passes over the rankings (1, because more overfit; here 3 beat 2)
    batch_size: int = 8         # prompts per step (64): more updates from fewer prompts
    lr: float = 0.0045          # Muon's peak, for matrices of the blocks (Adam, 9e-6 for 6B)
    lr_rest: float = 2e-3       # Adam's peak, for the other weights (9e-6)
    unranked: int = 0           # only sample responses to so many prompts, for people to rank


# ---------------------------------------------------------------- the model and its loss

class RewardModel(nn.Module):
    """A language model whose last layer gives one number per position.

    Parameter names are those of GPT2ForSequenceClassification. The size need not be the policy's
    (the paper: 6B for all), because they share only tokens. PPO's value network is one, too."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.transformer = Transformer(config)
        self.score = nn.Linear(config.n_embd, 1, bias=False)
        self.register_buffer("bias", torch.zeros(()))       # not trained, see `centre`
        init_weights(self)
        nn.init.zeros_(self.score.weight)           # no opinion at first: loss -log sigmoid(0)

    def values(self, idx, **layout):
        """idx (B, T) -> (B, T): a number per position, from the tokens up to and including it.

        layout: `positions` and `attn_mask` of rows with several responses (`ranking_batch`)."""
        hidden = self.transformer(idx, **layout)                        # (B, T, C)
        return self.score(hidden).squeeze(-1) + self.bias               # (B, T)

    def forward(self, idx, lengths):
        """idx (B, T), lengths (B,) -> scores (B,): the number at the last token before padding, the
        only one that has seen the whole response, because attention is causal."""
        return self.values(idx).gather(1, lengths[:, None] - 1).squeeze(1)


def ranking_loss(scores, preferred):
    """Equation 1: scores (N, K), preferred (N, K, K) -> scalar, in nats per comparison.

    preferred[n, i, j] counts the labelers who ranked response i of prompt n above j. The mean is
    first over a prompt's comparisons, then over prompts, so that each prompt weighs the same. The
    gradient with respect to a margin is sigmoid(margin) - 1: 0 for a pair that is clearly right,
    -1/2 for an undecided one, -1 for one that is clearly wrong."""
    margins = scores[:, :, None] - scores[:, None, :]                   # (N, K, K): r_i - r_j
    n_pairs = preferred.sum(dim=(1, 2))             # (N,): labelers x C(K, 2), less ties
    log_likelihood = (F.logsigmoid(margins) * preferred).sum(dim=(1, 2))            # (N,)
    loss_per_prompt = -log_likelihood / n_pairs.clamp(min=1)            # (N,)
    return loss_per_prompt.sum() / (n_pairs > 0).sum().clamp(min=1)


def from_language_model(path, device):
    """A reward model with the transformer of a language model and a new last layer."""
    saved = load_checkpoint(path, device)
    shape = {**saved["config"], "dropout": 0.0}
    model = RewardModel(GPTConfig(**shape)).to(device)
    prefix = "transformer."
    weights = {name.removeprefix(prefix): tensor for name, tensor in saved["state"].items()
               if name.startswith(prefix)}
    model.transformer.load_state_dict(weights)
    return model


def load_reward_model(path, device="cpu"):
    """The reward model of a checkpoint."""
    return load_model(path, device, RewardModel)


# ---------------------------------------------------------------- training

def ranking_batch(rankings, encoding, pad, device):
    """Rankings -> idx, positions (N, T), attn_mask (N, 1, T, T), last (N, K), preferred (N, K, K).

    A row holds a prompt and all its responses, so that the prompt is read once and not K times:

        tokens      x1 x2 x3   a1 a2   b1 b2 b3
        part         0  0  0    1  1    2  2  2
        positions    0  1  2    3  4    3  4  5
        last                       ^          ^     where the scores are read

    attn_mask lets a response see the prompt and itself but no other response, and its positions
    follow the prompt's, so its score is that of a response alone. A missing one is in no pair."""
    K = max(len(ranking["responses"]) for ranking in rankings)
    last = torch.zeros(len(rankings), K, dtype=torch.long)
    preferred = torch.zeros(len(rankings), K, K)
    rows, positions, parts = [], [], []
    for n, ranking in enumerate(rankings):
        row = tokenizer.prompt_ids(encoding, ranking["prompt"])
        start = len(row)
        position = list(range(start))
        part = [0] * start
        for k, response in enumerate(ranking["responses"]):
            ids = tokenizer.response_ids(encoding, response["text"], response["ended"])
            row = row + ids
            position += range(start, start + len(ids))
            part += [k + 1] * len(ids)
            last[n, k] = len(row) - 1
        rows.append(row)
        positions.append(position)
        parts.append(part)
        for ranks in [ranking["ranks"], *ranking.get("second_opinions", [])]:
            ranks = torch.tensor(ranks)                                 # (responses,)
            better = ranks[:, None] < ranks[None, :]    # (responses, responses), rank 1 is best
            preferred[n, :len(ranks), :len(ranks)] += better
    idx, _ = pad_batch(rows, pad, device)                               # (N, T)
    positions, _ = pad_batch(positions, 0, device)                      # (N, T)
    parts, _ = pad_batch(parts, K + 1, device)                          # (N, T)
    T = idx.shape[1]
    causal = torch.ones(T, T, dtype=torch.bool, device=device).tril()   # (T, T)
    is_prompt = parts[:, None, :] == 0                                  # (N, 1, T)
    same_part = parts[:, None, :] == parts[:, :, None]                  # (N, T, T)
    attn_mask = causal & (is_prompt | same_part)                        # (N, T, T)
    return idx, positions, attn_mask[:, None], last.to(device), preferred.to(device)


def fit(config, rankings):
    """Train on the rankings for config.epochs passes. Returns (model, losses per step).

    Round 1 starts from the base model and not from an SFT model (like the paper's final version,
    C.2). Round 2 continues round 1's model, because a new one may take a long time to learn to
    compare a response with its prompt. For the same reason the optimiser is Muon (model.py), which
    learns it sooner than Adam."""
    device, rng, _ = set_up(config)
    encoding = tokenizer.load()
    if config.round == 1:
        model = from_language_model(require(config, "gpt", "model.py"), device)
    else:
        model = load_reward_model(require(config, "reward_1", "reward.py"), device)
    optimizers = muon_and_adam(model, config.lr, config.lr_rest)
    n_steps = config.epochs * (len(rankings) // config.batch_size)
    if not n_steps:
        raise UserError(f"--batch_size {config.batch_size}: there are only {len(rankings)} "
                        "rankings")

    def n_characters(ranking):
        return len(ranking["prompt"]) + sum(len(r["text"]) for r in ranking["responses"])

    log = files.MetricLog(config, f"reward_{config.round}")
    bar = tqdm(range(n_steps), desc=f"reward model, round {config.round}")
    losses, queue = [], []
    for step in bar:
        # 1. Batch: some prompts with all their responses.
        if not queue:
            queue = batches_of_like_length(rankings, config.batch_size, n_characters, rng)
        idx, positions, attn_mask, last, preferred = ranking_batch(
            queue.pop(), encoding, model.config.pad_id, device)

        # 2. Loss: the score of a response is the number at its last token.
        values = model.values(idx, positions=positions, attn_mask=attn_mask)        # (N, T)
        scores = values.gather(1, last)                                 # (N, K)
        loss = ranking_loss(scores, preferred)                          # scalar

        # 3. Step: both optimisers, on the same schedule.
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)               # [not stated]
        for optimizer, peak in optimizers:
            lr = cosine(step, n_steps, peak, warmup=n_steps // 50)
            optimizer.param_groups[0]["lr"] = lr
            optimizer.step()
            optimizer.zero_grad()

        # 4. Log.
        right = (scores[:, :, None] > scores[:, None, :]) * preferred   # (N, K, K)
        share_right = right.sum().item() / max(1, preferred.sum().item())
        losses.append(loss.item())
        log.write(step=step, loss=loss.item(), accuracy=share_right)
        bar.set_postfix(loss=f"{sum(losses[-50:]) / len(losses[-50:]):.3f}")
    return model.eval(), losses


@torch.no_grad()
def centre(model, encoding):
    """Set the bias that puts the labelers' demonstrations at 0 on average (3.5)."""
    path = files.FOLDER / "demonstrations.jsonl"
    pairs = []
    for row in files.read_jsonl(path, prompt=str, completion=str)[:1_000]:
        pairs.append((row["prompt"], {"text": row["completion"], "ended": True}))
    scores = score(model, encoding, pairs)
    model.bias -= sum(scores) / len(scores)


# ---------------------------------------------------------------- collecting rankings

def response_sources(config):
    """Where responses come from: two lists of (name, model, temperature).

    The first list fills the first K - 1 places. The second rotates through the last place: hot
    samples, the base model, and a response to another prompt (model None). Such bad responses make
    the reward model robust, because a policy may try them. The paper's come mostly from SFT models,
    because PPO starts from one, and some from PPO policies (3.5)."""
    last_epoch = sft_epochs(config)[-1]
    sft = load_model(require(config, f"sft_epochs/{last_epoch}", "sft.py"))
    sft_mix = load_model(require(config, "sft_mix", "sft.py"))
    gpt = load_model(require(config, "gpt", "model.py"))
    rotating = [("sft_hot", sft, 1.5), ("gpt", gpt, 1.0), ("other_prompt", None, 1.0)]
    if config.round == 1:
        fixed = [("sft", sft, 1.0), ("sft", sft, 1.0), ("sft_mix", sft_mix, 1.0),
                 ("sft_mix", sft_mix, 1.0), ("sft_hot", sft, 1.3)]
        return fixed, rotating
    policy = load_model(require(config, "ppo_1", "ppo.py"))
    fixed = [("ppo_1", policy, 1.0), ("ppo_1", policy, 1.0), ("ppo_hot", policy, 1.3),
             ("sft", sft, 1.0), ("sft_mix", sft_mix, 1.0)]
    return fixed, rotating


def collect(prompts, sources, k, rng, generator):
    """K distinct responses per prompt: a list of lists of {"text", "ended", "sampler"}.

    prompts: rows of a prompts file. sources: see `response_sources`. A duplicate is sampled again
    at a higher temperature (sampler NAME_again), because equal texts cannot be compared, up to
    three times, and then left out."""
    encoding = tokenizer.load()
    prompt_ids = tokenizer.encode_prompts(encoding, prompts)
    fixed, rotating = sources
    everyone = list(range(len(prompts)))
    found = [{} for _ in prompts]                           # one dict per prompt: text -> response

    def draw(numbers, name, model, temperature):
        chosen = [prompt_ids[i] for i in numbers]
        sampled = generate(model, chosen, MAX_NEW_TOKENS, temperature, generator)
        for i, response in zip(numbers, tokenizer.decode_responses(encoding, sampled)):
            found[i].setdefault(response["text"], {**response, "sampler": name})

    for source in fixed[:k - 1] if rotating else fixed[:k]:
        draw(everyone, *source)
    for turn, (name, model, temperature) in enumerate(rotating):
        numbers = everyone[turn::len(rotating)]
        if model is not None:
            draw(numbers, name, model, temperature)
            continue
        for i in numbers:                                   # right words in the wrong place
            others = found[rng.choice(everyone)]
            other = rng.choice(list(others.values()))
            found[i].setdefault(other["text"], {**other, "sampler": name})
    for attempt in range(3):
        short = [i for i in everyone if len(found[i]) < k]
        if short:
            name, model, _ = fixed[attempt]
            draw(short, f"{name}_again", model, 1.2 + 0.2 * attempt)
    return [rng.sample(list(texts.values()), min(k, len(texts))) for texts in found]


def rank(prompts, responses, labelers, rng, round, opinions=1):
    """Rankings, the lines of out/rankings.jsonl: `opinions` labelers per prompt rank its responses.

    The first is named on the line, the others are second_opinions. None sees another's ranks."""
    rankings = []
    for row, candidates in zip(prompts, responses):
        first, *others = rng.sample(labelers, opinions)
        second_opinions = [other.rank(row["task"], candidates) for other in others]
        rankings.append({"prompt": row["prompt"], "task": row["task"], "responses": candidates,
                         "ranks": first.rank(row["task"], candidates), "labeler": first.name,
                         "round": round, "second_opinions": second_opinions})
    return rankings


def sample(config, prompts, rng, generator):
    """Responses to rank: two lists, of rows and of their K responses, see `collect`. A prompt with
    too few distinct responses is left out."""
    sources = response_sources(config)
    kept_prompts, kept_responses = [], []
    for i in tqdm(range(0, len(prompts), 1_000), desc="sampling"):
        part = prompts[i:i + 1_000]
        for row, responses in zip(part, collect(part, sources, config.k, rng, generator)):
            if len(responses) >= min(4, config.k):
                kept_prompts.append(row)
                kept_responses.append(responses)
    return kept_prompts, kept_responses


def train(config):
    """One round: collect rankings and train. Round 1 also chooses the SFT baseline."""
    start = time.time()
    out = Path(config.out)
    _, rng, _ = set_up(config)
    generator = torch.Generator().manual_seed(config.seed)              # of samples, on the CPU
    own.check_reward(config, files.context_of(config), MAX_NEW_TOKENS)
    print(f"step 2, the reward model, round {config.round}: it learns from rankings")
    valid = files.read_prompts("valid")

    # 1. Sample responses to this round's prompts, and let labelers rank them, or read rankings that
    #    people have written. Train on the rankings of both rounds.
    by_people = own.read_rankings(config)               # empty: labelers are simulated
    rankings, measured = own.split(by_people, rng)
    earlier, later = files.other_rankings(config)
    if not by_people:
        first, n_prompts = files.prompts_of_round(config)
        prompts = files.read_prompts("rm")[first:first + n_prompts]
        sampled = sample(config, prompts, rng, generator)
        rankings = earlier + rank(*sampled, get_labelers("train"), rng, config.round,
                                  config.labelers_per_prompt)
    model, losses = fit(config, rankings)
    encoding = tokenizer.load()
    centre(model, encoding)
    # Written only once the model is trained, so that file and model always match
    files.write_jsonl(out / "rankings.jsonl", rankings + later)

    # 2. Save. Measure on prompts that were not trained on.
    name = "reward_1" if config.round == 1 else "reward"
    parents = ["sft_mix"] if config.round == 1 else ["reward_1", "ppo_1"]
    extra = files.stage_extra(config, "reward", made_from=parents)
    extra["settings"] = dependencies(config)
    if config.round == 1:
        files.save_checkpoint(out / f"{name}.pt", model, **extra)
        keep_best_sft(config, model, valid)
    if by_people:
        report, margins = own.report(by_people, measured, scores_of(model, encoding, measured))
    else:
        report, margins = evaluate_reward_model(model, config, valid[:400])
    plot_reward(out / "reward.png", losses, margins, files.epoch_scores(config))
    if config.round == 2:                   # saved last: the file marks the stage as complete
        files.save_checkpoint(out / f"{name}.pt", model, **extra)
    print_accuracies(report)
    print(f"made {out}/{name}.pt from {len(rankings):,} rankings in {time.time() - start:.0f} s. "
          "Next: python ppo.py\n")


# ---------------------------------------------------------------- how good is it?

@torch.no_grad()
def score(model, encoding, pairs):
    """Scores of (prompt text, response {"text", "ended"}) pairs: a list of floats."""
    sequences = []
    for prompt, response in pairs:
        ids = tokenizer.response_ids(encoding, response["text"], response["ended"])
        ids = tokenizer.prompt_ids(encoding, prompt) + ids
        sequences.append(ids[:model.config.block_size])     # broken characters take more tokens
    order = sorted(range(len(pairs)), key=lambda i: len(sequences[i]))
    scores = [0.0] * len(pairs)
    device = model.score.weight.device
    for start in range(0, len(order), 256):
        numbers = order[start:start + 256]                  # similar lengths: little padding
        batch = [sequences[i] for i in numbers]
        idx, lengths = pad_batch(batch, model.config.pad_id, device)    # (B, T), (B,)
        for i, value in zip(numbers, model(idx, lengths).tolist()):
            scores[i] = value
    return scores


def scores_of(model, encoding, rankings):
    """Scores of every response of every ranking: a list of lists."""
    pairs = []
    for ranking in rankings:
        for response in ranking["responses"]:
            pairs.append((ranking["prompt"], response))
    flat = iter(score(model, encoding, pairs))
    return [[next(flat) for _ in ranking["responses"]] for ranking in rankings]


def evaluate_reward_model(model, config, prompts):
    """The accuracy of the reward model on prompts that it was not trained on.

    Returns ("reward_model" of results.json, margins for the calibration plot). Responses come from
    the training mix, or from the SFT baseline alone ("sft pairs"). Rankings come from training
    labelers, from held-out ones (whose rankings were not used in training), and from the gold
    judge. Calibration: of pairs predicted with 80 %, are 80 % decided that way? A ceiling is the
    accuracy of the mean opinion of ten training labelers without their errors. It is below
    100 %, because labelers err at random: two often disagree, and nobody can predict an error."""
    encoding = tokenizer.load()
    rng = random.Random(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    mixed = collect(prompts, response_sources(config), config.k, rng, generator)
    sft = load_model(require(config, "sft", "reward.py"))
    alone = collect(prompts, ([("sft", sft, 1.0)] * config.k, []), config.k, rng, generator)
    training, held_out = get_labelers("train"), get_labelers("held_out")
    ranked = {"train_labelers": rank(prompts, mixed, training, rng, 0),
              "heldout_labelers": rank(prompts, mixed, held_out, rng, 0),
              "sft_pairs": rank(prompts, alone, training, rng, 0)}
    ranked["gold"] = ranked_by_judge(ranked["train_labelers"])
    report, ceilings, margins = {}, {}, {}
    for name, rankings in ranked.items():
        margins[name] = margins_of(rankings, scores_of(model, encoding, rankings))
        best = margins_of(rankings, opinions_without_noise(rankings, training[:10]))
        report[f"accuracy_{name}"] = accuracy(margins[name])
        ceilings[name] = accuracy(best)
    report["labeler_agreement"] = agreement(ranked["sft_pairs"], training, rng)
    del margins["gold"]
    return {**report, "ceilings": ceilings}, margins


# ---------------------------------------------------------------- the SFT baseline (C.1)

def rate_sft_epochs(config, model, prompts, seed):
    """Mean score of each SFT epoch's samples: a list of (epoch, mean, half a 95 % interval), the
    chosen epoch first, then from best to worst.

    The mean over one sample to each of 1,000 prompts has an error of 0.03, and neighbouring epochs
    often differ by less. So the worse half of the epochs is dropped after each round of samples,
    and the last two are compared by eight samples per prompt."""
    encoding = tokenizer.load()
    generator = torch.Generator().manual_seed(seed)
    prompt_ids = tokenizer.encode_prompts(encoding, prompts)
    texts = [row["prompt"] for row in prompts]
    left = sft_epochs(config)
    scores = {epoch: [] for epoch in left}      # a list per sample, in it a score per prompt

    def mean(epoch):
        return sum(map(sum, scores[epoch])) / len(prompts) / len(scores[epoch])

    for n_samples in (1, 1, 2, 4):
        for epoch in tqdm(left, desc="which SFT epoch"):
            policy = load_model(f"{config.out}/sft_epochs/{epoch}.pt")
            for _ in range(n_samples):
                sampled = generate(policy, prompt_ids, MAX_NEW_TOKENS, 1.0, generator)
                responses = tokenizer.decode_responses(encoding, sampled)
                pairs = list(zip(texts, responses))
                scores[epoch].append(score(model, encoding, pairs))
        finalists = left
        left = sorted(left, key=mean, reverse=True)[:(len(left) + 1) // 2]
    # The variance between samples of one prompt, averaged over prompts and epochs
    variances = [torch.tensor(s).var(0) for s in scores.values() if len(s) > 1]
    deviation = torch.stack(variances).mean().sqrt().item()
    table = []
    for epoch, samples in scores.items():
        error = 1.96 * deviation / (len(prompts) * len(samples)) ** 0.5
        table.append((epoch, mean(epoch), error))
    chosen = choose(table, finalists)
    return sorted(table, key=lambda row: (row[0] == chosen, row[1]), reverse=True)


def choose(table, finalists):
    """The better of the last two epochs, or the later one if a 95 % interval of their difference
    contains 0: chance must not choose, and more epochs help human preference (C.1)."""
    rated = {epoch: (mean, error) for epoch, mean, error in table}
    best = max(finalists, key=lambda epoch: rated[epoch][0])
    later = max(finalists, key=int)
    difference = rated[best][0] - rated[later][0]           # of two means with independent errors
    return later if difference <= 2 ** 0.5 * rated[later][1] else best


def keep_best_sft(config, model, prompts):
    """Save the chosen SFT epoch as out/sft.pt, the baseline that PPO is compared with.

    The paper chooses by the reward model, because it predicts human preference better than the
    validation loss does (C.1)."""
    table = rate_sft_epochs(config, model, prompts, config.seed)
    epoch = table[0][0]
    baseline = load_model(f"{config.out}/sft_epochs/{epoch}.pt")
    extra = files.stage_extra(config, "sft", made_from=["gpt", "reward_1"])
    path = Path(config.out) / "sft.pt"
    files.save_checkpoint(path, baseline, **extra, epoch=int(epoch), scores=table)
    print(f"    SFT epoch {int(epoch)} becomes {path}, the baseline (best score)")


# ---------------------------------------------------------------- bookkeeping

def dependencies(config):
    """The settings that this round's output depends on."""
    return own.settings(config)


def main(config):
    """The command line."""
    names = ["reward"] if config.round == 2 else ["reward_1", "sft"]
    if config.unranked:
        return files.alone(config, [], {}, lambda _: own.write_unranked(config, sample))
    files.alone(config, names, dependencies(config), train)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
