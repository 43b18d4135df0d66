"""What the router learns about replicas and prompts: KV events, metrics, model names, tokens."""
