/* Threads within handlers at the fork: on an alternate stack, on one that disarms itself, in a
   handler within a handler; and restartable futexes, whose owner dies afterwards. */
#include "zoo.h"
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <ucontext.h>

#ifndef SS_AUTODISARM
#define SS_AUTODISARM (1u << 31)
#endif

static volatile int inside, over;
static char *stacks[3];
enum { SIZE = 65536 };

static void wait_here(int signal, siginfo_t *info, void *context) {
    ucontext_t *own = context;
    char here;
    (void)info;
    volatile int mark = signal * 1000;
    __atomic_add_fetch(&inside, 1, __ATOMIC_SEQ_CST);
    if (signal == SIGUSR2) raise(SIGRTMIN);
    while (!over) zoo_sleep_ms(1);
    MUST(mark == signal * 1000);
    stack_t now;
    MUST(sigaltstack(NULL, &now) == 0);
    int on = 0;
    for (int n = 0; n < 3; n++) on |= &here > stacks[n] && &here < stacks[n] + SIZE;
    if (signal == SIGUSR1) MUST(on && now.ss_flags & SS_ONSTACK && now.ss_size == SIZE);
    if (signal == SIGHUP) MUST(on && now.ss_flags & SS_DISABLE);
    MUST(own->uc_mcontext.gregs[REG_R15] == 0x1515);
}

/* Takes a signal with a known register, which it must find again after the handler. */
static void take(int signal) {
    long result = SYS_tgkill, r15 = 0x1515;
    register long r15_now __asm__("r15") = r15;
    __asm__ volatile("syscall" : "+a"(result), "+r"(r15_now)
                     : "D"((long)getpid()), "S"(syscall(SYS_gettid)), "d"((long)signal)
                     : "rcx", "r11", "memory");
    MUST(result == 0 && r15_now == 0x1515);
}

static void *run(void *arg) {
    long n = (long)arg;
    stack_t stack = {.ss_sp = stacks[n], .ss_size = SIZE}, now;
    if (n == 1) stack.ss_flags = (int)SS_AUTODISARM;
    MUST(sigaltstack(&stack, NULL) == 0);
    take(n == 0 ? SIGUSR1 : n == 1 ? SIGHUP : SIGUSR2);
    MUST(sigaltstack(NULL, &now) == 0 && now.ss_sp == stacks[n] && now.ss_size == SIZE);
    MUST(now.ss_flags == stack.ss_flags);
    return NULL;
}

static pthread_mutex_t *robust;
static volatile int held, die;

static void *owner(void *arg) {
    MUST(pthread_mutex_lock(robust) == 0);
    held = 1;
    while (!die) zoo_sleep_ms(1);
    return arg;
}

static void *waiter(void *arg) {
    int result = pthread_mutex_lock(robust);
    MUST(result == EOWNERDEAD);
    MUST(pthread_mutex_consistent(robust) == 0 && pthread_mutex_unlock(robust) == 0);
    return arg;
}

int main(void) {
    pthread_t threads[5];
    struct sigaction action = {.sa_sigaction = wait_here, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    MUST(sigaction(SIGUSR1, &action, NULL) == 0 && sigaction(SIGUSR2, &action, NULL) == 0);
    MUST(sigaction(SIGHUP, &action, NULL) == 0);
    pthread_mutexattr_t attributes;
    MUST(pthread_mutexattr_init(&attributes) == 0);
    MUST(pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST) == 0);
    robust = malloc(sizeof *robust);
    MUST(pthread_mutex_init(robust, &attributes) == 0);
    for (int n = 0; n < 3; n++) stacks[n] = malloc(SIZE);
    struct sigaction nested = {.sa_handler = SIG_IGN};
    MUST(sigaction(SIGRTMIN, &nested, NULL) == 0);
    for (long n = 0; n < 3; n++) MUST(pthread_create(&threads[n], NULL, run, (void *)n) == 0);
    MUST(pthread_create(&threads[3], NULL, owner, NULL) == 0);
    while (inside < 3 || !held) zoo_sleep_ms(1);
    MUST(pthread_create(&threads[4], NULL, waiter, NULL) == 0);
    zoo_sleep_ms(50);
    zoo_await_fork();
    over = 1;
    for (int n = 0; n < 3; n++) MUST(pthread_join(threads[n], NULL) == 0);
    MUST(pthread_tryjoin_np(threads[4], NULL) == EBUSY);
    die = 1;
    MUST(pthread_join(threads[3], NULL) == 0 && pthread_join(threads[4], NULL) == 0);
    return zoo_ok();
}
