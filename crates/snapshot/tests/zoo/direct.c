/* Memory that a device fills: a file is read past the page cache, again and again, while a fork
   comes; what each read gives is looked at. */
#include "zoo.h"
#include <sys/mman.h>

enum { BLOCK = 4096, LENGTH = 8 << 20 };

static uint64_t *buffer;

/* Each block of the file has its own number in every word. */
static void look(uint64_t first) {
    for (size_t n = 0; n < LENGTH / 2 / sizeof *buffer; n++)
        if (buffer[n] != first + n * sizeof *buffer / BLOCK)
            zoo_fail("word %zu of a read at block %lu is %lu", n, (long)first, (long)buffer[n]);
}

int main(void) {
    buffer = mmap(NULL, LENGTH, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(buffer != MAP_FAILED);
    for (size_t n = 0; n < LENGTH / sizeof *buffer; n++) buffer[n] = n * sizeof *buffer / BLOCK;
    int file = open("/root/blocks", O_RDWR | O_CREAT, 0600);
    MUST(file >= 0 && write(file, buffer, LENGTH) == LENGTH && fsync(file) == 0);
    MUST(close(file) == 0);
    /* Not every file system has such reads. */
    file = open("/root/blocks", O_RDONLY | O_DIRECT);
    if (file < 0) file = open("/root/blocks", O_RDONLY);
    MUST(file >= 0 && write(1, "ready\n", 6) == 6);
    for (uint64_t n = 0, after = 0; after < 20; n++) {
        uint64_t first = n * 7919 % (LENGTH / 2 / BLOCK);
        MUST(pread(file, buffer, LENGTH / 2, first * BLOCK) == LENGTH / 2);
        look(first);
        after += zoo_forked();
    }
    return zoo_ok();
}
