"""What all tests share: no deadlines of hypothesis, which busy machines miss; a cache of compiled code."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

settings.register_profile("default", deadline=None)
settings.load_profile("default")

# PyTorch's cache does not tell instruction sets apart: code for AVX-512 would be run, and crash, where
# ATEN_CPU_CAPABILITY=avx2 asks for another.
_NAME = f"pixelwright-tests-{os.getuid()}-{torch.backends.cpu.get_cpu_capability()}"
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir()) / _NAME))


@pytest.fixture(scope="session", autouse=True)
def no_bf16() -> Iterator[None]:
    """What precision "auto" means here is the same on every processor: fp32. Tests of bf16 ask for it."""
    with pytest.MonkeyPatch.context() as patch:
        able = {**torch.cpu.get_capabilities(), "amx_bf16": False, "avx512_bf16": False}
        patch.setattr(torch.cpu, "get_capabilities", lambda: able)
        yield
