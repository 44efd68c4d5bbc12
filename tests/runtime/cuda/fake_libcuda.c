/* A libcuda.so.1 without a device, for tests. Memory and streams are real enough to show mistakes; nothing computes.
 *
 * - A device address cannot be read or written by the host: a program that tries crashes. The bytes lie elsewhere.
 * - Streams are lazy: work waits in a queue until somebody waits for it, so a missing wait shows.
 * - A handle or an address is never used twice, so a use after its end is an error and not an accident.
 * - Any call can be made to fail, once or (a GPU that falls off the bus) from then on.
 * - What was created and not given back can be counted, and so can calls that a careful program does not make.
 *
 * Signatures and numbers are those of cuda.h of CUDA 13.0; every status is an int. It proves nothing of how a GPU
 * computes. NVIDIA's own libraries check that the driver is NVIDIA's: this one does not answer (cuGetExportTable).
 *
 * Environment, read whenever it matters:
 *   FAKE_DRIVER=12060      the version of the driver
 *   FAKE_INTEGRATED=1      1: shares the memory of the host, as on a Jetson; 0: a card
 *   FAKE_EAGER=0           1: work is done when it is enqueued, as if the device were infinitely fast
 *   FAKE_FAIL=NAME:N:E     the N-th call of NAME (of any function where NAME is empty) fails with status E
 */
#define _GNU_SOURCE
#include "fake_libcuda.h"
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifndef INIT_STATUS
#define INIT_STATUS 0
#endif
#ifndef DEVICES
#define DEVICES 1
#endif
#ifndef SCHEDULING
#define SCHEDULING 0 /* how a context waits: CU_CTX_SCHED_AUTO */
#endif

/* ------------------------------------------------------------------------------------------------- the one lock */

/* One thread at a time is inside the driver. Functions of this library that are not part of CUDA never take it. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
void take_lock(void) { pthread_mutex_lock(&lock); }
void drop_lock(void) { pthread_mutex_unlock(&lock); }
void end_call(int *unused) { (void)unused; drop_lock(); }

/* ---------------------------------------------------------------------------------- mistakes, failures, the counts */

int broken;                     /* the status that every call of the device gives from now on; 0 while it is well */
__thread int in_host_function;  /* CUDA may not be called there */
static int complaints, calls, fail_after, fail_status;
static char complaint[200], fail_name[64], failed[64];
static struct { const char *name; int count; } counts[128];

long setting(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text && *text ? strtol(text, NULL, 0) : otherwise;
}

/* A call that a careful program does not make. Gives `status`, so that it can be returned at once. */
int wrong(int status, const char *call, const char *what) {
    complaints++;
    snprintf(complaint, sizeof complaint, "%s: %s", call, what);
    return status;
}

static int place_of(const char *name) {
    int i = 0;
    while (counts[i].name && strcmp(counts[i].name, name)) i++;
    return i;
}

/* After a sticky error these go on working: they do not ask the device. */
static int needs_no_device(const char *name) {
    return !strncmp(name, "cuCtx", 5) || !strncmp(name, "cuD", 3) || !strcmp(name, "cuInit");
}

/* Every call of CUDA begins here, with the lock. A status other than 0 is to be returned. */
int begin_call(const char *name) {
    static int asked_environment;
    if (!asked_environment++ && getenv("FAKE_FAIL"))
        if (sscanf(getenv("FAKE_FAIL"), "%63[^:]:%d:%d", fail_name, &fail_after, &fail_status) != 3)
            sscanf(getenv("FAKE_FAIL"), ":%d:%d", &fail_after, &fail_status);
    calls++;
    int place = place_of(name);
    counts[place].name = name;
    counts[place].count++;
    if (in_host_function) return wrong(NOT_PERMITTED, name, "a host function calls CUDA");
    if (broken && !needs_no_device(name)) return broken;
    if (fail_after == 0 || (fail_name[0] && strcmp(fail_name, name)) || --fail_after) return OK;
    snprintf(failed, sizeof failed, "%s", name);
    if (fail_status >= FIRST_STICKY && fail_status <= LAST_STICKY) broken = fail_status;
    return fail_status;
}

/* ------------------------------------------------------------------------------------------------------- objects */

/* The handle of object i is FIRST_HANDLE + 16 * i. Objects are never freed, so no handle is given twice. */
#define FIRST_HANDLE 0x10000
static Object **objects;
static long created;

Object *create(enum kind kind, void **handle) {
    if (created % 1024 == 0) objects = realloc(objects, (size_t)(created + 1024) * sizeof *objects);
    Object *object = objects[created] = calloc(1, sizeof *object);
    object->kind = kind;
    object->alive = 1;
    object->handle = (void *)(FIRST_HANDLE + 16 * created++);
    if (handle) *handle = object->handle;
    return object;
}

/* The live object of that kind, or NULL: also for a handle that ended, or that never was one. */
Object *find(const void *handle, enum kind kind) {
    long i = ((long)handle - FIRST_HANDLE) / 16;
    if ((long)handle < FIRST_HANDLE || (long)handle % 16 || i >= created) return NULL;
    return objects[i]->alive && objects[i]->kind == kind ? objects[i] : NULL;
}

/* Newest first, alive or not; NULL after the last one. */
Object *before(const Object *object) {
    long i = object ? ((long)object->handle - FIRST_HANDLE) / 16 : created;
    return i > 0 ? objects[i - 1] : NULL;
}

/* ------------------------------------------------------------------------------------------- driver, device, texts */

static int initialized_by; /* the process: a fork of it may not use CUDA */
int is_initialized(void) { return initialized_by == getpid(); }

API int cuInit(unsigned flags) {
    BEGIN;
    (void)flags;
    if (initialized_by && !is_initialized()) return wrong(NOT_INITIALIZED, __func__, "in the fork of one that did");
    if (INIT_STATUS == OK) initialized_by = getpid();
    return INIT_STATUS;
}
API int cuDriverGetVersion(int *version) { BEGIN; *version = (int)setting("FAKE_DRIVER", 12060); return OK; }
API int cuDeviceGetCount(int *count) { READY; *count = DEVICES; return OK; }
API int cuDeviceGet(int *device, int ordinal) {
    READY;
    *device = ordinal;
    return ordinal >= 0 && ordinal < DEVICES ? OK : INVALID_DEVICE;
}
API int cuDeviceGetName(char *name, int length, int device) {
    READY;
    (void)device;
    snprintf(name, (size_t)length, "Fake Orin");
    return OK;
}
API int cuDeviceTotalMem_v2(size_t *bytes, int device) { READY; (void)device; *bytes = TOTAL_MEMORY; return OK; }
API int cuDeviceGetUuid_v2(char *uuid, int device) {
    READY;
    memset(uuid, 0, 16);
    uuid[15] = (char)(7 + device);
    return OK;
}
API int cuDeviceGetAttribute(int *value, int attribute, int device) {
    READY;
    (void)device;
    switch (attribute) {
    case 16: *value = 14; return OK;                                  /* multiprocessors */
    case 18: *value = (int)setting("FAKE_INTEGRATED", 1); return OK;  /* shares the host's memory */
    case 19: *value = 1; return OK;                                   /* can map the host's memory */
    case 75: *value = 8; return OK;                                   /* compute capability 8.7 */
    case 76: *value = 7; return OK;
    }
    *value = 0; /* NVIDIA's libraries ask for a hundred more, and take no for an answer */
    return attribute > 0 && attribute < 200 ? OK : INVALID_VALUE;
}

#ifndef NO_TEXTS
/* As the real one, it has no text for a status that it does not know. */
static int describe(int status, const char **text, const char *out_of_memory, const char *other) {
    *text = status >= FIRST_UNKNOWN ? NULL : status == OUT_OF_MEMORY ? out_of_memory : other;
    return *text ? OK : INVALID_VALUE;
}
API int cuGetErrorName(int status, const char **text) {
    return describe(status, text, "CUDA_ERROR_OUT_OF_MEMORY", "CUDA_ERROR_FAKE");
}
API int cuGetErrorString(int status, const char **text) {
    return describe(status, text, "out of memory", "a fake error");
}
#endif

/* ------------------------------------------------------------------------------------------------------- contexts */

static Object *primary;
static int retained;
static __thread Object *stack[32];
static __thread int depth;
Object *current(void) { return depth ? stack[depth - 1] : NULL; }

API int cuDevicePrimaryCtxRetain(void **context, int device) {
    READY;
    (void)device;
    if (!primary) primary = create(CONTEXT, NULL);
    retained++;
    *context = primary->handle;
    return OK;
}
API int cuDevicePrimaryCtxRelease_v2(int device) {
    READY;
    (void)device;
    if (retained == 0) return wrong(INVALID_CONTEXT, __func__, "released more often than retained");
    retained--;
    return OK;
}
API int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {
    READY;
    (void)device;
    *flags = SCHEDULING;
    *active = retained > 0;
    return OK;
}
API int cuCtxPushCurrent_v2(void *context) {
    READY;
    Object *object = find(context, CONTEXT);
    if (!object) return wrong(INVALID_CONTEXT, __func__, "no context");
    if (depth == 32) return wrong(INVALID_VALUE, __func__, "the stack of contexts is full");
    stack[depth++] = object;
    return OK;
}
API int cuCtxPopCurrent_v2(void **context) {
    READY;
    if (depth == 0) return wrong(INVALID_CONTEXT, __func__, "the stack of contexts is empty");
    depth--;
    if (context) *context = stack[depth]->handle;
    return OK;
}
API int cuCtxSetCurrent(void *context) {
    READY;
    Object *object = find(context, CONTEXT);
    if (context && !object) return wrong(INVALID_CONTEXT, __func__, "no context");
    depth -= depth > 0;
    if (object) stack[depth++] = object;
    return OK;
}
API int cuCtxGetCurrent(void **context) { READY; *context = current() ? current()->handle : NULL; return OK; }
API int cuCtxGetDevice(int *device) { ENTER; *device = 0; return OK; }
API int cuCtxGetFlags(unsigned *flags) { ENTER; *flags = SCHEDULING; return OK; }
API int cuCtxGetApiVersion(void *context, unsigned *version) { READY; (void)context; *version = 3020; return OK; }

/* -------------------------------------------------------------------------------------- what a test asks and tells */

/* The `nth` call from now on (of `name`, or of any function where it is NULL or empty) fails with `status`. A status
 * from 700 to 719 is sticky, as those are of CUDA: all later calls of the device fail alike. (NULL, 0, 0) mends all. */
API void fake_fail(const char *name, int nth, int status) {
    snprintf(fail_name, sizeof fail_name, "%s", name ? name : "");
    failed[0] = 0;
    fail_after = nth;
    fail_status = status;
    broken = 0;
}
API const char *fake_failed(void) { return failed; } /* the function that was made to fail; "" while none was */
API int fake_calls(const char *name) { return name && *name ? counts[place_of(name)].count : calls; }
API int fake_complaints(void) { return complaints; }
API const char *fake_complaint(void) { return complaint; }
API int fake_depth(void) { return depth; }
API int fake_contexts(void) { return retained; }

/* Objects of a kind that were created and not given back. One whose destruction was made to fail was given back. */
API int fake_live(const char *kind) {
    static const char *names[] = {"",      "context",    "stream",        "event",
                                  "graph", "executable", "device memory", "pinned memory"};
    int live = 0;
    for (Object *o = before(NULL); o; o = before(o))
        live += o->alive && !o->given_back && !strcmp(names[o->kind], kind);
    return live;
}

/* --------------------------------------------------------------------------- how other libraries find the functions */

/* cuda-bindings asks for a function by its plain name, and means the newest form of it. */
API int cuGetProcAddress_v2(const char *symbol, void **function, int version, unsigned long long flags, int *found) {
    (void)version;
    (void)flags;
    Dl_info self;
    char name[128];
    *function = NULL;
    if (!dladdr((void *)cuInit, &self)) return INVALID_VALUE;
    void *library = dlopen(self.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    for (int form = 4; form > 0 && !*function; form--) {
        snprintf(name, sizeof name, form > 1 ? "%s_v%d" : "%s", symbol, form);
        *function = dlsym(library, name);
    }
    if (found) *found = *function ? 0 : 1;
    return *function || found ? OK : NOT_FOUND;
}
API int cuGetExportTable(const void **table, const void *id) { (void)id; *table = NULL; return NOT_FOUND; }
