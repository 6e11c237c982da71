"""What a task is: everything of a run that depends on what is predicted.

A new task is a file next to `classification` and `ner`, an entry in `registry`, and its name and
row in `fastadv.config.TASK_SETTINGS`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from fastadv.batches.tokenized import TokenizedDataset
from fastadv.config import ResolvedConfig
from fastadv.data import Data
from fastadv.nn.heads import AdversarialModel

Outputs = Sequence[NDArray[Any]] | NDArray[Any]
"""One array per example, perhaps all in one."""


class Report(Protocol):
    """What a model makes of a labelled data set."""

    def scores(self) -> dict[str, float]:
        """Numbers by name, the task's metric among them."""

    def details(self) -> dict[str, Any]:
        """What the scores sum up, as JSON can hold it: tables of scores by class or type under
        "per_...", and perhaps a "confusion" matrix of the "labels".
        """


class Prediction(Protocol):
    """What a model says of one example."""

    def as_json(self) -> dict[str, Any]:
        """The same as JSON can hold it."""


class Task(Protocol):
    """A task, which has no state: what it needs is passed.

    Examples are what its own `labeled` and `texts` give. K is the number of labels, in the order
    of the output.
    """

    @property
    def name(self) -> str:
        """As in `fastadv.config.TASK_SETTINGS`, which has its metric and its defaults."""

    @property
    def metric(self) -> str:
        """The one number by which runs are compared and selected, of those in `Report.scores`."""

    @property
    def by_token(self) -> bool:
        """The shape of its head: one prediction per word piece, else one per text."""

    @property
    def one_class(self) -> bool:
        """Whether an example has one class, by whose shares English can be drawn."""

    @property
    def auto_model(self) -> Any:
        """The class of transformers that saves and loads encoder and head as one model, whose
        last layer is a linear `classifier`; None where no such class has a head like this one.
        """

    def checked_labels(self, labels: Sequence[str]) -> tuple[str, ...]:
        """The labels as a tuple.

        Raises:
            ValueError: No head can be made for them.
        """

    def labels_of(self, data: Data) -> tuple[str, ...]:
        """The labels that labelled examples imply, in an order that depends on nothing else.

        Raises:
            ValueError: Malformed data, or too few labels.
        """

    def labeled(self, data: Data) -> list[Any]:
        """Labelled examples.

        Raises:
            ValueError: Malformed data.
        """

    def texts(self, data: Data) -> Iterator[Any]:
        """Examples whose labels are dropped, one by one, in bounded memory.

        Raises:
            ValueError: While examples are taken: malformed data.
        """

    def tokenize(
        self,
        tokenizer: Any,
        examples: Sequence[Any],
        label_ids: Mapping[str, int] | None,
        config: ResolvedConfig,
    ) -> TokenizedDataset:
        """Examples as word pieces.

        Args:
            tokenizer: A fast one.
            examples: The examples.
            label_ids: The number of each label; None leaves the data set unlabelled.
            config: `max_length` and `window_overlap` are read.

        Raises:
            ValueError: A label is missing or unknown.
        """

    def evaluation(
        self,
        tokenizer: Any,
        examples: Sequence[Any],
        label_ids: Mapping[str, int],
        config: ResolvedConfig,
    ) -> tuple[TokenizedDataset, list[Any]]:
        """Labelled examples to score: as word pieces, and the gold of each as `report` takes it.

        Arguments are the same as for `tokenize`.

        Raises:
            ValueError: An example cannot be scored.
        """

    def outputs(
        self, model: AdversarialModel, dataset: TokenizedDataset, batch_size: int
    ) -> Outputs:
        """What the model says of N examples, in their order: p(Y | x) of each, an item (K,), or
        (words, K) of a task by word. Float32, or float64 after `matched`.
        """

    def rows(self, outputs: Outputs) -> NDArray[Any]:
        """(M, K): every prediction, one per row; a word that the model never saw has none."""

    def groups(self, labels: Sequence[str]) -> tuple[str, ...]:
        """The class of each label, (K,): what class shares are shares of."""

    def apart(self) -> frozenset[str]:
        """Classes that are not among class shares: those that are not what is looked for."""

    def counts(self, examples: Sequence[Any]) -> Mapping[str, int]:
        """How often each class is in labelled examples, those apart too."""

    def classes(self, gold: Sequence[Any]) -> set[str]:
        """The classes in `gold`, as `evaluation` gives it."""

    def known(
        self, outputs: Outputs, gold: Sequence[Any], labels: Sequence[str]
    ) -> tuple[NDArray[Any], list[str]]:
        """`rows` of the examples, and the class of each row by `gold`, as `evaluation` gives it."""

    def report(self, outputs: Outputs, gold: Sequence[Any], labels: Sequence[str]) -> Report:
        """Scores the outputs against `gold`, as `evaluation` gives it."""

    def predictions(
        self, outputs: Outputs, examples: Sequence[Any], labels: Sequence[str]
    ) -> Sequence[Prediction]:
        """One prediction per example, in their order."""
