"""How alike two texts are, by the edits that make one of the other."""

LONGEST = 20_000  # characters of a text that are compared; the rest counts as edits


def edit_similarity(text: str, other: str) -> float:
    """1 - Levenshtein distance / length of the longer text: 1.0 for equal texts, 0.0 for those with nothing in common.

    Of very long texts a lower bound: what lies behind the first 20,000 characters counts as all different.
    """
    longest = max(len(text), len(other))
    if text == other:
        return 1.0
    shared, shared_other = text[:LONGEST], other[:LONGEST]
    rest = max(len(text) - len(shared), len(other) - len(shared_other))
    return 1.0 - (distance(shared, shared_other) + rest) / longest


def distance(text: str, other: str) -> int:
    """The Levenshtein distance, a column of the table at a time as bits of two whole numbers.

    Hyyrö 2003, "A Bit-Vector Algorithm for Computing Levenshtein and Damerau Edit Distances", after Myers 1999: about
    len(text) * len(other) / 64 steps of the processor.
    """
    if len(text) > len(other):
        text, other = other, text
    if not text:
        return len(other)
    positions: dict[str, int] = {}
    for i, character in enumerate(text):
        positions[character] = positions.get(character, 0) | 1 << i
    mask = (1 << len(text)) - 1
    last = 1 << (len(text) - 1)
    up, down, found = mask, 0, len(text)  # where the column rises, where it falls, and its last value
    for character in other:
        match = positions.get(character, 0)
        diagonal = (((match & up) + up) ^ up) | match | down
        right_up = down | (~(diagonal | up) & mask)
        right_down = up & diagonal
        found += bool(right_up & last) - bool(right_down & last)
        right_up = (right_up << 1 | 1) & mask
        right_down = (right_down << 1) & mask
        up = right_down | (~(diagonal | right_up) & mask)
        down = right_up & diagonal
    return found
