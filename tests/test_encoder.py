from itertools import count

import pytest
import torch

import itgan.encoder
from itgan import artefacts
from itgan.artefacts import Checkpoint
from itgan.configs import InversionConfig
from itgan.encoder import Encoder, EncoderSpec, train_encoder
from itgan.errors import InputError
from itgan.inversion import starts
from itgan.networks import build_network
from itgan.progress import track
from itgan.randomness import derive
from itgan.reconstruction import Objective

SHORT = {"width": 2, "pair_steps": 4, "refine_steps": 3, "batch_size": 8}


@pytest.fixture(scope="module")
def make(generator, images):
    """Objectives for encoders that are trained in other ways."""
    psi = build_network("convnet", (1, 8, 8), 10, 5, images.mean, images.std, width=8)
    psi = psi.requires_grad_(False).eval()

    def objective(**changes):
        config = InversionConfig.model_validate({"encoder": {**SHORT, **changes}})
        return Objective(generator, psi, images, config)

    return objective


def test_an_encoder_gives_latents_of_any_shape():
    spec = EncoderSpec((3, 16, 16), 4, (2, 3), 8)
    encoder, images = spec.build(0), torch.randn(5, 3, 16, 16, generator=derive(0))
    labels = torch.tensor([0, 1, 2, 3, 3])
    made = encoder(images, labels)
    assert made.shape == (5, 2, 3)
    torch.testing.assert_close(encoder(images[:2], labels[:2]), made[:2])  # no batch norm
    brighter = encoder(images + 0.3, labels)
    assert (brighter - made).abs().max() > 1e-4  # brightness is not normalised away


def test_classes_are_told_apart_after_training(make, images):
    encoder = train_encoder(make())
    x = images.floats()[:2]
    first, second = encoder(x, torch.tensor([0, 0])), encoder(x, torch.tensor([1, 1]))
    assert (first - second).abs().max() > 1e-6


def test_the_first_losses_in_closed_form(make, generator):
    objective = make()
    encoder = EncoderSpec((1, 8, 8), 10, (8,), 8).build(3)
    rng = derive(3, "pairs", 0)
    z = torch.randn(8, 8, generator=rng)
    labels = torch.randint(10, (8,), generator=rng)
    found = encoder(generator(z, labels), labels)
    trained = train_encoder(objective, 3)
    expected = float(((found - z) ** 2).mean().detach())
    assert trained.history["pairs"][0] == pytest.approx(expected, rel=1e-5)
    assert {name: len(v) for name, v in trained.history.items()} == {"pairs": 4, "refined": 3}
    # On real images it is the inversion's own loss, here with weights that have hardly moved.
    still = train_encoder(make(pair_steps=1, learning_rate=1e-9), 3)
    chosen = torch.randperm(40, generator=derive(3, "real", 1))[:8]
    target = objective.target(chosen)
    eq8 = objective(encoder(target.real, target.labels), target).loss.mean()
    assert still.history["refined"][0] == pytest.approx(float(eq8.detach()), rel=1e-4)


def test_the_rate_falls_to_zero_twice(make, monkeypatch):
    seen = []

    class Adam(torch.optim.Adam):
        def step(self):
            seen.append(self.param_groups[0]["lr"])
            super().step()

    monkeypatch.setattr(torch.optim, "Adam", Adam)
    train_encoder(make(learning_rate=0.012))
    assert seen == pytest.approx([0.012, 0.009, 0.006, 0.003, 0.004, 0.008 / 3, 0.004 / 3])


def test_the_number_of_weights():
    # Two blocks of 64: 3*64*9 + 64 + 2*64, 64*64*9 + 64 + 2*64; then 1024 -> 512, 2 x 10 x 512,
    # 512 -> 128.
    spec = EncoderSpec((3, 16, 16), 10, (128,), 64)
    expected = 1_920 + 37_056 + 1024 * 512 + 512 + 2 * 10 * 512 + 512 * 128 + 128
    assert sum(p.numel() for p in spec.build().parameters()) == expected == 639_680


def test_pairs_teach_and_real_images_refine(make, images):
    every = torch.arange(len(images))

    def start_loss(start, encoder=None):
        objective = make()
        losses, _ = objective.losses(starts(objective, every, 0, start, encoder), every)
        return float(losses.mean())

    paired = train_encoder(make(pair_steps=150, refine_steps=0, batch_size=16))
    refined = train_encoder(make(pair_steps=150, refine_steps=60, batch_size=16))
    losses = paired.history["pairs"]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    assert start_loss("encoder", refined) < start_loss("encoder", paired) < start_loss("random")


def test_training_is_a_function_of_the_seed_and_touches_nothing_else(make):
    state = torch.get_rng_state()
    first, second, other = (train_encoder(make(), seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.history == second.history != other.history
    for name, tensor in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], tensor)
    assert not any(p.requires_grad for p in first.parameters())


@pytest.mark.parametrize("done", [1, 4, 6])
def test_a_resumed_training_is_bit_equal(make, tmp_path, monkeypatch, done):
    straight = train_encoder(make(), 2)
    checkpoint = Checkpoint(tmp_path / "snapshot.safetensors", "one", every_seconds=0.0)

    def interrupted(numbers, label):
        for finished, step in zip(count(), track(numbers, label), strict=False):
            if finished == done:
                raise KeyboardInterrupt
            yield step

    with monkeypatch.context() as patch:
        patch.setattr(itgan.encoder, "track", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_encoder(make(), 2, checkpoint)
    assert checkpoint.load()[1]["step"] == done
    resumed = train_encoder(make(), 2, checkpoint)
    assert resumed.history == straight.history
    for name, tensor in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor)


def test_an_encoder_round_trips(make, images, tmp_path):
    encoder = train_encoder(make())
    encoder.save(tmp_path / "encoder.safetensors")
    kept = Encoder.load(tmp_path / "encoder.safetensors")
    x, labels = images.floats(), images.labels
    assert torch.equal(kept(x, labels), encoder(x, labels))
    assert kept.history == encoder.history
    assert kept.spec == encoder.spec


def test_what_is_no_encoder_is_refused(tmp_path):
    path = tmp_path / "encoder.safetensors"
    artefacts.save(path, {}, {"kind": "network"})
    with pytest.raises(InputError, match="holds a 'network', expected a 'encoder'"):
        Encoder.load(path)
    spec = {"image_shape": [1, 8, 8], "num_classes": 10, "latent_shape": [8], "width": 8}
    artefacts.save(path, {}, {"kind": "encoder", "spec": spec, "history": {}})
    with pytest.raises(InputError, match=r"encoder\.safetensors: its weights do not fit"):
        Encoder.load(path)
    for lie in ({"width": 10**5}, {"latent_shape": [10**9]}, {"num_classes": 0}, {"width": "x"}):
        artefacts.save(path, {}, {"kind": "encoder", "spec": spec | lie, "history": {}})
        with pytest.raises(InputError, match=r"encoder\.safetensors: .*make the file again"):
            Encoder.load(path)


def test_a_loss_that_explodes_is_refused(make):
    class Broken:
        latent_shape, num_classes, image_shape = (8,), 10, (1, 8, 8)
        device, fingerprint = torch.device("cpu"), "broken"

        def __call__(self, latents, labels):
            return (latents.mean(1) * torch.nan)[:, None, None, None].expand(-1, 1, 8, 8)

    sound = make()
    objective = Objective(Broken(), sound.extractor, sound.images, sound.config)
    with pytest.raises(InputError, match="encoder: its loss became nan; lower --inversion"):
        train_encoder(objective)
