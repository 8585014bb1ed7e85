"""What a stage imports: PPO starts without the importers of published preference formats, and its closure stays bounded."""

import ast
import io
import subprocess
import sys
import tokenize
from collections.abc import Collection
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("rlaif", "actors", "learners", "cluster")
LISTING = f"""
import sys
import rlaif.stages.train.ppo
for name, module in sorted(sys.modules.items()):
    if name.split(".")[0] in {PACKAGES} and getattr(module, "__file__", None):
        print("loaded", name, module.__file__)
"""
PPO_CODE_TOKENS = 135_000
"""13,500 lines of ten tokens, which was the density of the code when the bound was set.

Tokens, because one step a line and a docstring more are no reason to import less.
"""

LAYOUT = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


@pytest.fixture(scope="module")
def loaded_by_ppo() -> dict[str, Path]:
    """Files of our packages by module, after `rlaif.stages.train.ppo` was imported in a fresh interpreter."""
    result = subprocess.run(
        [sys.executable, "-c", LISTING], cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    files = {}
    for line in result.stdout.splitlines():
        # libraries print lines of their own
        if line.startswith("loaded "):
            _, name, file = line.split(maxsplit=2)
            files[name] = Path(file)
    return files


def code_tokens(file: Path) -> int:
    """Count the tokens of a module; a statement that is nothing but a string is documentation."""
    count = 0
    statement: list[int] = []
    for token in tokenize.generate_tokens(io.StringIO(file.read_text()).readline):
        if token.type == tokenize.NEWLINE:
            count += len(statement) if statement != [tokenize.STRING] else 0
            statement = []
        elif token.type not in LAYOUT:
            statement.append(token.type)
    return count


def test_code_tokens_count_no_documentation(tmp_path):
    file = tmp_path / "module.py"
    file.write_text('"""What it is."""\n\nLIMIT = (\n    1,  # one\n)\n"""Why\none."""\n# a comment\nuse(LIMIT)\n')
    assert code_tokens(file) == len(["LIMIT", "=", "(", "1", ",", ")"]) + len(["use", "(", "LIMIT", ")"])


def test_ppo_imports_no_published_format(loaded_by_ppo):
    """Prompts are our own rows: neither a format nor what converts, checks or streams files of any format is needed."""
    assert "rlaif.data.read" in loaded_by_ppo
    names = [name for name in loaded_by_ppo if name.startswith("rlaif.data.formats")]
    others = {f"rlaif.data.{name}" for name in ("published", "convert", "check", "media", "parquet", "statistics")}
    assert not names and others.isdisjoint(loaded_by_ppo)


def imports_of(tree: ast.Module, modules: Collection[str]) -> set[str]:
    """Return those of `modules` that a module imports at its top level, for type checkers too."""
    imported: set[str] = set()
    statements: list[ast.stmt] = []
    for statement in tree.body:
        statements += statement.body if isinstance(statement, ast.If) else [statement]
    for statement in statements:
        if isinstance(statement, ast.Import):
            imported.update(alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom) and statement.module:
            names = [f"{statement.module}.{alias.name}" for alias in statement.names]
            submodules = [name for name in names if name in modules]
            imported.update(submodules or [statement.module])
    return imported.intersection(modules)


def test_modules_import_each_other_in_no_circle():
    sources = {}
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            parts = file.relative_to(ROOT).with_suffix("").parts
            sources[".".join(parts).removesuffix(".__init__")] = file.read_text()
    graph = {name: imports_of(ast.parse(source), sources) - {name} for name, source in sources.items()}
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle
    assert len(order) == len(sources) > 200


def test_a_circle_is_noticed():
    sources = {"a": "import b", "b": "from a import x", "c": "if TYPE_CHECKING:\n    import a\ndef f():\n    import b"}
    graph = {name: imports_of(ast.parse(source), sources) for name, source in sources.items()}
    assert graph == {"a": {"b"}, "b": {"a"}, "c": {"a"}}
    with pytest.raises(CycleError):
        list(TopologicalSorter(graph).static_order())


def test_import_closure_of_ppo_is_bounded(loaded_by_ppo):
    tokens = {name: code_tokens(file) for name, file in loaded_by_ppo.items()}
    total = sum(tokens.values())
    largest = sorted(tokens, key=tokens.__getitem__)[-10:]
    assert total <= PPO_CODE_TOKENS, f"{total:,} tokens, most of them in {', '.join(largest)}"
