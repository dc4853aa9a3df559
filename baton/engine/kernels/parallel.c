/* The team of threads is torch's own: GOMP_parallel, the entry that the compiler emits for
 * `#pragma omp parallel`, taken from the OpenMP runtime that torch has loaded (libgomp, or LLVM's and
 * Intel's, which export it too). So there is no second runtime, no second pool of threads spinning
 * on the same cores, nothing to link, and torch's threads, still awake from the operation before,
 * start in a microsecond or two. Where the runtime has no such entry, work runs on the caller's thread.
 */
#include "parallel.h"

#include <stdatomic.h>
#include <stddef.h>

typedef void parallel_entry(void (*body)(void *), void *data, unsigned num_threads, unsigned flags);

static parallel_entry *enter_parallel = NULL;

void baton_use_threads_of(void *gomp_parallel) { enter_parallel = (parallel_entry *)gomp_parallel; }

typedef struct {
    void (*run)(void *job, int64_t item);
    void *job;
    int64_t num_items;
    _Atomic int64_t next;
} team;

static void work(void *data)
{
    team *t = data;
    for (;;) {
        int64_t item = atomic_fetch_add_explicit(&t->next, 1, memory_order_relaxed);
        if (item >= t->num_items) return;
        t->run(t->job, item);
    }
}

void for_each(void (*run)(void *job, int64_t item), void *job, int64_t num_items, int num_threads)
{
    team t = {run, job, num_items, 0};
    if (num_threads > num_items) num_threads = (int)num_items;
    if (num_threads > 1 && enter_parallel)
        enter_parallel(work, &t, (unsigned)num_threads, 0);
    else
        work(&t);
}
