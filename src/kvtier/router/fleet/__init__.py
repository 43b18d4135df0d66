"""The replicas of a router: their discovery, their state, and requests that wait for one."""
