/* signalfd: with a signal that waits, and as what epoll waits for, in a parent and its child. */
#include "zoo.h"
#include <signal.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/wait.h>

int main(void) {
    sigset_t both, second;
    sigemptyset(&both);
    sigaddset(&both, SIGUSR1);
    sigaddset(&both, SIGRTMIN + 3);
    MUST(sigprocmask(SIG_BLOCK, &both, NULL) == 0);
    sigemptyset(&second);
    sigaddset(&second, SIGRTMIN + 3);
    int forked[2];
    MUST(pipe(forked) == 0);
    pid_t child = fork();
    int fd = signalfd(-1, &both, SFD_NONBLOCK), other = signalfd(-1, &second, SFD_NONBLOCK);
    int poll = epoll_create1(0);
    struct epoll_event event = {EPOLLIN, {.u64 = 5}};
    MUST(fd >= 0 && other >= 0 && epoll_ctl(poll, EPOLL_CTL_ADD, other, &event) == 0);
    struct signalfd_siginfo info;
    if (child == 0) {
        /* Waits in the middle of the fork for a signal that the parent sends after it. */
        MUST(write(forked[1], "x", 1) == 1);
        MUST(epoll_wait(poll, &event, 1, 30000) == 1 && event.data.u64 == 5);
        MUST(read(other, &info, sizeof info) == sizeof info && info.ssi_int == 78);
        _exit(0);
    }
    MUST(read(forked[0], &info, 1) == 1);
    MUST(kill(getpid(), SIGUSR1) == 0);
    zoo_await_fork();
    MUST(epoll_wait(poll, &event, 1, 0) == 0);
    MUST(read(fd, &info, sizeof info) == sizeof info && info.ssi_signo == SIGUSR1);
    MUST(info.ssi_pid == (uint32_t)getpid() && read(fd, &info, sizeof info) < 0);
    MUST(sigqueue(getpid(), SIGRTMIN + 3, (union sigval){.sival_int = 77}) == 0);
    MUST(epoll_wait(poll, &event, 1, 0) == 1);
    MUST(read(other, &info, sizeof info) == sizeof info && info.ssi_int == 77);
    MUST(sigqueue(child, SIGRTMIN + 3, (union sigval){.sival_int = 78}) == 0);
    int status;
    MUST(waitpid(child, &status, 0) == child && status == 0);
    return zoo_ok();
}
