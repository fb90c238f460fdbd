"""verl's agent loop for one turn, which also says which draw it asks for: a seeded run is one, whatever the timing.

And a loop in which a tool answers once: what it says stands in the response, and is not trained on.
"""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from verl.experimental.agent_loop.agent_loop import register
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

from verl_cpu.plugin import NAME, TOOL

CALL, ANSWER = 2, "(0)"
"""Tokens after which the tool answers, where the response is longer; and what it says, a token a character."""


@register(NAME)
class NumberedAgentLoop(SingleTurnAgentLoop):
    """Requests carry (number of the prompt in the data, number of the sample)."""

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> Any:
        return await super().run(numbered(sampling_params, kwargs), **kwargs)


@register(TOOL)
class ToolAgentLoop(NumberedAgentLoop):
    """The policy goes on after the tool's answer, which has the mask and the log-probs verl's own loop gives it."""

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> Any:
        output = await super().run(sampling_params, **kwargs)
        if len(output.response_ids) <= CALL:
            return output
        answer = self.tokenizer.encode(ANSWER, add_special_tokens=False)
        before = output.response_ids[:CALL] + answer
        more = await self.server_manager.generate(
            request_id=uuid4().hex,
            prompt_ids=output.prompt_ids + before,
            sampling_params=numbered(sampling_params, kwargs),
        )
        mask = [1] * CALL + [0] * len(answer) + [1] * len(more.token_ids)
        log_probs = output.response_logprobs[:CALL] + [0.0] * len(answer) + more.log_probs
        output.response_ids = (before + more.token_ids)[: self.response_length]
        output.response_mask = mask[: self.response_length]
        output.response_logprobs = log_probs[: self.response_length]
        output.num_turns += 2
        output.extra_fields["max_global_steps"] = more.extra_fields["max_global_steps"]
        return output


def numbered(sampling_params: dict[str, Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Sampling parameters with the draw of a request, where the trainer says which it is."""
    # The trainer of 0.9 numbers the samples of a prompt; older ones and V0 number the rows of a batch.
    sample = kwargs.get("session_id", kwargs.get("priority"))
    return sampling_params if sample is None else sampling_params | {"draw": (int(kwargs["index"]), int(sample))}
