"""The endpoint picker: chooses replicas for Envoy, or any gateway that asks through ext_proc.

`messages` builds the protocol's messages, `conversation` is its state machine, `picking` chooses,
`observing` follows responses, `service` and `health` are the gRPC services, `process` runs them.
"""
