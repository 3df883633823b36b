/* Pseudoterminals of a program's own: numbers, settings, unread input and output, states. */
#include "zoo.h"
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <termios.h>

static int open_master(void) {
    int master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC), locked = 0;
    MUST(master >= 0 && ioctl(master, TIOCSPTLCK, &locked) == 0);
    return master;
}

static int number(int master) {
    int n = -1;
    MUST(ioctl(master, TIOCGPTN, &n) == 0);
    return n;
}

static int open_slave(int master, int flags) {
    char path[32];
    snprintf(path, sizeof path, "/dev/pts/%d", number(master));
    int slave = open(path, flags | O_NOCTTY | O_CLOEXEC);
    MUST(slave >= 0);
    return slave;
}

static short events(int fd) {
    struct pollfd p = {fd, POLLIN | POLLOUT | POLLPRI, 0};
    MUST(poll(&p, 1, 0) >= 0);
    return p.revents;
}

/* What a pty takes in arrives a moment later. */
static void await(int fd, short wanted, short events_wanted) {
    for (int n = 0; (events(fd) & wanted) != events_wanted; n++) {
        MUST(n < 5000);
        zoo_sleep_ms(1);
    }
}

static void expect(int fd, const char *text, int length) {
    char bytes[8192];
    int done = 0;
    while (done < length) {
        await(fd, POLLIN, POLLIN);
        int count = read(fd, bytes + done, length - done);
        MUST(count > 0);
        done += count;
    }
    for (int n = 0; n < length; n++)
        if (bytes[n] != text[n]) zoo_fail("byte %d of %d: %d, not %d", n, length, bytes[n], text[n]);
}

/* The same in packet mode: each read has a zero first, and how much is in one is the kernel's. */
static void expect_packets(int fd, const char *text, int length) {
    char bytes[8192];
    for (int done = 0, count; done < length; done += count - 1) {
        await(fd, POLLIN, POLLIN);
        count = read(fd, bytes, sizeof bytes);
        if (count < 2 || count - 1 > length - done || bytes[0] != 0) zoo_fail("a packet of %d", count);
        if (memcmp(bytes + 1, text + done, count - 1) != 0) zoo_fail("other bytes at %d", done);
    }
}

static void expect_line(int fd, const char *text, int length) {
    char bytes[8192];
    await(fd, POLLIN, POLLIN);
    int count = read(fd, bytes, sizeof bytes);
    if (count != length || memcmp(bytes, text, length) != 0)
        zoo_fail("a line of %d bytes, not of %d: %.*s", count, length, count > 0 ? count : 0, bytes);
}

static void type(int master, const char *text, int length) {
    MUST(write(master, text, length) == length);
}

int main(void) {
    struct termios raw, other, now;
    /* Lines, a line ended by Ctrl-D, a line that is not complete with a Ctrl-V behind, and what
       the terminal and its programs said to it. */
    int lines = open_master(), unused = open_master(), lines_slave = open_slave(lines, O_RDWR);
    type(lines, "one\ntw\x04" "part\x16", 12);
    expect(lines, "one\r\ntwpart^\b", 13);
    MUST(write(lines_slave, "said\n", 5) == 5);
    await(lines, POLLIN, POLLIN);
    MUST(fchmod(lines_slave, 0604) == 0);
    /* A gap in the numbers. */
    int bytes = open_master(), bytes_slave = open_slave(bytes, O_RDWR);
    MUST(close(unused) == 0);
    /* Every byte there is, both ways, in a window of some size. */
    char all[256];
    for (int n = 0; n < 256; n++) all[n] = n;
    MUST(tcgetattr(bytes_slave, &raw) == 0);
    cfmakeraw(&raw);
    raw.c_cc[VMIN] = 3;
    raw.c_cc[VTIME] = 7;
    cfsetspeed(&raw, B9600);
    MUST(tcsetattr(bytes_slave, TCSANOW, &raw) == 0);
    struct winsize size = {33, 101, 5, 6}, size_now;
    MUST(ioctl(bytes, TIOCSWINSZ, &size) == 0);
    type(bytes, all, 256);
    MUST(write(bytes_slave, all, 256) == 256);
    int bytes_again = open_slave(bytes, O_RDONLY | O_NONBLOCK);
    MUST(fcntl(bytes, F_SETFL, O_NONBLOCK) == 0);
    /* Byte by byte with signals and flow control, as a line editor has it. */
    int keys = open_master(), keys_slave = open_slave(keys, O_RDWR);
    MUST(tcgetattr(keys_slave, &other) == 0);
    other.c_lflag &= ~(ICANON | ECHO);
    MUST(tcsetattr(keys_slave, TCSANOW, &other) == 0);
    type(keys, "keys", 4);
    /* Packets, and one that is for one opener alone. */
    int packet = open_master(), packet_slave = open_slave(packet, O_RDWR), on = 1;
    MUST(ioctl(packet, TIOCPKT, &on) == 0 && ioctl(packet_slave, TIOCEXCL) == 0);
    MUST(write(packet_slave, "in a packet", 11) == 11);
    type(packet, "half", 4);
    expect_packets(packet, "in a packethalf", 15);
    MUST(write(packet_slave, "more", 4) == 4);
    /* One that nobody has opened, and is locked; one whose slave is closed; one whose master is. */
    int fresh = open("/dev/ptmx", O_RDWR | O_NOCTTY), closed = open_master(), gone = open_master();
    int closing = open_slave(closed, O_RDWR), hung = open_slave(gone, O_RDWR);
    MUST(write(closing, "last words", 10) == 10 && close(closing) == 0 && close(gone) == 0);
    await(closed, POLLHUP | POLLIN, POLLHUP | POLLIN);
    /* Output stopped by Ctrl-S, and by a call with some on its way. */
    int stopped = open_master(), stopped_slave = open_slave(stopped, O_RDWR);
    MUST(write(stopped_slave, "before", 6) == 6);
    type(stopped, "\x13", 1);
    await(stopped_slave, POLLOUT, 0);
    int flow = open_master(), flow_slave = open_slave(flow, O_RDWR);
    MUST(write(flow_slave, "on its way", 10) == 10 && tcflow(flow_slave, TCOOFF) == 0);
    /* Full. */
    int full = open_master(), full_slave = open_slave(full, O_RDWR | O_NONBLOCK);
    int written = 0;
    for (int idle = 0; idle < 20;) {
        if (write(full_slave, "f", 1) == 1) written++, idle = 0;
        else zoo_sleep_ms(1), idle++;
    }
    MUST(written > 4096);
    /* Opened so, its flags have O_CLOEXEC for all of its descriptors. */
    int flagged = ioctl(full, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC), unflagged = dup(flagged);
    MUST(fcntl(flagged, F_GETFD) == FD_CLOEXEC && fcntl(unflagged, F_GETFD) == 0);
    int numbers[] = {number(lines), number(bytes), number(keys), number(packet), number(fresh),
                     number(closed), number(stopped), number(flow), number(full)};

    zoo_await_fork();

    int masters[] = {lines, bytes, keys, packet, fresh, closed, stopped, flow, full};
    for (int n = 0; n < 9; n++) MUST(number(masters[n]) == numbers[n]);
    MUST(numbers[1] == numbers[0] + 2);
    struct stat by_path, by_descriptor;
    char path[32];
    snprintf(path, sizeof path, "/dev/pts/%d", numbers[0]);
    MUST(strcmp(ttyname(lines_slave), path) == 0);
    MUST(stat(path, &by_path) == 0 && fstat(lines_slave, &by_descriptor) == 0);
    MUST(by_path.st_ino == by_descriptor.st_ino && by_path.st_rdev == by_descriptor.st_rdev);
    MUST((by_path.st_mode & 0777) == 0604 && by_path.st_uid == 0);

    expect(lines, "said\r\n", 6);
    expect_line(lines_slave, "one\n", 4);
    expect_line(lines_slave, "tw", 2);
    MUST(!(events(lines_slave) & POLLIN));
    type(lines, "\x03\x7f?\n", 4); /* a Ctrl-C that is plain, then erased */
    expect_line(lines_slave, "part?\n", 6);
    expect(lines, "^C\b \b\b \b?\r\n", 11);
    MUST(!(events(lines) & POLLIN));

    MUST(tcgetattr(bytes_slave, &now) == 0 && now.c_lflag == raw.c_lflag);
    MUST(now.c_iflag == raw.c_iflag && now.c_oflag == raw.c_oflag && now.c_cflag == raw.c_cflag);
    MUST(memcmp(now.c_cc, raw.c_cc, sizeof raw.c_cc) == 0 && cfgetispeed(&now) == B9600);
    MUST(ioctl(bytes_slave, TIOCGWINSZ, &size_now) == 0 && memcmp(&size, &size_now, sizeof size) == 0);
    expect(bytes, all, 256);
    expect(bytes_slave, all, 256);
    char byte;
    MUST((fcntl(bytes, F_GETFL) & (O_NONBLOCK | O_ACCMODE)) == (O_NONBLOCK | O_RDWR));
    MUST((fcntl(bytes_slave, F_GETFL) & (O_NONBLOCK | O_ACCMODE)) == O_RDWR);
    MUST((fcntl(bytes_again, F_GETFL) & (O_NONBLOCK | O_ACCMODE)) == (O_NONBLOCK | O_RDONLY));
    MUST(read(bytes, &byte, 1) < 0 && errno == EAGAIN);
    MUST(read(bytes_again, &byte, 1) < 0 && errno == EAGAIN);
    MUST(fcntl(bytes, F_GETFD) == FD_CLOEXEC && fcntl(fresh, F_GETFD) == 0);
    MUST(fcntl(flagged, F_GETFD) == FD_CLOEXEC && fcntl(unflagged, F_GETFD) == 0);

    expect(keys_slave, "keys", 4);
    MUST(!(events(keys) & POLLIN));
    type(keys, "\x13", 1); /* flow control still has its meaning */
    await(keys_slave, POLLOUT, 0);

    int flag = 0;
    MUST(ioctl(packet, _IOR('T', 0x38, int), &flag) == 0 && flag == 1);
    MUST(ioctl(packet_slave, _IOR('T', 0x40, int), &flag) == 0 && flag == 1);
    expect_packets(packet, "more", 4);
    type(packet, "-done\n", 6);
    expect_line(packet_slave, "half-done\n", 10);

    MUST(!(events(fresh) & POLLHUP));
    MUST(ioctl(fresh, _IOR('T', 0x39, int), &flag) == 0 && flag == 1);
    snprintf(path, sizeof path, "/dev/pts/%d", numbers[4]);
    MUST(open(path, O_RDWR | O_NOCTTY) < 0 && errno == EIO);
    MUST(events(closed) & POLLHUP);
    expect(closed, "last words", 10);
    MUST(read(closed, &byte, 1) < 0 && errno == EIO);
    int reopened = open_slave(closed, O_RDWR);
    MUST(!(events(closed) & POLLHUP) && close(reopened) == 0);
    MUST(read(hung, &byte, 1) == 0 && write(hung, "x", 1) < 0 && errno == EIO);
    MUST(tcgetattr(hung, &now) < 0 && errno == EIO && events(hung) & POLLHUP);

    expect(stopped, "before", 6);
    zoo_sleep_ms(20);
    MUST(!(events(stopped_slave) & POLLOUT));
    MUST(tcflow(stopped_slave, TCOON) == 0 && !(events(stopped_slave) & POLLOUT));
    type(stopped, "\x11", 1);
    await(stopped_slave, POLLOUT, POLLOUT);
    MUST(!(events(flow_slave) & POLLOUT));
    expect(flow, "on its way", 10);
    zoo_sleep_ms(20);
    MUST(!(events(flow_slave) & POLLOUT));
    MUST(tcflow(flow_slave, TCOON) == 0 && events(flow_slave) & POLLOUT);

    char *fs = malloc(written);
    memset(fs, 'f', written);
    for (int rest = written; rest > 0; rest -= 1000) expect(full, fs, rest < 1000 ? rest : 1000);
    MUST(!(events(full) & POLLIN) && events(full_slave) & POLLOUT);
    return zoo_ok();
}
