"""Headers of NIfTI, NRRD, MetaImage and DICOM files, changed field by field, and what comes of reading them.

    python -m Testing.fuzz.headers                 # 500 cases, a line for each kind of outcome
    python -m Testing.fuzz.headers --only 137      # one of them, with all that is known of it

A case passes where the volume is read as the oracles read it (nibabel, ITK, pydicom, and the grid that the fields
themselves spell out), or refused in one sentence. It fails where the process dies or hangs, where an error is no
refusal,
and where a volume comes out elsewhere, or with other values, without a note that says so.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

COUNT = 500
SECONDS_EACH = 20
MEMORY = 8 << 30
"""Bytes that the process which reads may have: a header that asks for more is to be refused."""

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Outcome:
    """What came of a case: ``read``, ``noted`` (read, and told of), ``refused``, or a failure and why."""

    number: int
    kind: str
    changes: str
    outcome: str
    says: str = ""

    @property
    def failed(self) -> bool:
        """Whether it must not be so."""
        return self.outcome not in ("read", "noted", "refused")


def run(numbers: list[int], seed: int) -> Iterator[Outcome]:
    """Run cases in a process of their own, and another one where that dies."""
    left = list(numbers)
    while left:
        command = [sys.executable, "-m", "Testing.fuzz.headers", "--serve", "--seed", str(seed)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT
        ) as child:
            try:
                told, _ = child.communicate("\n".join(map(str, left)), timeout=SECONDS_EACH * (1 + len(left) // 10))
                why = "killed"
            except subprocess.TimeoutExpired:
                child.kill()
                told, why = child.communicate()[0], "hangs"
        outcomes = [Outcome(**json.loads(line)) for line in told.splitlines() if line.startswith("{")]
        yield from outcomes
        left = left[len(outcomes) :]
        if left:
            yield Outcome(left.pop(0), "?", "see --only", why, f"exit status {child.returncode}")


def serve(seed: int) -> None:
    """Run the cases whose numbers come in by stdin, and tell of each on stdout."""
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    from Testing.fuzz.cases import judge, make

    warnings.simplefilter("ignore")
    for line in sys.stdin:
        with tempfile.TemporaryDirectory() as folder:
            case = make(int(line), seed, Path(folder))
            outcome, says = judge(case)
        made = Outcome(int(line), case.kind, ", ".join(case.changes), outcome, says.replace(folder, ""))
        print(json.dumps(asdict(made)), flush=True)


def main() -> int:
    """Run all cases, or one; the exit status is 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="NUMBER", help="one case")
    parser.add_argument("--verbose", action="store_true", help="a line for each case")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.seed)
        return 0
    numbers = list(range(options.count)) if options.only is None else [options.only]
    table: Counter[tuple[str, str]] = Counter()
    failures = 0
    for outcome in run(numbers, options.seed):
        table[outcome.kind, outcome.outcome] += 1
        failures += outcome.failed
        if outcome.failed or options.verbose or options.only is not None:
            print(f"{outcome.number:>4} {outcome.kind:<9} {outcome.outcome:<10} [{outcome.changes}] {outcome.says}")
    for (kind, what), count in sorted(table.items()):
        print(f"{kind:<10} {what:<10} {count:>4}")
    print(f"{sum(table.values())} headers, {failures} failures (seed {options.seed})")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
