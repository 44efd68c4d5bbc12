"""The table on a terminal: what decides in 100 characters, everything with --wide, colours where they are seen."""

import copy
import io
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from report_support import make_report

from edgekiln.benchmarks.report import render_summary, short_headings, short_rows
from edgekiln.pipeline.cli.running import RunWish, repeat_command
from edgekiln.pipeline.cli.tables import add_ways, print_judgement, render_judgement

ESCAPE = "\x1b["


@pytest.fixture(scope="module")
def made():
    return make_report(60, ["a", "b", "c"], processes=2, blocks=4, state="noisy")


@pytest.fixture
def report(made):
    return copy.deepcopy(made)


class Terminal(io.StringIO):
    """Standard output as a terminal has it."""

    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """What is printed on a terminal."""
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)

    def show(report):
        monkeypatch.setattr(sys, "stdout", Terminal())
        print_judgement(report, wide=False)
        return sys.stdout.getvalue()

    return show


def test_the_table_has_seven_columns_and_fits(report):
    lines = render_judgement(report, wide=False).split("\n\n")[0].splitlines()
    assert max(map(len, lines)) <= 100
    assert {len(row) for row in short_rows(report)} == {7} == {len(short_headings(report))}
    for figure in ("+6.67 [+0.25, +15.93]", "3.82x [3.53, 4.14]", "inconclusive"):
        assert sum(figure in line for line in lines) >= 1, figure  # no figure is broken
    assert "noisy speed-up" in lines[0]


def test_the_longest_name_that_a_variant_may_have_goes_on_below(report):
    name = "n" * 59
    report["variants"][0]["name"] = name
    table, reasons = render_judgement(report, wide=False).split("\n\n")
    lines = table.splitlines()
    assert max(map(len, lines)) <= 100
    assert "".join(line.split()[0] for line in lines if line.startswith("nnn")) == name
    assert reasons.startswith(f"{name}: ")


def test_the_gates_metric_is_what_the_table_shows(report):
    top1 = short_rows(report)[3]
    report["recipe"]["gate"]["metric"] = "balanced"
    balanced = short_rows(report)[3]
    assert short_headings(report)[1:3] == ("balanced %", "drop, points [95% CI]")
    row = report["variants"][1]
    assert balanced[1] == f"{100 * row['accuracy']['balanced']:.2f}"
    assert f"[{100 * row['balanced_drop']['low']:+.2f}," in balanced[2]
    assert f"[{100 * row['drop']['low']:+.2f}," in top1[2]


def test_wide_has_the_rest_in_one_line_each(report):
    lines = render_judgement(report, wide=True).split("\n\n")[0].splitlines()
    assert len(lines) == 2 + len(short_rows(report))
    for word in ("precision", "balanced drop [95% CI]", "p99 ms"):
        assert word in lines[0]


@pytest.mark.parametrize("wide", [False, True])
def test_every_reason_stands_below_the_table_once(report, wide):
    report["variants"][0] |= {"verdict": "pass", "reason": "whole"}
    report["variants"][1]["reason"] = "one line\nand another"
    reasons = render_judgement(report, wide=wide).split("\n\n")[1].partition("what decides")[0].splitlines()
    assert [line.split(":")[0] for line in reasons] == [v["name"] for v in report["variants"][1:]]
    assert reasons[0] == "int8: inconclusive: one line and another"


def test_what_decides_is_a_command_each_and_engines_share_it(report, capsys):
    for variant in report["variants"][:2]:
        variant |= {
            "images_to_decide": 70,
            "counts": {"images": 60, "broken": 0, "mended": 0, "agreeing": 60},
        }
        variant |= {"drop": {"value": 0.0, "low": -0.06, "high": 0.0602}}
    for variant in report["variants"][2:]:
        variant["verdict"] = "pass"
    print_judgement(report, wide=False, repeat=lambda setting: f"edgekiln run r.toml {setting}")
    lines = capsys.readouterr().out.partition("what decides ")[2].splitlines()
    assert lines[0] == "fp32, int8:"
    assert lines[1] == (
        "  edgekiln run r.toml None  # once there are about 10 more test pictures: 70 images decide at the flips seen"
    )
    assert lines[2].startswith("  edgekiln run r.toml gate.max_drop=0.0625  # ")
    assert lines[3].startswith("  edgekiln run r.toml gate.inconclusive=warn  # ")
    rows = add_ways(report)
    assert [way["setting"] for way in rows[0]["ways_out"]] == [
        None,
        "gate.max_drop=0.0625",
        "gate.inconclusive=warn",
    ]
    assert "ways_out" not in rows[2]


def test_the_command_is_what_was_typed():
    wish = RunWish(("gate.max_drop=0.1", "name=a b"), Path("elsewhere"), (), False, True, False)
    assert repeat_command(wish, Path("my photos.toml")).endswith(
        " run 'my photos.toml' --set gate.max_drop=0.1 --set 'name=a b' --runs elsewhere"
    )
    again = repeat_command(wish, Path("r.toml"), "gate.max_drop=0.2")  # one value for each key
    assert again.endswith(" run r.toml --set 'name=a b' --set gate.max_drop=0.2 --runs elsewhere")
    assert repeat_command(replace(wish, overrides=(), runs=Path("runs")), None).endswith(" demo")


def test_a_terminal_gets_colours(report, terminal):
    report["variants"][0]["verdict"] = "pass"
    shown = terminal(report)
    assert f"{ESCAPE}32mpass" in shown
    assert f"{ESCAPE}33minconclusive" in shown


def test_no_color_is_obeyed(report, terminal, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    assert f"{ESCAPE}3" not in terminal(report)


def test_a_pipe_gets_none_and_the_same_text(report, capsys):
    print_judgement(report, wide=False)
    out = capsys.readouterr().out
    assert ESCAPE not in out
    assert out == render_judgement(report, wide=False) + "\n"


def test_a_narrow_terminal_loses_no_figure(report, terminal, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("NO_COLOR", "1")
    shown = terminal(report).replace(f"{ESCAPE}1m", "").replace(f"{ESCAPE}0m", "")
    assert max(map(len, shown.split("\n\n")[0].splitlines())) <= 60
    for figure in ("+0.25,", "+15.93]", "[3.53,", "4.14]"):
        assert figure in shown


def test_the_summary_has_the_same_columns_and_takes_wide(report):
    assert "| engine | top-1 % | drop, points [95% CI] | p50 / p99 ms |" in render_summary(report)
    assert "| engine | precision | MB |" in render_summary(report, wide=True)


def test_report_prints_the_table_again(tiny_run, edgekiln):
    code, out, _ = edgekiln("report", tiny_run[2].bundle, "--format", "table")
    assert (code, out) == (0, render_judgement(tiny_run[2].report, wide=False) + "\n")
    assert "precision" in edgekiln("report", tiny_run[2].bundle, "--format", "table", "--wide")[1]
    code, _, err = edgekiln("report", tiny_run[2].bundle, "--wide")
    assert code == 2
    assert "--wide belongs to --format table and markdown" in err
