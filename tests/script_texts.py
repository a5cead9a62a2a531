"""2,000 texts in ten scripts and of code, always the same: what tokenizers are compared on."""

import itertools
import random

SENTENCES = (
    "The quick brown fox jumps over the lazy dog, naïve façade",
    "Съешь же ещё этих мягких французских булок да выпей чаю",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία σήμερα το πρωί",
    "نص حكيم له سر قاطع وذو شأن عظيم",
    "דג סקרן שט בים מאוכזב ולפתע מצא חברה",
    "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा",
    "เป็นมนุษย์ สุดประเสริฐ เลิศคุณค่า กว่าบรรดา ฝูงสัตว์",
    "我能吞下玻璃 而不伤身体 今天 天气很好",
    "다람쥐 헌 쳇바퀴에 타고파 오늘",
    "いろはにほへと ちりぬるを ひらがな カタカナ",
)
"""Of Latin, Cyrillic, Greek, Arabic, Hebrew, Devanagari, Thai, Han, Hangul and Kana."""

CODE = (
    "def f(x: int) -> int:\n    return x ** 2",
    "for (int i = 0; i < n; i++) { sum += a[i]; }",
    'if a < b {\n\tprintln!("{}", a);\n}',
    "SELECT name, COUNT(*) FROM t WHERE x >= 10 GROUP BY name;",
    "const f = (x) => ({ ...x, y: x?.z ?? 0 });",
    "  # two  spaces\n\n\nclass A(B):\n        pass",
    "x = {'a': [1, 2, 3], \"b\": None}  # ~^\\`",
)

ODD = (
    "",
    " ",
    "  two  spaces ",
    "line\nbreak\ttab",
    "½ ﬁ ü ² 🙂 👨‍👩‍👧",
    "a</s>b",
    "a </s> b</s>c",
    "sooooooo yummy aaaaaaaaa",
    "<extra_id_0> and <extra_id_9> x",
    "a <mask> b <s>c <pad>",
    "nul\x00byte",
    "▁ \u2581 word",
    "e\u0301 \u00e9 \u200b a \u0301b",
    "a\x1cb #\x1c",
    "\u3000a\u3000 b\u00a0c ",
    "a\n b\n  c",
    "a < b {",
    "x{y < z}",
)


def texts(count: int = 2000) -> list[str]:
    """Odd texts, lines of code, and words of the scripts, mixed now and then."""
    rng = random.Random(0)
    words = [sentence.split() for sentence in SENTENCES]
    joins = [*[" "] * 12, "  ", "\n", "\t", ", ", ". "]
    found = [*ODD]
    for number in itertools.count():
        if len(found) >= count:
            return found
        own = rng.choices(CODE, k=rng.randint(1, 3)) if number % 4 == 3 else []
        for _ in range(rng.randint(1, 12) if not own else 0):
            own.append(rng.choice(words[number % 10] if rng.random() < 0.85 else rng.choice(words)))
        found.append("".join(one + rng.choice(joins) for one in own)[: rng.choice((-1, None))])
    raise AssertionError
