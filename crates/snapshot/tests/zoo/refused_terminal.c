/* Terminals that cannot be forked, one kind at a time; the fork leaves them as they were. */
#include "zoo.h"
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <termios.h>

#ifndef EXTPROC
#define EXTPROC 0200000
#endif

static volatile int io;
static void on_io(int signal) { io++; }

static void await(int fd, short wanted) {
    struct pollfd p = {fd, wanted, 0};
    MUST(poll(&p, 1, 20000) == 1 && p.revents & wanted);
}

int main(void) {
    const char *kind = getenv("KIND");
    int locked = 0, on = 1, master, slave;
    struct termios now;
    char bytes[8192];
    master = open("/dev/ptmx", O_RDWR | O_NOCTTY);
    MUST(master >= 0 && ioctl(master, TIOCSPTLCK, &locked) == 0);
    slave = open(ptsname(master), O_RDWR | O_NOCTTY);
    MUST(slave >= 0);
    if (strcmp(kind, "signals") == 0) {
        signal(SIGIO, on_io);
        MUST(fcntl(slave, F_SETOWN, getpid()) == 0 && fcntl(slave, F_SETFL, O_ASYNC) == 0);
        zoo_await_fork();
        MUST(io == 0 && write(master, "x\n", 2) == 2);
        for (int n = 0; n < 5000 && io == 0; n++) zoo_sleep_ms(1);
        MUST(io == 1);
    } else if (strcmp(kind, "packet") == 0) {
        MUST(ioctl(master, TIOCPKT, &on) == 0 && tcflush(slave, TCIFLUSH) == 0);
        await(master, POLLPRI);
        zoo_await_fork();
        MUST(read(master, bytes, sizeof bytes) == 1 && bytes[0] == TIOCPKT_FLUSHREAD);
    } else if (strcmp(kind, "elsewhere") == 0) {
        MUST(tcgetattr(slave, &now) == 0);
        now.c_lflag |= EXTPROC;
        MUST(tcsetattr(slave, TCSANOW, &now) == 0);
        zoo_await_fork();
        MUST(tcgetattr(slave, &now) == 0 && now.c_lflag & EXTPROC);
    } else if (strcmp(kind, "one way") == 0) {
        int half = open("/dev/ptmx", O_RDONLY | O_NOCTTY), number = -1;
        MUST(half >= 0);
        zoo_await_fork();
        MUST(ioctl(half, TIOCGPTN, &number) == 0 && number >= 0);
    } else if (strcmp(kind, "input") == 0) {
        MUST(tcgetattr(slave, &now) == 0);
        cfmakeraw(&now);
        MUST(tcsetattr(slave, TCSANOW, &now) == 0);
        memset(bytes, 'i', 4000);
        MUST(write(master, bytes, 4000) == 4000);
        for (int waiting = 0; waiting < 4000;) {
            MUST(ioctl(slave, FIONREAD, &waiting) == 0);
            zoo_sleep_ms(1);
        }
        zoo_await_fork();
        for (int rest = 4000, count; rest > 0; rest -= count) {
            MUST((count = read(slave, bytes, sizeof bytes)) > 0);
            for (int n = 0; n < count; n++) MUST(bytes[n] == 'i');
        }
    } else {
        return 1;
    }
    return zoo_ok();
}
