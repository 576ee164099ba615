"""The page of an audit in a browser: it draws all plots, fits on a phone, and executes and loads nothing."""

import json
import re
import shutil
import string

import numpy as np
import pytest
from conftest import must, script, small_scene
from PIL import Image

from evaluation.audit import EXPOSED
from evaluation.audit_page import flags_as_code, write_page
from evaluation.audit_plots import SERIES

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
EVIL = ("<img src=x onerror=alert(1)>", "</script><script>alert(2)</script>", "a\"><svg onload=alert(3)>",
        "$\\frac{$", "{{ 7*7 }}" + "long" * 40)
SIDE = 12  # images of a side
SCHEMES = ("light", "dark")
sync_api = pytest.importorskip("playwright.sync_api", reason="pip install -r requirements-dev.txt for the browser")
axe_playwright = pytest.importorskip("axe_playwright_python.sync_playwright")


@pytest.fixture(scope="session")
def report(tmp_path_factory):
    """report.html with all its sections, of answers on disk; names of files, classes and folders have HTML in them."""
    folder = tmp_path_factory.mktemp("page") / "a <b>folder</b>"
    rng = np.random.default_rng(0)
    names = [f"{letter}<svg/onload=alert(5)>" for letter in string.ascii_letters[:2 * SIDE]]  # each in a folder
    for index, name in enumerate(names):
        for kind in ("image", "mask", "answers"):
            (folder / kind / name).parent.mkdir(parents=True)
        image, label = small_scene(index)
        label = np.where(label == 255, 255, label % len(EVIL)).astype(np.uint8)
        logits = rng.normal(0, 1, (len(EVIL), *label[::8, ::8].shape))
        logits += np.where(index < SIDE, 2.5, 1.5) * (np.arange(len(EVIL))[:, None, None] == label[::8, ::8])
        Image.fromarray(image).save(folder / "image" / f"{name}.png")
        Image.fromarray(label).save(folder / "mask" / f"{name}.png")
        np.save(folder / "answers" / f"{name}.npy", (np.exp(logits) / np.exp(logits).sum(0)).astype("f4"))
    (folder / "members.txt").write_text("\n".join(names[:SIDE]))
    (folder / "classes.txt").write_text("\n".join(EVIL))
    must(script("audit.py", "--model", f"folder:{folder}/answers", "--images", folder / "image", "--masks",
                folder / "mask", "--members", folder / "members.txt", "--dataset", "folder", "--class-names",
                folder / "classes.txt", "--attacks", "loss", "confidence", "--try", "argmax", "--show-images",
                "--precision", "fp32", "--out", folder / "audit"))
    return folder / "audit" / "report.html"


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM:
        pytest.skip("the tests of the page need chromium; install it, for example by `apt-get install chromium`")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, report):
    """A function (width, colour scheme) -> the opened page, and what it loaded, printed or asked (must be nothing)."""
    contexts = []

    def start(width=1200, scheme="light", report=report, **settings):
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, **settings)
        contexts.append(context)
        page, events = context.new_page(), []
        page.on("console", lambda message: events.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: events.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (events.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: request.url.startswith("data:") or request.url == report.as_uri()
                or events.append(f"request: {request.url}"))
        page.goto(report.as_uri())
        page.wait_for_load_state("networkidle")
        return page, events

    yield start
    for context in contexts:
        context.close()


def test_the_page_executes_and_loads_nothing_and_injects_no_names(visit, report):
    """Names with HTML stand on the page as text, in plots too."""
    page, events = visit()
    page.locator("summary").evaluate_all("all => all.forEach(one => one.click())")
    assert events == []
    assert page.locator("script, iframe, object, embed, link, form, base").count() == 0
    assert page.locator("img:not([src^='data:image/png;base64,'])").count() == 0
    handlers = "all => all.filter(one => [...one.attributes].some(a => a.name.startsWith('on'))).length"
    assert page.locator("*").evaluate_all(handlers) == 0
    text = page.locator("body").inner_text()
    assert "a <b>folder</b>" in text and text.count("<svg/onload=alert(5)>") == EXPOSED and "{{ 7*7 }}" in text
    beside = page.locator("svg text").all_text_contents()
    assert {f"class: {name}"[:20] for name in EVIL} <= {label[:20] for label in beside}
    found = json.loads((report.parent / "audit.json").read_text())
    assert {row["region"] for row in found["regions"] if row["kind"] == "class"} == set(EVIL)


def test_every_plot_and_image_is_drawn(visit):
    page, _ = visit()
    drawn = page.locator("svg").evaluate_all(
        "all => all.map(svg => [svg.getAttribute('aria-label'), svg.getBoundingClientRect().width, "
        "svg.getBoundingClientRect().height, [...svg.querySelectorAll('path, use')].filter(mark => "
        "getComputedStyle(mark).stroke.match(/rgb/) && mark.getBoundingClientRect().width + "
        "mark.getBoundingClientRect().height > 5).length])")
    assert [title for title, *_ in drawn] == [
        "AUC of all attacks", "ROC curves", "ROC curves at low false positive rates", "AUC by region",
        "Leak against utility"]
    for title, width, height, marks in drawn:
        assert width > 250 and height > 80 and marks > 5, title
    for colour in SERIES[:2]:  # a curve of each attack, and a point of each defense
        for title in ("ROC curves", "Leak against utility"):
            lines = page.locator(f"svg[aria-label='{title}'] [id*='axes'] path[style*='{colour}']")
            seen = ("all => all.some(one => { const box = one.getBoundingClientRect(), svg = "
                    "one.ownerSVGElement.getBoundingClientRect(); return box.height > 20 "
                    "&& box.top >= svg.top && box.bottom <= svg.bottom})")
            assert lines.evaluate_all(seen), title
    sizes = page.locator("img").evaluate_all("all => all.map(one => [one.naturalWidth, one.clientWidth])")
    assert len(sizes) == 4 * EXPOSED and all(natural > 10 and shown > 40 for natural, shown in sizes)


@pytest.mark.parametrize("width", [320, 390, 1200])
def test_nothing_scrolls_sideways_but_tables(visit, width):
    page, _ = visit(width)
    page.locator("summary").evaluate_all("all => all.forEach(one => one.click())")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    inside = "all => all.every(one => one.getBoundingClientRect().right <= innerWidth + 1)"
    assert page.locator("main > *, figure, svg, img, .wide, p, li, dd").evaluate_all(inside)
    fits = "all => all.every(one => one.scrollWidth <= one.clientWidth)"
    assert width < 1200 or page.locator(".wide").evaluate_all(fits)


def test_the_keyboard_reaches_tables_and_opens_details(visit):
    page, _ = visit(390)
    expected = page.locator("summary, [tabindex='0'], a").count()
    seen = []
    for _ in range(expected):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.getAttribute('aria-label') || "
                                  "document.activeElement.textContent"))
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        assert page.evaluate(outline) != "none", f"the focus on {seen[-1]} cannot be seen"
    assert len(set(seen)) == expected and {"Table of attacks", "Settings and versions", "Words"} <= set(seen)
    assert not page.locator("dt", has_text="mIoU").is_visible()
    page.keyboard.press("Enter")
    assert page.locator("dt", has_text="mIoU").is_visible()
    page.locator("[aria-label='Table of attacks']").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.activeElement.scrollLeft > 0")


def serious(page):
    """The serious and critical findings of axe on a page: rule and places."""
    page.locator("summary").evaluate_all("all => all.forEach(one => one.click())")
    found = axe_playwright.Axe().run(page).response
    assert len(found["passes"]) > 15
    return [(one["id"], [node["html"][:100] for node in one["nodes"]]) for one in found["violations"]
            if one["impact"] in ("serious", "critical")]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", [390, 1200])
def test_accessibility(visit, scheme, width):
    page, _ = visit(width, scheme, bypass_csp=True)  # for the script of axe
    assert serious(page) == []


def test_a_page_without_intervals_controls_and_images(visit, report, tmp_path):
    """Few images: what cannot be measured is left out or a dash; reasons are text."""
    found = json.loads((report.parent / "audit.json").read_text())
    rows = [row | {"auc_interval": None, "tpr_at_10_fpr": None} for row in found["attacks"]]
    answer = found["answer"] | {"verdict": "undecided", "interval": None, "detectable": None}
    page, _ = write_page(found | {
        "attacks": rows, "answer": answer, "controls": [], "regions": [], "exposed": [], "priors": [],
        "defenses": found["defenses"][:1], "miou": {"in": None, "out": None}, "not_run": {"lira": EVIL[0]},
        "claim": True, "collection": {"p": 0.03, "method": "", "groups": [3, 4], "needed": None}}, tmp_path)
    page, events = visit(390, "dark", page, bypass_csp=True)
    assert serious(page) == [] and events == [] and page.locator("svg").count() == 3
    text = page.locator("body").inner_text()
    assert "cannot decide" in text and "claimed images" in text
    assert "p = 0.03" in text and f"lira: {EVIL[0]}" in text and "None" not in text
    assert page.evaluate("document.documentElement.scrollWidth") == 390


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_curves_stand_out_from_the_page(visit, scheme):
    """WCAG 2.1, 1.4.11: graphics have a contrast of 3 or more."""
    page, _ = visit(scheme=scheme)
    paper = luminance([int(part) for part in re.findall(r"\d+", page.evaluate(
        "getComputedStyle(document.body).backgroundColor"))])
    assert (paper > 0.5) == (scheme == "light")
    for colour in SERIES:
        ink = luminance([int(colour[at : at + 2], 16) for at in (1, 3, 5)])
        assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) >= 3, colour


def luminance(colour):
    """The relative luminance of an sRGB colour (WCAG 2.1)."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in np.array(colour) / 255]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def test_paper_has_dark_text_and_the_whole_content(visit):
    """In print, tables are not cut, what is folded is open, and a dark theme has no effect."""
    page, _ = visit(700, "dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator("dt", has_text="mIoU").bounding_box()["height"] > 10
    assert page.evaluate("document.documentElement.scrollWidth") <= 700


def test_flags_are_marked_up_and_text_is_escaped():
    assert flags_as_code("give <b> as --try-me:") == "give &lt;b&gt; as <code>--try-me</code>:"
