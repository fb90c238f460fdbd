"""verl's agent loop for one turn, which also says which draw it asks for: a seeded run is one, whatever the timing."""

from __future__ import annotations

from typing import Any

from verl.experimental.agent_loop.agent_loop import register
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

from verl_cpu.plugin import NAME


@register(NAME)
class NumberedAgentLoop(SingleTurnAgentLoop):
    """Requests carry (number of the prompt in the data, number of the sample)."""

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> Any:
        # The trainer of 0.9 numbers the samples of a prompt; older ones and V0 number the rows of a batch.
        sample = kwargs.get("session_id", kwargs.get("priority"))
        if sample is not None:
            sampling_params = sampling_params | {"draw": (int(kwargs["index"]), int(sample))}
        return await super().run(sampling_params, **kwargs)
