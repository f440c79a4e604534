"""What ``--engine`` may name; apart from the engines, which the command line's help need not import."""

ENGINES = ("auto", "sim", "vllm")
