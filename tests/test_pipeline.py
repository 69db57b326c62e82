"""The whole run, base model to evaluation, on a world and with models so small that it takes a minute."""
import dataclasses
import hashlib
import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

import model
import ppo
import reward
import sft
from data import files, flags, judge, prepare
from data.files import UserError, load_checkpoint
from model import load_model
from notebooks import lesson

WEIGHTS = ["gpt", "sft_mix", "reward_1", "sft", "ppo_1", "reward", "ppo", "ppo_ptx"]
SIZES = {"demonstrations": 300, "prompts_rm": 1000, "prompts_rl": 400, "prompts_valid": 100, "prompts_eval": 60, "prompts_closed": 30}


@dataclass
class Run:
    """A finished run: its settings, its folder and its results."""
    stages: dict
    out: Path
    results: dict

    def again(self, **changes):
        """The same command once more, or the same but for some flags of ppo.py."""
        return ppo.run(**self.stages | {"config": dataclasses.replace(self.stages["config"], **changes)})

    def metrics(self, name, key):
        """One metric of out/<name>.jsonl, a value a line that has it."""
        rows = [json.loads(line) for line in open(self.out / f"{name}.jsonl", encoding="utf-8")]
        return [row[key] for row in rows if key in row]

    def files(self):
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(self.out.rglob("*.pt"))}


def settings(out):
    """A tiny configuration of every stage; the seed of the run is 1."""
    common = dict(seed=1, out=str(out))
    return {"config": ppo.Config(**common, iterations_1=10, iterations=12, rollout_size=96, minibatch_size=32, lr=2e-3, value_lr=2e-3, beta=0.02,
                                 gamma_ptx=0.3),
            "pretrain": model.Config(**common, n_layer=1, n_head=2, n_embd=32, block_size=128, batch_tokens=2048, steps=300, lr=0.02, lr_rest=6e-3),
            "sft": sft.Config(**common, epochs=2, mix_epochs=2, batch_size=32, lr=3e-3, mix=0.1),
            "reward_1": reward.Config(**common, round=1, prompts_1=500, k=4, epochs=1, batch_size=8, lr=0.005, lr_rest=2e-3),
            "reward_2": reward.Config(**common, round=2, prompts_1=500, prompts_2=500, k=4, epochs=1, batch_size=8, lr=0.005, lr_rest=2e-3)}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run in a small world of its own. The tokenizer is the committed one."""
    world, out = tmp_path_factory.mktemp("world"), tmp_path_factory.mktemp("out")
    prepare.prepare(world, SIZES, corpus_words=60_000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "FOLDER", world)
        stages = settings(out)
        yield Run(stages, out, ppo.run(**stages))


def mean(values):
    return sum(values) / len(values)


# ---------------------------------------------------------------- each stage does its work


def test_pretraining_lowers_the_loss_on_unseen_documents(finished):
    losses = finished.metrics("gpt", "valid_loss")
    assert losses[-1] < 0.6 * losses[0]


def test_fine_tuning_makes_demonstrations_likelier_than_the_base_model_finds_them(finished, encoding):
    pairs = sft.read_demonstrations(encoding)
    pairs = pairs[:len(pairs) // 10]                                    # the tenth that SFT validates on
    base, tuned, mixed = (sft.mean_loss(load_model(finished.out / name), pairs) for name in ("gpt.pt", "sft_epochs/02.pt", "sft_mix.pt"))
    assert tuned < base - 0.1 and mixed < base - 0.1


def test_the_reward_model_learns_preferences_that_hold_on_unseen_prompts(finished):
    for round in (1, 2):
        assert mean(finished.metrics(f"reward_{round}", "loss")[-20:]) < 0.693
    report = finished.results["reward_model"]
    assert report["accuracy_train_labelers"] > 0.5 and report["accuracy_heldout_labelers"] > 0.5


def test_demonstrations_score_0_on_average(finished, encoding):
    rows = files.read_jsonl(files.FOLDER / "demonstrations.jsonl")
    scores = reward.score(reward.load_reward_model(finished.out / "reward.pt"), encoding, [(row["prompt"], {"text": row["completion"], "ended": True}) for row in rows])
    assert mean(scores) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("name", ["ppo_1", "ppo", "ppo_ptx"])
def test_ppo_raises_the_score_of_the_reward_model(finished, name):
    scores = finished.metrics(name, "score")
    assert mean(scores[-3:]) > mean(scores[:3])


@pytest.mark.parametrize("name", ["ppo_1", "ppo", "ppo_ptx"])
def test_ppo_starts_at_its_reference_and_leaves_it(finished, name):
    assert finished.metrics(name, "kl")[0] == pytest.approx(0, abs=1e-4) and finished.metrics(name, "ratio")[0] == pytest.approx(1, abs=1e-4)
    assert finished.metrics(name, "kl_k3")[-1] > 1e-3 and min(finished.metrics(name, "kl_k3")) >= 0


def test_pretraining_gradients_keep_the_corpus_loss_down(finished):
    """The alignment tax, and its cure."""
    models = finished.results["models"]
    assert models["ppo_ptx"]["corpus_loss"] < models["ppo"]["corpus_loss"]


def test_all_rankings_are_kept_with_both_rounds_and_known_samplers(finished):
    lines = files.read_jsonl(finished.out / "rankings.jsonl")
    assert {line["round"] for line in lines} == {1, 2}
    wrote = {round: {response["sampler"] for line in lines if line["round"] == round for response in line["responses"]} for round in (1, 2)}
    usual = {"sft", "sft_mix", "sft_hot", "gpt", "other_prompt", "sft_again", "sft_mix_again"}
    assert "sft" in wrote[1] and wrote[1] <= usual and "ppo_1" in wrote[2] and wrote[2] <= usual | {"ppo_1", "ppo_hot", "ppo_1_again", "ppo_hot_again"}
    for line in lines:
        texts = [response["text"] for response in line["responses"]]
        assert len(texts) == len(set(texts)) == len(line["ranks"]) and min(line["ranks"]) == 1


def test_a_trace_adds_up(finished):
    """Row by row: the KL, the penalty it costs, and the return that advantage and value make."""
    rows = lesson.trace("Name two colours.", ppo.Config(out=str(finished.out)))        # beta is the checkpoint's, not this default
    assert 1 <= len(rows) <= reward.MAX_NEW_TOKENS
    for row in rows:
        assert row["kl"] == pytest.approx(row["logprob"] - row["ref_logprob"]) and row["return"] == pytest.approx(row["advantage"] + row["value"], abs=1e-5)
    for row in rows[:-1]:
        assert row["reward"] == pytest.approx(-finished.stages["config"].beta * row["kl"], abs=1e-6)


# ---------------------------------------------------------------- results.json

RATES = ["utility", "fully_correct", "attempts_correct_instruction", "follows_constraints", "hallucinates_closed_domain", "appropriate", "toxic"]


def test_results_say_everything_and_every_rate_is_a_fraction_of_one(finished):
    results = json.loads((finished.out / "results.json").read_text(encoding="utf-8"))
    assert {"seed", "cores", "device", "seconds", "peak_mb", "models", "ppo_ptx_preferred_to", "ceiling_vs_sft", "gap_closed", "reward_model"} <= set(results)
    assert set(results["seconds"]) == {"data", "pretrain", "sft", "reward", "ppo", "evaluate", "total"}
    assert results["seconds"]["total"] == pytest.approx(sum(v for k, v in results["seconds"].items() if k != "total"))
    assert set(results["models"]) == {"gpt", "gpt_prompted", "sft", "sft_best_of_16", "ppo", "ppo_ptx"}
    for entry in results["models"].values():
        assert {"params", "win_rate_vs_sft", "likert", "corpus_loss", "kl", *RATES} <= set(entry)
        assert all(entry[rate] is None or 0 <= entry[rate] <= 1 for rate in RATES)
        assert 1 <= entry["likert"] <= 7 and entry["corpus_loss"] > 0 and entry["params"] > 0
    assert set(results["ppo_ptx_preferred_to"]) == {"sft", "gpt", "gpt_prompted", "sft_best_of_16"}
    intervals = [*results["ppo_ptx_preferred_to"].values(), results["ceiling_vs_sft"], *(entry["win_rate_vs_sft"] for entry in results["models"].values())]
    assert all(low <= mean <= high and 0 <= mean <= 1 for mean, low, high in intervals)
    report = dict(results["reward_model"])
    rates = [*report.pop("ceilings").values(), *report.values()]
    assert {"labeler_agreement", "accuracy_train_labelers", "accuracy_heldout_labelers", "accuracy_sft_pairs", "accuracy_gold"} == set(report)
    assert all(0 <= rate <= 1 for rate in rates)


def test_every_picture_is_made(finished):
    for name in ("losses", "reward", "ppo", "figures"):
        assert (finished.out / f"{name}.png").stat().st_size > 5_000


# ---------------------------------------------------------------- nobody in training reads the gold judge


def test_no_weight_depends_on_the_gold_judge(finished, tmp_path, monkeypatch):
    """With a judge that throws dice, the reward model and the policy come out bit for bit as before."""
    dice, asked = random.Random(0), []

    def noise(task, text, ended):
        asked.append(text)
        return judge.Judgement(dice.random(), dice.random() < 0.5, None, None, True, False, dice.randint(1, 7))

    monkeypatch.setattr(judge, "judge", noise)
    for name in ("gpt.pt", "sft_mix.pt"):
        shutil.copy(finished.out / name, tmp_path)
    shutil.copytree(finished.out / "sft_epochs", tmp_path / "sft_epochs")
    stages = settings(tmp_path)
    reward.train(stages["reward_1"])
    ppo.train_policy(stages["config"], "ppo_1", "reward_1", stages["config"].iterations_1, 0.0)
    assert len(asked) > 500
    for name in ("reward_1", "sft", "ppo_1", "ppo_1_value"):
        assert load_checkpoint(tmp_path / f"{name}.pt")["sha256"] == load_checkpoint(finished.out / f"{name}.pt")["sha256"], name
    gold = [row["gold"] for row in files.read_jsonl(tmp_path / "ppo_1.jsonl")]
    assert gold != finished.metrics("ppo_1", "gold")


# ---------------------------------------------------------------- running it again


def test_a_second_run_trains_nothing(finished, monkeypatch):
    def trained(*_):
        raise AssertionError("trained again")
    for stage in (model, sft, reward):
        monkeypatch.setattr(stage, "train", trained)
    monkeypatch.setattr(ppo, "train_policy", trained)
    before, results = finished.files(), finished.again()
    assert finished.files() == before and {f"{name}.pt" for name in WEIGHTS} <= set(before)
    assert results["models"] == finished.results["models"]


def test_a_seed_repeats_a_run_to_the_bit_and_another_seed_does_not(finished, tmp_path):
    """Five steps of pretraining; that a whole run repeats is what tests/test_interruption.py shows."""
    short = dataclasses.replace(finished.stages["pretrain"], steps=5)
    one, again, other = (model.train(dataclasses.replace(short, seed=seed, out=str(tmp_path / name))).lm_head.weight
                         for seed, name in ((1, "one"), (1, "again"), (2, "other")))
    assert one.equal(again) and not one.equal(other)


def test_another_seed_in_the_same_folder_is_refused(finished, monkeypatch, capsys):
    before = finished.files()
    with pytest.raises(UserError, match="seed 1, not 2"):
        finished.again(seed=2)
    monkeypatch.setattr("sys.argv", ["ppo.py", "--seed", "2", "--out", str(finished.out)])
    with pytest.raises(SystemExit) as stopped:
        flags.run_script(ppo.run, ppo.Config, ppo.__doc__)
    assert stopped.value.code == 2 and "seed 1, not 2" in capsys.readouterr().err
    assert finished.files() == before


def test_other_settings_in_the_same_folder_are_refused(finished):
    before = finished.files()
    with pytest.raises(UserError, match="ppo_1.pt was made with --beta 0.02, not 0.5"):
        finished.again(beta=0.5)
    assert finished.files() == before


PRODUCTS = WEIGHTS + ["sft_epochs/01", "sft_epochs/02", "ppo_1_value", "ppo_value", "ppo_ptx_value"]
BESIDE = ["gpt.jsonl", "sft.jsonl", "sft_mix.jsonl", "reward_1.jsonl", "reward_2.jsonl",
          "rankings.jsonl", "ppo_1.jsonl", "ppo.jsonl",
          "ppo_ptx.jsonl", "losses.png", "reward.png", "ppo.png", "figures.png", "results.json",
          "seconds.json"]


@pytest.mark.parametrize("product", [f"{name}.pt" for name in PRODUCTS] + BESIDE)
def test_what_is_missing_is_made_again_to_the_bit_or_the_line_says_what_to_delete(product, finished,
        tmp_path, monkeypatch):
    """Any one file of a finished run deleted, and then those that the line names: the same command
    ends with the same files. (What the evaluation says of the same models is left to
    test_a_second_run_trains_nothing.)"""
    monkeypatch.setattr(ppo, "evaluate", lambda config: ({**finished.results}, [], []))
    out = tmp_path / "out"
    shutil.copytree(finished.out, out)
    (out / product).unlink()
    stages, before = settings(out), {path.relative_to(out)
                                     for path in out.rglob("*")} | {Path(product)}
    try:
        ppo.run(**stages)
    except UserError as error:
        said = str(error)
        assert product in said and "\n" not in said and product.removesuffix(".pt") not in WEIGHTS
        for name in said.split("delete ")[1].split(", and `")[0].split(", "):
            Path(name).unlink()
        ppo.run(**stages)
    assert {path.relative_to(out) for path in out.rglob("*")} == before
    same = [path for path in before if path.suffix in (".pt", ".jsonl")]
    other = [path for path in same
             if (out / path).read_bytes() != (finished.out / path).read_bytes()]
    assert len(same) > 20 and other == []


def test_what_is_made_again_with_other_settings_replaces_nothing_that_stands(finished, tmp_path):
    """reward_1.pt and sft.pt are made together: other settings would make another sft.pt."""
    shutil.copytree(finished.out, tmp_path / "out")
    (tmp_path / "out" / "reward_1.pt").unlink()
    stages = settings(tmp_path / "out")
    said = "reward_1.pt is missing, and .*sft.pt was made with --k 4, not 5: .*delete .*sft.pt"
    with pytest.raises(UserError, match=said):
        ppo.run(**stages | {"reward_1": dataclasses.replace(stages["reward_1"], k=5)})


@pytest.mark.parametrize("name, content, said",
                         [("seconds.json", "{", "damaged, delete it"),
                          ("seconds.json", "[1]", "damaged, delete it"),
                                                 ("gpt.jsonl", '{"step": 0}\n{"st', "line 2"),
                                                 ("ppo.jsonl", "", "empty")])
def test_a_damaged_file_beside_the_models_is_named_before_anything_is_trained(name, content, said,
        finished, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished.out, out)
    (out / name).write_text(content, encoding="utf-8", newline="\n")
    (out / "ppo_ptx.pt").unlink()
    with pytest.raises(UserError, match=f"{name}.*{said}"):
        ppo.run(**settings(out))
    assert not (out / "ppo_ptx.pt").exists()


def test_stray_files_do_not_disturb(finished, tmp_path, monkeypatch):
    """What macOS leaves on a memory stick, and a student's own copy: not read, not deleted."""
    out = tmp_path / "out"
    shutil.copytree(finished.out, out)
    strays = [out / "._gpt.pt", out / "sft_epochs" / "._01.pt", out / "sft_epochs" / "best.pt",
              out / "mine.pt"]
    for stray in strays:
        stray.write_bytes(b"\x00\x05\x16\x07")
    assert ppo.run(**settings(out))["models"] == finished.results["models"]
    with pytest.raises(UserError, match="ppo_1.pt was made with --beta"):
        ppo.run(**settings(out) | {"config": dataclasses.replace(settings(out)["config"],
                beta=0.5)})
    (out / "sft_mix.pt").unlink()
    sft.train(settings(out)["sft"])
    assert all(stray.exists() for stray in strays)


def refusal(finished, **changes):
    """What the same command with other flags is refused with."""
    with pytest.raises(UserError) as refused:
        finished.again(**changes)
    return str(refused.value)


def test_a_change_invalidates_what_it_changes_and_no_more(finished):
    """Each refusal names the first file, the flag, and all that has to go, before anything is
    trained."""
    before, out = finished.files(), finished.out
    said = refusal(finished, gamma_ptx=0.8)
    assert f"{out}/ppo_ptx.pt was made with --gamma_ptx 0.3, not 0.8" in said
    assert said.endswith(f"or delete {out}/ppo_ptx.pt")
    said = refusal(finished, iterations=13)
    assert f"{out}/ppo.pt was made with --iterations 12, not 13" in said
    assert said.endswith(f"or delete {out}/ppo.pt, {out}/ppo_ptx.pt")
    said = refusal(finished, iterations_1=11)
    assert f"{out}/ppo_1.pt was made with --iterations_1 10, not 11" in said
    stale = [f"{out}/{name}.pt" for name in ("ppo_1", "reward", "ppo", "ppo_ptx")]
    assert said.endswith("or delete " + ", ".join(stale))
    assert finished.again(split="valid")["split"] == "valid" and finished.files() == before
    finished.again()


def test_only_the_stale_policy_is_made_again(finished, tmp_path):
    """The README's dial: another gamma_ptx, one file deleted, and the run goes on from there."""
    out = tmp_path / "out"
    shutil.copytree(finished.out, out)
    (out / "ppo_ptx.pt").unlink()
    stages = settings(out)
    ppo.run(**stages | {"config": dataclasses.replace(stages["config"], gamma_ptx=0.0)})
    again, before = ({name: load_checkpoint(folder / f"{name}.pt") for name in WEIGHTS}
                     for folder in (out, finished.out))
    assert [name for name in WEIGHTS
            if again[name]["sha256"] != before[name]["sha256"]] == ["ppo_ptx"]
    assert again["ppo_ptx"]["extra"]["settings"]["gamma_ptx"] == 0.0
    # gamma 0: that is PPO
    assert all(tensor.equal(again["ppo"]["state"][name]) for name,
               tensor in again["ppo_ptx"]["state"].items())


def test_a_policy_remembers_the_settings_that_made_it(finished):
    saved = {name: load_checkpoint(finished.out / f"{name}.pt")["extra"]["settings"]
             for name in ("ppo_1", "ppo", "ppo_ptx")}
    assert {name: settings["gamma_ptx"] for name, settings in saved.items()} == {"ppo_1": 0.0,
            "ppo": 0.0, "ppo_ptx": 0.3}
    assert saved["ppo_1"]["iterations_1"] == 10 and "iterations" not in saved["ppo_1"]
    assert saved["ppo"]["iterations"] == 12
    assert "iterations_1" not in saved["ppo"] and "split" not in saved["ppo"]


def test_a_stage_begun_anew_mixes_nothing_with_its_earlier_run(finished, tmp_path, monkeypatch):
    """Epochs of a longer run do not stay behind; rankings whose reward model was not finished do not replace the earlier ones."""
    for name in ("gpt.pt", "sft_mix.pt"):
        shutil.copy(finished.out / name, tmp_path)
    shutil.copytree(finished.out / "sft_epochs", tmp_path / "sft_epochs")
    assert files.sft_epochs(finished.stages["sft"]) == ["01", "02"]
    sft.train(dataclasses.replace(finished.stages["sft"], out=str(tmp_path), epochs=1, mix_epochs=1))
    ranking = dataclasses.replace(finished.stages["reward_1"], out=str(tmp_path), prompts_1=20)
    assert files.sft_epochs(ranking) == ["01"]

    def stopped(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr(reward, "fit", stopped)
    (tmp_path / "rankings.jsonl").write_text("earlier ones", encoding="utf-8", newline="\n")
    with pytest.raises(KeyboardInterrupt):
        reward.train(ranking)
    assert (tmp_path / "rankings.jsonl").read_text(encoding="utf-8") == "earlier ones"
