# mypy: ignore-errors
# /// script
# requires-python = "==3.11.*"
# dependencies = ["uvicorn[standard]==0.54.0"]
# ///
"""uvicorn and the smallest ASGI application: fixed bytes, no framework, no look-up."""

import os

import uvicorn

BODY = b'{"model":"iris","prediction":"0","label":"setosa","probabilities":[1.0,0.0,0.0]}'
START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(BODY)).encode())],
}
END = {"type": "http.response.body", "body": BODY}


async def app(scope, receive, send):
    await send(START)
    await send(END)


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ["PORT"]), lifespan="off", access_log=False, log_level="warning")
