/* What every program of the zoo does: make something, say that it is there, and look at it again
   after the fork, in the original and in each clone. */
#ifndef ZOO_H
#define ZOO_H
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static inline void zoo_sleep_ms(long ms) {
    struct timespec t = {ms / 1000, ms % 1000 * 1000000};
    while (nanosleep(&t, &t) < 0 && errno == EINTR) {}
}

/* Ends the program with what is wrong. */
__attribute__((format(printf, 1, 2))) static inline void zoo_fail(const char *format, ...) {
    char text[1024] = "FAIL: ";
    va_list args;
    va_start(args, format);
    int length = 6 + vsnprintf(text + 6, sizeof text - 8, format, args);
    va_end(args);
    text[length++] = '\n';
    if (write(1, text, length) < 0) _exit(2);
    _exit(1);
}

/* A call or a condition that must hold, before the fork or after. */
#define MUST(condition)                                                                        \
    do {                                                                                       \
        errno = 0;                                                                             \
        if (!(condition)) zoo_fail("%s:%d: %s (%s)", __FILE__, __LINE__, #condition,           \
                                   strerror(errno));                                           \
    } while (0)

/* Whether the fork is over: the test makes this file in the original and in each clone. */
static inline int zoo_forked(void) { return access("/root/forked", F_OK) == 0; }

/* Says that all is there, and returns after the fork. */
static inline void zoo_await_fork(void) {
    if (write(1, "ready\n", 6) != 6) _exit(2);
    while (!zoo_forked()) zoo_sleep_ms(2);
}

/* All is as it was. */
static inline int zoo_ok(void) {
    if (write(1, "ok\n", 3) != 3) _exit(2);
    return 0;
}

#endif
