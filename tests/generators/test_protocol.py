import pytest
import torch
from torch import nn

from itgan.errors import InputError
from itgan.generators import ConditionalGenerator, wrap_generator
from itgan.latents import sample_latents
from itgan.sources import SyntheticSet

SHAPE = {"latent_shape": (4,), "num_classes": 3, "image_shape": (1, 2, 2)}
TABLE = torch.linspace(-0.3, 0.3, 12).view(3, 1, 2, 2)


def by_index(z, y):
    return torch.tanh(z).view(-1, 1, 2, 2) * 0.5 + TABLE[y]


def by_onehot(z, y):
    return torch.tanh(z).view(-1, 1, 2, 2) * 0.5 + torch.einsum("nk,kchw->nchw", y, TABLE)


def unconditional(z):
    return torch.tanh(z).view(-1, 1, 2, 2)


def randn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_label_forms():
    latents, labels = randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
    expected = by_index(latents, labels)
    index = wrap_generator(by_index, **SHAPE)
    onehot = wrap_generator(by_onehot, **SHAPE, labels="onehot")
    none = wrap_generator(unconditional, **SHAPE, labels="none")
    torch.testing.assert_close(index(latents, labels), expected)
    torch.testing.assert_close(onehot(latents, labels), expected)
    torch.testing.assert_close(none(latents, labels), unconditional(latents))
    for generator in (index, onehot, none):
        assert isinstance(generator, ConditionalGenerator)
        assert generator.latent_shape == (4,)
        assert generator.num_classes == 3
        assert generator.image_shape == (1, 2, 2)
        assert generator.device == torch.device("cpu")


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0, 255), (-2.0, 3.0), (-1.0, 1.0)])
def test_value_ranges_are_brought_to_minus_one_and_one(low, high):
    def fn(z, y):
        return (by_index(z, y) + 1) / 2 * (high - low) + low

    generator = wrap_generator(fn, **SHAPE, value_range=(low, high))
    latents, labels = randn(6, 4), torch.arange(6) % 3
    expected = by_index(latents, labels)
    torch.testing.assert_close(generator(latents, labels), expected, rtol=0, atol=1e-5)


def test_gradients_reach_the_latents():
    generator = wrap_generator(unconditional, **SHAPE, value_range=(-2, 2), labels="none")
    latents = randn(2, 4).requires_grad_()
    generator(latents, torch.tensor([0, 1])).sum().backward()
    expected = (1 - torch.tanh(latents.detach()) ** 2) / 2
    torch.testing.assert_close(latents.grad, expected)


def test_images_in_half_precision_are_widened():
    generator = wrap_generator(lambda z, y: by_index(z, y).bfloat16(), **SHAPE)
    assert generator(randn(2, 4), torch.tensor([0, 1])).dtype == torch.float32


def test_spatial_latents():
    generator = wrap_generator(
        lambda z: torch.tanh(z.repeat_interleave(2, 2)),
        latent_shape=(1, 2, 4),
        num_classes=2,
        image_shape=(1, 4, 4),
        labels="none",
    )
    assert generator(randn(3, 1, 2, 4), torch.tensor([0, 1, 0])).shape == (3, 1, 4, 4)


def test_the_fingerprint_tells_functions_apart():
    same = [wrap_generator(by_index, **SHAPE).fingerprint for _ in range(2)]
    onehot = wrap_generator(by_onehot, **SHAPE, labels="onehot").fingerprint
    changed = wrap_generator(lambda z, y: 0.9 * by_index(z, y), **SHAPE).fingerprint
    assert same[0] == same[1]
    assert len(same[0]) == len(onehot) == 64
    assert changed != same[0]


def test_checking_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    wrap_generator(by_index, **SHAPE)
    assert torch.equal(torch.get_rng_state(), before)


class BatchNormed(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, z, y):
        return by_index(self.norm(z), y)


def coupled(z, y):
    return by_index(z - z.mean(0), y)


def random(z, y):
    return by_index(z, y) + 0.01 * torch.rand(len(z), 1, 2, 2)


def without_gradient(z, y):
    with torch.no_grad():
        return by_index(z, y)


def constant(z, y):
    return TABLE[y] + 0 * z.view(-1, 1, 2, 2)


def rounded(z, y):
    return by_index(z, y).round()


def infinite_gradient(z, y):
    return by_index(z, y) + 0 * torch.sqrt(z - z).view(-1, 1, 2, 2)


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda z, y: by_index(z, y)[:, 0], r"^generator: returns shape \(4, 2, 2\) for 4 lat"),
        (lambda z, y: by_index(z, y)[:2], r"returns shape \(2, 1, 2, 2\) for 4 latents, expected"),
        (lambda z, y: (by_index(z, y),), "returns a tuple, not a tensor; wrap a function that"),
        (lambda z, y: (by_index(z, y) * 99).byte(), "must be finite floating-point numbers"),
        (lambda z, y: by_index(z, y) / 0, "must be finite floating-point numbers"),
        (lambda z, y: by_index(z, y) * 3, r"leave value_range=\(-1.0, 1.0\); correct it"),
        (without_gradient, "the gradient of its images in the latents is missing, zero or not"),
        (constant, "the gradient of its images in the latents is missing, zero or not"),
        (rounded, "the gradient of its images in the latents is missing, zero or not"),
        (infinite_gradient, "the gradient of its images in the latents is missing, zero or not"),
        (random, "two calls with the same latents differ; switch dropout and noise off"),
        (coupled, "an image changes with the other latents of its batch; put batch norms into"),
        (lambda z, y: unconditional(z), r'labels change nothing; say labels="none" if that is'),
    ],
)
def test_functions_that_cannot_be_generators(fn, message):
    with torch.random.fork_rng(devices=[]), pytest.raises(InputError, match=message):
        wrap_generator(fn, **SHAPE)


@pytest.mark.parametrize(("jitter", "accepted"), [(1e-6, True), (1e-4, False)])
def test_calls_may_differ_by_rounding_and_no_more(jitter, accepted):
    calls = []

    def fn(z, y):
        calls.append(1)
        return by_index(z, y) + jitter * len(calls)

    if accepted:
        wrap_generator(fn, **SHAPE)
    else:
        with pytest.raises(InputError, match="two calls with the same latents differ"):
            wrap_generator(fn, **SHAPE)


def test_a_module_must_be_in_evaluation_mode():
    module = BatchNormed()
    with pytest.raises(InputError, match=r"\(module\.eval\(\)\)"):
        wrap_generator(module, **SHAPE)
    wrap_generator(module.eval(), **SHAPE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value_range": (1.0, -1.0)}, r"^value_range=\(1.0, -1.0\): give two numbers"),
        ({"value_range": (0.0, 0.0)}, "^value_range"),
        ({"value_range": (0.0, float("inf"))}, "^value_range"),
        ({"value_range": (0.0, float("nan"))}, "^value_range"),
        ({"num_classes": 1}, "^num_classes=1: give 2 to 100000"),
    ],
)
def test_conventions_that_make_no_sense(change, message):
    with pytest.raises(InputError, match=message):
        wrap_generator(by_index, **{**SHAPE, **change})


def test_a_wrapped_callable_makes_a_set_that_cannot_be_stored(digits, tmp_path):
    weight = randn(4, 64)

    def fn(z, y):
        return torch.tanh(z @ weight + y[:, None] / 10).view(-1, 1, 8, 8)

    generator = wrap_generator(fn, latent_shape=(4,), num_classes=10, image_shape=(1, 8, 8))
    rows = digits.train.select(torch.arange(20))
    synthetic = SyntheticSet(generator, sample_latents(generator, rows))
    assert len(synthetic) == 20
    with pytest.raises(InputError, match=r"cannot be stored; .* synthetic\.materialise\(\)$"):
        synthetic.save(tmp_path / "set.safetensors")
    assert not list(tmp_path.iterdir())
    pixels = synthetic.materialise()
    assert pixels.images.dtype == torch.uint8
    error = pixels.images.float() / 127.5 - 1 - synthetic.images()
    assert error.abs().max() <= 0.5 / 127.5 + 1e-6
