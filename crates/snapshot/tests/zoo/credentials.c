/* Who each of several threads is: users, groups, capabilities. All of /proc/self/status that does
   not count or measure is compared, and so is what no file tells. */
#include "zoo.h"
#include <linux/capability.h>
#include <linux/securebits.h>
#include <pthread.h>
#include <signal.h>
#include <sys/fsuid.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>


static int begun;

static void status(char *into, size_t size) {
    char path[64];
    static const char *const vary[] = {"Vm", "Rss", "Hugetlb", "voluntary", "nonvoluntary", "State",
                                       "SigQ", "Threads", "Cpus_allowed", "Mems_allowed", "NSpid",
                                       "NStgid", "NSpgid", "NSsid"};
    snprintf(path, sizeof path, "/proc/self/task/%ld/status", syscall(SYS_gettid));
    FILE *file = fopen(path, "r");
    char line[4096];
    size_t length = 0;
    MUST(file != NULL);
    while (fgets(line, sizeof line, file)) {
        int skip = 0;
        for (size_t n = 0; n < sizeof vary / sizeof *vary; n++)
            skip |= strncmp(line, vary[n], strlen(vary[n])) == 0;
        if (skip) continue;
        MUST(length + strlen(line) < size);
        strcpy(into + length, line);
        length += strlen(line);
    }
    fclose(file);
}

struct told {
    char status[8192];
    int securebits, keepcaps, no_new_privs, death, dumpable;
};

static void ask(struct told *told) {
    memset(told, 0, sizeof *told);
    status(told->status, sizeof told->status);
    told->securebits = prctl(PR_GET_SECUREBITS);
    told->keepcaps = prctl(PR_GET_KEEPCAPS);
    told->no_new_privs = prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0);
    told->dumpable = prctl(PR_GET_DUMPABLE);
    MUST(prctl(PR_GET_PDEATHSIG, &told->death) == 0);
}

static void compare(const struct told *before) {
    struct told now;
    ask(&now);
    if (strcmp(before->status, now.status) != 0) {
        char one[8192], other[8192], *a, *b, *in_a = one, *in_b = other;
        strcpy(one, before->status), strcpy(other, now.status);
        while ((a = strsep(&in_a, "\n")) && (b = strsep(&in_b, "\n")))
            if (strcmp(a, b) != 0) zoo_fail("it was %s, and is %s", a, b);
    }
    MUST(before->securebits == now.securebits && before->keepcaps == now.keepcaps);
    MUST(before->no_new_privs == now.no_new_privs);
    MUST(before->death == now.death);
}

static void capabilities(uint64_t effective, uint64_t permitted, uint64_t inheritable) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2] = {
        {(uint32_t)effective, (uint32_t)permitted, (uint32_t)inheritable},
        {(uint32_t)(effective >> 32), (uint32_t)(permitted >> 32), (uint32_t)(inheritable >> 32)},
    };
    MUST(syscall(SYS_capset, &header, data) == 0);
}

#define CAP(name) (1ull << CAP_##name)

static int many_ids;

static void *run(void *arg) {
    long n = (long)arg;
    static struct told told[8];
    gid_t groups[] = {5, 20, 7};
    /* libc's own calls would change all threads. */
    switch (n) {
    case 0: /* all but some, and a smaller bounding set */
        MUST(prctl(PR_CAPBSET_DROP, CAP_MKNOD) == 0 && prctl(PR_CAPBSET_DROP, CAP_KILL) == 0);
        capabilities(CAP(SETPCAP) | CAP(CHOWN), CAP(SETPCAP) | CAP(CHOWN) | CAP(FOWNER), CAP(CHOWN));
        break;
    case 1: /* inheritable what the bounding set has no more, and ambient */
        capabilities(CAP(SETPCAP) | CAP(CHOWN) | CAP(KILL), CAP(SETPCAP) | CAP(CHOWN) | CAP(KILL),
                     CAP(CHOWN) | CAP(KILL));
        MUST(prctl(PR_CAPBSET_DROP, CAP_KILL) == 0);
        MUST(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_CHOWN, 0, 0) == 0);
        MUST(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_KILL, 0, 0) == 0);
        capabilities(CAP(CHOWN), CAP(CHOWN) | CAP(KILL), CAP(CHOWN) | CAP(KILL));
        break;
    case 2: /* secure bits, some of them locked, and no right to change them */
        MUST(prctl(PR_SET_SECUREBITS, SECBIT_NOROOT | SECBIT_NOROOT_LOCKED | SECBIT_KEEP_CAPS |
                                          SECBIT_NO_CAP_AMBIENT_RAISE) == 0);
        capabilities(0, CAP(NET_RAW), 0);
        break;
    case 3: /* another user, all four ids apart */
        if (!many_ids) break;
        MUST(syscall(SYS_setgroups, 3, groups) == 0);
        MUST(syscall(SYS_setresgid, 11, 12, 13) == 0);
        setfsgid(11);
        MUST(syscall(SYS_setresuid, 21, 22, 23) == 0);
        setfsuid(23);
        MUST(prctl(PR_SET_PDEATHSIG, SIGRTMIN) == 0);
        break;
    case 4: /* another user that keeps rights */
        if (!many_ids) break;
        MUST(prctl(PR_SET_KEEPCAPS, 1) == 0);
        MUST(syscall(SYS_setresuid, 33, 33, 33) == 0);
        capabilities(CAP(NET_BIND_SERVICE), CAP(NET_BIND_SERVICE) | CAP(CHOWN), 0);
        break;
    case 5: /* effective rights aside for a while */
        if (!many_ids) break;
        MUST(syscall(SYS_setresuid, 0, 44, 0) == 0);
        break;
    default: break;
    }
    ask(&told[n]);
    __atomic_add_fetch(&begun, 1, __ATOMIC_SEQ_CST);
    while (!zoo_forked()) zoo_sleep_ms(2);
    compare(&told[n]);
    if (n == 5 && many_ids) MUST(syscall(SYS_setresuid, -1, 0, -1) == 0);
    return NULL;
}

int main(void) {
    pthread_t threads[7];
    static struct told told;
    many_ids = getenv("USER_COMMAND") == NULL && syscall(SYS_setgroups, 0, NULL) == 0;
    FILE *map = fopen("/proc/self/uid_map", "r");
    unsigned inside, outside, count;
    MUST(map && fscanf(map, "%u %u %u", &inside, &outside, &count) == 3);
    if (many_ids && count == 1) {
        unsigned more;
        many_ids = fscanf(map, "%u %u %u", &inside, &outside, &more) == 3;
    }
    fclose(map);
    /* A right over the file that says that the fork is over is what all need. */
    MUST(chmod("/root", 0755) == 0 || getenv("USER_COMMAND"));
    long first = getenv("USER_COMMAND") ? 6 : 0;
    for (long n = first; n < 7; n++) MUST(pthread_create(&threads[n], NULL, run, (void *)n) == 0);
    while (__atomic_load_n(&begun, __ATOMIC_SEQ_CST) < 7 - first) zoo_sleep_ms(1);
    if (getenv("NOT_DUMPABLE")) MUST(prctl(PR_SET_DUMPABLE, 0) == 0);
    ask(&told);
    zoo_await_fork();
    compare(&told);
    MUST(prctl(PR_GET_DUMPABLE) == told.dumpable);
    for (long n = first; n < 7; n++) MUST(pthread_join(threads[n], NULL) == 0);
    /* What was forbidden stays so. */
    MUST(syscall(SYS_unshare, 0x10000000) < 0 && errno == EPERM);
    MUST(syscall(SYS_io_uring_setup, 1, NULL) < 0 && errno == ENOSYS);
    MUST(syscall(SYS_mount, "none", "/mnt", "tmpfs", 0, NULL) < 0 && errno == EPERM);
    return zoo_ok();
}
