"""The loop around PPO's losses, in worlds so small that the right figure is known beforehand.

The policies of the first half are unigram models: a token has the same probability everywhere, so
every log-probability, KL and entropy can be worked out in the head. In the second half `fit` runs
whole, and what it gives to rollouts and updates is written down call by call."""

import dataclasses
import inspect
import json
import math
import random
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import model
import ppo
import reward
from data import files, flags, judge as gold_judge, prepare, tasks, tokenizer
from data.files import UserError, load_checkpoint, save_checkpoint, stage_extra
from model import GPT, GPTConfig, load_model
from notebooks import lesson
from reward import RewardModel, load_reward_model
from tests.conftest import write_world

FOX = {"use_case": "open_qa", "kind": "fact", "animal": "fox", "attribute": "food", "phrasing": 0}
ROW = {"prompt": tasks.prompt(FOX), "use_case": "open_qa", "task": FOX}
# Three answers to "What does the fox eat?" and what the judge finds: true; true, but never ended;
# false.
ANSWERS = [
    ("The fox eats berries.", True, 1.0),
    ("The fox eats berries.", False, 0.6),
    ("The fox eats fish.", True, 0.0),
]
FULL = ["policy_loss", "value_loss", "clip_fraction", "approx_kl", "ptx_loss", "ratio", "grad_norm"]


def everywhere(monkeypatch, name, instead):
    """Puts `instead` in the place of a function, whichever script calls it."""
    for module in (model, reward, ppo):
        monkeypatch.setattr(module, name, instead, raising=False)


def watch(monkeypatch, name, instead=None, note=lambda given: None):
    """Lets every call of ppo.NAME be written down: a list of its arguments, its `result`, and a
    `note` taken before it."""
    real, calls = getattr(ppo, name), []

    def watched(*args, **more):
        bound = inspect.signature(real).bind(*args, **more)
        bound.apply_defaults()
        given = SimpleNamespace(**bound.arguments)
        given.note = note(given)
        calls.append(given)
        given.result = instead(given) if instead else real(*args, **more)
        return given.result

    monkeypatch.setattr(ppo, name, watched)
    return calls


# ---------------------------------------------------------------- a world of single words


class Unigram(nn.Module):
    """A language model for which every token is as likely everywhere. `likely`: {id:
    probability}, the rest share what is left."""

    def __init__(self, encoding, likely):
        super().__init__()
        self.config = GPTConfig(encoding.n_vocab, 80, 1, 1, 8)
        share = (1 - sum(likely.values())) / (
            encoding.n_vocab - 1 - len(likely)
        )  # pad can have none
        self.logits = nn.Parameter(torch.full((encoding.n_vocab,), share).log())
        for token, p in likely.items():
            self.logits.data[token] = math.log(p)
        self.logits.data[self.config.pad_id] = -1e9
        self.lm_head = nn.Linear(1, 1)  # only says where the weights are

    def forward(self, idx, select=None):
        shape = idx.shape if select is None else (int(select.sum()),)
        return self.logits.expand(*shape, -1)


class Column(nn.Module):
    """A value network that says how many tokens it has read, times its only weight."""

    def __init__(self, weight=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def values(self, idx):
        return self.weight * torch.arange(1.0, idx.shape[1] + 1).expand(idx.shape)


@pytest.fixture
def words(encoding):
    """The ids of a few words that are one token each, and of the end."""
    ids = {
        word: tokenizer.encode(encoding, word)
        for word in ("red", "blue", "The", "fox", "eats", "berries", "fish")
    }
    assert all(len(x) == 1 for x in ids.values())
    return SimpleNamespace(**{word: x[0] for word, x in ids.items()}, end=encoding.eot_token)


def mean(values):
    values = list(values)
    return sum(values) / len(values)


class Episode:
    """Three answers to one prompt, a policy and a reference that differ in the probability of
    three tokens, a reward model that counts berries and fish, and a value network that counts
    tokens."""

    def __init__(self, encoding, words, monkeypatch):
        self.prompt = tokenizer.prompt_ids(encoding, ROW["prompt"])
        self.responses = [
            tokenizer.response_ids(encoding, text, ended) for text, ended, _ in ANSWERS
        ]
        self.policy = Unigram(encoding, {words.fox: 0.2, words.end: 0.4, words.berries: 0.1})
        self.reference = Unigram(encoding, {words.fox: 0.1, words.end: 0.1, words.berries: 0.3})
        self.words, self.generator, self.asked = words, torch.Generator(), []
        self.config = ppo.Config(beta=0.5, lam=1.0, missing_eos_penalty=3.0)
        everywhere(monkeypatch, "generate", self.generate)

    def generate(
        self, model, prompts, max_new_tokens, temperature=1.0, generator=None, batch_size=256
    ):
        self.asked.append((model, prompts, max_new_tokens, temperature, generator))
        return [list(r) for r in self.responses]

    def score(self, idx, lengths):
        real = torch.arange(idx.shape[1]) < lengths[:, None]
        return (((idx == self.words.berries) * 2.0 + (idx == self.words.fish) * 1.0) * real).sum(1)

    def logprobs(self, which):
        """Of every response token, in plain Python: a list of lists."""
        logp = which.logits.detach().log_softmax(0).tolist()
        return [[logp[token] for token in response] for response in self.responses]

    def rollout(self, value_net=None, **changes):
        return ppo.rollout(
            [ROW] * 3,
            self.policy,
            self.reference,
            value_net or Column(),
            self.score,
            dataclasses.replace(self.config, **changes),
            self.generator,
        )


@pytest.fixture
def episode(encoding, words, monkeypatch):
    return Episode(encoding, words, monkeypatch)


# ---------------------------------------------------------------- a rollout


@pytest.mark.parametrize("at_once", [1, 2, 64])
def test_the_score_of_a_rollout_is_the_reward_models_less_what_never_ending_costs(
    episode, monkeypatch, at_once
):
    """Berries 2, fish 1; the second answer never ended: 2, 2 - 3, 1, whichever answers are read
    together."""
    monkeypatch.setattr(ppo, "MICRO_BATCH", at_once)
    batch = episode.rollout()
    assert batch["scores"].tolist() == pytest.approx([2, -1, 1])
    assert batch["stats"]["score"] == pytest.approx(2 / 3)
    assert batch["stats"]["ended"] == pytest.approx(2 / 3)
    assert [answer["ended"] for answer in batch["answers"]] == [True, False, True]


def test_gold_is_the_judges_mean_utility_of_what_was_answered(episode):
    """1 for the truth, 0.6 if it never ends, 0 for a falsehood: neither the score nor its mean."""
    prompts, answers = [ROW] * 3, episode.rollout()["answers"]
    assert gold_judge.mean_utility(prompts, answers) == pytest.approx(1.6 / 3)


def test_the_length_of_a_response_counts_its_end(episode):
    """The, fox, eats, berries or fish, full stop: five tokens, and the end where there is one."""
    batch = episode.rollout()
    assert batch["mask"].sum(1).tolist() == [6, 5, 6]
    assert batch["stats"]["length"] == pytest.approx(17 / 3)


def test_the_kl_of_a_rollout_is_a_sum_over_tokens_and_a_mean_over_responses(episode):
    """From the reference to the policy fox doubles, the end quadruples, berries fall to a third;
    of the other tokens all alike."""
    pi, ref = episode.logprobs(episode.policy), episode.logprobs(episode.reference)
    k1 = [sum(p - q for p, q in zip(*rows)) for rows in zip(pi, ref)]
    k3 = [sum(math.exp(q - p) - 1 + p - q for p, q in zip(*rows)) for rows in zip(pi, ref)]
    other = math.log(0.3 / 0.5)
    assert k1 == pytest.approx(
        [math.log(2 * 4 / 3) + 3 * other, math.log(2 / 3) + 3 * other, math.log(2 * 4) + 4 * other],
        abs=0.01,
    )
    batch = episode.rollout()
    assert batch["stats"]["kl"] == pytest.approx(mean(k1), abs=1e-4)
    assert batch["stats"]["kl_k3"] == pytest.approx(mean(k3), abs=1e-4)
    assert batch["stats"]["reward"] == pytest.approx(
        batch["stats"]["score"] - 0.5 * mean(k1), abs=1e-4
    )
    assert batch["rewards"].sum(1).tolist() == pytest.approx(
        [s - 0.5 * k for s, k in zip((2, -1, 1), k1)], abs=1e-4
    )


def test_the_entropy_is_a_mean_over_all_response_tokens(episode):
    """17 tokens weigh the same, in whichever response they stand."""
    told = [p for response in episode.logprobs(episode.policy) for p in response]
    assert len(told) == 17
    assert episode.rollout()["stats"]["entropy"] == pytest.approx(-mean(told), abs=1e-4)


def test_the_policy_the_reference_the_values_and_the_scores_are_each_their_own(episode):
    """Old log-probabilities are the policy's, the others the reference's, and the first value has
    read the prompt alone."""
    batch = episode.rollout()
    real = batch["mask"].bool()
    for which, key in ((episode.policy, "logprobs"), (episode.reference, "ref_logprobs")):
        assert batch[key][real].tolist() == pytest.approx(
            sum(episode.logprobs(which), []), abs=1e-4
        )
        assert batch[key][~real].tolist() == [0]
    n = len(episode.prompt)
    assert batch["values"].tolist() == [
        [n, n + 1, n + 2, n + 3, n + 4, n + 5],
        [n, n + 1, n + 2, n + 3, n + 4, 0],
        [n, n + 1, n + 2, n + 3, n + 4, n + 5],
    ]


def test_a_rollout_samples_from_the_policy_itself_at_temperature_1(episode):
    """As the paper does. Another temperature, or another model, would sample one distribution and
    score a second."""
    episode.rollout()
    assert episode.asked == [
        (episode.policy, [episode.prompt] * 3, reward.MAX_NEW_TOKENS, 1.0, episode.generator)
    ]


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_with_lambda_1_the_returns_are_the_score_less_the_penalty_still_to_be_paid(episode, beta):
    """Discount 1. Without a KL penalty, the score stands at every token."""
    batch = episode.rollout(beta=beta)
    for row, (score, pi, ref) in enumerate(
        zip((2, -1, 1), episode.logprobs(episode.policy), episode.logprobs(episode.reference))
    ):
        later = [
            score - beta * sum(p - q for p, q in list(zip(pi, ref))[t:]) for t in range(len(pi))
        ]
        assert batch["returns"][row, : len(later)].tolist() == pytest.approx(later, abs=1e-3)


def test_a_smaller_lambda_trusts_the_values_more(episode):
    """Lambda 0: the advantage is the next value less this one, here 1 at every token but the
    last."""
    batch = episode.rollout(lam=0.0, beta=0.0)
    assert batch["raw_advantages"][0, :5].tolist() == pytest.approx([1] * 5)
    assert batch["raw_advantages"][0, 5].item() == pytest.approx(2 - len(episode.prompt) - 5)


def test_explained_variance_is_one_less_the_share_of_the_returns_variance_that_the_values_miss(
    episode,
):
    """Returns are the scores 2, -1, 1 over 6, 5 and 6 tokens. All values 0: 1 - mean of squares /
    variance, below 0."""
    returns = [2] * 6 + [-1] * 5 + [1] * 6
    variance = mean(r * r for r in returns) - mean(returns) ** 2
    batch = episode.rollout(Column(0.0), beta=0.0)
    assert batch["stats"]["explained_variance"] == pytest.approx(
        1 - mean(r * r for r in returns) / variance, abs=1e-4
    )


def test_a_value_network_that_knows_every_return_explains_all_variance(episode):
    class Knows:
        def values(self, idx):
            return torch.where(
                (idx == episode.words.fish).any(1),
                1.0,
                torch.where((idx == episode.words.end).sum(1) == 2, 2.0, -1.0),
            )[:, None].expand(idx.shape)

    batch = episode.rollout(Knows(), beta=0.0)
    assert batch["stats"]["explained_variance"] == pytest.approx(1)
    assert batch["raw_advantages"].abs().max() < 1e-5


# ---------------------------------------------------------------- an update


@pytest.fixture
def step(encoding, words):
    """Two responses of a unigram policy that has since moved: red is now 1.5 times as likely as
    when it was sampled, blue half."""
    policy = Unigram(encoding, {words.red: 0.3, words.blue: 0.1, words.end: 0.2})
    old = {words.red: math.log(0.2), words.blue: math.log(0.2), words.end: math.log(0.2)}
    responses = [
        [words.red, words.blue, words.end],
        [words.red, words.end],
        [words.blue, words.blue, words.blue, words.end],
    ]
    batch = ppo.batch_of([[1022, 5]] * 3, responses, encoding.n_vocab - 1, "cpu")
    shape = batch["mask"].shape
    batch["logprobs"] = torch.tensor(
        [[old[t] for t in r] + [0.0] * (shape[1] - len(r)) for r in responses]
    )
    batch["advantages"] = torch.tensor(
        [[1.0, -2.0, 0.5, 0.0], [-1.0, 3.0, 0.0, 0.0], [100.0, 100.0, 100.0, 100.0]]
    )
    batch["values"] = torch.tensor(
        [[2.0, 3.0, 4.0, 0.0], [2.0, 3.0, 0.0, 0.0], [2.0, 3.0, 4.0, 5.0]]
    )
    batch["returns"] = batch["values"] + torch.tensor(
        [[1.0, 2.0, 0.0, 0.0], [3.0, 0.0, 0.0, 0.0], [50.0, 50.0, 50.0, 50.0]]
    )
    value_net = Column()

    def update(rows=(0, 1), documents=None, optimizers=None, **changes):
        config = dataclasses.replace(ppo.Config(clip_range=0.2, gamma_ptx=0.25), **changes)
        return ppo.update(
            batch, torch.tensor(rows), policy, value_net, optimizers or [], config, documents
        )

    return SimpleNamespace(update=update, policy=policy, value_net=value_net, batch=batch)


def test_an_update_reads_the_episodes_of_its_minibatch_and_no_others(step):
    """Five tokens: ratios 1.5, .5, 1, 1.5, 1 with advantages 1, -2, .5, -1, 3; the third episode
    has an advantage of 100."""
    metrics = step.update()
    assert metrics["policy_loss"] == pytest.approx((-1.2 + 1.6 - 0.5 + 1.5 - 3) / 5, abs=1e-4)
    assert metrics["clip_fraction"] == pytest.approx(2 / 5)
    assert metrics["ratio"] == pytest.approx(1.5, abs=1e-4)
    assert step.update(rows=[2])["policy_loss"] == pytest.approx(-(3 * 50 + 100) / 4, abs=1e-2)


def test_the_ratio_of_an_update_is_its_largest_distance_from_1_in_either_direction(step):
    """Blue is half as likely as before: 1 + |0.5 - 1|; red alone 1.5 times, and padding says
    nothing."""
    assert step.update(rows=[2])["ratio"] == pytest.approx(1.5, abs=1e-4)
    step.batch["logprobs"][1, 0], step.batch["logprobs"][1, 2:] = math.log(0.25), -9.0
    assert step.update(rows=[1])["ratio"] == pytest.approx(1.2, abs=1e-4)


def test_approx_kl_is_schulmans_k3_from_the_old_policy_to_the_new(step):
    """Under samples of the old policy: mean of r - 1 - log r."""
    terms = [r - 1 - math.log(r) for r in (1.5, 0.5, 1, 1.5, 1)]
    assert step.update()["approx_kl"] == pytest.approx(mean(terms), abs=1e-4)


def test_the_value_loss_of_an_update_is_half_the_mean_square_error(step):
    """The values have not moved yet: errors 1, 2, 0, 3, 0."""
    assert step.update()["value_loss"] == pytest.approx(0.5 * (1 + 4 + 9) / 5)


def test_the_values_move_towards_the_returns_and_are_clipped_like_the_policy(step):
    """V = w x (tokens read): the slope of the loss in w is -(1 x 2 + 2 x 3 + 3 x 2) / 5 = -2.8,
    cut to length 1."""
    step.update(optimizers=[torch.optim.SGD(step.value_net.parameters(), lr=0.1)])
    assert step.value_net.weight.item() == pytest.approx(1.1)
    wide, narrow = (
        step.update(clip_range=c)["value_loss"] for c in (10.0, 0.01)
    )  # moved by .2 .3 .4 .2 .3
    assert wide == pytest.approx(mean(e**2 for e in (0.8, 1.7, 0.4, 2.8, 0.3)) / 2)
    assert narrow == pytest.approx(mean(e**2 for e in (0.99, 1.99, 0.4, 2.99, 0.3)) / 2)


def test_the_clipping_range_is_the_settings(step):
    metrics = step.update(clip_range=0.6)
    assert metrics["clip_fraction"] == 0
    assert metrics["policy_loss"] == pytest.approx((-1.5 + 1 - 0.5 + 1.5 - 3) / 5, abs=1e-4)


def test_pretraining_documents_are_mixed_in_with_their_weight_and_reported_without(step, words):
    """Document: end, red, end; p(red) = .3, p(end) = .2. The reported loss is the mean of their
    -log p."""
    document, parameter = [[words.end, words.red, words.end]], step.policy.logits
    step.update()
    alone = parameter.grad.clone()
    alone_norm = alone.norm()  # a step cuts gradients to length 1: here nothing was to be cut
    parameter.grad = None
    metrics = step.update(documents=document)
    expected = -(math.log(0.3) + math.log(0.2)) / 2
    assert metrics["ptx_loss"] == pytest.approx(expected, abs=1e-4)
    assert alone_norm < 1
    assert metrics["grad_norm"] < 1
    share = torch.zeros_like(parameter)
    share[words.red], share[words.end] = -0.5, -0.5
    assert torch.allclose(
        parameter.grad - alone, 0.25 * (share + parameter.detach().softmax(0)), atol=1e-4
    )


def test_without_documents_there_is_no_pretraining_loss(step):
    assert step.update()["ptx_loss"] == 0 and set(step.update()) == set(FULL)


def test_one_update_is_one_step_of_each_optimiser_and_leaves_no_gradient(step):
    class Counts:
        def __init__(self, network):
            self.network, self.did = network, []

        def step(self):
            self.did.append(("step", all(p.grad is not None for p in self.network)))

        def zero_grad(self):
            self.did.append("zero")

    both = [Counts([step.policy.logits]), Counts([step.value_net.weight])]
    step.update(rows=(0, 1, 2), optimizers=both)
    assert [optimizer.did for optimizer in both] == [[("step", True), "zero"]] * 2


# -------------------------------- the loop, in a world of twelve prompts


@dataclasses.dataclass
class Town:
    """A folder with what fit needs: a policy to start from, two reward models, twelve prompts, a
    corpus."""

    out: str
    prompts: list
    patch: pytest.MonkeyPatch

    def config(self, **changes):
        return ppo.Config(
            **dict(
                seed=1,
                out=self.out,
                rollout_size=4,
                minibatch_size=2,
                lr=1e-3,
                lr_norm=0.03,
                value_lr=5e-3,
            )
            | changes
        )

    def fit(self, name="ppo", reward_name="reward", iterations=2, gamma_ptx=0.0, **changes):
        return ppo.train_policy(self.config(**changes), name, reward_name, iterations, gamma_ptx)

    def log(self, name="ppo"):
        return [json.loads(line) for line in open(f"{self.out}/{name}.jsonl", encoding="utf-8")]

    def state(self, name):
        return load_checkpoint(f"{self.out}/{name}.pt")["state"]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Files of the world and of the stages before PPO, made once: (world, out)."""
    world, out = tmp_path_factory.mktemp("world"), tmp_path_factory.mktemp("out")
    rows = [task for task in prepare.draw_prompts({"prompts_rl": 12}, 7)["prompts_rl"]]
    rng = random.Random(0)
    lines = [
        " ".join(rng.choice(["fox", "bear", "owl", "hat", "red"]) for _ in range(3 + i % 20)) + "."
        for i in range(400)
    ]
    write_world(world, "\n\n".join(lines) + "\n", {"prompts_rl": rows})
    return world, out


@pytest.fixture
def town(built, tmp_path, monkeypatch, encoding):
    world, out = built
    monkeypatch.setattr(files, "FOLDER", world)
    common, shape = flags.BaseConfig(seed=1, out=str(out)), GPTConfig(encoding.n_vocab, 80, 1, 2, 16)
    if not (out / "reward.pt").exists():
        torch.manual_seed(5)
        save_checkpoint(
            out / "sft_mix.pt",
            GPT(dataclasses.replace(shape, dropout=0.5)),
            **stage_extra(common, "sft"),
        )
        for name in ("reward_1", "reward"):
            judge = RewardModel(shape)
            nn.init.normal_(judge.score.weight)
            save_checkpoint(out / f"{name}.pt", judge, **stage_extra(common, "reward"))
    for path in out.glob("*.pt"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return Town(str(tmp_path), files.read_jsonl(world / "prompts_rl.jsonl"), monkeypatch)


def weights(network):
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(x, other[name]) for name, x in one.items()
    )


def push(size=0.01, metrics=lambda n: float(n), until=10**9):
    """Instead of an update: every weight of the policy and of the value network grows by `size`,
    `until` the given call. Each metric is a known number."""
    done = []

    def update(given):
        done.append(given)
        with torch.no_grad():
            for network, by in ((given.policy, size), (given.value_net, 2 * size)):
                for p in network.parameters():
                    p += by if len(done) <= until else 0.0
        return {name: metrics(len(done)) + i for i, name in enumerate(FULL)}

    return update


def everything(given):
    return {
        name: weights(getattr(given, name))
        for name in ("policy", "reference", "value_net", "reward_model")
    }


def test_the_reference_and_the_reward_model_never_move(town):
    """Whatever the policy and the value network learn, they are measured against the same two
    models, those in the files."""
    seen = watch(town.patch, "rollout", note=everything)
    town.fit(iterations=3, lr=0.01, value_lr=0.01)
    assert len(seen) == 3
    for given in seen:
        assert same(given.note["reference"], town.state("sft_mix"))
        assert same(given.note["reward_model"], town.state("reward"))
    assert same(weights(seen[-1].reward_model), town.state("reward"))
    assert same(weights(seen[-1].reference), town.state("sft_mix"))


def test_the_policy_starts_as_the_sft_model_and_the_value_network_as_the_reward_model(town):
    """Section C.4. Both then go their own way."""
    seen = watch(town.patch, "rollout", note=everything)
    town.fit(reward_name="reward_1", lr=0.01, value_lr=0.01)
    first, then = seen[0].note, seen[1].note
    assert same(first["policy"], town.state("sft_mix"))
    assert same(first["value_net"], town.state("reward_1"))
    assert not same(then["policy"], first["policy"])
    assert not same(then["value_net"], first["value_net"])
    assert same(first["reward_model"], town.state("reward_1"))
    assert not same(first["reward_model"], town.state("reward"))
    assert (
        len({id(getattr(seen[0], n)) for n in ("policy", "reference", "value_net", "reward_model")})
        == 4
    )


def test_nothing_is_dropped_out_anywhere_in_ppo(town):
    """The SFT model was saved with dropout; a rollout or an update under dropout has a ratio that
    is not 1."""
    quiet = lambda given: [
        module.training
        for network in (given.policy, given.value_net)
        for module in network.modules()
    ]
    rollouts, updates = (
        watch(town.patch, "rollout", note=quiet),
        watch(town.patch, "update", note=quiet),
    )
    town.fit()
    assert not any(flag for given in rollouts + updates for flag in given.note)


def test_each_update_learns_from_the_latest_rollout_with_the_networks_that_made_it(town):
    rollouts, updates = watch(town.patch, "rollout"), watch(town.patch, "update")
    town.fit()
    assert len(updates) == 4
    for i, given in enumerate(updates):
        assert given.batch is rollouts[i // 2].result
        assert given.policy is rollouts[0].policy is rollouts[1].policy
        assert given.value_net is rollouts[1].value_net
    trained = {
        id(p)
        for optimizer in updates[0].optimizers
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert trained == {
        id(p)
        for network in (rollouts[0].policy, rollouts[0].value_net)
        for p in network.parameters()
    }


# ---------------------------------------------------------------- rates and averages


def rates(given):
    """The learning rates of an update by network and weight: {("policy", "lm_head.weight"):
    0.001, ...}."""
    owner = {
        id(p): (kind, name)
        for kind, net in (("policy", given.policy), ("value", given.value_net))
        for name, p in net.named_parameters()
    }
    found = [
        (owner[id(p)], group["lr"])
        for optimizer in given.optimizers
        for group in optimizer.param_groups
        for p in group["params"]
    ]
    assert len(found) == len(dict(found)), "a weight stands in two groups"
    return dict(found)


@pytest.mark.parametrize(
    "iterations, warm", [(1, [0.1]), (3, [0.1, 1, 1]), (100, [0.1, 0.55] + [1] * 98)]
)
def test_the_rate_starts_at_a_tenth_is_whole_after_two_per_cent_of_the_iterations_and_stays(
    town, iterations, warm
):
    """Two per cent, at least one iteration; every group of weights keeps its share of the
    schedule."""
    rollouts = iter(range(1000))
    batch = {
        "stats": dict(score=0.0, kl=0.0),
        "answers": [{"text": "", "ended": True}] * 4,
        "scores": torch.zeros(4),
    }
    watch(town.patch, "rollout", lambda given: (next(rollouts), batch)[1])
    updates = watch(town.patch, "update", push(), note=rates)
    town.fit(iterations=iterations, minibatch_size=4)
    for (kind, name), peak in {
        ("policy", "transformer.wte.weight"): 1e-3,
        ("policy", "transformer.ln_f.weight"): 0.03,
        ("value", "score.weight"): 5e-3,
    }.items():
        assert [given.note[kind, name] for given in updates] == pytest.approx(
            [peak * share for share in warm]
        )


def test_the_last_layer_norm_of_the_policy_alone_has_a_rate_of_its_own(town):
    """Two weights of the policy; the value network's last layer norm learns as the rest of it
    does."""
    updates = watch(town.patch, "update", note=rates)
    town.fit()
    for (kind, name), rate in updates[-1].note.items():
        assert rate == (5e-3 if kind == "value" else 0.03 if "ln_f" in name else 1e-3), name
    for optimizer in updates[0].optimizers:
        assert isinstance(optimizer, torch.optim.Adam)
        assert all(
            g["betas"] == (0.9, 0.95) and g["weight_decay"] == 0 for g in optimizer.param_groups
        )


@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_at_the_end_the_average_has_forgotten_all_but_two_hundredths_of_the_start(town, iterations):
    """A policy that jumps in the first iteration and then stands still: 0.018 of the start are
    left, however long the run."""
    start = town.state("sft_mix")
    watch(town.patch, "update", push(0.01, until=1))
    averaged = town.fit(iterations=iterations, minibatch_size=4)
    for name, p in averaged.named_parameters():
        assert torch.allclose(p, start[name] + 0.01 * (1 - 0.018), atol=1e-6), name


def test_the_average_takes_one_step_an_iteration_whatever_the_minibatches(town):
    """Two iterations, two minibatches each, decay d = sqrt(.018): d (1 - d) x 2 pushes and (1 -
    d) x 4."""
    start, d = town.state("sft_mix"), 0.018**0.5
    watch(town.patch, "update", push(0.01))
    averaged = town.fit(iterations=2)
    for name, p in averaged.named_parameters():
        assert torch.allclose(p, start[name] + 0.01 * (1 - d) * (2 * d + 4), atol=1e-6), name


def test_the_averaged_policy_is_saved_and_the_value_network_as_it_is(town):
    """And the rollouts come from the policy itself, not from its average."""
    start, judge = town.state("sft_mix"), town.state("reward")
    watch(town.patch, "update", push(0.01))
    seen = watch(town.patch, "rollout", note=everything)
    averaged = town.fit("ppo_1", iterations=2)
    assert same(town.state("ppo_1"), weights(averaged))
    assert not same(weights(averaged), weights(seen[0].policy))
    assert torch.allclose(
        seen[1].note["policy"]["transformer.wte.weight"],
        start["transformer.wte.weight"] + 0.02,
        atol=1e-6,
    )
    for name, value in town.state("ppo_1_value").items():
        assert torch.allclose(value, judge[name] + (0.08 if name != "bias" else 0.0), atol=1e-6), (
            name
        )


def test_a_checkpoint_says_what_it_was_made_from(town):
    """The SFT model, and the reward model of its round: whoever traces an episode needs to know."""
    town.fit("ppo_1", "reward_1", 1, 0.0)
    for name in ("ppo_1", "ppo_1_value"):
        extra = load_checkpoint(f"{town.out}/{name}.pt")["extra"]
        assert extra["parents"] == {
            parent: load_checkpoint(f"{town.out}/{parent}.pt")["sha256"]
            for parent in ("sft_mix", "reward_1")
        }
        assert extra["stage"] == "ppo"
        assert extra["seed"] == 1
        assert extra["settings"]["gamma_ptx"] == 0


# -------------------------------- which prompts, which minibatches, which documents


def asked(rollouts):
    return [[row["prompt"] for row in given.prompts] for given in rollouts]


def test_every_prompt_is_seen_before_one_comes_again(town):
    """Twelve prompts, four a rollout: three rollouts see them all, the next three see them all
    again, in another order."""
    rollouts = watch(town.patch, "rollout")
    watch(town.patch, "update", push())
    town.fit(iterations=6)
    prompts, order = asked(rollouts), [row["prompt"] for row in town.prompts]
    first, second = sum(prompts[:3], []), sum(prompts[3:], [])
    assert sorted(first) == sorted(second) == sorted(order) and len(set(order)) == 12
    assert first != second and first != order and all(len(p) == 4 for p in prompts)


def test_a_rollout_never_asks_a_prompt_twice(town):
    """Five a rollout: two are disjoint; the two prompts left over would not fill a third, so all
    are shuffled again."""
    rollouts = watch(town.patch, "rollout")
    watch(town.patch, "update", push())
    town.fit(iterations=4, rollout_size=5)
    prompts = asked(rollouts)
    assert all(len(set(p)) == 5 for p in prompts)
    assert not set(prompts[0]) & set(prompts[1])
    assert not set(prompts[2]) & set(prompts[3])
    assert prompts[0] != prompts[2]


def test_a_rollout_may_ask_all_prompts_but_no_more(town):
    rollouts = watch(town.patch, "rollout")
    watch(town.patch, "update", push())
    town.fit(iterations=2, rollout_size=12)
    assert [len(set(p)) for p in asked(rollouts)] == [12, 12]
    with pytest.raises(UserError, match="rollout_size 13.*only 12"):
        town.fit(rollout_size=13)


def test_every_rollout_draws_new_responses(town):
    """The generator goes on: where the policy stands still, the same prompts get other answers."""
    rollouts = watch(town.patch, "rollout")
    watch(town.patch, "update", push(0.0))
    town.fit(iterations=3, rollout_size=12)
    answers = [dict(zip(p, given.result["answers"])) for p, given in zip(asked(rollouts), rollouts)]
    for one, other in ((0, 1), (1, 2), (0, 2)):
        assert sum(answers[one][p] == answers[other][p] for p in answers[0]) <= 2


def test_a_seed_decides_prompts_responses_and_minibatches(town):
    """Twice the same seed gives the same weights; another seed other prompts."""
    rollouts = watch(town.patch, "rollout")
    one, again = (weights(town.fit()) for _ in range(2))
    assert same(one, again) and asked(rollouts[:2]) == asked(rollouts[2:])
    other = stage_extra(flags.BaseConfig(seed=2, out=town.out), "sft")
    for name in ("sft_mix", "reward"):
        save_checkpoint(
            f"{town.out}/{name}.pt",
            load_model(f"{town.out}/{name}.pt", kind=GPT if name == "sft_mix" else RewardModel),
            **other,
        )
    assert not same(weights(town.fit(seed=2)), one) and asked(rollouts[4:]) != asked(rollouts[:2])


@pytest.mark.parametrize(
    "epochs, size, sizes", [(1, 2, [2, 2]), (1, 4, [4]), (3, 2, [2] * 6), (2, 3, [3, 1, 3, 1])]
)
def test_minibatches_cover_a_rollout_once_in_each_pass_over_it(town, epochs, size, sizes):
    """Every episode is learnt from as often as every other, also where the last minibatch is
    small."""
    updates = watch(town.patch, "update", push())
    town.fit(iterations=1, ppo_epochs=epochs, minibatch_size=size)
    rows = [given.episodes.tolist() for given in updates]
    assert [len(r) for r in rows] == sizes
    flat = sum(rows, [])
    assert [sorted(flat[i : i + 4]) for i in range(0, len(flat), 4)] == [[0, 1, 2, 3]] * epochs


def test_minibatches_are_shuffled_anew_in_each_pass(town):
    updates = watch(town.patch, "update", push())
    town.fit(iterations=2, ppo_epochs=2, rollout_size=12, minibatch_size=12)
    orders = [tuple(given.episodes.tolist()) for given in updates]
    assert len({*orders, tuple(range(12))}) == 5


def test_documents_are_mixed_in_with_gamma_ptx_and_only_then(town):
    """The argument decides, not the setting: the setting is PPO-ptx's, and PPO runs with 0."""
    updates = watch(town.patch, "update", push())
    town.fit("ppo", gamma_ptx=0.0)
    town.fit("ppo_ptx", gamma_ptx=0.7)
    assert all(given.documents is None and given.config.gamma_ptx == 0 for given in updates[:4])
    assert all(given.documents and given.config.gamma_ptx == 0.7 for given in updates[4:])
    assert len(updates) == 8


def test_documents_come_from_the_training_corpus_about_two_thousand_tokens_a_step_and_change(town):
    """The last eight of 400 documents validate, and the corpus loss is measured on them: none
    of them is mixed in."""
    updates, (known, held_out) = (
        watch(town.patch, "update", push()),
        model.read_corpus(tokenizer.load_cached(), 80),
    )
    assert len(held_out) == 8
    town.fit(iterations=6, gamma_ptx=0.5)
    batches = [given.documents for given in updates]
    assert all(
        document in known and document not in held_out for batch in batches for document in batch
    )
    assert max(len(batch) * max(map(len, batch)) for batch in batches) in range(1_500, 2_049)
    assert len({json.dumps(batch) for batch in batches}) == len(batches) >= 12


def test_ppo_and_ppo_ptx_differ_in_nothing_but_the_documents(town):
    """The same prompts at the start, and the same settings otherwise."""
    rollouts = watch(town.patch, "rollout")
    town.fit("ppo", gamma_ptx=0.0, iterations=1)
    town.fit("ppo_ptx", gamma_ptx=0.5, iterations=1)
    one, other = (dataclasses.asdict(given.config) | {"gamma_ptx": None} for given in rollouts)
    assert one == other and not same(town.state("ppo"), town.state("ppo_ptx"))


# ---------------------------------------------------------------- what is written down


def test_the_log_has_a_line_an_iteration_with_the_rollouts_stats_and_the_means_over_its_updates(
    town,
):
    """Updates 1 to 6 report 1, 2, ... each: the first iteration's mean is 2, the second's 5,
    except for the ratio."""
    rollouts = watch(town.patch, "rollout")
    watch(town.patch, "update", push(metrics=lambda n: n + 0.0))
    town.fit(ppo_epochs=3, minibatch_size=4)
    lines = town.log()
    assert [line["step"] for line in lines] == [0, 1]
    for line, given, middle, first in zip(lines, rollouts, (2, 5), (1, 4)):
        assert {key: line[key] for key in given.result["stats"]} == pytest.approx(
            given.result["stats"], abs=1e-6
        )
        assert {key: line[key] for key in FULL} == {
            key: (first if key == "ratio" else middle) + i for i, key in enumerate(FULL)
        }
        assert line["gold"] == pytest.approx(
            gold_judge.mean_utility(given.prompts, given.result["answers"]), abs=1e-6
        )
        assert set(line) == {"step", "gold", *given.result["stats"], *FULL}


def test_the_ratio_is_logged_before_the_policy_has_moved_in_the_iteration(town):
    """The first minibatch of every rollout, trained in earnest: 1 to five digits, however far the
    later ones go."""
    updates = watch(town.patch, "update")
    town.fit(iterations=2, ppo_epochs=3, lr=0.01)
    assert [line["ratio"] for line in town.log()] == pytest.approx([1, 1], abs=1e-4)
    assert max(given.result["ratio"] for given in updates) > 1.01


def test_the_first_and_the_last_iteration_show_prompts_with_their_answers_and_scores(town, capsys):
    rollouts = watch(town.patch, "rollout")
    town.fit(iterations=3)
    shown = capsys.readouterr().out
    for given, there in zip(rollouts, (True, False, True)):
        for row, answer, score in list(
            zip(given.prompts, given.result["answers"], given.result["scores"].tolist())
        )[:2]:
            line = f"[{score:+.2f}] {row['prompt']} -> {answer['text']}"
            assert (line in shown) == there


# ---------------------------------------------------------------- an episode, token by token


def test_a_trace_shows_the_models_of_its_own_training(town, encoding):
    """The averaged policy, the SFT model, the trained value network, the reward model of its
    round and its beta."""
    config = town.config(beta=0.7, lr=0.01, value_lr=0.01, missing_eos_penalty=2.5)
    ppo.train_policy(config, "ppo_1", "reward_1", 2, 0.0)
    rows = lesson.trace("Name two colours.", ppo.Config(out=town.out), "ppo_1")
    seen = watch(town.patch, "rollout")
    assert lesson.trace("Name two colours.", ppo.Config(out=town.out), "ppo_1") == rows
    (batch,) = (given.result for given in seen)
    response = batch["idx"][0, int(batch["prompt_lengths"][0]) :].tolist()
    assert len(rows) == len(response)
    assert [encoding.decode([t]) for t in response] == [row["token"] for row in rows]
    prompt = tokenizer.prompt_ids(encoding, "Name two colours.")
    whole = torch.tensor([prompt + response])
    policy, reference = load_model(f"{town.out}/ppo_1.pt"), load_model(f"{town.out}/sft_mix.pt")
    value_net, judge = (
        load_reward_model(f"{town.out}/ppo_1_value.pt"),
        load_reward_model(f"{town.out}/reward_1.pt"),
    )
    with torch.no_grad():
        columns = {
            "logprob": model.logprobs(policy, whole)[0],
            "ref_logprob": model.logprobs(reference, whole)[0],
            "value": value_net.values(whole)[0],
        }
        score = judge(whole, torch.tensor([whole.shape[1]])).item()
    for key, column in columns.items():
        assert [row[key] for row in rows] == pytest.approx(
            column[len(prompt) - 1 :][: len(rows)].tolist(), abs=1e-4
        )
    kl, ended = sum(row["kl"] for row in rows), response[-1] == encoding.eot_token
    assert kl == pytest.approx(sum(row["logprob"] - row["ref_logprob"] for row in rows))
    assert abs(kl) > 1e-3
    assert sum(row["reward"] for row in rows) == pytest.approx(
        score - 0.7 * kl - 2.5 * (not ended), abs=1e-4
    )
    assert [row["advantage"] + row["value"] for row in rows] == pytest.approx(
        [row["return"] for row in rows], abs=1e-4
    )
    assert rows[-1]["return"] == pytest.approx(rows[-1]["reward"], abs=1e-4)


def test_a_trace_of_a_policy_that_was_never_trained_says_which_command_is_missing(town):
    with pytest.raises(UserError, match="ppo_ptx.pt is missing: run `python ppo.py`"):
        lesson.trace("Hi", ppo.Config(out=town.out))
