"""The output of several tasks on one terminal: whose line it is, in the order of time, no task's own order changed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from danlu.cli.lines import LogLines, Prefixes, Screen
from danlu.client.logs import in_time, lines
from danlu.domain.views import LogChunk, LogPage


def page(**chunks: str) -> LogPage:
    """Returns a page; ``worker_1`` is the chunk of worker-1."""
    made = (LogChunk(attempt=1, task=name.replace("_", "-"), data=data) for name, data in chunks.items())
    return LogPage(chunks=tuple(made), cursor="c", done=False)


def shown(made: LogLines, *pages: LogPage) -> tuple[str, str]:
    pieces = [piece for each in pages for piece in made.take(each)] + made.end()
    return tuple("".join(text for name, text in pieces if name == wanted) for wanted in ("out", "err"))  # type: ignore[return-value]


def plain(*names: str) -> LogLines:
    return LogLines(Screen("out"), Screen("err"), prefixes=Prefixes(names))


def test_lines_of_tasks_are_aligned_and_in_time() -> None:
    out, err = shown(
        plain("ps-0", "worker-1"),
        page(ps_0="1 o. a\n4 o. d\n5 e. oops\n", worker_1="2 o. b\n3 o. c\n3 o. cc\n9 r. cut\n"),
    )
    assert out == "ps-0     | a\nworker-1 | b\nworker-1 | c\nworker-1 | cc\nps-0     | d\n"
    assert err == "ps-0     | oops\nworker-1 | danlu: cut\n"


def test_pieces_of_two_tasks_do_not_run_into_each_other() -> None:
    out, _ = shown(plain("w-0", "w-1"), page(w_0="1 o+ ab\n", w_1="2 o+ xy\n"), page(w_0="3 o. cd\n", w_1="4 o. z\n"))
    assert out == "w-0 | ab\nw-1 | xy\nw-0 | cd\nw-1 | z\n"


def test_a_terminal_shows_colours_that_count_for_nothing() -> None:
    screen = Screen("out", moving=True, colour=True, columns=20)
    made = LogLines(screen, screen, prefixes=Prefixes(["w-0", "w-1"]))
    out, _ = shown(made, page(w_0="1 o~ " + "x" * 50 + "\n", w_1="2 o. b\n"))
    assert out == "\x1b[36mw-0 |\x1b[0m " + "x" * 13 + "\x1b[K\r\x1b[K\x1b[32mw-1 |\x1b[0m b\n"


TIMES = st.lists(st.integers(0, 20), max_size=30)


@given(st.lists(TIMES, min_size=1, max_size=4), st.booleans())
def test_no_line_is_lost_and_no_stream_reordered(streams: list[list[int]], tampered: bool) -> None:
    """Also where times go back, which only a program that writes the spool itself brings about."""
    chunks = {}
    for place, times in enumerate(streams):
        ordered = times if tampered else sorted(times)
        chunks[f"w_{place}"] = "".join(f"{at} o. {place}:{number}:{at}\n" for number, at in enumerate(ordered))
    made = page(**{name: data for name, data in chunks.items() if data})
    merged = [line for chunk in in_time(made) for line in chunk.data.splitlines()]
    for place in range(len(streams)):
        own = [line for line in merged if line.split()[2].startswith(f"{place}:")]
        assert own == chunks[f"w_{place}"].splitlines()
    if not tampered:
        assert [int(line.split()[0]) for line in merged] == sorted(int(line.split()[0]) for line in merged)


def test_whole_lines_for_programs() -> None:
    found = list(
        lines(
            [
                page(main_0="1 o. a\n2 o+ b\n2 e. err\n3 o~ 10%\n"),
                page(main_0="4 o. c\n5 e~ 1%\n6 e~ 2%\n7 r. cut\n8 o. \n"),
            ]
        )
    )
    assert found == ["a", "err", "bc", "cut", "", "2%"]
    assert [line.stream for line in found] == ["stdout", "stderr", "stdout", "danlu", "stdout", "stderr"]
    assert (found[1].task, found[1].attempt, found[1].time_ns) == ("main-0", 1, 2)
