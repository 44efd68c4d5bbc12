"""Hot swap: nobody fails, no answer mixes models, a bad bundle changes nothing. And what threads and forks may do."""

import importlib.util
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from serving_support import PATIENCE_S, GatedSession, flat

from edgekiln.runtime import load
from edgekiln.runtime.backends import open_session
from edgekiln.runtime.bundles.keys import load_private_key, write_key_pair
from edgekiln.runtime.bundles.signing import sign_bundle
from edgekiln.runtime.errors import (
    BundleError,
    DeviceError,
    EngineError,
    NonFiniteError,
    SignatureError,
    UsageError,
)
from edgekiln.runtime.serving import loaded, memory
from edgekiln.runtime.serving.classifier import Classifier
from edgekiln.runtime.serving.prediction import Selection

SELECTION = Selection("fp32", "fake", "fp32", "made by hand")
OTHER_CLASSES = ("green", "red", "blue")


@pytest.fixture
def bundles(make_bundle, variant):
    """Two bundles of the same two engines: the mean colour (fp32), and twice that (int8)."""
    return [
        make_bundle(variant("fp32", "fp32"), variant("int8", "int8"), name=name) for name in ("old", "new")
    ]


def test_a_reload_serves_the_new_bundle_and_closes_the_old_engine(bundles, make_bundle, variant):
    # The preferred engine is INT8: the second here, the first and only one there.
    other = make_bundle(variant("only", "int8"), name="other")
    with load(bundles[0]) as classifier:
        old = classifier.session
        assert classifier.predict(flat(10)).logits[0] == 20
        assert classifier.reload(other) is None
        assert classifier.predict(flat(10)).logits[0] == 10
        assert classifier.variant.name == "only"
        assert classifier.session is not old
        with pytest.raises(UsageError, match="session is closed"):
            old.run(flat(1)[None])


def test_a_reload_keeps_the_options_of_load(bundles):
    with load(bundles[0], variant="fp32", threads=1) as classifier:
        classifier.reload(bundles[1])
        assert (classifier.variant.name, classifier.session.threads) == ("fp32", 1)
        classifier.reload(bundles[0])
        assert (classifier.variant.name, classifier.session.threads) == ("fp32", 1)


def test_a_reload_asks_for_the_keys_that_load_was_given(bundles, tmp_path):
    private, public = write_key_pair(tmp_path / "key")
    sign_bundle(bundles[0], load_private_key(private))
    with load(bundles[0], trusted_keys=[public]) as classifier:
        with pytest.raises(SignatureError, match="is not signed"):
            classifier.reload(bundles[1])
        sign_bundle(bundles[1], load_private_key(private))
        classifier.reload(bundles[1])
        assert classifier.predict(flat(10)).logits[0] == 20


def test_a_classifier_made_by_hand_can_be_reloaded(mean_model, contract, bundles):
    with Classifier(open_session("onnxruntime-cpu", mean_model), contract, SELECTION) as classifier:
        classifier.reload(bundles[0])
        assert classifier.variant.name == "int8"


def flip_a_byte(folder):
    path = folder / "int8.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"?")


def rewrite_manifest(folder, change):
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def fail_the_gates(folder):
    rewrite_manifest(folder, lambda d: [v.update(verdict="fail") for v in d["variants"]])


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (flip_a_byte, BundleError),
        (fail_the_gates, UsageError),
        (lambda folder: (folder / "extra").touch(), BundleError),
        (lambda folder: (folder / "manifest.json").unlink(), UsageError),
    ],
    ids=["flipped", "failed", "extra", "no-manifest"],
)
def test_a_bad_bundle_leaves_the_old_one_serving(bundles, spoil, error):
    spoil(bundles[1])
    with load(bundles[0]) as classifier:
        session = classifier.session
        with pytest.raises(error):
            classifier.reload(bundles[1])
        assert classifier.session is session
        assert classifier.predict(flat(10)).logits[0] == 20


def test_an_engine_that_loads_and_does_not_run_leaves_the_old_one_serving(build_model, contract):
    session = GatedSession()
    with Classifier(session, contract, SELECTION) as classifier:
        broken = Classifier(
            open_session("onnxruntime-cpu", build_model(shift=-500.0, tail="Log")), contract, SELECTION
        )
        with pytest.raises(NonFiniteError):
            classifier.adopt(broken)
        with pytest.raises(UsageError, match="session is closed"):
            broken.predict(flat(1))
        assert classifier.predict(flat(3)).logits[0] == 3


def test_other_classes_are_refused_unless_they_are_allowed(bundles, contract):
    def change(document):
        other = replace(contract, classes=OTHER_CLASSES)
        document["contract"] = other.to_dict()

    rewrite_manifest(bundles[1], change)
    with load(bundles[0]) as classifier:
        with pytest.raises(
            UsageError, match=r"classes are \['green', 'red', 'blue'\].*allow_new_classes=True"
        ):
            classifier.reload(bundles[1])
        assert classifier.predict(flat(9)).label == "red"
        classifier.reload(bundles[1], allow_new_classes=True)
        prediction = classifier.predict(flat(9))
        assert (prediction.label, prediction.classes) == ("green", OTHER_CLASSES)
        assert classifier.contract.classes == OTHER_CLASSES


def test_a_closed_classifier_is_not_revived(contract):
    first, second = GatedSession(), GatedSession()
    classifier = Classifier(first, contract, SELECTION)
    classifier.close()
    with pytest.raises(UsageError, match="closed and cannot serve another bundle"):
        classifier.adopt(Classifier(second, contract, SELECTION))
    assert (first.closed, second.closed) == (1, 1)


def test_an_adopted_classifier_is_closed_and_closing_it_closes_nothing(contract):
    session = GatedSession()
    with Classifier(GatedSession(), contract, SELECTION) as classifier:
        other = Classifier(session, contract, SELECTION)
        classifier.adopt(other)
        other.close()
        with pytest.raises(UsageError, match="session is closed"):
            other.predict(flat(1))
        assert session.closed == 0
        assert classifier.session is session
        with pytest.raises(UsageError, match="adopts another Classifier"):
            classifier.adopt(classifier)
    assert session.closed == 1


def test_the_old_engine_is_closed_when_its_last_call_ends(contract):
    old, new = GatedSession(), GatedSession(scale=2.0)
    classifier = Classifier(old, contract, SELECTION)
    old.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(classifier.predict, flat(5))
        old.wait_until_entered()
        classifier.adopt(Classifier(new, contract, SELECTION))
        assert classifier.predict(flat(5)).logits[0] == 10
        assert old.closed == 0
        old.gate.set()
        assert call.result(PATIENCE_S).logits[0] == 5
    assert old.closed == 1
    classifier.close()
    assert new.closed == 1


def test_closing_waits_for_nobody_and_takes_no_engine_from_a_call(contract):
    session = GatedSession()
    classifier = Classifier(session, contract, SELECTION)
    session.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(classifier.predict, flat(5))
        session.wait_until_entered()
        classifier.close()
        with pytest.raises(UsageError, match="session is closed"):
            classifier.predict(flat(1))
        session.gate.set()
        assert call.result(PATIENCE_S).logits[0] == 5
    assert session.closed == 1


@pytest.mark.parametrize("busy", [False, True])
def test_an_old_engine_that_cannot_be_freed_fails_neither_the_reload_nor_a_call(contract, caplog, busy):
    class Stuck(GatedSession):
        def close(self):
            super().close()
            raise DeviceError("CUDA does not answer.")

    old = Stuck()
    with Classifier(old, contract, SELECTION) as classifier:
        model = classifier.hold() if busy else None
        classifier.adopt(Classifier(GatedSession(scale=2.0), contract, SELECTION))
        if model is not None:
            assert old.closed == 0
            model.release()
        assert classifier.predict(flat(5)).logits[0] == 10
    assert old.closed == 1
    assert "could not be freed: CUDA does not answer" in caplog.text


def test_no_request_fails_while_models_are_swapped(contract):
    """Four threads ask while the model is swapped 60 times; every logit of an answer has its own model's factor."""
    sessions = [GatedSession(scale=float(factor)) for factor in range(1, 62)]
    classifier = Classifier(sessions[0], contract, SELECTION)
    done = threading.Event()

    def ask():
        factors = []
        while not done.is_set():
            red, green, blue = classifier.predict(flat(1, 2, 3)).logits.tolist()
            assert (green, blue) == (2 * red, 3 * red)
            factors.append(red)
        return factors

    with ThreadPoolExecutor(4) as pool:
        callers = [pool.submit(ask) for _ in range(4)]
        try:
            for session in sessions[1:]:
                classifier.adopt(Classifier(session, contract, SELECTION))
        finally:
            done.set()
        for caller in callers:
            factors = caller.result(PATIENCE_S)
            assert factors == sorted(factors)  # never back to an older model
    assert [session.closed for session in sessions] == [1] * 60 + [0]
    classifier.close()


@pytest.mark.slow
def test_bundles_are_swapped_under_traffic(bundles, make_bundle, variant):
    """The same with real engines, real bundles and the options of ``load``."""
    other = make_bundle(
        variant("other", "fp32"), variant("int8", "fp32", verdict="fail"), variant("x", "int8")
    )
    allowed = {20.0, 30.0}  # the second engine's factor, and the third's
    done = threading.Event()
    with load(bundles[0], threads=1) as classifier, ThreadPoolExecutor(4) as pool:

        def ask():
            seen = set()
            while not done.is_set():
                seen.add(float(classifier.predict(flat(10)).logits[0]))
            return seen

        callers = [pool.submit(ask) for _ in range(4)]
        try:
            for _ in range(15):
                classifier.reload(other)
                classifier.reload(bundles[0])
        finally:
            done.set()
        assert set().union(*(caller.result(PATIENCE_S) for caller in callers)) == allowed


# -- threads


@pytest.mark.slow
def test_32_threads_get_a_thousand_right_answers_each(tiny_run, pictures):
    """The tiny CNN on real files: each picture has one right answer, whoever asks and whoever else does."""
    paths = sorted(pictures.rglob("*.png"))[::8]
    with load(tiny_run[2].bundle, threads=1) as classifier:
        encoded = [path.read_bytes() for path in paths]
        wanted = [classifier.predict(data).logits for data in encoded]
        assert len({row.tobytes() for row in wanted}) == len(wanted)

        def work(seed):
            order = np.random.default_rng(seed).integers(0, len(encoded), 1000)
            return sum(np.array_equal(classifier.predict(encoded[i]).logits, wanted[i]) for i in order)

        with ThreadPoolExecutor(32) as pool:
            assert list(pool.map(work, range(32))) == [1000] * 32


def test_eight_threads_get_their_own_answers(mean_model, contract):
    with Classifier(
        open_session("onnxruntime-cpu", mean_model, threads=1), contract, SELECTION
    ) as classifier:

        def work(seed):
            colors = np.random.default_rng(seed).integers(0, 256, (50, 3))
            return all(np.array_equal(classifier.predict(flat(*color)).logits, color) for color in colors)

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(work, range(8)))


# -- forks

FORK = """
import os, signal, sys
import numpy as np
import edgekiln.runtime as ek
from edgekiln.runtime.backends import open_session
bundle, action, model, backend = sys.argv[1:]
classifier = ek.load(bundle, threads=4)
session = open_session(backend, open(model, "rb").read(), threads=4)
session.run(np.zeros((1, 4, 8, 3), np.uint8))
picture = np.full((4, 8, 3), 10, np.uint8)
classifier.predict(picture)
if os.fork() == 0:
    signal.alarm(20)  # a hang ends by a signal, and so by another status than 0
    try:
        if action == "use":
            classifier.predict(picture)
        elif action == "session":
            session.run(picture[None])
        elif action == "reload":
            classifier.reload(bundle)
        elif action == "warm_up":
            classifier.warm_up()
        elif action == "close":
            classifier.close()
            session.close()
            print("closed", flush=True)
        elif action == "new session":
            print(open_session(backend, open(model, "rb").read(), threads=4).run(picture[None])[0, 0], flush=True)
        elif action == "new":
            with ek.load(bundle, threads=4) as other:
                print(other.predict(picture).logits[0], flush=True)
    except ek.ForkedError as error:
        print(error.code, "cannot be used in its fork" in str(error), flush=True)
    sys.exit()
print(os.waitstatus_to_exitcode(os.wait()[1]), classifier.predict(picture).logits[0])
"""


@pytest.mark.parametrize(
    ("action", "told"),
    [
        ("use", ["forked", "True"]),
        ("session", ["forked", "True"]),
        ("reload", ["forked", "True"]),
        ("warm_up", ["forked", "True"]),
        ("close", ["closed"]),
        ("new", ["20.0"]),
    ],
)
def test_a_fork_gets_a_typed_error_may_load_its_own_and_ends(bundles, action, told):
    check_fork(bundles[0], action, told)


@pytest.mark.parametrize(
    ("action", "told"), [("session", ["forked", "True"]), ("close", ["closed"]), ("new session", ["10.0"])]
)
def test_a_fork_of_a_process_with_openvino_likewise(bundles, action, told):
    if importlib.util.find_spec("openvino") is None:  # never imported plainly: that would send an event
        pytest.skip("OpenVINO is not installed")
    check_fork(bundles[0], action, told, backend="openvino")


def check_fork(bundle, action, told, backend="onnxruntime-cpu"):
    """In a whole interpreter of its own, to its end: freeing the parent's session there would crash or hang."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK, str(bundle), action, str(bundle / "fp32.onnx"), backend],
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
    )
    assert done.stdout.split() == [*told, "0", "20.0"]


def test_a_loaded_model_that_does_not_fit_its_contract_is_refused(contract):
    with pytest.raises(EngineError, match=r"takes frames of \(2, 2\)"):
        Classifier(GatedSession(frame_shape=(2, 2)), contract, SELECTION)


def test_what_was_closed_meanwhile_is_not_adopted(contract):
    first, other = (
        Classifier(GatedSession(), contract, Selection("x", "fake", "fp32", "")) for _ in range(2)
    )

    def close_after_the_warm_up(runs=3):
        other.close()

    other.warm_up = close_after_the_warm_up
    with first:
        with pytest.raises(UsageError, match="it has nothing to serve"):
            first.adopt(other)
        assert first.predict(flat(3)).logits[0] == 3
        for nothing in (None, "bundle"):
            with pytest.raises(UsageError, match="adopts another Classifier"):
                first.adopt(nothing)


def test_what_a_replaced_engine_leaves_goes_back_to_the_system(contract, monkeypatch):
    given_back = []
    monkeypatch.setattr(loaded, "give_back_memory", lambda: given_back.append(True))
    first, other = (
        Classifier(GatedSession(), contract, Selection("x", "fake", "fp32", "")) for _ in range(2)
    )
    with first:
        first.adopt(other)
        assert given_back == [True]


def test_free_memory_is_given_back_or_that_is_nothing():
    memory.give_back_memory()
    memory._find_malloc_trim.cache_clear()
    try:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(memory.ctypes, "CDLL", lambda name: object())  # a C library without it
            memory.give_back_memory()
    finally:
        memory._find_malloc_trim.cache_clear()
