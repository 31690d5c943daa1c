"""Write docs/api.md and the table of imports in docs/architecture.md: `python scripts/reference_docs.py`.

The public names of a module are those in its `__all__`; without one, they are all functions and classes it defines
whose names do not begin with an underscore.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parent.parent
API, ARCHITECTURE = ROOT / "docs" / "api.md", ROOT / "docs" / "architecture.md"
COMMAND = "python scripts/reference_docs.py"
IMPORTS = re.compile(r"(?<=<!-- imports -->\n).*?(?=<!-- /imports -->)", re.DOTALL)
MODULES = (
    "ovseg.models",
    "ovseg.data",
    "ovseg.data.benchmarks",
    "ovseg.data.pairs",
    "ovseg.tasks",
    "ovseg.structures",
    "ovseg.metrics",
    "ovseg.ops",
    "ovseg.losses",
    "ovseg.checkpoint",
    "ovseg.cli",
)
WIDTH = 100  # of a signature on one line
HEADINGS = {"Args": "Arguments", "Returns": "Returns", "Yields": "Yields", "Raises": "Raises"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def pages() -> dict[Path, str]:
    """Return the text of every page that is generated in whole or in part."""
    architecture = ARCHITECTURE.read_text(encoding="utf-8")
    return {API: api_page(), ARCHITECTURE: IMPORTS.sub(lambda _: imports_table(), architecture)}


def imports_table() -> str:
    """Return a table of the parts: what each may import (`ARROWS` in tests/test_imports.py), and what it is."""
    tests = ast.parse((ROOT / "tests" / "test_imports.py").read_text(encoding="utf-8"))
    arrows: dict[str, str] = next(
        ast.literal_eval(node.value)
        for node in tests.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ARROWS"
    )
    rows = ["| part | may import | what it is |", "| --- | --- | --- |"]
    for part, targets in arrows.items():
        base = ROOT / "src" / "ovseg" / part
        file = base.with_suffix(".py") if base.with_suffix(".py").is_file() else base / "__init__.py"
        purpose = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").splitlines()[0].rstrip(".")
        name = part if file.name != "__init__.py" else f"{part}/"
        rows.append(f"| `{name}` | {', '.join(f'`{target}`' for target in targets.split())} | {purpose} |")
    return "\n".join(rows) + "\n"


def api_page() -> str:
    """Return the content of docs/api.md."""
    modules = [import_module(name) for name in MODULES]
    contents = [
        f"- [`{module.__name__}`](#{module.__name__.replace('.', '')}): {summary(module)}" for module in modules
    ]
    parts = [
        "# API",
        f"`{COMMAND}` generates this page from the docstrings; edit them, not this page.",
        "In shapes, B is the batch, N regions, Q queries, K classes, D the width of CLIP's joint space, `H, W` the\n"
        "stored image, and `h, w` the image as a network sees it. Images are\n"
        "RGB floats in [0, 1] unless noted otherwise.",
        "\n".join(contents),
    ]
    homes: dict[int, str] = {}  # id of an object → the module it was described under
    for module in modules:
        parts += [f"## {module.__name__}", inspect.cleandoc(module.__doc__ or "")]
        names = public(module)
        elsewhere = [name for name in names if id(getattr(module, name)) in homes and not is_constant(module, name)]
        if elsewhere:
            listed = ", ".join(f"`{name}` ({homes[id(getattr(module, name))]})" for name in elsewhere)
            parts.append(f"Described above: {listed}.")
        for name in names:
            if name not in elsewhere:
                homes[id(getattr(module, name))] = module.__name__
                parts += describe(module, name)
    return "\n\n".join(part for part in parts if part) + "\n"


def public(module: ModuleType) -> list[str]:
    """Return the public names of a module, in the order of its `__all__` or of its source."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [
        node.name for node in tree(module).body if isinstance(node, Function | ast.ClassDef) and node.name[0] != "_"
    ]


def describe(module: ModuleType, name: str) -> Iterator[str]:
    """Yield the parts of the page about one public name."""
    value = getattr(module, name)
    yield f"### {name}"
    if is_constant(module, name):
        yield constant(module, name)
    elif inspect.isclass(value):
        yield from describe_class(value)
    else:
        node = definition(value)
        decorators = [f"@{ast.unparse(one)}\n" for one in node.decorator_list if "contextmanager" in ast.unparse(one)]
        yield code("".join(decorators) + signature(node))
        yield from render(inspect.getdoc(value) or "")


def describe_class(cls: type) -> Iterator[str]:
    """Yield the constructor, docstring and documented methods of a class; for a NamedTuple or dataclass, its fields."""
    node = definition(cls)
    bases = ", ".join(ast.unparse(base) for base in node.bases)
    header = f"class {cls.__name__}{f'({bases})' if bases else ''}"
    fields = [part for part in node.body if isinstance(part, ast.AnnAssign)]
    owner = next(base for base in cls.__mro__ if "__init__" in vars(base))
    if "NamedTuple" in bases or node.decorator_list:  # their source says it best, comments included
        lines = source(cls).splitlines()[fields[0].lineno - 1 : fields[-1].end_lineno] if fields else []
        yield code("\n".join([f"{header}:", *lines]))
    elif owner is cls:
        constructor = next(part for part in node.body if isinstance(part, Function) and part.name == "__init__")
        yield code(f"{header}\n\n{signature(constructor, cls.__name__, returns=False)}")
    else:
        yield code(header)
    yield from render(inspect.cleandoc(vars(cls).get("__doc__") or ""))
    if owner is not cls and owner.__module__.startswith("ovseg"):
        yield f"Takes the arguments of `{owner.__name__}`."
    for method in node.body:
        if isinstance(method, Function) and (method.name[0] != "_" or method.name == "__call__"):
            text = ast.get_docstring(method)
            kinds = {ast.unparse(decorator) for decorator in method.decorator_list}
            if text and not any(kind.endswith(".setter") for kind in kinds):
                yield f"#### {cls.__name__}.{method.name}"
                if "property" in kinds:
                    yield code(f"{method.name}: {ast.unparse(method.returns) if method.returns else 'Any'}")
                else:
                    yield code(signature(method))
                yield from render(text)


def signature(node: Any, name: str | None = None, returns: bool = True) -> str:
    """Return a function's signature as in the source, without `self`; a long one has one argument per line."""
    spec = node.args
    positional = [*spec.posonlyargs, *spec.args]
    defaults = [None] * (len(positional) - len(spec.defaults)) + spec.defaults
    words = [argument(one, default) for one, default in zip(positional, defaults, strict=True)]
    if spec.posonlyargs:
        words.insert(len(spec.posonlyargs), "/")
    if spec.vararg or spec.kwonlyargs:
        words.append(f"*{argument(spec.vararg)}" if spec.vararg else "*")
    words += [argument(one, default) for one, default in zip(spec.kwonlyargs, spec.kw_defaults, strict=True)]
    words += [f"**{argument(spec.kwarg)}"] if spec.kwarg else []
    if words and words[0] in ("self", "cls"):
        del words[0]
    end = f" -> {ast.unparse(node.returns)}" if returns and node.returns else ""
    line = f"{name or node.name}({', '.join(words)}){end}"
    if len(line) <= WIDTH:
        return line
    return "\n".join([f"{name or node.name}(", *(f"    {word}," for word in words), f"){end}"])


def argument(node: ast.arg, default: ast.expr | None = None) -> str:
    """Return `name: annotation = default`."""
    annotation = f": {ast.unparse(node.annotation)}" if node.annotation else ""
    equals = " = " if annotation else "="
    return f"{node.arg}{annotation}{f'{equals}{ast.unparse(default)}' if default else ''}"


def render(text: str) -> Iterator[str]:
    """Yield a Google-style docstring as Markdown; nothing if it is empty."""
    if not text:
        return
    head, *rest = re.split(r"^(Args|Returns|Yields|Raises):\n", text, flags=re.MULTILINE)
    if head.strip():
        yield head.strip()
    for title, body in zip(rest[::2], rest[1::2], strict=True):
        section, _, after = textwrap.dedent(body).strip().partition("\n\n")
        heading = f"**{HEADINGS[title]}**"
        yield f"{heading}\n\n{entries(section)}" if title in ("Args", "Raises") else f"{heading}: {section}"
        if after:
            yield textwrap.dedent(after)


def entries(body: str) -> str:
    """Return lines `name: text`, with indented continuations, as a list."""
    lines: list[str] = []
    for line in body.splitlines():
        if match := re.match(r"([*\w][\w*, .]*): (.*)", line):
            lines.append(f"- {', '.join(f'`{name.strip()}`' for name in match[1].split(','))}: {match[2]}")
        else:
            lines.append(f"  {line.strip()}")
    return "\n".join(lines)


def constant(module: ModuleType, name: str) -> str:
    """Return the assignment of a constant with its comment, shortened if it is long."""
    for candidate in [module, *(import_module(node.module) for node in imports_of(module, name))]:
        text = inspect.getsource(candidate)
        if match := re.search(rf"^{name}\b[^\n]*", text, re.MULTILINE):
            line = match[0]
            return code(line if line.count("(") == line.count(")") and line[-1] not in "([{" else f"{line} … ")
    return code(name)


def imports_of(module: ModuleType, name: str) -> list[Any]:
    return [
        node
        for node in tree(module).body
        if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]
    ]


def is_constant(module: ModuleType, name: str) -> bool:
    """Return whether a name is neither a function nor a class."""
    value = getattr(module, name)
    return not (inspect.isclass(value) or inspect.isroutine(value))


def summary(module: ModuleType) -> str:
    """Return the first sentence of a module's docstring."""
    return (module.__doc__ or "").strip().splitlines()[0]


def code(text: str) -> str:
    return f"```python\n{text.rstrip()}\n```"


def definition(value: Any) -> Any:
    """Return the syntax tree of a function or class."""
    return ast.parse(source(value)).body[0]


@cache
def source(value: Any) -> str:
    """Return the source of a function or class, without the wrappers of its decorators."""
    return textwrap.dedent(inspect.getsource(inspect.unwrap(value)))


@cache
def tree(module: ModuleType) -> ast.Module:
    return ast.parse(inspect.getsource(module))


if __name__ == "__main__":
    for file, text in pages().items():
        file.write_text(text, encoding="utf-8")
        print(f"wrote {file.relative_to(ROOT)}")
