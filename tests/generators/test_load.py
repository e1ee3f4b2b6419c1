"""Files of the released layout, against their forward pass written out once more.

The reference below is the specification of the format, literally, in fp64, and shares no code
with the package.
"""

import numpy as np
import pytest
import torch

from itgan import artefacts, generators
from itgan.cli import main
from itgan.errors import InputError
from itgan.generators import FrozenGenerator, load_generator
from itgan.splits import unpack_rows


def official_state(ch: int, classes: int = 10, latent: int = 128, blocks: int = 3, seed: int = 0):
    """A state dict of the released layout with random numbers; ``sv0`` is deliberately wrong."""
    rng = torch.Generator().manual_seed(seed)
    width = 4 * ch

    def normal(*shape, scale=0.02):
        return scale * torch.randn(*shape, generator=rng)

    def layer(name, *shape):
        state[f"{name}.weight"] = normal(*shape)
        state[f"{name}.bias"] = normal(shape[0], scale=0.1)
        state[f"{name}.u0"] = normal(1, shape[0], scale=1.0)
        state[f"{name}.sv0"] = torch.full((1,), 0.123)

    def statistics(name):
        state[f"{name}.stored_mean"] = normal(width, scale=0.3)
        state[f"{name}.stored_var"] = 0.5 + torch.rand(width, generator=rng)

    state = {}
    layer("linear", 16 * width, latent)
    for i in range(blocks):
        layer(f"blocks.{i}.0.conv1", width, width, 3, 3)
        layer(f"blocks.{i}.0.conv2", width, width, 3, 3)
        layer(f"blocks.{i}.0.conv_sc", width, width, 1, 1)
        for bn in ("bn1", "bn2"):
            statistics(f"blocks.{i}.0.{bn}")
            state[f"blocks.{i}.0.{bn}.gain.weight"] = normal(classes, width, scale=0.5)
            state[f"blocks.{i}.0.{bn}.bias.weight"] = normal(classes, width, scale=0.5)
    statistics("output_layer.0")
    state["output_layer.0.gain"] = 1 + normal(width, scale=0.2)
    state["output_layer.0.bias"] = normal(width, scale=0.2)
    layer("output_layer.2", 3, width, 3, 3)
    return state


def official_forward(state, z, y):
    """Linear -> view (n, 4ch, 4, 4) -> blocks -> BN -> ReLU -> conv 3x3 -> tanh."""
    state = {name: tensor.double() for name, tensor in state.items()}
    z = z.double()

    def normalize(x):
        return x / max(float(x.norm()), 1e-8)

    def spectral(name):
        weight = state[f"{name}.weight"]
        matrix = weight.reshape(weight.shape[0], -1)
        v = normalize(state[f"{name}.u0"] @ matrix)
        u = normalize(v @ matrix.T)
        sigma = v @ matrix.T @ u.T
        return weight / sigma.reshape(())

    def conv(name, x):
        weight = spectral(name)
        padding = (weight.shape[2] - 1) // 2
        return torch.conv2d(x, weight, state[f"{name}.bias"], padding=padding)

    def standardise(name, x):
        mean, var = state[f"{name}.stored_mean"], state[f"{name}.stored_var"]
        return (x - mean[None, :, None, None]) / torch.sqrt(var + 1e-5)[None, :, None, None]

    def conditional(name, x):
        gain, bias = state[f"{name}.gain.weight"][y], state[f"{name}.bias.weight"][y]
        x = standardise(name, x)
        return x * (1 + gain)[:, :, None, None] + bias[:, :, None, None]

    def twice(x):
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    h = z @ spectral("linear").T + state["linear.bias"]
    h = h.view(len(z), -1, 4, 4)
    i = 0
    while f"blocks.{i}.0.conv1.weight" in state:
        block = f"blocks.{i}.0"
        x = twice(torch.relu(conditional(f"{block}.bn1", h)))
        x = conv(f"{block}.conv1", x)
        x = torch.relu(conditional(f"{block}.bn2", x))
        h = conv(f"{block}.conv2", x) + conv(f"{block}.conv_sc", twice(h))
        i += 1
    h = standardise("output_layer.0", h)
    gain, bias = state["output_layer.0.gain"], state["output_layer.0.bias"]
    h = torch.relu(h * gain[None, :, None, None] + bias[None, :, None, None])
    return torch.tanh(conv("output_layer.2", h))


def saved(state, path):
    torch.save(state, path)
    return path


@pytest.mark.parametrize(
    ("ch", "classes", "prefix"), [(4, 10, ""), (4, 100, "module."), (64, 10, "")]
)
def test_parity_with_the_released_forward_pass(tmp_path, ch, classes, prefix):
    state = official_state(ch, classes)
    assert len(state) == 72
    path = saved({prefix + k: t for k, t in state.items()}, tmp_path / "G_Pretrained.pth")
    generator = load_generator(path)
    assert isinstance(generator, FrozenGenerator)
    assert generator.latent_shape == (128,)
    assert generator.num_classes == classes
    assert generator.image_shape == (3, 32, 32)
    rng = torch.Generator().manual_seed(1)
    n = 2 if ch == 64 else 6
    z = torch.randn(n, 128, generator=rng)
    y = torch.tensor([0, classes - 1, 1, 5, 7, 0])[:n]
    direction = torch.randn(n, 3, 32, 32, generator=rng)
    results = []
    for function, dtype in ((official_forward, torch.float64), (generator, torch.float32)):
        leaf = z.to(dtype).requires_grad_()
        images = function(state, leaf, y) if function is official_forward else function(leaf, y)
        (gradient,) = torch.autograd.grad((images * direction.to(dtype)).sum(), leaf)
        results.append((images.detach().double(), gradient.double()))
    (images, gradient), (ours, our_gradient) = results
    assert images.std() > 0.02, "a blank image would prove nothing"
    torch.testing.assert_close(ours, images, rtol=0, atol=1e-5)
    # Among millions of activations one may round to the other side of a ReLU's zero, which moves
    # the gradient by some thousandths, however it is computed in fp32.
    tolerance = 1e-3 if ch < 64 else 1e-2
    assert (our_gradient - gradient).norm() / gradient.norm() < tolerance


def test_other_sizes_of_the_layout(tmp_path):
    state = official_state(2, classes=3, latent=5, blocks=2)
    generator = load_generator(str(saved(state, tmp_path / "g.pt")))
    assert (generator.latent_shape, generator.image_shape) == ((5,), (3, 16, 16))
    z, y = torch.ones(1, 5), torch.tensor([2])
    expected = official_forward(state, z, y).float()
    torch.testing.assert_close(generator(z, y), expected, rtol=0, atol=1e-5)


def test_half_precision_weights_are_widened(tmp_path):
    state = {k: t.half() for k, t in official_state(2, blocks=1).items()}
    generator = load_generator(saved(state, tmp_path / "g.pth"))
    z, y = torch.ones(1, 128), torch.tensor([2])
    expected = official_forward(state, z, y).float()
    torch.testing.assert_close(generator(z, y), expected, rtol=0, atol=1e-5)


def test_loading_leaves_the_global_random_state_alone(tmp_path):
    path = saved(official_state(1, blocks=1), tmp_path / "g.pth")
    before = torch.get_rng_state()
    load_generator(path)
    assert torch.equal(torch.get_rng_state(), before)


# --- our own files ------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path, biggan):
    path = tmp_path / "own.safetensors"
    artefacts.save(path, biggan.state_dict(), {"kind": "generator"})
    return path


def test_our_files_round_trip(own, generator):
    assert load_generator(own).fingerprint == generator.fingerprint
    assert load_generator(str(own), "cpu").fingerprint == generator.fingerprint


def test_a_flipped_byte_is_refused_by_name_and_hash(own):
    payload = bytearray(own.read_bytes())
    payload[-5] ^= 64
    digest = artefacts.read_metadata(own)["sha256"]
    own.write_bytes(payload)
    with pytest.raises(InputError, match=rf"own\.safetensors: damaged.*sha256 {digest[:16]}"):
        load_generator(own)


# --- averaged or raw, recalibrated or not -------------------------------------------------------


@pytest.fixture
def both(tmp_path, biggan, make_biggan):
    """A file with averaged and raw weights, and the raw model."""
    raw = make_biggan(biggan.shape, seed=1)
    tensors = {**biggan.state_dict(), **{f"raw.{n}": t for n, t in raw.state_dict().items()}}
    path = tmp_path / "both.safetensors"
    artefacts.save(path, tensors, {"kind": "generator"})
    return path, raw


def test_the_average_is_taken_unless_raw_weights_are_asked_for(both, generator):
    path, raw = both
    assert load_generator(path).fingerprint == generator.fingerprint
    expected = FrozenGenerator.from_biggan(raw).fingerprint
    assert load_generator(path, weights="raw").fingerprint == expected


def test_raw_weights_that_are_not_there(own, tmp_path):
    path = saved(official_state(1, blocks=1), tmp_path / "g.pth")
    for file in (own, path):
        with pytest.raises(
            InputError,
            match=rf"{file.name}: holds no raw weights .*; load it with weights average",
        ):
            load_generator(file, weights="raw")


@pytest.mark.parametrize("weights", ["average", "raw"])
def test_recalibrated_statistics_do_not_depend_on_the_stored_ones(both, tmp_path, weights):
    path, _ = both
    tensors, _ = artefacts.load(path)
    prefix = "raw." if weights == "raw" else ""
    for name in tensors:
        if name.startswith(prefix) and "stored" in name:
            tensors[name] = tensors[name] * 3 + 1
    other = tmp_path / "other.safetensors"
    artefacts.save(other, tensors, {"kind": "generator"})
    plain, again = (load_generator(p, weights=weights).fingerprint for p in (path, other))
    assert plain != again
    fresh = [load_generator(p, weights=weights, recalibrate=True) for p in (path, other)]
    assert fresh[0].fingerprint == fresh[1].fingerprint
    assert fresh[0].fingerprint not in (plain, again)


def test_released_files_are_recalibrated_too(tmp_path):
    path = saved(official_state(1, blocks=1), tmp_path / "g.pth")
    before = torch.get_rng_state()
    one, other = (load_generator(path, recalibrate=True) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before), "the global random state was used"
    assert one.fingerprint == other.fingerprint != load_generator(path).fingerprint


def test_a_released_file_goes_the_whole_road_from_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = saved(official_state(1), tmp_path / "g.pth")
    pixels = torch.randint(256, (40, 32, 32, 3), dtype=torch.uint8).numpy()
    labels = (torch.arange(40) % 10).numpy()
    np.savez("data.npz", x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)
    flags = "--latents-per-class 2 --latent-seeds 0 --network-seeds 0 --sources gan itgan"
    flags += " --inversion.steps 2 --inversion.extractor.updates 2 --condensation.steps 2"
    flags += " --evaluation.updates 2 --dataset npz:data.npz --out run --generator"
    assert main(["run", "digits", *flags.split(), str(path)]) == 0
    path.unlink()  # the set stands alone
    score = ["score", "run/sets/itgan-0.itgan.safetensors", "--dataset", "npz:data.npz"]
    assert main([*score, "--network-seeds", "0", "--evaluation.updates", "2"]) == 0


def test_another_kind_of_file_is_refused(tmp_path, bank):
    bank.save(tmp_path / "bank.safetensors")
    with pytest.raises(InputError, match="holds a 'bank', expected a 'generator'"):
        load_generator(tmp_path / "bank.safetensors")


def test_shipped_names(own, generator, monkeypatch):
    monkeypatch.setattr(generators, "shipped", lambda kind: {"biggan-mine": own})
    assert load_generator("biggan-mine").fingerprint == generator.fingerprint
    with pytest.raises(
        InputError,
        match=r"generator 'biggan-yours': no such file, and not one of .*: biggan-mine$",
    ):
        load_generator("biggan-yours")


def test_what_is_shipped_can_be_loaded():
    for name, path in generators.shipped("generator").items():
        assert load_generator(name).fingerprint == load_generator(path).fingerprint
        assert path.stat().st_size < 2_000_000
        card = path.with_suffix(".md").read_text()
        assert artefacts.read_metadata(path)["sha256"] in card
        assert f"{path.stat().st_size:,} bytes" in card


def test_the_generator_of_cifar10_has_seen_what_its_card_says():
    path = generators.shipped("generator")["biggan-cifar10-cpu"]
    generator, metadata = load_generator(path), artefacts.read_metadata(path)
    assert (generator.latent_shape, generator.num_classes) == ((128,), 10)
    assert generator.image_shape == (3, 32, 32)
    assert metadata["config"]["validation"] == 5000
    assert len(unpack_rows(metadata["trained_on"]["rows"])) == 45_000


# --- refusals -----------------------------------------------------------------------------------


def refusal(state, tmp_path):
    with pytest.raises(InputError) as error:
        load_generator(saved(state, tmp_path / "bad.pth"))
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'bad.pth'}: ")
    assert "\n" not in message
    return message


def test_every_tensor_must_be_there_in_its_shape(tmp_path):
    state = official_state(1, blocks=1)
    for name, tensor in state.items():
        missing = refusal({k: t for k, t in state.items() if k != name}, tmp_path)
        misshapen = refusal({**state, name: tensor[..., None]}, tmp_path)
        if "bn1.gain" not in name and name not in ("linear.weight", "output_layer.2.weight"):
            assert f"tensor {name} has shape none, expected" in missing
            assert f"tensor {name} has shape {(*tensor.shape, 1)}, expected" in misshapen
        else:  # those that tell the shape
            assert f"tensor {name}" in missing
            assert f"tensor {name}" in misshapen


def test_extra_and_inconsistent_tensors(tmp_path):
    state = official_state(1, blocks=1)
    assert "tensor shared.weight has shape (2,), expected none" in refusal(
        {**state, "shared.weight": torch.ones(2)}, tmp_path
    )
    assert "tensor blocks.0.0.bn1.bias.weight has shape (10, 4), expected (11, 4)" in refusal(
        {**state, "blocks.0.0.bn1.gain.weight": torch.ones(11, 4)}, tmp_path
    )
    gap = {k.replace("blocks.0", "blocks.1"): t for k, t in official_state(1, blocks=1).items()}
    assert "blocks.0.0.bn1.gain.weight" in refusal(gap, tmp_path)
    assert "2 colour channels" in refusal(
        {**state, "output_layer.2.weight": torch.ones(2, 4, 3, 3)}, tmp_path
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["linear.weight", "blocks.0.0.bn2.stored_var"])
def test_numbers_that_are_not_finite(tmp_path, name, value):
    state = official_state(1, blocks=1)
    state[name].view(-1)[-1] = value
    assert f"tensor {name} holds numbers that are not finite" in refusal(state, tmp_path)


def test_a_false_shape_costs_no_memory(tmp_path):
    state = official_state(1, blocks=1)
    state["blocks.0.0.bn1.gain.weight"] = torch.ones(1, 4_000_000)  # 10^14 numbers in conv1
    assert "expected" in refusal(state, tmp_path)


@pytest.mark.parametrize("content", [[torch.ones(1)], {"step": 3}, torch.ones(2), None])
def test_what_is_no_state_dict(tmp_path, content):
    assert "not a state dict of tensors" in refusal(content, tmp_path)
    assert "not a BigGAN state dict" in refusal({}, tmp_path)


def test_code_in_a_file_is_refused_and_not_run(tmp_path):
    mark = tmp_path / "executed"

    class Bomb:
        def __reduce__(self):
            return mark.touch, ()

    state = {**official_state(1, blocks=1), "bomb": Bomb()}
    assert "holds more than tensors" in refusal(state, tmp_path)
    assert not mark.exists()


def test_truncated_files(tmp_path, own):
    path = saved(official_state(1, blocks=1), tmp_path / "g.pth")
    for file in (path, own):
        payload = file.read_bytes()
        for keep in (0, 10, len(payload) // 2, len(payload) - 1):
            file.write_bytes(payload[:keep])
            with pytest.raises(InputError, match=rf"{file.name}: "):
                load_generator(file)


def test_other_files(tmp_path):
    with pytest.raises(
        InputError, match=r"model\.h5: generators are read from .safetensors, .pth"
    ):
        load_generator("model.h5")
    with pytest.raises(InputError, match=r"none\.pth: no such file"):
        load_generator(tmp_path / "none.pth")
    with pytest.raises(InputError, match=r"none\.safetensors: no such file"):
        load_generator(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("name", "reason", "remedy"),
    [
        ("stylegan.pkl", "a pickle runs code when it is loaded", "torch.jit.trace"),
        ("model.onnx", "an ONNX graph has no gradient in its latents", "torch.jit.trace"),
        ("module.pt", "holds more than tensors", "save its state dict alone"),
        ("module.pth", "holds more than tensors", "save its state dict alone"),
    ],
)
def test_formats_that_cannot_be_used_are_refused_with_a_remedy(
    tmp_path, capsys, name, reason, remedy
):
    path = tmp_path / name
    torch.save(torch.nn.Linear(1, 1), path)  # a whole module, pickled; the name decides
    assert main(["run", "digits", "--generator", str(path), "--out", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"itgan: {path}: ")
    assert reason in line
    assert remedy in line
    assert not (tmp_path / "run").exists()
