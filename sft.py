"""Step 1. Supervised fine-tuning (SFT): the base model learns what an answer looks like.

    out/gpt.pt + data/demonstrations.jsonl -> out/sft_epochs/01.pt ... 16.pt, out/sft_mix.pt

A demonstration is a prompt with an answer written by a labeler. Labelers are people who write and
rank answers; ours are simulated (data/labeler.py). Ouyang et al. 2022, arXiv:2203.02155, train for
16 epochs with residual dropout 0.2 and a cosine schedule (section 3.5; [not stated] marks settings
for which the paper gives no value). The loss is the base model's, but on the response y only,
because the prompt x is given, and SFT should not teach to write prompts:

    loss = - sum_t m_t log pi(y_t | x, y_<t) / sum_t m_t        m_t = 1 on response tokens, else 0

Two kinds of model come out of it:
- The SFT baseline, out/sft.pt, is what PPO is compared with. In the paper its validation loss is
  best after one epoch (here after 5 to 13, then flat), but people prefer the answers of later
  epochs. So every epoch is kept, and in step 2 the reward model chooses one by its answers (C.1).
- The reference, out/sft_mix.pt, is trained for fewer epochs, with 10 % pretraining data mixed in,
  which helps PPO (C.3): it forgets less of the corpus than the baseline. So PPO starts from it, and
  its KL penalty measures how far the policy (the model that PPO trains) has moved away from it. It
  is not the baseline, because PPO should be compared with the best answers that SFT can give.

Labelers make mistakes, as real ones do: 40 % of the demonstrations ramble, are wrong, are rude or
stop too early. Nobody knows which, so SFT imitates them. In the next steps labelers compare the
model's own answers, which also says what not to do and can lead beyond the demonstrations.
"""
import time
from dataclasses import dataclass
from pathlib import Path

import data  # noqa: F401, before torch, because it sets how torch's threads wait
import torch
import torch.nn.functional as F
from tqdm import tqdm

from data import files, tokenizer
from data.files import MetricLog, alone, require, save_checkpoint, settings_of, stage_extra
from data.flags import BaseConfig, run_script, set_up
from data.training import batches_of_like_length, corpus_batches, cosine
from model import corpus_loss, load_model, pad_batch, read_corpus


@dataclass
class Config(BaseConfig):
    """Settings, the paper's value in brackets (C.1, C.3)."""
    epochs: int = 16            # passes over the demonstrations (16)
    batch_size: int = 32        # demonstrations per step (32)
    lr: float = 1e-3            # peak, cosine to 10 % (1.3B: 9.65e-6, its reference 5e-6);
                                # a tiny model tolerates larger steps
    dropout: float = 0.2        # on the residual branches (0.2)
    mix_epochs: int = 8         # epochs of the reference (2, too few with our 3,000 demonstrations)
    mix: float = 0.1            # corpus share of its tokens (10 %), by tokens like the loss


def read_demonstrations(encoding, path=None):
    """Pairs (prompt ids, response ids). The response ends with <|endoftext|>."""
    path = path or files.FOLDER / "demonstrations.jsonl"
    rows = files.read_jsonl(path, prompt=str, completion=str)
    return [(tokenizer.prompt_ids(encoding, row["prompt"]),
             tokenizer.response_ids(encoding, row["completion"])) for row in rows]


def sft_batch(pairs, pad, device="cpu"):
    """Pairs (prompt ids, response ids) -> idx (B, T) and mask (B, T - 1).

    mask[:, t] is 1 where the next token, idx[:, t + 1], is a response token:
        idx     <end>  Who  is  here  \\n  Ann  is  .  <end>  <pad>
        mask             0   0     0   0    1   1  1      1      0      (below the next token)"""
    idx, lengths = pad_batch([prompt + response for prompt, response in pairs], pad, device)
    starts = torch.tensor([[len(prompt)] for prompt, _ in pairs], device=device)    # (B, 1)
    t = torch.arange(1, idx.shape[1], device=device)                    # (T - 1,)
    return idx, ((t >= starts) & (t < lengths[:, None])).float()


def sft_loss(model, idx, mask):
    """Cross-entropy per response token: idx (B, T), mask (B, T - 1) -> scalar, in nats."""
    select = mask > 0                                                   # (B, T - 1)
    logits = model(idx[:, :-1], select)                                 # (n, V)
    return F.cross_entropy(logits, idx[:, 1:][select])


@torch.no_grad()
def mean_loss(model, pairs):
    """The loss over all pairs, without dropout, in nats per token."""
    was_training = model.training
    model.eval()
    device = model.lm_head.weight.device
    total = n_tokens = 0
    for start in range(0, len(pairs), 100):
        idx, mask = sft_batch(pairs[start:start + 100], model.config.pad_id, device)
        n = mask.sum().item()
        total += sft_loss(model, idx, mask).item() * n
        n_tokens += n
    model.train(was_training)
    return total / n_tokens


def finetune(config, name, epochs, mix, keep):
    """Fine-tune the base model and return it. mix: corpus tokens as a share of all tokens. Calls
    keep(epoch, model, validation loss) after each epoch, so that the caller can save that epoch."""
    device, rng, _ = set_up(config)
    encoding = tokenizer.load()
    # Dropout is on in SFT only, because only SFT makes many passes over so few texts.
    model = load_model(require(config, "gpt", "model.py"), device, dropout=config.dropout).train()
    pairs = read_demonstrations(encoding)
    files.check_sft(config, pairs, model.config.block_size)
    n_valid = len(pairs) // 10
    valid_pairs = pairs[:n_valid]
    train_pairs = pairs[n_valid:]
    if mix:
        response_tokens = sum(len(response) for _, response in train_pairs)
        tokens = config.batch_size * response_tokens / len(train_pairs)     # per batch, on average
        # x corpus tokens are the share x / (x + tokens) = mix of all tokens
        documents, _ = read_corpus(encoding, model.config.block_size)
        corpus = corpus_batches(documents, tokens * mix / (1 - mix), rng)
    # Adam, like the paper, because few steps are needed from trained weights.
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.9, 0.95), fused=True)
    steps = epochs * (len(train_pairs) // config.batch_size)
    step = 0
    log = MetricLog(config, name)
    bar = tqdm(total=steps, desc=name)
    for epoch in range(1, epochs + 1):
        batches = batches_of_like_length(train_pairs, config.batch_size,
                                         lambda pair: len(pair[0] + pair[1]), rng)
        for batch in batches:
            # 1. Batch.
            idx, mask = sft_batch(batch, model.config.pad_id, device)   # (B, T), (B, T - 1)
            # 2. Loss, averaged with the corpus loss so that every token has the same weight.
            loss = sft_loss(model, idx, mask)                           # scalar
            objective = loss
            if mix:
                documents = next(corpus)
                n = mask.sum()
                n_corpus = sum(len(document) - 1 for document in documents)
                corpus_part = n_corpus * corpus_loss(model, documents)  # scalar
                objective = (n * loss + corpus_part) / (n + n_corpus)   # scalar
            # 3. Step: the learning rate falls along one cosine over all epochs.
            optimizer.param_groups[0]["lr"] = cosine(step, steps, config.lr)
            optimizer.zero_grad()
            objective.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)     # [not stated]
            optimizer.step()
            log.write(step=step, epoch=epoch, loss=loss.item())
            step += 1
            bar.update()
        # 4. Validate after each epoch, and hand the model over.
        valid_loss = mean_loss(model, valid_pairs)
        log.write(step=step, epoch=epoch, loss=loss.item(), valid_loss=valid_loss)
        bar.set_postfix(loss=f"{loss.item():.3f}", valid=f"{valid_loss:.3f}")
        keep(epoch, model, valid_loss)
    bar.close()
    return model.eval()


def train(config):
    """Fine-tune twice: save every epoch of the first run for the baseline, then the reference."""
    start = time.time()
    print("step 1, supervised fine-tuning on demonstrations")
    require(config, "gpt", "model.py")
    out = Path(config.out)
    extra = stage_extra(config, "sft", made_from=["gpt"])
    losses = []

    def keep(epoch, model, valid_loss):
        if epoch == 1:
            files.delete_sft(config)        # of an earlier run, so that two runs never mix
        losses.append(valid_loss)
        path = out / "sft_epochs" / f"{epoch:02d}.pt"
        save_checkpoint(path, model, **extra, epoch=epoch, valid_loss=valid_loss)

    finetune(config, "sft", config.epochs, 0.0, keep)
    reference = finetune(config, "sft_mix", config.mix_epochs, config.mix, lambda *_: None)
    save_checkpoint(out / "sft_mix.pt", reference, **extra)
    best = min(losses)
    print(f"made {out}/sft_epochs/*.pt (validation loss {best:.3f} at epoch "
          f"{losses.index(best) + 1}, {losses[-1]:.3f} at the last) and {out}/sft_mix.pt in "
          f"{time.time() - start:.0f} s. Next: python reward.py\n")


def main(config):
    """The command line."""
    alone(config, ["sft_mix"], settings_of(config), train)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
