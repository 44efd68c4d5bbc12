"""``load`` without a name takes what was fastest on this kind of machine, with the threads measured there."""

import json
from dataclasses import replace

import onnxruntime
import pytest
from fake_cuda import FAKE_DEVICE

from edgekiln.runtime import cuda
from edgekiln.runtime.bundles.bundle import open_bundle
from edgekiln.runtime.bundles.judged_with import VERDICT_KIND
from edgekiln.runtime.bundles.machine_kind import read_kind
from edgekiln.runtime.bundles.manifest import MANIFEST_NAME
from edgekiln.runtime.bundles.times import TIMES, MeasuredTime, add_time, parse_times
from edgekiln.runtime.cuda import DriverState
from edgekiln.runtime.errors import BundleError
from edgekiln.runtime.serving.loading import load
from edgekiln.runtime.serving.ordering import order_by_speed

WHEN = "2026-11-30T12:00:00+00:00"
NOTHING_MEASURED = "that passed and runs here (nothing was measured on this kind of machine)"


def time(p50, *, spread=0.01, threads=2, backend="onnxruntime-cpu", validity="valid", **other):
    """An entry of this machine's kind, or of one that is other in ``other``."""
    kind = replace(read_kind(backend), **other)
    return MeasuredTime(kind, p50, p50 * (1 - spread), p50 * (1 + spread), threads, validity, WHEN)


def figures(*times):
    return {"accuracy": 0.5, TIMES: [one.to_dict() for one in times]}


@pytest.fixture
def bundle(make_bundle, variant):
    """Writes one with ``int8``, ``vino`` and ``fp32``, in the documented order, of these times."""

    def make(int8=(), vino=(), fp32=()):
        return make_bundle(
            variant("fp32", "fp32", figures=figures(*fp32)),
            variant("vino", "int8", backend="openvino", figures=figures(*vino)),
            variant("int8", "int8", figures=figures(*int8)),
        )

    return make


def order(folder, device=0):
    names = ["int8", "vino", "fp32"]
    return order_by_speed([open_bundle(folder).variant(name) for name in names], device)


def test_the_fastest_here_is_loaded_with_its_threads(bundle):
    folder = bundle(int8=[time(3.0)], fp32=[time(1.9, threads=1)])
    with load(folder) as classifier:
        assert (classifier.variant.name, classifier.session.threads) == ("fp32", 1)
        assert classifier.variant.reason == (
            "fastest as measured on this kind of machine: 1.9 ms, 1 thread (not measured here: vino)"
        )
    with load(folder, threads=2) as classifier:
        assert (classifier.variant.name, classifier.session.threads) == ("fp32", 2)
        assert classifier.variant.reason.endswith("; 2 were asked for")
        classifier.reload(folder)
        assert classifier.session.threads == 2
    with load(folder, variant="fp32") as classifier:
        assert classifier.session.threads is None


def test_what_was_not_measured_here_comes_after_in_the_documented_order(bundle):
    choices = order(bundle(fp32=[time(9.0)]))
    assert [choice.variant.name for choice in choices] == ["fp32", "int8", "vino"]
    assert [choice.threads for choice in choices] == [2, None, None]
    assert "(it was not measured on this kind of machine)" in choices[1].reason


@pytest.mark.parametrize(
    ("int8", "vino", "wanted"),
    [
        (time(2.0, spread=0.04), time(1.9, spread=0.04, backend="openvino"), "int8"),
        (time(2.0, spread=0.01), time(1.9, spread=0.01, backend="openvino"), "vino"),
        (time(1.9), time(1.9, backend="openvino"), "int8"),
        (time(1.9), time(2.0, spread=0.04, backend="openvino"), "int8"),
    ],
)
def test_within_the_intervals_the_documented_order_decides(bundle, int8, vino, wanted):
    choices = order(bundle(int8=[int8], vino=[vino], fp32=[time(9.0)]))
    other = {"int8": "vino", "vino": "int8"}[wanted]
    assert [choice.variant.name for choice in choices] == [wanted, other, "fp32"]


def test_a_tie_is_told(bundle):
    first = order(bundle(int8=[time(2.0, spread=0.1)], vino=[time(1.9, spread=0.1, backend="openvino")]))[0]
    assert first.reason.startswith("first in the order of preference of those that are the fastest within")


@pytest.mark.parametrize(
    "other", [{"processor": "Another CPU"}, {"cores": 0.5}, {"power_mode": "5 5W"}, {"version": "1.0"}]
)
def test_a_time_of_another_kind_of_machine_decides_nothing(bundle, other):
    folder = bundle(fp32=[time(0.1, **other)])
    with load(folder, device="cpu") as classifier:
        assert classifier.variant.name == "int8"
        assert classifier.variant.reason.endswith(NOTHING_MEASURED)
        assert classifier.session.threads is None


def test_the_time_of_this_kind_is_found_among_others(bundle):
    folder = bundle(
        fp32=[time(9.0, cores=64.0), time(1.0, threads=1)], int8=[time(0.1, cores=64.0), time(3.0)]
    )
    assert [choice.variant.name for choice in order(folder)] == ["fp32", "int8", "vino"]


@pytest.mark.parametrize("changes", [{"validity": "invalid"}, {"boundary": "call"}, {"batch": 8}])
def test_what_is_invalid_or_of_another_boundary_or_batch_is_left_out(make_bundle, variant, changes):
    entry = {**time(0.1).to_dict(), **changes}
    folder = make_bundle(variant("fp32", "fp32", figures={TIMES: [entry]}), variant("int8", "int8"))
    assert open_bundle(folder).variant("fp32").times == ()
    with load(folder) as classifier:
        assert classifier.variant.name == "int8"


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="onnxruntime runs on CUDA here"
)
def test_one_that_cannot_run_here_is_passed_over_and_told(make_bundle, variant):
    fast = time(0.1, backend="onnxruntime-cuda", threads=None)
    folder = make_bundle(
        variant("gpu", "fp16", backend="onnxruntime-cuda", figures=figures(fast)),
        variant("int8", "int8", figures=figures(time(3.0))),
        variant("fp32", "fp32", figures=figures(time(2.0))),
    )
    with load(folder) as classifier:
        assert classifier.variant.name == "fp32"
        assert "fastest as measured on this kind of machine: 2 ms" in classifier.variant.reason
        assert "; gpu cannot run here (" in classifier.variant.reason


def test_a_gpu_counts_by_its_name_and_is_asked_for_only_where_all_else_is_the_same(
    bundle, make_bundle, variant, monkeypatch
):
    second = replace(FAKE_DEVICE, name="Second GPU")
    monkeypatch.setattr(cuda, "probe_driver", lambda: DriverState(None, (12, 6), (FAKE_DEVICE, second)))
    gpu = [
        time(0.5, backend="onnxruntime-cuda", threads=None),
        time(0.4, backend="onnxruntime-cuda", gpu="Third"),
    ]
    variants = [
        variant("gpu", "fp32", backend="onnxruntime-cuda", figures=figures(*gpu)),
        variant("cpu", "int8", figures=figures(time(3.0))),
    ]
    records = open_bundle(make_bundle(*variants)).variants
    assert [choice.variant.name for choice in order_by_speed(records)] == ["gpu", "cpu"]
    assert order_by_speed(records)[0].reason == "fastest as measured on this kind of machine: 0.5 ms"
    assert [choice.variant.name for choice in order_by_speed(records, 1)] == ["cpu", "gpu"]
    elsewhere = [
        replace(record, times=tuple(replace(t, kind=replace(t.kind, cores=99.0)) for t in record.times))
        for record in records
    ]
    monkeypatch.setattr(cuda, "probe_driver", lambda: pytest.fail("a driver was asked"))
    assert [choice.variant.name for choice in order_by_speed(elsewhere)] == ["gpu", "cpu"]


@pytest.mark.parametrize(
    "damage",
    [{"kind": None}, {"kind": {}}, {"p50_ms": "fast"}, {"p50_ms": float("nan")}, {"low_ms": 99.0}, {"p50_ms": True},
     {"threads": 0}, {"threads": "2"}, {"validity": ["valid"]}],
)  # fmt: skip
def test_damaged_times_are_a_damaged_manifest_and_never_a_crash(bundle, damage):
    folder = bundle(fp32=[time(1.0)])
    document = json.loads((folder / MANIFEST_NAME).read_text())
    document["variants"][0]["figures"][TIMES][0].update(damage)
    (folder / MANIFEST_NAME).write_text(json.dumps(document))
    if damage == {"validity": ["valid"]}:  # of a quality that is not known here
        assert open_bundle(folder).variant("fp32").times == ()
        return
    with pytest.raises(BundleError, match="not a valid manifest"):
        load(folder)


def test_of_one_kind_the_newest_stays_but_noise_does_not_replace_what_is_valid():
    noisy, valid, elsewhere = time(1.0, validity="noisy"), time(2.0), time(3.0, cores=64.0)
    entries = add_time(add_time([], noisy), elsewhere)
    assert parse_times(entries) == (noisy, elsewhere)
    entries = add_time(entries, valid)
    assert parse_times(entries) == (elsewhere, valid)
    assert parse_times(add_time(entries, noisy)) == (elsewhere, valid)
    foreign = {**noisy.to_dict(), "boundary": "call"}
    assert foreign in add_time([foreign], valid)
    with pytest.raises(ValueError, match="'invalid'"):
        MeasuredTime.from_dict({**valid.to_dict(), "validity": "invalid"})


@pytest.mark.parametrize(
    ("changes", "told"),
    [({}, ""), ({"version": "1.0"}, "onnxruntime 1.0 there"), ({"features": ("sve",)}, "its CPU has sve")],
)
def test_another_kind_than_the_verdicts_is_a_notice(make_bundle, variant, caplog, changes, told):
    kind = replace(read_kind("onnxruntime-cpu").verdict, **changes)
    folder = make_bundle(variant("fp32", "fp32", figures={VERDICT_KIND: kind.to_dict()}))
    with load(folder) as classifier:
        assert told in classifier.variant.notice
        assert bool(classifier.variant.notice) == bool(told)
    assert [record.message for record in caplog.records] == (
        [f"variant fp32 was {classifier.variant.notice}"] if told else []
    )
