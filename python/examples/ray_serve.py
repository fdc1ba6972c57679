"""A language model behind Ray Serve: replicas of scrimp.LLM behind one OpenAI-compatible route, with autoscaling and health checks.

usage: serve run ray_serve:app                   (pip install "ray[serve]")
       curl localhost:8000/v1/chat/completions -d '{"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 20}'

Set SCRIMP_MODEL (smollm2), SCRIMP_REPLICAS_MAX (2) and SCRIMP_REPLICA_CPUS (1). Each replica has a process and threads of its own; Ray sends a request
to the one with the fewest, starts more under load, and replaces one whose check_health fails. On several machines, start `ray start --head` on one
and `ray start --address=...` on the others: the same command then spreads the replicas over all of them.
"""

import json
import os
import time

from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

CPUS = int(os.environ.get("SCRIMP_REPLICA_CPUS", "1"))


@serve.deployment(
    ray_actor_options={"num_cpus": CPUS},
    autoscaling_config={
        "min_replicas": 1, "max_replicas": int(os.environ.get("SCRIMP_REPLICAS_MAX", "2")), "target_ongoing_requests": 2
    },
    max_ongoing_requests=8,
    health_check_period_s=10,
)
class ChatCompletions:
    """One replica."""

    def __init__(self, model):
        import scrimp

        self.name, self.llm = model, scrimp.LLM(model, threads=CPUS)

    def check_health(self):
        """Raises where the model does not compute any more."""
        self.llm.logits([0])

    async def __call__(self, request: Request) -> Response:
        if request.url.path == "/v1/models":
            return JSONResponse({"object": "list", "data": [{"id": self.name, "object": "model"}]})
        if request.url.path != "/v1/chat/completions" or request.method != "POST":
            return error(404, "there are POST /v1/chat/completions and GET /v1/models")
        try:
            body = await request.json()
            messages = body["messages"]
            options = {name: body[name] for name in ("max_tokens", "temperature", "top_p", "seed", "stop") if body.get(name) is not None}
            if body.get("stream"):
                self.llm.render(messages)  # complains before the stream begins
                return StreamingResponse(self.stream(messages, options), media_type="text/event-stream")
            answer = await self.llm.achat(messages, **options)
        except (KeyError, TypeError, ValueError) as problem:
            return error(400, str(problem))
        usage = {"prompt_tokens": answer.prompt_tokens, "completion_tokens": len(answer.tokens)}
        choice = {"index": 0, "message": {"role": "assistant", "content": answer.text}, "finish_reason": finish(answer.finish_reason)}
        return JSONResponse({**self.head("chat.completion"), "choices": [choice], "usage": usage})

    async def stream(self, messages, options):
        """Server-sent events, a piece of text each."""
        async for piece in self.llm.astream(messages, **options):
            yield event({**self.head("chat.completion.chunk"), "choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]})
        yield event({**self.head("chat.completion.chunk"), "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        yield "data: [DONE]\n\n"

    def head(self, kind):
        return {"id": f"chatcmpl-{time.time_ns()}", "object": kind, "created": int(time.time()), "model": self.name}


def event(value):
    return f"data: {json.dumps(value)}\n\n"


def finish(reason):
    return "length" if reason in ("length", "context_full") else "stop"


def error(status, message):
    return JSONResponse({"error": {"message": message, "type": "invalid_request_error"}}, status_code=status)


app = ChatCompletions.bind(os.environ.get("SCRIMP_MODEL", "smollm2"))
