"""The site has every page once, and no link that leads out of it."""

import argparse

import make_site
import pytest

from unistep.errors import UserError


def test_pages_bring_what_they_link_to(tmp_path, monkeypatch):
    root, pages = tmp_path / "root", tmp_path / "pages"
    for folder in (root / "docs", root / "src" / "deep", pages):
        folder.mkdir(parents=True)
    (root / "docs" / "use.md").write_text("# Use\n")
    (root / "LICENSE").write_text("free\n")
    (root / "src" / "deep" / "terms.md").write_text("[free](../../LICENSE), [home](../../README.md)\n")
    (root / "README.md").write_text(
        "# one\n[a](docs/use.md#b) [c](https://x.org/docs/y) [d](#e) ![f](docs/images/g.png) [t](src/deep/terms.md)\n"
    )
    monkeypatch.setattr(make_site, "ROOT", root)
    make_site.add_page(root / "README.md", pages, "README.md")
    assert (pages / "README.md").read_text() == (
        "# one\n[a](use.md#b) [c](https://x.org/docs/y) [d](#e) ![f](images/g.png) [t](terms.md)\n"
    )
    assert (pages / "terms.md").read_text() == "[free](LICENSE.txt), [home](README.md)\n"
    assert (pages / "LICENSE.txt").read_text() == "free\n"


def test_every_page_is_in_the_contents_once(tmp_path):
    names = [path.name for path in (make_site.ROOT / "docs").glob("*.md")]
    for name in ("index.md", "terms.LICENSE.md", *names):
        (tmp_path / name).touch()
    found = make_site.navigation(tmp_path, ["digits"])
    flat = [page for entry in found for page in (next(iter(entry.values())) if isinstance(entry, dict) else [entry])]
    assert found[:2] == [{"unistep": "index.md"}, {"Try it": [{"digits": "try/digits/index.html"}]}]
    assert all(flat.count(name) == 1 for name in names) and "terms.LICENSE.md" not in flat
    assert all((make_site.ROOT / "docs" / f"{name}.md").exists() for own in make_site.SECTIONS.values() for name in own)


def test_models_have_a_name_in_the_address():
    assert make_site.parse_model("mnist") == ("mnist", "mnist")
    assert make_site.parse_model("cifar10=runs/cifar10-minutes") == ("cifar10", "runs/cifar10-minutes")
    assert make_site.parse_model("runs/cifar10-minutes") == ("cifar10-minutes", "runs/cifar10-minutes")
    for text in ("a b=mnist", "..=mnist", "runs/.."):
        with pytest.raises(argparse.ArgumentTypeError, match="cannot be part of an address"):
            make_site.parse_model(text)


def test_models_stand_below_the_title():
    assert make_site.invitation("# one\nrest\n", []) == "# one\nrest\n"
    assert make_site.invitation("# one\nrest\n", ["digits"]) == (
        '# one\n\n**Try it here, in your browser: <a href="try/digits/index.html">digits</a>**\nrest\n'
    )


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("all of it")
    with pytest.raises(UserError, match="holds something else than a site; give another `output`"):
        make_site.make_site(tmp_path, [], None)
    assert (tmp_path / "thesis.tex").read_text() == "all of it"
