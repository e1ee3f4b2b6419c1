"""The whole road on one screen: which cells an experiment has, and what each is made from.

real images ─┬─> extractor ─> inverted bank ─> condensed bank ─┐
             └──────────────────────────────> sources ────────┴─> trials ─> report
"""

from collections.abc import Callable
from copy import copy
from dataclasses import replace
from functools import cached_property
from typing import Any

from itgan import artefacts
from itgan.artefacts import Checkpoint
from itgan.banks import Banks
from itgan.baselines import herding, pixel_set, same_bytes_jpeg, same_bytes_raw
from itgan.configs import Dtype, Source
from itgan.data import READ
from itgan.dc import variant
from itgan.evaluation import UNAUGMENTED, Trial, evaluate
from itgan.latents import LatentBank, sample_latents
from itgan.networks import code_of
from itgan.run_configs import RunConfig
from itgan.runs import VIEWS, Cell, Run
from itgan.setting import UNGENERATED
from itgan.soft_labels import soft_label_bytes, soften
from itgan.sources import FreshSamples, PixelSet, SyntheticSet
from itgan.training import Source as TrainingSource

SAME_BYTES: tuple[Source, ...] = ("random-raw", "random-jpeg")  # as many as fit into them
STORED = ("gan", "inversion", "itgan", "itgan-plus")
TYPED = (*STORED, *SAME_BYTES)  # sources that depend on the storage type
HARD = ("real", "gan-fresh")  # sources that are never evaluated with soft labels
FULL: tuple[Dtype, ...] = ("fp32",)


class Experiment(Banks):
    """A configuration with its data and generator, as a graph of cells."""

    _latest: tuple[tuple[str | int, ...], PixelSet] | None = None  # key, images

    def viewing(self, config: RunConfig) -> "Experiment":
        """The same experiment with another config's choice of sources and seeds."""
        other = copy(self)
        other.__dict__.pop("_trials", None)
        views = {view: getattr(config, view) for view in VIEWS}
        other.asked = self.asked.model_copy(update=views)
        other.config = self.config.model_copy(update=views)
        return other

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

    def source(
        self,
        name: Source,
        latent_seed: int,
        *made: Any,  # noqa: ANN401
        dtype: Dtype = "fp32",
        soft: bool = False,
    ) -> TrainingSource:
        """What classifiers are trained on, from the values of the cells that it ``needs``.

        A stored set is as its file in ``dtype`` has it. As many images as fit into the bytes of
        such a set leave room for the bytes of ``soft`` labels, if they are to get them.
        """
        train = self.data.train
        if name == "real":
            return PixelSet(train.images, train.labels, "real")
        rows = self.subset(latent_seed)
        if name == "random":
            return PixelSet(rows.images, rows.labels, "random", "same-rows", latent_seed)
        if name == "gan-fresh":
            seed = self._seed(latent_seed)
            evaluation = self.config.evaluation
            return FreshSamples(
                self.generator,
                rows.labels,
                latent_seed,
                evaluation.precision,
                compiled=evaluation.compile,
                seed=seed,
            )
        if name == "herding":
            counts = rows.labels.bincount(minlength=train.num_classes).tolist()
            precision = self.config.inversion.extractor.precision
            return herding(train, counts, made[0].to(self.device), latent_seed, precision)
        if name == "dm":
            return pixel_set(made[0], train, latent_seed)
        if name == "dc":
            return pixel_set(made[0], train, latent_seed, "dc", variant(self.config.dc))
        bank = made[0] if made else sample_latents(self.generator, rows, self._seed(latent_seed))
        synthetic = self.synthetic(bank, latent_seed, plus=name == "itgan-plus")
        if name in SAME_BYTES:
            same_bytes = same_bytes_raw if name == "random-raw" else same_bytes_jpeg
            synthetic.dtype = dtype
            more = soft_label_bytes(train.num_classes) if soft else 0
            budget = synthetic.nbytes + more * len(synthetic)
            chosen = same_bytes(train, budget, self._seed(latent_seed), more)
            chosen.latent_seed = latent_seed
            chosen.variant += "" if dtype == "fp32" else f" {dtype}"
            return chosen
        return synthetic if dtype == "fp32" else synthetic.stored_as(dtype)

    def _generated(
        self,
        name: Source,
        latent_seed: int,
        *made: Any,  # noqa: ANN401
        dtype: Dtype,
        soft: bool,
    ) -> TrainingSource:
        """The same as images, which all classifiers in a row are trained on."""
        key = (name, latent_seed, dtype, *(cell.name for cell in self.needs(name, latent_seed)))
        if self._latest is not None and self._latest[0] == key:
            return self._latest[1]
        chosen = self.source(name, latent_seed, *made, dtype=dtype, soft=soft)
        if not isinstance(chosen, SyntheticSet):
            return chosen
        self._latest = key, chosen.materialise()
        return self._latest[1]

    def synthetic(self, bank: LatentBank, latent_seed: int, *, plus: bool = False) -> SyntheticSet:
        """Generator and bank, with what a reader must know of the data."""
        about = {
            "dataset": self.config.dataset,
            "class_names": list(self.data.class_names),
            "mean": list(self.data.mean),
            "std": list(self.data.std),
            **{field: value for field in READ if (value := getattr(self.config, field))},
            "evaluation": {**self.config.evaluation.model_dump(), "curve_points": 0},
            **({"source": "itgan-plus"} if plus else {}),
        }
        made = SyntheticSet(self.generator, bank, about=about)
        made.latent_seed = latent_seed
        return made

    def synthetic_bytes(self, dtype: Dtype = "fp32") -> int:
        """Bytes of one synthetic set, stored in ``dtype``."""
        rows = self.subset(self.config.latent_seeds[0])
        made = self.synthetic(sample_latents(self.generator, rows), 0)
        made.dtype = dtype
        return made.nbytes

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
            own = made[:-1] if soft else made
            chosen = self._generated(source, latent_seed, *own, dtype=dtype, soft=soft)
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
            **code_of(config.network),
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
        if source in SAME_BYTES:  # all images may fit into the bytes
            made = self.source(source, config.latent_seeds[0])
            repeated = len(made) == len(self.data.train)
        return (self.first_seed,) if repeated else config.latent_seeds

    def _forms(self, source: Source) -> list[dict[str, Any]]:
        """What a source is evaluated in: storage types with and without augmentation; labels."""
        dtypes = self.config.dtypes if source in TYPED else FULL
        both = self.config.unaugmented and source != "real"
        forms: list[dict[str, Any]] = [
            {"dtype": d, "augmented": augmented}
            for d in dtypes
            for augmented in ((True, False) if both else (True,))
        ]
        soft = self.config.soft_labels and source not in HARD
        return [*forms, *([{"dtype": dtypes[0], "soft": True}] if soft else [])]

    @cached_property
    def _trials(self) -> list[Cell]:
        return [
            self.trial(source, latent_seed, network_seed, **form)
            for source in self.config.sources
            for form in self._forms(source)
            for latent_seed in self.latent_seeds(source)
            for network_seed in self.config.network_seeds
        ]

    def makers(self) -> dict[str, Callable[[int], Cell]]:
        """What makes the banks of latents that its sources need, by their stage."""
        sources = self.config.sources
        return {
            **({"inverted": self.inverted} if self.inverts else {}),
            **({"condensed": self.condensed} if "itgan" in sources else {}),
            **({"plus": self.plus} if "itgan-plus" in sources else {}),
        }

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
