"""Write what `pixelwright info PRESET` prints, for every preset: anew whenever a model's arithmetic changes.

python benchmarks/figures.py      # two minutes
"""

import json

from pixelwright.models.presets import PRESETS
from pixelwright.training.summary import FIGURES, Info, describe


def row(info: Info) -> str:
    """The line of one preset."""
    parts = [[part.name, part.kind, part.parameters, part.flops] for part in info.parts]
    memory = {"sampling_bytes": info.sampling_bytes, "training_bytes": info.training_bytes}
    return f"{json.dumps(info.config.name)}: {json.dumps({'parts': parts, **memory})}"


if __name__ == "__main__":
    rows = ",\n".join(row(describe(config)) for config in PRESETS.values())
    FIGURES.write_text(f"{{\n{rows}\n}}\n")
