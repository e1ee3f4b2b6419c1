import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from itgan.errors import InputError
from itgan.generators.biggan import (
    BigGAN,
    BigGANShape,
    ConditionalNorm,
    Discriminator,
    OutputNorm,
    SpectralConv,
    SpectralEmbedding,
    SpectralLinear,
    UpBlock,
    power_step,
)
from itgan.randomness import derive

CIFAR = BigGANShape(64, 10, (3, 32, 32), 128)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def on_meta(build, shape):
    with torch.device("meta"):
        return build(shape)


def size(network):
    return sum(p.numel() for p in network.parameters())


def layers(model):
    return {n: m for n, m in model.named_modules() if hasattr(m, "u0")}


# --- the released architecture ------------------------------------------------------------------


def test_parameter_counts_of_the_released_networks():
    assert size(on_meta(BigGAN, CIFAR)) == 4_304_387
    assert size(on_meta(Discriminator, CIFAR)) == 4_207_361


def test_the_state_dict_has_the_released_layout():
    expected = {"linear.weight": (4096, 128), "linear.bias": (4096,)}
    expected |= {"linear.u0": (1, 4096), "linear.sv0": (1,)}
    for i in range(3):
        for conv, k in (("conv1", 3), ("conv2", 3), ("conv_sc", 1)):
            layer = f"blocks.{i}.0.{conv}"
            expected |= {f"{layer}.weight": (256, 256, k, k), f"{layer}.bias": (256,)}
            expected |= {f"{layer}.u0": (1, 256), f"{layer}.sv0": (1,)}
        for norm in (f"blocks.{i}.0.bn1", f"blocks.{i}.0.bn2"):
            expected |= {f"{norm}.stored_mean": (256,), f"{norm}.stored_var": (256,)}
            expected |= {f"{norm}.gain.weight": (10, 256), f"{norm}.bias.weight": (10, 256)}
    for name in ("gain", "bias", "stored_mean", "stored_var"):
        expected[f"output_layer.0.{name}"] = (256,)
    expected |= {"output_layer.2.weight": (3, 256, 3, 3), "output_layer.2.bias": (3,)}
    expected |= {"output_layer.2.u0": (1, 3), "output_layer.2.sv0": (1,)}
    assert len(expected) == 72
    state = on_meta(BigGAN, CIFAR).state_dict()
    assert {name: tuple(t.shape) for name, t in state.items()} == expected


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("side", "blocks"), [(8, 1), (16, 2), (32, 3), (64, 4), (128, 5)])
def test_both_networks_at_every_size(side, blocks, channels):
    shape = BigGANShape(1, 3, (channels, side, side), 5)
    model, judge = BigGAN(shape).eval(), Discriminator(shape)
    labels = torch.tensor([0, 2])
    assert shape.blocks == len(model.blocks) == blocks
    with torch.no_grad():
        images = model(randn(2, 5), labels)
        assert images.shape == (2, channels, side, side)
        assert images.abs().max() < 1
        assert judge(images, labels).shape == (2,)
    assert BigGANShape.of(model.state_dict()) == shape


@pytest.mark.parametrize(
    ("side", "halvings", "blocks"), [(8, 1, 4), (16, 1, 4), (32, 2, 4), (64, 3, 5), (128, 4, 6)]
)
def test_blocks_of_the_discriminator(side, halvings, blocks):
    judge = Discriminator(BigGANShape(1, 2, (3, side, side), 4))
    assert [b.halve for b in judge.blocks] == [i < halvings for i in range(blocks)]
    assert [b.first for b in judge.blocks] == [i == 0 for i in range(blocks)]


@pytest.mark.parametrize(
    ("image_shape", "message"),
    [
        ((3, 32, 64), r"^image size 32x64: BigGAN makes squares of 8, 16, 32"),
        ((3, 28, 28), r"^image size 28x28"),
        ((3, 4, 4), r"^image size 4x4"),
        ((3, 0, 0), r"^image size 0x0"),
        ((4, 8, 8), r"^4 colour channels: BigGAN makes 1 or 3"),
    ],
)
def test_shapes_it_cannot_make(image_shape, message):
    with pytest.raises(InputError, match=message):
        BigGANShape(4, 10, image_shape, 8)


@pytest.mark.parametrize(
    "name", ["linear.weight", "blocks.0.0.bn1.gain.weight", "output_layer.2.weight"]
)
def test_a_state_dict_without_a_telling_tensor(biggan, name):
    state = biggan.state_dict()
    for wrong in ({k: t for k, t in state.items() if k != name}, {**state, name: torch.ones(2)}):
        with pytest.raises(InputError, match=f"not a BigGAN state dict: tensor {name} is missing"):
            BigGANShape.of(wrong)


# --- spectral normalisation ---------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
def test_a_power_step_from_the_singular_vector_gives_the_norm(rows, columns, seed):
    weight = randn(rows, columns, seed=seed)
    left, values, _ = torch.linalg.svd(weight)
    u, sigma = power_step(weight, left[:, :1].T.contiguous())
    torch.testing.assert_close(sigma, values[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(u.norm(), torch.ones(()))
    _, estimate = power_step(weight, randn(1, rows, seed=seed + 1))
    assert estimate <= values[0] * (1 + 1e-5)


def test_a_power_step_by_hand():
    # u0 = (1, 0): v = (3, 4)/5; W v = (5, 8/5); u = W v / |W v|; sigma = |W v|
    weight = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    u, sigma = power_step(weight, torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(sigma, torch.tensor(25 + 64 / 25).sqrt())
    torch.testing.assert_close(u, torch.tensor([[5.0, 1.6]]) / sigma)


def test_sigma_is_differentiated_with_the_vectors_held():
    weight = randn(3, 4).requires_grad_()
    u0 = randn(1, 3, seed=1)
    u, sigma = power_step(weight, u0)
    sigma.backward()
    v = F.normalize(u0 @ weight.detach())
    torch.testing.assert_close(weight.grad, u.T @ v)


def test_only_training_moves_the_power_vector():
    layer = SpectralLinear(6, 4)
    before = layer.u0.clone()
    layer.eval()(randn(2, 6))
    assert torch.equal(layer.u0, before)
    layer.train()(randn(2, 6))
    assert not torch.equal(layer.u0, before)
    for _ in range(200):
        layer(randn(1, 6))
    exact = torch.linalg.matrix_norm(layer.weight.detach(), 2)
    torch.testing.assert_close(layer.sv0[0], exact)
    torch.testing.assert_close(torch.linalg.matrix_norm(layer.normalised(), 2), torch.ones(()))


def test_the_stored_sigma_is_never_used():
    layer = SpectralConv(3, 5, 3).eval()
    x = randn(2, 3, 4, 4)
    before = layer(x)
    layer.sv0.fill_(float("nan"))
    assert torch.equal(layer(x), before)


def test_normalised_layers_are_the_plain_ones_with_weight_over_sigma():
    linear, conv, embed = SpectralLinear(6, 4), SpectralConv(3, 5, 3), SpectralEmbedding(7, 2)
    for layer in (linear, conv, embed):
        layer.eval()
        if layer.bias is not None:
            torch.nn.init.normal_(layer.bias)

    def effective(layer):
        return layer.weight / power_step(layer.weight.flatten(1), layer.u0)[1]

    x, images, labels = randn(2, 6), randn(2, 3, 4, 4), torch.tensor([6, 0])
    torch.testing.assert_close(linear(x), x @ effective(linear).T + linear.bias)
    convolved = F.conv2d(images, effective(conv), conv.bias, padding=1)
    torch.testing.assert_close(conv(images), convolved)
    torch.testing.assert_close(embed(labels), effective(embed)[labels])


def test_converged_vectors_give_the_largest_singular_value(make_biggan):
    # Averages of unit vectors are no unit vectors and may be nearly orthogonal to the right one:
    # sigma comes out too small and samples burn out, unless the vectors are computed anew.
    model = make_biggan(BigGANShape(4, 10, (1, 8, 8), 8))
    exact = {n: torch.linalg.matrix_norm(m.weight.flatten(1), 2) for n, m in layers(model).items()}
    for module in layers(model).values():
        value, left = torch.linalg.svd(module.weight.detach().flatten(1))[1::-1]
        module.u0.copy_((left[:, -1] + 1e-6 * left[:, 0])[None] if len(value) > 1 else left.T)
    spoilt = [m.normalised().detach().flatten(1) for m in layers(model).values()]
    assert max(float(torch.linalg.matrix_norm(w, 2)) for w in spoilt) > 1.5
    model.converge_power_vectors()
    for name, module in layers(model).items():
        weight = module.weight.flatten(1)
        for sigma in (module.sv0[0], power_step(weight, module.u0)[1]):
            torch.testing.assert_close(sigma, exact[name], rtol=2e-3, atol=0, msg=name)
        torch.testing.assert_close(module.u0.norm(), torch.ones(()))


# --- norms and blocks ---------------------------------------------------------------------------


def test_the_conditional_norm_in_evaluation():
    norm = ConditionalNorm(2, 3).eval()
    norm.stored_mean.copy_(torch.tensor([1.0, -1.0]))
    norm.stored_var.copy_(torch.tensor([4.0, 0.25]))
    labels, x = torch.tensor([2, 0]), randn(2, 2, 3, 3)
    for i, label in enumerate(labels):
        for c, (mean, var) in enumerate([(1.0, 4.0), (-1.0, 0.25)]):
            gain, bias = norm.gain.weight[label, c], norm.bias.weight[label, c]
            expected = (x[i, c] - mean) / (var + 1e-5) ** 0.5 * (1 + gain) + bias
            torch.testing.assert_close(norm(x, labels)[i, c], expected)


def test_the_output_norm_uses_its_gain_as_it_is():
    norm = OutputNorm(1).eval()
    with torch.no_grad():
        norm.gain.fill_(3)
        norm.bias.fill_(0.5)
    norm.stored_mean.fill_(2)
    norm.stored_var.fill_(4)
    x = randn(1, 1, 2, 2)
    torch.testing.assert_close(norm(x), (x - 2) / 4.00001**0.5 * 3 + 0.5)


@pytest.mark.parametrize("build", [lambda: ConditionalNorm(2, 3), lambda: OutputNorm(2)])
def test_training_normalises_by_the_batch_and_tracks_it(build):
    norm = build().train()
    x = randn(8, 2, 4, 4) * 3 + 5
    given_labels = (torch.zeros(8, dtype=torch.long),) if isinstance(norm, ConditionalNorm) else ()
    out = norm(x, *given_labels)
    gain = 1 + norm.gain.weight[0] if given_labels else norm.gain
    torch.testing.assert_close(out.std((0, 2, 3), correction=0), gain.abs(), rtol=1e-3, atol=0)
    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
    torch.testing.assert_close(norm.stored_mean, 0.1 * mean)
    torch.testing.assert_close(norm.stored_var, 0.9 + 0.1 * var)


def test_the_skip_commutes_with_up_sampling():
    block = UpBlock(4, 2).eval()
    x, labels = randn(2, 4, 3, 3), torch.tensor([0, 1])
    up = F.interpolate(F.relu(block.bn1(x, labels)), scale_factor=2)
    main = block.conv2(F.relu(block.bn2(block.conv1(up), labels)))
    skip = block.conv_sc(F.interpolate(x, scale_factor=2))
    torch.testing.assert_close(block(x, labels), main + skip)


def test_the_projection_reads_the_label():
    judge = Discriminator(BigGANShape(2, 3, (1, 8, 8), 4)).eval()
    x = randn(2, 1, 8, 8)
    with torch.no_grad():
        scores = torch.stack([judge(x, torch.full((2,), label)) for label in range(3)])
        features = x
        for block in judge.blocks:
            features = block(features)
        pooled = features.relu().sum((2, 3))
        projected = judge.embed(torch.arange(3)) @ pooled.T  # classes n
    torch.testing.assert_close(scores, judge.linear(pooled).T + projected)


def test_the_first_block_of_the_discriminator_sees_negative_pixels():
    judge = Discriminator(BigGANShape(2, 2, (1, 8, 8), 4)).eval()
    dark = torch.full((1, 1, 8, 8), -1.0)
    with torch.no_grad():
        assert judge(dark, torch.tensor([0])) != judge(dark * 0, torch.tensor([0]))


def test_initial_weights_are_small_normals():
    model = BigGAN(BigGANShape(16, 10, (1, 8, 8), 32))
    for name, parameter in model.named_parameters():
        tensor = parameter.detach()
        if name.endswith("weight"):  # class gains and biases too
            assert abs(float(tensor.std()) / 0.02 - 1) < 0.15, name
        elif name == "output_layer.0.gain":
            assert (tensor == 1).all()
        else:
            assert (tensor == 0).all(), name


# --- recalibration ------------------------------------------------------------------------------


def test_recalibrated_statistics_of_the_first_norm_by_hand(make_biggan):
    model = make_biggan(BigGANShape(2, 5, (1, 8, 8), 6))
    linear, norm = model.linear, model.blocks[0][0].bn1
    means, variances = [], []
    for i in range(20):
        rng = derive(0, "recalibration", i)
        latents = torch.randn(100, 6, generator=rng, dtype=torch.float64).float()
        x = F.linear(latents, linear.normalised(), linear.bias).unflatten(1, (-1, 4, 4))
        rows = x.detach().transpose(0, 1).flatten(1)  # w, all numbers of a channel
        means.append(rows.mean(1))
        variances.append(rows.var(1))
    model.recalibrate()
    torch.testing.assert_close(norm.stored_mean, torch.stack(means).mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.stored_var, torch.stack(variances).mean(0))


def test_a_recalibrated_model_makes_what_it_makes_in_training(make_biggan):
    """In training norms use the statistics of the batch; recalibrated ones are close to them."""
    model = make_biggan(BigGANShape(2, 5, (1, 8, 8), 6))
    latents, labels = randn(2000, 6), torch.arange(2000) % 5
    before = model(latents, labels)
    model.recalibrate()
    after = model(latents, labels)
    for norm in model.modules():
        if isinstance(norm, ConditionalNorm | OutputNorm):
            norm.train()
    trained = model(latents, labels)
    far, near = ((images - trained).abs().mean().item() for images in (before, after))
    assert near < 0.02
    assert far > 5 * near


def test_recalibration_changes_statistics_only(make_biggan):
    model = make_biggan(BigGANShape(2, 5, (3, 16, 16), 6))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    model.recalibrate()
    once = {name: t.clone() for name, t in model.state_dict().items()}
    assert not model.training
    for name, tensor in once.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, before[name]) == ("stored" not in name), name
    model.recalibrate()
    assert all(torch.equal(t, once[name]) for name, t in model.state_dict().items())
