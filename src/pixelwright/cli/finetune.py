"""`pixelwright finetune`: teach a model a subject or style from a few pictures."""

import math
from typing import Any, Literal

from jsonargparse import Namespace

from pixelwright.cli.parsing import MODEL, Parser, add_device
from pixelwright.config import NonNegativeInt, PositiveFloat, PositiveInt, read
from pixelwright.data import DataConfig, open_source
from pixelwright.device import keep_memory
from pixelwright.errors import UserError
from pixelwright.hub.checkpoint import load_config
from pixelwright.models.config import DenoiserConfig, SamplerSettings
from pixelwright.training import Interrupted, TrainConfig, train
from pixelwright.training.config import sampler_of
from pixelwright.training.finetune_config import AdapterConfig

DESCRIPTION = """Teach a model a subject or style from 1 to 500 pictures, by a LoRA adapter or in full.

A model of classes learns --class NAME beside its own classes, or the sub-folders of PICTURES as classes; one
of captions learns from the captions beside the pictures, or --prompt. The run folder gets the adapter,
samples, and a report of what is learned, forgotten and memorised. The same command again goes on where it
stopped, and `pixelwright train --run RUN --steps N` further, with its settings."""

EXAMPLES = """  pixelwright finetune models/dip-xl-16 photos --class axolotl --run runs/axolotl
  pixelwright finetune models/pixeldit-t2i dog --prompt "a photo of sks dog" --prior 100 \\
      --prior-prompts "a photo of a dog" --run runs/dog
  pixelwright finetune models/small logos --class logo --no-flip --steps 300 --rank 4 --run runs/logo"""

FEWEST_STEPS, MOST_STEPS, STEPS = 400, 4000, 200  # STEPS times the root of the number of pictures
WIDTH, LR = 1152, {"lora": 1e-4, "full": 1e-5}  # learning rates at this width; they go with 1 / width
LOOKS = 4  # sample grids, reports and checkpoints of a run


def parser() -> Parser:
    """Model, pictures, and what to make of them."""
    usage = "pixelwright finetune MODEL PICTURES --run DIR [--OPTION VALUE ...]"
    parser = Parser("finetune", DESCRIPTION, EXAMPLES, usage)
    add = parser.add_argument
    add("model", metavar="MODEL", help=MODEL)
    add("pictures", metavar="PICTURES", help="a folder, a .zip or shards of them")
    add("--run", type=str, required=True, metavar="DIR", help="folder for the run")
    add = parser.section("what the pictures show")
    add(
        "--class",
        dest="class_name",
        type=str | None,
        metavar="NAME",
        help="a class, of the model or a new one",
    )
    add("--prompt", type=str | None, metavar="TEXT", help="the caption of pictures that have none")
    add("--no-flip", action="store_true", help="do not mirror pictures: they have text, logos or sides")
    add("--aspects", action="store_true", help="keep the shape of pictures instead of cropping squares")
    add("--size", type=PositiveInt | None, help="side in pixels (default: the model's)")
    add = parser.section("what the model is to keep")
    add("--prior", type=NonNegativeInt, default=0, help="images drawn from the model first and mixed in")
    add(
        "--prior-prompts",
        nargs="+",
        type=str,
        default=[],
        metavar="TEXT",
        help="what these show, and what forgetting is measured by, for captions",
    )
    add("--features", type=str, default="pixels", help="what is compared by, as in evaluate")
    add = parser.section("training")
    add("--method", type=Literal["lora", "full"], default="lora", help="an adapter, or all weights")
    add("--rank", type=PositiveInt | None, help="of the adapter (default: 16)")
    detailed = "matrices in the detailer too, for colours and textures that the model never drew"
    add("--detailer", action="store_true", help=detailed)
    add("--steps", type=PositiveInt | None, help="(default: by the number of pictures)")
    add("--batch-size", type=PositiveInt, default=8, help="pictures per step")
    add("--lr", type=PositiveFloat | None, help="learning rate (default: by the width of the model)")
    help_text = "of the matrices beside an adapter (default: fp32)"
    add("--frozen-dtype", type=Literal["fp32", "bf16"] | None, help=help_text)
    add("--precision", type=Literal["auto", "bf16", "fp32"], default="auto", help="of the products")
    add("--seed", type=NonNegativeInt, default=0, help="of all that is random")
    add_device(add)
    return parser


def default_steps(pictures: int) -> int:
    """Steps for so many pictures: 400 for up to 4 of them, 1100 for 30, 2000 for 100, 4000 from 400 on."""
    return round(min(MOST_STEPS, max(FEWEST_STEPS, STEPS * math.sqrt(pictures))))


def config_of(options: Namespace) -> TrainConfig:
    """The settings of the run. Raises UserError: pictures or a model that cannot be read, options that do not
    go with the model."""
    model = load_config(options.model)
    side = options.size or (model.image_size or (None,))[0]
    if side is None:
        raise UserError(f"{options.model} does not say its image size: give --size")
    data = DataConfig(path=options.pictures, size=side, flip=not options.no_flip, aspects=options.aspects)
    steps = options.steps or default_steps(len(open_source(data)))
    looks = max(1, steps // LOOKS)
    drawn = sampler_of(model.sampler or SamplerSettings(steps=25, guidance_scale=2.0))
    lr = options.lr or LR[options.method] * WIDTH / model.backbone.hidden_size
    settings: dict[str, Any] = {
        "run": options.run,
        "model": {"preset": options.model},
        "init": options.model,
        "data": data,
        "adapter": _adapter(options),
        "subject": {
            "class_name": options.class_name,
            "prompt": options.prompt,
            "prior_images": options.prior,
            "prior_prompts": options.prior_prompts,
            "features": options.features,
        },
        "text": _text(model),
        "optim": {"lr": lr, "warmup": "3%", "cooldown": "25%"},
        "steps": steps,
        "batch_size": options.batch_size,
        "ema_decay": max(0.0, min(0.9999, 1 - 10 / steps)),
        "sample": {**drawn, "count": 16},
        **{"sample_every": looks, "checkpoint_every": looks, "log_every": max(1, min(20, steps // 20))},
        **{name: options[name] for name in ("seed", "device", "precision")},
    }
    return read(TrainConfig, settings)


def _adapter(options: Namespace) -> dict[str, Any] | None:
    given = {name: options[name] for name in ("rank", "frozen_dtype", "detailer") if options[name]}
    if options.method == "lora":
        return {**given, "alpha": options.rank or AdapterConfig.rank}
    for name in given:
        raise UserError(f"--{name.replace('_', '-')} is of an adapter: leave it out, or give --method lora")
    return None


def _text(model: DenoiserConfig) -> dict[str, Any] | None:
    if not model.takes_text:
        return None
    if model.text is None:
        raise UserError(f"{model.name} does not say its text encoder: name it in its config.json")
    return {"encoder": model.text.encoder, "path": model.text.path, "prefix": model.text.prefix}


def run(options: Namespace) -> int:
    """Train, and say how to draw with what came out; 130 where it was interrupted."""
    config = config_of(options)
    keep_memory()
    try:
        train(config)
    except Interrupted:
        return 130
    return 0
