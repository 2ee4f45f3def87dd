"""Completions written by hand for a few problems of MultiPL-E: in each language right ones and wrong ones.

All but Python's go on after the function, as a base model does; the stop tokens have to cut that off.
"""

from typing import NamedTuple


class Case(NamedTuple):
    """`right` and `wrong` continue the prompt of the problem whose number in HumanEval is `number`."""

    language: str
    number: int
    right: str
    wrong: str


def _case(language: str, number: int, template: str, right: str, wrong: str) -> Case:
    return Case(language, number, template.replace("<?>", right), template.replace("<?>", wrong))


CASES = [
    _case("python", 23, "    return <?>\n", "len(string)", "len(string) + 1"),
    _case(
        "python",
        107,
        "    kept = [i for i in range(1, n + 1) if str(i) == str(i)[::-1]]\n"
        "    return (sum(i % 2 == 0 for i in kept), sum(i % 2 <?> for i in kept))\n",
        "== 1",
        "== 0",
    ),
    _case(
        "cpp", 23, "    return <?>;\n}\n\nint unrelated() {\n    return 1;\n}\n", "string.size()", "string.size() / 2"
    ),
    _case(
        "cpp",
        107,
        """    long even = 0, odd = 0;
    for (long i = 1; i <= n; i++) {
        std::string text = std::to_string(i), back(text.rbegin(), text.rend());
        if (text == back) (i % 2 == 0 ? even : odd)<?>;
    }
    return std::make_tuple(even, odd);
}
""",
        "++",
        " += 2",
    ),
    _case(
        "cpp",
        136,
        """    std::optional<long> low, high;
    for (long x : lst) {
        if (x < 0 && (!low || x > *low)) low = x;
        if (x > 0 && (!high || x < *high)) high = x;
    }
    return {<?>};
}
""",
        "low, high",
        "high, low",
    ),
    _case(
        "java",
        23,
        "        return <?>;\n    }\n\n    static int unrelated() { return 1; }\n}\n",
        "string.length()",
        "1",
    ),
    _case(
        "java",
        107,
        """        long even = 0, odd = 0;
        for (long i = 1; i <= n; i++) {
            String text = Long.toString(i);
            if (new StringBuilder(text).reverse().toString().equals(text)) {
                if (i % 2 == 0) even++; else odd++;
            }
        }
        return Pair.with(<?>);
    }
}
""",
        "even, odd",
        "odd, even",
    ),
    _case(
        "js", 23, "  return <?>;\n}\n\nfunction unrelated() {}\nconsole.log(1)\n", "string.length", "string.length + 1"
    ),
    _case(
        "js",
        107,
        """  let counts = [0, 0];
  for (let i = 1; i <= n; i++) {
    if (String(i) === [...String(i)].reverse().join("")) counts[<?>]++;
  }
  return counts;
}

function unrelated() {}
""",
        "i % 2",
        "(i + 1) % 2",
    ),
    _case("ts", 23, "  return <?>;\n}\n\nfunction unrelated() {}\n", "string.length", "string.length + 1"),
    _case("ts", 23, "  return <?>;\n}\n", "string.length", "string"),
    _case(
        "ts",
        136,
        """  const below = lst.filter((x) => x < 0), above = lst.filter((x) => x > 0);
  const low = below.length ? Math.max(...below) : undefined;
  const high = above.length ? Math.min(...above) : undefined;
  return [<?>];
}
""",
        "low, high",
        "high, low",
    ),
    _case("go", 23, "    return <?>\n}\n\nfunc unrelated() int { return 1 }\n", "len(myString)", "len(myString) + 1"),
    _case("go", 23, "    return <?>\n}\n", "len(myString)", '"not a number"'),
    _case(
        "go",
        136,
        """    var low, high interface{}
    for _, x := range lst {
        if x < 0 && (low == nil || x > low.(int)) {
            low = x
        }
        if x > 0 && (high == nil || x < high.(int)) {
            high = x
        }
    }
    return []interface{}{<?>}
}
""",
        "low, high",
        "high, low",
    ),
    _case(
        "rs",
        23,
        "    <?>\n}\n\nfn unrelated() -> i32 {\n    1\n}\n",
        "string.len() as isize",
        "string.len() as isize + 1",
    ),
    _case("rs", 23, "    <?>\n}\n", "string.len() as isize", "string.len()"),
    _case(
        "rs",
        136,
        """    let low = lst.iter().copied().filter(|x| *x < 0).max();
    let high = lst.iter().copied().filter(|x| *x > 0).min();
    (<?>)
}
""",
        "low, high",
        "high, low",
    ),
    _case("rb", 23, "    <?>\nend\n\ndef unrelated\n  1\nend\n", "string.length", "string.length + 1"),
    _case(
        "rb",
        107,
        """    kept = (1..n).select { |i| i.to_s == i.to_s.reverse }
    even = kept.count { |i| i.even? }
    [even, kept.length <?>]
end
""",
        "- even",
        "",
    ),
    _case(
        "php",
        107,
        """    $counts = array(0, 0);
    for ($i = 1; $i <= $n; $i++) {
        if (strval($i) === strrev(strval($i))) { $counts[<?>]++; }
    }
    return $counts;
}

function unrelated() {}
""",
        "$i % 2",
        "0",
    ),
    _case(
        "php",
        136,
        """    $below = array_filter($lst, fn($x) => $x < 0);
    $above = array_filter($lst, fn($x) => $x > 0);
    return array($below ? max($below) : null, $above ? min($above) : <?>);
}
""",
        "null",
        "0",
    ),
    _case("pl", 23, "    return <?>;\n}\n\nsub unrelated { 1 }\n", "length($string)", "length($string) + 1"),
    _case(
        "pl",
        107,
        """    my @counts = (0, 0);
    for my $i (1 .. $n) {
        $counts[<?>]++ if $i eq reverse("$i");
    }
    return [@counts];
}
""",
        "$i % 2",
        "1",
    ),
    _case("lua", 23, "    return <?>\nend\n\nlocal function unrelated() end\n", "#string", "#string + 1"),
    _case(
        "lua",
        107,
        """    local counts = {0, 0}
    for i = 1, n do
        local text = tostring(i)
        if text == text:reverse() then
            counts[<?>] = counts[<?>] + 1
        end
    end
    return counts
end
""",
        "i % 2 + 1",
        "1",
    ),
    _case("r", 23, "\n    <?>\n}\n# unrelated\nunrelated <- 1\n", "nchar(string)", "nchar(string) + 1"),
    _case(
        "r",
        107,
        """
    counts <- c(0, 0)
    for (i in seq_len(n)) {
        text <- as.character(i)
        back <- paste(rev(strsplit(text, "")[[1]]), collapse = "")
        if (text == back) counts[<?>] <- counts[<?>] + 1
    }
    counts
}
""",
        "i %% 2 + 1",
        "1",
    ),
    _case("sh", 23, '    echo "<?>"\n}\n\nunrelated() {\n    echo 1\n}\n', "${#1}", "$1"),
    _case(
        "sh",
        107,
        """    local even=0 odd=0 i
    for ((i = 1; i <= $1; i++)); do
        if [[ $(rev <<< "$i") == "$i" ]]; then
            if ((i % 2)); then odd=$((odd + 1)); else even=$((even + 1)); fi
        fi
    done
    echo "<?>"
}
""",
        "$even $odd",
        "$odd $even",
    ),
    _case("cs", 23, "        return <?>;\n    }\n\n    static int Unrelated() { return 1; }\n}\n", "str.Length", "1"),
    _case("cs", 23, "        return <?>;\n    }\n", "str.Length", "str.Trim"),
    _case(
        "cs",
        107,
        """        long even = 0, odd = 0;
        for (long i = 1; i <= n; i++) {
            var text = i.ToString();
            if (text.SequenceEqual(text.Reverse())) {
                if (i % 2 == 0) even++; else odd++;
            }
        }
        return Tuple.Create(<?>);
    }
}
""",
        "even, odd",
        "odd, even",
    ),
    _case("scala", 23, "        <?>\n    }\n\n    def unrelated = 1\n}\n", "string.length.toLong", "1L"),
    _case(
        "scala",
        107,
        """        val kept = (1L to n).filter(i => i.toString == i.toString.reverse)
        val (even, odd) = kept.partition(_ % 2 == 0)
        (<?>)
    }
}
""",
        "even.size.toLong, odd.size.toLong",
        "odd.size.toLong, even.size.toLong",
    ),
    _case("d", 23, "{\n    return <?>;\n}\n\nint unrelated() { return 1; }\n", "cast(long) string.length", "1"),
    _case(
        "d",
        136,
        """{
    Nullable!long low, high;
    foreach (x; lst) {
        if (x < 0 && (low.isNull || x > low.get)) low = x;
        if (x > 0 && (high.isNull || x < high.get)) high = x;
    }
    return tuple(<?>);
}
""",
        "low, high",
        "high, low",
    ),
    _case("rkt", 23, "  <?>)\n\n(define (unrelated) 1)\n", "(string-length string)", "(+ 1 (string-length string))"),
    _case(
        "rkt",
        107,
        """  (define (palindrome? i)
    (equal? (reverse (string->list (number->string i))) (string->list (number->string i))))
  (define kept (filter palindrome? (range 1 (add1 n))))
  (list (count even? kept) (count <?> kept)))
""",
        "odd?",
        "even?",
    ),
]
