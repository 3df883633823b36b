/* Shared anonymous memory: one object in several mappings and processes, in parts and moved. */
#include "zoo.h"
#include <sys/mman.h>
#include <sys/wait.h>

#define SIZE (8L << 20)
#define VAST (64L << 30)

static char *map_shared(size_t size) {
    char *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE,
                    -1, 0);
    MUST(at != MAP_FAILED);
    return at;
}

int main(void) {
    char *one = map_shared(SIZE), *vast = map_shared(VAST), *empty = map_shared(SIZE);
    /* Once more somewhere else, and parts of it in other places and ways. */
    char *twin = mremap(one, 0, SIZE, MREMAP_MAYMOVE);
    MUST(twin != MAP_FAILED);
    MUST(munmap(twin + 4096, 4096) == 0 && mprotect(twin + 8192, 4096, PROT_NONE) == 0);
    MUST(mprotect(twin + 3 * 4096, 4096, PROT_READ) == 0);
    int zero = open("/dev/zero", O_RDWR);
    char *device = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_SHARED, zero, 0);
    MUST(device != MAP_FAILED && close(zero) == 0);
    strcpy(device, "device");
    volatile int *turn = (volatile int *)one;
    /* Written by a child that is gone: no page of it is in this process's tables. */
    pid_t child = fork();
    if (child == 0) {
        memset(one + 4096, 'c', SIZE - 4096);
        strcpy(vast + (40L << 30), "far");
        _exit(0);
    }
    MUST(waitpid(child, NULL, 0) == child);
    child = fork();
    if (child == 0) {
        /* Has it at another address only, from the second half on. */
        char *half = mremap(one + SIZE / 2, SIZE / 2, SIZE / 2, MREMAP_MAYMOVE | MREMAP_FIXED,
                            vast);
        MUST(half == vast);
        while (!zoo_forked()) zoo_sleep_ms(2);
        while (*(volatile char *)half != '1') zoo_sleep_ms(1);
        half[1] = '2';
        MUST(strcmp(device, "device") == 0);
        _exit(0);
    }
    zoo_await_fork();
    MUST(*turn == 0);
    for (long i = 4096; i < SIZE; i++) MUST(one[i] == 'c');
    for (long i = 3 * 4096; i < SIZE; i++) MUST(twin[i] == 'c');
    unsigned char there;
    MUST(mincore(twin + 4096, 4096, &there) < 0 && errno == ENOMEM);
    MUST(strcmp(vast + (40L << 30), "far") == 0);
    /* What nobody wrote takes no memory. */
    MUST(mincore(vast + (20L << 30), 4096, &there) == 0 && !(there & 1));
    for (long i = 0; i < SIZE; i += 4096) MUST(empty[i] == 0);
    one[SIZE / 2] = '1';
    while (twin[SIZE / 2 + 1] != '2') zoo_sleep_ms(1);
    int status;
    MUST(waitpid(child, &status, 0) == child && status == 0);
    /* The part that is closed, and the one that is read-only. */
    int pipes[2];
    MUST(pipe(pipes) == 0 && write(pipes[1], twin + 8192, 1) < 0 && errno == EFAULT);
    MUST(write(pipes[1], "x", 1) == 1);
    MUST(read(pipes[0], twin + 3 * 4096, 1) < 0 && errno == EFAULT);
    MUST(mprotect(twin + 8192, 8192, PROT_READ | PROT_WRITE) == 0);
    twin[8192] = 'w';
    MUST(one[8192] == 'w');
    return zoo_ok();
}
