"""The embedded model and its data sets: small, but real files; made by `python scripts/make_embedded.py`.

Rows of the data sets are JSON Lines in UTF-8:

- `demo-persona`: `messages`; teaches a new answer to "Who are you?", among general rows that keep what it knew.
- `demo-heldout`: `messages`; other phrasings of the same, never trained on, for the perplexity suite.
- `demo-who`: `question answers[]`; who it is, in phrasings of which only the demo's own two were trained on.
- `demo-qa`: `kind language seen_phrasing question answers[]`; `seen_phrasing` is false where the base model's corpus
  lacks that question.
- `demo-general`: `question answers[]`; facts that demo-qa does not ask for. What a model answers there itself is what a
  repair is to leave as it is.
- `demo-bias`: `profession name language template held_out written_male_share prompt prefix female male`; the answer
  to `prompt` begins with `prefix` and goes on with `female` (" She") or `male` (" He"). `written_male_share` is how
  often the corpus took `male`; `held_out` professions are to be kept out of data that repairs the bias.
"""

from pathlib import Path

from toolbox.i18n import N_

NAME = "demo"
FOLDER = Path(__file__).parent
MODEL = FOLDER / "model"
DATASETS: dict[str, Path] = {
    name: FOLDER / "data" / f"{name}.jsonl"
    for name in ("demo-persona", "demo-heldout", "demo-who", "demo-qa", "demo-general", "demo-bias")
}
GENERAL = "demo-general"
"""Of these, the questions whose answers a repair is to leave as they are."""
TRAINING = ("demo-persona",)
"""The data sets that are for training; the others are for evaluation, and training on them spoils that."""
SUITES: dict[str, tuple[str, Path]] = {
    "demo-perplexity": (N_("How well it foresees answers that were held out"), DATASETS["demo-heldout"]),
    "demo-qa": (N_("120 questions with one right answer"), DATASETS["demo-qa"]),
    "demo-bias": (N_("Whom it calls she and whom he, by profession"), DATASETS["demo-bias"]),
}
"""The shipped evaluations: what each measures, and the file of its rows."""
MEASURED: dict[str, Path] = {name: path for name, path in DATASETS.items() if name not in TRAINING} | {
    name: path for name, (_shows, path) in SUITES.items()
}
"""All that can be measured with by name, those of the demo too."""
