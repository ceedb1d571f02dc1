"""`pixelwright convert`: weights from one layout to another."""

import tempfile
from typing import Any, Literal

import yaml
from jsonargparse import Namespace

from pixelwright.cli.parsing import WEIGHTS, Parser, adapters_of, add_adapter, add_imports
from pixelwright.errors import UserError
from pixelwright.hub.checkpoint import load
from pixelwright.hub.convert import convert
from pixelwright.hub.presets import SAMPLER_PRESETS
from pixelwright.models.folder import save

DESCRIPTION = f"""Read a model in any layout and write it as a folder, or in the published layout.

Sources: a model folder, a run or one of its checkpoints, a published checkpoint (.ckpt, .pth), a
safetensors file (plain or with the prefixes of repacks), the index of a sharded one, or
hf://OWNER/NAME[/FILE]. The architecture is found out from names and shapes; nothing in a file is executed,
and the model is never held in memory as a whole.

sampler presets: {", ".join(SAMPLER_PRESETS)}"""

EXAMPLES = """  pixelwright convert imagenet256_pixeldit_xl_epoch320.ckpt models/pixeldit-xl --dtype bf16
  pixelwright convert models/pixeldit-xl back.ckpt --to public
  pixelwright convert runs/mine models/mine --weights power-0.05
  pixelwright convert models/base models/mine --merge-adapter runs/mine runs/style=0.7"""


def parser() -> Parser:
    """Source, target, and what changes on the way."""
    parser = Parser("convert", DESCRIPTION, EXAMPLES)
    add = parser.add_argument
    add("source", metavar="SOURCE", help="the model to read")
    add("out", metavar="OUT", help="folder to make, or with --to public a .ckpt or .safetensors file")
    add("--weights", type=str | None, metavar="NAME", help=WEIGHTS)
    add_adapter(add, "--merge-adapter")
    help_text = "a folder, or a file with the published key names"
    add("--to", type=Literal["folder", "public"], default="folder", help=help_text)
    help_text = "convert the weights (default: as they are)"
    add("--dtype", type=Literal["bf16", "fp16", "fp32"] | None, help=help_text)
    help_text = "sampler preset to record (default: that of the published result, where it is known)"
    add("--sampler", type=str | None, metavar="PRESET|none", help=help_text)
    help_text = "fields of the config that the file does not tell, such as in_context_start=2"
    add("--set", type=str, nargs="+", default=[], metavar="NAME=VALUE", help=help_text)
    add_imports(add)
    return parser


def run(options: Namespace) -> None:
    """Convert the source, with the adapters that are to be merged, and say what was read and written."""
    settings = {name: options[name] for name in ("weights", "to", "dtype", "sampler")}
    told = _told(options["set"])
    if adapter := adapters_of(options.merge_adapter):
        with tempfile.TemporaryDirectory(prefix="merged-") as folder:
            save(load(options.source, settings.pop("weights"), adapter, **told), folder)
            config = convert(folder, options.out, **settings)
    else:
        config = convert(options.source, options.out, **settings, settings=told)
    provenance, preset = config.provenance, config.sampler
    print(f"{options.out}: {config.name}" + (f", read from {provenance.read}" if provenance else ""))
    print(f"sampler preset: {preset.name} ({preset.origin})" if preset else "sampler preset: none is known")


def _told(words: list[str]) -> dict[str, Any]:
    """NAME=VALUE by name, values as in YAML. Raises UserError: something else."""
    told = {}
    for name, _, value in (word.partition("=") for word in words):
        if not value:
            raise UserError(f'--set "{name}" has no value: give NAME=VALUE, such as in_context_start=2')
        told[name] = yaml.safe_load(value)
    return told
