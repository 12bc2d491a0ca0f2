"""Sums over kernel rows equal those over unfolded images."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from flyweight.measure.kernel_rows import Kernel, KernelRows, output_rows

AXIS = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))  # kernel, stride, dilation


@given(height=AXIS, width=AXIS, more=st.tuples(st.integers(0, 9), st.integers(0, 4)), parts=st.integers(1, 2))
def test_sums_are_those_of_the_unfolded_image(height, width, more, parts: int):
    size, stride, dilation = zip(height, width, strict=True)
    kernel = Kernel(size=size, stride=stride, dilation=dilation, parts=parts)
    shape = [d * (k - 1) + 1 + m for d, k, m in zip(dilation, size, more, strict=True)]
    x = torch.randn(2, 2 * parts, *shape, generator=torch.Generator().manual_seed(0))
    if not kernel.shares_rows(shape[0]):
        return
    places = kernel.places(*shape)
    outputs = torch.randn(2, 3 * parts, *places, generator=torch.Generator().manual_seed(1))
    unfolded = F.unfold(x, size, dilation=dilation, stride=stride)
    rows = unfolded.reshape(2, parts, -1, unfolded.shape[-1]).transpose(0, 1).double()
    ought = outputs.reshape(2, parts, 3, -1).transpose(0, 1).double()
    got = KernelRows(kernel, x)
    assert got.count == 2 * places[0] * places[1]
    torch.testing.assert_close(got.own(), (rows @ rows.mT).sum(1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(got.total(), rows.sum((1, 3)), atol=1e-4, rtol=1e-4)
    wanted = got.wanted(output_rows(outputs, parts))
    torch.testing.assert_close(wanted, (ought @ rows.mT).sum(1), atol=1e-4, rtol=1e-4)


def test_rows_are_shared_by_kernels_that_step_over_none():
    def kernel(size: int, stride: int, dilation: int = 1) -> Kernel:
        return Kernel(size=(size, 3), stride=(stride, 1), dilation=(dilation, 1), parts=1)

    assert kernel(3, 1).shares_rows(5)
    assert not kernel(3, 1).shares_rows(4)  # as many rows at the edges as between them
    assert not kernel(3, 1, dilation=2).shares_rows(9)
    assert not kernel(3, 2).shares_rows(32)
    assert kernel(1, 2).shares_rows(1)
