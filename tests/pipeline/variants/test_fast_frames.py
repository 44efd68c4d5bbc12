"""A run records whether its engines may decode fast, and ``load`` goes by that record alone."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from tests_support import COLORS, TINY_RECIPE

from edgekiln.pipeline.recipe import load_recipe
from edgekiln.pipeline.run import run_recipe
from edgekiln.pipeline.workspace.progress import SilentProgress
from edgekiln.runtime import load
from edgekiln.runtime.bundles.bundle import open_bundle
from edgekiln.runtime.bundles.manifest import MANIFEST_NAME, write_manifest
from edgekiln.runtime.errors import BundleError, UsageError
from edgekiln.runtime.pictures.fast_decode import MAX_BOUND, MEAN_BOUND, prepare_fast
from edgekiln.runtime.pictures.image import prepare
from edgekiln.runtime.serving.agreement import MINIMUM_EVIDENCE, judge_agreement

pytestmark = pytest.mark.slow  # one run with enough pictures

ONE_VARIANT = (
    TINY_RECIPE.replace("epochs = 2", "epochs = 1").split('[[variants]]\nname = "int8"')[0]
    + "[gate]\nmax_drop = 0.2\n[benchmark]\nenabled = false\n"
)


def write_photos(folder, count, side):
    """Coloured noise as JPEGs, ``count`` of each class."""
    generator = np.random.default_rng(0)
    for label, color in COLORS.items():
        (folder / label).mkdir(parents=True)
        for i in range(count):
            coarse = generator.integers(-40, 41, (side // 8, side // 8, 3))
            pixels = np.clip(np.array(color) + np.kron(coarse, np.ones((8, 8, 1), int)), 0, 255).astype(
                np.uint8
            )
            Image.fromarray(pixels).save(folder / label / f"{i:03}.jpg", quality=90)
    return folder


def run_on(folder, count, side):
    write_photos(folder / "pictures", count, side)
    (folder / "tiny.toml").write_text(ONE_VARIANT)
    return run_recipe(load_recipe(folder / "tiny.toml"), folder / "runs", SilentProgress()).bundle


@pytest.fixture(scope="module")
def proven(tmp_path_factory):
    """A bundle of a run whose test split has 102 JPEGs of 160 x 160, for a network of 32 x 32."""
    return run_on(tmp_path_factory.mktemp("proven"), 136, 160)


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    return next(write_photos(tmp_path_factory.mktemp("photo") / "pictures", 1, 160).glob("red/*.jpg"))


@pytest.fixture
def altered(proven, tmp_path):
    """``altered(**changes)`` is the bundle with other values in its record, under a manifest that fits."""

    def make(**changes):
        folder = shutil.copytree(proven, tmp_path / "altered")
        manifest = json.loads((folder / MANIFEST_NAME).read_text())
        record = manifest["variants"][0]["figures"]["fast_decode"]
        manifest["variants"][0]["figures"]["fast_decode"] = changes.pop("instead", {**record, **changes})
        write_manifest(folder, manifest)
        return folder

    return make


def test_a_run_records_agreement_on_its_test_pictures(proven):
    record = open_bundle(proven).variants[0].fast_decode
    assert record.allowed
    assert (record.pictures, record.scaled, record.flipped) == (102, 102, 0)
    assert 0 < record.mean_difference <= MEAN_BOUND
    assert 0 < record.max_difference <= MAX_BOUND
    assert record.reason == "all 102 pictures that were decoded both ways got the same class."


def test_load_decodes_fast_where_that_is_recorded_and_only_when_wanted(proven, photo):
    for wish, fast in (("auto", True), (True, True), (False, False)):
        with load(proven, fast_decode=wish, threads=1) as classifier:
            assert classifier.fast_decode is fast
            way = prepare_fast if fast else prepare
            frames = way(photo, classifier.contract)[None]
            np.testing.assert_array_equal(classifier.predict(photo).logits, classifier.session.run(frames)[0])
    assert not np.array_equal(prepare(photo, classifier.contract), prepare_fast(photo, classifier.contract))


def test_a_record_that_forbids_it_is_heeded(altered):
    folder = altered(allowed=False, flipped=1, reason="fast decoding gives 1 of 102 pictures another class.")
    with load(folder) as classifier:
        assert not classifier.fast_decode
    with pytest.raises(UsageError, match="'fp32' may not decode fast: fast decoding gives 1 of 102"):
        load(folder, fast_decode=True)


def test_a_bundle_without_a_record_decodes_plainly(altered):
    folder = altered(instead=None)
    with load(folder) as classifier:
        assert not classifier.fast_decode
    with pytest.raises(UsageError, match="the bundle records no comparison"):
        load(folder, fast_decode=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"allowed": 1},
        {"allowed": "yes"},
        {"flipped": 1},
        {"scaled": 0},
        {"scaled": 103},
        {"scaled": -1},
        {"scaled": 99.5},
        {"mean_difference": "small"},
        {"reason": None},
        {"instead": []},
        {"instead": {"allowed": True}},
    ],
    ids=str,
)
def test_a_record_that_contradicts_itself_is_no_manifest(altered, changes):
    with pytest.raises(BundleError, match="not a valid manifest"):
        load(altered(**changes))


@pytest.mark.parametrize("wish", ["yes", None, 2])
def test_an_unknown_wish_is_refused(proven, wish):
    with pytest.raises(UsageError, match="Unknown fast_decode"):
        load(proven, fast_decode=wish)


def test_a_reload_goes_by_the_new_bundles_record(proven, altered, caplog):
    with load(proven) as classifier:
        classifier.reload(proven)
        assert classifier.fast_decode
        assert "fast decoding is off" not in caplog.text
        classifier.reload(altered(instead=None))
        assert not classifier.fast_decode
        assert "fast decoding is off" in caplog.text


def test_small_pictures_are_no_evidence(tiny_run):
    for variant in open_bundle(tiny_run[2].bundle).variants:
        assert not variant.fast_decode.allowed
        assert "0 of 30 pictures that judged it are JPEGs large enough" in variant.fast_decode.reason


# -- the verdict


def answers(*classes):
    return np.eye(3, dtype=np.float32)[list(classes)]


MANY = MINIMUM_EVIDENCE
SAME = answers(*[0] * MANY)
CLOSE = [(0.5, 9)] * MANY


@pytest.mark.parametrize(
    ("plain", "scaled", "differences", "allowed", "reason"),
    [
        (SAME, SAME, CLOSE, True, "all 100 pictures"),
        (SAME[1:], SAME[1:], CLOSE[1:], False, "99 of 500 pictures .* 100 are wanted"),
        (SAME[:0], SAME[:0], [], False, "0 of 500 pictures"),
        (SAME, answers(*[0] * (MANY - 1), 1), CLOSE, False, "gives 1 of 100 pictures another class"),
        (SAME, SAME, [*CLOSE[1:], (1.51, 9)], False, "differ by 1.51 on average and 9 at most: over the bound"),
        (SAME, SAME, [*CLOSE[1:], (0.5, 21)], False, "differ by 0.50 on average and 21 at most: over the bound"),
    ],
)  # fmt: skip
def test_the_verdict(plain, scaled, differences, allowed, reason):
    record = judge_agreement(500, plain, scaled, differences)
    assert (record.allowed, record.pictures, record.scaled) == (allowed, 500, len(plain))
    assert re.search(reason, record.reason)
