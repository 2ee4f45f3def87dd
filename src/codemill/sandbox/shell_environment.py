"""The environment of commands: a list of what they may have, since the agent's own has keys in it."""

import re
from collections.abc import Mapping

_TAKEN_OVER = re.compile(
    r"PATH|HOME|USER|LOGNAME|LANG|LANGUAGE|LC_\w+|TZ|COLUMNS"
    r"|VIRTUAL_ENV|CONDA_PREFIX|CONDA_DEFAULT_ENV|PYENV_ROOT|PYENV_VERSION|PYTHONPATH|PIPENV_ACTIVE|UV_CACHE_DIR"
    r"|CARGO_HOME|RUSTUP_HOME|RUSTUP_TOOLCHAIN|RUSTFLAGS|GOPATH|GOROOT|GOBIN|GOFLAGS|GOCACHE|GOMODCACHE|GOTOOLCHAIN"
    r"|NVM_DIR|NVM_BIN|NODE_PATH|NODE_OPTIONS|NODE_ENV|VOLTA_HOME|PNPM_HOME|BUN_INSTALL|DENO_DIR"
    r"|JAVA_HOME|M2_HOME|MAVEN_HOME|GRADLE_HOME|ANDROID_HOME|ANDROID_SDK_ROOT|DOTNET_ROOT|GEM_HOME|GEM_PATH|RBENV_ROOT"
    r"|CC|CXX|CFLAGS|CXXFLAGS|CPPFLAGS|LDFLAGS|LD_LIBRARY_PATH|PKG_CONFIG_PATH|CMAKE_PREFIX_PATH|MAKEFLAGS"
    r"|OMP_NUM_THREADS|CUDA_HOME|XDG_CACHE_HOME|XDG_CONFIG_HOME|XDG_DATA_HOME|NIX_PATH|NIX_SSL_CERT_FILE|SSL_CERT_FILE"
)
_WITH_NETWORK = re.compile(r"(?:https?|all|no)_proxy", re.IGNORECASE)
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL|AUTH", re.IGNORECASE)
_ALWAYS = {
    "TERM": "dumb",
    "NO_COLOR": "1",
    "PAGER": "cat",
    "GIT_PAGER": "cat",
    "GIT_EDITOR": "true",
    "GIT_TERMINAL_PROMPT": "0",
    # Python takes compiled code for current whose source has the same size and second: an edit is faster than that.
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUNBUFFERED": "1",  # or what it prints comes after what it reports as wrong
    "SHELL": "/bin/bash",
    "TMPDIR": "/tmp",
}


def command_environment(host: Mapping[str, str], network: bool) -> dict[str, str]:
    """What commands get of `host`, and what tells programs that nobody sits before them."""
    taken = {name: value for name, value in host.items() if _is_taken(name, network)}
    return {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", **taken, **_ALWAYS}


def _is_taken(name: str, network: bool) -> bool:
    wanted = _TAKEN_OVER.fullmatch(name) or (network and _WITH_NETWORK.fullmatch(name))
    return bool(wanted) and not _SECRET.search(name)
