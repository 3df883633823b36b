/* Unix sockets that listen: by path, relative path, abstract and given names; with connections that
   wait and that are accepted, one whose listener is gone, and files moved and removed. */
#include "zoo.h"
#include <stddef.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

static struct sockaddr_un address;

/* A path, or an abstract name that begins with @. */
static socklen_t named(const char *name) {
    memset(&address, 0, sizeof address);
    address.sun_family = AF_UNIX;
    strcpy(address.sun_path, name);
    if (name[0] == '@') address.sun_path[0] = 0;
    return offsetof(struct sockaddr_un, sun_path) + strlen(name) + (name[0] != '@');
}

static int server(int kind, const char *name, int backlog) {
    int fd = socket(AF_UNIX, kind, 0);
    MUST(fd >= 0 && bind(fd, (void *)&address, named(name)) == 0 && listen(fd, backlog) == 0);
    return fd;
}

static int client(int kind, const char *name) {
    int fd = socket(AF_UNIX, kind, 0);
    MUST(fd >= 0 && connect(fd, (void *)&address, named(name)) == 0);
    return fd;
}

static void check_name(int fd, const char *name, int peer) {
    struct sockaddr_un found;
    socklen_t length = sizeof found, expected = name ? named(name) : sizeof(sa_family_t);
    MUST((peer ? getpeername : getsockname)(fd, (void *)&found, &length) == 0);
    if (length != expected || memcmp(&found, &address, length))
        zoo_fail("%d bytes: %s instead of %s", length, found.sun_path, name);
}

static void talk(int one, int two) {
    char text[8];
    MUST(send(one, "to", 2, 0) == 2 && recv(two, text, 8, 0) == 2 && !memcmp(text, "to", 2));
    MUST(send(two, "fro", 3, 0) == 3 && recv(one, text, 8, 0) == 3 && !memcmp(text, "fro", 3));
}

static int next(int listener) {
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    MUST(fd >= 0);
    return fd;
}

/* A new connection works. */
static void meet(int kind, const char *name, int listener) {
    int fd = client(kind, name);
    talk(fd, next(listener));
}

int main(void) {
    struct stat before, after;
    MUST(mkdir("/root/run", 0700) == 0 && chdir("/root/run") == 0);
    int path = server(SOCK_STREAM, "/root/run/path", 1);
    MUST(chmod("/root/run/path", 0640) == 0 && stat("/root/run/path", &before) == 0);
    int relative = server(SOCK_STREAM, "../run/./relative", 5);
    int temporary = server(SOCK_STREAM, "/tmp/temporary", 5);
    int moved = server(SOCK_SEQPACKET, "/root/run/new", 5);
    MUST(rename("new", "old") == 0);
    int abstract = server(SOCK_STREAM, "@zoo", 5), gone = server(SOCK_STREAM, "/tmp/gone", 5);
    int old = server(SOCK_STREAM, "/tmp/again", 5);
    MUST(unlink("/tmp/again") == 0);
    int again = server(SOCK_STREAM, "/tmp/again", 5);
    /* The kernel gives a name where none is given. */
    int given = socket(AF_UNIX, SOCK_STREAM, 0);
    address.sun_family = AF_UNIX;
    MUST(bind(given, (void *)&address, sizeof(sa_family_t)) == 0 && listen(given, 3) == 0);
    struct sockaddr_un name, other;
    socklen_t length = sizeof name, length_after = sizeof other;
    MUST(getsockname(given, (void *)&name, &length) == 0 && length == 8);
    /* Accepted, by one that goes on and by one that does not. */
    int out = client(SOCK_STREAM, "/root/run/path"), in = next(path);
    int out_gone = client(SOCK_STREAM, "/tmp/gone"), in_gone = next(gone);
    int far = client(SOCK_STREAM, "@zoo"), near = next(abstract);
    int far_too = client(SOCK_STREAM, "@zoo"), near_too = next(abstract);
    int packets = client(SOCK_SEQPACKET, "old"), packets_in = next(moved);
    close(gone);
    /* A client with a name. */
    int known = socket(AF_UNIX, SOCK_STREAM, 0);
    MUST(bind(known, (void *)&address, named("@zoo-client")) == 0);
    MUST(connect(known, (void *)&address, named("@zoo")) == 0);
    int known_in = next(abstract);
    MUST(send(in, "unread", 6, 0) == 6);
    /* They wait. */
    int first = client(SOCK_STREAM, "/root/run/path"), second = client(SOCK_STREAM, "/root/run/path");
    int third = client(SOCK_STREAM, "@zoo");
    int closed = socket(AF_UNIX, SOCK_STREAM, 0);
    zoo_await_fork();
    char text[8];
    check_name(path, "/root/run/path", 0), check_name(in, "/root/run/path", 0);
    check_name(out, NULL, 0), check_name(out, "/root/run/path", 1), check_name(in, NULL, 1);
    check_name(relative, "../run/./relative", 0), check_name(moved, "/root/run/new", 0);
    check_name(packets, "/root/run/new", 1), check_name(near_too, "@zoo", 0);
    check_name(known_in, "@zoo-client", 1), check_name(known, "@zoo", 1);
    check_name(in_gone, "/tmp/gone", 0), check_name(out_gone, "/tmp/gone", 1);
    check_name(first, "/root/run/path", 1), check_name(old, "/tmp/again", 0);
    MUST(getsockname(given, (void *)&other, &length_after) == 0 && length == length_after);
    MUST(memcmp(&name, &other, length) == 0);
    MUST(recv(out, text, 8, 0) == 6 && memcmp(text, "unread", 6) == 0);
    talk(out, in), talk(out_gone, in_gone), talk(far, near), talk(far_too, near_too);
    talk(packets, packets_in), talk(known, known_in);
    MUST(stat("/root/run/path", &after) == 0 && after.st_mode == before.st_mode);
    MUST(after.st_uid == before.st_uid && S_ISSOCK(after.st_mode));
    MUST(access("/tmp/gone", F_OK) == 0 && access("/root/run/new", F_OK) < 0);
    talk(first, next(path)), talk(second, next(path)), talk(third, next(abstract));
    meet(SOCK_STREAM, "/root/run/path", path);
    meet(SOCK_STREAM, "/root/run/relative", relative);
    meet(SOCK_STREAM, "/tmp/temporary", temporary);
    meet(SOCK_SEQPACKET, "/root/run/old", moved);
    meet(SOCK_STREAM, "@zoo", abstract);
    meet(SOCK_STREAM, "/tmp/again", again);
    MUST(fcntl(old, F_SETFL, O_NONBLOCK) == 0 && accept(old, 0, 0) < 0 && errno == EAGAIN);
    /* A backlog of one has room for two. */
    int full = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
    client(SOCK_STREAM, "/root/run/path"), client(SOCK_STREAM, "/root/run/path");
    MUST(connect(full, (void *)&address, named("/root/run/path")) < 0 && errno == EAGAIN);
    MUST(connect(closed, (void *)&address, named("/tmp/gone")) < 0 && errno == ECONNREFUSED);
    MUST(connect(closed, (void *)&address, named("/tmp/temporary")) == 0);
    return zoo_ok();
}
