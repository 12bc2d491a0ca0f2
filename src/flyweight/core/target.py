"""Where a model will run: a device, reached through a file format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from flyweight.core.cost import Cost
from flyweight.core.layer import ModelProfile
from flyweight.core.protocols import Device, Exporter


@final
@dataclass(frozen=True)
class Target:
    """Costs are estimated after lowering, so that a plan is never paid for what the file cannot hold."""

    device: Device
    exporter: Exporter

    @property
    def name(self) -> str:
        """``device/format``."""
        return f"{self.device.name}/{self.exporter.format}"

    def estimate(self, profile: ModelProfile) -> Cost:
        """The device's price of the profile as the file format will hold it."""
        return self.device.estimate(self.exporter.lower(profile))
