"""What bad input gets: one line that names the value, exit code 2, and not a file made or changed."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

import pixelwright as pw
from pixelwright.cli.main import main

NAMES = ("red circle", "blue circle", "red square", "blue square")
CONFIG: dict[str, Any] = {
    "run": "run",
    "model": {"preset": "dit-ti-4", "depth": 1, "hidden_size": 16, "num_heads": 1},
    "data": {"path": "shapes", "size": 8},
    "sample": {"count": 1, "steps": 1},
    "steps": 1,
    "batch_size": 1,
    "device": "cpu",
}
TRAIN = ["train", "--config", "config.yaml"]
SAMPLE = ["sample", "model", "--labels", "0", "--out", "out", "--steps", "1"]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny saved model."""
    folder = tmp_path_factory.mktemp("bad-inputs") / "model"
    tiny = {"depth": 1, "hidden_size": 16, "num_heads": 1, "image_size": (8, 8)}
    pw.save(pw.create("dit-ti-4", num_classes=4, class_names=NAMES, **tiny), folder)
    return folder


@pytest.fixture
def place(tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder that holds a good model and a good configuration."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    for file in model_folder.iterdir():
        (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    write_config(CONFIG)
    return tmp_path


def write_config(config: Any) -> None:
    Path("config.yaml").write_text(yaml.safe_dump(config))


def snapshot(folder: Path) -> dict[str, str]:
    """Every path below a folder, with the digest of its content."""

    def digest(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"

    return {str(path): digest(path) for path in sorted(folder.rglob("*"))}


# --- the ways to go wrong ---------------------------------------------------------------------------------
def setting(key: str, value: Any) -> Callable[[], None]:
    """The configuration with one setting changed; dots go into groups."""

    def prepare() -> None:
        config = copy.deepcopy(CONFIG)
        *groups, last = key.split(".")
        group = config
        for name in groups:
            group = group.setdefault(name, {})
        group[last] = value
        write_config(config)

    return prepare


def config_text(text: str | bytes) -> Callable[[], None]:
    def prepare() -> None:
        Path("config.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())

    return prepare


def model_json(change: Callable[[dict[str, Any]], object]) -> Callable[[], None]:
    """The model's config.json, changed in place."""

    def prepare() -> None:
        path = Path("model/config.json")
        config = json.loads(path.read_text())
        change(config)
        path.write_text(json.dumps(config))

    return prepare


def model_text(text: str) -> Callable[[], None]:
    def prepare() -> None:
        Path("model/config.json").write_text(text)

    return prepare


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[], None]:
    """The model's tensors, changed in place."""

    def prepare() -> None:
        path = Path("model/model.safetensors")
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return prepare


def weights_bytes(change: Callable[[bytes], bytes]) -> Callable[[], None]:
    def prepare() -> None:
        path = Path("model/model.safetensors")
        path.write_bytes(change(path.read_bytes()))

    return prepare


def remove(path: str) -> Callable[[], None]:
    return lambda: Path(path).unlink()


def files(**contents: bytes | str) -> Callable[[], None]:
    """Files by name, in the working folder; `__` stands for a slash, `_dot_` for a dot."""

    def prepare() -> None:
        for name, content in contents.items():
            path = Path(name.replace("__", "/").replace("_dot_", "."))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return prepare


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
    return buffer.getvalue()


def zip_bytes(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


def first_key(tensors: dict[str, torch.Tensor]) -> str:
    return sorted(tensors)[0]


def rename_first(tensors: dict[str, torch.Tensor]) -> None:
    tensors["stranger"] = tensors.pop(first_key(tensors))


def reshape_first(tensors: dict[str, torch.Tensor]) -> None:
    tensors[first_key(tensors)] = torch.zeros(3, 5)


def integers_first(tensors: dict[str, torch.Tensor]) -> None:
    key = first_key(tensors)
    tensors[key] = torch.zeros(tensors[key].shape, dtype=torch.int64)


REFERENCE = ["reference", "shapes", "r.npz"]
FEATURES = ["evaluation", "train-features", "shapes", "f", "--images", "9"]


def npz(**arrays: Any) -> Callable[[], object]:
    return lambda: np.savez("r.npz", **arrays)


def text(path: str, content: str) -> Callable[[], object]:
    return lambda: Path(path).write_text(content)


def flat() -> None:
    Path("flat").mkdir()
    Image.new("RGB", (8, 8)).save("flat/0.png")


class Case(NamedTuple):
    name: str
    arguments: list[str]
    said: str
    """What the error must name."""
    prepare: Callable[[], object] = lambda: None


def data(path: str) -> list[str]:
    return [*TRAIN, "--data.path", path]


def sample(**changes: str | list[str]) -> list[str]:
    """SAMPLE with options added or replaced."""
    options: dict[str, str | list[str]] = {"labels": "0", "out": "out", "steps": "1", **changes}
    words = ["sample", "model"]
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}", *([value] if isinstance(value, str) else value)]
    return words


DETAILER = ["--model.detailer.type", "unet"]
EVALUATE = ["evaluate", "model", "--reference", "nowhere.npz", "--out", "out"]
CASES = [
    # evaluating
    Case("evaluating a model without --out", EVALUATE[:4], "--out"),
    Case("evaluating a model into a file", [*EVALUATE[:4], "--out", "config.yaml"], "config.yaml"),
    Case("reference of a model missing", EVALUATE, "nowhere.npz"),
    Case("no samples", [*EVALUATE, "--num-samples", "0"], "--num-samples is 0"),
    Case("evaluated label too high", [*EVALUATE, "--labels", "4"], "label 4"),
    Case("swept setting unknown", [*EVALUATE, "--sweep", "guidance=1:2:1"], "guidance_scale"),
    Case("sweep backwards", [*EVALUATE, "--sweep", "guidance_scale=3:1:1"], "LOW:HIGH:STEP"),
    Case("images kept without a sweep", [*EVALUATE, "--keep-images"], "--sweep"),
    Case("seed of images", ["evaluate", "texts", "--reference", "r.npz", "--seed", "3"], "--seed"),
    Case("comparing what is no run", ["report", "one", "two"], "one is no run folder"),
    # the command line itself
    Case("unknown command", ["trian"], '"train"'),
    Case("unknown option before the command", ["--colour", "info"], "--colour"),
    Case("unknown option", [*TRAIN, "--optim.lrr", "1"], "--optim.lr"),
    Case("abbreviated option", [*TRAIN, "--step", "1"], "--steps"),
    Case("option without its value", [*TRAIN, "--steps"], "--steps"),
    Case("stray word", [*TRAIN, "twice"], "twice"),
    Case("no settings", ["train"], "model.preset"),
    Case("text for a number", [*TRAIN, "--optim.lr", "fast"], "fast"),
    Case("fraction for a count", [*TRAIN, "--steps", "2.5"], "2.5"),
    Case("value for a group", [*TRAIN, "--optim", "3"], "optim"),
    # configuration files
    Case("config missing", ["train", "--config", "nowhere.yaml"], "nowhere.yaml"),
    Case("config is a folder", ["train", "--config", "model"], "model"),
    Case("config empty", TRAIN, "config.yaml", config_text("")),
    Case("config a list", TRAIN, "config.yaml", config_text("- run\n- model\n")),
    Case("config a number", TRAIN, "config.yaml", config_text("3")),
    Case("config with an open bracket", TRAIN, "config.yaml", config_text("data: [1, 2\nrun: x\n")),
    Case("config indented with a tab", TRAIN, "config.yaml", config_text("data:\n\tpath: x\n")),
    Case("config not UTF-8", TRAIN, "config.yaml", config_text(b"run: \xff\xfe")),
    Case("config with a Python object", TRAIN, "config.yaml", config_text("run: !!python/name:os.system x")),
    Case("config with a key twice", TRAIN, '"run"', config_text("run: a\nrun: b\n")),
    Case("config with two documents", TRAIN, "config.yaml", config_text("run: a\n---\nrun: b\n")),
    Case("former key", TRAIN, '"recipe": it is called sampler now', setting("recipe", 3)),
    Case("detailer unknown", TRAIN, 'did you mean "unet"', setting("model.detailer", {"type": "unte"})),
    Case(
        "key of a detailer unknown", [*TRAIN, *DETAILER, "--model.detailer.chanels", "8"], "detailer.channels"
    ),
    Case("detailer without its settings", [*TRAIN, *DETAILER], "missing: model.detailer.channels"),
    Case("detailer without a type", TRAIN, "detailers are", setting("model.detailer", {"channels": [8]})),
    Case("import missing", [*TRAIN, "--imports", "nowhere.py"], '"nowhere.py" is not a file'),
    Case("import of a module missing", [*SAMPLE, "--imports", "nowhere"], 'no module "nowhere"'),
    Case("imports a number", TRAIN, "imports is 3", setting("imports", 3)),
    Case("sampler preset unknown", [*SAMPLE, "--sampler", "pixeldit-xl-epoch81"], "pixeldit-xl-epoch80"),
    Case("unknown key", TRAIN, '"stepz", did you mean "steps"', setting("stepz", 3)),
    Case("unknown group", TRAIN, '"optmi", did you mean "optim"', setting("optmi", {})),
    Case("unknown key in a group", TRAIN, '"optim.lrr", did you mean "optim.lr"', setting("optim.lrr", 1)),
    Case("command-line key in a config", TRAIN, '"resume"', setting("resume", "elsewhere")),
    Case("group as a value", TRAIN, "optim", setting("optim", 3)),
    Case("model as a name", TRAIN, "model.preset", setting("model", "dit-ti-4")),
    # values
    Case("rate NaN", TRAIN, "optim.lr is nan", setting("optim.lr", float("nan"))),
    Case("rate infinite", TRAIN, "optim.lr is inf", setting("optim.lr", float("inf"))),
    Case("rate negative", TRAIN, "optim.lr is -1", setting("optim.lr", -1)),
    Case("betas too short", TRAIN, "optim.betas", setting("optim.betas", [0.9])),
    Case("beta above 1", TRAIN, "1.5", setting("optim.betas", [0.9, 1.5])),
    Case("no steps", TRAIN, "steps is 0", setting("steps", 0)),
    Case("steps true", TRAIN, "steps is True", setting("steps", True)),
    Case("steps null", TRAIN, "steps is None", setting("steps", None)),
    Case("batch negative", TRAIN, "batch_size is -1", setting("batch_size", -1)),
    Case("batch not divisible", TRAIN, "accumulate 3", setting("accumulate", 3)),
    Case("EMA never moves", TRAIN, "ema_decay is 1", setting("ema_decay", 1)),
    Case("precision unknown", TRAIN, "fp8", setting("precision", "fp8")),
    Case("device unknown", TRAIN, "abacus", setting("device", "abacus")),
    Case("device absent", TRAIN, "cuda:99", setting("device", "cuda:99")),
    Case("run a number", TRAIN, "run is 3", setting("run", 3)),
    Case("run nameless", TRAIN, "run is ''", setting("run", "")),
    Case("run a file", TRAIN, "config.yaml", setting("run", "config.yaml")),
    Case("run below a file", TRAIN, "config.yaml", setting("run", "config.yaml/run")),
    Case("run someone else's folder", TRAIN, "model", setting("run", "model")),
    Case("resume missing", [*TRAIN, "--resume", "nowhere"], "nowhere"),
    Case("resume without a checkpoint", [*TRAIN, "--resume", "model"], "model"),
    Case("init missing", [*TRAIN, "--init", "nowhere"], "init: nowhere"),
    Case("init nameless", TRAIN, "init is ''", setting("init", "")),
    Case("init another width", [*TRAIN, "--init", "model", "--model.hidden_size", "96"], "hidden_size"),
    Case("info of a config and a model", ["info", "dit-ti-4", "--config", "config.yaml"], "not both"),
    Case("info of no config", ["info", "--config", "nowhere.yaml"], "nowhere.yaml"),
    Case("info of an unknown GPU", ["info", "--config", "config.yaml", "--gpu", "h10"], '"h100"'),
    Case("info of no use", ["info", "--config", "config.yaml", "--mfu", "0"], "--mfu is 0"),
    Case("info of too many GPUs", ["info", "--config", "config.yaml", "--gpus", "3"], "batch_size is 1"),
    Case("preset unknown", TRAIN, "dip-xl-16", setting("model.preset", "dip-xl")),
    Case("no blocks", TRAIN, "depth is 0", setting("model.depth", 0)),
    Case("heads do not divide", TRAIN, "5 heads", setting("model.num_heads", 5)),
    Case("placement unknown", TRAIN, "front", setting("model.placement", "front")),
    Case("size not divisible", TRAIN, "10x10", setting("data.size", 10)),
    Case("dropout above 1", TRAIN, "null_probability is 2", setting("flow.null_probability", 2)),
    Case("shift zero", TRAIN, "time_shift is 0", setting("flow.time_shift", 0)),
    Case("solver unknown in a config", TRAIN, '"euler"', setting("sample.solver", "eular")),
    Case("interval reversed in a config", TRAIN, "0.9, 0.1", setting("sample.guidance_interval", [0.9, 0.1])),
    # benchmarks of prompts
    Case("benchmark unknown", ["prompts", "shape", "model"], 'did you mean "shapes"'),
    Case(
        "benchmark of a model of classes",
        ["prompts", "shapes", "model", "--out", "out"],
        "draws from classes",
    ),
    Case(
        "benchmark with no images",
        ["prompts", "shapes", "model", "--out", "out", "--images", "0"],
        "--images is 0",
    ),
    Case(
        "metadata that is none",
        ["prompts", "geneval", "model", "--metadata", "a.jsonl", "--out", "out"],
        '"a.jsonl", line 1',
        files(a_dot_jsonl="hello"),
    ),
    Case(
        "prompts missing",
        ["prompts", "dpg", "model", "--prompts", "nowhere", "--out", "out"],
        '"nowhere" holds no .txt',
    ),
    # images
    Case(
        "captions that tell left from right, mirrored",
        [*data("shapes-captions"), "--data.flip", "true"],
        "data.flip is true",
    ),
    Case("data missing", data("nowhere"), "nowhere"),
    Case("data a text file", data("notes.txt"), "notes.txt", files(notes_dot_txt="hello")),
    Case("data an empty folder", data("empty"), "empty", lambda: Path("empty").mkdir()),
    Case("data without images", data("texts"), "texts", files(texts__a_dot_txt="hello")),
    Case(
        "data of broken images",
        data("broken"),
        "broken",
        files(broken__a_dot_png=b"\x89PNG", broken__b_dot_jpg=b""),
    ),
    Case("zip empty", data("a.zip"), "a.zip", files(a_dot_zip=zip_bytes({}))),
    Case("zip that is none", data("a.zip"), "a.zip", files(a_dot_zip="not a zip")),
    Case("zip cut short", data("a.zip"), "a.zip", files(a_dot_zip=zip_bytes({"c/a.png": png() * 9})[:200])),
    Case(
        "zip that leaves its folder",
        data("a.zip"),
        "../a.png",
        files(a_dot_zip=zip_bytes({"../a.png": png()})),
    ),
    Case("zip with an absolute name", data("a.zip"), "/a.png", files(a_dot_zip=zip_bytes({"/a.png": png()}))),
    Case(
        "zip with broken labels",
        data("a.zip"),
        "dataset.json",
        files(a_dot_zip=zip_bytes({"a.png": png(), "dataset.json": b'{"labels": ['})),
    ),
    Case(
        "zip with a label too few",
        data("a.zip"),
        "a.png",
        files(a_dot_zip=zip_bytes({"a.png": png(), "dataset.json": b'{"labels": []}'})),
    ),
    Case(
        "zip with a negative label",
        data("a.zip"),
        "-1",
        files(a_dot_zip=zip_bytes({"a.png": png(), "dataset.json": b'{"labels": [["a.png", -1]]}'})),
    ),
    # labels
    Case("label too high", sample(labels="4"), "label 4"),
    Case("label negative", sample(labels="-1"), "label -1"),
    Case("label range too high", sample(labels="2-7"), "2-7"),
    Case("label range backwards", sample(labels="3-1"), "1-3"),
    Case("label empty", sample(labels=""), "label"),
    Case("label a fraction", sample(labels="1.5"), "1.5"),
    Case("class unknown", sample(labels="red cirle"), '"red circle"'),
    Case(
        "prompt for a model of classes", [*SAMPLE, "--prompt", "a fox"], "draws from classes; give --labels ("
    ),
    Case("negative for a model of classes", [*SAMPLE, "--negative", "a fox"], "--negative is given"),
    Case("size of letters", [*SAMPLE, "--size", "big"], "--size is big"),
    Case("size of three", [*SAMPLE, "--size", "8x8x8"], "8x8x8"),
    Case("captions without an encoder", [*TRAIN, "--model.preset", "dip-t2i-ti"], "--text.encoder minilm"),
    Case("encoder for a model of classes", [*TRAIN, "--text.encoder", "minilm"], "draws from classes"),
    Case("unknown encoder", [*TRAIN, "--text.encoder", "t5"], "gemma"),
    Case("label range of a milliard", sample(labels="0-999999999"), "0-999999999"),
    # sampling
    Case("no sampling steps", sample(steps="0"), "steps is 0"),
    Case("solver unknown", sample(solver="eular"), '"euler"'),
    Case("guidance NaN", sample(guidance_scale=".nan"), "nan"),
    Case("guidance text", sample(guidance_scale="strong"), "strong"),
    Case("interval reversed", sample(guidance_interval=["0.9", "0.1"]), "0.9"),
    Case("interval outside", sample(guidance_interval=["-1", "2"]), "-1"),
    Case("sampling shift negative", sample(time_shift="-3"), "-3"),
    Case("sampling size not divisible", sample(size="10"), "10x10"),
    Case("sampling size zero", sample(size="0"), "0x0"),
    Case("sampling size negative", sample(size="-8"), "-8"),
    Case("sampling size of three numbers", sample(size=["8", "8", "8"]), "8 8 8"),
    Case("batch of nothing", sample(batch_size="0"), "--batch-size is 0"),
    Case("start index negative", sample(start_index="-1"), "--start-index is -1"),
    Case("sampling device unknown", sample(device="abacus"), "abacus"),
    Case("sampling precision unknown", sample(precision="fp8"), "fp8"),
    Case("out a file", sample(out="config.yaml"), "config.yaml"),
    Case("out below a file", sample(out="config.yaml/out"), "config.yaml"),
    Case("out full", sample(out="model"), "--overwrite"),
    # models
    Case("model missing", ["sample", "nowhere", *SAMPLE[2:]], "nowhere"),
    Case("model a file", ["sample", "config.yaml", *SAMPLE[2:]], "config.yaml"),
    Case("model name unknown", ["info", "dip-xl"], "dip-xl-16"),
    Case("info size not divisible", ["info", "dip-ti-4", "--size", "30"], "30x30"),
    Case("info batch zero", ["info", "dip-ti-4", "--batch-size", "0"], "--batch-size is 0"),
    Case("info autocast unknown", ["info", "dip-ti-4", "--autocast", "fp8"], "fp8"),
    Case("config.json missing", SAMPLE, "config.json", remove("model/config.json")),
    Case("weights missing", SAMPLE, "model.safetensors", remove("model/model.safetensors")),
    Case("config.json broken", SAMPLE, "config.json", model_text('{"backbone": ')),
    Case("config.json a list", SAMPLE, "config.json", model_text("[]")),
    Case("config.json of another format", SAMPLE, "99", model_json(lambda c: c.update(format=99))),
    Case("unknown key in config.json", SAMPLE, '"colour"', model_json(lambda c: c.update(colour=1))),
    Case("missing key in config.json", SAMPLE, "missing: backbone", model_json(lambda c: c.pop("backbone"))),
    Case(
        "unknown key in a part",
        SAMPLE,
        '"backbone.hiden_size", did you mean "backbone.hidden_size"',
        model_json(lambda c: c["backbone"].update(hiden_size=8)),
    ),
    Case("unknown part", SAMPLE, '"linaer"', model_json(lambda c: c["detailer"].update(type="linaer"))),
    Case("part a number", SAMPLE, "backbone", model_json(lambda c: c.update(backbone=7))),
    Case("width as text", SAMPLE, "'16'", model_json(lambda c: c["backbone"].update(hidden_size="16"))),
    Case("too few class names", SAMPLE, "class_names", model_json(lambda c: c.update(class_names=["a"]))),
    Case("class names no list", SAMPLE, "class_names", model_json(lambda c: c.update(class_names=3))),
    Case("image size one number", SAMPLE, "image_size", model_json(lambda c: c.update(image_size=8))),
    Case("image size not divisible", SAMPLE, "10", model_json(lambda c: c.update(image_size=[10, 10]))),
    Case("weights cut short", SAMPLE, "model.safetensors", weights_bytes(lambda b: b[: len(b) // 2])),
    Case("weights empty", SAMPLE, "model.safetensors", weights_bytes(lambda b: b"")),
    Case("weights a text", SAMPLE, "model.safetensors", weights_bytes(lambda b: b"hello" * 9)),
    Case(
        "weights with a huge header",
        SAMPLE,
        "model.safetensors",
        weights_bytes(lambda b: b"\xff" * 8 + b[8:]),
    ),
    Case("tensor missing", SAMPLE, "missing", weights(lambda t: t.pop(first_key(t)))),
    Case("tensor under another name", SAMPLE, '"stranger"', weights(rename_first)),
    Case("tensor of another shape", SAMPLE, "[3, 5]", weights(reshape_first)),
    Case("tensor of integers", SAMPLE, "int64", weights(integers_first)),
    # evaluation
    Case("no reference", ["evaluate", "samples", "--reference", "nowhere.npz"], "nowhere.npz"),
    Case("reference of nothing", ["evaluate", "samples", "--reference", "r.npz"], "other", npz(other=[1.0])),
    Case(
        "reference a text", ["evaluate", "samples", "--reference", "r.npz"], "r.npz", text("r.npz", "hello")
    ),
    Case("features unknown", [*REFERENCE, "--features", "incepton"], '"inception"'),
    Case("features nowhere", [*REFERENCE, "--features", "inception:nowhere.pt"], "nowhere.pt"),
    Case("features of a model", [*REFERENCE, "--features", "model"], "config.json"),
    Case("reference under a wrong name", ["reference", "shapes", "r.txt", "--features", "model"], "model"),
    Case("training features unknown verb", ["evaluation", "train"], '"train-features"'),
    Case("training features without classes", ["evaluation", "train-features", "flat", "f"], "flat", flat),
    Case("training features no epochs", [*FEATURES, "--epochs", "0"], "epochs is 0"),
    Case("training features odd size", [*FEATURES, "--size", "12"], "multiple of 8"),
    Case("weights of another model", SAMPLE, "blocks.1", model_json(lambda c: c["backbone"].update(depth=2))),
]


def test_the_corpus_is_large_and_its_names_unique() -> None:
    assert len(CASES) >= 40
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_one_line_and_nothing_written(case: Case, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case.prepare()
    before = snapshot(place)
    assert main(case.arguments) == 2
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert len(lines) == 1, printed.err
    assert lines[0].startswith("pixelwright: error: ")
    assert case.said in lines[0]
    assert "Traceback" not in printed.out
    assert snapshot(place) == before


def test_the_good_inputs_that_the_bad_ones_are_made_from(place: Path) -> None:
    """So that no case fails for a reason other than its own."""
    assert main(TRAIN) == 0
    assert main(SAMPLE) == 0
    assert list((place / "out").glob("000000-*.png"))


@pytest.mark.parametrize("name", ["config missing", "weights cut short", "unknown command"])
def test_as_a_process(name: str, place: Path) -> None:
    case = next(case for case in CASES if case.name == name)
    case.prepare()
    before = snapshot(place)
    command = [sys.executable, "-m", "pixelwright.cli.main", *case.arguments]
    environment = {**os.environ, "PYTHONPATH": str(Path(pw.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [done.stderr.rstrip("\n")]
    assert done.stderr.startswith("pixelwright: error: ") and case.said in done.stderr
    assert snapshot(place) == before
