"""Triton's dialect over HTTP, for faults that a real Triton does not show."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llama_orch.plugins.engines._mock_script import KnobError, tokenize

from .stand_in import Reply, StandIn, StruckError, speech_of

MODEL = "ensemble"
INPUTS = {
    "text_input": "BYTES",
    "max_tokens": "INT32",
    "stream": "BOOL",
    "random_seed": "UINT64",
    "temperature": "FP32",
    "stop_words": "BYTES",
}


class TritonServer(StandIn):
    """One model of TensorRT-LLM's contract.

    Args:
        fault: of those that the contract of engines names; "" = none.
        inputs: of the model, and their types.
    """

    def __init__(self, *, fault: str = "", inputs: Mapping[str, str] = INPUTS) -> None:
        super().__init__(fault=fault)
        self.inputs = inputs

    async def answer(self, reply: Reply, method: str, path: str, body: Any) -> None:
        model = f"/v2/models/{MODEL}"
        loading = self.fault == "loading"
        if (method, path) == ("GET", "/v2"):
            await reply.whole(200, {"name": "triton", "version": "0.0.1", "extensions": []})
        elif (method, path) == ("GET", f"{model}/ready"):
            await (self.error(reply, 400, "Model version not ready") if loading else reply.whole(200, None))
        elif loading:
            await self.error(reply, 400, f"Request for unknown model: '{MODEL}' has no available versions")
        elif (method, path) == ("GET", model):
            inputs = [{"name": name, "datatype": kind, "shape": [1]} for name, kind in self.inputs.items()]
            outputs = [{"name": "text_output", "datatype": "BYTES", "shape": [1]}]
            told = {"name": MODEL, "versions": ["1"], "platform": "made-up", "inputs": inputs, "outputs": outputs}
            await reply.whole(200, told)
        elif (method, path) == ("GET", f"{model}/stats"):
            counts = {"success": {"count": self.completed}, "fail": {"count": 0}}
            await reply.whole(200, {"model_stats": [{"name": MODEL, "version": "1", "inference_stats": counts}]})
        elif (method, path) == ("POST", f"{model}/generate_stream"):
            await self._generate(reply, body)
        else:
            await self.error(reply, 404, f"Request for unknown model: {path} is not found")

    async def _generate(self, reply: Reply, body: dict[str, Any]) -> None:
        if not await self.takes(reply):
            self.completed += self.fault == "cut-early"
            return
        prompt = body["text_input"]
        count = len(tokenize(prompt, add_special=True))
        try:
            speech, rate = speech_of(
                prompt, seed=body["random_seed"], limit=body["max_tokens"], room=self.ctx - count, stop=[]
            )
        except KnobError as error:
            await self.error(reply, 400, str(error))
            return
        self.busy += 1
        try:
            if count >= self.ctx:
                await reply.begin(400)
                await reply.chunk(
                    self.error_frame(f"Prompt length ({count}) exceeds maximum input length ({self.ctx})")
                )
                await reply.end()
                return
            await reply.begin()
            stops, said_so_far = body.get("stop_words", []), ""
            async for said in self.words(reply, speech, rate):
                for _ in range(said.tokens - 1):
                    await reply.chunk(self.text_frame(""))
                await reply.chunk(self.text_frame(said.text))
                said_so_far += said.text
                if any(stop in said_so_far for stop in stops):
                    break  # the stop word is said, as TensorRT-LLM says it
            await reply.end()
        except StruckError:
            pass
        finally:
            self.busy -= 1
            self.completed += 1

    async def error(self, reply: Reply, status: int, message: str) -> None:
        await reply.whole(status, {"error": message})

    def error_frame(self, message: str) -> bytes:
        return b"data: " + json.dumps({"error": message}).encode() + b"\n\n"

    def text_frame(self, text: str) -> bytes:
        told = {"model_name": MODEL, "model_version": "1", "text_output": text}
        return b"data: " + json.dumps(told, ensure_ascii=False).encode() + b"\n\n"
