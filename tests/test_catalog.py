import importlib
from importlib.metadata import EntryPoint

import pytest

from flyweight import catalog
from flyweight.catalog import CATALOG
from flyweight.core.protocols import Exporter, Runtime, Task, Technique

PROTOCOLS = {"technique": Technique, "exporter": Exporter, "runtime": Runtime, "task": Task}
ENTRIES = [(group, name) for group, members in CATALOG.items() for name in members]


@pytest.mark.parametrize(("group", "name"), ENTRIES)
def test_an_entry_fulfils_the_protocol_of_its_group(group: catalog.Group, name: str) -> None:
    assert isinstance(catalog.get(group, name)(), PROTOCOLS[group])


@pytest.mark.parametrize("name", CATALOG["technique"])
def test_a_technique_is_called_what_the_catalog_calls_it(name: str) -> None:
    assert catalog.get("technique", name)().name == name


@pytest.mark.parametrize("name", CATALOG["runtime"])
def test_a_runtime_is_called_what_the_catalog_calls_it(name: str) -> None:
    assert catalog.get("runtime", name)().name == name


@pytest.mark.parametrize("name", CATALOG["task"])
def test_a_task_is_called_what_the_catalog_calls_it(name: str) -> None:
    assert catalog.get("task", name)().name == name


@pytest.mark.parametrize("name", CATALOG["exporter"])
def test_an_exporter_has_the_format_the_catalog_calls_it_by(name: str) -> None:
    assert catalog.get("exporter", name)().format == name


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no technique is called 'melt'; known: .*dynamic_int8, "):
        catalog.get("technique", "melt")


def test_an_installed_package_can_add_a_technique(monkeypatch: pytest.MonkeyPatch) -> None:
    offered = EntryPoint(name="melt", value="collections:OrderedDict", group="flyweight.technique")
    monkeypatch.setattr(catalog, "entry_points", lambda group: [offered] if group == offered.group else [])
    assert "melt" in catalog.names("technique")
    assert "melt" not in catalog.names("task")
    assert catalog.get("technique", "melt") is importlib.import_module("collections").OrderedDict


def test_an_installed_package_cannot_replace_a_built_in_technique(monkeypatch: pytest.MonkeyPatch) -> None:
    offered = EntryPoint(name="static_int8", value="collections:OrderedDict", group="flyweight.technique")
    monkeypatch.setattr(catalog, "entry_points", lambda group: [offered])
    assert catalog.get("technique", "static_int8")().name == "static_int8"
