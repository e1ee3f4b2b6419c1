"""Pre-training of the generator: a class-conditional BigGAN that sees little data.

    D:  mean relu(1 - D(T(x), y)) + mean relu(1 + D(T(G(z, y')), y'))       hinge loss
    G:  -mean D(T(G(z, y')), y')

T is DiffAugment: one random transformation for each image, real and generated alike, in both
steps, so that the discriminator cannot memorise the images. The generator that is kept has the
exponential average of the raw weights; the spectral vectors are recomputed for it, because an
average of unit vectors is no unit vector. Its file holds the raw weights too.
"""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from itgan import artefacts
from itgan.artefacts import Checkpoint
from itgan.augment import Augmentation, siamese
from itgan.compilation import hastened
from itgan.data import Dataset, ImageSet
from itgan.devices import autocast, pick_device
from itgan.errors import InputError
from itgan.generator_configs import PretrainingConfig
from itgan.generators import RAW, FrozenGenerator
from itgan.generators.biggan import BigGAN, BigGANShape, Discriminator
from itgan.journal import Journal
from itgan.metrics import measure
from itgan.pictures import grid, to_uint8
from itgan.progress import say, track
from itgan.randomness import derive, derive_seed

DIFFAUGMENT = {"translation": "crop", "cutout": "cutout", "color": "color"}
LOG_EVERY = 50
# Fields that say where, how long and what is told, not what is trained: another value goes on with
# the same training.
TOLD = {"checkpoint_seconds", "measure_every", "patience", "monitor", "card"}
PLACES = {"steps", "device", "dataset", "image_size", "image_column", "label_column", "out"} | TOLD
LARGEST_LOSS = 1e6
SAMPLE_EVERY = 1000
SCORE = "score"  # of a measurement, in the journal: lower is better
DISTANCES = ("frechet", "kernel")  # figures of which less is better
IMPROVEMENT = 0.01  # of the score, that the patience waits for


def parse_diffaugment(policy: str) -> tuple[str, ...]:
    """Names of the augmentation groups of a policy such as ``translation,cutout``.

    Raises:
        InputError: an unknown operation.
    """
    if policy == "none":
        return ()
    names = policy.split(",")
    for name in names:
        if name not in DIFFAUGMENT:
            raise InputError(
                f"diffaugment {name!r}: choose from {', '.join(DIFFAUGMENT)} joined by commas, "
                "or none"
            )
    return tuple(DIFFAUGMENT[name] for name in names)


def _diffaugment(images: Tensor, groups: tuple[str, ...], rng: torch.Generator) -> Tensor:
    for group in groups:
        uniforms = torch.rand(len(images), 3, generator=rng)
        images = siamese(images, Augmentation(group, uniforms))
    return images


class Diverged(Exception):
    """A loss or a gradient that no step can be made with; the weights are those before it."""


class EpochStream:
    """An endless sequence of batches of row numbers, each epoch in its own order."""

    def __init__(self, n: int, batch_size: int, seed: int) -> None:
        """Of ``n`` rows."""
        self.n, self.batch_size, self.seed = n, batch_size, seed
        self._orders: dict[int, Tensor] = {}

    def batch(self, index: int) -> Tensor:
        """The rows of one batch, whichever were asked for before."""
        positions = torch.arange(index * self.batch_size, (index + 1) * self.batch_size)
        epochs = range(int(positions[0]) // self.n, int(positions[-1]) // self.n + 1)
        self._orders = {
            e: self._orders[e]
            if e in self._orders
            else torch.randperm(self.n, generator=derive(self.seed, "order", e))
            for e in epochs
        }
        return torch.stack([self._orders[int(p) // self.n][int(p) % self.n] for p in positions])


class GANTrainer:
    """Both networks, their optimisers and the average: everything that a step changes."""

    OBJECTIVE = "gan"
    NETWORKS: tuple[str, ...] = ("generator", "discriminator", "average")
    AVERAGES: Mapping[str, str] = {"average": "generator"}

    def __init__(self, config: PretrainingConfig, data: ImageSet) -> None:
        """Fresh networks, a function of the seed alone."""
        self.config, self.data = config, data
        self.groups = parse_diffaugment(config.diffaugment)
        self.device = pick_device(config.device)
        shape = BigGANShape(config.channels, data.num_classes, data.image_shape, config.latent_dim)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(config.seed, "pretraining"))
            self.generator = BigGAN(shape)
            self.discriminator = Discriminator(shape)
            self.average = BigGAN(shape)
        self.average.load_state_dict(self.generator.state_dict())
        for network in (self.generator, self.discriminator, self.average):
            network.to(self.device)
            network.to(memory_format=torch.channels_last)  # pyrefly: ignore
        self.adam = {
            "generator": adam(self.generator, config.generator_rate),
            "discriminator": adam(self.discriminator, config.discriminator_rate),
        }
        self.generate, self.judge = (
            self._hastened(self.generator),
            self._hastened(self.discriminator),
        )
        self.stream = EpochStream(len(data), config.batch_size, config.seed)
        self.images = data.images.to(self.device)
        self.labels = data.labels.to(self.device)

    def _hastened(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return hastened(function, self.device) if self.config.compile else function

    @property
    def last_phase(self) -> int:
        """The step from which on the objective stays the same."""
        return 0

    def identity(self) -> list[Any]:
        """What the training follows from, as JSON."""
        # Defaults are left out: a field added later must not orphan a training that took days.
        said = self.config.model_dump(exclude=PLACES, exclude_defaults=True)
        return [said, self.data.fingerprint]

    def prepare(self, checkpoint: Checkpoint) -> None:
        """What comes before the first step; its own snapshots go into ``checkpoint``."""

    def step(self, step: int) -> dict[str, float]:
        """Some discriminator steps, one generator step, one step of the average."""
        config = self.config
        self.generator.train()
        d_loss = torch.zeros(())
        for k in range(config.discriminator_steps):
            d_loss = self._discriminator_step(step, k)
        g_loss = self._generator_step(step)
        self._average_step(step)
        return {"d_loss": float(d_loss), "g_loss": float(g_loss)}

    def _discriminator_step(self, step: int, k: int) -> Tensor:
        config, rng = self.config, derive(self.config.seed, "discriminator", step, k)
        real, labels = self._reals(self.stream.batch(step * config.discriminator_steps + k), rng)
        with autocast(self.device, config.precision):
            with torch.no_grad():
                fake, fake_labels = self._fakes(rng)
            images = torch.cat([_diffaugment(x, self.groups, rng) for x in (real, fake.float())])
            images = images.contiguous(memory_format=torch.channels_last)
            scores = self.judge(images, torch.cat([labels, fake_labels])).float()
        of_real, of_fake = scores.split([len(real), len(fake)])
        loss = F.relu(1 - of_real).mean() + F.relu(1 + of_fake).mean()
        return descend([self.adam["discriminator"]], loss, "discriminator")

    def _generator_step(self, step: int) -> Tensor:
        self.discriminator.requires_grad_(False)
        loss = descend([self.adam["generator"]], self._fooling(step), "generator")
        self.discriminator.requires_grad_(True)
        return loss

    def _fooling(self, step: int) -> Tensor:
        rng = derive(self.config.seed, "generator", step)
        with autocast(self.device, self.config.precision):
            fake, labels = self._fakes(rng)
            fake = _diffaugment(fake.float(), self.groups, rng)
            return -self.judge(fake, labels).float().mean()

    def _reals(self, rows: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = rows.to(self.device)
        real, labels = self.images[rows].float() / 127.5 - 1, self.labels[rows]
        if self.config.flip:
            mirrored = (torch.rand(len(rows), generator=rng) < 0.5).to(self.device)
            real = torch.where(mirrored[:, None, None, None], real.flip(3), real)
        return real, labels

    def _fakes(self, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        n = self.config.batch_size
        latents = torch.randn(n, self.config.latent_dim, generator=rng)
        labels = torch.randint(self.data.num_classes, (n,), generator=rng).to(self.device)
        return self.generate(latents.to(self.device), labels), labels

    @torch.no_grad()
    def _average_step(self, step: int) -> None:
        decay = self.config.ema if step >= self.config.ema_start else 0.0
        for average, network in self.AVERAGES.items():
            raw = getattr(self, network).state_dict()
            for name, tensor in getattr(self, average).state_dict().items():
                tensor.lerp_(raw[name], 1 - decay)

    def state(self) -> dict[str, Tensor]:
        """Every tensor that the next step depends on."""
        state = {}
        for name in self.NETWORKS:
            for key, tensor in getattr(self, name).state_dict().items():
                state[f"{name}.{key}"] = tensor
        for name, optimiser in self.adam.items():
            for i, moments in optimiser.state_dict()["state"].items():
                for key, tensor in moments.items():
                    state[f"adam.{name}.{i}.{key}"] = tensor
        return state

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of ``state``."""
        for name in self.NETWORKS:
            getattr(self, name).load_state_dict(_under(state, f"{name}."))
        for name, optimiser in self.adam.items():
            parameters = optimiser.param_groups[0]["params"]
            moments: dict[int, dict[str, Tensor]] = {}
            for key, tensor in _under(state, f"adam.{name}.").items():
                index, _, field = key.partition(".")
                if tensor.ndim:  # fused Adam reads memory as it lies: strides must be the weight's
                    tensor = torch.empty_like(parameters[int(index)]).copy_(tensor)
                moments.setdefault(int(index), {})[field] = tensor
            groups = optimiser.state_dict()["param_groups"]
            optimiser.load_state_dict({"state": moments, "param_groups": groups})

    def averaged(self) -> BigGAN:
        """A copy of the average with spectral vectors of its own, ready for use."""
        model = copy.deepcopy(self.average)
        model.converge_power_vectors()
        return model.eval()

    def exported(self) -> dict[str, Tensor]:
        """The tensors of the file that stays: averaged weights, and ``raw.`` ones."""
        raw = {f"{RAW}{name}": t for name, t in self.generator.state_dict().items()}
        return {**self.averaged().state_dict(), **raw}

    def held_out(self, data: Dataset, out: Path) -> dict[str, float]:
        """What the average reaches on the validation images: the score, and figures by name."""
        generator = FrozenGenerator.from_biggan(self.averaged())
        figures = measure(generator, data, self.config.monitor, out, self.config.device)
        named = {figure.name: figure.value for figure in figures}
        if not named:
            return {}
        first = figures[0]
        return {SCORE: first.value if first.figure in DISTANCES else -first.value, **named}

    def sample_grid(self) -> Image.Image:
        """One row of pictures for each class (of at most ten)."""
        return grid(to_uint8(self.pictures(min(10, self.data.num_classes))))

    @torch.no_grad()
    def pictures(self, classes: int, per_class: int = 10) -> Tensor:
        """Samples of the first classes: classes per_class c h w, in [-1, 1]."""
        labels = torch.arange(classes).repeat_interleave(per_class)
        rng = derive(self.config.seed, "samples")
        latents = torch.randn(len(labels), self.config.latent_dim, generator=rng)
        images = self.averaged()(latents.to(self.device), labels.to(self.device)).cpu()
        return images.unflatten(0, (classes, per_class))


def adam(network: nn.Module, rate: float) -> torch.optim.Adam:
    """Adam as GANs like it: no momentum."""
    return torch.optim.Adam(network.parameters(), lr=rate, betas=(0.0, 0.999), fused=True)


def descend(optimisers: Sequence[torch.optim.Optimizer], loss: Tensor, name: str) -> Tensor:
    """One step, unless it would ruin the weights.

    Raises:
        Diverged: the loss is not finite or too large, or a gradient is not finite.
    """
    if not abs(float(loss.detach())) < LARGEST_LOSS:
        raise Diverged(f"the {name}'s loss became {float(loss.detach())}")
    for optimiser in optimisers:
        optimiser.zero_grad()
    loss.backward()
    groups = [group for optimiser in optimisers for group in optimiser.param_groups]
    weights = [w for group in groups for w in group["params"]]
    gradients = [w.grad for w in weights if w.grad is not None]
    if not torch.nn.utils.get_total_norm(gradients).isfinite():
        raise Diverged(f"the gradient of the {name}'s loss became non-finite")
    for optimiser in optimisers:
        optimiser.step()
    return loss.detach()


def _under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)}


def pretrain(
    config: PretrainingConfig,
    data: Dataset,
    out: Path,
    make: Callable[[Any, ImageSet], GANTrainer] = GANTrainer,
) -> Path:
    """Train a generator in the directory ``out``, or go on where a killed run stopped.

    Writes ``generator.safetensors`` (averaged and raw weights), ``metrics.jsonl``, sample grids
    and, where TensorBoard is installed, its log.

    Args:
        config: settings of the trainer.
        data: its training images are learned.
        out: one directory for one training.
        make: the trainer of such a config and images.

    Returns:
        The generator's path.

    Raises:
        InputError: ``out`` belongs to another configuration or has more steps already, there are
            no validation images to measure on, or a loss became non-finite (the last good
            checkpoint is kept).
    """
    if config.measure_every and data.validation is None:
        raise InputError(
            "measure_every: the training is measured on validation images; hold some out with "
            "--validation"
        )
    with artefacts.locked(out):
        trainer = make(config, data.train)
        identity = artefacts.json_digest(trainer.identity())
        checkpoint = Checkpoint(
            out / "checkpoint.safetensors", identity, config.checkpoint_seconds
        )
        begun, first = 0, checkpoint.part("first")
        if (found := checkpoint.load()) is not None:
            trainer.restore(found[0])
            begun = found[1]["step"]
            if begun > config.steps:
                raise InputError(
                    f"steps: {config.steps}, but {out} has {begun} already; give at least as "
                    "many, or another --out"
                )
            say(f"pretrain: goes on at step {begun} of {config.steps}")
        else:
            trainer.prepare(first)
        artefacts.write_json(out / "config.json", config.model_dump())
        journal = Journal(out, begun)
        try:
            steps = _train(trainer, data, checkpoint, begun, journal)
            first.clear()  # the snapshot of the training has it all
        finally:
            journal.close()
        return _export(trainer, data, identity, journal, steps)


def _train(
    trainer: GANTrainer, data: Dataset, checkpoint: Checkpoint, begun: int, journal: Journal
) -> int:
    """Train to the last step, or until the score has settled; returns the number of steps."""
    config = trainer.config
    last = time.monotonic()
    if settled(journal, config.patience, trainer.last_phase):
        return begun
    for step in track(range(begun, config.steps), "pretrain"):
        try:
            losses = trainer.step(step)
        except Diverged as error:
            raise InputError(
                f"pretrain: {error} at step {step}; the last good checkpoint is kept in "
                f"{journal.out}; lower the learning rates or use --precision fp32"
            ) from error
        done = step + 1
        end = done == config.steps
        if done % LOG_EVERY == 0 or end:
            now = time.monotonic()
            journal.numbers(done, losses, {"seconds": now - last})
            last = now
        if done % SAMPLE_EVERY == 0 or end:
            journal.picture(done, trainer.sample_grid())
        if config.measure_every and (done % config.measure_every == 0 or end):
            before = time.monotonic()
            journal.numbers(done, trainer.held_out(data, journal.out), {})
            last += time.monotonic() - before  # no training
            end |= settled(journal, config.patience, trainer.last_phase)
        checkpoint.offer(done, trainer.state, force=end)
        if end:
            return done
    return begun


def settled(journal: Journal, patience: int, last_phase: int = 0) -> bool:
    """Whether the last ``patience`` measurements have improved the score by less than 1 %.

    Only measurements after the step ``last_phase`` count.
    """
    scores = [row[SCORE] for row in journal.rows() if SCORE in row and row["step"] > last_phase]
    if not 0 < patience < len(scores):
        return False
    before, since = min(scores[:-patience]), min(scores[-patience:])
    if before - since >= IMPROVEMENT * abs(before):
        return False
    say(f"pretrain: the held-out score has settled at {since:.4g}; no further step")
    return True


def _export(
    trainer: GANTrainer, data: Dataset, identity: str, journal: Journal, steps: int
) -> Path:
    path = journal.out / "generator.safetensors"
    seconds = sum(row.get("seconds", 0) for row in journal.rows())
    artefacts.save(
        path,
        trainer.exported(),
        {
            "kind": "generator",
            "architecture": "biggan",
            "objective": trainer.OBJECTIVE,
            "weights": "average, raw",
            "config": trainer.config.model_dump(exclude=TOLD) | {"steps": steps},
            "training": identity,
            "dataset": data.name,
            "class_names": list(data.class_names),
            "trained_on": data.train.record,
            "hours": round(seconds / 3600, 3),
        },
    )
    return path
