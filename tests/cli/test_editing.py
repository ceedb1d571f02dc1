"""`pixelwright edit` and `restore`: files in and out, what a PNG carries, going on, what is refused."""

import shlex
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from torch import Tensor

import pixelwright as pw
from pixelwright.cli import edit as cli_edit
from pixelwright.cli import restore as cli_restore
from pixelwright.cli.main import main
from pixelwright.editing import operators
from pixelwright.images import from_uint8, load_png

NAMES = ("cat", "dog")
SIDE = 16


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "model"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"depth": 1, "hidden_size": 16, "num_heads": 1, "image_size": (SIDE, SIDE)}
        tiny = pw.create("dit-ti-4", num_classes=2, class_names=NAMES, **sizes)
        for parameter in tiny.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    pw.save(tiny, folder)
    return folder


def pixels(seed: int = 0, size: tuple[int, int] = (SIDE, SIDE)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(pixels()).save(path)
    return path


def edit(model: Path, *words: object) -> int:
    return main(["edit", *map(str, words), "--model", str(model), "--steps", "3"])


def test_a_result_is_what_python_gives(model: Path, photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "dog.png"
    assert edit(model, photo, "--target", "dog", "--strength", 0.7, "--seed", 5, "--out", out) == 0
    image = torch.from_numpy(pixels())[None]
    expected = pw.edit(pw.load(model), image, "dog", strength=0.7, steps=3, seed=5)
    assert torch.equal(load_png(out), expected[0])
    sheet = load_png(tmp_path / "dog-sheet.png")
    assert sheet.shape[1] > 2 * SIDE
    assert (load_png(photo).numpy() == pixels()).all()


@pytest.mark.parametrize("command", [cli_edit, cli_restore])
def test_the_examples_of_the_help_are_commands(command: ModuleType) -> None:
    for line in command.EXAMPLES.splitlines():
        words = shlex.split(line)
        options = command.parser().parse(words[2:])
        assert options.out == words[-1] and options.model == "M"


def test_flowedit_has_its_own_defaults(model: Path, photo: Path, tmp_path: Path) -> None:
    words = ("--method", "flowedit", "--source", "cat", "--target", "dog")
    assert main(["edit", str(photo), "--model", str(model), *words, "--out", str(tmp_path / "a.png")]) == 0
    expected = pw.edit(pw.load(model), torch.from_numpy(pixels())[None], "dog", "cat", "flowedit")
    assert torch.equal(load_png(tmp_path / "a.png"), expected[0])
    assert edit(model, photo, *words, "--n-max", 2, "--out", tmp_path / "b.png") == 0
    fewer = pw.edit(
        pw.load(model), torch.from_numpy(pixels())[None], "dog", "cat", "flowedit", steps=3, n_max=2
    )
    assert torch.equal(load_png(tmp_path / "b.png"), fewer[0])


def test_alpha_and_profile_stay_and_what_cannot_is_named(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    alpha = Image.fromarray(pixels(1)[..., 0])
    picture = Image.fromarray(pixels())
    picture.putalpha(alpha)
    exif = Image.Exif()
    exif[0x010E] = "a description"
    picture.save(tmp_path / "in.png", icc_profile=profile, exif=exif)
    assert edit(model, tmp_path / "in.png", "--target", "dog", "--out", tmp_path / "out.png") == 0
    with Image.open(tmp_path / "out.png") as result:
        assert result.mode == "RGBA" and result.info["icc_profile"] == profile
        assert result.getchannel("A").tobytes() == alpha.tobytes()
        rgb = torch.from_numpy(np.array(result.convert("RGB")))
    assert torch.equal(rgb, pw.edit(pw.load(model), torch.from_numpy(pixels())[None], "dog", steps=3)[0])
    assert "EXIF is dropped" in capsys.readouterr().err
    words = (
        "--method",
        "outpaint",
        "--margins",
        4,
        0,
        4,
        0,
        "--target",
        "dog",
        "--out",
        tmp_path / "wide.png",
    )
    assert edit(model, tmp_path / "in.png", *words) == 0
    assert "the transparency, whose size is another, is dropped" in capsys.readouterr().err
    with Image.open(tmp_path / "wide.png") as wide:
        assert wide.mode == "RGB" and wide.size == (SIDE + 8, SIDE)
    Image.fromarray(pixels()[..., 0]).save(tmp_path / "grey.png", icc_profile=profile)
    assert edit(model, tmp_path / "grey.png", "--out", tmp_path / "grey-out.png") == 0
    assert "the colour profile of L is dropped" in capsys.readouterr().err


def folder_of(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, size in enumerate([(16, 16), (16, 16), (16, 24), (16, 16)]):
        Image.fromarray(pixels(i, size)).save(folder / f"{i}.png")
    return folder


def test_a_folder_is_edited_in_batches_and_gone_on_with(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = folder_of(tmp_path), tmp_path / "out"
    assert edit(model, folder, "--target", "dog", "--out", out, "--batch-size", 2) == 0
    results = [load_png(out / f"{i}.png") for i in range(4)]
    for i, result in enumerate(results):
        alone = pw.edit(pw.load(model), load_png(folder / f"{i}.png")[None], "dog", steps=3, start_index=i)
        assert (alone[0].int() - result.int()).abs().max() <= 1
    (out / "1.png").unlink()
    before = (out / "0.png").stat().st_mtime_ns
    capsys.readouterr()
    assert edit(model, folder, "--target", "dog", "--out", out) == 0
    assert "3 of 4 results are there already" in capsys.readouterr().out
    assert (load_png(out / "1.png").int() - results[1].int()).abs().max() <= 1
    assert (out / "0.png").stat().st_mtime_ns == before
    assert edit(model, folder, "--target", "cat", "--out", out) == 2
    assert "not of these settings: give --overwrite or another --out" in capsys.readouterr().err
    assert edit(model, folder, "--target", "cat", "--out", out, "--overwrite") == 0
    assert not torch.equal(load_png(out / "0.png"), results[0])


def test_masks_of_a_folder_go_by_name(model: Path, tmp_path: Path) -> None:
    folder, masks, out = folder_of(tmp_path), tmp_path / "masks", tmp_path / "out"
    masks.mkdir()
    for i in range(4):
        mask = np.zeros(load_png(folder / f"{i}.png").shape[:2], np.uint8)
        mask[: 2 + i] = 255
        Image.fromarray(mask).save(masks / f"{i}.png")
    words = ("--method", "inpaint", "--mask", masks, "--target", "dog", "--out", out)
    assert edit(model, folder, *words) == 0
    for i in range(4):
        result, image = load_png(out / f"{i}.png"), load_png(folder / f"{i}.png")
        assert torch.equal(result[2 + i :], image[2 + i :])
        assert not torch.equal(result[: 2 + i], image[: 2 + i])
    (masks / "2.png").unlink()
    assert edit(model, folder, *words, "--overwrite") == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "{photo}"], "--out would overwrite the input"),
        (["--out", "{photo}", "--overwrite"], "--out would overwrite the input"),
        (["--out", "{folder}", "--overwrite"], "--out would overwrite the input"),
        (["--out", "o", "--target", "dgo"], 'unknown class "dgo", did you mean "dog"?'),
        (["--out", "o", "--negative", "blurred", "--target", "dog"], "which goes with prompts alone"),
        (["--out", "o", "--method", "inpiant"], 'unknown method "inpiant", did you mean "inpaint"?'),
        (["--out", "o", "--method", "inpaint"], "mask_image is missing"),
        (["--out", "o", "--method", "inpaint", "--mask", "none.png"], "--mask none.png is not there"),
        (["--out", "o", "--mask", "{photo}"], "mask_image is given, which sdedit does not have"),
        (
            ["--out", "o", "--strength", "2"],
            "--strength is 2.0: give a number of at least 0 and of at most 1",
        ),
    ],
)
def test_mistakes_are_one_line(
    model: Path,
    photo: Path,
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(photo.parent)
    filled = [word.format(photo=photo, folder=photo.parent) for word in words]
    assert edit(model, photo, *filled) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert (load_png(photo).numpy() == pixels()).all()


def test_pictures_that_are_none_or_of_one_name_are_told(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no picture")
    Image.fromarray(pixels(0, (18, 16))).save(tmp_path / "odd.png")
    Image.fromarray(pixels()).save(tmp_path / "odd.jpg")
    cases = {
        "there are no pictures in the folder": [tmp_path / "empty"],
        "is no picture (not an image in a known format)": [tmp_path / "text.png"],
        "size 18x16 does not divide into patches of 4": [tmp_path / "odd.png"],
        "two pictures have one name": [tmp_path / "odd.png", tmp_path / "odd.jpg"],
    }
    for message, inputs in cases.items():
        assert edit(model, *inputs, "--out", tmp_path / "out") == 2
        assert message in capsys.readouterr().err
    assert edit(model, tmp_path / "odd.png", tmp_path / "odd.jpg", "--out", tmp_path / "o.png") == 2
    assert "is one file for 2 pictures; give a folder" in capsys.readouterr().err


def restore(model: Path, *words: object) -> int:
    return main(["restore", *map(str, words), "--model", str(model), "--steps", "3"])


def measured(image: Tensor, operator: operators.Operator) -> Tensor:
    return operator.A(from_uint8(image[None]))


def test_an_enlarged_picture_averages_to_the_small_one(model: Path, tmp_path: Path) -> None:
    Image.fromarray(pixels(0, (4, 4))).save(tmp_path / "small.png")
    assert restore(model, tmp_path / "small.png", "--task", "sr4", "--out", tmp_path / "large.png") == 0
    large = load_png(tmp_path / "large.png")
    assert large.shape == (SIDE, SIDE, 3)
    small = from_uint8(load_png(tmp_path / "small.png")[None])
    inside = (large > 0) & (large < 255)  # 8 bits hold no values beyond white
    if bool(inside.all()):
        assert (measured(large, operators.AveragePool(4)) - small).abs().max() < 1 / 255


@pytest.mark.parametrize("method", ["ddnm", "pigdm", "pnp", "dps"])
@pytest.mark.parametrize("task", ["sr2", "colourise", "deblur", "motion", "fill", "random"])
def test_every_task_runs_with_every_method(
    model: Path, photo: Path, tmp_path: Path, task: str, method: str
) -> None:
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[4:9] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    more = ("--mask", tmp_path / "mask.png") if task == "fill" else ()
    how = ("--method", method, "--sigma", 0.5, "--simulate", "--target", "dog")
    assert restore(model, photo, "--task", task, *how, *more, "--out", tmp_path / "out") == 0
    result = load_png(tmp_path / "out" / "photo.png")
    assert result.shape == (SIDE, SIDE, 3)
    if task == "fill":
        assert torch.equal(result[9:], load_png(photo)[9:])
    assert load_png(tmp_path / "out" / "photo-sheet.png").shape[1] > 3 * SIDE


def test_restore_tells_what_does_not_fit(
    model: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases: dict[str, list[object]] = {
        'unknown task "sr3"': ["--task", "sr3"],
        "--task fill needs --mask": ["--task", "fill"],
        "dps needs a linear operator": ["--task", "dequantise", "--method", "dps"],
        'unknown method "ddmn", did you mean "ddnm"?': ["--task", "sr2", "--method", "ddmn"],
    }
    for message, words in cases.items():
        assert restore(model, photo, *words, "--out", tmp_path / "out") == 2
        assert message in capsys.readouterr().err
    assert restore(model, photo, "--task", "dequantise", "--levels", 4, "--out", tmp_path / "out") == 0
