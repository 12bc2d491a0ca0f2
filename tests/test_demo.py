import io
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from command_line import call
from flyweight import attempt, pipeline
from flyweight import demo as demo_module
from flyweight.core.report import Report, Verdict
from flyweight.demo import digits, run_demo, train
from flyweight.errors import InputError
from flyweight.planner.candidates import candidates
from flyweight.run.artifact import open_artifact
from flyweight.settings import Settings
from tests.run.small_artifacts import write_artifact


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, str, Path]:
    """The report, what was printed, and the folder of one run."""
    out, text = tmp_path_factory.mktemp("demo") / "out", io.StringIO()
    report = run_demo(out, console=Console(file=text, width=80))
    return report, text.getvalue(), out


def test_the_digits_are_split_and_keep_their_range() -> None:
    splits = digits()
    images = np.asarray(splits.train.inputs["image"])
    assert len(splits.train) + len(splits.evaluation) == 1797
    assert images.shape[1:] == (1, 8, 8)
    assert (images.min(), images.max()) == (0, 16)
    assert splits.train.classes == tuple("0123456789")


def test_the_network_learns_digits_it_was_not_trained_on(demo: tuple[Report, str, Path]) -> None:
    assert demo[0].original.quality.value >= 0.97


def test_training_leaves_the_global_generator_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_module, "EPOCHS", 1)
    before = torch.random.get_rng_state()
    train(digits().evaluation)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_seed_decides_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_module, "EPOCHS", 1)
    few = digits().evaluation
    one, other, another = (train(few, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.allclose(one[name].float(), other[name].float(), atol=1e-4) for name in one)
    assert not torch.allclose(one["classifier.weight"], another["classifier.weight"], atol=1e-4)


def test_the_demo_makes_the_file_a_third_or_less_and_keeps_the_answers(
    demo: tuple[Report, str, Path],
) -> None:
    report, _, _ = demo
    assert report.comparison.size_ratio >= 3
    assert report.comparison.quality_drop.value <= 0.01
    assert report.comparison.agreement is not None
    assert report.comparison.agreement >= 0.98


def test_the_demo_ends_with_the_table_and_the_verdict(demo: tuple[Report, str, Path]) -> None:
    report, text, _ = demo
    title, verdict = (
        text.index("digits_net, classification"),
        "Shipped:" if report.verdict.shipped else "Refused",
    )
    assert text.index(verdict) > text.index("Size on disk") > title
    assert max(map(len, text.splitlines())) <= 80


def test_the_demo_leaves_an_artifact_and_its_page(demo: tuple[Report, str, Path]) -> None:
    report, text, out = demo
    folder = out if report.verdict.shipped else out.with_name("out-refused")
    assert open_artifact(folder).format == "onnx"
    assert (folder / "report.html").is_file()
    assert str(folder.name) in text


@pytest.mark.parametrize("name", ["out", "out-refused"])
def test_a_folder_of_other_files_is_refused_before_the_network_is_trained(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(*_: object, **__: object) -> None:
        raise AssertionError("it was trained")

    monkeypatch.setattr(demo_module, "train", trained)
    (tmp_path / name).mkdir()
    (tmp_path / name / "diary.txt").write_text("mine")
    with pytest.raises(InputError, match=f"{name} holds files that are no artifact"):
        run_demo(tmp_path / "out", console=Console(file=io.StringIO()))


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo stops where training would begin."""

    def trained(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo_module, "train", trained)


MINE = Settings(model="mine.py:net", data="mine.npz", out="out")
DEMO = Settings(
    model="flyweight.demo:digits_net",
    data="flyweight.demo:digits",
    out="elsewhere",
    preprocessing={"rescale": 1 / 16},
    overwrite=True,
)


@pytest.mark.usefixtures("untrained")
def test_an_artifact_that_no_demo_made_is_refused_before_the_network_is_trained(tmp_path: Path) -> None:
    others = (MINE, replace(DEMO, techniques=("weight_only",)), replace(DEMO, overwrite=False), DEMO)
    for number, settings in enumerate(others):
        status = "exported" if settings is DEMO else "shipped"
        folder = write_artifact(tmp_path / f"{number}", settings=settings.to_dict(), status=status)
        with pytest.raises(InputError, match=r"holds an artifact already; overwrite it \(--overwrite\)"):
            run_demo(folder, console=Console(file=io.StringIO()))
        with pytest.raises(KeyboardInterrupt):
            run_demo(folder, console=Console(file=io.StringIO()), overwrite=True)


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("release", ["this", "an earlier"])
def test_what_an_earlier_demo_made_is_replaced(
    tmp_path: Path, demo: tuple[Report, str, Path], release: str
) -> None:
    report, _, folder = demo
    if release == "an earlier":  # its settings had fewer keys
        known = {key: value for key, value in DEMO.to_dict().items() if key != "classes"}
        folder = write_artifact(tmp_path / "out", settings=known)
    elif not report.verdict.shipped:
        folder = folder.with_name("out-refused")
    with pytest.raises(KeyboardInterrupt):
        run_demo(folder, console=Console(file=io.StringIO()))


def test_a_refused_demo_ends_with_the_table_the_refusal_and_its_reason_and_exit_code_three(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = "it is slower than the original: 1.61\N{MULTIPLICATION SIGN} slower [1.56, 1.67]"
    monkeypatch.setattr(attempt, "judge", lambda *_: Verdict(shipped=False, reasons=(slow,)))
    monkeypatch.setattr(pipeline, "candidates", lambda *tried: islice(candidates(*tried), 1))
    monkeypatch.setattr(demo_module, "EPOCHS", 1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    code, printed, errors = call(capsys, ["demo", "-o", "out"])
    assert code == 3
    assert printed.index("Refused") > printed.index("Size on disk")
    assert printed.rindex(slow) > printed.index("Refused")
    assert errors.endswith(
        f"flyweight: refused: {slow} (the best attempt is in out-refused, nothing is in out)\n"
    )
    assert open_artifact(tmp_path / "out-refused").format == "onnx"
