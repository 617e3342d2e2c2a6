"""A `tokenizer.json`: every string comes back exactly, or the file is refused."""

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from datamodules import HuggingFaceTokenizer
from helpers.texts import LINES, assert_every_string_comes_back, assert_restored_from_its_bytes, byte_level
from llp.errors import SettingError


def byte_fallback(metaspace=False):
    """As LLaMA's: a space is U+2581, one comes before the text, unknown characters are bytes."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    merges = [("\u2581", "t"), ("h", "e"), ("\u2581t", "he"), ("a", "t"), ("c", "at")]
    characters = sorted({character for line in LINES for character in line} - {"\n", " "})
    pieces += ["\u2581", *characters, *(a + b for a, b in merges)]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def changing_text():
    tokenizer = byte_level(LINES, add_prefix_space=True)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.NFKC()])
    tokenizer.model.dropout = 0.5
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=7)
    tokenizer.add_special_tokens([AddedToken("[PAD]", lstrip=True, rstrip=True)])
    tokenizer.add_tokens([AddedToken("looked", rstrip=True, lstrip=True), AddedToken("</s>", single_word=True)])
    return tokenizer


MADE = {
    "byte level": lambda: byte_level(LINES),
    "byte level with all that changes text": changing_text,
    "byte fallback": byte_fallback,
    "byte fallback, metaspace": lambda: byte_fallback(metaspace=True),
}


def given(tokenizer, folder, **settings):
    tokenizer.save(str(folder / "tokenizer.json"))
    return HuggingFaceTokenizer(str(folder / "tokenizer.json"), **settings)


@pytest.fixture(scope="module", params=MADE)
def both(request, tmp_path_factory):
    theirs = MADE[request.param]()
    return theirs, given(theirs, tmp_path_factory.mktemp("tokenizer"))


def test_every_string_comes_back(both):
    assert_every_string_comes_back(both[1])


def test_it_is_their_tokenizer(both):
    theirs, tokenizer = both
    theirs.no_truncation()
    theirs.no_padding()
    theirs.model.dropout = None
    ours = tokenizer.encode([" the cat sat on a mat"]).tolist()
    whole = theirs.encode(" the cat sat on a mat", add_special_tokens=False).ids
    assert ours[2:] == whole[-len(ours) + 2 :]  # but for the space that they may put before it
    assert tokenizer.vocab_size == theirs.get_vocab_size(with_added_tokens=True)


def test_it_is_restored_from_its_bytes_alone(both):
    _, tokenizer = both
    restored = HuggingFaceTokenizer.restored(tokenizer.serialized(), tokenizer.settings())
    assert_restored_from_its_bytes(tokenizer, restored)
    assert restored.settings() == tokenizer.settings()
    # It is a tokenizer.json itself, which puts the start token before a text.
    library = Tokenizer.from_str(tokenizer.serialized().decode())
    assert library.encode("a b").ids == [tokenizer.start_token, *tokenizer.encode(["a b"])]


def lowercased():
    tokenizer = byte_level(LINES)
    tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer


def unknown():
    tokenizer = Tokenizer(models.WordLevel({"<s>": 0, "<unk>": 1, "the": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


@pytest.mark.parametrize("make", [lowercased, unknown])
def test_a_tokenizer_that_loses_text_is_refused(tmp_path, make):
    with pytest.raises(SettingError, match=r"init_args\.file = .*\.json: it does not return every string, for example"):
        given(make(), tmp_path)


def test_a_text_that_something_is_lost_of_is_refused_when_it_is_met(tmp_path):
    tokenizer = byte_level(LINES)
    tokenizer.normalizer = normalizers.Replace("wombat", "koala")  # no hard string tells of this
    tokenizer = given(tokenizer, tmp_path)
    assert tokenizer.decode(tokenizer.encode(LINES)) == "".join(LINES)
    with pytest.raises(SettingError, match=r"does not return every string, for example 'a cat\\na wombat'"):
        tokenizer.encode(["a cat\n", "a wombat"])


@pytest.mark.parametrize(
    ("special_tokens", "setting", "start"),
    [
        (("<pad>", "<bos>", "</s>"), None, "<bos>"),
        (("<unk>", "<|endoftext|>"), None, "<|endoftext|>"),
        (("<s>", "<mine>"), "<mine>", "<mine>"),
        (("<mine>",), None, None),
    ],
)
def test_which_token_begins_a_document(tmp_path, special_tokens, setting, start):
    theirs = byte_level(LINES, special_tokens=special_tokens)
    if start is None:
        names = ", ".join(special_tokens) or "none"
        with pytest.raises(SettingError, match=rf"start_token = {setting}: .* \(special tokens: {names}\)"):
            given(theirs, tmp_path, start_token=setting)
    else:
        assert given(theirs, tmp_path, start_token=setting).start_token == theirs.token_to_id(start)


def test_the_token_that_the_file_puts_before_a_text_begins_a_document(tmp_path):
    theirs = byte_level(LINES, special_tokens=("<s>", "<mine>", "<end>"))
    template = {"special_tokens": [("<mine>", 1), ("<end>", 2)]}
    theirs.post_processor = processors.TemplateProcessing(single="<mine> $A <end>", **template)
    tokenizer = given(theirs, tmp_path)
    assert tokenizer.start_token == 1
    assert 2 not in tokenizer.encode(["the cat <end>\n"])
    theirs.post_processor = processors.TemplateProcessing(single="$A <end>", **template)
    assert given(theirs, tmp_path).start_token == 0


@pytest.mark.parametrize("content", [None, "{", "{}"])
def test_a_file_that_is_none(tmp_path, content):
    file = tmp_path / "tokenizer.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SettingError, match=r"init_args\.file = .*tokenizer\.json: can't be read as a tokenizer\.json"):
        HuggingFaceTokenizer(str(file))
