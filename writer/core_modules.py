"""The six core modules, in the order in which they are seeded."""

from __future__ import annotations

from typing import Final

from dspy_registry.registry_store.records import ModuleInfo, Requirements


def _core(
    name: str,
    category: str,
    capabilities: tuple[str, ...],
    requirements: Requirements,
    pool_type: str,
    estimated_duration: int,
    native_available: bool = False,
) -> ModuleInfo:
    return ModuleInfo(
        name=f"dspy.{name}",
        category=category,
        capabilities=capabilities,
        requirements=requirements,
        pool_type=pool_type,
        estimated_duration=estimated_duration,
        native_available=native_available,
    )


CORE_MODULES: Final = (
    _core(
        "Predict",
        "prediction",
        ("basic_generation", "structured_output"),
        Requirements(memory="low", compute="low"),
        "general",
        1000,
        native_available=True,
    ),
    _core(
        "ChainOfThought",
        "reasoning",
        ("reasoning", "step_by_step", "explanation"),
        Requirements(memory="medium", compute="medium"),
        "general",
        3000,
    ),
    _core(
        "ReAct",
        "reasoning",
        ("reasoning", "tool_use", "iterative"),
        Requirements(memory="medium", compute="medium"),
        "general",
        5000,
    ),
    _core(
        "ProgramOfThought",
        "reasoning",
        ("complex_reasoning", "code_generation"),
        Requirements(memory="high", compute="high"),
        "optimizer",
        10_000,
    ),
    _core(
        "MIPROv2",
        "optimization",
        ("hyperparameter_optimization", "prompt_optimization"),
        Requirements(memory="high", compute="very_high"),
        "optimizer",
        300_000,
    ),
    _core(
        "ColBERTv2",
        "retrieval",
        ("semantic_search", "embeddings"),
        Requirements(memory="high", compute="high", gpu=True),
        "neural",
        500,
    ),
)
