"""Requests to one bucket: settings from the AWS variables, repeated attempts, errors in one line.

Every request of ours may be sent twice: reading changes nothing, and an object is written with the
same bytes again. So all of them are repeated alike, by one loop. obstore's own retries are off: it
never repeats a create-only write whose connection was reset, whatever it is told.

A server's error text can hold the access key and the string that was signed. Only its code is ever
shown, and no error of obstore's is chained to ours.
"""

import os
import random
import re
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

from actcache.errors import ActcacheError, BucketError, refuse

if TYPE_CHECKING:
    from obstore.store import S3Store

PATIENCE_S = 60.0
"""Seconds for which a request is repeated while the endpoint does not answer or has no time."""

FIRST_PATIENCE_S = 5.0
"""The same for an endpoint that never answered yet: its address may be wrong."""

LONGEST_PAUSE_S = 2.0
"""Seconds between two attempts, at most."""

LONGEST_REQUEST_S = 60.0
"""Seconds that one attempt may take: 64 MB at 1 MB/s."""

AWS_REGION = "us-east-1"
"""The region where none is named, as AWS's own tools have it."""

T = TypeVar("T")

_ANOTHER_TRY = {  # codes of answers that a later attempt may not meet, besides those of status 5xx
    *("ConditionalRequestConflict", "OperationAborted"),  # two writers of one name at one time
    *("RequestTimeout", "RequestTimeoutException", "SlowDown", "TooManyRequests", "Throttling"),
}

NO_KEYS = "NoKeys"
"""Our own code: no keys are set, and the machine has none either."""

_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")

_REMEDIES = {
    "NoSuchBucket": (
        "there is no bucket '{bucket}' at {endpoint}",
        "one that exists",
        "Create it, or correct its name or AWS_ENDPOINT_URL",
    ),
    "InvalidBucketName": (
        "'{bucket}' is no name that {endpoint} takes for a bucket",
        "the name of a bucket",
        "Correct it",
    ),
    "InvalidAccessKeyId": (
        "{endpoint} does not know the access key",
        "one of its own",
        "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY to keys of that endpoint",
    ),
    "SignatureDoesNotMatch": (
        "{endpoint} refuses the signature",
        "the secret that belongs to the access key",
        "Correct AWS_SECRET_ACCESS_KEY",
    ),
    "AccessDenied": (
        "{endpoint} does not allow these keys to {verb} there",
        "keys that may",
        "Ask for that right, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY to other keys",
    ),
    "ExpiredToken": (
        "the keys have expired",
        "keys that are valid",
        "Get new ones, set the AWS variables, then continue",
    ),
    "RequestTimeTooSkewed": (
        "the clocks of this machine and of {endpoint} differ too much",
        "the same time",
        "Set this machine's clock",
    ),
    NO_KEYS: (
        "no keys are set, and this machine has no role of its own",
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        "Set them",
    ),
    "PermanentRedirect": (
        "the bucket is in another region than {region}",
        "its own region",
        "Set AWS_REGION",
    ),
}
"""By code: what was found, what was expected and what to do."""
_REMEDIES |= {
    "InvalidToken": _REMEDIES["ExpiredToken"],
    "TokenRefreshRequired": _REMEDIES["ExpiredToken"],
    "AuthorizationHeaderMalformed": _REMEDIES["PermanentRedirect"],
    "AccountProblem": _REMEDIES["AccessDenied"],
    "AllAccessDisabled": _REMEDIES["AccessDenied"],
    "InvalidSecurity": _REMEDIES["AccessDenied"],
}


class _Answer(NamedTuple):
    """What an endpoint said instead of what was asked for."""

    status: int | None
    """HTTP status; None if nothing came back, 200 if what came back is no answer of S3's."""

    code: str
    """Its word for it, such as NoSuchBucket; empty where it said none."""

    @property
    def is_transient(self) -> bool:
        """Whether the same request may succeed later."""
        if self.status is None or self.code in _ANOTHER_TRY:
            return True
        return self.status >= 500 or self.status in (408, 429)


class S3Client:
    """A bucket's endpoint, with keys from the environment of the process that uses it.

    Pickled, it carries endpoint and region but no keys: a process that receives it takes them from
    its own variables.

    Args:
        bucket: name of the bucket.
        patience: seconds for which a request is repeated.
        environment: where the AWS variables stand.

    Raises:
        ActcacheError: obstore is not installed, or a variable is of no use.
    """

    _first_process: ClassVar[int | None] = None
    """The process in which obstore began; a fork of it would wait for threads that it lacks."""

    def __init__(self, bucket: str, *, patience: float, environment: Mapping[str, str]):
        self.bucket = bucket
        self.patience = patience
        self.endpoint = next(
            (
                environment[name].rstrip("/")
                for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
                if environment.get(name)
            ),
            "",
        )
        self.region = next(
            (environment[n] for n in ("AWS_REGION", "AWS_DEFAULT_REGION") if environment.get(n)),
            AWS_REGION,
        )
        if self.endpoint and not re.fullmatch(r"https?://[A-Za-z0-9._:\[\]-]+", self.endpoint):
            raise ActcacheError(  # not shown: an address can hold a password
                "AWS_ENDPOINT_URL is no address of an endpoint, expected https://HOST or "
                "http://HOST:PORT and nothing else. Correct it."
            )
        self._answered = False
        self._connect(environment)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_first", "_store", "_process")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._connect(os.environ)

    def _connect(self, environment: Mapping[str, str]) -> None:
        """Make the client; nothing is sent yet."""
        keys = {name: environment.get(name, "") for name in _KEYS}
        for name, other in (_KEYS[:2], _KEYS[1::-1]):
            if keys[name] and not keys[other]:
                raise ActcacheError(f"{name} is set and {other} is not, expected both. Set both.")
        config: dict[str, Any] = {
            "region": self.region,
            "conditional_put": "etag",
            **({"endpoint": self.endpoint} if self.endpoint else {}),
            **{n.removeprefix("AWS_").lower(): value for n, value in keys.items() if value},
        }
        self._process = os.getpid()
        if S3Client._first_process not in (None, self._process):
            raise self._forked(f"s3://{self.bucket}")
        S3Client._first_process = self._process
        try:
            from obstore.store import S3Store
        except ImportError:
            raise ActcacheError(
                f"'s3://{self.bucket}' needs obstore, which is not installed. Install it: "
                "pip install 'actcache[s3]'."
            ) from None
        self._first, self._store = (
            S3Store(
                self.bucket,
                config=config,  # type: ignore[arg-type]  # a TypedDict of the same keys
                client_options={
                    "allow_http": self.endpoint.startswith("http://"),
                    "timeout": timedelta(seconds=longest),
                },
                retry_config={"max_retries": 0},
            )
            for longest in (FIRST_PATIENCE_S, LONGEST_REQUEST_S)
        )

    def ask(
        self, where: str, verb: str, request: "Callable[[S3Store, int], T]", *, folder: str
    ) -> T:
        """Send a request until it is answered; return what it returns.

        Args:
            where: address of the object or folder, for messages.
            verb: what is done with it, as one says it: "read", "write", "list", "remove".
            request: takes obstore's store and the number of attempts before this one.
            folder: key of the folder that these keys may list. It is listed before anything else
                is sent: the answer to that always says what is wrong, other answers do not.

        Raises:
            DamageError: there is no such object.
            BucketError: the endpoint refuses, or did not answer for as long as we are patient.
        """
        if self._process != os.getpid():
            raise self._forked(where)
        if not self._answered:
            patience = min(self.patience, FIRST_PATIENCE_S)
            root = f"s3://{self.bucket}/{folder}"
            self._repeat(root, "list", lambda _: next(self._first.list(folder), None), patience)
            self._answered = True
        return self._repeat(where, verb, partial(request, self._store), self.patience)

    def _forked(self, where: str) -> ActcacheError:
        return ActcacheError(
            f"'{where}' is asked for in a fork of a process that read a bucket before, expected a "
            "process of its own: obstore's threads are not in the fork. Start it with spawn, in "
            "torch: DataLoader(…, multiprocessing_context='spawn')."
        )

    def _repeat(self, where: str, verb: str, request: Callable[[int], T], patience: float) -> T:
        from obstore.exceptions import BaseError

        start, attempt = time.monotonic(), 0
        while True:
            try:
                return request(attempt)
            except (BaseError, FileNotFoundError) as error:
                answer = _read_answer(str(error))
            # Outside of the except block: nothing of the server's text hangs on what is raised.
            if verb == "read" and answer.status == 404 and answer.code in ("", "NoSuchKey"):
                refuse(where, "nothing", "a file")
            if not answer.is_transient:
                raise self._error(where, verb, answer)
            pause = min(LONGEST_PAUSE_S, 0.1 * 2**attempt) * random.uniform(0.5, 1)
            tried = time.monotonic() - start
            if attempt and tried + pause > patience:  # one attempt may take longer than that
                raise self._error(where, verb, answer, tried=tried)
            time.sleep(pause)
            attempt += 1

    def _error(
        self, where: str, verb: str, answer: _Answer, *, tried: float | None = None
    ) -> BucketError:
        """Say what the endpoint answered, after so many seconds of attempts."""
        endpoint = self.endpoint or "AWS"
        code = answer.code or ("AccessDenied" if answer.status in (401, 403) else "")
        if code in _REMEDIES:
            problem, expected, remedy = (
                part.format(bucket=self.bucket, endpoint=endpoint, region=self.region, verb=verb)
                for part in _REMEDIES[code]
            )
        elif tried is not None:
            silent = answer.status is None
            problem = (
                f"{endpoint} {'did not answer' if silent else 'had no time'} for {tried:.0f} s"
            )
            problem += "" if silent else f" ({_named(answer)})"
            expected = "an S3 endpoint"
            remedy = "Start it, or correct AWS_ENDPOINT_URL; then try again"
        else:
            problem = f"{endpoint} refuses to {verb} it ({_named(answer)})"
            expected = "an S3 endpoint that allows it"
            remedy = "Check address, keys and AWS_ENDPOINT_URL"
        return BucketError(f"'{where}': {problem}, expected {expected}. {remedy}.")


def _read_answer(text: str) -> _Answer:
    """Take status and code out of the text of an error; the rest of it may hold keys."""
    if re.search(r"http://[^/\s]+/latest/(api/token|meta-data)", text):  # asked for a role's keys
        return _Answer(None, NO_KEYS)
    code = re.search(r"<Code>([A-Za-z]{1,60})</Code>|\(code: ([A-Za-z]{1,60})\)", text)
    name = (code[1] or code[2]) if code else ""
    if status := re.search(r"status code: (\d{3})\b", text):
        return _Answer(int(status[1]), name)
    if "HTTP error" in text:  # refused, reset, cut off or out of time
        return _Answer(None, name)
    return _Answer(200, name)


def _named(answer: _Answer) -> str:
    return answer.code or (
        "no answer of S3's" if answer.status == 200 else f"status {answer.status}"
    )
