"""What came out: files on disk and what was measured of them. Nothing predicted is ever stored here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from flyweight.core.analysis import Analysis

REPORT_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A deployable folder.

    Attributes:
        path: The folder.
        format: Name of the exporter that wrote the model file, ``"onnx"``.
        model_file: The model file's name inside the folder.
        files: Every file the device needs, relative name to bytes; reports and plans are not among them.
        sha256: Digest of the model file; names the artifact.
    """

    path: Path
    format: str
    model_file: str
    files: Mapping[str, int]
    sha256: str

    @property
    def nbytes(self) -> int:
        """Bytes of all files the device needs."""
        return sum(self.files.values())

    @property
    def model_path(self) -> Path:
        """The model file."""
        return self.path / self.model_file


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A measured value with its confidence interval (``confidence`` 0.95 is 95 %)."""

    value: float
    low: float
    high: float
    confidence: float = 0.95


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Wall-clock time of one call.

    Attributes:
        p50_s: Median.
        p95_s: 95th percentile.
        samples_s: One value a round, in the order measured, session after session.
        input_shapes: Of one call, by input name; axis 0 is the batch.
        threads: Threads the runtime was given.
    """

    p50_s: float
    p95_s: float
    samples_s: tuple[float, ...]
    input_shapes: Mapping[str, tuple[int, ...]]
    threads: int


@dataclass(frozen=True, kw_only=True)
class Energy:
    """Energy of one example, and how it was found."""

    joules: float
    method: str


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One set of files, measured.

    Attributes:
        storage_bytes: All files the device needs.
        files: Relative name to bytes.
        parameters: Numbers in the model's weights, biases and norms.
        macs: Multiply-accumulates of one forward pass at batch 1, in the weighted layers.
        latency: Interleaved with the other measurement of the same report.
        peak_rss_bytes: Peak resident memory of a fresh process that loads the file and runs it, less the same
            process before it loaded the file; None where the system does not tell.
        energy: From the processor's counters; None where they cannot be read.
        energy_estimate: From operations and bytes, where it cannot be measured. Nothing is judged by it.
        quality: The metric, higher is better, with a bootstrap interval.
        calibration_error: Expected calibration error in 0..1, where the task gives probabilities.
    """

    storage_bytes: int
    files: Mapping[str, int]
    parameters: int
    macs: int
    latency: Latency
    peak_rss_bytes: int | None
    energy: Energy | None
    energy_estimate: Energy | None
    quality: Estimate
    calibration_error: float | None = None


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Quality on a part of the evaluation data: a class, or a value of a column."""

    name: str
    examples: int
    original: float
    compressed: float

    @property
    def drop(self) -> float:
        """Positive is worse."""
        return self.original - self.compressed


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """A test of the same examples before and after.

    Attributes:
        name: ``"McNemar (exact)"`` or ``"Wilcoxon signed-rank"``.
        p_value: Two-sided.
        lost: Examples that were better before (right before, wrong after).
        gained: Examples that are better after.
    """

    name: str
    p_value: float
    lost: int
    gained: int


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The compressed file against the original, on the same examples and in the same loop.

    Attributes:
        size_ratio: Original bytes over compressed bytes; above 1 is smaller.
        speedup: Median over rounds of original time over compressed time; above 1 is faster.
        quality_drop: Original less compressed metric; positive is worse.
        test: Paired test of the per-example scores.
        agreement: Fraction of answers that did not change; None where the task has no discrete answers.
        slices: Slices found, worst drop first.
        examples: Evaluation examples compared.
    """

    size_ratio: float
    speedup: Estimate
    quality_drop: Estimate
    test: PairedTest
    agreement: float | None
    slices: tuple[Slice, ...]
    examples: int

    @property
    def worst_slice(self) -> Slice | None:
        """The slice that lost most."""
        return max(self.slices, key=lambda s: s.drop, default=None)


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """What one layer became.

    Attributes:
        technique: What was applied, ``"static_int8"``; ``"float"`` if nothing.
        weight_bits: Bits of one stored weight code (32 for float).
        activation_bits: Bits of the input as it is multiplied.
        storage_bytes: Stored weight, scales included.
        weight_sqnr_db: Signal to quantization noise of the weight in decibels; None if the weight is as it
            was.
        output_sqnr_db: The same of the layer's output on calibration data, all earlier layers compressed too.

    Both decibels are of the PyTorch reference.
    """

    name: str
    op: str
    technique: str
    weights: int
    weight_bits: float
    activation_bits: int
    storage_bytes: float
    weight_sqnr_db: float | None
    output_sqnr_db: float | None


@dataclass(frozen=True, kw_only=True)
class Parity:
    """The file's outputs against the PyTorch reference's, over all outputs and checked shapes.

    Attributes:
        relative_error: Root mean square of the difference over that of the reference.
        max_abs: Largest absolute difference.
        tolerance: The bound ``relative_error`` was held to.
        shapes: The input shapes checked, as text.
    """

    relative_error: float
    max_abs: float
    tolerance: float
    shapes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One technique tried on the way: measured, or the reason it could not be."""

    name: str
    storage_bytes: int | None = None
    speedup: float | None = None
    quality_drop: float | None = None
    outcome: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether the file may be shipped. ``reasons`` are what speaks against it; empty when it may."""

    shipped: bool
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Report:
    """All of one run. See docs/formats.md for the JSON form.

    Attributes:
        task: Name of the task.
        metric: Name of the metric; higher is better.
        technique: The technique that was kept.
        analysis: Where quality is lost, measured on the PyTorch reference; None where no layer is quantized.
        notes: What the reader must know: leaks between splits, layers left in float, downgrades.
        versions: Package to version.
        machine: Processor, cores, instruction sets; no host name.
        settings: The settings of the run, as in flyweight.yaml.
    """

    model: str
    task: str
    metric: str
    technique: str
    runtime: str
    original: Measurement
    compressed: Measurement
    comparison: Comparison
    layers: tuple[LayerReport, ...]
    parity: Parity
    attempts: tuple[Attempt, ...]
    verdict: Verdict
    analysis: Analysis | None = None
    notes: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, object] = field(default_factory=dict)
    created: str = ""


def refused_path(out: Path) -> Path:
    """Where the best attempt of a run is kept that was refused, and would have been in ``out``."""
    return out.with_name(f"{out.name}-refused")
