from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyweight.core.layer import LayerProfile, ModelProfile


def layer(name: str = "fc", **changes: object) -> LayerProfile:
    plain = LayerProfile(
        name=name, op="linear", rows=4, columns=8, macs=32, input_elements=8, output_elements=4
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def test_a_float_layer_stores_four_bytes_a_weight() -> None:
    assert layer().storage_bytes == 4 * 8 * 4


def test_storage_counts_only_kept_weights() -> None:
    assert layer(density=0.25, weight_bits=8.0).storage_bytes == 8


def test_kept_weights_are_counted_where_some_are_removed() -> None:
    assert (layer().kept, layer(density=0.25).kept, layer(density=7 / 32).kept) == (None, 8, 7)


def test_a_tied_layer_stores_nothing() -> None:
    assert layer(tied_to="embedding").storage_bytes == 0


def test_a_profile_sums_its_layers_and_what_lies_outside_of_them() -> None:
    profile = ModelProfile(
        model="net", layers=(layer("a"), layer("b", tied_to="a")), other_bytes=10.0, container_bytes=5.0
    )
    assert profile.storage_bytes == 128 + 10 + 5
    assert profile.macs == 64


def test_two_layers_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two layers of the same name"):
        ModelProfile(model="net", layers=(layer("a"), layer("a")))


def test_with_layer_replaces_one_layer_and_keeps_the_order() -> None:
    before = ModelProfile(model="net", layers=(layer("a"), layer("b"), layer("c")))
    after = before.with_layer(layer("b", weight_bits=8.0))
    assert [one.name for one in after.layers] == ["a", "b", "c"]
    assert after.by_name["b"].weight_bits == 8.0
    assert before.by_name["b"].weight_bits == 32.0


def test_with_layer_refuses_a_name_the_profile_does_not_have() -> None:
    with pytest.raises(KeyError, match="no layer 'z' in the profile of 'net'"):
        ModelProfile(model="net", layers=(layer("a"),)).with_layer(layer("z"))


@given(st.floats(1, 32), st.floats(1, 32), st.floats(0.01, 1))
def test_storage_grows_with_the_bits_of_a_weight(one: float, other: float, density: float) -> None:
    narrow, wide = sorted((one, other))
    assert (
        layer(weight_bits=narrow, density=density).storage_bytes
        <= layer(weight_bits=wide, density=density).storage_bytes
    )
