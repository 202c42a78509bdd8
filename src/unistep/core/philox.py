"""Philox4x32-10, a random number generator without a state: four words from a counter and a key.

A round takes the counter's words c and the key's words k (all unsigned, of 32 bits) to

    c0' = hi(M1 c2) ^ c1 ^ k0,    c1' = lo(M1 c2),    c2' = hi(M0 c0) ^ c3 ^ k1,    c3' = lo(M0 c0),

hi and lo the upper and lower 32 bits of the product of 64; the key then grows by (W0, W1) modulo 2^32. Ten rounds give
words that pass every known test of randomness (Salmon, Moraes, Dror and Shaw 2011, "Parallel random numbers: as easy as
1, 2, 3"; the constants are theirs, and so are the known answers of the tests).

Words become numbers as follows, the same on every device and in any language:

    uniform   u = floor(w / 2^8) / 2^24                                   in [0, 1)
    integer   floor(w n / 2^32)                                           in [0, n)
    normals   r cos(t), r sin(t)    r = sqrt(-2 ln((w + 1/2) / 2^32)),    t = 2 pi w' / 2^32,

of the words w, w' of a pair (Box and Muller 1958), computed in float64 and rounded to float32 once.
"""

import math

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

M0, M1 = 0xD2511F53, 0xCD9E8D57
W0, W1 = 0x9E3779B9, 0xBB67AE85
ROUNDS = 10

_WORD = 0xFFFFFFFF


def philox4x32(
    counter: tuple[Int64[Tensor, "..."], Int64[Tensor, "..."], Int64[Tensor, "..."], Int64[Tensor, "..."]],
    key: tuple[Int64[Tensor, "..."], Int64[Tensor, "..."]],
) -> tuple[Int64[Tensor, "..."], Int64[Tensor, "..."], Int64[Tensor, "..."], Int64[Tensor, "..."]]:
    """Returns the four words of each counter under its key.

    Args:
        counter: four words, each in [0, 2^32), as int64 of one shape or of shapes that broadcast.
        key: two words, each in [0, 2^32), as int64 that broadcast with the counter.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        # int64 wraps around, so a product keeps its 64 bits; its shift is an arithmetic one, hence the mask.
        first, second = c0 * M0, c2 * M1
        c0 = (second >> 32).bitwise_and_(_WORD) ^ (c1 ^ k0)
        c2 = (first >> 32).bitwise_and_(_WORD) ^ (c3 ^ k1)
        c1, c3 = second.bitwise_and_(_WORD), first.bitwise_and_(_WORD)
        k0, k1 = (k0 + W0) & _WORD, (k1 + W1) & _WORD
    return c0, c1, c2, c3


def uniforms(words: Int64[Tensor, "..."]) -> Float32[Tensor, "..."]:
    """Returns words as numbers in [0, 1), multiples of 2^-24."""
    return (words >> 8).to(torch.float32) * 2.0**-24


def integers(words: Int64[Tensor, "..."], high: int) -> Int64[Tensor, "..."]:
    """Returns words as integers in [0, high), `high` from 1 to 2^31; none is likelier than another by high / 2^32."""
    return (words * high) >> 32


def normals(radius: Int64[Tensor, "..."], angle: Int64[Tensor, "..."]) -> tuple[Float32[Tensor, "..."], ...]:
    """Returns two independent unit normals of each pair of words."""
    r = radius.to(torch.float64).add_(0.5).mul_(2.0**-32).log_().mul_(-2).sqrt_()
    t = angle.to(torch.float64).mul_(2 * math.pi * 2.0**-32)
    return (t.cos() * r).to(torch.float32), (t.sin_() * r).to(torch.float32)
