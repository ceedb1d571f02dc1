"""What the buttons of the page do: methods of one object, called with the values of a form."""

import itertools
import json
import threading
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pixelwright.config import convert, read
from pixelwright.errors import UserError
from pixelwright.files import make_folder, replacing
from pixelwright.images import NOTE, png_name, save_grid, save_png
from pixelwright.models.config import DenoiserConfig, SamplerSettings
from pixelwright.studio import comparing, texts
from pixelwright.studio.drawing import SAMPLER, Drawing, Frame, as_number, frames, note_of, whole
from pixelwright.studio.editing import Edit, edited, prepared, read_upload
from pixelwright.studio.finetuning import FOLDER, Finetuning
from pixelwright.studio.models import Models

EDITED = "pixelwright edit"  # text chunk of an edited picture
OWN_FIELDS = ("solver", "steps", "guidance_scale", "time_shift")  # settings with a field of the same name


@dataclass(frozen=True)
class Form:
    """The values of the form under Draw, in the order of its fields."""

    model: str | None = None
    classes: Sequence[str] = ()
    prompt: str = ""
    count: float = 4
    seed: float = 0
    steps: float = 50
    guidance_scale: float = 1
    solver: str = "ab2"
    interval: str = "all"
    time_shift: float = 1
    width: str = ""  # both empty: the model's own; one: a square
    height: str = ""
    index: float = 0
    more: str = ""

    @staticmethod
    def of(model: str, sampler: SamplerSettings, **more: Any) -> "Form":
        """The form with these settings of the sampler."""
        settings = {name: getattr(sampler, name) for name in SAMPLER}
        interval = settings.pop("guidance_interval")
        words = "all" if interval is None else f"{interval[0]:g} {interval[1]:g}"
        how = {name: settings.pop(name) for name in OWN_FIELDS}
        default = vars(SamplerSettings())
        rest = " ".join(f"{name}={value}" for name, value in settings.items() if value != default[name])
        return Form(model=model, interval=words, more=rest, **how, **more)

    def drawing(self, takes_text: bool) -> Drawing:
        """Raises UserError: a value that does not fit."""
        words = None if self.interval.strip() == "all" else ",".join(self.interval.replace(",", " ").split())
        hint = tuple[float, float] | None
        interval = convert(words, hint, texts.INTERVAL)
        settings = {
            name: as_number(value) for name, _, value in (w.partition("=") for w in self.more.split())
        }
        settings |= {"guidance_interval": interval, **{name: getattr(self, name) for name in OWN_FIELDS}}
        sampler = read(SamplerSettings, settings | {"steps": whole(self.steps, texts.STEPS)})
        sides = as_number(self.height or self.width), as_number(self.width or self.height)
        size = None if "" in sides else (whole(sides[0], texts.HEIGHT), whole(sides[1], texts.WIDTH))
        drawn = (self.prompt,) if takes_text else tuple(self.classes)
        count, seed = whole(self.count, texts.COUNT), whole(self.seed, texts.SEED)
        index = whole(self.index, texts.INDEX)
        return Drawing(self.model or "", drawn, count, seed, index, size, sampler)


class Progress(NamedTuple):
    """What a job shows from time to time."""

    images: Tensor  # uint8 [B,H,W,3]
    text: str
    files: Sequence[Path] = ()  # what was written, at its end


def _shown(
    found: Iterable[Frame], finish: Callable[[Tensor], tuple[str, Sequence[Path]]]
) -> Iterator[Progress]:
    """Frames for the page; `finish` writes the images of the last one, where the job was not stopped."""
    for frame in found:
        if not frame.done or frame.step < frame.steps:
            text = texts.STOPPED if frame.done else texts.DRAWING
            yield Progress(frame.images, text.format(step=frame.step, steps=frame.steps))
        else:
            yield Progress(frame.images, *finish(frame.images))


class Jobs:
    """The jobs of a page, one at a time on its device; each can be stopped by the session that began it.

    Args:
        models: what may be drawn with.
        runs: the folder of runs that are watched.
        out: the folder for pictures and fine-tunings.
    """

    def __init__(self, models: Models, runs: Path, out: Path) -> None:
        self.models, self.runs, self.out = models, runs, out
        self.finetuning = Finetuning(models, out / FOLDER)
        self._stops: dict[str, threading.Event] = {}

    def stop(self, session: str) -> None:
        """Stop the job of a session, if it has one."""
        if (flag := self._stops.get(session)) is not None:
            flag.set()

    def preset(self, model: str) -> Form:
        """The form as a model is best drawn with. Raises UserError: it is not offered, or cannot be read."""
        return Form.of(model, self.models.config(model).sampler or SamplerSettings())

    def takes_text(self, model: str | None) -> bool:
        """Whether it draws from prompts."""
        return model is not None and self.models.config(model).takes_text

    def class_names(self, model: str | None) -> list[str]:
        """The names of its classes, or their numbers."""
        if model is None:
            return []
        config = self.models.config(model)
        return list(config.class_names or map(str, range(config.num_classes)))

    def as_code(self, form: Form) -> tuple[str, str]:
        """The command line and the Python that draw the same pictures. Raises UserError as `draw`."""
        config = self._config(form.model)
        drawing, parts = form.drawing(config.takes_text), self.models.parts(str(form.model))
        return drawing.command(config.takes_text, *parts), drawing.python(config, *parts)

    def _config(self, model: str | None) -> DenoiserConfig:
        if not model:
            raise UserError(texts.NO_MODEL)
        return self.models.config(model)

    def draw(self, session: str, form: Form) -> Iterator[Progress]:
        """The pictures of the form, step by step; the finished ones are written to the folder."""
        config = self._config(form.model)
        drawing = form.drawing(config.takes_text)
        words, stop, began = drawing.words(config), self._flag(session), time.monotonic()

        def finish(images: Tensor) -> tuple[str, Sequence[Path]]:
            files = list(self._write(drawing, words, images))
            return texts.DONE.format(count=len(files), seconds=time.monotonic() - began), files

        yield from _shown(frames(self.models.get(drawing.model), drawing, words, stop), finish)

    def compare(
        self, session: str, form: Form, columns: tuple[str, str], rows: tuple[str, str]
    ) -> Iterator[Progress]:
        """A sheet with one or two settings varied: (axis, values, one a line) each; axis "none": one row."""
        drawing = form.drawing(self._config(form.model).takes_text)
        across, down = (
            (axis, [line.strip() for line in values.splitlines() if line.strip()])
            for axis, values in (columns, rows)
        )
        chosen, stop = None if down[0] == texts.NONE else down, self._flag(session)
        count = len(across[1]) * (1 if chosen is None else len(chosen[1]))
        done: dict[int, Tensor] = {}
        for place, image in comparing.cells(self.models, drawing, across, chosen, stop):
            done[place] = image
            yield Progress(torch.stack([*done.values()]), texts.DRAWING.format(step=len(done), steps=count))
        if len(done) < count:
            yield Progress(torch.zeros(0), texts.NOT_WHOLE)
            return
        make_folder(self.out)
        path = self._free("compare", ".png")
        images = torch.stack([done[place] for place in range(count)])
        names = [] if chosen is None else [value for value in chosen[1] for _ in across[1]]
        scale = max(1, 160 // images.shape[1])
        save_grid(images, path, len(across[1]), scale, titles=across[1], captions=names or None)
        yield Progress(images, texts.COMPARED.format(count=count), (path,))

    def prepared(self, model: str | None, picture: Path, fit: bool) -> Tensor:
        """An uploaded picture as it will be edited, uint8 [1,H,W,3]. Raises UserError: it cannot be."""
        return prepared(read_upload(picture), self._config(model), fit)

    def edit(self, session: str, model: str | None, form: Edit) -> Iterator[Progress]:
        """What is edited or measured and the result, two images each time; at the end they and a sheet are
        written."""
        config, stop = self._config(model), self._flag(session)

        def finish(images: Tensor) -> tuple[str, Sequence[Path]]:
            note = {"model": model, "method": form.method, "target": form.target, "seed": form.seed}
            word = f"{form.method} {form.target}" if config.takes_text or form.target else form.method
            notes = [{}, {EDITED: json.dumps(note)}]
            files = list(self._numbered(["before", word], images[-2:], notes))
            scale, names = max(1, 160 // images.shape[1]), texts.COLUMNS_OF_EDIT[-len(images) :]
            save_grid(images, sheet := self._free("edit", ".png"), len(images), scale, titles=names)
            return texts.EDITED, (*files, sheet)

        for progress in _shown(edited(self.models.get(str(model)), form, stop), finish):
            yield progress._replace(images=progress.images[-2:])

    def restored(self, file: Path) -> Form:
        """The form that draws a picture again. Raises UserError: it does not say how it was drawn, or by a
        model that is not offered here."""
        note, sampler, (height, width) = note_of(file)
        config = self.models.config(note["model"])
        what: dict[str, Any] = (
            {"prompt": note["drawn"]} if config.takes_text else {"classes": [note["drawn"]]}
        )
        where = {
            "seed": int(note["seed"]),
            "index": int(note["index"]),
            "width": str(width),
            "height": str(height),
        }
        return Form.of(note["model"], sampler, count=1, **what, **where)

    def zipped(self, files: Sequence[str]) -> Path:
        """One zip of pictures of this folder. Raises UserError: there are none."""
        known = [path for path in map(Path, files) if path.parent.resolve() == self.out.resolve()]
        if not known:
            raise UserError(texts.EMPTY)
        path = self._free("pictures", ".zip")
        with replacing(path) as part, zipfile.ZipFile(part, "w") as archive:
            for file in known:
                archive.write(file, file.name)
        return path

    def _free(self, stem: str, suffix: str) -> Path:
        """The first numbered file of the folder that is not there."""
        paths = (self.out / f"{stem}-{number:03d}{suffix}" for number in itertools.count())
        return next(path for path in paths if not path.exists())

    def _flag(self, session: str) -> threading.Event:
        """The stop flag of the job that a session begins."""
        self._stops[session] = flag = threading.Event()
        return flag

    def _write(self, drawing: Drawing, words: Sequence[str], images: Tensor) -> Iterator[Path]:
        """Write pictures, each with a note of how it was drawn."""
        parts = self.models.parts(drawing.model)
        notes = [drawing.record(i, word, *parts) for i, word in enumerate(words)]
        chunks = [{NOTE: json.dumps(note, ensure_ascii=False)} for note in notes]
        return self._numbered(words, images, chunks)

    def _numbered(
        self, words: Sequence[str], images: Tensor, notes: Sequence[dict[str, str]]
    ) -> Iterator[Path]:
        """Write pictures under the next free numbers."""
        make_folder(self.out)
        first = 1 + max((int(p.name[:6]) for p in self.out.glob("[0-9]" * 6 + "-*.png")), default=-1)
        for number, (word, image, note) in enumerate(zip(words, images, notes, strict=True), first):
            save_png(image, path := self.out / png_name(number, word), note)
            yield path
