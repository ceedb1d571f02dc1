"""Objects and their colours for GenEval's rules, by Mask2Former and CLIP from `transformers` (extra `eval`).

GenEval's own scorer has the same two models in mmdet and open_clip. Weights, resizing and rounding differ a
little, so what comes of this is not the official score.
"""

from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pixelwright.errors import UserError
from pixelwright.evaluation.prompts.geneval import COLOURS, THRESHOLD, Detection

DETECTOR = "facebook/mask2former-swin-small-coco-instance"
CLIP = "openai/clip-vit-large-patch14"
TEMPLATES = tuple(f"a photo of a {{colour}}{end}" for end in (" {name}", "-colored {name}", " object"))
BLANK = (0x99, 0x99, 0x99)  # around an object whose colour is asked for

GENEVAL_NAMES = {
    "aeroplane": "airplane", "diningtable": "dining table", "keyboard": "computer keyboard",
    "motorbike": "motorcycle", "mouse": "computer mouse", "pottedplant": "potted plant",
    "remote": "tv remote", "sofa": "couch", "tvmonitor": "tv",
}  # fmt: skip
"""GenEval's names of COCO's classes, where some detectors have others."""


def _load(what: str, path: str, *kinds: str) -> list[Any]:
    """An object of each of these classes of transformers, from one place."""
    try:
        return [getattr(import_module("transformers"), kind).from_pretrained(path) for kind in kinds]
    except ImportError as error:
        raise UserError(f'scoring needs transformers ({error}): pip install "pixelwright[eval]"') from None
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f'{what} "{path}" cannot be loaded ({reason}): give a folder or a hub name') from None


class Mask2Former:
    """Finds objects; `path` is a folder or a hub name of an instance segmentation model on COCO."""

    def __init__(self, path: str = DETECTOR, device: torch.device | str = "cpu"):
        kinds = ("AutoImageProcessor", "Mask2FormerForUniversalSegmentation")
        self.path, self.device = path, device
        self.processor, model = _load("the detector", path, *kinds)
        self.model = model.to(device).eval()
        labels = self.model.config.id2label
        self.names = {i: GENEVAL_NAMES.get(str(label), str(label)) for i, label in labels.items()}

    def check(self, classes: Iterable[str]) -> None:
        """Raise UserError unless the detector knows the classes."""
        unknown = sorted(set(classes) - set(self.names.values()))
        if unknown:
            text = f'the detector "{self.path}" does not know "{unknown[0]}"'
            raise UserError(f"{text}: give one trained on COCO")

    @torch.no_grad()
    def __call__(self, image: Image.Image) -> list[Detection]:
        inputs = self.processor(images=image, return_tensors="pt").to(self.device)
        sizes, outputs = [(image.height, image.width)], self.model(**inputs)
        (result,) = self.processor.post_process_instance_segmentation(
            outputs, threshold=THRESHOLD, target_sizes=sizes, return_binary_maps=True
        )
        masks = result["segmentation"]
        found = []
        for info, part in zip(result["segments_info"], () if masks is None else masks, strict=False):
            mask = np.asarray(part.cpu()) > 0.5
            rows, columns = np.nonzero(mask)
            ends = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            left, top, right, bottom = map(float, ends)
            name = self.names[info["label_id"]]
            found.append(Detection(name, float(info["score"]), (left, top, right, bottom), mask))
        return found


class ClipColours:
    """Names the colours of objects; `path` is a folder or a hub name of a CLIP model."""

    def __init__(self, path: str = CLIP, device: torch.device | str = "cpu"):
        self.path, self.device = path, device
        model, self.processor = _load("the colour classifier", path, "CLIPModel", "AutoProcessor")
        self.model = model.to(device).eval()
        self._colours: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, image: Image.Image, things: Sequence[Detection]) -> list[str]:
        """The colours of objects of one class; the rest of the image is blanked out."""
        crops = [crop(image, thing) for thing in things]
        pixels = self.processor(images=crops, return_tensors="pt").to(self.device)
        features = _unit(_pooled(self.model.get_image_features(**pixels)))  # [N, C]
        likeness = features @ self._directions(things[0].name).T  # [N, colours]
        return [COLOURS[int(best)] for best in likeness.argmax(1)]

    def _directions(self, name: str) -> Tensor:
        """For each colour the mean direction of its texts, [colours, C]."""
        if name not in self._colours:
            texts = [t.format(colour=colour, name=name) for colour in COLOURS for t in TEMPLATES]
            tokens = self.processor(text=texts, padding=True, return_tensors="pt").to(self.device)
            features = _unit(_pooled(self.model.get_text_features(**tokens)))
            groups = features.unflatten(0, (len(COLOURS), len(TEMPLATES)))  # [colours, templates, C]
            self._colours[name] = _unit(groups.mean(1))
        return self._colours[name]


def crop(image: Image.Image, thing: Detection) -> Image.Image:
    """An object alone, on grey."""
    blank = Image.new("RGB", image.size, BLANK)
    alone = Image.composite(image, blank, Image.fromarray(thing.mask.astype(np.uint8) * 255))
    left, top, right, bottom = map(int, thing.box)
    return alone.crop((left, top, right, bottom))


def _pooled(output: Any) -> Tensor:
    """The features themselves; transformers 5 wraps them."""
    return output if isinstance(output, Tensor) else output.pooler_output


def _unit(features: Tensor) -> Tensor:
    return features / features.norm(dim=-1, keepdim=True)
