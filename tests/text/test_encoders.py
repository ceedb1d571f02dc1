"""Text encoders: which tokens are kept, what is cut, and that features are those of transformers."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pixelwright as pw
from pixelwright.errors import UserError
from pixelwright.models.config import TextNote
from pixelwright.models.presets import preset
from pixelwright.text import FeatureCache, TextConfig, TextEncoder, encode_for, open_encoder
from pixelwright.text.config import read_prompts
from pixelwright.text.encoders import Features, Gemma, MiniLM, stack_captions
from tests.encoders import WORDS, tiny_bert, tiny_gemma, tiny_qwen3

PREFIX = "two red circle and "  # 4 tokens, and the first makes 5
sentences = st.lists(st.sampled_from(WORDS), max_size=14).map(" ".join)


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gemma(tmp_path_factory.mktemp("text") / "gemma")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("text") / "bert")


def states(folder: Path, ids: list[int], mask: list[int] | None = None) -> torch.Tensor:
    """What transformers itself gives, [T, C]."""
    from transformers import Gemma2Model

    model = Gemma2Model.from_pretrained(folder, dtype=torch.bfloat16).eval()
    given = torch.tensor([ids])
    with torch.no_grad():
        return model(given, attention_mask=torch.tensor([mask or [1] * len(ids)])).last_hidden_state[0]


def ids_of(encoder: TextEncoder, text: str) -> list[int]:
    return encoder.tokenizer(text)["input_ids"]


def test_gemma_without_prefix_is_the_last_hidden_state(gemma: Path) -> None:
    encoder = Gemma(str(gemma), length=8)
    ids = ids_of(encoder, "a red star")
    assert len(ids) == 4
    found = encoder.encode(["a red star"])
    assert torch.equal(found.features[0], states(gemma, ids))
    assert found.null is not None
    assert torch.equal(found.null.features[0], states(gemma, [2]))


def test_qwen3_is_padded_at_the_right_and_the_empty_caption_is_padding_alone(tmp_path: Path) -> None:
    from transformers import Qwen3Model

    folder = tiny_qwen3(tmp_path / "qwen3")
    model = preset("pixnerd-t2i", hidden_size=24, depth=1, num_heads=2, text_size=24, text_length=6)
    encoder = open_encoder(TextConfig("qwen3", path=str(folder), precision="fp32"), model)
    found = encoder.encode(["a red star"])
    ids = torch.tensor([[encoder.tokenizer.convert_tokens_to_ids(word) for word in ("a", "red", "star")]])
    network = Qwen3Model.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = network(ids).last_hidden_state.bfloat16()  # tokens do not see the padding behind them
    assert found.features.shape == (1, 6, 24) and found.null is not None
    torch.testing.assert_close(found.features[:, :3], expected, rtol=0.02, atol=0.02)
    assert found.null.features.shape == (1, 6, 24) and found.null.features.isfinite().all()
    assert open_encoder(TextConfig("qwen3", path=str(folder))).encode([""]).features.isfinite().all()
    with pytest.raises(UserError, match="which qwen3 has no use for"):
        TextConfig("qwen3", prefix="Draw: ")


def test_a_prefix_keeps_the_first_and_the_last_tokens(gemma: Path) -> None:
    encoder = Gemma(str(gemma), length=8, padded=True, prefix=PREFIX)
    ids = ids_of(encoder, PREFIX + "a blue square")
    assert len(ids) == 8
    total = 5 + 8 - 2  # tokens of the prefix, plus the length, less two
    padded = ids + [0] * (total - len(ids))
    mask = [1] * len(ids) + [0] * (total - len(ids))
    expected = states(gemma, padded, mask)
    found = encoder.encode(["a blue square"])
    assert torch.equal(found.features[0], torch.cat((expected[:1], expected[-7:])))
    assert found.mask is not None and found.mask[0].tolist() == [True] * 5 + [False] * 3
    assert found.null is not None and found.null.features.shape == (1, 8, 24)  # "" has no prefix
    null = states(gemma, [2] + [0] * 7, [1] + [0] * 7)
    assert torch.equal(found.null.features[0], null)


@settings(max_examples=30, deadline=None)
@given(sentences, st.sampled_from(["", PREFIX]))
def test_the_part_that_is_no_padding_is_the_same_with_padding_and_without(
    gemma: Path, text: str, prefix: str
) -> None:
    long = Gemma(str(gemma), 10, padded=True, prefix=prefix)
    short = Gemma(str(gemma), 10, prefix=prefix)
    padded, plain = long.tokens(text), short.tokens(text)
    assert (padded.used, padded.skipped, padded.ids[: len(plain.ids)]) == (
        plain.used,
        plain.skipped,
        plain.ids,
    )
    kept = padded.kept(torch.arange(len(padded.ids))).tolist()
    assert len(kept) == 10 and kept[: plain.used] == plain.kept(torch.arange(len(plain.ids))).tolist()
    assert kept[: plain.used] == [0, *range(len(plain.ids) - plain.used + 1, len(plain.ids))]


@settings(max_examples=30, deadline=None)
@given(st.lists(sentences, min_size=1, max_size=20), st.sampled_from(["bert", "gemma", "padded"]))
def test_features_do_not_depend_on_the_neighbours(
    bert: Path, gemma: Path, texts: list[str], kind: str
) -> None:
    """Beyond rounding; and in the cache, as exact resuming needs it, not at all."""
    encoder = MiniLM(str(bert), 8) if kind == "bert" else Gemma(str(gemma), 20, kind == "padded", PREFIX)
    together = encoder.encode(texts)
    cached, same = FeatureCache(encoder), encoder.features(texts, same=True)
    for i, text in enumerate(texts):
        alone = encoder.encode([text])
        length = alone.features.shape[1]
        eps = torch.finfo(alone.features.dtype).eps * alone.features.abs().max()
        assert (together.features[i, :length] - alone.features[0]).abs().max() <= 4 * eps
        assert torch.equal(together.mask[i, :length], alone.mask[0])
        assert not together.features[i, length:].any() and not together.mask[i, length:].any()
        assert torch.equal(same[i].values, encoder.features([text], same=True)[0].values)
        for _ in range(2):
            assert torch.equal(cached.features([text, "a star"])[0].values, same[i].values)


@pytest.mark.parametrize("kind", ["gemma", "minilm"])
def test_what_is_cut_is_told_once(
    kind: str, gemma: Path, bert: Path, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = Gemma(str(gemma), 5) if kind == "gemma" else MiniLM(str(bert), 6)
    with caplog.at_level(logging.WARNING):
        for text in ("a red star and a blue circle", "a red star and a blue circle", "a red star and"):
            encoder.encode([text])
    (message,) = caplog.messages
    assert '"a blue circle" is cut off the end of "a red star and a blue circle"' in message
    assert encoder.encode(["a red star and a blue circle"]).features.shape[1] == encoder.length


def test_minilm_reads_the_package_as_sentence_transformers_lays_it_out() -> None:
    encoder = open_encoder(TextConfig("minilm"), preset("pixeldit-t2i-ti"))
    found = encoder.encode(["a red circle", "a red circle left of a blue star", "a sleeping dog"])
    assert (encoder.width, found.features.shape) == (384, (3, 10, 384))
    weights = found.mask.float()[..., None]
    mean = (found.features * weights).sum(1) / weights.sum(1)  # which is how that model compares sentences
    like, unlike = torch.cosine_similarity(mean[0], mean[1:])
    assert like > 0.6 > 0.4 > unlike


def test_the_encoder_is_freed_and_read_again(gemma: Path) -> None:
    encoder = Gemma(str(gemma), 8)
    before = encoder.encode(["a star"]).features
    encoder.free()
    assert encoder._model is None
    assert torch.equal(encoder.encode(["a star"]).features, before)


def test_weights_may_be_in_another_dtype_and_stay_on_the_cpu(gemma: Path) -> None:
    exact, half = (Gemma(str(gemma), 8, precision=name) for name in ("fp32", "bf16"))
    assert torch.equal(
        half.encode(["a red star"]).features, Gemma(str(gemma), 8).encode(["a red star"]).features
    )
    difference = (exact.encode(["a red star"]).features - half.encode(["a red star"]).features).abs().max()
    assert 0 < difference < 0.1


def test_an_encoder_may_stay_on_the_cpu_between_its_uses(
    gemma: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moves: list[str] = []
    for offload, expected in ((False, ["cpu:0", "cpu:0"]), (True, ["cpu:0", "cpu", "cpu:0", "cpu"])):
        config = TextConfig("gemma", path=str(gemma), offload=offload)
        encoder = open_encoder(config, device="cpu:0")  # stands for another device
        encoder.features(["a star"])
        moves.clear()
        own = encoder._model.to
        monkeypatch.setattr(
            encoder._model, "to", lambda device, own=own: moves.append(str(device)) or own(device)
        )
        encoder.encode(["a red star"])
        assert moves == expected


# ---------------------------------------------------------------- the prefix
@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"encoder": "gema"}, 'did you mean "gemma"'),
        ({"encoder": "minilm", "prefix": "x"}, "minilm has no use for"),
    ],
)
def test_settings_that_do_not_go_together(values: dict[str, str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        TextConfig(**values)


# ---------------------------------------------------------------- where it comes from
def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no folder: give one, or a hub name OWNER/NAME"):
        open_encoder(TextConfig("gemma", path=str(tmp_path / "nothing")))
    with pytest.raises(UserError, match="cannot be read"):
        open_encoder(TextConfig("gemma", path=str(tmp_path)))


def test_a_gated_encoder_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError

    def refuse(name: str, allow_patterns: list[str]) -> str:
        error = GatedRepoError.__new__(GatedRepoError)
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(UserError, match=r"google/gemma-2-2b-it is gated: accept its terms .*hf auth login"):
        open_encoder(TextConfig("gemma"))


def test_a_model_names_its_encoder(gemma: Path, caplog: pytest.LogCaptureFixture) -> None:
    right = open_encoder(TextConfig("gemma", path=str(gemma))).checksum()
    for checksum, warned in ((right, False), ("other", True)):
        note = TextNote("gemma", str(gemma), "", checksum)
        model = preset("dip-t2i-ti", text_size=24, text_length=6, text=note)
        assert encode_for(model, ["a star"]).features.shape == (1, 3, 24)
        assert ("is not the one that the model was trained with" in caplog.text) == warned
    wide = preset("dip-t2i-ti", text=TextNote("gemma", str(gemma)))
    with pytest.raises(UserError, match="gives 24 channels, but the model needs 384"):
        encode_for(wide, ["a star"])
    with pytest.raises(UserError, match="does not say which text encoder"):
        encode_for(preset("dip-t2i-ti"), ["a star"])
    with pytest.raises(UserError, match="draws from classes"):
        encode_for(preset("dip-ti-4"), ["a star"])


def test_a_published_model_is_given_all_its_padding(gemma: Path) -> None:
    model = preset("pixeldit-t2i", text_size=24, text_length=20, text=TextNote("gemma", str(gemma)))
    found = encode_for(model, ["a star", "a red star"], negative="blue")
    assert found.features.shape == (2, 20, 24)
    assert found.null is not None and found.null.features.shape == (1, 20, 24)


# ---------------------------------------------------------------- the cache
def test_the_cache_gives_what_the_encoder_gives_and_asks_it_once(
    gemma: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["a star", "a red star", ""]
    plain = Gemma(str(gemma), 8, padded=True)
    expected = plain.join(plain.features(texts, same=True), plain.features([""], same=True)[0])
    asked: list[str] = []
    own = Gemma.features

    def count(self: Gemma, captions: list[str], same: bool):  # type: ignore[no-untyped-def]
        asked.extend(captions)
        return own(self, captions, same)

    monkeypatch.setattr(Gemma, "features", count)
    for number in range(3):
        cache = FeatureCache(Gemma(str(gemma), 8, padded=True), tmp_path)
        for _ in range(2):
            found = cache.encode(texts)
            assert torch.equal(found.features, expected.features) and torch.equal(found.mask, expected.mask)
        cache.flush()
        assert len(asked) == 3, number


def test_another_way_of_encoding_is_another_entry(gemma: Path, tmp_path: Path) -> None:
    other = tiny_gemma(tmp_path / "other", seed=1)
    ways = [
        Gemma(str(gemma), 8),
        Gemma(str(gemma), 8, prefix=PREFIX),
        Gemma(str(gemma), 9),
        Gemma(str(gemma), 8, padded=True),
        Gemma(str(other), 8),
        Gemma(str(gemma), 8, precision="fp32"),
    ]
    for encoder in ways:
        cache = FeatureCache(encoder, tmp_path / "cache")
        (expected,) = encoder.features(["a star"], same=True)
        assert torch.equal(cache.encode(["a star"]).features[0], expected.values)
        cache.flush()
    assert len(list((tmp_path / "cache").iterdir())) == len(ways)


def test_processes_share_a_cache_and_damage_costs_work_only(gemma: Path, tmp_path: Path) -> None:
    first, second = (FeatureCache(Gemma(str(gemma), 8), tmp_path) for _ in range(2))
    expected = first.encode(["a star", "a circle"]).features
    first.flush()
    second.encode(["a square"])
    second.flush()  # and sees what the first has written
    second.encoder.free()
    assert torch.equal(second.encode(["a star", "a circle"]).features, expected)
    assert second.encoder._model is None
    for file in tmp_path.rglob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:50])
    again = FeatureCache(Gemma(str(gemma), 8), tmp_path)
    assert torch.equal(again.encode(["a star", "a circle"]).features, expected)


def test_strings_are_enough_to_sample(gemma: Path) -> None:
    torch.manual_seed(0)
    note = TextNote("gemma", str(gemma))
    options = {"text_size": 24, "text_length": 8, "hidden_size": 24, "depth": 1, "num_heads": 2}
    model = pw.create("dip-t2i-ti", text=note, **options)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    sampler = pw.SamplerSettings(steps=2, guidance_scale=2.0)
    encoder = open_encoder(note, model.config)
    for negative in ("", "a blue square"):
        expected = pw.sample(model, encoder.encode(["a star", "a circle"], negative), sampler, size=8)
        prompts = pw.as_condition(["a star", "a circle"], model, negative)
        assert torch.equal(pw.sample(model, prompts, sampler, size=8), expected)
    one, same = (pw.sample(model, prompts, sampler, size=8) for prompts in ("a star", ["a star"]))
    assert torch.equal(one, same)
    with pytest.raises(UserError, match="negative is 'x', which goes with prompts alone"):
        pw.as_condition(encoder.encode(["a star"]), model, negative="x")


def test_the_note_travels_with_the_model(tmp_path: Path) -> None:
    note = TextNote("gemma", None, "one\ntwo: ", "abc")
    options = {"hidden_size": 24, "depth": 1, "num_heads": 2, "text_size": 24}
    pw.save(pw.create("dip-t2i-ti", text=note, **options), tmp_path / "m")
    assert pw.load(tmp_path / "m").config.text == note
    assert json.loads((tmp_path / "m" / "config.json").read_text())["text"]["prefix"] == "one\ntwo: "
    with pytest.raises(UserError, match="draws from classes"):
        pw.create("dip-ti-4", text=note)


def in_threads(number: int, work: Callable[[int], None]) -> None:
    failures: list[BaseException] = []

    def run(index: int) -> None:
        try:
            work(index)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures


def test_threads_share_a_cache_and_lose_nothing(
    gemma: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pixelwright.text.cache.FILE_SIZE", 20_000)  # many files
    cache = FeatureCache(Gemma(str(gemma), 8), tmp_path)
    values = torch.ones(3, 24, dtype=torch.bfloat16)
    monkeypatch.setattr(cache.encoder, "features", lambda texts, same: [Features(values, 3)] * len(texts))
    texts = [f"caption {i}" for i in range(3000)]
    in_threads(4, lambda n: [cache.features(texts[i : i + 5]) for i in range(n, 3000, 4)] and cache.flush())
    kept = FeatureCache(Gemma(str(gemma), 8), tmp_path)
    assert sum(kept._read(text) is None for text in texts) == 0


def test_threads_share_an_encoder_and_read_its_weights_once(
    bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [" ".join(WORDS[i % 5 : i % 5 + 1 + i % 3]) for i in range(20)]
    expected = {text: MiniLM(str(bert), 8).features([text])[0].values for text in texts}
    encoder, own, read = MiniLM(str(bert), 8), MiniLM._load, []

    def load(self: MiniLM) -> object:
        read.append(self)
        time.sleep(0.1)  # the others come meanwhile
        return own(self)

    monkeypatch.setattr(MiniLM, "_load", load)

    def work(_: int) -> None:
        for text in texts:
            assert torch.equal(encoder.features([text])[0].values, expected[text])

    in_threads(4, work)
    assert len(read) == 1


def test_prompts_in_a_file_of_any_editor(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffa red\u2028star\r\n\r\na blue\x85circle\n".encode())
    assert read_prompts(file, "--prompts") == ("a red\u2028star", "a blue\x85circle")
    file.write_bytes("a star\n".encode("utf-16"))
    assert read_prompts(file, "--prompts") == ("a star",)
    file.write_bytes(b"a star\na caf\xe9\n")
    with pytest.raises(UserError, match=r"--prompts: line 2 of .*prompts\.txt. is not UTF-8 text"):
        read_prompts(file, "--prompts")


@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5), far=st.integers(0, 31))
def test_captions_of_two_devices_come_together(lengths: list[int], far: int) -> None:
    """Whatever lengths they have, and whichever of them are on the device already."""
    captions = [Features(torch.randn(n, 3), n) for n in lengths]
    stacked = stack_captions(captions, torch.device("cpu"))
    for row, mask, caption, n in zip(stacked.features, stacked.mask, captions, lengths, strict=True):
        assert row[:n].equal(caption.values) and not row[n:].any()
        assert mask.sum() == n and mask[:n].all()
    mixed = [c._replace(values=c.values.to("meta")) if far >> i & 1 else c for i, c in enumerate(captions)]
    there = stack_captions(mixed, torch.device("meta"))
    assert there.features.shape == stacked.features.shape and there.features.device.type == "meta"
