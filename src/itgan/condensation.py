"""Condensation: latents -> informative latents (Eq. 9-11).

    Eq. 9   L_con = sum_c || mean psi(A(x)) - mean psi(A(G(z))) ||^2     over a large real batch
    Eq. 10  R     = sum_c mean_i || psi(A(x_i)) - psi(A(G(z_i))) ||^2    x_i: the row z_i is from
    Eq. 11  L     = (1 - lambda) L_con + lambda R

At every step psi (a network of the pool) and, for each class, A (one Siamese augmentation for
all its images, real and synthetic) are drawn anew.

Only the class means couple the latents. So a first pass over micro-batches gives the means, the
gradient of Eq. 9 in them is then a constant, and a second pass back-propagates it: the gradient
of the whole batch in the memory of one micro-batch. A batch that fits needs one pass. Since no
latent needs another one's gradient, each micro-batch takes its step at once: what grows with the
bank is the latents and the optimiser's state alone.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from itgan import matching
from itgan.artefacts import Checkpoint
from itgan.augment import Augmentation, Blocks, draw_augmentation
from itgan.configs import CondensationConfig
from itgan.data import ImageSet
from itgan.devices import autocast
from itgan.embedding import Pool, make_pool
from itgan.errors import InputError
from itgan.generators import ConditionalGenerator
from itgan.latents import LatentAdam, LatentBank, LatentSGD, check_fits, deal
from itgan.matching import Discrepancy
from itgan.networks import Network, couples_images
from itgan.progress import track
from itgan.randomness import derive, derive_seed


@dataclass(frozen=True)
class Draw:
    """What one step draws: psi, and omega for each class."""

    network: Network
    augmentations: dict[int, Augmentation | None]

    def blocks(self, labels: Int[Tensor, " n"]) -> Blocks:
        """The augmentation of a batch that is ordered by class."""
        classes, counts = labels.unique_consecutive(return_counts=True)
        pairs = zip(classes.tolist(), counts.tolist(), strict=True)
        return Blocks(tuple((self.augmentations[label], count) for label, count in pairs))


@runtime_checkable
class Images(Protocol):
    """Images [n, c, h, w] that are made when they are asked for: a tensor is one."""

    def __getitem__(self, positions: Tensor) -> Tensor:
        """Those at these positions."""
        ...


@dataclass(frozen=True)
class Partners:
    """The x_i of Eq. 10 for a shard, brought to the device in parts."""

    real: ImageSet
    positions: Int[Tensor, " n"]
    device: torch.device

    def __getitem__(self, positions: Tensor) -> Tensor:
        """Those of some of the shard's latents."""
        return self.real.floats(self.positions[positions.cpu()]).to(self.device)


@dataclass(frozen=True)
class Problem:
    """One shard at one step: everything that its loss depends on but the latents."""

    generator: ConditionalGenerator
    labels: Int[Tensor, " n"]  # ordered by class
    draws: Sequence[Draw]
    real_means: Sequence[Float[Tensor, "classes s"]]  # of the statistic; for each draw
    partners: Images | None  # the x_i of Eq. 10
    lambda_reg: float
    micro_batch: int
    precision: str
    discrepancy: Discrepancy = matching.DistributionMatching()  # noqa: RUF009 - stateless


def mean_weights(
    labels: Int[Tensor, " n"], dtype: torch.dtype = torch.float32
) -> Float[Tensor, "classes n"]:
    """1 / n_c where an image is of class c, else 0: sums with these are class means."""
    members = (labels.unique()[:, None] == labels[None, :]).to(dtype)
    return members / members.sum(1, keepdim=True)


def latent_gradient(
    problem: Problem, latents: Float[Tensor, "n ..."]
) -> tuple[Float[Tensor, "n ..."], float, float]:
    """The gradient of Eq. 11 in the latents, and the values of L_con and R."""
    gradient = torch.empty_like(latents)

    def keep(chunk: Tensor, part: Tensor) -> None:
        gradient[chunk] = part

    return gradient, *descend(problem, latents.__getitem__, keep)


def descend(
    problem: Problem,
    read: Callable[[Tensor], Tensor],
    step: Callable[[Tensor, Tensor], None],
) -> tuple[float, float]:
    """Give the gradient of Eq. 11 in the latents, micro-batch by micro-batch.

    Args:
        problem: what the loss depends on.
        read: from positions in the shard to their latents.
        step: takes positions and the gradient there, once for every position; the latents may
            change then.

    Returns:
        The values of L_con and R before.
    """
    match, draws, device = problem.discrepancy, problem.draws, problem.labels.device
    chunks = torch.arange(len(problem.labels), device=device).split(problem.micro_batch)
    dtype = read(chunks[0][:1]).dtype
    weights = mean_weights(problem.labels, dtype)
    single = len(chunks) == 1

    def embed(chunk: Tensor, *, graph: bool) -> tuple[Tensor, list[Tensor]]:
        z, labels = read(chunk).detach().requires_grad_(graph), problem.labels[chunk]
        with autocast(device, problem.precision):
            with torch.set_grad_enabled(graph):
                images = problem.generator(z, labels)
            with torch.set_grad_enabled(graph or match.needs_graph):
                features = [d.network.embed(images, d.blocks(labels)) for d in draws]
        return z, [f.to(dtype) for f in features]

    def statistics(chunk: Tensor, features: list[Tensor], *, graph: bool) -> list[Tensor]:
        w, labels = weights[:, chunk], problem.labels[chunk]
        return [
            match.statistic(d.network, f, labels, w, differentiable=graph)
            for d, f in zip(draws, features, strict=True)
        ]

    # First pass: the statistics of the classes.
    totals = [torch.zeros_like(real, dtype=dtype) for real in problem.real_means]
    kept: tuple[Tensor, list[Tensor], list[Tensor]] | None = None
    for chunk in chunks:
        z, features = embed(chunk, graph=single)
        parts = statistics(chunk, features, graph=single)
        totals = [t + part.detach() for t, part in zip(totals, parts, strict=True)]
        kept = (z, features, parts) if single else None

    # The gradient of Eq. 9 in them.
    l_con, directions = 0.0, []
    for draw, real, total in zip(draws, problem.real_means, totals, strict=True):
        total.requires_grad_(True)
        value = match.distance(draw.network, real.to(total.dtype), total)  # Eq. 9
        directions.append(torch.autograd.grad(value, total)[0])
        l_con += float(value.detach()) / len(draws)

    # Second pass: the same constants, pulled back to the latents.
    regulariser = 0.0
    for chunk in chunks:
        if kept is not None:
            z, features, parts = kept
        else:
            z, features = embed(chunk, graph=True)
            parts = statistics(chunk, features, graph=True)
        pulled = [(d * part).sum() for d, part in zip(directions, parts, strict=True)]
        loss = (1 - problem.lambda_reg) * torch.stack(pulled).sum()
        if problem.partners is not None:
            r = _regulariser(problem, chunk, features, weights[:, chunk].sum(0))
            loss = loss + problem.lambda_reg * r
            regulariser += float(r.detach()) / len(draws)
        step(chunk, torch.autograd.grad(loss / len(draws), z)[0])
    return l_con, regulariser


def _regulariser(
    problem: Problem, chunk: Tensor, features: Sequence[Tensor], weights: Float[Tensor, " k"]
) -> Float[Tensor, ""]:
    """A part of Eq. 10, summed over draws."""
    assert problem.partners is not None
    total = features[0].new_zeros(())
    for draw, synthetic in zip(problem.draws, features, strict=True):
        with torch.no_grad(), autocast(synthetic.device, problem.precision):
            blocks = draw.blocks(problem.labels[chunk])
            real = draw.network.embed(problem.partners[chunk], blocks).to(synthetic.dtype)
        total = total + (matching.paired(real, synthetic) * weights).sum()  # Eq. 10
    return total


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
        generator: frozen.
        bank: where to start, usually an inverted bank.
        real: the training set that is matched; the bank's rows are found in it by number.
        config: steps, learning rate and so on.
        seed: of everything that is drawn. Draws belong to class, shard and step.
        pool: networks to match in; made from ``real`` as the config says when not given.
        checkpoint: where to keep snapshots, to go on after a kill.
        shards: numbers of the fixed shards to condense, all by default; the bank that comes out
            holds these alone, with the very latents that they get among all shards.

    Returns:
        A bank with stage ``condensed``. Its history has ``loss`` (Eq. 11), ``matching`` (Eq. 9)
        and, where lambda is not zero, ``regulariser`` (Eq. 10), as means over shards, and
        ``norm``, the mean norm of the latents, for each step.

    Raises:
        InputError: bank, generator and images do not belong together; a class has no real
            images; a row of the bank is not in ``real`` though lambda needs it; a pool with batch
            norm gets batches that do not fit one micro-batch; shards that are not there.
    """
    config = config or CondensationConfig()
    if shards is not None:
        bank, shards = _only(bank, config, shards)
    check_fits(generator, bank, real)
    device = generator.device
    pool = pool or make_pool(real, config, derive_seed(seed, "pool"), device)
    members = {c: real.class_indices(c) for c in bank.labels.unique().tolist()}
    for label, rows in members.items():
        if not len(rows):
            raise InputError(
                f"class {label} ({real.class_names[label]}): the bank has latents of it, but the "
                "data set has no images of it"
            )
    partners = _partners(bank, real) if config.lambda_reg > 0 else None
    optimiser = _optimiser(bank.latents.clone().to(device), config)
    names = ("loss", "matching", "regulariser", "norm")
    curves = torch.zeros(len(names), config.steps, dtype=torch.float64)
    begun = 0
    if checkpoint is not None and (found := checkpoint.load()) is not None:
        optimiser.restore(found[0])
        curves, begun = found[0]["curves"], found[1]["step"]

    discrepancy = matching.DISCREPANCIES[config.matching]()
    for step in track(range(begun, config.steps), "condensation"):
        dealt = list(_shards(bank.labels, config, seed, step, shards))
        for where, rows in dealt:
            labels = bank.labels[rows]
            draws = list(_draws(pool, labels, config, seed, (*where, step), discrepancy, device))
            if any(couples_images(d.network) for d in draws) and len(rows) > config.micro_batch:
                raise InputError(
                    f"condensation.micro_batch={config.micro_batch}: the pool's batch norm "
                    f"couples the images of a batch, so all {len(rows)} must go through at once; "
                    f"give --condensation.micro-batch {len(rows)} or a network with instance norm"
                )
            batch = _real_batch(real, members, labels, config, seed, where[0], step)
            problem = Problem(
                generator,
                labels.to(device),
                draws,
                _real_statistics(batch, draws, config, discrepancy, device),
                None if partners is None else Partners(real, partners[rows], device),
                config.lambda_reg,
                config.micro_batch,
                config.precision,
                discrepancy,
            )
            l_con, r = _descend(problem, optimiser, rows.to(device))
            loss = (1 - config.lambda_reg) * l_con + config.lambda_reg * r  # Eq. 11
            curves[:3, step] += torch.tensor([loss, l_con, r], dtype=torch.float64)
        curves[:3, step] /= len({where[0] for where, _ in dealt})
        curves[3, step] = optimiser.latents.flatten(1).norm(dim=1).mean()
        if checkpoint is not None:
            checkpoint.offer(step + 1, lambda: {**optimiser.state(), "curves": curves})
    history = dict(zip(names, curves.tolist(), strict=True))
    if partners is None:
        del history["regulariser"]
    return LatentBank(
        optimiser.latents.cpu(),
        bank.labels.clone(),
        bank.rows.clone(),
        "condensed",
        history,
        {
            "generator": generator.fingerprint,
            "seed": seed,
            "config": config.model_dump(),
            "start": bank.stage,
        },
    )


def _descend(
    problem: Problem, optimiser: LatentAdam | LatentSGD, rows: Int[Tensor, " n"]
) -> tuple[float, float]:
    """One step of the latents at these rows of the bank; the values of L_con and R before it."""
    return descend(
        problem,
        lambda chunk: optimiser.latents[rows[chunk]],
        lambda chunk, gradient: optimiser.step(rows[chunk], gradient),
    )


def _optimiser(latents: Tensor, config: CondensationConfig) -> LatentAdam | LatentSGD:
    if config.optimiser == "sgd":
        return LatentSGD(latents, config.learning_rate, config.momentum)
    return LatentAdam(latents, config.learning_rate)


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


def _shards(
    labels: Tensor,
    config: CondensationConfig,
    seed: int,
    step: int,
    numbers: Sequence[int] | None,
) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """What is optimised together: shard number (and class, where each draws a network), rows."""
    dealt = deal(labels, config.shard_per_class, config.splitting, seed, step)
    for k, rows in enumerate(dealt) if numbers is None else zip(numbers, dealt, strict=True):
        if config.network_per == "step":
            yield (k,), rows
        else:
            for label in labels[rows].unique().tolist():
                yield (k, label), rows[labels[rows] == label]


def _draws(
    pool: Pool,
    labels: Tensor,
    config: CondensationConfig,
    seed: int,
    where: tuple[int, ...],
    discrepancy: Discrepancy,
    device: torch.device,
) -> Iterator[Draw]:
    shard, step = where[0], where[-1]
    for e in range(config.embeddings_per_step):
        network = pool.draw(derive(seed, "network", *where, e)).to(device)
        discrepancy.prepare(network)
        augmentations = {
            c: draw_augmentation(
                derive(seed, "augmentation", c, shard, step, e), config.augmentation
            )
            for c in labels.unique().tolist()
        }
        yield Draw(network, augmentations)


def _real_batch(
    real: ImageSet,
    members: dict[int, Tensor],
    labels: Tensor,
    config: CondensationConfig,
    seed: int,
    shard: int,
    step: int,
) -> ImageSet:
    """The large independent batch of every class, ordered by class."""
    batches = []
    for label in labels.unique().tolist():
        rng = derive(seed, "real", label, shard, step)
        order = torch.randperm(len(members[label]), generator=rng)
        batches.append(members[label][order[: config.real_per_class]])
    return real.select(torch.cat(batches))


def _real_statistics(
    batch: ImageSet,
    draws: Sequence[Draw],
    config: CondensationConfig,
    discrepancy: Discrepancy,
    device: torch.device,
) -> list[Tensor]:
    """For each draw the statistics of the classes in a batch of real images."""
    weights = mean_weights(batch.labels).to(device)
    # A batch norm must see every class at once.
    whole = any(couples_images(d.network) for d in draws)
    totals = [torch.zeros((), device=device)] * len(draws)
    for chunk in torch.arange(len(batch)).split(len(batch) if whole else config.micro_batch):
        images, labels = batch.floats(chunk).to(device), batch.labels[chunk]
        for i, draw in enumerate(draws):
            with (
                autocast(device, config.precision),
                torch.set_grad_enabled(discrepancy.needs_graph),
            ):
                features = draw.network.embed(images, draw.blocks(labels)).float()
            part = discrepancy.statistic(
                draw.network,
                features,
                labels.to(device),
                weights[:, chunk.to(device)],
                differentiable=False,
            )
            totals[i] = totals[i] + part.detach()
    return totals


def _partners(bank: LatentBank, real: ImageSet) -> Tensor:
    """Positions in ``real`` of the rows that the latents came from."""
    position = {row: i for i, row in enumerate(real.rows.tolist())}
    missing = [row for row in bank.rows.tolist() if row not in position]
    if missing:
        raise InputError(
            f"latent bank: row {missing[0]} is not in the training images, but lambda_reg pairs "
            "every latent with its image; give the training set that the bank was made from"
        )
    found = torch.tensor([position[row] for row in bank.rows.tolist()])
    if not torch.equal(real.labels[found], bank.labels):
        raise InputError(
            "latent bank: its labels differ from the labels of its rows in the training images"
        )
    return found
