import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flyweight.tensors.affine import AffineForm, encode_affine
from flyweight.tensors.binary import BinaryForm, encode_binary
from flyweight.tensors.codebook import CodebookForm, encode_codebook, fit_table
from flyweight.tensors.float_formats import FloatForm, encode_float
from flyweight.tensors.normal_float import NormalFloatForm, encode_normal_float
from flyweight.tensors.packed import AT_A_TIME, Width, joined, pack, taken_apart, unpack
from flyweight.tensors.plain import PlainWeight
from flyweight.tensors.vector import VectorForm, encode_vectors, fit_vectors

WEIGHT = torch.randn(6, 37, generator=torch.Generator().manual_seed(0))
MASK = torch.rand(6, 37, generator=torch.Generator().manual_seed(1)) > 0.3


def stored_weights():
    for bits in (2, 3, 4, 5, 8, 16):
        yield encode_affine(WEIGHT, AffineForm(bits=bits, symmetric=True))
        form = AffineForm(bits=bits, symmetric=False, granularity="group", group_size=8)
        yield encode_affine(WEIGHT, form, MASK)
    yield encode_binary(WEIGHT, BinaryForm(levels="binary"))
    yield encode_binary(WEIGHT, BinaryForm(levels="ternary", group_size=8))
    codebook = CodebookForm(bits=3)
    yield encode_codebook(WEIGHT, codebook, fit_table(WEIGHT, codebook))
    yield encode_float(WEIGHT, FloatForm("bfloat16"))
    yield encode_float(WEIGHT, FloatForm("float8_e4m3fn"))
    yield encode_normal_float(WEIGHT, NormalFloatForm(bits=4, group_size=8))
    vector = VectorForm(bits=5, dimension=4)
    yield encode_vectors(WEIGHT, vector, fit_vectors(WEIGHT, vector))


@given(
    bits=st.integers(1, 16),
    lowest=st.integers(-128, 0),
    count=st.integers(0, 50),
    seed=st.integers(0, 99),
)
def test_packed_codes_come_back_and_take_their_bits(bits: int, lowest: int, count: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(2**bits, (count,), generator=generator).to(torch.int32) + lowest
    stored = pack(codes, Width(bits, lowest))
    assert len(stored) == math.ceil(count * bits / 8)
    assert torch.equal(unpack(stored, Width(bits, lowest), (count,), torch.int32), codes)


def test_codes_follow_each_other_from_the_lowest_bit():
    assert pack(torch.tensor([1, 2, 3, 0], dtype=torch.int8), Width(2)).tolist() == [0b00111001]
    assert pack(torch.tensor([5, 1], dtype=torch.int8), Width(3)).tolist() == [0b001101]


def test_more_codes_than_are_spread_at_once_come_back():
    codes = torch.randint(-4, 4, (AT_A_TIME + 13,), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    assert torch.equal(unpack(pack(codes, Width(3, -4)), Width(3, -4), (len(codes),), torch.int8), codes)


@pytest.mark.parametrize("code", [-5, 4])
def test_a_code_that_does_not_fit_is_an_error(code: int):
    with pytest.raises(ValueError, match="a code does not fit into 3 bits from -4"):
        pack(torch.tensor([0, code], dtype=torch.int8), Width(3, -4))


def test_bytes_of_another_number_of_codes_are_an_error():
    with pytest.raises(ValueError, match="9 codes of 4 bits do not take 4 bytes"):
        unpack(torch.zeros(4, dtype=torch.uint8), Width(4), (9,), torch.int8)


@pytest.mark.parametrize("weight", list(stored_weights()), ids=lambda w: f"{type(w).__name__}-{w.form}")
def test_a_stored_weight_comes_back_as_it_was(weight):
    description, tensors = taken_apart(weight)
    again = joined(description, tensors)
    assert type(again) is type(weight)
    assert again.form == weight.form
    assert again.nbytes == weight.nbytes
    assert torch.equal(again.decode(), weight.decode())


@pytest.mark.parametrize("weight", list(stored_weights()), ids=lambda w: f"{type(w).__name__}-{w.form}")
def test_its_tensors_take_what_it_says_but_for_the_last_bytes(weight):
    if weight.mask is not None:
        weight = replace(weight, mask=None)  # removed weights keep their codes here
    taken = sum(t.numel() * t.element_size() for t in taken_apart(weight)[1].values())
    assert weight.nbytes <= taken < weight.nbytes + 3


def test_a_weight_of_an_unknown_class_is_an_error():
    with pytest.raises(ValueError, match="a PlainWeight cannot be written"):
        taken_apart(PlainWeight(WEIGHT))


def test_a_missing_tensor_is_an_error():
    description, tensors = taken_apart(encode_affine(WEIGHT, AffineForm(bits=4)))
    with pytest.raises(ValueError, match=r"an? affine weight has the tensors codes, mask, scale, zero_point"):
        joined(description, {"codes": tensors["codes"]})


def test_a_form_out_of_range_is_an_error():
    description, tensors = taken_apart(encode_affine(WEIGHT, AffineForm(bits=4)))
    with pytest.raises(ValueError, match="bits must be"):
        joined(replace(description, form={**description.form, "bits": 77}), tensors)
