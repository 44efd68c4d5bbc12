"""The page in Chromium: every way in which a picture comes, the keyboard alone, and what a screen reader meets."""

import base64
import csv
import io
import shutil
from itertools import permutations

import numpy as np
import pytest
from PIL import Image
from server_support import TOKEN
from tests_support import COLORS

from edgekiln.runtime import load

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip(
        "NOT TESTED: the page of `edgekiln serve`, since there is no Chromium here", allow_module_level=True
    )
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip(
    "axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed"
)
expect = sync_api.expect
PATIENCE_MS = 60_000


@pytest.fixture(scope="module")
def browser():
    options = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, server):
    """The page as its link opens it. Nothing may be asked of another host, and no script may fail."""
    problems = []
    context = browser.new_context(viewport={"width": 1280, "height": 860}, accept_downloads=True)
    context.set_default_timeout(PATIENCE_MS)
    context.on("request", lambda r: r.url.startswith((server.address, "blob:")) or problems.append(r.url))
    page = context.new_page()
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda m: "Security Policy" in m.text and problems.append(m.text))
    page.on(
        "filechooser", lambda chooser: None
    )  # listened for from the start: it may open before a test listens
    page.goto(f"{server.address}/?token={TOKEN}")
    expect(page.locator("#variants li")).to_have_count(2, timeout=PATIENCE_MS)
    yield page
    context.close()
    assert not problems


@pytest.fixture
def folder(tiny_run, tmp_path):
    """A folder as people have them: pictures at two depths, and files that are none."""
    made = tmp_path / "photos"
    for color in ("red", "blue"):
        (made / color).mkdir(parents=True)
        shutil.copy(tiny_run[0].parent / "pictures" / color / "001.png", made / color / f"{color}.png")
    (made / "notes.txt").write_text("not a picture")
    return made


def wait_for_cards(page, count):
    expect(page.locator(".card .answer")).to_have_count(2 * count, timeout=PATIENCE_MS)
    expect(page.locator("#progress")).to_be_hidden(timeout=PATIENCE_MS)


def drop(page, *paths):
    """What a file manager does, which no script of the page could."""
    session = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, "x": 200, "y": 250, "data": data})
    session.detach()


def test_the_link_leaves_no_token_in_the_address_and_tells_what_is_served(page, server):
    assert page.url == f"{server.address}/"
    assert page.title() == "tiny · edgekiln"
    assert page.locator("#variants li").all_inner_texts() == [
        "fp32 · onnxruntime-cpu · pass", "int8 · onnxruntime-cpu · pass",
    ]  # fmt: skip
    assert "3 classes" in page.inner_text("#about")


def test_dropped_pictures_are_answered_as_the_runtime_does(page, folder, bundle):
    picture = folder / "red" / "red.png"
    drop(page, picture)
    wait_for_cards(page, 1)
    for number, variant in enumerate(("fp32", "int8")):
        with load(bundle, variant=variant, threads=1) as classifier:
            expected = classifier.predict(picture).top(3)
        answer = page.locator(".card .answer").nth(number)
        assert answer.locator(".variant").inner_text() == variant
        shown = answer.locator("li").all_inner_texts()
        assert [text.split("\n")[0] for text in shown] == [c.label for c in expected]
        assert shown[0].split("\n")[1] == f"{100 * expected[0].score:.1f} %"
        assert all(word in answer.locator(".times").inner_text() for word in ("decode", "wait", "engine"))
    assert page.locator(".card img").evaluate("img => img.naturalWidth") > 0


def test_a_dropped_folder_is_read_at_any_depth(page, folder):
    drop(page, folder)
    wait_for_cards(page, 2)
    assert page.locator(".card h3").all_inner_texts() == ["photos/blue/blue.png", "photos/red/red.png"]
    assert "1 file was passed over" in page.inner_text("#notice")


def test_a_broken_file_is_told_and_the_others_are_answered(page, folder):
    drop(page, folder / "notes.txt", folder / "red" / "red.png")
    expect(page.locator(".card")).to_have_count(2, timeout=PATIENCE_MS)
    expect(page.locator(".card .error")).to_have_count(
        1, timeout=PATIENCE_MS
    )  # once, and not for each variant
    assert "is not a JPEG, PNG" in page.inner_text(".card .error")
    expect(page.locator("#summary")).to_contain_text("2 pictures · 1 without an answer", timeout=PATIENCE_MS)


def test_a_pasted_picture_is_answered(page, folder):
    encoded = base64.b64encode((folder / "blue" / "blue.png").read_bytes()).decode()
    page.evaluate(
        """encoded => {
          const bytes = Uint8Array.from(atob(encoded), (c) => c.charCodeAt(0));
          const data = new DataTransfer();
          data.items.add(new File([bytes], "pasted.png", { type: "image/png" }));
          document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data, bubbles: true }));
        }""",
        encoded,
    )
    wait_for_cards(page, 1)
    assert page.inner_text(".card h3") == "pasted.png"


def test_the_keyboard_alone_does_everything(page, folder):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "choose"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(folder / "red" / "red.png")
    wait_for_cards(page, 1)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "choose-folder"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Space")
    chooser.value.set_files(folder)
    wait_for_cards(page, 3)
    reached = []
    for _ in range(4):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
    assert reached == ["camera", "different", "save", "clear"]
    page.keyboard.press("Enter")
    expect(page.locator("#results")).to_be_hidden()
    assert page.evaluate("document.activeElement.id") == "choose"


def test_the_camera_is_answered_live_and_a_picture_of_it_can_be_kept(page):
    page.click("#camera")
    expect(page.locator("#camera-answers .answer")).to_have_count(2, timeout=PATIENCE_MS)
    assert page.locator("#camera").get_attribute("aria-expanded") == "true"
    page.click("#keep")
    wait_for_cards(page, 1)
    assert page.inner_text(".card h3").startswith("camera-")
    page.click("#camera")
    expect(page.locator("#camera-view")).to_be_hidden()
    assert page.evaluate("document.getElementById('video').srcObject") is None  # its light goes out


def find_disputed(bundle, folder):
    """A picture to which the two variants give different classes: on the way from one colour to another, by pixels."""
    order = np.random.default_rng(0).permutation(32 * 32).reshape(32, 32, 1)
    with load(bundle, variant="fp32", threads=1) as one, load(bundle, variant="int8", threads=1) as other:
        for first, second in permutations(COLORS.values(), 2):
            both = np.array(first, np.uint8), np.array(second, np.uint8)
            pictures = [np.where(order < count, *both) for count in range(32 * 32)]
            answers = zip(one.predict_batch(pictures), other.predict_batch(pictures), strict=True)
            for picture, (a, b) in zip(pictures, answers, strict=True):
                # Alone, too: a batch may round otherwise.
                if a.label != b.label and one.predict(picture).label != other.predict(picture).label:
                    Image.fromarray(picture).save(folder / "disputed.png")
                    return folder / "disputed.png"
    raise AssertionError("the two variants agree everywhere")


def test_pictures_on_which_the_variants_differ_are_marked_and_the_table_has_all(page, folder, bundle):
    disputed = find_disputed(bundle, folder)
    drop(page, folder / "red" / "red.png", disputed, folder / "blue" / "blue.png")
    wait_for_cards(page, 3)
    expect(page.locator("#summary")).to_contain_text("1 on which they differ", timeout=PATIENCE_MS)
    expect(page.locator(".card.differs")).to_have_count(1)
    page.check("#different")
    expect(page.locator(".card")).to_have_count(1)
    expect(page.locator(".card .badge")).to_have_text("differs")
    page.uncheck("#different")
    expect(page.locator(".card")).to_have_count(3)
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.suggested_filename == "tiny-answers.csv"
    rows = list(csv.DictReader(io.StringIO(download.value.path().read_text("utf-8"), newline="")))
    assert [(row["path"], row["variant"]) for row in rows] == [
        (name, variant) for name in ("blue.png", "disputed.png", "red.png") for variant in ("fp32", "int8")
    ]
    labels = {row["label"] for row in rows if row["path"] == "disputed.png"}
    assert len(labels) == 2
    for row in rows:
        scores = [float(row[key]) for key in ("score", "score_2", "score_3")]
        assert sum(scores) == pytest.approx(1, abs=1e-5)  # six digits each
        assert float(row["engine_ms"]) > 0
        assert row["error"] == ""


def test_a_name_is_never_markup(page, folder):
    name = '<img src=x onerror=alert(1)>,"quoted".png'
    shutil.copy(folder / "red" / "red.png", folder / name)
    drop(page, folder / name)
    wait_for_cards(page, 1)
    assert page.inner_text(".card h3") == name
    with page.expect_download() as download:
        page.click("#save")
    rows = list(csv.DictReader(io.StringIO(download.value.path().read_text("utf-8"), newline="")))
    assert rows[0]["path"] == name


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_axe_finds_nothing_and_nothing_is_wider_than_the_screen(page, folder, scheme, width):
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    page.set_viewport_size({"width": width, "height": 844})
    drop(page, give_long_name(folder), folder / "notes.txt")
    expect(page.locator(".card .error")).to_have_count(1, timeout=PATIENCE_MS)
    page.click("#camera")
    expect(page.locator("#camera-answers .answer")).to_have_count(2, timeout=PATIENCE_MS)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    found = axe.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def give_long_name(folder):
    """A picture whose name is wider than any card."""
    long = folder / f"{'a-long-name-' * 12}.png"
    shutil.copy(folder / "red" / "red.png", long)
    return long


def test_where_the_server_is_gone_the_page_says_so(browser, start, bundle, folder):
    server = start(bundle)
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{server.address}/?token={TOKEN}")
    expect(page.locator("#variants li")).to_have_count(1, timeout=PATIENCE_MS)
    assert server.stop() == 0
    drop(page, folder / "red" / "red.png")
    expect(page.locator(".card .error")).to_have_text("The server did not answer. Is it still running?")
    context.close()
