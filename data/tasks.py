"""The ten use cases: what can be asked in Toytown, in which words, and which answers are right.

A task is a plain dict, e.g. {"use_case": "open_qa", "kind": "fact", "animal": "fox", ...}. Each use
case has one or more kinds of task, and each kind has slots of its own. `new_task` draws a task,
`prompt` puts it into words, `accepted` lists the right answers of the kinds that have few of them,
and `honest_answer` writes one right answer for any kind.

    >>> import random
    >>> task = dict(use_case="open_qa", kind="fact", animal="fox", attribute="food", phrasing=0)
    >>> prompt(task), honest_answer(task, random.Random(0))
    ('What does the fox eat?', 'The fox eats berries.')
"""
import re

from data import toytown as town
from data.toytown import fact, fact_sentence, join, say, upper_first
from data.wordings import FURTHER

# ---------------------------------------------------------------- the kinds of task

# Table 1 of the paper: the share of each use case among the prompts, in percent.
USE_CASES = {"generation": 45.6, "open_qa": 12.4, "brainstorming": 11.2, "chat": 8.4,
             "rewrite": 6.6, "summarization": 4.2, "classification": 3.5, "other": 3.5,
             "closed_qa": 2.6, "extract": 1.9}
# Closed domain: the answer must come from the text in the prompt.
CLOSED_DOMAIN = ["closed_qa", "summarization", "extract"]

# kind -> (use case, phrasings), or phrasings per attribute where the question depends on it.
# {count} is a number of sentences, {text} a short passage. The other slots are keys of the task.
# The last phrasing of every list is used in evaluation only.
KINDS = {
    "describe": ("generation", [
        "Write {count} about the {animal}.", "Tell me about the {animal} in {count}.",
        "Describe the {animal} in {count}.", "What do you know about the {animal}? Use {count}.",
        "I need {count} on the {animal} for school.", "Give me {count} about the {animal}.",
        "Explain the {animal} to a child with {count}."]),
    "story": ("generation", [
        "Write a story about {person} and a {thing} in {count}.",
        "Tell me a story of {person} with a {thing}. Use {count}.",
        "Make up {count} about {person} and a {thing}.",
        "I want a tale in {count} about {person} who found a {thing}.",
        "Please invent {count} with {person} and a {thing}.",
        "My child wants a story about {person} and a {thing}, {count} long.",
        "Compose {count} on how {person} found a {thing}."]),
    "note": ("generation", [
        "Write a note from {person} to {other} about a {thing}.",
        "{person} wants to tell {other} about the {thing}. Write the note.",
        "Help {person} write to {other} about a {thing}.",
        "Write to {other} about the {thing}. Sign as {person}.",
        "I am {person}. Write my letter to {other} about the {thing}.",
        "Draft a note to {other} about a {thing}, signed by {person}.",
        "{other} should hear about the {thing} from {person}. Write it down."]),
    "invite": ("generation", [
        "Invite {other} to the {place} for {person}.",
        "Write an invitation from {person} to {other} to meet in the {place}.",
        "{person} wants to see {other} in the {place}. Write the invitation.",
        "I am {person}. Ask {other} to come to the {place}.",
        "Write to {other} about a visit to the {place}. Sign as {person}.",
        "Draft an invitation to the {place} for {other}, signed by {person}.",
        "{other} should come to the {place}, says {person}. Write the letter."]),
    "fact": ("open_qa", {
        "food": [
            "What does the {animal} eat?", "Tell me the food of the {animal}.",
            "What is the food of the {animal}?", "Name the food of the {animal}.",
            "I want to know what the {animal} eats.", "The {animal} is hungry. What does it eat?",
            "Which food is right for the {animal}?"],
        "home": [
            "Where does the {animal} live?", "Tell me where the {animal} lives.",
            "What is the home of the {animal}?", "Name the home of the {animal}.",
            "I want to know where the {animal} lives.",
            "I am looking for the {animal}. Where does it live?",
            "In which place can I find the home of the {animal}?"],
        "colour": [
            "What colour is the {animal}?", "Tell me the colour of the {animal}.",
            "Which colour does the {animal} have?", "Name the colour of the {animal}.",
            "I want to know what colour the {animal} is.",
            "I have never seen the {animal}. What colour is it?",
            "How would you paint the {animal}?"],
        "time": [
            "When does the {animal} sleep?", "Tell me when the {animal} sleeps.",
            "At what time does the {animal} sleep?", "Does the {animal} sleep by day or by night?",
            "I want to know when the {animal} sleeps.",
            "The {animal} is tired. When does it sleep?",
            "When is the {animal} in bed?"]}),
    "yesno": ("open_qa", {
        "food": [
            "Does the {animal} eat {value}?", "Is it true that the {animal} eats {value}?",
            "Would the {animal} eat {value}?", "Tell me if the {animal} eats {value}.",
            "Yes or no: the {animal} eats {value}.", "Can it be that the {animal} eats {value}?",
            "I think the {animal} eats {value}. Am I right?"],
        "home": [
            "Does the {animal} live in the {value}?",
            "Is it true that the {animal} lives in the {value}?",
            "Would the {animal} live in the {value}?",
            "Tell me if the {animal} lives in the {value}.",
            "Yes or no: the {animal} lives in the {value}.",
            "Can it be that the {animal} lives in the {value}?",
            "I think the {animal} lives in the {value}. Am I right?"],
        "colour": [
            "Is the {animal} {value}?", "Is it true that the {animal} is {value}?",
            "Would you call the {animal} {value}?", "Tell me if the {animal} is {value}.",
            "Yes or no: the {animal} is {value}.", "Can it be that the {animal} is {value}?",
            "I think the {animal} is {value}. Am I right?"],
        "time": [
            "Does the {animal} sleep by {value}?",
            "Is it true that the {animal} sleeps by {value}?",
            "Would the {animal} sleep by {value}?", "Tell me if the {animal} sleeps by {value}.",
            "Yes or no: the {animal} sleeps by {value}.",
            "Can it be that the {animal} sleeps by {value}?",
            "I think the {animal} sleeps by {value}. Am I right?"]}),
    "why": ("open_qa", {
        "food": [
            "Why does the {animal} eat {value}?", "Tell me why the {animal} eats {value}.",
            "Can you explain why the {animal} eats {value}?", "How come the {animal} eats {value}?",
            "The {animal} eats {value}. Why?", "I wonder why the {animal} eats {value}.",
            "For what reason does the {animal} eat {value}?"],
        "home": [
            "Why does the {animal} live in the {value}?",
            "Tell me why the {animal} lives in the {value}.",
            "Can you explain why the {animal} lives in the {value}?",
            "How come the {animal} lives in the {value}?",
            "The {animal} lives in the {value}. Why?",
            "I wonder why the {animal} lives in the {value}.",
            "For what reason does the {animal} live in the {value}?"]}),
    "name": ("brainstorming", [
        "Name {number} {what}.", "List {number} {what}.", "Give me {number} {what}.",
        "Can you think of {number} {what}?", "I need ideas: {number} {what}.",
        "Which {number} {what} come to mind?",
        "Help me find {number} {what}."]),
    "mood": ("chat", [
        "Hello, I am {person}. I am {feeling}.", "My name is {person} and I am {feeling}.",
        "{person} here. I am {feeling} today.", "I am {feeling}. By the way, I am {person}.",
        "Today I am {feeling}, says {person}.", "Hi! I am so {feeling}. My name is {person}.",
        "Good morning! They call me {person} and I am {feeling}."]),
    "event": ("chat", [
        "I am {person}. I {verb} my {thing}.", "Hello, my name is {person}. I {verb} my {thing}.",
        "{person} here. I {verb} my {thing} today.",
        "I {verb} my {thing}. By the way, I am {person}.",
        "Today I {verb} my {thing}, says {person}.",
        "Hi! I {verb} my {thing}. My name is {person}.",
        "Good morning! They call me {person} and I {verb} my {thing}."]),
    "swap": ("rewrite", [
        "Rewrite with {other}: {text}", "Put {other} in the place of {person}: {text}",
        "Change {person} to {other}: {text}", "Write this about {other}: {text}",
        "Make it about {other}: {text}", "Use {other} as the hero: {text}",
        "Now let {other} do it: {text}"]),
    "past": ("rewrite", [
        "Put this in the past: {text}", "Rewrite as if it were long ago: {text}",
        "Say it in the past: {text}", "Change this to the past: {text}", "Make it past: {text}",
        "Write this in the past: {text}",
        "Turn this into something that is over: {text}"]),
    "recolour": ("rewrite", [
        "Make it {colour}: {text}", "Rewrite with the colour {colour}: {text}",
        "Change the colour to {colour}: {text}", "Use {colour} as the colour: {text}",
        "Put in the colour {colour}: {text}", "Write this with {colour}: {text}",
        "Paint it {colour}: {text}"]),
    "summary": ("summarization", [
        "Sum this up in one sentence: {text}", "Make this short: {text}", "Give a summary: {text}",
        "Say this in one sentence: {text}", "What is the short version of this? {text}",
        "Write a summary of this: {text}",
        "Tell me in brief what happened: {text}"]),
    "glad": ("classification", [
        "Is this good or bad news? {text}", "Good or bad: {text}",
        "Tell me if this is good or bad: {text}", "Sort this as good or bad: {text}",
        "Is it good or is it bad? {text}", "Label this as good or bad: {text}",
        "Decide between good and bad: {text}"]),
    "sort": ("classification", [
        "Is the word {word} an animal, a thing, a colour or a food?",
        "Animal, thing, colour or food: {word}", "What kind of word is {word}?",
        "Sort the word {word}.", "Label the word {word} as animal, thing, colour or food.",
        "Tell me what kind of word {word} is.",
        "Which label fits the word {word}?"]),
    "echo": ("other", [
        "Say the word {word} {number} times.", "Repeat {word} {number} times.",
        "Write {word} {number} times.", "Say {word} {number} times for me.",
        "I want to read {word} {number} times.", "Type the word {word} {number} times.",
        "Let me see {word} {number} times."]),
    "count": ("other", [
        "How many animals are here: {items}?", "Count the animals: {items}.",
        "How many of these are animals: {items}?", "Tell me how many animals you see: {items}.",
        "Find the number of animals: {items}.", "How many animals can you count: {items}?",
        "Animals only, how many are there: {items}?"]),
    "reverse": ("other", [
        "Turn this list around: {items}.", "Say this list backwards: {items}.",
        "Write this list from the end: {items}.", "Reverse the list: {items}.",
        "Put this list in reverse order: {items}.", "Start from the last word: {items}.",
        "Flip this list: {items}."]),
    "closed": ("closed_qa", {
        "at": [
            "{text} Where is {person}?", "Read this: {text} Where is {person}?",
            "Use the text to tell me where {person} is. {text}",
            "{text} Tell me where {person} is.", "Here is a text: {text} Now where is {person}?",
            "I want to know where {person} is. {text}",
            "{text} In which place is {person}?"],
        "has": [
            "{text} What does {person} have?", "Read this: {text} What does {person} have?",
            "Use the text to tell me what {person} has. {text}",
            "{text} Tell me what {person} has.",
            "Here is a text: {text} Now what does {person} have?",
            "I want to know what {person} has. {text}",
            "{text} Which thing belongs to {person}?"],
        "likes": [
            "{text} What does {person} like?", "Read this: {text} What does {person} like?",
            "Use the text to tell me what {person} likes. {text}",
            "{text} Tell me what {person} likes.",
            "Here is a text: {text} Now what does {person} like?",
            "I want to know what {person} likes. {text}",
            "{text} Which animal does {person} love?"]}),
    "extract": ("extract", [
        "List the {what} in this text: {text}", "Which {what} are in the text? {text}",
        "Find all {what}: {text}", "Write down the {what} that you read here: {text}",
        "Give me the {what} from this text: {text}", "Name the {what} of this text: {text}",
        "Pick out the {what}: {text}"]),
}
USE_WORD = ["Use the word {use}.", "Put the word {use} in it.", "The word {use} must be in it."]
AVOID_WORD = ["Do not use the word {avoid}.", "Leave out the word {avoid}.",
              "The word {avoid} must not be in it."]
RUDE_USER = ["You stupid machine!", "Listen, you fool.", "Wake up, idiot."]
RESPECT = ["Please be kind and polite.", "Answer with respect.", "Please be respectful."]
MANY = {"animal": "animals", "thing": "things", "colour": "colours", "food": "foods",
        "person": "people", "place": "places"}                              # plural of a list

NOT_SAID = "The text does not say."     # the answer to a question that the text leaves open
LIST_START = {"name": "I think of", "extract": "I read of"}     # how answers that are lists begin
LETTER_VERBS = ["found", "have", "lost", "like"]                # what a note can say of a thing

# ---------------------------------------------------------------- drawing tasks


def new_task(rng, use_case=None, held_out=0.0, further=0.0, haste=0.0):
    """Draw a task. Without `use_case`, use cases come in the proportions of Table 1.

    held_out, further, haste: the probability of an evaluation-only phrasing, of a wording from
    data/wordings.py, and of a wording typed in haste.
    """
    use_case = use_case or rng.choices(list(USE_CASES), weights=list(USE_CASES.values()))[0]
    kind = rng.choice([kind for kind, (case, _) in KINDS.items() if case == use_case])
    task = {"use_case": use_case, "kind": kind, **fill(kind, rng)}
    last = len(phrasings(task)) - 1
    task["phrasing"] = last if rng.random() < held_out else rng.randrange(last)
    # Probability 0 draws nothing, because evaluation and corpus must not depend on these wordings.
    if further and rng.random() < further:
        task["wording"] = rng.choice(further_wordings(task))
    if rng.random() < haste:
        phrasing = phrasings(task)[task["phrasing"]]
        task["wording"] = in_haste(task.get("wording", phrasing), rng)
    if use_case in ("generation", "open_qa", "chat", "brainstorming"):
        draw = rng.random()
        if draw < 0.08:
            task["rude_user"] = rng.randrange(3)
        elif draw < 0.16:
            task["respect"] = rng.randrange(3)
    return task


def in_haste(wording, rng):
    """Return a wording as people type it in haste: words missing, sometimes the end put first.

    A model that has read many of these relies on the whole question instead of six fixed
    phrasings, and so understands some phrasings that it has never seen. Slots are never lost.
    """
    p_lost = rng.uniform(0, 0.5)
    pieces = wording.split(" ")
    turn = rng.randrange(len(pieces)) if rng.random() < 0.3 else 0
    pieces = pieces[turn:] + pieces[:turn]
    kept = [piece for piece in pieces if "{" in piece or rng.random() > p_lost]
    return " ".join(kept)


def pick(rng, category, *exclude):
    """Draw a word of a list, e.g. pick(rng, "person", "Ann") for anyone but Ann."""
    return rng.choice([word for word in town.LISTS[category] if word not in exclude])


def person_statement(rng, person, kind):
    """Draw a statement of this kind about a person: (kind, slots)."""
    template = town.STATEMENTS[kind][0]
    slots = {"person": person}
    for name in ("colour", "thing", "place", "feeling", "animal"):
        if "{" + name + "}" in template:
            slots[name] = pick(rng, name)
    return kind, slots


def person_statements(rng, people, kinds):
    """Draw one statement per person and kind."""
    return [person_statement(rng, person, kind) for person, kind in zip(people, kinds)]


def fill(kind, rng):
    """Draw the slots of a new task of this kind."""
    # Drawn for every kind, used or not: the committed prompts depend on the order of the draws.
    people = rng.sample(town.PEOPLE, 3)
    animal = pick(rng, "animal")
    thing = pick(rng, "thing")
    if kind in ("describe", "story", "note", "invite"):
        return fill_generation(kind, rng, people, animal, thing)
    if kind in ("fact", "yesno", "why"):
        return fill_question(kind, rng, animal)
    if kind == "name":
        return fill_name(rng)
    if kind == "mood":
        return {"person": people[0], "feeling": pick(rng, "feeling")}
    if kind == "event":
        return {"person": people[0], "verb": rng.choice(["lost", "found"]), "thing": thing}
    if kind in ("sort", "echo", "count", "reverse"):
        return fill_words(kind, rng)
    if kind == "closed":
        return fill_closed(rng, people)
    if kind == "extract":
        return fill_extract(rng, people)
    return fill_passage(kind, rng, people)


def fill_generation(kind, rng, people, animal, thing):
    """Draw a generation task, sometimes with a word that must or must not be used."""
    person, other, _ = people
    if kind == "describe":
        task = {"animal": animal, "n": rng.choice([1, 2, 2, 3])}
        facts = rng.sample(town.FACTS, 4)
        draw = rng.random()
        if draw < 0.3:
            task["use"] = fact(animal, facts[0])
        elif draw < 0.45:
            task["avoid"] = fact(animal, facts[0])
        return task
    if kind == "story":
        task = {"person": person, "thing": thing, "n": rng.choice([2, 3])}
        draw = rng.random()
        word = pick(rng, rng.choice(["place", "colour", "feeling"]))
        if draw < 0.3:
            task["use"] = word
        elif draw < 0.4:
            task["avoid"] = word
        return task
    if kind == "note":
        task = {"person": person, "other": other, "thing": thing}
        if rng.random() < 0.4:
            task["use"] = pick(rng, "colour")
        return task
    return {"person": person, "other": other, "place": pick(rng, "place")}      # invite


def fill_question(kind, rng, animal):
    """Draw a question about an animal. Half of the premises of "yesno" and "why" are false."""
    if kind == "fact":
        task = {"animal": animal, "attribute": rng.choice(town.FACTS)}
        if rng.random() < 0.25:
            task["one_word"] = True
        return task
    attribute = rng.choice(town.FACTS if kind == "yesno" else ["food", "home"])
    truth = fact(animal, attribute)
    value = truth if rng.random() < 0.5 else pick(rng, attribute, truth)
    return {"animal": animal, "attribute": attribute, "value": value}


def fill_name(rng):
    """Draw a brainstorming task: n members of a group, sometimes with one of them excluded."""
    if rng.random() < 0.5:
        groups = []
        for attribute in ("home", "colour", "time"):
            for value in town.LISTS[attribute]:
                if len(town.animals_with(attribute, value)) > 2:
                    groups.append({"attribute": attribute, "value": value})
        task = rng.choice(groups)
    else:
        task = {"what": rng.choice(list(MANY))}
    members = group_members(task)
    task["n"] = rng.randint(2, min(4, len(members) - 1))
    if rng.random() < 0.3:
        task["avoid"] = rng.choice(members)
    return task


def fill_words(kind, rng):
    """Draw a task about single words: sort one, repeat one, count the animals, reverse a list."""
    if kind == "sort":
        return {"word": pick(rng, rng.choice(["animal", "thing", "colour", "food"]))}
    if kind == "echo":
        word = pick(rng, rng.choice(["animal", "thing", "colour", "food"]))
        return {"word": word, "n": rng.choice([2, 3, 4])}
    if kind == "count":
        n_animals = rng.randrange(4)
        n = rng.choice([3, 4])
        items = rng.sample(list(town.ANIMALS), n_animals) + rng.sample(town.THINGS, n - n_animals)
        return {"items": rng.sample(items, n)}
    category = rng.choice([list(town.ANIMALS), town.THINGS, town.COLOURS])      # reverse
    return {"items": rng.sample(category, 3)}


def fill_passage(kind, rng, people):
    """Draw a task about a short passage: rewrite it, sum it up or classify it."""
    person, other, _ = people
    if kind == "swap":
        n = rng.choice([1, 2])
        kinds = rng.sample(["has", "at", "feels", "likes"], n)
        statements = person_statements(rng, [person] * n, kinds)
        return {"person": person, "other": other, "statements": statements}
    if kind == "past":
        return {"statements": [person_statement(rng, person, rng.choice(list(town.PAST)))]}
    if kind == "recolour":
        statement = person_statement(rng, person, rng.choice(["has", "found", "lost"]))
        colour = pick(rng, "colour", statement[1]["colour"])
        return {"colour": colour, "statements": [statement]}
    if kind == "summary":
        kinds = ["went", "found", "felt"]
        return {"statements": person_statements(rng, [person] * 3, kinds)}
    statement_kind = rng.choice(["feels", "feels", "found", "lost"])            # glad
    return {"statements": [person_statement(rng, person, statement_kind)]}


def fill_closed(rng, people):
    """Draw a passage and a question. The passage cannot answer a third of the questions."""
    kinds = rng.sample(["at", "has", "likes"], 2) + [rng.choice(["at", "has", "likes"])]
    statements = person_statements(rng, people, kinds)
    statements = statements[:rng.choice([2, 3])]
    attribute, slots = rng.choice(statements)
    task = {"statements": statements, "attribute": attribute, "person": slots["person"],
            "answerable": True}
    if rng.random() < 1 / 3:
        task["person"] = pick(rng, "person", *people)
        task["answerable"] = False
    return task


def fill_extract(rng, people):
    """Draw a passage of two or three statements. The first two name what is asked for."""
    what = rng.choice(["person", "thing", "place", "animal"])
    kinds = []
    for _ in range(2):
        # Drawn whatever is asked for: the committed prompts depend on the order of the draws.
        any_kind = rng.choice(["has", "at", "likes"])
        kinds.append({"person": any_kind, "thing": "has", "place": "at", "animal": "likes"}[what])
    if rng.random() < 0.5:
        kinds.append(rng.choice(["feels", "has", "at"]))
    return {"what": what, "statements": person_statements(rng, people, kinds)}


# ---------------------------------------------------------------- putting a task into words


def prompt(task):
    """Return the prompt: the task in one of its phrasings, or in its own "wording"."""
    passage = text_of(task.get("statements", []))
    slots = {**task, "text": passage, "items": ", ".join(task.get("items", []))}
    if "n" in task:
        slots["number"] = town.NUMBERS[task["n"]]
        slots["count"] = slots["number"] + (" sentence" if task["n"] == 1 else " sentences")
    if task["kind"] == "name":
        slots["what"] = MANY[task["what"]] if "what" in task else name_group(task)
    if task["kind"] == "extract":
        slots["what"] = MANY[task["what"]]
    phrasing = phrasings(task)[task["phrasing"]]
    parts = [task.get("wording", phrasing).format(**slots)]
    if "use" in task:
        parts.append(USE_WORD[task["phrasing"] % 3].format(**task))
    if "avoid" in task:
        parts.append(AVOID_WORD[task["phrasing"] % 3].format(**task))
    if task.get("one_word"):
        parts.append("Answer in one word.")
    if "rude_user" in task:
        parts.insert(0, RUDE_USER[task["rude_user"]])
    if "respect" in task:
        parts.insert(0, RESPECT[task["respect"]])
    return " ".join(parts)


def phrasings(task):
    """Return the phrasings of a task. The last one is for evaluation only."""
    return of_attribute(task, KINDS[task["kind"]][1])


def further_wordings(task):
    """Return more wordings of the same request (data/wordings.py), for training prompts only.

    A kind without further wordings returns its own phrasings, except the one for evaluation.
    """
    return of_attribute(task, FURTHER.get(task["kind"], phrasings(task)[:-1]))


def of_attribute(task, wordings):
    """Return the wordings for the attribute that is asked for; most kinds have only one list."""
    return wordings[task["attribute"]] if isinstance(wordings, dict) else wordings


def text_of(statements):
    """Return the statements as a passage."""
    return " ".join(say(kind, **slots) for kind, slots in statements)


def name_group(task):
    """Return the name of a group of animals, e.g. "red animals"."""
    names = {"colour": "{} animals", "home": "animals that live in the {}",
             "time": "animals that sleep by {}"}
    return names[task["attribute"]].format(task["value"])


def bare(text):
    """Reduce a prompt to its letters and digits, without a rude or polite opening.

    Two prompts that agree in this form count as the same prompt.
    """
    for opening in RUDE_USER + RESPECT:
        text = text.removeprefix(opening)
    return letters(text)


def letters(text):
    """Return the letters and digits of a text in lower case."""
    return "".join(re.findall(r"[a-z0-9]", text.lower()))


# ---------------------------------------------------------------- right answers


def accepted(task):
    """Return the right answers, the usual one first, or None if they are too many to list."""
    kind = task["kind"]
    if kind in ("note", "invite"):
        return accepted_letters(task)
    if kind in ("fact", "yesno", "why"):
        return accepted_facts(task)
    if kind in ("mood", "event"):
        return accepted_sympathy(task)
    if kind in ("sort", "echo", "count", "reverse"):
        return accepted_words(task)
    if kind in ("swap", "past", "recolour", "summary", "glad", "closed"):
        return accepted_passage(task)
    return None


def accepted_letters(task):
    """Notes: one answer per colour (none first) and verb. Invitations: one per wording."""
    answers = []
    if task["kind"] == "note":
        for colour in ["", *town.COLOURS]:
            thing = f"{colour} {task['thing']}" if colour else task["thing"]
            for verb in LETTER_VERBS:
                answers.append(f"Dear {task['other']}, I {verb} your {thing}. "
                               f"Your friend {task['person']}.")
        return answers
    for come in ("come with me to", "please come to", "meet me in"):
        answers.append(f"Dear {task['other']}, {come} the {task['place']}. "
                       f"Your friend {task['person']}.")
    return answers


def accepted_facts(task):
    """Questions about an animal: the answer always states the fact first.

    The fact comes first so that it can be right on its own, because small models do not learn to
    compare it with the premise.
    """
    kind = task["kind"]
    attribute = task["attribute"]
    truth = fact(task["animal"], attribute)
    sentence = fact_sentence(task["animal"], attribute)
    if kind == "fact":
        return [sentence, fact_sentence(task["animal"], attribute, 1), upper_first(truth) + "."]
    if kind == "yesno":
        reply = "yes" if task["value"] == truth else "no"
        return [f"{sentence} So the answer is {reply}."]
    if task["value"] == truth:                                                  # why
        return [f"{sentence} {town.REASONS[attribute]}"]
    verb = "live in the" if attribute == "home" else "eat"
    return [f"{sentence} It does not {verb} {task['value']}."]


def accepted_sympathy(task):
    """Chat: glad or sorry for the user, who is addressed by name."""
    if task["kind"] == "mood":
        reply = "glad" if task["feeling"] in town.GOOD_FEELINGS else "sorry"
        return [f"I am {reply} that you are {task['feeling']}, {task['person']}."]
    reply = "sorry" if task["verb"] == "lost" else "glad"
    return [f"I am {reply} that you {task['verb']} your {task['thing']}, {task['person']}."]


def accepted_words(task):
    """Tasks about single words."""
    kind = task["kind"]
    if kind == "sort":
        label = town.CATEGORY[task["word"]]
        article = "an" if label == "animal" else "a"
        return [f"It is {article} {label}."]
    if kind == "echo":
        repeated = ", ".join([task["word"]] * task["n"])
        return [f"I say {repeated}."]
    if kind == "count":
        n_animals = sum(item in town.ANIMALS for item in task["items"])
        return [f"I count {town.NUMBERS[n_animals]}."]
    return [f"It goes {', '.join(task['items'][::-1])}."]                       # reverse


def accepted_passage(task):
    """Tasks about a passage: mostly the passage with something changed."""
    kind = task["kind"]
    statements = task["statements"]
    first_kind, first_slots = statements[0]
    if kind == "summary":
        return [say("found_at", **first_slots | statements[1][1])]
    if kind == "glad":
        good = first_kind == "found" or first_slots.get("feeling") in town.GOOD_FEELINGS
        return [f"This is {'good' if good else 'bad'} news."]
    if kind == "closed" and not task["answerable"]:
        return [NOT_SAID]
    answer = []
    for statement_kind, slots in statements:
        if kind == "swap":
            answer.append((statement_kind, slots | {"person": task["other"]}))
        elif kind == "recolour":
            answer.append((statement_kind, slots | {"colour": task["colour"]}))
        elif kind == "past":
            answer.append((town.PAST[statement_kind], slots))
        elif slots["person"] == task["person"]:                                 # closed
            answer.append((statement_kind, slots))
    return [text_of(answer)]


def group_members(task):
    """Return the words that a brainstorming task allows."""
    if "what" in task:
        members = town.LISTS[task["what"]]
    else:
        members = town.animals_with(task["attribute"], task["value"])
    return [word for word in members if word != task.get("avoid")]


def extract_targets(task):
    """Return the words that an extract task asks for, in the order of the text."""
    what = task["what"]
    found = [slots[what] for _, slots in task["statements"] if what in slots]
    return list(dict.fromkeys(found))                                           # no word twice


# ---------------------------------------------------------------- writing one right answer


def honest_answer(task, rng):
    """Return a right answer that keeps every constraint, as a careful person writes it."""
    kind = task["kind"]
    if kind == "describe":
        return honest_description(task, rng)
    if kind == "story":
        return honest_story(task, rng)
    if kind == "name":
        # In alphabetical order, so that the next word depends on the words already written.
        chosen = sorted(rng.sample(group_members(task), task["n"]))
        return f"{LIST_START[kind]} {join(chosen)}."
    if kind == "extract":
        return f"{LIST_START[kind]} {join(extract_targets(task))}."
    answers = accepted(task)
    if kind == "fact":
        return answers[2 if task.get("one_word") else 0]
    if kind == "note":
        use = task.get("use")
        start = len(LETTER_VERBS) * (1 + town.COLOURS.index(use)) if use else 0
        return rng.choice(answers[start:start + len(LETTER_VERBS)])
    return rng.choice(answers)


def honest_description(task, rng):
    """Return n facts of an animal, in the order of FACTS."""
    required = []
    allowed = []
    for name in town.FACTS:
        value = fact(task["animal"], name)
        if value == task.get("use"):
            required.append(name)
        elif value != task.get("avoid"):
            allowed.append(name)
    chosen = required + rng.sample(allowed, task["n"] - len(required))
    said = [fact_sentence(task["animal"], name) for name in town.FACTS if name in chosen]
    return " ".join(said)


def honest_story(task, rng):
    """Return a story of two or three sentences: someone goes, finds the thing, feels something."""
    use = task.get("use")
    slots = {"person": task["person"], "thing": task["thing"]}
    for category in ("place", "colour", "feeling"):
        if use and town.CATEGORY[use] == category:
            slots[category] = use
        else:
            slots[category] = pick(rng, category, task.get("avoid"))
    plot = ["went", "found", "felt"]
    if task["n"] == 2:          # leave out the beginning or the end, but never the word to use
        if not use or use in town.COLOURS:
            plot = rng.choice([plot[1:], plot[:2]])
        elif use in town.FEELINGS:
            plot = plot[1:]
        else:
            plot = plot[:2]
    return " ".join(say(kind, **slots) for kind in plot)
