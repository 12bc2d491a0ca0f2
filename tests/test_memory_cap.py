import subprocess
import sys

import pytest

from flyweight.errors import InputError
from flyweight.memory_cap import memory_cap

ALLOCATES = """
import sys
from flyweight.memory_cap import memory_cap
{first}
def data():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmData")).split()[1]) * 1024
with memory_cap(data() + 64e6, "--max-memory"):
    {little}
    print("little")
    {much}
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the bound is of Linux")
@pytest.mark.parametrize(
    ("first", "make"),
    [("", "bytearray({n})"), ("import torch", "torch.zeros({n}, dtype=torch.uint8)")],
    ids=["python", "torch"],
)
def test_what_goes_beyond_the_bound_is_one_sentence(first: str, make: str):
    code = ALLOCATES.format(first=first, little=make.format(n=10**6), much=make.format(n=10**8))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "little\n"
    assert "InputError: " in done.stderr
    assert "MB of memory (--max-memory) do not suffice" in done.stderr.splitlines()[-1]


def test_without_a_bound_nothing_changes():
    with memory_cap(None, "--max-memory"):
        assert len(bytearray(1000)) == 1000


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="something else"), memory_cap(2.0**40, "--max-memory"):
        raise RuntimeError("something else")


def test_the_bound_is_lifted_afterwards():
    with memory_cap(2.0**33, "--max-memory"):
        pass
    import resource

    assert resource.getrlimit(resource.RLIMIT_DATA)[0] != 2**33


def test_the_sentence_names_the_flag():
    with (
        pytest.raises(InputError, match=r"\(--max-memory\) do not suffice"),
        memory_cap(2.0**40, "--max-memory"),
    ):
        raise MemoryError
