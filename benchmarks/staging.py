"""Bytes of a checkpoint that each process copies to the CPU and writes, by the number of processes.

    python benchmarks/staging.py dip-xl-16 --processes 8 --replicas 2

"all" is what each process would stage if it took all that it holds; "share" is what the fullest one stages.
Under DDP all hold everything; under HSDP each of `replicas` copies is divided among the others. Computed from
the shapes: nothing is allocated.
"""

import argparse
from collections.abc import Iterator

import torch
from torch import Tensor

from pixelwright.distributed.checkpoint import State, share
from pixelwright.distributed.config import ParallelConfig
from pixelwright.distributed.parallel import Layout
from pixelwright.models.folder import skeleton
from pixelwright.models.presets import preset

GROUPS = ("model", "ema", "exp_avg", "exp_avg_sq")  # AdamW and one average


def state_of(name: str) -> State:
    """The large tensors of a training state, without memory."""
    weights: dict[str, Tensor] = {key: x.detach() for key, x in skeleton(preset(name)).state_dict().items()}
    return {group: weights for group in GROUPS}


def shares(state: State, processes: int) -> Iterator[int]:
    """Bytes that each process stages of what all hold."""
    for rank in range(processes):
        layout = Layout(ParallelConfig(), torch.device("cpu"), rank, processes)
        yield sum(part.values.nbytes for part in share(state, layout))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", nargs="?", default="dip-xl-16")
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--replicas", type=int, default=2)
    options = parser.parse_args()
    state = state_of(options.model)
    whole = sum(x.nbytes for tensors in state.values() for x in tensors.values())
    shards = options.processes // options.replicas
    ddp, hsdp = (max(shares(state, holders)) for holders in (options.processes, options.replicas))
    rows = (
        (f"ddp {options.processes}", whole, ddp),
        (f"fsdp {options.replicas} x {shards}", whole / shards, hsdp / shards),
    )
    print("| layout | all, GB | share, GB |\n|---|---|---|")
    for name, before, after in rows:
        print(f"| {name} | {before / 1e9:.2f} | {after / 1e9:.2f} |")


if __name__ == "__main__":
    main()
