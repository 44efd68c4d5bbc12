/* What the files of the fake driver share: fake_libcuda.c (objects, device, contexts, failures), fake_libcuda_memory.c,
 * fake_libcuda_streams.c (streams, events, graphs) and fake_libcuda_stubs.c (names that only have to exist). */
#include <stddef.h>

#define API __attribute__((visibility("default")))
#define TOTAL_MEMORY ((size_t)8 << 30)

enum status {
    OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, INVALID_DEVICE = 101, INVALID_CONTEXT = 201,
    INVALID_HANDLE = 400, ILLEGAL_STATE = 401, NOT_FOUND = 500, NOT_READY = 600, FIRST_STICKY = 700,
    ILLEGAL_ADDRESS = 700, LAST_STICKY = 719, NOT_PERMITTED = 800, NOT_SUPPORTED = 801, CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901, CAPTURE_WRONG_THREAD = 908, UNKNOWN = 999, FIRST_UNKNOWN = 10000
};
enum kind { CONTEXT = 1, STREAM, EVENT, GRAPH, EXECUTABLE, DEVICE_MEMORY, PINNED_MEMORY };

typedef struct Object Object;
typedef struct Work Work;
struct Work { /* something that a stream has to do */
    enum { COPY, CALL, MARK, WAIT } what;
    Work *next;
    long position;                                      /* in its stream, from 1 */
    char *to; const char *from; size_t size;            /* COPY */
    void (*function)(void *); void *data;               /* CALL a function of the host */
    Object *event;                                      /* MARK: it is reached */
    Object *other; long until;                          /* WAIT until another stream has done so much */
};
struct Object {
    enum kind kind;
    void *handle;
    int alive, given_back;                              /* given back: its destruction was made to fail */
    unsigned flags;
    char *host, *device, *bytes; size_t size;           /* memory: address for the host, for the device, the bytes */
    Work *first, *last; long queued, done; int busy;    /* a stream's queue; a graph's work */
    Object *capture; int mode, spoiled;                 /* a stream that records: into which graph, and how */
    const void *thread;                                 /* ... and who began */
    Object *stream; long position; int recorded;        /* an event: where it was put last */
    double reached_ms;                                  /* 0: not yet */
};

void take_lock(void);
void drop_lock(void);
void end_call(int *);
int begin_call(const char *name);
int wrong(int status, const char *call, const char *what);
long setting(const char *name, long otherwise);
int is_initialized(void);
Object *create(enum kind kind, void **handle);
Object *find(const void *handle, enum kind kind);
Object *before(const Object *object);
Object *current(void);
char *reach(const void *address, size_t size);
int begin_destruction(Object *object, const char *name);
int breaks_a_capture(const char *name);
int enqueue(Object *stream, Work work);
int drain(Object *stream, long until);
extern int broken;
extern __thread int in_host_function;

/* How a function of CUDA begins: it holds the lock until it returns, and fails where it was asked to. */
#define LOCKED __attribute__((cleanup(end_call))) int held = 0; (void)held; take_lock()
#define BEGIN LOCKED; int asked = begin_call(__func__); if (asked) return asked
#define READY BEGIN; if (!is_initialized()) return wrong(NOT_INITIALIZED, __func__, "no cuInit in this process")
#define ENTER READY; if (!current()) return wrong(INVALID_CONTEXT, __func__, "no context is current in this thread")
#define FIND(name, handle, kind) \
    Object *name = find(handle, kind); if (!name) return wrong(INVALID_HANDLE, __func__, "the handle of no live " #kind)
