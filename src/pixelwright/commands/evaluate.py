"""`pixelwright evaluate`: FID and its kin of images, against a reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from tqdm import tqdm

from pixelwright.commands.parsing import new_parser
from pixelwright.evaluation.images import ImageSet, open_images
from pixelwright.evaluation.measure import LABELS, Measurement, Settings, measure, to_dict
from pixelwright.evaluation.opening import FORMS, open_extractor
from pixelwright.evaluation.reference import Reference, read_reference
from pixelwright.files import write_text
from pixelwright.training.device import resolve_device

DESCRIPTION = """Measure images against a reference: FID, sFID, Inception Score, precision, recall and KID.

Every number comes with its noise: other images of the same source would differ by about so much."""

EXAMPLES = """  pixelwright evaluate samples --reference cifar10.npz --out report.json
  pixelwright evaluate samples.npz --reference VIRTUAL_imagenet256_labeled.npz --features inception"""


SHOWN = 20  # skipped images that are named on the screen


def parser() -> ArgumentParser:
    """Images, reference, features."""
    parser = new_parser("evaluate", DESCRIPTION, EXAMPLES)
    add = parser.add_argument
    add("images", metavar="IMAGES", help="a folder, a .zip, shards, or an .npz with arr_0")
    add("--reference", type=str, required=True, metavar="REF", help="an .npz: ours or one of ADM's")
    add("--features", type=str | None, metavar="KIND[:PLACE]", help=f"{FORMS} (default: the reference's)")
    add("--size", type=int | None, metavar="N", help="crop all images to N x N (default: as they are)")
    add("--out", type=str | None, metavar="FILE", help="write the report as JSON too")
    add("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1 or mps")
    return parser


def run(options: Namespace) -> None:
    """Measure and tell."""
    reference = read_reference(options.reference)
    extractor = open_extractor(features_of(options.features, reference), resolve_device(options.device))
    images = open_images(options.images, options.size)
    with tqdm(total=len(images), unit="image", desc="measuring", disable=None) as bar:
        found = measure(images.batches(64), reference, extractor, Settings(), bar.update)
    print(describe(found, images))
    if options.out is not None:
        write_text(Path(options.out).expanduser(), json.dumps(report(found, images), indent=2) + "\n")


def features_of(given: str | None, reference: Reference) -> str:
    """What `--features` says, or else what the reference was made with."""
    if given is not None:
        return given
    if reference.extractor is None:
        return "inception"
    if reference.extractor.place == "":
        return reference.extractor.kind
    return f"{reference.extractor.kind}:{reference.extractor.place}"


def report(found: Measurement, images: ImageSet) -> dict[str, Any]:
    """The whole measurement as plain data, with what was skipped and converted."""
    source = {"place": images.place, "skipped": images.skipped, "converted": dict(images.converted)}
    return {"images": source, **to_dict(found)}


def describe(found: Measurement, images: ImageSet) -> str:
    """The numbers, and what they rest on, in a few lines."""
    lines = [
        f"{found.count} images of {images.place} against {found.reference.place}, features: {found.extractor}"
    ]
    for name, estimate in found.metrics.items():
        label = found.distance if name == "fid" else LABELS[name]
        noise = "" if estimate.error is None else f" ± {estimate.error:.2g}"
        beyond = estimate.extrapolated
        bias = "" if beyond is None else f"   (without the bias of {found.count} images about {beyond:.4g})"
        lines.append(f"  {label:<18} {estimate.value:.5g}{noise}{bias}")
    lines += [f"  {LABELS[name]:<18} not measured: {why}" for name, why in found.left_out.items()]
    converted = ", ".join(f"{count} {mode}" for mode, count in images.converted.items())
    lines += [f"converted to RGB: {converted}"] if converted else []
    if images.skipped:
        lines.append(f"skipped {len(images.skipped)}:")
        lines += [f"  {name}: {why}" for name, why in list(images.skipped.items())[:SHOWN]]
    return "\n".join(lines)
