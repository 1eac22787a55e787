"""Sphinx configuration: README and performance as pages, the public API from its docstrings."""

project = "captum-attn-lime"
copyright = "2026, the captum-attn-lime developers"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build"]
autodoc_typehints = "none"
autodoc_member_order = "bysource"
myst_heading_anchors = 3
html_theme = "furo"
html_title = project
# README is written for the repository's own page: its links to examples lead out of the documentation.
suppress_warnings = ["myst.xref_missing"]
