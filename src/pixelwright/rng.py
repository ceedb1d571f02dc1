"""Random numbers as a function of integers.

Every draw in the library names its stream by a path of integers and words, such as `(seed, "noise", step)`.
Nothing depends on how many numbers were drawn before, so a result is the same whatever the batch size, the
number of processes or the interruptions, and resuming needs no saved generator state.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def generator(seed: int, *path: int | str) -> torch.Generator:
    """A CPU generator whose numbers depend on `seed` and `path` alone."""
    key = "/".join(str(part) for part in (seed, *path))
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little", signed=True))


def normal(shape: Sequence[int], seed: int, *path: int | str) -> Tensor:
    """Standard normal numbers, float32 on the CPU, of stream `(seed, *path)`."""
    return torch.randn(tuple(shape), generator=generator(seed, *path))
