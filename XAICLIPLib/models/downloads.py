"""Downloading a file whose checksum is known, and continuing where an earlier attempt was cut off.

What came so far lies in a ``.part`` file beside the target. The server is asked for the rest (RFC 9110, section 14)
as long as it still has the same file; where it has another, or gives no parts, the download starts over. pooch
compares the checksum and moves the file into place: the target is either complete and right, or absent.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from XAICLIPLib.errors import Cancelled, InputError

if TYPE_CHECKING:
    import requests

CONNECT_S, READ_S = 15.0, 60.0
"""Seconds without an answer, and without a byte, after which a server counts as gone."""

FRUITLESS = 3
"""Attempts in a row that bring no new byte, after which a download is given up."""

BLOCK = 1 << 14
"""Bytes read at a time. urllib3 hands over whole blocks only: an unfinished one is lost with the connection."""


@dataclass(frozen=True)
class FileDownload:
    """A file to be downloaded.

    Attributes
    ----------
    url, sha256
        Where it is, and the checksum of what it must be.
    target
        The file that it becomes.
    most_bytes
        More than this is refused.
    way_out
        The end of each message: how to get the file where it cannot be downloaded.
    """

    url: str
    sha256: str
    target: Path
    most_bytes: int
    way_out: str

    @property
    def part(self) -> Path:
        """The file with the bytes that came so far."""
        return self.target.with_name(f"{self.target.name}.part")

    @property
    def version_file(self) -> Path:
        """The file with the server's version tag of the download that ``part`` belongs to."""
        return self.target.with_name(f"{self.target.name}.part-version")

    def discard_part(self) -> None:
        """Delete what came so far."""
        self.part.unlink(missing_ok=True)
        self.version_file.unlink(missing_ok=True)

    def failure(self, reason: str) -> InputError:
        """The error that says why the file cannot be downloaded, and what to do instead."""
        return InputError(f"{self.url} cannot be downloaded ({reason}): {self.way_out}.")


def fetch(
    download: FileDownload,
    on_progress: Callable[[int, int | None], None] = lambda done, total: None,
    cancelled: Callable[[], bool] = lambda: False,
    timeouts_s: tuple[float, float] = (CONNECT_S, READ_S),
) -> Path:
    """Download a file, unless the target exists already and is right.

    Parameters
    ----------
    download
        The file and its target.
    on_progress
        Called with the bytes downloaded so far and the size of the file; None where the server does not say.
    cancelled
        Asked at each block whether to stop; what came so far is kept.
    timeouts_s
        Seconds to wait for a connection, and for the next byte.

    Returns
    -------
    Path
        The target.

    Raises
    ------
    InputError
        The file cannot be downloaded, is larger than declared, has another checksum, or the disk is full.
    Cancelled
        ``cancelled`` said so.
    """
    import pooch
    from requests.exceptions import RequestException

    pooch.get_logger().setLevel(logging.WARNING)
    downloader = _ResumingDownloader(download, on_progress, cancelled, timeouts_s)
    try:
        pooch.retrieve(
            download.url,
            f"sha256:{download.sha256}",
            fname=download.target.name,
            path=download.target.parent,
            downloader=downloader,
        )
    except (InputError, Cancelled):
        raise
    except RequestException as error:
        raise download.failure(_reason(error)) from error
    except OSError as error:
        raise download.failure(f"{error.filename or download.target}: {error.strerror or error}") from error
    except ValueError as error:  # pooch found another checksum, and deleted the file
        download.discard_part()
        raise download.failure("what came is not the file that was meant, its SHA-256 differs") from error
    download.discard_part()
    return download.target


class _ResumingDownloader:
    """A downloader for pooch that continues the part of an earlier attempt."""

    def __init__(
        self,
        download: FileDownload,
        on_progress: Callable[[int, int | None], None],
        cancelled: Callable[[], bool],
        timeouts_s: tuple[float, float],
    ) -> None:
        self._download, self._on_progress, self._cancelled = download, on_progress, cancelled
        self._timeouts_s = timeouts_s

    def __call__(self, url: str, output_file: str, _: Any = None, check_only: bool = False) -> None:
        """Download into the part, and move it to ``output_file`` when it is complete."""
        import requests

        fruitless = 0
        with requests.Session() as session:
            while True:
                before = self._part_size()
                try:
                    self._attempt(session)
                    break
                except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
                    if isinstance(error, (requests.exceptions.SSLError, requests.exceptions.ProxyError)):
                        raise
                    fruitless = fruitless + 1 if self._part_size() <= before else 0
                    if fruitless >= FRUITLESS or (isinstance(error, requests.Timeout) and not self._part_size()):
                        raise
                    time.sleep(0.2 * fruitless)
        shutil.move(self._download.part, output_file)

    def _part_size(self) -> int:
        try:
            return self._download.part.stat().st_size
        except OSError:
            return 0

    def _attempt(self, session: requests.Session) -> None:
        """Ask for the missing bytes and append them to the part; returns when the file is complete."""
        known_version = self._part_version()
        received = self._part_size()
        headers = {"Accept-Encoding": "identity"}
        if received:
            headers |= {"Range": f"bytes={received}-"} | ({"If-Range": known_version} if known_version else {})
        with session.get(self._download.url, headers=headers, stream=True, timeout=self._timeouts_s) as response:
            version = _version(response)
            if response.status_code == 416 and received:
                if response.headers.get("Content-Range") == f"bytes */{received}":
                    return  # all of it had come before it was cut off
                self._download.discard_part()
                return self._attempt(session)
            if response.status_code not in (200, 206):
                raise self._download.failure(f"the server answers {response.status_code} {response.reason}".rstrip())
            if response.status_code == 206:
                start, total = _content_range(response)
                if start != received or version != known_version:
                    self._download.discard_part()
                    if received:
                        return self._attempt(session)
                    raise self._download.failure("the server gives another part than it was asked for")
            else:
                received, total = 0, _length(response)
            self._check_size(total, received)
            self._download.version_file.write_text(
                json.dumps({"url": self._download.url, "version": version}), encoding="utf-8"
            )
            self._write(response, received, total)
        return None

    def _write(self, response: requests.Response, received: int, total: int | None) -> None:
        import requests

        with self._download.part.open("ab" if received else "wb") as stream:
            self._on_progress(received, total)
            for block in response.iter_content(BLOCK):
                if self._cancelled():
                    raise Cancelled(f"Cancelled while {self._download.url} was downloaded; the next attempt goes on.")
                received += len(block)
                self._check_size(None, received)
                stream.write(block)
                stream.flush()  # so that what came is not lost with the connection
                self._on_progress(received, total)
        if total is not None and received < total:
            raise requests.ConnectionError("the connection broke")

    def _check_size(self, total: int | None, received: int) -> None:
        most = self._download.most_bytes
        if max(total or 0, received) > most:
            self._download.discard_part()
            raise self._download.failure(f"the server sends more than the {_mb(most)} that the catalogue declares")
        free = shutil.disk_usage(self._download.target.parent).free
        if total and total - received > free:
            raise self._download.failure(
                f"the disk of {self._download.target.parent} has {_mb(free)} left "
                f"and {_mb(total - received)} are to come"
            )

    def _part_version(self) -> str:
        """The server's version tag of the part; empty where it gave none."""
        with suppress(OSError, ValueError, AttributeError):
            note = json.loads(self._download.version_file.read_text(encoding="utf-8"))
            if note.get("url") == self._download.url:
                return str(note.get("version", ""))
        self._download.part.unlink(missing_ok=True)  # of another file
        return ""


def _version(response: requests.Response) -> str:
    """The version tag of a file, as If-Range takes it: a strong ETag, else the date of the last change."""
    tag = str(response.headers.get("ETag", ""))
    return tag if tag.startswith('"') else str(response.headers.get("Last-Modified", ""))


def _content_range(response: requests.Response) -> tuple[int | None, int | None]:
    """First byte of a part, and size of the whole file in bytes; None where the server does not say."""
    header = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if not header:
        return None, None
    return int(header[1]), None if header[2] == "*" else int(header[2])


def _length(response: requests.Response) -> int | None:
    header = response.headers.get("Content-Length", "")
    plain = response.headers.get("Content-Encoding", "identity") == "identity"
    return int(header) if header.isdecimal() and plain else None


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _reason(error: BaseException) -> str:
    """What went wrong with the connection, in words."""
    from requests import exceptions

    message = str(error)
    if isinstance(error, exceptions.SSLError):
        return "its certificate is not trusted here: the address is wrong, or a proxy's certificate is missing"
    if isinstance(error, exceptions.ProxyError):
        return "the proxy does not answer; see the variables https_proxy and no_proxy"
    if isinstance(error, exceptions.Timeout) or "timed out" in message.lower():
        return "the server does not answer in time"
    if isinstance(error, exceptions.TooManyRedirects):
        return "the server sends from one address to another without end"
    if any(word in message for word in ("NameResolution", "getaddrinfo", "Name or service", "unreachable", "refused")):
        return "there is no connection to the server"
    if isinstance(error, (exceptions.ConnectionError, exceptions.ChunkedEncodingError)):
        return "the connection broke"
    return message.splitlines()[0][:200] if message else type(error).__name__
