"""Damaged and hostile files: one line, exit code 2, nothing run, nothing written, memory bounded."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor

import pixelwright as pw
from pixelwright.cli.main import main
from tests.hub.published import T2I, lightning, prefixed, shards
from tests.recordings import weights

NAME = "pixeldit_c2i"
QKV = "patch_blocks.0.attn.qkv.weight"
MODULATION = "pixel_blocks.1.adaLN_modulation.0"
Tensors = dict[str, Tensor]


class Harmful:
    """Unpickling it would run a command that leaves a file behind."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch harm-was-done",)


class Maker:
    """A pickle that calls `function` with `arguments`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def tensors(change: Callable[[Tensors], object]) -> Callable[[Path], str]:
    """A safetensors file with its tensors changed."""

    def write(folder: Path) -> str:
        found = {key: value.clone() for key, value in weights(NAME).items()}
        change(found)
        save_file(found, folder / "x.safetensors")
        return "x.safetensors"

    return write


def raw(content: Callable[[bytes], bytes], name: str = "x.safetensors") -> Callable[[Path], str]:
    """A file whose bytes are made from those of a good one."""

    def write(folder: Path) -> str:
        if name.endswith(".safetensors"):
            good = save(weights(NAME))
        else:
            buffer = io.BytesIO()
            torch.save(lightning(NAME), buffer)
            good = buffer.getvalue()
        (folder / name).write_bytes(content(good))
        return name

    return write


def pickled(content: Callable[[], object], **settings: Any) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        torch.save(content(), folder / "x.ckpt", **settings)
        return "x.ckpt"

    return write


def beside(thing: object) -> Callable[[Path], str]:
    """A good Lightning file with one more object in it."""
    return pickled(lambda: {**lightning(NAME), "more": thing})


def state(change: Callable[[Tensors], object]) -> Callable[[Path], str]:
    """A Lightning file with its state_dict changed."""

    def content() -> dict[str, object]:
        file = lightning(NAME)
        change(file["state_dict"])  # type: ignore[arg-type]
        return file

    return pickled(content)


def header(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], str]:
    """A safetensors file with its header rewritten."""

    def content(good: bytes) -> bytes:
        size = struct.unpack("<Q", good[:8])[0]
        data = json.loads(good[8 : 8 + size])
        change(data)
        text = json.dumps(data).encode()
        return struct.pack("<Q", len(text)) + text + good[8 + size :]

    return raw(content)


def repacked(compression: int = zipfile.ZIP_STORED, **members: bytes) -> Callable[[Path], str]:
    """A Lightning file packed anew, with members replaced by their last name (`_` stands for a dot)."""

    def content(good: bytes) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(good)) as old, zipfile.ZipFile(out, "w", compression) as new:
            for info in old.infolist():
                name = info.filename.rsplit("/")[-1].replace(".", "_")
                new.writestr(info.filename, members.get(name, old.read(info)))
        return out.getvalue()

    return raw(content, "x.ckpt")


def sharded(change: Callable[[Path], object]) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        index = shards(weights(NAME), folder)
        change(index)
        return index.name

    return write


def reindex(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], str]:
    def edit(index: Path) -> None:
        data = json.loads(index.read_text())
        change(data)
        index.write_text(json.dumps(data))

    return sharded(edit)


def ours(change: Callable[[Path], object]) -> Callable[[Path], str]:
    """A model folder, changed."""

    def write(folder: Path) -> str:
        pw.save(pw.create("dit-ti-4", depth=1, hidden_size=16, num_heads=1), folder / "model")
        change(folder / "model")
        return "model"

    return write


def edit(path: Path, change: Callable[[str], str]) -> None:
    path.write_text(change(path.read_text()))


def break_directory(content: bytes) -> bytes:
    """The last name in an archive's directory is no UTF-8 any more."""
    name = content.rindex(b"PK\x01\x02") + 46
    return content[:name] + b"\xff" + content[name + 1 :]


def set_value(key: str, value: float) -> Callable[[Tensors], None]:
    def change(found: Tensors) -> None:
        found[key].view(-1)[3] = value

    return change


def swap(a: str, b: str) -> Callable[[Tensors], None]:
    def change(found: Tensors) -> None:
        found[a], found[b] = found[b], found[a]

    return change


def drop(start: str) -> Callable[[dict[str, Any]], None]:
    def change(found: dict[str, Any]) -> None:
        for key in [key for key in found if key.startswith(start)]:
            del found[key]

    return change


def rename(old: str, new: str) -> Callable[[Tensors], None]:
    return lambda found: found.update({new: found.pop(old)})


def half_postmod(found: Tensors) -> None:
    other = weights("pixeldit_c2i_postmod")
    found.update({f"{MODULATION}.{part}": other[f"{MODULATION}.{part}"] for part in ("weight", "bias")})


def endless(found: Tensors) -> None:
    found[f"ema_denoiser.{QKV}"] = torch.zeros(1).expand(10**6, 10**6)


def copies(name: str) -> bytes:
    """A pickle that makes 30,000 objects of one of 30,000 entries: 0.2 MB that would take gigabytes."""
    entries = b"".join(b"M" + struct.pack("<H", i) + b"K\x00" for i in range(30_000))
    values = b"}r\x00\x01\x00\x00(" + entries + b"u0"
    return (
        b"\x80\x02c"
        + name.encode()
        + b"q\x00"
        + values
        + b"]("
        + b"h\x00j\x00\x01\x00\x00\x85R" * 30_000
        + b"e."
    )


CASES: dict[str, tuple[Callable[[Path], str], str]] = {
    # cut short, empty, something else
    "safetensors cut short": (raw(lambda b: b[:-100]), "damaged"),
    "safetensors cut in its header": (raw(lambda b: b[:1000]), "damaged"),
    "safetensors empty": (raw(lambda b: b""), "damaged"),
    "safetensors longer than it says": (raw(lambda b: b + b"x" * 100), "damaged"),
    "safetensors is a picture": (raw(lambda b: b"\x89PNG\r\n\x1a\n" * 99), "damaged"),
    "header of exabytes": (raw(lambda b: b"\xff" * 7 + b"\x7f" + b[8:]), "header claims"),
    "header as long as the file": (raw(lambda b: struct.pack("<Q", len(b) - 8) + b[8:]), "damaged"),
    "header larger than allowed": (
        raw(lambda b: struct.pack("<Q", 20 << 20) + b'{"a":' + b"[" * (20 << 20)),
        "header claims",
    ),
    "header nested deeply": (raw(lambda b: struct.pack("<Q", 99999) + b"[" * 99999), "damaged"),
    "header with an absurd shape": (header(lambda h: h[QKV].update(shape=[2**40, 2**40])), "damaged"),
    "header with a negative shape": (header(lambda h: h[QKV].update(shape=[-1, 48])), "damaged"),
    "header with overlapping tensors": (
        header(lambda h: h[QKV].update(data_offsets=h["patch_blocks.1.attn.qkv.weight"]["data_offsets"])),
        "damaged",
    ),
    "header with an unknown dtype": (header(lambda h: h[QKV].update(dtype="F7")), "damaged"),
    "ckpt cut short": (raw(lambda b: b[:-1000], "x.ckpt"), "damaged"),
    "ckpt with a hole": (raw(lambda b: b[:5000] + b[9000:], "x.ckpt"), "damaged"),
    "ckpt with a broken directory": (raw(break_directory, "x.ckpt"), "damaged"),
    "ckpt empty": (raw(lambda b: b"", "x.ckpt"), "damaged"),
    "ckpt is a text": (raw(lambda b: b"hello " * 99, "x.ckpt"), "damaged"),
    "ckpt is a bare pickle": (raw(lambda b: pickle.dumps(Harmful()), "x.ckpt"), "PyTorch before 1.6"),
    "suffix unknown": (raw(lambda b: b, "x.weights"), ".safetensors"),
    # tensors that do not fit
    "one block missing": (tensors(drop("patch_blocks.1.")), 'misses "patch_blocks.1"'),
    "last of a block missing": (tensors(drop("patch_blocks.2.mlp.w2")), 'missing "patch_blocks.2.mlp.w2'),
    "embedder missing": (tensors(drop("s_embedder.proj.weight")), 'misses "s_embedder.proj.weight"'),
    "class table missing": (tensors(drop("y_embedder")), "y_embedder.embedding_table.weight"),
    "misspelt key": (
        tensors(rename(QKV, QKV.replace("qkv", "qvk"))),
        f'"{QKV.replace("qkv", "qvk")}", did you mean "{QKV}"',
    ),
    "extra tensor": (tensors(lambda t: t.update(stranger=torch.zeros(1))), 'unexpected "stranger"'),
    "many extra tensors": (
        tensors(lambda t: t.update({f"s{i}": torch.zeros(1) for i in range(30)})),
        "and 20 more",
    ),
    "endless name": (tensors(lambda t: t.update({"s" * 9999: torch.zeros(1)})), "sss…"),
    "swapped layers": (tensors(swap(QKV, "patch_blocks.0.attn.proj.weight")), "[48, 48], expected [144, 48]"),
    "one tensor of integers": (tensors(lambda t: t.update({QKV: t[QKV].to(torch.int8)})), "int"),
    "two dtypes": (tensors(lambda t: t.update({QKV: t[QKV].bfloat16()})), "--dtype"),
    "a scalar for a matrix": (tensors(lambda t: t.update({QKV: torch.zeros(())})), "[], expected"),
    "an empty embedder": (
        tensors(lambda t: t.update({"s_embedder.proj.weight": torch.zeros(0, 192)})),
        "none of them empty",
    ),
    "patches that are not square": (
        tensors(lambda t: t.update({"s_embedder.proj.weight": torch.zeros(48, 190)})),
        "no 3·P·P",
    ),
    "heads that do not divide": (
        tensors(lambda t: t.update({"patch_blocks.0.attn.q_norm.weight": torch.zeros(7)})),
        "does not divide",
    ),
    "half one variant": (tensors(half_postmod), f'"{MODULATION}.weight" is ['),
    "NaN": (tensors(set_value(QKV, float("nan"))), "holds NaN weights"),
    "infinity": (state(set_value(f"ema_denoiser.{QKV}", float("inf"))), "holds infinite weights"),
    "two networks": (tensors(lambda t: t.update(weights("dip"))), "both PixelDiT and DiP"),
    "no network": (tensors(lambda t: t.clear()), "of no known network"),
    "half a network for text": (
        tensors(lambda t: (t.clear(), t.update({k: torch.zeros(s) for k, s in T2I.items()}))),
        'misses "pixel_blocks.0',
    ),
    # Lightning files
    "half the EMA weights": (state(drop("ema_denoiser.patch_blocks.")), 'misses "patch_blocks'),
    "unknown part": (state(lambda t: t.update({"discriminator.w": torch.zeros(1)})), '"discriminator.w"'),
    "two networks by prefix": (state(lambda t: t.update({f"net.{QKV}": torch.zeros(1)})), f'"net.{QKV}"'),
    "no state_dict": (pickled(lambda: {"epoch": 3}), "not a tensor"),
    "a list": (pickled(lambda: [torch.zeros(1)]), "no state_dict"),
    "numbers for tensors": (state(lambda t: t.update({f"ema_denoiser.{QKV}": 3})), "int, not a tensor"),
    "endless tensor of one number": (state(endless), "without the bytes"),
    "old format": (pickled(lambda: lightning(NAME), _use_new_zipfile_serialization=False), "before 1.6"),
    # pickles with more in them than weights
    "a command": (beside(Harmful()), '"posix.system"'),
    "a command instead of weights": (pickled(Harmful), '"posix.system"'),
    "eval": (beside(Maker(eval, "open('harm-was-done', 'w')")), "eval"),
    "an unknown class": (beside(Maker), "test_damaged.Maker"),
    "a terabyte of zeros": (beside(Maker(bytearray, 10**12)), "bytearray"),
    "a command in a newer pickle": (pickled(Harmful, pickle_protocol=4), '"posix.system"'),
    "broken pickle": (repacked(data_pkl=b"\x80\x02}q\x00("), "damaged"),
    "garbage for a pickle": (repacked(data_pkl=b"\xffgarbage"), "damaged"),
    "storage missing": (repacked(**{"0": b""}), "damaged"),
    "copies of a dict": (repacked(data_pkl=copies("collections\nOrderedDict\n")), "no state_dict"),
    "copies of a size": (repacked(data_pkl=copies("torch\nSize\n")), "damaged"),
    "compressed": (repacked(zipfile.ZIP_DEFLATED), "compressed"),
    "a bomb": (repacked(zipfile.ZIP_DEFLATED, data_pkl=bytes(150 << 20)), "compressed"),
    "an empty zip": (raw(lambda b: b"PK\x05\x06" + bytes(18), "x.ckpt"), "data.pkl"),
    # shards
    "shard missing": (
        sharded(lambda i: (i.parent / "m-00002-of-00002.safetensors").unlink()),
        "not beside it",
    ),
    "index broken": (sharded(lambda i: i.write_text("{")), "JSON"),
    "index without a map": (reindex(lambda d: d.pop("weight_map")), "weight_map"),
    "index that leaves its folder": (
        reindex(lambda d: d["weight_map"].update(a="../../secret.safetensors")),
        "../../secret",
    ),
    "index with a tensor too many": (
        reindex(lambda d: d["weight_map"].update(a="m-00001-of-00002.safetensors")),
        'disagree on "a"',
    ),
    "index with a tensor too few": (reindex(lambda d: d["weight_map"].pop(QKV)), f'disagree on "{QKV}"'),
    # folders
    "folder without weights": (ours(lambda f: (f / "model.safetensors").unlink()), "model.safetensors"),
    "folder cut short": (ours(lambda f: os.truncate(f / "model.safetensors", 5000)), "damaged"),
    "folder with another config": (
        ours(lambda f: edit(f / "config.json", lambda text: text.replace("16", "32", 1))),
        "expected",
    ),
    "folder of nothing": (lambda p: ((p / "empty").mkdir(), "empty")[1], "holds no weights"),
    "nowhere": (lambda p: "nowhere", "nowhere does not exist"),
}  # fmt: skip


def test_the_corpus_is_large() -> None:
    assert len(CASES) >= 30


@pytest.mark.parametrize("name", CASES)
def test_one_line_and_nothing_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write, said = CASES[name]
    source = write(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main(["convert", source, "new/out"]) == 2
    printed = capsys.readouterr()
    assert len(printed.err.splitlines()) == 1 and len(printed.err) < 3000
    assert printed.err.startswith("pixelwright: error: ") and said in printed.err, printed.err
    assert printed.out == ""
    assert sorted(tmp_path.rglob("*")) == before  # no OUT, nothing unfinished, no harm done
    if source not in ("nowhere",):
        with pytest.raises(pw.UserError):
            pw.load(source)
        assert sorted(tmp_path.rglob("*")) == before


def test_the_files_that_the_damaged_ones_are_made_from(tmp_path: Path) -> None:
    """So that no case fails for a reason other than its own."""
    good = {
        "t": tensors(lambda _: None), "r": raw(lambda b: b), "h": header(lambda _: None),
        "s": state(lambda _: None),
        "z": repacked(), "i": reindex(lambda _: None), "o": ours(lambda _: None), "b": beside([1, "x", None]),
        "p": pickled(lambda: lightning(NAME), pickle_protocol=4),
    }  # fmt: skip
    for name, write in good.items():
        folder = tmp_path / name
        folder.mkdir()
        assert main(["convert", str(folder / write(folder)), str(folder / "out")]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["x.safetensors", "full"], "exists already"),
        (["x.safetensors", "x.safetensors", "--to", "public"], "exists already"),
        (["x.safetensors", "y.ckpt"], "--to public"),
        (["x.safetensors", "y.bin", "--to", "public"], ".ckpt, .pth, .safetensors"),
        (["x.safetensors", "x.safetensors/y"], "x.safetensors"),
        (["x.safetensors", "y", "--dtype", "fp8"], "fp8"),
        (["x.safetensors", "y", "--weights", "ema"], "EMA"),
        (["x.safetensors", "y", "--sampler", "pixeldit"], "pixeldit-xl-512"),
        (["large.safetensors", "y", "--dtype", "fp16"], "as float16"),
    ],
)
def test_what_cannot_be_done_is_said(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    public = weights(NAME)
    save_file(public, "x.safetensors")
    save_file({**public, QKV: public[QKV] * 1e9}, "large.safetensors")
    Path("full").mkdir()
    Path("full/precious").touch()
    before = sorted(tmp_path.rglob("*"))
    assert main(["convert", *arguments]) == 2
    printed = capsys.readouterr()
    assert len(printed.err.splitlines()) == 1 and said in printed.err
    assert sorted(tmp_path.rglob("*")) == before


def test_an_interrupted_conversion_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pixelwright.hub.checkpoint import Checkpoint

    save_file(weights(NAME), tmp_path / "x.safetensors")
    read, calls = Checkpoint.read, iter(range(9))

    def stop(self: Checkpoint, name: str) -> Tensor:
        if next(calls) == 5:
            raise KeyboardInterrupt
        return read(self, name)

    monkeypatch.setattr(Checkpoint, "read", stop)
    assert main(["convert", str(tmp_path / "x.safetensors"), str(tmp_path / "a" / "b" / "out")]) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


MEASURE = """
import resource, sys, torch
import pixelwright.cli.convert
from pixelwright.cli.main import main
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
torch.zeros(8, 8) @ torch.zeros(8, 8)
before = peak()
code = main(sys.argv[1:])
print("PEAK", code, peak() - before)
"""


def peak_memory(*arguments: str) -> tuple[int, int]:
    """Exit code of a command in a process of its own, and the memory it took beyond Python and PyTorch."""
    environment = {**os.environ, "PYTHONPATH": str(Path(pw.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    )
    code, peak = done.stdout.splitlines()[-1].split()[1:]
    return int(code), int(peak)


@pytest.mark.parametrize(
    "name", ["a bomb", "a terabyte of zeros", "header larger than allowed", "copies of a dict"]
)
def test_a_bomb_takes_little_memory(name: str, tmp_path: Path) -> None:
    source = CASES[name][0](tmp_path)
    code, peak = peak_memory("convert", str(tmp_path / source), str(tmp_path / "out"))
    assert code == 2 and peak < 64 << 20


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("to", ["folder", "public"])
@pytest.mark.parametrize("dtype", [[], ["--dtype", "bf16"]], ids=str)
def test_peak_memory_stays_near_the_files_size(
    suffix: str, to: str, dtype: list[str], tmp_path: Path
) -> None:
    """200 MB of weights in one set; a Lightning file with two would only make it easier."""
    public = pw.hub.to_public(pw.create("pixeldit-b-16", depth=1))
    source = tmp_path / f"x{suffix}"
    if suffix == ".ckpt":
        torch.save({"state_dict": prefixed("ema_denoiser.", public)}, source)
    else:
        save_file({key: value.contiguous() for key, value in public.items()}, source)
    size = source.stat().st_size
    assert size > 150 << 20
    for out in ["y.ckpt", "y.safetensors"] if to == "public" else ["y"]:
        code, peak = peak_memory("convert", str(source), str(tmp_path / out), "--to", to, *dtype)
        assert code == 0
        assert peak < 1.3 * size, f"{peak / size:.2f} of the file"
