"""Makes the documentation as a site of static files, with models that run in the visitor's browser.

    python scripts/make_site.py                                          `site/`, with the embedded model (`make site`)
    python scripts/make_site.py --model mnist --model cifar10=runs/cifar10-minutes     with further ones

The pages are README.md and docs/, set by mkdocs; each model is a page of `unistep export --to web` below `try/`. No
page asks another server for anything. Any static host serves the folder, at any address:

    python -m http.server --directory site
"""

import argparse
import logging
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml

import unistep
from unistep.errors import UserError

ROOT = Path(__file__).resolve().parents[1]

SECTIONS = {
    "Train": ("methods", "recipes", "scaling", "data", "cifar10", "emoji", "extending"),
    "Use": ("checkpoints", "diffusers", "editing", "serving", "export", "browser", "performance"),
    "Measure": ("evaluation", "results"),
    "Inside": ("architecture", "notation", "randomness"),
}
"""Pages of docs/ by chapter, in their order; those that are in none stand at the end."""

THEME: dict[str, Any] = {
    "name": "material",
    "font": False,  # else a page asks Google for its fonts
    "features": ["navigation.sections", "navigation.top", "content.code.copy"],
    "palette": [
        {
            "media": f"(prefers-color-scheme: {scheme})",
            "scheme": name,
            "primary": "indigo",
            "toggle": {"icon": icon, "name": f"change to {other}"},
        }
        for scheme, name, icon, other in (
            ("light", "default", "material/brightness-7", "dark"),
            ("dark", "slate", "material/brightness-4", "light"),
        )
    ],
}


def parse_model(text: str) -> tuple[str, str]:
    """A model and the name of its page, of NAME=MODEL or of a model whose last part is the name.

    Args:
        text: argument of the command line.

    Raises:
        argparse.ArgumentTypeError: the name cannot be part of an address.
    """
    name, _, model = text.rpartition("=")
    name = name or Path(model).name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise argparse.ArgumentTypeError(f"{name!r} cannot be part of an address; give NAME=MODEL")
    return name, model


def add_page(source: Path, pages: Path, name: str) -> None:
    """Writes a page from outside docs/ beside those of docs/, with the files that it links to.

    Args:
        source: page.
        pages: folder of the pages.
        name: name of the page there.
    """

    def moved(link: re.Match[str]) -> str:
        target, _, anchor = link[1].partition("#")
        own = (source.parent / target).resolve()
        if not target or not own.is_relative_to(ROOT):
            return link[0]
        if own.is_relative_to(ROOT / "docs"):
            target = own.relative_to(ROOT / "docs").as_posix()
        else:
            target = own.name if own.suffix else f"{own.name}.txt"
            if own.suffix == ".md" and not (pages / target).exists():
                add_page(own, pages, target)
            elif own.suffix != ".md":
                shutil.copy(own, pages / target)
        return f"]({target}{'#' * bool(anchor)}{anchor})"

    (pages / name).touch()  # pages may link to each other
    text = re.sub(r"\]\((?!\w+:)([^)\s]+)\)", moved, source.read_text(encoding="utf-8"))
    (pages / name).write_text(text, encoding="utf-8")


def invitation(text: str, models: list[str]) -> str:
    """The first page with links to the models below its title.

    Args:
        text: text of the page.
        models: names of the models' pages.
    """
    title, rest = text.split("\n", 1)
    links = " · ".join(f'<a href="try/{name}/index.html">{name}</a>' for name in models)
    return f"{title}\n\n**Try it here, in your browser: {links}**\n{rest}" if models else text


def navigation(folder: Path, models: list[str]) -> list[Any]:
    """The table of contents: chapters, and pages that are in none of them at the end.

    Args:
        folder: folder of the pages.
        models: names of the models' pages.
    """
    there = {path.stem: path.name for path in sorted(folder.glob("*.md")) if ".LICENSE" not in path.stem}
    nav: list[Any] = [{"unistep": there.pop("index")}]
    if models:
        nav.append({"Try it": [{name: f"try/{name}/index.html"} for name in models]})
    for chapter, names in SECTIONS.items():
        nav.append({chapter: [there.pop(name) for name in names if name in there]})
    return nav + [*there.values()]


def make_site(output: Path, models: list[tuple[str, str]], runtime_folder: str | None) -> None:
    """Writes the site; what is there of a former one is replaced, once the new one is whole.

    Args:
        output: folder.
        models: names and models of the pages that make images.
        runtime_folder: files of onnxruntime-web; None has npm fetch them.

    Raises:
        UserError: the folder holds something else, or a model cannot be exported.
    """
    if output.exists() and any(output.iterdir()) and not (output / "sitemap.xml").exists():
        raise UserError(f"{output} holds something else than a site", "give another `output`")
    try:
        from mkdocs.commands.build import build  # pyright: ignore[reportMissingImports]
        from mkdocs.config import load_config  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError("the package mkdocs is missing", "pip install 'unistep[docs]'") from None
    names = [name for name, _ in models]
    with tempfile.TemporaryDirectory(dir=output.absolute().parent, prefix=f".{output.name}.") as temporary:
        pages, made = Path(temporary) / "pages", Path(temporary) / "site"
        shutil.copytree(ROOT / "docs", pages)
        add_page(ROOT / "CONTRIBUTING.md", pages, "CONTRIBUTING.md")
        first = pages / "index.md"
        add_page(ROOT / "README.md", pages, first.name)
        first.write_text(invitation(first.read_text(encoding="utf-8"), names), encoding="utf-8")
        for name, model in models:
            unistep.export(model, pages / "try" / name, to="web", runtime_folder=runtime_folder)
            (pages / "try" / f"{name}.export.json").unlink()  # the comparison is no part of the site
        config = {
            "site_name": "unistep",
            "docs_dir": str(pages),
            "site_dir": str(made),
            "use_directory_urls": False,  # the site also opens from a folder
            "strict": True,
            "theme": THEME,
            "plugins": ["search"],
            "markdown_extensions": ["tables", "toc", "pymdownx.highlight", "pymdownx.superfences", "md_in_html"],
            "nav": navigation(pages, names),
            "validation": {"nav": {"not_found": "info"}, "links": {"unrecognized_links": "warn", "anchors": "warn"}},
        }
        (Path(temporary) / "mkdocs.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
        build(load_config(str(Path(temporary) / "mkdocs.yml")))
        if output.exists():
            shutil.rmtree(output)
        made.rename(output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("site"), help="folder (default: site)")
    parser.add_argument(
        "--model", type=parse_model, action="append", help="consistency model, as MODEL or NAME=MODEL (default: mnist)"
    )
    parser.add_argument("--runtime-folder", help="folder with the files of onnxruntime-web, in place of npm")
    arguments = parser.parse_args()
    logging.basicConfig(format="%(levelname)s: %(message)s")
    try:
        make_site(arguments.output, arguments.model or [("mnist", "mnist")], arguments.runtime_folder)
    except UserError as error:
        parser.exit(2, f"make_site: error: {error}\n")
    print(f"done: {arguments.output}; look at it with: python -m http.server --directory {arguments.output}")


if __name__ == "__main__":
    main()
