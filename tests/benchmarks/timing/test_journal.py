"""What a benchmark keeps of itself: whole parts of one plan, and nothing else."""

import json

import pytest

from edgekiln.benchmarks.timing.journal import Journal, clear_journal, plan_digest


def test_parts_are_found_again_as_they_were_written(tmp_path):
    said = []
    assert Journal(tmp_path, "plan", said.append).write("round-1", {"times": [1, 2]}) == {"times": [1, 2]}
    (tmp_path / "bench-round-2.json.part").write_text('{"plan": "plan", "val')  # a kill while writing
    again = Journal(tmp_path, "plan", said.append)
    assert again.read("round-1") == {"times": [1, 2]}
    assert again.read("round-2") is None
    assert again.values() == [{"times": [1, 2]}]
    assert said == []


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"plan": "other", "values": {}}),
        '{"plan": "plan", "values": {"times": [1',
        json.dumps({"plan": "plan"}),
        "[]",
        "",
    ],
)
def test_what_is_damaged_or_of_another_plan_is_thrown_away_and_told(tmp_path, text):
    Journal(tmp_path, "plan", print).write("round-1", {"kept": True})
    (tmp_path / "bench-round-2.json").write_text(text)
    said = []
    journal = Journal(tmp_path, "plan", said.append)
    assert journal.read("round-1") == {"kept": True}
    assert journal.read("round-2") is None
    assert not (tmp_path / "bench-round-2.json").exists()
    assert said == ["  1 earlier parts of this benchmark are damaged or of another plan: measured again"]


def test_without_a_folder_parts_live_in_memory():
    journal = Journal(None, "plan", print)
    journal.write("search-0", {"a": 1})
    assert journal.read("search-0") == {"a": 1}


def test_clearing_leaves_everything_else(tmp_path):
    Journal(tmp_path, "plan", print).write("round-1", {})
    (tmp_path / "benchmark.json").write_text("{}")
    clear_journal(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["benchmark.json"]


def test_digest_changes_with_values_and_with_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"frames")
    (tmp_path / "b").write_bytes(b"other frames")
    digests = {
        plan_digest({"processes": 5}, tmp_path / "a"),
        plan_digest({"processes": 6}, tmp_path / "a"),
        plan_digest({"processes": 5}, tmp_path / "b"),
    }
    assert len(digests) == 3
    assert plan_digest({"processes": 5}, tmp_path / "a") in digests
