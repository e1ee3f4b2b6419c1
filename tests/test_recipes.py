import pytest

from itgan.augment import parse_strategy
from itgan.configs import PretrainingConfig, RunConfig
from itgan.pretraining import parse_diffaugment
from itgan.recipes import PRETRAININGS, RECIPES, cifar10_cpu, cifar10_smoke, digits

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


@pretrainings
def test_a_pretraining_is_a_valid_config(name):
    config = PRETRAININGS[name]()
    assert isinstance(config, PretrainingConfig)
    assert PretrainingConfig.model_validate(config.model_dump()) == config
    parse_diffaugment(config.diffaugment)
    assert config.out is None
    assert not (config.dataset == "digits" and config.flip)


@pytest.mark.parametrize("make", [*RECIPES.values(), *PRETRAININGS.values()])
def test_the_first_line_of_its_docstring_is_the_overview(make):
    first = make.__doc__.splitlines()[0]
    assert first.endswith(".")
    assert len(first) < 99


def test_baselines_get_the_budget_and_the_augmentation_of_itgan():
    for make in (digits, cifar10_smoke, cifar10_cpu):  # the others have published budgets
        config = make()
        same = ("steps", "real_per_class", "augmentation", "precision")
        ours, theirs = config.condensation.model_dump(), config.dm.model_dump()
        assert [ours[field] for field in same] == [theirs[field] for field in same]
