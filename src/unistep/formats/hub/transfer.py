"""Answers of the Hub within limits of time and size, whatever is at the other end.

The clients of `huggingface_hub` are used (proxies, certificates). They limit the time of a single read, so that a
server which sends a byte now and then holds them for ever, and they keep whatever it sends. Requests therefore run in a
thread of their own, which is given up when it brings nothing.
"""

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urljoin, urlsplit

from unistep.documents import DocumentError, parse_json

SILENCE = 30.0  # seconds in which an answer is whole, or brings _LEAST bytes of a file
_LEAST = 32 << 10
_REASON = 64 << 10  # bytes of an error's body
_REDIRECTS = 5
_T = TypeVar("_T")

Count = Callable[[int], None]
"""Receives the number of bytes that came, and raises where they are not wanted any more."""


class SilentError(Exception):
    """The server sends nothing, or next to nothing."""


class AnswerError(Exception):
    """The server answers as no Hub does."""


class SizeError(Exception):
    """A file comes in another size than the one stated."""


def read_json(url: str, headers: dict[str, str], timeout: float, most_bytes: int) -> Any:
    """Reads an answer in JSON.

    Args:
        url: address.
        headers: headers of the request.
        timeout: seconds for a connection, and for each read.
        most_bytes: size of the longest answer that is read.

    Raises:
        SilentError: the answer is not whole within `SILENCE` seconds.
        AnswerError: the answer is no JSON, or too long, or nested too deep.
    """

    def read(count: Count) -> bytes:
        with _answer("GET", url, headers, timeout, follow=True) as response:
            _check_status(response, count)
            return _body(response, count, most_bytes)

    body = _within_time(read, patient=False)
    try:
        return parse_json(body)
    except DocumentError:
        raise AnswerError("no JSON") from None


def read_headers(url: str, headers: dict[str, str], timeout: float) -> dict[str, str]:
    """Returns the headers of a file, by their names in lower case.

    A redirection within the server is followed; one to a storage elsewhere holds the headers itself.

    Args:
        url: address.
        headers: headers of the request.
        timeout: seconds for a connection, and for each read.

    Raises:
        SilentError: there is no answer within `SILENCE` seconds.
        AnswerError: the redirections lead nowhere.
    """

    def read(count: Count) -> dict[str, str]:
        place, sent = url, dict(headers)
        for _ in range(_REDIRECTS):
            count(0)
            with _answer("HEAD", place, sent, timeout, follow=False) as response:
                _check_status(response, count)
                found = {str(name).lower(): str(value) for name, value in response.headers.items()}
            if not 300 <= response.status_code < 400 or "location" not in found:
                return found
            found.pop("content-length", None)  # that of the redirection
            try:
                target = urljoin(place, found["location"])
                scheme, host = urlsplit(target)[:2]
            except ValueError:
                break
            if (scheme, host) != urlsplit(place)[:2]:
                if "x-linked-etag" in found or "x-repo-commit" in found:
                    return found
                sent = {name: value for name, value in sent.items() if name.lower() != "authorization"}
            if scheme not in ("http", "https"):
                break
            place = target
        raise AnswerError("redirections that lead nowhere")

    return _within_time(read, patient=False)


def read_file(
    url: str, headers: dict[str, str], timeout: float, file: BinaryIO, size: int, show: Callable[[int], Any]
) -> None:
    """Appends what is missing of a file.

    Args:
        url: address.
        headers: headers of the request.
        timeout: seconds for a connection, and for each read.
        file: begin of the file, at whose end the rest is written; it may be emptied where the server sends all again.
        size: size of the whole file in bytes, beyond which nothing is written.
        show: function called with the number of bytes that came.

    Raises:
        SilentError: in `SILENCE` seconds next to nothing came.
        SizeError: the server sends more, or less.
        AnswerError: the server sends another part of the file.
    """

    def read(count: Count) -> None:
        start = file.tell()
        wanted = headers | ({"Range": f"bytes={start}-"} if start else {})
        with _answer("GET", url, wanted, timeout, follow=True) as response:
            _check_status(response, count)
            if start and response.status_code == 200:
                file.seek(0)
                file.truncate()
                show(-start)
                start = 0
            if start and not str(response.headers.get("Content-Range", "")).startswith(f"bytes {start}-"):
                raise AnswerError("another part of the file")
            for chunk in _chunks(response):
                count(len(chunk))
                start += len(chunk)
                if start > size:
                    raise SizeError(f"more than the {size} bytes stated")
                file.write(chunk)
                show(len(chunk))
        if start != size:
            raise SizeError(f"{start} of the {size} bytes stated")

    _within_time(read, patient=True)


def _within_time(work: Callable[[Count], _T], *, patient: bool) -> _T:
    """Returns the result of `work`, or raises its error; a thread of its own waits for it.

    Args:
        work: function of a `Count`.
        patient: whether `work` may go on for as long as bytes come.

    Raises:
        SilentError: `work` is not done in time.
    """
    received, given_up, done = 0, False, threading.Event()
    results: list[_T] = []
    errors: list[BaseException] = []

    def count(number: int) -> None:
        nonlocal received
        received += number
        if given_up:
            raise SilentError

    def run() -> None:
        try:
            results.append(work(count))
        except BaseException as error:
            errors.append(error)
        finally:
            done.set()

    threading.Thread(target=run, name="unistep-hub", daemon=True).start()
    before = 0
    try:
        while not done.wait(SILENCE):
            if not patient or received - before < _LEAST:
                raise SilentError
            before = received
    finally:
        given_up = True
    if errors:
        raise errors[0]
    return results[0]


@contextmanager
def _answer(method: str, url: str, headers: dict[str, str], timeout: float, *, follow: bool) -> Iterator[Any]:
    """The answer to a request, whose body is still to be read."""
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import get_session

    session: Any = get_session()
    given: dict[str, Any] = {"headers": headers | {"Accept-Encoding": "identity"}, "timeout": timeout}
    if hasattr(session, "build_request"):
        answer = session.stream(method, url, follow_redirects=follow, **given)
    else:  # huggingface_hub before 1.0
        answer = session.request(method, url, allow_redirects=follow, stream=True, **given)
    try:
        with answer as response:
            yield response
    except HfHubHTTPError:  # some are a ValueError
        raise
    except ValueError as error:  # of addresses that a server redirects to
        raise AnswerError(str(error)) from None


def _chunks(response: Any) -> Iterator[bytes]:
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise AnswerError("a compressed body")  # of any size
    return response.iter_raw() if hasattr(response, "iter_raw") else response.iter_content(8192)


def _body(response: Any, count: Count, most_bytes: int) -> bytes:
    body = bytearray()
    for chunk in _chunks(response):
        count(len(chunk))
        body += chunk
        if len(body) > most_bytes:
            raise AnswerError(f"more than {most_bytes} bytes")
    return bytes(body)


def _check_status(response: Any, count: Count) -> None:
    """Raises the library's error for an answer that is one."""
    from huggingface_hub.utils import hf_raise_for_status

    if response.status_code < 400:
        return
    reason: Any = None
    try:
        reason = parse_json(_body(response, count, _REASON))["error"]
    except (AnswerError, DocumentError, LookupError, TypeError):
        pass  # errors of proxies
    # The library takes the body apart, and trusts it.
    response._content = json.dumps({"error": re.sub(r"\s+", " ", reason)} if isinstance(reason, str) else {}).encode()
    response._content_consumed = True
    hf_raise_for_status(response)
