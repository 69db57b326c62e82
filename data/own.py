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
# The least that a folder must hold: (file, keys of a line, number of lines). Demonstrations are for
# two batches of SFT and its validation, rankings for three batches and a tenth to measure on.
LEAST = [
    ("demonstrations.jsonl", {"prompt": str, "completion": str}, 72),
    ("prompts_rl.jsonl", {"prompt": str}, 32),
    ("prompts_valid.jsonl", {"prompt": str}, 16),
    ("prompts_eval.jsonl", {"prompt": str}, 16),
]
LEAST_DOCUMENTS = 200       # the last 2 % validate
LEAST_RANKINGS = 30


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
    corpus = files.read_bytes(files.FOLDER / "corpus.txt")
    check_folder(corpus)
    found = hashlib.sha256(corpus).hexdigest() + "\n"
    known = files.FOLDER / "corpus.sha256"
    trained_on = known.read_text(encoding="utf-8") if known.exists() else ""
    if trained_on != found or not tokenizer.PATH.exists():
        print(f"{folder}: training a tokenizer on corpus.txt")
        text = "\n".join(documents(corpus.decode("utf-8")))
        files.write(tokenizer.PATH, tokenizer.dump(tokenizer.train(tokenizer.spaced(text))))
        files.write(known, found)


def check_folder(corpus):
    """Raise UserError that lists everything a folder lacks. corpus: the bytes of corpus.txt."""
    try:
        n_documents = len(documents(corpus.decode("utf-8")))
    except UnicodeDecodeError as error:
        line = corpus[:error.start].count(b"\n") + 1
        raise UserError(f"{files.FOLDER / 'corpus.txt'}, line {line}: not UTF-8") from None
    lacking = []
    if n_documents < LEAST_DOCUMENTS:
        lacking.append(f"corpus.txt has {n_documents} documents (at least {LEAST_DOCUMENTS}, with "
                       "a blank line between two)")
    for name, types, least in LEAST:
        path = files.FOLDER / name
        n_rows = len(files.read_jsonl(path, **types)) if path.exists() else 0
        if n_rows < least:
            lacking.append(f"{name} has {n_rows} lines (at least {least})")
    if lacking:
        raise UserError(f"--data {files.FOLDER}: too small: {'; '.join(lacking)}")


def documents(text):
    """Return the documents of a text: what stands between blank lines."""
    parts = re.split(r"\n\s*\n", text)
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

    documents: lists of ids.
    """
    if not files.OWN:
        return []
    texts = [encoding.decode(document[1:6]).strip() for document in documents[:2]]
    return [text.split("\n")[0] for text in texts]


# ---------------------------------------------------------------- rankings by people


def rankings_files(config):
    """Return the files with people's rankings: those of --rankings, or that of the folder."""
    if config.rankings:
        return [Path(name.strip()) for name in config.rankings.split(",") if name.strip()]
    return [files.FOLDER / "rankings.jsonl"]


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
        texts = [files.read_bytes(path, "python -m data.label") for path in rankings_files(config)]
        found["rankings"] = f"of hash {hashlib.sha256(b''.join(texts)).hexdigest()[:12]}"
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
    if len(rankings) < LEAST_RANKINGS:
        names = ", ".join(map(str, rankings_files(config)))
        raise UserError(f"{names}: {len(rankings)} rankings, at least {LEAST_RANKINGS} are needed")
    return list(rankings.values())


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


def as_ranking(row, place, name):
    """Return a ranking, from either form of a line. name: of a labeler who is not named."""
    if "chosen" in row or "rejected" in row:
        row = row | {"responses": [row.get("chosen"), row.get("rejected")], "ranks": [1, 2]}
    for key in ("responses", "ranks"):
        if not isinstance(row.get(key), list):
            raise UserError(f'{place}: "{key}" is missing or not a list')
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
    if len(responses) < 2:
        raise UserError(f"{place}: a ranking needs at least two responses")
    return ranking


def split(rankings, rng):
    """Return (rankings to train on, a tenth of the prompts to measure on).

    A prompt that was ranked twice is on one side only.
    """
    if not rankings:
        return [], []
    prompts = list(dict.fromkeys(ranking["prompt"] for ranking in rankings))
    measured = set(rng.sample(prompts, max(1, len(prompts) // 10)))
    train = [ranking for ranking in rankings if ranking["prompt"] not in measured]
    return train, [ranking for ranking in rankings if ranking["prompt"] in measured]


def report(rankings, measured, scores):
    """Return (the reward model's report, margins), as `reward.evaluate_reward_model` does.

    measured: rankings that were not trained on. scores: of their responses.
    """
    margins = labeler.margins_of(measured, scores)
    share, n_pairs = agreement(rankings)
    people = {ranking["labeler"] for ranking in rankings}
    print(f"    {len(rankings)} rankings by {len(people)} people; {len(margins)} pairs of "
          f"{len(measured)} rankings are kept to measure on")
    found = {"accuracy_people": labeler.accuracy(margins)}
    if n_pairs:
        found["labeler_agreement"] = share
        print(f"    two people agree on {share:.0%} of {n_pairs} pairs (the paper's: 72.6 %)")
    return found, {"people": margins}


def agreement(rankings):
    """Return (how often two people prefer the same of two responses, number of such pairs).

    If one of them ties, the pair counts one half, as in labeler.agreement. The share is None if no
    two people have ranked the same responses to a prompt.
    """
    votes = collections.defaultdict(dict)           # (prompt, two texts) -> {person: vote}
    for ranking in rankings:
        texts = [response["text"] for response in ranking["responses"]]
        for i, j in itertools.permutations(range(len(texts)), 2):
            if texts[i] < texts[j]:
                difference = ranking["ranks"][j] - ranking["ranks"][i]
                vote = (difference > 0) - (difference < 0)
                votes[ranking["prompt"], texts[i], texts[j]][ranking["labeler"]] = vote
    agree = []
    for by_person in votes.values():
        for vote, other in itertools.combinations(by_person.values(), 2):
            agree.append(0.5 if 0 in (vote, other) else float(vote == other))
    return (sum(agree) / len(agree) if agree else None), len(agree)


def add_scores(entries, prompts, responses, score, reward_model):
    """Add the reward model's mean score, with its 95 % interval, to each model's results.

    Nobody knows the truth of the user's texts, so the score has to do. score: `reward.score`.
    """
    encoding = tokenizer.load_cached()
    for name, theirs in responses.items():
        pairs = [(row["prompt"], response) for row, response in zip(prompts, theirs)]
        entries[name]["score"] = judge.mean_interval(score(reward_model, encoding, pairs))


# ---------------------------------------------------------------- material for people to rank


def write_unranked(config, sample):
    """Write out/unranked.jsonl, the material of data/label.py. sample: `reward.sample`.

    The prompts are the last of prompts_rm.jsonl, or of prompts_rl.jsonl in a folder without one.
    """
    import torch                            # here, because data/label.py needs no torch

    rng = random.Random(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    name = "rm" if (files.FOLDER / "prompts_rm.jsonl").exists() else "rl"
    prompts = files.read_prompts(name)[-config.unranked:]
    lines = []
    for row, responses in zip(*sample(config, prompts, rng, generator)):
        lines.append(row | {"responses": responses})
    path = Path(config.out) / "unranked.jsonl"
    files.write_jsonl(path, lines)
    print(f"made {path} with {len(lines)} prompts. Next: python -m data.label --material {path}")
