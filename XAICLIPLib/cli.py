"""The command ``xaiclip``: explain a scan, list the models, look the installation over, run the demo."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

import XAICLIPLib
from XAICLIPLib.errors import Cancelled, InputError

if TYPE_CHECKING:
    from XAICLIPLib.explanation import Explanation, Progress

STAGES = {"localize": "finding the prompt", "segment": "segmenting", "explain": "explaining"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status: 0 done, 1 an input cannot be used, 130 interrupted."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options))
    except InputError as error:
        print(f"xaiclip: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, Cancelled):
        print("xaiclip: interrupted, nothing was written.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="xaiclip", description="Why did a segmentation network draw an organ where it did?"
    )
    parser.add_argument("--version", action="version", version=f"xaiclip {XAICLIPLib.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    explain = commands.add_parser(
        "explain",
        help="explain a scan",
        description="Explain why a network drew a structure where it did. Writes saliency.nrrd, region.nrrd, "
        "segmentation.nrrd, explanation.json and figure.png.",
    )
    explain.add_argument(
        "volume", metavar="VOLUME", help="NIfTI, NRRD or MetaImage file, or a folder with a DICOM series"
    )
    explain.add_argument("--prompt", required=True, metavar="TEXT", help='what to explain: "liver", "left kidney"')
    _add_options(explain)
    explain.set_defaults(command=_explain)

    models = commands.add_parser("models", help="list the models that are available")
    models.add_argument("--json", action="store_true", help="print JSON")
    models.set_defaults(command=_models)

    doctor = commands.add_parser("doctor", help="say what would run here, and what is missing")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.set_defaults(command=_doctor)

    demo = commands.add_parser("demo", help="explain a synthetic torso, and a real CT where the test data are")
    demo.add_argument("--output", type=Path, default=Path("results"), metavar="FOLDER", help="default: results")
    demo.add_argument(
        "--data", type=Path, default=Path("../shared/data"), metavar="FOLDER", help="real volumes, used where they are"
    )
    demo.set_defaults(command=_demo)
    return parser


def _add_options(parser: argparse.ArgumentParser) -> None:
    from XAICLIPLib.perturbation.baselines import BASELINES
    from XAICLIPLib.scoring import SCORES

    parser.add_argument(
        "--model", metavar="NAME|FOLDER", help="segmentation network: see `xaiclip models`, or a MONAI bundle"
    )
    parser.add_argument(
        "--localizer",
        metavar="NAME|FOLDER|hf-hub:ID",
        help="image-text model that finds the prompt: see `xaiclip models`",
    )
    parser.add_argument("--method", default="occlusion", choices=["occlusion"], help="default: occlusion")
    parser.add_argument(
        "--region",
        default="guided",
        metavar="guided|whole|FILE",
        help="where to perturb: where the localizer finds the prompt (default), everywhere, or in a mask",
    )
    parser.add_argument(
        "--target",
        metavar="STRUCTURE|FILE",
        help="what of the network to explain where the prompt does not say it: one of its structures, or a mask of the "
        "voxels in question",
    )
    parser.add_argument("--score", default=SCORES[0], choices=SCORES, help=f"default: {SCORES[0]}")
    parser.add_argument(
        "--baseline",
        default=BASELINES[0],
        choices=BASELINES,
        help=f"what replaces perturbed voxels; default: {BASELINES[0]}",
    )
    parser.add_argument(
        "--window", type=float, metavar="MM", help="edge of the windows; default: by the size of the target"
    )
    parser.add_argument("--stride", type=float, metavar="MM", help="distance of the windows; default: half a window")
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda|mps", help="default: auto")
    parser.add_argument("--batch-size", type=int, default=4, metavar="N", help="patches computed together; default: 4")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    parser.add_argument("--trust", action="store_true", help="run the code in the bundle's configuration")
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="default: a new folder in results/, named after the prompt"
    )
    parser.add_argument(
        "--json", action="store_true", help="print the result as JSON on stdout, and nothing else there"
    )


def _explain(options: argparse.Namespace) -> int:
    explanation, written = _run(
        options.volume,
        options.prompt,
        options.output or new_folder(Path("results"), options.prompt),
        region=options.region,
        model=options.model,
        localizer=options.localizer,
        method=options.method,
        target=options.target,
        score=options.score,
        baseline=options.baseline,
        window_mm=options.window,
        stride_mm=options.stride,
        device=options.device,
        batch_size=options.batch_size,
        seed=options.seed,
        trust=options.trust,
    )
    if options.json:
        files = {name: str(path.resolve()) for name, path in written.items()}
        print(json.dumps(dict(explanation.record) | {"files": files}, indent=2, ensure_ascii=False))
    else:
        print(summary(explanation))
        print(f"Written to {written['figure'].parent}: {', '.join(path.name for path in written.values())}")
    return 0 if explanation.complete else 130


def _run(volume: str | Path, prompt: str, folder: Path, **options: Any) -> tuple[Explanation, dict[str, Path]]:
    """Explain and save, with progress bars on stderr; Ctrl-C ends with what is there, a second one at once."""
    from XAICLIPLib.explanation import explain

    try:
        folder.mkdir(parents=True, exist_ok=True)  # before the work, not after it
    except OSError as error:
        raise InputError(f"The output folder {folder} cannot be made ({error.strerror}): choose another.") from error
    with _Bars() as bars, _Interrupt() as interrupt:
        explanation = explain(volume, prompt, on_progress=bars.show, cancelled=interrupt, **options)
    for warning in explanation.warnings:
        print(f"Warning: {warning}", file=sys.stderr)
    return explanation, explanation.save(folder)


class _Interrupt:
    """Whether Ctrl-C was pressed: within the block, the first time only asks to end."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self) -> bool:
        return self.asked

    def __enter__(self) -> _Interrupt:
        import signal
        import threading

        self._before: Any = None
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def _ask(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            import signal

            signal.signal(signal.SIGINT, self._before)


class _Bars:
    """A progress bar for each stage on a terminal; nothing elsewhere."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._stage = ""

    def __enter__(self) -> _Bars:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def show(self, progress: Progress) -> None:
        if self._bar is None or progress.stage != self._stage:
            self._close()
            self._stage = progress.stage
            self._bar = tqdm(
                total=progress.total,
                desc=f"{STAGES[progress.stage]:>18}",
                disable=None,
                file=sys.stderr,
                bar_format="{desc} {percentage:3.0f}%|{bar:30}| {n_fmt}/{total_fmt}, {remaining} left",
            )
        self._bar.update(progress.done - self._bar.n)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def new_folder(parent: Path, prompt: str) -> Path:
    """A folder that is not there yet, named after the prompt, so that no earlier result is replaced."""
    name = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-") or "explanation"
    folder, number = parent / name, 1
    while folder.exists():
        number += 1
        folder = parent / f"{name}-{number}"
    return folder


def summary(explanation: Explanation) -> str:
    """An explanation in a few lines for a person."""
    found, region = explanation.measurements, explanation.region
    full = found["patches_full_inference_would_compute"]
    lines = [
        f"{explanation.target['name']}: {found['target_volume_ml']:.0f} ml explained, "
        f"score {found['score_unperturbed']:.3f} unperturbed, largest loss {found['largest_score_lost']:.3f}",
        f"region ({region.source}): {region.volume_ml:.0f} ml, {region.share_of_body:.0%} of the body"
        + (f", holds {region.agreement.recall:.0%} of the prediction" if region.agreement else ""),
    ]
    if found["effect_inside_target"] is not None:
        lines.append(
            f"{found['effect_inside_target']:.0%} of the effect lies inside the structure "
            f"({found['effect_inside_target_if_uniform']:.0%} would, were the map uniform)"
        )
    if found["patches_computed"]:
        lines.append(
            f"{found['perturbations']} perturbations took {found['patches_computed']} patches of the network, "
            f"{full / found['patches_computed']:.1f} times fewer than full inference"
        )
    seconds = sum(explanation.record["timings_s"].values())
    lines.append(f"{seconds:.0f} s on {explanation.record['parameters']['device']}")
    return "\n".join(lines)


def _models(options: argparse.Namespace) -> int:
    from XAICLIPLib.catalog import entries

    if options.json:
        keys = ("name", "kind", "title", "modality", "structures", "licence", "source")
        print(json.dumps([{key: getattr(e, key) for key in keys} for e in entries()], indent=2))
        return 0
    for kind, heading in (("segmenter", "Segmentation networks (--model)"), ("localizer", "Localizers (--localizer)")):
        print(f"{heading}, the first is the default; a folder of your own works too")
        for entry in entries():
            if entry.kind == kind:
                print(f"  {entry.name:<16} {entry.title}")
                print(f"  {'':<16} {entry.modality}; {entry.licence}; {entry.source}")
                if entry.structures:
                    print(f"  {'':<16} {', '.join(entry.structures)}")
        print()
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from XAICLIPLib.doctor import examine

    checks = examine()
    if options.json:
        print(json.dumps([vars(check) for check in checks], indent=2))
    else:
        for check in checks:
            print(f"{'ok ' if check.ok else 'NO '} {check.name:<18} {check.found}")
            if not check.ok and check.remedy:
                print(f"    {'':<18} -> {check.remedy}")
    return 0 if all(check.ok or check.optional for check in checks) else 1


def _demo(options: argparse.Namespace) -> int:
    from XAICLIPLib.phantom import write_phantom

    scan, _ = write_phantom(options.output / "phantom")
    runs = [("a synthetic torso", scan, options.output / "phantom-liver")]
    real = options.data / "totalseg" / "example_ct.nii.gz"
    if real.is_file():
        runs.append(("a real CT", real, options.output / "ct-liver"))
    pictures = []
    for what, volume, folder in runs:
        print(f"Explaining the liver of {what} ({volume}) ...", flush=True)
        explanation, written = _run(volume, "liver", folder)
        print(summary(explanation) + "\n", flush=True)
        pictures.append(written["figure"])
    if len(runs) == 1:
        print(f"A real CT would be explained too, were there one at {real}.")
    print("Done. Look at:")
    for picture in pictures:
        print(f"  {picture}")
    print('Your own scan: .venv/bin/xaiclip explain SCAN.nii.gz --prompt "left kidney"')
    return 0


if __name__ == "__main__":
    sys.exit(main())
