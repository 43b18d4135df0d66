"""Record the signatures of vLLM's offloading interface from its wheel, without importing it.

    python tests/connectors/vllm/record_signatures.py vllm-0.33.0-….whl > signatures/0.33.json

The record has, for each class, its fields and the parameters of its methods in order, with those
that have a default; and for each function its parameters.
"""

import ast
import json
import sys
import zipfile
from typing import Any

MODULES = {
    "vllm/v1/kv_offload/base.py": [
        "OffloadingManager",
        "OffloadingSpec",
        "OffloadingWorker",
        "GPULoadStoreSpec",
        "LoadStoreSpec",
        "CanonicalKVCaches",
        "CanonicalKVCacheTensor",
        "CanonicalKVCacheRef",
        "CanonicalPageMapping",
        "CopyRun",
        "TransferResult",
        "PrepareStoreOutput",
        "OffloadingEvent",
        "ScheduleEndContext",
        "RequestOffloadingContext",
    ],
    "vllm/v1/kv_offload/config.py": [
        "OffloadingConfig",
        "OffloadingGroupConfig",
        "OffloadingCacheConfig",
        "OffloadingParallelConfig",
        "OffloadingModelConfig",
    ],
    "vllm/v1/kv_offload/factory.py": ["OffloadingSpecFactory"],
    "vllm/v1/kv_offload/cpu/host_register.py": ["host_register", "host_unregister"],
    "vllm/_custom_ops.py": ["swap_blocks_batch"],
}


def parameters(function: ast.FunctionDef) -> dict[str, Any]:
    """Return the kind, the parameters without self or cls, and whether it is abstract."""
    marks = {ast.unparse(decorator).rpartition(".")[2] for decorator in function.decorator_list}
    positional = [argument.arg for argument in function.args.args]
    defaults = len(function.args.defaults)
    optional = positional[len(positional) - defaults :] if defaults else []
    names = [name for name in positional if name not in {"self", "cls"}]
    kind = next((m for m in ("property", "classmethod", "staticmethod") if m in marks), "method")
    return {
        "kind": kind,
        "names": names,
        "optional": optional,
        "abstract": "abstractmethod" in marks,
    }


def shape(node: ast.stmt) -> dict[str, Any]:
    """Return the methods and fields of a class, or the parameters of a function."""
    if isinstance(node, ast.FunctionDef):
        return parameters(node)
    assert isinstance(node, ast.ClassDef)
    methods = {
        item.name: parameters(item)
        for item in node.body
        if isinstance(item, ast.FunctionDef)
        and (not item.name.startswith("_") or item.name == "__init__")
    }
    fields = [
        item.target.id
        for item in node.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    ]
    return {"methods": methods, "fields": fields}


def record(wheel: zipfile.ZipFile) -> dict[str, Any]:
    """Return `{module: {name: shape}}` of everything that kvtier subclasses, calls or reads."""
    recorded: dict[str, Any] = {}
    for path, names in MODULES.items():
        tree = ast.parse(wheel.read(path))
        module = path.removesuffix(".py").replace("/", ".")
        nodes = {
            node.name: node
            for node in tree.body
            if isinstance(node, ast.ClassDef | ast.FunctionDef)
        }
        recorded[module] = {name: shape(nodes[name]) for name in names}
    return recorded


if __name__ == "__main__":
    with zipfile.ZipFile(sys.argv[1]) as opened:
        print(json.dumps(record(opened), indent=1, sort_keys=True))
