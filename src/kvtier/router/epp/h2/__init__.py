"""gRPC over HTTP/2, as far as a picker needs it: unary calls and streams, no compression.

Why our own: the official server cost several times what choosing costs, and it sent an answer and
its end apart. `frames` and `headers` are the bytes, `grpc` the messages in them, `stream` one call,
`connection` one gateway, `listener` the port.
"""
