"""Step 1. Supervised fine-tuning: the base model learns from demonstrations what an answer looks like.

    out/gpt.pt + data/demonstrations.jsonl -> out/sft_epochs/01.pt ... 16.pt, out/sft_mix.pt

Section 3.5: fine-tuning on demonstrations by labelers, 16 epochs, residual dropout 0.2, cosine schedule. The
loss is the base model's own, restricted to the response (the prompt is given, not predicted):

    loss = - sum_t m_t log pi(y_t | x, y_<t) / sum_t m_t          m_t = 1 on response tokens, end-of-text included

Two models come out of it, as in the paper:
- the SFT baseline: 16 epochs, every epoch's weights kept. In the paper the validation loss is best after one (here after
  5 to 13, then flat), yet it trains on and lets the reward model choose the epoch (C.1); reward.py does so and writes out/sft.pt;
- the model that RL starts from (C.3): with 10 % pretraining data mixed in, out/sft_mix.pt. PPO's KL penalty is
  measured against it.

People make slips: four in ten demonstrations ramble on, err, insult or break off. SFT imitates those too. That is what the
next two steps are for.
"""
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

from data import files, tokenizer
from data.files import MetricLog, UserError, alone, require, save_checkpoint, settings_of, stage_extra
from data.flags import BaseConfig, run_script, set_up
from model import (
    batches_of_like_length, corpus_batches, corpus_loss, cosine, load_model, pad_batch,
    read_corpus
)


@dataclass
class Config(BaseConfig):
    """Settings, the paper's value in brackets (C.1, C.3)."""
    epochs: int = 16            # passes over the demonstrations (16)
    batch_size: int = 32        # demonstrations of a step (32)
    lr: float = 1e-3            # peak, cosine to 10 % (9.65e-6 for 1.3B and 6B; sft_mix 5e-6 for 1.3B): a tiny model takes larger steps
    dropout: float = 0.2        # on the residual branches (0.2)
    mix_epochs: int = 8         # epochs of the model that RL starts from (2, of 12,725 demonstrations; after 2 of ours it is much worse)
    mix: float = 0.1            # share of corpus tokens mixed into it (10 %)


def read_demonstrations(encoding, path=None):
    """Pairs (prompt ids, response ids); the response ends with <|endoftext|>."""
    return [(tokenizer.prompt_ids(encoding, row["prompt"]), tokenizer.response_ids(encoding, row["completion"]))
            for row in files.read_jsonl(path or files.FOLDER / "demonstrations.jsonl", prompt=str, completion=str)]


def sft_batch(pairs, pad, device="cpu"):
    """Pairs (prompt ids, response ids) -> idx (B, T), mask (B, T - 1): mask[:, t] is 1 where idx[:, t + 1] is a response token."""
    idx, lengths = pad_batch([prompt + response for prompt, response in pairs], pad, device)    # (B, T), (B,)
    starts = torch.tensor([[len(prompt)] for prompt, _ in pairs], device=device)                # (B, 1)
    t = torch.arange(1, idx.shape[1], device=device)                                            # (T - 1,)
    return idx, ((t >= starts) & (t < lengths[:, None])).float()


def sft_loss(model, idx, mask):
    """Cross-entropy per response token: idx (B, T), mask (B, T - 1) -> scalar, in nats (equation above)."""
    select = mask > 0                                                                           # (B, T - 1)
    return F.cross_entropy(model(idx[:, :-1], select), idx[:, 1:][select])


@torch.no_grad()
def mean_loss(model, pairs):
    """The loss over all pairs, without dropout, in nats a token."""
    was_training = model.training
    model.eval()
    pad, device = model.config.pad_id, model.lm_head.weight.device
    losses = [(sft_loss(model, *(batch := sft_batch(pairs[i:i + 100], pad, device))).item(), batch[1].sum().item())
              for i in range(0, len(pairs), 100)]
    model.train(was_training)
    return sum(loss * n for loss, n in losses) / sum(n for _, n in losses)


def check(config, block_size):
    """What SFT needs, so that it is known before anything is trained; block_size: of the base
    model. Raises UserError."""
    pairs = read_demonstrations(tokenizer.load())
    most = len(pairs) - len(pairs) // 10                                # a tenth validates
    if not len(pairs) // 10 or config.batch_size > most:
        raise UserError(f"--batch_size {config.batch_size}: there are only {most} demonstrations "
                        "to train on")
    if config.mix >= 1:
        raise UserError(f"--mix {config.mix}: a share of all tokens, less than 1")
    # The last token is no input
    sequences = [prompt + response for prompt, response in pairs]
    files.check_room(block_size, sequences, "the longest demonstration", -1)


def finetune(config, name, epochs, mix, keep):
    """One fine-tuning run from the base model. mix: corpus tokens as a share of all tokens. Calls keep(epoch, model,
    validation loss) after each; returns the model."""
    device, rng, _ = set_up(config)
    encoding = tokenizer.load()
    model = load_model(require(config, "gpt", "model.py"), device, dropout=config.dropout).train()
    check(config, model.config.block_size)
    pairs = read_demonstrations(encoding)
    valid_pairs, pairs = pairs[:len(pairs) // 10], pairs[len(pairs) // 10:]
    tokens = config.batch_size * sum(len(response) for _, response in pairs) / len(pairs)       # of a batch, on average
    corpus = corpus_batches(read_corpus(encoding, model.config.block_size)[0], tokens * mix / (1 - mix), rng) if mix else None
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.9, 0.95), fused=True)             # appendix C
    steps_per_epoch, step = len(pairs) // config.batch_size, 0
    log, bar = MetricLog(config, name), tqdm(total=epochs * steps_per_epoch, desc=name)
    for epoch in range(1, epochs + 1):
        for batch in batches_of_like_length(pairs, config.batch_size, lambda pair: len(pair[0] + pair[1]), rng):
            optimizer.param_groups[0]["lr"] = cosine(step, epochs * steps_per_epoch, config.lr)
            idx, mask = sft_batch(batch, model.config.pad_id, device)
            loss = sft_loss(model, idx, mask)
            objective = loss
            if mix:         # about `mix` of all tokens are corpus, and every token weighs the same
                documents = next(corpus)
                n_corpus, n = sum(len(d) - 1 for d in documents), mask.sum()
                objective = (n * loss + n_corpus * corpus_loss(model, documents)) / (n + n_corpus)
            optimizer.zero_grad()
            objective.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)               # [not stated]
            optimizer.step()
            log.write(step=step, epoch=epoch, loss=loss.item())
            step += 1
            bar.update()
        valid_loss = mean_loss(model, valid_pairs)
        log.write(step=step, epoch=epoch, loss=loss.item(), valid_loss=valid_loss)
        bar.set_postfix(loss=f"{loss.item():.3f}", valid=f"{valid_loss:.3f}")
        keep(epoch, model, valid_loss)
    bar.close()
    return model.eval()


def train(config):
    """Fine-tunes both models; keeps every epoch of the first."""
    start, losses = time.time(), []
    print("step 1, supervised fine-tuning on demonstrations")
    require(config, "gpt", "model.py")
    extra, folder = stage_extra(config, "sft", made_from=["gpt"]), Path(config.out) / "sft_epochs"

    def keep(epoch, model, valid_loss):
        if epoch == 1:              # an earlier run's models go now that there are new ones, and all of them: two runs must not mix
            for old in [Path(config.out) / "sft_mix.pt", *folder.glob("*.pt")]:
                # And nothing that somebody else has put there
                if old.stem == "sft_mix" or old.stem.isdecimal():
                    old.unlink(missing_ok=True)
        losses.append(valid_loss)
        save_checkpoint(folder / f"{epoch:02d}.pt", model, **extra, epoch=epoch, valid_loss=valid_loss)

    finetune(config, "sft", config.epochs, 0.0, keep)
    mixed = finetune(config, "sft_mix", config.mix_epochs, config.mix, lambda *_: None)
    save_checkpoint(Path(config.out) / "sft_mix.pt", mixed, **extra)
    best = min(range(len(losses)), key=losses.__getitem__)
    print(f"made {config.out}/sft_epochs/*.pt (validation loss {losses[best]:.3f} at epoch {best + 1}, {losses[-1]:.3f} at the last) and "
          f"{config.out}/sft_mix.pt in {time.time() - start:.0f} s. Next: python reward.py\n")


def main(config):
    """The command line."""
    alone(config, ["sft_mix"], settings_of(config), train)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
