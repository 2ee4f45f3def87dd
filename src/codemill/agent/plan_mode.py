"""What the model is told of plan mode. It stands behind what the user asks, so that the beginning stays the same."""

from collections.abc import Sequence

from codemill.agent.compaction import BEGINNING
from codemill.agent.model import Message

PLAN_ON = (
    "[Plan mode is on now: look and think, but change nothing; only commands that just look are run. "
    "Present your plan with exit_plan_mode.]"
)
PLAN_OFF = "[Plan mode is off now: you may change files and run commands.]"
AGREED = "The user agrees. Begin."
LOOK_ONLY = "[Change nothing: only look, and say what you found.]"  # to a second agent, which has nobody to ask


def plan_news(messages: Sequence[Message], is_plan: bool) -> str:
    """What to add to the user's next words: nothing, if the model knows already whether it is plan mode."""
    if knows_plan(messages) == is_plan:
        return ""
    return f"\n\n{PLAN_ON if is_plan else PLAN_OFF}"


def without_news(text: str) -> str:
    """What the user wrote."""
    return text.removesuffix(f"\n\n{PLAN_ON}").removesuffix(f"\n\n{PLAN_OFF}")


def knows_plan(messages: Sequence[Message]) -> bool:
    """Whether the model was told last that plan mode is on."""
    for message in reversed(messages):
        text = str(message.get("content") or "")
        if message["role"] == "tool" and text == AGREED:
            return False
        if message["role"] != "user":
            continue
        if text.startswith(BEGINNING):  # a summary, which may quote either
            return text.rfind(PLAN_ON) > text.rfind(PLAN_OFF)
        if text.endswith((PLAN_ON, PLAN_OFF)):
            return text.endswith(PLAN_ON)
    return False
