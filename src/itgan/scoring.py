"""Score a stored synthetic set under the protocol; no training of latents is needed."""

from pathlib import Path
from typing import Any

from pydantic import Field

from itgan.configs import Config, EvaluationConfig, Seeds


class ScoreOptions(Config):
    """How a set is scored."""

    dataset: str | None = Field(
        None, description="data set with the test images (default: the one that the set names)"
    )
    network_seeds: Seeds = Field((0, 1, 2), description="one classifier for each")
    device: str = Field("auto", description="auto, cpu, cuda or mps")
    evaluation: EvaluationConfig = Field(
        EvaluationConfig(updates=200, augmentation="color_crop_cutout_scale_rotate"),
        description="training of the classifiers",
    )


def score(path: str, options: ScoreOptions) -> list[dict[str, Any]]:
    """Train classifiers on a set; returns rows as in ``results.json``.

    Args:
        path: a file, or a shipped name.
        options: data set, seeds, protocol.

    Raises:
        InputError: the file is not a synthetic set, or does not fit the test images.
    """
    from itgan.data import load_dataset
    from itgan.errors import InputError
    from itgan.evaluation import evaluate, summarize
    from itgan.generators import shipped
    from itgan.latents import check_images
    from itgan.sources import SyntheticSet

    names = shipped("synthetic")
    if not Path(path).exists() and path not in names:
        raise InputError(f"{path}: no such file, and not a shipped set: {', '.join(names)}")
    synthetic = SyntheticSet.load(names.get(path, Path(path)))
    spec = options.dataset or synthetic.about.get("dataset")
    if not spec:
        raise InputError(f"{path}: names no data set; give --dataset")
    data = load_dataset(spec)
    check_images(synthetic.generator, data.test)
    return summarize(
        evaluate(
            synthetic,
            data.test,
            options.evaluation,
            options.network_seeds,
            options.device,
            dataset=data.name,
            latents_per_class=len(synthetic) // data.num_classes,
        )
    )
