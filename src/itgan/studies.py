"""The paper's tables and figures in its rows and columns, and studies of our own: views of cells.

A study lists entries, an entry is one printed figure: the configuration and the source whose
trials it is the mean of. Entries of several studies that come to the same cells share them.
"""

import functools
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any, Literal

from itgan.configs import Source
from itgan.recipes import cifar10_cpu, cifar10_paper, cifar100_paper, digits
from itgan.run_configs import RunConfig

ScaleName = Literal["paper", "cpu", "smoke"]
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
NETWORKS = {
    "ConvNet": "convnet",
    "VGG19": "vgg19",
    "ResNet18": "resnet18",
    "WRN-16-8": "wrn-16-8",
    "MobileNetV2": "mobilenetv2",
}
LAMBDAS = (0, 0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)
RATES = (0.001, 0.01, 0.1, 1)
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
class Scale:
    """How large the experiments are: the paper's, or small enough for two CPU cores.

    Attributes:
        whole: for each data set, the experiment of Tables 1-3 and of the curves.
        bound: changes to the evaluation of Table 1's upper bound.
        same_bytes: for each data set, pixel images per class in the bytes of the synthetic set.
        network: what Table 1 and the curves train.
        across: changes in Tables 2 and 3, which train several networks.
        curves: changes in Figures 3 and 4.
        few: the ablations that the paper runs at 100 latents per class.
        many: those that it runs at 500.
        shards: latents matched together for the splits 1, 2, 4 and 5 of Table 5.
        pool: fields of the pool of Table 7.
        sizes: latents per class of Figure 5, and of the studies of our own.
        fewer_dimensions: of latents, in the study of accuracy and bytes.
        main: the experiment of those studies.
        additions: that of the additions to IT-GAN.
        schedules: changes to the evaluation, by name: a short and a long training.
        more: latents of IT-GAN plus in int8, in the place of one in fp32, in fewer bytes.
        networks: the paper's architectures.
    """

    whole: Mapping[str, RunConfig]
    bound: Mapping[str, Any]
    same_bytes: Mapping[str, int]
    network: str
    across: Mapping[str, Any]
    curves: Mapping[str, Any]
    few: RunConfig
    many: RunConfig
    shards: tuple[int, int, int, int]
    pool: Mapping[str, Any]
    sizes: tuple[int, ...]
    fewer_dimensions: int
    main: RunConfig
    additions: RunConfig
    schedules: Mapping[str, Mapping[str, Any]]
    more: int = 2
    networks: Mapping[str, str] = field(default_factory=lambda: NETWORKS)


def vary(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """A config with nested fields replaced, checked."""

    def merge(base: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
        both = {**base, **new}
        for key, value in new.items():
            if isinstance(value, Mapping) and isinstance(base.get(key), Mapping):
                both[key] = merge(base[key], value)
        return both

    return RunConfig.model_validate(merge(config.model_dump(), changes))


def paper_scale() -> Scale:
    """As published: a GPU and days. Ablations train ResNet18, the network of most experiments."""
    ten, hundred = cifar10_paper(), cifar100_paper()
    ablation = {"condensation": {"lambda_reg": 0.0}}
    return Scale(
        whole={"CIFAR10": ten, "CIFAR100": hundred},
        bound={},
        same_bytes={"CIFAR10": 1250, "CIFAR100": 125},
        network="resnet18",
        across={},
        curves={},
        few=vary(ten, {**ablation, "latents_per_class": 100}),
        many=vary(ten, {**ablation, "latents_per_class": 500}),
        shards=(500, 250, 125, 100),
        pool={"networks": 100, "training": {"epochs": 200}},
        sizes=(50, 100, 250, 500, 1000, 1250),
        fewer_dimensions=32,
        main=ten,
        additions=ten,
        schedules={"200 epochs": {}, "600 epochs": {"epochs": 600}},
    )


def cpu_scale() -> Scale:
    """50 latents per class and the ConvNet, on two CPU cores; CIFAR-100 has no small generator.

    Six sets with two networks each, four at other sizes than 50, three in Tables 4 to 7 and for
    the additions to IT-GAN; an interval is over sets. Large networks, three sets with one each,
    take as many updates as 20 epochs of a set of 500 images have; curves have the same sets.
    Tables 4 to 7 take 60 steps at a constant rate, as the paper's have one, in fp32, and draw 50
    real images per class; Tables 5 and 6 draw 32, for every shard draws its own. The additions
    are compared after 60 steps, too.
    """
    full = {"precision": "fp32"}
    sixty = {"steps": 60}
    short = {"steps": 60, "schedule": "constant", "learning_rate": 0.01, "basis": "latent"}
    drawn = {"real_per_class": 50, "micro_batch": 50}  # gradients of one class go together
    base = vary(
        cifar10_cpu(),
        {
            "latent_seeds": (0, 1, 2),
            "inversion": full,
            "condensation": {**short, **full, **drawn},
            "evaluation": full,
        },
    )
    return Scale(
        whole={"CIFAR10": cifar10_cpu()},
        bound={"updates": None, "epochs": 4},
        same_bytes={"CIFAR10": 57, "CIFAR100": 14},
        network="convnet",
        across={
            "latent_seeds": (0, 1, 2),
            "network_seeds": (0,),
            "evaluation": {"updates": 160, "compile": False},
        },
        curves={
            "latent_seeds": (0, 1, 2),
            "network_seeds": (0,),
            "evaluation": {"curve_points": 5},
        },
        few=base,
        many=vary(base, {"condensation": {"real_per_class": 32}}),
        shards=(50, 25, 13, 10),
        pool=cifar10_cpu().plus.pool.model_dump(exclude={"kind", "window"}),
        sizes=(10, 50, 100),
        fewer_dimensions=32,
        main=cifar10_cpu(),
        additions=vary(
            cifar10_cpu(),
            {
                "latent_seeds": (0, 1, 2),
                "condensation": sixty,
                "plus": sixty,
            },
        ),
        schedules={"200 updates": {}, "600 updates": {"updates": 600}},
    )


def smoke_scale() -> Scale:
    """Digits, a few steps: every view once through, to no figure's credit."""
    short = {"updates": 4, "batch_size": 64}
    base = vary(
        digits(),
        {
            "recipe": "smoke",
            "latents_per_class": 5,
            "latent_seeds": (0,),
            "network_seeds": (0,),
            "inversion": {"steps": 2, "extractor": short},
            "condensation": {"steps": 2, "real_per_class": 8},
            "plus": {
                "steps": 2,
                "real_per_class": 8,
                "pool": {"networks": 1, "training": short},
            },
            "dm": {"steps": 2, "real_per_class": 8},
            "evaluation": {**short, "curve_points": 0},
        },
    )
    return Scale(
        whole={"CIFAR10": base, "CIFAR100": base},
        bound={},
        same_bytes={"CIFAR10": 20, "CIFAR100": 20},
        network="convnet",
        across={},
        curves={"evaluation": {"curve_points": 2}},
        few=base,
        many=base,
        shards=(5, 3, 2, 1),
        pool={
            "networks": 2,
            "snapshots": 60,  # so slow that some fall into every window
            "training": {
                "updates": 60,
                "learning_rate": 0.002,
                "momentum": 0.2,
                "augmentation": "none",
            },
        },
        sizes=(2, 5, 8),
        fewer_dimensions=8,
        main=base,
        additions=base,
        schedules={"4 updates": {}, "8 updates": {"updates": 8}},
        networks={**NETWORKS, "VGG19": "vgg19@32"},
    )


SCALES: Mapping[ScaleName, Callable[[], Scale]] = {
    "paper": paper_scale,
    "cpu": cpu_scale,
    "smoke": smoke_scale,
}


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
                vary(config, scale.across), {"evaluation": {"network": scale.networks[network]}}
            )
            for method in ("DM", "IT-GAN", "Upper-bound"):
                size = {"latents_per_class": scale.same_bytes[dataset]} if method == "DM" else {}
                changed = vary(trained, size)
                yield Entry(f"{dataset} {network}", method, changed, METHODS[method])


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
    """The main experiment, or with another number of latents and at most four sets."""
    if size == scale.main.latents_per_class:
        return scale.main
    seeds = scale.main.latent_seeds[:4]
    return vary(scale.main, {"latents_per_class": size, "latent_seeds": seeds})


def _figure6(scale: Scale) -> Iterator[Entry]:
    for dataset, config in scale.whole.items():
        changed = vary(config, {"evaluation": {"network": scale.network}})
        yield Entry(dataset, "IT-GAN", changed, "itgan")


def _sources(scale: Scale) -> Iterator[Entry]:
    for size in scale.sizes:
        for schedule, change in scale.schedules.items():
            config = vary(_sized(scale, size), {"evaluation": change})
            for row, source in SOURCES.items():
                forms = {"itgan-plus": _in_int8, "dm": _in_pixels}
                chosen = forms[source](scale, config) if source in forms else config
                yield Entry(row, f"{size}, {schedule}", chosen, source)


def _rate(scale: Scale) -> Iterator[Entry]:
    for size in scale.sizes:
        config = _sized(scale, size)
        for dtype in ("fp32", "fp16", "int8"):
            yield Entry(f"IT-GAN {dtype}", f"{size}", vary(config, {"dtypes": (dtype,)}), "itgan")
        fewer = {"dtypes": ("int8",), "latent_dim": scale.fewer_dimensions}
        row = f"IT-GAN int8, {scale.fewer_dimensions} dimensions"
        yield Entry(row, f"{size}", vary(config, fewer), "itgan")
        for row in ("Random, same bytes", "Random, same bytes as JPEG"):
            for dtype in ("fp32", "int8"):
                name = row.replace("same", f"{dtype}'s")
                yield Entry(name, f"{size}", vary(config, {"dtypes": (dtype,)}), SOURCES[row])
        yield Entry("Random", f"{size}", config, "random")
        yield Entry("DM", f"{size}", _in_pixels(scale, config), "dm")


def _in_int8(scale: Scale, config: RunConfig) -> RunConfig:
    """With more latents, a quarter of the bytes each; of a whole training set all it has."""
    size = config.latents_per_class and scale.more * config.latents_per_class
    return vary(config, {"latents_per_class": size, "dtypes": ("int8",)})


def _in_pixels(scale: Scale, config: RunConfig) -> RunConfig:
    """As many images as the bytes of the main experiment's set hold; of other sizes its own."""
    if config.latents_per_class != scale.main.latents_per_class:
        return config
    return vary(config, {"latents_per_class": scale.same_bytes["CIFAR10"]})


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
        "trained networks classify": {**pool, "lambda_class": 5.0},  # docs/choices.md
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
    "rate": Study("Accuracy and bytes, by latents per class", _rate, by_bytes=True),
}


@functools.cache
def published() -> Mapping[str, Mapping[str, Mapping[str, tuple[float, float]]]]:
    """The paper's figures: study -> row -> column -> mean and standard deviation in percent."""
    text = files("itgan").joinpath("published.toml").read_text()
    return {
        study: {row: {c: (m, s) for c, (m, s) in values.items()} for row, values in rows.items()}
        for study, rows in tomllib.loads(text).items()
    }
