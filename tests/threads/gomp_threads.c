/* An OpenMP runtime that ThreadSanitizer understands: plain threads, made and joined for each parallel region, with the entry points of
 * libgomp that the kernels use. Preloaded by tests/sanitize.sh, for libgomp's own waiting looks like a race. */
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#define MAX_THREADS 64

struct team {
    int n;
    void (*body)(void *);
    void *data;
    pthread_barrier_t barrier;
    pthread_mutex_t lock;               /* of what follows: the loop that is dealt out */
    long loops, next, end, step, chunk;
};
struct member { struct team *team; int number; };

static __thread struct team *team;
static __thread int number;
static __thread long loops_begun;

static void *run(void *argument) {
    const struct member *member = argument;
    team = member->team, number = member->number, loops_begun = 0;
    team->body(team->data);
    return NULL;
}

int omp_get_max_threads(void) { return (int)sysconf(_SC_NPROCESSORS_ONLN); }
int omp_get_num_threads(void) { return team ? team->n : 1; }
int omp_get_thread_num(void) { return team ? number : 0; }

void GOMP_parallel(void (*body)(void *), void *data, unsigned n_threads, unsigned flags) {
    (void)flags;
    struct team new = {.n = n_threads ? (int)n_threads : omp_get_max_threads(), .body = body, .data = data};
    pthread_t threads[MAX_THREADS];
    struct member members[MAX_THREADS];
    if (new.n > MAX_THREADS || pthread_barrier_init(&new.barrier, NULL, new.n)) abort();
    pthread_mutex_init(&new.lock, NULL);
    for (int i = 0; i < new.n; i++) {
        members[i] = (struct member){&new, i};
        if (i && pthread_create(&threads[i], NULL, run, &members[i])) abort();
    }
    run(&members[0]);
    for (int i = 1; i < new.n; i++) pthread_join(threads[i], NULL);
    pthread_mutex_destroy(&new.lock);
    pthread_barrier_destroy(&new.barrier);
    team = NULL;
}

void GOMP_barrier(void) {
    if (team) pthread_barrier_wait(&team->barrier);
}

/* The next chunk of the loop; whether there was one. */
_Bool GOMP_loop_nonmonotonic_dynamic_next(long *begin, long *end) {
    pthread_mutex_lock(&team->lock);
    const _Bool is_left = team->step > 0 ? team->next < team->end : team->next > team->end;
    *begin = team->next;
    *end = team->next + team->chunk * team->step;
    if (team->step > 0 ? *end > team->end : *end < team->end) *end = team->end;
    team->next = *end;
    pthread_mutex_unlock(&team->lock);
    return is_left;
}

_Bool GOMP_loop_nonmonotonic_dynamic_start(long from, long to, long step, long chunk, long *begin, long *end) {
    pthread_mutex_lock(&team->lock);
    if (loops_begun++ == team->loops) {         /* the first to come; a barrier lies between two loops */
        team->loops++;
        team->next = from, team->end = to, team->step = step, team->chunk = chunk;
    }
    pthread_mutex_unlock(&team->lock);
    return GOMP_loop_nonmonotonic_dynamic_next(begin, end);
}

void GOMP_loop_end_nowait(void) {}
