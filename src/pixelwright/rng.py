"""Random numbers as a function of integers.

Every draw in the library names its stream by a path of integers and words, such as `(seed, "noise", step)`.
Nothing depends on how many numbers were drawn before, so a result is the same whatever the batch size, the
number of processes or the interruptions, and resuming needs no saved generator state.

Noise comes from Philox4x32-10 (Salmon et al., SC 2011), a function of a key, here a digest of the stream, and
a counter, here (block, index): of any number of images at once, on the device that needs it. Words become
normal numbers by Box and Muller in float32, with polynomials for logarithm, sine and cosine, as those of
libraries differ in the last digits. What is left are shifts, sums, products, quotients and roots: numpy and
torch differ by 4e-7 at most, since torch's roots on CPUs are not rounded exactly. A GPU has not been tried.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

ROUNDS = 10
MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
WEYL = 0x9E3779B9, 0xBB67AE85  # added to the key after each round
LOW = 0xFFFFFFFF  # the lower half of 64 bits
CPU_BLOCKS, BLOCKS = 1 << 14, 1 << 22  # of four numbers, at once: what fits the cache, or bounds the memory
ROOT_HALF = 0x3F3504F3  # the bits of the float32 sqrt(1/2)
# By powers of z, to 1e-8: -2·log((1+s)/(1-s))/s with z = s², sin(πx/2)/x and cos(πx/2) with z = x².
LOGARITHM = (-4.0, -1.333336353302002, -0.799496054649353, -0.5985090732574463)
SINE = (1.5707963705, -0.645963788, 0.07968991995, -0.00467415061, 0.000151675122)
COSINE = (1.0, -1.23370051384, 0.25366932154, -0.0208626873791, 0.00091772386804, -2.38245356741e-05)
Array = Any  # of numpy or of torch, whichever the module `xp` is


def generator(seed: int, *path: int | str) -> torch.Generator:
    """A CPU generator whose numbers depend on `seed` and `path` alone."""
    return torch.Generator().manual_seed(int.from_bytes(_digest(seed, *path), "little", signed=True))


@contextmanager
def seeded(device: torch.device, seed: int, *path: int | str) -> Iterator[None]:
    """Inside, what PyTorch's own generators of the CPU and `device` draw (dropout) depends on `seed` and
    `path` alone; afterwards they are as before."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int.from_bytes(_digest(seed, *path), "little", signed=True))
        yield


def _digest(*path: int | str) -> bytes:
    return hashlib.blake2b("/".join(map(str, path)).encode(), digest_size=8).digest()


class Draw(NamedTuple):
    """What `draw` gives for b indices, float32 on their device."""

    normal: Tensor  # [b] standard normal
    uniform: Tensor  # [b] in [0, 1)
    noise: Tensor  # [b, *shape] standard normal


def draw(indices: Tensor, shape: Sequence[int], seed: int, *path: int | str) -> Draw:
    """The numbers of each of `indices`, int64 [b], on their device; they depend on `seed`, `path`, the index
    and `shape` alone."""
    digest, count = _digest(seed, *path), math.prod(shape)
    key = int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")
    xp: Any = torch
    index: Array = indices
    block: Array = torch.arange(1 + -(-count // 4), device=indices.device)
    most = BLOCKS
    if indices.device.type == "cpu":  # numpy is twice as fast as torch for arrays of this size
        xp, index, block, most = np, index.numpy(), block.numpy(), CPU_BLOCKS
    size = max(1, most // len(block))
    parts = [_draw(xp, index[i : i + size], block, key) for i in range(0, len(index), size)]
    joined = (each[0] if len(parts) == 1 else xp.concatenate(each) for each in zip(*parts, strict=True))
    normals, uniform, noise = (torch.as_tensor(each) for each in joined)
    return Draw(normals, uniform, noise.flatten(1)[:, :count].unflatten(1, tuple(shape)))


def normal(indices: Tensor, shape: Sequence[int], seed: int, *path: int | str) -> Tensor:
    """Standard normal numbers [b, *shape]; see `draw`."""
    return draw(indices, shape, seed, *path).noise


def _draw(xp: Any, index: Array, block: Array, key: tuple[int, int]) -> tuple[Array, Array, Array]:
    """As `Draw`, of index [b] and block [1 + n]: the noise [b, 4, n]; block 0 gives the single numbers."""
    a, b, c, d = philox((block, index[:, None] >> 32, index[:, None] & LOW, xp.zeros_like(block)), key)
    single = box_muller(xp, a[:, 0], b[:, 0])[0]
    uniform = xp.asarray(c[:, 0] >> 8, dtype=xp.float32) * 2**-24
    first, second = xp.stack((a[:, 1:], c[:, 1:]), 1), xp.stack((b[:, 1:], d[:, 1:]), 1)
    return single, uniform, xp.concatenate(box_muller(xp, first, second), 1)


def philox(counter: Sequence[Array], key: tuple[int, int]) -> tuple[Array, Array, Array, Array]:
    """Philox4x32-10: four random words, below 2^32 in int64 arrays, of four words of a counter."""
    (a, b, c, d), (k, m) = counter, key
    for _ in range(ROUNDS):
        p, q = a * MULTIPLIERS[0], c * MULTIPLIERS[1]  # modulo 2^64, and shifts keep the sign: see LOW
        a, c = (q >> 32) ^ b, (p >> 32) ^ d
        for word, own in ((a, k), (c, m)):
            word ^= own
            word &= LOW
        b, d = q, p
        k, m = (k + WEYL[0]) & LOW, (m + WEYL[1]) & LOW
    return a, b & LOW, c, d & LOW


def box_muller(xp: Any, first: Array, second: Array) -> tuple[Array, Array]:
    """Two normal numbers, r·cos(πx/2) and r·sin(πx/2), of two random words.

    r = ±sqrt(-2 log u) with u in (0, 1] from the first word and its sign from the last bit of the second,
    which as a whole is x in [-1, 1).
    """
    u = xp.asarray(first, dtype=xp.float32)
    u += 0.5
    u *= 2**-32
    r = _minus_two_log(xp, u)
    r = xp.sqrt(r, out=r)
    signed = xp.asarray(second, dtype=xp.int32)
    bits = r.view(xp.int32)
    bits ^= signed << 31
    x = xp.asarray(signed, dtype=xp.float32)
    x *= 2**-31
    z = x * x
    x *= _polynomial(z, SINE)
    x *= r
    r *= _polynomial(z, COSINE)
    return r, x


def _minus_two_log(xp: Any, u: Array) -> Array:
    """-2·log(u) of float32 numbers in (0, 1], by u = m·2^e with m in [sqrt(1/2), sqrt(2)); never below 0."""
    bits = u.view(xp.int32)
    e = (bits - ROOT_HALF) >> 23
    m = (bits - (e << 23)).view(xp.float32)
    s = (m - 1) / (m + 1)
    s *= _polynomial(s * s, LOGARITHM)
    s += xp.asarray(e, dtype=xp.float32) * (-2 * math.log(2))
    return s


def _polynomial(z: Array, coefficients: Sequence[float]) -> Array:
    """Horner's rule; `coefficients` by powers of z."""
    *rest, last = coefficients
    total = z * last
    for coefficient in reversed(rest[1:]):
        total += coefficient
        total *= z
    total += rest[0]
    return total
