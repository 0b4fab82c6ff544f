"""Stores behind a URI: S3 through boto3, and fsspec file systems that create atomically. See `data.store`.

An object appears when its one PUT is complete, so there are no temporary names, no parts and nothing to rename: an
upload that is cut off leaves nothing. Create-if-absent is a conditional PUT (``If-None-Match: *``). A PUT whose answer
was lost is sent again and then finds its own object: `create` says False although the object is ours, so callers
compare contents, never who was first. Every request is tried up to `_ATTEMPTS` times with growing pauses (throttling,
5xx, broken connections); what fails then names bucket, key and next step.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from dto_pipeline.data.storage import Store, StoreError

_ATTEMPTS = 6  # tries of one request
_CONNECT_S, _READ_S = 10, 60  # patience with a server that does not answer [s]
_PAUSE_S = 0.2  # first pause after a 409 (two conditional requests met) or an answer cut short; doubled each time [s]
_MAX_PUT = 5 << 30  # bytes S3 takes in one PUT
_CONNECTIONS = 40  # of one client; at least as many as threads use it at once
# Schemes whose fsspec file system makes `pipe_file(mode="create")` one atomic request (or lives in one process).
_ATOMIC_SCHEMES = ("memory", "gs", "gcs", "az", "abfs", "abfss")
_MISSING = ("NoSuchKey", "404", "NotFound")
_ADVICE = {
    "NoSuchBucket": "the bucket does not exist; make it, or check its name and endpoint",
    "AccessDenied": "access is denied; the credentials need GetObject, PutObject, DeleteObject and ListBucket there",
    "403": "access is denied; the credentials need GetObject, PutObject, DeleteObject and ListBucket there",
    "InvalidAccessKeyId": "the access key is unknown; check AWS_ACCESS_KEY_ID or the profile",
    "SignatureDoesNotMatch": "the secret key is wrong; check AWS_SECRET_ACCESS_KEY or the profile",
    "ExpiredToken": "the session token has expired; renew the credentials",
    "NotImplemented": "this server knows no conditional PUT; use one that does (AWS S3, MinIO since 2024), or a mount",
}
_NO_CREDENTIALS = "no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or a role"
_UNREACHABLE = "the server does not answer; check endpoint_override, network and proxy"


class S3Store:
    """A prefix of a bucket. The URI's query may hold endpoint_override, scheme and region, as pyarrow spells them."""

    def __init__(self, root: str) -> None:
        """Raises: StoreError where boto3 is not installed or the URI names no bucket."""
        parts = urlsplit(root)
        if not parts.netloc:
            raise StoreError(f"{root} names no bucket; expected s3://BUCKET/FOLDER")
        self.root, self._bucket, self._prefix = root, parts.netloc, unquote(parts.path).strip("/")
        self._client = _make_client(root, {name: values[-1] for name, values in parse_qs(parts.query).items()})

    def prepare(self, folders: Iterable[str]) -> None:
        """Folders need not be made; conditional PUT is tried out, because some servers take it and ignore it."""
        _probe(self, self.root)

    def read(self, name: str, tail: int = 0) -> bytes:
        """An object's bytes, or its last `tail`; raises FileNotFoundError."""
        part = {"Range": f"bytes=-{tail}"} if tail else {}
        return bytes(self._ask(name, lambda key: self._get_whole({**key, **part})))

    def size(self, name: str) -> int:
        """Bytes of an object; raises FileNotFoundError."""
        return int(self._ask(name, lambda key: self._client.head_object(**key))["ContentLength"])

    def entries(self, folder: str = "") -> dict[str, int]:
        """Name -> size of the objects directly below a folder."""
        prefix = "".join(f"{part}/" for part in (self._prefix, folder) if part)
        pages = self._client.get_paginator("list_objects_v2")
        scope = {"Bucket": self._bucket, "Prefix": prefix, "Delimiter": "/"}
        found = self._ask(folder, lambda _: [o for page in pages.paginate(**scope) for o in page.get("Contents", ())])
        return {item["Key"].removeprefix(prefix): int(item["Size"]) for item in found if item["Key"] != prefix}

    def create(self, name: str, data: bytes) -> bool:
        """One conditional PUT."""
        return bool(self._ask(name, lambda key: self._put_new(key, data)))

    def replace(self, name: str, data: bytes) -> None:
        """One PUT."""
        self._ask(name, lambda key: self._client.put_object(**key, Body=data))

    def remove(self, name: str) -> None:
        """Delete an object; it may be gone already."""
        self._ask(name, lambda key: self._client.delete_object(**key))

    def _get_whole(self, request: dict[str, str]) -> bytes:
        """An answer to its last byte: boto3 tries again until it begins, but not where it breaks off."""
        from botocore.exceptions import IncompleteReadError, ReadTimeoutError, ResponseStreamingError

        for attempt in range(_ATTEMPTS):
            body = self._client.get_object(**request)["Body"]  # its own silence has been waited for often enough
            try:
                return body.read()
            except (IncompleteReadError, ReadTimeoutError, ResponseStreamingError):
                if attempt + 1 == _ATTEMPTS:
                    raise
                time.sleep(_PAUSE_S * 2**attempt * (0.5 + random.random()))
        raise AssertionError("the last attempt returns or raises")

    def _put_new(self, key: dict[str, str], data: bytes) -> bool:
        from botocore.exceptions import ClientError

        if len(data) > _MAX_PUT:
            raise StoreError(f"{self.root}: {key['Key']} has {len(data)} bytes, a PUT takes 5 GiB; cut smaller shards")
        for attempt in range(_ATTEMPTS):
            try:
                self._client.put_object(**key, Body=data, IfNoneMatch="*")
                return True
            except ClientError as error:
                status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
                if status == 412:
                    return False
                if status != 409 or attempt + 1 == _ATTEMPTS:
                    raise
                time.sleep(_PAUSE_S * 2**attempt * (0.5 + random.random()))
        raise AssertionError("the last attempt returns or raises")

    def _ask(self, name: str, request: Callable[[dict[str, str]], Any]) -> Any:
        """Do a request for the object `name`; errors become FileNotFoundError or a sentence."""
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

        key = f"{self._prefix}/{name}".strip("/")
        try:
            return request({"Bucket": self._bucket, "Key": key})
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code in _MISSING:
                raise FileNotFoundError(f"s3://{self._bucket}/{key}") from error
            raise self._error(key, _ADVICE.get(code, f"the server says {error}")) from error
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise self._error(key, _NO_CREDENTIALS) from error
        except BotoCoreError as error:
            raise self._error(key, f"{_UNREACHABLE} ({error})") from error

    def _error(self, key: str, what: str) -> StoreError:
        return StoreError(f"bucket {self._bucket}, key {key or '(top)'}: {what}")


class FsspecStore:
    """A folder of a file system that fsspec opens."""

    def __init__(self, root: str) -> None:
        """Raises: StoreError for file systems whose library is not installed."""
        self._scheme = urlsplit(root).scheme
        try:
            from fsspec.core import url_to_fs

            self._files, base = url_to_fs(root, use_listings_cache=False)
        except Exception as error:  # each fsspec library raises types of its own
            raise StoreError(
                f"{root} cannot be opened ({error}); install what {self._scheme}:// needs, or check the URI"
            ) from error
        self.root, self._base = root, base.rstrip("/")

    def prepare(self, folders: Iterable[str]) -> None:
        """Folders need not be made; create-if-absent is tried out, because old libraries ignore it."""
        _probe(self, self.root)

    def read(self, name: str, tail: int = 0) -> bytes:
        """A file's bytes, or its last `tail`; raises FileNotFoundError."""
        start = max(0, self.size(name) - tail) if tail else None
        return bytes(self._ask(name, lambda path: self._files.cat_file(path, start=start)))

    def size(self, name: str) -> int:
        """Bytes of a file; raises FileNotFoundError."""
        return int(self._ask(name, lambda path: self._files.info(path))["size"])

    def entries(self, folder: str = "") -> dict[str, int]:
        """Name -> size of the files directly in a folder; {} where there is no such folder."""
        try:
            found = self._ask(folder, lambda path: self._files.ls(path.rstrip("/"), detail=True))
        except FileNotFoundError:
            return {}
        return {item["name"].rpartition("/")[2]: int(item["size"]) for item in found if item["type"] == "file"}

    def create(self, name: str, data: bytes) -> bool:
        """One exclusive write; raises StoreError for file systems not known to have one."""
        if self._scheme not in _ATOMIC_SCHEMES:
            known = ", ".join(f"{name}://" for name in ("s3", *_ATOMIC_SCHEMES))
            raise StoreError(
                f"{self.root}: a run cannot be written to {self._scheme}://, where creating a file only if absent is "
                f"not known to be atomic; use {known} or a mounted folder"
            )
        try:
            self._ask(name, lambda path: self._files.pipe_file(path, data, mode="create"))
        except FileExistsError:
            return False
        return True

    def replace(self, name: str, data: bytes) -> None:
        """One write."""
        self._ask(name, lambda path: self._files.pipe_file(path, data))

    def remove(self, name: str) -> None:
        """Delete a file; it may be gone already."""
        try:
            self._ask(name, lambda path: self._files.rm_file(path))
        except FileNotFoundError:
            return

    def _ask(self, name: str, request: Callable[[str], Any]) -> Any:
        try:
            return request(f"{self._base}/{name}")
        except (FileNotFoundError, FileExistsError):
            raise
        except Exception as error:  # each fsspec library raises types of its own
            what = f"{type(error).__name__}: {error}; check credentials, bucket and network"
            raise StoreError(f"{self.root}: {name or 'the folder'}: {what}") from error


def _probe(store: Store, root: str) -> None:
    """Create one small object twice: the second time must be refused."""
    name = f".probe.tmp-{uuid.uuid4().hex}"  # a temporary name, so that a killed driver's is swept
    store.create(name, b"")
    try:
        if store.create(name, b""):
            raise StoreError(
                f"{root}: the server overwrites files it was asked to create only if absent (conditional PUT), without "
                "which two writers could harm a run; use a server that knows it, or a mounted folder"
            )
    finally:
        store.remove(name)


def _make_client(root: str, options: dict[str, str]) -> Any:
    try:
        import boto3
        from botocore.config import Config
    except ImportError as error:
        advice = "it is not installed: pip install 'dto-pipeline[s3]'"
        raise StoreError(f"{root}: runs on S3 need boto3, for create-if-absent; {advice}") from error
    endpoint = options.get("endpoint_override")
    settings = Config(
        retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
        connect_timeout=_CONNECT_S,
        read_timeout=_READ_S,
        max_pool_connections=_CONNECTIONS,
        s3={"addressing_style": "path"} if endpoint else None,  # as pyarrow addresses servers that are not Amazon's
    )
    url = f"{options.get('scheme', 'https')}://{endpoint}" if endpoint else None
    # A session of its own: boto3's default one is not safe to share between threads.
    return boto3.session.Session().client("s3", endpoint_url=url, region_name=options.get("region"), config=settings)
