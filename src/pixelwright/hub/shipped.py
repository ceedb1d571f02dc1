"""Small models that come with the package, found by name and without a network.

They are model folders under `models/` of the repository, which a wheel holds as `pixelwright/shipped/`.
"""

from pathlib import Path

from pixelwright.errors import UserError, nearest
from pixelwright.models.folder import CONFIG

PREFIX = "pixelwright/"
PACKAGE = Path(__file__).parents[1]
PLACES = (PACKAGE / "shipped", PACKAGE.parents[1] / "models")


def shipped() -> dict[str, Path]:
    """The folders of the models that are there, by name."""
    found = [file.parent for place in PLACES for file in sorted(place.glob(f"*/{CONFIG}"))]
    return {folder.name: folder for folder in found}


def find(source: str) -> Path | None:
    """The folder of the model called NAME or pixelwright/NAME, unless such a path is there; None: there is no
    model NAME. Raises UserError: none called pixelwright/NAME, naming those there are."""
    if Path(source).exists():
        return None
    known, name = shipped(), source.removeprefix(PREFIX)
    if name not in known and name != source and "/" not in name:
        there = nearest(name, known) if known else "; none come with this installation"
        raise UserError(f'no model "{source}" comes with the package{there}')
    return known.get(name)
