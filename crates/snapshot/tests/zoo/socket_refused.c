/* A socket that is not copied, and unharmed by the attempt: which one, ZOO says. */
#include "inet.h"
#include <linux/filter.h>

int main(void) {
    const char *what = getenv("ZOO");
    int fd = -1;
    MUST(what);
    if (strcmp(what, "raw") == 0) fd = socket(AF_INET, SOCK_RAW, IPPROTO_ICMP);
    if (strcmp(what, "packet") == 0) fd = socket(AF_PACKET, SOCK_DGRAM, 0);
    if (strcmp(what, "udplite") == 0) fd = socket(AF_INET6, SOCK_DGRAM, IPPROTO_UDPLITE);
    if (strcmp(what, "filter") == 0) {
        struct sock_filter all[] = {{BPF_RET | BPF_K, 0, 0, 0xffff}};
        struct sock_fprog program = {1, all};
        fd = socket(AF_INET, SOCK_DGRAM, 0);
        MUST(setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) == 0);
    }
    if (strcmp(what, "offset") == 0) {
        fd = bound(SOCK_DGRAM, "127.0.0.1", 7402);
        set(fd, SOL_SOCKET, SO_PEEK_OFF, 0);
    }
    if (strcmp(what, "urgent") == 0) {
        int near;
        join(listener("127.0.0.1", 7400, 1), &near, &fd);
        MUST(send(near, "!", 1, MSG_OOB) == 1);
    }
    if (strcmp(what, "waiting") == 0) {
        fd = listener("127.0.0.1", 7401, 1);
        say(connected("127.0.0.1", 7401), "hello");
    }
    MUST(fd >= 0);
    zoo_await_fork();
    if (strcmp(what, "urgent") == 0) {
        char byte;
        MUST(recv(fd, &byte, 1, MSG_OOB) == 1 && byte == '!');
    }
    if (strcmp(what, "waiting") == 0) expect_text(accept(fd, 0, 0), "hello");
    return zoo_ok();
}
