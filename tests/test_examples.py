"""The scripts and configurations that come with the project."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

import pixelwright as pw
from pixelwright.training import load_config

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))

TINY = """
run: unused
model: {{preset: {name}-n-8, hidden_size: 16, depth: 1, num_heads: 1}}
data: {{path: shapes, size: 8, shapes_count: 200}}
sample: {{count: 1, steps: 1}}
steps: 2
batch_size: 2
device: cpu
log_every: 1
"""


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_is_valid(path: Path) -> None:
    config = load_config(path)
    assert Path(config.run).parts[0] == "runs"  # git ignores it


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo", ROOT / "examples" / "demo.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in module.MODELS:
        (tmp_path / f"demo-{name}.yaml").write_text(TINY.format(name=name))
    monkeypatch.setattr(module, "config_file", lambda name: tmp_path / f"demo-{name}.yaml")
    monkeypatch.setattr(module, "shipped", lambda: {})  # which takes seconds to draw
    monkeypatch.chdir(tmp_path)
    return module


def test_the_demo_ends_with_a_picture_of_both_models(
    demo: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.main() == 0
    assert "comparison.png" in capsys.readouterr().out
    with Image.open("runs/demo/comparison.png") as picture:
        assert picture.width > 3 * 6 * 8 * 3  # three panels of six columns, enlarged three times


def test_the_demo_first_draws_with_a_model_of_the_package(
    demo: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = pw.create("dit-ti-4", num_classes=10, hidden_size=16, depth=1, num_heads=1, image_size=(8, 8))
    monkeypatch.setattr(demo, "shipped", lambda: {"cifar10": None})
    monkeypatch.setattr(demo.pw, "load", lambda name: {"pixelwright/cifar10": tiny}[name])
    demo.draw_shipped(demo.RUNS / "cifar10.png")
    with Image.open("runs/demo/cifar10.png") as picture:
        assert picture.width > 10 * 8 * 3


def test_the_demo_passes_a_failure_on(demo: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    demo.RUNS.mkdir(parents=True)
    (demo.RUNS / "dip").touch()  # a file where the run folder should be
    with pytest.raises(SystemExit) as end:
        demo.train_both()
    assert end.value.code == 2
    assert "dip is a file" in capsys.readouterr().err


NOTEBOOK = """
import json, sys
cells = json.load(open(sys.argv[1], encoding="utf-8"))["cells"]
names = {"__name__": "__main__"}
for cell in cells:
    text = "".join(cell["source"]).replace("steps = 500", "steps = 12")
    if cell["cell_type"] == "code":
        exec(compile(text, cell["id"], "exec"), names)
assert names["images"].shape == (24, 16, 16, 3) and [line["step"] for line in names["log"]] == [10, 12]
"""


def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path) -> None:
    notebook = ROOT / "examples" / "pixelwright.ipynb"
    content = json.loads(notebook.read_text(encoding="utf-8"))
    assert content["nbformat"] == 4 and "steps = 500\n" in content["cells"][5]["source"]
    assert not any(cell.get("outputs") for cell in content["cells"])
    env = {**os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-W", "ignore", "-c", NOTEBOOK, str(notebook)]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "runs" / "notebook" / "samples.png") as picture:
        assert picture.width == 6 * (4 * 16 + 2) + 2
