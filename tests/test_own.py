"""`--data FOLDER`, `--rankings` and `--unranked`: texts and rankings of the user's own.

One whole run goes through the command line, with tiny models. What is refused is tested line by
line: the message must name the file, the line and the field.
"""
import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import model
import ppo
import reward
import sft
from data import example, figures, files, judge, own, prepare, tokenizer
from data.files import UserError, load_checkpoint

ROOT = Path(files.__file__).parent.parent
PRETRAINING = {"n_layer": 1, "n_head": 1, "n_embd": 16, "block_size": 64, "steps": 80,
               "lr": 0.02}
PPO = {"iterations": 2, "rollout_size": 16, "minibatch_size": 8}
THINGS = ["apple", "brick", "cloud", "drum", "egg", "flag", "glove", "hat"]
COLOURS = ["red", "blue", "green", "grey", "white", "black"]


@pytest.fixture(autouse=True)
def toytown():
    """The world is Toytown again after every test."""
    before = files.FOLDER, files.OWN, tokenizer.PATH
    yield
    files.FOLDER, files.OWN, tokenizer.PATH = before
    tokenizer.load_cached.cache_clear()


# ---------------------------------------------------------------- a small folder


def prompts(n, word):
    """Rows with n distinct prompts."""
    return [{"prompt": f"What colour is {word} {THINGS[i % 8]} {i}?"} for i in range(n)]


def completed(rows):
    """Rows with an answer to each prompt."""
    return [row | {"completion": f"It is {COLOURS[i % 6]}."} for i, row in enumerate(rows)]


def ranked(rows):
    """A ranking of three responses to each prompt."""
    responses = ["It is red.", {"text": "Red, I think.", "ended": False}, "It is a hat."]
    return [row | {"responses": responses, "ranks": [1, 2, 2]} for row in rows]


def write_rows(path, rows):
    """A JSONL file."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8", newline="\n")


def small_folder(folder):
    """A folder for --data that is just large enough."""
    folder.mkdir(parents=True)
    rng = random.Random(0)
    documents = [f"The {rng.choice(THINGS)} is {rng.choice(COLOURS)}.\nIt is {i}."
                 for i in range(200)]
    (folder / "corpus.txt").write_text("\n\n".join(documents), encoding="utf-8", newline="\n")
    write_rows(folder / "demonstrations.jsonl", completed(prompts(72, "this")))
    write_rows(folder / "prompts_rl.jsonl", prompts(32, "her"))
    write_rows(folder / "prompts_valid.jsonl", prompts(16, "his"))
    write_rows(folder / "prompts_eval.jsonl", prompts(16, "my"))
    write_rows(folder / "rankings.jsonl", ranked(prompts(32, "your")))
    return folder


@pytest.fixture
def folder(tmp_path):
    """A folder of its own for one test."""
    return small_folder(tmp_path / "texts")


def refused(work, *given):
    """The line with which something is refused."""
    with pytest.raises(UserError) as error:
        work(*given)
    assert "\n" not in str(error.value)
    return str(error.value)


def config(folder, **changes):
    """The settings of `python reward.py --data FOLDER`."""
    return reward.Config(data=str(folder), **changes)


# ---------------------------------------------------------------- a whole run


def command(script, *words):
    """A script as a person starts it: what it printed. It must end well."""
    done = subprocess.run([sys.executable, *script.split(), *map(str, words)], cwd=ROOT,
                          capture_output=True, encoding="utf-8", errors="replace")
    assert done.returncode == 0, done.stderr[-2_000:]
    return done.stdout


def flags_of(settings):
    """Settings as words of a command line."""
    return [str(word) for name, value in settings.items() for word in (f"--{name}", value)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with --data: (folder, out, what it printed)."""
    place = tmp_path_factory.mktemp("own")
    texts = small_folder(place / "texts")
    common = ("--data", texts, "--out", place / "out")
    printed = command("model.py", *common, *flags_of(PRETRAINING))
    printed += command("ppo.py", "--quick", *common, *flags_of(PPO))
    return texts, place / "out", printed


def run_again(folder, out, **changes):
    """The same run in this process: its results."""
    own.use(str(folder))
    common = {"data": str(folder), "out": str(out)}
    return ppo.run(ppo.Config(quick=True, **common, **PPO | changes),
                   pretrain=model.Config(**common, **PRETRAINING))


def test_the_results_of_own_texts_are_scores_kl_and_corpus_losses(finished):
    results = json.loads((finished[1] / "results.json").read_text(encoding="utf-8"))
    assert list(results["models"]) == own.MODELS
    for entry in results["models"].values():
        assert entry.keys() == {"params", "corpus_loss", "kl", "score"}
        mean, low, high = entry["score"]
        assert low <= mean <= high
    assert results.keys() == {"seed", "split", "cores", "device", "models", "seconds", "peak_mb"}


def test_nothing_in_a_run_with_own_texts_pretends_that_the_truth_is_known(finished):
    _, out, printed = finished
    written = [path.read_text(encoding="utf-8") for path in sorted(out.glob("*.json*"))]
    for text in [printed, *written]:
        for word in ("utility", "gold", "win_rate", "win rate", "preferred to", "hallucinat"):
            assert word not in text, word
    assert "Nobody knows the truth about these texts." in printed
    assert "It does not mean that the answers are better" in " ".join(printed.split())
    for row in files.read_jsonl(out / "ppo_ptx.jsonl"):
        assert "score" in row and "gold" not in row


def test_the_answers_stand_side_by_side_and_the_next_command_names_the_folder(finished):
    texts, out, printed = finished
    for row in prompts(5, "my"):
        assert f"\n  {row['prompt']}\n" in printed
    assert f"Next: python model.py --data {texts} --chat {out}/ppo_ptx.pt" in printed


def test_every_picture_of_own_texts_is_drawn_and_none_has_an_empty_panel(finished, monkeypatch):
    _, out, _ = finished
    for name in ("losses", "reward", "ppo", "figures"):
        assert (out / f"{name}.png").stat().st_size > 5_000
    drawn = {}

    def keep(figure, path):
        drawn[path.stem] = figure.axes
        figures.plt.close(figure)

    monkeypatch.setattr(figures, "save", keep)
    figures.plot_run(out, json.loads((out / "results.json").read_text(encoding="utf-8")))
    titles = [axis.get_title() for axis in drawn["ppo"]]
    assert len(titles) == 6 and all(titles) and not any("gold" in title for title in titles)
    losses = drawn["losses"][0]
    last = losses.lines[1].get_ydata()[-1]
    assert 0 < last < losses.get_ylim()[1]
    assert "score" in drawn["figures"][0].get_ylabel()


def test_the_same_command_trains_nothing_again(finished, tmp_path, monkeypatch):
    texts, out, _ = finished
    shutil.copytree(out, tmp_path / "out")
    for stage in (model, sft, reward):
        monkeypatch.setattr(stage, "train", None)
    monkeypatch.setattr(ppo, "train_policy", None)
    monkeypatch.setattr(figures, "plot_run", lambda *_: None)
    before = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert run_again(texts, tmp_path / "out")["models"] == before["models"]
    said = refused(reward.main, reward.Config(data=str(texts), out=str(tmp_path / "out")))
    assert "reward_1.pt exists already, trained with these settings" in said


def test_a_changed_corpus_means_a_new_tokenizer_and_old_checkpoints_are_refused(
        finished, tmp_path, capsys):
    texts, out, _ = finished
    shutil.copytree(texts, tmp_path / "texts")
    own.use(str(tmp_path / "texts"))
    assert "training a tokenizer" not in capsys.readouterr().out
    ranks = tokenizer.PATH.read_bytes()
    with open(tmp_path / "texts" / "corpus.txt", "a", encoding="utf-8", newline="\n") as file:
        file.write("\n\n" + "zebra " * 500)
    own.use(str(tmp_path / "texts"))
    assert "training a tokenizer" in capsys.readouterr().out
    assert tokenizer.PATH.read_bytes() != ranks
    assert len(tokenizer.load_cached().encode_ordinary(" zebra")) == 1
    said = refused(run_again, tmp_path / "texts", out)
    assert said.startswith(f"{out}/gpt.pt was made in another world, or the files in "
                           f"{tmp_path}/texts have changed since")


def test_new_rankings_leave_the_models_that_have_not_seen_them(finished, tmp_path):
    """Rankings come after SFT, so the world is the same with and without them."""
    texts, out, _ = finished
    shutil.copytree(texts, tmp_path / "texts")
    write_rows(tmp_path / "texts" / "rankings.jsonl", ranked(prompts(40, "our")))
    own.use(str(tmp_path / "texts"))
    assert files.made(sft.Config(out=str(out)), "sft_mix")
    said = refused(run_again, tmp_path / "texts", out)
    assert said.startswith(f"{out}/reward_1.pt was made with other rankings than those given now")
    assert "delete" in said and "ppo_ptx.pt" in said and "sft_mix.pt" not in said


def test_a_model_of_own_texts_is_talked_to_with_its_own_folder_only(finished, tmp_path):
    """Another folder's tokenizer may have the same size."""
    texts, out, _ = finished
    extra = load_checkpoint(out / "gpt.pt")["extra"]
    assert extra["own"]
    own.use(str(texts))
    encoding = tokenizer.load_cached()
    own.check_chat(out / "gpt.pt", encoding.n_vocab, encoding.n_vocab)
    shipped = ROOT / "notebooks" / "checkpoints" / "ppo_ptx.pt"
    assert "was not made with --data" in refused(own.check_chat, shipped, 5, 5)
    files.FOLDER = small_folder(tmp_path / "others")
    write_rows(files.FOLDER / "prompts_rl.jsonl", prompts(33, "her"))
    assert "gpt.pt: was not made with --data" in refused(own.check_chat, out / "gpt.pt", 5, 5)
    files.OWN = False
    said = refused(own.check_chat, out / "gpt.pt", 5, 5)
    assert "gpt.pt: was not made with the files of data/" in said


# ---------------------------------------------------------------- without rankings


def test_sft_and_unranked_responses_need_no_rankings_and_people_s_rankings_complete_the_folder(
        finished, tmp_path, capsys):
    """sft.py, reward.py --unranked, a person, reward.py: the order of somebody who starts."""
    texts, _, _ = finished
    shutil.copytree(texts, tmp_path / "texts")
    rankings = tmp_path / "texts" / "rankings.jsonl"
    rankings.unlink()
    own.use(str(tmp_path / "texts"))
    common = {"data": str(tmp_path / "texts"), "out": str(tmp_path / "out")}
    model.main(model.Config(**common, **PRETRAINING | {"steps": 200}))
    sft.main(sft.Config(**common, epochs=2, mix_epochs=1))
    said = refused(reward.main, reward.Config(**common))
    assert said == f"{rankings} is missing: see data/README.md"
    reward.main(reward.Config(**common, unranked=31))
    material = tmp_path / "out" / "unranked.jsonl"
    command_line = f"python -m data.label --material {material} --rankings {rankings}"
    assert f"made {material} with 31 prompts. Next: {command_line}" in capsys.readouterr().out
    lines = files.read_jsonl(material, prompt=str, responses=list)
    assert [line["prompt"] for line in lines] == [
        row["prompt"] for row in prompts(32, "her")[-31:]]
    labelled = []
    for line in lines:
        assert 3 <= len({response["text"] for response in line["responses"]}) <= 6
        ranks = list(range(1, len(line["responses"]) + 1))
        labelled.append(line | {"ranks": ranks, "labeler": "ann"})
    write_rows(rankings, labelled)
    reward.main(reward.Config(**common, epochs=1))
    assert "31 rankings by 1 person" in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "out" / "reward_1.pt")["kind"] == "RewardModel"


@pytest.mark.parametrize("k", [2, 10])
def test_unranked_responses_are_three_to_nine(folder, k):
    own.use(str(folder))
    assert refused(own.write_unranked, config(folder, k=k), None) == f"--k {k}: can be 3 to 9 here"


def test_people_are_not_asked_to_rank_broken_characters(folder, tmp_path):
    own.use(str(folder))

    def sample(config, rows, rng, generator):
        texts = ["a", "b", "c", "\ufffd"], ["a", "b", "\ufffd", "c\ufffd"]
        return rows, [[{"text": text, "ended": True} for text in four] for four in texts]

    own.write_unranked(config(folder, unranked=2, out=str(tmp_path)), sample)
    line, = files.read_jsonl(tmp_path / "unranked.jsonl")
    assert [response["text"] for response in line["responses"]] == ["a", "b", "c"]


def test_broken_characters_are_scored_although_they_take_more_tokens_than_were_sampled(encoding):
    scorer = reward.RewardModel(model.GPTConfig(encoding.n_vocab, 48, 1, 1, 8))
    response = {"text": "\ufffd" * 32, "ended": False}
    assert len(tokenizer.response_ids(encoding, response["text"], False)) > 48
    assert len(reward.score(scorer, encoding, [("What?", response)])) == 1


# ---------------------------------------------------------------- what a folder must hold


def test_everything_that_a_folder_lacks_is_in_one_line(folder):
    (folder / "demonstrations.jsonl").unlink()
    (folder / "prompts_rl.jsonl").write_bytes(b"\n\n")
    write_rows(folder / "prompts_eval.jsonl", prompts(15, "my"))
    text = "One.\n\nTwo.\n \n\t\nThree.\nStill three.\n\n\n"
    (folder / "corpus.txt").write_text(text, encoding="utf-8", newline="\n")
    assert refused(own.use, str(folder)) == (
        f"--data {folder}: "
        "corpus.txt has 3 (at least 200 documents, with a blank line between two); "
        "demonstrations.jsonl is missing (at least 72 lines); "
        "prompts_rl.jsonl has 0 (at least 32 lines); "
        "prompts_eval.jsonl has 15 (at least 16 lines); see data/README.md")


def test_a_folder_that_is_missing_lacks_everything(tmp_path):
    said = refused(own.use, str(tmp_path / "nowhere"))
    assert all(f"{name} is missing" in said for name in own.LEAST)


def test_a_folder_just_large_enough_is_used_and_nothing_is_said(folder, capsys):
    own.use(str(folder))
    said = capsys.readouterr().out
    assert said == f"{folder}: training a tokenizer on corpus.txt\n"
    own.use(str(folder))
    assert capsys.readouterr().out == ""
    assert tokenizer.load_cached().name == "toytown"
    assert (folder / "tokenizer.tiktoken").exists()


def test_without_data_the_world_is_toytown():
    own.use("")
    assert not files.OWN and files.FOLDER == ROOT / "data"


def test_a_folder_that_cannot_be_written_to_is_one_line_and_fine_with_its_tokenizer(
        folder, monkeypatch):
    def write_text(path, *_, **__):
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", write_text)
        said = refused(own.use, str(folder))
        assert said.startswith(f"{folder}/tokenizer.tiktoken cannot be written (Read-only")
    own.use(str(folder))
    monkeypatch.setattr(Path, "write_text", write_text)
    own.use(str(folder))


@pytest.mark.parametrize("line, said", [
    ('{"prompt": "a", "completion": "b"', "Expecting ',' delimiter"),
    ("[1]", '"prompt" is missing or not a str'),
    ('{"completion": "b"}', '"prompt" is missing or not a str'),
    ('{"prompt": ["a"], "completion": "b"}', '"prompt" is missing or not a str'),
    ('{"prompt": "a"}', '"completion" is missing or not a str'),
    ('{"prompt": " \\n", "completion": "b"}', '"prompt" is blank'),
    ('{"prompt": "a", "completion": ""}', '"completion" is blank'),
    ('{"prompt": "a", "completion": "%s"}' % ("b" * 1_000_000), '"completion" is longer than'),
    ('{"prompt": "a", "completion": "%sb"}' % (" " * 1_000_000), '"completion" is longer than'),
    ('{"messages": "a"}', '"messages" must be one message of the user'),
    ('{"messages": []}', '"prompt" is missing or not a str'),
    ('{"messages": [{"role": "user", "content": "a"}]}', '"completion" is missing'),
    ('{"messages": [{"role": "user", "content": [1]}, {"role": "assistant", "content": "b"}]}',
     '"prompt" is missing or not a str'),
    ('{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}',
     '"messages" must be one message of the user and at most one of the assistant'),
    ('{"messages": [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]}',
     '"messages" must be one message of the user and at most one of the assistant'),
    ('{"messages": [{"role": ["user"], "content": "a"}]}', '"messages" must be one message'),
])
def test_a_bad_demonstration_is_refused_with_file_line_and_field(folder, line, said):
    path = folder / "demonstrations.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n")
    lines.insert(2, "")                         # blank lines count
    lines.insert(3, line)
    path.write_text("\n".join(lines), encoding="utf-8", newline="\n")
    assert refused(own.use, str(folder)).startswith(f"{path}, line 4: {said}")


@pytest.mark.parametrize("name", ["corpus.txt", "demonstrations.jsonl", "prompts_rl.jsonl"])
@pytest.mark.parametrize("coded", [b"caf\xe9", "café".encode("utf-16")])
def test_what_is_not_utf_8_is_refused_with_its_line(folder, name, coded):
    path = folder / name
    lines = path.read_bytes().split(b"\n")
    lines.insert(1, coded)
    path.write_bytes(b"\n".join(lines))
    assert refused(own.use, str(folder)).startswith(f"{path}, line 2: ")


def test_messages_are_read_where_prompts_and_completions_are(folder):
    own.use(str(folder))
    encoding = tokenizer.load_cached()
    expected = sft.read_demonstrations(encoding)
    for name in ("demonstrations", "prompts_rl", "prompts_valid", "prompts_eval", "rankings"):
        path = folder / f"{name}.jsonl"
        rows = []
        for row in files.read_jsonl(path):
            messages = [{"role": "user", "content": row.pop("prompt")}]
            if "completion" in row:
                messages.append({"role": "assistant", "content": row.pop("completion")})
            rows.append(row | {"messages": messages})
        write_rows(path, rows)
    own.use(str(folder))
    assert sft.read_demonstrations(encoding) == expected
    assert files.read_prompts("rl")[0]["prompt"] == prompts(1, "her")[0]["prompt"]
    assert len(own.read_rankings(config(folder))) == 32


def test_a_task_in_the_user_s_rows_is_not_a_task_of_toytown(folder, capsys):
    """Many data sets have such a column. No judge may look at it."""
    rows = [row | {"task": "translation", "use_case": ["any"]} for row in prompts(16, "my")]
    write_rows(folder / "prompts_eval.jsonl", rows)
    own.use(str(folder))
    found, closed = files.evaluation_prompts("eval")
    assert found == prompts(16, "my") and closed == []
    answers = [{"text": "It is red.", "ended": True}] * 16
    assert judge.report(found, answers, [], []) == judge.gold(found, answers) == {}
    figures.side_by_side(found, {"sft": answers})
    assert capsys.readouterr().out.count("SFT: It is red.") == 5


# ---------------------------------------------------------------- odd characters and sizes


ODD = ["\U0001f98a is a fox", "狐は赤い", "السماء زرقاء", "a\u0000b", "e\u0301\u200b",
       "<|endoftext|><|pad|>"]


def test_every_character_survives_in_prompts_completions_and_corpus(folder):
    with open(folder / "corpus.txt", "a", encoding="utf-8", newline="\n") as file:
        file.write("\n\n" + "\n\n".join(ODD))
    rows = [{"prompt": text, "completion": f"{text}\n{text}"} for text in ODD]
    write_rows(folder / "demonstrations.jsonl", rows + completed(prompts(72, "this")))
    own.use(str(folder))
    encoding = tokenizer.load_cached()
    assert prepare.corpus_texts()[-len(ODD):] == ODD
    pairs = sft.read_demonstrations(encoding)
    for text, (prompt, response) in zip(ODD, pairs):
        assert encoding.decode(prompt[1:-1]) == f" {text}"
        assert tokenizer.response_text(encoding, response) == (f"{text}\n{text}", True)
        assert prompt.count(encoding.eot_token) == response.count(encoding.eot_token) == 1


def test_half_a_surrogate_pair_does_no_harm(folder):
    line = '{"prompt": "\\ud83e what?", "completion": "\\udd8a"}\n'
    with open(folder / "demonstrations.jsonl", "a", encoding="utf-8", newline="\n") as file:
        file.write(line)
    own.use(str(folder))
    encoding = tokenizer.load_cached()
    prompt, response = sft.read_demonstrations(encoding)[-1]
    assert encoding.decode(prompt[1:-1]) == " \ufffd what?"


def test_windows_line_ends_a_byte_order_mark_and_blank_lines_change_nothing(folder, tmp_path):
    own.use(str(folder))
    expected = files.world_hash(), prepare.corpus_texts(), own.read_rankings(config(folder))
    ranks = tokenizer.PATH.read_bytes()
    windows = tmp_path / "windows"
    windows.mkdir()
    for path in folder.iterdir():
        if path.suffix in (".txt", ".jsonl"):
            text = path.read_bytes().replace(b"\n", b"\r\n")
            (windows / path.name).write_bytes(b"\xef\xbb\xbf" + text)
    own.use(str(windows))
    found = files.world_hash(), prepare.corpus_texts(), own.read_rankings(config(windows))
    assert found == expected and tokenizer.PATH.read_bytes() == ranks
    for path in windows.glob("*.jsonl"):
        path.write_bytes(path.read_bytes().replace(b"\r\n", b"\r\n \r\n\r\n"))
    path = windows / "corpus.txt"
    path.write_bytes(path.read_bytes().replace(b"\r\n\r\n", b"\r\n \r\n\t\r\n"))
    own.use(str(windows))
    assert prepare.corpus_texts() == expected[1]
    assert own.read_rankings(config(windows)) == expected[2]


def seconds(work, *given):
    """How long something takes on this processor, whatever runs beside it."""
    start = time.process_time()
    work(*given)
    return time.process_time() - start


def test_a_hundred_thousand_lines_are_read_in_seconds(folder):
    write_rows(folder / "demonstrations.jsonl", completed(prompts(100_000, "this")))
    write_rows(folder / "rankings.jsonl", ranked(prompts(100_000, "your")))
    rng = random.Random(0)
    lines = [f"The {rng.choice(THINGS)} {i} is {rng.choice(COLOURS)}." for i in range(100_000)]
    (folder / "corpus.txt").write_text("\n\n".join(lines), encoding="utf-8", newline="\n")
    assert seconds(own.use, str(folder)) < 30
    assert seconds(own.read_rankings, config(folder)) < 15
    assert len(own.read_rankings(config(folder))) == 100_000


@pytest.mark.parametrize("line", ["x" * 1_000_000, "word " * 200_000, "ab\u00e9 " * 200_000,
                                  "a" + " " * 1_000_000 + "b", "\t" * 1_000_000])
def test_a_line_of_a_megabyte_in_the_corpus_is_read_in_seconds(folder, line):
    """Without spaces, with spaces, or of nothing but blanks, on which tiktoken fails."""
    with open(folder / "corpus.txt", "a", encoding="utf-8", newline="\n") as file:
        file.write("\n\n" + line)
    assert seconds(own.use, str(folder)) < 15
    train, valid = model.read_corpus(tokenizer.load_cached(), 64)
    assert max(map(len, train + valid)) <= 64
    text = "".join(map(tokenizer.load_cached().decode, train + valid))
    letter = line[0]
    assert letter == "\t" or text.count(letter) >= line.count(letter)


def test_many_different_words_are_learned_from_in_seconds():
    """The tokenizer learns from the most frequent words, and from the beginnings of long ones."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnop", k=7)) for _ in range(50_000)]
    text = " ".join(words + ["often"] * 500)
    start = time.process_time()
    ranks = tokenizer.train(text, 300)
    assert time.process_time() - start < 20
    assert b" often" in ranks


def test_rare_words_and_the_ends_of_long_words_teach_no_merges(monkeypatch):
    monkeypatch.setattr(tokenizer, "N_WORDS", 1)
    monkeypatch.setattr(tokenizer, "LONGEST_WORD", 4)
    ranks = tokenizer.train(" abacdcdcd abacdcdcd xyxy", 300)
    assert list(ranks)[256:] == [b"ba", b"aba", b" aba"]


def test_a_long_document_is_cut_into_windows_that_hold_all_of_it(folder):
    ids = list(range(10))
    assert own.windows(ids, 4) == [[0, 1, 2, 3]]            # Toytown
    own.use(str(folder))
    assert own.windows(ids, 4) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert own.windows(ids[:9], 4) == [[0, 1, 2, 3], [4, 5, 6, 7]]      # one id predicts nothing
    assert own.windows(ids, 10) == own.windows(ids, 100) == [ids]


def test_the_base_model_continues_the_beginnings_of_two_documents(folder):
    own.use(str(folder))
    encoding = tokenizer.load_cached()
    _, valid = model.read_corpus(encoding, 64)
    texts = own.beginnings([[5, 6, 7], *valid], encoding)
    assert texts == [" ".join(text.split()[:3]) for text in prepare.corpus_texts()[196:198]]
    assert own.beginnings([[5, 6, 7]], encoding) == []
    files.OWN = False
    assert own.beginnings(valid, encoding) == []


def test_long_demonstrations_are_counted_in_one_line(folder, capsys):
    """A model's response is cut off where they go on."""
    assert own.MAX_NEW_TOKENS == reward.MAX_NEW_TOKENS
    rows = completed(prompts(70, "this"))
    rows += [{"prompt": "What?", "completion": "q" * 30}, {"prompt": "So?", "completion": "q" * 31}]
    write_rows(folder / "demonstrations.jsonl", rows)
    own.use(str(folder))
    assert ("1 of 72 demonstrations are longer than 32 tokens, where a model's response is cut off"
            in capsys.readouterr().out)


def test_evaluation_prompts_that_training_sees_are_counted_in_one_line(folder, capsys):
    rows = prompts(13, "my") + [{"prompt": "WHAT colour  is her apple 0?"}]
    rows += [prompts(1, "this")[0], prompts(2, "your")[1]]
    write_rows(folder / "prompts_eval.jsonl", rows)
    own.use(str(folder))
    assert ("3 prompts of prompts_eval.jsonl occur in the other files, so the evaluation is not "
            "only on new prompts") in capsys.readouterr().out


def test_a_prompt_longer_than_the_context_is_refused_before_anything_is_trained(folder):
    long = {"prompt": "apple brick " * 200}
    for name, check in [("prompts_eval", lambda: files.check_evaluation("eval", 64, 32)),
                        ("prompts_rl", lambda: files.check_rl(ppo.Config(), 64, 32))]:
        before = (folder / f"{name}.jsonl").read_bytes()
        write_rows(folder / f"{name}.jsonl", files.read_jsonl(folder / f"{name}.jsonl") + [long])
        own.use(str(folder))
        said = refused(check)
        assert said.startswith("--block_size 64 of the base model is too small: ")
        assert '("apple brick apple' in said and "takes 4" in said
        (folder / f"{name}.jsonl").write_bytes(before)
    rows = [long | {"responses": ["a", "b"], "ranks": [1, 2]}] + ranked(prompts(32, "your"))
    write_rows(folder / "rankings.jsonl", rows)
    said = refused(own.check_reward, config(folder), 64, 32)
    assert 'the longest ranked response with its prompt ("apple brick' in said


# ---------------------------------------------------------------- rankings


GOOD = {"prompt": "What?", "responses": ["a", "b", "c"], "ranks": [1, 2, 2]}


@pytest.mark.parametrize("change, said", [
    ({"prompt": 3}, '"prompt" is missing or not a str'),
    ({"prompt": ""}, '"prompt" is blank'),
    ({"responses": None}, '"responses" is missing or not a list'),
    ({"responses": "abc"}, '"responses" is missing or not a list'),
    ({"responses": ["a", "b", 3]}, '"responses": each is {"text": ..., "ended": true or false}'),
    ({"responses": ["a", "b", {"text": "c"}]}, '"responses": each is {"text": ..., "ended": '),
    ({"responses": ["a", "b", "c" * 1_000_000]}, '"responses": each is'),
    ({"ranks": None}, '"ranks" is missing or not a list'),
    ({"ranks": [1, 2]}, '"ranks": [1, 2] does not rank 3 responses'),
    ({"ranks": [1, 3, 3]}, '"ranks": [1, 3, 3] does not rank 3 responses'),
    ({"ranks": [0, 1, 1]}, '"ranks": [0, 1, 1] does not rank 3 responses'),
    ({"ranks": [1, 2.0, 2]}, '"ranks": [1, 2.0, 2] does not rank 3 responses'),
    ({"ranks": [1, True, 2]}, '"ranks": [1, True, 2] does not rank 3 responses'),
    ({"responses": ["a"], "ranks": [1]}, '"responses" has 1, can be 2 to 9'),
    ({"responses": [], "ranks": []}, '"responses" has 0, can be 2 to 9'),
    ({"responses": list("abcdefghij"), "ranks": [1] * 10}, '"responses" has 10, can be 2 to 9'),
    ({"chosen": "a"}, '"rejected" is missing or not a str'),
    ({"chosen": ["a"], "rejected": "b"}, '"chosen" is missing or not a str'),
])
def test_a_bad_ranking_is_refused_with_file_line_and_field(tmp_path, change, said):
    path = tmp_path / "ann.jsonl"
    write_rows(path, [*ranked(prompts(40, "a")), GOOD | change])
    found = refused(own.read_rankings, reward.Config(rankings=str(path)))
    assert found.startswith(f"{path}, line 41: {said}")


def test_a_file_of_rankings_that_is_missing_or_too_small_is_named(tmp_path):
    missing = tmp_path / "missing.jsonl"
    said = refused(own.read_rankings, reward.Config(rankings=str(missing)))
    assert said == f"{missing} is missing: run `python -m data.label`"
    few = tmp_path / "few.jsonl"
    write_rows(few, 2 * ranked(prompts(29, "a")) + [GOOD | prompts(1, "a")[0]])
    said = refused(own.read_rankings, reward.Config(rankings=f"{few}, {few}"))
    assert said == f"{few}, {few}: 30 rankings of 29 prompts, at least 30 prompts are needed"
    assert "--rankings: 0 rankings" in refused(own.read_rankings, reward.Config(rankings=" , "))


def test_without_the_flags_there_are_no_rankings_by_people():
    assert own.read_rankings(reward.Config()) == []
    assert own.split([], random.Random(0)) == ([], [])


def test_chosen_and_rejected_are_a_ranking_of_two(tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = [row | {"chosen": "Yes.", "rejected": "No."} for row in prompts(30, "a")]
    write_rows(path, rows)
    assert own.read_rankings(reward.Config(rankings=str(path)))[0] == {
        "prompt": rows[0]["prompt"], "ranks": [1, 2], "labeler": "pairs", "round": 1,
        "responses": [{"text": "Yes.", "ended": True}, {"text": "No.", "ended": True}]}


def test_a_response_is_a_text_that_has_ended_or_says_whether_it_has():
    row = ranked(prompts(1, "a"))[0]
    found = own.as_ranking(row, "here", "ann")
    assert found["responses"] == [{"text": "It is red.", "ended": True},
                                  {"text": "Red, I think.", "ended": False},
                                  {"text": "It is a hat.", "ended": True}]


def test_the_rankings_of_several_files_are_pooled_and_a_ranking_counts_once_per_person(tmp_path):
    """A person who is not named has the name of the file."""
    ann, ben = tmp_path / "ann.jsonl", tmp_path / "ben.jsonl"
    write_rows(ann, 2 * ranked(prompts(30, "a")))
    write_rows(ben, ranked(prompts(31, "a")))
    found = own.read_rankings(reward.Config(rankings=f"{ann},{ben},{ann}"))
    people = [ranking["labeler"] for ranking in found]
    assert people.count("ann") == 30 and people.count("ben") == 31 and len(people) == 61


def opinion(labeler, texts, ranks, prompt="What?"):
    """A ranking by a person."""
    responses = [{"text": text, "ended": True} for text in texts]
    return {"prompt": prompt, "responses": responses, "ranks": ranks, "labeler": labeler}


def test_two_people_agree_on_as_many_pairs_as_by_hand():
    """ann: a > b > c. ben, who saw them in another order: a > c > b. They agree on ab and ac, but
    not on bc. cat ties b and c: half with ann and half with ben. Nobody shares dan's prompt."""
    rankings = [opinion("ann", "abc", [1, 2, 3]), opinion("ben", "cab", [2, 1, 3])]
    assert own.agreement(rankings) == (pytest.approx(2 / 3), 3)
    rankings += [opinion("cat", "bc", [1, 1]), opinion("dan", "abc", [3, 2, 1], "Who?")]
    assert own.agreement(rankings) == (pytest.approx(3 / 5), 5)
    assert own.agreement(rankings[:1]) == (None, 0)
    assert own.agreement([rankings[0], opinion("ann", "abc", [3, 2, 1])]) == (None, 0)


def test_a_prompt_is_trained_on_or_measured_on_and_a_tenth_is_measured_on():
    rankings = []
    for person in ("ann", "ben"):
        for row in prompts(40, "a"):
            rankings.append(opinion(person, "ab", [1, 2], row["prompt"]))
    train, measured = own.split(rankings, random.Random(0))
    assert len(train) == 72 and len(measured) == 8
    sides = [{ranking["prompt"] for ranking in side} for side in (train, measured)]
    assert not sides[0] & sides[1]


def test_rankings_in_which_all_measured_responses_tie_have_no_accuracy(capsys):
    rankings = [opinion("ann", "ab", [1, 1])]
    report, margins = own.report(rankings, rankings, [[0.5, 0.2]])
    assert report == {} and margins == {"people": []}


def test_the_accuracy_is_the_share_of_measured_pairs_that_the_reward_model_orders_like_people():
    measured = [opinion("ann", "abc", [1, 2, 2]), opinion("ann", "ab", [2, 1])]
    report, _ = own.report(measured, measured, [[0.5, 0.2, 0.7], [0.1, 0.3]])
    assert report["accuracy_people"] == pytest.approx(2 / 3)


def test_a_reward_model_of_people_depends_on_their_rankings_and_not_on_how_others_are_simulated(
        tmp_path):
    one, same, other = tmp_path / "a.jsonl", tmp_path / "b.jsonl", tmp_path / "c.jsonl"
    write_rows(one, ranked(prompts(30, "a")))
    same.write_bytes(one.read_bytes().replace(b"\n", b"\r\n"))
    write_rows(other, ranked(prompts(31, "a")))
    found = [own.settings(reward.Config(rankings=str(path))) for path in (one, same, other)]
    assert found[0] == found[1] != found[2]
    assert "k" not in found[0] and "prompts_1" not in found[0]
    assert "rankings" not in own.settings(reward.Config())


def test_people_s_rankings_have_one_round(folder, tmp_path):
    own.use(str(folder))
    assert refused(own.check_reward, config(folder, round=2), 64, 32) == (
        "--round 2: people's rankings have one round only")


def test_the_score_of_a_model_is_the_mean_over_prompts_with_its_interval():
    rows = prompts(4, "my")
    entries = {"sft": {}}
    responses = {"sft": [{"text": "a", "ended": True}] * 4}

    def score(reward_model, encoding, pairs):
        assert [prompt for prompt, _ in pairs] == [row["prompt"] for row in rows]
        return [0.0, 1.0, 2.0, 3.0]

    own.add_scores(entries, rows, responses, score, None)
    mean, low, high = entries["sft"]["score"]
    assert mean == 1.5 and high - mean == pytest.approx(1.96 * (5 / 3) ** 0.5 / 2)


# ---------------------------------------------------------------- the example of data/README.md


def test_the_example_is_a_folder_that_goes_through_a_whole_run(tmp_path):
    torch.manual_seed(0)
    texts = tmp_path / "my_texts"
    said = command("-m data.example", texts)
    assert said == f"made {texts}\n"
    common = ("--data", texts, "--out", tmp_path / "out")
    said = command("model.py", *common, *flags_of(PRETRAINING))
    said += command("ppo.py", "--quick", *common, *flags_of(PPO))
    assert "occur in the other files" not in said and "are longer than" not in said
    assert len(files.read_jsonl(tmp_path / "out" / "ppo_ptx.jsonl")) == PPO["iterations"]


def test_the_example_ranks_what_is_right_and_short_first():
    rng = random.Random(0)
    for _ in range(200):
        line = example.ranked("dark sea green", rng)
        assert len(set(line["responses"])) == 4
        for text, rank in zip(line["responses"], line["ranks"]):
            is_best = text in ("It is a shade of green.", "A shade of green.")
            assert not is_best or rank == 1
        assert files.ranks_all(line["ranks"], 4)


def test_a_held_out_colour_of_the_example_is_in_one_file_only(tmp_path):
    example.write_folder(tmp_path)
    held_out = set()
    for name in ("prompts_eval", "prompts_valid"):
        for row in files.read_jsonl(tmp_path / f"{name}.jsonl"):
            words = row["prompt"].rstrip("?.").split()
            held_out.add(" ".join(words[2 if words[0] == "What" else 3:]))
    assert len(held_out) == 100
    training = "".join((tmp_path / name).read_text(encoding="utf-8").lower() for name in
                       ("corpus.txt", "demonstrations.jsonl", "prompts_rl.jsonl", "rankings.jsonl"))
    for colour in held_out:
        for before in ("is ", "about ", ": ", ", "):
            for after in ("?", ".", ",\"", "\n", ", "):
                assert f"{before}{colour}{after}" not in training, colour
