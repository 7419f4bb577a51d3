"""An exhaustive explorer: every state a model can reach, by every interleaving of its steps."""

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

S = TypeVar("S", bound=Hashable)


class Model(Protocol[S]):
    """What is explored. A step is (what happens, the state after it)."""

    def initial(self) -> S: ...

    def steps(self, state: S) -> Iterable[tuple[str, S]]: ...

    def wrong(self, state: S) -> str | None:
        """Which property the state breaks, if any."""
        ...


@dataclass(frozen=True)
class Explored(Generic[S]):
    """``trace``: the shortest way to a broken property, empty when none can be broken."""

    states: int
    transitions: int
    ends: tuple[S, ...]
    trace: tuple[str, ...]

    @property
    def holds(self) -> bool:
        return not self.trace

    def story(self) -> str:
        """The counterexample, one step a line."""
        return "\n".join(f"{number:3}. {step}" for number, step in enumerate(self.trace, 1))


def explore(
    model: Model[S], *, limit: int = 3_000_000, visit: Callable[[S], object] | None = None
) -> Explored[S]:
    """Breadth first, so that a counterexample is the shortest. Stops at the first.

    ``ends`` are the states without a step. ``visit`` sees every state. Raises RuntimeError beyond
    ``limit`` states: a check that stops early proves nothing.
    """
    start = model.initial()
    came: dict[S, tuple[S, str] | None] = {start: None}
    layer, transitions, ends = [start], 0, []
    while layer:
        following: list[S] = []
        for state in layer:
            if visit is not None:
                visit(state)
            broken = model.wrong(state)
            if broken is not None:
                return Explored(len(came), transitions, (), (*_way(came, state), broken))
            before = transitions
            for name, after in model.steps(state):
                transitions += 1
                if after not in came:
                    came[after] = (state, name)
                    following.append(after)
            if transitions == before:
                ends.append(state)
        if len(came) > limit:
            raise RuntimeError(f"more than {limit} states: make the model smaller")
        layer = following
    return Explored(len(came), transitions, tuple(ends), ())


def _way(came: dict[S, tuple[S, str] | None], state: S) -> list[str]:
    names = []
    step = came[state]
    while step is not None:
        state, name = step
        names.append(name)
        step = came[state]
    return names[::-1]
