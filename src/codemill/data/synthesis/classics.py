"""The everyday functions that newcomers try first, phrased in several ways.

In docs, goals and bodies `{0}`, `{1}`, ... stand for the parameters. A doc and a goal start with a verb.
"""

# ruff: noqa: E501 -- a row of the table is a line

from dataclasses import dataclass


@dataclass(frozen=True)
class Classic:
    """A well-known function with its wordings, its bodies and the arguments it is tested on."""

    name: str
    names: tuple[str, ...]
    types: tuple[str, ...]
    returns: str
    parameter_names: tuple[tuple[str, ...], ...]
    docs: tuple[str, ...]
    goals: tuple[str, ...]
    bodies: tuple[str, ...]
    cases: tuple[tuple[object, ...], ...]


_PAIR = (("a", "b"), ("x", "y"), ("first", "second"))
_N = (("n",), ("number",), ("num",), ("x",))
_S = (("text",), ("s",), ("string",), ("word",))
_L = (("numbers",), ("values",), ("nums",), ("items",), ("lst",))
_PAIRS = ((1, 2), (0, 0), (-3, 5), (10, 4), (-2, -7), (7, 7))
_SMALL = ((0,), (1,), (2,), (3,), (5,), (6,), (7,), (10,))
_LISTS = (([1, 2, 3],), ([5],), ([-4, 7, 0, 7],), ([3, 3, 1, 2, 1],), ([10, -2, 8, 5],), ([-1, -5, -3],))
_TEXTS = (("hello",), ("",), ("level",), ("Hello World",), ("Python is fun",), ("noon",), ("aeiou xyz",))


def _classic(
    names: str, types: str, returns: str, parameters: tuple[tuple[str, ...], ...], docs: str, goals: str,
    bodies: str | tuple[str, ...], cases: tuple[tuple[object, ...], ...],
) -> Classic:  # fmt: skip
    """Names are separated by spaces, types by ';', docs and goals by '|'."""
    forms = (bodies,) if isinstance(bodies, str) else bodies
    split = tuple(names.split())
    return Classic(
        f"classic_{split[0]}",
        split,
        tuple(types.split(";")),
        returns,
        parameters,
        tuple(docs.split("|")),
        tuple(goals.split("|")),
        forms,
        cases,
    )


_NUMBER_CLASSICS = (
    _classic("add add_numbers add_two sum_two", "int;int", "int", _PAIR, "add two numbers|return the sum of {0} and {1}|return the sum of two numbers|add {0} and {1}", "add two numbers|return the sum of two numbers|compute {0} plus {1}", "return {0} + {1}", _PAIRS),
    _classic("subtract difference", "int;int", "int", _PAIR, "subtract {1} from {0}|return {0} minus {1}|return the difference of {0} and {1}", "subtract {1} from {0}|compute {0} minus {1}", "return {0} - {1}", _PAIRS),
    _classic("multiply product_of_two mul", "int;int", "int", _PAIR, "multiply two numbers|return the product of {0} and {1}|return the product of two numbers", "multiply two numbers|compute {0} times {1}", "return {0} * {1}", _PAIRS),
    _classic("divide safe_divide", "int;int", "float", _PAIR, "divide {0} by {1}, or return 0.0 if {1} is zero|return {0} divided by {1}, or 0.0 if {1} is zero", "divide two numbers, giving 0.0 for division by zero", "if {1} == 0:\n    return 0.0\nreturn {0} / {1}", ((1, 2), (5, 0), (9, 3), (-4, 2), (0, 7))),
    _classic("max_of_two larger maximum", "int;int", "int", _PAIR, "return the larger of two numbers|return the maximum of {0} and {1}|find the larger of {0} and {1}", "find the larger of two numbers|return the maximum of two numbers", ("return {0} if {0} > {1} else {1}", "return max({0}, {1})"), _PAIRS),
    _classic("min_of_two smaller minimum", "int;int", "int", _PAIR, "return the smaller of two numbers|return the minimum of {0} and {1}", "find the smaller of two numbers|return the minimum of two numbers", ("return {0} if {0} < {1} else {1}", "return min({0}, {1})"), _PAIRS),
    _classic("max_of_three largest_of_three", "int;int;int", "int", (("a", "b", "c"), ("x", "y", "z")), "return the largest of three numbers|return the maximum of {0}, {1} and {2}", "find the largest of three numbers", "return max({0}, {1}, {2})", ((1, 2, 3), (3, 2, 1), (0, 9, 4), (-1, -2, -3), (5, 5, 5))),
    _classic("is_even even check_even", "int", "bool", _N, "return True if {0} is even|check whether a number is even|return whether {0} is even", "check if a number is even|tell whether {0} is even", "return {0} % 2 == 0", (*_SMALL, (-4,), (-3,))),
    _classic("is_odd odd check_odd", "int", "bool", _N, "return True if {0} is odd|check whether a number is odd|return whether {0} is odd", "check if a number is odd|tell whether {0} is odd", "return {0} % 2 != 0", (*_SMALL, (-4,), (-3,))),
    _classic("is_positive", "int", "bool", _N, "return True if {0} is positive|check whether a number is positive", "check if a number is positive", "return {0} > 0", (*_SMALL, (-4,), (-3,))),
    _classic("is_multiple is_divisible divides", "int;int", "bool", _PAIR, "return True if {0} is divisible by {1}|check whether {0} is a multiple of {1}", "check if {0} is divisible by {1}", "return {0} % {1} == 0", ((6, 3), (7, 2), (0, 5), (10, 4), (-9, 3))),
    _classic("factorial fact compute_factorial", "int", "int", _N[:3], "return the factorial of {0}|compute the factorial of a number|calculate {0} factorial", "compute the factorial of a number|calculate the factorial of {0}", ("result = 1\nfor i in range(2, {0} + 1):\n    result *= i\nreturn result",), _SMALL),
    _classic("fibonacci fib nth_fibonacci", "int", "int", _N[:3], "return the {0}th Fibonacci number|compute the Fibonacci number at index {0}|return the Fibonacci number of index {0}", "compute the nth Fibonacci number|calculate the Fibonacci number at index {0}", "a, b = 0, 1\nfor _ in range({0}):\n    a, b = b, a + b\nreturn a", _SMALL),
    _classic("fibonacci_list fibonacci_sequence fib_list", "int", "list[int]", _N[:3], "return a list of the first {0} Fibonacci numbers|return the first {0} Fibonacci numbers", "list the first {0} Fibonacci numbers|generate the Fibonacci sequence up to {0} numbers", "result = []\na, b = 0, 1\nfor _ in range({0}):\n    result.append(a)\n    a, b = b, a + b\nreturn result", _SMALL),
    _classic("is_prime prime check_prime", "int", "bool", _N[:3], "return True if {0} is a prime number|check whether a number is prime|return whether {0} is prime", "check if a number is prime|tell whether {0} is a prime number", "if {0} < 2:\n    return False\nfor i in range(2, int({0} ** 0.5) + 1):\n    if {0} % i == 0:\n        return False\nreturn True", (*_SMALL, (9,), (13,), (25,), (97,))),
    _classic("primes_up_to list_primes", "int", "list[int]", (("n",), ("limit",)), "return all prime numbers up to {0}|return a list of the primes up to and including {0}", "list all prime numbers up to {0}|find the primes up to {0}", "return [p for p in range(2, {0} + 1) if all(p % d != 0 for d in range(2, p))]", ((1,), (2,), (10,), (20,), (30,))),
    _classic("gcd greatest_common_divisor", "int;int", "int", _PAIR, "return the greatest common divisor of {0} and {1}|compute the greatest common divisor of two numbers|return the gcd of two numbers", "compute the greatest common divisor of two numbers|find the gcd of {0} and {1}", "while {1}:\n    {0}, {1} = {1}, {0} % {1}\nreturn {0}", ((12, 18), (7, 5), (9, 0), (100, 75), (8, 8))),
    _classic("lcm least_common_multiple", "int;int", "int", (("a", "b"), ("m", "n")), "return the least common multiple of {0} and {1}|compute the least common multiple of two numbers", "compute the least common multiple of two numbers|find the lcm of {0} and {1}", "x, y = {0}, {1}\nwhile y:\n    x, y = y, x % y\nreturn {0} * {1} // x", ((12, 18), (7, 5), (4, 6), (10, 5), (3, 3))),
    _classic("power pow_int raise_to", "int;int", "int", (("base", "exponent"), ("x", "n")), "return {0} raised to the power {1}|raise {0} to the power of {1}", "raise {0} to the power {1}|compute a power", "return {0} ** {1}", ((2, 3), (5, 0), (3, 4), (-2, 3), (10, 2))),
    _classic("square square_number", "int", "int", _N, "return the square of {0}|square a number", "square a number|compute the square of {0}", "return {0} * {0}", (*_SMALL, (-4,))),
    _classic("cube cube_number", "int", "int", _N, "return the cube of {0}|cube a number", "cube a number|compute the cube of {0}", "return {0} ** 3", (*_SMALL, (-4,))),
    _classic("absolute absolute_value", "int", "int", _N, "return the absolute value of {0}|return {0} without its sign", "compute the absolute value of a number", ("return -{0} if {0} < 0 else {0}", "return abs({0})"), ((0,), (5,), (-5,), (-12,), (3,))),
    _classic("is_perfect_square is_square", "int", "bool", _N[:3], "return True if {0} is a perfect square|check whether a number is a perfect square", "check if a number is a perfect square", "return {0} >= 0 and round({0} ** 0.5) ** 2 == {0}", ((0,), (1,), (2,), (9,), (15,), (16,), (-4,), (100,))),
    _classic("is_leap_year leap_year is_leap", "int", "bool", (("year",), ("y",)), "return True if {0} is a leap year|check whether a year is a leap year|return whether {0} is a leap year", "check if a year is a leap year|tell whether {0} is a leap year", "return {0} % 4 == 0 and ({0} % 100 != 0 or {0} % 400 == 0)", ((2000,), (1900,), (2024,), (2023,), (2100,), (1996,))),
    _classic("celsius_to_fahrenheit to_fahrenheit c_to_f", "float", "float", (("celsius",), ("c",), ("temperature",)), "convert a temperature from Celsius to Fahrenheit|convert degrees Celsius to Fahrenheit", "convert Celsius to Fahrenheit", "return {0} * 9 / 5 + 32", ((0.0,), (100.0,), (-40.0,), (37.5,), (20.0,))),
    _classic("fahrenheit_to_celsius to_celsius f_to_c", "float", "float", (("fahrenheit",), ("f",), ("temperature",)), "convert a temperature from Fahrenheit to Celsius|convert degrees Fahrenheit to Celsius", "convert Fahrenheit to Celsius", "return ({0} - 32) * 5 / 9", ((32.0,), (212.0,), (-40.0,), (50.0,), (68.0,))),
    _classic("fizzbuzz fizz_buzz", "int", "str", _N[:3], "return 'FizzBuzz' if {0} is divisible by 15, 'Fizz' by 3, 'Buzz' by 5, otherwise the number as a string", "play FizzBuzz for one number", 'if {0} % 15 == 0:\n    return "FizzBuzz"\nif {0} % 3 == 0:\n    return "Fizz"\nif {0} % 5 == 0:\n    return "Buzz"\nreturn str({0})', ((1,), (3,), (5,), (15,), (7,), (30,), (9,))),
    _classic("fizzbuzz_list fizz_buzz_list", "int", "list[str]", _N[:3], "return the FizzBuzz strings from 1 to {0}|return a list of the FizzBuzz values from 1 to {0}", "play FizzBuzz from 1 to {0}|list the FizzBuzz values up to {0}", 'result = []\nfor i in range(1, {0} + 1):\n    if i % 15 == 0:\n        result.append("FizzBuzz")\n    elif i % 3 == 0:\n        result.append("Fizz")\n    elif i % 5 == 0:\n        result.append("Buzz")\n    else:\n        result.append(str(i))\nreturn result', ((0,), (1,), (3,), (5,), (15,))),
    _classic("sum_to_n sum_up_to", "int", "int", _N[:2], "return the sum of the numbers from 1 to {0}|add the integers from 1 to {0}", "sum the numbers from 1 to {0}", "return sum(range(1, {0} + 1))", _SMALL),
    _classic("digit_sum sum_of_digits sum_digits", "int", "int", _N[:3], "return the sum of the digits of {0}|add the digits of a number", "sum the digits of a number|add up the digits of {0}", "return sum(int(d) for d in str(abs({0})))", ((0,), (5,), (123,), (-45,), (9999,))),
    _classic("circle_area area_of_circle", "float", "float", (("radius",), ("r",)), "return the area of a circle with the given radius|compute the area of a circle", "compute the area of a circle", "return 3.14159 * {0} * {0}", ((1.0,), (0.0,), (2.0,), (10.0,))),
    _classic("rectangle_area area", "int;int", "int", (("width", "height"), ("w", "h"), ("length", "width")), "return the area of a rectangle|compute the area of a rectangle", "compute the area of a rectangle", "return {0} * {1}", ((2, 3), (0, 5), (4, 4), (10, 1))),
    _classic("swap swap_values", "int;int", "tuple[int, int]", _PAIR, "return {1} and {0} as a tuple, swapped|swap two values and return them as a tuple", "swap two values", "return {1}, {0}", _PAIRS),
)  # fmt: skip

_LIST_CLASSICS = (
    _classic("sum_list total sum_numbers", "list[int]", "int", _L, "return the sum of a list of numbers|add all numbers in a list|return the sum of all elements", "sum a list of numbers|add up the numbers in a list", ("return sum({0})", "total = 0\nfor n in {0}:\n    total += n\nreturn total"), (*_LISTS, ([],))),
    _classic("average mean calculate_average", "list[int]", "float", _L, "return the average of a list of numbers|compute the mean of a list|calculate the average of the numbers", "compute the average of a list of numbers|calculate the mean of a list", ("return sum({0}) / len({0})",), _LISTS),
    _classic("find_max find_maximum maximum_of_list", "list[int]", "int", _L, "return the largest number in a list|find the maximum of a list|return the maximum value", "find the largest number in a list|find the maximum of a list", ("return max({0})", "largest = {0}[0]\nfor n in {0}:\n    if n > largest:\n        largest = n\nreturn largest"), _LISTS),
    _classic("find_min find_minimum minimum_of_list", "list[int]", "int", _L, "return the smallest number in a list|find the minimum of a list", "find the smallest number in a list|find the minimum of a list", ("return min({0})", "smallest = {0}[0]\nfor n in {0}:\n    if n < smallest:\n        smallest = n\nreturn smallest"), _LISTS),
    _classic("reverse_list reversed_list", "list[int]", "list[int]", _L, "return the list in reverse order|reverse a list", "reverse a list", "return {0}[::-1]", (*_LISTS, ([],))),
    _classic("remove_duplicates unique dedupe", "list[int]", "list[int]", _L, "remove duplicates from a list, keeping the order|return the list without duplicates, in order", "remove duplicates from a list|remove duplicate elements while keeping the order", ("result = []\nfor n in {0}:\n    if n not in result:\n        result.append(n)\nreturn result", "return list(dict.fromkeys({0}))"), (*_LISTS, ([],))),
    _classic("flatten flatten_list", "list[list[int]]", "list[int]", (("lists",), ("nested",), ("matrix",)), "flatten a list of lists|flatten a nested list into one list|return one list with the items of all lists", "flatten a list of lists|flatten a nested list", "return [item for row in {0} for item in row]", (([[1, 2], [3]],), ([],), ([[], [4]],), ([[5], [6, 7], [8]],))),
    _classic("transpose transpose_matrix", "list[list[int]]", "list[list[int]]", (("matrix",), ("rows",)), "transpose a matrix|return the transpose of a matrix", "transpose a matrix", "return [list(row) for row in zip(*{0})]", (([[1, 2], [3, 4]],), ([],), ([[1, 2, 3]],), ([[5], [6]],))),
    _classic("even_numbers get_evens filter_even", "list[int]", "list[int]", _L, "return the even numbers of a list|return only the even numbers", "filter the even numbers of a list|get the even numbers from a list", "return [n for n in {0} if n % 2 == 0]", (*_LISTS, ([],))),
    _classic("squares square_all", "list[int]", "list[int]", _L, "return the square of each number|square every number in a list", "square every number in a list", "return [n * n for n in {0}]", (*_LISTS, ([],))),
    _classic("sort_list sorted_list", "list[int]", "list[int]", _L, "sort a list of numbers|return the numbers in ascending order", "sort a list of numbers", "return sorted({0})", (*_LISTS, ([],))),
    _classic("second_largest second_max", "list[int]", "int", _L, "return the second largest number in a list|find the second largest distinct number", "find the second largest number in a list", "return sorted(set({0}))[-2]", _LISTS),
    _classic("count_occurrences count_item", "list[int];int", "int", (("numbers", "target"), ("items", "x"), ("values", "target")), "count how often {1} occurs in {0}|return the number of times {1} appears in {0}", "count how often a value occurs in a list", "return {0}.count({1})", (([1, 2, 1], 1), ([], 3), ([4, 4, 4], 4), ([5, 6], 7))),
    _classic("linear_search find_index index_of", "list[int];int", "int", (("numbers", "target"), ("items", "target"), ("values", "x")), "return the index of {1} in {0}, or -1 if it is missing|find the position of {1} in a list, or -1", "find the index of a value in a list, or -1", "for i, item in enumerate({0}):\n    if item == {1}:\n        return i\nreturn -1", (([1, 2, 1], 1), ([], 3), ([4, 9, 2], 2), ([5, 6], 7))),
    _classic("binary_search search_sorted", "list[int];int", "int", (("numbers", "target"), ("items", "target"), ("values", "x")), "return the index of {1} in a sorted list, or -1 if it is missing|search a sorted list for {1} with binary search and return its index or -1", "do a binary search in a sorted list|find a value in a sorted list with binary search", "low, high = 0, len({0}) - 1\nwhile low <= high:\n    middle = (low + high) // 2\n    if {0}[middle] == {1}:\n        return middle\n    if {0}[middle] < {1}:\n        low = middle + 1\n    else:\n        high = middle - 1\nreturn -1", (([1, 2, 3], 1), ([], 3), ([2, 4, 9], 9), ([5, 6], 7), ([1, 3, 5, 7, 9], 7))),
    _classic("bubble_sort", "list[int]", "list[int]", _L, "sort a list with bubble sort|sort the numbers in ascending order using bubble sort", "implement bubble sort|sort a list with bubble sort", "result = list({0})\nfor i in range(len(result)):\n    for j in range(len(result) - 1 - i):\n        if result[j] > result[j + 1]:\n            result[j], result[j + 1] = result[j + 1], result[j]\nreturn result", (*_LISTS, ([],))),
    _classic("merge_sorted merge", "list[int];list[int]", "list[int]", (("a", "b"), ("left", "right"), ("first", "second")), "merge two sorted lists into one sorted list|return one sorted list with the numbers of both lists", "merge two sorted lists", "return sorted({0} + {1})", (([1, 3], [2, 4]), ([], []), ([5], []), ([0, 9], [-1, 10]))),
    _classic("intersection common_elements", "list[int];list[int]", "list[int]", (("a", "b"), ("first", "second")), "return the elements that occur in both lists|return the elements of {0} that are also in {1}", "find the common elements of two lists", "return [x for x in {0} if x in {1}]", (([1, 2, 3], [2, 3, 4]), ([], [1]), ([5, 6], [6]), ([7], [8]))),
    _classic("dot_product dot", "list[int];list[int]", "int", (("a", "b"), ("xs", "ys")), "return the dot product of two lists|compute the dot product of {0} and {1}", "compute the dot product of two lists", "return sum(x * y for x, y in zip({0}, {1}))", (([1, 2], [3, 4]), ([], []), ([5], [-2]), ([0, 1, 2], [2, 1, 0]))),
    _classic("chunk split_into_chunks", "list[int];int", "list[list[int]]", (("items", "size"), ("numbers", "n")), "split a list into chunks of size {1}|split {0} into pieces of {1} items", "split a list into chunks", "return [{0}[i:i + {1}] for i in range(0, len({0}), {1})]", (([1, 2, 3, 4], 2), ([], 3), ([1, 2, 3], 2), ([5, 6], 1))),
)  # fmt: skip

_TEXT_CLASSICS = (
    _classic("reverse_string reverse reverse_text", "str", "str", _S, "return the string reversed|reverse a string|return {0} reversed", "reverse a string|return a string in reverse order", "return {0}[::-1]", _TEXTS),
    _classic("is_palindrome palindrome check_palindrome", "str", "bool", _S, "return True if {0} is a palindrome|check whether a string is a palindrome|return whether {0} reads the same forwards and backwards", "check if a string is a palindrome|tell whether {0} is a palindrome", "return {0} == {0}[::-1]", _TEXTS),
    _classic("count_vowels vowel_count number_of_vowels", "str", "int", _S, "return the number of vowels in {0}|count the vowels in a string|count the vowels of {0}", "count the vowels in a string|count vowels", ('return sum(1 for c in {0} if c in "aeiouAEIOU")', 'count = 0\nfor c in {0}:\n    if c in "aeiouAEIOU":\n        count += 1\nreturn count'), _TEXTS),
    _classic("word_count count_words number_of_words", "str", "int", _S[:3], "return the number of words in {0}|count the words in a string", "count the words in a string", "return len({0}.split())", _TEXTS),
    _classic("word_frequencies word_counts count_each_word", "str", "dict[str, int]", _S[:3], "return how often each word occurs in {0}|count each word in a text", "count how often each word occurs in a text", "counts = {}\nfor word in {0}.split():\n    counts[word] = counts.get(word, 0) + 1\nreturn counts", (("a b a",), ("",), ("one two two",), ("hello",))),
    _classic("char_frequency count_characters letter_counts", "str", "dict[str, int]", _S, "return how often each character occurs in {0}|count each character of a string", "count how often each character occurs in a string", "counts = {}\nfor c in {0}:\n    counts[c] = counts.get(c, 0) + 1\nreturn counts", _TEXTS),
    _classic("to_upper uppercase", "str", "str", _S, "return the string in upper case|convert a string to upper case", "convert a string to upper case", "return {0}.upper()", _TEXTS),
    _classic("capitalize_words title_case", "str", "str", _S[:3], "capitalize each word of a string|return {0} with each word capitalized", "capitalize each word of a string", 'return " ".join(word.capitalize() for word in {0}.split())', _TEXTS),
    _classic("remove_vowels without_vowels", "str", "str", _S, "remove all vowels from a string|return {0} without vowels", "remove the vowels from a string", 'return "".join(c for c in {0} if c not in "aeiouAEIOU")', _TEXTS),
    _classic("reverse_words reverse_word_order", "str", "str", _S[:3], "reverse the order of the words in a string|return {0} with its words in reverse order", "reverse the words of a sentence", 'return " ".join({0}.split()[::-1])', _TEXTS),
    _classic("is_anagram are_anagrams anagrams", "str;str", "bool", (("a", "b"), ("first", "second"), ("s", "t")), "return True if {0} and {1} are anagrams|check whether two strings are anagrams", "check if two strings are anagrams|check if two words are anagrams of each other", "return sorted({0}) == sorted({1})", (("listen", "silent"), ("", ""), ("abc", "abd"), ("aab", "aba"), ("ab", "abc"))),
    _classic("longest_word find_longest_word", "str", "str", (("text",), ("sentence",), ("s",)), "return the longest word in {0}|find the longest word of a sentence", "find the longest word in a sentence", "return max({0}.split(), key=len)", (("one three five",), ("hello",), ("a bb ccc",), ("Python is great fun",))),
    _classic("first_unique_character first_unique", "str", "str", _S, "return the first character that occurs only once, or an empty string|find the first character of {0} that is not repeated, or an empty string", "find the first character that is not repeated", 'for c in {0}:\n    if {0}.count(c) == 1:\n        return c\nreturn ""', (("aabc",), ("",), ("zz",), ("level",), ("hello",))),
    _classic("greet say_hello greeting", "str", "str", (("name",),), "return a greeting for {0} such as 'Hello, Ann!'|return the string 'Hello, ' followed by {0} and '!'", "greet a person by name|return 'Hello, ' with the name and '!'", 'return f"Hello, {{0}}!"', (("Ann",), ("Bob",), ("World",), ("",))),
    _classic("hello_world hello", "str", "str", (("name",), ("who",)), "return 'Hello, world!' if {0} is empty, otherwise 'Hello, ' and {0} with '!'", "say hello to the world or to a name", 'if not {0}:\n    return "Hello, world!"\nreturn f"Hello, {{0}}!"', (("Ann",), ("Bob",), ("",))),
    _classic("caesar_cipher caesar shift_letters", "str;int", "str", (("text", "shift"), ("s", "k")), "shift each lower case letter of {0} by {1} in the alphabet|encrypt {0} with a Caesar cipher of shift {1} for lower case letters", "encrypt lower case text with a Caesar cipher", 'result = ""\nfor c in {0}:\n    if c.islower():\n        c = chr((ord(c) - 97 + {1}) % 26 + 97)\n    result += c\nreturn result', (("abc", 1), ("xyz", 3), ("", 5), ("hello world", 13))),
    _classic("swap_keys_values invert_dict invert", "dict[str, int]", "dict[int, str]", (("d",), ("mapping",), ("data",)), "swap the keys and values of a dictionary|return the dictionary with keys and values swapped", "swap the keys and values of a dictionary|invert a dictionary", "return {value: key for key, value in {0}.items()}", (({"a": 1, "b": 2},), ({},), ({"x": 7},), ({"one": 1, "ten": 10},))),
    _classic("merge_dicts merge_two_dicts combine", "dict[str, int];dict[str, int]", "dict[str, int]", (("a", "b"), ("first", "second")), "merge two dictionaries, the second winning|return the entries of both dictionaries, those of {1} winning", "merge two dictionaries", "return {**{0}, **{1}}", (({"a": 1}, {"b": 2}), ({}, {}), ({"x": 7}, {"x": 8}), ({}, {"k": 1}))),
)  # fmt: skip

CLASSICS: tuple[Classic, ...] = _NUMBER_CLASSICS + _LIST_CLASSICS + _TEXT_CLASSICS
