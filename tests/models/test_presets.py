"""The table of named models: sizes counted to the digit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import pixelwright as pw
from pixelwright.models.config import from_dict, to_dict
from pixelwright.models.folder import skeleton
from pixelwright.models.presets import PRESETS, preset
from pixelwright.training.summary import encoder_of, flops_by_part, human

COUNTED = {
    "dip-l-16": 425_424_387,
    "dip-xl-16": 631_989_411,
    "dip-xl-32": 634_643_619,
    "pixeldit-b-16": 184_749_155,
    "pixeldit-b-16-postmod": 172_149_859,
    "pixeldit-l-16": 569_648_963,
    "pixeldit-l-16-postmod": 536_061_763,
    "pixeldit-xl-16": 797_383_203,
    "pixeldit-xl-16-postmod": 759_601_699,
    "pixnerd-l-16": 452_113_795,
    "pixnerd-xl-16": 700_589_219,
    "deco-l-16": 426_938_019,
    "deco-xl-16": 682_282_851,
    "flattendit-l-16": 459_171_584,
    "flattendit-xl-16": 676_360_128,
}


@pytest.mark.parametrize(("name", "count"), COUNTED.items())
def test_parameters_equal_the_published_count(name: str, count: int) -> None:
    assert sum(p.numel() for p in skeleton(preset(name)).parameters()) == count


def test_ddt_is_the_published_one_but_for_its_channels() -> None:
    """Published for latents: 4 channels in patches of 2 instead of 3 in patches of 16."""
    count = sum(p.numel() for p in skeleton(preset("ddt-xl-16")).parameters())
    assert count - (3 * 16**2 - 4 * 2**2) * (2 * 1152 + 1153) == 674_646_352


def test_dips_head_has_the_published_count() -> None:
    assert sum(p.numel() for p in skeleton(preset("dip-xl-16")).detailer.parameters()) == 6_968_067


def test_the_dit_only_counterpart_has_the_papers_629_million() -> None:
    assert round(sum(p.numel() for p in skeleton(preset("dit-xl-16")).parameters()) / 1e6) == 629


DOCS = Path(__file__).parents[2] / "docs" / "models.md"
ROW = re.compile(r"^\| `(\S+)` \| [^|]+ \| ([\d,]+) \| (\d+) \| (\S+ \w) \|", re.MULTILINE)
ROWS = {name: row for name, *row in ROW.findall(DOCS.read_text("utf-8"))}


def test_the_table_of_the_documentation_forgets_none() -> None:
    assert list(ROWS) == [name for name, config in PRESETS.items() if config.backbone.hidden_size >= 768]


@pytest.mark.parametrize("name", ROWS)
def test_the_table_of_the_documentation(name: str) -> None:
    """Parameters that are trained, and FLOPs with those of a frozen encoder."""
    parameters, side, flops = ROWS[name]
    model, config = skeleton(preset(name)), preset(name)
    assert f"{sum(p.numel() for p in model.parameters()):,}" == parameters
    assert config.image_size == (int(side), int(side))
    found, encoder = sum(flops_by_part(model, config.image_size).values()), encoder_of(config)
    found += 0 if encoder is None else encoder.flops((int(side) // config.patch_size) ** 2)
    assert human(found, "").strip() == flops


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_json(name: str) -> None:
    assert from_dict(to_dict(PRESETS[name])) == PRESETS[name]


@pytest.mark.parametrize("name", [name for name in PRESETS if "-n-" in name or "-ti-" in name])
def test_tiny_presets_run_at_their_size_and_at_a_non_square_one(name: str) -> None:
    model = pw.create(name, num_classes=3)
    patch = model.config.patch_size
    for height, width in (model.config.image_size, (2 * patch, 3 * patch)):
        x = torch.randn(2, 3, height, width)
        assert model(x, torch.tensor([0.2, 0.7]), torch.tensor([0, 3])).shape == x.shape


def test_unknown_names_list_the_near_ones() -> None:
    with pytest.raises(pw.UserError, match=r'"dip-xl-61".*dip-xl-16'):
        pw.create("dip-xl-61")
    with pytest.raises(pw.UserError, match=r'"hiden_size".*hidden_size'):
        pw.create("dip-ti-4", hiden_size=8)


def test_overrides_reach_backbone_and_pit_alike() -> None:
    config = preset("pixeldit-ti-4", num_classes=7, hidden_size=64, num_heads=2)
    assert (config.backbone.hidden_size, config.num_classes) == (64, 7)
    assert (config.detailer.attention_size, config.detailer.num_heads) == (64, 2)
