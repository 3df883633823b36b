/* POSIX shared memory: named, unlinked, mapped, and shared with a child. */
#include "zoo.h"
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

static char *map(int fd) {
    char *at = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    MUST(at != MAP_FAILED);
    return at;
}

int main(void) {
    int named = shm_open("/named", O_RDWR | O_CREAT, 0600);
    int unlinked = shm_open("/unlinked", O_RDWR | O_CREAT, 0600);
    int mapped = shm_open("/mapped", O_RDWR | O_CREAT, 0640);
    MUST(ftruncate(named, 65536) == 0 && ftruncate(unlinked, 65536) == 0);
    MUST(ftruncate(mapped, 65536) == 0);
    char *one = map(named), *two = map(unlinked), *three = map(mapped);
    MUST(shm_unlink("/unlinked") == 0 && shm_unlink("/mapped") == 0 && close(mapped) == 0);
    strcpy(one, "named");
    strcpy(two + 4096, "unlinked");
    pid_t child = fork();
    if (child == 0) {
        strcpy(three + 9000, "mapped");
        while (!zoo_forked()) zoo_sleep_ms(2);
        while (*(volatile char *)(two + 100) != '1') zoo_sleep_ms(1);
        one[200] = two[200] = three[200] = 'c';
        _exit(0);
    }
    while (*(volatile char *)(three + 9005) != 'd') zoo_sleep_ms(1);
    zoo_await_fork();
    MUST(strcmp(one, "named") == 0 && strcmp(two + 4096, "unlinked") == 0);
    MUST(strcmp(three + 9000, "mapped") == 0 && three[0] == 0);
    two[100] = '1';
    int status;
    MUST(waitpid(child, &status, 0) == child && status == 0);
    MUST(one[200] == 'c' && two[200] == 'c' && three[200] == 'c');
    struct stat stat;
    MUST(fstat(unlinked, &stat) == 0 && stat.st_nlink == 0 && stat.st_size == 65536);
    char text[10];
    MUST(pread(unlinked, text, 9, 4096) == 9 && strcmp(text, "unlinked") == 0);
    MUST(access("/dev/shm/unlinked", F_OK) < 0 && access("/dev/shm/named", F_OK) == 0);
    int again = shm_open("/named", O_RDWR, 0);
    MUST(pread(again, text, 6, 0) == 6 && strcmp(text, "named") == 0);
    MUST(pwrite(again, "changed", 7, 0) == 7 && memcmp(one, "changed", 7) == 0);
    return zoo_ok();
}
