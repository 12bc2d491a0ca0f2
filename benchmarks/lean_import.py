"""``import flyweight`` costs next to nothing: it loads neither torch nor numpy."""

from __future__ import annotations

import json
import sys
from functools import partial

import numpy as np

from benchmarks import processes
from benchmarks.claims import Check, Claim, Context, Outcome
from flyweight.evaluate.statistics import percentile_interval
from flyweight.evaluate.timing import interleave

LONGEST_S = 0.080
HEAVY = ("torch", "numpy")
RESAMPLES = 2000

_LOADED = "import json, sys, flyweight; print(json.dumps(sorted(sys.modules)))"


def run(context: Context) -> Outcome:
    """Time over that of the bare interpreter, in fresh processes, and what is loaded."""
    rounds = 10 if context.quick else 60
    (bare,), (importing,) = interleave(
        [lambda: partial(_python, "pass"), lambda: partial(_python, "import flyweight")],
        seconds=1,
        sessions=1,  # every call is a fresh process
        minimum_rounds=rounds,
        maximum_rounds=rounds,
    )
    differences = np.array(importing) - np.array(bare)
    resampled = np.median(np.random.default_rng(0).choice(differences, (RESAMPLES, rounds)), axis=1)
    extra = percentile_interval(float(np.median(differences)), resampled)
    loaded = json.loads(_python(_LOADED))
    return Outcome(
        checks=(
            Check(
                what="import flyweight over the bare interpreter, s",
                ours=extra.value,
                bar=LONGEST_S,
                direction="at most",
                spread=(extra.low, extra.high),
            ),
            Check(
                what=f"modules of {' and '.join(HEAVY)} loaded",
                ours=float(sum(name.partition(".")[0] in HEAVY for name in loaded)),
                bar=0.0,
                direction="at most",
            ),
        ),
    )


def _python(program: str) -> str:
    done = processes.run([sys.executable, "-c", program])
    if done.returncode:
        raise RuntimeError(f"python -c {program!r} failed: {processes.last_line(done.stderr)}")
    return done.stdout


CLAIM = Claim(
    "lean_import",
    "Importing flyweight loads neither torch nor numpy and takes less than 80 ms.",
    "at most 0.080 s over the bare interpreter; no module of torch or numpy",
    run,
)
