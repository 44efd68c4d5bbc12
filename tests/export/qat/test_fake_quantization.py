import numpy as np
import pytest
import torch
from export_support import make_frames, make_residual
from hostile import HostileNet
from torch import nn

from edgekiln.export.qat import fake_quantization as fake
from edgekiln.export.qat.graph import POINTS, prepare_network
from edgekiln.runtime.errors import MissingExtraError, PrecisionError

pytest.importorskip("modelopt", reason="fake-quantizes with nvidia-modelopt")

IMAGES = (torch.from_numpy(make_frames(32)).permute(0, 3, 1, 2).float() - 127) / 128


def run(network):
    with torch.no_grad():
        network.eval()(IMAGES)


def quantized(network=None, **options):
    """A calibrated network."""
    prepared = prepare_network(make_residual() if network is None else network, 16)
    fake.insert_quantizers(prepared, **options)
    fake.calibrate(prepared.network, run, **options)
    return prepared.network


def round_to(x, step):
    return (x / step).round().clamp(-128, 127) * step


def test_answers_are_those_of_the_formula():
    plain, network = make_residual(), quantized()
    amax = {n: m.amax for n, m in network.named_modules() if n.endswith("quantizer") and m.is_enabled}
    q = lambda x, name: round_to(x, amax[f"{POINTS}.{name}.input_quantizer"] / 127)  # noqa: E731

    def conv(layer, x):
        step = layer.weight.abs().amax(dim=(1, 2, 3), keepdim=True) / 127
        return nn.functional.conv2d(x, round_to(layer.weight, step), layer.bias, layer.stride, layer.padding)

    with torch.no_grad():
        x = q(torch.relu(conv(plain.stem, q(IMAGES, "x"))), "relu")
        y = conv(plain.conv2, q(torch.relu(conv(plain.conv1, x)), "relu_1"))
        expected = plain.head(torch.relu(x + y).mean(dim=(2, 3)))
        # A rounding that falls to the other side moves one value by a 127th of its range.
        torch.testing.assert_close(network.eval()(IMAGES), expected, atol=1e-3, rtol=0)
        assert amax[f"{POINTS}.x.input_quantizer"] == IMAGES.abs().max()
        assert not torch.equal(network(IMAGES), plain.eval()(IMAGES))


def test_gradients_pass_straight_through_but_not_where_a_value_is_clipped():
    network = quantized()
    module = network.get_submodule("conv1")
    weight = dict(module.named_parameters())["weight"]
    ranges = fake.weight_ranges(network)
    ranges["conv1"] = ranges["conv1"] / 2
    fake.set_weight_ranges(network, ranges)
    network.train()(IMAGES).square().sum().backward()
    clipped = weight.detach().abs() > ranges["conv1"]
    assert clipped.any()
    assert (weight.grad[clipped] == 0).all()
    assert (weight.grad[~clipped] != 0).any()


def test_ranges_are_fitted_to_what_a_channel_sees():
    network = quantized(HostileNet((2,)))
    largest, fitted = fake.weight_ranges(network), fake.fit_weight_ranges(network, run)
    # Input 0 of the third convolution is always zero; its weight of 1000 sets every channel's step but the dead one's.
    assert (largest["layers.2"][1:] == 1000).all()
    weights = HostileNet((2,)).layers[2].weight.detach()
    rest = weights[1:, 1:].abs().amax(dim=(1, 2, 3), keepdim=True)
    assert (fitted["layers.2"][1:] < 1.5 * rest).all()  # two candidates of 2**0.25 above it
    assert (fitted["layers.2"][1:] > 0.5 * rest).all()
    assert all((fitted[name] <= largest[name]).all() for name in largest)


def test_fitted_range_is_the_best_of_its_candidates():
    generator = np.random.default_rng(0)
    weight = torch.from_numpy(generator.standard_normal((4, 6, 3, 3)).astype(np.float32))
    weight[:, 0, 0, 0] = 40  # where it matters little
    power = torch.from_numpy(generator.uniform(0, 2, 6))
    power[0] = 1e-6
    largest = weight.abs().amax(dim=(1, 2, 3), keepdim=True)

    def loss(ranges):
        error = (weight - round_to(weight, ranges / 127)).square() * power.float()[None, :, None, None]
        return error.sum(dim=(1, 2, 3))

    best = loss(fake._fit_range(weight, power, largest))
    others = [loss(largest * 2 ** (-i / 4)) for i in range(65)]
    assert torch.equal(best, torch.stack(others).min(dim=0).values)
    assert (best < loss(largest)).any()


def test_groups_see_their_own_inputs():
    weight, power = torch.ones(4, 1, 3, 3), torch.tensor([0.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    weight[:, 0, 0, 0] = 100.0
    largest = torch.full((4, 1, 1, 1), 100.0)
    ranges = fake._fit_range(weight, power, largest)
    assert ranges[0] == 100.0  # it sees nothing: every candidate is as good, the largest is taken
    assert torch.equal(ranges[1], ranges[2])


def test_snapped_weights_answer_the_same_and_survive_fp16():
    network = quantized()
    with torch.no_grad():
        before = network.eval()(IMAGES)
        fake.snap_weights(network)
        assert torch.equal(network(IMAGES), before)
        for name, amax in fake.weight_ranges(network).items():
            weight = network.get_submodule(name).weight.detach()
            exact = (weight / (amax / 127)).round()
            rounded = weight.half().float() / (amax / 127).half().float()
            assert torch.equal(rounded.round(), exact)
            assert (rounded - exact).abs().max() < 0.2  # see the docstring


def test_state_is_tensors_and_comes_back_whole():
    network = quantized()
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert all(isinstance(tensor, torch.Tensor) for tensor in state.values())
    prepared = prepare_network(make_residual(seed=1), 16)
    fake.insert_quantizers(prepared)
    fake.load_quantized_state(prepared.network, state)
    with torch.no_grad():
        assert torch.equal(prepared.network.eval()(IMAGES), network.eval()(IMAGES))
    for key in ("stem.bias", "stem.weight_quantizer._amax", f"{POINTS}.relu.input_quantizer._amax"):
        with pytest.raises(RuntimeError, match="Missing key"):
            fake.load_quantized_state(prepared.network, {k: v for k, v in state.items() if k != key})


def test_pixels_are_their_own_integers():
    network = quantized()
    fake.calibrate(network, run, input_range=fake.PIXEL_RANGE)
    pixels = (torch.arange(256.0) - 127) / 128
    kept = network.get_submodule(f"{POINTS}.x").eval()(pixels)
    assert torch.equal(kept[:-1], pixels[:-1])
    assert kept[-1] == pixels[-2]


def test_float_answers_come_back_while_quantizers_are_off():
    plain, network = make_residual().eval(), quantized().eval()
    with torch.no_grad():
        with fake.quantizers_off(network):
            torch.testing.assert_close(network(IMAGES), plain(IMAGES))  # no BatchNorm: only the order of sums
        assert not torch.allclose(network(IMAGES), plain(IMAGES), atol=1e-5)


def test_entropy_narrows_ranges():
    widest, narrowed = quantized(), quantized(method="entropy")
    for name in ("x", "relu", "relu_1"):
        one, other = (n.get_submodule(f"{POINTS}.{name}").input_quantizer.amax for n in (widest, narrowed))
        assert 0.1 * one < other <= 1.02 * one  # a bin may stick out


def test_activation_that_is_no_number_is_refused():
    network = make_residual()
    with torch.no_grad():
        network.stem.bias.fill_(torch.inf)
    prepared = prepare_network_unchecked(network)
    fake.insert_quantizers(prepared)
    with pytest.raises(PrecisionError, match=r"ranges of activations cannot be read.*inf"):
        fake.calibrate(prepared.network, run)


def prepare_network_unchecked(network):
    """``prepare_network`` refuses such a network by its answers, so the weight is spoilt afterwards."""
    spoilt = network.stem.bias.detach().clone()
    with torch.no_grad():
        network.stem.bias.zero_()
    prepared = prepare_network(network, 16)
    with torch.no_grad():
        prepared.network.get_submodule("stem").bias.copy_(spoilt)
    return prepared


def test_nothing_is_printed(capfd):
    quantized()
    assert capfd.readouterr() == ("", "")


def test_missing_library_is_told_with_the_install_line(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "modelopt", None)
    with pytest.raises(MissingExtraError, match=r"Run: pip install 'edgekiln\[modelopt\]'"):
        fake.insert_quantizers(prepare_network(make_residual(), 16))
