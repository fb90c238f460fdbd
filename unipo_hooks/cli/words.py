"""The words algorithms are explained in, in the order in which one needs the others."""

WORDS: dict[str, str] = {
    "log-prob": "The logarithm of the probability the policy gives a token, in nats: 0 is certain, −0.69 is one half, "
    "−2.3 a tenth. One nat is a factor of 2.72.",
    "on-policy": "The policy that is trained is still the one that sampled, as at the first update after sampling. "
    "Later updates on the same responses are off-policy.",
    "ratio": "How many times likelier a token is now than when it was sampled: the exponential of the difference of "
    "its log-probs. On-policy it is 1.",
    "advantage": "How much better a response did than expected, for instance than the mean of its group: the responses "
    "to the same prompt. Above 0 its tokens are made likelier, below 0 less likely.",
    "clip": "Beyond a bound on the ratio a token is no longer pushed further the same way, so that one update cannot "
    "move the policy far.",
    "dual clip": "A second bound, for tokens of negative advantage: beyond a large ratio they are not pushed at all.",
    "detached": "Taken as a number: no gradient flows through it. A detached ratio weighs a token and is not itself "
    "trained.",
    "gradient weight": "What the loss changes by when a token's log-prob does. Descent moves against it, so the push "
    "on the token is its negative.",
    "KL to the reference": "How far the policy has moved from the model training began with, in nats. As a constraint "
    "it pulls back towards that model.",
    "aggregation": "How the terms of all tokens become one loss: whether every token counts the same, or every "
    "response.",
}
"""Word → what it means, for somebody who meets it for the first time."""
