"""LEARNING about replicas and prompts: KV events, metrics, tokens."""
