"""Arrays of other libraries on a GPU, by their ``__dlpack__`` or ``__cuda_array_interface__``; and answers as such.

Reads what they say of themselves: address, shape, type, layout, device, and the stream that fills them. Copies nothing
and knows no engine. Where an array offers both, DLPack is taken: it orders the producer's stream before ours, which
the other interface leaves to the array (PyTorch's names no stream).

DLPack: ``DLManagedTensor`` of DMLC's dlpack.h, which all producers give where no version is asked for. A capsule that
comes is not consumed: it frees what it holds when it goes, and is held until the work is done.
"""

from __future__ import annotations

import contextlib
import ctypes
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekiln.runtime.errors import DeviceError, EdgekilnError, InputError

if TYPE_CHECKING:
    from edgekiln.runtime.cuda import CudaApi
    from edgekiln.runtime.cuda.resources import DeviceMemory, Stream

__all__ = ["DeviceArray", "DeviceFrames", "is_device_array", "read_device_frames"]

_CUDA, _MANAGED = 2, 13  # DLDeviceType
_KINDS = {0: "int", 1: "uint", 2: "float", 4: "bfloat"}  # DLDataTypeCode
_FLOAT = 2
_NAME = b"dltensor"


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_Destructor = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)


class _DLManagedTensor(ctypes.Structure):
    _fields_ = (("tensor", _DLTensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))


_api = ctypes.pythonapi
_pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", _api)
)
_dying_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", _api)
)
_is_named = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_IsValid", _api))
_new_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, _Destructor)(
    ("PyCapsule_New", _api)
)


@dataclass(frozen=True, slots=True)
class DeviceFrames:
    """uint8 (N, height, width, 3) on the GPU, contiguous.

    Attributes:
        address: of the first byte.
        count: N.
        stream: handle of the stream that fills them, which ours must wait for; ``None`` where that is done already.
        held: what keeps them alive.
    """

    address: int
    count: int
    stream: int | None
    held: object


@dataclass(frozen=True, slots=True)
class _Described:
    """What an array says of itself; strides in bytes."""

    kind: str
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    address: int
    stream: int | None
    held: object


def is_device_array(value: object) -> bool:
    """Whether ``value`` says that it is on a CUDA device."""
    device = getattr(value, "__dlpack_device__", None)
    if device is not None:
        return int(device()[0]) in {_CUDA, _MANAGED}
    return hasattr(value, "__cuda_array_interface__")


def read_device_frames(
    value: Any, frame_shape: tuple[int, int], cuda: CudaApi, stream: Stream
) -> DeviceFrames:
    """Where an array's frames are, and what to wait for.

    Args:
        value: for which ``is_device_array`` is true.
        frame_shape: (height, width) that is wanted.
        cuda: on the device that will read them.
        stream: that will read them.

    Raises:
        InputError: another device, type, shape or layout, or an address that is no memory of CUDA's.
    """
    found = _read_dlpack(value, cuda, stream) if hasattr(value, "__dlpack__") else _read_interface(value)
    height, width = frame_shape
    shape, wanted = found.shape, (height, width, 3)
    if found.kind != "uint8" or shape[1:] != wanted:
        raise InputError(
            f"Got {found.kind} {shape} on the GPU, wanted uint8 (N, {height}, {width}, 3).",
            hint="Session.run takes prepared frames only; resize and crop on the GPU as the contract says.",
        )
    rows = (height * width * 3, width * 3, 3, 1)
    first = 0 if shape[0] > 1 else 1  # the step from one frame to the next means nothing where there is one
    if found.strides is not None and shape[0] and found.strides[first:] != rows[first:]:
        raise InputError(
            f"The frames on the GPU have strides {found.strides}, wanted {rows}: one frame behind the other.",
            hint="Make them contiguous there: .contiguous() in PyTorch, cupy.ascontiguousarray in CuPy.",
        )
    if shape[0]:
        _check_device(found.address, cuda)
    return DeviceFrames(found.address, shape[0], found.stream, found.held)


def _read_dlpack(value: Any, cuda: CudaApi, stream: Stream) -> _Described:
    device_type, number = (int(part) for part in value.__dlpack_device__())
    if device_type == _CUDA and number != cuda.device:
        raise _other_device(number, cuda)
    try:
        capsule = value.__dlpack__(stream=stream.handle)  # the producer has our stream wait for its own
    except Exception as error:  # whatever the producer raises: BufferError for what it cannot share
        raise InputError(
            f"The array cannot be shared by DLPack: {type(error).__name__}: {error}",
            hint="Detach it from a graph of gradients, or hand in frames of the host.",
        ) from error
    tensor = _DLTensor.from_address(_pointer_of(capsule, _NAME))
    kind = _KINDS.get(tensor.code, f"type {tensor.code} of ")
    return _Described(
        kind=f"{kind}{tensor.bits * tensor.lanes}",
        shape=tuple(tensor.shape[i] for i in range(tensor.ndim)),
        # In elements; of uint8, which alone is taken, these are bytes.
        strides=tuple(tensor.strides[i] for i in range(tensor.ndim)) if tensor.strides else None,
        address=int(tensor.data or 0) + int(tensor.byte_offset),
        stream=None,
        held=(value, capsule),
    )


def _read_interface(value: Any) -> _Described:
    """Of version 3; earlier ones have no stream."""
    try:
        about = value.__cuda_array_interface__
        address, _ = about["data"]
        strides, stream = about.get("strides"), about.get("stream")
        found = _Described(
            kind=np.dtype(about["typestr"]).name,
            shape=tuple(int(size) for size in about["shape"]),
            strides=None if strides is None else tuple(int(step) for step in strides),
            address=int(address),
            stream=None if stream is None else int(stream),
            held=value,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"The array's __cuda_array_interface__ cannot be read: {error!r}") from error
    if about.get("mask") is not None or found.stream == 0:
        raise InputError(
            "The array on the GPU has a mask, or stream 0, which the interface does not allow.",
            hint="Hand in an array without a mask, with its stream as 1 (the default one), 2 or its handle.",
        )
    return found


def _check_device(address: int, cuda: CudaApi) -> None:
    try:
        number = cuda.device_of(address)
    except DeviceError as error:
        raise InputError(
            f"The frames' address {address:#x} is no memory of a GPU: {error.message}",
            hint="An array that was freed, or that is in the host's memory; hand in one of the GPU's.",
        ) from error
    if number != cuda.device:
        raise _other_device(number, cuda)


def _other_device(number: int, cuda: CudaApi) -> InputError:
    return InputError(
        f"The frames are on cuda:{number}, and the session runs on cuda:{cuda.device}.",
        hint="Move them there, or load the bundle with that device.",
    )


class DeviceArray:
    """Logits on the GPU: float32 (N, classes), ready when ``run`` returns. Freed when the last reference goes.

    CuPy, PyTorch, JAX and others take it without a copy, by ``__dlpack__`` or ``__cuda_array_interface__``. What was
    taken by DLPack keeps it alive. A session that opened CUDA itself frees it when it is closed: asked for its address,
    it then raises UsageError.
    """

    def __init__(self, memory: DeviceMemory, shape: tuple[int, int], device: int) -> None:
        self._memory = memory
        self.shape = shape
        self.dtype = np.dtype(np.float32)
        self.device = f"cuda:{device}"
        self._number = device
        weakref.finalize(self, _free, memory)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3, without a stream: nothing is under way."""
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self._memory.address, False),
            "strides": None,
            "version": 3,
            "stream": None,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return _CUDA, self._number

    def __dlpack__(self, *, stream: object = None, **_: object) -> Any:
        """A capsule. ``stream`` is ignored, since nothing is under way; so are wishes for a newer version."""
        sizes = (ctypes.c_int64 * 2)(*self.shape)
        managed = _DLManagedTensor(
            _DLTensor(
                self._memory.address, _CUDA, self._number, 2, _FLOAT, 32, 1,
                ctypes.cast(sizes, ctypes.POINTER(ctypes.c_int64)), None, 0,
            ),
            None,
            _delete,
        )  # fmt: skip
        pointer = ctypes.addressof(managed)
        _exported[pointer] = (managed, sizes, self)
        return _new_capsule(pointer, _NAME, _drop_capsule)


_exported: dict[int, tuple[object, ...]] = {}
"""What consumers of DLPack have not given back yet, by the address of its description."""


def _forget(pointer: int) -> None:
    _exported.pop(pointer, None)


def _forget_unread(capsule: int) -> None:
    """A consumer renames its capsule, and calls the deleter itself; one with its first name was never consumed."""
    if _is_named(capsule, _NAME):
        _forget(_dying_pointer(capsule, _NAME))


_delete, _drop_capsule = _Deleter(_forget), _Destructor(_forget_unread)


def _free(memory: DeviceMemory) -> None:
    with contextlib.suppress(EdgekilnError):  # a fork, or a GPU that is lost: there is nobody to tell
        memory.free()
