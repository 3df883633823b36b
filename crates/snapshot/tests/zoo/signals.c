/* Signals: what they do, which wait, with their values and in their order. */
#include "zoo.h"
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>

/* The kernel tells one more. */
#define FLAGS(action) ((unsigned)(action).sa_flags & ~0x04000000u)

static volatile int got[65], order[64], values[64], count;

static void note(int signal, siginfo_t *info, void *context) {
    (void)context;
    got[signal]++;
    if (count < 64) {
        order[count] = signal;
        values[count++] = info->si_value.sival_int;
    }
}

static void plain(int signal) { got[signal]++; }

static int pending(int signal) {
    sigset_t set;
    sigpending(&set);
    return sigismember(&set, signal);
}

static int ready;
static void *other(void *arg) {
    sigset_t set;
    siginfo_t info;
    struct timespec none = {0, 0};
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 5);
    __atomic_store_n(&ready, 1, __ATOMIC_SEQ_CST);
    while (!zoo_forked()) zoo_sleep_ms(2);
    /* Its own, and nobody else's. */
    MUST(pending(SIGRTMIN + 5));
    MUST(sigtimedwait(&set, &info, &none) == SIGRTMIN + 5 && info.si_pid == getpid());
    /* SI_TKILL to the kernel. */
    MUST(info.si_code == SI_USER && !pending(SIGRTMIN + 5));
    return arg;
}

int main(void) {
    pthread_t thread;
    struct sigaction action = {.sa_sigaction = note}, seen;
    sigset_t block, set;
    siginfo_t info;
    sigfillset(&block);
    sigdelset(&block, SIGUSR2);
    sigdelset(&block, SIGALRM);
    MUST(pthread_sigmask(SIG_SETMASK, &block, NULL) == 0);
    /* Handlers with flags and masks, and ignored signals. */
    action.sa_flags = SA_SIGINFO | SA_RESTART | SA_NODEFER;
    sigemptyset(&action.sa_mask);
    sigaddset(&action.sa_mask, SIGHUP);
    sigaddset(&action.sa_mask, SIGRTMAX);
    for (int n = 0; n < 8; n++) MUST(sigaction(SIGRTMIN + n, &action, NULL) == 0);
    MUST(sigaction(SIGUSR1, &action, NULL) == 0);
    struct sigaction once = {.sa_handler = plain, .sa_flags = SA_RESETHAND | SA_ONSTACK};
    MUST(sigaction(SIGUSR2, &once, NULL) == 0);
    MUST(signal(SIGPIPE, SIG_IGN) != SIG_ERR && signal(SIGTTOU, SIG_IGN) != SIG_ERR);
    struct sigaction child = {.sa_handler = SIG_DFL, .sa_flags = SA_NOCLDWAIT | SA_NOCLDSTOP};
    MUST(sigaction(SIGCHLD, &child, NULL) == 0);
    /* Of the process: three of one kind with values, one of another, and a plain one twice. */
    for (int n = 1; n <= 3; n++)
        MUST(sigqueue(getpid(), SIGRTMIN + 1, (union sigval){.sival_int = n}) == 0);
    MUST(sigqueue(getpid(), SIGRTMIN, (union sigval){.sival_int = 77}) == 0);
    MUST(kill(getpid(), SIGUSR1) == 0 && kill(getpid(), SIGUSR1) == 0);
    /* Of this thread. */
    MUST(syscall(SYS_tgkill, getpid(), getpid(), SIGRTMIN + 4) == 0);
    MUST(pthread_create(&thread, NULL, other, NULL) == 0);
    while (!__atomic_load_n(&ready, __ATOMIC_SEQ_CST)) zoo_sleep_ms(1);
    MUST(pthread_kill(thread, SIGRTMIN + 5) == 0);
    MUST(!pending(SIGRTMIN + 5));
    zoo_await_fork();
    MUST(!pending(SIGRTMIN + 5) && !pending(SIGCHLD) && !pending(SIGALRM));
    MUST(pthread_sigmask(SIG_SETMASK, NULL, &set) == 0);
    /* The two that libc keeps for itself are never blocked. */
    for (int s = 1; s < SIGRTMAX; s++)
        if (s != SIGKILL && s != SIGSTOP) MUST(sigismember(&set, s) == sigismember(&block, s));
    MUST(sigaction(SIGRTMIN + 3, NULL, &seen) == 0);
    MUST(seen.sa_sigaction == note && FLAGS(seen) == FLAGS(action));
    MUST(sigismember(&seen.sa_mask, SIGHUP) && sigismember(&seen.sa_mask, SIGRTMAX));
    MUST(!sigismember(&seen.sa_mask, SIGINT));
    MUST(sigaction(SIGUSR2, NULL, &seen) == 0 && seen.sa_handler == plain);
    MUST(FLAGS(seen) == (SA_RESETHAND | SA_ONSTACK));
    MUST(sigaction(SIGPIPE, NULL, &seen) == 0 && seen.sa_handler == SIG_IGN);
    MUST(sigaction(SIGTTOU, NULL, &seen) == 0 && seen.sa_handler == SIG_IGN);
    MUST(sigaction(SIGCHLD, NULL, &seen) == 0 && seen.sa_handler == SIG_DFL);
    MUST(FLAGS(seen) == (SA_NOCLDWAIT | SA_NOCLDSTOP));
    MUST(sigaction(SIGTERM, NULL, &seen) == 0 && seen.sa_handler == SIG_DFL && FLAGS(seen) == 0);
    /* A child of such a parent leaves no zombie. */
    pid_t pid = fork();
    if (pid == 0) _exit(0);
    MUST(waitpid(pid, NULL, 0) < 0 && errno == ECHILD);
    MUST(kill(getpid(), SIGUSR2) == 0 && got[SIGUSR2] == 1);
    MUST(sigaction(SIGUSR2, NULL, &seen) == 0 && seen.sa_handler == SIG_DFL);
    /* In their order: who sent them is told too. */
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN);
    MUST(sigwaitinfo(&set, &info) == SIGRTMIN && info.si_value.sival_int == 77);
    MUST(info.si_code == SI_QUEUE && info.si_pid == getpid() && info.si_uid == getuid());
    sigemptyset(&block);
    sigaddset(&block, SIGTERM);
    MUST(pthread_sigmask(SIG_SETMASK, &block, NULL) == 0);
    MUST(got[SIGUSR1] == 1 && got[SIGRTMIN + 1] == 3 && got[SIGRTMIN + 4] == 1);
    /* The thread's own comes first, then the lower number, and of one number the oldest; each
       interrupts the handler of the one before, so that they run in the other order. */
    MUST(count == 5 && order[3] == SIGUSR1 && order[4] == SIGRTMIN + 4);
    for (int n = 0; n < 3; n++) MUST(order[n] == SIGRTMIN + 1 && values[n] == 3 - n);
    MUST(pthread_join(thread, NULL) == 0);
    return zoo_ok();
}
