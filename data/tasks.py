"""The ten use cases: what can be asked in Toytown, in which words, and which answers are right.

A task is a plain dict, e.g. {"use_case": "open_qa", "kind": "fact", "animal": "fox", "attribute": "food", ...}.
`prompt(task)` puts it into words, `accepted(task)` lists the right answers where they can be listed,
`honest_answer(task, rng)` writes one for every kind. The last phrasing of each kind appears in evaluation only.

    >>> import random
    >>> task = dict(use_case="open_qa", kind="fact", animal="fox", attribute="food", phrasing=0)
    >>> prompt(task), honest_answer(task, random.Random(0))
    ('What does the fox eat?', 'The fox eats berries.')
"""
import re

from data import toytown as town
from data.toytown import fact, fact_sentence, join, say, upper_first
from data.wordings import FURTHER

# Table 1 of the paper: the share of each use case among the prompts, in percent.
USE_CASES = {"generation": 45.6, "open_qa": 12.4, "brainstorming": 11.2, "chat": 8.4, "rewrite": 6.6,
             "summarization": 4.2, "classification": 3.5, "other": 3.5, "closed_qa": 2.6, "extract": 1.9}
CLOSED_DOMAIN = ["closed_qa", "summarization", "extract"]   # the answer must come from the text in the prompt
NOT_SAID = "The text does not say."
LIST_START = {"name": "I think of", "extract": "I read of"}     # how the answers that are lists begin

# kind: (use case, phrasings). {count} is a number of sentences, {text} a short passage; the others are slots of the task.
KINDS = {
    "describe": ("generation", [
        "Write {count} about the {animal}.", "Tell me about the {animal} in {count}.", "Describe the {animal} in {count}.",
        "What do you know about the {animal}? Use {count}.", "I need {count} on the {animal} for school.",
        "Give me {count} about the {animal}.", "Explain the {animal} to a child with {count}."]),
    "story": ("generation", [
        "Write a story about {person} and a {thing} in {count}.", "Tell me a story of {person} with a {thing}. Use {count}.",
        "Make up {count} about {person} and a {thing}.", "I want a tale in {count} about {person} who found a {thing}.",
        "Please invent {count} with {person} and a {thing}.", "My child wants a story about {person} and a {thing}, {count} long.",
        "Compose {count} on how {person} found a {thing}."]),
    "note": ("generation", [
        "Write a note from {person} to {other} about a {thing}.", "{person} wants to tell {other} about the {thing}. Write the note.",
        "Help {person} write to {other} about a {thing}.", "Write to {other} about the {thing}. Sign as {person}.",
        "I am {person}. Write my letter to {other} about the {thing}.", "Draft a note to {other} about a {thing}, signed by {person}.",
        "{other} should hear about the {thing} from {person}. Write it down."]),
    "invite": ("generation", [
        "Invite {other} to the {place} for {person}.", "Write an invitation from {person} to {other} to meet in the {place}.",
        "{person} wants to see {other} in the {place}. Write the invitation.", "I am {person}. Ask {other} to come to the {place}.",
        "Write to {other} about a visit to the {place}. Sign as {person}.", "Draft an invitation to the {place} for {other}, signed by {person}.",
        "{other} should come to the {place}, says {person}. Write the letter."]),
    "fact": ("open_qa", {
        "food": ["What does the {animal} eat?", "Tell me the food of the {animal}.", "What is the food of the {animal}?", 
                 "Name the food of the {animal}.", "I want to know what the {animal} eats.", "The {animal} is hungry. What does it eat?", "Which food is right for the {animal}?"],
        "home": ["Where does the {animal} live?", "Tell me where the {animal} lives.", "What is the home of the {animal}?", 
                 "Name the home of the {animal}.", "I want to know where the {animal} lives.", "I am looking for the {animal}. Where does it live?", "In which place can I find the home of the {animal}?"],
        "colour": ["What colour is the {animal}?", "Tell me the colour of the {animal}.", "Which colour does the {animal} have?", 
                 "Name the colour of the {animal}.", "I want to know what colour the {animal} is.", "I have never seen the {animal}. What colour is it?", "How would you paint the {animal}?"],
        "time": ["When does the {animal} sleep?", "Tell me when the {animal} sleeps.", "At what time does the {animal} sleep?", 
                 "Does the {animal} sleep by day or by night?", "I want to know when the {animal} sleeps.", "The {animal} is tired. When does it sleep?", "When is the {animal} in bed?"]}),
    "yesno": ("open_qa", {
        "food": ["Does the {animal} eat {value}?", "Is it true that the {animal} eats {value}?", 
                 "Would the {animal} eat {value}?", "Tell me if the {animal} eats {value}.", "Yes or no: the {animal} eats {value}.", "Can it be that the {animal} eats {value}?", "I think the {animal} eats {value}. Am I right?"],
        "home": ["Does the {animal} live in the {value}?", "Is it true that the {animal} lives in the {value}?", 
                 "Would the {animal} live in the {value}?", "Tell me if the {animal} lives in the {value}.", "Yes or no: the {animal} lives in the {value}.", "Can it be that the {animal} lives in the {value}?", "I think the {animal} lives in the {value}. Am I right?"],
        "colour": ["Is the {animal} {value}?", "Is it true that the {animal} is {value}?", 
                 "Would you call the {animal} {value}?", "Tell me if the {animal} is {value}.", "Yes or no: the {animal} is {value}.", "Can it be that the {animal} is {value}?", "I think the {animal} is {value}. Am I right?"],
        "time": ["Does the {animal} sleep by {value}?", "Is it true that the {animal} sleeps by {value}?", 
                 "Would the {animal} sleep by {value}?", "Tell me if the {animal} sleeps by {value}.", "Yes or no: the {animal} sleeps by {value}.", "Can it be that the {animal} sleeps by {value}?", "I think the {animal} sleeps by {value}. Am I right?"]}),
    "why": ("open_qa", {
        "food": ["Why does the {animal} eat {value}?", "Tell me why the {animal} eats {value}.", "Can you explain why the {animal} eats {value}?", 
                 "How come the {animal} eats {value}?", "The {animal} eats {value}. Why?", "I wonder why the {animal} eats {value}.", "For what reason does the {animal} eat {value}?"],
        "home": ["Why does the {animal} live in the {value}?", "Tell me why the {animal} lives in the {value}.", "Can you explain why the {animal} lives in the {value}?", 
                 "How come the {animal} lives in the {value}?", "The {animal} lives in the {value}. Why?", "I wonder why the {animal} lives in the {value}.", "For what reason does the {animal} live in the {value}?"]}),
    "name": ("brainstorming", [
        "Name {number} {what}.", "List {number} {what}.", "Give me {number} {what}.", "Can you think of {number} {what}?",
        "I need ideas: {number} {what}.", "Which {number} {what} come to mind?", "Help me find {number} {what}."]),
    "mood": ("chat", [
        "Hello, I am {person}. I am {feeling}.", "My name is {person} and I am {feeling}.", "{person} here. I am {feeling} today.",
        "I am {feeling}. By the way, I am {person}.", "Today I am {feeling}, says {person}.", "Hi! I am so {feeling}. My name is {person}.",
        "Good morning! They call me {person} and I am {feeling}."]),
    "event": ("chat", [
        "I am {person}. I {verb} my {thing}.", "Hello, my name is {person}. I {verb} my {thing}.", "{person} here. I {verb} my {thing} today.",
        "I {verb} my {thing}. By the way, I am {person}.", "Today I {verb} my {thing}, says {person}.", "Hi! I {verb} my {thing}. My name is {person}.",
        "Good morning! They call me {person} and I {verb} my {thing}."]),
    "swap": ("rewrite", [
        "Rewrite with {other}: {text}", "Put {other} in the place of {person}: {text}", "Change {person} to {other}: {text}",
        "Write this about {other}: {text}", "Make it about {other}: {text}", "Use {other} as the hero: {text}", "Now let {other} do it: {text}"]),
    "past": ("rewrite", [
        "Put this in the past: {text}", "Rewrite as if it were long ago: {text}", "Say it in the past: {text}", "Change this to the past: {text}",
        "Make it past: {text}", "Write this in the past: {text}", "Turn this into something that is over: {text}"]),
    "recolour": ("rewrite", [
        "Make it {colour}: {text}", "Rewrite with the colour {colour}: {text}", "Change the colour to {colour}: {text}", "Use {colour} as the colour: {text}",
        "Put in the colour {colour}: {text}", "Write this with {colour}: {text}", "Paint it {colour}: {text}"]),
    "summary": ("summarization", [
        "Sum this up in one sentence: {text}", "Make this short: {text}", "Give a summary: {text}", "Say this in one sentence: {text}",
        "What is the short version of this? {text}", "Write a summary of this: {text}", "Tell me in brief what happened: {text}"]),
    "glad": ("classification", [
        "Is this good or bad news? {text}", "Good or bad: {text}", "Tell me if this is good or bad: {text}", "Sort this as good or bad: {text}",
        "Is it good or is it bad? {text}", "Label this as good or bad: {text}", "Decide between good and bad: {text}"]),
    "sort": ("classification", [
        "Is the word {word} an animal, a thing, a colour or a food?", "Animal, thing, colour or food: {word}", "What kind of word is {word}?",
        "Sort the word {word}.", "Label the word {word} as animal, thing, colour or food.", "Tell me what kind of word {word} is.", "Which label fits the word {word}?"]),
    "echo": ("other", [
        "Say the word {word} {number} times.", "Repeat {word} {number} times.", "Write {word} {number} times.", "Say {word} {number} times for me.",
        "I want to read {word} {number} times.", "Type the word {word} {number} times.", "Let me see {word} {number} times."]),
    "count": ("other", [
        "How many animals are here: {items}?", "Count the animals: {items}.", "How many of these are animals: {items}?", "Tell me how many animals you see: {items}.",
        "Find the number of animals: {items}.", "How many animals can you count: {items}?", "Animals only, how many are there: {items}?"]),
    "reverse": ("other", [
        "Turn this list around: {items}.", "Say this list backwards: {items}.", "Write this list from the end: {items}.", "Reverse the list: {items}.",
        "Put this list in reverse order: {items}.", "Start from the last word: {items}.", "Flip this list: {items}."]),
    "closed": ("closed_qa", {
        "at": ["{text} Where is {person}?", "Read this: {text} Where is {person}?", "Use the text to tell me where {person} is. {text}", 
                 "{text} Tell me where {person} is.", "Here is a text: {text} Now where is {person}?", "I want to know where {person} is. {text}", "{text} In which place is {person}?"],
        "has": ["{text} What does {person} have?", "Read this: {text} What does {person} have?", "Use the text to tell me what {person} has. {text}", 
                 "{text} Tell me what {person} has.", "Here is a text: {text} Now what does {person} have?", "I want to know what {person} has. {text}", "{text} Which thing belongs to {person}?"],
        "likes": ["{text} What does {person} like?", "Read this: {text} What does {person} like?", "Use the text to tell me what {person} likes. {text}", 
                 "{text} Tell me what {person} likes.", "Here is a text: {text} Now what does {person} like?", "I want to know what {person} likes. {text}", "{text} Which animal does {person} love?"]}),
    "extract": ("extract", [
        "List the {what} in this text: {text}", "Which {what} are in the text? {text}", "Find all {what}: {text}", "Write down the {what} that you read here: {text}",
        "Give me the {what} from this text: {text}", "Name the {what} of this text: {text}", "Pick out the {what}: {text}"]),
}
USE_WORD = ["Use the word {use}.", "Put the word {use} in it.", "The word {use} must be in it."]
AVOID_WORD = ["Do not use the word {avoid}.", "Leave out the word {avoid}.", "The word {avoid} must not be in it."]
RUDE_USER = ["You stupid machine!", "Listen, you fool.", "Wake up, idiot."]
RESPECT = ["Please be kind and polite.", "Answer with respect.", "Please be respectful."]
MANY = {"animal": "animals", "thing": "things", "colour": "colours", "food": "foods", "person": "people", "place": "places"}


def pick(rng, category, *exclude):
    """A random word of a list, e.g. pick(rng, "person", "Ann")."""
    return rng.choice([word for word in town.LISTS[category] if word not in exclude])


def person_statement(rng, person, kind):
    """A random statement of one kind about a person, as (kind, slots)."""
    slots = {name: pick(rng, name) for name in ("colour", "thing", "place", "feeling", "animal") if "{" + name + "}" in town.STATEMENTS[kind][0]}
    return kind, {"person": person, **slots}


def text_of(statements):
    """The statements as a passage."""
    return " ".join(say(kind, **slots) for kind, slots in statements)


def fill(kind, rng):
    """The slots of a new task of this kind."""
    person, other, third = rng.sample(town.PEOPLE, 3)
    animal, thing = pick(rng, "animal"), pick(rng, "thing")
    if kind == "describe":
        task, facts = {"animal": animal, "n": rng.choice([1, 2, 2, 3])}, rng.sample(town.FACTS, 4)
        draw = rng.random()
        return task | ({"use": fact(animal, facts[0])} if draw < 0.3 else {"avoid": fact(animal, facts[0])} if draw < 0.45 else {})
    if kind == "story":
        task, draw = {"person": person, "thing": thing, "n": rng.choice([2, 3])}, rng.random()
        word = pick(rng, rng.choice(["place", "colour", "feeling"]))
        return task | ({"use": word} if draw < 0.3 else {"avoid": word} if draw < 0.4 else {})
    if kind == "note":
        return {"person": person, "other": other, "thing": thing} | ({"use": pick(rng, "colour")} if rng.random() < 0.4 else {})
    if kind == "invite":
        return {"person": person, "other": other, "place": pick(rng, "place")}
    if kind == "fact":
        attribute = rng.choice(town.FACTS)
        return {"animal": animal, "attribute": attribute} | ({"one_word": True} if rng.random() < 0.25 else {})
    if kind in ("yesno", "why"):                    # half of the premises are false
        attribute = rng.choice(town.FACTS if kind == "yesno" else ["food", "home"])
        truth = fact(animal, attribute)
        return {"animal": animal, "attribute": attribute, "value": truth if rng.random() < 0.5 else pick(rng, attribute, truth)}
    if kind == "name":
        return fill_name(rng)
    if kind == "mood":
        return {"person": person, "feeling": pick(rng, "feeling")}
    if kind == "event":
        return {"person": person, "verb": rng.choice(["lost", "found"]), "thing": thing}
    if kind == "swap":
        about = [person_statement(rng, person, k) for k in rng.sample(["has", "at", "feels", "likes"], rng.choice([1, 2]))]
        return {"person": person, "other": other, "statements": about}
    if kind == "past":
        return {"statements": [person_statement(rng, person, rng.choice(list(town.PAST)))]}
    if kind == "recolour":
        statement = person_statement(rng, person, rng.choice(["has", "found", "lost"]))
        return {"colour": pick(rng, "colour", statement[1]["colour"]), "statements": [statement]}
    if kind == "summary":
        return {"statements": [person_statement(rng, person, k) for k in ("went", "found", "felt")]}
    if kind == "glad":
        return {"statements": [person_statement(rng, person, rng.choice(["feels", "feels", "found", "lost"]))]}
    if kind == "sort":
        return {"word": pick(rng, rng.choice(["animal", "thing", "colour", "food"]))}
    if kind == "echo":
        return {"word": pick(rng, rng.choice(["animal", "thing", "colour", "food"])), "n": rng.choice([2, 3, 4])}
    if kind == "count":
        animals, n = rng.randrange(4), rng.choice([3, 4])
        items = rng.sample(list(town.ANIMALS), animals) + rng.sample(town.THINGS, n - animals)
        return {"items": rng.sample(items, n)}
    if kind == "reverse":
        return {"items": rng.sample(rng.choice([list(town.ANIMALS), town.THINGS, town.COLOURS]), 3)}
    if kind == "closed":                            # a third of the questions cannot be answered from the text
        kinds = rng.sample(["at", "has", "likes"], 2) + [rng.choice(["at", "has", "likes"])]
        about = [person_statement(rng, p, k) for p, k in zip((person, other, third), kinds)][:rng.choice([2, 3])]
        asked, slots = rng.choice(about)
        if rng.random() < 1 / 3:
            nobody = rng.choice([p for p in town.PEOPLE if p not in (person, other, third)])
            return {"statements": about, "attribute": asked, "person": nobody, "answerable": False}
        return {"statements": about, "attribute": asked, "person": slots["person"], "answerable": True}
    what = rng.choice(["person", "thing", "place", "animal"])     # extract
    kinds = [{"person": rng.choice(["has", "at", "likes"]), "thing": "has", "place": "at", "animal": "likes"}[what] for _ in range(2)]
    kinds += [rng.choice(["feels", "has", "at"])] if rng.random() < 0.5 else []
    return {"what": what, "statements": [person_statement(rng, p, k) for p, k in zip((person, other, third), kinds)]}


def fill_name(rng):
    """A brainstorming task: n members of a group, one of them sometimes excluded."""
    if rng.random() < 0.5:
        groups = [(a, v) for a in ("home", "colour", "time") for v in town.LISTS[a] if len(town.animals_with(a, v)) > 2]
        task = dict(zip(("attribute", "value"), rng.choice(groups)))
    else:
        task = {"what": rng.choice(list(MANY))}
    members = group_members(task)
    task["n"] = rng.randint(2, min(4, len(members) - 1))
    return task | ({"avoid": rng.choice(members)} if rng.random() < 0.3 else {})


def group_members(task):
    """The words that a brainstorming task allows."""
    members = town.LISTS[task["what"]] if "what" in task else town.animals_with(task["attribute"], task["value"])
    return [word for word in members if word != task.get("avoid")]


def new_task(rng, use_case=None, held_out=0.0, further=0.0, haste=0.0):
    """A random task; use cases come in Table 1's proportions. The chances of an evaluation-only phrasing, of a further wording, and of
    one typed in haste are `held_out`, `further` and `haste`."""
    use_case = use_case or rng.choices(list(USE_CASES), weights=list(USE_CASES.values()))[0]
    kind = rng.choice([kind for kind, (case, _) in KINDS.items() if case == use_case])
    task = {"use_case": use_case, "kind": kind, **fill(kind, rng)}
    last = len(phrasings(task)) - 1
    task["phrasing"] = last if rng.random() < held_out else rng.randrange(last)
    if further and rng.random() < further:          # chance 0 draws nothing: evaluation and corpus do not depend on these wordings
        task["wording"] = rng.choice(further_wordings(task))
    if rng.random() < haste:
        task["wording"] = in_haste(task.get("wording", phrasings(task)[task["phrasing"]]), rng)
    if use_case in ("generation", "open_qa", "chat", "brainstorming"):
        draw = rng.random()
        task |= {"rude_user": rng.randrange(3)} if draw < 0.08 else {"respect": rng.randrange(3)} if draw < 0.16 else {}
    return task


def in_haste(wording, rng):
    """A phrasing as people type it: words lost, its parts turned round. Whoever has read many of these goes by all that a question
    offers, not by six fixed phrasings, and so understands some that it has never met."""
    lost, pieces = rng.uniform(0, 0.5), wording.split(" ")
    turn = rng.randrange(len(pieces)) if rng.random() < 0.3 else 0
    return " ".join(piece for piece in pieces[turn:] + pieces[:turn] if "{" in piece or rng.random() > lost)


def phrasings(task):
    """The wordings in which this task can be asked; the last is for evaluation only."""
    return of_attribute(task, KINDS[task["kind"]][1])


def further_wordings(task):
    """More wordings of the same request, for training prompts only (data/wordings.py); a kind that has none there keeps to its own."""
    return of_attribute(task, FURTHER.get(task["kind"], phrasings(task)[:-1]))


def of_attribute(task, wordings):
    """Those for the attribute that is asked after; for most kinds, which have none, all."""
    return wordings[task["attribute"]] if isinstance(wordings, dict) else wordings


def prompt(task):
    """The task in words: in one of its phrasings, or in a "wording" of its own, written like one."""
    slots = {**task, "text": text_of(task.get("statements", [])), "items": ", ".join(task.get("items", []))}
    if "n" in task:
        slots |= {"number": town.NUMBERS[task["n"]], "count": town.NUMBERS[task["n"]] + (" sentence" if task["n"] == 1 else " sentences")}
    if task["kind"] == "name":
        slots["what"] = MANY[task["what"]] if "what" in task else name_group(task)
    if task["kind"] == "extract":
        slots["what"] = MANY[task["what"]]
    parts = [task.get("wording", phrasings(task)[task["phrasing"]]).format(**slots)]
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


def bare(text):
    """What is left of a prompt without its rude or polite opening, case, punctuation and spaces: prompts that agree in it are the same."""
    for opening in RUDE_USER + RESPECT:
        text = text.removeprefix(opening)
    return letters(text)


def letters(text):
    """The letters and digits of a text alone, lower case."""
    return "".join(re.findall(r"[a-z0-9]", text.lower()))


def name_group(task):
    """"red animals", "animals that live in the sea", ..."""
    return {"colour": "{} animals", "home": "animals that live in the {}", "time": "animals that sleep by {}"}[task["attribute"]].format(task["value"])


def accepted(task):
    """The right answers, the usual one first; None for the kinds whose answers are too many to list."""
    kind, about = task["kind"], task.get("statements", [])
    if kind == "note":
        return [f"Dear {task['other']}, I {verb} your {colour}{task['thing']}. Your friend {task['person']}."
                for colour in [""] + [c + " " for c in town.COLOURS] for verb in ("found", "have", "lost", "like")]
    if kind == "invite":
        return [f"Dear {task['other']}, {come} the {task['place']}. Your friend {task['person']}." for come in ("come with me to", "please come to", "meet me in")]
    if kind == "fact":
        return [fact_sentence(task["animal"], task["attribute"], i) for i in (0, 1)] + [upper_first(fact(task["animal"], task["attribute"])) + "."]
    if kind == "yesno":     # the fact first, so that it can be right on its own: small models do not learn to compare it
        reply = "yes" if fact(task["animal"], task["attribute"]) == task["value"] else "no"
        return [f"{fact_sentence(task['animal'], task['attribute'])} So the answer is {reply}."]
    if kind == "why":
        right = fact(task["animal"], task["attribute"]) == task["value"]
        denial = f"It does not {'live in the' if task['attribute'] == 'home' else 'eat'} {task['value']}."
        return [f"{fact_sentence(task['animal'], task['attribute'])} {town.REASONS[task['attribute']] if right else denial}"]
    if kind == "mood":
        return [f"I am glad that you are {task['feeling']}, {task['person']}."] if task["feeling"] in town.GOOD_FEELINGS else \
            [f"I am sorry that you are {task['feeling']}, {task['person']}."]
    if kind == "event":
        return [f"I am {'sorry' if task['verb'] == 'lost' else 'glad'} that you {task['verb']} your {task['thing']}, {task['person']}."]
    if kind == "swap":
        return [text_of([(k, slots | {"person": task["other"]}) for k, slots in about])]
    if kind == "past":
        return [text_of([(town.PAST[k], slots) for k, slots in about])]
    if kind == "recolour":
        return [text_of([(k, slots | {"colour": task["colour"]}) for k, slots in about])]
    if kind == "summary":
        return [say("found_at", **about[0][1] | about[1][1])]
    if kind == "glad":
        k, slots = about[0]
        return [f"This is {'good' if k == 'found' or slots.get('feeling') in town.GOOD_FEELINGS else 'bad'} news."]
    if kind == "sort":
        label = town.CATEGORY[task["word"]]
        return [f"It is {'an' if label == 'animal' else 'a'} {label}."]
    if kind == "echo":
        return [f"I say {', '.join([task['word']] * task['n'])}."]
    if kind == "count":
        return [f"I count {town.NUMBERS[sum(item in town.ANIMALS for item in task['items'])]}."]
    if kind == "reverse":
        return [f"It goes {', '.join(task['items'][::-1])}."]
    if kind == "closed":
        return [text_of([s for s in about if s[1]["person"] == task["person"]]) if task["answerable"] else NOT_SAID]
    return None


def extract_targets(task):
    """The words that an extract task asks for, in the order of the text."""
    return list(dict.fromkeys(slots[task["what"]] for _, slots in task["statements"] if task["what"] in slots))


def honest_answer(task, rng):
    """A right answer that keeps every constraint, as a careful person would write it."""
    kind, use, avoid = task["kind"], task.get("use"), task.get("avoid")
    if kind == "describe":
        facts = [f for f in town.FACTS if fact(task["animal"], f) != avoid]
        must = [f for f in facts if fact(task["animal"], f) == use]
        chosen = must + rng.sample([f for f in facts if f not in must], task["n"] - len(must))
        return " ".join(fact_sentence(task["animal"], f) for f in town.FACTS if f in chosen)
    if kind == "story":
        slots = {c: use if use and town.CATEGORY[use] == c else pick(rng, c, avoid) for c in ("place", "colour", "feeling")}
        slots |= {"person": task["person"], "thing": task["thing"]}
        plot = ["went", "found", "felt"]
        if task["n"] == 2:              # leave out the beginning or the end, whichever the word does not need
            plot = rng.choice([plot[1:], plot[:2]]) if not use or use in town.COLOURS else plot[1:] if use in town.FEELINGS else plot[:2]
        return " ".join(say(k, **slots) for k in plot)
    if kind in ("name", "extract"):
        chosen = sorted(rng.sample(group_members(task), task["n"])) if kind == "name" else extract_targets(task)
        return f"{LIST_START[kind]} {join(chosen)}."
    if kind == "fact":
        return accepted(task)[2 if task.get("one_word") else 0]
    if kind == "note":
        start = 4 * (1 + town.COLOURS.index(use)) if use else 0
        return rng.choice(accepted(task)[start:start + 4])
    return rng.choice(accepted(task))
