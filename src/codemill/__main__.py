"""`python -m codemill`: the command line."""

import sys

from codemill.cli import main

sys.exit(main())
