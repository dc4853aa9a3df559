/* Paged causal attention with grouped KV heads, of fp32 q into fp32 out [num_tokens, num_heads, head_dim].
 *
 * Flash attention over tiles of TILE absolute positions: position p is always lane p % TILE of tile
 * p / TILE, whatever the block size, the chunk or the batch. A row (one token's one query head) goes
 * through its tiles in ascending order with an online softmax:
 *
 *   s = q . K^T   one accumulator per (row, position), ascending over head_dim
 *   m, l          running maximum and sum; lanes that the row may not see hold -inf, then exactly 0
 *   o = o * 2^(m_old - m_new), then + p . V, one accumulator per (row, dim), ascending over the
 *                 positions that the row sees
 *
 * INVARIANT: no operation on one row depends on another row. So a row's bits are a function of its q
 * and of the K and V that it sees only: not of the rows computed beside it, the chunking of the prompt,
 * the other slices or the threads. Rows are grouped only to read K and V once for many of them.
 */
#include <math.h>
#include <stdlib.h>

#include "layer_cache.h"
#include "parallel.h"
#include "quantized.h"
#include "vector.h"

#define STEP (VECS * LANES)
#define TILE 64       /* positions; a multiple of STEP and of WIDE * LANES */
#define MAX_DIM 256   /* of a head */
#define MAX_ROWS 256  /* of one work item */
#define MAX_FLOATS (MAX_ROWS * 64) /* of the queries of one work item */

enum { OK, BAD_QUERY_STARTS, BAD_START, BAD_BLOCK, NO_MEMORY };

/* --- looking ahead ------------------------------------------------------------------------ */

/* The memory of the next tile, of this item or of the next, fetched into the L2 cache a few lines at a time
 * between the arithmetic on this one: decode is bound by how fast KV arrives, and blocks are too short for
 * the machine to guess. */
typedef struct {
    const char *at, *end;                /* what is left of the current run of bytes */
    struct { const char *begin, *end; } runs[2 * TILE];
    int next, num, pace;                 /* pace: lines per step of arithmetic */
} stream;

#define LINE 64

INLINE void look_ahead(stream *ahead, int lines)
{
    for (int i = 0; i < lines; i++) {
        if (ahead->at >= ahead->end) {
            if (ahead->next == ahead->num) return;
            ahead->at = ahead->runs[ahead->next].begin;
            ahead->end = ahead->runs[ahead->next++].end;
        }
        __builtin_prefetch(ahead->at, 0, 2);
        ahead->at += LINE;
    }
}

/* --- the small matrix products ------------------------------------------------------------ */

/* acc[r][i] += w[r] * x[i]: the fewer of the two are kept in registers, beside the accumulators. */
INLINE void add_products(const int rows, const int vecs, const float *w, int w_stride, const float *x,
                         vec acc[ROWS][WIDE])
{
    vec kept[ROWS];
    if (rows < vecs) {
        UNROLL for (int r = 0; r < rows; r++) kept[r] = splat(w[r * w_stride]);
        UNROLL for (int i = 0; i < vecs; i++) {
            vec at = load(x + i * LANES);
            UNROLL for (int r = 0; r < rows; r++) acc[r][i] = multiply_add(kept[r], at, acc[r][i]);
        }
    } else {
        UNROLL for (int i = 0; i < vecs; i++) kept[i] = load(x + i * LANES);
        UNROLL for (int r = 0; r < rows; r++) {
            vec weight = splat(w[r * w_stride]);
            UNROLL for (int i = 0; i < vecs; i++) acc[r][i] = multiply_add(weight, kept[i], acc[r][i]);
        }
    }
}

/* s[r][j] = q[r] . k[j] for `rows` rows and the first `num` positions, up to whole groups of `vecs` vectors;
 * kt is K transposed, [head_dim][TILE]. */
INLINE void multiply_qk(const int rows, const int vecs, const float *q, int q_stride, const float *kt,
                        int head_dim, int num, float s[][TILE], stream *ahead)
{
    for (int j = 0; j < num; j += vecs * LANES) {
        vec acc[ROWS][WIDE] = {};
        for (int d = 0; d < head_dim; d++) {
            look_ahead(ahead, ahead->pace * ((vecs + VECS - 1) / VECS));
            add_products(rows, vecs, q + d, q_stride, kt + d * TILE + j, acc);
        }
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int i = 0; i < vecs; i++) store(s[r] + j + i * LANES, acc[r][i]);
    }
}

/* acc[r][d] += p[r][j] * v[j][d] over j in [from, to), for `vecs` vectors of d; continues what is in acc. */
INLINE void multiply_pv(const int rows, const int vecs, float p[][TILE], const float *const *v, int d,
                        int from, int to, float *acc, int stride, stream *ahead)
{
    vec sum[ROWS][WIDE];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int i = 0; i < vecs; i++) sum[r][i] = load(acc + r * stride + d + i * LANES);
    for (int j = from; j < to; j++) {
        look_ahead(ahead, ahead->pace * ((vecs + VECS - 1) / VECS));
        add_products(rows, vecs, p[0] + j, TILE, v[j] + d, sum);
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int i = 0; i < vecs; i++) store(acc + r * stride + d + i * LANES, sum[r][i]);
}

/* One instance per number of rows, so that accumulators live in registers. */
#define VECS_OF(rows) ((rows) <= FEW_ROWS ? WIDE : VECS)
#define FOR_ROWS(rows, CALL) \
    switch (rows) { \
    case 1: CALL(1); break; \
    case 2: CALL(2); break; \
    case 3: CALL(3); break; \
    case 4: CALL(4); break; \
    case 5: CALL(5); break; \
    case 6: CALL(6); break; \
    default: CALL(ROWS); break; \
    }

static void scores(int rows, const float *q, int q_stride, const float *kt, int head_dim, int num,
                   float s[][TILE], stream *ahead)
{
#define CALL(n) multiply_qk(n, VECS_OF(n), q, q_stride, kt, head_dim, num, s, ahead)
    FOR_ROWS(rows, CALL)
#undef CALL
}

static void weigh(int rows, float p[][TILE], const float *const *v, int from, int to, float *acc,
                  int stride, stream *ahead)
{
    int d = 0;
    for (const int step = VECS_OF(rows) * LANES; d + step <= stride; d += step) {
#define CALL(n) multiply_pv(n, VECS_OF(n), p, v, d, from, to, acc, stride, ahead)
        FOR_ROWS(rows, CALL)
#undef CALL
    }
    for (; d < stride; d += LANES) {
#define CALL(n) multiply_pv(n, 1, p, v, d, from, to, acc, stride, ahead)
        FOR_ROWS(rows, CALL)
#undef CALL
    }
}

/* --- one tile of K and V ------------------------------------------------------------------ */

typedef struct {
    layer_cache from;
    const float *q;
    int64_t q_stride;
    const int32_t *tables, *query_starts, *starts;
    int64_t max_blocks, num_slices, num_heads;
    float scale;
    int64_t window;
    float *out;
    int64_t tokens_per_item;
    const int64_t *first_items; /* [num_slices + 1]: items before each slice */
    int num_threads;
} attend_job;

/* What one work item computes: a run of tokens of one slice, for the query heads of one KV head. */
typedef struct {
    const int32_t *table;
    int64_t kv_head, row, num_tokens, position; /* row and position of the first token */
    int64_t begin, end;                         /* the positions that its tiles cover */
} place;

/* What one work item needs: (tokens, heads of one KV head) rows against a tile of K and V. */
typedef struct {
    float kt[MAX_DIM * TILE] __attribute__((aligned(64)));  /* [head_dim][TILE] */
    float k[LANES * MAX_DIM] __attribute__((aligned(64)));  /* [LANES][stride], likewise */
    float v[TILE * MAX_DIM] __attribute__((aligned(64)));   /* [TILE][stride] where not read in place */
    float q[MAX_FLOATS] __attribute__((aligned(64)));       /* [rows][stride], times scale / ln 2 */
    float o[MAX_FLOATS] __attribute__((aligned(64)));       /* [rows][stride] */
    float m[MAX_ROWS], l[MAX_ROWS];
    const float *v_rows[TILE];
    stream ahead;
} scratch;

static const float zeros[MAX_DIM] = {};

/* Where a position's values lie in the cache, and what they are multiplied with where they are of one byte. */
typedef struct {
    const char *at;
    float scale;
} row;

INLINE vec load_row(row from, const int kind, int d, int head_dim)
{
    const int left = head_dim - d < LANES ? head_dim - d : LANES;
    switch (kind) {
    case KV_FP32: return load_part((const float *)from.at + d, left);
    case KV_FP16: {
        _Float16 x[LANES] = {};
        memcpy(x, (const _Float16 *)from.at + d, left * sizeof *x);
        return load_half(x);
    }
    default: {
        bvec q = {};
        memcpy(&q, from.at + d, left);
        return kind == KV_INT8 ? from_int8(q, from.scale) : from_fp8(q, from.scale);
    }
    }
}

INLINE void widen_all(row from, const int kind, int dim, float *to)
{
    int d = 0;
    for (; d + LANES <= dim; d += LANES) store(to + d, load_row(from, kind, d, d + LANES));
    if (d < dim) store(to + d, load_row(from, kind, d, dim));
}

/* The row as fp32, with some numbers behind it up to `stride`: in place if it is that already, else in `to`. */
INLINE const float *widen_row(row from, int kind, int dim, int stride, float *to)
{
    switch (kind) {
    case KV_FP32:
        if (dim == stride) return (const float *)from.at;
        widen_all(from, KV_FP32, dim, to);
        break;
    case KV_FP16: widen_all(from, KV_FP16, dim, to); break;
    case KV_INT8: widen_all(from, KV_INT8, dim, to); break;
    default: widen_all(from, KV_FP8, dim, to);
    }
    return to;
}

/* Sets out to fetch the first tile of `of` from position `begin` on, while another tile, of `num_now`
 * positions, is read (a line per transpose) and while the first rows go through it. */
static void prepare(stream *ahead, const attend_job *job, const place *of, int64_t begin, int num_now)
{
    const layer_cache *c = &job->from;
    const int64_t size = row_bytes(c);
    const int64_t end = of->end - begin < TILE ? of->end : begin + TILE;
    ahead->next = ahead->num = 0;
    ahead->at = ahead->end = NULL;
    for (int64_t p = begin; p < end;) {
        int64_t offset = p % c->block_size, left = end - p;
        int64_t run = c->block_size - offset < left ? c->block_size - offset : left;
        for (int part = 0; part < 2; part++) {
            char *strip = strip_at(c, of->table[p / c->block_size], part, of->kv_head);
            const char *from = values_of(c, strip) + offset * size;
            ahead->runs[ahead->num].begin = from;
            ahead->runs[ahead->num++].end = from + run * size;
        }
        p += run;
    }
    const int64_t now = (num_now + STEP - 1) / STEP * STEP; /* what the arithmetic is rounded up to */
    const int64_t transposes = now / LANES * c->head_dim / 4;
    const int64_t steps = 2 * c->head_dim * now / STEP; /* of both products */
    const int64_t lines = 2 * (end - begin) * size / LINE - transposes;
    ahead->pace = lines > 0 ? (int)((lines + steps - 1) / steps) : 0;
}

/* LANES rows of K, of which `num` are there, as columns of `kt`. */
static void transpose_floats(const row *rows, int num, int kind, int dim, int stride, scratch *w, float *kt)
{
    const float *k[LANES];
    for (int i = 0; i < LANES; i++)
        k[i] = i < num ? widen_row(rows[i], kind, dim, stride, w->k + i * stride) : zeros;
    for (int d = 0; d < dim; d += 4) {
        look_ahead(&w->ahead, 1);
        transpose(k, d, kt + d * TILE, TILE);
    }
}

/* The same for values of one byte: four of them move as one word, and part only where they have arrived. */
static void transpose_bytes(const row *rows, int num, int kind, int dim, float *kt, stream *ahead)
{
    const float *k[LANES];
    float scales[LANES], words[4 * LANES] __attribute__((aligned(64)));
    for (int i = 0; i < LANES; i++) {
        k[i] = i < num ? (const float *)rows[i].at : zeros;
        scales[i] = i < num ? rows[i].scale : 0;
    }
    const vec scale = load(scales);
    for (int d = 0; d < dim; d += 16) {
        look_ahead(ahead, 4);
        transpose(k, d / 4, words, LANES);
        UNROLL for (int i = 0; i < 16; i++) {
            const ivec word = (ivec)load(words + i / 4 * LANES);
            const ivec top = word << (24 - i % 4 * 8); /* the byte, with what lies below it */
            store(kt + (d + i) * TILE, kind == KV_INT8 ? int8_lanes(top, scale) : fp8_lanes(top, scale));
        }
    }
}

/* Positions [begin, begin + num) of one slice and KV head: K transposed, V as rows of fp32. Lanes from num
 * on read as zeros up to a whole STEP, behind which they are left as they were; the block table is read for positions of the tile below `begin + num` only. */
static void read_tile(const attend_job *job, const int32_t *table, int64_t kv_head, int64_t begin,
                      int num, scratch *w, int stride)
{
    const layer_cache *c = &job->from;
    const int dim = (int)c->head_dim;
    row rows[2][TILE]; /* of K, of V */
    for (int part = 0; part < 2; part++)
        for (int j = 0; j < num;) {
            const int64_t block = table[(begin + j) / c->block_size];
            int64_t offset = (begin + j) % c->block_size;
            char *strip = strip_at(c, block, part, kv_head);
            const float scale = scale_of(c, strip);
            for (; j < num && offset < c->block_size; j++, offset++)
                rows[part][j] = (row){values_of(c, strip) + offset * row_bytes(c), scale};
        }
    for (int j = 0; j < (num + STEP - 1) / STEP * STEP; j += LANES)
        if (is_quantized(c) && dim % 16 == 0)
            transpose_bytes(rows[0] + j, num - j, c->kind, dim, w->kt + j, &w->ahead);
        else
            transpose_floats(rows[0] + j, num - j, c->kind, dim, stride, w, w->kt + j);
    for (int j = 0; j < num; j++)
        w->v_rows[j] = widen_row(rows[1][j], c->kind, dim, stride, w->v + j * stride);
}

/* --- rows against a tile ------------------------------------------------------------------ */

/* Positions [lo, hi) of the tile, which a row sees; empty when hi <= lo. */
typedef struct {
    int lo, hi;
} range;

static range seen(const attend_job *job, int64_t position, int64_t tile_begin)
{
    int64_t first = job->window && position >= job->window ? position - job->window + 1 : 0;
    int64_t lo = first - tile_begin, hi = position + 1 - tile_begin;
    return (range){lo < 0 ? 0 : (int)(lo > TILE ? TILE : lo), hi > TILE ? TILE : (int)hi};
}

/* Scores become weights 2^(s - m), those outside `at` become 0; m, l and o of the row move on. */
INLINE void soften(float s[TILE], range at, float *m, float *l, float *o, int stride)
{
    vec x[TILE / LANES];
    UNROLL for (int i = 0; i < TILE / LANES; i++) x[i] = load(s + i * LANES);
    if (at.lo > 0 || at.hi < TILE) {
        ivec lane;
        for (int i = 0; i < LANES; i++) lane[i] = i;
        UNROLL for (int i = 0; i < TILE / LANES; i++) {
            ivec j = lane + i * LANES;
            x[i] = select_where((j >= at.lo) & (j < at.hi), x[i], splat(-INFINITY));
        }
    }
    vec top = x[0];
    UNROLL for (int i = 1; i < TILE / LANES; i++) top = larger(top, x[i]);
    float tile_max = max_lanes(top), old = *m, new = tile_max > old ? tile_max : old;
    vec sum = {};
    UNROLL for (int i = 0; i < TILE / LANES; i++) {
        vec p = exp2_nonpositive(x[i] - splat(new));
        store(s + i * LANES, p);
        sum += p;
    }
    vec shrink = exp2_nonpositive(splat(old) - splat(new));
    *m = new;
    *l = *l * shrink[0] + sum_lanes(sum);
    for (int d = 0; d < stride; d += LANES) store(o + d, load(o + d) * shrink);
}

/* Up to ROWS rows against the tile in `w`. A row that sees nothing of the tile is left as it is. Rows
 * that do not see the same positions share the range that all see; the rest is added row by row, so that
 * no row multiplies by what it may not see (0 times NaN is NaN) and every row ascends. */
static void attend_rows(const attend_job *job, scratch *w, int first, int rows, int64_t position,
                        int64_t group, int64_t tile_begin, int num, int stride)
{
    float s[ROWS][TILE] __attribute__((aligned(64)));
    range at[ROWS], common = {0, TILE};
    float *o = w->o + first * stride;
    scores(rows, w->q + first * stride, stride, w->kt, (int)job->from.head_dim, num, s, &w->ahead);
    for (int r = 0; r < rows; r++) {
        at[r] = seen(job, position + (first + r) / group, tile_begin);
        if (at[r].lo > common.lo) common.lo = at[r].lo;
        if (at[r].hi < common.hi) common.hi = at[r].hi;
        if (at[r].lo < at[r].hi)
            soften(s[r], at[r], w->m + first + r, w->l + first + r, o + r * stride, stride);
    }
    if (common.lo >= common.hi) {
        for (int r = 0; r < rows; r++)
            weigh(1, s + r, w->v_rows, at[r].lo, at[r].hi, o + r * stride, stride, &w->ahead);
        return;
    }
    for (int r = 0; r < rows; r++)
        if (at[r].lo < common.lo)
            weigh(1, s + r, w->v_rows, at[r].lo, common.lo, o + r * stride, stride, &w->ahead);
    weigh(rows, s, w->v_rows, common.lo, common.hi, o, stride, &w->ahead);
    for (int r = 0; r < rows; r++)
        if (common.hi < at[r].hi)
            weigh(1, s + r, w->v_rows, common.hi, at[r].hi, o + r * stride, stride, &w->ahead);
}

/* --- work items --------------------------------------------------------------------------- */

/* Item -> (slice, KV head, run of tokens). Later runs see more, so they come first. */
static place place_of(const attend_job *job, int64_t item)
{
    const int64_t kv_heads = job->from.num_kv_heads;
    int64_t slice = 0, high = job->num_slices;
    while (high - slice > 1) {
        int64_t middle = (slice + high) / 2;
        if (job->first_items[middle] <= item) slice = middle; else high = middle;
    }
    const int64_t in_slice = job->first_items[slice + 1] - 1 - item;
    place at = {.table = job->tables + slice * job->max_blocks, .kv_head = in_slice % kv_heads};
    at.row = job->query_starts[slice] + in_slice / kv_heads * job->tokens_per_item;
    at.num_tokens = job->query_starts[slice + 1] - at.row;
    if (at.num_tokens > job->tokens_per_item) at.num_tokens = job->tokens_per_item;
    at.position = job->starts[slice] + at.row - job->query_starts[slice];
    at.begin = job->window && at.position >= job->window ? at.position - job->window + 1 : 0;
    at.begin = at.begin / TILE * TILE;
    at.end = at.position + at.num_tokens;
    return at;
}

static void attend_item(void *data, int64_t item)
{
    const attend_job *job = data;
    const int64_t group = job->num_heads / job->from.num_kv_heads;
    const int dim = (int)job->from.head_dim, stride = (dim + LANES - 1) / LANES * LANES;
    const place at = place_of(job, item);
    const int rows = (int)(at.num_tokens * group);

    scratch w;
    w.ahead.next = w.ahead.num = w.ahead.pace = 0;
    w.ahead.at = w.ahead.end = NULL;
    const float scale = job->scale * 1.44269504f; /* 1 / ln 2: weights are powers of two */
    for (int r = 0; r < rows; r++) {
        int64_t token = at.row + r / group, head = at.kv_head * group + r % group;
        const float *q = job->q + token * job->q_stride + head * dim;
        for (int d = 0; d < dim; d++) w.q[r * stride + d] = q[d] * scale;
        memset(w.o + r * stride, 0, stride * sizeof(float));
        w.m[r] = -INFINITY;
        w.l[r] = 0;
    }
    const int parts = (rows + ROWS - 1) / ROWS;
    for (int64_t begin = at.begin; begin < at.end; begin += TILE) {
        const int num = at.end - begin < TILE ? (int)(at.end - begin) : TILE;
        if (begin + TILE < at.end) {
            prepare(&w.ahead, job, &at, begin + TILE, num);
        } else if (item + job->num_threads < job->first_items[job->num_slices]) {
            /* Items go round between the threads, or nearly so. */
            const place next = place_of(job, item + job->num_threads);
            prepare(&w.ahead, job, &next, next.begin, num);
        }
        read_tile(job, at.table, at.kv_head, begin, num, &w, stride);
        for (int part = 0; part < parts; part++) { /* parts of nearly equal size */
            int first = rows * part / parts, end = rows * (part + 1) / parts;
            attend_rows(job, &w, first, end - first, at.position, group, begin, num, stride);
        }
    }
    for (int r = 0; r < rows; r++) {
        int64_t token = at.row + r / group, head = at.kv_head * group + r % group;
        float *out = job->out + (token * job->num_heads + head) * dim, share = 1.0f / w.l[r];
        for (int d = 0; d < dim; d++) out[d] = w.o[r * stride + d] * share;
    }
}

/* Checks what attend_item trusts: rows in order, and a real block wherever a row looks. */
static int check(const attend_job *job, int64_t num_tokens)
{
    const int32_t *at = job->query_starts;
    if (at[0] != 0 || at[job->num_slices] != num_tokens) return BAD_QUERY_STARTS;
    for (int64_t i = 0; i < job->num_slices; i++) {
        if (at[i + 1] < at[i]) return BAD_QUERY_STARTS;
        if (job->starts[i] < 0) return BAD_START;
        int64_t end = (int64_t)job->starts[i] + at[i + 1] - at[i], block_size = job->from.block_size;
        int64_t first = job->window && job->starts[i] >= job->window ? job->starts[i] - job->window + 1 : 0;
        int64_t num_blocks = (end + block_size - 1) / block_size;
        if (at[i + 1] == at[i]) continue;
        if (num_blocks > job->max_blocks) return BAD_START;
        for (int64_t b = first / TILE * TILE / block_size; b < num_blocks; b++) {
            int32_t block = job->tables[i * job->max_blocks + b];
            if (block < 0 || block >= job->from.num_blocks) return BAD_BLOCK;
        }
    }
    return OK;
}

/* q rows are q_stride floats apart, out is dense. Row r of slice s lies at position
 * starts[s] + r - query_starts[s] and sees positions up to its own, the last `window` of them if not 0. */
int baton_attend(const float *q, int64_t q_stride, const void *cache, int kind, int64_t num_blocks,
                 int64_t num_kv_heads, int64_t block_size, int64_t head_dim, const int32_t *tables,
                 int64_t max_blocks, const int32_t *query_starts, const int32_t *starts,
                 int64_t num_slices, int64_t num_tokens, int64_t num_heads, float scale, int64_t window,
                 float *out, int num_threads)
{
    const int64_t group = num_heads / num_kv_heads;
    const int64_t stride = (head_dim + LANES - 1) / LANES * LANES;
    int64_t max_rows = MAX_FLOATS / stride < MAX_ROWS ? MAX_FLOATS / stride : MAX_ROWS;
    attend_job job = {{(void *)cache, kind, num_blocks, num_kv_heads, block_size, head_dim},
                      q, q_stride, tables, query_starts, starts, max_blocks, num_slices, num_heads,
                      scale, window, out, max_rows / group, NULL, 1};
    int wrong = check(&job, num_tokens);
    if (wrong) return wrong;
    int64_t *first_items = malloc((num_slices + 1) * sizeof *first_items), work = 0;
    if (!first_items) return NO_MEMORY;
    job.first_items = first_items;
    first_items[0] = 0;
    for (int64_t i = 0; i < num_slices; i++) {
        int64_t num = query_starts[i + 1] - query_starts[i];
        int64_t runs = (num + job.tokens_per_item - 1) / job.tokens_per_item;
        first_items[i + 1] = first_items[i] + runs * num_kv_heads;
        work += num * (starts[i] + num) * num_heads * head_dim;
    }
    if (work >= 1 << 18) job.num_threads = num_threads; /* below, 10 us: less than waking a thread */
    for_each(attend_item, &job, first_items[num_slices], job.num_threads);
    free(first_items);
    return OK;
}
