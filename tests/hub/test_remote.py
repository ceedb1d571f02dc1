"""hf:// addresses, against a stand-in for the hub and a cache made here. No test reaches a real hub."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import pixelwright as pw
from pixelwright.cli.main import main
from pixelwright.hub.checkpoint import load_config
from tests.hub.published import write
from tests.hub.test_convert import reproduces
from tests.recordings import weights

hub = pytest.importorskip("huggingface_hub")

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "pixeldit_c2i"


@pytest.fixture
def online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder OWNER/NAME whose files the stand-in hub gives."""
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)

    def download(repo: str, file: str, revision: str | None = None) -> str:
        assert revision in (None, "v1")
        if not (tmp_path / repo).is_dir():
            raise error(hub.errors.RepositoryNotFoundError)
        if not (tmp_path / repo / file).is_file():
            raise hub.errors.EntryNotFoundError(file)
        return str(tmp_path / repo / file)

    def names(repo: str, revision: str | None = None) -> list[str]:
        assert revision in (None, "v1")
        root = tmp_path / repo
        return [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]

    monkeypatch.setattr(hub, "hf_hub_download", download)
    monkeypatch.setattr(hub, "list_repo_files", names)
    return folder


def error(kind: type[Exception]) -> Exception:
    """An error of the client, whose constructors differ between versions."""
    made = kind.__new__(kind)
    made.args = ("no",)
    return made


@pytest.mark.parametrize("address", ["hf://owner/name", "hf://owner/name/", "hf://owner/name@v1"])
@pytest.mark.parametrize("layout", ["lightning", "sharded", "plain"])
def test_a_repository_with_one_set_of_weights(address: str, layout: str, online: Path) -> None:
    write(layout, NAME, online)
    (online / "README.md").write_text("hello")
    reproduces(pw.load(address), NAME)


@pytest.mark.parametrize("layout", ["lightning", "sharded", "core"])
def test_a_file_of_a_repository(layout: str, online: Path) -> None:
    (online / "deep").mkdir()
    (online / "other.ckpt").touch()
    file = write(layout, NAME, online / "deep")
    model = pw.load(f"hf://owner/name/deep/{file.name}")
    reproduces(model, NAME)
    assert model.config.provenance is not None
    assert model.config.provenance.files[0] == f"hf://owner/name/deep/{file.name}"


def test_a_repository_that_is_a_model_folder(online: Path) -> None:
    pw.save(pw.hub.from_public(weights(NAME)), online)
    reproduces(pw.load("hf://owner/name"), NAME)


@pytest.mark.parametrize("layout", ["plain", "sharded"])
def test_a_repository_that_is_a_pipeline_of_diffusers(layout: str, online: Path) -> None:
    (online / "transformer").mkdir()
    (online / "vae").mkdir()
    (online / "model_index.json").write_text("{}")
    (online / "transformer" / "config.json").write_text('{"_class_name": "PixelDiT"}')
    (online / "vae" / "x.safetensors").touch()
    write(layout, NAME, online / "transformer")
    reproduces(pw.load("hf://owner/name"), NAME)


@pytest.mark.parametrize("folder", ["weights", "transformer", "deep/er"])
def test_a_folder_of_a_repository(folder: str, online: Path) -> None:
    (online / folder).mkdir(parents=True)
    (online / "other.ckpt").touch()
    write("plain", NAME, online / folder)
    reproduces(pw.load(f"hf://owner/name/{folder}"), NAME)
    with pytest.raises(pw.UserError, match="names no file of weights"):
        pw.load("hf://owner/name/elsewhere")


@pytest.mark.parametrize("address", ["hf://owner/name/sub", "hf://owner/name/sub/model.safetensors"])
def test_a_model_folder_within_a_repository(address: str, online: Path) -> None:
    """Its config comes with it, so that a network without a published layout is read, too."""
    model = pw.create("dit-n-4", 2, depth=1, hidden_size=16, num_heads=2, class_names=("a", "b"))
    pw.save(model, online / "sub")
    (online / "README.md").touch()
    assert pw.load(address).config == load_config(address) == model.config


@pytest.mark.parametrize("folder", ["", "/deep"])
def test_an_adapter_in_a_repository(folder: str, online: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="LoRA needs peft (extra finetune)")
    model = pw.create("dit-n-4", 2, depth=1, hidden_size=16, num_heads=2)
    pw.save(model, tmp_path / "base")
    lora = peft.LoraConfig(r=2, target_modules=["qkv"], init_lora_weights=False)
    peft.get_peft_model(model, lora).save_pretrained(Path(f"{online}{folder}"))
    here = pw.load(tmp_path / "base", adapter=Path(f"{online}{folder}")).state_dict()
    found = pw.load(tmp_path / "base", adapter={f"hf://owner/name{folder}": 1.0}).state_dict()
    assert all(torch.equal(found[name], x) for name, x in here.items())


def test_a_file_at_any_other_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXELWRIGHT_CACHE", str(tmp_path / "cache"))
    content = write("plain", NAME, tmp_path).read_bytes()
    fsspec = pytest.importorskip("fsspec")
    for name in ("a", "b"):
        fsspec.filesystem("memory").pipe(f"/{name}/plain.safetensors", content)
    for name in ("a", "b"):
        model = pw.load(f"memory://{name}/plain.safetensors")
        reproduces(model, NAME)
        assert model.config.provenance is not None
        assert model.config.provenance.files == (f"memory://{name}/plain.safetensors",)
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 2
    for address in ("memory://a/x", "memory://a/x.safetensors.index.json", "s3://bucket/model"):
        with pytest.raises(pw.UserError, match="names no file of weights"):
            pw.load(address)


def test_every_command_takes_an_address(
    online: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write("lightning", NAME, online)
    address = "hf://owner/name"
    assert main(["info", address, "--size", "8"]) == 0
    assert "pixeldit" in capsys.readouterr().out
    assert main(["convert", address, str(tmp_path / "model")]) == 0
    provenance = load_config(tmp_path / "model").provenance
    assert provenance is not None and provenance.files == ("hf://owner/name",)
    options = ["--labels", "0", "--size", "8", "--steps", "1", "--out", str(tmp_path / "out")]
    assert main(["sample", address, *options]) == 0
    assert list((tmp_path / "out").glob("000000-*.png"))


def test_weights_of_the_owner_nvidia_carry_the_notice(online: Path, tmp_path: Path) -> None:
    (tmp_path / "nvidia" / "any").mkdir(parents=True)
    write("lightning", NAME, online).rename(tmp_path / "nvidia" / "any" / "x.ckpt")
    provenance = load_config("hf://nvidia/any/x.ckpt").provenance
    assert provenance is not None and provenance.licence is not None
    assert "non-commercial" in provenance.licence


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("hf://", "hf://OWNER/NAME"),
        ("hf://name", "hf://OWNER/NAME"),
        ("hf://owner/name/x.txt", "file of weights"),
        ("hf://owner/name/none.ckpt", "no such file"),
        ("hf://nobody/name/x.ckpt", "does not exist"),
        ("hf://owner/name", "holds a.ckpt, b.ckpt; name one of them"),
    ],
)
def test_addresses_that_lead_nowhere(
    address: str, said: str, online: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.ckpt", "b.ckpt"):
        (online / name).touch()
    assert main(["convert", address, "out"]) == 2
    printed = capsys.readouterr().err
    assert len(printed.splitlines()) == 1 and said in printed


def fails(with_error: Callable[[], Exception]) -> Callable[..., str]:
    def ask(*_: object, **__: object) -> str:
        raise with_error()

    return ask


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: error(hub.errors.GatedRepoError), "is gated: accept its terms"),
        (lambda: error(hub.errors.RepositoryNotFoundError), "does not exist, or is private"),
        (lambda: error(hub.errors.RevisionNotFoundError), "no such revision"),
        (lambda: error(hub.errors.HfHubHTTPError), "refused by the hub"),
        (lambda: hub.errors.LocalEntryNotFoundError("x"), "cannot be reached"),
        (lambda: hub.errors.OfflineModeIsEnabled("x"), "cannot be reached"),
        (lambda: ConnectionError("x"), "cannot be reached"),
        (lambda: TimeoutError("x"), "cannot be reached"),
    ],
)
def test_what_the_hub_refuses_is_one_line(
    made: Callable[[], Exception],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(hub, "hf_hub_download", fails(made))
    assert main(["info", "hf://owner/name/x.ckpt"]) == 2
    printed = capsys.readouterr().err
    assert len(printed.splitlines()) == 1 and said in printed and "hf://owner/name/x.ckpt" in printed


def test_without_the_client_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(pw.UserError, match=r'pip install "pixelwright\[hub\]"'):
        pw.load("hf://owner/name/x.ckpt")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """HF_HOME with one file of one repository in it, laid out as the client does."""
    repo = tmp_path / "hub" / "models--owner--name"
    snapshot = repo / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    file = write("lightning", NAME, tmp_path).rename(repo / "blobs" / "blob")
    (snapshot / "x.ckpt").symlink_to(os.path.relpath(file, snapshot))
    deep = tmp_path / "hub" / "models--owner--deep"
    shutil.copytree(repo, deep, symlinks=True)
    (deep / "snapshots" / COMMIT / "weights").mkdir()
    (deep / "snapshots" / COMMIT / "x.ckpt").unlink()
    (deep / "snapshots" / COMMIT / "weights" / "x.ckpt").symlink_to("../../../blobs/blob")
    return tmp_path


@pytest.mark.parametrize(
    ("address", "code", "said"),
    [
        ("hf://owner/name", 0, "pixeldit"),
        ("hf://owner/name/x.ckpt", 0, "pixeldit"),
        ("hf://owner/deep", 0, "pixeldit"),
        ("hf://owner/deep/weights/x.ckpt", 0, "pixeldit"),
        ("hf://owner/name/y.ckpt", 2, "cannot be reached"),
        ("hf://owner/else", 2, "cannot be reached"),
    ],
)
def test_offline_the_real_client_reads_its_cache(cache: Path, address: str, code: int, said: str) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(pw.__file__).parents[1]),
        "OMP_NUM_THREADS": "1",
        "HF_HOME": str(cache),
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-m", "pixelwright.cli.main", "info", address, "--size", "8"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == code, done.stderr
    assert said in (done.stderr if code else done.stdout)
    (line,) = done.stderr.splitlines()  # nothing of the client
    assert code or line.startswith("pixelwright: note: the class table of ")
