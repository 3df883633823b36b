/* Files and directories of /proc that tell of processes, read in part. */
#include "zoo.h"
#include <dirent.h>
#include <signal.h>
#include <sys/wait.h>

static void rest(int fd, char *text, int size) {
    int length = 0, count;
    while ((count = read(fd, text + length, size - 1 - length)) > 0) length += count;
    MUST(count == 0);
    text[length] = 0;
}

int main(void) {
    static char text[1 << 16];
    char path[64], wanted[64], name[16];
    pid_t child = fork();
    if (child == 0) for (;;) pause();
    int status = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
    snprintf(path, sizeof path, "/proc/%d/stat", child);
    int stat = open(path, O_RDONLY), same = dup(stat);
    int maps = open("/proc/self/maps", O_RDONLY), own = open("/proc/self", O_PATH);
    DIR *descriptors = opendir("/proc/self/fd");
    MUST(status >= 0 && stat >= 0 && same >= 0 && maps >= 0 && own >= 0 && descriptors);
    MUST(read(status, name, 5) == 5 && memcmp(name, "Name:", 5) == 0);
    MUST(readdir(descriptors) != NULL);

    zoo_await_fork();

    rest(status, text, sizeof text);
    snprintf(wanted, sizeof wanted, "\nPid:\t%d\n", getpid());
    MUST(strncmp(text, "\tzoo\n", 5) == 0 && strstr(text, wanted));
    MUST(fcntl(status, F_GETFD) == FD_CLOEXEC);
    MUST(lseek(same, 1, SEEK_SET) == 1 && lseek(stat, 0, SEEK_CUR) == 1);
    MUST(lseek(stat, 0, SEEK_SET) == 0);
    rest(stat, text, sizeof text);
    snprintf(wanted, sizeof wanted, "%d (zoo) ", child);
    MUST(strncmp(text, wanted, strlen(wanted)) == 0);
    /* It may run still or wait already. */
    MUST(atoi(text + strlen(wanted) + 2) == getpid());
    rest(maps, text, sizeof text);
    MUST(strstr(text, "[stack]") && strstr(text, "/root/zoo"));
    MUST(readlinkat(own, "exe", text, sizeof text) == 9 && memcmp(text, "/root/zoo", 9) == 0);
    int seen = 0;
    for (struct dirent *entry; (entry = readdir(descriptors));)
        seen += atoi(entry->d_name) == maps && entry->d_name[0] != '.';
    MUST(seen == 1);
    MUST(kill(child, SIGKILL) == 0 && waitpid(child, NULL, 0) == child);
    return zoo_ok();
}
