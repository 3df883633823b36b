/* Pairs of Unix sockets: unread bytes and packets, half closed, left by the peer, options, and
   between a parent and its child. */
#include "zoo.h"
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

static void pair(int kind, int fds[2]) { MUST(socketpair(AF_UNIX, kind, 0, fds) == 0); }

static void expect(int fd, const char *text) {
    char buffer[300];
    ssize_t length = recv(fd, buffer, sizeof buffer, MSG_DONTWAIT);
    if (length != (ssize_t)strlen(text) || memcmp(buffer, text, length))
        zoo_fail("%zd bytes (%s) instead of %s", length, strerror(errno), text);
}

static void put(int fd, const char *text) {
    MUST(send(fd, text, strlen(text), MSG_DONTWAIT) == (ssize_t)strlen(text));
}

static void expect_none(int fd) {
    char byte;
    MUST(recv(fd, &byte, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN);
}

int main(void) {
    int plain[2], half[2], left[2], reset[2], packets[2], datagrams[2], lonely[2], options[2];
    int big[2], told[2];
    static char block[150000];
    char byte;
    pair(SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, plain);
    put(plain[0], "one"), put(plain[0], "two"), put(plain[1], "back");
    pair(SOCK_STREAM, half);
    put(half[0], "last words");
    MUST(shutdown(half[0], SHUT_WR) == 0);
    pair(SOCK_STREAM, left);
    put(left[0], "testament");
    close(left[0]);
    pair(SOCK_STREAM, reset);
    put(reset[1], "unheard");
    close(reset[0]);
    pair(SOCK_SEQPACKET, packets);
    put(packets[0], "first"), put(packets[0], "second one"), put(packets[0], "3");
    put(packets[1], "alone");
    pair(SOCK_DGRAM, datagrams);
    put(datagrams[0], "a"), put(datagrams[0], "bcd"), put(datagrams[0], ""), put(datagrams[0], "e");
    pair(SOCK_DGRAM, lonely);
    put(lonely[0], "of one who is gone");
    close(lonely[0]);
    pair(SOCK_STREAM, options);
    int size = 20000, on = 1, value;
    socklen_t length = sizeof value;
    struct timeval timeout = {3, 500000}, asked;
    MUST(setsockopt(options[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size) == 0);
    MUST(setsockopt(options[0], SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout) == 0);
    MUST(setsockopt(options[1], SOL_SOCKET, SO_PASSCRED, &on, sizeof on) == 0);
    MUST(getsockopt(options[0], SOL_SOCKET, SO_SNDBUF, &size, &length) == 0);
    pair(SOCK_STREAM, big);
    memset(block, 'b', sizeof block);
    MUST(write(big[0], block, sizeof block) == sizeof block);
    pair(SOCK_STREAM, told);
    pid_t child = fork();
    if (child == 0) {
        close(told[0]);
        MUST(read(told[1], &byte, 1) == 1 && byte == '?' && write(told[1], "!", 1) == 1);
        MUST(read(told[1], &byte, 1) == 0);
        _exit(0);
    }
    close(told[1]);
    struct ucred cred, before;
    length = sizeof before;
    MUST(getsockopt(plain[0], SOL_SOCKET, SO_PEERCRED, &before, &length) == 0);
    zoo_await_fork();
    expect(plain[1], "onetwo");
    expect_none(plain[1]);
    expect(plain[0], "back");
    put(plain[0], "more");
    expect(plain[1], "more");
    MUST(fcntl(plain[0], F_GETFL) & O_NONBLOCK && !(fcntl(half[0], F_GETFL) & O_NONBLOCK));
    MUST(fcntl(plain[0], F_GETFD) == FD_CLOEXEC && fcntl(half[0], F_GETFD) == 0);
    expect(half[1], "last words");
    expect(half[1], "");
    put(half[1], "answer");
    expect(half[0], "answer");
    MUST(send(half[0], "x", 1, MSG_NOSIGNAL) < 0 && errno == EPIPE);
    expect(left[1], "testament");
    expect(left[1], "");
    MUST(send(left[1], "x", 1, MSG_NOSIGNAL) < 0 && errno == EPIPE);
    MUST(recv(reset[1], &byte, 1, MSG_DONTWAIT) < 0 && errno == ECONNRESET);
    expect(reset[1], "");
    expect(packets[1], "first"), expect(packets[1], "second one"), expect(packets[1], "3");
    expect_none(packets[1]);
    expect(packets[0], "alone");
    expect_none(packets[0]);
    expect(datagrams[1], "a"), expect(datagrams[1], "bcd"), expect(datagrams[1], "");
    expect(datagrams[1], "e");
    expect_none(datagrams[1]);
    put(datagrams[1], "answer");
    expect(datagrams[0], "answer");
    expect(lonely[1], "of one who is gone");
    MUST(send(lonely[1], "x", 1, MSG_NOSIGNAL) < 0 && errno == ECONNREFUSED);
    length = sizeof value;
    MUST(getsockopt(options[0], SOL_SOCKET, SO_SNDBUF, &value, &length) == 0 && value == size);
    MUST(getsockopt(options[1], SOL_SOCKET, SO_SNDBUF, &value, &length) == 0 && value != size);
    MUST(getsockopt(options[1], SOL_SOCKET, SO_PASSCRED, &value, &length) == 0 && value == 1);
    MUST(getsockopt(options[0], SOL_SOCKET, SO_PASSCRED, &value, &length) == 0 && value == 0);
    MUST(getsockopt(options[1], SOL_SOCKET, SO_PEEK_OFF, &value, &length) == 0 && value == -1);
    length = sizeof asked;
    MUST(getsockopt(options[0], SOL_SOCKET, SO_RCVTIMEO, &asked, &length) == 0);
    MUST(asked.tv_sec == 3 && asked.tv_usec == 500000);
    memset(block, 0, sizeof block);
    MUST(recv(big[1], block, sizeof block, MSG_WAITALL) == sizeof block && block[149999] == 'b');
    expect_none(big[1]);
    MUST(write(told[0], "?", 1) == 1 && read(told[0], &byte, 1) == 1 && byte == '!');
    MUST(shutdown(told[0], SHUT_WR) == 0 && read(told[0], &byte, 1) == 0);
    length = sizeof cred;
    MUST(getsockopt(plain[0], SOL_SOCKET, SO_PEERCRED, &cred, &length) == 0);
    MUST(cred.uid == before.uid && cred.gid == before.gid);
    int status;
    MUST(waitpid(child, &status, 0) == child && status == 0);
    return zoo_ok();
}
