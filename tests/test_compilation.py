"""Compiled networks compute what they compute uncompiled, whatever weights and batch they get."""

import os
import shutil
import subprocess
import sys

import pytest
import torch

from itgan import compilation
from itgan.compilation import embed, logits
from itgan.networks import build_network

# In a process of its own: the suite's checks of types and warnings do not pass a compiler.
PARITY = """
import torch
import torch._dynamo.testing
from itgan import compilation
from itgan.augment import draw_augmentation
from itgan.networks import build_network
from itgan.randomness import derive

counter = torch._dynamo.testing.CompileCounterWithBackend("inductor")
forms = (compilation._embed, compilation._embed_blocks)
compilation._compile = {form: torch.compile(form, backend=counter) for form in forms}.__getitem__
draw = draw_augmentation(derive(1), "crop")
for seed, n, layers in (
    *((0, 6, "last"), (1, 6, "last"), (2, 9, "last"), (3, 2, "last")),
    *((0, 6, "all"), (1, 9, "all")),
):
    network = build_network("convnet", (3, 8, 8), 4, seed=seed, depth=2).requires_grad_(False)
    x = (torch.rand(n, 3, 8, 8, generator=derive(0, "x", n)) * 2 - 1).requires_grad_(True)
    fast, plain = (compilation.embed(network, x, draw, layers, compiled=c) for c in (True, False))
    torch.testing.assert_close(fast, plain, atol=1e-5, rtol=1e-4)
    gradients = [torch.autograd.grad(f.square().sum(), x)[0] for f in (fast, plain)]
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-3)
    with torch.no_grad():
        assert torch.equal(compilation.embed(network, x, draw, layers, compiled=True), fast)
print(counter.frame_count)
"""

TUNED = """
import torch
import torch._dynamo.testing
from itgan import compilation
from itgan.gains import Gains
from itgan.generators import FrozenGenerator
from itgan.generators.biggan import BigGAN, BigGANShape

counter = torch._dynamo.testing.CompileCounterWithBackend("inductor")
form = torch.compile(compilation._generate, backend=counter)
compilation._compile = lambda function: form
torch.manual_seed(0)
generator = FrozenGenerator.from_biggan(BigGAN(BigGANShape(2, 3, (1, 8, 8), 4)).eval())
gains = Gains(generator, 0.1)
z, labels = torch.randn(5, 4, requires_grad=True), torch.tensor([0, 1, 2, 1, 0])
leaves = [z, *gains.tables.values()]
found = []
for compiled in (True, False):
    images = compilation.generate(gains.generator, z, labels, compiled=compiled)
    found.append([images, *torch.autograd.grad(images.square().sum(), leaves)])
torch.testing.assert_close(*found, atol=1e-5, rtol=1e-4)
print(counter.frame_count)
"""

TRAINED = """
import torch
import torch._dynamo.testing
from itgan import compilation
from itgan.configs import EvaluationConfig
from itgan.networks import build_network
from itgan.sources import PixelSet
from itgan.training import train_classifier

counter = torch._dynamo.testing.CompileCounterWithBackend("inductor")
form = torch.compile(compilation._logits, backend=counter)
compilation._compile = lambda function: form
rng = torch.Generator().manual_seed(0)
pixels = torch.randint(256, (14, 3, 8, 8), generator=rng, dtype=torch.uint8)
source = PixelSet(pixels, torch.randint(4, (14,), generator=rng))
found = []
for compiled in (True, False):
    network = build_network("convnet", (3, 8, 8), 4, seed=0, depth=2)
    train_classifier(
        network, source, EvaluationConfig(updates=6, batch_size=5, compile=compiled), 0
    )
    found.append(list(network.parameters()))
before = build_network("convnet", (3, 8, 8), 4, seed=0, depth=2).parameters()
assert all(not torch.equal(a, b) for a, b in zip(before, found[0], strict=True))
torch.testing.assert_close(*found, atol=1e-5, rtol=1e-4)
print(counter.frame_count)
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize(
    ("script", "forms"),
    [
        (PARITY, 4),  # of last and of all layers, with a graph and without
        (TUNED, 1),
        (TRAINED, 1),
    ],
    ids=["fresh weights and every batch", "tuned class gains", "trained classifiers"],
)
def test_compiled_forms_compute_the_same(script, forms):
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(forms)


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_where_compiling_fails_networks_run_as_written(tmp_path):
    """Forwards and backwards, and a single line tells of it."""
    program = TRAINED.partition("counter = ")[0] + (
        """
found = []
for compiled in (True, False):
    network = build_network("convnet", (3, 8, 8), 4, seed=0, depth=2)
    source = PixelSet(torch.arange(5 * 192).reshape(5, 3, 8, 8).byte(), torch.arange(5) % 4)
    config = EvaluationConfig(updates=2, batch_size=5, compile=compiled)
    train_classifier(network, source, config, 0)
    found.append(list(network.parameters()))
assert all(map(torch.equal, *found))
"""
    )
    (tmp_path / "g++").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "g++").chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "TORCHINDUCTOR_CACHE_DIR": f"{tmp_path}/cache",
    }
    for name in ("CXX", "TORCH_LOGS"):
        environment.pop(name, None)
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert result.returncode == 0, result.stderr
    told = "what cannot be compiled runs as it is written, slower; TORCH_LOGS=+dynamo tells why"
    assert result.stderr.splitlines() == [told]


def test_without_a_compiler_networks_run_as_written(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(compilation, "_compile", lambda function: pytest.fail("compiles"))
    compilation._can_compile.cache_clear()
    network, x = build_network("convnet", (3, 8, 8), 4, seed=0), torch.rand(3, 3, 8, 8)
    assert torch.equal(embed(network, x, compiled=True), network.embed(x))
    assert torch.equal(logits(network, x, compiled=True), network.logits(x))
    compilation._can_compile.cache_clear()
