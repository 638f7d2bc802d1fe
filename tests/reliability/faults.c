/* Preloaded, it makes a call of the system fail, or the process die at it: the n-th of its kind on files in a folder, once
 * or from then on; or the n-th allocation of at least FAULTS_LARGE bytes, but for the arenas of Python's own allocator.
 * Smaller ones do not fail: where a new thread has no memory to begin with, Thread.start waits for ever (CPython). Or the
 * n-th of the kernels, or of any of one thread. Built by preload.py, driven by faults.py and kernel_memory.py. Linux with
 * glibc. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#define FAULTS_LARGE 20000
#define IS_ARENA(n) ((n) == 256 << 10 || (n) == 1 << 20)
#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

enum { WRITE, FSYNC, RENAME, OPEN, MEMORY, KERNELS, ALLOCATION, KINDS };

static char folder[4096];
static int error_number, kind_armed = -1, more_fail;
static long fails_at;
static atomic_long calls[KINDS];
static __thread int is_watched __attribute__((tls_model("initial-exec")));     /* all of this thread's allocations are */

/* From now on calls of each kind are counted, and number `at` of this one fails with `error` (0: none does), and so do
 * as many as `more` after it (-1: all). With no error the process is killed there instead. */
void faults_arm(int kind, int error, long at, int more, const char *path) {
    for (int i = 0; i < KINDS; i++) atomic_store(&calls[i], 0);
    strncpy(folder, path, sizeof folder - 1);
    error_number = error, fails_at = at, more_fail = more, kind_armed = kind;
    is_watched = kind == ALLOCATION;
}

/* How many calls of a kind there were. */
long faults_count(int kind) { return atomic_load(&calls[kind]); }

static int fails(int kind) {
    if (kind_armed < 0) return 0;
    const long number = atomic_fetch_add(&calls[kind], 1) + 1;
    if (kind != kind_armed || !fails_at || number < fails_at || (more_fail >= 0 && number > fails_at + more_fail)) return 0;
    if (!error_number) raise(SIGKILL);
    errno = error_number;
    return 1;
}

static int is_inside(const char *path) {
    char whole[8192];
    if (kind_armed < 0) return 0;
    if (*path != '/') {
        char at[4096];
        if (!getcwd(at, sizeof at)) return 0;
        snprintf(whole, sizeof whole, "%s/%s", at, path);
        path = whole;
    }
    return !strncmp(path, folder, strlen(folder));
}

static int is_open_inside(int file) {
    char link[64], path[4096];
    if (kind_armed < 0) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    const ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return is_inside(path);
}

ssize_t write(int file, const void *data, size_t n) {
    if (is_open_inside(file) && fails(WRITE)) return -1;
    return REAL(write)(file, data, n);
}

int fsync(int file) {
    if (is_open_inside(file) && fails(FSYNC)) return -1;
    return REAL(fsync)(file);
}

int rename(const char *from, const char *to) {
    if (is_inside(to) && fails(RENAME)) return -1;
    return REAL(rename)(from, to);
}

#define OPENS(name, ...) \
    va_list rest; \
    va_start(rest, flags); \
    const mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
    va_end(rest); \
    if (is_inside(path) && fails(OPEN)) return -1; \
    return REAL(name)(__VA_ARGS__, flags, mode)

int open(const char *path, int flags, ...) { OPENS(open, path); }
int open64(const char *path, int flags, ...) { OPENS(open64, path); }
int openat(int at, const char *path, int flags, ...) { OPENS(openat, at, path); }

void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t n);
void *__libc_memalign(size_t alignment, size_t n);

static int is_in(const void *caller, const char *name) {
    Dl_info found;
    return dladdr(caller, &found) && found.dli_fname && strstr(found.dli_fname, name);
}

/* Where they have no memory, libgomp and the loader (for a thread's own variables) end the process: theirs do not fail. */
static int ends_the_process(const void *caller) { return is_in(caller, "libgomp") || is_in(caller, "ld-linux"); }

static int has_no_memory(size_t n, const void *caller) {
    return (n >= FAULTS_LARGE && fails(MEMORY)) || (is_watched && !ends_the_process(caller) && fails(ALLOCATION));
}
#define NO_MEMORY(n) has_no_memory(n, __builtin_return_address(0))

void *malloc(size_t n) { return NO_MEMORY(n) ? NULL : __libc_malloc(n); }
void *calloc(size_t n, size_t size) { return NO_MEMORY(n * size) ? NULL : __libc_calloc(n, size); }
void *realloc(void *p, size_t n) { return NO_MEMORY(n) ? NULL : __libc_realloc(p, n); }

int posix_memalign(void **p, size_t alignment, size_t n) {
    if (NO_MEMORY(n)) return ENOMEM;
    if (kind_armed >= 0 && is_in(__builtin_return_address(0), "lorafast/kernels/") && fails(KERNELS)) return ENOMEM;
    *p = __libc_memalign(alignment, n);
    return *p ? 0 : ENOMEM;
}

void *mmap(void *at, size_t n, int protection, int flags, int file, off_t offset) {
    if (flags & MAP_ANONYMOUS && n >= FAULTS_LARGE && !IS_ARENA(n) && fails(MEMORY)) return MAP_FAILED;
    return REAL(mmap)(at, n, protection, flags, file, offset);
}

void *mmap64(void *at, size_t n, int protection, int flags, int file, off64_t offset) {
    if (flags & MAP_ANONYMOUS && n >= FAULTS_LARGE && !IS_ARENA(n) && fails(MEMORY)) return MAP_FAILED;
    return REAL(mmap64)(at, n, protection, flags, file, offset);
}
