"""The named prompts that a language model is asked with, and how each one's replies are read."""

import string
from dataclasses import dataclass

from ift_components.errors import ConfigError
from ift_components.generation.replies import (
    Parser,
    parse_choices,
    parse_description,
    parse_one_pair,
    parse_pairs,
    parse_question,
)

_FIELDS = ("caption", "context", "count")

# What papers ask of a writer who sees the caption but not the image, and whose reader will see the image alone.
_RULES = """Write as if you looked at the image itself: ask only what can be seen in it. Do not speak of a caption, a text or a
context, and do not say that something is mentioned. Do not ask about measurements, dates, names, the patient's history or
anything that the text does not tell. Do not put the answer into the question."""

# The prompt of MedM's first listing, with a last sentence that keeps the reply to the question.
_ONE_QUESTION = """Based on the following medical image caption generate an appropriate and insightful question for the caption.
Treat this caption as the ground truth to generate your question. Reply with the question only.

Caption: {caption}"""

_SEVERAL_PAIRS = f"""You are given the caption of a medical image. Write {{count}} pairs of a question and a short answer about
the image.
{_RULES}
Mix open questions with yes/no questions, half of which have the answer no. Write every question on a line that begins with Q:
and its answer on the next line, which begins with A:. Write nothing else.

Caption: {{caption}}
What else is known: {{context}}"""

_WITH_OPTIONS = f"""You are given the caption of a medical image. Write {{count}} multiple-choice questions about the image,
each with four options, of which one is right and three are wrong but plausible.
{_RULES}
Use this form and write nothing else:
Q: the question
A) an option
B) an option
C) an option
D) an option
Answer: the right letter

Caption: {{caption}}
What else is known: {{context}}"""

_DESCRIPTION = """You are given the caption of a figure in a medical paper and the sentences of the paper that refer to it.
Describe the image in detail, in full sentences, as if you looked at it. Do not speak of a caption, a text or a context. Leave
out what cannot be seen in an image: names, dates, the patient's history. Tell nothing that the text does not tell. Write the
description only.

Caption: {caption}
Sentences: {context}"""

_REASONING = f"""You are given the caption of a figure in a medical paper and the sentences of the paper that refer to it. Write
one question about the image that takes several steps of thought to answer: why, how, or what follows from what is seen. Answer
it in two to five sentences.
{_RULES}
Write the question on a line that begins with Q: and the answer on the next line, which begins with A:. Write nothing else.

Caption: {{caption}}
Sentences: {{context}}"""


@dataclass(frozen=True)
class Template:
    """A prompt and what becomes of its reply.

    Attributes:
        prompt: text with `{caption}`, `{context}` (the sentences that mention the image; empty where there are none) and
            `{count}` in it.
        parser: reads the reply.
        question: the question where the reply is only an answer; empty where it holds its questions.
        answered_by_caption: the reply is only a question, and the caption is its answer.
    """

    prompt: str
    parser: Parser
    question: str = ""
    answered_by_caption: bool = False

    def render(self, caption: str, context: str, count: int) -> str:
        """Return the prompt for one image."""
        return self.prompt.format(caption=caption, context=context or "(none)", count=count)


TEMPLATES = {
    "one_question": Template(_ONE_QUESTION, parse_question, answered_by_caption=True),
    "several_pairs": Template(_SEVERAL_PAIRS, parse_pairs),
    "with_options": Template(_WITH_OPTIONS, parse_choices),
    "detailed_description": Template(_DESCRIPTION, parse_description, question="Describe the image in detail."),
    "complex_reasoning": Template(_REASONING, parse_one_pair),
}


def find_template(name: str, prompt: str | None = None) -> Template:
    """Return a template by name, with another prompt if one is given.

    Raises:
        ConfigError: for an unknown name, or a prompt without `{caption}` or with another field.
    """
    if name not in TEMPLATES:
        raise ConfigError(f"template is '{name}', expected one of: {', '.join(TEMPLATES)}")
    template = TEMPLATES[name]
    if prompt is None:
        return template
    try:
        names = [field for _, field, _, _ in string.Formatter().parse(prompt) if field is not None]
    except ValueError as error:
        raise ConfigError(f"prompt: {error}; write {{{{ and }}}} for braces") from error
    unknown = [field for field in names if field not in _FIELDS]
    if unknown or "caption" not in names:
        raise ConfigError(
            f"prompt: {f'unknown field {unknown[0]!r}' if unknown else 'no field {caption}'}; it may hold "
            f"{', '.join('{' + field + '}' for field in _FIELDS)} and must hold {{caption}}"
        )
    return Template(prompt, template.parser, template.question, template.answered_by_caption)
