"""Batches on their way to the device."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from pixelwright.errors import UserError
from pixelwright.models.conditions import TextCondition
from pixelwright.training.inputs import AHEAD, Staged, ahead, staged_ahead

CUDA = torch.device("cuda")


def staged(number: int, text: bool = False) -> Staged:
    null = TextCondition(torch.zeros(1, 2, 4))
    captions = TextCondition(torch.full((2, 3, 4), float(number)), torch.ones(2, 3) > 0, null)
    images = torch.full((2, 3, 4, 4), number, dtype=torch.uint8)
    return Staged(images, torch.zeros(2) > 0, captions if text else torch.full((2,), number))


class Cuda:
    """Streams and events that note what happens, in the order of the calls."""

    def __init__(self) -> None:
        self.notes: list[tuple[Any, ...]] = []
        self.local = threading.local()
        self.main, self.events = Stream(self, "main"), 0

    def Stream(self, device: torch.device) -> "Stream":
        return Stream(self, "copies")

    def current_stream(self, device: torch.device) -> "Stream":
        return getattr(self.local, "stream", self.main)

    def stream(self, stream: "Stream") -> "Stream":
        return stream


class Stream:
    def __init__(self, cuda: Cuda, name: str) -> None:
        self.cuda, self.name = cuda, name

    def __enter__(self) -> None:
        self.cuda.local.stream = self

    def __exit__(self, *error: object) -> None:
        del self.cuda.local.stream

    def record_event(self) -> int:
        self.cuda.events += 1
        self.cuda.notes.append(("event", self.cuda.events, self.name))
        return self.cuda.events

    def wait_event(self, event: int) -> None:
        self.cuda.notes.append(("wait", event, self.name))


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    """A GPU whose memory is that of the CPU."""
    found, pinned = Cuda(), set[int]()

    def pin(x: Tensor) -> Tensor:
        copy = x.clone()
        pinned.add(copy.data_ptr())
        return copy

    def to(x: Tensor, device: torch.device, non_blocking: bool = False) -> Tensor:
        assert device == CUDA and non_blocking and x.data_ptr() in pinned
        found.notes.append(("copy", found.current_stream(device).name))
        return x

    monkeypatch.setattr(Tensor, "is_pinned", lambda x: x.data_ptr() in pinned)
    monkeypatch.setattr(Tensor, "pin_memory", pin)
    monkeypatch.setattr(Tensor, "to", to)
    monkeypatch.setattr(Tensor, "record_stream", lambda x, stream: found.notes.append(("use", stream.name)))
    return found


@pytest.mark.parametrize("text", [False, True])
def test_copies_go_from_pinned_memory_over_a_stream_of_their_own(cuda: Cuda, text: bool) -> None:
    found = staged_ahead((staged(k, text) for k in range(9)), CUDA, cuda)
    first = next(found)
    assert first.images[0, 0, 0, 0] == 0
    tensors = 5 if text else 3
    own = [note for note in cuda.notes if note[-1] == "copies"]
    for k in range(1, AHEAD + 2):  # those that were begun beside it are there, or on the way
        part = own[(k - 1) * (tensors + 1) : k * (tensors + 1)]
        assert part == ([("copy", "copies")] * tensors + [("event", k, "copies")])[: len(part)]
    main = [note for note in cuda.notes if note[-1] == "main"]
    assert main == [("wait", 1, "main")] + [("use", "main")] * tensors
    assert [int(next(found).images[0, 0, 0, 0]) for _ in range(3)] == [1, 2, 3]
    assert ("wait", 4, "main") in cuda.notes


def test_other_devices_take_plain_copies() -> None:
    found = staged_ahead(map(staged, range(9)), torch.device("meta"))
    for _ in range(3):
        assert {x.device.type for x in next(found)[:3]} == {"meta"}  # type: ignore[union-attr]


def test_batches_are_made_ahead_in_another_thread() -> None:
    made: list[int] = []
    enough = threading.Event()

    def numbers() -> Iterator[int]:
        for k in range(9):
            made.append(k)
            if k == AHEAD:
                enough.set()
            yield k

    items = ahead(numbers())
    assert next(items) == 0
    assert enough.wait(10)  # while the first is in use
    assert list(zip(items, range(3), strict=False)) == [(1, 0), (2, 1), (3, 2)]


def test_order_and_errors_are_kept() -> None:
    def numbers() -> Iterator[int]:
        yield from range(3)
        raise UserError("the images are gone")

    seen: list[int] = []
    with pytest.raises(UserError, match="gone"):
        for number in ahead(numbers()):
            seen.append(number)
    assert seen == [0, 1, 2]
