"""Check the rules of this repository that no formatter, linter or type checker knows.

They cover the lengths of modules and functions, tests that are found by name, calls that hold the
interpreter lock or execute what they read, empty or repeated names, and metrics outside `metrics/`.
Most rules are generators over one parsed module, so that tests can pass them a snippet and see it
fail. Every exception is listed with its reason, and an exception that is no longer needed is itself
a violation.

Run it as `python scripts/house_rules.py`. It prints one line for each violation, and exits with
code 1 if there is any.
"""

import ast
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

MODULE_LINES = 400
FUNCTION_LINES = 70
# Packages that move block bytes: a copy that holds the interpreter lock stalls the engine.
DATA_PATH = frozenset({"memory", "transfer", "tiers", "connectors"})
RUNS_WHAT_IT_READS = frozenset({"pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve"})
SAYS_NOTHING = frozenset({"common", "helper", "helpers", "manager", "misc", "util", "utils"})
METRIC_TYPES = frozenset({"Counter", "Enum", "Gauge", "Histogram", "Info", "Summary"})
METRIC_NAME = re.compile(r"kvtier_[a-z0-9_]+_(total|bytes|seconds|blocks|tokens|ratio|info)")
UNFINISHED = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK)\b")
TEXT_SUFFIXES = frozenset({".md", ".py", ".toml", ".yaml", ".yml", ".sh"})

# Module -> why no test file is named after it.
UNTESTED: Mapping[str, str] = {
    "errors.py": "class names only",
    "router/epp/h2/calls.py": "contracts: the tests of streams and of services run both sides",
}

# (rule, module) -> why the module may break the rule.
EXCEPTIONS: Mapping[tuple[str, str], str] = {
    ("empty_names", "connectors/vllm/manager.py"): "vLLM's contract calls this half the manager",
}


@dataclass(frozen=True)
class Module:
    """A source file; `path` is relative to src/kvtier and has forward slashes."""

    path: str
    text: str

    @property
    def tree(self) -> ast.Module:
        """The parsed file. Raises SyntaxError if it does not parse."""
        return ast.parse(self.text, self.path)

    @property
    def room(self) -> str:
        """The top-level package of the module, or its file name if it is in none."""
        return PurePosixPath(self.path).parts[0]


@dataclass(frozen=True)
class Violation:
    """A broken rule; `line` is 0 if it concerns the whole file."""

    rule: str
    path: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message} [{self.rule}]"


Finding = tuple[int, str]
Rule = Callable[[Module], Iterator[Finding]]


def module_length(module: Module) -> Iterator[Finding]:
    """Limit the length of a module, because a longer one contains more than one idea."""
    lines = len(module.text.splitlines())
    if lines > MODULE_LINES:
        yield 0, f"{lines} lines, the limit is {MODULE_LINES}"


def function_length(module: Module) -> Iterator[Finding]:
    """Limit the length of a function to a screen."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES:
                yield node.lineno, f"{node.name}: {lines} lines, the limit is {FUNCTION_LINES}"


def dangerous_imports(module: Module) -> Iterator[Finding]:
    """Forbid modules that execute the data they read."""
    for node in ast.walk(module.tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        for name in names:
            if name.split(".")[0] in RUNS_WHAT_IT_READS:
                yield node.lineno, f"import of {name}: it executes what it reads"  # type: ignore[attr-defined]


def dangerous_calls(module: Module) -> Iterator[Finding]:
    """Forbid eval, exec, unsafe YAML, `allow_pickle`, `shell` and `weights_only=False`."""
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in {"eval", "exec", "os.system", "yaml.load", "yaml.unsafe_load"}:
            yield node.lineno, f"{called}() executes what it reads"
        for keyword in node.keywords:
            flag = (keyword.arg, getattr(keyword.value, "value", None))
            if flag in {("allow_pickle", True), ("shell", True), ("weights_only", False)}:
                yield node.lineno, f"{called}({flag[0]}={flag[1]}) executes what it reads"


def bare_except(module: Module) -> Iterator[Finding]:
    """Forbid a bare except, which catches KeyboardInterrupt and hides the error."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield node.lineno, "bare except: name the exceptions"


def interpreter_held(module: Module) -> Iterator[Finding]:
    """Require copies on the data path to release the interpreter lock, as numpy.copyto does."""
    if module.room not in DATA_PATH:
        return
    views = _memoryview_names(module.tree)
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr == "tobytes":
                yield node.lineno, "tobytes() copies while it holds the interpreter lock"
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                if (
                    isinstance(target, ast.Subscript)
                    and isinstance(target.slice, ast.Slice)
                    and _is_memoryview(target.value, views)
                ):
                    yield node.lineno, "memoryview slice assignment holds the interpreter lock"


def _memoryview_names(tree: ast.Module) -> set[str]:
    """Return the names and attributes that are annotated or constructed as memoryviews."""
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
    """Forbid names of modules and classes that say nothing or that contain a version."""
    for part in PurePosixPath(module.path).with_suffix("").parts:
        if part in SAYS_NOTHING or re.search(r"_v\d+$", part):
            yield 0, f"{part}: name it after what it is"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ClassDef) and re.search(
            r"(Manager|Helpers?|Utils?|V\d)$", node.name
        ):
            yield node.lineno, f"class {node.name}: name it after what it is"


def scattered_metrics(module: Module) -> Iterator[Finding]:
    """Require metrics to be declared in `metrics/`, where names, units and labels are together."""
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
    """Forbid markers of unfinished work."""
    for number, line in enumerate(module.text.splitlines(), start=1):
        if found := UNFINISHED.search(line):
            yield number, f"{found[0]}: finish the work or remove the marker"


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
    """Apply every rule to every module; also report exceptions that are no longer needed."""
    used: set[tuple[str, str]] = set()
    for module in modules:
        for name, rule in RULES.items():
            for line, message in rule(module):
                if (name, module.path) in exceptions:
                    used.add((name, module.path))
                else:
                    yield Violation(name, module.path, line, message)
    for name, path in exceptions.keys() - used:
        yield Violation(name, path, 0, "this exception is no longer needed: remove it")


def repeated_classes(modules: list[Module]) -> Iterator[Violation]:
    """Find public classes with the same name in two modules: a name must mean one thing."""
    first: dict[str, str] = {}
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                defined = first.setdefault(node.name, module.path)
                if defined != module.path:
                    message = f"class {node.name} is also in {defined}: rename one of them"
                    yield Violation("repeated_class", module.path, node.lineno, message)


def untested(
    modules: list[Module], tests: Path, allowed: Mapping[str, str] = UNTESTED
) -> Iterator[Violation]:
    """Find modules whose tests cannot be found by the module's name.

    A module `<room>/.../<name>.py` must have a file `test_<name>.py` or `test_<name>_*.py`, or a
    folder `<name>`, somewhere below `tests/<room>`. Contracts (`base.py`), packages and the suites
    of `testing/` need none, because the tests of every implementation run them.
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
                "a test is named after it: remove it from UNTESTED"
                if found
                else f"no test below {room} is named after {name}"
            )
            yield Violation("untested", module.path, 0, message)
    for path_left in allowed.keys() - present:
        yield Violation("untested", path_left, 0, "no such module: remove it from UNTESTED")


def load(package: Path) -> list[Module]:
    """Return every module below `package`, in a stable order."""
    return [
        Module(path.relative_to(package).as_posix(), path.read_text(encoding="utf-8"))
        for path in sorted(package.rglob("*.py"))
    ]


def unfinished_texts(root: Path) -> Iterator[Violation]:
    """Apply the `unfinished` rule to benchmarks, documents, examples, scripts and tests."""
    for folder in ("benchmarks", "docs", "examples", "scripts", "tests"):
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in TEXT_SUFFIXES and path.is_file():
                name = path.relative_to(root).as_posix()
                for line, message in unfinished(Module(name, path.read_text(encoding="utf-8"))):
                    yield Violation("unfinished", name, line, message)


def violations(root: Path) -> list[Violation]:
    """Return all violations in the repository at `root`."""
    modules = load(root / "src" / "kvtier")
    return [
        *judge(modules),
        *repeated_classes(modules),
        *untested(modules, root / "tests"),
        *unfinished_texts(root),
    ]


def main() -> int:
    """Print all violations; return the exit code."""
    root = Path(__file__).resolve().parents[1]
    found = violations(root)
    for violation in found:
        print(violation)
    print(f"house rules: {len(found)} violations" if found else "house rules: kept")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
