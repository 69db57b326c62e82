"""Speed and memory of the project beside transformers and trl, on one thread of a CPU.

    python -m tests.benchmark               # some minutes, prints a table
    python -m tests.benchmark --write       # also writes notebooks/results/benchmark.json and .png
    python -m tests.benchmark --quick       # tiny sizes, one repetition: does it run at all?

Both sides do the same work (tests/workloads.py) in one process, with our setting of malloc
(data/flags.py). They take turns, and the shortest of several times counts, because other programs
can only make a time longer. Memory is measured in a process per side.

Needs two libraries that the scripts do not use: pip install transformers==5.24.0 trl==1.12.0
"""
import argparse
import collections
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from matplotlib.ticker import LogLocator
from torch.utils._python_dispatch import TorchDispatchMode

import ppo
from data import figures, files, tokenizer
from data.figures import BLUE, GREY, ORANGE, plt
from data.flags import guarded, keep_freed_memory
from model import GPT, GPTConfig, corpus_loss, generate
from tests import workloads

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "notebooks" / "results"
FULL = {"repetitions": 5, "batches": 5, "episodes": 512, "generation": 256,
        "widths": [64, 128, 256], "responses": [2, 4, 6, 9],
        "prompts": [128, 256, 512, 1024], "limits": [8, 16, 32, 64]}
QUICK = {"repetitions": 1, "batches": 1, "episodes": 32, "generation": 16,
         "widths": [64, 128], "responses": [2, 4], "prompts": [16, 32], "limits": [8, 16]}


def best_times(works, repetitions):
    """Call all functions in turn. Return the shortest time of each, in milliseconds.

    The first turn only warms up. They alternate, so that a slow moment hits all of them."""
    times = [[] for _ in works]
    for _ in range(repetitions + 1):
        for work, row in zip(works, times):
            start = time.perf_counter()
            work()
            row.append(1000 * (time.perf_counter() - start))
    return [min(row[1:]) for row in times]


# ---------------------------------------------------------------- beside other libraries


def versus(unit, ours, theirs):
    """A row of the comparison. A ratio above 1 says that ours takes less."""
    return {"unit": unit, "ours": ours, "theirs": theirs, "ratio": theirs / ours}


def compare_ppo(sizes):
    """Speed and peak memory of an iteration: rows of the results."""
    rows = files.read_prompts("rl")[:sizes["episodes"]]
    with tempfile.TemporaryDirectory() as folder:
        works = [workloads.our_iteration(rows), workloads.trl_iteration(rows, folder)]
        ours, theirs = best_times(works, sizes["repetitions"])
    per_second = 1000 * len(rows)
    speed = {"unit": "episodes/s", "ours": per_second / ours, "theirs": per_second / theirs,
             "ratio": theirs / ours}
    our_peak = measured_apart("ours", len(rows))
    trl_peak = measured_apart("trl", len(rows))
    return {"PPO": speed,
            "PPO, peak memory": versus("MB", our_peak["all"], trl_peak["all"]),
            "PPO, above the imports": versus("MB", our_peak["above"], trl_peak["above"])}


def compare_steps(sizes):
    """Times of a training step with AdamW: rows of the results."""
    batches = workloads.read_batches(sizes["batches"])
    rows = {}
    for width in (64, 128):
        works = workloads.adamw_steps(width, batches)
        ours, theirs = best_times(works, sizes["repetitions"])
        row = versus("ms", ours / len(batches), theirs / len(batches))
        rows[f"training step, width {width}"] = row
    return rows


def compare_generation(sizes):
    """Times of a batch of responses: rows of the results."""
    prompts = prompt_ids(sizes["generation"])
    policy = workloads.networks()[0]
    endless = workloads.never_ending(policy)
    ended = best_times(workloads.generations(policy, prompts), sizes["repetitions"])
    unended = best_times(workloads.generations(endless, prompts), sizes["repetitions"])
    return {"generation": versus("ms", *ended),
            "generation, none ends": versus("ms", *unended)}


def prompt_ids(n):
    """The first n prompts of RL: lists of ids."""
    rows = files.read_prompts("rl")[:n]
    return tokenizer.encode_prompts(tokenizer.load_cached(), rows)


# ---------------------------------------------------------------- share of bare matrix products


class Products(TorchDispatchMode):
    """Count the matrix products inside a `with` block: {(b, m, k, n): how often}, for b products
    of m x k and k x n matrices. Attention counts as two products forward and four backward."""

    def __init__(self):
        super().__init__()
        self.counts = collections.Counter()

    def multiply_adds(self):
        return sum(math.prod(shape) * count for shape, count in self.counts.items())

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in ("mm", "addmm", "bmm", "baddbmm"):
            left, right = args[-2:]
            b = len(left) if left.dim() == 3 else 1
            self.counts[b, left.shape[-2], left.shape[-1], right.shape[-1]] += 1
        elif name.startswith("_scaled_dot_product"):
            backward = name.endswith("backward")
            query, key = args[1:3] if backward else args[:2]
            B, H, T, d = query.shape
            S = key.shape[2]
            self.counts[B * H, T, d, S] += 2 if backward else 1         # scores
            self.counts[B * H, T, S, d] += 2 if backward else 1         # weighted values
        return function(*args, **(kwargs or {}))


def bare_time(counts, repetitions):
    """The time of the same products as bare torch.mm or torch.bmm, in ms, each at its best."""
    total = 0.0
    for (b, m, k, n), count in counts.items():
        batch = (b,) if b > 1 else ()
        product = torch.bmm if b > 1 else torch.mm
        left = torch.randn(*batch, m, k)
        right = torch.randn(*batch, k, n)
        out = torch.empty(*batch, m, n)

        def work():
            for _ in range(count):
                product(left, right, out=out)

        total += best_times([work], repetitions)[0]
    return total


def share(work, parts, sizes, n=1):
    """A row: the time of work(), which is n steps, and of its products alone, per step. parts:
    {name: Products}."""
    counts = collections.Counter()
    multiply_adds = {}
    for name, products in parts.items():
        counts += products.counts
        multiply_adds[name] = products.multiply_adds() / n
    ms = best_times([work], sizes["repetitions"])[0] / n
    bare_ms = bare_time(counts, sizes["repetitions"]) / n
    return {"ms": ms, "bare_ms": bare_ms, "share": bare_ms / ms, "multiply_adds": multiply_adds}


def share_of_pretraining(sizes):
    """How much of a pretraining step is matrix products: a row of the results."""
    batches = workloads.read_batches(sizes["batches"])
    steps = workloads.pretraining_steps(64, batches)
    with Products() as model:
        workloads.training(corpus_loss, GPT(GPTConfig()), [], batches)()
    with Products() as muon:
        steps()
    muon.counts -= model.counts
    parts = {"forward and backward": model, "Muon": muon}
    return {"share in pretraining": share(steps, parts, sizes, len(batches))}


def share_of_ppo(sizes):
    """How much of an iteration of PPO is matrix products: a row of the results."""
    rows = files.read_prompts("rl")[:sizes["episodes"]]
    rollout, update = workloads.our_ppo(rows)
    policy = workloads.networks()[0]
    generator = torch.Generator().manual_seed(0)            # as in our_ppo: the same responses
    with Products() as generation:
        generate(policy, prompt_ids(len(rows)), ppo.MAX_NEW_TOKENS, 1.0, generator)
    with Products() as scoring:
        batch = rollout()
    scoring.counts -= generation.counts
    with Products() as updating:
        update(batch)
    parts = {"generation": generation, "four scoring passes": scoring, "update": updating}
    return {"share in PPO": share(lambda: update(rollout()), parts, sizes)}


# ---------------------------------------------------------------- growth


def growth(unit, by, x, **lines):
    """A row with points (x, y) of one or two lines, and the p of y ~ x^p from end to end."""
    powers = {}
    for name, y in lines.items():
        powers[name] = math.log(y[-1] / y[0]) / math.log(x[-1] / x[0])
    return {"unit": unit, "by": by, "x": x, "lines": lines, "powers": powers}


def growth_of_training(sizes):
    """Time and memory of training steps by width and by K: rows of the results."""
    batches = workloads.read_batches(sizes["batches"])
    widths = sizes["widths"]
    steps = [workloads.pretraining_steps(width, batches) for width in widths]
    times = best_times(steps, sizes["repetitions"])
    per_step = [ms / len(batches) for ms in times]
    whole = []
    above = []
    for width in widths:
        peak = measured_apart(str(width), 1)
        whole.append(peak["all"])
        above.append(peak["above"])
    fits = [workloads.reward_step(k) for k in sizes["responses"]]
    fit_times = best_times(fits, sizes["repetitions"])
    return {"pretraining step": growth("ms", "width", widths, time=per_step),
            "pretraining, peak memory": growth("MB", "width", widths, all=whole,
                                               above_the_imports=above),
            "reward model step": growth("ms", "responses per prompt", sizes["responses"],
                                        time=fit_times)}


def growth_of_rollouts(sizes):
    """Time of a rollout by prompts and by the limit of a response: rows of the results."""
    rows = files.read_prompts("rl")
    some = rows[:sizes["generation"]]
    limits = sizes["limits"]
    policy = workloads.networks()[0]
    endless = workloads.never_ending(policy)
    works = [workloads.rollout_of(rows[:n], policy, ppo.MAX_NEW_TOKENS) for n in sizes["prompts"]]
    by_prompts = best_times(works, sizes["repetitions"])
    works = [workloads.rollout_of(some, policy, limit) for limit in limits]
    ended = best_times(works, sizes["repetitions"])
    works = [workloads.rollout_of(some, endless, limit) for limit in limits]
    unended = best_times(works, sizes["repetitions"])
    return {"rollout": growth("ms", "prompts", sizes["prompts"], time=by_prompts),
            f"rollout, {len(some)} prompts": growth("ms", "longest response allowed, in tokens",
                                                    limits, most_end=ended, none_ends=unended)}


# ---------------------------------------------------------------- memory, in processes of their own


def peak_mb():
    """The most memory that this process has held, in MB.

    On Linux getrusage may tell a new process its parent's maximum, but this file does not."""
    status = Path("/proc/self/status")
    if not status.exists():
        return figures.peak_memory()
    _, _, rest = status.read_text(encoding="utf-8").partition("VmHWM:")
    return int(rest.split()[0]) / 1024


def measure_peak(job, episodes):
    """Do a job three times: "ours" or "trl" (PPO), or a width (pretraining). Return its peak memory
    in MB, and how much of it is above what the imports needed."""
    rows = files.read_prompts("rl")[:episodes]
    if job == "trl":
        workloads.optional("trl.experimental.ppo.ppo_trainer")
    else:
        keep_freed_memory()                                             # as every script does
    imports = peak_mb()
    with tempfile.TemporaryDirectory() as folder:
        if job == "trl":
            work = workloads.trl_iteration(rows, folder)
        elif job == "ours":
            work = workloads.our_iteration(rows)
        else:
            work = workloads.pretraining_steps(int(job), [[[0] * 32] * 64])
        for _ in range(3):
            work()
    return {"all": peak_mb(), "above": peak_mb() - imports}


def measured_apart(job, episodes):
    """Return the result of `measure_peak` in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmark", "--peak", job, str(episodes)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, encoding="utf-8", check=True)
    return json.loads(done.stdout)


# ---------------------------------------------------------------- table, picture, command line


def table(rows):
    """The results as text."""
    lines = [f"{'':36}{'ours':>10}{'theirs':>10}{'ratio':>8}   above 1: ours is better"]
    for name, row in rows.items():
        if "ratio" in row:
            title = f"{name}, {row['unit']}"
            lines.append(f"{title:36}{row['ours']:10.1f}{row['theirs']:10.1f}{row['ratio']:8.2f}")
        elif "share" in row:
            lines.append(f"{name}: bare products would take {row['bare_ms']:.1f} of "
                         f"{row['ms']:.1f} ms, {row['share']:.0%}. Million multiply-adds:")
            for part, n in row["multiply_adds"].items():
                lines.append(f"    {part:32}{n / 1e6:10,.0f}")
        else:
            lines.append(f"{name}, {row['unit']}, by {row['by']}:")
            for line, y in row["lines"].items():
                points = "".join(f"{n:>8}: {value:<8,.1f}" for n, value in zip(row["x"], y))
                title = line.replace("_", " ")
                lines.append(f"    {title:18}{points}  ~ x^{row['powers'][line]:.2f}")
    return "\n".join(lines)


def draw(rows, path):
    """Draw the ratios, and a panel with log axes for each kind of growth."""
    fig, axes = plt.subplots(2, 3, figsize=(11, 6.4))
    first, *others = axes.flat
    for name, row in rows.items():
        if "ratio" in row:
            first.barh(name, row["ratio"] - 1, left=1, color=BLUE)
        elif "lines" in row:
            draw_growth(others.pop(0), name, row)
    first.invert_yaxis()
    first.axvline(1, color="black", linewidth=1)
    first.tick_params(axis="y", labelsize=8)
    first.set(xscale="log", xlabel="theirs / ours", title="beside other libraries")
    first.minorticks_off()
    first.set_xticks([1, 2, 4, 8], [1, 2, 4, 8])
    figures.save(fig, path)


def draw_growth(axis, name, row):
    """Draw one panel."""
    x = row["x"]
    for (line, y), colour, marker in zip(row["lines"].items(), (BLUE, ORANGE), "os"):
        axis.plot(x, y, color=colour, marker=marker, label=line.replace("_", " "))
    y = list(row["lines"].values())[-1]
    if row["unit"] == "ms":
        axis.plot([x[0], x[-1]], [y[0], y[0] * x[-1] / x[0]], ":", color=GREY, zorder=0,
                  label="in proportion")
    axis.set(xscale="log", yscale="log", xlabel=row["by"], ylabel=row["unit"], title=name)
    axis.minorticks_off()
    axis.set_xticks(x, x)
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.legend(frameon=False, fontsize=8)


def measure(sizes):
    """Measure everything: the contents of benchmark.json."""
    start = time.time()
    rows = {}
    for part in (compare_ppo, compare_steps, compare_generation, share_of_pretraining,
                 share_of_ppo, growth_of_training, growth_of_rollouts):
        print(f"{time.time() - start:4.0f} s  {part.__name__}", file=sys.stderr)
        rows |= part(sizes)
    versions = {}
    for name in ("torch", "transformers", "trl"):
        versions[name] = workloads.optional(name).__version__
    return {"threads": torch.get_num_threads(), "versions": versions,
            "seconds": round(time.time() - start), "rows": rows}


def main(argv=None):
    """Parse the command line, measure, print, and write if asked."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one repetition")
    parser.add_argument("--write", action="store_true", help="write benchmark.json and .png")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)      # of `measured_apart`
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    if args.peak:
        job, episodes = args.peak
        print(json.dumps(measure_peak(job, int(episodes))))
        return
    for name in ("transformers", "trl.experimental.ppo"):
        workloads.optional(name)
    keep_freed_memory()
    results = measure(QUICK if args.quick else FULL)
    print(table(results["rows"]))
    if args.write:
        files.write(RESULTS / "benchmark.json", json.dumps(results, indent=1))
        draw(results["rows"], RESULTS / "benchmark.png")


if __name__ == "__main__":
    guarded(main)
