"""``predict``: where pictures come from, and the forms of the answers."""

import csv
import io
import json
import os
import select
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from edgekiln.pipeline.cli.picture_sources import PictureSearch

COMMAND = [sys.executable, "-c", "from edgekiln.pipeline.cli import main; main()", "predict"]


@pytest.fixture(scope="module")
def photos(tiny_run, tmp_path_factory):
    """A folder of pictures at several depths, with a text file, a hidden file and one broken picture."""
    folder = tmp_path_factory.mktemp("photos")
    source = tiny_run[0].parent / "pictures"
    (folder / "deep" / "er").mkdir(parents=True)
    shutil.copy(source / "red" / "001.png", folder / "b-red.png")
    shutil.copy(source / "blue" / "001.png", folder / "A-blue.PNG")
    shutil.copy(source / "green" / "001.png", folder / "deep" / "er" / "green.png")
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.png").write_text("no picture")
    return folder


@pytest.fixture
def broken(photos, tmp_path):
    folder = shutil.copytree(photos, tmp_path / "photos")
    (folder / "c-broken.jpg").write_text("no picture")
    return folder


def predict_in_child(*arguments, stdin=b""):
    done = subprocess.run([*COMMAND, *map(str, arguments)], input=stdin, capture_output=True, check=False)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


# -- sources


def test_a_folder_is_read_at_any_depth_in_order(tiny_run, edgekiln, photos):
    code, out, _ = edgekiln("predict", tiny_run[2].bundle, photos, "--json")
    assert code == 0
    answers = [(a["path"], a["top"][0]["label"]) for a in json.loads(out)["predictions"]]
    assert answers == [
        (f"{photos}/A-blue.PNG", "blue"),
        (f"{photos}/b-red.png", "red"),
        (f"{photos}/deep/er/green.png", "green"),
    ]


def test_a_quoted_glob_is_expanded_and_sorted(tiny_run, edgekiln, photos):
    _, out, _ = edgekiln("predict", tiny_run[2].bundle, f"{photos}/**/*.png", "--format", "csv")
    assert [row.split(",")[1] for row in out.splitlines()] == ["label", "red", "green"]


def test_a_name_with_glob_signs_is_a_name_where_it_exists(tiny_run, edgekiln, photos, tmp_path):
    shutil.copy(photos / "b-red.png", tmp_path / "[1].png")
    code, out, _ = edgekiln("predict", tiny_run[2].bundle, tmp_path / "[1].png")
    assert (code, out.split()[:2]) == (0, [str(tmp_path / "[1].png"), "red"])


def test_bytes_on_standard_input(tiny_run, photos):
    picture = (photos / "b-red.png").read_bytes()
    code, out, err = predict_in_child(tiny_run[2].bundle, "-", "-q", stdin=picture)
    assert (code, out.split()[:2], err) == (0, ["-", "red"], "")
    code, out, err = predict_in_child(tiny_run[2].bundle, "-", "-q", stdin=b"")
    assert (code, out) == (2, "")
    assert "1 of 1 picture could not be read." in err


def test_a_list_of_paths_from_a_file_or_standard_input(tiny_run, edgekiln, photos, tmp_path):
    names = f"{photos}/b-red.png\n\n{photos}/A-blue.PNG\r\n"
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf" + names.encode())
    _, of_file, _ = edgekiln("predict", tiny_run[2].bundle, "--from-file", tmp_path / "list.txt")
    code, of_input, _ = predict_in_child(tiny_run[2].bundle, "--from-file", "-", stdin=names.encode())
    assert code == 0
    assert [line.split()[1] for line in of_file.splitlines()] == ["red", "blue"]
    assert of_input == of_file


def test_file_names_that_are_no_utf8_are_answered(tiny_run, photos, tmp_path):
    odd = os.fsencode(tmp_path) + b"/th\xe9.png"
    shutil.copy(photos / "b-red.png", odd)
    for arguments, stdin in (([tmp_path], b""), (["--from-file", "-"], odd + b"\n")):
        code, out, _ = predict_in_child(tiny_run[2].bundle, *arguments, "--format", "csv", stdin=stdin)
        assert code == 0
        assert out.splitlines()[1].startswith(f"{tmp_path}/th\N{REPLACEMENT CHARACTER}.png,red,")


def test_pictures_are_not_collected(tmp_path):
    (tmp_path / "a.png").touch()
    found = iter(PictureSearch([str(tmp_path), str(tmp_path / "none-*.png")], []))
    assert next(found) == (f"{tmp_path}/a.png", tmp_path / "a.png")  # before the glob was looked at


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (["none*.jpg"], "No file matches 'none*.jpg'. Wanted files that end in .bmp"),
        (["nowhere"], "There is no file nowhere. Check the path."),
        (["empty"], "The folder empty holds no pictures. Wanted files that end in .bmp"),
        (
            ["--from-file", "none.txt"],
            "The list none.txt cannot be read: No such file or directory. Wanted the path",
        ),
    ],
    ids=["glob", "missing", "empty", "list"],
)
@pytest.mark.parametrize("form", ["table", "csv", "jsonl"])
def test_what_leads_to_no_picture_is_a_failure_among_answers(
    tiny_run, edgekiln, broken, monkeypatch, wrong, complaint, form
):
    monkeypatch.chdir(broken)
    (broken / "empty").mkdir()
    arguments = ["c-broken.jpg", *wrong, "b-red.png"]
    code, out, err = edgekiln("predict", tiny_run[2].bundle, *arguments, "--format", form)
    assert code == 2
    assert any("b-red.png" in line and "red" in line.split("b-red.png")[1] for line in out.splitlines())
    assert "unreadable: c-broken.jpg is not a JPEG" in err
    assert f"unreadable: {complaint}" in err
    assert "2 of 3 pictures could not be read. The others are answered." in err
    document = json.loads(edgekiln("predict", tiny_run[2].bundle, *arguments, "--json")[1])
    assert [a["path"] for a in document["predictions"]] == ["b-red.png"]
    assert sorted(f["reason"] for f in document["failures"]) == ["format", "missing"]


def test_a_table_cut_short_keeps_its_rows_and_failures(tiny_run, edgekiln, broken, monkeypatch):
    from edgekiln.runtime.serving.classifier import Classifier

    answer = Classifier.predict

    def predict(self, picture):
        if picture.name == "green.png":
            raise KeyboardInterrupt
        return answer(self, picture)

    monkeypatch.setattr(Classifier, "predict", predict)
    code, out, err = edgekiln("predict", tiny_run[2].bundle, broken)
    assert (code, len(out.splitlines())) == (130, 2)
    assert f"unreadable: {broken}/c-broken.jpg is not" in err


def test_an_unreadable_folder_is_a_failure_among_answers(photos, monkeypatch):
    allowed = os.scandir

    def scan(path):  # whoever runs the tests may be root, whom no permission stops
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return allowed(path)

    monkeypatch.setattr(os, "scandir", scan)
    found = list(PictureSearch([str(photos)], []))
    assert [name for name, _ in found] == [f"{photos}/A-blue.PNG", f"{photos}/b-red.png", f"{photos}/deep"]
    assert (found[-1][1].reason, found[-1][1].message) == (
        "unreadable",
        f"The folder {photos}/deep cannot be read: Permission denied.",
    )


def test_links_to_folders_are_followed_and_not_round_and_round(photos, tmp_path):
    folder = tmp_path / "linked"
    (folder / "here").mkdir(parents=True)
    (folder / "class").symlink_to(photos / "deep")
    (folder / "here" / "up").symlink_to(folder)
    (folder / "here" / "self").symlink_to("self")
    shutil.copy(photos / "b-red.png", folder / "here" / "a.png")
    names = [name for name, _ in PictureSearch([str(folder)], [])]
    assert names == [f"{folder}/class/er/green.png", f"{folder}/here/a.png"]


def test_files_with_another_ending_are_counted(tiny_run, edgekiln, photos, tmp_path):
    shutil.copy(photos / "b-red.png", tmp_path / "a.png")
    for name in ("b.HEIC", "c.tiff", "d.gif", "e.gif", ".hidden.gif"):
        (tmp_path / name).touch()
    code, _, err = edgekiln("predict", tiny_run[2].bundle, tmp_path, "-q")
    assert code == 0
    assert err.startswith(
        "4 files passed over: no picture's ending (.gif, .heic, .tiff). Wanted files that end in"
    )
    document = json.loads(edgekiln("predict", tiny_run[2].bundle, tmp_path, "--json")[1])
    assert document["passed_over"] == {".gif": 2, ".heic": 1, ".tiff": 1}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "No picture was named. Give files, folders, globs, - or --from-file LIST."),
        (
            ["empty"],
            "The folder empty holds no pictures. Wanted files that end in .bmp, .jpeg, .jpg, .png, .webp",
        ),
        (["none-*.png"], "No file matches 'none-*.png'."),
        (["--from-file", "none.txt"], "The list none.txt cannot be read: No such file or directory."),
        (["--from-file", "picture.png"], "picture.png is no list of paths"),
        (["--from-file", "empty.txt"], "The list empty.txt names no picture."),
        (["-", "--from-file", "-"], "Standard input (-) can be read once only."),
        (["x.png", "--format", "yaml"], "'yaml' is not one of 'table', 'csv', 'jsonl'."),
    ],
)
def test_nothing_to_answer_is_an_error(tiny_run, edgekiln, tmp_path, monkeypatch, arguments, complaint):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").touch()
    Image.new("RGB", (9, 9)).save(tmp_path / "picture.png")
    code, out, err = edgekiln("predict", tiny_run[2].bundle, *arguments, "-q")
    assert (code, out) == (2, "")
    assert complaint in err


def test_json_and_format_exclude_each_other(tiny_run, edgekiln, photos):
    code, out, _ = edgekiln("predict", tiny_run[2].bundle, photos, "--json", "--format", "csv")
    assert (code, json.loads(out)["error"]["code"]) == (2, "usage")


# -- forms


def test_the_table_lines_up(tiny_run, edgekiln, photos):
    _, out, err = edgekiln("predict", tiny_run[2].bundle, photos, "--top", "9")
    lines = out.splitlines()
    assert [len(line.split()) for line in lines] == [1 + 2 * 3] * 3  # there are three classes
    assert (
        len({tuple(i for i, sign in enumerate(line) if line.startswith(("0.", "1."), i)) for line in lines})
        == 1
    )
    assert len({len(line) for line in lines}) == 1
    assert "variant int8 (onnxruntime-cpu)" in err


def test_csv_can_be_read_as_csv(tiny_run, edgekiln, photos, tmp_path):
    shutil.copy(photos / "b-red.png", tmp_path / 'a, "b".png')
    code, out, _ = edgekiln("predict", tiny_run[2].bundle, tmp_path, "--format", "csv", "--top", "2")
    [row] = csv.DictReader(io.StringIO(out))
    assert code == 0
    assert list(row) == ["path", "label", "score", "label_2", "score_2"]
    assert row["path"] == str(tmp_path / 'a, "b".png')
    assert row["label"] == "red"
    assert float(row["score"]) > float(row["score_2"]) > 0


def test_control_characters_are_data_in_csv_and_escapes_for_people(tiny_run, photos, tmp_path):
    odd, gone = "esc\x1b[31m\nnew\r.png", tmp_path / "gone\x1b]2;title\x07\n.png"
    shutil.copy(photos / "b-red.png", tmp_path / odd)
    _, out, err = predict_in_child(tiny_run[2].bundle, tmp_path, "--format", "csv")
    assert [row["path"] for row in csv.DictReader(io.StringIO(out, newline=""))] == [str(tmp_path / odd)]
    code, out, err = predict_in_child(tiny_run[2].bundle, tmp_path, gone, "-q")
    assert (code, len(out.splitlines())) == (2, 1)
    assert out.startswith(f"{tmp_path}/esc\\x1b[31m\\nnew\\r.png  red ")
    assert err.startswith(
        f"unreadable: There is no file {tmp_path}/gone\\x1b]2;title\\x07\\n.png. Check the path.\n"
    )
    assert len(err.splitlines()) == 2


def test_a_row_appears_while_the_next_picture_is_awaited(tiny_run, photos):
    command = [*COMMAND, str(tiny_run[2].bundle), "--from-file", "-", "-q"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdin.write(f"{photos}/b-red.png\n".encode())
        child.stdin.flush()
        assert select.select([child.stdout], [], [], 60)[0]
        assert child.stdout.readline().split()[:2] == [f"{photos}/b-red.png".encode(), b"red"]
        child.stdin.close()
        assert (child.wait(), child.stdout.read()) == (0, b"")


def test_unreadable_pictures_are_named_and_the_others_answered(tiny_run, edgekiln, broken):
    for form in ("table", "csv"):
        code, out, err = edgekiln(
            "predict", tiny_run[2].bundle, broken, broken / "gone.png", "--format", form
        )
        assert code == 2
        assert len(out.splitlines()) == 3 + (form == "csv")
        assert f"unreadable: {broken}/c-broken.jpg is not a JPEG" in err
        assert f"unreadable: There is no file {broken}/gone.png. Check the path." in err
        assert "2 of 5 pictures could not be read. The others are answered." in err


def test_json_lines_hold_an_error_where_an_answer_would_be(tiny_run, edgekiln, broken):
    code, out, _ = edgekiln("predict", tiny_run[2].bundle, broken, "--format", "jsonl")
    rows = {os.path.basename(row["path"]): row for row in map(json.loads, out.splitlines())}  # noqa: PTH119
    assert code == 2
    assert list(rows) == ["A-blue.PNG", "b-red.png", "c-broken.jpg", "green.png"]
    assert rows["b-red.png"]["top"][0]["label"] == "red"
    assert (rows["c-broken.jpg"]["error"]["code"], "top" in rows["c-broken.jpg"]) == ("image", False)


def test_the_document_holds_the_error_too(tiny_run, edgekiln, broken):
    document = json.loads(edgekiln("predict", tiny_run[2].bundle, broken, "--json")[1])
    assert (document["ok"], len(document["predictions"]), len(document["failures"])) == (False, 3, 1)
    assert document["error"] == {
        "code": "image",
        "message": "1 of 4 pictures could not be read.",
        "hint": "The others are answered.",
        "path": str(broken / "c-broken.jpg"),
        "reason": "format",
    }
