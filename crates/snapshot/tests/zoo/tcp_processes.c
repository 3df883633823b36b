/* Connections between processes and threads that are in the middle of using them: blocked in
   accept, in a receive, in a send that has no room, and talking all the time. */
#include "inet.h"
#include <pthread.h>
#include <sys/wait.h>

enum { STREAM = 8000000, TALKERS = 4 };

static int server;

/* Answers each word with the next number, until its client has gone. */
static void *answer(void *arg) {
    int fd = (int)(intptr_t)arg;
    uint32_t expected = 0, word;
    while (recv(fd, &word, sizeof word, MSG_WAITALL) == sizeof word) {
        MUST(word == expected);
        expected += 2;
        word++;
        MUST(send(fd, &word, sizeof word, 0) == sizeof word);
    }
    close(fd);
    return 0;
}

static void *accept_all(void *arg) {
    (void)arg;
    for (;;) {
        int fd = accept(server, 0, 0);
        MUST(fd >= 0);
        pthread_t thread;
        MUST(pthread_create(&thread, 0, answer, (void *)(intptr_t)fd) == 0);
        pthread_detach(thread);
    }
    return 0;
}

/* Asks until some time after the fork. Now and then it pauses: who talks without an end, in each of
   several sandboxes at once, leaves the machine no time for anything else. */
static void talk(void) {
    int fd = connected("127.0.0.1", 7200);
    uint32_t word, after = 0;
    for (uint32_t n = 0; after < 50; n += 2) {
        MUST(send(fd, &n, sizeof n, 0) == sizeof n);
        MUST(recv(fd, &word, sizeof word, MSG_WAITALL) == sizeof word && word == n + 1);
        if (n % 20 == 0) zoo_sleep_ms(1);
        if (n % 64 == 0 && zoo_forked()) after++;
    }
    _exit(0);
}

/* Sends more than fits; its reader begins after the fork. */
static void stream(int fd) {
    static char block[100000];
    for (size_t sent = 0; sent < STREAM; sent += sizeof block) {
        fill(block, sent, sizeof block);
        for (size_t part = 0; part < sizeof block;) {
            ssize_t count = send(fd, block + part, sizeof block - part, 0);
            MUST(count > 0);
            part += count;
        }
    }
    _exit(0);
}

int main(void) {
    server = listener("127.0.0.1", 7200, 64);
    int other = listener("::1", 7201, 4), reads[2], sends[2];
    join(other, &reads[0], &reads[1]);
    join(other, &sends[0], &sends[1]);
    pid_t children[TALKERS + 2];
    children[0] = fork();
    if (children[0] == 0) {
        close(reads[0]);
        char text[8] = {0};
        MUST(recv(reads[1], text, 7, MSG_WAITALL) == 7 && strcmp(text, "at last") == 0);
        _exit(0);
    }
    children[1] = fork();
    if (children[1] == 0) {
        close(sends[0]);
        stream(sends[1]);
    }
    close(sends[1]);
    pthread_t thread;
    for (int n = 0; n < TALKERS; n++) {
        children[2 + n] = fork();
        if (children[2 + n] == 0) talk();
    }
    MUST(pthread_create(&thread, 0, accept_all, 0) == 0);
    zoo_sleep_ms(50);
    zoo_await_fork();
    say(reads[0], "at last");
    expect(sends[0], 0, STREAM);
    expect_end(sends[0]);
    for (int n = 0; n < TALKERS + 2; n++) {
        int status;
        MUST(waitpid(children[n], &status, 0) == children[n] && status == 0);
    }
    return zoo_ok();
}
