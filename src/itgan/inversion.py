"""Inversion: real images -> latents that reproduce them (Eq. 8, see ``reconstruction``).

Every latent follows Adam on its own loss, from a start that belongs to its row: N(0, I), the best
of several such draws, or what an encoder E(x, y) says. Losses are summed over images, so that the
step of a latent does not depend on the images beside it.

The first ``batch_size`` images that are not done are worked on together. An image is done after
``steps`` steps, or when its own loss has stopped to fall; the next one takes its place. At the end
the worst images may start once more from another point; the better latent is kept.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from itgan.artefacts import Checkpoint
from itgan.configs import InversionConfig
from itgan.data import ImageSet
from itgan.embedding import train_extractor
from itgan.encoder import train_encoder
from itgan.errors import InputError
from itgan.generators import ConditionalGenerator
from itgan.latents import LatentAdam, LatentBank, check_images, initial_latents, origin
from itgan.networks import Network
from itgan.pictures import to_uint8
from itgan.progress import track
from itgan.randomness import derive_seed
from itgan.reconstruction import Objective, Target, psnr

CURVES = ("loss", "feature", "pixel", "norm")
Encode = Callable[[Tensor, Tensor], Tensor]


def invert(
    generator: ConditionalGenerator,
    images: ImageSet,
    config: InversionConfig | None = None,
    seed: int = 0,
    extractor: Network | None = None,
    checkpoint: Checkpoint | None = None,
    encoder: Encode | None = None,
) -> LatentBank:
    """Fit one latent to each image.

    Args:
        generator: frozen.
        images: real images; their labels condition the generator.
        config: steps, learning rate and so on.
        seed: of the starting points; latent i follows from the seed and image i alone. (Which
            images are the worst, and start again, depends on all of them.)
        extractor: psi; trained on ``images`` as the config says when not given.
        checkpoint: where to keep snapshots, to go on after a kill.
        encoder: (images [n, c, h, w] in [-1, 1], labels [n]) -> latents, where
            ``config.start`` is ``encoder`` (one is trained as the config says when not given) or
            ``own-encoder`` (``generators.load_encoder`` gives an autoencoder's).

    Returns:
        A bank with stage ``inverted``. Its history has for each step, as means over images,
        ``loss``, ``feature`` and ``pixel`` (Eq. 8) and ``norm`` (of the latents), where an image
        that left early keeps its last values; and, one number each, of the final latents:
        ``psnr`` in dB (mean squared error of pixels over 2, the range of [-1, 1]),
        ``final_feature``, quantiles ``norm_05``, ``norm_50``, ``norm_95``, ``left_early`` (share
        of the images), ``passes`` (steps and looks at candidates for each image, without the
        measurements at the end), ``control_psnr`` and ``control_correlation`` where the config
        asks for a control.

    Raises:
        InputError: the generator cannot make such images; an encoder gives other shapes, or is
            not given.
    """
    config = config or InversionConfig()
    if config.start == "own-encoder" and encoder is None:
        raise InputError("start=own-encoder: give the encoder too, from load_encoder(FILE)")
    check_images(generator, images)
    device = generator.device
    if extractor is None:
        part = checkpoint.part("extractor") if checkpoint is not None else None
        own = derive_seed(seed, "extractor")
        extractor = train_extractor(images, config.extractor, own, device, part)
    objective = Objective(generator, extractor, images, config)
    if config.start == "encoder" and encoder is None:
        part = checkpoint.part("encoder") if checkpoint is not None else None
        encoder = train_encoder(objective, derive_seed(seed, "encoder"), part)
    descent = Descent(objective, seed, encoder)
    latents, history = descent.run(checkpoint)
    bank = LatentBank(
        latents.cpu(),
        images.labels.clone(),
        images.rows.clone(),
        "inverted",
        history,
        {**origin(generator, images, seed), "config": config.model_dump()},
    )
    history["psnr"] = [psnr(generator, bank, images)]
    if config.control:
        few = images.select(torch.linspace(0, len(images) - 1, config.control).long().unique())
        found = self_inversion(generator, few, config, seed, extractor, encoder)
        history |= {f"control_{name}": [value] for name, value in found.items()}
    return bank


def self_inversion(
    generator: ConditionalGenerator,
    images: ImageSet,
    config: InversionConfig | None = None,
    seed: int = 0,
    extractor: Network | None = None,
    encoder: Encode | None = None,
) -> dict[str, float]:
    """The control: invert images that the generator made itself, from known latents.

    One image for each label of ``images``, rounded to 8 bits as stored images are. What is missing
    here is the optimiser's fault; what real images miss beyond it, the generator cannot make.

    Returns:
        ``psnr`` in dB, and ``correlation``: of the found with the true latents, over elements, as
        a mean over images.
    """
    config = (config or InversionConfig()).model_copy(update={"control": 0})
    true = initial_latents(generator.latent_shape, images.rows, derive_seed(seed, "control"))
    with torch.no_grad():
        made = [
            to_uint8(generator(z.to(generator.device), y.to(generator.device)).cpu())
            for z, y in zip(
                true.split(config.batch_size), images.labels.split(config.batch_size), strict=True
            )
        ]
    own = replace(images, images=torch.cat(made))
    bank = invert(generator, own, config, seed, extractor, encoder=encoder)
    pairs = torch.stack([true.flatten(1), bank.latents.flatten(1)])
    pairs = pairs - pairs.mean(2, keepdim=True)
    a, b = pairs / pairs.norm(dim=2, keepdim=True)
    return {"psnr": bank.history["psnr"][0], "correlation": float((a * b).sum(1).mean())}


class Descent:
    """Adam on Eq. 8 for every image, and for the worst ones a second attempt.

    Attempt i < n is of image i; the others are of the images that were worst after those. What
    a later step depends on is in tensors over attempts, so that they are the state to snapshot.
    """

    def __init__(self, objective: Objective, seed: int, encoder: Encode | None) -> None:
        """Nothing is computed yet."""
        self.objective, self.config, self.seed = objective, objective.config, seed
        self.encoder = encoder
        self.n, device = len(objective.images), objective.generator.device
        again = round(self.config.restart_share * self.n)
        attempts = self.n + again
        self.image = torch.full((attempts,), -1)
        self.adam = LatentAdam(
            torch.zeros(attempts, *objective.generator.latent_shape, device=device),
            self.config.learning_rate,
            decay_steps=self.config.steps if self.config.schedule == "cosine" else None,
            basis=objective.directions() if self.config.basis == "principal" else None,
        )
        self.done = torch.zeros(attempts, dtype=torch.bool)
        # Sums of the loss in the window now and in the one before it.
        self.windows = torch.zeros(2, attempts, dtype=torch.float64)
        self.curves = torch.zeros(len(CURVES), self.config.steps, dtype=torch.float64)

    def run(self, checkpoint: Checkpoint | None) -> tuple[Tensor, dict[str, list[float]]]:
        """The latents of the images, and the history."""
        begun = 0
        if checkpoint is not None and (found := checkpoint.load()) is not None:
            begun = found[1]["step"]
            self.adam.restore(found[0])
            for name, tensor in self._own().items():
                tensor.copy_(found[0][name])
        else:
            self._begin(torch.arange(self.n), torch.arange(self.n), self.seed, self.config.start)
        rounds = sum(-(-k // self.config.batch_size) for k in (self.n, len(self.image) - self.n))
        target, current = None, torch.empty(0, dtype=torch.int64)
        for work in track(range(begun, rounds * self.config.steps), "inversion"):
            active = self._active()
            if not len(active):
                break
            if target is None or not torch.equal(active, current):
                target, current = self.objective.target(self.image[active]), active
            self._step(active, target)
            if checkpoint is not None:
                checkpoint.offer(work + 1, lambda: {**self.adam.state(), **self._own()})
        return self._result()

    def _own(self) -> dict[str, Tensor]:
        return {n: getattr(self, n) for n in ("image", "done", "windows", "curves")}

    def _begin(self, attempts: Tensor, image: Tensor, seed: int, start: str) -> None:
        """Put attempts at their starting points."""
        self.image[attempts] = image
        latents = starts(self.objective, image, seed, start, self.encoder)
        self.adam.latents[attempts.to(latents.device)] = latents

    def _active(self) -> Int[Tensor, " k"]:
        """The attempts that are worked on: the first that are not done."""
        if not self.done[: self.n].all():
            return (~self.done[: self.n]).nonzero().flatten()[: self.config.batch_size]
        again = torch.arange(self.n, len(self.image))
        if len(again) and self.image[self.n] < 0:
            loss, _ = self.objective.losses(self.adam.latents[: self.n], self.image[: self.n])
            worst = loss.cpu().sort(descending=True, stable=True).indices[: len(again)]
            guessed = self.config.start.endswith("encoder")
            start = "random" if guessed else self.config.start
            self._begin(again, worst, derive_seed(self.seed, "restart"), start)
        return again[~self.done[again]][: self.config.batch_size]

    def _step(self, attempts: Int[Tensor, " k"], target: Target) -> None:
        """One step of Adam for each of these attempts."""
        rows = attempts.to(self.adam.latents.device)
        z = self.adam.latents[rows].requires_grad_(True)
        made = self.objective(z, target)
        (gradient,) = torch.autograd.grad(made.loss.sum(), z)  # Eq. 8, summed over images
        age = self.adam.visits[rows]
        self.adam.step(rows, gradient)
        norm = z.detach().flatten(1).norm(dim=1)
        parts = torch.stack([t.detach() for t in (made.loss, made.feature, made.pixel, norm)])
        measured = torch.cat([parts, age[None].to(parts)]).cpu().double()
        values, age = measured[:-1], measured[-1].long()

        left = self._settled(attempts, age + 1, values[0])
        self.done[attempts] = left | (age + 1 == self.config.steps)
        first = attempts < self.n
        self.curves.index_add_(1, age[first], values[:, first] / self.n)
        for i in (left & first).nonzero().flatten().tolist():
            self.curves[:, int(age[i]) + 1 :] += values[:, i : i + 1] / self.n

    def _settled(self, attempts: Tensor, age: Tensor, loss: Tensor) -> Tensor:
        """Whose loss, as a mean over the window, has fallen by less than the tolerance."""
        if not self.config.tolerance:
            return torch.zeros(len(attempts), dtype=torch.bool)
        window = self.config.window
        self.windows[0, attempts] += loss
        ends = age % window == 0
        now, before = self.windows[:, attempts]
        settled = ends & (age > window) & (now > (1 - self.config.tolerance) * before)
        self.windows[:, attempts[ends]] = torch.stack([torch.zeros_like(now), now])[:, ends]
        return settled

    def _result(self) -> tuple[Tensor, dict[str, list[float]]]:
        n, latents = self.n, self.adam.latents
        loss, feature = self.objective.losses(latents, self.image)
        chosen, again = torch.arange(n), torch.arange(n, len(self.image))
        loss = loss.cpu()
        better = again[loss[again] < loss[self.image[again]]]
        chosen[self.image[better]] = better
        final = latents[chosen.to(latents.device)]
        visits = self.adam.visits.cpu()
        looked = len(self.image) if self.config.start == "best-of" else 0
        norms = final.flatten(1).norm(dim=1).cpu()
        history = dict(zip(CURVES, self.curves.tolist(), strict=True))
        history["final_feature"] = [float(feature.cpu()[chosen].mean())]
        for percent in (5, 50, 95):
            history[f"norm_{percent:02}"] = [float(norms.quantile(percent / 100))]
        history["left_early"] = [float((visits[:n] < self.config.steps).double().mean())]
        history["passes"] = [(int(visits.sum()) + looked * self.config.candidates) / n]
        return final, history


@torch.no_grad()
def encode(
    encoder: Encode,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    latent_shape: tuple[int, ...],
) -> Float[Tensor, "n ..."]:
    """What an encoder says, in fp32.

    Raises:
        InputError: it fails on such images, or gives other shapes.
    """
    try:
        made = encoder(images, labels)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"encoder: fails on images of shape {tuple(images.shape[1:])} ({reason}); give one of "
            "such images, or start without"
        ) from error
    expected = (len(images), *latent_shape)
    if tuple(made.shape) != expected:
        raise InputError(
            f"encoder: gives {tuple(made.shape)} for {len(images)} images, but the generator "
            f"takes {expected}"
        )
    return made.float()


@torch.no_grad()
def starts(
    objective: Objective,
    positions: Int[Tensor, " n"],
    seed: int,
    start: str,
    encoder: Encode | None = None,
) -> Float[Tensor, "n ..."]:
    """Where the latents of these images begin; each follows from the seed and its image alone.

    ``random`` is N(0, I) by row number. ``best-of`` takes, of ``candidates`` such draws (the first
    is that of ``random``), the one nearest in features. ``encoder`` asks it.

    Raises:
        InputError: the encoder fails, or gives other shapes.
    """
    shape, device = objective.generator.latent_shape, objective.generator.device
    rows = objective.images.rows[positions]
    if start.endswith("encoder"):
        found = []
        for chunk in positions.split(objective.config.batch_size):
            real, labels = objective.images.floats(chunk), objective.images.labels[chunk]
            assert encoder is not None  # ``invert`` saw to it
            found.append(encode(encoder, real.to(device), labels.to(device), shape))
        return torch.cat(found)
    best = initial_latents(shape, rows, seed).to(device)
    if start == "best-of":
        _, least = objective.losses(best, positions)
        for k in range(1, objective.config.candidates):
            other = initial_latents(shape, rows, derive_seed(seed, "candidate", k)).to(device)
            _, feature = objective.losses(other, positions)
            nearer = feature < least
            best[nearer], least[nearer] = other[nearer], feature[nearer]
    return best
