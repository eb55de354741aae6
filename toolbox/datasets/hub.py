"""`from toolbox import DatasetHub`: data sets by name from Python, and one's own registered under a name."""

from collections.abc import Iterator, Mapping

from toolbox.config import find_home
from toolbox.datasets import DatasetSpec, Row, finding, registry, resolve, stream


class DatasetHub:
    """A data set that was found, and its rows: `for row in DatasetHub("demo-persona")`.

    >>> DatasetHub.register(name="mine", dataset_fn=lambda: [{"prompt": "1+1?", "response": "2"}], task_type="sft")
    >>> len(DatasetHub("mine"))
    1
    """

    def __init__(
        self,
        name: str,
        columns: Mapping[str, str] | None = None,
        skip_broken: bool = False,
        home: str | None = None,
        download: bool = True,
    ) -> None:
        """Find a data set by name, file or address; one that is only on a hub is fetched, unless `download` is false.

        Raises NotFoundError where there is none, InputError naming the first row that can't be used, HubError.
        """
        place = find_home(home)
        try:
            self.spec: DatasetSpec = resolve(name, place, columns, skip_broken)
        except finding.NotDownloadedError as missing:
            if not download:
                raise
            from toolbox.hub import fetching

            settings = place.load_settings()
            source = missing.hub or settings.source
            fetching.fetch(
                fetching.Request(id=missing.id, kind="dataset", source=source, home=place, settings=settings)
            )
            self.spec = resolve(name, place, columns, skip_broken)

    def __iter__(self) -> Iterator[Row]:
        """The rows, one at a time, in constant memory. Raises InputError where the file has changed since."""
        return stream(self.spec)

    def __len__(self) -> int:
        return self.spec.rows

    @staticmethod
    def register(name: str, dataset_fn: registry.Made, task_type: str = "sft") -> None:
        """Give the rows that `dataset_fn()` returns (objects, in any format that files may have) a name.

        The rows are written to the home folder when they are first asked for, so that jobs, which are processes of
        their own, read them too. Raises InputError for a name or a task that can't be.
        """
        registry.register(name, dataset_fn, task_type)

    @staticmethod
    def search(*words: str, home: str | None = None) -> list[registry.Named]:
        """The named data sets that every word (part of a name, a language, a task) is about."""
        return registry.search(words, find_home(home))
