"""What a run publishes: tables, the report, and the synthetic sets themselves."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from itgan import artefacts
from itgan.charts import Curve
from itgan.errors import InputError
from itgan.evaluation import Trial, paired_difference, summarize
from itgan.latents import LatentBank
from itgan.pipeline import Experiment
from itgan.recipes import command
from itgan.report import Gallery, write_report
from itgan.runs import Cell, Run
from itgan.scores import score_trials

# Differences that a table of these sources is read for.
COMPARISONS = (
    ("itgan-plus", "itgan"),
    ("itgan-plus", "random"),
    ("itgan", "inversion"),
    ("itgan", "gan"),
    ("inversion", "gan"),
    ("itgan", "random"),
    ("itgan", "random-raw"),
    ("itgan", "random-jpeg"),
    ("itgan", "dm"),
    ("itgan", "dc"),
)

SAME_BYTES = {"same-bytes-raw": "random-raw", "same-bytes-jpeg": "random-jpeg"}
NARROW = ("fp16", "int8")  # variants whose difference is what storage in that type costs
SOFT = "soft"  # after the name of a source that was trained on with soft labels


def tabulate(trials: Iterable[Trial]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of ``results.json``, and the paired differences between sources."""
    trials = list(trials)
    by_source: dict[str, list[Trial]] = {}
    seeds: dict[str, set[tuple[int, int]]] = {}
    for trial in trials:
        if trial.variant in ("", "same-rows", "dsa"):
            name = trial.source
        elif trial.variant in SAME_BYTES:
            name = SAME_BYTES[trial.variant]
        elif trial.variant in NARROW:
            name = f"{trial.source} {trial.variant}"
        else:
            continue
        if trial.labels == SOFT:
            name = f"{name} {SOFT}"
        by_source.setdefault(name, []).append(trial)
        seeds.setdefault(name, set()).add((trial.latent_seed, trial.network_seed))
    forms = [(name, name.split()[0]) for name in by_source if " " in name]
    soft = [(f"{a} {SOFT}", f"{b} {SOFT}") for a, b in COMPARISONS]
    differences = [
        {**paired_difference(by_source[a], by_source[b]), "a": a, "b": b}
        for a, b in (*COMPARISONS, *soft, *forms)
        if seeds.get(a, set()) & seeds.get(b, set())
    ]
    return summarize(trials), differences


def publish(
    experiment: Experiment, run: Run
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], Path]:
    """Write tables, report and synthetic sets of a run from the cells that are done.

    That is ``trials.jsonl``, ``results.json``, ``report.html``, ``report.md``, ``scores.json``
    where the trials that scores need are there, and for each condensed bank, plain and plus, a
    file in ``sets/`` with generator and latents.

    Returns:
        The rows of ``results.json``, the paired differences, and the path of the HTML report.

    Raises:
        InputError: no classifier has been trained yet.
    """
    config = experiment.config
    trials: list[Trial] = [run.value(cell) for cell in experiment.trials() if run.done(cell)]
    if not trials:
        raise InputError(f"{run.path}: no classifier has been trained yet; itgan run first")
    rows, differences = tabulate(trials)
    run.write_trials(trials, rows)
    scores = score_trials(trials)
    if scores:
        artefacts.write_json(run.path / "scores.json", scores)
    for stage, make in experiment.makers().items():
        for latent_seed in config.latent_seeds if stage != "inverted" else ():
            if run.done(cell := make(latent_seed)):
                bank, plus = run.value(cell), stage == "plus"
                synthetic = experiment.synthetic(bank, latent_seed, plus=plus)
                file = f"{synthetic.name}-{latent_seed}.itgan.safetensors"
                synthetic.save(run.path / "sets" / file)
    missing = len(experiment.trials()) - len(trials)
    scored = "test" if experiment.scored_on is experiment.data.test else "validation"
    notes = [
        f"Accuracy is on {len(experiment.scored_on):,} real {scored} images, after the last "
        "step of training.",
        _on_intervals(max(row["sets"] for row in rows)),
        "Differences are paired: both sides share seeds, and so rows, first weights, order and "
        "augmentations. They tell more than two intervals side by side.",
    ]
    if best := _best_along_the_way(trials):
        notes.append(
            "For diagnosis only, no result: the best accuracy along the curve, chosen by the very "
            f"images that score, would be {best}. The last step counts."
        )
    if seen := experiment.scored_images_seen():
        notes.append(
            f"The generator was trained on {seen:,} of the images that score: figures of sources "
            "that it makes are too good."
        )
    if missing:
        notes.append(f"{missing} trials of this run are still to be computed.")
    html, _ = write_report(
        run.path,
        title=" on ".join(dict.fromkeys((config.recipe, experiment.data.name))),
        rows=rows,
        curves=[*_loss_curves(experiment, run), *accuracy_curves(trials)],
        gallery=picture_stages(experiment, run),
        config=config.model_dump(mode="json"),
        environment=run.environment(),
        notes=notes,
        differences=differences,
        provenance=_provenance(experiment),
        command=command(config),
        scores=scores,
        files=(
            *("results.json", "trials.jsonl", "config.json", "environment.json"),
            *(("scores.json",) if scores else ()),
        ),
    )
    return rows, differences, html


def _on_intervals(sets: int) -> str:
    if sets == 1:
        return (
            "std is over all trials. There is one latent set: the interval, a bootstrap over "
            "networks, knows nothing of how much another set would differ."
        )
    return (
        "std is over all trials; the interval is a bootstrap over latent sets, then networks. "
        "With few sets it is too narrow: with three, in simulations, it holds the true mean in "
        "about 8 of 10 experiments, not in 95 of 100."
    )


def _provenance(experiment: Experiment) -> dict[str, str]:
    """What went in: the data, the generator, and where chance came from."""
    config, data = experiment.config, experiment.data
    told = {
        "data set": f"{data.name}: {len(data.train):,} training images of "
        f"{_times(data.image_shape)} in {data.num_classes} classes; "
        f"sha256 {data.train.fingerprint[:16]}"
    }
    if experiment.generates:
        generator = experiment.generator
        count = sum(tensor.numel() for tensor in generator.tensors().values())
        told["generator"] = (
            f"{config.generator}: {count:,} numbers, latents of {_times(generator.latent_shape)}; "
            f"sha256 {generator.fingerprint[:16]}"
        )
    sets, networks = (
        ", ".join(map(str, seeds)) for seeds in (config.latent_seeds, config.network_seeds)
    )
    told["seeds"] = f"root {config.seed}; latent sets {sets}; networks {networks}"
    return told


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _losses(run: Run, cells: Iterable[Cell]) -> list[tuple[list[float], list[float]]]:
    banks: list[LatentBank] = [run.value(cell) for cell in cells if run.done(cell)]
    losses = [bank.history["loss"] for bank in banks]
    return [([float(x) for x in range(1, len(ys) + 1)], list(ys)) for ys in losses]


def _loss_curves(experiment: Experiment, run: Run) -> list[Curve]:
    titles = {
        "inverted": ("Inversion (Eq. 8)", "inversion", "loss per image"),
        "condensed": ("Condensation (Eq. 11)", "itgan", "loss"),
        "plus": ("Condensation with additions", "itgan-plus", "loss"),
    }
    curves = []
    for stage, make in experiment.makers().items():
        name, source, quantity = titles[stage]
        losses = _losses(run, map(make, experiment.config.latent_seeds))
        if losses:
            curves.append(Curve(name, "step", quantity, {source: losses}))
    return curves


def accuracy_curves(trials: Iterable[Trial]) -> list[Curve]:
    """Accuracy along the training, on real images and on a classifier's own training images."""
    trials = [trial for trial in trials if len(trial.curve) > 1]
    curves = []
    for title, key, where in (
        ("Classifiers", "accuracy", "real images"),
        ("Classifiers on what they are trained on", "training_accuracy", "the training set"),
    ):
        series: dict[str, list[tuple[list[float], list[float]]]] = {}
        for trial in trials:
            own = trial.variant not in ("", "same-rows")
            name = f"{trial.source} ({trial.variant})" if own else trial.source
            name = f"{name} {SOFT}" if trial.labels == SOFT else name
            if key in trial.curve[0]:
                xs = [point["update"] for point in trial.curve]
                ys = [100 * point[key] for point in trial.curve]
                series.setdefault(name, []).append((xs, ys))
        if series:
            curves.append(Curve(title, "update", f"accuracy on {where}, %", series))
    return curves


def _best_along_the_way(trials: Iterable[Trial]) -> str:
    """Mean of the highest points of the curves for each source, in percent; empty without any."""
    peaks: dict[str, list[float]] = {}
    for trial in trials:
        if len(trial.curve) > 1:
            name = f"{trial.source} {trial.variant}".strip()
            name = f"{name} {SOFT}" if trial.labels == SOFT else name
            peaks.setdefault(name, []).append(max(point["accuracy"] for point in trial.curve))
    means = ((name, 100 * sum(values) / len(values)) for name, values in peaks.items())
    return ", ".join(f"{name} {mean:.1f}" for name, mean in means)


def picture_stages(experiment: Experiment, run: Run, per_class: int = 8) -> Gallery | None:
    """Real, inverted and condensed (also plus) images of the same rows, from the first bank."""
    seed = experiment.config.latent_seeds[0]
    rows = experiment.subset(seed)
    names = experiment.data.class_names
    members = [rows.class_indices(label)[:per_class] for label in range(len(names))]
    k = min(len(m) for m in members)
    if not k:
        return None
    picks = torch.stack([m[:k] for m in members])  # classes k
    stages = {"real": rows.images[picks]}
    for name, make in experiment.makers().items():
        if run.done(cell := make(seed)):
            bank = run.value(cell).select(picks.flatten())
            images = experiment.synthetic(bank, seed).materialise().images
            stages[name] = images.unflatten(0, picks.shape)
    return Gallery(names, stages)
