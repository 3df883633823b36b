/* Addresses of the loopback, and what tests of sockets have in common. */
#ifndef ZOO_INET_H
#define ZOO_INET_H
#include "zoo.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

typedef struct sockaddr_storage address;

/* An address of either family: `text` as inet_pton(3) takes it. */
static inline address at(const char *text, int port) {
    address a = {0};
    struct sockaddr_in *four = (void *)&a;
    struct sockaddr_in6 *six = (void *)&a;
    if (inet_pton(AF_INET, text, &four->sin_addr) == 1) {
        four->sin_family = AF_INET;
        four->sin_port = htons(port);
    } else {
        MUST(inet_pton(AF_INET6, text, &six->sin6_addr) == 1);
        six->sin6_family = AF_INET6;
        six->sin6_port = htons(port);
    }
    return a;
}

static inline socklen_t size_of(const address *a) {
    return a->ss_family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
}

static inline int port_of(const address *a) { return ntohs(((struct sockaddr_in *)a)->sin_port); }

static inline address name_of(int fd, int of_peer) {
    address a = {0};
    socklen_t length = sizeof a;
    MUST((of_peer ? getpeername : getsockname)(fd, (void *)&a, &length) == 0);
    return a;
}

static inline void set(int fd, int level, int name, int value) {
    MUST(setsockopt(fd, level, name, &value, sizeof value) == 0);
}

static inline int get(int fd, int level, int name) {
    int value = 0;
    socklen_t length = sizeof value;
    MUST(getsockopt(fd, level, name, &value, &length) == 0);
    return value;
}

static inline int bound(int type, const char *text, int port) {
    address a = at(text, port);
    int fd = socket(a.ss_family, type, 0);
    MUST(fd >= 0);
    MUST(bind(fd, (void *)&a, size_of(&a)) == 0);
    return fd;
}

static inline int listener(const char *text, int port, int backlog) {
    int fd = bound(SOCK_STREAM, text, port);
    MUST(listen(fd, backlog) == 0);
    return fd;
}

static inline int connected(const char *text, int port) {
    address a = at(text, port);
    int fd = socket(a.ss_family, SOCK_STREAM, 0);
    MUST(fd >= 0);
    MUST(connect(fd, (void *)&a, size_of(&a)) == 0);
    return fd;
}

/* Two ends of a connection to a listener. */
static inline void join(int listening, int *client, int *server) {
    address a = name_of(listening, 0);
    *client = socket(a.ss_family, SOCK_STREAM, 0);
    MUST(*client >= 0);
    MUST(connect(*client, (void *)&a, size_of(&a)) == 0);
    *server = accept(listening, 0, 0);
    MUST(*server >= 0);
}

static inline int now(int fd, int events) {
    struct pollfd p = {fd, events, 0};
    MUST(poll(&p, 1, 0) >= 0);
    return p.revents;
}

static inline int soon(int fd, int events) {
    struct pollfd p = {fd, events, 0};
    MUST(poll(&p, 1, 20000) == 1);
    return p.revents;
}

/* Bytes that tell their place in a stream. */
static inline char byte_at(size_t place) { return (char)(place * 31 + place / 251); }

static inline void fill(char *bytes, size_t from, size_t length) {
    for (size_t n = 0; n < length; n++) bytes[n] = byte_at(from + n);
}

/* Reads this much of such a stream, which may take time. */
static inline void expect(int fd, size_t from, size_t length) {
    static _Thread_local char bytes[65536];
    while (length > 0) {
        soon(fd, POLLIN);
        ssize_t count = recv(fd, bytes, length < sizeof bytes ? length : sizeof bytes, 0);
        MUST(count > 0);
        for (ssize_t n = 0; n < count; n++)
            if (bytes[n] != byte_at(from + n)) zoo_fail("descriptor %d: byte %zu", fd, from + n);
        from += count, length -= count;
    }
}

static inline void expect_text(int fd, const char *text) {
    char bytes[256] = {0};
    size_t length = strlen(text), got = 0;
    while (got < length) {
        soon(fd, POLLIN);
        ssize_t count = recv(fd, bytes + got, length - got, 0);
        MUST(count > 0);
        got += count;
    }
    MUST(strcmp(bytes, text) == 0);
}

static inline void expect_end(int fd) {
    char byte;
    soon(fd, POLLIN);
    MUST(recv(fd, &byte, 1, 0) == 0);
}

static inline void say(int fd, const char *text) {
    MUST(send(fd, text, strlen(text), MSG_NOSIGNAL) == (ssize_t)strlen(text));
}

#endif
