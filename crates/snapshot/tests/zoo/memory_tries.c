/* Memory whose area has another end at each try to fork it; most tries come to nothing, since
 * another process waits for a child of vfork(2), which keeps it from being stopped. */
#include "zoo.h"
#include <sys/mman.h>
#include <sys/wait.h>

#define FILLED (4L << 20)
#define ROOM (16L << 20)
#define STEP 16384L

static void keep_from_stopping(void) {
    while (!zoo_forked()) {
        pid_t child = vfork();
        if (child == 0) {
            struct timespec t = {0, 200000000};
            nanosleep(&t, NULL);
            _exit(0);
        }
        MUST(child > 0 && waitpid(child, NULL, 0) == child);
        zoo_sleep_ms(20);
    }
    _exit(0);
}

int main(void) {
    pid_t other = fork();
    MUST(other >= 0);
    if (other == 0) keep_from_stopping();
    char *area = mmap(NULL, ROOM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(area != MAP_FAILED && madvise(area, ROOM, MADV_NOHUGEPAGE) == 0);
    for (long at = 0; at < FILLED; at += 8) *(long *)(area + at) = at + 1;
    MUST(write(1, "ready\n", 6) == 6);
    for (long end = ROOM; !zoo_forked(); zoo_sleep_ms(30)) {
        if (end <= FILLED) continue;
        end -= STEP;
        MUST(munmap(area + end, STEP) == 0);
    }
    for (long at = 0; at < FILLED; at += 8)
        if (*(long *)(area + at) != at + 1) zoo_fail("%ld at %ld", *(long *)(area + at), at);
    MUST(waitpid(other, NULL, 0) == other);
    return zoo_ok();
}
