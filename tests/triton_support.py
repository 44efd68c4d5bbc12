"""A stand-in for Triton: its own gRPC service and protobuf over a model repository, answered by onnxruntime.

It believes nothing but the repository: names, types, shapes, batch limit, labels and warm-up files are those of
``config.pbtxt``, checked against the model file as Triton's onnxruntime backend checks them.
"""

from concurrent import futures
from pathlib import Path

import grpc
import numpy as np
import onnxruntime
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

DTYPES = {
    "TYPE_UINT8": (np.uint8, "UINT8", "tensor(uint8)"),
    "TYPE_FP32": (np.float32, "FP32", "tensor(float)"),
}


def parse_config(folder: Path) -> model_config_pb2.ModelConfig:
    """The config, by Triton's own message; unknown fields and values are errors."""
    config = text_format.Parse((folder / "config.pbtxt").read_text("utf-8"), model_config_pb2.ModelConfig())
    assert config.name == folder.name
    return config


def type_of(tensor):
    return DTYPES[model_config_pb2.DataType.Name(tensor.data_type)]


class ServedModel:
    def __init__(self, folder: Path) -> None:
        self.config = parse_config(folder)
        assert self.config.platform == "onnxruntime_onnx"
        self.session = onnxruntime.InferenceSession(
            (folder / "1" / "model.onnx").read_bytes(), providers=["CPUExecutionProvider"]
        )
        self._check(self.config.input, self.session.get_inputs())
        self._check(self.config.output, self.session.get_outputs())
        self.labels = (folder / self.config.output[0].label_filename).read_text("utf-8").splitlines()
        self.batches = [self._warm_up(sample, folder / "warmup") for sample in self.config.model_warmup]

    def _check(self, told, real) -> None:
        """For Triton to batch a model, its first dimension must be free, and the others those of the config."""
        assert [t.name for t in told] == [r.name for r in real]
        for ours, theirs in zip(told, real, strict=True):
            assert type_of(ours)[2] == theirs.type
            shape = list(theirs.shape)
            if self.config.max_batch_size:
                assert not isinstance(shape.pop(0), int)
            assert list(ours.dims) == shape

    def _warm_up(self, sample, folder: Path) -> int:
        """``batch_size`` requests with the same data, as one batch; see ``inference.ModelWarmup``."""
        [(name, tensor)] = sample.inputs.items()
        dtype, shape = type_of(tensor)[0], list(tensor.dims)
        if tensor.WhichOneof("input_data_type") == "input_data_file":
            data = (folder / tensor.input_data_file).read_bytes()
            assert len(data) == np.prod(shape) * np.dtype(dtype).itemsize
            value = np.frombuffer(data, dtype).reshape(shape)
        else:
            assert tensor.random_data
            value = np.random.default_rng(0).integers(0, 256, shape).astype(dtype)
        for _ in range(sample.count):
            self.session.run(None, {name: np.stack([value] * sample.batch_size)})
        return sample.batch_size

    def answer(self, frames, classes: int):
        [logits] = self.session.run(None, {self.config.input[0].name: frames})
        if not classes:
            return "FP32", list(logits.shape), logits.tobytes()
        texts = [
            f"{row[i]:f}:{i}:{self.labels[i]}".encode() for row in logits for i in np.argsort(-row)[:classes]
        ]
        raw = b"".join(len(text).to_bytes(4, "little") + text for text in texts)
        return "BYTES", [len(logits), classes], raw


class Service(service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self, repository: Path) -> None:
        self.models = {f.name: ServedModel(f) for f in repository.iterdir() if not f.name.startswith(".")}
        self.seen: list[tuple[int, ...]] = []

    def ModelInfer(self, request, context):
        model = self.models[request.model_name]
        [given] = request.inputs
        [told] = model.config.input
        dtype, name, _ = type_of(told)
        shape = list(given.shape)
        if (given.name, given.datatype, shape[1:]) != (told.name, name, list(told.dims)):
            context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, f"unexpected {given.name} {given.datatype} {shape}"
            )
        if not 1 <= shape[0] <= model.config.max_batch_size:
            context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, f"batch-size must be <= {model.config.max_batch_size}"
            )
        [raw] = request.raw_input_contents
        self.seen.append(tuple(shape))
        [wanted] = request.outputs
        assert wanted.name == model.config.output[0].name
        classes = wanted.parameters["classification"].int64_param if wanted.parameters else 0
        datatype, shape, contents = model.answer(np.frombuffer(raw, dtype).reshape(shape), classes)
        response = service_pb2.ModelInferResponse(model_name=request.model_name, model_version="1")
        response.outputs.add(name=wanted.name, datatype=datatype, shape=shape)
        response.raw_output_contents.append(contents)
        return response


class Server:
    """``with Server(repository) as server``: serves on a free port of this machine."""

    def __init__(self, repository: Path) -> None:
        self.service = Service(repository)
        self._server = grpc.server(futures.ThreadPoolExecutor(2))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self.service, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")

    def __enter__(self):
        self._server.start()
        return self

    def __exit__(self, *_) -> None:
        self._server.stop(None).wait()
