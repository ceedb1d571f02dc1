"""Extractors: the plumbing of Inception and DINOv2 with tiny stand-ins, and the classifier trained here."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
import sys
import threading
import warnings
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from pixelwright.cli.main import main
from pixelwright.errors import UserError
from pixelwright.evaluation.features import EXTRACTORS, classifier, open_extractor
from pixelwright.evaluation.features import classifier as fitting
from pixelwright.evaluation.features.classifier import ClassifierFeatures
from pixelwright.evaluation.features.published import PREFIX, resized
from pixelwright.rng import generator

CPU = torch.device("cpu")


def pictures(count: int = 3, side: int = 20, name: str = "pictures") -> Tensor:
    return torch.randint(0, 256, (count, side, side, 3), generator=generator(0, name), dtype=torch.uint8)


# --- Inception ---


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 9, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).relu()


class Layers(nn.Module):
    """Layers under the names of the published network; all but a few do nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=17)
        self.conv_1, self.conv_2, self.conv_3, self.conv_4 = (nn.Identity() for _ in range(4))
        self.pool0, self.pool1 = nn.Identity(), nn.Identity()
        self.mixed, self.mixed_1, self.mixed_2 = nn.ReLU(), nn.Identity(), nn.Identity()
        self.mixed_3, self.mixed_4, self.mixed_5 = nn.Identity(), nn.Identity(), nn.Identity()
        self.mixed_6 = Mixed()

    def forward(self, x: Tensor) -> Tensor:
        x = self.mixed(self.conv(x))
        return self.mixed_6(x).mean((2, 3))


class Network(nn.Module):
    """The interface of the published network; it resizes by an affine grid, as that does."""

    def __init__(self, off_by: float = 0.0) -> None:
        super().__init__()
        self.layers, self.output, self.off_by = Layers(), nn.Linear(9, 12), off_by

    def forward(self, img: Tensor, return_features: bool = False, no_output_bias: bool = False) -> Tensor:
        count, _, height, width = img.shape
        theta = torch.eye(2, 3)
        theta[0, 2] = 1.0 / width - 1.0 / 299
        theta[1, 2] = 1.0 / height - 1.0 / 299 + self.off_by
        grid = F.affine_grid(
            theta.unsqueeze(0).repeat(count, 1, 1), [count, 3, 299, 299], align_corners=False
        )
        x = F.grid_sample(img.float(), grid, padding_mode="border", align_corners=False)
        features = self.layers((x - 128) / 128)
        if return_features:
            return features
        if no_output_bias:
            return (features @ self.output.weight.t()).softmax(1)
        return self.output(features).softmax(1)


def script(network: nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TorchScript is deprecated
        torch.jit.script(network.eval()).save(str(path))
    return path


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> tuple[Network, Path]:
    torch.manual_seed(0)
    network = Network()
    return network, script(network, tmp_path_factory.mktemp("inception") / "tiny.pt")


def test_inception_gives_what_the_network_gives(inception: tuple[Network, Path]) -> None:
    network, path = inception
    extractor = open_extractor(f"inception:{path}")
    images = pictures()
    found = extractor(images)
    x = images.permute(0, 3, 1, 2)
    with torch.no_grad():
        torch.testing.assert_close(found.features, network(x, return_features=True))
        torch.testing.assert_close(found.probabilities, network(x, no_output_bias=True))
        inside: list[Tensor] = []
        network.layers.mixed_6.conv.register_forward_hook(lambda _m, _i, out: inside.append(out))
        network(x)
    assert found.spatial is not None
    torch.testing.assert_close(found.spatial, inside[0][:, :7].flatten(1))
    assert found.spatial.shape == (3, 7 * 18 * 18)  # of the real one 7 · 17 · 17
    assert extractor.info.checksum == hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(PREFIX) == 13


def test_resizing_is_that_of_tensorflow_1() -> None:
    """By hand: pixel i looks at place i·H/299, between the two pixels beside it."""
    image = pictures(1, 23)[:, :17]  # 17 rows, 23 columns
    plane = image[0, :, :, 0].double().numpy()
    rows, columns = np.arange(299) * 17 / 299, np.arange(299) * 23 / 299
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    below, right = np.minimum(top + 1, 16), np.minimum(left + 1, 22)
    u, v = (rows - top)[:, None], columns - left
    upper = plane[top][:, left] * (1 - v) + plane[top][:, right] * v
    lower = plane[below][:, left] * (1 - v) + plane[below][:, right] * v
    expected = (upper * (1 - u) + lower * u - 128) / 128
    found = resized(image.permute(0, 3, 1, 2))[0, 0].double().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_another_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="features come out otherwise"):
        open_extractor(f"inception:{script(Network(off_by=0.1), tmp_path / 'off.pt')}")
    with pytest.raises(UserError, match="not the Inception network of 2015"):
        open_extractor(f"inception:{script(nn.Linear(2, 2), tmp_path / 'linear.pt')}")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(UserError, match="no TorchScript file"):
        open_extractor(f"inception:{tmp_path / 'text.pt'}")


def test_inception_is_fetched_once(
    inception: tuple[Network, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIXELWRIGHT_CACHE", str(tmp_path / "cache"))
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Handler, directory=inception[1].parent)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        first, second = (open_extractor(f"inception:{address}/tiny.pt") for _ in range(2))
        with pytest.raises(UserError, match="fetch it by hand"):
            open_extractor(f"inception:{address}/nowhere.pt")
        server.shutdown()
    assert asked.count("/tiny.pt") == 1
    assert first.info == second.info
    assert first.info.checksum == hashlib.sha256(inception[1].read_bytes()).hexdigest()
    assert not list((tmp_path / "cache").rglob("nowhere.pt"))


# --- DINOv2 ---


def test_dinov2_sees_pillows_bicubic(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import Dinov2Config, Dinov2Model
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=24, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=2, image_size=224, patch_size=14
    )
    model = Dinov2Model(config).eval()
    model.save_pretrained(tmp_path / "dino")
    images = pictures(2, 40)
    extractor = open_extractor(f"dinov2:{tmp_path / 'dino'}")
    shown = torch.stack(
        [
            torch.from_numpy(
                np.array(Image.fromarray(i.numpy()).resize((224, 224), Image.Resampling.BICUBIC))
            )
            for i in images
        ]
    )
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        expected = model(((shown / 255 - mean) / std).permute(0, 3, 1, 2)).pooler_output
    found = extractor(images)
    torch.testing.assert_close(found.features, expected, rtol=1e-4, atol=1e-5)
    assert found.spatial is None and found.probabilities is None
    assert extractor.distance == "FD-DINOv2" and len(extractor.info.checksum) == 64
    with pytest.raises(UserError, match="--features"):
        open_extractor(f"dinov2:{tmp_path / 'nowhere'}")


# --- the in-domain classifier ---


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of Shapes, trained for a few seconds."""
    folder = tmp_path_factory.mktemp("features") / "shapes"
    assert main([*TRAIN, str(folder), *FEW]) == 0
    return folder


TRAIN = ["evaluation", "train-features", "shapes"]
FEW = [
    "--size",
    "16",
    "--epochs",
    "2",
    "--images",
    "1500",
    "--batch-size",
    "64",
    "--precision",
    "fp32",
    "--device",
    "cpu",
]


def test_the_classifier_learns(trained: Path) -> None:
    config = classifier.read_config(trained)
    assert config.num_classes == 24 and config.accuracy is not None
    assert config.accuracy > 4 / 24  # four times as often as by chance, after 43 steps
    assert config.settings is not None and config.settings["epochs"] == 2
    assert {path.name for path in trained.iterdir()} == {"config.json", "classifier.safetensors"}


def test_activations_of_the_classifier(trained: Path) -> None:
    extractor = open_extractor(str(trained))
    found = extractor(pictures(5, 16))
    assert found.features.shape == (5, 128)
    assert found.spatial is not None and found.spatial.shape == (5, 8 * 4 * 4)
    assert found.probabilities is not None
    torch.testing.assert_close(found.probabilities.sum(1), torch.ones(5))
    assert extractor(pictures(2, 40)).features.shape == (2, 128)  # other sizes are resized
    one = extractor(pictures(5, 16)[2:3])
    torch.testing.assert_close(one.features, found.features[2:3], rtol=1e-4, atol=1e-5)
    assert open_extractor(f"in-domain:{trained}").info.same_network(extractor.info)


def test_augmentation_shifts_and_flips() -> None:
    """Every outcome is one of the shifts of the padded image, mirrored or not."""
    images = pictures(40, 8)
    found = fitting.augment(images, fitting.Training(size=8), epoch=0, step=0)
    padded = np.pad(images.numpy(), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    kinds = set()
    for i, image in enumerate(((found + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()):
        places = [
            (y, x, flip)
            for y in range(3)
            for x in range(3)
            for flip in (1, -1)
            if (padded[i, y : y + 8, x : x + 8][:, ::flip] == image).all()
        ]
        assert len(places) == 1
        kinds.add(places[0])
    assert len(kinds) > 10


def test_a_classifier_that_was_changed_is_refused(trained: Path, tmp_path: Path) -> None:
    for name in ("config.json", "classifier.safetensors"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    data = bytearray((tmp_path / "classifier.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "classifier.safetensors").write_bytes(data)
    with pytest.raises(UserError, match="not the file"):
        ClassifierFeatures(str(tmp_path), CPU)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, "widht": 3}))
    with pytest.raises(UserError, match='unknown key "widht"'):
        ClassifierFeatures(str(tmp_path), CPU)


def test_the_table_names_every_kind() -> None:
    assert set(EXTRACTORS) == {"inception", "dinov2", "in-domain", "pixels"}
    with pytest.raises(UserError, match=r'"inceptoin" is neither.*did you mean "inception"'):
        open_extractor("inceptoin")


def test_extracting_needs_neither_torchvision_nor_scipy(trained: Path) -> None:
    program = (
        "import sys; sys.modules.update(dict.fromkeys(['torchvision', 'scipy', 'sklearn', 'timm']));"
        "import torch; from pixelwright.evaluation.features import open_extractor;"
        "from pixelwright.evaluation import metrics, measure, references;"
        "images = torch.zeros(1, 16, 16, 3, dtype=torch.uint8);"
        f"print(open_extractor({str(trained)!r})(images).features.shape)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ})
    assert done.stdout.strip() == "torch.Size([1, 128])", done.stderr
