"""The tab that edits and restores a picture."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from pixelwright.editing.tasks import TaskSettings
from pixelwright.studio import texts
from pixelwright.studio.editing import METHODS, USES, Edit
from pixelwright.studio.jobs import Jobs
from pixelwright.studio.widgets import enlarged, gallery, on_click, one_line, preview, session_of, stopper

FIELDS = ("source", "strength", "simulate", "sigma", "length", "angle", "levels", "share")
_MASK: dict[str, Any] = {
    "type": "pil",
    "sources": (),
    "transforms": (),
    "layers": False,
    "brush": gr.Brush(default_size=40, colors=["#ff3b7f"], color_mode="fixed"),
    "height": 420,
}


def _own_fields() -> dict[str, Any]:
    """Fields that only some methods read, by their names in `USES`; those of the first are there."""
    lost, first = TaskSettings(), USES["inpaint"]
    there: dict[str, dict[str, Any]] = {name: {"visible": name in first} for name in FIELDS}
    numbers = {"sigma": texts.SIGMA, "length": texts.LENGTH, "angle": texts.ANGLE, "levels": texts.LEVELS}
    return {
        "source": gr.Textbox("", label=texts.SOURCE, **there["source"]),
        "strength": gr.Slider(
            0, 1, 1, step=0.01, label=texts.STRENGTH, info=texts.STRENGTH_HELP, **there["strength"]
        ),
        "simulate": gr.Checkbox(False, label=texts.SIMULATE, **there["simulate"]),
        **{
            name: gr.Number(getattr(lost, name), label=label, **there[name])
            for name, label in numbers.items()
        },
        "share": gr.Slider(0.01, 0.99, lost.share, step=0.01, label=texts.SHARE, **there["share"]),
    }


def edit_tab(jobs: Jobs, model: Any) -> None:
    """A picture, what to do with it, and the result beside it."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=300):
            file = gr.File(label=texts.UPLOAD, file_types=["image"], height=170, elem_id="upload")
            methods = [(text, name) for name, text in METHODS.items()]
            method = gr.Dropdown(methods, value="inpaint", label=texts.METHOD, elem_id="method")
            target = gr.Textbox("", label=texts.TARGET, elem_id="target")
            own = _own_fields()
            with gr.Row():
                guidance = gr.Textbox("", label=texts.GUIDANCE, info=texts.OWN, min_width=90)
                steps = gr.Textbox("", label=texts.STEPS, info=texts.OWN, min_width=90)
            seed = gr.Number(0, label=texts.SEED, precision=0, minimum=0)
            fit = gr.Checkbox(True, label=texts.FIT)
            with gr.Row():
                button = gr.Button(texts.EDIT, variant="primary", elem_id="edit")
                stop = gr.Button(texts.STOP, variant="stop")
        with gr.Column(scale=2, min_width=320):
            painted = gr.ImageEditor(label=texts.PAINT, elem_id="painted", **_MASK)
            status = gr.Markdown(texts.READY, elem_id="edit-status", elem_classes="status")
            unfinished = gr.HTML(elem_classes="on-the-way")
            slider = gr.ImageSlider(label=texts.BEFORE_AFTER, format="png", elem_id="slider")
            files = gallery(texts.PICTURES, "edited", "grids")

    def shown(path: str | None, source: str, whole: bool) -> Any:
        with one_line():
            image = None if path is None else jobs.prepared(source, Path(path), whole)
        return None if image is None else {"background": enlarged(image)[0], "layers": [], "composite": None}

    def edited(request: gr.Request, name: str, path: str | None, value: Any, *values: Any) -> Iterator[Any]:
        layers = (value or {}).get("layers") or [None]
        with one_line():
            form = Edit.of(path, layers[0], *values)
            for progress in jobs.edit(session_of(request), name, form):
                if files := [*map(str, progress.files)]:
                    yield progress.text, "", tuple(enlarged(progress.images)), files
                else:
                    yield progress.text, preview(progress.images), None, []

    for event in (file.upload, fit.change):
        event(shown, [file, model, fit], painted, api_visibility="private")
    method.change(
        lambda name: [gr.update(visible=field in USES[name]) for field in FIELDS],
        method,
        [own[field] for field in FIELDS],
        show_progress="hidden",
        api_visibility="private",
    )
    text = [own[name] for name in ("source", "strength")]
    lost = [own[name] for name in ("simulate", "length", "levels", "sigma", "angle", "share")]
    inputs = [model, file, painted, method, target, *text, guidance, steps, seed, fit, *lost]
    outputs = [status, unfinished, slider, files]
    on_click(button, edited, inputs, outputs, "edit")
    stop.click(stopper(jobs), api_visibility="private", queue=False)
