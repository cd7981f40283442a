"""The strategies of ShrinkBench and DeepCuts under the names that they were released with."""

from __future__ import annotations

import dataclasses
from typing import Any

from tlprune.choices import choice
from tlprune.methods.criteria import (
    Criterion,
    GradCAM,
    Magnitude,
    MagnitudeActivation,
    MagnitudeGradient,
    RandomCriterion,
    SmoothGrad,
    SmoothGradCAM,
)
from tlprune.methods.saliency import Saliency

_CRITERIA: dict[str, Criterion] = {
    "GlobalMagWeight": Magnitude(),
    "LayerMagWeight": Magnitude(),
    "GlobalMagGrad": MagnitudeGradient(),
    "LayerMagGrad": MagnitudeGradient(),
    "GlobalMagAct": MagnitudeActivation(),
    "LayerMagAct": MagnitudeActivation(),
    "GlobalGradCAM": GradCAM(),
    "LayerGradCAM": GradCAM(),
    "GlobalGradCAMShift": GradCAM(shift=10.0, shifted="product"),
    "LayerGradCAMShift": GradCAM(shift=10.0),
    "LayerSmoothGrad": SmoothGrad(),
    "GlobalSmoothGradCAM": SmoothGradCAM(),
    "LayerSmoothGradCAM": SmoothGradCAM(),
    "LayerSmoothGradCAMShift": SmoothGradCAM(shift=10.0),
    "RandomPruning": RandomCriterion(),
}
STRATEGIES: dict[str, Saliency] = {
    name: Saliency(criterion=criterion, scope="global" if name.startswith("Global") else "layer")
    for name, criterion in _CRITERIA.items()
}


def saliency_strategy(name: str, **settings: Any) -> Saliency:
    """The method that a name of ShrinkBench or DeepCuts stands for.

    What the released code does otherwise, on purpose or not, and what is done here:

    - ``GlobalGradCAMShift`` adds 10 to the whole product, ``|10 + w g a|``, not to the activation; so it is here. The
      other ``Shift`` strategies add it to the activation.
    - Padding counts in the released mean activations; here it does not.
    - A weight is kept there if its score is no less than a quantile, so ties may keep more; here the count is exact,
      and of equal scores the first are kept.
    - ``RandomPruning`` keeps each weight with the same probability; here an exact share of each tensor.
    - ``MagGrad`` and ``MagAct`` look at one batch there; give ``batches=1`` for that.

    Args:
        name: such as ``"LayerGradCAMShift"``.
        settings: fields of :class:`~tlprune.Saliency` that are to be others.

    Raises:
        ValueError: there is no such strategy, or a setting is out of range.

    Source: ShrinkBench (Blalock et al., MLSys 2020) and DeepCuts on it.

    Example:
        >>> method = saliency_strategy("GlobalGradCAM", compression=2)
        >>> method.criterion, method.scope, method.compression
        (GradCAM(shift=0.0, shifted='activation'), 'global', 2)
        >>> saliency_strategy("LayerGradCam")
        Traceback (most recent call last):
            ...
        ValueError: There is no strategy 'LayerGradCam'; there are GlobalMagWeight, LayerMagWeight, GlobalMagGrad, \
LayerMagGrad, GlobalMagAct, LayerMagAct, GlobalGradCAM, LayerGradCAM, GlobalGradCAMShift, LayerGradCAMShift, \
LayerSmoothGrad, GlobalSmoothGradCAM, LayerSmoothGradCAM, LayerSmoothGradCAMShift, RandomPruning. Did you mean \
LayerGradCAM?
    """
    return dataclasses.replace(choice("strategy", name, STRATEGIES), **settings)
