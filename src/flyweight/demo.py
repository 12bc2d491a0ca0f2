"""The whole job on data that come with scikit-learn: train a small network, compress it, run the file.

``flyweight.demo:digits_net`` and ``flyweight.demo:digits`` are a model and data to try the commands on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import final

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional

from flyweight._atomic import check_replaceable, holds_artifact
from flyweight.core.report import Report, refused_path
from flyweight.data.examples import Examples, Splits
from flyweight.data.splits import split
from flyweight.errors import ArtifactError
from flyweight.pipeline import compress
from flyweight.progress import SILENT, Progress
from flyweight.report.terminal import print_report
from flyweight.run.artifact import read_manifest
from flyweight.run.predict import predict
from flyweight.settings import DataSettings, Settings

SIDE = 8  # pixels
BRIGHTEST = 16  # value of a white pixel
# Wide enough that convolutions, not calls of operators, take the time: narrower nets gain less.
WIDTHS = (64, 128, 256)
EPOCHS = 3
BATCH = 64
LEARNING_RATE = 3e-3
SHOWN = 4  # pictures
INK = " .:+*#"  # characters from black to white


@final
class DigitsNet(nn.Module):
    """Three convolutions with batch norm: pictures (batch, 1, 8, 8) in 0..1 to logits (batch, 10)."""

    def __init__(self) -> None:
        super().__init__()
        narrow, middle, wide = WIDTHS
        self.features = nn.Sequential(
            *_convolution(1, narrow),
            *_convolution(narrow, middle),
            nn.MaxPool2d(2),
            *_convolution(middle, wide),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.classifier = nn.Linear(wide, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.classifier(self.features(image))
        return logits


def run_demo(out: Path, *, console: Console, overwrite: bool = False, progress: Progress = SILENT) -> Report:
    """Train, compress into ``out``, answer a few new pictures with the file, print what was measured.

    What an earlier demo left in ``out`` is replaced, another artifact only if ``overwrite``. Where nothing
    may be shipped (a machine on which integers are slower), the best attempt lies beside ``out``, and the
    report says why.

    Raises:
        InputError: ``out`` cannot be written, or holds something else.
    """
    settings = Settings(
        model="flyweight.demo:digits_net",
        data="flyweight.demo:digits",
        out=str(out),
        preprocessing={"rescale": 1 / BRIGHTEST},
        overwrite=True,
    )
    check_replaceable(out, overwrite=overwrite or _made_alike(out, settings))
    check_replaceable(refused_path(out), overwrite=True)
    splits = digits()
    module = train(splits.train, progress=progress)
    report = compress(settings, module=module, splits=splits, progress=progress)
    folder = out if report.verdict.shipped else refused_path(out)
    new = splits.evaluation.take(np.arange(SHOWN))
    answers = predict(folder, new)
    console.print(_pictures(np.asarray(new.inputs["image"])), highlight=False)
    console.print(_captions(answers["label"], answers["probability"]), highlight=False)
    console.print(
        f"\n Answers of {folder}; the page to look at is {folder / 'report.html'}\n", highlight=False
    )
    print_report(report, console)
    return report


def digits() -> Splits:
    """Handwritten digits: ``image`` (examples, 1, 8, 8) float32 in 0..16, three quarters of them to train on.

    Source: Alpaydin and Kaynak 1998, UCI "Optical Recognition of Handwritten Digits", its test part.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = bunch.images.astype(np.float32)[:, None]
    names = tuple(str(name) for name in bunch.target_names)
    return split(Examples({"image": images}, bunch.target.astype(np.int64), names), DataSettings())


def digits_net() -> nn.Module:
    """A `DigitsNet` trained on the training part of `digits`; takes pictures in 0..1."""
    return train(digits().train)


def train(examples: Examples, *, seed: int = 0, progress: Progress = SILENT) -> nn.Module:
    """A `DigitsNet` trained on ``examples`` of `digits`, in seconds; the seed decides the weights."""
    images = torch.from_numpy(np.asarray(examples.inputs["image"]) / np.float32(BRIGHTEST))
    targets = torch.from_numpy(np.asarray(examples.targets))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = DigitsNet()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(net.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, epochs=EPOCHS, steps_per_epoch=len(images) // BATCH
    )
    net.train()
    with _one_thread():
        for _ in progress.track(range(EPOCHS), "Training a small CNN on handwritten digits"):
            shuffled = torch.randperm(len(images), generator=generator)
            for rows in shuffled[: len(images) // BATCH * BATCH].view(-1, BATCH):
                optimizer.zero_grad()
                loss = functional.cross_entropy(net(images[rows]), targets[rows])
                loss.backward()  # type: ignore[no-untyped-call]  # PyTorch leaves it untyped
                optimizer.step()
                schedule.step()
    return net.eval()


def _made_alike(folder: Path, settings: Settings) -> bool:
    """Whether ``folder`` holds what was compressed with these settings, by an earlier release too."""
    if not holds_artifact(folder):
        return False
    try:
        manifest = read_manifest(folder)
    except ArtifactError:
        return False
    own, recorded = settings.to_dict(), manifest.settings
    compared = (own.keys() & recorded.keys()) - {"out"}
    same = {"model", "data", "overwrite"} <= compared and all(own[key] == recorded[key] for key in compared)
    return same and manifest.status != "exported"


@contextmanager
def _one_thread() -> Iterator[None]:
    """Inside, PyTorch computes on one thread: the same sums whatever the number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _convolution(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def _pictures(images: np.ndarray) -> str:
    """Pictures (examples, 1, 8, 8) beside each other, two characters a pixel."""
    inks = np.array([ink * 2 for ink in INK])[images[:, 0].astype(np.int64) * len(INK) // (BRIGHTEST + 1)]
    lines = ("  ".join("".join(picture[row]) for picture in inks) for row in range(SIDE))
    return "\n".join(f" {line}" for line in lines)


def _captions(labels: Sequence[object], probabilities: Sequence[object]) -> str:
    texts = (f"{label} ({probability:.1%})" for label, probability in zip(labels, probabilities, strict=True))
    return " " + "  ".join(text.center(2 * SIDE) for text in texts)
