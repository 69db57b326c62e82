"""On from here: hand models and data to transformers, TRL and accelerate, and take models back.

    python -m data.export out/ppo_ptx.pt FOLDER         # a checkpoint as a folder of transformers
    python -m data.export --trl out FOLDER              # the data as JSONL in TRL's formats
    python -m data.export --back FOLDER out/gpt.pt      # such a folder, or any GPT-2, comes back

Our weights have GPT-2's names, so a language model becomes a GPT2LMHeadModel, and a reward model or
value network a GPT2ForSequenceClassification. The rank file becomes a tokenizer.json. The card in
the folder says what differs. Models need `pip install safetensors`. Nothing here needs
transformers.
"""
import argparse
import importlib
import itertools
import json
import os
import shutil
from pathlib import Path

from data import files, flags, own, tokenizer
from data.files import UserError

KINDS = {"GPT": "GPT2LMHeadModel", "RewardModel": "GPT2ForSequenceClassification"}
TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")      # GPT-2 keeps these (in, out)
RECORD = "toytown.json"             # where the checkpoint came from, so that it can come back
# GPT-2's name of each size.
SIZES = {"vocab_size": "vocab_size", "block_size": "n_positions",
         "n_layer": "n_layer", "n_head": "n_head", "n_embd": "n_embd"}


def optional(name):
    """Import a library that the scripts do not need."""
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise UserError(f"this needs {package}: pip install {package}") from None


# ---------------------------------------------------------------- a checkpoint as a folder


def export(path, folder):
    """Write a checkpoint as a folder that transformers loads."""
    safetensors = optional("safetensors.torch")
    saved = files.load_checkpoint(path)
    encoding = tokenizer.load()
    if saved["kind"] not in KINDS:
        raise UserError(f"{path}: holds a {saved['kind']}, which transformers does not have")
    check_vocabulary(path, saved["config"]["vocab_size"], encoding)
    if saved["extra"].get("world", files.world_hash()) != files.world_hash():
        raise UserError(f"{path} was made in another world: the tokens of this one may be other "
                        "words; export it where it was made")
    tensors = gpt2_tensors(saved["state"])
    dtype = str(saved["state"]["transformer.wte.weight"].dtype).removeprefix("torch.")
    record = {"config": saved["config"], "dtype": dtype,
              "extra": saved["extra"], "sha256": saved["sha256"]}
    contents = {
        "config.json": as_json(gpt2_config(saved, encoding)),
        "model.safetensors": safetensors.save(tensors, metadata={"format": "pt"}),
        "tokenizer.json": as_json(tokenizer_json(encoding)),
        "tokenizer_config.json": as_json(tokenizer_config(saved, encoding)),
        "README.md": card(saved).encode(),
        RECORD: as_json(record),
    }
    if saved["kind"] == "GPT":
        contents["generation_config.json"] = as_json(generation_config(encoding))
    write_folder(folder, contents)
    print(f"made {folder}, a {KINDS[saved['kind']]} of transformers. Its README.md says how to "
          "use it")


def as_json(value):
    """Return a value as the bytes of a JSON file."""
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def gpt2_tensors(state):
    """Return the weights of a checkpoint in GPT-2's shapes and in float32."""
    tensors = {}
    for name, tensor in state.items():
        if name in ("lm_head.weight", "bias"):      # the tied table, and a number for config.json
            continue
        if name.endswith(TRANSPOSED):
            tensor = tensor.T
        tensors[name] = tensor.float().contiguous()
    return tensors


def special_ids(encoding):
    """Return the ids of the special tokens under the names that transformers gives them."""
    end = encoding.eot_token
    return {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end + 1}


def gpt2_config(saved, encoding):
    """Return config.json. Dropout is off, because only sft.py uses it and sets its own."""
    config = {"architectures": [KINDS[saved["kind"]]], "model_type": "gpt2"}
    for ours, theirs in SIZES.items():
        config[theirs] = saved["config"][ours]
    config |= {"n_inner": None, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
               "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
               "tie_word_embeddings": True, **special_ids(encoding)}
    if saved["kind"] == "RewardModel":
        config |= {"id2label": {"0": "score"}, "label2id": {"score": 0},
                   "dropped_bias": saved["state"]["bias"].item()}
    return config


def generation_config(encoding):
    """Return generation_config.json. It samples as `model.generate` does: from the whole
    distribution, without <|pad|>."""
    ids = special_ids(encoding)
    return {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": 32,
            "suppress_tokens": [ids["pad_token_id"]], **ids}


def tokenizer_config(saved, encoding):
    """Return tokenizer_config.json. Prompts are padded on the left, because new tokens follow on
    the right. Texts to be scored are padded on the right."""
    side = "left" if saved["kind"] == "GPT" else "right"
    return {"tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": tokenizer.END, "eos_token": tokenizer.END, "pad_token": tokenizer.PAD,
            "model_max_length": saved["config"]["block_size"], "padding_side": side,
            "model_input_names": ["input_ids", "attention_mask"],
            "clean_up_tokenization_spaces": False}


def card(saved):
    """Return the model card."""
    extra = saved["extra"]
    text = CARD.format(kind=KINDS[saved["kind"]], stage=extra.get("stage"), seed=extra.get("seed"),
                       block_size=saved["config"]["block_size"], record=RECORD)
    if saved["kind"] == "GPT":
        return text + CARD_OF_ANSWERS
    return text + CARD_OF_SCORES.format(bias=saved["state"]["bias"].item())


CARD = """---
library_name: transformers
---
# A model of a toy-scale InstructGPT

A {kind}, made by the stage "{stage}" with seed {seed}. It knows
nothing but its small corpus, which describes a made-up town unless the user chose other texts. Its
context has {block_size} tokens.

A text is `prompt`, a line break and `response`. The prompt is one line with single spaces,
`" ".join(prompt.split())`. The tokenizer puts `<|endoftext|>` in front of the text and a space
before each of its lines. Decoding removes these spaces. TRL adds the `<|endoftext|>` at the end.

- Pass `split_special_tokens=True` with texts that users typed. Otherwise `<|endoftext|>` in such a
  text becomes the special token.
- The tokenizer gives an empty response no token. The project gives it a space.
- `{record}` says where the weights come from. `python -m data.export --back` reads it.
"""

CARD_OF_ANSWERS = """- To generate, give it `prompt + "\\n"`, padded on the left. By default it
  samples as the project does. For greedy answers pass `do_sample=False`.
- `<|pad|>` was never trained. `generation_config.json` suppresses it.
"""

CARD_OF_SCORES = """- A score is the logit at the last token. The project adds a bias of
  {bias!r}, so that demonstrations have 0 on average. This class of
  transformers has none, so it was dropped. It is `dropped_bias` in `config.json`. Neither
  rankings nor RL depend on it.
- Give it whole texts, padded on the right: prompt, line break, response and, if the response
  ended, `<|endoftext|>`.
"""


def write_folder(folder, contents):
    """Write {file name: bytes} as a folder. A killed run never leaves half of it.

    A folder with other files than these is refused, because replacing it would delete them."""
    folder = Path(folder)
    if folder.exists():
        if not folder.is_dir():
            raise UserError(f"{folder} is a file: name a folder to write")
        names = {path.name for path in folder.iterdir()}
        if names and names != set(contents):
            raise UserError(f"{folder} exists and is not such an export: choose another folder")
    target = folder.resolve()               # of a link, the folder that it leads to
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        for name, content in contents.items():
            (partial / name).write_bytes(content)
        if target.exists():
            shutil.rmtree(target)
        os.replace(partial, target)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(f"{folder} cannot be written ({error.strerror})") from None


# ---------------------------------------------------------------- the tokenizer


def tokenizer_json(encoding):
    """Return tokenizer.json, with which the library tokenizers gives our ids."""
    ids = range(encoding.eot_token)
    tokens = [encoding.decode_single_token_bytes(i) for i in ids]
    vocabulary = {spelled(token): i for i, token in enumerate(tokens)}
    special = []
    for content in (tokenizer.END, tokenizer.PAD):
        special.append({"id": encoding.encode_single_token(content), "content": content,
                        "single_word": False, "lstrip": False, "rstrip": False,
                        "normalized": False, "special": True})
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special,
        "normalizer": {"type": "Sequence", "normalizers": NORMALIZERS},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": PRE_TOKENIZERS},
        "post_processor": end_in_front(encoding.eot_token),
        "decoder": {"type": "Sequence", "decoders": DECODERS},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": merges(tokens), "dropout": None,
                  "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                  "ignore_merges": True},
    }


# `tokenizer.spaced`, a space before every line. The last of the three takes back the space after a
# line break that ends a prompt, because the response, which begins with it, is still to come.
NORMALIZERS = [
    {"type": "Prepend", "prepend": " "},
    {"type": "Replace", "pattern": {"String": "\n"}, "content": "\n "},
    {"type": "Replace", "pattern": {"Regex": r"\A[^\n]*\n\K \z"}, "content": ""},
]
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
PRE_TOKENIZERS = [
    {"type": "Split", "pattern": {"Regex": tokenizer.PATTERN}, "behavior": "Isolated",
     "invert": False},
    BYTES,
]
# `tokenizer.response_text`: the same spaces are removed.
DECODERS = [
    BYTES,
    {"type": "Replace", "pattern": {"String": "\n "}, "content": "\n"},
    {"type": "Strip", "content": " ", "start": 1, "stop": 0},
]


def end_in_front(end):
    """Return the post-processor that puts <|endoftext|> in front of a text. end: its id."""
    first = {"SpecialToken": {"id": tokenizer.END, "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 0}}
    special = {"id": tokenizer.END, "ids": [end], "tokens": [tokenizer.END]}
    return {"type": "TemplateProcessing", "single": [first, text], "pair": [first, text, second],
            "special_tokens": {tokenizer.END: special}}


def merges(tokens):
    """Return every pair of tokens that makes a token, in the order of that token's rank.

    tiktoken merges any two neighbours that make a token, the lowest rank first. The library
    tokenizers merges only the pairs that it is told."""
    known = set(tokens)
    pairs = []
    for token in tokens:
        for cut in range(1, len(token)):
            left = token[:cut]
            right = token[cut:]
            if left in known and right in known:
                pairs.append(f"{spelled(left)} {spelled(right)}")
    return pairs


def letters_of_bytes():
    """Return GPT-2's 256 letters for the 256 bytes, because JSON holds text. A byte that does not
    print as a character of its own becomes one from number 256 on."""
    letters = []
    others = 0
    for byte in range(256):
        if 33 <= byte <= 126 or 161 <= byte <= 172 or 174 <= byte:
            letters.append(chr(byte))
        else:
            letters.append(chr(256 + others))
            others += 1
    return letters


LETTERS = letters_of_bytes()


def spelled(token):
    """Return the letters of a token, e.g. b" fox" -> "Ġfox"."""
    return "".join(LETTERS[byte] for byte in token)


# ---------------------------------------------------------------- the data in TRL's formats


def export_data(out, folder):
    """Write sft.jsonl, preferences.jsonl and prompts.jsonl: what SFT, the reward model (or DPO)
    and RL learn from."""
    path = files.FOLDER / "demonstrations.jsonl"
    rankings = files.read_rankings(Path(out) / "rankings.jsonl")
    demonstrations = []
    for row in files.read_jsonl(path, prompt=str, completion=str):
        demonstrations.append({"prompt": question(row), "completion": row["completion"]})
    prompts = [{"prompt": question(row)} for row in files.read_prompts("rl")]
    pairs = preferences(rankings)
    write_folder(folder, {"sft.jsonl": as_jsonl(demonstrations),
                          "preferences.jsonl": as_jsonl(pairs),
                          "prompts.jsonl": as_jsonl(prompts)})
    print(f"made {folder}: {len(demonstrations):,} demonstrations, {len(pairs):,} pairs of "
          f"responses, {len(prompts):,} prompts")


def as_jsonl(rows):
    """Return dicts as the bytes of a JSONL file."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def question(row):
    """Return a prompt as TRL gets it: one line and its line break, after which the response
    follows without a space. The tokenizer adds the spaces."""
    return " ".join(row["prompt"].split()) + "\n"


def preferences(rankings):
    """Return the pairs of responses that the first labeler of each ranking did not tie.

    TRL ends every response, so that only responses that ended are used. Empty ones are left out,
    because the two tokenizers differ there."""
    pairs = []
    for ranking in rankings:
        usable = []
        for response, rank in zip(ranking["responses"], ranking["ranks"]):
            if response["ended"] and response["text"]:
                usable.append((rank, response["text"]))
        for (rank, chosen), (other_rank, rejected) in itertools.permutations(usable, 2):
            if rank < other_rank:
                pairs.append({"prompt": question(ranking), "chosen": chosen, "rejected": rejected})
    return pairs


# ---------------------------------------------------------------- a folder as a checkpoint


def take_back(folder, path, seed):
    """Write a folder in GPT-2's format as a checkpoint.

    An export that nobody changed becomes the checkpoint that it was, hash included. Any other model
    becomes one from elsewhere, which can be the base model of a run with this seed."""
    folder = Path(folder)
    if Path(path).exists():
        raise UserError(f"{path} exists already: delete it first, or choose another name")
    gpt2 = read_config(folder / "config.json")
    kind = kind_of(folder, gpt2)
    check_vocabulary(folder, gpt2["vocab_size"], tokenizer.load())
    check_tokenizer(folder / "tokenizer.json")
    tensors = read_tensors(folder / "model.safetensors")
    config = {ours: gpt2[theirs] for ours, theirs in SIZES.items()} | {"dropout": 0.0}
    check_shapes(folder, tensors, expected_shapes(config, kind))
    state = our_state(tensors, kind, gpt2.get("dropped_bias", 0.0))
    record = read_record(folder / RECORD)
    if record:
        original = cast(state, record["dtype"])
        sha256 = files.fingerprint(original, kind, record["config"], record["extra"])
        if sha256 == record["sha256"]:
            files.save(path, kind, record["config"], original, record["extra"])
            print(f"made {path}, the checkpoint that {folder} was made from")
            return
        print(f"{folder} was changed after its export: it counts as a model from elsewhere")
    extra = {"stage": "import", "settings": {}, "seed": seed, "world": files.world_hash(),
             "parents": {}}
    files.save(path, kind, config, state, extra)
    print(f"made {path}, a {kind} from elsewhere, for a run with --seed {seed}")


def read_config(path):
    """Return config.json. Raises UserError if the model is not ours in all but its size."""
    if not path.exists():
        raise UserError(f"{path} is missing: {path.parent} is no folder in GPT-2's format")
    config = files.read_json(path)
    if not isinstance(config, dict) or config.get("model_type") != "gpt2":
        raise UserError(f'{path}: "model_type" must be "gpt2"')
    for name in SIZES.values():
        if type(config.get(name)) is not int or config[name] < 1:
            raise UserError(f'{path}: "{name}" must be a whole number from 1')
    if config["n_embd"] % (2 * config["n_head"]):
        raise UserError(f'{path}: "n_embd" must be a multiple of twice "n_head" here')
    # The names of the same architecture. A missing key has the first value.
    same = {"activation_function": ["gelu_new", "gelu_pytorch_tanh"],
            "layer_norm_epsilon": [1e-5], "n_inner": [None, 4 * config["n_embd"]],
            "scale_attn_weights": [True], "scale_attn_by_inverse_layer_idx": [False],
            "add_cross_attention": [False], "tie_word_embeddings": [True]}
    for key, values in same.items():
        value = config.get(key, values[0])
        if value not in values:
            raise UserError(f'{path}: "{key}" is {value!r}, and GPT-2 as it is here has '
                            f"{values[0]!r}")
    if type(config.get("dropped_bias", 0.0)) is not float:
        raise UserError(f'{path}: "dropped_bias" must be a number such as 0.0')
    return config


def kind_of(folder, gpt2):
    """Return our name of the model in a folder. gpt2: its config.json."""
    for kind, architecture in KINDS.items():
        if gpt2.get("architectures") == [architecture]:
            return kind
    raise UserError(f'{folder}/config.json: "architectures" must be one of {list(KINDS.values())}')


def check_vocabulary(place, vocab_size, encoding):
    """Raise UserError if a model's ids cannot be those of our tokenizer."""
    if vocab_size != encoding.n_vocab:
        raise UserError(f"{place}: has a vocabulary of {vocab_size:,} tokens, and "
                        f"{tokenizer.PATH.name} has {encoding.n_vocab:,}: neither `model.py "
                        "--chat` nor any stage could use it")


def check_tokenizer(path):
    """Raise UserError if a folder has another tokenizer than ours. It may have none."""
    if not path.exists():
        return
    theirs = files.read_json(path)
    ours = tokenizer_json(tokenizer.load())
    if not isinstance(theirs, dict) or not isinstance(theirs.get("model"), dict):
        raise UserError(f"{path}: not a tokenizer")
    vocabulary = theirs["model"].get("vocab")
    if not isinstance(vocabulary, dict) or not ours["model"]["vocab"].items() <= vocabulary.items():
        raise UserError(f"{path}: not the tokenizer of this world, so the model's ids mean other "
                        "words")


def read_tensors(path):
    """Return the weights of a safetensors file by GPT-2's full names, in float32."""
    safetensors = optional("safetensors.torch")
    if not path.exists():
        raise UserError(f"{path} is missing: the weights must be in this one file")
    try:
        loaded = safetensors.load_file(path)
    except Exception as error:              # a damaged file can fail in any way
        raise UserError(f"{path}: damaged ({type(error).__name__})") from None
    tensors = {}
    for name, tensor in loaded.items():
        if name.endswith((".attn.bias", ".attn.masked_bias")):
            continue                        # the causal mask, which old files hold
        if not name.startswith(("transformer.", "lm_head.", "score.")):
            name = f"transformer.{name}"    # as in the files that OpenAI's weights came in
        tensors[name] = tensor.float()
        if not tensors[name].isfinite().all():
            raise UserError(f"{path}: {name} holds weights that are not numbers")
    table = tensors.pop("lm_head.weight", None)
    if table is not None and not table.equal(tensors.get("transformer.wte.weight")):
        raise UserError(f"{path}: lm_head.weight is not tied to wte.weight")
    return tensors


def expected_shapes(config, kind):
    """Yield the name and shape of each tensor of a GPT-2 of this size."""
    C = config["n_embd"]
    yield "transformer.wte.weight", (config["vocab_size"], C)
    yield "transformer.wpe.weight", (config["block_size"], C)
    matrices = {"attn.c_attn": (C, 3 * C), "attn.c_proj": (C, C),
                "mlp.c_fc": (C, 4 * C), "mlp.c_proj": (4 * C, C)}
    for i in range(config["n_layer"]):
        for name, shape in matrices.items():
            yield f"transformer.h.{i}.{name}.weight", shape
            yield f"transformer.h.{i}.{name}.bias", shape[1:]
        for name in ("ln_1", "ln_2"):
            yield f"transformer.h.{i}.{name}.weight", (C,)
            yield f"transformer.h.{i}.{name}.bias", (C,)
    yield "transformer.ln_f.weight", (C,)
    yield "transformer.ln_f.bias", (C,)
    if kind == "RewardModel":
        yield "score.weight", (1, C)


def check_shapes(folder, tensors, expected):
    """Raise UserError if the weights are not those that config.json promises."""
    unknown = set(tensors)
    for name, shape in expected:
        if name not in tensors or tuple(tensors[name].shape) != shape:
            raise UserError(f"{folder}/model.safetensors: {name} is missing or not of the shape "
                            f"{shape} that config.json asks for")
        unknown.discard(name)
    if unknown:
        raise UserError(f"{folder}/model.safetensors: {min(unknown)} is no part of such a model")


def our_state(tensors, kind, bias):
    """Return the weights under the names and in the shapes of our models."""
    import torch                            # here, because the data needs no torch

    state = {}
    for name, tensor in tensors.items():
        state[name] = tensor.T.contiguous() if name.endswith(TRANSPOSED) else tensor
    if kind == "GPT":
        state["lm_head.weight"] = state["transformer.wte.weight"]
    else:
        state["bias"] = torch.tensor(bias)
    return state


def cast(state, dtype):
    """Return the weights in a data type such as "float16". The tied table stays one tensor."""
    import torch

    cast_tensors = {}
    for name, tensor in state.items():
        cast_tensors[name] = tensor.to(getattr(torch, dtype))
    if "lm_head.weight" in cast_tensors:
        cast_tensors["lm_head.weight"] = cast_tensors["transformer.wte.weight"]
    return cast_tensors


def read_record(path):
    """Return what an export says about its checkpoint, or None if the folder is no export."""
    if not path.exists():
        return None
    record = files.read_json(path)
    keys = {"config": dict, "dtype": str, "extra": dict, "sha256": str}
    files.check_row(record, path, keys)
    if record["dtype"] not in ("float16", "float32"):
        raise UserError(f'{path}: "dtype" must be "float16" or "float32"')
    return record


# ---------------------------------------------------------------- the command line


def main():
    """Parse the command line and do what it says."""
    parser = argparse.ArgumentParser(prog="python -m data.export", description=__doc__,
                                     allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    direction = parser.add_mutually_exclusive_group()
    direction.add_argument("--trl", action="store_true", help="export the data of a run")
    direction.add_argument("--back", action="store_true", help="make a folder a checkpoint again")
    parser.add_argument("--seed", type=int, default=1,
                        help="with --back: the run that a model from elsewhere is for")
    parser.add_argument("--data", default="", help="the folder of your own texts, if it was used")
    parser.add_argument("source", help="a checkpoint, the folder of a run, or a model's folder")
    parser.add_argument("target", help="the folder to write, or with --back the checkpoint")
    chosen = parser.parse_args()
    if chosen.seed < 0:
        parser.error(f"--seed {chosen.seed}: must be 0 or more")
    own.use(chosen.data)
    if chosen.trl:
        export_data(chosen.source, chosen.target)
    elif chosen.back:
        take_back(chosen.source, chosen.target, chosen.seed)
    else:
        export(chosen.source, chosen.target)


if __name__ == "__main__":
    flags.guarded(main)
