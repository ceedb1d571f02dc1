"""The page, laid out with Gradio: a tab each to draw, edit, compare and watch."""

import html
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from torch import Tensor

from pixelwright.diffusion.solvers import SOLVERS
from pixelwright.errors import UserError
from pixelwright.studio import texts, watching
from pixelwright.studio.comparing import AXES
from pixelwright.studio.drawing import MOST
from pixelwright.studio.editing import METHODS, Edit
from pixelwright.studio.jobs import Form, Jobs
from pixelwright.studio.models import runs_in

STYLE = Path(__file__).parent / "style.css"
LARGEST_UPLOAD = "20mb"
_SHOWN: dict[str, Any] = {"object_fit": "contain", "height": "auto", "interactive": False}
_CODE: dict[str, Any] = {"interactive": False, "lines": 2, "show_line_numbers": False, "wrap_lines": True}
_MASK: dict[str, Any] = {
    "type": "pil",
    "sources": (),
    "transforms": (),
    "layers": False,
    "brush": gr.Brush(default_size=40, colors=["#ff3b7f"], color_mode="fixed"),
    "height": 420,
}
ONE_AT_A_TIME: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "device"}


def launch(jobs: Jobs, port: int | None, share: bool = False) -> None:
    """Serve the page until Ctrl-C."""
    page, address = serve(jobs, port, share)
    print(f"{texts.TITLE}: {address} (Ctrl-C ends it)", flush=True)
    page.block_thread()


def serve(jobs: Jobs, port: int | None, share: bool = False) -> tuple[gr.Blocks, str]:
    """The page on 127.0.0.1 and its address, public where `share` asks for that.

    Nothing is served but what the page shows: pictures it wrote, and sample grids of runs. Raises UserError:
    the port is taken.
    """
    page = build(jobs)
    page.queue(default_concurrency_limit=8)
    try:
        _, local, public = page.launch(
            server_name="127.0.0.1",
            server_port=port,
            share=share,
            quiet=True,
            prevent_thread_lock=True,
            max_file_size=LARGEST_UPLOAD,
            allowed_paths=[str(jobs.out.resolve())],
            css_paths=[STYLE],
            theme=_theme(),
            footer_links=["api"],
        )
    except OSError as error:
        if port is None or "empty port" not in str(error):
            raise
        raise UserError(f"port {port} is taken: give another --port, or leave it out") from None
    return page, public or local


def _theme() -> Any:
    """Plain, with the fonts of the system: nothing is fetched from elsewhere."""
    fonts = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
    hues = {"primary_hue": "blue", "neutral_hue": "slate"}
    return gr.themes.Base(**hues, font=fonts[0], font_mono=fonts[1])


def build(jobs: Jobs) -> gr.Blocks:
    """The page of some jobs."""
    with gr.Blocks(title=texts.TITLE, analytics_enabled=False, fill_width=True) as page:
        gr.Markdown(f"# {texts.TITLE}\n{texts.INTRO}")
        with gr.Tab(texts.DRAW_TAB):
            form = _draw_tab(jobs)
        with gr.Tab(texts.EDIT_TAB):
            _edit_tab(jobs, form[0])
        with gr.Tab(texts.COMPARE_TAB):
            _compare_tab(jobs, form)
        with gr.Tab(texts.WATCH_TAB):
            _watch_tab(jobs)
        page.unload(_stopper(jobs))
    return page


def _session(request: gr.Request) -> str:
    return str(request.session_hash)


@contextmanager
def one_line() -> Iterator[None]:
    """What a user can mend becomes one line on the page, which stays usable."""
    try:
        yield
    except UserError as error:
        text = html.escape(" ".join(str(error).split()))
        raise gr.Error(text, duration=None, print_exception=False) from None


# ---------------------------------------------------------------- draw
def _draw_tab(jobs: Jobs) -> list[Any]:
    """The tab; returns the fields of the form, in the order of `Form`."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=300):
            form = _form(jobs)
            with gr.Row():
                draw = gr.Button(texts.DRAW, variant="primary", elem_id="draw")
                stop = gr.Button(texts.STOP, variant="stop", elem_id="stop")
            with gr.Row():
                reset, seed = gr.Button(texts.RESET, size="sm"), gr.Button(texts.NEW_SEED, size="sm")
        with gr.Column(scale=2, min_width=320):
            status = gr.Markdown(texts.READY, elem_id="status")
            pictures = gr.Gallery(label=texts.PICTURES, format="png", columns=4, elem_id="pictures", **_SHOWN)
            session = gr.Gallery(label=texts.SESSION, columns=6, elem_id="session", **_SHOWN)
            with gr.Row(equal_height=False):
                dropped = gr.File(label=texts.RESTORE, file_types=[".png"], height=170, elem_id="restore")
                download = gr.DownloadButton(texts.DOWNLOAD, size="sm", elem_id="download")
            with gr.Accordion(texts.AS_CODE, open=False):
                command = gr.Code(label=texts.COMMAND, language="shell", **_CODE)
                python = gr.Code(label=texts.PYTHON, language="python", **_CODE)
    kept = gr.State([])

    def drawn(request: gr.Request, before: list[str], *values: Any) -> Iterator[Any]:
        same, shown = gr.skip(), None  # a picture that is sent again would be stored again
        yield texts.LOADING, [], same, same, "", ""
        with one_line():
            code = jobs.as_code(Form(*values))
            for progress in jobs.draw(_session(request), Form(*values)):
                files = [*map(str, progress.files), *before] if progress.files else same
                sent = same if progress.images is shown else enlarged(progress.images)
                shown = progress.images
                yield progress.text, sent, files, files, *code

    def restored(file: str) -> list[Any]:
        with one_line():
            found = jobs.restored(Path(file))
            return [texts.RESTORED, *_fields(jobs, found)]

    def zipped(files: Sequence[str]) -> str:
        with one_line():
            return str(jobs.zipped(files))

    outputs = [status, pictures, session, kept, command, python]
    draw.click(drawn, [kept, *form], outputs, api_name="draw", show_progress_on=[status], **ONE_AT_A_TIME)
    stop.click(_stopper(jobs), api_name="stop", queue=False)
    for event in (form[0].change, reset.click):
        event(lambda model: _preset(jobs, model), form[0], form, api_visibility="private")
    seed.click(lambda: random.randrange(1 << 31), None, form[4], api_visibility="private")
    dropped.upload(restored, dropped, [status, *form], api_name="restore")
    download.click(zipped, kept, download, api_visibility="private")
    return form


def _form(jobs: Jobs) -> list[Any]:
    """The fields of `Form`, in its order, with the preset of the first model."""
    models = jobs.models.choices()
    first = jobs.preset(models[0]) if models else Form()
    model = gr.Dropdown(
        models, value=first.model, label=texts.MODEL, info=texts.MODEL_HELP, allow_custom_value=True
    )
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


def _stopper(jobs: Jobs) -> Any:
    def stop(request: gr.Request) -> None:
        jobs.stop(_session(request))

    return stop


def enlarged(images: Tensor) -> list[Any]:
    """Pictures [B,H,W,3] to be looked at: small ones by a whole factor, without smoothing."""
    factor = max(1, 256 // images.shape[1])
    return list(images.repeat_interleave(factor, 1).repeat_interleave(factor, 2).numpy())


# ---------------------------------------------------------------- edit
def _edit_tab(jobs: Jobs, model: Any) -> None:
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=300):
            file = gr.File(label=texts.UPLOAD, file_types=["image"], height=170, elem_id="upload")
            methods = [(text, name) for name, text in METHODS.items()]
            method = gr.Dropdown(methods, value="inpaint", label=texts.METHOD, elem_id="method")
            target = gr.Textbox("", label=texts.TARGET, elem_id="target")
            source = gr.Textbox("", label=texts.SOURCE)
            strength = gr.Slider(0, 1, 1, step=0.01, label=texts.STRENGTH, info=texts.STRENGTH_HELP)
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
            status = gr.Markdown(texts.READY, elem_id="edit-status")
            slider = gr.ImageSlider(label=texts.BEFORE_AFTER, format="png", elem_id="slider")
            files = gr.Files(label=texts.PICTURES, interactive=False, elem_id="edited")

    def shown(path: str | None, source: str, whole: bool) -> Any:
        with one_line():
            image = None if path is None else jobs.prepared(source, Path(path), whole)
        return None if image is None else {"background": enlarged(image)[0], "layers": [], "composite": None}

    def edited(request: gr.Request, name: str, path: str | None, value: Any, *values: Any) -> Iterator[Any]:
        layers = (value or {}).get("layers") or [None]
        with one_line():
            form = Edit.of(path, layers[0], *values)
            for progress in jobs.edit(_session(request), name, form):
                before, after = enlarged(progress.images)
                yield progress.text, (before, after), [*map(str, progress.files)]

    for event in (file.upload, fit.change):
        event(shown, [file, model, fit], painted, api_visibility="private")
    inputs = [model, file, painted, method, target, source, strength, guidance, steps, seed, fit]
    outputs = [status, slider, files]
    button.click(edited, inputs, outputs, api_name="edit", show_progress_on=[status], **ONE_AT_A_TIME)
    stop.click(_stopper(jobs), api_visibility="private", queue=False)


# ---------------------------------------------------------------- compare
def _compare_tab(jobs: Jobs, form: list[Any]) -> None:
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
            status = gr.Markdown(texts.READY)
            sheet = gr.Image(label=texts.SHEET, interactive=False, type="filepath", elem_id="sheet")

    def compared(request: gr.Request, *values: Any) -> Iterator[Any]:
        axes, below, pairs = values[:2], values[2:4], values[4:]
        with one_line():
            for progress in jobs.compare(_session(request), Form(*pairs), axes, below):
                yield progress.text, str(progress.files[0]) if progress.files else None

    inputs = [across, columns, down, rows, *form]
    compare.click(
        compared, inputs, [status, sheet], api_name="compare", show_progress_on=[status], **ONE_AT_A_TIME
    )
    stop.click(_stopper(jobs), api_visibility="private", queue=False)


# ---------------------------------------------------------------- watch
def _watch_tab(jobs: Jobs) -> None:
    runs = jobs.models.runs
    known = runs_in(runs)
    chosen = gr.CheckboxGroup(known, value=known[:1], label=texts.RUNS, elem_id="runs")
    state = gr.Markdown(elem_id="state")
    value = gr.Dropdown(
        [(title, name) for name, title in watching.CURVES.items()], value="loss", label=texts.CURVE
    )
    plot = gr.HTML(elem_id="curve")
    with gr.Row():
        which = gr.Dropdown(known, value=known[0] if known else None, label=texts.SAMPLES_OF)
        at = gr.Slider(0, 1, 1, step=0.01, label=texts.SAMPLES_AT)
    picture = gr.Image(
        label=texts.SAMPLES, interactive=False, format="png", elem_id="samples", buttons=["fullscreen"]
    )

    def look(names: list[str], name: str, sampled: str | None, place: float) -> list[Any]:
        with one_line():
            known = runs_in(runs)
            names = [each for each in names if each in known] or known[:1]
            sampled = sampled if sampled in known else next(iter(known), None)
            return [
                gr.update(choices=known, value=names),
                gr.update(choices=known, value=sampled),
                watching.overview(runs, names),
                watching.chart(runs, names, name),
                watching.grid(runs, sampled, place),
            ]

    inputs, outputs = [chosen, value, which, at], [chosen, which, state, plot, picture]
    for event in (gr.Timer(2).tick, chosen.change, value.change, which.change, at.release):
        event(look, inputs, outputs, show_progress="hidden", api_visibility="private")
