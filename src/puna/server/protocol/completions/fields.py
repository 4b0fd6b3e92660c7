"""The fields of POST /v1/completions."""

from __future__ import annotations

from puna.server.protocol.answer_format import FORMATS
from puna.server.protocol.extras import SHARED
from puna.server.protocol.fields import HONOURED, VALUES, Field, Table
from puna.server.protocol.sampling import SAMPLING
from puna.server.protocol.types import Array, Boolean, Integer, OneOf, Text

_ID = Integer(0, 2**31 - 1)

PROMPT = OneOf(Text(), Array(Text(), 1, "prompts"), Array(_ID, 1), Array(Array(_ID, 1), 1, "prompts"))

COMPLETION = Table("CompletionRequest", (
    Field("model", Text(1), HONOURED, "name of the model or of an adapter", required=True),
    Field("prompt", PROMPT, HONOURED, "a text, token ids, or an array of texts or of arrays of token ids",
          required=True),
    Field("max_tokens", Integer(0, "tokens"), HONOURED, "maximum number of tokens of the answer; 0 only reads the "
          "prompt", 16, example=3),
    Field("logprobs", Integer(0, "logprobs"), HONOURED, "return the log-probability of each token, and this number of "
          "most likely tokens", example=2),
    Field("echo", Boolean(), HONOURED, "begin the text with the prompt", False, example=True),
    Field("best_of", Integer(1, "n"), HONOURED, "generate this number of answers and return the n best; not for "
          "streams",
          example=2),
    Field("suffix", Text(), VALUES, "the model cannot fill in the middle", accepted=("",)),
    *SAMPLING,
    *FORMATS,
    *SHARED,
), open=False)  # fmt: skip
