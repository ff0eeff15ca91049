"""The modules of the original requirements: the six of the core, and the one that is registered."""

from __future__ import annotations

from typing import Any

from dspy_registry import ModuleInfo, Requirements

SUMMARISE = ModuleInfo(
    name="acme.Summarise",
    category="prediction",
    capabilities=("summarisation", "reasoning"),
    requirements=Requirements(memory="low", compute="medium", gpu=False, extra={"vram_gb": 0}),
    pool_type="general",
    estimated_duration=1200,
    native_available=True,
    examples=("Summarise()(text='…')",),
    metadata={"owner": "acme", "cost_usd_per_call": 0.002},
)

MEDIUM, HIGH = ("medium", "medium", False), ("high", "high", False)
CORE: list[tuple[Any, ...]] = [  # needs: memory, compute, gpu; runs: pool, milliseconds, native
    (
        "dspy.Predict",
        "prediction",
        "basic_generation structured_output",
        ("low", "low", False),
        ("general", 1000, True),
    ),
    ("dspy.ChainOfThought", "reasoning", "reasoning step_by_step explanation", MEDIUM, ("general", 3000, False)),
    ("dspy.ReAct", "reasoning", "reasoning tool_use iterative", MEDIUM, ("general", 5000, False)),
    ("dspy.ProgramOfThought", "reasoning", "complex_reasoning code_generation", HIGH, ("optimizer", 10_000, False)),
    (
        *("dspy.MIPROv2", "optimization", "hyperparameter_optimization prompt_optimization"),
        *(("high", "very_high", False), ("optimizer", 300_000, False)),
    ),
    ("dspy.ColBERTv2", "retrieval", "semantic_search embeddings", ("high", "high", True), ("neural", 500, False)),
]
