"""Measure how the code reads, as one JSON object: `python tools/style.py [DIR [FOLDER ...]]`.

DIR is a repository (default: this one) and FOLDER a folder in it (default: `CORE`). The measures are counts of syntax and
words, so that code bases can be compared and a trend shows; they are no substitute for reading. To read,
`--sample N --seed S` prints N functions drawn at random, the same ones for the same seed and code.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import random
import re
import statistics
import tokenize
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
CORE = ("rlaif", "actors", "learners", "cluster")
"""The folders with the product's code."""
PARTICIPLES = {
    "asked",
    "built",
    "chosen",
    "done",
    "found",
    "given",
    "held",
    "kept",
    "left",
    "made",
    "read",
    "said",
    "seen",
    "sent",
    "shown",
    "taken",
    "told",
    "wanted",
}
"""Participles that hide what a variable contains; a noun says it."""
VERB_LIST = """
add aggregate append apply ask attach begin bind build builds calculate call cast check checks choose clear close
collect compare compute computes concatenate configure connect construct convert copy count create creates deal
decide decode define delete derive describe detach detect determine disable dispatch download draw drop emit enable
encode end ensure enumerate estimate evaluate exclude execute expand export extend extract fetch fill filter find
finish fit flatten flush follow forget format forward freeze gather generate get give group handle hash hold import
include infer init initialize insert inspect install invoke iterate join keep kill label launch limit list load
loads locate lock log look lower maintain make makes map mark mask match measure merge move mutate name normalize
note number observe offload open order overlap override pack pad parse pass patch pause permute pick pin place plan
poll post predict prepare preserve print probe process produce propagate provide prune publish pull push put
quantize queue quote raise raises rank read reads receive recompute reconnect record recover redirect reduce refresh
refuse register reissue reject release reload remove rename render replace replay report require rescale reserve
reset resolve respond restore resume retry return returns reverse roll rotate round run runs sample save saves scale
scan schedule score search seed seek select send serialize serve set settle shard share show shuffle simulate skip
sleep slice snapshot sort spawn split spread stack stage start starts step stitch stop stops store stream strip
submit subtract sum summarize swap sync synchronize tabulate take tell test tokenize track train transfer transform
traverse trim truncate turn unload unlock unpack unwrap upcast update upload use validate verify visit wait wake
walk warn watch weigh whiten wrap write writes yield zero
"""
VERBS = frozenset(VERB_LIST.split())
"""Verbs that begin docstrings of functions in well-kept Python projects; enough to compare code bases with each other."""

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DOCUMENTED = (*FUNCTIONS, ast.ClassDef, ast.Module)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
ASSIGNMENTS = (ast.Assign, ast.AnnAssign, ast.For, ast.NamedExpr)
LAYOUT = (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
"""Tokens that are only layout."""


@dataclass
class Counts:
    """What was counted in the files so far."""

    files: int = 0
    lines: int = 0
    code_lines: int = 0
    code_tokens: int = 0
    comment_lines: int = 0
    comprehensions: int = 0
    nested_comprehensions: int = 0
    docstring_words: int = 0
    docstring_wheres: int = 0
    function_docstrings: int = 0
    verb_docstrings: int = 0
    assigned_names: int = 0
    participles: int = 0
    functions: list[tuple[int, str]] = field(default_factory=list)
    """The length in lines and the place of each function."""
    public_names: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """The files that define each public top-level function or class."""

    def add(self, text: str, path: str) -> None:
        """Count one file.

        Args:
            text: the source code.
            path: its path in the repository.
        """
        tree = ast.parse(text)
        self.files += 1
        self.lines += text.count("\n")
        docstring_rows = self._add_docstrings(tree)
        self._add_tokens(text, docstring_rows)
        for node in ast.walk(tree):
            if isinstance(node, COMPREHENSIONS):
                self.comprehensions += 1
                self.nested_comprehensions += is_nested(node)
            if isinstance(node, FUNCTIONS):
                length = node.end_lineno - node.lineno + 1
                self.functions.append((length, f"{path}:{node.name}"))
            if isinstance(node, ASSIGNMENTS):
                self._add_assignment(node)
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                self.public_names[node.name].add(path)

    def _add_docstrings(self, tree: ast.Module) -> set[int]:
        """Count docstrings and return the rows that they take up."""
        rows: set[int] = set()
        for node in ast.walk(tree):
            docstring = ast.get_docstring(node) if isinstance(node, DOCUMENTED) else None
            if not docstring:
                continue
            statement = node.body[0]
            rows.update(range(statement.lineno, statement.end_lineno + 1))
            self.docstring_words += len(docstring.split())
            self.docstring_wheres += len(re.findall(r"\bwhere\b", docstring, re.IGNORECASE))
            if isinstance(node, FUNCTIONS):
                self.function_docstrings += 1
                self.verb_docstrings += begins_with_verb(docstring)
        return rows

    def _add_tokens(self, text: str, docstring_rows: set[int]) -> None:
        """Count the lines that are only a comment, and the tokens and lines of code: no docstrings, comments, blank lines."""
        source_lines = text.splitlines()
        code_rows: set[int] = set()
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            first_row, last_row = token.start[0], token.end[0]
            if token.type == tokenize.COMMENT:
                before_comment = source_lines[first_row - 1].split("#")[0]
                self.comment_lines += not before_comment.strip()
            elif token.type not in LAYOUT and first_row not in docstring_rows:
                self.code_tokens += 1
                # A string in triple quotes is one token, and all of its lines are code.
                code_rows.update(range(first_row, last_row + 1))
        self.code_lines += len(code_rows)

    def _add_assignment(self, node: ast.stmt | ast.NamedExpr) -> None:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        for target in targets:
            for part in ast.walk(target):
                if isinstance(part, ast.Name):
                    self.assigned_names += 1
                    self.participles += part.id in PARTICIPLES

    def measures(self) -> dict[str, object]:
        """Return the measures by name. Raises ZeroDivisionError if no code was counted."""
        thousand_lines = self.code_lines / 1000
        lengths = sorted(length for length, _ in self.functions)
        longest = sorted(self.functions)[-3:]
        twice = sum(len(files) > 1 for files in self.public_names.values())
        return {
            "files": self.files,
            "lines": self.lines,
            "code_lines": self.code_lines,
            "code_tokens": self.code_tokens,
            "tokens_per_code_line": round(self.code_tokens / self.code_lines, 2),
            "comprehensions_per_1000": round(self.comprehensions / thousand_lines, 1),
            "nested_comprehensions_per_1000": round(self.nested_comprehensions / thousand_lines, 1),
            "comment_lines_share": round(self.comment_lines / self.lines, 4),
            "verb_docstrings": round(self.verb_docstrings / max(1, self.function_docstrings), 3),
            "where_per_1000_doc_words": round(1000 * self.docstring_wheres / max(1, self.docstring_words), 2),
            "names_defined_twice": round(twice / max(1, len(self.public_names)), 4),
            "participles_per_1000_assignments": round(1000 * self.participles / max(1, self.assigned_names), 1),
            "function_median": statistics.median(lengths) if lengths else 0,
            "function_p90": lengths[int(0.9 * len(lengths))] if lengths else 0,
            "function_max": lengths[-1] if lengths else 0,
            "longest": [place for _, place in longest],
        }


def begins_with_verb(docstring: str) -> bool:
    """Return whether a docstring's first word is a verb with a capital letter, in the imperative or the third person."""
    first = docstring.split()[0].strip("`.,:;(")
    return first[:1].isupper() and first.lower() in VERBS


def is_nested(comprehension: ast.AST) -> bool:
    """Return whether a comprehension has two `for`, or another comprehension within it."""
    parts = ast.walk(comprehension)
    next(parts)  # the first is the comprehension itself
    return len(comprehension.generators) > 1 or any(isinstance(part, COMPREHENSIONS) for part in parts)


def source_files(root: Path, folders: Sequence[str]) -> list[Path]:
    """Return the Python files in some folders of a repository, without those of installed packages."""
    files: list[Path] = []
    for folder in folders:
        files += sorted((root / folder).rglob("*.py"))
    return [file for file in files if "site-packages" not in file.parts]


def measure(root: Path, folders: Sequence[str] = CORE) -> dict[str, object]:
    """Return the measures of some folders of a repository, by name."""
    counts = Counts()
    for file in source_files(root, folders):
        counts.add(file.read_text(), str(file.relative_to(root)))
    return counts.measures()


def functions_in(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.stmt]]:
    """Yield the qualified name and the node of each function below a node, methods and inner functions too."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (*FUNCTIONS, ast.ClassDef)):
            name = prefix + child.name
            if isinstance(child, FUNCTIONS):
                yield name, child
            yield from functions_in(child, f"{name}.")
        else:
            # A function may be defined below an `if` or a `with`, which has no name.
            yield from functions_in(child, prefix)


def sample(root: Path, folders: Sequence[str], count: int, seed: int) -> str:
    """Return the source of functions drawn at random, each below a line `# path:line name`.

    Args:
        root: the repository.
        folders: the folders to draw from.
        count: how many to draw; all of them if there are fewer.
        seed: the same functions come for the same seed and code.
    """
    # The path, the name and the line sort alike on every machine.
    population: list[tuple[str, str, int, str]] = []
    for file in source_files(root, folders):
        text = file.read_text()
        path = file.relative_to(root).as_posix()
        lines = text.splitlines()
        for name, node in functions_in(ast.parse(text)):
            decorators = [decorator.lineno for decorator in node.decorator_list]
            first_row = min([node.lineno, *decorators])
            population.append((path, name, node.lineno, "\n".join(lines[first_row - 1 : node.end_lineno])))
    population.sort()
    drawn = random.Random(seed).sample(population, min(count, len(population)))
    return "\n\n".join(f"# {path}:{line} {name}\n{source}" for path, name, line, source in drawn)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the measures, or a sample of functions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", nargs="?", type=Path, default=ROOT, metavar="DIR", help="repository; default: this one")
    parser.add_argument("folders", nargs="*", metavar="FOLDER", help=f"default: {' '.join(CORE)}")
    parser.add_argument("--sample", type=int, metavar="N", help="print N functions drawn at random instead")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the sample; default: 0")
    args = parser.parse_args(arguments)
    folders = args.folders or CORE
    if args.sample is None:
        print(json.dumps(measure(args.root, folders), indent=1))
    else:
        print(sample(args.root, folders, args.sample, args.seed))


if __name__ == "__main__":
    main()
