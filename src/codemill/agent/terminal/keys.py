"""What each key does."""

from typing import Protocol

from prompt_toolkit.filters import Condition, has_completions, is_searching
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.key_binding.key_processor import KeyPressEvent
from prompt_toolkit.keys import Keys

from codemill.agent.terminal.prompt_line import PromptLine


class Controls(Protocol):
    """What keys can ask for."""

    line: PromptLine

    @property
    def is_asking(self) -> bool:
        """Whether a question waits for a single key."""

    def send(self) -> None:
        """What is in the line is meant."""

    def stop(self) -> None:
        """Stop what the agent does, or leave what is open."""

    def interrupt(self) -> None:
        """Ctrl-C."""

    def end(self) -> None:
        """End the terminal."""

    def answer(self, key: str) -> None:
        """A key was pressed while a question is open."""

    def change_mode(self) -> None:
        """The next approval mode."""


def make_keys(controls: Controls) -> KeyBindings:
    """All keys that do something else than editing the line."""
    keys = KeyBindings()
    _add_line_keys(keys, controls)
    _add_work_keys(keys, controls)
    _add_answer_keys(keys, controls)
    return keys


def _add_line_keys(keys: KeyBindings, controls: Controls) -> None:
    typing = Condition(lambda: not controls.is_asking)

    @keys.add("enter", filter=typing & ~is_searching)
    def enter(event: KeyPressEvent) -> None:
        if controls.line.enter():
            controls.send()

    @keys.add("escape", "enter", filter=typing)
    @keys.add("c-j", filter=typing & ~is_searching)
    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add(Keys.BracketedPaste, filter=typing & ~is_searching)
    def paste(event: KeyPressEvent) -> None:
        controls.line.paste(event.data)

    @keys.add(Keys.BracketedPaste, filter=~typing)
    def paste_nowhere(event: KeyPressEvent) -> None:
        pass

    @keys.add("c-x", "c-e", filter=typing)
    def edit(event: KeyPressEvent) -> None:
        event.current_buffer.open_in_editor()

    @keys.add("tab", filter=typing & ~has_completions & ~is_searching)
    def complete(event: KeyPressEvent) -> None:
        event.current_buffer.start_completion(insert_common_part=True)


def _add_work_keys(keys: KeyBindings, controls: Controls) -> None:
    @keys.add("escape", filter=~is_searching)
    def escape(event: KeyPressEvent) -> None:
        if event.current_buffer.complete_state is not None:
            event.current_buffer.cancel_completion()
        else:
            controls.stop()

    @keys.add("c-c", filter=~is_searching)
    @keys.add(Keys.SIGINT)
    def interrupt(event: KeyPressEvent) -> None:
        controls.interrupt()

    @keys.add("c-d", filter=Condition(lambda: controls.line.is_empty))
    def end(event: KeyPressEvent) -> None:
        controls.end()

    @keys.add("s-tab", filter=~has_completions)
    def change_mode(event: KeyPressEvent) -> None:
        controls.change_mode()

    @keys.add("c-z")
    def suspend(event: KeyPressEvent) -> None:
        event.app.suspend_to_background()


def _add_answer_keys(keys: KeyBindings, controls: Controls) -> None:
    asking = Condition(lambda: controls.is_asking)

    @keys.add(Keys.Any, filter=asking)
    def answer(event: KeyPressEvent) -> None:
        controls.answer(event.data)

    @keys.add("enter", filter=asking)
    def nothing(event: KeyPressEvent) -> None:
        """There is no default answer."""
