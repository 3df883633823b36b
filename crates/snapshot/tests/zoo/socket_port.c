/* A listener, which in the host's network no copy can have as well. */
#include "inet.h"

int main(void) {
    int fd = listener("127.0.0.1", 0, 5);
    address a = name_of(fd, 0);
    zoo_await_fork();
    say(connected("127.0.0.1", port_of(&a)), "hello");
    expect_text(accept(fd, 0, 0), "hello");
    return zoo_ok();
}
