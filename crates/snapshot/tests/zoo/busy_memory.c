/* Much memory that changes all the time: what was copied of it before the stop must not show. */
#include "zoo.h"
#include <sys/mman.h>

#define PAGE 4096L
#define PAGES (6 * 1024L)
#define CHUNK (512 * PAGE)

/* A sweep writes its number to both ends of every page, in order. */
static volatile uint64_t *word(char *area, long page, int last) {
    return (uint64_t *)(area + page * PAGE + (last ? PAGE - 8 : 0));
}

static char *map(void *at, long length) {
    int how = MAP_PRIVATE | MAP_ANONYMOUS | (at ? MAP_FIXED : 0);
    char *area = mmap(at, length, PROT_READ | PROT_WRITE, how, -1, 0);
    MUST(area != MAP_FAILED);
    return area;
}

static void check_all(const char *area, long length, char byte, const char *what) {
    for (long at = 0; at < length; at += 512)
        if (area[at] != byte) zoo_fail("%s: %d at %ld, not %d", what, area[at], at, byte);
}

/* Areas of one chunk each, always in one of these states. */
static char *dropped, *replaced, *moved, *closed;
static volatile int filled;

static void churn(int turn) {
    char byte = turn % 100 + 1;
    /* Dropped pages are zeros, whoever copied them before. */
    check_all(dropped, CHUNK, filled ? filled : 0, "dropped");
    MUST(madvise(dropped, CHUNK, MADV_DONTNEED) == 0);
    filled = 0;
    check_all(dropped, CHUNK, 0, "dropped just now");
    memset(dropped, byte, CHUNK);
    filled = byte;
    /* Another mapping at the same place. */
    check_all(replaced, CHUNK, replaced[0], "replaced");
    MUST(munmap(replaced, CHUNK) == 0);
    map(replaced, CHUNK);
    check_all(replaced, CHUNK, 0, "replaced just now");
    memset(replaced, byte, CHUNK);
    /* The same pages at another place. */
    check_all(moved, CHUNK, moved[0], "moved");
    char *there = map(NULL, CHUNK);
    char *now = mremap(moved, CHUNK, CHUNK, MREMAP_MAYMOVE | MREMAP_FIXED, there);
    MUST(now == there);
    moved = there;
    memset(moved, byte, CHUNK);
    /* Pages that can be written now and then. */
    MUST(mprotect(closed, CHUNK / 2, PROT_READ | PROT_WRITE) == 0);
    memset(closed, byte, CHUNK);
    MUST(mprotect(closed, CHUNK / 2, PROT_READ) == 0);
    check_all(closed, CHUNK, byte, "closed");
}

int main(void) {
    char *area = map(NULL, PAGES * PAGE);
    dropped = map(NULL, CHUNK);
    replaced = map(NULL, CHUNK);
    moved = map(NULL, CHUNK);
    closed = map(NULL, CHUNK);
    int ready = 0, after = 0;
    for (uint64_t sweep = 1; after < 3; sweep++) {
        for (long page = 0; page < PAGES; page++) {
            for (int last = 0; last < 2; last++) {
                volatile uint64_t *at = word(area, page, last);
                if (*at != sweep - 1)
                    zoo_fail("page %ld: %lu in sweep %lu", page, (long)*at, (long)sweep);
                *at = sweep;
            }
        }
        for (long page = 0; page < PAGES; page++)
            if (*word(area, page, 0) != sweep || *word(area, page, 1) != sweep)
                zoo_fail("page %ld was lost in sweep %lu", page, (long)sweep);
        churn(sweep);
        if (!ready) {
            MUST(write(1, "ready\n", 6) == 6);
            ready = 1;
        }
        after += zoo_forked();
    }
    return zoo_ok();
}
