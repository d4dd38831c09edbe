"""The doctor tells what is missing, also when what is missing is what everything else needs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from XAICLIPLib.commands import doctor, main
from XAICLIPLib.commands.doctor import Diagnosis
from XAICLIPLib.errors import InputError
from XAICLIPLib.models import catalogue
from XAICLIPLib.system.packages import REQUIREMENTS

ROOT = Path(__file__).resolve().parents[3]


def test_it_looks_at_every_dependency_and_its_oldest_version() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = text.split("\ndependencies = [", 1)[1].split("\n]", 1)[0]
    wanted = dict(re.findall(r'^\s*"([\w-]+)>=([\d.]+)"', listed, re.MULTILINE))
    assert len(wanted) > 10
    assert {name: oldest for name, (_, oldest) in REQUIREMENTS.items()} == wanted


def test_a_complete_installation_without_a_gpu_passes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(catalogue.Entry, "check", lambda self: None)
    assert main.main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^note device +CPU", text, re.MULTILINE)
    assert not re.search("^NO", text, re.MULTILINE)
    assert "All that is needed is here." in text
    assert main.main(["doctor", "--json"]) == 0
    checks = [Diagnosis(**check) for check in json.loads(capsys.readouterr().out)]
    names = [check.name for check in checks]
    assert len(set(names)) == len(names)
    assert set(REQUIREMENTS) | {"xaiclip", "Python", "device"} | {entry.name for entry in catalogue.entries()} <= set(
        names
    )
    assert all(check.found for check in checks)
    assert all(check.remedy for check in checks if not check.ok)


def test_what_was_not_downloaded_is_not_called_ok(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["doctor"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "not on this machine" in line]
    assert len(lines) > 5 and all(line.startswith("-    ") for line in lines)


def test_a_changed_model_fails_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def changed(self: catalogue.Entry) -> None:
        raise InputError(f"The model {self.name} was changed: install XAI-CLIP again.")

    monkeypatch.setattr(catalogue.Entry, "check", changed)
    assert main.main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert re.search(r"^NO   abdomen-ct .*install XAI-CLIP again", text, re.MULTILINE)
    assert "cannot run properly here" in text
    assert "All that is needed" not in text


def test_the_doctor_comes_without_pytorch() -> None:
    # None in sys.modules makes an import fail as for a package that is broken.
    code = (
        "import sys\nfor m in ('torch', 'tqdm', 'numpy'): sys.modules[m] = None\n"
        "from XAICLIPLib.commands.main import main\n"
        "print(main(['doctor']))\nprint(main(['models']))\nprint(main(['explain', '.', '--prompt', 'liver']))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    assert re.search(r"^NO   torch .*does not import", result.stdout, re.MULTILINE)
    assert re.search(r"^NO   models +not looked at", result.stdout, re.MULTILINE)
    lines = result.stdout.splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("XAI-CLIP cannot run properly here"))
    assert lines[at + 1] == "1"
    assert lines[-2:] == ["0", "1"], "models are listed all the same, and nothing is explained"
    assert result.stderr.count("`xaiclip doctor` says what to install") == 1


@pytest.mark.parametrize(
    ("installed", "module", "found", "remedy"),
    [
        ("", "numpy", "not installed", 'pip install "some>=1.5"'),
        ("1.4.9", "numpy", "too old", "--upgrade"),
        ("1.10.0+cu128", "numpy", "1.10.0+cu128", ""),
        ("2.0rc1", "numpy", "2.0rc1", ""),
        ("1.5", "no_such_module", "does not import", "--force-reinstall some"),
    ],
)
def test_a_package_is_judged(
    installed: str, module: str, found: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "installed", lambda name: installed)
    check = doctor.package("some", module, "1.5")
    assert found in check.found
    assert remedy in check.remedy
    assert check.ok is (not remedy)
    assert not check.optional


def test_a_package_whose_own_need_is_missing_names_that(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise ModuleNotFoundError("No module named 'einops.layers'", name="einops.layers")

    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    assert doctor.package("monai", "monai", "1.0").remedy == "install einops, which it needs"


def test_a_gpu_that_fails_is_no_note(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> Any:
        raise RuntimeError("CUDA error: no kernel image is available\nCompile with TORCH_USE_CUDA_DSA")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", fail)
    check = doctor.device()
    assert not check.ok
    assert not check.optional
    assert "no kernel image" in check.found and "\n" not in check.found
    assert "--device cpu" in check.remedy


@pytest.mark.parametrize(
    ("threads", "cores", "words"), [(1, 2, "1 thread on 2 cores;"), (4, 1, "4 threads on 1 core;")]
)
def test_threads_and_cores_are_counted_in_words(
    monkeypatch: pytest.MonkeyPatch, threads: int, cores: int, words: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(doctor.os, "cpu_count", lambda: cores)
    assert words in doctor.device().found


def test_an_nvidia_driver_without_a_cuda_pytorch_is_pointed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    check = doctor.device()
    assert check.optional
    assert "NVIDIA" in check.remedy
