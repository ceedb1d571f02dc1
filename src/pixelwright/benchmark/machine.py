"""The machine a figure belongs to, and its ceilings: the fastest matrix product and the fastest copy."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from pixelwright.benchmark.measure import Wait, interleave
from pixelwright.device import resolve_precision

CPU_INFO = Path("/proc/cpuinfo")
CALLS = 10
"""Of each product and copy; the fastest counts."""


@dataclass(frozen=True)
class Machine:
    """What the figures were measured on."""

    name: str
    """Processor or GPU, and the number of threads; figures of one name may be compared."""
    torch: str
    matmul: dict[str, float]
    """FLOP/s of the fastest square matrix product by precision: fp32, and bf16 where the device has it."""
    copy: float
    """Bytes a second, read and written, of a copy far larger than the caches."""


def waiting(device: torch.device) -> Wait:
    """What makes the clock wait for a device."""
    if device.type == "cuda":
        return torch.cuda.synchronize
    return torch.mps.synchronize if device.type == "mps" else lambda: None


def measure_machine(device: torch.device, largest: int | None = None) -> Machine:
    """Find out the ceilings; some seconds. `largest` is the side of the largest matrix."""
    largest = largest or (8192 if device.type == "cuda" else 2048)
    precisions = {"fp32": torch.float32}
    if resolve_precision("auto", device) is not None:
        precisions["bf16"] = torch.bfloat16
    matmul = {name: _matmul(device, dtype, largest) for name, dtype in precisions.items()}
    return Machine(machine_name(device), torch.__version__, matmul, _copy(device, 16 * largest**2))


def machine_name(device: torch.device) -> str:
    """The class of the machine: processor with family and model, or GPU; and threads, for a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    fields = {}
    if CPU_INFO.exists():
        first = CPU_INFO.read_text().split("\n\n")[0]
        fields = {
            key.strip(): value.strip() for key, _, value in (x.partition(":") for x in first.split("\n"))
        }
    name = fields.get("model name") or platform.processor() or platform.machine()
    family = f" family {fields['cpu family']} model {fields['model']}" if "cpu family" in fields else ""
    return f"{name}{family}, {torch.get_num_threads()} threads"


def _matmul(device: torch.device, dtype: torch.dtype, largest: int) -> float:
    """The best of three sizes: the ceiling is what the device can, not what one shape gets."""
    best = 0.0
    for n in (largest // 4, largest // 2, largest):
        a, b = torch.randn(2, n, n, device=device).to(dtype)
        times = interleave({"product": partial(torch.mm, a, b)}, CALLS, wait=waiting(device))["product"]
        best = max(best, 2 * n**3 / min(times))
    return best


def _copy(device: torch.device, size: int) -> float:
    source = torch.ones(size, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    times = interleave({"copy": lambda: target.copy_(source)}, CALLS, wait=waiting(device))["copy"]
    return 2 * source.nbytes / min(times)


class ElementwiseTraffic(TorchDispatchMode):
    """Counts the bytes that operations other than matrix products, convolutions and attention read and write.

    At the speed of a copy they are the time that only fusing operations can save.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if getattr(function, "overloadpacket", function) not in flop_registry:
            before = _tensors((args, kwargs))
            known = {tensor.untyped_storage()._cdata for tensor in before}
            after = _tensors(result)
            inplace = function._schema.is_mutable
            if inplace or any(tensor.untyped_storage()._cdata not in known for tensor in after):  # no view
                self.bytes += sum(tensor.nbytes for tensor in before + after)
        return result


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
