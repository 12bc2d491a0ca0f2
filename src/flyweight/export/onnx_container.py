"""What a file takes besides weights and biases: nodes with the names of their inputs, headers, constants.

Bytes are those of one node or header, counted in files of the networks of `flyweight.testing.strategies`.
"""

from __future__ import annotations

from collections.abc import Mapping

from flyweight.core.layer import LayerProfile, ModelProfile
from flyweight.export.onnx_block_ops import LEAST_WIDTH
from flyweight.export.onnx_routes import (
    Route,
    blocks_of,
    by_group,
    code_bits,
    code_width,
    has_zero_points,
)
from flyweight.tensors.affine import SCALE_BITS

GRAPH = 300
FLOAT_LAYER = 100
ROUNDING = {"float": 0, "dynamic": 60, "static": 175}  # of what a layer reads
CODED_LAYER = {"float": 155, "dynamic": 200, "static": 330}
BY_TOKEN = 265  # more than one range for all
BLOCK_LAYER = 205
LOOKED_UP_LAYER = 310
CONVOLUTION = 50  # its attributes, more than those of a product
GEMM = -60  # less than the product of more than two axes
NODE, CAST, SHAPE = 16, 24, 45  # SHAPE: a node with the shape it reads
HEADER = 12
SLICE = 40
WIDENING = CAST + NODE + SHAPE  # codes of 2 bits become codes of 4
WIDENING_TABLE = 525
ONE_GRID = 200  # decoded weights become integers


def container_bytes(profile: ModelProfile, chosen: Mapping[str, Route]) -> int:
    """Of a whole file."""
    widened = any(
        chosen[layer.name] == "blocks" and code_width(layer) < LEAST_WIDTH for layer in profile.layers
    )
    by_token = sum(layer.activation_granularity == "token" for layer in profile.layers)
    nodes = sum(_of_layer(x, chosen[x.name]) for x in profile.layers)
    return GRAPH + WIDENING_TABLE * widened + by_token * BY_TOKEN + nodes


def _of_layer(layer: LayerProfile, route: Route) -> int:
    mode = layer.activation_mode
    is_convolution = layer.op in {"conv1d", "conv2d"}
    if route == "float":
        return FLOAT_LAYER + ROUNDING[mode]
    if route == "blocks":
        return _of_blocks(layer)
    if route == "rows":
        return LOOKED_UP_LAYER + (has_zero_points(layer) + (layer.group_size is None)) * (HEADER + NODE)
    if route == "decoded":
        return FLOAT_LAYER + ROUNDING[mode] + _decoding(layer) + is_convolution * CONVOLUTION
    if route == "codes":
        return CODED_LAYER[mode] + _of_sums(layer, bias_scales=True)
    exact = code_bits(layer) is not None and not by_group(layer)
    integers = 2 * NODE + CAST + has_zero_points(layer) * (2 * CAST + NODE + HEADER)
    made = integers if exact else _decoding(layer) + ONE_GRID
    is_gemm = mode == "static" and layer.op == "linear" and layer.input_elements == layer.columns
    shape = is_convolution * CONVOLUTION + is_gemm * GEMM
    return CODED_LAYER[mode] + shape + made + _of_sums(layer, bias_scales=False)


def _of_blocks(layer: LayerProfile) -> int:
    blocks = blocks_of(layer)
    if blocks is None:
        return 0
    repeated = layer.group_size is None or (blocks.by_row and blocks.count > 1)
    narrow, zero_points = blocks.width < LEAST_WIDTH, has_zero_points(layer)
    codes = narrow * WIDENING + blocks.filled * (SHAPE + (not narrow) * SHAPE)
    scales = blocks.by_row * (NODE + 4) + repeated * SHAPE
    zeros = HEADER + repeated * NODE + narrow * (WIDENING + NODE)
    return BLOCK_LAYER + codes + scales + zero_points * zeros


def _decoding(layer: LayerProfile) -> int:
    """Of stored codes, to floats."""
    found = CAST
    if layer.codebook is not None:
        found += 2 * NODE + layer.codebook.tables * HEADER // max(layer.codebook.tables, 1)
    if layer.group_size is not None or code_bits(layer) is not None:
        found += NODE + HEADER
    if code_bits(layer) is not None and has_zero_points(layer):
        found += CAST + NODE + HEADER
    group = layer.group_size if by_group(layer) else None
    size = layer.codebook.dimension if layer.encoding == "vector" and layer.codebook else group
    if size is not None:
        found += SHAPE + (layer.columns % size > 0) * (SHAPE + SLICE)
    elif layer.op in {"conv1d", "conv2d"} and code_bits(layer) is None:
        found += SHAPE
    return found


def _of_sums(layer: LayerProfile, *, bias_scales: bool) -> int:
    """Of zero points where a matrix is multiplied, and of scales where the bias is of integers."""
    if layer.activation_mode != "static" or (bias_scales and has_zero_points(layer)):
        return 0
    scales = 1 if layer.group_size is None and code_bits(layer) is not None else layer.rows
    is_linear = layer.op == "linear"
    integer_bias = not is_linear or layer.input_elements == layer.columns
    return scales * (is_linear + bias_scales * integer_bias * SCALE_BITS // 8)
