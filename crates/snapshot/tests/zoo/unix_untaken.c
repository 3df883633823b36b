/* A connection that nobody accepts, with data in it, which cannot be copied. */
#include "zoo.h"
#include <sys/socket.h>
#include <sys/un.h>

int main(void) {
    struct sockaddr_un address = {AF_UNIX, "/tmp/server"};
    char text[8];
    int listener = socket(AF_UNIX, SOCK_STREAM, 0), client = socket(AF_UNIX, SOCK_STREAM, 0);
    MUST(bind(listener, (void *)&address, sizeof address) == 0 && listen(listener, 5) == 0);
    MUST(connect(client, (void *)&address, sizeof address) == 0 && send(client, "early", 5, 0) == 5);
    zoo_await_fork();
    int accepted = accept(listener, NULL, NULL);
    MUST(accepted >= 0 && recv(accepted, text, 8, 0) == 5 && memcmp(text, "early", 5) == 0);
    return zoo_ok();
}
