/* POSIX message queues: open, closed and full ones, with priorities, and who waits. */
#include "zoo.h"
#include <mqueue.h>
#include <sys/stat.h>
#include <sys/wait.h>

static void expect(mqd_t queue, const char *wanted, unsigned wanted_priority) {
    char text[8192];
    unsigned priority;
    int length = mq_receive(queue, text, sizeof text, &priority);
    MUST(length == (int)strlen(wanted) && memcmp(text, wanted, length) == 0);
    MUST(priority == wanted_priority);
}

int main(void) {
    struct mq_attr small = {.mq_maxmsg = 3, .mq_msgsize = 100}, now;
    mqd_t queue = mq_open("/queue", O_RDWR | O_CREAT | O_EXCL, 0640, &small);
    mqd_t writer = mq_open("/queue", O_WRONLY | O_NONBLOCK);
    int by_path = open("/dev/mqueue/queue", O_RDONLY | O_CLOEXEC), status;
    mqd_t empty = mq_open("/empty", O_RDWR | O_CREAT, 0600, NULL);
    MUST(queue >= 0 && writer >= 0 && by_path >= 0 && empty >= 0);
    pid_t child = fork();
    if (child == 0) {
        expect(empty, "woken", 9);
        _exit(0);
    }
    mqd_t closed = mq_open("/closed", O_RDWR | O_CREAT, 0600, NULL);
    MUST(closed >= 0 && mq_send(closed, "kept", 4, 5) == 0 && close(closed) == 0);
    MUST(mq_send(queue, "low", 3, 1) == 0 && mq_send(queue, "high", 4, 30000) == 0);
    MUST(mq_send(queue, "low too", 7, 1) == 0);

    zoo_await_fork();

    struct stat stat_now;
    MUST(fstat(queue, &stat_now) == 0 && (stat_now.st_mode & 0777) == 0640);
    MUST(mq_getattr(queue, &now) == 0 && now.mq_maxmsg == 3 && now.mq_msgsize == 100);
    MUST(now.mq_curmsgs == 3 && now.mq_flags == 0);
    MUST(mq_getattr(writer, &now) == 0 && now.mq_flags == O_NONBLOCK);
    MUST(mq_send(writer, "x", 1, 0) < 0 && errno == EAGAIN);
    expect(queue, "high", 30000);
    expect(by_path, "low", 1);
    MUST(mq_send(by_path, "x", 1, 0) < 0 && errno == EBADF);
    MUST(mq_send(writer, "urgent", 6, 2) == 0);
    expect(queue, "urgent", 2);
    expect(queue, "low too", 1);
    closed = mq_open("/closed", O_RDONLY | O_NONBLOCK);
    MUST(closed >= 0);
    expect(closed, "kept", 5);
    MUST(mq_getattr(closed, &now) == 0 && now.mq_curmsgs == 0);
    MUST(waitpid(child, &status, WNOHANG) == 0 && mq_send(empty, "woken", 5, 9) == 0);
    MUST(waitpid(child, &status, 0) == child && status == 0);
    return zoo_ok();
}
