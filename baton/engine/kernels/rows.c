/* What a transformer does row by row: RMS norm, rotary embedding, SiLU gate. All fp32.
 *
 * A row is the last dimension; rows lie as [num_tokens][num_heads] with `stride` floats between tokens
 * and rows of one token dense, so that slices of a fused projection need no copy. Each row is computed
 * alone and in a fixed order: its bits do not depend on the batch or the threads.
 */
#include <math.h>

#include "parallel.h"
#include "vector.h"

enum { OK, BAD_POSITION };

#define GRAIN 16           /* tokens per item of work */
#define WORTH_WAKING 65536 /* floats: below, one thread is done before a second has started */

typedef struct {
    float *x, *residual, *out;
    const float *read, *weight, *cos, *sin;
    const int64_t *positions;
    int64_t num_tokens, num_heads, dim, stride, out_stride, rotary_dim;
    float eps;
} rows_job;

static void for_tokens(void (*run)(void *, int64_t), rows_job *job, int num_threads)
{
    if (job->num_tokens * job->num_heads * job->dim < WORTH_WAKING) num_threads = 1;
    for_each(run, job, (job->num_tokens + GRAIN - 1) / GRAIN, num_threads);
}

static int64_t end_of(const rows_job *job, int64_t item)
{
    int64_t end = (item + 1) * GRAIN;
    return end < job->num_tokens ? end : job->num_tokens;
}

/* Four vectors of partial sums, folded in a fixed order. */
INLINE float sum_of_squares(const float *x, int64_t n)
{
    vec sum[4] = {};
    int64_t i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES)
        UNROLL for (int k = 0; k < 4; k++) sum[k] += load(x + i + k * LANES) * load(x + i + k * LANES);
    for (; i + LANES <= n; i += LANES) sum[0] += load(x + i) * load(x + i);
    if (i < n) sum[0] += load_part(x + i, (int)(n - i)) * load_part(x + i, (int)(n - i));
    return sum_lanes((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

INLINE void normalize(const float *x, const float *weight, float *out, int64_t n, float eps)
{
    const float factor = 1.0f / sqrtf(sum_of_squares(x, n) / (float)n + eps);
    for (int64_t i = 0; i < n; i++) out[i] = x[i] * factor * weight[i];
}

static void rms_norm_item(void *data, int64_t item)
{
    const rows_job *job = data;
    for (int64_t token = item * GRAIN; token < end_of(job, item); token++)
        for (int64_t head = 0; head < job->num_heads; head++)
            normalize(job->read + token * job->stride + head * job->dim, job->weight,
                      job->out + token * job->out_stride + head * job->dim, job->dim, job->eps);
}

/* out = x / sqrt(mean(x^2) + eps) * weight over rows of `dim`; out may be x. */
void baton_rms_norm(const float *x, int64_t stride, const float *weight, float eps, float *out,
                    int64_t out_stride, int64_t num_tokens, int64_t num_heads, int64_t dim,
                    int num_threads)
{
    rows_job job = {.read = x, .weight = weight, .out = out, .num_tokens = num_tokens,
                    .num_heads = num_heads, .dim = dim, .stride = stride, .out_stride = out_stride,
                    .eps = eps};
    for_tokens(rms_norm_item, &job, num_threads);
}

static void add_rms_norm_item(void *data, int64_t item)
{
    const rows_job *job = data;
    for (int64_t token = item * GRAIN; token < end_of(job, item); token++) {
        const float *x = job->read + token * job->stride;
        float *residual = job->residual + token * job->dim;
        for (int64_t i = 0; i < job->dim; i++) residual[i] += x[i];
        normalize(residual, job->weight, job->out + token * job->out_stride, job->dim, job->eps);
    }
}

/* residual += x; out = rms_norm(residual). residual [num_tokens, dim] is dense. */
void baton_add_rms_norm(const float *x, int64_t stride, float *residual, const float *weight, float eps,
                        float *out, int64_t out_stride, int64_t num_tokens, int64_t dim, int num_threads)
{
    rows_job job = {.read = x, .residual = residual, .weight = weight, .out = out,
                    .num_tokens = num_tokens, .num_heads = 1, .dim = dim, .stride = stride,
                    .out_stride = out_stride, .eps = eps};
    for_tokens(add_rms_norm_item, &job, num_threads);
}

static void rope_item(void *data, int64_t item)
{
    const rows_job *job = data;
    const int64_t half = job->rotary_dim / 2;
    for (int64_t token = item * GRAIN; token < end_of(job, item); token++) {
        const float *cos = job->cos + job->positions[token] * half;
        const float *sin = job->sin + job->positions[token] * half;
        for (int64_t head = 0; head < job->num_heads; head++) {
            float *restrict low = job->x + token * job->stride + head * job->dim;
            float *restrict high = low + half;
            for (int64_t i = 0; i < half; i++) {
                float a = low[i], b = high[i];
                low[i] = a * cos[i] - b * sin[i];
                high[i] = b * cos[i] + a * sin[i];
            }
        }
    }
}

/* Rotates dimension i with i + rotary_dim / 2 ("rotate_half"), in place; dimensions from rotary_dim on
 * stay. cos and sin are [max_positions, rotary_dim / 2]. Nothing moves if any position is outside. */
int baton_rope(float *x, int64_t stride, const int64_t *positions, const float *cos, const float *sin,
               int64_t max_positions, int64_t rotary_dim, int64_t num_tokens, int64_t num_heads,
               int64_t dim, int num_threads)
{
    for (int64_t i = 0; i < num_tokens; i++)
        if (positions[i] < 0 || positions[i] >= max_positions) return BAD_POSITION;
    rows_job job = {.x = x, .cos = cos, .sin = sin, .positions = positions, .num_tokens = num_tokens,
                    .num_heads = num_heads, .dim = dim, .stride = stride, .rotary_dim = rotary_dim};
    for_tokens(rope_item, &job, num_threads);
    return OK;
}

INLINE vec gated(vec gate, vec up)
{
    return gate / (splat(1.0f) + exp_lanes(-gate)) * up;
}

static void silu_mul_item(void *data, int64_t item)
{
    const rows_job *job = data;
    const int64_t n = job->dim;
    for (int64_t token = item * GRAIN; token < end_of(job, item); token++) {
        const float *gate = job->read + token * job->stride, *up = gate + n;
        float *out = job->out + token * job->out_stride;
        int64_t i = 0;
        for (; i + LANES <= n; i += LANES) store(out + i, gated(load(gate + i), load(up + i)));
        const int rest = (int)(n - i);
        if (rest) store_part(out + i, gated(load_part(gate + i, rest), load_part(up + i, rest)), rest);
    }
}

/* out [num_tokens, dim] = silu(gate) * up, where gate_up [num_tokens, 2 * dim] holds gate, then up. */
void baton_silu_mul(const float *gate_up, int64_t stride, float *out, int64_t out_stride,
                    int64_t num_tokens, int64_t dim, int num_threads)
{
    rows_job job = {.read = gate_up, .out = out, .num_tokens = num_tokens, .num_heads = 1, .dim = dim,
                    .stride = stride, .out_stride = out_stride};
    for_tokens(silu_mul_item, &job, num_threads);
}
