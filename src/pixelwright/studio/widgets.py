"""What the tabs of the page have in common."""

import html
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr
from torch import Tensor

from pixelwright.errors import UserError
from pixelwright.studio.jobs import Jobs

BUTTONS: Any = ["download", "fullscreen"]  # without that to share a picture
GALLERY: dict[str, Any] = {
    "format": "png",
    "object_fit": "contain",
    "height": "auto",
    "interactive": False,
    "buttons": BUTTONS,
}
ONE_AT_A_TIME: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "device"}


def session_of(request: gr.Request) -> str:
    """The name of the browser tab that sends a request."""
    return str(request.session_hash)


@contextmanager
def one_line() -> Iterator[None]:
    """A failure becomes one line on the page, which stays usable. The traceback of what is no mistake of the
    user's goes to the terminal."""
    try:
        yield
    except Exception as error:
        mistake = isinstance(error, UserError)
        text = str(error) if mistake else f"{type(error).__name__}: {error}"
        line = html.escape(" ".join(text.split()))
        raise gr.Error(line, duration=None, print_exception=not mistake) from error


def stopper(jobs: Jobs) -> Any:
    """What a stop button does."""

    def stop(request: gr.Request) -> None:
        jobs.stop(session_of(request))

    return stop


def enlarged(images: Tensor) -> list[Any]:
    """Pictures [B,H,W,3] to be looked at: small ones by a whole factor, without smoothing."""
    factor = max(1, 256 // images.shape[1])
    return list(images.repeat_interleave(factor, 1).repeat_interleave(factor, 2).numpy())
