"""Sphinx settings of the site: `make site` lays README, docs and notebooks beside this file."""

from tools import address

project = "visdepth"
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinxcontrib.mermaid",
]
html_theme = "sphinx_book_theme"
html_title = "visdepth"
html_copy_source = False
html_theme_options = {"show_navbar_depth": 1, "use_download_button": False}
if (repository := address.repository()) != address.PLACEHOLDER:  # nobody can clone from there
    html_theme_options |= {
        "repository_url": repository,
        "use_repository_button": True,
        "launch_buttons": {
            "colab_url": "https://colab.research.google.com",
            "binderhub_url": "https://mybinder.org",
            "notebook_interface": "jupyterlab",
        },
    }
nb_execution_mode = "off"  # pages show what the notebooks hold
nb_merge_streams = True
myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["mermaid"]
myst_heading_anchors = 3
autodoc_typehints = "description"
# The Colab cell holds shell lines, which are no Python. Links may lead to files that are no pages.
suppress_warnings = ["misc.highlighting_failure", "myst.xref_missing"]
