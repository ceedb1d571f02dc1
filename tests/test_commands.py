"""Every documented command is run as it stands, in the order of its page, on toys of what it names.

What takes hours or a GPU has toy sizes: `SIZES` are put behind a command, `INSTEAD` replaces parts of one.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import pixelwright as pw
from pixelwright.cli.main import main
from pixelwright.data import Shapes
from tests.encoders import tiny_bert
from tests.test_docs import EXTENDING, FENCE, PAGES, ROOT, commands

PUBLISHED = "imagenet256_pixeldit_xl_epoch320.ckpt"
TRAIN = "--config configs/debug/sizes.yaml --objectives [] --steps 2 --device cpu --compile false"
TEXT = f"{TRAIN} --text.path bert --text.cache null"
SIZES = {
    "train --config configs/t2i": TEXT,
    "train --run runs/mine --model.preset pixeldit-t2i-ti": TEXT,
    "train": TRAIN,
    "finetune": "--steps 2 --prior 2 --device cpu",
    "sample models/pixeldit-xl": "--steps 2 --size 32 --device cpu",
    "sample": "--steps 2 --device cpu",
    "evaluate runs": "--steps 2 --device cpu",
    "evaluate models": "--num-samples 16 --steps 2 --device cpu",
    "evaluate pixelwright": "--num-samples 16 --steps 2 --device cpu",
    "evaluate imagenet256": "--size 32 --num-samples 16 --steps 2 --device cpu",
    "evaluation train-features": "--epochs 1 --device cpu --overwrite",
    "prompts shapes": "--images 1 --steps 1 --device cpu",
    "prompts geneval ": "--images 1 --steps 1 --size 16 --device cpu",
    "prompts dpg ": "--steps 1 --size 16 --device cpu",
}
"""Options behind the commands that begin so; the first that fits."""
INSTEAD = {
    "--step 1500": "--step 2",
    "1024x768": "64x32",
    "guidance_scale=1:4:0.25": "guidance_scale=1:4:3",
    "--num-samples 5000": "--num-samples 16",
    "--num-samples 10000": "--num-samples 16",
    "--num-samples 1000 ": "--num-samples 16 ",
    "--features inception": "--features features/cifar10",  # the Inception network is not ours to ship
    "VIRTUAL_imagenet256_labeled": "cifar10",
    "evaluations/dip-1000 evaluations/dip-2000": "evaluations/first evaluations/dip",
    "/shared/runs": "runs",
    "project: mine": "mode: disabled",
    "--nproc-per-node gpu": "--nproc-per-node 2",
}
"""Parts of commands in toy sizes, and what stands in for files that others publish."""
TOY: dict[str, Any] = {
    "model": {"preset": "pixeldit-n-8", "hidden_size": 16, "depth": 1, "num_heads": 1},
    "data": {"path": "shapes", "size": 16, "shapes_count": 24, "workers": 0},
    "sample": {"count": 2, "steps": 1},
    "ema_more": ["power-0.05"],
    **{"steps": 2, "batch_size": 2, "device": "cpu", "checkpoint_every": 1, "log_every": 1},
}


def toy_run(folder: Path, **changes: Any) -> None:
    """A run of two steps with checkpoints of both."""
    file = folder.with_suffix(".yaml")
    file.parent.mkdir(exist_ok=True)
    file.write_text(yaml.safe_dump(TOY | {"run": str(folder)} | changes))
    assert main(["train", "--config", str(file)]) == 0


def pictures(folder: Path) -> Path:
    """24 labelled pictures, in a folder for each class."""
    source = Shapes(size=32, count=24)
    for i in range(24):
        path = folder / f"class-{i % 3}" / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        source[i].image.save(path)
    return folder


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy of everything that the pages name and do not make."""
    root = tmp_path_factory.mktemp("toys")
    (root / "configs").symlink_to(ROOT / "configs")
    images = pictures(root / "samples")
    shutil.copytree(images, root / "my-photos")
    for name in ("images", "imagenet-256", "cifar10/train", "cifar10/test"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.make_archive(str(root / name), "zip", images)
    shutil.copytree(images, root / "IMAGENET" / "train")
    for i in range(2):
        (part := root / f"part-{i}").mkdir()
        for j in range(4):
            Image.new("RGB", (64, 64), (99 * i, 60 * j, 99)).save(part / f"{i}{j}.png")
            (part / f"{i}{j}.txt").write_text("a red star")
        shutil.make_archive(str(root / "emoji" / f"emoji-{i:06d}"), "tar", part)
    (root / "part-0").rename(root / "photos")
    (root / "prompts.txt").write_text("a red star\na blue circle\n")
    tiny_bert(root / "bert")
    toy_run(root / "runs" / "first")
    captioned = {"model": TOY["model"] | {"preset": "pixeldit-t2i-ti", "patch_size": 8}}
    captioned |= {"text": {"encoder": "minilm", "path": str(root / "bert")}}
    toy_run(root / "runs" / "captioned", **captioned)
    for pair in ("first mine", "first other", "captioned t2i-shapes-dip", "captioned t2i-shapes-pixeldit"):
        source, copy = pair.split()
        shutil.copytree(root / "runs" / source, root / "runs" / copy)
    shutil.copytree(root / "runs" / "captioned" / "model", root / "MODEL")
    small = {"image_size": (32, 32), "hidden_size": 32, "depth": 1, "num_heads": 2}
    unet = {"type": "unet", "channels": [4, 4, 8, 8]}
    pw.save(pw.create("dip-xl-16", num_classes=4, detailer=unet, **small), root / "models" / "dip-xl-16")
    pw.save(pw.create("pixeldit-xl-16", **small), root / "models" / "published")
    pw.hub.convert(root / "models" / "published", root / PUBLISHED, to="public")
    np.savez(root / "samples.npz", arr_0=np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), np.uint8))
    benchmark_files(root)
    features = str(root / "features" / "cifar10")
    assert main(["evaluation", "train-features", str(images), features, "--epochs", "1"]) == 0
    assert main(["reference", str(images), str(root / "cifar10.npz"), "--features", features]) == 0
    return root


def benchmark_files(root: Path) -> None:
    """What GenEval and DPG-Bench publish."""
    task = {
        "tag": "single_object",
        "include": [{"class": "bench", "count": 1}],
        "prompt": "a photo of a bench",
    }
    metadata = root / "geneval" / "prompts" / "evaluation_metadata.jsonl"
    metadata.parent.mkdir(parents=True)
    metadata.write_text(json.dumps(task) + "\n")
    (root / "ELLA" / "dpg_bench" / "prompts").mkdir(parents=True)
    (root / "ELLA" / "dpg_bench" / "prompts" / "0.txt").write_text("a red star")


@pytest.fixture
def place(tmp_path: Path, toys: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The toys in a folder of one's own, which is the current one."""
    shutil.copytree(toys, tmp_path / "here", symlinks=True)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def in_toy_size(command: str) -> list[str]:
    """The words of a command, with what makes it small."""
    for part, other in INSTEAD.items():
        command = command.replace(part, other)
    more = next((more for start, more in SIZES.items() if command.startswith(start)), "")
    return shlex.split(f"{command} {more}")


def made_by(words: list[str]) -> str:
    """What a command makes that may not be there before."""
    if words[0] in ("train", "finetune", "sample"):
        option = "--out" if words[0] == "sample" else "--run"
        return words[words.index(option) + 1] if option in words else "runs/debug"
    if words[:2] == ["data", "prepare"]:
        return words[3]
    return words[2] if words[0] in ("reference", "convert") else "nothing"


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


ELSEWHERE = (EXTENDING, *(ROOT / "docs" / name for name in ("distributed.md", "studio.md")))  # other tests
RUN = [page for page in PAGES if page not in ELSEWHERE and commands(page)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_the_commands_of_a_page_do_what_they_say(
    page: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if page.stem == "text-to-image":
        remove(place / "runs" / "mine")
        shutil.copytree(place / "runs" / "captioned", place / "runs" / "mine")
    for command in commands(page):
        words = in_toy_size(command)
        remove(place / made_by(words))
        code = main(words)
        assert code == 0, f"{shlex.join(words)}\n{capsys.readouterr().err}"


LINES = "\n".join(FENCE.findall((ROOT / "docs" / "distributed.md").read_text().replace("\\\n", " ")))
TORCHRUN = [line for line in LINES.splitlines() if line.startswith("torchrun")]


SLOW = [pytest.param(line, marks=pytest.mark.slow) for line in TORCHRUN[:-1]]


@pytest.mark.parametrize("line", [*SLOW, TORCHRUN[-1]])
def test_the_commands_of_several_processes(line: str, place: Path) -> None:
    """With two processes on the CPU in place of GPUs; those of Slurm are only understood (see test_docs)."""
    (place / "my.yaml").write_text(yaml.safe_dump(TOY | {"run": "runs/my"}))
    start, _, command = line.partition(" -- pixelwright ")
    words = in_toy_size(f"{start} -- {sys.executable} -m pixelwright {command} --device cpu")
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run"]
    done = subprocess.run([*torchrun, *words[1:]], env=env, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    run = place / "runs" / ("two" if "--run" in command else "my")
    assert (run / "model" / "model.safetensors").is_file()


def test_python_scripts_of_the_pages_have_the_options_that_are_shown() -> None:
    """What they do is tested in tests/benchmarks and tests/test_examples.py, or takes hours. Options with a
    point are settings of runs, which some scripts pass on."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES).replace("\\\n", " ")
    lines = set(re.findall(r"python ((?:benchmarks|examples)/\w+\.py)([^`\n]*)", text))
    assert len(lines) > 10
    for script, words in lines:
        source = (ROOT / script).read_text(encoding="utf-8")
        for option in re.findall(r"--[a-z][\w-]*(?![\w.-])", words.partition("#")[0]):
            assert f'"{option}"' in source, f"{script} {option}"


def test_make_has_the_targets_that_are_shown() -> None:
    text = "\n".join(block for page in PAGES for block in FENCE.findall(page.read_text(encoding="utf-8")))
    targets = set(re.findall(r"^make ([a-z][a-z-]*)", text, re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert targets and all(f"\n{target}:" in makefile for target in targets)
