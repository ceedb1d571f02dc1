"""`pixelwright sample`: draw images from a trained model."""

import dataclasses
import json
from pathlib import Path

import torch
from jsonargparse import Namespace
from torch import Tensor
from tqdm import tqdm

import pixelwright as pw
from pixelwright.cli import sampler
from pixelwright.cli.labels import labels_for, parse_labels
from pixelwright.cli.parsing import MODEL, Parser, image_size
from pixelwright.config import NonNegativeInt, PositiveInt
from pixelwright.diffusion.solvers import Step
from pixelwright.errors import UserError
from pixelwright.files import write_text
from pixelwright.images import NOTE, png_name, save_grid, save_png
from pixelwright.models.conditions import Condition
from pixelwright.models.config import DenoiserConfig, TextNote
from pixelwright.text import encode_for
from pixelwright.text.config import read_prompts

GRID = 100  # most images in grid.png
COUNT = 16  # images without --labels and --num-images

DESCRIPTION = f"""Draw images from a trained model: PNG files by index and class or prompt, samples.jsonl with
what each was drawn from, and grid.png of the first {GRID}.

A model of classes draws them in turn, or --labels; one of captions draws --prompt or --prompts. Image i
depends on the seed and on i alone. The sampler settings that are used are printed. --help=advanced shows all
options."""

EXAMPLES = """  pixelwright sample runs/first --out samples
  pixelwright sample runs/first --labels "dog*8, cat*4" --out pets
  pixelwright sample runs/first --step 1500 --weights raw --labels all --out early
  pixelwright sample runs/first --labels "golden retriever" 7,7,7 --out dogs --guidance-scale 2.5 --seed 3
  pixelwright sample models/dip-xl-16 --labels all --out all --steps 100 --solver euler \\
      --guidance-scale 2.9 --guidance-interval 0.11 0.97 --batch-size 32
  pixelwright sample models/pixeldit-t2i --prompt "a fox in the snow" --size 1024x768 --out fox"""


def parser() -> Parser:
    """Model, labels, folder, and the settings of the sampler."""
    usage = "pixelwright sample MODEL --out DIR [--OPTION VALUE ...]"
    parser = Parser("sample", DESCRIPTION, EXAMPLES, usage)
    add = parser.add_argument
    add("model", metavar="MODEL", help=MODEL)
    add("--out", type=str, required=True, metavar="DIR", help="folder for the images")
    add("--overwrite", action="store_true", help="write into a folder that holds files")
    add = parser.section("what to draw")
    help_text = 'numbers, ranges (0-9), class names, "all", each perhaps with *N; one image per label'
    add("--labels", nargs="+", type=str, default=[], metavar="LABEL", help=help_text)
    add("--prompt", nargs="+", type=str, default=[], metavar="TEXT", help="one image per prompt")
    add("--prompts", type=str | None, metavar="FILE", help="a text file with one prompt a line")
    add("--negative", type=str | None, metavar="TEXT", help="prompt that guidance leads away from")
    help_text = f"how many images: labels or prompts in turn (without --labels: classes, evenly; {COUNT})"
    add("--num-images", type=PositiveInt | None, metavar="N", help=help_text)
    help_text = "N, ROWS COLUMNS or WIDTHxHEIGHT (default: the model's own)"
    add("--size", type=str, nargs="+", metavar="N", help=help_text)
    add("--seed", type=int, default=0, help="seed of the noise")
    sampler.add_arguments(parser, batch_size=16)
    add = parser.section("further options", advanced=True)
    add("--start-index", type=NonNegativeInt, default=0, help="index of the first image")
    help_text = "folder or hub name of the text encoder (default: the one the model names)"
    add("--text-encoder", type=str | None, metavar="PATH", help=help_text)
    return parser


def run(options: Namespace) -> None:
    """Draw and write the images batch by batch; nothing is written before the first batch is drawn."""
    out = Path(options.out)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; give a folder")
    if out.is_dir() and any(out.iterdir()) and not options.overwrite:
        raise UserError(f"--out {out} holds files already; give another folder, or --overwrite")
    named = sampler.Named(options, options.model)
    config = named.config
    if config.image_size is None and options.size is None:
        raise UserError(f"{config.name} does not say the size of its images; give --size, such as --size 256")
    chosen = sampler.choose(options, config)
    condition, words = _condition(options, config, named.device)
    print(chosen.text)
    model = named.accelerated()
    weights = {} if options.weights is None else {"weights": options.weights}
    weights |= {"adapter": " ".join(options.adapter)} if named.adapter else {}
    starts = range(0, len(condition), options.batch_size)
    shown: list[Tensor] = []
    lines: list[str] = []
    with tqdm(total=len(starts) * chosen.sampler.steps, unit="step", disable=None, delay=0.5) as bar:

        def advance(_: Step) -> None:
            bar.update()

        for start in starts:
            images = pw.sample(
                model,
                condition[start : start + options.batch_size],
                chosen.sampler,
                size=image_size(options.size),
                seed=options.seed,
                start_index=options.start_index + start,
                callback=advance,
            )
            for index, image in enumerate(images, options.start_index + start):
                word = words[index - options.start_index]
                name = png_name(index, word)
                what = {
                    "model": named.source,
                    **weights,
                    "drawn": word,
                    "seed": str(options.seed),
                    "index": str(index),
                }
                note = json.dumps({"file": name, **what, **chosen.as_dict()}, ensure_ascii=False)
                save_png(image, out / name, what | {"sampler": chosen.text, NOTE: note})
                lines.append(note)
            shown += list(images[: max(0, GRID - start)])
    _note(out / "samples.jsonl", lines)
    scale = max(1, 64 // shown[0].shape[0])
    save_grid(torch.stack(shown), out / "grid.png", scale=scale, captions=words[: len(shown)])
    print(f"{len(condition)} images are in {out}; {out / 'grid.png'} shows {len(shown)} of them together")


def _note(path: Path, lines: list[str]) -> None:
    """Add lines to a list of samples, in place of those about the same files."""
    files = {line.split(",")[0] for line in lines}
    before = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    kept = [line for line in before if line.split(",")[0] not in files]
    write_text(path, "\n".join([*kept, *lines]) + "\n")


def _condition(
    options: Namespace, config: DenoiserConfig, device: torch.device
) -> tuple[Condition, list[str]]:
    """The labels, or the features of the prompts, of which the encoder's memory is free again; and for each
    image the class or prompt as a text."""
    prompts, count = list(options.prompt), options.num_images
    if not config.takes_text:
        for name in ("prompt", "prompts", "negative", "text_encoder"):
            if options[name]:
                option = f"--{name.replace('_', '-')}"
                classes_of = config.class_names or (f"0 to {config.num_classes - 1}",)
                known = ", ".join(classes_of[:12]) + (", ..." if len(classes_of) > 12 else "")
                text = f"{option} is given, but {config.name} draws from classes; give --labels ({known})"
                raise UserError(text)
        classes = (config.num_classes, config.class_names)
        if not options.labels:
            count = count or COUNT
            spread = f" spread over {config.num_classes} classes; --labels chooses" if classes[0] > 1 else ""
            print(f"drawing {count} images{spread}")
        if count is not None:
            labels = labels_for(options.labels or ["balanced"], count, *classes, options.seed).tolist()
        else:
            labels = parse_labels(options.labels, *classes)
        names = config.class_names or [f"class {label}" for label in range(config.num_classes)]
        return torch.tensor(labels), [names[label] for label in labels]
    if len(prompts) > 1 and not any(" " in prompt for prompt in prompts):
        whole = " ".join(prompts)
        several = "prompts of one word each go into a file, --prompts FILE"
        raise UserError(f'did you mean one prompt, --prompt "{whole}"? ({several})')
    if options.prompts is not None:
        prompts += read_prompts(Path(options.prompts), "--prompts")
    if options.labels or not prompts:
        raise UserError(f"{config.name} draws from captions; give --prompt or --prompts instead of --labels")
    prompts = [prompts[i % len(prompts)] for i in range(count or len(prompts))]
    if options.text_encoder is not None:
        note = config.text or TextNote("gemma")
        config = dataclasses.replace(config, text=dataclasses.replace(note, path=options.text_encoder))
    return encode_for(config, prompts, options.negative or "", device).to("cpu"), prompts
