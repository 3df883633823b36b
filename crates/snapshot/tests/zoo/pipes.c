/* Pipes and fifos with bytes that nobody has read, shared between processes. */
#include "zoo.h"
#include <sys/stat.h>
#include <sys/wait.h>

int main(void) {
    int plain[2], sized[2];
    char text[8] = {0};
    MUST(pipe(plain) == 0 && pipe2(sized, O_NONBLOCK | O_CLOEXEC) == 0);
    MUST(fcntl(sized[1], F_SETPIPE_SZ, 1 << 20) == 1 << 20);
    MUST(write(plain[1], "unread", 6) == 6);
    static char block[300000];
    memset(block, 'b', sizeof block);
    MUST(write(sized[1], block, sizeof block) == sizeof block);
    MUST(mkfifo("/root/fifo", 0600) == 0);
    int fifo = open("/root/fifo", O_RDWR);
    MUST(fifo >= 0 && write(fifo, "fifo", 4) == 4);
    int back[2];
    MUST(pipe(back) == 0);
    pid_t child = fork();
    if (child == 0) {
        close(plain[1]);
        while (!zoo_forked()) zoo_sleep_ms(2);
        MUST(read(plain[0], text, 6) == 6 && strcmp(text, "unread") == 0);
        MUST(write(back[1], "seen", 4) == 4);
        _exit(0);
    }
    close(back[1]);
    zoo_await_fork();
    MUST(read(back[0], text, sizeof text) == 4 && memcmp(text, "seen", 4) == 0);
    MUST(read(back[0], text, 1) == 0);
    int status;
    MUST(waitpid(child, &status, 0) == child && status == 0);
    MUST(fcntl(sized[0], F_GETPIPE_SZ) == 1 << 20 && fcntl(sized[0], F_GETFL) & O_NONBLOCK);
    memset(block, 0, sizeof block);
    MUST(read(sized[0], block, sizeof block) == sizeof block && block[299999] == 'b');
    MUST(read(sized[0], block, 1) < 0 && errno == EAGAIN);
    MUST(read(fifo, text, 4) == 4 && memcmp(text, "fifo", 4) == 0);
    return zoo_ok();
}
