"""The machine a figure belongs to, and its ceilings: the fastest matrix product and the fastest copy."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from timing import interleave, waiting

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

    def ceiling(self, precision: str) -> float:
        """FLOP/s of the fastest matrix product in a precision."""
        return self.matmul.get(precision, self.matmul["fp32"])

    def __str__(self) -> str:
        products = ", ".join(f"{name} {flops / 1e12:.4g} TFLOP/s" for name, flops in self.matmul.items())
        return (
            f"{self.name}; torch {self.torch}. Fastest matrix product: {products}; "
            f"fastest copy: {self.copy / 1e9:.4g} GB/s (read and written)"
        )


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
    lines = CPU_INFO.read_text().split("\n\n")[0].split("\n") if CPU_INFO.exists() else []
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
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
