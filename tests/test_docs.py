"""The documents name only what exists: recipes load, commands parse, links lead somewhere, tables match the code."""

import ast
import itertools
import re
import shlex
import sys
from typing import get_args

import click
import pytest
from click.testing import CliRunner
from tests_support import ROOT

from edgekiln.pipeline.cli import cli
from edgekiln.pipeline.recipe import BuildSettings, load_recipe
from edgekiln.runtime.backends import CPU_BACKENDS, Backend
from edgekiln.runtime.bundle import PREFERENCE
from edgekiln.runtime.errors import ExitCode
from edgekiln.runtime.spec import Precision

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TENSORRT, JETSON = ROOT / "docs/tensorrt.md", ROOT / "docs/jetson.md"
BACKENDS = ROOT / "docs/backends.md"
PROOF = ROOT / "docs/proof.md"
SIGNING = ROOT / "docs/signing.md"
DOCUMENTS = (TENSORRT, JETSON, BACKENDS, PROOF)
PACKAGES = ("pipeline", "export", "runtime", "benchmarks")
HEAD = (
    'name = "x"\n[data]\nsource = "imagefolder"\n[backbone]\nmodel = "edgekiln/tiny-cnn"\nweights = "none"\n'
)

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")

each_document = pytest.mark.parametrize("document", [*DOCUMENTS, SIGNING], ids=lambda path: path.name)


def fences(document, language):
    return [body for kind, body in FENCE.findall(document.read_text("utf-8")) if kind == language]


def prose(document):
    """The text without its fenced blocks."""
    return FENCE.sub("", document.read_text("utf-8"))


def table(document, *header):
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


# -- recipes


@pytest.mark.parametrize("text", [*fences(TENSORRT, "toml"), *fences(BACKENDS, "toml")])
def test_recipe_examples_load(tmp_path, text):
    path = tmp_path / "recipe.toml"
    path.write_text(text if "[data]" in text else HEAD + text)
    assert load_recipe(path).variants


def test_the_recipe_example_shows_fp16_and_int8_with_fallback_and_rtx(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(next(text for text in fences(TENSORRT, "toml") if "[data]" in text))
    shown = {(v.backend, v.precision.value, v.fallback) for v in load_recipe(path).variants}
    assert shown == {
        ("tensorrt", "fp16", "none"),
        ("tensorrt", "int8", "fp16"),
        ("tensorrt-rtx", "fp16", "none"),
    }


def test_every_build_key_is_told_with_its_default():
    rows = table(TENSORRT, "key", "default", "for", "meaning")
    told = {row[0].strip("`"): row[1].strip("`") for row in rows}
    defaults = BuildSettings().model_dump(mode="json")
    assert {
        key: None if text == "unset" else tomllib.loads(f"value = {text}")["value"]
        for key, text in told.items()
    } == defaults


# -- commands


def parse(arguments):
    """Parse a command line as click does, without running it; the command, and its context."""
    command, context = cli, click.Context(cli, info_name="edgekiln")
    arguments = [argument for argument in arguments if argument != "--debug"]
    path = []
    while isinstance(command, click.Group) and arguments and not arguments[0].startswith("-"):
        path.append(arguments[0])
        command, arguments = command.get_command(context, arguments[0]), arguments[1:]
        assert command is not None, f"there is no command {' '.join(path)}"
    return command, path, arguments


def options_of(command):
    options = (parameter for parameter in command.params if isinstance(parameter, click.Option))
    return {name for option in options for name in (*option.opts, *option.secondary_opts)}


def commands_in_sh(document):
    lines = "\n".join(fences(document, "sh")).splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("edgekiln ")]


def commands_in_prose(document):
    texts = INLINE.findall(prose(document))
    return [shlex.split(text)[1:] for text in texts if re.match(r"edgekiln( |$)", text)]


@each_document
def test_commands_to_type_are_complete(document):
    commands = commands_in_sh(document)
    assert commands
    for arguments in commands:
        command, path, rest = parse(arguments)
        command.make_context(path[-1], list(rest))  # raises UsageError


@each_document
def test_commands_that_are_named_exist_with_their_options(document):
    for arguments in (*commands_in_sh(document), *commands_in_prose(document)):
        command, path, rest = parse(arguments)
        assert CliRunner().invoke(cli, [*path, "--help"]).exit_code == 0
        assert {word for word in rest if word.startswith("-")} <= options_of(command)


@each_document
def test_options_that_are_named_exist(document):
    subcommands = [*cli.commands.values(), *cli.commands["cache"].commands.values()]
    known = set().union(*(options_of(command) for command in subcommands))
    named = {text.split()[0] for text in INLINE.findall(prose(document)) if text.startswith("--")}
    assert named <= known


def test_every_option_of_build_is_told():
    told = {row[0].strip("`") for row in table(TENSORRT, "option", "meaning")}
    # What every command takes, or every one that runs a recipe, is told where they are.
    assert told == options_of(cli.commands["build"]) - options_of(cli.commands["run"]) - {"--out"}


@each_document
def test_python_examples_compile_and_import_what_exists(document):
    for text in fences(document, "python"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("edgekiln"):
                module = __import__(node.module, fromlist=["*"])
                assert all(hasattr(module, alias.name) for alias in node.names)


@each_document
def test_extras_that_are_named_exist(document):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    named = re.findall(r"edgekiln\[([\w,]+)\]", document.read_text("utf-8"))
    assert set(",".join(named).split(",")) <= set(extras)


# -- links


def anchors(document):
    titles = re.findall(r"^#+ (.*)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize(
    "document", [*DOCUMENTS, SIGNING, ROOT / "README.md", ROOT / "SECURITY.md"], ids=lambda path: path.name
)
def test_relative_links_resolve(document):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        if re.match(r"\w+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = document.parent / name if name else document
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


def test_the_readme_leads_to_all_documents():
    text = (ROOT / "README.md").read_text("utf-8")
    assert all(f"(docs/{document.name})" in text for document in (TENSORRT, JETSON))


@each_document
def test_lines_outside_of_tables_are_short(document):
    lines = document.read_text("utf-8").splitlines()
    assert [line for line in lines if len(line) > 120 and not line.startswith("|")] == []


# -- what the code says


def test_the_order_of_preference_is_the_codes():
    told = [
        (row[1].strip("`"), Precision(row[2].lower())) for row in table(BACKENDS, "", "backend", "precision")
    ]
    assert told == list(PREFERENCE)


def test_every_backend_and_its_precisions_are_told():
    rows = table(BACKENDS, "backend", "runs on", "precisions", "extra", "what it is for")
    told = {(row[0].strip("`"), Precision(p.lower())) for row in rows for p in row[2].split(", ")}
    not_made = {("onnxruntime-cpu", Precision.FP16)}  # such a bundle is read, no recipe makes one
    assert told == set(PREFERENCE) - not_made
    assert {row[0].strip("`"): row[1].lower() for row in rows} == {
        name: "cpu" if name in CPU_BACKENDS else "nvidia gpu" for name in get_args(Backend)
    }


def test_the_lint_table_is_the_lint():
    tree = ast.parse((ROOT / "export/edgekiln/export/qdq_lint.py").read_text("utf-8"))
    calls = [
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    rules = {
        (call.args[0].value, call.func.id.strip("_"))
        for call in calls
        if call.func.id in {"_error", "_warning"}
    }
    told = [
        (row[0].strip("`"), row[1]) for row in table(TENSORRT, "rule", "severity", "meaning", "what to do")
    ]
    assert len(told) == len(rules)
    assert set(told) == rules


@each_document
def test_exit_codes_that_are_named_exist(document):
    text = prose(document)
    named = re.findall(r"\bexit(?:s|s with| codes?)?:? (\d+)\b", text)
    assert named
    if document == TENSORRT:
        told = [row[0] for row in table(document, "exit code", "when")]
        assert told == [str(int(code)) for code in ExitCode]
        named += [row[1] for row in table(document, "message", "exit code", "cause", "remedy")]
    assert {int(code) for code in named} <= {int(code) for code in ExitCode}


def texts_of_the_code():
    """Every string of the code, with its placeholders as `{}`."""
    for package in PACKAGES:
        for path in (ROOT / package / "edgekiln").rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value
                elif isinstance(node, ast.JoinedStr):
                    yield "".join(v.value if isinstance(v, ast.Constant) else "{}" for v in node.values)


def test_messages_and_reasons_that_are_told_are_in_the_code():
    texts = "\n".join(texts_of_the_code())
    messages = table(TENSORRT, "message", "exit code", "cause", "remedy")
    reasons = table(TENSORRT, "reason begins with", "meaning")
    told = [row[0].strip("`") for row in itertools.chain(messages, reasons)]
    assert [text for text in told if text not in texts] == []


def test_report_entries_of_fp16_are_the_reports_own():
    source = (ROOT / "export/edgekiln/export/fp16.py").read_text("utf-8")
    for entry, _, _ in table(TENSORRT, "entry", "meaning", "what to do"):
        assert f'"{entry.strip("`")}"' in source
