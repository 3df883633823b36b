/* Children that are stopped: of one the parent was told, of the others not yet. */
#include "zoo.h"
#include <signal.h>
#include <sys/wait.h>

enum { COUNT = 40 };

static void await_stop(pid_t pid) {
    char path[64], text[512], state = 0;
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    while (state != 'T') {
        int fd = open(path, O_RDONLY);
        int length = read(fd, text, sizeof text - 1);
        MUST(fd >= 0 && length > 0 && close(fd) == 0);
        text[length] = 0;
        MUST(sscanf(strrchr(text, ')') + 2, "%c", &state) == 1);
    }
}

int main(void) {
    pid_t children[COUNT];
    int status;
    for (int n = 0; n < COUNT; n++) {
        children[n] = fork();
        if (children[n] == 0) {
            raise(SIGSTOP);
            _exit(n);
        }
        await_stop(children[n]);
    }
    MUST(waitpid(children[0], &status, WUNTRACED) == children[0] && WIFSTOPPED(status));

    zoo_await_fork();

    MUST(waitpid(children[0], &status, WUNTRACED | WNOHANG) == 0);
    for (int n = 1; n < COUNT; n++) {
        MUST(waitpid(children[n], &status, WUNTRACED | WNOHANG) == children[n]);
        MUST(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
        MUST(waitpid(children[n], &status, WUNTRACED | WNOHANG) == 0);
    }
    for (int n = 0; n < COUNT; n++) {
        MUST(kill(children[n], SIGCONT) == 0);
        MUST(waitpid(children[n], &status, 0) == children[n] && WEXITSTATUS(status) == n);
    }
    return zoo_ok();
}
