/* Signals that come all the time, to threads that count on being told of each by EINTR or not at
   all; and threads at work in user space, in string moves and in the kernel's own pages. */
#include "zoo.h"
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/time.h>

static volatile int alarms, told, stop;
static volatile uint64_t turns[3];

static void on_alarm(int signal) {
    (void)signal;
    alarms++;
}

/* Never sleeps on without having been told: an alarm comes every 2 ms. */
static void *pauses(void *arg) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGALRM);
    MUST(pthread_sigmask(SIG_UNBLOCK, &set, NULL) == 0);
    while (!stop) {
        int before = alarms;
        MUST(pause() < 0 && errno == EINTR);
        MUST(alarms > before || stop);
        told++;
    }
    return arg;
}

static void *reads_clock(void *arg) {
    struct timespec last = {0, 0}, now;
    while (!stop) {
        MUST(clock_gettime(CLOCK_MONOTONIC, &now) == 0);
        MUST(now.tv_sec > last.tv_sec || (now.tv_sec == last.tv_sec && now.tv_nsec >= last.tv_nsec));
        last = now;
        turns[0]++;
    }
    return arg;
}

static void *moves(void *arg) {
    enum { SIZE = 1 << 20 };
    char *from = malloc(SIZE), *to = malloc(SIZE);
    for (int n = 0; n < SIZE; n++) from[n] = (char)(n * 7);
    while (!stop) {
        char *source = from, *target = to;
        size_t length = SIZE;
        memset(to, 0, SIZE);
        __asm__ volatile("rep movsb" : "+S"(source), "+D"(target), "+c"(length) : : "memory");
        MUST(length == 0 && source == from + SIZE && target == to + SIZE);
        MUST(memcmp(from, to, SIZE) == 0);
        turns[1]++;
    }
    return arg;
}

static void *spins(void *arg) {
    while (!stop) {
        uint64_t last = 0;
        for (int n = 0; n < 1000; n++) {
            uint64_t now = __builtin_ia32_rdtsc();
            MUST(now >= last);
            last = now;
        }
        turns[2]++;
    }
    return arg;
}

int main(void) {
    pthread_t threads[4];
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGALRM);
    MUST(pthread_sigmask(SIG_BLOCK, &set, NULL) == 0);
    struct sigaction action = {.sa_handler = on_alarm};
    MUST(sigaction(SIGALRM, &action, NULL) == 0);
    void *(*const all[])(void *) = {pauses, reads_clock, moves, spins};
    for (int n = 0; n < 4; n++) MUST(pthread_create(&threads[n], NULL, all[n], NULL) == 0);
    struct itimerval timer = {{0, 2000}, {0, 2000}};
    MUST(setitimer(ITIMER_REAL, &timer, NULL) == 0);
    while (told < 3) zoo_sleep_ms(1);
    zoo_await_fork();
    /* All go on. */
    int before = told;
    uint64_t turned[3] = {turns[0], turns[1], turns[2]};
    while (told < before + 5) zoo_sleep_ms(1);
    for (int n = 0; n < 3; n++)
        while (turns[n] == turned[n]) zoo_sleep_ms(1);
    stop = 1;
    for (int n = 0; n < 4; n++) MUST(pthread_join(threads[n], NULL) == 0);
    return zoo_ok();
}
