"""Real clients in front of the scheduler: the OpenAI API, durable jobs, control and metrics."""
