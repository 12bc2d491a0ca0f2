"""Energy from counters laid out as the kernel does, and the estimate by hand."""

import pytest

from flyweight.evaluate.energy import estimate_energy, measure_energy


def domain(root, folder, name, energy, largest=1_000_000):
    path = root / folder
    path.mkdir()
    (path / "name").write_text(name + "\n", encoding="ascii")
    (path / "energy_uj").write_text(f"{energy}\n", encoding="ascii")
    (path / "max_energy_range_uj").write_text(f"{largest}\n", encoding="ascii")
    return path / "energy_uj"


def spend(counter, microjoules, modulus=1_000_001):
    before = int(counter.read_text(encoding="ascii"))
    counter.write_text(str((before + microjoules) % modulus), encoding="ascii")


def test_joules_are_the_mean_of_packages_and_memory_without_the_cores_inside(tmp_path):
    package = domain(tmp_path, "intel-rapl:0", "package-0", 100)
    cores = domain(tmp_path, "intel-rapl:0:0", "core", 100)
    memory = domain(tmp_path, "intel-rapl:0:1", "dram", 100)
    whole = domain(tmp_path, "intel-rapl:1", "psys", 100)

    def call():
        for counter, used in ((package, 70), (memory, 30), (cores, 50), (whole, 500)):
            spend(counter, used)

    energy = measure_energy(call, examples=1, seconds=1e-9, root=tmp_path)
    assert energy is not None
    assert energy.joules == pytest.approx(100e-6)
    assert "dram, package-0" in energy.method


def test_joules_are_those_of_one_example_of_a_batch(tmp_path):
    counter = domain(tmp_path, "intel-rapl:0", "package-0", 100)
    energy = measure_energy(lambda: spend(counter, 80), examples=4, seconds=1e-9, root=tmp_path)
    assert energy is not None
    assert energy.joules == pytest.approx(20e-6)


def test_a_counter_that_wraps_is_counted_on(tmp_path):
    counter = domain(tmp_path, "intel-rapl:0", "package-0", 999_990)
    energy = measure_energy(lambda: spend(counter, 40), examples=1, seconds=1e-9, root=tmp_path)
    assert energy is not None
    assert energy.joules == pytest.approx(40e-6)


def test_without_usable_counters_nothing_is_measured(tmp_path):
    assert measure_energy(lambda: None, examples=1, seconds=1e-9, root=tmp_path) is None
    counter = domain(tmp_path, "intel-rapl:0", "package-0", 5)
    assert measure_energy(lambda: None, examples=1, seconds=1e-9, root=tmp_path) is None  # it stands still
    (counter.parent / "max_energy_range_uj").unlink()
    assert measure_energy(lambda: counter.write_text("1"), examples=1, seconds=1e-9, root=tmp_path) is None
    counter.unlink()
    counter.mkdir()  # cannot be read as a file, whoever runs the test
    assert measure_energy(lambda: None, examples=1, seconds=1e-9, root=tmp_path) is None


@pytest.mark.parametrize(("bits", "picojoules"), [(4, 0.3), (8, 0.3), (16, 1.5), (32, 4.6)])
def test_estimate_is_multiplications_plus_reading_the_weights(bits, picojoules):
    energy = estimate_energy({bits: 1000}, 10)
    assert energy.joules == pytest.approx((1000 * picojoules + 10 * 160) * 1e-12)
    assert "Horowitz 2014" in energy.method


def test_estimate_prices_each_width_on_its_own():
    energy = estimate_energy({8: 1000, 32: 100, 4: 10}, 0)
    assert energy.joules == pytest.approx((1010 * 0.3 + 100 * 4.6) * 1e-12)
    assert "0.3 pJ a 8-bit, 4.6 pJ a 32-bit multiply-accumulate" in energy.method


@pytest.mark.parametrize(("macs", "size", "bits"), [(-1, 0, 8), (0, -1, 8), (0, 0, 0), (0, 0, 64)])
def test_estimate_refuses_what_is_out_of_range(macs, size, bits):
    with pytest.raises(ValueError, match="must be"):
        estimate_energy({bits: macs}, size)
