/* What only a processor's registers hold, alive across the fork: in a loop and in a system call. */
#include "zoo.h"
#include <cpuid.h>
#include <pthread.h>

static unsigned char pattern[32][64];
static volatile int stop, spins;
static int wide;

static int has_avx512(void) {
    unsigned a, b, c, d, low, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return 0;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && b & bit_AVX512F && (low & 0xe6) == 0xe6;
}

static int has_avx(void) {
    unsigned a, b, c, d, low, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return 0;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return c & bit_AVX && (low & 6) == 6;
}

/* Sleeps in ppoll, or spins, with values in all vector registers and on the x87 stack. */
#define EACH16(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
#define UPPER16(X) X(16) X(17) X(18) X(19) X(20) X(21) X(22) X(23) X(24) X(25) X(26) X(27) X(28) X(29) X(30) X(31)

static void hold(unsigned char (*out)[64], int spin, uint64_t *mask_out) {
    uint32_t mxcsr = 0x1f80 | 3 << 13 | 1 << 15, mxcsr_out;
    uint16_t control = 0x0f7f, control_out;
    long double x[3] = {1.25L, -3.5e4000L, 7.0L / 3}, y[3];
    __asm__ volatile("fldcw %0\n fldt %1\n fldt %2\n fldt %3\n ldmxcsr %4"
                     : : "m"(control), "m"(x[0]), "m"(x[1]), "m"(x[2]), "m"(mxcsr));
    if (wide == 2) {
#define LOAD(n) "vmovdqu64 " #n "*64(%0), %%zmm" #n "\n"
        __asm__ volatile(EACH16(LOAD) UPPER16(LOAD)
                         "movw $0x5a5a, %%ax\n kmovw %%eax, %%k1\n kmovw %%eax, %%k7\n"
                         : : "r"(pattern) : "rax");
    } else if (wide == 1) {
#define LOAD_Y(n) "vmovdqu " #n "*64(%0), %%ymm" #n "\n"
        __asm__ volatile(EACH16(LOAD_Y) : : "r"(pattern));
    } else {
#define LOAD_X(n) "movdqu " #n "*64(%0), %%xmm" #n "\n"
        __asm__ volatile(EACH16(LOAD_X) : : "r"(pattern));
    }
    /* Until the other thread says so, with no call in between that could use a register. */
    if (spin) {
        __asm__ volatile("1: rdtsc\n incl %0\n cmpl $0, %1\n je 1b"
                         : "+m"(spins) : "m"(stop) : "rax", "rdx", "cc");
    } else {
        __asm__ volatile("1: mov $202, %%eax\n xor %%esi, %%esi\n xor %%edx, %%edx\n"
                         "xor %%r10d, %%r10d\n syscall\n cmpl $0, (%%rdi)\n je 1b"
                         : : "D"(&stop) : "rax", "rcx", "r11", "rsi", "rdx", "r10", "cc", "memory");
    }
    if (wide == 2) {
#define STORE(n) "vmovdqu64 %%zmm" #n ", " #n "*64(%0)\n"
        uint32_t k1, k7;
        __asm__ volatile(EACH16(STORE) UPPER16(STORE) : : "r"(out) : "memory");
        __asm__ volatile("kmovw %%k1, %0\n kmovw %%k7, %1" : "=r"(k1), "=r"(k7));
        *mask_out = k1 == 0x5a5a && k7 == 0x5a5a;
    } else if (wide == 1) {
#define STORE_Y(n) "vmovdqu %%ymm" #n ", " #n "*64(%0)\n"
        __asm__ volatile(EACH16(STORE_Y) : : "r"(out) : "memory");
    } else {
#define STORE_X(n) "movdqu %%xmm" #n ", " #n "*64(%0)\n"
        __asm__ volatile(EACH16(STORE_X) : : "r"(out) : "memory");
    }
    __asm__ volatile("fstpt %0\n fstpt %1\n fstpt %2\n fnstcw %3\n stmxcsr %4\n fninit"
                     : "=m"(y[2]), "=m"(y[1]), "=m"(y[0]), "=m"(control_out), "=m"(mxcsr_out));
    uint32_t usual = 0x1f80;
    __asm__ volatile("ldmxcsr %0" : : "m"(usual));
    if (wide) __asm__ volatile("vzeroupper");
    MUST(memcmp(&y[0], &x[0], 10) == 0 && memcmp(&y[1], &x[1], 10) == 0);
    MUST(memcmp(&y[2], &x[2], 10) == 0);
    MUST(control_out == control && (mxcsr_out & ~0x3fu) == mxcsr);
}

static void *run(void *spin) {
    unsigned char out[32][64] = {0};
    uint64_t masks = 1;
    hold(out, spin != NULL, &masks);
    int count = wide == 2 ? 32 : 16, bytes = wide == 2 ? 64 : wide == 1 ? 32 : 16;
    for (int n = 0; n < count; n++) MUST(memcmp(out[n], pattern[n], bytes) == 0);
    MUST(masks == 1);
    return NULL;
}

int main(void) {
    pthread_t threads[2];
    wide = has_avx512() ? 2 : has_avx();
    for (int n = 0; n < 32 * 64; n++) pattern[n / 64][n % 64] = (unsigned char)(n * 37 + n / 64);
    MUST(pthread_create(&threads[0], NULL, run, NULL) == 0);
    MUST(pthread_create(&threads[1], NULL, run, (void *)1) == 0);
    while (!spins) zoo_sleep_ms(1);
    zoo_sleep_ms(20);
    zoo_await_fork();
    stop = 1;
    while (pthread_tryjoin_np(threads[0], NULL) != 0) {
        syscall(202, &stop, 1, 1, NULL, NULL, 0);
        zoo_sleep_ms(1);
    }
    MUST(pthread_join(threads[1], NULL) == 0);
    return zoo_ok();
}
