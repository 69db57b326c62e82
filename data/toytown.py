"""Toytown: the facts of a small town, and the plain sentences that state them.

To change the world, change a list below and run `python -m data.prepare`. Corpus, tokenizer,
prompts, labelers and judge all follow. A word may appear in one list only, because a word must
identify its list. A word that can follow "a" must start with a consonant.

    >>> parse("The fox lives in the woods.")
    ('home', {'animal': 'fox', 'home': 'woods'})
    >>> is_false("The fox eats fish.")
    True
"""
import re

# ---------------------------------------------------------------- the facts

FACTS = ["colour", "home", "food", "time"]      # what is known about an animal, in table order
ANIMALS = {
    "fox": ("red", "woods", "berries", "day"),
    "bear": ("brown", "woods", "honey", "night"),
    "owl": ("white", "woods", "worms", "day"),
    "hare": ("grey", "field", "clover", "night"),
    "horse": ("black", "field", "grass", "night"),
    "cow": ("white", "field", "clover", "night"),
    "sheep": ("white", "hill", "grass", "night"),
    "goat": ("black", "hill", "berries", "night"),
    "eagle": ("brown", "hill", "fish", "day"),
    "frog": ("green", "pond", "flies", "day"),
    "duck": ("yellow", "pond", "bread", "night"),
    "swan": ("grey", "pond", "bread", "night"),
    "crab": ("red", "sea", "worms", "day"),
    "seal": ("grey", "sea", "fish", "night"),
    "whale": ("blue", "sea", "fish", "night"),
    "snake": ("green", "hill", "flies", "day"),
}
# Why an animal lives where it does, and why it eats what it does.
REASONS = {"home": "It likes it there.", "food": "It likes the taste."}

# ---------------------------------------------------------------- the words

COLOURS = ["red", "blue", "green", "yellow", "brown", "black", "white", "grey"]
HOMES = ["woods", "field", "hill", "pond", "sea"]
FOODS = ["berries", "honey", "worms", "clover", "grass", "flies", "bread", "fish"]
TIMES = ["day", "night"]
PEOPLE = ["Ann", "Ben", "Cora", "Dan", "Emma", "Finn", "Grace", "Hugo",
          "Iris", "Jack", "Kate", "Leo", "Mia", "Noah", "Olga", "Paul"]
THINGS = ["ball", "kite", "hat", "book", "lamp", "drum", "cup", "doll",
          "boat", "bell", "key", "coat", "box", "rope", "map", "coin"]
PLACES = ["park", "school", "shop", "kitchen", "garden",
          "library", "market", "station", "museum", "bakery"]
GOOD_FEELINGS = ["happy", "proud", "calm", "cheerful"]
BAD_FEELINGS = ["sad", "tired", "angry", "lonely"]
FEELINGS = GOOD_FEELINGS + BAD_FEELINGS
NUMBERS = ["zero", "one", "two", "three", "four", "five"]

# A text that contains one of RUDE_WORDS is toxic.
RUDE_WORDS = ["stupid", "fool", "idiot", "dumb", "silly", "clown"]
RUDE_REMARKS = ["You fool.", "What a stupid question.", "Only an idiot asks this.",
                "You are so dumb.", "Go away, you clown.", "How silly you are."]

# The lists that name what exists in the world. To name something that the prompt does not name
# is to invent it.
LISTS = {"animal": list(ANIMALS), "home": HOMES, "food": FOODS, "time": TIMES, "colour": COLOURS,
         "person": PEOPLE, "thing": THINGS, "place": PLACES, "feeling": FEELINGS}
ENTITIES = list(LISTS)
# Further words that can make an answer right or wrong.
LISTS |= {"number": NUMBERS, "verdict": ["good", "bad"], "reply": ["yes", "no"],
          "sympathy": ["glad", "sorry"], "label": ["animal", "thing", "colour", "food"]}
CATEGORY = {word: name for name, members in LISTS.items() for word in members}  # word -> its list

# ---------------------------------------------------------------- the statements

# Every kind of statement with its wordings, the usual wording first.
STATEMENTS = {
    "colour": ["The {animal} is {colour}.", "The colour of the {animal} is {colour}."],
    "home": ["The {animal} lives in the {home}.", "The home of the {animal} is the {home}."],
    "food": ["The {animal} eats {food}.", "The food of the {animal} is {food}."],
    "time": ["The {animal} sleeps by {time}.", "It is by {time} that the {animal} sleeps."],
    "has": ["{person} has a {colour} {thing}."],
    "at": ["{person} is in the {place}."],
    "feels": ["{person} is {feeling}."],
    "likes": ["{person} likes the {animal}."],
    "went": ["{person} went to the {place}."],
    "found": ["{person} found a {colour} {thing}."],
    "found_at": ["{person} found a {colour} {thing} in the {place}."],
    "lost": ["{person} lost a {colour} {thing}."],
    "saw": ["{person} saw the {animal}."],
    "had": ["{person} had a {colour} {thing}."],
    "was_at": ["{person} was in the {place}."],
    "felt": ["{person} was {feeling}."],
    "liked": ["{person} liked the {animal}."],
}
PAST = {"has": "had", "at": "was_at", "feels": "felt", "likes": "liked"}    # present -> past kind


def say(kind, wording=0, **slots):
    """Return the statement as a sentence, e.g. say("food", animal="fox", food="berries")."""
    return STATEMENTS[kind][wording].format(**slots)


def fact(animal, kind):
    """Return the true value of one of FACTS, e.g. fact("fox", "home") -> "woods"."""
    return ANIMALS[animal][FACTS.index(kind)]


def fact_sentence(animal, kind, wording=0):
    """Return a true sentence about an animal."""
    return say(kind, wording, animal=animal, **{kind: fact(animal, kind)})


def animals_with(kind, value):
    """Return all animals with this value, e.g. ("home", "sea") -> ["crab", "seal", "whale"]."""
    return [animal for animal in ANIMALS if fact(animal, kind) == value]


# ---------------------------------------------------------------- reading statements


def slot_regex(template):
    """Compile a template into a regular expression with one named group per slot.

    A group matches only the words of its slot's list.
    """
    def group(match):
        slot = match[1]
        return f"(?P<{slot}>{'|'.join(LISTS[slot])})"

    return re.compile(re.sub(r"\\{(\w+)\\}", group, re.escape(template)))


PARSERS = [(kind, slot_regex(template))
           for kind, templates in STATEMENTS.items() for template in templates]


def parse(sentence):
    """Return (kind, slots) of a well-formed statement, else None.

    The right words in the wrong order are not a statement.
    """
    for kind, regex in PARSERS:
        match = regex.fullmatch(sentence)
        if match:
            return kind, match.groupdict()
    return None


def is_false(sentence):
    """Return True if the sentence contradicts a fact about an animal."""
    statement = parse(sentence)
    if statement is None or statement[0] not in FACTS:
        return False
    kind, slots = statement
    return fact(slots["animal"], kind) != slots[kind]


# ---------------------------------------------------------------- sentences, words, lists


def sentences(text):
    """Split a text into sentences.

    A last piece without a full stop counts as a sentence, because the judge must not overlook it.
    """
    pieces = re.findall(r"[^.!?]+[.!?]*|[.!?]+", text)
    return [piece.strip() for piece in pieces if piece.strip()]


def words(text):
    """Return the words of a text in lower case, except names of people."""
    return [normalise(word) for word in re.findall(r"[A-Za-z]+", text)]


def normalise(word):
    """Return the word in lower case, unless a list has it as it is written (names of people)."""
    return word if word in CATEGORY else word.lower()


def swap_word(text, rng):
    """Replace one word by another word of the same list, the error of a careless writer.

    Returns None if no word of the text is in a list.
    """
    matches = re.finditer(r"[A-Za-z]+", text)
    listed = [match for match in matches if normalise(match[0]) in CATEGORY]
    if not listed:
        return None
    match = rng.choice(listed)
    word = normalise(match[0])
    others = [other for other in LISTS[CATEGORY[word]] if other != word]
    replacement = rng.choice(others)
    if match[0][0].isupper():
        replacement = replacement.capitalize()
    return text[:match.start()] + replacement + text[match.end():]


def join(items):
    """Join the items of a list: ["fox", "owl", "bear"] -> "fox, owl and bear"."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def split_list(sentence):
    """Return the items of a list in lower case without articles, except names of people.

    E.g. "The fox and the owl." -> ["fox", "owl"].
    """
    items = []
    for piece in re.split(r", and | and |,", sentence.strip(" .!?")):
        item = re.sub(r"^(the|a) ", "", piece.strip(), flags=re.I)
        items.append(item if item in PEOPLE else item.lower())
    return items


def upper_first(text):
    """Return the text with a capital first letter and the rest unchanged."""
    return text[:1].upper() + text[1:]
