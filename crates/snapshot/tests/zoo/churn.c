/* Processes and threads that come and go all the time, in every way: while it is forked there is
   always something in the middle of being born, becoming another program, or dying. */
#include "zoo.h"
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>

enum { WORKERS = 4 };
static volatile long *turns;
extern char **environ;

static void gone(pid_t pid) {
    int status;
    MUST(waitpid(pid, &status, 0) == pid && status == 0);
}

static void forks(void) {
    pid_t pid = fork();
    if (pid == 0) _exit(0);
    gone(pid);
}

/* By vfork: the parent cannot be stopped before the child runs its program. */
static void spawns(void) {
    pid_t pid;
    char *argv[] = {"true", NULL};
    MUST(posix_spawn(&pid, "/bin/true", NULL, NULL, argv, environ) == 0);
    gone(pid);
}

static void *nothing(void *arg) { return arg; }

static void starts_threads(void) {
    pthread_t threads[4];
    for (int n = 0; n < 4; n++) MUST(pthread_create(&threads[n], NULL, nothing, NULL) == 0);
    for (int n = 0; n < 4; n++) MUST(pthread_join(threads[n], NULL) == 0);
}

static void *execute(void *arg) {
    char *argv[] = {"true", NULL};
    execv("/bin/true", argv);
    return arg;
}

static void *wait_for_death(void *arg) {
    for (;;) pause();
    return arg;
}

/* A thread that is not the first takes over its process, and all others die for it. */
static void executes_in_a_thread(void) {
    pid_t pid = fork();
    if (pid == 0) {
        pthread_t thread;
        for (int n = 0; n < 4; n++) MUST(pthread_create(&thread, NULL, wait_for_death, NULL) == 0);
        MUST(pthread_create(&thread, NULL, execute, NULL) == 0);
        for (;;) pause();
    }
    gone(pid);
}

int main(void) {
    static void (*const all[WORKERS])(void) = {forks, spawns, starts_threads, executes_in_a_thread};
    pid_t workers[WORKERS + 1];
    turns = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    MUST(turns != MAP_FAILED);
    for (int n = 0; n < WORKERS; n++)
        if ((workers[n] = fork()) == 0)
            for (;; turns[n]++) all[n]();
    if ((workers[WORKERS] = fork()) == 0) {
        execl("/bin/sh", "sh", "-c", "while :; do /bin/true; (true) | cat; done", NULL);
        _exit(1);
    }
    for (int n = 0; n < WORKERS; n++)
        while (turns[n] < 3) zoo_sleep_ms(1);
    zoo_await_fork();
    long before[WORKERS];
    for (int n = 0; n < WORKERS; n++) before[n] = turns[n];
    for (int n = 0; n < WORKERS; n++)
        while (turns[n] < before[n] + 5) {
            MUST(waitpid(workers[n], NULL, WNOHANG) == 0);
            zoo_sleep_ms(1);
        }
    for (int n = 0; n <= WORKERS; n++) {
        int status;
        MUST(kill(workers[n], SIGKILL) == 0);
        MUST(waitpid(workers[n], &status, 0) == workers[n] && WIFSIGNALED(status));
    }
    return zoo_ok();
}
