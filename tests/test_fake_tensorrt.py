"""The fake TensorRT offers nothing that the real bindings lack, and refuses what the real library cannot stand."""

import inspect
import re

import numpy as np
import pytest
from fake_cuda import FakeCuda
from fake_tensorrt import (
    ExecutionContextAllocationStrategy,
    FakeTensorRT,
    FakeTensorRTFault,
    ILogger,
    make_engine,
)
from onnx import TensorProto, helper
from trt_surface import read_table

TABLE = read_table()
FLAVOURS = ["10.3", "11.4", "rtx"]
FRAME = 2 * 2 * 3
MANAGED = ExecutionContextAllocationStrategy.USER_MANAGED


class Log(ILogger):
    def __init__(self):
        ILogger.__init__(self)
        self.lines = []

    def log(self, severity, msg):
        self.lines.append(f"{severity.name}: {msg}")


class Bench:
    """One engine that sums the pixels of each 2 x 2 frame, and all that running it takes."""

    def __init__(self, flavour="10.3", batch=(1, 4)):
        self.cuda = FakeCuda()
        self.library = FakeTensorRT(self.cuda, flavour)
        self.log = Log()
        self.active = self.cuda.activate()
        self.active.__enter__()
        self.runtime = self.library.module.Runtime(self.log)
        self.engine = self.runtime.deserialize_cuda_engine(make_engine(_sum_model(), flavour, batch))
        self.memory = self.cuda.allocate_device(self.engine.device_memory_size_v2)

    def context(self, batch=1, memory=None):
        """A context that is ready to run, with its input and output."""
        context = self.engine.create_execution_context(strategy=MANAGED)
        assert context.set_input_shape("image", (batch, 2, 2, 3))
        source, target = self.cuda.allocate_device(4 * FRAME), self.cuda.allocate_device(4 * 3 * 4)
        assert context.set_tensor_address("image", source.address)
        assert context.set_tensor_address("logits", target.address)
        memory = memory or self.memory
        context.set_device_memory(memory.address, memory.nbytes)
        return context, source, target


def _sum_model():
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["pixels", "axes"], ["logits"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "sum",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 2, 2, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2])],
    )
    opset = helper.make_opsetid("", 18)
    return helper.make_model(graph, opset_imports=[opset], ir_version=10).SerializeToString()


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_everything_it_offers_is_in_the_real_bindings(flavour):
    module = FakeTensorRT(FakeCuda(), flavour).module
    offered = dict(_public(module))
    assert {
        "Runtime",
        "Runtime.deserialize_cuda_engine",
        "IExecutionContext.execute_async_v3",
    } <= offered.keys()
    assert [name for name in offered if flavour not in TABLE[name].forms] == []
    for name, value in offered.items():
        if inspect.isfunction(value):
            known = set(re.findall(r"\w+", TABLE[name].forms[flavour]))
            assert set(inspect.signature(value).parameters) <= known, name


def _public(module):
    for name, value in vars(module).items():
        if name.startswith("_"):
            continue
        yield name, value
        for member in dir(value):
            if not member.startswith("_") and member not in ("name", "value"):
                yield f"{name}.{member}", inspect.getattr_static(value, member)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_each_flavour_lacks_what_its_release_lacks(flavour):
    bench = Bench(flavour)
    assert hasattr(bench.engine, "create_runtime_config") == (flavour != "10.3")
    if flavour != "10.3":
        assert hasattr(bench.engine.create_runtime_config(), "cuda_graph_strategy") == (flavour == "rtx")


def test_a_run_reads_and_writes_when_its_stream_is_waited_for():
    bench = Bench()
    stream = bench.cuda.create_stream()
    context, source, target = bench.context(batch=2)
    assert context.execute_async_v3(stream.handle)
    bench.cuda.view(source.address, 2 * FRAME)[:] = [1] * FRAME + [2] * FRAME
    stream.synchronize()
    answer = bench.cuda.view(target.address, 24).view(np.float32).reshape(2, 3)
    np.testing.assert_array_equal(answer, [[4, 4, 4], [8, 8, 8]])


def test_a_graph_of_a_context_that_was_changed_is_not_replayed():
    bench = Bench()
    stream = bench.cuda.create_stream()
    context, _, _ = bench.context(batch=1)
    graph = bench.cuda.capture(stream, lambda: context.execute_async_v3(stream.handle))
    graph.launch(stream)
    stream.synchronize()
    assert context.set_input_shape("image", (2, 2, 2, 3))
    graph.launch(stream)
    with pytest.raises(FakeTensorRTFault, match="context was changed after the capture"):
        stream.synchronize()


def test_a_graph_of_a_context_that_is_gone_is_not_replayed():
    bench = Bench()
    stream = bench.cuda.create_stream()
    contexts = [bench.context()[0]]
    graph = bench.cuda.capture(stream, lambda: contexts[0].execute_async_v3(stream.handle))
    contexts.clear()
    graph.launch(stream)
    with pytest.raises(FakeTensorRTFault, match="destroyed before its work was done"):
        stream.synchronize()


def test_two_contexts_on_two_streams_may_not_share_their_working_memory():
    bench = Bench()
    streams = [bench.cuda.create_stream() for _ in range(2)]
    contexts = [bench.context()[0] for _ in streams]
    for context in contexts:  # one after the other, on one stream, is right
        context.execute_async_v3(streams[0].handle)
    streams[0].synchronize()
    for context, stream in zip(contexts, streams, strict=True):
        context.execute_async_v3(stream.handle)
    with pytest.raises(FakeTensorRTFault, match="runs on two streams share memory"):
        streams[0].synchronize()


@pytest.mark.parametrize(
    ("leave_out", "words"),
    [
        ("set_input_shape", "input dimensions are not specified"),
        ("set_tensor_address", "an address is not set"),
        ("set_device_memory", "512 bytes of device memory are not set"),
    ],
)
def test_a_run_that_lacks_something_is_refused_with_words(leave_out, words):
    bench = Bench()
    context = bench.engine.create_execution_context(strategy=MANAGED)
    if leave_out != "set_input_shape":
        context.set_input_shape("image", (1, 2, 2, 3))
    context.set_tensor_address("image", 1)
    if leave_out != "set_tensor_address":
        context.set_tensor_address("logits", 2)
    if leave_out != "set_device_memory":
        context.set_device_memory(bench.memory.address, bench.memory.nbytes)
    assert context.execute_async_v3(bench.cuda.create_stream().handle) is False
    assert bench.log.lines == [f"ERROR: enqueueV3: {words}"]


@pytest.mark.parametrize("shape", [(0, 2, 2, 3), (5, 2, 2, 3), (1, 2, 3, 3)])
def test_a_shape_beyond_the_profile_is_refused_with_words(shape):
    bench = Bench()
    context, _, _ = bench.context()
    assert context.set_input_shape("image", shape) is False
    assert "does not satisfy the profile" in bench.log.lines[0]


def test_old_bindings_take_ints_only():
    context, source, _ = Bench("10.3").context()
    for call in (
        lambda: context.set_tensor_address("image", np.int64(source.address)),
        lambda: context.set_device_memory(np.int64(256), 512),
        lambda: context.execute_async_v3(np.int64(16)),
    ):
        with pytest.raises(TypeError, match="incompatible function arguments: int64"):
            call()
    context, source, _ = Bench("11.4").context()
    assert context.set_tensor_address("image", np.int64(source.address))


def test_nothing_may_be_asked_where_no_context_is_current():
    bench = Bench()
    contexts = [bench.context()[0]]
    bench.active.__exit__(None, None, None)
    for call in (
        lambda: bench.library.module.Runtime(bench.log),
        lambda: bench.runtime.deserialize_cuda_engine(b""),
        lambda: bench.engine.num_io_tensors,
        lambda: contexts[0].set_input_shape("image", (1, 2, 2, 3)),
        lambda: contexts[0].execute_async_v3(16),
    ):
        with pytest.raises(FakeTensorRTFault, match="no CUDA context is current"):
            call()
    contexts.clear()
    assert bench.library.destroyed_unprotected == ["IExecutionContext"]


def test_bad_bytes_give_none_and_words():
    bench = Bench("10.3")
    for data in (b"", make_engine(b"no model", "10.3"), make_engine(_sum_model(), "rtx")):
        assert bench.runtime.deserialize_cuda_engine(data) is None
    assert [line.partition(" failed")[0] for line in bench.log.lines] == [
        "ERROR: Serialization assertion stdVersionRead == kSERIALIZATION_VERSION",
        "ERROR: Deserialization",
        "ERROR: Serialization assertion stdVersionRead == kSERIALIZATION_VERSION",
    ]
