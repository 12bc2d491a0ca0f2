"""What stored forms say of themselves in a profile."""

from __future__ import annotations

import pytest
import torch

from flyweight.core.layer import CodebookProfile, LayerProfile
from flyweight.measure.forms import in_form
from flyweight.tensors.affine import AffineForm, encode_affine
from flyweight.tensors.binary import BinaryForm, encode_binary
from flyweight.tensors.codebook import CodebookForm, encode_codebook, fit_table
from flyweight.tensors.float_formats import FloatForm, encode_float
from flyweight.tensors.normal_float import NormalFloatForm, encode_normal_float
from flyweight.tensors.vector import VectorForm, encode_vectors, fit_vectors

W = torch.randn(6, 20, generator=torch.Generator().manual_seed(0))
TABLES, VECTORS = CodebookForm(bits=3), VectorForm(bits=3, dimension=4)
NORMAL, BY_ROW = CodebookProfile(entries=16, tables=0), CodebookProfile(entries=8, tables=6)
OF_VECTORS = CodebookProfile(entries=8, tables=1, dimension=4)
LAYER = LayerProfile(
    name="fc", op="linear", rows=6, columns=20, macs=120, input_elements=20, output_elements=6
)


@pytest.mark.parametrize(
    ("stored", "encoding", "group_size", "codebook"),
    [
        (encode_affine(W, AffineForm(bits=4, granularity="group", group_size=8)), "affine", 8, None),
        (encode_binary(W, BinaryForm(group_size=64)), "binary", 20, None),
        (encode_binary(W, BinaryForm(scaled=False)), "binary", None, None),
        (encode_binary(W, BinaryForm(levels="ternary")), "ternary", 20, None),
        (encode_normal_float(W, NormalFloatForm(group_size=8)), "normal_float", 8, NORMAL),
        (encode_codebook(W, TABLES, fit_table(W, TABLES)), "codebook", None, BY_ROW),
        (encode_vectors(W, VECTORS, fit_vectors(W, VECTORS)), "vector", None, OF_VECTORS),
        (encode_float(W, FloatForm("bfloat16")), "bfloat16", None, None),
        (encode_float(W, FloatForm("float8_e5m2")), "float8_e5m2", 20, None),
    ],
)
def test_a_profile_names_the_form_its_scales_and_tables(stored, encoding, group_size, codebook):
    layer = in_form(stored, LAYER)
    assert (layer.encoding, layer.group_size, layer.codebook) == (encoding, group_size, codebook)
    assert layer.code_bits == (4 if encoding == "affine" else None)


class Unknown:
    nbytes, density, mask = 1.0, 1.0, None

    def decode(self):
        return W


def test_a_form_that_is_not_listed_counts_as_decoded():
    assert in_form(Unknown(), LAYER) == LAYER
