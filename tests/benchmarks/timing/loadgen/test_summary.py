"""LoadGen's summaries as it wrote them."""

import pytest
from tests_support import ROOT

from edgekiln.benchmarks.timing.loadgen.summary import parse_summary
from edgekiln.runtime.errors import EngineError

SUMMARIES = ROOT / "tests" / "data" / "loadgen"


def test_summary_of_a_valid_single_stream_run():
    text = (SUMMARIES / "singlestream_valid.txt").read_text()
    summary = parse_summary(text)
    assert summary.valid
    assert summary.reasons == ()
    assert f"50.00 percentile latency (ns)   : {summary.percentiles_ms['p50_ms'] * 1e6:.0f}\n" in text
    assert f"99.00 percentile latency (ns)   : {summary.percentiles_ms['p99_ms'] * 1e6:.0f}\n" in text
    assert f"QPS w/ loadgen overhead         : {summary.samples_per_second:.2f}\n" in text
    assert f"90.0th percentile estimate: {summary.early_stopping_p90_ms * 1e6:.0f}\n" in text


def test_summary_of_a_valid_offline_run():
    text = (SUMMARIES / "offline_valid.txt").read_text()
    summary = parse_summary(text)
    assert summary.valid
    assert f"Samples per second: {summary.samples_per_second:.2f}\n" in text
    assert summary.early_stopping_p90_ms is None


def test_summary_of_invalid_runs_says_why():
    summary = parse_summary((SUMMARIES / "singlestream_invalid.txt").read_text())
    assert (summary.result, summary.valid) == ("INVALID", False)
    assert summary.reasons == (
        "Min duration satisfied: no",
        "Min queries satisfied: no",
        "Early stopping satisfied: no",
        "Decrease the expected latency so the loadgen pre-generates more queries.",
        "The test exited early, before enough queries were issued. "
        "See the detailed log for why this may have occurred.",
    )
    assert summary.early_stopping_p90_ms is None
    summary = parse_summary((SUMMARIES / "offline_invalid.txt").read_text())
    assert summary.reasons[0] == "Min duration satisfied: no"
    assert summary.reasons[1].startswith("Increase expected QPS")


def test_summary_that_is_none_is_refused():
    with pytest.raises(EngineError, match="cannot be read: 'nothing"):
        parse_summary("nothing of the kind")
