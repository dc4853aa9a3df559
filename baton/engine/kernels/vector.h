/* Vectors as wide as the machine's, in GCC's and clang's vector extensions, so that one source serves
 * AVX-512, AVX2, SSE and NEON. Nothing here knows what is computed.
 *
 * Arithmetic is IEEE (no -ffast-math): NaN and infinity behave. `a * b + c` may contract to a fused
 * multiply-add; where instances of one kernel must agree to the bit, `multiply_add` says so.
 */
#ifndef BATON_VECTOR_H
#define BATON_VECTOR_H

#include <stdint.h>
#include <string.h>

/* For what the vector extensions leave to the compiler: conversions of halves and bytes, fused operations. */
#if defined(__AVX__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

/* ROWS x VECS accumulators fill the register file and leave room for VECS operands and a broadcast. Up to
 * FEW_ROWS rows have WIDE accumulators each: with fewer in all, each waits for its own last sum. */
#define FEW_ROWS (ROWS / 2)
#define WIDE 4
#if defined(__AVX512F__)
#define LANES 16
#define ROWS 7
#define VECS 4
#elif defined(__AVX__)
#define LANES 8
#define ROWS 6
#define VECS 2
#elif defined(__aarch64__)
#define LANES 4
#define ROWS 6
#define VECS 4
#else
#define LANES 4
#define ROWS 6
#define VECS 2
#endif

typedef float vec __attribute__((vector_size(LANES * 4)));
typedef int32_t ivec __attribute__((vector_size(LANES * 4)));
typedef int16_t svec __attribute__((vector_size(LANES * 2)));
typedef int8_t bvec __attribute__((vector_size(LANES)));
typedef _Float16 hvec __attribute__((vector_size(LANES * 2)));

INLINE vec splat(float x) { return x - (vec){}; } /* x - 0 is x, for -0 too */
INLINE vec load(const float *p) { vec v; memcpy(&v, p, sizeof v); return v; }
INLINE void store(float *p, vec v) { memcpy(p, &v, sizeof v); }

/* a * b + c, fused wherever the machine can: compilers decide anew for each instance of a loop (GCC avoids
 * chains of fused operations on some machines), so the instruction is named. */
#if defined(__AVX512F__)
INLINE vec multiply_add(vec a, vec b, vec c) { return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
#elif defined(__AVX__) && defined(__FMA__)
INLINE vec multiply_add(vec a, vec b, vec c) { return (vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
#elif defined(__aarch64__)
INLINE vec multiply_add(vec a, vec b, vec c)
{
    return (vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
#else
INLINE vec multiply_add(vec a, vec b, vec c) { return a * b + c; }
#endif

/* Compilers turn __builtin_convertvector of halves and bytes into one conversion per lane on x86 (GCC 12),
 * so the instructions are named there. Rounding is to nearest even, in every case. */
#if defined(__AVX512F__)
INLINE vec widen(hvec h) { return (vec)_mm512_cvtph_ps((__m256i)h); }
INLINE hvec narrow(vec v) { return (hvec)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT); }
#elif defined(__AVX__) && defined(__F16C__)
INLINE vec widen(hvec h) { return (vec)_mm256_cvtph_ps((__m128i)h); }
INLINE hvec narrow(vec v) { return (hvec)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT); }
#else
INLINE vec widen(hvec h) { return __builtin_convertvector(h, vec); }
INLINE hvec narrow(vec v) { return __builtin_convertvector(v, hvec); }
#endif

#if defined(__AVX512F__)
INLINE svec widen_bytes(bvec b) { return (svec)_mm256_cvtepi8_epi16((__m128i)b); }
INLINE ivec widen_shorts(svec s) { return (ivec)_mm512_cvtepi16_epi32((__m256i)s); }
#elif defined(__AVX2__)
INLINE svec widen_bytes(bvec b) { return (svec)_mm_cvtepi8_epi16(_mm_loadl_epi64((const __m128i *)&b)); }
INLINE ivec widen_shorts(svec s) { return (ivec)_mm256_cvtepi16_epi32((__m128i)s); }
#else
INLINE svec widen_bytes(bvec b) { return __builtin_convertvector(b, svec); }
INLINE ivec widen_shorts(svec s) { return __builtin_convertvector(s, ivec); }
#endif

INLINE bvec load_bytes(const int8_t *p) { bvec b; memcpy(&b, p, sizeof b); return b; }
INLINE vec load_half(const _Float16 *p) { hvec h; memcpy(&h, p, sizeof h); return widen(h); }
INLINE void store_half(_Float16 *p, vec v) { hvec h = narrow(v); memcpy(p, &h, sizeof h); }

/* The first n < LANES elements, zeros behind them; nothing past p + n is touched. */
INLINE vec load_part(const float *p, int n) { vec v = {}; memcpy(&v, p, n * sizeof *p); return v; }
INLINE void store_part(float *p, vec v, int n) { memcpy(p, &v, n * sizeof *p); }

INLINE vec select_where(ivec mask, vec yes, vec no)
{
    return (vec)((mask & (ivec)yes) | (~mask & (ivec)no));
}

INLINE vec larger(vec a, vec b) { return select_where(a > b, a, b); }

/* Shuffles within each 128 bits, which are cheap at every width. */
typedef float quad __attribute__((vector_size(16)));

#if LANES == 16
typedef float oct __attribute__((vector_size(32)));
#define LOW(a, b) \
    __builtin_shufflevector(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29)
#define HIGH(a, b) \
    __builtin_shufflevector(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31)
#define LOW_PAIRS(a, b) \
    __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29)
#define HIGH_PAIRS(a, b) \
    __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31)
INLINE vec join(const quad q[4])
{
    oct low = __builtin_shufflevector(q[0], q[1], 0, 1, 2, 3, 4, 5, 6, 7);
    oct high = __builtin_shufflevector(q[2], q[3], 0, 1, 2, 3, 4, 5, 6, 7);
    return __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}
#elif LANES == 8
#define LOW(a, b) __builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13)
#define HIGH(a, b) __builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15)
#define LOW_PAIRS(a, b) __builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13)
#define HIGH_PAIRS(a, b) __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15)
INLINE vec join(const quad q[2]) { return __builtin_shufflevector(q[0], q[1], 0, 1, 2, 3, 4, 5, 6, 7); }
#else
#define LOW(a, b) __builtin_shufflevector(a, b, 0, 4, 1, 5)
#define HIGH(a, b) __builtin_shufflevector(a, b, 2, 6, 3, 7)
#define LOW_PAIRS(a, b) __builtin_shufflevector(a, b, 0, 1, 4, 5)
#define HIGH_PAIRS(a, b) __builtin_shufflevector(a, b, 2, 3, 6, 7)
INLINE vec join(const quad q[1]) { return q[0]; }
#endif

/* to[e][i] = rows[i][d + e] for i < LANES and e < 4, rows of `to` being `stride` floats apart. */
INLINE void transpose(const float *const rows[LANES], int d, float *to, int stride)
{
    vec x[4]; /* x[r] holds rows r, r + 4, r + 8, ... in its quads */
    UNROLL for (int r = 0; r < 4; r++) {
        quad q[LANES / 4];
        UNROLL for (int i = 0; i < LANES / 4; i++) memcpy(q + i, rows[4 * i + r] + d, sizeof *q);
        x[r] = join(q);
    }
    vec low = LOW(x[0], x[1]), high = HIGH(x[0], x[1]);
    vec next_low = LOW(x[2], x[3]), next_high = HIGH(x[2], x[3]);
    store(to, LOW_PAIRS(low, next_low));
    store(to + stride, HIGH_PAIRS(low, next_low));
    store(to + 2 * stride, LOW_PAIRS(high, next_high));
    store(to + 3 * stride, HIGH_PAIRS(high, next_high));
}

/* Folds halves: the order of the sum is fixed by LANES alone. */
INLINE float sum_lanes(vec v)
{
    float x[LANES];
    store(x, v);
    UNROLL for (int width = LANES / 2; width > 0; width /= 2)
        UNROLL for (int i = 0; i < width; i++) x[i] += x[i + width];
    return x[0];
}

INLINE float max_lanes(vec v)
{
    float x[LANES];
    store(x, v);
    UNROLL for (int width = LANES / 2; width > 0; width /= 2)
        UNROLL for (int i = 0; i < width; i++) x[i] = x[i] > x[i + width] ? x[i] : x[i + width];
    return x[0];
}

/* 2^r for |r| <= 1/2, relative error of the polynomial 3e-9: Chebyshev interpolation of degree 6. */
INLINE vec exp2_fraction(vec r)
{
    vec y = splat(1.546144468e-4f);
    y = y * r + splat(1.340042818e-3f);
    y = y * r + splat(9.618056679e-3f);
    y = y * r + splat(5.550327227e-2f);
    y = y * r + splat(2.402265092e-1f);
    y = y * r + splat(6.931472067e-1f);
    return y * r + splat(1.0f);
}

#define ROUNDER 12582912.0f /* 1.5 * 2^23: adding it rounds to an integer, in the low bits */

/* 2^x for x <= 0 or NaN, relative error about 1e-7; 0 below 2^-126 (no subnormals). */
INLINE vec exp2_nonpositive(vec x)
{
    vec shifted = x + splat(ROUNDER), n = shifted - splat(ROUNDER);
    vec power = (vec)(((ivec)shifted << 23) + (127 << 23)); /* 2^n: ROUNDER's own bits shift out */
    return select_where(x < splat(-126.0f), (vec){}, exp2_fraction(x - n) * power);
}

/* e^x for any x, relative error about 2e-7; 0 below 2^-126, infinity from 2^128 on. */
INLINE vec exp_lanes(vec x)
{
    const vec per_ln2 = splat(1.44269502f), per_ln2_rest = splat(1.92596299e-8f);
    vec bits = x * per_ln2;
    vec shifted = bits + splat(ROUNDER), n = shifted - splat(ROUNDER);
    /* fused, so that the product's rounding, large where x is, does not enter the fraction */
    vec r = x * per_ln2 - n + x * per_ln2_rest;
    ivec exponent = (ivec)shifted - (ivec)splat(ROUNDER);
    ivec half = exponent >> 1; /* two factors, since 2^128 is no float */
    vec power = (vec)((half + 127) << 23), rest = (vec)((exponent - half + 127) << 23);
    vec y = exp2_fraction(r) * power * rest;
    y = select_where(bits > splat(128.0f), splat(__builtin_inff()), y);
    return select_where(bits < splat(-126.0f), (vec){}, y);
}

#endif
