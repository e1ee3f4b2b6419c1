"""Siamese augmentation against closed forms."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from itgan.augment import (
    _GROUPS,
    STRATEGY,
    Augmentation,
    Blocks,
    draw_augmentation,
    parse_strategy,
    siamese,
)
from itgan.errors import InputError

GROUPS = STRATEGY.split("_")
IDENTITY = {  # uniforms whose draw changes nothing (on images of 32 pixels)
    "color": [0.5, 0.5, 0.5],
    "crop": [0.5, 0.5],
    "flip": [0.5],
    "rotate": [0.5],
}


def fixed(group: str, *uniforms: float) -> Augmentation:
    return Augmentation(group, torch.tensor([uniforms]))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


def shift_uniforms(size: int, shift: int) -> float:
    """The middle of the interval that gives an integer shift."""
    most = int(size * 0.125 + 0.5)
    return (shift + most + 0.5) / (2 * most + 1)


def ramp(h: int, w: int) -> tuple[Tensor, Tensor]:
    """Images whose values are the pixels' x and y in the [-1, 1] grid."""
    x = (2 * torch.arange(w, dtype=torch.float64) + 1) / w - 1
    y = (2 * torch.arange(h, dtype=torch.float64) + 1) / h - 1
    return x.expand(h, w)[None, None], y[:, None].expand(h, w)[None, None]


# --- strategies and draws


def test_strategy_parses():
    assert parse_strategy(STRATEGY) == ("color", "crop", "cutout", "flip", "scale", "rotate")
    assert parse_strategy("") == parse_strategy("none") == ()
    assert draw_augmentation(seeded(0), "none") is None


@pytest.mark.parametrize("text", ["blur", "color_blur", "color__crop", "none_flip", "flip_flip"])
def test_strategy_refuses(text):
    with pytest.raises(InputError, match="augmentation: ") as caught:
        parse_strategy(text)
    assert "\n" not in str(caught.value)


def test_groups_are_uniform_over_6000_draws():
    rng = seeded(0)
    counts = Counter(draw_augmentation(rng, STRATEGY).group for _ in range(6000))
    assert set(counts) == set(GROUPS)
    # 1000 each; four standard deviations of a binomial(6000, 1/6)
    assert all(abs(count - 1000) < 4 * math.sqrt(6000 * 5 / 36) for count in counts.values())


@pytest.mark.parametrize("count", [None, 3])
def test_a_draw_takes_the_same_from_the_generator_whatever_its_group(count):
    after = set()
    for group in GROUPS:
        rng = seeded(5)
        draw_augmentation(rng, group, count)
        after.add(torch.rand((), generator=rng).item())
    assert len(after) == 1


def test_draws_repeat_and_own_draws_do_not_depend_on_the_count():
    for seed in range(8):
        first, second = (draw_augmentation(seeded(seed)) for _ in range(2))
        assert first.group == second.group
        assert torch.equal(first.uniforms, second.uniforms)
        few, many = (draw_augmentation(seeded(seed), count=count) for count in (3, 40))
        assert few.group == many.group == first.group
        assert torch.equal(few.uniforms, many.uniforms[:3])


# --- the six groups


def test_color_closed_form():
    x = images(2, 3, 4, 5)
    y = siamese(x, fixed("color", 0.75, 0.0, 0.5))  # +1/4, saturation 0, contrast 1
    torch.testing.assert_close(y, (x + 0.25).mean(1, keepdim=True).expand_as(x))
    y = siamese(x, fixed("color", 0.5, 0.75, 0.5))  # saturation 3/2
    grey = x.mean(1, keepdim=True)
    torch.testing.assert_close(y, 1.5 * (x - grey) + grey)
    y = siamese(x, fixed("color", 0.5, 0.5, 0.0))  # contrast 1/2
    level = x.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(y, 0.5 * (x - level) + level)


def test_color_golden_value():
    x = torch.tensor([0.0, 0.6]).view(1, 2, 1, 1)
    # +0.1 -> .1 .7; about .4 by 1.5 -> -.05 .85; about .4 by 1.1 -> -.095 .895
    y = siamese(x, fixed("color", 0.6, 0.75, 0.6))
    torch.testing.assert_close(y.flatten(), torch.tensor([-0.095, 0.895]))


def test_saturation_leaves_grey_images_alone():
    x = images(2, 1, 4, 4)
    assert torch.equal(siamese(x, fixed("color", 0.5, 0.9, 0.5)), x)


@pytest.mark.parametrize(("down", "right"), [(0, 0), (4, -4), (-3, 2), (-4, 4)])
def test_crop_shifts_and_pads_with_zeros(down, right):
    h, w = 32, 32
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    x = (100.0 * rows + columns + 1)[None, None]
    y = siamese(x, fixed("crop", shift_uniforms(h, down), shift_uniforms(w, right)))
    for i, j in [(0, 0), (0, 31), (31, 0), (31, 31), (2, 30), (16, 9)]:
        inside = 0 <= i + down < h and 0 <= j + right < w
        assert y[0, 0, i, j] == (100 * (i + down) + j + right + 1 if inside else 0)
    kept = (h - abs(down)) * (w - abs(right))
    assert (y != 0).sum() == kept


def test_crop_shifts_are_uniform_integers_up_to_an_eighth():
    x = torch.zeros(1, 1, 32, 32)
    x[0, 0, 16, 16] = 1
    rng = seeded(1)
    seen = Counter()
    for _ in range(1800):
        y = siamese(x, draw_augmentation(rng, "crop"))
        seen[16 - int(y.sum((0, 1, 3)).argmax())] += 1
    assert set(seen) == set(range(-4, 5))
    assert all(abs(count - 200) < 4 * math.sqrt(200) for count in seen.values())


def cut(x: Tensor, row: int, column: int) -> Tensor:
    """Cutout with its centre at (row, column), as a mask of what was kept."""
    uniforms = []
    for size, centre in zip(x.shape[2:], (row, column), strict=True):
        choices = size + 1 - int(size * 0.5 + 0.5) % 2
        uniforms.append((centre + 0.5) / choices)
    return siamese(x, fixed("cutout", *uniforms))[0, 0] != 0


def test_cutout_zeros_a_square_clipped_at_the_border():
    x = torch.ones(1, 3, 32, 32)
    kept = cut(x, 16, 16)
    assert (~kept).sum() == 16 * 16
    assert not kept[8:24, 8:24].any()
    for row, column, zeros in [(0, 0, 64), (0, 32, 64), (32, 32, 64), (16, 0, 128), (3, 31, 99)]:
        assert (~cut(x, row, column)).sum() == zeros
    assert not cut(x, 0, 0)[:8, :8].any()
    assert not cut(x, 32, 32)[-8:, -8:].any()


def test_cutout_of_odd_sides():
    x = torch.ones(1, 1, 5, 6)  # both int(. / 2 + .5) = 3
    assert (~cut(x, 2, 3)).sum() == 9
    assert (~cut(x, 0, 0)).sum() == 4
    assert (~cut(x, 4, 5)).sum() == 4


def test_cutout_centres_reach_both_borders():
    ones = torch.ones(400, 1, 8, 8)
    y = siamese(ones, draw_augmentation(seeded(0), "cutout", count=400))
    zeros = Counter((y == 0).sum((1, 2, 3)).tolist())
    assert min(zeros) == 4  # a corner
    assert max(zeros) == 16


def test_flip_is_exact():
    x = images(2, 3, 4, 5)
    assert torch.equal(siamese(x, fixed("flip", 0.49)), x.flip(3))
    assert torch.equal(siamese(x, fixed("flip", 0.5)), x)


def test_scale_of_a_ramp_multiplies_it():
    x, y = ramp(16, 24)
    sx, sy = (1 / 1.2 + u * (1.2 - 1 / 1.2) for u in (0.1, 0.3))  # both below 1: enlarge
    draw = fixed("scale", 0.1, 0.3)
    torch.testing.assert_close(siamese(x, draw), sx * x, rtol=0, atol=1e-7)
    torch.testing.assert_close(siamese(y, draw), sy * y, rtol=0, atol=1e-7)


def test_scale_above_one_shrinks_and_fills_with_zeros():
    x = torch.ones(1, 1, 32, 32)
    y = siamese(x, fixed("scale", 0.999999, 0.999999))  # 1.2: 32 -> 26.7 pixels
    assert y[0, 0, 0].abs().max() == 0
    assert y[0, 0, 3:29, 3:29].min() > 0.999
    assert y.sum().item() == pytest.approx((32 / 1.2) ** 2, rel=0.01)


@pytest.mark.parametrize("u", [0.0, 0.2, 0.9])
def test_rotated_ramps_are_rotated_ramps(u):
    x, y = ramp(32, 32)
    angle = math.radians((2 * u - 1) * 15)
    draw = fixed("rotate", u)
    inside = (slice(None), slice(None), slice(6, 26), slice(6, 26))
    expected = math.cos(angle) * x - math.sin(angle) * y
    torch.testing.assert_close(siamese(x, draw)[inside], expected[inside], rtol=0, atol=1e-6)
    expected = math.sin(angle) * x + math.cos(angle) * y
    torch.testing.assert_close(siamese(y, draw)[inside], expected[inside], rtol=0, atol=1e-6)


def bilinear(x, points):
    """Samples of a picture at (row, column), by the definition; outside it is zero."""
    h, w = x.shape
    out = []
    for row, column in points:
        top, left = math.floor(row), math.floor(column)
        total = 0.0
        for i in (top, top + 1):
            for j in (left, left + 1):
                if 0 <= i < h and 0 <= j < w:
                    total += float(x[i, j]) * (1 - abs(row - i)) * (1 - abs(column - j))
        out.append(total)
    return torch.tensor(out, dtype=x.dtype).view(h, w)


@pytest.mark.parametrize("uniforms", [(0.1,), (0.8,)])
def test_rotation_pixel_by_pixel(uniforms):
    (u,) = uniforms
    x = images(1, 1, 6, 6)
    angle = math.radians((2 * u - 1) * 15)
    points = [
        (
            2.5 + math.sin(angle) * (j - 2.5) + math.cos(angle) * (i - 2.5),
            2.5 + math.cos(angle) * (j - 2.5) - math.sin(angle) * (i - 2.5),
        )
        for i in range(6)
        for j in range(6)
    ]
    expected = bilinear(x[0, 0], points)
    torch.testing.assert_close(siamese(x, fixed("rotate", u))[0, 0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("uniforms", [(0.1, 0.9), (0.8, 0.3)])
def test_scaling_pixel_by_pixel(uniforms):
    x = images(1, 1, 6, 8)
    sx, sy = (1 / 1.2 + u * (1.2 - 1 / 1.2) for u in uniforms)
    points = [(2.5 + sy * (i - 2.5), 3.5 + sx * (j - 3.5)) for i in range(6) for j in range(8)]
    expected = bilinear(x[0, 0], points)
    found = siamese(x, fixed("scale", *uniforms))[0, 0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("group", IDENTITY)
@pytest.mark.parametrize("rows", [1, 3])
def test_identity_draws_are_exact(group, rows):
    for h, w in [(32, 32), (28, 20)]:
        x = images(3, 3, h, w, dtype=torch.float32)
        draw = Augmentation(group, torch.tensor([IDENTITY[group]]).expand(rows, -1))
        assert torch.equal(siamese(x, draw), x)


# --- Siamese, own and block draws


@pytest.mark.parametrize("group", GROUPS)
def test_a_shared_draw_treats_every_image_alike(group):
    x = images(1, 3, 12, 16).expand(4, -1, -1, -1)
    for seed in range(5):
        y = siamese(x, draw_augmentation(seeded(seed), group))
        assert torch.equal(y, y[:1].expand_as(y))
    x = images(5, 3, 12, 16)
    draw = draw_augmentation(seeded(0), group)
    alone = torch.cat([siamese(image[None], draw) for image in x])
    torch.testing.assert_close(siamese(x, draw), alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("group", GROUPS)
def test_own_draws_equal_a_loop_over_images(group):
    x = images(7, 3, 16, 12)
    draw = draw_augmentation(seeded(2), group, count=7)
    loop = [
        siamese(image[None], Augmentation(group, uniforms[None]))
        for image, uniforms in zip(x, draw.uniforms, strict=True)
    ]
    torch.testing.assert_close(siamese(x, draw), torch.cat(loop), rtol=0, atol=1e-12)


def test_blocks_equal_separate_calls():
    x = images(9, 3, 8, 8)
    rng = seeded(3)
    draws = (draw_augmentation(rng, "rotate"), None, draw_augmentation(rng, "color", count=2))
    y = siamese(x, Blocks(tuple(zip(draws, (4, 3, 2), strict=True))))
    parts = [siamese(part, draw) for part, draw in zip(x.split((4, 3, 2)), draws, strict=True)]
    assert torch.equal(y, torch.cat(parts))


@pytest.mark.parametrize("group", GROUPS)
def test_blocks_of_one_operation_go_through_it_together(group, monkeypatch):
    x, sizes = images(10, 3, 8, 8), (3, 1, 2, 4)
    draws = [draw_augmentation(seeded(k), group) for k in range(3)]
    draws.insert(2, draw_augmentation(seeded(9), "flip" if group == "color" else "color"))
    expected = [siamese(part, draw) for part, draw in zip(x.split(sizes), draws, strict=True)]
    calls = []
    for name, (numbers, work) in _GROUPS.items():

        def counted(x, uniforms, name=name, work=work):
            calls.append(name)
            return work(x, uniforms)

        monkeypatch.setitem(_GROUPS, name, (numbers, counted))
    y = siamese(x, Blocks(tuple(zip(draws, sizes, strict=True))))
    torch.testing.assert_close(y, torch.cat(expected), rtol=1e-9, atol=1e-12)
    assert sorted(calls) == sorted({draw.group for draw in draws})


def test_wrong_numbers_of_images_are_refused():
    x = images(3, 1, 8, 8)
    with pytest.raises(ValueError, match="for 2 images applied to a batch of 3"):
        siamese(x, draw_augmentation(seeded(0), count=2))
    with pytest.raises(ValueError, match="blocks of 2 images"):
        siamese(x, Blocks(((None, 2),)))


# --- any tensor


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("count", [None, 2])
def test_gradients_are_right(group, count):
    x = images(2, 3, 8, 7).requires_grad_()
    draw = draw_augmentation(seeded(4), group, count)
    assert torch.autograd.gradcheck(lambda x: siamese(x, draw), (x,))


@settings(max_examples=60, deadline=None)
@given(
    group=st.sampled_from(GROUPS),
    n=st.integers(1, 4),
    c=st.sampled_from([1, 3]),
    h=st.integers(1, 33),
    w=st.integers(1, 33),
    own=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
    seed=st.integers(0, 10**6),
)
def test_any_shape_and_type(group, n, c, h, w, own, dtype, seed):
    x = images(n, c, h, w, dtype=torch.float32).to(dtype)
    before = x.clone()
    y = siamese(x, draw_augmentation(seeded(seed), group, n if own else None))
    assert y.shape == x.shape
    assert y.dtype == dtype
    assert y.isfinite().all()
    assert torch.equal(x, before)
    if group != "color":  # the others move or erase: nothing new appears
        bound = x.abs().max().item() * (1 + 1e-2) + 1e-6
        assert y.abs().max().item() <= bound


def test_extreme_uniforms_stay_in_range():
    top = 1 - 2**-24  # the largest fp32 that torch.rand gives
    for group, numbers in [("crop", 2), ("cutout", 2)]:
        for size in (8, 28, 32, 128):
            x = torch.ones(2, 1, size, size)
            for rows in (1, 2):
                y = siamese(x, Augmentation(group, torch.full((rows, numbers), top)))
                assert y.shape == x.shape
            assert (y == 0).any()


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("count", [None, 4])
def test_parameters_follow_the_images_to_their_device(group, count):
    x = torch.zeros(4, 3, 8, 12, device="meta")  # refuses to meet a CPU tensor
    y = siamese(x, draw_augmentation(seeded(0), group, count))
    assert (y.device.type, y.shape) == ("meta", x.shape)
