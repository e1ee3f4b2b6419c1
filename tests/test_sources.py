import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from itgan import artefacts
from itgan.errors import InputError
from itgan.generators import BigGANShape, FrozenGenerator, wrap_generator
from itgan.latents import LatentBank
from itgan.pictures import to_uint8
from itgan.randomness import derive
from itgan.sources import FreshSamples, PixelSet, SyntheticSet, _pack, _unpack


@pytest.fixture
def synthetic(generator, bank):
    about = {"dataset": "digits", "class_names": list("0123456789")}
    return SyntheticSet(generator, bank, about=about)


def file_tensors(path):
    return artefacts.load(path, "synthetic")[0]


def an_epoch(source, batch_size=7, seed=0):
    batches = list(source.batches(derive(seed, "order"), batch_size))
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels), [len(x) for x in images]


# --- all sources --------------------------------------------------------------------------------


@pytest.fixture(params=["synthetic", "real", "uint8", "float", "soft"])
def source(request, synthetic, images):
    return {
        "synthetic": synthetic,
        "real": images,
        "uint8": PixelSet(images.images, images.labels),
        "float": PixelSet(images.floats(), images.labels),
        "soft": PixelSet(images.images, torch.eye(10)[images.labels]),
    }[request.param]


def test_an_epoch_has_every_image_once_with_its_label(source, synthetic):
    images, labels, sizes = an_epoch(source)
    assert sizes == [7, 7, 7, 7, 7, 5]
    expected = source.images() if source is synthetic else source.images
    if not expected.is_floating_point():
        expected = expected.float() / 127.5 - 1
    distance = torch.cdist(images.flatten(1), expected.flatten(1), p=1)
    match = distance.argmin(1)
    assert distance.gather(1, match[:, None]).max() < 1e-4
    assert match.sort().values.tolist() == list(range(40))
    assert match.tolist() != list(range(40)), "shuffled"
    assert torch.equal(labels, source.labels[match])
    assert images.dtype == torch.float32
    assert images.abs().max() <= 1


def test_the_order_is_the_generator_s(source):
    first, again, other = (an_epoch(source, seed=seed)[1] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_batch_larger_than_the_set_is_the_set(source):
    assert an_epoch(source, batch_size=1000)[2] == [40]


# --- synthetic sets -----------------------------------------------------------------------------


def test_a_synthetic_set_is_a_torch_data_set(synthetic, generator, bank):
    assert len(synthetic) == 40
    image, label = synthetic[3]
    assert image.shape == (1, 8, 8)
    assert image.dtype == torch.float32
    assert not image.requires_grad
    assert isinstance(label, int)
    assert label == int(bank.labels[3])
    expected = generator(bank.latents[3:4], bank.labels[3:4])[0]
    torch.testing.assert_close(image, expected)
    assert torch.equal(synthetic[-1][0], synthetic[39][0])
    for index in (40, -41):
        with pytest.raises(IndexError):
            synthetic[index]
    assert len(list(synthetic)) == 40  # iteration ends


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine of one core
@pytest.mark.parametrize(("workers", "begun"), [(0, None), (2, "fork"), (2, "spawn")])
def test_data_loaders_take_it(synthetic, workers, begun):
    loader = DataLoader(
        synthetic, batch_size=16, num_workers=workers, multiprocessing_context=begun
    )
    images, labels = (torch.cat(part) for part in zip(*loader, strict=True))
    torch.testing.assert_close(images, synthetic.images(), rtol=0, atol=1e-6)
    assert torch.equal(labels, synthetic.labels)


def test_images_at_positions(synthetic):
    everything = synthetic.images()
    positions = torch.tensor([39, 0, 0, 7])
    torch.testing.assert_close(synthetic.images(positions), everything[positions])
    assert everything.shape == (40, 1, 8, 8)


def test_long_sets_are_generated_in_chunks(synthetic, monkeypatch):
    everything = synthetic.images()
    sizes = []
    monkeypatch.setattr("itgan.sources.CHUNK", 16)
    synthetic.generator.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    try:
        torch.testing.assert_close(synthetic.images(), everything, rtol=0, atol=1e-6)
        assert sizes == [16, 16, 8]
    finally:
        synthetic.generator._forward_pre_hooks.clear()


@pytest.mark.parametrize(
    ("stage", "name"), [("random", "gan"), ("inverted", "inversion"), ("condensed", "itgan")]
)
def test_the_stage_names_the_source(generator, bank, stage, name):
    bank = LatentBank(bank.latents, bank.labels, bank.rows, stage)
    assert SyntheticSet(generator, bank).name == name


def test_materialised_images_are_the_nearest_pixels(synthetic):
    pixels = synthetic.materialise()
    exact = (synthetic.images() + 1) * 127.5
    assert (pixels.images - exact).abs().max() <= 0.5 + 1e-4
    assert torch.equal(pixels.labels, synthetic.labels)
    assert (pixels.name, pixels.variant, pixels.latent_seed) == ("gan", "", 0)


# --- files --------------------------------------------------------------------------------------


def test_fp32_comes_back_bit_for_bit(synthetic, tmp_path):
    path = tmp_path / "new" / "digits.itgan.safetensors"
    synthetic.save(path)
    found = SyntheticSet.load(path)
    assert torch.equal(found.images(), synthetic.images())
    assert torch.equal(found.bank.latents, synthetic.bank.latents)
    assert torch.equal(found.labels, synthetic.labels)
    assert torch.equal(found.bank.rows, synthetic.bank.rows)
    assert found.labels.dtype == found.bank.rows.dtype == torch.int64
    assert found.bank.stage == "random"
    assert found.bank.provenance == synthetic.bank.provenance
    assert found.generator.fingerprint == synthetic.generator.fingerprint
    assert found.about == synthetic.about
    found.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("dtype", ["fp16", "int8"])
def test_narrow_files_hold_the_numbers_to_half_a_step(synthetic, tmp_path, dtype):
    path = tmp_path / "set.safetensors"
    synthetic.save(path, dtype=dtype)
    found = SyntheticSet.load(path)
    pairs = {
        name: (tensor, synthetic.generator.tensors()[name], 0)
        for name, tensor in found.generator.tensors().items()
    }
    pairs["latents"] = (found.bank.latents, synthetic.bank.latents, 1)
    for name, (stored, exact, axis) in pairs.items():
        if dtype == "int8" and exact.ndim > 1:
            others = tuple(d for d in range(exact.ndim) if d != axis)
            bound = exact.abs().amax(others, keepdim=True) / 127 / 2
        else:  # eleven bits, or the smallest subnormal
            bound = exact.abs() * 2**-11 + 2**-25
        assert ((stored - exact).abs() <= bound * (1 + 1e-5)).all(), name
        assert stored.dtype == torch.float32
    assert torch.equal(found.labels, synthetic.labels)
    assert torch.equal(found.bank.rows, synthetic.bank.rows)
    error = (found.images() - synthetic.images()).abs().max()
    assert 0 < error < (0.005 if dtype == "fp16" else 0.2)


def test_a_stored_set_can_be_stored_again_without_loss(synthetic, tmp_path):
    for dtype in ("fp16", "int8"):
        synthetic.save(tmp_path / "a", dtype=dtype)
        once = SyntheticSet.load(tmp_path / "a")
        assert once.dtype == dtype
        once.save(tmp_path / "b")
        twice = SyntheticSet.load(tmp_path / "b")
        torch.testing.assert_close(twice.images(), once.images(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int8"])
def test_nbytes_is_what_the_file_holds(generator, bank, tmp_path, dtype):
    synthetic = SyntheticSet(generator, bank, dtype)
    path = tmp_path / "set.safetensors"
    synthetic.save(path)
    tensors = file_tensors(path)
    assert synthetic.nbytes == sum(t.numel() * t.element_size() for t in tensors.values())
    assert SyntheticSet.load(path).nbytes == synthetic.nbytes
    header = path.stat().st_size - synthetic.nbytes
    assert 0 < header < 6000  # names and metadata
    assert synthetic.materialise().nbytes == synthetic.nbytes


def test_narrow_files_are_smaller(generator, bank):
    sizes = [SyntheticSet(generator, bank, dtype).nbytes for dtype in ("fp32", "fp16", "int8")]
    constants = sum(t.numel() for t in generator.tensors().values())
    assert sizes[0] == 4 * (constants + 40 * 8) + 40 + 4 * 40  # labels: uint8, rows: int32
    assert sizes[0] > 1.8 * sizes[1] > 1.8 * sizes[2]


def test_labels_of_many_classes_are_wider(make_biggan, tmp_path):
    generator = FrozenGenerator.from_biggan(make_biggan(BigGANShape(1, 300, (1, 8, 8), 2)))
    labels = torch.tensor([299, 256, 0])
    bank = LatentBank(torch.zeros(3, 2), labels, torch.tensor([70_000, 1, 2]), "random")
    SyntheticSet(generator, bank).save(tmp_path / "a")
    assert torch.equal(SyntheticSet.load(tmp_path / "a").labels, labels)
    assert SyntheticSet.load(tmp_path / "a").bank.rows.tolist() == [70_000, 1, 2]


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=6, max_size=6), st.sampled_from([0, 1]))
def test_int8_is_exact_at_zero_and_at_the_largest(values, axis):
    tensor = torch.tensor(values).view(2, 3)
    back = _unpack(_pack("x", tensor, "int8", by=axis))["x"]
    assert (back[tensor == 0] == 0).all()
    largest = tensor.abs() == tensor.abs().amax(1 - axis, keepdim=True)
    torch.testing.assert_close(back[largest], tensor[largest], rtol=1e-5, atol=1e-9)


def test_files_that_are_no_synthetic_set(synthetic, bank, tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(InputError, match=r"x\.safetensors: no such file"):
        SyntheticSet.load(path)
    bank.save(path)
    with pytest.raises(InputError, match="holds a 'bank', expected a 'synthetic'"):
        SyntheticSet.load(path)
    synthetic.save(path)
    tensors, metadata = artefacts.load(path)
    for name in ("latents", "rows", "generator.linear.weight", "generator.output.bn.scale"):
        artefacts.save(path, {k: t for k, t in tensors.items() if k != name}, metadata)
        with pytest.raises(InputError, match=r"x\.safetensors: "):
            SyntheticSet.load(path)
    synthetic.save(path)
    payload = bytearray(path.read_bytes())
    payload[-1] ^= 1
    path.write_bytes(payload)
    with pytest.raises(InputError, match=r"x\.safetensors: damaged.*sha256"):
        SyntheticSet.load(path)


# --- pixel sets ---------------------------------------------------------------------------------

PIXELS = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
HARD = torch.tensor([0, 1, 2])


@pytest.mark.parametrize(
    ("pixels", "labels", "message"),
    [
        (PIXELS[0], HARD, r"images of shape \(1, 2, 2\) with labels of shape \(3,\); give \[n, c"),
        (PIXELS, HARD[:2], r"with labels of shape \(2,\); give .* one label per image"),
        (PIXELS[:0], HARD[:0], r"images of shape \(0, 1, 2, 2\)"),
        (PIXELS.int(), HARD, "images are torch.int32; give uint8 or float"),
        (PIXELS + 1.1, HARD, r"must be finite and lie in \[-1, 1\]"),
        (PIXELS * float("nan"), HARD, r"must be finite and lie in \[-1, 1\]"),
        (PIXELS, HARD.float(), r"labels are torch.float32 of shape \(3,\); give int64 \[n\], or"),
        (PIXELS, HARD.byte(), "labels are torch.uint8"),
        (PIXELS, HARD[:, None], r"labels are torch.int64 of shape \(3, 1\)"),
        (PIXELS, -HARD, "must not be negative or NaN"),
        (PIXELS, torch.eye(3) - 0.1, "must not be negative or NaN"),
        (PIXELS, torch.eye(3) * float("nan"), "must not be negative or NaN"),
    ],
)
def test_pixels_and_labels_that_do_not_fit(pixels, labels, message):
    with pytest.raises(InputError, match=f"^pixel set: .*{message}"):
        PixelSet(pixels, labels)


def test_bytes_of_a_pixel_set():
    assert PixelSet(PIXELS, HARD).nbytes == 3 * 4 + 3  # a class number takes one byte
    assert PixelSet(PIXELS.float(), torch.eye(3)).nbytes == 4 * 12 + 4 * 9
    assert PixelSet(PIXELS, HARD, nbytes=7).nbytes == 7


def test_images_in_double_precision_train_like_those_in_single():
    synthetic = PixelSet(torch.rand(3, 1, 2, 2, dtype=torch.float64), HARD)
    assert synthetic.images.dtype == torch.float32
    assert synthetic.nbytes == 4 * 12 + 3


# --- fresh samples ------------------------------------------------------------------------------


def test_fresh_samples_never_repeat(generator):
    labels = torch.arange(40) % 10
    fresh = FreshSamples(generator, labels)
    epochs = [an_epoch(fresh, seed=seed) for seed in range(3)]
    everything = torch.cat([images for images, _, _ in epochs]).flatten(1)
    assert len(everything.unique(dim=0)) == 120
    for _, seen, sizes in epochs:
        assert torch.equal(seen.sort().values, labels.sort().values)
        assert sizes == [7, 7, 7, 7, 7, 5]
    assert (len(fresh), fresh.name) == (40, "gan-fresh")
    assert not everything.requires_grad


def test_fresh_samples_are_the_generator_s_for_their_labels(generator):
    seen = []
    hook = generator.register_forward_hook(lambda _, given, made: seen.append((*given, made)))
    batches = list(FreshSamples(generator, torch.arange(20) % 10).batches(derive(0), 8))
    hook.remove()
    for (latents, labels, made), (images, yielded) in zip(seen, batches, strict=True):
        assert latents.shape == (len(yielded), 8)
        assert torch.equal(labels, yielded)
        assert torch.equal(images, to_uint8(made).float() / 127.5 - 1)  # 8 bits, as all sources


def test_fresh_samples_of_other_latent_seeds_are_others(generator):
    def epoch(latent_seed, order):
        source = FreshSamples(generator, torch.arange(20) % 10, latent_seed)
        return torch.cat([images for images, _ in source.batches(derive(order), 20)])

    assert torch.equal(epoch(0, 0), epoch(0, 0))
    assert not torch.equal(epoch(0, 0), epoch(1, 0))
    assert not torch.equal(epoch(0, 0), epoch(0, 1))


def test_bytes_of_fresh_samples_are_the_generator_s(generator):
    constants = sum(t.numel() for t in generator.tensors().values())
    assert FreshSamples(generator, torch.zeros(5, dtype=torch.long)).nbytes == 4 * constants


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int8"])
def test_stored_as_is_what_a_reader_of_the_file_gets(generator, bank, tmp_path, dtype):
    synthetic = SyntheticSet(generator, bank, about={"dataset": "digits"})
    synthetic.latent_seed = 7
    stored = synthetic.stored_as(dtype)
    synthetic.save(tmp_path / "a", dtype=dtype)
    read = SyntheticSet.load(tmp_path / "a")
    assert torch.equal(stored.bank.latents, read.bank.latents)
    assert stored.generator.fingerprint == read.generator.fingerprint
    assert torch.equal(stored.images(), read.images())
    assert (stored.nbytes, stored.dtype, stored.about) == (read.nbytes, dtype, read.about)
    assert (stored.name, stored.latent_seed) == (synthetic.name, 7)
    assert stored.variant == {"fp32": ""}.get(dtype, dtype)
    assert torch.equal(stored.images(), synthetic.images()) == (dtype == "fp32")


def test_a_python_function_cannot_be_stored_in_any_type(bank):
    wrapped = wrap_generator(
        lambda z, y: torch.tanh(z + y[:, None]).view(-1, 1, 2, 4),
        latent_shape=(8,),
        num_classes=10,
        image_shape=(1, 2, 4),
    )
    with pytest.raises(InputError, match="cannot be stored"):
        SyntheticSet(wrapped, bank.moved_to(wrapped)).stored_as("fp16")
    pixels = SyntheticSet(wrapped, bank.moved_to(wrapped)).materialise()
    assert pixels.nbytes == len(pixels) * (8 + 1)  # of what can be stored: the images
