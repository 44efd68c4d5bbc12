/* The fake driver's streams, events and graphs. A stream is a queue that is worked off while somebody waits for it. */
#define _GNU_SOURCE
#include "fake_libcuda.h"
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static __thread char here; /* its address tells threads apart */

static double now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

/* ---------------------------------------------------------------------------------------------------------- work */

static void append(Object *to, Work work) {
    Work *added = malloc(sizeof *added);
    *added = work;
    added->next = NULL;
    added->position = ++to->queued;
    if (to->last) to->last->next = added; else to->first = added;
    to->last = added;
}

static void append_all(Object *to, const Object *from) {
    for (const Work *work = from->first; work; work = work->next) append(to, *work);
}

static void forget_all(Object *object) {
    for (Work *work = object->first, *next; work; work = next) {
        next = work->next;
        free(work);
    }
    object->first = object->last = NULL;
}

static void run(const Work *work) {
    switch (work->what) {
    case COPY: {
        char *to = reach(work->to, work->size), *from = reach(work->from, work->size);
        if (to && from) memmove(to, from, work->size);
        else broken = wrong(ILLEGAL_ADDRESS, "work of a stream", "a copy uses memory that was freed");
        return;
    }
    case CALL: /* without the lock: it may wait for a lock of a thread that waits for ours */
        drop_lock();
        in_host_function = 1;
        work->function(work->data);
        in_host_function = 0;
        take_lock();
        return;
    case MARK: work->event->reached_ms = now_ms(); return;
    case WAIT: drain(work->other, work->until); return;
    }
}

/* Do all work of a stream up to a position. Gives the error of a device that is broken, for who waits. */
int drain(Object *stream, long until) {
    while (stream->busy) { /* another thread is at it */
        drop_lock();
        usleep(50);
        take_lock();
    }
    stream->busy = 1;
    while (stream->first && stream->first->position <= until && !broken) {
        Work *work = stream->first;
        stream->first = work->next;
        if (!stream->first) stream->last = NULL;
        run(work);
        stream->done = work->position;
        free(work);
    }
    stream->busy = 0;
    return broken;
}

int enqueue(Object *stream, Work work) {
    if (stream->capture && stream->spoiled) return CAPTURE_INVALIDATED;
    append(stream->capture ? stream->capture : stream, work);
    return !stream->capture && setting("FAKE_EAGER", 0) ? drain(stream, stream->queued) : OK;
}

/* A wait ends a capture, and is refused. */
static int refuse_wait(Object *stream, const char *name) {
    stream->spoiled = 1;
    return wrong(CAPTURE_UNSUPPORTED, name, "waits for a stream that records");
}

/* What a thread may not do while it records; one that records in global mode (0) forbids it to all threads. */
int breaks_a_capture(const char *name) {
    for (Object *o = before(NULL); o; o = before(o)) {
        if (!o->alive || !o->capture || o->mode == 2 || (o->mode == 1 && o->thread != &here)) continue;
        o->spoiled = 1;
        return wrong(1, name, "not while a stream records");
    }
    return 0;
}

/* Begins a call that ends an object, with the lock. One that was made to fail counts: there is no more to do. */
int begin_destruction(Object *object, const char *name) {
    int asked = begin_call(name);
    if (asked && object) object->given_back = 1;
    if (asked) return asked;
    if (!is_initialized()) return wrong(NOT_INITIALIZED, name, "cuInit was not called in this process");
    if (!current()) return wrong(INVALID_CONTEXT, name, "no context is current in this thread");
    return object ? OK : wrong(INVALID_HANDLE, name, "nothing that is alive");
}

static int destroy(Object *object, const char *name) {
    int status = begin_destruction(object, name);
    if (status) return status;
    object->alive = 0;
    if (object->kind == GRAPH || object->kind == EXECUTABLE) forget_all(object);
    return OK;
}

/* ------------------------------------------------------------------------------------------------------- streams */

API int cuStreamCreate(void **handle, unsigned flags) {
    ENTER;
    if (flags != 1) return wrong(INVALID_VALUE, __func__, "a stream that waits for the default stream");
    create(STREAM, handle)->flags = flags;
    return OK;
}
API int cuStreamCreateWithPriority(void **handle, unsigned flags, int priority) {
    (void)priority;
    return cuStreamCreate(handle, flags);
}
API int cuStreamDestroy_v2(void *handle) {
    LOCKED;
    Object *stream = find(handle, STREAM);
    int status = begin_destruction(stream, __func__);
    if (status) return status;
    if (stream->capture) stream->capture->alive = 0;
    stream->capture = NULL;
    drain(stream, stream->queued); /* what was enqueued is done all the same */
    stream->alive = 0;
    return OK;
}
API int cuStreamSynchronize(void *handle) {
    ENTER;
    FIND(stream, handle, STREAM);
    return stream->capture ? refuse_wait(stream, __func__) : drain(stream, stream->queued);
}
/* Each question finds one more piece of work done, so that who asks in a loop asks more than once. */
API int cuStreamQuery(void *handle) {
    ENTER;
    FIND(stream, handle, STREAM);
    if (stream->capture) return refuse_wait(stream, __func__);
    if (!stream->first) return broken;
    return drain(stream, stream->first->position) ? broken : NOT_READY;
}
API int cuStreamGetFlags(void *handle, unsigned *flags) {
    ENTER;
    FIND(stream, handle, STREAM);
    *flags = stream->flags;
    return OK;
}
API int cuLaunchHostFunc(void *handle, void (*function)(void *), void *data) {
    ENTER;
    FIND(stream, handle, STREAM);
    return enqueue(stream, (Work){.what = CALL, .function = function, .data = data});
}

/* -------------------------------------------------------------------------------------------------------- events */

API int cuEventCreate(void **handle, unsigned flags) {
    ENTER;
    if (flags > 3) return wrong(INVALID_VALUE, __func__, "neither blocking nor without time");
    create(EVENT, handle)->flags = flags;
    return OK;
}
API int cuEventDestroy_v2(void *handle) { LOCKED; return destroy(find(handle, EVENT), __func__); }
API int cuEventRecord(void *handle, void *on) {
    ENTER;
    FIND(event, handle, EVENT);
    FIND(stream, on, STREAM);
    int status = enqueue(stream, (Work){.what = MARK, .event = event});
    if (status) return status;
    event->recorded = 1;
    event->stream = stream;
    event->position = stream->capture ? 0 : stream->queued;
    if (stream->done < event->position) event->reached_ms = 0;
    return OK;
}
API int cuEventSynchronize(void *handle) {
    ENTER;
    FIND(event, handle, EVENT);
    if (!event->stream) return OK;
    if (event->stream->capture) return refuse_wait(event->stream, __func__);
    return drain(event->stream, event->position);
}
API int cuEventQuery(void *handle) {
    ENTER;
    FIND(event, handle, EVENT);
    if (!event->stream || event->stream->done >= event->position) return broken;
    if (event->stream->capture) return refuse_wait(event->stream, __func__);
    return drain(event->stream, event->stream->done + 1) ? broken : NOT_READY;
}
API int cuEventElapsedTime_v2(float *ms, void *since, void *until) {
    ENTER;
    FIND(first, since, EVENT);
    FIND(second, until, EVENT);
    if ((first->flags | second->flags) & 2) return wrong(INVALID_HANDLE, __func__, "an event without time");
    if (!first->recorded || !second->recorded) return wrong(INVALID_HANDLE, __func__, "an event in no stream");
    if (first->reached_ms == 0 || second->reached_ms == 0) return NOT_READY;
    *ms = (float)(second->reached_ms - first->reached_ms);
    return OK;
}
API int cuEventElapsedTime(float *ms, void *since, void *until) { return cuEventElapsedTime_v2(ms, since, until); }
API int cuStreamWaitEvent(void *handle, void *mark, unsigned flags) {
    ENTER;
    FIND(stream, handle, STREAM);
    FIND(event, mark, EVENT);
    (void)flags;
    if (!event->stream) return OK;
    return enqueue(stream, (Work){.what = WAIT, .other = event->stream, .until = event->position});
}

/* -------------------------------------------------------------------------------------------------------- graphs */

API int cuStreamBeginCapture_v2(void *handle, int mode) {
    ENTER;
    FIND(stream, handle, STREAM);
    if (stream->capture) return wrong(ILLEGAL_STATE, __func__, "it records already");
    if (mode != 1) return wrong(INVALID_VALUE, __func__, "not thread-local, which is what edgekiln promises");
    stream->capture = create(GRAPH, NULL);
    stream->mode = mode;
    stream->thread = &here;
    stream->spoiled = 0;
    return OK;
}
/* A capture that is spoiled, or whose end was made to fail, ends all the same, and leaves no graph. */
API int cuStreamEndCapture(void *handle, void **graph) {
    LOCKED;
    int asked = begin_call(__func__);
    *graph = NULL;
    if (!asked && !current()) return wrong(INVALID_CONTEXT, __func__, "no context is current in this thread");
    FIND(stream, handle, STREAM);
    if (!stream->capture) return asked ? asked : wrong(ILLEGAL_STATE, __func__, "it does not record");
    if (stream->thread != &here) return wrong(CAPTURE_WRONG_THREAD, __func__, "another thread began");
    Object *recorded = stream->capture;
    stream->capture = NULL;
    if (asked || stream->spoiled) {
        recorded->alive = 0;
        forget_all(recorded);
        return asked ? asked : CAPTURE_INVALIDATED;
    }
    *graph = recorded->handle;
    return OK;
}
API int cuStreamIsCapturing(void *handle, int *status) {
    ENTER;
    FIND(stream, handle, STREAM);
    *status = !stream->capture ? 0 : stream->spoiled ? 2 : 1;
    return OK;
}
API int cuGraphInstantiateWithFlags(void **executable, void *handle, unsigned long long flags) {
    ENTER;
    FIND(graph, handle, GRAPH);
    if (flags != 0) return wrong(INVALID_VALUE, __func__, "unknown flags");
    append_all(create(EXECUTABLE, executable), graph);
    return OK;
}
API int cuGraphUpload(void *handle, void *on) {
    ENTER;
    FIND(executable, handle, EXECUTABLE);
    FIND(stream, on, STREAM);
    (void)executable;
    return stream->capture ? wrong(CAPTURE_UNSUPPORTED, __func__, "not while the stream records") : OK;
}
API int cuGraphLaunch(void *handle, void *on) {
    ENTER;
    FIND(executable, handle, EXECUTABLE);
    FIND(stream, on, STREAM);
    for (const Work *work = executable->first; work; work = work->next) {
        int status = enqueue(stream, *work);
        if (status) return status;
    }
    return OK;
}
API int cuGraphExecDestroy(void *handle) { LOCKED; return destroy(find(handle, EXECUTABLE), __func__); }
API int cuGraphDestroy(void *handle) { LOCKED; return destroy(find(handle, GRAPH), __func__); }
