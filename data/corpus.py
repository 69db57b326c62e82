"""The "web" of Toytown: the corpus that the base model reads.

Every skill of the later assistant comes from here, but none of its manners.

- Encyclopedias, dictionaries and lists teach the facts.
- Songs, stories, restatements, letters, now/then pairs and retold passages reward copying.
- Puzzles and rumours reward comparing.
- Exam sheets list questions without answers. After a bare question the base model therefore tends
  to ask another one.
- Forum threads answer questions well, badly and rudely. Two good examples in the prompt therefore
  help the base model (few-shot prompting).
"""
from data import labeler, tasks
from data import toytown as town
from data.tasks import (
    honest_answer, new_task, pick, person_statement, person_statements, prompt, text_of,
)
from data.toytown import fact_sentence, join, say, upper_first

# The lines of a forum thread. Few-shot prompts use them too.
QUESTION, ANSWER, REMARK = "Question:", "Answer:", "Remark:"

# ---------------------------------------------------------------- texts that state facts


def filled(kind, rng):
    """Draw a task of this kind without a phrasing. honest_answer needs no phrasing."""
    return {"kind": kind} | tasks.fill(kind, rng)


def encyclopedia(rng):
    """An entry: all four facts of an animal, a short entry with its length in the title, or a card.

    A card has one word per fact.
    """
    animal = pick(rng, "animal")
    draw = rng.random()
    if draw < 0.15:
        card = [f"A card of the {animal}."]
        for name in rng.sample(town.FACTS, 4):
            card.append(f"{upper_first(name)}: {upper_first(town.fact(animal, name))}.")
        return " ".join(card)
    if draw < 0.5:
        task = filled("describe", rng)
        return f"The {task['animal']} in {town.NUMBERS[task['n']]}: {honest_answer(task, rng)}"
    facts = rng.sample(town.FACTS, 4)
    return " ".join(fact_sentence(animal, name, rng.randrange(2)) for name in facts)


def restated(rng):
    """A passage summed up, a fact in two wordings or with its reason, or a rumour corrected."""
    draw = rng.random()
    animal = pick(rng, "animal")
    name = rng.choice(town.FACTS)
    if draw < 0.3:
        task = new_task(rng, "summarization")
        return f"{text_of(task['statements'])} In short: {honest_answer(task, rng)}"
    if draw < 0.4 and name in town.REASONS:
        return f"{fact_sentence(animal, name)} {town.REASONS[name]}"
    if draw < 0.5:
        first = rng.randrange(2)
        one = fact_sentence(animal, name, first)
        other = fact_sentence(animal, name, 1 - first)
        return f"{one} In other words: {other}"
    task = filled("yesno", rng)
    rumour = say(task["attribute"], animal=task["animal"], **{task["attribute"]: task["value"]})
    return f"They say: {rumour} {honest_answer(task, rng)}"


# The words that the dictionary explains.
EXPLAINED = [word for name in town.LISTS["label"] for word in town.LISTS[name]]


def listing(rng):
    """A dictionary, an inventory of a passage, or members of a group.

    E.g. "Two animals that live in the sea: crab and seal."
    """
    draw = rng.random()
    if draw < 0.2:
        entries = []
        for word in rng.sample(EXPLAINED, 4):
            entries.append(f"The word {word}: {honest_answer({'kind': 'sort', 'word': word}, rng)}")
        return " ".join(entries)
    if draw < 0.4:
        task = filled("extract", rng)
        title = upper_first(tasks.MANY[task["what"]])
        return f"{text_of(task['statements'])} {title} here: {join(tasks.extract_targets(task))}."
    task = tasks.fill_name(rng)
    title = tasks.MANY[task["what"]] if "what" in task else tasks.name_group(task)
    if "avoid" in task:
        title += f", not {task['avoid']}"
    members = sorted(rng.sample(tasks.group_members(task), task["n"]))
    return f"{upper_first(town.NUMBERS[task['n']])} {title}: {join(members)}."


# ---------------------------------------------------------------- texts that reward copying


def story(rng):
    """Someone goes somewhere, finds or loses something, and feels something."""
    slots = {}
    for name in ("person", "place", "colour", "thing", "feeling", "animal"):
        slots[name] = pick(rng, name)
    plot = rng.choice([["went", "found", "felt"], ["went", "found"], ["found", "felt"],
                       ["went", "saw", "felt"], ["went", "lost", "felt"]])
    return " ".join(say(kind, **slots) for kind in plot)


def pairs(rng):
    """The same statement now and then or in two colours, or a list forwards and backwards."""
    draw = rng.random()
    if draw < 0.4:
        person = pick(rng, "person")
        kind, slots = person_statement(rng, person, rng.choice(list(town.PAST)))
        return f"Now: {say(kind, **slots)} Then: {say(town.PAST[kind], **slots)}"
    if draw < 0.7:
        items = rng.sample(rng.choice([town.THINGS, town.COLOURS, list(town.ANIMALS)]), 3)
        return f"Forwards: {', '.join(items)}. Backwards: {', '.join(items[::-1])}."
    person = pick(rng, "person")
    kind, slots = person_statement(rng, person, rng.choice(["has", "found", "lost"]))
    colour = pick(rng, "colour", slots["colour"])
    corrected = say(kind, **slots | {"colour": colour})
    return f"{say(kind, **slots)} No, it was {colour}: {corrected}"


def retold(rng):
    """A passage repeated about someone else, or in part: the skills of rewriting and closed QA."""
    person, other, third = rng.sample(town.PEOPLE, 3)
    kinds = rng.sample(["has", "at", "feels", "likes"], 2)
    statements = person_statements(rng, [person] * 2, kinds)
    if rng.random() < 0.5:
        retelling = [(kind, slots | {"person": other}) for kind, slots in statements]
        return f"{text_of(statements)} So it is with {other}: {text_of(retelling)}"
    statements = person_statements(rng, [person, other, third], ["has", "at", "likes"])
    rng.shuffle(statements)
    asked = rng.choice(statements)
    if rng.random() < 0.3:
        absent = pick(rng, "person", person, other, third)
        return f"{text_of(statements)} What of {absent}? {tasks.NOT_SAID}"
    return f"{text_of(statements)} What of {asked[1]['person']}? {text_of([asked])}"


def letter(rng):
    """A note or an invitation."""
    return honest_answer(filled(rng.choice(["note", "invite"]), rng), rng)


def song(rng):
    """A song whose refrain returns word for word. No other text teaches copying as early."""
    person, other = rng.sample(town.PEOPLE, 2)
    kind = rng.choice(["has", "at", "likes", "feels", "found", "lost"])
    refrain = text_of([person_statement(rng, person, kind)])
    if rng.random() < 0.4:
        return " ".join([refrain] * rng.choice([2, 3]))
    lines = [refrain]
    for _ in range(rng.choice([1, 2])):
        kind = rng.choice(["went", "feels", "saw", "has"])
        lines.append(text_of([person_statement(rng, other, kind)]))
        lines.append(refrain)
    return " ".join(lines)


# ---------------------------------------------------------------- texts that reward comparing


def puzzle(rng):
    """Find the difference: pairs of words, or two passages that differ in at most one word."""
    if rng.random() < 0.4:
        return word_puzzle(rng)
    statements = []
    for person in rng.sample(town.PEOPLE, rng.choice([1, 1, 2])):
        kind = rng.choice(["has", "at", "likes", "feels"])
        statements.append(person_statement(rng, person, kind))
    passage = text_of(statements)
    if rng.random() < 0.4:
        return f"{passage} Or: {passage} The same."
    changed = town.swap_word(passage, rng)
    return f"{passage} Or: {changed} Not the same: {', '.join(difference(passage, changed))}."


def word_puzzle(rng):
    """Four pairs of words, each "The same." or "Not the same."."""
    categories = ["animal", "home", "food", "time", "colour", "thing", "person", "place"]
    words = [pick(rng, category) for category in rng.sample(categories, 4)]
    pieces = []
    for word in words:
        same = rng.random() < 0.5
        other = word if same else pick(rng, town.CATEGORY[word], word)
        pieces.append(f"{upper_first(word)} or {other}? {'The same.' if same else 'Not the same.'}")
    return " ".join(pieces)


def difference(one, other):
    """Return the first word in which two texts differ, as (word, other word), or None."""
    for word, other_word in zip(town.words(one), town.words(other)):
        if word != other_word:
            return word, other_word
    return None


# ---------------------------------------------------------------- diaries: words of other topics

WEATHER = ["It rained.", "It snowed.", "The sun was shining.", "A cold wind blew.",
           "Fog lay over the roofs.", "There was thunder."]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
SEASONS = ["spring", "summer", "autumn", "winter"]
DOINGS = [
    "stayed at home and read", "cooked some soup", "danced until midnight", "learned a new song",
    "fixed the old roof", "helped a neighbour", "played cards with friends", "washed the windows",
    "slept very well", "ran along the river", "waited for a train", "built a small bridge",
    "baked fresh rolls", "picked ripe apples", "climbed over the fence", "rode a bicycle to work",
    "drew clouds and mountains", "sold five pairs of shoes", "watched ships sail past",
    "lit every lantern", "swept dry sand from the porch", "counted shooting stars",
    "knitted a warm jumper", "planted tulips under the oak", "carried heavy stones uphill",
    "boiled eggs for breakfast", "taught cousins to swim", "mended nets beside the canal",
    "opened six letters", "whispered secrets through a keyhole",
]


def diary(rng):
    """A day in town, for variety: its words appear in no other text."""
    day = f"It was a {rng.choice(DAYS)} in {rng.choice(SEASONS)}. {rng.choice(WEATHER)}"
    return f"{day} {pick(rng, 'person')} {rng.choice(DOINGS)}."


# ---------------------------------------------------------------- exam sheets and forum threads


def question(rng):
    """Draw a task. Half of them are typed in haste.

    Half come in the proportions of Table 1, half from a kind drawn uniformly, because the model
    must learn the rare kinds too.
    """
    use_case = tasks.KINDS[rng.choice(list(tasks.KINDS))][0]
    return new_task(rng, rng.choice([None, use_case]), haste=0.5)


def quiz_question(rng):
    """Draw a question for a fact, to be answered in one word. Every tenth thread is a quiz.

    Without quizzes one-word answers are so rare that the base model learns to answer in one word,
    but not that the word depends on the question.
    """
    task = {"use_case": "open_qa", **filled("fact", rng)}
    task["phrasing"] = rng.randrange(6)
    task["one_word"] = True
    if rng.random() < 0.5:
        task["wording"] = tasks.in_haste(tasks.phrasings(task)[task["phrasing"]], rng)
    return task


def exam_sheet(rng):
    """Questions without answers, one per line."""
    return "\n".join(prompt(question(rng)) for _ in range(rng.randint(2, 5)))


SLIP_KINDS = ["careless", "careless", "ramble", "rude", "unfinished"]
PRAISE = ["Right!", "That was good.", "Yes!"]
BLAME = {"careless": ["Wrong!"], "rude": ["How rude!", "Be polite!"],
         "ramble": ["Too long!", "That was too long."],
         "unfinished": ["Not finished!", "Where is the end?"]}


def remark(rng, right, answer, slip):
    """Return a reader's remark on an answer, given the right answer and the kind of slip or None.

    To name the wrong word and the right one, the base model has to compare the answer with the
    question word by word. The reward model, fine-tuned from these weights, inherits this skill.
    """
    wrong = difference(answer, right) if slip == "careless" else None
    if wrong:
        return f"Wrong! Not {wrong[0]} but {wrong[1]}."
    return rng.choice(BLAME[slip] if slip else PRAISE)


def forum_thread(rng):
    """Questions with answers, in some threads with remarks.

    One thread in five has good answers only. In the others every second answer has a slip.
    """
    good = rng.random() < 0.2
    with_remarks = rng.random() < 0.6
    ask = quiz_question if rng.random() < 0.1 else question
    lines = []
    for _ in range(rng.randint(1, 4)):
        task = ask(rng)
        right = honest_answer(task, rng)
        slip = None if good or rng.random() < 0.5 else rng.choice(SLIP_KINDS)
        answer = labeler.add_slip(task, right, rng, slip) if slip else right
        lines.append(f"{QUESTION} {prompt(task)}")
        lines.append(f"{ANSWER} {answer}")
        if with_remarks:
            lines.append(f"{REMARK} {remark(rng, right, answer, slip)}")
    return "\n".join(lines)


# ---------------------------------------------------------------- the whole corpus

# Kinds of documents with their shares. Songs are frequent because the base model must have learned
# to copy by the end of pretraining.
DOCUMENTS = [(encyclopedia, 12), (story, 6), (restated, 11), (listing, 12), (pairs, 8),
             (retold, 14), (letter, 3), (song, 20), (puzzle, 6), (diary, 2)]
THREADS = [(exam_sheet, 7), (forum_thread, 36)]


def documents(rng, words, exclude=()):
    """Yield documents (texts without a blank line) until they have about `words` words.

    exclude: the prompts of validation and evaluation. A document that contains one of them is
    drawn again, because the base model must not have read them.
    """
    excluded = Excluded(exclude)
    makers = [make for make, _ in DOCUMENTS + THREADS]
    shares = [share for _, share in DOCUMENTS + THREADS]
    written = 0
    while written < words:
        make = rng.choices(makers, weights=shares)[0]
        text = make(rng)
        if not excluded.found_in(text):
            written += text.count(" ") + 1
            yield text


class Excluded:
    """Prompts that no text may contain, compared in their bare form (tasks.bare)."""

    def __init__(self, prompts):
        bare = set(map(tasks.bare, prompts))
        # A dict finds the few candidates by their first letters, because comparing every position
        # of the corpus with every prompt would be far too slow.
        self.start = min(map(len, bare), default=0)             # as long as the shortest prompt
        self.by_start = {}
        for text in bare:
            self.by_start.setdefault(text[:self.start], []).append(text)

    def found_in(self, text):
        """Return the bare prompts that occur in a line of the text, as a set.

        A prompt counts even if it is only a part of the line.
        """
        found = set()
        if not self.by_start:
            return found
        for line in text.split("\n"):
            line = tasks.letters(line)
            for i in range(len(line) - self.start + 1):
                for candidate in self.by_start.get(line[i:i + self.start], ()):
                    if line.startswith(candidate, i):
                        found.add(candidate)
        return found
