/* The fake driver's memory: device memory, pinned memory, and copies between them. */
#define _GNU_SOURCE
#include "fake_libcuda.h"
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE 4096
#define GAP 4096                          /* between two allocations, so that none runs on into the next */
#define ADDRESSES ((size_t)1 << 36)       /* of the device: reserved, and never there */
#define FRESH 0xCD                        /* what new memory holds: not zero, as the real one does not promise it */

static char *first_address, *next_address;
static size_t used;

static size_t pages(size_t size) { return (size + PAGE - 1) / PAGE * PAGE; }

/* NULL where all addresses were given: none is given twice. */
static char *new_device_address(size_t size) {
    if (!first_address) {
        char *reserved = mmap(NULL, ADDRESSES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (reserved == MAP_FAILED) return NULL;
        first_address = next_address = reserved;
    }
    if (pages(size) + GAP > (size_t)(first_address + ADDRESSES - next_address)) return NULL;
    char *address = next_address;
    next_address += pages(size) + GAP;
    return address;
}

static int is_device_address(const void *address) {
    return first_address && (char *)address >= first_address && (char *)address < first_address + ADDRESSES;
}

static int holds(const char *start, size_t length, const void *address) {
    return start && (char *)address >= start && (char *)address < start + length;
}

/* The memory, alive or not, that an address of the host or of the device belongs to. */
static Object *memory_at(const void *address) {
    for (Object *o = before(NULL); o; o = before(o))
        if (o->size && (holds(o->host, o->size, address) || holds(o->device, o->size, address))) return o;
    return NULL;
}

/* Where `size` bytes at an address are; NULL where no live memory of CUDA holds all of them. What is no memory of
 * CUDA's at all is the host's own. */
char *reach(const void *address, size_t size) {
    Object *memory = memory_at(address);
    if (!memory) return is_device_address(address) ? NULL : (char *)address;
    size_t offset = (size_t)((char *)address - (is_device_address(address) ? memory->device : memory->host));
    return memory->alive && offset + size <= memory->size ? memory->bytes + offset : NULL;
}

/* ------------------------------------------------------------------------------------------ allocation and release */

static char *new_pages(size_t size) {
    char *bytes = mmap(NULL, pages(size), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (bytes == MAP_FAILED) return NULL;
    memset(bytes, FRESH, size);
    return bytes;
}

API int cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
    ENTER;
    *free_bytes = TOTAL_MEMORY / 2 - used; /* the other half is taken by others */
    *total = TOTAL_MEMORY;
    return OK;
}

API int cuMemAlloc_v2(void **address, size_t size) {
    ENTER;
    if (breaks_a_capture(__func__)) return CAPTURE_UNSUPPORTED;
    if (size == 0) return wrong(INVALID_VALUE, __func__, "0 bytes");
    if (size > TOTAL_MEMORY / 2 - used) return OUT_OF_MEMORY;
    char *bytes = new_pages(size), *device = new_device_address(size);
    if (!bytes || !device) return OUT_OF_MEMORY;
    Object *memory = create(DEVICE_MEMORY, NULL);
    memory->bytes = bytes;
    memory->size = size;
    memory->device = device;
    used += size;
    *address = memory->device;
    return OK;
}

API int cuMemHostAlloc(void **address, size_t size, unsigned flags) {
    ENTER;
    if (breaks_a_capture(__func__)) return CAPTURE_UNSUPPORTED;
    if (size == 0 || flags > 7) return wrong(INVALID_VALUE, __func__, "0 bytes, or unknown flags");
    char *bytes = size > TOTAL_MEMORY ? NULL : new_pages(size);
    char *device = flags & 2 ? new_device_address(size) : NULL; /* CU_MEMHOSTALLOC_DEVICEMAP */
    if (!bytes || (flags & 2 && !device)) return OUT_OF_MEMORY;
    Object *memory = create(PINNED_MEMORY, NULL);
    memory->bytes = memory->host = bytes;
    memory->size = size;
    memory->flags = flags;
    memory->device = device;
    *address = bytes;
    return OK;
}

API int cuMemHostGetDevicePointer_v2(void **device, void *host, unsigned flags) {
    ENTER;
    (void)flags;
    Object *memory = memory_at(host);
    if (!memory || !memory->alive || !memory->device || is_device_address(host))
        return wrong(INVALID_VALUE, __func__, "no mapped memory");
    *device = memory->device + ((char *)host - memory->host);
    return OK;
}

/* The bytes go and the addresses stay taken. Nothing is waited for: work that still uses the memory finds it gone. */
static int release(Object *memory, enum kind kind, const void *address, const char *name) {
    int status = begin_destruction(memory && memory->alive && memory->kind == kind ? memory : NULL, name);
    if (status) return status;
    if (address != (kind == DEVICE_MEMORY ? memory->device : memory->host))
        return wrong(INVALID_VALUE, name, "not the beginning of an allocation");
    if (kind == DEVICE_MEMORY) {
        used -= memory->size;
        munmap(memory->bytes, pages(memory->size));
    } else {
        int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
        mmap(memory->bytes, pages(memory->size), PROT_NONE, flags, -1, 0);
    }
    memory->alive = 0;
    return OK;
}
API int cuMemFree_v2(void *address) { LOCKED; return release(memory_at(address), DEVICE_MEMORY, address, __func__); }
API int cuMemFreeHost(void *address) { LOCKED; return release(memory_at(address), PINNED_MEMORY, address, __func__); }

/* -------------------------------------------------------------------------------------------------------- copies */

static int copy(void *to, const void *from, size_t size, Object *stream, const char *name) {
    if (size == 0) return wrong(INVALID_VALUE, name, "0 bytes");
    if (!reach(to, size) || !reach(from, size)) return wrong(INVALID_VALUE, name, "no live memory holds all the bytes");
    int status = enqueue(stream, (Work){.what = COPY, .to = to, .from = from, .size = size});
    if (status || stream->capture) return status;
    /* Memory of the host that is not pinned is copied at once, as behind a staging buffer. */
    return memory_at(to) && memory_at(from) ? OK : drain(stream, stream->queued);
}
API int cuMemcpyHtoDAsync_v2(void *to, const void *from, size_t size, void *handle) {
    ENTER;
    FIND(stream, handle, STREAM);
    if (!is_device_address(to) || is_device_address(from))
        return wrong(INVALID_VALUE, __func__, "not from an address of the host to one of the device");
    return copy(to, from, size, stream, __func__);
}
API int cuMemcpyDtoHAsync_v2(void *to, const void *from, size_t size, void *handle) {
    ENTER;
    FIND(stream, handle, STREAM);
    if (is_device_address(to) || !is_device_address(from))
        return wrong(INVALID_VALUE, __func__, "not from an address of the device to one of the host");
    return copy(to, from, size, stream, __func__);
}
API int cuMemcpyDtoDAsync_v2(void *to, const void *from, size_t size, void *handle) {
    ENTER;
    FIND(stream, handle, STREAM);
    if (!is_device_address(to) || !is_device_address(from))
        return wrong(INVALID_VALUE, __func__, "not from an address of the device to another one");
    return copy(to, from, size, stream, __func__);
}
/* Of the attributes only CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: the fake has one device. */
API int cuPointerGetAttribute(int *value, int attribute, const void *address) {
    ENTER;
    if (attribute != 9) return wrong(NOT_SUPPORTED, __func__, "not the attribute of the device");
    if (!is_device_address(address) || !reach(address, 1)) return INVALID_VALUE;
    *value = 0;
    return OK;
}
API int cuMemcpyAsync(void *to, const void *from, size_t size, void *handle) {
    ENTER;
    FIND(stream, handle, STREAM);
    return copy(to, from, size, stream, __func__);
}

/* What a kernel would see at a device address: for a test's own engine. NULL where the device sees nothing. */
API void *fake_reach(void *address, size_t size) {
    take_lock();
    void *bytes = is_device_address(address) ? reach(address, size) : NULL;
    drop_lock();
    return bytes;
}
