/* System V shared memory, semaphores and messages: ids, keys, owners, contents, and who waits. */
#include "zoo.h"
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/wait.h>

enum { SIZE = 3 * 4096 + 100, LARGE = 64 << 20 };
struct message { long type; char text[8192]; };

static int set, queue;

/* Wait for what comes after the fork only; processes, for the kernel does not tell what threads
   would have undone of semaphores. */
static void takes(void) {
    struct sembuf down = {1, -3, 0};
    MUST(semop(set, &down, 1) == 0);
}

static void receives(void) {
    static struct message got;
    MUST(msgrcv(queue, &got, sizeof got.text, 99, 0) == 4 && memcmp(got.text, "late", 4) == 0);
}

static pid_t child_that(void (*works)(void)) {
    pid_t pid = fork();
    if (pid == 0) {
        works();
        _exit(0);
    }
    return pid;
}

static unsigned long attached(int id) {
    struct shmid_ds now;
    MUST(shmctl(id, IPC_STAT, &now) == 0);
    return now.shm_nattch;
}

int main(void) {
    set = semget(0x5e5, 3, IPC_CREAT | 0604);
    int fresh = semget(IPC_PRIVATE, 1, 0600);
    unsigned short values[3] = {7, 2, 0};
    MUST(set >= 0 && fresh >= 0 && semctl(set, 0, SETALL, values) == 0);
    struct sembuf down = {0, -2, 0};
    MUST(semop(set, &down, 1) == 0);
    queue = msgget(0x9e9, IPC_CREAT | 0622);
    static struct message message = {5};
    memset(message.text, 'm', sizeof message.text);
    MUST(queue >= 0 && msgsnd(queue, &message, sizeof message.text, 0) == 0);
    message.type = 2;
    strcpy(message.text, "small");
    MUST(msgsnd(queue, &message, 5, 0) == 0 && msgsnd(queue, &message, 0, 0) == 0);
    pid_t taker = child_that(takes), receiver = child_that(receives);
    while (semctl(set, 1, GETNCNT) != 1) zoo_sleep_ms(1);
    /* An id that is not the first of its place. */
    int gone = shmget(IPC_PRIVATE, 1, 0600);
    MUST(gone >= 0 && shmctl(gone, IPC_RMID, NULL) == 0);
    int memory = shmget(0x12345678, SIZE, IPC_CREAT | IPC_EXCL | 0640);
    int unattached = shmget(IPC_PRIVATE, LARGE, 0600), marked = shmget(0x777, 4096, IPC_CREAT | 0600);
    MUST(memory >= 0 && memory != gone && unattached >= 0 && marked >= 0);
    char *at = shmat(memory, NULL, 0), *again = shmat(memory, NULL, SHM_RDONLY);
    char *passing = shmat(unattached, NULL, 0), *last = shmat(marked, NULL, 0);
    MUST(at != (void *)-1 && again != (void *)-1 && passing != (void *)-1 && last != (void *)-1);
    strcpy(at, "begin");
    strcpy(at + SIZE - 10, "end");
    strcpy(passing + LARGE / 2, "middle");
    strcpy(last, "last");
    MUST(shmdt(passing) == 0 && shmctl(marked, IPC_RMID, NULL) == 0);
    /* A hole in the middle of an attachment. */
    char *parted = shmat(memory, NULL, 0);
    MUST(parted != (void *)-1 && munmap(parted + 4096, 4096) == 0);
    MUST(mprotect(parted, 4096, PROT_READ) == 0);
    int ready[2];
    char byte;
    MUST(pipe(ready) == 0);
    pid_t child = fork();
    if (child == 0) {
        MUST(shmdt(again) == 0);
        write(ready[1], "x", 1);
        while (!zoo_forked()) zoo_sleep_ms(2);
        while (at[100] != 'p') zoo_sleep_ms(1);
        at[101] = 'c';
        _exit(shmdt(at));
    }
    MUST(read(ready[0], &byte, 1) == 1);
    unsigned long count = attached(memory);
    struct shmid_ds was, now;
    MUST(shmctl(memory, IPC_STAT, &was) == 0 && attached(marked) == 2);

    zoo_await_fork();

    MUST(shmget(0x12345678, SIZE, 0) == memory && shmctl(memory, IPC_STAT, &now) == 0);
    MUST(now.shm_segsz == SIZE && now.shm_perm.mode == was.shm_perm.mode);
    MUST(now.shm_perm.uid == was.shm_perm.uid && now.shm_perm.__key == 0x12345678);
    for (int n = 0; n < 5000 && attached(memory) > count; n++) zoo_sleep_ms(1);
    MUST(strcmp(at, "begin") == 0 && strcmp(again + SIZE - 10, "end") == 0);
    MUST(strcmp(parted, "begin") == 0 && strcmp(parted + SIZE - 10, "end") == 0);
    MUST(mprotect(again, 4096, PROT_READ | PROT_WRITE) < 0 && errno == EACCES);
    at[100] = 'p';
    int status;
    MUST(waitpid(child, &status, 0) == child && status == 0);
    MUST(at[101] == 'c' && again[101] == 'c' && parted[101] == 'c');
    MUST(shmdt(again) == 0 && shmdt(parted) == 0 && attached(memory) == 1 && shmdt(at) == 0);
    MUST(attached(memory) == 0 && shmctl(memory, IPC_RMID, NULL) == 0);
    MUST(shmctl(unattached, IPC_STAT, &now) == 0 && now.shm_segsz == LARGE);
    passing = shmat(unattached, NULL, 0);
    MUST(passing != (void *)-1 && strcmp(passing + LARGE / 2, "middle") == 0 && passing[0] == 0);
    MUST(strcmp(last, "last") == 0 && shmget(0x777, 4096, 0) < 0 && errno == ENOENT);
    MUST(attached(marked) == 1 && shmdt(last) == 0);
    MUST(shmctl(marked, IPC_STAT, &now) < 0 && (errno == EINVAL || errno == EIDRM));

    struct semid_ds sems;
    MUST(semget(0x5e5, 3, 0) == set && semctl(set, 0, GETALL, values) == 0);
    MUST(values[0] == 5 && values[1] == 2 && values[2] == 0);
    MUST(semctl(set, 0, IPC_STAT, &sems) == 0 && sems.sem_otime != 0);
    MUST((sems.sem_perm.mode & 0777) == 0604);
    MUST(semctl(fresh, 0, IPC_STAT, &sems) == 0 && sems.sem_otime == 0);
    struct sembuf up = {1, 1, 0};
    MUST(semop(set, &up, 1) == 0 && waitpid(taker, &status, 0) == taker && status == 0);
    MUST(semctl(set, 1, GETVAL) == 0);

    static struct message got;
    MUST(msgget(0x9e9, 0) == queue && msgrcv(queue, &got, sizeof got.text, 2, 0) == 5);
    MUST(memcmp(got.text, "small", 5) == 0);
    MUST(msgrcv(queue, &got, sizeof got.text, 0, 0) == sizeof got.text && got.type == 5);
    for (unsigned n = 0; n < sizeof got.text; n++) MUST(got.text[n] == 'm');
    MUST(msgrcv(queue, &got, sizeof got.text, 2, 0) == 0);
    message.type = 99;
    strcpy(message.text, "late");
    MUST(msgsnd(queue, &message, 4, 0) == 0);
    MUST(waitpid(receiver, &status, 0) == receiver && status == 0);
    return zoo_ok();
}
