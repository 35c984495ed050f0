"""Growth of a head's time and memory with the number of identities, and a straight line fitted to it.

python benchmarks/growth.py [--head cosine|dynamic_meta] [--ranks 8] [--identities 10000 74500 300000 1000000]

With --ranks W it measures one of W ranks: its C / W rows with the images of all ranks, W times the batch; there is no
communication. Every size runs in a separate process. Seconds are processor time, which other programs affect less; the
kernel's part, mostly spent on fresh pages for the gradients, is shown too. Prints one JSON object per line.

B batch, C identities, D feature.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

FLOAT = 4
# Rows of D floats per identity: the parameters, and those with a gradient.
ROWS = {"cosine": (1, 1), "dynamic_meta": (3, 3)}

# glibc keeps freed blocks below an adaptive threshold; a fixed one returns tensors of 2 MB and more at once.
ENVIRONMENT = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2 << 20)}


def measure_step(head: str, identities: int, dim: int, batch: int, budget: float) -> dict:
    """Best processor seconds of a forward and backward step; peak bytes without parameters and gradients."""
    import torch
    from head import cosine_step, head_step

    torch.manual_seed(0)
    make = {"cosine": cosine_step, "dynamic_meta": head_step}[head]
    step = make(identities, dim, batch)
    (torch.randn(256, 256) @ torch.randn(256, 256)).sum()
    before, seconds = kernel_bytes("self/status", "VmRSS"), []
    # Resets VmHWM: from here on it is the peak of the steps.
    Path("/proc/self/clear_refs").write_text("5")
    step()
    while len(seconds) < 2 or sum(map(sum, seconds)) < budget:
        started = resource.getrusage(resource.RUSAGE_SELF)
        step()
        done = resource.getrusage(resource.RUSAGE_SELF)
        seconds.append((done.ru_utime - started.ru_utime, done.ru_stime - started.ru_stime))
    gradients = FLOAT * ROWS[head][1] * identities * dim
    best = min(seconds, key=sum)
    return {
        "seconds": sum(best),
        "kernel_seconds": best[1],
        "extra_bytes": kernel_bytes("self/status", "VmHWM") - before - gradients,
    }


def kernel_bytes(file: str, name: str) -> int:
    """A memory figure of Linux, in bytes."""
    lines = Path("/proc", file).read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def measure_in_process(arguments: argparse.Namespace, identities: int) -> dict:
    """Figures of one size; exits if it does not fit into memory."""
    rows, batch = -(-identities // arguments.ranks), arguments.batch * arguments.ranks
    needed = FLOAT * rows * (arguments.dim * sum(ROWS[arguments.head]) + 3 * batch)
    if needed > 0.9 * (free := kernel_bytes("meminfo", "MemAvailable")):
        raise SystemExit(f"{identities} identities need {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")
    size = json.dumps([arguments.head, rows, arguments.dim, batch, arguments.budget])
    done = subprocess.run([sys.executable, __file__, "--one", size], capture_output=True, text=True, env=ENVIRONMENT)
    if done.returncode:
        raise SystemExit(done.stderr)
    figures = json.loads(done.stdout)
    return {
        "identities": identities,
        "rows": rows,
        "batch": batch,
        "seconds": figures["seconds"],
        "kernel_seconds": figures["kernel_seconds"],
        "extra_MB": figures["extra_bytes"] / 1e6,
        "extra_in_B_x_rows_floats": figures["extra_bytes"] / (FLOAT * rows * batch),
    }


def fit_line(points: list[dict], name: str) -> dict:
    """The straight line through a figure of all sizes, fitted by relative error, and each size's deviation from it."""
    import numpy as np

    identities, figure = (np.array([point[key] for point in points], dtype=float) for key in ("identities", name))
    slope, start = np.polyfit(identities, figure, 1, w=1 / figure)
    deviation = (figure / (start + slope * identities) - 1) * 100
    return {"line": name, "at_0": start, "per_million": slope * 1e6, "deviation_percent": deviation.round(1).tolist()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--head", choices=sorted(ROWS), default="dynamic_meta")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--identities", type=int, nargs="+", default=[10_000, 74_500, 300_000, 1_000_000])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--budget", type=float, default=8.0, help="seconds of steps per size, at least two steps")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure_step(*arguments.one)))
        return
    points = []
    for identities in arguments.identities:
        points.append(measure_in_process(arguments, identities))
        print(json.dumps({"head": arguments.head, "ranks": arguments.ranks, **points[-1]}), flush=True)
    for name in ("seconds", "extra_MB"):
        print(json.dumps(fit_line(points, name)))


if __name__ == "__main__":
    main()
