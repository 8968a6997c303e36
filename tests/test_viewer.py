"""The page of the viewer in a real browser: from a folder and from a server it shows what `aic decode` gives."""

import base64
import io
import os
import shutil
import struct
import threading
import zlib
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.TiffImagePlugin import IFDRational

from aiocodec.cli.info import describe
from aiocodec.container import ChunkType, pack, unpack
from aiocodec.image import Picture, read

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "aiocodec" / "viewer" / "index.html"
GOLDEN = sorted((TESTS / "golden").glob("*.aic"))
LAKE = TESTS / "golden" / "v2-lake.aic"
ALPHA = TESTS / "golden" / "v2-alpha.aic"
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


def sources():
    """What the page is built of."""
    viewer = TESTS.parent / "viewer"
    parts = [viewer / "index.html", TESTS.parent / "aiocodec" / "evaluate" / "slider.js"]
    parts += [TESTS.parent / "weights" / "manifest.json"]
    return [*parts, *(viewer / "src").rglob("*.*"), *(viewer / "assembly").glob("*.ts")]


sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = sync_api.expect
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium"),
    pytest.mark.skipif(not PAGE.exists(), reason="the page is not built: npm run build in viewer/"),
    pytest.mark.skipif(
        PAGE.exists() and PAGE.stat().st_mtime < max(path.stat().st_mtime for path in sources()),
        reason="the page is older than its sources: npm run build in viewer/",
    ),
]

DECODE = """async data => {
    const bytes = Uint8Array.from(atob(data), character => character.charCodeAt(0));
    try {
        const { width, height, rgba } = await aic.decode(bytes);
        let text = "";
        for (let i = 0; i < rgba.length; i += 4096)
            text += String.fromCharCode(...rgba.subarray(i, i + 4096));
        return { width, height, rgba: btoa(text) };
    } catch (fault) {
        return { fault: fault.fault, message: fault.message };
    }
}"""


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        expect.set_options(timeout=60_000)
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--force-color-profile=srgb"]
        )
        yield browser
        browser.close()


class Handler(SimpleHTTPRequestHandler):
    """All of the repository; what lies below /slow/ is given when `released` is set."""

    released = threading.Event()

    def do_GET(self):
        if self.path.startswith("/slow/"):
            self.released.wait(60)
            self.path = self.path.removeprefix("/slow")
        super().do_GET()

    def end_headers(self):
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def log_message(self, *arguments):
        pass


@contextmanager
def serving():
    handler = partial(Handler, directory=TESTS.parent)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def server():
    with serving() as address:
        yield address


class Opened:
    """A page that was opened, what it has asked of whom, and what the browser had to complain of."""

    def __init__(self, browser, address, **options):
        options = {"viewport": {"width": 1000, "height": 700}, **options}
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.asked, self.complaints = [], []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda fault: self.complaints.append(str(fault)))
        self.page.on("console", lambda message: self.complain(message.text))
        self.page.on("filechooser", lambda chooser: None)  # from now on, not from the first wait on
        self.page.goto(address)

    def complain(self, text):
        if not text.startswith(("Failed to load resource", "Access to fetch")):  # of links
            self.complaints.append(text)

    def clear(self):
        """Close whatever is open; nothing may have been thrown, or blocked by the page's own policy."""
        complaints, self.complaints = self.complaints, []
        for _ in range(2):
            self.page.keyboard.press("Escape")
        while self.page.get_attribute("body", "data-state") != "empty":
            self.page.keyboard.press("Delete")
        if self.page.is_visible("#panel"):
            self.page.keyboard.press("i")
        assert complaints == []


@pytest.fixture(scope="module")
def folder_page(browser):
    opened = Opened(browser, PAGE.as_uri())
    yield opened
    opened.context.close()


@pytest.fixture(scope="module")
def server_page(browser, server):
    opened = Opened(browser, f"{server}/aiocodec/viewer/index.html")
    yield opened
    opened.context.close()


@pytest.fixture
def page(folder_page):
    """The page as it is opened from a folder, with nothing in it."""
    yield folder_page.page
    folder_page.clear()


@pytest.fixture
def served(server_page):
    """The page as a server gives it, with nothing in it."""
    yield server_page.page
    server_page.clear()


def decoded(page, data):
    """The pixels of a file as the page decodes it, [H, W, 4], or what it says instead."""
    found = page.evaluate(DECODE, base64.b64encode(data).decode())
    if "fault" in found:
        return found
    rgba = np.frombuffer(base64.b64decode(found["rgba"]), np.uint8)
    return rgba.reshape(found["height"], found["width"], 4)


def assert_same(rgba, picture):
    """Colours within 1 of 255, alpha exactly."""
    assert np.abs(rgba[..., :3].astype(int) - picture.rgb).max() <= 1
    alpha = 255 if picture.alpha is None else picture.alpha
    assert np.array_equal(rgba[..., 3], np.broadcast_to(alpha, rgba.shape[:2]))


def choose(page, *files):
    """Choose files, paths or (name, bytes)."""
    pairs = [(f.name, f.read_bytes()) if isinstance(f, Path) else f for f in files]
    kind = "application/octet-stream"
    page.set_input_files("#picker", [{"name": n, "mimeType": kind, "buffer": b} for n, b in pairs])


def settled(page, state="done", name=None):
    """Wait until the selected file, of this name, has come so far."""
    if name is not None:
        expect(page).to_have_title(f"{name} – aic viewer")
    page.wait_for_selector(f"body[data-state={state}]")


def link_to(page, *sources):
    fragment = "&".join(f"src={quote(source)}" for source in sources)
    page.goto(f"{page.url.partition('#')[0]}#")  # the same link twice is no news
    page.goto(f"{page.url.partition('#')[0]}#{fragment}")


def seen(page):
    """What the browser shows of the picture, [H, W, 3]."""
    shot = page.locator("#view").screenshot()
    return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"))


def with_header(data, **fields):
    """A file whose header says something else, with a CRC that is right."""
    head = bytearray(data[:28])
    for name, value in fields.items():
        layout, at = {"width": ("<I", 8), "height": ("<I", 12), "fingerprint": ("8s", 16)}[name]
        struct.pack_into(layout, head, at, value)
    return bytes(head) + struct.pack("<I", zlib.crc32(head)) + data[32:]


def with_chunks(data, *chunks):
    container = unpack(data)
    return pack(container.header, [*container.chunks, *chunks])


@pytest.fixture(scope="module")
def random_files(codec):
    """Fifty files and their pictures: noise, gradients and crops, gray and translucent ones too."""
    rng = np.random.default_rng(20)
    photo = read((TESTS / "photos" / "lake-noisy.png").read_bytes()).rgb
    files = []
    for i in range(50):
        height, width = rng.integers(1, 201, 2)
        if i % 3 == 0:
            rgb = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        elif i % 3 == 1:
            ramp = np.linspace(0, rng.integers(1, 256), width)[None, :, None]
            rgb = np.broadcast_to(ramp, (height, width, 3)).astype(np.uint8)
        else:
            top, left = rng.integers(0, 320 - height + 1), rng.integers(0, 480 - width + 1)
            rgb = photo[top : top + height, left : left + width]
        gray = i % 5 == 4
        if gray:
            rgb = np.repeat(rgb[..., :1], 3, axis=2)
        alpha = rng.integers(0, 256, (height, width), dtype=np.uint8) if i % 4 == 3 else None
        picture = Picture(rgb=np.ascontiguousarray(rgb), alpha=alpha, gray=gray)
        data = codec.encode(picture, int(rng.integers(0, 101)))
        files.append((data, codec.decode(data)))
    return files


# ----------------------------------------------------------------- pixels


@pytest.mark.parametrize("opened", ["page", "served"])
def test_golden_files_decode_from_a_folder_and_from_a_server(opened, request):
    page = request.getfixturevalue(opened)
    for path in GOLDEN:
        assert_same(decoded(page, path.read_bytes()), read(path.with_suffix(".png").read_bytes()))


def test_random_files_decode_as_they_do_in_python(page, random_files):
    for data, picture in random_files:
        assert_same(decoded(page, data), picture)


def test_what_is_seen_one_to_one_are_the_decoded_pixels(page):
    choose(page, LAKE)
    settled(page)
    page.keyboard.press("1")
    wanted = decoded(page, LAKE.read_bytes())[..., :3]
    height, width, _ = wanted.shape
    rows, columns, _ = seen(page).shape
    top, left = (rows - height + 1) // 2, (columns - width + 1) // 2
    assert np.array_equal(seen(page)[top : top + height, left : left + width], wanted)
    page.keyboard.press("+")
    expect(page.locator("#zoom")).to_have_text("125 %")


def test_pixels_that_are_magnified_stay_squares(page):
    choose(page, LAKE)
    settled(page)
    for _ in range(20):
        page.keyboard.press("+")
    expect(page.locator("#zoom")).to_have_text("6400 %")
    rows, columns, _ = seen(page).shape
    squares = (rows // 64 + 2) * (columns // 64 + 2)
    assert 20 < len(np.unique(seen(page).reshape(-1, 3), axis=0)) <= squares


def test_a_picture_is_fitted_and_zoomed_at_the_pointer(page, codec, photo):
    page.set_viewport_size({"width": 400, "height": 300})
    data = codec.encode(photo, 20)
    choose(page, ("photo.aic", data))
    settled(page)
    rows, columns, _ = seen(page).shape
    zoom = page.locator("#zoom")
    expect(zoom).to_have_text(f"{round(100 * min(rows / 320, columns / 480))} %")
    box = page.locator("#view").bounding_box()
    page.mouse.dblclick(box["x"] + columns / 2, box["y"] + rows / 2)
    expect(zoom).to_have_text("100 %")
    wanted = decoded(page, data)[..., :3]
    top, left = 160 - (rows + 1) // 2, 240 - (columns + 1) // 2
    assert np.array_equal(seen(page), wanted[top : top + rows, left : left + columns])
    page.mouse.move(box["x"] + 200, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + 170, box["y"] + 120, steps=3)
    page.mouse.up()
    top, left = top - 20, left + 30
    assert np.array_equal(seen(page), wanted[top : top + rows, left : left + columns])
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    for _ in range(30):
        page.mouse.wheel(0, -200)
    expect(zoom).to_have_text("6400 %")
    assert np.array_equal(seen(page)[100, 100], wanted[top + 100, left + 100])
    page.keyboard.press("0")
    page.wait_for_selector("[data-action=fit][aria-pressed=true]", state="attached")
    page.set_viewport_size({"width": 1000, "height": 700})


# ----------------------------------------------------------------- files that do not decode


def test_a_file_that_does_not_decode_is_a_sentence_and_the_next_one_is_decoded(page):
    data = LAKE.read_bytes()
    flipped = bytearray(data)
    flipped[60] ^= 4
    faults = {
        "truncated.aic": (data[:-10], "Damaged", "Truncated"),
        "header.aic": (data[:20], "Damaged", "Truncated"),
        "flipped.aic": (bytes(flipped), "Damaged", "wrong CRC"),
        "bomb.aic": (with_header(data, width=8192, height=8192), None, None),
        "side.aic": (with_header(data, width=65535, height=65535), "Too large", "65535x65535"),
        "other.aic": (with_header(data, fingerprint=b"\1" * 8), "Needs", "0101010101010101"),
        "text.aic": (b"no picture", "Damaged", "Not an .aic file"),
        "empty.aic": (b"", "Damaged", "Not an .aic file"),
    }
    files = [(name, data) for name, (data, _, _) in faults.items()]
    choose(page, *files, (LAKE.name, data))
    for name, (_, kind, words) in faults.items():
        settled(page, "failed", name)
        assert page.inner_text("#failed h2") == name == page.inner_text("#name")
        message = page.inner_text("#message")
        assert "\n" not in message and not message[0].islower() and message.endswith(".")
        assert kind is None or page.inner_text("#fault").startswith(kind)
        assert words is None or words in message
        page.keyboard.press("ArrowRight")
    settled(page)
    assert page.inner_text("#name") == LAKE.name
    assert page.locator("#files li[data-state=failed]").count() == len(faults)


def test_a_phone_refuses_at_once_what_it_has_no_memory_for(browser):
    """The estimate comes before any network, and the page goes on."""
    opened = Opened(browser, PAGE.as_uri(), viewport={"width": 360, "height": 740}, has_touch=True)
    page = opened.page
    page.evaluate("Object.defineProperty(navigator, 'deviceMemory', { value: 2 })")
    huge = with_header(LAKE.read_bytes(), width=10_000, height=10_000)
    refused = decoded(page, huge)
    assert refused["fault"] == "limit"
    assert "100.0 megapixels needs" in refused["message"] and "there are 1024" in refused["message"]
    assert not [asked for asked in opened.asked if "nano-g_s" in asked or "runtime" in asked]
    choose(page, ("huge.aic", huge), (LAKE.name, LAKE.read_bytes()))
    settled(page, "failed", "huge.aic")
    page.keyboard.press("ArrowRight")
    settled(page, name=LAKE.name)
    opened.clear()
    opened.context.close()


def test_damage_anywhere_is_noticed(page):
    data, rng = LAKE.read_bytes(), np.random.default_rng(3)
    for at in [*range(0, 48, 3), *rng.integers(48, len(data), 30)]:
        damaged = bytearray(data)
        damaged[at] ^= 1 << int(rng.integers(8))
        found = decoded(page, bytes(damaged))
        assert isinstance(found, dict) and found["fault"] in ("corrupt", "incompatible", "limit")
    assert_same(decoded(page, data), read(LAKE.with_suffix(".png").read_bytes()))


# ----------------------------------------------------------------- where files come from


def test_links_are_opened(served, server):
    link_to(served, "../../tests/golden/v2-lake.aic", f"{server}/tests/golden/v2-alpha.aic")
    settled(served, name="v2-lake.aic")
    expect(served.locator("li[data-state=done]")).to_have_count(2)
    link_to(served, "/tests/golden/v2-pixel.aic")
    settled(served, name="v2-pixel.aic")
    assert served.inner_text("#place") == "3 of 3"


def test_links_that_follow_each_other_at_once_are_opened_once_each(served):
    served.evaluate("location.hash = ''")
    served.evaluate(
        "for (const name of ['v2-lake', 'v2-pixel', 'v2-alpha'])"
        " location.hash = `src=/tests/golden/${name}.aic`"
    )
    expect(served.locator("li[data-state=done]")).to_have_count(3)
    names = served.locator("#files li").all_inner_texts()
    assert [name.split()[0] for name in names] == ["v2-lake.aic", "v2-pixel.aic", "v2-alpha.aic"]


def test_a_link_that_cannot_be_fetched_is_a_sentence(page, served):
    link_to(served, "gone.aic")
    settled(served, "failed", "gone.aic")
    assert "answers 404" in served.inner_text("#message")
    with serving() as elsewhere:
        link_to(served, f"{elsewhere}/tests/golden/v2-lake.aic")
        settled(served, "failed", "v2-lake.aic")
        assert "CORS" in served.inner_text("#message")
    link_to(page, "other.aic")
    settled(page, "failed", "other.aic")
    assert "drop the file here" in page.inner_text("#message")


def test_dropped_and_pasted_files_are_opened(page):
    script = """([type, data]) => {
        const bytes = Uint8Array.from(atob(data), character => character.charCodeAt(0));
        const transfer = new DataTransfer();
        transfer.items.add(new File([bytes], `${type}.aic`));
        const options = { bubbles: true, cancelable: true };
        document.body.dispatchEvent(type === "drop"
            ? new DragEvent(type, { ...options, dataTransfer: transfer })
            : new ClipboardEvent(type, { ...options, clipboardData: transfer }));
    }"""
    for count, kind in enumerate(("drop", "paste")):
        page.evaluate(script, [kind, base64.b64encode(LAKE.read_bytes()).decode()])
        settled(page, name=f"{kind}.aic")
        assert page.locator("#files li").count() == count + 1


@pytest.mark.parametrize("opened", ["page", "served"])
def test_of_a_dropped_folder_the_aic_files_are_opened(opened, request, tmp_path):
    page = request.getfixturevalue(opened)
    (tmp_path / "folder" / "below").mkdir(parents=True)
    for name in ("b.aic", "a.aic", "below/c"):
        shutil.copy(LAKE, tmp_path / "folder" / name)
    (tmp_path / "folder" / "notes.txt").write_text("no picture")
    session = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(tmp_path / "folder")], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, "x": 300, "y": 300, "data": data})
    expect(page.locator("li[data-state=done]")).to_have_count(3)
    assert page.locator("[data-part=name]").all_inner_texts() == ["a.aic", "b.aic", "c"]


# ----------------------------------------------------------------- the list


def test_the_keyboard_does_everything(page):
    choose(page, *GOLDEN[:4])
    expect(page.locator("#files li")).to_have_count(4)
    names = [path.name for path in GOLDEN[:4]]
    steps = {"ArrowRight": 1, "PageDown": 2, "End": 3, "ArrowLeft": 2, "PageUp": 1, "Home": 0}
    for key, at in steps.items():
        page.keyboard.press(key)
        assert page.inner_text("#name") == names[at]
        assert page.locator("[aria-current] [data-part=name]").inner_text() == names[at]
    settled(page)
    page.keyboard.press("i")
    assert page.is_visible("#panel")
    page.keyboard.press("?")
    assert page.is_visible("#help")
    page.keyboard.press("Escape")
    assert page.is_hidden("#help") and page.is_visible("#panel")
    background = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(background)
    page.keyboard.press("t")
    assert page.evaluate(background) != before
    with page.expect_download():
        page.keyboard.press("s")
    with page.expect_file_chooser():
        page.keyboard.press("o")
    for _ in names:
        page.keyboard.press("Delete")
    settled(page, "empty")


def test_what_waits_can_be_stopped_and_goes_on(served):
    Handler.released.clear()
    link_to(served, "/slow/tests/golden/v2-lake.aic")
    settled(served, "decoding")
    choose(served, *GOLDEN[:3])
    expect(served.locator("#files li")).to_have_count(4)
    served.click("#queue")
    settled(served, "stopped")
    expect(served.locator("li[data-state=stopped]")).to_have_count(4)
    Handler.released.set()
    served.click("#stopped button")
    settled(served)
    expect(served.locator("li[data-state=stopped]")).to_have_count(3)
    served.click("#queue")
    expect(served.locator("li[data-state=done]")).to_have_count(4)
    assert served.is_hidden("#queue")


def test_one_file_can_be_cancelled_and_the_others_go_on(served):
    Handler.released.clear()
    link_to(served, "/slow/tests/golden/v2-lake.aic")
    choose(served, ALPHA)
    expect(served.locator("#files li")).to_have_count(2)
    served.keyboard.press("Home")
    served.keyboard.press("Escape")
    settled(served, "stopped")
    expect(served.locator("li[data-state=done]")).to_have_count(1)
    Handler.released.set()


# ----------------------------------------------------------------- what a file says


def test_the_panel_says_what_aic_info_says(page):
    page.keyboard.press("i")
    for path in GOLDEN:
        choose(page, path)
        settled(page, name=path.name)
        facts = page.locator("#facts dd").all()
        said = {fact.get_attribute("data-fact"): fact.inner_text() for fact in facts}
        data = path.read_bytes()
        info = describe(path.name, data, unpack(data))
        info |= {f"chunks {kind}": size for kind, size in info.pop("chunks").items()}
        assert said["name"] == info.pop("input")
        assert said["flags"] == (", ".join(info.pop("flags")) or "none")
        for key, value in info.items():
            shown = said[key].replace(",", "")
            assert shown == ("none" if value is None else str(value)) or float(shown) == value


def profile(name):
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(name)).tobytes()


# The colourants of red, green and blue, X Y Z under D50.
P3 = [[0.5151, 0.2412, -0.0011], [0.292, 0.6922, 0.0419], [0.1571, 0.0666, 0.7841]]
ADOBE = [[0.6097, 0.3111, 0.0195], [0.2053, 0.6257, 0.0609], [0.1492, 0.0632, 0.7446]]


def matrix_profile(name, primaries, gamma):
    """An ICC profile of three colourants and a curve: a power, in units of 1/256, or None for that of sRGB."""

    def fixed(*numbers):
        return struct.pack(f">{len(numbers)}i", *(round(65536 * number) for number in numbers))

    text = name.encode("utf-16be")
    tags = {"desc": b"mluc" + struct.pack(">4xII4sII", 1, 12, b"enUS", len(text), 28) + text}
    if gamma is None:
        curve = fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
        curve = b"para" + struct.pack(">4xH2x", 3) + curve
    else:
        curve = b"curv" + struct.pack(">4xIH2x", 1, gamma)
    for channel, colourant in zip("rgb", primaries, strict=True):
        tags[f"{channel}XYZ"] = b"XYZ " + bytes(4) + fixed(*colourant)
        tags[f"{channel}TRC"] = curve
    table, body = struct.pack(">I", len(tags)), b""
    for tag, value in tags.items():
        at = 132 + 12 * len(tags) + len(body)
        table += struct.pack(">4sII", tag.encode(), at, len(value))
        body += value.ljust(-4 * (-len(value) // 4), b"\0")
    return bytes(12) + b"mntrRGB XYZ " + bytes(104) + table + body


def exif():
    block = Image.Exif()
    block[0x010F], block[0x0110] = "Leica", "Leica Q2"
    exposure = block.get_ifd(0x8769)
    exposure[0x829A], exposure[0x829D], exposure[0x8827] = IFDRational(1, 250), 5.6, 200
    exposure[0x9003] = "2024:05:06 07:08:09"
    block.get_ifd(0x8825)[1] = "N"
    return block.tobytes()[6:]


def test_metadata_is_readable_and_colours_that_are_not_right_are_said(page):
    data = with_chunks(
        LAKE.read_bytes(),
        (ChunkType.ICC, profile("XYZ")),
        (ChunkType.EXIF, exif()),
        (ChunkType.COMMENT, "Grüße\nvom See".encode()),
        (ChunkType.DENSITY, struct.pack("<II", 11811, 5906)),
    )
    page.keyboard.press("i")
    choose(page, ("metadata.aic", data))
    settled(page)
    fact = lambda name: page.inner_text(f"[data-fact={name}]")  # noqa: E731
    assert fact("camera") == "Leica Q2"
    assert fact("exposure") == "1/250 s, f/5.6, ISO 200"
    assert fact("taken") == "2024-05-06 07:08:09"
    assert "GPS" in fact("place")
    assert fact("comment") == "Grüße vom See"
    assert fact("density") == "300 × 150.01 dpi"
    assert "not applied" in page.inner_text("#warning")
    for name, primaries, gamma in (("Display P3", P3, None), ("Adobe RGB", ADOBE, 563)):
        icc = matrix_profile(name, primaries, gamma)
        choose(page, (f"{name}.aic", with_chunks(LAKE.read_bytes(), (ChunkType.ICC, icc))))
        settled(page, name=f"{name}.aic")
        assert name in fact("colours")
        assert page.is_visible("#warning") == (name == "Adobe RGB")
    choose(page, ("srgb.aic", with_chunks(LAKE.read_bytes(), (ChunkType.ICC, profile("sRGB")))))
    settled(page, name="srgb.aic")
    assert page.is_hidden("#warning") and "sRGB" in fact("colours")


def test_hostile_metadata_takes_nothing_away(page):
    rng = np.random.default_rng(4)
    files = []
    for i in range(24):
        chunks = []
        for kind, block in ((ChunkType.EXIF, exif()), (ChunkType.ICC, profile("sRGB"))):
            spoiled = np.frombuffer(block, np.uint8).copy()
            at = rng.integers(0, len(spoiled), 1 + 4 * i)
            spoiled[at] = rng.integers(0, 256, len(at))
            chunks.append((kind, spoiled.tobytes()[: rng.integers(0, len(block) + 1)]))
        files.append(
            (f"{i}.aic", with_chunks((TESTS / "golden/v2-pixel.aic").read_bytes(), *chunks))
        )
    page.keyboard.press("i")
    choose(page, *files)
    expect(page.locator("li[data-state=done]")).to_have_count(len(files))
    for _ in files:
        settled(page)
        assert page.inner_text("[data-fact=version]") == "2"
        page.keyboard.press("ArrowRight")


# ----------------------------------------------------------------- what is saved


def saved(page, action):
    page.click("[popovertarget=save]")
    with page.expect_download() as download:
        page.click(f"[data-action={action}]")
    return download.value.suggested_filename, Path(download.value.path()).read_bytes()


def test_a_saved_png_has_the_decoded_pixels_and_all_metadata(page):
    extra = [
        (ChunkType.ICC, profile("sRGB")),
        (ChunkType.EXIF, exif()),
        (ChunkType.COMMENT, "Grüße".encode()),
        (ChunkType.DENSITY, struct.pack("<II", 11811, 5906)),
    ]
    for path in (LAKE, ALPHA):
        data = path.read_bytes()
        if path == LAKE:
            data = with_chunks(data, *extra, (ChunkType.XMP, b"<x:xmpmeta/>"))
        choose(page, (path.name, data))
        settled(page, name=path.name)
        name, png = saved(page, "png")
        assert name == path.with_suffix(".png").name
        picture = read(png)
        wanted = decoded(page, data)
        assert np.array_equal(picture.rgb, wanted[..., :3])
        if path == ALPHA:
            assert np.array_equal(picture.alpha, wanted[..., 3])
            assert picture.gray and picture.xmp == b"<x/>"
        else:
            assert picture.alpha is None and not picture.gray
            assert (picture.icc, picture.exif) == (extra[0][1], extra[1][1])
            assert (picture.xmp, picture.comment) == (b"<x:xmpmeta/>", "Grüße".encode())
            assert picture.density == (11811, 5906)


def test_a_saved_webp_is_the_picture(page):
    choose(page, LAKE)
    settled(page)
    name, webp = saved(page, "webp")
    assert name == "v2-lake.webp" and webp[8:12] == b"WEBP"
    difference = read(webp).rgb.astype(int) - decoded(page, LAKE.read_bytes())[..., :3]
    assert np.sqrt(np.mean(difference**2)) < 6


def test_a_copied_picture_has_the_decoded_pixels(served, server_page):
    server_page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    choose(served, LAKE)
    settled(served)
    served.click("[popovertarget=save]")
    served.click("[data-action=copy]")
    expect(served.locator("#note")).to_have_text(f"{LAKE.name} is copied")
    script = """async () => {
        const [item] = await navigator.clipboard.read();
        const bytes = new Uint8Array(await (await item.getType("image/png")).arrayBuffer());
        return btoa(Array.from(bytes, byte => String.fromCharCode(byte)).join(""));
    }"""
    copied = read(base64.b64decode(served.evaluate(script)))
    assert np.array_equal(copied.rgb, decoded(served, LAKE.read_bytes())[..., :3])


# ----------------------------------------------------------------- beside another picture


def test_pictures_of_the_same_size_are_compared(page):
    choose(page, LAKE)
    settled(page)
    original = LAKE.with_suffix(".png")
    page.set_input_files("#other-picker", original)
    page.wait_for_selector("body[data-comparing] picture-slider")
    assert page.is_hidden("#view")
    line = page.locator("picture-slider [role=slider]")
    expect(line).to_be_focused()
    page.keyboard.press("ArrowRight")  # It is the line's now, and no step to another file.
    expect(line).to_have_attribute("aria-valuenow", "51")
    page.keyboard.press("Escape")
    assert page.is_visible("#view") and page.locator("picture-slider").count() == 0
    page.set_input_files("#other-picker", ALPHA.with_suffix(".png"))
    page.wait_for_selector("#note:not([hidden])")
    assert "65 × 33" in page.inner_text("#note") and page.is_visible("#view")


def test_a_picture_that_comes_with_a_file_is_compared_with_it(page):
    original = LAKE.with_suffix(".png")
    choose(page, LAKE, original, *GOLDEN[:2])
    page.wait_for_selector("body[data-comparing] picture-slider")
    expect(page.locator("#files li")).to_have_count(3)
    choose(page, original)
    expect(page.locator("#files li")).to_have_count(3)
    page.keyboard.press("Escape")
    choose(page, ("notes.png", b"no picture"))
    settled(page, "failed", "notes.png")


# ----------------------------------------------------------------- the page itself


def test_nothing_is_asked_of_another_server(page, folder_page):
    choose(page, LAKE)
    settled(page)
    ours = PAGE.parent.as_uri()
    assert f"{ours}/assets/runtime.js" in folder_page.asked
    assert all(url.startswith((ours, "data:", "blob:")) for url in folder_page.asked)


def test_the_page_fits_a_phone(browser):
    phone = Opened(browser, PAGE.as_uri(), viewport={"width": 360, "height": 640}, has_touch=True)
    page = phone.page
    choose(page, *GOLDEN)
    settled(page)
    page.click("[data-action=info][aria-pressed]")
    width, height = page.evaluate(
        "[document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
    )
    assert (width, height) == (360, 640)
    for button in page.locator(".bar button:visible").all():
        box = button.bounding_box()
        assert box["width"] >= 44 and box["height"] >= 44 and box["x"] + box["width"] <= 360
    phone.clear()
    phone.context.close()


@pytest.mark.skipif("AIC_SCREENSHOTS" not in os.environ, reason="AIC_SCREENSHOTS names no folder")
@pytest.mark.parametrize("theme", ["dark", "light"])
@pytest.mark.parametrize(("device", "size"), [("desktop", (1280, 800)), ("phone", (360, 740))])
def test_screenshots(browser, codec, photo, device, size, theme):
    folder = Path(os.environ["AIC_SCREENSHOTS"])
    folder.mkdir(parents=True, exist_ok=True)
    opened = Opened(
        browser,
        PAGE.as_uri(),
        viewport={"width": size[0], "height": size[1]},
        color_scheme=theme,
        device_scale_factor=2 if device == "phone" else 1,
    )
    page = opened.page

    def shot(name):
        page.screenshot(path=folder / f"{device}-{theme}-{name}.png")

    shot("empty")
    translucent = replace(photo, alpha=photo.rgb[..., 2].copy(), exif=exif())
    files = [("lake.aic", codec.encode(photo, 60)), ("alpha.aic", codec.encode(translucent, 40))]
    choose(page, *files, ("truncated.aic", files[0][1][:-9]), *GOLDEN)
    settled(page)
    expect(page.locator("li[data-state=done]")).to_have_count(8)
    shot("picture")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("i")
    settled(page)
    shot("info")
    page.keyboard.press("ArrowRight")
    settled(page, "failed")
    shot("failed")
    opened.clear()
    opened.context.close()
