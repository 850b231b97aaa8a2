"""The documentation's site: `make site`."""

from importlib.metadata import version as version_of

project = "pointer-rl"
author = "the pointer-rl maintainers"
version = release = version_of("pointer-rl")

extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_heading_anchors = 3  # as a forge gives them: links to headings hold in both places
default_role = "literal"  # docstrings write `name`

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
