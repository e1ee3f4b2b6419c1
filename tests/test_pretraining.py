import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from itgan import artefacts, pretraining
from itgan.cli import main
from itgan.configs import EvaluationConfig
from itgan.data import load_dataset
from itgan.errors import InputError
from itgan.generator_configs import MetricsConfig, PretrainingConfig
from itgan.generators import FrozenGenerator, load_generator
from itgan.generators.biggan import power_step
from itgan.journal import Journal
from itgan.metrics import measure
from itgan.pretraining import EpochStream, GANTrainer, parse_diffaugment, pretrain, settled

TINY = PretrainingConfig(
    steps=6,
    batch_size=4,
    channels=2,
    latent_dim=4,
    ema=0.9,
    ema_start=2,
    diffaugment="translation,cutout,color",
    device="cpu",
)


def identity_of(config, images):
    return artefacts.json_digest(GANTrainer(config, images).identity())


def tiny(**changes):
    return TINY.model_copy(update=changes)


def files(out: Path):
    """Tensors of the generator, and the checkpoint's bytes."""
    generator, _ = artefacts.load(out / "generator.safetensors", "generator")
    return generator, (out / "checkpoint.safetensors").read_bytes()


def assert_same(a: Path, b: Path):
    (one, one_checkpoint), (other, other_checkpoint) = files(a), files(b)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert one_checkpoint == other_checkpoint


@pytest.fixture(scope="module")
def unbroken(digits, tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining, "LOG_EVERY", 1)
        assert pretrain(TINY, digits, out) == out / "generator.safetensors"
    return out


# --- what a run leaves --------------------------------------------------------------------------


def test_the_files_of_a_run(unbroken, digits):
    generator = load_generator(unbroken / "generator.safetensors")
    assert (generator.latent_shape, generator.image_shape) == ((4,), (1, 8, 8))
    metadata = artefacts.read_metadata(unbroken / "generator.safetensors")
    assert metadata["kind"] == "generator"
    assert metadata["dataset"] == "digits"
    assert metadata["class_names"] == list(digits.class_names)
    assert metadata["trained_on"] == digits.train.record
    assert metadata["trained_on"]["images"] == 1201
    config = TINY.model_dump(mode="json")
    assert artefacts.read_json(unbroken / "config.json") == config
    assert metadata["config"] == {k: v for k, v in config.items() if k not in pretraining.TOLD}
    with Image.open(unbroken / "samples" / "0000006.png") as grid:
        assert grid.size == (80, 80)  # ten classes, ten samples of each
    rows = artefacts.read_jsonl(unbroken / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all(row.keys() == {"step", "d_loss", "g_loss", "seconds"} for row in rows)


def test_a_run_is_a_function_of_its_seed(unbroken, digits, tmp_path):
    before = torch.get_rng_state()
    pretrain(TINY, digits, tmp_path / "again")
    assert torch.equal(torch.get_rng_state(), before), "the global random state was used"
    assert_same(tmp_path / "again", unbroken)
    pretrain(tiny(seed=1, steps=1), digits, tmp_path / "other")
    other, _ = files(tmp_path / "other")
    assert not torch.equal(other["linear.weight"], files(unbroken)[0]["linear.weight"])


def test_the_exported_sigma_is_the_largest_singular_value(unbroken):
    state, _ = files(unbroken)
    averaged = {name: tensor for name, tensor in state.items() if not name.startswith("raw.")}
    layers = [name.removesuffix(".u0") for name in averaged if name.endswith(".u0")]
    assert len(layers) == 5
    for layer in layers:
        weight = state[f"{layer}.weight"].flatten(1)
        exact = torch.linalg.matrix_norm(weight, 2)
        _, sigma = power_step(weight, state[f"{layer}.u0"])
        torch.testing.assert_close(sigma, exact, rtol=2e-3, atol=0)
        torch.testing.assert_close(state[f"{layer}.sv0"][0], exact, rtol=2e-3, atol=0)
        torch.testing.assert_close(state[f"{layer}.u0"].norm(), torch.ones(()))


def test_the_file_holds_raw_weights_too(digits, tmp_path):
    trainer = GANTrainer(TINY, digits.train)
    for step in range(TINY.steps):
        trainer.step(step)
    path = pretrain(TINY, digits, tmp_path)
    raw = load_generator(path, weights="raw")
    assert raw.fingerprint == FrozenGenerator.from_biggan(trainer.generator).fingerprint
    averaged = load_generator(path)
    assert averaged.fingerprint == FrozenGenerator.from_biggan(trainer.averaged()).fingerprint
    assert averaged.fingerprint != raw.fingerprint


# --- measured along the way ---------------------------------------------------------------------

MEASURED = MetricsConfig(
    figures=("precision", "coverage"), extractor=EvaluationConfig(updates=2), samples=30
)


def test_figures_in_the_log_change_nothing_else(unbroken, tmp_path):
    # Held-out images that the training set does not miss: the weights can be compared.
    digits = load_dataset("digits")
    data = type(digits)("digits", digits.train, digits.test, digits.test)
    path = pretrain(tiny(measure_every=4, monitor=MEASURED), data, tmp_path)
    assert files(tmp_path)[1] == files(unbroken)[1]
    rows = artefacts.read_jsonl(tmp_path / "metrics.jsonl")
    measured = [row for row in rows if "d_loss" not in row]
    assert [row["step"] for row in measured] == [4, 6]
    last = measured[-1]
    names = [name for name in last if name not in ("step", "score")]
    assert last["score"] == -last[names[0]]  # more precision is better
    assert [name.partition(" (")[0] for name in names] == ["precision", "coverage"]
    again = measure(load_generator(path), data, MEASURED, tmp_path, "cpu")
    assert [(figure.name, figure.value) for figure in again] == [(n, last[n]) for n in names]
    hours = artefacts.read_metadata(path)["hours"]
    assert hours == round(sum(row.get("seconds", 0) for row in rows) / 3600, 3)


def test_measuring_needs_validation_images(digits, tmp_path):
    with pytest.raises(
        InputError, match=r"^measure_every: the training is measured on validation"
    ):
        pretrain(tiny(measure_every=1), digits, tmp_path)


@pytest.mark.parametrize(
    ("scores", "patience", "expected"),
    [
        ([], 1, False),
        ([3.0], 1, False),
        ([3.0, 2.99], 1, True),
        ([3.0, 2.96], 1, False),
        ([3.0, 5.0, 2.9], 2, False),
        ([3.0, 5.0, 2.98, 3.0], 2, True),
        ([3.0, 5.0, 6.0, 7.0], 0, False),
        ([-0.5, -0.502], 1, True),
        ([-0.5, -0.51], 1, False),
    ],
)
def test_a_score_has_settled_when_it_gained_less_than_a_hundredth(
    tmp_path, scores, patience, expected
):
    journal = Journal(tmp_path, 0)
    for step, score in enumerate(scores, 1):
        journal.numbers(step, {"d_loss": 1.0}, {})
        journal.numbers(step, {"score": score}, {})
    assert settled(journal, patience) is expected
    journal.close()


def test_only_measurements_of_the_last_phase_count(tmp_path):
    journal = Journal(tmp_path, 0)
    for step, score in enumerate([3.0, 2.0, 2.5, 2.4, 2.3, 2.29, 2.28], 1):
        journal.numbers(step, {"score": score}, {})
    assert settled(journal, 5)
    assert settled(journal, 2, last_phase=2)
    assert not settled(journal, 3, last_phase=2), "2.28 is better than 2.4"
    assert not settled(journal, 5, last_phase=2), "there are five in all"
    journal.close()


def test_a_settled_training_stops_and_stays_stopped(tmp_path, monkeypatch):
    digits = load_dataset("digits", validation=50)
    monkeypatch.setattr(GANTrainer, "held_out", lambda *_: {"score": 1.0})
    config = tiny(steps=50, measure_every=2, patience=2)
    path = pretrain(config, digits, tmp_path)
    first = path.read_bytes()
    assert artefacts.read_metadata(path)["config"]["steps"] == 6
    assert max(row["step"] for row in artefacts.read_jsonl(tmp_path / "metrics.jsonl")) == 6
    assert pretrain(config, digits, tmp_path).read_bytes() == first
    pretrain(config.model_copy(update={"patience": 0, "steps": 7}), digits, tmp_path)
    assert max(row["step"] for row in artefacts.read_jsonl(tmp_path / "metrics.jsonl")) == 7


# --- resume -------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [1, 3, 5])
def test_fewer_steps_and_then_more_are_an_unbroken_run(unbroken, digits, tmp_path, first):
    pretrain(tiny(steps=first), digits, tmp_path)
    pretrain(TINY, digits, tmp_path)
    assert_same(tmp_path, unbroken)
    steps = [row["step"] for row in artefacts.read_jsonl(tmp_path / "metrics.jsonl")]
    assert steps == [first, 6]


class EveryThird(artefacts.Checkpoint):
    """Snapshots at steps 3, 6, …, whatever the clock says."""

    def offer(self, step, state, *, force=False):
        return super().offer(step, state, force=force or step % 3 == 0)


def test_an_interrupted_run_goes_on_from_its_last_checkpoint(
    unbroken, digits, tmp_path, monkeypatch
):
    monkeypatch.setattr(pretraining, "Checkpoint", EveryThird)
    monkeypatch.setattr(pretraining, "LOG_EVERY", 1)
    step = GANTrainer.step

    def interrupted(self, number):
        if number == 5:
            raise KeyboardInterrupt
        return step(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(GANTrainer, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pretrain(TINY, digits, tmp_path)
    log = tmp_path / "metrics.jsonl"
    assert [row["step"] for row in artefacts.read_jsonl(log)] == [1, 2, 3, 4, 5]
    with log.open("a") as file:
        file.write('{"step": 6, "d_l')  # killed while it wrote
    assert not (tmp_path / "generator.safetensors").exists()
    pretrain(TINY, digits, tmp_path)
    assert_same(tmp_path, unbroken)

    def losses(out):
        rows = artefacts.read_jsonl(out / "metrics.jsonl")
        return [(row["step"], row["d_loss"], row["g_loss"]) for row in rows]

    assert losses(tmp_path) == losses(unbroken)  # each step once
    assert all(json.loads(line) for line in log.read_text().splitlines())


def test_a_finished_run_is_exported_again_without_a_step(unbroken, digits, tmp_path, monkeypatch):
    (tmp_path / "checkpoint.safetensors").write_bytes(files(unbroken)[1])
    monkeypatch.setattr(GANTrainer, "step", lambda *_: pytest.fail("a step was made"))
    pretrain(TINY, digits, tmp_path)
    assert_same(tmp_path, unbroken)


def test_a_state_restored_is_the_state(digits):
    trainer, other = (GANTrainer(TINY, digits.train) for _ in range(2))
    fresh = {name: t.clone() for name, t in trainer.state().items()}
    first = trainer.step(0)
    other.step(7)
    # As read from a file: contiguous, whatever the memory format of the weights.
    other.restore(
        {
            name: t.clone(memory_format=torch.contiguous_format)
            for name, t in trainer.state().items()
        }
    )
    assert trainer.step(1) == other.step(1)
    assert trainer.step(2) == other.step(2)
    for name, tensor in trainer.state().items():
        assert torch.equal(other.state()[name], tensor), name
    other.restore(fresh)  # before any step Adam has no moments
    assert other.step(0) == first


@pytest.mark.parametrize(
    "change",
    [{"checkpoint_seconds": 1.0}, {"monitor": MetricsConfig()}, {"card": MetricsConfig()}],
)
def test_where_and_what_is_told_is_not_the_training(unbroken, digits, tmp_path, change):
    assert identity_of(tiny(**change), digits.train) == identity_of(TINY, digits.train)
    assert identity_of(tiny(measure_every=3), digits.train) == identity_of(TINY, digits.train)


def test_the_identity_of_a_training_does_not_move(images):
    """Trainings of days stand in directories that are named by it."""
    expected = "956f8ad22c398081ffd219d242bd61013f52814c0af9d5c7f4aac5529c53531e"
    assert identity_of(TINY, images) == expected


@pytest.mark.parametrize(
    "change", [{"generator_rate": 1e-3}, {"seed": 9}, {"flip": False}, {"batch_size": 5}]
)
def test_a_directory_belongs_to_one_configuration(unbroken, digits, change):
    before = files(unbroken)[1]
    with pytest.raises(InputError, match=r"checkpoint.*another configuration; give another --out"):
        pretrain(tiny(**change), digits, unbroken)
    assert files(unbroken)[1] == before


def test_a_directory_belongs_to_one_data_set(unbroken, digits, images):
    other = type(digits)("digits", images, None, digits.test)
    with pytest.raises(InputError, match="belongs to another configuration"):
        pretrain(TINY, other, unbroken)


def test_fewer_steps_than_there_are_is_refused(unbroken, digits):
    with pytest.raises(InputError, match=r"^steps: 5, but .* has 6 already; give at least as man"):
        pretrain(tiny(steps=5), digits, unbroken)


def test_a_directory_in_use_is_refused(digits, tmp_path):
    with (
        artefacts.locked(tmp_path),
        pytest.raises(InputError, match="another process is working in this directory"),
    ):
        pretrain(TINY, digits, tmp_path)


def spoil_scores(value):
    """Discriminator scores become the value."""
    return lambda _, __, scores: scores * 0 + value


def spoil_gradients(_, __, scores):
    """The loss is as it was; its gradient is not a number."""
    scores.register_hook(lambda gradient: gradient * float("nan"))


@pytest.mark.parametrize("network", ["generator", "discriminator"])
@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (spoil_scores(float("nan")), "loss became nan"),
        (spoil_scores(float("inf")), "loss became -?inf"),
        (spoil_scores(1e7), "loss became -?1"),
        (spoil_gradients, "loss became non-finite"),
    ],
    ids=["nan", "inf", "large", "gradient"],
)
def test_a_loss_that_explodes_changes_no_weight(
    digits, tmp_path, monkeypatch, network, spoil, told
):
    monkeypatch.setattr(pretraining, "Checkpoint", EveryThird)
    name = f"_{network}_step"
    step = getattr(GANTrainer, name)
    spoiled = []

    def exploding(self, number, *k):
        if number != 4:
            return step(self, number, *k)
        hook = self.discriminator.register_forward_hook(spoil)
        before = parameters(self.generator), parameters(self.discriminator)
        try:
            return step(self, number, *k)
        finally:
            hook.remove()
            after = parameters(self.generator), parameters(self.discriminator)
            spoiled.append(all(torch.equal(a, b) for a, b in zip(before, after, strict=True)))

    with monkeypatch.context() as patch:
        patch.setattr(GANTrainer, name, exploding)
        with pytest.raises(
            InputError,
            match=rf"^pretrain: .*the {network}'s {told}.* at step 4; the last good checkpoint is",
        ):
            pretrain(TINY, digits, tmp_path)
    assert spoiled == [True], "no weight changed"
    checkpoint, metadata = artefacts.load(tmp_path / "checkpoint.safetensors")
    assert metadata["step"] == 3
    assert all(tensor.isfinite().all() for tensor in checkpoint.values())
    assert not (tmp_path / "generator.safetensors").exists()
    assert pretrain(TINY, digits, tmp_path).exists(), "and goes on from there"


# --- killed -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "preset",
    [
        "digits --precision fp32",
        "digits --precision bf16",
        "ae-digits --adversarial-start 40 --extractor.updates 1",
    ],
)
def test_killed_three_times_it_ends_as_if_unbroken(tmp_path, preset):
    steps, out = 150, tmp_path / "killed"
    arguments = shlex.split(
        f"pretrain {preset} --validation 0 --steps {steps} --batch-size 4 --channels 2 "
        "--latent-dim 4 --ema 0.9 --ema-start 2 --diffaugment translation,cutout,color --flip "
        "--device cpu --card.figures"
    )
    assert main([*arguments, "--out", str(tmp_path / "unbroken")]) == 0
    arguments += ["--out", str(out)]
    command = [sys.executable, "-m", "itgan.cli", *arguments, "--checkpoint-seconds", "0"]
    source = str(Path(pretraining.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
    rng = random.Random(time.time_ns())
    for least in sorted(rng.sample(range(1, 90), 3)):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
        try:
            while process.poll() is None and steps_of(out / "checkpoint.safetensors") < least:
                time.sleep(rng.random() / 50)
        finally:
            process.kill()
        said = process.communicate()[1]
        assert process.returncode == -signal.SIGKILL, said
    assert 0 < steps_of(out / "checkpoint.safetensors") < steps
    assert main(arguments) == 0
    ends, expected = (
        artefacts.load(d / "generator.safetensors")[0] for d in (out, tmp_path / "unbroken")
    )
    assert ends.keys() == expected.keys()
    assert all(torch.equal(tensor, ends[name]) for name, tensor in expected.items())
    rows = artefacts.read_jsonl(out / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(50, steps + 1, 50))


def steps_of(path):
    return artefacts.read_metadata(path)["step"] if path.exists() else 0


# --- data ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "batch_size"), [(10, 4), (10, 5), (7, 1), (3, 8), (5, 5)])
def test_each_epoch_has_every_row_once(n, batch_size):
    stream = EpochStream(n, batch_size, seed=0)
    batches = [stream.batch(i) for i in range(3 * n)]
    assert {len(batch) for batch in batches} == {batch_size}
    epochs = torch.cat(batches).view(-1, n)
    assert (epochs.sort(1).values == torch.arange(n)).all()
    if n > 3:
        assert len(epochs.unique(dim=0)) > 1, "each in its own order"


def test_a_batch_depends_on_its_number_alone():
    backwards, fresh = EpochStream(10, 4, seed=0), EpochStream(10, 4, seed=0)
    in_order = [fresh.batch(i) for i in range(9)]
    for i in reversed(range(9)):
        assert torch.equal(backwards.batch(i), in_order[i])
    assert not torch.equal(EpochStream(10, 4, seed=1).batch(0), in_order[0])


def test_discriminator_steps_take_new_batches(digits, monkeypatch):
    taken = []
    batch = EpochStream.batch
    monkeypatch.setattr(EpochStream, "batch", lambda self, i: taken.append(i) or batch(self, i))
    trainer = GANTrainer(tiny(discriminator_steps=3), digits.train)
    trainer.step(0)
    trainer.step(1)
    assert taken == [0, 1, 2, 3, 4, 5]


# --- a step -------------------------------------------------------------------------------------


def parameters(network):
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def test_each_step_changes_its_own_network(digits):
    trainer = GANTrainer(TINY, digits.train)
    g, d = parameters(trainer.generator), parameters(trainer.discriminator)
    trainer._discriminator_step(0, 0)
    assert torch.equal(parameters(trainer.generator), g)
    assert not torch.equal(parameters(trainer.discriminator), d)
    d = parameters(trainer.discriminator)
    trainer._generator_step(0)
    assert not torch.equal(parameters(trainer.generator), g)
    assert torch.equal(parameters(trainer.discriminator), d)
    assert all(p.requires_grad for p in trainer.discriminator.parameters())


class Brightness(nn.Module):
    """Scores images by three times their mean, minus the label."""

    def forward(self, images, labels):
        self.seen = images
        return 3 * images.mean((1, 2, 3)) - labels


class Grey(nn.Module):
    """Makes images of one value, with something to learn."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(0.25))

    def forward(self, latents, labels):
        self.labels = labels
        return self.value.expand(len(latents), 1, 8, 8)


def test_the_hinge_losses_by_hand(digits, monkeypatch):
    trainer = GANTrainer(tiny(diffaugment="none", flip=False), digits.train)
    trainer.generate, trainer.judge = trainer.generator, trainer.discriminator = (
        Grey(),
        Brightness(),
    )
    monkeypatch.setattr(pretraining, "descend", lambda _, loss, name: loss.detach())
    rows = trainer.stream.batch(0)
    real = 3 * digits.train.floats(rows).mean((1, 2, 3)) - digits.train.labels[rows]
    loss = trainer._discriminator_step(0, 0)
    fake = 0.75 - trainer.generator.labels
    expected = (1 - real).clamp_min(0).mean() + (1 + fake).clamp_min(0).mean()
    torch.testing.assert_close(loss, expected)
    loss = trainer._generator_step(0)
    torch.testing.assert_close(loss, -(0.75 - trainer.generator.labels).mean())


def test_real_images_are_mirrored_half_of_the_time(digits):
    trainer = GANTrainer(tiny(diffaugment="none", batch_size=400, channels=1), digits.train)
    trainer.generate, trainer.judge = trainer.generator, trainer.discriminator = (
        Grey(),
        Brightness(),
    )
    trainer.adam["discriminator"] = torch.optim.SGD(trainer.generator.parameters(), 0.0)
    trainer.discriminator.forward = lambda x, y: 3 * x.mean((1, 2, 3)) * trainer.generator.value
    seen = []
    trainer.discriminator.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    trainer._discriminator_step(0, 0)
    plain = digits.train.floats(trainer.stream.batch(0))
    real = seen[0][:400]
    kept = (real == plain).all((1, 2, 3))
    mirrored = (real == plain.flip(3)).all((1, 2, 3))
    assert (kept | mirrored).all()
    assert 150 < int(kept.sum()) < 250
    assert 150 < int(mirrored.sum()) < 250


def test_real_and_generated_images_are_augmented_in_both_steps(digits, monkeypatch):
    seen = []
    apply = pretraining.siamese

    def spy(images, augmentation):
        rows = augmentation.uniforms
        assert len(rows.unique(dim=0)) == len(images), "each image has its own parameters"
        seen.append(augmentation.group)
        return apply(images, augmentation)

    monkeypatch.setattr(pretraining, "siamese", spy)
    GANTrainer(TINY, digits.train).step(0)
    assert seen == ["crop", "cutout", "color"] * 3  # real, generated; generated


def test_policies():
    assert parse_diffaugment("none") == ()
    assert parse_diffaugment("translation") == ("crop",)
    assert parse_diffaugment("color,cutout") == ("color", "cutout")
    for policy in ("", "crop", "translation,", "color cutout"):
        with pytest.raises(InputError, match=r"^diffaugment '.*': choose from translation, cutou"):
            parse_diffaugment(policy)


def test_the_average_copies_the_weights_and_then_follows_them(digits):
    trainer = GANTrainer(TINY, digits.train)
    expected = None
    for step in range(5):
        trainer.step(step)
        raw = {name: t.clone() for name, t in trainer.generator.state_dict().items()}
        decay = 0.9 if step >= 2 else 0.0
        if expected is not None:
            raw = {name: decay * expected[name] + (1 - decay) * t for name, t in raw.items()}
        expected = raw
        for name, tensor in trainer.average.state_dict().items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-7)


def test_making_the_averaged_generator_changes_nothing(digits):
    trainer = GANTrainer(TINY, digits.train)
    trainer.step(0)
    before = {name: t.clone() for name, t in trainer.state().items()}
    averaged = trainer.averaged()
    assert not averaged.training
    assert all(torch.equal(t, before[name]) for name, t in trainer.state().items())
    for (name, weight), kept in zip(
        averaged.named_parameters(), trainer.average.parameters(), strict=True
    ):
        assert torch.equal(weight, kept), name


@pytest.mark.usefixtures("bf16")
def test_bf16_steps_are_finite_and_keep_fp32_weights(digits):
    trainer = GANTrainer(tiny(precision="bf16"), digits.train)
    losses = trainer.step(0)
    assert all(abs(value) < 100 for value in losses.values())
    assert {t.dtype for t in trainer.state().values()} == {torch.float32}


def test_power_steps_are_in_fp32_whatever_the_precision(digits):
    layer = GANTrainer(tiny(precision="bf16"), digits.train).generator.linear
    before = layer.u0.clone()
    with torch.autocast("cpu", torch.bfloat16):
        layer.train()(torch.ones(2, 4))
    v = F.normalize(before @ layer.weight, dim=1)
    torch.testing.assert_close(layer.u0, F.normalize(v @ layer.weight.T, dim=1))


def test_colour_images(images, digits, tmp_path):
    colour = type(images)(
        images.images.repeat(1, 3, 2, 2), images.labels, class_names=images.class_names
    )
    data = type(digits)("colour", colour, None, colour)
    path = pretrain(tiny(steps=1, channels=1), data, tmp_path)
    assert load_generator(path).image_shape == (3, 16, 16)
    with Image.open(tmp_path / "samples" / "0000001.png") as grid:
        assert (grid.mode, grid.size) == ("RGB", (160, 160))


def test_images_that_it_cannot_make(images, digits, tmp_path):
    odd = type(images)(images.images[..., :6, :6], images.labels, class_names=images.class_names)
    with pytest.raises(InputError, match="image size 6x6: BigGAN makes squares"):
        pretrain(TINY, type(digits)("odd", odd, None, odd), tmp_path)
