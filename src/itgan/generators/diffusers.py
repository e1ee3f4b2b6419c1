"""Decoders of diffusers' ``AutoencoderKL`` as generators: spatial latents, labels unused.

    image = clamp(decode(z * std / scaling_factor + shift), -1, 1)

with the constants of the model's config, ``std`` and ``shift`` being its ``latents_std`` (or 1)
and its ``latents_mean`` or ``shift_factor`` (or 0): the z of latent diffusion models, which these
constants bring near N(0, 1). Nothing is fetched from a network, and no code comes from a file: the
stored form is the config and the decoder's tensors.
"""

import contextlib
import hashlib
import inspect
import json
import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from itgan.artefacts import digest
from itgan.errors import InputError
from itgan.generators.protocol import MOST_CLASSES, Encoder, WrappedGenerator, probed

PREFIX = "diffusers:"


class DiffusersGenerator(WrappedGenerator):
    """The decoder of an ``AutoencoderKL``, wrapped; it can be stored."""

    def __init__(
        self,
        model: Any,  # noqa: ANN401 - an AutoencoderKL, of an optional package
        num_classes: int,
        image_shape: tuple[int, int, int],
        device: torch.device,
    ) -> None:
        """Wrap a model, after the checks of ``wrap_generator``.

        Args:
            model: an ``AutoencoderKL`` with a decoder at least.
            num_classes: of the data; labels change nothing.
            image_shape: (c, h, w).
            device: where it computes.

        Raises:
            InputError: the model cannot make such images, or fails a check.
        """
        if not 2 <= num_classes <= MOST_CLASSES:
            raise InputError(f"num_classes={num_classes}: give 2 to {MOST_CLASSES}")
        self.model = model.to(device).requires_grad_(False).eval()
        config = model.config
        factor = 2 ** (len(config["block_out_channels"]) - 1)
        _, height, width = image_shape
        if height % factor or width % factor:
            raise InputError(
                f"makes images whose sides are multiples of {factor}, not {height}x{width}; "
                "choose another --image-size"
            )
        scale, shift = _constants(config, device)

        def decode(latents: Tensor) -> Tensor:
            images = self.model.decode(latents * scale + shift, return_dict=False)[0]
            return images.clamp(-1, 1)

        latent_shape = (config["latent_channels"], height // factor, width // factor)
        shape = (config["out_channels"], height, width)
        super().__init__(decode, latent_shape, num_classes, shape, (-1.0, 1.0), "none", device)
        probed(self)
        described = json.dumps(self.conventions(), sort_keys=True)
        self.fingerprint = hashlib.sha256(
            f"{digest(self.tensors())} {described}".encode()
        ).hexdigest()

    def tensors(self) -> dict[str, Tensor]:
        """What decoding needs: the encoder is left out."""
        return {
            name: tensor
            for name, tensor in self.model.state_dict().items()
            if name.startswith(("decoder.", "post_quant_conv."))
        }

    def conventions(self) -> dict[str, Any]:
        """The model's config and the shape of the images, as JSON."""
        return {
            "form": "diffusers",
            "config": _own_options(self.model.config),
            "num_classes": self.num_classes,
            "image_shape": list(self.image_shape),
        }


def load_diffusers(
    source: str,
    device: torch.device,
    num_classes: int | None,
    image_shape: tuple[int, int, int] | None,
) -> DiffusersGenerator:
    """Load a folder that ``AutoencoderKL.save_pretrained`` wrote.

    Args:
        source: ``diffusers:FOLDER``.
        device: where it computes.
        num_classes: of the data.
        image_shape: of the data; None takes the ``sample_size`` of the config.

    Raises:
        InputError: diffusers is not installed, ``num_classes`` is None, the folder holds no
            ``AutoencoderKL`` in safetensors, or the model fails a check.
    """
    model = _load(source)
    if num_classes is None:
        raise InputError(
            f"{source}: takes no labels, so its number of classes must come from the data: "
            "load_generator(..., num_classes=10)"
        )
    if image_shape is None:
        size = model.config["sample_size"]
        height, width = (size, size) if isinstance(size, int) else size
        image_shape = (model.config["out_channels"], height, width)
    try:
        return DiffusersGenerator(model, num_classes, image_shape, device)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error


def load_diffusers_encoder(source: str, device: torch.device) -> Encoder:
    """The encoder of such a folder: the mean latent of each image, in units of the decoder's z.

    Raises:
        InputError: diffusers is not installed, or the folder cannot be used.
    """
    try:
        return DiffusersEncoder(_load(source), device)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error


class DiffusersEncoder(nn.Module):
    """E(x) of an ``AutoencoderKL``; labels are not used."""

    def __init__(self, model: Any, device: torch.device) -> None:  # noqa: ANN401 - AutoencoderKL
        """Frozen; the decoder is let go."""
        super().__init__()
        self.device = device
        self.scale, self.shift = _constants(model.config, device)
        model.decoder = model.post_quant_conv = None
        self.model = model.to(device).requires_grad_(False).eval()

    def forward(
        self, images: Float[Tensor, "n c h w"], labels: Int[Tensor, " n"]
    ) -> Float[Tensor, "n d h2 w2"]:
        """The mean latent of each image; computed, and returned, on the device."""
        mean = self.model.encode(images.to(self.device)).latent_dist.mean
        return (mean.float() - self.shift) / self.scale


def restore_diffusers(
    tensors: Mapping[str, Tensor], conventions: Mapping[str, Any], device: torch.device
) -> DiffusersGenerator:
    """A generator from what its ``tensors()`` and ``conventions()`` gave.

    Raises:
        InputError: diffusers is not installed, or the parts do not fit together.
    """
    kind = _import()
    try:
        colours, height, width = (int(n) for n in conventions["image_shape"])
        num_classes = int(conventions["num_classes"])
        with torch.device("meta"), _quiet():
            model = kind(**_own_options(conventions["config"]))
        model.encoder = model.quant_conv = None
        weights = {name: tensor.float() for name, tensor in tensors.items()}
        model.load_state_dict(weights, assign=True)
    except Exception as error:  # a config that makes no sense may raise anything
        raise InputError("its config and tensors do not make an AutoencoderKL") from error
    return DiffusersGenerator(model, num_classes, (colours, height, width), device)


def _import() -> Any:  # noqa: ANN401 - the class AutoencoderKL
    try:
        with _quiet():
            from diffusers import AutoencoderKL
    except ImportError as error:
        raise InputError(
            'this generator needs diffusers: pip install "itgan[diffusers]"'
        ) from error
    return AutoencoderKL


def _load(source: str) -> Any:  # noqa: ANN401 - an AutoencoderKL
    """The model of a folder, in fp32.

    Raises:
        InputError: see ``load_diffusers``.
    """
    kind, folder = _import(), Path(source.removeprefix(PREFIX))
    if (folder / "model_index.json").exists() and (folder / "vae").is_dir():
        raise InputError(f"{source}: a whole pipeline; give its autoencoder: {source}/vae")
    try:
        named = json.loads((folder / "config.json").read_text()).get("_class_name")
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(
            f"{source}: no folder with a readable config.json; give what "
            "AutoencoderKL.save_pretrained wrote"
        ) from error
    if named != "AutoencoderKL":
        raise InputError(f"{source}: holds a {named}; generators are read from AutoencoderKL")
    files = sorted(folder.glob("diffusion_pytorch_model*.safetensors"))
    if not files:
        raise InputError(
            f"{source}: has no diffusion_pytorch_model.safetensors; pickled weights run code when "
            "loaded: convert them where you trust them, with save_pretrained(FOLDER)"
        )
    try:
        with _quiet(), torch.random.fork_rng(devices=[]):
            model, info = kind.from_pretrained(
                str(folder),
                use_safetensors=True,
                local_files_only=True,
                low_cpu_mem_usage=False,
                output_loading_info=True,
                torch_dtype=torch.float32,
                variant=_variant(files[0]),
            )
    except Exception as error:  # what a damaged folder raises has no common type
        raise InputError(f"{source}: damaged, or its weights do not fit its config") from error
    if info["missing_keys"]:
        raise InputError(f"{source}: damaged: tensor {info['missing_keys'][0]} is missing")
    return model


def _variant(file: Path) -> str | None:
    """``fp16`` of ``diffusion_pytorch_model.fp16.safetensors``."""
    return file.name.split(".")[1] if file.name.count(".") > 1 else None


def _own_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the constructor; notes on files and versions are left out."""
    known = list(inspect.signature(_import().__init__).parameters)[1:]
    return {name: config[name] for name in known if name in config}


def _constants(config: Mapping[str, Any], device: torch.device) -> tuple[Tensor, Tensor]:
    """Scale and shift from z to what the decoder takes, each broadcast to n c h w.

    Raises:
        InputError: the config has no such numbers.
    """
    channels = config["latent_channels"]

    def column(name: str, default: float) -> Tensor:
        values = config.get(name)
        try:
            given = torch.tensor(default if values is None else values, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError):
            given = torch.tensor(math.nan)
        if given.numel() not in (1, channels) or not given.isfinite().all():
            raise InputError(
                f"{name}={values!r} in its config.json: neither a number nor {channels} of them; "
                "correct it"
            )
        return given.reshape(1, -1, 1, 1).to(device)

    factor = column("scaling_factor", math.nan)
    if not factor.all():
        raise InputError("scaling_factor=0 in its config.json; correct it")
    shift = "shift_factor" if config.get("latents_mean") is None else "latents_mean"
    return column("latents_std", 1.0) / factor, column(shift, 0.0)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a folder loads or is refused in one line
        yield
