"""LoRA: what a run with an adapter trains and leaves alone, saves, and gives to others."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import pixelwright as pw
from pixelwright.cli.main import main
from pixelwright.data import DataConfig
from pixelwright.errors import UserError
from pixelwright.evaluation.report import read_report
from pixelwright.images import load_png, save_png
from pixelwright.models.folder import save
from pixelwright.text.config import TextConfig
from pixelwright.training import ModelConfig, OptimConfig, TrainConfig, build_trainer, train
from pixelwright.training.config import HealthConfig
from pixelwright.training.finetune_config import AdapterConfig, SubjectConfig

from .conftest import Tiny, same_state
from .test_init import Named

pytest.importorskip("peft", reason="LoRA needs peft (extra finetune)")
pytestmark = [
    pytest.mark.usefixtures("no_extras"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of what peft imports
]
DIP = ModelConfig("dip-ti-4", hidden_size=16, depth=2, num_heads=2)
QKV = "backbone.blocks.1.attn.qkv"
WIDE = {"targets": ("qkv", "detailer.*")}  # what shows in the images of so short a training


@pytest.fixture
def base(tiny: Tiny) -> Path:
    """A run of a few steps, so that nothing is zero any more."""
    return train(tiny("base", model=DIP, steps=4))


@pytest.fixture
def adapted(tiny: Tiny, base: Path) -> Callable[..., TrainConfig]:
    """Makes configs of runs with an adapter for `base`."""

    def make(run: str = "run", **changes: Any) -> TrainConfig:
        adapter = AdapterConfig(**{"rank": 4, "alpha": 8, **changes.pop("adapter", {})})
        strong = OptimConfig(lr=0.05)  # so that images differ
        mine = {"model": DIP, "init": str(base), "adapter": adapter, "steps": 6, "optim": strong}
        return tiny(run, **{**mine, **changes})

    return make


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def same_weights(one: pw.PixelDenoiser, other: pw.PixelDenoiser) -> bool:
    mine, others = one.state_dict(), other.state_dict()
    return mine.keys() == others.keys() and all(torch.equal(x, others[name]) for name, x in mine.items())


# ---------------------------------------------------------------- the arithmetic
def test_at_full_rank_the_gradient_is_that_of_the_whole_matrix(tiny: Tiny, base: Path, adapted: Any) -> None:
    """W + B·A with A the identity: at B = 0, the gradient of B is that of W."""
    whole = build_trainer(tiny("whole", model=DIP, init=str(base), train_only=(f"{QKV}.weight",)))
    lora = build_trainer(adapted(adapter={"rank": 16, "alpha": 16, "targets": (QKV,)}))
    layer = lora.model.get_submodule(QKV)
    with torch.no_grad():
        layer.lora_A["default"].weight.copy_(torch.eye(16))  # type: ignore[index, union-attr]
    inputs = [next(iter(trainer._inputs())) for trainer in (whole, lora)]
    losses = [trainer.gradients(each)[0] for trainer, each in zip((whole, lora), inputs, strict=True)]
    assert torch.equal(*losses)
    expected = whole.model.get_submodule(QKV).weight.grad
    found = layer.lora_B["default"].weight.grad  # type: ignore[index, union-attr]
    assert expected.abs().max() > 0 and torch.allclose(found, expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    "kind", [{}, {"dora": True}, {"rslora": True}, {"targets": ("qkv", "detailer.*")}, {"detailer": True}]
)
def test_an_adapter_changes_no_bit_before_it_is_trained(adapted: Any, base: Path, kind: Any) -> None:
    trainer = build_trainer(adapted(adapter=kind))
    plain = pw.load(base)
    assert same_weights(trainer.averaged(), plain)
    trainer.run()
    assert not same_weights(trainer.averaged(), plain)


# ---------------------------------------------------------------- a run
def test_the_base_is_untouched_and_the_adapter_is_saved_alone(adapted: Any, base: Path) -> None:
    before = digest(base / "model" / "model.safetensors")
    trainer = build_trainer(adapted(ema_more=(0.5,)))
    frozen = {n: p.clone() for n, p in trainer.model.named_parameters() if not p.requires_grad}
    run = trainer.run()
    assert digest(base / "model" / "model.safetensors") == before
    now = dict(trainer.model.named_parameters())
    assert all(torch.equal(now[name], value) for name, value in frozen.items())
    state = trainer.state()
    trained = {name for name, p in now.items() if p.requires_grad}
    assert trained and all(".lora_" in name for name in trained)
    assert state["model"].keys() == state["ema"].keys() == state["ema-0.5"].keys() == trained
    assert not (run / "model").exists()
    files = {path.name for path in (run / "adapter").iterdir()}
    assert files == {"adapter_config.json", "adapter_model.safetensors", "model_config.json"}
    size = sum(p.numel() for name, p in now.items() if name in trained) * 4
    assert size <= (run / "adapter" / "adapter_model.safetensors").stat().st_size < size + 8192
    assert same_weights(pw.load(base, adapter=run), trainer.averaged())


@pytest.mark.parametrize("adapter", [{}, {"dora": True, "dropout": 0.3}])
def test_a_run_is_continued_to_the_bit(adapted: Any, base: Path, adapter: dict[str, Any]) -> None:
    straight = adapted("straight", steps=10, adapter=adapter, health=HealthConfig(measure_every=2))
    stopped = dataclasses.replace(straight, run=straight.run.replace("straight", "stopped"))
    train(straight)
    train(dataclasses.replace(stopped, steps=5))
    train(stopped)
    same_state(build_trainer(straight).state(), build_trainer(stopped).state())
    assert same_weights(*(pw.load(base, adapter=config.run) for config in (straight, stopped)))


def test_dropout_is_of_the_step_and_the_seed(adapted: Any) -> None:
    def losses(**changes: Any) -> torch.Tensor:
        trainer = build_trainer(adapted(**changes))
        with torch.no_grad():
            for name, p in trainer.model.named_parameters():
                if ".lora_B" in name:
                    p.fill_(0.1)
        inputs = next(iter(trainer._inputs()))
        torch.rand(7)
        return trainer.gradients(inputs)[0]

    one, again = (losses(adapter={"dropout": 0.5, **WIDE}) for _ in range(2))
    assert torch.equal(one, again) and not torch.equal(one, losses(adapter=WIDE))


def test_new_classes_are_trained_and_saved_with_the_adapter(tiny: Tiny, adapted: Any, base: Path) -> None:
    old = pw.load(base)
    names = (*(old.config.class_names or ()), "wug")
    trainer = build_trainer(adapted(), source=Named(names))
    trainer.run()
    model = pw.load(base, adapter=trainer.folder)
    assert model.config.class_names == names and model.config.num_classes == 25
    assert same_weights(model, trainer.averaged())
    settings = json.loads((trainer.folder / "adapter" / "adapter_config.json").read_text())
    assert settings["modules_to_save"] == ["backbone.class_embedder.table"]
    assert pw.load(base).config.num_classes == 24
    assert pw.sample(model, ["wug"], pw.SamplerSettings(steps=2)).shape == (1, 8, 8, 3)


def test_a_model_of_captions(tiny: Tiny, bert: Path) -> None:
    """Of whose last block the text's own layers are never used: they get no matrices."""
    more: dict[str, Any] = {
        "model": ModelConfig("dip-t2i-ti", hidden_size=16, depth=2, num_heads=2),
        "text": TextConfig("minilm", path=str(bert)),
        "data": DataConfig(path="shapes-captions", size=8, shapes_count=24),
    }
    base = train(tiny("captions", steps=3, **more))
    with pytest.raises(UserError, match=r"prior_prompts is .*, but there are no prior images"):
        tiny("none", init=str(base), subject=SubjectConfig(prior_prompts=("a star",), samples=0), **more)
    tiny("measured", init=str(base), subject=SubjectConfig(prior_prompts=("a star",)), **more)
    config = tiny("run", init=str(base), adapter=AdapterConfig(rank=2), steps=3, **more)
    trainer = build_trainer(config)
    matrices = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert any("blocks.0.text.mlp" in name for name in matrices)
    assert not any("blocks.1.text.mlp" in name or "blocks.1.text.attn.proj" in name for name in matrices)
    trainer.run()
    assert same_weights(pw.load(base, adapter=config.run), trainer.averaged())


# ---------------------------------------------------------------- several adapters
def test_weights_of_adapters(adapted: Any, base: Path) -> None:
    one, two = (train(adapted(name, seed=seed)) for name, seed in (("one", 1), ("two", 2)))
    alone = pw.load(base, adapter=one)
    assert same_weights(pw.load(base, adapter={one: 1.0, two: 0.0}), alone)
    assert same_weights(pw.load(base, adapter={one: 0.0}), pw.load(base))
    both, plain = pw.load(base, adapter=[one, two]).state_dict(), pw.load(base).state_dict()
    second = pw.load(base, adapter=two).state_dict()
    for name, value in alone.state_dict().items():
        sum_of = value.double() + second[name].double() - plain[name].double()
        assert torch.allclose(both[name].double(), sum_of, atol=1e-7)
    half = pw.load(base, adapter={one: 0.5}).state_dict()
    assert torch.allclose(
        half[f"{QKV}.weight"], (alone.state_dict()[f"{QKV}.weight"] + plain[f"{QKV}.weight"]) / 2
    )


@pytest.mark.parametrize("dora", [False, True])
def test_peft_itself_reads_the_folder(adapted: Any, base: Path, dora: bool) -> None:
    from peft import PeftModel

    run = train(adapted(adapter={"dora": dora, "targets": ("qkv", "detailer.*")}))
    theirs: Any = PeftModel.from_pretrained(pw.load(base), run / "adapter")
    x, t, labels = torch.randn(2, 3, 8, 8), torch.tensor([0.2, 0.7]), torch.tensor([0, 1])
    with torch.no_grad():
        expected = theirs.base_model.model(x, t, labels)
        assert torch.allclose(pw.load(base, adapter=run)(x, t, labels), expected, atol=1e-5)
        assert not torch.allclose(pw.load(base)(x, t, labels), expected, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": r".*blocks\.\d+\.attn\.(qkv|proj)"},
        {"target_modules": "all-linear", "use_rslora": True},
        {"target_modules": ["qkv"], "modules_to_save": ["class_embedder"]},
        {"target_modules": ["qkv", "proj"], "exclude_modules": ["backbone.blocks.1.attn.qkv"]},
        {"target_modules": ["qkv"], "layers_to_transform": [0], "rank_pattern": {"qkv": 2}},
    ],
)
def test_what_peft_itself_made_is_read(base: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    from peft import LoraConfig, get_peft_model

    theirs: Any = get_peft_model(pw.load(base), LoraConfig(r=4, init_lora_weights=False, **settings))
    with torch.no_grad():
        for p in (p for p in theirs.parameters() if p.requires_grad):
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    theirs.save_pretrained(tmp_path / "theirs")
    x, t, labels = torch.randn(2, 3, 8, 8), torch.tensor([0.2, 0.7]), torch.tensor([0, 1])
    with torch.no_grad():
        found = pw.load(base, adapter=tmp_path / "theirs")(x, t, labels)
        assert torch.allclose(found, theirs.base_model.model(x, t, labels), atol=1e-5)


def test_the_diffusers_pipeline_draws_the_same_images(adapted: Any, base: Path) -> None:
    pytest.importorskip("diffusers", reason="the pipeline needs diffusers")
    from pixelwright.diffusion.sample import noise_of
    from pixelwright.hub.diffusers import PixelDenoiserPipeline

    one = train(adapted("one", adapter=WIDE))
    trainer = build_trainer(adapted("two"), source=Named(("wug", "red circle")))
    two = trainer.run()
    pipe = PixelDenoiserPipeline.from_model(pw.load(base))
    pipe.set_progress_bar_config(disable=True)

    def drawn(labels: Any) -> torch.Tensor:
        noise = noise_of(range(2), (8, 8), 3)
        images = pipe(labels, latents=noise, num_inference_steps=3, guidance_scale=2.0).images
        return torch.stack([torch.tensor(list(image.tobytes())) for image in images])

    def expected(adapter: Any, labels: Any) -> torch.Tensor:
        settings = pw.SamplerSettings(solver="euler", steps=3, guidance_scale=2.0)
        images = pw.sample(pw.load(base, adapter=adapter), labels, settings, seed=3, start_index=0)
        return images.flatten(1)

    labels = ["red circle", "blue star"]
    pipe.load_lora_weights(one, adapter_name="one")
    assert torch.equal(drawn(labels), expected(one, labels))
    assert not torch.equal(drawn(labels), expected(None, labels))
    pipe.set_adapters("one", 0.5)
    assert torch.equal(drawn(labels), expected({one: 0.5}, labels))
    pipe.unload_lora_weights()
    assert torch.equal(drawn(labels), expected(None, labels)) and not pipe.get_active_adapters()
    pipe.load_lora_weights(two / "adapter")
    assert torch.equal(drawn(["wug", "wug"]), expected(two, ["wug", "wug"]))
    with pytest.raises(UserError, match='no adapter "one" is loaded'):
        pipe.set_adapters(["one"])


def test_the_command_line_draws_with_adapters_and_merges_them(
    adapted: Any, base: Path, tmp_path: Path
) -> None:
    run = train(adapted(adapter=WIDE))
    drawn, merged = tmp_path / "drawn", tmp_path / "merged"
    more = ["--labels", "0-3", "--steps", "3", "--device", "cpu"]
    assert main(["sample", str(base), "--adapter", f"{run}=0.5", "--out", str(drawn), *more]) == 0
    assert main(["convert", str(base), str(merged), "--merge-adapter", f"{run}=0.5"]) == 0
    assert main(["sample", str(merged), "--out", str(tmp_path / "again"), *more]) == 0
    for file in drawn.glob("0*.png"):
        assert torch.equal(load_png(file), load_png(tmp_path / "again" / file.name))
    assert same_weights(pw.load(merged), pw.load(base, adapter={run: 0.5}))


def test_other_commands_take_adapters(adapted: Any, base: Path, tmp_path: Path) -> None:
    """As they take the model that an adapter is merged into; a report tells the two weights apart."""
    run, photo = train(adapted(adapter=WIDE)), tmp_path / "photo.png"
    save(pw.load(base, adapter={run: 0.5}), tmp_path / "merged")
    save_png(torch.arange(192, dtype=torch.uint8).view(8, 8, 3), photo)
    folder = tmp_path / "samples"
    words = ["sample", str(base), "--labels", "all", "--out", str(folder), "--steps", "2", "--device", "cpu"]
    assert main(words) == 0
    reference = tmp_path / "reference.npz"
    assert main(["reference", str(folder), str(reference), "--features", "pixels", "--device", "cpu"]) == 0
    few = ["--num-samples", "24", "--batch-size", "8", "--reference", str(reference)]
    commands = {
        "evaluate": ["evaluate", "MODEL", *few],
        "edit": ["edit", str(photo), "--model", "MODEL", "--target", "red circle"],
        "restore": [
            "restore",
            str(photo),
            "--model",
            "MODEL",
            "--task",
            "colourise",
            "--target",
            "red circle",
        ],
    }
    found = {}
    adapter = ["--adapter", f"{run}=0.5"]
    ways = {"with": (base, adapter), "merged": (tmp_path / "merged", []), "without": (base, [])}
    for name, words in commands.items():
        for way, (model, more) in ways.items():
            out = tmp_path / f"{name}-{way}"
            given = [str(model) if word == "MODEL" else word for word in words]
            fast = ["--steps", "2", "--device", "cpu", "--precision", "fp32", "--out", str(out)]
            assert main([*given, *more, *fast]) == 0, name
            found[name, way] = load_png(out / "photo.png") if name != "evaluate" else read_report(out)
    for name in ("edit", "restore"):
        assert torch.equal(found[name, "with"], found[name, "merged"]), name
        assert not torch.equal(found[name, "with"], found[name, "without"]), name
    one, merged, without = (found["evaluate", way] for way in ways)
    assert one.images.checksum == merged.images.checksum != without.images.checksum
    assert one.name == "base + run" and " + 0.5 x " in one.generation["weights"]


def test_frozen_matrices_in_bf16(adapted: Any) -> None:
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this processor has no products in bf16")
    trainer = build_trainer(adapted(precision="bf16", adapter={"frozen_dtype": "bf16"}))
    kinds = {p.dtype for n, p in trainer.model.named_parameters() if n.endswith("base_layer.weight")}
    assert kinds == {torch.bfloat16}
    assert {p.dtype for p in trainer.parameters} == {torch.float32}
    trainer.run()
    assert trainer.averaged().dtype == torch.float32


# ---------------------------------------------------------------- mistakes
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"adapter": {"targets": ("qvk",)}}, 'adapter.targets: nothing matches "qvk", did you mean'),
        ({"adapter": {"targets": ("qkv",), "detailer": True}}, 'add "detailer.*" to these'),
        ({"adapter": {"modules_to_save": ("nothing",)}}, 'modules_to_save: nothing matches "nothing"'),
        ({"adapter": {"rank": 17}}, "adapter.rank is 17, above 16, the width of"),
        ({"init": None}, "adapter is given without init"),
        ({"freeze": ("x",)}, "leave out train_only and freeze"),
        ({"adapter": {"frozen_dtype": "bf16"}}, "adapter.frozen_dtype is bf16, precision fp32"),
        (
            {"subject": SubjectConfig("wug", prior_share=0.3)},
            "subject.prior_share is 0.3, but there are no prior images",
        ),
        ({"subject": SubjectConfig("wug", prior_prompts=("a dog",))}, "draws from classes: leave it out"),
    ],
)
def test_mistakes_in_the_settings(adapted: Any, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as error:
        train(adapted(**changes))
    assert told in str(error.value) and "\n" not in str(error.value)


def test_mistakes_in_the_files(adapted: Any, base: Path, tmp_path: Path, tiny: Tiny) -> None:
    run = train(adapted())
    other = pw.create("dip-ti-4", num_classes=24, hidden_size=32, depth=2, num_heads=2)
    save(other, tmp_path / "other")
    folder = run / "adapter"

    def copy(name: str) -> Path:
        return Path(shutil.copytree(folder, tmp_path / name))

    cut, foreign, unknown, bare = map(copy, ("cut", "foreign", "unknown", "bare"))
    (cut / "adapter_model.safetensors").write_bytes((cut / "adapter_model.safetensors").read_bytes()[:-64])
    (foreign / "model_config.json").unlink()
    settings = json.loads((unknown / "adapter_config.json").read_text())
    (unknown / "adapter_config.json").write_text(json.dumps({**settings, "bias": "all"}))
    (bare / "adapter_model.safetensors").unlink()
    cases: list[tuple[Any, Any, str]] = [
        (tmp_path / "other", folder, "is an adapter of another model"),
        (tmp_path / "other", foreign, "is it an adapter of another model"),
        (base, cut, "damaged"),
        (base, unknown, "uses bias, which is not supported"),
        (base, bare, "does not exist"),
        (base, base, "holds no adapter"),
        (base, {folder: "x"}, "the weight of adapter"),
    ]
    merged = pw.load(base, adapter=folder)
    save(merged, tmp_path / "merged")
    cases += [
        (tmp_path / "merged", folder, "is merged into this model already"),
        (base, [folder, run], "is given twice"),
        (run, None, "holds an adapter: give the model it is for"),
    ]
    for model, adapter, told in cases:
        with pytest.raises(UserError) as error:
            pw.load(model, adapter=adapter)
        assert told in str(error.value) and "\n" not in str(error.value), error.value
