"""Shown pairs: pieces of text, masks, lengths, and what reaches the screen and the page."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from src.data.collate import collate
from src.data.pairs import Demonstration, Message, PreferencePair
from src.data.pairset import TokenizedPair
from src.data.prepare import PrepareOptions, truncate
from src.data.showing.page import page_of
from src.data.showing.pieces import Piece, decoded, pieces_of, visible
from src.data.showing.rows import CUT, PROMPT, SUPERVISED, Cuts, ShownPair, cuts_of, shown
from src.data.showing.terminal import lines_of, print_pairs, tokens_of
from src.data.templates import ChatTemplate
from src.errors import UserError
from tests.unit.data_tools import Records, byte_tokenizer

BYTES = byte_tokenizer("roles")
TEMPLATE = ChatTemplate(BYTES)
UNICODE = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    [
        "é",
        "e\u0301",
        "👩\u200d👩\u200d👧",
        "שלום",
        "\u202eabc",
        "🇩🇪",
        "\ufffd",
        "漢字",
        "<|end|>",
        "\x1b[2J",
        "a\r\n\tb",
        " ",
    ]
)


def spaces_tokenizer() -> Any:
    """One whose decoder looks at the place of a token: words carry their space, the first loses it."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "ab", "▁ab"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    merges = [("▁", "a"), ("a", "b"), ("▁a", "b")]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<s>", "</s>"])
    wrapper: Any = PreTrainedTokenizerFast
    return wrapper(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


TOKENIZERS = {"bytes": BYTES, "spaces": spaces_tokenizer()}


# --- pieces -----------------------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(UNICODE, UNICODE, st.sampled_from(sorted(TOKENIZERS)))
def test_pieces_join_to_the_text(one: str, two: str, name: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer(f"{one} {two}")["input_ids"]
    pieces = pieces_of(tokenizer, ids)
    assert "".join(piece.text for piece in pieces) == decoded(tokenizer, ids)
    assert [number for piece in pieces for number in piece.ids] == ids
    if name == "bytes":
        assert "".join(piece.text for piece in pieces) == f"{one} {two}"


@settings(max_examples=80, deadline=None)
@given(st.data(), st.sampled_from(sorted(TOKENIZERS)))
def test_pieces_of_any_ids(data: st.DataObject, name: str) -> None:
    """Also of ids that are no text, as where truncation cut a character in two."""
    tokenizer = TOKENIZERS[name]
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=30))
    pieces = pieces_of(tokenizer, ids)
    assert "".join(piece.text for piece in pieces) == decoded(tokenizer, ids)
    assert [number for piece in pieces for number in piece.ids] == ids
    assert all(piece.ids for piece in pieces)


def test_bytes_of_one_character_are_one_piece() -> None:
    ids = BYTES("a🙂é")["input_ids"]
    assert [(piece.text, len(piece.ids)) for piece in pieces_of(BYTES, ids)] == [("a", 1), ("🙂", 4), ("é", 2)]


def test_every_whole_token_is_a_piece_of_its_own() -> None:
    ids = TEMPLATE.encode((Message("user", "ab"),), "c").prompt_ids
    assert [piece.text for piece in pieces_of(BYTES, ids)] == [
        "<|bos|>",
        "<|user|>",
        "a",
        "b",
        "<|end|>",
        "<|assistant|>",
    ]
    assert [piece.special for piece in pieces_of(BYTES, ids)] == [True, True, False, False, True, True]
    spaced = TOKENIZERS["spaces"]
    assert [piece.text for piece in pieces_of(spaced, spaced("ab ab a</s>")["input_ids"])] == [
        "ab",
        " ab",
        " a",
        "</s>",
    ]


def test_a_long_text_is_quick() -> None:
    ids = BYTES("word 🙂 " * 500)["input_ids"]
    calls = 0

    class Counting:
        def __getattr__(self, name: str) -> Any:
            return getattr(BYTES, name)

        def decode(self, ids: Any, **options: Any) -> str:
            nonlocal calls
            calls += len(ids)
            return str(BYTES.decode(ids, **options))

    pieces_of(Counting(), ids)  # type: ignore[arg-type]
    assert calls < 40 * len(ids)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\nb", "a↵\nb"),
        ("\t\r", "⇥␍"),
        ("\x1b[2J\x00\x7f\x9b", "␛[2J␀␡⟨U+009B⟩"),
        ("\u202eabc\u2066", "⟨U+202E⟩abc⟨U+2066⟩"),
        ("\u200b\u2028\ue000", "⟨U+200B⟩⟨U+2028⟩⟨U+E000⟩"),
        ("👩\u200d👧 שלום é e\u0301 漢", "👩\u200d👧 שלום é e\u0301 漢"),
    ],
)
def test_what_would_steer_a_screen_is_spelt_out(text: str, expected: str) -> None:
    assert visible(text) == expected


# --- rows -------------------------------------------------------------------------------------------------------------


def tokenized(prompt: str, chosen: str, rejected: str, **changes: Any) -> TokenizedPair:
    prompt_ids, (first, second) = TEMPLATE.encode_batch([((Message("user", prompt),), [chosen, rejected])])[0]  # type: ignore[misc]
    fields: dict[str, Any] = dict.fromkeys(("chosen_score", "rejected_score")) | {"flipped": False}
    return TokenizedPair(0, "p", prompt_ids, first, second, **(fields | changes))


@settings(max_examples=60, deadline=None)
@given(UNICODE, UNICODE, UNICODE)
def test_masks_and_lengths_are_those_of_the_batch(prompt: str, chosen: str, rejected: str) -> None:
    pair = tokenized(prompt, chosen, rejected, chosen_score=2.5)
    batch, found = collate([pair]), shown(pair, BYTES)
    for row, (side, ids) in enumerate(zip(found.sides, (pair.chosen_ids, pair.rejected_ids), strict=True)):
        assert [span.kind for span in side.spans] == [PROMPT, SUPERVISED]
        mask = [span.kind == SUPERVISED for span in side.spans for piece in span.pieces for _ in piece.ids]
        assert mask == batch.layout.supervised[row].tolist()[: len(mask)]
        assert side.counted == len(ids) == side.tokens(SUPERVISED)
        texts = ["".join(piece.text for piece in span.pieces) for span in side.spans]
        assert "".join(texts) == decoded(BYTES, pair.prompt_ids + ids)
    assert [side.score for side in found.sides] == [2.5, None]


@settings(max_examples=60, deadline=None)
@given(UNICODE, UNICODE, UNICODE, st.integers(3, 30), st.integers(2, 20), st.booleans())
def test_what_was_cut(prompt: str, chosen: str, rejected: str, room: int, width: int, swapped: bool) -> None:
    record = PreferencePair("p", (Message("user", prompt),), f"{chosen}x", f"{rejected}y")
    whole, responses = TEMPLATE.encode_batch([(record.prompt, [record.chosen, record.rejected])])[0]  # type: ignore[misc]
    if swapped:
        responses = responses[::-1]
    fitted = truncate(whole, responses, PrepareOptions(width + room, width), BYTES.bos_token_id)
    assert not isinstance(fitted, str)
    pair = TokenizedPair(0, "p", fitted[0], fitted[1][0], fitted[1][1], None, None, swapped)
    cuts = cuts_of([pair], Records((record,)), TEMPLATE)["p"]
    found = shown(pair, BYTES, cuts)
    for side, response, ids in zip(found.sides, responses, (pair.chosen_ids, pair.rejected_ids), strict=True):
        shown_ids = [number for span in side.spans for piece in span.pieces for number in piece.ids]
        assert shown_ids == whole + response
        kept = [n for span in side.spans if span.kind != CUT for piece in span.pieces for n in piece.ids]
        assert kept == pair.prompt_ids + ids
        assert side.tokens(CUT) == len(whole) + len(response) - len(kept)


def test_cuts_of_demonstrations_and_of_other_data() -> None:
    record = PreferencePair("p", (Message("user", "abcdef"),), "ghi", "j")
    prompt, (response,) = TEMPLATE.encode_batch([(record.prompt, ["ghi"])])[0]  # type: ignore[misc]
    pair = TokenizedPair(0, "p", prompt[:1] + prompt[4:], response[:2], [], None, None, False)
    found = shown(pair, BYTES, cuts_of([pair], Records((record,)), TEMPLATE)["p"])
    assert [(span.kind, span.tokens) for span in found.sides[0].spans] == [
        (PROMPT, 1),
        (CUT, 3),
        (PROMPT, len(prompt) - 4),
        (SUPERVISED, 2),
        (CUT, 2),
    ]
    assert isinstance(next(iter(Records((record,)).demonstrations())), Demonstration)
    with pytest.raises(UserError, match="'p' is no cut of what its record gives now"):
        shown(pair, BYTES, Cuts(prompt[::-1], [response]))


# --- screen and page --------------------------------------------------------------------------------------------------

NASTY = "<script>alert('x')</script>&amp;\"<b>\x1b[31m\u202e[bold]hi[/bold] <|end|>"


def nasty() -> ShownPair:
    found = shown(tokenized(NASTY, f"{NASTY}🙂", "no\nlines", flipped=True, rejected_score=-1.0), BYTES)
    return ShownPair(NASTY, 7, found.flipped, found.sides)


class Page(HTMLParser):
    """Tags of a page, and the texts of its tokens by class."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.tokens: list[tuple[str, str]] = []
        self._inside: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        kind = dict(attrs).get("class") or ""
        if tag == "span" and kind.startswith("t "):
            self._inside = kind
            self.tokens.append((kind, ""))

    def handle_endtag(self, tag: str) -> None:
        if tag == "span":
            self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside is not None:
            self.tokens[-1] = (self._inside, self.tokens[-1][1] + data)


@pytest.mark.parametrize("ids", [False, True])
def test_page_is_escaped_and_alone(ids: bool) -> None:
    pair = nasty()
    text = page_of([pair], ["a <script>title</script>", "second & line"], ids=ids)
    page = Page(text)
    assert page.tags.isdisjoint({"script", "b", "link", "img", "iframe"})
    assert page.attributes.isdisjoint({"src", "href", "onclick"})
    assert not re.search(r"https?://|url\(|@import", text)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert 'name="viewport"' in text
    assert "FLIPPED" in text.upper()
    legend = 4
    expected = [visible(p.text).removesuffix("\n") for side in pair.sides for span in side.spans for p in span.pieces]
    assert [shown_text for _, shown_text in page.tokens[legend:]] == expected
    kinds = [kind.split()[1] for kind, _ in page.tokens[legend:]]
    assert kinds == [span.kind for side in pair.sides for span in side.spans for _ in span.pieces]
    specials = [word for kind, word in page.tokens[legend:] if kind.endswith(" special")]
    assert specials == ["<|bos|>", "<|user|>", "<|end|>", "<|assistant|>", "<|end|>"] * 2
    assert (f"<sub>{{{BYTES.bos_token_id}}}</sub>" in text) == ids


def printed(pair: ShownPair, *, colour: bool, ids: bool = False) -> str:
    out = io.StringIO()
    print_pairs([pair], ["heading\x1b[2J"], Console(file=out, force_terminal=colour, width=80), ids=ids)
    return out.getvalue()


def test_terminal_without_colour() -> None:
    text = printed(nasty(), colour=False)
    assert "\x1b" not in text
    assert "FLIPPED" in text
    assert "rejected: score -1, n = 9" in text
    assert "⟦n│o│↵\n│l│i│n│e│s│<|end|>⟧" in text
    assert "🙂{4 tokens}" in text
    assert "[│b│o│l│d│]" in text
    assert f"<|end|>{{{BYTES.eos_token_id}}}⟧" in printed(nasty(), colour=False, ids=True)


def test_terminal_with_colour() -> None:
    text = printed(nasty(), colour=True)
    assert "\x1b[32m" in text
    assert "\x1b[36m" in text
    assert "\x1b[2J" not in text
    assert "\x1b[31mhi" not in text


def test_spans_are_told_apart_without_colour() -> None:
    pieces = [Piece("a", (1,)), Piece("b", (2,))]
    pair = shown(tokenized("p", "c", "r"), BYTES)
    side = pair.sides[0]
    kinds = (PROMPT, CUT, PROMPT, SUPERVISED, CUT)
    made = type(side)("chosen", [type(side.spans[0])(kind, pieces) for kind in kinds], 2, None)
    assert tokens_of(made).plain == "a│b✂a│b✂a│b⟦a│b⟧✂a│b✂"
    assert "n = 2 (4 tokens of prompt, 4 cut)" in lines_of(ShownPair("p", 0, False, [made]))[1].plain
