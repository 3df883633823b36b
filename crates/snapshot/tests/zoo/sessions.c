/* Controlling terminals: of the command's session (run on a terminal) and of one on a pty of the
   program's own; groups in the foreground and behind, stopped jobs, processes that gave their
   terminal up, sessions whose leader is gone; and no signal comes of all that. */
#include "zoo.h"
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>

static volatile sig_atomic_t hangups, conts, winches, others;

static void note(int signal) {
    if (signal == SIGHUP) hangups++;
    else if (signal == SIGCONT) conts++;
    else if (signal == SIGWINCH) winches++;
    else others++;
}

static void watch(void) {
    struct sigaction action = {.sa_handler = note, .sa_flags = SA_RESTART};
    int signals[] = {SIGHUP, SIGCONT, SIGWINCH, SIGTTIN, SIGTTOU, SIGINT, SIGTSTP};
    for (int n = 0; n < 7; n++) sigaction(signals[n], &action, NULL);
}

/* Ends a child, and tells where by its status. */
#define CHECK(condition) do { if (!(condition)) _exit(__LINE__ % 255 + 1); } while (0)

static void wait_fork(void) { while (!zoo_forked()) zoo_sleep_ms(2); }

static int has_terminal(void) {
    int fd = open("/dev/tty", O_RDWR | O_NOCTTY);
    if (fd >= 0) close(fd);
    return fd >= 0;
}

/* tty_nr and tpgid of proc_pid_stat(5). */
static void of_stat(int *terminal, int *foreground) {
    char text[512], state;
    int ids[3];
    int fd = open("/proc/self/stat", O_RDONLY);
    int count = read(fd, text, sizeof text - 1);
    close(fd);
    MUST(count > 0);
    text[count] = 0;
    MUST(sscanf(strrchr(text, ')') + 2, "%c %d %d %d %d %d", &state, &ids[0], &ids[1], &ids[2],
                terminal, foreground) == 6);
}

static pid_t ok[16];
static int count;

static pid_t child(void) {
    pid_t pid = fork();
    MUST(pid >= 0);
    if (pid == 0) {
        watch();
        return 0;
    }
    ok[count++] = pid;
    return pid;
}

static int terminal_now(void) { int t, f; of_stat(&t, &f); return t; }
static int foreground_now(void) { int t, f; of_stat(&t, &f); return f; }

int main(void) {
    int status, terminal, foreground;
    of_stat(&terminal, &foreground);
    MUST(isatty(0) && terminal != 0 && getsid(0) == getpid() && foreground == getpid());
    watch();
    struct termios raw, now;
    MUST(tcgetattr(0, &raw) == 0);
    raw.c_lflag &= ~ECHO;
    raw.c_cc[VINTR] = 1;
    MUST(tcsetattr(0, TCSANOW, &raw) == 0);
    int tty = open("/dev/tty", O_RDWR | O_NONBLOCK), same = open(ttyname(0), O_WRONLY | O_NOCTTY);
    MUST(tty >= 0 && same >= 0);

    /* In the background: may not read. */
    if (child() == 0) {
        setpgid(0, 0);
        wait_fork();
        CHECK(terminal_now() == terminal && tcgetpgrp(0) == getppid() && getpgrp() == getpid());
        CHECK(others == 0);
        signal(SIGTTIN, SIG_IGN);
        char byte;
        CHECK(read(0, &byte, 1) < 0 && errno == EIO);
        CHECK(hangups == 0 && conts == 0 && winches == 0);
        _exit(0);
    }
    /* Has given the terminal up; its child never had it, an older one still has. */
    if (child() == 0) {
        pid_t older = fork();
        if (older == 0) {
            wait_fork();
            CHECK(terminal_now() == terminal && has_terminal());
            _exit(0);
        }
        CHECK(ioctl(0, TIOCNOTTY) == 0);
        pid_t younger = fork();
        if (younger == 0) {
            wait_fork();
            CHECK(terminal_now() == 0 && !has_terminal());
            _exit(0);
        }
        wait_fork();
        CHECK(terminal_now() == 0 && !has_terminal() && isatty(0) && getsid(0) == getppid());
        int of_older, of_younger;
        CHECK(waitpid(older, &of_older, 0) == older && of_older == 0);
        CHECK(waitpid(younger, &of_younger, 0) == younger && of_younger == 0);
        CHECK(hangups == 0 && conts == 0);
        _exit(0);
    }
    /* A session of its own on a pty, whose foreground is a child; another was and is gone. */
    for (int gone = 0; gone < 2; gone++) {
        if (child() == 0) {
            CHECK(setsid() == getpid() && terminal_now() == 0);
            int master = open("/dev/ptmx", O_RDWR | O_NOCTTY), locked = 0, report[2];
            CHECK(ioctl(master, TIOCSPTLCK, &locked) == 0 && pipe(report) == 0);
            int slave = open(ptsname(master), O_RDWR | O_NOCTTY);
            CHECK(slave >= 0 && ioctl(slave, TIOCSCTTY, 0) == 0);
            int own = terminal_now();
            CHECK(own != 0 && own != terminal);
            int mine = open("/dev/tty", O_RDWR);
            signal(SIGTTOU, SIG_IGN);
            pid_t job = fork();
            if (job == 0) {
                setpgid(0, 0);
                CHECK(tcsetpgrp(slave, getpid()) == 0);
                CHECK(write(report[1], "x", 1) == 1);
                if (gone) _exit(0);
                wait_fork();
                CHECK(terminal_now() == own && foreground_now() == getpid());
                /* Reached by a key: it is in the foreground. */
                CHECK(write(master, "\x03", 1) == 1);
                for (int n = 0; n < 5000 && others == 0; n++) zoo_sleep_ms(1);
                CHECK(others == 1 && hangups == 0 && conts == 0);
                _exit(0);
            }
            char byte;
            CHECK(read(report[0], &byte, 1) == 1);
            if (gone) CHECK(waitpid(job, &status, 0) == job && status == 0);
            if (gone) close(slave), close(mine), slave = -1, mine = -1;
            wait_fork();
            CHECK(terminal_now() == own && foreground_now() == job);
            CHECK(tcgetsid(master) == getpid() && tcgetpgrp(master) == job && has_terminal());
            if (!gone) {
                CHECK(waitpid(job, &status, 0) == job && status == 0);
                CHECK(write(mine, "through tty", 11) == 11);
                char text[64] = {0};
                int length = 0;
                /* What the Ctrl-C echoed may be before it. */
                while (!strstr(text, "through tty")) {
                    int more = read(master, text + length, sizeof text - 1 - length);
                    CHECK(more > 0);
                    length += more;
                }
            }
            CHECK(hangups == 0 && conts == 0 && others == 0);
            _exit(0);
        }
    }
    /* A session whose leader is gone has no terminal; its pty is still there. */
    int master = open("/dev/ptmx", O_RDWR | O_NOCTTY), locked = 0, ready[2], done[2];
    MUST(ioctl(master, TIOCSPTLCK, &locked) == 0 && pipe(ready) == 0 && pipe(done) == 0);
    pid_t leader = fork();
    if (leader == 0) {
        watch();
        setsid();
        int slave = open(ptsname(master), O_RDWR);
        pid_t session = getpid();
        if (fork() == 0) {
            while (terminal_now() != 0) zoo_sleep_ms(1);
            int hangups_before = hangups, conts_before = conts;
            write(ready[1], "x", 1);
            wait_fork();
            int good = terminal_now() == 0 && getsid(0) == session && !has_terminal() &&
                       isatty(slave) && hangups == hangups_before && conts == conts_before;
            write(done[1], good ? "y" : "n", 1);
            _exit(0);
        }
        _exit(0);
    }
    char byte;
    MUST(waitpid(leader, &status, 0) == leader && status == 0 && read(ready[0], &byte, 1) == 1);
    /* Jobs that are stopped by Ctrl-Z and by reading from behind, and a zombie of the same group. */
    pid_t stopped = child();
    if (stopped == 0) {
        setpgid(0, 0);
        signal(SIGTSTP, SIG_DFL);
        raise(SIGTSTP);
        CHECK(conts == 1 && hangups == 0);
        _exit(0);
    }
    MUST(waitpid(stopped, &status, WUNTRACED) == stopped && WSTOPSIG(status) == SIGTSTP);
    pid_t reader = child();
    if (reader == 0) {
        setpgid(0, 0);
        signal(SIGTTIN, SIG_DFL);
        char byte;
        CHECK(read(0, &byte, 1) == 1 && byte == '!');
        CHECK(conts == 1 && hangups == 0);
        _exit(0);
    }
    MUST(waitpid(reader, &status, WUNTRACED) == reader && WSTOPSIG(status) == SIGTTIN);
    pid_t zombie = fork();
    if (zombie == 0) {
        setpgid(0, stopped);
        _exit(0);
    }
    zoo_sleep_ms(50);
    /* A line for it, which waits. */
    struct pollfd typed = {0, POLLIN, 0};
    MUST(poll(&typed, 1, 20000) == 1);

    zoo_await_fork();

    int terminal_after, foreground_after;
    of_stat(&terminal_after, &foreground_after);
    MUST(terminal_after == terminal && foreground_after == getpid() && tcgetpgrp(0) == getpid());
    MUST(tcgetattr(0, &now) == 0 && now.c_lflag == raw.c_lflag && now.c_cc[VINTR] == 1);
    MUST(strcmp(ttyname(tty), "/dev/tty") == 0 && strcmp(ttyname(same), ttyname(0)) == 0);
    MUST((fcntl(tty, F_GETFL) & (O_ACCMODE | O_NONBLOCK)) == (O_RDWR | O_NONBLOCK));
    MUST((fcntl(same, F_GETFL) & (O_ACCMODE | O_NONBLOCK)) == O_WRONLY);
    MUST(waitpid(stopped, &status, WUNTRACED | WNOHANG | WCONTINUED) == 0);
    MUST(waitpid(reader, &status, WUNTRACED | WNOHANG | WCONTINUED) == 0);
    MUST(waitpid(zombie, &status, 0) == zombie && status == 0);
    MUST(write(tty, "tty\n", 4) == 4 && write(same, "same\n", 5) == 5);
    MUST(read(done[0], &byte, 1) == 1 && byte == 'y');
    kill(stopped, SIGCONT);
    for (int n = 0; n < count; n++) {
        if (ok[n] == reader) {
            /* It reads as soon as it is in the foreground: what was typed before the fork. */
            signal(SIGTTOU, SIG_IGN);
            MUST(tcsetpgrp(0, reader) == 0);
            kill(reader, SIGCONT);
        }
        if (waitpid(ok[n], &status, 0) != ok[n] || status != 0) zoo_fail("child %d: %x", n, status);
    }
    MUST(tcsetpgrp(0, getpid()) == 0);
    MUST(hangups == 0 && conts == 0 && winches == 0 && others == 0);
    return zoo_ok();
}
