"""Counter-based noise: a function of (seed, sample index, output index, token id), nothing else.

Gumbel-max draws the token with the largest `logit / temperature - log(e)`, where the `e` of all tokens
are independent Exp(1) variates. They are built so that one look rules out a whole group of tokens.
Tokens come in groups of GROUP_SIZE consecutive ids, and

    minimum of a group   = Exp(1) / GROUP_SIZE     as the least of GROUP_SIZE such variates is
    leader               = the token that has it, each equally likely
    e of the leader      = minimum
    e of another token   = minimum + Exp(1)        for the exponential has no memory

are exactly GROUP_SIZE independent Exp(1) variates. Each Exp(1), and each leader, comes from a 32-bit
word: a keyed hash of a counter in wrapping int32 arithmetic, hence the same on every device. The
64-bit key is BLAKE2b of (seed, sample index, output index). Words become floating point only in a
float64 logarithm, whose last bit may differ between devices: that decides nothing unless two scores
agree to 15 digits.

Knows no logits, no parameters and no batch.
"""

from __future__ import annotations

from hashlib import blake2b
from struct import unpack

import torch
from torch import Tensor

GROUP_SIZE = 64  # part of the definition: another size is another noise

# A key serves three ranges of counters: token ids, and group numbers from each of these on.
_MINIMUM = 1 << 30
_LEADER = -1 << 31


def row_key(seed: int, sample_index: int, output_index: int) -> tuple[int, int]:
    """The key of one draw, as two signed 32-bit words."""
    text = b"%d %d %d" % (seed, sample_index, output_index)
    low, high = unpack("<ii", blake2b(text, digest_size=8, person=b"baton-noise").digest())
    return low, high


def words(keys: Tensor, counters: Tensor) -> Tensor:
    """32 random bits for each counter: int32, of the shape that keys[..., 0] and `counters` have
    together. For one key a bijection: two murmur3 finalisers, a word of the key before each.
    """
    x = (counters * -0x61C88647).bitwise_xor(keys[..., 0])  # 0x9E3779B9, the golden ratio
    spare = torch.empty_like(x)  # fresh memory costs more than the arithmetic
    _finalise(x, spare)
    x.add_(keys[..., 1])
    _finalise(x, spare)
    return x


def group_minima(keys: Tensor, num_groups: int) -> Tensor:
    """The least `e` of each group. keys int32 [num_rows, 2] -> float64 [num_rows, num_groups]."""
    counters = torch.arange(_MINIMUM, _MINIMUM + num_groups, dtype=torch.int32, device=keys.device)
    return _exponential(words(keys[:, None], counters)).div_(GROUP_SIZE)


def residuals(keys: Tensor, groups: Tensor) -> Tensor:
    """What the `e` of each token of a group exceeds the group's minimum by: 0 for the leader.

    keys int32 [..., 2], groups [...] (broadcast) -> float64 [..., GROUP_SIZE].
    """
    groups = groups.to(torch.int32)[..., None]
    places = torch.arange(GROUP_SIZE, dtype=torch.int32, device=groups.device)
    counters = torch.cat((groups * GROUP_SIZE + places, groups + _LEADER), dim=-1)
    drawn = words(keys[..., None, :], counters)
    leaders = drawn[..., GROUP_SIZE:] & (GROUP_SIZE - 1)
    return _exponential(drawn[..., :GROUP_SIZE]).masked_fill_(leaders == places, 0.0)


def _finalise(x: Tensor, spare: Tensor) -> None:
    _xor_shift(x, 16, spare)
    x.mul_(-0x7A143595)  # 0x85EBCA6B
    _xor_shift(x, 13, spare)
    x.mul_(-0x3D4D51CB)  # 0xC2B2AE35
    _xor_shift(x, 16, spare)


def _xor_shift(x: Tensor, num_bits: int, spare: Tensor) -> None:
    """x ^= x >> num_bits; torch shifts the sign in, hence the mask."""
    torch.bitwise_right_shift(x, num_bits, out=spare)
    x.bitwise_xor_(spare.bitwise_and_((1 << (32 - num_bits)) - 1))


def _exponential(word: Tensor) -> Tensor:
    """-log(u), where u = (word + 2^31 + 1/2) / 2^32 is never 0 or 1."""
    return word.double().add_(2.0**31 + 0.5).mul_(2.0**-32).log_().neg_()
