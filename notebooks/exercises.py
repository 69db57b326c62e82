"""Exercises that check themselves: `exercises.check_gae(my_gae)` says whether it is right, or what is wrong with it.

A student's function is compared with the script's own on random inputs. If it is wrong and does what one of the known MISTAKES
does, the student gets the hint that fits; otherwise the first input on which it differs. A check prints one line and returns True or
False; it never ends in a traceback. Solutions: solutions.md.
"""
import copy
import math
import random

import torch
import torch.nn.functional as F

import model
import ppo
import reward
import sft
from data import judge, labeler

# ---------------------------------------------------------------- how a check works


def flat(x):
    """Numbers, tensors and nested lists of them as one float64 tensor; None where that is impossible."""
    try:
        if hasattr(x, "tolist") and not isinstance(x, torch.Tensor):
            x = x.tolist()                                  # NumPy's
        if isinstance(x, dict):
            x = [x[key] for key in sorted(x)]
        if isinstance(x, (list, tuple)):
            parts = [flat(part) for part in x]
            return None if any(part is None for part in parts) else torch.cat([torch.zeros(0, dtype=torch.float64), *parts])
        return torch.as_tensor(x, dtype=torch.float64).detach().flatten() if isinstance(x, (bool, int, float, torch.Tensor)) else None
    except Exception:                                       # a student may return anything: 10 ** 400, a list that holds itself
        return None


def same(x, y):
    """Whether two answers agree, to about five digits."""
    x, y = flat(x), flat(y)
    return x is not None and y is not None and x.shape == y.shape and bool(torch.allclose(x, y, rtol=1e-4, atol=1e-5, equal_nan=True))


def brief(x):
    """An answer in few characters."""
    numbers = flat(x)
    if numbers is None:
        return repr(x)[:60]
    return f"{numbers[0]:.4g}" if len(numbers) == 1 else "[" + ", ".join(f"{v:.4g}" for v in numbers[:6].tolist()) + ", ..." * (len(numbers) > 6) + "]"


def said(right, text):
    """Prints the verdict and returns it."""
    print(("Right. " if right else "Not yet. ") + text)
    return right


def compare(student, right, mistakes, cases):
    """Runs a student's function on every case, a tuple of arguments; mistakes: pairs (hint, wrong function)."""
    answers = []
    for case in cases:
        try:
            answers.append(student(*copy.deepcopy(case)))
        except Exception as error:                          # a student's code may fail in any way
            return said(False, f"It stops with {type(error).__name__}: {error}")
        if answers[-1] is None:
            return said(False, "It returns nothing: replace the ... by your answer, and end with `return`.")
    wrong = [i for i, case in enumerate(cases) if not same(answers[i], right(*case))]
    if not wrong:
        return said(True, f"The same as ours on {len(cases)} inputs.")
    for hint, mistake in mistakes:
        if all(same(answer, mistake(*copy.deepcopy(case))) for answer, case in zip(answers, cases)):
            return said(False, hint)
    expected, got = right(*cases[wrong[0]]), answers[wrong[0]]
    sizes = [None if flat(x) is None else len(flat(x)) for x in (expected, got)]
    if sizes[0] != sizes[1]:
        return said(False, f"It returns {'no numbers' if sizes[1] is None else f'{sizes[1]} numbers'} where {sizes[0]} are expected: {brief(got)}.")
    place = next((i for i, (x, y) in enumerate(zip(flat(got), flat(expected))) if not same(float(x), float(y))), 0)
    return said(False, f"On {len(wrong)} of {len(cases)} inputs it differs: at place {place} {brief(flat(got)[place])} where {brief(flat(expected)[place])} is right.")


def compare_value(answer, right, mistakes):
    """The same for an answer that is one number or word; mistakes: pairs (hint, wrong value)."""
    if answer is ...:
        return said(False, "No answer yet: replace the ... by yours.")
    if (isinstance(answer, str) and answer == right) or same(answer, right):
        return said(True, f"It is {right}.")
    return said(False, next((hint for hint, wrong in mistakes if same(answer, wrong)), f"It is not {brief(answer)}."))


def episodes(seed, B=4, R=6):
    """Random (B, R) tensors as in a rollout: logprobs, ref_logprobs, values, advantages, and a ragged mask (B, R)."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, R, (B,), generator=g)
    lengths[0] = R
    mask = (torch.arange(R) < lengths[:, None]).float()
    logprobs, ref_logprobs, values, advantages = (torch.randn(4, B, R, generator=g) * mask).unbind()
    return logprobs - 1, ref_logprobs - 1, values, advantages, mask


# ---------------------------------------------------------------- 0. the base model

MISTAKES = {}           # exercise -> pairs (hint, a wrong function or value); the tests make sure that each is refused with its hint

MISTAKES["next_token_loss"] = [
    ("Row t of the logits predicts token t + 1: shift the targets by one.", lambda logits, ids: F.cross_entropy(logits, ids)),
    ("T tokens make T - 1 predictions: divide by T - 1.", lambda logits, ids: F.cross_entropy(logits[:-1], ids[1:], reduction="sum") / len(ids)),
    ("That is a sum; the loss is the mean over predicted tokens.", lambda logits, ids: F.cross_entropy(logits[:-1], ids[1:], reduction="sum")),
    ("That is in bits: use the natural logarithm, nats.", lambda logits, ids: F.cross_entropy(logits[:-1], ids[1:]) / math.log(2)),
    ("That is a mean of probabilities: take their logarithms first, and a minus.", lambda logits, ids: logits[:-1].softmax(-1).gather(1, ids[1:, None]).mean())]


def check_next_token_loss(my_next_token_loss):
    """my_next_token_loss(logits (T, V), ids (T,)) -> mean nats a predicted token, as in model.corpus_loss."""
    cases = [(torch.randn(7, 11), torch.randint(11, (7,))) for _ in range(5)]
    return compare(my_next_token_loss, lambda logits, ids: F.cross_entropy(logits[:-1], ids[1:]), MISTAKES["next_token_loss"], cases)


MISTAKES["perplexity"] = [
    ("The loss is in nats: the base is e, not 2.", lambda loss: 2 ** loss),
    ("That is the mean probability of a token; perplexity is its inverse.", lambda loss: math.exp(-loss)),
    ("That is the loss itself.", lambda loss: loss)]


def check_perplexity(my_perplexity):
    """my_perplexity(loss in nats) -> among how many equally likely tokens one would be as unsure."""
    return compare(my_perplexity, math.exp, MISTAKES["perplexity"], [(x,) for x in (0.7, 1.0, 3.3)])


def pick(probabilities, u):
    """The token at which the summed probabilities pass u, as in model.generate_batch."""
    summed = probabilities.cumsum(-1)
    return int(torch.searchsorted(summed, torch.tensor([u]) * summed[-1])[0])


def draw(logits, temperature, u):
    """A token of the script's distribution; <|pad|> is the last id."""
    return pick(model.distribution(logits, temperature, len(logits) - 1).exp(), u)


MISTAKES["sample"] = [
    ("That takes the likeliest token, whatever u is.", lambda logits, temperature, u: int(logits[:-1].argmax())),
    ("The temperature divides the logits: a high one makes the distribution flat.", lambda logits, temperature, u: draw(logits, 1 / temperature, u)),
    ("<|pad|>, the last id, must be impossible: give it the logit -inf.", lambda logits, temperature, u: pick((logits / temperature).softmax(-1), u)),
    ("The temperature is missing.", lambda logits, temperature, u: draw(logits, 1.0, u))]


def check_sample(my_sample):
    """my_sample(logits (V,), temperature, u in [0, 1)) -> id: the first at which the summed probabilities pass u."""
    rng = random.Random(0)
    cases = [(torch.randn(9) * 2 + torch.eye(9)[8] * 3, t, rng.random()) for t in (0.5, 1.0, 2.0) for _ in range(20)]
    return compare(my_sample, draw, MISTAKES["sample"], cases)


def parameters():
    """Parameters of the default GPT, and of GPTs counted wrongly: (right, head counted twice, no biases, no positions)."""
    gpt = model.GPT(model.GPTConfig())
    total = sum(p.numel() for p in gpt.parameters())
    biases = sum(p.numel() for name, p in gpt.named_parameters() if name.endswith("bias"))
    return total, total + gpt.lm_head.weight.numel(), total - biases, total - gpt.transformer.wpe.weight.numel()


MISTAKES["parameters"] = list(zip(("The last layer shares its table with the embedding: count it once.", "The linear layers and the norms have biases, too.",
                                   "Positions have an embedding, too: block_size rows."), parameters()[1:]))


def check_parameters(number):
    """The number of parameters of GPT(GPTConfig()), worked out from its shapes."""
    return compare_value(number, parameters()[0], MISTAKES["parameters"])


# ---------------------------------------------------------------- 1. supervised fine-tuning


def mask_of(prompt_length, length, T):
    """What sft.sft_batch makes of a prompt and a response in a row of T tokens: T - 1 zeros and ones."""
    others = [([0] * prompt_length, [0] * (T - prompt_length))]         # a longer neighbour sets the width
    return sft.sft_batch([([0] * prompt_length, [0] * (length - prompt_length)), *others], 0)[1][0].tolist()


MISTAKES["mask"] = [
    ("The first response token is missing. Target t is token t + 1, so the mask begins at prompt_length - 1.", lambda p, n, T: mask_of(p + 1, n, T)),
    ("The last response token, end-of-text, must be learnt, or responses never stop.", lambda p, n, T: mask_of(p, n - 1, T)),
    ("The prompt is given, not predicted: 0 there.", lambda p, n, T: [float(t < n) for t in range(1, T)]),
    ("Padding behind the response is not learnt: 0 there.", lambda p, n, T: [float(t >= p) for t in range(1, T)])]


def check_mask(my_mask):
    """my_mask(prompt_length, length of prompt and response, T) -> T - 1 zeros and ones, as in sft.sft_batch."""
    return compare(my_mask, mask_of, MISTAKES["mask"], [(3, 6, 9), (1, 4, 7), (5, 8, 12)])


def token_losses(logits, idx):
    """Cross-entropy of each target: logits (B, T - 1, V), idx (B, T) -> (B, T - 1)."""
    return F.cross_entropy(logits.flatten(0, 1), idx[:, 1:].flatten(), reduction="none").view(idx.shape[0], -1)


MISTAKES["masked_loss"] = [
    ("That is a mean over all targets: divide by the number of response tokens.", lambda logits, idx, mask: (token_losses(logits, idx) * mask).mean()),
    ("That weighs short responses like long ones; our loss is a mean over tokens, not over responses.",
     lambda logits, idx, mask: ((token_losses(logits, idx) * mask).sum(1) / mask.sum(1)).mean()),
    ("That is a sum: divide by the number of response tokens.", lambda logits, idx, mask: (token_losses(logits, idx) * mask).sum()),
    ("The sign is wrong: a loss falls when the response becomes likelier.", lambda logits, idx, mask: -(token_losses(logits, idx) * mask).sum() / mask.sum()),
    ("The mask is missing: the prompt is learnt too.", lambda logits, idx, mask: token_losses(logits, idx).mean())]


def check_masked_loss(my_masked_loss):
    """my_masked_loss(logits (B, T - 1, V), idx (B, T), mask (B, T - 1)) -> scalar, as in sft.sft_loss."""
    cases = []
    for seed in range(5):
        mask = episodes(seed)[-1]
        cases.append((torch.randn(4, 6, 11), torch.randint(11, (4, 7)), mask))
    return compare(my_masked_loss, lambda logits, idx, mask: sft.sft_loss(lambda _, wanted: logits[wanted], idx, mask), MISTAKES["masked_loss"], cases)


MISTAKES["cosine"] = [
    ("It must end at a tenth of the peak, not at 0.", lambda step, steps, peak: peak * 0.5 * (1 + math.cos(math.pi * step / steps))),
    ("That is a straight line; a cosine falls slowly at first and at the end.", lambda step, steps, peak: peak * (1 - 0.9 * step / steps)),
    ("That turns round and comes back: half a period, from 0 to pi, is enough.", lambda step, steps, peak: peak * (0.1 + 0.45 * (1 + math.cos(2 * math.pi * step / steps))))]


def check_cosine(my_cosine):
    """my_cosine(step, steps, peak) -> learning rate: half a cosine from the peak to a tenth of it, as model.cosine without warm-up."""
    return compare(my_cosine, model.cosine, MISTAKES["cosine"], [(step, 80, 0.01) for step in (0, 10, 40, 60, 80)])


MISTAKES["epoch"] = [("That epoch has the lowest validation loss. The paper does not pick by it (C.1): which column measures what people prefer?", "loss"),
                     ("That is the last one: trained longest, but is it preferred most?", "last"),
                     ("That epoch's samples are the best in truth, by the gold judge; but nobody who trains a model can see that.", "gold")]


def check_epoch(epoch, table):
    """Which epoch becomes the SFT baseline? table: recorded rows of epoch, valid_loss, score, gold."""
    picks = {"loss": min(table, key=lambda row: row["valid_loss"])["epoch"], "last": table[-1]["epoch"], "gold": max(table, key=lambda row: row["gold"])["epoch"]}
    return compare_value(epoch, max(table, key=lambda row: row["score"])["epoch"], [(hint, picks[pick]) for hint, pick in MISTAKES["epoch"]])


# ---------------------------------------------------------------- 2. the reward model

MISTAKES["preference"] = [
    ("Turned round: the better a, the higher the chance of a.", lambda a, b: 1 / (1 + math.exp(a - b))),
    ("Scores may be negative: take the sigmoid of their difference, not a share of their sum.", lambda a, b: a / (a + b)),
    ("That is the difference; a probability lies between 0 and 1.", lambda a, b: a - b)]


def check_preference(my_preference):
    """my_preference(score a, score b) -> the chance that a is preferred to b (Bradley-Terry)."""
    return compare(my_preference, lambda a, b: 1 / (1 + math.exp(b - a)), MISTAKES["preference"], [(1.0, 0.5), (-0.3, 2.0), (3.0, 2.5), (0.7, 0.4)])


def pairs_of(ranks):
    """(i, j) for all responses i ranked better than j; 1 is best, ties make no pair."""
    return [(i, j) for i, a in enumerate(ranks) for j, b in enumerate(ranks) if a < b]


MISTAKES["pairs"] = [
    ("Turned round: rank 1 is the best.", lambda ranks: sorted((j, i) for i, j in pairs_of(ranks))),
    ("Ties are dropped: equal ranks say nothing about who is better.", lambda ranks: [(i, j) for i, a in enumerate(ranks) for j, b in enumerate(ranks) if i != j and a <= b]),
    ("Count from 0.", lambda ranks: [(i + 1, j + 1) for i, j in pairs_of(ranks)]),
    ("Only neighbours in rank: but the best is also better than the third. All pairs count.", lambda ranks: [(i, j) for i, j in pairs_of(ranks) if ranks[j] - ranks[i] == 1])]


def check_pairs(my_pairs):
    """my_pairs(ranks) -> a list of (i, j), response i ranked better than j."""
    def ordered(ranks):
        pairs = my_pairs(ranks)
        return pairs if pairs is None else sorted(tuple(map(int, pair)) for pair in pairs)
    return compare(ordered, pairs_of, MISTAKES["pairs"], [([2, 1, 3, 2],), ([1, 2, 3, 4],), ([3, 1, 1, 2, 4],)])


def equation_1(scores, ranks):
    """reward.ranking_loss for one prompt: scores (K,), ranks a list of K."""
    ranks = torch.tensor(ranks)
    return reward.ranking_loss(scores[None], (ranks[:, None] < ranks[None, :]).float()[None])


def mean_over(scores, ranks, term):
    """The mean of term(margin) over the pairs of a ranking."""
    return sum(term(scores[i] - scores[j]) for i, j in pairs_of(ranks)) / len(pairs_of(ranks))


MISTAKES["ranking_loss"] = [
    ("That is a sum: divide by the number of pairs.", lambda scores, ranks: equation_1(scores, ranks) * len(pairs_of(ranks))),
    ("The margins are turned round: the better response's score comes first.", lambda scores, ranks: equation_1(-scores, ranks)),
    ("The sign is wrong: a log-probability is negative, a loss is not.", lambda scores, ranks: -equation_1(scores, ranks)),
    ("Divide by the pairs that are left, not by C(K, 2): ties have been dropped.",
     lambda scores, ranks: equation_1(scores, ranks) * len(pairs_of(ranks)) / math.comb(len(ranks), 2)),
    ("That is one minus a probability; the loss is minus its logarithm.", lambda scores, ranks: mean_over(scores, ranks, lambda m: 1 - torch.sigmoid(m)))]


def check_ranking_loss(my_ranking_loss):
    """my_ranking_loss(scores (K,), ranks, a list of K) -> equation 1 for one prompt, as in reward.ranking_loss."""
    return compare(my_ranking_loss, equation_1, MISTAKES["ranking_loss"], [(torch.randn(4), [2, 1, 3, 2]), (torch.randn(4), [1, 2, 3, 4]), (torch.randn(5), [3, 1, 1, 2, 4])])


MISTAKES["bias"] = [
    ("With that their mean would double: the bias is added to every score, so it needs a minus.", lambda scores: sum(scores) / len(scores)),
    ("That puts the best demonstration at 0; the paper puts their mean there.", lambda scores: -max(scores)),
    ("That is minus the sum, not minus the mean.", lambda scores: -sum(scores))]


def check_bias(my_bias):
    """my_bias(scores of demonstrations) -> what to add to every score so that theirs are 0 on average, as in reward.centre."""
    rng = random.Random(0)
    return compare(my_bias, lambda scores: -sum(scores) / len(scores), MISTAKES["bias"], [([rng.gauss(1, 1) for _ in range(8)],) for _ in range(3)])


# ---------------------------------------------------------------- 3. PPO


def score_at_end(scores, mask, last):
    """(B, R): the score in column `last` of each row, 0 elsewhere."""
    return torch.zeros_like(mask).scatter(1, last[:, None], scores[:, None])


MISTAKES["token_rewards"] = [
    ("The KL has the wrong sign: drifting away from the reference costs.", lambda s, lp, ref, mask, beta: ppo.token_rewards(s, ref, lp, mask, beta)),
    ("The score is paid once, on the last response token, not on every token.", lambda s, lp, ref, mask, beta: (-beta * (lp - ref) + s[:, None]) * mask),
    ("The score went to the last column; short responses end earlier: look at the mask.",
     lambda s, lp, ref, mask, beta: -beta * (lp - ref) * mask + score_at_end(s, mask, torch.full((len(s),), mask.shape[1] - 1))),
    ("beta is missing.", lambda s, lp, ref, mask, beta: ppo.token_rewards(s, lp, ref, mask, 1.0)),
    ("Padding gets a reward: multiply the KL by the mask.", lambda s, lp, ref, mask, beta: -beta * (lp - ref) + score_at_end(s, mask, mask.sum(1).long() - 1))]


def check_token_rewards(my_token_rewards):
    """my_token_rewards(scores (B,), logprobs, ref_logprobs, mask (B, R), beta) -> (B, R), as ppo.token_rewards."""
    cases = []
    for seed in range(5):
        logprobs, ref_logprobs, values, _, mask = episodes(seed)
        cases.append((values[:, 0], logprobs + 0.1, ref_logprobs, mask, 0.2))
    return compare(my_token_rewards, ppo.token_rewards, MISTAKES["token_rewards"], cases)


def gae_with_later_values(rewards, values, mask, lam):
    """GAE without resetting at the end of a response: padding is treated as more tokens."""
    advantages, following = torch.zeros_like(rewards), torch.zeros(len(rewards))
    for t in reversed(range(rewards.shape[1])):
        next_value = values[:, t + 1] if t + 1 < rewards.shape[1] else values[:, t]
        following = rewards[:, t] + next_value - values[:, t] + lam * following
        advantages[:, t] = following
    return advantages


MISTAKES["gae"] = [
    ("lambda is missing: what comes later counts lam times less with every token.", lambda r, v, mask, lam: ppo.gae(r, v, mask, 1.0, 1.0)[0]),
    ("Only one step: A_t = delta_t + lam A_(t+1), from the last token backwards.", lambda r, v, mask, lam: ppo.gae(r, v, mask, 1.0, 0.0)[0]),
    ("Those are the returns; the advantage is the return less the value.", lambda r, v, mask, lam: ppo.gae(r, v, mask, 1.0, lam)[1]),
    ("After the last token the value is 0: the episode is over.", gae_with_later_values),
    ("The values are missing from delta: r_t + V_(t+1) - V_t.", lambda r, v, mask, lam: ppo.gae(r, torch.zeros_like(v), mask, 1.0, lam)[0])]


def check_gae(my_gae):
    """my_gae(rewards, values, mask (B, R), lam) -> advantages (B, R), as ppo.gae with discount 1."""
    cases = []
    for seed in range(5):
        _, _, values, rewards, mask = episodes(seed)
        cases.append((rewards + 2 * (1 - mask), values + (1 - mask), mask, 0.9))   # padding holds anything, and its delta is not 0
    return compare(my_gae, lambda r, v, mask, lam: ppo.gae(r, v, mask, 1.0, lam)[0], MISTAKES["gae"], cases)


def surrogate(logprobs, old, advantages, mask, clip, choose=torch.maximum, mean=ppo.masked_mean):
    """PPO's loss, with the parts that are easily taken wrong as arguments."""
    ratio = (logprobs - old).exp()
    return mean(choose(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)), mask)


MISTAKES["policy_loss"] = [
    ("With losses the larger one counts; the smaller is for the objective, before the minus.", lambda *x: surrogate(*x, choose=torch.minimum)),
    ("The ratio is pi / pi_old: exp of new minus old.", lambda lp, old, *x: surrogate(old, lp, *x)),
    ("Always clipped: a step in the bad direction would get no gradient to come back.", lambda *x: surrogate(*x, choose=lambda free, clipped: clipped)),
    ("Never clipped: take the larger of both losses.", lambda *x: surrogate(*x, choose=lambda free, clipped: free)),
    ("The mean runs over padding, too: divide by the number of response tokens.", lambda *x: surrogate(*x, mean=lambda x, mask: (x * mask).mean())),
    ("The sign is wrong: the loss falls when good tokens become likelier.", lambda *x: -surrogate(*x))]


def check_policy_loss(my_policy_loss):
    """my_policy_loss(logprobs, old_logprobs, advantages, mask (B, R), clip) -> scalar, as the first result of ppo.policy_loss."""
    cases = []
    for seed in range(5):
        logprobs, old, _, advantages, mask = episodes(seed)
        cases.append((old + 0.3 * (logprobs - old), old, advantages + (1 - mask), mask, 0.2))
    return compare(my_policy_loss, lambda *x: ppo.policy_loss(*x)[0], MISTAKES["policy_loss"], cases)


MISTAKES["k3"] = [
    ("That is k1: unbiased, but often negative.", lambda lp, ref: lp - ref),
    ("That is k2, half the square: never negative, but biased.", lambda lp, ref: (lp - ref) ** 2 / 2),
    ("Turned round: samples come from pi, so the log ratio is log pi - log pi_ref, and k3 = exp(-k1) - 1 + k1.", lambda lp, ref: (lp - ref).exp() - 1 - (lp - ref)),
    ("The last term has the wrong sign.", lambda lp, ref: (ref - lp).exp() - 1 - (lp - ref))]


def check_k3(my_k3):
    """my_k3(logprobs, ref_logprobs (B, R)) -> (B, R), Schulman's estimate of KL(pi || pi_ref), as in ppo.kl_estimates."""
    return compare(my_k3, lambda lp, ref: ppo.kl_estimates(lp, ref)[1], MISTAKES["k3"], [episodes(seed)[:2] for seed in range(5)])


# ---------------------------------------------------------------- 4. what the paper found


def wider(votes, times):
    """labeler.mean_and_error with another width."""
    mean, error = labeler.mean_and_error(votes)
    return mean, error * times


MISTAKES["win_rate"] = [
    ("A tie counts as half a win: 0.5.", lambda votes: labeler.mean_and_error([float(v == 1) for v in votes])),
    ("Ties stay in, as half a win.", lambda votes: labeler.mean_and_error([v for v in votes if v != 0.5])),
    ("That is the spread of single votes; a mean of n of them is sqrt(n) times surer.", lambda votes: wider(votes, len(votes) ** 0.5)),
    ("That is one standard error; 95 % takes 1.96 of them.", lambda votes: wider(votes, 1 / 1.96)),
    ("Divide the squares by n - 1, not n: the mean itself was fitted to these votes.", lambda votes: wider(votes, ((len(votes) - 1) / len(votes)) ** 0.5)),
    ("p (1 - p) is the spread of votes that are 0 or 1; with ties there is less. Take the votes' own deviation.",
     lambda votes: (p := judge.mean_ignoring_none(votes), 1.96 * (p * (1 - p) / len(votes)) ** 0.5))]


def check_win_rate(my_win_rate):
    """my_win_rate(votes, each 1, 0.5 or 0) -> (mean, half the width of the 95 % interval), as labeler.mean_and_error."""
    rng = random.Random(0)
    return compare(my_win_rate, labeler.mean_and_error, MISTAKES["win_rate"], [([rng.choice([0.0, 0.5, 1.0, 1.0]) for _ in range(n)],) for n in (20, 50, 200)])


MISTAKES["gap_closed"] = [
    ("That is the gain; how large could it have been?", lambda sft, ours: ours - sft),
    ("Relative to what SFT reaches; the gap is what SFT lacks.", lambda sft, ours: (ours - sft) / sft),
    ("That is the share of a perfect answerer's utility, without a look at SFT.", lambda sft, ours: ours),
    ("That is the share that is left.", lambda sft, ours: (1 - ours) / (1 - sft))]


def check_gap_closed(my_gap_closed):
    """my_gap_closed(utility of SFT, utility of ours) -> share of the gap to a perfect answerer, utility 1, that is closed."""
    return compare(my_gap_closed, lambda sft, ours: (ours - sft) / (1 - sft), MISTAKES["gap_closed"], [(0.7, 0.8), (0.5, 0.9), (0.6, 0.55)])


MISTAKES["share_of_ceiling"] = [
    ("Half of the votes come for free, by chance: take 0.5 off both.", lambda win, ceiling: win / ceiling),
    ("The best possible is the ceiling, not 1: people tie and err.", lambda win, ceiling: (win - 0.5) / 0.5),
    ("That is the gain over chance; divide by what was possible.", lambda win, ceiling: win - 0.5)]


def check_share_of_ceiling(my_share_of_ceiling):
    """my_share_of_ceiling(win rate over SFT, a perfect answerer's) -> the share of what can be won that is won."""
    return compare(my_share_of_ceiling, lambda win, ceiling: (win - 0.5) / (ceiling - 0.5), MISTAKES["share_of_ceiling"], [(0.57, 0.66), (0.6, 0.75), (0.5, 0.7)])


# ---------------------------------------------------------------- 5. what goes wrong

def first_fall(gold):
    """The index before the first value that is lower than the one before it."""
    return next((i for i in range(len(gold) - 1) if gold[i + 1] < gold[i]), len(gold) - 1)


MISTAKES["stop"] = [
    ("There the proxy is highest, but the proxy is what the policy has learnt to fool.", lambda curve: max(range(len(curve)), key=lambda i: curve[i]["proxy"])),
    ("That is the last one: gold has fallen by then.", lambda curve: len(curve) - 1),
    ("That is the first one: nothing has been gained yet.", lambda curve: 0),
    ("That is where gold falls for the first time; but curves wobble, and it rises again. You know the whole curve.", lambda curve: first_fall([p["gold"] for p in curve])),
    ("That is the gold utility there; at which index is it?", lambda curve: max(p["gold"] for p in curve)),
    ("That is the KL there; at which index is it?", lambda curve: max(curve, key=lambda p: p["gold"])["kl"])]


def check_stop(my_stop):
    """my_stop(curve, a list of {"kl", "proxy", "gold"}) -> the index at which training should have stopped."""
    rng, cases = random.Random(0), []
    for peak in (3.7, 4.4, 5.1):                            # gold is highest at a KL near `peak` and, like a measured one, wobbles
        curve = [{"kl": k / 2, "proxy": 1 - math.exp(-k / 8) + rng.uniform(0, 0.05), "gold": 0.7 + k / 2 * (2 * peak - k / 2) / 100 + rng.uniform(-0.02, 0.02)} for k in range(20)]
        curve[3]["gold"] = curve[2]["gold"] - 0.01          # an early fall that is not the turn
        curve[-1]["proxy"] = 0.7                            # nor is the proxy's best its last
        cases.append((curve,))
    return compare(my_stop, lambda curve: max(range(len(curve)), key=lambda i: curve[i]["gold"]), MISTAKES["stop"], cases)


MISTAKES["best_of_n_kl"] = [
    ("That is the logarithm at u = 1, the very best answer: take the mean over all u.", lambda n: math.log(n)),
    ("In nats, please: the natural logarithm.", lambda n: math.log2(n) - (n - 1) / n),
    ("That is the mean over the model's own answers, u even between 0 and 1; weigh each u by the density n u^(n - 1).", lambda n: math.log(n) - (n - 1)),
    ("The mean of log u is negative: the second term is subtracted.", lambda n: math.log(n) + (n - 1) / n)]


def check_best_of_n_kl(my_best_of_n_kl):
    """my_best_of_n_kl(n) -> KL in nats of the best of n distinct samples from the model itself."""
    return compare(my_best_of_n_kl, lambda n: math.log(n) - (n - 1) / n, MISTAKES["best_of_n_kl"], [(n,) for n in (1, 2, 4, 16)])


SYMPTOMS = {        # bug of tests/mutations.py -> what its curve shows
    "KL with the sign turned": "the policy is paid to drift, so KL grows without bound",
    "the score is paid on every token": "every token earns the score again, so the KL penalty weighs little beside it: KL rises further, gold stays a little behind, and the value network foresees much less of the returns; answers do not grow, they rather get a little shorter",
    "the score is paid at the end of the padding": "all but the longest response are never paid, so the score rises less",
    "KL to the rollout policy": "the KL that is logged is exactly 0 at every iteration",
    "whitened before the returns": "what the value network is held against contains whitened advantages, so its explained variance starts high, where an honest one starts below 0",
    "an endless response costs nothing": "only responses that never end are treated otherwise; here nearly every response ended, so hardly anything changes"}
MISTAKES["diagnosis"] = [("Curve A is not that one", {"A": "KL to the rollout policy"}), ("Curve A has no name yet", {"A": ...}),
                         ("not on the list", {"A": "a bug of another name"})]


def check_diagnosis(diagnosis, truth):
    """diagnosis, truth: curve's letter -> bug's name, one of SYMPTOMS."""
    if not isinstance(diagnosis, dict):
        return said(False, "A dict from letters to names, please.")
    for letter in truth:
        name = diagnosis.get(letter, ...)
        if not isinstance(name, str) or name not in SYMPTOMS:
            return said(False, f"Curve {letter} has no name yet." if name is ... else f"Curve {letter}: {name!r} is not on the list.")
    wrong = [letter for letter in truth if diagnosis.get(letter) != truth[letter]]
    if not wrong:
        return said(True, f"All {len(truth)} found.")
    return said(False, f"{len(truth) - len(wrong)} of {len(truth)} found. Curve {wrong[0]} is not that one: with {diagnosis[wrong[0]]!r}, {SYMPTOMS[diagnosis[wrong[0]]]}.")
