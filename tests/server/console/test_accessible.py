"""Every page can be used by keyboard and read by a screen reader, as far as its elements and colours say."""

import re
from importlib.resources import files
from itertools import pairwise

import pytest

from tests.server.console.demo import Browser, Elements

CSS = (files("antibody_llm.server.console") / "static" / "console.css").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def pages(server, demo, operator, theirs, customer):
    """Every page, by a name."""
    held, _ = demo.judged(customer[0], "held")
    running, failed = demo.job(customer[0]), demo.judged(customer[0], "failed")[0]
    fault = {"line": 1, "field": "messages", "kind": "k", "message": "is empty."}
    file = demo.file(customer[0], faults=[fault])
    paths = ["jobs", "files", "held", "audit", f"files/{file}", f"jobs/{held}/rows", "jobs/nothing"]
    paths += [f"jobs/{job}" for job in (held, running, failed)]
    found = {f"operator {path}": operator.get(f"/console/{path}").text for path in paths}
    found |= {
        f"customer {path}": theirs.get(f"/console/{path}").text for path in paths if path not in ("held", "audit")
    }
    revealed = operator.send(f"/console/jobs/{held}/rows", page="1").text
    refused = Browser(server).sign_in("wrong").text
    found |= {"revealed": revealed, "refused": refused, "sign in": Browser(server).get("/console/sign-in").text}
    return {name: Elements(text) for name, text in found.items()}


def test_every_page_has_a_language_a_title_one_heading_and_its_landmarks(pages):
    titles = set()
    for name, page in pages.items():
        assert page.all("html")[0]["attrs"]["lang"] == "en", name
        assert [len(page.all(tag)) for tag in ("h1", "main", "header", "footer", "title")] == [1] * 5, name
        titles.add(page.all("title")[0]["text"])
        first = next(each for each in page.all("a"))
        assert first["attrs"]["href"] == "#main", name
        assert page.all("main")[0]["attrs"]["id"] == "main", name
    assert len(titles) >= 9


def test_headings_follow_each_other_without_a_gap(pages):
    for name, page in pages.items():
        levels = [int(each["tag"][1]) for each in page.all("h1", "h2", "h3", "h4")]
        assert levels[0] == 1, name
        assert all(after <= before + 1 for before, after in pairwise(levels)), (name, levels)


def test_every_field_has_a_label_and_every_button_and_link_a_name(pages):
    for name, page in pages.items():
        labels = {each["attrs"]["for"] for each in page.all("label")}
        for field in page.all("input", "textarea", "select", "progress"):
            assert field["attrs"].get("type") == "hidden" or field["attrs"]["id"] in labels, (name, field["attrs"])
        for each in page.all("a", "button", "summary", "th", "caption"):
            assert each["text"].strip(), (name, each)


def test_every_table_has_a_caption_and_headers_that_say_what_they_head(pages):
    for name, page in pages.items():
        tables = page.all("table")
        assert len(page.all("caption")) == len(tables), name
        assert all(each["attrs"]["scope"] in ("col", "row") for each in page.all("th")), name
        scrolled = [each for each in page.all("div") if each["attrs"].get("class") == "scroll"]
        assert len(scrolled) == len(tables), name  # a keyboard reaches what overflows
        assert all(each["attrs"]["tabindex"] == "0" and each["attrs"]["aria-label"] for each in scrolled), name


def test_every_reference_leads_somewhere_and_every_id_is_one(pages):
    for name, page in pages.items():
        ids = [each["attrs"]["id"] for each in page.found if "id" in each["attrs"]]
        assert len(ids) == len(set(ids)), name
        for each in page.found:
            for attribute in ("aria-labelledby", "aria-describedby", "for"):
                for target in (each["attrs"].get(attribute) or "").split():
                    assert target in ids, (name, attribute, target)


def test_every_picture_is_named_or_hidden(pages):
    seen = 0
    for name, page in pages.items():
        for picture in page.all("svg"):
            seen += 1
            attrs = picture["attrs"]
            assert attrs.get("aria-hidden") == "true" or (attrs["role"] == "img" and attrs["aria-label"]), name
    assert seen > 10


def test_where_one_is_is_said_and_not_only_coloured(pages):
    for name, path in (("operator jobs", "/console/jobs"), ("operator audit", "/console/audit")):
        (here,) = [each for each in pages[name].all("a") if each["attrs"].get("aria-current") == "page"]
        assert here["attrs"]["href"] == path


# -- colours -----------------------------------------------------------------------------------------------------


def colours(dark):
    """The colours of a scheme, by name."""
    found = [
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block)) for block in re.findall(r":root \{(.*?)\}", CSS, re.S)
    ]
    return found[0] | (found[1] if dark else {})


def contrast(one, other):
    """The ratio of WCAG 2.2, 1 to 21."""

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_from_what_is_behind_it(dark):
    named = colours(dark)
    for text in ("ink", "soft", "accent", "good", "bad", "warn"):
        for behind in ("paper", "tint"):
            assert contrast(named[text], named[behind]) >= 4.5, (text, behind)
    assert contrast(named["on-accent"], named["accent"]) >= 4.5


@pytest.mark.parametrize("dark", [False, True])
def test_curves_edges_and_the_focus_stand_out_too(dark):
    named = colours(dark)
    for drawn in ("first", "second", "third", "focus", "soft", "accent"):
        for behind in ("paper", "tint"):
            assert contrast(named[drawn], named[behind]) >= 3, (drawn, behind)


def test_contrast_is_that_of_wcag():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def test_both_schemes_name_the_same_colours_and_no_other_colour_is_written():
    first, second = (re.findall(r"--([\w-]+):", block) for block in re.findall(r":root \{(.*?)\}", CSS, re.S))
    assert first == second
    rules = re.sub(r":root \{.*?\}", "", CSS, flags=re.S)
    assert not re.findall(r"#[0-9a-fA-F]{3,8}\b|rgb|hsl", rules)
    assert ":focus-visible" in CSS
    assert "outline: none" not in CSS.replace("main:focus { outline: none; }", "")
