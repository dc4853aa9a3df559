/* Runs independent items of work on the threads that torch computes with. */
#ifndef BATON_PARALLEL_H
#define BATON_PARALLEL_H

#include <stdint.h>

/* Calls run(job, i) once for every i in [0, num_items), on at most num_threads threads, in any order. */
void for_each(void (*run)(void *job, int64_t item), void *job, int64_t num_items, int num_threads);

#endif
