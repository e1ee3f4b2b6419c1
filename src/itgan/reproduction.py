"""Studies computed and printed: measured figures beside the published ones."""

import contextlib
import itertools
import math
import shlex
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from itgan import artefacts, kept
from itgan.charts import Curve
from itgan.configs import Dtype
from itgan.embedding import EmptyWindow
from itgan.errors import InputError
from itgan.evaluation import Trial, summarize
from itgan.pipeline import Experiment
from itgan.progress import say
from itgan.publishing import accuracy_curves, picture_stages
from itgan.recipes import flags_between
from itgan.report import write_gallery, write_report
from itgan.run_configs import RunConfig, StudyConfig
from itgan.runs import Cell, Run, environment
from itgan.scales import COMPARED, SCALES, vary
from itgan.sources import label_bytes
from itgan.studies import STUDIES, Entry, Study, published
from itgan.study_tables import MISSING, differences_markdown, kilobits, markdown_table
from itgan.tables import Row

Candidate = tuple[Entry, Experiment, list[Cell]]


@dataclass(frozen=True)
class Measured:
    """An entry with its trials, in the order of its cells."""

    entry: Entry
    experiment: Experiment
    cells: Sequence[Cell]
    trials: Sequence[Trial]


def entries(name: str, config: StudyConfig) -> list[Entry]:
    """The entries of a study at a scale, on the user's data, generators and seeds.

    Raises:
        InputError: no such study, or ``only`` names no row or column of it.
    """
    if name not in STUDIES:
        raise InputError(f"study {name!r}: choose one of {', '.join(STUDIES)}")
    scale = SCALES[config.scale]()
    if config.score_on == "validation" and not scale.main.validation:
        raise InputError(f"score_on=validation: nothing is held out at {config.scale} scale")
    whole = {dataset: _placed(base, config, dataset) for dataset, base in scale.whole.items()}
    if config.dataset100 and config.generator100 and "CIFAR100" not in whole:
        whole["CIFAR100"] = _placed(scale.whole["CIFAR10"], config, "CIFAR100")
    main = _placed(scale.main, config, "CIFAR10")
    pixels = dict(scale.pixels)
    given = {"CIFAR10": config.generator, "CIFAR100": config.generator100}
    if name == "table2":
        for dataset in filter(given.get, whole):
            size = whole[dataset].latents_per_class
            pixels[dataset, size, "fp32"] = pixels_in_the_bytes(whole[dataset], "fp32")
    if (name == "sources" or STUDIES[name].by_bytes) and config.generator:
        for size, dtype in itertools.product(scale.sizes, COMPARED):
            sized = vary(main, {"latents_per_class": size})
            pixels["CIFAR10", size, dtype] = pixels_in_the_bytes(sized, dtype)
    scale = replace(
        scale,
        whole=whole,
        pixels=pixels,
        few=_placed(scale.few, config, "CIFAR10"),
        main=main,
        additions=_placed(scale.additions, config, "CIFAR10"),
        many=_placed(scale.many, config, "CIFAR10"),
    )
    found = list(STUDIES[name].entries(scale))
    if not found:
        raise InputError(
            f"{name}: is about CIFAR-100, which has no small generator; give --dataset100 and "
            "--generator100"
        )
    names = [{e.row, e.column, f"{e.row}={e.column}"} for e in found]
    unknown = set(config.only).difference(*names)
    if unknown:
        choices = dict.fromkeys(part for e in found for part in (e.row, e.column))
        raise InputError(
            f"only={min(unknown)}: choose rows or columns, or ROW=COLUMN: {', '.join(choices)}"
        )
    wanted = set(config.only)
    chosen = [e for e, own in zip(found, names, strict=True) if not wanted or own & wanted]
    return [replace(e, config=_seeded(e.config, config)) for e in chosen]


def pixels_in_the_bytes(config: RunConfig, dtype: Dtype) -> int:
    """How many raw images per class take the bytes of this experiment's set, stored in dtype."""
    experiment = Experiment(config)
    train = experiment.data.train
    each = math.prod(train.image_shape) + label_bytes(train.num_classes)
    return max(1, experiment.synthetic_bytes(dtype) // each // train.num_classes)


def _placed(base: RunConfig, config: StudyConfig, dataset: str) -> RunConfig:
    """The user's places in a scale's experiment."""
    ten = dataset == "CIFAR10"
    given = {
        "dataset": config.dataset if ten else config.dataset100,
        "generator": config.generator if ten else config.generator100,
    }
    changes = {field: value for field, value in given.items() if value is not None}
    return vary(base, {**changes, "device": config.device, "score_on": config.score_on})


def _seeded(base: RunConfig, config: StudyConfig) -> RunConfig:
    """With the seeds that the user asks for."""
    given = {"latent_seeds": config.latent_seeds, "network_seeds": config.network_seeds}
    return vary(base, {field: value for field, value in given.items() if value is not None})


def cells_of(entry: Entry) -> tuple[Experiment, list[Cell]]:
    """The trials that an entry is the mean of."""
    experiment = Experiment(vary(entry.config, {"sources": (entry.source,)}))
    labelled = {"hard": None, "soft": "soft"}[entry.labels]
    return experiment, [c for c in experiment.trials() if c.determinants.get("labels") == labelled]


def reproduce(name: str, config: StudyConfig, out: Path) -> list[dict[str, Any]]:
    """Compute what is missing of a study and write its tables, curves and pictures.

    Writes ``NAME.json`` (one object for each figure, with its trials), ``NAME.md`` and
    ``report.html`` into ``out``, and ``NAME.json`` into the config's ``results``, too. They hold
    every figure of the study whose trials are all there, whether this call chose it or not, and
    the first is written after each figure. Trials that ``results`` keeps of any study are not
    computed again, and a figure that it has of more sets than asked for stays.

    Returns:
        The objects of ``NAME.json``.

    Raises:
        InputError: no such study; a data set or generator is missing or does not fit; ``results``
            holds figures of another scale, data set or generator, or no figures.
    """
    run, rows = Run(out, Path(config.cells)), []
    planned = [(entry, *cells_of(entry)) for entry in entries(name, config)]
    for _, experiment, _ in planned:
        experiment.check()
    old = _kept_rows(name, config)
    every = _beside(name, config, [entry for entry, _, _ in planned], old)
    _check_same(name, config, {(e.row, e.column) for e, _, _ in planned}, every, old)
    elsewhere = [row for place, row in old.items() if place not in every]
    with artefacts.locked(out):
        run.sweep()
        artefacts.write_json(out / "environment.json", environment(config.device))
        written = old
        if config.results:
            Path(config.results).mkdir(parents=True, exist_ok=True)  # before hours of work
            trials = kept.read_trials(Path(config.results), STUDIES)
            candidates = (cells for ones in every.values() for _, _, cells in ones)
            for cell in itertools.chain.from_iterable(candidates):
                if cell.name in trials:
                    run.put(cell, trials[cell.name])
        for entry, experiment, cells in planned:
            try:
                run.values(cells)
                if STUDIES[name].pictures:  # of banks, which kept trials do without
                    for make in experiment.makers().values():
                        run.value(make(experiment.config.latent_seeds[0]))
            except EmptyWindow as error:
                say(f"{entry.row} {entry.column}: {MISSING}: {error}")
                continue
            rows = [_row(name, config, one) for one in _done(run, every)] + elsewhere
            artefacts.write_json(out / f"{name}.json", rows)
            if config.results:
                written = _keep(name, config, rows, written)
        if not rows:
            raise InputError(f"{name}: none of its figures can be measured here")
        measured = _done(run, every)
        _tell_of_kept(planned, rows)
        tables = [*markdown_table(rows), *differences_markdown(rows)]
        markdown = [f"# {STUDIES[name].title}", "", *tables, "", *_notes(config)]
        artefacts.write_bytes(out / f"{name}.md", ("\n".join(markdown) + "\n").encode())
        _report(name, config, run, measured)
    return rows


def _tell_of_kept(planned: Iterable[Candidate], rows: Iterable[Row]) -> None:
    """Say which figures are not of the seeds that were asked for."""
    found = {(row["row"], row["column"]): row for row in rows}
    for entry, _, cells in planned:
        row = found.get((entry.row, entry.column))
        if row and not {cell.name for cell in cells} <= {t["cell"] for t in row["trials"]}:
            say(
                f"{entry.row} {entry.column}: the kept figure of {row['sets']} latent sets stays; "
                "to see the one asked for, give another --results"
            )


def _kept_rows(name: str, config: StudyConfig) -> dict[tuple[str, str], dict[str, Any]]:
    """The figures that ``results`` has of a study, by row and column."""
    if not config.results:
        return {}
    path = Path(config.results) / f"{name}.json"
    rows = kept.read_rows(path)
    for row in rows:
        if row["scale"] != config.scale:
            raise InputError(
                f"--results {config.results}: {path.name} holds figures of {row['scale']} scale; "
                f"keep those of {config.scale} scale elsewhere"
            )
    return {(row["row"], row["column"]): row for row in rows}


def _keep(
    name: str, config: StudyConfig, rows: Sequence[Row], known: Mapping[tuple[str, str], Row]
) -> Mapping[tuple[str, str], Row]:
    """Write rows into ``results``, with what another process has put there since ``known``.

    Of two figures for one place that of more latent sets stays, or of as many and more trials.

    Returns:
        What is there now.
    """
    folder = Path(config.results or "")
    with artefacts.locked(folder, ".results.lock", wait=True):
        now = {(row["row"], row["column"]): row for row in rows}
        for place, row in _kept_rows(name, config).items():
            if row != known.get(place) and (place not in now or _size(row) > _size(now[place])):
                now[place] = row
        artefacts.write_json(folder / f"{name}.json", [*now.values()])
    return now


def _size(row: Row) -> tuple[int, int]:
    return row["sets"], row["n"]


def _beside(
    name: str,
    config: StudyConfig,
    chosen: Sequence[Entry],
    old: Mapping[tuple[str, str], Row] = MappingProxyType({}),
) -> dict[tuple[str, str], list[Candidate]]:
    """All entries of a study that are about the data and generators of the chosen ones.

    Each as it is asked for, and with the seeds of its ``old`` figure, the one with more latent
    sets first, or as many and more trials; a chosen figure of what is another experiment by now
    is forgotten.
    """
    places = {(entry.config.dataset, entry.config.generator) for entry in chosen}
    found: dict[tuple[str, str], list[Candidate]] = {}
    for entry in entries(name, config.model_copy(update={"only": ()})):
        if (entry.config.dataset, entry.config.generator) in places:
            place = (entry.row, entry.column)
            with contextlib.suppress(InputError):  # of what was not asked for
                found[place] = [(entry, *cells_of(entry))]
                if place in old:
                    again = replace(entry, config=vary(entry.config, kept.seeds(old[place])))
                    found[place].append((again, *cells_of(again)))
                    found[place].sort(key=_sets_and_trials, reverse=True)
    return found


def _sets_and_trials(one: Candidate) -> tuple[int, int]:
    entry, _, cells = one
    return len(entry.config.latent_seeds), len(cells)


def _check_same(
    name: str,
    config: StudyConfig,
    chosen: Container[tuple[str, str]],
    every: Mapping[tuple[str, str], Sequence[Candidate]],
    old: Mapping[tuple[str, str], Row],
) -> None:
    """Refuse figures beside or in the place of those of another data set or experiment."""
    for place in every.keys() & old.keys():
        theirs, ours = old[place]["dataset"], every[place][0][1].data.name
        known = {cell.name for _, _, cells in every[place] for cell in cells}
        if any(trial["cell"] in known for trial in old[place]["trials"]):
            continue
        if theirs != ours:
            raise InputError(
                f"--results {config.results}: {name}.json holds figures of {theirs}; "
                f"keep those of {ours} elsewhere"
            )
        if place not in chosen:
            raise InputError(
                f"--results {config.results}: {name}.json has {' '.join(place)} of another "
                "generator, or of settings that have changed since; keep these figures elsewhere, "
                "or compute the whole study"
            )


def _done(run: Run, every: Mapping[tuple[str, str], Iterable[Candidate]]) -> list[Measured]:
    """The figures of a study whose trials are all there."""
    found = []
    for candidates in every.values():
        whole = (one for one in candidates if all(map(run.done, one[2])))
        if one := next(whole, None):
            entry, experiment, cells = one
            found.append(Measured(entry, experiment, cells, run.values(cells)))
    return found


def _row(name: str, config: StudyConfig, one: Measured) -> dict[str, Any]:
    (summary,) = summarize(one.trials)
    entry = one.entry
    printed = published().get(name, {}).get(entry.row, {}).get(entry.column)
    return {
        "study": name,
        "scale": config.scale,
        "score_on": config.score_on,
        "row": entry.row,
        "column": entry.column,
        "published": printed,
        "classes": one.experiment.data.num_classes,
        **summary,
        "updates": one.trials[0].updates,
        "trials": [
            {
                "cell": cell.name,
                "latent_seed": trial.latent_seed,
                "network_seed": trial.network_seed,
                "accuracy": trial.accuracy,
                **({"curve": trial.curve} if trial.curve else {}),
            }
            for cell, trial in zip(one.cells, one.trials, strict=True)
        ],
    }


def _notes(config: StudyConfig) -> list[str]:
    scales = {
        "paper": "At the paper's scale.",
        "cpu": "At cpu scale: fewer latents and steps, a smaller generator, and the ConvNet where "
        "the paper trains ResNet18. Compare the order of the figures, not their height.",
        "smoke": "At smoke scale: digits stand in for the data sets, trained for a few steps. "
        "These figures mean nothing but that every view can be computed.",
    }
    return [
        scales[config.scale],
        "In the paper's tables GAN draws fresh latents for every batch, as the released evaluation"
        " does.",
        "Accuracy in %, mean ± standard deviation over all trials.",
    ]


def command(name: str, config: StudyConfig) -> str:
    """The command line that computes a study; where to is left to whoever runs it."""
    places = ("out", "cells", "device", "plan", "results")
    elsewhere = {place: getattr(config, place) for place in places}
    flags = flags_between(StudyConfig().model_copy(update=elsewhere), config)
    return shlex.join(["itgan", "reproduce", name, *flags])


def _report(name: str, config: StudyConfig, run: Run, measured: Sequence[Measured]) -> None:
    study = STUDIES[name]
    named = [
        replace(trial, variant=" ".join((one.entry.row, one.entry.column)))
        for one in measured
        for trial in one.trials
    ]
    galleries = {
        one.entry.row: picture_stages(one.experiment, run) for one in measured if study.pictures
    }
    for row, gallery in galleries.items():  # the page has room for one
        if gallery is not None:
            write_gallery(run.path / f"gallery-{row}.png", gallery)
    write_report(
        run.path,
        title=f"{study.title} ({name}, {config.scale} scale)",
        rows=summarize(named),
        curves=_charts(study, measured),
        gallery=next(iter(galleries.values()), None),
        config=config.model_dump(mode="json"),
        command=command(name, config),
        environment=environment(config.device),
        notes=_notes(config),
        files=(f"{name}.json", f"{name}.md", *(f"gallery-{row}.png" for row in galleries)),
    )


def _charts(study: Study, measured: Sequence[Measured]) -> list[Curve]:
    if study.curves:
        return accuracy_curves(trial for one in measured for trial in one.trials)
    numeric = [one for one in measured if one.entry.column.replace(".", "", 1).isdigit()]
    if len(numeric) < len(measured):
        return []
    series: dict[str, list[tuple[list[float], list[float]]]] = {}
    for row in dict.fromkeys(one.entry.row for one in measured):
        ones = [one for one in measured if one.entry.row == row]
        # A source that is the same for all sets has fewer trials than another of its row.
        repetitions = min(len(one.trials) for one in ones)
        xs = [_place(study, one) for one in ones]
        series[row] = [
            (xs, [100 * one.trials[k].accuracy for one in ones]) for k in range(repetitions)
        ]
    across = "kbit a class" if study.by_bytes else ""
    return [Curve(study.title, across, "accuracy on real images, %", series)]


def _place(study: Study, one: Measured) -> float:
    """Where a figure stands on the horizontal axis."""
    if not study.by_bytes:
        return float(one.entry.column)
    return kilobits(one.trials[0].bytes, one.experiment.data.num_classes)
