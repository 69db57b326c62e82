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

from data.flags import guarded

ROOT = Path(__file__).parent.parent
FILES = [f"tests/test_{name}.py" for name in
         ("losses", "model", "training", "reward", "world", "ppo_loop", "evaluation", "label",
          "export", "own", "methods")]


@dataclass
class Bug:
    """One wrong line: in `file`, `right` becomes `wrong`; one of `tests`, names in FILES, must fail."""
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
    # the base model, the data and SFT
    Bug("dropout off in SFT", "demonstrations are learnt by heart", "sft.py", "dropout=config.dropout).train()",
        "dropout=config.dropout)", "test_dropout_is_on_in_sfts_steps_and_off_where_it_is_measured"),
    Bug("dropout stays off after a validation", "from epoch 2 on, learnt by heart", "sft.py",
        "    model.train(was_training)\n", "", "test_dropout_is_on_in_sfts_steps_and_off_where_it_is_measured"),
    Bug("SFT trains on what validates it", "the validation loss is too good", "sft.py",
        "train_pairs = pairs[n_valid:]", "train_pairs = pairs",
        "test_a_tenth_of_the_demonstrations_validates_and_is_never_trained_on"),
    Bug("the mix weighs batches, not tokens", "half of each step is corpus", "sft.py",
        "(n * loss + corpus_part) / (n + n_corpus)", "(loss + corpus_part / n_corpus) / 2",
        "test_a_step_of_sft_is_the_clipped_gradient_of_a_loss_in_which_every_token_weighs_the_same"),
    Bug("a share of the wrong whole", "9 % corpus instead of 10", "sft.py", "tokens * mix / (1 - mix)", "tokens * mix",
        "test_the_mix_is_a_share_of_tokens"),
    Bug("the schedule ends with the first epoch", "the rate rises again in epoch 2", "sft.py",
        "cosine(step, steps,", "cosine(step, steps // epochs,",
        "test_sfts_learning_rate_falls_along_a_cosine_over_all_epochs"),
    Bug("SFT's gradients pile up", "each step repeats all earlier ones", "sft.py", "            optimizer.zero_grad()\n", "",
        "test_a_step_of_sft_is_the_clipped_gradient_of_a_loss_in_which_every_token_weighs_the_same"),
    Bug("a mean of batch means", "short answers weigh more", "sft.py",
        "        n = mask.sum().item()\n", "        n = 1\n",
        "test_the_validation_loss_of_sft_is_over_response_tokens_without_dropout"),
    Bug("an earlier run's epochs stay behind", "the baseline is of another run", "sft.py", "if epoch == 1:", "if epoch == 0:",
        "test_an_earlier_runs_sft_models_go_when_the_first_new_one_is_there"),
    Bug("the base model reads what validates it", "the alignment tax is overstated", "model.py",
        "return documents[:cut], documents[cut:]", "return documents, documents[cut:]",
        "test_the_corpus_is_cut_into_documents_between_two_ends_and_the_last_2_percent_validate"),
    Bug("the shortest documents come first", "the loss goes up and down", "data/training.py",
        "yield from rng.sample(batches, len(batches))", "yield from batches",
        "test_each_pass_over_the_corpus_has_its_own_order"),
    Bug("one peak for both optimisers", "embeddings learn at Muon's rate", "model.py",
        "pretraining_lr(step, config.steps, peak)", "pretraining_lr(step, config.steps, config.lr)",
        "test_each_optimiser_of_pretraining_follows_the_schedule_with_its_own_peak"),
    Bug("embeddings are made orthogonal too", "rare words learn as fast as frequent ones", "data/training.py",
        "if \".h.\" in name and p.dim() == 2}", "if p.dim() == 2}",
        "test_muon_moves_the_matrices_of_the_blocks_and_adam_the_rest"),
    Bug("the cosine begins before the warm-up ends", "the rate jumps", "data/training.py",
        "math.pi * (step - warmup) / max(1, steps - warmup)", "math.pi * step / max(1, steps)",
        "test_the_cosine_begins_where_the_warm_up_ends"),
    Bug("sampled at 1, scored at the temperature", "negative KL", "model.py",
        "distribution(logits, temperature, pad).exp()", "distribution(logits, 1.0, pad).exp()",
        "test_every_token_of_a_response_is_drawn_at_the_temperature_and_the_end_ends_it"),
    Bug("the hash leaves out what a file says", "a changed seed goes unnoticed", "data/files.py",
        "json.dumps(more, sort_keys", "json.dumps(more[:2], sort_keys",
        "test_a_checkpoint_comes_back_as_it_was or test_what_a_checkpoint_says_of_itself_cannot_be_changed_unnoticed"),
    Bug("the web holds evaluation prompts", "they are learnt by heart", "data/corpus.py",
        "if not excluded.found_in(text):", "if True:", "test_what_is_excluded_is_asked_nowhere"),
    Bug("phrasings of the evaluation leak", "understanding is overstated", "data/tasks.py", "rng.randrange(last)",
        "rng.randrange(last + 1)", "test_evaluation_phrasings_further_wordings_and_haste_come_only_where_they_are_wanted"),
    Bug("labelers like falsehoods", "the policy learns to lie", "data/labeler.py", "opinion -= self.weights[\"honest\"]",
        "opinion += self.weights[\"honest\"]", "test_a_labeler_weighs_help_truth_kindness_and_brevity"),
    Bug("all labelers err alike", "they agree on every pair", "data/labeler.py", "gumbel(self.name, tasks.prompt(task)",
        "gumbel(tasks.prompt(task)", "test_an_error_is_a_persons_own_and_this_responses_own"),
    Bug("the best gets the last rank", "the RM likes what people dislike", "data/labeler.py", "sorted(set(grades), reverse=True)",
        "sorted(set(grades))", "test_responses_of_one_grade_tie_and_ranks_have_no_gaps"),
    Bug("the ceiling errs as people do", "the RM beats its ceiling", "data/labeler.py", "response, noise=False)",
        "response)", "test_a_perfect_reward_model_scores_the_mean_opinion_without_noise"),
    Bug("rambling costs nothing", "long answers win", "data/judge.py", "extra = max(0, len(polite) - sentences_used)", "extra = 0",
        "test_each_fault_takes_its_share_of_the_utility"),
    Bug("a longer list is no worse", "lists name everything", "data/judge.py", "len(items) - hits + max(0, hits - needed)",
        "len(items) - hits", "test_each_fault_takes_its_share_of_the_utility"),
    Bug("readers blame the right word", "the base model learns to compare backwards", "data/corpus.py",
        "Not {wrong[0]} but {wrong[1]}", "Not {wrong[1]} but {wrong[0]}", "test_a_readers_remark_names_what_is_wrong"),
    Bug("ranking loss with the sign turned", "the RM likes what people dislike", "reward.py",
        "F.logsigmoid(margins)",
        "F.logsigmoid(-margins)",
        "test_equation_1_by_hand_for_three_responses_without_a_tie"),
    Bug("C(K, 2) divided twice", "prompts with many pairs hardly count", "reward.py",
        "n_pairs.clamp(min=1) ",
        "n_pairs.clamp(min=1) ** 2 ",
        "test_equation_1_by_hand_for_three_responses_without_a_tie"),
    Bug("ties count as preferences", "the RM learns noise", "reward.py", "ranks[:, None] < ranks[None, :]", "ranks[:, None] <= ranks[None, :]",
        "test_a_prompt_with_fewer_responses_makes_no_pairs_out_of_nothing"),
    Bug("responses in a row see each other", "scores depend on the company", "reward.py",
        "attn_mask = causal & (is_prompt | same_part)",
        "attn_mask = causal.expand(len(idx), -1, -1)",
        "test_responses_that_share_a_row_score_as_if_alone"),
    Bug("the score is read at the end of the padding", "scores depend on neighbours", "reward.py", "gather(1, lengths[:, None] - 1)",
        "gather(1, torch.full_like(lengths[:, None], idx.shape[1] - 1))", "test_the_score_is_read_on_the_last_token_and_padding_cannot_move_it"),
    Bug("the reward head starts random", "the RM has opinions before it has read", "reward.py", "nn.init.zeros_(self.score.weight)", "nn.init.normal_(self.score.weight)",
        "test_a_fresh_reward_model_has_no_opinion"),
    # the reward model's rankings, choices and measures
    Bug("labelers vote twice", "one person's taste counts double", "reward.py",
        "first, *others = rng.sample(labelers, opinions)",
        "first, *others = rng.choices(labelers, k=opinions)",
        "test_one_labeler_signs_a_ranking_and_others_give_second_opinions_each_once"),
    Bug("second opinions are the first again", "five votes say what one says", "reward.py",
        "[other.rank(",
        "[first.rank(",
        "test_one_labeler_signs_a_ranking_and_others_give_second_opinions_each_once"),
    Bug("a second draw is as cool as the first", "fewer than K distinct responses", "reward.py",
        "1.2 + 0.2 * attempt",
        "1.0",
        "test_a_repeated_response_is_drawn_again_hotter_and_only_where_one_is_missing"),
    Bug("one prompt in three for all odd writers", "most prompts lack an odd response", "reward.py",
        "everyone[turn::len(rotating)]",
        "everyone[::len(rotating)]",
        "test_the_last_place_goes_to_the_odd_writers_in_turn"),
    Bug("round 2 ranks round 1's prompts", "the RM overfits them", "data/files.py",
        "else (config.prompts_1, config.prompts_2)", "else (0, config.prompts_2)",
        "test_round_2_ranks_further_prompts_and_learns_from_both_rounds"),
    Bug("round 2 forgets round 1", "the RM unlearns what SFT samples are like", "reward.py",
        "rankings = earlier + rank(",
        "rankings = rank(",
        "test_round_2_ranks_further_prompts_and_learns_from_both_rounds"),
    Bug("one peak for both of the RM's optimisers", "Adam's part learns at Muon's peak", "reward.py",
        "cosine(step, n_steps, peak, warmup",
        "cosine(step, n_steps, config.lr, warmup",
        "test_each_optimiser_of_the_reward_model_warms_up_and_follows_a_cosine_to_its_own_peak"),
    Bug("the RM's gradients are not clipped", "one odd batch ruins it", "reward.py",
        "nn.utils.clip_grad_norm_(model.parameters(), 1.0)", "pass",
        "test_a_step_of_the_reward_model_is_the_clipped_gradient_of_equation_1"),
    Bug("the RM keeps SFT's dropout", "scores are noisy", "reward.py", "\"dropout\": 0.0}", "}",
        "test_round_1_starts_from_the_base_models_trunk_with_no_opinion_and_without_dropout"),
    Bug("the bias is added twice", "demonstrations score far from 0", "reward.py", "model.bias -= sum", "model.bias += sum",
        "test_centring_puts_demonstrations_at_0_and_moves_nothing_between_responses"),
    Bug("the worst SFT epoch is kept", "a weak baseline, a flattering win rate", "reward.py", "key=mean, reverse=True)", "key=mean)",
        "test_the_epoch_whose_samples_score_best_on_average_becomes_the_baseline"),
    Bug("the SFT epoch with one lucky sample is kept", "another baseline with every seed", "reward.py",
        "(row[0] == chosen, row[1])", "row[1]", "test_the_baseline_is_not_the_epoch_that_was_lucky_once"),
    Bug("luck decides between two SFT epochs", "another baseline with every seed", "reward.py", "<= 2 ** 0.5 * rated[later][1]", "<= 0",
        "test_of_two_epochs_that_samples_cannot_tell_apart_the_later_is_the_baseline"),
    Bug("an equal score counts as right", "an RM without an opinion is perfect", "data/labeler.py",
        "right + 0.5 * equal",
        "right + equal",
        "test_an_equal_score_is_half_right"),
    Bug("held-out accuracy of training labelers", "the RM seems to generalise", "reward.py",
        "mixed, held_out, rng",
        "mixed, training, rng",
        "test_accuracy_is_measured_with_labelers_of_training_held_out_ones_and_the_judge"),
    Bug("held-out accuracy on training prompts", "it is too good", "reward.py",
        "evaluate_reward_model(model, config, valid",
        "evaluate_reward_model(model, config, prompts",
        "test_the_baseline_is_chosen_and_the_reward_model_measured_on_validation_prompts"),
    Bug("the judge's order upside down", "a good RM seems bad", "data/judge.py",
        "ranks.append(-judge(",
        "ranks.append(judge(",
        "test_accuracy_is_measured_with_labelers_of_training_held_out_ones_and_the_judge"),
    Bug("KL with the sign turned", "the policy is paid to drift", "ppo.py", "rewards = -beta * (logprobs - ref_logprobs) * mask", "rewards = -beta * (ref_logprobs - logprobs) * mask",
        "test_the_kl_penalty_is_paid_where_it_arises"),
    Bug("the score is paid on every token", "the KL penalty hardly counts", "ppo.py", "return rewards.scatter_add(1, last[:, None], scores[:, None])",
        "return rewards + scores[:, None] * mask", "test_the_score_is_paid_on_the_last_response_token"),
    Bug("the score is paid at the end of the padding", "short responses are never paid", "ppo.py", "last = mask.sum(1).long() - 1", "last = torch.full_like(mask.sum(1).long(), mask.shape[1] - 1)",
        "test_the_score_is_paid_on_the_last_response_token"),
    Bug("KL to the rollout policy", "the penalty is always 0: beta does nothing", "ppo.py",
        "ref_logprobs[episodes, :r] = response_logprobs(reference, part)",
        "ref_logprobs[episodes, :r] = response_logprobs(policy, part)",
        "test_the_penalty_is_measured_against_the_reference"),
    Bug("GAE forgets where a response ends", "padding leaks into advantages", "ppo.py",
        "(delta + gamma * lam * next_advantage) * mask[:, t]",
        "(delta + gamma * lam * next_advantage)",
        "test_padding_contributes_nothing_to_advantages"),
    Bug("GAE without the next value", "advantages too small, critic useless", "ppo.py", "delta = rewards[:, t] + gamma * next_value - values[:, t]", "delta = rewards[:, t] - values[:, t]",
        "test_gae_by_hand_on_three_tokens"),
    Bug("whitened before the returns", "the value network learns the wrong returns", "ppo.py", "return advantages, (advantages + values) * mask", "return whiten(advantages, mask), (whiten(advantages, mask) + values) * mask",
        "test_gae_by_hand_on_three_tokens"),
    Bug("the mean is over padding too", "short responses weigh less", "ppo.py", "return (x * mask).sum() / mask.sum()", "return (x * mask).mean()",
        "test_the_policy_loss_is_a_mean_over_response_tokens or test_whitening_sees_response_tokens_only"),
    Bug("min for max in the clipped loss", "bad steps are forgiven, the policy collapses", "ppo.py",
        "loss = masked_mean(torch.maximum(unclipped, clipped), mask)",
        "loss = masked_mean(torch.minimum(unclipped, clipped), mask)",
        "test_clipping_stops_steps_that_went_far_enough_and_no_others"),
    Bug("the advantage has its sign turned", "the score falls", "ppo.py",
        "unclipped = -advantages * ratio ",
        "unclipped = advantages * ratio ",
        "test_clipping_stops_steps_that_went_far_enough_and_no_others"),
    Bug("the value is one token late", "the baseline knows the action: gradient too small", "ppo.py",
        "columns = prompt_lengths[:, None] - 1 + steps",
        "columns = prompt_lengths[:, None] + steps",
        "test_the_response_is_cut_out_one_to_the_left_of_its_tokens"),
    Bug("the mask is ids != pad", "a sampled pad vanishes", "ppo.py",
        "mask = (positions < response_lengths[:, None]).float()",
        "mask = torch.tensor([[float(t != pad) for t in r] + [0.0] * (len(positions) - len(r))\n                         for r in responses])",
        "test_the_mask_comes_from_lengths_and_not_from_ids"),
    Bug("PPO does not learn the end of a response", "no gradient on end-of-text", "ppo.py",
        "mask = (positions < response_lengths[:, None]).float()",
        "mask = (positions < response_lengths[:, None] - 1).float()",
        "test_the_mask_comes_from_lengths_and_not_from_ids"),
    Bug("the ratio without exp", "half of the tokens are clipped from the start", "ppo.py",
        "ratio = (logprobs - old_logprobs).exp() ",
        "ratio = logprobs - old_logprobs ",
        "test_clipping_stops_steps_that_went_far_enough_and_no_others"),
    Bug("k2 called k3", "a biased KL", "ppo.py", "return k1, (-k1).exp() - 1 + k1", "return k1, k1 ** 2 / 2", "test_both_kl_estimates_are_unbiased_and_k3_is_never_negative"),
    Bug("gamma_ptx is forgotten", "PPO-ptx pays the alignment tax", "ppo.py", "(config.gamma_ptx * ptx_loss).backward()", "pass", "test_the_gradient_of_ppo_ptx_is_the_sum_of_its_parts"),
    Bug("every part of a minibatch weighs the same", "tokens of short responses count more", "ppo.py",
        "share = part[\"mask\"].sum() / n_tokens",
        "share = torch.tensor(1.0)",
        "test_a_step_is_the_same_in_however_many_parts_it_is_worked_out"),
    Bug("gradients are not clipped", "one odd batch ruins the policy", "ppo.py", "grad_norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)",
        "grad_norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), 1e9)", "test_a_step_is_clipped_and_leaves_no_gradient_behind"),
    Bug("gradients pile up", "each step repeats all earlier ones", "ppo.py", "        optimizer.zero_grad()\n", "        pass\n", "test_a_step_is_clipped_and_leaves_no_gradient_behind"),
    Bug("dropout on in the rollout", "ratio is not 1, negative KL", "model.py", "return model.eval()", "return model.train()",
        "test_on_the_first_minibatch_the_ratio_is_1_and_the_kl_is_0"),
    Bug("log-probs at another temperature", "negative KL", "model.py", "(logits / temperature)", "(logits / (temperature * 0.7))", "test_logprobs_are_log_softmax_with_pad_left_out"),
    Bug("positions count the left padding", "an answer depends on its neighbours", "model.py", "positions = (not_pad.cumsum(1) - 1).clamp(min=0)", "positions = torch.arange(T).expand(len(prompts), T)",
        "test_a_prompt_is_answered_alike_whatever_its_neighbours"),
    Bug("attention sees the left padding", "an answer depends on its neighbours", "model.py", "attn_mask = not_pad[:, None, None, :]", "attn_mask = torch.ones_like(not_pad)[:, None, None, :]",
        "test_a_prompt_is_answered_alike_whatever_its_neighbours"),
    Bug("pad can be sampled", "holes in responses", "model.py", "index_fill(-1, pad_id, float(\"-inf\"))", "index_fill(-1, pad_id, 0.0)",
        "test_pad_is_never_sampled_even_if_the_model_wants_nothing_else"),
    Bug("pad is end-of-text", "responses never learn to stop", "model.py", "        return self.vocab_size - 1", "        return self.vocab_size - 2", "test_pad_is_never_sampled_even_if_the_model_wants_nothing_else or test_logprobs_are_log_softmax_with_pad_left_out"),
    Bug("one side always stands second", "a win rate that depends on the side", "data/labeler.py", "            if rng.random() < 0.5:\n                votes", "            if True:\n                votes", "test_no_side_of_a_comparison_has_an_advantage"),
    Bug("the score passes a gradient", "the policy learns to move the reward model", "ppo.py", "@torch.no_grad()\ndef rollout", "def rollout", "test_what_a_rollout_returns_fits_together"),
    Bug("an endless response costs nothing", "responses never stop", "ppo.py", "scores = scores - config.missing_eos_penalty * (1 - ended)", "scores = scores - 0 * (1 - ended)",
        "test_what_a_rollout_returns_fits_together"),
    Bug("the best of 16 is the worst", "choosing among samples makes answers worse", "ppo.py",
        "scores.index(max(scores))",
        "scores.index(min(scores))",
        "test_the_best_of_16_is_the_one_that_the_reward_model_likes_best_for_each_prompt"),
    Bug("the gap is closed to 0.9", "PPO-ptx seems better than it is", "ppo.py",
        "(best - sft) / (1 - sft)", "(best - sft) / (0.9 - sft)",
        "test_the_gap_closed_is_a_share_of_the_distance_from_sft_to_a_perfect_answerer"),
    Bug("the warm-up never ends", "PPO learns at a tenth of its rate", "ppo.py",
        "round(0.02 * iterations)", "round(20 * iterations)",
        "test_the_rate_starts_at_a_tenth_is_whole_after_two_per_cent_of_the_iterations_and_stays"),
    Bug("the value network is the reward model", "the reward model moves while it judges",
        "ppo.py", "copy.deepcopy(reward_model)", "reward_model",
        "test_the_reference_and_the_reward_model_never_move"),
    Bug("the reference is the policy itself", "KL stays 0: beta does nothing", "ppo.py",
        "reference = load_model(sft_mix, device)",
        "reference = policy",
        "test_the_reference_and_the_reward_model_never_move"),
    Bug("every iteration asks the same prompts", "PPO sees an eighth of its prompts", "ppo.py",
        "queue = queue[config.rollout_size:]",
        "pass",
        "test_every_prompt_is_seen_before_one_comes_again"),
    Bug("minibatches are drawn with repetition", "some episodes count twice, others never",
        "ppo.py", "torch.randperm(len(prompts), generator",
        "torch.randint(len(prompts), (len(prompts),), generator",
        "test_minibatches_cover_a_rollout_once_in_each_pass_over_it"),
    Bug("decay and its complement are swapped", "the average is the last policy", "ppo.py",
        "ema.lerp_(now, 1 - decay)",
        "ema.lerp_(now, decay)",
        "test_at_the_end_the_average_has_forgotten_all_but_two_hundredths_of_the_start"),
    Bug("the last policy is kept, not the average", "a noisier policy is evaluated", "ppo.py",
        "iterations, ema_policy, value_net)\n",
        "iterations, policy, value_net)\n",
        "test_the_averaged_policy_is_saved_and_the_value_network_as_it_is"),
    Bug("gamma_ptx is read from the settings", "every gamma_ptx trains like the default", "ppo.py",
        "replace(config, gamma_ptx=gamma_ptx)", "replace(config)",
        "test_documents_are_mixed_in_with_gamma_ptx_and_only_then"),
    Bug("rollouts at temperature 0.7", "ratio 1 on samples of another policy", "ppo.py",
        "generate(policy, prompt_ids, MAX_NEW_TOKENS, 1.0",
        "generate(policy, prompt_ids, MAX_NEW_TOKENS, 0.7",
        "test_a_rollout_samples_from_the_policy_itself_at_temperature_1"),
    Bug("rollouts sample from the reference", "negative KL, and the score stays", "ppo.py",
        "generate(policy, prompt_ids,",
        "generate(reference, prompt_ids,",
        "test_a_rollout_samples_from_the_policy_itself_at_temperature_1"),
    Bug("a learning rate 30 times too large", "the entropy falls to 0", "ppo.py",
        '"peak": config.lr}', '"peak": config.lr_norm}',
        "test_the_last_layer_norm_of_the_policy_alone_has_a_rate_of_its_own"),
    Bug("all weights share one rate", "the policy cannot grow surer or less sure", "ppo.py",
        '"peak": config.lr_norm', '"peak": config.lr',
        "test_the_last_layer_norm_of_the_policy_alone_has_a_rate_of_its_own"),
    Bug("explained variance upside down", "a critic that knows all seems to know nothing",
        "ppo.py", "explained_variance=1 - unexplained", "explained_variance=unexplained",
        "test_a_value_network_that_knows_every_return_explains_all_variance"),
    Bug("the ratio of the last minibatch is logged", "a log that can prove nothing", "ppo.py",
        'steps[0]["ratio"]', 'steps[-1]["ratio"]',
        "test_the_ratio_is_logged_before_the_policy_has_moved_in_the_iteration"),
    Bug("training labelers judge the evaluation", "win rates of those who were learnt from",
        "ppo.py", 'get_labelers("held_out")', 'get_labelers("train")',
        "test_all_preferences_are_those_of_all_held_out_labelers_over_all_prompts"),
    Bug("the same five people judge everything", "win rates of five tastes, not of twenty",
        "data/labeler.py", "rng.sample(labelers, judges)", "labelers[:judges]",
        "test_five_different_people_judge_each_prompt_and_not_always_the_same"),
    Bug("an error that shrinks with n", "intervals far too narrow", "data/judge.py",
        "deviation / len(shares) ** 0.5", "deviation / len(shares)",
        "test_an_interval_is_1_96_standard_errors_wide_with_n_less_one"),
    Bug("KL to the baseline", "a KL to a model PPO never started from", "ppo.py",
        'load_model(out / "sft_mix.pt", device)', 'load_model(out / "sft.pt", device)',
        "test_the_kl_of_sft_and_of_both_policies_is_measured_to_the_model_that_ppo_started_from"),
    Bug("silence counts as honesty", "a model that says nothing hallucinates least", "data/judge.py",
        'if response["text"]:', "if True:",
        "test_hallucination_is_a_share_of_what_was_said_in_the_closed_domain"),
    Bug("answers are not cut at the line break", "GPT is judged by the questions it asks next", "data/tokenizer.py",
        "{\"text\": first.strip()",
        "{\"text\": response[\"text\"].strip()",
        "test_an_answer_ends_at_its_first_line_break"),
    Bug("the perfect answerer stands second", "a ceiling below a half", "ppo.py",
        "win_rate(perfect, responses[\"sft\"])",
        "win_rate(responses[\"sft\"], perfect)",
        "test_the_ceiling_is_how_often_flawless_answers_are_preferred_to_the_sft_baseline"),
    Bug("PPO-ptx runs without gamma_ptx", "PPO and PPO-ptx are the same", "ppo.py",
        "config.iterations, config.gamma_ptx)", "config.iterations, 0.0)",
        "test_the_stages_follow_each_other_as_in_the_paper_and_ppo_twice"),
    # people who rank
    Bug("the order is taken for the ranks", "the RM learns a taste that nobody has", "data/label.py",
        "ranks[int(number) - 1] = rank", "ranks[rank - 1] = int(number)", "test_numbers_from_best_to_worst_give_ranks"),
    Bug("the ranks of another order", "the RM learns noise", "data/label.py",
        "\"responses\": responses, \"ranks\": ranks", "\"responses\": row[\"responses\"], \"ranks\": ranks",
        "test_a_hundred_and_fifty_rankings_by_one_taste_stand_in_the_file_as_they_were_typed"),
    Bug("an agreement of places, not of responses", "nobody agrees with himself", "data/label.py",
        "list(map(earlier.get, texts))", "list(earlier.values())", "test_agreement_with_oneself_compares_responses_and_not_places"),
    Bug("who ties everything agrees with all", "the lazy seem reliable", "data/label.py",
        "agree.append(0.5)", "agree.append(1.0)", "test_agreement_by_hand"),
    Bug("half a line stays", "the next ranking is lost in it", "data/label.py",
        "os.truncate(path, start)", "pass", "test_half_a_last_line_is_cut_off_and_a_whole_one_without_a_line_break_kept"),
    # beside PPO
    Bug("REINFORCE goes downhill", "the reward falls", "notebooks/methods.py", "return -(advantages * (logprobs * mask).sum(1)).mean()",
        "return (advantages * (logprobs * mask).sum(1)).mean()", "test_the_gradient_of_reinforce_pushes_every_token_of_a_response_by_its_advantage"),
    Bug("REINFORCE takes the mean over tokens", "long responses count less", "notebooks/methods.py",
        "(logprobs * mask).sum(1)).mean()", "(logprobs * mask).sum(1) / mask.sum(1)).mean()",
        "test_the_gradient_of_reinforce_pushes_every_token_of_a_response_by_its_advantage"),
    Bug("a response's penalty is that of one token", "the policy drifts", "notebooks/methods.py",
        "log_ratio = ((logprobs - ref_logprobs) * mask).sum(1) ", "log_ratio = ((logprobs - ref_logprobs) * mask).mean(1)",
        "test_the_reward_of_a_response_is_its_score_less_beta_times_its_whole_log_ratio"),
    Bug("leave one out leaves nobody out", "the gradient is biased", "notebooks/methods.py",
        "others = (groups.sum(1, keepdim=True) - groups) / (k - 1)", "others = groups.mean(1, keepdim=True)",
        "test_leave_one_out_compares_each_response_with_the_mean_of_the_others"),
    Bug("leave one out divides by k", "the baseline is too low", "notebooks/methods.py", "- groups) / (k - 1)", "- groups) / k",
        "test_leave_one_out_compares_each_response_with_the_mean_of_the_others"),
    Bug("GRPO's deviation is over the batch", "easy prompts count most", "notebooks/methods.py",
        "(groups.std(1, keepdim=True) + 1e-4)", "(groups.std() + 1e-4)", "test_grpo_divides_by_the_standard_deviation_of_the_group"),
    Bug("GRPO without its small number", "NaN when all responses are alike", "notebooks/methods.py",
        "(groups.std(1, keepdim=True) + 1e-4)", "groups.std(1, keepdim=True)", "test_grpo_divides_by_the_standard_deviation_of_the_group"),
    Bug("GRPO forgets 1/|y|", "long wrong answers are pushed hard", "notebooks/methods.py",
        "return -(gain.sum(1) / mask.sum(1)).mean()", "return -gain.sum() / len(gain)",
        "test_grpo_gives_every_response_the_same_weight_and_unnormalised_every_token"),
    Bug("GRPO clips the bad direction too", "mistakes stay", "notebooks/methods.py",
        "gain = torch.minimum(unclipped, clipped) * mask", "gain = clipped * mask",
        "test_a_ratio_beyond_the_clip_has_no_gradient_only_in_the_good_direction"),
    Bug("DPO forgets the reference", "it starts from a preference of its own", "notebooks/methods.py",
        "margins = beta * ((chosen - ref_chosen) - (rejected - ref_rejected))", "margins = beta * (chosen - rejected)",
        "test_dpo_starts_at_log_2_and_rewards_a_margin_over_the_reference"),
    Bug("DPO prefers the rejected", "gold falls from the first step", "notebooks/methods.py",
        "return -F.logsigmoid(margins).mean()", "return -F.logsigmoid(-margins).mean()",
        "test_dpo_starts_at_log_2_and_rewards_a_margin_over_the_reference"),
    Bug("DPO trains on ties", "half of its labels are noise", "notebooks/methods.py", "if ranks[i] < ranks[j]]", "if ranks[i] <= ranks[j]]",
        "test_a_pair_of_dpo_is_never_a_tie_and_the_better_one_comes_first"),
    Bug("the worst of n is distilled", "the policy learns to be bad", "notebooks/methods.py", "best = batch[\"scores\"].view(-1, n).argmax(1).tolist()",
        "best = batch[\"scores\"].view(-1, n).argmin(1).tolist()", "test_the_best_of_n_is_each_prompts_own_response_with_the_highest_score"),
    Bug("the best of n of another prompt", "answers to other questions", "notebooks/methods.py", "batch[\"answers\"][j * n + b]",
        "batch[\"answers\"][b]", "test_the_best_of_n_is_each_prompts_own_response_with_the_highest_score"),
    # export
    Bug("a matrix is not turned for GPT-2", "the exported model babbles", "data/export.py",
        'TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")', 'TRANSPOSED = ("c_attn.weight", "c_fc.weight")',
        "test_gpt_2_keeps_its_matrices_the_other_way_round"),
    Bug("only one way to make a token is exported", "other ids than tiktoken's", "data/export.py",
        'pairs.append(f"{spelled(left)} {spelled(right)}")', 'pairs.append(f"{spelled(left)} {spelled(right)}"); break',
        "test_every_pair_of_tokens_that_makes_a_token_is_a_merge"),
    Bug("a tie is exported as a preference", "DPO learns from a coin", "data/export.py",
        "if rank < other_rank:", "if rank <= other_rank:", "test_the_data_are_in_trls_standard_formats"),
    Bug("a cut response is exported as a whole one", "TRL teaches to end anywhere", "data/export.py",
        'if response["ended"] and response["text"]:', 'if response["text"]:', "test_the_data_are_in_trls_standard_formats"),
    Bug("the folder samples from the top 50 tokens", "other answers, other KL", "data/export.py",
        '"top_k": 0,', '"top_k": 50,', "test_the_folder_samples_from_the_whole_distribution_without_pad"),
    # people's texts and rankings
    Bug("a prompt is on both sides", "an accuracy on prompts that were trained on", "data/own.py",
        'sides[ranking["prompt"] in measured].append', "sides[rng.random() < 0.1].append",
        "test_a_prompt_is_trained_on_or_measured_on_and_a_tenth_is_measured_on"),
    Bug("a ranking counts as often as it is given", "one person outvotes the others", "data/own.py",
        "rankings[repr(ranking)] = ranking", "rankings[len(rankings)] = ranking",
        "test_the_rankings_of_several_files_are_pooled_and_a_ranking_counts_once_per_person"),
    Bug("a tie is taken for disagreement", "people seem to agree less than they do", "data/own.py",
        "agree.append(0.5 if tie else float(vote == other))", "agree.append(float(vote == other))",
        "test_two_people_agree_on_as_many_pairs_as_by_hand"),
    Bug("only the start of a long document is read", "a book teaches no more than its title page",
        "data/own.py", "for start in range(0, len(ids) - 1, size)", "for start in [0]",
        "test_a_long_document_is_cut_into_windows_that_hold_all_of_it"),
    Bug("the user's tasks go to Toytown's judge", "a gold utility where nobody knows the truth",
        "data/files.py", '            row.pop("task", None)\n', "",
        "test_a_task_in_the_user_s_rows_is_not_a_task_of_toytown"),
    Bug("the assistant asks and the user answers", "SFT learns to write prompts", "data/files.py",
        '{"user": "prompt", "assistant": "completion"}',
        '{"assistant": "prompt", "user": "completion"}',
        "test_messages_are_read_where_prompts_and_completions_are"),
]


def copy_project(folder):
    """A copy of the scripts, the world and the tests in folder/project: its path."""
    left_out = shutil.ignore_patterns("out*", ".git", "*venv*", "corpus.txt", "__pycache__", ".pytest_cache", ".readme",
                                      "runs", "results", "checkpoints", "*.ipynb")
    return Path(shutil.copytree(ROOT, Path(folder) / "project", ignore=left_out))


def put(bug, copy):
    """Makes one line of a copy wrong; returns the file and what it held."""
    path = copy / bug.file
    right = path.read_text(encoding="utf-8")
    if right.count(bug.right) != 1:
        raise SystemExit(f"{bug.name}: {bug.right!r} stands {right.count(bug.right)} times in {bug.file}, not once")
    path.write_text(right.replace(bug.right, bug.wrong), encoding="utf-8", newline="\n")
    return path, right


def holds_one_of(path, tests):
    """Whether a file of tests is there and defines one of these; to read the others would take seconds a bug."""
    return path.exists() and any(f"def {test}(" in path.read_text(encoding="utf-8") for test in tests)


def run_tests(folder, expression):
    """The named tests in a copy of the project: (pytest's exit code, the test that failed or pytest's last line)."""
    files = [name for name in FILES if holds_one_of(Path(folder) / name, expression.split(" or "))]
    done = subprocess.run([sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *files, "-k", expression],
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
        print(f"{name:48}{file:17}{symptom:52}{caught}")
    print(f"\n{len(BUGS) - len(unnoticed)} of {len(BUGS)} bugs noticed")
    return unnoticed


if __name__ == "__main__":
    guarded(lambda: sys.exit(1 if main() else 0))
