"""GenEval: the official layout, the rules with stub detectors, its result file, and tiny random networks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pixelwright.errors import UserError
from pixelwright.evaluation.prompts import geneval
from pixelwright.evaluation.prompts.common import draw_missing, overall, relations
from pixelwright.evaluation.prompts.geneval import Detection, assess, keep
from pixelwright.images import load_png

ONE = {"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": "a photo of a dog"}
THREE = {
    "tag": "counting",
    "include": [{"class": "dog", "count": 3}],
    "exclude": [{"class": "dog", "count": 4}],
    "prompt": "a photo of three dogs",
}
LEFT = {
    "tag": "position",
    "include": [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": ["left of", 0]}],
    "prompt": "a photo of a dog left of a cat",
}
BOTH = {
    "tag": "color_attr",
    "include": [{"class": "dog", "count": 1, "color": "red"}, {"class": "cat", "count": 1, "color": "blue"}],
    "prompt": "a photo of a red dog and a blue cat",
}


def found(name: str, score: float = 0.95, x: float = 50, y: float = 50, side: float = 20) -> Detection:
    box = (x - side / 2, y - side / 2, x + side / 2, y + side / 2)
    mask = np.zeros((100, 100), bool)
    mask[int(box[1]) : int(box[3]), int(box[0]) : int(box[2])] = True
    return Detection(name, score, box, mask)


def fault(task: dict[str, Any], things: list[Detection], *named: str) -> str:
    """With a colour classifier that says `named`, one after the other."""
    left = list(named)

    def colours(group: Sequence[Detection]) -> list[str]:
        return [left.pop(0) for _ in group]

    return assess(task, keep(things, task["tag"]), colours)


# --- the rules --------------------------------------------------------------------------------------------


def test_relations_need_more_than_a_tenth_of_the_extents_and_half_of_the_distance() -> None:
    def words(dx: float, dy: float, side: float = 20) -> set[str]:
        return set(relations(found("a", x=50 + dx, y=50 + dy, side=side).box, found("b", side=side).box))

    assert words(-30, 0) == {"left of"} and words(30, 0) == {"right of"}
    assert words(0, -30) == {"above"} and words(0, 30) == {"below"}
    assert words(0, 0) == set()
    assert words(7.9, 0) == set() and words(8.1, 0) == {"right of"}  # 4 of it is slack: half must be left
    assert words(40, 40) == {"right of", "below"}  # 36 of 56.6 along either axis
    assert words(40, 20) == {"right of"} and words(3, 30) == {"below"}


def test_a_threshold_of_confidence_that_is_higher_for_counting() -> None:
    assert not fault(ONE, [found("dog", 0.31)])
    assert fault(ONE, [found("dog", 0.29)]) == "expected dog>=1, found 0"
    assert fault(ONE, [found("cat")]) == "expected dog>=1, found 0"
    assert not fault(THREE, [found("dog", 0.91)] * 3 + [found("dog", 0.89)])
    assert fault(THREE, [found("dog", 0.91)] * 2 + [found("dog", 0.89)]) == "expected dog>=3, found 2"


def test_too_many_are_wrong_only_where_they_are_excluded() -> None:
    assert fault(THREE, [found("dog")] * 4) == "expected dog<4, found 4"
    assert not fault(ONE, [found("dog")] * 4)


def test_at_most_sixteen_objects_of_a_class_the_most_confident_first() -> None:
    things = [found("dog", 0.4 + n / 100) for n in range(20)]
    kept = keep(things, "single_object")["dog"]
    assert [thing.score for thing in kept] == [0.4 + n / 100 for n in range(19, 3, -1)]


def test_position_of_the_most_confident_pair() -> None:
    right = [found("dog", 0.9, x=20), found("cat", 0.9, x=80)]
    assert not fault(LEFT, right)
    assert not fault(LEFT, [*right, found("dog", 0.5, x=95)])
    assert fault(LEFT, [*right, found("dog", 0.99, x=95)]) == "expected dog left of target, found right of"
    assert (
        fault(LEFT, [found("dog", x=80), found("cat", x=20)]) == "expected dog left of target, found right of"
    )
    assert fault(LEFT, [found("dog")]).splitlines() == [
        "expected cat>=1, found 0",
        "no target for dog to be left of",
    ]


def test_colours_must_be_those_of_their_objects() -> None:
    things = [found("dog"), found("cat")]
    assert not fault(BOTH, things, "red", "blue")
    assert len(fault(BOTH, things, "blue", "red").splitlines()) == 2
    assert fault(BOTH, things, "red", "pink") == "expected blue cat>=1, found pink"


# --- layout, scoring, result files -----------------------------------------------------------------------


def write(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def grey(prompts: Sequence[str], indices: Sequence[int]) -> torch.Tensor:
    """A model that draws its noise index."""
    return torch.stack([torch.full((8, 8, 3), index % 251, dtype=torch.uint8) for index in indices])


def test_the_official_layout(tmp_path: Path) -> None:
    tasks = geneval.read_metadata(write(tmp_path / "metadata.jsonl", [ONE, THREE, LEFT, BOTH]))
    pictures = geneval.images_of(tmp_path / "out", tasks, 4)
    geneval.write_metadata(tmp_path / "out", tasks)
    draw_missing(grey, pictures, batch_size=3)
    geneval.write_grids(pictures)
    files = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert len(files) == 4 * 6
    assert files[6:12] == [
        "00001/grid.png",
        "00001/metadata.jsonl",
        *(f"00001/samples/000{k}.png" for k in range(4)),
    ]
    assert json.loads((tmp_path / "out/00002/metadata.jsonl").read_text()) == LEFT
    assert load_png(tmp_path / "out/00000/grid.png").shape == (12, 4 * 10 + 2, 3)
    assert [(path.name, task) for path, task in geneval.find_images(tmp_path / "out")][5] == (
        "0001.png",
        THREE,
    )


def test_scores_by_the_rules_and_read_back(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    geneval.write_metadata(folder, [ONE, THREE])
    draw_missing(grey, geneval.images_of(folder, [ONE, THREE], 4), batch_size=8)

    def detector(image: Image.Image) -> list[Detection]:
        """A dog in every other picture of the first prompt; three in the first of the second."""
        index = np.asarray(image)[0, 0, 0]
        return [found("dog")] * {0: 1, 2: 1, 1000 % 251: 3}.get(int(index), 0)

    lines = [
        geneval.score_image(path, task, detector, lambda image, group: [])
        for path, task in geneval.find_images(folder)
    ]
    result = geneval.read_results(write(tmp_path / "results.jsonl", lines))
    assert {tag: score.share for tag, score in result.tasks.items()} == {
        "single_object": 0.5,
        "counting": 0.25,
    }
    assert overall(result.tasks) == 0.375 and result.images.share == 3 / 8 and result.prompts.share == 1


def test_the_official_result_file(tmp_path: Path) -> None:
    """As pandas writes it: all columns of the official scorer, tags in the order of its folders."""
    rows = [
        {"filename": f"x/{n}", "tag": tag, "prompt": tag, "correct": n % 4 < hits, "reason": "",
         "details": "{}", "metadata": json.dumps({"tag": tag, "prompt": n // 4})}
        for tag, hits in (("colors", 3), ("two_object", 1), ("position", 0))
        for n in range(8)
    ]  # fmt: skip
    result = geneval.read_results(write(tmp_path / "results.jsonl", rows))
    assert [(tag, s.correct, s.images) for tag, s in result.tasks.items()] == [
        ("colors", 6, 8),
        ("two_object", 2, 8),
        ("position", 0, 8),
    ]
    assert overall(result.tasks) == pytest.approx(1 / 3)
    assert (result.prompts.correct, result.prompts.images) == (4, 6)


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"tag": "counting", "prompt": "x"}',
        '{"tag": 1, "prompt": "x", "include": []}',
        '{"tag": "a", "prompt": "x", "include": [{"class": "dog"}]}',
        '{"tag": "a", "prompt": "x", "include": [{"class": "dog", "count": 1, "position": ["above", 1]}]}',
    ],
)
def test_lines_that_are_no_tasks_are_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "metadata.jsonl").write_text(json.dumps(ONE) + "\n" + line)
    with pytest.raises(UserError, match="line 2 is no task of GenEval"):
        geneval.read_metadata(tmp_path / "metadata.jsonl")


GOOD = {"filename": "0.png", "tag": "colors", "prompt": "a\u2028b", "correct": True}


def test_a_result_file_that_is_gone_on_with_is_read_as_strictly(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    file.write_text(json.dumps(GOOD, ensure_ascii=False) + '\n{"filename": "1.p')
    assert geneval.scored(file) == {"0.png"} and file.read_text().endswith("}\n")
    assert geneval.read_results(file).images.correct == 1
    file.write_text(json.dumps(GOOD) + "\n\n")
    with pytest.raises(UserError, match=r'results.jsonl", line 2 is blank'):
        geneval.scored(file)


def test_files_that_are_no_results_are_named(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    for content, said in (
        ("", "is empty"),
        ('{"tag": "x"}', "line 1 is no result"),
        ("{", "line 1 is malformed"),
        ("[]", "line 1 is no result"),
        (json.dumps(GOOD) + "\n" + json.dumps(GOOD), 'line 2: the image "0.png" is there twice'),
        (json.dumps({**GOOD, "correct": "False"}), "line 1 .*\"correct\" is 'False', not true or false"),
        (json.dumps({**GOOD, "correct": 1}), "line 1 .*not true or false"),
        (json.dumps(GOOD) + "\n\n", "line 2 is blank"),
    ):
        file.write_text(content)
        with pytest.raises(UserError, match=said):
            geneval.read_results(file)
    with pytest.raises(UserError, match="cannot be read"):
        geneval.read_results(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no images"):
        geneval.find_images(tmp_path)


# --- the networks ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A tiny random Mask2Former and a tiny random CLIP on the disk."""
    import transformers as hf

    place = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    backbone = hf.SwinConfig(
        image_size=32, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = hf.Mask2FormerConfig(
        backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_layers=1,
        encoder_feedforward_dim=16, dim_feedforward=16, decoder_layers=2, num_attention_heads=2,
        num_queries=5,
        id2label={0: "dog", 1: "aeroplane"},
    )  # fmt: skip
    hf.Mask2FormerForUniversalSegmentation(config).save_pretrained(place / "detector")
    size = {"height": 64, "width": 64}
    hf.Mask2FormerImageProcessorPil(size=size).save_pretrained(place / "detector")
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)] + ["-"]
    vocabulary = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = hf.CLIPTokenizer(vocab={token: i for i, token in enumerate(vocabulary)}, merges=[])
    text = {"vocab_size": len(vocabulary), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "eos_token_id": len(vocabulary) - 1,
            "bos_token_id": len(vocabulary) - 2}  # fmt: skip
    vision = {"image_size": 32, "patch_size": 8, "hidden_size": 16, "intermediate_size": 16,
              "num_hidden_layers": 1, "num_attention_heads": 2}  # fmt: skip
    clip = hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    clip.save_pretrained(place / "clip")
    images = hf.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    hf.CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(place / "clip")
    return str(place / "detector"), str(place / "clip")


def test_detections_have_boxes_around_their_masks_and_names_of_geneval(networks: tuple[str, str]) -> None:
    from pixelwright.evaluation.prompts.detection import Mask2Former

    detector = Mask2Former(networks[0])
    detector.model.class_predictor.bias.data += torch.tensor([0.0, 8.0, -8.0])  # sure of aeroplanes
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8))
    things = detector(image)
    assert things
    assert {thing.name for thing in things} == {"airplane"}
    for thing in things:
        left, top, right, bottom = map(int, thing.box)
        assert thing.mask.shape == (40, 60) and 0.3 <= thing.score <= 1
        assert thing.mask[top:bottom, left:right].sum() == thing.mask.sum() > 0
        assert thing.mask[top].any() and thing.mask[bottom - 1].any() and thing.mask[:, left].any()
    detector.check(["dog", "airplane"])
    with pytest.raises(UserError, match='does not know "zebra"'):
        detector.check(["dog", "zebra"])


def test_colours_are_those_nearest_to_the_crops(networks: tuple[str, str]) -> None:
    from pixelwright.evaluation.prompts.detection import BLANK, ClipColours, crop

    image = Image.new("RGB", (100, 100), "red")
    alone = np.asarray(crop(image, found("dog", x=30, y=40, side=20)))
    assert alone.shape == (20, 20, 3) and (alone == (255, 0, 0)).all()
    holed = found("dog", x=30, y=40, side=20)
    holed.mask[30:40] = False
    assert (np.asarray(crop(image, holed))[:10] == BLANK).all()
    colours = ClipColours(networks[1])
    group = [found("dog", x=30), found("dog", x=60)]
    named = colours(image, group)
    assert named == [colours(image, [thing])[0] for thing in group]
    directions = colours._directions("dog")
    assert torch.allclose(directions.norm(dim=1), torch.ones(10), atol=1e-5)
    swapped = colours._colours["dog"] = directions[
        [*range(1, 10), 0]
    ]  # every colour now has the next one's texts
    assert swapped.shape == directions.shape
    expected = [geneval.COLOURS[geneval.COLOURS.index(name) - 1] for name in named]
    assert colours(image, group) == expected


def test_networks_that_are_not_there_are_named(tmp_path: Path) -> None:
    from pixelwright.evaluation.prompts.detection import ClipColours, Mask2Former

    with pytest.raises(UserError, match=r'the detector ".*nowhere" cannot be loaded'):
        Mask2Former(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r'the colour classifier ".*nowhere" cannot be loaded'):
        ClipColours(str(tmp_path / "nowhere"))
