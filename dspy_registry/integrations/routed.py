"""`Routed`: a module of DSPy that calls the best of several others, and the next one if that fails."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import dspy

from dspy_registry.readers.registry import Registry
from dspy_registry.router.attempt import Result
from dspy_registry.router.router import Router, kept
from dspy_registry.writer.client.reporter import UsageReporter


class Routed(dspy.Module):  # type: ignore[misc]
    """Calls one of its targets, as `Router` does, and returns what that target returns.

        answer = Routed(registry, {"acme.Fast": Fast(), "acme.Deep": Deep()}, capabilities=("reasoning",))
        answer(question="…")

    `targets` are modules of DSPy, or other callables, by the registry name of each. They are the parts of this module:
    optimizers compile them, `save` and `load` take their states, `deepcopy` copies them. A `Programs` stays what it is,
    and its programs are no parts: each is loaded as it was published. `capabilities` and `asked` are
    the arguments of `Registry.route`, for every call. `reporter` None: one for the registry's folder. Raises
    InvalidArgumentError.

    `RegistryCallback` does not report what this reports: it adds tokens and cost to it.
    """

    def __init__(
        self,
        registry: Registry,
        targets: Mapping[str, Any],
        capabilities: str | Iterable[str] | None = (),
        *,
        reporter: UsageReporter | None = None,
        **asked: Any,
    ) -> None:
        super().__init__()
        router = Router(registry, targets, reporter)
        router.targets = {}  # the targets are parts of this module, and copied with it; the router is shared
        self.targets = kept(targets)
        self._router = router
        self._capabilities = capabilities
        self._asked = asked

    @property
    def router(self) -> Router:
        """The router in use."""
        return self._router

    def forward(self, **arguments: Any) -> Any:
        """What the target returns that succeeded. Raises what `Router.call` raises."""
        return self.route_and_call(arguments).value

    async def aforward(self, **arguments: Any) -> Any:
        """`forward` for asyncio."""
        result = await self._router.acall_any(self.targets, self._capabilities, arguments, **self._asked)
        return result.value

    def route_and_call(self, arguments: Mapping[str, Any]) -> Result:
        """The result with name, version and attempts."""
        return self._router.call_any(self.targets, self._capabilities, arguments, **self._asked)
