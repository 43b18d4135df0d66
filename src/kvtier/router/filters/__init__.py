"""Filters, one per file: `lora-affinity-filter` is the `PLUGIN` of `lora_affinity.py`."""
