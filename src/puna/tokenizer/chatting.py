"""Conversations: choosing the chat template, rendering it, and encoding the text as it stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from puna.errors import ChatTemplateError
from puna.tokenizer.arguments import ChatTemplate
from puna.tokenizer.calling import CallableTokenizer
from puna.tokenizer.chat.render import Message, render_chat
from puna.tokenizer.chat.templates import LLAMA_3, LLAMA_3_TOKENS, llama_2_template


class ChattingTokenizer(CallableTokenizer):
    """`apply_chat_template` over the encoding calls."""

    chat_template: ChatTemplate | None
    use_default_system_prompt: bool

    @property
    def default_chat_template(self) -> str:
        """The template used where the files have none: Llama 3's if the vocabulary has its headers, or Llama 2's.

        Raises:
            ChatTemplateError: the vocabulary speaks neither format.
        """
        if all(self._token_id(token) is not None for token in LLAMA_3_TOKENS):
            return LLAMA_3
        if self._token_id("</s>") is not None:
            return llama_2_template(self.use_default_system_prompt)
        raise ChatTemplateError(
            "this tokenizer has no chat template and its vocabulary fits neither Llama 2's nor Llama 3's; "
            "pass chat_template= or use plain text"
        )

    def get_chat_template(self, chat_template: str | None = None, tools: Sequence[Any] | None = None) -> str:
        """The source that `apply_chat_template` renders.

        Args:
            chat_template: a template, or the name of one of this tokenizer's.
            tools: with tools, a template named "tool_use" is preferred.

        Raises:
            ChatTemplateError: there is none, or none of this name.
        """
        known = self.chat_template
        names = sorted(known) if isinstance(known, Mapping) else []
        if chat_template is not None and chat_template not in names and "{" not in chat_template:
            raise ChatTemplateError(
                f"chat_template={chat_template!r:.60}: neither Jinja source, which has a '{{', nor one of this "
                f"tokenizer's named templates ({', '.join(names) or 'it has none'})"
            )
        if isinstance(known, Mapping):
            if chat_template is None:
                chat_template = "tool_use" if tools is not None and "tool_use" in known else "default"
                if chat_template not in known:
                    raise ChatTemplateError(f"choose one of the chat templates {', '.join(names)} by name")
            return known.get(chat_template, chat_template)
        if chat_template is not None:
            return chat_template
        return self.default_chat_template if known is None else known

    def apply_chat_template(
        self,
        conversation: Sequence[Message] | Sequence[Sequence[Message]],
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        tokenize: bool = True,
        padding: bool | str = False,
        truncation: bool | str = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        return_dict: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool = False,
        template_variables: Mapping[str, Any] | None = None,
        **more_variables: Any,
    ) -> Any:
        """Renders a conversation, or a list of them, and encodes it as it stands: no BOS beyond the template's own.

        Args:
            conversation: messages with "role" and "content".
            chat_template: a template, or the name of one of this tokenizer's.
            add_generation_prompt: end with the header of the assistant's answer.
            tokenize: False returns the text.
            return_dict: return the whole `BatchEncoding` rather than the ids.
            continue_final_message: leave the last message open, for the model to go on.
            template_variables, more_variables: more variables for the template, such as enable_thinking=True; as in
                transformers, a name that the template does not use has no effect.

        Returns:
            Ids as a list, a tensor of shape (1, tokens), text, or a `BatchEncoding`; lists of these for several.

        Raises:
            ChatTemplateError: no template, or it does not compile, fails, or refuses the conversation; or a variable
                has a name that stands for something else.
        """
        source = self.get_chat_template(chat_template, tools)
        several = isinstance(conversation, (list, tuple)) and len(conversation) > 0
        batched = several and isinstance(conversation[0], (list, tuple))
        conversations: Sequence[Any] = conversation if batched else [conversation]
        texts = [
            render_chat(
                source,
                messages,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                tools=tools,
                documents=documents,
                variables={**self.special_tokens_map, **(template_variables or {}), **more_variables},
            )
            for messages in conversations
        ]
        text: Any = texts if batched else texts[0]
        if not tokenize:
            return text
        encoded = self(
            text,
            add_special_tokens=False,
            split_special_tokens=False,
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            return_tensors=return_tensors,
        )
        return encoded if return_dict else encoded["input_ids"]
