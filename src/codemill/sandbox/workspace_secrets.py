"""Files that hold keys, tokens and what a person has typed: commands do not see them."""

import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from codemill.sandbox.workspace_git import GitPlan

HOME_SECRETS = (
    *(".ssh", ".gnupg", ".aws", ".azure", ".kube", ".password-store", ".vault-token", ".terraform.d"),
    *(".config/gcloud", ".config/gh", ".config/hub", ".config/op", ".config/rclone", ".config/sops", ".config/doctl"),
    *(".config/github-copilot", ".config/git/credentials", ".cargo/credentials", ".cargo/credentials.toml"),
    *(".gem/credentials", ".m2/settings.xml", ".huggingface/token", ".cache/huggingface/token"),
    *(".cache/huggingface/stored_tokens", ".pgpass", ".my.cnf", ".mylogin.cnf", ".s3cfg", ".boto", ".env"),
    *(".local/share/keyrings", ".local/share/kwalletd", ".pki", ".mozilla", ".thunderbird"),
    *(
        ".config/google-chrome",
        ".config/chromium",
        ".config/BraveSoftware",
        ".config/microsoft-edge",
        ".config/vivaldi",
    ),
    *(".claude", ".codex", ".gemini", ".qwen", ".claude.json"),
    *(".bash_history", ".zsh_history", ".history", ".python_history", ".node_repl_history", ".psql_history"),
    *(".mysql_history", ".sqlite_history", ".rediscli_history", ".lesshst", ".viminfo"),
    ".local/share/fish/fish_history",
)
# Programs read these whether they need a token or not, and fail where they may not.
EMPTIED = (".netrc", ".npmrc", ".pypirc", ".git-credentials", ".docker/config.json")
HOST_SECRETS = (
    *("/etc/shadow", "/etc/shadow-", "/etc/gshadow", "/etc/gshadow-", "/etc/sudoers", "/etc/sudoers.d"),
    *("/etc/ssl/private", "/etc/krb5.keytab", "/etc/kubernetes", "/etc/wireguard", "/etc/NetworkManager"),
    *("/etc/ssh/ssh_host_rsa_key", "/etc/ssh/ssh_host_ecdsa_key", "/etc/ssh/ssh_host_ed25519_key"),
    *("/var/lib/docker", "/var/lib/containerd", "/var/lib/kubelet", "/var/spool/cron", "/var/backups", "/var/log"),
)
_SAMPLES = ("*.example", "*.sample", "*.template", "*.dist", "*.defaults")
_ALWAYS = (".env", ".env.*", "*.env.local", ".envrc", ".netrc", ".pypirc", ".git-credentials", "credentials.json")
_ALWAYS_KEYS = ("id_rsa", "id_dsa", "id_ecdsa", "id_ed25519", "*.kdbx", "*.ppk")
# Test suites have such files too: one that Git tracks is part of the code.
_UNLESS_TRACKED = ("*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.keystore")
_NOT_SEARCHED = {
    *(".git", "node_modules", ".venv", "venv", "__pycache__", ".tox", ".nox", ".mypy_cache", ".ruff_cache"),
    *(".pytest_cache", "site-packages", ".hg", ".svn"),
}


def is_secret_name(name: str) -> bool:
    """Whether a file of this name holds secrets as a rule."""
    return _matches(name, (*_ALWAYS, *_ALWAYS_KEYS, *_UNLESS_TRACKED)) and not _matches(name, _SAMPLES)


def find_secrets(root: str, git: "GitPlan") -> Iterator[str]:
    """Files of a workspace that hold secrets, by their names. Folders of packages are not searched."""
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in _NOT_SEARCHED]
        for name in names:
            path = os.path.join(folder, name)
            if is_secret_name(name) and not (
                _matches(name, _UNLESS_TRACKED) and git.tracks(os.path.relpath(path, root))
            ):
                yield path


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name.lower(), pattern) for pattern in patterns)
