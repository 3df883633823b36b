/* Open files of many kinds, with what each has for itself. */
#include "zoo.h"
#include <sys/stat.h>

static void must_link(int fd, const char *name) {
    char link[64], path[300] = {0};
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    MUST(readlink(link, path, sizeof path - 1) > 0);
    if (strcmp(path, name) != 0) zoo_fail("%s is %s", name, path);
}

int main(void) {
    int appended = open("/root/log", O_WRONLY | O_CREAT | O_APPEND, 0600);
    MUST(write(appended, "one ", 4) == 4);
    int beyond = open("/root/beyond", O_RDWR | O_CREAT, 0600);
    MUST(lseek(beyond, 5L << 32, SEEK_SET) == 5L << 32);
    int sparse = open("/root/sparse", O_RDWR | O_CREAT | O_NOATIME | O_SYNC | O_NONBLOCK, 0600);
    MUST(pwrite(sparse, "end", 3, 3L << 30) == 3);
    int in_tmp = open("/tmp/file", O_RDWR | O_CREAT | O_EXCL | O_TRUNC, 0600);
    MUST(write(in_tmp, "memory", 6) == 6);
    /* What their modes would no longer let this user open. */
    int closed = open("/root/closed", O_RDWR | O_CREAT, 0000);
    MUST(write(closed, "closed", 6) == 6 && fchmod(closed, 0) == 0);
    const char *odd = "/root/\xff \n\x01\\x (deleted)";
    int named = open(odd, O_RDWR | O_CREAT, 0600);
    MUST(named >= 0 && write(named, "odd", 3) == 3);
    int moved = open("/root/before", O_RDWR | O_CREAT, 0600);
    MUST(write(moved, "moved", 5) == 5 && rename("/root/before", "/root/behind") == 0);
    int two = open("/root/two", O_RDWR | O_CREAT, 0600);
    MUST(write(two, "linked", 6) == 6 && link("/root/two", "/tmp/../root/other") == 0);
    MUST(unlink("/root/two") == 0);
    /* Places. */
    MUST(mkdir("/root/dir", 0700) == 0 && symlink("file", "/root/link") == 0);
    MUST(mkfifo("/root/pipe", 0600) == 0);
    int directory = open("/root/dir", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int place = open("/root/dir", O_PATH), link = open("/root/link", O_PATH | O_NOFOLLOW);
    int pipe_place = open("/root/pipe", O_PATH), file_place = open("/root/log", O_PATH);
    /* Devices. */
    static const char *devices[] = {"null", "zero", "full", "random", "urandom"};
    int device[5];
    for (int n = 0; n < 5; n++) {
        char path[32];
        snprintf(path, sizeof path, "/dev/%s", devices[n]);
        MUST((device[n] = open(path, O_RDWR)) >= 0);
    }
    int info = open("/proc/meminfo", O_RDONLY), image = open("/usr/bin/env", O_RDONLY);
    char byte[8];
    MUST(pread(image, byte, 4, 0) == 4 && lseek(image, 1, SEEK_SET) == 1);
    struct stat first, now;
    MUST(fstat(moved, &first) == 0);

    zoo_await_fork();

    char text[16] = {0};
    MUST(lseek(appended, 0, SEEK_CUR) == 4 && write(appended, "two", 3) == 3);
    MUST(fcntl(appended, F_GETFL) & O_APPEND);
    int log = open("/root/log", O_RDONLY);
    MUST(read(log, text, 16) == 7 && memcmp(text, "one two", 7) == 0);
    MUST(lseek(beyond, 0, SEEK_CUR) == 5L << 32 && write(beyond, "x", 1) == 1);
    MUST(fstat(beyond, &now) == 0 && now.st_size == (5L << 32) + 1 && now.st_blocks < 100);
    MUST(fstat(sparse, &now) == 0 && now.st_size == (3L << 30) + 3 && now.st_blocks < 100);
    int flags = O_NOATIME | O_SYNC | O_NONBLOCK;
    MUST((fcntl(sparse, F_GETFL) & flags) == flags);
    MUST(pread(sparse, text, 3, 3L << 30) == 3 && memcmp(text, "end", 3) == 0);
    MUST(pread(in_tmp, text, 6, 0) == 6 && memcmp(text, "memory", 6) == 0);
    must_link(in_tmp, "/tmp/file");
    MUST(pread(closed, text, 6, 0) == 6 && memcmp(text, "closed", 6) == 0);
    MUST(fstat(closed, &now) == 0 && (now.st_mode & 0777) == 0);
    must_link(named, odd);
    MUST(pread(named, text, 3, 0) == 3 && memcmp(text, "odd", 3) == 0);
    must_link(moved, "/root/behind");
    MUST(fstat(moved, &now) == 0 && now.st_mtim.tv_nsec == first.st_mtim.tv_nsec);
    int other = open("/root/other", O_RDONLY);
    MUST(pwrite(two, "L", 1, 0) == 1 && read(other, text, 6) == 6 && memcmp(text, "Linked", 6) == 0);
    MUST(fstat(two, &now) == 0 && fstat(other, &first) == 0 && now.st_ino == first.st_ino);
    must_link(directory, "/root/dir");
    MUST(fcntl(directory, F_GETFD) == FD_CLOEXEC && fcntl(place, F_GETFD) == 0);
    int inside = openat(directory, "new", O_RDWR | O_CREAT, 0600);
    MUST(inside >= 0 && faccessat(place, "new", F_OK, 0) == 0);
    MUST(fcntl(place, F_GETFL) & O_PATH && fcntl(link, F_GETFL) & O_PATH);
    MUST(readlinkat(link, "", text, 16) == 4 && memcmp(text, "file", 4) == 0);
    MUST(fstat(pipe_place, &now) == 0 && S_ISFIFO(now.st_mode));
    must_link(file_place, "/root/log");
    MUST(read(file_place, text, 1) < 0 && errno == EBADF);
    MUST(read(device[0], text, 1) == 0 && write(device[2], "x", 1) < 0 && errno == ENOSPC);
    MUST(read(device[1], text, 1) == 1 && text[0] == 0 && read(device[4], text, 8) == 8);
    MUST(read(info, text, 3) == 3 && memcmp(text, "Mem", 3) == 0);
    MUST(read(image, text, 3) == 3 && memcmp(text, byte + 1, 3) == 0);
    return zoo_ok();
}
