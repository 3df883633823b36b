/* TCP sockets that are not connected: new, bound, listening, with options and with connections
   that wait to be accepted. */
#include "inet.h"

int main(void) {
    int fresh = socket(AF_INET, SOCK_STREAM, 0), six = socket(AF_INET6, SOCK_STREAM, 0);
    MUST(fresh >= 0 && six >= 0);
    set(fresh, IPPROTO_TCP, TCP_NODELAY, 1);
    set(fresh, SOL_SOCKET, SO_RCVBUF, 9000);
    int size = get(fresh, SOL_SOCKET, SO_RCVBUF);
    struct timeval wait = {3, 250000};
    MUST(setsockopt(fresh, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait) == 0);

    int held = bound(SOCK_STREAM, "127.0.0.1", 7001);
    int odd = bound(SOCK_STREAM, "127.0.0.77", 0);
    address odd_name = name_of(odd, 0);

    int plain = listener("127.0.0.1", 7002, 3);
    MUST(fcntl(plain, F_SETFL, O_NONBLOCK) == 0);
    set(plain, IPPROTO_TCP, TCP_KEEPIDLE, 77);
    set(plain, SOL_SOCKET, SO_KEEPALIVE, 1);
    set(plain, IPPROTO_TCP, TCP_DEFER_ACCEPT, 0);
    MUST(setsockopt(plain, IPPROTO_TCP, TCP_CONGESTION, "reno", 4) == 0);
    int any = listener("0.0.0.0", 7003, 128);
    int both = listener("::", 7004, 16);
    int only = socket(AF_INET6, SOCK_STREAM, 0);
    set(only, IPPROTO_IPV6, IPV6_V6ONLY, 1);
    address all = at("::", 7005);
    MUST(bind(only, (void *)&all, size_of(&all)) == 0 && listen(only, 5) == 0);
    int other = listener("0.0.0.0", 7005, 5);
    int shared[2];
    for (int n = 0; n < 2; n++) {
        address a = at("127.0.0.1", 7006);
        shared[n] = socket(AF_INET, SOCK_STREAM, 0);
        set(shared[n], SOL_SOCKET, SO_REUSEPORT, 1);
        MUST(bind(shared[n], (void *)&a, size_of(&a)) == 0 && listen(shared[n], 5) == 0);
    }
    int again = socket(AF_INET, SOCK_STREAM, 0);
    set(again, SOL_SOCKET, SO_REUSEADDR, 1);
    address a = at("127.0.0.1", 7007);
    MUST(bind(again, (void *)&a, size_of(&a)) == 0 && listen(again, 0) == 0);

    /* Wait to be accepted: as many as may, one that has hung up, one of the other family. */
    int first = connected("127.0.0.1", 7002), second = connected("127.0.0.1", 7002);
    address first_name = name_of(first, 0), second_name = name_of(second, 0);
    close(connected("127.0.0.1", 7003));
    int mixed = connected("127.0.0.1", 7004), sixth = connected("::1", 7004);
    MUST(shutdown(sixth, SHUT_WR) == 0);

    zoo_await_fork();

    MUST(get(fresh, IPPROTO_TCP, TCP_NODELAY) == 1 && get(fresh, SOL_SOCKET, SO_RCVBUF) == size);
    socklen_t length = sizeof wait;
    MUST(getsockopt(fresh, SOL_SOCKET, SO_RCVTIMEO, &wait, &length) == 0);
    MUST(wait.tv_sec == 3 && wait.tv_usec / 10000 == 25);
    MUST(get(fresh, SOL_SOCKET, SO_TYPE) == SOCK_STREAM && now(fresh, POLLIN) == POLLHUP);
    MUST(get(six, SOL_SOCKET, SO_DOMAIN) == AF_INET6);
    MUST(get(fresh, SOL_SOCKET, SO_REUSEADDR) == 0 && get(held, SOL_SOCKET, SO_REUSEADDR) == 0);
    MUST(listen(held, 1) == 0);
    int client, server;
    join(held, &client, &server);
    address now_name = name_of(server, 0);
    MUST(port_of(&now_name) == 7001);
    now_name = name_of(odd, 0);
    MUST(memcmp(&now_name, &odd_name, sizeof odd_name) == 0);

    MUST(get(plain, SOL_SOCKET, SO_ACCEPTCONN) == 1 && fcntl(plain, F_GETFL) & O_NONBLOCK);
    MUST(get(plain, IPPROTO_TCP, TCP_KEEPIDLE) == 77 && get(plain, SOL_SOCKET, SO_KEEPALIVE) == 1);
    char name[16] = {0};
    length = sizeof name;
    MUST(getsockopt(plain, IPPROTO_TCP, TCP_CONGESTION, name, &length) == 0);
    MUST(strcmp(name, "reno") == 0);
    struct tcp_info info;
    length = sizeof info;
    MUST(getsockopt(plain, IPPROTO_TCP, TCP_INFO, &info, &length) == 0);
    MUST(info.tcpi_sacked == 3 && info.tcpi_unacked == 2);
    MUST(get(plain, SOL_SOCKET, SO_REUSEADDR) == 0 && get(again, SOL_SOCKET, SO_REUSEADDR) == 1);
    address taken = at("127.0.0.1", 7002);
    int denied = socket(AF_INET, SOCK_STREAM, 0);
    MUST(bind(denied, (void *)&taken, size_of(&taken)) < 0 && errno == EADDRINUSE);

    address from;
    length = sizeof from;
    server = accept(plain, (void *)&from, &length);
    MUST(server >= 0 && port_of(&from) == port_of(&first_name));
    say(first, "first");
    expect_text(server, "first");
    MUST(get(server, IPPROTO_TCP, TCP_KEEPIDLE) == 77);
    length = sizeof from;
    server = accept(plain, (void *)&from, &length);
    MUST(server >= 0 && port_of(&from) == port_of(&second_name));
    say(server, "second");
    expect_text(second, "second");
    MUST(accept(plain, 0, 0) < 0 && errno == EAGAIN);
    server = accept(any, 0, 0);
    MUST(server >= 0);
    expect_end(server);
    MUST(get(any, SOL_SOCKET, SO_REUSEADDR) == 0);

    for (int n = 0; n < 2; n++) {
        length = sizeof from;
        server = accept(both, (void *)&from, &length);
        MUST(server >= 0 && from.ss_family == AF_INET6);
        address m = name_of(mixed, 0), s = name_of(sixth, 0);
        if (port_of(&from) == port_of(&m)) {
            say(mixed, "mixed");
            expect_text(server, "mixed");
        } else {
            MUST(port_of(&from) == port_of(&s));
            expect_end(server);
            say(server, "sixth");
            expect_text(sixth, "sixth");
        }
    }
    MUST(get(both, IPPROTO_IPV6, IPV6_V6ONLY) == 0 && get(only, IPPROTO_IPV6, IPV6_V6ONLY) == 1);
    client = connected("::1", 7005);
    MUST(accept(only, 0, 0) >= 0);
    client = connected("127.0.0.1", 7005);
    MUST(accept(other, 0, 0) >= 0);
    for (int n = 0; n < 20; n++) {
        client = connected("127.0.0.1", 7006);
        MUST(client >= 0);
        struct pollfd all[2] = {{shared[0], POLLIN, 0}, {shared[1], POLLIN, 0}};
        MUST(poll(all, 2, 5000) > 0);
        MUST(accept(shared[all[0].revents ? 0 : 1], 0, 0) >= 0);
    }
    return zoo_ok();
}
