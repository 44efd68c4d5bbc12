"""Reads the project's Markdown: fences with their markers, tables, links and the commands that it names.

A fence in a document is executed by ``test_docs_blocks``. Where it cannot be, the line above it says so and why:
``<!-- not executed: needs a GPU -->``. It is then parsed all the same.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import click
from tests_support import ROOT

from edgekiln.pipeline.cli import cli

DOCUMENTS = tuple(
    sorted([*ROOT.glob("docs/**/*.md"), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md"))])
)
COMMANDS_PAGE, RECIPE_PAGE, PYTHON_PAGE = (
    ROOT / "docs" / name for name in ("commands.md", "recipe.md", "python-api.md")
)

LANGUAGES = {"sh", "python", "cpp", "toml", "json", "yaml", "text", ""}
_FENCE = re.compile(
    r"^(?:<!-- not executed: (?P<reason>[^\n]+?) -->\n)?```(?P<language>\w*)\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_INLINE = re.compile(r"`([^`\n]+)`")
_EDGEKILN = re.compile(r"(?:\S*/)?edgekiln$")


WHEEL = re.compile(r"edgekiln-([\w.]+)-py3-none-any\.whl")
"""The wheel's file name, with its version."""


def name_of(document: Path) -> str:
    return str(document.relative_to(ROOT))


@dataclass(frozen=True)
class Fence:
    """One fenced block: where it begins, its language and text, and why it is not executed (``None``: it is)."""

    document: Path
    line: int
    language: str
    body: str
    reason: str | None

    @property
    def place(self) -> str:
        return f"{name_of(self.document)}:{self.line}"

    def lines(self) -> list[str]:
        """Shell lines, continued ones put together, without comments and blank ones."""
        joined = self.body.replace("\\\n", " ")
        return [line for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def fences(document: Path, language: str | None = None) -> list[Fence]:
    text = document.read_text("utf-8")
    found = []
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start("body"))
        found.append(Fence(document, line, match["language"], match["body"], match["reason"]))
    return [fence for fence in found if language in {None, fence.language}]


def prose(document: Path) -> str:
    """The text without its fenced blocks."""
    return _FENCE.sub("", document.read_text("utf-8"))


def table(document: Path, *header: str) -> list[list[str]]:
    """The rows of the tables with that header, each a list of cells."""
    found, inside = [], False
    for line in prose(document).splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else None
        if cells == list(header):
            inside = True
        elif cells is None:
            inside = False
        elif inside and not set("".join(cells)) <= set("-: "):
            found.append(cells)
    assert found, f"{document.name} has no table {header}"
    return found


def anchors(document: Path) -> set[str]:
    """The headings as GitHub turns them into anchors; a repeated one gets a number."""
    seen: dict[str, int] = {}
    for title in re.findall(r"^#+ (.*)$", prose(document), re.MULTILINE):
        anchor = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        seen[anchor] = seen.get(anchor, -1) + 1
    return set(seen) | {f"{name}-{i}" for name, count in seen.items() for i in range(1, count + 1)}


def links(document: Path) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", prose(document))


# -- commands


def shell_commands(line: str) -> list[list[str]]:
    """The commands of one shell line, each as its words: split at pipes and ``&&``, redirections left out."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.commenters, lexer.whitespace_split = "#", True
    commands: list[list[str]] = [[]]
    words = iter(lexer)
    for word in words:
        if set(word) <= set("|&;"):
            commands.append([])
        elif set(word) <= set("<>"):
            next(words)
        else:
            commands[-1].append(word)
    return [command for command in commands if command]


# Of a branch that is merged later. To be emptied when it is, or `test_nothing_waits` fails.
PENDING = ()


def is_pending(command: list[str]) -> bool:
    line = shlex.join(["edgekiln", *command[1:]]) if is_edgekiln(command) else ""
    return any(f"{line} ".startswith(f"{prefix} ") for prefix in PENDING)


def is_edgekiln(command: list[str]) -> bool:
    return bool(_EDGEKILN.match(command[0]))


def edgekiln_commands(fence: Fence) -> list[list[str]]:
    """The arguments of every edgekiln command in a block."""
    commands = [command for line in fence.lines() for command in shell_commands(line)]
    return [command[1:] for command in commands if is_edgekiln(command) and not is_pending(command)]


def edgekiln_commands_in_prose(document: Path) -> list[list[str]]:
    """Those in code spans, without placeholders such as ``COMMAND`` and ``[OPTIONS]``."""
    texts = (text for text in _INLINE.findall(prose(document)) if re.match(r"edgekiln( [a-z-]|$)", text))
    commands = ([w for w in shlex.split(text) if w[0] != "[" and not w.isupper()] for text in texts)
    return [command[1:] for command in commands if not is_pending(command)]


def options_in_prose(document: Path) -> set[str]:
    return {
        text.split()[0].partition("=")[0]
        for text in _INLINE.findall(prose(document))
        if text.startswith("--")
    }


def find_command(arguments: list[str]) -> tuple[click.Command, list[str], list[str]]:
    """The command that a command line means, its path, and the arguments left for it."""
    command, context = cli, click.Context(cli, info_name="edgekiln")
    arguments = [argument for argument in arguments if argument not in options_of(cli)]
    path: list[str] = []
    while isinstance(command, click.Group) and arguments and not arguments[0].startswith("-"):
        path.append(arguments[0])
        command, arguments = command.get_command(context, arguments[0]), arguments[1:]
        assert command is not None, f"there is no command {' '.join(path)}"
    return command, path, arguments


def options_of(command: click.Command) -> set[str]:
    """Every spelling of a command's options."""
    options = (parameter for parameter in command.params if isinstance(parameter, click.Option))
    return {"--help", "-h"} | {name for option in options for name in (*option.opts, *option.secondary_opts)}


def all_options() -> set[str]:
    def below(command: click.Command) -> set[str]:
        inner = command.commands.values() if isinstance(command, click.Group) else ()
        return options_of(command).union(*map(below, inner))

    return below(cli)
