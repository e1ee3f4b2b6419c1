"""Score a stored synthetic set under the protocol; no generator has to be trained."""

from pathlib import Path
from typing import Any

from itgan.configs import ScoreConfig
from itgan.data import load_dataset
from itgan.errors import InputError
from itgan.evaluation import evaluate, summarize
from itgan.generators import shipped
from itgan.latents import check_images
from itgan.sources import SyntheticSet


def load_set(path: str) -> SyntheticSet:
    """A synthetic set from a file, or a shipped one by name.

    Raises:
        InputError: no such file or name, or not a synthetic set.
    """
    names = shipped("synthetic")
    if not Path(path).exists() and path not in names:
        raise InputError(f"{path}: no such file, and not a shipped set: {', '.join(names)}")
    return SyntheticSet.load(names.get(path, Path(path)))


def score(synthetic: SyntheticSet, config: ScoreConfig) -> list[dict[str, Any]]:
    """Train classifiers on a set; returns rows as in ``results.json``.

    Raises:
        InputError: the set names no data set, or does not fit the test images.
    """
    spec = config.dataset or synthetic.about.get("dataset")
    if not spec:
        raise InputError("score: the set names no data set; give --dataset")
    data = load_dataset(spec)
    check_images(synthetic.generator, data.test)
    trials = evaluate(
        synthetic,
        data.test,
        config.evaluation,
        config.network_seeds,
        config.device,
        dataset=data.name,
        latents_per_class=len(synthetic) // data.num_classes,
    )
    return summarize(trials)
