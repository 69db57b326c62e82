"""How training gets fast on a CPU: batches, learning rates, Muon, the initial attention.

Nothing in this file is needed to understand RLHF. The scripts call it.
"""
import math

import torch

# ---------------------------------------------------------------- batches of similar length


def batches_of_like_length(items, size, length, rng):
    """All items in batches of `size` and similar length, in random order. The rest is left out.
    Items are sorted within 50 batches only, so that every epoch has other batches."""
    items = rng.sample(items, len(items))
    batches = []
    for start in range(0, len(items), 50 * size):
        part = sorted(items[start:start + 50 * size], key=length)
        for i in range(0, len(part) - size + 1, size):
            batches.append(part[i:i + size])
    return rng.sample(batches, len(batches))


def corpus_batches(documents, batch_tokens, rng):
    """Endless batches (lists of documents) of about `batch_tokens` tokens and similar length.

    GPT-3 packs documents into full windows. Our documents are short, and each has a row of its
    own, because prompts stand alone later, too: at the first position, with nothing before them."""
    while True:
        documents = rng.sample(documents, len(documents))
        for start in range(0, len(documents), 4_000):
            batches = []
            batch = []
            for document in sorted(documents[start:start + 4_000], key=len):
                if batch and (len(batch) + 1) * len(document) > batch_tokens:
                    batches.append(batch)
                    batch = []
                batch.append(document)
            batches.append(batch)
            yield from rng.sample(batches, len(batches))


def by_length(lengths, size):
    """Episode numbers in groups of `size`, similar lengths together, so that little is padding.

    lengths: (B,) of PPO's episodes."""
    return lengths.argsort(stable=True).split(size)


def trimmed(batch, episodes):
    """These episodes of PPO's batch (a LongTensor of numbers), cut to the longest of them."""
    T = int(batch["lengths"][episodes].max())
    R = int(batch["mask"][episodes].sum(1).max())
    part = {}
    for name, x in batch.items():
        if torch.is_tensor(x):
            part[name] = x[episodes] if x.dim() == 1 else x[episodes, :T if name == "idx" else R]
    return part


# ---------------------------------------------------------------- learning rates


def cosine(step, steps, peak, warmup=0):
    """Learning rate of SFT and reward model: a cosine down to 10 % of the peak (C.1, C.2), after a
    linear warm-up from a tenth (ours, in reward.py only)."""
    if step < warmup:
        return peak * (0.1 + 0.9 * step / warmup)
    angle = math.pi * (step - warmup) / max(1, steps - warmup)
    return peak * (0.1 + 0.45 * (1 + math.cos(angle)))


def pretraining_lr(step, steps, peak):
    """Learning rate of pretraining: warm-up over 2 %, constant, down to a twentieth over 40 %. The
    constant part is long, because copying emerges while the rate is high."""
    warm_up = (step + 1) / (0.02 * steps)
    cool_down = max(0.05, (steps - step) / (0.4 * steps))
    return peak * min(warm_up, 1, cool_down)


# ---------------------------------------------------------------- the optimiser


def muon_and_adam(model, lr, lr_rest, decay=0.0):
    """Muon for the matrices of the blocks, Adam for the rest: [(optimiser, peak learning rate)].

    For pretraining and the reward model, which have new abilities to learn. SFT and PPO take few
    steps from weights that already work, and use Adam like the paper."""
    named = dict(model.named_parameters())
    matrices = {name: p for name, p in named.items() if ".h." in name and p.dim() == 2}
    rest = [p for name, p in named.items() if name not in matrices]
    muon = Muon(matrices.values(), weight_decay=decay / 10)
    adam = torch.optim.AdamW(rest, betas=(0.9, 0.95), weight_decay=decay, fused=True)
    return [(muon, lr), (adam, lr_rest)]


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalised steps (Jordan et al. 2024).

    A few large singular values dominate most gradient matrices. Orthogonalising sets all of them to
    1, so that weak directions move as far in each step as strong ones, and are learnt sooner.
    torch.optim.Muon does the same, but more slowly: in bfloat16 and one matrix at a time."""

    def __init__(self, matrices, lr=1e-3, weight_decay=0.0):
        super().__init__(matrices, dict(lr=lr, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        group = self.param_groups[0]
        by_shape = {}
        for parameter in group["params"]:
            by_shape.setdefault(parameter.shape, []).append(parameter)
        for (rows, columns), matrices in by_shape.items():
            grads = torch.stack([matrix.grad for matrix in matrices])   # (n, rows, columns)
            momentum = self.state[matrices[0]].setdefault("momentum", torch.zeros_like(grads))
            momentum.lerp_(grads, 0.05)                                 # (n, rows, columns)
            look_ahead = grads.lerp(momentum, 0.95)                     # Nesterov's momentum
            updates = orthogonal(look_ahead)                            # (n, rows, columns)
            scale = group["lr"] * max(1, rows / columns) ** 0.5
            shrink = 1 - group["lr"] * group["weight_decay"]
            for matrix, update in zip(matrices, updates):
                matrix.mul_(shrink).sub_(update, alpha=scale)           # (rows, columns)


def orthogonal(x):
    """Matrices x (n, rows, columns) -> the same with all singular values near 1.

    Five Newton-Schulz steps with Jordan's coefficients. Each step maps a singular value s to
    3.4445 s - 4.7750 s^3 + 2.0315 s^5, which draws it towards 1."""
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)            # (n, rows, columns)
    for _ in range(5):
        gram = x @ x.mT                                                 # (n, rows, rows)
        polynomial = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, polynomial, x, beta=3.4445)                # (n, rows, columns)
    return x.mT if tall else x


# ---------------------------------------------------------------- the initial attention


@torch.no_grad()
def start_near_copying(transformer, std):
    """Let attention start by looking for nearby occurrences of the current token and copying them.

    GPT-2 does not start like this. It is a mimetic initialisation (after Trockman and Kolter 2023),
    and all of it is then trained. Copying emerges sooner."""
    length, width = transformer.wpe.weight.shape
    # Positions start as sines and cosines (Vaswani et al. 2017, 3.5): nearby ones are similar.
    frequencies = 10_000 ** (torch.arange(0, width, 2) / width)         # (C / 2,)
    angles = torch.arange(length)[:, None] / frequencies                # (length, C / 2)
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)              # (length, C)
    transformer.wpe.weight.copy_(math.sqrt(2) * std * waves)
    for block in transformer.h:
        # Keys equal queries, so that a token attends to tokens like itself.
        queries, keys, values = block.attn.c_attn.weight.split(width)   # (C, C) each
        keys.copy_(queries)
        # Output weights start halfway to undoing the values, so that what is found is passed on.
        block.attn.c_proj.weight.lerp_(values.T, 0.5)
