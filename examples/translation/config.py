"""The settings of translation."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from examples.training.methods import METHODS
from examples.training.settings import Settings, defaults


@dataclass(frozen=True)
class Config(Settings):
    """Trains a Transformer to translate, or resumes an interrupted run."""

    program: ClassVar = "translation"
    metric: ClassVar = "bleu"
    unit: ClassVar = "sentences"
    of_data: ClassVar = ("data_dir",)

    model: str = "transformer_small"
    """A model by name; `--model list` lists them."""
    data_dir: Path | None = None
    """Folder of the text: train, valid and test, each as .de and .en for `--source de --target
    en`, or compressed as .de.gz and .en.gz. A line is a sentence."""
    source: str = "de"
    """Language to translate from, the ending of its files."""
    target: str = "en"
    """Language to translate into."""
    train_size: int | None = None
    """Number of training sentences, the first ones; None is all."""
    vocabulary: int = 4000
    """Number of tokens, which both languages share (byte-pair encoding)."""
    max_length: int = 128
    """Tokens of the longest training sentences. Longer ones are left out, and counted."""

    batch_tokens: int = 4096
    """Tokens per step in either language, padding included, on all devices together."""
    buckets: int = 4
    """Number of lengths to which sentences are padded. Each is compiled once."""
    dropout: float = 0.3
    """Share of units that are dropped. All passes of a step drop the same ones."""

    beam: int = 5
    """Translations that the beam search follows; 1 is greedy."""
    length_penalty: float = 1.0
    """Exponent of the length by which the log probability of a translation is divided."""
    bleu_tokenize: Literal["13a", "intl", "char", "none"] = "13a"
    """How sacrebleu splits text into words; none for text that is split already."""

    optimizer: Literal["sgd", "adamw"] = "adamw"
    """The base optimizer: SGD with weight decay in the gradient, or AdamW."""
    learning_rate: float = 1e-3
    """Peak of the learning rate."""
    schedule: Literal["cosine", "inverse_sqrt"] = "inverse_sqrt"
    """How the learning rate falls after its peak: as a cosine to 0, or as the inverse square root
    of the step, counted from the end of the warmup or from 1."""
    beta_2: float = 0.98
    """Decay of AdamW's second moment."""
    weight_decay: float = 1e-2
    """Coefficient of the weight decay."""
    label_smoothing: float = 0.1
    """Share of each target that is spread evenly over the vocabulary."""

    ranges: ClassVar = (
        ("train_size buckets beam", lambda value: value >= 1, "at least 1"),
        ("batch_tokens", lambda value: value >= 8, "at least 8"),
        ("max_length", lambda value: value >= 2, "at least 2"),
        ("vocabulary", lambda value: value >= 8, "at least 8"),
        ("dropout", lambda value: 0 <= value < 1, "at least 0 and below 1"),
        ("length_penalty", lambda value: value >= 0, "at least 0"),
    )

    def data_name(self) -> str:
        """Returns the two languages."""
        return f"{self.source}-{self.target}"

    def has_validation(self) -> bool:
        """Returns whether there are validation sentences, which there always are."""
        return True

    def for_evaluation(self) -> "Config":
        """Returns settings with the same text and vocabulary, alike for all methods."""
        names = "data_dir source target train_size vocabulary max_length batch_tokens buckets out"
        return Config(**{name: getattr(self, name) for name in names.split()})

    def loss_batches(self, number: int, size: int) -> list[Any]:
        """Returns the first sentences of training in batches of one shape.

        Raises:
          ValueError: There are too few.
        """
        from examples.translation import batches, data

        train = data.load(self).splits["train"]
        if number > len(train.source):
            raise ValueError(f"it was trained on {len(train.source)} sentences: lower --images")
        return batches.equal_batches(train, number, size)

    def load(self) -> Any:
        """Returns the text as `TextBatches`."""
        from examples.translation import batches, data

        return batches.TextBatches(data.load(self), self)

    def make_program(self, spec: Any) -> Any:
        """Returns the compiled `TranslationProgram`."""
        from examples.training.program import share_program
        from examples.translation.program import TranslationProgram

        return share_program(TranslationProgram, self, spec)

    def own_ignored_settings(self) -> dict[str, tuple[str, str]]:
        """Returns the setting that batches of several lengths do not have."""
        return {"steps_per_dispatch": (self.program, "its batches have several lengths")}

    def check_own(self) -> None:
        """Raises ValueError where a name is no language, or the method needs images."""
        for name in ("source", "target"):
            if not re.fullmatch(r"[\w-]+", language := getattr(self, name)):
                raise ValueError(f"{name} must be a language such as de, got {language!r}")
        if self.source == self.target:
            raise ValueError(f"source and target are both {self.source}")
        if METHODS[self.method].ascends_along:
            raise ValueError(
                f"{self.method} is for image_classification: its ascent needs all data"
            )


DEFAULTS = defaults(Config)
