"""What an experiment computes with: its configuration, data, generator and rows."""

import functools
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from itgan.artefacts import digest
from itgan.augment import parse_strategy
from itgan.condensation import check_classifiers, check_together
from itgan.configs import (
    CondensationConfig,
    Config,
    DCConfig,
    EvaluationConfig,
    Source,
    with_precision,
)
from itgan.data import Dataset, ImageSet, load_dataset
from itgan.dc import check_uncoupled
from itgan.devices import pick_device, resolve_precision
from itgan.errors import InputError
from itgan.gains import check_gains
from itgan.generators import (
    Encoder,
    StoredGenerator,
    count_seen,
    load_encoder,
    load_generator,
)
from itgan.inversion import encode
from itgan.latents import check_images
from itgan.networks import Network, build_network
from itgan.randomness import derive, derive_seed
from itgan.run_configs import RunConfig
from itgan.runs import Run
from itgan.training import check_last_batch

# The stage whose network makes a source; sources without a generator.
STAGES: dict[Source, str] = {
    "itgan": "condensation",
    "itgan-plus": "plus",
    "dm": "dm",
    "dc": "dc",
}
UNGENERATED: tuple[Source, ...] = ("real", "random", "herding", "dm", "dc")


@functools.lru_cache(maxsize=2)  # experiments of one study share their data
def _load(
    dataset: str,
    validation: int | float,
    image_size: int | None,
    image_column: str | None,
    label_column: str | None,
    normalisation: Literal["measured", "published"],
) -> Dataset:
    return load_dataset(
        dataset,
        validation=validation,
        image_size=image_size,
        image_column=image_column,
        label_column=label_column,
        normalisation=normalisation,
    )


class Setting:
    """A configuration with its data and generator."""

    def __init__(self, config: RunConfig, run: Run | None = None) -> None:
        """Load nothing yet; precisions left open are settled by the device, or by a ``run``.

        A run that has begun settles the latent seed of sources that are the same for all, too.
        """
        self.asked = config
        told = run.precision() if run is not None else None
        auto = told or resolve_precision(pick_device(config.device), "auto")
        self.config = with_precision(config, auto)
        begun = run.config() if run is not None and run.exists() else config
        self.first_seed = begun.latent_seeds[0]
        self._subsets: dict[int, ImageSet] = {}

    @cached_property
    def data(self) -> Dataset:
        """The data set, validation images taken out."""
        config = self.config
        return _load(
            config.dataset,
            config.validation,
            config.image_size,
            config.image_column,
            config.label_column,
            config.normalisation,
        )

    @cached_property
    def device(self) -> torch.device:
        """Where to compute."""
        return pick_device(self.config.device)

    @property
    def generates(self) -> bool:
        """Whether any of its sources needs the generator, which is not looked for otherwise."""
        return not set(self.config.sources) <= set(UNGENERATED)

    @property
    def inverts(self) -> bool:
        """Whether any of its sources begins with inverted banks."""
        config = self.config
        starts: dict[Source, str] = {
            "inversion": "inverted",
            "itgan": config.condensation.start,
            "itgan-plus": config.plus.start,
        }
        return "inverted" in {starts.get(source) for source in config.sources}

    @cached_property
    def generator(self) -> StoredGenerator:
        """The frozen generator, checked against the data."""
        config, train = self.config, self.data.train
        generator = load_generator(
            config.generator,
            self.device,
            config.generator_weights,
            config.recalibrate,
            latent_dim=config.latent_dim,
            num_classes=train.num_classes,
            image_shape=train.image_shape,
        )
        check_images(generator, train)
        return generator

    @cached_property
    def own_encoder(self) -> Encoder | None:
        """The encoder in the generator's own file, where the inversion starts from it.

        Raises:
            InputError: the file holds none, or it does not take such images.
        """
        config, train = self.config, self.data.train
        if config.inversion.start != "own-encoder":
            return None
        encoder = load_encoder(config.generator, self.device)
        first = train.floats(torch.arange(1)).to(self.device)
        encode(encoder, first, train.labels[:1].to(self.device), self.generator.latent_shape)
        return encoder

    @cached_property
    def own_encoder_fingerprint(self) -> str | None:
        """The sha256 of its weights."""
        return digest(self.own_encoder.state_dict()) if self.own_encoder else None

    @cached_property
    def scored_on(self) -> ImageSet:
        """Validation images if there are any, else test images; or as the config says.

        Raises:
            InputError: validation images are asked for, and none are held out.
        """
        data, wanted = self.data, self.config.score_on
        if wanted == "validation" and not data.validation:
            raise InputError("score_on=validation: no image is held out; give --validation too")
        return data.test if wanted == "test" else data.validation or data.test

    def scored_images_seen(self) -> int:
        """How many of the images that score the generator's file says it was trained on."""
        scored = self.scored_on
        if scored is not self.data.validation or not self.generates:
            return 0
        return count_seen(self.config.generator, self.data.name, scored.rows) or 0

    def check(self) -> None:
        """Refuse now what a later stage would stumble over, hours from here.

        Raises:
            InputError: a network or an augmentation is unknown, or does not fit the images; or
                untrained networks are to classify; or gains are to be tuned that are not there,
                or in several shards; or the inversion is to start from an encoder that the
                generator's file does not hold.
        """
        config, data = self.config, self.data
        counts = self.subset(config.latent_seeds[0]).labels.bincount()
        used = {"evaluation", *(STAGES[s] for s in config.sources if s in STAGES)}
        for name, stage in (
            ("inversion.extractor", config.inversion.extractor),
            ("condensation", config.condensation),
            ("condensation.pool.training", config.condensation.pool.training),
            ("plus", config.plus),
            ("plus.pool.training", config.plus.pool.training),
            ("dm", config.dm),
            ("dc", config.dc),
            ("evaluation", config.evaluation),
        ):
            try:
                parse_strategy(stage.augmentation)
                network = build_network(stage.network, data.image_shape, data.num_classes)
                if isinstance(stage, CondensationConfig):
                    check_classifiers(stage)
                    if stage.layers == "all":
                        network.require_blocks()
                if name in used:
                    self._check_batches(network, stage, counts)
            except InputError as error:
                raise InputError(f"{name}.{error}") from error
        if self.inverts:
            _ = self.own_encoder  # which is looked for now
        for name, source, stage in (
            ("condensation", "itgan", config.condensation),
            ("plus", "itgan-plus", config.plus),
        ):
            if source in config.sources and stage.gains_rate:
                try:
                    check_gains(self.generator, stage, int(counts.max()))
                except InputError as error:
                    raise InputError(f"{name}.{error}") from error

    def _check_batches(self, network: Network, stage: Config, counts: Tensor) -> None:
        """Whether a batch norm, if there is one, gets whole batches, and none of one image."""
        if isinstance(stage, DCConfig):
            check_uncoupled(network, stage.network)
        elif isinstance(stage, CondensationConfig):
            shard = stage.shard_per_class or int(counts.max())
            check_together(network, int(counts.clamp(max=shard).sum()), stage.micro_batch)
        elif isinstance(stage, EvaluationConfig):
            sources = set(self.config.sources)
            if "real" in sources:
                check_last_batch(network, len(self.data.train), stage.batch_size)
            if sources - {"real", "random-raw", "random-jpeg"}:
                check_last_batch(network, int(counts.sum()), stage.batch_size)

    def subset(self, latent_seed: int) -> ImageSet:
        """The training rows of a bank: ``latents_per_class`` of each class, drawn by seed."""
        if latent_seed not in self._subsets:
            self._subsets[latent_seed] = self._select(latent_seed)
        return self._subsets[latent_seed]

    def _select(self, latent_seed: int) -> ImageSet:
        train, wanted = self.data.train, self.config.latents_per_class
        if wanted is None:
            return train
        picks = []
        for label in range(train.num_classes):
            members = train.class_indices(label)
            if len(members) < wanted:
                raise InputError(
                    f"latents_per_class={wanted}: class {train.class_names[label]!r} has only "
                    f"{len(members)} training images; give at most that, or None for all"
                )
            rng = derive(self.config.seed, "rows", label, latent_seed)
            picks.append(members[torch.randperm(len(members), generator=rng)[:wanted]])
        return train.select(torch.cat(picks))

    def _seed(self, latent_seed: int) -> int:
        return derive_seed(self.config.seed, "bank", latent_seed)

    def _constants(self) -> dict[str, str]:
        """A determinant where the constants are not those of the training images."""
        chosen = self.config.normalisation
        return {} if chosen == "measured" else {"normalisation": chosen}
