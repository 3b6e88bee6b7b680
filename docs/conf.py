"""Sphinx: the pages of this folder, and the reference made from the docstrings.

    python -m sphinx -W --keep-going -b html docs docs/_build

A public name of `optimizer` needs a line in api/index.rst, a module of gnp.training its own in
api/training.rst; the rest of api/ is found.
"""

import ast
import inspect
import os
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

ROOT = str(Path(__file__).resolve().parents[1])
sys.path.insert(0, ROOT)

project = "gnp"
copyright = "the authors of gnp, Apache-2.0"
html_title = "gnp"
html_theme = "furo"
html_copy_source = False
html_show_sphinx = False
extensions = [
    "myst_nb",  # and with it myst_parser
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build", "jupyter_execute"]

# Tutorials: run anew at each build, each in a kernel of its own; an error in a cell ends the build.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_merge_streams = True
# Of the kernels. Most of a tutorial's time is compilation, and most of that optimization.
os.environ["PYTHONPATH"] = ROOT
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

# Docstrings: Google style; `code` in single backticks is a link where it is a name that is here.
default_role = "py:obj"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = ["Returns"]  # text: what is before its first colon is no type
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
add_module_names = False
smartquotes = False

# Markdown: formulas between dollars, links to headings.
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3


def link_files(_: Any, name: str, source: list[str]) -> None:
    """Take pages of the checkout outside of this folder, such as ../README.md, for files."""
    out = r"\.\./" * (name.count("/") + 1)
    source[0] = re.sub(rf"\]\(({out}[\w./-]+\.md)[^)]*\)", r"](path:\1)", source[0])


def edit_docstring(_: Any, what: str, __: str, thing: Any, ___: Any, lines: list[str]) -> None:
    """Escape the bars of a docstring, in place: |θ| is a length, and nothing is substituted.

    Paragraphs with a backslash are formulas, those with a prompt examples. What a constant has is
    the docstring of its type: its value says more.
    """
    if isinstance(thing, (int, tuple)):
        lines[:] = [f"``{thing!r}``"]
    paragraphs = "\n".join(lines).split("\n\n")
    for number, text in enumerate(paragraphs):
        if "\\" not in text and ">>>" not in text:
            paragraphs[number] = re.sub(r"(`[^`]*`)|\|", lambda bar: bar[1] or r"\|", text)
    lines[:] = "\n\n".join(paragraphs).split("\n")


def edit_signature(_: Any, __: str, ___: str, thing: Any, *____: Any) -> tuple[Any, Any] | None:
    """Return a signature as in the source: `optax.Params` is shorter than what it stands for."""
    try:
        node = ast.parse(textwrap.dedent(inspect.getsource(thing))).body[0]
    except (OSError, TypeError):
        return None
    if isinstance(node, ast.FunctionDef):
        node.args.args = [each for each in node.args.args if each.arg != "self"]
        return f"({ast.unparse(node.args)})", ast.unparse(node.returns) if node.returns else None
    if hasattr(thing, "_fields") or hasattr(thing, "__dataclass_fields__"):
        fields = [ast.unparse(each) for each in node.body if isinstance(each, ast.AnnAssign)]
        return f"({', '.join(fields)})", None
    return None


def skip_fields(_: Any, __: str, ___: str, member: Any, *____: Any) -> bool | None:
    """Leave out the fields of a NamedTuple: the signature has them."""
    return True if type(member).__name__ == "_tuplegetter" else None


def setup(app: Any) -> None:
    """Connect the hooks; Sphinx calls this."""
    app.connect("source-read", link_files)
    app.connect("autodoc-process-docstring", edit_docstring, priority=300)  # before napoleon
    app.connect("autodoc-process-signature", edit_signature)
    app.connect("autodoc-skip-member", skip_fields)
