"""Sphinx: the pages of this folder, and the reference made from the docstrings.

    python -m sphinx -W --keep-going -b html docs docs/_build

Sources under `api/` may hold `{{ index PACKAGE }}` and `{{ reference PACKAGE }}`, which stand for
the names that the package's `__init__.py` exports, and `{{ modules PACKAGE }}`, which stands for
all that is public in its modules: a name added there needs no line here.
"""

import ast
import importlib
import inspect
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

project = "gnp"
copyright = "the authors of gnp, Apache-2.0"
html_title = "gnp"
html_theme = "furo"
html_copy_source = False
html_show_sphinx = False
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]
suppress_warnings = ["config.cache"]  # `setup` below is a function

# Docstrings: Google style; `code` in single backticks is a link where it is a name that is here.
default_role = "py:obj"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
add_module_names = False
smartquotes = False

# Markdown: formulas between dollars, links to headings.
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

# The headings of the reference, and the modules under each. A module that is missing here comes
# last, under the first line of its own docstring.
GROUPS = {
    "optimizer": {
        "The gradient-norm penalty": ("gradient_norm_penalty", "groups", "looksam"),
        "Schedules": ("schedules",),
        "Gradient centralization": ("centralization",),
        "Optimizers on the Grassmann manifold": ("sgdg", "adamg", "grassmann"),
        "Recorder": ("recorder",),
        "Kinds of parameters": ("parameters",),
        "The optimizer that a config asks for": ("build", "build_masks"),
        "Errors": ("_checks",),
    },
}


def exports(package: str) -> dict[str, list[str]]:
    """What `__init__.py` imports from each module of the package, in its order."""
    source = (ROOT / package / "__init__.py").read_text()
    found: dict[str, list[str]] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom) and (node.level == 1 or node.module != package):
            module = (node.module or "").removeprefix(f"{package}.")
            names = [alias.asname or alias.name for alias in node.names]
            found.setdefault(module, []).extend(n for n in names if not n.startswith("_"))
    return {module: names for module, names in found.items() if names}


def groups(package: str) -> dict[str, list[tuple[str, Any]]]:
    """Heading -> (name, object) of the package's public names."""
    found = exports(package)
    headings: dict[str, list[str]] = {
        heading: [module for module in modules if module in found]
        for heading, modules in GROUPS.get(package, {}).items()
    }
    listed = {module for modules in headings.values() for module in modules}
    for module in found:
        if module not in listed:
            headings.setdefault(summary(importlib.import_module(f"{package}.{module}")), []).append(
                module
            )
    public = importlib.import_module(package)
    return {
        heading: [(name, getattr(public, name)) for module in modules for name in found[module]]
        for heading, modules in headings.items()
        if modules
    }


def summary(thing: Any) -> str:
    """The first line of a docstring, without its full stop."""
    return (inspect.getdoc(thing) or "").partition("\n")[0].removesuffix(".")


def is_constant(thing: Any) -> bool:
    """Whether a name is a plain value, with nothing to read in its docstring."""
    return not (inspect.isroutine(thing) or inspect.isclass(thing))


def index(package: str) -> str:
    """A table: each public name with the first line of its docstring."""
    rows = [".. list-table::", "   :widths: auto", ""]
    for heading, names in groups(package).items():
        rows += [f"   * - **{heading}**", "     -"]
        for name, thing in names:
            line = f"``{thing!r}``" if isinstance(thing, tuple) else escaped(summary(thing))
            rows += [f"   * - :py:obj:`~{package}.{name}`", f"     - {line}"]
    return "\n".join(rows)


def reference(package: str) -> str:
    """A section a group: the documentation of each public name."""
    lines = [f".. py:module:: {package}", ""]
    for heading, names in groups(package).items():
        lines += [heading, "-" * len(heading), ""]
        for name, thing in names:
            if is_constant(thing):
                value = [f"   :value: {thing!r}"] if isinstance(thing, tuple) else []
                lines += [f".. py:data:: {name}", *value, ""]
            elif inspect.isclass(thing):
                lines += [f".. autoclass:: {package}.{name}", "   :members:", ""]
            else:
                lines += [f".. autofunction:: {package}.{name}", ""]
    return "\n".join(lines)


def modules(package: str) -> str:
    """All public members of each module of a package."""
    names = sorted(file.stem for file in (ROOT / package.replace(".", "/")).glob("[a-z]*.py"))
    return "\n".join(f".. automodule:: {package}.{name}\n   :members:\n" for name in names)


def expand(source: str) -> str:
    """A page's source with the marks of this file's docstring replaced."""
    makers = {"index": index, "modules": modules, "reference": reference}
    return re.sub(
        r"^\{\{ (index|modules|reference) ([\w.]+) \}\}$",
        lambda mark: makers[mark[1]](mark[2]),
        source,
        flags=re.MULTILINE,
    )


def returns_field(lines: list[str]) -> None:
    """Makes `Returns:` a field, in place; napoleon would take what is before a colon for a type."""
    if "Returns:" not in lines:
        return
    start = lines.index("Returns:")
    end = start + 1
    while end < len(lines) and (not lines[end] or lines[end].startswith(" ")):
        end += 1
    body = inspect.cleandoc("\n".join(lines[start + 1 : end])).splitlines()
    lines[start:end] = [f":returns: {body[0]}", *(f"    {line}" for line in body[1:]), ""]


def as_written(thing: Any, signature: str | None, result: str | None) -> tuple[Any, Any]:
    """A signature in the words of its source: aliases such as `optax.Params` stay what they are."""
    try:
        node = ast.parse(textwrap.dedent(inspect.getsource(thing))).body[0]
    except (OSError, TypeError):
        return signature, result
    if isinstance(node, ast.FunctionDef):
        if node.args.args and node.args.args[0].arg == "self":
            del node.args.args[0]
        returns = ast.unparse(node.returns) if node.returns else None
        return f"({ast.unparse(node.args)})", returns
    if hasattr(thing, "_fields") or hasattr(thing, "__dataclass_fields__"):
        fields = [field for field in node.body if isinstance(field, ast.AnnAssign)]
        return f"({', '.join(ast.unparse(field) for field in fields)})", None
    return signature, result


def escaped(line: str) -> str:
    """A line of text in which bars are characters: |θ| is a size, and nothing is substituted."""
    return re.sub(r"(``.*?``|`[^`]*`)|\|", lambda found: found[1] or r"\|", line)


def escape_bars(lines: list[str]) -> None:
    """Escapes the bars of a docstring, in place, but for those in formulas and examples."""
    block: int | None = None  # the indent of the formula or example that a line may be in
    for number, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if block is not None and (not line or indent > block):
            continue
        block = indent if line.lstrip().startswith((".. math::", "Example")) else None
        lines[number] = escaped(line)


def setup(app: Any) -> None:
    """Called by Sphinx."""

    def read(_: Any, name: str, source: list[str]) -> None:
        if name.startswith("api/"):
            source[0] = expand(source[0])
        else:  # Pages of the checkout outside of this folder, such as ../README.md, are files here.
            source[0] = re.sub(r"\]\((\.\./[\w./-]+\.md)[^)]*\)", r"](path:\1)", source[0])

    def skip(_: Any, what: str, name: str, member: Any, skipped: bool, options: Any) -> bool | None:
        # The fields of a NamedTuple: the signature has them, "Alias for field number 0" says less.
        return True if type(member).__name__ == "_tuplegetter" else None

    def written(_: Any, __: str, ___: str, thing: Any, ____: Any, *types: Any) -> tuple[Any, Any]:
        return as_written(thing, *types)

    app.connect("source-read", read)
    app.connect("autodoc-process-docstring", lambda *event: escape_bars(event[-1]), priority=300)
    app.connect("autodoc-process-docstring", lambda *event: returns_field(event[-1]), priority=400)
    app.connect("autodoc-process-signature", written)
    app.connect("autodoc-skip-member", skip)
