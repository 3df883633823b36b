/* Private memory with properties: closed, reserved, locked, huge, named, dropped, sealed. */
#include "smaps.h"
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#define PAGE 4096
#define SIZE (4L << 20)
/* There is a limit on what may be locked. */
#define FEW (16L * PAGE)
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif
#define MAP_DROPPABLE_ 8

static char *map(size_t size, int protection, int flags) {
    char *at = mmap(NULL, size, protection, flags | MAP_ANONYMOUS, -1, 0);
    MUST(at != MAP_FAILED);
    return at;
}
static char *plain(size_t size) { return map(size, PROT_READ | PROT_WRITE, MAP_PRIVATE); }

static sigjmp_buf back;
static void on_fault(int signal) { siglongjmp(back, signal); }
static int faults(volatile char *at) {
    int signal = sigsetjmp(back, 1);
    if (signal == 0) (void)*at;
    return signal;
}

int main(void) {
    signal(SIGSEGV, on_fault);
    char *closed = plain(SIZE), *reserved = map(200L << 30, PROT_NONE, MAP_PRIVATE);
    memset(closed, 'c', SIZE);
    MUST(mprotect(closed + PAGE, SIZE - PAGE, PROT_NONE) == 0);
    MUST(mprotect(reserved + (100L << 30), PAGE, PROT_READ | PROT_WRITE) == 0);
    reserved[100L << 30] = 'r';
    char *written = map(PAGE, PROT_WRITE, MAP_PRIVATE);
    written[0] = 'w';
    /* Guards: in what has contents, and in what has none. */
    char *guarded = plain(SIZE), *empty = plain(SIZE);
    memset(guarded, 'g', SIZE);
    int guards = madvise(guarded + 2 * PAGE, 2 * PAGE, MADV_GUARD_INSTALL) == 0;
    if (guards) MUST(madvise(empty + PAGE, PAGE, MADV_GUARD_INSTALL) == 0);
    char *unforked = plain(SIZE), *wiped = plain(SIZE), *unused = plain(SIZE);
    memset(unforked, 'u', SIZE);
    memset(wiped, 'w', SIZE);
    MUST(madvise(unforked, SIZE, MADV_DONTFORK) == 0 && madvise(unused, SIZE, MADV_DONTFORK) == 0);
    MUST(madvise(wiped, SIZE, MADV_WIPEONFORK) == 0);
    char *huge = plain(SIZE), *small = plain(SIZE), *hidden = plain(PAGE);
    MUST(madvise(huge, SIZE, MADV_HUGEPAGE) == 0 && madvise(small, SIZE, MADV_NOHUGEPAGE) == 0);
    memset(huge, 'H', SIZE);
    MUST(madvise(hidden, PAGE, MADV_DONTDUMP) == 0);
    hidden[0] = 'd';
    char *locked = plain(16 * PAGE), *on_fault_only = plain(16 * PAGE);
    locked[0] = on_fault_only[0] = 'l';
    MUST(mlock(locked, 16 * PAGE) == 0);
    MUST(mlock2(on_fault_only, 16 * PAGE, MLOCK_ONFAULT) == 0);
    MUST(mlockall(MCL_FUTURE | MCL_ONFAULT) == 0);
    char *droppable = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_DROPPABLE_ | MAP_ANONYMOUS, -1, 0);
    if (droppable != MAP_FAILED) droppable[0] = 'd';
    char *dropped = plain(FEW), *unreserved = map(FEW, PROT_READ | PROT_WRITE,
                                                  MAP_PRIVATE | MAP_NORESERVE | MAP_POPULATE);
    memset(dropped, 'd', FEW);
    MUST(munlockall() == 0);
    MUST(mlock(locked, 16 * PAGE) == 0);
    MUST(mlock2(on_fault_only, 16 * PAGE, MLOCK_ONFAULT) == 0);
    MUST(mlockall(MCL_FUTURE) == 0);
    char *sealed = plain(PAGE);
    sealed[0] = 's';
    int seals = syscall(462, sealed, PAGE, 0) == 0;
    MUST(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) == 0);
    prctl(0x53564d41, 0, small, SIZE, "a name");

    zoo_await_fork();

    MUST(closed[0] == 'c' && faults(closed + PAGE) == SIGSEGV);
    MUST(mprotect(closed, SIZE, PROT_READ | PROT_WRITE) == 0);
    for (long i = 0; i < SIZE; i++) MUST(closed[i] == 'c');
    MUST(reserved[100L << 30] == 'r' && faults(reserved) && faults(reserved + (200L << 30) - 1));
    MUST(mprotect(written, PAGE, PROT_READ) == 0 && written[0] == 'w');
    if (guards) {
        MUST(guarded[2 * PAGE - 1] == 'g' && guarded[4 * PAGE] == 'g');
        MUST(faults(guarded + 2 * PAGE) && faults(guarded + 4 * PAGE - 1));
        MUST(faults(empty + PAGE) && !faults(empty) && !faults(empty + 2 * PAGE));
        MUST(madvise(guarded, SIZE, 103) == 0 && guarded[2 * PAGE] == 0);
    }
    for (long i = 0; i < SIZE; i++) MUST(unforked[i] == 'u');
    MUST(smaps_has(unforked, "dc") && smaps_has(unused, "dc") && !smaps_has(huge, "dc"));
    /* Zeros in a clone; what it was in the original. */
    for (long i = 1; i < SIZE; i++) MUST(wiped[i] == wiped[0]);
    MUST((wiped[0] == 'w' || wiped[0] == 0) && smaps_has(wiped, "wf"));
    for (long i = 0; i < SIZE; i++) MUST(huge[i] == 'H');
    MUST(smaps_has(huge, "hg") && smaps_has(small, "nh") && smaps_has(hidden, "dd"));
    MUST(hidden[0] == 'd');
    MUST(smaps_has(locked, "lo") && !smaps_has(locked, "lf") && locked[0] == 'l');
    MUST(smaps_has(on_fault_only, "lf") && on_fault_only[0] == 'l');
    MUST(!smaps_has(huge, "lo"));
    char *later = plain(PAGE);
    MUST(smaps_has(later, "lo") && !smaps_has(later, "lf"));
    if (droppable != MAP_FAILED) MUST(smaps_has(droppable, "dp"));
    MUST(smaps_has(unreserved, "nr") && unreserved[FEW - 1] == 0);
    if (seals) MUST(mprotect(sealed, PAGE, PROT_READ) < 0 && errno == EPERM && sealed[0] == 's');
    MUST(prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0) == 1);
    /* What is let go of comes back as zeros. */
    MUST(munlockall() == 0 && madvise(dropped + PAGE, FEW - 2 * PAGE, MADV_DONTNEED) == 0);
    MUST(dropped[0] == 'd' && dropped[FEW - 1] == 'd');
    for (long i = PAGE; i < FEW - PAGE; i++) MUST(dropped[i] == 0);
    return zoo_ok();
}
