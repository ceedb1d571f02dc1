"""`pixelwright reference`: the statistics of a data set that `evaluate` compares with."""

from pathlib import Path

from jsonargparse import Namespace
from tqdm import tqdm

from pixelwright.cli.parsing import Parser, add_device
from pixelwright.config import NonNegativeInt, PositiveInt
from pixelwright.device import resolve_device
from pixelwright.evaluation.features import FORMS, open_extractor
from pixelwright.evaluation.images import open_images
from pixelwright.evaluation.references import KEEP, build_reference

DESCRIPTION = """Make a reference of all images of a data set: what `pixelwright evaluate` compares with.

The work is written down every half minute; the same command goes on where it was interrupted."""

EXAMPLES = """  pixelwright reference cifar10/train.zip cifar10.npz --features features/cifar10
  pixelwright reference imagenet/train imagenet-256.npz --size 256 --features inception"""


def parser() -> Parser:
    """Images, file, features."""
    parser = Parser("reference", DESCRIPTION, EXAMPLES)
    add = parser.add_argument
    add("images", metavar="SRC", help="a folder, a .zip, shards, or an .npz with arr_0")
    add("out", metavar="OUT", help="the file to write, a new .npz")
    add("--features", type=str, required=True, metavar="KIND[:PLACE]", help=FORMS)
    add("--size", type=PositiveInt | None, help="crop all images to N x N (default: as they are)")
    help_text = "images whose features are kept, for precision, recall and KID"
    add("--keep", type=NonNegativeInt, default=KEEP, help=help_text)
    add_device(add)
    return parser


def run(options: Namespace) -> None:
    """Make it and print what it is of."""
    extractor = open_extractor(options.features, resolve_device(options.device))
    images = open_images(options.images, options.size)
    out = Path(options.out).expanduser()
    with tqdm(total=len(images), unit="image", desc="reading", disable=None) as bar:
        made = build_reference(images, extractor, out, options.keep, bar.update)
    assert made.source is not None
    kept = 0 if made.kept is None else len(made.kept)
    print(f"{out}: {made.source.count} images, features: {extractor.info}, {kept} of them kept")
    for name, reason in list(images.skipped.items())[:20]:
        print(f"  skipped {name}: {reason}")
