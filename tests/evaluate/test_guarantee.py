"""What is shipped and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flyweight.core.cost import Budget
from flyweight.core.report import Comparison, Energy, Estimate, Latency, Measurement, PairedTest
from flyweight.evaluate.guarantee import caveats, is_undecided, judge, shortfall


def measured(storage_bytes=1000, p50_s=0.010, peak=None, energy=None, estimate=None):
    return Measurement(
        storage_bytes=storage_bytes,
        files={"model.onnx": storage_bytes},
        parameters=10,
        macs=10,
        latency=Latency(p50_s=p50_s, p95_s=p50_s, samples_s=(p50_s,), input_shapes={"x": (1, 4)}, threads=1),
        peak_rss_bytes=peak,
        energy=energy,
        energy_estimate=estimate,
        quality=Estimate(value=0.9, low=0.8, high=1.0),
    )


def compared(speedup=(1.5, 1.4, 1.6), drop=(0.0, -0.01, 0.01)):
    return Comparison(
        size_ratio=2.0,
        speedup=Estimate(value=speedup[0], low=speedup[1], high=speedup[2]),
        quality_drop=Estimate(value=drop[0], low=drop[1], high=drop[2]),
        test=PairedTest(name="McNemar (exact)", p_value=1.0, lost=0, gained=0),
        agreement=1.0,
        slices=(),
        examples=100,
    )


ORIGINAL, SMALLER = measured(1000), measured(400)
ALLOWED = Budget(quality_drop=0.01)
MEASURED = Energy(joules=2.0, method="RAPL")


def verdict(compressed=SMALLER, comparison=None, budget=ALLOWED):
    return judge(ORIGINAL, compressed, comparison or compared(), budget)


def test_smaller_faster_and_as_good_is_shipped():
    assert verdict() == replace(verdict(), shipped=True, reasons=())


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"compressed": measured(1000)}, "it is not smaller than the original: 1,000 bytes against 1,000"),
        (
            {"budget": Budget(storage_bytes=300.0)},
            "it takes 400 B, 33.3% over the 300 B allowed",
        ),
        (
            {"comparison": compared(speedup=(0.8, 0.7, 0.9))},
            "it is slower than the original: 1.25\N{MULTIPLICATION SIGN} slower [1.11, 1.43]; "
            "--max-latency sets a bound of your own instead",
        ),
        (
            {"budget": Budget(latency_s=0.008)},
            "one call takes 10.0 ms, 25.0% over the 8.00 ms allowed",
        ),
        (
            {"comparison": compared(drop=(0.02, 0.01, 0.03))},
            "quality drops by 0.02 (95 % interval 0.01 to 0.03), 0.01 is allowed",
        ),
        (
            {"compressed": measured(400, peak=500), "budget": Budget(ram_bytes=400.0)},
            "it takes 500 B of memory at its peak, 400 B are allowed",
        ),
        (
            {"budget": Budget(ram_bytes=400.0)},
            "peak memory cannot be measured on this system, so the memory budget is not proven",
        ),
        (
            {"compressed": measured(400, energy=MEASURED), "budget": Budget(energy_j=1.0)},
            "it takes 2 J an example, 1 J are allowed",
        ),
        (
            {"budget": Budget(energy_j=1.0)},
            "energy cannot be measured on this machine, so the energy budget is not proven",
        ),
        (
            {
                "compressed": measured(400, estimate=MEASURED),
                "budget": Budget(energy_j=9.0),
            },
            "energy cannot be measured on this machine, so the energy budget is not proven",
        ),
    ],
)
def test_each_reason_alone_refuses(given, reason):
    found = verdict(**given)
    assert not found.shipped
    assert found.reasons == (reason,)


def test_all_reasons_are_told():
    found = verdict(
        measured(2000),
        compared(speedup=(0.5, 0.4, 0.6), drop=(0.1, 0.05, 0.2)),
        Budget(storage_bytes=100.0, quality_drop=0.0),
    )
    assert len(found.reasons) == 4


def test_noise_alone_does_not_refuse():
    assert verdict(comparison=compared(speedup=(0.97, 0.9, 1.01))).shipped


@pytest.mark.parametrize(
    ("speedup", "undecided"),
    [
        ((0.8, 0.6, 1.1), True),
        ((0.99, 0.985, 0.995), False),
        ((0.9, 0.85, 0.95), False),
        ((1.1, 0.9, 1.3), False),
    ],
)
def test_only_an_interval_that_may_hold_a_slower_file_leaves_it_open(speedup, undecided):
    assert is_undecided(compared(speedup=speedup).speedup) is undecided


def test_two_percent_are_put_down_to_the_machine():
    assert verdict(comparison=compared(speedup=(0.985, 0.981, 0.989))).shipped
    assert not verdict(comparison=compared(speedup=(0.97, 0.965, 0.975))).shipped


def test_speed_below_the_original_that_is_shipped_is_noted():
    (note,) = caveats(compared(speedup=(0.985, 0.97, 0.99)), ALLOWED)
    assert (
        "as far as could be measured: 1.02\N{MULTIPLICATION SIGN} slower [1.01, 1.03], and 2% are put down"
        in note
    )
    (note,) = caveats(compared(speedup=(0.5, 0.4, 0.6)), Budget(latency_s=1.0, quality_drop=0.01))
    assert note == (
        "it is slower than the original: 2.00\N{MULTIPLICATION SIGN} slower [1.67, 2.50], "
        "which the latency asked for allows"
    )
    assert caveats(compared(drop=(0.0, 0.0, 0.0)), ALLOWED) == ()


def test_few_examples_are_noted():
    (note,) = caveats(replace(compared(drop=(0.0, 0.0, 0.0)), examples=12), ALLOWED)
    assert note == "quality was measured on 12 examples only; each counts much"


def test_bound_that_is_missed_by_far_is_told_as_a_multiple():
    assert verdict(budget=Budget(storage_bytes=1.0)).reasons == ("it takes 400 B, 400 times the 1 B allowed",)


def test_drop_that_the_examples_do_not_prove_is_noted():
    (note,) = caveats(compared(drop=(0.005, -0.01, 0.02)), ALLOWED)
    assert "100 examples do not prove it: the 95 % interval reaches 0.02" in note


def test_given_latency_replaces_the_comparison_with_the_original():
    assert verdict(comparison=compared(speedup=(0.5, 0.4, 0.6)), budget=Budget(latency_s=0.02)).shipped


def test_drop_that_is_exactly_allowed_is_shipped():
    assert verdict(comparison=compared(drop=(0.01, 0.0, 0.02))).shipped


def test_without_a_bound_any_drop_is_shipped():
    assert verdict(comparison=compared(drop=(0.5, 0.4, 0.6)), budget=Budget()).shipped


def test_memory_and_energy_within_their_bounds_are_shipped():
    budget = Budget(ram_bytes=500.0, energy_j=2.0)
    assert verdict(measured(400, peak=500, energy=MEASURED), budget=budget).shipped


def test_best_attempt_breaks_fewest_bounds_then_loses_least_then_is_smallest():
    worse = compared(drop=(0.05, 0.0, 0.1))
    attempts = {
        "two reasons": (measured(1200), worse),
        "great drop": (measured(100), compared(drop=(0.5, 0.4, 0.6))),
        "small drop": (measured(400), worse),
        "small drop, smaller": (measured(300), worse),
    }
    order = sorted(attempts, key=lambda name: shortfall(verdict(*attempts[name]), *attempts[name], ALLOWED))
    assert order == ["small drop, smaller", "small drop", "great drop", "two reasons"]
