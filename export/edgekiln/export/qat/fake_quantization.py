"""Fake quantization of a prepared network by NVIDIA's ModelOpt: ranges from real pictures, gradients straight through.

Symmetric INT8, per output channel for weights and per tensor for activations, as ``int8_tensorrt`` writes it:

    q(x) = s * clamp(round(x / s), -128, 127),   s = amax / 127

and in the backward pass dq/dx = 1 where |x| <= amax, else 0 (straight-through estimator, Bengio et al. 2013,
arXiv:1308.3432; with the clipping of Wu et al. 2020, arXiv:2004.09602, section 5.2). Ranges stay as calibrated while
weights are trained. State is plain tensors by name: ModelOpt's own save is a pickle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from edgekiln.export.precision.modelopt import import_modelopt, quiet_modelopt
from edgekiln.export.qat.graph import POINTS, PreparedNetwork, QuantizationPoint
from edgekiln.runtime.errors import PrecisionError

__all__ = [
    "PIXEL_RANGE",
    "calibrate",
    "fit_weight_ranges",
    "insert_quantizers",
    "load_quantized_state",
    "quantizers_off",
    "set_weight_ranges",
    "snap_weights",
    "weight_ranges",
]

_HALVINGS, _STEPS = 16, 4
"""Candidates for a weight's range: the largest weight, down to 2**-16 of it, in quarters of an octave."""

# The library's default lets the gradient of what is clipped through as well.
_INT8: Mapping[str, Any] = {"num_bits": 8, "pass_through_bwd": False}

Run = Callable[[nn.Module], None]


def insert_quantizers(prepared: PreparedNetwork, method: Literal["max", "entropy"] = "max") -> None:
    """Let ModelOpt put a quantizer at every point and at the weight of every product, in place. None has a range yet.

    Args:
        prepared: from ``prepare_network``.
        method: how ``calibrate`` will take ranges of activations; of weights it is always the largest.

    Raises:
        MissingExtraError: nvidia-modelopt is not installed.
        PrecisionError: ModelOpt cannot quantize the network.
    """
    library = _import_quantization()
    _register(library, prepared)
    calibrator = "histogram" if method == "entropy" else "max"
    config = {
        "quant_cfg": [
            {"quantizer_name": "*", "enable": False},
            *(
                {"quantizer_name": f"{name}.weight_quantizer", "cfg": {**_INT8, "axis": 0}}
                for name in prepared.products
            ),
            {
                "quantizer_name": f"{POINTS}.*input_quantizer",
                "cfg": {**_INT8, "axis": None, "calibrator": calibrator},
            },
        ],
        "algorithm": None,
    }
    with quiet_modelopt():
        try:
            library.quantize(prepared.network, config)
        except Exception as error:  # the library raises whatever its parts raise
            raise PrecisionError(
                f"ModelOpt cannot fake-quantize this network: {type(error).__name__}: {error}",
                hint="Leave qat out, or take another backbone.",
            ) from error


def _import_quantization() -> Any:
    return import_modelopt("modelopt.torch.quantization")


def _register(library: Any, prepared: PreparedNetwork) -> None:
    """Tell ModelOpt of our points: as modules whose input is quantized."""
    modules = import_modelopt("modelopt.torch.quantization.nn.modules.quant_module")
    if QuantizationPoint not in modules.QuantModuleRegistry:
        # The ignore: the base is known at run time only, since ModelOpt is imported on demand.
        class QuantizedPoint(modules.QuantInputBase):  # type: ignore[misc,name-defined]
            pass

        library.register(QuantizationPoint, QuantizedPoint)


def _weight_quantizers(network: nn.Module) -> Iterator[tuple[str, Any, Any]]:
    """(name, module, quantizer) of every product with INT8 weights."""
    for name, module in network.named_modules():
        quantizer = getattr(module, "weight_quantizer", None)
        if quantizer is not None and quantizer.is_enabled:
            yield name, module, quantizer


def _activation_quantizers(network: nn.Module) -> list[Any]:
    points = network.get_submodule(POINTS).children()
    return [point.input_quantizer for point in points]


PIXEL_RANGE = 127 / 128
"""Range of the input under the shared normalization (x - 127) / 128: the step is then 1/128, so that every pixel is its
own integer, and only 255 becomes 254."""


def calibrate(
    network: nn.Module,
    run: Run,
    method: Literal["max", "entropy"] = "max",
    *,
    input_range: float | None = None,
) -> None:
    """Give every quantizer its range.

    Args:
        network: with quantizers.
        run: sends the calibration pictures through the network, in evaluation mode.
        method: as in ``insert_quantizers``.
        input_range: of the network's input, where it is known; see ``PIXEL_RANGE``.

    Raises:
        PrecisionError: an activation is not finite.
    """
    with quiet_modelopt(), torch.no_grad():
        _watch_activations(network, run)
        points = dict(network.get_submodule(POINTS).named_children())
        for name, quantizer in zip(points, _activation_quantizers(network), strict=True):
            _load_range(name, quantizer, method)
            quantizer.disable_calib()
            quantizer.enable_quant()
        if input_range is not None:
            for point in _input_points(network):
                point.input_quantizer.amax = torch.full_like(point.input_quantizer.amax, input_range)
        for _, module, quantizer in _weight_quantizers(network):
            quantizer.amax = _largest(module.weight)


def _watch_activations(network: nn.Module, run: Run) -> None:
    """Let the calibrators see every activation of the pictures, with the whole network in float."""
    for quantizer in _activation_quantizers(network):
        quantizer.disable_quant()
        quantizer.enable_calib()
    with _weights_in_float(network):
        try:
            run(network)
        except AssertionError as error:  # the library's calibrators assert that they see numbers
            raise PrecisionError(
                f"The ranges of activations cannot be read from the calibration pictures: {error}"
            ) from error


def _load_range(name: str, quantizer: Any, method: Literal["max", "entropy"]) -> None:
    """Give one quantizer the range that its calibrator read; raises PrecisionError where there is none."""
    try:
        quantizer.load_calib_amax(*(["entropy"] if method == "entropy" else []))
        usable = bool(torch.isfinite(quantizer.amax).all() and (quantizer.amax > 0).all())
    except (RuntimeError, ValueError, AssertionError) as error:
        raise PrecisionError(f"The range of {name} cannot be read from the pictures: {error}") from error
    if not usable:
        raise PrecisionError(f"The calibration pictures give {name} the range {quantizer.amax}.")


def _input_points(network: Any) -> Iterator[Any]:
    """The points at the input of a traced network: one, or none where its first product stays in float."""
    for node in network.graph.nodes:
        if node.op == "call_module" and node.all_input_nodes and node.all_input_nodes[0].op == "placeholder":
            module = network.get_submodule(node.target)
            if hasattr(module, "input_quantizer") and str(node.target).startswith(f"{POINTS}."):
                yield module


def _largest(weight: Tensor) -> Tensor:
    """max |w| of each output channel, (C, 1, ...)."""
    return weight.detach().abs().amax(dim=tuple(range(1, weight.ndim)), keepdim=True)


@contextmanager
def _weights_in_float(network: nn.Module) -> Iterator[None]:
    quantizers = [quantizer for _, _, quantizer in _weight_quantizers(network)]
    for quantizer in quantizers:
        quantizer.disable()
    try:
        yield
    finally:
        for quantizer in quantizers:
            quantizer.enable()


@contextmanager
def quantizers_off(network: nn.Module) -> Iterator[None]:
    """The network in float, with the weights as they are."""
    activations = [quantizer for quantizer in _activation_quantizers(network) if quantizer.is_enabled]
    for quantizer in activations:
        quantizer.disable()
    try:
        with _weights_in_float(network):
            yield
    finally:
        for quantizer in activations:
            quantizer.enable()


def weight_ranges(network: nn.Module) -> dict[str, Tensor]:
    """Copies of the ranges of all INT8 weights, (C, 1, ...) by module name."""
    return {name: quantizer.amax.clone() for name, _, quantizer in _weight_quantizers(network)}


def fit_weight_ranges(network: nn.Module, run: Run) -> dict[str, Tensor]:
    """Ranges of INT8 weights by what the pictures make of them, (C, 1, ...) by module name; nothing is set.

    The largest weight of a channel sets the step of all others, also where its input is always zero and it says
    nothing. So each output channel takes the range r that minimizes, over candidates,

        sum_i E[x_i^2] (w_i - q_r(w_i))^2

    the expected squared error of its output for uncorrelated inputs x (the diagonal of the layer-wise loss in Nagel et
    al. 2020, arXiv:2004.10568, section 3.2). The largest weight is the first candidate, and wins a tie.

    Args:
        network: calibrated.
        run: as in ``calibrate``.
    """
    powers = _measure_inputs(network, run)
    return {
        name: _fit_range(module.weight.detach(), powers[name], _largest(module.weight))
        for name, module, _ in _weight_quantizers(network)
    }


def _measure_inputs(network: nn.Module, run: Run) -> dict[str, Tensor]:
    """E[x^2] of every input channel of the products with INT8 weights, float64 (channels,)."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def watch(name: str, module: nn.Module) -> Callable[..., None]:
        axis = -1 if isinstance(module, nn.Linear) else 1

        def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            x = arguments[0].detach().double()
            others = [d for d in range(x.ndim) if d != axis % x.ndim]
            sums[name] = sums.get(name, torch.zeros(())) + x.square().sum(dim=others)
            counts[name] = counts.get(name, 0) + x.numel() // x.shape[axis]

        return hook

    products = [(name, module) for name, module, _ in _weight_quantizers(network)]
    hooks = [module.register_forward_pre_hook(watch(name, module)) for name, module in products]
    try:
        with torch.no_grad():
            run(network)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: total / counts[name] for name, total in sums.items()}


def _fit_range(weight: Tensor, power: Tensor, largest: Tensor) -> Tensor:
    """The best candidate of each output channel; ``power`` is of all input channels, group after group."""
    groups = power.numel() // weight.shape[1]
    importance = power.to(weight).reshape(groups, 1, weight.shape[1])
    importance = importance.expand(groups, weight.shape[0] // groups, weight.shape[1])
    importance = importance.reshape(weight.shape[:2] + (1,) * (weight.ndim - 2))
    best, error = largest.clone(), torch.full_like(largest, torch.inf)
    for step in range(_HALVINGS * _STEPS + 1):
        candidate = largest * 2.0 ** (-step / _STEPS)
        scale = (candidate / 127).clamp_min(torch.finfo(weight.dtype).tiny)
        rounded = (weight / scale).round().clamp(-128, 127) * scale
        loss = ((weight - rounded).square() * importance).sum(dim=tuple(range(1, weight.ndim)), keepdim=True)
        better = loss < error
        best, error = torch.where(better, candidate, best), torch.where(better, loss, error)
    return best


def set_weight_ranges(network: nn.Module, ranges: Mapping[str, Tensor]) -> None:
    """Set the ranges of INT8 weights by module name."""
    for name, _, quantizer in _weight_quantizers(network):
        quantizer.amax = ranges[name]


def load_quantized_state(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Weights and ranges into a network with quantizers, from the ``state_dict`` of one like it.

    Raises:
        RuntimeError: names or shapes differ.
    """
    weights = {f"{name}.weight_quantizer": quantizer for name, _, quantizer in _weight_quantizers(network)}
    points = dict(network.get_submodule(POINTS).named_children())
    activations = {
        f"{POINTS}.{name}.input_quantizer": point.input_quantizer for name, point in points.items()
    }
    for name, quantizer in {**weights, **activations}.items():
        if f"{name}._amax" not in tensors:  # the library would take a range of its own for every batch
            raise RuntimeError(f"Missing key: no range of {name}.")
        quantizer.amax = tensors[f"{name}._amax"]
    network.load_state_dict(dict(tensors), strict=True)


def snap_weights(network: nn.Module) -> None:
    """Move every INT8 weight to the value that its kernel multiplies by: the answers stay, to the bit.

    A file may then round it to FP16, by a share of 2**-11, and it still quantizes to the same integer: 127 * 2**-11 and
    as much again of the scale is an eighth of a step.
    """
    with torch.no_grad():
        for _, module, quantizer in _weight_quantizers(network):
            parameter = dict(module.named_parameters(recurse=False))["weight"]
            parameter.copy_(quantizer(parameter.detach()))
