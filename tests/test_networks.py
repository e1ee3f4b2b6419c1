"""Networks: the CIFAR forms of the field, one contract."""

import importlib
import linecache
import sys

import pytest
import torch
from torch import Tensor, nn

from itgan.augment import Augmentation, Blocks, draw_augmentation, siamese
from itgan.errors import InputError
from itgan.networks import NETWORKS, build_network, code_of, couples_images

COUNTS = {
    "convnet": 320_010,
    "vgg19": 20_040_522,
    "resnet18": 11_173_962,
    "wrn-16-8": 10_961_370,
    "mobilenetv2": 2_296_922,
}
FEATURES = {"convnet": 2048, "vgg19": 512, "resnet18": 512, "wrn-16-8": 512, "mobilenetv2": 1280}
CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def size(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_the_contract_at_32_pixels(name):
    net = build_network(name, (3, 32, 32), 10, seed=0).eval()
    assert size(net) == COUNTS[name]
    with torch.no_grad():
        x = images(1, 3, 32, 32)
        features = net.embed(x)
        assert features.shape == (1, FEATURES[name])
        torch.testing.assert_close(net(x), net.classifier(features))
    assert couples_images(net) == (name != "convnet")
    assert not {"mean", "std"} & set(net.state_dict())


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "convnet"])
@pytest.mark.parametrize(
    ("norm", "shape"),
    [("instance", (1, 32, 40)), ("group", (3, 32, 32)), ("none", (1, 33, 33))],
)
def test_norms_channels_and_sides(name, norm, shape):
    net = build_network(name, shape, 4, norm=norm)
    assert not couples_images(net)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    norms = [module for module in net.modules() if isinstance(module, nn.GroupNorm)]
    if norm == "none":
        assert not norms
    for module in norms:
        assert module.num_groups == (4 if norm == "group" else module.num_channels)
    with torch.no_grad():
        assert net(images(1, *shape)).shape == (1, 4)


# The large sides only for one deep network: the others share its way of pooling.
@pytest.mark.parametrize(
    ("name", "side"),
    [("resnet18", 8), ("wrn-16-8", 8), ("mobilenetv2", 8), ("vgg19", 64), ("mobilenetv2", 128)],
)
def test_other_resolutions(name, side):
    net = build_network(name, (3, side, side), 10).eval()
    with torch.no_grad():
        assert net(images(1, 3, side, side)).shape == (1, 10)
        assert net.embed(images(1, 3, side, side)).shape == (1, FEATURES[name])


@pytest.mark.parametrize(
    ("name", "norm", "least"),
    [
        ("vgg19", None, 32),
        ("vgg19", "instance", 32),
        ("resnet18", None, 8),
        ("resnet18", "instance", 16),
        ("wrn-16-8", None, 4),
        ("wrn-16-8", "instance", 8),
        ("mobilenetv2", None, 8),
        ("mobilenetv2", "instance", 16),
    ],
)
def test_too_small_images_are_refused_with_the_least_size(name, norm, least):
    with pytest.raises(InputError, match=f"at least {least}x{least} pixels"):
        build_network(name, (3, 64, least - 1), 10, norm=norm)
    net = build_network(name, (3, least, least), 10, norm=norm)
    with torch.no_grad():
        features = net.embed(images(2, 3, least, least))  # training mode: batch statistics
    assert (features[0] - features[1]).abs().max() > 0  # not the constant of a 1x1 instance


# --- ConvNet


def test_convnet_has_the_keys_of_its_family():
    net = build_network("convnet", (3, 32, 32), 10)
    shapes = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    expected = {"classifier.weight": (10, 2048), "classifier.bias": (10,)}
    for conv, inputs in [(0, 3), (4, 128), (8, 128)]:
        expected[f"features.{conv}.weight"] = (128, inputs, 3, 3)
        for key in (f"{conv}.bias", f"{conv + 1}.weight", f"{conv + 1}.bias"):
            expected[f"features.{key}"] = (128,)
    assert shapes == expected
    for module in net.features:
        if isinstance(module, nn.GroupNorm):
            assert (module.num_groups, module.num_channels) == (128, 128)


def family_forward(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The family's ConvNet, written from its state dict alone."""
    for conv in (0, 4, 8):
        norm = conv + 1
        x = nn.functional.conv2d(
            x, state[f"features.{conv}.weight"], state[f"features.{conv}.bias"], padding=1
        )
        x = (x - x.mean((2, 3), keepdim=True)) / (
            x.var((2, 3), keepdim=True, unbiased=False) + 1e-5
        ).sqrt()
        gain, bias = state[f"features.{norm}.weight"], state[f"features.{norm}.bias"]
        x = (x * gain[:, None, None] + bias[:, None, None]).relu()
        n, c, h, w = x.shape
        x = x.view(n, c, h // 2, 2, w // 2, 2).mean((3, 5))
    return x.flatten(1) @ state["classifier.weight"].T + state["classifier.bias"]


def test_convnet_loads_a_family_state_dict():
    rng = torch.Generator().manual_seed(0)
    net = build_network("convnet", (3, 32, 32), 10, mean=CIFAR10[0], std=CIFAR10[1])
    state = {
        key: torch.randn(value.shape, generator=rng) * 0.1
        for key, value in net.state_dict().items()
    }
    net.load_state_dict(state)
    x = images(2, 3, 32, 32)
    mean, std = (torch.tensor(constants).view(3, 1, 1) for constants in CIFAR10)
    expected = family_forward(state, ((x + 1) / 2 - mean) / std)
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("side", "depth", "features"),
    [(8, 1, 2048), (16, 2, 2048), (28, 2, 6272), (32, 3, 2048), (64, 4, 2048), (128, 5, 2048)],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_convnet_depth_follows_the_resolution(side, depth, features, channels):
    net = build_network("convnet", (channels, side, side), 10)
    assert sum(isinstance(module, nn.Conv2d) for module in net.modules()) == depth
    with torch.no_grad():
        assert net.embed(images(1, channels, side, side)).shape == (1, features)


@pytest.mark.parametrize("norm", ["instance", "batch", "group", "none"])
@pytest.mark.parametrize("activation", ["relu", "leakyrelu", "sigmoid"])
@pytest.mark.parametrize("pooling", ["avg", "max", "none"])
def test_convnet_options(norm, activation, pooling):
    net = build_network(
        "convnet",
        (1, 12, 16),
        3,
        norm=norm,
        width=8,
        depth=2,
        activation=activation,
        pooling=pooling,
    )
    assert net(images(2, 1, 12, 16)).shape == (2, 3)
    pixels = 12 * 16 if pooling == "none" else 3 * 4
    assert net.embed(images(2, 1, 12, 16)).shape == (2, 8 * pixels)
    assert couples_images(net) == (norm == "batch")
    convs = [key for key in net.state_dict() if key.startswith(("features.0.", "features.4."))]
    assert len(convs) == 4  # the keys stay where they are


def test_convnet_refuses_to_pool_below_one_pixel():
    with pytest.raises(InputError, match="depth 4 needs images of at least 16x16"):
        build_network("convnet", (3, 8, 8), 10, depth=4)
    build_network("convnet", (3, 8, 8), 10, depth=4, pooling="none", width=4)


def test_images_are_coupled_by_batch_norm_alone():
    x = images(3, 3, 16, 16)
    for norm in ("instance", "batch", "group", "none"):
        net = build_network("convnet", (3, 16, 16), 10, norm=norm, width=16)
        alone = torch.cat([net.embed(image[None]) for image in x])
        coupled = not torch.allclose(net.embed(x), alone, atol=1e-5)
        assert coupled == couples_images(net)


# --- seeds


def test_a_seed_determines_the_weights_and_touches_nothing_else():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first, again, other = (
        build_network("convnet", (3, 16, 16), 10, seed=seed, width=16) for seed in (3, 3, 4)
    )
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    later = build_network("convnet", (3, 16, 16), 10, seed=3, width=16)
    for key, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
        assert torch.equal(value, later.state_dict()[key])
    assert not torch.equal(first.classifier.weight, other.classifier.weight)


def test_the_random_state_survives_a_refusal():
    before = torch.get_rng_state()
    with pytest.raises(InputError):
        build_network("resnet50", (3, 32, 32), 10)
    assert torch.equal(torch.get_rng_state(), before)


# --- normalise -> augment -> embed


def small(**constants: object) -> nn.Module:
    return build_network("convnet", (3, 16, 16), 10, width=8, **constants)


def test_default_constants_pass_pixels_unchanged():
    x = images(2, 3, 16, 16)
    assert torch.equal(small().normalise(x), x)


def test_constants_are_in_unit_pixels():
    net = small(mean=CIFAR10[0], std=CIFAR10[1])
    mean, std = (torch.tensor(constants).view(3, 1, 1) for constants in CIFAR10)
    x = images(2, 3, 16, 16)
    torch.testing.assert_close(net.normalise(x), ((x + 1) / 2 - mean) / std)
    torch.testing.assert_close(net.mean, mean)
    torch.testing.assert_close(
        small(mean=0.2, std=torch.tensor([0.3])).std, torch.full_like(std, 0.3)
    )


def test_augmentation_fills_with_the_mean_colour():
    net = small(mean=CIFAR10[0], std=CIFAR10[1])
    x = images(2, 3, 16, 16)
    corner = Augmentation("crop", torch.zeros(1, 2))  # two rows and columns from outside
    mean_colour = 2 * torch.tensor(CIFAR10[0]).view(3, 1, 1) - 1
    shifted = mean_colour.expand_as(x).clone()
    shifted[:, :, 2:, 2:] = x[:, :, :-2, :-2]
    torch.testing.assert_close(net.embed(x, corner), net.embed(shifted), rtol=1e-4, atol=1e-5)


def test_forward_and_embed_augment_alike():
    net = small()
    x = images(4, 3, 16, 16)
    rng = torch.Generator().manual_seed(0)
    draw = draw_augmentation(rng)
    for augmentation in (draw, Blocks(((draw, 3), (None, 1)))):
        expected = net.features(siamese(net.normalise(x), augmentation)).flatten(1)
        torch.testing.assert_close(net.embed(x, augmentation), expected)
        torch.testing.assert_close(net(x, augmentation), net.classifier(expected))


def test_images_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="for \\(3, 16, 16\\)"):
        small()(images(1, 1, 16, 16))  # would broadcast against three means


# --- refusals


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet50", {}, "choose convnet, vgg19"),
        ("resnet18", {"width": 64}, "width: an option of convnet"),
        ("vgg19", {"pooling": "max"}, "pooling: an option of convnet"),
        ("convnet", {"width": 6, "norm": "group"}, "that 4 divides"),
        ("convnet", {"depth": 0}, "depth 0"),
        ("convnet", {"mean": (0.5, 0.5)}, "mean: 2 values for images of 3 channels"),
        ("convnet", {"std": (0.5, 0.0, 0.5)}, "std: .* must be positive"),
        ("convnet", {"num_classes": 0}, "0 classes"),
        ("itgan_no_such_module:build", {}, "cannot import"),
        ("torch.nn:NoSuchThing", {}, "cannot import"),
        ("math:pi", {}, "not a callable"),
        ("torch.nn:Flatten", {"norm": "batch"}, "norm: .* has its own"),
    ],
)
def test_refusals_are_one_line(name, options, message):
    with pytest.raises(InputError, match=message) as caught:
        build_network(name, **{"image_shape": (3, 32, 32), "num_classes": 10, **options})
    assert "\n" not in str(caught.value)


# --- module:callable


class Foreign(nn.Module):
    def __init__(self, image_shape: tuple[int, int, int], num_classes: int):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(image_shape[0], 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


class ForeignWithEmbed(Foreign):
    def embed(self, x: Tensor) -> Tensor:
        return self.body(x)


class NoHead(nn.Module):
    def __init__(self, image_shape: tuple[int, int, int], num_classes: int):
        super().__init__()
        self.conv = nn.Conv2d(image_shape[0], num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).mean((2, 3))


class WrongLogits(Foreign):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, 1:]


class IdleHead(NoHead):
    def __init__(self, image_shape: tuple[int, int, int], num_classes: int):
        super().__init__(image_shape, num_classes)
        self.idle = nn.Linear(3, num_classes)


def no_module(image_shape: tuple[int, int, int], num_classes: int) -> str:
    return "logits"


@pytest.fixture
def foreign(monkeypatch):
    """This test file as the module ``foreign_networks``."""
    import sys
    import types

    module = types.ModuleType("foreign_networks")
    for thing in (Foreign, ForeignWithEmbed, NoHead, WrongLogits, IdleHead, no_module):
        setattr(module, thing.__name__, thing)
    monkeypatch.setitem(sys.modules, "foreign_networks", module)
    return "foreign_networks"


def test_a_foreign_network_is_adopted(foreign):
    before = torch.get_rng_state()
    net = build_network(f"{foreign}:Foreign", (3, 16, 16), 5, seed=1, mean=0.3, std=0.2)
    again = build_network(f"{foreign}:Foreign", (3, 16, 16), 5, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(net.model.head.weight, again.model.head.weight)
    assert net.training
    assert couples_images(net)
    assert net.model.body[1].num_batches_tracked == 0  # trying it left no trace

    net.eval()
    x = images(3, 3, 16, 16)
    draw = draw_augmentation(torch.Generator().manual_seed(2))
    features = net.embed(x, draw)
    assert features.shape == (3, 8)
    torch.testing.assert_close(net.model.head(features), net(x, draw))
    torch.testing.assert_close(net(x), net.model(((x + 1) / 2 - 0.3) / 0.2))
    assert not net.model.head._forward_pre_hooks


def test_a_foreign_embed_is_preferred(foreign):
    net = build_network(f"{foreign}:ForeignWithEmbed", (3, 16, 16), 5)
    assert net.embed(images(2, 3, 16, 16)).shape == (2, 8 * 14 * 14)


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        ("NoHead", "neither embed"),
        ("IdleHead", "never called"),
        ("WrongLogits", "it must give logits"),
        ("no_module", "returns str"),
    ],
)
def test_foreign_networks_that_do_not_fit_are_refused(foreign, thing, message):
    with pytest.raises(InputError, match=message):
        build_network(f"{foreign}:{thing}", (3, 16, 16), 5)


def test_a_foreign_network_that_fails_is_named(foreign):
    with pytest.raises(InputError, match="foreign_networks:Foreign fails on images"):
        build_network(f"{foreign}:Foreign", (3, 2, 2), 5)


@pytest.mark.parametrize("name", ["vgg19@32", "convnet@16"])
def test_a_network_enlarges_what_it_accepts(name):
    base, _, size = name.partition("@")
    side = int(size)
    network = build_network(name, (1, 8, 8), 3, seed=4, mean=0.3, std=0.2).eval()
    plain = build_network(base, (1, side, side), 3, seed=4, mean=0.3, std=0.2).eval()
    images = torch.rand(2, 1, 8, 8) * 2 - 1
    larger = torch.nn.functional.interpolate(images, (side, side), mode="bilinear")
    torch.testing.assert_close(network(images), plain(larger))
    torch.testing.assert_close(network.embed(images), plain.embed(larger))
    with pytest.raises(ValueError, match=r"given to a network for \(1, 8, 8\)"):
        network(larger)


@pytest.mark.parametrize("size", ["", "4", "x", "-9", "9e9"])
def test_a_size_that_is_none_is_refused(size):
    with pytest.raises(InputError, match="after @ give the pixels to enlarge images of 8x8 to"):
        build_network(f"convnet@{size}", (1, 8, 8), 3)


def test_what_comes_from_a_users_module_changes_with_its_code(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "itgan_users_nets.py"
    file.write_text("WIDTH = 3\n")
    first = code_of("itgan_users_nets:build")
    assert first == code_of("itgan_users_nets:other@32")
    file.write_text("WIDTH = 44\n")
    monkeypatch.delitem(sys.modules, "itgan_users_nets")
    importlib.invalidate_caches()
    linecache.clearcache()
    assert code_of("itgan_users_nets:build") != first
    assert code_of("convnet") == code_of("vgg19@32") == {}
    with pytest.raises(InputError, match="cannot import"):
        code_of("itgan_no_such_module:build")
