"""A gRPC server over HTTP/2, as far as a picker needs one: unary and streaming calls, uncompressed.

kvtier has its own because the official gRPC server cost several times what choosing an endpoint
costs, and sent an answer and the end of its stream in separate writes. `frames` and `headers` read
and write bytes, `grpc` frames messages, `stream` is one call, `session` and `connection` are one
client, `listener` is the port.
"""
