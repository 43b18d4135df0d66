"""The endpoint picker: chooses for an Envoy, or any gateway that asks through ext_proc.

`names` are the words of the protocol, `conversation` what may be said and when, `messages` how it
is written, `picking` who is chosen, `server` and `health` the gRPC around it.
"""
