/* Preloaded by test_network.py: libraries that open sockets in C are seen too. Each attempt to reach anything but a
 * process or the kernel of this machine is written down and refused. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int refuse(const char *call) {
    const char *path = getenv("NETWORK_GUARD_LOG");
    int file = path ? open(path, O_WRONLY | O_APPEND) : -1;
    if (file < 0 || write(file, call, strlen(call)) < 0) abort();
    close(file);
    errno = ENETUNREACH;
    return -1;
}

static int is_local(const struct sockaddr *address) {
    return !address || address->sa_family == AF_UNIX || address->sa_family == AF_NETLINK;
}

int connect(int socket, const struct sockaddr *address, socklen_t length) {
    int (*next)(int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "connect");
    return is_local(address) ? next(socket, address, length) : refuse("native connect\n");
}

ssize_t sendto(int socket, const void *data, size_t size, int flags, const struct sockaddr *to, socklen_t length) {
    ssize_t (*next)(int, const void *, size_t, int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "sendto");
    return is_local(to) ? next(socket, data, size, flags, to, length) : refuse("native sendto\n");
}

int getaddrinfo(const char *host, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    (void)host, (void)service, (void)hints, (void)found;
    refuse("native getaddrinfo\n");
    return EAI_FAIL;
}
