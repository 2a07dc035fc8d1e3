"""The report in a real browser: opened from disk, without a network; hover, click, keys, dark, phone.

ACTCACHE_SCREENSHOTS names a folder that keeps the screenshots.
"""

import csv
import time

import pytest

from actcache.analysis.report.html.results_page import results_page
from tests.support.browser import opened
from tests.support.concepts import planted_concepts
from tests.support.pages import HOSTILE, full_summary, planted_choices, planted_samples

pytestmark = pytest.mark.slow

NAMES = [HOSTILE, "behavior 1", "behavior 2"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    summary = full_summary()
    page = results_page(
        summary,
        samples=planted_samples(names=NAMES),
        choices=planted_choices(NAMES),
        concepts=planted_concepts(NAMES),
        commands=["actcache analyze"],
        again="actcache report",
    )
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def page(path, tmp_path_factory):
    with opened(path, tmp_path_factory.mktemp("desktop")) as page:
        yield page


def test_every_chart_is_drawn_nothing_is_asked_for_and_nothing_complained_of(page):
    page.open()
    # Not drawn until a sample is picked: its two charts.
    assert len(page.all(".chart[data-table]")) - len(page.all(".chart svg.marks")) == 2
    assert len(page.all(".chart[data-chart=layers] svg.marks")) == len(NAMES)
    page.screenshot("results-1280")
    assert page.requests() == []
    assert page.complaints() == []


def test_names_and_prompts_of_others_run_nothing(page):
    assert page.run("return window.harmed") is None
    assert page.all("main img") == []


# Another test may have left a tooltip that is still there.
TOOLTIP_SAYS = (
    "return document.querySelector('#vg-tooltip-element.visible')?.innerText.includes(arguments[0])"
)


def test_hovering_shows_the_numbers_of_a_layer(page):
    chart = page.find(".chart[data-chart=grid] svg.marks path[aria-roledescription='rect mark']")
    page.hover(chart)
    page.wait(TOOLTIP_SAYS, "multiplier")
    words = page.find("#vg-tooltip-element").text
    for word in ("layer", "multiplier", "change"):
        assert word in words
    page.screenshot("hover", whole=False)


def test_a_concepts_masses_are_shown_with_the_chosen_tokens_on_them(page):
    panels = page.all(".chart[data-chart=masses]")
    assert len(panels) == len(NAMES)
    drawn = page.run(
        "return arguments[0].map(panel => ['rect', 'symbol'].map("
        "kind => panel.querySelectorAll(`.mark-${kind}.role-mark path`).length))",
        panels,
    )
    assert drawn == [[6, 2], [6, 3], [6, 3]]  # two tokens, three layers; one layer is blind
    page.hover(page.find(".chart[data-chart=masses] .mark-symbol.role-mark path"))
    page.wait(TOOLTIP_SAYS, "template_-2")
    assert {"template_-2", "0.623"} <= set(page.find("#vg-tooltip-element").text.split())


def test_a_click_shows_a_samples_curves_at_every_layer(page):
    page.click("#explorer tbody tr:nth-child(2)")
    page.wait("return document.querySelectorAll('#detail .chart svg.marks').length === 2")
    row = page.find("#explorer tr[aria-selected=true]")
    assert page.find("#detail").get_attribute("data-sample") == row.get_attribute("data-sample")
    assert "Prompt number" in page.find("#detail .prompt").text
    lines = "#detail [data-chart=sample-curves] path[aria-roledescription='line mark']"
    assert len(page.all(lines)) == 3  # layers
    page.screenshot("sample", whole=False)


def test_samples_are_searched_sorted_and_filtered(page):
    shown = (
        "return [...document.querySelectorAll('#explorer tbody tr')].map(r => +r.dataset.sample)"
    )
    page.run("document.getElementById('explorer-search').value = 'number 3'")
    page.run("document.getElementById('explorer-search').dispatchEvent(new Event('input'))")
    assert set(page.run(shown)) == {3, *range(30, 40)}
    page.click("th[data-sort=slope] button")
    assert page.run(shown) == [*range(39, 29, -1), 3]  # slopes rise with the number
    page.click("th[data-sort=slope] button")
    assert page.run(shown) == [3, *range(30, 40)]
    assert page.find("th[data-sort=slope]").get_attribute("aria-sort") == "ascending"
    page.run(
        "const s = document.getElementById('explorer-letter'); s.value = 'B';"
        "s.dispatchEvent(new Event('input'))"
    )
    assert page.run(shown) == [3, *range(31, 40, 2)]
    assert "1–6 of 6 samples" in page.find("#explorer-count").text


def test_the_keyboard_reaches_rows_and_heads(page):
    from selenium.webdriver.common.keys import Keys

    first, second = page.all("#explorer tbody tr")[:2]
    first.send_keys(Keys.ARROW_DOWN)
    assert page.run("return document.activeElement.dataset.sample") == second.get_attribute(
        "data-sample"
    )
    second.send_keys(Keys.ENTER)
    page.wait("return document.getElementById('detail').dataset.sample === arguments[0]",
              second.get_attribute("data-sample"))  # fmt: skip
    head = page.find("th[data-sort=best] button")
    head.send_keys(Keys.ENTER)
    assert page.find("th[data-sort=best]").get_attribute("aria-sort") == "descending"


def test_another_framing_is_drawn_in_every_panel(page):
    def drawn():
        return page.run(
            "return [...document.querySelectorAll('[data-chart=layers] svg.marks')].map(s => s.innerHTML)"
        )

    before = drawn()
    page.run(
        "const s = document.querySelector('[data-of=layers]'); s.value = 'sys_neg';"
        "s.dispatchEvent(new Event('change'))"
    )
    page.wait(
        "return document.querySelector('[data-chart=layers] svg.marks').innerHTML !== arguments[0]",
        before[0],
    )


def test_a_prompt_in_the_plane_is_picked_by_a_click(page):
    for value in ("letter", "best"):
        page.run(
            "const s = document.getElementById('plane-color'); s.value = arguments[0];"
            "s.dispatchEvent(new Event('change'))",
            value,
        )
        page.wait("return document.querySelector('#plane-chart').dataset.chart === arguments[0]"
                  " && document.querySelector('#plane-chart svg') !== null", f"plane-{value}")  # fmt: skip
    page.run("document.getElementById('detail').dataset.sample = ''")
    deadline = time.monotonic() + 60
    while page.run("return document.getElementById('detail').dataset.sample === ''"):
        assert time.monotonic() < deadline
        time.sleep(0.1)  # a new view takes its listeners when it is drawn
        point = page.find("#plane-chart svg.marks .mark-symbol.role-mark path")
        page.hover(point)
        point.click()


def test_tables_are_saved_as_csv(page):
    page.click("[data-csv=letters]")
    page.click("#settings details:nth-of-type(1) summary")
    page.click("#settings details:nth-of-type(1) button.csv")

    def rows(name):
        path = page.folder / name
        for _ in range(600):
            if path.exists():
                break
            time.sleep(0.1)
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.reader(file))

    letters = rows("letters.csv")
    assert letters[0][:3] == ["behavior", "letter", "n"]
    assert letters[1][0] == HOSTILE
    assert ["draws", "1000"] in rows("settings.csv")


def test_it_is_readable_on_a_phone_and_in_the_dark(path, tmp_path):
    for name, width, dark in (
        ("phone", 390, False),
        ("dark", 1280, True),
        ("phone-dark", 390, True),
    ):
        with opened(path, tmp_path, width=width, height=844, dark=dark) as page:
            assert page.run("return document.documentElement.scrollWidth <= innerWidth"), name
            ink, paper = page.run(
                "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]"
            )
            assert (sum(rgb(ink)) > sum(rgb(paper))) == dark
            label = page.run(
                "return getComputedStyle(document.querySelector('.chart .role-axis-label text')).fill"
            )
            assert (sum(rgb(label)) > 3 * 128) == dark
            page.screenshot(name)
            assert page.complaints() == []


def test_it_prints_light_with_all_tables_open(path, tmp_path):
    with opened(path, tmp_path, dark=True) as page:
        printed = page.driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
        assert len(printed["data"]) > 50_000
        page.run("dispatchEvent(new Event('beforeprint'))")
        assert page.all("main details:not([open])") == []
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
        paper = page.run("return getComputedStyle(document.body).backgroundColor")
        assert rgb(paper) == [255, 255, 255]
        assert not page.find("nav").is_displayed()


def rgb(text):
    return [int(part) for part in text[text.index("(") + 1 : -1].split(",")[:3]]
