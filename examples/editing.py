"""Edit and restore shapes with a model of `make demo`: editing.png, a column for each of eight pictures.

python examples/editing.py runs/demo/pixeldit
"""

import sys
from pathlib import Path

import torch
from PIL import Image, ImageDraw

import pixelwright as pw
from pixelwright.data import Shapes
from pixelwright.editing import operators
from pixelwright.editing.inputs import as_images
from pixelwright.images import from_uint8, to_uint8


def main(path: str, out: str = "editing.png") -> None:
    """Draw the sheet. Nothing is chosen: the first eight pictures of the held-out seed."""
    model = pw.load(path)
    names = list(model.config.class_names or ())
    shapes = Shapes(size=32, count=8, seed=1, variation=0.25)  # as the demo trains
    images = as_images([shapes[i].image for i in range(8)])
    source = [names[shapes[i].label] for i in range(8)]
    target = [f"{'green' if 'green' not in name else 'red'} {name.split()[1]}" for name in source]
    mask = torch.zeros(8, 32, 32, dtype=torch.bool)
    mask[:, 8:24, 12:28] = True
    pool, grey = operators.AveragePool(4), operators.Grey()
    floats = from_uint8(images)
    small, shades = pool.A(floats), grey.A(floats)
    hidden = torch.where(mask[..., None], torch.tensor(255, dtype=torch.uint8), images)
    rows = {
        "picture": images,
        "flowedit": pw.edit(model, images, target, source, method="flowedit", guidance_scale=1.0),
        "sdedit 0.6": pw.edit(model, images, target, strength=0.6),
        "masked": hidden,
        "inpaint": pw.edit(model, images, source, method="inpaint", mask_image=mask),
        "8x8": to_uint8(16 * pool.adjoint(small)),
        "sr4 ddnm": pw.restore(model, small, pool, labels=source),
        "grey": to_uint8(shades.expand(-1, 3, -1, -1)),
        "colour ddnm": pw.restore(model, shades, grey, labels=source),
    }
    sheet = Image.new("RGB", (80 + 8 * 66, len(rows) * 66), "white")
    draw = ImageDraw.Draw(sheet)
    for y, (title, pictures) in enumerate(rows.items()):
        draw.text((4, 66 * y + 26), title, fill="black")
        for x, picture in enumerate(pictures):
            tile = Image.fromarray(picture.numpy()).resize((64, 64), Image.Resampling.NEAREST)
            sheet.paste(tile, (80 + 66 * x, 66 * y + 1))
    sheet.save(Path(out))
    for title, wanted in (("flowedit", target), ("sdedit 0.6", target)):
        print(title, "->", ", ".join(wanted))


if __name__ == "__main__":
    main(*sys.argv[1:])
