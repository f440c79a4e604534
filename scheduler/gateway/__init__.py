"""Real clients in front of the scheduler: the OpenAI API, durable jobs, control and metrics."""

KEY_VARIABLE = "DRIFTSCHED_OPERATOR_KEY"
"""Where ``attach`` finds the operator's key."""
