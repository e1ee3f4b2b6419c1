"""Score a stored set, ours or anyone's, under the protocol; no generator has to be trained."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from itgan.data import READ, Dataset, load_dataset
from itgan.errors import InputError
from itgan.evaluation import evaluate, summarize
from itgan.file_configs import ScoreConfig
from itgan.foreign import read_set
from itgan.generators import shipped
from itgan.latents import check_images
from itgan.networks import build_network
from itgan.sources import PixelSet, SyntheticSet


def find_set(path: str) -> Path:
    """The file of a synthetic set, given by its path or a shipped name.

    Raises:
        InputError: no such file or name.
    """
    names = shipped("synthetic")
    if not Path(path).exists() and path not in names:
        raise InputError(f"{path}: no such file, and not a shipped set: {', '.join(names)}")
    return names.get(path, Path(path))


def load_set(path: str, device: torch.device | str = "cpu") -> SyntheticSet:
    """A synthetic set from a file, or a shipped one by name.

    Raises:
        InputError: no such file or name, or not a synthetic set.
    """
    return SyntheticSet.load(find_set(path), device)


def score(synthetic: SyntheticSet, config: ScoreConfig) -> list[dict[str, Any]]:
    """Train classifiers on a set; returns rows as in ``results.json``, one for each network.

    Raises:
        InputError: the set names no data set, or does not fit the test images; a network is
            unknown, or does not fit them either.
    """
    for name in ("mean", "entry", "logits"):
        if getattr(config, name) != ScoreConfig.model_fields[name].default:
            raise InputError(f"{name}: for sets of other formats; a synthetic set needs none")
    spec = config.dataset or synthetic.about.get("dataset")
    if not spec:
        raise InputError("score: the set names no data set; give --dataset")
    data = load_dataset(spec, **_read(config, synthetic.about))
    check_images(synthetic.generator, data.test)
    return _score(synthetic, data, config)


def score_foreign(path: Path, config: ScoreConfig) -> list[dict[str, Any]]:
    """Train classifiers on anyone's set (``foreign.read_set``); rows as in ``results.json``.

    Raises:
        InputError: no data set is named, or the set is unreadable or does not fit it.
    """
    if not config.dataset:
        raise InputError(f"score: {path} names no data set; give --dataset")
    data = load_dataset(config.dataset, **_read(config))
    return _score(read_set(path, data, config), data, config)


def _read(config: ScoreConfig, about: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """How the data set is read: as asked for, or as the set says that it was."""
    told = ((field, about.get(field)) for field in READ)
    known = {field: value for field, value in told if isinstance(value, READ[field])}
    return {field: getattr(config, field) or known.get(field) for field in READ}


def _score(
    source: SyntheticSet | PixelSet, data: Dataset, config: ScoreConfig
) -> list[dict[str, Any]]:
    trials = []
    networks = config.networks or (config.evaluation.network,)
    for network in networks:  # refused before the first of them is trained
        build_network(network, data.test.image_shape, data.num_classes)
    for network in networks:
        trials += evaluate(
            source,
            data.test,
            config.evaluation.model_copy(update={"network": network}),
            config.network_seeds,
            config.device,
            dataset=data.name,
            latents_per_class=len(source) // data.num_classes,
        )
    return summarize(trials)
