"""An encoder E(x, y) -> z: where inversion may start, close to its end.

It learns first from pairs that cost nothing, and then what the inversion itself wants:

    pairs     min_E  ||E(G(z, y), y) - z||^2 / d_z        z ~ N(0, I), y uniform
    refined   min_E  L(E(x, y)), Eq. 8                    x, y: real images
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from itgan import artefacts
from itgan.artefacts import Checkpoint
from itgan.compilation import generate
from itgan.devices import autocast
from itgan.errors import InputError
from itgan.networks import build_network
from itgan.progress import track
from itgan.randomness import derive, derive_seed
from itgan.reconstruction import Objective
from itgan.splits import MOST_CLASSES


@dataclass(frozen=True)
class EncoderSpec:
    """What rebuilds an encoder, its weights aside."""

    image_shape: tuple[int, int, int]
    num_classes: int
    latent_shape: tuple[int, ...]
    width: int = 64

    def build(self, seed: int = 0) -> "Encoder":
        """A fresh encoder, on the CPU."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(seed, "encoder"))
            return Encoder(self, seed)


class Encoder(nn.Module):
    """A small ConvNet whose hidden features each class scales and shifts in its own way.

    Attributes:
        history: what training measured: ``pairs`` and ``refined``, the loss of each step.
    """

    def __init__(self, spec: EncoderSpec, seed: int = 0) -> None:
        """Build the layers."""
        super().__init__()
        self.spec = spec
        self.history: Mapping[str, Sequence[float]] = {}
        hidden = 8 * spec.width
        # No instance norm: it would hide brightness and contrast.
        self.body = build_network(
            "convnet", spec.image_shape, hidden, seed, norm="group", width=spec.width
        )
        self.gain = nn.Embedding(spec.num_classes, hidden)
        self.shift = nn.Embedding(spec.num_classes, hidden)
        nn.init.ones_(self.gain.weight)
        nn.init.zeros_(self.shift.weight)
        self.out = nn.Linear(hidden, torch.Size(spec.latent_shape).numel())

    def forward(
        self, images: Float[Tensor, "n c h w"], labels: Int[Tensor, " n"]
    ) -> Float[Tensor, "n ..."]:
        """Latents of images in [-1, 1]."""
        hidden = self.body(images) * self.gain(labels) + self.shift(labels)
        return self.out(hidden.relu()).unflatten(1, self.spec.latent_shape)

    def save(self, path: Path) -> None:
        """Write one safetensors file."""
        history = {name: list(values) for name, values in self.history.items()}
        about = {"kind": "encoder", "spec": asdict(self.spec), "history": history}
        artefacts.save(path, self.state_dict(), about)

    @classmethod
    def load(cls, path: Path) -> "Encoder":
        """Read what ``save`` wrote; frozen.

        Raises:
            InputError: no such file, damaged, or not an encoder.
        """
        tensors, metadata = artefacts.load(path, "encoder")
        with artefacts.described(path):
            values: dict[str, Any] = metadata["spec"]
            colours, height, width = map(int, values["image_shape"])
            latent_shape = tuple(map(int, values["latent_shape"]))
            classes, channels = int(values["num_classes"]), int(values["width"])
            numbers = (colours, height, width, math.prod(latent_shape), classes, channels)
            bounds = (1024, 1024, 1024, 10**7, MOST_CLASSES, 10**5)
            if not all(0 < n <= most for n, most in zip(numbers, bounds, strict=True)):
                raise InputError("its description is of no encoder; make the file again")
            spec = EncoderSpec((colours, height, width), classes, latent_shape, channels)
            with torch.device("meta"):  # takes no memory before the check
                expected = {name: t.shape for name, t in spec.build().state_dict().items()}
            if expected != {name: t.shape for name, t in tensors.items()}:
                raise InputError("its weights do not fit its description; make the file again")
            encoder = spec.build()
            encoder.load_state_dict(tensors)
            encoder.history = dict(metadata["history"])
        return encoder.requires_grad_(False).eval()


def train_encoder(
    objective: Objective, seed: int = 0, checkpoint: Checkpoint | None = None
) -> Encoder:
    """Train an encoder for the images of an objective, as ``config.encoder`` says.

    Args:
        objective: generator, extractor, real images and weights of Eq. 8.
        seed: of the weights, the pairs and the order of the images.
        checkpoint: where to keep snapshots, to go on after a kill.

    Returns:
        It, frozen, on the generator's device.

    Raises:
        InputError: the loss became non-finite.
    """
    trainer = _Trainer(objective, seed)
    begun = trainer.restore(checkpoint)
    for step in track(range(begun, trainer.total), "encoder"):
        trainer.step(step)
        if checkpoint is not None:
            checkpoint.offer(step + 1, trainer.state)
    return trainer.finished()


@dataclass
class _Trainer:
    objective: Objective
    seed: int
    encoder: Encoder = field(init=False)

    def __post_init__(self) -> None:
        generator, self.config = self.objective.generator, self.objective.config.encoder
        spec = EncoderSpec(
            tuple(generator.image_shape),
            generator.num_classes,
            tuple(generator.latent_shape),
            4 * self.config.width,
        )
        self.encoder = spec.build(self.seed).to(generator.device)
        self.adam = torch.optim.Adam(self.encoder.parameters(), lr=self.config.learning_rate)
        self.total = self.config.pair_steps + self.config.refine_steps
        self.losses = torch.zeros(self.total, dtype=torch.float64)

    def step(self, step: int) -> None:
        """One step: on pairs at first, then on real images."""
        pairs, refine = self.config.pair_steps, self.config.refine_steps
        if step < pairs:
            rate = self.config.learning_rate * (1 - step / pairs)
            loss = self._pairs(derive(self.seed, "pairs", step))
        else:
            rate = self.config.learning_rate / 3 * (1 - (step - pairs) / refine)
            loss = self._real(derive(self.seed, "real", step))
        for group in self.adam.param_groups:
            group["lr"] = rate
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()
        self.losses[step] = loss.detach().cpu()

    def _pairs(self, rng: torch.Generator) -> Float[Tensor, ""]:
        generator, count = self.objective.generator, self.config.batch_size
        device = generator.device
        z = torch.randn(count, *generator.latent_shape, generator=rng).to(device)
        labels = torch.randint(generator.num_classes, (count,), generator=rng).to(device)
        with autocast(device, self.objective.config.precision):
            with torch.no_grad():
                images = generate(generator, z, labels, compiled=self.objective.config.compile)
            found = self.encoder(images, labels)
        return (found.float() - z).square().mean()

    def _real(self, rng: torch.Generator) -> Float[Tensor, ""]:
        images, count = self.objective.images, self.config.batch_size
        chosen = torch.randperm(len(images), generator=rng)[:count]
        target = self.objective.target(chosen)
        with autocast(self.objective.generator.device, self.objective.config.precision):
            latents = self.encoder(target.real, target.labels)
        return self.objective(latents.float(), target).loss.mean()

    def state(self) -> dict[str, Tensor]:
        """All that a later step depends on."""
        state = {f"encoder.{name}": t for name, t in self.encoder.state_dict().items()}
        for name, parameter in self.encoder.named_parameters():
            for key, value in self.adam.state[parameter].items():
                state[f"adam.{key}.{name}"] = value
        return {**state, "losses": self.losses}

    def restore(self, checkpoint: Checkpoint | None) -> int:
        """Take the newest snapshot up, if there is one; the number of steps done."""
        found = checkpoint.load() if checkpoint is not None else None
        if found is None:
            return 0
        state, metadata = found
        with torch.no_grad():
            for name, tensor in self.encoder.state_dict().items():
                tensor.copy_(state[f"encoder.{name}"])
        for name, parameter in self.encoder.named_parameters():
            moments = ("exp_avg", "exp_avg_sq")
            self.adam.state[parameter] = {"step": state[f"adam.step.{name}"]} | {
                key: torch.empty_like(parameter).copy_(state[f"adam.{key}.{name}"])
                for key in moments
            }
        self.losses.copy_(state["losses"])
        return metadata["step"]

    def finished(self) -> Encoder:
        """The trained encoder, frozen."""
        if not self.losses[-1].isfinite():
            raise InputError(
                f"encoder: its loss became {float(self.losses[-1])}; lower "
                "--inversion.encoder.learning-rate"
            )
        pairs = self.config.pair_steps
        history = {"pairs": self.losses[:pairs], "refined": self.losses[pairs:]}
        self.encoder.history = {name: values.tolist() for name, values in history.items()}
        return self.encoder.requires_grad_(False).eval()
