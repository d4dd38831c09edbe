"""The planted-truth study: what every metric says of the true map, of occlusion's, and of maps that know nothing.

``python Testing/benchmarks/planted.py`` prints Markdown, a table for each network, in about a minute. The networks and
their evidence are those of the tests (Testing/Python/planted_truth.py).
"""

from __future__ import annotations

import sys
from pathlib import Path

# First, so that "planted" there is the tests' module and not this file.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "Python"))

from planted_truth import LOW_IS_GOOD, PLACES, planted_case, ranks_first, scatter, study


def table(name: str) -> str:
    """What the metrics say where the evidence lies at a place."""
    case = planted_case(name)
    results = study(case)
    maps = list(next(iter(results.values())))
    lines = [f"| evidence {name} | good | {' | '.join(maps)} | first |", f"| --- | --- |{' ---: |' * len(maps)} --- |"]
    for metric, values in results.items():
        way = "low" if metric in LOW_IS_GOOD else "neither" if metric == "sparseness" else "high"
        first = [said for said in ("truth", "occlusion") if ranks_first(metric, values, said)]
        numbers = " | ".join(f"{value:.3f}" for value in values.values())
        lines.append(f"| {metric} | {way} | {numbers} | {' and '.join(first) or 'neither'} |")
    spread = ", ".join(f"{way} {value:.2f}" for way, value in scatter(case).items())
    return "\n".join([*lines, "", f"Standard deviation of the normalized area of noise maps: {spread}."])


def main() -> None:
    """Command line."""
    print("\n*first*: which of the two maps that know the network a metric calls better than all five that do not.\n")
    for name in PLACES:
        print(table(name) + "\n", flush=True)


if __name__ == "__main__":
    main()
