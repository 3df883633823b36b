/* Files of a volume: open, mapped and locked together with others. The original and its clones
   write to the same. */
#include "zoo.h"
#include <sys/file.h>
#include <sys/mman.h>

int main(void) {
    int fd = open("/volume/file", O_RDWR | O_CREAT | O_APPEND, 0600);
    MUST(fd >= 0 && ftruncate(fd, 4096) == 0 && flock(fd, LOCK_SH) == 0);
    char *shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    MUST(shared != MAP_FAILED && lseek(fd, 7, SEEK_SET) == 7);
    zoo_await_fork();
    MUST(lseek(fd, 0, SEEK_CUR) == 7);
    __sync_fetch_and_add((int *)shared, 1);
    /* Until the original and both clones have been here. */
    while (*(volatile int *)shared < 3) zoo_sleep_ms(1);
    int other = open("/volume/file", O_RDWR);
    MUST(flock(other, LOCK_EX | LOCK_NB) < 0 && errno == EWOULDBLOCK);
    return zoo_ok();
}
