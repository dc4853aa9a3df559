/* One layer's paged KV cache: [num_blocks][2 (K, V)][num_kv_heads] strips. A strip is what one block holds
 * of one head: [block_size][head_dim] values; those of one byte follow the scale that they share. */
#ifndef BATON_LAYER_CACHE_H
#define BATON_LAYER_CACHE_H

#include <stdint.h>

#include "vector.h"

enum kv_kind { KV_FP32, KV_FP16, KV_INT8, KV_FP8 };

typedef struct {
    void *cache;
    int kind;
    int64_t num_blocks, num_kv_heads, block_size, head_dim;
} layer_cache;

typedef struct {
    float scale; /* a power of two, NaN where a value was not finite */
    uint32_t zero;
} strip_header;

INLINE int is_quantized(const layer_cache *c) { return c->kind == KV_INT8 || c->kind == KV_FP8; }

INLINE int64_t row_bytes(const layer_cache *c)
{
    return c->head_dim * (c->kind == KV_FP32 ? 4 : c->kind == KV_FP16 ? 2 : 1);
}

INLINE char *strip_at(const layer_cache *c, int64_t block, int part, int64_t head)
{
    const int64_t header = is_quantized(c) ? sizeof(strip_header) : 0;
    const int64_t index = (block * 2 + part) * c->num_kv_heads + head;
    return (char *)c->cache + index * (header + c->block_size * row_bytes(c));
}

INLINE char *values_of(const layer_cache *c, char *strip)
{
    return strip + (is_quantized(c) ? sizeof(strip_header) : 0);
}

/* What values of one byte are multiplied with; a strip without a header has 1. */
INLINE float scale_of(const layer_cache *c, const char *strip)
{
    return is_quantized(c) ? ((const strip_header *)strip)->scale : 1.0f;
}

#endif
