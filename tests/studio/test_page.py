"""The page in a browser (Chromium through playwright), and its functions through Gradio's client."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import pixelwright as pw
from pixelwright.config import read_yaml
from pixelwright.data import DataConfig
from pixelwright.errors import UserError
from pixelwright.images import load_png
from pixelwright.models.config import SamplerSettings
from pixelwright.studio.finetuning import FOLDER
from pixelwright.studio.jobs import Jobs
from pixelwright.studio.models import Models
from pixelwright.training import TrainConfig, train
from pixelwright.training.config import ModelConfig

pytest.importorskip("gradio", reason="the studio needs Gradio")
sync_api = pytest.importorskip("playwright.sync_api", reason="browser tests need playwright")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if BROWSER is None:
    pytest.skip("browser tests need Chromium", allow_module_level=True)
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
pytestmark = pytest.mark.filterwarnings("ignore")  # Gradio's own


@pytest.fixture(scope="module")
def studio(
    model: str, text_model: str, quick_model: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """(address, jobs) of a page with these models, and one that is damaged."""
    from pixelwright.studio.page import serve

    folder = tmp_path_factory.mktemp("studio")
    shutil.copytree(model, broken := folder / "broken")
    (broken / "model.safetensors").write_bytes(b"nothing")
    runs, out = folder / "runs", folder / "out"
    models = Models([model, text_model, str(broken), quick_model], (runs, out / FOLDER), torch.device("cpu"))
    jobs = Jobs(models, runs, out)
    page, address = serve(jobs, None)
    yield address, jobs
    page.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=BROWSER, args=list(FLAGS))
        yield found
        found.close()


@pytest.fixture
def page(browser: Any, studio: Any) -> Iterator[Any]:
    yield (opened := visit(browser, studio[0]))
    opened.close()


def visit(browser: Any, address: str) -> Any:
    page = browser.new_page(viewport={"width": 1280, "height": 1400})
    page.set_default_timeout(60_000)
    page.goto(address)
    page.get_by_role("button", name="Draw", exact=True).wait_for()
    return page


def fill(page: Any, label: str, value: str) -> None:
    page.get_by_label(label, exact=True).first.fill(value)
    page.keyboard.press("Tab")


def draw(page: Any, text: str = "drawn in") -> None:
    page.click("#draw")
    sync_api.expect(page.locator("#status")).to_contain_text(text, timeout=60_000)


def choose(page: Any, label: str, text: str) -> None:
    page.get_by_label(label).first.click()
    page.get_by_role("option", name=text).first.click()


def newest(jobs: Jobs) -> Path:
    return max(jobs.out.glob("0*.png"))


def test_a_class_is_drawn_and_a_dropped_picture_restores_its_settings(page: Any, studio: Any) -> None:
    choose(page, "Classes", "dog")
    fill(page, "Pictures", "1")
    fill(page, "Seed", "5")
    draw(page)
    drawn = newest(studio[1])
    model = pw.load(studio[1].models.sources[0])
    assert torch.equal(load_png(drawn), pw.sample(model, "dog", SamplerSettings(), seed=5)[0])
    fill(page, "Seed", "1")
    page.set_input_files("#restore input[type=file]", str(drawn))
    sync_api.expect(page.locator("#status")).to_contain_text("settings are those")
    assert page.get_by_label("Seed", exact=True).first.input_value() == "5"
    draw(page)
    sync_api.expect(page.locator("#session img")).to_have_count(1, timeout=60_000)
    assert newest(studio[1]) != drawn
    assert torch.equal(load_png(newest(studio[1])), load_png(drawn))


def test_a_prompt_is_drawn(page: Any, studio: Any) -> None:
    choose(page, "Model", Path(studio[1].models.sources[1]).name)
    fill(page, "Prompt", "a red star")
    fill(page, "Pictures", "2")
    draw(page, "2 drawn in")
    assert newest(studio[1]).name.endswith("-a-red-star.png")


def test_drawing_stops_in_the_middle_and_goes_on(page: Any) -> None:
    fill(page, "Pictures", "64")
    page.get_by_label("number input for Steps").first.fill("250")
    page.click("#draw")
    sync_api.expect(page.locator("#status")).to_contain_text("Step", timeout=60_000)
    sync_api.expect(page.locator("#unfinished img")).to_have_count(1)  # a sheet
    sync_api.expect(page.locator("#pictures")).to_be_hidden()
    page.click("#stop")
    sync_api.expect(page.locator("#status")).to_contain_text("Stopped at step", timeout=60_000)
    page.get_by_role("button", name="Reset to the model").click()
    sync_api.expect(page.get_by_label("number input for Steps").first).to_have_value("50")
    fill(page, "Pictures", "1")
    draw(page)


def test_two_users_draw_at_once(page: Any, browser: Any, studio: Any) -> None:
    other = visit(browser, studio[0])
    for each, seed in ((page, "11"), (other, "12")):
        fill(each, "Seed", seed)
        fill(each, "Pictures", "1")
    page.click("#draw")
    other.click("#draw")
    for each in (page, other):
        sync_api.expect(each.locator("#status")).to_contain_text("drawn in", timeout=60_000)
        sync_api.expect(each.locator("#pictures img")).to_have_count(1, timeout=60_000)
        sync_api.expect(each.locator("#session")).to_be_hidden()  # the other's pictures are not shown
    other.close()


def test_inpainting_leaves_unmasked_pixels(page: Any, studio: Any, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    page.get_by_role("tab", name="Edit").click()
    page.set_input_files("#upload input[type=file]", str(tmp_path / "photo.png"))
    canvas = page.locator("#painted canvas").first
    canvas.wait_for()
    sync_api.expect(page.locator("#painted")).to_contain_text("%")  # the zoom: the picture is there
    page.wait_for_timeout(2000)
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 20, y)
    page.mouse.down()
    page.mouse.move(x + 20, y, steps=5)
    page.mouse.up()
    page.locator("#target textarea, #target input").first.fill("cat")
    page.click("#edit")
    sync_api.expect(page.locator("#edit-status")).to_contain_text("Edited", timeout=60_000)
    before, after = (load_png(file).numpy() for file in sorted(studio[1].out.glob("0*.png"))[-2:])
    assert (before == pixels).all()
    changed = (before != after).any(-1)
    assert 4 <= changed.sum() <= 160
    assert not changed[:2].any()
    assert not changed[-2:].any()


def test_a_run_is_watched_while_it_trains(page: Any, studio: Any) -> None:
    page.get_by_role("tab", name="Watch").click()
    sync_api.expect(page.locator("#state")).to_contain_text("no runs")
    data = DataConfig(path="shapes", size=16, shapes_count=32)
    run = str(studio[1].runs / "live")
    how: Any = {"batch_size": 2, "steps": 60, "log_every": 5, "sample_every": 30, "device": "cpu"}
    config = TrainConfig(run=run, model=ModelConfig("dip-n-8"), data=data, **how)
    training = threading.Thread(target=train, args=(config,))
    training.start()
    sync_api.expect(page.locator("#state")).to_contain_text("live: step", timeout=60_000)
    training.join()
    sync_api.expect(page.locator("#state")).to_contain_text("live: step 60", timeout=60_000)
    sync_api.expect(page.locator("#samples img")).to_be_visible(timeout=60_000)
    sync_api.expect(page.locator("#curve img")).to_be_visible()


def test_a_fine_tuning_survives_the_page_and_a_kill_and_its_adapter_draws(
    page: Any, browser: Any, studio: Any, tmp_path: Path
) -> None:
    pytest.importorskip("peft", reason="adapters need peft")
    address, jobs = studio
    files = [tmp_path / f"..%2f{i}.jpg" for i in range(3)]
    for i, file in enumerate(files):
        Image.new("RGB", (30, 20), (80 * i, 0, 0)).save(file)
    choose(page, "Model", Path(jobs.models.sources[3]).name)
    page.get_by_role("tab", name="Fine-tune").click()
    page.set_input_files("#tuned input[type=file]", [str(file) for file in files])
    sync_api.expect(page.locator("#tuned")).to_contain_text("f2")
    page.locator("#shows textarea, #shows input").first.fill("My ../Fox!")
    page.locator("#finetune-steps textarea, #finetune-steps input").first.fill("40")
    page.get_by_label("Train the detailer too").check()
    page.click("#finetune")
    state = page.locator("#finetuning-state")
    sync_api.expect(state).to_contain_text("my-fox", timeout=120_000)
    page.close()
    run = jobs.out / FOLDER / "my-fox"
    while not list((run / "checkpoints").glob("step-*")):
        assert "failed" not in (told := jobs.finetuning.state("my-fox")), told
        time.sleep(0.05)
    jobs.finetuning._last[1].kill()
    assert read_yaml(run / "config.yaml")["adapter"]["detailer"]

    page = visit(browser, address)
    page.get_by_role("tab", name="Fine-tune").click()
    state = page.locator("#finetuning-state")
    sync_api.expect(state).to_contain_text("Resume goes on to step 40", timeout=60_000)
    page.click("#resume-finetuning")
    sync_api.expect(state).to_contain_text("is done (step 40", timeout=300_000)
    sync_api.expect(page.locator("#finetuning-samples img").first).to_be_visible()
    assert {path.name for path in run.parent.rglob("*.jpeg")} == {"000.jpeg", "001.jpeg", "002.jpeg"}
    assert run.parent.resolve() == (jobs.out / FOLDER).resolve()

    page.get_by_role("tab", name="Draw").click()
    choose(page, "Model", "my-fox")
    choose(page, "Classes", "My ../Fox!")
    fill(page, "Pictures", "1")
    draw(page, "1 drawn in")
    note = json.loads(Image.open(newest(jobs)).info["pixelwright"])
    assert (note["model"], note["adapter"]) == (jobs.models.sources[3], str(run))
    again = pw.sample(pw.load(note["model"], adapter=run), "My ../Fox!", SamplerSettings(steps=1))
    assert torch.equal(load_png(newest(jobs)), again[0])
    form = jobs.restored(newest(jobs))
    assert (form.model, form.classes) == (str(run), ["My ../Fox!"])
    command, python = jobs.as_code(form)
    assert command.startswith(f"pixelwright sample {note['model']} --adapter {run} ")
    assert f"adapter='{run}'" in python
    page.close()


UPLOADS = {"corrupt": "cannot be read", "large": "100 megapixels", "text": "cannot be read"}


@pytest.mark.parametrize("name", list(UPLOADS))
def test_uploads_that_are_refused_leave_the_page_usable(page: Any, tmp_path: Path, name: str) -> None:
    file = tmp_path / "photo.png"
    if name == "large":
        Image.new("1", (10_000, 10_000)).save(file)
    else:
        Image.new("RGB", (16, 16)).save(file)
        file.write_bytes(file.read_bytes()[:50] if name == "corrupt" else b"no picture")
    page.get_by_role("tab", name="Edit").click()
    page.set_input_files("#upload input[type=file]", str(file))
    sync_api.expect(page.get_by_text(UPLOADS[name])).to_be_visible(timeout=60_000)
    page.get_by_role("tab", name="Draw").click()
    draw(page)


def test_a_broken_model_is_named(page: Any, studio: Any) -> None:
    choose(page, "Model", "broken")
    page.click("#draw")
    sync_api.expect(page.get_by_text("model.safetensors").first).to_be_visible(timeout=60_000)
    choose(page, "Model", Path(studio[1].models.sources[0]).name)
    draw(page)


# ---------------------------------------------------------------- without a browser
def test_a_port_that_is_taken(studio: Any) -> None:
    from pixelwright.studio.page import serve

    with pytest.raises(UserError, match="is taken: give another --port"):
        serve(studio[1], int(studio[0].rstrip("/").rpartition(":")[2]))


def test_the_api_draws_and_serves_no_other_files(studio: Any, tmp_path: Path) -> None:
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError
    from httpx import get, post

    address, jobs = studio
    large = {"files": ("large.png", b"0" * (20 * 2**20 + 1), "image/png")}
    assert post(f"{address}gradio_api/upload", files=large).status_code == 413
    client = Client(address, verbose=False, download_files=False)
    assert {"/draw", "/edit", "/compare", "/restore", "/stop"} <= set(
        client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    )
    form = [jobs.models.sources[0], ["cat"], "", 1, 3, 4, 1, "euler", "all", 1, "", "", 0, ""]
    status, *_ = client.predict(*form, api_name="/draw")
    assert "1 drawn" in status
    note = json.loads(Image.open(newest(jobs)).info["pixelwright"])
    assert (note["drawn"], note["seed"], note["steps"]) == ("cat", "3", 4)
    for model in ("/etc", "../../etc", str(tmp_path)):
        with pytest.raises(AppError, match="does not offer"):
            client.predict(model, *form[1:], api_name="/draw")
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    for path in (secret, "/etc/passwd", jobs.out / ".." / "broken" / "config.json"):
        assert get(f"{address}gradio_api/file={path}").status_code in (403, 404)
    odd = tmp_path / "..%2f..%2fevil.png"
    odd.write_bytes(newest(jobs).read_bytes())
    status, *_ = client.predict(handle_file(str(odd)), api_name="/restore")
    assert "settings" in status
    assert not list(tmp_path.parent.rglob("evil.png"))
