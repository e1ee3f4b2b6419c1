"""Pre-training of the generator: a class-conditional BigGAN that sees little data.

    D:  mean relu(1 - D(T(x), y)) + mean relu(1 + D(T(G(z, y')), y'))       hinge loss
    G:  -mean D(T(G(z, y')), y')

T is DiffAugment: one random transformation for each image, real and generated alike, in both
steps, so that the discriminator cannot memorise the images. The generator that is kept has the
exponential average of the raw weights; the spectral vectors are recomputed for it, because an
average of unit vectors is no unit vector.
"""

import copy
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from itgan import artefacts
from itgan.artefacts import Checkpoint
from itgan.augment import Augmentation, siamese
from itgan.configs import PretrainingConfig
from itgan.data import Dataset, ImageSet
from itgan.devices import autocast, pick_device
from itgan.errors import InputError
from itgan.generators.biggan import BigGAN, BigGANShape, Discriminator
from itgan.pictures import grid, to_uint8
from itgan.progress import say, track
from itgan.randomness import derive, derive_seed

DIFFAUGMENT = {"translation": "crop", "cutout": "cutout", "color": "color"}
LOG_EVERY = 50
# Fields that say where and how long, not what: another value goes on with the same training.
PLACES = {"steps", "device", "dataset", "image_column", "label_column", "out"}
SAMPLE_EVERY = 1000


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
        self.stream = EpochStream(len(data), config.batch_size, config.seed)
        self.images = data.images.to(self.device)
        self.labels = data.labels.to(self.device)

    def identity(self) -> list[Any]:
        """What the training follows from, as JSON."""
        # Defaults are left out: a field added later must not orphan a training that took days.
        said = self.config.model_dump(exclude=PLACES, exclude_defaults=True)
        return [said, self.data.fingerprint]

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
            scores = self.discriminator(images, torch.cat([labels, fake_labels])).float()
        of_real, of_fake = scores.split([len(real), len(fake)])
        loss = F.relu(1 - of_real).mean() + F.relu(1 + of_fake).mean()
        return _descend(self.adam["discriminator"], loss)

    def _generator_step(self, step: int) -> Tensor:
        self.discriminator.requires_grad_(False)
        loss = _descend(self.adam["generator"], self._fooling(step))
        self.discriminator.requires_grad_(True)
        return loss

    def _fooling(self, step: int) -> Tensor:
        rng = derive(self.config.seed, "generator", step)
        with autocast(self.device, self.config.precision):
            fake, labels = self._fakes(rng)
            fake = _diffaugment(fake.float(), self.groups, rng)
            return -self.discriminator(fake, labels).float().mean()

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
        return self.generator(latents.to(self.device), labels), labels

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
        """The tensors of the file that stays."""
        return self.averaged().state_dict()

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


def _descend(optimiser: torch.optim.Optimizer, loss: Tensor) -> Tensor:
    optimiser.zero_grad()
    loss.backward()
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

    Writes ``generator.safetensors`` (averaged weights), ``metrics.jsonl`` and sample grids.

    Args:
        config: settings of the trainer.
        data: its training images are learned.
        out: one directory for one training.
        make: the trainer of such a config and images.

    Returns:
        The generator's path.

    Raises:
        InputError: ``out`` belongs to another configuration or has more steps already, or the
            loss became non-finite (the last good checkpoint is kept).
    """
    with artefacts.locked(out):
        trainer = make(config, data.train)
        identity = artefacts.json_digest(trainer.identity())
        checkpoint = Checkpoint(out / "checkpoint.safetensors", identity, every_seconds=120.0)
        begun = 0
        if (found := checkpoint.load()) is not None:
            trainer.restore(found[0])
            begun = found[1]["step"]
            if begun > config.steps:
                raise InputError(
                    f"steps: {config.steps}, but {out} has {begun} already; give at least as "
                    "many, or another --out"
                )
            say(f"pretrain: goes on at step {begun} of {config.steps}")
        artefacts.write_json(out / "config.json", config.model_dump())
        _train(trainer, checkpoint, begun, out)
        return _export(trainer, data, identity, out)


def _train(trainer: GANTrainer, checkpoint: Checkpoint, begun: int, out: Path) -> None:
    log = out / "metrics.jsonl"
    kept = [row for row in artefacts.read_jsonl(log) if row["step"] <= begun]
    artefacts.write_bytes(log, "".join(json.dumps(row) + "\n" for row in kept).encode())
    last = time.monotonic()
    for step in track(range(begun, trainer.config.steps), "pretrain"):
        losses = trainer.step(step)
        if not all(abs(value) < 1e6 for value in losses.values()):
            raise InputError(
                f"pretrain: the loss became {losses} at step {step}; the last good checkpoint is "
                f"kept in {out}; lower the learning rates or use --precision fp32"
            )
        done = step + 1
        end = done == trainer.config.steps
        if done % LOG_EVERY == 0 or end:
            now = time.monotonic()
            artefacts.append_jsonl(log, {"step": done, **losses, "seconds": round(now - last, 3)})
            last = now
        if done % SAMPLE_EVERY == 0 or end:
            (out / "samples").mkdir(exist_ok=True)
            trainer.sample_grid().save(out / "samples" / f"{done:07d}.png")
        checkpoint.offer(done, trainer.state, force=end)


def _export(trainer: GANTrainer, data: Dataset, identity: str, out: Path) -> Path:
    path = out / "generator.safetensors"
    seconds = sum(row["seconds"] for row in artefacts.read_jsonl(out / "metrics.jsonl"))
    artefacts.save(
        path,
        trainer.exported(),
        {
            "kind": "generator",
            "architecture": "biggan",
            "objective": trainer.OBJECTIVE,
            "weights": "average",
            "config": trainer.config.model_dump(),
            "training": identity,
            "dataset": data.name,
            "class_names": list(data.class_names),
            "trained_on": {"images": len(data.train), "sha256": data.train.fingerprint},
            "hours": round(seconds / 3600, 3),
        },
    )
    return path
