"""A device that this machine has not: tensors that say they are on it, while their numbers are on the CPU.

As on a real one, an operation on tensors of two devices fails. So device mix-ups show without a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

FAR = torch.device("mps:0")  # with an index, for which PyTorch would ask a driver
COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


class FarTensor(Tensor):
    """On `FAR`, as far as Python can see; to PyTorch's C++, which would look for a driver, a meta tensor."""

    inner: Tensor
    device = FAR  # type: ignore[assignment]

    @staticmethod
    def __new__(cls: Any, inner: Tensor) -> Any:
        where = {"strides": inner.stride(), "storage_offset": inner.storage_offset()}
        made = Tensor._make_wrapper_subclass(cls, inner.shape, **where, dtype=inner.dtype, device="meta")  # type: ignore[attr-defined]
        made.inner = inner
        return made

    def tolist(self) -> Any:
        return self.inner.tolist()

    def __repr__(self, *_: Any, **__: Any) -> str:
        return f"far {self.inner}"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class Far(TorchDispatchMode):
    """With it, tensors may be made on `FAR` and moved there."""

    def __enter__(self) -> Any:
        torch._C._set_only_lift_cpu_tensors(True)  # or torch.tensor(..., device=FAR) passes by the mode
        return super().__enter__()

    def __exit__(self, *how: Any) -> None:
        torch._C._set_only_lift_cpu_tensors(False)
        super().__exit__(*how)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
    far = [x for x in tensors if isinstance(x, FarTensor)]
    near = [x for x in tensors if not isinstance(x, FarTensor) and x.ndim > 0]
    if far and near and func not in COPIES:
        shapes = ", ".join(str(list(x.shape)) for x in near)
        raise RuntimeError(f"{func} of tensors on {FAR} and on the CPU ({shapes})")
    device, result_far = kwargs.get("device"), bool(far)
    if device is not None:
        result_far = torch.device(device).type in (FAR.type, "meta")  # what C++ takes a `FarTensor` for
        kwargs = {**kwargs, "device": torch.device("cpu")}
    elif func is torch.ops.aten.copy_.default:
        result_far = isinstance(args[0], FarTensor)
    own = {id(x.inner): x for x in far}
    args, kwargs = tree_map(lambda x: x.inner if isinstance(x, FarTensor) else x, (args, kwargs))
    result = func(*args, **kwargs)
    if func is torch.ops.aten._to_copy.default and id(result) in own:
        result = result.clone()

    def wrap(x: Any) -> Any:
        if not isinstance(x, Tensor) or not result_far:
            return x
        return own.get(id(x)) if id(x) in own else FarTensor(x)

    return tree_map(wrap, result)
