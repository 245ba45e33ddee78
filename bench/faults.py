"""Do the tests still bite? Plants random faults, one at a time, and notes which test fails.

    git clone . /tmp/faulty && python bench/faults.py list /tmp/faulty
    python bench/faults.py run /tmp/faulty > faults.csv

Faults are planted in a clone, never where one works: 20 in the library and 10 in the study, at most
three a file. First the tests of the fault's room run, then all others. A row has the kind, the
file, the line, the text before and after, the first test that failed, and seconds. A fault that
cannot be imported does not count. Whether a survivor changes anything is for a reader to judge.
"""

import ast
import csv
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter, namedtuple
from collections.abc import Iterator
from pathlib import Path

SEED = 71
QUOTAS = {"cibr": 20, "book": 10}
BY_EYE = ("plots.py", "figures.py", "draw.py")
BUILDS = ["tests/book/pages/test_browser.py", "tests/test_wheel.py"]  # take minutes
LIMIT = 15 * 60  # seconds for the tests of the room, and for the others

OPERATORS = {ast.Lt: ast.LtE, ast.Gt: ast.GtE, ast.Eq: ast.NotEq, ast.And: ast.Or}
OPERATORS |= {ast.Add: ast.Sub, ast.Mult: ast.Div}
OPERATORS |= {new: old for old, new in OPERATORS.items()}
REDUCTIONS = {"mean": "sum", "min": "max", "max": "min", "argmax": "argmin", "argmin": "argmax"}
# Keywords that are not dropped: words, progress, and checks of our own.
WORDS = ("delay", "desc", "encoding", "help", "indent", "metavar", "stacklevel", "strict", "unit")

# The text from byte `start` to byte `end` of a file, `before`, becomes `after`.
Fault = namedtuple("Fault", "kind file line before after start end")


def changes(node: ast.AST) -> Iterator[tuple[str, ast.AST, ast.AST]]:
    """The faults of a node: the kind, the node that is replaced, and its replacement."""

    def but(**fields) -> ast.AST:
        return type(node)(**dict(ast.iter_fields(node)) | fields)

    match node:
        case ast.Compare(ops=[op, *others]) if type(op) in OPERATORS:
            yield "comparison", node, but(ops=[OPERATORS[type(op)](), *others])
        case ast.BoolOp(op) | ast.BinOp(op=op) if type(op) in OPERATORS:
            if not any(map(is_text, ast.iter_child_nodes(node))):  # texts and paths can only fail
                yield "operator", node, but(op=OPERATORS[type(op)]())
        case ast.Constant(int() | float() as value) if not isinstance(value, bool):
            yield "constant", node, ast.Constant(value + 1 if value == int(value) else value * 1.1)
        case ast.Call(func, args, keywords):
            *of, name = ast.unparse(func).rpartition(".")
            if name in REDUCTIONS:
                yield "reduction", func, ast.Name("".join(of) + REDUCTIONS[name])
            if len(args) > 1 and name != "isinstance" and not any(map(is_text, args[:2])):
                yield "arguments", node, but(args=[args[1], args[0], *args[2:]])
            for i, keyword in enumerate(keywords):
                if keyword.arg and keyword.arg not in WORDS:
                    yield "keyword", node, but(keywords=keywords[:i] + keywords[i + 1 :])
        case ast.Expr(ast.Call()) | ast.AugAssign():
            yield "statement", node, ast.Pass()
        case ast.Return(ast.Subscript(whole, ast.Slice())):
            yield "slice", node.value, whole
        case ast.If(test) | ast.IfExp(test) | ast.While(test):
            yield "condition", test, ast.UnaryOp(ast.Not(), test)


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or isinstance(getattr(node, "value", None), str)


def faults(root: Path, file: str) -> Iterator[Fault]:
    """All faults that a file can have, outside of annotations, errors and words."""
    text = (root / file).read_bytes()
    lines = [0, *(newline.end() for newline in re.finditer(b"\n", text))]
    nodes: list[ast.AST] = [ast.parse(text)]
    while nodes:
        for kind, old, new in changes(node := nodes.pop()):
            start = lines[old.lineno - 1] + old.col_offset
            end = lines[old.end_lineno - 1] + old.end_col_offset
            after = ast.unparse(ast.fix_missing_locations(new))
            if isinstance(new, ast.BinOp | ast.BoolOp | ast.Compare | ast.UnaryOp):
                after = f"({after})"
            yield Fault(kind, file, old.lineno, text[start:end].decode(), after, start, end)
        is_word = isinstance(node, ast.Raise | ast.JoinedStr) or getattr(node, "arg", "") in WORDS
        types = getattr(node, "annotation", None), getattr(node, "returns", None)
        nodes += [n for n in ast.iter_child_nodes(node) if not is_word and n not in types]


def python(root: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Runs Python on the clone; beyond the limit the exit code is 124."""
    paths = {"PYTHONPATH": f"{root}:{root / 'book'}", "PYTHONDONTWRITEBYTECODE": "1"}
    options = dict(cwd=root, env=os.environ | paths, stdin=subprocess.DEVNULL, timeout=LIMIT)
    command = [sys.executable, *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, **options)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", "")


def planted(root: Path) -> Iterator[Fault]:
    """Random faults up to the quotas, each in its file until the next is asked for."""
    files = [*root.glob("cibr/**/*.py"), *root.glob("book/cibr_book/**/*.py")]
    files = sorted(str(file.relative_to(root)) for file in files if file.name not in BY_EYE)
    sites = [fault for file in files for fault in faults(root, file)]
    used = Counter()
    for fault in random.Random(SEED).sample(sites, len(sites)):
        half, file = fault.file.split("/")[0], root / fault.file
        if used[half] == QUOTAS[half] or used[fault.file] == 3:
            continue
        text = file.read_bytes()
        file.write_bytes(text[: fault.start] + fault.after.encode() + text[fault.end :])
        try:
            module = fault.file.removeprefix("book/").removesuffix(".py").replace("/", ".")
            if python(root, "-c", f"import {module}").returncode == 0:
                used.update([half, fault.file])
                yield fault
        finally:
            file.write_bytes(text)


def caught_by(root: Path, file: str) -> str:
    """The first test that fails, or nothing."""
    room = Path(file.removeprefix("book/")).with_suffix("").parts[1]
    own = [f"tests/{room}", f"tests/test_{room}.py", f"tests/test_{room}_heads.py"]
    if file.startswith("book"):
        own = [f"tests/book/{room}", f"tests/book/test_{room}.py", "tests/experiments"]
    own = [tests for tests in own if (root / tests).exists()]
    for tests in (own, ["tests", *(f"--ignore={other}" for other in own + BUILDS)]):
        done = python(root, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests)
        if done.returncode:
            failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
            return failed[1] if failed else f"exit code {done.returncode}"
    return ""


def main(what: str, clone: str) -> None:
    root = Path(clone).resolve()
    for fault in planted(root):
        start = time.perf_counter()
        if what == "list":
            print(f"{fault.file}:{fault.line} {fault.kind}: {fault.before} → {fault.after}")
        else:
            row = [*fault[:5], caught_by(root, fault.file), round(time.perf_counter() - start)]
            csv.writer(sys.stdout).writerow(row)
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
