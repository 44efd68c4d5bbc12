"""Cells of batch size and thread count: real processes of the tiny engine; one that fails; one that is interrupted."""

from dataclasses import replace

import numpy as np
import pytest

from edgekiln.benchmarks.timing.cells import CellPlan, configuration_at, measure_cells
from edgekiln.benchmarks.timing.contender import Contender, engine_contender, peer_contender
from edgekiln.runtime.limits import usable_threads

SEARCH = [{"config": {"threads": 1}, "median_ms": 1.0}, {"config": {"threads": 2}, "median_ms": 0.8}]
PLAN = CellPlan((1, 3), processes=2, blocks=2, seconds=0.005)


def test_the_fastest_configuration_with_so_many_threads_is_taken():
    cores = usable_threads()
    entries = [
        {"config": {"threads": 1, "channels_last": False}, "median_ms": 3.0},
        {"config": {"threads": 1, "channels_last": True}, "median_ms": 2.0},
        {"config": {"threads": None}, "median_ms": 1.0},
    ]
    assert configuration_at(entries[:2], 1) == {"threads": 1, "channels_last": True}
    assert configuration_at(entries[2:], cores) == {"threads": None}
    assert configuration_at(entries, cores + 1) is None


def test_cells_hold_rates_ratios_and_why_one_failed(engine, tmp_path):
    path, inputs, logits = engine
    ours = engine_contender("a", [path], "onnxruntime-cpu", logits)
    peer = peer_contender("onnxruntime", "a", path, logits, tolerance=1e-3)
    liar = replace(peer, name="liar", logits=logits + np.float32(1))
    dead = Contender("dead", "os:_exit", {"status": 9}, [{}], logits, optional=True)
    contenders = [(ours, SEARCH), (peer, SEARCH), (liar, SEARCH), (dead, [{"config": {}, "median_ms": 1}])]
    pairs = [(name, "a") for name in ("onnxruntime:a", "liar", "dead")]
    cells = measure_cells(contenders, inputs, PLAN, pairs, folder=tmp_path)
    assert [(c["batch"], c["threads"]) for c in cells] == [(b, t) for t in PLAN.threads for b in PLAN.batches]
    for found in cells:
        own = found["rates"]["a"]
        assert own["config"] == {"threads": found["threads"]}
        assert 0 < own["low"] <= own["images_per_second"] <= own["high"]
        assert "answers otherwise when timed" in found["rates"]["liar"]["problem"]
        assert list(found["ratios"]) == ["onnxruntime:a"]
        assert found["ratios"]["onnxruntime:a"]["a"]["low"] > 0
    # Finished processes are not timed again: what they found is what is told, to the last digit.
    again = measure_cells(contenders, inputs, PLAN, pairs, folder=tmp_path)
    assert again == cells
    kept = sorted(path.name for path in tmp_path.glob("bench-*.json"))
    assert kept == [f"bench-{t}-threads-{n}.json" for t in PLAN.threads for n in (1, 2)]


def test_a_cell_that_is_interrupted_goes_on_with_the_next_process(engine, tmp_path):
    path, inputs, logits = engine
    contenders = [(engine_contender("a", [path], "onnxruntime-cpu", logits), SEARCH[:1])]
    plan = replace(PLAN, batches=(2,))

    def stop(done, total, note):
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_cells(contenders, inputs, plan, [], folder=tmp_path, advance=stop)
    [kept] = tmp_path.glob("bench-*.json")
    before = kept.read_bytes()
    measure_cells(contenders, inputs, plan, [], folder=tmp_path)
    assert kept.read_bytes() == before
