"""How the documentation is built: ``nox -s docs``, where every warning is an error."""

from __future__ import annotations

import re
from importlib import import_module
from importlib.metadata import version as installed_version
from types import ModuleType
from typing import TYPE_CHECKING

from sphinx.util.logging import getLogger

if TYPE_CHECKING:
    from docutils.nodes import Element, TextElement
    from sphinx.addnodes import pending_xref
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

log = getLogger(__name__)

project = "trio_bgtasks"
author = "The trio_bgtasks authors"
project_copyright = f"2026, {author}"
release = version = installed_version("trio-bgtasks")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = project

default_role = "py:obj"  # `single backticks` of a docstring become a link where there is one
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_type_aliases = {
    "JsonObject": "JsonObject",  # not the recursive union that it stands for
    "TaskResult": "~trio_bgtasks.TaskResult",
    "Event": "~trio_bgtasks.Event",
}

nitpicky = True
nitpick_ignore_regex = [
    ("py:obj", r".*"),  # the default role again: not every word in backticks is ours
    ("py:.*", r".*\.(\w+T|[A-Z])"),  # type variables
    ("py:.*", r"(?!trio_bgtasks\b).*"),  # other projects: a build must not need the network
]

PUBLIC = [
    "trio_bgtasks",
    *(f"trio_bgtasks.{room}" for room in ("mcp", "stores", "stores.sqlite", "testing", "tools")),
]


def spell_aliases(
    _app: Sphinx,
    _what: str,
    _name: str,
    _obj: object,
    _options: object,
    signature: str | None,
    returns: str | None,
) -> tuple[str | None, str | None]:
    """Write an alias within another type by its name, where Sphinx shows a wrapper of its own."""
    wrapper = re.compile(r"TypeAliasForwardRef\('([^']+)'\)")
    return signature and wrapper.sub(r"\1", signature), returns


def resolve_public_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: TextElement
) -> Element | None:
    """Lead the path where a name is defined to the one that it is public under."""
    path = node.get("reftarget", "")
    if not path.startswith(f"{project}."):
        return None
    name = path.rpartition(".")[2]
    domain = env.domains.python_domain
    for module in PUBLIC:
        public = f"{module}.{name}"
        if public in domain.objects:
            return domain.resolve_xref(
                env, node["refdoc"], app.builder, "obj", public, node, content
            )
    return None


def check_completeness(_app: Sphinx, env: BuildEnvironment) -> None:
    """Every public name stands in the reference."""
    documented = env.domains.python_domain.objects
    missing = [
        f"{module}.{name}"
        for module in PUBLIC
        for name, value in vars(import_module(module)).items()
        if not (name.startswith("_") or name == "annotations" or isinstance(value, ModuleType))
        and not any(f"{place}.{name}" in documented for place in PUBLIC)
    ]
    if missing:
        log.warning("not in docs/reference: %s", ", ".join(missing))


def setup(app: Sphinx) -> None:
    """Connect the functions above."""
    app.connect("autodoc-process-signature", spell_aliases)
    app.connect("missing-reference", resolve_public_name)
    app.connect("env-check-consistency", check_completeness)
