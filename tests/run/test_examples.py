"""New examples, read as the artifact's own data were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_artifacts import write_artifact

from flyweight.data.preprocessing import Preprocessing
from flyweight.data.steps import Cast, Rename
from flyweight.errors import ArtifactError, InputError
from flyweight.run.examples import open_examples

NUMBERS = Preprocessing((Cast(), Rename("x"))).to_dict()


def test_the_recorded_columns_are_read(tmp_path: Path) -> None:
    folder = write_artifact(
        tmp_path / "made", preprocessing=NUMBERS, settings={"inputs": ["b", "a"], "target": "c"}
    )
    (tmp_path / "new.csv").write_text("a,b,c\n1,2,3\n")
    assert list(open_examples(folder, tmp_path / "new.csv").inputs) == ["b", "a"]
    assert list(open_examples(folder, tmp_path / "new.csv", ("c",)).inputs) == ["c"]


def test_an_artifact_of_numbers_takes_no_texts(tmp_path: Path) -> None:
    folder = write_artifact(tmp_path / "made", preprocessing=NUMBERS)
    (tmp_path / "new.txt").write_text("hello\n")
    with pytest.raises(InputError, match=r"new.txt holds texts, and the model takes numbers"):
        open_examples(folder, tmp_path / "new.txt")


def test_an_artifact_without_preprocessing_takes_any_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "new.npz", x=np.ones((2, 2)))
    assert len(open_examples(write_artifact(tmp_path / "made"), tmp_path / "new.npz")) == 2


@pytest.mark.parametrize("settings", [{"inputs": 3}, {"inputs": [1]}, {"target": ["a"]}])
def test_a_manifest_with_strange_columns_is_refused(tmp_path: Path, settings: dict[str, object]) -> None:
    folder = write_artifact(tmp_path / "made", settings=settings)
    np.savez(tmp_path / "new.npz", x=np.ones((2, 2)))
    with pytest.raises(ArtifactError, match="must be"):
        open_examples(folder, tmp_path / "new.npz")
