import shutil
import subprocess
import sys

import pytest
import torch
from PIL import Image
from torch import nn

from itgan import artefacts, autoencoding, pretraining
from itgan.autoencoding import AutoencoderTrainer, divergence, pretrain_autoencoder
from itgan.cards import write_card
from itgan.configs import EvaluationConfig
from itgan.data import load_dataset
from itgan.errors import InputError
from itgan.generator_configs import AutoencodingConfig, MetricsConfig, PretrainingConfig
from itgan.generators import load_encoder, load_generator
from itgan.pretraining import TOLD, GANTrainer, pretrain

TINY = AutoencodingConfig(
    steps=6,
    batch_size=4,
    channels=2,
    latent_dim=4,
    ema=0.9,
    ema_start=2,
    adversarial_start=3,
    diffaugment="translation",
    extractor=EvaluationConfig(updates=2, batch_size=8),
    device="cpu",
)


def tiny(**changes):
    return TINY.model_copy(update=changes)


def files(out):
    tensors, _ = artefacts.load(out / "generator.safetensors", "generator")
    return tensors, (out / "checkpoint.safetensors").read_bytes()


def assert_same(a, b):
    (one, one_checkpoint), (other, other_checkpoint) = files(a), files(b)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert one_checkpoint == other_checkpoint


@pytest.fixture(scope="module")
def unbroken(digits, tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining, "LOG_EVERY", 1)
        pretrain_autoencoder(TINY, digits, out)
    return out


def test_the_file_holds_decoder_and_encoder(unbroken, digits, images):
    path = unbroken / "generator.safetensors"
    generator, encode = load_generator(path), load_encoder(path)
    assert (generator.latent_shape, generator.image_shape) == ((4,), (1, 8, 8))
    assert encode(images.floats(), images.labels).shape == (40, 4)
    metadata = artefacts.read_metadata(path)
    assert (metadata["architecture"], metadata["objective"]) == ("biggan", "autoencoder")
    assert metadata["config"] == TINY.model_dump(exclude=TOLD)
    with Image.open(unbroken / "samples" / "0000006.png") as grid:
        assert grid.size == (240, 80)  # ten samples, ten real images, ten reconstructions
    rows = artefacts.read_jsonl(unbroken / "metrics.jsonl")
    assert [row["d_loss"] > 0 for row in rows] == [False] * 3 + [True] * 3
    assert all(row["g_loss"] == 0 for row in rows[:3])
    assert {"l1", "feature", "kl"} < rows[0].keys()


@pytest.mark.parametrize(
    ("change", "expected"),
    [({}, 3), ({"adversarial_start": 6}, 0), ({"adversarial_weight": 0.0}, 0)],
)
def test_the_last_phase_begins_with_the_hinge_loss(digits, change, expected):
    assert AutoencoderTrainer(tiny(**change), digits.train).last_phase == expected


@pytest.mark.parametrize("first", [1, 3, 5])
def test_fewer_steps_and_then_more_are_an_unbroken_run(unbroken, digits, tmp_path, first):
    before = torch.get_rng_state()
    pretrain_autoencoder(tiny(steps=first), digits, tmp_path)
    pretrain_autoencoder(TINY, digits, tmp_path)
    assert torch.equal(torch.get_rng_state(), before), "the global random state was used"
    assert_same(tmp_path, unbroken)


def test_the_extractor_is_trained_once_and_kept(unbroken, digits, tmp_path, monkeypatch):
    pretrain_autoencoder(tiny(steps=3), digits, tmp_path)
    monkeypatch.setattr(autoencoding, "train_extractor", lambda *_: pytest.fail("trained again"))
    pretrain_autoencoder(TINY, digits, tmp_path)
    assert_same(tmp_path, unbroken)


def test_a_directory_belongs_to_one_kind_of_training(unbroken, digits, tmp_path):
    with pytest.raises(InputError, match="belongs to another configuration"):
        pretrain_autoencoder(tiny(kl_weight=0.5), digits, unbroken)
    plain = PretrainingConfig(steps=1, batch_size=4, channels=1, latent_dim=2, device="cpu")
    pretrain(plain, digits, tmp_path)
    same = AutoencodingConfig(**plain.model_dump())
    with pytest.raises(InputError, match="belongs to another configuration"):
        pretrain_autoencoder(same, digits, tmp_path)


def test_the_identity_of_a_gan_is_that_of_earlier_versions(digits):
    config = PretrainingConfig(steps=9, validation=200, seed=3, precision="bf16")
    trainer = GANTrainer(config.model_copy(update={"channels": 1}), digits.train)
    assert trainer.identity() == [
        {"validation": 200, "seed": 3, "precision": "bf16", "channels": 1},
        digits.train.fingerprint,
    ]


def test_the_divergence_from_the_standard_normal():
    assert divergence(torch.zeros(1, 3), torch.zeros(1, 3)).tolist() == [0.0]
    mean, log_sigma = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    there = torch.distributions.Normal(mean, log_sigma.exp())
    expected = torch.distributions.kl_divergence(there, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(divergence(mean, log_sigma), expected.sum(1))


def parameters(network):
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def test_a_kill_while_the_extractor_learns_loses_nothing(unbroken, digits, tmp_path, monkeypatch):
    train, snapshots = autoencoding.train_extractor, []

    def dying(images, config, seed, device, checkpoint):
        train(images, config, seed, device, checkpoint)  # leaves a snapshot of its end
        snapshots.append(checkpoint)
        raise KeyboardInterrupt

    monkeypatch.setattr(autoencoding, "train_extractor", dying)
    with pytest.raises(KeyboardInterrupt):
        pretrain_autoencoder(TINY, digits, tmp_path)
    assert snapshots[0].load()[1]["step"] == TINY.extractor.updates
    monkeypatch.setattr(autoencoding, "train_extractor", train)
    pretrain_autoencoder(TINY, digits, tmp_path)
    assert_same(tmp_path, unbroken)
    assert {path.name for path in tmp_path.iterdir()} == {p.name for p in unbroken.iterdir()}
    assert snapshots[0].load() is None


def test_who_learns_when(digits):
    trainer = AutoencoderTrainer(tiny(adversarial_start=1), digits.train)
    names = ("generator", "encoder", "discriminator")
    for step, learning in ((0, names[:2]), (1, names)):
        if step:
            extractor = parameters(trainer.extractor)
        before = {name: parameters(getattr(trainer, name)) for name in names}
        trainer.step(step)
        moved = [n for n in names if not torch.equal(parameters(getattr(trainer, n)), before[n])]
        assert moved == list(learning)
    assert torch.equal(parameters(trainer.extractor), extractor)
    assert all(p.requires_grad for p in trainer.discriminator.parameters())


def test_the_losses_by_hand(digits):
    config = tiny(flip=False, feature_weight=3.0, kl_weight=0.1, adversarial_weight=0.2)
    trainer = AutoencoderTrainer(config, digits.train)
    rows = trainer.reconstructed.batch(0)
    real, labels = digits.train.floats(rows), digits.train.labels[rows]
    made, mean, score = (nn.Parameter(torch.full(s, 0.25)) for s in ((4, 1, 8, 8), (4, 4), ()))
    log_sigma = torch.full((4, 4), -50.0)  # next to nothing
    trainer.posterior = lambda x, y: (mean, log_sigma)
    seen = []
    trainer.generator.forward = lambda z, y: seen.append((z, y)) or made
    trainer._fooling = lambda step: 7 * score
    sgd = torch.optim.SGD([made, mean, score], lr=1.0)
    trainer.adam["generator"], trainer.adam["encoder"] = sgd, torch.optim.SGD([nn.Parameter()])
    leaf = made.detach().clone().requires_grad_()
    losses = trainer._autoencoder_step(0, adversarial=True)
    assert torch.equal(seen[0][0], torch.full((4, 4), 0.25))
    assert torch.equal(seen[0][1], labels)
    l1 = (real - leaf).abs().mean()
    feature = (trainer.extractor.embed(leaf) - trainer.extractor.embed(real)).square().mean()
    torch.testing.assert_close(losses["l1"], l1.detach())
    torch.testing.assert_close(losses["feature"], feature.detach())
    (gradient,) = torch.autograd.grad(l1 + 3 * feature, leaf)
    torch.testing.assert_close(made.detach(), leaf.detach() - gradient)
    torch.testing.assert_close(mean.detach(), torch.full((4, 4), 0.25 - 0.1 * 0.25 / 4))
    torch.testing.assert_close(score.detach(), torch.tensor(0.25 - 0.2 * 7))


def test_both_networks_are_averaged(digits):
    trainer = AutoencoderTrainer(TINY, digits.train)
    for step in range(4):
        before = parameters(trainer.average_encoder)
        trainer.step(step)
        raw = parameters(trainer.encoder)
        decay = 0.9 if step >= 2 else 0.0
        expected = decay * before + (1 - decay) * raw
        torch.testing.assert_close(parameters(trainer.average_encoder), expected)


@pytest.mark.usefixtures("bf16")
def test_bf16_steps_are_finite_and_keep_fp32_weights(digits):
    trainer = AutoencoderTrainer(tiny(precision="bf16", adversarial_start=0), digits.train)
    assert all(abs(value) < 1000 for value in trainer.step(0).values())
    assert {t.dtype for t in trainer.state().values()} == {torch.float32}


def test_reconstructions_get_closer(digits):
    trainer = AutoencoderTrainer(
        tiny(channels=4, batch_size=32, latent_dim=16, adversarial_start=100), digits.train
    )
    errors = [trainer.step(step)["l1"] for step in range(40)]
    assert sum(errors[-5:]) < 0.6 * sum(errors[:5])


def test_the_card_tells_how_well_it_reconstructs(unbroken, digits, tmp_path):
    few = type(digits)("digits", digits.train.select(torch.arange(50)), None, digits.test)
    path = tmp_path / "generator.safetensors"
    path.write_bytes((unbroken / "generator.safetensors").read_bytes())
    text = write_card(path, few, MetricsConfig(figures=())).read_text()
    assert "autoencoder: L1, features x 1, divergence x 0.001, hinge loss of samples x " in text
    assert "dB PSNR on 596 test images" in text


# --- the held-out score -------------------------------------------------------------------------


def test_the_score_is_the_loss_of_held_out_reconstructions(tmp_path):
    data = load_dataset("digits", validation=50)
    trainer = AutoencoderTrainer(tiny(feature_weight=0.5), data.train)
    trainer.prepare(artefacts.Checkpoint(tmp_path / "c.safetensors", "any", 0.0))
    trainer.step(0)
    told = trainer.held_out(data, tmp_path)
    real, labels = data.validation.floats(torch.arange(50)), data.validation.labels
    with torch.no_grad():
        made = trainer.averaged()(trainer.average_encoder(real, labels), labels)
        features = trainer.extractor.embed(made) - trainer.extractor.embed(real)
    square = (made - real).square().mean((1, 2, 3))
    loss = (made - real).abs().mean() + 0.5 * features.square().mean()
    assert told["score"] == pytest.approx(float(loss), rel=1e-5)
    assert told["psnr"] == pytest.approx(float((10 * (4 / square).log10()).mean()), rel=1e-5)
    assert set(told) == {"score", "psnr"}


# --- compiled -----------------------------------------------------------------------------------


# In a process of its own: the suite's checks of types and warnings do not pass a compiler.
COMPILED = """
import sys
from pathlib import Path
import torch
from itgan import artefacts
from itgan.autoencoding import pretrain_autoencoder
from itgan.data import load_dataset
from itgan.generator_configs import AutoencodingConfig

out, digits = Path(sys.argv[1]), load_dataset("digits")
config = AutoencodingConfig.model_validate_json(sys.argv[2])
parts = out / "parts"
eager = pretrain_autoencoder(config.model_copy(update={"compile": False}), digits, out / "eager")
whole = pretrain_autoencoder(config, digits, out / "whole")
pretrain_autoencoder(config.model_copy(update={"steps": 4}), digits, parts)
torch.compiler.reset()  # a new process would compile anew
pretrain_autoencoder(config, digits, parts)
paths = (eager, whole, parts / "generator.safetensors")
eager, whole, parts = (artefacts.load(path, "generator")[0] for path in paths)
unequal = [name for name, tensor in whole.items() if not torch.equal(parts[name], tensor)]
assert not unequal, unequal
for name, tensor in eager.items():
    torch.testing.assert_close(whole[name], tensor, rtol=1e-2, atol=1e-3)
print(sum(not torch.equal(whole[name], tensor) for name, tensor in eager.items()))
"""


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++"))), reason="needs a C++ compiler")
def test_compiled_it_learns_the_same_and_goes_on_bit_equal(tmp_path):
    config = tiny(compile=True).model_dump_json()
    command = [sys.executable, "-c", COMPILED, str(tmp_path), config]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) > 0  # rounding tells that it was compiled
