"""What the scripted model of these tests says."""

import re

RESULT = "<tool_response>\n"  # as Qwen3-Coder's template writes what a tool answered
RESULTS = re.compile(r"<tool_response>\n(.*?)\n?</tool_response>", re.DOTALL)


def call(name: str, /, **arguments: object) -> str:
    """A tool call as Qwen3-Coder writes it."""
    parameters = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in arguments.items())
    return f"<tool_call>\n<function={name}>\n{parameters}</function>\n</tool_call>"


class Conversation:
    """A script that says `answers` one after the other: as many as the prompt has tool results are said already.

    So a client that sends a request again gets the same answer again. What a client asks for besides, without tools
    (a title of the conversation, say), gets an answer of its own where `answers` call tools.
    """

    def __init__(self, *answers: str) -> None:
        self._answers = answers
        self._calls_tools = any("<tool_call>" in answer for answer in answers)
        self.prompts: list[str] = []

    def __call__(self, prompt: str) -> str:
        if self._calls_tools and "<tools>" not in prompt:
            return "A title"
        self.prompts.append(prompt)
        return self._answers[min(prompt.count(RESULT), len(self._answers) - 1)]

    @property
    def results(self) -> list[str]:
        """What the tools answered, as the model saw it last."""
        return RESULTS.findall(max(self.prompts, key=lambda prompt: prompt.count(RESULT)))
