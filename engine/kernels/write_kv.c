/* Puts the keys and values of a step's tokens into the paged cache. */
#include "layer_cache.h"
#include "parallel.h"
#include "vector.h"

enum { OK, BAD_SLOT };

typedef struct {
    layer_cache to;
    const int64_t *slots;
    const float *k, *v;
    int64_t k_stride, v_stride;
} write_job;

static void write_token(void *data, int64_t token)
{
    const write_job *job = data;
    const layer_cache *to = &job->to;
    const int64_t dim = to->head_dim, plane = to->block_size * dim;
    const int64_t block = job->slots[token] / to->block_size, offset = job->slots[token] % to->block_size;
    for (int kind = 0; kind < 2; kind++) {
        const float *from = kind ? job->v + token * job->v_stride : job->k + token * job->k_stride;
        int64_t at = (block * 2 + kind) * to->num_kv_heads * plane + offset * dim;
        for (int64_t head = 0; head < to->num_kv_heads; head++, at += plane, from += dim) {
            if (!to->half) {
                memcpy((float *)to->cache + at, from, dim * sizeof *from);
                continue;
            }
            _Float16 *halves = (_Float16 *)to->cache + at;
            int64_t d = 0;
            for (; d + LANES <= dim; d += LANES) store_half(halves + d, load(from + d));
            for (; d < dim; d++) halves[d] = (_Float16)from[d];
        }
    }
}

/* k and v [num_tokens, num_kv_heads, head_dim], rows k_stride and v_stride floats apart. Token i goes to
 * slots[i] = block * block_size + offset. Nothing is written when any slot is outside the cache. */
int baton_write_kv(void *cache, int half, int64_t num_blocks, int64_t num_kv_heads, int64_t block_size,
                   int64_t head_dim, const int64_t *slots, int64_t num_tokens, const float *k,
                   int64_t k_stride, const float *v, int64_t v_stride, int num_threads)
{
    for (int64_t i = 0; i < num_tokens; i++)
        if (slots[i] < 0 || slots[i] >= num_blocks * block_size) return BAD_SLOT;
    write_job job = {{cache, half, num_blocks, num_kv_heads, block_size, head_dim},
                     slots, k, v, k_stride, v_stride};
    if (num_tokens * num_kv_heads * head_dim < 1 << 15) num_threads = 1;
    for_each(write_token, &job, num_tokens, num_threads);
    return OK;
}
