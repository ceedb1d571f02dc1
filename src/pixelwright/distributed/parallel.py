"""Many processes, one run: everything that knows of ranks, DDP and FSDP2.

The same command runs in one process or, under `torchrun`, in many. Each process computes the share
[rank · b, (rank + 1) · b) of every global batch; gradients are averaged, so that the result is that of one
process to rounding. The model code knows nothing of it: DDP wraps the model from outside, FSDP2
(`fully_shard`) turns its weights into DTensors in place, and names stay as they are.
"""

import os
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from pixelwright.device import check_compiler, resolve_device
from pixelwright.distributed.config import ParallelConfig
from pixelwright.errors import UserError
from pixelwright.models.layers import has_dropout

T = TypeVar("T")
POLL = 0.02  # seconds between two looks at who has come


@dataclass(frozen=True)
class Layout:
    """This process among all processes of the run. With one process every method is the identity."""

    config: ParallelConfig
    device: torch.device  # where this process computes
    rank: int = 0
    world: int = 1
    group: dist.ProcessGroup | None = None  # all processes over the CPU; None: the default group is that

    @property
    def main(self) -> bool:
        """Whether this is the process that writes files and talks."""
        return self.rank == 0

    @property
    def sharded(self) -> bool:
        """Whether each process holds a part of the weights."""
        return self.config.mode == "fsdp"

    # ------------------------------------------------------------ agreeing
    def highest(self, *values: float) -> list[float]:
        """The highest of each number in any process. It goes over the CPU: no accelerator waits for it."""
        if self.world == 1:
            return list(values)
        found = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self.group)
        return found.tolist()

    def each(self, function: Callable[[], T]) -> list[T]:
        """What `function` returns in each process, by rank. An error of one is raised on all; where it is no
        UserError, the others have its text."""
        own, failed = None, None
        try:
            own = function()
        except Exception as error:
            failed = error
        told = failed if failed is None or isinstance(failed, UserError) else RuntimeError(repr(failed))
        found: list[Any] = [(own, told)] * self.world
        if self.world > 1:
            dist.all_gather_object(found, (own, told), group=self.group)
        for problem in (failed, *(each for _, each in found)):
            if problem is not None:
                raise problem
        return [each for each, _ in found]

    def first(self, function: Callable[[], T]) -> T:
        """What `function` returns on rank 0, where alone it is called. An error of it is raised on all."""
        return cast("T", self.each(lambda: function() if self.main else None)[0])

    def apart(self) -> "Layout":
        """The same with a group of its own over the CPU, for a thread that talks beside the training loop."""
        if self.world == 1:
            return self
        group = dist.new_group(backend="gloo", timeout=timedelta(seconds=self.config.timeout))
        return replace(self, group=group)

    # ------------------------------------------------------------ models
    def wrap(self, module: nn.Module, units: Sequence[nn.Module], compute: torch.dtype | None) -> nn.Module:
        """Ready a module for training on this device; call the result instead of the module. The weights of
        rank 0 are those of all.

        Args:
            module: on any device; on ranks other than 0 it may be on the meta device if weights are sharded.
            units: sub-modules whose weights are gathered and freed together under FSDP2.
            compute: dtype of autocast, in which FSDP2 gathers the units; gradients are summed in float32.
        """
        if self.sharded:
            return self._shard(module, units, compute)
        module.to(self.device)
        if self.world == 1:
            return module
        index = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=index, gradient_as_bucket_view=True)

    def _shard(self, module: nn.Module, units: Sequence[nn.Module], compute: torch.dtype | None) -> nn.Module:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard  # half a second

        # Blocks hand a NamedTuple on that holds views; nothing is changed in place, which this is about.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
        copies = self.config.replicas
        shape = (self.world,) if copies is None else (copies, self.world // copies)
        names = ("replicate", "shard")[-len(shape) :]
        mesh = init_device_mesh(self.device.type, shape, mesh_dim_names=names)
        # No device ever holds more than its part of the weights and one tensor on its way from rank 0.
        whole, tables = module.state_dict(), dict(module.named_buffers())
        module.to("meta")
        # Inputs stay as they are (times in bf16 would be too coarse); autocast sees to the products. What is
        # in no unit (embeddings, positions) stays float32, so that tokens have the dtype they have under DDP.
        policy = MixedPrecisionPolicy(
            param_dtype=compute, reduce_dtype=torch.float32 if compute else None, cast_forward_inputs=False
        )
        for unit in units:
            fully_shard(unit, mesh=mesh, mp_policy=policy)
        fully_shard(module, mesh=mesh)
        module.to_empty(device=self.device)
        for name in tables.keys() - whole.keys():  # what is computed, not saved
            owner, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(owner), leaf, tables[name].to(self.device))
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        set_model_state_dict(module, whole if self.main else {}, options=options)
        return module

    def summing(self, module: nn.Module, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward of a micro-batch: DDP exchanges gradients after the last one only.
        FSDP2 does after each, so that no process ever holds the gradients of all weights."""
        if isinstance(module, DistributedDataParallel) and not last:
            return module.no_sync()
        return nullcontext()

    def gather(self, tensors: Mapping[str, Tensor], everywhere: bool = False) -> dict[str, Tensor]:
        """The whole tensors on rank 0 (or everywhere), nothing on other ranks. All processes must call it."""
        whole = {}
        for name, tensor in tensors.items():
            tensor = full(tensor.detach())
            if self.main or everywhere:
                whole[name] = tensor
        return whole


# ---------------------------------------------------------------- starting and ending
@contextmanager
def together(start: Callable[[], Layout]) -> Iterator[Layout]:
    """The layout that `start` finds, in the process group that `torchrun` describes, until the end.

    A group that is there already is used and left. After an error the group is not taken down in order, since
    that could wait for processes that wait for this one: the process ends, and with it the connections.
    """
    own = not dist.is_initialized()
    layout = start()
    try:
        yield layout
    except RuntimeError as error:
        # Those of NCCL and of the store are a DistError; those of gloo are known by their text alone.
        if layout.world == 1 or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        reason = " ".join(str(error).split())[:200]
        text = f"another process of the run ended or hangs; look for its reason ({reason})"
        raise UserError(text) from error
    if own and dist.is_initialized():
        dist.destroy_process_group()


def join(device: str, config: ParallelConfig, batch_size: int, accumulate: int = 1) -> Layout:
    """The layout of this process in a training run; see `connect`. Raises UserError: a mode that needs
    `torchrun` without it, a batch or copies of the weights that do not divide, and what `connect` raises."""
    if (world := _world()) is not None:
        check(config, world, batch_size, accumulate)
    elif config.mode != "auto":
        command = "torchrun --standalone --nproc-per-node gpu --no-python pixelwright train ..."
        raise UserError(f"parallel.mode is {config.mode}, which needs torchrun: {command}")
    return connect(device, config)


def connect(device: str, config: ParallelConfig) -> Layout:
    """Find out which process this is and join the others, each on its own device. Raises UserError: more
    processes than devices, or a device that several processes cannot share."""
    world = _world()
    if world is None:
        return Layout(config, resolve_device(device))
    own = _own_device(device, world)
    if not dist.is_initialized():
        _start(own, config.timeout)
    layout = Layout(config, own, dist.get_rank(), world)
    return layout if dist.get_backend() == "gloo" else layout.apart()


def _world() -> int | None:
    """The number of processes, None where there is but this one and no `torchrun`."""
    if dist.is_initialized():
        return dist.get_world_size()
    return int(os.environ["WORLD_SIZE"]) if "RANK" in os.environ else None


def check(config: ParallelConfig, world: int, batch_size: int, accumulate: int = 1) -> None:
    """Raise UserError unless the batch and the copies of the weights divide among `world` processes."""
    parts, replicas = world * accumulate, config.replicas
    if batch_size % parts:
        raise UserError(
            f"batch_size is {batch_size}: with {world} processes and accumulate {accumulate} "
            f"it must be a multiple of {parts}, such as {-(-batch_size // parts) * parts}"
        )
    if replicas is not None and world % replicas:
        raise UserError(f"parallel.replicas is {replicas}: it must divide the {world} processes")


def _own_device(name: str, world: int) -> torch.device:
    """The device of this process: with several, each has its own GPU."""
    device = resolve_device(name)
    if world == 1 or device.type == "cpu":
        return device
    if device.type != "cuda" or device.index is not None:
        raise UserError(f"device is {str(device)!r}, but there are {world} processes: give cuda or cpu")
    here, local = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", 0))
    if (asked := int(os.environ.get("LOCAL_WORLD_SIZE", 1))) > here:
        raise UserError(f"{asked} processes on this machine, which has {here} GPUs: one each is needed")
    return torch.device("cuda", local)


def _start(device: torch.device, timeout: float) -> None:
    cuda, limit = device.type == "cuda", timedelta(seconds=timeout)
    if cuda:
        torch.cuda.set_device(device)
    store, rank, world = next(rendezvous("env://", timeout=limit))
    place: dict[str, Any] = {"store": _fresh_part(store, rank, world, timeout), "rank": rank}
    place |= {"world_size": world, "device_id": device if cuda and device.index is not None else None}
    dist.init_process_group("nccl" if cuda else "gloo", timeout=limit, **place)


def _fresh_part(store: Store, rank: int, world: int, timeout: float) -> Store:
    """A part of the store that these very processes have to themselves.

    After a restart torchrun hands out the same store, and the addresses of dead processes are still in it:
    without this the run hangs. (Its count of restarts is no name, as it may differ between machines.) So rank
    0 makes up a name and gives it to those who ask, each through a key that nobody used before; a request
    left by a dead process is answered too, and not read.
    """
    if rank > 0:
        request = uuid.uuid4().hex
        store.set(f"request/{rank}", request)
        name = store.get(request).decode()  # waits for it
        store.add(f"{name}/read", 1)
        return PrefixStore(name, store)
    name, served, end = uuid.uuid4().hex, set(), time.monotonic() + timeout
    while (read := store.add(f"{name}/read", 0)) < world - 1:
        if time.monotonic() > end:
            raise UserError(f"{world - 1 - read} of {world} processes did not come within {timeout} s")
        for other in range(1, world):
            key = f"request/{other}"
            if store.check([key]) and (request := store.get(key).decode()) not in served:
                store.set(request, name)
                served.add(request)
        time.sleep(POLL)
    return PrefixStore(name, store)


def prepare(module: nn.Module, recompute: bool, compile: bool) -> None:
    """Change how a unit computes, in place and without new names; both are no-ops where not asked for.

    Args:
        recompute: activation checkpointing: keep the inputs, compute the rest again in the backward pass.
        compile: torch.compile; blocks of one class share one compilation.

    Raises UserError: there is nothing to compile with.
    """
    if recompute:
        # Where nothing is random there is no generator state to put back.
        kept = has_dropout(module)
        module.forward = partial(checkpoint, module.forward, use_reentrant=False, preserve_rng_state=kept)
    if compile:
        check_compiler()
        module.forward = torch.compile(module.forward)


def mean(value: Tensor) -> Tensor:
    """The mean of a tensor over the processes of the run, if there are several; all must call it."""
    if dist.is_initialized() and (world := dist.get_world_size()) > 1:
        dist.all_reduce(value)  # gloo has sums only
        value = value / world
    return value


# A DTensor is known by its methods: to import the type takes half a second, which one process need not wait.
def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, by reference; elementwise work needs no more."""
    part = getattr(tensor, "to_local", None)
    return tensor if part is None else part().detach()


def full(tensor: Tensor) -> Tensor:
    """The whole of a tensor, in every process; all must call it."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def norm(tensors: list[Tensor]) -> Tensor:
    """The norm of all tensors as one vector, [], in every process; all must call it."""
    return full(nn.utils.get_total_norm(tensors))
