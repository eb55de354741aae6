"""The engine named transformers: the same tokens as `generate`, whoever else is being answered."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from toolbox import loading
from toolbox.embedded import MODEL
from toolbox.serving.batching import engine as engines
from toolbox.serving.batching.engine import Engine
from toolbox.serving.batching.pool import Pool
from toolbox.serving.batching.rows import Row, Told
from toolbox.serving.batching.sampling import Settings, choose
from toolbox.serving.batching.scheduler import FAILURES, QueueFull, Scheduler
from toolbox.serving.batching.texts import Text

NEW = 12


class Said:
    """A row, and what was told of it."""

    def __init__(
        self, ids: list[int], adapter: str = "", ends: Sequence[int] = (), tokenizer: Any = None, **settings: Any
    ):
        self.told: list[Told] = []
        asked = Settings(**{"max_tokens": NEW, **settings})
        text = Text(tokenizer or Silent(), asked.stop)
        self.row = Row(
            ids, asked, ends=[*ends], text=text, tell=lambda row, told: self.told.append(told), adapter=adapter
        )

    @property
    def tokens(self) -> list[int]:
        return [chosen.token for told in self.told for chosen in told.chosen]


class Silent:
    """A tokenizer of which no text is wanted."""

    def decode(self, ids: list[int], **options: Any) -> str:
        return ""


def generated(model: Any, ids: list[int], new: int = NEW) -> list[int]:
    """The greedy tokens of transformers itself."""
    settings = GenerationConfig(max_new_tokens=new, do_sample=False, pad_token_id=0, eos_token_id=-1)
    given = torch.tensor([ids])
    out = model.generate(input_ids=given, attention_mask=torch.ones_like(given), generation_config=settings)
    return list(out[0, len(ids) :].tolist())


def prompts(vocabulary: int, *lengths: int) -> list[list[int]]:
    draw = random.Random(0)
    return [[draw.randrange(3, vocabulary) for _ in range(length)] for length in lengths]


def carried_out(scheduler: Scheduler, said: Sequence[Said], apart: int = 3) -> None:
    """Let rows join one after another, `apart` steps between them, and all come to their ends."""
    for one in said:
        scheduler.submit([one.row])
        for _ in range(apart):
            scheduler.turn()
    for _ in range(2000):
        if all(one.row.finished for one in said):
            return
        scheduler.turn()
    raise AssertionError("rows never came to an end")


TINY: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 8},
    "gemma2": {"num_key_value_heads": 2, "sliding_window": 8, "head_dim": 16},
    "mixtral": {"num_key_value_heads": 4, "num_local_experts": 4},
    "gpt_oss": {"num_key_value_heads": 2, "num_local_experts": 4, "head_dim": 16, "sliding_window": 8},
    "mamba": {"state_size": 8},
}
ALONE = {"mamba"}


def tiny(folder: Path, kind: str) -> Path:
    """A random model of an architecture, with the embedded model's tokenizer."""
    from transformers import AutoConfig

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = AutoConfig.for_model(
        kind, vocab_size=1800, max_position_embeddings=256, **sizes, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        **TINY[kind],
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes((MODEL / name).read_bytes())
    return folder


@pytest.fixture(scope="module")
def demo() -> Engine:
    return engines.load(MODEL, {}, "float32", "cpu")


@pytest.fixture(scope="module")
def plain() -> Any:
    return loading.base_model(MODEL, "float32", "cpu").eval()


def test_rows_that_come_and_go_get_the_tokens_of_generate(demo: Engine, plain: Any) -> None:
    asked = prompts(1800, 3, 40, 17, 1, 90, 40)
    asked[5] = asked[1][:30] + asked[5][30:]  # begins like another
    gone = Said(asked[0], max_tokens=200)
    said = [gone, *(Said(ids, max_tokens=NEW + place) for place, ids in enumerate(asked))]
    demo.scheduler.submit([gone.row])
    gone_tokens = 5
    while len(gone.told) < gone_tokens:
        demo.scheduler.turn()
    gone.row.cancelled = True
    carried_out(demo.scheduler, said[1:])
    assert demo.batched
    assert [one.tokens for one in said[1:]] == [generated(plain, ids, NEW + place) for place, ids in enumerate(asked)]
    assert gone.row.finished
    assert len(gone.told) == gone_tokens
    assert said[6].row.shared == 30
    assert said[1].row.shared == 2  # what the one that left had read; the last token's logits are wanted


@pytest.mark.parametrize(
    "kind", ["mistral", *(pytest.param(kind, marks=pytest.mark.slow) for kind in TINY if kind != "mistral")]
)
def test_other_architectures_get_the_tokens_of_generate(tmp_path: Path, kind: str) -> None:
    folder = tiny(tmp_path, kind)
    made = engines.load(folder, {}, "float32", "cpu")
    asked = prompts(1800, 5, 30, 12)
    said = [Said(ids) for ids in asked]
    carried_out(made.scheduler, said)
    assert made.batched == (kind not in ALONE)
    model = loading.base_model(folder, "float32", "cpu").eval()
    assert [one.tokens for one in said] == [generated(model, ids) for ids in asked]


def adapter(folder: Path, seed: int, **config: Any) -> Path:
    """A LoRA of random numbers: only equality is asked for."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    made = LoraConfig(
        r=4, lora_alpha=16, init_lora_weights=False, **{"target_modules": ["q_proj", "down_proj"], **config}
    )
    get_peft_model(loading.base_model(MODEL, "float32", "cpu"), made).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("config", [{}, pytest.param({"use_dora": True}, marks=pytest.mark.slow)])
def test_rows_of_several_adapters_share_the_engine(tmp_path: Path, plain: Any, config: dict[str, Any]) -> None:
    folders = {
        "one": adapter(tmp_path / "one", 1, **config),
        "two.2": adapter(tmp_path / "two", 2, target_modules=["v_proj", "o_proj"]),
    }
    made = engines.load(MODEL, folders, "float32", "cpu")
    (ids,) = prompts(1800, 20)
    names = ["two.2", "", "one", "two.2"]
    said = [Said(ids, adapter=name) for name in names]
    carried_out(made.scheduler, said, apart=1)
    expected = {"": generated(plain, ids)}
    for name, folder in folders.items():
        expected[name] = generated(
            loading.with_adapter(loading.base_model(MODEL, "float32", "cpu"), folder).eval(), ids
        )
    assert [one.tokens for one in said] == [expected[name] for name in names]
    assert len({str(tokens) for tokens in expected.values()}) == 3
    assert [one.row.shared for one in said] == [0, 0, 0, 19]  # only of rows with the same adapter


def test_what_is_drawn_is_the_seeds_alone(demo: Engine) -> None:
    one, *others = prompts(1800, 20, 10, 30, 25)
    drawn = []
    for company in ([], others):
        said = [
            Said(one, temperature=1.5, top_p=0.95, seed=7, max_tokens=20),
            *(Said(ids, temperature=2.0) for ids in company),
        ]
        carried_out(demo.scheduler, said, apart=0)
        drawn.append(said[0].tokens)
    other = Said(one, temperature=1.5, top_p=0.95, seed=8, max_tokens=20)
    carried_out(demo.scheduler, [other])
    assert drawn[0] == drawn[1] != other.tokens


def test_draws_follow_the_distribution_that_was_asked_for() -> None:
    logits = torch.tensor([0.6, 0.25, 0.1, 0.05]).log().repeat(1000, 1)
    for settings, expected in [
        ({"temperature": 1.0}, [0.6, 0.25, 0.1, 0.05]),
        ({"temperature": 1.0, "top_p": 0.8}, [0.706, 0.294, 0, 0]),
        ({"temperature": 1.0, "top_k": 3}, [0.632, 0.263, 0.105, 0]),
        ({"temperature": 1.0, "min_p": 0.3}, [0.706, 0.294, 0, 0]),
        ({"temperature": 0.5}, [0.828, 0.144, 0.023, 0.006]),
        ({"temperature": 0.01}, [1, 0, 0, 0]),
        ({"logit_bias": {3: 9.0}}, [0, 0, 0, 1]),
    ]:
        said = [Said([0], seed=number, **settings).row for number in range(1000)]
        chosen = [one.token for one in choose(logits, said) if one]
        share = [chosen.count(token) / 1000 for token in range(4)]
        assert share == pytest.approx(expected, abs=0.05), settings


def test_a_wide_vocabulary_is_drawn_from_beyond_its_head() -> None:
    logits = torch.zeros(1000, 2000)
    said = [Said([0], seed=number, temperature=1.0, top_p=0.9).row for number in range(1000)]
    chosen = {one.token for one in choose(logits, said) if one}
    assert len(chosen) > 500
    broken = logits[:2].clone()
    broken[1] = torch.nan
    assert [one is None for one in choose(broken, said[:2])] == [False, True]


def test_penalties_count_what_they_say() -> None:
    row = Said([1, 1], repetition_penalty=2.0).row
    assert [one.token for one in choose(torch.tensor([[2.5, 4.0, 0.0]]), [row]) if one] == [0]
    row = Said([1], presence_penalty=1.0, frequency_penalty=0.5).row
    assert [one.token for one in choose(torch.tensor([[2.5, 4.0, 0.0]]), [row]) if one] == [1]  # not the prompt
    row.ids += [1, 1]
    assert [one.token for one in choose(torch.tensor([[2.5, 4.0, 0.0]]), [row]) if one] == [0]
    row = Said([1], ends=[1], min_tokens=1).row
    assert [one.token for one in choose(torch.tensor([[2.5, 4.0, 0.0]]), [row]) if one] == [0]


def test_logprobs_are_the_models_own(demo: Engine, plain: Any) -> None:
    (ids,) = prompts(1800, 9)
    one = Said(ids, logprobs=2, temperature=0.7, seed=1, max_tokens=1)
    carried_out(demo.scheduler, [one])
    (chosen,) = one.told[0].chosen
    with torch.no_grad():
        expected = plain(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    assert chosen.logprob == pytest.approx(float(expected[chosen.token]), abs=1e-3)
    assert [token for token, _value in chosen.likeliest] == expected.topk(2).indices.tolist()


class Letters:
    """A tokenizer whose tokens are bytes."""

    def decode(self, ids: list[int], **options: Any) -> str:
        return bytes(ids).decode(errors="replace")


@pytest.mark.parametrize(
    ("stops", "expected", "stopped"),
    [((), "中文 a STOP b", False), (("STOP",), "中文 a ", True), (("STOPS", " b!"), "中文 a STOP b", False)],
)
def test_text_comes_in_whole_characters_and_ends_before_a_stop(
    stops: tuple[str, ...], expected: str, stopped: bool
) -> None:
    text, pieces = Text(Letters(), stops), []
    for byte in "中文 a STOP b".encode():
        pieces.append(text.push(byte))
        if text.stopped:
            break
    assert not any("\ufffd" in piece for piece in pieces)
    assert ("".join(pieces) + text.rest(), text.stopped) == (expected, stopped)


def test_a_pool_has_room_again_and_forgets_the_oldest_first() -> None:
    pool = Pool(10, 10)
    one, two = pool.take([1, 2, 3], 4, ""), pool.take([9, 8, 7], 4, "")
    assert one
    assert two
    assert pool.take([1], 4, "") is None
    one.ids, two.ids = [1, 2, 3], [9, 8, 7]
    pool.leave(one)
    pool.leave(two)
    third = pool.take([9, 8, 7, 6], 7, "")
    assert third
    assert (third.begin, third.ids) == (0, [9, 8, 7]) or third.ids == []
    pool.leave(third, keep=False)
    whole = pool.take([5], 10, "")
    assert whole
    assert (whole.begin, whole.end) == (0, 10)


class Failing:
    """A model whose steps fail."""

    def logits(self, pool: Pool, parts: Any) -> list[torch.Tensor | None]:
        raise RuntimeError("no kernel image is available")


def test_a_step_that_fails_is_told_and_the_engine_gives_up_only_after_several() -> None:
    pool = Pool(100, 100)
    scheduler = Scheduler(Failing(), pool, rows=4, waiting=4)
    for number in range(FAILURES):
        said = [Said([1, 2]), Said([3])]
        scheduler.submit([one.row for one in said])
        if number == FAILURES - 1:
            with pytest.raises(RuntimeError, match="no kernel"):
                scheduler.turn()
        else:
            scheduler.turn()
        assert [one.told[-1].failure for one in said] == ["The engine failed on this request."] * 2
    assert pool.take([1], 100, "")
    with pytest.raises(QueueFull):
        scheduler.submit([Said([1]).row for _ in range(9)])
