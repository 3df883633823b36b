/* Objects of System V IPC, which a fork refuses; they are whole afterwards. */
#include "zoo.h"
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>

int main(void) {
    const char *kind = getenv("ZOO");
    MUST(kind);
    struct { long type; char text[8]; } message = {1, "message"};
    if (strcmp(kind, "sem") == 0) {
        int id = semget(1, 2, IPC_CREAT | 0600);
        MUST(id >= 0 && semctl(id, 1, SETVAL, 7) == 0);
        zoo_await_fork();
        MUST(semctl(id, 1, GETVAL) == 7);
    } else if (strcmp(kind, "msg") == 0) {
        int id = msgget(1, IPC_CREAT | 0600);
        MUST(id >= 0 && msgsnd(id, &message, 8, 0) == 0);
        zoo_await_fork();
        MUST(msgrcv(id, &message, 8, 0, IPC_NOWAIT) == 8);
    } else {
        int id = shmget(1, 8192, IPC_CREAT | 0600);
        char *at = shmat(id, NULL, 0);
        MUST(at != (void *)-1);
        strcpy(at, "text");
        if (strcmp(kind, "attached") != 0) MUST(shmdt(at) == 0);
        zoo_await_fork();
        if (strcmp(kind, "attached") != 0) at = shmat(id, NULL, 0);
        MUST(strcmp(at, "text") == 0);
    }
    return zoo_ok();
}
