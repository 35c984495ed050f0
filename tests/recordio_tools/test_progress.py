"""Progress callback: counts under a label; bars on a terminal only."""

import io
import sys

from recordio_tools.progress import no_progress, progress_bars, relabel, track


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def test_track_reports_an_item_once_the_caller_has_finished_with_it():
    reports = []
    for item in track("ab", "reading", 2, lambda *report: reports.append(report)):
        assert len(reports) == "ab".index(item)
    assert reports == [("reading", 1, 2), ("reading", 2, 2)]


def test_relabel_replaces_the_label():
    reports = []
    relabel(lambda *report: reports.append(report), "model A")("searching", 3, 7)
    assert reports == [("model A", 3, 7)]


def test_bars_are_drawn_on_a_terminal_only(monkeypatch):
    for stream, enabled in ((io.StringIO(), True), (Terminal(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        with progress_bars(enabled) as progress:
            assert progress is no_progress
        assert stream.getvalue() == ""
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with progress_bars() as progress:
        for done in range(1, 101):
            progress("reading [headers]", done, 100)
    assert "reading [headers]" in sys.stderr.getvalue()
    assert "100/100" in sys.stderr.getvalue()
