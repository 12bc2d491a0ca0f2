"""Names to objects, imported on first use; strings select only in plan files and on the command line."""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from typing import Any, Literal

Group = Literal["technique", "exporter", "runtime", "task"]

CATALOG: dict[Group, dict[str, str]] = {
    "technique": {
        "weight_only": "flyweight.techniques.weight_only:WeightOnly",
        "equalization": "flyweight.techniques.equalization:Equalization",
        "smoothing": "flyweight.techniques.smoothing:Smoothing",
        "rotation": "flyweight.techniques.rotation:Rotation",
        "gptq": "flyweight.techniques.gptq:GPTQ",
        "learned_rounding": "flyweight.techniques.learned_rounding:LearnedRounding",
        "static_int8": "flyweight.techniques.static_int8:StaticInt8",
        "dynamic_int8": "flyweight.techniques.dynamic_int8:DynamicInt8",
        "binary": "flyweight.techniques.binary:Binary",
        "codebook": "flyweight.techniques.codebook:Codebook",
        "normal_float": "flyweight.techniques.normal_float:NormalFloat",
        "vector": "flyweight.techniques.vector:Vector",
        "float_storage": "flyweight.techniques.float_storage:FloatStorage",
        "kv_cache": "flyweight.techniques.kv_cache:KVCache",
        "static_activations": "flyweight.techniques.static_activations:StaticActivations",
        "dynamic_activations": "flyweight.techniques.dynamic_activations:DynamicActivations",
    },
    "exporter": {"onnx": "flyweight.export.onnx:OnnxExporter"},
    "runtime": {
        "pytorch": "flyweight.run.pytorch:PyTorchRuntime",
        "onnxruntime": "flyweight.run.onnxruntime:OnnxRuntime",
        "openvino": "flyweight.run.openvino:OpenVinoRuntime",
    },
    "task": {
        "classification": "flyweight.tasks.classification:Classification",
        "similarity": "flyweight.tasks.similarity:Similarity",
        "regression": "flyweight.tasks.regression:Regression",
    },
}


def names(group: Group) -> list[str]:
    """Everything registered in a group, built in or by a third party's entry point ``flyweight.<group>``."""
    return sorted({*CATALOG[group], *(e.name for e in entry_points(group=f"flyweight.{group}"))})


def get(group: Group, name: str) -> Any:
    """The class registered as ``name``; instantiate it to use it.

    Raises:
        ValueError: Nothing is registered by that name; the message lists what is.
    """
    target = CATALOG[group].get(name)
    if target is None:
        for entry in entry_points(group=f"flyweight.{group}"):
            if entry.name == name:
                return entry.load()
        raise ValueError(f"no {group} is called {name!r}; known: {', '.join(names(group))}")
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)
