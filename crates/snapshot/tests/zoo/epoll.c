/* epoll: level and edge triggered, for one event, nested, for what has moved to another number,
   and shared with a child that waits. */
#include "zoo.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/wait.h>

static void add(int poll, int fd, uint32_t events, uint64_t data) {
    struct epoll_event event = {events, {.u64 = data}};
    MUST(epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event) == 0);
}

/* What there is now: at most one event, by its data; 0 for none. */
static uint64_t next(int poll, int timeout) {
    struct epoll_event event;
    int count = epoll_wait(poll, &event, 1, timeout);
    MUST(count >= 0);
    return count ? event.data.u64 : 0;
}

int main(void) {
    uint64_t one = 1, count;
    int level = epoll_create1(0), edge = epoll_create1(EPOLL_CLOEXEC), once = epoll_create1(0);
    int outer = epoll_create1(0), moved = epoll_create1(0), shared = epoll_create1(0);
    int full = eventfd(1, EFD_NONBLOCK), empty = eventfd(0, EFD_NONBLOCK);
    int later = eventfd(0, EFD_NONBLOCK), pipes[2];
    MUST(pipe2(pipes, O_NONBLOCK) == 0);
    add(level, full, EPOLLIN, UINT64_MAX - 1);
    add(level, pipes[0], EPOLLIN | EPOLLRDHUP, 7);
    add(edge, later, EPOLLIN | EPOLLET, 8);
    add(edge, full, EPOLLIN | EPOLLET, 9);
    MUST(next(edge, 0) == 9 && next(edge, 0) == 0);
    add(outer, level, EPOLLIN, 10);
    /* Told already, one whose other end hangs up after the fork, and one not told yet. */
    int pair[2], talk[2], ready = eventfd(0, EFD_NONBLOCK);
    MUST(pipe(pair) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, talk) == 0);
    add(once, full, EPOLLIN | EPOLLONESHOT, 11);
    MUST(next(once, 0) == 11 && next(once, 0) == 0);
    add(once, pair[1], EPOLLOUT | EPOLLONESHOT, 12);
    MUST(next(once, 0) == 12 && next(once, 0) == 0);
    add(once, talk[0], EPOLLOUT | EPOLLONESHOT, 19);
    MUST(next(once, 0) == 19 && next(once, 0) == 0);
    add(once, ready, EPOLLIN | EPOLLONESHOT, 13);
    /* Two that were added by the same number, of which one has none of that number any more. */
    int first = dup2(eventfd(0, EFD_NONBLOCK), 300), kept = dup(first);
    add(moved, first, EPOLLIN, 14);
    int second = dup2(eventfd(0, EFD_NONBLOCK), 300);
    add(moved, second, EPOLLIN, 15);
    int nobody = dup(kept);
    add(moved, nobody, EPOLLIN, 16);
    close(nobody);
    /* One for each number that whoever makes them again may have for the epoll itself. */
    int crowd = epoll_create1(0), crowded[200];
    for (int n = 0; n < 200; n++) add(crowd, crowded[n] = eventfd(0, EFD_NONBLOCK), EPOLLIN, 100 + n);
    int waited = eventfd(0, 0);
    add(shared, waited, EPOLLIN, 17);
    pid_t child = fork();
    if (child == 0) _exit(next(shared, -1) == 17 ? 0 : 1);
    zoo_await_fork();
    struct epoll_event event = {EPOLLIN, {.u64 = 1}};
    MUST(next(level, 0) == UINT64_MAX - 1);
    MUST(epoll_ctl(level, EPOLL_CTL_ADD, full, &event) < 0 && errno == EEXIST);
    MUST(next(outer, 0) == 10 && read(full, &count, 8) == 8);
    MUST(next(level, 0) == 0 && next(outer, 0) == 0);
    MUST(write(pipes[1], "x", 1) == 1 && next(level, 0) == 7 && next(outer, 0) == 10);
    /* Where there is something to read, an edge may be told once more. */
    next(edge, 0);
    MUST(next(edge, 0) == 0 && write(later, &one, 8) == 8);
    MUST(next(edge, 0) == 8 && next(edge, 0) == 0);
    MUST(write(full, &one, 8) == 8 && next(edge, 0) == 9);
    close(pair[0]), close(talk[1]);
    MUST(next(once, 0) == 0);
    MUST(write(ready, &one, 8) == 8 && next(once, 0) == 13 && next(once, 0) == 0);
    event = (struct epoll_event){EPOLLIN | EPOLLONESHOT, {.u64 = 18}};
    MUST(epoll_ctl(once, EPOLL_CTL_MOD, full, &event) == 0 && next(once, 0) == 18);
    MUST(next(moved, 0) == 0 && write(second, &one, 8) == 8 && next(moved, 0) == 15);
    MUST(read(second, &count, 8) == 8 && write(kept, &one, 8) == 8);
    uint64_t some = next(moved, 0), other = next(moved, 0);
    MUST(some + other == 14 + 16 && some != other);
    MUST(epoll_ctl(moved, EPOLL_CTL_DEL, second, &event) == 0);
    for (int n = 0; n < 200; n++) {
        MUST(write(crowded[n], &one, 8) == 8 && next(crowd, 0) == (uint64_t)(100 + n));
        MUST(read(crowded[n], &count, 8) == 8);
    }
    MUST(write(waited, &one, 8) == 8);
    int status;
    MUST(waitpid(child, &status, 0) == child && status == 0);
    return zoo_ok();
}
