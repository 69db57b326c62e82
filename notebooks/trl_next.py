"""On from here: TRL's trainers on an exported model and data, 20 steps each, on two processes.

    accelerate launch --multi_gpu --num_processes 2 -m notebooks.trl_next sft MODEL DATA
    ... reward MODEL DATA
    ... rloo MODEL DATA --reward SCORER

The option is called multi_gpu, but the processes are on the CPU (`use_cpu` below). With `--cpu`
accelerate 1.15.0 starts a single process, unless MPI is installed.

MODEL and SCORER are folders that `python -m data.export` wrote, DATA is one of its option --trl.
Ends with exit code 1 if the loss did not fall, or with rloo if the reward did not rise. Needs TRL
(`pip install trl`).
"""
import argparse
import sys

import torch
from datasets import load_dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import (
    RewardConfig, RewardTrainer, RLOOConfig, RLOOTrainer, SFTConfig, SFTTrainer
)

STEPS = 20
SETTINGS = dict(output_dir="out_trl", max_steps=STEPS, logging_steps=1, save_strategy="no",
                report_to="none", disable_tqdm=True, use_cpu=True, bf16=False,
                gradient_checkpointing=False, lr_scheduler_type="constant")


def rows(chosen, name, n=2_000):
    """The first rows of one file of DATA."""
    path = f"{chosen.data}/{name}.jsonl"
    return load_dataset("json", data_files=path, split=f"train[:{n}]")


def sft(chosen):
    """Supervised fine-tuning. The loss is on the completion, as in sft.py."""
    config = SFTConfig(**SETTINGS, learning_rate=1e-3, per_device_train_batch_size=16,
                       max_length=128)
    return SFTTrainer(chosen.model, config, train_dataset=rows(chosen, "sft")), "loss"


def reward(chosen):
    """A reward model from a language model, one comparison at a time."""
    config = RewardConfig(**SETTINGS, learning_rate=1e-3, per_device_train_batch_size=32,
                          max_length=128)
    return RewardTrainer(chosen.model, config, train_dataset=rows(chosen, "preferences")), "loss"


def rloo(chosen):
    """RL with REINFORCE and a leave-one-out baseline. Here the mean reward should rise.

    Each step has the same 32 prompts, because prompts differ more than 20 steps can improve."""
    config = RLOOConfig(**SETTINGS, learning_rate=1e-3, per_device_train_batch_size=64,
                        num_generations=4, max_completion_length=32, temperature=1.0, beta=0.02)
    trainer = RLOOTrainer(chosen.model, reward_funcs=scorer(chosen.reward), args=config,
                          train_dataset=rows(chosen, "prompts", 32))
    return trainer, "reward"


def scorer(folder):
    """The reward model as a function for `reward_funcs`.

    Given the model itself, TRL would score texts without the <|endoftext|> at both ends. So we
    score the ids that were sampled, after those of the prompt, as in ppo.py."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def scores(prompts, completion_ids, **_):
        sequences = []
        for prompt, ids in zip(prompts, completion_ids):
            sequences.append(torch.tensor(tokenizer(prompt)["input_ids"] + list(ids)))
        idx = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True,
                                              padding_value=tokenizer.pad_token_id)     # (B, T)
        with torch.no_grad():
            return model(idx).logits[:, 0].tolist()

    return scores


def main():
    """Train, print how the first and the last steps went, and compare them."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["sft", "reward", "rloo"])
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--reward", help="with rloo: the folder of a reward model")
    parser.add_argument("--save", help="folder for the trained model")
    chosen = parser.parse_args()
    if chosen.step == "rloo" and not chosen.reward:
        parser.error("rloo needs --reward")
    trainer, metric = {"sft": sft, "reward": reward, "rloo": rloo}[chosen.step](chosen)
    trainer.train()
    values = [line[metric] for line in trainer.state.log_history if metric in line]
    first = sum(values[:5]) / 5
    last = sum(values[-5:]) / 5
    if trainer.is_world_process_zero():
        print(f"{chosen.step} on {trainer.accelerator.num_processes} processes: mean {metric} of "
              f"the first 5 steps {first:.3f}, of the last 5 of {len(values)} {last:.3f}")
    if chosen.save:
        trainer.save_model(chosen.save)
    improved = last > first if metric == "reward" else last < first
    sys.exit(0 if improved else 1)


if __name__ == "__main__":
    main()
