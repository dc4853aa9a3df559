"""The checksum of a hand-off, over the bytes of KV wherever they lie. One definition:

    sum over i of (2 * (first_word + i) + 1) * u[i]  modulo 2^64,   u[i] = w[i] xor (w[i] >> 32)

where w are the bytes as little-endian 64-bit words, the last one filled up with zeros.

- u is a bijection of w and weights are odd: any change within one word is detected. Weights differ:
  so are words or blocks that change places (folding the upper half down keeps this true of words that
  differ only in their top bits, which an even difference of weights would push out).
- It is linear in ranges: the checksum of a whole is the sum modulo 2^64 of those of its parts, each
  with `first_word` the number of words before it. So layers may be summed as they are pushed.
- It guards against accidents, not against an attacker.

On the CPU it is computed by C at memory speed where that can be built (kernels/), everywhere else by integer
tensor operations (tensor_copy.py), which give the same on CUDA.
"""

from __future__ import annotations

import sys

MODULUS = 1 << 64
WORD_BYTES = 8

assert sys.byteorder == "little", "KV moves between little-endian machines only"
