"""What `edit` and `restore` share: pictures read from files or folders, written as PNG beside a sheet."""

import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jsonargparse import Namespace
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from pixelwright.cli.parsing import Parser
from pixelwright.data.layout import image_names
from pixelwright.data.transforms import UnreadableImage, read_image, read_size
from pixelwright.errors import UserError
from pixelwright.files import read_bytes
from pixelwright.images import save_grid, save_png

COLOUR = ("RGB", "RGBA", "P", "PA")  # modes whose colour profile holds for RGB
SETTINGS = "settings"  # text chunk of a result: what it was made with


class Job(NamedTuple):
    """A picture to read and the result to write."""

    number: int  # which the noise depends on
    source: Path
    result: Path


class Picture(NamedTuple):
    """A picture as it was read, upright."""

    pixels: Tensor  # uint8 [H,W,3]
    alpha: Image.Image | None
    profile: bytes | None
    dropped: list[str]  # what a result cannot keep


Columns = list[tuple[str, Tensor]]
"""Of the sheet of one picture: titles and uint8 [H,W,3] of one size."""
Results = list[tuple[Tensor, Columns]]
"""Of each picture the result, uint8 [H,W,3], and what its sheet shows before it."""
Change = Callable[[list[Picture], list[Job]], Results]
"""From pictures of one size to their results."""


def add_arguments(parser: Parser) -> None:
    """Pictures in and out."""
    add = parser.add_argument
    add("image", nargs="+", type=str, metavar="IMAGE", help="picture files, or folders of them")
    add("--model", type=str, required=True, metavar="MODEL", help="model folder, run or hf:// address")
    add("--out", type=str, required=True, metavar="PATH", help="folder, or a .png file for one picture")
    add("--overwrite", action="store_true", help="make results anew that are there already")
    add("--seed", type=int, default=0, help="seed of the noise")


def process(options: Namespace, settings: dict[str, Any], batch_size: int, change: Change) -> None:
    """Change the pictures batch by batch; results that are there, made with the same settings, stay.

    Raises UserError: no pictures, a result in the place of an input or of one with other settings.
    """
    jobs = plan(options.image, Path(options.out))
    notes = {job: json.dumps({**settings, "image": job.source.name, "number": job.number}) for job in jobs}
    todo = [job for job in jobs if options.overwrite or not _done(job, notes[job])]
    if len(todo) < len(jobs):
        print(f"{len(jobs) - len(todo)} of {len(jobs)} results are there already")
    with tqdm(total=len(todo), unit="image", disable=None, delay=0.5) as bar:
        for batch in _batches(todo, batch_size):
            pictures = [read_picture(job.source) for job in batch]
            for job, picture, (result, columns) in zip(batch, pictures, change(pictures, batch), strict=True):
                _write(job, picture, result, {SETTINGS: notes[job]})
                _sheet(job.result, [*columns, ("result", result)])
                bar.update()
    print(f"{len(todo)} results are in {options.out}, each with a sheet beside it")


def plan(inputs: Sequence[str], out: Path) -> list[Job]:
    """Pictures and where their results go, by name. Raises UserError: nothing to read, two pictures of one
    name, or a result in the place of an input."""
    files: list[Path] = []
    for place in map(Path, inputs):
        found = [place]
        if place.is_dir():
            found = [place / name for name in image_names(each.name for each in place.iterdir())]
            if not found:
                raise UserError(f"there are no pictures in the folder {place}")
        files += found
    if out.suffix.lower() == ".png" and len(files) > 1:
        raise UserError(f"--out {out} is one file for {len(files)} pictures; give a folder")
    jobs = []
    for i, file in enumerate(files):
        jobs.append(Job(i, file, out if out.suffix.lower() == ".png" else out / f"{file.stem}.png"))
    read = {file.resolve(): file for file in files}
    if len({job.result for job in jobs}) < len(jobs):
        raise UserError("two pictures have one name, and would have one result: give them one by one")
    for job in jobs:
        for written in (job.result, _beside(job.result)):
            if written.resolve() in read:
                raise UserError(
                    f"--out would overwrite the input {read[written.resolve()]}; name another place"
                )
    return jobs


def read_picture(path: Path) -> Picture:
    """A picture file, upright. Raises UserError: it is none."""
    data = read_bytes(path)
    try:
        rgb = read_image(data)
    except UnreadableImage as error:
        raise UserError(f'"{path}" is no picture ({error})') from None
    with Image.open(io.BytesIO(data)) as image:
        profile, alpha, dropped = image.info.get("icc_profile"), None, []
        if "exif" in image.info:
            dropped.append("EXIF")
        if image.mode.startswith(("I", "F")):
            dropped.append("more than 8 bits")
        if image.mode.endswith("A") or "transparency" in image.info:
            full = ImageOps.exif_transpose(image.convert("RGBA"))
            rgb, alpha = full.convert("RGB"), full.getchannel("A")
        if profile is not None and image.mode not in COLOUR:
            profile = None
            dropped.append(f"the colour profile of {image.mode}")
    return Picture(torch.from_numpy(np.array(rgb)), alpha, profile, dropped)


def _batches(jobs: list[Job], most: int) -> Iterator[list[Job]]:
    """Neighbours of one size, up to `most` together."""

    def size(job: Job) -> tuple[int, int]:
        try:
            return read_size(read_bytes(job.source))
        except UnreadableImage:
            height, width = read_picture(job.source).pixels.shape[:2]  # which says why, if it cannot be read
            return width, height

    for _, group in groupby(jobs, key=size):
        neighbours = list(group)
        yield from (neighbours[i : i + most] for i in range(0, len(neighbours), most))


def _done(job: Job, notes: str) -> bool:
    """Whether a result is there. Raises UserError: one of other settings is."""
    if not job.result.exists():
        return False
    with Image.open(job.result) as image:
        found = getattr(image, "text", {}).get(SETTINGS)
    if found != notes:
        raise UserError(
            f"{job.result} is there, and not of these settings: give --overwrite or another --out"
        )
    return True


def _write(job: Job, picture: Picture, result: Tensor, notes: dict[str, str]) -> None:
    """The result as PNG, with alpha and colour profile where they fit; what is dropped is told."""
    alpha, dropped = picture.alpha, list(picture.dropped)
    if alpha is not None and alpha.size != (result.shape[1], result.shape[0]):
        alpha = None
        dropped.append("the transparency, whose size is another,")
    for what in dropped:
        tqdm.write(f"{job.source}: {what} is dropped", file=sys.stderr)
    save_png(result, job.result, notes, alpha, picture.profile)


def _beside(result: Path) -> Path:
    return result.with_name(f"{result.stem}-sheet.png")


def _sheet(result: Path, columns: Columns) -> None:
    """Input, mask and result side by side."""
    height, width = (max(image.shape[axis] for _, image in columns) for axis in (0, 1))
    cells = []
    for _, image in columns:
        cell = torch.full((height, width, 3), 255, dtype=torch.uint8)
        cell[: image.shape[0], : image.shape[1]] = image
        cells.append(cell)
    titles = [title for title, _ in columns]
    scale = max(1, 128 // max(height, width))
    save_grid(torch.stack(cells), _beside(result), len(columns), scale, titles)
