from dataclasses import dataclass, replace
from pathlib import Path

from flyweight.core.cost import Cost
from flyweight.core.layer import ModelProfile
from flyweight.core.protocols import Device, Exporter
from flyweight.core.target import Target
from flyweight.model import Model


@dataclass(frozen=True)
class PricedByTheByte:
    """A device on which a byte of storage costs a microsecond."""

    name: str = "meter"

    def estimate(self, profile: ModelProfile) -> Cost:
        return Cost(storage_bytes=profile.storage_bytes, latency_s=profile.storage_bytes * 1e-6)


@dataclass(frozen=True)
class AddsAHeader:
    """A format whose graph weighs 100 bytes."""

    format: str = "headed"
    model_file: str = "model.headed"

    def lower(self, profile: ModelProfile) -> ModelProfile:
        return replace(profile, container_bytes=100.0)

    def export(self, model: Model, path: Path) -> None:
        raise NotImplementedError


def test_the_device_prices_what_the_format_holds_not_what_was_planned() -> None:
    profile = ModelProfile(model="net", layers=(), other_bytes=10.0)
    assert Target(PricedByTheByte(), AddsAHeader()).estimate(profile).storage_bytes == 110


def test_a_target_is_named_after_its_device_and_format() -> None:
    assert Target(PricedByTheByte(), AddsAHeader()).name == "meter/headed"


def test_plain_classes_fulfil_the_protocols_without_inheriting() -> None:
    assert isinstance(PricedByTheByte(), Device)
    assert isinstance(AddsAHeader(), Exporter)
