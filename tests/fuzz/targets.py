"""What is fuzzed: for each kind where its files come from, how they are damaged, and what is done with the result."""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from camera_support import make_pgm, make_png, make_tiff

from edgekiln.runtime.backends import Backend, open_session
from edgekiln.runtime.bundles.bundle import open_bundle
from edgekiln.runtime.bundles.manifest import MANIFEST_NAME
from edgekiln.runtime.contract import Contract
from edgekiln.runtime.errors import (
    EdgekilnError,
    EnvironmentProblem,
    ExitCode,
    ResourceError,
    UntrustedError,
    UsageError,
)
from edgekiln.runtime.pictures.image import prepare
from edgekiln.runtime.serving.loading import load
from fuzz.mutations import mutate_bytes, mutate_json, mutate_onnx, mutate_toml

__all__ = ["TARGETS", "Target"]

_MAX_FRAME = 2**24  # bytes of a frame that is worth running


@dataclass(frozen=True, slots=True)
class Target:
    """One kind of file.

    Attributes:
        read: the whole file, from the bundle that all damage begins with.
        mutate: what it becomes.
        consume: uses the damaged file at that path, with the bundle at hand; returns or raises.
    """

    read: Callable[[Path], bytes]
    mutate: Callable[[bytes, random.Random], bytes]
    consume: Callable[[Path, Path], None]


def _read_onnx(bundle: Path) -> bytes:
    opened = open_bundle(bundle)
    return opened.read(min(name for name in opened.files if name.endswith(".onnx")))


def _run_model(backend: Backend) -> Callable[[Path, Path], None]:
    def consume(path: Path, bundle: Path) -> None:
        session = open_session(backend, path.read_bytes(), threads=1)
        height, width = session.frame_shape
        if 0 < height * width * 3 <= _MAX_FRAME:
            session.run(np.zeros((1, height, width, 3), np.uint8))
        session.close()

    return consume


def _prepare_camera(path: Path, bundle: Path) -> None:
    """As a model of a 12-bit camera does, from the file to the frame."""
    prepare(path, _CAMERA)


_CAMERA = Contract(height=16, width=16, classes=("a", "b"), sensor_bits=12)
_SAMPLES = (np.arange(24 * 20 * 3) * 4095 // (24 * 20 * 3)).astype(np.uint16).reshape(24, 20, 3)


def _load_with_manifest(path: Path, bundle: Path) -> None:
    """The damaged manifest in a copy of the bundle."""
    with _copy(bundle, path) as copy:
        shutil.copyfile(path, copy / MANIFEST_NAME)
        load(copy, threads=1).close()


def _load_damaged_bundle(path: Path, bundle: Path) -> None:
    """A file of the bundle, any one, with the damaged bytes; the manifest is as it was."""
    with _copy(bundle, path) as copy:
        files = sorted(entry for entry in copy.iterdir())
        damaged = path.read_bytes()
        total = int(np.frombuffer(damaged, np.uint8).sum(dtype=np.int64))
        shutil.copyfile(path, files[total % len(files)])
        load(copy, threads=1).close()


@contextlib.contextmanager
def _copy(bundle: Path, path: Path) -> Iterator[Path]:
    copy = path.with_suffix(".bundle")
    shutil.copytree(bundle, copy)
    try:
        yield copy
    finally:
        shutil.rmtree(copy)


def _load_archive(path: Path, bundle: Path) -> None:
    load(path, threads=1).close()


def _read_archive(bundle: Path) -> bytes:
    from edgekiln.runtime.bundles.archive_writer import write_zip

    with tempfile.TemporaryDirectory(prefix="edgekiln-fuzz-") as folder:
        path = Path(folder) / "bundle.zip"
        write_zip(open_bundle(bundle), path)
        return path.read_bytes()


def _load_recipe(path: Path, bundle: Path) -> None:
    from edgekiln.pipeline.recipe import load_recipe

    load_recipe(path)


def _read_recipe(bundle: Path) -> bytes:
    return str(json.loads(open_bundle(bundle).read("report.json"))["recipe_toml"]).encode()


def _show_report(path: Path, bundle: Path) -> None:
    """Rendered, and compared both ways with the whole one."""
    whole = str(bundle / "report.json")
    _tell(
        _command("compare", whole, str(path)),
        _command("compare", str(path), whole),
        _command("report", str(path), "--out", str(path.with_suffix(".html"))),
    )


def _inspect_engine(path: Path, bundle: Path) -> None:
    """By its header, as ``inspect`` and a session do before a library sees it."""
    _tell(_command("inspect", str(path)))
    open_session("tensorrt-rtx", path.read_bytes())


def _read_engine(bundle: Path) -> bytes:
    """A header of TensorRT-RTX 1.7 with some bytes behind it; nothing in it could run."""
    header = bytearray(64)
    header[:4], header[24:28], header[32:36] = b"vtrt", bytes((1, 7, 1, 116)), (0x1F).to_bytes(4, "little")
    return bytes(header) + bytes(range(256))


class CommandError(Exception):
    """A command ended with the code that stands for a bug."""


def _command(*arguments: str) -> int:
    """Run a command of edgekiln's; its exit code, which must not be that of a bug."""
    from edgekiln.pipeline.cli import main

    words = io.StringIO()
    try:
        with contextlib.redirect_stdout(words), contextlib.redirect_stderr(words):
            main([*arguments])
    except SystemExit as ended:
        if ended.code == ExitCode.BUG:
            raise CommandError(f"{arguments[0]}: {words.getvalue()[-2000:]}") from None
        return int(ended.code or 0)
    return 0


def _tell(*codes: int) -> None:
    """Commands that refused a file make a typed end; that an engine became worse is an answer."""
    refused = [code for code in codes if code not in {ExitCode.OK, ExitCode.GATE_FAILED}]
    if refused:
        raise _REFUSALS.get(refused[0], EdgekilnError)(f"A command ended with {refused[0]}.")


_REFUSALS: Mapping[int, type[EdgekilnError]] = {
    ExitCode.USAGE: UsageError,
    ExitCode.UNTRUSTED: UntrustedError,
    ExitCode.ENVIRONMENT: EnvironmentProblem,
    ExitCode.RESOURCES: ResourceError,
}


TARGETS: Mapping[str, Target] = {
    "onnx": Target(_read_onnx, mutate_onnx, _run_model("onnxruntime-cpu")),
    "onnx-bytes": Target(_read_onnx, mutate_bytes, _run_model("onnxruntime-cpu")),
    "openvino": Target(_read_onnx, mutate_onnx, _run_model("openvino")),
    "manifest": Target(lambda b: (b / MANIFEST_NAME).read_bytes(), mutate_json, _load_with_manifest),
    "bundle": Target(_read_onnx, mutate_bytes, _load_damaged_bundle),
    "archive": Target(_read_archive, mutate_bytes, _load_archive),
    "recipe": Target(_read_recipe, mutate_toml, _load_recipe),
    "report": Target(lambda b: (b / "report.json").read_bytes(), mutate_json, _show_report),
    "engine": Target(_read_engine, mutate_bytes, _inspect_engine),
    "tiff-plain": Target(lambda _: make_tiff(_SAMPLES, rows=5), mutate_bytes, _prepare_camera),
    "tiff-lzw": Target(
        lambda _: make_tiff(_SAMPLES, order=">", compression=5, predictor=2, rows=5),
        mutate_bytes,
        _prepare_camera,
    ),
    "tiff-deflate": Target(
        lambda _: make_tiff(_SAMPLES, compression=8, rows=5), mutate_bytes, _prepare_camera
    ),
    "netpbm": Target(
        lambda _: make_pgm(_SAMPLES, 4095, comment=b"# a camera\n"), mutate_bytes, _prepare_camera
    ),
    "png-16": Target(lambda _: make_png(_SAMPLES), mutate_bytes, _prepare_camera),
}
