"""The files of a revision, as the Hub lists them and states them with each file; nothing in it is trusted."""

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from unistep.formats.hub.address import HubAddress
from unistep.formats.hub.transfer import AnswerError, read_headers, read_json
from unistep.text import version_of

_MOST_BYTES = 16 << 20  # of a listing; that of ten thousand files takes two
_MOST_SIZE = 1 << 50  # bytes of a file
_COMMIT = r"[0-9a-f]{40}"
_HASH = r"[0-9a-f]{40}|[0-9a-f]{64}"


@dataclass(frozen=True)
class HubFile:
    """A file on the Hub.

    Args:
        size: bytes; None if the Hub lists none.
        digest: sha256 (64 digits) or git's sha1 (40); None if the Hub lists none.
    """

    size: int | None
    digest: str | None


def request_headers(address: HubAddress) -> dict[str, str]:
    """Returns the headers of requests, with the token if there is any."""
    from huggingface_hub.utils import build_hf_headers

    return build_hf_headers(token=address.token, library_name="unistep", library_version=version_of())


def file_url(address: HubAddress, commit: str, name: str) -> str:
    """Returns the address of a file of a commit."""
    return f"{address.endpoint}/{address.model_id}/resolve/{commit}/{quote(name)}"


def list_files(address: HubAddress, timeout: float) -> tuple[str, dict[str, HubFile]]:
    """Reads the commit of the revision, and its files by their names.

    Args:
        address: address of the model.
        timeout: seconds for an answer.

    Returns:
        The commit's hash, and the files by their paths in the repository.

    Raises:
        AnswerError: the answer is not that of a Hub.
    """
    url = f"{address.endpoint}/api/models/{address.model_id}/revision/{quote(address.revision, safe='')}?blobs=true"
    answer = read_json(url, request_headers(address), timeout, _MOST_BYTES)
    try:
        commit = str(answer["sha"])
        files = dict(map(_listed, answer.get("siblings") or []))
    except (ValueError, AttributeError, KeyError, TypeError):
        raise AnswerError("no listing of a model") from None
    if not re.fullmatch(_COMMIT, commit):
        raise AnswerError("no commit")
    return commit, files


def stated_file(address: HubAddress, commit: str, name: str, listed: HubFile, timeout: float) -> tuple[int, str]:
    """Reads size and hash of a file, which is not downloaded.

    Args:
        address: address of the model.
        commit: commit of the file.
        name: name of the file.
        listed: the file as it is listed, whose size and hash hold where there are any.
        timeout: seconds for an answer.

    Returns:
        Size in bytes, and hash.

    Raises:
        AnswerError: size, hash or commit are malformed or missing, or those of something else.
    """
    headers = read_headers(file_url(address, commit, name), request_headers(address), timeout)
    if headers.get("x-repo-commit", commit) != commit:
        raise AnswerError("another commit")
    etag = headers.get("x-linked-etag") or headers.get("etag", "")
    # Quoted, and in the weak form of proxies. It may become part of a path.
    if not (match := re.fullmatch(rf'(?:W/)?("?)({_HASH})\1', etag.strip())):
        raise AnswerError("no hash as ETag")
    size = listed.size
    if size is None:
        text = (headers.get("x-linked-size") or headers.get("content-length", "")).strip()
        if not re.fullmatch(r"[0-9]{1,16}", text) or int(text) > _MOST_SIZE:
            raise AnswerError("no size")
        size = int(text)
    return size, listed.digest or match[2]


def _listed(entry: Any) -> tuple[str, HubFile]:
    size, lfs = entry.get("size"), entry.get("lfs")
    digest = lfs["sha256"] if lfs else entry.get("blobId")
    if size is not None and (type(size) is not int or not 0 <= size <= _MOST_SIZE):
        raise ValueError
    if (lfs or digest is not None) and not re.fullmatch(_HASH, digest):
        raise ValueError
    name = entry["rfilename"]
    if not isinstance(name, str):
        raise TypeError
    return name, HubFile(size, digest)
