"""Bodies of requests and answers of `/v1`, as types; the OpenAPI page shows them."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def _whole(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"half a character (a lone surrogate) at {error.start}") from None
    return text


Text = Annotated[str, AfterValidator(_whole)]


class _Form(BaseModel):
    """No field is converted, and none that is unknown is passed over."""

    model_config = ConfigDict(extra="forbid", strict=True)


class PredictForm(_Form):
    """`POST /v1/predict`."""

    input: Text | list[Text] = Field(
        description="one input, or a list of them, without the task's prefix",
        examples=[["Where do fish live?", "Where do birds sleep?"]],
    )
    explain: bool = Field(False, description="also give the student's rationale")
    labels: list[Text] | list[list[Text]] | None = Field(
        None, description="the allowed labels of all inputs, or a list for each; else the task's"
    )


PREDICT_FIELDS = {
    "input": "a text or a list of texts",
    "explain": "true or false",
    "labels": "a list of texts, or such a list for each input",
}
"""Field -> what it must be."""


class OnePrediction(BaseModel):
    label: str
    probability: float | None = Field(description="over the allowed labels; null: any text may be")
    log_prob: float = Field(description="natural logarithm, of the label as a text")
    probabilities: dict[str, float] = Field(description="of each allowed label")
    rationale: str | None = Field(description="null where it was not asked for")


class PredictAnswer(BaseModel):
    """One prediction an input, in their order."""

    model: str
    predictions: list[OnePrediction]


class CompletionForm(_Form):
    """`POST /v1/completions`, OpenAI's: greedy, one choice a prompt, text alone."""

    model: str
    prompt: Text | list[Text] = Field(description="whole texts, the task's prefix included")
    max_tokens: int | None = Field(None, description="default: what the student was trained for")
    temperature: float | None = Field(None, description="0 or null: the most likely tokens")
    n: int | None = Field(None, description="1 or null")
    best_of: int | None = Field(None, description="1 or null")
    stop: str | list[str] | None = Field(None, description="texts that end an answer")
    echo: bool | None = Field(None, description="false or null")
    logprobs: int | None = Field(None, description="null")
    stream: bool | None = Field(None, description="false or null")
    stream_options: dict[str, Any] | None = Field(None, description="null")
    suffix: str | None = Field(None, description="null")
    frequency_penalty: float | None = Field(None, description="0 or null")
    presence_penalty: float | None = Field(None, description="0 or null")
    logit_bias: dict[str, float] | None = Field(None, description="{} or null")
    top_p: float | None = Field(None, description="greedy answers do not depend on it")
    seed: int | None = Field(None, description="greedy answers do not depend on it")
    user: str | None = Field(None, description="not looked at")


COMPLETION_FIELDS = dict.fromkeys(CompletionForm.model_fields, "") | {
    "prompt": (
        "a text or a list of texts. Lists of token ids are not taken: a student has a vocabulary "
        "of its own (lm_eval: --model_args tokenized_requests=False,tokenizer_backend=None)"
    ),
    "stop": "a text or a list of texts",
}
"""The same; "": pydantic says it."""


class Choice(BaseModel):
    index: int
    text: str
    finish_reason: str = Field(description="stop or length")
    logprobs: None = None


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionAnswer(BaseModel):
    id: str
    object: str = "text_completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class ModelEntry(BaseModel):
    id: str
    object: str = "model"
    created: int
    owned_by: str = "dss-jax"


class ModelList(BaseModel):
    object: str = "list"
    data: list[ModelEntry]


class ModelAnswer(BaseModel):
    """`GET /v1/model`: what the student is, and what the server takes."""

    id: str
    version: str = Field(description="of dss-jax")
    engine: str
    task: str
    description: str
    method: str
    form: str = Field(
        description='of Method.form; of "rationale_input" an input is "INPUT</s>RATIONALE"'
    )
    metric: str
    explains: bool
    label_prefix: str = Field(description="of prompts of /v1/completions that ask for a label")
    rationale_prefix: str | None = Field(description="the same for a rationale")
    labels: list[str] = Field(description="allowed for every input; []: see row_labels")
    row_labels: bool = Field(description="each input has allowed labels of its own")
    examples: list[dict[str, Any]] = Field(description="of the test split")
    limits: dict[str, int]
