"""The latent bank: one latent for each training row, with its label and the row's number."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from itgan import artefacts
from itgan.data import ImageSet
from itgan.errors import InputError
from itgan.generators import ConditionalGenerator, TunableGenerator
from itgan.randomness import derive

Stage = Literal["random", "inverted", "condensed"]
TABLES = "tables."  # before the names of class tables in a bank's file


@dataclass(frozen=True)
class LatentBank:
    """Latents that a generator turns into a training set.

    Attributes:
        latents: float32 [n, *latent_shape].
        labels: int64 [n].
        rows: int64 [n], each latent's row in the original training set; an ensemble of banks may
            have several latents of a row.
        stage: ``random``, ``inverted`` or ``condensed``.
        history: what the optimisation measured, a list of numbers for each quantity.
        provenance: how it was made: generator, config, seed, dataset, class_names.
        tables: the generator's class gains and biases [classes, width] that were condensed along
            with the latents, by name; they stand in for its own. Empty: its own.
    """

    latents: Tensor  # checked below, since users make these by hand
    labels: Tensor
    rows: Tensor
    stage: str
    history: Mapping[str, Sequence[float]] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    tables: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse banks whose parts do not fit together."""
        n = len(self.latents)
        if not n:
            raise InputError("latent bank: it is empty; give at least one latent")
        if self.stage not in get_args(Stage):
            raise InputError(
                f"latent bank: stage {self.stage!r}; give one of {', '.join(get_args(Stage))}"
            )
        if not self.latents.is_floating_point() or self.latents.ndim < 2:
            raise InputError(
                f"latent bank: latents are {self.latents.dtype} of shape "
                f"{tuple(self.latents.shape)}; give floats [n, *latent_shape]"
            )
        if self.labels.shape != (n,) or self.rows.shape != (n,):
            raise InputError(
                f"latent bank: {n} latents, but labels of shape {tuple(self.labels.shape)} and "
                f"rows of shape {tuple(self.rows.shape)}; give one of each per latent"
            )
        for name, numbers in (("labels", self.labels), ("rows", self.rows)):
            if numbers.dtype != torch.int64 or int(numbers.min()) < 0:
                raise InputError(f"latent bank: {name} must be int64 and not negative")
        if not torch.stack(self.latents.aminmax()).isfinite().all():  # NaN is least and greatest
            raise InputError(
                "latent bank: latents hold NaN or infinity; lower the learning rate that made them"
            )
        for name, table in self.tables.items():
            if table.ndim != 2 or not table.is_floating_point() or not table.isfinite().all():
                raise InputError(
                    f"latent bank: table {name} must be finite floats [classes, width]; lower the "
                    "gains_rate that made it"
                )

    def __len__(self) -> int:
        """Number of latents."""
        return len(self.latents)

    def select(self, indices: Int[Tensor, " k"]) -> "LatentBank":
        """The latents at these positions, in this order."""
        return replace(
            self,
            latents=self.latents[indices],
            labels=self.labels[indices],
            rows=self.rows[indices],
        )

    def moved_to(self, generator: ConditionalGenerator) -> "LatentBank":
        """The same latents for another generator on purpose; ``moved_from`` tells the first."""
        origin = {
            "moved_from": self.provenance.get("generator"),
            **self.provenance,
            "generator": generator.fingerprint,
        }
        return replace(self, provenance=origin)

    def save(self, path: Path | str) -> None:
        """Write one safetensors file."""
        artefacts.save(
            path,
            {
                "latents": self.latents,
                "labels": self.labels,
                "rows": self.rows,
                **{f"{TABLES}{name}": table for name, table in self.tables.items()},
            },
            {
                "kind": "bank",
                "stage": self.stage,
                "value_range": [-1, 1],
                "history": {name: list(values) for name, values in self.history.items()},
                "provenance": dict(self.provenance),
            },
        )

    @classmethod
    def load(cls, path: Path | str) -> "LatentBank":
        """Read what ``save`` wrote.

        Raises:
            InputError: no such file, damaged, or not a bank.
        """
        tensors, metadata = artefacts.load(path, "bank")
        with artefacts.described(path):
            return cls(
                tensors["latents"],
                tensors["labels"],
                tensors["rows"],
                metadata["stage"],
                {
                    str(name): [float(x) for x in values]
                    for name, values in metadata["history"].items()
                },
                dict(metadata["provenance"]),
                {
                    name.removeprefix(TABLES): table
                    for name, table in tensors.items()
                    if name.startswith(TABLES)
                },
            )

    @classmethod
    def merge(cls, banks: Sequence["LatentBank"], *, repeat_rows: bool = False) -> "LatentBank":
        """Latents learned apart (other shards, classes, seeds, machines) as one bank, by row.

        Args:
            banks: their order counts only between latents of one row.
            repeat_rows: a row may have latents in several banks: an ensemble.

        Raises:
            InputError: no banks; shapes, stages, generators or class tables differ; a row appears
                twice though it must not, or with two labels.
        """
        if not banks:
            raise InputError("merge: give at least one bank")
        for what, values in {
            "latent shapes": {tuple(b.latents.shape[1:]) for b in banks},
            "stages": {b.stage for b in banks},
            "generators": {b.provenance.get("generator") for b in banks},
            "class tables": {_told(b.tables) for b in banks},
        }.items():
            if len(values) > 1:
                raise InputError(
                    f"merge: the banks have different {what}: {sorted(map(str, values))}"
                )
        rows = torch.cat([b.rows for b in banks])
        order = rows.argsort(stable=True)
        rows, labels = rows[order], torch.cat([b.labels for b in banks])[order]
        again = rows[1:] == rows[:-1]
        if again.any() and not repeat_rows:
            raise InputError(
                f"merge: training row {int(rows[1:][again][0])} appears twice; drop one of its "
                "latents, or say --repeat-rows (repeat_rows=True) to keep several"
            )
        if (again & (labels[1:] != labels[:-1])).any():
            raise InputError("merge: a training row has two labels; the data sets differ")
        return cls(
            torch.cat([b.latents for b in banks])[order],
            labels,
            rows,
            banks[0].stage,
            {},
            {
                **{
                    key: banks[0].provenance.get(key)
                    for key in ("generator", "dataset", "class_names")
                },
                "merged": len(banks),
            },
            banks[0].tables,
        )


def _told(tables: Mapping[str, Tensor]) -> str:
    return f"tuned {artefacts.digest(tables)[:8]}" if tables else "the generator's own"


def sample_latents(generator: ConditionalGenerator, images: ImageSet, seed: int = 0) -> LatentBank:
    """One z ~ N(0, I) for each image, with its label; a function of seed and row number alone."""
    return LatentBank(
        initial_latents(generator.latent_shape, images.rows, seed),
        images.labels.clone(),
        images.rows.clone(),
        "random",
        {},
        origin(generator, images, seed),
    )


def origin(generator: ConditionalGenerator, images: ImageSet, seed: int) -> dict[str, Any]:
    """The provenance of a bank: what generates, which images it stands for, the seed."""
    return {
        "generator": generator.fingerprint,
        "seed": seed,
        "dataset": images.dataset or None,
        "class_names": list(images.class_names),
    }


def initial_latents(
    latent_shape: tuple[int, ...], rows: Int[Tensor, " n"], seed: int
) -> Float[Tensor, "n ..."]:
    """N(0, I) draws that belong to row numbers, whatever the order or company of the rows."""
    return torch.stack(
        [torch.randn(latent_shape, generator=derive(seed, "latent", row)) for row in rows.tolist()]
    )


def check_fits(generator: ConditionalGenerator, bank: LatentBank, images: ImageSet) -> None:
    """Refuse a bank, generator and data set that do not belong together.

    Raises:
        InputError: names what differs.
    """
    check_bank(generator, bank)
    check_images(generator, images)


def check_bank(generator: ConditionalGenerator, bank: LatentBank) -> None:
    """Refuse latents or labels that the generator cannot take.

    Raises:
        InputError: names what differs.
    """
    made_with = bank.provenance.get("generator")
    if tuple(bank.latents.shape[1:]) != tuple(generator.latent_shape):
        raise InputError(
            f"latent bank: latents of shape {tuple(bank.latents.shape[1:])}, but the generator "
            f"takes {tuple(generator.latent_shape)}; use the one that the bank was made with"
        )
    outside = (bank.labels < 0) | (bank.labels >= generator.num_classes)
    if outside.any():
        raise InputError(
            f"latent bank: label {int(bank.labels[outside][0])}, but the generator has only "
            f"classes 0...{generator.num_classes - 1}; use the one that the bank was made with"
        )
    if made_with is not None and made_with != generator.fingerprint:
        raise InputError(
            f"latent bank: made with generator {str(made_with)[:16]}…, but this one is "
            f"{generator.fingerprint[:16]}…; use that one, or bank.moved_to(generator) on purpose "
            "(a Python function's fingerprint changes with machine and library too)"
        )


def tuned(generator: ConditionalGenerator, bank: LatentBank) -> ConditionalGenerator:
    """The generator with the class tables of a bank; itself where the bank brings none.

    Raises:
        InputError: the generator has no such tables.
    """
    if not bank.tables:
        return generator
    if not isinstance(generator, TunableGenerator):
        raise InputError(
            "latent bank: brings class tables of a generator, and this one has none; use the one "
            "that the bank was made with"
        )
    return generator.with_tables(bank.tables)


def check_images(generator: ConditionalGenerator, images: ImageSet) -> None:
    """Refuse images that the generator cannot make.

    Raises:
        InputError: shapes or class counts differ.
    """
    if images.image_shape != tuple(generator.image_shape):
        same_colours = images.image_shape[0] == generator.image_shape[0]
        raise InputError(
            f"generator: makes images of shape {tuple(generator.image_shape)}, but the data set "
            f"has {images.image_shape}; choose a generator trained for it"
            + (", or --image-size" if same_colours else "")
        )
    if images.num_classes != generator.num_classes:
        raise InputError(
            f"generator: has {generator.num_classes} classes, but the data set has "
            f"{images.num_classes}; choose a generator trained for it"
        )


class LatentAdam:
    """Adam whose moments and step counts belong to rows: a row ages only when it is visited.

    Visiting all rows every time is Adam as usual. Attributes are tensors over the whole bank, so
    that they are the state to snapshot.
    """

    def __init__(
        self,
        latents: Float[Tensor, "n ..."],
        learning_rate: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        decay_steps: int | None = None,
        basis: Float[Tensor, "d d"] | None = None,
    ) -> None:
        """Optimise ``latents`` in place.

        Args:
            latents: changed by ``step``.
            learning_rate: of a row's first step.
            betas: decay of both moments.
            eps: keeps a division finite.
            decay_steps: visits over which a row's rate falls to zero along half a cosine wave; it
                stays constant when not given.
            basis: orthonormal columns; the coordinates of the flattened latents along them are
                what has moments and takes steps. Their own when not given.
        """
        self.latents = latents
        self.learning_rate, self.betas, self.eps = learning_rate, betas, eps
        self.decay_steps, self.basis = decay_steps, basis
        self.mean = torch.zeros_like(latents)
        self.square = torch.zeros_like(latents)
        self.visits = torch.zeros(len(latents), dtype=torch.int64, device=latents.device)

    @torch.no_grad()
    def step(self, rows: Int[Tensor, " k"], gradient: Float[Tensor, "k ..."]) -> None:
        """One step for the latents at these positions."""
        beta1, beta2 = self.betas
        self.visits[rows] += 1
        shape = (-1,) + (1,) * (self.latents.ndim - 1)
        age = self.visits[rows].to(self.latents.dtype).view(shape)
        gradient = self._turned(gradient, self.basis)
        mean = self.mean[rows].lerp(gradient, 1 - beta1)
        square = self.square[rows].lerp(gradient.square(), 1 - beta2)
        self.mean[rows], self.square[rows] = mean, square
        scale = (square / _weight(beta2, age)).sqrt_().add_(self.eps)
        step = self._rate(age) * (mean / _weight(beta1, age)) / scale
        self.latents[rows] -= self._turned(step, None if self.basis is None else self.basis.T)

    @staticmethod
    def _turned(vectors: Tensor, basis: Tensor | None) -> Tensor:
        return vectors if basis is None else (vectors.flatten(1) @ basis).view_as(vectors)

    def _rate(self, age: Tensor) -> Tensor | float:
        if self.decay_steps is None:
            return self.learning_rate
        done = ((age - 1) / self.decay_steps).clamp(max=1)
        return self.learning_rate * (1 + torch.cos(math.pi * done)) / 2

    def state(self) -> dict[str, Tensor]:
        """All that a later step depends on."""
        return {
            "latents": self.latents,
            "mean": self.mean,
            "square": self.square,
            "visits": self.visits,
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Copy a ``state`` back."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])


class LatentSGD:
    """SGD with momentum, with the interface of ``LatentAdam``; velocities belong to rows."""

    def __init__(
        self, latents: Float[Tensor, "n ..."], learning_rate: float, momentum: float
    ) -> None:
        """Optimise ``latents`` in place."""
        self.latents = latents
        self.learning_rate, self.momentum = learning_rate, momentum
        self.velocity = torch.zeros_like(latents)

    @torch.no_grad()
    def step(self, rows: Int[Tensor, " k"], gradient: Float[Tensor, "k ..."]) -> None:
        """One step for the latents at these positions."""
        velocity = self.momentum * self.velocity[rows] + gradient
        self.velocity[rows] = velocity
        self.latents[rows] -= self.learning_rate * velocity

    def state(self) -> dict[str, Tensor]:
        """All that a later step depends on."""
        return {"latents": self.latents, "velocity": self.velocity}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Copy a ``state`` back."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])


def _weight(beta: float, age: Tensor) -> Tensor:
    """1 - beta^age, Adam's correction of a young average; fp32 would cancel near beta = 1."""
    return -torch.expm1(age * math.log(beta)) if beta else torch.ones_like(age)


def deal(
    labels: Int[Tensor, " n"],
    shard_per_class: int | None,
    splitting: Literal["fixed", "random"],
    seed: int,
    step: int,
) -> Iterator[Int[Tensor, " b"]]:
    """Deal a bank into shards: positions, ordered by class, every position in one shard.

    Shard k holds the k-th ``shard_per_class`` latents of every class that has so many. ``fixed``
    gives the same shards at every step (each is then an optimisation of its own), ``random``
    shuffles every class anew.
    """
    groups = []
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().flatten()
        if splitting == "random":
            rng = derive(seed, "deal", label, step)
            members = members[torch.randperm(len(members), generator=rng)]
        groups.append(members.split(shard_per_class or len(members)))
    for k in range(max(len(g) for g in groups)):
        yield torch.cat([g[k] for g in groups if k < len(g)])
