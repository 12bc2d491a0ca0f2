"""Axes of unknown size in exported files."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flyweight.errors import UnsupportedError
from flyweight.export.onnx import OnnxExporter
from flyweight.model import Model


def test_batch_that_the_models_code_fixes_is_refused_by_name(tmp_path):
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, input):
            return self.layer(input.reshape(int(input.shape[0]), -1))

    model = Model("m", Fixed(), {"input": torch.randn(1, 4)})
    with pytest.raises(UnsupportedError, match="model 'm' fixes the size of axis 'batch' of 'input'"):
        OnnxExporter().export(model, tmp_path / "model.onnx")
