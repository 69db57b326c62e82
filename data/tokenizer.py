"""Byte-level BPE, trained on the town's corpus and wrapped in `tiktoken.Encoding`; no download, ever.

Text is bytes (256 tokens), frequent neighbours are merged into new tokens until about a thousand are known (GPT-2: 50,257).
Any well-formed Unicode text round-trips: what was never merged stays bytes.

    rank file (data/toytown.tiktoken): a line a token, `base64(bytes) rank`, the format that tiktoken itself reads.
"""
import base64
import collections
import functools
from pathlib import Path

import regex        # what tiktoken itself splits with; installed with it
import tiktoken

from data import corpus

PATH = Path(__file__).parent / "toytown.tiktoken"
N_RANKS = 1022                                  # with the two special tokens: 1,024
# GPT-2's pattern without contractions and with single digits: a word keeps the space in front of it.
PATTERN = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
END, PAD = "<|endoftext|>", "<|pad|>"


def train(text, n_ranks=N_RANKS):
    """Learns the merges from a text. Returns {token bytes: rank}; the most frequent pair is merged first (Sennrich et al. 2016)."""
    counts = collections.Counter(regex.findall(PATTERN, text))
    words = {tuple(bytes([b]) for b in word.encode()): n for word, n in counts.items()}
    ranks = {bytes([b]): b for b in range(256)}
    while len(ranks) < n_ranks:
        pairs = collections.Counter()
        for word, n in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += n
        if not pairs:
            break                               # every word is one token already
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        ranks[best[0] + best[1]] = len(ranks)
        words = {merge(word, best): n for word, n in words.items()}
    return ranks


def merge(word, pair):
    """The word (a tuple of tokens) with every occurrence of the pair merged: (b"a", b"b", b"c"), (b"a", b"b") -> (b"ab", b"c")."""
    merged, i = [], 0
    while i < len(word):
        if word[i:i + 2] == pair:
            merged.append(pair[0] + pair[1])
            i += 2
        else:
            merged.append(word[i])
            i += 1
    return tuple(merged)


def dump(ranks):
    """The text of a rank file."""
    return "".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in sorted(ranks.items(), key=lambda x: x[1]))


def load(path=PATH):
    """The tokenizer. Encode users' text with `encode_ordinary`: then "<|endoftext|>" typed by a user is plain characters.

    The file is parsed here because tiktoken's own loader caches by path and would not notice a new tokenizer.
    Raises ValueError that names file and line if the file is damaged."""
    ranks = {}
    for number, line in enumerate(Path(path).read_bytes().splitlines(), 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: not a line of a rank file ({error})") from None
    if sorted(ranks.values()) != list(range(len(ranks))) or any(bytes([b]) not in ranks for b in range(256)):
        raise ValueError(f"{path}: the ranks are not 0, 1, 2, ... or a byte has none (is the file complete?)")
    return tiktoken.Encoding("toytown", pat_str=PATTERN, mergeable_ranks=ranks,
                             special_tokens={END: len(ranks), PAD: len(ranks) + 1})


def encode(encoding, text):
    """A text as ids, a space before every line: so a word is one token at the start of a line as in its middle. (GPT-2 keeps
    two tokens for the two places; a vocabulary of a thousand cannot afford that.) Special tokens in it are plain characters."""
    return encoding.encode_ordinary(spaced(text))


def spaced(text):
    """The text with a space before every line."""
    return " " + text.replace("\n", "\n ")


# The template, the only place where a prompt and a response meet:
#     <|endoftext|> prompt \n response <|endoftext|>
# A prompt is one line, so the first line break ends it. Prompt and response are encoded apart: a token never spans both.

def prompt_ids(encoding, prompt):
    """The token ids of a prompt, ready to be answered; runs of white space become one space."""
    return [encoding.eot_token] + encode(encoding, " ".join(prompt.split())) + encoding.encode_ordinary("\n")


def response_ids(encoding, text, ended=True):
    """The token ids of a response; the end-of-text token belongs to it."""
    return encode(encoding, text) + [encoding.eot_token] * ended


def response_text(encoding, ids):
    """(text, ended) of sampled ids. Ids are never encoded again: what was sampled is what is scored."""
    ended = bool(ids) and ids[-1] == encoding.eot_token
    return encoding.decode(ids[:-1] if ended else ids).removeprefix(" ").replace("\n ", "\n"), ended


# The forum thread that prompts the base model. With three examples, the longest evaluation prompt
# does not fit into the context.
FEW_SHOT = [("Name two colours.", "I think of red and blue."),
            ("I am Ann. I lost my hat.", "I am sorry that you lost your hat, Ann.")]


def few_shot_ids(encoding, prompt):
    """The prompt as the next question of a thread with good answers, for "GPT (prompted)": ids."""
    thread = [f"{corpus.QUESTION} {question}\n{corpus.ANSWER} {reply}"
              for question, reply in FEW_SHOT]
    thread.append(f"{corpus.QUESTION} {prompt}\n{corpus.ANSWER}")
    return [encoding.eot_token] + encode(encoding, "\n".join(thread))


def first_line(response):
    """A response up to its first line break, for every model alike: the base model goes on with the
    next question of the thread."""
    first, line_break, _ = response["text"].partition("\n")
    return {"text": first.strip(), "ended": response["ended"] or bool(line_break)}


def encode_prompts(encoding, rows):
    """The ids of each row's prompt: a list of lists."""
    return [prompt_ids(encoding, row["prompt"]) for row in rows]


def decode_responses(encoding, sampled):
    """The responses that lists of sampled ids stand for: a list of {"text", "ended"}."""
    responses = []
    for ids in sampled:
        text, ended = response_text(encoding, ids)
        responses.append({"text": text, "ended": ended})
    return responses


@functools.cache
def load_cached():
    """`load()` of the project's own tokenizer, read once."""
    return load()
