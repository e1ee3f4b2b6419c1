"""Condensation: latents -> informative latents (Eq. 9-11).

    Eq. 9   L_con = sum_c || mean psi(A(x)) - mean psi(A(G(z))) ||^2     over a large real batch
    Eq. 10  R     = sum_c mean_i || psi(A(x_i)) - psi(A(G(z_i))) ||^2    x_i: the row z_i is from
    Eq. 11  L     = (1 - lambda) L_con + lambda R

At every step psi (a network of the pool) and, for each class, A (one Siamese augmentation for
all its images, real and synthetic) are drawn anew.

Only the class means couple the latents. So a first pass over micro-batches gives the means, the
gradient of Eq. 9 in them is then a constant, and a second pass back-propagates it: the gradient
of the whole batch in the memory of one micro-batch. A batch that fits needs one pass.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from itgan import matching
from itgan.artefacts import Checkpoint
from itgan.augment import Augmentation, Blocks, draw_augmentation
from itgan.configs import CondensationConfig
from itgan.data import ImageSet
from itgan.devices import autocast
from itgan.embedding import Pool, RandomPool
from itgan.errors import InputError
from itgan.generators import ConditionalGenerator
from itgan.latents import LatentAdam, LatentBank, check_fits, deal
from itgan.networks import Network, couples_images
from itgan.progress import track
from itgan.randomness import derive


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


@dataclass(frozen=True)
class Problem:
    """One shard at one step: everything that its loss depends on but the latents."""

    generator: ConditionalGenerator
    labels: Int[Tensor, " n"]  # ordered by class
    draws: Sequence[Draw]
    real_means: Sequence[Float[Tensor, "classes d"]]  # for each draw, in order of the classes
    partners: Float[Tensor, "n c h w"] | None  # the x_i of Eq. 10
    lambda_reg: float
    micro_batch: int
    precision: str


def latent_gradient(
    problem: Problem, latents: Float[Tensor, "n ..."]
) -> tuple[Float[Tensor, "n ..."], float, float]:
    """The gradient of Eq. 11 in the latents, and the values of L_con and R."""
    chunks = torch.arange(len(latents), device=latents.device).split(problem.micro_batch)
    local = problem.labels.unique(return_inverse=True)[1]  # n, numbers 0 … of the classes here
    counts = local.bincount().to(latents.dtype)[:, None]

    def features(chunk: Tensor) -> tuple[Tensor, list[Tensor]]:
        z = latents[chunk].detach().requires_grad_(torch.is_grad_enabled())
        labels = problem.labels[chunk]
        with autocast(latents.device, problem.precision):
            images = problem.generator(z, labels)
            embedded = [d.network.embed(images, d.blocks(labels)) for d in problem.draws]
        return z, [e.to(latents.dtype) for e in embedded]

    def add_means(means: list[Tensor], embedded: list[Tensor], chunk: Tensor) -> list[Tensor]:
        return [
            m.index_add(0, local[chunk], e.detach() / counts[local[chunk]])
            for m, e in zip(means, embedded, strict=True)
        ]

    # First pass: the class means.
    means = [torch.zeros_like(m, dtype=latents.dtype) for m in problem.real_means]
    kept = None
    for chunk in chunks:
        with torch.set_grad_enabled(len(chunks) == 1):
            kept = features(chunk)
        means = add_means(means, kept[1], chunk)

    # The gradient of Eq. 9 in the means.
    l_con, directions = 0.0, []
    for real, mean in zip(problem.real_means, means, strict=True):
        mean.requires_grad_(True)
        value = matching.class_means(real, mean)  # Eq. 9
        directions.append(torch.autograd.grad(value, mean)[0])
        l_con += float(value.detach()) / len(problem.draws)

    # Second pass: the same constants, pulled back to the latents.
    gradient, regulariser = torch.empty_like(latents), 0.0
    for chunk in chunks:
        z, embedded = kept if len(chunks) == 1 and kept is not None else features(chunk)
        weights = 1 / counts[local[chunk]]  # k 1
        total = latents.new_zeros(())
        for draw, direction, e in zip(problem.draws, directions, embedded, strict=True):
            total = (
                total + (1 - problem.lambda_reg) * (direction[local[chunk]] * e * weights).sum()
            )
            if problem.partners is not None:
                with torch.no_grad(), autocast(latents.device, problem.precision):
                    blocks = draw.blocks(problem.labels[chunk])
                    target = draw.network.embed(problem.partners[chunk], blocks)
                r = (matching.paired(target.to(e.dtype), e) * weights.squeeze(1)).sum()  # Eq. 10
                total = total + problem.lambda_reg * r
                regulariser += float(r.detach()) / len(problem.draws)
        gradient[chunk] = torch.autograd.grad(total / len(problem.draws), z)[0]
    return gradient, l_con, regulariser


def condense(
    generator: ConditionalGenerator,
    bank: LatentBank,
    real: ImageSet,
    config: CondensationConfig | None = None,
    seed: int = 0,
    pool: Pool | None = None,
    checkpoint: Checkpoint | None = None,
) -> LatentBank:
    """Make latents informative.

    Args:
        generator: frozen.
        bank: where to start, usually an inverted bank.
        real: the training set that is matched; the bank's rows are found in it by number.
        config: steps, learning rate and so on.
        seed: of everything that is drawn. Draws belong to class, shard and step.
        pool: networks to match in; untrained ones when not given.
        checkpoint: where to keep snapshots, to go on after a kill.

    Returns:
        A bank with stage ``condensed``. Its history has ``loss`` (Eq. 11), ``matching`` (Eq. 9)
        and, where lambda is not zero, ``regulariser`` (Eq. 10), as means over shards, and
        ``norm``, the mean norm of the latents, for each step.

    Raises:
        InputError: bank, generator and images do not belong together; a class has no real
            images; a row of the bank is not in ``real`` though lambda needs it; a pool with batch
            norm gets batches that do not fit one micro-batch.
    """
    config = config or CondensationConfig()
    check_fits(generator, bank, real)
    device = generator.device
    pool = pool or RandomPool(config.network, real)
    members = {c: real.class_indices(c) for c in bank.labels.unique().tolist()}
    for label, rows in members.items():
        if not len(rows):
            raise InputError(
                f"class {label} ({real.class_names[label]}): the bank has latents of it, but the "
                "data set has no images of it"
            )
    partners = _partners(bank, real) if config.lambda_reg > 0 else None
    adam = LatentAdam(bank.latents.clone().to(device), config.learning_rate)
    names = ("loss", "matching", "regulariser", "norm")
    curves = torch.zeros(len(names), config.steps, dtype=torch.float64)
    begun = 0
    if checkpoint is not None and (found := checkpoint.load()) is not None:
        adam.restore(found[0])
        curves, begun = found[0]["curves"], found[1]["step"]

    for step in track(range(begun, config.steps), "condensation"):
        shards = list(deal(bank.labels, config.shard_per_class, config.splitting, seed, step))
        for k, rows in enumerate(shards):
            labels = bank.labels[rows]
            draws = list(_draws(pool, labels, config, seed, k, step, device))
            if any(couples_images(d.network) for d in draws) and len(rows) > config.micro_batch:
                raise InputError(
                    f"condensation.micro_batch={config.micro_batch}: the pool's batch norm "
                    f"couples the images of a batch, so all {len(rows)} must go through at once; "
                    f"give --condensation.micro-batch {len(rows)} or a network with instance norm"
                )
            problem = Problem(
                generator,
                labels.to(device),
                draws,
                _real_means(real, members, labels, draws, config, seed, k, step, device),
                None if partners is None else real.floats(partners[rows]).to(device),
                config.lambda_reg,
                config.micro_batch,
                config.precision,
            )
            where = rows.to(device)
            gradient, l_con, r = latent_gradient(problem, adam.latents[where])
            adam.step(where, gradient)
            loss = (1 - config.lambda_reg) * l_con + config.lambda_reg * r  # Eq. 11
            curves[:3, step] += torch.tensor([loss, l_con, r], dtype=torch.float64) / len(shards)
        curves[3, step] = adam.latents.flatten(1).norm(dim=1).mean()
        if checkpoint is not None:
            checkpoint.offer(step + 1, lambda: {**adam.state(), "curves": curves})
    history = dict(zip(names, curves.tolist(), strict=True))
    if partners is None:
        del history["regulariser"]
    return LatentBank(
        adam.latents.cpu(),
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


def _draws(
    pool: Pool,
    labels: Tensor,
    config: CondensationConfig,
    seed: int,
    shard: int,
    step: int,
    device: torch.device,
) -> Iterator[Draw]:
    for e in range(config.embeddings_per_step):
        network = pool.draw(derive(seed, "network", shard, step, e)).to(device)
        augmentations = {
            c: draw_augmentation(
                derive(seed, "augmentation", c, shard, step, e), config.augmentation
            )
            for c in labels.unique().tolist()
        }
        yield Draw(network, augmentations)


@torch.no_grad()
def _real_means(
    real: ImageSet,
    members: dict[int, Tensor],
    labels: Tensor,
    draws: Sequence[Draw],
    config: CondensationConfig,
    seed: int,
    shard: int,
    step: int,
    device: torch.device,
) -> list[Tensor]:
    """For each draw the mean features of every class over its large real batch."""
    batches = []
    for label in labels.unique().tolist():
        rng = derive(seed, "real", label, shard, step)
        order = torch.randperm(len(members[label]), generator=rng)
        batches.append(members[label][order[: config.real_per_class]])
    rows = torch.cat(batches)
    local = torch.arange(len(batches)).repeat_interleave(torch.tensor([len(b) for b in batches]))
    counts = local.bincount().to(device)[:, None]
    # A batch norm must see every class at once.
    whole = any(couples_images(d.network) for d in draws)
    means = [torch.zeros((), device=device)] * len(draws)
    for chunk in torch.arange(len(rows)).split(len(rows) if whole else config.micro_batch):
        images = real.floats(rows[chunk]).to(device)
        where = local[chunk].to(device)
        for i, draw in enumerate(draws):
            with autocast(device, config.precision):
                blocks = draw.blocks(real.labels[rows[chunk]])
                e = draw.network.embed(images, blocks).float()
            part = e.new_zeros(len(batches), e.shape[1]).index_add(0, where, e / counts[where])
            means[i] = means[i] + part
    return means


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
