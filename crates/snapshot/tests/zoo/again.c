/* Memory that is forked again and again: what was copied for one fork must not show in the next.
   Each step is asked for by a file, and said to be done; a clone checks what it has. */
#include "zoo.h"
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define PAGE 4096L
#define PAGES (16 * 1024L)
/* Where the memory is, before and after this program executes itself. */
#define PLACE ((char *)0x210000000000)
#define MOST (4 * PAGES)

static char *area = PLACE;
/* What each page was filled with; 0xff where nothing is mapped. Small areas are read at the stop. */
static unsigned char model[MOST], *first = model;

static char *map(char *at, long pages) {
    int how = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
    char *made = mmap(at, pages * PAGE, PROT_READ | PROT_WRITE, how, -1, 0);
    MUST(made == at);
    return made;
}

static void fill(long page, long pages, unsigned char byte) {
    memset(area + page * PAGE, byte, pages * PAGE);
    memset(first + page, byte, pages);
}

/* A page has its byte all over, where that is more than a page that was never touched. */
static void check(const char *when) {
    for (long page = 0; page < MOST; page++) {
        if (first[page] == 0xff) continue;
        const unsigned char *at = (unsigned char *)area + page * PAGE;
        for (long i = 0; i < PAGE; i += 256)
            if (at[i] != first[page] || at[PAGE - 1] != first[page])
                zoo_fail("%s: page %ld is %d, not %d", when, page, at[i], first[page]);
    }
}

static void begin(unsigned char byte) {
    memset(model, 0xff, sizeof model);
    map(area, PAGES);
    fill(0, PAGES, byte);
}

static void drop(long page, long pages) {
    MUST(munmap(area + page * PAGE, pages * PAGE) == 0);
    memset(first + page, 0xff, pages);
}

static void step(int number) {
    switch (number) {
    case 1: /* A megabyte of many: at one place, and here and there. */
        fill(100, 128, 2);
        for (long page = 1000; page < PAGES; page += 121) fill(page, 1, 3);
        break;
    case 2: /* Another mapping in the middle, a hole, and what was dropped, written again or not. */
        drop(2000, 600);
        map(area + 2000 * PAGE, 500);
        fill(2000, 250, 4);
        memset(first + 2250, 0, 250);
        MUST(madvise(area + 4000 * PAGE, 1000 * PAGE, MADV_DONTNEED) == 0);
        memset(first + 4000, 0, 1000);
        fill(4100, 100, 5);
        MUST(mprotect(area + 6000 * PAGE, 10 * PAGE, PROT_READ) == 0);
        break;
    case 3: { /* A whole new mapping at the same place, and one that grows to three times. */
        drop(0, PAGES);
        begin(6);
        char *grown = mremap(area, PAGES * PAGE, 3 * PAGES * PAGE, 0);
        MUST(grown == area);
        memset(first + PAGES, 0, 2 * PAGES);
        fill(PAGES + 5000, 1000, 7);
        fill(3 * PAGES - 1, 1, 8);
        break;
    }
    case 4: { /* Moved to elsewhere and back; huge pages, if there are any. */
        char *other = PLACE + (1L << 32);
        MUST(mremap(area, 1024 * PAGE, 1024 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, other) == other);
        memset(other, 9, 1024 * PAGE);
        MUST(mremap(other, 1024 * PAGE, 1024 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, area) == area);
        memset(first, 9, 1024);
        madvise(area + PAGES * PAGE, PAGES * PAGE, MADV_HUGEPAGE);
        fill(PAGES, 600, 10);
        break;
    }
    case 5: /* A child that goes its own way with the same memory. */
        if (fork() == 0) {
            MUST(prctl(PR_SET_PDEATHSIG, 9) == 0);
            fill(300, 300, 11);
            while (!zoo_forked()) zoo_sleep_ms(2);
            check("in a child");
            _exit(0);
        }
        fill(400, 300, 12);
        break;
    case 6: /* The same process with another program's memory, at the same place. */
        execl("/proc/self/exe", "again", "6", NULL);
        MUST(!"exec");
    }
}

int main(int count, char **words) {
    int done = count > 1 ? atoi(words[1]) : 0;
    begin(done ? 13 : 1);
    if (done) fill(50, 50, 14);
    char text[64];
    for (;; done++) {
        check("before a fork");
        int length = snprintf(text, sizeof text, done ? "step %d\n" : "ready\n", done);
        MUST(write(1, text, length) == length);
        snprintf(text, sizeof text, "/root/step-%d", done + 1);
        while (!zoo_forked() && access(text, F_OK) != 0) zoo_sleep_ms(2);
        if (zoo_forked()) break;
        step(done + 1);
    }
    /* Wherever it is forked, all is as it was, and can be written. */
    check("after a fork");
    for (long page = 0; page < PAGES; page += 3)
        if (first[page] != 0xff && (page < 6000 || page >= 6010)) fill(page, 1, 15);
    check("written after a fork");
    int status;
    while (wait(&status) > 0) MUST(status == 0);
    return zoo_ok();
}
