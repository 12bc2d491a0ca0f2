"""Batches: every example once an epoch, in an order that depends on the seed and the epoch alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from flyweight.data.examples import Examples
from flyweight.data.preprocessing import Preprocessing
from flyweight.errors import InputError
from flyweight.recover.augmentation import augmentation, flipped, shifted
from flyweight.recover.batches import Batches, ExampleBatches

EXAMPLES = Examples(
    {"x": np.arange(10, dtype=np.float32)[:, None]}, np.arange(10) % 3, classes=("a", "b", "c")
)


def batches(size: int = 3, seed: int = 0, **changes: object) -> ExampleBatches:
    return ExampleBatches(examples=EXAMPLES, preprocessing=Preprocessing(), size=size, seed=seed, **changes)


def epoch_of(source: ExampleBatches, epoch: int) -> list[float]:
    return [v for i in range(len(source)) for v in source.at(epoch, i).inputs["x"][:, 0].tolist()]


def images(count: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 6, 5, generator=torch.Generator().manual_seed(seed))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_an_epoch_has_each_example_at_most_once():
    source = batches()
    assert isinstance(source, Batches)
    assert len(source) == 3
    assert len(set(epoch_of(source, 0))) == 9


def test_epochs_differ_and_places_do_not():
    source = batches()
    assert epoch_of(source, 0) != epoch_of(source, 1)
    assert epoch_of(source, 1) == epoch_of(batches(), 1)
    assert epoch_of(source, 0) != epoch_of(batches(seed=1), 0)


def test_labels_go_with_their_examples():
    batch = batches().at(0, 1)
    assert torch.equal(batch.inputs["x"][:, 0].long() % 3, batch.labels)


def test_unshuffled_batches_are_all_examples_in_their_order():
    source = batches(size=4, shuffled=False)
    assert epoch_of(source, 0) == list(range(10))
    assert len(source.at(0, 2).inputs["x"]) == 2


def test_fewer_examples_than_a_batch_make_one():
    source = batches(size=64)
    assert len(source) == 1
    assert sorted(epoch_of(source, 0)) == list(range(10))


def test_targets_that_are_no_classes_are_no_labels():
    examples = Examples({"x": np.ones((4, 1), np.float32)}, np.ones(4))
    source = ExampleBatches(examples=examples, preprocessing=Preprocessing(), size=2)
    assert source.at(0, 0).labels is None


def test_nothing_is_augmented_unless_it_is_declared():
    assert augmentation({}) is None
    assert augmentation({"crop": 0, "flip": False}) is None


def test_images_are_mirrored_or_left_as_they_are():
    x = images(64)
    found = flipped(x, generator())
    mirrored = [torch.equal(a, b.flip(2)) for a, b in zip(found, x, strict=True)]
    same = [torch.equal(a, b) for a, b in zip(found, x, strict=True)]
    assert all(a != b for a, b in zip(mirrored, same, strict=True))
    assert 10 < sum(mirrored) < 54


def test_images_are_shifted_by_whole_pixels():
    x = images(64)
    found = shifted(x, 2, generator())
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2), mode="replicate")
    shifts = set()
    for index in range(64):
        places = [
            (down, right)
            for down in range(5)
            for right in range(5)
            if torch.equal(padded[index, :, down : down + 6, right : right + 5], found[index])
        ]
        assert len(places) == 1
        shifts.add(places[0])
    assert len(shifts) > 12


def test_augmentation_is_decided_by_its_place():
    augment = augmentation({"crop": 2, "flip": True})
    assert augment is not None
    inputs = {"image": images(), "other": torch.arange(4)}
    one, other = augment(inputs, generator(1)), augment(inputs, generator(1))
    assert torch.equal(one["image"], other["image"])
    assert not torch.equal(one["image"], augment(inputs, generator(2))["image"])
    assert one["other"] is inputs["other"]


def test_augmentation_of_what_is_no_image_is_refused():
    augment = augmentation({"flip": True})
    assert augment is not None
    with pytest.raises(InputError, match="augment is for images"):
        augment({"x": torch.ones(2, 3)}, generator())
