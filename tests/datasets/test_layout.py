"""What other people's sets look like: splits, wrappers, clutter, archives, text of any editor."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
import time
import tracemalloc
import unicodedata
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pixelwright.data import Batches, DataConfig, Source, ZipSource, layout, open_source
from pixelwright.data.layout import tidy, wrapper
from pixelwright.errors import UserError

from .conftest import make_tar, png


def make(path: Path, members: Mapping[str, bytes]) -> Path:
    """A folder, a zip or a tar with these files, by the name of `path`."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in members.items():
                archive.writestr(name, data)
    elif path.suffix == ".tar":
        make_tar(path, members)
    else:
        for name, data in members.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
    return path


def opened(path: object) -> Source:
    return open_source(DataConfig(path=str(path)))


def levels(source: Source) -> list[int]:
    return [int(np.asarray(source[i].image)[0, 0, 0]) for i in range(len(source))]


def labels(source: Source) -> list[int]:
    return [source[i].label for i in range(len(source))]


def captions(source: Source) -> list[tuple[str, ...] | None]:
    every = [source[i].all_captions for i in range(len(source))]
    return [one and one.texts for one in every]


PETS = {"cat/0.png": png(0), "cat/1.png": png(1), "dog/0.png": png(2)}
FORMS = ("set", "set.zip", "set.tar")


# --- splits and wrappers ---


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "names",
    [("train", "val"), ("Training", "TEST"), ("all/train", "all/validation"), ("train2017", "val2017")],
)
def test_splits_side_by_side_are_refused(tmp_path: Path, form: str, names: tuple[str, str]) -> None:
    members = {f"{split}/{name}": data for split in names for name, data in PETS.items()}
    with pytest.raises(UserError, match=r"holds the splits .*train.* side by side: ") as found:
        opened(make(tmp_path / form, members))
    assert names[0] in str(found.value).partition("such as")[2]


@pytest.mark.parametrize("form", FORMS)
def test_splits_inside_of_classes_are_refused_too(tmp_path: Path, form: str) -> None:
    members = {f"{kind}/{split}/0.png": png() for kind in ("cat", "dog") for split in ("train", "test")}
    with pytest.raises(UserError, match="holds the splits test, train"):
        opened(make(tmp_path / form, members))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("prefix", ["", "images/", "a/b/", "train/"])
def test_folders_around_everything_are_no_classes(tmp_path: Path, form: str, prefix: str) -> None:
    source = opened(make(tmp_path / form, {prefix + name: data for name, data in PETS.items()}))
    assert (source.class_names, labels(source), levels(source)) == (("cat", "dog"), [0, 0, 1], [0, 1, 2])


@pytest.mark.parametrize("form", ["set", "set.zip"])
def test_a_single_class_and_a_word_that_is_also_a_split_are_classes(tmp_path: Path, form: str) -> None:
    for folder in ("1", "2"):
        (tmp_path / folder).mkdir()
    assert opened(make(tmp_path / "1" / form, {"cat/0.png": png()})).class_names == ("cat",)
    source = opened(make(tmp_path / "2" / form, {"train/0.png": png(), "bus/0.png": png()}))
    assert source.class_names == ("bus", "train")


SPLIT_SHARDS = [
    ("set-train-000000.tar", "set-test-000000.tar"),
    ("train.tar", "val.tar"),
    ("train-0-of-1.tar", "more-0-of-1.tar"),
    ("train/0.tar", "val/0.tar"),
    ("data/train_0.tar", "data/dev_0.tar"),
]


@pytest.mark.parametrize("names", SPLIT_SHARDS)
@pytest.mark.parametrize("pattern", ["", "/**/*.tar"])
def test_shards_of_several_splits_are_refused(tmp_path: Path, names: tuple[str, str], pattern: str) -> None:
    for name in names:
        make(tmp_path / "set" / name, {"0.png": png()})
    with pytest.raises(UserError, match=r"holds the splits .* side by side: give one, such as") as found:
        opened(f"{tmp_path}/set{pattern}")
    example = str(found.value).partition('such as "')[2].removesuffix('"')
    assert len(opened(example)) == 1 and "train" in example


def test_shards_of_one_split_may_lie_in_a_folder_of_the_folder(tmp_path: Path) -> None:
    for name in ("data/train-0.tar", "data/train-1.tar"):
        make(tmp_path / "set" / name, {"0.png": png()})
    assert len(opened(tmp_path / "set")) == 2
    make(tmp_path / "set" / "other/0.tar", {"0.png": png()})
    with pytest.raises(UserError, match=r"holds \.tar files in several folders"):
        opened(tmp_path / "set")
    assert len(opened(f"{tmp_path}/set/**/*.tar")) == 3


def test_names_as_all_write_them() -> None:
    assert [tidy(name) for name in ("./a/b.png", ".\\a\\b.png", "a\\b.png", ".//a/b.png")] == ["a/b.png"] * 4
    assert wrapper(["s/cat/0", "s/dog/0"]) == "s/" and wrapper(["cat/0", "dog/0"]) == ""
    assert wrapper(["s/t/0", "s/t/1"]) == "s/"


# --- what is passed over, and what is told of it ---


@pytest.mark.parametrize("form", FORMS)
def test_clutter_of_systems_is_passed_over(tmp_path: Path, form: str) -> None:
    clutter = ["@eaDir/cat/0.png", "cat/@eaDir/0.png", "$RECYCLE.BIN/x.png", "__MACOSX/cat/._0.png"]
    clutter += ["cat/._1.png", "System Volume Information/y.png", ".ipynb_checkpoints/z.png"]
    source = opened(make(tmp_path / form, {**PETS, **dict.fromkeys(clutter, png(99))}))
    assert source.class_names == ("cat", "dog") and levels(source) == [0, 1, 2]


@pytest.mark.parametrize("form", FORMS)
def test_kinds_that_are_not_read_are_counted_and_named(
    tmp_path: Path, form: str, caplog: pytest.LogCaptureFixture
) -> None:
    members = {**PETS, "cat/b.DNG": b"x", "eel/c.dng": b"x", "eel/d.jxl": b"x"}
    opened(make(tmp_path / form, members))
    assert "left out 2 .dng, 1 .jxl, which are not read" in caplog.text
    assert "nothing is left of eel" in caplog.text


def heic(picture: Image.Image, **more: Any) -> bytes:
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    picture.save(buffer := io.BytesIO(), "HEIF", quality=-1, **more)
    return buffer.getvalue()


@pytest.mark.parametrize("form", FORMS)
def test_heic_is_read_upright_where_the_extra_is_installed(tmp_path: Path, form: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    data = heic(Image.new("RGB", (64, 32), (9, 9, 9)), exif=exif.tobytes())
    source = opened(make(tmp_path / form, {**PETS, "eel/a.HEIC": data, "eel/b.heif": data}))
    assert source.class_names == ("cat", "dog", "eel") and labels(source) == [0, 0, 1, 2, 2]
    assert source[3].image.size == source.dimensions(3) == (32, 64)
    assert source[3].image.getpixel((0, 0)) == pytest.approx((9, 9, 9), abs=1)


def test_heic_is_named_with_the_extra_where_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(layout, "SUFFIXES", layout.SUFFIXES - layout.HEIF)
    monkeypatch.setattr(layout, "FOREIGN", layout.FOREIGN | layout.HEIF)
    assert len(opened(make(tmp_path / "set", {**PETS, "cat/b.HEIC": b"x"}))) == 3
    assert "left out 1 .heic, which are not read" in caplog.text
    assert 'or pip install "pixelwright[heif]"' in caplog.text


def test_archives_beside_images_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path / "set", {**PETS, "old.zip": b"x", "cat/more.tar": b"x"})
    assert len(opened(tmp_path / "set")) == 3
    assert 'left out 2 archives, such as "cat/more.tar"' in caplog.text


def test_links_to_other_classes_are_classes_and_loops_end(tmp_path: Path) -> None:
    folder = make(tmp_path / "set", PETS)
    (folder / "kitten").symlink_to("cat")
    (folder / "cat" / "loop").symlink_to("..")
    source = opened(folder)
    assert source.class_names == ("cat", "dog", "kitten") and labels(source) == [0, 0, 1, 2, 2]


def test_class_names_that_cannot_be_saved_are_refused(tmp_path: Path) -> None:
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/latin/caf\xe9")
    make(tmp_path / "latin", {"tea/0.png": png()})
    os.mkdir(odd)
    Path(odd, "0.png").write_bytes(png())
    with pytest.raises(UserError, match=r'holds the class "caf\\udce9", whose name is not UTF-8: rename it'):
        opened(tmp_path / "latin")
    twins = {f"{unicodedata.normalize(form, 'café')}/0.png": png() for form in ("NFC", "NFD")}
    with pytest.raises(UserError, match="holds two classes that are both written"):
        opened(make(tmp_path / "twins", twins))


def test_files_whose_names_are_not_utf8_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/set/\xe9.png")).write_bytes(png())
    source = opened(tmp_path / "set")
    assert source.name(0) == source[0].name == "\\udce9.png"


# --- tars ---


def test_tars_made_in_a_folder(tmp_path: Path) -> None:
    make(tmp_path / "set/a-0.tar", {"./0.png": png(0), "./0.cls": b"1", "./1.png": png(1), "./1.cls": b"0"})
    make(tmp_path / "set/a-1.tar", {".\\2.png": png(2), ".\\2.cls": b"1", "3.png": png(3), "3.cls": b"0"})
    source = opened(tmp_path / "set")
    assert (levels(source), labels(source)) == ([0, 1, 2, 3], [1, 0, 1, 0])
    assert [source.name(i) for i in (0, 3)] == ["a-0.tar/0", "a-1.tar/3"]


def test_tars_that_were_joined(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    parts = [make(tmp_path / f"{i}.tar", {"0.png": png(i), "0.txt": b"text %d" % i}) for i in range(3)]
    joined = tmp_path / "set.tar"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    source = opened(joined)
    assert levels(source) == [0, 1, 2] and captions(source) == [(f"text {i}",) for i in range(3)]
    joined.write_bytes(parts[0].read_bytes() + b"garbage" * 100)
    assert levels(opened(joined)) == [0] and "behind its end, is no tar" in caplog.text


def test_dots_in_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    members = {"img_0.5.png": png(5), "img_0.5.cls": b"1", "img_0.7.png": png(7), "img_0.7.cls": b"0"}
    members |= {"photo.v2.PNG": png(2), "photo.v2.cls": b"2", "plain.png": png(1), "plain.cls": b"3"}
    source = opened(make(tmp_path / "a.tar", members))
    assert (levels(source), labels(source)) == ([5, 7, 2, 1], [1, 0, 2, 3]) and not caplog.text
    source = opened(
        make(tmp_path / "b.tar", {"0.jpg": png(1), "0.seg.png": png(2)})
    )  # the rule of WebDataset
    assert levels(source) == [1]
    assert 'left out 1 images beside the one of their sample, such as "0.seg.png"' in caplog.text


def test_members_in_any_order(tmp_path: Path) -> None:
    names = ("0.png", "1.png", "0.cls", "1.cls", "1.txt")
    content = {"png": png(), "cls": b"4", "txt": b"a dog"}
    source = opened(make(tmp_path / "a.tar", {name: content[name.rpartition(".")[2]] for name in names}))
    assert (labels(source), captions(source)) == ([4, 4], [None, ("a dog",)])


def test_long_names_and_links_in_tars(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number, form in enumerate((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
        with tarfile.open(tmp_path / f"{number}.tar", "w", format=form) as archive:
            for name, kind, target in (
                ("long" * 80 + ".png", tarfile.REGTYPE, ""),
                ("hard.png", tarfile.LNKTYPE, "long" * 80 + ".png"),
                ("in/soft.png", tarfile.SYMTYPE, "../hard.png"),
                ("gone.png", tarfile.SYMTYPE, "nowhere.png"),
            ):
                member = tarfile.TarInfo(name)
                member.type, member.linkname = kind, target
                member.size = len(png(number)) if kind == tarfile.REGTYPE else 0
                archive.addfile(member, io.BytesIO(png(number)))
    source = opened(tmp_path / "{0,1}.tar")
    assert levels(source) == [0, 0, 0, 1, 1, 1]
    assert caplog.text.count('left out "gone.png", a link to nowhere') == 2


def test_a_compressed_shard_beside_others_is_an_error(tmp_path: Path) -> None:
    make(tmp_path / "set/a-0.tar", {"0.png": png()})
    (tmp_path / "set/a-1.tar.gz").write_bytes(b"x")
    with pytest.raises(UserError, match=r"a-1\.tar\.gz. is compressed and cannot be read in place: "):
        opened(tmp_path / "set")


def test_a_compressed_tar_by_another_name_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(gzip.compress(make(tmp_path / "b.tar", {"0.png": png()}).read_bytes()))
    with pytest.raises(UserError, match=r"a\.tar. is compressed and cannot be read in place: unpack it"):
        opened(tmp_path / "a.tar")


def test_labelled_splits_in_a_shard_are_refused(tmp_path: Path) -> None:
    members = {f"{split}/0.{kind}": png() if kind == "png" else b"0" for split in ("val", "train")
               for kind in ("png", "cls")}  # fmt: skip
    with pytest.raises(
        UserError, match="holds the splits train, validation side by side: make shards of one"
    ):
        opened(make(tmp_path / "a.tar", members))


def test_a_shard_in_the_place_of_one_of_the_same_size_and_time(tmp_path: Path) -> None:
    path = make(tmp_path / "a.tar", {"0.png": png(), "0.cls": b"1", "1.png": png(), "1.cls": b"0"})
    assert labels(opened(path)) == [1, 0]
    state = path.stat()
    time.sleep(0.02)  # longer than a tick of the clock of any file system
    make(path, {"0.png": png(), "0.cls": b"0", "1.png": png(), "1.cls": b"1"})
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert path.stat().st_size == state.st_size and labels(opened(path)) == [0, 1]


def test_captioned_shards_in_folders_are_no_classes(tmp_path: Path) -> None:
    members = {"00/0.png": png(), "00/0.txt": b"x", "01/0.png": png(), "01/0.txt": b"y"}
    source = opened(make(tmp_path / "a.tar", members))
    assert (source.num_classes, source.class_names) == (1, None)


# --- text ---


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("form", FORMS)
def test_captions_of_any_editor(tmp_path: Path, form: str, encoding: str) -> None:
    source = opened(
        make(tmp_path / form, {"0.png": png(), "0.txt": "un café\u2028noir\r\n".encode(encoding)})
    )
    assert captions(source) == [("un café\u2028noir",)]


@pytest.mark.parametrize("form", FORMS)
def test_captions_in_another_encoding_are_told(
    tmp_path: Path, form: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = opened(
        make(tmp_path / form, {"0.png": png(), "0.txt": b"un caf\xe9", "1.png": png(), "1.txt": b"x"})
    )
    assert captions(source) == [None, ("x",)]
    assert "line 1 of " in caplog.text and "is not UTF-8 text: save it as UTF-8" in caplog.text
    batches = Batches(source, DataConfig(path="x", size=4), 2, 0, captions=True)
    assert next(iter(batches)).captions == ("x", "x") and list(batches.skipped.values()) == [
        "it has no caption"
    ]


@pytest.mark.parametrize("form", ["set", "set.zip"])
def test_metadata_of_any_editor(tmp_path: Path, form: str) -> None:
    lines = [{"file_name": f"{i}.png", "text": f"n\u2028{i}"} for i in range(2)]
    text = "\r\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    members = {"wrap/0.png": png(), "wrap/1.png": png(), "wrap/metadata.jsonl": ("\ufeff" + text).encode()}
    assert captions(opened(make(tmp_path / form, members))) == [("n\u20280",), ("n\u20281",)]
    bad = {**members, "wrap/metadata.jsonl": b'{"file_name": "0.png", "text": "x"}\n{"file_name": "caf\xe9"}'}
    (tmp_path / "b").mkdir()
    with pytest.raises(UserError, match=r"line 2 of .*metadata\.jsonl. is not UTF-8 text"):
        opened(make(tmp_path / "b" / form, bad))


@pytest.mark.parametrize("form", ["set", "set.zip"])
def test_metadata_of_folders_and_what_it_names(
    tmp_path: Path, form: str, caplog: pytest.LogCaptureFixture
) -> None:
    line = b'{"file_name": "0.png", "text": "%s"}\n'
    members = {**PETS, "cat/metadata.jsonl": line % b"a cat", "dog/metadata.jsonl": line % b"\\ud83d dog",
               "metadata.jsonl": b'{"file_name": "gone.png", "text": "x"}'}  # fmt: skip
    assert captions(opened(make(tmp_path / form, members))) == [("a cat",), None, ("\ufffd dog",)]
    assert 'names 1 images that are not there, such as "gone.png"' in caplog.text
    assert "1 texts with halves of characters, which are replaced" in caplog.text
    (tmp_path / "b").mkdir()
    with pytest.raises(UserError, match=r'line 2 of .* names "0\.png" again'):
        opened(make(tmp_path / "b" / form, {"0.png": png(), "metadata.jsonl": line % b"a" + line % b"b"}))


def test_json_of_any_editor_in_a_shard(tmp_path: Path) -> None:
    meta = json.dumps({"label": 2, "captions": ["", "two", " "], "weights": [1, 1, 3]})
    members = {"0.png": png(), "0.json": ("\ufeff" + meta).encode(), "0.txt": b" \n"}
    source = opened(make(tmp_path / "a.tar", members))
    assert (labels(source), captions(source)) == ([2], [("two",)])
    with pytest.raises(UserError, match=r'the \.json of sample "0" of .* is malformed JSON'):
        opened(make(tmp_path / "b.tar", {"0.png": png(), "0.json": b"{"}))


@pytest.mark.parametrize("form", ["set", "set.zip"])
def test_a_label_file_that_names_an_image_twice(tmp_path: Path, form: str) -> None:
    pairs = [["a.png", 0], ["b.png", 1], ["a.png", 1]]
    members = {"a.png": png(), "b.png": png(), "dataset.json": json.dumps({"labels": pairs}).encode()}
    with pytest.raises(UserError, match=r'gives "a\.png" the labels 0 and 1: keep one'):
        opened(make(tmp_path / form, members))


@pytest.mark.parametrize("form", ["set", "set.zip"])
def test_a_label_file_of_windows_that_names_too_much(
    tmp_path: Path, form: str, caplog: pytest.LogCaptureFixture
) -> None:
    table = json.dumps({"labels": [["x\\a.png", 1], ["./b.png", 0], ["gone.png", 0]]})
    members = {"x/a.png": png(1), "b.png": png(2), "dataset.json": table.encode("utf-8-sig")}
    source = opened(make(tmp_path / form, members))
    assert (labels(source), levels(source)) == ([0, 1], [2, 1])
    assert "labels 1 images that are not there, such as gone.png" in caplog.text


# --- limits ---


@pytest.mark.parametrize("name", ["dataset.json", "metadata.jsonl", "1.png"])
def test_bombs_in_zips_do_not_fill_the_memory(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0.png", png())
        with archive.open(name, "w") as file:
            for _ in range(300):
                file.write(b" " * (1 << 20))
    assert (tmp_path / "a.zip").stat().st_size < 400_000
    tracemalloc.start()
    if name == "1.png":
        batches = Batches(ZipSource(tmp_path / "a.zip"), DataConfig(path="x", size=4), 2, 0)
        next(iter(batches))
        assert "unpacks from" in batches.skipped["1.png"]
    else:
        with pytest.raises(UserError, match=f"{name}. in .* unpacks from .* to 314572800 bytes"):
            opened(tmp_path / "a.zip")
    assert tracemalloc.get_traced_memory()[1] < 32 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("suffix", ["json", "cls"])
def test_labels_of_any_length_are_not_read(tmp_path: Path, suffix: str) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, size in (("0.png", len(png())), (f"0.{suffix}", 100 << 20)):
            member = tarfile.TarInfo(name)
            member.size = size
            archive.addfile(member, io.BytesIO(png() if name == "0.png" else bytes(size)))
    tracemalloc.start()
    with pytest.raises(UserError, match="104857600 bytes, more than any label or caption"):
        opened(tmp_path / "a.tar")
    assert tracemalloc.get_traced_memory()[1] < 32 << 20
    tracemalloc.stop()


def test_sparse_members_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        member = tarfile.TarInfo("0.png")
        member.type = tarfile.GNUTYPE_SPARSE
        archive.addfile(member)
    with pytest.raises(UserError, match="is sparse: pack it anew without holes"):
        opened(tmp_path / "a.tar")
