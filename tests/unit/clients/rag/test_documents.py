"""Prompts: the ids of a blended request are those of the plain prompt, part by part."""

import numpy as np
import pytest

from kvloom.clients.rag import Document, PromptTemplate
from kvloom.errors import InvalidRequest, UnsupportedModel


class Bytes:
    """A tokenizer of bytes, with a chat template that drops nothing unless told to."""

    bos_token = "<s>"
    chat_template = "yes"
    drops = False

    def __call__(self, text, *, add_special_tokens, verbose):
        assert add_special_tokens is False
        return {"input_ids": list(text.encode())}

    def apply_chat_template(self, turns, *, tokenize, add_generation_prompt):
        system, user = (turn["content"] for turn in turns)
        return f"[{system}]" if self.drops else f"<{system}|{user}>"


def text_of(ids) -> str:
    return bytes(np.asarray(ids, np.uint8)).decode()


DOCUMENTS = (Document("snow is white", title="snow"), Document("grass is green"))


def test_prompt_is_the_template_with_its_parts():
    template = PromptTemplate(Bytes(), system="sys")
    prompt = template.prompt("why?", DOCUMENTS)
    assert text_of(prompt.token_ids) == ("<sys|Documents:\n\nsnow\nsnow is white\n\ngrass is green\n\nQuestion: why?>")
    assert text_of(prompt.token_ids[: prompt.prefix_tokens]) == "<sys|Documents:\n\n"
    assert [text_of(prompt.tokens_of(span)) for span in prompt.spans] == [item.rendered for item in DOCUMENTS]
    assert [span.document for span in prompt.spans] == list(DOCUMENTS)


def test_a_documents_tokens_do_not_depend_on_its_neighbours():
    template = PromptTemplate(Bytes())
    alone = template.prompt("q", DOCUMENTS[1:])
    after = template.prompt("q", DOCUMENTS)
    assert np.array_equal(alone.tokens_of(alone.spans[0]), after.tokens_of(after.spans[1]))


def test_without_a_chat_template():
    tokenizer = Bytes()
    tokenizer.chat_template = None
    prompt = PromptTemplate(tokenizer, system="sys").prompt("why?", ())
    assert text_of(prompt.token_ids) == "<s>sys\n\nDocuments:\n\nQuestion: why?\n\nAnswer:"


def test_a_template_that_drops_the_user_is_refused():
    tokenizer = Bytes()
    tokenizer.drops = True
    with pytest.raises(UnsupportedModel, match="drops the user"):
        PromptTemplate(tokenizer)


@pytest.mark.parametrize("text", ["", "  \n"])
def test_a_document_without_text_is_refused(text):
    with pytest.raises(InvalidRequest, match="'empty one' has no text, at least 1 token"):
        PromptTemplate(Bytes()).prompt("q", [Document(text, title="empty one")])
