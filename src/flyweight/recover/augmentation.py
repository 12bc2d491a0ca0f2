"""Images changed at random before a model learns from them, after preprocessing.

Source: He et al. 2015, arXiv:1512.03385, section 4.2 (shifts by up to 4 pixels, and mirror images).
Differs: what a shift uncovers is filled with the pixels of the edge, as the value of black is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from flyweight.core.plan import Scalar
from flyweight.errors import InputError

Images = Float[Tensor, "batch channels height width"]
Augment = Callable[[Mapping[str, Tensor], torch.Generator], dict[str, Tensor]]


def augmentation(declared: Mapping[str, Scalar]) -> Augment | None:
    """What `TrainingSettings.augment` declares, for a batch of model inputs; None where it is nothing.

    What it gives raises InputError where the model takes no images.
    """
    pixels, mirrors = int(declared.get("crop", 0)), bool(declared.get("flip", False))
    if not pixels and not mirrors:
        return None

    def augment(inputs: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        changed = dict(inputs)
        names = [name for name, value in inputs.items() if value.dim() == 4 and value.is_floating_point()]
        if not names:
            raise InputError("augment is for images, and no input of the model has their four axes")
        for name in names:
            images = flipped(changed[name], generator) if mirrors else changed[name]
            changed[name] = shifted(images, pixels, generator) if pixels else images
        return changed

    return augment


def flipped(images: Images, generator: torch.Generator) -> Images:
    """Every image mirrored left to right with probability one half."""
    chosen = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(chosen[:, None, None, None], images.flip(3), images)


def shifted(images: Images, pixels: int, generator: torch.Generator) -> Images:
    """Every image shifted by up to ``pixels`` along both axes."""
    count, _, height, width = images.shape
    padded = F.pad(images, (pixels,) * 4, mode="replicate")
    down, right = torch.randint(2 * pixels + 1, (2, count, 1), generator=generator)
    rows, columns = down + torch.arange(height), right + torch.arange(width)
    at = torch.arange(count)[:, None, None]
    return padded[at, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
