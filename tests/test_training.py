"""Pretraining and SFT as they run: sampling, batches, losses, schedules, loops, checkpoints.

Worlds are so small that the right figure is known by hand. A recorder stands where an optimiser
would: it notes what it is given and moves nothing, so that every gradient can be worked out
again.
"""

import json
import math
import random
from collections import Counter
from pathlib import Path

import pytest
import torch

import model
import sft
from data import files, prepare, tokenizer
from data.files import MetricLog, UserError, load_checkpoint, require, save_checkpoint, stage_extra
from data.flags import BaseConfig, set_up
from data.training import (
    Muon, batches_of_like_length, corpus_batches, cosine, muon_and_adam, pretraining_lr,
)
from model import (
    GPT, GPTConfig, corpus_loss, generate, load_model, pad_batch, read_corpus, validation_loss,
)

BIT = math.log(2)


class Bits(torch.nn.Module):
    """Says the same whatever it has read: tokens 0, 1, 2, 3 cost 1, 2, 3, 4 bits; 4, the pad,
    costs 4. In training mode it forgets that, and every token costs the same."""

    def __init__(self):
        super().__init__()
        self.config, self.lm_head = GPTConfig(vocab_size=5), torch.nn.Linear(1, 1)
        self.logits = torch.nn.Parameter(-BIT * torch.tensor([1.0, 2.0, 3.0, 4.0, 4.0]))

    def forward(self, idx, select=None):
        logits = torch.zeros_like(self.logits) if self.training else self.logits
        return logits.expand(*(idx if select is None else idx[select]).shape, 5)


class Recorder(torch.optim.Optimizer):
    """In place of an optimiser: notes the rate and the gradients of each step, and moves
    nothing."""

    def __init__(self, parameters, lr=0.0, **settings):
        super().__init__(parameters, dict(lr=lr))
        self.settings, self.rates, self.gradients = settings, [], []

    def step(self):
        group = self.param_groups[0]
        self.rates.append(group["lr"])
        self.gradients.append(
            [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in group["params"]]
        )


def close(some, others):
    """Whether two lists of tensors agree to 1e-5."""
    return len(some) == len(others) and all(
        torch.allclose(a, b, atol=1e-5) for a, b in zip(some, others)
    )


def clipped(gradients, norm=1.0):
    """Gradients whose joint norm is at most 1."""
    length = torch.cat([g.flatten() for g in gradients]).norm().item()
    return [g * min(1.0, norm / length) for g in gradients], length


def lines_of(path):
    return [json.loads(line) for line in open(path, encoding="utf-8")]


# ---------------------------------------------------------------- sampling


def always(shares):
    """A GPT that says token i with probability shares[i] whatever it has read; the last id is
    <|pad|>, the one before it the end."""
    made = GPT(
        GPTConfig(vocab_size=len(shares), block_size=64, n_layer=1, n_head=1, n_embd=2)
    ).eval()
    with torch.no_grad():
        made.transformer.ln_f.weight.zero_()
        made.transformer.ln_f.bias.copy_(torch.tensor([1.0, 0.0]))
        made.transformer.wte.weight.copy_(
            torch.stack([torch.tensor(shares).log(), torch.zeros(len(shares))], dim=1)
        )
    return made


@pytest.mark.parametrize(
    "temperature, p", [(1.0, [0.5, 0.2, 0.3]), (0.5, [25 / 38, 4 / 38, 9 / 38]), (2.0, None)]
)
def test_every_token_of_a_response_is_drawn_at_the_temperature_and_the_end_ends_it(temperature, p):
    """Temperature 1/2 squares the odds, 2 takes their root: at the first token as at the third.
    Token 2 is the end."""
    roots = [x**0.5 for x in (0.5, 0.2, 0.3)]
    p = p or [r / sum(roots) for r in roots]
    drawn = generate(
        always([0.5, 0.2, 0.3, 1e-9]),
        [[0]] * 3_000,
        12,
        temperature,
        torch.Generator().manual_seed(0),
    )
    for place in (0, 2):
        tokens = Counter(response[place] for response in drawn if len(response) > place)
        assert [tokens[i] / tokens.total() for i in range(3)] == pytest.approx(p, abs=0.035)
    lengths = Counter(len(response) for response in drawn)
    assert lengths[2] / 3_000 == pytest.approx((1 - p[2]) * p[2], abs=0.03)
    assert all(
        2 not in response[:-1] and (response[-1] == 2 or len(response) == 12) for response in drawn
    )


def test_temperature_0_takes_the_likeliest_token_and_a_response_has_at_most_so_many():
    likes_1 = always([0.3, 0.5, 0.2, 1e-9])
    assert generate(likes_1, [[0], [1, 1]], 7, 0) == [[1] * 7] * 2
    assert generate(likes_1, [[0]], 1, 1.0) in ([[0]], [[1]], [[2]])
    assert generate(likes_1, [], 5) == []


def test_prompts_are_answered_in_batches_of_like_length(monkeypatch, tiny):
    batches, real = [], model.generate_batch

    def noted(gpt, prompts, *settings):
        batches.append([len(prompt) for prompt in prompts])
        return real(gpt, prompts, *settings)

    monkeypatch.setattr(model, "generate_batch", noted)
    responses = generate(tiny, [[1] * n for n in (9, 1, 5, 2, 7)], 3, batch_size=2)
    assert batches == [[1, 2], [5, 7], [9]] and all(responses)


def test_sampling_leaves_a_model_in_the_mode_it_was_in(tiny):
    for training in (True, False):
        generate(tiny.train(training), [[1]], 2)
        assert tiny.training == training


# ---------------------------------------------------------------- batches


def test_padding_stands_on_the_right_and_lengths_say_how_much_is_real():
    idx, lengths = pad_batch([[1, 2, 3], [4], (5, 6)], 63)
    assert idx.tolist() == [[1, 2, 3], [4, 63, 63], [5, 6, 63]] and lengths.tolist() == [3, 1, 2]


def test_a_pass_takes_every_item_once_in_full_batches_of_neighbours_in_length():
    """23 items of lengths 0 to 22, batches of 5: four, and three items are left out."""
    items = list(range(23))
    batches = batches_of_like_length(items, 5, lambda n: n, random.Random(0))
    assert [len(batch) for batch in batches] == [5] * 4
    assert len({n for batch in batches for n in batch}) == 20 and items == list(range(23))
    assert all(max(batch) - min(batch) == 4 for batch in batches)


def test_short_and_long_batches_come_in_no_order_and_each_pass_has_its_own():
    rng = random.Random(0)
    passes = [batches_of_like_length(list(range(20)), 5, lambda n: n, rng) for _ in range(30)]
    assert (
        {min(batches[0]) for batches in passes}
        == {min(batches[-1]) for batches in passes}
        == {0, 5, 10, 15}
    )


def test_items_of_one_length_meet_others_in_every_pass():
    """Or the same 32 demonstrations would make the same step in every epoch."""
    rng = random.Random(0)
    one, two = (
        {frozenset(batch) for batch in batches_of_like_length(list(range(40)), 4, lambda n: 0, rng)}
        for _ in range(2)
    )
    assert len(one & two) < 3


def test_of_many_items_a_batch_holds_neighbours_of_a_sample_only():
    """Lengths are sorted within 50 batches, not within all items: the longest ones do not always
    meet."""
    batches = batches_of_like_length(list(range(1_000)), 2, lambda n: n, random.Random(0))
    assert len(batches) == 500 and any(abs(a - b) > 1 for a, b in batches)
    assert sorted(n for batch in batches for n in batch) == list(range(1_000))


def words(n, first=1):
    """A document of n tokens."""
    return list(range(first, first + n))


def test_a_pass_over_the_corpus_reads_every_document_once_in_batches_of_about_so_many_tokens():
    """60 documents of 2 to 61 tokens, 100 tokens a batch, padding counted; a longer document
    stands alone."""
    documents = [words(n) for n in range(2, 62)] + [words(300)]
    batches, rng = corpus_batches(documents, 100, random.Random(0)), random.Random(1)
    for _ in range(2):
        seen = []
        while len(seen) < len(documents):
            batch = next(batches)
            seen += batch
            assert len(batch) == 1 or len(batch) * max(map(len, batch)) <= 100
            lengths = sorted(map(len, batch))
            assert lengths[-1] - lengths[0] == len(batch) - 1 or lengths == [
                300
            ]  # neighbours in length
        assert sorted(map(len, seen)) == [*range(2, 62), 300]
    full = [next(corpus_batches([words(10)] * 95, 100, rng)) for _ in range(5)]
    assert max(map(len, full)) == 10  # as many as there is room for
    long = corpus_batches([words(300)] * 3, 100, rng)
    assert [len(next(long)) for _ in range(6)] == [1] * 6  # no batch is empty


def test_a_pass_over_many_documents_reads_them_all():
    """More than are sorted by length together."""
    batches = corpus_batches([[n, n] for n in range(4_100)], 200, random.Random(0))
    read = [document[0] for _ in range(41) for document in next(batches)]
    assert sorted(read) == list(range(4_100))


def test_each_pass_over_the_corpus_has_its_own_order():
    batches = corpus_batches([words(5, first=n) for n in range(30)], 15, random.Random(0))
    one, two = ([frozenset(map(tuple, next(batches))) for _ in range(10)] for _ in range(2))
    assert set().union(*one) == set().union(*two) and len(set(one) & set(two)) < 3
    batches = corpus_batches([words(n) for n in range(1, 31)], 30, random.Random(0))
    lengths = [len(next(batches)[-1]) for _ in range(12)]
    assert lengths != sorted(lengths)  # short ones do not come first


def test_the_corpus_is_cut_into_documents_between_two_ends_and_the_last_2_percent_validate(
    tmp_path, monkeypatch, encoding
):
    texts = [f"The fox number {n}.\nIt eats {'berries ' * (n % 7 * 4)}." for n in range(150)]
    prepare.write_corpus(tmp_path, "\n\n".join(texts) + "\n", known=False)
    monkeypatch.setattr(files, "FOLDER", tmp_path)
    documents, valid = read_corpus(encoding, 24)
    assert (len(documents), len(valid)) == (147, 3)
    for text, ids in zip(texts, documents + valid):
        whole = (
            [encoding.eot_token]
            + encoding.encode_ordinary(" " + text.replace("\n", "\n "))
            + [encoding.eot_token]
        )
        assert ids == whole[:24]
    assert max(map(len, documents)) == 24 and documents[0][-1] == encoding.eot_token


# ---------------------------------------------------------------- losses


def test_the_pretraining_loss_is_the_mean_over_tokens_after_the_first_and_not_over_padding():
    """Predicted: 0, 3 and 1, 1, 1, 3: 1 + 4 and 2 + 2 + 2 + 4 bits, 15 in six tokens."""
    loss = corpus_loss(Bits().eval(), [[3, 0, 3], [3, 1, 1, 1, 3]])
    assert loss.item() == pytest.approx(15 / 6 * BIT) and loss.requires_grad


def test_a_short_document_weighs_less_than_a_long_one_in_the_validation_loss():
    """100 documents with one token of 1 bit, 50 with three of 4 bits: 700 bits in 250 tokens,
    whatever the batches are."""
    documents = [[3, 3, 3, 3]] * 50 + [[3, 0]] * 100
    loss = validation_loss(Bits().eval(), documents)
    assert loss == pytest.approx(2.8 * BIT) and validation_loss(
        Bits().eval(), documents[::-1]
    ) == pytest.approx(loss)


@pytest.mark.parametrize("training", [True, False])
def test_the_validation_loss_of_sft_is_over_response_tokens_without_dropout(training):
    """The same by hand, prompts aside; and the model goes on in the mode it was in."""
    stub = Bits().train(training)
    pairs = [([3, 3, 3], [0])] * 100 + [([1], [3, 3, 3])] * 50
    assert sft.mean_loss(stub, pairs) == pytest.approx(2.8 * BIT)
    assert stub.training == training and stub.logits.grad is None


# ---------------------------------------------------------------- optimisers and schedules


def test_muon_moves_the_matrices_of_the_blocks_and_adam_the_rest(tiny):
    (muon, lr), (adam, lr_rest) = muon_and_adam(tiny, 0.5, 0.25, decay=0.1)
    names = {id(p): name for name, p in tiny.named_parameters()}
    by_muon, by_adam = (
        [names[id(p)] for p in optimizer.param_groups[0]["params"]] for optimizer in (muon, adam)
    )
    assert (
        isinstance(muon, Muon)
        and isinstance(adam, torch.optim.AdamW)
        and (lr, lr_rest) == (0.5, 0.25)
    )
    assert sorted(by_muon + by_adam) == sorted(names.values())  # each parameter once
    parts = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert sorted(by_muon) == sorted(
        f"transformer.h.{i}.{part}.weight" for i in range(2) for part in parts
    )
    assert adam.param_groups[0]["betas"] == (0.9, 0.95)
    assert (muon.param_groups[0]["weight_decay"], adam.param_groups[0]["weight_decay"]) == (
        pytest.approx(0.01),
        0.1,
    )
    assert [o.param_groups[0]["weight_decay"] for o, _ in muon_and_adam(tiny, 0.5, 0.25)] == [0, 0]


@pytest.mark.parametrize(
    "step, share",
    [
        (0, 1 / 20),
        (9, 0.5),
        (19, 1),
        (300, 1),
        (600, 1),
        (700, 0.75),
        (800, 0.5),
        (990, 0.05),
        (999, 0.05),
    ],
)
def test_pretraining_warms_up_over_2_percent_and_cools_down_over_the_last_40(step, share):
    assert pretraining_lr(step, 1_000, 2.0) == pytest.approx(2.0 * share)


@pytest.mark.parametrize(
    "step, share", [(0, 0.1), (5, 0.55), (9, 0.91), (10, 1), (55, 0.55), (100, 0.1)]
)
def test_the_cosine_begins_where_the_warm_up_ends(step, share):
    """100 steps, 10 of them warming up from a tenth: half-way down at 55, at a tenth in the end."""
    assert cosine(step, 100, 3.0, warmup=10) == pytest.approx(3.0 * share)
    assert cosine(0, 0, 3.0) == 3.0 and cosine(1, 4, 3.0) == pytest.approx(
        3 * (0.1 + 0.45 * (1 + 0.5**0.5))
    )


# ---------------------------------------------------------------- pretraining


def pretrain(out, **changes):
    """model.train on nine documents: the recorders, the batches, the losses of validation."""
    found = {"batches": [], "validated": []}
    documents, valid = [words(4 + n, first=20 * n) for n in range(9)], [words(5, first=300)] * 600
    real_loss, real_batches = model.corpus_loss, model.corpus_batches

    def noted_loss(gpt, batch):
        found["batches"].append(batch)
        return real_loss(gpt, batch)

    def noted_batches(texts, batch_tokens, rng):
        found["asked"] = batch_tokens
        return real_batches(texts, batch_tokens, rng)

    def noted_validation(gpt, texts):
        found["validated"].append((len(found["batches"]), texts))
        return len(texts) / 1_000

    def recorders(gpt, lr, lr_rest, decay):
        parameters = list(gpt.parameters())
        found.update(
            decay=decay,
            parameters=parameters,
            recorders=(Recorder(parameters[:3]), Recorder(parameters[3:])),
        )
        return list(zip(found["recorders"], (lr, lr_rest)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "read_corpus", lambda *_: (documents, valid))
        for name, stub in (
            ("corpus_loss", noted_loss),
            ("corpus_batches", noted_batches),
            ("validation_loss", noted_validation),
            ("muon_and_adam", recorders),
        ):
            patch.setattr(model, name, stub)
        shape = dict(n_layer=1, n_head=1, n_embd=8, block_size=48, batch_tokens=30)
        rates = dict(steps=250, lr=2.0, lr_rest=6.0)
        found["model"] = model.train(model.Config(**{"out": str(out), **shape, **rates, **changes}))
    return {**found, "out": out, "documents": documents, "valid": valid}


@pytest.fixture(scope="module")
def pretraining(tmp_path_factory):
    """250 steps with seed 7."""
    return pretrain(tmp_path_factory.mktemp("out"), seed=7)


def test_each_optimiser_of_pretraining_follows_the_schedule_with_its_own_peak(pretraining):
    """250 steps: five of warm-up, 145 at the peak, then down: half of it after 200."""
    for recorder, peak in zip(pretraining["recorders"], (2.0, 6.0)):
        assert len(recorder.rates) == 250
        assert [recorder.rates[step] / peak for step in (0, 3, 4, 149, 200, 249)] == pytest.approx(
            [0.2, 0.8, 1, 1, 0.5, 0.05]
        )
    assert pretraining["decay"] == 0.1  # as GPT-3


def test_a_step_of_pretraining_is_the_gradient_of_its_batch_alone(pretraining):
    """Neither what earlier steps left nor a clipped or scaled one."""
    for step in (0, 1, 2, 120):
        loss = corpus_loss(pretraining["model"], pretraining["batches"][step])
        expected = torch.autograd.grad(loss, pretraining["parameters"])
        assert close(
            sum((recorder.gradients[step] for recorder in pretraining["recorders"]), []), expected
        )


def test_pretraining_reads_training_documents_only_and_all_of_them(pretraining):
    assert len(pretraining["batches"]) == 250 and pretraining["asked"] == 30
    assert {tuple(d) for batch in pretraining["batches"] for d in batch} == {
        tuple(d) for d in pretraining["documents"]
    }


def test_each_seed_reads_the_corpus_in_an_order_of_its_own(tmp_path):
    one, again, other = (pretrain(tmp_path, seed=seed, steps=5)["batches"] for seed in (1, 1, 2))
    assert one == again != other


def test_pretraining_is_measured_at_steps_0_and_200_on_500_documents_and_in_the_end_on_all(
    pretraining,
):
    assert [(steps, len(texts)) for steps, texts in pretraining["validated"]] == [
        (1, 500),
        (201, 500),
        (250, 600),
    ]
    assert all(
        text == words(5, first=300) for _, texts in pretraining["validated"] for text in texts
    )
    lines = lines_of(pretraining["out"] / "gpt.jsonl")
    assert [line["step"] for line in lines] == [*range(0, 250, 20), 250]
    assert {line["step"]: line["valid_loss"] for line in lines if "valid_loss" in line} == {
        0: 0.5,
        200: 0.5,
        250: 0.6,
    }
    batches = pretraining["batches"]
    for line in lines[:-1]:
        assert line["loss"] == pytest.approx(
            corpus_loss(pretraining["model"], batches[line["step"]]).item(), abs=1e-5
        )


def test_the_base_models_checkpoint_says_what_it_is(pretraining):
    saved = load_checkpoint(pretraining["out"] / "gpt.pt")
    assert close(list(saved["state"].values()), list(pretraining["model"].state_dict().values()))
    assert (
        saved["extra"]["stage"] == "pretrain"
        and saved["extra"]["seed"] == 7
        and saved["extra"]["parents"] == {}
    )
    assert saved["extra"]["valid_loss"] == 0.6 and saved["extra"]["settings"]["lr_rest"] == 6.0
    assert saved["config"] == dict(
        vocab_size=1024, block_size=48, n_layer=1, n_head=1, n_embd=8, dropout=0.0
    )


# ---------------------------------------------------------------- SFT: one run


@pytest.fixture
def desk(tmp_path, monkeypatch, encoding):
    """A folder with 43 demonstrations of unlike length, a corpus of 400 documents of one length,
    and a base model."""
    things = ["ball", "kite", "hat", "book", "lamp", "drum", "cup"]
    rows = [
        {
            "prompt": f"Say {things[i % 7]} {' now' * (i // 7)}",
            "completion": " ".join([things[i % 7]] * (1 + i % 4)) + ".",
        }
        for i in range(43)
    ]
    world = tmp_path / "world"
    world.mkdir()
    for name in prepare.SIZES:
        (world / f"{name}.jsonl").write_text("", encoding="utf-8", newline="\n")
    files.write(world / "demonstrations.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    texts = [" ".join(random.Random(i).choices(things, k=8)) for i in range(400)]
    prepare.write_corpus(world, "\n\n".join(texts), known=False)
    monkeypatch.setattr(files, "FOLDER", world)
    torch.manual_seed(0)
    base = GPT(GPTConfig(encoding.n_vocab, 40, 2, 1, 8))
    save_checkpoint(tmp_path / "gpt.pt", base, **stage_extra(BaseConfig(out=str(tmp_path)), "pretrain"))
    return tmp_path


def settings(desk, **changes):
    return sft.Config(**{"out": str(desk), "batch_size": 4, "lr": 0.01, "dropout": 0.0, **changes})


class Notes:
    """What happens in a run of sft.finetune: the batches, the corpus documents and the model's mode
    at each step, the optimiser."""

    def __init__(self, monkeypatch, record=True):
        self.batches, self.validated, self.documents, self.modes, self.optimizers = (
            [],
            [],
            [],
            [],
            [],
        )
        sft_batch, loss, forward, Adam = (
            sft.sft_batch,
            sft.corpus_loss,
            GPT.forward,
            torch.optim.Adam,
        )

        def noted_batch(pairs, *rest):
            (self.batches if torch.is_grad_enabled() else self.validated).append(pairs)
            return sft_batch(pairs, *rest)

        def noted_loss(gpt, documents):
            self.documents.append(documents)
            return loss(gpt, documents)

        def noted_forward(gpt, *inputs):
            rates = {m.p for m in gpt.modules() if isinstance(m, torch.nn.Dropout)}
            self.modes.append((torch.is_grad_enabled(), gpt.training, rates))
            return forward(gpt, *inputs)

        def noted_adam(parameters, **settings):
            self.optimizers.append((Recorder if record else Adam)(parameters, **settings))
            return self.optimizers[-1]

        for owner, name, stub in (
            (sft, "sft_batch", noted_batch),
            (sft, "corpus_loss", noted_loss),
            (GPT, "forward", noted_forward),
            (torch.optim, "Adam", noted_adam),
        ):
            monkeypatch.setattr(owner, name, stub)


def test_dropout_is_on_in_sfts_steps_and_off_where_it_is_measured(desk, monkeypatch):
    """After the first validation, too."""
    notes = Notes(monkeypatch)
    sft.finetune(settings(desk, dropout=0.2), "sft", 2, 0.0, lambda *_: None)
    assert {mode for mode in ((grad, training) for grad, training, _ in notes.modes)} == {
        (True, True),
        (False, False),
    }
    assert all(rates == {0.2} for _, _, rates in notes.modes)
    assert sum(training for _, training, _ in notes.modes) == 18


def test_a_tenth_of_the_demonstrations_validates_and_is_never_trained_on(
    desk, monkeypatch, encoding
):
    notes, pairs = Notes(monkeypatch), sft.read_demonstrations(encoding)
    sft.finetune(settings(desk), "sft", 3, 0.0, lambda *_: None)
    assert notes.validated == [pairs[:4]] * 3
    assert {str(pair) for batch in notes.batches for pair in batch} <= {
        str(pair) for pair in pairs[4:]
    }


def test_an_epoch_takes_each_demonstration_once_and_the_next_one_shuffles_anew(desk, monkeypatch):
    """39 demonstrations, batches of 4: nine steps an epoch."""
    notes = Notes(monkeypatch)
    sft.finetune(settings(desk), "sft", 2, 0.0, lambda *_: None)
    epochs = [notes.batches[:9], notes.batches[9:]]
    for batches in epochs:
        assert [len(batch) for batch in batches] == [4] * 9
        assert len({str(pair) for batch in batches for pair in batch}) == 36
    one, two = ({str(sorted(batch)) for batch in batches} for batches in epochs)
    assert one != two


def test_each_seed_meets_the_demonstrations_in_an_order_of_its_own(desk, monkeypatch):
    base, orders = load_model(desk / "gpt.pt"), []
    for seed in (1, 1, 2):
        save_checkpoint(desk / "gpt.pt", base, **stage_extra(BaseConfig(seed=seed), "pretrain"))
        notes = Notes(monkeypatch)
        sft.finetune(settings(desk, seed=seed), "sft", 1, 0.0, lambda *_: None)
        orders.append(notes.batches)
        monkeypatch.undo()
        monkeypatch.setattr(files, "FOLDER", desk / "world")
    assert orders[0] == orders[1] != orders[2]


def test_sfts_learning_rate_falls_along_a_cosine_over_all_epochs(desk, monkeypatch):
    notes = Notes(monkeypatch)
    sft.finetune(settings(desk, lr=3.0), "sft", 2, 0.0, lambda *_: None)
    (optimizer,) = notes.optimizers
    assert optimizer.rates == pytest.approx(
        [3 * (0.1 + 0.45 * (1 + math.cos(math.pi * step / 18))) for step in range(18)]
    )
    assert optimizer.settings["betas"] == (0.9, 0.95) and not optimizer.settings.get(
        "weight_decay"
    )  # appendix C


@pytest.mark.parametrize("mix", [0.0, 0.5])
def test_a_step_of_sft_is_the_clipped_gradient_of_a_loss_in_which_every_token_weighs_the_same(
    desk, monkeypatch, mix
):
    """(n tokens x SFT loss + m tokens x corpus loss) / (n + m), worked out again from the
    batches of five steps."""
    notes, real_loss = Notes(monkeypatch), corpus_loss
    tuned = sft.finetune(settings(desk), "sft", 1, mix, lambda *_: None)
    optimizer, lengths = notes.optimizers[0], []
    for step in (0, 1, 2, 5, 8):
        pairs = notes.batches[step]
        n, total = sum(len(response) for _, response in pairs), 0.0
        for prompt, response in pairs:
            logp = tuned(torch.tensor([prompt + response]))[0, len(prompt) - 1 : -1].log_softmax(1)
            total -= logp[range(len(response)), response].sum()
        if mix:
            m = sum(len(d) - 1 for d in notes.documents[step])
            total, n = total + m * real_loss(tuned, notes.documents[step]), n + m
        expected, length = clipped(torch.autograd.grad(total / n, list(tuned.parameters())))
        lengths.append(length)
        assert close(optimizer.gradients[step], expected)
    assert max(lengths) > 1.2, "one of these gradients is long enough to be clipped"
    assert bool(notes.documents) == bool(mix)


@pytest.mark.parametrize("mix", [0.5, 0.75])
def test_the_mix_is_a_share_of_tokens(desk, monkeypatch, encoding, mix):
    """A batch of 4 responses has as many tokens as its corpus documents times (1 - mix) / mix,
    up to a document."""
    notes = Notes(monkeypatch)
    pairs = sft.read_demonstrations(encoding)[4:]
    tokens = 4 * sum(len(response) for _, response in pairs) / len(pairs)
    sft.finetune(settings(desk), "sft", 1, mix, lambda *_: None)
    (size,) = {len(document) for documents in notes.documents for document in documents}
    counts = Counter(len(documents) for documents in notes.documents).most_common(1)
    assert counts[0][0] == int(tokens * mix / (1 - mix) / size) >= 1 and len(notes.documents) == 9
    valid = {tuple(document) for document in read_corpus(encoding, 40)[1]}
    assert not valid & {tuple(document) for documents in notes.documents for document in documents}


def test_after_each_epoch_the_weights_are_handed_over_with_their_own_validation_loss(
    desk, monkeypatch, encoding
):
    Notes(monkeypatch, record=False)
    kept, pairs = [], sft.read_demonstrations(encoding)

    def keep(epoch, tuned, loss):
        assert loss == pytest.approx(sft.mean_loss(tuned, pairs[:4]))
        kept.append((epoch, loss, tuned.lm_head.weight.detach().clone()))

    tuned = sft.finetune(settings(desk, lr=0.02, dropout=0.2), "sft", 3, 0.0, keep)
    assert [epoch for epoch, _, _ in kept] == [1, 2, 3] and kept[0][1] > kept[1][1] > kept[2][1]
    assert (
        kept[2][2].equal(tuned.lm_head.weight)
        and not kept[1][2].equal(kept[2][2])
        and not tuned.training
    )
    lines = lines_of(desk / "sft.jsonl")
    assert [(line["epoch"], line["valid_loss"]) for line in lines if "valid_loss" in line] == [
        (epoch, pytest.approx(loss, abs=1e-5)) for epoch, loss, _ in kept
    ]
    assert [line["step"] for line in lines if "valid_loss" not in line] == list(range(27))


def test_sft_starts_from_the_base_model_and_refuses_batches_that_it_cannot_fill(desk, monkeypatch):
    notes = Notes(monkeypatch)
    tuned = sft.finetune(settings(desk), "sft", 1, 0.0, lambda *_: None)  # the recorder moved nothing
    assert close(
        list(tuned.state_dict().values()), list(load_model(desk / "gpt.pt").state_dict().values())
    )
    assert len(notes.optimizers[0].param_groups[0]["params"]) == len(list(tuned.parameters()))
    with pytest.raises(UserError, match="seed 1, not 2"):
        sft.finetune(settings(desk, seed=2), "sft", 1, 0.0, lambda *_: None)
    with pytest.raises(UserError, match="batch_size 40.*39 demonstrations"):
        sft.finetune(settings(desk, batch_size=40), "sft", 1, 0.0, lambda *_: None)


def test_demonstrations_are_prompts_and_responses_that_end(desk, encoding):
    pairs, rows = sft.read_demonstrations(encoding), lines_of(
        desk / "world" / "demonstrations.jsonl"
    )
    assert pairs == [
        (
            tokenizer.prompt_ids(encoding, r["prompt"]),
            tokenizer.response_ids(encoding, r["completion"]),
        )
        for r in rows
    ]
    assert all(response[-1] == encoding.eot_token for _, response in pairs)
    files.write(desk / "two.jsonl", "".join(json.dumps(row) + "\n" for row in rows[:2]))
    assert sft.read_demonstrations(encoding, desk / "two.jsonl") == pairs[:2]


# ---------------------------------------------------------------- SFT: both models


def marked(mark):
    """A small GPT that can be told from others."""
    made = GPT(GPTConfig(64, 16, 1, 1, 2))
    with torch.no_grad():
        made.transformer.ln_f.bias.fill_(mark)
    return made


def mark_of(path):
    return load_checkpoint(path)["state"]["transformer.ln_f.bias"][0].item()


@pytest.fixture
def fits(monkeypatch):
    """In place of sft.finetune: epochs whose weights are marked 1, 2, 3, 10 more for the mix, with
    validation losses of 3, 1 and 2."""
    calls, before = [], []

    def fit(config, name, epochs, mix, keep):
        calls.append((name, epochs, mix))
        before.append(sorted(path.name for path in Path(config.out).rglob("*.pt")))
        for epoch in range(1, epochs + 1):
            made = marked(epoch + (10 if mix else 0))
            keep(epoch, made, (3.0, 1.0, 2.0)[epoch - 1])
        return made

    monkeypatch.setattr(sft, "finetune", fit)
    return calls, before


def test_sft_makes_a_baseline_of_every_epoch_and_a_mix_to_start_rl_from(desk, fits, capsys):
    sft.train(settings(desk, epochs=3, mix_epochs=2, mix=0.1))
    assert fits[0] == [("sft", 3, 0.0), ("sft_mix", 2, 0.1)]
    assert sorted(path.name for path in (desk / "sft_epochs").iterdir()) == [
        "01.pt",
        "02.pt",
        "03.pt",
    ]
    assert [mark_of(desk / "sft_epochs" / name) for name in ("01.pt", "02.pt", "03.pt")] == [
        1,
        2,
        3,
    ]
    assert mark_of(desk / "sft_mix.pt") == 12
    for name, loss in (("01", 3.0), ("02", 1.0), ("03", 2.0)):
        extra = load_checkpoint(desk / "sft_epochs" / f"{name}.pt")["extra"]
        assert (extra["epoch"], extra["valid_loss"], extra["stage"]) == (int(name), loss, "sft")
        assert extra["parents"] == {"gpt": load_checkpoint(desk / "gpt.pt")["sha256"]}
    assert load_checkpoint(desk / "sft_mix.pt")["extra"]["parents"] == extra["parents"]
    said = capsys.readouterr().out
    assert "1.000 at epoch 2" in said and "2.000 at the last" in said


def test_an_earlier_runs_sft_models_go_when_the_first_new_one_is_there(desk, fits):
    """All of them: the epochs of two runs must not mix; and none before, lest a run that is
    stopped at once loses them."""
    for name in ("sft_epochs/07", "sft_epochs/01", "sft_mix"):
        save_checkpoint(desk / f"{name}.pt", marked(50))
    sft.train(settings(desk, epochs=2, mix_epochs=1))
    assert fits[1] == [["01.pt", "07.pt", "gpt.pt", "sft_mix.pt"], ["01.pt", "02.pt", "gpt.pt"]]
    assert mark_of(desk / "sft_epochs/01.pt") == 1 and mark_of(desk / "sft_mix.pt") == 11


def test_a_mix_of_all_tokens_is_refused(desk):
    with pytest.raises(UserError, match="--mix 1"):
        sft.finetune(settings(desk, mix=1.0), "sft_mix", 1, 1.0, lambda *_: None)


# ---------------------------------------------------------------- log, seeds, checkpoints


def test_a_log_begins_anew_and_can_be_read_while_training_goes_on(tmp_path):
    (tmp_path / "run.jsonl").write_text("an earlier run\n", encoding="utf-8", newline="\n")
    log = MetricLog(BaseConfig(out=str(tmp_path)), "run")
    log.write(step=1, loss=0.12345678, note="x")
    assert lines_of(tmp_path / "run.jsonl") == [{"step": 1, "loss": 0.123457, "note": "x"}]
    log.write(step=2)
    assert lines_of(tmp_path / "run.jsonl")[1] == {"step": 2}


def test_a_seed_governs_weights_batches_and_samples(tmp_path):
    def draws(seed):
        _, rng, generator = set_up(BaseConfig(seed=seed, out=str(tmp_path / "new" / "folder")))
        return torch.rand(1).item(), rng.random(), torch.rand(1, generator=generator).item()

    one, again, other = draws(3), draws(3), draws(4)
    assert (
        one == again
        and all(a != b for a, b in zip(one, other))
        and (tmp_path / "new" / "folder").is_dir()
    )


def test_a_checkpoints_hash_depends_on_names_shapes_types_values_and_what_it_says_of_itself():
    state = {"a": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "b": torch.zeros(2)}
    others = [
        ({"c": state["a"], "b": state["b"]}, 1),
        ({**state, "a": state["a"].view(1, 4)}, 1),
        ({**state, "b": torch.zeros(2, dtype=torch.int32)}, 1),
        ({**state, "a": state["a"].T.contiguous()}, 1),
        (state, 2),
    ]
    hashes = [files.fingerprint(tensors, {"seed": seed}) for tensors, seed in [(state, 1), *others]]
    assert (
        len(set(hashes)) == len(hashes)
        and files.fingerprint(dict(reversed(state.items())), {"seed": 1}) == hashes[0]
    )


def test_what_a_checkpoint_says_of_itself_cannot_be_changed_unnoticed(tiny, tmp_path):
    save_checkpoint(tmp_path / "a.pt", tiny, seed=1)
    whole = torch.load(tmp_path / "a.pt", weights_only=True)
    for change in (
        {"extra": {"seed": 2}},
        {"kind": "RewardModel"},
        {"config": {**whole["config"], "dropout": 0.1}},
    ):
        torch.save({**whole, **change}, tmp_path / "b.pt")
        with pytest.raises(UserError, match="b.pt"):
            load_checkpoint(tmp_path / "b.pt")


def test_a_checkpoint_opened_with_dropout_has_the_same_weights_and_drops(tiny, tmp_path):
    save_checkpoint(tmp_path / "a.pt", tiny)
    noisy = load_model(tmp_path / "a.pt", dropout=0.5)
    assert not noisy.training and close(
        list(noisy.state_dict().values()), list(tiny.state_dict().values())
    )
    idx = torch.tensor([[1, 2, 3]])
    assert torch.equal(noisy(idx), tiny(idx)) and not torch.equal(noisy.train()(idx), tiny(idx))


def test_a_failed_write_leaves_the_earlier_checkpoint_whole(tiny, tmp_path, monkeypatch):
    sha = save_checkpoint(tmp_path / "a.pt", tiny)

    def full(saved, path):
        Path(path).write_bytes(b"half")
        raise RuntimeError("no space left")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match="a.pt"):
        save_checkpoint(tmp_path / "a.pt", tiny, seed=2)
    monkeypatch.undo()
    assert load_checkpoint(tmp_path / "a.pt")["sha256"] == sha and [
        path.name for path in tmp_path.iterdir()
    ] == ["a.pt"]


def test_a_stage_names_its_settings_its_world_and_its_parents(desk):
    """Not its folder and its device: a run may move."""
    extra = stage_extra(settings(desk, seed=5, epochs=3), "sft", made_from=["gpt"])
    assert extra["stage"] == "sft" and extra["seed"] == 5 and extra["world"] == files.world_hash()
    assert extra["parents"] == {"gpt": load_checkpoint(desk / "gpt.pt")["sha256"]}
    assert extra["settings"]["epochs"] == 3 and not {"out", "device", "seed"} & set(
        extra["settings"]
    )


def test_a_world_is_other_when_a_line_of_it_or_the_tokenizer_is(desk, monkeypatch):
    """The corpus, which is made from it, and stray files do not count."""
    before, world = files.world_hash(), desk / "world"
    (world / "corpus.txt").write_text("made anew", encoding="utf-8", newline="\n")
    (world / "mine.jsonl").write_text("a stray file", encoding="utf-8", newline="\n")
    assert files.world_hash() == before
    changed = [before]
    for name in prepare.SIZES:
        with open(world / f"{name}.jsonl", "a", encoding="utf-8", newline="\n") as file:
            file.write("one more line\n")
        changed.append(files.world_hash())
    (desk / "toytown.tiktoken").write_bytes(tokenizer.PATH.read_bytes() + b"\n")
    monkeypatch.setattr(tokenizer, "PATH", desk / "toytown.tiktoken")
    changed.append(files.world_hash())
    assert len(set(changed)) == 2 + len(prepare.SIZES)


def test_a_stage_needs_the_one_before_it_of_the_same_run(desk):
    assert require(BaseConfig(out=str(desk)), "gpt", "model.py") == desk / "gpt.pt"
    with pytest.raises(UserError, match="sft_mix.pt is missing.*python sft.py"):
        require(BaseConfig(out=str(desk)), "sft_mix", "sft.py")
    with pytest.raises(UserError, match="seed 1, not 2"):
        require(BaseConfig(out=str(desk), seed=2), "gpt", "model.py")
