/* Copies and sums ranges of KV, in one pass: the checksum of kv_transfer/checksum.py, memory-bound on every
 * machine.
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

/* One register: compilers break up longer vectors badly. */
#if defined(__AVX512F__)
#define LANES 8
#elif defined(__AVX2__)
#define LANES 4
#else
#define LANES 2
#endif
#define STREAM_BYTES (4 << 20) /* from here on a copy would only push other data out of the caches */

typedef uint64_t words __attribute__((vector_size(LANES * 8)));

/* Past the caches where the machine can; `to` is aligned to the size of `w`. */
INLINE void stream_out(char *to, words w)
{
#if defined(__AVX512F__)
    _mm512_stream_si512((void *)to, (__m512i)w);
#elif defined(__AVX2__)
    _mm256_stream_si256((__m256i *)to, (__m256i)w);
#elif defined(__SSE2__)
    _mm_stream_si128((__m128i *)to, (__m128i)w);
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

/* Streamed bytes are visible to whoever learns of them after this. */
INLINE void end_streaming(void)
{
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

INLINE int can_stream(const char *to) { return (uintptr_t)to % sizeof(words) == 0; }

static void copy_streaming(const char *from, char *to, uint64_t size)
{
    for (; size >= sizeof(words); size -= sizeof(words), from += sizeof(words), to += sizeof(words)) {
        words w;
        memcpy(&w, from, sizeof w);
        stream_out(to, w);
    }
    memcpy(to, from, size);
}

/* Where a range begins in either pool, in bytes, and the number of its first word for the checksum. */
struct range { uint64_t from, to, size, first; };

/* Copies `num` ranges between two pools; with `sums`, the checksum of each. */
void baton_copy_ranges(
    const char *from, char *to, const struct range *ranges, uint64_t num, uint64_t *sums)
{
    uint64_t size = 0;
    for (uint64_t i = 0; i < num; i++) size += ranges[i].size;
    const int streams = size >= STREAM_BYTES;
    for (uint64_t i = 0; i < num; i++) {
        const struct range r = ranges[i];
        const char *source = from + r.from;
        char *target = to + r.to;
        const int stream = streams && can_stream(target);
        if (sums && stream)
            sums[i] = sum(STREAM, source, target, r.size, r.first);
        else if (sums)
            sums[i] = sum(COPY, source, target, r.size, r.first);
        else if (stream)
            copy_streaming(source, target, r.size);
        else
            memcpy(target, source, r.size);
    }
    if (streams) end_streaming();
}

/* The checksum of each of `num` ranges of one pool (`to` is not looked at). */
void baton_sum_ranges(const char *from, const struct range *ranges, uint64_t num, uint64_t *sums)
{
    for (uint64_t i = 0; i < num; i++)
        sums[i] = sum(NO_COPY, from + ranges[i].from, (char *)0, ranges[i].size, ranges[i].first);
}
