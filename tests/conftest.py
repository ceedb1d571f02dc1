"""What all tests share: no deadlines of hypothesis, which busy machines miss; a cache of compiled code."""

import os
import tempfile
from pathlib import Path

import torch
from hypothesis import settings

settings.register_profile("default", deadline=None)
settings.load_profile("default")

# PyTorch's cache does not tell instruction sets apart: code for AVX-512 would be run, and crash, where
# ATEN_CPU_CAPABILITY=avx2 asks for another.
_NAME = f"pixelwright-tests-{os.getuid()}-{torch.backends.cpu.get_cpu_capability()}"
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir()) / _NAME))
