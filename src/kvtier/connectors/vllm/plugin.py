"""The entry point `vllm.general_plugins`: makes `spec_name: KVTier` work without a module path.

The engine calls it in all of its processes, even if kvtier is not used. So it imports nothing
that the engine has not imported, logs nothing and never fails.
"""

SPEC_NAME = "KVTier"
SPEC_MODULE = "kvtier.connectors.vllm.spec"


def register() -> None:
    """Register the spec with the engine. Idempotent; does nothing in an engine without specs."""
    try:
        from vllm.v1.kv_offload.factory import OffloadingSpecFactory
    except ImportError:
        return
    if SPEC_NAME in getattr(OffloadingSpecFactory, "_registry", {}):
        return
    try:
        OffloadingSpecFactory.register_spec(SPEC_NAME, SPEC_MODULE, SPEC_NAME)
    except (AttributeError, TypeError, ValueError):
        # A registry of another kind, or a second call. The module path still works.
        return
