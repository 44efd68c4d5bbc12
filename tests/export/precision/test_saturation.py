"""Scales alone. That no product of a finished file can saturate is proven in ``test_int8_cpu``."""

import numpy as np
import pytest
from onnx import helper, numpy_helper

from edgekiln.export.precision.saturation import saturation_safe_scales, weight_overrides

SIXTEEN_BITS = 2**15 - 1


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("width", [1, 2, 9, 27, 64])
def test_no_rounded_pair_exceeds_the_limit(seed, width):
    rows = np.random.default_rng(seed).normal(size=(50, width)).astype(np.float32)
    rows[0] = np.abs(rows[0])  # all of one sign: every pair adds up
    scales = saturation_safe_scales(rows)
    quantized = np.rint(rows / scales[:, None]).astype(int)
    padded = np.pad(quantized, ((0, 0), (0, width % 2))).reshape(50, -1, 2)
    largest = max(np.maximum(padded, 0).sum(axis=2).max(), np.maximum(-padded, 0).sum(axis=2).max())
    assert 255 * largest <= SIXTEEN_BITS
    assert np.abs(quantized).max() <= 127


def test_scale_is_no_larger_than_it_must_be():
    # Opposite signs never add up, so full range is kept; equal signs of full size need half of it.
    opposite = np.array([[1.0, -1.0]], np.float32)
    equal = np.array([[1.0, 1.0]], np.float32)
    # 1e-6: one float32 step above the exact bound
    assert saturation_safe_scales(opposite)[0] == pytest.approx(1 / 127, rel=1e-6)
    assert saturation_safe_scales(equal)[0] == pytest.approx(2 / 128, rel=1e-6)
    assert saturation_safe_scales(equal, paired=False)[0] == pytest.approx(1 / 127, rel=1e-6)


def test_channel_of_zeros_gets_a_usable_scale():
    assert saturation_safe_scales(np.zeros((2, 4), np.float32)) == pytest.approx(1 / 127, rel=1e-6)


@pytest.mark.parametrize(
    ("groups", "channels", "paired"), [(1, 8, True), (3, 6, True), (3, 3, False), (1, 1, True)]
)
def test_only_true_depthwise_convolutions_are_exempt(groups, channels, paired):
    # groups x outputs: grey input, channel multiplier 2, depthwise, one channel in and out (paired is safe there)
    inputs = 3 if groups == 3 else 1
    weight = np.full((channels, inputs // groups, 3, 3), 0.5, np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=groups)
    graph = helper.make_graph([node], "g", [], [], [numpy_helper.from_array(weight, "w")])
    [scale, *_] = [entry["scale"] for entry in weight_overrides(graph)["w"]]
    # 1e-6: one float32 step above the exact bound
    assert scale == pytest.approx(1.0 / 128 if paired else 0.5 / 127, rel=1e-6)
