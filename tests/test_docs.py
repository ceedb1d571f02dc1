"""What the documentation shows works as it stands there: code, commands, links."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import pixelwright as pw
from pixelwright.cli.parsing import Command, choose
from pixelwright.images import load_png, save_png

ROOT = Path(__file__).parent.parent
EXTENDING, RECIPES = ROOT / "docs" / "extending.md", ROOT / "docs" / "recipes.md"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run(folder: Path, *command: str) -> str:
    """Run Python with these arguments in a fresh process whose current folder is `folder`."""
    source = str(Path(pw.__file__).parent.parent)
    env = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    done = subprocess.run([sys.executable, *command], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


FORKS = """
import json, os, runpy, sys
import torch._dynamo
import pixelwright.cli.train
from pixelwright.cli.main import main

sys.path[0] = os.getcwd()
for program, *words in json.loads(sys.argv[1]):
    if not (child := os.fork()):
        if program == "pixelwright":
            sys.exit(main(words))
        os.dup2(os.open(program + ".out", os.O_WRONLY | os.O_CREAT), 1)
        runpy.run_path(program, run_name="__main__")
        sys.exit()
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        sys.exit(f"{program} {words} failed")
"""
"""Runs each command or script as in a process of its own: a copy of one that has imported what takes long."""


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a user's own in which the page about extending was run from top to bottom."""
    folder, jobs = tmp_path_factory.mktemp("mine"), list[list[str]]()
    for kind, text in BLOCK.findall(EXTENDING.read_text(encoding="utf-8")):
        if kind == "bash":
            jobs += [shlex.split(line) for line in text.splitlines()]
        else:
            name = text.split("\n")[0].removeprefix("# ")
            assert kind in ("python", "yaml") and re.fullmatch(r"\w+\.(py|yaml)", name)
            (folder / name).write_text(text, encoding="utf-8")
            jobs += [[name]] if name in ("use.py", "draw.py", "fit.py") else []
    run(folder, "-c", FORKS, json.dumps(jobs))
    return folder


def test_a_detailer_is_created_saved_loaded_and_sampled(outside: Path) -> None:
    assert (outside / "use.py.out").read_text() == "torch.Size([3, 64, 64, 3])\n"
    detailer = json.loads((outside / "models" / "mine" / "config.json").read_text())["detailer"]
    assert detailer == {"type": "mine", "width": 6}


def test_a_detailer_is_trained_and_drawn_from_by_command_line(outside: Path) -> None:
    for name in ("mine", "typed"):
        config = json.loads((outside / "runs" / name / "model" / "config.json").read_text())
        assert config["detailer"] == {"type": "mine", "width": 6}
    assert len(list((outside / "drawn").glob("0*.png"))) == 4


def test_a_model_of_an_unknown_detailer_names_it(outside: Path) -> None:
    with pytest.raises(pw.UserError, match=r'detailer\.type is "mine"'):
        pw.load(outside / "models" / "mine")


def test_an_objective_and_a_logger_by_their_names(outside: Path) -> None:
    lines = [json.loads(line) for line in (outside / "runs" / "edges" / "log.jsonl").read_text().splitlines()]
    assert lines and all(line["edges"] > 0 for line in lines)
    rows = list(csv.reader((outside / "runs" / "table" / "table.csv").read_text().splitlines()))
    assert [row[0] for row in rows] == ["1", "2", "3", "4"] and all(float(row[1]) > 0 for row in rows)


def test_a_trainer_of_objects(outside: Path) -> None:
    assert (outside / "fit.py.out").read_text().splitlines()[-1] == "step-0000006 at step 6"
    assert [path.name for path in sorted((outside / "runs/fit/samples").glob("*.png"))] == [
        "step-0000003.png",
        "step-0000006.png",
    ]
    rows = list(csv.reader((outside / "runs" / "fit" / "table.csv").read_text().splitlines()))
    assert {row[0] for row in rows if row[2]} == {"2", "4", "6"}
    assert {row[0] for row in rows if row[1]} == {"2", "4", "6"}


def test_guidance_of_ones_own_draws_as_ours_does(outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len((outside / "draw.py.out").read_text().splitlines()) == 3
    monkeypatch.syspath_prepend(str(outside))
    guides = __import__("guides")
    torch.manual_seed(0)
    models = [pw.create("dip-n-8", num_classes=3, image_size=(16, 16), depth=1) for _ in range(2)]
    with torch.no_grad():
        for model in models:
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    times = pw.diffusion.timesteps(4, 1.0)
    euler = pw.SamplerSettings(solver="euler", steps=4)
    pairs = (
        (guides.autoguidance(1.7, models[1]), pw.diffusion.AutoGuidance(1.7, models[1])),
        (guides.cfg_plus_plus(0.6, times), pw.diffusion.CFGPlusPlus(0.6, times)),
    )
    for theirs, ours in pairs:
        drawn = [pw.sample(models[0], [0, 1], euler, guidance=each).int() for each in (theirs, ours)]
        assert (drawn[0] - drawn[1]).abs().max() <= 1
        assert not torch.equal(drawn[0], pw.sample(models[0], [0, 1], euler).int())


# ---------------------------------------------------------------- README and links
def test_the_python_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a small model where `make demo` leaves its own."""
    blocks = [text for kind, text in BLOCK.findall((ROOT / "README.md").read_text()) if kind == "python"]
    assert len(blocks) == 1 and blocks[0].count("\n") <= 12
    names = ("red star", "blue circle")
    model = pw.create("pixeldit-n-8", num_classes=2, class_names=names, image_size=(32, 32), depth=1)
    pw.save(model, tmp_path / "runs" / "demo" / "pixeldit")
    monkeypatch.chdir(tmp_path)
    exec(blocks[0], {})
    assert (tmp_path / "two.png").is_file()
    assert pw.load(tmp_path / "models" / "mine").config.num_classes == 10


@pytest.mark.filterwarnings("ignore")
def test_the_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From top to bottom, with a small model where `make demo` leaves its own, and few steps of training."""
    blocks = [text for kind, text in BLOCK.findall(RECIPES.read_text(encoding="utf-8")) if kind == "python"]
    names = ("red star", "blue circle", "green square", "yellow triangle")
    model = pw.create("dip-n-8", num_classes=4, class_names=names, image_size=(32, 32), depth=1)
    pw.save(model, tmp_path / "runs" / "demo" / "dip")
    save_png(torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8), tmp_path / "photo.png")
    code = "\n".join(blocks)
    assert "\nsteps = 200\n" in code
    monkeypatch.chdir(tmp_path)
    exec(code.replace("\nsteps = 200\n", "\nsteps = 2\n"), {})
    edited, by_hand = (load_png(tmp_path / name) for name in ("edited.png", "edited-by-hand.png"))
    assert (edited.int() - by_hand.int()).abs().max() <= 1
    with Image.open(tmp_path / "denoising.gif") as gif:
        assert gif.size == (512, 128) and gif.n_frames > 10
    assert all((tmp_path / name).is_file() for name in ("between.png", "model.pt2", "model.onnx"))
    assert pw.load(tmp_path / "models" / "loop").config.num_classes == 24


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="other Pythons write signatures otherwise")
def test_the_api_page_is_current() -> None:
    spec = importlib.util.spec_from_file_location("api", ROOT / "docs" / "api.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert module.page() == written, "run: python docs/api.py"


def anchors(page: Path) -> set[str]:
    """The anchors of the headings of a page, made as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for link in LINK.findall(text):
        if re.match(r"\w+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


def test_the_index_lists_every_page() -> None:
    index = ROOT / "docs" / "index.md"
    linked = {(index.parent / link.partition("#")[0]).resolve() for link in LINK.findall(index.read_text())}
    assert not [str(page) for page in PAGES if page != index and page.resolve() not in linked]


def test_no_cell_of_the_readme_is_longer_than_ten_words() -> None:
    for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines():
        for cell in line.strip("|").split("|") if line.startswith("|") else ():
            assert len(cell.split()) <= 10, cell


# --- commands ----------------------------------------------------------------------------------------------
def commands(page: Path) -> list[str]:
    """The `pixelwright` commands in the code blocks of a page, continued lines joined; what stands before the
    program, such as torchrun's own options, is left out."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    fenced = "\n".join(FENCE.findall(text))
    indented = "\n".join(line[4:] for line in text.splitlines() if line.startswith("    "))
    lines = [line.split("  #")[0].strip() for line in f"{fenced}\n{indented}".splitlines()]
    found = [
        re.search(r"(?:^|^(?:[A-Z_]+=\S+ )+|\s(?:--|--no-python)\s+)pixelwright (.*)", line) for line in lines
    ]
    return list(dict.fromkeys(match[1] for match in found if match is not None))


COMMANDS = [(page, command) for page in PAGES if page != EXTENDING for command in commands(page)]


@pytest.mark.parametrize(
    ("page", "command"), COMMANDS, ids=[f"{page.stem}-{command[:60]}" for page, command in COMMANDS]
)
def test_a_documented_command_is_understood(
    page: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    words = [word for word in shlex.split(command) if word not in ("[...]", "...", "…")]
    module: Any = import_module(f"pixelwright.cli.{words[0]}")
    command_, words = (
        choose(words[0], module.SUBCOMMANDS, module.parser, words[1:])
        if hasattr(module, "SUBCOMMANDS")
        else (Command(module.parser, module.run), words[1:])
    )
    options = command_.parser().parse(words)
    if module.__name__.endswith(".train") and all((ROOT / file).exists() for file in options.config):
        module.load_config(*options.config, changes=module.nested(options.as_dict(), module.TrainConfig))
