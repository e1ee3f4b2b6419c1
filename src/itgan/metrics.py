"""How good a generator is: distances between features of samples and of held-out real images.

    data.train ──────> extractor ─┐
    held-out images ──────────────┴─> features ─┐
    generator ─> samples ─────────────> features ┴─> Fréchet, kernel, precision, recall, …
    generator ─> samples ─> classifiers, scored on the held-out images ─> CAS

The extractor sees no held-out image. The protocol is part of a figure's name, so that two figures
that were measured differently never look alike.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64, Int, UInt8
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance

from itgan import artefacts, distances
from itgan.artefacts import Checkpoint
from itgan.configs import EvaluationConfig
from itgan.data import Dataset, ImageSet
from itgan.devices import pick_device, resolve_precision
from itgan.embedding import NetworkSpec, load_network, save_network, train_extractor
from itgan.errors import InputError
from itgan.evaluation import evaluate, summarize
from itgan.generator_configs import MeasureConfig, MetricsConfig
from itgan.generators import ConditionalGenerator, count_seen, find_generator
from itgan.generators.diffusers import PREFIX
from itgan.latents import check_images
from itgan.pictures import to_uint8
from itgan.progress import say, track
from itgan.randomness import derive, derive_seed
from itgan.sources import FreshSamples

CHUNK = 500  # images, or rows of a distance matrix, at a time
TITLES = {
    "frechet": "Fréchet distance",
    "kernel": "kernel distance",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
}
BALLS: Mapping[str, Callable[[Tensor, Tensor, int], float]] = {
    "precision": distances.precision,
    "recall": distances.recall,
    "density": distances.density,
    "coverage": distances.coverage,
}
INCEPTION = "torch_fidelity.feature_extractor_inceptionv3"
NETWORKS = {"convnet": "ConvNet"}


@dataclass(frozen=True)
class Figure:
    """A measured number.

    Attributes:
        figure: which one, as in ``MetricsConfig.figures``.
        name: what it is, with all of its protocol.
        value: the number; CAS in percent.
        std: over subsets (kernel) or networks (cas, ddof 0), where there are several.
    """

    figure: str
    name: str
    value: float
    std: float | None = None

    def text(self) -> str:
        """The value as tables print it."""
        digits = 1 if self.figure == "cas" else 4
        spread = "" if self.std is None else f" ± {self.std:.{digits}f}"
        return f"{self.value:.{digits}f}{spread}"


@dataclass(frozen=True)
class Features:
    """Where features come from.

    Attributes:
        name: what figures call them; with a hash of the network's weights.
        network: 8-bit images [n, c, h, w] to features [n, d].
        device: where it computes.
    """

    name: str
    network: Callable[[Tensor], Tensor]
    device: torch.device

    @torch.no_grad()
    def of(self, images: UInt8[Tensor, "n c h w"], label: str) -> Float64[Tensor, "n d"]:
        """Features of 8-bit images, in fp64 on the CPU; ``label`` is for the progress bar."""
        starts = range(-(-len(images) // CHUNK))
        chunks = (images[CHUNK * i : CHUNK * (i + 1)] for i in track(starts, f"features: {label}"))
        return torch.cat([self.network(chunk.to(self.device)).cpu().double() for chunk in chunks])


def measure(
    generator: ConditionalGenerator,
    data: Dataset,
    config: MetricsConfig | None = None,
    keep: Path = Path("runs/extractors"),
    device: str = "auto",
) -> list[Figure]:
    """Measure a generator against the validation images, or the test images where there are none.

    Args:
        generator: frozen.
        data: real images; features are learned from ``data.train`` alone.
        config: the protocol.
        keep: directory where the network that features come from is kept, to be trained once.
        device: auto, cpu, cuda or mps.

    Returns:
        One figure for each of ``config.figures``, in that order.

    Raises:
        InputError: the generator does not fit the data, there are too few images, or Inception's
            weights are not on this machine.
    """
    config = config or MetricsConfig()
    check_images(generator, data.train)
    held_out, against = _held_out(data)
    made: dict[str, Figure] = {}
    if set(config.figures) - {"cas"}:
        _check_counts(config, len(held_out))
        features = find_features(data, config, keep, device)
        labels = _labels_like(held_out, config)
        samples = features.of(sample(generator, labels, config.seed), "samples")
        real = features.of(held_out.images, against)
        protocol = f"{features.name}, {len(samples):,} samples against {len(real):,} {against}"
        made = {f.figure: f for f in _distances(real, samples, config, protocol)}
    if "cas" in config.figures:
        made["cas"] = classifier_accuracy_score(generator, data, config, device)
    return [made[figure] for figure in config.figures]


def record(
    source: str,
    generator: ConditionalGenerator,
    data: Dataset,
    config: MeasureConfig,
    figures: Sequence[Figure],
) -> dict[str, Any]:
    """Figures as JSON, with the generator, the images and the protocol that they belong to."""
    held_out, against = _held_out(data)
    return {
        "generator": source,
        "weights": config.weights,
        "recalibrate": config.recalibrate,
        "fingerprint": generator.fingerprint,
        "dataset": data.name,
        "train": data.train.fingerprint,
        "against": {"images": against, "n": len(held_out), "sha256": held_out.fingerprint},
        "config": config.model_dump(mode="json", exclude={"out", "extractors", "device"}),
        "figures": [asdict(figure) for figure in figures],
    }


def say_if_seen(source: str, data: Dataset) -> None:
    """Tell the user if a generator's file was trained on images that it is compared with."""
    if data.validation is None:
        return
    seen = count_seen(source, data.name, data.validation.rows)
    if seen:
        say(
            f"measure: {source} was trained on {seen:,} of these {len(data.validation):,} "
            "validation images; give the --validation of its training"
        )
    if seen is not None or source.startswith(PREFIX):
        return
    file = find_generator(source)
    metadata = artefacts.read_metadata(file) if file.suffix == ".safetensors" else {}
    with artefacts.described(file):
        known = metadata.get("trained_on", {}).get("sha256", data.train.fingerprint)
    if known != data.train.fingerprint:  # a file that keeps no rows
        say(
            f"measure: {source} was trained on other images than these {len(data.train):,}; it "
            "may have seen the validation images, unless you give the --validation of its training"
        )


def _held_out(data: Dataset) -> tuple[ImageSet, str]:
    if data.validation is not None:
        return data.validation, "validation images"
    return data.test, "test images"


def _check_counts(config: MetricsConfig, held_out: int) -> None:
    balls = {"precision", "recall", "density", "coverage"} & set(config.figures)
    fewest, what = min((config.samples, "samples"), (held_out, "held-out images"))
    if balls and fewest <= config.neighbours:
        raise InputError(
            f"neighbours={config.neighbours}: there are only {fewest} {what}; give fewer"
        )
    if fewest < 2:
        raise InputError("there is only one held-out image; hold out more")


def _labels_like(images: ImageSet, config: MetricsConfig) -> Int[Tensor, " n"]:
    """The labels of the images in a random order, again and again, up to ``config.samples``."""
    order = torch.randperm(len(images), generator=derive(config.seed, "metrics", "labels"))
    return images.labels[order[torch.arange(config.samples) % len(order)]]


@torch.no_grad()
def sample(
    generator: ConditionalGenerator, labels: Int[Tensor, " n"], seed: int
) -> UInt8[Tensor, "n c h w"]:
    """One 8-bit image for each label, from latents that follow from the seed."""
    rng = derive(seed, "metrics", "latents")
    latents = torch.randn(len(labels), *generator.latent_shape, generator=rng)
    parts = []
    for i in track(range(-(-len(labels) // CHUNK)), "samples"):
        rows = slice(CHUNK * i, CHUNK * (i + 1))
        z, y = latents[rows].to(generator.device), labels[rows].to(generator.device)
        parts.append(to_uint8(generator(z, y).cpu()))
    return torch.cat(parts)


# --- features -----------------------------------------------------------------------------------


def find_features(data: Dataset, config: MetricsConfig, keep: Path, device: str) -> Features:
    """The features that a config names; a network of this protocol is trained once, then kept.

    Raises:
        InputError: Inception's weights are not on this machine.
    """
    where = pick_device(device)
    if config.features == "inception":
        return _inception(data.name, where)
    spec = NetworkSpec.of(config.extractor.network, data.train)
    seed = derive_seed(0, "metrics", "extractor")
    determinants = [config.extractor.model_dump(), asdict(spec), data.train.fingerprint, seed]
    identity = artefacts.json_digest(determinants)
    file = keep / f"extractor-{identity[:16]}.safetensors"
    if not file.exists():
        say(f"features: training the extractor on {len(data.train):,} images of {data.name}")
        checkpoint = Checkpoint(file.with_suffix(".partial.safetensors"), identity)
        network = train_extractor(data.train, config.extractor, seed, where, checkpoint)
        save_network(file, network, spec)
        checkpoint.clear()
    network = load_network(file, spec).to(where)
    name = NETWORKS.get(spec.name, spec.name)
    weights = artefacts.digest(network.state_dict())[:8]
    return Features(
        f"{name} features of {data.name}, extractor {weights}",
        lambda images: network.embed(images.float() / 127.5 - 1),
        where,
    )


def _inception(name: str, device: torch.device) -> Features:
    """The 2048 features of FID, where they need no download."""
    try:
        url = importlib.import_module(INCEPTION).URL_INCEPTION_V3
    except ImportError as error:
        raise InputError(
            "features inception: needs the package torch-fidelity (pip install torch-fidelity) "
            "and its weights; or --features convnet, which needs neither"
        ) from error
    weights = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if not weights.exists():
        raise InputError(
            f"features inception: no weights at {weights}; fetch {url} to that place, or give "
            "--features convnet, which needs none"
        )
    network = FrechetInceptionDistance(feature=2048).inception.to(device)
    return Features(
        f"Inception features of {name}, weights {artefacts.digest(network.state_dict())[:8]}",
        lambda images: network(images.expand(-1, 3, -1, -1)),
        device,
    )


# --- figures ------------------------------------------------------------------------------------


def _distances(
    real: Tensor, samples: Tensor, config: MetricsConfig, protocol: str
) -> list[Figure]:
    figures = [figure for figure in config.figures if figure != "cas"]
    made = []
    for i in track(range(len(figures)), "distances"):
        figure, std = figures[i], None
        if figure == "frechet":
            value, said = distances.frechet(real, samples), protocol
        elif figure == "kernel":
            size = min(config.subset_size, len(real), len(samples))
            value, std = distances.kernel(real, samples, config.subsets, size, config.seed)
            said = f"MMD², {config.subsets:,} subsets of {size:,}, {protocol}"
        else:
            value = BALLS[figure](real, samples, config.neighbours)
            said = f"k = {config.neighbours}, {protocol}"
        made.append(Figure(figure, f"{TITLES[figure]} ({said}, seed {config.seed})", value, std))
    return made


def classifier_accuracy_score(
    generator: ConditionalGenerator, data: Dataset, config: MetricsConfig, device: str = "auto"
) -> Figure:
    """Accuracy on held-out real images of classifiers that were trained on samples alone.

    Every batch has new samples, generated in the precision of the training; an epoch has
    ``config.cas_per_class`` of each class.
    """
    held_out, against = _held_out(data)
    labels = torch.arange(config.cas_per_class * data.num_classes) % data.num_classes
    precision = resolve_precision(generator.device, config.cas.precision)
    source = FreshSamples(generator, labels, 0, precision, compiled=config.cas.compile)
    row = summarize(evaluate(source, held_out, config.cas, config.cas_seeds, device))[0]
    training = config.cas.model_copy(update={"precision": precision})
    name = (
        f"classifier accuracy score, % ({_schedule(training, len(labels))}, "
        f"networks {_numbers(config.cas_seeds)}, {len(held_out):,} {against} of {data.name}, "
        f"sha256 {held_out.fingerprint[:8]})"
    )
    return Figure("cas", name, row["mean"], row["std"] if row["n"] > 1 else None)


def _schedule(config: EvaluationConfig, samples: int) -> str:
    """A training protocol in words, with a hash for what the words leave out."""
    network = NETWORKS.get(config.network, config.network)
    length = f"{config.updates:,} updates" if config.updates else f"{config.epochs:,} epochs"
    fields = artefacts.json_digest(config.identity())[:8]
    return f"{network}, {length} of {samples:,} fresh samples, training {fields}"


def _numbers(seeds: Sequence[int]) -> str:
    return " ".join(map(str, seeds))
