"""The token that ends an assistant's turn, found by rendering a made-up conversation with the chat template."""

from __future__ import annotations

from typing import Any

_QUESTION = "dftquestion"
_ANSWERS = ("dftanswerone", "dftanswertwo")


def turn_ends(processor: Any, tokenizer: Any) -> tuple[set[int], str | None]:
    """Find which tokens follow the content of an assistant's messages.

    Between two messages and at the end another token may stand (`<|end|>` and `<|return|>`).

    Args:
        processor: a tokenizer, or a processor around one, either of which may have a chat template.
        tokenizer: the tokenizer.

    Returns:
        Their ids, none where there is no template; and why nothing can be known of a template, or None.
    """
    holder = next((one for one in (processor, tokenizer) if getattr(one, "chat_template", None)), None)
    if holder is None:
        return set(), None
    text = _rendered(holder)
    if isinstance(text, Exception):
        return set(), f"the chat template cannot be rendered ({type(text).__name__}: {text})"
    known = marked(tokenizer)
    found = set()
    for answer in _ANSWERS:
        rest = text.rpartition(answer)[2].lstrip()
        # The longest first: one may begin with another.
        end = next((token for token in sorted(known, key=len, reverse=True) if rest.startswith(token)), None)
        # Some templates begin each message with it.
        if end is not None and (end != tokenizer.bos_token or end == tokenizer.eos_token):
            found.add(known[end])
    return found, None


def marked(tokenizer: Any) -> dict[str, int]:
    """Return the tokens that are no plain text, with their ids."""
    found = {str(token): number for number, token in getattr(tokenizer, "added_tokens_decoder", {}).items()}
    found |= {token: tokenizer.convert_tokens_to_ids(token) for token in tokenizer.all_special_tokens}
    return {token: number for token, number in found.items() if token}


def _rendered(holder: Any) -> str | Exception:
    """Render two questions and their answers; contents are texts, or lists of parts in templates that want those."""
    problem: Exception = ValueError("it leaves the assistant's content out")
    for content in (lambda text: text, lambda text: [{"type": "text", "text": text}]):
        messages = []
        for answer in _ANSWERS:
            messages.append({"role": "user", "content": content(_QUESTION)})
            messages.append({"role": "assistant", "content": content(answer)})
        try:
            text = holder.apply_chat_template(messages, tokenize=False)
        except Exception as error:  # A template is somebody's program, and may fail in any way.
            problem = error
            continue
        if isinstance(text, str) and all(answer in text for answer in _ANSWERS):
            return text
    return problem
