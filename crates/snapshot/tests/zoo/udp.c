/* UDP: unbound, bound and connected sockets, datagrams that wait with who sent them, options and
   groups. */
#include "inet.h"

static void to(int fd, const char *text, int port, const char *bytes) {
    address a = at(text, port);
    MUST(sendto(fd, bytes, strlen(bytes), 0, (void *)&a, size_of(&a)) == (ssize_t)strlen(bytes));
}

static void expect_from(int fd, const char *bytes, int port) {
    char got[256] = {0};
    address from;
    socklen_t length = sizeof from;
    soon(fd, POLLIN);
    MUST(recvfrom(fd, got, sizeof got, 0, (void *)&from, &length) == (ssize_t)strlen(bytes));
    MUST(strcmp(got, bytes) == 0 && port_of(&from) == port);
}

int main(void) {
    int fresh = socket(AF_INET, SOCK_DGRAM, 0), one = bound(SOCK_DGRAM, "127.0.0.1", 7300);
    int two = bound(SOCK_DGRAM, "0.0.0.0", 7301), six = bound(SOCK_DGRAM, "::", 7302);
    int narrow = bound(SOCK_DGRAM, "127.0.0.1", 7303);
    set(fresh, SOL_SOCKET, SO_BROADCAST, 1);
    set(two, IPPROTO_IP, IP_TTL, 7);
    set(two, IPPROTO_IP, IP_PKTINFO, 1);
    address a = at("127.0.0.1", 7300);
    MUST(connect(narrow, (void *)&a, size_of(&a)) == 0);
    int self = bound(SOCK_DGRAM, "127.0.0.1", 7304);
    a = at("127.0.0.1", 7304);
    MUST(connect(self, (void *)&a, size_of(&a)) == 0);
    to(two, "127.0.0.1", 7300, "first");
    to(six, "::ffff:127.0.0.1", 7300, "second");
    to(two, "127.0.0.1", 7300, "");
    to(two, "127.0.0.1", 7300, "last");
    to(one, "127.0.0.9", 7301, "where");
    to(six, "::1", 7302, "myself");
    to(one, "127.0.0.1", 7302, "mapped");
    to(one, "127.0.0.1", 7303, "for the connected");
    say(self, "self");
    /* Large ones, and many. */
    int many = bound(SOCK_DGRAM, "127.0.0.1", 7305);
    static char large[60000];
    fill(large, 0, sizeof large);
    a = at("127.0.0.1", 7305);
    MUST(sendto(one, large, sizeof large, 0, (void *)&a, size_of(&a)) == sizeof large);
    for (int n = 0; n < 100; n++) to(one, "127.0.0.1", 7305, n % 2 ? "odd" : "even");
    /* Several at one port, each with its own. */
    int shared[2];
    for (int n = 0; n < 2; n++) {
        address here = at("127.0.0.1", 7306), there = at("127.0.0.1", n ? 7301 : 7300);
        shared[n] = socket(AF_INET, SOCK_DGRAM, 0);
        set(shared[n], SOL_SOCKET, SO_REUSEADDR, 1);
        MUST(bind(shared[n], (void *)&here, size_of(&here)) == 0);
        MUST(connect(shared[n], (void *)&there, size_of(&there)) == 0);
    }
    to(one, "127.0.0.1", 7306, "from one");
    to(two, "127.0.0.1", 7306, "from two");
    /* Members of groups, which are heard on the loopback. */
    int member = bound(SOCK_DGRAM, "0.0.0.0", 7307);
    struct ip_mreqn group = {.imr_ifindex = 1};
    MUST(inet_pton(AF_INET, "239.1.2.3", &group.imr_multiaddr) == 1);
    MUST(setsockopt(member, IPPROTO_IP, IP_ADD_MEMBERSHIP, &group, sizeof group) == 0);
    int member6 = bound(SOCK_DGRAM, "::", 7308);
    struct ipv6_mreq group6 = {.ipv6mr_interface = 1};
    MUST(inet_pton(AF_INET6, "ff15::77", &group6.ipv6mr_multiaddr) == 1);
    MUST(setsockopt(member6, IPPROTO_IPV6, IPV6_ADD_MEMBERSHIP, &group6, sizeof group6) == 0);
    MUST(setsockopt(one, IPPROTO_IP, IP_MULTICAST_IF, &group, sizeof group) == 0);
    to(one, "239.1.2.3", 7307, "all");

    zoo_await_fork();

    MUST(get(fresh, SOL_SOCKET, SO_BROADCAST) == 1 && get(two, IPPROTO_IP, IP_TTL) == 7);
    MUST(get(one, SOL_SOCKET, SO_REUSEADDR) == 0 && get(shared[0], SOL_SOCKET, SO_REUSEADDR) == 1);
    address name = name_of(fresh, 0);
    MUST(port_of(&name) == 0);
    expect_from(one, "first", 7301);
    expect_from(one, "second", 7302);
    expect_from(one, "", 7301);
    expect_from(one, "last", 7301);
    char bytes[64], control[256];
    struct iovec part = {bytes, sizeof bytes};
    struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control,
                            .msg_controllen = sizeof control};
    MUST(recvmsg(two, &header, 0) == 5);
    struct cmsghdr *first = CMSG_FIRSTHDR(&header);
    MUST(first && first->cmsg_type == IP_PKTINFO);
    struct in_pktinfo *info = (void *)CMSG_DATA(first);
    MUST(info->ipi_addr.s_addr == htonl(0x7f000009));
    expect_from(six, "myself", 7302);
    expect_from(six, "mapped", 7300);
    expect_from(narrow, "for the connected", 7300);
    expect_from(self, "self", 7304);
    name = name_of(narrow, 1);
    MUST(port_of(&name) == 7300);
    say(narrow, "reply");
    expect_from(one, "reply", 7303);
    static char got[65536];
    MUST(recv(many, got, sizeof got, 0) == sizeof large && memcmp(got, large, sizeof large) == 0);
    for (int n = 0; n < 100; n++) expect_from(many, n % 2 ? "odd" : "even", 7300);
    MUST(recv(many, got, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN);
    expect_from(shared[0], "from one", 7300);
    expect_from(shared[1], "from two", 7301);
    to(two, "127.0.0.1", 7306, "again");
    expect_from(shared[1], "again", 7301);
    expect_from(member, "all", 7300);
    to(one, "239.1.2.3", 7307, "all of you");
    expect_from(member, "all of you", 7300);
    MUST(setsockopt(member, IPPROTO_IP, IP_DROP_MEMBERSHIP, &group, sizeof group) == 0);
    MUST(setsockopt(member6, IPPROTO_IPV6, IPV6_DROP_MEMBERSHIP, &group6, sizeof group6) == 0);
    return zoo_ok();
}
