"""Soft labels: what a trained classifier, the teacher, says of the images of a set."""

import torch

from itgan.errors import InputError
from itgan.networks import Network
from itgan.sources import PixelSet, SyntheticSet, label_bytes
from itgan.training import Source

BATCH = 500  # images at a time


def soft_label_bytes(num_classes: int) -> int:
    """By how many bytes a soft label in fp16 is larger than a hard one."""
    return 2 * num_classes - label_bytes(num_classes)


@torch.no_grad()
def soften(source: Source, teacher: Network) -> PixelSet:
    """The same images, with the teacher's softmax outputs in fp16 for labels.

    The bytes are those of the source with 2 for each class in the place of its hard label.

    Args:
        source: stored images with hard labels, or a synthetic set, which is generated once, as
            8-bit images.
        teacher: a trained classifier of such images; it is asked in evaluation mode, in fp32,
            without augmentation.

    Raises:
        InputError: the source is none of these.
    """
    if isinstance(source, SyntheticSet):
        source = source.materialise()
    if not isinstance(source, PixelSet) or source.labels.ndim != 1:
        raise InputError("soft labels: are given to stored images with hard labels alone")
    was_training = teacher.training
    teacher.eval()
    parts = []
    for images in source.images.split(BATCH):
        x = images if images.is_floating_point() else images.float() / 127.5 - 1
        parts.append(teacher(x.to(next(teacher.parameters()).device)).softmax(1).cpu())
    teacher.train(was_training)
    labels = torch.cat(parts).half()  # n classes
    return PixelSet(
        source.images,
        labels.float(),
        source.name,
        source.variant,
        source.latent_seed,
        source.nbytes + len(source) * soft_label_bytes(labels.shape[1]),
    )
