"""What a run will cost, from a few measured steps: the plan before the spend."""

import time
from collections.abc import Callable
from typing import Any

from itgan.baselines import distribution_matching
from itgan.condensation import condense
from itgan.configs import EvaluationConfig, InversionConfig
from itgan.dc import gradient_matching, loops
from itgan.embedding import RandomPool
from itgan.encoder import train_encoder
from itgan.evaluation import evaluate
from itgan.inversion import invert
from itgan.latents import sample_latents
from itgan.networks import Network, build_network
from itgan.pipeline import Experiment
from itgan.reconstruction import Objective
from itgan.runs import Cell, Run, with_inputs
from itgan.sources import FreshSamples, PixelSet
from itgan.training import Source, count_updates


def plan(experiment: Experiment, run: Run) -> list[dict[str, Any]]:
    """For each stage: cells done and to do, generated images, seconds from a few real steps."""
    cells = with_inputs(experiment.trials())
    stages: dict[str, list[Cell]] = {
        stage: []
        for stage in (
            "extractor",
            "encoder",
            "inverted",
            "pool",
            "condensed",
            "dm",
            "dc",
            "trial",
        )
    }
    for cell in cells:
        stages[cell.label.split()[0]].append(cell)
    rows = []
    for stage, members in stages.items():
        if not members:
            continue
        missing = [cell for cell in members if not run.done(cell)]
        images, seconds = _cost(experiment, stage, missing)
        rows.append(
            {
                "stage": stage,
                "cells": len(members),
                "done": len(members) - len(missing),
                "generated": images,
                "seconds": seconds,
            }
        )
    return rows


def _cost(experiment: Experiment, stage: str, missing: list[Cell]) -> tuple[int, float]:
    """Generated images and seconds of the cells that are still to be computed."""
    if not missing:
        return 0, 0.0
    config = experiment.config
    rows = experiment.subset(config.latent_seeds[0])
    if stage == "extractor":
        training = config.inversion.extractor
        source = PixelSet(experiment.data.train.images, experiment.data.train.labels)
        return 0, _training_seconds(experiment, source, training, scored=False)
    if stage == "pool":
        settings = config.condensation.pool
        source = PixelSet(experiment.data.train.images, experiment.data.train.labels)
        each = _training_seconds(experiment, source, settings.training, scored=False)
        return 0, each * settings.networks
    if stage == "encoder":
        return _encoder_cost(experiment)
    if stage == "inverted":
        settings = config.inversion
        batch = rows.select(range(min(len(rows), settings.batch_size)))
        extractor = _untrained(experiment, settings.extractor)
        per_step = _per_step(
            lambda steps: invert(
                experiment.generator,
                batch,
                # Early leaving is left out: the plan is what it costs at most.
                InversionConfig(
                    steps=steps, batch_size=settings.batch_size, precision=settings.precision
                ),
                extractor=extractor,
            )
        )
        attempts = len(rows) + round(settings.restart_share * len(rows)) + settings.control
        batches = -(-attempts // settings.batch_size)
        looks = settings.candidates if settings.start == "best-of" else 0
        images = attempts * (settings.steps + looks)
        seconds = per_step * (settings.steps + looks) * batches
        return images * len(missing), seconds * len(missing)
    if stage == "dm":
        per_step = _per_step(
            lambda steps: distribution_matching(
                rows,
                experiment.data.train,
                config.dm.model_copy(update={"steps": steps}),
                device=experiment.generator.device,
            )
        )
        return 0, per_step * config.dm.steps * len(missing)
    if stage == "dc":
        return 0, _dc_seconds(experiment) * len(missing)
    if stage == "condensed":
        bank = sample_latents(experiment.generator, rows)
        per_step = _per_step(
            lambda steps: condense(
                experiment.generator,
                bank,
                experiment.data.train,
                config.condensation.model_copy(update={"steps": steps}),
                pool=RandomPool(config.condensation.network, experiment.data.train),
            )
        )
        images = len(rows) * config.condensation.steps
        return images * len(missing), per_step * config.condensation.steps * len(missing)
    sources = [cell.determinants["source"] for cell in missing]
    whole, fresh = sources.count("real"), sources.count("gan-fresh")
    generated = len(rows) * sum(s in ("gan", "inversion", "itgan") for s in sources)
    batches = -(-len(rows) // config.evaluation.batch_size)
    updates = count_updates(config.evaluation, len(rows))
    generated += fresh * round(updates * len(rows) / batches)  # new images in every epoch
    train = experiment.data.train
    seconds = 0.0
    for source, count in (
        (PixelSet(train.images, train.labels), whole),
        (FreshSamples(experiment.generator, rows.labels), fresh),
        (PixelSet(rows.images, rows.labels), len(sources) - whole - fresh),
    ):
        if count:
            seconds += count * _training_seconds(
                experiment, source, config.evaluation, scored=True
            )
    return generated, seconds


def _encoder_cost(experiment: Experiment) -> tuple[int, float]:
    """Generated images and seconds of the encoder's training."""
    settings = experiment.config.inversion
    config, train = settings.encoder, experiment.data.train
    extractor = _untrained(experiment, settings.extractor)

    def train_for(pairs: int, refined: int) -> object:
        short = config.model_copy(update={"pair_steps": pairs, "refine_steps": refined})
        inversion = settings.model_copy(update={"encoder": short})
        return train_encoder(Objective(experiment.generator, extractor, train, inversion))

    seconds = _per_step(lambda steps: train_for(steps, 0)) * config.pair_steps
    if config.refine_steps:
        seconds += _per_step(lambda steps: train_for(1, steps)) * config.refine_steps
    refined = min(config.batch_size, len(train)) * config.refine_steps
    return config.batch_size * config.pair_steps + refined, seconds


def _dc_seconds(experiment: Experiment) -> float:
    """Seconds of one set by DC: its steps of the images, and the epochs between them."""
    config = experiment.config.dc
    rows = experiment.subset(experiment.config.latent_seeds[0])
    outer, epochs = loops(config, int(rows.labels.bincount().max()))

    def match(networks: int, image_steps: int, epochs: int) -> object:
        short = {"steps": networks, "image_steps": image_steps, "network_epochs": epochs}
        settings = config.model_copy(update=short)
        device = experiment.generator.device
        return gradient_matching(rows, experiment.data.train, settings, device=device)

    seconds = _per_step(lambda steps: match(steps, 1, 0)) * config.steps * outer
    if outer > 1 and epochs:
        seconds += (
            _per_step(lambda steps: match(1, 2, steps)) * config.steps * (outer - 1) * epochs
        )
    return seconds


def _untrained(experiment: Experiment, config: EvaluationConfig) -> Network:
    data = experiment.data
    return (
        build_network(
            config.network, data.image_shape, data.num_classes, mean=data.mean, std=data.std
        )
        .requires_grad_(False)
        .to(experiment.generator.device)
    )


def _per_step(work: Callable[[int], object], few: int = 1, more: int = 4) -> float:
    """Seconds per step: the difference of two short runs, which cancels what is done once."""
    work(few)
    timings = []
    for steps in (few, more):
        begun = time.perf_counter()
        work(steps)
        timings.append(time.perf_counter() - begun)
    return max(0.0, timings[1] - timings[0]) / (more - few)


def _training_seconds(
    experiment: Experiment, source: Source, config: EvaluationConfig, *, scored: bool
) -> float:
    device, scores = experiment.config.device, experiment.scored_on
    probe = scores.select(range(min(len(scores), 200)))

    def work(updates: int) -> object:
        short = config.model_copy(update={"updates": updates, "curve_points": 0})
        return evaluate(source, probe, short, [0], device)

    seconds = _per_step(work) * count_updates(config, len(source))
    if scored:
        begun = time.perf_counter()
        work(1)
        once = time.perf_counter() - begun
        seconds += once * len(scores) / len(probe) * max(1, config.curve_points)
    return seconds
