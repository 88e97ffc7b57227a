"""What the texts say to type: the commands, options and files that pages, notebooks and errors name exist."""

import ast
import json
import re
import shlex
import textwrap
from pathlib import Path

import pytest
import typer

from labkit.cli import app
from labkit.layout import ROOT

README = ROOT / "README.md"
# CHANGELOG.md is left out: it may name what has gone.
PATTERNS = ("CONTRIBUTING.md", "benchmarks/*.md", "data/**/*.md", "deploy/*.md", "evidence/README.md")
PAGES = [README, *(path for pattern in PATTERNS for path in sorted(ROOT.glob(pattern)))]
PATTERNS = ("notebooks/*.ipynb", "notebooks/routes/*.yaml", "data/landscape/*.csv", "data/course.yaml")
LESSONS = [path for pattern in PATTERNS for path in sorted(ROOT.glob(pattern))]
SOURCES = sorted(ROOT.glob("labkit/**/*.py"))

LABKIT = typer.main.get_command(app)
ENDS = {">", "2>&1", "&", "&&", "|", ";"}
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
A_FILE = re.compile(r"(?<![\w./{}-])(?:labkit|tests|data|notebooks|benchmarks|deploy|results)/[\w./-]*\w")
FENCE = re.compile(r"^```\w*\n(.*?)^```$", re.M | re.S)
CODE_LINE = re.compile(r"^(?: {4,}|\t).*\n?", re.M)


def literals(source: str) -> list[str]:
    """The texts in Python code; where an f-string puts something in, X stands."""
    tree = ast.parse(source)
    joined = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    parts = {id(part) for node in joined for part in node.values}
    plain = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in parts]
    filled = ("".join(part.value if isinstance(part, ast.Constant) else "X" for part in node.values) for node in joined)
    return [*filled, *(node.value for node in plain if isinstance(node.value, str))]


def texts(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return literals(text)
    if path.suffix == ".ipynb":
        return ["".join(cell["source"]) for cell in json.loads(text)["cells"]]
    return [text]


def indented(text: str) -> str:
    """Fenced code as indented code, so that both are read alike."""
    return FENCE.sub(lambda found: textwrap.indent(found[1], "    "), text)


def named(text: str) -> list[str]:
    """The commands in backticks: complete ones, and those with only what the sentence is about."""
    spans = re.findall(r"`([^`]+)`", CODE_LINE.sub("", indented(text)))
    return [span for span in spans if re.match(r"(?:\.venv/bin/)?labkit\s", span)]


def to_type(text: str) -> list[str]:
    """The commands on lines of code, as they are typed."""
    code = re.sub(r"\\\n\s*", "", "".join(CODE_LINE.findall(indented(text))))
    return [line.strip() for line in code.splitlines() if re.search(r"(?:^|\s|/)labkit(?:\.cli)?\s", line)]


def words_of(line: str) -> list[str]:
    """The words after `labkit`, as a shell passes them."""
    words = shlex.split(line, comments=True)
    first = next(at for at, word in enumerate(words) if re.search(r"(?:^|[/\\])labkit(?:\.cli)?$", word))
    words = words[first + 1 :]
    return words[: next((at for at, word in enumerate(words) if word in ENDS), None)]


def command_of(words: list[str]):
    """The command that the words name, and what follows it."""
    command = LABKIT
    while words and words[0] != "--help" and hasattr(command, "commands"):
        assert words[0] in command.commands, f"there is no command {words[0]}"
        command, words = command.commands[words[0]], words[1:]
    return command, words


def options_of(command) -> dict[str, bool]:
    """Each option's spellings, and whether it takes a value."""
    kinds = [one for one in command.params if one.param_type_name == "option"]
    return {"--help": False} | {name: not one.is_flag for one in kinds for name in [*one.opts, *one.secondary_opts]}


def wrong_in(line: str) -> str:
    """What is wrong with a command that a sentence names; it may leave an argument or the last value out."""
    command, words = command_of(words_of(line))
    places = [one.nargs for one in command.params if one.param_type_name == "argument"]
    known, free = options_of(command), 0
    while words and words[0] != "--":
        word, *words = words
        if word.startswith("--") and word not in known:
            return f"there is no option {word}"
        free += not word.startswith("--")
        words = words[1:] if known.get(word) else words
    return "" if -1 in places or free <= len(places) else f"{free} arguments, and it takes {len(places)}"


def every_command(command=LABKIT, name: str = ""):
    """(name, command) of all commands, those in groups too."""
    for word, one in getattr(command, "commands", {}).items():
        yield from every_command(one, f"{name} {word}".strip())
    if not hasattr(command, "commands"):
        yield name, command


def test_commands_in_a_sentence_exist():
    found = [(path, line) for path in [*PAGES, *LESSONS, *SOURCES] for text in texts(path) for line in named(text)]
    assert len(found) > 200
    assert [(path.name, line, wrong_in(line)) for path, line in found if wrong_in(line)] == []


def test_commands_on_a_line_of_code_can_be_typed():
    found = [(path, line) for path in PAGES for line in to_type(path.read_text(encoding="utf-8"))]
    assert len(found) > 30
    for path, line in found:
        command, words = command_of(words_of(line))
        try:
            command.make_context(command.name, words)
        except Exception as error:  # typer's own refusal, which has no traceback for its reader
            pytest.fail(f"{path.name}: {line}: {error}")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("labkit memory MODEL --quant AWQ", ""),
        ("labkit decide --failed-cases", ""),
        ("labkit guard --budget 3 -- make run", ""),
        ("labkit memory MODEL --quantize AWQ", "there is no option --quantize"),
        ("labkit verify PACK OTHER", "2 arguments, and it takes 1"),
    ],
)
def test_a_wrong_command_is_found(line, reason):
    assert wrong_in(line) == reason


def test_a_command_that_is_gone_is_found():
    with pytest.raises(AssertionError, match="there is no command judge"):
        wrong_in("labkit judge PACK")


def test_options_that_errors_name_exist():
    known = {option for _, command in every_command() for option in options_of(command)}
    others = {"--force-reinstall", "--upgrade"}  # pip's
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        raised = [
            node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "LabError"
        ]
        said = {option for node in raised for text in literals(ast.unparse(node)) for option in OPTION.findall(text)}
        assert said - known - others == set(), path.name


def test_files_that_a_text_names_exist():
    made = [line.rstrip("/") for line in (ROOT / ".gitignore").read_text(encoding="utf-8").split() if "/" in line]
    for path in [*PAGES, *LESSONS, *ROOT.glob("labkit/cli/*.py")]:
        for name in (name for text in texts(path) for name in A_FILE.findall(text)):
            there = (ROOT / name).exists() or (path.parent / name).exists() or name.startswith(tuple(made))
            assert there, f"{path.name}: {name}"


def test_names_stand_in_the_file_that_a_text_gives_for_them():
    pages = "\n".join(path.read_text(encoding="utf-8") for path in PAGES)
    found = re.findall(r"`(\w+)`(?: in\s+| \()`(labkit/[\w/]+\.py)`", pages)
    assert len(found) > 5
    for name, file in found:
        assert re.search(rf"\b{name}\b", (ROOT / file).read_text(encoding="utf-8")), f"{name}: {file}"


def test_the_readme_names_every_command():
    readme = README.read_text(encoding="utf-8")
    lines = [*named(readme), *to_type(readme)]
    told = {" ".join(words_of(line)[:2]) for line in lines} | {words_of(line)[0] for line in lines}
    assert {name for name, _ in every_command()} - told == set()


@pytest.mark.parametrize(("name", "command"), [pytest.param(*one, id=one[0]) for one in every_command()])
def test_every_command_and_option_says_what_it_is(name, command):
    assert command.help
    silent = [one.opts[0] for one in command.params if one.opts[0] != "--help" and not getattr(one, "help", None)]
    assert silent == []
