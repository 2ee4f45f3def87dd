"""Reads a page in a process of its own: Python's parser takes the square of the time for pages that are made for it.

    python -m codemill.agent.html_worker

It is started by `web_fetch`: it reads a JSON list of a page and its address, and writes an empty text, then that of
the page, as JSON.
"""

import json
import resource
import sys

from codemill.agent.html_text import html_text

CPU_SECONDS = 60  # if nobody is left to end it
MEMORY = 2 << 30


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    page, address = json.load(sys.stdin)
    print(json.dumps(""), flush=True)
    print(json.dumps(html_text(page, address)), flush=True)


if __name__ == "__main__":
    main()
