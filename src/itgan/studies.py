"""The paper's tables and figures in its rows and columns, and studies of our own: views of cells.

A study lists entries, an entry is one printed figure: the configuration and the source whose
trials it is the mean of. Entries of several studies that come to the same cells share them.
"""

import functools
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

from itgan.configs import Dtype, Source
from itgan.run_configs import RunConfig
from itgan.scales import COMPARED, Scale, vary

Labels = Literal["hard", "soft"]

METHODS: Mapping[str, Source] = {
    "GAN": "gan-fresh",  # fresh latents in every batch, as the released evaluation has it
    "Inversion": "inversion",
    "IT-GAN": "itgan",
    "DM": "dm",
    "Upper-bound": "real",
}
# Rows of a study of our own; with few updates the whole set is no upper bound.
SOURCES: Mapping[str, Source] = {
    "Random": "random",
    "Random, same bytes": "random-raw",
    "Random, same bytes as JPEG": "random-jpeg",
    "Herding": "herding",
    "DM": "dm",
    "GAN": "gan",
    "GAN, fresh samples": "gan-fresh",
    "Inversion": "inversion",
    "IT-GAN": "itgan",
    "IT-GAN plus": "itgan-plus",
    "Whole set, same updates": "real",
}
LAMBDAS = (0, 0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)
RATES = (0.001, 0.01, 0.1, 1)
CLASS_WEIGHT = 5.0  # of the classification beside class means; docs/choices.md
WINDOWS = {
    "10-20": (0.1, 0.2),
    "20-30": (0.2, 0.3),
    "30-40": (0.3, 0.4),
    "40-50": (0.4, 0.5),
    "50-60": (0.5, 0.6),
    "60-70": (0.6, 0.7),
    ">=70": (0.7, 1.0),
    "All": (0.0, 1.0),
}


@dataclass(frozen=True)
class Entry:
    """One figure of a table: where it stands, and what is measured, with which labels."""

    row: str
    column: str
    config: RunConfig
    source: Source
    labels: Labels = "hard"


@dataclass(frozen=True)
class Study:
    """A table or a figure: of the paper, or our own.

    Attributes:
        title: what it is about.
        entries: its figures at a scale.
        curves: draw accuracy along training.
        pictures: show images of each stage.
        by_bytes: what its rows cost is told, and draws the horizontal axis.
    """

    title: str
    entries: Callable[[Scale], Iterator[Entry]]
    curves: bool = False
    pictures: bool = False
    by_bytes: bool = False


def _table1(scale: Scale) -> Iterator[Entry]:
    for dataset, config in scale.whole.items():
        config = vary(config, {"evaluation": {"network": scale.network}})
        for method in ("GAN", "Inversion", "IT-GAN"):
            yield Entry(dataset, method, config, METHODS[method])
        yield Entry(dataset, "Upper-bound", vary(config, {"evaluation": scale.bound}), "real")


def _table2(scale: Scale) -> Iterator[Entry]:
    for dataset, config in scale.whole.items():
        for network in ("ConvNet", "ResNet18"):
            trained = vary(
                vary(config, scale.storage), {"evaluation": {"network": scale.networks[network]}}
            )
            pixels = _in_pixels(scale, dataset, trained, "fp32")
            for method in ("DM", "IT-GAN", "Upper-bound"):
                chosen = pixels if method == "DM" else trained
                yield Entry(f"{dataset} {network}", method, chosen, METHODS[method])


def _table3(scale: Scale) -> Iterator[Entry]:
    for dataset, config in scale.whole.items():
        yield from _architectures(scale, dataset, config, "itgan")


def _architectures(scale: Scale, row: str, config: RunConfig, source: Source) -> Iterator[Entry]:
    for title, network in scale.networks.items():
        changed = vary(vary(config, scale.across), {"evaluation": {"network": network}})
        yield Entry(row, title, changed, source)


def _across(scale: Scale) -> Iterator[Entry]:
    for method in ("Inversion", "IT-GAN"):
        yield from _architectures(scale, method, scale.whole["CIFAR10"], METHODS[method])


def _table4(scale: Scale) -> Iterator[Entry]:
    for row, matching in (("Distribution", "distribution"), ("Gradient", "gradient")):
        for rate in RATES:
            change = {"matching": matching, "learning_rate": rate, "lambda_reg": 0}
            yield Entry(row, f"{rate:g}", vary(scale.few, {"condensation": change}), "itgan")


def _table5(scale: Scale) -> Iterator[Entry]:
    for split, shard in zip(("whole", "1/2", "1/4", "1/5"), scale.shards, strict=True):
        whole = shard == scale.many.latents_per_class  # which has one name for its cells
        change = {
            "shard_per_class": None if whole else shard,
            "lambda_reg": 0,
            "splitting": "fixed",
        }
        yield Entry("Accuracy", split, vary(scale.many, {"condensation": change}), "itgan")


def _table6(scale: Scale) -> Iterator[Entry]:
    for row, splitting in (("Fixed", "fixed"), ("Random", "random")):
        for weight in LAMBDAS:
            change = {
                "shard_per_class": scale.shards[3],
                "lambda_reg": weight,
                "splitting": splitting,
            }
            yield Entry(row, f"{weight:g}", vary(scale.many, {"condensation": change}), "itgan")


def _table7(scale: Scale) -> Iterator[Entry]:
    plain = vary(scale.few, {"condensation": {"lambda_reg": 0}})
    yield Entry("Accuracy", "Random", plain, "itgan")
    for column, window in WINDOWS.items():
        pool = {"kind": "snapshots", "window": window, **scale.pool}
        yield Entry("Accuracy", column, vary(plain, {"condensation": {"pool": pool}}), "itgan")


def _curves(dataset: str, scale: Scale) -> Iterator[Entry]:
    if dataset in scale.whole:
        config = vary(scale.whole[dataset], scale.curves)
        config = vary(config, {"evaluation": {"network": scale.network}})
        for method in ("GAN", "Inversion", "IT-GAN"):
            yield Entry(method, "Accuracy", config, METHODS[method])


def _figure5(scale: Scale) -> Iterator[Entry]:
    for row in ("GAN", "Inversion", "IT-GAN"):
        for size in scale.sizes:
            yield Entry(row, f"{size}", _sized(scale, size), SOURCES[row])


def _sized(scale: Scale, size: int) -> RunConfig:
    """The main experiment with another number of latents."""
    return vary(scale.main, {"latents_per_class": size})


def _figure6(scale: Scale) -> Iterator[Entry]:
    for dataset, config in scale.whole.items():
        changed = vary(config, {"evaluation": {"network": scale.network}})
        yield Entry(dataset, "IT-GAN", changed, "itgan")


def _sources(scale: Scale) -> Iterator[Entry]:
    for size in scale.sizes:
        for schedule, change in scale.schedules.items():
            config = vary(_sized(scale, size), {"evaluation": change})
            for row, source in SOURCES.items():
                if source == "itgan-plus":
                    chosen = _in_int8(scale, config)
                elif source == "dm":
                    chosen = _in_pixels(scale, "CIFAR10", config, "fp32")
                else:
                    chosen = config
                yield Entry(row, f"{size}, {schedule}", chosen, source)


def _rate(scale: Scale, schedule: int) -> Iterator[Entry]:
    change = tuple(scale.schedules.values())[schedule]
    for size in scale.sizes:
        config = vary(_sized(scale, size), {"evaluation": change})
        for dtype in ("fp32", "fp16", "int8"):
            yield Entry(f"IT-GAN {dtype}", f"{size}", vary(config, {"dtypes": (dtype,)}), "itgan")
        fewer = {"dtypes": ("int8",), "latent_dim": scale.fewer_dimensions}
        row = f"IT-GAN int8, {scale.fewer_dimensions} dimensions"
        yield Entry(row, f"{size}", vary(config, fewer), "itgan")
        many = _in_int8(scale, config)
        yield Entry("IT-GAN plus", f"{size}", many, "itgan-plus")
        yield Entry("Random, plus's bytes as JPEG", f"{size}", many, "random-jpeg")
        for row in ("Random, same bytes", "Random, same bytes as JPEG"):
            for dtype in COMPARED:
                name = row.replace("same", f"{dtype}'s")
                yield Entry(name, f"{size}", vary(config, {"dtypes": (dtype,)}), SOURCES[row])
        for dtype in COMPARED:
            pixels = _in_pixels(scale, "CIFAR10", config, dtype)
            yield Entry(f"DM, {dtype}'s bytes", f"{size}", pixels, "dm")
        yield Entry("Random", f"{size}", config, "random")


def _in_int8(scale: Scale, config: RunConfig) -> RunConfig:
    """With more latents, a quarter of the bytes each; of a whole training set all it has."""
    size = config.latents_per_class and scale.more * config.latents_per_class
    return vary(config, {"latents_per_class": size, "dtypes": ("int8",)})


def _in_pixels(scale: Scale, dataset: str, config: RunConfig, dtype: Dtype) -> RunConfig:
    """As many images as the bytes of this experiment's set hold, as far as they are known."""
    size = config.latents_per_class
    return vary(config, {"latents_per_class": scale.pixels.get((dataset, size, dtype), size)})


def _plus(scale: Scale) -> Iterator[Entry]:
    """Additions to IT-GAN, one by one and together, and soft labels."""
    plain, most = scale.additions.condensation.model_dump(), scale.additions.plus.model_dump()
    pool, regression = {"pool": most["pool"]}, {"matching": "regression"}
    additions = {
        "several networks": {"embeddings_per_step": 2},
        "all layers": {"layers": "all"},
        "mean of the last": {"average": 0.3},
        "class gains too": {"gains_rate": 0.001},
        "trained networks": pool,
        "trained networks classify": {**pool, "lambda_class": CLASS_WEIGHT},
        "regression": regression,
        "regression in trained networks": {**pool, **regression},
        "regression, trained networks classify": {
            **pool,
            **regression,
            "lambda_class": most["lambda_class"],
        },
    }
    for schedule, change in scale.schedules.items():
        once = vary(scale.additions, {"evaluation": change})
        many = _in_int8(scale, once)
        yield Entry("Random", schedule, once, "random")
        yield Entry("IT-GAN", schedule, once, "itgan")
        for row, addition in additions.items():
            alone = vary(once, {"condensation": {**plain, **addition}})
            yield Entry(f"IT-GAN, {row}", schedule, alone, "itgan")
        same = {name: plain[name] for name in ("pool", "matching", "lambda_class")}
        more = vary(many, {"condensation": {**most, **same}})
        yield Entry("IT-GAN, more in int8", schedule, more, "itgan")
        yield Entry("IT-GAN plus", schedule, many, "itgan-plus")
        means = {"matching": "distribution", "lambda_class": CLASS_WEIGHT}
        yield Entry(
            "IT-GAN plus, class means", schedule, vary(many, {"plus": means}), "itgan-plus"
        )
        softly = {"soft_labels": True}
        yield Entry("Random, soft labels", schedule, vary(once, softly), "random", "soft")
        yield Entry("IT-GAN, soft labels", schedule, vary(once, softly), "itgan", "soft")
        yield Entry("IT-GAN plus, soft labels", schedule, vary(many, softly), "itgan-plus", "soft")


STUDIES: Mapping[str, Study] = {
    "table1": Study("Whole-set learning", _table1),
    "table2": Study("The same storage as distribution matching in pixels", _table2),
    "table3": Study("Generalisation across architectures", _table3),
    "table4": Study("Distribution and gradient matching, by learning rate", _table4),
    "table5": Study("Latents of a class that are matched together", _table5),
    "table6": Study("Fixed and random splitting, by lambda", _table6),
    "table7": Study("Networks to match in, by their accuracy in %", _table7),
    "fig3": Study(
        "Learning curves on CIFAR-10", functools.partial(_curves, "CIFAR10"), curves=True
    ),
    "fig4": Study(
        "Learning curves on CIFAR-100", functools.partial(_curves, "CIFAR100"), curves=True
    ),
    "fig5": Study("Subsets, by latents per class", _figure5),
    "fig6": Study("Synthetic images", _figure6, pictures=True),
    "sources": Study("What to train on, by latents per class and length of training", _sources),
    "architectures": Study("Condensed and inverted latents, across architectures", _across),
    "plus": Study("What each addition to IT-GAN is worth, in no more bytes", _plus),
    "rate": Study(
        "Accuracy and bytes, by latents per class",
        functools.partial(_rate, schedule=0),
        by_bytes=True,
    ),
    "rate-long": Study(
        "Accuracy and bytes, after the long training",
        functools.partial(_rate, schedule=1),
        by_bytes=True,
    ),
}


@functools.cache
def published() -> Mapping[str, Mapping[str, Mapping[str, tuple[float, float]]]]:
    """The paper's figures: study -> row -> column -> mean and standard deviation in percent."""
    text = files("itgan").joinpath("published.toml").read_text()
    return {
        study: {row: {c: (m, s) for c, (m, s) in values.items()} for row, values in rows.items()}
        for study, rows in tomllib.loads(text).items()
    }
