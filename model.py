"""Step 0. A tiny GPT-2, and the base model that has only read the web.

    data/corpus.txt -> out/gpt.pt

InstructGPT starts from GPT-3 (section 3.5): a decoder-only transformer trained to predict the next token. Ours is GPT-2's
architecture to the letter (Radford et al. 2019), with the parameter names that GPT-2 has in the transformers library, only
much smaller. It can continue texts of Toytown, the toy world in data/; it has not learnt to do what it is told. That takes three more steps:
sft.py, reward.py, ppo.py.

In this file, top to bottom: the architecture; sampling and log-probabilities; the few helpers that
every stage shares (what a reader of RLHF need not see, files and flags, is in data/prepare.py); and
below a rule, pretraining and talking to a checkpoint:

    python model.py                             # pretrains the base model
    python model.py --chat out/ppo_ptx.pt       # talks to any checkpoint, typed or piped
"""
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

from data import files, prepare, tokenizer
from data.files import (
    MetricLog, UserError, alone, load_checkpoint, save_checkpoint, settings_of, stage_extra
)
from data.flags import BaseConfig, generator_on, run_script, set_up

# ---------------------------------------------------------------- the architecture


@dataclass
class GPTConfig:
    """The shape of a GPT-2. The last two ids of the vocabulary are <|endoftext|> and <|pad|>."""
    vocab_size: int = 1024      # GPT-3: 50,257
    block_size: int = 128       # longest sequence in tokens (GPT-3: 2,048)
    n_layer: int = 4            # GPT-3 175B: 96, 1.3B: 24
    n_head: int = 4             # GPT-3 175B: 96, 1.3B: 24
    n_embd: int = 64            # GPT-3 175B: 12,288, 1.3B: 2,048
    dropout: float = 0.0        # on the residual branches; 0.2 in SFT, off everywhere else (C.1)

    def __post_init__(self):
        if min(self.n_layer, self.n_head, self.n_embd, self.block_size) < 1 or self.n_embd % (2 * self.n_head):
            raise ValueError(f"--n_embd {self.n_embd} must be a multiple of twice --n_head {self.n_head}, and all sizes at least 1")

    @property
    def eos_id(self):
        return self.vocab_size - 2

    @property
    def pad_id(self):
        return self.vocab_size - 1


class Attention(nn.Module):
    """Causal self-attention with n_head heads (Vaswani et al. 2017, 3.2.2)."""

    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x, cache=None, attn_mask=None):
        """x (B, T, C) -> (B, T, C). While sampling, `cache` holds the keys and values of all earlier positions, each
        (B, heads, past, C / heads), and `attn_mask` (B, 1, T, past + T) is true where a position may be looked at."""
        B, T, C = x.shape
        heads = (part.view(B, T, self.n_head, C // self.n_head).transpose(1, 2) for part in self.c_attn(x).split(C, dim=2))
        q, k, v = heads                                                 # each (B, heads, T, C / heads)
        if cache is not None:
            if "k" in cache:
                k, v = torch.cat([cache["k"], k], dim=2), torch.cat([cache["v"], v], dim=2)
            cache["k"], cache["v"] = k, v
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, is_causal=attn_mask is None)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))


class MLP(nn.Module):
    """Two layers with GPT-2's tanh-approximated GELU between them."""

    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x):
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    """Attention, then MLP, each on a normalised copy of the residual stream (pre-LN)."""

    def __init__(self, config):
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(config.n_embd), Attention(config)
        self.ln_2, self.mlp = nn.LayerNorm(config.n_embd), MLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, cache=None, attn_mask=None):
        x = x + self.dropout(self.attn(self.ln_1(x), cache, attn_mask))
        return x + self.dropout(self.mlp(self.ln_2(x)))


class Transformer(nn.Module):
    """Everything below the last linear layer; language model and reward model share its shape."""

    def __init__(self, config):
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)

    def forward(self, idx, positions=None, caches=None, attn_mask=None):
        """idx (B, T), positions (T,) or (B, T), caches a dict a block, attn_mask (B, 1, T, past + T) -> hidden states (B, T, C).
        Raises ValueError if a position lies outside the context."""
        if positions is None:
            positions = torch.arange(idx.shape[1], device=idx.device)
        if positions.max() >= self.wpe.num_embeddings:
            raise ValueError(f"a sequence of {int(positions.max()) + 1} tokens does not fit into the context of {self.wpe.num_embeddings}")
        x = self.wte(idx) + self.wpe(positions)
        for i, block in enumerate(self.h):
            x = block(x, None if caches is None else caches[i], attn_mask)
        return self.ln_f(x)


class GPT(nn.Module):
    """A GPT-2 language model. GPT(idx (B, T)) -> logits (B, T, V); logits[:, t] predict idx[:, t + 1].

    select (B, T), boolean: logits (n, V) of these n positions alone. A quarter of a position's multiplications are for the vocabulary."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.transformer = Transformer(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.transformer.wte.weight               # tied: reading and writing share one table
        init_weights(self)
        for name, p in self.named_parameters():
            if name.endswith("c_proj.weight"):                          # GPT-2: the residual stream keeps its scale with depth
                nn.init.normal_(p, std=spread(config) / math.sqrt(2 * config.n_layer))
        start_near_copying(self.transformer, spread(config))

    def forward(self, idx, select=None):
        x = self.transformer(idx)                                       # (B, T, C)
        return self.lm_head(x if select is None else x[select])


def spread(config):
    """Deviation of the initial weights: 0.1 at our width of 64 (GPT-2: 0.02 at 768). Sums over the width keep their scale that way:
    with 0.1 at a width of 384, pretraining starts at a loss of 14 nats and attention is too sure to learn."""
    return 0.8 / math.sqrt(config.n_embd)


def init_weights(model):
    """Normal weights, biases 0, as in GPT-2."""
    def start(module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=spread(model.config))
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    model.apply(start)


@torch.no_grad()
def start_near_copying(trunk, std):
    """Initial attention that looks for tokens like the present one, nearby first, and passes on what it finds.

    The architecture is GPT-2's, this start is not: it is a mimetic initialisation (after Trockman and Kolter 2023), with keys equal
    to queries, output weights halfway to the transposed values, sinusoidal positions (Vaswani et al. 2017, 3.5). All of it is then
    trained. Copying emerges sooner: four layers, 2,000 steps, one seed: validation loss 0.80, not 0.84."""
    length, width = trunk.wpe.weight.shape
    angles = torch.arange(length)[:, None] / 10_000 ** (torch.arange(0, width, 2) / width)      # (length, C / 2)
    trunk.wpe.weight.copy_(math.sqrt(2) * std * torch.cat([angles.sin(), angles.cos()], dim=1))
    for block in trunk.h:
        queries, keys, values = block.attn.c_attn.weight.split(width)                           # each (C, C)
        keys.copy_(queries)
        block.attn.c_proj.weight.lerp_(values.T, 0.5)


# ---------------------------------------------------------------- sampling and log-probabilities


def distribution(logits, temperature, pad):
    """Logits (..., V) -> log-probabilities (..., V) of the next token.

    Sampling, old log-probs, reference and update all pass through here, so that the distribution that is sampled is the
    one that is scored: no top-k, one temperature, and <|pad|> is impossible."""
    return F.log_softmax((logits / temperature).index_fill(-1, torch.tensor(pad, device=logits.device), float("-inf")), dim=-1)


def logprobs(model, idx, temperature=1.0, select=None):
    """The log-probability of every token given those before it: idx (B, T) -> (B, T - 1), entry t is that of idx[:, t + 1].

    Right padding needs no mask: causal attention never looks to the right, and callers select by length. select (B, T - 1), boolean:
    the entries that are worked out, the others are 0."""
    select = torch.ones_like(idx[:, 1:], dtype=torch.bool) if select is None else select
    logp = distribution(model(idx[:, :-1], select), temperature, model.config.pad_id)  # (n, V)
    logp = logp.gather(1, idx[:, 1:][select][:, None]).squeeze(1)                   # (n,)
    return logp.new_zeros(select.shape).masked_scatter(select, logp)                # (B, T - 1)


@torch.no_grad()
def generate(model, prompts, max_new_tokens, temperature=1.0, generator=None, batch_size=256):
    """Samples a response to each prompt (a list of ids); returns lists of ids, <|endoftext|> included when it was sampled.

    Prompts of unequal length are padded on the left. Positions skip the padding and attention does not see it, so a
    prompt's distribution does not depend on its neighbours. temperature=0 takes the likeliest token. Raises ValueError if
    prompt and response do not fit into the context."""
    longest = max((len(p) for p in prompts), default=0) + max_new_tokens
    if longest > model.config.block_size:
        raise ValueError(f"prompt and response of {longest} tokens do not fit into the context of {model.config.block_size}")
    was_training = model.training
    model.eval()                                                        # no dropout in a rollout
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # neighbours of like length: little padding
    responses = [None] * len(prompts)
    for start in range(0, len(order), batch_size):
        rows = order[start:start + batch_size]
        for i, response in zip(rows, generate_batch(model, [prompts[i] for i in rows], max_new_tokens, temperature, generator)):
            responses[i] = response
    model.train(was_training)
    return responses


def generate_batch(model, prompts, max_new_tokens, temperature, generator):
    """One batch of `generate`. The cache makes each new token cost one position instead of the whole sequence."""
    device, end, pad = model.lm_head.weight.device, model.config.eos_id, model.config.pad_id
    width = max(map(len, prompts))
    idx = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=device)          # (B, width)
    real = torch.arange(width, device=device) >= torch.tensor([[width - len(p)] for p in prompts], device=device)   # (B, width)
    positions = (real.cumsum(1) - 1).clamp(min=0)                                               # (B, width)
    causal = torch.ones(width, width, dtype=torch.bool, device=device).tril()
    attn_mask = causal & real[:, None, None, :] | torch.eye(width, dtype=torch.bool, device=device)  # padding sees itself: no NaN
    caches = [{} for _ in range(model.config.n_layer)]
    alive, responses = list(range(len(prompts))), [[] for _ in prompts]
    for _ in range(max_new_tokens):
        logits = model.lm_head(model.transformer(idx, positions, caches, attn_mask)[:, -1])       # (alive, V)
        if temperature == 0:
            chosen = distribution(logits, 1.0, pad).argmax(1)                                   # (alive,)
        else:
            summed = distribution(logits, temperature, pad).exp().cumsum(1)                     # (alive, V)
            drawn = torch.rand(len(alive), 1, generator=generator, device=device) * summed[:, -1:]          # (alive, 1)
            chosen = torch.searchsorted(summed, drawn)[:, 0]            # inverse CDF: torch.multinomial took a third of the time
        for row, token in zip(alive, chosen.tolist()):
            responses[row].append(token)
        keep = chosen != end                                                                    # (alive,)
        if not keep.any():
            break
        if not keep.all():                                              # finished responses leave the batch
            alive = [row for row, kept in zip(alive, keep.tolist()) if kept]
            caches = [{name: x[keep] for name, x in cache.items()} for cache in caches]
            chosen, positions, real = chosen[keep], positions[keep], real[keep]
        idx, positions = chosen[:, None], positions[:, -1:] + 1                                 # (alive, 1)
        real = F.pad(real, (0, 1), value=True)
        attn_mask = real[:, None, None, :]
    return responses


def pad_batch(sequences, pad, device="cpu"):
    """Lists of ids -> idx (B, T), padded on the right, and lengths (B,)."""
    lengths = torch.tensor([len(s) for s in sequences], device=device)
    width = int(lengths.max())
    return torch.tensor([list(s) + [pad] * (width - len(s)) for s in sequences], device=device), lengths


def batches_of_like_length(items, size, length, rng):
    """All items in random batches of `size`, neighbours in length together (little padding), the batches in random order.
    What does not fill a batch is left out."""
    items, batches = rng.sample(items, len(items)), []
    for start in range(0, len(items), 50 * size):
        part = sorted(items[start:start + 50 * size], key=length)
        batches += [part[i:i + size] for i in range(0, len(part) - size + 1, size)]
    return rng.sample(batches, len(batches))


# ---------------------------------------------------------------- what every stage shares


def load_model(path, device="cpu", kind=GPT, **changes):
    """The model of a checkpoint, a language model unless `kind` says otherwise; `changes` to its config, e.g. dropout=0.2."""
    saved = load_checkpoint(path, device)
    if saved["kind"] != kind.__name__:
        raise UserError(f"{path}: holds a {saved['kind']}, not a {kind.__name__}")
    try:
        model = kind(GPTConfig(**{**saved["config"], **changes})).to(device)
        model.load_state_dict(saved["state"])
    except (TypeError, RuntimeError):
        raise UserError(f"{path}: its weights do not fit the shape that it states") from None
    return model.eval()


def cosine(step, steps, peak, warmup=0):
    """Learning rate: a cosine down to 10 % of the peak (C.1, C.2), after a linear warm-up from a tenth (ours, in reward.py only)."""
    if step < warmup:
        return peak * (0.1 + 0.9 * step / warmup)
    return peak * (0.1 + 0.45 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))))


# ================================================================ step 0: pretraining the base model


@dataclass
class Config(BaseConfig):
    """Pretraining. GPT-3's values in brackets (Brown et al. 2020, table 2.1, 1.3B)."""
    n_layer: int = 4            # layers (24)
    n_head: int = 4             # attention heads (24)
    n_embd: int = 64            # width (2,048)
    block_size: int = 128       # longest sequence in tokens (2,048)
    batch_tokens: int = 2048    # tokens of a step (1 million)
    steps: int = 4_400          # 8.7 million tokens, 2.3 passes over the corpus (300 billion tokens, less than one pass)
    lr: float = 0.007           # peak rate of Muon (momentum, made orthogonal), for the matrices of the blocks (GPT-3: Adam, 2e-4)
    lr_rest: float = 4e-3       # Adam's peak learning rate, for embeddings, biases and norms (2e-4): small models take large steps
    chat: str = ""              # a checkpoint to talk to, instead of training


def read_corpus(encoding, block_size):
    """(training documents, validation documents) as lists of ids, each between two <|endoftext|> and cut
    at block_size; the last 2 % validate."""
    texts = prepare.corpus_texts()
    end = [encoding.eot_token]
    documents = [(end + ids + end)[:block_size] for ids in encoding.encode_ordinary_batch([tokenizer.spaced(t) for t in texts])]
    cut = int(0.98 * len(documents))
    if not cut:
        raise UserError(f"{files.FOLDER}/corpus.txt: {len(documents)} document, "
                        "too few to train on")
    return documents[:cut], documents[cut:]


def corpus_batches(documents, batch_tokens, rng):
    """Batches (lists of documents) without end, about `batch_tokens` tokens each, documents of like length together.

    GPT-3 packs documents into full windows; ours are short, and alone in its row a document stands where prompts stand later,
    at the first position, with nothing irrelevant to attend to."""
    while True:
        documents = rng.sample(documents, len(documents))
        for start in range(0, len(documents), 4_000):
            batches, batch = [], []
            for document in sorted(documents[start:start + 4_000], key=len):
                if batch and (len(batch) + 1) * len(document) > batch_tokens:
                    batches.append(batch)
                    batch = []
                batch.append(document)
            yield from rng.sample(batches + [batch], len(batches) + 1)


def corpus_loss(model, documents):
    """The pretraining loss: cross-entropy per token of some documents -> scalar, in nats."""
    idx, lengths = pad_batch(documents, model.config.pad_id, model.lm_head.weight.device)          # (B, T), (B,)
    mask = torch.arange(1, idx.shape[1], device=idx.device) < lengths[:, None]                  # (B, T - 1)
    targets = idx[:, 1:].masked_fill(~mask, -100)                                               # (B, T - 1): -100 is skipped
    return F.cross_entropy(model(idx[:, :-1]).flatten(0, 1), targets.flatten())


@torch.no_grad()
def validation_loss(model, documents):
    """Mean loss on validation documents, in nats per token. Its rise above the base model's is the alignment tax: what
    fine-tuning costs in what the base model could do."""
    documents = sorted(documents, key=len)
    parts = [documents[i:i + 100] for i in range(0, len(documents), 100)]
    tokens = [sum(len(d) - 1 for d in part) for part in parts]
    return sum(corpus_loss(model, part).item() * n for part, n in zip(parts, tokens)) / sum(tokens)


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal (Jordan et al. 2024): every direction of a matrix moves equally far, whatever its gradient's size.

    torch.optim.Muon, but in float32 and with all matrices of a shape at once: 2.8 ms a step, not 8.8 (four layers, two cores)."""

    def __init__(self, matrices, lr=1e-3, weight_decay=0.0):
        super().__init__(matrices, dict(lr=lr, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        group = self.param_groups[0]
        for shape in dict.fromkeys(p.shape for p in group["params"]):
            matrices = [p for p in group["params"] if p.shape == shape]
            grads = torch.stack([p.grad for p in matrices])                                     # (n, rows, columns)
            momentum = self.state[matrices[0]].setdefault("momentum", torch.zeros_like(grads)).lerp_(grads, 0.05)
            steps = orthogonal(grads.lerp(momentum, 0.95))                                      # Nesterov's look ahead
            scale = group["lr"] * max(1, shape[0] / shape[1]) ** 0.5
            for p, step in zip(matrices, steps):
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(step, alpha=scale)


def orthogonal(x):
    """Matrices (n, rows, columns) -> the same with singular values near 1, by five Newton-Schulz steps with Jordan's coefficients."""
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT                                                                         # (n, rows, rows)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.mT if tall else x


def muon_and_adam(model, lr, lr_rest, decay=0.0):
    """Muon for the matrices of the blocks (Jordan et al. 2024), Adam for the rest: pairs (optimiser, peak learning rate).

    GPT-3 was trained with Adam. The rates decide when copying emerges: with 0.02 and 0.006 instead of 0.01 and 0.003
    it came hundreds of steps later (validation loss 0.89, not 0.80, after 1,600 steps of development runs). Today's rates were chosen later."""
    matrices = [p for name, p in model.named_parameters() if ".h." in name and p.dim() == 2]
    rest = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
    return [(Muon(matrices, weight_decay=decay / 10), lr),
            (torch.optim.AdamW(rest, betas=(0.9, 0.95), weight_decay=decay, fused=True), lr_rest)]


def pretraining_lr(step, steps, peak):
    """Linear warm-up (2 %), constant, linear down to a twentieth over the last 40 %: copying emerges while the rate is high."""
    return peak * min((step + 1) / (0.02 * steps), 1, max(0.05, (steps - step) / (0.4 * steps)))


# Texts that the new model goes on with
SAMPLES = ("The fox", "What does the fox eat?\n")


def train(config):
    """Pretrains the base model on the corpus; writes out/gpt.pt and out/gpt.jsonl."""
    start = time.time()
    device, rng, generator = set_up(config)
    encoding = tokenizer.load()
    documents, valid = read_corpus(encoding, config.block_size)
    samples = [[encoding.eot_token] + encoding.encode_ordinary(tokenizer.spaced(text).rstrip(" "))
               for text in SAMPLES]
    files.check_room(config.block_size, samples, "a sample", 24)
    model = GPT(GPTConfig(encoding.n_vocab, config.block_size, config.n_layer, config.n_head, config.n_embd)).to(device)
    optimizers, batches = muon_and_adam(model, config.lr, config.lr_rest, decay=0.1), corpus_batches(documents, config.batch_tokens, rng)
    print(f"step 0, the base model: {sum(p.numel() for p in model.parameters()):,} parameters, {sum(map(len, documents)):,} tokens of corpus")
    log, bar = MetricLog(config, "gpt"), tqdm(range(config.steps), desc="pretrain")
    for step in bar:
        loss = corpus_loss(model, next(batches))
        loss.backward()
        for optimizer, peak in optimizers:
            optimizer.param_groups[0]["lr"] = pretraining_lr(step, config.steps, peak)
            optimizer.step()
            optimizer.zero_grad()
        if step % 20 == 0:
            check = {"valid_loss": validation_loss(model, valid[:500])} if step % 200 == 0 else {}
            log.write(step=step, loss=loss.item(), **check)
            bar.set_postfix(loss=f"{loss.item():.3f}")
    final = validation_loss(model, valid)
    log.write(step=config.steps, loss=loss.item(), valid_loss=final)
    save_checkpoint(Path(config.out) / "gpt.pt", model, **stage_extra(config, "pretrain"), valid_loss=final)
    for text, ids in zip(SAMPLES, samples):
        print(f"    {text!r} -> {encoding.decode(generate(model, [ids], 24, 1.0, generator)[0])!r}")
    print(f"made {config.out}/gpt.pt, corpus loss {final:.3f}, in {time.time() - start:.0f} s. Next: python sft.py\n")
    return model


def chat(path, device):
    """Answers each line of standard input; an empty line or end of file stops."""
    generator = generator_on(device, 0)
    model, encoding = load_model(path, generator.device), tokenizer.load()
    if model.config.vocab_size != encoding.n_vocab:
        raise UserError(f"{path}: knows {model.config.vocab_size} tokens, {tokenizer.PATH} has "
                        f"{encoding.n_vocab}: made in another world")
    if sys.stdin.isatty():
        print(f"talking to {path}: a line a prompt, an empty line to stop")
    for line in sys.stdin:
        if not line.strip():
            break
        ids = tokenizer.prompt_ids(encoding, line)
        room = model.config.block_size - len(ids)
        if room < 1:
            print(f"(too long: {len(ids)} tokens, the context has {model.config.block_size})")
            continue
        print(tokenizer.response_text(encoding, generate(model, [ids], min(40, room), 1.0, generator)[0])[0])


def main(config):
    """Pretrains, or talks to a checkpoint."""
    if config.chat:
        chat(config.chat, config.device)
    else:
        alone(config, ["gpt"], settings_of(config), train)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
