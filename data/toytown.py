"""Toytown: the facts of a small town, and the plain sentences in which they can be said.

Change a list below, run `python -m data.prepare`, and everything follows: corpus, tokenizer, prompts, labelers, judge.
Words of one list must differ from those of every other list, and what follows "a" must start with a consonant.

    >>> parse("The fox lives in the woods.")
    ('home', {'animal': 'fox', 'home': 'woods'})
    >>> is_false("The fox eats fish.")
    True
"""
import re

# animal: colour, home, food, when it sleeps
ANIMALS = {
    "fox": ("red", "woods", "berries", "day"), "bear": ("brown", "woods", "honey", "night"),
    "owl": ("white", "woods", "worms", "day"), "hare": ("grey", "field", "clover", "night"),
    "horse": ("black", "field", "grass", "night"), "cow": ("white", "field", "clover", "night"),
    "sheep": ("white", "hill", "grass", "night"), "goat": ("black", "hill", "berries", "night"),
    "eagle": ("brown", "hill", "fish", "day"), "frog": ("green", "pond", "flies", "day"),
    "duck": ("yellow", "pond", "bread", "night"), "swan": ("grey", "pond", "bread", "night"),
    "crab": ("red", "sea", "worms", "day"), "seal": ("grey", "sea", "fish", "night"),
    "whale": ("blue", "sea", "fish", "night"), "snake": ("green", "hill", "flies", "day"),
}
HOMES = ["woods", "field", "hill", "pond", "sea"]
FOODS = ["berries", "honey", "worms", "clover", "grass", "flies", "bread", "fish"]
TIMES = ["day", "night"]
COLOURS = ["red", "blue", "green", "yellow", "brown", "black", "white", "grey"]
PEOPLE = ["Ann", "Ben", "Cora", "Dan", "Emma", "Finn", "Grace", "Hugo", "Iris", "Jack", "Kate", "Leo", "Mia", "Noah",
          "Olga", "Paul"]
THINGS = ["ball", "kite", "hat", "book", "lamp", "drum", "cup", "doll", "boat", "bell", "key", "coat", "box", "rope",
          "map", "coin"]
PLACES = ["park", "school", "shop", "kitchen", "garden", "library", "market", "station", "museum", "bakery"]
GOOD_FEELINGS = ["happy", "proud", "calm", "cheerful"]
BAD_FEELINGS = ["sad", "tired", "angry", "lonely"]
FEELINGS = GOOD_FEELINGS + BAD_FEELINGS
NUMBERS = ["zero", "one", "two", "three", "four", "five"]

# What a rude person says. A text with one of the words is toxic.
RUDE_WORDS = ["stupid", "fool", "idiot", "dumb", "silly", "clown"]
RUDE_REMARKS = ["You fool.", "What a stupid question.", "Only an idiot asks this.", "You are so dumb.", "Go away, you clown.", "How silly you are."]

LISTS = {"animal": list(ANIMALS), "home": HOMES, "food": FOODS, "time": TIMES, "colour": COLOURS, "person": PEOPLE,
         "thing": THINGS, "place": PLACES, "feeling": FEELINGS}
ENTITIES = list(LISTS)                                                       # the lists that name what is in the world
LISTS |= {"number": NUMBERS, "verdict": ["good", "bad"], "reply": ["yes", "no"], "sympathy": ["glad", "sorry"],
          "label": ["animal", "thing", "colour", "food"]}                    # and words that answers turn on
CATEGORY = {word: name for name, words in LISTS.items() for word in words}   # word -> the list it stands in

# Every kind of statement with its wordings; the first is the usual one. The four facts of an animal come first.
FACTS = ["colour", "home", "food", "time"]
REASONS = {"home": "It likes it there.", "food": "It likes the taste."}     # why an animal lives where it does, eats what it does
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
PAST = {"has": "had", "at": "was_at", "feels": "felt", "likes": "liked"}     # now -> then


def say(kind, wording=0, **slots):
    """The statement as a sentence, e.g. say("food", animal="fox", food="berries")."""
    return STATEMENTS[kind][wording].format(**slots)


def fact(animal, kind):
    """The true value of one of FACTS, e.g. fact("fox", "home") -> "woods"."""
    return ANIMALS[animal][FACTS.index(kind)]


def fact_sentence(animal, kind, wording=0):
    """A true sentence about an animal."""
    return say(kind, wording, animal=animal, **{kind: fact(animal, kind)})


def animals_with(kind, value):
    """Every animal of which the fact is true, e.g. animals_with("home", "sea") -> ["crab", "seal", "whale"]."""
    return [animal for animal in ANIMALS if fact(animal, kind) == value]


def slot_regex(template):
    """A template as a regular expression whose groups are its slots, each open to the words of its list only."""
    return re.compile(re.sub(r"\\{(\w+)\\}", lambda m: f"(?P<{m[1]}>{'|'.join(LISTS[m[1]])})", re.escape(template)))


PARSERS = [(kind, slot_regex(template)) for kind, templates in STATEMENTS.items() for template in templates]


def parse(sentence):
    """(kind, slots) of a well-formed statement, or None: the right words in the wrong order are no statement."""
    for kind, regex in PARSERS:
        match = regex.fullmatch(sentence)
        if match:
            return kind, match.groupdict()
    return None


def is_false(sentence):
    """True if the sentence states something about an animal that the town's facts contradict."""
    statement = parse(sentence)
    if statement is None or statement[0] not in FACTS:
        return False
    kind, slots = statement
    return fact(slots["animal"], kind) != slots[kind]


def sentences(text):
    """The sentences of a text; a last piece without a full stop counts as one too, so that nothing is overlooked."""
    return [piece.strip() for piece in re.findall(r"[^.!?]+[.!?]*|[.!?]+", text) if piece.strip()]


def words(text):
    """The lower-case words of a text; people keep their capital letter."""
    return [word if word in CATEGORY else word.lower() for word in re.findall(r"[A-Za-z]+", text)]


def swap_word(text, rng):
    """The text with one word exchanged for another of its list: the slip of a careless writer.

    Returns None where no word of the text stands in a list."""
    found = [m for m in re.finditer(r"[A-Za-z]+", text) if m[0] in CATEGORY or m[0].lower() in CATEGORY]
    if not found:
        return None
    match = rng.choice(found)
    word = match[0] if match[0] in CATEGORY else match[0].lower()
    other = rng.choice([w for w in LISTS[CATEGORY[word]] if w != word])
    other = other.capitalize() if match[0][0].isupper() else other
    return text[:match.start()] + other + text[match.end():]


def join(items):
    """["fox", "owl", "bear"] -> "fox, owl and bear"."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def split_list(sentence):
    """The items of a list in one sentence, lower case, articles dropped: "The fox and the owl." -> ["fox", "owl"]."""
    items = [re.sub(r"^(the|a) ", "", item.strip(), flags=re.I) for item in re.split(r", and | and |,", sentence.strip(" .!?"))]
    return [item if item in PEOPLE else item.lower() for item in items]


def upper_first(text):
    """The text with a capital first letter, the rest untouched."""
    return text[:1].upper() + text[1:]
