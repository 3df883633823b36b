/* Mapped files: with private changes, shared, deleted, replaced, and beyond their ends. */
#include "smaps.h"
#include <sys/mman.h>
#include <sys/stat.h>

#define PAGE 4096

static int make(const char *path, char fill, int pages) {
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    char page[PAGE];
    memset(page, fill, PAGE);
    for (int i = 0; i < pages; i++) MUST(write(fd, page, PAGE) == PAGE);
    return fd;
}

static char *map(int fd, int pages, int protection, int flags) {
    char *at = mmap(NULL, pages * PAGE, protection, flags, fd, 0);
    MUST(at != MAP_FAILED);
    return at;
}

int main(void) {
    int rw = PROT_READ | PROT_WRITE;
    int file = make("/root/mapped", 'f', 4), odd = make("/root/line\nend \\012 (deleted)", 'o', 1);
    char *private = map(file, 4, rw, MAP_PRIVATE), *shared = map(file, 4, rw, MAP_SHARED);
    char *other = map(file, 2, PROT_READ, MAP_SHARED), *odd_one = map(odd, 1, rw, MAP_SHARED);
    private[PAGE] = 'p';
    shared[3 * PAGE] = 's';
    /* Changes behind closed doors, and in what may be read only. */
    char *closed = map(file, 4, rw, MAP_PRIVATE), *fixed = map(file, 4, rw, MAP_PRIVATE);
    closed[2 * PAGE] = fixed[2 * PAGE] = 'x';
    MUST(mprotect(closed, 4 * PAGE, PROT_NONE) == 0 && mprotect(fixed, 4 * PAGE, PROT_READ) == 0);
    /* Mapped longer than it is. */
    int few = make("/root/short", 'e', 1);
    char *past = map(few, 4, PROT_READ, MAP_PRIVATE);
    MUST(close(few) == 0 && close(odd) == 0);
    /* Deleted: with a descriptor, without one, and one that another took the name of. */
    int gone = make("/root/gone", 'g', 3), lost = make("/root/lost", 'l', 3);
    int old = make("/root/replaced", 'r', 2), young = make("/root/young", 'y', 2);
    char *gone_shared = map(gone, 3, rw, MAP_SHARED), *gone_private = map(gone, 3, rw, MAP_PRIVATE);
    char *lost_shared = map(lost, 2, rw, MAP_SHARED), *lost_private = map(lost, 3, rw, MAP_PRIVATE);
    char *replaced = map(old, 2, PROT_READ, MAP_PRIVATE);
    lost_private[2 * PAGE] = 'L';
    MUST(close(lost) == 0 && close(old) == 0 && close(young) == 0);
    MUST(unlink("/root/gone") == 0 && unlink("/root/lost") == 0);
    MUST(rename("/root/young", "/root/replaced") == 0);
    /* A file of the image, as an upgrade would replace it while it is in use. */
    MUST(access("/root/zoo", F_OK) == 0);
    int library = open("/etc/passwd", O_RDONLY);
    char first[4];
    char *image = map(library, 1, PROT_READ, MAP_PRIVATE);
    memcpy(first, image, 4);
    MUST(close(library) == 0 && unlink("/etc/passwd") == 0);

    zoo_await_fork();

    MUST(private[0] == 'f' && private[PAGE] == 'p' && private[3 * PAGE] == 's');
    MUST(shared[PAGE] == 'f' && shared[3 * PAGE] == 's' && other[PAGE] == 'f');
    shared[PAGE + 1] = 'S';
    char byte;
    MUST(pread(file, &byte, 1, PAGE + 1) == 1 && byte == 'S' && other[PAGE + 1] == 'S');
    MUST(private[PAGE + 1] == 'f');
    int again = open("/root/mapped", O_RDONLY);
    MUST(pread(again, &byte, 1, PAGE + 1) == 1 && byte == 'S');
    MUST(pread(again, &byte, 1, PAGE + 2) == 1 && byte == 'f');
    odd_one[0] = 'O';
    odd = open("/root/line\nend \\012 (deleted)", O_RDONLY);
    MUST(pread(odd, &byte, 1, 0) == 1 && byte == 'O');
    MUST(mprotect(closed, 4 * PAGE, PROT_READ) == 0);
    MUST(closed[2 * PAGE] == 'x' && closed[0] == 'f' && fixed[2 * PAGE] == 'x');
    MUST(past[0] == 'e' && past[PAGE - 1] == 'e');
    MUST(gone_shared[0] == 'g' && gone_private[2 * PAGE] == 'g');
    gone_shared[0] = 'G';
    MUST(pread(gone, &byte, 1, 0) == 1 && byte == 'G' && gone_private[0] == 'G');
    struct stat stat;
    MUST(fstat(gone, &stat) == 0 && stat.st_nlink == 0 && stat.st_size == 3 * PAGE);
    MUST(lost_shared[PAGE] == 'l' && lost_private[2 * PAGE] == 'L' && lost_private[PAGE] == 'l');
    lost_shared[0] = 'n';
    MUST(lost_private[0] == 'n' && access("/root/lost", F_OK) < 0);
    MUST(replaced[0] == 'r' && replaced[2 * PAGE - 1] == 'r');
    int new = open("/root/replaced", O_RDONLY);
    MUST(read(new, &byte, 1) == 1 && byte == 'y');
    MUST(memcmp(image, first, 4) == 0 && access("/etc/passwd", F_OK) < 0);
    return zoo_ok();
}
