"""FastAPI on uvicorn, one request at a time: `python -m bench.peers.fastapi_server PORT`."""

import asyncio
import sys

import uvicorn
from fastapi import FastAPI, Request, Response
from starlette.concurrency import run_in_threadpool

from bench import peers
from loadtest.body import MSGPACK

app = FastAPI()
policy = peers.load()
one_at_a_time = asyncio.Lock()


@app.post("/inference")
async def inference(request: Request) -> Response:
    """Answer one request, off the event loop."""
    body = await request.body()
    async with one_at_a_time:
        (answer,) = await run_in_threadpool(peers.answers, policy, [body])
    return Response(answer, media_type=MSGPACK)


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
