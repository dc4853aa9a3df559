/* One layer's paged KV cache: [num_blocks][2 (K, V)][num_kv_heads][block_size][head_dim], fp32 or fp16. */
#ifndef BATON_LAYER_CACHE_H
#define BATON_LAYER_CACHE_H

#include <stdint.h>

typedef struct {
    void *cache;
    int half; /* fp16 */
    int64_t num_blocks, num_kv_heads, block_size, head_dim;
} layer_cache;

#endif
