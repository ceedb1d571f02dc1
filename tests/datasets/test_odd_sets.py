"""Inputs that people have, kind by kind: each is read, or what is left out is named and counted."""

from __future__ import annotations

import io
import json
import os
import struct
import tarfile
import unicodedata
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pixelwright.data import Batches, DataConfig, UnreadableImage, open_source
from pixelwright.data.open import find_source
from pixelwright.data.sources import identity
from pixelwright.data.transforms import read_image, read_size
from pixelwright.errors import UserError
from pixelwright.files import decode_lines
from tests.datasets.test_layout import FORMS, PETS, captions, labels, levels, make, opened, png

Log = pytest.LogCaptureFixture


# --- tars ---
def test_what_a_shard_leaves_out_is_told_at_every_start(tmp_path: Path, caplog: Log) -> None:
    shard = make(tmp_path / "a.tar", {"0.png": png(), "1.dng": b"x", "2.JXL": b"x"})
    for _ in range(2):
        caplog.clear()
        opened(shard)
        assert "left out 1 .dng, 1 .jxl, which are not read" in caplog.text


@pytest.mark.parametrize(
    "prefix", ["../", "/data/", "./a/./", "a//", ".\\a\\", "../../a/../"], ids=lambda text: ascii(text)
)
def test_members_of_any_root(tmp_path: Path, prefix: str) -> None:
    source = opened(make(tmp_path / "a.tar", {prefix + name: data for name, data in PETS.items()}))
    assert (source.class_names, labels(source), levels(source)) == (("cat", "dog"), [0, 0, 1], [0, 1, 2])


def entry(archive: tarfile.TarFile, name: str, data: bytes = b"", link: str = "", hard: bool = False) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.linkname = len(data), link
    member.type = tarfile.REGTYPE if not link else tarfile.LNKTYPE if hard else tarfile.SYMTYPE
    archive.addfile(member, io.BytesIO(data))


def test_links_before_what_they_lead_to(tmp_path: Path, caplog: Log) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        entry(archive, "b/0.png", link="../a/0.png")
        entry(archive, "b/1.png", link="0.png")
        entry(archive, "c/0.png", link=".store/x", hard=True)
        entry(archive, "a/0.png", png(5))
        entry(archive, ".store/x", png(6))
        entry(archive, "c/1.png", link="1.png")  # to itself
        entry(archive, "d", link="a")  # a folder
    source = opened(tmp_path / "a.tar")
    assert (levels(source), source.class_names) == ([5, 5, 6, 5], ("a", "b", "c"))
    assert caplog.text.count("a link to nowhere or no file") == 2


@pytest.mark.parametrize("gap", [0, 512, 512 * 20, 512 * 33])
@pytest.mark.parametrize("end", [0, 512, 1024])
def test_joined_tars_of_any_padding(tmp_path: Path, gap: int, end: int) -> None:
    parts = []
    for i in range(3):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
            entry(archive, f"{'é' * 80}{i}.png", png(i))
        data = buffer.getvalue()
        parts.append(data[: len(data.rstrip(b"\0")) + -len(data.rstrip(b"\0")) % 512] + bytes(end))
    (tmp_path / "a.tar").write_bytes(bytes(gap).join(parts))
    assert levels(opened(tmp_path / "a.tar")) == [0, 1, 2]


def test_samples_without_an_image_are_named(tmp_path: Path, caplog: Log) -> None:
    members = {"0.png": png(), "1.json": b"{}", "1.txt": b"x", "2.dng": b"x", "2.txt": b"y"}
    assert len(opened(make(tmp_path / "a.tar", members))) == 1
    assert 'left out 1 samples without an image, such as "1"' in caplog.text


def test_a_tar_without_its_last_padding(tmp_path: Path) -> None:
    data = make(tmp_path / "a.tar", {"0.png": png(1), "1.png": png(2)}).read_bytes().rstrip(b"\0")
    (tmp_path / "b.tar").write_bytes(data)
    assert levels(opened(tmp_path / "b.tar")) == [1, 2]
    (tmp_path / "c.tar").write_bytes(data[:-1])
    with pytest.raises(UserError, match="unexpected end of data"):
        opened(tmp_path / "c.tar")


def test_names_that_come_again_are_told(tmp_path: Path, caplog: Log) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for level in (1, 2):  # as `tar -r` and `tar -A` leave them
            entry(archive, "0.png", png(level))
            entry(archive, "0.cls", b"%d" % level)
    source = opened(tmp_path / "a.tar")
    assert (levels(source), labels(source)) == ([1, 2], [1, 2])
    assert '1 names come again, such as "0.png"' in caplog.text


@pytest.mark.parametrize(
    "name", ["a-1.tgz", "a-1.tar.zst", "a-1.TAR.GZ", "a-1.tbz2", "a-1.tar.lz4", "a-1.txz"]
)
def test_compressed_shards_of_any_suffix(tmp_path: Path, name: str) -> None:
    make(tmp_path / "set/a-0.tar", {"0.png": png()})
    (tmp_path / "set" / name).write_bytes(b"x")
    with pytest.raises(UserError, match=r"a-1\..* is compressed and cannot be read in place: "):
        opened(tmp_path / "set")


def test_unfinished_downloads_and_other_archives_are_named(tmp_path: Path, caplog: Log) -> None:
    make(tmp_path / "set/a-0.tar", {"0.png": png()})
    for name in ("a-1.tar.part", "a-2.tar.1", "a-0.tar.md5", "notes.7z"):
        (tmp_path / "set" / name).write_bytes(b"x")
    assert len(opened(tmp_path / "set")) == 1
    assert "left out 3 archives, such as" in caplog.text


def test_shards_without_labels_are_one_class_aloud(tmp_path: Path, caplog: Log) -> None:
    for name in ("n01", "n02"):  # as ImageNet's own: a tar for each class
        make(tmp_path / f"set/{name}.tar", {f"{name}_0.png": png()})
    assert opened(tmp_path / "set").num_classes == 1
    assert "no sample has a label, so all images are one class" in caplog.text


@pytest.mark.parametrize(
    ("metas", "names", "numbers"),
    [
        (['{"label": "dog"}', '{"label": "cat"}'], ("cat", "dog"), [1, 0]),
        (['{"class": "dog"}', '{"class": "cat"}'], ("cat", "dog"), [1, 0]),
        (['{"category": 3}', '{"category": 0}'], None, [3, 0]),
        (['{"label": 1, "class": "b"}', '{"label": 0, "class": "a"}'], ("a", "b"), [1, 0]),
    ],
)
def test_labels_in_json(
    tmp_path: Path, metas: list[str], names: tuple[str, ...] | None, numbers: list[int]
) -> None:
    members = {f"{i}.{kind}": data for i, meta in enumerate(metas)
               for kind, data in (("png", png(i)), ("json", meta.encode()))}  # fmt: skip
    source = opened(make(tmp_path / "a.tar", members))
    assert (source.class_names, labels(source)) == (names, numbers)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf", b"\xff\xfe", b"\xff\xfe\r\0\n\0"])
def test_an_empty_text_of_any_kind_beside_json(tmp_path: Path, mark: bytes) -> None:
    members = {"0.png": png(), "0.json": b'{"caption": "two"}', "0.txt": mark}
    assert captions(opened(make(tmp_path / "a.tar", members))) == [("two",)]


def test_halves_of_characters_in_a_shard_are_counted(tmp_path: Path, caplog: Log) -> None:
    members = {"0.png": png(), "0.json": b'{"caption": "\\ud83d dog"}', "1.png": png(),
               "1.json": b'{"caption": "\\ud83d\\ude00"}'}  # fmt: skip
    assert captions(opened(make(tmp_path / "a.tar", members))) == [("\ufffd dog",), ("\U0001f600",)]
    assert "1 texts with halves of characters, which are replaced" in caplog.text


def test_a_file_is_known_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = tmp_path / "a", tmp_path / "b"
    one.write_bytes(b"one"), two.write_bytes(b"two")
    same = os.stat(one)
    monkeypatch.setattr(os, "fstat", lambda number: same)  # a disk on which nothing else tells
    before = identity(one)
    one.write_bytes(b"owe")
    assert identity(one) != before


# --- zips ---
def test_names_of_macos_in_zips(tmp_path: Path) -> None:
    name = unicodedata.normalize("NFD", "café") + "/é.png"
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for each in (name, "tea/0.png"):
            archive.writestr(each, png())
    raw = (tmp_path / "a.zip").read_bytes()  # Finder writes UTF-8 without saying so
    for start in (b"PK\x03\x04", b"PK\x01\x02"):
        at = 6 if start[2] == 3 else 8
        pieces = raw.split(start)
        raw = start.join([pieces[0], *(p[: at - 4] + bytes(2) + p[at - 2 :] for p in pieces[1:])])
    (tmp_path / "a.zip").write_bytes(raw)
    assert opened(tmp_path / "a.zip").class_names == ("café", "tea")


def test_names_in_old_code_pages_are_told(tmp_path: Path, caplog: Log) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("caf?/0.png", png())
        archive.writestr("tea/0.png", png())
    raw = (tmp_path / "a.zip").read_bytes().replace(b"caf?", b"caf\x82")
    (tmp_path / "a.zip").write_bytes(raw)
    assert opened(tmp_path / "a.zip").class_names == ("café", "tea")
    assert "1 names are not in UTF-8; they are taken for those of code page 437" in caplog.text


def test_zips_from_pipes_and_large_ones(tmp_path: Path) -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def seek(self, *to: int) -> int:
            raise io.UnsupportedOperation

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w") as archive:  # sizes in data descriptors
        for name, data in PETS.items():
            archive.writestr(name, data)
    (tmp_path / "a.zip").write_bytes(pipe.getvalue())
    assert levels(opened(tmp_path / "a.zip")) == [0, 1, 2]
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        for name, data in PETS.items():
            with archive.open(name, "w", force_zip64=True) as file:
                file.write(data)
    assert levels(opened(tmp_path / "b.zip")) == [0, 1, 2]


def test_doubles_and_links_in_zips_are_counted(tmp_path: Path, caplog: Log) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        for level in (1, 2):
            archive.writestr("0.png", png(level))
        link = zipfile.ZipInfo("1.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "0.png")
    assert levels(opened(tmp_path / "a.zip")) == [2]
    assert "1 images are there twice; the last of each is read" in caplog.text
    assert "left out 1 links, which zips cannot follow" in caplog.text


def encrypt(path: Path, name: bytes) -> None:
    """Mark a member as encrypted."""
    raw = bytearray(path.read_bytes())
    for start, flags, length in ((b"PK\x03\x04", 6, 30), (b"PK\x01\x02", 8, 46)):
        at = 0
        while (at := raw.find(start, at)) >= 0:
            if raw[at + length : at + length + len(name)] == name:
                raw[at + flags] |= 1
            at += 4
    path.write_bytes(bytes(raw))


@pytest.mark.parametrize("name", ["0.png", "0.txt", "metadata.jsonl", "dataset.json"])
def test_encrypted_members_are_named(tmp_path: Path, caplog: Log, name: str) -> None:
    members = {"0.png": png(0), "1.png": png(1), "0.txt": b"a", "1.txt": b"b"}
    if name.startswith("dataset"):
        members[name] = b'{"labels": null}'
    elif name.startswith("metadata"):
        members[name] = b'{"file_name": "0.png", "caption": "x"}'
    path = make(tmp_path / "a.zip", members)
    encrypt(path, name.encode())
    if name[0] in "md":
        with pytest.raises(UserError, match=rf'"{name}" in ".*a\.zip" cannot be read .*encrypted'):
            opened(path)
        return
    source = opened(path)
    if name == "0.png":
        with pytest.raises(UnreadableImage, match="encrypted"):
            source[0]
    else:
        assert captions(source) == [None, ("b",)] and "until then it is no caption" in caplog.text


# --- folders and splits ---
SPLIT_FOLDERS = [
    ("training_set", "test_set"), ("seg_train", "seg_test"), ("trainA", "testA"), ("train_img", "val_images"),
    ("images/train", "images/val"), ("Train", "Validation"), ("dev", "eval"), ("train", "valid_data"),
    ("train", "unlabeled"), ("trainval", "extra"), ("train2017", "minival2017"),
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("names", SPLIT_FOLDERS)
def test_splits_of_any_name_are_refused(tmp_path: Path, form: str, names: tuple[str, str]) -> None:
    members = {f"{split}/{name}": data for split in names for name, data in PETS.items()}
    with pytest.raises(UserError, match=r"holds the splits .* side by side: "):
        opened(make(tmp_path / form, members))


@pytest.mark.parametrize("form", FORMS)
def test_words_of_splits_in_names_of_classes_are_no_splits(tmp_path: Path, form: str) -> None:
    members = {"test tube/0.png": png(), "train station/0.png": png(), "trainA/0.png": png()}
    assert opened(make(tmp_path / form, members)).num_classes == 3


@pytest.mark.parametrize("names", [("set.train.0.tar", "set.test.0.tar"), ("trainset.tar", "testset.tar")])
def test_shards_of_splits_by_any_name(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        make(tmp_path / "set" / name, {"0.png": png()})
    with pytest.raises(UserError, match="holds the splits"):
        opened(tmp_path / "set")


@pytest.mark.parametrize("form", FORMS[:2])
def test_folders_without_images_are_named(tmp_path: Path, form: str, caplog: Log) -> None:
    members = {f"images/{name}": data for name, data in {**PETS, "eel/notes.md": b"x"}.items()}
    assert opened(make(tmp_path / form, members)).class_names == ("cat", "dog")
    assert "nothing is left of eel, where no image is" in caplog.text


def test_empty_folders_links_to_nowhere_and_links_as_files_are_named(tmp_path: Path, caplog: Log) -> None:
    folder = make(tmp_path / "set", PETS)
    (folder / "eel").mkdir()
    (folder / "kitten").symlink_to("gone")
    (folder / "puppy").write_text("dog")  # what becomes of a link where there are none
    assert opened(folder).class_names == ("cat", "dog")
    assert "nothing is left of eel" in caplog.text
    assert "left out 2 files without a suffix, such as" in caplog.text
    caplog.clear()
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, data in {**PETS, "eel/": b""}.items():
            archive.writestr(name, data)
    assert (
        opened(tmp_path / "a.zip").class_names == ("cat", "dog") and "nothing is left of eel" in caplog.text
    )


@pytest.mark.parametrize("name", ["a.apng", "a.mpo", "a.dng", "a.cr2", "a.ICO"])
def test_more_kinds_that_are_not_read(tmp_path: Path, caplog: Log, name: str) -> None:
    opened(make(tmp_path / "set", {"0.png": png(), name: b"x"}))
    assert f"left out 1 .{name[2:].lower()}, which are not read" in caplog.text


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, scan = make(tmp_path / "set", PETS), os.scandir

    def refuse(place: str) -> Any:
        if str(place).endswith("dog"):
            raise PermissionError(13, "Permission denied", place)
        return scan(place)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r'dog" cannot be read \(Permission denied\)'):
        opened(folder)


@pytest.mark.parametrize("form", FORMS[:2])
def test_class_names_are_in_one_form_and_order(tmp_path: Path, form: str) -> None:
    names = [unicodedata.normalize("NFD", "éa"), "f", "e"]
    source = opened(make(tmp_path / form, {f"{name}/0.png": png() for name in names}))
    assert source.class_names == ("e", "f", "éa")


# --- text ---
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("beside", ["a.txt", "a.jpg.txt", "a.caption", "a.TXT", "a.text"])
def test_captions_beside_an_image(tmp_path: Path, form: str, beside: str, caplog: Log) -> None:
    members = {"a.jpg": png(), beside: b"a dog", "README.txt": b"x"}
    assert captions(opened(make(tmp_path / form, members))) == [("a dog",)]
    named = 'left out 1 texts beside no image of their name, such as "README.txt"'
    assert form == "set.tar" or named in caplog.text


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mark", [None, b"", b"\xef\xbb\xbf \n"])
def test_captions_in_json_beside_an_image(tmp_path: Path, form: str, mark: bytes | None) -> None:
    members = {"a.jpg": png(), "a.json": b'{"caption": "a dog", "url": "x"}', "b.jpg": png(), "b.json": b"[]"}
    if mark is not None:
        members["a.txt"] = mark
    assert captions(opened(make(tmp_path / form, members))) == [("a dog",), None]


def test_metadata_above_the_wrapper_and_in_another_form(tmp_path: Path, caplog: Log) -> None:
    nfc, nfd = (unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD"))
    line = {"file_name": f"./images\\cat\\{nfc}", "caption": "a cat", "label": 3}
    members = {f"images/cat/{nfd}": png(), "images/dog/0.png": png(),
               "metadata.jsonl": json.dumps(line).encode()}  # fmt: skip
    assert captions(opened(make(tmp_path / "set", members))) == [("a cat",), None]
    assert "its 1 labels are not read" in caplog.text and "not there" not in caplog.text


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        (["two", None], ("two",)), (["two", float("nan")], ("two",)), (["", " \t", "two"], ("two",)),
        ("a\u3000b\u00a0c\u0085d", ("a\u3000b\u00a0c\u0085d",)), (" a \r\n\tb ", ("a b",)),
        (float("nan"), None),
    ],
)  # fmt: skip
def test_alternatives_are_taken_one_by_one(tmp_path: Path, value: object, texts: object) -> None:
    line = json.dumps({"file_name": "0.png", "captions": value}, ensure_ascii=False)
    members = {"0.png": png(), "metadata.jsonl": line.encode()}
    assert captions(opened(make(tmp_path / "set", members))) == [texts]


def test_lines_that_end_in_cr_alone_are_refused() -> None:
    with pytest.raises(UserError, match="line 2 of here holds a CR alone"):
        decode_lines(b"a\r\nb\rc\r", "here")
    assert decode_lines(b"a\r\nb\r\n\r\n", "here") == ["a", "b", ""]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32", "latin-1", "utf-8"])
def test_text_that_cannot_be_told_is_named(tmp_path: Path, caplog: Log, encoding: str) -> None:
    data = "x\nun café".encode(encoding) if encoding != "utf-8" else b"x\n\xed\xa0\x80"
    source = opened(make(tmp_path / "set", {"0.png": png(), "0.txt": data}))
    assert captions(source) == [None] and "0.txt" in caplog.text and "is not UTF-8 text" in caplog.text


def test_labels_that_are_no_table_or_twice_named(tmp_path: Path) -> None:
    for number, (more, said) in enumerate(
        [({"class_names": "ab"}, "class_names is no list"), ({"class_names": ["a", "a"]}, '"a" twice')]
    ):
        table = json.dumps({"labels": [["0.png", 0]], **more}).encode()
        with pytest.raises(UserError, match=said):
            opened(make(tmp_path / str(number), {"0.png": png(), "dataset.json": table}))


# --- tables ---
pyarrow = pytest.importorskip("pyarrow")


def table(path: Path, columns: dict[str, Any], names: list[str] | None = None) -> Path:
    import pyarrow.parquet

    found = pyarrow.table(columns)
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        found = found.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(found, path)
    return path


def cells(*values: int) -> list[dict[str, Any]]:
    return [{"bytes": png(value), "path": None} for value in values]


def test_parquet_with_class_names_in_some_files_only(tmp_path: Path) -> None:
    table(tmp_path / "0.parquet", {"image": cells(0, 1), "label": [0, 1]}, ["cat", "dog"])
    table(tmp_path / "1.parquet", {"image": cells(0, 1), "label": [0, 1]})
    with pytest.raises(UserError, match=r'1\.parquet" does not name its classes, as ".*0\.parquet" does'):
        opened(tmp_path)


def test_parquet_with_a_class_named_twice(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='names the class "cat" twice'):
        opened(table(tmp_path / "0.parquet", {"image": cells(0), "label": [0]}, ["cat", "cat"]))


def test_parquet_captions_of_several_columns_and_null(tmp_path: Path) -> None:
    words = pyarrow.array(["x", None, ""]).dictionary_encode()
    columns = {"image": cells(0, 1, 2), "caption": words, "text": [None, "y", "z"]}
    assert captions(opened(table(tmp_path / "a.parquet", columns))) == [("x",), ("y",), ("z",)]


def test_parquet_text_that_is_not_utf8(tmp_path: Path, caplog: Log) -> None:
    raw = pyarrow.array([b"caf\xe9", b"tea"]).cast(pyarrow.binary())
    text = pyarrow.Array.from_buffers(pyarrow.string(), 2, raw.buffers())
    source = opened(table(tmp_path / "a.parquet", {"image": cells(0, 1), "text": text}))
    assert captions(source) == [None, ("tea",)] and 'a text of "a.parquet#0" is not UTF-8' in caplog.text
    with pytest.raises(UserError, match="has a label that is not UTF-8"):
        opened(table(tmp_path / "b.parquet", {"image": cells(0, 1), "label": text}))


SPLIT_TABLES = [("train/0.parquet", "test/0.parquet"), ("data/train-0.parquet", "data/dev.parquet")]
SPLIT_TABLES += [("trainset.parquet", "valset.parquet"), ("a.train.parquet", "a.test.parquet")]


@pytest.mark.parametrize("names", SPLIT_TABLES)
def test_parquet_of_several_splits(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        table(tmp_path / "set" / name, {"image": cells(0), "label": [0]})
    with pytest.raises(UserError, match="holds the splits"):
        opened(tmp_path / "set")


@pytest.mark.parametrize("label", [[1.0, 0.0], [True, False], [None, 1], ["cat", None], [[0], [1]]])
def test_parquet_labels_that_are_none(tmp_path: Path, label: list[Any]) -> None:
    with pytest.raises(UserError, match=r"has the label .*: labels are whole numbers from 0"):
        opened(table(tmp_path / "a.parquet", {"image": cells(0, 1), "label": label}))


# --- pixels ---
def test_sixteen_bit_tiffs_where_zero_is_white() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), 60000, np.uint16)).save(buffer, "TIFF")
    raw = bytearray(buffer.getvalue())
    at = raw.find(struct.pack("<HHI", 262, 3, 1))
    raw[at + 8] = 0
    assert read_image(bytes(raw)).getpixel((0, 0)) == (255 - 233,) * 3


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", [0, 1, 3, 6, 8, 9, 300])
def test_size_and_pixels_agree_on_any_orientation(kind: str, orientation: int) -> None:
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.new("RGB", (12, 6)).save(buffer, kind, exif=exif)
    image = read_image(buffer.getvalue())
    assert read_size(buffer.getvalue()) == image.size == ((6, 12) if 5 <= orientation <= 8 else (12, 6))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "I;16", "CMYK"])
def test_modes_are_white_where_they_are(mode: str) -> None:
    image = Image.new("RGB", (4, 4), "white")
    if mode == "I;16":
        image = Image.fromarray(np.full((4, 4), 65535, np.uint16))
    buffer = io.BytesIO()
    (image if mode == "I;16" else image.convert(mode)).save(buffer, "TIFF" if mode == "CMYK" else "PNG")
    assert read_image(buffer.getvalue()).getpixel((0, 0)) == (255, 255, 255)


def test_a_sample_that_is_damaged_costs_one(tmp_path: Path) -> None:
    source = find_source(DataConfig(path=str(make(tmp_path / "set", {"0.png": b"x", "1.png": png(3)}))))
    batches = Batches(source, DataConfig(path="x", size=4), 2, 0)
    assert next(iter(batches)).indices.tolist() == [1, 1] and list(batches.skipped) == ["0.png"]
    assert open_source(DataConfig(path=str(tmp_path / "set"))).num_classes == 1
