from __future__ import annotations

from flyweight.core.analysis import RELATIVE, Analysis, LayerErrors, LayerLoss, Wider

NO_ERRORS = LayerErrors(weight=None, output_alone=None, output=None)


def loss(name: str, damage: float | None, wider: float | None = None) -> LayerLoss:
    return LayerLoss(
        name=name,
        bits=4.0,
        errors=NO_ERRORS,
        histogram=None,
        damage=damage,
        wider=None if wider is None else Wider(bits=8, more_bytes=1.0, damage=wider),
    )


def test_layers_are_ranked_by_damage_and_those_not_tried_come_last() -> None:
    layers = (loss("none", None), loss("small", 0.1), loss("large", 0.5), loss("equal", 0.1))
    analysis = Analysis(unit=RELATIVE, examples=8, trial_examples=8, damage=0.6, output=None, layers=layers)
    assert [layer.name for layer in analysis.ranked] == ["large", "small", "equal", "none"]


def test_the_gain_is_what_one_width_higher_takes_off() -> None:
    assert loss("a", 0.5, 0.125).gain == 0.375
    assert loss("a", 0.5).gain is None
    assert loss("a", None, 0.1).gain is None
