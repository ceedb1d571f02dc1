"""CPU seconds of the metrics, beside another library's on the same features, and how far apart they are.

    OMP_NUM_THREADS=1 python benchmarks/metrics.py [--images 10000] [--width 2048] [--peer auto]

The peer is torch-fidelity where it can be imported, else the functions of torchmetrics, else the textbook
(`--peer` names one): scipy's matrix square root, numpy's kernel, distances block by block, all in float64.
The features are made up: correlated, not negative, as wide as Inception's.
"""

import argparse
import importlib
import json
import platform
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pixelwright.evaluation import metrics, neighbours
from pixelwright.evaluation.metrics import Moments

Peer = Mapping[str, Callable[[np.ndarray, np.ndarray], Any]]


def features(count: int, width: int, seed: int, scale: float = 1.0) -> Tensor:
    """Float32 [count,width]: a spectrum that falls with the square root, turned, cut off at 0."""
    turn = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(7)))[0]
    spread = 6 * scale * (1 + torch.arange(width)) ** -0.5
    noise = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return torch.relu(noise * spread @ turn + 0.2)


def textbook() -> Peer:
    """Every formula as it stands."""
    from scipy.linalg import sqrtm

    def fid(a: np.ndarray, b: np.ndarray) -> float:
        first, second = (np.cov(rows, rowvar=False, dtype=np.float64) for rows in (a, b))
        apart = np.square(a.mean(0, np.float64) - b.mean(0, np.float64)).sum()
        return float(apart + np.trace(first) + np.trace(second) - 2 * sqrtm(first @ second).trace().real)

    def kid(a: np.ndarray, b: np.ndarray) -> float:
        random, found = np.random.RandomState(0), []
        size = min(metrics.SUBSET_SIZE, len(a), len(b))
        for _ in range(metrics.SUBSETS):
            x, y = (rows[random.choice(len(rows), size, replace=False)].astype(np.float64) for rows in (a, b))
            xx, yy, xy = ((p @ q.T / a.shape[1] + 1) ** 3 for p, q in ((x, x), (y, y), (x, y)))
            within = (xx.sum() - xx.trace() + yy.sum() - yy.trace()) / (size * (size - 1))
            found.append(within - 2 * xy.mean())
        return float(np.mean(found))

    def squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        a, b = a.astype(np.float64), b.astype(np.float64)
        return np.square(a).sum(1)[:, None] - 2 * a @ b.T + np.square(b).sum(1)

    def precision_recall(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
        pieces = range(0, len(b), 1000)
        radii = [
            np.concatenate(
                [np.partition(squares(r[i : i + 1000], r), 3, 1)[:, 3] for i in range(0, len(r), 1000)]
            )
            for r in (a, b)
        ]
        inside, covered = [], np.zeros(len(a), bool)
        for i in pieces:
            apart = squares(b[i : i + 1000], a)
            inside.append((apart <= radii[0]).any(1))
            covered |= (apart <= radii[1][i : i + 1000, None]).any(0)
        return float(np.concatenate(inside).mean()), float(covered.mean())

    return {"FID": fid, "KID": kid, "precision, recall": precision_recall}


def torch_fidelity() -> Peer:
    """torch-fidelity's functions of features."""
    load = importlib.import_module
    fid, kid, prc = (load(f"torch_fidelity.metric_{name}") for name in ("fid", "kid", "prc"))
    quiet = {"verbose": False}

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        both = [fid.fid_features_to_statistics(torch.from_numpy(rows)) for rows in (a, b)]
        return float(fid.fid_statistics_to_metric(*both, False)["frechet_inception_distance"])

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        found = kid.kid_features_to_metric(torch.from_numpy(a), torch.from_numpy(b), **quiet)
        return float(found["kernel_inception_distance_mean"])

    def shares(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
        found = prc.prc_features_to_metric(torch.from_numpy(b), torch.from_numpy(a), **quiet)
        return float(found["precision"]), float(found["recall"])

    return {"FID": distance, "KID": kernel, "precision, recall": shares}


def torchmetrics() -> Peer:
    """The functions behind torchmetrics' FrechetInceptionDistance and KernelInceptionDistance."""
    fid, kid = (importlib.import_module(f"torchmetrics.image.{name}") for name in ("fid", "kid"))

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        both = [torch.from_numpy(rows).double() for rows in (a, b)]
        pairs = [(rows.mean(0), rows.T.cov()) for rows in both]
        return float(fid._compute_fid(*pairs[0], *pairs[1]))

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        found, size = [], min(metrics.SUBSET_SIZE, len(a), len(b))
        for _ in range(metrics.SUBSETS):
            x, y = (torch.from_numpy(r)[torch.randperm(len(r))[:size]].double() for r in (a, b))
            found.append(kid.poly_mmd(x, y))
        return float(torch.stack(found).mean())

    return {"FID": distance, "KID": kernel}


PEERS: dict[str, Callable[[], Peer]] = {
    "torch-fidelity": torch_fidelity,
    "torchmetrics": torchmetrics,
    "textbook": textbook,
}


def choose(name: str) -> tuple[str, Peer]:
    """The peer of this name, or the first that is there."""
    if name != "auto":
        return name, PEERS[name]()
    for found, make in PEERS.items():
        try:
            return found, make()
        except ImportError:
            continue
    raise SystemExit("no peer can be imported: install scipy")


def timed(name: str, work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    value = work()
    seconds = time.process_time() - start
    print(f"{name:<44} {seconds:8.2f} s  {value}", flush=True)
    return seconds, value


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--peer", choices=["auto", *PEERS], default="auto")
    options = parser.parse_args()
    torch.set_num_threads(1)
    reference, samples = (features(options.images, options.width, *how) for how in ((1,), (2, 1.05)))
    a, b = reference.numpy(), samples.numpy()
    size = f"{options.images} x {options.width} twice"
    print(f"{size}, one thread, {platform.processor() or platform.machine()}, torch {torch.__version__}")

    def fid() -> float:
        return metrics.frechet_distance(*(Moments.of(rows).gaussian() for rows in (reference, samples)))

    def noise() -> list[Any]:
        found = metrics.frechet_estimate(samples, Moments.of(reference).gaussian())
        return [found.value, found.error, found.extrapolated or found.reason]

    def around() -> dict[str, float]:
        found = neighbours.neighbourhood(reference, samples).estimates()
        return {name: estimate.value for name, estimate in found.items()}

    ours = {
        "FID": timed("FID", fid),
        "FID, error and bias": timed("FID with its error and bias", noise),
        "KID": timed("KID", lambda: metrics.kid(reference, samples).value),
        "precision, recall": timed("precision, recall, density, coverage", around),
    }
    name, peer = choose(options.peer)
    theirs = {what: timed(f"{name}: {what}", lambda work=work: work(a, b)) for what, work in peer.items()}
    seconds = {what: {"ours": ours[what][0], name: found[0]} for what, found in theirs.items()}
    if "FID" in theirs:
        seconds["FID"]["apart"] = abs(ours["FID"][1] / theirs["FID"][1] - 1)
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
