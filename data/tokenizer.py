"""The tokenizer: byte-level BPE trained on the town's corpus, wrapped in `tiktoken.Encoding`.

A text is a sequence of bytes (256 tokens). Frequent neighbours are merged into new tokens until
about a thousand tokens are known (GPT-2: 50,257). Any well-formed Unicode text survives encoding
and decoding, because what was never merged stays bytes. Nothing is ever downloaded.

The rank file data/toytown.tiktoken is in tiktoken's own format: one token per line, written as
`base64(bytes) rank`.
"""
import base64
import collections
import functools
from pathlib import Path

import regex        # installed with tiktoken; understands the same patterns
import tiktoken

from data import corpus

PATH = Path(__file__).parent / "toytown.tiktoken"     # --data changes it, see data/own.py
N_RANKS = 1022                                  # 1,024 with the two special tokens
N_WORDS = 5_000                                 # the most frequent, to learn the merges from
LONGEST_WORD = 100                              # bytes of a word to learn from
# GPT-2's pattern without contractions and with single digits. A word keeps the space before it.
PATTERN = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
END = "<|endoftext|>"
PAD = "<|pad|>"

# ---------------------------------------------------------------- prompts and responses as ids

# The template. This is the only place where a prompt and a response meet:
#     <|endoftext|> prompt \n response <|endoftext|>
# A prompt is one line, so the first line break ends it. Prompt and response are encoded separately,
# so that no token spans both.


def prompt_ids(encoding, prompt):
    """Return the token ids of a prompt up to its response. Runs of white space become one space."""
    one_line = " ".join(prompt.split())
    line_break = encoding.encode_ordinary("\n")
    return [encoding.eot_token] + encode(encoding, one_line) + line_break


def response_ids(encoding, text, ended=True):
    """Return the token ids of a response, with the end-of-text token if its writer ended it."""
    return encode(encoding, text) + [encoding.eot_token] * ended


def response_text(encoding, ids):
    """Return (text, ended) of sampled ids.

    The text is never encoded again, because we always score the ids that were sampled.
    """
    ended = bool(ids) and ids[-1] == encoding.eot_token
    text = encoding.decode(ids[:-1] if ended else ids)
    return text.removeprefix(" ").replace("\n ", "\n"), ended


def encode(encoding, text):
    """Return a text as ids, with a space before every line.

    With the space, a word is the same token at the start of a line as inside it. GPT-2 keeps two
    tokens for the two positions, which a vocabulary of a thousand cannot afford. Special tokens in
    the text are encoded as plain characters, so that a user cannot inject one.
    """
    return encoding.encode_ordinary(spaced(text))


def spaced(text):
    """Return the text with a space before every line."""
    return " " + text.replace("\n", "\n ")


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


# ---------------------------------------------------------------- the evaluation's prompts

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


# ---------------------------------------------------------------- loading


@functools.cache
def load_cached():
    """Return the project's own tokenizer; the file is read once per process."""
    return load()


def load(path=None):
    """Return the tokenizer in a rank file, PATH if none is named. Encode a user's text with
    `encode_ordinary`.

    The file is parsed here, because tiktoken's loader caches by path and would miss a new file.
    A damaged file raises a ValueError that names the file and, where it can, the line.
    """
    ranks = {}
    path = Path(path or PATH)
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number}: not a line of a rank file ({error})") from None
    has_all_ranks = sorted(ranks.values()) == list(range(len(ranks)))
    has_all_bytes = all(bytes([byte]) in ranks for byte in range(256))
    if not has_all_ranks or not has_all_bytes:
        raise ValueError(f"{path}: the ranks are not 0, 1, 2, ... or a byte has none "
                         "(is the file complete?)")
    special_tokens = {END: len(ranks), PAD: len(ranks) + 1}
    return tiktoken.Encoding("toytown", pat_str=PATTERN, mergeable_ranks=ranks,
                             special_tokens=special_tokens)


# ---------------------------------------------------------------- training


def train(text, n_ranks=N_RANKS):
    """Learn the merges from a text (Sennrich et al. 2016). Returns {token bytes: rank}.

    The most frequent pair of neighbouring tokens is merged first.
    """
    words = {}                                  # word as a tuple of tokens -> how often it occurs
    counts = collections.Counter(regex.findall(PATTERN, text))
    for word, n in counts.most_common(N_WORDS):
        beginning = word.encode()[:LONGEST_WORD]
        words[tuple(bytes([byte]) for byte in beginning)] = n
    ranks = {bytes([byte]): byte for byte in range(256)}
    while len(ranks) < n_ranks:
        pairs = collections.Counter()
        for word, n in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += n
        if not pairs:
            break                               # every word is a single token
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        ranks[best[0] + best[1]] = len(ranks)
        words = {merge(word, best): n for word, n in words.items()}
    return ranks


def merge(word, pair):
    """Merge every occurrence of the pair in the word, a tuple of tokens.

    E.g. (b"a", b"b", b"c"), (b"a", b"b") -> (b"ab", b"c").
    """
    if pair[0] not in word:                     # most words, so this is worth a line
        return word
    merged = []
    i = 0
    while i < len(word):
        if word[i:i + 2] == pair:
            merged.append(pair[0] + pair[1])
            i += 2
        else:
            merged.append(word[i])
            i += 1
    return tuple(merged)


def dump(ranks):
    """Return the text of a rank file."""
    lines = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        lines.append(f"{base64.b64encode(token).decode()} {rank}\n")
    return "".join(lines)
