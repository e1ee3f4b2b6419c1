"""What experiments will cost: the plan before the spend.

Steps are timed on a small batch and scaled to the real one; the same steps' floating-point
operations give the time on a GPU.
"""

import math
import time
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from itgan.baselines import distribution_matching
from itgan.condensation import condense
from itgan.configs import CondensationConfig, EvaluationConfig, InversionConfig, Source
from itgan.data import ImageSet
from itgan.dc import gradient_matching, loops
from itgan.embedding import RandomPool
from itgan.encoder import train_encoder
from itgan.evaluation import evaluate
from itgan.inversion import invert
from itgan.latents import sample_latents
from itgan.networks import Network, build_network
from itgan.pipeline import SAME_BYTES, STORED, Experiment
from itgan.randomness import derive
from itgan.reconstruction import Objective
from itgan.runs import Cell, Run, with_inputs
from itgan.sources import FreshSamples
from itgan.training import accuracy, count_updates

STAGES = (
    "extractor",
    "encoder",
    "inverted",
    "pool",
    "micro-batch",
    "condensed",
    "plus",
    "dm",
    "dc",
    "trial",
)
PROBE = 200  # images of 32x32 of a measured step; more smaller ones
UPDATE_PROBE = 64  # of a measured update of a classifier
LONG_ENOUGH = 0.5  # seconds of the steps that are timed
MOST_STEPS = 256  # of such a run
GPU_FLOPS = 30e12  # a second, of a GPU that is a fifth busy at 150 TFLOP/s in bf16


@dataclass(frozen=True)
class Cost:
    """Generated images, seconds on this machine, floating-point operations."""

    images: int = 0
    seconds: float = 0.0
    flops: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        """Both, one after the other."""
        return Cost(
            self.images + other.images, self.seconds + other.seconds, self.flops + other.flops
        )

    def times(self, factor: float | int, images: int = 0) -> "Cost":
        """As often, with that many images generated in all."""
        return Cost(images, self.seconds * factor, self.flops * factor)


def plan(experiment: Experiment, run: Run) -> list[dict[str, Any]]:
    """For each stage: cells, those done, and what the others will cost."""
    return plan_all([(experiment, experiment.trials())], run)


def plan_all(
    parts: Iterable[tuple[Experiment, list[Cell]]], run: Run, kept: Container[str] = ()
) -> list[dict[str, Any]]:
    """The same for several experiments, whose common cells count once.

    Trials whose names are in ``kept`` are there already; what only such cells needed is not asked
    for any more.
    """
    counted: set[str] = set()

    def there(cell: Cell) -> bool:
        return cell.name in kept or run.done(cell)

    cells, done = dict.fromkeys(STAGES, 0), dict.fromkeys(STAGES, 0)
    costs = {stage: Cost() for stage in STAGES}
    for experiment, trials in parts:
        missing: dict[str, list[Cell]] = {}
        needed = {cell.name for cell in with_inputs(trials, there)}
        for cell in with_inputs(trials):
            if cell.name in counted or not (cell.name in needed or there(cell)):
                continue
            counted.add(cell.name)
            stage = cell.label.split()[0]
            cells[stage] += 1
            if there(cell):
                done[stage] += 1
            else:
                missing.setdefault(stage, []).append(cell)
        for stage, members in missing.items():
            costs[stage] += _COSTS[stage](experiment, members)
    return [
        {
            "stage": stage,
            "cells": cells[stage],
            "done": done[stage],
            "generated": costs[stage].images,
            "seconds": costs[stage].seconds,
            "flops": costs[stage].flops,
        }
        for stage in STAGES
        if cells[stage]
    ]


def _extractor(experiment: Experiment, missing: list[Cell]) -> Cost:
    training = experiment.config.inversion.extractor
    images = len(experiment.data.train)
    return _training(experiment, images, training, scored=False).times(len(missing))


def _pool(experiment: Experiment, missing: list[Cell]) -> Cost:
    total, left = Cost(), {cell.name for cell in missing}
    for config in (experiment.config.condensation, experiment.config.plus):
        settings, own = config.pool, {cell.name for cell in experiment.pool(config)}
        if own & left:
            training = settings.training.model_copy(update={"network": config.network})
            images = round((1 - settings.held_out) * len(experiment.data.train))
            each = _training(experiment, images, training, scored=False)
            total += each.times(settings.networks)
        left -= own
    return total


def _inverted(experiment: Experiment, missing: list[Cell]) -> Cost:
    settings, rows = experiment.config.inversion, _rows(experiment)
    few = rows.select(range(min(len(rows), settings.batch_size, _probe(rows, PROBE))))
    extractor = _untrained(experiment, settings.extractor)

    same = settings.model_dump(include={"batch_size", "precision", "compile"})
    plain = InversionConfig.model_validate(same)

    def work(steps: int) -> object:
        changed = plain.model_copy(update={"steps": steps})
        return invert(experiment.generator, few, changed, extractor=extractor)

    # At most: who leaves early is not known before. A look is counted as a step.
    looks = settings.candidates if settings.start == "best-of" else 0
    attempts = len(rows) + round(settings.restart_share * len(rows)) + settings.control
    images = attempts * (settings.steps + looks) * len(missing)
    return _per_step(work).times(images / len(few), images)


def _encoder(experiment: Experiment, missing: list[Cell]) -> Cost:
    settings, train = experiment.config.inversion, experiment.data.train
    config, extractor = settings.encoder, _untrained(experiment, settings.extractor)

    def work(pairs: int, refined: int) -> object:
        short = config.model_copy(update={"pair_steps": pairs, "refine_steps": refined})
        changed = settings.model_copy(update={"encoder": short})
        return train_encoder(Objective(experiment.generator, extractor, train, changed))

    pairs, refined = config.batch_size, min(config.batch_size, len(train))
    cost = _per_step(lambda steps: work(steps, 0)).times(
        config.pair_steps, pairs * config.pair_steps
    )
    if config.refine_steps:
        each = _per_step(lambda steps: work(1, steps))
        cost += each.times(config.refine_steps, refined * config.refine_steps)
    return cost


def _condensed(experiment: Experiment, missing: list[Cell], settings: CondensationConfig) -> Cost:
    rows = _rows(experiment)
    train = experiment.data.train
    few, short, factor = _smaller(rows, settings)
    bank = sample_latents(experiment.generator, few)
    pool = RandomPool(settings.network, train)

    def work(steps: int) -> object:
        changed = short.model_copy(update={"steps": steps})
        return condense(experiment.generator, bank, train, changed, pool=pool)

    images = len(rows) * settings.steps * len(missing)
    return _per_step(work).times(factor * settings.steps * len(missing), images)


def _dm(experiment: Experiment, missing: list[Cell]) -> Cost:
    settings = experiment.config.dm
    few, short, factor = _smaller(_rows(experiment), settings)

    def work(steps: int) -> object:
        changed = short.model_copy(update={"steps": steps})
        device = experiment.device
        return distribution_matching(few, experiment.data.train, changed, device=device)

    return _per_step(work).times(factor * settings.steps * len(missing))


def _dc(experiment: Experiment, missing: list[Cell]) -> Cost:
    config, rows = experiment.config.dc, _rows(experiment)
    most, real = int(rows.labels.bincount().max()), config.real_per_class
    outer, epochs = loops(config, most)
    share = min(1.0, _probe(rows, PROBE) / (rows.num_classes * (most + real)))
    each, batch = max(1, round(share * most)), max(1, round(share * real))
    members = [rows.class_indices(label)[:each] for label in range(rows.num_classes)]
    few = rows.select(torch.cat(members))

    def work(networks: int, image_steps: int, epochs: int) -> object:
        short = {"steps": networks, "image_steps": image_steps, "network_epochs": epochs}
        changed = config.model_copy(update={**short, "real_per_class": batch})
        device = experiment.device
        return gradient_matching(few, experiment.data.train, changed, device=device)

    image_steps = config.steps * outer * (most + real) / (each + batch)
    cost = _per_step(lambda steps: work(steps, 1, 0)).times(image_steps)
    if outer > 1 and epochs:
        passes = config.steps * (outer - 1) * epochs * len(rows) / len(few)
        cost += _per_step(lambda steps: work(1, 2, steps)).times(passes)
    return cost.times(len(missing))


def _trial(experiment: Experiment, missing: list[Cell]) -> Cost:
    config, rows = experiment.config, _rows(experiment)
    sources = [cell.determinants["source"] for cell in missing]
    whole, fresh = sources.count("real"), sources.count("gan-fresh")
    stored = sum(source in STORED for source in sources)
    batches = -(-len(rows) // config.evaluation.batch_size)
    updates = count_updates(config.evaluation, len(rows))
    images = round(updates * len(rows) / batches)  # new ones in every epoch
    total = Cost(images=len(rows) * stored)
    filled: dict[Source, int] = {s: sources.count(s) for s in SAME_BYTES if s in sources}
    seed = config.latent_seeds[0]
    rest = len(sources) - whole - fresh - sum(filled.values())
    for size, count, generated in (
        (len(experiment.data.train), whole, 0),
        (len(rows), fresh, images),
        *((len(experiment.source(s, seed)), count, 0) for s, count in filled.items()),
        (len(rows), rest, 0),
    ):
        if count:
            each = _training(experiment, size, config.evaluation, scored=True, fresh=generated > 0)
            total += each.times(count, count * generated)
    return total


_COSTS: dict[str, Callable[[Experiment, list[Cell]], Cost]] = {
    "extractor": _extractor,
    "encoder": _encoder,
    "inverted": _inverted,
    "pool": _pool,
    "micro-batch": lambda experiment, missing: Cost(),
    "condensed": lambda experiment, missing: _condensed(
        experiment, missing, experiment.config.condensation
    ),
    "plus": lambda experiment, missing: _condensed(experiment, missing, experiment.config.plus),
    "dm": _dm,
    "dc": _dc,
    "trial": _trial,
}


def _rows(experiment: Experiment) -> ImageSet:
    return experiment.subset(experiment.config.latent_seeds[0])


def _probe(images: ImageSet, few: int) -> int:
    """So many images of 32x32, or more smaller ones, whose steps would be all overhead."""
    return few * max(1, 32 * 32 // math.prod(images.image_shape[1:]))


def _smaller(
    rows: ImageSet, config: CondensationConfig
) -> tuple[ImageSet, CondensationConfig, float]:
    """Rows and a config for a step of a few images, and how much dearer the real one is.

    A step visits every shard, and each visit has a real batch of its own.
    """
    most = int(rows.labels.bincount().max())
    shard = min(config.shard_per_class or most, most)
    shards = -(-most // shard)
    probe = _probe(rows, PROBE)
    share = min(1.0, probe / (rows.num_classes * (shard + config.real_per_class)))
    few = max(1, round(share * shard))
    short = config.model_copy(
        update={
            "shard_per_class": None,
            "real_per_class": max(1, round(share * config.real_per_class)),
            "micro_batch": probe if config.micro_batch == "auto" else config.micro_batch,
            "kept_graphs": probe,
            "basis": "latent",  # directions are found once
        }
    )
    members = [rows.class_indices(label)[:few] for label in range(rows.num_classes)]
    factor = shards * (shard + config.real_per_class) / (few + short.real_per_class)
    # Forward and backward cost about the same; a graph that is not kept costs another forward.
    chunks = (
        1 if config.micro_batch == "auto" else -(-shard * rows.num_classes // config.micro_batch)
    )
    factor *= 1 + max(0, chunks - config.kept_graphs) / chunks / 2
    return rows.select(torch.cat(members)), short, factor


def _untrained(experiment: Experiment, config: EvaluationConfig) -> Network:
    data = experiment.data
    return (
        build_network(
            config.network, data.image_shape, data.num_classes, mean=data.mean, std=data.std
        )
        .requires_grad_(False)
        .to(experiment.device)
    )


class FlopCounter(TorchDispatchMode):
    """Counts floating-point operations; torch's own mode cannot stand ``autograd.grad``."""

    def __init__(self) -> None:
        """Start at zero."""
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:  # noqa: ANN001, ANN401
        """Run an operation and count it."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if (count := flop_registry.get(func.overloadpacket)) is not None:
            self.total += count(*args, **kwargs, out_val=result)
        return result


def _per_step(work: Callable[[int], object]) -> Cost:
    """The cost of a step: the difference of two short runs, which cancels what is done once.

    The first steps of a process are slow ones, so small steps are timed in longer runs.
    """
    counts = []
    for steps in (1, 2):
        with FlopCounter() as counter, torch.compiler.set_stance("force_eager"):
            work(steps)
        counts.append(counter.total)

    def timed(steps: int) -> float:
        begun = time.perf_counter()
        work(steps)
        return time.perf_counter() - begun

    timed(1)  # compiles
    seconds = shorter = longer = 0.0
    more = 1
    while longer - shorter < LONG_ENOUGH and more < MOST_STEPS:
        more = min(4 * more, MOST_STEPS)
        shorter, longer = timed(1), timed(more)
        # On a busy machine the shorter run may take longer: then all of the longer one is counted.
        seconds = (longer - shorter) / (more - 1) if longer > shorter else longer / more
    return Cost(seconds=seconds, flops=float(counts[1] - counts[0]))


def _training(
    experiment: Experiment,
    images: int,
    config: EvaluationConfig,
    *,
    scored: bool,
    fresh: bool = False,
) -> Cost:
    """Training on a set of so many images, or on ones that are generated for every batch."""
    batch, updates = min(config.batch_size, images), count_updates(config, images)
    train = experiment.data.train
    few = train.select(range(min(batch, _probe(train, UPDATE_PROBE), len(train))))
    share = batch / len(few)
    cost = _update(experiment, few, config).times(updates * share)
    if fresh:
        source = FreshSamples(experiment.generator, few.labels)

        def generate(batches: int) -> object:
            return [list(source.batches(derive(0), len(few))) for _ in range(batches)]

        cost += _per_step(generate).times(updates * share)
    if scored:
        times = max(1, config.curve_points) * len(experiment.scored_on) / len(few)
        cost += _scoring(experiment, few, config).times(times)
    return cost


_MEASURED: dict[tuple[object, ...], Cost] = {}


def _once(
    what: str,
    experiment: Experiment,
    few: ImageSet,
    config: EvaluationConfig,
    work: Callable[[int], object],
) -> Cost:
    """A step of work that costs the same whatever is learned from these images."""
    same = ("network", "precision", "compile", "augmentation")
    chosen = (getattr(config, name) for name in same)
    key = (what, *chosen, few.image_shape, len(few), experiment.config.device)
    if key not in _MEASURED:
        _MEASURED[key] = _per_step(work)
    return _MEASURED[key]


def _update(experiment: Experiment, few: ImageSet, config: EvaluationConfig) -> Cost:
    def work(updates: int) -> object:
        changes = {"updates": updates, "batch_size": len(few), "curve_points": 0}
        changed, device = config.model_copy(update=changes), experiment.config.device
        return evaluate(few, few.select([0]), changed, [0], device)

    return _once("update", experiment, few, config, work)


def _scoring(experiment: Experiment, few: ImageSet, config: EvaluationConfig) -> Cost:
    network = _untrained(experiment, config)

    def work(times: int) -> object:
        return [accuracy(network, few, config) for _ in range(times)]

    return _once("scoring", experiment, few, config, work)
