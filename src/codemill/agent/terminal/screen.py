"""The bottom of the terminal: what is not finished, the prompt line, the status. All else is printed above for good."""

import asyncio
import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from prompt_toolkit.application import Application
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.data_structures import Point
from prompt_toolkit.filters import Condition, has_completions, is_searching
from prompt_toolkit.formatted_text import ANSI, StyleAndTextTuples, to_formatted_text
from prompt_toolkit.key_binding import KeyBindingsBase
from prompt_toolkit.layout import ConditionalContainer, HSplit, Layout, Window
from prompt_toolkit.layout.controls import BufferControl, FormattedTextControl, UIContent, UIControl
from prompt_toolkit.layout.dimension import Dimension
from prompt_toolkit.layout.processors import HighlightSearchProcessor
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.styles import Style
from prompt_toolkit.widgets import SearchToolbar

from codemill.agent.terminal.safe_text import cut, safe_line, width

TICK = 0.15  # seconds between two pictures of what moves
MAX_INPUT_LINES = 10
MAX_COMPLETIONS = 7
STYLE = Style.from_dict({"prompt": "bold", "status": "", "completion": "", "completion.current": "bold"})


class SteadyOutput(Vt100_Output):
    """Output that can be held back, so that erasing and writing anew come at once and nothing flickers."""

    _held = False

    def flush(self) -> None:
        if not self._held:
            super().flush()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """All that is written here goes out at the end."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
            self.flush()


def _output() -> SteadyOutput:
    output = SteadyOutput.from_pty(sys.stdout, enable_bell=False)
    assert isinstance(output, SteadyOutput)
    return output


class Screen:
    """above: lines with styles that stand over the prompt line; status: the last line; moves: whether to draw anew."""

    def __init__(
        self,
        buffer: Buffer,
        keys: KeyBindingsBase,
        *,
        above: Callable[[], list[str]],
        prompt: Callable[[], str],
        status: Callable[[], str],
        moves: Callable[[], bool],
    ) -> None:
        self._above, self._status, self._moves, self._prompt = above, status, moves, prompt
        self._output = _output()
        self._output.enable_cpr = False  # nothing here needs to know where the cursor is
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: list[str] = []
        self.app: Application[int] = Application(
            layout=self._layout(buffer),
            key_bindings=keys,
            style=STYLE,
            output=self._output,
            full_screen=False,
            mouse_support=False,
            erase_when_done=True,
            enable_page_navigation_bindings=False,
            min_redraw_interval=0.03,
        )
        self.app.ttimeoutlen = 0.05
        self.app.timeoutlen = 0.3  # Esc alone is told from Alt by this

    @property
    def columns(self) -> int:
        return max(20, self._output.get_size().columns - 1)

    @property
    def rows(self) -> int:
        return self._output.get_size().rows

    def run(self, begin: Callable[[], None]) -> int:
        """Show it until it ends. begin: called when it stands."""

        async def main() -> int:
            self._loop = asyncio.get_running_loop()
            ticking = asyncio.ensure_future(self._tick())
            try:
                return await self.app.run_async(pre_run=begin)
            finally:
                ticking.cancel()

        try:
            return asyncio.run(main())
        finally:
            self._loop = None
            for text in self._waiting:
                self._write(text)

    def once_drawn(self, function: Callable[[], None]) -> None:
        """Call something after the first picture."""

        def call(_: Any) -> None:
            self.app.after_render -= call
            if self._loop is not None:
                self._loop.call_later(TICK, function)

        self.app.after_render += call

    def post(self, function: Callable[..., None], *arguments: Any) -> None:
        """Have the screen's thread call something; from any thread."""
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended just now
                loop.call_soon_threadsafe(self._call, function, *arguments)

    def show(self, text: str) -> None:
        """Print safe text above the prompt line, in the screen's thread."""
        if self.app._running_in_terminal:  # an editor is open
            self._waiting.append(text)
            return
        if not self.app.is_running:
            self._write(text)
            return
        with self._output.held():
            self.app.renderer.erase(leave_alternate_screen=False)
            self._write(text)
            self.app._redraw()

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        function(*arguments)
        self.app.invalidate()

    def _write(self, text: str) -> None:
        self._output.write_raw(text.replace("\n", "\r\n") + "\r\n")
        self._output.flush()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            if self._waiting and not self.app._running_in_terminal:
                texts, self._waiting = self._waiting, []
                self.show("\n".join(texts))
            if self._moves():
                self.app.invalidate()

    def _layout(self, buffer: Buffer) -> Layout:
        search = SearchToolbar(ignore_case=True)
        control = BufferControl(
            buffer,
            input_processors=[HighlightSearchProcessor()],
            search_buffer_control=search.control,
            preview_search=True,
        )
        line = Window(
            control,
            height=Dimension(min=1, max=MAX_INPUT_LINES),
            wrap_lines=True,
            dont_extend_height=True,
            get_line_prefix=self._line_prefix,
        )
        completions = ConditionalContainer(
            Window(CompletionLines(buffer, self), dont_extend_height=True), has_completions & ~is_searching
        )
        status = Window(FormattedTextControl(self._status_text), height=1, wrap_lines=False)
        return Layout(
            HSplit(
                [
                    Window(FormattedTextControl(self._above_text), dont_extend_height=True, wrap_lines=False),
                    line,
                    search,
                    completions,
                    ConditionalContainer(Window(height=1), ~has_completions),
                    ConditionalContainer(status, ~has_completions & Condition(lambda: self.rows > 4)),
                ]
            ),
            focused_element=line,
        )

    def _above_text(self) -> StyleAndTextTuples:
        room = max(2, self.rows - 4)
        return to_formatted_text(ANSI("\n".join(["", *self._above()[-room:]])))

    def _status_text(self) -> StyleAndTextTuples:
        return to_formatted_text(ANSI(self._status()))

    def _line_prefix(self, number: int, wrapped: int) -> StyleAndTextTuples:
        prompt = self._prompt()
        return [("class:prompt", prompt if number == 0 and not wrapped else " " * len(prompt))]


class CompletionLines(UIControl):
    """The completions as lines under the prompt line: a menu that floats has no room at the end of a window."""

    def __init__(self, buffer: Buffer, screen: Screen) -> None:
        self._buffer, self._screen = buffer, screen

    def preferred_height(self, width: int, max_available_height: int, wrap_lines: bool, get_line_prefix: Any) -> int:
        return min(MAX_COMPLETIONS, len(self._lines(width)))

    def create_content(self, width: int, height: int) -> UIContent:
        lines = self._lines(width)
        state = self._buffer.complete_state
        chosen = (state.complete_index or 0) if state is not None else 0
        return UIContent(
            lambda number: lines[number], len(lines), Point(0, min(chosen, len(lines) - 1)), show_cursor=False
        )

    def _lines(self, columns: int) -> list[StyleAndTextTuples]:
        state = self._buffer.complete_state
        if state is None:
            return [[("", "")]]
        names = [safe_line(completion.display_text) for completion in state.completions]
        room = min(max(width(name) for name in names), max(12, columns // 2))
        lines: list[StyleAndTextTuples] = []
        for number, (name, completion) in enumerate(zip(names, state.completions, strict=True)):
            is_chosen = number == state.complete_index
            name = cut(name, columns - 2) if not completion.display_meta_text else cut(name, room)
            space = " " * max(0, room - width(name))
            meta = cut(safe_line(completion.display_meta_text), max(0, columns - room - 5))
            mark = "> " if is_chosen else "  "
            style = "class:completion.current" if is_chosen else "class:completion"
            lines.append([(style, f"{mark}{name}{space}  "), ("dim", meta)])
        return lines
