import pytest
import torch

from itgan.errors import InputError
from itgan.generators import BigGANShape, ConditionalGenerator, FrozenGenerator


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [8, 16, 32, 64])
def test_folding_changes_neither_images_nor_gradients(make_biggan, side, channels):
    model = make_biggan(BigGANShape(2, 5, (channels, side, side), 6), seed=side)
    frozen = FrozenGenerator.from_biggan(model)
    assert frozen.latent_shape == (6,)
    assert frozen.num_classes == 5
    assert frozen.image_shape == (channels, side, side)
    latents, labels = randn(5, 6).requires_grad_(), torch.arange(5)
    images, gradients = [], []
    for g in (model, frozen):
        images.append(g(latents, labels))
        (gradient,) = torch.autograd.grad((images[-1] * randn(*images[-1].shape)).sum(), latents)
        gradients.append(gradient)
    assert images[0].shape == (5, channels, side, side)
    assert images[0].std() > 0.02
    torch.testing.assert_close(images[1], images[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-5)


def test_it_is_a_generator_with_nothing_left_to_learn(generator):
    assert isinstance(generator, ConditionalGenerator)
    assert not list(generator.parameters())
    assert generator.device == torch.device("cpu")
    assert not generator(randn(2, 8), torch.tensor([0, 1])).requires_grad


def test_an_image_depends_on_its_own_latent_and_label_alone(generator):
    latents, labels = randn(6, 8).requires_grad_(), torch.tensor([0, 1, 2, 3, 4, 0])
    images = generator(latents, labels)
    for i in range(6):
        alone = generator(latents[i : i + 1], labels[i : i + 1])
        torch.testing.assert_close(alone[0], images[i], rtol=0, atol=1e-6)
        (gradient,) = torch.autograd.grad(images[i].sum(), latents, retain_graph=True)
        assert gradient.any(1).nonzero().flatten().tolist() == [i]
    other = generator(latents, (labels + 1) % 10)
    assert ((other - images).abs().amax((1, 2, 3)) > 0.01).all()


def test_an_empty_batch(generator):
    assert generator(torch.empty(0, 8), torch.empty(0, dtype=torch.long)).shape == (0, 1, 8, 8)


def test_the_fingerprint_does_not_depend_on_rounding_in_the_norms(make_biggan):
    # Numbers at other addresses are added up in another order; runs move between processors.
    model = make_biggan(BigGANShape(4, 3, (1, 8, 8), 8))
    before = FrozenGenerator.from_biggan(model).fingerprint
    for parameter in model.parameters():
        memory = torch.empty(parameter.numel() + 1)[1:].view_as(parameter)
        parameter.data = memory.copy_(parameter.data)
    assert FrozenGenerator.from_biggan(model).fingerprint == before


def test_freezing_leaves_the_model_as_it_was(make_biggan):
    model = make_biggan(BigGANShape(2, 3, (1, 8, 8), 4)).train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    frozen = FrozenGenerator.from_biggan(model)
    assert model.training
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    shared = {t.data_ptr() for t in frozen.tensors().values()}
    assert not shared & {t.data_ptr() for t in model.state_dict().values()}


def test_constants_rebuild_the_generator(generator):
    again = FrozenGenerator(generator.tensors())
    latents, labels = randn(4, 8), torch.arange(4)
    assert torch.equal(again(latents, labels), generator(latents, labels))
    assert again.fingerprint == generator.fingerprint


def test_the_fingerprint_sees_every_constant(generator):
    seen = {generator.fingerprint}
    for name, tensor in generator.tensors().items():
        changed = tensor.clone()
        changed[(-1,) * tensor.ndim] += 1e-3
        seen.add(FrozenGenerator({**generator.tensors(), name: changed}).fingerprint)
    assert len(seen) == 1 + len(generator.tensors())


def test_half_precision_constants_are_computed_with_in_fp32(generator):
    halves = FrozenGenerator({name: t.half() for name, t in generator.tensors().items()})
    assert {t.dtype for t in halves.tensors().values()} == {torch.float32}
    latents, labels = randn(10, 8), torch.arange(10)
    error = (halves(latents, labels) - generator(latents, labels)).abs().max()
    assert 0 < error < 5e-3


def test_bf16_moves_pixels_a_little_and_returns_fp32(generator):
    latents, labels = randn(10, 8), torch.arange(10)
    with torch.autocast("cpu", torch.bfloat16):
        images = generator(latents, labels)
    assert images.dtype == torch.float32
    assert (images - generator(latents, labels)).abs().max() < 0.05


def test_constants_that_do_not_fit_together(generator):
    tensors = generator.tensors()

    def without(name):
        return {k: t for k, t in tensors.items() if k != name}

    for name in tensors:
        with pytest.raises(InputError, match=r"frozen generator: (a )?tensor"):
            FrozenGenerator(without(name))
        with pytest.raises(InputError, match=r"frozen generator: (a )?tensor"):
            FrozenGenerator({**tensors, name: torch.zeros(3)})
    with pytest.raises(InputError, match=r"tensor linear\.bias is missing, extra or misshapen"):
        FrozenGenerator(without("linear.bias"))
    with pytest.raises(InputError, match="tensor more is missing, extra or misshapen"):
        FrozenGenerator({**tensors, "more": torch.zeros(3)})
    with pytest.raises(InputError, match="frozen generator"):
        FrozenGenerator({})


def test_fewer_dimensions_are_the_strongest_directions_of_the_first_layer(generator):
    def first(one):
        return one.tensors()["linear.weight"]

    reduced = generator.reduced(3)
    assert reduced.latent_shape == (3,)
    strengths = torch.linalg.svdvals(first(generator))
    torch.testing.assert_close(torch.linalg.svdvals(first(reduced)), strengths[:3])
    assert reduced.fingerprint == generator.reduced(3).fingerprint != generator.fingerprint
    narrow, labels = randn(10, 3), torch.arange(10)
    wide = torch.linalg.lstsq(first(generator), first(reduced) @ narrow.T).solution.T
    torch.testing.assert_close(wide.norm(dim=1), narrow.norm(dim=1))
    torch.testing.assert_close(
        reduced(narrow, labels), generator(wide, labels), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("wrong", [0, 9])
def test_dimensions_that_are_not_there(generator, wrong):
    with pytest.raises(InputError, match=f"latent_dim={wrong}: this generator has 8"):
        generator.reduced(wrong)
