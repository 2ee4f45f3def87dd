"""A workspace shell in a process of its own, which may be another user's: commands come and results go as JSON lines.

python shell_driver.py WORKSPACE SETTINGS
"""

import json
import sys
from pathlib import Path

from codemill.sandbox import IsolationError
from codemill.sandbox.shell_types import ShellLimits
from codemill.sandbox.workspace_shell import WorkspaceShell


def main() -> None:
    settings = json.loads(sys.argv[2])
    limits = ShellLimits(**settings.pop("limits", {}))
    settings["hidden"] = [Path(each) for each in settings.get("hidden", [])]
    try:
        shell = WorkspaceShell(Path(sys.argv[1]), limits=limits, **settings)
    except IsolationError as error:
        print(json.dumps({"refused": str(error)}), flush=True)
        return
    with shell:
        print(json.dumps({"ready": True}), flush=True)
        for line in sys.stdin:
            result = shell.run(**json.loads(line))
            print(json.dumps(vars(result), default=str), flush=True)


if __name__ == "__main__":
    main()
