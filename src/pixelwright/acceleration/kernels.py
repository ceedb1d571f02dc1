"""Which kernels compute: TF32 for products in float32, and the kernel of attention. PyTorch has both settings
for the whole process; here they hold inside a `with` and are put back after it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from pixelwright.errors import UserError, nearest
from pixelwright.models import layers

ATTENTION: dict[str, list[SDPBackend]] = {
    "auto": [],
    "sdpa": [backend for backend in SDPBackend.__members__.values() if backend != SDPBackend.ERROR],
    "flash": [SDPBackend.FLASH_ATTENTION],
    "math": [SDPBackend.MATH],
}
"""What may compute attention: auto is `models.layers.attend` as it is, with a kernel of its own for short
bf16 rows on CPUs; sdpa PyTorch's function in any case; the others one of its kernels."""


def check_attention(attention: str, device: torch.device) -> None:
    """Raise UserError for an unknown kernel, or one that this device has not."""
    if attention not in ATTENTION:
        raise UserError(f'attention is "{attention}"{nearest(attention, ATTENTION)}')
    on_cuda = device.type == "cuda" and torch.backends.cuda.is_flash_attention_available()
    if attention == "flash" and device.type != "cpu" and not on_cuda:
        raise UserError(f"attention is flash, which PyTorch does not have on {device} here; use auto or math")


@contextmanager
def kernels(device: torch.device, precision: str, attention: str = "auto") -> Iterator[None]:
    """Compute with these kernels.

    Args:
        precision: fp32 keeps products in full float32; with any other name, those that stay in float32 are
            done in TF32 on CUDA.
        attention: a key of `ATTENTION`.

    Raises:
        UserError: see `check_attention`; or the kernel cannot do what the model asks for, such as flash
            attention with a mask on CUDA.
    """
    check_attention(attention, device)
    cudnn, exact = torch.backends.cudnn, precision == "fp32"
    with ExitStack() as stack:
        if device.type == "cuda":
            stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
            torch.set_float32_matmul_precision("highest" if exact else "high")
            stack.callback(setattr, cudnn, "allow_tf32", cudnn.allow_tf32)
            cudnn.allow_tf32 = not exact
        if attention == "auto":
            yield
            return
        stack.callback(setattr, layers, "SHORT", layers.SHORT)
        layers.SHORT = 0  # so that nothing but PyTorch's function computes attention
        stack.enter_context(sdpa_kernel(ATTENTION[attention]))
        try:
            yield
        except RuntimeError as error:
            if "No available kernel" not in str(error) and "No viable backend" not in str(error):
                raise
            text = f"attention is {attention}, which cannot compute this model on {device}"
            raise UserError(f"{text} (a mask, a head size or a dtype it has not); use auto or math") from None
