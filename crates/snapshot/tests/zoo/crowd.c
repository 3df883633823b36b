/* A crowd: many children, many of them zombies, and a long chain, each of which leads a session.
   Whatever takes each of them as long as there are others is not done in time. */
#include "zoo.h"
#include <signal.h>
#include <sys/wait.h>

#define CHILDREN 150
#define ZOMBIES 150
#define CHAIN 250

static int here[2], release[2];

/* Says that it is there, checks at the end that it is who it was, and the next one too. */
static void stay(pid_t next) {
    char byte;
    int status;
    pid_t parent = getppid(), group = getpgrp(), session = getsid(0);
    MUST(write(here[1], "x", 1) == 1);
    MUST(read(release[0], &byte, 1) == 0);
    MUST(getppid() == parent && getpgrp() == group && getsid(0) == session);
    if (next != 0) MUST(waitpid(next, &status, 0) == next && status == 0);
    _exit(0);
}

static void chain(int length) {
    MUST(setsid() == getpid());
    pid_t next = length > 1 ? fork() : 0;
    MUST(next >= 0);
    if (next == 0 && length > 1) chain(length - 1);
    stay(next);
}

int main(void) {
    static pid_t children[CHILDREN], zombies[ZOMBIES];
    char byte;
    int status;
    MUST(pipe(here) == 0 && pipe(release) == 0);
    pid_t first = fork();
    MUST(first >= 0);
    if (first == 0) { close(release[1]); chain(CHAIN); }
    for (int n = 0; n < CHILDREN; n++) {
        MUST((children[n] = fork()) >= 0);
        if (children[n] == 0) { close(release[1]); stay(0); }
    }
    for (int n = 0; n < ZOMBIES; n++) {
        MUST((zombies[n] = fork()) >= 0);
        if (zombies[n] == 0) _exit(n);
    }
    for (int n = 0; n < CHAIN + CHILDREN; n++) MUST(read(here[0], &byte, 1) == 1);
    siginfo_t info;
    for (int n = 0; n < ZOMBIES; n++) {
        MUST(waitid(P_PID, zombies[n], &info, WEXITED | WNOWAIT) == 0);
    }
    zoo_await_fork();
    close(release[1]);
    MUST(waitpid(first, &status, 0) == first && status == 0);
    for (int n = 0; n < CHILDREN; n++) {
        MUST(waitpid(children[n], &status, 0) == children[n] && status == 0);
    }
    for (int n = 0; n < ZOMBIES; n++) {
        MUST(waitpid(zombies[n], &status, 0) == zombies[n] && WEXITSTATUS(status) == n);
    }
    return zoo_ok();
}
