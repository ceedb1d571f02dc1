"""Files in the layouts in which weights are published, made from the recordings."""

from __future__ import annotations

import argparse
import collections
import json
import pathlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.recordings import weights

LAYOUTS = ("lightning", "raw-only", "core", "bare-pickle", "plain", "repack", "net", "sharded")
T2I = {  # the keys by which a text-conditional network is known, with other sizes than any preset
    "s_embedder.proj.weight": (48, 192),
    "patch_blocks.0.attn.q_norm_x.weight": (12,),
    "patch_blocks.1.attn.q_norm_x.weight": (12,),
    "pixel_embedder.proj.weight": (8, 3),
    "pixel_blocks.0.compress_to_attn.weight": (32, 512),
    "y_embedder.proj.weight": (48, 20),
    "y_pos_embedding": (1, 12, 48),
}


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in tensors.items()}


def lightning(name: str) -> dict[str, object]:
    """What Lightning's ModelCheckpoint leaves: both sets, the projector, and settings of many classes."""
    public = {key: value.clone() for key, value in weights(name).items()}  # for tests that change them
    state = prefixed("denoiser.", {key: value + 1 for key, value in public.items()})
    state |= prefixed("ema_denoiser.", public) | {"diffusion_trainer.proj.0.weight": torch.ones(2, 2)}
    return {
        "state_dict": state,
        "epoch": 80,
        "pytorch-lightning_version": "2.5.1",
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best": None, "dirpath": pathlib.Path("a/b")}},
        "hyper_parameters": argparse.Namespace(lr=1e-4, betas=(0.9, 0.999)),
        "optimizer_states": [{"state": collections.defaultdict(dict, {0: {"step": torch.tensor(3.0)}})}],
    }


def write(layout: str, name: str, folder: Path) -> Path:
    """A file of one of `LAYOUTS` with the weights of a recording."""
    public = weights(name)
    match layout:
        case "lightning":
            torch.save(lightning(name), folder / "epoch=79.ckpt")
            return folder / "epoch=79.ckpt"
        case "raw-only":
            torch.save({"state_dict": prefixed("denoiser.", public)}, folder / "raw.ckpt")
            return folder / "raw.ckpt"
        case "core":
            beside = {"_repa_projector.0.weight": torch.ones(1)}
            torch.save({"state_dict": prefixed("core.", public) | beside}, folder / "core.pth")
            return folder / "core.pth"
        case "bare-pickle":
            torch.save(public, folder / "bare.pt")
            return folder / "bare.pt"
        case "sharded":
            return shards(public, folder)
    prefix = {"plain": "", "repack": "model.diffusion_model.", "net": "net."}[layout]
    save_file(prefixed(prefix, public), folder / f"{layout}.safetensors")
    return folder / f"{layout}.safetensors"


def shards(tensors: Mapping[str, Tensor], folder: Path) -> Path:
    """Two shards and their index."""
    names = sorted(tensors)
    parts = {"m-00001-of-00002.safetensors": names[::2], "m-00002-of-00002.safetensors": names[1::2]}
    for file, keys in parts.items():
        save_file({key: tensors[key] for key in keys}, folder / file)
    index = folder / "m.safetensors.index.json"
    weight_map = {key: file for file, keys in parts.items() for key in keys}
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index
