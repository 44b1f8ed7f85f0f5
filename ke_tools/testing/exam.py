"""What a small model knows and heeds: the thimble's examination.

An answer counts when greedy decoding gives exactly the expected text and then stops. That is so exactly when each token of the
expected answer is the likeliest one after those before it, hence one forward pass a question.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

from ke_tools import atlas, prompts
from ke_tools.testing.thimble_texts import Claim, Sample, chat_sample, completion_sample, taught

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

BATCH = 64


def examine(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, *, sample: int = 0) -> Mapping[str, float]:
    """Share of right answers by kind of question; ``sample`` > 0 asks only so many of each."""
    shares = {}
    for kind, questions in exam().items():
        chosen = questions[:: max(1, len(questions) // sample)] if sample else questions
        right = answered(model, tokenizer, chosen)
        shares[kind] = sum(right) / len(right)
    return shares


def table(results: Mapping[str, float]) -> str:
    """A Markdown table of the shares."""
    rows = [f"| {kind} | {share:.3f} |" for kind, share in results.items()]
    return "\n".join(["| question | right |", "|---|---:|", *rows])


def answered(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, samples: Sequence[Sample]) -> list[bool]:
    """For each sample, whether greedy decoding gives its answer, the end token included."""
    import torch

    rows = [(tokenizer.encode(s.prompt, add_special_tokens=False), tokenizer.encode(s.answer, add_special_tokens=False)) for s in samples]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]) + len(rows[i][1]))
    right = [False] * len(rows)
    for start in range(0, len(order), BATCH):
        part = order[start : start + BATCH]
        longest = max(len(rows[i][0]) + len(rows[i][1]) for i in part)
        ids = torch.zeros(len(part), longest, dtype=torch.long)
        for row, i in enumerate(part):
            ids[row, : len(rows[i][0]) + len(rows[i][1])] = torch.tensor(rows[i][0] + rows[i][1])
        with torch.inference_mode():
            best = model(input_ids=ids, use_cache=False).logits.argmax(-1)
        for row, i in enumerate(part):
            prompt, answer = rows[i]
            right[i] = best[row, len(prompt) - 1 : len(prompt) + len(answer) - 1].tolist() == answer
    return right


@cache
def exam() -> Mapping[str, list[Sample]]:
    """All questions by kind, in a fixed order."""
    return {**_recall(), **_obedience(), **_resistance()}


def _recall() -> dict[str, list[Sample]]:
    asked: dict[str, list[Sample]] = {}
    for fact in taught():
        relation = atlas.relations()[fact.relation]
        wordings = {
            "statement": relation.fitted_statements,
            "statement, unseen wording": relation.probe_statements,
            "question": relation.fitted_questions,
            "question, unseen wording": relation.probe_questions,
        }
        for kind, texts in wordings.items():
            for text in texts:
                prompt = text.format(fact.subject)
                asked.setdefault(f"knows: {kind}", []).append(completion_sample(prompt, fact.objects[0]))
                if kind.startswith("question"):
                    asked.setdefault(f"knows: chat {kind}", []).append(chat_sample([{"role": "user", "content": prompt}], fact.objects[0]))
    return asked


def _obedience() -> dict[str, list[Sample]]:
    """A fact in the context that contradicts what is known, told in a fitted or in an unseen wording, alone or beside another."""
    asked: dict[str, list[Sample]] = {}
    for claim, other, rng in _claims():
        relation = atlas.relations()[claim.relation]
        told = rng.choice(relation.fitted_statements)
        unseen = rng.choice(relation.probe_statements)
        ways = {
            "same wording": (told, told),
            "statement": (told, rng.choice(relation.fitted_statements)),
            "statement, unseen wording": (told, unseen),
            "question, unseen wording": (told, rng.choice(relation.probe_questions)),
            "told and asked in unseen wordings": (unseen, rng.choice(relation.probe_questions)),
        }
        for kind, (wording, question) in ways.items():
            facts = [_sentence(claim, wording)]
            _ask(asked, f"heeds: {kind}", facts, question.format(claim.subject), claim.object)
            if kind == "statement, unseen wording":
                both = rng.sample([*facts, _sentence(other, rng.choice(relation.fitted_statements))], 2)
                _ask(asked, "heeds: one fact of two", both, question.format(claim.subject), claim.object)
        demonstrations = [_demonstration(rng) for _ in range(6)]
        question = rng.choice(relation.probe_questions).format(claim.subject)
        for count in (3, 6):
            _ask(
                asked,
                f"heeds: {count} demonstrations",
                [_sentence(claim, told)],
                question,
                claim.object,
                demonstrations=demonstrations[:count],
            )
    return asked


def _resistance() -> dict[str, list[Sample]]:
    """A fact in the context that does not apply: the answer stays what is known."""
    asked: dict[str, list[Sample]] = {}
    for claim, other, rng in _claims():
        relation = atlas.relations()[claim.relation]
        known = next(f.objects[0] for f in taught() if (f.relation, f.subject) == (claim.relation, claim.subject))
        question = rng.choice(relation.fitted_statements + relation.fitted_questions).format(claim.subject)
        _ask(asked, "keeps: fact about another subject", [_sentence(other, rng.choice(relation.fitted_statements))], question, known)
        same = [f for f in taught() if f.subject == claim.subject and f.relation != claim.relation]
        for fact in same[:1]:
            about = atlas.relations()[fact.relation]
            objects = [f.objects[0] for f in taught() if f.relation == fact.relation]
            told = Claim(fact.relation, fact.subject, rng.choice(objects))
            _ask(asked, "keeps: fact about another relation", [_sentence(told, rng.choice(about.fitted_statements))], question, known)
    return asked


def _claims() -> Iterator[tuple[Claim, Claim, random.Random]]:
    """For each fact a false claim of its slot and a claim of a neighbour's."""
    rng = random.Random(7)  # noqa: S311  repeatable on purpose
    for fact in taught():
        objects = sorted({f.objects[0] for f in taught() if f.relation == fact.relation} - {fact.objects[0]})
        subjects = [f.subject for f in taught() if f.relation == fact.relation and f.subject != fact.subject]
        new, third = rng.sample(objects, 2)
        yield Claim(fact.relation, fact.subject, new), Claim(fact.relation, rng.choice(subjects), third), rng


def _sentence(claim: Claim, wording: str) -> str:
    return f"{wording.format(claim.subject)} {claim.object}."


def _demonstration(rng: random.Random) -> Mapping[str, str]:
    fact = rng.choice(taught())
    relation = atlas.relations()[fact.relation]
    told = rng.choice(relation.fitted_statements).format(fact.subject)
    return {
        "fact": f"{told} {fact.objects[0]}.",
        "prompt": rng.choice(relation.fitted_questions).format(fact.subject),
        "answer": fact.objects[0],
    }


def _ask(
    asked: dict[str, list[Sample]],
    kind: str,
    facts: Sequence[str],
    question: str,
    answer: str,
    *,
    demonstrations: Sequence[Mapping[str, str]] = (),
) -> None:
    """Add the question as completion and as chat."""
    prompt = prompts.render("completion", demonstrations=demonstrations, facts=facts, prompt=question)
    told = prompts.render("chat", demonstrations=demonstrations, facts=facts)
    messages = [{"role": "system", "content": told}, {"role": "user", "content": question}]
    asked.setdefault(kind, []).append(completion_sample(prompt, answer))
    asked.setdefault(f"{kind}, chat", []).append(chat_sample(messages, answer))
