/* A child that is stopped and set going again all the time; a fork comes at any moment of that. */
#include "zoo.h"
#include <signal.h>
#include <sys/wait.h>

int main(void) {
    pid_t child = fork();
    if (child == 0) {
        volatile uint64_t count = 0;
        for (;;) count++;
    }
    MUST(child > 0 && write(1, "ready\n", 6) == 6);
    int status;
    for (unsigned n = 0; !zoo_forked(); n++) {
        MUST(kill(child, SIGSTOP) == 0);
        usleep(n * 37 % 300);
        MUST(kill(child, SIGCONT) == 0);
        usleep(n * 53 % 300);
        MUST(waitpid(child, &status, WNOHANG) == 0);
    }
    MUST(kill(child, SIGKILL) == 0 && waitpid(child, &status, 0) == child);
    MUST(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    return zoo_ok();
}
