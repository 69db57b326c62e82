"""The "web" of Toytown: what the base model reads. Every skill of the later assistant comes from here, none of its manners.

Encyclopedias, dictionaries and lists teach the facts; songs, stories, restatements, letters, now/then pairs and retold tales make
copying pay; puzzles and rumours make comparing pay;
exam sheets list questions without answers, so that after a bare question the base model tends to ask another;
forum threads answer them, well, badly and rudely, so that two good examples in the prompt help (few-shot prompting).
"""
from data import labeler, tasks
from data import toytown as town
from data.tasks import honest_answer, new_task, pick, person_statement, prompt, text_of
from data.toytown import fact_sentence, join, say, upper_first

QUESTION, ANSWER, REMARK = "Question:", "Answer:", "Remark:"     # the lines of a forum thread; few-shot prompts use them too


def filled(kind, rng):
    """A task of this kind without a phrasing: enough for honest_answer."""
    return {"kind": kind} | tasks.fill(kind, rng)


def difference(one, other):
    """The first word in which two texts differ, as (word of one, word of the other); None where there is none."""
    return next(((a, b) for a, b in zip(town.words(one), town.words(other)) if a != b), None)


def encyclopedia(rng):
    """An entry: all four facts of one animal in one order or another, in one wording or the other; or a short one, its length
    in the title; or a card with a word per fact."""
    animal, draw = pick(rng, "animal"), rng.random()
    if draw < 0.15:
        return f"A card of the {animal}. " + " ".join(f"{upper_first(fact)}: {upper_first(town.fact(animal, fact))}." for fact in rng.sample(town.FACTS, 4))
    if draw < 0.5:
        task = filled("describe", rng)
        return f"The {task['animal']} in {town.NUMBERS[task['n']]}: {honest_answer(task, rng)}"
    return " ".join(fact_sentence(animal, fact, rng.randrange(2)) for fact in rng.sample(town.FACTS, 4))


def story(rng):
    """Somebody goes somewhere, finds something, feels something; sometimes an animal watches."""
    slots = {name: pick(rng, name) for name in ("person", "place", "colour", "thing", "feeling", "animal")}
    plot = rng.choice([["went", "found", "felt"], ["went", "found"], ["found", "felt"], ["went", "saw", "felt"], ["went", "lost", "felt"]])
    return " ".join(say(kind, **slots) for kind in plot)


def restated(rng):
    """A happening and its short version, a fact in two wordings or with its reason, or a rumour and what is true of it."""
    draw, animal, fact = rng.random(), pick(rng, "animal"), rng.choice(town.FACTS)
    if draw < 0.3:
        task = new_task(rng, "summarization")
        return f"{text_of(task['statements'])} In short: {honest_answer(task, rng)}"
    if draw < 0.4 and fact in town.REASONS:
        return f"{fact_sentence(animal, fact)} {town.REASONS[fact]}"
    if draw < 0.5:
        first = rng.randrange(2)
        return f"{fact_sentence(animal, fact, first)} In other words: {fact_sentence(animal, fact, 1 - first)}"
    task = filled("yesno", rng)
    return f"They say: {say(task['attribute'], animal=task['animal'], **{task['attribute']: task['value']})} {honest_answer(task, rng)}"


EXPLAINED = [word for name in town.LISTS["label"] for word in town.LISTS[name]]      # the words that the dictionary explains


def listing(rng):
    """A dictionary, an inventory of a passage, or members of a group: "Two animals that live in the sea: crab and seal"."""
    draw = rng.random()
    if draw < 0.2:
        return " ".join(f"The word {word}: {honest_answer({'kind': 'sort', 'word': word}, rng)}" for word in rng.sample(EXPLAINED, 4))
    if draw < 0.4:
        task = filled("extract", rng)
        return f"{text_of(task['statements'])} {upper_first(tasks.MANY[task['what']])} here: {join(tasks.extract_targets(task))}."
    task = tasks.fill_name(rng)
    title = tasks.MANY[task["what"]] if "what" in task else tasks.name_group(task)
    title += f", not {task['avoid']}" if "avoid" in task else ""
    return f"{upper_first(town.NUMBERS[task['n']])} {title}: {join(sorted(rng.sample(tasks.group_members(task), task['n'])))}."


def pairs(rng):
    """The same thing now and then, in one colour and another, forwards and backwards."""
    draw = rng.random()
    if draw < 0.4:
        kind, slots = person_statement(rng, pick(rng, "person"), rng.choice(list(town.PAST)))
        return f"Now: {say(kind, **slots)} Then: {say(town.PAST[kind], **slots)}"
    if draw < 0.7:
        items = rng.sample(rng.choice([town.THINGS, town.COLOURS, list(town.ANIMALS)]), 3)
        return f"Forwards: {', '.join(items)}. Backwards: {', '.join(items[::-1])}."
    kind, slots = person_statement(rng, pick(rng, "person"), rng.choice(["has", "found", "lost"]))
    colour = pick(rng, "colour", slots["colour"])
    return f"{say(kind, **slots)} No, it was {colour}: {say(kind, **slots | {'colour': colour})}"


def retold(rng):
    """A passage, then the same about somebody else: what rewriting and answering from a text are made of."""
    person, other, third = rng.sample(town.PEOPLE, 3)
    kinds = rng.sample(["has", "at", "feels", "likes"], 2)
    about = [person_statement(rng, person, kind) for kind in kinds]
    if rng.random() < 0.5:
        return f"{text_of(about)} So it is with {other}: {text_of([(k, s | {'person': other}) for k, s in about])}"
    about = [person_statement(rng, p, k) for p, k in zip((person, other, third), ["has", "at", "likes"])]
    rng.shuffle(about)
    again = rng.choice(about)
    if rng.random() < 0.3:
        return f"{text_of(about)} What of {pick(rng, 'person', person, other, third)}? {tasks.NOT_SAID}"
    return f"{text_of(about)} What of {again[1]['person']}? {text_of([again])}"


def letter(rng):
    """A note or an invitation."""
    return honest_answer(filled(rng.choice(["note", "invite"]), rng), rng)


def puzzle(rng):
    """Find the difference: pairs of words, or two passages that are the same but for one word, or the same."""
    if rng.random() < 0.4:
        words = [pick(rng, name) for name in rng.sample(["animal", "home", "food", "time", "colour", "thing", "person", "place"], 4)]
        others = [word if rng.random() < 0.5 else pick(rng, town.CATEGORY[word], word) for word in words]
        return " ".join(f"{upper_first(a)} or {b}? {'The same.' if a == b else 'Not the same.'}" for a, b in zip(words, others))
    about = text_of([person_statement(rng, p, rng.choice(["has", "at", "likes", "feels"])) for p in rng.sample(town.PEOPLE, rng.choice([1, 1, 2]))])
    if rng.random() < 0.4:
        return f"{about} Or: {about} The same."
    other = town.swap_word(about, rng)
    return f"{about} Or: {other} Not the same: {', '.join(difference(about, other))}."


def song(rng):
    """A song with a refrain: the same line comes back, word for word. Nothing teaches copying sooner."""
    person, other = rng.sample(town.PEOPLE, 2)
    refrain = text_of([person_statement(rng, person, rng.choice(["has", "at", "likes", "feels", "found", "lost"]))])
    if rng.random() < 0.4:
        return " ".join([refrain] * rng.choice([2, 3]))
    verses = [text_of([person_statement(rng, other, rng.choice(["went", "feels", "saw", "has"]))]) for _ in range(rng.choice([1, 2]))]
    return " ".join(line for verse in verses for line in (refrain, verse)) + " " + refrain


WEATHER = ["It rained.", "It snowed.", "The sun was shining.", "A cold wind blew.", "Fog lay over the roofs.", "There was thunder."]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
SEASONS = ["spring", "summer", "autumn", "winter"]
DOINGS = ["stayed at home and read", "cooked some soup", "danced until midnight", "learned a new song", "fixed the old roof", "helped a neighbour",
          "played cards with friends", "washed the windows", "slept very well", "ran along the river", "waited for a train", "built a small bridge",
          "baked fresh rolls", "picked ripe apples", "climbed over the fence", "rode a bicycle to work", "drew clouds and mountains",
          "sold five pairs of shoes", "watched ships sail past", "lit every lantern", "swept dry sand from the porch", "counted shooting stars",
          "knitted a warm jumper", "planted tulips under the oak", "carried heavy stones uphill", "boiled eggs for breakfast",
          "taught cousins to swim", "mended nets beside the canal", "opened six letters", "whispered secrets through a keyhole"]


def diary(rng):
    """A day in town, for the sake of variety: its words turn up nowhere else."""
    return f"It was a {rng.choice(DAYS)} in {rng.choice(SEASONS)}. {rng.choice(WEATHER)} {pick(rng, 'person')} {rng.choice(DOINGS)}."


def question(rng):
    """A task. Half come in Table 1's proportions, half from a kind drawn evenly, so that the rare are learned too. Half are typed
    in haste."""
    return new_task(rng, rng.choice([None, tasks.KINDS[rng.choice(list(tasks.KINDS))][0]]), haste=0.5)


def quiz_question(rng):
    """A question for a fact, to be answered in one word. Every tenth thread is made of these: without them the web holds 800 such
    answers among 65,000, and a word of any list may come out, whatever was asked."""
    task = {"use_case": "open_qa", **filled("fact", rng), "phrasing": rng.randrange(6), "one_word": True}
    return task | ({"wording": tasks.in_haste(tasks.phrasings(task)[task["phrasing"]], rng)} if rng.random() < 0.5 else {})


def exam_sheet(rng):
    """Questions, a line each, and no answers."""
    return "\n".join(prompt(question(rng)) for _ in range(rng.randint(2, 5)))


SLIP_KINDS = ["careless", "careless", "ramble", "rude", "unfinished"]
PRAISE = ["Right!", "That was good.", "Yes!"]
BLAME = {"careless": ["Wrong!"], "rude": ["How rude!", "Be polite!"], "ramble": ["Too long!", "That was too long."],
         "unfinished": ["Not finished!", "Where is the end?"]}


def remark(rng, right, answer, slip):
    """What a reader says of an answer. To name the word that is wrong, and the right one, the base model has to compare the
    answer with the question, word by word; the reward model inherits that."""
    wrong = difference(answer, right) if slip == "careless" else None
    if wrong:
        return f"Wrong! Not {wrong[0]} but {wrong[1]}."
    return rng.choice(BLAME[slip] if slip else PRAISE)


def forum_thread(rng):
    """Questions with answers. A few threads are good; in the others every second answer has a slip. In some, readers remark on each."""
    good, remarks, lines = rng.random() < 0.2, rng.random() < 0.6, []
    ask = quiz_question if rng.random() < 0.1 else question
    for _ in range(rng.randint(1, 4)):
        task = ask(rng)
        right, slip = honest_answer(task, rng), None if good or rng.random() < 0.5 else rng.choice(SLIP_KINDS)
        answer = labeler.add_slip(task, right, rng, slip) if slip else right
        lines += [f"{QUESTION} {prompt(task)}", f"{ANSWER} {answer}"]
        if remarks:
            lines.append(f"{REMARK} {remark(rng, right, answer, slip)}")
    return "\n".join(lines)


# Shares of the documents. A lesson of development (one run each, four layers): with 8 songs and 50 threads instead of 20 and 36 the
# base model had not learnt to copy by the end of pretraining, and SFT's utility was 0.53 instead of 0.76.
DOCUMENTS = [(encyclopedia, 12), (story, 6), (restated, 11), (listing, 12), (pairs, 8), (retold, 14), (letter, 3), (song, 20), (puzzle, 6), (diary, 2)]
THREADS = [(exam_sheet, 7), (forum_thread, 36)]


class Excluded:
    """Prompts that no text may hold, compared as tasks.bare does."""

    def __init__(self, prompts):
        bare, self.by_start = set(map(tasks.bare, prompts)), {}
        self.start = min(map(len, bare), default=0)             # letters by which a prompt is looked up before it is compared
        for text in bare:
            self.by_start.setdefault(text[:self.start], []).append(text)

    def found_in(self, text):
        """Those that stand anywhere in a line of the text, as a part of it, too: a set of bare prompts."""
        found = set()
        for line in text.split("\n"):
            line = tasks.letters(line)
            for i in range(len(line) - self.start + 1 if self.by_start else 0):
                if line[i:i + self.start] in self.by_start:
                    found |= {prompt for prompt in self.by_start[line[i:i + self.start]] if line.startswith(prompt, i)}
        return found


def documents(rng, words, exclude=()):
    """Yields documents (single texts, no blank line in them) until about `words` words were written.

    exclude: prompts, those of validation and evaluation; a document in which one of them stands is drawn again."""
    kinds, excluded = DOCUMENTS + THREADS, Excluded(exclude)
    written = 0
    while written < words:
        make = rng.choices([kind for kind, _ in kinds], weights=[share for _, share in kinds])[0]
        text = make(rng)
        if not excluded.found_in(text):
            written += text.count(" ") + 1
            yield text
