import json

import pytest
import torch
from torch import nn

from itgan.cli import main
from itgan.errors import InputError
from itgan.generators import TorchScriptGenerator, load_generator
from itgan.latents import sample_latents
from itgan.sources import SyntheticSet

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

ABOUT = {"latent_shape": [5], "num_classes": 10, "image_shape": [1, 8, 8], "value_range": [0, 1]}


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


def test_it_goes_the_whole_road_from_the_command_line(tmp_path, capsys):
    path = write(tmp_path / "g.pt", {**ABOUT, "labels": "onehot"})
    run = tmp_path / "run"
    flags = "--latents-per-class 2 --latent-seeds 0 --network-seeds 0 --sources gan itgan"
    flags += " --inversion.steps 2 --inversion.extractor.updates 2 --condensation.steps 2"
    flags += " --evaluation.updates 2 --evaluation.curve-points 1"
    arguments = ["run", "digits", "--generator", str(path), "--out", str(run), *flags.split()]
    assert main(arguments) == 0
    assert (run / "results.json").exists()
    assert main(["inspect", str(run / "sets" / "itgan-0.itgan.safetensors")]) == 0
    assert "torchscript" in capsys.readouterr().out
