"""A generator's own class gains and biases, learned along with the latents.

Their bytes are paid for with the generator's, whatever they hold. Row c of a table serves class c
alone, so that the classes stay independent of one another.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Int
from torch import Tensor

from itgan.configs import CondensationConfig
from itgan.errors import InputError
from itgan.generators import ConditionalGenerator, TunableGenerator
from itgan.latents import LatentAdam


class Gains:
    """The class tables of a generator on their way, by Adam.

    Attributes:
        tables: leaves [classes, width] by name, changed in place.
        generator: the generator that reads them.
    """

    def __init__(self, generator: ConditionalGenerator, learning_rate: float) -> None:
        """Begin at the generator's own tables, which stay as they are.

        Raises:
            InputError: the generator has none.
        """
        self.tables = {
            name: table.detach().clone().requires_grad_(True)
            for name, table in _tunable(generator).tables().items()
        }
        self.generator = _tunable(generator).with_tables(self.tables)
        self._adams = {name: LatentAdam(t, learning_rate) for name, t in self.tables.items()}

    def step(self, classes: Int[Tensor, " k"]) -> None:
        """One step for the rows of these classes, down the gradient that was accumulated."""
        for name, adam in self._adams.items():
            gradient = self.tables[name].grad
            assert gradient is not None
            adam.step(classes, gradient[classes])
            self.tables[name].grad = None

    def state(self) -> dict[str, Tensor]:
        """All that a later step depends on."""
        return {
            f"gains.{name}.{part}": tensor
            for name, adam in self._adams.items()
            for part, tensor in adam.state().items()
        }

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Copy a ``state`` back."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])


def check_gains(generator: ConditionalGenerator, config: CondensationConfig, most: int) -> None:
    """Refuse to tune gains that are not there, or in several shards at once.

    Args:
        generator: whose gains.
        config: a condensation's.
        most: latents of the largest class.

    Raises:
        InputError: says which.
    """
    if not config.gains_rate:
        return
    _tunable(generator)
    if config.splitting == "fixed" and (config.shard_per_class or most) < most:
        raise InputError(
            f"gains_rate={config.gains_rate:g}: shard_per_class={config.shard_per_class} deals "
            f"the {most} latents of a class into shards that would each tune gains of their own; "
            "leave shard_per_class out, or give splitting random"
        )


def _tunable(generator: ConditionalGenerator) -> TunableGenerator:
    if not isinstance(generator, TunableGenerator):
        raise InputError(
            "gains_rate: tunes the class gains of a BigGAN, and this generator has none; set it "
            "to 0"
        )
    return generator
