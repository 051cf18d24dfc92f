"""The house: imports go one way, importing costs little, nothing dangerous is called."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import burnish

ROOT = Path(burnish.__file__).parent
# Rooms from the ground up: a module may import from its own room and from those before it.
ORDER = (
    "errors", "positioned", "archives", "disk", "granted", "imports", "uncompiled", "terms", "labels", "settings", "elsewhere", "recipe", "runtime", "watching", "bars", "data", "backbones", "methods", "train", "measure", "choose", "record",
    "reports", "ship", "use", "auditing", "run", "looking", "api", "sklearn", "doctor", "screen", "verbs", "cli", "__main__",
)  # fmt: skip
STRANGERS = {frozenset({"data", "backbones"}), frozenset({"train", "measure"})}
# The same inside backbones, whose own rooms and modules these are.
ORDER_OF_BACKBONES = (
    "spec", "layers", "stages", "head", "classifier", "reading", "fast", "changing", "timmed", "cifar", "torchvision",
    "transformers", "keras", "architectures", "assembly", "names", "segmenting", "file_images", "heads",
    "files", "zoo",
)  # fmt: skip
STRANGERS_OF_BACKBONES = {
    frozenset({"reading", "fast"}), frozenset({"reading", "changing"}), frozenset({"torchvision", "keras"}),
    frozenset({"transformers", "keras"}),
}  # fmt: skip
MODULES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def own_imports(tree: ast.AST, of: str = "burnish") -> set[str]:
    """The rooms of that package, and modules that are in none, that are imported anywhere in a module."""
    rooms = set()
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != of else [f"{of}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        rooms |= {name.removeprefix(f"{of}.").split(".")[0] for name in names if name.startswith(f"{of}.")}
    return rooms - {"__version__"}


def wanted(path: Path) -> set[str]:
    """The modules that one imports when it is loaded, by their whole names; what is for type checkers alone is none."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("burnish"):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_the_list_of_rooms(path):
    here = room(path)
    for other in own_imports(ast.parse(path.read_text(encoding="utf-8"))):
        assert ORDER.index(other) <= ORDER.index(here), f"{here} imports {other}"
        assert frozenset({here, other}) not in STRANGERS, f"{here} must not know {other}"


OF_BACKBONES = sorted(path for path in (ROOT / "backbones").rglob("*.py") if path != ROOT / "backbones/__init__.py")


@pytest.mark.parametrize("path", OF_BACKBONES, ids=lambda path: str(path.relative_to(ROOT)))
def test_inside_backbones_imports_go_down_the_list_of_its_rooms(path):
    here = path.relative_to(ROOT / "backbones").parts[0].removesuffix(".py")
    for other in own_imports(ast.parse(path.read_text(encoding="utf-8")), "burnish.backbones"):
        assert ORDER_OF_BACKBONES.index(other) <= ORDER_OF_BACKBONES.index(here), f"{here} imports {other}"
        assert frozenset({here, other}) not in STRANGERS_OF_BACKBONES, f"{here} must not know {other}"


def test_each_room_says_what_it_is_for_and_names_its_modules():
    """The list of a room's modules is the first that a reader sees of it, and is kept by hand."""
    told = {
        path: ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        for path in ROOT.glob("backbones/**/__init__.py")
    }
    for path, words in told.items():
        inside = {one.stem for one in path.parent.glob("*.py")} | {
            one.parent.name for one in path.parent.glob("*/__init__.py")
        }
        assert not [name for name in inside - {"__init__"} if name not in words.split()], path


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_own_modules_are_imported_at_the_top(path):
    if room(path) in ("cli", "verbs", "__main__"):  # which tell what is wrong before torch is loaded
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert not [(one.name, own_imports(one)) for one in functions if own_imports(one)]


def test_modules_do_not_import_each_other_in_a_circle():
    names = {
        ".".join(("burnish", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
        for path in MODULES
    }
    needs = {name: {one for one in wanted(path) if one in names and one != name} for name, path in names.items()}
    while free := [name for name, others in needs.items() if not others]:
        needs = {name: others - set(free) for name, others in needs.items() if name not in free}
    assert not needs


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_and_a_function_are_short_enough_to_be_read(path):
    """Growth is noticed while it is small: 420 lines, and 60 of a function beside its docstring and arguments."""
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 420, "split it by meaning"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            lines = node.body[-1].end_lineno - body[0].lineno + 1 if body else 0
            assert lines <= 60, f"{node.name} has {lines} lines: give its stages names"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_timmed_imports_timm_and_nothing_runs_foreign_code(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            roots = {name.split(".")[0] for name in names}
            assert "timm" not in roots or path.name == "timmed.py"
            assert not roots & {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert name not in {"eval", "exec", "os.system", "yaml.load", "pickle.load", "pickle.loads"}, name
            keywords = {keyword.arg: keyword.value for keyword in node.keywords}
            for dangerous in ("shell", "allow_pickle"):
                assert not (isinstance(keywords.get(dangerous), ast.Constant) and keywords[dangerous].value is True)
            if name == "torch.load":
                assert ast.unparse(keywords["weights_only"]) == "True"


def test_no_module_draws_from_a_global_generator():
    """P7: every draw has an address."""
    own = {"np.random.Generator", "np.random.Philox"}
    left_as_they_were = {"np.random.get_state", "np.random.set_state", "random.getstate", "random.setstate"}
    found = set()
    for path in MODULES:
        calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        names = {ast.unparse(call.func) for call in calls}
        found |= {name for name in names if name.startswith(("np.random.", "numpy.random.", "random."))}
    assert own <= found <= own | left_as_they_were


def test_the_package_and_its_help_do_not_import_torch():
    code = "import sys, burnish, burnish.cli; assert not {'torch', 'timm', 'sklearn', 'PIL'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "line",
    ["import burnish.api", "from burnish.ship.serve import application", "from burnish.sklearn import ImageClassifier"],
)
def test_however_a_script_imports_it_neither_torch_s_compiler_nor_what_draws_bars_is_loaded(line):
    """By themselves torchvision and timm load the compiler, in 2.5 s of 8."""
    code = f"import sys; {line}; assert not {{'torch._dynamo', 'rich'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_run_does_not_wait_for_scipy_stats():
    """It takes most of a second to import, for three functions that scipy.special has."""
    code = "import sys, burnish.api, burnish.screen; assert 'scipy.stats' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_the_package_offers_is_there():
    for name in burnish.__all__:
        assert getattr(burnish, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        burnish.nothing  # noqa: B018


def test_no_verb_has_the_name_of_a_module():
    """`import` binds a module's name in the package, and the verb of that name would be gone."""
    names = {path.stem for path in ROOT.glob("*.py")} | {path.name for path in ROOT.iterdir() if path.is_dir()}
    assert not names & set(burnish.__all__)


BENCHMARKS = sorted((ROOT.parent.parent / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.name)
def test_what_benchmarks_take_from_the_house_is_there(path):
    """They run seldom, so a name that has moved would be missed."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "burnish":
            module = importlib.import_module(node.module)
            missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
            assert not missing, f"{node.module} has no {', '.join(missing)}"


def test_no_large_file_is_tracked():
    """Weights and data that a script left behind would be in every clone for good."""
    top = ROOT.parents[1]
    if not (top / ".git").exists():
        pytest.skip("not a clone")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=top, capture_output=True, check=True).stdout.decode()
    files = [top / name for name in listed.split("\0") if name]
    assert [str(file) for file in files if file.is_file() and file.stat().st_size > 1_000_000] == []
    assert len(files) > 100
