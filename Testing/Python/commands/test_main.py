"""The command line: what it writes and prints, its exit statuses, and that it says what is wrong in one sentence."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from dicom_writer import write

from XAICLIPLib.commands import main, results_folder
from XAICLIPLib.commands.summary import summary
from XAICLIPLib.commands.terminal import STAGES
from XAICLIPLib.errors import Cancelled, InputError
from XAICLIPLib.explainers import methods
from XAICLIPLib.progress import Progress
from XAICLIPLib.system.files import check_exists

TOLD = ("Warning: ", *(f"{stage}: " for stage in STAGES.values()))
"""How lines on stderr begin where it is no terminal."""

ROOT = Path(__file__).resolve().parents[3]
VOLUMES = {"saliency.nrrd", "probed.nrrd", "region.nrrd", "segmentation.nrrd"}
FILES = VOLUMES | {"figure.png", "explanation.json"}

STEPS = [
    {"_target_": "LoadImaged", "keys": "image"},
    {"_target_": "EnsureChannelFirstd", "keys": "image"},
    {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
    {"_target_": "Spacingd", "keys": "image", "pixdim": [16.0, 16.0, 16.0], "mode": "bilinear"},
    {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": -200, "a_max": 300, "b_min": 0.0, "b_max": 1.0},
]


@pytest.fixture(autouse=True)
def _scan_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where explaining is faked, the volume is called "scan", which no file is."""
    monkeypatch.setattr(
        "XAICLIPLib.commands.explain.check_exists", lambda path: None if path == "scan" else check_exists(path)
    )


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MONAI bundle whose network is one convolution on a grid of 16 mm: bright is liver."""
    import torch
    from monai.networks.nets import UNet

    folder = tmp_path_factory.mktemp("model") / "tiny"
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    network = {
        "spatial_dims": 3,
        "in_channels": 1,
        "out_channels": 2,
        "channels": [4, 8],
        "strides": [2],
        "norm": "batch",
    }
    inference = {
        "network_def": {"_target_": "UNet", **network},
        "preprocessing": {"_target_": "Compose", "transforms": STEPS},
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 16], "overlap": 0.25},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [{"_target_": "Activationsd", "keys": "pred", "softmax": True}],
        },
    }
    metadata = {
        "name": "Tiny",
        "version": "1.0",
        "network_data_format": {
            "inputs": {"image": {"type": "image", "modality": "CT", "num_channels": 1}},
            "outputs": {"pred": {"channel_def": {"0": "background", "1": "liver"}}},
        },
    }
    (folder / "configs" / "inference.json").write_text(json.dumps(inference), encoding="utf-8")
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata), encoding="utf-8")
    torch.manual_seed(0)
    torch.save(UNet(**network).eval().state_dict(), folder / "models" / "model.pt")
    return folder


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from XAICLIPLib.imaging.phantom import torso_phantom

    path = tmp_path_factory.mktemp("scan") / "scan.nrrd"
    sitk.WriteImage(torso_phantom(0, 8.0).image, str(path))
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(autouse=True)
def quick_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in the figure's place, whose drawing takes seconds, but where a test says otherwise."""
    if "real_picture" not in request.fixturenames:
        from XAICLIPLib.reporting import figure

        def save_figure(path: Path, *_: Any, **__: Any) -> Path:
            path.write_bytes(b"picture")
            return path

        monkeypatch.setattr(figure, "save_figure", save_figure)


@pytest.fixture
def real_picture() -> None:
    """Ask for the figure itself."""


def quick(scan: Path, bundle: Path, *more: str, prompt: str = "liver") -> list[str]:
    """An explanation of eight windows, without a localizer."""
    fixed = ["--prompt", prompt, "--model", str(bundle), "--region", "whole", "--device", "cpu"]
    return ["explain", str(scan), *fixed, "--window", "400", "--stride", "200", *more]


def python(*arguments: str, code: str | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *(["-c", code] if code else ["-m", "XAICLIPLib"]), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | options.pop("env", {})
    return subprocess.run(
        command, env=environment, text=True, encoding="utf-8", check=False, timeout=120, **({"stderr": -1} | options)
    )


def one_sentence(text: str) -> str:
    """What is said of an error: one line that begins with the command's name, no traceback."""
    assert text.count("\n") == 1 and text.startswith("xaiclip: "), text
    assert re.search(r"[.)]\n$", text), text
    return text


# --- explain -------------------------------------------------------------------------------------


def test_explain_writes_all_files_and_says_where(
    here: Path, scan: Path, bundle: Path, capsys: pytest.CaptureFixture[str], real_picture: None
) -> None:
    assert main.main(quick(scan, bundle)) == 0
    out, err = capsys.readouterr()
    folder = here / "results" / "liver"
    assert {path.name for path in folder.iterdir()} == FILES
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert "results/liver" in out.replace("\\", "/")
    assert "liver" in out and "cubes" in out
    for line in err.splitlines():
        assert line.startswith(TOLD), "a bar or a package's warning where there is no terminal"
    given = sitk.ReadImage(str(scan))
    for name in VOLUMES:
        volume = sitk.ReadImage(str(folder / name))
        assert volume.GetSize() == given.GetSize()
        assert volume.GetOrigin() == pytest.approx(given.GetOrigin())


def test_a_second_explanation_never_touches_the_first(here: Path, scan: Path, bundle: Path) -> None:
    first = here / "results" / "liver"
    first.mkdir(parents=True)
    (first / "figure.png").write_text("mine")
    assert main.main(quick(scan, bundle)) == 0
    assert [path.read_text() for path in first.iterdir()] == ["mine"]
    assert {path.name for path in (here / "results" / "liver-2").iterdir()} == FILES


def test_json_is_all_of_stdout_whatever_packages_print(
    here: Path, scan: Path, bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from XAICLIPLib import pipeline

    real = pipeline.explain

    def chatty(*arguments: Any, **options: Any) -> Any:
        print("a package greets")
        warnings.warn("deprecated", FutureWarning, stacklevel=1)
        return real(*arguments, **options)

    monkeypatch.setattr(pipeline, "explain", chatty)
    assert main.main(quick(scan, bundle, "--json", "--output", "there", prompt="the liver \udcff")) in (0, 1)
    capsys.readouterr()
    assert main.main(quick(scan, bundle, "--json", "--output", "there")) == 0
    out, err = capsys.readouterr()
    printed = json.loads(out, parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
    files = printed.pop("files")
    assert printed == json.loads((here / "there" / "explanation.json").read_text(encoding="utf-8"))
    assert {Path(path).name for path in files.values()} == FILES
    assert all(Path(path).is_file() for path in files.values())
    assert "a package greets" in err
    assert "deprecated" not in err


def test_options_reach_the_explanation(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from XAICLIPLib import pipeline

    seen: dict[str, Any] = {}

    def spy(image: object, prompt: str, **options: Any) -> None:
        seen.update(options, image=image, prompt=prompt)
        raise InputError("Enough.")

    monkeypatch.setattr(pipeline, "explain", spy)
    line = (
        "explain scan --prompt spleen --model m --localizer l --method occlusion --region r.nrrd --target t --score "
        "hard-dice --effect remote --labels heart,lung --baseline blur --threshold 0.4 --margin 5 --modality MR "
        "--series 2 --window 20 --stride 5 --exhaustive --device cpu --precision full --batch-size 7 --seed 3 --trust"
    )
    assert main.main(line.split()) == 1
    for name in ("on_progress", "on_warning", "cancelled"):
        assert callable(seen.pop(name))
    assert seen == {
        "image": ["scan"],
        "prompt": "spleen",
        "model": "m",
        "localizer": "l",
        "method": "occlusion",
        "region": "r.nrrd",
        "target": "t",
        "score": "hard dice",
        "effect": "remote",
        "labels": {0: "heart", 1: "lung"},
        "baseline": "blur",
        "threshold": 0.4,
        "margin_mm": 5.0,
        "modality": "MR",
        "series": "2",
        "window_mm": 20.0,
        "stride_mm": 5.0,
        "exhaustive": True,
        "device": "cpu",
        "precision": "full",
        "batch_size": 7,
        "seed": 3,
        "trust": True,
        "prompts": None,
        "check": False,
    }


def test_choices_and_defaults_are_the_librarys() -> None:
    import inspect

    from XAICLIPLib import pipeline

    options = vars(main._parser().parse_args(["explain", "scan", "--prompt", "liver"]))
    of_library = inspect.signature(pipeline.explain).parameters
    for name, parameter in of_library.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD or parameter.default is inspect.Parameter.empty:
            continue
        if name not in {"on_progress", "on_estimate", "on_warning", "cancelled", "margin_mm"}:
            assert options[name] == parameter.default, name


def test_every_parameter_of_every_method_has_an_option() -> None:
    for name, about in methods.describe().items():
        for parameter in about["parameters"]:
            given = {"flag": [], "choice": parameter["choices"][-1:], "text": ["words"]}.get(
                parameter["type"], [str(parameter["least"])]
            )
            option = f"--{parameter['name'].removesuffix('_mm').replace('_', '-')}"
            options = main._parser().parse_args(
                ["explain", "scan", "--prompt", "liver", "--method", name, option, *given]
            )
            assert getattr(options, parameter["name"]) is not None, option


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--model", "no-such"], "no-such"),
        (["--region", "mask.nrrd"], "mask.nrrd"),
        (["--target", "spleen"], "spleen"),
        (["--device", "abacus"], "abacus"),
        (["--window", "nan"], "window"),
        (["--batch-size", "0"], "batch"),
        (["--window", "10", "--stride", "50"], "stride"),
    ],
)
def test_what_cannot_be_used_is_one_sentence_and_leaves_nothing(
    here: Path, scan: Path, bundle: Path, more: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(quick(scan, bundle, "--json", *more)) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert words in one_sentence(err)
    assert list(here.iterdir()) == [], "an empty results folder was left behind"


def test_an_error_names_the_option_and_no_parameter(
    here: Path, scan: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(quick(scan, bundle, "--method", "occlusion", "--window", "900")) == 1
    assert one_sentence(capsys.readouterr().err).startswith("xaiclip: --window is 900.0: give a number in mm")


def test_a_misspelt_prompt_is_told_before_anything_is_read_and_the_folder_is_named_as_it_was_understood(
    here: Path, scan: Path, bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from XAICLIPLib import pipeline

    told_before_reading = ""

    def read_scan(*arguments: Any, real: Callable[..., Any] = pipeline.read_scan) -> Any:
        nonlocal told_before_reading
        told_before_reading = capsys.readouterr().err
        return real(*arguments)

    monkeypatch.setattr(pipeline, "read_scan", read_scan)
    assert main.main(quick(scan, bundle, "--method", "occlusion", prompt="livr")) == 0
    said = '"livr" is not a known spelling and was understood as liver: check that this is meant.'
    assert told_before_reading == f"Warning: {said}\n"
    assert said not in capsys.readouterr().err, "once is enough"
    assert [path.name for path in (here / "results").iterdir()] == ["liver"]


def test_words_that_mean_nothing_are_refused_before_the_scan_is_read(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The scan would be refused, were it read."""
    (here / "broken.nii").write_bytes(b"no scan")
    for prompt in ("livvver", "spleen and livvver"):
        assert main.main(["explain", "broken.nii", "--prompt", prompt]) == 1
        said = one_sentence(capsys.readouterr().err)
        assert '"livvver" names no structure that is known here (did you mean liver?)' in said
        assert "right kidney" in said, "what the default network draws is known without loading it"
    assert [path.name for path in here.iterdir()] == ["broken.nii"]


def test_a_failure_leaves_earlier_results_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "results" / "liver").mkdir(parents=True)
    (here / "mine").mkdir()
    assert main.main(["explain", "absent.nii", "--prompt", "liver"]) == 1
    assert "absent.nii" in one_sentence(capsys.readouterr().err)
    assert main.main(["explain", "absent.nii", "--prompt", "liver", "--output", "mine"]) == 1
    assert [path.name for path in (here / "results").iterdir()] == ["liver"]
    assert (here / "mine").is_dir(), "an empty folder of the user's was taken away"


@pytest.mark.parametrize(
    "arguments",
    [
        ["explain", "scan"],
        ["explain", "scan", "--prompt", " "],
        ["explain", "scan", "--prompt", "liver", "--output", ""],
        ["explain", "scan", "--prompt", "liver", "--seed", "-1"],
        ["explain", "scan", "--prompt", "liver", "--seed", "99999999999999999999"],
        ["explain", "scan", "--prompt", "liver", "--score", "iou"],
        ["nonsense"],
        [],
    ],
)
def test_a_wrong_option_ends_with_2_before_any_work(
    here: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main(arguments)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and "error:" in err and "Traceback" not in err
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB\nmore"), "memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "memory"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), "doctor"),
        (OSError(28, "No space left on device", "out.nrrd"), "No space left"),
    ],
)
def test_what_happens_to_users_is_one_sentence(
    here: Path, error: Exception, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(with_explain(monkeypatch, error)) == 1
    assert words in one_sentence(capsys.readouterr().err)
    assert list(here.iterdir()) == []


def test_a_mistake_of_ours_keeps_its_traceback(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="shapes differ"):
        main.main(with_explain(monkeypatch, RuntimeError("shapes differ")))


def with_explain(monkeypatch: pytest.MonkeyPatch, result: Exception | Callable[..., Any]) -> list[str]:
    """Put a stand-in in the library's place; returns a command line that calls it."""
    from XAICLIPLib import pipeline

    def stand_in(*arguments: Any, **options: Any) -> Any:
        if isinstance(result, Exception):
            raise result
        return result(*arguments, **options)

    monkeypatch.setattr(pipeline, "explain", stand_in)
    return ["explain", "scan", "--prompt", "liver"]


# --- where it writes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("liver", "liver"),
        ("Left  Kidney!", "left-kidney"),
        ("../x", "x"),
        ("..", "explanation"),
        ("/etc/passwd", "etc-passwd"),
        ("C:\\temp\\x", "c-temp-x"),
        ("a\x00b\nc", "a-b-c"),
        ("", "explanation"),
        ("~", "explanation"),
        ("肝臓", "肝臓"),
        ("Größe_2", "größe-2"),
        ("x" * 5000, "x" * 60),
        ("肝" * 5000, "肝" * 60),
    ],
)
def test_a_folder_is_named_after_the_prompt_and_never_leaves_the_parent(tmp_path: Path, prompt: str, name: str) -> None:
    parent = tmp_path / "results"
    parent.mkdir()
    made = [results_folder.new_folder(parent, prompt) for _ in range(3)]
    assert made == [parent / name, parent / f"{name}-2", parent / f"{name}-3"]
    assert sorted(tmp_path.rglob("*")) == sorted([parent, *made])


def test_concurrent_explanations_get_folders_of_their_own(tmp_path: Path) -> None:
    made: list[Path] = []
    threads = [
        threading.Thread(target=lambda: made.append(results_folder.new_folder(tmp_path, "liver"))) for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 16


@pytest.mark.parametrize("kind", ["a file", "below a file", "results is a file", "read-only"])
def test_an_output_folder_that_cannot_be_written_is_refused_before_the_work(
    here: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "results").write_text("")
    output = {"a file": "results", "below a file": "results/x", "results is a file": None, "read-only": "/proc"}[kind]
    if kind == "read-only" and not Path("/proc/self").exists():
        pytest.skip("no folder here that nobody may write to")
    began: list[int] = []
    line = with_explain(monkeypatch, lambda *_, **__: began.append(1))
    assert main.main([*line, *(["--output", output] if output else [])]) == 1
    assert "choose another folder" in one_sentence(capsys.readouterr().err)
    assert not began


# --- the real command ----------------------------------------------------------------------------


def test_the_command_prints_json_to_a_pipe_and_nothing_of_progress(scan: Path, bundle: Path, tmp_path: Path) -> None:
    # An ASCII terminal, and a folder with a name that it cannot show.
    options = quick(scan, bundle, "--json", "--output", "Größe")
    result = python(
        *options, cwd=tmp_path, stdout=subprocess.PIPE, env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    )
    assert result.returncode == 0, result.stderr
    printed = json.loads(result.stdout)
    assert printed["target"]["name"] == "liver"
    assert printed["complete"] is True
    assert Path(printed["files"]["figure"]).parent == tmp_path.resolve() / "Größe"
    assert "%" not in result.stderr and "Traceback" not in result.stderr
    assert all(line.startswith(TOLD) for line in result.stderr.splitlines()), result.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("sent", ["SIGINT", "SIGTERM"], ids=["Ctrl-C", "SIGTERM"])
def test_on_a_terminal_there_is_time_left_and_an_interrupt_keeps_the_partial_result(
    scan: Path, bundle: Path, tmp_path: Path, sent: str
) -> None:
    import pty

    ours, theirs = pty.openpty()  # of 0 columns and rows, as in some containers
    line = quick(
        scan, bundle, "--window", "16", "--stride", "16", "--exhaustive", "--output", "out"
    )  # thousands of windows
    process = subprocess.Popen(
        [sys.executable, "-m", "XAICLIPLib", *line],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        encoding="utf-8",
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    os.close(theirs)
    shown = ""
    try:
        asked = False
        deadline = time.monotonic() + 100
        while time.monotonic() < deadline:
            try:
                piece = os.read(ours, 4096)
            except OSError:  # Linux: the other end was closed
                break
            if not piece:
                break
            shown += piece.decode("utf-8", "replace")
            if not asked and re.search(r"explaining +\d+%\|.{30}\| [1-9]\d*/\d+, \d\d:\d\d left", shown):
                process.send_signal(getattr(signal, sent))
                asked = True
        out, _ = process.communicate(timeout=30)
    finally:
        process.kill()
        os.close(ours)
    assert asked, repr(shown)
    assert "segmenting 100%" in shown
    assert "Ctrl-C again ends at once" in shown
    assert "Cancelled after" in shown
    assert "partial result" in out
    assert "Traceback" not in shown
    assert process.returncode == 130
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    record = json.loads((tmp_path / "out" / "explanation.json").read_text(encoding="utf-8"))
    assert record["complete"] is False
    found = record["measurements"]
    assert 0 < found["perturbations"] < found["perturbations_planned"]


def test_help_does_not_wait_for_pytorch() -> None:
    heavy = ("torch", "monai", "numpy", "SimpleITK", "matplotlib", "tqdm")
    code = (
        "import sys\nfrom XAICLIPLib.commands.main import main\n"
        "for line in (['--help'], ['explain', '--help'], ['doctor', '--help'], ['--version']):\n"
        "    try: main(line)\n    except SystemExit as end: assert not end.code\n"
        f"print([m for m in {heavy!r} if m in sys.modules])"
    )
    result = python(code=code, stdout=subprocess.PIPE)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "[]"
    options = "prompt model localizer method region target device seed output json".split()
    assert all(f"--{option}" in result.stdout for option in options)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows tells of closed pipes otherwise")
@pytest.mark.parametrize(("target", "status"), [("| true", 141), ("> /dev/full", 1), (">&-", 1)])
def test_output_that_cannot_be_written_gives_no_traceback(target: str, status: int) -> None:
    if target == "> /dev/full" and not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    # The doctor of an installation without PyTorch, because it is quick; a pause, so that the reader has gone.
    code = (
        "import time, sys; time.sleep(0.2); sys.modules |= dict.fromkeys(['torch', 'numpy', 'matplotlib']); "
        "from XAICLIPLib.commands.main import main; sys.exit(main(['doctor']))"
    )
    script = f"{{ '{sys.executable}' -c \"{code}\"; echo $? >&2; }} {target}"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}  # so that the last flush fails
    result = subprocess.run(["sh", "-c", script], env=environment, capture_output=True, text=True, check=False)
    *said, last = result.stderr.splitlines(keepends=True)
    assert last == f"{status}\n", result.stderr
    if target == "> /dev/full":
        assert "No space left" in one_sentence("".join(said))
    else:
        assert said == []


# --- Ctrl-C --------------------------------------------------------------------------------------


def test_a_second_ctrl_c_ends_at_once(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    reached: list[str] = []

    def deaf(*_: object, cancelled: Callable[[], bool], on_progress: Callable[[Progress], None], **__: object) -> None:
        assert not cancelled()
        on_progress(Progress("explain", 0, 8, None))
        signal.raise_signal(signal.SIGINT)
        assert cancelled()
        reached.append("the first only asks")
        signal.raise_signal(signal.SIGINT)
        reached.append("never here")

    before = signal.getsignal(signal.SIGINT)
    assert main.main(with_explain(monkeypatch, deaf)) == 130
    assert reached == ["the first only asks"]
    assert signal.getsignal(signal.SIGINT) is before
    err = capfd.readouterr().err
    assert "again" in err and err.endswith("xaiclip: interrupted.\n")
    assert list(here.iterdir()) == []


def test_ctrl_c_before_there_is_a_result_says_that_nothing_was_written(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(with_explain(monkeypatch, Cancelled("early"))) == 130
    assert "nothing was written" in one_sentence(capsys.readouterr().err)
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("stage", [None, "localize", "segment"])
def test_before_the_scan_is_perturbed_the_first_signal_ends_at_once(
    here: Path, stage: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def reading(*_: object, on_progress: Callable[[Progress], None], **__: object) -> None:
        if stage is not None:
            on_progress(Progress(stage, 0, 8, None))
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("it went on")

    assert main.main(with_explain(monkeypatch, reading)) == 130
    assert "nothing was written" in capsys.readouterr().err.splitlines()[-1]
    assert list(here.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a file whose reading hangs")
@pytest.mark.parametrize("sent", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("name", ["scan.nrrd", "scan.mha"])  # Python opens the one first, native code the other
def test_a_read_that_hangs_ends_at_the_first_signal(tmp_path: Path, name: str, sent: str) -> None:
    os.mkfifo(tmp_path / name)
    code = (  # what reads it in Python first is left out: native code alone hangs
        "import sys\nfrom XAICLIPLib import imaging\nfrom XAICLIPLib.commands import main, terminal\n"
        "terminal.HANDLED_WITHIN_S = 0.3\n"
        "if sys.argv[2].endswith('.mha'):\n"
        "    import SimpleITK\n"
        "    imaging.read_volume = lambda path: SimpleITK.ReadImage(str(path), imageIO='MetaImageIO')\n"
        "sys.exit(main.main(sys.argv[1:]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "explain", name, "--prompt", "liver"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "results" / "liver").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(6)  # until it hangs: packages are loaded before
        process.send_signal(getattr(signal, sent))
        _, err = process.communicate(timeout=10)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "nothing was written" in err and "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no terminals that hang up")
def test_a_lost_terminal_ends_with_what_is_known(scan: Path, bundle: Path, tmp_path: Path) -> None:
    import pty

    ours, theirs = pty.openpty()
    line = quick(scan, bundle, "--window", "16", "--stride", "16", "--exhaustive", "--output", "out")

    def own_session() -> None:  # whose terminal is lost with it
        import fcntl
        import termios

        os.setsid()
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        [sys.executable, "-m", "XAICLIPLib", *line],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        preexec_fn=own_session,
    )
    os.close(theirs)
    try:
        shown, deadline = "", time.monotonic() + 100
        while time.monotonic() < deadline and not re.search(r"explaining +\d+%\|.{30}\| [1-9]\d*/\d+", shown):
            shown += os.read(ours, 4096).decode("utf-8", "replace")
        os.close(ours)
        assert process.wait(timeout=60) == 130
    finally:
        process.kill()
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    record = json.loads((tmp_path / "out" / "explanation.json").read_text(encoding="utf-8"))
    assert record["complete"] is False and record["measurements"]["perturbations"] > 0


def test_a_file_of_the_users_own_is_refused_before_the_work_and_stays(
    here: Path, scan: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "out").mkdir()
    mine = here / "out" / "target.nrrd"
    mine.write_bytes(scan.read_bytes())
    began: list[int] = []
    line = with_explain(monkeypatch, lambda *_, **__: began.append(1))
    assert main.main([*line, "--region", str(mine), "--output", "out"]) == 1
    assert "target.nrrd, which no explanation wrote" in one_sentence(capsys.readouterr().err)
    assert not began and mine.read_bytes() == scan.read_bytes()
    assert [path.name for path in (here / "out").iterdir()] == ["target.nrrd"]


def test_ctrl_c_while_saving_lets_the_files_be_finished(
    here: Path, scan: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from XAICLIPLib.explanation import Explanation

    save = Explanation.save

    def interrupted(self: Explanation, folder: Path) -> dict[str, Path]:
        signal.raise_signal(signal.SIGINT)
        return save(self, folder)

    monkeypatch.setattr(Explanation, "save", interrupted)
    assert main.main(quick(scan, bundle, "--output", "out")) == 0
    assert {path.name for path in (here / "out").iterdir()} == FILES


def test_results_are_saved_even_where_nobody_reads_the_warnings(
    here: Path, scan: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def gone(text: str) -> None:
        if text.startswith("Warning: "):
            raise BrokenPipeError

    from XAICLIPLib import pipeline

    class Warned(pipeline.Explanation):
        warnings = property(lambda self: ["beware"])  # type: ignore[assignment]

    monkeypatch.setattr(pipeline, "Explanation", Warned)
    monkeypatch.setattr("XAICLIPLib.commands.terminal.print_message", gone)
    assert main.main(quick(scan, bundle, "--output", "out")) == 141
    assert {path.name for path in (here / "out").iterdir()} == FILES


def test_without_stderr_stdout_stays_clean(
    here: Path, scan: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert main.main(quick(scan, bundle, "--json")) == 0
    json.loads(capsys.readouterr().out)


# --- what a person reads -------------------------------------------------------------------------


def explained(method: str = "occlusion", **measurements: Any) -> Any:
    """As much of an explanation as the summary looks at."""
    found = {
        "target_volume_ml": 1500.4,
        "score_unperturbed": 0.95,
        "largest_score_lost": 0.2,
        "effect_inside_target": 0.73,
        "effect_inside_target_if_uniform": 0.41,
        "perturbations": 20,
        "patches_computed": 100,
        "patches_full_inference_would_compute": 400,
    }
    agreement = types.SimpleNamespace(recall=0.97)
    return types.SimpleNamespace(
        measurements=found | measurements,
        region=types.SimpleNamespace(source="guided", volume_ml=2000.0, share_of_body=0.18, agreement=agreement),
        target={"name": "liver", "label": 1, "voxels": "predicted"},
        record={"timings_s": {"read": 1.0, "explain": 41.0}, "parameters": {"device": "cpu", "method": method}},
        complete=True,
    )


def test_a_scan_that_is_not_there_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    code = "import sys\nfrom XAICLIPLib.commands.main import main\n"
    code += "given = ['explain', 'nosuch.nii.gz', '--prompt', 'liver']\n"
    code += "assert main(given) == 1\nsys.exit(any(m in sys.modules for m in ('torch', 'monai')))"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stderr == "xaiclip: There is no file or folder nosuch.nii.gz: check the path.\n"
    assert not list(tmp_path.iterdir())


def test_the_summary_has_the_numbers() -> None:
    text = summary(explained())
    for part in ("liver", "1500 ml", "18%", "97%", "0.950", "0.200", "73%", "41%", "4.0 times", "42 s on cpu"):
        assert part in text, part
    assert max(map(len, text.splitlines())) <= 140


def test_the_summary_of_another_method_does_not_speak_of_cubes() -> None:
    assert "random patterns" in summary(explained("rise"))
    assert "by hiding the cell around a place" in summary(explained("rise"))
    gradients = summary(explained("seg-grad-cam"))
    assert "nothing was hidden" in gradients and "lowers the score" not in gradients
    assert "cube" not in summary(explained("rise")) + gradients


def test_the_summary_of_structures_tells_what_was_removed_and_what_was_not() -> None:
    rows = [{"structure": name, "score_lost": 0.5, "volume_ml": 9.0, "share": 0.5} for name in ("liver", "spleen")]
    text = summary(explained("structures", structures=rows, not_removed=["aorta"]))
    assert "2 structures were removed whole" in text and "not removed, as they lie outside: aorta" in text
    assert "73% of all that was lost went with liver itself; were all structures alike, 41% would" in text
    assert "spread evenly" not in text and " ml, 18% of the body" not in text


def test_the_summary_tells_what_came_of_the_check() -> None:
    found = explained()
    assert "Checked" not in summary(found)
    flag = {"name": "like the null", "sentence": "It leads.", "raised": False}
    found.record |= {"faithfulness": {"map": {}}, "reliability": [flag, {**flag, "name": "region disagrees"}]}
    assert summary(found).count("passed: It leads.") == 1


def test_the_summary_of_credits_does_not_say_that_nothing_was_hidden() -> None:
    found = {"credit_of_organ": 0.8, "credit_of_context": 0.1, "organ_alone": 0.85, "context_alone": 0.05}
    text = summary(explained("owen-gradients", **found))
    assert "Tried:     the liver and all around it, each with the other and without it, by gradients" in text
    assert "shown alone, the liver scores 0.850" in text and "nothing was hidden" not in text
    assert "spread evenly" not in text, "credits are not compared by volume"


def test_the_summary_does_not_call_enough_what_is_needed() -> None:
    found = explained()
    regions = {
        kind: {"map": {"volume_ml": ml}, "outline": None} for kind, ml in (("sufficient", 448), ("necessary", 21))
    }
    found.record["key_regions"] = {"keeps": 0.9, "costs": 0.5, **regions}
    lines = summary(found).splitlines()
    assert "Enough:    448 ml shown alone keep 90% of the score" in lines
    assert "Needed:    21 ml hidden cost 50% of the score" in lines


def test_the_summary_of_no_effect_claims_none() -> None:
    text = summary(
        explained(
            effect_inside_target=None,
            effect_inside_target_if_uniform=None,
            largest_score_lost=-0.0,
            patches_computed=0,
            patches_full_inference_would_compute=0,
        )
    )
    assert "nothing made any difference" in text
    assert "-0" not in text and "None" not in text and "times fewer" not in text


# --- demo ----------------------------------------------------------------------------------------


@pytest.fixture
def small_demo(scan: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A demo on the coarse phantom with the tiny network; returns what was explained."""
    from XAICLIPLib import pipeline
    from XAICLIPLib.imaging import phantom

    real, volumes = pipeline.explain, []

    def write(folder: Path, seed: int = 0) -> tuple[Path, Path]:
        (folder / "phantom.nrrd").write_bytes(scan.read_bytes())
        return folder / "phantom.nrrd", folder / "labels.nrrd"

    def explain(volume: Any, prompt: str, **options: Any) -> Any:
        volumes.append(volume)
        return real(volume, prompt, model=bundle, region="whole", window_mm=400, stride_mm=200, **options)

    monkeypatch.setattr(phantom, "write_phantom", write)
    monkeypatch.setattr(pipeline, "explain", explain)
    return volumes


def test_the_demo_explains_the_phantom_and_says_what_else_it_could(
    here: Path, small_demo: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["demo", "--data", "absent"]) == 0
    out = capsys.readouterr().out
    assert (here / "results" / "phantom-liver" / "figure.png").is_file()
    assert len(small_demo) == 1
    assert "were there one at" in out and "absent" in out
    assert str(Path("results/phantom-liver/figure.png")) in out


def with_ct(here: Path, scan: Path) -> Path:
    from XAICLIPLib.imaging import write_volume

    write_volume(sitk.ReadImage(str(scan)), here / "data" / "totalseg" / "example_ct.nii.gz")
    return here / "data"


def test_the_demo_explains_a_real_ct_where_there_is_one(
    here: Path, scan: Path, small_demo: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["demo", "--data", str(with_ct(here, scan)), "--output", "out"]) == 0
    out = capsys.readouterr().out
    assert len(small_demo) == 2
    for name in ("phantom-liver", "ct-liver"):
        assert (here / "out" / name / "figure.png").is_file()
        assert str(Path("out") / name / "figure.png") in out
    assert "were there one" not in out


def test_ctrl_c_ends_the_demo_and_not_only_its_first_part(
    here: Path, scan: Path, small_demo: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from XAICLIPLib import pipeline

    explain = pipeline.explain

    def interrupted(*arguments: Any, **options: Any) -> Any:
        result = explain(*arguments, **options)
        signal.raise_signal(signal.SIGINT)
        return result

    monkeypatch.setattr(pipeline, "explain", interrupted)
    assert main.main(["demo", "--data", str(with_ct(here, scan))]) == 130
    assert len(small_demo) == 1
    out = capsys.readouterr().out
    assert "Interrupted" in out and "Done" not in out


def test_the_demo_refuses_a_folder_that_cannot_be_written(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "out").write_text("")
    assert main.main(["demo", "--output", "out"]) == 1
    assert "choose another folder" in one_sentence(capsys.readouterr().err)


# --- the shipped models --------------------------------------------------------------------------


def test_the_shipped_models_explain_the_phantom(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from XAICLIPLib.imaging.phantom import torso_phantom

    phantom = torso_phantom(0, 8.0)
    liver = next(value for value, name in phantom.names.items() if name == "liver")
    statistics = sitk.LabelShapeStatisticsImageFilter()
    statistics.Execute(phantom.labels)
    *_, first, _, _, slices = statistics.GetBoundingBox(liver)
    middle = first + slices // 2
    sitk.WriteImage(phantom.image[:, :, middle - 3 : middle + 3], "slab.nrrd")
    line = ["explain", "slab.nrrd", "--prompt", "liver", "--device", "cpu", "--window", "120", "--stride", "120"]
    assert main.main([*line, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["models"]["segmenter"]["name"] == "abdomen-ct"
    assert printed["models"]["localizer"]["name"] == "anatomy-clip"
    assert printed["region"]["source"] == "guided", printed["warnings"]
    assert printed["measurements"]["largest_score_lost"] > 0


def test_one_of_several_series_is_chosen(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The way that the list names exists: its numbers are those of --series."""
    flat = np.zeros((8, 8), np.int16)
    for number in (0, 1):
        for k in range(5):
            write(
                here / "scan" / f"{number}-{k}", flat + k * number, (0, 0, k), series=f"1.2.3.{number}", number=number
            )
    line = ["explain", "scan", "--prompt", "liver"]
    assert main.main(line) == 1
    told = capsys.readouterr().err
    assert "holds 2 image series (0: CT, 5 slices of 8×8 at 0.70×0.80×1.00 mm; 1: CT, 5 slices" in told
    assert "choose one by its number (--series 0, in Python series=0)" in told
    for series in ("0", "1.2.3.0"):
        assert main.main([*line, "--series", series]) == 1
        assert "The volume scan is constant (every voxel is -1024)" in capsys.readouterr().err
    assert main.main([*line, "--series", "2"]) == 1
    assert "There is no series 2 in the folder scan" in capsys.readouterr().err
