/* Traffic from inside a guest, for bench_network.py: `traffic up|down|connect ADDRESS PORT COUNT` prints a rate:
   bytes or connections per second. */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static char buffer[1 << 20];

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static int dial(const char *address, int port) {
    struct sockaddr_in target = {.sin_family = AF_INET, .sin_port = htons(port)};
    int handle = socket(AF_INET, SOCK_STREAM, 0);
    inet_pton(AF_INET, address, &target.sin_addr);
    if (connect(handle, (struct sockaddr *)&target, sizeof target)) {
        perror("connect");
        exit(1);
    }
    return handle;
}

int main(int argc, char **argv) {
    if (argc != 5)
        return 2;
    long count = atol(argv[4]), done = 0;
    int port = atoi(argv[3]);
    double begin = now();
    if (!strcmp(argv[1], "connect")) {
        for (; done < count; done++) {
            int handle = dial(argv[2], port);
            if (read(handle, buffer, 1) != 1)
                return 1;
            close(handle);
        }
    } else {
        int handle = dial(argv[2], port), up = !strcmp(argv[1], "up");
        while (done < count) {
            size_t size = count - done < (long)sizeof buffer ? count - done : sizeof buffer;
            ssize_t moved = up ? write(handle, buffer, size) : read(handle, buffer, size);
            if (moved <= 0)
                return 1;
            done += moved;
        }
        /* What was sent counts once the other side has read it. */
        shutdown(handle, SHUT_WR);
        while (read(handle, buffer, sizeof buffer) > 0)
            ;
    }
    printf("%.1f\n", done / (now() - begin));
    return 0;
}
