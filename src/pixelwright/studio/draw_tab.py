"""The tabs that draw: one request, and one with its settings varied."""

import random
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import gradio as gr

from pixelwright.diffusion.solvers import SOLVERS
from pixelwright.studio import texts
from pixelwright.studio.comparing import AXES
from pixelwright.studio.drawing import MOST
from pixelwright.studio.jobs import Form, Jobs
from pixelwright.studio.widgets import BUTTONS, gallery, on_click, one_line, preview, session_of, stopper

NEWEST = 64  # earlier pictures that are shown

_CODE: dict[str, Any] = {"interactive": False, "lines": 2, "show_line_numbers": False, "wrap_lines": True}


def draw_tab(jobs: Jobs, model: Any) -> list[Any]:
    """Pictures of a class or prompt; returns the fields of the form, in the order of `Form`."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=300):
            form = _form(jobs, model)
            with gr.Row():
                draw = gr.Button(texts.DRAW, variant="primary", elem_id="draw")
                stop = gr.Button(texts.STOP, variant="stop", elem_id="stop")
            with gr.Row():
                reset, seed = gr.Button(texts.RESET, size="sm"), gr.Button(texts.NEW_SEED, size="sm")
        with gr.Column(scale=2, min_width=320):
            status = gr.Markdown(texts.READY, elem_id="status", elem_classes="status")
            unfinished = gr.HTML(elem_id="unfinished", elem_classes="on-the-way")
            pictures = gallery(texts.PICTURES, "pictures")
            session = gallery(texts.SESSION, "session")
            with gr.Row(equal_height=False):
                dropped = gr.File(
                    label=texts.RESTORE, file_types=[".png"], height=170, elem_id="restore", min_width=300
                )
                download = gr.DownloadButton(texts.DOWNLOAD, size="sm", elem_id="download")
            with gr.Accordion(texts.AS_CODE, open=False):
                command = gr.Code(label=texts.COMMAND, language="shell", **_CODE)
                python = gr.Code(label=texts.PYTHON, language="python", **_CODE)
    kept = gr.State([])  # the files of each drawing, the newest first

    def drawn(request: gr.Request, before: list[list[str]], *values: Any) -> Iterator[Any]:
        with one_line():
            code = jobs.as_code(Form(*values))
            yield texts.LOADING, "", [], before, *code
            for progress in jobs.draw(session_of(request), Form(*values)):
                if files := [*map(str, progress.files)]:  # they keep their settings when downloaded
                    yield progress.text, "", files, [files, *before], *code
                else:
                    yield progress.text, preview(progress.images), [], before, *code

    def restored(file: str) -> list[Any]:
        with one_line():
            found = jobs.restored(Path(file))
            return [texts.RESTORED, *_fields(jobs, found)]

    def zipped(kept: list[list[str]]) -> str:
        with one_line():
            return str(jobs.zipped([*chain(*kept)]))

    def earlier(kept: list[list[str]]) -> list[str]:
        return [*chain(*kept[1:])][:NEWEST]

    outputs = [status, unfinished, pictures, kept, command, python]
    finished = on_click(draw, drawn, [kept, *form], outputs, "draw")
    finished.success(earlier, kept, session, show_progress="hidden", api_visibility="private")
    stop.click(stopper(jobs), api_name="stop", queue=False)
    for event in (form[0].change, reset.click):
        event(lambda model: _preset(jobs, model), form[0], form, api_visibility="private")
    seed.click(lambda: random.randrange(1 << 31), None, form[4], api_visibility="private")
    dropped.upload(restored, dropped, [status, *form], api_name="restore")
    download.click(zipped, kept, download, api_visibility="private")
    return form


def _form(jobs: Jobs, model: Any) -> list[Any]:
    """The fields of `Form`, in its order, with the preset of the model."""
    first = jobs.preset(model.value) if model.value else Form()
    classes = gr.Dropdown(
        jobs.class_names(first.model),
        multiselect=True,
        label=texts.CLASSES,
        info=texts.CLASSES_HELP,
        elem_id="classes",
        visible=not jobs.takes_text(first.model),
    )
    prompt = gr.Textbox(
        "", label=texts.PROMPT, lines=2, elem_id="prompt", visible=jobs.takes_text(first.model)
    )
    with gr.Row():
        count = gr.Number(first.count, label=texts.COUNT, precision=0, minimum=1, maximum=MOST, min_width=90)
        seed = gr.Number(first.seed, label=texts.SEED, precision=0, minimum=0, min_width=90)
    steps = gr.Slider(1, 250, first.steps, step=1, label=texts.STEPS)
    guidance = gr.Slider(
        0, 15, first.guidance_scale, step=0.05, label=texts.GUIDANCE, info=texts.GUIDANCE_HELP
    )
    with gr.Accordion(texts.MORE, open=False):
        solver = gr.Dropdown(list(SOLVERS), value=first.solver, label=texts.SOLVER)
        interval = gr.Textbox(first.interval, label=texts.INTERVAL, info=texts.INTERVAL_HELP)
        shift = gr.Number(first.time_shift, label=texts.SHIFT, minimum=0.01)
        with gr.Row():
            width = gr.Textbox("", label=texts.WIDTH, info=texts.SIZE_HELP, min_width=90)
            height = gr.Textbox("", label=texts.HEIGHT, info=texts.SIZE_HELP, min_width=90)
        index = gr.Number(0, label=texts.INDEX, info=texts.INDEX_HELP, precision=0, minimum=0)
        more = gr.Textbox(first.more, label=texts.FURTHER, info=texts.FURTHER_HELP)
    basic = [model, classes, prompt, count, seed, steps, guidance]
    return [*basic, solver, interval, shift, width, height, index, more]


def _preset(jobs: Jobs, model: str) -> list[Any]:
    """The fields of the form as the model's preset has them; class, prompt, count and seed stay."""
    with one_line():
        _, classes, prompt, _, _, *others = _fields(jobs, jobs.preset(model))
        return [gr.skip(), classes, gr.update(visible=prompt["visible"]), gr.skip(), gr.skip(), *others]


def _fields(jobs: Jobs, form: Form) -> list[Any]:
    """The fields of the form with the values of `form`, and what goes with its model."""
    text = jobs.takes_text(form.model)
    names = jobs.class_names(form.model)
    values = vars(form) | {
        "classes": gr.update(choices=names, value=list(form.classes), visible=not text),
        "prompt": gr.update(value=form.prompt, visible=text),
    }
    return list(values.values())


def compare_tab(jobs: Jobs, form: list[Any]) -> None:
    """A sheet of the form's request with one or two settings varied."""
    gr.Markdown(texts.COMPARE_INTRO)
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=300):
            across = gr.Dropdown(list(AXES), value="guidance scale", label=texts.COLUMNS)
            columns = gr.Textbox("1\n2\n4", label=texts.COLUMN_VALUES, lines=4)
            down = gr.Dropdown([texts.NONE, *AXES], value=texts.NONE, label=texts.ROWS)
            rows = gr.Textbox("", label=texts.ROW_VALUES, lines=4)
            with gr.Row():
                compare = gr.Button(texts.COMPARE, variant="primary", elem_id="compare")
                stop = gr.Button(texts.STOP, variant="stop")
        with gr.Column(scale=2, min_width=320):
            status = gr.Markdown(texts.READY, elem_classes="status")
            unfinished = gr.HTML(elem_classes="on-the-way")
            sheet = gr.Image(
                label=texts.SHEET, interactive=False, type="filepath", elem_id="sheet", buttons=BUTTONS
            )

    def compared(request: gr.Request, *values: Any) -> Iterator[Any]:
        axes, below, pairs = values[:2], values[2:4], values[4:]
        with one_line():
            for progress in jobs.compare(session_of(request), Form(*pairs), axes, below):
                if progress.files:
                    yield progress.text, "", str(progress.files[0])
                else:
                    yield progress.text, preview(progress.images), None

    inputs = [across, columns, down, rows, *form]
    on_click(compare, compared, inputs, [status, unfinished, sheet], "compare")
    stop.click(stopper(jobs), api_visibility="private", queue=False)
