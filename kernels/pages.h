/* Pages of a mapped file: into memory, out of it, and a clear end where the file was cut short behind the mapping. */
#ifndef LORAFAST_PAGES_H
#define LORAFAST_PAGES_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22           /* Linux 5.14 */
#endif
#define PAGES_AT_ONCE (4 << 20)         /* bytes: so much is begun again after a signal */

/* The smallest whole pages that hold `bytes` bytes at p. */
static uint8_t *pages_of(const uint8_t *p, size_t *bytes) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), before = (uintptr_t)p % page;
    *bytes = (before + *bytes + page - 1) / page * page;
    return (uint8_t *)p - before;
}

/* Reads what is not in memory, and enters all pages in the page table. 0, or errno: EFAULT where the file has become shorter. */
static int pages_populate(const uint8_t *p, size_t bytes) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    uint8_t *begin = pages_of(p, &bytes);
    for (size_t at = 0; at < bytes; at += PAGES_AT_ONCE) {
        const size_t n = bytes - at < PAGES_AT_ONCE ? bytes - at : PAGES_AT_ONCE;
        if (!madvise(begin + at, n, MADV_POPULATE_READ)) continue;
        if (errno == EINTR || errno == EAGAIN) { at -= PAGES_AT_ONCE; continue; }
        if (errno != EINVAL) return errno;
        for (size_t i = 0; i < n; i += page) (void)*(volatile uint8_t *)(begin + at + i);       /* an older system */
    }
    return 0;
}

/* Takes the pages that lie within these bytes out of the page table. They stay in the system's cache, to be mapped again when read. */
static int pages_let_go(const uint8_t *p, size_t bytes) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), before = (page - (uintptr_t)p % page) % page;
    if (bytes < before + page) return 0;
    return madvise((uint8_t *)p + before, (bytes - before) / page * page, MADV_DONTNEED) ? errno : 0;
}

static char pages_message[512];

static void pages_bus_error(int number) {
    (void)number;
    if (write(STDERR_FILENO, pages_message, strlen(pages_message))) {}
    _exit(1);
}

/* From now on a page that cannot be read ends the process with this message and status 1, instead of a core dump. */
static int pages_on_bus_error(const char *message) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = pages_bus_error;
    strncpy(pages_message, message, sizeof pages_message - 1);
    return sigaction(SIGBUS, &action, NULL) ? errno : 0;
}

#endif
