"""BigGAN for small images, in the layout of the public CIFAR generators.

Generator: linear -> 4x4 -> residual blocks, each doubling the resolution and conditioned on the
class by batch-norm gains and biases -> output norm -> 3x3 convolution -> tanh. One block per
doubling, all 4 ch wide: 8 pixels have one block, 32 have three. The discriminator is a residual
network with a projection on a class embedding. Every weight matrix of both is divided by its
largest singular value sigma, estimated by one power step per forward pass.

State-dict keys are those of the released files, so their weights load unchanged.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from itgan.errors import InputError
from itgan.randomness import derive

BN_EPS = 1e-5
RECALIBRATION = (20, 100)  # batches, latents in each
MOST_PIXELS = 1024  # of a side: more blocks would be a damaged file, and fill any memory


def power_step(weight: Float[Tensor, "o i"], u: Float[Tensor, "1 o"]) -> tuple[Tensor, Tensor]:
    """One power iteration from u: the next u and sigma = v W^T u^T (with gradient in W)."""
    with torch.no_grad():
        v = F.normalize(u @ weight, eps=1e-8)  # 1 i
        u = F.normalize(v @ weight.T, eps=1e-8)  # 1 o
    return u, (v @ weight.T @ u.T).squeeze()


class _Spectral(nn.Module):
    """A weight divided by its spectral norm; training updates the stored vector u0."""

    u0: Tensor
    sv0: Tensor

    def __init__(self, shape: tuple[int, ...], *, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.zeros(shape[0])) if bias else None
        self.register_buffer("u0", torch.randn(1, shape[0]))
        self.register_buffer("sv0", torch.ones(1))
        nn.init.normal_(self.weight, 0.0, 0.02)

    def normalised(self) -> Tensor:
        """The effective weight; power steps stay in fp32 whatever the precision around them."""
        with torch.autocast(self.weight.device.type, enabled=False):
            u, sigma = power_step(self.weight.flatten(1), self.u0)
            if self.training:
                with torch.no_grad():
                    self.u0.copy_(u)
                    self.sv0.fill_(sigma)
            return self.weight / sigma


class SpectralLinear(_Spectral):
    """A linear layer under spectral normalisation."""

    def __init__(self, inputs: int, outputs: int) -> None:
        """Weights of shape (outputs, inputs)."""
        super().__init__((outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the normalised layer."""
        return F.linear(x, self.normalised(), self.bias)


class SpectralConv(_Spectral):
    """A same-size convolution under spectral normalisation."""

    def __init__(self, inputs: int, outputs: int, size: int) -> None:
        """Weights of shape (outputs, inputs, size, size)."""
        super().__init__((outputs, inputs, size, size))
        self.padding = size // 2

    def forward(self, x: Tensor) -> Tensor:
        """Apply the normalised layer."""
        return F.conv2d(x, self.normalised(), self.bias, padding=self.padding)


class SpectralEmbedding(_Spectral):
    """A class embedding under spectral normalisation."""

    def __init__(self, classes: int, width: int) -> None:
        """Weights of shape (classes, width)."""
        super().__init__((classes, width), bias=False)

    def forward(self, labels: Tensor) -> Tensor:
        """Look up the normalised rows."""
        return F.embedding(labels, self.normalised())


class ConditionalNorm(nn.Module):
    """Batch norm with a gain (as 1 + gain) and a bias for each class."""

    stored_mean: Tensor
    stored_var: Tensor

    def __init__(self, width: int, classes: int) -> None:
        """Gains and biases start at N(0, 0.02)."""
        super().__init__()
        self.gain = nn.Embedding(classes, width)
        self.bias = nn.Embedding(classes, width)
        nn.init.normal_(self.gain.weight, 0.0, 0.02)
        nn.init.normal_(self.bias.weight, 0.0, 0.02)
        self.register_buffer("stored_mean", torch.zeros(width))
        self.register_buffer("stored_var", torch.ones(width))

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """Normalise, then scale and shift by class."""
        h = F.batch_norm(
            x, self.stored_mean, self.stored_var, None, None, self.training, 0.1, BN_EPS
        )
        gain, bias = self.gain(labels), self.bias(labels)
        return torch.addcmul(bias[..., None, None], h, 1 + gain[..., None, None])


class OutputNorm(nn.Module):
    """Batch norm before the output convolution; its gain is used as it is."""

    stored_mean: Tensor
    stored_var: Tensor

    def __init__(self, width: int) -> None:
        """Gain starts at one, bias at zero."""
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("stored_mean", torch.zeros(width))
        self.register_buffer("stored_var", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise."""
        return F.batch_norm(
            x,
            self.stored_mean,
            self.stored_var,
            self.gain,
            self.bias,
            self.training,
            0.1,
            BN_EPS,
        )


class UpBlock(nn.Module):
    """A residual block of the generator; doubles the resolution."""

    def __init__(self, width: int, classes: int) -> None:
        """All convolutions keep the width."""
        super().__init__()
        self.conv1 = SpectralConv(width, width, 3)
        self.conv2 = SpectralConv(width, width, 3)
        self.conv_sc = SpectralConv(width, width, 1)
        self.bn1 = ConditionalNorm(width, classes)
        self.bn2 = ConditionalNorm(width, classes)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """N w h h -> n w 2h 2h."""
        h = F.interpolate(F.relu(self.bn1(x, labels)), scale_factor=2)
        h = self.conv2(F.relu(self.bn2(self.conv1(h), labels)))
        # The 1x1 convolution commutes with nearest up-sampling and is cheaper before it.
        return h + F.interpolate(self.conv_sc(x), scale_factor=2)


@dataclass(frozen=True)
class BigGANShape:
    """What determines the layers of a generator."""

    channels: int
    num_classes: int
    image_shape: tuple[int, int, int]
    latent_dim: int

    @property
    def width(self) -> int:
        """Channels of every hidden layer."""
        return 4 * self.channels

    @property
    def blocks(self) -> int:
        """One block per doubling from 4 pixels."""
        return self.image_shape[1].bit_length() - 3

    def __post_init__(self) -> None:
        """Refuse shapes that the architecture cannot make."""
        colours, height, width = self.image_shape
        if height != width or not 8 <= height <= MOST_PIXELS or height & (height - 1):
            raise InputError(
                f"image size {height}x{width}: BigGAN makes squares of 8, 16, 32, … {MOST_PIXELS} "
                "pixels; choose one with --image-size"
            )
        if colours not in (1, 3):
            raise InputError(f"{colours} colour channels: BigGAN makes 1 or 3")

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> "BigGANShape":
        """Read the shape off a state dict.

        Raises:
            InputError: a tensor that every BigGAN has is missing or misshapen.
        """
        needed = {"blocks.0.0.bn1.gain.weight": 2, "linear.weight": 2, "output_layer.2.weight": 4}
        for name, rank in needed.items():
            if name not in state or state[name].ndim != rank:
                raise InputError(
                    f"not a BigGAN state dict: tensor {name} is missing or not of rank {rank}"
                )
        classes, width = state["blocks.0.0.bn1.gain.weight"].shape
        latent_dim = state["linear.weight"].shape[1]
        colours = state["output_layer.2.weight"].shape[0]
        blocks = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
        size = 4 << min(blocks, 20)  # refused anyway beyond
        return cls(width // 4, classes, (colours, size, size), latent_dim)


class BigGAN(nn.Module):
    """The generator as it is trained; ``frozen.FrozenGenerator`` is the one to use afterwards."""

    def __init__(self, shape: BigGANShape) -> None:
        """N(0, 0.02) weights from the ambient generator: seed inside ``fork_rng``."""
        super().__init__()
        self.shape = shape
        width = shape.width
        self.linear = SpectralLinear(shape.latent_dim, width * 16)
        self.blocks = nn.ModuleList(
            nn.ModuleList([UpBlock(width, shape.num_classes)]) for _ in range(shape.blocks)
        )
        colours = shape.image_shape[0]
        self.output_layer = nn.Sequential(
            OutputNorm(width), nn.ReLU(), SpectralConv(width, colours, 3)
        )

    def forward(
        self, latents: Float[Tensor, "n d"], labels: Int[Tensor, " n"]
    ) -> Float[Tensor, "n c h w"]:
        """Images in [-1, 1]."""
        h = self.linear(latents).unflatten(1, (-1, 4, 4))  # n w 4 4
        for (block,) in self.blocks:  # type: ignore[misc]
            h = block(h, labels)  # n w 2h 2h
        return torch.tanh(self.output_layer(h))

    @torch.no_grad()
    def converge_power_vectors(self, steps: int = 100) -> None:
        """Iterate every u0 to convergence: averaged weights need vectors of their own."""
        for module in self.modules():
            if isinstance(module, _Spectral):
                weight = module.weight.flatten(1)
                for _ in range(steps):
                    u, sigma = power_step(weight, module.u0)
                    module.u0.copy_(u)
                    module.sv0.fill_(sigma)

    @torch.no_grad()
    def recalibrate(self) -> None:
        """Take the statistics of every norm anew, from the model's own samples.

        Batches of random latents and labels pass with each norm's batch statistics; means and
        unbiased variances are averaged over the batches. In fp64, so that the rounded statistics,
        and with them a fingerprint, are the same on every processor.
        """
        norms = [m for m in self.modules() if isinstance(m, ConditionalNorm | OutputNorm)]
        kept: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {norm: [] for norm in norms}

        def add(norm: nn.Module, given: tuple[Tensor, ...]) -> None:
            kept[norm].append(torch.var_mean(given[0], (0, 2, 3)))

        was_training, device = self.training, self.linear.weight.device
        hooks = [norm.register_forward_pre_hook(add) for norm in norms]
        self.double().eval()  # spectral vectors stay as they are
        for norm in norms:
            norm.train()
        batches, size = RECALIBRATION
        for i in range(batches):
            rng = derive(0, "recalibration", i)
            latents = torch.randn(size, self.shape.latent_dim, generator=rng, dtype=torch.float64)
            labels = torch.randint(self.shape.num_classes, (size,), generator=rng)
            self(latents.to(device), labels.to(device))
        for hook in hooks:
            hook.remove()
        for norm in norms:
            variances, means = zip(*kept[norm], strict=True)
            norm.stored_mean.copy_(torch.stack(means).mean(0))
            norm.stored_var.copy_(torch.stack(variances).mean(0))
        self.float().train(was_training)


class DownBlock(nn.Module):
    """A residual block of the discriminator; halves the resolution where told."""

    def __init__(self, inputs: int, outputs: int, *, first: bool, halve: bool) -> None:
        """The first block has no activation before its first convolution."""
        super().__init__()
        self.first, self.halve = first, halve
        self.conv1 = SpectralConv(inputs, outputs, 3)
        self.conv2 = SpectralConv(outputs, outputs, 3)
        self.conv_sc = SpectralConv(inputs, outputs, 1) if halve or inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """N i h h -> n o h' h'."""
        h = self.conv2(F.relu(self.conv1(x if self.first else F.relu(x))))
        if self.halve:
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        return h + (x if self.conv_sc is None else self.conv_sc(x))


class Discriminator(nn.Module):
    """Wide residual blocks, sum-pool, linear score plus projection on a class embedding."""

    def __init__(self, shape: BigGANShape) -> None:
        """At 32 pixels four blocks, of which the first two halve the resolution."""
        super().__init__()
        width, colours, size = shape.width, *shape.image_shape[:2]
        halvings = max(1, size.bit_length() - 4)
        self.blocks = nn.ModuleList(
            DownBlock(colours if i == 0 else width, width, first=i == 0, halve=i < halvings)
            for i in range(max(4, halvings + 2))
        )
        self.linear = SpectralLinear(width, 1)
        self.embed = SpectralEmbedding(shape.num_classes, width)

    def forward(
        self, images: Float[Tensor, "n c h w"], labels: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """A score for each image: high means real."""
        h = images
        for block in self.blocks:
            h = block(h)
        h = F.relu(h).sum((2, 3))  # n w
        return self.linear(h).squeeze(1) + (self.embed(labels) * h).sum(1)
