"""The Triton kernels: compiled for GPUs, and interpreted on a CPU in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton, which comes with PyTorch for CUDA")


def test_interpreted_kernels_equal_the_formulas() -> None:
    """Triton reads TRITON_INTERPRET when it is imported, so the tests of that file have their own process."""
    tests = Path(__file__).with_name("interpreted_kernels.py")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(tests)]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout and "skipped" not in done.stdout


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("gated", "size"), [(False, 1152), (True, 1152), (False, 16), (True, 16)])
def test_they_compile_for_gpus(
    capability: int, gated: bool, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For A100 and H100, to code that reads and writes nothing but 16 bytes at a time."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    import triton
    from triton.backends.compiler import GPUTarget

    from pixelwright.acceleration import kernels

    names = kernels._kernel.arg_names
    channels = triton.next_power_of_2(size)
    constants = {"GATED": gated, "ROWS": max(1, kernels.TILE // channels), "CHANNELS": channels}
    types = dict.fromkeys(names[:8], "*bf16") | {"weight": "*fp32"} | dict.fromkeys(names[8:14], "i32")
    types |= dict.fromkeys(constants, "constexpr")
    sixteens: dict[Any, Any] = {(i,): [["tt.divisibility", 16]] for i in range(14) if names[i] != "shared"}
    source = triton.compiler.ASTSource(kernels._kernel, types, constants, sixteens)
    code = triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm
    accesses = set(re.findall(r"\b(?:ld|st)\.global\S*", code["ptx"]))
    assert code["cubin"] and accesses == {"ld.global.v4.b32", "st.global.v4.b32"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("shape", [(3, 7, 1152), (2, 5, 256, 16), (1, 3, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_they_equal_the_formulas(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    from tests.acceleration.interpreted_kernels import check

    check(shape, dtype, "cuda")
