"""Captions in many scripts, and small tokenizers of every kind in which transformers publishes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CAPTIONS = {
    "en": "An orange cat is napping on the sofa while a small dog watches it through the window.",
    "de": "Eine orangefarbene Katze schläft auf dem grünen Sofa, draußen schneit es.",
    "vi": "Một con mèo màu cam đang ngủ trên ghế sô pha.",
    "el": "Μια πορτοκαλί γάτα κοιμάται στον καναπέ",
    "ru": "Рыжая кошка дремлет на диване рядом с красным мячом.",
    "he": "חָתוּל כתום מנמנם על הספה ליד הכדור האדום",
    "ar": "قِطّة برتقالية تنام على الأريكة بجانب الكرة الحمراء",
    "hi": "एक नारंगी बिल्ली सोफे पर सो रही है और कुत्ता क्षत्रिय को देख रहा है।",
    "th": "แมวสีส้มกำลังงีบหลับอยู่บนโซฟา",
    "zh": "一只橘猫在沙发上打盹，一只小狗在雪地里追着红色的球。",
    "ja": "オレンジ色の猫がソファーで昼寝をしている。",
    "ko": "주황색 고양이가 소파에서 낮잠을 자고 있다.",
    "emoji": "🐱💤🛋️ 👨‍👩‍👧 ❤️ 🇩🇪🇫🇷 👍🏽",
}
"""Language -> a caption; "emoji" are such that several code points are read as one character."""
ODD = {
    "rare characters": "𠮷𡈽𪚥 ꦱꦧ ᚠᚢᚦ",
    "decomposed": "e\u0301\u0323 A\u030a \u1100\u1161\u11a8 \u304b\u3099 \u0928\u093c",
    "zero width": "\ufeffa\u200bcat\u200d on\u2060 a\u00ad sofa\u180e",
    "bidi controls": "a \u202ecat\u202c \u2066on\u2069 \u200fa\u061c sofa",
    "unassigned": "a cat \u0378\U000e0080\ufdd0\U0010ffff on a sofa",
    "private use": "a cat \ue000\uf8ff\U000f0000 on a sofa",
    "controls": "a\x00 cat\x01 on\x1b[31m a\x85 sofa\u2028",
    "accents without end": "a" + "\u0301\u0308" * 40,
}
"""Kind of odd code points -> a caption with them."""
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
LETTERS = [*dict.fromkeys("▁" + "".join([*CAPTIONS.values(), *CAPTIONS.values()]).replace(" ", "") + "abcdefghijk")]


def captions(count: int) -> Iterator[str]:
    """Different captions, of every script in turn: parts of ``CAPTIONS`` of different length, some repeated."""
    texts = [*CAPTIONS.values()]
    for number in range(count):
        text, turn = texts[number % len(texts)], number // len(texts)
        place = turn % len(text)
        yield f"{text[place:]} {turn} {text[:place]}" * (1 + turn % 3)


def _byte_pairs() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([CAPTIONS["en"]], trainer)
    return tokenizer


def _gemma() -> Tokenizer:
    """Byte pairs of characters as in Gemma and SigLIP 2: what is not in the vocabulary becomes bytes."""
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *BYTES, *LETTERS[::2]])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>", fuse_unk=True))  # type: ignore[call-arg]
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def _xlm_roberta() -> Tokenizer:
    """SentencePiece's unigrams as in XLM-R and in sentence encoders of many languages."""
    pieces = [(token, 0.0) for token in SPECIAL] + [(token, -3.0 - number / 99) for number, token in enumerate(LETTERS)]
    tokenizer = Tokenizer(models.Unigram([*pieces, ("橘猫", -2.0), ("▁cat", -2.0)], SPECIAL.index("<unk>"), False))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer


def _chinese_bert() -> Tokenizer:
    """WordPiece as in bert-base-chinese and Chinese-CLIP: each Chinese character is a word."""
    pieces = [*SPECIAL, *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>"))  # type: ignore[call-arg]
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "byte pairs": _byte_pairs,
    "gemma": _gemma,
    "xlm-roberta": _xlm_roberta,
    "chinese-bert": _chinese_bert,
}


def hf_tokenizer(kind: str, context_length: int) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer of ``TOKENIZERS`` as transformers saves it: <s> tokens </s>."""
    tokenizer = TOKENIZERS[kind]()
    ends = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=ends)
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=context_length, cls_token="<s>", sep_token="</s>", **special
    )
