"""From captions to what a model is conditioned on: frozen text encoders, and their features on the disk."""

from pixelwright.text.cache import FeatureCache
from pixelwright.text.config import TextConfig
from pixelwright.text.encoders import TextEncoder, encode_for, note_of, open_encoder

__all__ = ["FeatureCache", "TextConfig", "TextEncoder", "encode_for", "note_of", "open_encoder"]
