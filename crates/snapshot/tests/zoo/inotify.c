/* inotify: watches with gaps between their numbers, of a directory, a file and a link. */
#include "zoo.h"
#include <sys/inotify.h>
#include <sys/stat.h>

static int fd;

/* The next event must be this one. */
static void expect(int wd, uint32_t mask, const char *name) {
    static char buffer[4096];
    static ssize_t at, end;
    if (at == end) {
        end = read(fd, buffer, sizeof buffer), at = 0;
        if (end <= 0) zoo_fail("no event, but %d %x %s was to come", wd, mask, name);
    }
    struct inotify_event *event = (struct inotify_event *)(buffer + at);
    at += sizeof *event + event->len;
    if (event->wd != wd || event->mask != mask || strcmp(event->len ? event->name : "", name))
        zoo_fail("%d %x %s, not %d %x %s", event->wd, event->mask, event->len ? event->name : "",
                 wd, mask, name);
}

int main(void) {
    char byte;
    fd = inotify_init1(IN_NONBLOCK);
    MUST(mkdir("/root/a", 0700) == 0 && mkdir("/root/a/b", 0700) == 0);
    MUST(mkdir("/tmp/c", 0700) == 0 && symlink("nowhere", "/root/link") == 0);
    int file = open("/root/a/file", O_RDWR | O_CREAT, 0600);
    MUST(file >= 0);
    int all = inotify_add_watch(fd, "/root/a", IN_CREATE | IN_DELETE | IN_MOVE);
    int gap = inotify_add_watch(fd, "/root", IN_CREATE);
    /* Taking the picture opens and reads directories, which can be seen. */
    uint32_t changes = IN_ALL_EVENTS & ~IN_OPEN & ~IN_ACCESS & ~IN_CLOSE_NOWRITE;
    int deep = inotify_add_watch(fd, "/root/a/b", changes | IN_EXCL_UNLINK);
    int memory = inotify_add_watch(fd, "/tmp/c", IN_CREATE);
    int one = inotify_add_watch(fd, "/root/a/file", IN_MODIFY | IN_ONESHOT);
    int link = inotify_add_watch(fd, "/root/link", IN_DELETE_SELF | IN_ATTRIB | IN_DONT_FOLLOW);
    int below = inotify_add_watch(fd, "/usr/lib", changes);
    MUST(all == 1 && gap == 2 && deep == 3 && memory == 4 && one == 5 && link == 6 && below == 7);
    MUST(inotify_rm_watch(fd, gap) == 0);
    expect(gap, IN_IGNORED, "");
    MUST(read(fd, &byte, 1) < 0);
    zoo_await_fork();
    MUST(read(fd, &byte, 1) < 0 && errno == EAGAIN);
    MUST(mkdir("/root/a/b/new", 0700) == 0 && rename("/root/a/b/new", "/root/a/new") == 0);
    MUST(write(file, "x", 1) == 1 && write(file, "x", 1) == 1 && mkdir("/tmp/c/d", 0700) == 0);
    MUST(unlink("/root/link") == 0);
    expect(deep, IN_CREATE | IN_ISDIR, "new");
    expect(deep, IN_MOVED_FROM | IN_ISDIR, "new");
    expect(all, IN_MOVED_TO | IN_ISDIR, "new");
    expect(one, IN_MODIFY, "");
    expect(one, IN_IGNORED, "");
    expect(memory, IN_CREATE | IN_ISDIR, "d");
    expect(link, IN_ATTRIB, "");
    expect(link, IN_DELETE_SELF, "");
    expect(link, IN_IGNORED, "");
    MUST(read(fd, &byte, 1) < 0 && errno == EAGAIN);
    MUST(inotify_add_watch(fd, "/root/a", IN_CREATE) == all);
    MUST(inotify_add_watch(fd, "/root", IN_CREATE) == 8);
    return zoo_ok();
}
