"""The whole road on one screen: which cells an experiment has, and what each is made from.

real images ─┬─> extractor ─> inverted bank ─> condensed bank ─┐
             └──────────────────────────────> sources ────────┴─> trials ─> report
"""

import functools
from collections.abc import Callable
from copy import copy
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any, Literal

import torch

from itgan import artefacts
from itgan.artefacts import Checkpoint
from itgan.augment import parse_strategy
from itgan.baselines import (
    distribution_matching,
    herding,
    pixel_set,
    same_bytes_jpeg,
    same_bytes_raw,
)
from itgan.condensation import condense, fastest_micro_batch
from itgan.configs import (
    CondensationConfig,
    DCConfig,
    Dtype,
    RunConfig,
    Source,
    with_precision,
)
from itgan.data import Dataset, ImageSet, load_dataset
from itgan.dc import gradient_matching, variant
from itgan.devices import pick_device, resolve_precision
from itgan.embedding import NetworkSpec, SnapshotPool, train_extractor, train_pool
from itgan.encoder import Encoder, train_encoder
from itgan.errors import InputError
from itgan.evaluation import UNAUGMENTED, Trial, evaluate
from itgan.gains import check_gains
from itgan.generators import StoredGenerator, count_seen, load_generator
from itgan.inversion import invert
from itgan.latents import LatentBank, check_images, sample_latents
from itgan.networks import Network, build_network
from itgan.randomness import derive, derive_seed
from itgan.reconstruction import Objective
from itgan.runs import VIEWS, Cell, Run
from itgan.soft_labels import soften
from itgan.sources import FreshSamples, PixelSet, SyntheticSet
from itgan.training import Source as TrainingSource

# Sources that no generator has a part in, and those that a synthetic set's file can hold.
UNGENERATED = ("real", "random", "herding", "dm", "dc")
STORED = ("gan", "inversion", "itgan", "itgan-plus")
HARD = ("real", "gan-fresh")  # sources that are never evaluated with soft labels
FULL: tuple[Dtype, ...] = ("fp32",)


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


class Experiment:
    """A configuration with its data and generator, as a graph of cells."""

    def __init__(self, config: RunConfig) -> None:
        """Load nothing yet; precisions that were left open are settled by the device."""
        self.asked = config
        self.config = with_precision(config, resolve_precision(pick_device(config.device), "auto"))
        self._subsets: dict[int, ImageSet] = {}

    def viewing(self, config: RunConfig) -> "Experiment":
        """The same experiment with another config's choice of sources and seeds."""
        other = copy(self)
        other.__dict__.pop("_trials", None)
        views = {view: getattr(config, view) for view in VIEWS}
        other.asked = self.asked.model_copy(update=views)
        other.config = self.config.model_copy(update=views)
        return other

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

    @cached_property
    def generator(self) -> StoredGenerator:
        """The frozen generator, checked against the data."""
        config, train = self.config, self.data.train
        generator = load_generator(
            config.generator,
            self.device,
            config.generator_weights,
            config.recalibrate,
            num_classes=train.num_classes,
            image_shape=train.image_shape,
        )
        check_images(generator, train)
        return generator

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
                gains are to be tuned that are not there, or in several shards.
        """
        config, data = self.config, self.data
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
                if isinstance(stage, CondensationConfig) and stage.layers == "all":
                    network.require_blocks()
            except InputError as error:
                raise InputError(f"{name}.{error}") from error
        for name, source, stage in (
            ("condensation", "itgan", config.condensation),
            ("plus", "itgan-plus", config.plus),
        ):
            if source in config.sources and stage.gains_rate:
                most = int(self.subset(config.latent_seeds[0]).labels.bincount().max())
                try:
                    check_gains(self.generator, stage, most)
                except InputError as error:
                    raise InputError(f"{name}.{error}") from error

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

    def extractor(self) -> Cell:
        """Psi of Eq. 8, trained on all training images."""
        config, seed = self.config.inversion.extractor, derive_seed(self.config.seed, "extractor")

        def compute(checkpoint: Checkpoint) -> Network:
            return train_extractor(self.data.train, config, seed, self.device, checkpoint)

        determinants = {
            "config": config.identity(),
            "spec": asdict(NetworkSpec.of(config.network, self.data.train)),
            "data": self.data.train.fingerprint,
            "seed": seed,
        }
        return Cell("network", "extractor", determinants, (), compute)

    def encoder(self) -> tuple[Cell, ...]:
        """Where the inversion starts, if the recipe asks for it; one encoder serves all banks."""
        config, seed = self.config.inversion, derive_seed(self.config.seed, "encoder")
        if config.start != "encoder":
            return ()

        def compute(extractor: Network, checkpoint: Checkpoint) -> Encoder:
            extractor = extractor.to(self.generator.device)
            objective = Objective(self.generator, extractor, self.data.train, config)
            return train_encoder(objective, seed, checkpoint)

        weights = config.model_dump(include={"lambda_pixel", "lambda_prior", "precision"})
        determinants = {
            "config": {**config.encoder.identity(), **weights},
            "generator": self.generator.fingerprint,
            "data": self.data.train.fingerprint,
            "seed": seed,
        }
        return (Cell("encoder", "encoder", determinants, (self.extractor(),), compute),)

    def pool(self, config: CondensationConfig | None = None) -> tuple[Cell, ...]:
        """Snapshots to match in, where the config (by default itgan's) asks for them."""
        config = config or self.config.condensation
        seed = derive_seed(self.config.seed, "pool")
        if config.pool.kind == "random":
            return ()

        def compute(checkpoint: Checkpoint) -> SnapshotPool:
            train, device = self.data.train, self.device
            return train_pool(train, config.network, config.pool, seed, device, checkpoint)

        determinants = {
            "config": config.pool.identity(),
            "spec": asdict(NetworkSpec.of(config.network, self.data.train)),
            "data": self.data.train.fingerprint,
            "seed": seed,
        }
        return (Cell("pool", "pool", determinants, (), compute),)

    def inverted(self, latent_seed: int) -> Cell:
        """Eq. 8 for the rows of one bank."""
        config, seed = self.config.inversion, self._seed(latent_seed)
        rows = self.subset(latent_seed)

        def compute(extractor: Network, *encoders: Encoder, checkpoint: Checkpoint) -> LatentBank:
            device = self.generator.device
            encoder = encoders[0].to(device) if encoders else None
            extractor = extractor.to(device)
            return invert(self.generator, rows, config, seed, extractor, checkpoint, encoder)

        determinants = {
            "config": config.identity(),
            "generator": self.generator.fingerprint,
            "images": rows.fingerprint,
            "seed": seed,
        }
        label = f"inverted bank, latent seed {latent_seed}"
        inputs = (self.extractor(), *self.encoder())
        return Cell("bank", label, determinants, inputs, compute)

    def micro_batch(self, config: CondensationConfig) -> tuple[Cell, ...]:
        """How many latents go through at once, where that is to be measured; once for all."""
        train = self.data.train
        if config.micro_batch != "auto":
            return ()

        def compute(checkpoint: Checkpoint) -> int:
            return fastest_micro_batch(self.generator, train, config)

        determinants = {
            "config": config.identity(),
            "generator": self.generator.fingerprint,
            "image_shape": list(train.image_shape),
        }
        return (Cell("number", "micro-batch of condensation", determinants, (), compute),)

    def condensed(self, latent_seed: int) -> Cell:
        """Eq. 11 from the inverted bank."""
        return self._condensed("condensed", self.config.condensation, latent_seed)

    def plus(self, latent_seed: int) -> Cell:
        """The same with what ``itgan-plus`` adds."""
        return self._condensed("plus", self.config.plus, latent_seed)

    def _condensed(self, name: str, config: CondensationConfig, latent_seed: int) -> Cell:
        seed = self._seed(latent_seed)
        measured, pools = self.micro_batch(config), self.pool(config)

        def compute(start: LatentBank, *more: Any, checkpoint: Checkpoint) -> LatentBank:  # noqa: ANN401
            size = more[0] if measured else config.micro_batch
            chosen = config.model_copy(update={"micro_batch": size})
            pool = replace(more[-1], window=config.pool.window) if pools else None
            return condense(self.generator, start, self.data.train, chosen, seed, pool, checkpoint)

        determinants = {
            "config": config.identity(),
            "generator": self.generator.fingerprint,
            "real": self.data.train.fingerprint,
            "seed": seed,
        }
        label = f"{name} bank, latent seed {latent_seed}"
        inputs = (self.inverted(latent_seed), *measured, *pools)
        return Cell("bank", label, determinants, inputs, compute)

    def dm(self, latent_seed: int) -> Cell:
        """Distribution matching in pixels, from the rows of one bank."""
        return self._pixels("dm", self.config.dm, distribution_matching, latent_seed)

    def dc(self, latent_seed: int) -> Cell:
        """Gradient matching in pixels, from the rows of one bank."""
        return self._pixels("dc", self.config.dc, gradient_matching, latent_seed)

    def _pixels(
        self,
        name: str,
        config: CondensationConfig | DCConfig,
        learn: Callable[..., LatentBank],
        latent_seed: int,
    ) -> Cell:
        rows, seed = self.subset(latent_seed), self._seed(latent_seed)

        def compute(checkpoint: Checkpoint) -> LatentBank:
            return learn(rows, self.data.train, config, seed, self.device, checkpoint)

        determinants = {
            "config": config.identity(),
            "images": rows.fingerprint,
            "real": self.data.train.fingerprint,
            "seed": seed,
            **self._constants(),
        }
        return Cell("bank", f"{name} bank, latent seed {latent_seed}", determinants, (), compute)

    def _constants(self) -> dict[str, str]:
        """A determinant where the constants are not those of the training images."""
        chosen = self.config.normalisation
        return {} if chosen == "measured" else {"normalisation": chosen}

    def needs(self, source: Source, latent_seed: int) -> tuple[Cell, ...]:
        """The cells that a source is made from."""
        makers = {
            "inversion": self.inverted,
            "itgan": self.condensed,
            "itgan-plus": self.plus,
            "dm": self.dm,
            "dc": self.dc,
            "herding": lambda _: self.extractor(),
        }
        return (makers[source](latent_seed),) if source in makers else ()

    def source(self, name: Source, latent_seed: int, *made: Any) -> TrainingSource:  # noqa: ANN401
        """What classifiers are trained on, from the values of the cells that it ``needs``."""
        train = self.data.train
        if name == "real":
            return PixelSet(train.images, train.labels, "real")
        rows = self.subset(latent_seed)
        if name == "random":
            return PixelSet(rows.images, rows.labels, "random", "same-rows", latent_seed)
        if name == "gan-fresh":
            return FreshSamples(self.generator, rows.labels, latent_seed)
        if name == "herding":
            counts = rows.labels.bincount(minlength=train.num_classes).tolist()
            return herding(train, counts, made[0].to(self.device), latent_seed)
        if name == "dm":
            return pixel_set(made[0], train, latent_seed)
        if name == "dc":
            return pixel_set(made[0], train, latent_seed, "dc", variant(self.config.dc))
        bank = made[0] if made else sample_latents(self.generator, rows, self._seed(latent_seed))
        synthetic = self.synthetic(bank, latent_seed, plus=name == "itgan-plus")
        if name in ("random-raw", "random-jpeg"):
            same_bytes = same_bytes_raw if name == "random-raw" else same_bytes_jpeg
            return same_bytes(train, synthetic.nbytes, latent_seed)
        return synthetic

    def synthetic(self, bank: LatentBank, latent_seed: int, *, plus: bool = False) -> SyntheticSet:
        """Generator and bank, with what a reader must know of the data."""
        about = {
            "dataset": self.config.dataset,
            "class_names": list(self.data.class_names),
            "mean": list(self.data.mean),
            "std": list(self.data.std),
            "evaluation": {**self.config.evaluation.model_dump(), "curve_points": 0},
            **({"source": "itgan-plus"} if plus else {}),
        }
        made = SyntheticSet(self.generator, bank, about=about)
        made.latent_seed = latent_seed
        return made

    def synthetic_bytes(self) -> int:
        """Bytes of one synthetic set in fp32."""
        rows = self.subset(self.config.latent_seeds[0])
        return self.synthetic(sample_latents(self.generator, rows), 0).nbytes

    def trial(
        self,
        source: Source,
        latent_seed: int,
        network_seed: int,
        dtype: Dtype = "fp32",
        *,
        augmented: bool = True,
        soft: bool = False,
    ) -> Cell:
        """One classifier, trained and scored; on a stored set, as its file in ``dtype`` has it.

        With ``soft`` labels, which the extractor gives.
        """
        config, whole = self.config.evaluation, source == "real"
        if not augmented:
            config = config.model_copy(update={"augmentation": "none"})
        per_class = None if whole else self.config.latents_per_class

        def compute(*made: Any, checkpoint: Checkpoint) -> Trial:  # noqa: ANN401
            teacher = made[-1] if soft else None
            chosen = self.source(source, latent_seed, *(made[:-1] if soft else made))
            if isinstance(chosen, SyntheticSet) and dtype != "fp32":
                chosen = chosen.stored_as(dtype)
            if teacher is not None:
                chosen = soften(chosen, teacher.to(self.device))
            (trial,) = evaluate(
                chosen,
                self.scored_on,
                config,
                [network_seed],
                self.config.device,
                dataset=self.data.name,
                latents_per_class=per_class,
                checkpoint=checkpoint,
            )
            variant = trial.variant if augmented else f"{trial.variant} {UNAUGMENTED}".strip()
            return replace(trial, variant=variant)

        determinants = {
            "source": source,
            "config": config.identity(),
            "generator": None if source in UNGENERATED else self.generator.fingerprint,
            "train": self.data.train.fingerprint,
            "rows": None if whole else self.subset(latent_seed).fingerprint,
            "scored_on": self.scored_on.fingerprint,
            "dataset": self.data.name,
            "latents_per_class": per_class,
            "latent_seed": None if whole else self._seed(latent_seed),
            "network_seed": network_seed,
            **({} if dtype == "fp32" else {"dtype": dtype}),
            **({"labels": "soft"} if soft else {}),
            **self._constants(),
        }
        form = [
            source,
            *([] if dtype == "fp32" else [dtype]),
            *([] if augmented else [UNAUGMENTED]),
            *(["with soft labels"] if soft else []),
        ]
        seeds = f"latent seed {latent_seed}, network seed {network_seed}"
        label = f"trial of {' '.join(form)}, {seeds}"
        teachers = (self.extractor(),) if soft else ()
        inputs = (*self.needs(source, latent_seed), *teachers)
        return Cell("trial", label, determinants, inputs, compute)

    def latent_seeds(self, source: Source) -> tuple[int, ...]:
        """The sets of a source: one where all would be the same images."""
        config = self.config
        repeated = source in ("real", "herding")
        if source == "random":
            repeated = config.latents_per_class is None
        if source in ("random-raw", "random-jpeg"):  # all images may fit into the bytes
            made = self.source(source, config.latent_seeds[0])
            repeated = len(made) == len(self.data.train)
        return config.latent_seeds[:1] if repeated else config.latent_seeds

    def _forms(self, source: Source) -> list[dict[str, Any]]:
        """What a source is evaluated in: storage types with and without augmentation; labels."""
        dtypes = self.config.dtypes if source in STORED else FULL
        both = self.config.unaugmented and source != "real"
        forms: list[dict[str, Any]] = [
            {"dtype": d, "augmented": augmented}
            for d in dtypes
            for augmented in ((True, False) if both else (True,))
        ]
        soft = self.config.soft_labels and source not in HARD
        return [*forms, *([{"soft": True}] if soft else [])]

    @cached_property
    def _trials(self) -> list[Cell]:
        return [
            self.trial(source, latent_seed, network_seed, **form)
            for source in self.config.sources
            for form in self._forms(source)
            for latent_seed in self.latent_seeds(source)
            for network_seed in self.config.network_seeds
        ]

    def trials(self) -> list[Cell]:
        """Every classifier of the experiment."""
        return self._trials

    def stage(self, name: str) -> list[Cell]:
        """The cells of one stage: ``embed``, ``invert``, ``condense`` or ``evaluate``."""
        seeds, config = self.config.latent_seeds, self.config
        plus = "itgan-plus" in config.sources
        if name == "embed":
            pools = {cell.name: cell for cell in self.pool(config.condensation)}
            pools |= {cell.name: cell for cell in self.pool(config.plus) if plus}
            return [self.extractor(), *self.encoder(), *pools.values()]
        if name == "invert":
            return [self.inverted(seed) for seed in seeds]
        if name == "condense":
            made = [self.condensed(seed) for seed in seeds]
            return made + [self.plus(seed) for seed in seeds if plus]
        return self.trials()


def compute(experiment: Experiment, run: Run, stage: str = "evaluate") -> list[Any]:
    """Compute what is missing of a stage and of all it needs; returns the stage's values."""
    experiment.check()
    cells = experiment.stage(stage)
    with artefacts.locked(run.path):
        run.open(experiment.asked)
        return run.values(cells)
