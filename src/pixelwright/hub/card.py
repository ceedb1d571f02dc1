"""The model card of a pipeline: what it draws, how to use it, recipe, source, licence and samples."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from pixelwright.diffusion.guidance import interval_words
from pixelwright.files import write_text
from pixelwright.models.config import DenoiserConfig, SamplerPreset

CARD, SAMPLES = "README.md", "samples"
_TEMPLATE = """---
library_name: diffusers
pipeline_tag: {task}
{licence_key}tags:
- pixelwright
- pixel-space-diffusion
---

# {name}

A pixel-space diffusion transformer without a VAE: {parts}, {parameters:,} parameters, for {drawn} at {size}.

## Use

```python
from pixelwright.hub.diffusers import PixelDenoiserPipeline

pipe = PixelDenoiserPipeline.from_pretrained("{repository}")
image = pipe({argument}, num_inference_steps={steps}, guidance_scale={scale:g}).images[0]
```

## Recipe

{recipe}

## Source

{source}

## Licence

{licence}

## Samples

{samples}
"""


def write_card(
    folder: Path,
    config: DenoiserConfig,
    parameters: int,
    repository: str,
    samples: Sequence[Image.Image] = (),
) -> None:
    """Write the card and its samples into a saved pipeline, unless there is a card already."""
    if (folder / CARD).exists():
        return
    shown = []
    for i, image in enumerate(samples):
        (folder / SAMPLES).mkdir(exist_ok=True)
        image.save(folder / SAMPLES / f"{i:03d}.png")
        shown.append(f"![sample {i}]({SAMPLES}/{i:03d}.png)")
    sampler, source = config.sampler or SamplerPreset(), config.provenance
    recipe = f"Solver {sampler.solver}, {sampler.steps} steps, guidance {sampler.guidance_scale:g} "
    recipe += f"{interval_words(sampler)}, time shift {sampler.time_shift:g} from t = {sampler.time_start:g}."
    licence = source.licence if source is not None else None
    unknown = "No licence is recorded with the weights; say here under which terms they may be used."
    origin = "Trained with pixelwright."
    if source is not None:
        digests = source.sha256 or ("not recorded",) * len(source.files)
        files = zip(source.files, digests, strict=True)
        origin = f"{source.read} of " + ", ".join(f"`{file}` (SHA-256 `{digest}`)" for file, digest in files)
    text = _TEMPLATE.format(
        task="text-to-image" if config.takes_text else "unconditional-image-generation",
        licence_key="license: other\n" if licence else "",
        name=config.name,
        parts=f"{type(config.backbone).__name__} with {type(config.detailer).__name__}".replace("Config", ""),
        parameters=parameters,
        drawn="captions" if config.takes_text else f"{config.num_classes} classes",
        size="any size" if config.image_size is None else "x".join(map(str, config.image_size)) + " pixels",
        repository=repository,
        argument='prompt="a fox in the snow"' if config.takes_text else "class_labels=[0]",
        steps=sampler.steps,
        scale=sampler.guidance_scale,
        recipe=f"{recipe} {sampler.origin}" if config.sampler else "None is recorded with the weights.",
        source=origin,
        licence=licence or unknown,
        samples="\n".join(shown) or "None are given.",
    )
    write_text(folder / CARD, text)


def upload(folder: Path, repository: str, *, private: bool | None = None, **settings: Any) -> Any:
    """Send a folder to the hub; a card that is there stays. `settings` (token, commit_message, create_pr) are
    those of `huggingface_hub.upload_folder`."""
    import huggingface_hub

    token = settings.get("token")
    name = huggingface_hub.create_repo(repository, private=private, token=token, exist_ok=True).repo_id
    kept = CARD if huggingface_hub.file_exists(name, CARD, token=token) else None
    return huggingface_hub.upload_folder(repo_id=name, folder_path=folder, ignore_patterns=kept, **settings)
