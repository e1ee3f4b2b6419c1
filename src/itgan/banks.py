"""Networks and banks of an experiment, each as a cell: what classifiers' sources are made from."""

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from itgan.artefacts import Checkpoint
from itgan.baselines import distribution_matching
from itgan.condensation import condense, fastest_micro_batch
from itgan.configs import CondensationConfig, DCConfig
from itgan.dc import gradient_matching
from itgan.embedding import NetworkSpec, SnapshotPool, train_extractor, train_pool
from itgan.encoder import Encoder, train_encoder
from itgan.inversion import invert
from itgan.latents import LatentBank, sample_latents
from itgan.networks import Network, code_of
from itgan.randomness import derive_seed
from itgan.reconstruction import Objective
from itgan.runs import Cell
from itgan.setting import Setting


class Banks(Setting):
    """The cells that classifiers' sources are made from."""

    def extractor(self) -> Cell:
        """Psi of Eq. 8, trained on all training images."""
        config, seed = self.config.inversion.extractor, derive_seed(self.config.seed, "extractor")

        def compute(checkpoint: Checkpoint) -> Network:
            return train_extractor(self.data.train, config, seed, self.device, checkpoint)

        determinants = {
            "config": {k: v for k, v in config.identity().items() if k != "curve_points"},
            "spec": asdict(NetworkSpec.of(config.network, self.data.train)),
            "data": self.data.train.fingerprint,
            "seed": seed,
            **code_of(config.network),
        }
        return Cell("network", "extractor", determinants, (), compute)

    def encoder(self) -> tuple[Cell, ...]:
        """Trained for the inversion to start from, if so asked; one serves all banks."""
        config, seed = self.config.inversion, derive_seed(self.config.seed, "encoder")
        if config.start != "encoder":
            return ()

        def compute(extractor: Network, checkpoint: Checkpoint) -> Encoder:
            extractor = extractor.to(self.generator.device)
            objective = Objective(self.generator, extractor, self.data.train, config)
            return train_encoder(objective, seed, checkpoint)

        weights = config.model_dump(
            include={"lambda_pixel", "lambda_prior", "precision", "compile"}
        )
        determinants = {
            "config": {**config.encoder.identity(), **weights},
            "generator": self.generator.fingerprint,
            "data": self.data.train.fingerprint,
            "seed": seed,
        }
        return (Cell("encoder", "encoder", determinants, (self.extractor(),), compute),)

    def pool(self, config: CondensationConfig | None = None) -> tuple[Cell, ...]:
        """Snapshots to match in, where the config (by default itgan's) asks for them."""
        config = config or self.config.condensation
        seed = derive_seed(self.config.seed, "pool")
        if config.pool.kind == "random":
            return ()

        def compute(checkpoint: Checkpoint) -> SnapshotPool:
            train, device = self.data.train, self.device
            return train_pool(train, config.network, config.pool, seed, device, checkpoint)

        determinants = {
            "config": config.pool.identity(),
            "spec": asdict(NetworkSpec.of(config.network, self.data.train)),
            "data": self.data.train.fingerprint,
            "seed": seed,
            **code_of(config.network),
        }
        return (Cell("pool", "pool", determinants, (), compute),)

    def inverted(self, latent_seed: int) -> Cell:
        """Eq. 8 for the rows of one bank."""
        config, seed = self.config.inversion, self._seed(latent_seed)
        rows = self.subset(latent_seed)

        def compute(extractor: Network, *encoders: Encoder, checkpoint: Checkpoint) -> LatentBank:
            device = self.generator.device
            encoder = encoders[0].to(device) if encoders else self.own_encoder
            extractor = extractor.to(device)
            return invert(self.generator, rows, config, seed, extractor, checkpoint, encoder)

        determinants = {
            "config": config.identity(),
            "generator": self.generator.fingerprint,
            "images": rows.fingerprint,
            "seed": seed,
        }
        if encoder := self.own_encoder_fingerprint:
            determinants["encoder"] = encoder
        label = f"inverted bank, latent seed {latent_seed}"
        inputs = (self.extractor(), *self.encoder())
        return Cell("bank", label, determinants, inputs, compute)

    def micro_batch(self, config: CondensationConfig) -> tuple[Cell, ...]:
        """How many latents go through at once, where that is to be measured; once for all."""
        train = self.data.train
        if config.micro_batch != "auto":
            return ()

        def compute(checkpoint: Checkpoint) -> int:
            return fastest_micro_batch(self.generator, train, config)

        determinants = {
            "config": config.identity(),
            "generator": self.generator.fingerprint,
            "image_shape": list(train.image_shape),
        }
        return (Cell("number", "micro-batch of condensation", determinants, (), compute),)

    def condensed(self, latent_seed: int) -> Cell:
        """Eq. 11, from the inverted bank or from random latents of the same rows."""
        return self._condensed("condensed", self.config.condensation, latent_seed)

    def plus(self, latent_seed: int) -> Cell:
        """The same with what ``itgan-plus`` adds."""
        return self._condensed("plus", self.config.plus, latent_seed)

    def _condensed(self, name: str, config: CondensationConfig, latent_seed: int) -> Cell:
        seed = self._seed(latent_seed)
        measured, pools = self.micro_batch(config), self.pool(config)
        starts = (self.inverted(latent_seed),) if config.start == "inverted" else ()
        rows = self.subset(latent_seed)

        def compute(*made: Any, checkpoint: Checkpoint) -> LatentBank:  # noqa: ANN401
            start = made[0] if starts else sample_latents(self.generator, rows, seed)
            more = made[len(starts) :]
            size = more[0] if measured else config.micro_batch
            chosen = config.model_copy(update={"micro_batch": size})
            pool = replace(more[-1], window=config.pool.window) if pools else None
            return condense(self.generator, start, self.data.train, chosen, seed, pool, checkpoint)

        determinants = {
            "config": config.identity(),
            "generator": self.generator.fingerprint,
            "real": self.data.train.fingerprint,
            "seed": seed,
            **code_of(config.network),
        }
        if not starts:
            determinants["images"] = rows.fingerprint
        if not (starts or pools):  # which have the constants in their names
            determinants |= self._constants()
        label = f"{name} bank, latent seed {latent_seed}"
        inputs = (*starts, *measured, *pools)
        return Cell("bank", label, determinants, inputs, compute)

    def dm(self, latent_seed: int) -> Cell:
        """Distribution matching in pixels, from the rows of one bank."""
        return self._pixels("dm", self.config.dm, distribution_matching, latent_seed)

    def dc(self, latent_seed: int) -> Cell:
        """Gradient matching in pixels, from the rows of one bank."""
        return self._pixels("dc", self.config.dc, gradient_matching, latent_seed)

    def _pixels(
        self,
        name: str,
        config: CondensationConfig | DCConfig,
        learn: Callable[..., LatentBank],
        latent_seed: int,
    ) -> Cell:
        rows, seed = self.subset(latent_seed), self._seed(latent_seed)

        def compute(checkpoint: Checkpoint) -> LatentBank:
            return learn(rows, self.data.train, config, seed, self.device, checkpoint)

        determinants = {
            "config": config.identity(),
            "images": rows.fingerprint,
            "real": self.data.train.fingerprint,
            "seed": seed,
            **code_of(config.network),
            **self._constants(),
        }
        if isinstance(config, CondensationConfig) and config.pool.kind == "snapshots":
            determinants["pool"] = config.pool.identity()  # DM trains it on its way
        return Cell("bank", f"{name} bank, latent seed {latent_seed}", determinants, (), compute)
