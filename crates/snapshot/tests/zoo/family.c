/* A family that shares its memory, so that a fork, which copies that of each, takes more than all
   of them have. */
#include "zoo.h"
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#define LENGTH (24L << 20)
#define CHILDREN 6

int main(void) {
    char *area = mmap(NULL, LENGTH, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(area != MAP_FAILED);
    memset(area, 1, LENGTH);
    for (int child = 0; child < CHILDREN; child++) {
        if (fork() == 0) {
            MUST(prctl(PR_SET_PDEATHSIG, 9) == 0);
            while (!zoo_forked()) zoo_sleep_ms(2);
            for (long at = 0; at < LENGTH; at += 512) MUST(area[at] == 1);
            _exit(0);
        }
    }
    zoo_await_fork();
    int status;
    while (wait(&status) > 0) MUST(status == 0);
    return zoo_ok();
}
