"""Random walks of a Hypothesis state machine."""

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test


def walk(machine: type[RuleBasedStateMachine], examples: int, steps: int, *, derandomize: bool) -> None:
    """Walk so many times, each of so many steps: the same walks each time, or new ones."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
            phases=[Phase.generate],  # shrinking takes longer than reading a walk
            derandomize=derandomize,
        ),
    )
