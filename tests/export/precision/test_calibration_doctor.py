"""The calibration doctor on made-up pictures and networks whose exact findings are known."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekiln.export.calibration import choose_calibration, hash_frames
from edgekiln.export.precision import calibration_doctor
from edgekiln.export.precision.calibration_doctor import (
    TrainingStatistics,
    brightness_and_contrast,
    describe_training,
    examine_calibration,
    measure_stability,
)
from edgekiln.runtime.errors import DataError
from edgekiln.runtime.spec import INPUT_NAME, OUTPUT_NAME

CLASSES = ("a", "b", "c")


def noise(count, seed=0, low=0, high=256):
    return np.random.default_rng(seed).integers(low, high, (count, 4, 4, 3), np.uint8)


def scaling_graph(factor=2.0):
    """uint8 (N, 4, 4, 3) -> float -> times ``factor``: two tensors whose peaks are the brightest pixel."""
    nodes = [
        helper.make_node("Cast", [INPUT_NAME], ["x"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "factor"], [OUTPUT_NAME], name="scale"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(INPUT_NAME, TensorProto.UINT8, ["batch", 4, 4, 3])],
        [helper.make_tensor_value_info(OUTPUT_NAME, TensorProto.FLOAT, ["batch", 4, 4, 3])],
        [numpy_helper.from_array(np.array(factor, np.float32), "factor")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def examine(frames, labels=None, training=None, judging=frozenset(), **more):
    labels = np.arange(len(frames)) % 3 if labels is None else np.asarray(labels)
    known = training or describe_training(frames, labels, CLASSES)
    return examine_calibration(
        frames, labels, training=known, judging=judging, source=scaling_graph(), **more
    )


def test_luma_is_that_of_rec_601():
    frames = np.zeros((4, 2, 2, 3), np.uint8)
    frames[0, ..., 0], frames[1, ..., 1], frames[2, ..., 2] = 100, 100, 100
    frames[3, 0] = 200  # half white, half black
    brightness, contrast = brightness_and_contrast(frames)
    assert brightness == pytest.approx([29.9, 58.7, 11.4, 100.0])
    assert contrast == pytest.approx([0, 0, 0, 100.0])


def test_healthy_set_has_no_warnings():
    frames = noise(64)
    frames[::2, 0, 0, 0] = 255  # both halves know the brightest pixel
    frames[1::2, 0, 0, 0] = 255
    report = examine(frames)
    assert report.warnings == ()
    assert report.class_counts == {"a": 22, "b": 21, "c": 21}
    assert report.to_dict()["stability"]["enough"] is True


def test_absent_and_scarce_classes_are_named():
    training = TrainingStatistics(CLASSES, (500, 400, 100), np.array([0.0, 255.0]), np.array([0.0, 255.0]))
    # 2 of 100 is below a tenth of 40 %, 98 of 100 is not; c has none
    report = examine(noise(100), np.repeat([0, 1], [98, 2]), training)
    assert (report.absent, report.scarce) == (("c",), ("b",))
    assert "no calibration image of c" in report.warnings[0]
    # exactly a tenth of its share is not scarce
    assert examine(noise(100), np.repeat([0, 1, 2], [95, 4, 1]), training).scarce == ()


def test_repeated_frames_are_counted():
    frames = noise(40)
    frames[10], frames[20], frames[21] = frames[0], frames[0], frames[1]
    report = examine(frames)
    assert report.duplicates == 3
    assert "3 of 40 calibration images repeat others" in report.warnings


def test_calibration_image_of_a_judging_split_is_refused():
    frames = noise(40)
    with pytest.raises(
        DataError, match=r"2 of 40 calibration images stand in the val or test split; the first .* 7"
    ):
        examine(frames, judging=set(hash_frames(frames[[7, 30]])))


def test_choice_passes_over_what_stands_in_a_judging_split():
    train = noise(60)
    chosen = choose_calibration(train, 60, 0, set(hash_frames(train[[3, 4, 5]])))
    assert (len(chosen.frames), chosen.left_out) == (57, 3)
    assert not {3, 4, 5} & set(chosen.indices)
    report = examine(chosen.frames, left_out=chosen.left_out)
    assert "3 training images left out: the same pixels stand in val or test" in report.warnings
    # where nothing is shared, the choice is what it was
    assert (
        choose_calibration(train, 40, 1, {"other"}).indices == choose_calibration(train, 40, 1).indices
    ).all()


def lit(count, seed=0):
    """Pictures of many brightnesses and contrasts."""
    random = np.random.default_rng(seed)
    middle, spread = random.uniform(60, 190, count), random.uniform(5, 60, count)
    pixels = middle[:, None, None, None] + spread[:, None, None, None] * random.uniform(
        -1, 1, (count, 4, 4, 3)
    )
    return pixels.astype(np.uint8)


def differences(report):
    return [w for w in report.warnings if "is not distributed as in train" in w]


def test_dark_or_flat_subset_of_train_is_told():
    train = lit(1000)
    training = describe_training(train, np.zeros(1000, np.int64), CLASSES)
    brightness, contrast = brightness_and_contrast(train)
    dark = examine(train[np.argsort(brightness)[:500:5]], training=training)  # 100 of the darker half
    [warning] = differences(dark)
    # The darker half reaches share 1 where train reaches a half.
    assert dark.brightness_distance == pytest.approx(0.5, abs=0.01)
    assert warning.startswith(
        "brightness is not distributed as in train: the shares of images below a value differ"
    )
    assert (
        f"median {dark.brightness_median[0]:.0f}, in train {dark.brightness_median[1]:.0f} of 255" in warning
    )
    assert dark.brightness_median[0] < dark.brightness_median[1] - 20
    flat = examine(train[np.argsort(contrast)[:500:5]], training=training)
    assert [w.split()[0] for w in differences(flat)] == ["contrast"]


def test_random_subset_of_train_is_not_told():
    train = lit(1000)
    training = describe_training(train, np.zeros(1000, np.int64), CLASSES)
    for seed in range(20):
        for count in (32, 100, 500):
            chosen = choose_calibration(train, count, seed).frames
            assert differences(examine(chosen, training=training)) == []
    assert examine(train, training=training).brightness_distance == 0.0


def test_distance_that_is_allowed_is_smirnovs_and_at_least_a_tenth():
    train = lit(400)
    training = describe_training(train, np.zeros(400, np.int64), CLASSES)
    # c(0.001) = sqrt(-ln(0.0005) / 2) = 1.949; sqrt((100 + 400) / (100 * 400)) = 0.1118
    assert examine(train[:100], training=training).distance_allowed == pytest.approx(1.949 * 0.1118, rel=1e-3)
    assert calibration_doctor._allow_distance(10**6, 10**6) == 0.1


def test_constant_pictures_are_no_difference():
    frames = np.full((40, 4, 4, 3), 77, np.uint8)
    training = describe_training(np.repeat(frames, 10, axis=0), np.zeros(400, np.int64), CLASSES)
    assert differences(examine(frames, training=training)) == []


def test_stability_is_the_change_from_half_to_all():
    frames = np.full((40, 4, 4, 3), 100, np.uint8)
    frames[1] = 125  # among the odd ones, which the half does not see
    stability = measure_stability(scaling_graph(), frames)
    assert (stability.half, stability.images, stability.tensors) == (20, 40, 2)
    assert (
        stability.median == stability.percentile95 == pytest.approx(0.2)
    )  # (125 - 100) / 125, in both tensors
    assert not stability.enough
    assert dict(stability.worst) == pytest.approx({"cast": 0.2, "scale": 0.2})
    report = examine(frames)
    assert (
        "40 images are not enough: from 20 to 40 the ranges (max |x| in the float graph, before any clipping by "
        "the calibration method) still grow by up to 20.0%" in report.warnings[-1]
    )


def test_stability_at_the_threshold_is_enough():
    frames = np.full((40, 4, 4, 3), 95, np.uint8)
    frames[1] = 100
    assert measure_stability(scaling_graph(), frames).enough  # (100 - 95) / 100, exactly what is allowed
    frames[0] = 101  # seen by the half
    assert measure_stability(scaling_graph(), frames).percentile95 == 0.0


def test_infinite_and_dead_tensors_have_a_change():
    frames = np.full((40, 4, 4, 3), 1, np.uint8)
    assert measure_stability(scaling_graph(0.0), frames).median == 0.0
    frames[1] = 200
    stability = measure_stability(scaling_graph(3e36), frames)  # 200 times that is no float32
    assert dict(stability.worst)["scale"] == 1.0


def test_run_records_the_doctors_findings(tiny_run):
    row = next(v for v in tiny_run[2].report["variants"] if v["name"] == "int8")
    doctor = row["calibration"]["doctor"]
    assert doctor["images"] == 48
    assert sum(doctor["class_counts"].values()) == 48
    assert doctor["stability"]["half"] == 24
    assert isinstance(doctor["warnings"], list)
