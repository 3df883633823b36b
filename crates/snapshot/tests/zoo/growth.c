/* Memory that grows after the fork: heap, stacks, moved mappings; code that is made; the vDSO. */
#include "smaps.h"
#include <stddef.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#define PAGE 4096

static long deep(int depth) {
    volatile char frame[16384];
    frame[0] = frame[16383] = (char)depth;
    return depth == 0 ? 0 : frame[0] - (char)depth + 1 + deep(depth - 1);
}

extern const ptrdiff_t __rseq_offset;
extern const unsigned int __rseq_size;

int main(void) {
    char *brk = sbrk(0);
    MUST(sbrk(3 * PAGE) == brk);
    memset(brk, 'b', 3 * PAGE);
    char *moved = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *wall = mmap(moved + PAGE, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(moved != MAP_FAILED && wall != MAP_FAILED);
    strcpy(moved, "moved");
    /* mov eax, 42; ret */
    static const unsigned char code[] = {0xb8, 42, 0, 0, 0, 0xc3};
    unsigned char *made = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memcpy(made, code, sizeof code);
    MUST(mprotect(made, PAGE, PROT_READ | PROT_EXEC) == 0);
    unsigned char *both = mmap(NULL, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC,
                               MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memcpy(both, code, sizeof code);
    char *room = mmap(NULL, 8 << 20, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(room != MAP_FAILED && munmap(room, 8 << 20) == 0);
    char *top = room + (8 << 20) - 4 * PAGE;
    char *stack = mmap(top, 4 * PAGE, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED_NOREPLACE, -1, 0);
    MUST(stack == top);
    stack[0] = 's';
    struct timespec before, after;
    clock_gettime(CLOCK_MONOTONIC, &before);
    volatile unsigned *rseq = (unsigned *)((char *)__builtin_thread_pointer() + __rseq_offset);
    zoo_await_fork();
    clock_gettime(CLOCK_MONOTONIC, &after);
    /* A stack of its own kind, page by page. */
    for (char *at = stack; at > stack - (1 << 20); at -= PAGE) *(volatile char *)at = 'g';
    MUST(stack[0] == 'g' && stack[1 - (1 << 20)] == 0);
    MUST(after.tv_sec > before.tv_sec ||
         (after.tv_sec == before.tv_sec && after.tv_nsec > before.tv_nsec));
    struct timespec real;
    MUST(syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &real) == 0);
    MUST(real.tv_sec - after.tv_sec <= 10 && real.tv_sec >= after.tv_sec);
    MUST(((int (*)(void))made)() == 42 && ((int (*)(void))both)() == 42);
    both[1] = 43;
    MUST(((int (*)(void))both)() == 43);
    for (int i = 0; i < 3 * PAGE; i++) MUST(brk[i] == 'b');
    MUST(sbrk(64 << 20) == brk + 3 * PAGE && brk[3 * PAGE] == 0);
    memset(brk, 'B', (64 << 20) + 3 * PAGE);
    MUST(sbrk(-(64 << 20)) != (void *)-1 && sbrk(0) == brk + 3 * PAGE);
    char *now = mremap(moved, PAGE, 32 << 20, MREMAP_MAYMOVE);
    MUST(now != MAP_FAILED && now != moved && strcmp(now, "moved") == 0 && now[(32 << 20) - 1] == 0);
    /* 6 MiB of frames. */
    MUST(deep(400) == 400);
    /* The kernel tells the thread which processor it runs on. */
    MUST(__rseq_size > 0);
    unsigned cpu = rseq[1];
    MUST(cpu < 4096);
    MUST(syscall(SYS_rseq, rseq, 32, 0, 0) < 0);
    return zoo_ok();
}
