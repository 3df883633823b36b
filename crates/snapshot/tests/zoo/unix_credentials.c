/* Who is at the other end: of peers that run as another user, and of unread messages. */
#include "zoo.h"
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

static struct ucred peer(int fd) {
    struct ucred cred;
    socklen_t length = sizeof cred;
    MUST(getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &length) == 0);
    return cred;
}

/* Receives one byte and who sent it. */
static struct ucred sent(int fd) {
    char byte, control[CMSG_SPACE(sizeof(struct ucred))];
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control,
                             .msg_controllen = sizeof control};
    struct ucred cred;
    MUST(recvmsg(fd, &message, MSG_DONTWAIT) == 1);
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    MUST(header && header->cmsg_type == SCM_CREDENTIALS);
    memcpy(&cred, CMSG_DATA(header), sizeof cred);
    return cred;
}

int main(void) {
    struct sockaddr_un address = {AF_UNIX, "/tmp/server"};
    int listener = socket(AF_UNIX, SOCK_STREAM, 0), on = 1, told[2], pair[2];
    MUST(bind(listener, (void *)&address, sizeof address) == 0 && listen(listener, 5) == 0);
    MUST(chmod("/tmp/server", 0777) == 0 && pipe(told) == 0);
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    MUST(setsockopt(pair[1], SOL_SOCKET, SO_PASSCRED, &on, sizeof on) == 0);
    /* With a single id there is nobody else. */
    uid_t user = 0;
    pid_t child = fork();
    if (child == 0) {
        if (setresgid(34, 34, 34) == 0 && setresuid(33, 33, 33) == 0) user = 33;
        int fd = socket(AF_UNIX, SOCK_STREAM, 0);
        MUST(connect(fd, (void *)&address, sizeof address) == 0 && peer(fd).uid == 0);
        MUST(write(pair[0], "x", 1) == 1 && write(told[1], &user, sizeof user) == sizeof user);
        while (!zoo_forked() && getuid() == 0) zoo_sleep_ms(2);
        char byte;
        MUST(read(fd, &byte, 1) == 1);
        MUST(peer(fd).uid == 0);
        _exit(0);
    }
    MUST(read(told[0], &user, sizeof user) == sizeof user);
    int accepted = accept(listener, NULL, NULL);
    MUST(peer(accepted).uid == user && peer(pair[0]).uid == 0);
    zoo_await_fork();
    MUST(peer(accepted).uid == user && peer(accepted).gid == (user ? 34 : 0));
    MUST(peer(pair[0]).uid == 0);
    struct ucred cred = sent(pair[1]);
    MUST(cred.uid == user && cred.gid == (user ? 34 : 0) && cred.pid == child);
    MUST(write(accepted, "x", 1) == 1);
    int status;
    MUST(waitpid(child, &status, 0) == child && status == 0);
    return zoo_ok();
}
