"""The model section: every DeBERTa is a set of values of these fields. Names are those of published configs."""

from typing import Annotated, Literal

from pydantic import Field, WithJsonSchema, field_validator, model_validator

from megadeberta.config.section import Section

PositionTerm = Literal["c2p", "p2c"]
_PositionTerms = Annotated[
    tuple[PositionTerm, ...],
    WithJsonSchema(
        {"anyOf": [{"type": "array", "items": {"enum": ["c2p", "p2c"]}}, {"type": "string", "examples": ["p2c|c2p"]}]}
    ),
]
AUTO_VOCABULARY = "auto"
"""model.vocab_size of a recipe that takes it from its tokenizer; a number in every ``ModelConfig``."""
_VocabularySize = Annotated[
    int, WithJsonSchema({"anyOf": [{"type": "integer", "exclusiveMinimum": 0}, {"const": AUTO_VOCABULARY}]})
]


class ModelConfig(Section):
    """Shape of one DeBERTa encoder and its decoder for masked language modelling.

    Defaults are DeBERTa v3 (base). ``max_relative_positions < 1`` means "use max_position_embeddings"; raising the
    latter alone therefore moves every log bucket, so long-sequence models should set both.
    """

    vocab_size: _VocabularySize = Field(
        128_100,
        gt=0,
        description="rows of the word table: vocabulary entries + [MASK] + padding rows; auto = of the tokenizer, "
        "rounded up",
    )
    hidden_size: int = Field(768, gt=0, description="width of the layers")
    num_hidden_layers: int = Field(12, gt=0, description="layers of the encoder")
    num_attention_heads: int = Field(12, gt=0, description="a divisor of hidden_size")
    intermediate_size: int = Field(3072, gt=0, description="width inside the feed-forward layers")
    hidden_act: Literal["gelu"] = Field("gelu", description="activation of the feed-forward layers")
    hidden_dropout_prob: float = Field(0.1, ge=0, lt=1, description="dropout of embeddings and block outputs")
    attention_probs_dropout_prob: float = Field(0.1, ge=0, lt=1, description="dropout of attention weights")
    max_position_embeddings: int = Field(512, gt=0, description="longest sequence of absolute positions")
    type_vocab_size: int = Field(0, ge=0, description="0 = no token-type table")
    initializer_range: float = Field(0.02, gt=0, description="standard deviation of the initial weights")
    layer_norm_eps: float = Field(1e-7, gt=0, description="added to the variance in LayerNorm")
    pad_token_id: Literal[0] = Field(0, description="id of [PAD]")
    embedding_size: int | None = Field(None, gt=0, description="width of the word table; null = hidden_size")

    relative_attention: bool = Field(True, description="disentangled attention; false = content alone")
    pos_att_type: _PositionTerms = Field(
        ("p2c", "c2p"), description="terms of the scores besides content: content to position, position to content"
    )
    max_relative_positions: int = Field(-1, description="distances told apart; < 1 = max_position_embeddings")
    position_buckets: int = Field(256, description="half the rows of the relative table; < 1 = linear distances")
    norm_rel_ebd: Literal["layer_norm", "none"] = Field(
        "layer_norm", description="what the relative table goes through before it is projected"
    )
    share_att_key: bool = Field(True, description="project the relative table with the content projections")
    key_bias: bool = Field(True, description="false: v1, whose keys (content and position) have no bias")

    position_biased_input: bool = Field(False, description="add absolute positions at the input")
    enhanced_mask_decoder: bool = Field(True, description="absolute positions enter before the prediction only")
    conv_kernel_size: int = Field(0, ge=0, description="0 = no convolution; v2 xlarge and xxlarge use 3")
    conv_groups: int = Field(1, gt=0, description="groups of the convolution, a divisor of hidden_size")
    conv_act: Literal["gelu", "tanh"] = Field("gelu", description="activation behind the convolution")

    @field_validator("pos_att_type", mode="before")
    @classmethod
    def _split_pipe_separated(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part for part in value.lower().split("|") if part and part != "none")
        return value

    @model_validator(mode="after")
    def _check_shapes(self) -> "ModelConfig":
        if self.hidden_size % self.num_attention_heads:
            fitting = [n for n in range(1, min(self.hidden_size, 4096) + 1) if self.hidden_size % n == 0]
            near = sorted(fitting, key=lambda n: abs(n - self.num_attention_heads))[:4]
            raise ValueError(
                f"model.num_attention_heads={self.num_attention_heads} does not divide "
                f"model.hidden_size={self.hidden_size}; choose one of {sorted(near)}"
            )
        if self.conv_kernel_size and self.conv_kernel_size % 2 == 0:
            raise ValueError(f"model.conv_kernel_size={self.conv_kernel_size} must be odd, or 0 for no convolution")
        if self.hidden_size % self.conv_groups:
            raise ValueError(
                f"model.conv_groups={self.conv_groups} does not divide model.hidden_size={self.hidden_size}"
            )
        if self.relative_attention and self.position_buckets > 0:
            self._check_buckets()
        if self.enhanced_mask_decoder:
            self._check_mask_decoder()
        return self

    def _check_buckets(self) -> None:
        middle, farthest = self.position_buckets // 2, self.relative_span - 1
        if middle < 1 or farthest <= middle:
            raise ValueError(
                f"model.position_buckets={self.position_buckets} must be at least 2, with a longest distance above "
                f"{middle}; here it is {farthest} (max_relative_positions or max_position_embeddings, less 1)"
            )

    def _check_mask_decoder(self) -> None:
        if self.position_biased_input:
            raise ValueError(
                "model.enhanced_mask_decoder and model.position_biased_input exclude each other: absolute positions "
                "enter either in the decoder or at the input; set one of them to false"
            )
        if self.num_hidden_layers < 2:
            raise ValueError("model.enhanced_mask_decoder needs model.num_hidden_layers >= 2, found 1")
        if self.embedding_width != self.hidden_size:
            raise ValueError(
                f"model.enhanced_mask_decoder adds absolute positions of width embedding_size={self.embedding_width} "
                f"to hidden states of width {self.hidden_size}; make them equal or set enhanced_mask_decoder to false"
            )

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def embedding_width(self) -> int:
        """Width of the word table."""
        return self.embedding_size or self.hidden_size

    @property
    def relative_span(self) -> int:
        """Distances are told apart up to this span less 1."""
        return self.max_relative_positions if self.max_relative_positions > 0 else self.max_position_embeddings

    @property
    def relative_half_width(self) -> int:
        """k of the paper: the relative table has 2k rows."""
        return self.position_buckets if self.position_buckets > 0 else self.relative_span
