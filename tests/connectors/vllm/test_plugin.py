import importlib
import subprocess
import sys

import pytest

from kvtier.connectors.vllm import plugin

SILENT = """
import sys
{setup}
import kvtier.connectors.vllm.plugin as plugin
heavy = {{"torch", "numpy"}} & set(sys.modules)
assert not heavy, heavy
plugin.register()
"""


def test_register_without_engine_does_nothing() -> None:
    setup = "sys.modules['vllm'] = None"
    done = subprocess.run(
        [sys.executable, "-c", SILENT.format(setup=setup)], capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_register_ignores_unknown_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    module = type(sys)("vllm.v1.kv_offload.factory")
    module.OffloadingSpecFactory = object  # type: ignore[attr-defined]
    for name in ("vllm", "vllm.v1", "vllm.v1.kv_offload"):
        monkeypatch.setitem(sys.modules, name, type(sys)(name))
    monkeypatch.setitem(sys.modules, "vllm.v1.kv_offload.factory", module)
    plugin.register()
    assert vars(module)["OffloadingSpecFactory"] is object


def test_register_is_idempotent_and_names_existing_class() -> None:
    factory = pytest.importorskip("vllm.v1.kv_offload.factory").OffloadingSpecFactory
    plugin.register()
    plugin.register()
    assert plugin.SPEC_NAME in factory._registry
    found = factory.get_spec_cls({"spec_name": plugin.SPEC_NAME})
    assert found is getattr(importlib.import_module(plugin.SPEC_MODULE), plugin.SPEC_NAME)
