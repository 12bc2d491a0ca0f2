"""ResNet-20 for CIFAR-10 with 2-bit weights, with 4-bit weights and activations, and with binary weights.

The first and the last layer read 8 bits, as is usual; all weights have the width that is claimed.
"""

from __future__ import annotations

import os

from benchmarks import cifar10
from benchmarks.claims import Check, Claim, Context, Outcome
from benchmarks.trainings import Case, checks, opened
from flyweight.recover.settings import TrainingSettings

AUGMENT = {"crop": 4, "flip": True}

CASES = (
    Case(
        name="W2A8",
        techniques="gptq+static_activations",
        settings={"bits": 2, "activation_bits": 8},
        epochs=2,
        largest_drop=0.010,
    ),
    Case(
        name="W4A4",
        techniques="gptq+static_activations",
        settings={"bits": 4, "activation_bits": 4},
        epochs=2,
        largest_drop=0.007,
    ),
    Case(name="binary weights", techniques="binary", settings={}, epochs=10, largest_drop=0.030),
)


def run(context: Context) -> Outcome:
    """One case after the other."""
    os.environ[cifar10.SHARED_VARIABLE] = str(context.shared)
    weights = context.data("converted", "cifar10_resnet20.safetensors")
    data = "benchmarks/cifar10.py:load" if context.quick else "benchmarks/cifar10.py:load_all"
    subject = opened("benchmarks/cifar10.py:resnet20", weights, data, context)
    training = TrainingSettings(augment=AUGMENT, optimizer="adamw")
    found: list[Check] = []
    notes: list[str] = []
    for case in CASES:
        own, told = checks(subject, case, training, context)
        found += own
        notes += told
    return Outcome(checks=tuple(found), notes=tuple(notes))


CLAIM = Claim(
    "cifar_qat",
    "ResNet-20 for CIFAR-10 does with 2-bit or binary weights, or 4-bit activations, after ten epochs.",
    "drop at most 1.0 points with W2A8, 0.7 with W4A4 (8 bits into the first and the last layer), 3.0 with "
    "binary weights",
    run,
)
