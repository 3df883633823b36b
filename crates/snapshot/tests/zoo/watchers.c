/* Programs that look out for a tracer, trace each other, and block all signals. A fork may be
   refused now and then; it does not hang, and nobody comes to harm. */
#include "zoo.h"
#include <pthread.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

static volatile int stop;

/* Its tracer has no number here. For a moment when one comes or goes, the kernel takes the parent
   for it. */
static void *looks(void *arg) {
    char text[4096], parent[32];
    snprintf(parent, sizeof parent, "TracerPid:\t%d\n", getppid());
    while (!stop) {
        int file = open("/proc/self/status", O_RDONLY);
        MUST(file >= 0);
        int length = (int)read(file, text, sizeof text - 1);
        close(file);
        MUST(length > 0);
        text[length] = 0;
        if (strstr(text, "TracerPid:\t0\n") == NULL && strstr(text, parent) == NULL)
            zoo_fail("%d bytes of status: %s", length, text);
    }
    return arg;
}

static void *blocks(void *arg) {
    sigset_t all;
    sigfillset(&all);
    sigdelset(&all, SIGCHLD);
    pthread_sigmask(SIG_SETMASK, &all, NULL);
    while (!stop) {
        struct timespec t = {0, 1000000};
        MUST(sigtimedwait(&all, NULL, &t) < 0 && errno == EAGAIN);
    }
    return arg;
}

int main(void) {
    pthread_t threads[2];
    pid_t victim = fork();
    if (victim == 0)
        while (!zoo_forked()) zoo_sleep_ms(1);
    if (victim == 0) _exit(0);
    /* It takes the victim whenever it can get it. */
    pid_t rival = fork();
    if (rival == 0) {
        while (!zoo_forked()) {
            if (ptrace(PTRACE_SEIZE, victim, 0, 0) == 0) {
                int status;
                ptrace(PTRACE_INTERRUPT, victim, 0, 0);
                if (waitpid(victim, &status, __WALL) == victim) ptrace(PTRACE_DETACH, victim, 0, 0);
            }
            zoo_sleep_ms(1);
        }
        _exit(0);
    }
    MUST(pthread_create(&threads[0], NULL, looks, NULL) == 0);
    MUST(pthread_create(&threads[1], NULL, blocks, NULL) == 0);
    zoo_await_fork();
    int status;
    MUST(waitpid(victim, &status, 0) == victim && status == 0);
    MUST(waitpid(rival, &status, 0) == rival && status == 0);
    stop = 1;
    for (int n = 0; n < 2; n++) MUST(pthread_join(threads[n], NULL) == 0);
    return zoo_ok();
}
