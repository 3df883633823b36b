/* A thread with a seccomp filter of its own making. */
#include "zoo.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

static int begun;

static void *run(void *arg) {
    struct sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog program = {1, &allow};
    MUST(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) == 0);
    __atomic_store_n(&begun, 1, __ATOMIC_SEQ_CST);
    while (!zoo_forked()) zoo_sleep_ms(2);
    return arg;
}

int main(void) {
    pthread_t thread;
    MUST(pthread_create(&thread, NULL, run, NULL) == 0);
    while (!__atomic_load_n(&begun, __ATOMIC_SEQ_CST)) zoo_sleep_ms(1);
    zoo_await_fork();
    MUST(pthread_join(thread, NULL) == 0);
    return zoo_ok();
}
