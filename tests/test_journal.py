import json
import sys

import pytest
from PIL import Image

from itgan.journal import Journal


def scalars(out, tag):
    """What TensorBoard shows: (step, value), steps that were purged left out."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(out / "tensorboard"))
    board.Reload()
    return [(event.step, event.value) for event in board.Scalars(tag)]


def write(out, begun, steps, factor=1.0):
    journal = Journal(out, begun)
    for step in steps:
        journal.numbers(step, {"loss": factor * step}, {"seconds": 0.12345})
        journal.picture(step, Image.new("L", (4, 4)))
    journal.close()
    return journal


def test_numbers_and_pictures(tmp_path):
    journal = write(tmp_path, 0, (1, 2))
    assert journal.rows() == [
        {"step": 1, "loss": 1.0, "seconds": 0.123},
        {"step": 2, "loss": 2.0, "seconds": 0.123},
    ]
    assert scalars(tmp_path, "loss") == [(1, 1.0), (2, 2.0)]
    assert [p.name for p in sorted((tmp_path / "samples").iterdir())] == [
        "0000001.png",
        "0000002.png",
    ]


def test_after_a_resume_no_step_is_there_twice(tmp_path):
    write(tmp_path, 0, (1, 2, 3, 4))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # killed while it wrote
    write(tmp_path, 2, (3, 4, 5), factor=10.0)
    expected = [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0), (5, 50.0)]
    assert scalars(tmp_path, "loss") == expected
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [(row["step"], row["loss"]) for row in map(json.loads, lines)] == expected


def test_numbers_are_there_before_the_log_is_closed(tmp_path):
    journal = Journal(tmp_path, 0)
    journal.numbers(7, {"loss": 1.0}, {})
    assert scalars(tmp_path, "loss") == [(7, 1.0)]
    journal.close()


def test_without_tensorboard_it_is_said_and_the_rest_is_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # cannot be imported
    journal = write(tmp_path, 0, (1, 2))
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("TensorBoard is not installed: the log goes to metrics.jsonl alone")
    assert len(journal.rows()) == 2
    assert not (tmp_path / "tensorboard").exists()


@pytest.mark.parametrize("begun", [0, 3])
def test_a_log_that_was_begun_without_tensorboard(tmp_path, begun):
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "loss": 1.0, "seconds": 1}\n')
    journal = Journal(tmp_path, begun)
    assert len(journal.rows()) == (begun == 3)
    journal.close()
