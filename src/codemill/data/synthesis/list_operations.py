"""Operations on lists of integers and lists of words."""

# ruff: noqa: E501 -- a row of the table is a line

from codemill.data.synthesis.operation import (
    BOOL,
    FLOAT,
    INT,
    INTS,
    SCORES,
    TEXT,
    WORDS,
    Operation,
    step,
    value,
)

_STEP, _WORDS = (INTS, INTS), (WORDS, WORDS)
_FILTER_LOOP = "result = []\nfor n in {x}:\n    if CONDITION:\n        result.append(n)"
_MAP_LOOP = "result = []\nfor n in {x}:\n    result.append(EXPRESSION)"


def _keep(name: str, condition: str, adjective: str, *phrases: str) -> Operation:
    code = f"[n for n in {{x}} if {condition}]"
    return step(name, _STEP, code, *phrases, noun=adjective, loop=_FILTER_LOOP.replace("CONDITION", condition))


def _map(name: str, expression: str, noun: str, *phrases: str) -> Operation:
    code = f"[{expression} for n in {{x}}]"
    return step(name, _STEP, code, *phrases, noun=noun, loop=_MAP_LOOP.replace("EXPRESSION", expression))


INTEGER_STEPS: tuple[Operation, ...] = (
    _keep("keep_even", "n % 2 == 0", "the even numbers", "keep the even numbers", "keep only the even numbers", "remove the odd numbers"),
    _keep("keep_odd", "n % 2 != 0", "the odd numbers", "keep the odd numbers", "keep only the odd numbers", "remove the even numbers"),
    _keep("keep_positive", "n > 0", "the positive numbers", "keep the positive numbers", "keep only the positive numbers"),
    _keep("keep_negative", "n < 0", "the negative numbers", "keep the negative numbers", "keep only the negative numbers"),
    _keep("keep_nonzero", "n != 0", "the nonzero numbers", "remove the zeros", "keep the nonzero numbers"),
    _keep("keep_greater", "n > {k}", "the numbers greater than {k}", "keep the numbers greater than {k}", "keep only the numbers above {k}"),
    _keep("keep_less", "n < {k}", "the numbers less than {k}", "keep the numbers less than {k}", "keep only the numbers below {k}"),
    _keep("keep_divisible", "n % {d} == 0", "the multiples of {d}", "keep the numbers divisible by {d}", "keep the multiples of {d}"),
    _keep("drop_divisible", "n % {d} != 0", "the numbers not divisible by {d}", "remove the numbers divisible by {d}", "remove the multiples of {d}"),
    _map("square_each", "n * n", "the squares of {x}", "square each number", "square every number", "replace each number with its square"),
    _map("cube_each", "n ** 3", "the cubes of {x}", "cube each number", "cube every number"),
    _map("double_each", "n * 2", "the doubles of {x}", "double each number", "double every number"),
    _map("halve_each", "n // 2", "the floored halves of {x}", "halve each number rounding down", "divide each number by 2 rounding down"),
    _map("add_each", "n + {k}", "", "add {k} to each number", "increase each number by {k}"),
    _map("subtract_each", "n - {k}", "", "subtract {k} from each number", "decrease each number by {k}"),
    _map("multiply_each", "n * {d}", "", "multiply each number by {d}", "multiply every number by {d}"),
    _map("remainder_each", "n % {d}", "the remainders modulo {d} of {x}", "take each number modulo {d}", "replace each number with its remainder modulo {d}"),
    _map("negate_each", "-n", "the negatives of {x}", "negate each number", "flip the sign of each number"),
    _map("absolute_each", "abs(n)", "the absolute values of {x}", "take the absolute value of each number", "make each number absolute"),
    _map("last_digits", "abs(n) % 10", "the last digits of {x}", "take the last digit of each number", "replace each number with its last digit"),
    _map("zero_negatives", "max(n, 0)", "", "replace the negative numbers with 0", "turn negative numbers into 0"),
    _map("cap_each", "min(n, {k})", "", "limit each number to at most {k}", "cap each number at {k}"),
    step("sort_ascending", _STEP, "sorted({x})", "sort the numbers in ascending order", "sort the numbers", "sort the numbers from smallest to largest"),
    step("sort_descending", _STEP, "sorted({x}, reverse=True)", "sort the numbers in descending order", "sort the numbers from largest to smallest"),
    step("reverse_numbers", _STEP, "{x}[::-1]", "reverse the list", "reverse the order of the numbers"),
    step("unique_numbers", _STEP, "list(dict.fromkeys({x}))", "remove the duplicates", "remove duplicate numbers keeping the order", noun="the distinct values of {x}",
         loop="result = []\nfor n in {x}:\n    if n not in result:\n        result.append(n)"),
    step("first_numbers", _STEP, "{x}[:{c}]", "keep the first {c} numbers", "take the first {c} numbers", noun="the first {c} of {x}"),
    step("last_numbers", _STEP, "{x}[-{c}:]", "keep the last {c} numbers", "take the last {c} numbers", noun="the last {c} of {x}"),
    step("skip_numbers", _STEP, "{x}[{c}:]", "skip the first {c} numbers", "drop the first {c} numbers"),
    step("every_other_number", _STEP, "{x}[::2]", "take every other number", "keep every second number starting with the first"),
    step("drop_smallest", _STEP, "[n for n in {x} if n != min({x})]", "remove the smallest number", "drop every copy of the smallest number"),
    step("drop_largest", _STEP, "[n for n in {x} if n != max({x})]", "remove the largest number", "drop every copy of the largest number"),
    step("running_sum", _STEP, "[sum({x}[:i + 1]) for i in range(len({x}))]", "take the running sum", "compute the running totals", noun="the running sums of {x}",
         loop="result = []\ntotal = 0\nfor n in {x}:\n    total += n\n    result.append(total)"),
    step("differences", _STEP, "[b - a for a, b in zip({x}, {x}[1:])]", "take the differences of neighbouring numbers", "compute the pairwise differences", noun="the differences of neighbours in {x}"),
    step("neighbour_sums", _STEP, "[a + b for a, b in zip({x}, {x}[1:])]", "take the sums of neighbouring numbers", "add each pair of neighbouring numbers"),
    step("rotate_left", _STEP, "{x}[1:] + {x}[:1]", "rotate the list left by one", "move the first number to the end"),
    step("add_lists", _STEP, "[a + b for a, b in zip({x}, {other})]", "add the numbers of {other} element by element", "add {other} element by element"),
    step("multiply_lists", _STEP, "[a * b for a, b in zip({x}, {other})]", "multiply by {other} element by element", "multiply by the numbers of {other} element by element"),
    step("common_numbers", _STEP, "[n for n in {x} if n in {other}]", "keep the numbers that are also in {other}", "keep only the numbers found in {other}"),
    step("without_numbers", _STEP, "[n for n in {x} if n not in {other}]", "remove the numbers that are in {other}", "keep the numbers that are not in {other}"),
    step("concatenate", _STEP, "{x} + {other}", "append the numbers of {other}", "extend the list with {other}"),
    step("numbers_to_strings", (INTS, WORDS), "[str(n) for n in {x}]", "convert each number to a string", "turn each number into a string"),
)  # fmt: skip

_TO_INT, _TO_BOOL = (INTS, INT), (INTS, BOOL)
INTEGER_VALUES: tuple[Operation, ...] = (
    value("sum", _TO_INT, "sum({x})", "the sum of the numbers", "the sum", "the total of the numbers", noun="the sum of {x}", loop="result = 0\nfor n in {x}:\n    result += n"),
    value("product", _TO_INT, (), "the product of the numbers", "the product", noun="the product of {x}", loop="result = 1\nfor n in {x}:\n    result *= n"),
    value("largest", _TO_INT, "max({x})", "the largest number", "the maximum", noun="the largest of {x}"),
    value("smallest", _TO_INT, "min({x})", "the smallest number", "the minimum", noun="the smallest of {x}"),
    value("second_largest", _TO_INT, "sorted({x})[-2]", "the second largest number", "the second largest value"),
    value("spread", _TO_INT, "max({x}) - min({x})", "the difference between the largest and smallest numbers", "the range from smallest to largest"),
    value("count_numbers", _TO_INT, "len({x})", "the number of elements", "the length of the list", "how many numbers there are", noun="the count of {x}"),
    value("count_distinct", _TO_INT, "len(set({x}))", "the number of distinct values", "how many distinct numbers there are"),
    value("count_even", _TO_INT, "sum(1 for n in {x} if n % 2 == 0)", "the number of even numbers", "how many numbers are even"),
    value("count_greater", _TO_INT, "sum(1 for n in {x} if n > {k})", "how many numbers are greater than {k}", "the count of numbers above {k}"),
    value("index_of_largest", _TO_INT, "{x}.index(max({x}))", "the index of the largest number", "the position of the maximum"),
    value("first_number", _TO_INT, "{x}[0]", "the first number", "the first element", noun="the first of {x}"),
    value("last_number", _TO_INT, "{x}[-1]", "the last number", "the last element", noun="the last of {x}"),
    value("median", _TO_INT, "sorted({x})[len({x}) // 2]", "the median of the numbers", "the middle number in sorted order"),
    value("mean", (INTS, FLOAT), "sum({x}) / len({x})", "the average of the numbers", "the mean of the numbers", "the average", noun="the average of {x}"),
    value("all_positive", _TO_BOOL, "all(n > 0 for n in {x})", "whether all numbers are positive", "True if every number is positive", noun="whether all of {x} are positive"),
    value("all_even", _TO_BOOL, "all(n % 2 == 0 for n in {x})", "whether all numbers are even", "True if every number is even", noun="whether all of {x} are even"),
    value("any_negative", _TO_BOOL, "any(n < 0 for n in {x})", "whether any number is negative", "True if any number is negative", noun="whether any of {x} is negative"),
    value("any_greater", _TO_BOOL, "any(n > {k} for n in {x})", "whether any number is greater than {k}", "True if any number is above {k}"),
    value("contains_number", _TO_BOOL, "{k} in {x}", "whether {k} is in the list", "True if the list contains {k}"),
    value("is_ascending", _TO_BOOL, "{x} == sorted({x})", "whether the numbers are in ascending order", "True if the list is sorted"),
    value("number_counts", (INTS, "dict[int, int]"), "{n: {x}.count(n) for n in {x}}", "a dictionary of how often each number occurs", "the count of each number as a dictionary"),
    value("square_map", (INTS, "dict[int, int]"), "{n: n * n for n in {x}}", "a dictionary from each number to its square", "a dictionary mapping each number to its square"),
    value("group_parity", (INTS, "dict[str, list[int]]"), '{"even": [n for n in {x} if n % 2 == 0], "odd": [n for n in {x} if n % 2 != 0]}', "the numbers grouped by parity", "a dictionary of the even and odd numbers"),
    value("numbers_text", (INTS, TEXT), '{sep}.join(str(n) for n in {x})', "the numbers joined with {sep}", "a string of the numbers separated by {sep}"),
)  # fmt: skip

_WORD_TEXT, _WORD_INT = (WORDS, TEXT), (WORDS, INT)
WORD_OPERATIONS: tuple[Operation, ...] = (
    step("upper_words", _WORDS, "[word.upper() for word in {x}]", "convert each word to upper case", "uppercase each word"),
    step("lower_words", _WORDS, "[word.lower() for word in {x}]", "convert each word to lower case", "lowercase each word"),
    step("capitalize_each", _WORDS, "[word.capitalize() for word in {x}]", "capitalize each word", "capitalize every word"),
    step("strip_words", _WORDS, "[word.strip() for word in {x}]", "strip each word", "strip the spaces around each word"),
    step("reverse_each", _WORDS, "[word[::-1] for word in {x}]", "reverse each word", "reverse the letters of each word"),
    step("first_letters", _WORDS, "[word[:1] for word in {x}]", "take the first letter of each word", "replace each word with its first letter"),
    step("last_letters", _WORDS, "[word[-1:] for word in {x}]", "take the last letter of each word", "replace each word with its last letter"),
    step("append_mark", _WORDS, "[word + {mark} for word in {x}]", "add {mark} to the end of each word", "append {mark} to each word"),
    step("prepend_mark", _WORDS, "[{mark} + word for word in {x}]", "add {mark} to the start of each word", "put {mark} before each word"),
    step("keep_longer", _WORDS, "[word for word in {x} if len(word) > {c}]", "keep the words longer than {c} letters", "keep the words with more than {c} letters", noun="the words longer than {c} letters"),
    step("keep_shorter", _WORDS, "[word for word in {x} if len(word) < {k}]", "keep the words shorter than {k} letters", "keep the words with fewer than {k} letters", noun="the words shorter than {k} letters"),
    step("keep_starting", _WORDS, "[word for word in {x} if word.startswith({letter})]", "keep the words that start with {letter}", "keep only the words starting with {letter}", noun="the words that start with {letter}"),
    step("keep_ending", _WORDS, "[word for word in {x} if word.endswith({letter})]", "keep the words that end with {letter}", "keep only the words ending with {letter}", noun="the words that end with {letter}"),
    step("keep_containing", _WORDS, "[word for word in {x} if {letter} in word]", "keep the words that contain {letter}", "keep only the words with the letter {letter}", noun="the words that contain {letter}",
         loop="result = []\nfor word in {x}:\n    if {letter} in word:\n        result.append(word)"),
    step("drop_containing", _WORDS, "[word for word in {x} if {letter} not in word]", "remove the words that contain {letter}", "remove the words with the letter {letter}"),
    step("drop_empty", _WORDS, "[word for word in {x} if word]", "remove the empty words", "drop the empty strings"),
    step("sort_words", _WORDS, "sorted({x})", "sort the words alphabetically", "sort the words in alphabetical order"),
    step("sort_by_length", _WORDS, "sorted({x}, key=len)", "sort the words by length", "sort the words from shortest to longest"),
    step("reverse_words", _WORDS, "{x}[::-1]", "reverse the order of the words", "reverse the list of words"),
    step("unique_words", _WORDS, "list(dict.fromkeys({x}))", "remove the duplicate words", "remove repeated words keeping the order"),
    step("first_words", _WORDS, "{x}[:{c}]", "keep the first {c} words", "take the first {c} words"),
    step("last_words", _WORDS, "{x}[-{c}:]", "keep the last {c} words", "take the last {c} words"),
    step("common_words", _WORDS, "[word for word in {x} if word in {extra}]", "keep the words that are also in {extra}", "keep only the words found in {extra}"),
    step("append_words", _WORDS, "{x} + {extra}", "append the words of {extra}", "extend the list of words with {extra}"),
    value("word_lengths", (WORDS, INTS), "[len(word) for word in {x}]", "the length of each word", "the lengths of the words", noun="the lengths of {x}",
          loop="result = []\nfor word in {x}:\n    result.append(len(word))"),
    step("join_words", _WORD_TEXT, "{sep}.join({x})", "join the words with {sep}", "join the words using {sep} as the separator"),
    step("concatenate_words", _WORD_TEXT, '"".join({x})', "concatenate the words", "join the words without a separator"),
    value("longest_word", _WORD_TEXT, "max({x}, key=len)", "the longest word", "the word with the most letters", noun="the longest of {x}"),
    value("shortest_word", _WORD_TEXT, "min({x}, key=len)", "the shortest word", "the word with the fewest letters", noun="the shortest of {x}"),
    value("first_word", _WORD_TEXT, "{x}[0]", "the first word", "the first word of the list", noun="the first of {x}"),
    value("last_word", _WORD_TEXT, "{x}[-1]", "the last word", "the last word of the list", noun="the last of {x}"),
    value("total_length", _WORD_INT, "sum(len(word) for word in {x})", "the total length of the words", "the total number of letters", noun="the total length of {x}"),
    value("count_words", _WORD_INT, "len({x})", "the number of words", "how many words there are", noun="the count of {x}"),
    value("count_containing", _WORD_INT, "sum(1 for word in {x} if {letter} in word)", "how many words contain {letter}", "the number of words that contain {letter}"),
    value("any_longer", (WORDS, BOOL), "any(len(word) > {k} for word in {x})", "whether any word is longer than {k} letters", "True if any word has more than {k} letters"),
    value("all_lower", (WORDS, BOOL), "all(word.islower() for word in {x})", "whether all words are in lower case", "True if every word is lower case"),
    value("word_counts", (WORDS, SCORES), "{word: {x}.count(word) for word in {x}}", "a dictionary of how often each word occurs", "the count of each word as a dictionary"),
    value("length_map", (WORDS, SCORES), "{word: len(word) for word in {x}}", "a dictionary from each word to its length", "a dictionary mapping each word to its length"),
    value("index_map", (WORDS, SCORES), "{word: i for i, word in enumerate({x})}", "a dictionary from each word to its index", "a dictionary mapping each word to its position"),
)  # fmt: skip
