/* What the kernel says of a mapping of this process. */
#ifndef SMAPS_H
#define SMAPS_H
#include "zoo.h"

/* Copies the flags of the mapping that holds an address, each with a space before and behind;
   returns its permissions as a number: 4 read, 2 write, 1 execute. */
static inline int smaps_flags(const void *at, char flags[256]) {
    FILE *file = fopen("/proc/self/smaps", "r");
    MUST(file);
    char line[4096];
    unsigned long start = 0, end = 0;
    char mode[8] = "";
    int within = 0, permissions = -1;
    while (fgets(line, sizeof line, file)) {
        unsigned long a, b;
        char m[8];
        if (sscanf(line, "%lx-%lx %7s", &a, &b, m) == 3) {
            start = a, end = b;
            memcpy(mode, m, sizeof mode);
            within = (unsigned long)at >= start && (unsigned long)at < end;
            if (within)
                permissions = (mode[0] == 'r') * 4 + (mode[1] == 'w') * 2 + (mode[2] == 'x');
        } else if (within && strncmp(line, "VmFlags:", 8) == 0) {
            snprintf(flags, 256, "%.250s", line + 8);
            for (char *c = flags; *c; c++) if (*c == '\n') *c = ' ';
        }
    }
    fclose(file);
    return permissions;
}

static inline int smaps_has(const void *at, const char *flag) {
    char flags[256] = "", wanted[8];
    smaps_flags(at, flags);
    snprintf(wanted, sizeof wanted, " %s ", flag);
    return strstr(flags, wanted) != NULL;
}

#endif
