"""A model behind an OpenAI-compatible server, as a subject (`evaluate --endpoint URL`)."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from toolbox.errors import InputError
from toolbox.evaluation.cache import Cache, text_key
from toolbox.evaluation.requests import AT_ONCE, RefusedError, Server, key_of
from toolbox.evaluation.subjects import Choices, Scored
from toolbox.i18n import _
from toolbox.inference import Conversation, Keep, Watch, cut_at, in_batches, unwatched
from toolbox.runs import Run
from toolbox.suites import Suite
from toolbox.suites.kinds import KINDS


class Endpoint(msgspec.Struct, frozen=True):
    """What is answered is kept in the run only: another model may answer to that name tomorrow."""

    name: str
    server: Server
    cache: Cache = msgspec.field(default_factory=Cache)

    def generate(
        self,
        conversations: Sequence[Conversation],
        *,
        max_new_tokens: int = 64,
        do_sample: bool = False,
        seed: int = 0,
        stop: Sequence[str] = (),
        watch: Watch = unwatched,
    ) -> list[str]:
        """Models that can think first are asked not to, where the server takes that."""
        settings = {
            "max_tokens": max_new_tokens, "temperature": float(do_sample), "top_p": 1.0,
            "chat_template_kwargs": {"enable_thinking": False}, **({"stop": list(stop)} if stop else {}),
        }  # fmt: skip
        asked = [
            {"messages": talk, **settings, **({"seed": seed + place} if do_sample else {})}
            for place, talk in enumerate(conversations)
        ]
        answers = self._asked("chat/completions", asked, watch)
        return [cut_at(answer["choices"][0]["message"]["content"] or "", stop).strip() for answer in answers]

    def complete(
        self, prompts: Sequence[str], *, max_new_tokens: int, stop: Sequence[str] = (), watch: Watch = unwatched
    ) -> list[str]:
        settings = {"max_tokens": max_new_tokens, "temperature": 0.0, **({"stop": list(stop)} if stop else {})}
        answers = self._asked("completions", [{"prompt": prompt, **settings} for prompt in prompts], watch)
        return [cut_at(answer["choices"][0]["text"], stop) for answer in answers]

    def choices(self, questions: Sequence[Choices], watch: Watch = unwatched) -> list[list[float]]:
        """Raises InputError: no server tells the likelihood of an answer that it did not write."""
        raise _unable(_("A server does not tell how likely an answer is that it did not write."))

    def texts(self, pairs: Sequence[tuple[str, str]], watch: Watch = unwatched) -> list[Scored]:
        """By `echo` and `logprobs` of /v1/completions, which vLLM, SGLang and llama.cpp give."""
        settings = {"max_tokens": 1, "temperature": 0.0, "echo": True, "logprobs": 1}
        asked = [{"prompt": context + continuation, **settings} for context, continuation in pairs]
        try:
            answers = self._asked("completions", asked, watch)
        except RefusedError as error:
            raise _unable(_("The server gives no likelihoods of what it is asked.")) from error
        return [_scored(answer, *pair) for answer, pair in zip(answers, pairs, strict=True)]

    def _asked(self, route: str, bodies: Sequence[dict[str, Any]], watch: Watch) -> list[dict[str, Any]]:
        def work(bodies: Sequence[dict[str, Any]], known: Mapping[int, Any], keep: Keep) -> list[dict[str, Any]]:
            def ask(batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
                return self.server.post_all(route, batch)

            return in_batches(bodies, lambda body: len(str(body)), ask, 4 * AT_ONCE, watch, known, keep)

        return self.cache.through([text_key(route, body) for body in bodies], bodies, work)


def check(subject: Endpoint, chosen: Sequence[Suite]) -> None:
    """Raises InputError before anything is asked, hours maybe, where a suite needs likelihoods that the server does not
    give."""
    needing = [suite for suite in chosen if suite.kind in KINDS and not KINDS[suite.kind].written]
    if inside := next((suite.name for suite in needing if KINDS[suite.kind].local), None):
        raise _unable(
            _("{suite} needs the model itself: a server does not tell how likely an answer is.").format(suite=inside)
        )
    if needing:
        subject.texts([("A", " b")])


def of(role: str, url: str, model: str, run: Run | None) -> Endpoint:
    """The model of that name at a server, as endpoint or judge; its key is taken from the environment."""
    kept = Cache(run.path / "cache" / f"{role}.jsonl" if run else None)
    server = Server(url, model, key_of(f"YCDY_EVALUATE_{role.upper()}_KEY"))
    return Endpoint("base" if role == "endpoint" else role, server, kept)


def _scored(answer: dict[str, Any], context: str, continuation: str) -> Scored:
    """The tokens of the continuation: those that begin in it, by their places in the text."""
    told = answer["choices"][0].get("logprobs") or {}
    if not told.get("text_offset") or told["token_logprobs"][-1] is None:
        raise _unable(_("The server gives no likelihoods of what it is asked."))
    begin, end = len(context.rstrip()), len(context + continuation)
    places = [
        place
        for place, (offset, value) in enumerate(zip(told["text_offset"], told["token_logprobs"], strict=True))
        if begin <= offset < end and value is not None
    ]
    tops = told.get("top_logprobs") or []
    return Scored(
        [float(told["token_logprobs"][place]) for place in places],
        [told["tokens"][place] for place in places],
        all(max((tops[place] or {"": 0.0}).values()) <= told["token_logprobs"][place] for place in places),
    )


def _unable(reason: str) -> InputError:
    written = [kind.name for kind in KINDS.values() if kind.written]
    return InputError(
        reason,
        _("Name the model's folder with --model; of a server these can be measured: {kinds}.").format(
            kinds=", ".join(written)
        ),
    )
