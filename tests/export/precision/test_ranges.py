import numpy as np
import pytest
import torch
from export_support import edit_weights, export_network, export_residual, make_frames, node_of_weight
from torch import nn

from edgekiln.export.precision.ranges import (
    FP16_MAX,
    ActivationPeak,
    measure_peaks,
    refuse_non_finite,
    vanishing_weights,
)
from edgekiln.runtime.errors import PrecisionError


class Hand(nn.Module):
    """A network that numpy computes in three lines."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.relu(self.mix(x)).mean(dim=(2, 3)))


class Windows(nn.Module):
    """Four windows of each picture become the leading axis, as in a Swin transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(48, 3)

    def forward(self, x):
        n, c, _, _ = x.shape
        x = x.reshape(n, c, 2, 4, 2, 4).permute(0, 2, 4, 1, 3, 5).reshape(n * 4, c * 16)
        return torch.sin(self.head(x)).reshape(n, 4, 3).sum(dim=1)


def find(peaks, node):
    (found,) = (peak for peak in peaks if peak.node == node)
    return found


def test_peaks_are_those_that_numpy_computes(tmp_path):
    torch.manual_seed(0)
    network = Hand()
    path = export_network(network, tmp_path / "m.onnx", size=8)
    frames = make_frames(19, 8)  # more than two batches of 8, and a rest
    peaks = measure_peaks(path.read_bytes(), frames)
    weight, bias, head, head_bias = (value.detach().numpy() for value in network.parameters())
    pixels = (frames.astype(np.float64) - 127) / 128
    mixed = pixels @ weight[:, :, 0, 0].T + bias
    logits = np.maximum(mixed, 0).mean(axis=(1, 2)) @ head.T + head_bias
    for node, values in (("mix.weight", mixed), ("head.weight", logits)):
        per_image = np.abs(values).reshape(19, -1).max(axis=1)
        peak = find(peaks, node_of_weight(path, node))
        assert peak.value == pytest.approx(per_image.max(), rel=1e-5)  # float32 against float64
        assert peak.image == per_image.argmax()
    assert find(peaks, "node_relu").value == pytest.approx(mixed.max(), rel=1e-5)
    assert (peaks[0].node, peaks[0].value) == ("node__to_copy", frames.max())
    assert [peak.value for peak in peaks] == sorted((peak.value for peak in peaks), reverse=True)


def test_order_of_pictures_does_not_change_the_peaks(tmp_path):
    path = export_residual(tmp_path / "m.onnx")
    frames = make_frames(20)
    forward, backward = (measure_peaks(path.read_bytes(), f) for f in (frames, np.array(frames[::-1])))
    assert {p.tensor: p.value for p in forward} == pytest.approx({p.tensor: p.value for p in backward})
    moved = {peak.tensor: 19 - peak.image for peak in backward}
    unique = [peak for peak in forward if peak.tensor not in {"_to_copy", "permute"}]  # many have a 255
    assert {peak.tensor: peak.image for peak in unique if peak.node.startswith("node_conv")} == {
        peak.tensor: moved[peak.tensor] for peak in unique if peak.node.startswith("node_conv")
    }


def test_windows_on_the_leading_axis_are_told_by_their_picture(tmp_path):
    torch.manual_seed(0)
    path = export_network(Windows(), tmp_path / "m.onnx", size=8)
    frames = np.full((11, 8, 8, 3), 127, np.uint8)
    frames[9, 6:, 6:] = 255  # the last window of the last picture but one
    peaks = measure_peaks(path.read_bytes(), frames)
    windows = [
        peak for peak in peaks if peak.value > 0 and "linear" not in peak.node and "sin" not in peak.node
    ]
    assert {peak.image for peak in windows if peak.value == 1.0} == {9}  # (255 - 127) / 128
    assert all(0 <= peak.image < 11 for peak in peaks)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 5, 15])
def test_one_value_that_is_no_number_is_found(tmp_path, value, place):
    def spoil(bias):
        bias = bias.copy()
        bias[place] = value
        return bias

    path = edit_weights(export_residual(tmp_path / "m.onnx"), conv1_bias=spoil)
    peaks = measure_peaks(path.read_bytes(), make_frames(3))
    assert find(peaks, node_of_weight(path, "conv1.weight")).value == np.inf
    assert peaks[0].value == np.inf
    with pytest.raises(PrecisionError, match=r"gives NaN or infinity at node_\w+ for calibration image 0\."):
        refuse_non_finite(peaks[0])


def test_finite_peak_is_no_problem():
    refuse_non_finite(ActivationPeak("a", "b", 2 * FP16_MAX, 0))


def test_vanishing_weights_are_counted_among_the_nonzero(tmp_path):
    def thin(weight):
        weight = np.ones_like(weight)
        weight[0, :4] = -1e-9
        weight[0, 4:8] = 0  # was never there to be lost
        weight[0, 8] = 2.0**-25  # halfway to the smallest: rounds to even, which is zero
        weight[0, 9] = 2.0**-24
        return weight

    path = edit_weights(export_residual(tmp_path / "m.onnx"), head_weight=thin)
    assert vanishing_weights(path.read_bytes()) == {"network.head.weight": 5 / (48 - 4)}
    weight = thin(np.zeros((3, 16), np.float32))
    assert ((weight != 0) & (weight.astype(np.float16) == 0)).sum() == 5  # as numpy rounds


def test_ordinary_weights_do_not_vanish(tmp_path):
    assert vanishing_weights(export_residual(tmp_path / "m.onnx").read_bytes()) == {}
