"""The model card of a pipeline: what it draws, how to use it, recipe, source, licence and samples."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from pixelwright.diffusion.guidance import interval_words
from pixelwright.files import write_text
from pixelwright.html import templates
from pixelwright.models.config import DenoiserConfig, SamplerPreset

CARD, SAMPLES = "README.md", "samples"


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
    names = [f"{SAMPLES}/{i:03d}.png" for i in range(len(samples))]
    for name, image in zip(names, samples, strict=True):
        (folder / SAMPLES).mkdir(exist_ok=True)
        image.save(folder / name)
    sampler, source = config.sampler or SamplerPreset(), config.provenance
    files = () if source is None else source.files
    digests = (source and source.sha256) or ("not recorded",) * len(files)
    parts = (type(part).__name__.removesuffix("Config") for part in (config.backbone, config.detailer))
    card = templates().get_template("card.md.j2")
    text = card.render(
        config=config,
        parameters=parameters,
        repository=repository,
        parts=" with ".join(parts),
        sampler=sampler,
        interval=interval_words(sampler),
        files=list(zip(files, digests, strict=True)),
        licence=source and source.licence,
        samples=names,
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
