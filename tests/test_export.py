"""A model handed to transformers and TRL stays the same model, and comes back as the same file.

The tests of folders need safetensors and transformers, those of TRL's ids need trl (see
test_parity.py). Without them they are skipped visibly. The others need nothing.
"""
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import model
import reward
import sft
from data import export, files, tokenizer
from data.files import UserError, load_checkpoint
from model import GPT, GPTConfig
from reward import RewardModel

ROOT = Path(__file__).parent.parent
CHECKPOINTS = ROOT / "notebooks" / "checkpoints"
SHIPPED = ["gpt", "sft_mix", "reward", "ppo_ptx", "ppo_ptx_value"]
QUIET = os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1",
                      "TRL_EXPERIMENTAL_SILENCE": "1"}

# Strings that break tokenizers: spaces, line ends, control characters, marks, joined emoji,
# right-to-left text, long words, letters of many scripts, and what looks like a special token.
HOSTILE = [
    " ", "  ", "   a", "a ", "a  ", "a   b", " a", "\n", "\n\n", "a\n", "a\n\n", "\na", "\n a", "a\n b",
    "a \n b", "a\n\n\nb", "\r\n", "a\r\nb\r\n", "a\rb", "\t", "a\tb", "\ta\t", "\x00", "a\x00b",
    "\x00\n\x00", "\x01\x02\x1b[31m\x7f", "\x0b\x0c\x1c\x1d\x1e\x1f", "a\x1cb\x85c\xa0d\u2028e\u2029f",
    "\u200b\u200d\ufeff", "e\u0301e\u0301\u0301\u0301", "\u0301", "\u0301a \u0301",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea \U0001f44d\U0001f3fd",
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627", "\u202eabc\u202c", "\u4f60\u597d\u3002\u4e16\u754c",
    "x" * 5_000, "the" * 1_000, "1234567890" * 50, "\u0661\u0662\u00b2\u00bd\u2160", "!" * 300 + "a",
    "don't I'll WE'RE", "Ann's fox; it (the fox) eats \"berries\"...", "\u0120the \u010a \u00c4", "\ufffd\ufffe\uffff",
    "\U000e0001\U0010ffff", "<|endoftext|>", "a<|endoftext|>b", "<|pad|><|endoftext|>\n<|pad|>", "<|endoftext",
    "\ufb01 \u01c4 \u0130 \u1e9e", "\u3000\u00a0\u2003x", "a\u00adb", "\u180e\u2060",
]


def run(*words, code=0, **options):
    """Run `python words...` in the project's folder. Returns what it printed."""
    done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, env=QUIET, encoding="utf-8",
                          capture_output=True, timeout=300, **options)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def rows(name):
    return files.read_jsonl(files.FOLDER / f"{name}.jsonl", prompt=str)


def small(kind=GPT):
    """A small random model with our vocabulary."""
    torch.manual_seed(0)
    return kind(GPTConfig(n_layer=1, n_head=1, n_embd=8)).eval()


@pytest.fixture
def safetensors():
    return pytest.importorskip("safetensors.torch")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two of the shipped checkpoints as folders, each made by the real command: {name: folder}."""
    pytest.importorskip("safetensors")
    root = tmp_path_factory.mktemp("folders")
    for name in ("ppo_ptx", "reward"):
        run("-m", "data.export", CHECKPOINTS / f"{name}.pt", root / name)
    return {name: root / name for name in ("ppo_ptx", "reward")}


@pytest.fixture
def exported(tmp_path, safetensors):
    """The shipped base model as a folder, as the tests of errors need it."""
    export.export(CHECKPOINTS / "gpt.pt", tmp_path / "folder")
    return tmp_path / "folder"


@pytest.fixture(scope="module")
def theirs(folders):
    """The tokenizer of an exported folder, as AutoTokenizer loads it."""
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(folders["ppo_ptx"])


def ids_of(theirs, prompt, response):
    """The ids that transformers gives to a whole text as a user typed it."""
    whole = " ".join(prompt.split()) + "\n" + response
    return theirs(whole, split_special_tokens=True)["input_ids"]


def our_ids(encoding, prompt, response):
    return (tokenizer.prompt_ids(encoding, prompt)
            + tokenizer.response_ids(encoding, response, ended=False))


# ---------------------------------------------------------------- without any library


def test_gpt_2_keeps_its_matrices_the_other_way_round():
    state = small().state_dict()
    tensors = export.gpt2_tensors(state)
    block = "transformer.h.0"
    assert tensors[f"{block}.attn.c_attn.weight"].shape == (8, 24)
    for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
        weight = state[f"{block}.{name}.weight"]
        assert tensors[f"{block}.{name}.weight"].equal(weight.T)
    assert tensors["transformer.wte.weight"].equal(state["transformer.wte.weight"])


@pytest.mark.parametrize("kind", [GPT, RewardModel])
def test_the_shapes_that_are_expected_are_those_of_the_model(kind):
    network = small(kind)
    tensors = export.gpt2_tensors(network.state_dict())
    config = vars(network.config)
    expected = dict(export.expected_shapes(config, kind.__name__))
    assert expected == {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    state = export.our_state(tensors, kind.__name__, 0.0)
    for name, tensor in network.state_dict().items():
        assert state[name].equal(tensor)
    assert state.keys() == network.state_dict().keys()


def test_the_folder_samples_from_the_whole_distribution_without_pad(encoding):
    chosen = export.generation_config(encoding)
    assert (chosen["do_sample"], chosen["temperature"], chosen["top_k"], chosen["top_p"]) == (
        True, 1.0, 0, 1.0)
    assert chosen["suppress_tokens"] == [1_023] and chosen["eos_token_id"] == 1_022


def test_every_pair_of_tokens_that_makes_a_token_is_a_merge(encoding):
    """tiktoken merges any of them, and the pair that training merged is only one."""
    assert export.merges([b"a", b"b", b"c", b"ab", b"bc", b"abc"]) == [
        "a b", "b c", "a bc", "ab c"]
    pairs = export.merges([encoding.decode_single_token_bytes(i) for i in range(1_022)])
    merged = {pair.replace(" ", "") for pair in pairs}
    assert len(merged) == 1_022 - 256 < len(pairs)


def test_the_letters_of_bytes_are_gpt_2s():
    assert export.spelled(b" fox\n") == "\u0120fox\u010a"
    assert len(set(export.LETTERS)) == 256 and export.LETTERS[0xff] == "\u00ff"


# ---------------------------------------------------------------- the model


@torch.no_grad()
def test_the_logits_of_the_folder_are_those_of_the_checkpoint(folders):
    """In float64. In float32 the two libraries round differently, here logits of up to 33."""
    transformers = pytest.importorskip("transformers")
    other = transformers.AutoModelForCausalLM.from_pretrained(folders["ppo_ptx"])
    ours = model.load_model(CHECKPOINTS / "ppo_ptx.pt")
    torch.manual_seed(0)
    idx = torch.randint(1_023, (8, 128))
    assert torch.allclose(ours(idx), other(idx).logits, rtol=1e-6, atol=3e-5)
    assert torch.allclose(ours.double()(idx), other.double()(idx).logits, rtol=0, atol=1e-12)


def test_greedy_answers_to_50_prompts_are_the_same(folders, theirs, encoding):
    transformers = pytest.importorskip("transformers")
    other = transformers.AutoModelForCausalLM.from_pretrained(folders["ppo_ptx"])
    ours = model.load_model(CHECKPOINTS / "ppo_ptx.pt")
    prompts = [row["prompt"] for row in rows("prompts_eval")[:50]]
    batch = theirs([prompt + "\n" for prompt in prompts], padding=True, return_tensors="pt")
    sampled = other.generate(**batch, do_sample=False)[:, batch["input_ids"].shape[1]:]
    answers = theirs.batch_decode(sampled, skip_special_tokens=True)
    prompt_ids = [tokenizer.prompt_ids(encoding, prompt) for prompt in prompts]
    responses = model.generate(ours, prompt_ids, 32, temperature=0)
    texts = [row["text"] for row in tokenizer.decode_responses(encoding, responses)]
    assert answers == texts and len(set(texts)) > 30


@torch.no_grad()
def test_the_scores_of_the_folder_are_ours_without_the_bias(folders, encoding):
    transformers = pytest.importorskip("transformers")
    other = transformers.AutoModelForSequenceClassification.from_pretrained(folders["reward"])
    words = transformers.AutoTokenizer.from_pretrained(folders["reward"])
    ours = reward.load_reward_model(CHECKPOINTS / "reward.pt")
    chosen = rows("demonstrations")[:50]
    texts = [f"{row['prompt']}\n{row['completion']}{tokenizer.END}" for row in chosen]
    scores = other(**words(texts, padding=True, return_tensors="pt")).logits[:, 0]
    sequences = [our_ids(encoding, row["prompt"], row["completion"]) + [encoding.eot_token]
                 for row in chosen]
    idx, lengths = model.pad_batch(sequences, ours.config.pad_id)
    bias = other.config.dropped_bias
    assert bias == ours.bias.item() != 0
    assert torch.allclose(ours(idx, lengths), scores + bias, rtol=0, atol=1e-5)
    assert repr(bias) in (folders["reward"] / "README.md").read_text(encoding="utf-8")


# ---------------------------------------------------------------- the tokenizer


def test_all_3000_demonstrations_have_the_same_ids(theirs, encoding):
    demonstrations = rows("demonstrations")
    assert len(demonstrations) == 3_000
    for row in demonstrations:
        pair = row["prompt"], row["completion"]
        assert ids_of(theirs, *pair) == our_ids(encoding, *pair)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_has_the_same_ids_in_a_prompt_and_in_a_response(theirs, encoding, text):
    for pair in (("Who is here?", text), (text, "Ann is here."), (text, text)):
        assert ids_of(theirs, *pair) == our_ids(encoding, *pair)


def test_random_text_has_the_same_ids_and_reads_the_same(theirs, encoding):
    rng = random.Random(0)
    pieces = HOSTILE + ["the fox", " berries", "\n", " ", "  ", "Ann", ".", "7", "\u00e9", "\U0001f98a"]
    for _ in range(1_000):
        prompt = "".join(rng.choices(pieces, k=rng.randrange(6)))
        response = "".join(rng.choices(pieces, k=rng.randrange(1, 8)))
        ids = our_ids(encoding, prompt, response)
        assert ids_of(theirs, prompt, response) == ids
        response_ids = tokenizer.response_ids(encoding, response)
        text, ended = tokenizer.response_text(encoding, response_ids)
        assert ended and theirs.decode(response_ids, skip_special_tokens=True) == text


def test_every_character_has_the_same_ids_between_letters(theirs, encoding):
    characters = [chr(i) for i in range(sys.maxunicode + 1) if not 0xD800 <= i < 0xE000]
    for start in range(0, len(characters), 5_000):
        text = "a".join(characters[start:start + 5_000])
        assert ids_of(theirs, "Ann", text) == our_ids(encoding, "Ann", text)


def test_a_prompt_alone_ends_with_its_line_break(theirs, encoding):
    for row in rows("prompts_rl")[:200]:
        assert theirs(export.question(row))["input_ids"] == tokenizer.prompt_ids(
            encoding, row["prompt"])


def test_what_differs_is_what_the_card_says(folders, theirs, encoding):
    typed = theirs("Ann <|endoftext|>\n")["input_ids"]
    assert typed.count(encoding.eot_token) == 2, "transformers reads special tokens in a text"
    assert ids_of(theirs, "Ann", "") == tokenizer.prompt_ids(encoding, "Ann")
    assert our_ids(encoding, "Ann", "") == ids_of(theirs, "Ann", "") + [encoding.encode(" ")[0]]
    shown = (folders["ppo_ptx"] / "README.md").read_text(encoding="utf-8")
    assert "split_special_tokens=True" in shown and "empty response" in shown


# ---------------------------------------------------------------- and back


@pytest.mark.parametrize("name", SHIPPED)
def test_there_and_back_is_the_identity(name, tmp_path, safetensors):
    export.export(CHECKPOINTS / f"{name}.pt", tmp_path / "folder")
    export.take_back(tmp_path / "folder", tmp_path / "again.pt", seed=9)
    before = load_checkpoint(CHECKPOINTS / f"{name}.pt")
    again = load_checkpoint(tmp_path / "again.pt")
    assert again["sha256"] == before["sha256"] and again["extra"] == before["extra"]
    for key, tensor in before["state"].items():
        assert again["state"][key].dtype == tensor.dtype and again["state"][key].equal(tensor)


def test_there_and_back_on_the_command_line(folders, tmp_path):
    shown = run("-m", "data.export", "--back", folders["ppo_ptx"], tmp_path / "again.pt")
    assert "the checkpoint that" in shown
    assert run("model.py", "--chat", tmp_path / "again.pt", input="Name two colours.\n") == run(
        "model.py", "--chat", CHECKPOINTS / "ppo_ptx.pt", input="Name two colours.\n")


@pytest.fixture
def foreign(tmp_path):
    """A folder that transformers saved: a random GPT-2 with our vocabulary, which we never saw."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=1_024, n_positions=96, n_embd=16, n_layer=2,
                                     n_head=2)
    other = transformers.GPT2LMHeadModel(config).eval()
    other.save_pretrained(tmp_path / "foreign")
    return tmp_path / "foreign", other


@torch.no_grad()
def test_a_model_from_elsewhere_can_be_the_base_model_of_a_run(foreign, tmp_path):
    folder, other = foreign
    run("-m", "data.export", "--back", folder, tmp_path / "out" / "gpt.pt", "--seed", "2")
    config = sft.Config(out=str(tmp_path / "out"), seed=2)
    path = files.require(config, "gpt", "model.py")
    ours = model.load_model(path)
    idx = torch.randint(1_023, (3, 96))
    assert torch.allclose(ours(idx), other(idx).logits, rtol=0, atol=1e-5)
    assert reward.from_language_model(path, "cpu").config.block_size == 96
    files.check_complete(config)            # no out/gpt.jsonl is asked for
    other_seed = sft.Config(out=str(tmp_path / "out"), seed=3)
    with pytest.raises(UserError, match="made with seed 2, not 3"):
        files.require(other_seed, "gpt", "model.py")
    assert run("model.py", "--chat", path, input="Name two colours.\n").strip()


def test_a_changed_export_counts_as_a_model_from_elsewhere(
        exported, safetensors, tmp_path, capsys):
    path = exported / "model.safetensors"
    weights = safetensors.load_file(path)
    weights["transformer.ln_f.bias"] += 1.0
    safetensors.save_file(weights, path)
    export.take_back(exported, tmp_path / "gpt.pt", seed=4)
    assert "changed after its export" in capsys.readouterr().out
    extra = load_checkpoint(tmp_path / "gpt.pt")["extra"]
    assert (extra["stage"], extra["seed"], extra["world"]) == ("import", 4, files.world_hash())


def test_files_as_openai_published_them_are_understood(exported, safetensors, tmp_path):
    """Names without "transformer.", and the causal masks among the weights."""
    path = exported / "model.safetensors"
    weights = {}
    for name, tensor in safetensors.load_file(path).items():
        weights[name.removeprefix("transformer.")] = tensor
    weights["h.0.attn.bias"] = torch.ones(1, 1, 128, 128)
    safetensors.save_file(weights, path)
    export.take_back(exported, tmp_path / "gpt.pt", seed=1)
    original = load_checkpoint(CHECKPOINTS / "gpt.pt")
    assert load_checkpoint(tmp_path / "gpt.pt")["sha256"] == original["sha256"]


# ---------------------------------------------------------------- errors


def test_an_error_on_the_command_line_is_one_line_and_exit_code_2(tmp_path, safetensors):
    shown = run("-m", "data.export", tmp_path / "no.pt", tmp_path / "folder", code=2)
    assert shown.strip() == f"error: {tmp_path / 'no.pt'}: no such checkpoint"
    shown = run("-m", "data.export", "--trl", tmp_path, tmp_path / "folder", code=2)
    assert "rankings.jsonl is missing: run `python reward.py`" in shown
    assert "the following arguments are required" in run("-m", "data.export", "x", code=2)
    assert "must be 0 or more" in run("-m", "data.export", "--seed", "-1", "x", "y", code=2)


def test_a_missing_library_is_named_with_its_command(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(UserError, match="this needs safetensors: pip install safetensors"):
        export.export(CHECKPOINTS / "gpt.pt", tmp_path / "folder")


def test_a_folder_with_other_files_is_refused_and_an_export_is_replaced(tmp_path, safetensors):
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "link").symlink_to(folder)
    export.export(CHECKPOINTS / "gpt.pt", folder)
    export.export(CHECKPOINTS / "ppo_ptx.pt", tmp_path / "link")
    record = json.loads((folder / export.RECORD).read_text(encoding="utf-8"))
    assert record["sha256"] == load_checkpoint(CHECKPOINTS / "ppo_ptx.pt")["sha256"]
    (folder / "thesis.txt").write_bytes(b"five years")
    with pytest.raises(UserError, match="is not such an export"):
        export.export(CHECKPOINTS / "gpt.pt", folder)
    assert (folder / "thesis.txt").read_text(encoding="utf-8") == "five years"
    with pytest.raises(UserError, match="is a file"):
        export.export(CHECKPOINTS / "gpt.pt", folder / "thesis.txt")


def test_a_full_disk_leaves_the_old_export(exported, tmp_path, monkeypatch):
    before = {path.name: path.read_bytes() for path in exported.iterdir()}
    write = Path.write_bytes

    def full(path, content):
        if path.name == "README.md":
            raise OSError(28, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="cannot be written"):
        export.export(CHECKPOINTS / "ppo_ptx.pt", exported)
    assert {path.name: path.read_bytes() for path in exported.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_model_of_another_vocabulary_is_refused(tiny, tmp_path, safetensors):
    files.save_checkpoint(tmp_path / "tiny.pt", tiny)
    with pytest.raises(UserError, match="a vocabulary of 64 tokens"):
        export.export(tmp_path / "tiny.pt", tmp_path / "folder")


def test_a_model_of_another_world_is_refused(tmp_path, safetensors):
    files.save_checkpoint(tmp_path / "small.pt", small(), world="Atlantis")
    with pytest.raises(UserError, match="small.pt was made in another world"):
        export.export(tmp_path / "small.pt", tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize("change, message", [
    ({"model_type": "llama"}, '"model_type" must be "gpt2"'),
    ({"vocab_size": 50_257}, "a vocabulary of 50,257 tokens"),
    ({"activation_function": "relu"}, '"activation_function" is \'relu\''),
    ({"n_inner": 7}, '"n_inner" is 7'),
    ({"tie_word_embeddings": False}, '"tie_word_embeddings" is False'),
    ({"layer_norm_epsilon": 1e-6}, '"layer_norm_epsilon" is 1e-06'),
    ({"n_layer": 5}, "transformer.h.4.attn.c_attn.weight is missing"),
    ({"n_layer": 3}, "transformer.h.3.attn.c_attn.bias is no part of such a model"),
    ({"n_positions": 64}, "transformer.wpe.weight is missing or not of the shape"),
    ({"n_head": 0}, '"n_head" must be a whole number from 1'),
    ({"n_head": 5}, '"n_embd" must be a multiple of twice "n_head"'),
    ({"n_embd": "64"}, '"n_embd" must be a whole number from 1'),
    ({"architectures": ["GPT2DoubleHeadsModel"]}, '"architectures" must be one of'),
    ({"architectures": ["GPT2ForSequenceClassification"]}, "score.weight is missing"),
    ({"dropped_bias": "much"}, '"dropped_bias" must be a number'),
])
def test_a_config_that_is_not_ours_is_refused(exported, tmp_path, change, message):
    path = exported / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | change
    path.write_text(json.dumps(config), encoding="utf-8", newline="\n")
    with pytest.raises(UserError) as raised:
        export.take_back(exported, tmp_path / "gpt.pt", seed=1)
    assert message in str(raised.value) and str(exported) in str(raised.value)
    assert "\n" not in str(raised.value) and not (tmp_path / "gpt.pt").exists()


@pytest.mark.parametrize("name, content, message", [
    ("config.json", None, "is missing"),
    ("config.json", b"{", "damaged"),
    ("config.json", b"[1]", '"model_type" must be'),
    ("model.safetensors", None, "is missing: the weights must be in this one file"),
    ("model.safetensors", b"\x00" * 100, "damaged"),
    ("tokenizer.json", b'{"model": {"vocab": {"a": 0}}}', "not the tokenizer of this world"),
    ("tokenizer.json", b"[]", "not a tokenizer"),
    (export.RECORD, b"{}", '"config" is missing'),
    (export.RECORD, b'{"config": {}, "extra": {}, "sha256": "0", "dtype": "int8"}', '"dtype"'),
])
def test_a_damaged_folder_is_refused(exported, tmp_path, name, content, message):
    path = exported / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as raised:
        export.take_back(exported, tmp_path / "gpt.pt", seed=1)
    assert message in str(raised.value) and name in str(raised.value)


def test_a_checkpoint_is_never_overwritten(exported, tmp_path):
    (tmp_path / "gpt.pt").write_bytes(b"mine")
    with pytest.raises(UserError, match="gpt.pt exists already"):
        export.take_back(exported, tmp_path / "gpt.pt", seed=1)
    assert (tmp_path / "gpt.pt").read_bytes() == b"mine"


# ---------------------------------------------------------------- the data in TRL's formats

RANKING = {"prompt": "Name  two colours.", "round": 1,
           "task": {"kind": "name", "what": "colour", "n": 2, "phrasing": 0},
           "responses": [{"text": "Red.", "ended": True}, {"text": "I think of red\nand blue.",
                                                           "ended": True},
                         {"text": "Red and red and", "ended": False}, {"text": "", "ended": True},
                         {"text": "Blue.", "ended": True}],
           "ranks": [2, 1, 3, 3, 2], "second_opinions": [[1, 2, 2, 2, 2]]}


@pytest.fixture
def exported_data(tmp_path):
    """The three files, made by the real command from one ranking twice."""
    task = rows("prompts_rm")[0]["task"]
    out = tmp_path / "out"
    out.mkdir()
    files.write_jsonl(out / "rankings.jsonl", [RANKING | {"task": task}] * 40)
    run("-m", "data.export", "--trl", out, tmp_path / "data")
    return tmp_path / "data"


def test_the_data_are_in_trls_standard_formats(exported_data):
    found = {}
    for name in ("sft", "preferences", "prompts"):
        found[name] = files.read_jsonl(exported_data / f"{name}.jsonl")
    assert [set(found[name][0]) for name in found] == [
        {"prompt", "completion"}, {"prompt", "chosen", "rejected"}, {"prompt"}]
    assert (len(found["sft"]), len(found["prompts"])) == (3_000, 8_000)
    prompt = "Name two colours.\n"
    best = "I think of red\nand blue."
    # 2 pairs of 5 responses: two others tie, one has not ended, one is empty
    assert found["preferences"] == 40 * [
        {"prompt": prompt, "chosen": best, "rejected": "Red."},
        {"prompt": prompt, "chosen": best, "rejected": "Blue."}]


def settings(folder, **more):
    """The arguments that every trainer of TRL gets here."""
    return dict(output_dir=str(folder), report_to="none", use_cpu=True, bf16=False, **more)


@pytest.fixture
def small_folder(tmp_path, safetensors):
    """A small random model as a folder."""
    files.save_checkpoint(tmp_path / "small.pt", small(), stage="pretrain", seed=1)
    export.export(tmp_path / "small.pt", tmp_path / "small")
    return str(tmp_path / "small")


def dataset(folder, name, n):
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset("json", data_files=str(folder / f"{name}.jsonl"), split="train",
                                   cache_dir=str(folder / "cache"))
    return loaded.select(range(n))


def test_trls_sft_trainer_trains_on_our_ids_and_on_our_responses(
        small_folder, exported_data, encoding, tmp_path):
    trl = pytest.importorskip("trl")
    config = trl.SFTConfig(**settings(tmp_path / "trl"), max_length=128)
    trainer = trl.SFTTrainer(small_folder, config,
                             train_dataset=dataset(exported_data, "sft", 300))
    pairs = sft.read_demonstrations(encoding)[:300]
    for (prompt, response), row in zip(pairs, trainer.train_dataset, strict=True):
        assert row["input_ids"] == prompt + response
        assert row["labels"] == [-100] * len(prompt) + response


def test_trls_reward_and_dpo_trainers_compare_our_ids(
        small_folder, exported_data, encoding, tmp_path):
    trl = pytest.importorskip("trl")
    pairs = dataset(exported_data, "preferences", 8)
    prompt = tokenizer.prompt_ids(encoding, RANKING["prompt"])
    right = [tokenizer.response_ids(encoding, RANKING["responses"][i]["text"]) for i in (1, 0)]
    config = trl.RewardConfig(**settings(tmp_path / "trl"), max_length=128)
    row = trl.RewardTrainer(small_folder, config, train_dataset=pairs).train_dataset[0]
    assert [row["chosen_ids"], row["rejected_ids"]] == [prompt + ids for ids in right]
    config = trl.DPOConfig(**settings(tmp_path / "trl"), max_length=128)
    row = trl.DPOTrainer(small_folder, args=config, train_dataset=pairs).train_dataset[0]
    assert row["prompt_ids"] == prompt
    assert [row["chosen_ids"], row["rejected_ids"]] == right


@torch.no_grad()
def test_the_reward_function_for_rloo_scores_what_our_reward_model_scores(folders, encoding):
    pytest.importorskip("trl")
    from notebooks import trl_next

    demonstrations = rows("demonstrations")[:20]
    responses = [tokenizer.response_ids(encoding, row["completion"]) for row in demonstrations]
    prompts = [export.question(row) for row in demonstrations]
    scores = trl_next.scorer(folders["reward"])(prompts=prompts, completion_ids=responses)
    ours = reward.load_reward_model(CHECKPOINTS / "reward.pt")
    sequences = [tokenizer.prompt_ids(encoding, row["prompt"]) + ids
                 for row, ids in zip(demonstrations, responses)]
    right = ours(*model.pad_batch(sequences, ours.config.pad_id)) - ours.bias
    assert torch.allclose(torch.tensor(scores), right, rtol=0, atol=1e-5)


@pytest.mark.parametrize("step", ["sft", "reward", "rloo"])
def test_trl_trains_the_folder_on_two_processes(step, folders, tmp_path, request):
    """notebooks/trl_next.py as accelerate launches it. CI runs all three steps on a whole run."""
    pytest.importorskip("trl")
    if step != "sft" and not request.config.getoption("--slow"):
        pytest.skip("only with --slow")
    data = tmp_path / "data"
    questions = [{"prompt": export.question(row)} for row in rows("prompts_rl")]
    always_red = [question | {"completion": "Red."} for question in questions]
    pairs = export.preferences([RANKING] * 700)
    export.write_folder(data, {"preferences.jsonl": export.as_jsonl(pairs),
                               "prompts.jsonl": export.as_jsonl(questions),
                               "sft.jsonl": export.as_jsonl(always_red)})
    shown = run("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
                "-m", "notebooks.trl_next", step, folders["ppo_ptx"], data,
                "--reward", folders["reward"], "--save", tmp_path / "trained")
    assert f"{step} on 2 processes" in shown
    if step == "sft":
        run("-m", "data.export", "--back", tmp_path / "trained", tmp_path / "trained.pt")
        answer = run("model.py", "--chat", tmp_path / "trained.pt", input="Who is here?\n")
        assert answer == "Red.\n"
