"""Processor time until a command answers, beside `import torch` alone.

    python benchmarks/startup.py

Each command is a fresh process; they take turns, and medians count. Mistakes are commands too: their one line
should come as soon as the help.
"""

import argparse
import os
import statistics
import subprocess
import sys

COMMANDS = {
    "import torch": ["-c", "import torch"],
    "import pixelwright": ["-c", "import pixelwright"],
    "--help": ["-m", "pixelwright", "--help"],
    "info": ["-m", "pixelwright", "info"],
    "info dip-xl-16": ["-m", "pixelwright", "info", "dip-xl-16"],
    "train --help": ["-m", "pixelwright", "train", "--help"],
    "train, an unknown option": ["-m", "pixelwright", "train", "--stpes", "3"],
    "train, an unknown model": ["-m", "pixelwright", "train", "--run", "r", "--model.preset", "dit"],
    "sample, no such model": ["-m", "pixelwright", "sample", "nothing-here", "--out", "out"],
    "evaluate, an unknown option": ["-m", "pixelwright", "evaluate", "--referance", "x"],
}


def seconds(words: list[str]) -> float:
    """User and system time of one process, in seconds."""
    before = os.times()
    subprocess.run([sys.executable, *words], capture_output=True, check=False)
    after = os.times()
    return sum(after[2:4]) - sum(before[2:4])


def main() -> None:
    """Print one row per command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    runs = [{name: seconds(words) for name, words in COMMANDS.items()} for _ in range(repeats)]
    times = {name: statistics.median(run[name] for run in runs) for name in COMMANDS}
    print("| command | CPU seconds | of `import torch` |\n|---|---|---|")
    for name, time in times.items():
        print(f"| {name} | {time:.2f} | {time / times['import torch']:.2f} |")


if __name__ == "__main__":
    main()
