"""The page, laid out with Gradio: a model, and a tab each for what is done with it."""

from pathlib import Path
from typing import Any

import gradio as gr

from pixelwright.errors import UserError
from pixelwright.studio import texts
from pixelwright.studio.draw_tab import compare_tab, draw_tab
from pixelwright.studio.edit_tab import edit_tab
from pixelwright.studio.jobs import Jobs
from pixelwright.studio.watch_tab import finetune_tab, watch_tab
from pixelwright.studio.widgets import stopper

STYLE = Path(__file__).parent / "style.css"
LARGEST_UPLOAD = "20mb"
POLL = 0.02  # seconds between Gradio's looks at its queue; its own millisecond takes 4 % of a core, always
QUIET = {"": "*neutral_600", "_dark": "*neutral_300"}  # of labels and hints


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
    page._queue.sleep_when_free = page._queue.progress_update_sleep_when_free = POLL
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
    """Plain, with the fonts of the system: nothing is fetched from elsewhere. Colours of text have a contrast
    of at least 4.5 to what is behind them (WCAG AA), in light and dark."""
    fonts = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
    hues = {"primary_hue": "blue", "neutral_hue": "slate"}
    theme = gr.themes.Base(**hues, font=fonts[0], font_mono=fonts[1])
    quiet = ("body_text_color_subdued", "block_info_text_color", "block_label_text_color")
    colours = {f"{name}{mode}": shade for name in quiet for mode, shade in QUIET.items()}
    filled = ("button_primary_background_fill", "button_primary_background_fill_hover", "color_accent")
    return theme.set(**colours, **dict.fromkeys(filled, "*primary_600"))


def build(jobs: Jobs) -> gr.Blocks:
    """The page of some jobs."""
    with gr.Blocks(title=texts.TITLE, analytics_enabled=False, fill_width=True) as page:
        gr.Markdown(f"# {texts.TITLE}\n{texts.INTRO}")
        model = _model(jobs, page)
        with gr.Tab(texts.DRAW_TAB):
            form = draw_tab(jobs, model)
        with gr.Tab(texts.EDIT_TAB):
            edit_tab(jobs, model)
        with gr.Tab(texts.COMPARE_TAB):
            compare_tab(jobs, form)
        with gr.Tab(texts.FINETUNE_TAB):
            finetune_tab(jobs, model, page)
        with gr.Tab(texts.WATCH_TAB):
            watch_tab(jobs, page)
        page.unload(stopper(jobs))
    return page


def _model(jobs: Jobs, page: gr.Blocks) -> Any:
    """The field for the model of all tabs, whose list is as it is when somebody looks."""
    known, first = jobs.models.choices(), jobs.models.first()
    model = gr.Dropdown(
        known, value=first, label=texts.MODEL, info=texts.MODEL_HELP, allow_custom_value=True, elem_id="model"
    )
    for event in (page.load, model.focus):
        event(
            lambda: gr.update(choices=jobs.models.choices()),
            None,
            model,
            show_progress="hidden",
            api_visibility="private",
        )
    return model
