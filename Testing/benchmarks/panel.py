"""How long the panel keeps Slicer's user interface waiting during a run, on the test host with the real worker.

``python Testing/benchmarks/panel.py [--data ../shared/data] [--prompt liver]`` explains the real CT (else the synthetic
torso) from the panel while a timer beats every 10 ms, and prints the gaps between the beats.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the test host and the photographs' helpers live in the package Testing

from setting import arguments  # noqa: E402

BEAT_MS = 10


def main() -> None:
    """Command line."""
    parser = arguments(__doc__)
    parser.add_argument("--prompt", default="liver")
    options = parser.parse_args()
    try:
        from Testing.host import host, modules
    except ImportError as error:
        parser.exit(0, f"Skipped: the stand-in for 3D Slicer is not installed ({error.name}).\n")
    with tempfile.TemporaryDirectory() as folder:
        host.install(Path(folder))
        import qt

        from Testing.screenshots import load, wait

        module = modules.load_scripted_module(ROOT / "XAICLIP" / "XAICLIP.py")
        panel = module.widgetRepresentation().self()
        panel.parent.show()
        volume = load(options.data / "totalseg" / "example_ct.nii.gz")
        wait(lambda: panel.ui.inputSelector.currentNode() is volume)
        panel.ui.promptLineEdit.setText(options.prompt)
        beats = [time.perf_counter()]
        timer = qt.QTimer()
        timer.setInterval(BEAT_MS)
        timer.connect("timeout()", lambda: beats.append(time.perf_counter()))
        timer.start()
        panel.ui.applyButton.click()
        wait(lambda: panel.logic.state.value == "idle")
        timer.stop()
        modules.unload_scripted_module("XAICLIP")
    gaps = 1000 * np.diff(beats)
    print(f"\nThe user interface during a run of {beats[-1] - beats[0]:.0f} s, a beat every {BEAT_MS} ms\n")
    print("| gap between two beats | ms |\n| --- | ---: |")
    for name, value in (("median", 50), ("99th percentile", 99), ("longest", 100)):
        print(f"| {name} | {np.percentile(gaps, value):.0f} |")
    print(f"| gaps above 100 ms | {int((gaps > 100).sum())} of {len(gaps)} |")


if __name__ == "__main__":
    main()
