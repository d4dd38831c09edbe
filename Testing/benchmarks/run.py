"""All benchmarks, one after the other: ``make bench``. The tables also go to ``Testing/benchmarks/RESULTS.md``."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
BENCHMARKS = (
    "models.py",
    "incremental.py",
    "explainers.py",
    "peers.py",
    "scaling.py",
    "devices.py",
    "panel.py",
    "panel_large.py",
)


def machine() -> str:
    """What the numbers were measured on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {gpu}; "
        f"Python {platform.python_version()}, PyTorch {torch.__version__}"
    )


def main() -> int:
    """Run them; the exit status is the first that is not 0."""
    text = f"# Benchmarks\n\nWritten by `make bench`. Machine: {machine()}.\n"
    for name in BENCHMARKS:
        done = subprocess.run([sys.executable, str(HERE / name)], stdout=subprocess.PIPE, text=True, check=False)
        print(done.stdout, flush=True)
        if done.returncode:
            return done.returncode
        text += f"\n## {name}\n{done.stdout}"
    (HERE / "RESULTS.md").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
