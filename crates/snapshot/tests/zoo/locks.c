/* Locks of three kinds, on three file systems, held by one process against another. */
#include "zoo.h"
#include <sys/file.h>
#include <sys/wait.h>

static int file(const char *dir, const char *name) {
    char path[64];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    int fd = open(path, O_RDWR | O_CREAT, 0600);
    MUST(fd >= 0);
    return fd;
}

static int range(int fd, int command, int type, long start, long length) {
    struct flock lock = {.l_type = type, .l_start = start, .l_len = length};
    return fcntl(fd, command, &lock);
}

/* Whether somebody else's lock is in the way. */
static int held(int fd, int type, long start, long length) {
    struct flock lock = {.l_type = type, .l_start = start, .l_len = length};
    MUST(fcntl(fd, F_OFD_GETLK, &lock) == 0);
    return lock.l_type != F_UNLCK;
}

int main(void) {
    static const char *dirs[] = {"/root", "/tmp", "/dev/shm"};
    int whole[3], shared[3], own[3], open_own[3], waited[3];
    int ready[2], go[2];
    MUST(pipe(ready) == 0 && pipe(go) == 0);
    for (int d = 0; d < 3; d++) {
        whole[d] = file(dirs[d], "whole");
        MUST(flock(whole[d], LOCK_EX) == 0);
        shared[d] = file(dirs[d], "shared");
        MUST(flock(shared[d], LOCK_SH) == 0);
        own[d] = file(dirs[d], "own");
        dup(own[d]);
        MUST(range(own[d], F_SETLK, F_WRLCK, 0, 10) == 0);
        MUST(range(own[d], F_SETLK, F_RDLCK, 100, 0) == 0);
        open_own[d] = file(dirs[d], "open");
        MUST(range(open_own[d], F_OFD_SETLK, F_WRLCK, 5, 5) == 0);
        waited[d] = file(dirs[d], "waited");
        MUST(range(waited[d], F_SETLK, F_WRLCK, 0, 0) == 0);
    }
    /* Mapped as well: to let go of what it was mapped by ends no lock. */
    pid_t child = fork();
    if (child == 0) {
        char byte;
        int other = file("/root", "child");
        MUST(range(other, F_SETLK, F_WRLCK, 3, 1) == 0);
        MUST(write(ready[1], "r", 1) == 1);
        for (int d = 0; d < 3; d++) {
            MUST(range(waited[d], F_SETLKW, F_WRLCK, 0, 0) == 0);
            MUST(write(ready[1], "l", 1) == 1);
        }
        MUST(read(go[0], &byte, 1) == 1);
        _exit(0);
    }
    char byte;
    MUST(read(ready[0], &byte, 1) == 1);

    zoo_await_fork();

    for (int d = 0; d < 3; d++) {
        int fd = file(dirs[d], "whole");
        MUST(flock(fd, LOCK_SH | LOCK_NB) < 0 && errno == EWOULDBLOCK);
        MUST(flock(whole[d], LOCK_UN) == 0 && flock(fd, LOCK_EX | LOCK_NB) == 0);
        fd = file(dirs[d], "shared");
        MUST(flock(fd, LOCK_EX | LOCK_NB) < 0 && flock(fd, LOCK_SH | LOCK_NB) == 0);
        fd = file(dirs[d], "open");
        MUST(held(fd, F_RDLCK, 5, 1) && held(fd, F_RDLCK, 9, 1));
        MUST(!held(fd, F_WRLCK, 4, 1) && !held(fd, F_WRLCK, 10, 0));
        /* Without closing anything: that would end the locks of this process. */
        fd = file(dirs[d], "own");
        MUST(held(fd, F_RDLCK, 0, 10) && !held(fd, F_WRLCK, 10, 90));
        MUST(held(fd, F_WRLCK, 1000, 1) && !held(fd, F_RDLCK, 1000, 1));
        MUST(close(fd) == 0 && !held(own[d], F_WRLCK, 0, 0));
    }
    int fd = file("/root", "child");
    struct flock lock = {.l_type = F_WRLCK};
    MUST(fcntl(fd, F_GETLK, &lock) == 0 && lock.l_type == F_WRLCK);
    MUST(lock.l_pid == child && lock.l_start == 3 && lock.l_len == 1);
    for (int d = 0; d < 3; d++) {
        MUST(range(waited[d], F_SETLK, F_UNLCK, 0, 0) == 0);
        MUST(read(ready[0], &byte, 1) == 1 && byte == 'l');
    }
    MUST(write(go[1], "g", 1) == 1);
    int status;
    MUST(waitpid(child, &status, 0) == child && status == 0);
    return zoo_ok();
}
