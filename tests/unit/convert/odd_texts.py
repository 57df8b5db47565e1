"""Texts on which tokenizers fall apart, by what is odd about them."""

ODD_TEXTS = {
    "empty": [""],
    "only spaces": [" ", "   ", "\t", "\n\n", "\u00a0", "\u3000", "\u200b"],
    "leading, trailing, double spaces": [" a b", "a b ", "  a   b  ", "a  b", "\u00a0a\u00a0"],
    "tabs and line ends": ["a\tb", "a\nb", "a\r\nb", "\ta\t", "a\n\n\nb", "a\u2028b\u2029c", "a\x0bb\x0cc", "a\x85"],
    "unusual spaces": ["a\u00a0b", "a\u2003b\u2009c\u202fd", "a\u3000b", "a\u1680b", "a\u205fb"],
    "zero width": ["a\u200bb", "a\u200cb\u200dc", "\ufeffa", "a\ufeffb", "a\u2060b", "\u200ea\u200f", "a\u061cb"],
    "control characters": ["a\x00b", "\x01a", "a\x7fb", "a\x1bb", "\x08", "a\x9fb"],
    "soft hyphen and dashes": ["co\u00adop", "a\u2010b\u2011c\u2012d\u2013e\u2014f", "\u2212 1"],
    "quotes and ellipsis": ["\u201ca\u201d \u2018b\u2019 \u00abc\u00bb", "a\u2026", "a...b", "\u2033 \u2034"],
    "ligatures": ["\ufb01sh \ufb02ow a\ufb03x \ufb06", "\u0133 \u01c6 \u0149"],
    "full width": [
        "\uff21\uff22\uff23 \uff11\uff12",
        "\uff5e \uff0c \uff01",
        "\uff3b\uff23\uff2c\uff33\uff3d a\uff3bUNK]",
        "\uffe5\uffe1",
    ],
    "half-width kana": ["\uff76\uff80\uff76\uff85", "\uff76\uff9e\uff8a\uff9f", "\uff73\uff9e"],
    "kana": ["\u304b\u306a \u30ab\u30ca", "\u304b\u3099 \u306f\u309a", "\u30a6\u3099", "\u309d\u3099"],
    "Hangul": ["\ud55c\uae00", "\u1112\u1161\u11ab\u1100\u1173\u11af", "\u314e\u314f\u3134", "\uac10\uc0ac\u3133"],
    "Chinese": ["\u4e2d\u6587\u3002", "\uf900 \ufa0c", "\u2f00\u2f1f", "\u3231 \u337b \u32ff"],
    "composed and decomposed Latin": ["\u00e9 e\u0301", "\u00c5 A\u030a \u212b", "n\u0303o", "i\u0307"],
    "Vietnamese": [
        "Vi\u1ec7t",
        "Vie\u0323\u0302t",
        "Vie\u0302\u0323t",
        "\u01b0\u01a1\u0300",
        "\u00ea\u0301",
        "u\u031bo\u031b\u0300",
    ],
    "Greek with marks": ["\u1f04\u03bd\u03b8\u03c1\u03c9\u03c0\u03bf\u03c2", "\u03b1\u0313\u0301", "\u03ac \u1f71"],
    "Cyrillic with marks": ["\u0439 \u0438\u0306", "\u0451 \u0435\u0308"],
    "Arabic": ["\u0627\u0644\u0639\u0631\u0628\u064a\u0629", "\u0622 \u0627\u0653", "\u0644\u0627"],
    "Arabic with marks as typed": ["\u0643\u0651\u064e\u0631", "\u0643\u064e\u0651", "\u0634\u064f\u0631\u0652"],
    "Arabic presentation forms": ["\ufedf\ufe8e", "\ufefb", "\ufdfa", "\ufc60"],
    "Hebrew with points as typed": ["\u05d1\u05bc\u05b0", "\u05d1\u05b0\u05bc", "\u05e9\u05c1\u05bc\u05b8"],
    "Indic": ["\u0928\u092e\u0938\u094d\u0924\u0947", "\u0958 \u0915\u093c", "\u0bcb \u0bc6\u0bbe", "\u0d4b"],
    "Thai, Lao, Tibetan": ["\u0e17\u0e35\u0e48 \u0e19\u0e49\u0e33", "\u0ea1\u0eb7\u0ec9", "\u0f56\u0f7c\u0f51\u0f0b"],
    "emoji": [
        "\U0001f600",
        "\U0001f469\u200d\U0001f52c",
        "\U0001f1e9\U0001f1ea",
        "\U0001f44d\U0001f3fd",
        "\u2764\ufe0f",
    ],
    "fractions and numbers": ["\u00bd \u2153", "\u2460 \u2474 \u2488", "x\u00b2 H\u2082O", "\u2167"],
    "symbols": ["\u2122 \u00ae \u2120", "\u2103 \u212a \u03a9 \u2126", "\u221e \u2260 \u2245", "\u3380 \u33a1"],
    "mathematical letters": ["\U0001d400\U0001d4d0\U0001d538", "\U0001d7d8\U0001d7ec"],
    "word boundary sign": ["a\u2581b", "\u2581a", "a\u2581", "\u2581\u2581", " \u2581 "],
    "outside the first plane": ["\U0002000b\U00020089", "\U00010330\U00010331", "\U0001d11e"],
    "mark behind a compatibility character": ["\u0133\u0301", "\u00a0\u0301", "\u00a0\u200d", "\ufb4c\u05ba"],
    "private use and noncharacters": ["\ue000 a", "\ufffd", "\uffff", "\U0010ffff"],
    "unseen characters in a row": ["\u13a0\u13a1\u13a2 a\u13a3", "\u1400\u1401"],
    "long word": ["pneumonoultramicroscopicsilicovolcanoconiosis" * 4, "https://example.org/a?b=c&d=%20" * 5],
    "long line": ["the people of the United States " * 40],
}
SPECIAL_NAMES = ["[CLS]", "[SEP] a", "a [PAD] b", "[UNK]", "a[MASK]b", "[mask] [Mask]", "[ MASK ]", "[[MASK]]"]

ALL_TEXTS = [
    text.replace("\x00", "") for kind, texts in ODD_TEXTS.items() if not kind.startswith("unseen") for text in texts
]
"""For training a vocabulary; SentencePiece cuts a training sentence at a NUL."""
