"""The scripts and configurations that come with the project."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

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
    monkeypatch.chdir(tmp_path)
    return module


def test_the_demo_ends_with_a_picture_of_both_models(
    demo: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.main() == 0
    assert "comparison.png" in capsys.readouterr().out
    with Image.open("runs/demo/comparison.png") as picture:
        assert picture.width > 3 * 6 * 8 * 3  # three panels of six columns, enlarged three times


def test_the_demo_passes_a_failure_on(demo: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    demo.RUNS.mkdir(parents=True)
    (demo.RUNS / "dip").touch()  # a file where the run folder should be
    with pytest.raises(SystemExit) as end:
        demo.train_both()
    assert end.value.code == 2
    assert "dip is a file" in capsys.readouterr().err
