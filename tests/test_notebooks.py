"""The notebooks of docs/notebooks run as a reader's Jupyter would run them, and show what they promise."""

import re

import nbformat
import pytest
from documents import anchors
from nbclient import NotebookClient
from tests_support import ROOT

NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))
PREDICTIONS = ROOT / "docs/notebooks/pictures-to-predictions.ipynb"

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)


def read(path):
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@each_notebook
def test_a_notebook_is_stored_without_outputs(path):
    """They would be of one machine and one day, and nothing would compare them."""
    nbformat.validate(read(path))
    assert [(c.outputs, c.execution_count) for c in code_cells(read(path))] == [
        ([], None) for _ in code_cells(read(path))
    ]


@each_notebook
def test_links_of_a_notebook_resolve(path):
    text = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    assert targets
    for name, _, anchor in (target.partition("#") for target in targets):
        assert (path.parent / name).exists(), name
        assert not anchor or anchor in anchors(path.parent / name), anchor


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notebook")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("TMPDIR", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):  # nothing in the home folder
            patch.setenv(name, str(folder))
        notebook = read(PREDICTIONS)
        NotebookClient(notebook, timeout=400, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


def shown(notebook, source, mime):
    """What the cell that holds ``source`` shows of that kind; text on a stream is ``stream``."""
    [cell] = [cell for cell in code_cells(notebook) if source in cell.source]
    streams = [output.text for output in cell.outputs if output.output_type == "stream"]
    rich = [output.data[mime] for output in cell.outputs if mime in output.get("data", {})]
    return streams if mime == "stream" else rich


@pytest.mark.slow
def test_twelve_cells_lead_from_pictures_to_predictions(executed):
    assert len(code_cells(executed)) == 12
    [answers] = shown(executed, "predict_batch", "stream")
    assert answers == "60 of 60 new pictures\n"
    [summary] = shown(executed, "render_summary", "text/markdown")
    assert [name for name in ("PyTorch", "fp32", "int8") if name not in summary] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "texts"),
    [
        ("run_recipe(recipe", ["Run colors", ">fp32<", ">int8<", ">pass<"]),
        ("open_bundle(", ["Bundle colors, ", "signature not asked for", ">onnxruntime-cpu<"]),
        ("ek.load(", ["<b>Classifier</b>", "32 x 32 pixels", ">3 classes<", "blue, green, red"]),
        ("classifier.predict(make", ["red, the likeliest of 3 classes", ">green<", "currentColor"]),
        ("judge(counts", ["<b>Gate: inconclusive</b>", "test images would decide, there are 300"]),
    ],
)
def test_results_show_themselves(executed, source, texts):
    html = shown(executed, source, "text/html")[-1]
    assert [text for text in texts if text not in html] == []
    assert len(html) < 3000
    assert not re.search(
        r"http|src=|url\(|<script|<style|<link|color:(?!inherit)|background:(?!currentColor)", html
    )


@pytest.mark.slow
def test_a_run_fills_one_bar_and_no_page(executed):
    bar, result = shown(executed, "run_recipe(recipe", "text/html")
    assert re.match(r'<progress value="1" max="1"></progress> \[(\d+)/\1\] bundle: \d+ s<pre', bar)
    assert [line for line in ("[1/9] data", "[9/9] bundle") if line not in bar] == []
    assert "<b>Run colors</b>" in result
    assert shown(executed, "run_recipe(recipe", "stream") == []
