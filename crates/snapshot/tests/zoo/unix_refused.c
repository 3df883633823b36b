/* Unix sockets that are not copied, and unharmed by the attempt: which, ZOO says. */
#include "zoo.h"
#include <linux/filter.h>
#include <sys/socket.h>
#include <sys/un.h>

#ifndef SO_PASSPIDFD
#define SO_PASSPIDFD 76
#endif

static const char *kind;

static int is(const char *name) { return strcmp(kind, name) == 0; }

static void pair(int type, int fds[2]) { MUST(socketpair(AF_UNIX, type, 0, fds) == 0); }

static void put(int fd, const char *text, int flags) {
    MUST(send(fd, text, strlen(text), flags) == (ssize_t)strlen(text));
}

static void expect(int fd, const char *text, int flags) {
    char buffer[64];
    ssize_t length = recv(fd, buffer, sizeof buffer, MSG_DONTWAIT | flags);
    if (length != (ssize_t)strlen(text) || memcmp(buffer, text, length))
        zoo_fail("%zd bytes (%s) instead of %s", length, strerror(errno), text);
}

static void set(int fd, int name, int value) {
    MUST(setsockopt(fd, SOL_SOCKET, name, &value, sizeof value) == 0);
}

/* Sends a descriptor that writes to a pipe. */
static void send_descriptor(int fd, int sent) {
    char byte = 'x', control[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control,
                             .msg_controllen = sizeof control};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    *header = (struct cmsghdr){CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS};
    memcpy(CMSG_DATA(header), &sent, sizeof(int));
    MUST(sendmsg(fd, &message, 0) == 1);
}

static int receive_descriptor(int fd) {
    char byte, control[CMSG_SPACE(sizeof(int)) + 64] = {0};
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control,
                             .msg_controllen = sizeof control};
    MUST(recvmsg(fd, &message, MSG_DONTWAIT) == 1 && byte == 'x');
    for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header;
         header = CMSG_NXTHDR(&message, header)) {
        int got;
        memcpy(&got, CMSG_DATA(header), sizeof(int));
        if (header->cmsg_type == SCM_RIGHTS) return got;
    }
    zoo_fail("no descriptor came");
    return -1;
}

int main(void) {
    int fds[2], pipes[2], listener = -1, client = -1;
    struct sockaddr_un address = {AF_UNIX, "/tmp/server"};
    char byte, text[8];
    kind = getenv("ZOO");
    MUST(kind && pipe(pipes) == 0);
    if (is("filter")) {
        /* As many as there are bytes of room for an option. */
        struct sock_filter all[64];
        for (int i = 0; i < 64; i++) all[i] = (struct sock_filter){BPF_RET | BPF_K, 0, 0, 0xffff};
        struct sock_fprog program = {64, all};
        pair(SOCK_DGRAM, fds);
        MUST(setsockopt(fds[1], SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) == 0);
    } else if (is("offset")) {
        pair(SOCK_DGRAM, fds);
        set(fds[1], SO_PEEK_OFF, 0);
        put(fds[0], "one", 0), put(fds[0], "two", 0);
        expect(fds[1], "one", MSG_PEEK);
    } else if (is("urgent")) {
        pair(SOCK_STREAM, fds);
        put(fds[0], "plain", 0), put(fds[0], "!", MSG_OOB);
    } else if (is("pidfd")) {
        pair(SOCK_DGRAM, fds);
        set(fds[1], SO_PASSPIDFD, 1);
        put(fds[0], "one", 0);
    } else if (is("error")) {
        pair(SOCK_SEQPACKET, fds);
        put(fds[0], "heard", 0), put(fds[1], "unheard", 0);
        close(fds[0]);
    } else if (is("datagram")) {
        pair(SOCK_DGRAM, fds);
        set(fds[1], SO_PASSCRED, 1), set(fds[1], SO_TIMESTAMP, 1);
        put(fds[0], "one", 0), send_descriptor(fds[0], pipes[1]);
    } else if (is("packet")) {
        pair(SOCK_SEQPACKET, fds);
        put(fds[0], "one", 0), send_descriptor(fds[0], pipes[1]);
    } else {
        listener = socket(AF_UNIX, SOCK_STREAM, 0), client = socket(AF_UNIX, SOCK_STREAM, 0);
        if (is("proc")) strcpy(address.sun_path, "/proc/self/cwd/server");
        if (is("outside")) strcpy(address.sun_path, "/volume/server");
        if (is("abstract")) memcpy(address.sun_path, "\0forkyard zoo", 14);
        if (!is("outside"))
            MUST(bind(listener, (void *)&address, sizeof address) == 0 && listen(listener, 5) == 0);
        MUST(connect(client, (void *)&address, sizeof address) == 0);
        if (is("gone")) close(client);
    }
    zoo_await_fork();
    if (is("filter")) {
        put(fds[0], "one", 0), expect(fds[1], "one", 0);
    } else if (is("offset")) {
        expect(fds[1], "two", MSG_PEEK), expect(fds[1], "one", 0), expect(fds[1], "two", 0);
    } else if (is("urgent")) {
        expect(fds[1], "!", MSG_OOB), expect(fds[1], "plain", 0);
    } else if (is("pidfd")) {
        expect(fds[1], "one", 0);
    } else if (is("error")) {
        MUST(recv(fds[1], &byte, 1, 0) < 0 && errno == ECONNRESET);
        expect(fds[1], "heard", 0), expect(fds[1], "", 0);
    } else if (is("datagram") || is("packet")) {
        expect(fds[1], "one", 0);
        int got = receive_descriptor(fds[1]);
        MUST(write(got, "y", 1) == 1 && read(pipes[0], &byte, 1) == 1 && byte == 'y');
        put(fds[0], "two", 0), put(fds[0], "three", 0);
        expect(fds[1], "two", MSG_PEEK), expect(fds[1], "two", 0), expect(fds[1], "three", 0);
    } else if (is("outside")) {
        put(client, "hello", 0);
        MUST(recv(client, text, 5, MSG_WAITALL) == 5 && memcmp(text, "hello", 5) == 0);
    } else {
        int accepted = accept(listener, NULL, NULL);
        MUST(accepted >= 0);
        if (is("gone")) expect(accepted, "", 0);
        else put(client, "hello", 0), expect(accepted, "hello", 0);
    }
    return zoo_ok();
}
