/* Functions that PyCUDA 2026.1 has to find in order to be imported, and that edgekiln never calls. One that is called
 * is told as a mistake. A program that needs one of them needs it moved, with a meaning, into another file. */
#include "fake_libcuda.h"

#define STUB(name) \
    API int name(void) { LOCKED; return wrong(NOT_SUPPORTED, #name, "the fake driver has no such function"); }

STUB(cuArray3DCreate_v2) STUB(cuArray3DGetDescriptor_v2) STUB(cuArrayCreate_v2) STUB(cuArrayDestroy)
STUB(cuArrayGetDescriptor_v2) STUB(cuCtxAttach) STUB(cuCtxCreate_v4) STUB(cuCtxDetach) STUB(cuCtxDisablePeerAccess)
STUB(cuCtxEnablePeerAccess) STUB(cuCtxGetCacheConfig) STUB(cuCtxGetLimit) STUB(cuCtxGetSharedMemConfig)
STUB(cuCtxSetCacheConfig) STUB(cuCtxSetLimit) STUB(cuCtxSetSharedMemConfig) STUB(cuCtxSynchronize)
STUB(cuDeviceCanAccessPeer) STUB(cuDeviceComputeCapability) STUB(cuDeviceGetByPCIBusId) STUB(cuDeviceGetPCIBusId)
STUB(cuFuncGetAttribute) STUB(cuFuncSetAttribute) STUB(cuFuncSetBlockShape) STUB(cuFuncSetCacheConfig)
STUB(cuFuncSetSharedSize) STUB(cuIpcCloseMemHandle) STUB(cuIpcGetEventHandle) STUB(cuIpcGetMemHandle)
STUB(cuIpcOpenEventHandle) STUB(cuIpcOpenMemHandle_v2) STUB(cuLaunch) STUB(cuLaunchGrid) STUB(cuLaunchGridAsync)
STUB(cuLaunchKernel) STUB(cuLinkAddData_v2) STUB(cuLinkAddFile_v2) STUB(cuLinkComplete) STUB(cuLinkCreate_v2)
STUB(cuLinkDestroy) STUB(cuMemAllocManaged) STUB(cuMemAllocPitch_v2) STUB(cuMemGetAddressRange_v2)
STUB(cuMemHostGetFlags) STUB(cuMemHostRegister_v2) STUB(cuMemHostUnregister) STUB(cuMemcpy2DAsync_v2)
STUB(cuMemcpy2DUnaligned_v2) STUB(cuMemcpy2D_v2) STUB(cuMemcpy3DAsync_v2) STUB(cuMemcpy3DPeer)
STUB(cuMemcpy3DPeerAsync) STUB(cuMemcpy3D_v2) STUB(cuMemcpyAtoA_v2) STUB(cuMemcpyAtoD_v2) STUB(cuMemcpyAtoH_v2)
STUB(cuMemcpyDtoA_v2) STUB(cuMemcpyDtoD_v2) STUB(cuMemcpyDtoH_v2) STUB(cuMemcpyHtoA_v2)
STUB(cuMemcpyHtoD_v2) STUB(cuMemcpyPeer) STUB(cuMemcpyPeerAsync) STUB(cuMemsetD16Async) STUB(cuMemsetD16_v2)
STUB(cuMemsetD2D16Async) STUB(cuMemsetD2D16_v2) STUB(cuMemsetD2D32Async) STUB(cuMemsetD2D32_v2)
STUB(cuMemsetD2D8Async) STUB(cuMemsetD2D8_v2) STUB(cuMemsetD32Async) STUB(cuMemsetD32_v2) STUB(cuMemsetD8Async)
STUB(cuMemsetD8_v2) STUB(cuModuleGetFunction) STUB(cuModuleGetGlobal_v2) STUB(cuModuleGetSurfRef)
STUB(cuModuleGetTexRef) STUB(cuModuleLoad) STUB(cuModuleLoadData) STUB(cuModuleLoadDataEx) STUB(cuModuleUnload)
STUB(cuParamSetSize) STUB(cuParamSetTexRef) STUB(cuParamSetf) STUB(cuParamSeti) STUB(cuParamSetv)
STUB(cuProfilerInitialize) STUB(cuProfilerStart) STUB(cuProfilerStop) STUB(cuStreamAttachMemAsync)
STUB(cuSurfRefGetArray) STUB(cuSurfRefSetArray) STUB(cuTexRefCreate) STUB(cuTexRefDestroy)
STUB(cuTexRefGetAddressMode) STUB(cuTexRefGetAddress_v2) STUB(cuTexRefGetArray) STUB(cuTexRefGetFilterMode)
STUB(cuTexRefGetFlags) STUB(cuTexRefGetFormat) STUB(cuTexRefSetAddress2D_v3) STUB(cuTexRefSetAddressMode)
STUB(cuTexRefSetAddress_v2) STUB(cuTexRefSetArray) STUB(cuTexRefSetFilterMode) STUB(cuTexRefSetFlags)
STUB(cuTexRefSetFormat)
