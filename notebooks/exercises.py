"""Exercises that check themselves: `exercises.check_gae(my_gae)` tells a student what is wrong.

A check runs the student's function and the script's own on the same inputs. There are four
outcomes:

- The results agree: "Right."
- The student's function does what one of the known MISTAKES does: the hint for that mistake.
- An argument is ignored or has a fixed number in its place: the name of the argument.
- Anything else: the first input on which the two functions differ.

A check prints one line, returns True or False, and never raises. Solutions are in solutions.md.
"""
import copy
import functools
import hashlib
import inspect
import math
import random
import statistics

import torch
import torch.nn.functional as F

import model
import ppo
import reward
import sft
from data import judge, labeler, training
from notebooks import methods

# Exercise -> pairs (hint, a wrong function or value). A test gives each wrong answer to its check
# and expects its hint.
MISTAKES = {}


# ---------------------------------------------------------------- how a check works


def flat(x):
    """Return numbers, tensors and nested lists of them as one float64 tensor, or None."""
    try:
        if hasattr(x, "tolist") and not isinstance(x, torch.Tensor):
            x = x.tolist()                                  # NumPy
        if isinstance(x, dict):
            x = [x[key] for key in sorted(x)]
        if isinstance(x, (list, tuple)):
            return joined(list(map(flat, x)))
        if isinstance(x, (bool, int, float, torch.Tensor)):
            return torch.as_tensor(x, dtype=torch.float64).detach().flatten()
    except Exception:
        # A student may return anything: 10 ** 400, a list that contains itself.
        pass
    return None


def joined(parts):
    """Concatenate the flat parts of a list. One part that is not numeric makes it None."""
    for part in parts:
        if part is None:
            return None
    return torch.cat([torch.zeros(0, dtype=torch.float64), *parts])


def close(x, y):
    """Return which elements of two float64 tensors agree, to about five digits."""
    return torch.isclose(x, y, rtol=1e-4, atol=1e-5, equal_nan=True)


def same(x, y):
    """Return whether two answers agree."""
    x = flat(x)
    y = flat(y)
    if x is None or y is None or x.shape != y.shape:
        return False
    return bool(close(x, y).all())


def all_same(answers, others):
    """Return whether two lists of answers agree."""
    return all(map(same, answers, others))


def digits(number, n=4):
    """Return a number as a text: whole numbers in full, others with n digits."""
    is_whole = number.is_integer() and abs(number) < 1e9
    return f"{number:.0f}" if is_whole else f"{number:.{n}g}"


def brief(x):
    """Return an answer as a short text."""
    numbers = flat(x)
    if numbers is None:
        return repr(x)[:60]
    if len(numbers) == 1:
        return digits(float(numbers[0]))
    shown = [digits(number) for number in numbers[:6].tolist()]
    if len(numbers) > 6:
        shown.append("...")
    return f"[{', '.join(shown)}]"


def said(right, text):
    """Print the verdict and return it."""
    print(f"{'Right.' if right else 'Not yet.'} {text}")
    return right


def outcome(function, case, trained):
    """Return [answer, gradients] of a function on a copy of one case.

    trained: places of the arguments of which gradients are taken. An argument is 0 on padding.
    The gradient does not matter there and is set to 0. Without a gradient it is 0 everywhere."""
    arguments = list(copy.deepcopy(case))
    leaves = []
    for place in trained:
        leaf = arguments[place].requires_grad_()
        leaves.append(leaf)
        arguments[place] = leaf * 1                         # may be changed in place
    answer = function(*arguments)
    gradients = [None] * len(leaves)
    if leaves and isinstance(answer, torch.Tensor) and answer.requires_grad:
        gradients = torch.autograd.grad(answer.sum(), leaves, allow_unused=True)
    shown = []
    for leaf, gradient in zip(leaves, gradients):
        gradient = torch.zeros_like(leaf) if gradient is None else gradient
        shown.append(gradient.where(leaf != 0, 0.0))
    return [answer, shown]


def compare(student, right, mistakes, cases, also=(), trained=(), extreme=""):
    """Compare a student's function with the right one on all cases.

    cases: tuples of arguments. mistakes: pairs (hint, wrong function). also: pairs (remark, other
    right function). trained: places of the arguments whose gradients must agree, too.
    extreme: the hint if only the last case is wrong. Mistakes are then recognised without it."""
    outcomes = []
    for case in cases:
        try:
            found = outcome(student, case, trained)
        except Exception as error:                          # a student's code may fail in any way
            message, _, _ = str(error).partition("\n")
            return said(False, f"Your function raises {type(error).__name__}: {message}")
        if found[0] is None and outcomes:
            return said(False, f"Your function returns nothing on input {len(outcomes) + 1} of "
                               f"{len(cases)}, and a result on those before.")
        if found[0] is None:
            return said(False, "Your function returns nothing. Replace the ... with your answer "
                               "and end with `return`.")
        outcomes.append(found)

    expected = [outcome(right, case, trained) for case in cases]
    if all_same(outcomes, expected):
        return said(True, f"Your function gives the same as ours on {len(cases)} inputs.")
    for remark, other in also:
        if all_same(outcomes, [outcome(other, case, trained) for case in cases]):
            return said(True, remark)
    n = len(cases) - 1 if extreme else len(cases)
    if extreme and all_same(outcomes[:n], expected[:n]):
        return said(False, extreme)
    for hint, mistake in mistakes:
        if all_same(outcomes[:n], [outcome(mistake, case, trained) for case in cases[:n]]):
            return said(False, hint)
    answers = [answer for answer, _ in outcomes]
    wanted = [answer for answer, _ in expected]
    if all_same(answers, wanted):
        return said(False, "The value is right. Its gradient is not.")
    name = ignored(student, right, cases)
    if name:
        return said(False, f"Your result does not change with {name}. The right one does.")
    return said(False, difference(answers, wanted))


def ignored(student, right, cases):
    """Return the name of an argument that changes the right answers and not the student's, or "".

    Each argument of a case is replaced by that of the next case, if the right function allows it.
    """
    for place in range(len(cases[0])):
        found = set()                           # whether the student's answer changed, too
        for case, following in zip(cases, cases[1:] + cases[:1]):
            changed = (*case[:place], following[place], *case[place + 1:])
            try:
                if not unchanged(right, case, changed):
                    found.add(unchanged(student, case, changed))
            except Exception:
                continue                        # sizes do not fit, or the student's code fails
        if found - {None} == {True}:
            return name_of(student, place)
    return ""


def unchanged(function, case, changed):
    """Return whether a function gives the same for two cases, or None if it is not finite."""
    before, _ = outcome(function, case, ())
    after, _ = outcome(function, changed, ())
    numbers = flat([before, after])
    if numbers is not None and not numbers.isfinite().all():
        return None
    return same(before, after)


def name_of(function, place):
    """Return the name of a function's argument."""
    try:
        arguments = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):                         # some built-in functions have none
        arguments = ()
    names = [argument.name for argument in arguments if argument.kind != argument.VAR_POSITIONAL]
    return names[place] if place < len(names) else f"argument {place + 1}"


def difference(answers, expected):
    """Describe the first answer that differs from the expected one."""
    wrong = [i for i in range(len(answers)) if not same(answers[i], expected[i])]
    answer = answers[wrong[0]]
    got = flat(answer)
    wanted = flat(expected[wrong[0]])
    if got is None:
        return f"Your function should return numbers. It returns {brief(answer)}."
    if len(got) != len(wanted):
        return (f"The right answer has size {len(wanted)}. "
                f"Yours has size {len(got)}: {brief(answer)}.")
    differs = ~close(got, wanted)
    place = int(differs.int().argmax())                     # the first element that differs
    where = f"At position {place} it" if len(got) > 1 else "It"
    mine = float(got[place])
    ours = float(wanted[place])
    n = 4 if digits(mine) != digits(ours) else 9            # so that the two look different
    text = (f"Your function differs on {len(wrong)} of {len(answers)} inputs. "
            f"{where} gives {digits(mine, n)}. The right value is {digits(ours, n)}.")
    if math.isfinite(mine):
        return text
    return f"{text} Is there a logarithm of 0, a division by 0 or a very large exp?"


def compare_number(answer, right, mistakes):
    """The same for an answer that is one whole number. mistakes: pairs (hint, wrong number)."""
    if answer is ...:
        return said(False, "There is no answer yet. Replace the ... with yours.")
    numbers = flat(answer)
    number = float(numbers[0]) if numbers is not None and len(numbers) == 1 else None
    if number == right:
        return said(True, f"It is {right}.")
    for hint, wrong in mistakes:
        if number == wrong:
            return said(False, hint)
    return said(False, f"It is not {brief(answer)}.")


def episodes(seed, B=4, R=6):
    """Return random tensors (B, R) as in a rollout, and a ragged mask (B, R).

    The tensors are logprobs, ref_logprobs, values and advantages, all 0 on padding."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, R, (B,), generator=generator)                # (B,)
    lengths[0] = R
    mask = (torch.arange(R) < lengths[:, None]).float()                     # (B, R)
    tensors = torch.randn(4, B, R, generator=generator) * mask              # (4, B, R)
    logprobs, ref_logprobs, values, advantages = tensors.unbind()           # each (B, R)
    return logprobs - 1, ref_logprobs - 1, values, advantages, mask


NO_GRADIENT = ("The value is right, but it has no gradient, so nothing can be trained with it. "
               "Avoid detach(), item() and float().")


# ---------------------------------------------------------------- 0. the base model


def next_token_loss(logits, ids, reduction="mean"):
    """Cross-entropy of logits (T, V) and ids (T,). Row t predicts token t + 1."""
    return F.cross_entropy(logits[:-1], ids[1:], reduction=reduction)


def mean_probability(logits, ids):
    """The mean probability of the true next tokens."""
    return logits[:-1].softmax(-1).gather(1, ids[1:, None]).mean()


MISTAKES["next_token_loss"] = [
    ("Row t of the logits predicts token t + 1. Shift the targets by one.",
     lambda logits, ids: F.cross_entropy(logits, ids)),
    ("Row t of the logits predicts token t + 1. Here the targets are shifted the other way: it "
     "predicts token t - 1.",
     lambda logits, ids: F.cross_entropy(logits[1:], ids[:-1])),
    ("The target of row t is token t + 1. Here it is token t itself.",
     lambda logits, ids: F.cross_entropy(logits[:-1], ids[:-1])),
    ("The sign is wrong. The loss is minus the mean log-probability, so it is positive.",
     lambda logits, ids: -next_token_loss(logits, ids)),
    (NO_GRADIENT,
     lambda logits, ids: next_token_loss(logits, ids).detach()),
    ("Row t of the logits predicts token t + 1. Its softmax is over the vocabulary, the last "
     "dimension.",
     lambda logits, ids: -logits[:-1].log_softmax(0).gather(1, ids[1:, None]).mean()),
    ("`[:, ids[1:]]` takes all T - 1 targets in every row. Row t needs target t alone: index the "
     "rows, too, `[torch.arange(T - 1), ids[1:]]`.",
     lambda logits, ids: -logits[:-1].log_softmax(-1)[:, ids[1:]].mean()),
    ("These are the logits of the true tokens. Take the log_softmax of the logits first.",
     lambda logits, ids: -logits[:-1].gather(1, ids[1:, None]).mean()),
    ("T tokens give T - 1 predictions. Divide by T - 1.",
     lambda logits, ids: next_token_loss(logits, ids, "sum") / len(ids)),
    ("This is a sum. The loss is the mean over the predicted tokens.",
     lambda logits, ids: next_token_loss(logits, ids, "sum")),
    ("This is in bits. Use the natural logarithm to get nats.",
     lambda logits, ids: next_token_loss(logits, ids) / math.log(2)),
    ("This is a mean of probabilities. Take their logarithms first. The loss is minus their mean.",
     mean_probability),
]


def check_next_token_loss(my_next_token_loss):
    """my_next_token_loss(logits (T, V), ids (T,)) -> mean nats per predicted token.

    The same as in model.corpus_loss. The gradients by the logits must agree, too."""
    cases = []
    for T in (7, 5, 9, 7, 2):
        logits = torch.randn(T, 11)
        ids = torch.randint(11, (T,))
        cases.append((logits, ids))
    return compare(my_next_token_loss, next_token_loss, MISTAKES["next_token_loss"], cases,
                   trained=(0,))


MISTAKES["perplexity"] = [
    ("The loss is in nats. The base is e, not 2.",
     lambda loss: 2 ** loss),
    ("This is the (geometric) mean probability of a token. Perplexity is its inverse.",
     lambda loss: math.exp(-loss)),
    ("This is the loss itself. Perplexity is a number of tokens.",
     lambda loss: loss),
]


def check_perplexity(my_perplexity):
    """my_perplexity(loss in nats) -> the number of equally likely tokens with the same loss."""
    cases = [(0.7,), (1.0,), (3.3,)]
    return compare(my_perplexity, math.exp, MISTAKES["perplexity"], cases)


def pick(probabilities, u):
    """Return the token at which the cumulative probability passes u, as model.py samples."""
    cdf = probabilities.cumsum(-1)
    return int(torch.searchsorted(cdf, torch.tensor([u]) * cdf[-1])[0])


def sample(logits, temperature, u):
    """Return a token of the script's distribution. <|pad|> is the last id."""
    logp = model.distribution(logits, temperature, len(logits) - 1)         # (V,)
    return pick(logp.exp(), u)


MISTAKES["sample"] = [
    ("This is always the most likely token. The token should depend on u.",
     lambda logits, temperature, u: int(logits[:-1].argmax())),
    ("Divide the logits by the temperature. A high temperature makes the distribution flat.",
     lambda logits, temperature, u: sample(logits, 1 / temperature, u)),
    ("<|pad|>, the last id, must be impossible. Set its logit to -inf.",
     lambda logits, temperature, u: pick((logits / temperature).softmax(-1), u)),
    ("The temperature is missing.",
     lambda logits, temperature, u: sample(logits, 1.0, u)),
    ("<|pad|> is set to 0 after the softmax, so the probabilities no longer add up to 1. Often no "
     "sum passes u. Set its logit to -inf before the softmax.",
     lambda logits, temperature, u: zeroed_after_softmax(logits, temperature, u)),
    ("This token comes after the one at which the sum passes u.",
     lambda logits, temperature, u: sample(logits, temperature, u) + 1),
    ("The probabilities are divided by the temperature. Divide the logits, before the softmax.",
     lambda logits, temperature, u: divided_after_softmax(logits, temperature, u)),
    ("This compares single probabilities with u. Add them up first, with cumsum.",
     lambda logits, temperature, u: without_sum(logits, temperature, u)),
]


def first_above(numbers, u):
    """Return the place of the first number above u, or their number if there is none."""
    places = (numbers > u).nonzero().flatten().tolist()
    return places[0] if places else len(numbers)


def zeroed_after_softmax(logits, temperature, u):
    """The softmax includes <|pad|>, whose probability is set to 0 later."""
    probabilities = (logits / temperature).softmax(-1)                      # (V,)
    probabilities[-1] = 0.0
    return first_above(probabilities.cumsum(-1), u)


def divided_after_softmax(logits, temperature, u):
    """Divides the probabilities in place of the logits."""
    probabilities = model.distribution(logits, 1.0, len(logits) - 1).exp()  # (V,)
    return first_above((probabilities / temperature).cumsum(-1), u)


def without_sum(logits, temperature, u):
    """Compares each probability with u."""
    return first_above(model.distribution(logits, temperature, len(logits) - 1).exp(), u)


def check_sample(my_sample):
    """my_sample(logits (V,), temperature, u in [0, 1)) -> id.

    The right id is the first at which the cumulative probability passes u."""
    rng = random.Random(0)
    cases = []
    for _ in range(20):
        for temperature in (0.5, 1.0, 2.0):
            logits = torch.randn(9) * 2
            logits[8] += 3                                  # pad would be likely
            cases.append((logits, temperature, rng.random()))

    def found(logits, temperature, u):
        try:
            return my_sample(logits, temperature, u)
        except IndexError:
            for mistake in (zeroed_after_softmax, divided_after_softmax, without_sum):
                if mistake(logits, temperature, u) == len(logits):
                    return len(logits)                      # no sum passed u
            raise

    return compare(found, sample, MISTAKES["sample"], cases)


def parameters():
    """Return how many parameters the default GPT has: {name of a tensor: number}."""
    gpt = model.GPT(model.GPTConfig())
    return {name: weights.numel() for name, weights in gpt.named_parameters()}


def parameters_without(*parts):
    """Return the number of parameters whose names contain none of `parts`."""
    counts = parameters()
    return sum(counts[name] for name in counts if not any(part in name for part in parts))


MISTAKES["parameters"] = [
    ("The last layer shares its weights with the token embedding. Count them once.",
     parameters_without() + parameters()["transformer.wte.weight"]),
    ("The linear layers and the layer norms have biases, too.",
     parameters_without("bias")),
    ("The linear layers have biases, too.",
     parameters_without("attn.bias", "proj.bias", "fc.bias")),
    ("The layer norms have biases, too.",
     parameters_without("ln_1.bias", "ln_2.bias", "ln_f.bias")),
    ("There is one more layer norm, after the last block.",
     parameters_without("ln_f")),
    ("Positions have an embedding, too. It has block_size rows.",
     parameters_without("wpe")),
]


def check_parameters(number):
    """The number of parameters of GPT(GPTConfig()), worked out from its shapes."""
    return compare_number(number, parameters_without(), MISTAKES["parameters"])


# ---------------------------------------------------------------- 1. supervised fine-tuning


def mask_of(prompt_length, length, T):
    """Return sft.sft_batch's mask of one pair in a row of T tokens: T - 1 zeros and ones."""
    prompt = [0] * prompt_length
    response = [0] * (length - prompt_length)
    longer = [0] * (T - prompt_length)                      # a second pair that sets the width
    _, mask = sft.sft_batch([(prompt, response), (prompt, longer)], 0)      # (2, T - 1)
    return mask[0].tolist()


MISTAKES["mask"] = [
    ("The first response token is missing. Target t is token t + 1. The mask starts at "
     "prompt_length - 1.",
     lambda prompt_length, length, T: mask_of(prompt_length + 1, length, T)),
    ("The last response token is missing. It is end-of-text. Without it, the model never learns "
     "to stop.",
     lambda prompt_length, length, T: mask_of(prompt_length, length - 1, T)),
    ("Both ends are one too far to the right. Entry t is for token t + 1: ask where t + 1 is.",
     lambda prompt_length, length, T: [float(prompt_length <= t < length) for t in range(T - 1)]),
    ("The prompt is given, not predicted. The mask is 0 there.",
     lambda prompt_length, length, T: [float(t < length) for t in range(1, T)]),
    ("The padding after the response is not learned. The mask is 0 there.",
     lambda prompt_length, length, T: [float(t >= prompt_length) for t in range(1, T)]),
    ("These are T entries, one per token. There are T - 1 targets: the first token is not "
     "predicted.",
     lambda prompt_length, length, T: [float(prompt_length <= t < length) for t in range(T)]),
    ("`length` is that of prompt and response together. The response ends with token length - 1.",
     lambda prompt_length, length, T: [
         float(prompt_length <= t < prompt_length + length) for t in range(1, T)]),
    ("The mask is turned round. It is 1 on the response and 0 elsewhere.",
     lambda prompt_length, length, T: [1 - m for m in mask_of(prompt_length, length, T)]),
]


def check_mask(my_mask):
    """my_mask(prompt_length, length, T) -> T - 1 zeros and ones, as in sft.sft_batch.

    length is that of prompt and response together."""
    cases = [(3, 6, 9), (1, 5, 7), (5, 7, 12), (2, 9, 9)]   # the last one has no padding
    return compare(my_mask, mask_of, MISTAKES["mask"], cases)


def token_losses(logits, idx):
    """Cross-entropy of each target: logits (B, T - 1, V), idx (B, T) -> (B, T - 1)."""
    targets = idx[:, 1:].flatten()                                          # (B * (T - 1),)
    losses = F.cross_entropy(logits.flatten(0, 1), targets, reduction="none")
    return losses.view(idx.shape[0], -1)


def summed_loss(logits, idx, mask):
    """The sum over response tokens."""
    return (token_losses(logits, idx) * mask).sum()


def loss_per_response(logits, idx, mask):
    """The mean over responses of each response's mean loss."""
    losses = token_losses(logits, idx) * mask                               # (B, T - 1)
    return (losses.sum(1) / mask.sum(1)).mean()


def masked_loss(logits, idx, mask):
    """sft.sft_loss with given logits in place of a model."""
    return sft.sft_loss(lambda _, select: logits[select], idx, mask)


MISTAKES["masked_loss"] = [
    ("This is a mean over all targets. Divide by the number of response tokens.",
     lambda logits, idx, mask: (token_losses(logits, idx) * mask).mean()),
    ("This is divided by the number of responses. Divide by the number of response tokens.",
     lambda logits, idx, mask: summed_loss(logits, idx, mask) / len(mask)),
    ("This gives short and long responses the same weight. Take the mean over tokens, not over "
     "responses.",
     loss_per_response),
    ("This is a sum. Divide by the number of response tokens.",
     summed_loss),
    ("The sign is wrong. The loss falls when the response becomes more likely.",
     lambda logits, idx, mask: -summed_loss(logits, idx, mask) / mask.sum()),
    ("The mask is missing. The model would learn the prompt, too.",
     lambda logits, idx, mask: token_losses(logits, idx).mean()),
    ("Row t of the logits predicts token t + 1. The targets are idx[:, 1:].",
     lambda logits, idx, mask: (token_losses(logits, idx.roll(1, 1)) * mask).sum() / mask.sum()),
    (NO_GRADIENT,
     lambda *case: masked_loss(*case).detach()),
]


def check_masked_loss(my_masked_loss):
    """my_masked_loss(logits (B, T - 1, V), idx (B, T), mask (B, T - 1)) -> scalar.

    The same as sft.sft_loss. The gradients by the logits must agree, too."""
    cases = []
    for seed in range(5):
        _, _, _, _, mask = episodes(seed)
        logits = torch.randn(4, 6, 11)
        idx = torch.randint(11, (4, 7))
        cases.append((logits, idx, mask))
    return compare(
        my_masked_loss, masked_loss, MISTAKES["masked_loss"], cases, trained=(0,))


def cosine_to_zero(step, steps, peak):
    """Half a cosine that ends at 0."""
    return peak * 0.5 * (1 + math.cos(math.pi * step / steps))


def full_cosine(step, steps, peak):
    """A whole period, which returns to the peak."""
    return peak * (0.1 + 0.45 * (1 + math.cos(2 * math.pi * step / steps)))


MISTAKES["cosine"] = [
    ("It must end at a tenth of the peak, not at 0.",
     cosine_to_zero),
    ("This is a straight line. A cosine falls slowly at the start and at the end.",
     lambda step, steps, peak: peak * (1 - 0.9 * step / steps)),
    ("This falls and then rises again. Use half a period, from 0 to pi.",
     full_cosine),
    ("This rises. It starts at the peak.",
     lambda step, steps, peak: training.cosine(steps - step, steps, peak)),
    ("This is the factor. Multiply it by the peak.",
     lambda step, steps, peak: training.cosine(step, steps, 1.0)),
    ("This is a quarter of a period, from 0 to pi / 2. A cosine falls slowly at the end, too. Use "
     "half a period, from 0 to pi.",
     lambda step, steps, peak: peak * (0.1 + 0.9 * math.cos(math.pi / 2 * step / steps))),
    ("This ends below a tenth of the peak. From 1 to -1 a cosine falls by 2, so halve it.",
     lambda step, steps, peak: peak * (0.1 + 0.9 * math.cos(math.pi * step / steps))),
]


def check_cosine(my_cosine):
    """my_cosine(step, steps, peak) -> learning rate, as data.training.cosine without warm-up.

    Half a cosine, from the peak to a tenth of it."""
    cases = [(0, 80, 0.01), (10, 80, 0.01), (40, 200, 0.01), (60, 80, 0.3), (80, 80, 0.02)]
    return compare(my_cosine, training.cosine, MISTAKES["cosine"], cases)


def epoch_by(choose, key):
    """Return a function from a table to the epoch whose row has the max or min of one column."""
    def chosen(table):
        return choose(table, key=lambda row: row[key])["epoch"]
    return chosen


best_epoch = epoch_by(max, "score")

MISTAKES["epoch"] = [
    ("This epoch has the lowest validation loss. The paper does not choose by it (C.1). Which "
     "column measures what people prefer?",
     epoch_by(min, "valid_loss")),
    ("This epoch has the highest validation loss. It predicts the demonstrations worst.",
     epoch_by(max, "valid_loss")),
    ("This is the last epoch. It was trained longest. Is it also preferred most?",
     epoch_by(max, "epoch")),
    ("This is the last row. It was trained longest in the lesson's table. Is it also preferred "
     "most?",
     lambda table: table[-1]["epoch"]),
    ("This epoch is the best according to the gold judge. In practice nobody can see that column.",
     epoch_by(max, "gold")),
    ("This epoch has the lowest score. A higher score is better.",
     epoch_by(min, "score")),
    ("This is the index of the row, counted from 0. Return its epoch.",
     lambda table: max(range(len(table)), key=lambda i: table[i]["score"])),
    ("This is the number of the row. Return the epoch that is in it. The rows may be in any order.",
     lambda table: max(range(len(table)), key=lambda i: table[i]["score"]) + 1),
    ("This is the highest score. Return the epoch that has it.",
     lambda table: max(row["score"] for row in table)),
    ("This is a row of the table. Return its epoch.",
     lambda table: max(table, key=lambda row: row["score"])),
]


def check_epoch(my_epoch):
    """my_epoch(table) -> the epoch that becomes the SFT baseline.

    table: a list of rows, dicts of epoch, valid_loss, score and gold, in any order."""
    if not callable(my_epoch):
        return said(False, "Write a function of the table. Other tables have other best epochs.")
    rng = random.Random(0)
    cases = []
    for n in (16, 12, 16):
        table = []
        for epoch in rng.sample(range(1, n + 1), n):
            table.append({"epoch": epoch, "valid_loss": 0.5 - rng.random() / 20,
                          "score": rng.random() / 20, "gold": 0.7 + rng.random() / 10})
        cases.append((table,))
    return compare(my_epoch, best_epoch, MISTAKES["epoch"], cases)


# ---------------------------------------------------------------- 2. the reward model


def preference(a, b):
    """The Bradley-Terry probability that the response with score a is preferred."""
    return 1 / (1 + math.exp(b - a))


MISTAKES["preference"] = [
    ("This is the chance of b. The higher the score of a, the higher the chance of a.",
     lambda a, b: preference(b, a)),
    ("This is a share of the sum, but scores can be negative. Take the sigmoid of their "
     "difference.",
     lambda a, b: a / (a + b)),
    ("This is the difference of the scores. A probability lies between 0 and 1.",
     lambda a, b: a - b),
    ("This is the logarithm of the probability.",
     lambda a, b: math.log(preference(a, b))),
    ("This only says which score is higher. The probability depends on how much higher.",
     lambda a, b: float(a > b)),
]


def check_preference(my_preference):
    """my_preference(score a, score b) -> the chance that a is preferred to b (Bradley-Terry).

    Each score is a tensor of one number."""
    cases = []
    for a, b in ((1.0, 0.5), (-0.3, 2.0), (3.0, 2.5), (0.7, 0.4)):
        cases.append((torch.tensor(a), torch.tensor(b)))    # for math.exp and for torch.sigmoid
    return compare(my_preference, preference, MISTAKES["preference"], cases)


def pairs_where(ranks, wanted):
    """Return all pairs (i, j) of different responses with wanted(rank of i, rank of j)."""
    pairs = []
    for i, a in enumerate(ranks):
        for j, b in enumerate(ranks):
            if i != j and wanted(a, b):
                pairs.append((i, j))
    return pairs


def pairs_of(ranks):
    """Return (i, j) for all responses i that rank above j. 1 is best, and ties make no pair."""
    return pairs_where(ranks, lambda a, b: a < b)


MISTAKES["pairs"] = [
    ("The pairs are the wrong way round. Rank 1 is the best.",
     lambda ranks: sorted(pairs_where(ranks, lambda a, b: a > b))),
    ("Leave out ties. Equal ranks do not say which response is better.",
     lambda ranks: pairs_where(ranks, lambda a, b: a <= b)),
    ("Count the responses from 0.",
     lambda ranks: [(i + 1, j + 1) for i, j in pairs_of(ranks)]),
    ("The loser is first in these pairs. Put the better response first. Rank 1 is the best.",
     lambda ranks: sorted((j, i) for i, j in pairs_of(ranks) if i < j)),
    ("Only pairs with i < j are here. The better response may also come later in the list.",
     lambda ranks: [(i, j) for i, j in pairs_of(ranks) if i < j]),
    ("These are only neighbours in rank. The best response also beats the third. Take all pairs.",
     lambda ranks: pairs_where(ranks, lambda a, b: b - a == 1)),
]


def check_pairs(my_pairs):
    """my_pairs(ranks) -> a list of (i, j), response i ranked better than j."""
    def ordered(ranks):
        pairs = my_pairs(ranks)
        if pairs is None:
            return None
        return sorted(tuple(map(int, pair)) for pair in pairs)

    cases = [([2, 1, 3, 2],), ([1, 2, 3, 4],), ([3, 1, 1, 2, 4],)]
    return compare(ordered, pairs_of, MISTAKES["pairs"], cases)


def equation_1(scores, ranks):
    """reward.ranking_loss for one prompt: scores (K,), ranks a list of K."""
    ranks = torch.tensor(ranks)                                             # (K,)
    preferred = (ranks[:, None] < ranks[None, :]).float()                   # (K, K)
    return reward.ranking_loss(scores[None], preferred[None])


def summed_equation_1(scores, ranks):
    """The sum over pairs."""
    return equation_1(scores, ranks) * len(pairs_of(ranks))


def mean_wrong_chance(scores, ranks):
    """The mean over pairs of one minus the probability of the labeler's order."""
    pairs = pairs_of(ranks)
    return sum(1 - torch.sigmoid(scores[i] - scores[j]) for i, j in pairs) / len(pairs)


def minus_mean_difference(scores, ranks):
    """Minus the mean over pairs of the winner's score minus the loser's."""
    pairs = pairs_of(ranks)
    return -sum(scores[i] - scores[j] for i, j in pairs) / len(pairs)


def unstable_equation_1(scores, ranks):
    """The same, but infinite where the sigmoid is rounded to 0."""
    pairs = pairs_of(ranks)
    return -sum(torch.log(torch.sigmoid(scores[i] - scores[j])) for i, j in pairs) / len(pairs)


UNSTABLE = ("At large differences this is infinite or wrong, because the sigmoid is rounded to 0 "
            "or exp is infinite. Use F.logsigmoid.")
MISTAKES["ranking_loss"] = [
    (UNSTABLE,
     unstable_equation_1),
    ("This is a sum. Divide by the number of pairs.",
     summed_equation_1),
    ("The differences are the wrong way round. Take the better response's score minus the other.",
     lambda scores, ranks: equation_1(-scores, ranks)),
    ("The sign is wrong. The loss is minus a log-probability, so it is positive.",
     lambda scores, ranks: -equation_1(scores, ranks)),
    ("Ties are left out, so there are fewer than C(K, 2) pairs. Divide by the number of pairs "
     "that remain.",
     lambda scores, ranks: summed_equation_1(scores, ranks) / math.comb(len(ranks), 2)),
    ("This is one minus a probability. The loss is minus the logarithm of the probability.",
     mean_wrong_chance),
    ("The log-sigmoid is missing. This is minus the mean difference, which has no lower bound.",
     minus_mean_difference),
    (NO_GRADIENT,
     lambda scores, ranks: equation_1(scores, ranks).detach()),
]


def check_ranking_loss(my_ranking_loss):
    """my_ranking_loss(scores (K,), ranks, a list of K) -> equation 1 for one prompt.

    The same as reward.ranking_loss. The gradients by the scores must agree, too."""
    cases = []
    for ranks in ([2, 1, 3, 2], [1, 2, 3, 4], [3, 1, 1, 2, 4]):
        cases.append((torch.randn(len(ranks)), ranks))
    cases.append((torch.tensor([400.0, -200.0, 100.0, 200.0]), [1, 2, 3, 4]))
    return compare(
        my_ranking_loss, equation_1, MISTAKES["ranking_loss"], cases, trained=(0,),
        extreme=UNSTABLE)


MISTAKES["bias"] = [
    ("With this bias the mean doubles. The bias is added to every score, so it needs a minus "
     "sign.",
     lambda scores: sum(scores) / len(scores)),
    ("This puts the best demonstration at 0. The paper puts the mean at 0.",
     lambda scores: -max(scores)),
    ("This is minus the sum. Take minus the mean.",
     lambda scores: -sum(scores)),
    ("These are the shifted scores. Return the bias alone, one number.",
     lambda scores: [score - sum(scores) / len(scores) for score in scores]),
]


def check_bias(my_bias):
    """my_bias(scores of demonstrations) -> what to add to every score, as in reward.centre.

    With it, the demonstrations score 0 on average."""
    rng = random.Random(0)
    cases = []
    for n in (8, 5, 12):
        scores = [rng.gauss(1, 1) for _ in range(n)]
        cases.append((scores,))
    return compare(
        my_bias, lambda scores: -sum(scores) / len(scores), MISTAKES["bias"], cases)


# ---------------------------------------------------------------- 3a. episode and advantages


def score_in_column(scores, mask, place):
    """Return (B, R): the score in one column of each row, 0 elsewhere. place: (B,)."""
    return torch.zeros_like(mask).scatter(1, place[:, None], scores[:, None])


def reward_with_turned_kl(scores, logprobs, ref_logprobs, mask, beta):
    """Pays for a drift away from the reference."""
    return ppo.token_rewards(scores, ref_logprobs, logprobs, mask, beta)


def reward_on_every_token(scores, logprobs, ref_logprobs, mask, beta):
    """Pays the score on every token."""
    return (-beta * (logprobs - ref_logprobs) + scores[:, None]) * mask


def reward_in_last_column(scores, logprobs, ref_logprobs, mask, beta):
    """Pays the score at the end of the padding."""
    last = torch.full((len(scores),), mask.shape[1] - 1)
    return -beta * (logprobs - ref_logprobs) * mask + score_in_column(scores, mask, last)


def reward_without_beta(scores, logprobs, ref_logprobs, mask, beta):
    """The KL penalty with beta 1."""
    return ppo.token_rewards(scores, logprobs, ref_logprobs, mask, 1.0)


def reward_on_padding(scores, logprobs, ref_logprobs, mask, beta):
    """The KL penalty without the mask."""
    last = mask.sum(1).long() - 1
    return -beta * (logprobs - ref_logprobs) + score_in_column(scores, mask, last)


def reward_without_last_kl(scores, logprobs, ref_logprobs, mask, beta):
    """The score in place of the last token's KL penalty."""
    rewards = -beta * (logprobs - ref_logprobs) * mask                      # (B, R)
    last = mask.sum(1).long() - 1                                           # (B,)
    return rewards.scatter(1, last[:, None], scores[:, None])               # (B, R)


def reward_in_all_rows(scores, logprobs, ref_logprobs, mask, beta):
    """The score of each row in the last columns of all rows."""
    rewards = -beta * (logprobs - ref_logprobs) * mask                      # (B, R)
    rewards[:, mask.sum(1).long() - 1] += scores
    return rewards


def reward_without_score(scores, logprobs, ref_logprobs, mask, beta):
    """The KL penalty alone."""
    return -beta * (logprobs - ref_logprobs) * mask


MISTAKES["token_rewards"] = [
    ("The KL term has the wrong sign. Moving away from the reference costs reward.",
     reward_with_turned_kl),
    ("The score is paid once, on the last response token. Here every token gets it.",
     reward_on_every_token),
    ("The score is in the last column. Short responses end earlier. The mask tells you where.",
     reward_in_last_column),
    ("beta is missing.",
     reward_without_beta),
    ("Padding gets a reward. Multiply the KL term by the mask.",
     reward_on_padding),
    ("The score replaces the KL penalty of the last token. Add it with +=.",
     reward_without_last_kl),
    ("`[:, last]` changes these columns in every row. Index the rows, too: "
     "`[torch.arange(B), last]`.",
     reward_in_all_rows),
    ("The score is missing. Add it on the last response token.",
     reward_without_score),
]


def check_token_rewards(my_token_rewards):
    """my_token_rewards(scores (B,), logprobs, ref_logprobs, mask (B, R), beta) -> (B, R).

    The same as ppo.token_rewards."""
    cases = []
    for seed in range(5):
        logprobs, ref_logprobs, values, _, mask = episodes(seed)
        # On padding, logprobs and ref_logprobs differ by 0.1: forgetting the mask shows.
        cases.append((values[:, 0], logprobs + 0.1, ref_logprobs, mask, 0.2 + 0.1 * seed))
    return compare(my_token_rewards, ppo.token_rewards, MISTAKES["token_rewards"], cases)


def k1(logprobs, ref_logprobs):
    """Schulman's first estimate of the KL."""
    return logprobs - ref_logprobs


def k3(logprobs, ref_logprobs):
    """ppo.kl_estimates' second result."""
    return ppo.kl_estimates(logprobs, ref_logprobs)[1]


MISTAKES["k3"] = [
    ("This is k1. It is unbiased, but often negative.",
     k1),
    ("This is k2, half the square. It is never negative, but biased.",
     lambda logprobs, ref_logprobs: k1(logprobs, ref_logprobs) ** 2 / 2),
    ("The two are the wrong way round. The samples come from pi, so k1 = log pi - log pi_ref. "
     "k3 = exp(-k1) - 1 + k1.",
     lambda logprobs, ref_logprobs: k3(ref_logprobs, logprobs)),
    ("exp takes -k1, not k1. k3 = exp(-k1) - 1 + k1.",
     lambda logprobs, ref_logprobs: (
         (logprobs - ref_logprobs).exp() - 1 + k1(logprobs, ref_logprobs))),
    ("The last term has the wrong sign.",
     lambda logprobs, ref_logprobs: (
         (ref_logprobs - logprobs).exp() - 1 - k1(logprobs, ref_logprobs))),
]


def check_k3(my_k3):
    """my_k3(logprobs, ref_logprobs (B, R)) -> (B, R), as in ppo.kl_estimates.

    Schulman's third estimate of KL(pi || pi_ref)."""
    cases = [episodes(seed)[:2] for seed in range(5)]
    return compare(my_k3, k3, MISTAKES["k3"], cases)


def advantages(rewards, values, mask, lam):
    """ppo.gae's advantages with discount 1."""
    return ppo.gae(rewards, values, mask, 1.0, lam)[0]


def gae_with_later_values(rewards, values, mask, lam):
    """GAE that does not stop at the end of a response: padding counts as further tokens."""
    result = torch.zeros_like(rewards)                                      # (B, R)
    next_advantage = torch.zeros(len(rewards))                              # (B,)
    for t in reversed(range(rewards.shape[1])):
        next_t = min(t + 1, rewards.shape[1] - 1)
        delta = rewards[:, t] + values[:, next_t] - values[:, t]            # (B,)
        next_advantage = delta + lam * next_advantage                       # (B,)
        result[:, t] = next_advantage
    return result


def gae_masked(rewards, values, mask, lam, masked):
    """GAE with the mask on some quantities only. masked: names of "delta", "advantage", "value"."""
    def where(name, x, t):
        return x * mask[:, t] if name in masked else x

    result = torch.zeros_like(rewards)                                      # (B, R)
    next_advantage = torch.zeros(len(rewards))                              # (B,)
    next_value = torch.zeros(len(rewards))                                  # (B,)
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + next_value - values[:, t]                   # (B,)
        delta = where("delta", delta, t)                                    # (B,)
        next_advantage = where("advantage", delta + lam * next_advantage, t)        # (B,)
        next_value = where("value", values[:, t], t)                        # (B,)
        result[:, t] = next_advantage
    return result


def gae_with(delta_of):
    """GAE with another delta, a function of (reward, value, next value, lam)."""
    def wrong(rewards, values, mask, lam):
        result = torch.zeros_like(rewards)                                  # (B, R)
        next_advantage = torch.zeros(len(rewards))                          # (B,)
        next_value = torch.zeros(len(rewards))                              # (B,)
        for t in reversed(range(rewards.shape[1])):
            delta = delta_of(rewards[:, t], values[:, t], next_value, lam)  # (B,)
            next_advantage = (delta + lam * next_advantage) * mask[:, t]    # (B,)
            next_value = values[:, t] * mask[:, t]                          # (B,)
            result[:, t] = next_advantage
        return result
    return wrong


def masked_at_the_end(*case):
    """GAE over the padding, too, which is set to 0 in the result only."""
    return gae_masked(*case, ()) * case[2]


def gae_forwards(rewards, values, mask, lam):
    """Starts at the first token: each advantage takes in what came before, not what follows."""
    advantages = torch.zeros_like(rewards)                                  # (B, R)
    next_advantage = 0.0
    next_value = 0.0
    for t in range(rewards.shape[1]):
        delta = rewards[:, t] + next_value - values[:, t]                   # (B,)
        advantages[:, t] = (delta + lam * next_advantage) * mask[:, t]
        next_advantage = advantages[:, t]                                   # (B,)
        next_value = values[:, t] * mask[:, t]                              # (B,)
    return advantages


def returns(rewards, values, mask, lam):
    """ppo.gae's returns."""
    return ppo.gae(rewards, values, mask, 1.0, lam)[1]


MISTAKES["gae"] = [
    ("lambda is missing. Each further token counts lambda times less.",
     lambda rewards, values, mask, lam: advantages(rewards, values, mask, 1.0)),
    ("This is only delta_t. A_t = delta_t + lam A_(t+1). Start at the last token.",
     lambda rewards, values, mask, lam: advantages(rewards, values, mask, 0.0)),
    ("These are the returns. The advantage is the return minus the value.",
     returns),
    ("After the last token the episode is over. The next value is 0 there.",
     gae_with_later_values),
    ("The mask is applied at the end only. Padding has already been counted as later tokens. Use "
     "the mask inside the loop, on the advantage and on the next value.",
     masked_at_the_end),
    ("The mask is applied at the end only. Padding has already been counted as later tokens. Use "
     "the mask inside the loop, on the advantage and on the next value.",
     lambda *case: gae_with_later_values(*case) * case[2]),
    ("The mask is missing. Padding counts as later tokens here.",
     lambda *case: gae_masked(*case, ())),
    ("The values of the padding are counted. Multiply next_value by the mask, too.",
     lambda *case: gae_masked(*case, ("advantage",))),
    ("The values of the padding are counted. Multiply next_value by the mask, too.",
     lambda *case: gae_masked(*case, ("delta",))),
    ("The advantages of the padding are counted. Multiply the advantage by the mask inside the "
     "loop, too.",
     lambda *case: gae_masked(*case, ("value",))),
    ("The advantages of the padding are counted. Multiply the advantage by the mask inside the "
     "loop, too.",
     lambda *case: gae_masked(*case, ("value",)) * case[2]),
    ("The loop runs forwards. Start at the last token, because A_t needs A_(t+1).",
     gae_forwards),
    ("The values are missing. delta_t = r_t + V_(t+1) - V_t.",
     gae_with(lambda reward, value, next_value, lam: reward)),
    ("The next value is missing. delta_t = r_t + V_(t+1) - V_t.",
     gae_with(lambda reward, value, next_value, lam: reward - value)),
    ("The value of the token itself is missing. delta_t = r_t + V_(t+1) - V_t.",
     gae_with(lambda reward, value, next_value, lam: reward + next_value)),
    ("lambda does not belong in delta_t = r_t + V_(t+1) - V_t. It multiplies A_(t+1) only.",
     gae_with(lambda reward, value, next_value, lam: reward + lam * next_value - value)),
    ("V_t and V_(t+1) are exchanged. delta_t = r_t + V_(t+1) - V_t.",
     gae_with(lambda reward, value, next_value, lam: reward + value - next_value)),
]


def check_gae(my_gae):
    """my_gae(rewards, values, mask (B, R), lam) -> advantages (B, R).

    The same as ppo.gae with discount 1."""
    cases = []
    for seed in range(5):
        _, _, values, rewards, mask = episodes(seed)
        padding = 1 - mask
        # Padding holds other numbers than 0, and its delta is not 0.
        cases.append((rewards + 2 * padding, values + padding, mask, 0.95 - 0.1 * seed))
    return compare(my_gae, advantages, MISTAKES["gae"], cases)


# ---------------------------------------------------------------- 3b. PPO


def quotient(logprobs, old):
    """pi / pi_old."""
    return (logprobs - old).exp()


def surrogate(logprobs, old, advantages, mask, clip, choose=torch.maximum, mean=ppo.masked_mean,
              ratio_of=quotient):
    """PPO's loss. What is easy to get wrong is an argument."""
    ratio = ratio_of(logprobs, old)                                         # (B, R)
    unclipped = -advantages * ratio                                         # (B, R)
    clipped = -advantages * ratio.clamp(1 - clip, 1 + clip)                 # (B, R)
    return mean(choose(unclipped, clipped), mask)


def mean_with_padding(x, mask):
    """The mean over all (B, R) entries."""
    return (x * mask).mean()


def mean_per_response(x, mask):
    """The mean over responses of each response's mean."""
    return ((x * mask).sum(1) / mask.sum(1)).mean()


def sum_of_tokens(x, mask):
    """The sum over response tokens."""
    return (x * mask).sum()


def clipped_around_0(logprobs, old, advantages, mask, clip):
    """Clips the ratio to [-clip, clip]."""
    ratio = (logprobs - old).exp()                                          # (B, R)
    loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(-clip, clip))
    return ppo.masked_mean(loss, mask)


# Slips in the mean over tokens: (hint, wrong mean). Of both losses and the clip fraction.
WRONG_MEANS = [
    ("The mean includes padding. Divide by the number of response tokens.",
     mean_with_padding),
    ("This is a mean over responses of their means. Take one mean over the tokens of all "
     "responses.",
     mean_per_response),
    ("This is a sum. Divide by the number of response tokens.",
     sum_of_tokens),
    ("This divides by the number of responses. Divide by the number of response tokens.",
     lambda x, mask: (x * mask).sum() / len(mask)),
    ("Padding is counted in the sum. Multiply by the mask first.",
     lambda x, mask: x.sum() / mask.sum()),
    ("The mask is missing. Padding is counted.",
     lambda x, mask: x.mean()),
]


def with_wrong_means(function):
    """Return pairs (hint, wrong function) of a function that takes `mean`."""
    return [(hint, functools.partial(function, mean=mean)) for hint, mean in WRONG_MEANS]


MISTAKES["policy_loss"] = [
    ("Take the larger of the two losses. The smaller one is right for the objective, before the "
     "minus sign.",
     lambda *case: surrogate(*case, choose=torch.minimum)),
    ("The ratio is pi / pi_old. It is exp(new - old).",
     lambda logprobs, old, *rest: surrogate(old, logprobs, *rest)),
    ("This is the difference of the log-probabilities. Its exponential is the ratio.",
     functools.partial(surrogate, ratio_of=lambda logprobs, old: logprobs - old)),
    ("These are log-probabilities. Their quotient is not the ratio of the probabilities. "
     "exp(new - old) is.",
     functools.partial(surrogate, ratio_of=lambda logprobs, old: logprobs / old)),
    ("This always takes the clipped loss. A step in the bad direction then gets no gradient. Take "
     "the larger of both losses.",
     lambda *case: surrogate(*case, choose=lambda unclipped, clipped: clipped)),
    ("This never clips. Take the larger of both losses.",
     lambda *case: surrogate(*case, choose=lambda unclipped, clipped: unclipped)),
    ("The ratio is clipped to the range from -clip to clip. The range is around 1: from 1 - clip "
     "to 1 + clip.",
     clipped_around_0),
    ("The sign is wrong. The loss falls when good tokens become more likely.",
     lambda *case: -surrogate(*case)),
    ("Both losses lack their minus sign. Each is minus the advantage times a ratio. Then take the "
     "larger.",
     lambda *case: -surrogate(*case, choose=torch.minimum)),
    (NO_GRADIENT,
     lambda *case: surrogate(*case).detach()),
    *with_wrong_means(surrogate),
]


def rollouts(n=5):
    """Return the arguments of the clipped loss, n times. Padding holds other numbers than 0."""
    cases = []
    for seed in range(n):
        logprobs, old, _, advantages, mask = episodes(seed)
        logprobs = old + 0.3 * (logprobs - old)             # some ratios are clipped, some not
        padding = 1 - mask
        clip = 0.1 + 0.05 * seed
        cases.append((logprobs + padding, old, advantages + padding, mask, clip))
    return cases


def check_policy_loss(my_policy_loss):
    """my_policy_loss(logprobs, old_logprobs, advantages, mask (B, R), clip) -> scalar.

    The same as the first result of ppo.policy_loss. The gradients by logprobs must agree, too."""
    def right(*case):
        loss, _ = ppo.policy_loss(*case)
        return loss

    return compare(my_policy_loss, right, MISTAKES["policy_loss"], rollouts(), trained=(0,))


def share(logprobs, old, advantages, mask, clip, counts, mean=ppo.masked_mean):
    """The share of tokens for which counts(ratio, advantage, clip) is true."""
    ratio = (logprobs - old).exp()                                          # (B, R)
    return mean(counts(ratio, advantages, clip).float(), mask)


def too_far(ratio, advantages, clip):
    """Whether a token has moved out of the range in the direction of its advantage."""
    above = (ratio > 1 + clip) & (advantages > 0)                           # (B, R)
    below = (ratio < 1 - clip) & (advantages < 0)                           # (B, R)
    return above | below


def comes_back(ratio, advantages, clip):
    """Whether a token has moved out of the range against its advantage."""
    return too_far(ratio, -advantages, clip)


def outside(ratio, advantages, clip):
    """Whether a ratio is out of the range, in either direction."""
    return (ratio - 1).abs() > clip


def log_outside(ratio, advantages, clip):
    """Whether the log-ratio is out of the range from -clip to clip."""
    return ratio.log().abs() > clip


# Ways to count the wrong tokens: (hint, counts). They are typical of my_clip_fraction.
WRONG_COUNTS = [
    ("This counts every ratio that is out of the range. A token that has moved against its "
     "advantage keeps its gradient. Look at the sign of the advantage. (Some libraries log your "
     "number.)",
     outside),
    ("This compares the log-ratio with clip. The ratio is its exponential. Look at the sign of "
     "the advantage, too.",
     log_outside),
    ("This counts the tokens that have moved against their advantage. They keep their gradient. "
     "The others have none.",
     comes_back),
    ("This counts the tokens with a gradient. Count those without one.",
     lambda *token: ~too_far(*token)),
    ("Inside of the range the two losses are equal, and the token has a gradient. Count where the "
     "clipped loss is larger, not where it is equal.",
     lambda *token: ~comes_back(*token)),
    ("This counts good tokens only. A bad token with a ratio below 1 - clip has no gradient, "
     "either.",
     lambda ratio, advantages, clip: (ratio > 1 + clip) & (advantages > 0)),
    ("This counts bad tokens only. A good token with a ratio above 1 + clip has no gradient, "
     "either.",
     lambda ratio, advantages, clip: (ratio < 1 - clip) & (advantages < 0)),
    ("This counts ratios above 1 + clip only, and does not look at the advantage.",
     lambda ratio, advantages, clip: ratio > 1 + clip),
    ("The ratio is pi / pi_old. It is exp(new - old).",
     lambda ratio, advantages, clip: too_far(1 / ratio, advantages, clip)),
    ("This is the difference of the log-probabilities. Its exponential is the ratio.",
     lambda ratio, advantages, clip: too_far(ratio.log(), advantages, clip)),
]

MISTAKES["clip_fraction"] = [
    (hint, functools.partial(share, counts=counts)) for hint, counts in WRONG_COUNTS]
MISTAKES["clip_fraction"] += with_wrong_means(functools.partial(share, counts=too_far))


def check_clip_fraction(my_clip_fraction):
    """my_clip_fraction(logprobs, old_logprobs, advantages, mask (B, R), clip) -> a number.

    The share of response tokens without gradient: the second result of ppo.policy_loss."""
    def right(*case):
        _, clip_fraction = ppo.policy_loss(*case)
        return clip_fraction

    return compare(my_clip_fraction, right, MISTAKES["clip_fraction"], rollouts(8))


def variance(centred, mask, correction=0):
    """The mean square over response tokens. correction: 1 divides by n - 1."""
    return (centred ** 2 * mask).sum() / (mask.sum() - correction)


def whitened(x, mask, mean=ppo.masked_mean, variance=variance, correction=0, epsilon=1e-8):
    """ppo.whiten. What is easy to get wrong is an argument."""
    centred = x - mean(x, mask)                                             # (B, R)
    return centred / (variance(centred, mask, correction) + epsilon).sqrt() * mask


def row_mean(x, mask):
    """The mean of each row, (B, 1)."""
    return (x * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)


def row_variance(centred, mask, correction=0):
    """The variance of each row, (B, 1)."""
    squares = (centred ** 2 * mask).sum(1, keepdim=True)                    # (B, 1)
    return squares / (mask.sum(1, keepdim=True) - correction)


def variance_with_padding(centred, mask, correction=0):
    """The variance over all (B, R) entries, whatever the padding holds."""
    return centred.var(correction=correction)


def variance_with_zeros(centred, mask, correction=0):
    """The variance over all (B, R) entries, with zeros on the padding."""
    return (centred * mask).var(correction=correction)


# Slips of my_whitened: (hint, wrong function of x, mask and correction).
WRONG_WHITENING = [
    ("This whitens each response on its own. Take one mean and one variance over the tokens of "
     "all responses. Otherwise a good response has the same mean as a bad one.",
     functools.partial(whitened, mean=row_mean, variance=row_variance)),
    ("The mean and the variance include padding. Use the response tokens only.",
     functools.partial(whitened, mean=lambda x, mask: x.mean(), variance=variance_with_padding)),
    ("The mean and the variance include padding. Use the response tokens only.",
     lambda x, mask, correction: whitened(
         x * mask, mask, lambda x, mask: x.mean(), variance_with_padding, correction)),
    ("The mean and the variance include padding. Use the response tokens only.",
     lambda x, mask, correction: ((x * mask - (x * mask).mean())
                                  / ((x * mask).var(correction=correction) + 1e-8).sqrt())),
    ("These are the response tokens in one row. Return (B, R), with 0 on padding.",
     lambda x, mask, correction: whitened(x, mask, correction=correction)[mask > 0]),
    ("The mean includes padding. Divide by the number of response tokens.",
     functools.partial(whitened, mean=mean_with_padding)),
    ("The mean includes padding. Use the response tokens only.",
     functools.partial(whitened, mean=lambda x, mask: x.mean())),
    ("The variance includes padding. Use the response tokens only.",
     functools.partial(whitened, variance=variance_with_padding)),
    ("The variance includes padding. Divide by the number of response tokens.",
     functools.partial(whitened, variance=variance_with_zeros)),
    ("This divides by the variance. Divide by its square root.",
     lambda x, mask, correction: whitened(
         x, mask, variance=lambda *case: variance(*case) ** 2, correction=correction)),
    ("Padding is not 0 in your result. Multiply by the mask at the end.",
     lambda x, mask, correction: ((x - ppo.masked_mean(x, mask))
                                  / (variance(x - ppo.masked_mean(x, mask), mask, correction)
                                     + 1e-8).sqrt())),
    ("If all advantages are equal, this divides 0 by 0. Add a small number, such as 1e-8.",
     functools.partial(whitened, epsilon=0)),
    ("This scales, but the mean is not 0. Subtract the mean of the response tokens first.",
     lambda x, mask, correction: x * mask / (
         variance(x - ppo.masked_mean(x, mask), mask, correction) + 1e-8).sqrt()),
]

MISTAKES["whitened"] = [
    ("The mean is 0, but the variance is not 1. Divide by the square root of the variance.",
     lambda x, mask: (x - ppo.masked_mean(x, mask)) * mask),
    ("The variance is that of the advantages before the mean is subtracted. This is a mean square.",
     lambda x, mask: ((x - ppo.masked_mean(x, mask)) * mask
                      / (ppo.masked_mean(x ** 2, mask) + 1e-8).sqrt())),
    ("Padding is counted. Set the mean of the response tokens to 0, not that of all entries.",
     lambda x, mask: (x - x.mean()) / (x.std() + 1e-8)),
]
for hint, mistake in WRONG_WHITENING:
    for correction in (0, 1):
        MISTAKES["whitened"].append((hint, functools.partial(mistake, correction=correction)))


def check_whitened(my_whitened):
    """my_whitened(advantages, mask (B, R)) -> (B, R), as ppo.whiten."""
    cases = []
    for seed in range(5):
        _, _, _, advantages, mask = episodes(seed)
        padding = 1 - mask
        cases.append(((2 + seed) * 10 * advantages + 7 - 30 * padding, mask))
    equal = torch.full_like(mask, 2.0) - padding            # 2 on each token
    cases.append((equal, mask))
    also = [("Your variance divides by n - 1 and ours by n, the number of tokens. Both are usual. "
             "With thousands of tokens the difference is invisible.",
             functools.partial(whitened, correction=1))]
    return compare(my_whitened, ppo.whiten, MISTAKES["whitened"], cases, also)


def squared_errors(values, old_values, returns, mask, clip, choose=torch.maximum,
                   mean=ppo.masked_mean, half=0.5):
    """ppo.value_loss. What is easy to get wrong is an argument."""
    clipped = old_values + (values - old_values).clamp(-clip, clip)         # (B, R)
    error = (values - returns) ** 2                                         # (B, R)
    error_clipped = (clipped - returns) ** 2                                # (B, R)
    return half * mean(choose(error, error_clipped), mask)


def value_loss_with(clipped_values):
    """The value loss with other clipped values, a function of (values, old_values, returns, clip).
    """
    def wrong(values, old_values, returns, mask, clip):
        clipped = clipped_values(values, old_values, returns, clip)         # (B, R)
        error = torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)
        return 0.5 * ppo.masked_mean(error, mask)
    return wrong


def absolute_errors(values, old_values, returns, mask, clip):
    """Without the squares."""
    clipped = old_values + (values - old_values).clamp(-clip, clip)         # (B, R)
    error = torch.maximum((values - returns).abs(), (clipped - returns).abs())
    return 0.5 * ppo.masked_mean(error, mask)


MISTAKES["value_loss"] = [
    ("The factor 1/2 is missing.",
     functools.partial(squared_errors, half=1.0)),
    ("Take the larger of the two errors. With the smaller one, a value that has moved away from "
     "its return by more than clip would have no gradient.",
     functools.partial(squared_errors, choose=torch.minimum)),
    ("This always takes the clipped error. A value that has moved away from its return then gets "
     "no gradient. Take the larger of both errors.",
     functools.partial(squared_errors, choose=lambda error, error_clipped: error_clipped)),
    ("This never clips. Take the larger of both errors, and clip around the old values, not around "
     "the returns.",
     functools.partial(squared_errors, choose=lambda error, error_clipped: error)),
    ("The values are clipped to the range from -clip to clip. Clip how far they have moved from "
     "the old values.",
     value_loss_with(lambda values, old, returns, clip: values.clamp(-clip, clip))),
    ("This is how far the values have moved. Add the old values again after clipping.",
     value_loss_with(lambda values, old, returns, clip: (values - old).clamp(-clip, clip))),
    ("The values are clipped like a ratio. Clip the difference of new and old, to the range from "
     "-clip to clip.",
     value_loss_with(lambda values, old, returns, clip: (
         old * (values / old).clamp(1 - clip, 1 + clip)))),
    ("The range is around 1 here. The difference of new and old is clipped around 0.",
     value_loss_with(lambda values, old, returns, clip: (
         old + (values - old).clamp(1 - clip, 1 + clip)))),
    ("The difference is the wrong way round. How far a value has moved is new minus old.",
     value_loss_with(lambda values, old, returns, clip: (
         old + (old - values).clamp(-clip, clip)))),
    ("The old values are the wrong way round. The new value moves away from the old one.",
     value_loss_with(lambda values, old, returns, clip: (
         values + (old - values).clamp(-clip, clip)))),
    ("The error is not squared.",
     absolute_errors),
    ("The sign is wrong. The loss is positive, and it falls when the values come near the returns.",
     functools.partial(squared_errors, half=-0.5)),
    (NO_GRADIENT,
     lambda *case: squared_errors(*case).detach()),
    *with_wrong_means(squared_errors),
]


def check_value_loss(my_value_loss):
    """my_value_loss(values, old_values, returns, mask (B, R), clip) -> scalar, as ppo.value_loss.

    The gradients by values must agree, too."""
    cases = []
    for seed in range(5):
        moves, errors, old_values, _, mask = episodes(seed)
        padding = 1 - mask
        values = old_values + 0.4 * (moves + 1)
        returns = old_values + errors + 1
        clip = 0.1 + 0.1 * seed
        # Padding holds other numbers than 0. The three differ there.
        cases.append((values + padding, old_values - padding, returns - 2 * padding, mask, clip))
    return compare(my_value_loss, ppo.value_loss, MISTAKES["value_loss"], cases, trained=(0,))


# ---------------------------------------------------------------- 4. what the paper found


def wider(votes, times):
    """labeler.mean_and_error with an interval that is `times` as wide."""
    mean, error = labeler.mean_and_error(votes)
    return mean, error * times


def ends(votes):
    """Both ends of the interval."""
    mean, error = labeler.mean_and_error(votes)
    return mean - error, mean + error


def ties_lose(votes):
    """The win rate if a tie counts as a loss."""
    return labeler.mean_and_error([float(vote == 1) for vote in votes])


def ties_left_out(votes):
    """The win rate without the ties."""
    return labeler.mean_and_error([vote for vote in votes if vote != 0.5])


def binomial(votes):
    """The interval of votes that are all 0 or 1."""
    mean = judge.mean_ignoring_none(votes)
    return mean, 1.96 * (mean * (1 - mean) / len(votes)) ** 0.5


MISTAKES["win_rate"] = [
    ("A tie counts as half a win, 0.5.",
     ties_lose),
    ("Keep the ties. Each counts as half a win.",
     ties_left_out),
    ("This is the spread of single votes. The error of their mean is smaller by sqrt(n).",
     lambda votes: wider(votes, len(votes) ** 0.5)),
    ("This is one standard error. A 95 % interval takes 1.96 of them.",
     lambda votes: wider(votes, 1 / 1.96)),
    ("This is the full width of the interval. Return half of it.",
     lambda votes: wider(votes, 2.0)),
    ("These are the ends of the interval. Return its middle, the mean, and half its width.",
     lambda votes: ends(votes)),
    ("Return two numbers, the mean and half the width of the interval.",
     lambda votes: (labeler.mean_and_error(votes)[0], *ends(votes))),
    ("This is only the mean. Return half the width of the interval, too.",
     lambda votes: labeler.mean_and_error(votes)[0]),
    ("The standard deviation is divided by n. The error of a mean is smaller by sqrt(n).",
     lambda votes: wider(votes, len(votes) ** -0.5)),
    ("This uses the variance. Take its square root, the standard deviation.",
     lambda votes: wider(votes, statistics.stdev(votes))),
    ("Divide the sum of squares by n - 1, not n. The mean was computed from the same votes.",
     lambda votes: wider(votes, ((len(votes) - 1) / len(votes)) ** 0.5)),
    ("p (1 - p) is the variance of votes that are 0 or 1. Ties make it smaller. Use the standard "
     "deviation of the votes.",
     binomial),
]


def check_win_rate(my_win_rate):
    """my_win_rate(votes, each 1, 0.5 or 0) -> (mean, half the width of the 95 % interval).

    The same as labeler.mean_and_error."""
    rng = random.Random(0)
    cases = []
    for n in (20, 50, 200):
        votes = [rng.choice([0.0, 0.5, 1.0, 1.0]) for _ in range(n)]
        cases.append((votes,))
    return compare(my_win_rate, labeler.mean_and_error, MISTAKES["win_rate"], cases)


def gap_closed(sft, ours):
    """The share of the gap between SFT and a perfect answerer that is closed."""
    return (ours - sft) / (1 - sft)


MISTAKES["gap_closed"] = [
    ("This is the gain. Divide it by the largest possible gain.",
     lambda sft, ours: ours - sft),
    ("This is the gain relative to SFT's utility. Divide by what SFT lacks.",
     lambda sft, ours: (ours - sft) / sft),
    ("This is our utility. It ignores where SFT stands.",
     lambda sft, ours: ours),
    ("This is the share of the gap that remains.",
     lambda sft, ours: (1 - ours) / (1 - sft)),
    ("The sign is wrong. A model that is better than SFT closes a positive share.",
     lambda sft, ours: (sft - ours) / (1 - sft)),
    ("This is a percentage. Return a share, where 1 is the whole gap.",
     lambda sft, ours: 100 * gap_closed(sft, ours)),
]


def check_gap_closed(my_gap_closed):
    """my_gap_closed(utility of SFT, utility of ours) -> the share of the gap that is closed.

    The gap is that between SFT and a perfect answerer, whose utility is 1."""
    cases = [(0.7, 0.8), (0.5, 0.9), (0.6, 0.55)]
    return compare(my_gap_closed, gap_closed, MISTAKES["gap_closed"], cases)


def share_of_ceiling(win, ceiling):
    """The share of the possible gain over chance."""
    return (win - 0.5) / (ceiling - 0.5)


MISTAKES["share_of_ceiling"] = [
    ("Chance alone wins half of the votes. Subtract 0.5 from both.",
     lambda win, ceiling: win / ceiling),
    ("The best possible win rate is the ceiling, not 1. People tie and make errors.",
     lambda win, ceiling: (win - 0.5) / 0.5),
    ("This is the gain over chance. Divide it by the largest possible gain.",
     lambda win, ceiling: win - 0.5),
    ("Subtract 0.5 from the ceiling, too. That is the largest possible gain.",
     lambda win, ceiling: (win - 0.5) / ceiling),
    ("This is a percentage. Return a share, where 1 is the ceiling.",
     lambda win, ceiling: 100 * share_of_ceiling(win, ceiling)),
]


def check_share_of_ceiling(my_share_of_ceiling):
    """my_share_of_ceiling(win rate, ceiling) -> the share of the possible gain over chance.

    Both are win rates over SFT: ours, and a perfect answerer's."""
    cases = [(0.57, 0.66), (0.6, 0.75), (0.5, 0.7), (0.45, 0.6)]
    return compare(my_share_of_ceiling, share_of_ceiling, MISTAKES["share_of_ceiling"], cases)


# ---------------------------------------------------------------- 5. what goes wrong


def best_index(curve, key):
    """The index of the point with the highest value."""
    return max(range(len(curve)), key=lambda i: curve[i][key])


def best_gold(curve):
    """The index at which training should have stopped."""
    return best_index(curve, "gold")


def before_first_fall(curve):
    """The index before gold falls for the first time."""
    for i in range(len(curve) - 1):
        if curve[i + 1]["gold"] < curve[i]["gold"]:
            return i
    return len(curve) - 1


MISTAKES["stop"] = [
    ("The proxy is highest there. The policy has learned to fool the proxy.",
     lambda curve: best_index(curve, "proxy")),
    ("This is the last index. Gold has fallen by then.",
     lambda curve: len(curve) - 1),
    ("This is the first index. Nothing has been gained yet.",
     lambda curve: 0),
    ("Gold falls for the first time there, but it rises again later. You know the whole curve.",
     before_first_fall),
    ("This is the gold utility at that point. Return its index.",
     lambda curve: curve[best_gold(curve)]["gold"]),
    ("This is the KL at that point. Return its index.",
     lambda curve: curve[best_gold(curve)]["kl"]),
]


def wobbling_curve(peak, rng):
    """Return 20 points (kl, proxy, gold) with gold highest at a KL near `peak`, and noise."""
    curve = []
    for i in range(20):
        kl = i / 2
        proxy = 1 - math.exp(-i / 8) + rng.uniform(0, 0.05)
        gold = 0.7 + kl * (2 * peak - kl) / 100 + rng.uniform(-0.02, 0.02)
        curve.append({"kl": kl, "proxy": proxy, "gold": gold})
    early = rng.choice((2, 3, 4))
    curve[early]["gold"] = curve[early - 1]["gold"] - 0.01  # an early fall that is not the peak
    curve[-1]["proxy"] = 0.7                                # the proxy is not highest at the end
    return curve


def check_stop(my_stop):
    """my_stop(curve) -> the index at which training should have stopped.

    curve: a list of {"kl", "proxy", "gold"}."""
    rng = random.Random(0)
    cases = [(wobbling_curve(3.7, rng),), (wobbling_curve(4.4, rng),), (wobbling_curve(5.1, rng),)]
    return compare(my_stop, best_gold, MISTAKES["stop"], cases)


MISTAKES["best_of_n_kl"] = [
    ("This is the logarithm at u = 1, the best possible answer. Take the mean over all u.",
     lambda n: math.log(n)),
    ("Use the natural logarithm to get nats.",
     lambda n: math.log2(n) - (n - 1) / n),
    ("This is the mean over the model's own answers, where u is uniform. Weight each u by the "
     "density n u^(n - 1).",
     lambda n: math.log(n) - (n - 1)),
    ("This is a sum over 1,000 steps. Divide by their number.",
     lambda n: 1_000 * best_of_n_kl(n)),
    ("The mean of log u is negative. The second term is subtracted.",
     lambda n: math.log(n) + (n - 1) / n),
]


def best_of_n_kl(n):
    """The KL of the best of n distinct samples."""
    return math.log(n) - (n - 1) / n


def check_best_of_n_kl(my_best_of_n_kl):
    """my_best_of_n_kl(n) -> KL in nats between the best of n samples and one sample.

    The samples are distinct. A sum over steps or over draws may be off by a few per cent."""
    known = [best_of_n_kl]
    for _, mistake in MISTAKES["best_of_n_kl"]:
        known.append(mistake)

    def snapped(n):
        answer = my_best_of_n_kl(n)
        number = flat(answer)
        if number is None or len(number) != 1:
            return answer
        values = [function(n) for function in known]
        nearest = min(values, key=lambda value: abs(value - float(number)))
        near_enough = abs(nearest - float(number)) <= 0.005 + 0.07 * abs(nearest)
        return nearest if near_enough else answer

    cases = [(1,), (2,), (4,), (8,)]                        # float32 holds u ** 7 of any step
    return compare(snapped, best_of_n_kl, MISTAKES["best_of_n_kl"], cases)


SYMPTOMS = {        # name of a bug in tests/mutations.py -> what its curves show
    "KL with the sign turned":
        "The policy is paid for moving away. KL grows without bound.",
    "the score is paid on every token":
        "Every token earns the score again. The KL penalty weighs little beside it, so KL rises "
        "further. Gold stays a little behind. The value network predicts much less of the "
        "returns. Answers do not get longer. They rather get a little shorter.",
    "the score is paid at the end of the padding":
        "Only the longest response gets its score. The others get none. So the score rises less.",
    "KL to the rollout policy":
        "The logged KL is exactly 0 at every iteration.",
    "whitened before the returns":
        "The value network's targets contain whitened advantages. Its explained variance starts "
        "high. A correct one starts below 0.",
    "an endless response costs nothing":
        "Only responses that never end are treated differently. Here nearly every response ended, "
        "so hardly anything changes.",
}
SECOND_SYMPTOMS = {     # the same for the second gallery, which has curves of four of these
    "dropout on in the rollout":
        "The policy's log-probs are other ones each time they are computed. The ratio is far from "
        "1 in the first minibatch, and many tokens are clipped from the start.",
    "rollouts at temperature 0.7":
        "The first samples are surer than the policy itself. In the first rollout the score is "
        "higher and the entropy lower than without the bug. The ratio is 1. KL is not negative.",
    "pad is end-of-text":
        "Pad cannot be sampled, so no response can end. All have the full length from the first "
        "rollout on.",
    "rollouts sample from the reference":
        "The samples stay those of the reference, so score and length hardly change. They become "
        "less likely under the policy than under the reference, so the measured KL is negative.",
    "the ratio without exp":
        "The ratio in the log has its own exp, so it is 1. The ratio in the loss is 0 and not 1, "
        "so about half of the tokens are clipped in every iteration. All else looks healthy.",
    "a learning rate 30 times too large":
        "The ratio is 1 in the first minibatch. Within the first iterations many tokens are "
        "clipped and KL jumps. Then the entropy is 0: the policy has one answer for all prompts.",
}
# Which curve of a gallery is which bug: the start of the SHA-256 of letter and name. A guess can be
# compared with it, and the answer cannot be read from it.
KEYS = {
    "A": "61a845112a65e7c8",
    "B": "0e9d529e19cf1738",
    "C": "4f812ef60da73253",
    "D": "1d97732d8c5e02ad",
    "E": "7fe8301a75117ac9",
    "F": "f89612a56eb9cc42",
    "G": "9c8e0ef613a28638",
    "H": "68a86c0b080434ac",
    "I": "8f0d3e9b49e5de20",
    "J": "a722f83b6798fa9d",
}


def is_bug(letter, name):
    """Return whether the curve with this letter is that of the bug `name`."""
    digest = hashlib.sha256(f"toytown {letter} {name}".encode("utf-8")).hexdigest()
    return digest[:16] == KEYS[letter]


MISTAKES["diagnosis"] = [
    ("Curve A is a different bug.", dict.fromkeys("ABCDEF", "KL to the rollout policy")),
    ("Curve A has no name yet.", {"A": ...}),
    ("is not on the list.", {"A": "a bug of another name"}),
]
MISTAKES["second_diagnosis"] = [
    ("Curve G is a different bug.", dict.fromkeys("GHIJ", "the ratio without exp")),
    ("Curve G has no name yet.", {}),
    ("is not on the list.", {"G": "KL to the rollout policy"}),
]


def diagnosed(diagnosis, letters, symptoms):
    """Say which of a student's names are right. diagnosis: letter of a curve -> name of a bug."""
    if not isinstance(diagnosis, dict):
        return said(False, "Your diagnosis should be a dict from letters to names.")
    for letter in letters:
        name = diagnosis.get(letter, ...)
        if name is ...:
            return said(False, f"Curve {letter} has no name yet.")
        if not isinstance(name, str) or name not in symptoms:
            return said(False, f"Curve {letter}: {brief(name)} is not on the list.")
    wrong = [letter for letter in letters if not is_bug(letter, diagnosis[letter])]
    if not wrong:
        return said(True, f"All {len(letters)} are found.")
    letter = wrong[0]
    name = diagnosis[letter]
    n_right = len(letters) - len(wrong)
    return said(False, f"{n_right} of {len(letters)} are found. Curve {letter} is a different bug. "
                       f"With {name!r} you would see this: {symptoms[name]}")


def check_diagnosis(diagnosis):
    """diagnosis: letter of a curve of the first gallery -> bug's name, one of SYMPTOMS."""
    return diagnosed(diagnosis, "ABCDEF", SYMPTOMS)


def check_second_diagnosis(diagnosis):
    """diagnosis: letter of a curve of the second gallery -> one of SECOND_SYMPTOMS."""
    return diagnosed(diagnosis, "GHIJ", SECOND_SYMPTOMS)


# ---------------------------------------------------------------- 6. beside PPO


def strided(rewards, k):
    """Return rewards (B,) as if the responses to a prompt were B / k places apart: (B / k, k)."""
    return rewards.view(k, -1).T


def unstrided(groups):
    """Return groups (B / k, k) of `strided` in the order of the batch: (B,)."""
    return groups.T.flatten()


def with_strided_groups(advantages):
    """Return a function of (rewards, k) that takes the groups from the wrong places."""
    def wrong(rewards, k):
        groups = strided(rewards, k)                                        # (B / k, k)
        return unstrided(advantages(groups.flatten(), k).view(groups.shape))
    return wrong


def leave_one_out(rewards, dim):
    """Rewards minus the mean of the others along one dimension."""
    n = rewards.shape[dim]
    others = (rewards.sum(dim, keepdim=True) - rewards) / (n - 1)
    return rewards - others


def minus_sum(rewards, k, own, divisor):
    """Rewards minus the sum of their group over a divisor. own: leave the own reward out."""
    groups = rewards.view(-1, k)                                            # (B / k, k)
    total = groups.sum(1, keepdim=True).expand_as(groups)                   # (B / k, k)
    if own:
        total = total - groups
    return (groups - total / divisor).flatten()


MISTAKES["rloo_advantages"] = [
    ("Each reward is a part of its own baseline here. Leave it out. Take the mean of the other "
     "k - 1.",
     lambda rewards, k: minus_sum(rewards, k, False, k)),
    ("The sum of the others is divided by k. There are only k - 1 others.",
     lambda rewards, k: minus_sum(rewards, k, True, k)),
    ("The sum still contains the reward itself. Subtract it before you divide by k - 1.",
     lambda rewards, k: minus_sum(rewards, k, False, k - 1)),
    ("This is a sum of the others. Divide it by k - 1.",
     lambda rewards, k: minus_sum(rewards, k, True, 1)),
    ("The sign is wrong. A reward above the others' mean has a positive advantage.",
     lambda rewards, k: -methods.rloo_advantages(rewards, k)),
    ("The k responses to a prompt are next to each other. Row i of `rewards.view(-1, k)` is "
     "prompt i. Here responses to different prompts are compared.",
     with_strided_groups(methods.rloo_advantages)),
    ("The k responses to a prompt are next to each other. Row i of `rewards.view(-1, k)` is "
     "prompt i. Here responses to different prompts are compared.",
     with_strided_groups(lambda rewards, k: minus_sum(rewards, k, False, k))),
    ("This compares responses to different prompts. With `rewards.view(-1, k)`, sum over "
     "dimension 1.",
     lambda rewards, k: leave_one_out(rewards.view(-1, k), 0).flatten()),
    ("This compares responses to different prompts. With `rewards.view(-1, k)`, sum over "
     "dimension 1.",
     lambda rewards, k: (rewards.view(-1, k) - rewards.view(-1, k).mean(0)).flatten()),
    ("`view(k, -1)` has k rows. Each prompt should have a row of k columns: `view(-1, k)`.",
     lambda rewards, k: leave_one_out(rewards.view(k, -1), 1).flatten()),
    ("This compares responses to different prompts. With `rewards.view(-1, k)`, sum over "
     "dimension 1.",
     lambda rewards, k: (rewards - (rewards.view(-1, k).sum(0).repeat(len(rewards) // k) - rewards)
                         / (k - 1))),
    ("`view(k, -1)` has k rows. Each prompt should have a row of k columns: `view(-1, k)`.",
     lambda rewards, k: minus_sum(rewards, len(rewards) // k, True, k - 1)),
    ("The baseline is the mean of all other responses in the batch. Take those to the same "
     "prompt.",
     lambda rewards, k: leave_one_out(rewards, 0)),
    ("The sum is that of the batch. Take the other responses to the same prompt.",
     lambda rewards, k: rewards - (rewards.sum() - rewards) / (k - 1)),
    ("The baseline is the mean of the batch. Take the other responses to the same prompt.",
     lambda rewards, k: rewards - rewards.mean()),
    ("This is the baseline. The advantage is the reward minus it.",
     lambda rewards, k: rewards - methods.rloo_advantages(rewards, k)),
    ("There is no baseline yet. Subtract the mean of the other k - 1 rewards of the prompt.",
     lambda rewards, k: rewards),
    ("This also divides by the standard deviation, which is GRPO's step. Only subtract here.",
     lambda rewards, k: (methods.rloo_advantages(rewards, k).view(-1, k)
                         / (rewards.view(-1, k).std(1, keepdim=True) + 1e-4)).flatten()),
    ("This also divides by the standard deviation, which is GRPO's step. Only subtract here.",
     methods.grpo_advantages),
]


def group_rewards(seed, n, k, equal=False):
    """Return (rewards (n * k,), k) as whole numbers. Prompts differ in difficulty.

    equal: all responses to the first prompt have the reward 0. The rewards are large, so that a
    small number added to their standard deviation changes nothing that the check can see."""
    generator = torch.Generator().manual_seed(seed)
    level = torch.randint(-40, 60, (n, 1), generator=generator)             # (n, 1)
    rewards = level + torch.randint(-50, 50, (n, k), generator=generator)   # (n, k)
    rewards[:, 0] += 100                                    # so that no group is nearly equal
    if equal:
        rewards[0] = 0
    return rewards.flatten().float(), k


def check_rloo_advantages(my_rloo_advantages):
    """my_rloo_advantages(rewards (B,), k) -> advantages (B,), as methods.rloo_advantages.

    The k responses to a prompt are next to each other."""
    cases = [group_rewards(0, 3, 4), group_rewards(1, 6, 2), group_rewards(2, 4, 3),
             group_rewards(3, 2, 6)]                        # 12 rewards: a fixed k raises nothing
    return compare(
        my_rloo_advantages, methods.rloo_advantages, MISTAKES["rloo_advantages"], cases)


def population_std(groups, dim):
    """The standard deviation that divides by the number of values."""
    return groups.std(dim, correction=0, keepdim=True)


def sample_std(groups, dim):
    """The standard deviation that divides by the number of values minus 1, as in torch."""
    return groups.std(dim, keepdim=True)


def divided(rewards, k, std, centred=True, epsilon=1e-4):
    """GRPO's advantages with any standard deviation, and what is easy to forget as arguments."""
    groups = rewards.view(-1, k)                                            # (B / k, k)
    top = groups - groups.mean(1, keepdim=True) if centred else groups      # (B / k, k)
    return (top / (std(groups, 1) + epsilon)).flatten()


def grpo_with(std):
    """GRPO's typical mistakes with one of the two standard deviations."""
    def right(rewards, k):
        return divided(rewards, k, std)

    def own_left_out(rewards, k):
        groups = rewards.view(-1, k)                                        # (B / k, k)
        return (leave_one_out(groups, 1) / (std(groups, 1) + 1e-4)).flatten()

    def by_batch(rewards, k):
        groups = rewards.view(-1, k)                                        # (B / k, k)
        centred = groups - groups.mean(1, keepdim=True)                     # (B / k, k)
        return (centred / std(rewards, 0)).flatten()

    def by_variance(rewards, k):
        groups = rewards.view(-1, k)                                        # (B / k, k)
        centred = groups - groups.mean(1, keepdim=True)                     # (B / k, k)
        return (centred / (std(groups, 1) ** 2 + 1e-4)).flatten()

    def by_norm(rewards, k):
        groups = rewards.view(-1, k)                                        # (B / k, k)
        centred = groups - groups.mean(1, keepdim=True)                     # (B / k, k)
        return (centred / (centred.norm(dim=1, keepdim=True) + 1e-4)).flatten()

    def across_prompts(rewards, k):
        groups = rewards.view(-1, k)                                        # (B / k, k)
        centred = groups - groups.mean(0, keepdim=True)                     # (B / k, k)
        return (centred / (std(groups, 0) + 1e-4)).flatten()

    def in_k_rows(rewards, k):
        return divided(rewards, len(rewards) // k, std)

    return [
        ("If all responses to a prompt have the same reward, this divides 0 by 0. Add a small "
         "number, such as 1e-4, to the standard deviation.",
         lambda rewards, k: divided(rewards, k, std, epsilon=0.0)),
        ("The standard deviation is that of the batch. Take that of the k responses to a prompt.",
         by_batch),
        ("Mean and standard deviation are those of the batch. This is whitening, as in PPO. Take "
         "those of the k responses to a prompt.",
         lambda rewards, k: (rewards - rewards.mean()) / std(rewards, 0)),
        ("Subtract the mean of the group before you divide.",
         lambda rewards, k: divided(rewards, k, std, centred=False)),
        ("Subtract the mean of the group before you divide. Add a small number, such as 1e-4, to "
         "the standard deviation.",
         lambda rewards, k: divided(rewards, k, std, centred=False, epsilon=0.0)),
        ("Only the mean is divided. Put the difference in parentheses, then divide it.",
         lambda rewards, k: (rewards.view(-1, k) - rewards.view(-1, k).mean(1, keepdim=True)
                             / (std(rewards.view(-1, k), 1) + 1e-4)).flatten()),
        ("The reward itself is left out of the mean, as in RLOO. GRPO takes the mean of all k.",
         own_left_out),
        ("This divides by the variance. Take its square root.",
         by_variance),
        ("This divides by the root of the sum of squares. Take the root of their mean.",
         by_norm),
        ("The sign is wrong. A reward above the mean has a positive advantage.",
         lambda rewards, k: -right(rewards, k)),
        ("The k responses to a prompt are next to each other. Row i of `rewards.view(-1, k)` is "
         "prompt i. Here responses to different prompts are compared.",
         with_strided_groups(right)),
        ("This compares responses to different prompts. With `rewards.view(-1, k)`, take mean and "
         "standard deviation over dimension 1.",
         across_prompts),
        ("`view(k, -1)` has k rows. Each prompt should have a row of k columns: `view(-1, k)`.",
         in_k_rows),
    ]


MISTAKES["grpo_advantages"] = [
    *grpo_with(sample_std),
    *grpo_with(population_std),
    ("These are differences from the mean. Divide them by the standard deviation of the group.",
     lambda rewards, k: methods.grpo_advantages(rewards, k, normalise=False)),
    ("This is RLOO's. GRPO takes the mean of all k and divides by their standard deviation.",
     methods.rloo_advantages),
    ("There is neither a mean nor a standard deviation yet.",
     lambda rewards, k: rewards),
]


def check_grpo_advantages(my_grpo_advantages):
    """my_grpo_advantages(rewards (B,), k) -> advantages (B,), as methods.grpo_advantages.

    The standard deviation may divide by k - 1, as ours does, or by k."""
    cases = [group_rewards(0, 3, 4), group_rewards(1, 6, 2), group_rewards(2, 4, 3),
             group_rewards(3, 2, 6, equal=True)]
    also = [("Your standard deviation divides by k and ours by k - 1. Both are in use.",
             lambda rewards, k: divided(rewards, k, population_std))]
    return compare(my_grpo_advantages, methods.grpo_advantages, MISTAKES["grpo_advantages"],
                   cases, also)


def dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta):
    """methods.dpo_loss of log-probabilities of tokens, (N, R) and 0 on padding."""
    return methods.dpo_loss(
        chosen.sum(1), rejected.sum(1), ref_chosen.sum(1), ref_rejected.sum(1), beta)


def token_means(logprobs):
    """The mean of each response: (N, R), 0 on padding -> (N,)."""
    return logprobs.sum(1) / (logprobs != 0).sum(1)


def ratios(chosen, rejected, ref_chosen, ref_rejected):
    """log(pi/pi_ref) of chosen minus that of rejected: four times (N, R) -> (N,)."""
    return ((chosen - ref_chosen) - (rejected - ref_rejected)).sum(1)


def mean_loss(margins):
    """Minus the mean log-sigmoid."""
    return -F.logsigmoid(margins).mean()


def unstable_loss(margins):
    """The same, but infinite where the sigmoid is rounded to 0."""
    return -torch.log(torch.sigmoid(margins)).mean()


def quotients(chosen, rejected, ref_chosen, ref_rejected, beta):
    """Margins of quotients of log-probabilities."""
    return beta * (chosen.sum(1) / ref_chosen.sum(1) - rejected.sum(1) / ref_rejected.sum(1))


def separate_sigmoids(chosen, rejected, ref_chosen, ref_rejected, beta):
    """A log-sigmoid of each of the two implied rewards."""
    better = beta * (chosen - ref_chosen).sum(1)                            # (N,)
    worse = beta * (rejected - ref_rejected).sum(1)                         # (N,)
    return mean_loss(better) - mean_loss(worse)


WRONG_MARGINS = [       # hint, function of the arguments of my_dpo_loss -> (N,)
    ("The reference is missing. Subtract its log-probabilities from the policy's.",
     lambda chosen, rejected, ref_chosen, ref_rejected, beta: (
         beta * (chosen - rejected).sum(1))),
    ("Chosen and rejected are the wrong way round. The margin is that of the chosen response "
     "minus that of the rejected one.",
     lambda *case: -case[4] * ratios(*case[:4])),
    ("beta is missing. It multiplies log(pi/pi_ref), inside the sigmoid.",
     lambda *case: ratios(*case[:4])),
    ("This divides by beta. The implied reward is beta times log(pi/pi_ref).",
     lambda *case: ratios(*case[:4]) / case[4]),
    ("The reference has the wrong sign. log(pi/pi_ref) is log pi minus log pi_ref.",
     lambda chosen, rejected, ref_chosen, ref_rejected, beta: (
         beta * ratios(chosen, rejected, -ref_chosen, -ref_rejected))),
    ("The reference has the wrong sign. log(pi/pi_ref) is log pi minus log pi_ref.",
     lambda chosen, rejected, ref_chosen, ref_rejected, beta: (
         beta * ratios(chosen, rejected, ref_chosen, -ref_rejected))),
    ("The two ratios are added. The margin is that of the chosen response minus that of the "
     "rejected one.",
     lambda chosen, rejected, ref_chosen, ref_rejected, beta: (
         beta * ratios(chosen, -rejected, ref_chosen, -ref_rejected))),
    ("beta multiplies the policy's log-probabilities only. It multiplies the reference's, too.",
     lambda chosen, rejected, ref_chosen, ref_rejected, beta: (
         ratios(beta * chosen, beta * rejected, ref_chosen, ref_rejected))),
    ("beta multiplies one of the two ratios only. It multiplies both.",
     lambda chosen, rejected, ref_chosen, ref_rejected, beta: (
         ratios(beta * chosen, rejected, beta * ref_chosen, ref_rejected))),
    ("log(pi/pi_ref) is the difference of the two log-probabilities, not their quotient.",
     quotients),
    ("These are means over columns. The log-probability of a response is the sum over its tokens.",
     lambda *case: case[4] * ratios(*case[:4]) / case[0].shape[1]),
    ("These are means over tokens. The log-probability of a response is the sum over its tokens.",
     lambda *case: case[4] * ratios(*[token_means(part)[:, None] for part in case[:4]])),
]

MISTAKES["dpo_loss"] = [
    (UNSTABLE,
     lambda *case: unstable_loss(case[4] * ratios(*case[:4]))),
    (UNSTABLE,
     lambda *case: F.binary_cross_entropy(
         torch.sigmoid(case[4] * ratios(*case[:4])), torch.ones(len(case[0])))),
    (UNSTABLE,
     lambda *case: -torch.log(torch.sigmoid(case[4] * ratios(*case[:4])) + 1e-8).mean()),
    (NO_GRADIENT,
     lambda *case: dpo_loss(*case).detach()),
    ("This is a sum over pairs. Take their mean.",
     lambda *case: dpo_loss(*case) * len(case[0])),
    ("Divide by the number of pairs N, not by the number of entries of a tensor.",
     lambda *case: dpo_loss(*case) / case[0].shape[1]),
    ("This is one loss for each pair. Take their mean.",
     lambda *case: -F.logsigmoid(case[4] * ratios(*case[:4]))),
    ("beta is outside of the sigmoid. It multiplies log(pi/pi_ref), inside.",
     lambda *case: case[4] * mean_loss(ratios(*case[:4]))),
    ("The sign is wrong. The loss is minus a log-probability, so it is positive.",
     lambda *case: -dpo_loss(*case)),
    ("The minus sign is inside of the log-sigmoid. It belongs in front of it.",
     lambda *case: -mean_loss(-case[4] * ratios(*case[:4]))),
    ("This is minus a probability. The loss is minus its logarithm.",
     lambda *case: -torch.sigmoid(case[4] * ratios(*case[:4])).mean()),
    ("This is one minus a probability. The loss is minus the logarithm of the probability.",
     lambda *case: 1 - torch.sigmoid(case[4] * ratios(*case[:4])).mean()),
    ("The log-sigmoid is missing. This is minus the mean margin, which has no lower bound.",
     lambda *case: -(case[4] * ratios(*case[:4])).mean()),
    ("Each ratio has a sigmoid of its own. Take one, of their difference.",
     separate_sigmoids),
    ("The mean comes last. Take the log-sigmoid of each margin first.",
     lambda *case: mean_loss((case[4] * ratios(*case[:4])).mean())),
    ("This compares token with token, but the two responses have different tokens. Sum over the "
     "tokens of a response first. Also subtract the reference's log-probabilities.",
     lambda chosen, rejected, ref_chosen, ref_rejected, beta: (
         mean_loss(beta * (chosen - rejected)))),
    ("This compares token with token, but the two responses have different tokens. Sum over the "
     "tokens of a response first.",
     lambda chosen, rejected, ref_chosen, ref_rejected, beta: mean_loss(
         beta * ((chosen - ref_chosen) - (rejected - ref_rejected)))),
    ("Here a margin is summed over the whole batch. Sum over the tokens, dimension 1.",
     lambda *case: mean_loss(case[4] * ratios(*case[:4]).sum())),
    ("This sums over the pairs. Sum over the tokens, dimension 1.",
     lambda chosen, rejected, ref_chosen, ref_rejected, beta: mean_loss(
         beta * ((chosen - ref_chosen) - (rejected - ref_rejected)).sum(0))),
]


def loss_of_margins(margins_of, *case):
    """The loss of the margins of one case."""
    return mean_loss(margins_of(*case))


MISTAKES["dpo_loss"] += [
    (hint, functools.partial(loss_of_margins, margins_of)) for hint, margins_of in WRONG_MARGINS]


def response_pairs(seed, N, beta, R=6):
    """Return the arguments of my_dpo_loss: N pairs of responses of 2 to R tokens."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for _ in ("chosen", "rejected"):
        lengths = torch.randint(2, R + 1, (N, 1), generator=generator)      # (N, 1)
        mask = (torch.arange(R) < lengths).float()                          # (N, R)
        for _ in ("policy", "reference"):
            logprobs = -0.1 - 2 * torch.rand(N, R, generator=generator)     # (N, R)
            parts.append(logprobs * mask)
    chosen, ref_chosen, rejected, ref_rejected = parts
    return chosen, rejected, ref_chosen, ref_rejected, beta


def check_dpo_loss(my_dpo_loss):
    """my_dpo_loss(chosen, rejected, ref_chosen, ref_rejected (N, R), beta) -> scalar.

    Log-probabilities of tokens, 0 on padding. The same as methods.dpo_loss of their sums. The
    gradients by chosen and rejected must agree, too."""
    cases = [response_pairs(0, 4, 0.15), response_pairs(1, 5, 0.5), response_pairs(2, 3, 1.5)]
    # The last case has a pair with a large negative margin.
    chosen, *rest = response_pairs(3, 4, 1.0)
    chosen[0] *= 1000
    cases.append((chosen, *rest))
    return compare(my_dpo_loss, dpo_loss, MISTAKES["dpo_loss"], cases, trained=(0, 1),
                   extreme=UNSTABLE)
