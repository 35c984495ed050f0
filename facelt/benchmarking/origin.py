"""Where a figure was made: the machine, torch's version and the commit of the sources."""

import os
import platform
import subprocess
from pathlib import Path

SOURCES = ("facelt", "recordio_tools", "configs")


def machine_name(device: str) -> str:
    """The GPU's name, or the processor's with its number of cores."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def commit_of(checkout: Path) -> str:
    """The commit's first ten digits, with `+changes` where the sources differ from it; `unknown` without git."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(checkout), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")[:10]
        changed = git("status", "--porcelain", "--", *SOURCES)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}+changes" if changed else commit
