"""Fine-tunings that are started from the page, each by the command line in a process of its own."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pixelwright.config import read_yaml
from pixelwright.data.layout import SUFFIXES
from pixelwright.data.transforms import FORMAT
from pixelwright.errors import UserError, nearest
from pixelwright.files import make_folder
from pixelwright.images import slug
from pixelwright.studio import texts
from pixelwright.studio.editing import read_upload
from pixelwright.studio.models import Models, runs_in
from pixelwright.studio.watching import folder_of, progress
from pixelwright.training.start import holder

FOLDER = "finetuned"  # in the folder for pictures
MOST = 500  # pictures of a fine-tuning
INTERRUPTED = 130  # exit code of one that has saved and stopped


@dataclass(frozen=True)
class Request:
    """The form under Fine-tune."""

    model: str | None
    pictures: Sequence[Path]
    shows: str  # the class of the pictures, or their prompt
    name: str = ""  # of the run; empty: from `shows`
    steps: int | None = None  # None: by the number of pictures
    flip: bool = True
    detailer: bool = False


class Finetuning:
    """The fine-tunings below a folder, of which one runs at a time.

    They know nothing of the page: closing it does not end them, and one that was stopped or killed is
    resumed from its newest checkpoint. NAME/ is the run, NAME-pictures/ and NAME.log are beside it.
    """

    def __init__(self, models: Models, folder: Path) -> None:
        self.folder, self._models = folder, models
        self._lock = threading.Lock()
        self._last: tuple[str, subprocess.Popen[bytes]] | None = None

    def names(self) -> list[str]:
        """All of them, the one that was written to last first."""
        known = runs_in(self.folder)
        return known if self._last is None or self._last[0] in known else [self._last[0], *known]

    def start(self, request: Request) -> str:
        """Begin one and return its name. Raises UserError: one is running, the name is taken, pictures that
        cannot be read, or a field that is empty; what else does not fit is told by `state`."""
        if not request.model:
            raise UserError(texts.NO_MODEL)
        config = self._models.config(request.model)
        if self._models.parts(request.model)[1] is not None:
            raise UserError(f"{request.model} is an adapter: pick the model that it was trained on")
        if not (shows := request.shows.strip()):
            raise UserError(texts.NOTHING_SHOWN)
        name = slug(request.name) or slug(shows) or "subject"
        with self._lock:
            self._check_idle()
            if (self.folder / name / "config.yaml").exists():
                raise UserError(f'there is a fine-tuning "{name}": resume it, or give another name')
            pictures = self._keep(name, request.pictures)
            words = ["finetune", request.model, str(pictures), "--run", str(self.folder / name)]
            words += [f"{'--prompt' if config.takes_text else '--class'}={shows}"]
            words += ["--device", str(self._models.device), *([] if request.flip else ["--no-flip"])]
            words += ["--detailer"] if request.detailer else []
            self._run(name, words + ([] if request.steps is None else ["--steps", str(request.steps)]))
        return name

    def resume(self, name: str | None) -> None:
        """Go on with one from its newest checkpoint. Raises UserError: another runs, or none of the name."""
        run = folder_of(self.folder, self._known(name))
        with self._lock:
            self._check_idle()
            self._run(run.name, ["train", "--run", str(run)])

    def stop(self, name: str | None) -> None:
        """Ask one to save and stop. Raises UserError: there is none of the name."""
        if (process := self._process(self._known(name))) is not None:
            os.kill(process, signal.SIGTERM)

    def state(self, name: str | None) -> str:
        """How far one is, in a line. Raises UserError: there is none of the name."""
        if name is None:
            return texts.NO_FINETUNING
        running = self._process(self._known(name)) is not None
        code = self._last[1].poll() if self._last is not None and self._last[0] == name else 0
        run = self.folder / name
        step, text = progress(run)
        begun = (run / "config.yaml").exists()
        words = {
            "name": name,
            "progress": text,
            "steps": read_yaml(run / "config.yaml")["steps"] if begun else 0,
        }
        if running:
            return (texts.TRAINING if step else texts.STARTING).format(**words)
        if code is None or code <= 0 or code == INTERRUPTED:  # below 0: killed
            done = texts.TUNED if step == words["steps"] else texts.PAUSED
            return (done if begun else texts.NOT_BEGUN).format(**words)
        log = (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")
        why = next((text for text in reversed(log.splitlines()) if text.strip()), f"exit code {code}")
        return texts.FAILED.format(name=name, why=why.removeprefix("pixelwright: error: "))

    def _known(self, name: str | None) -> str:
        if name not in (known := self.names()):
            raise UserError(f'there is no fine-tuning "{name}"{nearest(str(name), known)}')
        return name

    def _process(self, name: str) -> int | None:
        """The process that trains one: of this page, or of an earlier one that is closed."""
        if self._last is not None and self._last[0] == name and self._last[1].poll() is None:
            return self._last[1].pid
        return holder(self.folder / name)

    def _check_idle(self) -> None:
        for name in self.names():
            if self._process(name) is not None:
                raise UserError(f'"{name}" is being trained: wait until it is done, or stop it')

    def _keep(self, name: str, pictures: Sequence[Path]) -> Path:
        """The folder with copies of the pictures. Raises UserError: none, too many, or one refused."""
        if not 1 <= len(pictures) <= MOST:
            raise UserError(f"{len(pictures)} pictures are given; give 1 to {MOST}")
        folder = self.folder / f"{name}-pictures"
        shutil.rmtree(folder, ignore_errors=True)  # of one that never began
        make_folder(folder)
        for number, path in enumerate(pictures):
            try:
                image = read_upload(path)
            except UserError as error:
                raise UserError(f"{path.name}: {error}") from None
            suffix = str(image.info[FORMAT]).lower()
            if suffix in SUFFIXES:
                shutil.copyfile(path, folder / f"{number:03d}.{suffix}")
            else:
                image.save(folder / f"{number:03d}.png")
        return folder

    def _run(self, name: str, words: Sequence[str]) -> None:
        command = [sys.executable, "-m", "pixelwright", *words]
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._last = name, process
