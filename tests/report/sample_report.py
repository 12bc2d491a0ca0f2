"""Realistic reports for the tests of this folder, and for looking at the page in a browser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from flyweight.core.analysis import (
    KL,
    Analysis,
    Deviation,
    ErrorHistogram,
    Fit,
    LayerErrors,
    LayerLoss,
    Wider,
)
from flyweight.core.report import (
    Attempt,
    Comparison,
    Energy,
    Estimate,
    Latency,
    LayerReport,
    Measurement,
    PairedTest,
    Parity,
    Report,
    Slice,
    Verdict,
)

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def sample(layers: int = 20, rounds: int = 300) -> Report:
    """A convolutional network at int8, shipped, with ``layers`` layers and ``rounds`` timings."""
    rng = np.random.default_rng(0)
    report = Report(
        model="cifar10_resnet20",
        task="classification",
        metric="top-1 accuracy",
        technique="static_int8",
        runtime="onnxruntime",
        original=_measurement(rng, 1_124_336, 0.00214, rounds, quality=0.9259, rss=9_400_000, joules=0.0321),
        compressed=_measurement(rng, 304_812, 0.00083, rounds, quality=0.9253, rss=4_100_000, joules=0.0125),
        comparison=_comparison(rng),
        layers=tuple(_layer(rng, i, layers) for i in range(layers)),
        parity=Parity(
            relative_error=3.1e-4, max_abs=0.011, tolerance=0.01, shapes=("1x3x32x32", "4x3x32x32")
        ),
        attempts=(
            Attempt(
                name="weight_only", storage_bytes=309_120, speedup=0.82, quality_drop=0.0002, outcome="slower"
            ),
            Attempt(
                name="static_int8", storage_bytes=304_812, speedup=2.57, quality_drop=0.0006, outcome="kept"
            ),
            Attempt(name="dynamic_int8", outcome="no linear layer large enough: nothing to compress"),
        ),
        verdict=Verdict(shipped=True),
        notes=("3 evaluation examples are also in the calibration split.",),
        versions={
            "flyweight": "0.1.0",
            "torch": "2.13.0",
            "onnxruntime": "1.31.0",
            "numpy": "2.4.6",
            "python": "3.11.9",
        },
        machine={
            "processor": "Xeon, 2 cores",
            "instructions": "avx2 avx512f avx512_vnni",
            "memory": "8.2 GB",
        },
        settings={
            "model": "nets.py:resnet20",
            "budget": {"quality_drop": 0.005},
            "techniques": ["static_int8"],
            "seed": 0,
        },
        created="2026-02-03T12:00:00+00:00",
    )
    return replace(report, analysis=analysis(report.layers))


def analysis(layers: Sequence[LayerReport]) -> Analysis | None:
    """Of the layers that are quantized; where there are many, the last two were not tried alone."""
    quantized = [layer for layer in layers if layer.weight_sqnr_db is not None]
    if not quantized:
        return None
    rng = np.random.default_rng(1)
    losses = tuple(
        _loss(rng, layer, tried=len(quantized) < 9 or len(quantized) - i > 2)
        for i, layer in enumerate(quantized)
    )
    return Analysis(
        unit=KL, examples=64, trial_examples=32, damage=0.031, output=_deviation(21.0), layers=losses
    )


def refused() -> Report:
    """The same run with a slower, worse result that is not shipped."""
    report = sample()
    comparison = replace(
        report.comparison,
        speedup=Estimate(value=0.8123, low=0.7901, high=0.8342),
        quality_drop=Estimate(value=0.0213, low=0.0161, high=0.0266),
    )
    reasons = (
        "slower than the original: 0.81 of its speed, 95 % interval [0.79, 0.83]",
        "top-1 accuracy drops by 2.13 points; 0.50 are allowed",
    )
    before, after = report.original, report.compressed
    latency = replace(
        before.latency,
        p50_s=0.00263,
        p95_s=0.0028,
        samples_s=tuple(1.23 * t for t in before.latency.samples_s),
    )
    compressed = replace(after, latency=latency, quality=Estimate(value=0.9046, low=0.8991, high=0.9104))
    verdict = Verdict(shipped=False, reasons=reasons)
    return replace(report, compressed=compressed, comparison=comparison, verdict=verdict)


def bare() -> Report:
    """A regression with everything optional left out."""
    report = sample(layers=0, rounds=1)
    plain = {"peak_rss_bytes": None, "energy_estimate": None, "calibration_error": None}
    return replace(
        report,
        metric="R²",
        task="regression",
        original=replace(report.original, quality=Estimate(value=-0.31, low=-0.52, high=-0.12), **plain),
        compressed=replace(report.compressed, quality=Estimate(value=-0.3, low=-0.5, high=-0.1), **plain),
        comparison=replace(report.comparison, agreement=None, slices=()),
        attempts=(),
        notes=(),
        versions={},
        machine={},
        settings={},
    )


def hostile(text: str) -> Report:
    """A report in which everything a user, a model or its data names is ``text``."""
    report = refused()
    return replace(
        report,
        model=text,
        task=text,
        metric=text,
        technique=text,
        runtime=text,
        created=text,
        compressed=replace(report.compressed, files={text: 10}),
        comparison=replace(
            report.comparison, slices=(Slice(name=text, examples=9, original=0.9, compressed=0.8),)
        ),
        layers=tuple(replace(layer, name=text, op=text, technique=text) for layer in report.layers),
        analysis=_hostile_analysis(report.analysis, text),
        attempts=tuple(replace(attempt, name=text, outcome=text) for attempt in report.attempts),
        verdict=Verdict(shipped=False, reasons=(text,)),
        notes=(text,),
        versions={text: text},
        machine={text: text},
        settings={text: {text: [text]}},
    )


def _hostile_analysis(found: Analysis | None, text: str) -> Analysis:
    """Every text is ``text``, and numbers are none that flyweight writes."""
    assert found is not None
    histogram = ErrorHistogram(
        unit=text,
        bound=1.0,
        counts=(0, 3, 1),
        outside=0,
        fits=(Fit(shape=text, centre=0.0, spread=-1.0, distance=2.0),),
    )
    none = ErrorHistogram(unit="steps", bound=0.0, counts=(), outside=-1, fits=())
    odd = replace(found.layers[0], name=text, histogram=none, damage=-1.0, wider=None)
    layers = tuple(replace(layer, name=text, histogram=histogram) for layer in found.layers)
    return replace(found, unit=text, layers=(odd, *layers))


def _loss(rng: np.random.Generator, layer: LayerReport, *, tried: bool) -> LayerLoss:
    damage = float(rng.gamma(0.5, 0.01)) if tried else None
    wider = Wider(bits=8, more_bytes=layer.weights / 2, damage=None if damage is None else damage / 200)
    errors = np.histogram(rng.uniform(-0.5, 0.5, layer.weights), bins=41, range=(-0.5, 0.5))[0]
    shapes = (("uniform", 0.5), ("triangular", 0.71), ("gaussian", 0.29))
    return LayerLoss(
        name=layer.name,
        bits=4.0,
        errors=LayerErrors(
            weight=_deviation(layer.weight_sqnr_db),
            output_alone=_deviation((layer.output_sqnr_db or 0.0) + float(rng.uniform(0, 9))),
            output=_deviation(layer.output_sqnr_db),
        ),
        histogram=ErrorHistogram(
            unit="steps",
            bound=0.5,
            counts=tuple(errors.tolist()),
            outside=0,
            fits=tuple(
                Fit(shape=shape, centre=0.0, spread=spread, distance=0.01 * (i + 1))
                for i, (shape, spread) in enumerate(shapes)
            ),
        ),
        damage=damage,
        wider=wider if tried else None,
    )


def _deviation(sqnr_db: float | None) -> Deviation | None:
    if sqnr_db is None:
        return None
    relative = float(10 ** (-sqnr_db / 20))
    return Deviation(mse=relative**2, max_abs=4 * relative, relative=relative, sqnr_db=sqnr_db, cosine=0.999)


def _measurement(
    rng: np.random.Generator,
    nbytes: int,
    p50_s: float,
    rounds: int,
    *,
    quality: float,
    rss: int,
    joules: float,
) -> Measurement:
    samples = p50_s * (1 + rng.gamma(1.5, 0.03, rounds))
    samples[rng.random(rounds) < 0.01] *= 3  # interrupted by other work
    latency = Latency(
        p50_s=float(np.median(samples)),
        p95_s=float(np.quantile(samples, 0.95)),
        samples_s=tuple(samples.tolist()),
        input_shapes={"image": (1, 3, 32, 32)},
        threads=2,
    )
    return Measurement(
        storage_bytes=nbytes,
        files={"model.onnx": nbytes - 812, "preprocessing.json": 812},
        parameters=272_474,
        macs=40_551_424,
        latency=latency,
        peak_rss_bytes=rss,
        energy=None,
        energy_estimate=Energy(joules=joules, method="nominal power of the processor times time"),
        quality=Estimate(value=quality, low=quality - 0.0051, high=quality + 0.0052),
        calibration_error=0.031,
    )


def _comparison(rng: np.random.Generator) -> Comparison:
    drops = np.sort(rng.normal(0.0006, 0.004, len(CLASSES)))[::-1]
    slices = tuple(
        Slice(name=name, examples=1000, original=0.92, compressed=float(round(0.92 - drop, 3)))
        for name, drop in zip(CLASSES, drops, strict=True)
    )
    return Comparison(
        size_ratio=3.689,
        speedup=Estimate(value=2.574, low=2.551, high=2.602),
        quality_drop=Estimate(value=0.0006, low=-0.0004, high=0.0017),
        test=PairedTest(name="McNemar (exact)", p_value=0.3128, lost=34, gained=28),
        agreement=0.9931,
        slices=slices,
        examples=10_000,
    )


def _layer(rng: np.random.Generator, index: int, count: int) -> LayerReport:
    kept = index in (0, count - 1) and count > 1
    name = f"stages.{index // 6}.blocks.{index % 6 // 2}.conv{index % 2 + 1}"
    weights = 432 * 4 ** (index * 3 // count)
    return LayerReport(
        name=name if index else "encoder.embeddings.stem.convolution_with_a_long_name",
        op="conv2d",
        technique="float" if kept else "static_int8",
        weights=weights,
        weight_bits=32.0 if kept else 8.0,
        activation_bits=32 if kept else 8,
        storage_bytes=weights * (4.0 if kept else 1.0),
        weight_sqnr_db=None if kept else float(rng.normal(41, 2)),
        output_sqnr_db=float(rng.normal(33 - 8 * index / count, 2)),
    )
