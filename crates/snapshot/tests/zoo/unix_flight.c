/* A descriptor on its way through a socket, which cannot be copied. */
#include "zoo.h"
#include <sys/socket.h>

int main(void) {
    int pair[2], pipes[2], got;
    char byte = 'x', control[CMSG_SPACE(sizeof(int))] = {0};
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0 && pipe(pipes) == 0);
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control,
                             .msg_controllen = sizeof control};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    *header = (struct cmsghdr){CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS};
    memcpy(CMSG_DATA(header), &pipes[1], sizeof(int));
    MUST(send(pair[0], "plain", 5, 0) == 5 && sendmsg(pair[0], &message, 0) == 1);
    zoo_await_fork();
    char text[8];
    MUST(recv(pair[1], text, 5, 0) == 5 && recvmsg(pair[1], &message, 0) == 1);
    header = CMSG_FIRSTHDR(&message);
    MUST(header && header->cmsg_type == SCM_RIGHTS);
    memcpy(&got, CMSG_DATA(header), sizeof(int));
    MUST(write(got, "y", 1) == 1 && read(pipes[0], &byte, 1) == 1 && byte == 'y');
    return zoo_ok();
}
