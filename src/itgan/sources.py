"""What a classifier can be trained on: generated sets, fresh samples, stored pixels.

A source has a name, a length, and ``batches(rng, batch_size)``: one shuffled epoch of images in
[-1, 1] with labels. ``ImageSet`` is one too.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from itgan import artefacts
from itgan.compilation import generate
from itgan.configs import Dtype
from itgan.data import shuffled
from itgan.devices import autocast
from itgan.errors import InputError
from itgan.generators import ConditionalGenerator, StoredGenerator, restore_generator
from itgan.latents import LatentBank, check_bank, tuned
from itgan.pictures import to_png, to_uint8
from itgan.randomness import derive

if TYPE_CHECKING:
    import datasets

NAMES = {"random": "gan", "inverted": "inversion", "condensed": "itgan"}  # by stage
ABOUT = ("dataset", "class_names")  # that a bank knows, too
CHUNK = 500  # images that are generated at a time


class PixelSet:
    """Stored images, with hard or soft labels.

    Attributes:
        images: uint8, or float in [-1, 1], [n, c, h, w].
        labels: int64 [n], or float probabilities [n, classes].
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        name: str = "pixels",
        variant: str = "",
        latent_seed: int = 0,
        nbytes: int | None = None,
    ) -> None:
        """Keep images and labels.

        Args:
            images: uint8 or float [n, c, h, w].
            labels: int64 [n] or float [n, classes].
            name: the source's name in tables.
            variant: what distinguishes it from others of that name.
            latent_seed: of the bank that it stands beside.
            nbytes: size in storage; by default that of the tensors.

        Raises:
            InputError: shapes or types do not fit, floats leave [-1, 1], or a label is negative.
        """
        if images.ndim != 4 or len(images) != len(labels) or not len(images):
            raise InputError(
                f"pixel set: images of shape {tuple(images.shape)} with labels of shape "
                f"{tuple(labels.shape)}; give [n, c, h, w] and one label per image"
            )
        if images.is_floating_point():
            if not images.isfinite().all() or images.abs().max() > 1.01:
                raise InputError(
                    "pixel set: float images must be finite and lie in [-1, 1]; scale them"
                )
        elif images.dtype != torch.uint8:
            raise InputError(f"pixel set: images are {images.dtype}; give uint8 or float")
        soft = labels.ndim == 2 and labels.is_floating_point()
        if not soft and (labels.ndim != 1 or labels.dtype != torch.int64):
            raise InputError(
                f"pixel set: labels are {labels.dtype} of shape {tuple(labels.shape)}; give int64 "
                "[n], or probabilities [n, classes]"
            )
        if not (labels >= 0).all():
            raise InputError("pixel set: labels must not be negative or NaN")
        if images.dtype == torch.float64:  # in which no network computes
            images = images.float()
        self.images, self.labels = images, labels
        self.name, self.variant, self.latent_seed = name, variant, latent_seed
        if nbytes is None:
            each = labels.element_size() if soft else label_bytes(int(labels.max()) + 1)
            nbytes = images.numel() * images.element_size() + labels.numel() * each
        self.nbytes = nbytes

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def batches(self, rng: torch.Generator, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """One shuffled epoch; see ``itgan.data.shuffled``."""
        for rows in shuffled(len(self), rng, batch_size):
            images = self.images[rows]
            if not images.is_floating_point():
                images = images.float() / 127.5 - 1
            yield images, self.labels[rows]


def label_bytes(num_classes: int) -> int:
    """Bytes of one stored class number."""
    return 1 if num_classes <= 256 else 4


class SyntheticSet(TorchDataset[tuple[Tensor, int]]):
    """A generator and a bank of latents: a PyTorch data set that is made on the fly.

    Items are (float image [c, h, w] in [-1, 1], int label).
    """

    def __init__(
        self,
        generator: ConditionalGenerator,
        bank: LatentBank,
        dtype: Dtype = "fp32",
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Put generator and bank together.

        Args:
            generator: frozen.
            bank: latents that fit it; class tables that it brings become the generator's.
            dtype: in which ``nbytes`` counts.
            about: the data set: ``dataset`` (name), ``class_names``, ``mean``, ``std``; by default
                what the bank knows of it. ``source`` is the name in tables, where it is not that
                of the bank's stage.
        """
        check_bank(generator, bank)
        if bank.tables:
            generator = tuned(generator, bank)
            bank = replace(bank, tables={}).moved_to(generator)
        known = {k: bank.provenance[k] for k in ABOUT if bank.provenance.get(k)}
        self.generator, self.bank, self.dtype = generator, bank, dtype
        self.about: Mapping[str, Any] = {**known, **(about or {})}
        self.name = str(self.about.get("source") or NAMES[bank.stage])
        self.variant = ""
        self.latent_seed = 0

    def __len__(self) -> int:
        """Number of images."""
        return len(self.bank)

    def __getitem__(self, index: int) -> tuple[Float[Tensor, "c h w"], int]:
        """One image and its label."""
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        position = torch.tensor([index % len(self)])
        return self.images(position)[0], int(self.bank.labels[position])

    @property
    def labels(self) -> Int[Tensor, " n"]:
        """All labels."""
        return self.bank.labels

    @property
    def class_names(self) -> tuple[str, ...]:
        """One per class; numbers where the data set's are not known."""
        names = self.about.get("class_names") or range(self.generator.num_classes)
        return tuple(str(name) for name in names)

    @torch.no_grad()
    def images(self, indices: Int[Tensor, " k"] | None = None) -> Float[Tensor, "k c h w"]:
        """Generate the images at these positions (all by default), on the CPU."""
        indices = torch.arange(len(self)) if indices is None else torch.as_tensor(indices)
        device = self.generator.device
        made = [
            self.generator(self.bank.latents[i].to(device), self.bank.labels[i].to(device)).cpu()
            for i in indices.split(CHUNK)
        ]
        return torch.cat(made)

    def pixels(self, indices: Int[Tensor, " k"] | None = None) -> UInt8[Tensor, "k c h w"]:
        """The images at these positions (all by default) in 8 bits, rounded to the nearest."""
        indices = torch.arange(len(self)) if indices is None else torch.as_tensor(indices)
        return torch.cat([to_uint8(self.images(i)) for i in indices.split(CHUNK)])

    def materialise(self) -> PixelSet:
        """All images as 8-bit pixels; in the bytes of the set, where a file can hold that."""
        stored = self.nbytes if isinstance(self.generator, StoredGenerator) else None
        return PixelSet(
            self.pixels(), self.labels, self.name, self.variant, self.latent_seed, stored
        )

    def to_hf_dataset(self, indices: Int[Tensor, " k"] | None = None) -> "datasets.Dataset":
        """The images at these positions (all by default) for Hugging Face's ``datasets``.

        Columns: ``img`` (PNG, in memory), ``label`` (with class names) and ``row``, the number of
        the training row that the latent belongs to.
        """
        import datasets

        indices = torch.arange(len(self)) if indices is None else torch.as_tensor(indices)
        columns = {
            "img": [{"bytes": to_png(image), "path": None} for image in self.pixels(indices)],
            "label": self.labels[indices].tolist(),
            "row": self.bank.rows[indices].tolist(),
        }
        features = datasets.Features(
            img=datasets.Image(),
            label=datasets.ClassLabel(names=list(self.class_names)),
            row=datasets.Value("int64"),
        )
        return datasets.Dataset.from_dict(columns, features=features)

    def batches(self, rng: torch.Generator, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """One shuffled epoch, generated batch by batch."""
        for rows in shuffled(len(self), rng, batch_size):
            yield self.images(rows), self.bank.labels[rows]

    @property
    def nbytes(self) -> int:
        """Bytes of what ``save`` stores: generator, latents, labels and row numbers.

        The size of a wrapped Python callable is not known; then the generator is left out.
        """
        tensors = self._packed(self.dtype)
        return sum(t.numel() * t.element_size() for t in tensors.values())

    def save(self, path: Path | str, dtype: Dtype | None = None) -> None:
        """Write generator, latents, labels and metadata as one safetensors file.

        Args:
            path: usually ``NAME.itgan.safetensors``.
            dtype: ``fp32``, ``fp16``, or ``int8``: matrices with one scale for each latent
                dimension or output channel, vectors in fp16.

        Raises:
            InputError: the generator is a Python callable, which no file can hold.
        """
        artefacts.save(path, *self._stored(dtype or self.dtype))

    @classmethod
    def load(cls, path: Path | str, device: torch.device | str = "cpu") -> "SyntheticSet":
        """Read what ``save`` wrote.

        Raises:
            InputError: no such file, damaged, or not a synthetic set.
        """
        packed, metadata = artefacts.load(path, "synthetic")
        with artefacts.described(path):
            return cls._restored(packed, metadata, device)

    def stored_as(self, dtype: Dtype) -> "SyntheticSet":
        """The set as a reader of the file that ``save`` writes in this type gets it.

        Its ``variant`` is the type, unless that is fp32, which loses nothing.

        Raises:
            InputError: the generator is a Python callable, which no file can hold.
        """
        stored = self._restored(*self._stored(dtype), self.generator.device)
        stored.latent_seed = self.latent_seed
        stored.variant = "" if dtype == "fp32" else dtype
        return stored

    @classmethod
    def _restored(
        cls, packed: Mapping[str, Tensor], metadata: Mapping[str, Any], device: torch.device | str
    ) -> "SyntheticSet":
        tensors = _unpack(packed)
        parts = {
            name.removeprefix("generator."): t
            for name, t in tensors.items()
            if name.startswith("generator.")
        }
        generator = restore_generator(parts, metadata["conventions"], device)
        bank = LatentBank(
            tensors["latents"],
            tensors["labels"].long(),
            tensors["rows"].long(),
            metadata["stage"],
            {},
            dict(metadata["provenance"]),
        )
        if bank.provenance.get("generator") not in (None, generator.fingerprint):
            bank = bank.moved_to(generator)  # the same one, rounded to the types of the file
        about = dict(metadata["about"])
        names = about.get("class_names")
        if names is not None and len(names) != generator.num_classes:
            raise InputError(
                f"{len(names)} class names for {generator.num_classes} classes; make it again"
            )
        dtype = metadata["dtype"]
        if dtype not in get_args(Dtype):
            raise InputError(f"dtype {dtype!r}: choose {', '.join(get_args(Dtype))}")
        return cls(generator, bank, dtype, about)

    def _stored(self, dtype: Dtype) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and metadata of the file."""
        if not isinstance(self.generator, StoredGenerator):
            raise InputError(
                "this generator is a Python function, which cannot be stored; store its images: "
                "synthetic.materialise()"
            )
        return self._packed(dtype), {
            "kind": "synthetic",
            "stage": self.bank.stage,
            "dtype": dtype,
            "value_range": [-1, 1],
            "image_shape": list(self.generator.image_shape),
            "latent_shape": list(self.generator.latent_shape),
            "num_classes": self.generator.num_classes,
            "generator": self.generator.fingerprint,
            "conventions": self.generator.conventions(),
            "provenance": dict(self.bank.provenance),
            "about": dict(self.about),
        }

    def _packed(self, dtype: Dtype) -> dict[str, Tensor]:
        narrow = label_bytes(self.generator.num_classes) == 1
        tensors = {
            "labels": self.bank.labels.to(torch.uint8 if narrow else torch.int32),
            "rows": self.bank.rows.to(torch.int32),
            **_pack("latents", self.bank.latents, dtype, by=1),
        }
        if isinstance(self.generator, StoredGenerator):
            for name, tensor in self.generator.tensors().items():
                tensors |= _pack(f"generator.{name}", tensor, dtype, by=0)
        return tensors


def _pack(name: str, tensor: Tensor, dtype: Dtype, by: int) -> dict[str, Tensor]:
    """A tensor in a storage type; int8 comes with its ``.step`` along dimension ``by``."""
    if not tensor.is_floating_point():  # a file as it is
        return {name: tensor}
    tensor = tensor.detach().cpu().float()
    if dtype == "fp32":
        return {name: tensor}
    if dtype == "fp16" or (dtype == "int8" and tensor.ndim < 2):
        half = tensor.half()
        if not half.isfinite().all():
            raise InputError(f"dtype {dtype}: {name} goes beyond 65504, the end of fp16; use fp32")
        return {name: half}
    if dtype != "int8":
        raise InputError(f"dtype {dtype!r}: choose {', '.join(get_args(Dtype))}")
    others = tuple(d for d in range(tensor.ndim) if d != by)
    step = tensor.abs().amax(others, keepdim=True).clamp_min(1e-12) / 127
    return {name: (tensor / step).round().to(torch.int8), f"{name}.step": step}


def _unpack(packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of ``_pack`` for all tensors of a file, floats as fp32."""
    tensors = {}
    for name, tensor in packed.items():
        if name.endswith(".step"):
            continue
        step = packed.get(f"{name}.step")
        if step is not None:
            axes = zip(step.shape, tensor.shape, strict=True)
            if step.numel() != max(step.shape, default=1) or any(a not in (1, b) for a, b in axes):
                raise InputError(f"{name}.step does not fit {name}; make the file again")
            tensor = tensor.float() * step
        tensors[name] = tensor.float() if tensor.is_floating_point() else tensor
    return tensors


class FreshSamples:
    """A generator that draws new latents for every batch: unlimited images, no bank."""

    def __init__(
        self,
        generator: ConditionalGenerator,
        labels: Int[Tensor, " n"],
        latent_seed: int = 0,
        precision: str = "fp32",
        *,
        compiled: bool = False,
        seed: int | None = None,
    ) -> None:
        """An epoch has one image for each of ``labels``, generated in this precision.

        ``seed`` is what the latents follow from, by default ``latent_seed``, the number that
        stands in tables.
        """
        self.generator, self.labels, self.latent_seed = generator, labels, latent_seed
        self.seed = latent_seed if seed is None else seed
        self.precision, self.compiled = precision, compiled
        self.name = "gan-fresh"
        self.variant = ""

    def __len__(self) -> int:
        """Images in an epoch."""
        return len(self.labels)

    @property
    def nbytes(self) -> int:
        """Bytes of the generator at fp32 (0 for a wrapped callable, whose size is not known)."""
        if not isinstance(self.generator, StoredGenerator):
            return 0
        return sum(t.numel() * t.element_size() for t in self.generator.tensors().values())

    @torch.no_grad()
    def batches(self, rng: torch.Generator, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch with latents that are never seen again, as 8-bit pixels like other sources.

        The latents follow from ``seed`` and from the epoch's ``rng``.
        """
        device = self.generator.device
        epoch = int(torch.randint(2**62, (), generator=rng))
        own = derive(self.seed, "fresh", epoch)
        for rows in shuffled(len(self), rng, batch_size):
            latents = torch.randn(len(rows), *self.generator.latent_shape, generator=own)
            labels = self.labels[rows]
            with autocast(device, self.precision):
                images = generate(
                    self.generator, latents.to(device), labels.to(device), compiled=self.compiled
                )
            yield to_uint8(images.float().cpu()).float() / 127.5 - 1, labels
