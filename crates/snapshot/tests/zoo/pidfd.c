/* pidfds: of a process that lives, of a zombie, of one that is gone, of itself; polled too. */
#include "zoo.h"
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static int open_pid(pid_t pid) {
    int fd = syscall(SYS_pidfd_open, pid, 0);
    MUST(fd >= 0);
    return fd;
}

static int tell(int fd, int signal) { return syscall(SYS_pidfd_send_signal, fd, signal, NULL, 0); }

static int readable(int fd) {
    struct pollfd polled = {fd, POLLIN, 0};
    return poll(&polled, 1, 0) == 1 && polled.revents & POLLIN;
}

int main(void) {
    pid_t alive = fork(), zombie, gone;
    if (alive == 0) { pause(); _exit(1); }
    if ((zombie = fork()) == 0) _exit(3);
    if ((gone = fork()) == 0) _exit(4);
    int fds[3] = {open_pid(alive), open_pid(zombie), open_pid(gone)}, own = open_pid(getpid());
    int polls[3];
    for (int n = 0; n < 3; n++) {
        struct epoll_event event = {EPOLLIN, {.u64 = n}};
        polls[n] = epoll_create1(0);
        MUST(polls[n] >= 0 && epoll_ctl(polls[n], EPOLL_CTL_ADD, fds[n], &event) == 0);
    }
    siginfo_t info;
    MUST(waitpid(gone, NULL, 0) == gone);
    MUST(waitid(P_PIDFD, fds[1], &info, WEXITED | WNOWAIT) == 0);
    zoo_await_fork();
    struct epoll_event event;
    MUST(!readable(fds[0]) && readable(fds[1]) && readable(fds[2]) && !readable(own));
    MUST(epoll_wait(polls[0], &event, 1, 0) == 0);
    MUST(epoll_wait(polls[1], &event, 1, 0) == 1 && event.data.u64 == 1);
    MUST(epoll_wait(polls[2], &event, 1, 0) == 1 && event.data.u64 == 2);
    MUST(tell(own, 0) == 0 && tell(fds[2], 0) < 0 && errno == ESRCH);
    MUST(waitid(P_PIDFD, fds[1], &info, WEXITED) == 0 && info.si_pid == zombie);
    MUST(info.si_status == 3);
    MUST(waitid(P_PIDFD, fds[2], &info, WEXITED) < 0 && errno == ECHILD);
    MUST(tell(fds[0], SIGTERM) == 0);
    MUST(epoll_wait(polls[0], &event, 1, 10000) == 1 && event.data.u64 == 0);
    MUST(waitid(P_PIDFD, fds[0], &info, WEXITED) == 0 && info.si_pid == alive);
    MUST(info.si_code == CLD_KILLED && info.si_status == SIGTERM);
    return zoo_ok();
}
