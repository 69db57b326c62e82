"""`python ppo.py --quick`: its flag, a whole quick run, its base model, folders that it refuses.

The whole runs have tiny models in a small world of their own. The tests share two of them: a quick
run and a default run.
"""
import contextlib
import io
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import model
import ppo
import reward
import sft
from data import figures, files, flags, judge, prepare, quick
from data.files import UserError, load_checkpoint

SIZES = {"demonstrations": 80, "prompts_rm": 60, "prompts_rl": 40,
         "prompts_valid": 16, "prompts_eval": 24, "prompts_closed": 16}
N_PROMPTS = 10
PRETRAINING = {"n_layer": 1, "n_head": 1, "n_embd": 16, "steps": 10, "lr": 0.02, "lr_rest": 6e-3}
TINY = {
    "sft": {"epochs": 2, "mix_epochs": 1, "lr": 3e-3},
    "reward": {"prompts_1": 30, "k": 4, "epochs": 1},
    "ppo": {"out": "out_tiny", "iterations": 2, "rollout_size": 16, "minibatch_size": 8},
}
# The settings of the default run: one epoch of SFT tells it from the quick run
DEFAULT_SFT = TINY["sft"] | {"epochs": 1}
DEFAULT_REWARD = TINY["reward"] | {"prompts_2": 10}
DEFAULT_PPO = TINY["ppo"] | {"iterations_1": 1}


def parse(*words):
    """The settings of `python ppo.py` followed by these words."""
    return flags.parse_flags(ppo.Config, ppo.__doc__, list(words), quick=quick.SETTINGS["ppo"])


# ---------------------------------------------------------------- the flag


def test_quick_has_a_folder_of_its_own_and_half_the_iterations():
    assert parse("--quick") == ppo.Config(quick=True, out="out_quick", iterations=24)
    assert ppo.Config().iterations == 40


def test_without_quick_the_defaults_are_untouched():
    assert parse() == ppo.Config()
    assert not ppo.Config().quick
    assert parse("--iterations", "7") == ppo.Config(iterations=7)


@pytest.mark.parametrize("words, changes", [
    (["--quick", "--iterations", "40"], {"out": "out_quick", "iterations": 40}),
    (["--iterations", "40", "--quick"], {"out": "out_quick", "iterations": 40}),
    (["--quick", "--out", "x"], {"out": "x", "iterations": 24}),
    (["--quick", "--out", "out"], {"out": "out", "iterations": 24}),
    (["--quick", "--seed", "2"], {"out": "out_quick", "iterations": 24, "seed": 2}),
])
def test_a_flag_beside_quick_counts_more_even_if_it_repeats_the_default(words, changes):
    assert parse(*words) == ppo.Config(quick=True, **changes)


@pytest.mark.parametrize("words", [["--quick=1"], ["--quick", "1"], ["--quick", "False"]])
def test_quick_takes_no_value(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(*words)
    assert stopped.value.code == 2
    assert words[-1].removeprefix("--quick=") in capsys.readouterr().err


def test_help_shows_quick_without_a_value_and_what_it_does(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert "--quick less of everything, from a ready base model (data/quick.py)" in shown


def test_the_main_guard_of_ppo_hands_over_the_quick_settings():
    guard = Path(ppo.__file__).read_text(encoding="utf-8").splitlines()[-1].strip()
    assert guard == 'run_script(main, Config, __doc__, quick.SETTINGS["ppo"])'


def test_every_quick_setting_is_a_smaller_one_of_its_stage_and_only_in_quick_runs():
    stages = {"sft": sft.Config(), "reward": reward.Config(), "ppo": ppo.Config()}
    assert quick.SETTINGS.keys() == stages.keys()
    for stage, changes in quick.SETTINGS.items():
        for name, value in changes.items():
            default = getattr(stages[stage], name)
            assert name == "out" or 0 < value < default, f"{stage}: {name}"
        assert quick.settings(ppo.Config(quick=True), stage) == changes
        assert quick.settings(ppo.Config(), stage) == {}


# ---------------------------------------------------------------- the gain in gold utility


@pytest.fixture
def utilities(monkeypatch):
    """A judge for whom a response is its own utility."""
    monkeypatch.setattr(judge, "judge_all", lambda rows, responses: [
        SimpleNamespace(utility=response) for response in responses
    ])


OURS = [0.9, 0.4, 0.7, 0.6]
THEIRS = [0.4, 0.4, 0.45, 0.35]


def test_the_gain_is_the_mean_difference_with_an_interval_of_1_96_paired_standard_errors(utilities):
    """Differences 0.5, 0, 0.25, 0.25: mean 0.25, variance 0.125 / 3, standard error 0.10206."""
    found = judge.gain([None] * 4, OURS, THEIRS)
    assert found == pytest.approx([0.25, 0.25 - 1.96 * 0.10206, 0.25 + 1.96 * 0.10206], abs=1e-5)


def test_what_one_side_gains_the_other_loses(utilities):
    mean, low, high = judge.gain([None] * 4, OURS, THEIRS)
    assert judge.gain([None] * 4, THEIRS, OURS) == pytest.approx([-mean, -high, -low])
    assert judge.gain([None] * 4, OURS, OURS) == [0, 0, 0]


# ---------------------------------------------------------------- a small world and two runs


def letters_as_utility(task, text, ended):
    """A judge with whom no two models are equal, although none of them answers anything."""
    utility = sum(text.encode()) % 11 / 10
    return judge.Judgement(utility, True, None, None, True, False, 4)


@dataclass
class Place:
    """Where the tiny runs work: their world and the base model that is shipped with it."""
    world: Path
    shipped: Path

    @contextlib.contextmanager
    def entered(self):
        """Let the quick settings, the shipped model and the world be the tiny ones."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files, "FOLDER", self.world)
            patch.setattr(quick, "SHIPPED", self.shipped / "half.pt")
            patch.setattr(quick, "SETTINGS", TINY)
            patch.setattr(quick, "N_PROMPTS", {True: N_PROMPTS, False: None})
            patch.setattr(judge, "judge", letters_as_utility)
            patch.setattr(reward, "agreement", lambda *_: 0.5)          # slow, and not tested here
            yield


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A base model of the small world, with seed 1, as gpt.pt and with half precision, half.pt."""
    made = Place(tmp_path_factory.mktemp("world"), tmp_path_factory.mktemp("shipped"))
    prepare.prepare(made.world, SIZES, corpus_words=5_000)
    with made.entered():
        model.train(model.Config(out=str(made.shipped), **PRETRAINING))
        saved = load_checkpoint(made.shipped / "gpt.pt")
        weights = {name: tensor.half() for name, tensor in saved["state"].items()}
        files.save(made.shipped / "half.pt", saved["kind"], saved["config"], weights,
                   saved["extra"])
    return made


@pytest.fixture
def small(place):
    """The same for one test."""
    with place.entered():
        yield place


def run_quick(out, *words, **stages):
    """The results of `python ppo.py --quick --out OUT` and more words."""
    config = parse("--quick", "--out", str(out), *words)
    pretrain = model.Config(seed=config.seed, out=config.out, **PRETRAINING)
    return ppo.run(config, **{"pretrain": pretrain} | stages)


def run_default(out):
    """The results of a run without --quick, with tiny settings."""
    common = {"out": str(out)}
    return ppo.run(ppo.Config(**DEFAULT_PPO | common),
                   pretrain=model.Config(**PRETRAINING | common),
                   sft=sft.Config(**DEFAULT_SFT | common),
                   reward_1=reward.Config(**DEFAULT_REWARD | common, round=1),
                   reward_2=reward.Config(**DEFAULT_REWARD | common, round=2))


def noting(asked):
    """ppo.answer, but it also notes how many prompts a model is asked."""
    answer = ppo.answer

    def noted(name, policy, prompts, *rest):
        asked.append(len(prompts))
        return answer(name, policy, prompts, *rest)

    return noted


@dataclass
class Run:
    """A finished run: its folder, its results, what it printed and how much it asked its models."""
    out: Path
    results: dict
    printed: str
    asked: list

    def extra(self, name):
        """Where a checkpoint of the run came from."""
        return load_checkpoint(self.out / f"{name}.pt")["extra"]


@pytest.fixture(scope="module")
def finished(place, tmp_path_factory):
    """A quick run that nothing has interrupted."""
    out = tmp_path_factory.mktemp("out_quick")
    printed = io.StringIO()
    asked = []
    with place.entered(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(ppo, "answer", noting(asked))
        with contextlib.redirect_stdout(printed):
            results = run_quick(out)
    return Run(out, results, printed.getvalue(), asked)


@pytest.fixture(scope="module")
def default(place, tmp_path_factory):
    """A default run without pictures, from a base model that `model.train` has made."""
    out = tmp_path_factory.mktemp("out")
    for name in ("gpt.pt", "gpt.jsonl"):
        shutil.copy(place.shipped / name, out)
    printed = io.StringIO()
    asked = []
    with place.entered(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "plot_run", lambda *_: None)
        patch.setattr(ppo, "answer", noting(asked))
        with contextlib.redirect_stdout(printed):
            results = run_default(out)
    return Run(out, results, printed.getvalue(), asked)


def stop(*_):
    """In place of a stage: Ctrl-C at its beginning."""
    raise KeyboardInterrupt


def fail(*_):
    """In place of a stage that must not run again."""
    raise AssertionError("trained again")


def contents(out, pattern="*.*"):
    """The bytes of every file in a folder."""
    return {path: path.read_bytes() for path in sorted(out.rglob(pattern))}


def sha256(path):
    return load_checkpoint(path)["sha256"]


# ---------------------------------------------------------------- a whole quick run


def test_a_quick_run_makes_one_round_of_rankings_and_one_policy(finished):
    made = {path.stem for path in finished.out.rglob("*.pt")}
    models = {"gpt", "sft_mix", "reward_1", "sft", "ppo_ptx", "ppo_ptx_value"}
    assert made == models | {"01", "02"}
    rankings = files.read_rankings(finished.out / "rankings.jsonl")
    assert {ranking["round"] for ranking in rankings} == {1}


def test_every_stage_of_a_quick_run_has_the_quick_settings(finished):
    for name, stage in (("sft_mix", "sft"), ("reward_1", "reward"), ("ppo_ptx", "ppo")):
        settings = finished.extra(name)["settings"]
        for key, value in TINY[stage].items():
            assert key == "out" or settings[key] == value, f"{name}: {key}"
    assert finished.extra("ppo_ptx")["settings"]["gamma_ptx"] == ppo.Config().gamma_ptx > 0


def test_the_policy_of_a_quick_run_comes_from_the_reference_and_the_first_reward_model(finished):
    parents = finished.extra("ppo_ptx")["parents"]
    expected = {name: sha256(finished.out / f"{name}.pt") for name in ("sft_mix", "reward_1")}
    assert parents == expected


def test_the_results_of_a_quick_run_have_the_reference_in_place_of_ppo(finished):
    written = json.loads((finished.out / "results.json").read_text(encoding="utf-8"))
    assert list(written["models"]) == quick.MODELS
    assert quick.MODELS == ["gpt", "gpt_prompted", "sft", "sft_best_of_16", "sft_mix", "ppo_ptx"]
    assert written["models"]["sft_mix"]["kl"] == pytest.approx(0, abs=1e-4)
    assert written["seconds"]["pretrain"] == 0
    assert written["seconds"]["ppo"] > 0
    assert written == json.loads(json.dumps(finished.results))


def test_a_quick_run_asks_each_model_the_first_prompts_of_both_sets(finished):
    """The evaluation prompts and the closed-domain ones."""
    assert finished.asked == [N_PROMPTS, N_PROMPTS] * len(quick.MODELS)


def test_the_gain_of_a_quick_run_is_that_of_ppo_ptx_over_the_reference(finished):
    mean, low, high = finished.results["gain"]
    models = finished.results["models"]
    difference = models["ppo_ptx"]["utility"] - models["sft_mix"]["utility"]
    assert mean == pytest.approx(difference)
    assert low < mean < high and mean != 0


def test_the_table_of_a_quick_run_has_a_column_for_the_reference_and_a_line_for_the_gain(finished):
    titles = ["GPT", "GPT (prompted)", "SFT", "SFT best of 16", "reference", "PPO-ptx"]
    assert " " * 30 + "".join(f"{title:>16}" for title in titles) in finished.printed.splitlines()
    mean, low, high = finished.results["gain"]
    assert (f"gold utility of PPO-ptx above the reference {mean:.3f} [{low:.3f}, {high:.3f}]"
            in finished.printed.splitlines())
    assert "      reference: " in finished.printed      # among the answers side by side


def test_every_picture_of_a_quick_run_is_made(finished):
    for name in ("losses", "reward", "ppo", "figures"):
        assert (finished.out / f"{name}.png").stat().st_size > 5_000


def test_the_pictures_of_a_quick_run_show_what_it_has(finished, monkeypatch):
    """No pretraining curve, one policy, and the reference among six models."""
    drawn = {}

    def keep(figure, path):
        drawn[path.stem] = figure.axes
        figures.plt.close(figure)

    monkeypatch.setattr(figures, "save", keep)
    figures.plot_run(finished.out, finished.results)
    assert "the base model\nof notebooks/checkpoints" in drawn["losses"][0].texts[0].get_text()
    curves = [line.get_label() for line in drawn["ppo"][0].lines]
    assert curves == ["PPO-ptx"]
    ticks = [tick.get_text() for tick in drawn["figures"][0].get_xticklabels()]
    assert ticks == ["GPT", "GPT\n(prompted)", "SFT", "SFT\nbest of 16", "reference", "PPO-ptx"]
    legend = [text.get_text() for text in drawn["figures"][1].get_legend().get_texts()]
    assert legend == [tick.replace("\n", " ") for tick in ticks]


# ---------------------------------------------------------------- the same command again


def test_the_same_quick_command_trains_nothing_and_gives_the_same_results(
        small, finished, monkeypatch):
    for stage in (model, sft, reward):
        monkeypatch.setattr(stage, "train", fail)
    monkeypatch.setattr(ppo, "train_policy", fail)
    monkeypatch.setattr(figures, "plot_run", lambda *_: None)
    before = contents(finished.out, "*.pt")
    results = run_quick(finished.out)
    assert contents(finished.out, "*.pt") == before
    for key in ("models", "ppo_ptx_preferred_to", "ceiling_vs_sft", "gain", "reward_model"):
        assert results[key] == finished.results[key], key


def without_policy(finished, out):
    """A copy of the quick run, killed before PPO had made anything."""
    shutil.copytree(finished.out, out)
    for path in [*out.glob("ppo_ptx*"), out / "ppo.png", out / "results.json"]:
        path.unlink()
    return out


def test_a_quick_run_killed_after_its_reward_model_goes_on_with_ppo_and_ends_with_the_same_bits(
        small, finished, tmp_path, monkeypatch):
    out = without_policy(finished, tmp_path / "out")
    monkeypatch.setattr(sft, "train", fail)
    monkeypatch.setattr(reward, "train", fail)
    monkeypatch.setattr(ppo, "evaluate", lambda config: ({**finished.results}, [], []))
    run_quick(out)
    for name in ("gpt", "reward_1", "sft", "ppo_ptx", "ppo_ptx_value"):
        assert sha256(out / f"{name}.pt") == sha256(finished.out / f"{name}.pt"), name
    assert (out / "results.json").exists()


def test_a_quick_run_killed_before_the_picture_of_its_reward_model_makes_both_again(
        small, finished, tmp_path, monkeypatch):
    """No second round would draw it. The models get the same bits."""
    out = without_policy(finished, tmp_path / "out")
    (out / "reward.png").unlink()
    monkeypatch.setattr(sft, "train", fail)
    monkeypatch.setattr(ppo, "train_policy", stop)
    with pytest.raises(KeyboardInterrupt):
        run_quick(out)
    assert (out / "reward.png").stat().st_size > 5_000
    for name in ("reward_1", "sft"):
        assert sha256(out / f"{name}.pt") == sha256(finished.out / f"{name}.pt"), name


# ---------------------------------------------------------------- the base model


def test_the_shipped_base_model_is_of_the_committed_world_and_has_the_default_settings(tmp_path):
    """Otherwise a quick run would take as long as pretraining, or show another model."""
    quick.base_model(ppo.Config(quick=True, out=str(tmp_path)))
    extra = load_checkpoint(tmp_path / "gpt.pt")["extra"]
    assert extra["world"] == files.world_hash()
    default = files.settings_of(model.Config())
    assert {name: extra["settings"][name] for name in default} == default


def test_without_quick_no_base_model_is_borrowed(tmp_path):
    quick.base_model(ppo.Config(out=str(tmp_path)))
    assert list(tmp_path.iterdir()) == []


def test_another_seed_borrows_the_same_base_model_as_its_own(
        small, finished, tmp_path, monkeypatch):
    """In float32, although half precision is shipped. What is made from it differs."""
    monkeypatch.setattr(ppo, "evaluate", stop)
    with pytest.raises(KeyboardInterrupt):
        run_quick(tmp_path, "--seed", "2")
    shipped = load_checkpoint(quick.SHIPPED)
    borrowed = load_checkpoint(tmp_path / "gpt.pt")
    assert shipped["extra"]["seed"] == 1
    assert borrowed["extra"]["seed"] == 2
    assert borrowed["config"] == shipped["config"]
    assert borrowed["state"].keys() == shipped["state"].keys()
    for name, tensor in borrowed["state"].items():
        assert shipped["state"][name].dtype == torch.float16
        assert tensor.dtype == torch.float32
        assert tensor.equal(shipped["state"][name].float()), name
    assert load_checkpoint(tmp_path / "ppo_ptx.pt")["extra"]["seed"] == 2
    one = load_checkpoint(finished.out / "sft_mix.pt")["state"]
    two = load_checkpoint(tmp_path / "sft_mix.pt")["state"]
    assert not one["lm_head.weight"].equal(two["lm_head.weight"])


def test_a_base_model_that_the_user_made_is_kept_and_used_whatever_its_settings(
        small, tmp_path, monkeypatch):
    model.train(model.Config(out=str(tmp_path), **PRETRAINING | {"n_embd": 8, "steps": 2}))
    before = (tmp_path / "gpt.pt").read_bytes()
    monkeypatch.setattr(model, "train", fail)
    monkeypatch.setattr(reward, "train", stop)
    with pytest.raises(KeyboardInterrupt):
        run_quick(tmp_path)
    assert (tmp_path / "gpt.pt").read_bytes() == before
    reference = load_checkpoint(tmp_path / "sft_mix.pt")
    assert reference["config"]["n_embd"] == 8
    assert reference["extra"]["parents"] == {"gpt": sha256(tmp_path / "gpt.pt")}


def test_a_shipped_base_model_of_another_world_is_not_used_and_the_line_says_so(
        small, tmp_path, monkeypatch, capsys):
    saved = load_checkpoint(quick.SHIPPED)
    elsewhere = tmp_path / "elsewhere.pt"
    files.save(elsewhere, saved["kind"], saved["config"], saved["state"],
               saved["extra"] | {"world": "another"})
    monkeypatch.setattr(quick, "SHIPPED", elsewhere)
    monkeypatch.setattr(sft, "train", stop)
    out = tmp_path / "out"
    pretrain = model.Config(out=str(out), **PRETRAINING | {"steps": 1})
    with pytest.raises(KeyboardInterrupt):
        run_quick(out, pretrain=pretrain)
    said = f"{elsewhere} was made in another world: the base model is trained first"
    assert said in capsys.readouterr().out.splitlines()
    extra = load_checkpoint(out / "gpt.pt")["extra"]
    assert extra["settings"]["steps"] == 1 and extra["world"] == files.world_hash()
    assert len(files.read_jsonl(out / "gpt.jsonl")) == 2


def test_without_a_shipped_base_model_a_quick_run_pretrains(small, tmp_path, monkeypatch):
    monkeypatch.setattr(quick, "SHIPPED", tmp_path / "missing.pt")
    monkeypatch.setattr(model, "train", stop)
    with pytest.raises(KeyboardInterrupt):
        run_quick(tmp_path / "out")


# ---------------------------------------------------------------- folders that are refused


def refused(out, run, *given):
    """The line with which a run is refused. The folder must stay as it was."""
    before = contents(out)
    with pytest.raises(UserError) as error:
        run(*given)
    assert contents(out) == before
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_folder_of_quick_is_refused_without_quick(small, finished):
    said = refused(finished.out, run_default, finished.out)
    assert said == (f"{finished.out}/gpt.pt is there because of --quick: "
                    "choose another folder with --out")


def test_a_folder_of_quick_is_refused_even_if_the_user_made_its_base_model(
        small, finished, tmp_path):
    """A default run would keep its policy, which has seen no second round."""
    shutil.copy(small.shipped / "gpt.pt", tmp_path)
    for name in ("ppo_ptx.pt", "sft_mix.pt", "reward_1.pt"):
        shutil.copy(finished.out / name, tmp_path)
    said = refused(tmp_path, run_default, tmp_path)
    assert said == (f"{tmp_path}/ppo_ptx.pt is there because of --quick or --rankings: "
                    "choose another folder with --out")


def test_a_folder_of_a_default_run_is_refused_by_quick(small, default):
    said = refused(default.out, run_quick, default.out)
    assert said.startswith(f"{default.out}/sft_mix.pt was made with --epochs 1, not 2: "
                           "choose another folder with --out")


def test_a_folder_of_quick_with_another_seed_is_refused_and_another_folder_is_named(
        small, finished):
    said = refused(finished.out, run_quick, finished.out, "--seed", "2")
    assert said.startswith(f"{finished.out}/gpt.pt was made with seed 1, not 2: "
                           f"choose another folder, --out {finished.out}_2,")


# ---------------------------------------------------------------- people's rankings


def people(path, n):
    """A file of rankings that people have written, and its flag."""
    rows = []
    for row in files.read_jsonl(files.FOLDER / "prompts_rm.jsonl")[:n]:
        rows.append({"prompt": row["prompt"], "responses": ["Yes.", "No.", "I am sorry."],
                     "ranks": [1, 2, 2], "labeler": "ann"})
    files.write_jsonl(path, rows)
    return ["--rankings", str(path)]


@pytest.fixture
def ranked(small, finished, tmp_path):
    """The quick run up to SFT, and a reward model from people's rankings: (folder, their flag)."""
    out = without_policy(finished, tmp_path / "out")
    for name in ("reward_1.pt", "sft.pt", "reward_1.jsonl", "rankings.jsonl", "reward.png"):
        (out / name).unlink()
    flag = people(tmp_path / "ann.jsonl", 30)
    settings = TINY["reward"] | {"out": str(out), "rankings": flag[1]}
    reward.main(reward.Config(**settings))
    return out, flag


def test_a_reward_model_of_people_is_trained_on_nine_tenths_of_their_rankings(ranked):
    out, _ = ranked
    rankings = files.read_jsonl(out / "rankings.jsonl")
    assert len(rankings) == 27 and {ranking["labeler"] for ranking in rankings} == {"ann"}
    settings = load_checkpoint(out / "reward_1.pt")["extra"]["settings"]
    assert settings["rankings"].startswith("of hash ") and "prompts_1" not in settings


@pytest.mark.parametrize("again", [True, False])
def test_a_quick_run_goes_on_with_the_reward_model_of_people_with_and_without_the_flag(
        ranked, again, monkeypatch):
    out, flag = ranked
    before = sha256(out / "reward_1.pt")
    monkeypatch.setattr(reward, "train", fail)
    results = run_quick(out, *(flag if again else []))
    assert sha256(out / "reward_1.pt") == before
    parents = load_checkpoint(out / "ppo_ptx.pt")["extra"]["parents"]
    assert parents["reward_1"] == before
    assert list(results["models"]) == quick.MODELS
    assert results["reward_model"]["accuracy_gold"] > 0        # Toytown, whose truth is known


def test_the_same_rankings_under_another_name_go_on_and_other_rankings_are_refused(
        ranked, tmp_path, monkeypatch):
    out, _ = ranked
    monkeypatch.setattr(reward, "train", fail)
    monkeypatch.setattr(ppo, "train_policy", stop)
    with pytest.raises(KeyboardInterrupt):
        run_quick(out, *people(tmp_path / "copy.jsonl", 30))
    said = refused(out, run_quick, out, *people(tmp_path / "more.jsonl", 31))
    assert said == (f"{out}/reward_1.pt was made with other rankings than those given now: choose "
                    f"another folder with --out, or delete {out}/reward_1.pt, {out}/sft.pt")


def test_a_default_run_does_not_add_a_round_to_people_s_rankings(small, ranked):
    out, _ = ranked
    shutil.copy(small.shipped / "gpt.pt", out)                  # as if the user had made it
    assert refused(out, run_default, out) == (
        f"{out}/reward_1.pt is there because of --rankings: choose another folder with --out")


def test_people_s_rankings_have_one_round_only(ranked):
    out, flag = ranked
    settings = reward.Config(out=str(out), rankings=flag[1], round=2)
    assert refused(out, reward.train, settings) == (
        "--round 2: people's rankings have one round only")


# ---------------------------------------------------------------- runs without --quick


def test_a_default_run_asks_each_model_all_prompts_of_both_sets(default):
    assert default.asked == [SIZES["prompts_eval"], SIZES["prompts_closed"]] * len(figures.MODELS)


def test_a_default_run_compares_the_six_models_and_reports_no_gain(default):
    assert list(default.results["models"]) == figures.MODELS
    assert figures.MODELS == ["gpt", "gpt_prompted", "sft", "sft_best_of_16", "ppo", "ppo_ptx"]
    assert "gain" not in default.results
    assert "reference" not in default.printed
    made = {path.stem for path in default.out.glob("*.pt")}
    assert made >= {"ppo_1", "reward", "ppo"}


def test_the_settings_of_a_policy_do_not_tell_whether_the_run_was_quick(finished, default):
    assert "quick" not in default.extra("ppo_ptx")["settings"]
    assert finished.extra("ppo_ptx")["settings"] == default.extra("ppo_ptx")["settings"]


def test_the_committed_policy_has_the_settings_of_a_default_run():
    committed = load_checkpoint(quick.SHIPPED.parent / "ppo_ptx.pt")["extra"]["settings"]
    config = ppo.Config()
    settings = ppo.policy_settings(config, "ppo_ptx", config.iterations, config.gamma_ptx)
    assert settings == committed
