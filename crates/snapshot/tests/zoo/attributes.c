/* What a process may have been told about itself: limits, scheduling, names, and what prctl keeps. */
#include "zoo.h"
#include <linux/ioprio.h>
#include <linux/membarrier.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>

extern char **environ;
static int begun;

static int text_of(const char *path, char *into, int size) {
    int file = open(path, O_RDONLY);
    MUST(file >= 0);
    int length = (int)read(file, into, size - 1);
    MUST(length >= 0);
    into[length] = 0;
    close(file);
    return length;
}

/* Linux 6.3; older headers do not have it. */
enum { GET_REGISTRATIONS = 1 << 9 };

static int membarrier(int command) { return (int)syscall(SYS_membarrier, command, 0, 0); }

static int io_priority(void) { return (int)syscall(SYS_ioprio_get, 1, 0); }

/* Each thread is scheduled in its own way. */
static void *run(void *arg) {
    long n = (long)arg;
    static const int policies[] = {SCHED_BATCH, SCHED_IDLE, SCHED_OTHER};
    struct sched_param none = {0};
    cpu_set_t one, seen;
    int tid = (int)syscall(SYS_gettid);
    MUST(sched_setscheduler(tid, policies[n], &none) == 0);
    int nice = getpriority(PRIO_PROCESS, 0) + 1 + (int)n;
    MUST(setpriority(PRIO_PROCESS, tid, nice) == 0);
    MUST(syscall(SYS_ioprio_set, 1, 0, n == 2 ? 0 : IOPRIO_PRIO_VALUE(n == 0 ? 2 : 3, n == 0 ? 6 : 0)) == 0);
    int io = io_priority();
    CPU_ZERO(&one);
    CPU_SET(0, &one);
    if (n == 0) MUST(sched_setaffinity(tid, sizeof one, &one) == 0);
    if (n == 1) MUST(prctl(PR_SET_TIMERSLACK, 123456) == 0);
    if (n == 2) MUST(prctl(PR_SET_TSC, PR_TSC_SIGSEGV) == 0);
    int bypass = prctl(PR_GET_SPECULATION_CTRL, 0, 0, 0, 0);
    if (n == 0 && bypass == (PR_SPEC_PRCTL | PR_SPEC_ENABLE))
        MUST(prctl(PR_SET_SPECULATION_CTRL, 0, PR_SPEC_DISABLE, 0, 0) == 0);
    if (n == 1 && bypass == (PR_SPEC_PRCTL | PR_SPEC_ENABLE))
        MUST(prctl(PR_SET_SPECULATION_CTRL, 0, PR_SPEC_FORCE_DISABLE, 0, 0) == 0);
    bypass = prctl(PR_GET_SPECULATION_CTRL, 0, 0, 0, 0);
    int branch = prctl(PR_GET_SPECULATION_CTRL, 1, 0, 0, 0);
    __atomic_add_fetch(&begun, 1, __ATOMIC_SEQ_CST);
    /* No clock of the vDSO's in the thread that may not read the processor's. */
    while (!zoo_forked()) {
        struct timespec t = {0, 2000000};
        syscall(SYS_nanosleep, &t, NULL);
    }
    MUST(sched_getscheduler(tid) == policies[n] && getpriority(PRIO_PROCESS, tid) == nice);
    MUST(io_priority() == io);
    MUST(sched_getaffinity(tid, sizeof seen, &seen) == 0);
    if (n == 0) MUST(CPU_EQUAL(&seen, &one));
    if (n == 1) MUST(prctl(PR_GET_TIMERSLACK) == 123456);
    int tsc;
    MUST(prctl(PR_GET_TSC, &tsc) == 0 && tsc == (n == 2 ? PR_TSC_SIGSEGV : PR_TSC_ENABLE));
    MUST(prctl(PR_GET_SPECULATION_CTRL, 0, 0, 0, 0) == bypass);
    MUST(prctl(PR_GET_SPECULATION_CTRL, 1, 0, 0, 0) == branch);
    return NULL;
}

int main(int argc, char **argv) {
    pthread_t threads[3];
    struct rlimit before[RLIM_NLIMITS], now;
    char line[512], title[512], names[64];
    (void)argc;
    for (long n = 0; n < 3; n++) MUST(pthread_create(&threads[n], NULL, run, (void *)n) == 0);
    while (__atomic_load_n(&begun, __ATOMIC_SEQ_CST) < 3) zoo_sleep_ms(1);
    static const struct { int which; rlim_t soft, hard; } limits[] = {
        {RLIMIT_NOFILE, 100, 200}, {RLIMIT_CORE, 0, 1000}, {RLIMIT_STACK, 4 << 20, 64 << 20},
        {RLIMIT_NPROC, 500, 500}, {RLIMIT_FSIZE, 1 << 30, 1 << 30}, {RLIMIT_CPU, 1000, 1001},
        {RLIMIT_DATA, 1 << 30, 1u << 31}, {RLIMIT_AS, 1ull << 40, 1ull << 41},
        {RLIMIT_SIGPENDING, 50, 60}, {RLIMIT_MSGQUEUE, 1000, 2000}, {RLIMIT_LOCKS, 7, 8},
    };
    for (size_t n = 0; n < sizeof limits / sizeof *limits; n++) {
        struct rlimit limit = {limits[n].soft, limits[n].hard}, old;
        MUST(getrlimit(limits[n].which, &old) == 0);
        if (old.rlim_max < limit.rlim_max) continue;
        MUST(setrlimit(limits[n].which, &limit) == 0);
    }
    for (int n = 0; n < RLIM_NLIMITS; n++) MUST(getrlimit(n, &before[n]) == 0);
    MUST(personality(ADDR_NO_RANDOMIZE) >= 0 || errno == EPERM);
    int person = personality(0xffffffff);
    int score = open("/proc/self/oom_score_adj", O_WRONLY);
    MUST(score >= 0 && write(score, "321", 3) == 3 && close(score) == 0);
    int filter = open("/proc/self/coredump_filter", O_WRONLY);
    MUST(filter >= 0 && write(filter, "0x7", 3) == 3 && close(filter) == 0);
    MUST(prctl(PR_SET_NAME, "a name) S 1 (x") == 0);
    MUST(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0 && prctl(PR_SET_PDEATHSIG, SIGHUP) == 0);
    umask(0137);
    int barriers = MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED | MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED;
    MUST(membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED) == 0);
    MUST(membarrier(MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED) == 0);
    MUST(membarrier(GET_REGISTRATIONS) == barriers);
    /* As setproctitle does it. */
    memset(argv[0], 0, strlen(argv[0]));
    strcpy(argv[0], "title");
    MUST(setenv("ADDED", "later", 1) == 0);
    int length = text_of("/proc/self/cmdline", title, sizeof title);
    char first[256];
    strcpy(first, environ[0]);
    zoo_await_fork();
    for (int n = 0; n < RLIM_NLIMITS; n++) {
        MUST(getrlimit(n, &now) == 0);
        if (memcmp(&now, &before[n], sizeof now) != 0) zoo_fail("limit %d", n);
    }
    MUST(personality(0xffffffff) == person);
    text_of("/proc/self/oom_score_adj", line, sizeof line);
    MUST(strcmp(line, "321\n") == 0);
    text_of("/proc/self/coredump_filter", line, sizeof line);
    MUST(strcmp(line, "00000007\n") == 0);
    MUST(prctl(PR_GET_NAME, names) == 0 && strcmp(names, "a name) S 1 (x") == 0);
    int number;
    MUST(prctl(PR_GET_CHILD_SUBREAPER, &number) == 0 && number == 1);
    MUST(prctl(PR_GET_PDEATHSIG, &number) == 0 && number == SIGHUP);
    MUST(umask(0) == 0137);
    MUST(membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED) == 0);
    MUST(membarrier(GET_REGISTRATIONS) == barriers);
    MUST(text_of("/proc/self/cmdline", line, sizeof line) == length);
    MUST(memcmp(line, title, length) == 0 && strcmp(getenv("ADDED"), "later") == 0);
    MUST(text_of("/proc/self/environ", line, sizeof line) > 0);
    MUST(strcmp(first, environ[0]) == 0);
    for (int n = 0; n < 3; n++) MUST(pthread_join(threads[n], NULL) == 0);
    return zoo_ok();
}
