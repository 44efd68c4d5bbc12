"""Which peer is called faster: by its whole interval, against the best of ours that passes, in every cell."""

import pytest
from report_support import make_report

from edgekiln.benchmarks.report.page import render_page
from edgekiln.benchmarks.report.peers import (
    cell_headings,
    cell_rows,
    describe_made,
    describe_peers,
    describe_together,
    mark_cells,
    mark_peers,
    peer_notices,
)
from edgekiln.benchmarks.report.table import table_rows


def ratio(value, low, high):
    return {"value": value, "low": low, "high": high}


def variant(name, ms, verdict="pass"):
    return {"name": name, "verdict": verdict, "latency": {"p50_ms": ms}}


VARIANTS = [variant("fp32", 4.0), variant("int8", 2.0), variant("fast", 1.0, "fail")]
PEER = {
    "name": "litert:int8",
    "precision": "int8",
    "latency": None,
    "speedup": None,
    "drop": ratio(0.0123, 0, 0.03),
}


@pytest.mark.parametrize(
    ("interval", "faster"),
    [
        ((0.90, 0.80, 0.94), True),
        ((0.90, 0.80, 0.95), False),
        ((0.90, 0.80, 0.97), False),
        ((1.2, 1.1, 1.3), False),
    ],
)
def test_a_peer_is_faster_where_its_whole_interval_lies_below(interval, faster):
    # Against `fast`, which does not pass, it is slow; that is not what decides.
    benchmark = {"peer_ratios": {"litert:int8": {"int8": ratio(*interval), "fast": ratio(3, 2.9, 3.1)}}}
    [row] = mark_peers([PEER], VARIANTS, benchmark)
    assert row["faster"] is faster
    assert row["to_best"] == {"engine": "int8", **ratio(*interval)}
    told = peer_notices([row])
    lines = describe_peers({"peers": [row], "benchmark": benchmark})
    if faster:
        assert (
            told
            == lines
            == [
                "litert:int8 is faster: it takes 0.90 [0.80, 0.94] of the time of int8, and loses 1.23 points of top-1."
            ]
        )
    else:
        assert told == []
        assert lines[0].startswith(
            "no peer is faster (1 compared at batch 1; the nearest at batch 1: litert:int8 takes"
        )


def test_where_none_passes_the_best_is_of_all_and_without_ratios_nothing_is_said_to_be_compared():
    failed = [{**v, "verdict": "fail"} for v in VARIANTS]
    [row] = mark_peers([PEER], failed, {"peer_ratios": {"litert:int8": {"fast": ratio(0.5, 0.4, 0.6)}}})
    assert row["to_best"]["engine"] == "fast"
    [row] = mark_peers([PEER], VARIANTS, {"peer_ratios": {}})
    assert (row["to_best"], row["faster"]) == (None, False)
    assert describe_peers({"peers": [row]}) == [
        "no peer is compared: the timings are invalid, or no engine was timed"
    ]
    assert describe_peers({"peers": []}) == []


def cell(batch, threads, rates, ratios):
    return {
        "batch": batch,
        "threads": threads,
        "rates": {name: {"images_per_second": rate, "config": {}} for name, rate in rates.items()},
        "ratios": {"litert:int8": ratios},
    }


def test_cells_have_a_best_of_their_own():
    cells = mark_cells(
        [
            cell(1, 1, {"int8": 300, "fp32": 100, "fast": 900}, {"int8": ratio(0.8, 0.7, 0.9)}),
            cell(
                8, 2, {"int8": 300, "fp32": 500}, {"int8": ratio(0.8, 0.7, 0.9), "fp32": ratio(1.4, 1.3, 1.5)}
            ),
        ],
        VARIANTS,
    )
    assert [c["best"] for c in cells] == ["int8", "fp32"]
    assert [c["to_best"]["litert:int8"]["faster"] for c in cells] == [True, False]
    [row] = mark_peers([PEER], VARIANTS, {"peer_ratios": {"litert:int8": {"int8": ratio(1.0, 0.9, 1.1)}}})
    report = {"peers": [row], "benchmark": {"cells": cells}}
    assert describe_peers(report) == [
        "batch 1, 1 thread: litert:int8 is faster: it takes 0.80 [0.70, 0.90] of the time of int8, and loses 1.23 "
        "points of top-1."
    ]
    assert cell_headings(report) == ["cell", "our best", "images/s", "litert:int8"]
    assert cell_rows(report) == [
        ["batch 1, 1 thread", "int8", "300", "0.80 [0.70, 0.90] faster"],
        ["batch 8, 2 threads", "fp32", "500", "1.40 [1.30, 1.50]"],
    ]


def test_cells_say_who_is_faster_where_batch_one_compares_nothing():
    [row] = mark_peers([PEER], VARIANTS, {"peer_ratios": {}})
    slow, fast = (cell(8, 1, {"int8": 300}, {"int8": ratio(v, v - 0.1, v + 0.1)}) for v in (1.0, 0.8))
    report = {"peers": [row], "benchmark": {"cells": mark_cells([slow], VARIANTS)}}
    assert describe_peers(report) == ["no peer is faster in 1 cell of batch size and threads"]
    report["benchmark"]["cells"] = mark_cells([slow, fast], VARIANTS)
    assert [line[:38] for line in describe_peers(report)] == ["batch 8, 1 thread: litert:int8 is fast"]


def test_cell_in_which_none_of_ours_ran_is_shown_as_such():
    broken = cell(8, 1, {"litert:int8": 100}, {})
    broken["rates"]["int8"] = {"config": {}, "problem": "it died"}
    [marked] = mark_cells([broken], VARIANTS)
    assert (marked["best"], marked["to_best"]) == (None, {})
    assert cell_rows({"benchmark": {"cells": [marked]}}) == [["batch 8, 1 thread", "-", "-"]]


def test_the_mark_the_cells_and_how_a_file_was_made_are_in_table_and_page():
    report = make_report(60, ["a", "b", "c"])
    made = {
        "how": "its own converter",
        "versions": {"litert": "2.3"},
        "calibration": {"images": 32, "digest": "0123456789abcdef"},
    }
    benchmark = report["benchmark"]
    benchmark["peer_ratios"] = {"litert:int8": {v["name"]: ratio(0.5, 0.4, 0.6) for v in report["variants"]}}
    benchmark["cells"] = mark_cells(
        [cell(8, 2, {"int8": 300}, {"int8": ratio(0.8, 0.7, 0.9)})], report["variants"]
    )
    report["peers"] = mark_peers([{**PEER, "made": made}], report["variants"], benchmark)
    assert [row[-1] for row in table_rows(report) if row[0] == "litert:int8"] == ["faster peer"]
    page = " ".join(render_page(report).split())
    assert '<span class="verdict faster peer">faster peer</span>' in page
    assert "batch 8, 2 threads" in page
    assert describe_made(report["peers"][0]) in page
    assert "calibrated on 32 pictures (sha256 0123456789ab)" in page


def test_several_reports_end_in_one_line_where_none_is_faster():
    slow = mark_peers([PEER], VARIANTS, {"peer_ratios": {"litert:int8": {"int8": ratio(1.0, 0.9, 1.1)}}})
    fast = mark_peers([PEER], VARIANTS, {"peer_ratios": {"litert:int8": {"int8": ratio(0.8, 0.7, 0.9)}}})
    calm, beaten = {"name": "a", "peers": slow}, {"name": "b", "peers": fast}
    assert describe_together([calm, calm])[-1] == "no peer is faster"
    assert describe_together([beaten, calm])[-1].startswith(
        "b: litert:int8 is faster: it takes 0.80 [0.70, 0.90]"
    )
    # Where one of them compares nothing, nothing is claimed of all.
    assert describe_together([{"name": "c", "peers": []}, calm])[-1].startswith(
        "a: no peer is faster (1 compared"
    )
    blind = mark_peers([PEER], VARIANTS, {"peer_ratios": {}})
    assert describe_together([{"name": "d", "peers": blind}])[-1].startswith("d: no peer is compared")
