"""The command line: parse, call, print.

Exit codes: 0, 1 failed, 2 misused, 3 refused, 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, final

import typer
from rich.console import Console

import flyweight
from flyweight import catalog, cli_command
from flyweight._atomic import holds_artifact
from flyweight.cli_command import spread
from flyweight.cli_options import (
    Destination,
    Execution,
    Goal,
    Learning,
    Methods,
    Named,
    NamedOrMade,
    PlanFile,
    Preparation,
    Source,
    Terminal,
    Timing,
    assembled,
    check_name,
    check_runtime,
)
from flyweight.cli_stream import Streamed, settings_of, summary

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flyweight.core.report import Report
    from flyweight.evaluate.benchmark import Benchmarked
    from flyweight.evaluate.quality import Quality

REFUSED = 3
WORST_SLICES = 5
FEW_SHOWN = 10

app = typer.Typer(
    name="flyweight",
    help="Make trained models fit the device they have to run on, and prove it on the file that ships.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


@final
@dataclass(frozen=True, kw_only=True)
class _Folder:
    artifact: Annotated[Path, typer.Argument(metavar="OUT", help="Folder that compress or export wrote.")]


@final
@dataclass(frozen=True, kw_only=True)
class _Questions:
    input: Annotated[str, typer.Option("--input", help="New examples: a file or folder, or file.py:loader.")]
    output: Annotated[
        Path | None,
        typer.Option(help="Answers: .csv, .json, .jsonl or .npz; printed as JSON lines if left out."),
    ] = None
    input_column: Annotated[
        list[str] | None, typer.Option(help="Column to read, where there are others; repeatable.")
    ] = None
    batch_size: Annotated[int, typer.Option(min=1, help="Examples in one call, if they may share it.")] = 32


@final
@dataclass(frozen=True, kw_only=True)
class _Rival:
    against: Annotated[
        Path | None, typer.Option(help="Another artifact, such as an export of the original; timed in turns.")
    ] = None
    length: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens of inputs whose length varies; 128 by default. At most what is kept of a text.",
        ),
    ] = None


@final
@dataclass(frozen=True, kw_only=True)
class _Inspected:
    artifact: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder that compress wrote, OUT-refused too.")
    ]
    layer: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="All that is known of one layer, instead of the ranking."),
    ] = None
    top: Annotated[
        int | None, typer.Option(min=1, help=f"Layers shown, the costliest first; {FEW_SHOWN} by default.")
    ] = None


@final
@dataclass(frozen=True, kw_only=True)
class _DemoFolder:
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")] = Path("flyweight-demo")
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an artifact that no earlier demo made.")
    ] = False


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)
    ] = False,
) -> None:
    if version:
        _print(flyweight.__version__)
        raise typer.Exit


@app.command()
@spread
def compress(
    named: Named,
    source: Source,
    preparation: Preparation,
    goal: Goal,
    methods: Methods,
    learning: Learning,
    execution: Execution,
    timing: Timing,
    destination: Destination,
    terminal: Terminal,
) -> int:
    """Make a model smaller and faster, measure the file, and write it if it holds what was asked.

    Otherwise the best attempt is written to OUT-refused, and the exit code is 3.

    Example: flyweight compress net.py:net --weights net.safetensors --data digits.npz -o small
    """
    groups = (named, source, preparation, goal, methods, learning, execution, timing, destination)
    settings = assembled([g.values() for g in groups], destination.config)
    check_runtime(settings.runtime, (settings.format,))
    from flyweight.pipeline import compress

    with _progress(terminal) as progress:
        report = compress(settings, progress=progress)
    _show_report(report, terminal)
    out = Path(settings.out)
    if report.verdict.shipped:
        _tell(f"written to {out}: open {out / 'report.html'}", terminal)
        return 0
    return _refused(report, out)


@app.command()
@spread
def run(folder: _Folder, questions: _Questions, execution: Execution, terminal: Terminal) -> int:
    """Answer new examples; preprocessing and post-processing come from the artifact.

    Example: flyweight run small --input new.csv --output answers.csv
    """
    from flyweight.run.examples import open_examples
    from flyweight.run.predict import check_answers_path, predict, write_answers

    runtime = execution.runtime or "onnxruntime"
    check_runtime(runtime)
    if questions.output is not None:
        check_answers_path(questions.output)
    examples = open_examples(folder.artifact, questions.input, questions.input_column or ())
    with _progress(terminal) as progress:
        answers = predict(
            folder.artifact,
            examples,
            runtime=runtime,
            threads=execution.threads or 0,
            batch_size=questions.batch_size,
            progress=progress,
        )
    if questions.output is None:
        _print_rows(answers)
        return 0
    write_answers(questions.output, answers)
    _tell(f"{len(examples)} answers written to {questions.output}", terminal)
    return 0


@app.command()
@spread
def evaluate(
    named: NamedOrMade,
    source: Source,
    preparation: Preparation,
    methods: Methods,
    learning: Learning,
    execution: Execution,
    terminal: Terminal,
) -> int:
    """Measure the quality of an artifact on data, or of a model in PyTorch: MODEL is either.

    With a technique or a plan it is that of what they make of the model, in PyTorch too; nothing is written.

    Example: flyweight evaluate small --data test.csv
    """
    from flyweight.evaluate.quality import artifact_quality, is_artifact, model_quality, recorded_settings

    path = Path(named.model or "")
    if learning.resume:
        raise typer.BadParameter("evaluate keeps no state of a training", param_hint="--resume")
    made = {key: value for group in (methods, learning) for key, value in group.values().items() if value}
    groups = [g.values() for g in (named, source, preparation, execution)]
    if named.model is not None and is_artifact(path):
        if made:
            raise typer.BadParameter(f"{path} is an artifact: techniques and training are for models")
        settings = assembled([recorded_settings(path, task=source.task), *groups, {"out": str(path)}])
        check_runtime(settings.runtime)
        if settings.preprocessing or settings.weights or settings.model_arguments:
            raise typer.BadParameter(f"{path} is an artifact, which brings its own weights and preprocessing")
        with _progress(terminal) as progress:
            quality = artifact_quality(path, settings, progress=progress)
    else:
        settings = assembled([*groups, made, {"out": "."}])
        check_name("runtime", settings.runtime)
        from flyweight.pipeline import evaluate_plan

        with _progress(terminal) as progress:
            quality = (evaluate_plan if made else model_quality)(settings, progress=progress)
    _show_quality(quality, terminal)
    return 0


@app.command()
@spread
def benchmark(
    folder: _Folder, rival: _Rival, execution: Execution, timing: Timing, terminal: Terminal
) -> int:
    """Measure speed, memory and size of an artifact, or of two in turns.

    Example: flyweight benchmark small --against original
    """
    from flyweight.evaluate.benchmark import DEFAULT_LENGTH, benchmark
    from flyweight.evaluate.measurement import Conditions
    from flyweight.settings import DEFAULT_SECONDS

    conditions = Conditions(
        runtime=execution.runtime or "onnxruntime",
        threads=execution.threads or 0,
        batch_size=timing.batch_size or 1,
        seconds=timing.seconds or DEFAULT_SECONDS,
    )
    check_runtime(conditions.runtime)
    paths = [folder.artifact] if rival.against is None else [folder.artifact, rival.against]
    with _progress(terminal) as progress:
        measured = benchmark(paths, conditions, length=rival.length or DEFAULT_LENGTH, progress=progress)
    for one in measured:
        _warn_of_length(one, rival.length)
    _show_benchmark(measured, terminal)
    return 0


@app.command()
@spread
def export(
    named: Named,
    source: Source,
    preparation: Preparation,
    plan: PlanFile,
    destination: Destination,
    terminal: Terminal,
) -> int:
    """Write the model as it is, or with a plan carried out, without measuring or judging it.

    Example: flyweight export net.py:net --weights net.safetensors --data digits.npz -o original
    """
    groups = (named, source, preparation, plan, destination)
    settings = assembled([g.values() for g in groups], destination.config)
    from flyweight.pipeline import export

    with _progress(terminal) as progress:
        artifact = export(settings, progress=progress)
    _tell(f"{artifact.nbytes} bytes written to {settings.out}", terminal)
    return 0


@app.command()
@spread
def inspect(folder: _Inspected, terminal: Terminal) -> int:
    """Show where quality is lost: errors of each quantized layer, what it costs, and gains one width higher.

    It was measured by compress, on the PyTorch reference with calibration examples; report.html draws it.

    Example: flyweight inspect small --top 5
    """
    from flyweight.report.inspection import print_analysis, print_layer
    from flyweight.report.read import analysis_of, layer_called, read_report

    if folder.layer is not None and folder.top is not None:
        raise typer.BadParameter("--layer shows one layer: leave out --top")
    report = read_report(folder.artifact)
    analysis = analysis_of(report, folder.artifact)
    if folder.layer is not None:
        layer = layer_called(analysis, folder.layer, folder.artifact)
        if terminal.json:
            _print(json.dumps({"unit": analysis.unit, **asdict(layer)}, indent=1))
        elif not terminal.quiet:
            print_layer(report, analysis, layer, Console())
        return 0
    top = folder.top or FEW_SHOWN
    if terminal.json:
        chosen = asdict(analysis) | {"layers": [asdict(layer) for layer in analysis.ranked[: folder.top]]}
        _print(json.dumps(chosen, indent=1))
    elif not terminal.quiet:
        print_analysis(report, analysis, Console(), top=top)
    return 0


@app.command()
@spread
def demo(folder: _DemoFolder, terminal: Terminal) -> int:
    """Train a small network on handwritten digits, compress it, run the file and show what was measured.

    Exit code 3 where the file is refused, as on a machine on which int8 is slower: the table says why, and
    the best attempt is in OUT-refused.

    Example: flyweight demo -o digits
    """
    from flyweight.demo import run_demo

    console = Console(quiet=terminal.quiet or terminal.json)
    with _progress(terminal) as progress:
        report = run_demo(folder.out, console=console, overwrite=folder.overwrite, progress=progress)
    if terminal.json:
        _show_report(report, terminal)
    return 0 if report.verdict.shipped else _refused(report, folder.out)


@app.command()
@spread
def stream(options: Streamed, terminal: Terminal) -> int:
    """Quantize the weights of a model that does not fit into memory, block by block, from its files.

    A run that was killed goes on at the first block that is not written when it is repeated.

    Example: flyweight stream net.py:make --weights net/ --data tokens.npz --bits 4 --group-size 32 -o small
    """
    from flyweight.streaming import stream

    settings = settings_of(options)
    with _progress(terminal) as progress:
        manifest = stream(settings, progress=progress)
    if terminal.json:
        _print(json.dumps(asdict(manifest), indent=1))
    _tell(summary(manifest, settings.out), terminal)
    return 0


@app.command()
@spread
def techniques(terminal: Terminal) -> int:
    """List the techniques, each with what it does.

    Example: flyweight techniques
    """
    listed = {name: _first_line(catalog.get("technique", name)) for name in catalog.names("technique")}
    if terminal.json:
        _print(json.dumps(listed, indent=1))
        return 0
    width = max(map(len, listed))
    for name, text in listed.items():
        _print(f"{name:{width}}  {text}")
    return 0


def main() -> None:
    """Entry point of ``flyweight``."""
    sys.exit(cli_command.run(app, sys.argv[1:]))


def _refused(report: Report, out: Path) -> int:
    """Say why on standard error, and where the best attempt is."""
    from flyweight.core.report import refused_path

    before = f"the artifact that was in {out} before is still there"
    left = before if holds_artifact(out) else f"nothing is in {out}"
    reasons = "; ".join(report.verdict.reasons)
    _warn(f"refused: {reasons} (the best attempt is in {refused_path(out)}, {left})")
    return REFUSED


def _first_line(technique: type[Any]) -> str:
    """Of the docstring of the module it is in, which says what it does in one sentence."""
    text = sys.modules[technique.__module__].__doc__ or technique.__doc__ or ""
    return text.strip().partition("\n")[0]


def _progress(terminal: Terminal) -> Any:
    from flyweight.report.progress import terminal_progress

    return terminal_progress(Console(stderr=True), quiet=terminal.quiet)


def _show_report(report: Report, terminal: Terminal) -> None:
    from flyweight.report.json import to_json
    from flyweight.report.terminal import print_report

    if terminal.json:
        _print(to_json(report))
    elif not terminal.quiet:
        print_report(report, Console())


def _show_quality(quality: Quality, terminal: Terminal) -> None:
    if terminal.json:
        _print(json.dumps(asdict(quality), indent=1))
        return
    estimate = quality.estimate
    _tell(
        f"{quality.metric} {estimate.value:.4f} [{estimate.low:.4f}, {estimate.high:.4f}] "
        f"on {_chosen_text(quality)}",
        terminal,
    )
    for name, examples, value in quality.slices[:WORST_SLICES]:
        _tell(f"  {name}: {value:.4f} on {examples}", terminal)
    better = len(quality.slices) - WORST_SLICES
    if better > 0:
        _tell(f"  {better} more are no worse; --json lists all", terminal)
    if quality.few:
        listed = ", ".join(f"{name} ({count})" for name, count in quality.few[:FEW_SHOWN])
        more = ", ..." if len(quality.few) > FEW_SHOWN else ""
        _tell(f"  {len(quality.few)} with too few examples to tell: {listed}{more}", terminal)
    for note in quality.notes:
        _tell(f"  {note}", terminal)


def _chosen_text(quality: Quality) -> str:
    """``all 960 examples``, or ``240 of 960 examples, held out when it was made``."""
    whole = quality.examples == quality.of
    count = f"all {quality.of}" if whole else f"{quality.examples} of {quality.of}"
    return f"{count} examples" + (f": {quality.chosen}" if quality.chosen else "")


def _warn_of_length(measured: Benchmarked, asked: int | None) -> None:
    """Say so where inputs are not of the length that was asked for."""
    from flyweight.run.artifact import read_manifest

    shapes = measured.latency.input_shapes
    used = {
        shapes[spec.name][axis]
        for spec in read_manifest(measured.path).inputs
        for axis, size in enumerate(spec.shape)
        if axis > 0 and isinstance(size, str)
    }
    if asked is None or used == {asked}:
        return
    if used:
        _warn(f"{measured.path} was timed at length {max(used)}, all that its tokenizer keeps, not {asked}")
    else:
        _warn(f"no input of {measured.path} varies in length: --length {asked} changes nothing")


def _shapes_text(shapes: Mapping[str, Sequence[int]]) -> str:
    times = "\N{MULTIPLICATION SIGN}"
    return ", ".join(f"{name} {times.join(map(str, shape))}" for name, shape in shapes.items())


def _show_benchmark(measured: Sequence[Benchmarked], terminal: Terminal) -> None:
    from rich.table import Table

    from flyweight.report.wording import bytes_text, speedup_text, time_text

    if terminal.json:
        _print(json.dumps([asdict(one) | {"path": str(one.path)} for one in measured], indent=1))
        return
    if terminal.quiet:
        return
    shapes = dict.fromkeys(_shapes_text(one.latency.input_shapes) for one in measured)
    table = Table(
        *("artifact", "size", "p50", "p95", "peak memory", "against the last"),
        caption=f"inputs of one call: {'; '.join(shapes)}",
    )
    for one in measured:
        table.add_row(
            str(one.path),
            bytes_text(one.storage_bytes),
            time_text(one.latency.p50_s),
            time_text(one.latency.p95_s),
            "not told" if one.peak_rss_bytes is None else bytes_text(one.peak_rss_bytes),
            "" if one.speedup is None else speedup_text(one.speedup),
        )
    Console().print(table)


def _print_rows(answers: Mapping[str, Sequence[object]]) -> None:
    from flyweight.run.answers import json_lines

    sys.stdout.write(json_lines(answers))


def _tell(text: str, terminal: Terminal) -> None:
    if not (terminal.quiet or terminal.json):
        _print(text)


def _warn(text: str) -> None:
    sys.stderr.write(f"flyweight: {' '.join(text.split())}\n")


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
