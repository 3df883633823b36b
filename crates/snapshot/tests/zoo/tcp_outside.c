/* A connection that leads out of the sandbox, by the host's network: it goes on in the original,
   and is over in clones, behind what had been received. */
#include "inet.h"

int main(void) {
    int port = atoi(getenv("ZOO")), fd = connected("127.0.0.1", port);
    int local = listener("127.0.0.1", 0, 2), pair[2];
    char byte;
    say(fd, "hello");
    expect_text(fd, "first");
    /* Within the sandbox, but in a network with others. */
    join(local, &pair[0], &pair[1]);
    close(local);
    say(pair[0], "inside");
    soon(fd, POLLIN);
    zoo_await_fork();
    expect_text(fd, "second");
    /* The other end answers the original alone. */
    ssize_t sent = send(fd, "still here", 10, MSG_NOSIGNAL);
    MUST(sent == 10 || errno == EPIPE);
    soon(fd, POLLIN);
    ssize_t got = recv(fd, &byte, 1, 0);
    if (got == 1) {
        expect_text(pair[1], "inside");
        say(pair[1], "back");
        expect_text(pair[0], "back");
    } else {
        MUST(got == 0 || errno == ECONNRESET);
        expect_text(pair[1], "inside");
        expect_end(pair[1]);
    }
    MUST(write(1, got == 1 ? "original\n" : "clone\n", got == 1 ? 9 : 6) > 0);
    return zoo_ok();
}
