/* Keys and values in one byte, times a scale that is a power of two. baton/engine/quantized_kv.py defines them. */
#ifndef BATON_QUANTIZED_H
#define BATON_QUANTIZED_H

#include <math.h>

#include "vector.h"

enum { LEAST_EXPONENT = 32, MOST_EXPONENT = 252, NOT_FINITE = 255 };

INLINE uint32_t float_bits(float x) { uint32_t b; memcpy(&b, &x, sizeof b); return b; }
INLINE float bits_float(uint32_t b) { float x; memcpy(&x, &b, sizeof x); return x; }

/* The exponent field of the least scale with which a value of this magnitude fits; NOT_FINITE for none.
 * int8: below 2^7 steps. fp8: below 2^8, the last binade of e4m3. */
INLINE int scale_exponent(uint32_t magnitude, int binades)
{
    const int exponent = (int)(magnitude >> 23);
    if (exponent > MOST_EXPONENT) return NOT_FINITE;
    return (exponent < LEAST_EXPONENT ? LEAST_EXPONENT : exponent) - binades;
}

INLINE int8_t to_int8(float steps) { return (int8_t)(int32_t)floorf(steps); }

/* Four significant bits, to nearest even; 0 below the least normal number. */
INLINE uint8_t to_fp8(float x)
{
    const uint32_t bits = float_bits(x), magnitude = bits & 0x7fffffff;
    const uint32_t rounded = (magnitude + 0x7ffff + (magnitude >> 20 & 1)) >> 20; /* 8 + 3 bits */
    return rounded < (127 - 6) << 3 ? 0 : (uint8_t)((bits >> 24 & 0x80) | (rounded - ((127 - 7) << 3)));
}

/* The same value, for a scale 2^shift times as large: what the larger scale would have made of the float. */
INLINE int8_t shift_int8(int8_t q, int shift) { return (int8_t)(q >> (shift > 7 ? 7 : shift)); }

INLINE uint8_t shift_fp8(uint8_t q, int shift)
{
    return (q & 0x7f) >> 3 > shift ? (uint8_t)(q - (shift << 3)) : 0;
}

/* LANES values as floats: the middle of each step. Exact, since the scale is a power of two. */
INLINE vec from_int8(bvec q, float scale)
{
    return __builtin_convertvector(widen_shorts(widen_bytes(q)), vec) * scale + 0.5f * scale;
}

/* Seven bits further left, an fp8 of exponent e is an fp16 of exponent e, whose bias is 8 more. */
INLINE vec from_fp8(bvec q, float scale)
{
    return widen((hvec)(widen_bytes(q) << 7 & (int16_t)0xbf80)) * (256.0f * scale);
}

/* The same of bytes that are the highest of their lanes, each with a scale of its own. */
INLINE vec int8_lanes(ivec top, vec scale)
{
    return __builtin_convertvector(top >> 24, vec) * scale + 0.5f * scale;
}

INLINE vec fp8_lanes(ivec top, vec scale)
{
    return (vec)(top >> 4 & (int32_t)0x87f00000) * 0x1p120f * scale; /* fp32's bias is 120 more */
}

#endif
