/* A pidfd of a thread, which is not copied. */
#include "zoo.h"
#include <pthread.h>
#include <sys/syscall.h>

static int pipes[2];
static pid_t tid;

static void *run(void *unused) {
    char byte;
    tid = gettid();
    MUST(write(pipes[1], "x", 1) == 1);
    while (!zoo_forked()) zoo_sleep_ms(2);
    MUST(read(pipes[0], &byte, 1) == 1);
    return unused;
}

int main(void) {
    pthread_t thread;
    char byte;
    MUST(pipe(pipes) == 0 && pthread_create(&thread, NULL, run, NULL) == 0);
    MUST(read(pipes[0], &byte, 1) == 1);
    int fd = syscall(SYS_pidfd_open, tid, O_EXCL);
    MUST(fd >= 0);
    zoo_await_fork();
    MUST(write(pipes[1], "x", 1) == 1 && pthread_join(thread, NULL) == 0);
    return zoo_ok();
}
