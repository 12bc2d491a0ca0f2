"""Losses against the formulas of their source, and against shapes that would broadcast."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from flyweight.recover.losses import (
    Embeddings,
    SoftLabels,
    Values,
    alike,
    distillation_for,
    divergence,
    soft_labels,
    token_labels,
)


def logits(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_labels_are_the_divergence_of_softened_probabilities(temperature: float):
    student, teacher = logits(5, 4), logits(5, 4, seed=1)
    p = [[math.exp(z / temperature) for z in row] for row in teacher.tolist()]
    q = [[math.exp(z / temperature) for z in row] for row in student.tolist()]
    p, q = [[[v / sum(row) for v in row] for row in rows] for rows in (p, q)]
    rows = [sum(a * math.log(a / b) for a, b in zip(*pair, strict=True)) for pair in zip(p, q, strict=True)]
    wanted = temperature**2 * sum(rows) / len(rows)
    assert float(soft_labels(student, teacher, temperature)) == pytest.approx(wanted, rel=1e-5)


def test_gradients_at_high_temperature_are_those_of_matched_logits():
    # Hinton et al. 2015, equation 4: T² times the gradient tends to (student - teacher) / classes, for logits
    # of mean 0
    student, teacher = logits(3, 4), logits(3, 4, seed=1)
    student -= student.mean(1, keepdim=True)
    teacher -= teacher.mean(1, keepdim=True)
    student.requires_grad_()
    soft_labels(student, teacher, 1000.0).backward()
    assert torch.allclose(student.grad, (student.detach() - teacher) / 4 / 3, atol=1e-3)


def test_a_masked_class_counts_nothing():
    student, teacher = logits(2, 3), logits(2, 3, seed=1)
    masked = torch.tensor([False, False, True])
    both = [z.masked_fill(masked, -math.inf) for z in (student, teacher)]
    assert torch.allclose(divergence(*both), divergence(student[:, :2], teacher[:, :2]))


def test_true_labels_have_the_part_they_are_given():
    student, teacher, labels = logits(6, 3), logits(6, 3, seed=1), torch.tensor([0, 1, 2, 0, 1, 2])
    found = SoftLabels(2.0, 0.3)(student, teacher, {}, labels)
    wanted = 0.7 * soft_labels(student, teacher, 2.0) + 0.3 * F.cross_entropy(student, labels)
    assert torch.allclose(found, wanted)
    assert torch.equal(SoftLabels(2.0, 0.3)(student, teacher, {}, None), soft_labels(student, teacher, 2.0))


def test_padded_tokens_count_nothing():
    student, teacher = logits(2, 5, 7), logits(2, 5, 7, seed=1)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    found = SoftLabels(1.0)(student, teacher, {"attention_mask": mask}, None)
    student[0, 3:] = 100 * logits(2, 7, seed=2)
    assert torch.equal(found, SoftLabels(1.0)(student, teacher, {"attention_mask": mask}, None))
    kept = torch.cat([student[0, :3], student[1]]), torch.cat([teacher[0, :3], teacher[1]])
    assert torch.allclose(found, soft_labels(*kept, 1.0))


def test_tokens_without_a_mask_all_count():
    student, teacher = logits(2, 5, 7), logits(2, 5, 7, seed=1)
    flat = soft_labels(student.flatten(0, 1), teacher.flatten(0, 1), 1.0)
    assert torch.allclose(token_labels(student, teacher, None, 1.0), flat)


def test_embeddings_of_the_right_direction_still_lack_their_length():
    teacher = logits(4, 8)
    assert float(alike(teacher, teacher)) == pytest.approx(0.0, abs=1e-6)
    assert float(alike(2 * teacher, teacher)) == pytest.approx(1.0, rel=1e-5)  # cosine 1, error of that size
    assert float(alike(-teacher, teacher)) == pytest.approx(2.0 + 4.0, rel=1e-5)


def test_the_loss_of_values_is_the_part_of_their_variance_that_is_missed():
    teacher = logits(200, 2)
    loss = distillation_for("regression", teacher, temperature=4.0, label_weight=0.0)
    mean = teacher.mean().expand(200, 2)
    assert float(loss(mean, teacher, {}, None)) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("loss", [SoftLabels(4.0), Embeddings(), Values(1.0)])
def test_a_student_that_is_the_teacher_has_no_loss(loss):
    outputs = logits(4, 8)
    assert float(loss(outputs, outputs, {}, None)) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("loss", [SoftLabels(4.0), Embeddings(), Values(1.0)])
def test_shapes_that_would_broadcast_are_refused(loss):
    with pytest.raises(Exception, match="teacher"):
        loss(logits(4, 3), logits(1, 3), {}, None)


def test_tokens_are_learned_from_as_they_are_and_classes_softened():
    of_classes = distillation_for("classification", logits(4, 3), label_weight=0.0)
    of_tokens = distillation_for("language_model", logits(4, 3)[None], label_weight=0.0)
    assert (of_classes, of_tokens) == (SoftLabels(4.0), SoftLabels(1.0))


@pytest.mark.parametrize(
    ("kind", "loss"), [("logits", SoftLabels), ("embeddings", Embeddings), ("values", Values)]
)
def test_a_task_of_the_users_own_can_tell_what_its_model_puts_out(kind, loss):
    assert isinstance(distillation_for("file.py:metric", logits(4, 3), label_weight=0.0, kind=kind), loss)


def test_probabilities_are_told_from_logits():
    rows = logits(6, 3)
    of_logits = distillation_for("classification", rows, temperature=1.0, label_weight=0.0)
    of_probabilities = distillation_for("classification", rows.softmax(1), temperature=1.0, label_weight=0.0)
    assert (of_logits.probabilities, of_probabilities.probabilities) == (False, True)
    other = logits(6, 3, seed=1)
    found = of_probabilities(rows.softmax(1), other.softmax(1), {}, None)
    assert torch.allclose(found, of_logits(rows, other, {}, None), atol=1e-6)
