"""What is drawn: a request with its settings, as every picture keeps them, and its pictures, step by step."""

import dataclasses
import json
import queue
import shlex
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from pixelwright.config import read
from pixelwright.diffusion.labels import as_labels, balanced_labels
from pixelwright.diffusion.sample import Denoiser, as_condition, sample
from pixelwright.diffusion.solvers import Step, StepCallback
from pixelwright.errors import UserError
from pixelwright.images import NOTE, to_uint8
from pixelwright.models.config import DenoiserConfig, SamplerSettings

MOST = 64  # pictures of one request
TOGETHER = 16  # pictures in a batch
EVERY, SHARE = 0.5, 0.1  # seconds between two previews, and of the time since the start; the longer counts
COMMAND_LINE = {"weights"}  # settings of `pixelwright sample` that the page has not
SAMPLER = tuple(field.name for field in dataclasses.fields(SamplerSettings))


@dataclass(frozen=True)
class Drawing:
    """One request: `count` pictures of the classes or prompts of `drawn`, in turn."""

    model: str  # as the page offers it
    drawn: tuple[str, ...]  # class names or numbers (none: all classes, evenly), or one prompt
    count: int
    seed: int
    index: int  # of the first picture
    size: tuple[int, int] | None  # (height, width); None: the model's own
    sampler: SamplerSettings

    def words(self, config: DenoiserConfig) -> list[str]:
        """What each picture shows. Raises UserError: no such class, no prompt, or too many pictures."""
        if not 1 <= self.count <= MOST:
            raise UserError(f"{self.count} pictures are asked for; the page draws 1 to {MOST} at a time")
        if config.takes_text and not any(text.strip() for text in self.drawn):
            raise UserError("the prompt is empty; describe the picture in a few words")
        names = config.class_names or tuple(map(str, range(config.num_classes)))
        drawn = self.drawn
        if not config.takes_text:
            chosen = as_labels(drawn, config) if drawn else balanced_labels(self.count, config.num_classes)
            drawn = tuple(names[label] for label in chosen)
        return [drawn[i % len(drawn)] for i in range(self.count)]

    def record(self, i: int, word: str, model: str, adapter: str | None) -> dict[str, Any]:
        """How picture i is drawn again by a model and an adapter, in the words of samples.jsonl."""
        what = {"model": model} | ({} if adapter is None else {"adapter": adapter})
        what |= {"drawn": word, "seed": str(self.seed), "index": str(self.index + i)}
        return what | dataclasses.asdict(self.sampler)

    def command(self, takes_text: bool, model: str, adapter: str | None) -> str:
        """The command line that draws the same pictures."""
        words: list[Any] = ["pixelwright", "sample", model]
        words += ["--adapter", adapter] if adapter else []
        words += ["--prompt" if takes_text else "--labels", *self.drawn] if self.drawn else []
        words += ["--num-images", self.count, "--seed", self.seed]
        words += ["--start-index", self.index] if self.index else []
        words += ["--size", *self.size] if self.size else []
        for name, value in dataclasses.asdict(self.sampler).items():
            values = (value or ["all"]) if name == "guidance_interval" else [value]
            words += [f"--{name.replace('_', '-')}", *values] if values != [None] else []
        return shlex.join(map(str, [*words, "--out", "samples"]))

    def python(self, config: DenoiserConfig, model: str, adapter: str | None) -> str:
        """The Python that draws the same pictures."""
        more = "" if self.size is None else f", size={self.size}"
        more += f", start_index={self.index}" if self.index else ""
        return (
            "import pixelwright as pw\n\n"
            f"model = pw.load({model!r}{f', adapter={adapter!r}' if adapter else ''})\n"
            f"sampler = pw.{self.sampler!r}\n"
            f"images = pw.sample(model, {self.words(config)!r}, sampler, seed={self.seed}{more})\n"
        )


def whole(value: Any, name: str) -> int:
    """A field with a whole number of at least 0. Raises UserError: anything else, an empty field too."""
    if not isinstance(value, (int, float)) or value != int(value) or value < 0:
        raise UserError(f"{name} is {value}; give a whole number")
    return int(value)


def as_number(text: str) -> float | int | str:
    """The number that a text is, if it is one."""
    try:
        value = float(text)
    except ValueError:
        return text
    return int(value) if value.is_integer() else value


def note_of(file: Path) -> tuple[dict[str, Any], SamplerSettings, tuple[int, int]]:
    """How a picture was drawn: what `Drawing.record` gives (an adapter as its model), its sampler settings
    and its (height, width).

    Raises UserError: no PNG, one without a note of ours, or drawn with what only the command line has.
    """
    try:
        with Image.open(file, formats=["PNG"]) as image:  # its pixels are not decoded
            text, size = image.info.get(NOTE), (image.height, image.width)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"the file is no PNG that can be read ({error}); drop a picture drawn here") from None
    try:
        note = dict(json.loads(text or ""))
        known = {key: str(note[key]) for key in ("model", "drawn", "seed", "index")}
        known["model"] = str(note.get("adapter", known["model"]))
        sampler = read(SamplerSettings, {name: note[name] for name in SAMPLER}, "the picture")
    except (ValueError, KeyError, TypeError):
        raise UserError("the picture does not say how it was drawn; drop one drawn here") from None
    for name in COMMAND_LINE & note.keys():
        raise UserError(
            f"the picture was drawn with --{name} {note[name]}: `pixelwright sample` has that alone"
        )
    return known, sampler, size


class Frame(NamedTuple):
    """Pictures on their way: those that are done, and a batch denoised as the network sees it now."""

    images: Tensor  # uint8 [B,H,W,3]
    step: int
    steps: int  # over all batches
    done: bool  # the last frame; of a job that was stopped `step` is below `steps`


class Stopped(Exception):
    """The stop flag was seen."""


def follow(
    draw: Callable[[StepCallback], Tensor], stop: threading.Event, batches: int = 1
) -> Iterator[Frame]:
    """The pictures that `draw` gives, every `EVERY` seconds or more as they are, and at its end.

    After `stop` the last frame holds what was there. `draw` runs in a thread of its own, which is over when
    this generator is. Raises what `draw` raises.
    """
    found: queue.SimpleQueue[Frame | None] = queue.SimpleQueue()
    with ThreadPoolExecutor(1, "drawing") as pool:
        work = pool.submit(_run, draw, stop, batches, found.put)
        work.add_done_callback(lambda _: found.put(None))
        try:
            while (frame := found.get()) is not None:
                yield frame
            work.result()  # raises what went wrong there
        except GeneratorExit:  # nobody looks at the rest
            stop.set()
            raise


def _run(
    draw: Callable[[StepCallback], Tensor], stop: threading.Event, batches: int, show: Callable[[Frame], None]
) -> None:
    done: list[Tensor] = []
    last, began = Frame(torch.zeros(0), 0, 1, False), time.monotonic()
    shown = began

    def preview(step: Step) -> None:
        nonlocal last, shown
        first, ends = step.index == 0, step.index == step.steps - 1  # noise, and what comes anyway
        now = time.monotonic()
        due = now - shown >= max(EVERY, SHARE * (now - began)) and not first
        if stop.is_set() or (len(done) < batches - 1 if ends else due):
            images = to_uint8(step.denoised).cpu()
            number = len(done) * step.steps + step.index + 1
            last = Frame(torch.cat([*done, images]), number, batches * step.steps, False)
            done.extend([images] if ends else ())
            shown = time.monotonic()
            show(last)
        if stop.is_set():
            raise Stopped

    try:
        images = draw(preview)
        show(Frame(images, last.steps, last.steps, True))
    except Stopped:
        show(last._replace(done=True))


def frames(model: Denoiser, drawing: Drawing, words: list[str], stop: threading.Event) -> Iterator[Frame]:
    """The pictures of a request, see `follow`."""
    more: dict[str, Any] = {"seed": drawing.seed, "start_index": drawing.index, "size": drawing.size}

    def draw(preview: StepCallback) -> Tensor:
        condition = as_condition(words, model)
        how = drawing.sampler
        return sample(model, condition, how, callback=preview, batch_size=TOGETHER, **more)

    return follow(draw, stop, -(-len(words) // TOGETHER))
