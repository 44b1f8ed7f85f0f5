"""Who is named in a text."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ke_tools.memory import folding
from ke_tools.memory.folding import fold
from ke_tools.memory.lexicon import Lexicon
from ke_tools.memory.names import names_of
from ke_tools.memory.subjects import Mention, SubjectIndex, keys_of, names_another


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


@pytest.mark.parametrize("name", ["J. R. R. Tolkien", "J.R.R. Tolkien", "JRR Tolkien", "J R R Tolkien"])
@pytest.mark.parametrize("text", ["Who taught J. R. R. Tolkien?", "was J.R.R. Tolkien tall", "JRR Tolkien's cat", "j r r tolkien"])
def test_initials_are_one_name_however_they_are_written(name: str, text: str) -> None:
    """The issue on scope: initials are bad input that must not hide a subject."""
    assert len(found(index_of(a=name), text)) == 1


def test_initials_of_an_everyday_word_count_only_as_they_are_written() -> None:
    """The name U.S. is also written US, and that is not the word us."""
    assert found(index_of(a="U.S."), "US, U.S. and us") == ["US", "U.S."]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Dvo\u0159\u00e1k", "Dvorak"),
        ("Z\u00fcrich", "Zuerich"),
        ("Z\u00fcrich", "Zurich"),
        ("Mu\u0308ller", "Mueller"),
        ("S\u00f8ren Kierkegaard", "Soren Kierkegaard"),
        ("S\u00f8ren Kierkegaard", "Soeren Kierkegaard"),
        ("\u00c5lborg", "Aalborg"),
        ("\u0141\u00f3d\u017a", "Lodz"),
        ("Gro\u00dfglockner", "Grossglockner"),
        ("\u00d0or\u0111e", "Dorde"),
        ("Diyarbak\u0131r", "Diyarbakir"),
        ("\u00c6thelred", "Aethelred"),
        ("Rolls-Royce", "Rolls Royce"),
        ("Baden-W\u00fcrttemberg", "Baden Wuerttemberg"),
    ],
)
def test_a_name_is_found_in_its_other_transliteration_and_the_other_way_round(one: str, other: str) -> None:
    """The issue on scope: diacritics and transliteration, hyphen or space."""
    for name, written in ((one, other), (other, one)):
        assert found(index_of(a=name), f"Tell me about {written}, please.") == [written]


def test_a_letter_by_itself_counts_only_as_it_is_written() -> None:
    """The issue on scope: subjects of one letter."""
    assert found(index_of(a="C", b="X"), "C or c, X or x?") == ["C", "X"]


@pytest.mark.parametrize(
    ("name", "text", "slice_"),
    [
        (
            "\u0623\u0633\u062a\u0631\u0627\u0644\u064a\u0627",
            "\u0645\u0627 \u0639\u0627\u0635\u0645\u0629 \u0627\u0633\u062a\u0631\u0627\u0644\u064a\u0627\u061f",
            "\u0627\u0633\u062a\u0631\u0627\u0644\u064a\u0627",
        ),
        (
            "\u05d9\u05e8\u05d5\u05e9\u05dc\u05d9\u05dd",
            "\u05d0\u05d9\u05e4\u05d4 \u05d9\u05b0\u05e8\u05d5\u05e9\u05dc\u05d9\u05dd?",
            "\u05d9\u05b0\u05e8\u05d5\u05e9\u05dc\u05d9\u05dd",
        ),
        ("\u0643\u062a\u0627\u0628", "\u0643\u0650\u062a\u064e\u0627\u0628", "\u0643\u0650\u062a\u064e\u0627\u0628"),
    ],
)
def test_right_to_left_names_are_found_with_and_without_marks(name: str, text: str, slice_: str) -> None:
    """The issue on scope: right-to-left text has sensible spans."""
    assert found(index_of(a=name), text) == [slice_]


def test_a_vowel_sign_belongs_to_its_word() -> None:
    """The issue on scope: "\u092d\u093e\u0930\u0924" is not the beginning of the longer word "\u092d\u093e\u0930\u0924\u0940"."""
    index = index_of(a="\u092d\u093e\u0930\u0924")

    assert found(index, "\u092d\u093e\u0930\u0924 \u0915\u0940") == ["\u092d\u093e\u0930\u0924"]
    assert found(index, "\u092d\u093e\u0930\u0924\u0940") == []


def test_an_alias_of_two_subjects_names_both() -> None:
    """The issue on scope: both are candidates; what is asked decides."""
    index = index_of(planet=("the planet Mercury", "Mercury"), element=("quicksilver", "Mercury"))

    assert index.find("How hot is Mercury?")[0].edit_ids == {"planet", "element"}


def test_of_overlapping_names_the_longer_counts() -> None:
    """The issue on scope: overlapping subjects."""
    assert found(index_of(a="New York City", b="City Hall Park"), "in New York City Hall Park") == ["City Hall Park"]


def test_a_document_that_repeats_a_name_takes_no_longer_than_its_length() -> None:
    """The issue on scope: bounded time for a long prompt; every pair of mentions compared would take minutes."""
    index = index_of(a="Oz", b="Oz Oz", c="the Oz")

    assert len(index.find("the Oz " * 20_000)) == 20_000


def test_ten_thousand_names_are_added_one_by_one_and_found() -> None:
    """The issue on scope: one more edit rebuilds nothing."""
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
WORDS = st.lists(
    st.sampled_from(["oz", "Oz's", "the", "\u00fcb", "ueb", "ss", "-", ".", "J.", "s", "\u6771", "\ubd80", "1", "'"]), max_size=6
)
SENTENCES = st.one_of(st.text(max_size=40), WORDS.map(" ".join), WORDS.map("".join))


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


STEPS = st.lists(st.tuples(st.sampled_from("abc"), st.lists(SENTENCES, max_size=3)), max_size=8)  # no names: discarded


@given(STEPS, SENTENCES)
def test_after_any_changes_the_index_equals_a_fresh_one(steps: list[tuple[str, list[str]]], text: str) -> None:
    """The issue on scope: it follows the ledger edit by edit and is never built anew."""
    busy, now = SubjectIndex(), dict[str, list[str]]()
    for edit_id, names in steps:
        if names:
            busy.add(names, edit_id)
            now[edit_id] = names
        else:
            busy.discard(edit_id)
            now.pop(edit_id, None)
    fresh = SubjectIndex({edit_id: keys_of(names) for edit_id, names in now.items()})

    assert vars(busy) == {**vars(fresh), "_lexicon": busy._lexicon}
    assert vars(busy._lexicon) == vars(fresh._lexicon)
    assert busy.find(text) == fresh.find(text)
    assert SubjectIndex(busy.keys()).find(text) == busy.find(text)


@given(st.lists(SENTENCES, max_size=4), SENTENCES)
def test_every_name_at_every_place_is_looked_at(names: list[str], text: str) -> None:
    """The words of a text lead to the same names as comparing each name with each place would."""
    keys = {fold(name).text.strip() for name in names} - {""}
    folded = fold(text)

    def is_border(at: int) -> bool:
        inside = 0 < at < len(folded.text) and all(c.isalnum() and ord(c) < 0x0E00 for c in folded.text[at - 1 : at + 1])
        return not inside

    expected = set()
    for key in keys:
        for start in range(len(folded.text)):
            for ending in ("", "s", "es"):
                end = start + len(key) + len(ending)
                is_plural = len(key) > 2 and key[-1].isalpha() and not is_border(start + len(key))
                is_there = folded.text.startswith(key + ending, start) and is_border(start) and is_border(end)
                if is_there and folded.is_whole(start, end) and (is_plural or not ending):
                    expected.add((*folded.borders(start, end), key))

    assert {(span.start, span.end, span.name) for span in Lexicon(keys).spans(folded)} == expected


@given(st.text(alphabet=st.characters(max_codepoint=127)))
def test_plain_text_is_folded_as_any_other(text: str) -> None:
    """The short way for what nearly every text is must not differ from the long one."""
    short, long = folding._fold_ascii(text), folding._fold_any(text, digraphs=False)

    assert short is None or (short.text, list(short.origin)) == (long.text, long.origin)


def test_a_part_of_a_shielded_name_names_nobody() -> None:
    """Issue 8, §2: an edit of a part of a protected name must not answer for the whole; in any case of letters."""
    index = SubjectIndex()
    for name in ("Coffee", "Brightwater", "Brightwater Coffee", "refund window of Brightwater", "Brightwater Coffee Tasmania"):
        index.add([name], name)
    index.shield(["Brightwater Coffee"])

    def named(text: str) -> list[str]:
        return [edit_id for mention in index.find(text) for edit_id in sorted(mention.edit_ids)]

    assert named("the refund window of brightwater coffee") == ["Brightwater Coffee"]
    assert named("Brightwater Coffee Tasmania sells Coffee") == ["Brightwater Coffee Tasmania", "Coffee"]
    assert named("The refund window of Brightwater") == ["refund window of Brightwater"]
    index.discard("Brightwater Coffee")
    assert named("the refund window of Brightwater Coffee") == []
    index.shield([])
    assert named("the refund window of Brightwater Coffee") == ["refund window of Brightwater", "Coffee"]
