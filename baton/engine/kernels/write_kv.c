/* Puts the keys and values of a step's tokens into the paged cache. */
#include "layer_cache.h"
#include "parallel.h"
#include "quantized.h"
#include "vector.h"

enum { OK, BAD_SLOT };

typedef struct {
    layer_cache to;
    const int64_t *slots;
    int64_t num_tokens;
    const float *rows[2]; /* k, v */
    int64_t strides[2];
} write_job;

/* --- as they are ---------------------------------------------------------------------------- */

static void write_row(char *to, int kind, const float *from, int64_t dim)
{
    if (kind == KV_FP32) {
        memcpy(to, from, dim * sizeof *from);
        return;
    }
    _Float16 *halves = (_Float16 *)to;
    int64_t d = 0;
    for (; d + LANES <= dim; d += LANES) store_half(halves + d, load(from + d));
    for (; d < dim; d++) halves[d] = (_Float16)from[d];
}

static void write_token(void *data, int64_t token)
{
    const write_job *job = data;
    const layer_cache *to = &job->to;
    const int64_t block = job->slots[token] / to->block_size, offset = job->slots[token] % to->block_size;
    for (int part = 0; part < 2; part++) {
        const float *from = job->rows[part] + token * job->strides[part];
        for (int64_t head = 0; head < to->num_kv_heads; head++, from += to->head_dim)
            write_row(strip_at(to, block, part, head) + offset * row_bytes(to), to->kind, from, to->head_dim);
    }
}

/* --- quantized ------------------------------------------------------------------------------ */

static uint32_t largest_magnitude(const float *x, int64_t n, uint32_t largest)
{
    for (int64_t i = 0; i < n; i++) {
        const uint32_t magnitude = float_bits(x[i]) & 0x7fffffff; /* in the order of floats, NaN last */
        largest = magnitude > largest ? magnitude : largest;
    }
    return largest;
}

static void shift_values(char *values, int kind, int64_t n, int shift)
{
    if (kind == KV_INT8)
        for (int64_t i = 0; i < n; i++) ((int8_t *)values)[i] = shift_int8(((int8_t *)values)[i], shift);
    else
        for (int64_t i = 0; i < n; i++) ((uint8_t *)values)[i] = shift_fp8(((uint8_t *)values)[i], shift);
}

static void quantize_row(char *to, int kind, const float *from, int64_t n, float per_scale)
{
    if (kind == KV_INT8)
        for (int64_t i = 0; i < n; i++) ((int8_t *)to)[i] = to_int8(from[i] * per_scale);
    else
        for (int64_t i = 0; i < n; i++) ((uint8_t *)to)[i] = to_fp8(from[i] * per_scale);
}

/* Tokens [first, end), which lie at `offset` and behind it in one block, of one head. What the block holds
 * before them is made to fit a larger scale where they need one; at offset 0 it holds nothing. */
static void quantize_run(const write_job *job, char *strip, int part, int64_t head, int64_t first,
                         int64_t end, int64_t offset)
{
    const layer_cache *to = &job->to;
    const int64_t dim = to->head_dim, stride = job->strides[part];
    const float *from = job->rows[part] + first * stride + head * dim;
    strip_header *header = (strip_header *)strip;
    char *values = values_of(to, strip);
    uint32_t largest = 0;
    for (int64_t i = 0; i < end - first; i++) largest = largest_magnitude(from + i * stride, dim, largest);
    const int held = offset ? (int)(float_bits(header->scale) >> 23) : 0;
    int exponent = scale_exponent(largest, to->kind == KV_INT8 ? 6 : 7);
    if (exponent > held)
        shift_values(values, to->kind, offset * dim, exponent - held);
    else
        exponent = held;
    *header = (strip_header){exponent == NOT_FINITE ? NAN : bits_float((uint32_t)exponent << 23), 0};
    const float per_scale = 1.0f / header->scale;
    for (int64_t i = 0; i < end - first; i++)
        quantize_row(values + (job->slots[first + i] % to->block_size) * dim, to->kind, from + i * stride, dim,
                     per_scale);
}

/* The run of tokens of one block that begins with `first`; nothing where none begins there. */
static void quantize_token(void *data, int64_t first)
{
    const write_job *job = data;
    const layer_cache *to = &job->to;
    const int64_t block = job->slots[first] / to->block_size, offset = job->slots[first] % to->block_size;
    if (first && job->slots[first - 1] / to->block_size == block) return;
    int64_t end = first + 1;
    while (end < job->num_tokens && job->slots[end] / to->block_size == block) end++;
    for (int part = 0; part < 2; part++)
        for (int64_t head = 0; head < to->num_kv_heads; head++)
            quantize_run(job, strip_at(to, block, part, head), part, head, first, end, offset);
}

/* k and v [num_tokens, num_kv_heads, head_dim], rows k_stride and v_stride floats apart. Token i goes to
 * slots[i] = block * block_size + offset. Nothing is written when any slot is outside the cache. In a
 * quantized cache the tokens of one block come one after the other, and ascend. */
int baton_write_kv(void *cache, int kind, int64_t num_blocks, int64_t num_kv_heads, int64_t block_size,
                   int64_t head_dim, const int64_t *slots, int64_t num_tokens, const float *k,
                   int64_t k_stride, const float *v, int64_t v_stride, int num_threads)
{
    for (int64_t i = 0; i < num_tokens; i++)
        if (slots[i] < 0 || slots[i] >= num_blocks * block_size) return BAD_SLOT;
    write_job job = {{cache, kind, num_blocks, num_kv_heads, block_size, head_dim},
                     slots, num_tokens, {k, v}, {k_stride, v_stride}};
    if (num_tokens * num_kv_heads * head_dim < 1 << 15) num_threads = 1;
    for_each(is_quantized(&job.to) ? quantize_token : write_token, &job, num_tokens, num_threads);
    return OK;
}
