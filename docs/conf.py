"""The documentation's site: `make site`."""

import json
import re
from collections.abc import Iterator
from importlib.metadata import version as version_of
from pathlib import Path

from docutils import nodes
from myst_parser.parsers.sphinx_ import MystParser
from sphinx.application import Sphinx

project = "pointer-rl"
author = "pointer-rl contributors"
version = release = version_of("pointer-rl")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
myst_heading_anchors = 3  # as a forge gives them: links to headings hold in both places
default_role = "literal"  # docstrings write `name`
smartquotes = False  # `--limit` is no dash

add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "undoc-members": True}

html_theme = "furo"
html_title = "pointer-rl"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_static_path = ["static"]
html_css_files = ["site.css"]

copybutton_selector = "div.highlight:not(.highlight-text *) pre"  # `text` is what was printed


class NotebookParser(MystParser):
    """A notebook as a page: its Markdown, its code, and what the code showed."""

    supported = ("notebook",)

    def parse(self, inputstring: str, document: nodes.document) -> None:
        """Read the notebook as the Markdown page that it amounts to."""
        name = Path(document["source"]).name
        parts = [
            *_cells(json.loads(inputstring)),
            f"{{download}}`This page as a notebook <{name}>`",
        ]
        super().parse("\n\n".join(parts), document)


def _cells(notebook: dict) -> Iterator[str]:
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            yield "".join(cell["source"])
        else:
            yield _fenced("python", "".join(cell["source"]))
            yield from map(_output, cell["outputs"])


def _output(output: dict) -> str:
    data = {key: "".join(value) for key, value in output.get("data", {}).items()}
    if "text/html" in data:
        return _fenced("{raw} html", data["text/html"])
    if "image/png" in data:
        return _fenced(
            "{raw} html", f'<img alt="" src="data:image/png;base64,{data["image/png"]}">'
        )
    return _fenced("text", data.get("text/plain") or "".join(output["text"]).rstrip())


def _fenced(language: str, text: str) -> str:
    return f"````{language}\n{text}\n````"


def _write_llms(app: Sphinx, error: Exception | None) -> None:
    """llms.txt, a line for each page, and llms-full.txt, the pages, for language models."""
    if error is not None or app.builder.format != "html":
        return
    index = ["# pointer-rl", "", f"> {_first_sentence(app, app.config.root_doc)}", ""]
    full = []
    for section in app.env.toctree_includes[app.config.root_doc]:
        index += [f"## {app.env.titles[section].astext()}", ""]
        for page in app.env.toctree_includes[section]:
            title, link = app.env.titles[page].astext(), app.builder.get_target_uri(page)
            index.append(f"- [{title}]({link}): {_first_sentence(app, page)}")
            source = Path(app.env.doc2path(page))
            full.append(source.read_text("utf-8") if source.suffix == ".md" else "")
        index.append("")
    Path(app.outdir, "llms.txt").write_text("\n".join(index), "utf-8")
    Path(app.outdir, "llms-full.txt").write_text("\n".join(full), "utf-8")


def _first_sentence(app: Sphinx, page: str) -> str:
    paragraph = next(app.env.get_doctree(page).findall(nodes.paragraph), None)
    text = "" if paragraph is None else " ".join(paragraph.astext().split())
    return re.split(r"(?<=[.?!]) (?=[A-Z])", text)[0]


def setup(app: Sphinx) -> None:
    """Notebooks as pages, and what is written beside the pages."""
    app.add_source_suffix(".ipynb", "notebook")
    app.add_source_parser(NotebookParser)
    app.connect("build-finished", _write_llms)
