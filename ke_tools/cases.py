"""Benchmark files of the field, read into one shape.

Five formats are understood, told apart by their fields: CounterFact (EasyEdit's flat shape and the ROME authors' nested
one), zsRE as in MEND, KnowEdit, MQuAKE, and the project's own *house* files (``benchmarks/house``: facts that nobody trained on). A file
is a JSON list or JSON lines. What a file does not give stays empty; nothing is made up.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from ke_tools.errors import InvalidInput
from ke_tools.facts import Fact, squash

Format = Literal["auto", "counterfact", "zsre", "knowedit", "mquake", "house"]
Answered = tuple[str, tuple[str, ...]]  # a prompt and the answers that count as right

_KEPT_BACK: Final = 48  # of 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One requested edit and the questions that its authors ask about it."""

    id: str
    subject: str
    prompt: str
    target: str
    truth: str = ""  # what was true before
    rephrases: tuple[str, ...] = ()
    neighbours: tuple[Answered, ...] = ()  # same relation, other subject
    same_subject: tuple[Answered, ...] = ()  # same subject, other relation
    unrelated: tuple[Answered, ...] = ()
    aliased: tuple[Answered, ...] = ()  # the subject under another name
    reversed: tuple[Answered, ...] = ()  # by the object, for the subject
    reasoning: tuple[Answered, ...] = ()  # one hop and more

    def fact(self) -> Fact:
        """The case as an edit; ``old_target`` stays empty, as what the *served* model believes is not known here."""
        return Fact(subject=self.subject, prompt=self.prompt, target=self.target)

    def other_name(self, asked: str) -> str:
        """The name by which a question calls the subject, where it is else the prompt; empty where it is not."""
        before, subject, after = self.prompt.partition(self.subject)
        is_prompt = subject and len(asked) > len(before) + len(after) and asked.startswith(before) and asked.endswith(after)
        return asked[len(before) : len(asked) - len(after)].strip() if is_prompt else ""


def is_kept_back(subject: str) -> bool:
    """Whether a subject belongs to the three of sixteen that are only measured on, in every file alike."""
    return hashlib.sha256(squash(subject).encode()).digest()[0] < _KEPT_BACK


def load(path: Path, kind: Format = "auto") -> list[Case]:
    """Read a file of cases.

    Raises:
        InvalidInput: not JSON, not a list of records, or records of no known shape.
    """
    rows = _rows(path)
    known = kind if kind != "auto" else _kind_of(rows[0], path)
    return [case for number, row in enumerate(rows) for case in _READERS[known](row, f"{path.stem}:{number}")]


def format_of(path: Path) -> str:
    """Tell a file's format by its first record.

    Raises:
        InvalidInput: not JSON, not a list of records, or records of no known shape.
    """
    return _kind_of(_rows(path)[0], path)


def _rows(path: Path) -> list[Any]:
    try:
        text = path.read_text("utf-8")
        rows = json.loads(text) if text.lstrip()[:1] != "{" else [json.loads(line) for line in text.splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{path} cannot be read as JSON: {error}", "Give a JSON file of benchmark records.") from error
    if not isinstance(rows, list) or not rows or not isinstance(rows[0], dict):
        raise InvalidInput(f"{path} holds no list of records.", "Give a JSON list of objects.")
    return rows


def _kind_of(row: Mapping[str, Any], path: Path) -> str:
    shapes = {
        "counterfact": ({"locality_prompt", "rephrase_prompt"}, {"paraphrase_prompts", "neighborhood_prompts"}),
        "zsre": ({"src", "alt"},),
        "mquake": ({"requested_rewrite", "questions"}, {"edit", "questions"}),
        "house": ({"paraphrases", "questions", "look_alike"},),
        "knowedit": ({"subject", "prompt", "target_new"}, {"prompt", "target", "rephrase"}),
    }
    for kind, alternatives in shapes.items():
        if any(fields <= row.keys() for fields in alternatives):
            return kind
    raise InvalidInput(f"{path}: records with the fields {sorted(row)} are of no known format.", f"Known are {sorted(shapes)}.")


def _counterfact(row: Mapping[str, Any], name: str) -> Iterator[Case]:
    if "requested_rewrite" in row:  # the authors' own shape
        rewrite = row["requested_rewrite"]
        truth = rewrite["target_true"]["str"]
        yield Case(
            id=name,
            subject=rewrite["subject"],
            prompt=rewrite["prompt"].format(rewrite["subject"]),
            target=rewrite["target_new"]["str"],
            truth=truth,
            rephrases=tuple(row["paraphrase_prompts"]),
            neighbours=tuple((prompt, (truth,)) for prompt in row["neighborhood_prompts"]),
        )
        return
    yield Case(
        id=name,
        subject=row["subject"],
        prompt=row["prompt"],
        target=row["target_new"],
        truth=row["ground_truth"],
        rephrases=(row["rephrase_prompt"],),
        neighbours=((row["locality_prompt"], _answers(row["locality_ground_truth"])),),
    )


def _zsre(row: Mapping[str, Any], name: str) -> Iterator[Case]:
    portability = row.get("portability") or {}
    yield Case(
        id=name,
        subject=row["subject"],
        prompt=row["src"],
        target=row["alt"],
        truth=row["answers"][0],
        rephrases=(row["rephrase"],),
        unrelated=((row["loc"].removeprefix("nq question: ") + "?", (row["loc_ans"],)),),
        reasoning=((portability["New Question"], (portability["New Answer"],)),) if portability else (),
    )


def _knowedit(row: Mapping[str, Any], name: str) -> Iterator[Case]:
    if "target" in row:  # QAEdit's spelling of the same shape
        row = {**row, "target_new": row["target"], "rephrase_prompt": row["rephrase"]}
    locality, portability = row.get("locality") or {}, row.get("portability") or {}
    if isinstance(locality, list):
        locality, unrelated = {}, tuple((one["loc"], _answers(one["loc_ans"])) for one in locality)
    else:
        unrelated = ()
    rephrase = row.get("rephrase_prompt") or row.get("rephrase")
    yield Case(
        id=name,
        subject=row["subject"],
        prompt=row["prompt"],
        target=row["target_new"],
        truth=next(iter(_answers(row.get("ground_truth") or "")), ""),
        rephrases=(rephrase,) if rephrase else (),
        same_subject=_probes(locality, "Relation_Specificity", "Forgetfulness"),
        unrelated=unrelated,
        aliased=_probes(portability, "Subject_Aliasing"),
        reversed=_probes(portability, "Logical_Generalization"),
        reasoning=_probes(portability, "Reasoning"),
    )


def _mquake(row: Mapping[str, Any], name: str) -> Iterator[Case]:
    for number, rewrite in enumerate(row.get("requested_rewrite", [])):
        yield Case(
            id=f"{name}.{number}",
            subject=rewrite["subject"],
            prompt=rewrite["prompt"].format(rewrite["subject"]),
            target=rewrite["target_new"]["str"],
            truth=rewrite["target_true"]["str"],
            rephrases=(rewrite["question"],),
            reasoning=tuple((question, (row["new_answer"], *row.get("new_answer_alias", ()))) for question in row["questions"]),
        )


def _house(row: Mapping[str, Any], name: str) -> Iterator[Case]:
    yield Case(
        id=name,
        subject=row["subject"],
        prompt=row["prompt"],
        target=row["target"],
        rephrases=(*row["paraphrases"], *row["questions"]),
        neighbours=tuple((text, ()) for text in row["look_alike"]),
        same_subject=tuple((text, ()) for text in row["same_subject"]),
    )


_READERS: Final[Mapping[str, Callable[[Mapping[str, Any], str], Iterator[Case]]]] = {
    "counterfact": _counterfact,
    "zsre": _zsre,
    "knowedit": _knowedit,
    "mquake": _mquake,
    "house": _house,
}


def _answers(value: Any) -> tuple[str, ...]:
    """Flatten a string, a list of strings or a list of lists of aliases."""
    if isinstance(value, str):
        return (value,) if value else ()
    return tuple(answer for item in value for answer in _answers(item))


def _probes(groups: Mapping[str, Any], *names: str) -> tuple[Answered, ...]:
    return tuple((probe["prompt"], _answers(probe["ground_truth"])) for name in names for probe in groups.get(name) or ())
