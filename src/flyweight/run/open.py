"""From the name of a runtime to the runtime."""

from __future__ import annotations

from flyweight import catalog
from flyweight.core.protocols import Runtime
from flyweight.errors import UnsupportedError


def open_runtime(name: str, form: str) -> Runtime:
    """The runtime called ``name``, which runs models of the format ``form``.

    Raises:
        UnsupportedError: It does not.
        ValueError: No runtime has that name.
    """
    runtime: Runtime = catalog.get("runtime", name)()
    if form not in runtime.formats:
        raise UnsupportedError(f"runtime {name} does not run {form} files, only {', '.join(runtime.formats)}")
    return runtime
