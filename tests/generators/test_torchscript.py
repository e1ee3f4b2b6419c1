import json

import numpy as np
import pytest
import torch
from torch import nn

from itgan import artefacts
from itgan.cli import main
from itgan.errors import InputError
from itgan.generators import TorchScriptGenerator, load_generator
from itgan.latents import sample_latents
from itgan.sources import SyntheticSet

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

ABOUT = {"latent_shape": [5], "num_classes": 10, "image_shape": [1, 8, 8], "value_range": [0, 1]}

FLAGS = """
    --latents-per-class 2 --latent-seeds 0 --network-seeds 0 --sources gan inversion itgan
    --inversion.steps 2 --inversion.extractor.updates 2 --condensation.steps 2
    --evaluation.updates 2 --evaluation.curve-points 1
"""


class Decoder(nn.Module):
    """A stranger's generator: one-hot labels, pixels in [0, 1]."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer = nn.Linear(15, 64)

    def forward(self, z, y):
        return torch.sigmoid(self.layer(torch.cat([z, y], 1))).view(-1, 1, 8, 8)


def write(path, about=None, inside=False):
    script = torch.jit.script(Decoder())
    extra = {"itgan.json": json.dumps(about)} if inside else {}
    torch.jit.save(script, path, _extra_files=extra)
    if about is not None and not inside:
        path.with_suffix(".json").write_text(json.dumps(about))
    return path


@pytest.mark.parametrize("inside", [True, False])
def test_images_are_the_module_s_own(tmp_path, inside):
    path = write(tmp_path / "g.pt", {**ABOUT, "labels": "onehot"}, inside)
    generator = load_generator(path)
    assert isinstance(generator, TorchScriptGenerator)
    z, y = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 4, 9])
    expected = 2 * Decoder()(z, nn.functional.one_hot(y, 10).float()) - 1
    torch.testing.assert_close(generator(z, y), expected)
    assert load_generator(path).fingerprint == generator.fingerprint


def test_a_set_holds_the_module(tmp_path, digits):
    generator = load_generator(write(tmp_path / "g.pt", {**ABOUT, "labels": "onehot"}))
    synthetic = SyntheticSet(generator, sample_latents(generator, digits.train.select(range(9))))
    synthetic.save(tmp_path / "set.safetensors")
    loaded = SyntheticSet.load(tmp_path / "set.safetensors")
    assert torch.equal(loaded.images(), synthetic.images())
    assert loaded.nbytes > (tmp_path / "g.pt").stat().st_size


def test_a_file_that_does_not_say_how_it_is_called_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"g\.pt: .*does not tell its latent_shape, num_classes"):
        load_generator(write(tmp_path / "g.pt"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_shape": [1, 4, 4]}, "returns shape"),
        ({"value_range": [0, 0.1]}, "leave value_range"),
        ({"labels": "words"}, "labels='words': choose index, onehot, none"),
        ({"image_shape": 8}, "is no list"),
        ({"latent_shape": [5.5]}, "is no list of whole numbers"),
        ({"num_classes": 1e400}, "num_classes no whole number"),
    ],
)
def test_wrong_descriptions_are_refused(tmp_path, change, message):
    path = write(tmp_path / "g.pt", {**ABOUT, "labels": "onehot", **change})
    with pytest.raises(InputError, match=message):
        load_generator(path)


def test_a_damaged_file_is_refused(tmp_path):
    path = write(tmp_path / "g.pt", {**ABOUT, "labels": "onehot"})
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InputError, match=r"g\.pt"):
        load_generator(path)


class Writer(nn.Module):
    """A generator whose code writes a file."""

    def forward(self, z, y):
        torch.save(z, "written")
        return z.view(-1, 1, 8, 8)


def test_code_that_writes_files_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.jit.save(torch.jit.script(Writer()), "g.pt")
    about = {**ABOUT, "latent_shape": [64]}
    (tmp_path / "g.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match="the operator aten::save, which is not"):
        load_generator(tmp_path / "g.pt")
    assert not (tmp_path / "written").exists()


class Attending(nn.Module):
    """Attention, up-sampling, a class embedding and a weight that depends on the latent."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embed = nn.Embedding(10, 16)
            self.first = nn.Linear(21, 16 * 16)
            self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
            self.last = nn.Sequential(
                nn.GroupNorm(2, 16), nn.SiLU(), nn.Conv2d(16, 1, 3, padding=1)
            )

    def forward(self, z, y):
        h = self.first(torch.cat([z, self.embed(y)], 1)).view(-1, 16, 16)
        h = h + self.attention(h, h, h)[0]
        h = h.transpose(1, 2).reshape(-1, 16, 4, 4)
        h = nn.functional.interpolate(h, scale_factor=2.0, mode="bilinear")
        return torch.tanh(self.last(h))


def test_a_generator_with_attention(tmp_path):
    model = Attending().eval()
    about = {**ABOUT, "value_range": [-1, 1]}
    z, y = torch.randn(2, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 4])
    torch.jit.save(
        torch.jit.script(model), tmp_path / "g.pt", _extra_files={"itgan.json": json.dumps(about)}
    )
    torch.testing.assert_close(load_generator(tmp_path / "g.pt")(z, y), model(z, y))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::ResourceWarning")
def test_a_decoder_of_diffusers_as_torchscript(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
    }
    model = diffusers.AutoencoderKL(in_channels=1, out_channels=1, **blocks).eval()

    class Decode(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, z):
            return self.model.decode(z, return_dict=False)[0].tanh()

    z = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    traced = torch.jit.trace(Decode(), z[:2], check_trace=False)
    about = {"latent_shape": [4, 4, 4], "num_classes": 10, "image_shape": [1, 8, 8]}
    extra = {"itgan.json": json.dumps({**about, "labels": "none"})}
    torch.jit.save(traced, tmp_path / "g.pt", _extra_files=extra)
    made = load_generator(tmp_path / "g.pt")(z, torch.tensor([0, 1, 2]))
    torch.testing.assert_close(made, Decode()(z))


def test_it_goes_the_whole_road_from_the_command_line(tmp_path, capsys):
    path = write(tmp_path / "g.pt", {**ABOUT, "labels": "onehot"})
    run = tmp_path / "run"
    flags = "--latents-per-class 2 --latent-seeds 0 --network-seeds 0 --sources gan itgan"
    flags += " --inversion.steps 2 --inversion.extractor.updates 2 --condensation.steps 2"
    flags += " --evaluation.updates 2 --evaluation.curve-points 1"
    arguments = ["run", "digits", "--generator", str(path), "--out", str(run), *flags.split()]
    assert main(arguments) == 0
    assert {row["source"] for row in artefacts.read_jsonl(run / "trials.jsonl")} == {
        "gan",
        "itgan",
    }
    assert (run / "report.html").exists()
    path.unlink()  # the set stands alone
    path.with_suffix(".json").unlink()
    made = str(run / "sets" / "itgan-0.itgan.safetensors")
    capsys.readouterr()
    assert main(["score", made, "--network-seeds", "0", "--evaluation.updates", "2"]) == 0
    assert "itgan" in capsys.readouterr().out
    assert main(["inspect", made]) == 0
    assert "torchscript" in capsys.readouterr().out
    assert main(["generate", made, "--format", "npz", "--out", str(tmp_path / "images")]) == 0


def test_two_classes_in_colour_with_spatial_latents(tmp_path):
    layer = nn.Sequential(nn.ConvTranspose2d(2, 3, 4, 4), nn.Tanh())
    path = tmp_path / "g.pt"
    torch.jit.save(torch.jit.trace(layer, torch.zeros(2, 2, 4, 4)), path)
    about = {"latent_shape": [2, 4, 4], "num_classes": 2, "image_shape": [3, 16, 16]}
    (tmp_path / "g.json").write_text(json.dumps({**about, "labels": "none"}))
    generator = load_generator(path)
    z = torch.ones(3, 2, 4, 4)
    torch.testing.assert_close(generator(z, torch.tensor([0, 1, 1])), layer(z))
    pixels = np.random.default_rng(0).integers(256, size=(12, 16, 16, 3), dtype=np.uint8)
    labels = np.arange(12) % 2
    parts = {"x_train": pixels, "y_train": labels, "x_test": pixels[:4], "y_test": labels[:4]}
    np.savez(tmp_path / "data.npz", **parts)
    run = tmp_path / "run"
    told = ["--dataset", f"npz:{tmp_path / 'data.npz'}", "--generator", str(path)]
    assert main(["run", "digits", *told, "--out", str(run), *FLAGS.split()]) == 0
    synthetic = SyntheticSet.load(run / "sets" / "itgan-0.itgan.safetensors")
    for dtype, atol in (("fp32", 0.0), ("fp16", 0.01), ("int8", 0.1)):
        synthetic.save(tmp_path / "set.safetensors", dtype)
        loaded = SyntheticSet.load(tmp_path / "set.safetensors")
        assert loaded.bank.latents.shape == (4, 2, 4, 4)
        torch.testing.assert_close(loaded.images(), synthetic.images(), rtol=0, atol=atol)
