"""Class names that a terminal would obey are shown letter for letter; Markdown and pages are in the report's tests."""

import io

from PIL import Image
from rich.console import Console

from edgekiln.pipeline.cli.running import RunWish, print_report
from edgekiln.pipeline.workspace.progress import LineProgress, TerminalProgress
from edgekiln.runtime.errors import as_printable

NAMES = ("a|b", "*x*", "<b>", "[bold]", "[red]x", "abc\u202edcba", "عربى", "日本")
OBEYED = {"\x1b", "\u202e", "\r", "\x07"}


def test_what_turns_or_moves_is_an_escape_and_letters_stay():
    assert as_printable("\x1b[31mred\x07\r\n") == r"\x1b[31mred\x07\r\n"
    assert as_printable("a\u202eb\u2066c\u200fd\u2028e") == r"a\u202eb\u2066c\u200fd\u2028e"
    assert as_printable("عربى 日本 é [red] <b>") == "عربى 日本 é [red] <b>"
    assert as_printable("a\udcffb") == "a\ufffdb"


def test_init_shows_folders_as_they_are_called(edgekiln, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for shade, name in enumerate(NAMES):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(5):
            Image.new("RGB", (32, 32), (shade, i, 9)).save(tmp_path / "photos" / name / f"{i}.png")
    code, out, _ = edgekiln("init", "photos")
    assert code == 0
    assert not OBEYED & set(out)
    shown = [line.split()[0] for line in out.splitlines()[1 : len(NAMES) + 1]]
    assert sorted(shown) == sorted(as_printable(name) for name in NAMES)
    assert r"abc\u202edcba" in out.split("Under 10 pictures: ")[1]  # also in a warning


def test_a_report_of_others_moves_no_terminal(tiny_run, capsys):
    result = tiny_run[2]
    report = {**result.report, "notices": ["\x1b[2J3 pictures of 'abc\u202edcba'\r", "[red]x[/nothing]"]}
    print_report(report, result.bundle, RunWish((), result.bundle, (), False, False, False))
    out = capsys.readouterr().out
    assert not OBEYED & set(out)
    assert out.splitlines()[:2] == [r"\x1b[2J3 pictures of 'abc\u202edcba'\r", "[red]x[/nothing]"]


def test_progress_takes_no_name_for_markup(capsys):
    progress = TerminalProgress()
    with progress.stage("[red]x[/nothing]"):
        progress.advance(1, 2, "[bold]y[/nothing]")
        live = Console(file=io.StringIO(), width=200)
        live.print(progress._bar.get_renderable())
    assert "[red]x[/nothing]" in live.file.getvalue()
    assert "[bold]y[/nothing]" in live.file.getvalue()
    for teller in (progress, LineProgress()):
        teller.message("[red]x[/nothing] \x1b[31m\u202e")
        assert capsys.readouterr().err.splitlines()[-1] == r"[red]x[/nothing] \x1b[31m\u202e"
