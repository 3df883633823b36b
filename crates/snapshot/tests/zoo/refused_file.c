/* Something that cannot be copied, by its name; it is whole after the fork was refused. */
#include "zoo.h"
#include <mqueue.h>
#include <signal.h>

int main(void) {
    const char *kind = getenv("ZOO");
    MUST(kind);
    if (strcmp(kind, "lease") == 0) {
        int fd = open("/tmp/leased", O_RDWR | O_CREAT, 0600);
        MUST(fd >= 0 && fcntl(fd, F_SETLEASE, F_WRLCK) == 0);
        zoo_await_fork();
        MUST(fcntl(fd, F_GETLEASE) == F_WRLCK);
    } else if (strcmp(kind, "proc") == 0) {
        int fd = open("/proc/self/comm", O_WRONLY);
        MUST(fd >= 0);
        zoo_await_fork();
        MUST(write(fd, "renamed", 7) == 7);
    } else if (strcmp(kind, "queue") == 0) {
        mqd_t queue = mq_open("/queue", O_RDWR | O_CREAT, 0600, NULL);
        MUST(mq_send(queue, "message", 7, 1) == 0 && mq_unlink("/queue") == 0);
        zoo_await_fork();
        char text[8192];
        MUST(mq_receive(queue, text, sizeof text, NULL) == 7);
    } else if (strcmp(kind, "awaited queue") == 0) {
        mqd_t queue = mq_open("/queue", O_RDWR | O_CREAT, 0600, NULL);
        struct sigevent told = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
        struct timespec most = {20, 0};
        sigset_t signals;
        sigemptyset(&signals);
        sigaddset(&signals, SIGUSR1);
        MUST(sigprocmask(SIG_BLOCK, &signals, NULL) == 0 && mq_notify(queue, &told) == 0);
        zoo_await_fork();
        MUST(mq_send(queue, "message", 7, 1) == 0);
        MUST(sigtimedwait(&signals, NULL, &most) == SIGUSR1);
    } else if (strcmp(kind, "volume") == 0) {
        int fd = open("/volume/file", O_RDWR | O_CREAT, 0600);
        struct flock lock = {.l_type = F_WRLCK};
        MUST(fd >= 0 && fcntl(fd, F_OFD_SETLK, &lock) == 0);
        zoo_await_fork();
    } else if (strcmp(kind, "directory") == 0) {
        MUST(chdir("/proc/self/fd") == 0);
        zoo_await_fork();
    } else {
        zoo_fail("%s?", kind);
    }
    return zoo_ok();
}
