/* Datagram sockets: bound, connected one way and both, with messages of those who are there and of
   those who are gone. */
#include "zoo.h"
#include <stddef.h>
#include <sys/socket.h>
#include <sys/un.h>

static struct sockaddr_un address;

static socklen_t named(const char *name) {
    memset(&address, 0, sizeof address);
    address.sun_family = AF_UNIX;
    strcpy(address.sun_path, name);
    if (name[0] == '@') address.sun_path[0] = 0;
    return offsetof(struct sockaddr_un, sun_path) + strlen(name) + (name[0] != '@');
}

static int make(const char *name) {
    int fd = socket(AF_UNIX, SOCK_DGRAM, 0);
    MUST(fd >= 0 && (!name || bind(fd, (void *)&address, named(name)) == 0));
    return fd;
}

static void to(int fd, const char *name, const char *text) {
    MUST(sendto(fd, text, strlen(text), MSG_DONTWAIT, (void *)&address, named(name)) ==
         (ssize_t)strlen(text));
}

/* The next message is this one, from this sender. */
static void expect(int fd, const char *text, const char *sender) {
    char buffer[100];
    struct sockaddr_un from;
    socklen_t length = sizeof from, expected = sender ? named(sender) : 0;
    ssize_t count = recvfrom(fd, buffer, sizeof buffer, MSG_DONTWAIT, (void *)&from, &length);
    if (count != (ssize_t)strlen(text) || memcmp(buffer, text, count))
        zoo_fail("%zd bytes (%s) instead of %s", count, strerror(errno), text);
    if (length != expected || memcmp(&from, &address, length))
        zoo_fail("from %s instead of %s", from.sun_path, sender);
}

static void expect_none(int fd) {
    char byte;
    MUST(recv(fd, &byte, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN);
}

int main(void) {
    int inbox = make("/root/inbox"), sender = make("@sender"), gone = make("/tmp/gone");
    int nameless = make(NULL), chain[3] = {make("@first"), make("@second"), make("@third")};
    int both[2] = {make("@left"), make("@right")};
    to(sender, "/root/inbox", "one"), to(gone, "/root/inbox", "two");
    to(nameless, "/root/inbox", "three"), to(sender, "/root/inbox", "");
    close(gone);
    MUST(unlink("/tmp/gone") == 0);
    to(sender, "@second", "before");
    MUST(connect(chain[0], (void *)&address, named("@second")) == 0);
    MUST(connect(chain[1], (void *)&address, named("@third")) == 0);
    MUST(send(chain[0], "on", 2, MSG_DONTWAIT) < 0 && errno == EPERM);
    MUST(send(chain[1], "on", 2, MSG_DONTWAIT) == 2);
    MUST(connect(both[0], (void *)&address, named("@right")) == 0);
    MUST(connect(both[1], (void *)&address, named("@left")) == 0);
    MUST(send(both[0], "across", 6, MSG_DONTWAIT) == 6);
    MUST(connect(nameless, (void *)&address, named("/root/inbox")) == 0);
    zoo_await_fork();
    expect(inbox, "one", "@sender"), expect(inbox, "two", "/tmp/gone");
    expect(inbox, "three", NULL), expect(inbox, "", "@sender");
    expect_none(inbox);
    expect(chain[1], "before", "@sender");
    expect_none(chain[1]);
    MUST(send(chain[0], "on", 2, MSG_DONTWAIT) < 0 && errno == EPERM);
    expect(chain[2], "on", "@second");
    expect_none(chain[2]);
    expect(both[1], "across", "@left");
    MUST(send(both[1], "back", 4, MSG_DONTWAIT) == 4);
    expect(both[0], "back", "@right");
    MUST(send(nameless, "four", 4, MSG_DONTWAIT) == 4);
    expect(inbox, "four", NULL);
    to(both[0], "/root/inbox", "five");
    expect(inbox, "five", "@left");
    to(inbox, "@sender", "six");
    expect(sender, "six", "/root/inbox");
    MUST(access("/tmp/gone", F_OK) < 0);
    return zoo_ok();
}
