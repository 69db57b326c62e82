"""The classroom: every exercise takes its solution, and answers each typical mistake with the hint that fits it."""
import ast
import doctest
import json
import math
import re
import statistics

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from data import files, label
from notebooks import exercises, lesson
from tests.mutations import BUGS

RANKING = {"prompt": "Hi", "responses": [{"text": text, "ended": True} for text in "abcd"], "ranks": [2, 1, 1, 3]}
NOTEBOOKS = sorted(lesson.HERE.glob("*.ipynb"))


def checked(name, answer):
    """What a check says of an answer."""
    return getattr(exercises, f"check_{name}")(answer)


def solutions():
    """{exercise: its answer in solutions.md}; a block sees only what its own lesson has imported."""
    found, text = {}, (lesson.HERE / "solutions.md").read_text(encoding="utf-8")
    for number, part in enumerate(re.split(r"^## \d\w?\. .*$", text, flags=re.M)[1:]):
        names = {}
        cells = json.loads(NOTEBOOKS[number].read_text(encoding="utf-8"))["cells"]
        source = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        exec("\n".join(re.findall(r"^import .*\b(?:math|torch)\b.*$", source, re.M)), names)
        for block in re.findall(r"```python\n(.*?)```", part, re.S):
            exec(block, names)
        found |= {name.removeprefix("my_"): value for name, value in names.items() if name.startswith("my_") or name.endswith("diagnosis")}
    return {"parameters": found.pop("number"), **found}


def test_every_exercise_has_a_solution_and_three_mistakes():
    checks = {name.removeprefix("check_") for name in dir(exercises) if name.startswith("check_")}
    assert checks == set(solutions()) == set(exercises.MISTAKES)
    assert all(len(mistakes) >= 3 for mistakes in exercises.MISTAKES.values())


def test_every_exercise_stands_in_one_lesson():
    asked = []
    for path in NOTEBOOKS:
        asked += re.findall(r"exercises\.check_(\w+)\(", path.read_text(encoding="utf-8"))
    assert sorted(asked) == sorted(exercises.MISTAKES)


@pytest.mark.parametrize("name", exercises.MISTAKES)
def test_the_solution_is_accepted(name, capsys):
    assert checked(name, solutions()[name])
    assert capsys.readouterr().out.startswith("Right. ")


@pytest.mark.parametrize("name, hint, mistake", [(name, hint, mistake) for name, pairs in exercises.MISTAKES.items() for hint, mistake in pairs])
def test_a_typical_mistake_is_refused_with_its_own_hint(name, hint, mistake, capsys):
    assert not checked(name, mistake)
    said = capsys.readouterr().out
    assert said.startswith("Not yet. ") and hint in said


@pytest.mark.parametrize("name", [name for name, value in solutions().items() if callable(value)])
@pytest.mark.parametrize("wrong", [lambda *x: None, lambda: 0, lambda *x: 1 / 0, lambda *x: "text", lambda *x: torch.zeros(3, 17), lambda *x: float("nan")])
def test_whatever_a_student_writes_there_is_a_line_and_no_traceback(name, wrong, capsys):
    assert not checked(name, wrong)
    assert capsys.readouterr().out.count("\n") == 1


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_defines_nothing_but_the_students_own(path):
    """No function of the scripts is written again in a lesson; cells are short, and outputs are there without errors."""
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
             if cell["cell_type"] == "code"]
    for cell in cells:
        tree = ast.parse("".join(cell["source"]))
        assert all(node.name.startswith("my_") for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef)))
        assert len([line for line in "".join(cell["source"]).splitlines() if line.strip()]) <= 10
        assert all(out["output_type"] != "error" and out.get("name") != "stderr" for out in cell["outputs"])
    assert any(cell["outputs"] for cell in cells), "the outputs are committed, so that a lesson can be read without running it"


MASKED = {"token_rewards": 3, "gae": 2, "policy_loss": 3, "clip_fraction": 3, "whitened": 1, "value_loss": 3}      # where the mask is


@pytest.mark.parametrize("name", MASKED)
def test_a_mask_that_is_ignored_is_noticed(name, capsys):
    """Padding holds anything: an answer that reads it is refused."""
    def without(*case):
        case = list(case)
        case[MASKED[name]] = torch.ones_like(case[MASKED[name]])
        return solutions()[name](*case)
    assert not checked(name, without)


# Lessons 0, 1, 2 and 4: other right ways to write each answer.


def sample_in_a_loop(logits, temperature, u):
    weights = [math.exp(x / temperature) for x in logits[:-1].tolist()]
    total = 0.0
    for i, weight in enumerate(weights):
        total += weight / sum(weights)
        if total > u:
            return i


def sample_in_place(logits, temperature, u):
    logits[-1] = -torch.inf
    logits /= temperature
    return (logits.softmax(0).cumsum(0) > u).nonzero()[0]


def sample_zeroed_and_scaled(logits, temperature, u):
    p = (logits / temperature).softmax(-1)
    p[-1] = 0
    return torch.searchsorted((p / p.sum()).cumsum(-1), u)


def loss_of_chosen_tokens(logits, idx, mask):
    return F.cross_entropy(logits[mask.bool()], idx[:, 1:][mask.bool()])


def masked_loss_in_a_loop(logits, idx, mask):
    losses = []
    for b in range(len(idx)):
        for t in range(mask.shape[1]):
            if mask[b, t]:
                losses.append(-logits[b, t].log_softmax(-1)[idx[b, t + 1]])
    return torch.stack(losses).mean()


def epoch_in_a_loop(table):
    best = table[0]
    for row in table:
        if row["score"] > best["score"]:
            best = row
    return best["epoch"]


def ordered_pairs(ranks):
    return [(i, j) for i in range(len(ranks)) for j in range(len(ranks)) if ranks[i] < ranks[j]]


def score_differences(scores, ranks):
    return torch.stack([scores[i] - scores[j] for i, j in ordered_pairs(ranks)])


def ranking_loss_in_one_step(scores, ranks):
    ranks = torch.tensor(ranks)
    better = ranks[:, None] < ranks
    return F.softplus(scores[None] - scores[:, None])[better].mean()


def win_rate_in_numpy(votes):
    return np.mean(votes), 1.96 * np.std(votes, ddof=1) / np.sqrt(len(votes))


RIGHT_WAYS_BEFORE_PPO = {
    "next_token_loss": [
        lambda x, ids: F.nll_loss(x[:-1].log_softmax(-1), ids[1:]),
        lambda x, ids: -x[:-1].softmax(-1).gather(1, ids[1:, None]).log().mean(),
        lambda x, ids: (x.logsumexp(-1)[:-1] - x[range(len(ids) - 1), ids[1:]]).mean(),
        lambda x, ids: sum(F.cross_entropy(x[t], ids[t + 1])
                           for t in range(len(ids) - 1)) / (len(ids) - 1),
    ],
    "perplexity": [lambda x: math.e ** x, lambda x: torch.tensor(x).exp(), np.exp,
                   lambda x: 1 / math.exp(-x)],
    "sample": [sample_in_a_loop, sample_in_place, sample_zeroed_and_scaled],
    "mask": [
        lambda p, n, T: [0] * (p - 1) + [1] * (n - p) + [0] * (T - n),
        lambda p, n, T: [p <= t + 1 < n for t in range(T - 1)],
        lambda p, n, T: torch.tensor([p <= t + 1 < n for t in range(T - 1)]),
        lambda p, n, T: (np.arange(1, T) >= p) * (np.arange(1, T) < n),
    ],
    "masked_loss": [loss_of_chosen_tokens, masked_loss_in_a_loop],
    "cosine": [
        lambda t, n, peak: 0.1 * peak + 0.45 * peak * (1 + math.cos(math.pi * t / n)),
        lambda t, n, peak: peak * (0.1 + 0.9 * math.cos(math.pi * t / n / 2) ** 2),
        lambda t, n, peak: peak * (0.55 + 0.45 * np.cos(np.pi * t / n)),
    ],
    "epoch": [epoch_in_a_loop, lambda x: sorted(x, key=lambda row: row["score"])[-1]["epoch"],
              lambda x: max((row["score"], row["epoch"]) for row in x)[1]],
    "preference": [
        lambda a, b: torch.sigmoid(a - b),
        lambda a, b: math.exp(a) / (math.exp(a) + math.exp(b)),
        lambda a, b: 1 / (1 + math.exp(b - a)),
        lambda a, b: 1 / (1 + np.exp(float(b - a))),
        lambda a, b: torch.stack([a, b]).softmax(0)[0],
    ],
    "pairs": [
        lambda r: {(i, j) for i in range(len(r)) for j in range(len(r)) if r[i] < r[j]},
        lambda r: [[j, i] for i in range(len(r)) for j in range(len(r)) if r[j] < r[i]],
        lambda r: (torch.tensor(r)[:, None] < torch.tensor(r)).nonzero(),
    ],
    "ranking_loss": [
        ranking_loss_in_one_step,
        lambda s, r: torch.stack([F.softplus(s[j] - s[i]) for i, j in ordered_pairs(r)]).mean(),
        lambda s, r: -torch.stack([s[[i, j]].log_softmax(0)[0] for i, j in ordered_pairs(r)]).mean(),
        lambda s, r: sum(torch.logaddexp(s[i], s[j]) - s[i] for i, j in ordered_pairs(r)) / len(ordered_pairs(r)),
    ],
    "bias": [lambda s: -np.mean(s), lambda s: -torch.tensor(s).mean(),
             lambda s: sum(-x for x in s) / len(s)],
    "win_rate": [win_rate_in_numpy, lambda v: list(win_rate_in_numpy(v)),
                 lambda v: (statistics.mean(v), 1.96 * statistics.stdev(v) / len(v) ** 0.5),
                 lambda v: torch.stack([torch.tensor(v).mean(),
                                        1.96 * torch.tensor(v).std() / len(v) ** 0.5])],
    "gap_closed": [lambda sft, x: 1 - (1 - x) / (1 - sft), lambda sft, x: (x - sft) / -(sft - 1)],
    "share_of_ceiling": [lambda win, top: (2 * win - 1) / (2 * top - 1)],
}


@pytest.mark.parametrize("name, way", [(name, way) for name, ways in RIGHT_WAYS_BEFORE_PPO.items()
                                       for way in ways])
def test_every_right_way_before_ppo_is_accepted(name, way, capsys):
    assert checked(name, way), capsys.readouterr().out


@pytest.mark.parametrize("name", ["next_token_loss", "masked_loss", "ranking_loss"])
def test_a_loss_without_a_gradient_is_refused(name, capsys):
    """Its value is right."""
    right = solutions()[name]
    assert not checked(name, lambda *x: right(*x).detach())
    assert not checked(name, lambda *x: right(*x).item())
    assert not checked(name, lambda x, *rest: right(x.detach(), *rest))
    assert capsys.readouterr().out.count("it has no gradient") == 3
    assert not checked(name, lambda x, *rest: right(torch.cat([x[:1].detach(), x[1:]]), *rest))
    assert "Its gradient is not" in capsys.readouterr().out


@pytest.mark.parametrize("name, fixed", [
    ("mask", lambda right, p, n, T: right(p, p + 3, T)),
    ("mask", lambda right, p, n, T: right(3, n, T)),
    ("cosine", lambda right, t, n, peak: right(t, 80, peak)),
    ("cosine", lambda right, t, n, peak: right(t, n, 0.01)),
    ("epoch", lambda right, table: 10),
    ("bias", lambda right, scores: -sum(scores) / 8),
    ("share_of_ceiling", lambda right, win, top: max(0.0, right(win, top))),
    ("share_of_ceiling", lambda right, win, top: right(win, 0.66)),
    ("gap_closed", lambda right, sft, ours: right(0.7, ours)),
    ("sample", lambda right, logits, temperature, u: right(logits, 1.0, u)),
])
def test_every_argument_before_ppo_is_varied(name, fixed):
    right = solutions()[name]
    assert not checked(name, lambda *case: fixed(right, *case))


def test_a_pad_that_is_zeroed_too_late_gets_its_hint_whether_or_not_it_raises(capsys):
    def raises(logits, temperature, u):
        p = (logits / temperature).softmax(-1)
        p[-1] = 0
        return (p.cumsum(-1) > u).nonzero()[0]
    assert not checked("sample", raises)
    assert "set to 0 after the softmax" in capsys.readouterr().out
    assert not checked("sample", lambda logits, temperature, u: [][0])
    assert "raises IndexError" in capsys.readouterr().out


@pytest.mark.parametrize("answer", [10, ..., None, [10]])
def test_an_epoch_is_no_function_of_the_table(answer, capsys):
    assert not exercises.check_epoch(answer)
    assert "Write a function of the table" in capsys.readouterr().out


# Lesson 6: other right ways to write each answer. r: rewards (B,). k: responses per prompt.
# c, d: log-probabilities of tokens (N, R), chosen and rejected. rc, rd: the reference's.


def groups_of(r, k):
    return r.view(-1, k)


def centred(r, k):
    return groups_of(r, k) - groups_of(r, k).mean(1, keepdim=True)


def spread(r, k, **how):
    return groups_of(r, k).std(1, keepdim=True, **how)


def margins(c, d, rc, rd, beta):
    return beta * ((c - rc) - (d - rd)).sum(1)


def rloo_in_a_loop(r, k):
    found = []
    for i in range(len(r)):
        first = i // k * k
        others = [float(r[j]) for j in range(first, first + k) if j != i]
        found.append(float(r[i]) - sum(others) / len(others))
    return found


def grpo_in_numpy(r, k):
    groups = r.numpy().reshape(-1, k)
    return ((groups - groups.mean(1, keepdims=True)) / (groups.std(1, keepdims=True) + 1e-8)).ravel()


def dpo_in_place(c, d, rc, rd, beta):
    c -= rc
    d -= rd
    return F.softplus(-beta * (c.sum(1) - d.sum(1))).mean()


def dpo_in_a_loop(c, d, rc, rd, beta):
    losses = []
    for i in range(len(c)):
        margin = (c[i].sum() - rc[i].sum()) - (d[i].sum() - rd[i].sum())
        losses.append(-F.logsigmoid(beta * margin))
    return sum(losses) / len(losses)


def dpo_as_two_classes(c, d, rc, rd, beta):
    implied = beta * torch.stack([(c - rc).sum(1), (d - rd).sum(1)], 1)
    return F.cross_entropy(implied, torch.zeros(len(c), dtype=torch.long))


def dpo_without_gradient_on_padding(c, d, rc, rd, beta):
    sums = [torch.where(part == 0, 0.0, part).sum(1) for part in (c, d, rc, rd)]
    return -F.logsigmoid(beta * (sums[0] - sums[1] - sums[2].detach() + sums[3].detach())).mean()


# Lesson 3: other right ways.


def gae_row_by_row(rewards, values, mask, lam):
    """Without a mask in the arithmetic: each row is cut to its length."""
    result = torch.zeros_like(rewards)
    for i, n in enumerate(mask.sum(1).int().tolist()):
        following = torch.cat([values[i, 1:n], torch.zeros(1)])
        delta = rewards[i, :n] + following - values[i, :n]
        for t in range(n):
            result[i, t] = sum(lam ** k * delta[t + k] for k in range(n - t))
    return result


def rewards_row_by_row(scores, logprobs, ref_logprobs, mask, beta):
    result = torch.zeros_like(logprobs)
    for i, n in enumerate(mask.sum(1).int().tolist()):
        result[i, :n] = -beta * (logprobs[i, :n] - ref_logprobs[i, :n])
        result[i, n - 1] += scores[i]
    return result.tolist()


def rewards_by_the_end_of_the_mask(scores, logprobs, ref_logprobs, mask, beta):
    is_last = mask - F.pad(mask[:, 1:], (0, 1))
    return torch.where(mask > 0, beta * (ref_logprobs - logprobs), 0) + is_last * scores[:, None]


def objective_by_minimum(new, old, a, mask, clip):
    """PPO's own way: minus the mean of the smaller objective, of the tokens alone."""
    ratio = (new - old)[mask.bool()].exp()
    a = a[mask.bool()]
    return -torch.minimum(a * ratio, a * torch.clip(ratio, 1 - clip, 1 + clip)).mean()


def policy_loss_by_cases(new, old, a, mask, clip):
    ratio = new.exp() / old.exp()
    limit = torch.where(a > 0, torch.minimum(ratio, torch.ones(()) + clip),
                        torch.maximum(ratio, torch.ones(()) - clip))
    return -((a * limit * mask).sum(1)).sum() / mask.sum()


def policy_loss_in_a_loop(new, old, a, mask, clip):
    losses = []
    for i in range(len(new)):
        for t in range(int(mask[i].sum())):
            ratio = torch.exp(new[i, t] - old[i, t])
            losses.append(torch.max(-a[i, t] * ratio, -a[i, t] * ratio.clamp(1 - clip, 1 + clip)))
    return torch.stack(losses).mean()


def clip_fraction_without_gradient(new, old, a, mask, clip):
    """The definition itself: the share of tokens whose gradient is 0."""
    new = new.clone().requires_grad_()
    loss = policy_loss_in_a_loop(new, old, a, mask, clip)
    gradient, = torch.autograd.grad(loss, new)
    return ((gradient == 0) & (mask > 0)).sum() / mask.sum()


def clip_fraction_in_a_loop(new, old, a, mask, clip):
    found = []
    for i in range(len(new)):
        for t in range(int(mask[i].sum())):
            ratio = float(torch.exp(new[i, t] - old[i, t]))
            good = float(a[i, t]) > 0
            found.append(ratio > 1 + clip if good else ratio < 1 - clip)
    return sum(found) / len(found)


def clip_fraction_by_losses(new, old, a, mask, clip):
    ratio = (new - old).exp()
    larger = -a * ratio.clamp(1 - clip, 1 + clip) > -a * ratio
    return larger[mask > 0].float().mean().item()


def whitened_by_index(x, mask, **how):
    tokens = x[mask > 0]
    result = torch.zeros_like(x)
    result[mask > 0] = (tokens - tokens.mean()) / (tokens.std(**how) + 1e-8)
    return result


def whitened_in_numpy(x, mask):
    tokens = x.numpy()[mask.numpy() > 0]
    return (x.numpy() - tokens.mean()) / max(tokens.std(), 1e-6) * mask.numpy()


def whitened_by_second_moment(x, mask):
    """Var x = E x^2 - (E x)^2, in float64, where the difference is exact enough."""
    x = x.double()
    mean = (x * mask).sum() / mask.sum()
    variance = (x * x * mask).sum() / mask.sum() - mean * mean
    return torch.where(mask > 0, (x - mean) / torch.sqrt(variance.clamp(min=0) + 1e-8), 0.0)


def value_loss_by_index(new, old, returns, mask, clip):
    new, old, returns = new[mask > 0], old[mask > 0], returns[mask > 0]
    near = torch.clip(new, old - clip, old + clip)
    return torch.max((new - returns).square(), (near - returns).square()).mean() / 2


def value_loss_in_a_loop(new, old, returns, mask, clip):
    errors = []
    for i in range(len(new)):
        for t in range(int(mask[i].sum())):
            near = old[i, t] + (new[i, t] - old[i, t]).clamp(-clip, clip)
            errors.append(max((new[i, t] - returns[i, t]) ** 2, (near - returns[i, t]) ** 2))
    return 0.5 * sum(errors) / len(errors)


def value_loss_by_library(new, old, returns, mask, clip):
    near = torch.minimum(torch.maximum(new, old - clip), old + clip)
    plain = F.mse_loss(new, returns, reduction="none")
    errors = torch.stack([plain, F.mse_loss(near, returns, reduction="none")]).amax(0)
    return (errors * mask / 2).sum() / mask.sum()


RIGHT_WAYS = {
    "token_rewards": [rewards_row_by_row, rewards_by_the_end_of_the_mask],
    "k3": [
        lambda new, ref: torch.expm1(ref - new) - (ref - new),
        lambda new, ref: ref.exp() / new.exp() - 1 - (ref - new),
    ],
    "gae": [
        gae_row_by_row,
        lambda r, v, mask, lam: gae_row_by_row(r * mask, v * mask, mask, lam).numpy(),
    ],
    "policy_loss": [
        objective_by_minimum, policy_loss_by_cases, policy_loss_in_a_loop,
        lambda *x: objective_by_minimum(*x)[None],
    ],
    "clip_fraction": [
        clip_fraction_without_gradient, clip_fraction_in_a_loop, clip_fraction_by_losses,
    ],
    "whitened": [
        whitened_by_index, whitened_in_numpy, whitened_by_second_moment,
        lambda x, mask: whitened_by_index(x, mask, correction=0),
        lambda x, mask: whitened_by_index(x, mask).tolist(),
    ],
    "value_loss": [value_loss_by_index, value_loss_in_a_loop, value_loss_by_library],
    "rloo_advantages": [
        rloo_in_a_loop,
        lambda r, k: k / (k - 1) * centred(r, k).flatten(),
        lambda r, k: k / (k - 1) * centred(r, k),                           # (B / k, k)
        lambda r, k: (r - (groups_of(r, k).sum(1).repeat_interleave(k) - r) / (k - 1)).tolist(),
    ],
    "grpo_advantages": [
        grpo_in_numpy,
        lambda r, k: centred(r, k) / (spread(r, k) + 1e-8),
        lambda r, k: centred(r, k) / (spread(r, k) + 1e-4),
        lambda r, k: centred(r, k) / (spread(r, k) ** 2 + 1e-6).sqrt(),
        lambda r, k: centred(r, k) / spread(r, k).clamp(min=1e-6),
        lambda r, k: torch.nan_to_num(centred(r, k) / spread(r, k)),
        lambda r, k: centred(r, k) / (spread(r, k, correction=0) + 1e-6),
        lambda r, k: centred(r, k) / (spread(r, k, correction=0) ** 2 + 1e-6).sqrt(),
    ],
    "dpo_loss": [
        dpo_in_place, dpo_in_a_loop, dpo_as_two_classes, dpo_without_gradient_on_padding,
        lambda *x: F.softplus(-margins(*x)).mean(),
        lambda *x: torch.logaddexp(torch.zeros(len(x[0])), -margins(*x)).mean(),
        lambda *x: F.binary_cross_entropy_with_logits(margins(*x), torch.ones(len(x[0]))),
        lambda *x: -F.logsigmoid(margins(*x)).sum() / len(x[0]),
        lambda *x: -F.logsigmoid(margins(*x)).mean()[None],
    ],
}


@pytest.mark.parametrize("name, way", [(name, way) for name, ways in RIGHT_WAYS.items()
                                       for way in ways])
def test_every_right_way_is_accepted(name, way, capsys):
    assert checked(name, way), capsys.readouterr().out


def test_either_standard_deviation_is_accepted_and_the_other_is_named(capsys):
    assert checked("grpo_advantages", lambda r, k: centred(r, k) / (spread(r, k) + 1e-6))
    assert "same as ours" in capsys.readouterr().out
    assert checked("grpo_advantages", grpo_in_numpy)
    assert "divides by k and ours by k - 1" in capsys.readouterr().out


def test_either_variance_is_accepted_and_the_other_is_named(capsys):
    assert checked("whitened", whitened_in_numpy)
    assert "same as ours" in capsys.readouterr().out
    assert checked("whitened", whitened_by_index)
    assert "divides by n - 1 and ours by n" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["policy_loss", "value_loss"])
def test_a_loss_of_lesson_3_that_cannot_train_is_refused(name, capsys):
    """Its value is right. A constant limit in place of the clamp has another gradient, too."""
    right = solutions()[name]
    for wrong in (lambda *x: right(*x).item(), lambda *x: right(*x).detach().requires_grad_(),
                  lambda new, *x: right(new.detach(), *x)):
        assert not checked(name, wrong)
        assert "it has no gradient" in capsys.readouterr().out
    assert not checked(name, lambda new, *x: right(new, *x).detach() + new.sum() - new.sum().detach())
    assert "Its gradient is not" in capsys.readouterr().out


# {exercise: [(place of an argument, values that the check might use)]}
NUMBERS = {
    "token_rewards": [(4, (0.2, 0.3, 0.4, 0.5, 0.6))],
    "gae": [(3, (0.95, 0.85, 0.75, 0.65, 0.55, 0.9))],
    "policy_loss": [(4, (0.1, 0.15, 0.2, 0.25, 0.3))],
    "clip_fraction": [(4, (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45))],
    "value_loss": [(4, (0.1, 0.2, 0.3, 0.4, 0.5))],
    "whitened": [],
    "k3": [],
}


@pytest.mark.parametrize("name", NUMBERS)
def test_every_argument_of_lesson_3_is_varied(name, capsys):
    """An answer with a fixed number, or one that ignores a tensor, is refused."""
    right = solutions()[name]
    for place, values in NUMBERS[name]:
        for value in values:
            assert not checked(name, lambda *case: right(*case[:place], value, *case[place + 1:]))
    for place in range(right.__code__.co_argcount - len(NUMBERS[name])):
        def without(*case):
            case = list(case)
            case[place] = torch.zeros_like(case[place])
            return right(*case)
        assert not checked(name, without), place


@pytest.mark.parametrize("wrong, hint", [
    (lambda *x: torch.log1p(torch.exp(-margins(*x))).mean(), "At large differences this is infinite"),
    (lambda *x: -torch.log(1 / (1 + torch.exp(-margins(*x)))).mean(), "At large differences"),
    (lambda *x: -torch.log(torch.sigmoid(margins(*x).double())).mean(), "At large differences"),
    (lambda *x: -F.logsigmoid(margins(*x)).mean().item(), "it has no gradient"),
    (lambda c, *x: -F.logsigmoid(margins(c.detach(), *x)).mean(), "Its gradient is not"),
    (lambda c, d, *x: -F.logsigmoid(margins(c, d.detach(), *x)).mean(), "Its gradient is not"),
])
def test_a_loss_that_cannot_train_is_refused(wrong, hint, capsys):
    """Its value is right where margins are small."""
    assert not checked("dpo_loss", wrong)
    assert hint in capsys.readouterr().out


@pytest.mark.parametrize("name", ["rloo_advantages", "grpo_advantages", "dpo_loss"])
def test_every_argument_is_varied(name, capsys):
    """An answer with a fixed k or beta, or one that ignores any other argument, is refused."""
    right = solutions()[name]
    if name == "dpo_loss":
        for beta in (0.15, 0.5, 1.0, 1.5):
            assert not checked(name, lambda c, d, rc, rd, _: right(c, d, rc, rd, beta))
        for place in range(4):
            def without(*case):
                parts = list(case)
                parts[place] = torch.zeros_like(parts[place])
                return right(*parts)
            assert not checked(name, without)
    else:
        for k in (2, 3, 4, 5):
            assert not checked(name, lambda r, _: right(r, k))


@pytest.mark.parametrize("diagnosis", [
    {}, ..., None, ["A"], {"A": ["x"]}, {"G": {}}, {"a": "KL to the rollout policy"},
    dict.fromkeys("ABCDEFGHIJ"), dict.fromkeys("ABCDEFGHIJ", 10 ** 400)])
@pytest.mark.parametrize("check", [exercises.check_diagnosis, exercises.check_second_diagnosis])
def test_a_malformed_diagnosis_gets_a_line(check, diagnosis, capsys):
    assert not check(diagnosis)
    assert capsys.readouterr().out.count("\n") == 1


def test_a_wrong_name_gets_the_symptoms_of_that_name_and_the_number_found(capsys):
    right = solutions()["diagnosis"]
    assert not exercises.check_diagnosis(right | {"E": right["F"]})
    said = capsys.readouterr().out
    assert "5 of 6 are found. Curve E is a different bug." in said
    assert exercises.SYMPTOMS[right["F"]] in said and right["E"] not in said


def test_nothing_that_a_notebook_holds_says_which_curve_is_which_bug():
    """The recorded curves have letters, and the module has only hashes of the answers."""
    names = [*exercises.SYMPTOMS, *exercises.SECOND_SYMPTOMS]
    parts = lesson.recorded("classroom")["parts"]
    assert not set(names) & set(parts) and set(exercises.KEYS) < set(parts)
    held = repr([value for name, value in vars(exercises).items() if name == "KEYS"])
    assert not any(name in held for name in names)
    known = {bug.name for bug in BUGS}
    assert set(names) <= known
    for letter in exercises.KEYS:
        assert [name for name in names if exercises.is_bug(letter, name)] == [
            bug.name for bug in BUGS if exercises.is_bug(letter, bug.name)]
    lesson_5 = lesson.HERE / "5_what_goes_wrong.ipynb"
    source = "".join("".join(cell["source"]) for cell in
                     json.loads(lesson_5.read_text(encoding="utf-8"))["cells"])
    given = [name for name in names if f'": "{name}"' in source]
    assert given == ["whitened before the returns"], "one letter is given as an example"


def test_every_recorded_curve_shows_its_symptom():
    """What a hint promises is true of the curve that has the bug, and not of the healthy one."""
    parts = lesson.recorded("classroom")["parts"]
    runs = {name: parts[letter] for letter, name in (solutions()["diagnosis"]
                                                     | solutions()["second_diagnosis"]).items()}

    def column(name, key):
        return [row[key] for row in (runs | {"no bug": parts["no bug"]})[name]]

    healthy = {key: column("no bug", key) for key in parts["no bug"][0]}
    assert set(column("KL to the rollout policy", "kl")) == {0.0}
    assert column("KL with the sign turned", "kl")[-1] > 10 * healthy["kl"][-1]
    assert 1.2 < column("the score is paid on every token", "kl")[-1] / healthy["kl"][-1] < 2.5
    assert max(column("the score is paid at the end of the padding", "score")) < 0.6
    assert column("whitened before the returns", "explained_variance")[0] > 0.3
    assert healthy["explained_variance"][0] < 0
    assert max(map(abs, (a - b for a, b in zip(
        column("an endless response costs nothing", "gold"), healthy["gold"])))) < 0.06
    assert set(healthy["ratio"]) == {1.0} and max(healthy["clip_fraction"]) < 0.03
    assert min(column("dropout on in the rollout", "ratio")) > 10
    assert min(column("dropout on in the rollout", "clip_fraction")) > 0.05
    assert max(column("rollouts sample from the reference", "kl")[1:]) < 0
    assert max(column("rollouts sample from the reference", "ratio")) < 1.001
    assert set(column("pad is end-of-text", "ended")) == {0.0}
    assert set(column("pad is end-of-text", "length")) == {32.0}
    collapse = "a learning rate 30 times too large"
    assert max(column(collapse, "clip_fraction")[:4]) > 0.2
    assert max(map(abs, column(collapse, "entropy")[-6:])) < 0.01
    task = parts["closing task"]
    assert {row["kl"] for row in task} == {0.0} and task[-1]["ended"] < 0.05
    assert task[0]["length"] == healthy["length"][0] - 1


# What students wrote, and a part of the hint that they should have got.


def all_rows_rewarded(s, a, b, mask, beta):
    r = -beta * (a - b) * mask
    last = mask.sum(1).long() - 1
    r[:, last] += s
    return r


def gae_of(delta_of):
    def my_gae(rewards, values, mask, lam):
        found = torch.zeros_like(rewards)
        next_advantage = 0.0
        next_value = 0.0
        for t in reversed(range(rewards.shape[1])):
            delta = delta_of(rewards[:, t], values[:, t], next_value, lam)
            found[:, t] = (delta + lam * next_advantage) * mask[:, t]
            next_advantage = found[:, t]
            next_value = values[:, t] * mask[:, t]
        return found
    return my_gae


def policy_loss_of(ratio_of, sign=-1):
    def my_policy_loss(new, old, a, mask, clip):
        ratio = ratio_of(new, old)
        loss = torch.maximum(sign * a * ratio, sign * a * ratio.clamp(1 - clip, 1 + clip))
        return (loss * mask).sum() / mask.sum()
    return my_policy_loss


def whitened_with_zeros(a, mask):
    x = a * mask
    return (x - x.mean()) / (x.var() + 1e-8).sqrt()


def value_loss_turned(new, old, returns, mask, clip):
    near = old + (old - new).clamp(-clip, clip)
    return 0.5 * (torch.maximum((new - returns) ** 2, (near - returns) ** 2) * mask).sum() / mask.sum()


def value_loss_per_row(new, old, returns, mask, clip):
    near = old + (new - old).clamp(-clip, clip)
    return 0.5 * (torch.maximum((new - returns) ** 2, (near - returns) ** 2) * mask).sum() / len(mask)


def kl_in_float32(reduced, u=(torch.arange(1_000) + 0.5) / 1_000):
    return lambda n: reduced(n * u ** (n - 1))


SLIPS = [
    ("next_token_loss", lambda x, ids: -x[:-1].log_softmax(-1)[:, ids[1:]].mean(), "index the rows"),
    ("sample", lambda x, t, u: (without_pad(x).softmax(-1) / t).cumsum(-1).gt(u).nonzero()[0],
     "Divide the logits"),
    ("sample", lambda x, t, u: ((without_pad(x) / t).softmax(-1) > u).nonzero()[0], "with cumsum"),
    ("parameters", 271_488, "The linear layers have biases"),
    ("parameters", 273_664, "one more layer norm"),
    ("parameters", 271_487, "It is not 271487."),
    ("mask", lambda p, n, T: [int(p <= t < n) for t in range(T - 1)], "Both ends are one too far"),
    ("mask", lambda p, n, T: [int(p <= t + 1 < p + 3) for t in range(T - 1)], "not change with n."),
    ("ranking_loss", lambda s, r: -torch.log(torch.sigmoid(score_differences(s, r))).mean(),
     "Use F.logsigmoid"),
    ("ranking_loss", lambda s, r: -(score_differences(s, r).sigmoid() + 1e-8).log().mean(),
     "Use F.logsigmoid"),
    ("ranking_loss", lambda s, r: torch.log(1 + torch.exp(-score_differences(s, r))).mean(),
     "Use F.logsigmoid"),
    ("ranking_loss", lambda s, r: -torch.log(torch.sigmoid(score_differences(s, r))).sum(),
     "This is a sum"),
    ("ranking_loss", lambda s, r: -torch.log(torch.sigmoid(-score_differences(s, r))).mean(),
     "the wrong way round"),
    ("token_rewards", all_rows_rewarded, "Index the rows, too"),
    ("token_rewards", lambda s, a, b, mask, beta: solutions()["token_rewards"](s, a, b, mask, 0.2),
     "not change with beta."),
    ("k3", lambda a, b: torch.exp(a - b) - 1 + (a - b), "exp takes -k1"),
    ("gae", gae_of(lambda r, v, n, lam: r - v), "The next value is missing"),
    ("gae", gae_of(lambda r, v, n, lam: r + n), "The value of the token itself is missing"),
    ("gae", gae_of(lambda r, v, n, lam: r + lam * n - v), "lambda does not belong in delta_t"),
    ("gae", gae_of(lambda r, v, n, lam: r + v - n), "are exchanged"),
    ("gae", lambda r, v, mask, lam: solutions()["gae"](r, v, mask, 0.95), "not change with lam."),
    ("policy_loss", policy_loss_of(lambda new, old: new - old), "difference of the log-prob"),
    ("policy_loss", policy_loss_of(lambda new, old: new / old), "Their quotient is not"),
    ("policy_loss", policy_loss_of(lambda new, old: (new - old).exp(), 1), "lack their minus sign"),
    ("policy_loss", lambda a, b, c, d, clip: solutions()["policy_loss"](a, b, c, d, 0.2),
     "not change with clip."),
    ("whitened", whitened_with_zeros, "The mean and the variance include padding"),
    ("whitened", lambda a, mask: whitened_by_index(a, mask)[mask > 0], "in one row"),
    ("value_loss", value_loss_turned, "the wrong way round"),
    ("value_loss", value_loss_per_row, "divides by the number of responses"),
    ("win_rate", lambda v: (statistics.mean(v), 1.96 * statistics.variance(v) / len(v) ** 0.5),
     "This uses the variance"),
    ("cosine", lambda t, steps, peak: solutions()["cosine"](t, 80, peak), "not change with steps."),
    ("cosine", lambda t, steps, peak: solutions()["cosine"](t, steps, 0.01), "not change with peak."),
    ("share_of_ceiling", lambda win, top: (win - 0.5) / 0.16, "not change with top."),
    ("best_of_n_kl", kl_in_float32(lambda d: d.log().mean()), "Weight each u"),
    ("best_of_n_kl", kl_in_float32(lambda d: (d * d.log()).sum()), "Divide by their number"),
    ("best_of_n_kl", kl_in_float32(lambda d: (d * d.log()).mean(), torch.linspace(0, 1, 1_001)),
     "a logarithm of 0"),
    ("rloo_advantages", lambda r, k: (groups_of(r, k) - (
        groups_of(r, k).sum(0, keepdim=True) - groups_of(r, k)) / (k - 1)).flatten(), "dimension 1"),
    ("rloo_advantages", lambda r, k: (r.view(k, -1) - (
        r.view(k, -1).sum(1, keepdim=True) - r.view(k, -1)) / (k - 1)).flatten(), "`view(k, -1)`"),
    ("perplexity", lambda loss: math.nan, "a logarithm of 0"),
    ("perplexity", lambda loss: 2.0, "not change with loss."),
    ("gap_closed", lambda *case: 2.0 * case[1], "not change with argument 1."),
    ("rloo_advantages", lambda r, k: solutions()["rloo_advantages"](r, 4), "not change with k."),
    ("grpo_advantages", lambda r, k: (groups_of(r, k) - groups_of(r, k).mean(1, keepdim=True)
                                      / (spread(r, k) + 1e-4)).flatten(), "in parentheses"),
    ("grpo_advantages", lambda r, k: solutions()["grpo_advantages"](r, 4), "not change with k."),
    ("dpo_loss", lambda c, d, rc, rd, beta: -F.logsigmoid(beta * ((c - rc) - (d - rd)).sum(0)).mean(),
     "This sums over the pairs"),
    ("dpo_loss", lambda c, d, rc, rd, beta: solutions()["dpo_loss"](c, d, rc, rd, 0.5),
     "not change with beta."),
    ("dpo_loss", lambda *x: -torch.log(torch.sigmoid(margins(*x))).sum(), "This is a sum over pairs"),
]


def without_pad(logits):
    return torch.cat([logits[:-1], torch.tensor([-torch.inf])])


@pytest.mark.parametrize("name, slip, hint", SLIPS)
def test_what_a_student_got_wrong_has_its_hint(name, slip, hint, capsys):
    assert not checked(name, slip)
    assert hint in capsys.readouterr().out


EXTREME = {"ranking_loss", "dpo_loss", "whitened", "grpo_advantages"}       # some cases are


@pytest.mark.parametrize("name", exercises.MISTAKES)
def test_a_mistake_is_finite_and_differs_from_the_right_answer(name, monkeypatch):
    """nan equals nan: a mistake that is nan would be recognised by its test and in no student's code.

    Where some cases are extreme, a mistake may divide 0 by 0 there or be infinite."""
    def compare(student, right, mistakes, cases, also=(), trained=(), extreme=""):
        for hint, mistake in mistakes:
            finite = differs = 0
            for case in cases:
                found, expected = (exercises.outcome(f, case, trained) for f in (mistake, right))
                finite += bool(torch.isfinite(exercises.flat(found)).all())
                differs += not exercises.same(found, expected)
            assert differs and finite >= (1 if name in EXTREME else len(cases)), (hint, finite)
        return True
    monkeypatch.setattr(exercises, "compare", compare)
    assert checked(name, solutions()[name])


def test_two_numbers_that_look_alike_get_more_digits(capsys):
    assert not checked("perplexity", lambda loss: math.exp(loss) * 1.000_2)
    mine, ours = re.findall(r"\d+\.\d+", capsys.readouterr().out)
    assert mine != ours


def test_steps_in_float32_are_near_enough_to_the_integral(capsys):
    for u in (torch.arange(0.0005, 1, 0.001), (torch.arange(1_000) + 0.5) / 1_000,
              torch.linspace(0.0005, 0.9995, 1_000)):
        assert checked("best_of_n_kl", kl_in_float32(lambda d: (d * d.log()).mean(), u))


def test_a_sum_over_steps_is_near_enough_to_the_integral(capsys):
    """Sums over the middles or the right ends of steps are accepted; the unweighted mean is not."""
    def summed(n, steps, shift, weighted=True):
        total = 0.0
        for i in range(steps):
            u = (i + shift) / steps
            density = n * u ** (n - 1)
            total += (density if weighted else 1.0) * math.log(density) / steps
        return total

    for steps, shift in ((1_000, 0.5), (1_000, 1.0), (200, 1.0), (100_000, 0.5)):
        assert exercises.check_best_of_n_kl(lambda n: summed(n, steps, shift))
    assert not exercises.check_best_of_n_kl(lambda n: summed(n, 1_000, 0.5, weighted=False))
    assert "Weight each u" in capsys.readouterr().out


def test_the_checkpoints_are_small():
    assert sum(path.stat().st_size for path in lesson.CHECKPOINTS.glob("*.pt")) < 3_000_000
    assert sorted(path.stem for path in lesson.CHECKPOINTS.glob("*.pt")) == sorted(lesson.MODELS)


def test_no_ranks_that_a_student_types_break_a_later_cell(monkeypatch, capsys, tmp_path):
    """All tied twelve times was a division by zero two cells on; what is asked again gets a hint."""
    monkeypatch.delenv("LESSON_UNATTENDED", raising=False)
    for typed in ("1=2=3=4", "1 1 1 2", "\u00b2 1 3 4", "0 1 2 3", "1 2 3 " + "9" * 5_000,
                  "1 2 3 4 5", "-1 2 3", "1.0 2 3 4"):
        waiting = iter([typed, "1=2=3 4"])
        monkeypatch.setattr("builtins.input", lambda question: next(waiting))
        assert lesson.ask_ranks(RANKING, tmp_path / "mine.jsonl") == [1, 1, 1, 2]
        assert capsys.readouterr().out.count("\n") == 1, typed
    cells = json.loads(NOTEBOOKS[2].read_text(encoding="utf-8"))["cells"]
    source = next("".join(cell["source"]) for cell in cells
                  if "def my_agreement" in "".join(cell["source"]))
    names = {}
    exec(source[:source.index("mine =")], names)
    for ranks in ([1, 1, 1, 2], [1, 1, 1, 1]):
        assert names["my_agreement"]([ranks] * 12, [[2, 1, 1, 1]] * 12) in (0.0, 1.0)


@pytest.mark.parametrize("silent", [EOFError, NotImplementedError])
def test_where_nobody_can_type_the_prepared_answer_is_taken(silent, monkeypatch, tmp_path):
    def unheard(question):
        raise silent
    monkeypatch.delenv("LESSON_UNATTENDED", raising=False)
    monkeypatch.setattr("builtins.input", unheard)
    assert lesson.ask_ranks(RANKING, tmp_path / "mine.jsonl") == [2, 1, 1, 3]
    assert lesson.ask_vote(0.9) == "a" and not list(tmp_path.iterdir())


def test_what_a_student_ranks_is_kept_and_a_prepared_ranking_is_not(tmp_path, monkeypatch):
    """Lesson 2 adds lines to the student's file; an unattended run writes none."""
    cells = json.loads(NOTEBOOKS[2].read_text(encoding="utf-8"))["cells"]
    source = next("".join(cell["source"]) for cell in cells
                  if "lesson.ask_ranks" in "".join(cell["source"]))
    twelve = lesson.recorded("classroom")["parts"]["twelve"]
    names = {"root": tmp_path, "lesson": lesson, "twelve": twelve}
    monkeypatch.setenv("LESSON_UNATTENDED", "1")
    exec(source, names)
    assert not list(tmp_path.iterdir()) and names["my_rankings"] == twelve
    monkeypatch.delenv("LESSON_UNATTENDED")
    for _ in range(2):
        waiting = iter(["3 1=2 4", "4 3 2 1", *[""] * 10])
        monkeypatch.setattr("builtins.input", lambda question: next(waiting))
        exec(source, names)
    lines = label.read_rankings(tmp_path / "my_rankings.jsonl")
    assert [line["ranks"] for line in lines] == [[2, 2, 1, 3], [4, 3, 2, 1]] * 2
    for line, ranking in zip(lines, twelve[:2] * 2):
        for key in ("prompt", "task", "responses"):
            assert line[key] == ranking[key]
    asked = {row["prompt"] for row in files.read_prompts("rm")}
    assert all(ranking["prompt"] in asked for ranking in twelve)


def test_the_example_of_the_policy_gradient_gives_what_the_page_shows():
    """Its code prints the numbers shown below it, and they are those of the page's table."""
    page = (lesson.HERE / "policy_gradient.md").read_text(encoding="utf-8")
    code, = re.findall(r"^```pycon\n(.*?)^```$", page, re.M | re.S)
    example = doctest.DocTestParser().get_doctest(code, {}, "policy_gradient.md", None, 0)
    assert example.examples and doctest.DocTestRunner().run(example).failed == 0
    means, variances = (re.search(rf"^\| {name} \| \| \*\*(.*)\*\* \| \*\*(.*)\*\* \|$", page, re.M).groups() for name in ("mean", "variance"))
    for b, mean, variance in zip(("0.0", "1.5"), means, variances):
        assert f"b {b}: mean {mean}, variance {variance}\n" in code


def test_no_lesson_counts_the_lines_of_a_script():
    """Such a number is wrong as soon as the script changes."""
    for path in NOTEBOOKS:
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            text = "".join(cell["source"])
            counted = re.search(r"\.py`?,? (\(|of |has )?[\d,]+ lines|[\d,]+ lines of (code|`)", text)
            assert cell["cell_type"] == "code" or not counted, text


def test_a_question_is_asked_again_until_the_answer_fits(monkeypatch, tmp_path):
    """Typed nonsense is asked again, nothing typed means the prepared answer, and unattended nobody is asked."""
    def typed(*lines):
        waiting = iter(lines)
        monkeypatch.setattr("builtins.input", lambda question: next(waiting))
    monkeypatch.delenv("LESSON_UNATTENDED", raising=False)
    typed("1 2 2 3", "a b c d", "3 1=2 4")
    assert lesson.ask_ranks(RANKING, tmp_path / "mine.jsonl") == [2, 2, 1, 3]
    typed("x", "B", "", "=")
    assert [lesson.ask_vote(0.8) for _ in range(3)] == ["b", "a", "="]
    monkeypatch.setenv("LESSON_UNATTENDED", "1")
    typed()
    assert lesson.ask_vote(0.2) == "b" and lesson.ask_ranks(RANKING, None) == [2, 1, 1, 3]


def test_a_lesson_without_a_checkout_asks_for_an_address_in_one_line(monkeypatch, tmp_path):
    """All lessons begin with the same two cells. They clone nothing from a placeholder."""
    beginnings = set()
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        beginnings.add(("".join(cells[1]["source"]), "".join(cells[2]["source"])))
    (find, fetch), = beginnings
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [])
    names = {}
    exec(find, names)
    with pytest.raises(SystemExit, match="Put the address of your repository"):
        exec(fetch, names)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_lesson_is_ready_to_teach(path):
    """Minutes and difficulty of each exercise, folded answers, a short version, a discussion."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    assert "**Only 30 minutes?**" in texts[0]
    text = "\n\n".join(texts)
    headings = re.findall(r"^### Exercise.*$", text, re.M)
    level = re.compile(r"### Exercise \d+\. .+ \(\d+ minutes, (easy|medium|hard)\)")
    assert headings and all(level.fullmatch(heading) for heading in headings), headings
    folded = re.findall(r"^<details><summary>Answer</summary>\n\n\S.*?\S\n\n</details>$", text,
                        re.M | re.S)
    assert len(folded) == text.count("<details>") == text.count("</details>")
    _, _, discussion = texts[-1].partition("## To discuss\n")
    questions = re.findall(r"^\d\. ", discussion, re.M)
    assert 2 <= len(questions) <= 4 and discussion.count("<details>") == len(questions)


@pytest.mark.parametrize("key, weight", [("valid_loss", -1), ("gold", 1)])
def test_an_epoch_is_not_chosen_by_the_score_and_another_column(key, weight, capsys):
    """All columns have about the same spread, so that another column decides somewhere."""
    def chosen(table):
        return max(table, key=lambda row: row["score"] + weight * row[key])["epoch"]
    assert not exercises.check_epoch(chosen)


def test_a_stop_at_the_first_fall_is_not_called_independent_of_the_curve(capsys):
    def first_fall(curve):
        golds = [point["gold"] for point in curve]
        return next(i for i in range(1, len(golds)) if golds[i] < golds[i - 1])
    assert not exercises.check_stop(first_fall)
    assert "does not change" not in capsys.readouterr().out


def test_nothing_on_some_inputs_is_not_called_unwritten(capsys):
    answers = iter([solutions()["perplexity"], lambda loss: None])
    assert not exercises.check_perplexity(lambda loss: next(answers)(loss))
    assert "returns nothing on input 2 of" in capsys.readouterr().out
