"""Functions of ``libcuda`` with the types of their arguments, as cuda.h of CUDA 13.0 has them.

The header's macros map plain names to the suffixed symbols that stand here. Only symbols that drivers of CUDA 11.4 and
later have; one that is missing is told by ``Driver.call``. It knows nothing of what they are called for.
"""

from __future__ import annotations

from ctypes import POINTER, c_char_p, c_float, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from typing import Any

__all__ = ["SIGNATURES"]

# Contexts, streams, events and graphs are pointers; an address of device memory is an unsigned 64-bit number, and is
# taken out through a pointer of the same size.
_HANDLE_OUT = POINTER(c_void_p)
_DEVICE_ADDRESS = c_ulonglong

SIGNATURES: dict[str, list[Any]] = {
    "cuInit": [c_uint],
    "cuDriverGetVersion": [POINTER(c_int)],
    "cuDeviceGetCount": [POINTER(c_int)],
    "cuDeviceGet": [POINTER(c_int), c_int],
    "cuDeviceGetName": [c_char_p, c_int, c_int],
    "cuDeviceGetUuid": [c_char_p, c_int],
    "cuDeviceGetUuid_v2": [c_char_p, c_int],
    "cuDeviceTotalMem_v2": [POINTER(c_size_t), c_int],
    "cuDeviceGetAttribute": [POINTER(c_int), c_int, c_int],
    "cuGetErrorName": [c_int, POINTER(c_char_p)],
    "cuGetErrorString": [c_int, POINTER(c_char_p)],
    "cuDevicePrimaryCtxRetain": [_HANDLE_OUT, c_int],
    "cuDevicePrimaryCtxRelease_v2": [c_int],
    "cuDevicePrimaryCtxGetState": [c_int, POINTER(c_uint), POINTER(c_int)],
    "cuCtxPushCurrent_v2": [c_void_p],
    "cuCtxPopCurrent_v2": [_HANDLE_OUT],
    "cuMemGetInfo_v2": [POINTER(c_size_t), POINTER(c_size_t)],
    "cuMemAlloc_v2": [_HANDLE_OUT, c_size_t],
    "cuMemFree_v2": [_DEVICE_ADDRESS],
    "cuMemHostAlloc": [_HANDLE_OUT, c_size_t, c_uint],
    "cuMemHostGetDevicePointer_v2": [_HANDLE_OUT, c_void_p, c_uint],
    "cuMemFreeHost": [c_void_p],
    "cuMemcpyHtoDAsync_v2": [_DEVICE_ADDRESS, c_void_p, c_size_t, c_void_p],
    "cuMemcpyDtoHAsync_v2": [c_void_p, _DEVICE_ADDRESS, c_size_t, c_void_p],
    "cuMemcpyDtoDAsync_v2": [_DEVICE_ADDRESS, _DEVICE_ADDRESS, c_size_t, c_void_p],
    "cuPointerGetAttribute": [c_void_p, c_int, _DEVICE_ADDRESS],
    "cuStreamWaitEvent": [c_void_p, c_void_p, c_uint],
    "cuStreamCreate": [_HANDLE_OUT, c_uint],
    "cuStreamDestroy_v2": [c_void_p],
    "cuStreamSynchronize": [c_void_p],
    "cuStreamQuery": [c_void_p],
    "cuEventCreate": [_HANDLE_OUT, c_uint],
    "cuEventDestroy_v2": [c_void_p],
    "cuEventRecord": [c_void_p, c_void_p],
    "cuEventSynchronize": [c_void_p],
    "cuEventElapsedTime": [POINTER(c_float), c_void_p, c_void_p],
    "cuStreamBeginCapture_v2": [c_void_p, c_int],
    "cuStreamEndCapture": [c_void_p, _HANDLE_OUT],
    "cuGraphInstantiateWithFlags": [_HANDLE_OUT, c_void_p, c_ulonglong],
    "cuGraphUpload": [c_void_p, c_void_p],
    "cuGraphLaunch": [c_void_p, c_void_p],
    "cuGraphExecDestroy": [c_void_p],
    "cuGraphDestroy": [c_void_p],
}
