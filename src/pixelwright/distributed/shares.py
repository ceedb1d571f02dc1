"""Work on whole matrices, shared out: each process computes some of them for all."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F


def by_shares(function: Callable[[Tensor], Tensor], stack: Tensor, like: Tensor) -> Tensor:
    """`function` of k matrices, [k, m, n] -> [k, m, n], of which each process computes its share.

    Args:
        stack: the matrices, equal in all processes; or this process's rows of each, [k, rows, n], where
            `like` is a weight of theirs that FSDP2 cuts by rows. Every process must call it.

    Returns:
        the same part of each result.
    """
    mesh = getattr(like, "device_mesh", None)
    if mesh is None and not dist.is_initialized():
        return function(stack)
    group = dist.group.WORLD if mesh is None else mesh.get_group(mesh.ndim - 1)
    world, rank = dist.get_world_size(group), dist.get_rank(group)
    if world == 1:
        return function(stack)
    count = len(stack)
    each = -(-count // world)  # matrices of a process
    stack = F.pad(stack, (0, 0, 0, 0, 0, each * world - count))
    if mesh is None:
        own = function(stack[rank * each : (rank + 1) * each])
        whole = torch.empty_like(stack)
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # before torch 2.13
        gather(whole, own.contiguous(), group=group)
        return whole[:count]
    rows, whole_rows = stack.shape[1], like.shape[0]
    most = -(-whole_rows // world)  # rows of a process; the last ones have fewer
    padded = F.pad(stack, (0, 0, 0, most - rows)).contiguous()  # [world · each, most, n]
    parts = _exchange(padded, group).unflatten(0, (world, each))  # by the process they come from
    own = function(parts.movedim(0, 1).flatten(1, 2)[:, :whole_rows])  # [each, m, n]
    own = F.pad(own, (0, 0, 0, most * world - whole_rows)).unflatten(1, (world, most))
    return _exchange(own.movedim(1, 0).flatten(0, 1).contiguous(), group)[:count, :rows]


def _exchange(x: Tensor, group: Any) -> Tensor:
    """The i-th of equal parts of x goes to process i, its part for this process comes back."""
    found = torch.empty_like(x)
    dist.all_to_all_single(found, x, group=group)
    return found
