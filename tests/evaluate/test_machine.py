from __future__ import annotations

import json
import platform

import numpy as np

from flyweight.evaluate.machine import machine, versions


def test_machine_has_no_host_name() -> None:
    told = machine()
    assert platform.node() not in json.dumps(dict(told))
    assert int(told["cores"]) >= 1


def test_versions_hold_the_packages_that_are_installed() -> None:
    assert versions()["numpy"] == np.__version__
