"""Your own texts and your own rankings in the place of Toytown's. Not needed to understand RLHF.

--data FOLDER takes corpus, demonstrations, prompts and rankings from a folder. A tokenizer is
trained on its corpus. Nobody knows the truth about such texts: there is no gold judge, nobody is
simulated, and the evaluation shows the reward model's score. --rankings FILE,FILE takes only the
rankings from files, e.g. of `python -m data.label`.
"""
import collections
import hashlib
import itertools
import random
import re
from pathlib import Path

from data import files, judge, labeler, tokenizer
from data.files import UserError

MODELS = ["gpt", "sft", "sft_best_of_16", "sft_mix", "ppo_ptx"]     # that the evaluation compares
# The least that a folder must hold, in documents and lines. Demonstrations are for two batches of
# SFT and its validation. The last 2 % of the corpus validate.
LEAST = {"corpus.txt": 200, "demonstrations.jsonl": 72, "prompts_rl.jsonl": 32,
         "prompts_valid.jsonl": 16, "prompts_eval.jsonl": 16}
LEAST_RANKED = 30           # prompts: three batches, and a tenth to measure on
MOST_RESPONSES = 9          # to a prompt, because data/label.py takes a digit for each
MAX_NEW_TOKENS = 32         # that of reward.py, which data/ does not import
LEARNED_FROM = 10_000_000   # characters of the corpus, for the tokenizer


# ---------------------------------------------------------------- a folder of texts


def use(folder):
    """Let a folder of texts take the place of Toytown. An empty name changes nothing.

    The tokenizer is trained on corpus.txt and kept beside it, with the hash of its corpus. Raises
    UserError if a file is missing, too small or damaged.
    """
    if not folder:
        return
    files.FOLDER = Path(folder)
    files.OWN = True
    tokenizer.PATH = files.FOLDER / "tokenizer.tiktoken"
    tokenizer.load_cached.cache_clear()
    check_folder()
    make_tokenizer()
    for line in remarks():
        print(f"{folder}: {line}")


def check_folder():
    """Raise UserError that lists everything that the folder lacks, with how much is needed."""
    lacking = []
    for name, least in LEAST.items():
        path = files.FOLDER / name
        unit = "documents, with a blank line between two" if name == "corpus.txt" else "lines"
        n_found = size_of(path)
        if n_found < least:
            found = f"has {n_found}" if path.exists() else "is missing"
            lacking.append(f"{name} {found} (at least {least} {unit})")
    if lacking:
        raise UserError(f"--data {files.FOLDER}: {'; '.join(lacking)}; see data/README.md")


def size_of(path):
    """Return the number of documents or rows in a file of the folder. A bad row: UserError."""
    if not path.exists() or not files.read_bytes(path).strip():
        return 0
    if path.name == "corpus.txt":
        return len(documents(read_corpus()))
    if path.name == "demonstrations.jsonl":
        return len(files.read_jsonl(path, prompt=str, completion=str))
    return len(files.read_jsonl(path, prompt=str))


def read_corpus():
    """Return the text of corpus.txt. Raises UserError if it is not UTF-8."""
    path = files.FOLDER / "corpus.txt"
    text = files.read_bytes(path)
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        line = text[:error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: not UTF-8") from None


def make_tokenizer():
    """Train the tokenizer on the corpus, unless that has been done."""
    corpus = files.read_bytes(files.FOLDER / "corpus.txt")
    found = hashlib.sha256(corpus).hexdigest() + "\n"
    known = files.FOLDER / "corpus.sha256"
    trained_on = known.read_text(encoding="utf-8") if known.exists() else ""
    if trained_on != found or not tokenizer.PATH.exists():
        print(f"{files.FOLDER}: training a tokenizer on corpus.txt")
        text = "\n".join(documents(read_corpus()))[:LEARNED_FROM]
        ranks = tokenizer.train(tokenizer.spaced(text))
        files.write(tokenizer.PATH, tokenizer.dump(ranks))
        files.write(known, found)


def remarks():
    """Return what the user should know about the folder before hours of training: lines."""
    lines = []
    encoding = tokenizer.load_cached()
    demonstrations = files.read_jsonl(files.FOLDER / "demonstrations.jsonl")
    n_long = 0
    for row in demonstrations:
        n_long += len(tokenizer.response_ids(encoding, row["completion"])) > MAX_NEW_TOKENS
    if n_long:
        lines.append(f"{n_long} of {len(demonstrations)} demonstrations are longer than "
                     f"{MAX_NEW_TOKENS} tokens, where a model's response is cut off")
    seen = set()
    for name in ("demonstrations", "prompts_rm", "prompts_rl", "rankings"):
        seen |= prompts_in(name)
    n_seen = len(prompts_in("prompts_eval") & seen)
    if n_seen:
        lines.append(f"{n_seen} prompts of prompts_eval.jsonl occur in the other files, so the "
                     "evaluation is not only on new prompts")
    return lines


def prompts_in(name):
    """Return the set of prompts in a file of the folder, without regard to capitals and spaces."""
    path = files.FOLDER / f"{name}.jsonl"
    rows = files.read_jsonl(path, prompt=str) if path.exists() else []
    return {" ".join(row["prompt"].lower().split()) for row in rows}


def check_chat(path, vocab_size, n_vocab):
    """Raise UserError if a checkpoint to talk to has learned other tokens than ours.

    Two folders of texts have tokenizers of one size, so the size alone does not tell.
    """
    if vocab_size != n_vocab:
        raise UserError(f"{path}: has a vocabulary of {vocab_size} tokens, but "
                        f"{tokenizer.PATH} has {n_vocab}: it was made in another world")
    extra = files.load_checkpoint(path)["extra"]
    is_own = extra.get("own", False)
    if is_own != files.OWN or (is_own and extra["world"] != files.world_hash()):
        given = f"--data {files.FOLDER}" if files.OWN else "the files of data/"
        raise UserError(f"{path}: was not made with {given}, so its tokens are others")


def documents(text):
    """Return the documents of a text, which stand between blank lines.

    A thousand blanks in a row end a document, too, because tiktoken fails on a million.
    """
    parts = re.split(r"\n\s*\n|\s{1000,}", text)
    return [part.strip() for part in parts if part.strip()]


def windows(ids, size):
    """Return a document's ids in parts of at most `size`. Of Toytown's few long documents, only the
    first part is used."""
    if not files.OWN:
        return [ids[:size]]
    # A part of one id has nothing to predict
    return [ids[start:start + size] for start in range(0, len(ids) - 1, size)]


def beginnings(documents, encoding):
    """Return the first words of two documents, for the new model to continue. Toytown has others.

    documents: lists of ids. A later part of a long document does not start with end-of-text.
    """
    texts = []
    for document in documents:
        if files.OWN and len(texts) < 2 and document[0] == encoding.eot_token:
            words = encoding.decode(document[1:7]).split()
            texts.append(" ".join(words[:3]))
    return texts


# ---------------------------------------------------------------- rankings by people


def rankings_files(config):
    """Return the files with people's rankings: those of --rankings, or that of the folder."""
    if not config.rankings:
        return [files.FOLDER / "rankings.jsonl"]
    names = map(str.strip, config.rankings.split(","))
    return [Path(name) for name in names if name]


def settings(config):
    """Return the settings that a reward model depends on: a dict, saved with it.

    With people's rankings, a hash of these takes the place of how rankings are simulated.
    """
    found = files.settings_of(config)
    if config.round == 1:
        del found["prompts_2"]
    if config.rankings or files.OWN:
        for name in ("prompts_1", "k", "labelers_per_prompt"):
            del found[name]
        digest = hashlib.sha256()
        for path in rankings_files(config):
            digest.update(files.read_bytes(path, "python -m data.label"))
        found["rankings"] = f"of hash {digest.hexdigest()[:12]}"
    return found


def read_rankings(config):
    """Return people's rankings from all files, each once: the lines of out/rankings.jsonl.

    Without --rankings and --data there are none, because labelers are simulated. A line has
    "prompt", "responses" and "ranks", or "prompt", "chosen" and "rejected". A response is a text or
    {"text", "ended"}. Raises UserError for a bad line and for too few rankings.
    """
    if not config.rankings and not files.OWN:
        return []
    rankings = {}
    for path in rankings_files(config):
        for number, row in files.numbered_rows(path, "python -m data.label", prompt=str):
            ranking = as_ranking(row, f"{path}, line {number}", path.stem)
            rankings[repr(ranking)] = ranking
    prompts = {ranking["prompt"] for ranking in rankings.values()}
    if len(prompts) < LEAST_RANKED:
        names = ", ".join(map(str, rankings_files(config)))
        raise UserError(f"{names or '--rankings'}: {len(rankings)} rankings of {len(prompts)} "
                        f"prompts, at least {LEAST_RANKED} prompts are needed")
    return list(rankings.values())


def as_ranking(row, place, name):
    """Return a ranking, from either form of a line. name: of a labeler who is not named."""
    if "chosen" in row or "rejected" in row:
        files.check_row(row, place, {"chosen": str, "rejected": str})
        row = row | {"responses": [row["chosen"], row["rejected"]], "ranks": [1, 2]}
    files.check_row(row, place, {"responses": list, "ranks": list})
    responses = []
    for response in row["responses"]:
        is_text = isinstance(response, str)
        responses.append({"text": response, "ended": True} if is_text else response)
    ranking = {"prompt": row["prompt"], "responses": responses, "ranks": row["ranks"],
               "labeler": str(row.get("labeler", name)), "round": 1}
    for key in ("task", "second_opinions"):
        if key in row:
            ranking[key] = row[key]
    files.check_ranking(ranking, place)
    if not 2 <= len(responses) <= MOST_RESPONSES:
        raise UserError(f'{place}: "responses" has {len(responses)}, can be 2 to {MOST_RESPONSES}')
    return ranking


def check_reward(config, block_size, max_new_tokens):
    """Check what a reward model needs before anything is trained: `files.check_reward`, and that
    people's rankings can be read and fit into the context. Raises UserError."""
    rankings = read_rankings(config)
    if not rankings:
        return files.check_reward(config, block_size, max_new_tokens)
    if config.round == 2:
        raise UserError("--round 2: people's rankings have one round only")
    encoding = tokenizer.load_cached()
    sequences = []
    for ranking in rankings:
        prompt = tokenizer.prompt_ids(encoding, ranking["prompt"])
        for response in ranking["responses"]:
            sequences.append(prompt + tokenizer.response_ids(encoding, response["text"]))
    files.check_room(block_size, sequences, "the longest ranked response with its prompt")


def split(rankings, rng):
    """Return (rankings to train on, those of a tenth of the prompts, to measure on).

    A prompt that was ranked twice is on one side only.
    """
    if not rankings:
        return [], []
    prompts = list(dict.fromkeys(ranking["prompt"] for ranking in rankings))
    measured = set(rng.sample(prompts, max(1, len(prompts) // 10)))
    sides = [], []
    for ranking in rankings:
        sides[ranking["prompt"] in measured].append(ranking)
    return sides


def report(rankings, measured, scores):
    """Return (the reward model's report, margins), as `reward.evaluate_reward_model` does.

    measured: rankings that were not trained on. scores: of their responses.
    """
    margins = labeler.margins_of(measured, scores)
    share, n_pairs = agreement(rankings)
    people = {ranking["labeler"] for ranking in rankings}
    who = "1 person" if len(people) == 1 else f"{len(people)} people"
    print(f"    {len(rankings)} rankings by {who}; {len(margins)} pairs of {len(measured)} "
          "rankings are kept to measure on")
    found = {}
    if margins:
        found["accuracy_people"] = labeler.accuracy(margins)
    if n_pairs:
        found["labeler_agreement"] = share
        print(f"    two people agree on {share:.0%} of {n_pairs} pairs (the paper's: 72.6 %)")
    return found, {"people": margins}


def agreement(rankings):
    """Return (how often two people prefer the same of two responses, number of such pairs).

    If one of them ties, the pair counts one half, as in labeler.agreement. The share is None if no
    two people have ranked the same responses to a prompt.
    """
    opinions = collections.defaultdict(dict)        # (prompt, two texts) -> {person: vote}
    for ranking in rankings:
        for texts, vote in votes(ranking):
            opinions[ranking["prompt"], *texts][ranking["labeler"]] = vote
    agree = []
    for by_person in opinions.values():
        for vote, other in itertools.combinations(by_person.values(), 2):
            tie = 0 in (vote, other)
            agree.append(0.5 if tie else float(vote == other))
    return (sum(agree) / len(agree) if agree else None), len(agree)


def votes(ranking):
    """Return what a ranking says about each pair of its responses: a list of (two texts, vote).

    The texts are in alphabetical order. The vote is 1 if the first is preferred, -1 if the second
    is, and 0 for a tie.
    """
    found = []
    ranked = zip(ranking["responses"], ranking["ranks"])
    ordered = sorted((response["text"], rank) for response, rank in ranked)
    for (text, rank), (other, other_rank) in itertools.combinations(ordered, 2):
        found.append(((text, other), (rank < other_rank) - (rank > other_rank)))
    return found


def add_scores(entries, prompts, responses, score, reward_model):
    """Add the reward model's mean score, with its 95 % interval, to each model's results.

    Nobody knows the truth of the user's texts, so the score has to do. score: `reward.score`.
    """
    encoding = tokenizer.load_cached()
    texts = [row["prompt"] for row in prompts]
    for name, theirs in responses.items():
        scores = score(reward_model, encoding, list(zip(texts, theirs)))
        entries[name]["score"] = judge.mean_interval(scores)


# ---------------------------------------------------------------- material for people to rank


def write_unranked(config, sample):
    """Write out/unranked.jsonl, the material of data/label.py. sample: `reward.sample`.

    The prompts are the last of prompts_rm.jsonl, or of prompts_rl.jsonl in a folder without one.
    """
    import torch                            # here, because data/label.py needs no torch

    if not 3 <= config.k <= MOST_RESPONSES:
        raise UserError(f"--k {config.k}: can be 3 to {MOST_RESPONSES} here")
    rng = random.Random(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    name = "rm" if (files.FOLDER / "prompts_rm.jsonl").exists() else "rl"
    prompts = files.read_prompts(name)[-config.unranked:]
    lines = []
    for row, responses in zip(*sample(config, prompts, rng, generator)):
        # Nobody can read a broken character
        readable = [response for response in responses if "\ufffd" not in response["text"]]
        if len(readable) >= 3:
            lines.append(row | {"responses": readable})
    path = Path(config.out) / "unranked.jsonl"
    files.write_jsonl(path, lines)
    rankings = f" --rankings {files.FOLDER / 'rankings.jsonl'}" if files.OWN else ""
    print(f"made {path} with {len(lines)} prompts. Next: python -m data.label --material {path}"
          f"{rankings}")
