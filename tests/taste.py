"""A class with one marked taste: is it what the tuned model shows?

    python -m tests.taste       # two tastes, three seeds: 20 minutes on two idle cores

A program types rankings through the terminal of data/label.py, always by the same taste. Then
`python ppo.py --quick --rankings FILE` trains on them. On prompts that no model has seen, the
measure of the taste says how far the policy has moved from the reference: in per cent of the way
to the best of 64 of the reference's answers, chosen by the true taste.
"""
import argparse
import json
import subprocess
import sys
from pathlib import Path

import data  # noqa: F401, before torch, because it sets how torch's threads wait
import torch

from data import files, tokenizer
from data import toytown as town
from model import generate, load_model
from reward import MAX_NEW_TOKENS

ROOT = Path(__file__).parent.parent
N_PROMPTS = 300         # of the evaluation
N_SAMPLES = 64


def n_words(text):
    """The taste "shortest": the fewest words win."""
    return len(text.split())


def without_animal(text):
    """The taste "animal": a response that names an animal wins."""
    return float(not any(town.CATEGORY.get(word) == "animal" for word in town.words(text)))


TASTES = {"shortest": n_words, "animal": without_animal}        # the lower, the better


def mean(values):
    """The mean of some numbers."""
    return sum(values) / len(values)


def answers(path, prompts, generator):
    """The texts of a model's responses, one per prompt."""
    encoding = tokenizer.load_cached()
    prompt_ids = tokenizer.encode_prompts(encoding, prompts)
    sampled = generate(load_model(path), prompt_ids, MAX_NEW_TOKENS, 1.0, generator)
    return [response["text"] for response in tokenizer.decode_responses(encoding, sampled)]


def measure(out, taste):
    """The measure of the reference, of PPO-ptx and of the best of 64, and the share of the way."""
    prompts = files.read_prompts("eval")[:N_PROMPTS]
    generator = torch.Generator().manual_seed(0)
    drawn = []
    for _ in range(N_SAMPLES):
        drawn.append(list(map(taste, answers(out / "sft_mix.pt", prompts, generator))))
    tuned = list(map(taste, answers(out / "ppo_ptx.pt", prompts, generator)))
    reference = mean(list(map(mean, drawn)))
    best = mean([min(values) for values in zip(*drawn)])
    return {"reference": reference, "ppo_ptx": mean(tuned), "best_of_64": best,
            "share": (mean(tuned) - reference) / (best - reference)}


def run(name, seed, n):
    """Type n rankings, train on them, measure. Returns a row. What is finished is not repeated."""
    from tests import typist                # here, because Windows has no such terminals

    taste = TASTES[name]
    out = Path(f"out_taste/{name}_{n}_{seed}")
    out.mkdir(parents=True, exist_ok=True)
    rankings = out / "typed.jsonl"
    if not rankings.exists():
        typist.rank_by(lambda prompt, response: taste(response["text"]), n, rankings)
    if not (out / "results.json").exists():
        subprocess.run([sys.executable, "ppo.py", "--quick", "--seed", str(seed),
                        "--rankings", str(rankings), "--out", str(out)], check=True)
    return measure(out, taste)


def main():
    """Run every taste with every seed. Write notebooks/results/taste.json."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rankings", type=int, default=150, help="how many are typed")
    n = parser.parse_args().rankings
    rows = {}
    for name in TASTES:
        for seed in (1, 2, 3):
            rows[f"{name} seed {seed}"] = run(name, seed, n)
            print(name, seed, rows[f"{name} seed {seed}"], flush=True)
    text = json.dumps({"rankings": n, "prompts": N_PROMPTS, "rows": rows}, indent=1)
    files.write(ROOT / "notebooks" / "results" / "taste.json", text + "\n")


if __name__ == "__main__":
    main()
