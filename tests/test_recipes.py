import shlex
from pathlib import Path

import pytest

from itgan import run_commands
from itgan.augment import parse_strategy
from itgan.dc import loops, variant
from itgan.generator_configs import AutoencodingConfig, PretrainingConfig
from itgan.pipeline import Experiment
from itgan.pretraining import parse_diffaugment
from itgan.recipes import (
    PRETRAININGS,
    RECIPES,
    cifar10_cpu,
    cifar10_paper,
    cifar10_smoke,
    command,
    digits,
)
from itgan.run_configs import RunConfig

runs = pytest.mark.parametrize("name", RECIPES)
pretrainings = pytest.mark.parametrize("name", PRETRAININGS)


@runs
def test_a_recipe_is_a_valid_config_that_knows_its_name(name):
    config = RECIPES[name]()
    assert isinstance(config, RunConfig)
    assert config.recipe == name
    assert RunConfig.model_validate(config.model_dump()) == config
    assert RECIPES[name]() == config
    assert config.out is None


@runs
def test_every_augmentation_of_a_recipe_is_understood(name):
    config = RECIPES[name]()
    for stage in (config.inversion.extractor, config.condensation, config.evaluation):
        groups = parse_strategy(stage.augmentation)
        if config.dataset == "digits":
            assert "flip" not in groups


def test_published_pretrainings():
    """BigGAN with DiffAugment on CIFAR: 1,000 and 2,000 epochs."""
    for name, steps in (("cifar10", 250_000), ("cifar100", 500_000)):
        config = PRETRAININGS[name]()
        batch = config.batch_size * config.discriminator_steps
        assert (config.channels, config.latent_dim, config.steps) == (64, 128, steps)
        assert (config.batch_size, config.discriminator_steps, batch) == (50, 4, 200)
        assert config.generator_rate == config.discriminator_rate == 2e-4
        assert (config.ema, config.ema_start) == (0.9999, 1000)
        assert config.diffaugment == "translation,cutout"


@pretrainings
def test_a_pretraining_is_a_valid_config(name):
    config = PRETRAININGS[name]()
    assert isinstance(config, PretrainingConfig)
    assert type(config).model_validate(config.model_dump()) == config
    parse_diffaugment(config.diffaugment)
    assert config.out is None
    groups: list[str] = []
    if isinstance(config, AutoencodingConfig):
        groups = parse_strategy(config.extractor.augmentation)
        assert config.adversarial_start < config.steps
    if config.dataset == "digits":
        assert not config.flip
        assert "flip" not in groups


@pytest.mark.parametrize("make", [*RECIPES.values(), *PRETRAININGS.values()])
def test_the_first_line_of_its_docstring_is_the_overview(make):
    first = make.__doc__.splitlines()[0]
    assert first.endswith(".")
    assert len(first) < 99


def test_baselines_get_the_augmentation_of_itgan_and_no_smaller_a_budget():
    for make in (digits, cifar10_smoke, cifar10_cpu):  # the others have published budgets
        config = make()
        same = ("real_per_class", "augmentation", "precision")
        ours, theirs = config.condensation.model_dump(), config.dm.model_dump()
        assert [ours[field] for field in same] == [theirs[field] for field in same]
        assert theirs["steps"] >= ours["steps"]


@runs
def test_a_recipe_as_it_is_needs_no_flags(name):
    config = RECIPES[name]().model_copy(update={"out": "elsewhere", "device": "cuda"})
    assert command(config) == f"itgan run {name}"


@pytest.mark.parametrize(
    "change",
    [
        {"latents_per_class": 7, "validation": 5, "seed": 3},
        {"latents_per_class": None},
        {"latent_seeds": (4,), "network_seeds": (1, 2), "sources": ("itgan", "gan-fresh")},
        {"dataset": "/a place/with 'quotes'", "generator": "weights.pth", "image_column": "img"},
        {"label_column": "-x", "dataset": "--help"},
        {"evaluation": {"compile": True, "updates": None, "learning_rate": 1e-05}},
        {"condensation": {"pool": {"kind": "snapshots", "window": (0.25, 0.75)}}},
        {"inversion": {"extractor": {"compile": True}}, "recipe": "of-my-own"},
    ],
    ids=lambda change: next(iter(change)),
)
@pytest.mark.parametrize("name", ["digits", "cifar10-smoke"])
def test_the_command_of_a_configuration_gives_that_configuration(name, change):
    def merged(old, new):
        return {
            key: merged(value, new[key]) if isinstance(new.get(key), dict) else new.get(key, value)
            for key, value in old.items()
        }

    config = RunConfig.model_validate(merged(RECIPES[name]().model_dump(), change))
    itgan, run, *arguments = shlex.split(command(config))
    assert (itgan, run) == ("itgan", "run")
    again = run_commands.recipe(arguments, "run")
    assert again.model_copy(update={"out": None}) == config


def test_the_settings_of_the_paper_and_of_both_released_scripts():
    for classes, shard, low in ((10, 1250, 0.7), (100, 500, 0.4)):
        paper, a, b = (
            RECIPES[f"cifar{classes}-{k}"]() for k in ("paper", "released-a", "released-b")
        )
        assert paper.latents_per_class is None
        assert (paper.inversion.steps, paper.inversion.learning_rate) == (5000, 0.1)
        assert (paper.inversion.batch_size, paper.inversion.lambda_pixel) == (100, 1)
        assert (paper.latent_seeds, paper.network_seeds) == ((0, 1, 2), (0, 1, 2))
        assert (paper.evaluation.network, paper.evaluation.epochs) == ("resnet18", 200)
        for config in (paper, a, b):
            found = config.condensation
            assert (found.shard_per_class, found.real_per_class) == (shard, 500)
            assert (found.learning_rate, found.splitting, found.network) == (
                0.001,
                "fixed",
                "convnet",
            )
            assert config.inversion == paper.inversion
        settings = ("steps", "lambda_reg", "network_per")
        found = [[getattr(c.condensation, k) for k in settings] for c in (paper, a, b)]
        assert found == [[5000, 0, "step"], [10_000, 0.001, "class"], [5000, 0, "class"]]
        assert (paper.condensation.pool.kind, a.condensation.pool.kind) == ("random", "random")
        assert (b.condensation.pool.kind, b.condensation.pool.window) == ("snapshots", (low, 1.0))


def test_documented_commands_give_the_baselines_as_published():
    text = (Path(__file__).parents[1] / "docs" / "baselines.md").read_text()
    lines = [shlex.split(line[2:]) for line in text.splitlines() if line.startswith("$ itgan run")]
    dm, dc, dsa = (run_commands.recipe(words[2:], "run") for words in lines)
    found = dm.dm
    assert (found.optimiser, found.momentum, found.learning_rate) == ("sgd", 0.5, 1)
    assert (found.steps, found.real_per_class, found.pool.kind) == (20_000, 256, "random")
    assert (found.matching, found.network_per, found.lambda_reg) == ("distribution", "step", 0)
    assert cifar10_paper().dm.learning_rate == 10  # of the whole set
    for config in (dc, dsa):
        found = config.dc
        assert (found.steps, found.learning_rate, found.momentum) == (1000, 0.1, 0.5)
        assert (found.real_per_class, found.network_rate, found.batch_size) == (256, 0.01, 256)
        assert loops(found, config.latents_per_class) == (10, 50)
    assert [variant(dc.dc), variant(dsa.dc)] == ["", "dsa"]
    for config, epochs in ((dm, 1000), (dc, 300), (dsa, 1000)):
        assert (config.evaluation.network, config.evaluation.epochs) == ("convnet", epochs)
        assert not Experiment(config).generates
