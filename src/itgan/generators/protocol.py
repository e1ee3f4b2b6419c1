"""What a generator is, and how any differentiable function becomes one."""

import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from itgan.errors import InputError
from itgan.randomness import derive
from itgan.splits import MOST_CLASSES

MOST_NUMBERS = 1_000_000  # in a latent: more would fill the memory unasked
PROBES = 64  # images of a function's fingerprint: one of each class, of at most so many
LabelForm = Literal["index", "onehot", "none"]


@runtime_checkable
class ConditionalGenerator(Protocol):
    """A frozen differentiable map from latents and labels to images in [-1, 1].

    Attributes:
        latent_shape: shape of one latent.
        num_classes: number of labels, from 0.
        image_shape: (c, h, w) of one image.
        device: where it computes.
        fingerprint: a hash of what it computes; names results that depend on it.
    """

    num_classes: int
    image_shape: tuple[int, int, int]

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one latent."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hash of what it computes."""
        ...

    def __call__(
        self, latents: Float[Tensor, "n ..."], labels: Int[Tensor, " n"]
    ) -> Float[Tensor, "n c h w"]:
        """Images in [-1, 1]; image i depends on latent i and label i alone."""
        ...


@runtime_checkable
class TunableGenerator(ConditionalGenerator, Protocol):
    """A generator with a gain and a bias for each class and channel that may be learned.

    Row c of a table serves the images of class c alone.
    """

    def tables(self) -> dict[str, Float[Tensor, "classes width"]]:
        """Gains and biases by name."""
        ...

    def with_tables(self, tables: Mapping[str, Tensor]) -> "TunableGenerator":
        """The same generator with these in their place, differentiable in them.

        Raises:
            InputError: a table is none of the generator's, or of another shape.
        """
        ...


@runtime_checkable
class Encoder(Protocol):
    """A fast approximate inverse of a generator; a start for inversion."""

    def __call__(
        self, images: Float[Tensor, "n c h w"], labels: Int[Tensor, " n"]
    ) -> Float[Tensor, "n ..."]:
        """Latents whose images resemble these, in [-1, 1], of these classes."""
        ...

    def state_dict(self) -> Mapping[str, Tensor]:
        """Its weights."""
        ...


class WrappedGenerator:
    """A user's function with this project's conventions around it; made by ``wrap_generator``."""

    def __init__(
        self,
        fn: Callable[..., Tensor],
        latent_shape: tuple[int, ...],
        num_classes: int,
        image_shape: tuple[int, int, int],
        value_range: tuple[float, float],
        labels: LabelForm,
        device: torch.device,
    ) -> None:
        """Keep the conventions; the checks are ``wrap_generator``'s."""
        self.fn = fn
        self.latent_shape = latent_shape
        self.num_classes = num_classes
        self.image_shape = image_shape
        self.value_range = value_range
        self.labels: LabelForm = labels
        self.device = device
        self.fingerprint = ""

    def raw(self, latents: Tensor, labels: Tensor) -> Any:  # noqa: ANN401 - checked below
        """The function's own output."""
        if self.labels == "none":
            return self.fn(latents)
        if self.labels == "onehot":
            return self.fn(latents, F.one_hot(labels, self.num_classes).to(latents.dtype))
        return self.fn(latents, labels)

    def __call__(
        self, latents: Float[Tensor, "n ..."], labels: Int[Tensor, " n"]
    ) -> Float[Tensor, "n c h w"]:
        """Images in [-1, 1]."""
        low, high = self.value_range
        return (self.raw(latents, labels).float() - low) * (2 / (high - low)) - 1


def wrap_generator(
    fn: Callable[..., Tensor],
    *,
    latent_shape: tuple[int, ...],
    num_classes: int,
    image_shape: tuple[int, int, int],
    value_range: tuple[float | int, float | int] = (-1.0, 1.0),
    labels: LabelForm = "index",
    device: torch.device | str = "cpu",
) -> WrappedGenerator:
    """Use any differentiable function as a generator, after checking that it can be one.

    Args:
        fn: (latents, labels) -> images, or (latents) -> images when labels is ``none``.
        latent_shape: shape of one latent.
        num_classes: number of labels.
        image_shape: (c, h, w).
        value_range: least and greatest pixel value that ``fn`` returns.
        labels: ``fn`` takes class numbers, one-hot rows, or nothing.
        device: where ``fn`` computes.

    Raises:
        InputError: wrong shape or range, a gradient in the latents that is zero, missing or not
            finite, random output, images that depend on one another, labels that are
            declared but change nothing, or a function that raises an error.
    """
    if labels not in ("index", "onehot", "none"):
        raise InputError(f"labels={labels!r}: choose index, onehot or none")
    low, high = value_range
    if not (low < high and math.isfinite(high - low)):
        raise InputError(f"value_range={value_range}: give two numbers, the smaller one first")
    if not 2 <= num_classes <= MOST_CLASSES:
        raise InputError(f"num_classes={num_classes}: give 2 to {MOST_CLASSES}")
    if not latent_shape or min(latent_shape) < 1 or math.prod(latent_shape) > MOST_NUMBERS:
        raise InputError(f"latent_shape={latent_shape}: give 1 to {MOST_NUMBERS:,} numbers in all")
    generator = WrappedGenerator(
        fn,
        tuple(latent_shape),
        num_classes,
        image_shape,
        (float(low), float(high)),
        labels,
        torch.device(device),
    )
    generator.fingerprint = hashlib.sha256(probed(generator).numpy().tobytes()).hexdigest()
    return generator


def probed(generator: WrappedGenerator) -> Tensor:
    """Images of a fixed probe batch, after all checks.

    Raises:
        InputError: see ``wrap_generator``.
    """
    try:
        return _checked(generator).detach().cpu().float()
    except (InputError, MemoryError):
        raise
    except Exception as error:  # a stranger's function may raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise InputError(
            f"generator: fails on latents of shape {generator.latent_shape} ({reason}); correct "
            "latent_shape, labels or the function"
        ) from error


def _checked(generator: WrappedGenerator) -> Tensor:
    n = 4 if generator.labels == "none" else min(max(4, generator.num_classes), PROBES)
    rng = derive(0, "probe")
    latents = torch.randn(n, *generator.latent_shape, generator=rng).to(generator.device)
    labels = (torch.arange(n) % generator.num_classes).to(generator.device)
    latents.requires_grad_(True)
    images = generator.raw(latents, labels)
    if not isinstance(images, Tensor):
        raise InputError(
            f"generator: returns a {type(images).__name__}, not a tensor; wrap a function that "
            "takes the images out of it"
        )
    _check_values(generator, images, n)
    (gradient,) = (
        torch.autograd.grad((images.float() ** 2).sum(), latents, allow_unused=True)
        if images.requires_grad
        else (None,)
    )
    if gradient is None or not gradient.isfinite().all() or not gradient.any():
        raise InputError(
            "generator: the gradient of its images in the latents is missing, zero or not finite; "
            "latents can only be learned through a differentiable function (no torch.no_grad, "
            "no integer output)"
        )
    with torch.no_grad():
        # Rounding may differ: a GPU fuses a traced module's kernels from its second call on.
        again = generator.raw(latents, labels)
        if not torch.allclose(again, images, rtol=0, atol=1e-5 * _span(generator)):
            raise InputError(
                "generator: two calls with the same latents differ; switch dropout and noise off "
                "(module.eval())"
            )
        for pair in torch.arange(4).split(2):  # batch norms in training mode take no single one
            apart = generator.raw(latents[pair], labels[pair])
            if not torch.allclose(apart, images[pair], atol=1e-3 * _span(generator)):
                raise InputError(
                    "generator: an image changes with the other latents of its batch; put batch "
                    "norms into evaluation mode (module.eval())"
                )
        others = generator.raw(latents, (labels + 1) % generator.num_classes)
        if generator.labels != "none" and torch.equal(others, images):
            raise InputError(
                'generator: labels change nothing; say labels="none" if that is meant'
            )
    return images


def _check_values(generator: WrappedGenerator, images: Tensor, n: int) -> None:
    if tuple(images.shape) != (n, *generator.image_shape):
        raise InputError(
            f"generator: returns shape {tuple(images.shape)} for {n} latents, expected "
            f"{(n, *generator.image_shape)}; correct image_shape or the function"
        )
    if not images.is_floating_point() or not images.isfinite().all():
        raise InputError(
            "generator: its images must be finite floating-point numbers; correct the function"
        )
    low, high = generator.value_range
    images = images.detach()
    slack = 1e-3 * _span(generator)
    if images.min() < low - slack or images.max() > high + slack:
        raise InputError(
            f"generator: pixel values from {float(images.min()):.3g} to "
            f"{float(images.max()):.3g} leave value_range={generator.value_range}; correct it"
        )


def _span(generator: WrappedGenerator) -> float:
    return generator.value_range[1] - generator.value_range[0]
