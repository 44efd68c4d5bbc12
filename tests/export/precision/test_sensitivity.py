"""The closed loop on a network with products that INT8 cannot bear, made by hand: it must find exactly those."""

import itertools
import time
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from hostile import colored_frames
from onnx import TensorProto, helper, numpy_helper

from edgekiln.export.audits.macs import count_macs
from edgekiln.export.audits.onnxruntime import audit_int8
from edgekiln.export.calibration import choose_calibration
from edgekiln.export.precision.blocks import (
    MAX_BLOCKS,
    Block,
    float_neighbours,
    group_products,
    quantized_products,
)
from edgekiln.export.precision.int8_cpu import quantize_for_cpu
from edgekiln.export.precision.onnxruntime_quantizer import measure_ranges
from edgekiln.export.precision.saturation import largest_pair_sums
from edgekiln.export.precision.sensitivity import SearchProblem, search_precision
from edgekiln.export.precision.simulation import simulate
from edgekiln.pipeline.variants.searching import answer
from edgekiln.runtime.errors import PrecisionError

VAL = colored_frames(90, 5)
CALIBRATION = choose_calibration(colored_frames(48, 6)[0], 48, 0)


class Cpu:
    """The real CPU quantizer and engine; remembers what was made."""

    def __init__(self, source, folder):
        self.source, self.target, self.made = source, folder / "candidate.onnx", []
        self.ranges = measure_ranges(source, CALIBRATION)

    def make(self, keep_float):
        self.made.append(tuple(keep_float))
        quantize_for_cpu(self.source, self.target, CALIBRATION, keep_float=keep_float, ranges=self.ranges)
        return self.target.read_bytes()

    def evaluate(self, model):
        return answer(model, VAL[0])


class TensorRT(Cpu):
    """The real TensorRT quantizer, its graph simulated."""

    def __init__(self, source, folder):
        self.source, self.target, self.made = source, folder / "candidate.onnx", []

    def make(self, keep_float):
        from edgekiln.export.precision.int8_tensorrt import quantize_for_tensorrt

        self.made.append(tuple(keep_float))
        quantize_for_tensorrt(self.source, self.target, CALIBRATION, keep_float=keep_float, rest="fp16")
        return self.target.read_bytes()

    def evaluate(self, model):
        return simulate(model, VAL[0])


def pose(maker, max_drop=0.05, **more):
    graph = onnx.load(maker.source)
    macs = count_macs(graph)
    plain = onnx.load_from_string(maker.make(()))
    maker.made.clear()
    return SearchProblem(
        blocks=group_products(graph.graph, quantized_products(plain.graph), macs),
        macs=macs,
        make=maker.make,
        evaluate=maker.evaluate,
        baseline=answer(maker.source.read_bytes(), VAL[0]),
        labels=VAL[1],
        accepts=lambda broken, mended, images: (broken - mended) / images <= max_drop,
        **more,
    )


# -- the real quantizers


@pytest.mark.parametrize("kind", [Cpu, TensorRT])
def test_exactly_the_hostile_product_is_kept_in_float(hostile_networks, tmp_path, kind):
    if kind is TensorRT:
        pytest.importorskip("modelopt", reason="nvidia-modelopt is not installed")
    maker = kind(hostile_networks / "hostile" / "model.onnx", tmp_path)
    problem = pose(maker)
    result = search_precision(problem)
    assert (result.verdict, result.fewest) == ("found", True)
    assert result.kept == (Block("layers.2", ("node_conv2d_2",)),)
    assert result.ranking[0]["name"] == "layers.2"
    shares = [point["share_quantized"] for point in result.curve]
    assert shares == sorted(shares, reverse=True)
    assert result.curve[0]["drop"] > 0.5  # plain: two of three colours are lost
    assert result.curve[-1]["drop"] <= 0.05
    assert result.curve[-1]["kept"] == ["layers.2"]
    # one to judge the plain graph, one per block to rank, one for the answer
    assert result.evaluations == len(maker.made) == 1 + len(problem.blocks) + 1


def test_benign_network_needs_no_search(hostile_networks, tmp_path):
    maker = Cpu(hostile_networks / "benign" / "model.onnx", tmp_path)
    result = search_precision(pose(maker))
    assert (result.verdict, result.kept, result.evaluations) == ("not-needed", (), 1)
    assert maker.made == [()]


def test_kept_product_really_computes_in_float(hostile_networks, tmp_path):
    """onnxruntime would quantize the float weights after all, per tensor: 0 % instead of 100 % right here."""
    source, target = hostile_networks / "hostile" / "model.onnx", tmp_path / "q.onnx"
    assert quantize_for_cpu(
        source, target, CALIBRATION, keep_float=["node_conv2d_2"]
    )  # pixels still feed directly
    logits = answer(target.read_bytes(), VAL[0])
    assert (logits.argmax(axis=1) == VAL[1]).mean() == 1.0
    # fused and as-written kernels round differently; the logits span 8
    assert np.abs(logits - simulate(target.read_bytes(), VAL[0])).max() < 0.1
    audit = audit_int8(source.read_bytes(), target.read_bytes(), 0.95, keep_float=["node_conv2d_2"])
    assert (audit.share, audit.minimum, audit.kept_float) == (0.8, pytest.approx(0.76), ("node_conv2d_2",))
    with pytest.raises(PrecisionError, match=r"Only 80% of the 5 .* wanted 95%"):
        audit_int8(source.read_bytes(), target.read_bytes(), 0.95)
    assert set(largest_pair_sums(onnx.load(target))) == {
        "node_conv2d", "node_conv2d_1", "node_conv2d_3", "node_linear"
    }  # fmt: skip


def test_audit_notices_a_kept_product_that_runs_in_int8(hostile_networks, tmp_path):
    source, target = hostile_networks / "benign" / "model.onnx", tmp_path / "q.onnx"
    quantize_for_cpu(source, target, CALIBRATION)
    with pytest.raises(
        PrecisionError, match="computes 5 products in INT8 although 1 of 5 were to stay in float"
    ):
        audit_int8(source.read_bytes(), target.read_bytes(), 0.95, keep_float=["node_conv2d"])


@pytest.mark.parametrize("keep", [["node_conv2d"], ["node_linear"], ["node_conv2d_3", "node_linear"]])
def test_first_and_last_products_can_be_kept(hostile_networks, tmp_path, keep):
    source, target = hostile_networks / "benign" / "model.onnx", tmp_path / "q.onnx"
    pixels = quantize_for_cpu(source, target, CALIBRATION, keep_float=keep)
    assert pixels == ("node_conv2d" not in keep)
    assert (answer(target.read_bytes(), VAL[0]).argmax(axis=1) == VAL[1]).all()
    audit_int8(source.read_bytes(), target.read_bytes(), 0.95, keep_float=keep)


def test_measured_ranges_give_the_same_file(hostile_networks, tmp_path):
    source = hostile_networks / "benign" / "model.onnx"
    ranges = measure_ranges(source, CALIBRATION)
    for name, more in (("a", {}), ("b", {"ranges": ranges}), ("c", {"ranges": ranges})):
        quantize_for_cpu(source, tmp_path / name, CALIBRATION, **more)
    assert len({(tmp_path / name).read_bytes() for name in "abc"}) == 1


def test_unknown_name_is_refused(hostile_networks, tmp_path):
    with pytest.raises(PrecisionError, match="cannot be kept in float: node_conv2d_9"):
        quantize_for_cpu(
            hostile_networks / "benign" / "model.onnx",
            tmp_path / "q",
            CALIBRATION,
            keep_float=["node_conv2d_9"],
        )


def test_tensorrt_quantizer_leaves_the_cpu_quantizer_as_it_was(hostile_networks, tmp_path):
    """ModelOpt replaces methods of onnxruntime's quantizer for the whole process."""
    pytest.importorskip("modelopt", reason="nvidia-modelopt is not installed")
    source = hostile_networks / "benign" / "model.onnx"
    quantize_for_cpu(source, tmp_path / "before", CALIBRATION)
    TensorRT(source, tmp_path).make(())
    quantize_for_cpu(source, tmp_path / "after", CALIBRATION)
    assert (tmp_path / "before").read_bytes() == (tmp_path / "after").read_bytes()


# -- the search alone, on made-up blocks


class Paper:
    """Blocks that break a known number of 100 images each when quantized; a "graph" is the list of what is float."""

    def __init__(self, broken, products=1):
        self.broken, self.made = broken, []
        self.blocks = [Block(name, tuple(f"{name}{i}" for i in range(products))) for name in broken]
        self.hostile = {f"{name}{products - 1}": count for name, count in broken.items()}

    def make(self, keep_float):
        self.made.append(frozenset(keep_float))
        return repr(tuple(keep_float)).encode()

    def evaluate(self, model):
        kept = eval(model)
        lost = sum(count for product, count in self.hostile.items() if product not in kept)
        logits = np.tile(np.array([1.0, 0.0], np.float32), (100, 1))
        logits[: min(lost, 100)] = [0.0, 1.0]
        return logits

    def problem(self, max_drop, **more):
        return SearchProblem(
            blocks=self.blocks,
            macs={product: 10 for block in self.blocks for product in block.products},
            make=self.make,
            evaluate=self.evaluate,
            baseline=np.tile(np.array([1.0, 0.0], np.float32), (100, 1)),
            labels=np.zeros(100, np.int64),
            accepts=lambda broken, mended, images: (broken - mended) / images <= max_drop,
            **more,
        )


BROKEN = {"a": 0, "b": 5, "c": 20, "d": 1, "e": 0, "f": 10, "g": 0, "h": 0, "i": 0, "j": 0}


@pytest.mark.parametrize(
    ("max_drop", "kept"), [(0.36, ""), (0.16, "c"), (0.06, "cf"), (0.01, "cfb"), (0.0, "cfbd")]
)
def test_the_fewest_blocks_are_kept(max_drop, kept):
    result = search_precision(Paper(BROKEN).problem(max_drop))
    assert {block.name for block in result.kept} == set(kept)
    assert result.verdict == ("found" if kept else "not-needed")
    assert result.fewest


def test_blocks_that_need_not_be_kept_are_given_back():
    paper = Paper(dict.fromkeys("abcdefgh", 0) | {"a": 10, "b": 9})
    # Alone both hurt; together b is no longer needed: with a in float, b's harm is gone as well.
    paper.evaluate_all = paper.evaluate

    def evaluate(model):
        return paper.evaluate_all(repr(("a0", "b0")).encode()) if "a0" in eval(model) and len(eval(model)) < 5 else (
            paper.evaluate_all(model))  # fmt: skip

    paper.evaluate = evaluate
    assert [block.name for block in search_precision(paper.problem(0.0)).kept] == ["a"]


def test_single_products_of_a_block_are_given_back():
    result = search_precision(Paper(BROKEN, products=3).problem(0.06))
    assert result.keep_float == ("c2", "f2")


def test_chosen_set_is_not_a_rejected_one_of_the_same_blocks_and_count():
    paper = Paper(BROKEN, products=2)
    paper.hostile = {"c0": 20}  # giving back c0 is tried, and rejected, before c1
    result = search_precision(paper.problem(0.06))
    assert result.keep_float == ("c0",)
    same = [point for point in result.curve if (point["kept"], point["products"]) == (["c"], 1)]
    assert [point["drop"] for point in same] == [0.2, 0.0]
    assert result.chosen == same[1]
    assert result.to_dict()["chosen"]["share_quantized"] == pytest.approx(0.95)


@pytest.mark.parametrize(("max_drop", "drop"), [(0.36, 0.36), (0.06, 0.06)])
def test_chosen_set_is_told_where_something_was_chosen(max_drop, drop):
    assert search_precision(Paper(BROKEN).problem(max_drop)).chosen["drop"] == pytest.approx(drop)


@pytest.mark.parametrize("holding", [3, 6, 7])
def test_number_of_blocks_that_holds_between_the_doubling_steps_is_found(holding):
    """More in float is worse here; 1, 2, 4, 8 and 10, the most, fail."""
    paper = Paper({letter: 40 - i for i, letter in enumerate("abcdefghijklmnopqrst")})
    sets = []

    def evaluate(model):
        kept = {product[0] for product in eval(model)}
        logits = np.tile(np.array([1.0, 0.0], np.float32), (100, 1))
        if len(kept) == 19:  # while ranking
            logits[: min(paper.broken[name] for name in paper.broken if name not in kept)] = [0.0, 1.0]
            return logits
        sets.append(len(kept))
        if kept != set("abcdefghij"[:holding]):
            logits[:60] = [0.0, 1.0]
        return logits

    paper.evaluate = evaluate
    told = []
    result = search_precision(paper.problem(0.1), advance=lambda *values: told.append(values))
    assert (result.verdict, {block.name for block in result.kept}) == ("found", set("abcdefghij"[:holding]))
    assert sets[:7] == [0, 1, 2, 4, 8, 10, 6]
    assert all(done < total for done, total, _ in told)


def test_gaps_are_filled_only_while_there_is_time(monkeypatch):
    clock = itertools.count(time.monotonic() + 1)
    ticks = SimpleNamespace(monotonic=lambda: next(clock))
    monkeypatch.setattr("edgekiln.export.precision.sensitivity.time", ticks)
    paper = Paper(dict.fromkeys("abcdefghijklmnopqrst", 10))
    # Started at 0; 20 blocks and 1, 2, 4, 8, 10 in float are judged at 1 to 25.
    result = search_precision(paper.problem(0.1, seconds=25.5))
    assert (result.verdict, result.chosen) == ("stopped", None)
    assert result.evaluations == 26


def test_impossible_means_that_every_number_was_tried():
    result = search_precision(Paper(dict.fromkeys("abcdefghijklmnopqrst", 10)).problem(0.1))
    assert result.verdict == "impossible"
    assert sorted(point["products"] for point in result.curve) == list(range(12))  # one more, as evidence


def test_budget_that_half_of_the_network_cannot_hold_is_impossible():
    paper = Paper(dict.fromkeys("abcdefgh", 10))
    result = search_precision(paper.problem(0.1))
    assert (result.verdict, result.kept) == ("impossible", ())
    shares, drops = ([point[key] for point in result.curve] for key in ("share_quantized", "drop"))
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == 1.0
    assert 0.5 in shares  # tried down to what is still worth the name, and once below, as evidence
    assert drops == sorted(drops, reverse=True)
    assert drops[0] == pytest.approx(0.8)


def test_graph_that_cannot_be_made_is_never_accepted():
    paper = Paper(BROKEN)

    def make(keep_float):
        if "c0" not in keep_float:
            raise PrecisionError("no")
        return paper.make(keep_float)

    problem = paper.problem(0.06)
    problem.__dict__["make"] = make
    result = search_precision(problem)
    assert {block.name for block in result.kept} == {"c", "f"}
    assert result.curve[0]["failure"] == "no"


def test_ties_in_accuracy_are_broken_by_divergence():
    paper = Paper({"a": 0, "b": 0, "c": 0, "d": 0})
    plain = paper.evaluate

    # c alone changes no answer, but moves the logits; plain breaks everything
    def evaluate(model):
        kept = eval(model)
        logits = plain(model) * (0.5 if "c0" not in kept else 1.0)
        return logits if "c0" in kept or len(kept) > 1 else logits[:, ::-1]

    paper.evaluate = evaluate
    assert search_precision(paper.problem(0.0)).ranking[0]["name"] == "c"


def test_interrupted_search_judges_nothing_twice():
    whole = Paper(BROKEN)
    expected = search_precision(whole.problem(0.06))
    first, kept_on_disk = Paper(BROKEN), {}

    def stop(known):
        kept_on_disk.clear()
        kept_on_disk.update(known)
        if len(known) == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search_precision(first.problem(0.06), remember=stop)
    second = Paper(BROKEN)
    result = search_precision(second.problem(0.06), known=kept_on_disk)
    assert result == expected
    assert len(first.made) == 7
    assert not set(first.made) & set(second.made)
    assert len(first.made) + len(second.made) == len(whole.made) == result.evaluations


def test_search_that_runs_out_of_time_says_so():
    result = search_precision(Paper(BROKEN).problem(0.0, seconds=1e-9))
    assert (result.verdict, result.evaluations, result.fewest) == ("stopped", 1, False)


def test_progress_never_passes_its_end():
    told = []
    search_precision(Paper(BROKEN).problem(0.0), advance=lambda *values: told.append(values))
    assert all(done < total for done, total, _ in told)
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)


# -- blocks


def graph_of(nodes, weights):
    tensors = [numpy_helper.from_array(np.zeros(4, np.float32), name) for name in weights]
    value = helper.make_tensor_value_info
    return helper.make_graph(
        nodes, "g", [value("x", TensorProto.FLOAT, [1])], [value("y", TensorProto.FLOAT, [1])], tensors
    )


@pytest.mark.parametrize(
    ("weight", "block"),
    [
        ("network.blocks.3.1.conv_pw.weight", "blocks.3.1"),  # timm
        ("network.layer1.0.downsample.0.weight", "layer1.0"),  # torchvision's ResNet
        ("network.features.3.conv.0.0.weight", "features.3"),  # torchvision's MobileNet
        ("network.2.conv1.weight", "2"),
        ("network.2.weight", "2"),  # a layer of a Sequential
        ("network.fc1.weight", "fc1"),
        ("val_13", "n0"),  # no name of PyTorch's
    ],
)
def test_block_is_named_after_its_weight(weight, block):
    graph = graph_of([helper.make_node("Conv", ["x", weight], ["y"], name="n0")], [weight])
    assert group_products(graph, {"n0"}, {}) == (Block(block, ("n0",)),)


def test_large_networks_are_merged_to_a_bounded_number_of_blocks():
    nodes = [helper.make_node("Conv", [f"t{i}", f"val_{i}"], [f"t{i + 1}"], name=f"n{i}") for i in range(200)]
    names = [f"n{i}" for i in range(200)]
    blocks = group_products(graph_of(nodes, []), names, dict.fromkeys(names, 1))
    assert len(blocks) == MAX_BLOCKS
    assert [product for block in blocks for product in block.products] == names


def test_nodes_between_products_in_float_stay_in_float():
    node = helper.make_node
    graph = graph_of(
        [
            node("Conv", ["x", "w"], ["a"], name="a"),
            node("Relu", ["a"], ["ar"], name="relu"),
            node("Conv", ["ar", "w"], ["b"], name="b"),
            node("Add", ["b", "ar"], ["s"], name="add"),
            node("GlobalAveragePool", ["s"], ["p"], name="pool"),
            node("Gemm", ["p", "w"], ["y"], name="c"),
        ],
        ["w"],
    )
    assert float_neighbours(graph, ()) == frozenset()
    assert float_neighbours(graph, {"a"}) == frozenset()
    assert float_neighbours(graph, {"a", "b"}) == frozenset()  # relu also leads to c through the sum
    assert float_neighbours(graph, {"a", "b", "c"}) == {"relu", "add", "pool"}
    assert float_neighbours(graph, {"c"}) == frozenset()
