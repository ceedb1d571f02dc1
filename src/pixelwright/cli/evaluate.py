"""`pixelwright evaluate`: FID and its kin of a model or of images, against a reference."""

from pathlib import Path

from jsonargparse import Namespace

from pixelwright.cli import sampler
from pixelwright.cli.labels import labels_for
from pixelwright.cli.parsing import MODEL, Parser, image_size
from pixelwright.config import NonNegativeInt, PositiveInt
from pixelwright.device import resolve_device
from pixelwright.errors import UserError
from pixelwright.evaluation.evaluate import (
    FORMS,
    SWEPT,
    Scorer,
    best,
    opened,
    parse_axis,
    sweep_points,
    write_sweep,
)
from pixelwright.evaluation.features import FORMS as FEATURES
from pixelwright.evaluation.generate import Generation
from pixelwright.evaluation.images import open_images
from pixelwright.evaluation.measure import Report, Settings
from pixelwright.evaluation.report import HTML, JSON, as_json, metric_rows, summary, warnings, write_report
from pixelwright.files import write_text
from pixelwright.hub.adapters import FOLDER as ADAPTER
from pixelwright.hub.checkpoint import is_model
from pixelwright.hub.runs import is_checkpoint

DESCRIPTION = """Measure a model, or images that exist, against a reference: FID, sFID, Inception Score,
precision, recall and KID, each with its noise: other images of the same source would differ by about so much.

A MODEL draws its images first, under torchrun with any number of processes: image i depends on the seed and
on i alone. They are written batch by batch, and the same command goes on where it was stopped."""

EXAMPLES = """  pixelwright evaluate samples --reference cifar10.npz --out evaluations/samples
  pixelwright evaluate samples.npz --reference VIRTUAL_imagenet256_labeled.npz --features inception
  pixelwright evaluate runs/first --reference cifar10.npz --num-samples 10000 --out evaluations/first
  torchrun --standalone --nproc-per-node gpu --no-python -- \\
      pixelwright evaluate models/dip-xl-16 --reference VIRTUAL_imagenet256_labeled.npz --out evaluations/dip
  pixelwright evaluate runs/first --reference cifar10.npz --num-samples 5000 --out sweeps/first \\
      --sweep guidance_scale=1:4:0.25 guidance_interval=all,0.1:0.9"""

SHOWN = 20  # skipped images that are named on the screen
OF_ANY = {"subject", "reference", "features", "out", "size", "adm_float16", "patch_size", "device"}
OF_ANY |= {"imports", "debug"}
"""The options that images that exist have a use for, too."""


def parser() -> Parser:
    """Model or images, reference, features, and how the images of a model are drawn."""
    usage = "pixelwright evaluate MODEL|IMAGES --reference REF [--OPTION VALUE ...]"
    parser = Parser("evaluate", DESCRIPTION, EXAMPLES, usage)
    add = parser.add_argument
    help_text = f"{MODEL}; or images: a folder, .zip, shards or .npz"
    add("subject", metavar="MODEL|IMAGES", help=help_text)
    help_text = "reference statistics (.npz), which `pixelwright reference DATA REF` makes; or ADM's"
    add("--reference", type=str, required=True, metavar="REF", help=help_text)
    add("--features", type=str | None, metavar="KIND[:PLACE]", help=f"{FEATURES} (default: the reference's)")
    help_text = "folder for report.html and report.json, and for the images of a model, which needs it"
    add("--out", type=str | None, metavar="DIR", help=help_text)
    help_text = "of images: crop to N x N; of a model: N or ROWS COLUMNS"
    add("--size", type=int, nargs="+", metavar="N", help=help_text)
    help_text = "precision and recall as ADM's evaluator has them, from float16 distances"
    add("--adm-float16", action="store_true", help=help_text)
    help_text = "side of the patches whose seams are measured, in pixels (default: that of the model)"
    add("--patch-size", type=NonNegativeInt, default=0, help=help_text)
    add = parser.section("of a model")
    add("--num-samples", type=PositiveInt, default=50_000, help="images to draw")
    help_text = '"balanced" (default: each class in turn), "random", a file with one label a line, or labels'
    add("--labels", nargs="+", type=str, default=["balanced"], metavar="LABEL", help=help_text)
    add("--seed", type=int, default=0, help="of the noise")
    help_text = "evaluate every combination, such as guidance_scale=1:4:0.25 guidance_interval=all,0.1:0.9; "
    help_text += f"settings: {', '.join(SWEPT)}"
    add("--sweep", type=str, nargs="+", default=[], metavar="SETTING=VALUES", help=help_text)
    sampler.add_arguments(parser, batch_size=64)
    add = parser.section("further options of a model", advanced=True)
    add("--name", type=str | None, help="its name in the report (default: from its path)")
    add("--images", choices=list(FORMS), default="npz", help="how its images are kept; npz is ADM's")
    add("--keep-images", action="store_true", help="of a sweep: keep the images of every point")
    return parser


def run(options: Namespace) -> None:
    """Measure, print, write the report."""
    evaluate = _evaluate_model if is_model(options.subject) else _evaluate_images
    evaluate(options)


def _settings(options: Namespace) -> Settings:
    return Settings(adm_float16=options.adm_float16, patch_size=options.patch_size)


# ---------------------------------------------------------------- images that exist
def _evaluate_images(options: Namespace) -> None:
    for name, usual in parser().defaults().items():
        if name not in OF_ANY and options[name] != usual:
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option} is for a model, and {options.subject} is none: leave it out")
    if options.size is not None and len(options.size) != 1:
        raise UserError(f"--size is {' '.join(map(str, options.size))}: give one number for images")
    settings = _settings(options)
    scorer = Scorer.open(options.reference, options.features, resolve_device(options.device), settings)
    images = open_images(options.subject, options.size[0] if options.size else None)
    report = scorer.measure(Path(options.subject).name, images)
    print(describe(report))
    if options.out is None:
        return
    out = Path(options.out).expanduser()
    if out.suffix == ".json":
        write_text(out, as_json(report))
    elif out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: give a folder, or a name that ends in .json")
    else:
        write_report(report, out, images)
        print(f"report: {out / HTML}")


def describe(report: Report) -> str:
    """The numbers, behind what they rest on, in a few lines."""
    images = report.images
    against = f"against {report.reference.path}, features: {report.extractor}"
    lines = [f"{images.count} images of {images.path} {against}", *warnings(report)]
    for title, value, error, beyond in metric_rows(report):
        noise = f" ± {error:.2g}" if error != "" else ""
        bias = f"   (without its bias: {beyond})" if beyond else ""
        if isinstance(beyond, float):
            bias = f"   (without the bias of {images.count} images about {beyond:.4g})"
        lines.append(f"  {title:<18} {value if isinstance(value, str) else f'{value:.5g}'}{noise}{bias}")
    if skipped := images.skipped:
        lines.append(f"skipped {len(skipped)}:")
        lines += [f"  {name}: {why}" for name, why in list(skipped.items())[:SHOWN]]
    return "\n".join(lines)


# ---------------------------------------------------------------- a model
def _evaluate_model(options: Namespace) -> None:
    if options.out is None:
        raise UserError("a model needs --out DIR, where its images and the report go")
    out = Path(options.out).expanduser()
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: give a folder")
    axes = [parse_axis(text) for text in options.sweep]
    if options.keep_images and not axes:
        raise UserError("--keep-images is for a --sweep; the images of one evaluation are kept anyway")
    named = sampler.Named(options, options.subject)
    source, config, adapter = named.source, named.config, named.adapter
    generation = plan(named, options)
    points = sweep_points(generation, axes)
    classes = (config.num_classes, config.class_names)
    labels = labels_for(options.labels, generation.num_samples, *classes, generation.seed)
    name = options.name or " + ".join([name_of(source, options.weights), *map(name_of, adapter or ())])
    measured = (options.reference, options.features, _settings(options))
    how = options.images, options.compile, options.attention, options.weights
    with opened(source, name, labels, options.device, *measured, *how, adapter=adapter) as evaluation:
        layout = evaluation.layout
        if not axes:
            if layout.main:
                print(sampler.choose(options, config).text)
            if report := evaluation.run(generation, out):
                print(f"{describe(report)}\nreport: {out / HTML}")
            return
        reports = evaluation.sweep(points, out, options.keep_images, lambda report: print(_line(report)))
        if layout.main:
            try:
                write_sweep(f"Sweep of {name}", reports, out)
            except ImportError:
                raise UserError('the page needs matplotlib: pip install "pixelwright[train]"') from None
            print(f"best: {_line(best(reports))}")
            print(f"page: {out / 'sweep.html'}; every point has its {JSON} below {out}")


def plan(named: sampler.Named, options: Namespace) -> Generation:
    """The settings, but for the checksum of the weights. Raises UserError for settings that cannot be."""
    config = named.config
    if config.takes_text:
        raise UserError(f"{config.name} draws from captions; `pixelwright evaluate` draws from classes")
    size = image_size(options.size) or config.image_size
    if size is None:
        raise UserError("the model's config has no image_size; give --size ROWS COLUMNS")
    config.check_size(*size)
    more = sampler.choose(options, config).as_dict()
    more |= {name: options[name] for name in ("num_samples", "seed", "batch_size")}
    more |= {"labels": " ".join(options.labels), "precision": named.precision}
    return Generation(model=config.name, weights="", size=size, **more)


def name_of(source: str, weights: str | None = None) -> str:
    """What a report calls a model or adapter: its run, folder or file; of a checkpoint run and step."""
    path = Path(source)
    words = [path.stem or source] if weights is None else [path.stem or source, weights]
    if path.name in ("model", ADAPTER):
        words[0] = path.resolve().parent.name
    elif is_checkpoint(path):
        words = [path.resolve().parent.parent.name, *words[1:], words[0]]
    return " ".join(words)


def _line(report: Report) -> str:
    return f"{report.name}: {summary(report)}"
