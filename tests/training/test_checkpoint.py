"""Checkpoints: whole or not there, and a damaged one is noticed and passed over."""

import json
import logging
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pixelwright.distributed import checkpoint as checkpoints
from pixelwright.distributed.config import ParallelConfig
from pixelwright.distributed.parallel import Layout
from pixelwright.errors import UserError
from pixelwright.training import build_trainer, train

from .conftest import Tiny, same_state

pytestmark = pytest.mark.usefixtures("no_extras")

ALONE = Layout(ParallelConfig(), torch.device("cpu"))
TENSORS = "shard-00001-model-00001-of-00001.safetensors"
STATE = {"a": {"x": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(3.0)}, "b": {"x": torch.ones(1)}}


def save(run: Path, step: int, keep: int = 9, keep_every: int = 0) -> Path:
    state = {group: {k: v + step for k, v in tensors.items()} for group, tensors in STATE.items()}
    saver = checkpoints.Saver(run, ALONE, keep, keep_every)
    try:
        saver.start(step, state, {"seed": 0}, 1.5)
        written = saver.wait()
    finally:
        saver.close()
    assert written is not None
    return written


def load(run: Path) -> tuple[int, checkpoints.State]:
    found = checkpoints.newest(run)
    assert found is not None
    state = {group: {k: torch.zeros_like(v) for k, v in tensors.items()} for group, tensors in STATE.items()}
    checkpoints.load(found.path, state)
    return found.step, state


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    save(tmp_path, 7)
    step, state = load(tmp_path)
    assert step == 7
    same_state(state, {group: {k: v + 7 for k, v in tensors.items()} for group, tensors in STATE.items()})
    found = checkpoints.newest(tmp_path)
    assert found is not None
    assert (found.config, found.seconds) == ({"seed": 0}, 1.5)


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (3, 20, 100):
        save(tmp_path, step, keep=2)
    assert [path.name for path in checkpoints.checkpoint_folders(tmp_path)] == [
        "step-0000020",
        "step-0000100",
    ]


def test_every_nth_is_kept_besides_the_newest(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20, 25):
        save(tmp_path, step, keep=1, keep_every=10)
    assert [path.name for path in checkpoints.checkpoint_folders(tmp_path)] == [
        "step-0000010",
        "step-0000020",
        "step-0000025",
    ]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("saved")
    save(run, 5)
    save(run, 10)
    return run


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), cut=st.booleans())
def test_any_changed_byte_or_cut_is_noticed(
    saved: Path, tmp_path_factory: pytest.TempPathFactory, place: float, cut: bool
) -> None:
    run = tmp_path_factory.mktemp("damaged") / "run"
    shutil.copytree(saved, run)
    file = run / "checkpoints" / "step-0000010" / TENSORS
    content = bytearray(file.read_bytes())
    at = int(place * len(content))
    content[at] ^= 0x40
    file.write_bytes(content[:at] if cut else content)
    assert load(run)[0] == 5


@pytest.mark.parametrize("name", ["checkpoint.json", TENSORS])
@pytest.mark.parametrize("damage", ["missing", "empty", "zeros"])
def test_the_one_before_is_used_and_the_damaged_one_named(
    tiny: Tiny, caplog: pytest.LogCaptureFixture, name: str, damage: str
) -> None:
    config = tiny(steps=8, sample_every=0)
    folder = train(config)
    expected = {
        group: {k: v.clone() for k, v in t.items()} for group, t in build_trainer(config).state().items()
    }
    file = folder / "checkpoints" / "step-0000008" / name
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(b"" if damage == "empty" else bytes(file.stat().st_size))
    with caplog.at_level(logging.WARNING):
        trainer = build_trainer(config)
    assert trainer.step == 5
    (warning,) = [record.getMessage() for record in caplog.records if record.name.startswith("pixelwright")]
    assert "step-0000008" in warning
    assert "step-0000005" in warning
    trainer.run()
    same_state(build_trainer(config).state(), expected)


def test_if_all_are_damaged_training_does_not_start_over(tiny: Tiny) -> None:
    config = tiny(steps=8)
    folder = train(config)
    for path in checkpoints.checkpoint_folders(folder):
        (path / TENSORS).write_bytes(b"x")
    with pytest.raises(UserError, match=r"no checkpoint of .* can be read") as error:
        train(config)
    assert "step-0000005" in str(error.value)
    assert "step-0000008" in str(error.value)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"step": 1}', "nonsense", '{"step":1,"seconds":1,"config":{},"files":3}']
)
def test_an_index_that_is_none(tmp_path: Path, text: str) -> None:
    path = save(tmp_path, 1)
    (path / checkpoints.INDEX).write_text(text)
    with pytest.raises(UserError, match=r"checkpoint\.json is damaged"):
        checkpoints.inspect(path)


def test_unfinished_folders_are_not_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "step-0000009.tmp").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-x").mkdir()
    assert checkpoints.newest(tmp_path) is None
    save(tmp_path, 10)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-0000010", "step-x"]


def test_a_full_disk_leaves_the_earlier_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 5, keep=1)

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "sync", full)
    with pytest.raises(UserError, match="No space left"):
        save(tmp_path, 6, keep=1)
    monkeypatch.undo()
    assert os.listdir(tmp_path / "checkpoints") == ["step-0000005"]
    assert load(tmp_path)[0] == 5


def test_tensors_of_other_shapes_are_told(tmp_path: Path) -> None:
    save(tmp_path, 1)
    found = checkpoints.newest(tmp_path)
    assert found is not None
    for other in ({"a": {"x": torch.zeros(2, 4)}}, {"a": {"y": torch.zeros(1)}}):
        with pytest.raises(UserError, match="does not fit this model") as error:
            checkpoints.load(found.path, other)
        assert "\n" not in str(error.value)


def test_the_index_is_readable(tmp_path: Path) -> None:
    index = json.loads((save(tmp_path, 3) / checkpoints.INDEX).read_text())
    assert set(index) == {"step", "seconds", "config", "files"}
    assert set(index["files"]) == {TENSORS}


def test_a_kill_while_an_old_one_is_removed_leaves_no_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 3, keep=1)
    real = shutil.rmtree

    def killed(path: Path, **options: bool) -> None:
        if path.exists():
            next(path.iterdir()).unlink()
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 5, keep=1)
    monkeypatch.setattr(checkpoints.shutil, "rmtree", real)
    left = checkpoints.checkpoint_folders(tmp_path)
    assert [checkpoints.inspect(path).step for path in left] == [5]
    save(tmp_path, 7, keep=1)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-0000007"]


class Harmful:
    """Unpickling it leaves a folder behind."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.folder,)


def test_no_pickle_of_a_checkpoint_is_read(tmp_path: Path) -> None:
    """An index as PyTorch would write it, and tensors, that run a command when they are unpickled."""
    path = save(tmp_path, 3)
    harm = tmp_path / "harm-was-done"
    index = json.loads((path / checkpoints.INDEX).read_text())
    for name in (".metadata", "__0_0.distcp"):
        (path / name).write_bytes(pickle.dumps(Harmful(harm)))
        index["files"][name] = [(path / name).stat().st_size, checkpoints.checksum(path / name)]
    (path / checkpoints.INDEX).write_text(json.dumps(index))
    assert load(tmp_path)[0] == 3
    (path / TENSORS).unlink()
    del index["files"][TENSORS]
    (path / checkpoints.INDEX).write_text(json.dumps(index))
    with pytest.raises(UserError, match="written by an earlier version"):
        load(tmp_path)
    assert not harm.exists()


def test_every_kind_of_number_is_kept(tmp_path: Path) -> None:
    kinds = (torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
    state = {"a": {str(kind): torch.tensor([[1, 0, 3]]).to(kind) for kind in kinds}}
    saver = checkpoints.Saver(tmp_path, ALONE, 1)
    saver.start(1, state, {}, 0)
    path = saver.wait()
    assert path is not None
    found = {"a": {name: torch.zeros_like(value) for name, value in state["a"].items()}}
    checkpoints.load(path, found)
    same_state(found, state)


def test_what_changes_after_the_start_is_not_saved(tmp_path: Path) -> None:
    saver = checkpoints.Saver(tmp_path, ALONE, 9)
    weights = torch.zeros(1000)
    for step in (1, 2):  # the second time into the memory of the first
        weights.fill_(step)
        saver.start(step, {"a": {"x": weights}}, {}, 0)
        saver.hold()
        weights.fill_(-1)
        found = {"a": {"x": torch.empty(1000)}}
        path = saver.wait()
        assert path is not None
        checkpoints.load(path, found)
        assert (found["a"]["x"] == step).all()


def test_of_several_processes_each_writes_its_share() -> None:
    state = {"a": {str(i): torch.ones(10 + 7 * i % 5) for i in range(40)}, "b": {"n": torch.tensor(3)}}
    layouts = [Layout(ParallelConfig(), torch.device("cpu"), rank, 4) for rank in range(4)]
    shares = [list(checkpoints.share(state, layout)) for layout in layouts]
    names = [part.name for parts in shares for part in parts]
    assert sorted(names) == sorted(f"{group}.{name}" for group in state for name in state[group])
    loads = [sum(part.values.nbytes for part in parts) for parts in shares]
    assert max(loads) < 1.1 * min(loads)
