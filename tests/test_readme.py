"""The documentation agrees with the code: links, line ranges, commands and numbers.

Where a test here fails, its message shows the line as it should be.
"""
import ast
import dataclasses
import importlib.util
import io
import json
import pkgutil
import re
import statistics
import sys
from pathlib import Path

import pytest

import model
import ppo
import reward
import sft
from tests.floors import FLOORS
from tests.mutations import BUGS

ROOT = Path(__file__).parent.parent
CARDS = ("README.md", "data/README.md", "notebooks/README.md", "tests/README.md")
SCRIPTS = {"model.py": model, "sft.py": sft, "reward.py": reward, "ppo.py": ppo}


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def one_line(text):
    """The text with every run of white space as one space: line breaks do not matter."""
    return " ".join(text.split())


def section(name, heading):
    """What stands below a heading, up to the next heading of that level or of one above it."""
    level = heading.split(" ")[0]
    text = read(name).split(f"\n{heading}\n", 1)[1]
    return re.split(rf"\n#{{1,{len(level)}}} ", text, maxsplit=1)[0]


def code_blocks(text):
    return re.findall(r"^```\n(.*?)^```$", text, re.M | re.S)


def without_blocks(text):
    return re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def table(text):
    """The rows of the first table, without its head: lists of cells."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [cells(line) for line in lines[2:]]


# ---------------------------------------------------------------- README.md


def test_the_readme_is_short():
    words = len(read("README.md").split())
    assert words <= 1_800, f"README.md has {words:,} words"


def symbol_lines(file, symbol):
    """First line (decorators included) and last line of a class or function of a script."""
    for node in ast.parse(read(file)).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == symbol:
            first = node.decorator_list[0] if node.decorator_list else node
            return first.lineno, node.end_lineno
    raise AssertionError(f"README.md, reading path: {file} has no {symbol}")


def reading_path():
    """Lines of the reading path's table, e.g.
    | `sft.py` | from `sft_batch` to `sft_loss` | lines 57-69 | 10 | masked loss |"""
    text = section("README.md", "## The reading path")
    return [line for line in text.splitlines() if line.startswith("| `")]


def test_the_reading_path_names_the_lines_where_the_mathematics_is():
    right = []
    for line in reading_path():
        file, symbols, _, *rest = cells(line)
        begin, end = re.fullmatch(r"from `(\w+)` to `(\w+)`", symbols).groups()
        first, _ = symbol_lines(file.strip("`"), begin)
        _, last = symbol_lines(file.strip("`"), end)
        assert first < last, f"README.md, reading path: in {file} {begin} comes after {end}"
        right.append("| " + " | ".join([file, symbols, f"lines {first}-{last}", *rest]) + " |")
    should_be = "\n".join(right)
    assert reading_path() == right, f"README.md, the reading path should be:\n\n{should_be}\n"


def test_the_reading_path_leads_through_all_four_scripts_in_order():
    files = [cells(line)[0].strip("`") for line in reading_path()]
    assert list(dict.fromkeys(files)) == list(SCRIPTS)


def test_the_chat_of_the_readme_is_what_the_committed_model_answers(monkeypatch, capsys):
    block = code_blocks(read("README.md"))[0]
    typed, path, shown = re.fullmatch(
        r"\$ printf '(.*?)' \| python model\.py --chat (\S+)\n(.*)", block, re.S
    ).groups()
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    model.chat(str(ROOT / path), "auto")
    answers = capsys.readouterr().out
    assert shown == answers, f"README.md shows other answers than these:\n{answers}"


def numbers(text):
    """Numbers with three decimals, as the table of results has them."""
    return re.findall(r"(?<![\d.])\d\.\d{3}(?!\d)", text)


def test_the_results_of_the_readme_are_those_of_the_full_table():
    full, = code_blocks(section("notebooks/README.md", "## Results"))
    for name, *values in table(section("README.md", "## Results")):
        ours = set(numbers(" ".join(values)))
        found = [line for line in full.splitlines() if ours <= set(numbers(line))]
        assert ours and found, f"README.md, {name}: in no line of notebooks/README.md's table"


def test_the_answers_of_the_readme_are_among_those_of_all_models():
    titles = {"base": "GPT", "SFT baseline": "SFT", "PPO-ptx": "PPO-ptx"}
    everything, = code_blocks(section("notebooks/README.md", "## Five prompts, six models"))
    by_prompt = dict(part.split("\n", 1) for part in everything.split("\n\n"))
    shown, = code_blocks(section("README.md", "## Three prompts, three models"))
    for part in shown.split("\n\n"):
        prompt, *lines = part.strip().splitlines()
        assert len(lines) == len(titles)
        for line in lines:
            title, response = line.strip().split(": ", 1)
            assert f" {titles[title]}: {response}\n" in by_prompt[prompt] + "\n"


def test_every_lesson_is_listed():
    listed = re.findall(r"^- `(\d\w?_\w+)`", section("README.md", "## The lessons"), re.M)
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    lessons = [path.stem for path in notebooks]
    rows = table(section("notebooks/README.md", "## The classroom"))
    described = [row[0].strip("`") for row in rows]
    assert listed == lessons == described


# ---------------------------------------------------------------- all four


def anchor(heading):
    """The anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def headings(path):
    text = without_blocks(path.read_text(encoding="utf-8"))
    return {anchor(title) for title in re.findall(r"^#+ (.*)$", text, re.M)}


@pytest.mark.parametrize("name", CARDS)
def test_every_link_and_picture_exists(name):
    missing = []
    for target in re.findall(r"\]\(([^)\s]+)\)", read(name)):
        if target.startswith("https://"):
            continue
        file, _, heading = target.partition("#")
        path = (ROOT / name).parent / file if file else ROOT / name
        if not path.exists() or heading and heading not in headings(path):
            missing.append(target)
    assert not missing, f"{name}: {', '.join(missing)}"


def commands(text):
    """(script or module, rest of the command) of every `python ...` in code."""
    indented = re.findall(r"^    .*$", text, re.M)
    spans = re.findall(r"`([^`]+)`", without_blocks(text))
    code = "\n".join([*code_blocks(text), *indented, *map(one_line, spans)])
    return re.findall(r"python (-m [\w.]+|[\w/]+\.py)([^\n&|#`]*)", code)


@pytest.mark.parametrize("name", CARDS)
def test_every_command_has_its_script_or_module_and_its_flags(name):
    for program, rest in commands(read(name)):
        if program.startswith("-m "):
            module = program.removeprefix("-m ")
            assert importlib.util.find_spec(module), f"{name}: there is no module {module}"
        else:
            assert (ROOT / program).exists(), f"{name}: there is no {program}"
        if program in SCRIPTS:
            fields = dataclasses.fields(SCRIPTS[program].Config)
            known = {field.name for field in fields}
            unknown = set(re.findall(r"--(\w+)", rest)) - known
            assert not unknown, f"{name}: {program} has no flags {unknown}"


def test_commands_are_found_in_the_readme():
    assert {program for program, _ in commands(read("README.md"))} >= {
        "model.py", "sft.py", "reward.py", "ppo.py", "-m pytest", "-m tests.mutations"
    }


def test_the_section_that_requirements_name_exists():
    title, = re.findall(r'see "([^"]+)" in README.md', read("requirements.txt"))
    assert anchor(title) in headings(ROOT / "README.md")


def all_test_files():
    paths = (ROOT / "tests").glob("test_*.py")
    return sorted(path.name for path in paths)


def test_every_test_file_is_described():
    described = re.findall(r"`(test_\w+\.py)`", section("tests/README.md", "## The tests"))
    assert sorted(described) == all_test_files()


@pytest.mark.parametrize("name", ["README.md", "tests/README.md"])
def test_the_number_of_bugs_is_stated(name):
    stated = set(re.findall(r"(\d+) bugs", one_line(read(name))))
    assert stated == {str(len(BUGS))}, f"{name}: the gallery has {len(BUGS)} bugs"


def test_the_number_of_tests_is_stated(request):
    """Known only where the whole suite was collected."""
    items = request.session.items
    collected = {item.path.name for item in items}
    selected = request.config.option.keyword or "::" in " ".join(request.config.args)
    if selected or sorted(collected) != all_test_files():
        pytest.skip("only in a run of the whole suite")
    right = f"There are {len(items):,} tests."
    assert right in one_line(read("tests/README.md")), f"tests/README.md: {right}"


# ---------------------------------------------------------------- notebooks/README.md


def test_every_function_of_the_table_from_paper_to_code_exists():
    text = section("notebooks/README.md", "## From the paper to the code")
    names = re.findall(r"`((?:data|model|sft|reward|ppo)\.[\w.]+)`", text)
    assert len(names) > 10
    for name in names:
        assert pkgutil.resolve_name(name)


SEEDS_TABLE = {
    "gap in gold utility between the SFT baseline and a perfect answerer closed": "gap_closed",
    "lead of PPO-ptx over a half, as a share of a perfect answerer's": "win_share_of_ceiling",
    "gold utility of PPO-ptx": "utility_ppo_ptx",
    "gold utility of PPO": "utility_ppo",
    "gold utility of the SFT baseline": "utility_sft",
    "PPO-ptx preferred to GPT": "preferred_to_gpt",
    "PPO-ptx preferred to GPT prompted": "preferred_to_gpt_prompted",
    "PPO-ptx preferred to best of 16": "preferred_to_best_of_16",
    "reward model's accuracy, training labelers": "rm_accuracy_train",
    "reward model's accuracy, held-out labelers": "rm_accuracy_heldout",
    "reward model's accuracy, the judge's order": "rm_accuracy_gold",
    "hallucination, PPO-ptx / GPT": "hallucination_against_gpt",
    "toxic answers, PPO-ptx / SFT baseline": "toxic_against_sft",
    "corpus loss above the base model, PPO-ptx": "corpus_loss_above_gpt",
    "SFT baseline fully correct": "sft_fully_correct",
}


def test_the_three_seeds_are_the_recorded_ones():
    recorded = json.loads(FLOORS.read_text(encoding="utf-8"))
    rows = {row[0]: row[1:5] for row in table(section("notebooks/README.md", "### Three seeds"))}
    for title, key in SEEDS_TABLE.items():
        values = [abs(value) for value in recorded[key]]
        for shown, value in zip(rows[title], [*values, statistics.mean(values)]):
            shown = shown.strip("*")
            stated = float(shown.rstrip("%")) / (100 if shown.endswith("%") else 1)
            decimals = len(shown.rstrip("%").split(".")[1]) + 2 * shown.endswith("%")
            # half a unit of the last place shown, and the rounding of the record
            assert abs(stated - value) <= 0.5 * 10 ** -decimals + 1e-4, f"{title}: {value:.4f}"
