/* TCP connections within a sandbox: both ends, what waits in each direction and at each place,
   half closed and closed ones, and their options. */
#include "inet.h"

static size_t written;

int main(void) {
    int four = listener("127.0.0.1", 7100, 16), six = listener("::", 7101, 16);
    int quiet[2], said[2], large[2], full[2], small[2], half[2], heard[2], deaf[2], v6[2], mix[2];
    join(four, &quiet[0], &quiet[1]);
    set(quiet[0], IPPROTO_TCP, TCP_NODELAY, 1);
    set(quiet[1], IPPROTO_TCP, TCP_USER_TIMEOUT, 12345);
    MUST(fcntl(quiet[1], F_SETFL, O_NONBLOCK) == 0);
    struct linger linger = {1, 7};
    MUST(setsockopt(quiet[0], SOL_SOCKET, SO_LINGER, &linger, sizeof linger) == 0);
    address names[4] = {name_of(quiet[0], 0), name_of(quiet[0], 1), name_of(quiet[1], 0),
                        name_of(quiet[1], 1)};
    join(four, &said[0], &said[1]);
    say(said[0], "to the server");
    say(said[1], "to the client");
    /* More than a new socket has room for. */
    static char block[700000];
    join(four, &large[0], &large[1]);
    fill(block, 0, sizeof block);
    for (size_t sent = 0; sent < sizeof block;) {
        ssize_t count = send(large[0], block + sent, sizeof block - sent, MSG_DONTWAIT);
        MUST(count > 0);
        sent += count;
    }
    /* As much as fits: it waits at both ends. */
    join(four, &full[0], &full[1]);
    for (;;) {
        fill(block, written, 50000);
        ssize_t count = send(full[1], block, 50000, MSG_DONTWAIT);
        if (count < 0) break;
        written += count;
    }
    MUST(written > 100000);
    /* With buffers of its own choice. */
    int narrow = socket(AF_INET, SOCK_STREAM, 0);
    set(narrow, SOL_SOCKET, SO_RCVBUF, 4096);
    address a = at("127.0.0.1", 7102);
    MUST(bind(narrow, (void *)&a, size_of(&a)) == 0 && listen(narrow, 1) == 0);
    join(narrow, &small[0], &small[1]);
    set(small[0], SOL_SOCKET, SO_SNDBUF, 20000);
    size_t little = 0;
    for (;;) {
        fill(block, little, 1000);
        ssize_t count = send(small[0], block, 1000, MSG_DONTWAIT);
        if (count < 0) break;
        little += count;
    }
    int sizes[2] = {get(small[0], SOL_SOCKET, SO_SNDBUF), get(small[1], SOL_SOCKET, SO_RCVBUF)};
    close(narrow);
    join(four, &half[0], &half[1]);
    say(half[0], "the last words");
    MUST(shutdown(half[0], SHUT_WR) == 0);
    /* Closed behind what was said. */
    join(four, &heard[0], &heard[1]);
    say(heard[1], "good bye");
    close(heard[1]);
    join(four, &deaf[0], &deaf[1]);
    MUST(shutdown(deaf[0], SHUT_RD) == 0);
    join(six, &v6[0], &v6[1]);
    say(v6[0], "six");
    mix[0] = connected("127.0.0.1", 7101);
    mix[1] = accept(six, 0, 0);
    say(mix[1], "mixed");
    /* From one port to two, as a bound client may. */
    int fixed[2], fixed_far[2];
    for (int n = 0; n < 2; n++) {
        address from = at("127.0.0.1", 7999);
        fixed[n] = socket(AF_INET, SOCK_STREAM, 0);
        set(fixed[n], SOL_SOCKET, SO_REUSEADDR, 1);
        MUST(bind(fixed[n], (void *)&from, size_of(&from)) == 0);
        address to = at("127.0.0.1", 7100 + n);
        MUST(connect(fixed[n], (void *)&to, size_of(&to)) == 0);
        fixed_far[n] = accept(n ? six : four, 0, 0);
        MUST(fixed_far[n] >= 0);
    }
    /* With itself. */
    int self = bound(SOCK_STREAM, "127.0.0.1", 7998);
    address own = at("127.0.0.1", 7998);
    MUST(connect(self, (void *)&own, size_of(&own)) == 0);
    say(self, "to myself");
    /* Over: closed by both, reset, refused, told or not. */
    int over[2], reset[2], refused = -1, told;
    join(four, &over[0], &over[1]);
    say(over[1], "rest");
    MUST(shutdown(over[0], SHUT_WR) == 0 && shutdown(over[1], SHUT_WR) == 0);
    join(four, &reset[0], &reset[1]);
    struct linger at_once = {1, 0};
    MUST(setsockopt(reset[1], SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once) == 0);
    close(reset[1]);
    for (int n = 0; n < 2; n++) {
        address nobody = at("127.0.0.1", 7900);
        told = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        MUST(connect(told, (void *)&nobody, size_of(&nobody)) < 0 && errno == EINPROGRESS);
        if (n == 0) refused = told;
    }
    MUST(get(told, SOL_SOCKET, SO_ERROR) == ECONNREFUSED);
    /* A listener that is gone leaves its connections. */
    int gone = listener("127.0.0.1", 7103, 1), left[2];
    join(gone, &left[0], &left[1]);
    close(gone);
    int states[2] = {now(over[0], POLLIN | POLLRDHUP | POLLOUT),
                     now(reset[0], POLLIN | POLLRDHUP | POLLOUT)};

    zoo_await_fork();

    address after[4] = {name_of(quiet[0], 0), name_of(quiet[0], 1), name_of(quiet[1], 0),
                        name_of(quiet[1], 1)};
    MUST(memcmp(names, after, sizeof names) == 0);
    MUST(get(quiet[0], IPPROTO_TCP, TCP_NODELAY) == 1);
    MUST(get(quiet[1], IPPROTO_TCP, TCP_NODELAY) == 0);
    MUST(get(quiet[1], IPPROTO_TCP, TCP_USER_TIMEOUT) == 12345);
    MUST(get(quiet[0], SOL_SOCKET, SO_REUSEADDR) == 0 && get(fixed[1], SOL_SOCKET, SO_REUSEADDR));
    socklen_t length = sizeof linger;
    MUST(getsockopt(quiet[0], SOL_SOCKET, SO_LINGER, &linger, &length) == 0 && linger.l_linger == 7);
    char byte;
    MUST(recv(quiet[1], &byte, 1, 0) < 0 && errno == EAGAIN);
    MUST(!(fcntl(quiet[0], F_GETFL) & O_NONBLOCK));
    for (int round = 0; round < 50; round++) {
        say(quiet[0], "ping");
        expect_text(quiet[1], "ping");
        say(quiet[1], "pong");
        expect_text(quiet[0], "pong");
    }
    int waits;
    MUST(ioctl(said[1], FIONREAD, &waits) == 0 && waits == 13);
    expect_text(said[1], "to the server");
    expect_text(said[0], "to the client");
    expect(large[1], 0, sizeof block);
    say(large[0], "x");
    expect_text(large[1], "x");
    expect(full[0], 0, written);
    say(full[1], "then this");
    expect_text(full[0], "then this");
    MUST(get(small[0], SOL_SOCKET, SO_SNDBUF) == sizes[0]);
    MUST(get(small[1], SOL_SOCKET, SO_RCVBUF) == sizes[1]);
    expect(small[1], 0, little);
    expect_text(half[1], "the last words");
    expect_end(half[1]);
    MUST(send(half[0], "x", 1, MSG_NOSIGNAL) < 0 && errno == EPIPE);
    say(half[1], "an answer");
    expect_text(half[0], "an answer");
    close(half[1]);
    expect_end(half[0]);
    expect_text(heard[0], "good bye");
    expect_end(heard[0]);
    MUST(recv(deaf[0], &byte, 1, MSG_DONTWAIT) == 0);
    say(deaf[0], "deaf");
    expect_text(deaf[1], "deaf");
    expect_text(v6[1], "six");
    expect_text(mix[0], "mixed");
    say(mix[0], "back");
    expect_text(mix[1], "back");
    for (int n = 0; n < 2; n++) {
        address name = name_of(fixed_far[n], 1);
        MUST(port_of(&name) == 7999);
        say(fixed[n], "fixed");
        expect_text(fixed_far[n], "fixed");
    }
    expect_text(self, "to myself");
    say(self, "again");
    expect_text(self, "again");
    MUST(now(over[0], POLLIN | POLLRDHUP | POLLOUT) == states[0]);
    expect_text(over[0], "rest");
    expect_end(over[0]);
    expect_end(over[1]);
    MUST(now(reset[0], POLLIN | POLLRDHUP | POLLOUT) == states[1]);
    MUST(recv(reset[0], &byte, 1, 0) < 0 && errno == ECONNRESET);
    MUST(get(refused, SOL_SOCKET, SO_ERROR) == ECONNREFUSED);
    int error = get(told, SOL_SOCKET, SO_ERROR);
    if (error) zoo_fail("an error that was told is told again: %s", strerror(error));
    say(left[0], "left");
    expect_text(left[1], "left");
    join(four, &said[0], &said[1]);
    /* What is closed lets go of its address. */
    close(four);
    close(quiet[0]), close(quiet[1]);
    return zoo_ok();
}
