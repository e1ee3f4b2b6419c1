import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from itgan import configs, file_configs, generator_configs
from itgan.configs import CondensationConfig, Config, EvaluationConfig, InversionConfig, PoolConfig
from itgan.generator_configs import PretrainingConfig
from itgan.run_configs import RunConfig

KINDS = [
    kind
    for module in (configs, generator_configs, file_configs)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, Config) and kind.__module__ == module.__name__
    if kind is not Config
]


def number_fields(kind):
    """(name, integer?, bounds) of every numeric field, bounds as in JSON schema."""
    schema = kind.model_json_schema()
    for name, field in schema["properties"].items():
        if field.get("anyOf") == [{"type": "integer"}, {"type": "number"}]:
            continue  # a number or a fraction: tested below
        for form in field.get("anyOf", [field]):
            if form.get("type") in ("integer", "number"):
                yield name, form["type"] == "integer", form


NUMBERS = [(kind, *rest) for kind in KINDS for rest in number_fields(kind)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_config_is_frozen_closed_and_survives_json(kind):
    config = kind()
    name = next(iter(kind.model_fields))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(config, name, getattr(config, name))
    with pytest.raises(ValidationError, match=r"bogus\n +Extra inputs are not permitted"):
        kind(bogus=1)
    assert kind.model_validate_json(config.model_dump_json()) == config
    assert kind.model_validate(json.loads(json.dumps(config.model_dump(mode="json")))) == config
    assert hash(config) == hash(kind())


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_has_a_default_and_a_help_text(kind):
    for name, field in kind.model_fields.items():
        assert not field.is_required(), name
        assert field.description, name
        assert "\n" not in field.description


@pytest.mark.parametrize(
    ("kind", "name", "whole", "bounds"), NUMBERS, ids=[f"{n[0].__name__}.{n[1]}" for n in NUMBERS]
)
def test_numbers_are_bounded(kind, name, whole, bounds):
    low = bounds.get("minimum", bounds.get("exclusiveMinimum"))
    high = bounds.get("maximum", bounds.get("exclusiveMaximum"))
    assert low is not None
    assert low >= 0
    bad = [low - 1, -1e9 if not whole else -(10**9), "many", float("nan"), float("-inf")]
    bad += [low] if "exclusiveMinimum" in bounds else []
    bad += [float("inf")]
    if high is not None:
        bad += [high + 1, high] if "exclusiveMaximum" in bounds else [high + 1]
    if whole:
        bad += [low + 0.5]
    for value in bad:
        with pytest.raises(ValidationError) as error:
            kind.model_validate({name: value})
        assert error.value.errors()[0]["loc"][0] == name
    good = (
        [low + 1]
        + ([low] if "minimum" in bounds else [])
        + ([high] if "maximum" in bounds else [])
    )
    for value in good:
        if value + 0 <= (high if high is not None else value) and not (
            "exclusiveMaximum" in bounds and value >= high
        ):
            assert getattr(kind.model_validate({name: value}), name) == value


def test_nested_configs_are_bounded_too():
    with pytest.raises(ValidationError) as error:
        RunConfig.model_validate({"inversion": {"extractor": {"epochs": 0}}})
    assert error.value.errors()[0]["loc"] == ("inversion", "extractor", "epochs")


@pytest.mark.parametrize("field", ["latent_seeds", "network_seeds"])
def test_seeds_are_given_once_each_and_never_none(field):
    for value in ((), (1, 1), (0, 1, 0)):
        with pytest.raises(ValidationError, match=field):
            RunConfig.model_validate({field: value})
    for value in ((-1,), (2**63,), (0.5,), 3):
        with pytest.raises(ValidationError, match=field):
            RunConfig.model_validate({field: value})


@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, unique=True))
def test_any_distinct_seeds_will_do(seeds):
    assert RunConfig(latent_seeds=tuple(seeds)).latent_seeds == tuple(seeds)


def test_a_window_is_of_two_accuracies():
    for value in ((0.5,), (0.1, 0.2, 0.3), (-0.1, 0.5), (0.5, 1.1), (0.5, float("nan"))):
        with pytest.raises(ValidationError, match="window"):
            PoolConfig.model_validate({"window": value})
    assert PoolConfig(window=(0.7, 1.0)).window == (0.7, 1.0)


def test_sources_are_known_and_distinct():
    for value in ((), ("gan", "gan"), ("elsewhere",)):
        with pytest.raises(ValidationError, match="sources"):
            RunConfig.model_validate({"sources": value})


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (EvaluationConfig, "precision", "fp8"),
        (CondensationConfig, "matching", "hope"),
        (CondensationConfig, "splitting", "sometimes"),
        (EvaluationConfig, "compile", "perhaps"),
        (RunConfig, "dataset", 3),
    ],
)
def test_choices_are_closed(kind, field, value):
    with pytest.raises(ValidationError) as error:
        kind.model_validate({field: value})
    assert error.value.errors()[0]["loc"] == (field,)


def test_the_published_protocol_is_the_default():
    protocol = EvaluationConfig()
    assert (protocol.epochs, protocol.batch_size, protocol.learning_rate) == (200, 256, 0.01)
    assert (protocol.momentum, protocol.weight_decay) == (0.9, 5e-4)
    assert protocol.augmentation == "color_crop_cutout_flip_scale_rotate"
    assert InversionConfig().learning_rate == 0.1
    assert InversionConfig().lambda_pixel == 1
    assert CondensationConfig().lambda_reg == 0
    assert CondensationConfig().shard_per_class is None
    assert CondensationConfig().splitting == "fixed"


def test_configs_do_not_wait_for_torch():
    modules = "itgan.configs, itgan.file_configs, itgan.recipes"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("kind", [RunConfig, PretrainingConfig])
def test_validation_is_a_number_or_a_fraction(kind):
    for given_, kept in ((0, 0), (200, 200), (5.0, 5), (0.25, 0.25), (0.0, 0)):
        config = kind(validation=given_)
        assert (config.validation, type(config.validation)) == (kept, type(kept))
        assert kind.model_validate_json(config.model_dump_json()) == config
    for wrong in (-1, -0.5, 1.5, 100.5, float("nan"), float("inf"), 10**30, "many", None):
        with pytest.raises(ValidationError, match="validation"):
            kind(validation=wrong)


def test_whole_numbers_leave_the_identity_of_a_training_as_it_was():
    dumped = PretrainingConfig(validation=5000).model_dump(exclude_defaults=True)
    assert json.dumps(dumped) == '{"validation": 5000}'  # not 5000.0: it is hashed as text
