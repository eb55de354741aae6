"""How often our IFEval verdicts are lm-evaluation-harness' own: `python bench/ifeval.py PYTHON_WITH_IT [ANSWERS…]`.

Asked of both: real texts that answer something else, texts made to meet each request, the same with a fault, article 1
of the Universal Declaration of Human Rights in 27 languages, and the answers of evaluations (their evaluation/*.json).
NLTK's trained sentence model has to be downloaded; where it can't be, NLTK's algorithm is trained on the texts here.
"""

import collections
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from toolbox.evaluation.ifeval import judged
from toolbox.evaluation.instructions import readings
from toolbox.suites.ifeval import Request, read

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
HARNESS = """
import json, sys
import nltk
from nltk.tokenize.punkt import PunktSentenceTokenizer, PunktTrainer
texts = json.load(open(sys.argv[1]))
try:
    nltk.data.find("tokenizers/punkt_tab")
except LookupError:
    trained = PunktSentenceTokenizer(PunktTrainer("\\n\\n".join(texts["english"])).get_params())
    nltk.download = nltk.data.load = lambda *a, **k: trained
    nltk.tokenize._get_punkt_tokenizer = lambda language="english": trained
from langdetect import DetectorFactory
DetectorFactory.seed = 0
from lm_eval.tasks.ifeval import utils
verdicts = []
for row in texts["pairs"]:
    known = {key: row[key] for key in ("key", "prompt", "instruction_id_list", "kwargs")}
    example = utils.InputExample(**known)
    verdicts.append([
        utils.test_instruction_following_strict(example, row["said"]).follow_instruction_list,
        utils.test_instruction_following_loose(example, row["said"]).follow_instruction_list,
    ])
json.dump(verdicts, sys.stdout)
"""
ARTICLE_1 = {
    "en": "All human beings are born free and equal in dignity and rights. They are endowed with reason.",
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen begabt.",
    "fr": "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison.",
    "es": "Todos los seres humanos nacen libres e iguales en dignidad y derechos, dotados de razón y conciencia.",
    "it": "Tutti gli esseri umani nascono liberi ed eguali in dignità e diritti.",
    "pt": "Todos os seres humanos nascem livres e iguais em dignidade e em direitos.",
    "fi": "Kaikki ihmiset syntyvät vapaina ja tasavertaisina arvoltaan ja oikeuksiltaan. Heille on annettu järki.",
    "vi": "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền.",
    "sw": "Watu wote wamezaliwa huru, hadhi na haki zao ni sawa. Wote wamejaliwa akili na dhamiri.",
    "ru": "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены разумом и совестью.",
    "bg": "Всички хора се раждат свободни и равни по достойнство и права. Те са надарени с разум и съвест.",
    "ar": "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق. وقد وهبوا عقلاً وضميراً.",
    "fa": "تمام افراد بشر آزاد به دنیا می‌آیند و از لحاظ حیثیت و حقوق با هم برابرند. همه دارای عقل و وجدان هستند.",
    "ur": "تمام انسان آزاد اور حقوق و عزت کے اعتبار سے برابر پیدا ہوئے ہیں۔ انہیں ضمیر اور عقل ودیعت ہوئی ہے۔",
    "hi": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।",
    "mr": "सर्व मानवी व्यक्ती जन्मतः स्वतंत्र आहेत व त्यांना समान प्रतिष्ठा व समान अधिकार आहेत.",
    "ne": "सबै व्यक्तिहरू जन्मजात स्वतन्त्र हुन् ती सबैको समान अधिकार र महत्व छ।",
    "bn": "সমস্ত মানুষ স্বাধীনভাবে সমান মর্যাদা এবং অধিকার নিয়ে জন্মগ্রহণ করে।",
    "pa": "ਸਾਰਾ ਮਨੁੱਖੀ ਪਰਿਵਾਰ ਆਪਣੀ ਮਹਿਮਾ, ਸ਼ਾਨ ਅਤੇ ਹੱਕਾਂ ਦੇ ਪੱਖੋਂ ਜਨਮ ਤੋਂ ਹੀ ਆਜ਼ਾਦ ਹੈ।",
    "gu": "પ્રતિષ્ઠા અને અધિકારોની દૃષ્ટિએ સર્વ માનવો જન્મથી સ્વતંત્ર અને સમાન હોય છે.",
    "ta": "மனிதப் பிறிவியினர் சகலரும் சுதந்திரமாகவே பிறக்கின்றனர்; அவர்கள் மதிப்பிலும், உரிமைகளிலும் சமமானவர்கள்.",
    "te": "ప్రతిపత్తిస్వత్వముల విషయమున మానవులెల్లరును జన్మతః స్వతంత్రులును సమానులును నగుదురు.",
    "kn": "ಎಲ್ಲಾ ಮಾನವರೂ ಸ್ವತಂತ್ರರಾಗಿಯೇ ಜನಿಸಿದ್ದಾರೆ. ಹಾಗೂ ಘನತೆ ಮತ್ತು ಹಕ್ಕುಗಳಲ್ಲಿ ಸಮಾನರಾಗಿದ್ದಾರೆ.",
    "th": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ ต่างมีเหตุผลและมโนธรรม",
    "ko": "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
    "ja": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "zh": "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心。",
}


def main(python: str, *answers: str) -> None:
    requests, draw = read(SHARED / "eval" / "ifeval_input.jsonl"), random.Random(0)
    texts = english()
    pairs = [*made(requests, texts, draw), *said(requests, answers)]
    theirs = harness(python, pairs, texts)
    ours = [(judged(row, [text]), judged(row, readings(text))) for _sort, row, text in pairs]
    same: dict[str, collections.Counter[bool]] = collections.defaultdict(collections.Counter)
    met: collections.Counter[str] = collections.Counter()
    for (sort, row, text), our, their in zip(pairs, ours, theirs, strict=True):
        for level, mine, other in zip(("strict", "loose"), our, their, strict=True):
            for name, one, two in zip(row.instruction_id_list, mine, other, strict=True):
                for key in ("all", sort, name):
                    same[key][one == two] += 1
                met[name] += two
                if one != two and level == "strict":
                    print(
                        "differs:",
                        sort,
                        name,
                        dict(row.instructions()[row.instruction_id_list.index(name)][1]),
                        one,
                        repr(text[:160]),
                    )
    for key, counts in same.items():
        print(f"{key:45} {counts[True]:6} of {counts.total():6} verdicts agree; {met.get(key, '-')} are yes")


def english() -> list[str]:
    """Real answers and pages in English, at least a few sentences each."""
    rows = json.loads((SHARED / "instruct" / "alpaca_en_demo.json").read_text())
    pages = (json.loads(line)["text"] for line in (SHARED / "instruct" / "c4_demo.jsonl").open())
    return [text for text in (*(row["output"] for row in rows), *pages) if len(text) > 200]


def made(requests: list[Request], texts: list[str], draw: random.Random) -> Iterator[tuple[str, Request, str]]:
    """(sort, request, text): real ones, one that was made to meet the request, and that with a fault."""
    for row in requests:
        for _turn in range(3):
            yield "real", row, draw.choice(texts)
        obeying = draw.choice(texts)[:3000]
        for name, given in sorted(row.instructions(), key=lambda each: LAST.index(each[0]) if each[0] in LAST else -1):
            obeying = OBEY[name](obeying, given) if name in OBEY else obeying
        yield "made", row, obeying
        lines = obeying.split("\n")
        for fault in (
            lines[1:],
            lines[:-1],
            [obeying.replace(draw.choice("aeist.*-"), "")],
            [f"Sure, here:\n\n{obeying}"],
        ):
            yield "faulty", row, "\n".join(fault)
        if "language:response_language" in row.instruction_id_list:
            for text in ARTICLE_1.values():
                yield "languages", row, text


LAST = ("change_case:english_capital", "change_case:english_lowercase", "punctuation:no_comma",
        "detectable_content:postscript", "combination:two_responses", "startend:end_checker",
        "combination:repeat_prompt", "detectable_format:json_format", "startend:quotation")  # fmt: skip


def _first_word(text: str, given: dict[str, Any]) -> str:
    parts = [part for part in text.split("\n\n") if part.strip()]
    parts = (parts * given["num_paragraphs"])[: given["num_paragraphs"]]
    parts[given["nth_paragraph"] - 1] = f"{given['first_word']} {parts[given['nth_paragraph'] - 1]}"
    return "\n\n".join(parts)


def _sentences(text: str, given: dict[str, Any]) -> str:
    wanted = int(given["num_sentences"])
    count = wanted - 1 if given["relation"] == "less than" else wanted
    pieces = [piece.strip() for piece in text.replace("\n", " ").split(". ") if piece.strip()]
    return ". ".join((pieces * wanted)[:count]) + "."


def _words(text: str, given: dict[str, Any]) -> str:
    words = text.split(" ") * (1 + int(given["num_words"]) // len(text.split(" ")))
    count = int(given["num_words"])
    return " ".join(words[: count * 2 // 3 if given["relation"] == "less than" else count])


def _again(word: str, relation: str, count: float) -> str:
    return "" if relation == "less than" else " " + " ".join([word] * int(count))


OBEY = {
    "length_constraints:number_sentences": _sentences,
    "length_constraints:number_words": _words,
    "length_constraints:nth_paragraph_first_word": _first_word,
    "length_constraints:number_paragraphs": lambda text, given: "\n***\n".join([text[:300]] * given["num_paragraphs"]),
    "keywords:existence": lambda text, given: text + " " + " ".join(given["keywords"]),
    "keywords:frequency": lambda text, given: text + _again(given["keyword"], given["relation"], given["frequency"]),
    "keywords:letter_frequency": lambda text, given: (
        text.replace(given["letter"], "") + _again(given["letter"], given["let_relation"], given["let_frequency"])
    ),
    "change_case:capital_word_frequency": lambda text, given: (
        text.lower() + _again("VERY", given["capital_relation"], given["capital_frequency"])
    ),
    "detectable_content:number_placeholders": lambda text, given: text + " [name]" * given["num_placeholders"],
    "detectable_content:postscript": lambda text, given: f"{text}\n\n{given['postscript_marker']} More of it",
    "detectable_format:number_bullet_lists": lambda text, given: text + "\n* A point" * given["num_bullets"],
    "detectable_format:constrained_response": lambda text, given: "My answer is yes.",
    "detectable_format:number_highlighted_sections": lambda text, given: text + " *so* and" * given["num_highlights"],
    "detectable_format:multiple_sections": lambda text, given: "\n".join(
        f"{given['section_spliter']} {number}\n{text[:200]}" for number in range(1, given["num_sections"] + 1)
    ),
    "detectable_format:title": lambda text, given: f"<<A title>>\n\n{text}",
    "detectable_format:json_format": lambda text, given: f"```json\n{json.dumps({'text': text})}\n```",
    "combination:two_responses": lambda text, given: f"{text}\n******\n{text} Or so.",
    "combination:repeat_prompt": lambda text, given: f"{given['prompt_to_repeat']}\n{text}",
    "change_case:english_capital": lambda text, given: text.upper(),
    "change_case:english_lowercase": lambda text, given: text.lower(),
    "punctuation:no_comma": lambda text, given: text.replace(",", ""),
    "startend:end_checker": lambda text, given: f"{text}\n{given['end_phrase']}",
    "startend:quotation": lambda text, given: f'"{text}"',
    "language:response_language": lambda text, given: ARTICLE_1.get(given["language"], text),
}


def said(requests: list[Request], answers: tuple[str, ...]) -> Iterator[tuple[str, Request, str]]:
    by_key = {row.key: row for row in requests}
    for path in answers:
        for rows in json.loads(Path(path).read_text())["rows"].values():
            yield from (("generated", by_key[row["key"]], row["said"]) for row in rows)


def harness(python: str, pairs: list[tuple[str, Request, str]], texts: list[str]) -> list[list[list[bool]]]:
    rows = [
        {"key": row.key, "prompt": row.prompt, "instruction_id_list": row.instruction_id_list, "said": text,
         "kwargs": [given for _name, given in row.instructions()]}
        for _sort, row, text in pairs
    ]  # fmt: skip
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump({"english": texts, "pairs": rows}, file)
        file.flush()
        done = subprocess.run([python, "-c", HARNESS, file.name], stdout=subprocess.PIPE, check=True, text=True)
    return list(json.loads(done.stdout.strip().rpartition("\n")[2]))


if __name__ == "__main__":
    main(*sys.argv[1:])
