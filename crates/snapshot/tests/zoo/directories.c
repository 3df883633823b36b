/* Directories that are being read: nothing is seen twice and nothing is missed. */
#include "zoo.h"
#include <dirent.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#define FILES 400

static char seen[3][FILES];

static void forget(void) { memset(seen, 0, sizeof seen); }

/* Reads about this many bytes of entries. */
static int some(int fd, int which, size_t bytes) {
    char buffer[4096];
    int length = syscall(SYS_getdents64, fd, buffer, bytes);
    MUST(length >= 0);
    for (int at = 0; at < length;) {
        struct dirent64 *entry = (struct dirent64 *)(buffer + at);
        int n;
        if (sscanf(entry->d_name, "file%d", &n) == 1) if (seen[which][n]++) zoo_fail("directory %d: file%d comes twice", which, n);
        at += entry->d_reclen;
    }
    return length;
}

int main(void) {
    static const char *dirs[] = {"/root/many", "/tmp/many", "/usr/bin"};
    int fd[3];
    for (int d = 0; d < 3; d++) {
        char path[64];
        if (d < 2) MUST(mkdir(dirs[d], 0700) == 0);
        for (int n = 0; d < 2 && n < FILES; n++) {
            snprintf(path, sizeof path, "%s/file%d", dirs[d], n);
            MUST(close(open(path, O_CREAT | O_WRONLY, 0600)) == 0);
        }
        MUST((fd[d] = open(dirs[d], O_RDONLY | O_DIRECTORY)) >= 0);
        /* In memory, a copy has another order: it can only be gone on with at its end. */
        int all = d == 1 && !getenv("ZOO");
        for (int n = 0; all || n < 4; n++)
            if (some(fd[d], d, 1000) == 0) break;
    }
    zoo_await_fork();
    for (int d = 0; d < 3; d++) {
        while (some(fd[d], d, 1000) > 0) {}
        for (int n = 0; d < 2 && n < FILES; n++)
            if (!seen[d][n]) zoo_fail("%s/file%d was missed", dirs[d], n);
    }
    forget();
    for (int d = 0; d < 3; d++) MUST(lseek(fd[d], 0, SEEK_SET) == 0 && some(fd[d], d, 1000) > 0);
    return zoo_ok();
}
