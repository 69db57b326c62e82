r"""Step 0. Pretrain a tiny GPT-2: the base model, which has only read the corpus.

    data/corpus.txt -> out/gpt.pt

InstructGPT starts from GPT-3 (section 3.5), a decoder-only transformer trained to predict the next
token. Ours has exactly GPT-2's architecture (Radford et al. 2019), with the same parameter names as
in the transformers library, but it is much smaller. It continues texts about Toytown, the toy
world in data/. It cannot follow instructions yet: sft.py, reward.py and ppo.py teach it that.

Section numbers such as (3.5) and (C.1) refer to the InstructGPT paper, Ouyang et al. 2022,
arXiv:2203.02155. Brackets after a setting hold the paper's value, [not stated] if it gives none.

    python model.py                             # pretrain the base model
    python model.py --chat out/ppo_ptx.pt       # talk to any checkpoint; prompts typed or piped
"""
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import data  # noqa: F401, before torch, because it sets how torch's threads wait
import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

from data import files, own, prepare, tokenizer
from data.files import (
    MetricLog, UserError, alone, load_checkpoint, save_checkpoint, settings_of, stage_extra
)
from data.flags import BaseConfig, generator_on, run_script, set_up
from data.training import corpus_batches, muon_and_adam, pretraining_lr, start_near_copying

# ---------------------------------------------------------------- the architecture

@dataclass
class GPTConfig:
    """The shape of a GPT-2. The last two ids of the vocabulary are <|endoftext|> and <|pad|>."""
    vocab_size: int = 1024      # GPT-3: 50,257
    block_size: int = 128       # the context: longest sequence in tokens (GPT-3: 2,048)
    n_layer: int = 4            # GPT-3 175B: 96, 1.3B: 24
    n_head: int = 4             # GPT-3 175B: 96, 1.3B: 24
    n_embd: int = 64            # GPT-3 175B: 12,288, 1.3B: 2,048
    dropout: float = 0.0        # on the residual branches; 0.2 in SFT, off everywhere else (C.1)

    def __post_init__(self):
        sizes = (self.n_layer, self.n_head, self.n_embd, self.block_size)
        # Heads share the width equally. Twice, because positions start as pairs of sine and cosine.
        if min(sizes) < 1 or self.n_embd % (2 * self.n_head):
            raise ValueError(f"--n_embd {self.n_embd} must be a multiple of twice "
                             f"--n_head {self.n_head}, and all sizes at least 1")

    @property
    def eos_id(self):
        return self.vocab_size - 2

    @property
    def pad_id(self):
        return self.vocab_size - 1


class Attention(nn.Module):
    """Causal self-attention: softmax(q k^T / sqrt(d)) v in each head (Vaswani et al. 2017, 3.2)."""

    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x, cache=None, attn_mask=None):
        """x (B, T, C) -> (B, T, C), in H heads of d = C / H channels. While sampling, `cache` holds
        the keys and values of earlier positions, (B, H, past, d) each, and `attn_mask`
        (B, 1, T, past + T) is true where a position may attend."""
        B, T, C = x.shape
        q, k, v = self.c_attn(x).split(C, dim=2)                        # (B, T, C) each
        q = q.view(B, T, self.n_head, -1).transpose(1, 2)               # (B, H, T, d)
        k = k.view(B, T, self.n_head, -1).transpose(1, 2)               # (B, H, T, d)
        v = v.view(B, T, self.n_head, -1).transpose(1, 2)               # (B, H, T, d)
        if cache is not None:
            if "k" in cache:
                k = torch.cat([cache["k"], k], dim=2)                   # (B, H, past + T, d)
                v = torch.cat([cache["v"], v], dim=2)                   # (B, H, past + T, d)
            cache.update(k=k, v=v)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask, is_causal=attn_mask is None)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))          # (B, T, C)


class MLP(nn.Module):
    """Two layers with GPT-2's tanh-approximated GELU between them."""

    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x):
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))        # (B, T, C)


class Block(nn.Module):
    """Attention, then MLP, each on a normalised copy of the residual stream (pre-LN)."""

    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, cache=None, attn_mask=None):
        x = x + self.dropout(self.attn(self.ln_1(x), cache, attn_mask))     # (B, T, C)
        return x + self.dropout(self.mlp(self.ln_2(x)))                     # (B, T, C)


class Transformer(nn.Module):
    """Everything below the last linear layer. The reward model in reward.py has the same trunk."""

    def __init__(self, config):
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)

    def forward(self, idx, positions=None, caches=None, attn_mask=None):
        """idx (B, T), positions (T,) or (B, T), a cache per block, attn_mask (B, 1, T, past + T) ->
        hidden states (B, T, C). Raises ValueError if a position lies outside the context."""
        if positions is None:
            positions = torch.arange(idx.shape[1], device=idx.device)   # (T,)
        longest = int(positions.max()) + 1
        if longest > self.wpe.num_embeddings:
            raise ValueError(f"a sequence of {longest} tokens does not fit into the context of "
                             f"{self.wpe.num_embeddings}")
        x = self.wte(idx) + self.wpe(positions)                         # (B, T, C)
        for block, cache in zip(self.h, caches or [None] * len(self.h)):
            x = block(x, cache, attn_mask)                              # (B, T, C)
        return self.ln_f(x)


class GPT(nn.Module):
    """A GPT-2 language model: idx (B, T) -> logits (B, T, V). logits[:, t] predict idx[:, t + 1].

    select (B, T), boolean: compute the logits (n, V) of these n positions only, because the
    projection to the vocabulary is a quarter of the work."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.transformer = Transformer(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.transformer.wte.weight   # tied: input and output share one table
        init_weights(self)
        residual_std = init_std(config) / math.sqrt(2 * config.n_layer)
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):      # the residual stream keeps its scale with depth
                nn.init.normal_(parameter, std=residual_std)
        start_near_copying(self.transformer, init_std(config))

    def forward(self, idx, select=None):
        x = self.transformer(idx)                                       # (B, T, C)
        return self.lm_head(x if select is None else x[select])         # (B, T, V) or (n, V)


def init_std(config):
    """Standard deviation of the initial weights: 0.1 at width 64 (GPT-2: 0.02 at 768). Without the
    1/sqrt(width), a width of 384 would start at a loss of 14 nats with saturated attention."""
    return 0.8 / math.sqrt(config.n_embd)


def init_weights(model):
    """Set weights to normal values and biases to 0, as in GPT-2."""
    std = init_std(model.config)
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


# ---------------------------------------------------------------- sampling and log-probabilities

def distribution(logits, temperature, pad):
    """Logits (..., V) -> log-probabilities (..., V) of the next token.

    Sampling and scoring both come here, because PPO compares probabilities: they must be those of
    the distribution that the tokens were drawn from. So there is one temperature and no top-k: a
    token outside one policy's top k would make the log-ratio infinite. <|pad|> is never a training
    target and must not occur in a response, so it has probability 0."""
    pad_id = torch.tensor(pad, device=logits.device)                    # scalar
    logits = (logits / temperature).index_fill(-1, pad_id, float("-inf"))   # (..., V)
    return F.log_softmax(logits, dim=-1)                                # (..., V)


def logprobs(model, idx, temperature=1.0, select=None):
    """Log-probability of every token given those before it: idx (B, T) -> (B, T - 1).

    Entry t is that of idx[:, t + 1]. Right padding needs no mask, because causal attention never
    looks to the right. select (B, T - 1), boolean: compute these entries only, the others are 0."""
    if select is None:
        select = torch.ones_like(idx[:, 1:], dtype=torch.bool)          # (B, T - 1)
    logits = model(idx[:, :-1], select)                                 # (n, V)
    logp = distribution(logits, temperature, model.config.pad_id)       # (n, V)
    tokens = idx[:, 1:][select]                                         # (n,)
    logp = logp.gather(1, tokens[:, None]).squeeze(1)                   # (n,)
    return logp.new_zeros(select.shape).masked_scatter(select, logp)    # (B, T - 1)


@torch.no_grad()
def generate(model, prompts, max_new_tokens, temperature=1.0, generator=None, batch_size=256):
    """Sample a response to each prompt: lists of ids -> lists of ids.

    A response includes its <|endoftext|>, unless max_new_tokens come first. temperature=0 takes the
    most likely token. Raises ValueError if prompt and response do not fit into the context."""
    longest = max(map(len, prompts), default=0) + max_new_tokens
    if longest > model.config.block_size:
        raise ValueError(f"prompt and response of {longest} tokens do not fit into the context of "
                         f"{model.config.block_size}")
    was_training = model.training
    model.eval()                                                        # no dropout while sampling
    # A batch holds prompts of similar length, because that needs little padding.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    responses = [None] * len(prompts)
    for start in range(0, len(order), batch_size):
        numbers = order[start:start + batch_size]
        batch = [prompts[i] for i in numbers]
        answers = generate_batch(model, batch, max_new_tokens, temperature, generator)
        for i, answer in zip(numbers, answers):
            responses[i] = answer
    model.train(was_training)
    return responses


def generate_batch(model, prompts, max_new_tokens, temperature, generator):
    """One batch of `generate`. With the cache, a new token costs one position, not a whole pass."""
    device = model.lm_head.weight.device
    pad = model.config.pad_id
    idx, not_pad = left_pad(prompts, pad, device)                       # (B, T), (B, T)
    T = idx.shape[1]
    # Positions count real tokens only, so that a prompt starts at 0, as in training.
    positions = (not_pad.cumsum(1) - 1).clamp(min=0)                    # (B, T)
    # Real tokens never see padding. Padding sees itself, because softmax over nothing is NaN.
    causal = torch.ones(T, T, dtype=torch.bool, device=device).tril()   # (T, T)
    itself = torch.eye(T, dtype=torch.bool, device=device)              # (T, T)
    attn_mask = (causal & not_pad[:, None, None, :]) | itself           # (B, 1, T, T)
    caches = [{} for _ in range(model.config.n_layer)]
    responses = [[] for _ in prompts]
    active = list(range(len(prompts)))                                  # rows that have not ended
    for _ in range(max_new_tokens):
        # 1. Draw the next token of every active row.
        hidden = model.transformer(idx, positions, caches, attn_mask)   # (active, T, C)
        logits = model.lm_head(hidden[:, -1])                           # (active, V)
        next_ids = sample_next(logits, temperature, pad, generator)     # (active,)
        for row, token in zip(active, next_ids.tolist()):
            responses[row].append(token)
        # 2. Drop the rows that have ended.
        keep = next_ids != model.config.eos_id                          # (active,)
        if not keep.any():
            break
        if not keep.all():
            active = [row for row, kept in zip(active, keep.tolist()) if kept]
            next_ids = next_ids[keep]                                   # (active,)
            positions = positions[keep]                                 # (active, T)
            not_pad = not_pad[keep]                                     # (active, past)
            for cache in caches:
                cache.update(k=cache["k"][keep], v=cache["v"][keep])    # (active, H, past, d)
        # 3. In the next pass, read the new tokens alone, one position further on.
        idx = next_ids[:, None]                                         # (active, 1)
        positions = positions[:, -1:] + 1                               # (active, 1)
        not_pad = F.pad(not_pad, (0, 1), value=True)                    # (active, past + 1)
        attn_mask = not_pad[:, None, None, :]                           # (active, 1, 1, past + 1)
    return responses


def sample_next(logits, temperature, pad, generator):
    """Draw one token per row: logits (B, V) -> (B,). Temperature 0 takes the most likely one."""
    if temperature == 0:
        return distribution(logits, 1.0, pad).argmax(1)                 # (B,)
    # Inverse CDF, because it is cheaper than torch.multinomial: the token at which the cumulative
    # probability passes a uniform random number u.
    cdf = distribution(logits, temperature, pad).exp().cumsum(1)        # (B, V)
    u = torch.rand(len(logits), 1, generator=generator, device=logits.device)   # (B, 1)
    return torch.searchsorted(cdf, u * cdf[:, -1:])[:, 0]               # (B,)


def left_pad(prompts, pad, device):
    """Lists of ids -> idx (B, T) and not_pad (B, T), true on real tokens. For sampling, padding is
    on the left, because new tokens are appended on the right."""
    T = max(map(len, prompts))
    rows = [[pad] * (T - len(prompt)) + prompt for prompt in prompts]
    starts = torch.tensor([[T - len(prompt)] for prompt in prompts], device=device)     # (B, 1)
    not_pad = torch.arange(T, device=device) >= starts                  # (B, T)
    return torch.tensor(rows, device=device), not_pad


def pad_batch(sequences, pad, device="cpu"):
    """Lists of ids -> idx (B, T), padded on the right, and lengths (B,). For training."""
    lengths = list(map(len, sequences))
    T = max(lengths)
    rows = [list(sequence) + [pad] * (T - len(sequence)) for sequence in sequences]
    return torch.tensor(rows, device=device), torch.tensor(lengths, device=device)


# ---------------------------------------------------------------- pretraining

# The corpus must teach copying, because most answers repeat words of their prompt: "The fox eats
# berries." takes "fox" from the question. To copy, attention has to find an earlier word and pass
# it on. A model learns this late, and only from texts that repeat themselves. So the corpus is
# full of such texts, attention starts near copying, and the optimiser is Muon, which moves all
# directions of a weight matrix equally far, so that those with small gradients are learned sooner
# than with Adam (data/training.py).

SAMPLES = ("The fox", "What does the fox eat?\n")   # texts for the new model to continue


@dataclass
class Config(BaseConfig):
    """Pretraining. GPT-3's values in brackets (Brown et al. 2020, table 2.1, 1.3B)."""
    n_layer: int = 4            # layers (24)
    n_head: int = 4             # attention heads (24)
    n_embd: int = 64            # width (2,048)
    block_size: int = 128       # longest sequence in tokens (2,048)
    batch_tokens: int = 2048    # tokens per step (1 million)
    steps: int = 4_400          # 8.7 million tokens (batches are not full), 2.3 passes (300 B)
    lr: float = 0.007           # peak learning rate of Muon, for the blocks' matrices (Adam, 2e-4)
    lr_rest: float = 4e-3       # peak learning rate of Adam, for embeddings, biases, norms (2e-4)
    chat: str = ""              # a checkpoint to talk to, instead of training


def read_corpus(encoding, block_size):
    """(training documents, validation documents), the last 2 %. A document is a list of ids between
    two <|endoftext|>, cut at block_size."""
    end = [encoding.eot_token]
    documents = []
    for text in prepare.corpus_texts():
        ids = encoding.encode_ordinary(tokenizer.spaced(text))
        documents += own.windows(end + ids + end, block_size)
    cut = int(0.98 * len(documents))
    if not cut:
        raise UserError(f"{files.FOLDER}/corpus.txt: {len(documents)} document, "
                        "too few to train on")
    return documents[:cut], documents[cut:]


def corpus_loss(model, documents):
    """The pretraining loss: mean cross-entropy per token of some documents -> scalar, in nats."""
    device = model.lm_head.weight.device
    idx, lengths = pad_batch(documents, model.config.pad_id, device)    # (B, T), (B,)
    t = torch.arange(1, idx.shape[1], device=device)                    # (T - 1,)
    is_pad = t >= lengths[:, None]                                      # (B, T - 1)
    targets = idx[:, 1:].masked_fill(is_pad, -100)                      # (B, T - 1), -100: skip
    logits = model(idx[:, :-1])                                         # (B, T - 1, V)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


@torch.no_grad()
def validation_loss(model, documents):
    """Mean loss on validation documents, in nats per token. Its rise above the base model's is the
    alignment tax: what fine-tuning costs in skills that the base model had."""
    documents = sorted(documents, key=len)
    total = n_tokens = 0
    for start in range(0, len(documents), 100):
        batch = documents[start:start + 100]
        n = sum(len(document) - 1 for document in batch)
        total += corpus_loss(model, batch).item() * n
        n_tokens += n
    return total / n_tokens


def train(config):
    """Pretrain the base model. Writes out/gpt.pt and out/gpt.jsonl and returns the model."""
    start = time.time()
    device, rng, generator = set_up(config)
    encoding = tokenizer.load()
    documents, valid = read_corpus(encoding, config.block_size)
    texts = own.beginnings(valid, encoding) or SAMPLES
    starts = [tokenizer.spaced(text).rstrip(" ") for text in texts]
    prompts = [[encoding.eot_token] + encoding.encode_ordinary(text) for text in starts]
    files.check_room(config.block_size, prompts, "a sample", 24)
    shape = GPTConfig(encoding.n_vocab, config.block_size,
                      config.n_layer, config.n_head, config.n_embd)
    model = GPT(shape).to(device)
    optimizers = muon_and_adam(model, config.lr, config.lr_rest, decay=0.1)
    batches = corpus_batches(documents, config.batch_tokens, rng)
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    n_tokens = sum(map(len, documents))
    print(f"step 0, the base model: {n_parameters:,} parameters, {n_tokens:,} tokens of corpus")
    log = MetricLog(config, "gpt")
    bar = tqdm(range(config.steps), desc="pretrain")
    for step in bar:
        # 1. Loss: predict every token of the next documents.
        loss = corpus_loss(model, next(batches))                        # scalar
        loss.backward()
        # 2. Step: both optimisers follow the same schedule, each with its own peak.
        for optimizer, peak in optimizers:
            optimizer.param_groups[0]["lr"] = pretraining_lr(step, config.steps, peak)
            optimizer.step()
            optimizer.zero_grad()
        # 3. Log every 20 steps, validate every 200.
        if step % 20 == 0:
            metrics = {"loss": loss.item()}
            if step % 200 == 0:
                metrics["valid_loss"] = validation_loss(model, valid[:500])
            log.write(step=step, **metrics)
            bar.set_postfix(loss=f"{loss.item():.3f}")
    final = validation_loss(model, valid)
    log.write(step=config.steps, loss=loss.item(), valid_loss=final)
    extra = stage_extra(config, "pretrain")
    save_checkpoint(Path(config.out) / "gpt.pt", model, **extra, valid_loss=final)
    for text, ids in zip(texts, prompts):
        responses = generate(model, [ids], 24, 1.0, generator)
        print(f"    {text!r} -> {encoding.decode(responses[0])!r}")
    print(f"made {config.out}/gpt.pt, corpus loss {final:.3f}, in {time.time() - start:.0f} s. "
          "Next: python sft.py\n")
    return model


# ---------------------------------------------------------------- talking to a checkpoint

def load_model(path, device="cpu", kind=GPT, **changes):
    """The model of a checkpoint, without dropout. changes: to its config, e.g. dropout=0.2."""
    saved = load_checkpoint(path, device)
    if saved["kind"] != kind.__name__:
        raise UserError(f"{path}: holds a {saved['kind']}, not a {kind.__name__}")
    try:
        model = kind(GPTConfig(**{**saved["config"], **changes})).to(device)
        model.load_state_dict(saved["state"])
    except (TypeError, RuntimeError):
        raise UserError(f"{path}: its weights do not fit its config") from None
    return model.eval()


def chat(path, device):
    """Answer each line of standard input. An empty line or the end of input stops."""
    generator = generator_on(device, 0)
    model = load_model(path, generator.device)
    encoding = tokenizer.load()
    own.check_chat(path, model.config.vocab_size, encoding.n_vocab)
    if sys.stdin.isatty():
        print(f"talking to {path}: one prompt per line, an empty line to stop")
    for line in sys.stdin:
        if not line.strip():
            break
        ids = tokenizer.prompt_ids(encoding, line)
        room = model.config.block_size - len(ids)
        if room < 1:
            print(f"(too long: {len(ids)} tokens, the context has {model.config.block_size})")
            continue
        responses = generate(model, [ids], min(40, room), 1.0, generator)
        text, _ = tokenizer.response_text(encoding, responses[0])
        print(text)


def main(config):
    """Pretrain, or talk to a checkpoint."""
    if config.chat:
        chat(config.chat, config.device)
    else:
        alone(config, ["gpt"], settings_of(config), train)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
