"""The bug gallery: classic RLHF bugs, each put into a copy of the scripts, and the tests that notice.

    python -m tests.mutations            # all of them, a few minutes; exit code 1 if one goes unnoticed

A test that cannot fail proves nothing. Here each bug, a change of one line that published teaching code got wrong at least once, is
applied to a temporary copy, and the tests named for it must fail there (and pass without it). The table says what a person would see.
"""
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from data.prepare import guarded

ROOT = Path(__file__).parent.parent


@dataclass
class Bug:
    """One wrong line: in `file`, `right` becomes `wrong`; one of `tests` (names in tests/test_losses.py or test_model.py) must fail."""
    name: str
    symptom: str
    file: str
    right: str
    wrong: str
    tests: str


BUGS = [
    Bug("the prompt is learnt too", "SFT imitates questions", "sft.py", "return idx, ((t >= starts) & (t < lengths[:, None])).float()",
        "return idx, (t < lengths[:, None]).float()", "test_only_the_response_is_learnt_and_its_end_too"),
    Bug("the end of a response is not learnt", "responses never stop", "sft.py", "(t < lengths[:, None])).float()", "(t < lengths[:, None] - 1)).float()",
        "test_only_the_response_is_learnt_and_its_end_too"),
    Bug("ranking loss with the sign turned", "the RM likes what people dislike", "reward.py", "losses = -(F.logsigmoid(margins)", "losses = -(F.logsigmoid(-margins)",
        "test_equation_1_by_hand_for_three_responses_without_a_tie"),
    Bug("C(K, 2) divided twice", "prompts with many pairs hardly count", "reward.py", "/ pairs.clamp(min=1)", "/ pairs.clamp(min=1) ** 2",
        "test_equation_1_by_hand_for_three_responses_without_a_tie"),
    Bug("ties count as preferences", "the RM learns noise", "reward.py", "ranks[:, None] < ranks[None, :]", "ranks[:, None] <= ranks[None, :]",
        "test_a_prompt_with_fewer_responses_makes_no_pairs_out_of_nothing"),
    Bug("responses in a row see each other", "scores depend on the company", "reward.py", "visible = causal & ((parts[:, None, :] == 0) | (parts[:, None, :] == parts[:, :, None]))",
        "visible = causal.expand(len(idx), -1, -1)", "test_responses_that_share_a_row_score_as_if_alone"),
    Bug("the score is read at the end of the padding", "scores depend on neighbours", "reward.py", "gather(1, lengths[:, None] - 1)",
        "gather(1, torch.full_like(lengths[:, None], idx.shape[1] - 1))", "test_the_score_is_read_on_the_last_token_and_padding_cannot_move_it"),
    Bug("the reward head starts random", "the RM has opinions before it has read", "reward.py", "nn.init.zeros_(self.score.weight)", "nn.init.normal_(self.score.weight)",
        "test_a_fresh_reward_model_has_no_opinion"),
    Bug("KL with the sign turned", "the policy is paid to drift", "ppo.py", "rewards = -beta * (logprobs - ref_logprobs) * mask", "rewards = -beta * (ref_logprobs - logprobs) * mask",
        "test_the_kl_penalty_is_paid_where_it_arises"),
    Bug("the score is paid on every token", "the KL penalty hardly counts", "ppo.py", "return rewards.scatter_add(1, last[:, None], scores[:, None])",
        "return rewards + scores[:, None] * mask", "test_the_score_is_paid_on_the_last_response_token"),
    Bug("the score is paid at the end of the padding", "short responses are never paid", "ppo.py", "last = mask.sum(1).long() - 1", "last = torch.full_like(mask.sum(1).long(), mask.shape[1] - 1)",
        "test_the_score_is_paid_on_the_last_response_token"),
    Bug("KL to the rollout policy", "the penalty is always 0: beta does nothing", "ppo.py", "ref_logprobs[few, :r] = response_logprobs(reference, part)", "ref_logprobs[few, :r] = response_logprobs(policy, part)",
        "test_the_penalty_is_measured_against_the_reference"),
    Bug("GAE forgets where a response ends", "padding leaks into advantages", "ppo.py", "following = (delta + gamma * lam * following) * m", "following = delta + gamma * lam * following",
        "test_padding_contributes_nothing_to_advantages"),
    Bug("GAE without the next value", "advantages too small, critic useless", "ppo.py", "delta = rewards[:, t] + gamma * next_value - values[:, t]", "delta = rewards[:, t] - values[:, t]",
        "test_gae_by_hand_on_three_tokens"),
    Bug("whitened before the returns", "the value network learns the wrong returns", "ppo.py", "return advantages, (advantages + values) * mask", "return whiten(advantages, mask), (whiten(advantages, mask) + values) * mask",
        "test_gae_by_hand_on_three_tokens"),
    Bug("the mean is over padding too", "short responses weigh less", "ppo.py", "return (x * mask).sum() / mask.sum()", "return (x * mask).mean()",
        "test_the_policy_loss_is_a_mean_over_response_tokens or test_whitening_sees_response_tokens_only"),
    Bug("min for max in the clipped loss", "bad steps are forgiven, the policy collapses", "ppo.py", "return masked_mean(torch.maximum(free, clipped), mask)", "return masked_mean(torch.minimum(free, clipped), mask)",
        "test_clipping_stops_steps_that_went_far_enough_and_no_others"),
    Bug("the advantage has its sign turned", "the score falls", "ppo.py", "free = -advantages * ratio ", "free = advantages * ratio ", "test_clipping_stops_steps_that_went_far_enough_and_no_others"),
    Bug("the value is one token late", "the baseline knows the action: gradient too small", "ppo.py", "columns = prompt_lengths[:, None] - 1 + torch", "columns = prompt_lengths[:, None] + torch",
        "test_the_response_is_cut_out_one_to_the_left_of_its_tokens"),
    Bug("the mask is ids != pad", "a sampled pad vanishes", "ppo.py", "mask = (torch.arange(R, device=device) < (lengths - prompt_lengths)[:, None]).float()",
        "mask = torch.tensor([[float(t != pad) for t in r] + [0.0] * (R - len(r)) for r in responses])", "test_the_mask_comes_from_lengths_and_not_from_ids"),
    Bug("k2 called k3", "a biased KL", "ppo.py", "return k1, (-k1).exp() - 1 + k1", "return k1, k1 ** 2 / 2", "test_both_kl_estimates_are_unbiased_and_k3_is_never_negative"),
    Bug("gamma_ptx is forgotten", "PPO-ptx pays the alignment tax", "ppo.py", "(config.gamma_ptx * ptx_loss).backward()", "pass", "test_the_gradient_of_ppo_ptx_is_the_sum_of_its_parts"),
    Bug("every part of a minibatch weighs the same", "tokens of short responses count more", "ppo.py", "mask, share = part[\"mask\"], part[\"mask\"].sum() / tokens",
        "mask, share = part[\"mask\"], torch.tensor(1.0)", "test_a_step_is_the_same_in_however_many_parts_it_is_worked_out"),
    Bug("gradients are not clipped", "one odd batch ruins the policy", "ppo.py", "grad_norm = nn.utils.clip_grad_norm_(policy.parameters(), 1.0)",
        "grad_norm = nn.utils.clip_grad_norm_(policy.parameters(), 1e9)", "test_a_step_is_clipped_and_leaves_no_gradient_behind"),
    Bug("gradients pile up", "each step repeats all earlier ones", "ppo.py", "        optimizer.zero_grad()\n", "        pass\n", "test_a_step_is_clipped_and_leaves_no_gradient_behind"),
    Bug("dropout on in the rollout", "ratio is not 1, negative KL", "model.py", "return model.eval()", "return model.train()",
        "test_on_the_first_minibatch_the_ratio_is_1_and_the_kl_is_0"),
    Bug("log-probs at another temperature", "negative KL", "model.py", "F.log_softmax((logits / temperature)", "F.log_softmax((logits / (temperature * 0.7))", "test_logprobs_are_log_softmax_with_pad_left_out"),
    Bug("positions count the left padding", "an answer depends on its neighbours", "model.py", "positions = (real.cumsum(1) - 1).clamp(min=0)", "positions = torch.arange(width).expand(len(prompts), width)",
        "test_a_prompt_is_answered_alike_whatever_its_neighbours"),
    Bug("attention sees the left padding", "an answer depends on its neighbours", "model.py", "visible = real[:, None, None, :]\n", "visible = torch.ones_like(real)[:, None, None, :]\n",
        "test_a_prompt_is_answered_alike_whatever_its_neighbours"),
    Bug("pad can be sampled", "holes in responses", "model.py", "index_fill(-1, torch.tensor(pad, device=logits.device), float(\"-inf\")), dim=-1)", "index_fill(-1, torch.tensor(pad, device=logits.device), 0.0), dim=-1)",
        "test_pad_is_never_sampled_even_if_the_model_wants_nothing_else"),
    Bug("pad is end-of-text", "responses never learn to stop", "model.py", "        return self.vocab_size - 1", "        return self.vocab_size - 2", "test_pad_is_never_sampled_even_if_the_model_wants_nothing_else or test_logprobs_are_log_softmax_with_pad_left_out"),
    Bug("one side always stands second", "a win rate that depends on the side", "ppo.py", "if rng.random() < 0.5 else 1 - person.prefer", "if True else 1 - person.prefer", "test_no_side_of_a_comparison_has_an_advantage"),
    Bug("the score passes a gradient", "the policy learns to move the reward model", "ppo.py", "@torch.no_grad()\ndef rollout", "def rollout", "test_what_a_rollout_returns_fits_together"),
    Bug("an endless response costs nothing", "responses never stop", "ppo.py", "scores = scores - config.missing_eos_penalty * (1 - ended)", "scores = scores - 0 * (1 - ended)",
        "test_what_a_rollout_returns_fits_together"),
]


def copy_project(folder):
    """A copy of the scripts, the world and the tests in folder/project: its path."""
    left_out = shutil.ignore_patterns("out*", ".git", "*venv*", "corpus.txt", "__pycache__", ".pytest_cache", ".readme", "notebooks")
    return Path(shutil.copytree(ROOT, Path(folder) / "project", ignore=left_out))


def put(bug, copy):
    """Makes one line of a copy wrong; returns the file and what it held."""
    path = copy / bug.file
    right = path.read_text(encoding="utf-8")
    if right.count(bug.right) != 1:
        raise SystemExit(f"{bug.name}: {bug.right!r} stands {right.count(bug.right)} times in {bug.file}, not once")
    path.write_text(right.replace(bug.right, bug.wrong), encoding="utf-8", newline="\n")
    return path, right


def run_tests(folder, expression):
    """The named tests in a copy of the project: (pytest's exit code, the test that failed or pytest's last line)."""
    done = subprocess.run([sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "tests/test_losses.py", "tests/test_model.py", "-k", expression],
                          cwd=folder, capture_output=True, timeout=120, encoding="utf-8", errors="replace")
    failed = next((line.split("::")[1].split(" ")[0].split("[")[0] for line in done.stdout.splitlines() if line.startswith("FAILED")), "")
    return done.returncode, failed or done.stdout.strip().rsplit("\n", 1)[-1]


def main():
    """Applies every bug in turn; returns those that went unnoticed."""
    unnoticed, table = [], []
    with tempfile.TemporaryDirectory() as folder:
        copy = copy_project(folder)
        code, line = run_tests(copy, " or ".join(sorted({bug.tests for bug in BUGS})))
        if code != 0:
            raise SystemExit(f"the tests must pass before there is a bug: {line}")
        for bug in tqdm(BUGS, desc="bugs"):
            path, right = put(bug, copy)
            code, caught = run_tests(copy, bug.tests)
            path.write_text(right, encoding="utf-8", newline="\n")
            if code != 1:                           # 1: tests ran and failed; anything else is no proof
                unnoticed.append(bug.name)
            table.append((bug.name, bug.file, bug.symptom, caught if code == 1 else f"NOT NOTICED ({caught})"))
    for name, file, symptom, caught in [("bug", "file", "what you would see", "caught by"), *table]:
        print(f"{name:48}{file:11}{symptom:52}{caught}")
    print(f"\n{len(BUGS) - len(unnoticed)} of {len(BUGS)} bugs noticed")
    return unnoticed


if __name__ == "__main__":
    guarded(lambda: sys.exit(1 if main() else 0))
