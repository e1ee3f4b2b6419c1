import io

import pytest

from itgan import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def on_stderr(monkeypatch, stream):
    monkeypatch.setattr(progress.sys, "stderr", stream)
    return stream


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_every_step_is_yielded_once(monkeypatch, stream):
    on_stderr(monkeypatch, stream())
    assert list(progress.track(range(3, 9), "loop")) == list(range(3, 9))
    assert list(progress.track(range(5, 5), "nothing left")) == []


def test_a_short_loop_is_silent_without_a_terminal(monkeypatch):
    stream = on_stderr(monkeypatch, io.StringIO())
    list(progress.track(range(1000), "loop"))
    assert stream.getvalue() == ""


def test_lines_tell_what_is_done_and_left(monkeypatch):
    stream = on_stderr(monkeypatch, io.StringIO())
    clock = iter(range(0, 1000, 5))  # a step takes five seconds, a line comes every ten
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    list(progress.track(range(4, 10), "loop"))  # resumed: four of ten are done
    assert stream.getvalue().splitlines() == [
        "loop: 6/10, 20 s left",
        "loop: 8/10, 10 s left",
        "loop: 10/10, 0 s left",
    ]


def test_a_terminal_gets_a_bar_that_counts_from_where_it_resumed(monkeypatch):
    stream = on_stderr(monkeypatch, Terminal())
    for _ in progress.track(range(4, 5), "loop"):
        pass
    assert "loop" in stream.getvalue()
    assert "4/5" in stream.getvalue()


def test_the_loop_may_be_left_early(monkeypatch):
    stream = on_stderr(monkeypatch, Terminal())
    for _ in progress.track(range(5), "loop"):
        break
    assert "\x1b[?25h" in stream.getvalue()  # the cursor is shown again


def test_say_writes_a_line(monkeypatch):
    stream = on_stderr(monkeypatch, io.StringIO())
    progress.say("done")
    assert stream.getvalue() == "done\n"
