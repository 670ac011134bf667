"""Every function of byheart checks what it is given and gives, types and shapes, while tests run.

jaxtyping's own hook takes twice as long: it checks arguments before a call and again with the result, and analyses
nested functions each time they are defined. Here one call checks both, and nested functions are left to mypy.
"""

from __future__ import annotations

import ast
import functools
import inspect
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import is_dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType
from typing import Any, get_type_hints

from beartype import BeartypeConf, beartype
from jaxtyping import TypeCheckError, jaxtyped

_beartype = beartype(conf=BeartypeConf(is_pep484_tower=True, violation_type=TypeCheckError))
_NAME = "__checking__"


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function; dimensions of one name are of one size in all that it is given and gives."""
    if inspect.isgeneratorfunction(function):
        # Its body, and with it the checks, would run later, among the dimensions of whoever iterates over it.
        return jaxtyped(typechecker=_beartype)(function)
    typed = _beartype(function)

    @functools.wraps(function)
    def within(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        with jaxtyped("context"):
            return typed(*args, **kwargs)

    return within


def checked_fields(kind: type) -> type:
    """The same class; where it is a dataclass, its fields are checked when it is made."""
    if is_dataclass(kind) and "__init__" in vars(kind):
        own, fields = vars(kind).get("__annotations__", {}), kind.__init__.__annotations__
        # Fields of a class from elsewhere are in words of its own module.
        elsewhere = [base for base in kind.__mro__[1:] if is_dataclass(base) and base.__module__ != kind.__module__]
        inherited = {name: hint for base in elsewhere for name, hint in get_type_hints(base).items()}
        fields |= {name: hint for name, hint in inherited.items() if name not in own}
        known = vars(sys.modules[kind.__module__]) | {kind.__name__: kind}
        for name in [name for name, hint in fields.items() if not _is_known(hint, known)]:
            del fields[name]
        kind.__init__ = checked(kind.__init__)  # type: ignore[method-assign]
    return kind


def _is_known(hint: Any, names: dict[str, Any]) -> bool:
    with suppress(NameError):
        if isinstance(hint, str):
            eval(hint, names)
        return True
    return False


class _Decorate(ast.NodeTransformer):
    """Adds ``checked`` to functions and methods, below their own decorators, and ``checked_fields`` above classes.

    What is annotated with names that only a type checker gets is not checked.
    """

    def __init__(self) -> None:
        self._absent: set[str] = set()

    def visit_If(self, node: ast.If) -> ast.AST:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            within = [each for line in node.body for each in ast.walk(line)]
            self._absent |= {each.asname or each.name for each in within if isinstance(each, ast.alias)}
            # Names that are written to, as those of type aliases.
            self._absent |= {
                each.id for each in within if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)
            }
            return node
        return self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        given = node.args
        for each in (*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg):
            if each is not None and self._is_absent(each.annotation):
                each.annotation = None
        if self._is_absent(node.returns):
            node.returns = None
        node.decorator_list.append(ast.copy_location(_attribute("checked"), node))
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        node.decorator_list.insert(0, ast.copy_location(_attribute("checked_fields"), node))
        return self.generic_visit(node)

    def _is_absent(self, annotation: ast.expr | None) -> bool:
        names = ast.walk(annotation) if annotation is not None else ()
        return any(isinstance(name, ast.Name) and name.id in self._absent for name in names)


def _attribute(name: str) -> ast.expr:
    return ast.Attribute(ast.Name(_NAME, ast.Load()), name, ast.Load())


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        # Nothing is kept: what is compiled here is not what others may load.
        path = self.get_filename(fullname)
        tree = ast.fix_missing_locations(_Decorate().visit(ast.parse(self.get_data(path), path)))
        code: CodeType = compile(tree, path, "exec", dont_inherit=True)
        return code

    def exec_module(self, module: ModuleType) -> None:
        setattr(module, _NAME, sys.modules[__name__])
        super().exec_module(module)


class _Finder(MetaPathFinder):
    def __init__(self, package: str) -> None:
        self._package = package

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] != self._package:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


def install(package: str) -> None:
    """Check all modules of a package that are imported from now on. Raises RuntimeError where some are already."""
    if package in sys.modules:
        raise RuntimeError(f"{package} is imported already, so that it cannot be checked")
    sys.meta_path.insert(0, _Finder(package))
