"""The closing task: a ppo.py with five wrong lines, and a check of its repair.

    python -m notebooks.repair                      # writes my_ppo.py into the current folder
    python -m notebooks.repair my_ppo.py            # says what is right and what is not
    python -m notebooks.repair my_ppo.py --hint     # also says which functions to read

The five wrong lines are bugs of tests/mutations.py. The check runs the functions of the file and
those of ppo.py on the same random input and compares what they return, so every right repair is
accepted. It covers ppo.py down to the comparison of six models, without the pretraining mix of the
loop. Exit code: 0 if all is repaired, 1 if something is still wrong, 2 if the file cannot be
checked.
"""
import argparse
import dataclasses
import functools
import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import ppo
from data import files
from data.files import UserError
from data.flags import guarded
from notebooks.lesson import CHECKPOINTS, load
from tests.mutations import BUGS, ROOT

NAME = "my_ppo.py"
LIMIT = 60          # seconds that the check may take; it takes about ten on an idle core
REST = "everything else"
AS_BEFORE = "as before"


@dataclasses.dataclass
class Phase:
    """One part of PPO with one wrong line."""
    title: str
    bug: str                # its name in tests/mutations.py
    symptom: str            # what one would see; it does not name the line
    function: str           # where the line is


PHASES = [
    Phase("what belongs to a response", "PPO does not learn the end of a response",
          "The logged length is one token too small from the first iteration on. The missing token "
          "has no reward, no advantage and no gradient.",
          "batch_of"),
    Phase("the outputs of the four networks", "KL to the rollout policy",
          "The logged KL is exactly 0 at every iteration. No beta changes anything.",
          "read_episodes"),
    Phase("rewards", "KL with the sign turned",
          "KL grows without bound, and it grows faster with a larger beta.",
          "token_rewards"),
    Phase("advantages and returns", "GAE without the next value",
          "Answers grow until nearly none ends, and the score falls. How good the rest of a "
          "response will be is not credited to the tokens before it.",
          "gae"),
    Phase("the policy's loss", "min for max in the clipped loss",
          "The score rises, then it jumps up and down and falls back, while KL keeps growing. "
          "Tokens that have gone far enough are pushed further, and nothing brings bad ones back.",
          "policy_loss"),
]


# ---------------------------------------------------------------- writing the task


def broken_text():
    """Return the text of ppo.py with the wrong line of every phase."""
    text = (ROOT / "ppo.py").read_text(encoding="utf-8")
    for bug in the_bugs():
        text = with_bug(text, bug)
    return text


def with_bug(text, bug):
    """Return the text of ppo.py with one bug. A comment behind the line stays in its column."""
    if text.count(bug.right) != 1:
        raise ValueError(f"{bug.name}: {bug.right!r} is not exactly once in ppo.py")
    line = next(line for line in text.splitlines() if bug.right in line)
    code, sign, comment = line.replace(bug.right, bug.wrong).partition("  #")
    if sign:
        code = code.rstrip().ljust(line.index("  #"))
    return text.replace(line, code + sign + comment)


def the_bugs():
    """Return the Bug of every phase."""
    by_name = {bug.name: bug for bug in BUGS}
    return [by_name[phase.bug] for phase in PHASES]


def write_task():
    """Write my_ppo.py. Raise UserError if it exists."""
    try:
        with open(NAME, "x", encoding="utf-8", newline="\n") as file:
            file.write(broken_text())
    except FileExistsError:
        raise UserError(f"{NAME} exists already. `python -m notebooks.repair {NAME}` checks it. "
                        "Delete it to start again") from None
    print(f"made {NAME}: ppo.py with five wrong lines. "
          f"Next: python -m notebooks.repair {NAME}")


# ---------------------------------------------------------------- running a student's file


def load_file(path):
    """Return a file, the student's or ppo.py, as a new module."""
    spec = importlib.util.spec_from_file_location("my_ppo", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["my_ppo"] = module                          # dataclasses look it up there
    spec.loader.exec_module(module)
    return module


def with_function(path, phase):
    """Return ppo.py with the student's function of one phase."""
    mine = load_file(path)
    module = load_file(ROOT / "ppo.py")
    setattr(module, phase.function, getattr(mine, phase.function))
    return module


def with_caller(path, phase):
    """Return the student's file with the functions of all other phases from ppo.py.

    A line may be repaired in the function that calls the wrong one."""
    return without_wrong(path, [other for other in PHASES if other is not phase])


def without_wrong(path, wrong):
    """Return the student's file with the functions of some phases from ppo.py."""
    module = load_file(path)
    for phase in wrong:
        setattr(module, phase.function, getattr(ppo, phase.function))
    return module


def random_ids(seed):
    """Return twelve lists of one to eight random ids."""
    rng = random.Random(seed)
    return [rng.choices(range(1024), k=rng.randint(1, 8)) for _ in range(12)]


class Material:
    """The random input: small trained models, prompts, settings that differ from the defaults."""

    def __init__(self):
        self.config = ppo.Config(beta=0.3, lam=0.8, clip_range=0.15, missing_eos_penalty=0.7,
                                 gamma_ptx=0.5, rollout_size=24, minibatch_size=12)
        self.prompts = random.Random(1).sample(files.read_prompts("valid"), 24)
        self.prompt_ids = random_ids(2)
        self.response_ids = random_ids(3)
        self.response_ids[0][-1] = 1023                     # a response may hold any id, pad's too
        self.batch = self.rollout(load_file(ROOT / "ppo.py"))

    def networks(self):
        """Return policy, reference, value network, reward model: all different."""
        names = ("ppo_ptx", "sft_mix", "ppo_ptx_value", "reward")
        return [load(CHECKPOINTS, name) for name in names]

    def rollout(self, module):
        """Return a batch of module.rollout. Responses are cut at 12 tokens, so that some are."""
        module.MAX_NEW_TOKENS = 12
        module.MICRO_BATCH = 8
        generator = torch.Generator().manual_seed(3)
        return module.rollout(self.prompts, *self.networks(), self.config, generator)

    def update(self, module, documents=None):
        """Return the metrics of module.update and how far it moves each network.

        The old log-probs are not those of the policy, so that some ratios are clipped."""
        policy, _, value_net, _ = self.networks()
        policy_before = weights(policy)
        value_before = weights(value_net)
        batch = dict(self.batch)
        generator = torch.Generator().manual_seed(4)
        noise = torch.randn(batch["mask"].shape, generator=generator)
        for key in ("logprobs", "values"):
            batch[key] = batch[key] + 0.3 * noise * batch["mask"]
        optimizers = [torch.optim.SGD(net.parameters(), lr=1.0) for net in (policy, value_net)]
        episodes = torch.arange(1, len(self.prompts))
        metrics = module.update(
            batch, episodes, policy, value_net, optimizers, self.config, documents)
        return metrics | {
            "step of the policy": weights(policy) - policy_before,
            "step of the value network": weights(value_net) - value_before,
        }


def weights(network):
    """Return all weights as one vector."""
    return torch.cat([p.detach().flatten() for p in network.parameters()])


# What a batch must agree in, by the function that makes it.
KEYS = {
    "batch_of": ("idx", "lengths", "prompt_lengths", "mask"),
    "read_episodes": ("logprobs", "ref_logprobs", "values", "scores"),
    "token_rewards": ("rewards",),
    "gae": ("raw_advantages", "returns"),
}


def outputs(module, phase, material):
    """Return what the code of one phase makes of the material: {name: tensor or number}."""
    if phase.function == "batch_of":
        batch = module.batch_of(material.prompt_ids, material.response_ids, 1023, "cpu")
    elif phase.function == "policy_loss":
        return material.update(module)
    else:
        batch = material.rollout(module)
    return {key: batch[key] for key in KEYS[phase.function]}


def whole(module, material):
    """Return what all of the code above the comparison of six models makes of the material."""
    batch = material.rollout(module)
    del batch["answers"]
    stats = batch.pop("stats")
    documents = [[1, 2, 3, 4], [5, 6, 7]]
    step = material.update(module, documents)
    found = named("rollout", batch) | named("the statistics of rollout", stats)
    found |= named("update", step) | functions(module, material)
    return found | defaults(module) | training(module)


def named(origin, results):
    """Return results with the name of their origin in their names."""
    return {f"{origin}, {key}": value for key, value in results.items()}


def defaults(module):
    """Return which defaults of Config are those of ppo.py."""
    theirs = vars(module.Config())
    ours = vars(ppo.Config())
    return {f"Config, {name}": theirs.get(name, ...) == ours[name] for name in ours}


def functions(module, material):
    """Return the results of the small functions, called by themselves."""
    batch = material.batch
    mask = batch["mask"]
    x = batch["logprobs"]
    y = batch["ref_logprobs"]
    table = torch.arange(float(batch["idx"].numel())).view(batch["idx"].shape)
    policy, reference, value_net, _ = material.networks()
    k1, k3 = module.kl_estimates(x, y)
    generator = torch.Generator().manual_seed(5)
    return {
        "masked_mean": module.masked_mean(x + 1, mask),
        "whiten": module.whiten(x + 1, mask),
        "kl_estimates, k1": k1,
        "kl_estimates, k3": k3,
        "value_loss": module.value_loss(batch["values"], y, batch["returns"], mask, 0.2),
        "at_responses": module.at_responses(table, batch["prompt_lengths"], mask),
        "response_logprobs": module.response_logprobs(policy, batch),
        "response_values": module.response_values(value_net, batch),
        "kl_to_reference": module.kl_to_reference(policy, reference, material.prompts, generator),
    }


def training(module):
    """Return the log and the movement of the policy in three iterations of module.train_policy.

    The steps are small, so that rounding does not change which tokens are sampled later."""
    module.MAX_NEW_TOKENS = ppo.MAX_NEW_TOKENS
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        shutil.copytree(CHECKPOINTS, out)
        config = module.Config(
            out=str(out), rollout_size=24, minibatch_size=12, lr=1e-4, lr_norm=3e-3)
        module.train_policy(config, "mine", "reward", 3, 0.0)
        start = weights(load(out, "sft_mix"))
        saved = weights(load(out, "mine"))
        rows = files.read_jsonl(out / "mine.jsonl", step=int)
    found = {"the policy that train_policy saves": saved - start}
    for row in rows:
        found |= named(f"the log of train_policy, iteration {row['step']}", row)
    return found


# ---------------------------------------------------------------- comparing


def difference(found, expected):
    """Return the name of the first result that is not the expected one up to rounding, or "".

    What comes after a step of Adam may differ more. Its step has the size of the learning rate even
    where a gradient is only rounding."""
    for key in expected:
        tolerance = 0.02 if "train_policy" in key else 1e-3
        if key not in found or not close(found[key], expected[key], tolerance):
            return key + other_type(found.get(key), expected[key])
    return ""


def other_type(x, y):
    """Return both types of a tensor that has integers for floats or the reverse, else ""."""
    if not isinstance(x, torch.Tensor) or not isinstance(y, torch.Tensor):
        return ""
    if x.is_floating_point() == y.is_floating_point():
        return ""
    return f" ({x.dtype}, not {y.dtype})"


def close(x, y, tolerance):
    """Return whether two results agree up to a share of the second one's size."""
    x = torch.as_tensor(x)
    y = torch.as_tensor(y)
    if x.shape != y.shape or x.is_floating_point() != y.is_floating_point():
        return False
    x = x.detach().double()
    y = y.detach().double()
    return bool((x - y).norm() <= tolerance * y.norm() + 1e-5)


def judged(make, expected):
    """Return "" if `make` returns the expected results, else what is wrong.

    The student's code may fail in any way."""
    try:
        key = difference(make(), expected)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        text, _, _ = str(error).partition("\n")
        return f"It raises {type(error).__name__}: {text}"[:150] + "."
    return key and f"Look at this: {key}."


@functools.cache
def what_is_right():
    """Return the material and what is made of it.

    By ppo.py in each phase, by each phase with its wrong line, and by ppo.py as a whole."""
    material = Material()
    right = {}
    wrong = {}
    with tempfile.TemporaryDirectory() as folder:
        broken = Path(folder) / "broken.py"
        broken.write_text(broken_text(), encoding="utf-8", newline="\n")
        for phase in PHASES:
            right[phase.title] = outputs(load_file(ROOT / "ppo.py"), phase, material)
            wrong[phase.title] = outputs(with_function(broken, phase), phase, material)
    return material, right, wrong, whole(load_file(ROOT / "ppo.py"), material)


def verdicts(path):
    """Return {title of a phase: "", AS_BEFORE or what is wrong with it}."""
    material, right, before, all_right = what_is_right()
    found = {}
    wrong = []
    for phase in PHASES:
        found[phase.title] = verdict(path, phase, right[phase.title], before[phase.title])
        if found[phase.title]:
            wrong.append(phase)
    found[REST] = judged(lambda: whole(without_wrong(path, wrong), material), all_right)
    return found


def verdict(path, phase, right, before):
    """Return the verdict on one phase. before: what the wrong line makes of the material."""
    material, *_ = what_is_right()

    def alone():
        return outputs(with_function(path, phase), phase, material)

    def with_its_caller():
        return outputs(with_caller(path, phase), phase, material)

    wrong = judged(alone, right)
    if not wrong or not judged(with_its_caller, right):
        return ""
    return wrong if judged(alone, before) else AS_BEFORE


def inside(path, result):
    """Check a file in this process and write the verdicts to the file `result`."""
    try:
        load_file(path)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        found = {"error": where(path, error)}
    else:
        found = verdicts(path)
    files.write(Path(result), json.dumps(found))


def where(path, error):
    """Return an error of importing the file as one line, with the line number in the file."""
    line = error.lineno if isinstance(error, SyntaxError) else None
    trace = error.__traceback__
    while trace and not isinstance(error, SyntaxError):
        if Path(trace.tb_frame.f_code.co_filename) == Path(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    text, _, _ = str(error).partition("\n")
    if isinstance(error, SyntaxError):
        text = error.msg
    place = f", line {line}" if line else ""
    return f"{place}: {type(error).__name__}: {text}"


# ---------------------------------------------------------------- the command


def check(name, hint=False, limit=LIMIT):
    """Check a file in a process of its own and print the verdicts. Return whether all is right."""
    path = Path(name).resolve()
    if not path.is_file():
        raise UserError(f"there is no file {name}. `python -m notebooks.repair` writes {NAME}")
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "verdicts.json"
        command = [sys.executable, "-m", "notebooks.repair", str(path), "--inside", str(result)]
        paths = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        environment = os.environ | {"PYTHONPATH": paths}
        try:
            done = subprocess.run(
                command, cwd=folder, env=environment, timeout=limit, stdin=subprocess.DEVNULL,
                capture_output=True)
        except subprocess.TimeoutExpired:
            raise UserError(f"{name}: the check was stopped after {limit} s. "
                            "Is there a loop without an end?") from None
        if not result.exists():
            raise UserError(f"{name}: the check ended early, with exit code {done.returncode}")
        found = json.loads(result.read_text(encoding="utf-8"))
    if "error" in found:
        raise UserError(f"{name}{found['error']}")
    return report(name, found, hint)


def report(name, found, hint):
    """Print one line per phase. Return whether all is right."""
    width = max(map(len, found))
    for phase in PHASES:
        print(f"{phase.title:{width}}  {line_of(phase, found[phase.title], hint)}")
    rest = found[REST]
    text = f"wrong  This was right before. {rest}" if rest else "right"
    print(f"{REST:{width}}  {text}")
    wrong = [phase for phase in PHASES if found[phase.title]]
    n_right = len(PHASES) - len(wrong)
    print(f"{n_right} of {len(PHASES)} repaired.")
    if wrong and not hint:
        print(f"`python -m notebooks.repair {name} --hint` names the functions to read.")
    if wrong or rest:
        return False
    show_lines()
    return True


def line_of(phase, wrong, hint):
    """Return the verdict on one phase as a text."""
    if not wrong:
        return "right"
    text = f"No longer as before, but not right yet. {wrong}"
    if wrong == AS_BEFORE:
        text = phase.symptom
    return f"wrong  {text} Read {phase.function}." if hint else f"wrong  {text}"


def show_lines():
    """Print what was wrong."""
    for phase, bug in zip(PHASES, the_bugs()):
        print(f"\n{phase.function}: {phase.bug}\n  - {bug.wrong.strip()}\n  + {bug.right.strip()}")


def main():
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", help=f"the file to check; without it, {NAME} is written")
    parser.add_argument("--hint", action="store_true", help="also name the functions to read")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        inside(args.file, args.inside)
    elif args.file:
        sys.exit(0 if check(args.file, args.hint) else 1)
    else:
        write_task()


if __name__ == "__main__":
    guarded(main)
