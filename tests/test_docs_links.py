"""Every relative link and anchor of the documents leads somewhere, and every name in them exists."""

import re
import sys

import pytest
from documents import (
    DOCUMENTS,
    PENDING,
    WHEEL,
    all_options,
    anchors,
    edgekiln_commands_in_prose,
    find_command,
    links,
    name_of,
    options_in_prose,
    options_of,
    table,
)
from tests_support import ROOT

from edgekiln.pipeline.cli import cli
from edgekiln.runtime.errors import ExitCode
from edgekiln.runtime.version import __version__

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Options of other programs that the documents name.
FOREIGN_OPTIONS = {
    "--nproc-per-node",
    "--system-site-packages",
    "--no-deps",
    "--no-index",
    "--extra-index-url",
    "--prepare",
    "--into",
    "--quick",
    "--gpus",
    "--backend-config",
    "--collect-all",
    "--cpus",
    "--cpuset-cpus",
    "--ipc",
    "--read-only",
    "--shm-size",
    "--user",
}

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)


@pytest.mark.parametrize("document", sorted({*DOCUMENTS, *ROOT.glob("*.md")}), ids=name_of)
def test_relative_links_resolve(document):
    for target in links(document):
        if re.match(r"\w+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = document.parent / name if name else document
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


def test_pages_that_the_code_names_exist():
    """Errors, recipes and comments say ``docs/NAME.md#anchor``."""
    named = {
        found
        for root in ("runtime", "export", "benchmarks", "pipeline", "recipes", "tests", ".ci", "Makefile")
        for path in [ROOT / root, *(ROOT / root).rglob("*")]
        if path.is_file() and path.suffix in {".py", ".toml", ".html", ".md", ".sh", ""}
        for found in re.findall(r"\bdocs/[a-z][\w/-]*\.md(?:#[\w-]+)?", path.read_text("utf-8"))
    }
    assert len(named) > 10
    for name, _, anchor in (text.partition("#") for text in named):
        assert (ROOT / name).exists(), name
        assert not anchor or anchor in anchors(ROOT / name), f"{name}#{anchor}"


def test_the_index_leads_to_every_page():
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages <= {target.partition("#")[0] for target in links(ROOT / "docs/README.md")}


def test_the_readme_leads_to_the_index():
    assert "docs/README.md" in links(ROOT / "README.md")


def test_nothing_waits():
    """What was written ahead of its branch is let off only until that branch is there."""
    assert not (PENDING and "init" in cli.commands)


@each_document
def test_commands_that_are_named_exist_with_their_options(document):
    for arguments in edgekiln_commands_in_prose(document):
        command, _, rest = find_command(arguments)
        assert {word.partition("=")[0] for word in rest if word.startswith("-")} <= options_of(command)


@each_document
def test_options_that_are_named_exist(document):
    assert options_in_prose(document) - FOREIGN_OPTIONS <= all_options()


@each_document
def test_extras_that_are_named_exist(document):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    named = re.findall(r"(?:edgekiln|\.whl)\[([\w,]+)\]", document.read_text("utf-8"))
    assert {extra for group in named for extra in group.split(",")} <= set(extras)


@each_document
def test_wheels_that_are_named_are_of_this_version(document):
    assert set(WHEEL.findall(document.read_text("utf-8"))) <= {__version__}


def test_every_extra_is_told():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    told = {row[0].strip("`") for row in table(ROOT / "docs/install.md", "extra", "what it adds")}
    assert told == set(project["optional-dependencies"])


@each_document
def test_exit_codes_that_are_named_exist(document):
    named = re.findall(r"\bexit(?:s|s with| codes?)?:? (\d+)\b", document.read_text("utf-8"))
    assert {int(code) for code in named} <= {int(code) for code in ExitCode}


@each_document
def test_lines_outside_of_tables_and_fences_are_short(document):
    text = re.sub(r"^```.*?^```$", "", document.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    generated = re.sub(r"<!-- generated.*<!-- end of the generated part -->", "", text, flags=re.DOTALL)
    assert [line for line in generated.splitlines() if len(line) > 120 and not line.startswith("|")] == []
