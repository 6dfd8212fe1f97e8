"""How well idle nodes' stays are foretold on days not seen: by age alone, and with what surroundings add.

    python -m bench.forecast --data ../shared/data --json FILE [--traces KTH Prometheus] [--fixed cohort=100]

The forecast knows at each time only what had ended by then, and is judged on the last four fifths of each trace.
Surprise is the mean of minus the logarithm of the chance given to what came, added up over 1, 5, 15 and 60 minutes.
`--fixed` trusts a feature with a belief of so many expected ends in no effect, instead of learning how far to.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from bench.harvest import SLICES
from bench.report import Row, argument_parser, publish, row
from scheduler.inventory.past import SitePast
from scheduler.planning.forecast import HORIZONS_S
from scheduler.planning.surroundings import HALF_LIVES_S, NONE, Surroundings
from scheduler.simulation.calibration import foretell
from scheduler.simulation.traces import Trace

EVERY_S = {"Prometheus": 600.0, "Theta": 3600.0}
"""How often all idle nodes are asked about; 1,800 s elsewhere."""

UNSEEN_FROM = 0.2
SURE = 1e-4
"""No forecast is surer than this."""

Told = dict[float, "np.typing.NDArray[np.float64]"]
"""By horizon: chance and outcome of each forecast [N, 2]."""


def told(trace: Trace, every_s: float, surroundings: Surroundings) -> Told:
    """All forecasts of the part that is judged."""
    start_s = trace.intervals[0].start_s
    from_s = start_s + UNSEEN_FROM * (trace.end_s - start_s)
    rows: dict[float, list[tuple[float, float]]] = {horizon_s: [] for horizon_s in HORIZONS_S}
    for of in foretell(trace, HORIZONS_S, every_s, SitePast(surroundings=surroundings)):
        if of.at_s > from_s:
            rows[of.horizon_s].append((of.chance, float(of.lasted)))
    return {horizon_s: np.array(made).reshape(-1, 2) for horizon_s, made in rows.items()}


def surprise(of: Told) -> float:
    """See the module."""
    total = 0.0
    for made in of.values():
        chance = np.clip(made[:, 0], SURE, 1 - SURE)
        total -= float(np.log(np.where(made[:, 1] > 0, chance, 1 - chance)).mean())
    return total


def rows_of(name: str, trace: Trace, fixed: dict[str, float]) -> list[Row]:
    """One trace's."""
    every_s = EVERY_S.get(name, 1800.0)
    by_age = told(trace, every_s, Surroundings(dict.fromkeys(HALF_LIVES_S, NONE)))
    ours = told(trace, every_s, Surroundings(fixed))
    rows = [row(f"surprise, {name}", "nats", surprise(ours), "by age alone", surprise(by_age))]
    for horizon_s, made in ours.items():
        said, did = made.mean(axis=0)
        peer = float(by_age[horizon_s][:, 0].mean())
        what = f"{name}, an idle node stays {horizon_s / 60:g} min; {did:.4f} did"
        rows.append(row(what, "said", float(said), "by age alone", peer))
    return rows


def main() -> None:
    """Print the table, write the JSON."""
    parser = argument_parser(__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with traces/")
    names = [s.name for s in SLICES]
    parser.add_argument("--traces", nargs="+", choices=names, default=names, help="some of them")
    parser.add_argument("--fixed", nargs="*", type=_belief, default=[], metavar="FEATURE=BELIEF")
    options = parser.parse_args()
    chosen = [s for s in SLICES if s.name in options.traces]
    fixed = dict(options.fixed)
    publish("forecast", [r for s in chosen for r in rows_of(s.name, s.read(options.data), fixed)], options.json)


def _belief(text: str) -> tuple[str, float]:
    feature, _, belief = text.partition("=")
    if feature not in HALF_LIVES_S:
        raise argparse.ArgumentTypeError(f"{feature}: one of {', '.join(HALF_LIVES_S)} is asked for")
    return feature, float(belief)


if __name__ == "__main__":
    main()
