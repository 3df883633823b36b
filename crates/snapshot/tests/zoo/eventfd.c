/* eventfd counters: as a semaphore and not, full, and one that a child waits for. */
#include "zoo.h"
#include <sys/eventfd.h>
#include <sys/wait.h>

int main(void) {
    int plain = eventfd(0, 0), many = eventfd(0, EFD_SEMAPHORE | EFD_NONBLOCK | EFD_CLOEXEC);
    int full = eventfd(0, EFD_NONBLOCK), waited = eventfd(0, 0), back = eventfd(0, EFD_NONBLOCK);
    uint64_t count = 5000000000, most = UINT64_MAX - 1;
    MUST(write(plain, &count, 8) == 8 && write(full, &most, 8) == 8);
    count = 3;
    MUST(write(many, &count, 8) == 8);
    int same = dup(many);
    pid_t child = fork();
    if (child == 0) {
        MUST(read(waited, &count, 8) == 8 && count == 42);
        MUST(write(back, &count, 8) == 8);
        _exit(0);
    }
    zoo_await_fork();
    MUST(read(plain, &count, 8) == 8 && count == 5000000000);
    MUST(read(many, &count, 8) == 8 && count == 1 && read(same, &count, 8) == 8 && count == 1);
    MUST(read(many, &count, 8) == 8 && count == 1 && read(many, &count, 8) < 0 && errno == EAGAIN);
    MUST(fcntl(many, F_GETFD) == FD_CLOEXEC && fcntl(same, F_GETFD) == 0);
    count = 1;
    MUST(write(full, &count, 8) < 0 && errno == EAGAIN);
    MUST(read(full, &count, 8) == 8 && count == most && read(full, &count, 8) < 0);
    MUST(read(back, &count, 8) < 0 && errno == EAGAIN);
    count = 42;
    MUST(write(waited, &count, 8) == 8);
    int status;
    MUST(waitpid(child, &status, 0) == child && status == 0);
    MUST(read(back, &count, 8) == 8 && count == 42);
    return zoo_ok();
}
