"""The tabs on runs: watching them, and fine-tuning."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from pixelwright.html import escape_markdown
from pixelwright.images import load_png
from pixelwright.studio import texts, watching
from pixelwright.studio.drawing import as_number, whole
from pixelwright.studio.finetuning import Request
from pixelwright.studio.jobs import Jobs
from pixelwright.studio.models import runs_in
from pixelwright.studio.widgets import gallery, one_line

EVERY = 2.0  # seconds between two looks at the runs
_HIDDEN: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


def _samples(found: list[tuple[Path, str]], before: list[str]) -> tuple[Any, list[str]]:
    """Sample grids for a gallery, nothing where it shows these already, and what it shows by then."""
    shown = [str(path) for path, _ in found]
    return gr.skip() if shown == before else [(load_png(path).numpy(), name) for path, name in found], shown


def _choices(known: list[str], before: Any, value: Any) -> Any:
    """The list of a field; its value only where it has to change, since the user may be changing it."""
    return gr.update(choices=known) if value == before else gr.update(choices=known, value=value)


# ---------------------------------------------------------------- watch
def watch_tab(jobs: Jobs, page: gr.Blocks) -> None:
    """Curves, events and samples of the runs in a folder."""
    runs = jobs.runs
    known = runs_in(runs)
    chosen = gr.CheckboxGroup(known, value=known[:1], label=texts.RUNS, elem_id="runs")
    state = gr.Markdown(elem_id="state", elem_classes="status")
    curves = [(title, name) for name, title in watching.CURVES.items()]
    value = gr.Dropdown(curves, value="loss", label=texts.CURVE)
    plot = gr.HTML(elem_id="curve")
    at = gr.Slider(0, 1, 1, step=0.01, label=texts.SAMPLES_AT)
    samples = gallery(texts.SAMPLES, "samples", "grids")
    shown = gr.State([])

    def look(names: list[str], name: str, place: float, before: list[str]) -> list[Any]:
        with one_line():
            known = runs_in(runs)
            found = [each for each in names if each in known] or known[:1]
            return [
                _choices(known, names, found),
                watching.overview(runs, found),
                watching.chart(runs, found, name),
                *_samples(watching.grids(runs, found, place), before),
            ]

    inputs, outputs = [chosen, value, at, shown], [chosen, state, plot, samples, shown]
    for event in (page.load, gr.Timer(EVERY).tick, chosen.change, value.change, at.release):
        event(look, inputs, outputs, **_HIDDEN)


# ---------------------------------------------------------------- fine-tune
def _subject_fields() -> list[Any]:
    """The fields of a `Request` after its model, in its order."""
    pictures = gr.Files(label=texts.TUNING_PICTURES, file_types=["image"], height=170, elem_id="tuned")
    shows = gr.Textbox("", label=texts.SHOWS, info=texts.SHOWS_HELP, elem_id="shows")
    name = gr.Textbox("", label=texts.NAME, info=texts.NAME_HELP)
    steps = gr.Textbox("", label=texts.STEPS, info=texts.TUNING_STEPS_HELP, elem_id="finetune-steps")
    flip = gr.Checkbox(True, label=texts.FLIP, info=texts.FLIP_HELP)
    detailer = gr.Checkbox(False, label=texts.DETAILER, info=texts.DETAILER_HELP)
    return [pictures, shows, name, steps, flip, detailer]


def finetune_tab(jobs: Jobs, model: Any, page: gr.Blocks) -> None:
    """Pictures in, an adapter out."""
    tunings = jobs.finetuning
    gr.Markdown(texts.FINETUNE_INTRO)
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=300):
            form = [model, *_subject_fields()]
            start = gr.Button(texts.START, variant="primary", elem_id="finetune")
        with gr.Column(scale=2, min_width=320):
            which = gr.Dropdown([], label=texts.FINETUNING, elem_id="finetuning")
            with gr.Row():
                stop = gr.Button(texts.STOP_TUNING, variant="stop", elem_id="stop-finetuning")
                resume = gr.Button(texts.RESUME, elem_id="resume-finetuning")
            state = gr.Markdown(texts.NO_FINETUNING, elem_id="finetuning-state", elem_classes="status")
            plot = gr.HTML(elem_id="finetuning-curve")
            samples = gallery(texts.SAMPLES, "finetuning-samples", "grids")
    shown = gr.State([])

    def began(model: str | None, files: Sequence[str] | None, shows: str, name: str, *values: Any) -> Any:
        with one_line():
            count = whole(as_number(values[0]), texts.STEPS) if values[0] else None
            paths = [Path(path) for path in files or ()]
            found = tunings.start(Request(model, paths, shows, name, count, *values[1:]))
            return gr.update(choices=tunings.names(), value=found)

    def stopped(name: str | None) -> None:
        with one_line():
            tunings.stop(name)

    def resumed(name: str | None) -> None:
        with one_line():
            tunings.resume(name)

    def look(name: str | None, before: list[str]) -> list[Any]:
        with one_line():
            known = tunings.names()
            found = name if name in known else next(iter(known), None)
            begun = [found] if found in runs_in(tunings.folder) else []
            return [
                _choices(known, name, found),
                escape_markdown(tunings.state(found)),
                watching.chart(tunings.folder, begun, "loss"),
                *_samples(watching.grids(tunings.folder, begun), before),
            ]

    start.click(began, form, which, api_name="finetune", show_progress_on=[state])
    stop.click(stopped, which, api_name="stop_finetuning")
    resume.click(resumed, which, api_name="resume_finetuning")
    for event in (page.load, gr.Timer(EVERY).tick, which.change):
        event(look, [which, shown], [which, state, plot, samples, shown], **_HIDDEN)
