"""LeNet-5 for MNIST with binary weights, trained for a few minutes."""

from __future__ import annotations

import os

from benchmarks import cifar10
from benchmarks.claims import Check, Claim, Context, Outcome
from benchmarks.trainings import Case, checks, opened
from flyweight.recover.settings import TrainingSettings

EPOCHS = 10
LARGEST_ERROR = 0.012
CASE = Case(name="binary weights", techniques="binary", settings={}, epochs=EPOCHS, largest_drop=0.004)


def run(context: Context) -> Outcome:
    """Its error on test images."""
    os.environ[cifar10.SHARED_VARIABLE] = str(context.shared)
    weights = context.data("converted", "mnist_lenet5.safetensors")
    subject = opened("benchmarks/mnist.py:lenet5", weights, "benchmarks/mnist.py:load", context)
    training = TrainingSettings()
    found, notes = checks(subject, CASE, training, context)
    accuracy = found[0]
    error = Check(
        what="binary weights: error",
        ours=None if accuracy.ours is None else 1 - accuracy.ours,
        bar=LARGEST_ERROR,
        direction="at most",
        rivals={name: 1 - value for name, value in accuracy.rivals.items()},
    )
    return Outcome(checks=(error, *found), notes=tuple(notes))


CLAIM = Claim(
    "lenet_binary",
    "LeNet-5 for MNIST learns to do with binary weights.",
    "error at most 1.2 %, and at most 0.4 points above that of the float model",
    run,
)
