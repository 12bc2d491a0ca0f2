"""The list of what is public, so that it changes only on purpose, and its documentation."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import flyweight
from flyweight.catalog import CATALOG
from flyweight.core import protocols

PUBLIC = [
    "Artifact",
    "Budget",
    "Cost",
    "Decision",
    "Examples",
    "Model",
    "Plan",
    "Preprocessing",
    "Report",
    "Settings",
    "Splits",
    "Stage",
    "StreamSettings",
    "compress",
    "load_streamed",
    "open_artifact",
    "stream",
]
PROTOCOLS = {
    "Device": ["estimate", "name"],
    "Exporter": ["export", "format", "lower", "model_file"],
    "Runtime": ["formats", "load", "name"],
    "Task": ["answers", "class_targets", "metric", "metric_name", "name", "queries", "score"],
    "Technique": ["apply", "name", "predict", "propose", "stage"],
}
SOURCE = Path(flyweight.__file__).parent


def test_the_public_names_are_these() -> None:
    assert flyweight.__all__ == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_leads_to_documented_code(name: str) -> None:
    assert inspect.getdoc(getattr(flyweight, name))


def test_completion_offers_the_public_names_and_the_version() -> None:
    assert dir(flyweight) == sorted([*PUBLIC, "__version__"])


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'flyweight' has no attribute 'quantize'"):
        flyweight.quantize  # noqa: B018 - the access is what is tested


def test_the_extension_api_is_these_protocols_and_members() -> None:
    found = {
        name: sorted(member for member in vars(protocol) if not member.startswith("_"))
        for name, protocol in vars(protocols).items()
        if getattr(protocol, "_is_protocol", False) and protocol.__module__ == protocols.__name__
    }
    assert found == PROTOCOLS


@pytest.mark.parametrize(
    ("protocol", "member"), [(p, m) for p, members in PROTOCOLS.items() for m in members]
)
def test_a_protocol_member_is_documented(protocol: str, member: str) -> None:
    assert inspect.getdoc(inspect.getattr_static(getattr(protocols, protocol), member))


@pytest.mark.parametrize("group", ["technique", "exporter", "runtime", "task"])
def test_a_catalogued_class_documents_itself_and_its_methods(group: str) -> None:
    for target in CATALOG[group].values():  # type: ignore[index]
        module, _, name = target.partition(":")
        cls = getattr(__import__(module, fromlist=[name]), name)
        public = [m for m, value in vars(cls).items() if not m.startswith("_") and inspect.isfunction(value)]
        assert inspect.getdoc(cls), target
        assert all(inspect.getdoc(getattr(cls, member)) for member in public), target


def test_every_algorithm_has_a_file_of_its_own_and_is_in_the_catalog() -> None:
    catalogued = {target.partition(":")[0] for target in CATALOG["technique"].values()}
    files = {f"flyweight.techniques.{path.stem}" for path in (SOURCE / "techniques").glob("[!_]*.py")}
    assert files == catalogued


def test_the_version_is_that_of_the_installed_package() -> None:
    from importlib.metadata import version

    assert flyweight.__version__ == version("flyweight")
