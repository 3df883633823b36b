/* timerfd: expired and unread, about to expire, far away, absolute, and not armed. */
#include "zoo.h"
#include <sys/timerfd.h>

static double seconds(struct timespec t) { return t.tv_sec + t.tv_nsec / 1e9; }

static int timer(int clock, int how, double value, double interval) {
    int fd = timerfd_create(clock, TFD_NONBLOCK);
    struct itimerspec set = {{interval, (interval - (long)interval) * 1e9},
                             {value, (value - (long)value) * 1e9}};
    MUST(fd >= 0 && timerfd_settime(fd, how, &set, NULL) == 0);
    return fd;
}

int main(void) {
    struct timespec begin, now;
    struct itimerspec left;
    uint64_t ticks;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    int once = timer(CLOCK_MONOTONIC, 0, 0.001, 0);
    int often = timer(CLOCK_BOOTTIME, 0, 0.001, 0.01);
    int far = timer(CLOCK_REALTIME, 0, 1000, 7);
    int soon = timer(CLOCK_MONOTONIC, 0, 2, 0);
    int moment = timer(CLOCK_MONOTONIC, TFD_TIMER_ABSTIME, seconds(begin) + 500, 0);
    int unarmed = timer(CLOCK_MONOTONIC, 0, 0, 0);
    int spent = timer(CLOCK_MONOTONIC, 0, 0.001, 0);
    MUST(fcntl(soon, F_SETFL, 0) == 0);
    zoo_sleep_ms(50);
    MUST(read(spent, &ticks, 8) == 8 && ticks == 1);
    zoo_await_fork();
    MUST(read(once, &ticks, 8) == 8 && ticks == 1);
    MUST(read(once, &ticks, 8) < 0 && errno == EAGAIN);
    clock_gettime(CLOCK_MONOTONIC, &now);
    MUST(read(often, &ticks, 8) == 8);
    double passed = seconds(now) - seconds(begin);
    if (ticks < 5 || ticks > passed * 100 + 2) zoo_fail("%lu ticks in %f s", ticks, passed);
    MUST(timerfd_gettime(far, &left) == 0 && left.it_interval.tv_sec == 7);
    double rest = seconds(left.it_value);
    if (rest > 1000 || rest < 1000 - passed - 1) zoo_fail("%f s left after %f s", rest, passed);
    MUST(timerfd_gettime(moment, &left) == 0);
    clock_gettime(CLOCK_MONOTONIC, &now);
    double off = seconds(left.it_value) + seconds(now) - seconds(begin) - 500;
    if (off > 0.01 || off < -0.01) zoo_fail("%f s off", off);
    MUST(timerfd_gettime(unarmed, &left) == 0 && left.it_value.tv_sec == 0);
    MUST(left.it_value.tv_nsec == 0 && read(unarmed, &ticks, 8) < 0 && errno == EAGAIN);
    MUST(read(spent, &ticks, 8) < 0 && errno == EAGAIN);
    MUST(read(soon, &ticks, 8) == 8 && ticks == 1);
    clock_gettime(CLOCK_MONOTONIC, &now);
    MUST(seconds(now) - seconds(begin) >= 2);
    return zoo_ok();
}
