/* Sockets that hear of interfaces and addresses, and ask for them. */
#include "zoo.h"
#include <linux/filter.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <poll.h>
#include <sys/socket.h>

static int is(const char *what) { return strcmp(getenv("ZOO") ? getenv("ZOO") : "", what) == 0; }

static int opened(int flags, unsigned groups, unsigned port) {
    int fd = socket(AF_NETLINK, SOCK_RAW | flags, NETLINK_ROUTE);
    struct sockaddr_nl own = {AF_NETLINK, 0, port, groups};
    MUST(fd >= 0);
    if (groups || port) MUST(bind(fd, (struct sockaddr *)&own, sizeof own) == 0);
    return fd;
}

static unsigned port_of(int fd) {
    struct sockaddr_nl own = {0};
    socklen_t length = sizeof own;
    MUST(getsockname(fd, (struct sockaddr *)&own, &length) == 0);
    return own.nl_pid;
}

/* Asks for all interfaces. */
static void ask(int fd, unsigned number) {
    struct {
        struct nlmsghdr head;
        struct ifinfomsg body;
    } all = {{sizeof all, RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, number, 0}, {0}};
    MUST(send(fd, &all, sizeof all, 0) == sizeof all);
}

/* The first answer is of the loopback interface. */
static void hear(int fd, unsigned number, unsigned port) {
    char all[32768];
    struct nlmsghdr *head = (void *)all;
    int done = 0, links = 0;
    while (!done) {
        long length = recv(fd, all, sizeof all, 0);
        MUST(length > 0);
        for (head = (void *)all; NLMSG_OK(head, length); head = NLMSG_NEXT(head, length)) {
            MUST(head->nlmsg_seq == number && head->nlmsg_pid == port);
            done |= head->nlmsg_type == NLMSG_DONE;
            links += head->nlmsg_type == RTM_NEWLINK;
        }
    }
    MUST(links > 0);
}

int main(void) {
    const unsigned groups = RTMGRP_LINK | RTMGRP_IPV4_IFADDR;
    int hears = opened(SOCK_NONBLOCK, groups, 0), asks = opened(0, 0, 4711), new = opened(0, 0, 0);
    int uevents = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC, NETLINK_KOBJECT_UEVENT);
    int many = RTNLGRP_MCTP_IFADDR, one = 1;
    unsigned port = port_of(hears);
    MUST(uevents >= 0);
    MUST(setsockopt(hears, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &many, sizeof many) == 0);
    MUST(setsockopt(asks, SOL_NETLINK, NETLINK_EXT_ACK, &one, sizeof one) == 0);
    MUST(setsockopt(asks, SOL_SOCKET, SO_RCVBUF, &(int){50000}, sizeof(int)) == 0);
    /* As udev's library has them: one that takes nothing, and says so in many words. */
    struct sock_filter none[70];
    for (int i = 0; i < 70; i++) none[i] = (struct sock_filter){BPF_LD | BPF_IMM, 0, 0, i};
    none[69] = (struct sock_filter){BPF_RET | BPF_K, 0, 0, 0};
    struct sock_fprog program = {70, none};
    MUST(setsockopt(uevents, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) == 0);
    ask(asks, 1);
    if (!is("waiting")) hear(asks, 1, 4711);
    zoo_await_fork();
    if (is("waiting")) hear(asks, 1, 4711);
    ask(asks, 2);
    hear(asks, 2, 4711);
    ask(new, 3);
    hear(new, 3, port_of(new));
    MUST(port_of(hears) == port && port_of(asks) == 4711 && port_of(uevents) == 0);
    MUST(fcntl(hears, F_GETFL) & O_NONBLOCK && !(fcntl(asks, F_GETFL) & O_NONBLOCK));
    MUST(fcntl(uevents, F_GETFD) == FD_CLOEXEC && fcntl(asks, F_GETFD) == 0);
    struct sockaddr_nl own = {0};
    socklen_t length = sizeof own;
    MUST(getsockname(hears, (struct sockaddr *)&own, &length) == 0 && own.nl_groups == groups);
    unsigned members[4] = {0};
    length = sizeof members;
    MUST(getsockopt(hears, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, members, &length) == 0);
    MUST(members[0] == groups && members[(many - 1) / 32] & 1u << (many - 1) % 32);
    int value = 0;
    length = sizeof value;
    MUST(getsockopt(asks, SOL_NETLINK, NETLINK_EXT_ACK, &value, &length) == 0 && value == 1);
    MUST(getsockopt(asks, SOL_SOCKET, SO_RCVBUF, &value, &length) == 0 && value == 100000);
    struct sock_filter filter[70];
    length = 70;
    MUST(getsockopt(uevents, SOL_SOCKET, SO_GET_FILTER, filter, &length) == 0 && length == 70);
    MUST(memcmp(filter, none, sizeof none) == 0);
    /* No more rights than before. */
    struct {
        struct nlmsghdr head;
        struct ifinfomsg body;
    } down = {{sizeof down, RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK, 4, 0},
              {.ifi_index = 1, .ifi_change = IFF_UP}};
    struct {
        struct nlmsghdr head;
        struct nlmsgerr body;
        char more[512];
    } answer;
    MUST(send(asks, &down, sizeof down, 0) == sizeof down);
    MUST(recv(asks, &answer, sizeof answer, 0) > 0);
    MUST(answer.head.nlmsg_type == NLMSG_ERROR && answer.body.error == -EPERM);
    return zoo_ok();
}
