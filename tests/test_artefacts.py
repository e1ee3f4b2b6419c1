import contextlib
import fcntl
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from itgan import artefacts
from itgan.artefacts import Checkpoint
from itgan.embedding import SnapshotPool, load_network
from itgan.errors import InputError
from itgan.generators import load_generator
from itgan.latents import LatentBank, sample_latents
from itgan.sources import SyntheticSet

TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).reshape(2, 3) - 2.5,
    "b": torch.tensor([1, 255], dtype=torch.uint8),
    "scalar": torch.tensor(7, dtype=torch.int64),
    "empty": torch.empty(0, 3),
}


def flip_byte(path: Path, offset: int) -> None:
    payload = bytearray(path.read_bytes())
    payload[offset] ^= 1
    path.write_bytes(payload)


# --- hashes -------------------------------------------------------------------------------------


def test_digest_sees_names_types_shapes_and_bytes_but_not_order():
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    same = [
        {"x": x, "y": x + 1},
        {"y": x + 1, "x": x},
        {"x": x.clone().requires_grad_(), "y": x + 1},
        {"x": x.t().contiguous().t(), "y": x + 1},  # other strides, same numbers
    ]
    assert len({artefacts.digest(tensors) for tensors in same}) == 1
    different = [
        {"x": x},
        {"z": x},
        {"x": x.t()},
        {"x": x.flatten()},
        {"x": x.double()},
        {"x": x.view(torch.int32)},
        {"x": x.nextafter(torch.tensor(9.0))},
        {},
    ]
    assert len({artefacts.digest(tensors) for tensors in different}) == len(different)


@given(st.dictionaries(st.text(max_size=4), st.integers(), max_size=5))
def test_json_digest_ignores_the_order_of_keys(value):
    backwards = dict(reversed(value.items()))
    assert artefacts.json_digest(value) == artefacts.json_digest(backwards)
    assert artefacts.json_digest(value) != artefacts.json_digest([value])


# --- files --------------------------------------------------------------------------------------


def test_tensors_and_metadata_come_back_bit_for_bit(tmp_path):
    metadata = {"kind": "thing", "names": ["ä", "\n"], "numbers": {"x": 0.1}, "none": None}
    artefacts.save(tmp_path / "new" / "a.safetensors", TENSORS, metadata)
    tensors, found = artefacts.load(tmp_path / "new" / "a.safetensors", "thing")
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)
    assert metadata.items() <= found.items()
    assert found["format_version"] == artefacts.FORMAT_VERSION
    assert found["sha256"] == artefacts.digest(TENSORS)
    assert artefacts.read_metadata(tmp_path / "new" / "a.safetensors") == found


def test_equal_input_gives_equal_bytes(tmp_path):
    artefacts.save(tmp_path / "a", TENSORS, {"kind": "k", "x": 1})
    artefacts.save(tmp_path / "b", dict(reversed(TENSORS.items())), {"x": 1, "kind": "k"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_any_strides_can_be_saved(tmp_path):
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    views = {
        "channels_last": x.to(memory_format=torch.channels_last),
        "transposed": x.transpose(0, 3),
        "expanded": x[:, :1].expand(2, 3, 4, 4),
        "slice": x[:, 1],
    }
    artefacts.save(tmp_path / "a", views, {"kind": "k"})
    tensors, _ = artefacts.load(tmp_path / "a")
    assert all(torch.equal(tensors[name], views[name]) for name in views)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    artefacts.save(path, TENSORS, {"kind": "old"})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        artefacts.save(path, TENSORS, {"kind": "new"})
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
    assert artefacts.read_metadata(path)["kind"] == "old"


def test_a_flipped_byte_is_named_with_the_hash(tmp_path):
    path = tmp_path / "weights.safetensors"
    artefacts.save(path, TENSORS, {"kind": "k"})
    flip_byte(path, -1)
    with pytest.raises(InputError) as error:
        artefacts.load(path)
    assert str(error.value).startswith(f"{path}: damaged")
    assert artefacts.digest(TENSORS)[:16] in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_file_is_named(tmp_path, keep):
    path = tmp_path / "weights.safetensors"
    artefacts.save(path, TENSORS, {"kind": "k"})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"weights\.safetensors: not a readable safetensors file"):
        artefacts.load(path)


def test_what_is_not_ours_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(InputError, match=r"x\.safetensors: no such file"):
        artefacts.load(path)
    with pytest.raises(InputError, match="no such file"):
        artefacts.load(tmp_path)  # a directory
    safetensors.torch.save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="not one that itgan wrote"):
        artefacts.load(path)
    artefacts.save(path, {}, {"kind": "bank"})
    with pytest.raises(InputError, match="holds a 'bank', expected a 'generator'"):
        artefacts.load(path, "generator")


def test_a_newer_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(artefacts, "FORMAT_VERSION", 3)
    artefacts.save(tmp_path / "a", {}, {"kind": "k"})
    monkeypatch.undo()
    with pytest.raises(InputError, match="written in format 3, this itgan reads up to 2; upgrade"):
        artefacts.load(tmp_path / "a")


FIXTURES = Path(__file__).parent / "fixtures"  # written by format 1


def test_files_of_format_1_are_read():
    bank = LatentBank.load(FIXTURES / "bank-1.safetensors")
    assert bank.stage == "random"
    assert bank.labels.tolist() == list(range(10))
    assert bank.provenance["seed"] == 0
    _, metadata = artefacts.load(FIXTURES / "bank-1.safetensors", "bank")
    assert (metadata["format_version"], metadata["value_range"]) == (1, [-1, 1])
    made = SyntheticSet.load(FIXTURES / "set-1.itgan.safetensors")
    assert made.about["dataset"] == "digits"
    rounded = made.bank.provenance  # the file is fp16
    assert rounded["generator"] == made.generator.fingerprint
    assert rounded["moved_from"] == bank.provenance["generator"]
    torch.testing.assert_close(made.bank.latents, bank.latents, rtol=1e-3, atol=1e-3)


def test_every_older_format_has_its_migration(tmp_path):
    assert set(artefacts.MIGRATIONS) == set(range(1, artefacts.FORMAT_VERSION))
    tensors, metadata = artefacts.load(FIXTURES / "set-1.itgan.safetensors")
    without = {k: v for k, v in metadata.items() if k != "conventions"}  # before TorchScript
    payload = safetensors.torch.save(tensors, {"itgan": json.dumps(without)})
    (tmp_path / "x.safetensors").write_bytes(payload)
    assert artefacts.read_metadata(tmp_path / "x.safetensors")["conventions"] == {"form": "biggan"}
    assert len(SyntheticSet.load(tmp_path / "x.safetensors")) == 10


def test_files_of_today_have_what_a_reader_needs(generator, images, tmp_path):
    bank = sample_latents(generator, images, seed=4)
    bank.save(tmp_path / "b.safetensors")
    metadata = artefacts.read_metadata(tmp_path / "b.safetensors")
    names = [str(digit) for digit in range(10)]
    assert (metadata["format_version"], metadata["stage"]) == (2, "random")
    assert metadata["value_range"] == [-1, 1]
    assert metadata["provenance"] == {
        "generator": generator.fingerprint,
        "seed": 4,
        "dataset": "digits",
        "class_names": names,
    }
    SyntheticSet(generator, bank).save(tmp_path / "s.safetensors")
    about = SyntheticSet.load(tmp_path / "s.safetensors").about
    assert about == {"dataset": "digits", "class_names": names}


@pytest.mark.parametrize("change", [{"kind": "other"}, {"added": 1}, {"x": [1, 2.5]}, {"x": None}])
def test_changed_metadata_are_named(tmp_path, change):
    path = tmp_path / "a.safetensors"
    artefacts.save(path, TENSORS, {"kind": "k", "x": [1, 2]})
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = json.loads(file.metadata()["itgan"])
    path.write_bytes(safetensors.torch.save(TENSORS, {"itgan": json.dumps(metadata)}))
    artefacts.load(path)
    for damaged in ({**metadata, **change}, {**metadata, "metadata_sha256": None}):
        path.write_bytes(safetensors.torch.save(TENSORS, {"itgan": json.dumps(damaged)}))
        for read in (artefacts.load, artefacts.read_metadata):
            with pytest.raises(InputError, match="damaged: its metadata do not have the recorded"):
                read(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
READERS = {
    "bank": LatentBank.load,
    "synthetic": SyntheticSet.load,
    "network": load_network,
    "pool": SnapshotPool.load,
    "generator": load_generator,
    "checkpoint": lambda path: Checkpoint(path, "mine").load(),
}
KEYS = ["stage", "history", "provenance", "dtype", "conventions", "about", "spec", "identity"]
NAMES = ["latents", "labels", "rows", "latents.step", "accuracies", "held_out", "weights.a"]
SHAPES = st.lists(st.integers(0, 3), max_size=3)
DTYPES = st.sampled_from([torch.float32, torch.float16, torch.int64, torch.uint8, torch.bool])


@given(
    kind=st.sampled_from(sorted(READERS)),
    metadata=st.dictionaries(st.sampled_from([*KEYS, "step"]), JSON),
    shapes=st.dictionaries(st.sampled_from(NAMES), st.tuples(SHAPES, DTYPES)),
)
@settings(deadline=None, max_examples=200)
def test_any_metadata_with_any_tensors_are_read_or_refused(
    tmp_path_factory, kind, metadata, shapes
):
    path = tmp_path_factory.mktemp("any") / "x.safetensors"
    tensors = {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in shapes.items()}
    artefacts.save(path, tensors, {**metadata, "kind": kind})
    with contextlib.suppress(InputError):
        READERS[kind](path)


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_any_header_is_read_or_refused(tmp_path_factory, header):
    path = tmp_path_factory.mktemp("any") / "x.safetensors"
    for content in (header, len(header).to_bytes(8, "little") + header):
        path.write_bytes(content)
        with pytest.raises(InputError):
            artefacts.load(path)


def test_json_round_trip_and_refusal(tmp_path):
    artefacts.write_json(tmp_path / "a.json", {"x": [1, None, "ä"]})
    assert artefacts.read_json(tmp_path / "a.json") == {"x": [1, None, "ä"]}
    for damaged in (b"", b'{"x": ', b"\xff\xfe"):
        (tmp_path / "a.json").write_bytes(damaged)
        with pytest.raises(InputError, match=r"a\.json: not a readable JSON file"):
            artefacts.read_json(tmp_path / "a.json")


# --- foreign files ------------------------------------------------------------------------------


class Bomb:
    """Unpickling this would create a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, zipped):
    mark, path = tmp_path / "executed", tmp_path / "evil.pth"
    bomb = {"weight": torch.zeros(1), "bomb": Bomb(mark)}
    torch.save(bomb, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"evil\.pth: holds more than tensors"):
        artefacts.load_foreign(path)
    path.write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(InputError, match=r"evil\.pth"):
        artefacts.load_foreign(path)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Bomb(mark)))
    assert mark.exists(), "the bomb is real"


def test_tensors_and_plain_containers_are_read(tmp_path):
    content = {"z": [torch.ones(2), torch.zeros(1)], "i": [[1, 2]], "step": 3}
    torch.save(content, tmp_path / "a.pt")
    found = artefacts.load_foreign(tmp_path / "a.pt")
    assert torch.equal(found["z"][0], torch.ones(2))
    assert (found["i"], found["step"]) == ([[1, 2]], 3)


@pytest.mark.parametrize("keep", [0, 1, 100, -30])
def test_truncated_foreign_files_are_named(tmp_path, keep):
    torch.save({"a": torch.zeros(100)}, tmp_path / "a.pth")
    payload = (tmp_path / "a.pth").read_bytes()
    (tmp_path / "a.pth").write_bytes(payload[:keep])
    with pytest.raises(InputError, match=r"a\.pth: "):
        artefacts.load_foreign(tmp_path / "a.pth")


def test_other_foreign_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"a\.pth: no such file"):
        artefacts.load_foreign(tmp_path / "a.pth")
    (tmp_path / "a.pth").write_text("<html>404 Not Found</html>")
    with pytest.raises(InputError, match=r"a\.pth: "):
        artefacts.load_foreign(tmp_path / "a.pth")
    torch.save({"a": np.zeros(3)}, tmp_path / "a.pth")  # needs code to be rebuilt
    with pytest.raises(InputError, match=r"a\.pth: holds more than tensors"):
        artefacts.load_foreign(tmp_path / "a.pth")


# --- checkpoints --------------------------------------------------------------------------------


def test_a_checkpoint_comes_back_for_the_same_identity_only(tmp_path):
    path = tmp_path / "c.safetensors"
    checkpoint = Checkpoint(path, "mine")
    assert checkpoint.load() is None
    assert checkpoint.offer(3, lambda: TENSORS, force=True)
    tensors, metadata = Checkpoint(path, "mine").load()
    assert torch.equal(tensors["a"], TENSORS["a"])
    assert metadata["step"] == 3
    with pytest.raises(InputError, match="belongs to another configuration; give another --out"):
        Checkpoint(path, "yours").load()
    checkpoint.clear()
    assert checkpoint.load() is None
    checkpoint.clear()


def test_a_checkpoint_waits_its_interval(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(artefacts.time, "monotonic", lambda: clock[0])
    checkpoint = Checkpoint(tmp_path / "c", "mine", every_seconds=60.0)
    gathered = []

    def state():
        gathered.append(clock[0])
        return TENSORS

    saved = []
    for clock[0] in (1.0, 59.0, 60.0, 119.0, 120.0):
        saved.append(checkpoint.offer(int(clock[0]), state))
    assert saved == [False, False, True, False, True]
    assert gathered == [60.0, 120.0]  # only when it is saved
    assert checkpoint.load()[1]["step"] == 120


# --- logs ---------------------------------------------------------------------------------------


def test_a_torn_line_is_ended_and_left_out(tmp_path):
    log = tmp_path / "new" / "log.jsonl"
    assert artefacts.read_jsonl(log) == []
    artefacts.append_jsonl(log, {"i": 0})
    with log.open("a") as file:
        file.write('{"i": 1, "x"')  # killed here
    artefacts.append_jsonl(log, {"i": 2})
    assert artefacts.read_jsonl(log) == [{"i": 0}, {"i": 2}]
    assert log.read_text().count("\n") == 3


def test_a_log_torn_at_any_byte_of_its_last_line_keeps_the_others(tmp_path):
    log = tmp_path / "log.jsonl"
    rows = [{"row": i, "name": "é\n", "loss": 0.25, "list": [1, {}]} for i in range(3)]
    for row in rows:
        artefacts.append_jsonl(log, row)
    whole = log.read_bytes()
    last = whole.rstrip(b"\n").rindex(b"\n") + 1
    for cut in range(last, len(whole) + 1):
        log.write_bytes(whole[:cut])
        kept = rows if cut >= len(whole) - 1 else rows[:2]
        assert artefacts.read_jsonl(log) == kept
        artefacts.append_jsonl(log, {"row": "next"})
        assert artefacts.read_jsonl(log) == [*kept, {"row": "next"}]
        assert whole[:cut] in log.read_bytes()


@pytest.mark.parametrize("garbage", [b"\0\0\0", b"\xff\xfe{", b"{" * 9, b"nul", b"\n\n"])
def test_what_a_crash_of_the_machine_leaves_is_left_out(tmp_path, garbage):
    log = tmp_path / "log.jsonl"
    artefacts.append_jsonl(log, {"row": 0})
    with log.open("ab") as file:
        file.write(garbage)
    artefacts.append_jsonl(log, {"row": 1})
    assert artefacts.read_jsonl(log) == [{"row": 0}, {"row": 1}]


# --- what killed processes leave --------------------------------------------------------------


def dead_process() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_what_a_dead_process_was_writing_is_removed_and_nothing_else(tmp_path):
    dead = dead_process()
    left = [f".report.html.{dead}.itgan", f".a b.json.{dead}.itgan"]
    living = [f".report.html.{os.getpid()}.itgan", ".mine.1.itgan"]  # process 1 lives always
    others = [".lock", ".hidden", f"report.{dead}.itgan", f".name.{dead}x.itgan", ".name.².itgan"]
    others += [f".notes.{dead}", ".libx.so.99999999", ".itgan", "..itgan"]  # a user's own
    for name in (*left, *living, *others):
        (tmp_path / name).write_text("x")
    (tmp_path / f".folder.{dead}.itgan").mkdir()
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / left[0]).write_text("x")
    artefacts.sweep(tmp_path)
    there = {path.name for path in tmp_path.iterdir()}
    assert there == {*living, *others, f".folder.{dead}.itgan", "deeper"}
    assert (tmp_path / "deeper" / left[0]).exists()
    artefacts.sweep(tmp_path / "nowhere")


def test_what_is_locked_is_being_written_by_another_machine(tmp_path):
    beside = tmp_path / f".bank.{dead_process()}.itgan"
    with beside.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        artefacts.sweep(tmp_path)
        assert beside.exists()
    artefacts.sweep(tmp_path)
    assert not beside.exists()


def test_who_locks_a_directory_sweeps_it(tmp_path):
    beside = tmp_path / f".generator.safetensors.{dead_process()}.itgan"
    beside.write_text("x")
    with artefacts.locked(tmp_path):
        assert not beside.exists()


def test_a_file_being_written_is_locked_flushed_and_then_named(tmp_path, monkeypatch):
    path, done = tmp_path / "a.json", []

    def spy(descriptor):
        name = Path(f"/proc/self/fd/{descriptor}").resolve().name
        done.append((name, path.exists()))
        artefacts.sweep(tmp_path)
        fsync(descriptor)

    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", spy)
    monkeypatch.setattr(artefacts, "_lives", lambda process: False)
    artefacts.write_json(path, {})
    assert done == [(f".a.json.{os.getpid()}.itgan", False), (tmp_path.name, True)]
    assert artefacts.read_json(path) == {}


# --- locks --------------------------------------------------------------------------------------


def test_a_locked_directory_is_refused_until_it_is_free(tmp_path):
    out = tmp_path / "run"
    with (
        artefacts.locked(out),
        pytest.raises(InputError, match="run: another process is working in this directory"),
        artefacts.locked(out),
    ):
        pytest.fail("two owners")
    with artefacts.locked(out):
        pass


def test_the_lock_of_a_dead_process_is_free(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from itgan import artefacts\n"
        "lock = artefacts.locked(Path(sys.argv[1])); lock.__enter__(); os._exit(9)"
    )
    died = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert died.returncode == 9
    with artefacts.locked(tmp_path):
        pass


def test_an_entry_that_is_marked_as_a_folder_is_refused(tmp_path):
    """PyTorch would give whatever lies in memory."""
    path = tmp_path / "x.pt"
    torch.save({"x": torch.ones(40)}, path)
    content = bytearray(path.read_bytes())
    directory = content.index(b"PK\x01\x02")
    entry = content.index(b"x/data/0", directory)
    content[entry - 8] |= 0x10
    path.write_bytes(content)
    with pytest.raises(InputError, match="x/data/0 is a folder"):
        artefacts.load_foreign(path)
