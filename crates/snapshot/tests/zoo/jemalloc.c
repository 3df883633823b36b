/* An allocator that maps, trims and drops by itself: run with it preloaded, in several threads. */
#include "zoo.h"
#include <pthread.h>

#define SLOTS 4000
static unsigned char *slots[4][SLOTS];
static size_t sizes[4][SLOTS];
static volatile int rounds[4], stop;

/* All of a slot is its own number, or it is free. */
static void check(int who, int n) {
    for (size_t i = 0; i < sizes[who][n]; i++)
        MUST(slots[who][n][i] == (unsigned char)(who * 31 + n));
}

static void *churn(void *arg) {
    int who = (int)(long)arg;
    unsigned random = who + 1;
    while (!stop || rounds[who] < 115) {
        for (int i = 0; i < 300; i++) {
            random = random * 1103515245 + 12345;
            int n = random / 65536 % SLOTS;
            check(who, n);
            free(slots[who][n]);
            sizes[who][n] = random % 7 == 0 ? random / 1024 % 200000 : random / 1024 % 600;
            slots[who][n] = malloc(sizes[who][n]);
            memset(slots[who][n], who * 31 + n, sizes[who][n]);
            unsigned char *zeros = calloc(1, 30000 + random % 90000);
            for (int z = 0; z < 30000; z += 64) MUST(zeros[z] == 0);
            memset(zeros, 0xff, 30000);
            free(zeros);
        }
        rounds[who]++;
        if (!stop) zoo_sleep_ms(1);
    }
    return NULL;
}

int main(void) {
    pthread_t threads[4];
    for (long n = 0; n < 4; n++) MUST(pthread_create(&threads[n], NULL, churn, (void *)n) == 0);
    while (rounds[0] < 10 || rounds[1] < 10 || rounds[2] < 10 || rounds[3] < 10) zoo_sleep_ms(1);
    zoo_await_fork();
    for (int n = 0; n < 4; n++) rounds[n] = 100;
    stop = 1;
    for (int n = 0; n < 4; n++) MUST(pthread_join(threads[n], NULL) == 0);
    for (int who = 0; who < 4; who++)
        for (int n = 0; n < SLOTS; n++) check(who, n);
    return zoo_ok();
}
