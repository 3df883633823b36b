/* Files and directories that were deleted while they are open. */
#include "zoo.h"
#include <dirent.h>
#include <sys/stat.h>
#include <sys/wait.h>

static void in(const char *dir) {
    char path[100];
    snprintf(path, sizeof path, "%s/gone", dir);
    int file = open(path, O_RDWR | O_CREAT | O_APPEND, 0640), reader = open(path, O_RDONLY);
    int writer = open(path, O_WRONLY);
    MUST(write(file, "deleted", 7) == 7 && lseek(reader, 3, SEEK_SET) == 3);
    MUST(ftruncate(file, 1 << 20) == 0 && fchown(file, 0, 0) == 0 && fchmod(file, 0604) == 0);
    MUST(unlink(path) == 0);
    snprintf(path, sizeof path, "%s/alone", dir);
    int alone = open(path, O_WRONLY | O_CREAT, 0200);
    MUST(write(alone, "alone", 5) == 5 && unlink(path) == 0);
    int place = open(dir, O_RDONLY), nameless = open(dir, O_RDWR | O_TMPFILE, 0600);
    MUST(nameless >= 0 && write(nameless, "nameless", 8) == 8);
    int never = open(dir, O_RDWR | O_TMPFILE | O_EXCL, 0600);
    pid_t child = fork();
    if (child == 0) {
        while (!zoo_forked()) zoo_sleep_ms(2);
        MUST(pwrite(writer, "D", 1, 0) == 1);
        _exit(0);
    }
    /* A directory that is removed, and with it the one in it. */
    snprintf(path, sizeof path, "%s/outer", dir);
    MUST(mkdir(path, 0700) == 0);
    int outer = open(path, O_RDONLY | O_DIRECTORY);
    snprintf(path, sizeof path, "%s/outer/inner", dir);
    MUST(mkdir(path, 0700) == 0 && chdir(path) == 0 && rmdir(path) == 0);
    snprintf(path, sizeof path, "%s/outer", dir);
    MUST(rmdir(path) == 0);

    zoo_await_fork();

    int status;
    MUST(waitpid(child, &status, 0) == child && status == 0);
    char text[16] = {0};
    MUST(read(reader, text, 4) == 4 && memcmp(text, "eted", 4) == 0);
    MUST(pread(reader, text, 7, 0) == 7 && memcmp(text, "Deleted", 7) == 0);
    struct stat stat, other;
    MUST(fstat(file, &stat) == 0 && stat.st_size == 1 << 20 && stat.st_nlink == 0);
    MUST((stat.st_mode & 0777) == 0604 && stat.st_blocks < 100);
    MUST(fstat(reader, &other) == 0 && other.st_ino == stat.st_ino);
    MUST(write(file, "end", 3) == 3 && pread(reader, text, 3, 1 << 20) == 3);
    MUST(memcmp(text, "end", 3) == 0 && write(reader, "x", 1) < 0 && errno == EBADF);
    MUST(fstat(alone, &stat) == 0 && stat.st_size == 5 && write(alone, "!", 1) == 1);
    snprintf(path, sizeof path, "%s/gone", dir);
    MUST(access(path, F_OK) < 0 && errno == ENOENT);
    /* What never had a name gets one now. */
    snprintf(path, sizeof path, "/proc/self/fd/%d", nameless);
    MUST(linkat(AT_FDCWD, path, place, "named", AT_SYMLINK_FOLLOW) == 0);
    int named = openat(place, "named", O_RDONLY);
    MUST(read(named, text, 8) == 8 && memcmp(text, "nameless", 8) == 0);
    snprintf(path, sizeof path, "/proc/self/fd/%d", never);
    MUST(write(never, "x", 1) == 1);
    MUST(getcwd(text, sizeof text) == NULL && errno == ENOENT);
    MUST(open("new", O_CREAT | O_RDWR, 0600) < 0 && errno == ENOENT);
    MUST(fstat(outer, &stat) == 0 && stat.st_nlink == 0 && S_ISDIR(stat.st_mode));
    MUST(chdir("/") == 0);
}

int main(void) {
    MUST(getenv("ZOO"));
    in(getenv("ZOO"));
    return zoo_ok();
}
