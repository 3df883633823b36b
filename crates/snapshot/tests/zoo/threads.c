/* Threads: many, each blocked in another call or at work, with what each has for itself. */
#include "zoo.h"
#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

enum { MOST = 64 };

static __thread int local = 1;
static int ids[MOST];
static int over;
static int begun;

static int tid(void) { return (int)syscall(SYS_gettid); }

/* A thread that has a name, a mask and local storage, and sleeps on a futex. */
static void *sleeper(void *arg) {
    long n = (long)arg;
    char name[16], now[16];
    sigset_t mask, seen;
    snprintf(name, sizeof name, "thread %ld", n);
    MUST(prctl(PR_SET_NAME, name) == 0);
    sigemptyset(&mask);
    sigaddset(&mask, SIGRTMIN + (int)(n % 20));
    MUST(pthread_sigmask(SIG_BLOCK, &mask, NULL) == 0);
    local = 100 + (int)n;
    ids[n] = tid();
    unsigned cpu;
    MUST(syscall(SYS_getcpu, &cpu, NULL, NULL) == 0);
    __atomic_add_fetch(&begun, 1, __ATOMIC_SEQ_CST);
    while (!__atomic_load_n(&over, __ATOMIC_SEQ_CST))
        MUST(syscall(SYS_futex, &over, 0, 0, NULL, NULL, 0) == 0 || errno == EAGAIN);
    MUST(ids[n] == tid() && local == 100 + (int)n);
    MUST(prctl(PR_GET_NAME, now) == 0 && strcmp(now, name) == 0);
    MUST(pthread_sigmask(SIG_BLOCK, NULL, &seen) == 0);
    for (int s = 1; s < SIGRTMAX; s++) MUST(sigismember(&seen, s) == sigismember(&mask, s));
    return (void *)(n + 1);
}

int main(void) {
    long count = atoi(getenv("THREADS"));
    pthread_t threads[MOST];
    for (long n = 0; n < count; n++) MUST(pthread_create(&threads[n], NULL, sleeper, (void *)n) == 0);
    while (__atomic_load_n(&begun, __ATOMIC_SEQ_CST) < count) zoo_sleep_ms(1);
    local = 7;
    zoo_await_fork();
    MUST(local == 7 && tid() == getpid());
    __atomic_store_n(&over, 1, __ATOMIC_SEQ_CST);
    syscall(SYS_futex, &over, 1, MOST, NULL, NULL, 0);
    for (long n = 0; n < count; n++) {
        void *result;
        MUST(pthread_join(threads[n], &result) == 0 && result == (void *)(n + 1));
    }
    return zoo_ok();
}
