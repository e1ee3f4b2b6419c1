"""Condensation: latents -> informative latents (Eq. 9-11).

    Eq. 9   L_con = sum_c || mean psi(A(x)) - mean psi(A(G(z))) ||^2     over a large real batch
    Eq. 10  R     = sum_c mean_i || psi(A(x_i)) - psi(A(G(z_i))) ||^2    x_i: the row z_i is from
    Eq. 11  L     = (1 - lambda) L_con + lambda R

``lambda_class`` adds the cross-entropy of the generated images in psi, a trained one, to L, as
Improved Distribution Matching (Zhao et al., 2023) does in pixels. In the place of L_con may stand
the loss of another matching: of gradients, or of a regression (see ``discrepancies``).

At every step psi (a network of the pool) and, for each class, A (one Siamese augmentation for
all its images, real and synthetic) are drawn anew.

How its gradient fits into the memory of one micro-batch is in ``two_pass``.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from itgan.artefacts import Checkpoint
from itgan.configs import CondensationConfig, PoolConfig
from itgan.data import ImageSet
from itgan.devices import send
from itgan.directions import principal_directions
from itgan.discrepancies import make_discrepancy
from itgan.drawing import (
    Partners,
    draw_embeddings,
    draw_real,
    draw_shards,
    positions_of,
    real_statistics,
)
from itgan.embedding import NetworkSpec, Pool, make_pool
from itgan.errors import InputError
from itgan.gains import Gains, check_gains
from itgan.generators import ConditionalGenerator
from itgan.latents import (
    TABLES,
    LatentAdam,
    LatentBank,
    LatentSGD,
    check_fits,
    deal,
    origin,
    sample_latents,
    tuned,
)
from itgan.networks import Network, couples_images
from itgan.progress import say, track
from itgan.randomness import ambient, derive, derive_seed
from itgan.two_pass import Problem, Values, descend

PROBE = 160  # latents at least that a micro-batch is measured with
AVERAGE = "average."  # before the names of means in a snapshot
MICRO_BATCHES = (5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560)  # that are tried


def check_together(network: Network, images: int, micro_batch: int | Literal["auto"]) -> None:
    """Refuse to part images whose embeddings depend on one another.

    Raises:
        InputError: the network has a batch norm, and so many images make several micro-batches,
            or may.
    """
    if (micro_batch == "auto" or images > micro_batch) and couples_images(network):
        raise InputError(
            f"micro_batch={micro_batch}: the network's batch norm couples the images of a batch, "
            f"so all {images} must go through at once; give {images}, or a network with instance "
            "norm"
        )


def check_classifiers(config: CondensationConfig, pool: Pool | None = None) -> None:
    """Refuse to let networks classify that cannot.

    Raises:
        InputError: they are untrained, unless a ``pool`` is given; or features are of all layers.
    """
    if not config.lambda_class:
        return
    weight = f"lambda_class={config.lambda_class:g}"
    if pool is None and config.pool.kind == "random":
        raise InputError(f"{weight}: untrained networks cannot classify; give pool.kind snapshots")
    if config.layers == "all":
        raise InputError(f"{weight}: classifiers read the last layer; leave layers out")


def condense(
    generator: ConditionalGenerator,
    bank: LatentBank,
    real: ImageSet,
    config: CondensationConfig | None = None,
    seed: int = 0,
    pool: Pool | None = None,
    checkpoint: Checkpoint | None = None,
    shards: Sequence[int] | None = None,
) -> LatentBank:
    """Make latents informative.

    Args:
        generator: frozen; where ``gains_rate`` is given, a copy's class gains and biases are
            learned too, by one step of Adam at the end of each step.
        bank: where to start, usually an inverted bank.
        real: the training set that is matched; the bank's rows are found in it by number.
        config: steps, learning rate and so on.
        seed: of everything that is drawn. Draws belong to class, shard and step.
        pool: networks to match in; made from ``real`` as the config says when not given.
        checkpoint: where to keep snapshots, to go on after a kill.
        shards: numbers of the fixed shards to condense, all by default; the bank that comes out
            holds these alone, with the very latents that they get among all shards.

    Returns:
        A bank with stage ``condensed``; with ``average`` its latents (and tables) are means over
        the last steps, with ``gains_rate`` it brings class tables. Its history has ``loss``
        (Eq. 11, and ``lambda_class`` times the cross-entropy), ``matching`` (Eq. 9, or what is
        in its place) and, where their weights are not zero, ``regulariser`` (Eq. 10) and
        ``classification`` (the cross-entropy, summed over classes), as means over shards, and
        ``norm``, the mean norm of the latents, for each step.

    Raises:
        InputError: bank, generator and images do not belong together; a class has no real
            images; a row of the bank is not in ``real`` though lambda needs it; a pool with batch
            norm gets batches that do not fit one micro-batch; shards that are not there; gains
            that the generator lacks, or in several shards; untrained networks that classify.
    """
    config = config or CondensationConfig()
    check_fits(generator, bank, real)
    check_classifiers(config, pool)
    check_gains(generator, config, int(bank.labels.bincount().max()))
    if shards is not None:
        bank, shards = _only(bank, config, shards)
    device = generator.device
    if pool is None:
        part = checkpoint.part("pool") if checkpoint is not None else None
        pool = make_pool(real, config, derive_seed(seed, "pool"), device, part)
    members = {c: real.class_indices(c) for c in bank.labels.unique().tolist()}
    for label, rows in members.items():
        if not len(rows):
            raise InputError(
                f"class {label} ({real.class_names[label]}): the bank has latents of it, but the "
                "data set has no images of it"
            )
    partners = positions_of(bank, real) if config.lambda_reg > 0 else None
    used = tuned(generator, bank)
    optimiser = _optimiser(bank.latents.clone().to(device), config, _basis(used, pool, config))
    gains = Gains(used, config.gains_rate) if config.gains_rate else None
    tables = bank.tables if gains is None else gains.tables
    mean = _Mean(config.steps - round(config.average * config.steps))
    names = ["loss", "matching", "regulariser", "norm"]
    names += ["classification"] if config.lambda_class else []
    dtype = bank.latents.dtype
    curves = torch.zeros(len(names), config.steps, dtype=dtype, device=device)
    begun, micro_batch = 0, config.micro_batch
    if checkpoint is not None and (found := checkpoint.load()) is not None:
        optimiser.restore(found[0])
        if gains is not None:
            gains.restore(found[0])
        mean.restore(found[0], device)
        curves, begun = found[0]["curves"].to(device), found[1]["step"]
        micro_batch = int(found[0]["micro_batch"])
    if micro_batch == "auto":
        network = NetworkSpec.of(config.network, real).build(0)
        check_together(network, len(bank.labels), micro_batch)
        micro_batch = fastest_micro_batch(generator, real, config)

    discrepancy = make_discrepancy(config.matching, config.ridge)
    compiled = config.compile and not discrepancy.needs_graph  # no second derivatives compiled
    for step in track(range(begun, config.steps), "condensation"):
        late = step >= config.steps - round(config.fp32_share * config.steps)
        precision = "fp32" if late else config.precision
        dealt = list(draw_shards(bank.labels, config, seed, step, shards))
        for where, rows in dealt:
            labels = bank.labels[rows]
            at = (*where, step)
            draws = list(draw_embeddings(pool, labels, config, seed, at, discrepancy, device))
            for draw in draws:
                check_together(draw.network, len(rows), micro_batch)
            batch = draw_real(real, members, labels, config, seed, where[0], step)
            with ambient(device, seed, "ambient", *at):
                problem = Problem(
                    used if gains is None else gains.generator,
                    labels,
                    draws,
                    real_statistics(batch, draws, micro_batch, precision, discrepancy, compiled),
                    None if partners is None else Partners(real, partners[rows], device),
                    config.lambda_reg,
                    micro_batch,
                    precision,
                    discrepancy,
                    config.kept_graphs,
                    compiled,
                    [] if gains is None else list(gains.tables.values()),
                    config.lambda_class,
                )
                values = _descend(problem, optimiser, send(rows, device))
            curves[:3, step] += torch.stack([values.loss, values.matching, values.regulariser])
            if config.lambda_class:
                curves[4, step] += values.classification
        if gains is not None:
            gains.step(send(torch.tensor(list(members)), device))
        mean.take(step, {"latents": optimiser.latents, **_prefixed(TABLES, tables)})
        curves[:, step] /= len({where[0] for where, _ in dealt})
        curves[3, step] = optimiser.latents.flatten(1).norm(dim=1).mean()
        if checkpoint is not None:
            extra = {"curves": curves, "micro_batch": torch.tensor(micro_batch), **mean.state()}
            extra |= {} if gains is None else gains.state()
            checkpoint.offer(step + 1, lambda extra=extra: {**optimiser.state(), **extra})
    history = dict(zip(names, curves.tolist(), strict=True))
    if partners is None:
        del history["regulariser"]
    latents = mean.values.get("latents", optimiser.latents)
    tables = {name: mean.values.get(f"{TABLES}{name}", t) for name, t in tables.items()}
    return LatentBank(
        latents.cpu(),
        bank.labels.clone(),
        bank.rows.clone(),
        "condensed",
        history,
        {
            **origin(generator, real, seed),
            "config": {**config.model_dump(), "micro_batch": micro_batch},
            "start": bank.stage,
        },
        {name: table.detach().cpu() for name, table in tables.items()},
    )


def fastest_micro_batch(
    generator: ConditionalGenerator,
    real: ImageSet,
    config: CondensationConfig,
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """How many images at a time make a step fastest, measured here and now.

    Small micro-batches stay in a processor's cache, large ones feed an accelerator. Of those
    within 3 % of the best speed the smallest is taken: it needs the least memory.

    Args:
        generator: frozen.
        real: the training set.
        config: what a step does.
        clock: seconds.
    """
    alone = {"steps": 1, "real_per_class": 1, "lambda_reg": 0.0, "shard_per_class": None}
    alone |= {"pool": PoolConfig(), "splitting": "fixed", "lambda_class": 0.0, "basis": "latent"}
    sizes = sorted({min(size, len(real)) for size in MICRO_BATCHES})
    speeds: dict[int, float] = {}
    for size in sizes:
        count = min(max(size, PROBE), len(real))  # what is done once a step weighs alike for all
        bank = sample_latents(generator, real.select(range(count)))
        once = config.model_copy(update={**alone, "micro_batch": size})
        try:
            condense(generator, bank, real, once)  # compiles
            taken = []
            for _ in range(3):
                begun = clock()
                condense(generator, bank, real, once)
                taken.append(clock() - begun)
        except torch.OutOfMemoryError:
            break
        speeds[size] = count / min(taken)
        if speeds[size] < 0.9 * max(speeds.values()):
            break
    chosen = min(s for s, speed in speeds.items() if speed >= 0.97 * max(speeds.values()))
    say(f"micro-batch: {chosen} of {list(speeds)}, {speeds[chosen]:.0f} latents per second")
    return chosen


class _Mean:
    """The mean of tensors over the steps from ``first`` on, one after another."""

    def __init__(self, first: int) -> None:
        self.first = first
        self.values: dict[str, Tensor] = {}

    @torch.no_grad()
    def take(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Count what a step gave."""
        if step == self.first:
            self.values = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        for name, mean in self.values.items():
            mean.lerp_(tensors[name], 1 / (step - self.first + 1))

    def state(self) -> dict[str, Tensor]:
        """All that a later step depends on."""
        return _prefixed(AVERAGE, self.values)

    def restore(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Take a ``state`` up."""
        own = (name for name in state if name.startswith(AVERAGE))
        self.values = {name.removeprefix(AVERAGE): state[name].to(device) for name in own}


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def _descend(
    problem: Problem, optimiser: LatentAdam | LatentSGD, rows: Int[Tensor, " n"]
) -> Values:
    """One step of the latents at these rows of the bank; the loss and its parts before it."""
    return descend(
        problem,
        lambda chunk: optimiser.latents[rows[chunk]],
        lambda chunk, gradient: optimiser.step(rows[chunk], gradient),
    )


def _basis(
    generator: ConditionalGenerator, pool: Pool, config: CondensationConfig
) -> Float[Tensor, "d d"] | None:
    """The directions of the images that Adam steps along, where they are asked for."""
    if config.basis == "latent":
        return None
    network = pool.draw(derive(0, "directions")).to(generator.device).requires_grad_(False)
    return principal_directions(generator, network, config.precision, compiled=config.compile)


def _optimiser(
    latents: Tensor, config: CondensationConfig, basis: Tensor | None
) -> LatentAdam | LatentSGD:
    if config.optimiser == "sgd":
        return LatentSGD(latents, config.learning_rate, config.momentum)
    decay_steps = config.steps if config.schedule == "cosine" else None
    return LatentAdam(latents, config.learning_rate, decay_steps=decay_steps, basis=basis)


def _only(
    bank: LatentBank, config: CondensationConfig, shards: Sequence[int]
) -> tuple[LatentBank, list[int]]:
    """The latents of these fixed shards, and the numbers in order."""
    every = list(deal(bank.labels, config.shard_per_class, "fixed", 0, 0))
    if config.splitting != "fixed":
        raise InputError("shards: a shard keeps its members with splitting=fixed only")
    if not shards or not set(shards) <= set(range(len(every))):
        raise InputError(f"shards: {list(shards)}, but the bank has 0...{len(every) - 1}")
    numbers = sorted(set(shards))
    return bank.select(torch.cat([every[k] for k in numbers]).sort().values), numbers
