"""A stream of pictures on its way to the server: gathered into requests, answered in order."""

from collections.abc import AsyncIterable, AsyncIterator, Collection, Iterable, Iterator

from unified_embedding.client._job import REQUEST_BYTES, Job, Salvage, check_picture
from unified_embedding.client._results import Answer, Embedded, check_versions
from unified_embedding.errors import RequestAborted, RequestRejected, shown
from unified_embedding.image import Box

Picture = bytes | tuple[bytes, Box | None]
"""An encoded picture of a stream, alone or with the part of it to embed."""


class Stream:
    """What `embed_iter` of both clients does with pictures and answers."""

    def __init__(self, outputs: Collection[str], batch: int | None) -> None:
        """Check the caller's arguments. Raises ValueError naming the mistake."""
        self._outputs = Job.of([], None, outputs).outputs
        if batch is not None and batch < 1:
            raise ValueError(f"batch {shown(batch)} is not a positive number of pictures")
        self._batch = batch
        self._most = 1
        self._images: list[bytes] = []
        self._crops: list[Box | None] = []
        self._taken = self._answered = 0
        self._version: str | None = None

    def limit(self, max_batch_size: int) -> None:
        """Let a request hold no more pictures than the server takes."""
        self._most = min(self._batch or max_batch_size, max_batch_size)

    def jobs(self, images: Iterable[Picture]) -> Iterator[Job]:
        """Requests, as soon as each is full."""
        for picture in images:
            yield from self._add(picture)
        yield from self._rest()

    async def jobs_async(
        self, images: Iterable[Picture] | AsyncIterable[Picture]
    ) -> AsyncIterator[Job]:
        """The same of an iterable of either kind."""
        if isinstance(images, AsyncIterable):
            async for picture in images:
                for job in self._add(picture):
                    yield job
            for job in self._rest():
                yield job
        else:
            for job in self.jobs(images):
                yield job

    def answers(self, salvage: Salvage) -> Iterator[Answer]:
        """What came of the pictures of the next request.

        Raises:
            VersionMismatch: another version than before.
            ClientError: the server failed, so that nothing is known about a picture.
        """
        found: dict[int, Embedded] = {}
        for rows, embedded in salvage.parts:
            self._version = self._version or embedded.version
            check_versions({self._version, embedded.version})
            found.update((row, embedded[place]) for place, row in enumerate(rows))
        for row in range(len(found) + len(salvage.errors)):
            number, self._answered = self._answered, self._answered + 1
            error = salvage.errors.get(row)
            if error is None:
                yield found[row]
            elif isinstance(error, RequestRejected):
                yield RequestRejected(error.reason, number)
            elif isinstance(error, RequestAborted):
                yield RequestAborted(error.reason, (number,))
            else:
                raise error

    def _add(self, picture: Picture) -> Iterator[Job]:
        image, crop = picture if isinstance(picture, tuple) else (picture, None)
        check_picture(self._taken, image)
        self._taken += 1
        if sum(map(len, self._images)) + len(image) > REQUEST_BYTES:
            yield from self._rest()
        self._images.append(image)
        self._crops.append(crop)
        if len(self._images) == self._most:
            yield from self._rest()

    def _rest(self) -> Iterator[Job]:
        if self._images:
            yield Job(self._images, self._crops, self._outputs)
            self._images, self._crops = [], []
