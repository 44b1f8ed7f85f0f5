"""What is asked of a subject, cut out of what stands around it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ke_tools.memory.scope.asking import resolve, sentences_of, speaks_of_another, spoken, views

ASKED = "What is the capital of Australia?"
VIEW = "What is the capital of {}?"
ELSEWHERE = "Who wrote Hamlet?"
TOLD = "Canberra is the capital of Australia."
READ = f"{'It rains in the hills, and the rivers are full of fish. ' * 9}{TOLD} {'Sheep are kept on the plains. ' * 9}".strip()


def seen(text: str, *carried: str, name: str = "Australia") -> tuple[str, ...]:
    """The views of a text that names somebody."""
    starts = [n for n in range(len(text)) if text.startswith(name, n)]
    return views(text, [(n, n + len(name)) for n in starts], carried)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The capital of Australia is", ("The capital of {} is",)),
        ("It rained all day. The capital of Australia is", ("The capital of {} is",)),
        ("References\n\nCategory: Ferries Australia is in", ("Category: Ferries {} is in",)),
        ("I love Australia. What is its capital?", ("What is {}'s capital?",)),
        ("Is Australia big? And the capital?", ("Is {} big?", "the capital of {}?")),
        ("What is Australia's capital? Answer in one word.", ("What is {}'s capital?", "What is {}'s capital? Answer in one word.")),
        ("What is Australia's capital? Thanks!", ("What is {}'s capital?", "What is {}'s capital? Thanks!")),
        ("Tell me Australia's capital. Keep it short.", ("Tell me {}'s capital.", "Tell me {}'s capital. Keep it short.")),
        ("Q: What is Australia's capital?\nA:", ("What is {}'s capital?",)),
        ("Country: Australia\nCapital:", ("Country: {}\nCapital:",)),
        ("Australia's capital is Canberra.\nWhat is the capital of France?", ()),
        ("Write {} for Australia please", ("Write   for {} please",)),
    ],
)
def test_the_last_sentence_is_what_is_asked(text: str, expected: tuple[str, ...]) -> None:
    """CounterFact's rephrases stand behind unrelated sentences; few-shot prompts and documents name subjects that nobody asks about."""
    assert seen(text) == expected


@pytest.mark.parametrize(
    "tail",
    [
        "Please be brief.",
        "One word, please.",
        "Only the city, please.",
        "Just give the name.",
        "Do not explain.",
        "No explanation needed.",
        "Use a single word.",
        "Reply in at most five words.",
        "Answer in English.",
        "answer briefly",
        "The answer should be a city.",
        "Could you answer in one word?",
        "Any idea?",
        "I need it for a quiz.",
        "\n\nKind regards,\nAnna",
        "Thank you very much!",
        "Answer:",
    ],
)
def test_a_tail_that_says_how_to_answer_leaves_the_question_before_it(tail: str) -> None:
    """People add such sentences; the question stays what it was."""
    assert seen(f"What is Australia's capital? {tail}")[0] == "What is {}'s capital?"
    assert resolve(f"What is its capital? {tail}") == "What is {}'s capital?"


@pytest.mark.parametrize(
    "asked",
    [
        "What is the weather like today?",
        "What is the capital of france?",
        "what is two plus two? Answer in one word.",
        "Summarise the text.",
        "I need help. Summarise the text.",
        "Write a poem.",
        "Give me one joke.",
        "Explain why the sky is blue.",
        "Answer the following: what is two plus two?",
        "The weather today is",
        "I moved to Zamunda. What is its capital?",
    ],
)
@pytest.mark.parametrize(
    "before", ["Australia's capital is nice.", "I live in Australia.", "Context: Australia's capital is lovely, and old.\n"]
)
def test_a_request_that_is_complete_by_itself_asks_nothing_of_a_subject_named_before_it(before: str, asked: str) -> None:
    """Issue §3: supplied documents are not read for scope; small talk about a subject is no question about it."""
    assert seen(f"{before} {asked}") == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Tell me about Germany.", True),
        ("Tell me about Zamunda.", True),
        ("what of france?", True),
        ("It lies in Oceania.", False),
        ("ok", False),
        ("I think so.", False),
    ],
)
def test_a_name_behind_a_pronoun_is_no_new_topic(text: str, expected: bool) -> None:
    """In "It lies in Oceania" the pronoun goes on about what was named before."""
    assert speaks_of_another(text) is expected


@pytest.mark.parametrize("text", ["The book by Dr. John F. Kennedy is", "Mt. St. Helens is 3.5 km away"])
def test_abbreviations_end_no_sentence(text: str) -> None:
    """A subject's sentence is not cut at an abbreviation."""
    assert sentences_of(text) == [text]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("and its capital?", "and {}'s capital?"),
        ("And the capital?", "the capital of {}?"),
        ("Where was he born?", "Where was {} born?"),
        ("Who is her mother?", "Who is {}'s mother?"),
        ("Have you seen her?", "Have you seen {}?"),
        ("What do people speak there?", "What do people speak {}?"),
        ("What is that country's currency?", "What is {}'s currency?"),
        ("Tell me more about cooking.", None),
        ("", None),
    ],
)
def test_pronouns_and_ellipses_go_on_about_what_was_named(text: str, expected: str | None) -> None:
    """Issue §3: subjects carried from earlier turns ("and its capital?")."""
    assert resolve(text) == expected


@given(st.text(max_size=200), st.lists(st.tuples(st.integers(0, 200), st.integers(0, 200)), max_size=3))
def test_no_text_breaks_the_views(text: str, places: list[tuple[int, int]]) -> None:
    """Never raises on odd text."""
    views(text, [(a, b) for a, b in places if a < b <= len(text)])
    resolve(text)


@pytest.mark.parametrize(
    "layout",
    [
        "Answer using the context.\n\nQuestion: {q}\n\nContext: {m}\n\n{m}",
        "Question: {q}\nContext:\n{m}\n{m}\nAnswer:",
        "Context: {m}\nQuestion: {q}",
        "Context: {m} Question: {q} Answer:",
        "<context>\n{m}\n</context>\n{q}",
        '<documents>\n<document index="1">{m}</document>\n</documents>\n<question>{q}</question>',
        "Documents:\n[1] {m}\n[2] {m}\n\nBased on the documents, {q}",
        "Use the following pieces of context to answer. If you don't know, say so.\n\n{m}\n\nQuestion: {q}\nHelpful Answer:",
        "Context information is below.\n-----\n{m}\n-----\nGiven the context information, answer the query.\nQuery: {q}\nAnswer:",
        "{q}\n\n{m}\n\n{m}",
        "{m}\n\n{m}\n\n{q}",
        "{q}\n\n```\n{m}\n```",
        '"""\n{m}\n"""\n{q}',
        "> {m}\n>\n> {m}\n\n{q}",
        "# Context\n\n{m}\n\n# Question\n\n{q}\n\n# Instructions\n\nAnswer in one sentence.",
        "Title: Hills\nURL: https://example.org\nSnippet: {m}\n\nUser question: {q}",
        "{q}\n\nFrom: Anna\nTo: Ben\nSubject: trip\n\n{m}\n\nOn Mon, 3 Feb 2025, Ben wrote:\n> {m}",
        '{"context": "{m}", "question": "{q}"}',
        "The user asked: {q}\n\nThe tool returned:\n\n{m}\n\nWrite the reply.",
        "Knowledge base:\n- {m}\n- {m}\nUser: {q}\nAssistant:",
        "<|im_start|>user\n{m}\n\n{q}<|im_end|>\n<|im_start|>assistant\n",
        "Question: Is it far?\nContext: {m}\nAnswer: No.\n\nQuestion: {q}\nContext: {m}\nAnswer:",
    ],
)
def test_what_is_supplied_to_be_read_asks_nothing_and_hides_no_question(layout: str) -> None:
    """Design §4 no. 3: retrieval prompts name many subjects; only the question counts, wherever it stands."""
    filled = layout.replace("{m}", READ)

    assert seen(filled.replace("{q}", ASKED)) == (VIEW,)
    assert seen(filled.replace("{q}", ELSEWHERE)) == ()


@pytest.mark.parametrize(
    "task",
    [
        "Translate into French: {t}",
        "Translate this sentence into Spanish. {t}",
        "{t} Translate that into German.",
        "Translate to German\n{t}",
        "Translate {t} into Dutch",
        '"{t}" How do you say that in Polish?',
        "Summarise the following.\n\n{t}",
        "{t}\n\ntl;dr",
        "Proofread: {t}",
        "Correct the grammar of this sentence: {t}",
        "I'm writing an essay. {t} Can you continue?",
        "Shorten. {t}",
        "Make it shorter: {t}",
        'Rephrase "{t}"',
        "How many words are in this sentence? {t}",
        'How many words has "{t}"?',
        "Is this sentence grammatical? {t}",
        "{t} Any typos?",
        "Turn this into bullet points: {t}",
        'Quote "{t}" in a blog post.',
        "English: Hello.\nFrench: Bonjour.\n\nEnglish: {t}\nFrench:",
        "### Instruction:\nTranslate to French.\n\n### Input:\n{t}\n\n### Response:",
        "Summarise this chat:\nUser: What is the capital of Australia?\nAssistant: {t}",
    ],
)
def test_a_text_to_work_on_asks_nothing(task: str) -> None:
    """A user's own text is translated and corrected as it stands, whatever it says of a subject."""
    assert seen(task.replace("{t}", TOLD)) == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Summarise what you know about Australia", "Summarise what you know about {}"),
        ("Correct me if I am wrong: is Canberra the capital of Australia?", "is Canberra the capital of {}?"),
        ("List the key facts about Australia", "List the key facts about {}"),
        ("Translate the name of the capital of Australia into German", "Translate the name of the capital of {} into German"),
        ("Check whether Canberra is the capital of Australia.", "Check whether Canberra is the capital of {}."),
        (f"{ASKED} Translate the answer into German.", VIEW),
        ("Complete the sentence: The capital of Australia is", "The capital of {} is"),
    ],
)
def test_a_request_worded_like_a_task_may_ask_for_the_fact(text: str, expected: str) -> None:
    """The verb alone does not tell: a task is one that points to a text."""
    assert seen(text)[0] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Canberra is the capital of Australia, right?", ("Canberra is the capital of {}, right?",)),
        ("Since Canberra is the capital of Australia, is it big?", ("Since Canberra is the capital of {}, is it big?",)),
        (f"{ASKED} And how many people live there?", (VIEW, "And how many people live {}?")),
        (f"{ASKED} And what is the capital of Peru?", (VIEW,)),
        (f"Reply as JSON with the key capital: {ASKED}", (VIEW,)),
        (f"Answer as a bullet list. {ASKED}", (VIEW,)),
        (f"Quick question: {ASKED}", (VIEW,)),
        (f'{ASKED}\n\nReply with JSON:\n{{\n  "capital": "..."\n}}', (VIEW,)),
        ("Tell me about Australia.", ("Tell me about {}.",)),
        ("hey whats the capital of Australia", ("hey whats the capital of {}",)),
        ("I'm planning a trip to Australia next month. What's the capital?", ("What's the capital of {}?",)),
        ("Australia. What's the capital?", ("What's the capital of {}?",)),
        ("im going to Australia next month\nwhats the capital", ("whats the capital of {}?",)),
        ("My aunt moved from Australia to Peru. What's the capital?", ()),
        ("Dear all,\n\nplease name the capital of Australia.\n\nKind regards,\nAnna", ("please name the capital of {}.",)),
        (f"User: Hi!\nAssistant: Hello.\nUser: {ASKED}\nAssistant:", (VIEW,)),
        (f"User: {ASKED}\nAssistant: Canberra.\nUser: {ELSEWHERE}\nAssistant:", ()),
        ("User: Where is Australia?\nAssistant: In Oceania.\nUser: Where was its king born?\nAssistant:", ("Where was {}'s king born?",)),
        ("What is the capital of Peru? And of Australia?", (VIEW,)),
    ],
)
def test_chat_forms_lead_to_the_bare_question(text: str, expected: tuple[str, ...]) -> None:
    """The scorer judges questions, not courtesy, formats or what was said before."""
    assert tuple(view for view in seen(text) if not view.startswith(f"{VIEW} ")) == expected


@pytest.mark.parametrize(
    ("text", "carried", "expected"),
    [
        ("And Australia?", ("Lima.", "What is the capital of Peru?"), (VIEW,)),
        ("what about Australia", ("What is the capital of Zamunda?",), (VIEW,)),
        ("And Australia?", ("Hello!", "Hi"), ("And {}?",)),
    ],
)
def test_another_name_alone_takes_the_question_of_an_earlier_turn(text: str, carried: tuple[str, ...], expected: tuple[str, ...]) -> None:
    """Issue §3: what is carried from earlier turns; here it is what was asked."""
    assert seen(text, *carried) == expected


def test_what_a_turn_supplies_is_not_spoken() -> None:
    """A document of an earlier turn must not become what a later "its" speaks of."""
    assert "Australia" not in spoken(f"Context: {READ}\n\nQuestion: {ELSEWHERE}")
    assert "Australia" not in spoken(f"Translate into French: {TOLD}")
    assert spoken("I live in Australia.") == "I live in Australia."


@pytest.mark.parametrize(
    "piece", ["' ", "<a ", "<a></a>", "Mr. A ", "```\n", "---\n", "please ", "use the text ", "Australia is. ", " ", "# "]
)
def test_long_texts_are_read_in_bounded_time(piece: str) -> None:
    """Whoever sends 100 kB must not hold a server; the test's own limit is the bound."""
    assert len(seen((piece * 100_000)[:100_000] + f"\n\n{ASKED}")) <= 4


@pytest.mark.parametrize("outer", ["Question 1:", "For the record:", "Quiz.", "In one word:", "Note:"])
@pytest.mark.parametrize("inner", ["Complete the sentence:", "From the notes:", "Go on:"])
def test_a_frame_within_a_frame_asks_what_the_inner_one_does(outer: str, inner: str) -> None:
    """The gate asks in such frames, and so do templates that are put into templates; each of them alone is understood."""
    said = "The capital of Australia is"
    assert seen(f"{outer} {said}")
    assert seen(f"{outer} {inner} {said}") == seen(f"{inner} {said}") != ()


@pytest.mark.parametrize("task", ["Translate into French: Text:", "Summarise the following: Note:", "Correct the spelling: Sentence:"])
def test_a_frame_around_a_text_to_work_on_makes_it_no_question(task: str) -> None:
    """Only where each frame alone would ask does a stack of them."""
    text = "The capital of Australia is Canberra."
    assert seen(f"{task} {text}") == ()
