"""Prompts: the paper's generator in words of our own.

Every template of a category is combined with every topic once, so a prompt is one table look-up. No topic
holds a keyword of the classifier, nor does any short_qa template; with the label in front each category is
recognised always, without it as often as the templates use its keywords.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

TEMPLATES: Mapping[str, tuple[str, ...]] = {
    "short_qa": (
        "What does {} do?",
        "When would you choose {}?",
        "How does {} fail most often?",
        "What is the main cost of running {}?",
        "How do I know that {} is healthy?",
    ),
    "summary": (
        "Summarize how {} works for a new colleague.",
        "Summarize the trade-offs of {} in a few paragraphs.",
        "Give a summary of what an operator must know about {}.",
        "Summarize the usual mistakes with {} and how to avoid them.",
        "Write a short summary of {} for a status page.",
    ),
    "technical": (
        "Explain the architecture of {} and where its state lives.",
        "Explain, with code, how a client should use {}.",
        "Explain the technical limits of {} under heavy load.",
        "Explain step by step what happens inside {} when a node is lost.",
        "Explain how to tune {} and show the code that measures the effect.",
    ),
    "report": (
        "Write a detailed report on operating {} at scale.",
        "Write a comprehensive guide to migrating a company to {}.",
        "Write a detailed review of an outage caused by {}, with lessons.",
        "Write a comprehensive comparison of {} and its alternatives.",
        "Write a detailed plan for the capacity of {} over three years.",
    ),
}

TOPICS = (
    "DNS", "TCP congestion control", "TLS certificates", "HTTP/2", "QUIC", "BGP routing", "anycast",
    "a load balancer", "a reverse proxy", "an API gateway", "a service mesh", "a content delivery network",
    "a message queue", "Kafka", "event sourcing", "a dead-letter queue", "a rate limiter",
    "a circuit breaker", "retries with backoff", "idempotency keys", "Redis", "a write-ahead log",
    "an LSM tree", "a B-tree index",
    "PostgreSQL replication", "database sharding", "connection pooling", "two-phase commit", "Raft consensus",
    "leader election", "vector clocks", "a distributed lock", "consistent hashing", "a bloom filter",
    "object storage", "a block device", "RAID", "ZFS snapshots", "backups", "disaster recovery", "Kubernetes",
    "a container runtime", "cgroups", "autoscaling", "a job scheduler", "blue-green deployment",
    "feature flags", "Terraform", "secret rotation", "single sign-on", "a firewall", "zero-trust networking",
    "Prometheus", "distributed tracing", "log aggregation", "on-call rotation", "a GPU cluster", "a KV cache",
    "continuous batching", "paged attention", "speculative sampling", "model quantization",
)  # fmt: skip

LONGER = " Take your time, cover every side of it and give several examples."
SHORTER = " Answer in one short sentence."


def style(output_scale: float) -> str:
    """What a drift of ``output_scale`` adds to prompts, so that a real model changes its lengths too."""
    return LONGER if output_scale > 1.0 else SHORTER if output_scale < 1.0 else ""


def label(number: int, tenant: str, category: str) -> str:
    """The label that the paper's generator puts in front of a prompt."""
    return f"Request ID {number}. Tenant {tenant}. Job type {category}. "


@cache
def prompt_tables() -> Mapping[str, tuple[str, ...]]:
    """Every prompt of each category."""
    return {
        category: tuple(template.format(topic) for template in templates for topic in TOPICS)
        for category, templates in TEMPLATES.items()
    }
