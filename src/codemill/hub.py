"""Files from the Hugging Face Hub: cached, resumed where a download broke off, and with its own progress bars."""

import errno
from collections.abc import Sequence
from pathlib import Path

from codemill.errors import CodemillError, UsageError


def fetch(repo_id: str, allow_patterns: Sequence[str]) -> Path:
    """The local directory with the files of `repo_id` that match `allow_patterns`, downloaded if not in the cache.

    What is cached is found without a network, and nothing else is tried where HF_HUB_OFFLINE is set. Raises
    UsageError for an id that cannot be one, CodemillError for every failure to get the files.
    """
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return Path(huggingface_hub.snapshot_download(repo_id, allow_patterns=list(allow_patterns)))
    except errors.HFValidationError:
        raise UsageError(f"{repo_id!r} cannot be a repository id on the Hugging Face Hub (org/name)") from None
    except errors.HfHubHTTPError as error:
        raise CodemillError(_refusal(repo_id, error)) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise CodemillError(_unreachable(repo_id)) from error
    except (OSError, errors.HTTPError, ValueError, RuntimeError) as error:
        # HTTPError is the base class of the HTTP library that huggingface_hub uses; hf_xet raises RuntimeError.
        raise CodemillError(_breakdown(repo_id, error)) from error


def _refusal(repo_id: str, error: Exception) -> str:
    """The Hub answered, and said no."""
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{repo_id}"
    if isinstance(error, errors.GatedRepoError):
        return f"{repo_id}: access is gated: accept its terms at {page}, then log in with `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{repo_id}: no such model at {page}, or it is private (`hf auth login`); nor is there such a directory"
    if isinstance(error, errors.RevisionNotFoundError | errors.EntryNotFoundError):
        return f"{repo_id}: the repository at {page} is empty or a file in it is missing: check its page"
    return f"{repo_id}: {page} refused the download ({_first_line(error)}): try again later"


def _unreachable(repo_id: str) -> str:
    """The Hub did not answer, or may not be asked, and the cache does not have all that is needed."""
    from huggingface_hub import constants

    where = f"and {repo_id} is not complete in {constants.HF_HUB_CACHE}"
    if constants.HF_HUB_OFFLINE:
        return f"HF_HUB_OFFLINE is set {where}: unset it to download the model"
    return f"cannot reach {constants.ENDPOINT}, {where}: check the network, or give a model directory"


def _breakdown(repo_id: str, error: Exception) -> str:
    """The download was under way."""
    from huggingface_hub import constants

    code = error.errno if isinstance(error, OSError) else None
    if code in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
        return f"{repo_id}: no space left in {constants.HF_HUB_CACHE}: free some, or set HF_HOME to a larger disk"
    if code in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{repo_id}: cannot write to {constants.HF_HUB_CACHE}: set HF_HOME to a directory of yours"
    return f"{repo_id}: the download broke off ({_first_line(error)}): run again to resume it"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".:") if lines else type(error).__name__
