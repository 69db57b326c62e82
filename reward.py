"""Step 2. The reward model: what people prefer, as a number.

    out/sft_epochs/*.pt, out/sft_mix.pt, out/gpt.pt -> out/rankings.jsonl, out/reward_1.pt, out/sft.pt       (round 1)
    the same, out/reward_1.pt, out/ppo_1.pt         -> more rankings,      out/reward.pt                     (round 2)

Labelers rank K responses to a prompt (section 3.5: K = 4 to 9). The reward model is a language model with its last layer replaced
by one that puts out a single number, and it learns to score the preferred response higher (equation 1):

    loss = - 1 / C(K, 2)  E[ log sigmoid( r(x, y_w) - r(x, y_l) ) ]

All C(K, 2) pairs of a prompt are one batch element: each response is read once, the prompt once for all, and correlated pairs cannot be spread over
several updates, which overfits (3.5). Ties are dropped (C.2); the mean is over the rest. A bias finally puts demonstrations at 0 on average (3.5).

Two rounds. A reward model that has only seen the SFT model's responses is soon fooled by the policy that is trained against
it; so, as the paper says of steps 2 and 3, the loop is iterated: the first PPO policy's responses are ranked too.
"""
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

from data import files, tokenizer
from data.figures import plot_reward
from data.judge import judge
from data.labeler import agreement, get_labelers, opinions_without_noise
from data.files import (
    MetricLog, UserError, alone, context_of, load_checkpoint, require, save_checkpoint,
    settings_of, stage_extra, read_rankings, sft_epochs
)
from data.flags import BaseConfig, run_script, set_up
from model import (
    GPTConfig, Transformer, batches_of_like_length, cosine, generate, init_weights, load_model,
    muon_and_adam, pad_batch
)

MAX_NEW_TOKENS = 32             # the longest response in ranking, RL and evaluation (1,000)


@dataclass
class Config(BaseConfig):
    """Settings, the paper's value in brackets (3.5, C.2)."""
    round: int = 1              # 1: rank samples of the SFT models; 2: also of the first PPO policy, and train on both rounds
    prompts_1: int = 5_000      # prompts ranked in round 1 (33,207 in all)
    prompts_2: int = 15_000     # prompts ranked in round 2
    k: int = 6                  # responses a prompt (4 to 9)
    labelers_per_prompt: int = 5   # labelers who rank the same responses, each alone (mostly 1): a small model needs clear labels
    epochs: int = 3             # passes over the rankings (1, for more overfit; PPO-ptx closed 0.44 of the gap to a perfect answerer, with 2 passes 0.41: one run)
    batch_size: int = 8         # prompts of a step (64): we have fewer prompts, and small steps learn more from them
    lr: float = 0.0045          # Muon's peak, for the matrices of the blocks, cosine to 10 % (Adam, 9e-6 for 6B)
    lr_rest: float = 2e-3       # Adam's peak, for the rest (9e-6)


# ---------------------------------------------------------------- rankings


def response_sources(config):
    """Who writes responses, each as (name, model, temperature): a list for the first K - 1 places, and one of odd writers that take
    turns at the last (model None: the answer to another prompt).

    Variety is what makes the reward model robust: hot samples, the base model and answers to other prompts show it the kinds
    of nonsense that a policy might otherwise try. Most of the paper's come from SFT policies, some from PPO policies."""
    sft = load_model(require(config, f"sft_epochs/{sft_epochs(config)[-1]}", "sft.py"))
    mixed, gpt = load_model(require(config, "sft_mix", "sft.py")), load_model(require(config, "gpt", "model.py"))
    odd = [("sft_hot", sft, 1.5), ("gpt", gpt, 1.0), ("other_prompt", None, 1.0)]
    if config.round == 1:
        return [("sft", sft, 1.0), ("sft", sft, 1.0), ("sft_mix", mixed, 1.0), ("sft_mix", mixed, 1.0), ("sft_hot", sft, 1.3)], odd
    policy = load_model(require(config, "ppo_1", "ppo.py"))
    return [("ppo_1", policy, 1.0), ("ppo_1", policy, 1.0), ("ppo_hot", policy, 1.3), ("sft", sft, 1.0), ("sft_mix", mixed, 1.0)], odd


def collect(rows, mix, k, rng, generator):
    """K distinct responses to each prompt: a list of lists of {"text", "ended", "sampler"}.

    rows: lines of a prompts file; mix: see `response_sources`. The last place is taken by one of the odd samplers in turn. A response that
    somebody has given already is drawn again, hotter (sampler NAME_again); one still the same is left out."""
    encoding, (usual, odd) = tokenizer.load(), mix
    prompts = [tokenizer.prompt_ids(encoding, row["prompt"]) for row in rows]
    found = [{} for _ in rows]                                          # text -> response

    def draw(which, name, model, temperature):
        answers = generate(model, [prompts[i] for i in which], MAX_NEW_TOKENS, temperature, generator)
        for i, ids in zip(which, answers):
            text, ended = tokenizer.response_text(encoding, ids)
            found[i].setdefault(text, {"text": text, "ended": ended, "sampler": name})

    everybody = list(range(len(rows)))
    for name, model, temperature in usual[:k - 1] if odd else usual[:k]:
        draw(everybody, name, model, temperature)
    for turn, (name, model, temperature) in enumerate(odd):
        which = everybody[turn::len(odd)]
        if model is not None:
            draw(which, name, model, temperature)
        else:
            for i in which:                                             # somebody's right words, in the wrong place
                other = rng.choice(list(found[rng.choice(everybody)].values()))
                found[i].setdefault(other["text"], {**other, "sampler": name})
    for again in range(3):
        short = [i for i in everybody if len(found[i]) < k]
        if short:
            draw(short, f"{usual[again][0]}_again", usual[again][1], 1.2 + 0.2 * again)
    return [rng.sample(list(responses.values()), min(k, len(responses))) for responses in found]


def rank(rows, responses, people, rng, round, opinions=1):
    """Lines for out/rankings.jsonl: one labeler ranks all responses to a prompt; further ones, each alone, give second opinions."""
    ranked = []
    for row, answers in zip(rows, responses):
        person, *others = rng.sample(people, opinions)
        ranked.append({"prompt": row["prompt"], "task": row["task"], "responses": answers,
                       "ranks": person.rank(row["task"], answers), "labeler": person.name, "round": round,
                       "second_opinions": [other.rank(row["task"], answers) for other in others]})
    return ranked


# ---------------------------------------------------------------- the model and its loss


class RewardModel(nn.Module):
    """A language model whose last layer puts out one number at each position. The parameter names are those of
    GPT2ForSequenceClassification in transformers; PPO's value network is one of these too."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.transformer = Transformer(config)
        self.score = nn.Linear(config.n_embd, 1, bias=False)
        self.register_buffer("bias", torch.zeros(()))                   # puts demonstrations at 0 (3.5); not trained
        init_weights(self)
        nn.init.zeros_(self.score.weight)                               # all responses start equal: loss log 2

    def values(self, idx, **sharing):
        """idx (B, T) -> (B, T): the number at every position, having read up to and including it."""
        return self.score(self.transformer(idx, **sharing)).squeeze(-1) + self.bias

    def forward(self, idx, lengths):
        """idx (B, T), lengths (B,) -> scores (B,): the number at the last real token; padding behind it cannot matter."""
        return self.values(idx).gather(1, lengths[:, None] - 1).squeeze(1)


def from_language_model(path, device):
    """A reward model with the trunk of a language model and a fresh head."""
    saved = load_checkpoint(path, device)
    model = RewardModel(GPTConfig(**{**saved["config"], "dropout": 0.0})).to(device)
    model.transformer.load_state_dict({k.removeprefix("transformer."): v for k, v in saved["state"].items() if k.startswith("transformer.")})
    return model


def load_reward_model(path, device="cpu"):
    """The reward model of a checkpoint."""
    return load_model(path, device, RewardModel)


def ranking_loss(scores, valid):
    """Equation 1. scores (N, K); valid (N, K, K), how many labelers ranked response i of a prompt above j -> scalar.

    The mean over a prompt's pairs that are not tied, its labelers' together (with one labeler and no ties there are C(K, 2)), then
    over prompts: each prompt is one batch element, however many pairs it has."""
    margins = scores[:, :, None] - scores[:, None, :]                   # (N, K, K): r(x, y_i) - r(x, y_j)
    pairs = valid.sum(dim=(1, 2))                                       # (N,): labelers x C(K, 2), less ties
    losses = -(F.logsigmoid(margins) * valid).sum(dim=(1, 2)) / pairs.clamp(min=1)              # (N,)
    return losses.sum() / (pairs > 0).sum().clamp(min=1)


def ranking_batch(lines, encoding, pad, device):
    """Lines of rankings -> idx, positions (N, T), attn_mask (N, 1, T, T), last (N, K), valid (N, K, K).

    A row is a prompt with all its responses behind it, so that the prompt is read once, not K times. `attn_mask` lets each
    response see the prompt and itself, not its neighbours, and positions go on from the prompt in each: the scores, taken
    where a response ends (`last`), are those of the responses alone. Missing responses take part in no pair."""
    K = max(len(line["responses"]) for line in lines)
    rows, positions, parts, last, valid = [], [], [], torch.zeros(len(lines), K, dtype=torch.long), torch.zeros(len(lines), K, K)
    for n, line in enumerate(lines):
        prompt = tokenizer.prompt_ids(encoding, line["prompt"])
        row, place, part = list(prompt), list(range(len(prompt))), [0] * len(prompt)            # part 0: the prompt
        for k, r in enumerate(line["responses"]):
            answer = tokenizer.response_ids(encoding, r["text"], r["ended"])
            row, place = row + answer, place + list(range(len(prompt), len(prompt) + len(answer)))
            part, last[n, k] = part + [k + 1] * len(answer), len(row) - 1
        rows, positions, parts = rows + [row], positions + [place], parts + [part]
        for ranks in map(torch.tensor, [line["ranks"], *line.get("second_opinions", [])]):      # (responses,)
            valid[n, :len(ranks), :len(ranks)] += ranks[:, None] < ranks[None, :]
    idx, positions, parts = (pad_batch(x, filler, device)[0] for x, filler in ((rows, pad), (positions, 0), (parts, K + 1)))   # (N, T)
    causal = torch.ones(idx.shape[1], idx.shape[1], dtype=torch.bool, device=device).tril()     # (T, T)
    attn_mask = causal & ((parts[:, None, :] == 0) | (parts[:, None, :] == parts[:, :, None]))    # (N, T, T)
    return idx, positions, attn_mask[:, None], last.to(device), valid.to(device)


@torch.no_grad()
def score(model, encoding, pairs):
    """Scores of many (prompt text, response {"text", "ended"}) pairs: a list of floats, in the order given."""
    sequences = [tokenizer.prompt_ids(encoding, p) + tokenizer.response_ids(encoding, r["text"], r["ended"]) for p, r in pairs]
    order, scores = sorted(range(len(pairs)), key=lambda i: len(sequences[i])), [0.0] * len(pairs)
    for start in range(0, len(order), 256):
        rows = order[start:start + 256]
        values = model(*pad_batch([sequences[i] for i in rows], model.config.pad_id, model.score.weight.device))     # (up to 256,)
        for i, value in zip(rows, values.tolist()):
            scores[i] = value
    return scores


# ---------------------------------------------------------------- how good is it?


def margins_of(ranked, scores):
    """For every pair of responses that a labeler did not tie: score of the preferred minus score of the other; scores: a list a line."""
    return [values[i] - values[j] for line, values in zip(ranked, scores)
            for i, a in enumerate(line["ranks"]) for j, b in enumerate(line["ranks"]) if a < b]


def accuracy(margins):
    """The share of pairs whose order is right; an equal score is half right."""
    return sum(1.0 if m > 0 else 0.5 if m == 0 else 0.0 for m in margins) / max(1, len(margins))


def scores_of(model, encoding, ranked):
    """Scores of every response of every line: a list of lists."""
    flat = iter(score(model, encoding, [(line["prompt"], r) for line in ranked for r in line["responses"]]))
    return [[next(flat) for _ in line["responses"]] for line in ranked]


def evaluate_reward_model(model, config, rows):
    """The reward model on prompts that it was not trained on, responses from the same mix, and from the SFT model alone, whose repeats
    are drawn again, hotter. Returns (results.json's "reward_model", score margins for the calibration plot). Ceilings: the accuracy of
    the mean opinion of ten training labelers without noise, which a reward model trained on their rankings can hardly beat."""
    encoding, rng, generator = tokenizer.load(), random.Random(config.seed), torch.Generator().manual_seed(config.seed)
    usual, odd = response_sources(config)
    mixed = collect(rows, (usual, odd), config.k, rng, generator)
    sft = [("sft", load_model(require(config, "sft", "reward.py")), 1.0)] * config.k
    alone = collect(rows, (sft, []), config.k, rng, generator)
    people = {group: get_labelers(group) for group in ("train", "held_out")}
    lines = {"train_labelers": rank(rows, mixed, people["train"], rng, 0), "heldout_labelers": rank(rows, mixed, people["held_out"], rng, 0),
             "sft_pairs": rank(rows, alone, people["train"], rng, 0)}
    ten, report, ceilings, margins = people["train"][:10], {}, {}, {}
    for name, ranked in lines.items():
        margins[name] = margins_of(ranked, scores_of(model, encoding, ranked))
        report[f"accuracy_{name}"] = accuracy(margins[name])
        ceilings[name] = accuracy(margins_of(ranked, opinions_without_noise(ranked, ten)))
    gold = [{**line, "ranks": [-judge(line["task"], r["text"], r["ended"]).utility for r in line["responses"]]} for line in lines["train_labelers"]]
    report["accuracy_gold"] = accuracy(margins_of(gold, scores_of(model, encoding, gold)))
    ceilings["gold"] = accuracy(margins_of(gold, opinions_without_noise(gold, ten)))
    report["labeler_agreement"] = agreement(lines["sft_pairs"], people["train"], rng)
    return {**report, "ceilings": ceilings}, margins


def rate_sft_epochs(config, model, rows, seed):
    """Mean score that the reward model gives to samples of each SFT epoch on the prompts `rows`: a list of
    (epoch's name, mean, half of a 95 % interval over samples), the best first.

    One sample to each of 1,000 prompts errs by 0.03, and neighbouring epochs often differ by less. So the worse
    half of the epochs goes after each round of samples, and those that are close are told apart by eight. If
    eight cannot tell the last two apart, the later is taken: luck must not choose, and more epochs help people's
    preference (C.1)."""
    encoding, generator = tokenizer.load(), torch.Generator().manual_seed(seed)
    prompts = [tokenizer.prompt_ids(encoding, row["prompt"]) for row in rows]
    left = sft_epochs(config)
    scores = {name: [] for name in left}                                # a list per sample: a score per prompt

    def mean(name):
        return sum(map(sum, scores[name])) / len(rows) / len(scores[name])

    for tries in (1, 1, 2, 4):
        for name in tqdm(left, desc="which SFT epoch"):
            policy = load_model(f"{config.out}/sft_epochs/{name}.pt")
            for _ in range(tries):
                answers = generate(policy, prompts, MAX_NEW_TOKENS, 1.0, generator)
                texts = [tokenizer.response_text(encoding, ids) for ids in answers]
                responses = [{"text": text, "ended": ended} for text, ended in texts]
                scores[name].append(score(model, encoding, list(zip([row["prompt"] for row in rows], responses))))
        finalists, left = left, sorted(left, key=mean, reverse=True)[:(len(left) + 1) // 2]
    # How far the scores of one prompt's samples lie apart, averaged over prompts and epochs.
    spread = torch.stack([torch.tensor(s).var(0) for s in scores.values() if len(s) > 1]).mean().sqrt().item()
    table = [(name, mean(name), 1.96 * spread / (len(rows) * len(scores[name])) ** 0.5) for name in scores]
    chosen = choose(table, finalists)
    return sorted(table, key=lambda row: (row[0] == chosen, row[1]), reverse=True)


def choose(table, finalists):
    """The better of the last two epochs, the later one if a 95 % interval of their difference holds 0; table: see rate_sft_epochs."""
    rated = {name: (mean, error) for name, mean, error in table}
    best, later = max(finalists, key=lambda name: rated[name][0]), max(finalists, key=int)
    return later if rated[best][0] - rated[later][0] <= 2 ** 0.5 * rated[later][1] else best


def keep_best_sft(config, model, rows):
    """Writes the SFT epoch whose samples the reward model scores best on validation prompts (C.1) to out/sft.pt: the baseline."""
    table = rate_sft_epochs(config, model, rows, config.seed)
    epoch = table[0][0]
    chosen = load_model(f"{config.out}/sft_epochs/{epoch}.pt")
    save_checkpoint(Path(config.out) / "sft.pt", chosen, **stage_extra(config, "sft", made_from=["gpt", "reward_1"]), epoch=int(epoch), scores=table)
    print(f"    the reward model likes SFT epoch {int(epoch)} best; it becomes {config.out}/sft.pt, the baseline")


# ---------------------------------------------------------------- training


def fit(config, ranked):
    """config.epochs passes over the rankings; returns (model, losses: nats a pair, a number a step).

    Round 1 starts from the base model, much as the paper's final one (C.2: a GPT-3 fine-tuned on public data), not from SFT (3.5); it
    made no difference (round 2 begun anew: of validation pairs 91 and 93 % in the judge's order from SFT, 91 and 94 % from the base
    model; seeds 11, 13). Round 2 goes on from round 1's model (93 and 93 %): a new one may be late to compare answer and prompt.

    Muon, with which the base model was trained too, learns to do so sooner than Adam: of the pairs of PPO's samples Adam's reward model
    ordered 61 to 63 % as the judge does, Muon's 75 and 68 % (seeds 11 and 12). `lr` of 0.003 and 0.0065: 91 and 90 %, not 92 (seed 12)."""
    (device, rng, _), encoding = set_up(config), tokenizer.load()
    model = (from_language_model(require(config, "gpt", "model.py"), device) if config.round == 1 else
             load_reward_model(require(config, "reward_1", "reward.py"), device))
    optimizers = muon_and_adam(model, config.lr, config.lr_rest)
    steps = config.epochs * (len(ranked) // config.batch_size)
    if not steps:
        raise UserError(f"--batch_size {config.batch_size}: there are only {len(ranked)} rankings")
    log, bar = MetricLog(config, f"reward_{config.round}"), tqdm(range(steps), desc=f"reward model, round {config.round}")
    losses, queue = [], []
    for step in bar:
        queue = queue or batches_of_like_length(
            ranked, config.batch_size, lambda line: len(line["prompt"]) + sum(len(r["text"]) for r in line["responses"]), rng)
        lines = queue.pop()
        idx, positions, attn_mask, last, valid = ranking_batch(lines, encoding, model.config.pad_id, device)
        scores = model.values(idx, positions=positions, attn_mask=attn_mask).gather(1, last)        # (N, K)
        loss = ranking_loss(scores, valid)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)                                       # [not stated]
        for optimizer, peak in optimizers:
            optimizer.param_groups[0]["lr"] = cosine(step, steps, peak, warmup=steps // 50)
            optimizer.step()
            optimizer.zero_grad()
        right = ((scores[:, :, None] > scores[:, None, :]) * valid).sum().item() / max(1, valid.sum().item())
        losses.append(loss.item())
        log.write(step=step, loss=loss.item(), accuracy=right)
        bar.set_postfix(loss=f"{sum(losses[-50:]) / len(losses[-50:]):.3f}")
    return model.eval(), losses


@torch.no_grad()
def centre(model, encoding):
    """Sets the bias that puts the labelers' demonstrations at 0 on average (3.5)."""
    demonstrations = files.read_jsonl(files.FOLDER / "demonstrations.jsonl", prompt=str, completion=str)[:1_000]
    scores = score(model, encoding, [(row["prompt"], {"text": row["completion"], "ended": True}) for row in demonstrations])
    model.bias -= sum(scores) / len(scores)


def dependencies(config):
    """The settings that this round's products depend on."""
    settings = settings_of(config)
    if config.round == 1:
        del settings["prompts_2"]
    return settings


def share(config):
    """Which of the prompts this round ranks: (the first, how many)."""
    return (0, config.prompts_1) if config.round == 1 else (config.prompts_1, config.prompts_2)


def check(config, block_size):
    """What this round needs, so that it is known before anything is trained; block_size: of the
    base model. Raises UserError."""
    prompts, valid = (files.read_prompts(name)
                      for name in ("rm", "valid"))
    first, wanted = share(config)
    people = len(get_labelers("train"))
    for flag, value, least, most in (
            ("round", config.round, 1, 2), ("k", config.k, 3, 9),
            ("labelers_per_prompt", config.labelers_per_prompt, 1, people),
            (f"prompts_{config.round}", wanted, 1, len(prompts) - first),
            ("batch_size", config.batch_size, 1, first + wanted)):
        if not least <= value <= most:
            raise UserError(f"--{flag} {value}: can be {least} to {most} here")
    encoding = tokenizer.load_cached()
    sequences = [tokenizer.prompt_ids(encoding, row["prompt"]) for row in prompts + valid]
    what = "ranking, the longest prompt with its response,"
    files.check_room(block_size, sequences, what, MAX_NEW_TOKENS)


def train(config):
    """Collects this round's rankings, trains the reward model on all of them; in round 1 also picks the SFT baseline."""
    start, path = time.time(), Path(config.out) / "rankings.jsonl"
    _, rng, _ = set_up(config)
    generator = torch.Generator().manual_seed(config.seed)              # people's rankings are collected on the CPU
    encoding, prompts = tokenizer.load(), files.read_prompts("rm")
    valid = files.read_prompts("valid")
    people, (first, wanted) = get_labelers("train"), share(config)
    check(config, context_of(config))
    print(f"step 2, the reward model, round {config.round}: people rank {config.k} responses a prompt")
    rows, responses, mix = prompts[first:first + wanted], [], response_sources(config)
    earlier, later = [], []                                             # the other round's rankings
    if config.round == 2:
        earlier = [line for line in read_rankings(path) if line["round"] == 1]
        require(config, "sft", "reward.py")                                # it is read at the end: better missed now
    elif (Path(config.out) / "reward.pt").exists() and path.exists():
        # Round 1 made again: round 2 has learnt from its own lines
        later = [line for line in read_rankings(path) if line["round"] == 2]
    for i in tqdm(range(0, len(rows), 1_000), desc="sampling and ranking"):
        responses += collect(rows[i:i + 1_000], mix, config.k, rng, generator)
    kept = [(row, answers) for row, answers in zip(rows, responses) if len(answers) >= min(4, config.k)]
    ranked = earlier + rank([row for row, _ in kept], [answers for _, answers in kept], people, rng, config.round, config.labelers_per_prompt)
    model, losses = fit(config, ranked)
    centre(model, encoding)
    # With the model: what stands there is what it learnt from
    files.write(path, "".join(json.dumps(line) + "\n" for line in ranked + later))
    name, parents = ("reward_1", ["sft_mix"]) if config.round == 1 else ("reward", ["reward_1", "ppo_1"])
    extra = stage_extra(config, "reward", made_from=parents) | {"settings": dependencies(config)}
    if config.round == 1:
        save_checkpoint(Path(config.out) / f"{name}.pt", model, **extra)
        keep_best_sft(config, model, valid)
    report, margins = evaluate_reward_model(model, config, valid[:400])
    table = [tuple(row) for row in load_checkpoint(Path(config.out) / "sft.pt")["extra"]["scores"]]
    plot_reward(Path(config.out) / "reward.png", losses, margins, table)
    if config.round == 2:               # last: where it stands, a stage is finished, its picture too
        save_checkpoint(Path(config.out) / f"{name}.pt", model, **extra)
    print("    " + ", ".join(f"{key.replace('_', ' ')} {value:.3f}" for key, value in report.items() if key != "ceilings"))
    print(f"made {config.out}/{name}.pt from {len(ranked):,} rankings in {time.time() - start:.0f} s. Next: python ppo.py\n")


def main(config):
    """The command line."""
    names = ["reward"] if config.round == 2 else ["reward_1", "sft"]
    alone(config, names, dependencies(config), train)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
