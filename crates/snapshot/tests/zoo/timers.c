/* Timers: alarm and the three interval timers, POSIX timers of all clocks and kinds. */
#include "zoo.h"
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/time.h>

#define LONG 1000

static timer_t threaded;
static volatile int rang, calls, value_seen, tid_rang;

static void on_signal(int signal, siginfo_t *info, void *context) {
    (void)context, (void)signal;
    MUST(info->si_code == SI_TIMER);
    value_seen = info->si_value.sival_int;
    tid_rang = (int)syscall(SYS_gettid);
    rang++;
}

static void on_call(union sigval value) {
    MUST(value.sival_int == 88);
    __atomic_add_fetch(&calls, 1, __ATOMIC_SEQ_CST);
}

static int wanted_tid;
static void *thread(void *arg) {
    wanted_tid = (int)syscall(SYS_gettid);
    while (!zoo_forked() || !rang) zoo_sleep_ms(1);
    return arg;
}

static void *brief(void *arg) {
    __atomic_store_n((int *)arg, (int)syscall(SYS_gettid), __ATOMIC_SEQ_CST);
    zoo_sleep_ms(100);
    return NULL;
}

/* By the kernel's own number. */
static int make(int clock, int notify, int signal, int tid, long value) {
    struct sigevent event = {0};
    int id = -1;
    event.sigev_notify = notify;
    event.sigev_signo = signal;
    event.sigev_value.sival_ptr = (void *)value;
    event._sigev_un._tid = tid;
    MUST(syscall(SYS_timer_create, clock, &event, &id) == 0);
    return id;
}

static void set(int id, long seconds, long interval_ms) {
    struct itimerspec time = {{interval_ms / 1000, interval_ms % 1000 * 1000000}, {seconds, 0}};
    MUST(syscall(SYS_timer_settime, id, 0, &time, NULL) == 0);
}

static double rest(int id, double *interval) {
    struct itimerspec time;
    MUST(syscall(SYS_timer_gettime, id, &time) == 0);
    *interval = (double)time.it_interval.tv_sec + (double)time.it_interval.tv_nsec / 1e9;
    return (double)time.it_value.tv_sec + (double)time.it_value.tv_nsec / 1e9;
}

static double rest_of(int which) {
    struct itimerval time;
    MUST(getitimer(which, &time) == 0 && time.it_interval.tv_sec == 5);
    return (double)time.it_value.tv_sec + (double)time.it_value.tv_usec / 1e6;
}

static int between(double low, double value, double high) {
    return low <= value && value <= high;
}

int main(void) {
    static const int clocks[] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_TAI};
    int ids[4], none, idle, fired, gone, blocked;
    double interval;
    pthread_t other, dead;
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_RESTART};
    struct itimerval times = {{5, 0}, {LONG, 0}};
    sigset_t set_of_two;
    int processor = 0;
    /* With one thread, the clock of the calling thread is known. */
    if (getenv("THREAD_CLOCK")) {
        processor = make(CLOCK_THREAD_CPUTIME_ID, SIGEV_NONE, 0, 0, 0);
        set(processor, LONG, 0);
        zoo_await_fork();
        MUST(between(LONG - 50, rest(processor, &interval), LONG));
        return zoo_ok();
    }
    MUST(sigaction(SIGRTMIN, &action, NULL) == 0);
    sigemptyset(&set_of_two);
    sigaddset(&set_of_two, SIGRTMIN + 1);
    MUST(pthread_sigmask(SIG_BLOCK, &set_of_two, NULL) == 0);
    MUST(setitimer(ITIMER_REAL, &times, NULL) == 0 && setitimer(ITIMER_VIRTUAL, &times, NULL) == 0);
    MUST(setitimer(ITIMER_PROF, &times, NULL) == 0);
    MUST(pthread_create(&other, NULL, thread, NULL) == 0);
    while (!wanted_tid) zoo_sleep_ms(1);
    /* Ids with holes between them. */
    for (int n = 0; n < 4; n++) {
        ids[n] = make(clocks[n], SIGEV_SIGNAL, SIGUSR1, 0, 0x1234567890 + n);
        set(ids[n], LONG + n, 250);
        MUST(syscall(SYS_timer_delete, make(clocks[n], SIGEV_NONE, 0, 0, 0)) == 0);
    }
    processor = make(CLOCK_PROCESS_CPUTIME_ID, SIGEV_SIGNAL, SIGUSR1, 0, 0);
    set(processor, LONG, 0);
    none = make(CLOCK_MONOTONIC, SIGEV_NONE, 0, 0, 0);
    set(none, LONG, 0);
    idle = make(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGUSR1, 0, 0);
    fired = make(CLOCK_MONOTONIC, SIGEV_THREAD_ID, SIGRTMIN, wanted_tid, 99);
    /* Of a thread that is gone: nobody is told. */
    int dead_tid = 0;
    MUST(pthread_create(&dead, NULL, brief, &dead_tid) == 0);
    while (!__atomic_load_n(&dead_tid, __ATOMIC_SEQ_CST)) zoo_sleep_ms(1);
    gone = make(CLOCK_MONOTONIC, SIGEV_THREAD_ID, SIGUSR1, dead_tid, 0);
    MUST(pthread_join(dead, NULL) == 0);
    set(gone, 0, 0);
    /* Has rung before the fork, with its signal blocked and its interval going on. */
    blocked = make(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN + 1, 0, 4242);
    struct itimerspec soon = {{0, 5000000}, {0, 1000000}};
    MUST(syscall(SYS_timer_settime, blocked, 0, &soon, NULL) == 0);
    struct sigevent event = {.sigev_notify = SIGEV_THREAD, .sigev_value.sival_int = 88};
    event.sigev_notify_function = on_call;
    MUST(timer_create(CLOCK_MONOTONIC, &event, &threaded) == 0);
    zoo_sleep_ms(50);
    zoo_await_fork();
    MUST(between(LONG - 50, rest_of(ITIMER_REAL), LONG));
    MUST(between(LONG - 50, rest_of(ITIMER_VIRTUAL), LONG + 1));
    MUST(between(LONG - 50, rest_of(ITIMER_PROF), LONG + 1));
    for (int n = 0; n < 4; n++) {
        MUST(between(LONG - 50 + n, rest(ids[n], &interval), LONG + n) && interval == 0.25);
    }
    MUST(between(LONG - 50, rest(processor, &interval), LONG) && interval == 0);
    MUST(between(LONG - 50, rest(none, &interval), LONG));
    MUST(rest(idle, &interval) == 0);
    MUST(syscall(SYS_timer_getoverrun, ids[3] + 1) < 0 && errno == EINVAL);
    /* The signal that waited, and then those that come every 5 ms. */
    for (int n = 0; n < 5; n++) {
        siginfo_t info;
        MUST(sigwaitinfo(&set_of_two, &info) == SIGRTMIN + 1 && info.si_code == SI_TIMER);
        MUST(info.si_value.sival_int == 4242 && info.si_timerid == blocked);
    }
    /* To the one thread. */
    MUST(rang == 0);
    struct itimerspec now = {{0, 0}, {0, 1000000}};
    MUST(syscall(SYS_timer_settime, fired, 0, &now, NULL) == 0);
    MUST(pthread_join(other, NULL) == 0);
    MUST(rang == 1 && value_seen == 99 && tid_rang == wanted_tid);
    /* By libc's own thread. */
    MUST(calls == 0 && timer_settime(threaded, 0, &now, NULL) == 0);
    while (!__atomic_load_n(&calls, __ATOMIC_SEQ_CST)) zoo_sleep_ms(1);
    MUST(timer_delete(threaded) == 0);
    for (int n = 0; n < 4; n++) MUST(syscall(SYS_timer_delete, ids[n]) == 0);
    MUST(syscall(SYS_timer_delete, gone) == 0);
    MUST(alarm(0) > LONG - 60);
    return zoo_ok();
}
