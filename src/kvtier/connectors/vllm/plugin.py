"""Entry point `vllm.general_plugins`: lets `spec_name: KVTier` work without a module path.

The engine calls it in each of its processes, kvtier in use or not, so it imports nothing that
the engine has not imported, says nothing and never fails.
"""

SPEC_NAME = "KVTier"
SPEC_MODULE = "kvtier.connectors.vllm.spec"


def register() -> None:
    """Tell the engine where the spec lives. Idempotent; harmless in an engine without specs."""
    try:
        from vllm.v1.kv_offload.factory import OffloadingSpecFactory
    except ImportError:
        return
    if SPEC_NAME in getattr(OffloadingSpecFactory, "_registry", {}):
        return
    try:
        OffloadingSpecFactory.register_spec(SPEC_NAME, SPEC_MODULE, SPEC_NAME)
    except (AttributeError, TypeError, ValueError):
        # Another engine's idea of a registry, or a second call: the module path still works.
        return
