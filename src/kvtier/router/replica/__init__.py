"""HTTP connections to the replicas, and health checks over them."""
