/* A directory tree that is too large to be copied in the stop, and that is written all the time:
   in place, at the end, through mappings, by other files of the same name, and under other names.
   All of it is compared at every step with what this process knows. */
#include "zoo.h"
#include <sys/mman.h>
#include <sys/stat.h>

enum { PAGES = 300, FILES = 400, BLOCKS = 200, KEPT = 64 };

static unsigned long counters[PAGES], mapped_now, blocks[BLOCKS], replaced, moved, log_lines;
static unsigned char *map;
static int map_fd = -1, block_fd, log_fd;

static void remap(void) {
    if (map) MUST(munmap(map, PAGES * 4096) == 0);
    if (map_fd >= 0) close(map_fd);
    MUST((map_fd = open("/root/tree/map", O_RDWR | O_CREAT, 0600)) >= 0);
    MUST(ftruncate(map_fd, PAGES * 4096) == 0);
    map = mmap(NULL, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, map_fd, 0);
    MUST(map != MAP_FAILED);
}

static void unmap(void) {
    MUST(munmap(map, PAGES * 4096) == 0);
    close(map_fd);
    map = NULL;
    map_fd = -1;
}

static void put(const char *path, unsigned long value) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0640);
    MUST(fd >= 0 && write(fd, &value, sizeof value) == sizeof value && close(fd) == 0);
}

static unsigned long get(const char *path) {
    unsigned long value = 0;
    int fd = open(path, O_RDONLY);
    MUST(fd >= 0 && read(fd, &value, sizeof value) == sizeof value && close(fd) == 0);
    return value;
}

static void check(void) {
    struct stat st, other;
    int fd = open("/root/tree/map", O_RDONLY);
    MUST(fd >= 0);
    for (int n = 0; n < PAGES; n++) {
        unsigned long value;
        MUST(pread(fd, &value, sizeof value, n * 4096L) == sizeof value);
        if (value != counters[n]) zoo_fail("page %d: %lu for %lu", n, value, counters[n]);
        if (map) MUST(memcmp(map + n * 4096L, &value, sizeof value) == 0);
    }
    close(fd);
    for (int n = 0; n < BLOCKS; n++) {
        unsigned long value;
        MUST(pread(block_fd, &value, sizeof value, n * 8192L) == sizeof value);
        if (value != blocks[n]) zoo_fail("block %d: %lu for %lu", n, value, blocks[n]);
    }
    MUST(stat("/root/tree/log", &st) == 0);
    MUST((unsigned long)st.st_size == log_lines * 100);
    MUST(get("/root/tree/replaced") == replaced);
    /* Both names are of one file, whichever they are now. */
    char a[64], b[64];
    sprintf(a, "/root/tree/a%lu", moved);
    sprintf(b, "/root/tree/sub/b%lu", moved);
    MUST(stat(a, &st) == 0 && stat(b, &other) == 0);
    MUST(st.st_ino == other.st_ino && st.st_nlink == 2);
    MUST(get(a) == moved && get(b) == moved);
    sprintf(a, "/root/tree/a%lu", moved - 1);
    MUST(access(a, F_OK) < 0 && errno == ENOENT);
}

/* The state of the tree changes in small steps; whatever a step left undone is known. */
static void step(unsigned long n) {
    if (n % 50 == 25) unmap();
    if (n % 50 == 30) remap();
    if (map) {
        int page = n * 7 % PAGES;
        counters[page]++;
        *(volatile unsigned long *)(map + page * 4096L) = counters[page];
    }
    int block = n % 20;
    blocks[block]++;
    MUST(pwrite(block_fd, &blocks[block], sizeof *blocks, block * 8192L) == sizeof *blocks);
    char line[100];
    memset(line, 'x', sizeof line);
    MUST(write(log_fd, line, sizeof line) == sizeof line);
    log_lines++;
    put("/root/tree/new", replaced + 1);
    replaced++;
    MUST(rename("/root/tree/new", "/root/tree/replaced") == 0);
    char from[64], to[64];
    const char *forms[] = {"/root/tree/a%lu", "/root/tree/sub/b%lu"};
    moved++;
    for (int f = 0; f < 2; f++) {
        sprintf(from, forms[f], moved - 1);
        sprintf(to, forms[f], moved);
        MUST(rename(from, to) == 0);
    }
    sprintf(to, forms[1], moved);
    int fd = open(to, O_WRONLY);
    MUST(fd >= 0 && pwrite(fd, &moved, sizeof moved, 0) == sizeof moved && close(fd) == 0);
}

int main(void) {
    char path[64];
    MUST(mkdir("/root/tree", 0755) == 0 && mkdir("/root/tree/sub", 0755) == 0);
    for (int n = 0; n < FILES; n++) {
        sprintf(path, "/root/tree/%s%d", n % 2 ? "sub/" : "", n);
        put(path, n);
    }
    remap();
    MUST((block_fd = open("/root/tree/blocks", O_RDWR | O_CREAT, 0600)) >= 0);
    MUST(ftruncate(block_fd, BLOCKS * 8192L) == 0);
    for (unsigned long n = 0; n < BLOCKS; n++) {
        blocks[n] = n;
        MUST(pwrite(block_fd, &n, sizeof n, n * 8192) == sizeof n);
    }
    MUST((log_fd = open("/root/tree/log", O_WRONLY | O_CREAT | O_APPEND, 0600)) >= 0);
    put("/root/tree/replaced", 0);
    put("/root/tree/a0", 0);
    MUST(link("/root/tree/a0", "/root/tree/sub/b0") == 0);
    moved = 0;
    unsigned long n = 0;
    for (; n < 20; n++) step(n);
    check();
    if (write(1, "ready\n", 6) != 6) _exit(2);
    while (!zoo_forked()) {
        step(n++);
        check();
    }
    for (int more = 0; more < 100; more++) {
        step(n++);
        check();
    }
    for (int f = 0; f < FILES; f++) {
        sprintf(path, "/root/tree/%s%d", f % 2 ? "sub/" : "", f);
        MUST(get(path) == (unsigned long)f);
    }
    return zoo_ok();
}
