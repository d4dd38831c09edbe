"""What all tests of the library share."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Before numpy, torch or matplotlib are imported: this process's share of the cores as threads, no
# window, no network.
_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
_SHARE = max(1, _CORES // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
os.environ["OMP_NUM_THREADS"] = str(min(_SHARE, int(os.environ.get("OMP_NUM_THREADS", "8"))))
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session", autouse=True)
def _torch_settings() -> None:
    """Keep torch to the threads above, and denormal numbers, slow on many CPUs, at zero."""
    if importlib.util.find_spec("torch") is None:
        return
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.set_flush_denormal(True)


@pytest.fixture(scope="session", autouse=True)
def _no_models_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What the person who runs the tests has downloaded or added is neither seen nor touched."""
    os.environ["XAICLIP_MODELS"] = str(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real volumes beside the checkout; a test that needs them skips where they are absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the real volumes are not here ({folder})")
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders that nnU-Net's own planner and trainer made, by the name of their variant (`nnunet_training`)."""
    pytest.importorskip("nnunetv2", reason="nnU-Net is not installed")
    folder = tmp_path_factory.mktemp("nnunet")
    program = Path(__file__).with_name("nnunet_training.py")
    made = subprocess.run([sys.executable, str(program), str(folder)], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout[-2000:] + made.stderr[-4000:]
    found = (folder / "results").glob("*/*__*__*")
    return {path.name.split("__")[1].removeprefix("nnUNetPlans_"): path for path in found}
