"""Binary and ternary weights: signs, or signs and zeros, with one scale a row or group of a row.

Source: Rastegari et al. 2016, arXiv:1603.05279, section 3.1 (binary: the scale is the mean magnitude);
Courbariaux et al. 2015, arXiv:1511.00363, section 2.2 (signs alone); Li et al. 2016, arXiv:1605.04711,
section 2.2 (ternary: magnitudes below 0.7 of their mean become 0).
Differs: ternary scales are of a row or group, not of the whole layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Bool, Float, Int8
from torch import Tensor, nn

from flyweight.tensors.activation import straight_through
from flyweight.tensors.affine import SCALE_BITS, as_matrix
from flyweight.tensors.encoded import EncodedWeight
from flyweight.tensors.grouping import check_group_size, group_count, grouped, masked_mean, ungrouped
from flyweight.tensors.stored import Stored

Levels = Literal["binary", "ternary"]
TERNARY_THRESHOLD = 0.7  # of the mean magnitude; Li et al. 2016, equation 6


@final
@dataclass(frozen=True, kw_only=True)
class BinaryForm:
    """How a weight is stored.

    Attributes:
        levels: ``binary`` is 1 bit a weight. ``ternary`` is 2; three values at random carry 1.58, which an
            entropy coder may reach.
        scaled: Store scales; without them binary weights are -1 and 1.
        group_size: Columns of a row that share a scale, the last group may be shorter; 0 is the whole row.
    """

    levels: Levels = "binary"
    scaled: bool = True
    group_size: int = 0

    def __post_init__(self) -> None:
        if self.group_size != 0:
            check_group_size(self.group_size)
        if not self.scaled and (self.levels != "binary" or self.group_size):
            raise ValueError(
                "bare signs have no scales: with method=sign weights are binary, by channel and without "
                "groups; for groups use method=binary"
            )

    @property
    def code_bits(self) -> int:
        """Of one weight."""
        return 1 if self.levels == "binary" else 2

    def stored_bits(self, rows: int, columns: int, *, kept: int | None = None) -> int:
        """Bits of codes, scales and, where only ``kept`` weights are not removed, a mask."""
        codes, mask = (rows * columns, 0) if kept is None else (kept, rows * columns)
        scales = rows * group_count(columns, self.group_size) if self.scaled else 0
        return codes * self.code_bits + scales * SCALE_BITS + mask


@final
@dataclass(frozen=True)
class Signs:
    """The codes of binary weights, as `flyweight.tensors.rounding` asks for them."""

    symmetric: bool = True
    lowest: int = -1
    highest: int = 1

    def quantize(
        self, values: Float[Tensor, "*shape"], scale: Tensor, zero_point: Tensor
    ) -> Float[Tensor, "*shape"]:
        """-1 or 1; scales are positive and zero points 0, and both play no part."""
        return torch.where(values < 0, -1.0, 1.0)

    def whole(self, steps: Tensor) -> Tensor:
        """-1 or 1 in place of each."""
        return torch.where(steps < 0, -1.0, 1.0)


SIGNS = Signs()


@final
@dataclass(frozen=True, eq=False)
class BinaryWeight(Stored):
    """``w = signs * scale``.

    Attributes:
        signs: (rows, columns), -1 or 1; 0 where a ternary weight is 0 or a weight was removed.
        scale: (rows, groups), at least 0; ones where the form has none.
        shape: Of the decoded weight; rows is its first axis.
        mask: (rows, columns), True where a weight is kept; None where all are.
    """

    signs: Int8[Tensor, "rows columns"]
    scale: Float[Tensor, "rows groups"]
    form: BinaryForm
    shape: tuple[int, ...]
    mask: Bool[Tensor, "rows columns"] | None = None

    def decode(self) -> Tensor:
        """The weight as float32, of ``shape``."""
        groups = grouped(self.signs.float(), self.form.group_size) * self.scale[..., None]
        return ungrouped(groups, self.signs.shape[1]).reshape(self.shape)


def encode_binary(
    weight: Tensor,
    form: BinaryForm,
    mask: Bool[Tensor, " ..."] | None = None,
    *,
    scale: Float[Tensor, "rows groups"] | None = None,
) -> BinaryWeight:
    """The signs of a weight (0 counts as positive), and the scales that its magnitudes ask for.

    Args:
        weight: (rows, ...); columns are the other axes, flattened.
        form: What to store.
        mask: Of the weight's shape; weights where it is False become 0 and have no part in the scale.
        scale: Keep these instead; weights then go to the nearest of -scale, (0,) and scale.

    Raises:
        ValueError: The weight is empty or not finite.
    """
    matrix, flat_mask = as_matrix(weight, mask)
    groups = grouped(matrix, form.group_size)
    kept = grouped(torch.ones_like(matrix) if flat_mask is None else flat_mask.float(), form.group_size) > 0
    large = kept if form.levels == "binary" else kept & (groups.abs() > _threshold(groups, kept, scale))
    if not form.scaled:
        scale = torch.ones(groups.shape[:2])
    elif scale is None:
        scale = masked_mean(groups.abs(), large)
    signs = ungrouped(torch.where(groups < 0, -1.0, 1.0) * large, matrix.shape[1])
    return BinaryWeight(signs.to(torch.int8), scale, form, tuple(weight.shape), flat_mask)


def _threshold(
    groups: Float[Tensor, "rows groups size"],
    kept: Bool[Tensor, "rows groups size"],
    scale: Float[Tensor, "rows groups"] | None,
) -> Float[Tensor, "rows groups 1"]:
    """Above which a ternary weight is not 0: the paper's, or the middle of 0 and a given scale."""
    threshold = TERNARY_THRESHOLD * masked_mean(groups.abs(), kept) if scale is None else scale / 2
    return threshold[..., None]


@final
class BinaryEncoder(nn.Module):
    """Encodes as `encode_binary` does, keeping the mask of the stage before; scales may be learned.

    Source: Esser et al. 2020, arXiv:1902.08153, section 2, for the gradient of a learned ternary scale.
    """

    scale: Tensor | None

    def __init__(self, form: BinaryForm, scale: Float[Tensor, "rows groups"] | None = None) -> None:
        super().__init__()
        self.form = form
        self.register_buffer("scale", scale)

    def forward(self, weight: Tensor, before: EncodedWeight | None = None) -> BinaryWeight:
        """The weight as it is stored."""
        mask = None if before is None else before.mask
        scale = None if self.scale is None else self.scale.detach().clamp_min(0)
        return encode_binary(weight, self.form, mask, scale=scale)

    def learn_grid(self, weight: Tensor, before: EncodedWeight | None = None) -> tuple[nn.Parameter, ...]:
        """Make the scales a parameter that starts where ``weight`` puts them, and return it."""
        if not self.form.scaled:
            return ()
        start = self(weight, before).scale
        del self.scale
        self.scale = nn.Parameter(start.clone())
        return (self.scale,)

    def projected(
        self, weight: Float[Tensor, " *shape"], before: EncodedWeight | None = None
    ) -> Float[Tensor, " *shape"]:
        """The decoded weight, with gradients to the weight, and to the scales where they are learned."""
        stored = self(weight, before)
        if not isinstance(self.scale, nn.Parameter):
            return straight_through(weight, stored.decode().to(weight.dtype))
        columns, size = stored.signs.shape[1], self.form.group_size
        scale = self.scale.clamp_min(torch.finfo(torch.float32).tiny)
        damping = (weight.numel() / scale.numel()) ** -0.5
        scale = (scale * damping + (scale * (1 - damping)).detach())[..., None]
        # The sign of a weight does not depend on the scale; whether it is 0 does.
        step = scale.detach() if self.form.levels == "binary" else scale
        steps = grouped(weight.reshape(-1, columns).float(), size) / step
        signs = grouped(stored.signs.to(steps.dtype), size)
        decoded = straight_through(steps.clamp(-1, 1), signs) * scale
        decoded = ungrouped(decoded, columns)
        decoded = decoded if stored.mask is None else decoded * stored.mask
        return decoded.reshape(weight.shape)
