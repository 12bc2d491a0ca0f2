from __future__ import annotations

import subprocess
import sys

import pytest

from flyweight.errors import MissingDependency
from flyweight.run.openvino import openvino_module


def test_a_missing_package_is_named_with_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingDependency, match=r"pip install 'flyweight\[openvino\]'"):
        openvino_module()


def test_importing_openvino_does_not_load_its_telemetry() -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    code = (
        "import sys; from flyweight.run.openvino import openvino_module; openvino_module();"
        "assert not [m for m in sys.modules if m.startswith('openvino_telemetry')];"
        "assert 'openvino.tools.ovc.telemetry_stub' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
