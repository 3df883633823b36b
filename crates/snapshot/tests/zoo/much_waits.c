/* Much waits in many sockets of all kinds, so that whoever copies it takes some time. */
#include "inet.h"

enum { PAIRS = 40, EACH = 8, PORTS = 30, CONNECTIONS = 6 };

static char block[50000];

static void put(int fd, int n, int m) {
    int words[2] = {n, m};
    MUST(send(fd, words, sizeof words, MSG_DONTWAIT) == sizeof words);
}

static void take(int fd, int n, int m) {
    int words[2];
    MUST(recv(fd, words, sizeof words, MSG_DONTWAIT) == sizeof words);
    if (words[0] != n || words[1] != m) zoo_fail("%d.%d instead of %d.%d", words[0], words[1], n, m);
}

/* As much as fits into a connection. */
static size_t fill_up(int fd) {
    size_t written = 0;
    for (;;) {
        fill(block, written, sizeof block);
        ssize_t count = send(fd, block, sizeof block, MSG_DONTWAIT);
        if (count < 0) return written;
        written += count;
    }
}

int main(void) {
    int pairs[PAIRS][2], ports[PORTS], ends[CONNECTIONS][2];
    size_t there[CONNECTIONS], back[CONNECTIONS];
    for (int n = 0; n < PAIRS; n++) {
        MUST(socketpair(AF_UNIX, n % 2 ? SOCK_DGRAM : SOCK_SEQPACKET, 0, pairs[n]) == 0);
        for (int m = 0; m < EACH; m++) put(pairs[n][0], n, m);
    }
    for (int n = 0; n < PORTS; n++) {
        address here = at("127.0.0.1", 7500 + n);
        ports[n] = bound(SOCK_DGRAM, "127.0.0.1", 7500 + n);
        MUST(connect(ports[n], (void *)&here, size_of(&here)) == 0);
        for (int m = 0; m < EACH; m++) put(ports[n], n, m);
    }
    int listening = listener("127.0.0.1", 7499, CONNECTIONS);
    for (int n = 0; n < CONNECTIONS; n++) {
        join(listening, &ends[n][0], &ends[n][1]);
        there[n] = fill_up(ends[n][0]), back[n] = fill_up(ends[n][1]);
        MUST(there[n] > 100000 && back[n] > 100000);
    }
    zoo_await_fork();
    for (int n = 0; n < PAIRS; n++) {
        /* Who looks from elsewhere would see another. */
        int words[2];
        MUST(recv(pairs[n][1], words, sizeof words, MSG_PEEK) == sizeof words && words[1] == 0);
        for (int m = 0; m < EACH; m++) take(pairs[n][1], n, m);
        put(pairs[n][0], n, EACH), take(pairs[n][1], n, EACH);
    }
    for (int n = 0; n < PORTS; n++) {
        MUST(get(ports[n], SOL_SOCKET, SO_PEEK_OFF) == -1);
        for (int m = 0; m < EACH; m++) take(ports[n], n, m);
        put(ports[n], n, EACH), soon(ports[n], POLLIN), take(ports[n], n, EACH);
    }
    for (int n = 0; n < CONNECTIONS; n++) {
        expect(ends[n][1], 0, there[n]), expect(ends[n][0], 0, back[n]);
        say(ends[n][0], "on"), expect_text(ends[n][1], "on");
        say(ends[n][1], "and on"), expect_text(ends[n][0], "and on");
        MUST(get(ends[n][0], SOL_SOCKET, SO_REUSEADDR) == 0);
    }
    return zoo_ok();
}
