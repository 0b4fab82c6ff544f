"""Files behind URIs, through obstore: S3, Google, Azure, http(s) and this process's own memory; see `data.storage`.

An object appears when its PUT is complete, so there are no temporary names and no renames, and an upload that is cut
off leaves nothing. Create-if-absent is a conditional PUT (``If-None-Match: *``). A PUT whose answer was lost is sent
again and then finds its own object: `create` returns False although this call made it. Callers compare contents.
"""

from __future__ import annotations

import io
import os
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import timedelta
from functools import cache, lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow as pa

from dto_pipeline.data.files import temporary_name
from dto_pipeline.errors import DtoError

_ATTEMPTS = 6  # of one request
_PAUSE_S = 0.2  # first pause between them; doubled each time [s]
_TIMEOUTS = {"connect_timeout": "10s", "read_timeout": "60s", "timeout": "1h"}
_AHEAD = 1 << 18  # at least so much is read at once; columns of a Parquet file may have some kB only [bytes]
_GIVEN_UP = timedelta(minutes=5)  # after which a request is not sent again
_ATOMIC_SCHEMES = ("s3", "gs", "az", "abfs", "abfss", "memory")  # that know create-if-absent
_SCHEMES = (*_ATOMIC_SCHEMES, "http", "https")
_KEYS = (  # variables that give credentials without a profile
    *("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"),
    "AWS_SKIP_SIGNATURE",
)
_NO_CREDENTIALS = (
    "no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, for those of a profile by "
    'eval "$(aws configure export-credentials --profile NAME --format env)"'
)
_ADVICE = {  # pattern in the text of an error -> what to do; the first that matches counts
    "NoSuchBucket": "the bucket does not exist; make it, or check its name and endpoint",
    "InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken": "the credentials are wrong or expired; set new ones",
    "PermanentRedirect|AuthorizationHeaderMalformed": "the bucket is in another region; set AWS_REGION",
    "Range request not supported": "this server sends no parts of files; fetch them, or serve them by one that does",
    "NotImplemented": "this server knows no conditional PUT; use one that does (AWS S3, MinIO since 2024), or a mount",
    r"169\.254|code: 401": _NO_CREDENTIALS,
    "code: 403": "access is denied; the credentials need GetObject, PutObject, DeleteObject and ListBucket there",
    "response body error": "the server's answers break off; check network and proxy",
    "HTTP error": "the server does not answer; check endpoint_override, network and proxy",
}
_runtime: list[int] = []  # the process in which obstore started its threads, which a fork does not copy


class StorageError(DtoError, OSError):
    """A URI that cannot be used."""


class StoreError(StorageError):
    """A folder that cannot be used as a store, or a request that failed; names place, key and next step."""

    reason = "the store failed"  # what went wrong and the next step, without the place


class RemoteStore:
    """A folder behind a URI. The query of an s3:// one may hold endpoint_override, scheme and region."""

    def __init__(self, root: str) -> None:
        """Raises: StoreError: the URI names no bucket, or cannot be opened."""
        parts = urlsplit(root)
        if not parts.netloc and parts.scheme != "memory":
            raise StoreError(f"{root} names no bucket; expected for example s3://BUCKET/FOLDER")
        self.root, self._bucket, self._scheme = root, parts.netloc, parts.scheme
        inside = parts.scheme == "memory"  # one store holds all buckets
        self._base = unquote(f"{parts.netloc}/{parts.path}" if inside else parts.path).replace("//", "/").strip("/")
        self._client = _open_client(parts.scheme, "" if inside else parts.netloc, parts.query)

    def prepare(self, folders: Iterable[str]) -> None:
        """Try out conditional PUT, which some servers accept and ignore; folders need not be made."""
        name = temporary_name("probe")  # a killed driver's is removed later, that of a living one is not
        self.create(name, b"")
        try:
            if self.create(name, b""):
                raise StoreError(
                    f"{self.root}: the server overwrites files it was asked to create only if absent (conditional PUT),"
                    " without which two writers could harm a run; use a server that knows it, or a mounted folder"
                )
        finally:
            self.remove(name)

    def read(self, name: str, limit: int | None = None) -> bytes:
        """An object's bytes, or the first `limit` of them; raises FileNotFoundError."""
        if limit is None:
            return self._ask(name, lambda key: bytes(self._client.get(key).bytes()))
        try:
            return self.read_part(name, 0, limit)
        except StoreError:  # an empty object has no part to send
            if self.size(name):
                raise
            return b""

    def read_part(self, name: str, start: int, count: int) -> bytes:
        """The `count` bytes from `start`, fewer where the object ends; raises FileNotFoundError."""
        part: Any = {"range": (start, start + count)}
        return self._ask(name, lambda key: bytes(self._client.get(key, options=part).bytes())) if count else b""

    def open(self, name: str) -> pa.NativeFile:
        """An object for reading at any place; raises FileNotFoundError."""
        return pa.PythonFile(io.BufferedReader(_RemoteFile(self, name, self.size(name)), _AHEAD), mode="r")

    def size(self, name: str) -> int:
        """Bytes of an object; raises FileNotFoundError."""
        return self.version_of(name)[0]

    def version_of(self, name: str) -> tuple[int, object]:
        """Size and time of change of an object; raises FileNotFoundError."""
        found = self._ask(name, lambda key: self._client.head(key))
        return found["size"], found["last_modified"]

    def entries(self, folder: str = "") -> dict[str, int]:
        """Name -> size of the objects directly below a folder."""
        self._check_scheme()
        found = self._ask(folder, lambda key: self._client.list_with_delimiter(key or None)["objects"])
        return {item["path"].rpartition("/")[2]: item["size"] for item in found}

    def walk(self, endings: tuple[str, ...] = ("",)) -> Iterator[str]:
        """Every object below the folder with one of the endings (in any case), in no particular order.

        Raises: FileNotFoundError: there is none, whatever its name.
        """
        self._check_scheme()
        pages: Iterator[Any] | None = None
        last: str | None = None

        def next_page(key: str) -> Any:
            nonlocal pages
            going, pages = pages or iter(self._client.list(key or None, offset=last)), None
            page = next(going, None)
            pages = going  # not after an error: then the listing begins anew behind the last page
            return page

        while page := self._ask("", next_page):
            last = page[-1]["path"]
            names = (item["path"].removeprefix(self._base).lstrip("/") for item in page)
            yield from (name for name in names if name.lower().endswith(endings))
        if last is None:
            raise FileNotFoundError(f"nothing lies below {self.root}")

    def create(self, name: str, data: bytes) -> bool:
        """One conditional PUT of at most 5 GiB; raises StoreError where the server knows none."""
        from obstore.exceptions import AlreadyExistsError

        self._check_scheme()
        for attempt in range(_ATTEMPTS):
            try:
                self._ask(name, lambda key: self._client.put(key, data, mode="create"))
                return True
            except AlreadyExistsError:
                if self.exists(name):
                    return False
            time.sleep(_PAUSE_S * 2**attempt * (0.5 + random.random()))  # 409: two conditional requests met
        raise self._error(name, f"{_ATTEMPTS} conditional requests met others, and there is no such object; try again")

    def replace(self, name: str, data: bytes | Path) -> None:
        """Write bytes or a local file, large ones in parts; the object appears when it is complete."""
        self._ask(name, lambda key: self._client.put(key, data))

    def download(self, name: str, target: Path) -> None:
        """Save an object to a file, piece by piece: it may have GBs. Raises: FileNotFoundError, and makes no file."""

        def save(key: str) -> None:
            pieces = self._client.get(key).stream()
            with target.open("wb") as sink:
                sink.writelines(pieces)

        self._ask(name, save)

    def remove(self, name: str) -> None:
        """Delete an object; it may be gone already."""
        with suppress(FileNotFoundError):
            self._ask(name, lambda key: self._client.delete(key))

    def exists(self, name: str) -> bool:
        """Whether there is an object of this name."""
        try:
            return self.size(name) >= 0
        except FileNotFoundError:
            return False

    def _check_scheme(self) -> None:
        if self._scheme not in _ATOMIC_SCHEMES:
            known = ", ".join(f"{scheme}://" for scheme in _ATOMIC_SCHEMES)
            raise StoreError(f"{self.root}: files there can be read, not listed or created; use {known} or a mount")

    def _ask(self, name: str, request: Callable[[str], Any], attempt: int = 0) -> Any:
        """Do a request for the object `name`; errors become FileNotFoundError or a sentence.

        obstore tries again by itself, except where the answer to a listing breaks off.
        """
        from obstore.exceptions import AlreadyExistsError, BaseError

        _check_process(self._scheme)
        key = f"{self._base}/{name}".strip("/")
        try:
            return request(key)
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                raise self._error(key, _ADVICE["NoSuchBucket"]) from error
            raise FileNotFoundError(f"{self._scheme}://{self._bucket}/{key}") from error
        except AlreadyExistsError:
            raise
        except (BaseError, ValueError) as error:  # ValueError: a name that no store takes
            if "getting list response body" not in str(error) or attempt == _ATTEMPTS - 1:
                raise self._error(key, _advice(str(error))) from error
        time.sleep(_PAUSE_S * 2**attempt * (0.5 + random.random()))
        return self._ask(name, request, attempt + 1)

    def _error(self, key: str, what: str) -> StoreError:
        error = StoreError(f"bucket {self._bucket}, key {key or '(top)'}: {what}")
        error.reason = what
        return error


class _RemoteFile(io.RawIOBase):
    """An object as a file for reading; every call of `readinto` is a request."""

    def __init__(self, store: RemoteStore, name: str, size: int) -> None:
        self._store, self._name, self._size, self._at = store, name, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = self._store.read_part(self._name, self._at, max(0, min(len(buffer), self._size - self._at)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


@lru_cache(maxsize=64)  # one a folder, not one a request
def open_remote(root: str) -> RemoteStore:
    """The store at a URI; raises StoreError as `RemoteStore`."""
    return RemoteStore(root)


@lru_cache(maxsize=64)
def _open_client(scheme: str, bucket: str, query: str) -> Any:
    """A client of obstore. It reads keys and endpoint from the environment, else it asks for the role of the node."""
    from obstore import store as stores
    from obstore.exceptions import BaseError

    if scheme == "memory":
        return _open_memory()
    options = {name: values[-1] for name, values in parse_qs(query).items()}
    unknown = sorted(set(options) - ({"endpoint_override", "scheme", "region"} if scheme == "s3" else set()))
    if unknown or scheme not in _SCHEMES:
        what = f"its query holds {unknown}" if unknown else "this scheme is not known"
        known = ", ".join(f"{name}://" for name in _SCHEMES)
        raise StoreError(f"{scheme}://{bucket} cannot be opened: {what}; expected {known} or a path")
    config: dict[str, Any] = {"disable_bulk_delete": True} if scheme == "s3" else {}
    if "endpoint_override" in options:
        config["endpoint"] = f"{options.get('scheme', 'https')}://{options['endpoint_override']}"
    if "region" in options:
        config["region"] = options["region"]
    if scheme == "s3" and "AWS_PROFILE" in os.environ and not any(name in os.environ for name in _KEYS):
        raise StoreError(f"AWS_PROFILE is not read: {_NO_CREDENTIALS}")
    opened: Any = stores.from_url  # typed by the options of each store
    try:
        return opened(
            f"{scheme}://{bucket}",
            config=config or None,
            client_options={**_TIMEOUTS, "allow_http": scheme in ("s3", "http")},
            retry_config={"max_retries": _ATTEMPTS - 1, "retry_timeout": _GIVEN_UP},
        )
    except (BaseError, ValueError) as error:
        what = str(error).splitlines()[0]
        raise StoreError(f"{scheme}://{bucket} cannot be opened: {what}; check the URI and the environment") from error


@cache  # one a process: a second one would hold other objects
def _open_memory() -> Any:
    from obstore.store import MemoryStore

    return MemoryStore()


def _check_process(scheme: str) -> None:
    """Refuse requests in a process forked after obstore started its threads: they would wait for ever."""
    if not _runtime:
        _runtime.append(os.getpid())
    if _runtime[0] != os.getpid() and scheme != "memory":
        raise StoreError(
            "this process was forked from one that had used an object store, which does not work after a fork; start "
            "it with the multiprocessing context 'forkserver' or 'spawn'"
        )


def _advice(text: str) -> str:
    text = text.removeprefix("Generic HTTP error: ")
    code, status = re.search(r"<Code>(\w+)</Code>", text), re.search(r"status code (\d+)", text)
    first = text.partition("\n")[0] or "nothing"
    found = f"{text} code: {status[1]}" if status else text
    says = f"{code[1]} ({first})" if code else first
    return next((advice for sign, advice in _ADVICE.items() if re.search(sign, found)), f"the server says {says}")
