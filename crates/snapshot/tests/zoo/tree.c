/* A tree: children in groups and sessions of their own, a zombie, an orphan, one that is stopped. */
#include "zoo.h"
#include <signal.h>
#include <sys/wait.h>

static int report[2], release[2];

/* In a child: checks that it is who it was, says so, and ends when all have. */
static void stay(void) {
    char byte;
    close(release[1]);
    pid_t parent = getppid(), group = getpgrp(), session = getsid(0);
    while (!zoo_forked()) zoo_sleep_ms(2);
    MUST(getppid() == parent && getpgrp() == group && getsid(0) == session);
    MUST(write(report[1], "x", 1) == 1);
    MUST(read(release[0], &byte, 1) == 0);
    _exit(0);
}

int main(void) {
    MUST(pipe(report) == 0 && pipe2(release, O_CLOEXEC) == 0);
    pid_t zombie, killed, stopped, grouped, sessioned;
    if ((zombie = fork()) == 0) _exit(7);
    if ((killed = fork()) == 0) { close(release[1]); pause(); _exit(0); }
    if ((stopped = fork()) == 0) { close(release[1]); pause(); _exit(0); }
    if ((grouped = fork()) == 0) { setpgid(0, 0); if (fork() == 0) stay(); stay(); }
    if ((sessioned = fork()) == 0) {
        /* A child in the old session, then a session of its own with another child. */
        if (fork() == 0) stay();
        setsid();
        if (fork() == 0) stay();
        stay();
    }
    /* An orphan in this session, and one whose session's leader is gone. */
    pid_t between = fork();
    if (between == 0) { if (fork() == 0) { zoo_sleep_ms(100); stay(); } _exit(0); }
    MUST(waitpid(between, NULL, 0) == between);
    between = fork();
    if (between == 0) {
        setsid();
        if (fork() == 0) { zoo_sleep_ms(100); stay(); }
        _exit(0);
    }
    MUST(waitpid(between, NULL, 0) == between);
    kill(killed, SIGKILL);
    kill(stopped, SIGSTOP);
    int status;
    MUST(waitpid(stopped, &status, WUNTRACED) == stopped && WIFSTOPPED(status));
    zoo_sleep_ms(300);
    zoo_await_fork();
    for (int n = 0; n < 7; n++) {
        char byte;
        MUST(read(report[0], &byte, 1) == 1);
    }
    close(release[1]);
    MUST(waitpid(zombie, &status, 0) == zombie && WIFEXITED(status) && WEXITSTATUS(status) == 7);
    MUST(waitpid(killed, &status, 0) == killed && WIFSIGNALED(status) && WTERMSIG(status) == 9);
    /* That it is stopped was told before the fork. */
    MUST(waitpid(stopped, &status, WUNTRACED | WNOHANG) == 0);
    kill(stopped, SIGCONT);
    kill(stopped, SIGTERM);
    MUST(waitpid(stopped, &status, 0) == stopped && WTERMSIG(status) == SIGTERM);
    MUST(waitpid(grouped, &status, 0) == grouped && status == 0);
    MUST(waitpid(sessioned, &status, 0) == sessioned && status == 0);
    return zoo_ok();
}
