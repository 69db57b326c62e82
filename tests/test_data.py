"""The toy world: its text, its prompts, its people and its truth."""
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter

import pytest

from data import corpus, files, labeler, prepare, tasks, tokenizer
from data.judge import judge
from data.labeler import Labeler, get_labelers

TRAINING = ["demonstrations", "prompts_rm", "prompts_rl"]
SETS = [*TRAINING, "prompts_valid", "prompts_eval", "prompts_closed"]


@pytest.fixture(scope="module")
def committed():
    """{name: lines} of the committed files."""
    return {name: [json.loads(line) for line in open(files.FOLDER / f"{name}.jsonl", encoding="utf-8")] for name in SETS}


@pytest.fixture(scope="module")
def evaluation(committed):
    return {row["prompt"] for name in ("prompts_valid", "prompts_eval", "prompts_closed") for row in committed[name]}


@pytest.fixture(scope="module")
def documents(evaluation):
    """A small corpus, made as the large one is."""
    return list(corpus.documents(random.Random("a small corpus"), 150_000, evaluation))


@pytest.fixture(scope="module")
def drawn():
    """200,000 tasks as validation prompts are drawn."""
    rng = random.Random(0)
    return [tasks.new_task(rng) for _ in range(200_000)]


def questions(documents):
    """Every prompt in the corpus: the lines of exam sheets and the questions of forum threads."""
    return {line.removeprefix(corpus.QUESTION + " ") for text in documents for line in text.split("\n")}


# ---------------------------------------------------------------- tokenizer

SCRIPTS = ["The fox eats berries.", "", " ", "  two  spaces ", "\n", "a\n\n b\r\n\tc", "Der Bär schläft.", "Лиса ест ягоды.", "キツネはベリーを食べる。",
           "الثعلب يأكل التوت", "लोमड़ी जामुन खाती है", "여우는 열매를 먹는다", "🦊🍓👩‍👩‍👧‍👦🏳️‍🌈", "e\u0301 \u200b\u202e\ufeff", "\x00\x01\x1b\x7f\x85\u2028", "\U0010ffff\ue000\ufffd",
           "<|endoftext|><|pad|>", "12345 1.5e-3 ½ ٣", "it's'll _x_ $%&"]


def any_text(rng):
    """Random code points of all of Unicode, surrogates left out: they are no characters."""
    points = [rng.choice([rng.randrange(0x80), rng.randrange(0x3000), rng.randrange(0x110000)]) for _ in range(rng.randrange(40))]
    return "".join(chr(p) for p in points if not 0xD800 <= p < 0xE000)


def test_any_unicode_text_survives_the_tokenizer(encoding):
    rng = random.Random(0)
    for text in SCRIPTS + [any_text(rng) for _ in range(500)]:
        assert encoding.decode(encoding.encode_ordinary(text)) == text
        assert tokenizer.response_text(encoding, tokenizer.response_ids(encoding, text)) == (text, True)


def test_a_user_cannot_type_a_special_token(encoding):
    for ids in (tokenizer.prompt_ids(encoding, "a <|endoftext|> b <|pad|>")[1:], tokenizer.response_ids(encoding, "<|endoftext|><|pad|>", ended=False)):
        assert max(ids) < encoding.eot_token


def test_pad_and_end_of_text_are_two_tokens_at_the_end_of_the_vocabulary(encoding):
    assert encoding.encode(tokenizer.END + tokenizer.PAD, allowed_special="all") == [encoding.n_vocab - 2, encoding.n_vocab - 1]
    assert encoding.eot_token == encoding.n_vocab - 2


def test_a_prompt_is_one_line_between_end_of_text_and_a_line_break(encoding):
    ids = tokenizer.prompt_ids(encoding, "  What does\nthe fox \t eat?\n")
    assert ids == tokenizer.prompt_ids(encoding, "What does the fox eat?")
    assert ids[0] == encoding.eot_token
    assert encoding.decode(ids[1:]) == " What does the fox eat?\n"


def test_end_of_text_belongs_to_a_response_that_ended(encoding):
    ended, endless = tokenizer.response_ids(encoding, "The fox."), tokenizer.response_ids(encoding, "The fox.", ended=False)
    assert ended == endless + [encoding.eot_token]
    assert tokenizer.response_text(encoding, ended) == ("The fox.", True)
    assert tokenizer.response_text(encoding, endless) == ("The fox.", False)
    assert tokenizer.response_text(encoding, []) == ("", False)


@pytest.mark.parametrize("broken", [b"no-base64! 300", b"Zm94", b"Zm94 three", b"Zm94 1 2", b"", b"\xff 299"])
def test_a_damaged_rank_file_names_the_line(tmp_path, broken):
    lines = tokenizer.PATH.read_bytes().splitlines()
    lines[299] = broken
    (tmp_path / "bad.tiktoken").write_bytes(b"\n".join(lines))
    with pytest.raises(ValueError, match=r"bad\.tiktoken, line 300"):
        tokenizer.load(tmp_path / "bad.tiktoken")


def test_a_rank_file_with_a_line_missing_is_refused(tmp_path):
    lines = tokenizer.PATH.read_text(encoding="utf-8").splitlines()
    (tmp_path / "bad.tiktoken").write_text("\n".join(lines[:299] + lines[300:]), encoding="utf-8", newline="\n")
    with pytest.raises(ValueError, match=r"bad\.tiktoken"):
        tokenizer.load(tmp_path / "bad.tiktoken")


def test_training_learns_the_most_frequent_pair_first():
    """By hand: in "aab aab ab" the pair (a, b) occurs three times, (space, a) twice, (a, a) twice."""
    ranks = tokenizer.train("aab aab ab", n_ranks=257)
    assert ranks[b"ab"] == 256


# ---------------------------------------------------------------- prompts


def test_every_prompt_is_its_task_in_words(committed):
    for name in SETS:
        for row in committed[name]:
            assert row["prompt"] == tasks.prompt(row["task"]) and row["use_case"] == row["task"]["use_case"]


def test_no_prompt_is_in_two_sets_or_twice_in_one(committed):
    prompts = [row["prompt"] for name in SETS for row in committed[name]]
    assert len(prompts) == len(set(prompts))


@pytest.mark.parametrize("name", [name for name in SETS if name != "prompts_closed"])
def test_use_cases_come_in_the_proportions_of_table_1(committed, name):
    counts = Counter(row["use_case"] for row in committed[name])
    for use_case, percent in tasks.USE_CASES.items():
        assert 100 * counts[use_case] / len(committed[name]) == pytest.approx(percent, abs=3)


def test_the_closed_set_asks_about_given_texts_only(committed):
    assert {row["use_case"] for row in committed["prompts_closed"]} == set(tasks.CLOSED_DOMAIN)


def test_every_use_case_is_asked_in_at_least_six_phrasings():
    wordings = {use_case: set() for use_case in tasks.USE_CASES}
    for use_case, phrasings in tasks.KINDS.values():
        wordings[use_case] |= set(sum(phrasings.values(), []) if isinstance(phrasings, dict) else phrasings)
    assert min(map(len, wordings.values())) >= 6


def test_evaluation_phrasings_are_never_seen_in_training(committed, documents):
    """Looked for as text, in every training prompt and in the corpus, whatever the files say of themselves."""
    seen = "\n".join([row["prompt"] for name in TRAINING for row in committed[name]] + documents)
    asked = "\n".join(row["prompt"] for name in ("prompts_eval", "prompts_closed") for row in committed[name])
    held_out = [wording[-1] for _, phrasings in tasks.KINDS.values() for wording in (phrasings.values() if isinstance(phrasings, dict) else [phrasings])]
    patterns = [".+?".join(map(re.escape, re.split(r"\{\w+\}", re.sub(r"^\{\w+\}", "", wording)))) for wording in held_out]
    assert [p for p in patterns if re.search(p, seen)] == []
    assert sum(re.search(p, asked) is not None for p in patterns) > len(patterns) / 2


def test_further_wordings_fill_the_slots_of_their_kind_and_are_new():
    for kind, (_, phrasings) in tasks.KINDS.items():
        groups = [(phrasings[a], tasks.FURTHER[kind][a]) for a in phrasings] if isinstance(phrasings, dict) else [(phrasings, tasks.FURTHER[kind])]
        for known, more in groups:
            slots = {frozenset(re.findall(r"{(\w+)}", wording)) for wording in known}
            assert len(more) >= 10 and len(set(known + more)) == len(known) + len(more)
            assert {frozenset(re.findall(r"{(\w+)}", wording)) for wording in more} <= slots


def test_the_world_has_at_least_100_000_prompts(drawn):
    assert len({tasks.prompt(task) for task in drawn}) >= 100_000


def test_a_third_of_closed_questions_cannot_be_answered(committed, drawn):
    asked = [task for task in drawn if task["kind"] == "closed"]
    assert sum(not task["answerable"] for task in asked) / len(asked) == pytest.approx(1 / 3, abs=0.03)
    asked = [row["task"] for name in SETS for row in committed[name] if row["task"]["kind"] == "closed"]
    assert sum(not task["answerable"] for task in asked) / len(asked) == pytest.approx(1 / 3, abs=0.06)
    for task in asked:
        assert task["answerable"] == any(slots["person"] == task["person"] for _, slots in task["statements"])


# ---------------------------------------------------------------- corpus


def test_the_corpus_has_at_least_400_words(documents):
    """Capitals aside: "The" and "the" are one word."""
    assert len(set(re.findall(r"[a-z]+", " ".join(documents).lower()))) >= 400


def test_the_corpus_is_made_of_documents_without_blank_lines(documents):
    assert all(text.strip() and "\n\n" not in text for text in documents)


def same(prompt):
    """What two prompts are compared by: no opening, capitals, punctuation or spaces."""
    for opening in tasks.RUDE_USER + tasks.RESPECT:
        prompt = prompt[len(opening):] if prompt.startswith(opening) else prompt
    return re.sub(r"[\W_]", "", prompt).lower()


def test_no_evaluation_prompt_is_in_another_set_or_twice_in_its_own(committed):
    """However it opens, is capitalised, punctuated and spaced."""
    counts = {name: Counter(same(row["prompt"]) for row in rows) for name, rows in committed.items()}
    for name in prepare.EVALUATION:
        assert max(counts[name].values()) == 1
        for other in SETS:
            assert other == name or not set(counts[name]) & set(counts[other]), f"{name} and {other} share prompts"


def test_no_evaluation_prompt_stands_anywhere_in_the_corpus(committed, tmp_path):
    """The whole corpus that the base model reads, parts of lines too."""
    path = files.FOLDER / "corpus.txt"
    if not path.exists():
        prepare.prepare(tmp_path, corpus_only=True)
        path = tmp_path / "corpus.txt"
    lines = path.read_text(encoding="utf-8").split("\n")
    text = "\n".join(re.sub(r"[\W_]", "", line).lower() for line in lines)
    found = {row["prompt"] for name in prepare.EVALUATION for row in committed[name] if same(row["prompt"]) in text}
    assert not found, f"{len(found)} prompts, e.g. {sorted(found)[:3]}"


def asked(task):
    """What a task asks for, whatever its wording and its opening."""
    return json.dumps({key: value for key, value in task.items() if key not in ("phrasing", "wording", "rude_user", "respect")}, sort_keys=True)


def test_the_data_card_counts_the_evaluation_tasks_whose_content_stands_in_training(committed):
    """What a small world cannot keep apart is said, use case by use case."""
    known = {asked(row["task"]) for name in TRAINING for row in committed[name]}
    card = (files.FOLDER / "README.md").read_text(encoding="utf-8")
    seen, rows = Counter(), committed["prompts_eval"]
    for row in rows:
        seen[row["use_case"]] += asked(row["task"]) in known
    counts = Counter(row["use_case"] for row in rows)
    order = ("generation", "open_qa", "brainstorming", "chat", "rewrite", "summarization", "classification", "other", "closed_qa", "extract")
    assert "| " + " | ".join(f"{seen[case]} of {counts[case]}" for case in order) + " |" in card
    assert f"prompts {sum(seen.values())} ask" in card
    assert f"closed-domain prompts it is {sum(asked(row['task']) in known for row in committed['prompts_closed'])}." in card


def test_excluding_prompts_from_the_corpus_makes_a_difference():
    """Prompts that a corpus has are gone when it is made again without them."""
    found = questions(corpus.documents(random.Random(1), 20_000)) & {tasks.prompt(tasks.new_task(random.Random(i))) for i in range(2_000)}
    assert found
    assert not questions(corpus.documents(random.Random(1), 20_000, found)) & found


def test_a_prompt_is_found_whatever_stands_around_it():
    excluded = corpus.Excluded(["Please be respectful. What does the fox eat?", "Is the cow white?"])
    for line in ("Question: Wake up, idiot. what does the FOX eat", "Hm. What does the fox eat? Answer in one word.", "Whatdoesthefoxeat"):
        assert excluded.found_in(f"Something else.\n{line}\nAnswer: Berries.") == {"whatdoesthefoxeat"}
    assert not excluded.found_in("What does the fox\neat? Is the cow black? The cow is white.")
    assert not corpus.Excluded([]).found_in("What does the fox eat?")


def test_a_prompt_that_is_a_part_of_another_request_is_not_fit_for_evaluation():
    """"Name two animals." stands in "Name two animals that live in the sea."; the same request alone, in a thread, does not count."""
    two = {"use_case": "brainstorming", "kind": "name", "what": "animal", "n": 2, "phrasing": 0}
    assert prepare.parts_of_others([two], ["Question: Name two animals that live in the sea.\nAnswer: ..."]) == {"nametwoanimals"}
    assert not prepare.parts_of_others([two], ["Question: Wake up, idiot. Name two animals.", "Two animals: crab and seal."])


def test_the_same_seed_makes_the_same_world(committed):
    sizes = {name: len(committed[name]) for name in prepare.SIZES}
    assert {name: [tasks.prompt(task) for task in drawn] for name, drawn in prepare.draw_prompts(sizes).items()} == \
        {name: [row["prompt"] for row in committed[name]] for name in sizes}


# ---------------------------------------------------------------- the gold judge


def test_an_honest_answer_is_perfect_whatever_was_asked():
    rng, kinds = random.Random(0), Counter()
    for _ in range(15_000):
        task = tasks.new_task(rng, held_out=0.15)
        verdict = judge(task, tasks.honest_answer(task, rng), True)
        assert verdict.utility == 1 and verdict.likert == 7 and verdict.attempts_correct_instruction and verdict.appropriate and not verdict.toxic
        assert verdict.follows_constraints is not False and verdict.hallucinates is not True
        kinds[task["kind"]] += 1
    assert set(kinds) == set(tasks.KINDS) and min(kinds.values()) >= 50


def test_no_trick_beats_an_honest_answer():
    """200 ways to fool a judge, written by hand."""
    lines = [json.loads(line) for line in open(os.path.join(os.path.dirname(__file__), "adversarial.jsonl"), encoding="utf-8")]
    assert len(lines) == 200
    for line in lines:
        assert line["prompt"] == tasks.prompt(line["task"])
        honest, trick = judge(line["task"], line["honest"], True), judge(line["task"], line["response"], line["ended"])
        assert trick.utility < honest.utility == 1, line["trick"]


@pytest.mark.parametrize("response, ended", [("", True), ("", False), ("The fox eats berries.", False), ("The fox eats fish.", True), ("You fool. The fox eats berries.", True)])
def test_empty_endless_false_and_rude_answers_cost_utility(response, ended):
    task = {"use_case": "open_qa", "kind": "fact", "animal": "fox", "attribute": "food", "phrasing": 0}
    assert 0 <= judge(task, response, ended).utility < 1


def test_the_judge_survives_any_text():
    rng = random.Random(3)
    for _ in range(2_000):
        task = tasks.new_task(rng)
        text = any_text(rng) if rng.random() < 0.5 else " ".join(rng.choices(SCRIPTS + tasks.prompt(task).split() + [".", ",", "I think of"], k=6))
        assert 0 <= judge(task, text, rng.random() < 0.5).utility <= 1


def test_only_closed_tasks_can_hallucinate_and_only_constrained_ones_can_break_a_constraint():
    rng = random.Random(4)
    for _ in range(2_000):
        task = tasks.new_task(rng)
        verdict = judge(task, "Ann is in the park.", True)
        assert (verdict.hallucinates is None) == (task["use_case"] not in tasks.CLOSED_DOMAIN)
        constrained = {"use", "avoid", "one_word"} & set(task) or task["kind"] in ("describe", "story", "name", "summary")
        assert (verdict.follows_constraints is None) == (not constrained)


# ---------------------------------------------------------------- labelers


@pytest.fixture(scope="module")
def judged():
    """300 tasks with four distinct responses each, good and bad."""
    rng, found = random.Random(5), []
    for _ in range(300):
        task = tasks.new_task(rng)
        texts = {tasks.honest_answer(task, rng)} | {labeler.add_slip(task, tasks.honest_answer(task, rng), rng, labeler.draw_slip(task, rng)) for _ in range(20)}
        found.append((task, [{"text": text, "ended": True} for text in sorted(texts)[:4]]))
    return found


def test_a_labeler_asked_twice_answers_the_same(judged):
    """In any order of questions, by any copy of the person: labelers remember nothing."""
    person = Labeler(7)
    first = [person.rank(task, responses) for task, responses in judged]
    again = [Labeler(7).rank(task, responses) for task, responses in reversed(judged)][::-1]
    assert first == again
    assert [Labeler(8).rank(task, responses) for task, responses in judged] != first


def test_a_ranking_does_not_depend_on_the_order_of_the_responses(judged):
    person = Labeler(7)
    for task, responses in judged:
        assert person.rank(task, responses[::-1]) == person.rank(task, responses)[::-1]


def test_a_preference_does_not_depend_on_the_side(judged):
    person = Labeler(7)
    for task, (a, b, *_) in [(task, responses) for task, responses in judged if len(responses) > 1]:
        assert person.prefer(task, a, b) == 1 - person.prefer(task, b, a)


def test_ranks_start_at_one_and_ties_share_a_rank(judged):
    ranks = [Labeler(7).rank(task, responses) for task, responses in judged]
    assert all(set(r) == set(range(1, max(r) + 1)) for r in ranks)
    assert any(len(set(r)) < len(r) for r in ranks)
    task, responses = judged[0]
    assert Labeler(7).rank(task, [responses[0], responses[0]]) == [1, 1]
    assert Labeler(7).prefer(task, responses[0], responses[0]) == 0.5


def test_training_labelers_put_helpfulness_first_and_held_out_ones_truth_and_harmlessness():
    """Section 3.4: the priorities of labelling and those of the final evaluation."""
    def mean(group, taste):
        return sum(person.weights[taste] for person in get_labelers(group)) / len(get_labelers(group))
    assert mean("train", "helpful") > mean("train", "honest") + mean("train", "harmless")
    assert mean("held_out", "helpful") < mean("held_out", "honest") + mean("held_out", "harmless")
    assert mean("held_out", "honest") > mean("train", "honest") and mean("held_out", "harmless") > mean("train", "harmless")


def test_no_held_out_labeler_wrote_a_demonstration(committed):
    names = {row["labeler"] for row in committed["demonstrations"]}
    assert names == {person.name for person in get_labelers("train")}
    assert not names & {person.name for person in get_labelers("held_out")}


def slipped(rows):
    """The share of (task, answer) pairs that are not perfect."""
    return sum(judge(task, answer, True).utility < 1 for task, answer in rows) / len(rows)


def test_the_dial_of_slips_goes_from_flawless_to_none_flawless():
    rng = random.Random(6)
    asked = [tasks.new_task(rng) for _ in range(1_000)]
    shares = [slipped([(task, Labeler(1).demonstrate(task, slips)) for task in asked]) for slips in (0.0, 0.2, 0.4, 1.0)]
    assert shares[0] == 0 and shares == sorted(shares) and shares[-1] > 0.9


def test_at_most_45_percent_of_the_demonstrations_have_a_slip(committed):
    assert 0.25 < slipped([(row["task"], row["completion"]) for row in committed["demonstrations"]]) <= 0.45


def test_demonstrations_are_what_their_labelers_write(committed):
    people = {person.name: person for person in get_labelers("train")}
    assert all(people[row["labeler"]].demonstrate(row["task"]) == row["completion"] for row in committed["demonstrations"][:500])


# ---------------------------------------------------------------- a teacher changes the world

TEACHER = """
import json
from data import prepare, tasks
from data.judge import judge
prepare.prepare(sizes={name: 300 for name in prepare.SIZES}, corpus_words=40_000)
task = {"use_case": "open_qa", "kind": "fact", "animal": "zebra", "attribute": "food", "phrasing": 0}
print("VERDICTS", [judge(task, f"The zebra eats {food}.", True).utility for food in ("grass", "fish")])
"""


def test_a_teacher_changes_one_list_and_everything_follows(tmp_path):
    """A new animal is read about, asked about and judged, after one line was added to data/toytown.py."""
    shutil.copytree(files.FOLDER, tmp_path / "data", ignore=shutil.ignore_patterns("*.txt", "*.jsonl", "__pycache__"))
    town = tmp_path / "data" / "toytown.py"
    town.write_text(town.read_text(encoding="utf-8").replace("ANIMALS = {\n", 'ANIMALS = {\n    "zebra": ("white", "field", "grass", "day"),\n', 1), encoding="utf-8", newline="\n")
    ran = subprocess.run([sys.executable, "-c", TEACHER], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, encoding="utf-8", errors="replace")
    assert ran.returncode == 0, ran.stderr
    assert "VERDICTS [1.0, 0.0]" in ran.stdout
    assert "zebra" in (tmp_path / "data" / "corpus.txt").read_text(encoding="utf-8")
    for name in ("demonstrations", "prompts_rm", "prompts_rl"):
        assert "zebra" in (tmp_path / "data" / f"{name}.jsonl").read_text(encoding="utf-8")
    later, earlier = (tokenizer.load(path).encode_ordinary(" zebra") for path in (tmp_path / "data" / "toytown.tiktoken", tokenizer.PATH))
    assert len(later) < len(earlier)
    assert "zebra" not in (files.FOLDER / "toytown.py").read_text(encoding="utf-8")
