"""What docs/tensorrt.md, jetson.md, backends.md and problems.md tell is what the code says: keys, rules, messages.

That the blocks of all documents run and their links lead somewhere is in ``test_docs_blocks`` and ``test_docs_links``.
"""

import ast
import itertools
import re
import sys
from typing import get_args

import pytest
from documents import fences, options_of, prose, table
from tests_support import ROOT

from edgekiln.export.precision.qdq_lint import RULES
from edgekiln.pipeline.cli import cli
from edgekiln.pipeline.recipe import BuildSettings, load_recipe
from edgekiln.runtime.backends import CPU_BACKENDS, Backend
from edgekiln.runtime.bundles.machine_kind import TIME_FIELDS, VERDICT_FEATURES, VERDICT_FIELDS
from edgekiln.runtime.bundles.manifest import PREFERENCE
from edgekiln.runtime.errors import ExitCode
from edgekiln.runtime.spec import Precision

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TENSORRT, JETSON, BACKENDS, PROBLEMS = (
    ROOT / f"docs/{name}.md" for name in ("tensorrt", "jetson", "backends", "problems")
)
PACKAGES = ("pipeline", "export", "runtime", "benchmarks")

each_document = pytest.mark.parametrize("document", [TENSORRT, JETSON], ids=lambda path: path.name)


def test_the_recipe_example_shows_fp16_and_int8_with_fallback_and_rtx(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(next(fence.body for fence in fences(TENSORRT, "toml") if "[data]" in fence.body))
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


def test_every_option_of_build_is_told():
    told = {row[0].strip("`") for row in table(TENSORRT, "option", "meaning")}
    assert told == options_of(cli.commands["build"]) - options_of(cli.commands["run"]) - {"--out"}


# -- what the code says


def test_the_order_of_preference_is_the_codes():
    told = [
        (row[1].strip("`"), Precision(row[2].lower())) for row in table(BACKENDS, "", "backend", "precision")
    ]
    assert told == list(PREFERENCE)


def test_what_a_verdict_and_a_time_hold_for_is_told():
    told = [
        (name, row[1] == "yes")
        for row in table(BACKENDS, "field", "verdict", "time", "from")
        for name in re.findall(r"`(\w+)`", row[0])
    ]
    assert dict(told) == {name: name in VERDICT_FIELDS for name in TIME_FIELDS}
    assert {f"`{name}`" for name in VERDICT_FEATURES} <= set(
        re.findall(r"`\w+`", BACKENDS.read_text("utf-8"))
    )


def test_every_backend_and_its_precisions_are_told():
    rows = table(BACKENDS, "backend", "runs on", "precisions", "extra", "what it is for")
    told = {(row[0].strip("`"), Precision(p.lower())) for row in rows for p in row[2].split(", ")}
    not_made = {("onnxruntime-cpu", Precision.FP16)}  # such a bundle is read, no recipe makes one
    assert told == set(PREFERENCE) - not_made
    assert {row[0].strip("`"): row[1].lower() for row in rows} == {
        name: "cpu" if name in CPU_BACKENDS else "nvidia gpu" for name in get_args(Backend)
    }


def test_the_lint_table_is_the_lint():
    told = table(TENSORRT, "rule", "severity", "meaning", "why TensorRT needs it", "what to do")
    assert told == [[f"`{r.name}`", r.severity, r.meaning, r.reason, r.remedy] for r in RULES]


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
    messages = (table(page, "message", "exit code", "cause", "remedy") for page in (TENSORRT, PROBLEMS))
    reasons = table(TENSORRT, "reason begins with", "meaning")
    told = [row[0].strip("`") for row in itertools.chain(*messages, reasons)]
    assert [text for text in told if text not in texts] == []


def test_every_exit_code_has_a_row_among_the_problems():
    told = {int(row[0]) for row in table(PROBLEMS, "code", "what it means", "look")}
    assert told == {int(code) for code in ExitCode} - {int(ExitCode.OK)}
    messages = table(PROBLEMS, "message", "exit code", "cause", "remedy")
    assert {int(row[1]) for row in messages} <= told


def test_report_entries_of_fp16_are_the_reports_own():
    source = (ROOT / "export/edgekiln/export/precision/fp16.py").read_text("utf-8")
    for entry, _, _ in table(TENSORRT, "entry", "meaning", "what to do"):
        assert f'"{entry.strip("`")}"' in source
