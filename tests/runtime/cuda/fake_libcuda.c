/* A fake libcuda.so.1 on host memory, for tests: the calls that edgekiln and PyCUDA make of the real one, done at
 * once instead of later. Every call that needs a current context refuses to work without one, as the real one does.
 * It was written from cuda.h of CUDA 13.0; it proves nothing of how a GPU behaves. */
#include <stdlib.h>
#include <string.h>
#ifndef INIT_STATUS
#define INIT_STATUS 0
#endif
#ifndef DEVICES
#define DEVICES 1
#endif
#define TOTAL_MEMORY (8ull << 30)
#define OK 0
#define INVALID_VALUE 1
#define OUT_OF_MEMORY 2
#define INVALID_CONTEXT 201
#define INVALID_HANDLE 400
#define CAPTURE_INVALIDATED 901
#define ENTER if (depth == 0 || stack[depth - 1] != &primary) return INVALID_CONTEXT

typedef struct { void *to; const void *from; size_t size; } Copy;
typedef struct { int count; Copy copies[64]; } Graph;
typedef struct { Graph *recording; } Stream;
static int primary;
static __thread void *stack[16];
static __thread int depth;

int cuInit(unsigned flags) { (void)flags; return INIT_STATUS; }
int cuDriverGetVersion(int *version) { *version = 12060; return OK; }
int cuDeviceGetCount(int *count) { *count = DEVICES; return OK; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return ordinal < DEVICES ? OK : 101; }
int cuDeviceGetName(char *name, int length, int device) { (void)device; strncpy(name, "Fake Orin", length); return OK; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { (void)device; *bytes = TOTAL_MEMORY; return OK; }
int cuDeviceGetUuid_v2(char *uuid, int device) { memset(uuid, 0, 16); uuid[15] = 7 + device; return OK; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    switch (attribute) {
    case 16: *value = 14; return OK;
    case 18: *value = 1; return OK;
    case 19: *value = 1; return OK;
    case 75: *value = 8; return OK;
    case 76: *value = 7; return OK;
    }
    return INVALID_VALUE;
}
#ifndef NO_TEXTS
int cuGetErrorName(int status, const char **text) {
    *text = status == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_FAKE";
    return OK;
}
int cuGetErrorString(int status, const char **text) {
    *text = status == OUT_OF_MEMORY ? "out of memory" : "a fake error";
    return OK;
}
#endif

int cuDevicePrimaryCtxRetain(void **context, int device) { (void)device; *context = &primary; return OK; }
int cuDevicePrimaryCtxRelease_v2(int device) { (void)device; return OK; }
int cuCtxPushCurrent_v2(void *context) { stack[depth++] = context; return OK; }
int cuCtxPopCurrent_v2(void **context) {
    if (depth == 0) return INVALID_CONTEXT;
    *context = stack[--depth];
    return OK;
}
int cuCtxGetCurrent(void **context) { *context = depth ? stack[depth - 1] : NULL; return OK; }

int cuMemGetInfo_v2(size_t *free, size_t *total) { ENTER; *free = TOTAL_MEMORY / 2; *total = TOTAL_MEMORY; return OK; }
int cuMemAlloc_v2(void **address, size_t size) {
    ENTER;
    if (size > TOTAL_MEMORY) return OUT_OF_MEMORY;
    *address = malloc(size);
    return OK;
}
int cuMemFree_v2(void *address) { ENTER; free(address); return OK; }
int cuMemHostAlloc(void **address, size_t size, unsigned flags) { (void)flags; return cuMemAlloc_v2(address, size); }
int cuMemFreeHost(void *address) { ENTER; free(address); return OK; }
int cuMemHostGetDevicePointer_v2(void **device, void *host, unsigned flags) { ENTER; (void)flags; *device = host; return OK; }

static int copy(void *to, const void *from, size_t size, Stream *stream) {
    ENTER;
    if (stream->recording == NULL) memcpy(to, from, size);
    else stream->recording->copies[stream->recording->count++] = (Copy){to, from, size};
    return OK;
}
int cuMemcpyHtoDAsync_v2(void *to, const void *from, size_t size, Stream *stream) { return copy(to, from, size, stream); }
int cuMemcpyDtoHAsync_v2(void *to, const void *from, size_t size, Stream *stream) { return copy(to, from, size, stream); }

int cuStreamCreate(Stream **stream, unsigned flags) { ENTER; (void)flags; *stream = calloc(1, sizeof(Stream)); return OK; }
int cuStreamDestroy_v2(Stream *stream) { ENTER; free(stream); return OK; }
int cuStreamSynchronize(Stream *stream) { ENTER; return stream->recording == NULL ? OK : 900; }
int cuEventCreate(void **event, unsigned flags) { ENTER; *event = malloc(1); return flags < 4 ? OK : INVALID_VALUE; }
int cuEventDestroy_v2(void *event) { ENTER; free(event); return OK; }
int cuEventRecord(void *event, Stream *stream) { ENTER; (void)event; (void)stream; return OK; }
int cuEventSynchronize(void *event) { ENTER; (void)event; return OK; }
int cuEventElapsedTime_v2(float *ms, void *since, void *until) { ENTER; (void)since; (void)until; *ms = 0.5f; return OK; }

int cuStreamBeginCapture_v2(Stream *stream, int mode) {
    ENTER;
    if (mode != 1) return INVALID_VALUE; /* thread-local is what edgekiln promises */
    stream->recording = calloc(1, sizeof(Graph));
    return OK;
}
int cuStreamEndCapture(Stream *stream, Graph **graph) {
    ENTER;
    *graph = stream->recording;
    stream->recording = NULL;
    return *graph == NULL ? CAPTURE_INVALIDATED : OK;
}
int cuGraphInstantiateWithFlags(Graph **executable, Graph *graph, unsigned long long flags) {
    ENTER;
    if (flags != 0) return INVALID_VALUE;
    *executable = malloc(sizeof(Graph));
    **executable = *graph;
    return OK;
}
int cuGraphUpload(Graph *graph, Stream *stream) { ENTER; (void)graph; (void)stream; return OK; }
int cuGraphLaunch(Graph *graph, Stream *stream) {
    ENTER;
    for (int i = 0; i < graph->count; i++) copy(graph->copies[i].to, graph->copies[i].from, graph->copies[i].size, stream);
    return OK;
}
int cuGraphExecDestroy(Graph *graph) { ENTER; free(graph); return OK; }
int cuGraphDestroy(Graph *graph) { ENTER; free(graph); return OK; }

/* What edgekiln's own layer calls besides. */
#ifndef SCHEDULING
#define SCHEDULING 0 /* CU_CTX_SCHED_AUTO */
#endif
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {
    (void)device;
    *flags = SCHEDULING;
    *active = 1;
    return OK;
}
int cuStreamQuery(Stream *stream) { return cuStreamSynchronize(stream); }
int cuEventElapsedTime(float *ms, void *since, void *until) { return cuEventElapsedTime_v2(ms, since, until); }
