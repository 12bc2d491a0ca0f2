from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flyweight.core.protocols import Runtime
from flyweight.core.report import Artifact
from flyweight.errors import InputError
from flyweight.model import Model
from flyweight.run.manifest import TensorSpec
from flyweight.run.pytorch import PyTorchRuntime


class Pooled(nn.Module):
    """Embeds ids and averages those of the mask."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding.from_pretrained(torch.arange(12.0).reshape(4, 3))

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        rows = self.table(ids) * mask[..., None]
        return {"pooled": rows.sum(1) / mask.sum(1, keepdim=True), "rows": rows}


@pytest.fixture
def model() -> Model:
    inputs = {"ids": torch.tensor([[1, 2]]), "mask": torch.tensor([[1, 1]])}
    return Model("pooled", Pooled(), inputs, {name: {1: "tokens"} for name in inputs})


def test_it_keeps_the_protocol() -> None:
    assert isinstance(PyTorchRuntime(), Runtime)


def test_a_session_gives_the_modules_outputs_as_arrays(model: Model) -> None:
    session = PyTorchRuntime().load(model, 1)
    pooled, rows = session({"ids": np.array([[0, 2, 3]]), "mask": np.array([[1, 1, 0]])})
    np.testing.assert_array_equal(pooled, [[3.0, 4.0, 5.0]])
    assert rows.shape == (1, 3, 3)


def test_a_session_names_inputs_after_the_example(model: Model) -> None:
    session = PyTorchRuntime().load(model, 0)
    assert session.input_names == ("ids", "mask")
    assert session.inputs[0] == TensorSpec("ids", "int64", ("batch", "tokens"))


def test_views_and_read_only_arrays_are_taken(model: Model) -> None:
    mask = np.array([[0, 1]])
    mask.flags.writeable = False
    session = PyTorchRuntime().load(model, 1)
    np.testing.assert_array_equal(session({"ids": np.array([[1, 2]])[:, ::-1], "mask": mask})[0], [[3, 4, 5]])


def test_wrong_inputs_are_refused(model: Model) -> None:
    session = PyTorchRuntime().load(model, 1)
    with pytest.raises(InputError, match="input 'mask' is missing"):
        session({"ids": np.array([[1]])})
    with pytest.raises(InputError, match="model 'pooled' cannot run on these inputs"):
        session({"ids": np.array([[9]]), "mask": np.array([[1]])})


def test_the_thread_count_of_the_process_is_put_back(model: Model) -> None:
    before = torch.get_num_threads()
    inside: list[int] = []
    model.module.register_forward_hook(lambda *_: inside.append(torch.get_num_threads()))
    PyTorchRuntime().load(model, before + 1)({"ids": np.array([[1]]), "mask": np.array([[1]])})
    assert inside == [before + 1]
    assert torch.get_num_threads() == before


def test_an_artifact_is_a_type_error(tmp_path: object) -> None:
    from pathlib import Path

    artifact = Artifact(path=Path(), format="onnx", model_file="m", files={}, sha256="")
    with pytest.raises(TypeError, match="loads models, got Artifact"):
        PyTorchRuntime().load(artifact, 1)
