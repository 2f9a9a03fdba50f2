"""What keeps the repository readable: one-way imports, bounded functions, docstrings, no machine paths."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import nemo_codert

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "nemo_codert"
FILES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
MAX_FUNCTION_LINES = 60

# Room of the package -> the rooms it may import, as docs/architecture.md draws the arrows. A room may import itself
# and the package's own __init__.
LOWEST = {"config", "files", "nemo_compat"}
MAY_IMPORT = {
    "config": set(),
    "files": {"config", "nemo_compat"},
    "nemo_compat": set(),
    "data": {"files"},
    "losses": set(),
    "modules": LOWEST | {"losses", "data"},
    "criteria": LOWEST | {"losses", "modules"},
    "teachers": LOWEST | {"data", "modules"},
    "models": LOWEST | {"losses", "data", "modules", "criteria", "teachers"},
    "evaluation": LOWEST | {"losses", "data", "modules", "models"},
    "export": LOWEST | {"losses", "data", "modules", "models", "evaluation"},
    "analysis": LOWEST | {"losses", "data", "modules", "models", "evaluation"},
    "training": LOWEST | {"losses", "data", "modules", "models", "evaluation", "export", "analysis"},
    "compare": LOWEST | {"losses", "data", "modules", "models", "evaluation", "export", "analysis", "training"},
    "benchmark": LOWEST | {"losses", "data", "modules", "models", "evaluation", "export", "analysis"},
    "cli": LOWEST
    | {"losses", "data", "modules", "models", "evaluation", "export", "analysis", "training", "compare", "benchmark"},
    "__main__": {"cli"},
}
# Modules that import others only when called, because importing them compiles code: these imports, which may lead back
# to the module, are not counted as circles.
LOADERS = {"nemo_codert.losses.cpu_kernels"}
# Heavy packages that a room must not import, not even inside a function where `anywhere` says so.
FORBIDDEN = {
    "losses": {"nemo", "lightning", "omegaconf", "hydra"},
    "config": {"nemo", "torch", "lightning", "hydra"},
    "data": {"nemo", "torch", "lightning"},
}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@cache
def imports(tree: ast.AST) -> set[str]:
    """Absolute names of everything that a file imports, functions included."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


def imports_at_import(tree: ast.Module) -> set[str]:
    """The same without those inside functions, which run later."""
    top = [node for node in tree.body if not isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return set().union(*(imports(node) for node in top)) if top else set()


def functions(tree: ast.AST) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


@cache
def source_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(source_of(path))


def test_every_part_of_the_package_has_its_place():
    assert {part_of(path) for path in FILES} - {"__init__"} <= MAY_IMPORT.keys()


def test_imports_go_one_way():
    faults = []
    for path in FILES:
        part = part_of(path)
        allowed = set() if part == "__init__" else MAY_IMPORT[part] | {part, "__version__"}
        ours = {name.split(".")[1] for name in imports(parse(path)) if name.startswith("nemo_codert.")}
        if not ours <= allowed:
            faults.append(f"{name_of(path)} imports {sorted(ours - allowed)}")
    assert not faults


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """Nodes of a circle of arrows in order, the first again at the end; empty where there is none."""
    left = dict.fromkeys(arrows)
    while left:
        path, start = [], next(iter(left))
        while start is not None:
            path.append(start)
            following = [node for node in sorted(arrows[start]) if node in left]
            if back := [node for node in following if node in path]:
                return [*path[path.index(back[0]) :], back[0]]
            if following:
                start = following[0]
            else:  # nothing that is left can be reached from it
                left.pop(path.pop())
                start = path.pop() if path else None
    return []


def test_no_import_circle_exists():
    """Between modules and between rooms, functions and TYPE_CHECKING blocks included."""
    modules = {module_of(path): imports(parse(path)) for path in FILES}
    for path in FILES:
        if module_of(path) in LOADERS:
            modules[module_of(path)] = imports_at_import(parse(path))
    assert circle({name: found & modules.keys() for name, found in modules.items()}) == []
    rooms: dict[str, set[str]] = {part_of(path): set() for path in FILES}
    for path in FILES:
        found = {name.split(".")[1] for name in modules[module_of(path)] if name.startswith("nemo_codert.")}
        rooms[part_of(path)] |= found & rooms.keys() - {part_of(path)}
    assert circle(rooms) == []


def test_a_circle_is_found_where_there_is_one():
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set(), "d": {"a"}}) == []
    assert circle({"z": set(), "a": {"b"}, "b": {"c", "d"}, "c": set(), "d": {"b"}}) == ["b", "d", "b"]


def test_light_parts_stay_light():
    faults = []
    for path in FILES:
        tree, part = parse(path), part_of(path)
        found = imports(tree) if part in ("losses", "config") else imports_at_import(tree)
        packages = {name.split(".")[0] for name in found}
        if heavy := packages - {"importlib"} if part == "__init__" else packages & FORBIDDEN.get(part, set()):
            faults.append(f"{name_of(path)} imports {sorted(heavy)}")
    assert not faults


def test_kernels_are_imported_only_where_a_loss_is_computed():
    """numba and the rooms of compiled kernels: by these rooms, and inside functions."""
    kernels, faults = ("numba", "llvmlite", "nemo_codert.losses.cpu.", "nemo_codert.losses.cuda"), []
    for path in FILES:
        if path.parent.name not in ("cpu", "cuda"):
            early = {name for name in imports_at_import(parse(path)) if f"{name}.".startswith(kernels)}
            faults += [f"{name_of(path)} imports {sorted(early)}"] if early else []
    assert not faults


def test_scripts_are_imported_by_nobody_and_import_no_other_script():
    names = [(path, name) for path in FILES + SCRIPTS for name in imports(parse(path))]
    faults = [f"{name_of(path)} imports {name}" for path, name in names if name.split(".")[0] in ("scripts", "tests")]
    assert SCRIPTS and not faults


def test_only_one_file_touches_the_internals_of_nemo():
    internals = ("ALLOWED_TARGET_PREFIXES", "AppState")
    touching = {part_of(path) for path in FILES if any(name in source_of(path) for name in internals)}
    assert touching == {"nemo_compat"}


@pytest.mark.nemo
def test_the_allowed_targets_grow_by_our_prefix_once_and_nothing_else():
    from nemo.core.classes import common

    import nemo_codert.models  # noqa: F401
    from nemo_codert.nemo_compat import register_targets

    name, body = "ALLOWED_TARGET_PREFIXES", parse(Path(common.__file__)).body
    lists = [node for node in body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name]
    register_targets()  # a second time
    assert [*ast.literal_eval(lists[0].value), "nemo_codert."] == common.ALLOWED_TARGET_PREFIXES


def docstring_lines(function: ast.FunctionDef) -> int:
    """Lines of a function's docstring: arguments and examples in it do not make the function long."""
    return function.body[0].end_lineno - function.body[0].lineno + 1 if ast.get_docstring(function) else 0


def test_functions_stay_short():
    faults = []
    for path in FILES + SCRIPTS:
        for function in functions(parse(path)):
            lines = function.end_lineno - function.lineno + 1 - docstring_lines(function)
            if lines > MAX_FUNCTION_LINES:
                faults.append(f"{name_of(path)}: {function.name} has {lines} lines")
    assert not faults


def private_reads_of_a_model(path: Path) -> list[str]:
    """Attributes `model._private` that functions outside classes read of their parameter `model`."""
    tree, faults = parse(path), []
    inside = {id(node) for owner in ast.walk(tree) if isinstance(owner, ast.ClassDef) for node in ast.walk(owner)}
    for function in functions(tree):
        arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        if id(function) in inside or "model" not in (argument.arg for argument in arguments):
            continue
        for node in ast.walk(function):
            is_of_model = isinstance(node, ast.Attribute) and ast.unparse(node.value) == "model"
            if is_of_model and node.attr.startswith("_"):
                faults.append(f"{name_of(path)}: {function.name} reads model.{node.attr}")
    return faults


def test_nothing_outside_a_class_reads_what_is_private_to_a_model():
    """Such a function is a method in the wrong file."""
    assert not [fault for path in FILES + SCRIPTS for fault in private_reads_of_a_model(path)]


def is_called_by_a_library(method: ast.AST, owner: ast.AST) -> bool:
    """Methods whose meaning another library fixes: autograd's two, and Lightning's hooks."""
    bases = " ".join(ast.unparse(base) for base in getattr(owner, "bases", []))
    if "Function" in bases:
        return method.name in ("forward", "backward")
    return "Callback" in bases and method.name.startswith("on_")


def undocumented(path: Path) -> list[str]:
    """Public functions, methods and classes without a docstring. Overridden methods say so in a first comment."""
    source = source_of(path).splitlines()
    missing = []

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            if not is_function and not isinstance(child, ast.ClassDef):
                continue
            if child.name.startswith("_"):
                continue
            head = "\n".join(source[child.lineno - 1 : child.body[0].lineno])
            if not (ast.get_docstring(child) or "# Overrides " in head or is_called_by_a_library(child, node)):
                missing.append(f"{name_of(path)}:{child.lineno}: {child.name}")
            if not is_function:
                visit(child)

    visit(parse(path))
    return missing


def test_every_file_and_every_public_function_has_a_docstring():
    bare = [name_of(path) for path in FILES if not ast.get_docstring(parse(path))]
    assert not bare, "no module docstring"
    assert not [missing for path in FILES for missing in undocumented(path)]


def test_every_public_function_is_annotated():
    faults = []
    for path in FILES:
        for function in functions(parse(path)):
            if function.name.startswith("_"):
                continue
            arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
            bare = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
            if bare or function.returns is None:
                faults.append(f"{name_of(path)}: {function.name}: {bare or 'return value'}")
    assert not faults


def tracked_files() -> list[Path]:
    """Text files of the repository: tracked, or new and not ignored. Without git: the folders that we know."""
    try:
        command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\n")
        paths = [ROOT / name for name in names if name]
    except (OSError, subprocess.CalledProcessError):
        folders = ("nemo_codert", "scripts", "conf", "docs", "tests")
        paths = [path for folder in folders for path in (ROOT / folder).rglob("*")] + list(ROOT.glob("*.*"))
    suffixes = {".py", ".md", ".yaml", ".yml", ".toml", ".txt", ".json", ".cff", ".sh", ""}
    return [path for path in paths if path.is_file() and path.suffix in suffixes]


def test_no_file_names_a_folder_of_one_machine():
    # Written in two halves, so that this file does not find itself.
    pattern = re.compile(r"(?<![\w.~/$}:-])/(?:home|root|work|Users|mnt|scratch)" + r"/\w")
    hits = []
    for path in tracked_files():
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
            if pattern.search(line):
                hits.append(f"{name_of(path)}:{number}: {line.strip()[:100]}")
    assert not hits, "\n".join(hits)


def test_test_files_have_unique_names_and_no_init():
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert len(names) == len(set(names))
    assert "__init__.py" not in names


def test_the_version_is_stated_once():
    project = (ROOT / "pyproject.toml").read_text()
    stated = re.search(r'^version = "(.+)"$', project, re.MULTILINE)
    if stated:
        assert stated[1] == nemo_codert.__version__
    else:
        assert 'dynamic = ["version"]' in project
        assert 'version = { attr = "nemo_codert.__version__" }' in project
    assert re.fullmatch(r"\d+\.\d+\.\d+", nemo_codert.__version__)
    assert sum('__version__ = "' in path.read_text() for path in FILES) == 1


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, nemo_codert; print(sorted({'torch', 'nemo', 'omegaconf', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_public_names_are_found_where_they_are_promised():
    assert set(nemo_codert._PUBLIC_NAMES.values()) <= {
        "nemo_codert.models",
        "nemo_codert.modules",
        "nemo_codert.losses",
    }
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        _ = nemo_codert.absent
