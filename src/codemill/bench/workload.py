"""What is measured: prompts of some lengths, decode after some depths, in batches of some sizes. No torch here."""

from collections.abc import Sequence
from dataclasses import dataclass

from codemill.errors import UsageError

TRIAL_TOKENS, TRIAL_STEPS = 512, 16


@dataclass(frozen=True, order=True)
class Measurement:
    """A run: `batch` prompts of `num_prompt` tokens each, then `num_new` tokens each, the first of them by prefill."""

    num_prompt: int
    num_new: int
    batch: int

    def __str__(self) -> str:
        batch = f"{self.batch} x " if self.batch > 1 else ""
        decode = f", {self.num_steps} decoded" if self.num_steps else ""
        return f"{batch}prompt of {self.num_prompt}{decode}"

    @property
    def num_steps(self) -> int:
        """Steps of decode."""
        return self.num_new - 1

    @property
    def num_tokens(self) -> int:
        """Tokens of one sequence at its end."""
        return self.num_prompt + self.num_new

    @property
    def mean_depth(self) -> float:
        """Tokens that a sequence has in the cache during a step of decode, on average."""
        return self.num_prompt + self.num_new / 2


@dataclass(frozen=True)
class Workload:
    """prompt_lengths: of prefill; decode_after: depths; batches: sizes; all in tokens.

    batches_after: the depths at which more than one sequence decodes; None for all of decode_after.
    """

    prompt_lengths: Sequence[int] = (512, 2048)
    decode_after: Sequence[int] = (0, 512)
    batches: Sequence[int] = (1, 8)
    decode_tokens: int = 32
    batches_after: Sequence[int] | None = None

    def __post_init__(self) -> None:
        _check("prompt-lengths", self.prompt_lengths, 1)
        _check("decode-after", self.decode_after, 0)
        _check("batch", self.batches, 1)
        _check("decode-tokens", (self.decode_tokens,), 1)
        if not self.prompt_lengths and not self.decode_after:
            raise UsageError("nothing to measure: give --prompt-lengths or --decode-after")

    def decode(self, depth: int, batch: int) -> Measurement:
        """Decode after `depth` tokens; an empty context is one of a single token, from which there is a next one."""
        return Measurement(max(depth, 1), 1 + self.decode_tokens, batch)

    def depths(self, batch: int) -> Sequence[int]:
        """Where that many sequences decode."""
        return self.decode_after if batch == 1 or self.batches_after is None else self.batches_after

    def prefill(self, length: int) -> Measurement:
        """The run whose first token tells the speed of prefill. It does not decode: an engine may prefer another
        setting for that."""
        return Measurement(length, 1, 1)

    def measurements(self) -> list[Measurement]:
        """All runs of a round, the short ones first."""
        decode = {self.decode(depth, batch) for batch in self.batches for depth in self.depths(batch)}
        prefill = {self.prefill(length) for length in self.prompt_lengths}
        return sorted(decode | prefill, key=lambda each: (each.batch, each.num_prompt, each.num_new))

    def trials(self) -> list[Measurement]:
        """Runs that tell an engine's settings apart: for each size of a batch one with prompts of 512 tokens in all."""
        runs = self.measurements()
        num_new = 1 + min(max(each.num_steps for each in runs), TRIAL_STEPS)
        longest = max(each.num_tokens for each in runs) - num_new
        batches = dict.fromkeys(each.batch for each in runs)
        return [Measurement(min(longest, max(TRIAL_TOKENS // batch, 1)), num_new, batch) for batch in batches]

    def within(self, max_tokens: int) -> "Workload":
        """Only what a context of `max_tokens` has room for. Raises UsageError if that is nothing."""
        lengths = tuple(length for length in self.prompt_lengths if length + 1 <= max_tokens)
        depths = tuple(depth for depth in self.decode_after if self.decode(depth, 1).num_tokens <= max_tokens)
        batched = None if self.batches_after is None else tuple(each for each in self.batches_after if each in depths)
        if not lengths and not depths:
            raise UsageError(f"the model's context of {max_tokens} tokens is too short: give smaller --prompt-lengths")
        return Workload(lengths, depths, self.batches, self.decode_tokens, batched)

    @property
    def max_tokens(self) -> int:
        """The longest sequence."""
        return max(each.num_tokens for each in self.measurements())


def _check(name: str, values: Sequence[int], least: int) -> None:
    wrong = [value for value in values if value < least]
    if wrong:
        raise UsageError(f"--{name} {wrong[0]}: must be at least {least}")
