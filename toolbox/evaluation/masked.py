"""A masked language model (BERT, RoBERTa, ALBERT) as a suite's subject: it fills blanks, and can do nothing else."""

from typing import TYPE_CHECKING, Any, NoReturn

import msgspec

from toolbox.errors import InputError
from toolbox.i18n import _

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Masked(msgspec.Struct, frozen=True):
    """A loaded masked model. What asks for texts or their likelihood is refused; CrowS-Pairs looks at `model`."""

    name: str
    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"

    def generate(self, *asked: Any, **settings: Any) -> NoReturn:
        self._refuse()

    def complete(self, *asked: Any, **settings: Any) -> NoReturn:
        self._refuse()

    def choices(self, *asked: Any, **settings: Any) -> NoReturn:
        self._refuse()

    def texts(self, *asked: Any, **settings: Any) -> NoReturn:
        self._refuse()

    def token_log_likelihoods(self, *asked: Any, **settings: Any) -> NoReturn:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise InputError(
            _("This is a masked model: it fills blanks and writes no texts."),
            _("Measure it with CrowS-Pairs: --suite crows_pairs_anonymized.csv"),
        )
