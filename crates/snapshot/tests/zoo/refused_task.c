/* Processes and threads that cannot be forked, one kind at a time; the fork does them no harm. */
#include "zoo.h"
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static int wait_here(void *arg) {
    (void)arg;
    while (!zoo_forked()) zoo_sleep_ms(2);
    return 0;
}

static void *goes_on(void *arg) {
    zoo_await_fork();
    exit(zoo_ok());
    return arg;
}

static volatile uint64_t selector_page[512] __attribute__((aligned(4096)));

int main(void) {
    const char *kind = getenv("KIND");
    int status;
    if (strcmp(kind, "leader") == 0) {
        pthread_t thread;
        MUST(pthread_create(&thread, NULL, goes_on, NULL) == 0);
        pthread_exit(NULL);
    }
    if (strcmp(kind, "traced") == 0) {
        pid_t child = fork();
        if (child == 0) {
            MUST(ptrace(PTRACE_TRACEME, 0, 0, 0) == 0);
            raise(SIGSTOP);
            wait_here(NULL);
            _exit(3);
        }
        MUST(waitpid(child, &status, 0) == child && WIFSTOPPED(status));
        zoo_await_fork();
        MUST(ptrace(PTRACE_CONT, child, 0, 0) == 0);
        MUST(waitpid(child, &status, 0) == child && WEXITSTATUS(status) == 3);
        return zoo_ok();
    }
    if (strcmp(kind, "memory") == 0) {
        char *stack = malloc(65536);
        pid_t child = clone(wait_here, stack + 65536, CLONE_VM | SIGCHLD, NULL);
        MUST(child > 0);
        zoo_await_fork();
        MUST(waitpid(child, &status, 0) == child && status == 0);
        return zoo_ok();
    }
    if (strcmp(kind, "descriptors") == 0) {
        char *stack = malloc(65536);
        pid_t child = clone(wait_here, stack + 65536, CLONE_FILES | SIGCHLD, NULL);
        MUST(child > 0);
        zoo_await_fork();
        MUST(waitpid(child, &status, 0) == child && status == 0);
        return zoo_ok();
    }
    if (strcmp(kind, "dispatch") == 0) {
        /* A selector that lets all calls through. */
        MUST(syscall(SYS_prctl, 59, 1, 0, 0, selector_page) == 0);
        zoo_await_fork();
        MUST(syscall(SYS_prctl, 59, 0, 0, 0, 0) == 0);
        return zoo_ok();
    }
    if (strcmp(kind, "vdso") == 0) {
        /* Nothing looks for the time meanwhile. It cannot be changed in part. */
        char line[256];
        unsigned long start = 0, end = 0;
        FILE *maps = fopen("/proc/self/maps", "r");
        MUST(maps != NULL);
        while (fgets(line, sizeof line, maps) && strstr(line, "[vdso]") == NULL) {}
        MUST(fclose(maps) == 0 && sscanf(line, "%lx-%lx", &start, &end) == 2);
        MUST(mprotect((void *)start, end - start, PROT_READ) == 0);
        zoo_await_fork();
        MUST(mprotect((void *)start, end - start, PROT_READ | PROT_EXEC) == 0);
        return zoo_ok();
    }
    if (strcmp(kind, "signals") == 0) {
        sigset_t set;
        sigemptyset(&set);
        sigaddset(&set, SIGRTMIN);
        MUST(sigprocmask(SIG_BLOCK, &set, NULL) == 0);
        for (int n = 0; n < 1100; n++) MUST(sigqueue(getpid(), SIGRTMIN, (union sigval){n}) == 0);
        zoo_await_fork();
        for (int n = 0; n < 1100; n++) {
            siginfo_t info;
            MUST(sigwaitinfo(&set, &info) == SIGRTMIN && info.si_value.sival_int == n);
        }
        return zoo_ok();
    }
    if (strcmp(kind, "vfork") == 0) {
        pid_t child = vfork();
        if (child == 0) {
            zoo_await_fork();
            _exit(4);
        }
        MUST(waitpid(child, &status, 0) == child && WEXITSTATUS(status) == 4);
        return zoo_ok();
    }
    return 1;
}
