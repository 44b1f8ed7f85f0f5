"""Who is named in a text."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ke_tools.memory.names import names_of
from ke_tools.memory.subjects import Mention, SubjectIndex, names_another


def index_of(**names: str | tuple[str, ...]) -> SubjectIndex:
    """An index in which each edit has the given names."""
    index = SubjectIndex()
    for edit_id, given_names in names.items():
        index.add((given_names,) if isinstance(given_names, str) else given_names, edit_id)
    return index


def found(index: SubjectIndex, text: str) -> list[str]:
    """The texts of the mentions."""
    return [mention.text for mention in index.find(text)]


def test_a_name_is_found_with_its_place_in_the_original_text() -> None:
    """Issue §3: subjects by Aho-Corasick; offsets refer to the original."""
    text = "What is  Australia's capital?"

    assert index_of(a="Australia").find(text) == [Mention(9, 18, "Australia", frozenset({"a"}))]


@pytest.mark.parametrize(
    "text",
    ["AUSTRALIA?", "australia", "the Australia of old", "(Australia)", "Australia\u2019s", "Australia-based", "Austr\u00e1lia"],
)
def test_case_diacritics_and_punctuation_do_not_hide_a_name(text: str) -> None:
    """Issue §3: case and diacritics folded."""
    assert len(found(index_of(a="Australia"), text)) == 1


@pytest.mark.parametrize(
    ("name", "text", "slice_"),
    [
        ("S\u00e3o Tom\u00e9", "in SAO  TOME now", "SAO  TOME"),
        ("Sao Tome", "in Sa\u0303o Tome\u0301?", "Sa\u0303o Tome\u0301"),
        ("Go Hyeon-jeong", "ask Go Hyeon\u2011jeong", "Go Hyeon\u2011jeong"),
        ("O'Neill", "ask O\u2019Neill", "O\u2019Neill"),
        ("Stra\u00dfe", "die STRASSE hier", "STRASSE"),
        ("file", "a \ufb01le", "\ufb01le"),
        ("Tokyo", "\uff34\uff4f\uff4b\uff59\uff4f", "\uff34\uff4f\uff4b\uff59\uff4f"),
        ("Australia", "Aus\u00adtralia", "Aus\u00adtralia"),
    ],
)
def test_differently_encoded_names_are_the_same_name(name: str, text: str, slice_: str) -> None:
    """Issue §3: the text is normalised, the mention is a slice of the original."""
    assert found(index_of(a=name), text) == [slice_]


@pytest.mark.parametrize(
    ("name", "text", "slice_"),
    [
        ("Honda Civic", "Honda Civics are", "Honda Civics"),
        ("Lexus", "two Lexuses", "Lexuses"),
        ("Blackberry", "old Blackberries", "Blackberries"),
        ("Beatles", "the Beatles' last album", "Beatles"),
        ("Honda", "Honda's", "Honda"),
    ],
)
def test_a_possessive_or_plural_is_still_the_subject(name: str, text: str, slice_: str) -> None:
    """Issue §3."""
    assert found(index_of(a=name), text) == [slice_]


@pytest.mark.parametrize("text", ["Australian wine", "Austral", "xAustralia", "Australia1", "in Austria"])
def test_a_part_of_a_word_is_no_name(text: str) -> None:
    """Issue §3: whole spans."""
    assert found(index_of(a="Australia"), text) == []


def test_the_longest_name_wins() -> None:
    """Issue §3: "North Korea" is not "Korea"."""
    index = index_of(a="Korea", b="North Korea")

    assert [(m.text, set(m.edit_ids)) for m in index.find("North Korea and Korea")] == [("North Korea", {"b"}), ("Korea", {"a"})]


def test_a_span_inside_a_longer_known_entity_is_another_subject() -> None:
    """users-trust-scale §5: false hits are generic subjects inside longer names; the atlas knows those."""
    assert found(index_of(a="Korea"), "What is the capital of North Korea?") == []
    assert found(index_of(a="Sydney"), "Who built the Sydney Opera House in Sydney?") == ["Sydney"]


def test_an_unknown_longer_name_does_not_hide_the_subject() -> None:
    """Only names that are known drop a span."""
    assert found(index_of(a="Zembla"), "Is Greater Zembla Airlines from Zembla?") == ["Zembla", "Zembla"]


def test_a_name_that_ends_in_s_is_not_the_plural_of_another() -> None:
    """Longest name, not longest span."""
    index = index_of(a="Adam", b="Adams")

    assert [m.edit_ids for m in index.find("Adams wrote")] == [{"b"}]


@pytest.mark.parametrize(("text", "hits"), [("tell us about it", 0), ("the US economy", 1), ("What is IT?", 0), ("who wrote It?", 1)])
def test_names_that_are_everyday_words_count_only_as_they_are_written(text: str, hits: int) -> None:
    """Case is folded, but "us" is not the US and "it" not the novel."""
    assert len(found(index_of(a=("United States", "US"), b="It"), text)) == hits


def test_several_edits_share_a_subject() -> None:
    """Several edits in scope of one question all go in."""
    index = index_of(a="Australia", b=("Australia", "Down Under"))

    assert index.find("Australia")[0].edit_ids == {"a", "b"}
    assert index.find("Down Under")[0].edit_ids == {"b"}


def test_the_atlas_gives_other_names_in_both_directions() -> None:
    """The task: atlas.aliases are names too; an edit of "USA" is one of "United States"."""
    assert "USA" in names_of("United States")
    assert "United States" in names_of("USA")
    assert "USA" in names_of("The United States")
    assert "WHO" not in names_of("The Who")
    assert names_of("Us") == ("Us",)
    assert names_of("Freedonia", ["Freedonian Republic"]) == ("Freedonia", "Freedonian Republic")


def test_scripts_without_spaces_have_borders_everywhere() -> None:
    """The task: token borders for CJK tolerated."""
    index = index_of(a="\ud638\uc8fc", b="\u6771\u4eac", c="\uac00")

    assert found(index, "\ud638\uc8fc\uc758 \uc218\ub3c4\ub294?") == ["\ud638\uc8fc"]
    assert found(index, "\u6771\u4eac\u306e\u4eba\u53e3") == ["\u6771\u4eac"]
    assert found(index, "\uac01") == []  # half a syllable


def test_a_discarded_edit_is_no_longer_found() -> None:
    """The index follows the ledger."""
    index = index_of(a="Australia", b="Austria")
    index.discard("a")
    index.discard("unknown")

    assert found(index, "Australia and Austria") == ["Austria"]
    assert len(index) == 1


def test_an_edit_added_again_has_only_its_new_names() -> None:
    """An edit's names may change with its aliases."""
    index = index_of(a=("Australia", "Oz"))
    index.add(["Australia"], "a")

    assert found(index, "Oz is Australia") == ["Australia"]


def test_of_two_edits_on_an_everyday_word_each_is_found_as_it_writes_it() -> None:
    """The name US is not the word us; what another edit calls itself, or called itself, changes nothing for the first."""
    index = index_of(country=("US",), film=("Us",))
    assert [mention.edit_ids for mention in index.find("US and Us and us")] == [{"country"}, {"film"}]
    index.discard("film")
    assert [mention.text for mention in index.find("US and Us and us")] == ["US"]


@pytest.mark.parametrize("name", ["United States", "office", "refund policy"])
@pytest.mark.parametrize("written", ["the {}", "The {}"])
def test_a_name_with_an_article_does_not_hide_the_one_without(name: str, written: str) -> None:
    """Issue 3 §3: both are one subject to the ledger, so a question with the article is about the edits of either."""
    index = index_of(bare=(name,), full=(written.replace("{}", name),))
    assert [mention.edit_ids for mention in index.find(f"Who looks after the {name}?")] == [{"bare", "full"}]
    assert index_of(full=("The Who",), other=("Who",)).find("I like the who")[0].edit_ids == {"full"}


def test_ten_thousand_names_are_added_one_by_one_and_found() -> None:
    """users-trust-scale §4a: the automaton is cheap; additions do not rebuild it each time."""
    index = SubjectIndex()
    for number in range(10_000):
        index.add([f"Subject {number} Example"], str(number))
        if number % 500 == 0:
            assert [m.edit_ids for m in index.find(f"about Subject {number} Example.")] == [{str(number)}]

    for number in range(9_900):
        index.discard(str(number))
    assert found(index, "Subject 5 Example") == []
    assert found(index, "Subject 9950 Example") == ["Subject 9950 Example"]


@pytest.mark.parametrize(
    ("text", "expected"), [("the capital of Austria", True), ("its capital", False), ("the capital of Australia", False)]
)
def test_other_entities_of_the_atlas_are_noticed(text: str, expected: bool) -> None:
    """A text that names somebody else does not go on about the subject of an earlier turn."""
    assert names_another(text, ["Australia"]) is expected


NAMES = st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=4)


@given(st.lists(NAMES, max_size=5), st.text(max_size=60))
def test_mentions_are_true_slices_in_order_whatever_the_text(names: list[list[str]], text: str) -> None:
    """The task: find() never crashes and spans are true slices."""
    index = index_of(**{f"e{n}": tuple(given_names) for n, given_names in enumerate(names)})
    for whole in (text, f"{text} {names[0][0]} {text}" if names else text):
        mentions = index.find(whole)
        assert all(0 <= m.start < m.end <= len(whole) and whole[m.start : m.end] == m.text and m.edit_ids for m in mentions)
        assert all(a.end <= b.start for a, b in itertools.pairwise(mentions))


@given(NAMES, NAMES, st.text(max_size=40))
def test_adding_and_discarding_is_the_identity(kept: list[str], gone: list[str], text: str) -> None:
    """The task: adding then discarding leaves the index as it was."""
    plain, busy = index_of(a=tuple(kept)), index_of(a=tuple(kept))
    busy.add(gone, "b")
    busy.find(text)
    busy.discard("b")

    for asked in (text, *kept, *gone):
        assert busy.find(asked) == plain.find(asked)
