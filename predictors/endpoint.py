"""A model behind a URL: one POST of a PNG image for each query. Query only what its owner has permitted you to query.

The answer is one array, in a file of a type in `SUFFIXES`, as `predictors.answers.read_answer` reads it. Answers are
kept on disk, so an image is never sent twice. Nothing that an endpoint answers is executed, and no redirect is
followed, so an image goes to no other host.
"""

import hashlib
import http.client
import io
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from datasets.inspection import hash_array
from predictors.answers import read_answer
from predictors.arrays import ArrayPredictor
from predictors.base import PredictorOptions, Query
from predictors.preprocess import Preprocess
from utils.cli import UserError
from utils.files import atomic_open, read_json

SUFFIXES = {"image/png": ".png", "application/x-npy": ".npy", "application/octet-stream": ".npy",
            "application/json": ".json"}  # type of an answer -> suffix of its file
LIMIT = 2**28  # largest answer in bytes
AGAIN = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.INTERNAL_SERVER_ERROR, HTTPStatus.BAD_GATEWAY,
         HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT)  # after these, a request is repeated
LONGEST_PAUSE = 60.0  # seconds between two attempts
SENT: Counter[str] = Counter()  # requests of this process, by URL


def _is_number(low: float, high: float, kinds: type | tuple = (int, float)) -> Callable[[object], bool]:
    return lambda value: isinstance(value, kinds) and not isinstance(value, bool) and low <= value <= high


def _is_url(value: object) -> bool:
    """Whether a value is a URL of http or https without a user and a password, which results would show."""
    try:
        url = urlsplit(value)
        return url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0 and "@" not in url.netloc and (
            value.isascii() and value.isprintable() and " " not in value)
    except (ValueError, AttributeError, TypeError):
        return False


def _is_token(value: str) -> bool:
    return bool(value) and value.isascii() and value.isprintable()


# Entry -> whether a value is allowed, and what it must be
ALLOWED: dict[str, tuple[Callable[[object], bool], str]] = {
    "url": (_is_url, "a URL that starts with http:// or https://, without a user and a password"),
    "rate": (_is_number(1e-3, 1e3), "the requests in a second, from 0.001 to 1000"),
    "retries": (_is_number(0, 20, int), "a whole number from 0 to 20"),
    "timeout": (_is_number(0.01, 3600), "seconds, from 0.01 to 3600"),
    "cache": (lambda value: isinstance(value, str) and value, "the path of a folder"),
    "token": (lambda value: isinstance(value, str), "the name of an environment variable"),
}


@dataclass(frozen=True)
class Endpoint:
    """The settings of an endpoint.

    `url`: where images are posted. `rate`: largest number of requests in a second. `retries`: how often a failed
    request is repeated, after pauses of 1, 2, 4, ... seconds, or those that the endpoint asks for. `timeout`: seconds
    for one request. `cache`: folder of the answers. `token`: environment variable whose value is sent as a bearer
    token. Raises `UserError` for any other value.
    """

    url: str
    rate: float = 5.0
    retries: int = 3
    timeout: float = 60.0
    cache: str = "runs/answers"
    token: str = ""

    def __post_init__(self):
        for name, (allowed, form) in ALLOWED.items():
            if not allowed(getattr(self, name)):
                raise UserError(f'"{name}" of the endpoint {str(self.url)[:100]!r} must be {form}')
        if self.token and not _is_token(os.environ.get(self.token, "")):
            raise UserError(f"the environment has no variable {self.token[:40]} with a token for {self.url}; set it")


def read_endpoint(path: str) -> Endpoint:
    """The settings in a JSON file. Raises `UserError` for unknown names and wrong values."""
    content, names = read_json(path), [field.name for field in fields(Endpoint)]
    if not isinstance(content, dict) or "url" not in content:
        raise UserError(f'{path} must hold one JSON object, such as {{"url": "http://127.0.0.1:8000/predict"}}')
    if unknown := [name for name in content if name not in names]:
        raise UserError(f"{path}: there is no entry {unknown[0][:40]!r}; there are {', '.join(names)}")
    return Endpoint(**content)


class HTTP(ArrayPredictor):
    """A model at http:URL, or with the settings of http:FILE.json."""

    prepares = False
    takes = frozenset({"preprocess", "query_budget"})
    scheme = "http"

    def __init__(self, where: str, options: PredictorOptions):
        self.endpoint = Endpoint(f"{self.scheme}:{where}") if where.startswith("//") else read_endpoint(where)
        super().__init__(self.endpoint.url, options)
        self.folder = Path(self.endpoint.cache) / hashlib.sha256(self.endpoint.url.encode()).hexdigest()[:16]
        self.free_at = 0.0

    def fetch(self, query: Query, preprocess: Preprocess) -> np.ndarray:
        name = hash_array(query.image)
        kept = (self.folder / f"{name}{suffix}" for suffix in SUFFIXES.values())
        if path := next((path for path in kept if path.is_file()), None):
            return read_answer(path)
        kind, content = self._post(query)
        path = self.folder / f"{name}{SUFFIXES[kind]}"
        with atomic_open(path) as file:
            file.write(content)
        try:
            return read_answer(path)
        except UserError as error:
            path.unlink()
            raise UserError(f"{self.where} answers what cannot be used: {error}") from None

    def _post(self, query: Query) -> tuple[str, bytes]:
        """Type and content of the answer for an image. Repeats a request that failed."""
        body, pause = io.BytesIO(), 1.0
        Image.fromarray(query.image).save(body, "PNG")
        for attempt in range(self.endpoint.retries + 1):
            self._wait_for_turn()
            try:
                status, headers, content = send(self.endpoint, body.getvalue())
            except (OSError, http.client.HTTPException) as error:
                failure, asked = " ".join(f"{type(error).__name__} {error}".split()), ""
            else:
                if status == HTTPStatus.OK:
                    return self._type_of(headers), content
                if headers["Location"] and 300 <= status < 400:
                    target = " ".join(headers["Location"].split())[:200]
                    raise UserError(f"{self.where} redirects to {target}, which is not followed; if "
                                    "its owner permits queries there, give that URL")
                if status not in AGAIN:
                    raise UserError(f"{self.where} answers with status {status} for {query.record.name}; check the "
                                    "URL, and whether it takes a POST of a PNG image")
                failure, asked = f"status {status}", headers["Retry-After"] or ""
            if attempt < self.endpoint.retries:
                time.sleep(min(float(asked) if asked.isdecimal() else pause, LONGEST_PAUSE))
                pause *= 2
        raise UserError(f"{self.where} failed for {query.record.name} in {attempt + 1} attempts: {failure[:200]}; the "
                        f"answers so far are in {self.folder}, and the same command continues")

    def _wait_for_turn(self) -> None:
        """Wait as the rate demands, and count the request. Raises `UserError` if the budget is used up.

        An audit opens a model several times; the requests of a process to one URL count together.
        """
        budget = self.options.access.query_budget
        if budget is not None and SENT[self.endpoint.url] >= budget:
            raise UserError(f"--query-budget {budget} is used up; the answers so far are in {self.folder}, so the same "
                            "command continues with as many requests again")
        time.sleep(max(0.0, self.free_at - time.monotonic()))
        self.free_at = time.monotonic() + 1 / self.endpoint.rate
        SENT[self.endpoint.url] += 1

    def _type_of(self, headers: http.client.HTTPMessage) -> str:
        kind, coding = headers.get_content_type(), headers.get("Content-Encoding", "identity")
        if kind not in SUFFIXES or coding != "identity":
            raise UserError(f"{self.where} answers with the type {kind[:100]}, coded as {coding[:20]}; it must be one "
                            f"of {', '.join(SUFFIXES)}, and not be compressed")
        return kind


class HTTPS(HTTP):
    """A model at https:URL."""

    scheme = "https"


def send(endpoint: Endpoint, body: bytes) -> tuple[int, http.client.HTTPMessage, bytes]:
    """Send one request, and return status, headers and content of the answer.

    Raises `OSError` or `HTTPException` if no complete answer arrives within the timeout, and `UserError` for an answer
    that is larger than `LIMIT`.
    """
    url = urlsplit(endpoint.url)
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    connection, cut = kind(url.hostname, url.port, timeout=endpoint.timeout), threading.Event()
    headers = {"Content-Type": "image/png", "Accept": ", ".join(SUFFIXES), "Accept-Encoding": "identity"}
    if endpoint.token:
        headers["Authorization"] = f"Bearer {os.environ[endpoint.token]}"
    connection.connect()
    timer = threading.Timer(endpoint.timeout, _cut, [connection.sock, cut])  # ends an answer of many small parts
    timer.start()
    try:
        connection.request("POST", f"{url.path or '/'}{url.query and '?'}{url.query}", body, headers)
        with connection.getresponse() as answer:
            large = (answer.length or 0) > LIMIT
            content = b"" if large else answer.read(LIMIT + 1)
            if cut.is_set():
                raise TimeoutError
            if large or len(content) > LIMIT:
                raise UserError(f"{endpoint.url} answers with more than {LIMIT / 2**20:g} MiB")
            if answer.length:
                raise http.client.IncompleteRead(content, answer.length)
            return answer.status, answer.headers, content
    except (OSError, http.client.HTTPException) as error:
        if cut.is_set() or isinstance(error, TimeoutError):
            raise TimeoutError(f"no complete answer within {endpoint.timeout:g} seconds") from None
        raise
    finally:
        timer.cancel()
        connection.close()


def _cut(connection: socket.socket, cut: threading.Event) -> None:
    """End a connection from another thread, which then reads no more."""
    cut.set()
    with suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)  # that of TLS would change what another thread reads
