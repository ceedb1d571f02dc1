"""What the tabs of the page have in common."""

import html
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr
import torch
from PIL import Image
from torch import Tensor

from pixelwright.errors import UserError
from pixelwright.html import data_address
from pixelwright.studio import texts
from pixelwright.studio.jobs import Jobs

BUTTONS: Any = ["download", "fullscreen"]  # without that to share a picture
PREVIEW, COLUMNS = 256, 6  # of an unfinished picture: pixels of a side, and pictures in a row


def gallery(label: str, name: str, *classes: str) -> Any:
    """A gallery of whole files, as wide as there is room for."""
    how: dict[str, Any] = {"format": "png", "object_fit": "contain", "height": "auto", "buttons": BUTTONS}
    return gr.Gallery(label=label, elem_id=name, elem_classes=["gallery", *classes], interactive=False, **how)


def on_click(button: Any, job: Any, inputs: list[Any], outputs: list[Any], name: str) -> Any:
    """Let a button start a job, one at a time on the device; the first output has its place in the queue."""
    queue: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "device"}
    return button.click(job, inputs, outputs, api_name=name, show_progress_on=outputs[:1], **queue)


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


def preview(images: Tensor) -> str:
    """Pictures [B,H,W,3] on their way, as HTML that holds one sheet of them: to update a gallery would cost
    more than a step of a small model, and leave files behind."""
    if not images.numel():
        return ""
    columns = min(len(images), COLUMNS)
    white = images.new_full((-len(images) % columns, *images.shape[1:]), 255)
    rows = torch.cat((images, white)).unflatten(0, (-1, columns))  # [rows, columns, H, W, 3]
    sheet = Image.fromarray(rows.transpose(1, 2).flatten(2, 3).flatten(0, 1).numpy())
    sheet = sheet.reduce(max(1, max(images.shape[1:3]) // PREVIEW))
    sheet.save(data := io.BytesIO(), "jpeg", quality=85, subsampling=0)
    picture = f'<img src="{data_address(data.getvalue(), "jpeg")}" alt="{texts.UNFINISHED}">'
    return f'<div class="unfinished">{picture}</div>'
