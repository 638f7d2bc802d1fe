/* A cable with a latency, for cable.py: what one of two TAP devices sends reaches the other so many seconds later.
 *
 *     cable TAP TAP SECONDS
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

enum { FRAME = 2048, SLOTS = 8192 };

typedef struct {
    int from, to;
    double latency;
} direction;

typedef struct {
    double due;
    ssize_t nbytes;
    char data[FRAME];
} frame;

static int tap(const char *name)
{
    struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI};
    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    int file = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
    if (file < 0 || ioctl(file, TUNSETIFF, &request)) {
        perror(name);
        exit(1);
    }
    return file;
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* Frames leave in the order in which they came. */
static void *carry(void *argument)
{
    const direction *way = argument;
    frame *ring = calloc(SLOTS, sizeof *ring);
    for (unsigned first = 0, last = 0;;) {
        for (; last - first < SLOTS; last++) {
            frame *next = &ring[last % SLOTS];
            next->nbytes = read(way->from, next->data, FRAME);
            if (next->nbytes <= 0) break;
            next->due = now() + way->latency;
        }
        for (; first != last && ring[first % SLOTS].due <= now(); first++) {
            const frame *next = &ring[first % SLOTS];
            if (write(way->to, next->data, (size_t)next->nbytes) < 0) continue;     /* lost, as on any cable */
        }
        double wait = first == last ? 1.0 : ring[first % SLOTS].due - now();
        struct timespec time = {(time_t)wait, (long)(1e9 * (wait - (double)(time_t)wait))};
        struct pollfd arrival = {way->from, POLLIN, 0};
        if (wait > 0) ppoll(&arrival, 1, &time, NULL);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    if (argc != 4) {
        fprintf(stderr, "cable TAP TAP SECONDS\n");
        return 2;
    }
    int one = tap(argv[1]), other = tap(argv[2]);
    double latency = atof(argv[3]);
    direction there = {one, other, latency}, back = {other, one, latency};
    puts("ready");
    fflush(stdout);
    pthread_t thread;
    if (pthread_create(&thread, NULL, carry, &there)) return 1;
    carry(&back);
}
