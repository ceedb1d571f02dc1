"""CUDA graphs: what an evaluation asks of a GPU is recorded once per shape, then replayed in one call.

With few images a GPU is done sooner than Python has asked for the hundreds of kernels of a forward pass.
"""

import warnings
from collections.abc import Callable
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from pixelwright.models.conditions import Condition

WARM_UP = 2
"""Evaluations before a recording: the first compiles and fills caches, the second finds all in its place."""
MOST = 16
"""Recordings that are kept; the oldest goes first."""

Evaluate = Callable[[Tensor, Tensor, Condition], Tensor]
"""A denoiser's evaluation: (x, t, condition) -> velocity."""
Record = Callable[[Callable[[], Tensor]], tuple[Tensor, Callable[[], None]]]
"""Records a function without arguments: (where its result lies after a replay, replay)."""


class CannotRecord(Exception):
    """Something in the function cannot be recorded, such as reading a value back; the message says what."""


class Graphs:
    """Recordings of one evaluation, one for each shape of its inputs; guided sampling has two.

    What they read must stay where it is in memory: weights, and inputs, which are copied to their places.
    """

    def __init__(self, record: Record) -> None:
        self._record = record
        self._recordings: dict[tuple[object, ...], Callable[[list[Tensor]], Tensor] | None] = {}
        self._lock = Lock()  # threads share the places of inputs and outputs

    @torch.no_grad()
    def __call__(self, evaluate: Evaluate, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """evaluate(x, t, condition), which must be the same function every time."""
        inputs, kind = _inputs(x, t, condition), x.device.type
        autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        key = (autocast, *((tensor.shape, tensor.dtype) for tensor in inputs))
        with self._lock:
            if key not in self._recordings:
                if len(self._recordings) == MOST:
                    del self._recordings[next(iter(self._recordings))]
                self._recordings[key] = self._recorded(evaluate, x, t, condition)
            recording = self._recordings[key]
            return evaluate(x, t, condition) if recording is None else recording(inputs)

    def _recorded(self, evaluate: Evaluate, *given: Any) -> Callable[[list[Tensor]], Tensor] | None:
        """An evaluation whose inputs and output have fixed places."""
        fixed = tuple(each.clone() for each in given)
        try:
            output, replay = self._record(lambda: evaluate(*fixed))
        except CannotRecord as why:
            warnings.warn(f"sampling goes on without a CUDA graph: {why}", stacklevel=3)
            return None

        def again(inputs: list[Tensor]) -> Tensor:
            for place, tensor in zip(_inputs(*fixed), inputs, strict=True):
                place.copy_(tensor)
            replay()
            return output.clone()  # the next replay, of this recording or another, writes over it

        return again


def _inputs(x: Tensor, t: Tensor, condition: Condition) -> list[Tensor]:
    """What an evaluation reads besides weights: x, t, and labels [B], or features [B, L, C] and a mask."""
    if isinstance(condition, Tensor):
        return [x, t, condition]
    return [x, t, condition.features, *([] if condition.mask is None else [condition.mask])]


class CudaRecord:
    """Recording on a CUDA device. All recordings have their scratch memory in common."""

    def __init__(self, device: torch.device) -> None:
        self.pool = torch.cuda.graph_pool_handle()
        self.stream = torch.cuda.Stream(device)

    def __call__(self, function: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        """Warm up and record on a stream of its own, as CUDA wants it.

        Raises:
            CannotRecord: the function works, but not while it is recorded.
        """
        current, graph = torch.cuda.current_stream(self.stream.device), torch.cuda.CUDAGraph()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            for _ in range(WARM_UP):
                function()
            try:
                # Of the rules of recording, other threads are free: loaders and NCCL have some.
                with torch.cuda.graph(graph, self.pool, self.stream, capture_error_mode="thread_local"):
                    output = function()
            except RuntimeError as error:
                self.pool = torch.cuda.graph_pool_handle()  # the old one stays in the recording that failed
                raise CannotRecord(str(error).splitlines()[0]) from error
        current.wait_stream(self.stream)
        return output, graph.replay
