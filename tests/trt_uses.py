"""Which symbols of the TensorRT bindings a module uses, by its syntax tree, and whether the bindings have them.

The bindings carry no types, so names carry them instead. The library is `trt`, wherever it comes from; an object of
the library is held in a variable, parameter or attribute whose last name, without leading underscores, stands in
`CONVENTION`. Within one function what a call returned, or an alias of a `trt` class or method, is followed as well.
An object that a call returns must be given its conventional name: otherwise its uses would go unseen elsewhere.

A use is right for a flavour if the flavour has the symbol and, of a call, an overload that takes the arguments.
`hasattr(x, "name")` and `getattr(x, "name", default)` are guards. A use must be right for every flavour that the
module supports, or else for each of those that have the symbol of a guard in the same function. Guards reach a
function from the functions around it and from the providers it mentions: names like `has_x` or `supports_x` that
hold or contain a guard, attributes that hold one, and functions that return one.

Not seen: flow (a use may stand in the wrong branch of its guard), objects under names of no convention that came
from an unseen place, names put together at run time, types of arguments, and annotations.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from trt_surface import UNKNOWN, Table

CONVENTION = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "config": "IBuilderConfig",
    "parser": "OnnxParser",
    "parser_error": "ParserError",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "inspector": "EngineInspector",
    "profile": "IOptimizationProfile",
    "runtime_config": "IRuntimeConfig",
    "runtime_cache": "IRuntimeCache",
    "timing_cache": "ITimingCache",
    "tensor": "ITensor",
    "layer": "ILayer",
    "plan": "IHostMemory",
}
NAME_OF = {cls: name for name, cls in CONVENTION.items()}
# Serialized bytes are of many things (an engine, a cache) and have one attribute: their name is free.
FREELY_NAMED = {"IHostMemory"}
# pybind11 met these classes before they were declared, so the docstrings do not name them.
UNTYPED_RETURNS = {
    "OnnxParser.get_error": "ParserError",
    "IRuntimeConfig.create_runtime_cache": "IRuntimeCache",
    "IRuntimeConfig.get_runtime_cache": "IRuntimeCache",
}
LIBRARIES = {"tensorrt", "tensorrt_rtx", "tensorrt_lean", "tensorrt_dispatch"}
SPECIAL = {"__init__", "__version__"}  # other names with two underscores belong to Python, not to the library


@dataclass(frozen=True)
class Call:
    """The arguments of a call; an open one has a `*` or `**` argument and may pass more than is seen."""

    positional: int
    keywords: tuple[str, ...] = ()
    open: bool = False


@dataclass(frozen=True)
class Override:
    """The method of a subclass: how many positional arguments, after self, it takes at least and at most."""

    least: int
    most: float


@dataclass
class Use:
    """One place where a module touches the library."""

    line: int
    symbol: str
    scopes: tuple[int, ...]
    action: Call | Override | None = None
    bound: bool = True  # reached through an object, or a construction: `self` is given
    stores: bool = False
    is_guard: bool = False
    guards: frozenset[str] = frozenset()


@dataclass
class Scope:
    """What is known inside one function: its guards, the names it mentions, and what its variables hold."""

    guards: set[str] = field(default_factory=set)
    mentions: set[str] = field(default_factory=set)
    aliases: dict[str, str] = field(default_factory=dict)  # variable to symbol: flags = trt.BuilderFlag
    objects: dict[str, str] = field(default_factory=dict)  # variable to class: it = trt.Runtime(logger)


def find_problems(source: str, table: Table, supported: tuple[str, ...]) -> list[str]:
    """What is wrong with a module's uses of the library, one line each; empty if nothing is."""
    walker = Walker(table)
    walker.walk(source)
    found = [(use.line, problem) for use in walker.uses if (problem := judge(use, table, supported))]
    return [f"line {line}: {text}" for line, text in sorted(walker.problems + found)]


def find_symbols(source: str, table: Table) -> set[str]:
    """The symbols that a module uses."""
    walker = Walker(table)
    walker.walk(source)
    return {use.symbol for use in walker.uses}


# --------------------------------------------------------------------------------------- finding the uses


class Walker(ast.NodeVisitor):
    """Walks one module; then `uses` holds every use, with its guards, and `problems` the broken conventions."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.uses: list[Use] = []
        self.problems: list[tuple[int, str]] = []
        self._scopes = [Scope()]
        self._stack = [0]
        self._imported: set[str] = set()
        self._providers: dict[str, set[str]] = defaultdict(set)

    def walk(self, source: str) -> None:
        tree = ast.parse(source)
        self._imported = _imported_names(tree)
        self.visit(tree)
        for use in self.uses:
            use.guards = frozenset().union(*(self._guards_in(scope) for scope in use.scopes))

    def _guards_in(self, index: int) -> set[str]:
        scope = self._scopes[index]
        provided = (self._providers[name] for name in scope.mentions & self._providers.keys())
        return scope.guards.union(*provided)

    # What an expression stands for

    def symbol_of(self, node: ast.expr) -> str | None:
        """The library's dotted name that an expression names, such as `Builder.reset` for `self._builder.reset`."""
        if isinstance(node, ast.NamedExpr):
            return self.symbol_of(node.value)
        if isinstance(node, ast.Name):
            return self._known(node.id, "aliases") or None
        accessed = _accessed(node)
        owner = accessed and self.owner_of(accessed[0])
        if accessed is None or owner is None or _is_pythons(accessed[1]):
            return None
        return f"{owner}.{accessed[1]}".lstrip(".")

    def owner_of(self, node: ast.expr) -> str | None:
        """Under which name the table has the attributes of an expression; empty for the library itself."""
        if isinstance(node, ast.NamedExpr):
            return self.owner_of(node.value)
        if _last_name(node) == "trt":
            return ""
        symbol = self.symbol_of(node)
        if symbol and self._kind(symbol) == "class":
            return symbol
        if isinstance(node, ast.Call) and _accessed(node) is None:
            return self._class_returned(node)
        if isinstance(node, ast.Name) and (cls := self._known(node.id, "objects")):
            return cls
        return self._class_by_name(node)

    def _class_by_name(self, node: ast.expr) -> str | None:
        if isinstance(node, ast.Subscript):  # engines[0] is an engine
            return CONVENTION.get(_last_name(node.value).removesuffix("s"))
        if _root_name(node) in self._imported:
            return None
        return CONVENTION.get(_last_name(node))

    def _class_returned(self, call: ast.Call) -> str | None:
        """The class of what a call returns; None for enumerations, which have Python's own `name` and `value`."""
        symbol = self.symbol_of(call.func) or ""
        forms = self.table[symbol].forms.values() if symbol in self.table else ()
        returned = {
            part.rpartition(" -> ")[2] for form in forms for part in form.split(" | ") if " -> " in part
        }
        is_class = self._kind(symbol) == "class"
        cls = symbol if is_class else min(returned, default=UNTYPED_RETURNS.get(symbol, ""))
        return cls if f"{cls}.__init__" in self.table else None

    def _kind(self, symbol: str) -> str:
        return self.table[symbol].kind if symbol in self.table else ""

    def _known(self, name: str, what: str) -> str | None:
        for index in reversed(self._stack):
            if name in (known := getattr(self._scopes[index], what)):
                return known[name]
        return None

    # Visiting

    @property
    def _scope(self) -> Scope:
        return self._scopes[self._stack[-1]]

    def _scopes_that_guard(self) -> tuple[int, ...]:
        """The functions around this place; a guard at the module's level speaks for that level only."""
        return tuple(self._stack[1:]) or (0,)

    def _add(self, node: ast.expr | ast.stmt, symbol: str, **more: Any) -> None:
        self.uses.append(Use(node.lineno, symbol, self._scopes_that_guard(), **more))

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for outside in [*node.decorator_list, *node.args.defaults, *filter(None, node.args.kw_defaults)]:
            self.visit(outside)
        self._scopes.append(Scope())
        self._stack.append(len(self._scopes) - 1)
        self._drop([arg.arg for arg in ast.walk(node.args) if isinstance(arg, ast.arg)])
        for statement in node.body:
            self.visit(statement)
        self._provide_from_function(node)
        self._stack.pop()

    visit_AsyncFunctionDef = visit_FunctionDef

    def _provide_from_function(self, node: ast.FunctionDef) -> None:
        returned = (part.value for part in ast.walk(node) if isinstance(part, ast.Return) and part.value)
        guards = self._guards_of(*returned)
        if _says_has(node.name):
            guards |= self._scope.guards
        if guards:
            self._providers[node.name] |= guards

    def _drop(self, names: list[str]) -> None:
        """A variable bound anew hides what an outer function's variable of that name holds."""
        for name in names:
            self._scope.aliases[name] = self._scope.objects[name] = ""

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        bases = [symbol for base in node.bases if (symbol := self.symbol_of(base))]
        for method in (part for part in node.body if isinstance(part, ast.FunctionDef)):
            if bases and not method.name.startswith("_"):
                base = next((base for base in bases if f"{base}.{method.name}" in self.table), bases[0])
                self._add(method, f"{base}.{method.name}", action=_override(method.args))
        self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            if alias.name.partition(".")[0] in LIBRARIES and alias.asname != "trt":
                self.problems.append((node.lineno, f"import {alias.name} as trt, or its uses go unseen"))

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if not node.level and (node.module or "").partition(".")[0] in LIBRARIES:
            self.problems.append((node.lineno, f"import {node.module} as trt, not names from it"))

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load):
            self._scope.mentions.add(node.id)
        else:
            self._drop([node.id])

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self._scope.mentions.add(node.attr)
        if symbol := self.symbol_of(node):
            self._add(node, symbol, stores=isinstance(node.ctx, ast.Store))
        self.visit(node.value)

    def visit_Call(self, node: ast.Call) -> None:
        if accessed := _accessed(node):
            self._visit_access(node, accessed[0])
            return
        symbol = self.symbol_of(node.func)
        if symbol is None:
            self.generic_visit(node)
            return
        self._add(node, symbol, action=_call(node), bound=self._is_bound(node.func))
        if isinstance(node.func, ast.Attribute):  # its own use is told already
            self._scope.mentions.add(node.func.attr)
            self.visit(node.func.value)
        else:
            self.visit(node.func)
        for argument in [*node.args, *node.keywords]:
            self.visit(argument)

    def _is_bound(self, func: ast.expr) -> bool:
        accessed = _accessed(func)
        through = accessed and self.symbol_of(accessed[0])
        return not through or self._kind(through) != "class"

    def _visit_access(self, node: ast.Call, value: ast.expr) -> None:
        """`hasattr`, or `getattr` of a literal name: a guard, unless it is a `getattr` that would raise."""
        is_guard = _last_name(node.func) == "hasattr" or len(node.args) > 2
        if symbol := self.symbol_of(_as_attribute(node)):
            self._add(node, symbol, is_guard=is_guard)
            if is_guard:
                self._scope.guards.add(symbol)
        for part in [value, *node.args[2:]]:
            self.visit(part)

    def visit_Assign(self, node: ast.Assign) -> None:
        self._visit_binding(node.targets, node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self._visit_binding([node.target], node.value)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self._visit_binding([node.target], node.value)

    def visit_withitem(self, node: ast.withitem) -> None:
        self._visit_binding([node.optional_vars] if node.optional_vars else [], node.context_expr)

    def _visit_binding(self, targets: list[ast.expr], value: ast.expr | None) -> None:
        if value is None:
            return
        self.visit(value)
        symbol = self.symbol_of(value)
        cls = self.owner_of(value) if _is_plain_call(value) else None
        for target in targets:
            self.visit(target)
            self._provide_from_binding(target, value)
            if cls:
                self._check_name(target, cls)
            if isinstance(target, ast.Name):
                self._scope.aliases[target.id] = symbol or ""
                self._scope.objects[target.id] = cls or ""

    def _provide_from_binding(self, target: ast.expr, value: ast.expr) -> None:
        guards = self._guards_of(value)
        if guards and (isinstance(target, ast.Attribute) or _says_has(_last_name(target))):
            name = target.attr if isinstance(target, ast.Attribute) else getattr(target, "id", "")
            self._providers[name] |= guards

    def _check_name(self, target: ast.expr, cls: str) -> None:
        if cls not in NAME_OF or cls in FREELY_NAMED or isinstance(target, (ast.Tuple, ast.List)):
            return
        if self._class_by_name(target) != cls:
            text = f"{ast.unparse(target)} holds a {cls}: name it {NAME_OF[cls]}, or its uses go unseen"
            self.problems.append((target.lineno, text))

    def _guards_of(self, *nodes: ast.expr) -> set[str]:
        """The symbols of the guards inside expressions."""
        calls = (part for node in nodes for part in ast.walk(node) if isinstance(part, ast.Call))
        symbols = (self.symbol_of(_as_attribute(call)) for call in calls if _accessed(call))
        return {symbol for symbol in symbols if symbol in self._scope.guards}


def _imported_names(tree: ast.Module) -> set[str]:
    """The names bound by imports, other than `trt`: a module called `runtime` is no object of the library."""
    imports = (node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom)))
    return {(alias.asname or alias.name).partition(".")[0] for node in imports for alias in node.names}


def _accessed(node: ast.expr) -> tuple[ast.expr, str] | None:
    """The object and the name that `x.name`, `getattr(x, "name", ...)` or `hasattr(x, "name")` look up."""
    if isinstance(node, ast.Attribute):
        return node.value, node.attr
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) > 1):
        return None
    name = node.args[1]
    if (
        node.func.id in {"getattr", "hasattr"}
        and isinstance(name, ast.Constant)
        and isinstance(name.value, str)
    ):
        return node.args[0], name.value
    return None


def _as_attribute(call: ast.Call) -> ast.expr:
    value, name = _accessed(call) or (call, "")
    return ast.Attribute(value, name, ast.Load())


def _is_plain_call(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and _accessed(node) is None


def _is_pythons(name: str) -> bool:
    return name.startswith("__") and name not in SPECIAL


def _last_name(node: ast.expr) -> str:
    """`engine` of `engine`, `self._engine` and `slot.engine`; empty for anything without a name."""
    name = getattr(node, "attr", None) or getattr(node, "id", "")
    return name.lstrip("_")


def _root_name(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute):
        node = node.value
    return getattr(node, "id", "")


def _says_has(name: str) -> bool:
    return name.lstrip("_").lower().startswith(("has_", "supports_"))


def _call(node: ast.Call) -> Call:
    starred = any(isinstance(argument, ast.Starred) for argument in node.args)
    keywords = tuple(keyword.arg for keyword in node.keywords if keyword.arg)
    return Call(
        sum(not isinstance(argument, ast.Starred) for argument in node.args),
        keywords,
        open=starred or len(keywords) < len(node.keywords),
    )


def _override(arguments: ast.arguments) -> Override:
    most = len(arguments.posonlyargs) + len(arguments.args) - 1
    return Override(most - len(arguments.defaults), float("inf") if arguments.vararg else most)


# -------------------------------------------------------------------------------------- judging the uses


def judge(use: Use, table: Table, supported: tuple[str, ...]) -> str | None:
    """What is wrong with a use in a module that supports some flavours; None if nothing is."""
    wrong = {flavour: text for flavour in supported if (text := _fault(use, table, flavour))}
    if use.is_guard:
        return f"{use.symbol} is in none of {', '.join(supported)}" if len(wrong) == len(supported) else None
    # Asking whether trt.X has Y says nothing of whether trt has X: that question would fail itself.
    guards = {guard for guard in use.guards if not guard.startswith(f"{use.symbol}.")}
    if not wrong or any(_excuses(guard, table, supported, wrong) for guard in guards):
        return None
    faults = "; ".join(f"{text} ({', '.join(_keys(wrong, text))})" for text in dict.fromkeys(wrong.values()))
    advice = "" if len(wrong) == len(supported) else "; ask with hasattr or getattr in the same function"
    return f"{use.symbol}: {faults}{advice}"


def _keys(wrong: dict[str, str], text: str) -> Iterator[str]:
    return (flavour for flavour, fault in wrong.items() if fault == text)


def _excuses(guard: str, table: Table, supported: tuple[str, ...], wrong: dict[str, str]) -> bool:
    """A guard excuses faults in flavours it keeps out, if it lets any flavour in."""
    let_in = set(table[guard].forms) & set(supported) if guard in table else set()
    return bool(let_in) and not let_in & wrong.keys()


def _fault(use: Use, table: Table, flavour: str) -> str | None:
    """What is wrong with a use under one flavour."""
    symbol = table.get(use.symbol)
    if symbol is None or flavour not in symbol.forms:
        return "absent"
    form = symbol.forms[flavour]
    if use.stores and symbol.kind == "property" and "set" not in form:
        return "cannot be set"
    if use.action is None:
        return None
    if symbol.kind == "class":
        form = (
            table[f"{use.symbol}.__init__"].forms[flavour] if f"{use.symbol}.__init__" in table else UNKNOWN
        )
    elif symbol.kind != "callable":
        return f"is a {symbol.kind}, not a method"
    if form == UNKNOWN or any(_fits(use, overload) for overload in form.split(" | ")):
        return None
    return f"arguments do not fit {form}"


def _fits(use: Use, overload: str) -> bool:
    """Whether an overload, as the table writes it, takes a call, or calls an override."""
    text = overload.partition(" -> ")[0].strip("()")
    names = [name for name in text.split(", ") if name not in {"", "/", "*"}]
    if use.bound and names[:1] == ["self"]:
        names = names[1:]
    if isinstance(use.action, Override):
        return use.action.least <= len(names) <= use.action.most
    assert use.action is not None
    return _takes(use.action, names)


def _takes(call: Call, names: list[str]) -> bool:
    """Whether parameters take a call. pybind11 names those without a name arg0, arg1: they take no keyword."""
    if any(name.startswith("*") for name in names):
        return True
    if call.positional > len(names):
        return False
    rest = names[call.positional :]
    by_keyword = {name.rstrip("=") for name in rest if not name.removeprefix("arg").isdigit()}
    required = {name for name in rest if not name.endswith("=")}
    return by_keyword >= set(call.keywords) and (call.open or required <= set(call.keywords))
