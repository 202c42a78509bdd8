"""The part of a page that a benchmark writes."""

import argparse

import pytest
from marked_page import MarkedPage, marked_page

BEGIN, END = "<!-- speed: begin -->", "<!-- speed: end -->"


def test_a_part_is_replaced_and_nothing_else(tmp_path):
    path = tmp_path / "page.md"
    path.write_text(f"before\n{BEGIN}\nearlier\n{END}\nafter\n<!-- other: begin -->\n<!-- other: end -->\n")
    page = MarkedPage(path, "speed")
    for text in ("one", "two"):
        page.write(text)
    assert path.read_text() == f"before\n{BEGIN}\ntwo\n{END}\nafter\n<!-- other: begin -->\n<!-- other: end -->\n"


@pytest.mark.parametrize("content", ["", BEGIN, END, f"{END}\n{BEGIN}", "<!-- size: begin -->\n<!-- size: end -->"])
def test_a_page_without_the_part_is_refused_and_stays(tmp_path, content):
    path = tmp_path / "page.md"
    path.write_text(content)
    with pytest.raises(argparse.ArgumentTypeError, match="has no lines"):
        marked_page("speed")(str(path))
    assert path.read_text() == content


def test_a_page_that_is_missing_is_refused(tmp_path):
    with pytest.raises(argparse.ArgumentTypeError, match="cannot be read"):
        marked_page("speed")(str(tmp_path / "page.md"))
