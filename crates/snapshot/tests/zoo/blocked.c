/* A thread blocked in each of many calls: none of them tells of the fork, all of them end as they
   should afterwards. */
#include "zoo.h"
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/syscall.h>
#include <sys/stat.h>
#include <sys/wait.h>

static int begun, word, timed_word;
static int read_pipe[2], epoll_pipe[2], poll_pipe[2], select_pipe[2], pwait_pipe[2], fifo_fd;
static pid_t waited;
static sem_t semaphore, timed_semaphore;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER, held = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
static int happened;
static pthread_t joined;
static struct timespec end;

static void begin(void) { __atomic_add_fetch(&begun, 1, __ATOMIC_SEQ_CST); }

static double now(int clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void *in_futex(void *arg) {
    begin();
    MUST(syscall(SYS_futex, &word, 0, 0, NULL, NULL, 0) == 0);
    return arg;
}

static void *in_futex_timed(void *arg) {
    struct timespec long_time = {1000, 0};
    begin();
    MUST(syscall(SYS_futex, &timed_word, 0, 0, &long_time, NULL, 0) == 0);
    return arg;
}

static void *in_futex_until(void *arg) {
    static int never;
    begin();
    MUST(syscall(SYS_futex, &never, 9, 0, &end, NULL, -1) < 0 && errno == ETIMEDOUT);
    MUST(now(CLOCK_MONOTONIC) >= (double)end.tv_sec);
    return arg;
}

static void *in_read(void *arg) {
    char byte;
    begin();
    MUST(read(read_pipe[0], &byte, 1) == 1 && byte == 'r');
    return arg;
}

static void *in_epoll(void *arg) {
    int epoll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN};
    MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, epoll_pipe[0], &event) == 0);
    begin();
    MUST(epoll_wait(epoll, &event, 1, -1) == 1);
    return arg;
}

static void *in_epoll_pwait(void *arg) {
    int epoll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN};
    sigset_t all, seen;
    sigfillset(&all);
    sigdelset(&all, SIGUSR2);
    MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, pwait_pipe[0], &event) == 0);
    begin();
    MUST(epoll_pwait(epoll, &event, 1, 1000000, &all) == 1);
    MUST(pthread_sigmask(SIG_BLOCK, NULL, &seen) == 0 && !sigismember(&seen, SIGUSR1));
    return arg;
}

static void *in_poll(void *arg) {
    struct pollfd fd = {.fd = poll_pipe[0], .events = POLLIN};
    begin();
    MUST(poll(&fd, 1, 1000000) == 1);
    return arg;
}

static void *in_select(void *arg) {
    fd_set set;
    struct timeval time = {1000, 0};
    FD_ZERO(&set);
    FD_SET(select_pipe[0], &set);
    begin();
    MUST(select(select_pipe[0] + 1, &set, NULL, NULL, &time) == 1);
    return arg;
}

static void *in_nanosleep(void *arg) {
    struct timespec t = {2, 0};
    double start = now(CLOCK_MONOTONIC);
    begin();
    MUST(nanosleep(&t, &t) == 0);
    MUST(now(CLOCK_MONOTONIC) - start >= 2);
    return arg;
}

static void *in_clock_nanosleep(void *arg) {
    begin();
    MUST(clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &end, NULL) == 0);
    MUST(now(CLOCK_MONOTONIC) >= (double)end.tv_sec);
    return arg;
}

static void *in_waitpid(void *arg) {
    int status;
    begin();
    MUST(waitpid(waited, &status, 0) == waited && WEXITSTATUS(status) == 9);
    return arg;
}

static void *in_sigwait(void *arg) {
    sigset_t set;
    int signal;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 1);
    begin();
    MUST(sigwait(&set, &signal) == 0 && signal == SIGRTMIN + 1);
    return arg;
}

static void *in_sigtimedwait(void *arg) {
    sigset_t set;
    siginfo_t info;
    struct timespec t = {1000, 0};
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 2);
    begin();
    MUST(sigtimedwait(&set, &info, &t) == SIGRTMIN + 2 && info.si_value.sival_int == 5);
    return arg;
}

static volatile int paused;
static void on_usr1(int signal) { paused = signal; }

static void *in_pause(void *arg) {
    begin();
    MUST(pause() < 0 && errno == EINTR && paused == SIGUSR1);
    return arg;
}

static volatile int suspended;
static void on_usr2(int signal) { suspended = signal; }

static void *in_sigsuspend(void *arg) {
    sigset_t block, none;
    sigemptyset(&block);
    sigaddset(&block, SIGUSR2);
    sigfillset(&none);
    sigdelset(&none, SIGUSR2);
    MUST(pthread_sigmask(SIG_BLOCK, &block, NULL) == 0);
    begin();
    MUST(sigsuspend(&none) < 0 && errno == EINTR && suspended == SIGUSR2);
    MUST(pthread_sigmask(SIG_BLOCK, NULL, &block) == 0);
    MUST(sigismember(&block, SIGUSR2) && !sigismember(&block, SIGUSR1));
    return arg;
}

static void *in_sem_wait(void *arg) {
    begin();
    MUST(sem_wait(&semaphore) == 0);
    return arg;
}

static void *in_sem_timedwait(void *arg) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    t.tv_sec += 1000;
    begin();
    MUST(sem_timedwait(&timed_semaphore, &t) == 0);
    return arg;
}

static void *in_cond_wait(void *arg) {
    MUST(pthread_mutex_lock(&mutex) == 0);
    begin();
    while (!happened) MUST(pthread_cond_wait(&condition, &mutex) == 0);
    MUST(pthread_mutex_unlock(&mutex) == 0);
    return arg;
}

static void *in_mutex(void *arg) {
    begin();
    MUST(pthread_mutex_lock(&held) == 0 && pthread_mutex_unlock(&held) == 0);
    return arg;
}

static void *in_join(void *arg) {
    begin();
    MUST(pthread_join(joined, NULL) == 0);
    return arg;
}

static void *in_fifo(void *arg) {
    begin();
    MUST((fifo_fd = open("/root/blocked", O_RDONLY)) >= 0);
    return arg;
}

int main(void) {
    int epoll_too = getenv("EPOLL") != NULL;
    static void *(*const all[])(void *) = {
        in_futex, in_futex_timed, in_futex_until, in_read, in_poll, in_select, in_nanosleep,
        in_clock_nanosleep, in_waitpid, in_sigwait, in_sigtimedwait, in_pause, in_sigsuspend,
        in_sem_wait, in_sem_timedwait, in_cond_wait, in_mutex, in_join, in_fifo,
        in_epoll, in_epoll_pwait,
    };
    int count = (int)(sizeof all / sizeof *all) - (epoll_too ? 0 : 2);
    pthread_t threads[sizeof all / sizeof *all];
    sigset_t block;
    int release[2];
    sigemptyset(&block);
    sigaddset(&block, SIGRTMIN + 1);
    sigaddset(&block, SIGRTMIN + 2);
    MUST(pthread_sigmask(SIG_BLOCK, &block, NULL) == 0);
    /* Without SA_RESTART: whoever is interrupted would say so. */
    struct sigaction action = {.sa_handler = on_usr1};
    MUST(sigaction(SIGUSR1, &action, NULL) == 0);
    action.sa_handler = on_usr2;
    MUST(sigaction(SIGUSR2, &action, NULL) == 0);
    MUST(pipe(read_pipe) == 0 && pipe(epoll_pipe) == 0 && pipe(poll_pipe) == 0);
    MUST(pipe(select_pipe) == 0 && pipe(pwait_pipe) == 0 && pipe(release) == 0);
    MUST(mkfifo("/root/blocked", 0600) == 0);
    if ((waited = fork()) == 0) {
        char byte;
        close(release[1]);
        if (read(release[0], &byte, 1) != 0) _exit(1);
        _exit(9);
    }
    MUST(sem_init(&semaphore, 0, 0) == 0 && sem_init(&timed_semaphore, 0, 0) == 0);
    MUST(pthread_mutex_lock(&held) == 0);
    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_sec += 2;
    for (int n = 0; n < count; n++) {
        MUST(pthread_create(&threads[n], NULL, all[n], NULL) == 0);
        if (all[n] == in_read) joined = threads[n];
    }
    while (__atomic_load_n(&begun, __ATOMIC_SEQ_CST) < count) zoo_sleep_ms(1);
    zoo_sleep_ms(100);
    zoo_await_fork();
    zoo_sleep_ms(20);
    /* All of them still wait. */
    MUST(syscall(SYS_futex, &word, 1, 1, NULL, NULL, 0) == 1);
    MUST(syscall(SYS_futex, &timed_word, 1, 1, NULL, NULL, 0) == 1);
    MUST(write(read_pipe[1], "r", 1) == 1 && write(epoll_pipe[1], "e", 1) == 1);
    MUST(write(poll_pipe[1], "p", 1) == 1 && write(select_pipe[1], "s", 1) == 1);
    MUST(write(pwait_pipe[1], "p", 1) == 1);
    close(release[1]);
    MUST(kill(getpid(), SIGRTMIN + 1) == 0);
    MUST(sigqueue(getpid(), SIGRTMIN + 2, (union sigval){.sival_int = 5}) == 0);
    for (int n = 0; n < count; n++) {
        if (all[n] == in_pause) MUST(pthread_kill(threads[n], SIGUSR1) == 0);
        if (all[n] == in_sigsuspend) MUST(pthread_kill(threads[n], SIGUSR2) == 0);
    }
    MUST(sem_post(&semaphore) == 0 && sem_post(&timed_semaphore) == 0);
    MUST(pthread_mutex_lock(&mutex) == 0);
    happened = 1;
    MUST(pthread_cond_broadcast(&condition) == 0 && pthread_mutex_unlock(&mutex) == 0);
    MUST(pthread_mutex_unlock(&held) == 0);
    MUST(open("/root/blocked", O_WRONLY) >= 0);
    for (int n = 0; n < count; n++)
        if (all[n] != in_read) MUST(pthread_join(threads[n], NULL) == 0);
    return zoo_ok();
}
