"""Configs: what is refused, and that YAML brings back what was written."""

import dataclasses
import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelwright.config import read, to_dict
from pixelwright.data import DataConfig
from pixelwright.diffusion.flow import FlowConfig
from pixelwright.errors import UserError
from pixelwright.training import ModelConfig, OptimConfig, SampleConfig, TrainConfig, load_config, save_config
from pixelwright.training.config import HealthConfig
from pixelwright.training.config_file import differences

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"steps": True}, "steps is True"),
        ({"batch_size": -3}, "batch_size is -3"),
        ({"batch_size": 10, "accumulate": 4}, "batch_size 10 is not divisible by accumulate 4"),
        ({"accumulate": 0}, "accumulate is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"precision": "bf61"}, "precision is 'bf61', did you mean \"bf16\""),
        ({"ema_decay": 1.0}, "ema_decay is 1"),
        ({"ema_decay": NAN}, "ema_decay is nan"),
        ({"ema_decay": -0.1}, "ema_decay is -0.1"),
        ({"keep": 0}, "keep is 0"),
        ({"log_every": 0}, "log_every is 0"),
        ({"checkpoint_every": 0}, "checkpoint_every is 0"),
        ({"sample_every": -1}, "sample_every is -1"),
        ({"max_skipped": 0}, "max_skipped is 0"),
        ({"run": " "}, "run is ' '"),
        ({"data": DataConfig(size=30)}, "30"),
    ],
)
def test_bad_run_settings_are_named(changes: dict[str, object], told: str) -> None:
    with pytest.raises(UserError) as error:
        TrainConfig(**{"run": "r", "model": ModelConfig("dip-ti-4"), "data": DataConfig(), **changes})  # type: ignore[arg-type]
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "values", "told"),
    [
        (OptimConfig, {"lr": 0}, "optim.lr is 0"),
        (OptimConfig, {"lr": NAN}, "optim.lr is nan"),
        (OptimConfig, {"lr": INF}, "optim.lr is inf"),
        (OptimConfig, {"lr": -1e-4}, "optim.lr is -0.0001"),
        (OptimConfig, {"betas": (0.9, 1.0)}, "optim.betas"),
        (OptimConfig, {"betas": (-0.1, 0.9)}, "optim.betas is -0.1"),
        (OptimConfig, {"betas": (0.9,)}, "optim.betas"),
        (OptimConfig, {"eps": 0.0}, "optim.eps is 0.0"),
        (OptimConfig, {"weight_decay": -1.0}, "optim.weight_decay is -1.0"),
        (OptimConfig, {"warmup": 1.5}, "optim.warmup is 1.5"),
        (OptimConfig, {"clip": 0.0}, "optim.clip is 0.0"),
        (OptimConfig, {"clip": INF}, "optim.clip is inf"),
        (HealthConfig, {"measure_every": -1}, "health.measure_every is -1"),
        (HealthConfig, {"on_spike": "clib"}, "health.on_spike is 'clib', did you mean \"clip\""),
        (HealthConfig, {"patience": 3}, "health.patience is 3, but health.on_spike is off"),
        (HealthConfig, {"on_spike": "rollback", "patience": 101}, "health.window 200"),
        (HealthConfig, {"on_spike": "rollback", "rollback_lr": 1.5}, "health.rollback_lr is 1.5"),
        (HealthConfig, {"on_spike": "rollback", "max_rollbacks": 17}, "of at least 1 and at most 16"),
        (HealthConfig, {"window": 9}, "health.window is 9"),
        (HealthConfig, {"threshold": 0.0}, "health.threshold is 0.0"),
        (SampleConfig, {"solver": "eular"}, 'did you mean "euler"'),
        (SampleConfig, {"guidance_scale": NAN}, "sample.guidance_scale is nan"),
        (SampleConfig, {"guidance_interval": (0.8, 0.2)}, "[0.8, 0.2]"),
        (SampleConfig, {"guidance_interval": (0.0, 1.5)}, "1.5"),
        (SampleConfig, {"time_shift": 0.0}, "sample.time_shift is 0.0"),
        (SampleConfig, {"count": 0}, "sample.count is 0"),
        (ModelConfig, {"preset": "dip-xl-61"}, "dip-xl-16"),
        (ModelConfig, {"preset": "dip-ti-4", "depth": 0}, "model.depth is 0"),
        (ModelConfig, {"preset": "dip-ti-4", "placement": "posthoc"}, "post-hoc"),
        (ModelConfig, {"preset": "dip-ti-4", "num_heads": 5}, "192"),
    ],
)
def test_bad_group_settings_are_named(kind: type, values: dict[str, object], told: str) -> None:
    with pytest.raises(UserError) as error:
        kind(**values)
    assert told in str(error.value)


@settings(max_examples=25, deadline=None)
@given(
    lr=st.floats(1e-8, 1.0),
    betas=st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)),
    clip=st.none() | st.floats(1e-3, 10),
    interval=st.tuples(st.floats(0, 0.5), st.floats(0.5, 1)),
    depth=st.none() | st.integers(2, 9),
    flip=st.booleans(),
    run=st.text("ab é:#'\"-", min_size=1).filter(str.strip),
)
def test_yaml_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    lr: float,
    betas: tuple[float, float],
    clip: float | None,
    interval: tuple[float, float],
    depth: int | None,
    flip: bool,
    run: str,
) -> None:
    config = TrainConfig(
        run=run,
        model=ModelConfig("pixeldit-ti-4", placement="hybrid", depth=depth),
        data=DataConfig(flip=flip),
        flow=FlowConfig(time_shift=3.0),
        optim=OptimConfig(lr=lr, betas=betas, clip=clip),
        sample=SampleConfig(guidance_interval=interval),
    )
    path = tmp_path_factory.mktemp("yaml") / "config.yaml"
    save_config(config, path)
    assert load_config(path) == config
    assert list(path.parent.iterdir()) == [path]


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


GOOD = "run: r\nmodel: {preset: dip-ti-4}\ndata: {path: shapes}\n"


def test_numbers_that_yaml_takes_for_text(tmp_path: Path) -> None:
    config = load_config(write(tmp_path / "c.yaml", GOOD + "optim: {lr: 1e-4, weight_decay: 0}\n"))
    assert config.optim.lr == 1e-4
    assert isinstance(config.optim.weight_decay, float)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (GOOD + "optim: {learning_rate: 1}\n", 'unknown key "optim.learning_rate"'),
        (GOOD + "stepz: 3\n", 'did you mean "steps"'),
        (GOOD + "steps: many\n", "steps is 'many': give a whole number"),
        (GOOD + "steps: 1.0\n", "steps is 1.0: give a whole number"),
        (GOOD + "compile: 1\n", "compile is 1: give true or false"),
        (GOOD + "optim: 3\n", "optim is 3"),
        (GOOD + "optim: {betas: [0.9]}\n", "optim.betas is [0.9]"),
        (GOOD + "optim: {lr: .nan}\n", "optim.lr is nan"),
        (GOOD + "precision: half\n", "precision is 'half'"),
        ("run: r\ndata: {}\n", "missing: model.preset"),
        ("run: r\ndata: {}\nmodel: {}\n", "missing: model.preset"),
        ("- 1\n", "the config is [1]"),
        ("", "the config is None: give a group of settings, such as run"),
        ("run: [", "is not valid YAML"),
    ],
)
def test_bad_files_say_what_and_where(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(UserError) as error:
        load_config(write(tmp_path / "c.yaml", text))
    assert told in str(error.value)
    assert "c.yaml" in str(error.value)
    assert "\n" not in str(error.value)


def test_binary_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x00")
    for name in ("c.yaml", "absent.yaml"):
        with pytest.raises(UserError, match=name):
            load_config(tmp_path / name)


def test_every_setting_has_a_help_text() -> None:
    import ast
    import inspect

    from pixelwright.training import config as module

    tree = ast.parse(inspect.getsource(module))
    for node in (n for n in tree.body if isinstance(n, ast.ClassDef)):
        for place, statement in enumerate(node.body):
            if isinstance(statement, ast.AnnAssign):
                after = node.body[place + 1]
                assert isinstance(after, ast.Expr), f"{node.name}.{ast.unparse(statement.target)}"
                assert isinstance(after.value, ast.Constant)


def test_differences_are_those_that_change_the_result() -> None:
    old = TrainConfig(run="a", model=ModelConfig("dip-ti-4"), data=DataConfig())
    free = dataclasses.replace(
        old, run="b", steps=7, log_every=3, keep=9, sample=SampleConfig(count=1), data=DataConfig(workers=2)
    )
    assert differences(to_dict(old), to_dict(free)) == []
    new = dataclasses.replace(old, seed=1, optim=OptimConfig(betas=(0.5, 0.999)))
    assert differences(to_dict(old), to_dict(new)) == [
        "optim.betas: [0.9, 0.999] -> [0.5, 0.999]",
        "seed: 0 -> 1",
    ]
    assert differences(to_dict(old), to_dict(new), only="model.") == []


def test_plain_form_is_plain_yaml() -> None:
    config = TrainConfig(run="a", model=ModelConfig("dip-ti-4"), data=DataConfig())
    assert read(TrainConfig, yaml.safe_load(yaml.safe_dump(to_dict(config)))) == config
