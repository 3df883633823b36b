/* A semaphore that is given back at the end of its process. */
#include "zoo.h"
#include <sys/sem.h>
#include <sys/wait.h>

int main(void) {
    int set = semget(IPC_PRIVATE, 1, 0600), ready[2], status;
    struct sembuf up = {0, 1, SEM_UNDO};
    char byte;
    MUST(set >= 0 && pipe(ready) == 0);
    pid_t child = fork();
    if (child == 0) {
        MUST(semop(set, &up, 1) == 0 && write(ready[1], "x", 1) == 1);
        while (!zoo_forked()) zoo_sleep_ms(2);
        _exit(0);
    }
    MUST(read(ready[0], &byte, 1) == 1 && semctl(set, 0, GETVAL) == 1);
    zoo_await_fork();
    MUST(waitpid(child, &status, 0) == child && status == 0 && semctl(set, 0, GETVAL) == 0);
    return zoo_ok();
}
