/* An event of inotify's that nobody reads, which cannot be copied. */
#include "zoo.h"
#include <sys/inotify.h>
#include <sys/stat.h>

int main(void) {
    struct inotify_event event;
    int fd = inotify_init1(0);
    MUST(inotify_add_watch(fd, "/root", IN_DELETE) == 1 && mkdir("/root/d", 0700) == 0);
    MUST(rmdir("/root/d") == 0);
    zoo_await_fork();
    char buffer[sizeof event + 256];
    MUST(read(fd, buffer, sizeof buffer) > 0);
    memcpy(&event, buffer, sizeof event);
    MUST(event.wd == 1 && event.mask == (IN_DELETE | IN_ISDIR));
    return zoo_ok();
}
