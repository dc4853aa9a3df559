/* The checksum of kv_transfer/checksum.py, alone or while copying; memory-bound on every machine.
 *
 *   sum over i of (2 * (first + i) + 1) * u[i] modulo 2^64,  u[i] = w[i] ^ (w[i] >> 32)
 *
 * Multiplying 64-bit words is slow in AVX2 and NEON, so the weights come from running sums, lane by
 * lane over rows k of LANES words: once = sum of u, twice = sum of the values that `once` takes, which
 * is the sum of (num_rows - k) * u. Then sum of k * u = num_rows * once - twice.
 */
#include <stdint.h>
#include <string.h>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define LANES 8
#define STREAM_BYTES (4 << 20) /* from here on a copy would only push other data out of the caches */

typedef uint64_t words __attribute__((vector_size(LANES * 8)));

/* Past the caches where the machine can; `to` is aligned to 64 bytes. */
INLINE void stream_out(char *to, words w)
{
#if defined(__AVX512F__)
    _mm512_stream_si512((void *)to, (__m512i)w);
#elif defined(__AVX__)
    __m256i part[2];
    memcpy(part, &w, sizeof w);
    for (int i = 0; i < 2; i++) _mm256_stream_si256((__m256i *)to + i, part[i]);
#elif defined(__SSE2__)
    __m128i part[4];
    memcpy(part, &w, sizeof w);
    for (int i = 0; i < 4; i++) _mm_stream_si128((__m128i *)to + i, part[i]);
#else
    memcpy(to, &w, sizeof w);
#endif
}

enum { NO_COPY, COPY, STREAM };

INLINE uint64_t sum(const int copy, const char *from, char *to, uint64_t size, uint64_t first)
{
    words once = {}, twice = {};
    const uint64_t num_rows = size / sizeof(words);
    for (uint64_t k = 0; k < num_rows; k++, from += sizeof(words), to += sizeof(words)) {
        words w;
        memcpy(&w, from, sizeof w);
        if (copy == COPY) memcpy(to, &w, sizeof w);
        if (copy == STREAM) stream_out(to, w);
        once += w ^ (w >> 32);
        twice += once;
    }
    uint64_t total = 0;
    for (int i = 0; i < LANES; i++)
        total += (2 * (first + i) + 1) * once[i] + 2 * LANES * (num_rows * once[i] - twice[i]);

    const uint64_t end = size / 8 + (size % 8 != 0);
    size -= num_rows * sizeof(words);
    if (copy != NO_COPY) memcpy(to, from, size);
    for (uint64_t i = num_rows * LANES; i < end; i++, from += 8, size -= 8) {
        uint64_t w = 0; /* a last word that is cut short ends in zeros */
        memcpy(&w, from, size < 8 ? size : 8);
        total += (2 * (first + i) + 1) * (w ^ (w >> 32));
        if (size < 8) break;
    }
    return total;
}

uint64_t baton_checksum(const char *from, uint64_t size, uint64_t first)
{
    return sum(NO_COPY, from, (char *)0, size, first);
}

/* Copies `size` bytes to `to`, which does not overlap them; the checksum of what was read. */
uint64_t baton_copy_checksum(const char *from, char *to, uint64_t size, uint64_t first)
{
    if (size < STREAM_BYTES || (uintptr_t)to % sizeof(words)) return sum(COPY, from, to, size, first);
    uint64_t total = sum(STREAM, from, to, size, first);
#if defined(__SSE2__)
    _mm_sfence(); /* streamed bytes are visible to whoever learns of them after this */
#endif
    return total;
}
