/* Files of memfd_create: open, mapped, sealed, shared between processes; contents, size, position. */
#include "zoo.h"
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

static void must_be(int fd, const char *name) {
    char link[64], path[128] = {0};
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    MUST(readlink(link, path, sizeof path - 1) > 0 && strcmp(path, name) == 0);
}

int main(void) {
    int open_one = memfd_create("an open one", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    MUST(ftruncate(open_one, 3 << 20) == 0 && pwrite(open_one, "end", 3, (3 << 20) - 3) == 3);
    MUST(write(open_one, "start", 5) == 5);
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", open_one);
    int again = open(path, O_RDONLY);
    MUST(again >= 0 && lseek(again, 1, SEEK_SET) == 1 && fchmod(open_one, 0640) == 0);
    char *shared = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, open_one, 0);
    char *private = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE, open_one, 0);
    MUST(shared != MAP_FAILED && private != MAP_FAILED);
    private[4096] = 'p';
    /* Sealed: against everything; and against new writers alone, with one that is mapped. */
    int sealed = memfd_create("sealed", MFD_ALLOW_SEALING), future = memfd_create("f", MFD_ALLOW_SEALING);
    int all = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL;
    MUST(write(sealed, "sealed", 6) == 6 && fcntl(sealed, F_ADD_SEALS, all) == 0);
    MUST(ftruncate(future, 4096) == 0);
    char *writer = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, future, 0);
    MUST(writer != MAP_FAILED && fcntl(future, F_ADD_SEALS, 0x10 | F_SEAL_SEAL) == 0);
    strcpy(writer, "before");
    int unsealable = memfd_create("unsealable", 0);
    /* Mapped only, by this process and a child, and a part that a child alone wrote. */
    int gone = memfd_create("gone", 0);
    MUST(ftruncate(gone, 1 << 20) == 0);
    char *mapped = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, gone, 0);
    MUST(mapped != MAP_FAILED && close(gone) == 0);
    pid_t child = fork();
    if (child == 0) {
        mapped[500000] = 'c';
        while (!zoo_forked()) zoo_sleep_ms(2);
        while (*(volatile char *)mapped != '1') zoo_sleep_ms(1);
        mapped[1] = '2';
        MUST(pwrite(open_one, "child", 5, 100) == 5);
        _exit(0);
    }
    while (*(volatile char *)(mapped + 500000) != 'c') zoo_sleep_ms(1);
    zoo_await_fork();
    char text[16] = {0};
    must_be(open_one, "/memfd:an open one (deleted)");
    MUST(lseek(open_one, 0, SEEK_CUR) == 5 && lseek(again, 0, SEEK_CUR) == 1);
    MUST(read(again, text, 4) == 4 && memcmp(text, "tart", 4) == 0);
    MUST(write(again, "x", 1) < 0 && errno == EBADF);
    struct stat stat;
    MUST(fstat(open_one, &stat) == 0 && stat.st_size == 3 << 20 && (stat.st_mode & 07777) == 0640);
    MUST(stat.st_blocks < 100);
    MUST(pread(open_one, text, 3, (3 << 20) - 3) == 3 && memcmp(text, "end", 3) == 0);
    MUST(fcntl(open_one, F_GETFD) == FD_CLOEXEC && fcntl(again, F_GETFD) == 0);
    MUST(fcntl(open_one, F_GET_SEALS) == 0);
    MUST(memcmp(shared, "start", 5) == 0 && private[4096] == 'p' && private[0] == 's');
    shared[7] = 's';
    MUST(pread(open_one, text, 1, 7) == 1 && text[0] == 's' && private[7] == 's');
    MUST(pread(open_one, text, 1, 4096) == 1 && text[0] == 0);
    MUST(fcntl(sealed, F_GET_SEALS) == all && write(sealed, "x", 1) < 0 && errno == EPERM);
    MUST(pread(sealed, text, 6, 0) == 6 && memcmp(text, "sealed", 6) == 0);
    MUST(fcntl(future, F_GET_SEALS) == (0x10 | F_SEAL_SEAL) && strcmp(writer, "before") == 0);
    strcpy(writer, "after");
    MUST(pread(future, text, 6, 0) == 6 && strcmp(text, "after") == 0);
    MUST(write(future, "x", 1) < 0 && errno == EPERM);
    MUST(fcntl(unsealable, F_GET_SEALS) == F_SEAL_SEAL);
    MUST(mapped[500000] == 'c' && mapped[0] == 0);
    mapped[0] = '1';
    while (*(volatile char *)(mapped + 1) != '2') zoo_sleep_ms(1);
    int status;
    MUST(waitpid(child, &status, 0) == child && status == 0);
    MUST(pread(open_one, text, 5, 100) == 5 && memcmp(text, "child", 5) == 0);
    MUST(memcmp(shared + 100, "child", 5) == 0);
    return zoo_ok();
}
