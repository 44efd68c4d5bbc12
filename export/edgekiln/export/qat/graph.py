"""A network made ready for quantization-aware training: as a graph, BatchNorm folded, INT8 tensors marked.

What TensorRT fuses is decided by where Q/DQ pairs stand, so the pairs are placed before anything is trained, by the
rules that NVIDIA's ModelOpt follows when it quantizes an ONNX file: the inputs of convolutions and linear layers, one
pair per tensor however many read it, and the identity branch of a residual Add. The answers stay what they were: that
is checked. This module needs torch alone.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode

from edgekiln.runtime.errors import PrecisionError

__all__ = ["POINTS", "PreparedNetwork", "QuantizationPoint", "prepare_network"]

POINTS = "quantization_points"
"""Submodule of a prepared network that holds its points, named by the tensors that they quantize."""
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_PASSING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)  # gone from an exported graph
_ADDS: tuple[Any, ...] = (operator.add, operator.iadd, torch.add, "add", "add_")
_TOLERANCE = 1e-4  # of the range of the answers: folding BatchNorm reorders float32 sums, and no more
_FEW_CHANNELS = 16  # ModelOpt 0.47, find_nodes_from_convs_to_exclude: below it INT8 kernels are few


Padding = tuple[int, int, int, int]
"""Left, right, top, bottom, as ``torch.nn.functional.pad`` has it."""


class QuantizationPoint(nn.Module):
    """The identity. It marks a tensor that becomes INT8, for a quantizer to take its place."""

    def forward(self, tensor: Tensor) -> Tensor:
        """See the class."""
        return tensor


@dataclass(frozen=True, slots=True)
class PreparedNetwork:
    """What was made of a network.

    Attributes:
        network: the same function of normalized images (N, 3, H, W), with ``QuantizationPoint``s in it.
        products: names of the submodules (convolutions, linear layers) that compute in INT8.
        kept_float: names of those that do not, since no INT8 kernel would gain anything there.
    """

    network: fx.GraphModule
    products: tuple[str, ...]
    kept_float: tuple[str, ...]


def prepare_network(network: nn.Module, size: int) -> PreparedNetwork:
    """Trace a network, fold its BatchNorm, and mark the tensors that become INT8.

    It is traced in evaluation mode: what depends on the mode in plain Python (dropout and stochastic depth that are no
    modules of ``torch.nn``) is off from here on.

    Args:
        network: normalized images (N, 3, H, W) to logits (N, C); its submodules are taken over and changed.
        size: H and W.

    Raises:
        PrecisionError: it cannot be traced, its answers would change, or it has no product that INT8 suits.
    """
    network.eval()
    example = torch.linspace(-1, 1, 2 * 3 * size * size).reshape(2, 3, size, size)
    with torch.no_grad():
        expected = network(example)
        traced = _trace(network)
        _forget_assertions(traced)
        _unroll_convolutions(traced, example)
        _fold_batchnorm(traced)
        _forget_unused(traced)
        ShapeProp(traced).propagate(example[:1])
        products, kept = _choose_products(traced)
        _place_points(traced, set(products))
        difference = float((traced(example) - expected).abs().max())
    if not difference <= _TOLERANCE * float(expected.max() - expected.min() + 1):
        raise PrecisionError(
            f"The network answers otherwise once it is traced: logits differ by {difference:.3g}.",
            hint="It changes tensors in place, or depends on its input by Python code; leave qat out.",
        )
    return PreparedNetwork(traced.requires_grad_(True), tuple(products), tuple(kept))


class _Tracer(fx.Tracer):
    """Stops at every convolution and linear layer, also those of other libraries."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (*_CONVOLUTIONS, nn.Linear)) or super().is_leaf_module(m, module_qualified_name)


def _trace(network: nn.Module) -> fx.GraphModule:
    for module in network.modules():
        if hasattr(module, "inplace"):
            module.inplace = False  # type: ignore[assignment] # a quantizer may read a tensor beside who overwrites it
    try:
        traced = fx.GraphModule(network, _Tracer().trace(network))
    except Exception as error:  # what a network does with a proxy may raise anything
        raise PrecisionError(
            f"Quantization-aware training cannot trace {type(network).__name__}: {type(error).__name__}: {error}",
            hint="Its forward must not decide by the values or shapes of tensors; or leave qat out.",
        ) from error
    for node in traced.graph.nodes:
        if node.op == "call_function" and node.target is operator.iadd:
            node.target = operator.add
        if "inplace" in node.kwargs:
            node.kwargs = {**node.kwargs, "inplace": False}
    return traced


def _forget_assertions(traced: fx.GraphModule) -> None:
    """Checks of shapes inside a network read tensors, and would stand between a convolution and its BatchNorm."""
    for node in reversed(traced.graph.nodes):
        if node.op == "call_function" and node.target is torch._assert:
            traced.graph.erase_node(node)
    traced.graph.eliminate_dead_code()


# --------------------------------------------------------------------------------------------------------------
# Convolutions of other libraries: what they do to pictures of this size, as plain modules


class _Watch(TorchFunctionMode):
    """Records the paddings and convolutions that run."""

    def __init__(self) -> None:
        super().__init__()
        self.pads: list[list[int]] = []
        self.convolutions: list[tuple[Any, ...]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func in {torch.conv1d, torch.conv2d, torch.conv3d}:
            self.convolutions.append(args)
        elif getattr(func, "__name__", "") in {"pad", "constant_pad_nd"}:
            self.pads.append(list(args[1] if len(args) > 1 else given["pad"]))
        return func(*args, **given)


def _unroll_convolutions(traced: fx.GraphModule, example: Tensor) -> None:
    """Put a padding and a plain convolution in the place of each subclass with a forward of its own.

    TensorFlow's "same" padding, as timm has it, is computed from the input's size inside the module; a Q/DQ pair must
    stand behind it, right before the convolution.
    """
    modules = dict(traced.named_modules())
    own = [
        node
        for node in traced.graph.nodes
        if node.op == "call_module"
        and isinstance(module := modules[node.target], _CONVOLUTIONS)
        and type(module).forward not in {kind.forward for kind in _CONVOLUTIONS}
    ]
    if not own:
        return
    inputs = _record_inputs(traced, own, example)
    for number, node in enumerate(own):
        padding = _unroll(traced, node, modules[node.target], inputs[node])
        if any(padding):
            name = f"explicit_padding_{number}"
            traced.add_submodule(name, nn.ConstantPad2d(padding, 0.0))
            with traced.graph.inserting_before(node):
                node.replace_input_with(node.args[0], traced.graph.call_module(name, (node.args[0],)))
    traced.recompile()


def _record_inputs(traced: fx.GraphModule, nodes: list[fx.Node], example: Tensor) -> dict[fx.Node, Tensor]:
    seen: dict[fx.Node, Tensor] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            if n in nodes:
                seen[n] = self.fetch_args_kwargs_from_env(n)[0][0]
            return super().run_node(n)

    Recorder(traced).run(example)
    return seen


def _unroll(traced: fx.GraphModule, node: fx.Node, module: Any, inputs: Tensor) -> Padding:
    """Replace a module by a plain convolution with the same parameters; returns the padding to put before it."""
    with _Watch() as watch:
        expected = module(inputs)
    if len(watch.convolutions) == 1 and len(watch.pads) <= 1 and isinstance(module, nn.Conv2d):
        _, weight, bias, stride, padding, dilation, groups = watch.convolutions[0]
        if weight is module.weight and bias is module.bias and isinstance(padding, tuple | list):
            plain = nn.Conv2d(
                module.in_channels,
                module.out_channels,
                tuple(module.kernel_size),  # type: ignore[arg-type] # two numbers
                stride,
                tuple(padding),
                dilation,
                groups,
                bias=module.bias is not None,
            )
            plain.weight, plain.bias = module.weight, module.bias
            left, right, top, bottom = [*watch.pads, [0, 0, 0, 0]][0]
            before = (left, right, top, bottom)
            if torch.equal(plain(nn.functional.pad(inputs, before)), expected):
                traced.set_submodule(str(node.target), plain.eval())
                return before
    raise PrecisionError(
        f"{node.target} is a {type(module).__name__}, whose forward is more than a padding and a convolution.",
        hint="Leave qat out for this backbone.",
    )


# --------------------------------------------------------------------------------------------------------------
# BatchNorm


def _fold_batchnorm(traced: fx.GraphModule) -> None:
    """Put every BatchNorm behind a convolution into its weights, as the exported file has it.

    w' = w * g / sqrt(v + eps), b' = (b - m) * g / sqrt(v + eps) + beta (Jacob et al. 2018, arXiv:1712.05877, equation
    14): INT8 kernels multiply by w', so it is w' that must be trained to bear INT8.
    """
    modules: dict[str, Any] = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        statistics = _batchnorm_of(traced, node, modules)
        conv = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        if statistics is None or conv is None or not _is_foldable(traced, conv, modules):
            continue
        module = modules[str(conv.target)]
        module.weight, module.bias = fuse_conv_bn_weights(module.weight, module.bias, *statistics)
        node.replace_all_uses_with(conv)
        traced.graph.erase_node(node)
    traced.graph.eliminate_dead_code()
    traced.recompile()


_Statistics = tuple[Tensor, Tensor, float, Tensor, Tensor]


def _batchnorm_of(traced: fx.GraphModule, node: fx.Node, modules: dict[str, Any]) -> _Statistics | None:
    """(mean, variance, eps, weight, bias) of a node that normalizes by kept statistics; ``None`` for any other."""
    if node.op == "call_module" and isinstance(modules[str(node.target)], _BatchNorm):
        norm = modules[str(node.target)]
        if norm.running_mean is None:
            return None
        return _with_affine(norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
    if node.op != "call_function" or node.target is not nn.functional.batch_norm:
        return None
    names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    given: dict[str, Any] = {
        "training": False,
        "eps": 1e-5,
        **dict(zip(names, node.args, strict=False)),
        **node.kwargs,
    }
    mean, variance, weight, bias = (_constant(traced, given.get(name)) for name in names[1:5])
    if given["training"] or mean is None or variance is None:
        return None
    return _with_affine(mean, variance, float(given["eps"]), weight, bias)


def _with_affine(
    mean: Tensor, variance: Tensor, eps: float, weight: Tensor | None, bias: Tensor | None
) -> _Statistics:
    ones, zeros = torch.ones_like(mean), torch.zeros_like(mean)
    return mean, variance, eps, ones if weight is None else weight, zeros if bias is None else bias


def _constant(traced: fx.GraphModule, node: Any) -> Tensor | None:
    """The tensor that a ``get_attr`` node stands for."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    owner, _, name = str(node.target).rpartition(".")
    value: Tensor = getattr(traced.get_submodule(owner), name)
    return value


def _is_foldable(traced: fx.GraphModule, conv: fx.Node, modules: dict[str, Any]) -> bool:
    """Whether a node is a convolution that runs once and that nothing else reads."""
    if conv.op != "call_module" or not isinstance(modules[str(conv.target)], _CONVOLUTIONS):
        return False
    calls = sum(node.op == "call_module" and node.target == conv.target for node in traced.graph.nodes)
    return calls == 1 and len(conv.users) == 1


def _forget_unused(traced: fx.GraphModule) -> None:
    """Drop parameters and buffers that the graph no longer reads: they would be kept, and decayed, for nothing."""
    traced.delete_all_unused_submodules()
    targets = {str(node.target) for node in traced.graph.nodes if node.op in {"call_module", "get_attr"}}
    for name, _ in [*traced.named_parameters(), *traced.named_buffers()]:
        parts = name.split(".")
        if not any(".".join(parts[:length]) in targets for length in range(1, len(parts) + 1)):
            delattr(traced.get_submodule(".".join(parts[:-1])), parts[-1])


# --------------------------------------------------------------------------------------------------------------
# Which products, and which tensors


def _choose_products(traced: fx.GraphModule) -> tuple[list[str], list[str]]:
    """Names of the products that compute in INT8, and of the others, in the order of the graph."""
    modules = dict(traced.named_modules())
    chosen: dict[str, bool] = {}
    for node in traced.graph.nodes:
        if node.op != "call_module" or not isinstance(modules[node.target], (*_CONVOLUTIONS, nn.Linear)):
            continue
        fits = _has_kernel(node, modules[node.target])
        chosen[node.target] = chosen.get(node.target, True) and fits
    if not any(chosen.values()):
        raise PrecisionError(
            f"None of the {len(chosen)} products of this network suits INT8.",
            hint="Convolutions need at least 16 channels; take an FP16 variant instead.",
        )
    return [n for n, fits in chosen.items() if fits], [n for n, fits in chosen.items() if not fits]


def _has_kernel(node: fx.Node, module: Any) -> bool:
    """Whether INT8 gains anything there, by the rules of ModelOpt 0.47: then both ways to INT8 give the same layers.

    The product of a matrix and a vector does not, and convolutions of few channels only in some shapes.
    """
    if isinstance(module, nn.Linear):
        return bool(node.meta["tensor_meta"].shape.numel() > module.out_features)  # of one image
    kernel: tuple[int, ...] = module.kernel_size
    out, per_group = int(module.out_channels), int(module.in_channels) // int(module.groups)
    if out >= _FEW_CHANNELS and per_group >= _FEW_CHANNELS:
        return True
    if module.groups > 1:
        return out % 8 == 0 and min(kernel) >= 3
    return (
        (out % 8 == 0 or per_group % 8 == 0)
        and max(out, per_group) >= _FEW_CHANNELS
        and len(set(kernel)) == 1
    )


def _place_points(traced: fx.GraphModule, products: set[str]) -> None:
    """One point per tensor that becomes INT8, and its readers behind it."""
    readers: dict[fx.Node, list[fx.Node]] = {}
    for node in traced.graph.nodes:
        if node.op == "call_module" and node.target in products:
            readers.setdefault(node.args[0], []).append(node)
    for add, identity in _residual_adds(traced, products):
        readers.setdefault(identity, []).append(add)
    traced.add_submodule(POINTS, nn.ModuleDict())
    for tensor, nodes in readers.items():
        traced.add_submodule(f"{POINTS}.{tensor.name}", QuantizationPoint())
        with traced.graph.inserting_after(tensor):
            point = traced.graph.call_module(f"{POINTS}.{tensor.name}", (tensor,))
        for node in nodes:
            node.replace_input_with(tensor, point)
    traced.graph.lint()
    traced.recompile()


def _residual_adds(traced: fx.GraphModule, products: set[str]) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Every Add that has an INT8 convolution on a side, with its other input, the identity branch.

    TensorRT adds inside the kernel of a convolution that feeds the sum in float, if the other input is INT8. Where both
    are such convolutions, the one at the end of the longer branch fuses. A convolution whose output others read too
    cannot take the sum in: it is the identity branch itself.
    """
    modules = dict(traced.named_modules())
    depth: dict[fx.Node, int] = {}
    for node in traced.graph.nodes:
        above = max((depth[source] for source in node.all_input_nodes), default=0)
        depth[node] = above + (node.op == "call_module" and node.target in products)
        if node.op not in {"call_function", "call_method"} or node.target not in _ADDS or len(node.args) != 2:
            continue
        sides = [side for side in node.args if isinstance(side, fx.Node) and side.op != "get_attr"]
        if len(sides) != 2 or sides[0] is sides[1]:
            continue
        convs = {side: conv for side in sides if (conv := _find_convolution(side, modules, products))}
        fusible = [side for side, conv in convs.items() if len(conv.users) == len(side.users) == 1]
        if fusible:
            fused = max(fusible, key=lambda side: depth[side])
            yield node, sides[1 - sides.index(fused)]
        else:
            yield from ((node, side) for side in convs)


def _find_convolution(node: fx.Node, modules: dict[str, nn.Module], products: set[str]) -> fx.Node | None:
    """The INT8 convolution that a branch ends in."""
    while node.op == "call_module" and isinstance(modules[str(node.target)], _PASSING):
        node = node.all_input_nodes[0]
    is_product = node.op == "call_module" and node.target in products
    return node if is_product and isinstance(modules[str(node.target)], _CONVOLUTIONS) else None
