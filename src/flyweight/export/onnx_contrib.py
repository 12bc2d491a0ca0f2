"""The two operators of ONNX Runtime's own that files use, as onnxscript must know them to write them.

Source: onnxruntime, docs/ContribOperators.md (MatMulNBits, GatherBlockQuantized).
"""

from __future__ import annotations

from functools import cache
from typing import Any

DOMAIN = "com.microsoft"
_BYTES, _FLOATS, _INDICES = "tensor(uint8)", "tensor(float)", ("tensor(int32)", "tensor(int64)")


@cache
def matmul_n_bits() -> Any:
    """(x, codes, scales, zero points): products by blocks."""
    inputs = {"A": _FLOATS, "B": _BYTES, "scales": _FLOATS, "zero_points": _BYTES}
    return _operator("MatMulNBits", inputs, ("K", "N", "bits", "block_size", "accuracy_level"))


@cache
def gather_block_quantized() -> Any:
    """(codes, places, scales, zero points): rows, decoded."""
    inputs = {"data": _BYTES, "indices": "Tind", "scales": _FLOATS, "zero_points": _BYTES}
    attributes = ("bits", "block_size", "gather_axis", "quantize_axis")
    return _operator("GatherBlockQuantized", inputs, attributes)


def _operator(name: str, inputs: dict[str, str], attributes: tuple[str, ...]) -> Any:
    """Not registered with onnx, which checks what it knows; the zero points are optional."""
    from onnx.defs import OpSchema
    from onnxscript.values import Op, Opset

    option = OpSchema.FormalParameterOption
    parameters = [
        OpSchema.FormalParameter(
            key, kind, param_option=option.Optional if key == "zero_points" else option.Single
        )
        for key, kind in inputs.items()
    ]
    schema = OpSchema(
        name,
        DOMAIN,
        1,
        inputs=parameters,
        outputs=[OpSchema.FormalParameter("y", _FLOATS)],
        type_constraints=[("Tind", list(_INDICES), "")] if "Tind" in inputs.values() else [],
        attributes=[OpSchema.Attribute(key, OpSchema.AttrType.INT, required=False) for key in attributes],
    )
    return Op(Opset(DOMAIN, 1), name, schema)
