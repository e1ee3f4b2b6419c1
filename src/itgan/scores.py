"""Scores that make methods comparable, by DD-Ranking's definitions; accuracies lie in [0, 1].

    HLR = acc_real_hard - acc_syn_hard          hard-label recovery: lower is better
    IOR = acc_syn_any - acc_random_any          improvement over as many random real images
    LRS = squash(w IOR - (1 - w) HLR)           label-robust score
    ARS = squash(g (syn_aug - random_aug) + (1 - g) (syn_noaug - random_noaug))
                                                augmentation-robust score
    squash(x) = (e^x - e^-1) / (e - e^-1)       from [-1, 1] to [0, 1]

Each accuracy under ``any`` is that of its own best recipe. The published package feeds percentages
into the exponential, so its figures are others.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from itgan.errors import InputError
from itgan.evaluation import UNAUGMENTED, Trial

Number = float | int
Key = tuple[str, str, bool, str]  # source, variant, augmented, labels


def hard_label_recovery(real_hard: Number, synthetic_hard: Number) -> float:
    """HLR: what training on the synthetic set, with hard labels, loses to all real images.

    Raises:
        InputError: an accuracy is not in [0, 1].
    """
    return _fraction(real_hard) - _fraction(synthetic_hard)


def improvement_over_random(synthetic_any: Number, random_any: Number) -> float:
    """IOR: what the synthetic set gains over random real images, each by its best recipe.

    Raises:
        InputError: an accuracy is not in [0, 1].
    """
    return _fraction(synthetic_any) - _fraction(random_any)


def label_robust_score(hlr: Number, ior: Number, weight: Number = 0.5) -> float:
    """LRS, in [0, 1]; higher is better.

    Raises:
        InputError: a difference is not in [-1, 1], or the weight not in [0, 1].
    """
    w = _fraction(weight)
    return _squash(w * _difference(ior) - (1 - w) * _difference(hlr))


def augmentation_robust_score(
    synthetic_augmented: Number,
    random_augmented: Number,
    synthetic_plain: Number,
    random_plain: Number,
    weight: Number = 0.5,
) -> float:
    """ARS, in [0, 1], of accuracies with augmentation and without; higher is better.

    Raises:
        InputError: an accuracy or the weight is not in [0, 1].
    """
    g = _fraction(weight)
    augmented = improvement_over_random(synthetic_augmented, random_augmented)
    plain = improvement_over_random(synthetic_plain, random_plain)
    return _squash(g * augmented + (1 - g) * plain)


def score_trials(trials: Iterable[Trial]) -> list[dict[str, Any]]:
    """The scores of every source but real images, where the trials that they need are there.

    ``real`` gives acc_real_hard, ``random`` (the rows of the bank) acc_random_any. Every accuracy
    is a mean over trials. A source's recipes are the run's own and, where the run has it, the one
    without augmentation, which ARS needs; of both the better one counts, for every source alike.

    Returns:
        Rows with ``hlr``, ``ior``, ``lrs`` and ``ars`` as fractions, None where trials are
        missing; a source that has neither LRS nor ARS is left out.
    """
    groups: dict[tuple[str, str, int | None], dict[Key, list[float]]] = {}
    whole: dict[tuple[str, str], dict[Key, list[float]]] = {}  # serves every size of a bank
    for trial in trials:
        variant = trial.variant.removesuffix(UNAUGMENTED).strip()
        augmented = not trial.variant.endswith(UNAUGMENTED)
        if trial.source == "real":
            group = whole.setdefault((trial.dataset, trial.network), {})
        else:
            group = groups.setdefault((trial.dataset, trial.network, trial.latents_per_class), {})
        key = (trial.source, variant, augmented, trial.labels)
        group.setdefault(key, []).append(trial.accuracy)
    rows = []
    for (dataset, network, per_class), group in groups.items():
        both = group | whole.get((dataset, network), {})
        means = {key: sum(values) / len(values) for key, values in both.items()}
        for source, variant in dict.fromkeys(key[:2] for key in means):
            if source in ("real", "random"):
                continue
            found = _scores(means, source, variant)
            if found["lrs"] is not None or found["ars"] is not None:
                about = {"dataset": dataset, "network": network, "latents_per_class": per_class}
                rows.append({**about, "source": source, "variant": variant, **found})
    return rows


def _scores(means: Mapping[Key, float], source: str, variant: str) -> dict[str, float | None]:
    def best(name: str, kind: str, *, hard: bool = False) -> float | None:
        values = [
            mean
            for (s, v, _, labels), mean in means.items()
            if (s, v) == (name, kind) and (labels == "hard" or not hard)
        ]
        return max(values, default=None)

    def by(name: str, kind: str, *, augmented: bool) -> float | None:
        values = [m for (s, v, a, _), m in means.items() if (s, v, a) == (name, kind, augmented)]
        return max(values, default=None)

    hlr = _if_all(
        hard_label_recovery, best("real", "", hard=True), best(source, variant, hard=True)
    )
    ior = _if_all(improvement_over_random, best(source, variant), best("random", "same-rows"))
    pairs = [
        by(name, kind, augmented=augmented)
        for augmented in (True, False)
        for name, kind in ((source, variant), ("random", "same-rows"))
    ]
    return {
        "hlr": hlr,
        "ior": ior,
        "lrs": _if_all(label_robust_score, hlr, ior),
        "ars": _if_all(augmentation_robust_score, *pairs),
    }


def _if_all(score: Callable[..., float], *values: float | None) -> float | None:
    return None if None in values else round(score(*values), 6)


def _squash(x: Number) -> float:
    low, high = math.exp(-1), math.exp(1)
    return (math.exp(x) - low) / (high - low)


def _fraction(value: Number) -> float:
    if not 0 <= value <= 1:
        raise InputError(
            f"scores: {value:g} is not in [0, 1]; give accuracies and weights as fractions, not "
            "in percent"
        )
    return float(value)


def _difference(value: Number) -> float:
    if not -1 <= value <= 1:
        raise InputError(
            f"scores: a difference of {value:g} is not in [-1, 1]; give fractions, not percent"
        )
    return float(value)
