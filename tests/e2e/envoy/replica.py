"""A replica that reports its name: `python replica.py PORT NAME`.

It answers any POST with JSON that describes the request, or, if the body has `"stream": true`, with
64 server-sent events, 1 ms apart.
"""

import asyncio
import hashlib
import json
import sys

from aiohttp import web

CHUNKS = 64


async def answer(request: web.Request) -> web.StreamResponse:
    body = await request.read()
    headers = {"x-conformance-test-served-endpoint": sys.argv[2]}
    try:
        asked = json.loads(body) if body else {}
    except ValueError:
        asked = {}
    if not (isinstance(asked, dict) and asked.get("stream")):
        told = {
            "served": sys.argv[2],
            "bytes": len(body),
            "digest": hashlib.sha256(body).hexdigest(),
            "headers": {name.lower(): value for name, value in request.headers.items()},
            "model": asked.get("model") if isinstance(asked, dict) else None,
            "usage": {"prompt_tokens": 11, "completion_tokens": 2},
        }
        return web.json_response(told, headers=headers)
    delay_s = float(asked.get("delay_s", 0.001))
    response = web.StreamResponse(headers={**headers, "content-type": "text/event-stream"})
    await response.prepare(request)
    for number in range(CHUNKS):
        await response.write(f'data: {{"n": {number}, "served": "{sys.argv[2]}"}}\n\n'.encode())
        await asyncio.sleep(delay_s)
    await response.write(
        b'data: {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 64, '
        b'"prompt_tokens_details": {"cached_tokens": 5}}}\n\ndata: [DONE]\n\n'
    )
    await response.write_eof()
    return response


async def health(request: web.Request) -> web.Response:
    return web.Response(text="ok")


async def models(request: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": [{"id": "m", "object": "model"}]})


def main() -> None:
    application = web.Application(client_max_size=1 << 30)
    application.router.add_get("/health", health)
    application.router.add_get("/v1/models", models)
    application.router.add_route("*", "/{path:.*}", answer)
    web.run_app(application, host="127.0.0.1", port=int(sys.argv[1]), print=None, access_log=None)


if __name__ == "__main__":
    main()
