/* A command on a terminal that reads line by line, and tells when its window changes. */
#include "zoo.h"
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>

static volatile sig_atomic_t changed;

static void note(int signal) { changed += signal == SIGWINCH; }

int main(void) {
    struct sigaction action = {.sa_handler = note};
    sigset_t window, all;
    sigaction(SIGWINCH, &action, NULL);
    sigemptyset(&window);
    sigaddset(&window, SIGWINCH);
    sigprocmask(SIG_BLOCK, &window, &all);
    zoo_await_fork();
    for (int told = 0;;) {
        struct pollfd input = {0, POLLIN, 0};
        char line[256];
        int ready = ppoll(&input, 1, NULL, &all);
        if (changed > told) {
            struct winsize size;
            MUST(ioctl(0, TIOCGWINSZ, &size) == 0);
            told = changed;
            printf("size %d %d after %d\n", size.ws_row, size.ws_col, told);
        } else if (ready == 1) {
            int length = read(0, line, sizeof line - 1);
            if (length == 0) return zoo_ok();
            MUST(length > 0 && line[length - 1] == '\n');
            printf("read %.*s.\n", length - 1, line);
        }
        fflush(stdout);
    }
}
