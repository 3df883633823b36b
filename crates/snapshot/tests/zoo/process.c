/* A single process: memory, stack, registers, descriptors and identity. */
#include "zoo.h"

static int data = 42;
static int zeros[100000];

int main(void) {
    pid_t pid = getpid(), parent = getppid(), session = getsid(0);
    volatile double number = 3.25;
    char *heap = malloc(3 << 20);
    memset(heap, 'h', 3 << 20);
    data = 43;
    zeros[50000] = 7;
    MUST(chdir("/usr/bin") == 0);
    umask(0137);
    int file = open("/root/file", O_RDWR | O_CREAT | O_TRUNC, 0600);
    MUST(file >= 0 && write(file, "abcdef", 6) == 6 && lseek(file, 2, SEEK_SET) == 2);
    int same = dup(file), other = open("/root/file", O_RDONLY | O_CLOEXEC);
    MUST(same >= 0 && other >= 0);
    zoo_await_fork();
    MUST(getpid() == pid && getppid() == parent && getsid(0) == session);
    MUST(number == 3.25 && data == 43 && zeros[50000] == 7 && zeros[0] == 0);
    for (int i = 0; i < 3 << 20; i++) MUST(heap[i] == 'h');
    char name[100], byte;
    MUST(getcwd(name, sizeof name) && strcmp(name, "/usr/bin") == 0);
    MUST(umask(0) == 0137);
    MUST(read(file, &byte, 1) == 1 && byte == 'c');
    MUST(read(same, &byte, 1) == 1 && byte == 'd');
    MUST(read(other, &byte, 1) == 1 && byte == 'a');
    MUST(fcntl(other, F_GETFD) == FD_CLOEXEC && fcntl(file, F_GETFD) == 0);
    MUST(pwrite(file, "x", 1, 5) == 1);
    return zoo_ok();
}
