/* Descriptors that tell a process, a group or a thread by a signal when something happens. */
#include "zoo.h"
#include <signal.h>
#include <sys/syscall.h>

static volatile int io, queued, code;
static void on_io(int signal) { io++; }
static void on_queued(int signal, siginfo_t *info, void *context) { queued++, code = info->si_fd; }

int main(void) {
    struct sigaction action = {.sa_sigaction = on_queued, .sa_flags = SA_SIGINFO};
    signal(SIGIO, on_io);
    sigaction(SIGRTMIN + 3, &action, NULL);
    int one[2], two[2], silent[2];
    MUST(pipe(one) == 0 && pipe(two) == 0 && pipe(silent) == 0);
    MUST(fcntl(one[0], F_SETOWN, getpid()) == 0 && fcntl(one[0], F_SETFL, O_ASYNC) == 0);
    struct f_owner_ex thread = {F_OWNER_TID, syscall(SYS_gettid)}, owner = {0, 0};
    MUST(fcntl(two[0], F_SETOWN_EX, &thread) == 0 && fcntl(two[0], F_SETSIG, SIGRTMIN + 3) == 0);
    MUST(fcntl(two[0], F_SETFL, O_ASYNC | O_NONBLOCK) == 0);
    MUST(fcntl(silent[0], F_SETOWN, -getpgrp()) == 0);
    zoo_await_fork();
    MUST(io == 0 && queued == 0);
    MUST(write(one[1], "x", 1) == 1 && io == 1 && queued == 0);
    MUST(write(two[1], "x", 1) == 1 && io == 1 && queued == 1 && code == two[0]);
    MUST(fcntl(two[0], F_GETOWN_EX, &owner) == 0);
    MUST(owner.type == F_OWNER_TID && owner.pid == thread.pid);
    MUST((fcntl(two[0], F_GETFL) & (O_ASYNC | O_NONBLOCK)) == (O_ASYNC | O_NONBLOCK));
    MUST(fcntl(silent[0], F_GETOWN_EX, &owner) == 0 && owner.type == F_OWNER_PGRP);
    MUST(owner.pid == getpgrp() && write(silent[1], "x", 1) == 1 && io == 1);
    return zoo_ok();
}
