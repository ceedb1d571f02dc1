"""Where to compute, and in which precision."""

import ctypes
import os
import shutil
import sys
from typing import Literal

import torch

from pixelwright.errors import UserError, nearest

PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "int8": torch.int8}
"""What models are sampled in; the first two are those of training."""
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # of malloc.h


def resolve_device(name: str = "auto") -> torch.device:
    """The device called `name`; auto: CUDA, else MPS, else the CPU. Raises UserError if it is not here."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise UserError(f"device is {name!r}: give auto, cpu, cuda, cuda:1 or mps") from None
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not here.get(device.type, False):
        raise UserError(f"device is {name!r}, which PyTorch does not find here; use --device auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device is {name!r}, but there are {torch.cuda.device_count()} CUDA devices")
    return device


def resolve_precision(name: str, device: torch.device) -> torch.dtype | None:
    """The dtype of autocast, None for plain float32; see `name_precision`."""
    return PRECISIONS[name_precision(name, device)]


def name_precision(name: str, device: torch.device) -> Literal["fp32", "bf16", "int8"]:
    """What a precision means on a device: auto is bf16 where that computes in it, else fp32. Raises
    UserError: int8 where there is none."""
    if name == "int8":
        check_int8(device)
    if name not in ("auto", *PRECISIONS):
        raise UserError(f'precision is "{name}"{nearest(name, ("auto", *PRECISIONS))}')
    if name != "auto":
        return name  # type: ignore[return-value]
    has_bf16 = False
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        has = torch.cpu.get_capabilities()
        has_bf16 = bool(has.get("amx_bf16") or has.get("avx512_bf16"))
    return "bf16" if has_bf16 else "fp32"


def check_int8(device: torch.device) -> None:
    """Raise UserError if there are no fast products of 8 bits."""
    if device.type != "cpu" or not torch.cpu.get_capabilities().get("avx512_vnni"):
        raise UserError(f"int8 needs a CPU with AVX-512 VNNI, which {device} is not; use bf16")


def check_compiler() -> None:
    """Raise UserError if torch.compile has no C++ compiler to work with."""
    named = os.environ.get("CXX")
    if not any(shutil.which(name) for name in ([named] if named else ["g++", "clang++", "c++"])):
        where = f"CXX={named}" if named else "g++ or clang++"
        raise UserError(
            f"compile is true, but there is no {where}: install a C++ compiler or leave compile out"
        )


def keep_memory() -> None:
    """Let this process keep the memory it frees, so that the next step or pass finds it where it was.

    By default glibc returns large blocks to the system, which hands them out again page by page: 8 % of the
    processor time of a training step of dip-ti-4 at 32², 2 % or less of dit-ti-4's and pixeldit-ti-4's (one
    thread). Without effect on another C library. Memory in use is not changed, but it does not
    shrink before the process ends.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, 64 << 20)):
            mallopt(option, value)
