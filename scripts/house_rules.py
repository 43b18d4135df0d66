"""The rules of the house that no linter knows.

What a formatter, a linter or a type checker can see is left to them (pyproject.toml). Here is
the rest: lengths, tests that are found by name, calls that hold the interpreter or run what
they read, names that say nothing, metrics declared in one place. A rule is a generator over one
parsed module, so that tests can feed it a snippet and see it fail. Every exception is listed
with its reason, and an exception that is no longer needed is itself a violation.

Run it as `python scripts/house_rules.py`: one line per violation, exit code 1 if there are any.
"""

import ast
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

MODULE_LINES = 400
FUNCTION_LINES = 70
# Rooms whose code touches block bytes: a copy that holds the interpreter stalls the engine.
DATA_PATH = frozenset({"memory", "transfer", "tiers", "connectors"})
RUNS_WHAT_IT_READS = frozenset({"pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve"})
SAYS_NOTHING = frozenset({"common", "helper", "helpers", "manager", "misc", "util", "utils"})
METRIC_TYPES = frozenset({"Counter", "Enum", "Gauge", "Histogram", "Info", "Summary"})
METRIC_NAME = re.compile(r"kvtier_[a-z0-9_]+_(total|bytes|seconds|blocks|tokens|ratio|info)")
UNFINISHED = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK)\b")
TEXT_SUFFIXES = frozenset({".md", ".py", ".toml", ".yaml", ".yml", ".sh"})

# module -> why no test file is named after it
UNTESTED: Mapping[str, str] = {
    "errors.py": "class names only",
    "router/epp/h2/calls.py": "contracts: the tests of streams and of services run both sides",
}

# (rule, module) -> why this module may break that rule
EXCEPTIONS: Mapping[tuple[str, str], str] = {
    ("empty_names", "connectors/vllm/manager.py"): "vLLM's contract calls this half the manager",
}


@dataclass(frozen=True)
class Module:
    """One source file; `path` is relative to src/kvtier, with forward slashes."""

    path: str
    text: str

    @property
    def tree(self) -> ast.Module:
        """The parsed file. Raises SyntaxError where it does not parse."""
        return ast.parse(self.text, self.path)

    @property
    def room(self) -> str:
        """The first folder, or the module's own name for the files on the ground."""
        return PurePosixPath(self.path).parts[0]


@dataclass(frozen=True)
class Violation:
    """One broken rule; `line` is 0 when the whole file is meant."""

    rule: str
    path: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message} [{self.rule}]"


Finding = tuple[int, str]
Rule = Callable[[Module], Iterator[Finding]]


def module_length(module: Module) -> Iterator[Finding]:
    """A module that needs scrolling through 400 lines holds two ideas."""
    lines = len(module.text.splitlines())
    if lines > MODULE_LINES:
        yield 0, f"{lines} lines, the stop is {MODULE_LINES}"


def function_length(module: Module) -> Iterator[Finding]:
    """A function fits on one screen."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES:
                yield node.lineno, f"{node.name}: {lines} lines, the stop is {FUNCTION_LINES}"


def dangerous_imports(module: Module) -> Iterator[Finding]:
    """Nothing may be imported that runs what it reads."""
    for node in ast.walk(module.tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        for name in names:
            if name.split(".")[0] in RUNS_WHAT_IT_READS:
                yield node.lineno, f"import of {name}: it runs what it reads"  # type: ignore[attr-defined]


def dangerous_calls(module: Module) -> Iterator[Finding]:
    """No eval, exec, unsafe YAML, `allow_pickle`, shell or switched-off weights check."""
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in {"eval", "exec", "os.system", "yaml.load", "yaml.unsafe_load"}:
            yield node.lineno, f"{called}() runs what it reads"
        for keyword in node.keywords:
            flag = (keyword.arg, getattr(keyword.value, "value", None))
            if flag in {("allow_pickle", True), ("shell", True), ("weights_only", False)}:
                yield node.lineno, f"{called}({flag[0]}={flag[1]}) runs what it reads"


def bare_except(module: Module) -> Iterator[Finding]:
    """A bare except swallows KeyboardInterrupt and hides what it caught."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield node.lineno, "bare except: name what is caught"


def interpreter_held(module: Module) -> Iterator[Finding]:
    """On the data path copies release the interpreter, as numpy.copyto and preadv do."""
    if module.room not in DATA_PATH:
        return
    views = _memoryview_names(module.tree)
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr == "tobytes":
                yield node.lineno, "tobytes() copies while it holds the interpreter"
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                if (
                    isinstance(target, ast.Subscript)
                    and isinstance(target.slice, ast.Slice)
                    and _is_memoryview(target.value, views)
                ):
                    yield node.lineno, "memoryview slice assignment holds the interpreter"


def _memoryview_names(tree: ast.Module) -> set[str]:
    """Names and attributes the module says are memoryviews, by annotation or by construction."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.arg) and node.annotation is not None:
            if ast.unparse(node.annotation) == "memoryview":
                names.add(node.arg)
        elif isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) == "memoryview":
            names.add(ast.unparse(node.target))
        elif isinstance(node, ast.Assign) and _is_memoryview(node.value, names):
            names.update(ast.unparse(target) for target in node.targets)
    return names


def _is_memoryview(node: ast.expr, names: set[str]) -> bool:
    if isinstance(node, ast.Subscript):
        return isinstance(node.slice, ast.Slice) and _is_memoryview(node.value, names)
    if isinstance(node, ast.Call):
        called = node.func
        if isinstance(called, ast.Attribute) and called.attr == "cast":
            return _is_memoryview(called.value, names)
        return ast.unparse(called) == "memoryview"
    return ast.unparse(node) in names


def empty_names(module: Module) -> Iterator[Finding]:
    """A module or class is named after what it is; generations have no place in a name."""
    for part in PurePosixPath(module.path).with_suffix("").parts:
        if part in SAYS_NOTHING or re.search(r"_v\d+$", part):
            yield 0, f"{part}: name it after what it is"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ClassDef) and re.search(
            r"(Manager|Helpers?|Utils?|V\d)$", node.name
        ):
            yield node.lineno, f"class {node.name}: name it after what it is"


def scattered_metrics(module: Module) -> Iterator[Finding]:
    """Metrics are declared in metrics/, so that names, units and labels are seen together."""
    if module.path.startswith("metrics/"):
        return
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ImportFrom) and node.module == "prometheus_client":
            for alias in node.names:
                if alias.name in METRIC_TYPES:
                    yield node.lineno, f"prometheus_client.{alias.name} outside metrics/"
        elif isinstance(node, ast.Attribute) and node.attr in METRIC_TYPES:
            if ast.unparse(node.value) == "prometheus_client":
                yield node.lineno, f"prometheus_client.{node.attr} outside metrics/"
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and METRIC_NAME.fullmatch(node.value)
        ):
            yield node.lineno, f"metric name {node.value!r} outside metrics/"


def unfinished(module: Module) -> Iterator[Finding]:
    """What is left to do is not left in the text."""
    for number, line in enumerate(module.text.splitlines(), start=1):
        if found := UNFINISHED.search(line):
            yield number, f"{found[0]}: finish it or drop it"


RULES: Mapping[str, Rule] = {
    rule.__name__: rule
    for rule in (
        module_length,
        function_length,
        dangerous_imports,
        dangerous_calls,
        bare_except,
        interpreter_held,
        empty_names,
        scattered_metrics,
        unfinished,
    )
}


def judge(
    modules: list[Module], exceptions: Mapping[tuple[str, str], str] = EXCEPTIONS
) -> Iterator[Violation]:
    """Apply every rule to every module; report exceptions that nothing needs any more."""
    used: set[tuple[str, str]] = set()
    for module in modules:
        for name, rule in RULES.items():
            for line, message in rule(module):
                if (name, module.path) in exceptions:
                    used.add((name, module.path))
                else:
                    yield Violation(name, module.path, line, message)
    for name, path in exceptions.keys() - used:
        yield Violation(name, path, 0, "this exception is no longer needed: drop it")


def untested(
    modules: list[Module], tests: Path, allowed: Mapping[str, str] = UNTESTED
) -> Iterator[Violation]:
    """Find modules whose tests cannot be found from the module's name.

    A module `<room>/.../<name>.py` has a file `test_<name>.py` or `test_<name>_*.py`, or a folder
    `<name>`, somewhere below `tests/<room>`. Contracts (`base.py`), packages and the suites of
    `testing/` need none: every implementation runs them.
    """
    present = {module.path for module in modules}
    for module in modules:
        name = PurePosixPath(module.path).stem.lstrip("_")
        if name in {"init__", "base", "__init__"} or module.room == "testing":
            continue
        room = tests / module.room if "/" in module.path else tests
        found = room.is_dir() and any(
            any(room.rglob(pattern)) for pattern in (f"test_{name}.py", f"test_{name}_*.py", name)
        )
        if found == (module.path in allowed):
            message = (
                "a test is named after it: drop it from UNTESTED"
                if found
                else f"no test below {room} is named after {name}"
            )
            yield Violation("untested", module.path, 0, message)
    for path_left in allowed.keys() - present:
        yield Violation("untested", path_left, 0, "the module is gone: drop it from UNTESTED")


def load(package: Path) -> list[Module]:
    """Every module below `package`, in a stable order."""
    return [
        Module(path.relative_to(package).as_posix(), path.read_text(encoding="utf-8"))
        for path in sorted(package.rglob("*.py"))
    ]


def unfinished_texts(root: Path) -> Iterator[Violation]:
    """The `unfinished` rule over everything else people read: tests, scripts, documents."""
    for folder in ("benchmarks", "docs", "examples", "scripts", "tests"):
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in TEXT_SUFFIXES and path.is_file():
                name = path.relative_to(root).as_posix()
                for line, message in unfinished(Module(name, path.read_text(encoding="utf-8"))):
                    yield Violation("unfinished", name, line, message)


def violations(root: Path) -> list[Violation]:
    """Everything in the repository at `root` that breaks a rule."""
    modules = load(root / "src" / "kvtier")
    return [*judge(modules), *untested(modules, root / "tests"), *unfinished_texts(root)]


def main() -> int:
    """Print what is broken."""
    root = Path(__file__).resolve().parents[1]
    found = violations(root)
    for violation in found:
        print(violation)
    print(f"house rules: {len(found)} violations" if found else "house rules: kept")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
