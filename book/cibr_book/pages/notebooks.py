"""What a notebook that papermill executes checks first: its parameters."""

import ast
from typing import Any

from cibr.utils import check_known


def check_parameters(namespace: dict[str, Any], known: str) -> dict[str, Any]:
    """The checked parameters of a notebook; unknown names, which papermill only logs, raise.

    Call it in the first cell after the parameters, with `globals()` and the known names. Injected
    parameters are read from the executed cells (papermill's starts with `# Parameters`), so the
    call can be repeated.

    Args:
        namespace: the notebook's globals.
        known: the known parameters, separated by white space.

    Returns:
        The known parameters with their values.

    Raises:
        ValueError: papermill set an unknown name (the message has the nearest known one).
    """
    names = known.split()
    for name in _injected(namespace):
        check_known("parameter", name, names)
    return {name: namespace[name] for name in names}


def _injected(namespace: dict[str, Any]) -> list[str]:
    cells = [cell for cell in namespace.get("In", []) if cell.startswith("# Parameters")]
    assignments = [statement for cell in cells for statement in ast.parse(cell).body]
    targets = [target for each in assignments for target in getattr(each, "targets", [])]
    return [target.id for target in targets if isinstance(target, ast.Name)]
