"""How often the in-domain classifier names the class that a sample was asked for.

    python benchmarks/agreement.py report/samples.npz --features features/cifar10

SAMPLES.npz is what `pixelwright evaluate MODEL --out report` leaves: images arr_0 and labels arr_1.
"""

import argparse

import numpy as np
import torch

from pixelwright.evaluation.features import open_extractor


@torch.no_grad()
def agreement(images: torch.Tensor, labels: torch.Tensor, features: str) -> torch.Tensor:
    """Whether each is named rightly: images [n,H,W,3] uint8, labels [n] -> [n] bool."""
    extractor = open_extractor(features, "cpu")
    found = [extractor(part).probabilities for part in images.split(500)]
    assert found[0] is not None, "Inception knows other classes"
    return torch.cat([each.argmax(1) for each in found if each is not None]) == labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("samples")
    parser.add_argument("--features", required=True, help="folder of an in-domain classifier")
    options = parser.parse_args()
    with np.load(options.samples) as file:
        images, labels = (torch.from_numpy(file[name]) for name in ("arr_0", "arr_1"))
    right = agreement(images, labels, options.features).float()
    each = [f"{100 * right[labels == label].mean():.0f}" for label in labels.unique()]
    error = right.std() / len(right) ** 0.5
    print(f"{100 * right.mean():.1f} ± {100 * error:.1f} % of {len(right):,}; by class {' '.join(each)}")


if __name__ == "__main__":
    main()
