import builtins
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from itgan.artefacts import digest
from itgan.cli import main
from itgan.errors import InputError
from itgan.generators import DiffusersGenerator, Encoder, load_encoder, load_generator
from itgan.inversion import psnr
from itgan.latents import LatentBank, sample_latents
from itgan.sources import SyntheticSet

WEIGHTS = "diffusion_pytorch_model.safetensors"
# diffusers leaves the file open that it reads a config from.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")
diffusers = pytest.importorskip("diffusers")


def autoencoder(**changes):
    """A tiny model for 8x8 images of one channel; its latents are 4x4x4."""
    options = {
        "in_channels": 1,
        "out_channels": 1,
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (8, 16),
        "latent_channels": 4,
        "norm_num_groups": 4,
        "sample_size": 8,
        "scaling_factor": 0.5,
        "shift_factor": 0.25,
        "mid_block_add_attention": False,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return diffusers.AutoencoderKL(**{**options, **changes})


@pytest.fixture(scope="module")
def model(digits):
    """Trained a little, so that it reconstructs digits."""
    model = autoencoder()
    images = digits.train.floats(torch.arange(128))
    adam = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(60):
        loss = F.l1_loss(model.decode(model.encode(images).latent_dist.mean).sample, images)
        adam.zero_grad()
        loss.backward()
        adam.step()
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("diffusers") / "kl"
    model.save_pretrained(path)
    return path


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def load(folder, **options):
    return load_generator(f"diffusers:{folder}", **{"num_classes": 10, **options})


def randn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_images_are_the_decoder_s_own(folder, model):
    generator = load(folder)
    assert isinstance(generator, DiffusersGenerator)
    assert (generator.latent_shape, generator.num_classes) == ((4, 4, 4), 10)
    assert generator.image_shape == (1, 8, 8)
    z = 3 * randn(6, 4, 4, 4)
    expected = model.decode(z / 0.5 + 0.25).sample
    assert expected.abs().max() > 1, "something is clamped"
    torch.testing.assert_close(generator(z, torch.arange(6)), expected.clamp(-1, 1))
    assert torch.equal(generator(z, torch.arange(6)), generator(z, torch.zeros(6).long()))


def test_latents_are_scaled_by_the_statistics_that_a_config_holds(tmp_path):
    mean, std = (0.1, -0.2, 0.3, 0.4), (1.0, 2.0, 0.5, 3.0)
    model = autoencoder(latents_mean=mean, latents_std=std, shift_factor=None).eval()
    model.save_pretrained(tmp_path)
    z = randn(2, 4, 4, 4)
    raw = z * torch.tensor(std).view(4, 1, 1) / 0.5 + torch.tensor(mean).view(4, 1, 1)
    images = load(tmp_path)(z, torch.tensor([0, 1]))
    torch.testing.assert_close(images, model.decode(raw).sample.clamp(-1, 1))


def test_the_encoder_is_a_near_inverse(folder, digits):
    generator, encode = load(folder), load_encoder(f"diffusers:{folder}")
    assert isinstance(encode, Encoder)
    few = digits.train.select(torch.arange(50))
    encoded = LatentBank(encode(few.floats(), few.labels), few.labels, few.rows, "inverted")
    assert encoded.latents.shape == (50, 4, 4, 4)
    random = sample_latents(generator, few)
    assert psnr(generator, encoded, few) > 5 + psnr(generator, random, few)


def test_images_of_other_sizes(folder):
    generator = load(folder, image_shape=(1, 16, 8), num_classes=2)
    assert (generator.latent_shape, generator.image_shape) == ((4, 8, 4), (1, 16, 8))
    with pytest.raises(InputError, match=r"sides are multiples of 2, not 8x9; choose another"):
        load(folder, image_shape=(1, 8, 9))


def test_a_set_holds_config_and_decoder_and_no_encoder(folder, digits, tmp_path):
    generator = load(folder)
    synthetic = SyntheticSet(generator, sample_latents(generator, digits.train.select(range(9))))
    for dtype, atol in (("fp32", 0.0), ("fp16", 0.02), ("int8", 0.3)):
        path = tmp_path / f"{dtype}.safetensors"
        synthetic.save(path, dtype)
        loaded = SyntheticSet.load(path)
        torch.testing.assert_close(loaded.images(), synthetic.images(), rtol=0, atol=atol)
        assert not any("encoder" in name.split(".")[1] for name in load_file(path) if "." in name)
    assert SyntheticSet.load(tmp_path / "fp32.safetensors").generator.fingerprint == (
        generator.fingerprint
    )
    assert str(folder) not in json.dumps(generator.conventions())


def test_the_fingerprint_is_of_weights_and_conventions(folder, copy):
    one = load(folder).fingerprint
    assert load(copy).fingerprint == one
    assert load(folder, num_classes=9).fingerprint != one
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "scaling_factor": 0.6}))
    assert load(copy).fingerprint != one


def test_loading_leaves_the_global_random_state_alone(folder):
    before = torch.get_rng_state()
    load(folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_folders_that_cannot_be_used(folder, copy, tmp_path):
    with pytest.raises(InputError, match="takes no labels, so its number of classes must come"):
        load_generator(f"diffusers:{folder}")
    with pytest.raises(InputError, match=r"^diffusers:.*: num_classes=1: give 2 to"):
        load(folder, num_classes=1)
    with pytest.raises(InputError, match=r"no folder with a readable config\.json"):
        load(tmp_path / "none")
    tensors = load_file(copy / WEIGHTS)
    save_file({k: t for k, t in tensors.items() if k != "decoder.conv_in.bias"}, copy / WEIGHTS)
    with pytest.raises(InputError, match=r"damaged: tensor decoder\.conv_in\.bias is missing"):
        load(copy)
    (copy / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:5000])
    with pytest.raises(InputError, match="damaged, or its weights do not fit"):
        load(copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "_class_name": "VQModel"}))
    with pytest.raises(InputError, match="holds a VQModel; generators are read from Autoenc"):
        load(copy)
    (copy / "model_index.json").write_text("{}")
    (copy / "vae").mkdir()
    with pytest.raises(InputError, match=r"a whole pipeline; give its autoencoder: .*copy/vae$"):
        load(copy)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"scaling_factor": None},
            r"scaling_factor=None in its config\.json: neither a number nor",
        ),
        ({"scaling_factor": 0}, r"scaling_factor=0 in its config"),
        ({"shift_factor": "x"}, r"shift_factor='x' in its config"),
        ({"latents_mean": [0.0] * 4, "latents_std": [1.0, 2.0]}, r"latents_std=\[1\.0, 2\.0\] in"),
    ],
)
def test_constants_that_are_none(copy, change, told):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, **change}))
    for read in (load, lambda folder: load_encoder(f"diffusers:{folder}")):
        with pytest.raises(InputError, match=rf"^diffusers:.*: {told}"):
            read(copy)


def test_variants_are_read(model, tmp_path):
    model.save_pretrained(tmp_path, variant="fp16")
    assert not (tmp_path / WEIGHTS).exists()
    assert (
        load(tmp_path).fingerprint
        == DiffusersGenerator(model, 10, (1, 8, 8), torch.device("cpu")).fingerprint
    )


def test_an_encoder_of_other_images_is_told_before_any_work(tmp_path, capsys):
    autoencoder(in_channels=3).save_pretrained(tmp_path / "kl")
    flags = ["--generator", f"diffusers:{tmp_path / 'kl'}", "--inversion.start", "own-encoder"]
    assert main(["run", "digits", *flags, "--out", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert "encoder: fails on images of shape (1, 8, 8)" in line
    flags += ["--sources", "gan", "--evaluation.updates", "1", "--network-seeds", "0"]
    flags += ["--latent-seeds", "0", "--latents-per-class", "1"]
    assert main(["run", "digits", *flags, "--out", str(tmp_path / "other")]) == 0


def test_pickled_weights_are_refused_with_a_remedy(copy, capsys):
    torch.save({}, copy / "diffusion_pytorch_model.bin")
    (copy / WEIGHTS).unlink()
    assert main(["run", "digits", "--generator", f"diffusers:{copy}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pickled weights run code when loaded: convert them where you trust them" in line


def test_without_diffusers_the_extra_is_named(folder, monkeypatch):
    real = builtins.__import__

    def absent(name, *rest, **options):
        if name == "diffusers":
            raise ImportError(name)
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(InputError, match=r'needs diffusers: pip install "itgan\[diffusers\]"$'):
        load(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"up_block_types": ["Nonsense"] * 2},
        {"block_out_channels": [8, 32]},
        {"latent_channels": 5},
    ],
)
def test_a_set_with_a_false_config_is_refused(folder, digits, tmp_path, monkeypatch, change):
    generator = load(folder)
    honest = generator.conventions()
    told = {**honest, "config": {**honest["config"], **change}}
    monkeypatch.setattr(generator, "conventions", lambda: told)
    SyntheticSet(generator, sample_latents(generator, digits.train.select(range(4)))).save(
        tmp_path / "set.safetensors"
    )
    with pytest.raises(InputError, match=r"set\.safetensors: its config and tensors do not make"):
        SyntheticSet.load(tmp_path / "set.safetensors")


def test_it_goes_the_whole_road_from_the_command_line(copy, tmp_path):
    before = digest(load_file(copy / WEIGHTS))
    flags = "--latents-per-class 2 --latent-seeds 0 --network-seeds 0 --sources gan-fresh itgan"
    flags += " --inversion.steps 2 --inversion.extractor.updates 2 --condensation.steps 2"
    flags += " --evaluation.updates 2 --evaluation.curve-points 1 --inversion.start own-encoder"
    run = tmp_path / "run"
    arguments = ["digits", "--generator", f"diffusers:{copy}", "--out", str(run), *flags.split()]
    assert main(["plan", *arguments]) == 0
    assert main(["run", *arguments]) == 0
    assert digest(load_file(copy / WEIGHTS)) == before
    rows = json.loads((run / "results.json").read_text())
    assert {row["source"] for row in rows} == {"gan-fresh", "itgan"}
    assert (run / "report.html").exists()
    protocol = "--dataset digits --validation 100 --figures recall --samples 30"
    protocol += f" --extractor.updates 2 --extractors {tmp_path / 'extractors'}"
    assert main(["measure", f"diffusers:{copy}", *protocol.split()]) == 0
    shutil.rmtree(copy)  # the set stands alone
    made = str(run / "sets" / "itgan-0.itgan.safetensors")
    score = ["--network-seeds", "0", "--evaluation.updates", "2"]
    assert main(["score", made, *score]) == 0
    assert main(["inspect", made]) == 0
    assert main(["generate", made, "--format", "npz", "--out", str(tmp_path / "images")]) == 0
