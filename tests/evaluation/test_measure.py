"""Images in, references, and the pass that measures: through the command line where that is possible."""

from __future__ import annotations

import io
import json
import os
import tracemalloc
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pixelwright.cli.main import main
from pixelwright.errors import UserError
from pixelwright.evaluation import metrics, neighbours, references
from pixelwright.evaluation.features import classifier, open_extractor
from pixelwright.evaluation.features.classifier import Classifier, ClassifierConfig
from pixelwright.evaluation.features.extractor import Activations, ExtractorInfo
from pixelwright.evaluation.images import ArrayFile, ImageBatch, ImageSet, open_images, pixel_digest
from pixelwright.evaluation.measure import Settings, collect, compare, measure
from pixelwright.evaluation.metrics import Moments
from pixelwright.evaluation.references import build_reference, read_reference
from pixelwright.rng import generator

SIDE = 8


def pictures(count: int, name: str = "a") -> Tensor:
    return torch.randint(0, 256, (count, SIDE, SIDE, 3), generator=generator(1, name), dtype=torch.uint8)


class Stripes:
    """Features that need no network: the columns of the first channel; spatial: the rows of the second."""

    distance = "FID"
    info = ExtractorInfo("stripes", "0" * 64, SIDE, "none")

    def __call__(self, images: Tensor) -> Activations:
        x = images.float() / 255
        return Activations(x[..., 0].mean(1), x[..., 1].mean(2), torch.softmax(4 * x[..., 2].mean(1), 1))


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained classifier, whose features will do."""
    folder = tmp_path_factory.mktemp("features") / "random"
    torch.manual_seed(0)
    config = ClassifierConfig(4, SIDE, (4, 6, 8))
    classifier.save_classifier(config, Classifier(config), folder)
    return folder


def save_folder(images: Tensor, folder: Path) -> Path:
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image.numpy()).save(folder / f"{i:06}.png")
    return folder


def save_zip(images: Tensor, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for i, image in enumerate(images):
            buffer = io.BytesIO()
            Image.fromarray(image.numpy()).save(buffer, "PNG")
            archive.writestr(f"{i:06}.png", buffer.getvalue())
    return path


def save_npz(images: Tensor, path: Path, **arrays: Any) -> Path:
    np.savez(path, arr_0=images.numpy(), **arrays)
    return path


def all_images(found: ImageSet, size: int = 7) -> Tensor:
    return torch.cat([batch.images for batch in found.batches(size)])


# --- images ---


def test_every_container_gives_the_same_pixels(tmp_path: Path) -> None:
    images = pictures(20)
    np.savez_compressed(tmp_path / "small.npz", arr_0=images.numpy())
    places = [
        save_folder(images, tmp_path / "folder"),
        save_zip(images, tmp_path / "a.zip"),
        save_npz(images, tmp_path / "a.npz"),
        tmp_path / "small.npz",
    ]
    for place in places:
        found = open_images(str(place))
        assert len(found) == 20 and not found.skipped and not found.converted
        assert torch.equal(all_images(found), images)
        later = list(found.batches(6, start=12))
        assert torch.equal(torch.cat([batch.images for batch in later]), images[12:])
        assert torch.cat([batch.numbers for batch in later]).tolist() == list(range(12, 20))


def test_odd_images_are_counted_or_refused(tmp_path: Path) -> None:
    images = pictures(4)
    folder = save_folder(images, tmp_path / "odd")
    Image.fromarray(images[0, ..., 0].numpy()).save(folder / "000010.png")
    clear = np.dstack([images[1].numpy(), np.zeros((SIDE, SIDE), np.uint8)])
    Image.fromarray(clear).save(folder / "000011.png")
    (folder / "000012.png").write_bytes((folder / "000000.png").read_bytes()[:60])
    Image.new("RGB", (99, 99)).save(folder / "grid.png")
    found = open_images(str(folder))
    read = all_images(found)
    assert len(read) == 6
    assert (read[4] == images[0, ..., :1]).all() and (read[5] == 255).all()
    assert found.converted == {"L": 1, "RGBA": 1}
    assert set(found.skipped) == {"grid.png", "000012.png"}
    Image.new("RGB", (9, 8)).save(folder / "000013.png")
    with pytest.raises(UserError, match=r'"000000.png" is 8x8, "000013.png" 9x8; give --size'):
        all_images(open_images(str(folder)))
    assert all_images(open_images(str(folder), size=8)).shape == (7, 8, 8, 3)


def test_a_name_that_is_twice_in_a_zip_is_told(tmp_path: Path) -> None:
    place = save_zip(pictures(3), tmp_path / "a.zip")
    with zipfile.ZipFile(place, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("000001.png", archive.read("000000.png"))
    found = open_images(str(place))
    assert len(found) == 3
    assert list(found.skipped) == ["000001.png (again)"]


def test_arrays_of_grey_and_transparent_images(tmp_path: Path) -> None:
    images = pictures(5)
    grey = open_images(str(save_npz(images[..., 0], tmp_path / "grey.npz")))
    assert (all_images(grey) == images[..., :1]).all() and grey.converted == {"L": 5}
    alpha = torch.cat((images, torch.full_like(images[..., :1], 255)), dim=3)
    clear = open_images(str(save_npz(alpha, tmp_path / "alpha.npz", arr_1=np.arange(5))))
    assert torch.equal(all_images(clear), images) and clear.converted == {"RGBA": 5}
    labels = [batch.labels for batch in clear.batches(3)]
    assert all(label is not None for label in labels)
    assert torch.cat([label for label in labels if label is not None]).tolist() == [0, 1, 2, 3, 4]


def test_an_npz_is_not_read_whole(tmp_path: Path) -> None:
    """The rows come in pieces, each of its own memory."""
    file = ArrayFile(save_npz(pictures(64), tmp_path / "a.npz"))
    sizes = [rows.nbytes for rows in file.rows("arr_0", 10)]
    assert len(sizes) == 7 and max(sizes) == 10 * SIDE * SIDE * 3


def damage(place: Path, kind: str) -> Path:
    data = bytearray(place.read_bytes())
    if kind == "cut":
        del data[len(data) // 2 :]
    elif kind == "flipped":
        data[len(data) // 3] ^= 0xFF
    else:
        data = bytearray(b"hello" * 30)
    place.write_bytes(data)
    return place


@pytest.mark.parametrize("kind", ["cut", "flipped", "text"])
def test_a_damaged_npz_is_an_error(kind: str, tmp_path: Path) -> None:
    place = damage(save_npz(pictures(50), tmp_path / "a.npz"), kind)
    with pytest.raises(UserError, match=r"a.npz.*damaged"):
        all_images(open_images(str(place)))
    np.savez(tmp_path / "r.npz", mu=np.zeros(30), sigma=np.eye(30))
    with pytest.raises(UserError, match=r"r.npz.*damaged"):
        read_reference(damage(tmp_path / "r.npz", kind))


def test_python_objects_are_never_unpickled(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "exploded"),)

    np.savez(tmp_path / "a.npz", mu=np.array([Bomb()], dtype=object), sigma=np.eye(1))
    with pytest.raises(UserError, match=r"damaged, or no|Python objects"):
        read_reference(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", arr_0=np.array([Bomb()], dtype=object))
    with pytest.raises(UserError, match="Python objects"):
        open_images(str(tmp_path / "b.npz"))
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("name", ["mu", "arr_0"])
def test_a_small_file_that_would_fill_the_memory_is_refused(name: str, tmp_path: Path) -> None:
    """600 MiB of zeros in 600 kB: at most 256 MiB, or 20 times the file, are read at once."""
    place, zeros = tmp_path / "bomb.npz", np.zeros(1 << 20, np.uint8)
    with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open(f"{name}.npy", "w") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (1, 600, 1 << 10, 1 << 10)}
            np.lib.format.write_array_header_1_0(file, header)
            for _ in range(600):
                file.write(zeros.tobytes())
        with archive.open("sigma.npy", "w") as file:
            np.lib.format.write_array(file, np.eye(1))
    assert place.stat().st_size < 1 << 20
    tracemalloc.start()
    with pytest.raises(UserError, match=r"bomb.npz.*GiB of memory"):
        next(iter(ArrayFile(place).rows(name, 4))) if name == "arr_0" else read_reference(place)
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()


def test_a_header_that_promises_more_than_there_is(tmp_path: Path) -> None:
    place = tmp_path / "liar.npz"
    with zipfile.ZipFile(place, "w") as archive, archive.open("mu.npy", "w") as file:
        header = {"descr": "<f8", "fortran_order": False, "shape": (1 << 20,)}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(bytes(80))
    with pytest.raises(UserError, match="another size"):
        ArrayFile(place).read("mu")


# --- references ---


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"mu": np.zeros(3)}, "not both of mu and sigma"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, r"sigma is float64 \[4, 4\]"),
        ({"mu": np.zeros(3, int), "sigma": np.eye(3)}, "mu is int64"),
        ({"mu": np.full(3, np.nan), "sigma": np.eye(3)}, "NaN"),
        ({"mu": np.zeros(3), "sigma": np.triu(np.ones((3, 3)))}, "not symmetric"),
        ({"arr_0": np.zeros((2, 8, 8, 3), np.uint8)}, "pixelwright reference"),
        ({"other": np.zeros(3)}, "it holds other, not mu and sigma"),
        ({"mu": np.zeros(3), "sigma": np.eye(3), "meta": np.array("{")}, "meta is damaged"),
        ({"mu": np.zeros(3), "sigma": np.eye(3), "meta": np.array('{"format": 9}')}, "format is 9"),
        ({"mu": np.zeros(3), "sigma": np.eye(3), "features": np.zeros((4, 2))}, "features is float64"),
    ],
)
def test_references_that_are_none(arrays: dict[str, Any], said: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "r.npz", **arrays)
    with pytest.raises(UserError, match=said):
        read_reference(tmp_path / "r.npz")


def test_files_of_others_are_read(tmp_path: Path) -> None:
    """ADM's, with images, and those with mean and covariance alone."""
    mu, sigma = np.arange(3.0, dtype=np.float32), np.eye(3)
    np.savez(tmp_path / "small.npz", mu=mu, sigma=sigma)
    small = read_reference(tmp_path / "small.npz")
    assert small.features.mean.tolist() == [0, 1, 2] and small.spatial is None and small.extractor is None
    np.savez(
        tmp_path / "adm.npz", mu=mu, sigma=sigma, mu_s=mu[:2], sigma_s=np.eye(2), arr_0=pictures(4).numpy()
    )
    adm = read_reference(tmp_path / "adm.npz")
    assert adm.has_images and adm.spatial is not None and len(adm.spatial.mean) == 2
    with pytest.raises(UserError, match="does not say what made its features"):
        measure([ImageBatch(pictures(4), torch.arange(4))], small, Stripes())
    with pytest.raises(UserError, match="pickle"):
        read_reference(tmp_path / "edm.pkl")


def test_a_reference_is_the_statistics_of_its_images(tmp_path: Path) -> None:
    images = pictures(100)
    place = save_npz(images, tmp_path / "a.npz", arr_1=np.arange(100) % 3)
    build_reference(open_images(str(place)), Stripes(), tmp_path / "r.npz", keep=30)
    found = read_reference(tmp_path / "r.npz")
    features, spatial, _ = Stripes()(images)
    np.testing.assert_allclose(
        found.features.covariance, np.cov(features.double().numpy(), rowvar=False), rtol=1e-9
    )
    assert found.spatial is not None
    np.testing.assert_allclose(found.spatial.mean, spatial.double().mean(0), rtol=1e-12)  # type: ignore[union-attr]
    assert found.numbers is not None and found.kept is not None and found.labels is not None
    assert len(set(found.numbers.tolist())) == 30 and found.numbers.max() > 60
    assert torch.equal(found.kept, features[found.numbers])
    assert torch.equal(found.labels, found.numbers % 3)
    assert found.source is not None and found.source.count == found.features.count == 100
    assert found.extractor == Stripes.info
    with pytest.raises(UserError, match="exists already"):
        build_reference(open_images(str(place)), Stripes(), tmp_path / "r.npz")


def test_a_reference_that_was_interrupted_is_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_folder(pictures(300), tmp_path / "images")
    (folder / "000002.png").write_bytes(b"broken")
    build_reference(open_images(str(folder)), Stripes(), tmp_path / "whole.npz", keep=50)
    monkeypatch.setattr(references, "SECONDS", 0.0)
    seen: list[int] = []

    class Dying(Stripes):
        def __call__(self, images: Tensor) -> Activations:
            seen.append(len(images))
            if len(seen) == 4:
                raise KeyboardInterrupt
            return super().__call__(images)

    with pytest.raises(KeyboardInterrupt):
        build_reference(open_images(str(folder)), Dying(), tmp_path / "parts.npz", keep=50)
    with pytest.raises(UserError, match="unfinished work"):
        build_reference(open_images(str(folder)), Stripes(), tmp_path / "parts.npz", keep=40)
    images = open_images(str(folder))
    build_reference(images, Dying(), tmp_path / "parts.npz", keep=50)
    assert seen[4:] == [64, 44]  # the first 192 were not looked at again
    assert list(images.skipped) == ["000002.png"]
    assert {path.name for path in tmp_path.glob("*.npz*")} == {"whole.npz", "parts.npz"}
    whole, parts = (ArrayFile(tmp_path / name) for name in ("whole.npz", "parts.npz"))
    assert whole.names == parts.names
    for name in whole.names:
        assert (whole.read(name) == parts.read(name)).all(), name


# --- measuring ---


def reference_of(images: Tensor, tmp_path: Path, name: str = "reference", **arrays: Any) -> Any:
    place = save_npz(images, tmp_path / f"{name}-images.npz", **arrays)
    build_reference(open_images(str(place)), Stripes(), tmp_path / f"{name}.npz")
    return read_reference(tmp_path / f"{name}.npz")


def test_one_pass_gives_what_the_metrics_give(tmp_path: Path) -> None:
    images, real = pictures(150), pictures(200, "real")
    reference = reference_of(real, tmp_path, arr_1=np.arange(200) % 4)

    def batches(size: int) -> Iterator[ImageBatch]:
        labels = torch.arange(150) % 4
        for part in torch.arange(150).split(size):
            yield ImageBatch(images[part], part, labels[part])

    found = measure(batches(13), reference, Stripes())
    features, spatial, probabilities = Stripes()(images)
    assert spatial is not None and probabilities is not None
    a, b = Moments.of(Stripes()(real).features).gaussian(), Moments.of(features).gaussian()
    assert found.metrics["fid"].value == pytest.approx(metrics.frechet_distance(a, b), rel=1e-6)
    assert found.metrics["inception_score"] == metrics.inception_score(probabilities)
    around = {"precision", "recall", "density", "coverage"}
    assert set(found.metrics) == {"fid", "sfid", "inception_score", *around, "kid"}
    again = measure(batches(64), reference, Stripes())
    assert again.metrics == found.metrics and again.images.checksum == found.images.checksum
    mean = np.mean([one["precision"] for one in found.per_class.values()])
    assert len(found.per_class) == 4 and mean == pytest.approx(found.metrics["precision"].value, abs=0.02)
    assert "--patch-size" in found.left_out["patch_grid"]
    with_seams = measure(batches(13), reference, Stripes(), Settings(patch_size=4)).metrics["patch_grid"]
    assert with_seams == metrics.patch_grid(metrics.patch_steps(images, 4))


def test_images_of_an_adm_reference_give_precision_and_recall(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIXELWRIGHT_CACHE", str(tmp_path / "cache"))

    class Inception(Stripes):
        info = replace(Stripes.info, kind="inception")
        seen = 0

        def __call__(self, images: Tensor) -> Activations:
            self.seen += len(images)
            return super().__call__(images)

    images, real = pictures(40), pictures(70, "real")
    moments = Moments.of(Stripes()(real).features).gaussian()
    arrays = {"mu": moments.mean.numpy(), "sigma": moments.covariance.numpy()}
    reference = read_reference(save_npz(real, tmp_path / "adm.npz", **arrays))
    extractor = Inception()
    found, again = (measure([ImageBatch(images, torch.arange(40))], reference, extractor) for _ in range(2))
    features = (Stripes()(real).features, Stripes()(images).features)
    expected = neighbours.neighbourhood(*features).estimates()
    assert found.metrics["precision"] == expected["precision"] == again.metrics["precision"]
    assert found.metrics["recall"] == expected["recall"] and "sfid" in found.left_out
    assert extractor.seen == 40 + 70 + 40  # the reference's images once


def test_features_that_are_nan_are_an_error() -> None:
    class Broken(Stripes):
        def __call__(self, images: Tensor) -> Activations:
            found = super().__call__(images)
            found.features[images[:, 0, 0, 0] == 7] = torch.nan
            return found

    images = torch.zeros(100, SIDE, SIDE, 3, dtype=torch.uint8)
    images[[70, 90], 0, 0, 0] = 7
    with pytest.raises(UserError, match="features of image 70 are NaN or infinite"):
        collect([ImageBatch(images, torch.arange(100))], Broken())


def test_images_of_several_sizes_and_none() -> None:
    two = [ImageBatch(torch.zeros(2, n, n, 3, dtype=torch.uint8), torch.arange(2)) for n in (8, 9)]
    with pytest.raises(UserError, match="give one size"):
        collect(two, Stripes())
    with pytest.raises(UserError, match="no image to measure"):
        collect([], Stripes())


def test_the_digest_is_of_the_pixels_in_order() -> None:
    images = pictures(9)

    def digest(*parts: Tensor) -> str:
        state = ""
        for part in parts:
            state = pixel_digest(state, part)
        return state

    assert digest(images) == digest(images[:4], images[4:])
    assert len({digest(images), digest(images.flip(0)), digest(images[:8]), digest(images[:, :4])}) == 4


def test_the_commands(features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    real = save_zip(pictures(120, "real"), tmp_path / "real.zip")
    samples = save_folder(pictures(60), tmp_path / "samples")
    out = tmp_path / "reference.npz"
    assert main(["reference", str(real), str(out), "--features", str(features), "--device", "cpu"]) == 0
    report = tmp_path / "report.json"
    words = ["evaluate", str(samples), "--reference", str(out), "--out", str(report), "--device", "cpu"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    content = json.loads(report.read_text())
    assert "FID, in-domain" in printed and f"{content['metrics']['fid']['value']:.5g}" in printed
    assert content["images"]["count"] == 60 and content["reference"]["source"]["count"] == 120
    assert content["extractor"]["checksum"] == open_extractor(str(features)).info.checksum
    assert (
        main(["evaluate", str(real), "--reference", str(out), "--device", "cpu", "--out", str(report)]) == 0
    )
    own = json.loads(report.read_text())["metrics"]
    assert own["fid"]["value"] == pytest.approx(0, abs=1e-6)
    assert own["precision"]["value"] == own["recall"]["value"] == 1


def test_another_classifier_is_refused(features: Path, tmp_path: Path) -> None:
    real = save_npz(pictures(20), tmp_path / "a.npz")
    extractor = open_extractor(str(features))
    build_reference(open_images(str(real)), extractor, tmp_path / "r.npz")
    config = ClassifierConfig(4, SIDE, (4, 6, 8))
    torch.manual_seed(1)
    classifier.save_classifier(config, Classifier(config), tmp_path / "other")
    other = open_extractor(str(tmp_path / "other"))
    with pytest.raises(UserError, match="was made with in-domain"):
        measure(open_images(str(real)).batches(9), read_reference(tmp_path / "r.npz"), other)


def test_classes_are_paired_by_name(features: Path, tmp_path: Path) -> None:
    """Samples of b and c against a reference of a, b and c: class b is 0 there and 1 here."""
    for folder, names in (("real", "abc"), ("samples", "bc")):
        for number, name in enumerate(names):
            save_folder(
                pictures(20, name if folder == "real" else f"{name}{number}"), tmp_path / folder / name
            )
    save_folder(pictures(20, "b"), tmp_path / "copies" / "b")
    save_folder(pictures(20, "c0"), tmp_path / "copies" / "c")
    out, report = tmp_path / "reference.npz", tmp_path / "report.json"
    words = ["--features", str(features), "--device", "cpu"]
    assert main(["reference", str(tmp_path / "real"), str(out), *words]) == 0
    words = ["--reference", str(out), "--out", str(report), "--device", "cpu"]
    assert main(["evaluate", str(tmp_path / "copies"), *words]) == 0
    found = json.loads(report.read_text())
    assert found["per_class"].keys() == {"b", "c"}
    assert found["per_class"]["b"] == {"precision": 1.0, "recall": 1.0}
    assert found["left_out"]["per_class"] == "1 classes are not in both sets, such as a"


def test_classes_without_names_on_one_side_are_left_out(tmp_path: Path) -> None:
    images = pictures(40)
    reference = reference_of(pictures(40, "real"), tmp_path, arr_1=np.arange(40) % 2)
    found = collect([ImageBatch(images, torch.arange(40), torch.arange(40) % 2)], Stripes())
    assert compare(found, reference, Stripes()).per_class.keys() == {"0", "1"}
    named = compare(found._replace(class_names=("a", "b")), reference, Stripes())
    assert not named.per_class
    assert named.left_out["per_class"] == "classes are paired by name, and only the samples have class names"


def test_what_a_number_must_not_be_read_without(
    features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """JPEG files, another size than the reference's, few images: before the figures, and in the report."""
    folder, out = tmp_path / "samples", tmp_path / "reference.npz"
    folder.mkdir()
    for i, image in enumerate(pictures(12)):
        Image.fromarray(image.numpy()).resize((16, 16)).save(folder / f"{i}.jpg")
    real = save_zip(pictures(120, "real"), tmp_path / "real.zip")
    assert main(["reference", str(real), str(out), "--features", str(features), "--device", "cpu"]) == 0
    words = [
        "evaluate",
        str(folder),
        "--reference",
        str(out),
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "out"),
    ]
    capsys.readouterr()
    assert main(words) == 0
    printed, page = capsys.readouterr().out, (tmp_path / "out" / "report.html").read_text()
    for note in (
        "FID, in-domain of 12 images: not a measurement",
        "12 of the images are JPEG files",
        "the images are 16 x 16 pixels, those of the reference 8 x 8",
    ):
        assert note in page and note in printed
        assert printed.index(note) < printed.index("FID, in-domain  ")
    assert "12 images, not a measurement (too few images): " in page


def test_adm_float16_is_a_setting_of_the_report(features: Path, tmp_path: Path) -> None:
    real = save_zip(pictures(60, "real"), tmp_path / "real.zip")
    samples, out = save_folder(pictures(40), tmp_path / "samples"), tmp_path / "reference.npz"
    assert main(["reference", str(real), str(out), "--features", str(features), "--device", "cpu"]) == 0
    words = ["evaluate", str(samples), "--reference", str(out), "--device", "cpu", "--adm-float16"]
    assert main([*words, "--out", str(tmp_path / "report.json")]) == 0
    found = json.loads((tmp_path / "report.json").read_text())
    extractor = open_extractor(str(features))
    rows = [extractor(images).features for images in (pictures(60, "real"), pictures(40))]
    kept = read_reference(out).kept
    assert kept is not None and found["settings"]["adm_float16"] is True
    realistic, recalled = neighbours.adm_neighbourhood(kept, rows[1])
    assert found["metrics"]["precision"]["value"] == float(realistic.double().mean())
    assert found["metrics"]["recall"]["value"] == float(recalled.double().mean())
