"""`train_only` and `freeze`: which weights a run changes."""

from pathlib import Path

import pytest
import torch

from pixelwright.errors import UserError
from pixelwright.training import build_trainer, train
from pixelwright.training.config import HealthConfig

from .conftest import Tiny, log_of, same_state

pytestmark = pytest.mark.usefixtures("no_extras")


@pytest.mark.parametrize(
    ("settings", "trained"),
    [
        ({"train_only": ("class_embedder.*", "blocks.1.*")}, ("class_embedder", "blocks.1.")),
        ({"train_only": ("backbone.*",), "freeze": ("*.bias",)}, ("backbone.",)),
        ({"freeze": ("backbone.*",)}, ("detailer.",)),
    ],
)
def test_only_what_is_named_changes(
    tiny: Tiny, settings: dict[str, object], trained: tuple[str, ...]
) -> None:
    first = train(tiny("first", steps=3))  # from random weights nothing gets through the zeros of adaLN
    trainer = build_trainer(tiny("run", steps=4, init=str(first), **settings))
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    held = {name.rpartition(".")[0] for name in trainer.state()["optimizer"]}
    trainer.run()
    changed = {
        name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed and all(any(part in name for part in trained) for name in changed)
    assert (
        not any(name.endswith(".bias") for name in changed) or "freeze" not in settings or len(settings) == 1
    )
    assert changed <= held  # and frozen weights have no state of the optimiser


def test_a_frozen_run_is_continued_to_the_bit(tiny: Tiny) -> None:
    straight, stopped = (tiny(name, steps=10, freeze=("detailer.*",)) for name in ("straight", "stopped"))
    train(straight)
    first = build_trainer(stopped)
    first.config = tiny("stopped", steps=5, freeze=("detailer.*",))
    first.run()
    train(stopped)
    same_state(build_trainer(straight).state(), build_trainer(stopped).state())


def test_updates_are_measured_of_what_is_trained(tiny: Tiny) -> None:
    config = tiny("run", steps=5, freeze=("detailer.*",), health=HealthConfig(measure_every=1))
    train(config)
    ratios = log_of(Path(config.run))[-1]["update_ratio"]
    assert ratios["backbone"] is not None and ratios["detailer"] is None


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"train_only": ("class_embeder.*",)}, 'train_only: nothing matches "class_embeder.*"'),
        ({"freeze": ("nothing",)}, 'freeze: nothing matches "nothing"'),
        ({"freeze": ("*",)}, "freeze leaves no weight to train"),
    ],
)
def test_mistakes_are_one_line(tiny: Tiny, settings: dict[str, object], told: str) -> None:
    config = tiny("run", **settings)
    with pytest.raises(UserError) as error:
        train(config)
    assert told in str(error.value) and "\n" not in str(error.value)
    assert not Path(config.run).exists()
